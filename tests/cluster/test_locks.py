"""Locks of files by programs on two mounts of one cluster: flock and fcntl, waiting, deaths of programs, daemons, the master."""

import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.test_leases import mount_again
from tests.servers.net import wait_until
from tests.servers.stack import Stack, start_stack

pytestmark = pytest.mark.mount

_FLOCK = struct.Struct("hhqqi4x")

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "r+b")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def mounts(workplace: Path) -> Iterator[tuple[Stack, Path, Path]]:
    """A directory that can be written, by two mounts."""
    (workplace / "store").mkdir()
    uri = f"file://{workplace}/store"
    with start_stack(workplace, {}, {}, "--workers", "1", "--io-timeout", "60s") as stack:
        stack.run_command("alluxio-like", "mount", "/d", uri, "-o", "write=through")
        with mount_again(stack, workplace, "--token-file", str(workplace / "home/token")) as second:
            (stack.mountpoint / "d/file").write_bytes(bytes(100))
            yield stack, stack.mountpoint / "d/file", second / "d/file"


def is_locked(path: Path, how: str = "lockf") -> bool:
    """Whether somebody else has a lock of the file; what was got is given back."""
    with open(path, "r+b") as file:
        try:
            getattr(fcntl, how)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            assert error.errno in (errno.EAGAIN, errno.EACCES), error
            return True
        return False


@contextmanager
def hold(path: Path, how: str = "lockf") -> Iterator["subprocess.Popen[str]"]:
    """A program that has locked a file, until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("how", ["lockf", "flock"])
def test_a_lock_is_seen_by_the_other_mount_and_ends_with_its_program(mounts: tuple[Stack, Path, Path], how: str) -> None:
    _, here, there = mounts
    assert not is_locked(there, how)
    with hold(here, how) as program:
        assert is_locked(there, how)
        assert is_locked(here, how)
        assert not is_locked(there, "lockf" if how == "flock" else "flock"), "the two kinds do not see each other"
        program.kill()
        program.wait()
    wait_until("the lock is gone", lambda: not is_locked(there, how), timeout_s=60)


def test_ranges_and_what_stands_in_the_way(mounts: tuple[Stack, Path, Path]) -> None:
    _, here, there = mounts
    with open(here, "r+b") as one, open(there, "r+b") as two:
        fcntl.lockf(one, fcntl.LOCK_EX, 10, 20)
        fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 20, 0)
        with pytest.raises(BlockingIOError):
            fcntl.lockf(two, fcntl.LOCK_SH | fcntl.LOCK_NB, 0, 25)
        found = fcntl.fcntl(two, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        kind, _, start, length, pid = _FLOCK.unpack(found)
        assert (kind, start, length) == (fcntl.F_WRLCK, 20, 10)
        assert pid == 0, "a process of another mount has no number here"
        fcntl.lockf(one, fcntl.LOCK_UN, 10, 20)
        fcntl.lockf(two, fcntl.LOCK_SH | fcntl.LOCK_NB, 0, 25)


def test_a_range_locked_by_a_reader_is_free_when_that_descriptor_is_closed(mounts: tuple[Stack, Path, Path]) -> None:
    _, here, there = mounts
    with open(here, "rb") as reader:
        fcntl.lockf(reader, fcntl.LOCK_SH)
        with open(here, "rb"):
            pass
        assert is_locked(there)
    wait_until("the lock is gone", lambda: not is_locked(there), timeout_s=60)


def test_who_waits_gets_it_and_can_be_interrupted(mounts: tuple[Stack, Path, Path]) -> None:
    _, here, there = mounts
    got: list[float] = []

    def wait() -> None:
        with open(there, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            got.append(time.monotonic())

    with open(here, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = threading.Thread(target=wait)
        waiting.start()
        script = "import fcntl,signal,sys\nsignal.alarm(1)\nfcntl.flock(open(sys.argv[1],'r+b'), fcntl.LOCK_EX)"
        interrupted = subprocess.run([sys.executable, "-c", script, str(there)], check=False, timeout=60)
        assert interrupted.returncode == -signal.SIGALRM
        assert not got
        freed = time.monotonic()
    waiting.join(60)
    assert got
    assert got[0] >= freed
    assert not is_locked(here, "flock")


def test_ten_programs_on_two_mounts_count_to_a_hundred(mounts: tuple[Stack, Path, Path]) -> None:
    _, here, there = mounts
    script = """
import fcntl, os, sys
for _ in range(10):
    with open(sys.argv[1], "r+b") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        with open(sys.argv[2], "rb") as file:
            count = int(file.read())
        with open(sys.argv[2], "wb") as file:
            file.write(str(count + 1).encode())
"""
    (here.parent / "count").write_text("0")
    programs = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(path.parent / "count")]) for path in [here, there] * 5
    ]
    assert [program.wait(120) for program in programs] == [0] * 10
    assert (there.parent / "count").read_text() == "100"


@pytest.mark.parametrize("victim", ["fuse", "master"])
def test_a_lock_is_kept_through_the_death_of_a_service(mounts: tuple[Stack, Path, Path], victim: str) -> None:
    stack, here, there = mounts
    with hold(here, "lockf"):
        assert is_locked(there)
        os.kill(stack.get_service_pids(victim)[0], signal.SIGKILL)
        # Longer than the lease of a daemon that died lasts.
        stop = time.monotonic() + 25
        while time.monotonic() < stop:
            assert is_locked(there)
            time.sleep(1)
    wait_until("the lock is gone", lambda: not is_locked(there), timeout_s=60)
