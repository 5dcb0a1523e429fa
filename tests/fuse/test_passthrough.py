"""Files that the kernel reads by itself: which opens are, beside which others, and what happens to them (a tree in memory)."""

import ctypes
import errno
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.conftest import wait_until

pytestmark = pytest.mark.mount

Make = Callable[..., Any]
SIZE = (3 << 20) + 77
BIG = {"/big": SIZE}
READ_FIRST = {"fill_at_open_bytes": 0, "fill_in_background": False}
"""Nothing is brought but by the test's own word."""


@pytest.fixture
def session() -> str:
    """Of the sessions only the one that passes through."""
    return "kernel"


@pytest.fixture(autouse=True)
def _needs_passthrough() -> None:
    major, minor = (int(number) for number in os.uname().release.split(".")[:2])
    if (major, minor) < (6, 9):
        pytest.skip("passthrough came with Linux 6.9")


def make_content(size: int = SIZE) -> bytes:
    words = b"".join((size + number).to_bytes(8, "big") for number in range(size // 8 + 1))
    return words[:size]


def get_serving(path: Path) -> str:
    return os.getxattr(path, "user.alluxio_like.passthrough").decode()


def get_metrics(made: Any) -> dict[str, float]:
    address = json.loads((made.path.parent / "ready").read_text())["http_address"]
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=60).read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("alluxio_like_"): float(value) for name, _, value in lines}


def count_open(made: Any, way: str) -> float:
    return get_metrics(made)[f'fuse_open_files{{way="{way}"}}']


def wait_idle(made: Any) -> None:
    """Wait until nothing is open any more: RELEASE comes a moment after close."""
    wait_until(lambda: get_metrics(made)["fuse_open_nodes"] == 0, "every node id is closed")
    assert all(value == 0 for name, value in get_metrics(made).items() if name.startswith("fuse_open_files"))
    assert made.do("counts")["open"] == 0


def open_again(descriptor: int) -> int:
    """Open what is open, without its name."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)


def test_small_file_is_brought_at_its_open_and_read_by_the_kernel(mount: Make) -> None:
    made = mount(big_files=BIG)
    assert os.getxattr(made.path, "user.alluxio_like.session") == b"kernel with passthrough"
    assert get_serving(made.path / "big") == "cached: not all of the file is on this machine"
    for _ in range(3):
        assert (made.path / "big").read_bytes() == make_content()
    with open(made.path / "big", "rb") as file:
        assert os.pread(file.fileno(), 5000, SIZE - 3) == make_content()[-3:]
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[2 << 20 : (2 << 20) + 100] == make_content()[2 << 20 : (2 << 20) + 100]
        assert count_open(made, "passthrough") == 1
    counts = made.do("counts")
    assert (counts["fills"], counts["reads"], counts["reads_now"]) == (1, 0, 0)
    assert get_serving(made.path / "big") == "passthrough"
    assert get_serving(made.path / "empty") == "cached: the file is empty"
    assert (made.path / "empty").read_bytes() == b""
    wait_idle(made)


def test_small_file_that_may_not_be_kept_is_read_through(mount: Make) -> None:
    made = mount(big_files=BIG)
    made.do("refuse_fills")
    for _ in range(3):
        assert (made.path / "big").read_bytes() == make_content()
    assert made.do("counts")["fills"] == 1, "a file that was not kept is left alone for a while"
    assert get_metrics(made)['fuse_fills_total{occasion="at open",outcome="not kept"}'] == 1
    wait_idle(made)


def test_new_opens_pass_through_while_old_handles_and_mappings_go_on(mount: Make) -> None:
    made = mount(big_files=BIG, fuse=READ_FIRST)
    path, content = made.path / "big", make_content()
    with open(path, "rb", buffering=0) as old, mmap.mmap(old.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:100] == content[:100]
        inode = os.fstat(old.fileno()).st_ino
        made.do("complete", path="/big")
        reads = made.do("counts")["reads_now"]
        with open(path, "rb", buffering=0) as new:
            assert new.read() == content
            assert made.do("counts")["reads_now"] == reads, "the kernel has read it by itself"
            assert os.fstat(new.fileno()).st_ino == os.stat(path).st_ino == inode
            assert (count_open(made, "passthrough"), count_open(made, "cached")) == (1, 1)
            # Both are opened again, by name and by what is open.
            again = [open_again(old.fileno()), open_again(new.fileno()), os.open(path, os.O_RDONLY)]
            for descriptor in again:
                assert os.pread(descriptor, 1000, 1 << 20) == content[1 << 20 :][:1000]
                os.close(descriptor)
        assert mapped[2 << 20 :] == content[2 << 20 :]
        assert os.pread(old.fileno(), 50, 3 << 20) == content[3 << 20 :][:50]
    assert path.read_bytes() == content
    wait_idle(made)


def test_what_is_open_is_read_on_when_its_file_is_evicted(mount: Make) -> None:
    made = mount(big_files=BIG)
    path, content = made.path / "big", make_content()
    with open(path, "rb", buffering=0) as kept, mmap.mmap(kept.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        made.do("evict", path="/big")
        made.do("refuse_fills")
        with open(path, "rb", buffering=0) as new:
            assert new.read() == content
            assert (count_open(made, "passthrough"), count_open(made, "cached")) == (1, 1)
            # Nothing leads from an open descriptor to another node id: this one is read through the daemon beside the kernel's
            # own.
            again = open_again(kept.fileno())
            assert count_open(made, "rerouted") == 1
            assert os.pread(again, 1000, 0) == content[:1000]
            os.close(again)
        assert mapped[:] == content
        assert kept.read() == content
    wait_idle(made)


def test_replaced_file_under_a_passthrough_handle_and_a_mapping(mount: Make) -> None:
    made = mount(entry_timeout_s=0.0, valid_s=0.0)
    made.do("add_file", path="/f", text="old content")
    with open(made.path / "f", "rb", buffering=0) as old, mmap.mmap(old.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        made.do("add_file", path="/f", text="new")
        with open(made.path / "f", "rb", buffering=0) as new:
            assert new.read() == b"new"
            assert os.fstat(new.fileno()).st_ino != os.fstat(old.fileno()).st_ino
        assert old.read() == b"old content"
        assert mapped[:] == b"old content"
        wait_until(lambda: count_open(made, "passthrough") == 1, "the new one's end")
    wait_idle(made)


def test_advice_to_read_ahead_is_answered(mount: Make) -> None:
    made = mount(big_files=BIG)
    with open(made.path / "big", "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, SIZE, os.POSIX_FADV_WILLNEED)
        wait_until(lambda: made.do("counts")["reads_now"] > 0, "the kernel asks for it")
        assert file.read() == make_content()
    wait_idle(made)


def test_mixed_opens_never_fail(mount: Make) -> None:
    """Opens by name, by descriptor and mappings, while the file becomes whole and is evicted at random."""
    names = [f"/big{number}" for number in range(3)]
    made = mount(big_files=dict.fromkeys(names, SIZE), fuse=READ_FIRST)
    content = make_content()
    ended = threading.Event()
    wrong: list[object] = []

    def read(seed: int) -> None:
        generator = random.Random(seed)
        held: list[int] = []
        try:
            while not ended.is_set():
                if held and generator.random() < 0.4:
                    descriptor = open_again(generator.choice(held))
                else:
                    descriptor = os.open(f"{made.path}{generator.choice(names)}", os.O_RDONLY)
                held.append(descriptor)
                offset = generator.randrange(SIZE)
                if os.pread(descriptor, 100, offset) != content[offset : offset + 100]:
                    wrong.append(("read", offset))
                if generator.random() < 0.3:
                    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
                        if mapped[offset : offset + 100] != content[offset : offset + 100]:
                            wrong.append(("mapping", offset))
                while len(held) > generator.randrange(8):
                    os.close(held.pop(generator.randrange(len(held))))
        except OSError as error:
            wrong.append(error)
        for descriptor in held:
            os.close(descriptor)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    generator = random.Random(7)
    least = time.monotonic() + 5

    def is_enough() -> bool:
        made.do(generator.choice(["complete", "evict"]), path=generator.choice(names))
        if wrong or time.monotonic() < least:
            return bool(wrong)
        metrics = get_metrics(made)
        ways = [metrics[f'fuse_opens_total{{way="{way}"}}'] for way in ("passthrough", "cached", "rerouted")]
        return min(*ways, metrics["fuse_moves_total"]) > 0

    try:
        wait_until(is_enough, "opens of each way, and moves")
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
    assert wrong == []
    wait_idle(made)


def test_large_file_is_brought_in_the_background(mount: Make) -> None:
    made = mount(big_files={"/big": 40 << 20, "/other": 40 << 20})
    path = made.path / "big"
    with open(path, "rb", buffering=0) as first:
        assert first.read(1000) == make_content(40 << 20)[:1000]
        assert made.do("counts")["fills"] == 0, "it is larger than what is brought at an open"
        with open(path, "rb", buffering=0):
            wait_until(lambda: get_serving(path) == "passthrough", "the second open has it brought")
        with open(path, "rb", buffering=0) as third:
            assert third.read(1000) == make_content(40 << 20)[:1000]
            assert count_open(made, "passthrough") == 1
    with open(made.path / "other", "rb", buffering=0) as other:
        for offset in range(0, 40 << 20, 5 << 20):
            os.pread(other.fileno(), 10, offset)
        assert get_serving(made.path / "other").startswith("cached"), "what is read here and there is not brought"
        while other.tell() < 11 << 20:
            other.read(1 << 20)
        wait_until(lambda: get_serving(made.path / "other") == "passthrough", "a quarter of it was read")
    wait_idle(made)


def test_nothing_is_brought_where_that_is_switched_off(mount: Make) -> None:
    made = mount(big_files={"/big": 9 << 20}, fuse={"fill_in_background": False})
    for _ in range(3):
        (made.path / "big").read_bytes()
    assert made.do("counts")["fills"] == 0
    assert get_serving(made.path / "big").startswith("cached")


def test_an_open_can_wait_for_a_large_file(mount: Make) -> None:
    made = mount(big_files={"/big": 20 << 20}, fuse={"open_wait_bytes": 32 << 20, "fill_in_background": False})
    with open(made.path / "big", "rb", buffering=0) as file:
        assert count_open(made, "passthrough") == 1
        assert file.read(100) == make_content(20 << 20)[:100]
    wait_idle(made)


def test_an_open_waits_for_a_bounded_time_only(mount: Make) -> None:
    made = mount(big_files=BIG, io_timeout_s=3.0)
    made.do("stall", what="stall_fills")
    started = time.monotonic()
    with open(made.path / "big", "rb", buffering=0) as file:
        assert 1.5 < time.monotonic() - started < 20
        assert file.read() == make_content()
        assert count_open(made, "cached") == 1
    made.do("lift")
    wait_idle(made)


def test_other_requests_go_on_while_opens_wait(mount: Make) -> None:
    made = mount(big_files={f"/big{number}": SIZE for number in range(20)}, io_timeout_s=200.0)
    (made.path / "hello.txt").read_bytes()
    made.do("stall", what="stall_fills")
    threads = [threading.Thread(target=(made.path / f"big{number}").read_bytes) for number in range(20)]
    for thread in threads:
        thread.start()
    wait_until(lambda: made.do("counts")["fills"] == 21, "all of them wait")
    started = time.monotonic()
    assert (made.path / "hello.txt").read_bytes() == b"hello, world\n"
    assert sorted(os.listdir(made.path / "dir")) == ["sub"]
    assert time.monotonic() - started < 60, "less than an open waits"
    made.do("lift")
    for thread in threads:
        thread.join(60)
    wait_idle(made)


def test_killed_while_an_open_waits(mount: Make) -> None:
    made = mount(big_files={f"/big{number}": SIZE for number in range(6)}, io_timeout_s=200.0)
    before = made.do("counts")
    descriptors = len(os.listdir(f"/proc/{made.process.pid}/fd"))
    made.do("stall", what="stall_fills")
    code = "import sys; open(sys.argv[1], 'rb').read()"
    readers = [subprocess.Popen([sys.executable, "-S", "-c", code, made.path / f"big{number}"]) for number in range(6)]
    wait_until(lambda: made.do("counts")["fills"] == 6, "all readers wait")
    started = time.monotonic()
    for reader in readers:
        reader.kill()
        assert reader.wait(60) == -signal.SIGKILL
    assert time.monotonic() - started < 60, "less than an open waits"
    made.do("lift")
    wait_idle(made)
    wait_until(lambda: made.do("counts")["tasks"] <= before["tasks"] + 1, "tasks have ended")
    assert len(os.listdir(f"/proc/{made.process.pid}/fd")) <= descriptors + 2
    assert (made.path / "big0").read_bytes() == make_content()


def test_signal_that_is_handled_does_not_end_a_read(mount: Make) -> None:
    made = mount(big_files=BIG, never_now=True, io_timeout_s=200.0)
    made.do("stall", what="stall_reads")
    code = """if True:
        import ctypes, os, signal, sys, time
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        file = os.open(sys.argv[1], os.O_RDONLY)
        libc = ctypes.CDLL(None, use_errno=True)  # Python itself would try again
        buffer = ctypes.create_string_buffer(5000)
        count = libc.pread(file, buffer, 5000, 1 << 20)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.exit(0 if count == 5000 else ctypes.get_errno())
    """
    reader = subprocess.Popen([sys.executable, "-S", "-c", code, made.path / "big"])
    wait_until(lambda: made.do("counts")["reads"] > 0, "the reader waits")
    time.sleep(0.5)  # some ten signals
    made.do("lift")
    assert reader.wait(60) == 0

    made.do("stall", what="stall_reads")
    reads = made.do("counts")["reads"]
    other = subprocess.Popen([sys.executable, "-S", "-c", code.replace("1 << 20", "2 << 20"), made.path / "big"])
    wait_until(lambda: made.do("counts")["reads"] > reads, "the other waits")
    time.sleep(0.3)
    other.kill()  # after a signal that the kernel has told of: of this one it says nothing
    assert other.wait(60) == -signal.SIGKILL
    made.do("lift")
    wait_idle(made)


def test_a_flipped_bit_is_found_at_an_open_that_verifies(mount: Make, tmp_path: Path) -> None:
    made = mount(big_files=BIG, fuse={"verify_open": True})
    path = made.path / "big"
    assert path.read_bytes() == make_content()
    assert path.read_bytes() == make_content()
    (whole,) = [file for file in (tmp_path / "m-whole").iterdir() if file.stat().st_size == SIZE]
    with open(whole, "r+b") as file:
        file.seek(2 << 20)
        byte = file.read(1)
        file.seek(2 << 20)
        file.write(bytes([byte[0] ^ 1]))
    assert path.read_bytes() == make_content(), "it is read through the daemon then"
    assert made.do("counts")["verify_whole"] == 2
    wait_idle(made)


@contextmanager
def mounted(kind: str, place: Path) -> Iterator[Path]:
    """A directory on a file system of its own."""
    place.mkdir()
    image, options = place.with_suffix(".img"), ["-t", kind]
    if kind == "overlay":
        for name in ("lower", "upper", "work"):
            (place.parent / name).mkdir()
        layers = ",".join(f"{name}dir={place.parent / name}" for name in ("lower", "upper", "work"))
        options += ["-o", layers, "overlay"]
    elif kind == "tmpfs":
        options += ["tmpfs"]
    else:
        with open(image, "wb") as file:
            file.truncate(400 << 20)
        made = subprocess.run([f"mkfs.{kind}", "-q", image], capture_output=True, check=False)
        if made.returncode:
            pytest.skip(f"mkfs.{kind}: {made.stderr.decode()}")
        options += ["-o", "loop", str(image)]
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"{kind} cannot be mounted here: {done.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "tmpfs"])
def test_files_of_local_file_systems_pass_through(mount: Make, tmp_path: Path, kind: str) -> None:
    if kind in ("ext4", "xfs") and not any(os.access(f"{place}/mkfs.{kind}", os.X_OK) for place in ("/sbin", "/usr/sbin")):
        pytest.skip(f"mkfs.{kind} is not installed")
    with mounted(kind, tmp_path / "fs") as place:
        made = mount(big_files=BIG, whole_dir=str(place))
        assert (made.path / "big").read_bytes() == make_content()
        assert get_serving(made.path / "big") == "passthrough"
        assert made.do("counts")["reads_now"] == 0
        wait_idle(made)
        made.stop()


def test_files_of_a_stacked_file_system_are_read_through_the_daemon(mount: Make, tmp_path: Path) -> None:
    with mounted("overlay", tmp_path / "fs") as place:
        made = mount(big_files=BIG, whole_dir=str(place))
        for _ in range(3):
            assert (made.path / "big").read_bytes() == make_content()
        assert get_serving(made.path / "big").startswith("cached: the kernel cannot read the file by itself (Too many")
        assert (made.path / "hello.txt").read_bytes() == b"hello, world\n"
        assert made.log.read_text().count("are read through the daemon") == 1
        wait_idle(made)
        made.stop()


def test_passthrough_can_be_switched_off_and_asked_for(mount: Make) -> None:
    off = mount(big_files=BIG, at="off", fuse={"passthrough": "off"})
    assert os.getxattr(off.path, "user.alluxio_like.session") == b"kernel"
    assert (off.path / "big").read_bytes() == make_content()
    assert get_serving(off.path / "big") == "cached: passthrough is switched off"
    on = mount(big_files=BIG, at="on", fuse={"passthrough": "on"})
    assert (on.path / "big").read_bytes() == make_content()
    wrong = mount(at="wrong", ready=False, fuse={"passthrough": "on", "session": "pyfuse3"})
    assert wrong.process.wait(60) == 1
    assert "needs the kernel session" in wrong.log.read_text()


def test_the_mount_is_gone_while_files_pass_through(mount: Make) -> None:
    made = mount(big_files=BIG)
    with open(made.path / "big", "rb", buffering=0) as file:
        subprocess.run(["umount", "-l", made.path], check=True)
        assert os.pread(file.fileno(), 100, 1 << 20) == make_content()[1 << 20 :][:100]
        assert made.process.poll() is None
    assert made.process.wait(60) == 0


def test_writing_through_a_passthrough_file_is_refused(mount: Make) -> None:
    made = mount(big_files=BIG)
    assert ctypes.CDLL(None).mount(None, os.fsencode(made.path), None, 32, None) == 0  # MS_REMOUNT: writable
    with open(made.path / "big", "rb"):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_TRUNC):
            with pytest.raises(OSError, match="Read-only") as caught:
                os.open(made.path / "big", flags)
            assert caught.value.errno == errno.EROFS
    assert (made.path / "big").read_bytes() == make_content()
