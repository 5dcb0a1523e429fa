"""kill -9 of daemon, worker and master in the midst of writes: nothing that was acknowledged is lost, nothing is torn, and
programs on the mount do not notice a daemon that dies."""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import workplace  # noqa: F401  (a fixture)
from tests.cluster.test_leases import read_metrics
from tests.cluster.writing import list_names, mounted_again, start_written, wait_until
from tests.servers.stack import Stack
from tests.servers.whole import assert_whole_disks

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(300),
]

KILLS = 5
TRIES = 8


class Running:
    """A file system over a directory, and its processes of the moment."""

    def __init__(self, stack: Stack, directory: Path) -> None:
        self.place = stack.mountpoint / "data"
        self.store = directory / "store"
        self.stack = stack
        self._state = directory / "home/up.json"

    def get_pid(self, service: str) -> int:
        state = json.loads(self._state.read_text())
        if service == "workers":
            return int(state["workers"][0]["pid"])
        return int(state["fuse"]["daemon_pid"] if service == "daemon" else state[service]["pid"])

    def kill(self, *services: str) -> None:
        """kill -9, all at once; returns when their successors are there."""
        pids = {service: self.get_pid(service) for service in services}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        for service, pid in pids.items():
            wait_until(lambda service=service, pid=pid: self.get_pid(service) not in (0, pid), f"another {service}")

    def count_succeeded(self) -> float:
        """Leases of dead daemons that the master was told to end."""
        return read_metrics(self.stack.ready["master"]["http_address"])["alluxio_like_leases_succeeded_total", ()]

    def read_store(self, name: str) -> bytes:
        return (self.store / name).read_bytes()


@pytest.fixture
def environment() -> dict[str, str]:
    """Settings of `running`."""
    return {}


@pytest.fixture
def running(workplace: Path, environment: dict[str, str]) -> Iterator[Running]:  # noqa: F811
    (workplace / "store").mkdir()
    with start_written(workplace, f"file://{workplace / 'store'}", environment) as stack:
        yield Running(stack, workplace)
        assert_whole_disks(workplace / "home", online=True)
    assert_whole_disks(workplace / "home")


def test_a_file_that_is_open_is_written_on_through_the_deaths_of_daemons(running: Running) -> None:
    file = running.place / "f"
    with file.open("w+b", buffering=0) as out:
        out.write(b"before ")
        running.kill("daemon")
        out.write(b"after")
        assert (os.fstat(out.fileno()).st_size, file.stat().st_size) == (12, 12)
        assert file.read_bytes() == b"before after"
        running.kill("daemon")
        os.ftruncate(out.fileno(), 9)
        os.fsync(out.fileno())
        assert os.fstat(out.fileno()).st_size == 9
    assert file.read_bytes() == running.read_store("f") == b"before af"
    with file.open("ab", buffering=0) as out:
        out.write(b"ter")
        running.kill("daemon")
    assert file.read_bytes() == b"before after"
    # What is appended to a file that the store has just got goes when that pauses.
    wait_until(lambda: running.read_store("f") == b"before after", "the upload")


def test_a_file_without_a_name_is_written_and_linked_through_the_deaths_of_daemons(running: Running) -> None:
    def make() -> int:
        return os.open(running.place, os.O_TMPFILE | os.O_RDWR, 0o644)

    named, never = make(), make()
    os.write(named, b"before ")
    os.write(never, b"in vain")
    running.kill("daemon")
    os.write(named, b"the death ")
    assert (os.pread(named, 99, 0), os.pread(never, 99, 0)) == (b"before the death ", b"in vain")
    os.link(f"/proc/self/fd/{named}", running.place / "f", src_dir_fd=0)  # (given one it is linkat, which follows)
    assert (running.place / "f").read_bytes() == b"before the death "
    running.kill("daemon")
    os.write(named, b"and after")
    os.close(named)
    os.close(never)
    assert list_names(running.place) == ["f"]
    assert (running.place / "f").read_bytes() == b"before the death and after"
    wait_until(lambda: running.read_store("f") == b"before the death and after", "the upload")
    last = make()
    os.write(last, b"in vain")
    running.kill("daemon", "workers", "master")
    os.close(last)
    assert list_names(running.place) == ["f"]


def test_what_a_killed_daemon_knew_is_changed_without_waiting_for_its_lease(running: Running, workplace: Path) -> None:  # noqa: F811
    here = running.place
    (here / "f0").write_bytes(b"x")
    with mounted_again(running.stack, workplace) as place:
        there = place / "data"
        for number in range(TRIES):
            old, new = f"f{number}", f"f{number + 1}"
            # The kernel may rely on both.
            assert (here / old).exists()
            assert not (here / new).exists()
            before = running.count_succeeded()
            pid = running.get_pid("daemon")
            os.kill(pid, signal.SIGKILL)
            (there / old).rename(there / new)
            assert (here / new).exists()
            assert not (here / old).exists()
            wait_until(lambda pid=pid: running.get_pid("daemon") not in (0, pid), "another daemon")
            if running.count_succeeded() > before:
                return
            # On a machine that is slow to start the next daemon the lease has run out by itself.
    raise AssertionError("no daemon ended the lease of the one before")


class Program:
    """Does what programs do, checks what it finds, and counts what fails."""

    def __init__(self, place: Path, number: int) -> None:
        self.place = place / f"p{number}"
        self.place.mkdir()
        self.random = random.Random(number)
        self.rounds = 0
        self.failed: list[str] = []
        self.closed: dict[str, bytes] = {}
        """What close(2) has acknowledged."""
        self.open: set[str] = set()
        """What was begun, and failed or never ended: it may be there or not."""

    def run(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self.rounds += 1
            try:
                self.round()
            except OSError as error:
                self.failed.append(f"{self.rounds}: {error}")
            except AssertionError as error:
                self.failed.append(f"{self.rounds}: WRONG {error}")
                return

    def round(self) -> None:
        name = f"f{self.rounds % 5}"
        data = self.random.randbytes(self.random.choice([1, 3000, 200_000]))
        self.open.add(name)
        (self.place / "new").write_bytes(data)
        assert (self.place / "new").read_bytes() == data, "what was just written"
        (self.place / "new").rename(self.place / name)
        assert (self.place / name).read_bytes() == data, "what was renamed"
        self.closed[name] = data
        self.open.discard(name)
        (self.place / "d").mkdir()
        (self.place / "d").rmdir()
        with (self.place / "log").open("ab") as out:
            out.write(b"%06d\n" % self.rounds)


def run_programs(running: Running, service: str) -> list[Program]:
    programs = [Program(running.place, number) for number in range(2)]
    over = threading.Event()
    threads = [threading.Thread(target=program.run, args=(over.is_set,)) for program in programs]
    for thread in threads:
        thread.start()
    try:
        for _ in range(KILLS):
            before = [program.rounds for program in programs]
            wait_until(
                lambda before=before: all(program.rounds > one + 1 for program, one in zip(programs, before, strict=True)),
                "some rounds",
            )
            running.kill(service)
    finally:
        over.set()
        for thread in threads:
            thread.join(120)
    return programs


def test_programs_do_not_notice_daemons_that_are_killed(running: Running) -> None:
    for program in run_programs(running, "daemon"):
        assert program.failed == []
        assert (program.place / "log").read_bytes() == b"".join(b"%06d\n" % number for number in range(1, program.rounds + 1))
        assert list_names(program.place) == sorted({*program.closed, "log"})
        for name, data in program.closed.items():
            assert (program.place / name).read_bytes() == data


@pytest.mark.parametrize("service", ["workers", "master"])
def test_what_was_closed_is_there_after_the_death_of(running: Running, service: str) -> None:
    for program in run_programs(running, service):
        assert not [one for one in program.failed if "WRONG" in one]
        for name, data in program.closed.items():
            if name not in program.open:
                wait_until(
                    lambda name=name, data=data, p=program: (p.place / name).read_bytes() == data, f"{name} as it was closed"
                )
        lines = (program.place / "log").read_bytes().splitlines()
        assert lines == sorted(set(lines)), "the log is torn"
