"""What is written to files that stay open, as it is seen on another mount, with real services."""

import itertools
import mmap
import os
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.conftest import make_workplace
from tests.cluster.writing import mounted_again, read_tree, wait_until
from tests.servers.stack import Stack, start_stack

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(240),
]

INTERVAL_S = 1.0
"""The setting's default is 5 s."""
SEEN_S = 30.0
"""INTERVAL_S to twice that where the machine is not busy."""
NOT_SEEN_S = 4 * INTERVAL_S
MIB = 1 << 20
POLICIES = ("through", "back", "cache")
_numbers = itertools.count()


@dataclass
class Apart:
    """Two mounts as on two machines, each with a worker of its own, of a file system that was made for all tests here."""

    stack: Stack
    workplace: Path
    mounts: tuple[Path, Path]

    def make_place(self, policy: str = "through") -> tuple[Path, Path]:
        """A directory of a test's own, as both have it. Its store: `read_store`."""
        name = f"{policy}/t{next(_numbers)}"
        (self.mounts[0] / name).mkdir()
        return self.mounts[0] / name, self.mounts[1] / name

    def read_store(self, here: Path) -> dict[str, bytes | None]:
        return read_tree(self.workplace / "store" / here.parent.name / here.name)


@pytest.fixture(scope="module")
def running() -> Iterator[Apart]:
    options = ["--set", f"follow_interval_s={INTERVAL_S:g}"]
    with make_workplace() as workplace:
        stores = {policy: workplace / "store" / policy for policy in POLICIES}
        for store in stores.values():
            store.mkdir(parents=True)
        with start_stack(workplace, {}, {}, "--workers", "2", "--cache-size", "2GB") as stack:
            for policy, store in stores.items():
                stack.run_command("alluxio-like", "mount", f"/{policy}", f"file://{store}", f"-owrite={policy}")
            with (
                mounted_again(stack, workplace, "mnt1", hidden_worker=2, options=options) as first,
                mounted_again(stack, workplace, "mnt2", hidden_worker=1, options=options) as second,
            ):
                yield Apart(stack, workplace, (first, second))


@pytest.fixture
def apart(running: Apart) -> tuple[Path, Path]:
    """A test's directory on both."""
    return running.make_place()


def make_record(data: bytes) -> bytes:
    """As in an event file of TensorBoard: length and its checksum, data and its checksum."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", zlib.crc32(length)) + data + struct.pack("<I", zlib.crc32(data))


def read_records(data: bytes) -> list[bytes]:
    """What a follower makes of it: whole records, and at the end perhaps the beginning of one."""
    found, at = [], 0
    while len(data) - at >= 12:
        (length,) = struct.unpack_from("<Q", data, at)
        assert zlib.crc32(data[at : at + 8]) == struct.unpack_from("<I", data, at + 8)[0]
        if len(data) - at < 16 + length:
            break
        found.append(data[at + 12 : at + 12 + length])
        assert zlib.crc32(found[-1]) == struct.unpack_from("<I", data, at + 12 + length)[0]
        at += 16 + length
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_appended_to_a_file_that_stays_open_is_seen(running: Apart, policy: str) -> None:
    here, there = running.make_place(policy)
    written = b""
    with (here / "log").open("ab", buffering=0) as log:
        for step in range(4):
            line = b"%d %s\n" % (step, os.urandom(300_000 * step).hex().encode())
            log.write(line)
            written += line
            wait_until(lambda: (there / "log").read_bytes() == written, f"line {step}", SEEN_S)  # noqa: B023
        assert (there / "log").stat().st_size == len(written)
        # The store gets it when it is closed, and not for each of them.
        assert not running.read_store(here).get("log")
    assert (there / "log").read_bytes() == written
    if policy == "through":
        assert running.read_store(here)["log"] == written
    elif policy == "back":
        wait_until(lambda: running.read_store(here).get("log") == written, "it is in the store")


def test_events_are_followed_while_they_are_written(apart: tuple[Path, Path]) -> None:
    """As TensorBoard follows a training on another machine: the file is opened again for each look."""
    here, there = apart
    events = [b"event %d " % number * (1 + number % 40) for number in range(600)]
    done = threading.Event()

    def train() -> None:
        with (here / "events").open("wb", buffering=0) as file:
            for event in events:
                file.write(make_record(event))
                time.sleep(0.01)
            wait_until(done.is_set, "all of them are seen", 2 * SEEN_S)

    training = threading.Thread(target=train)
    training.start()
    try:
        looks, most = 0, 0
        wait_until((there / "events").exists, "the file", SEEN_S)
        while most < len(events):
            found = read_records((there / "events").read_bytes())
            assert found == events[: len(found)]
            assert len(found) >= most, "nothing goes that was seen"
            looks, most = looks + (len(found) > most), len(found)
            assert training.is_alive()
        assert looks > 2
    finally:
        done.set()
        training.join()


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_changed_in_a_file_that_stays_open_is_seen(apart: tuple[Path, Path], *, mapped: bool) -> None:
    here, there = apart
    content = bytearray(os.urandom(3 * MIB))
    (here / "table").write_bytes(content)
    fd = os.open(here / "table", os.O_RDWR)
    memory = mmap.mmap(fd, len(content)) if mapped else None
    seen = []
    try:
        for step in range(3):
            place = step * MIB + 17
            content[place : place + 4] = b"%04d" % step
            if memory is not None:
                memory[place : place + 4] = b"%04d" % step
            else:
                os.pwrite(fd, b"%04d" % step, place)
            wait_until(lambda: (there / "table").read_bytes() == content, f"change {step}", SEEN_S)
            seen.append((there / "table").open("rb", buffering=0))
            assert seen[-1].read(100) == content[:100]
        # Who has a version open reads it to its end.
        assert seen[-1].read() == content[100:]
    finally:
        for file in seen:
            file.close()
        if memory is not None:
            memory.close()
        os.close(fd)
    assert (there / "table").read_bytes() == content


def test_what_is_written_all_the_time_is_seen_as_it_was_at_one_moment(apart: tuple[Path, Path]) -> None:
    """A counter at each end of a file, which only grows: the one in front is never the older."""
    here, there = apart
    stop = threading.Event()

    def count() -> None:
        number = 0
        with (here / "counted").open("wb", buffering=0) as file:
            while not stop.is_set():
                number += 1
                file.write(b"%010d" % number)
                time.sleep(0.0002)  # or it would soon be too large to be shown

    counting = threading.Thread(target=count)
    counting.start()
    try:
        sizes: set[int] = set()
        deadline = time.monotonic() + 6 * SEEN_S
        while len(sizes) < 4:
            assert time.monotonic() < deadline, sizes
            found = (there / "counted").read_bytes() if (there / "counted").exists() else b""
            whole = found[: len(found) // 10 * 10]
            assert [int(whole[at : at + 10]) for at in range(0, len(whole), 10)] == list(range(1, len(whole) // 10 + 1))
            sizes.add(len(found))
            time.sleep(0.1)
    finally:
        stop.set()
        counting.join()


def test_where_two_machines_write_the_last_to_close_wins_all_the_same(apart: tuple[Path, Path]) -> None:
    here, there = apart
    (here / "f").write_bytes(b"the beginning")
    with (here / "f").open("r+b", buffering=0) as one, (there / "f").open("r+b", buffering=0) as other:
        one.write(b"ONE")
        assert (here / "f").read_bytes() == b"ONE beginning"
        other.write(b"THE OTHER")
        time.sleep(NOT_SEEN_S)
        one.write(b"!")
        one.close()
        time.sleep(NOT_SEEN_S)
    for place in apart:
        wait_until(lambda place=place: (place / "f").read_bytes() == b"THE OTHERning", "the last to close")


def test_it_can_be_switched_off(running: Apart, apart: tuple[Path, Path]) -> None:
    here, there = apart
    options = ["--set", "follow_interval_s=0"]
    with (
        mounted_again(running.stack, running.workplace, "mnt3", hidden_worker=2, options=options) as place,
        (place / here.parent.name / here.name / "log").open("ab", buffering=0) as log,
    ):
        log.write(b"line\n")
        os.fsync(log.fileno())
        time.sleep(NOT_SEEN_S)
        assert (there / "log").read_bytes() == b""
        log.close()
        assert (there / "log").read_bytes() == b"line\n"


def test_a_file_without_a_name_and_one_that_nobody_writes_are_left_alone(running: Apart, apart: tuple[Path, Path]) -> None:
    here, there = apart
    with (here / "gone").open("wb", buffering=0) as gone, (here / "empty").open("wb", buffering=0):
        gone.write(b"never seen")
        (here / "gone").unlink()
        time.sleep(NOT_SEEN_S)
        gone.write(b", and written on")
        assert sorted(path.name for path in there.iterdir()) == ["empty"]
    wait_until(lambda: running.read_store(here) == {"empty": b""}, "the store follows")


@contextmanager
def tail_f(path: Path, shown: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`tail -F`, as it is where it cannot be told of changes (on FUSE it does so by itself), looking more often."""
    command = ["tail", "-F", "---disable-inotify", "-n", "+1", "-s", "0.2", "--max-unchanged-stats=1", str(path)]
    with shown.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL) as tail:
        try:
            yield tail
        finally:
            tail.terminate()


def has_open(pid: int, name: str) -> bool:
    return any(link.readlink().name == name for link in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stays_open", [True, False])
def test_who_follows_by_one_descriptor_sees_what_is_appended(
    running: Apart, tmp_path: Path, policy: str, *, stays_open: bool
) -> None:
    """And the log that takes the place of one that was moved away."""
    here, there = running.make_place(policy)
    lines = [b"line %d %s\n" % (number, os.urandom(2000 * number).hex().encode()) for number in range(6)]
    shown, written = tmp_path / "shown", b""
    with ExitStack() as ending:
        log = ending.enter_context((here / "log").open("ab", buffering=0))
        wait_until((there / "log").exists, "the log", SEEN_S)
        fd = os.open(there / "log", os.O_RDONLY)
        ending.callback(os.close, fd)
        assert os.read(fd, 1) == b""
        tail = ending.enter_context(tail_f(there / "log", shown))
        # (Once it has looked at the log: the first line of one that is closed with it says nothing of more to come.)
        wait_until(lambda: has_open(tail.pid, "log"), "tail", SEEN_S)
        for line in lines:
            log.write(line)
            written += line
            if not stays_open:
                log.close()
                log = ending.enter_context((here / "log").open("ab", buffering=0))
            wait_until(lambda: os.fstat(fd).st_size == len(written), "its size", SEEN_S)  # noqa: B023
            assert (os.read(fd, 1 << 20), os.pread(fd, 1 << 20, 0)) == (line, written)
            wait_until(lambda: shown.read_bytes() == written, "tail", SEEN_S)  # noqa: B023
        (here / "log").rename(here / "log.1")
        log.write(b"the last one\n")
        log.close()
        written += b"the last one\n"
        wait_until(lambda: os.pread(fd, 1 << 20, 0) == written, "what came to the log that was moved away", SEEN_S)
        with (here / "log").open("ab", buffering=0) as log:
            log.write(b"of the next log\n")
            # (tail has perhaps let go of the one before when it found no log of that name.)
            wait_until(lambda: shown.read_bytes().endswith(b"of the next log\n"), "the next log", SEEN_S)
        assert os.pread(fd, 1 << 20, 0) == written
        assert tail.poll() is None


def test_a_mount_that_changes_nothing_follows_too(running: Apart) -> None:
    here, _ = running.make_place()
    with (
        mounted_again(running.stack, running.workplace, "mnt4", hidden_worker=1, options=["--read-only"]) as place,
        (here / "log").open("ab", buffering=0) as log,
        ExitStack() as ending,
    ):
        there, written = place / here.parent.name / here.name / "log", b""
        fd = -1
        for line in (b"one\n", b"two\n", b"three\n"):
            log.write(line)
            written += line
            if fd < 0:
                wait_until(lambda: there.read_bytes() == line, "the first line", SEEN_S)  # noqa: B023
                fd = os.open(there, os.O_RDONLY)
                ending.callback(os.close, fd)
            wait_until(lambda: os.fstat(fd).st_size == len(written), "its size", SEEN_S)  # noqa: B023
            assert os.pread(fd, 100, 0) == written


def test_who_has_a_file_open_that_is_changed_otherwise_stays_at_what_was_opened(apart: tuple[Path, Path]) -> None:
    """It reads nothing behind what there was: no zeros where the file has grown since, and nothing of another version."""
    here, there = apart
    with (here / "table").open("wb", buffering=0) as table:
        table.write(b"one\n")
        wait_until(lambda: (there / "table").read_bytes() == b"one\n", "the first", SEEN_S)
        fd = os.open(there / "table", os.O_RDONLY)
        try:
            os.pwrite(table.fileno(), b"ONE\nTWO\n", 0)
            wait_until(lambda: (there / "table").read_bytes() == b"ONE\nTWO\n", "the second", SEEN_S)
            table.write(b"THREE\n")
            wait_until(lambda: (there / "table").stat().st_size > 8, "the third", SEEN_S)
            assert (os.read(fd, 100), os.pread(fd, 100, 0)) == (b"one\n", b"one\n")
            assert os.fstat(fd).st_size == 4
        finally:
            os.close(fd)


def test_who_follows_what_passes_through_sees_that_another_log_takes_its_place(apart: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a log that was not known to grow, and is wholly on the machine, no more is seen; its size stays as well, so that
    `tail -F` looks at the name again."""
    here, there = apart
    shown = tmp_path / "shown"
    (here / "log").write_bytes(b"an old line\n")

    def read_by_the_kernel() -> bool:
        assert (there / "log").read_bytes() == b"an old line\n"
        return os.getxattr(there / "log", "user.alluxio_like.passthrough") == b"passthrough"

    wait_until(read_by_the_kernel, "a copy on this machine", SEEN_S)
    with tail_f(there / "log", shown):
        wait_until(lambda: shown.exists() and shown.read_bytes() == b"an old line\n", "tail", SEEN_S)
        with (here / "log").open("ab") as log:
            log.write(b"one more\n")
        wait_until(lambda: (there / "log").stat().st_size == 21, "what was appended", SEEN_S)
        time.sleep(NOT_SEEN_S)
        (here / "log").rename(here / "log.1")
        (here / "log").write_bytes(b"a line of the next log\n")
        wait_until(lambda: shown.read_bytes().endswith(b"a line of the next log\n"), "the next log", SEEN_S)
