"""Locks: flock, fcntl's of processes and of open files, their ranges, what ends them, and who waits."""

import fcntl
import json
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.posix.system import attempt, opened, write
from tests.posix.table import table

pytestmark = pytest.mark.mount

_OTHER = """
import errno, fcntl, json, os, struct, sys
fds = {}
for line in sys.stdin:
    do, *given = json.loads(line)
    try:
        result = "ok"
        if do == "open":
            fds[given[0]] = os.open(given[1], os.O_RDWR)
        elif do == "close":
            os.close(fds.pop(given[0]))
        elif do == "flock":
            fcntl.flock(fds[given[0]], given[1])
        elif do == "lockf":
            fcntl.fcntl(fds[given[0]], given[1], struct.pack("hhqqi4x", given[2], 0, given[3], given[4], 0))
        elif do == "get":
            asked = struct.pack("hhqqi4x", given[1], 0, given[2], given[3], 0)
            kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fds[given[0]], fcntl.F_GETLK, asked))
            result = [kind, start, length, pid]
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(json.dumps(result), flush=True)
"""
"""Another process that opens and locks as it is told."""

RD, WR, UN = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
SET, WAIT = fcntl.F_SETLK, fcntl.F_SETLKW


class Other:
    """The other process; one line asks, one answers."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-S", "-c", _OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def begin(self, *command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command, default=str).encode() + b"\n")
        self._process.stdin.flush()

    def has_answered(self, within_s: float) -> bool:
        return bool(select.select([self._process.stdout], [], [], within_s)[0])

    def end(self, limit_s: float = 60) -> Any:
        assert self.has_answered(limit_s), "the other process still waits"
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def __call__(self, *command: Any) -> Any:
        self.begin(*command)
        return self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(60)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def other() -> Iterator[Other]:
    made = Other()
    yield made
    made.kill()


@pytest.fixture
def third() -> Iterator[Other]:
    made = Other()
    yield made
    made.kill()


def lock(fd: int, kind: int, start: int = 0, length: int = 0, how: int = SET) -> None:
    """A lock of this process, or with F_OFD_SETLK of the open file."""
    fcntl.fcntl(fd, how, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))


KINDS = {"shared": RD, "exclusive": WR}


@table("ours theirs expected", [
    ("shared", "shared", "ok"), ("shared", "exclusive", "EAGAIN"), ("exclusive", "shared", "EAGAIN"),
    ("exclusive", "exclusive", "EAGAIN"),
])  # fmt: skip
@pytest.mark.parametrize("way", ["flock", "lockf"])
def test_which_locks_are_for_one_alone(place: Path, other: Other, ours: str, theirs: str, expected: str, way: str) -> None:
    path = write(place / "file", b"content")
    other("open", "f", path)
    with opened(path, os.O_RDWR) as fd:
        flocks = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX}
        if way == "flock":
            fcntl.flock(fd, flocks[ours] | fcntl.LOCK_NB)
            again = ("flock", "f", flocks[theirs] | fcntl.LOCK_NB)
        else:
            lock(fd, KINDS[ours])
            again = ("lockf", "f", SET, KINDS[theirs], 0, 0)
        assert other(*again) == expected
        if expected != "ok":
            if way == "flock":
                fcntl.flock(fd, fcntl.LOCK_UN)
            else:
                lock(fd, UN)
            assert other(*again) == "ok"


@table("start length from_start from_length clash", [
    (0, 0, 0, 0, True), (0, 10, 10, 10, False), (0, 10, 9, 1, True), (10, 10, 0, 10, False), (10, 10, 0, 11, True),
    (5, 0, 0, 5, False), (5, 0, 1 << 40, 1, True), (1 << 62, 1, (1 << 62) + 1, 0, False), (0, 1, 0, 1, True),
    (100, 50, 120, 5, True), (120, 5, 100, 50, True),
])  # fmt: skip
def test_ranges_clash_where_they_overlap(
    place: Path, other: Other, start: int, length: int, from_start: int, from_length: int, clash: bool
) -> None:
    mine, theirs = (start, length), (from_start, from_length)
    path = write(place / "file")
    other("open", "f", path)
    with opened(path, os.O_RDWR) as fd:
        lock(fd, WR, *mine)
        assert other("lockf", "f", SET, WR, *theirs) == ("EAGAIN" if clash else "ok")
        found = other("get", "f", WR, *theirs)
        assert found == ([WR, *mine, os.getpid()] if clash else [UN, *theirs, 0])


def test_unlocking_the_middle_leaves_the_ends(place: Path, other: Other) -> None:
    path = write(place / "file")
    other("open", "f", path)
    with opened(path, os.O_RDWR) as fd:
        lock(fd, WR, 0, 100)
        lock(fd, UN, 40, 20)
        lock(fd, RD, 80, 20)
        for start, kind, expected in (
            (0, RD, "EAGAIN"), (39, RD, "EAGAIN"), (40, WR, "ok"), (59, WR, "ok"), (60, RD, "EAGAIN"), (80, RD, "ok"),
            (80, WR, "EAGAIN"), (100, WR, "ok"),
        ):  # fmt: skip
            assert other("lockf", "f", SET, kind, start, 1) == expected, (start, kind)


@table("way", [("flock",), ("lockf",), ("ofd",)])
def test_closing_unlocks(place: Path, other: Other, way: str) -> None:
    path = write(place / "file")
    other("open", "f", path)
    fd = os.open(path, os.O_RDWR)
    again = ("flock", "f", fcntl.LOCK_EX | fcntl.LOCK_NB) if way == "flock" else ("lockf", "f", SET, WR, 0, 0)
    if way == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX)
    else:
        lock(fd, WR, how=SET if way == "lockf" else fcntl.F_OFD_SETLK)
    assert other(*again) == "EAGAIN"
    os.close(fd)
    assert other(*again) == "ok"


def test_closing_any_descriptor_ends_a_processs_locks(place: Path, other: Other) -> None:
    path = write(place / "file")
    other("open", "f", path)
    with opened(path, os.O_RDWR) as fd:
        lock(fd, WR)
        with opened(path):
            pass
        assert other("lockf", "f", SET, WR, 0, 0) == "ok"  # so POSIX has it


def test_a_flock_and_an_open_files_lock_live_with_every_copy(place: Path, other: Other) -> None:
    path = write(place / "file")
    other("open", "f", path)
    for way in ("flock", "ofd"):
        fd = os.open(path, os.O_RDWR)
        if way == "flock":
            fcntl.flock(fd, fcntl.LOCK_EX)
        else:
            lock(fd, WR, how=fcntl.F_OFD_SETLK)
        copy = os.dup(fd)
        os.close(fd)
        with opened(path):
            pass
        again = ("flock", "f", fcntl.LOCK_EX | fcntl.LOCK_NB) if way == "flock" else ("lockf", "f", SET, WR, 0, 0)
        assert other(*again) == "EAGAIN"
        os.close(copy)
        assert other(*again) == "ok"
        other("flock", "f", fcntl.LOCK_UN)


def test_two_opens_of_one_process(place: Path) -> None:
    path = write(place / "file")
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        assert attempt(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"
        fcntl.flock(one, fcntl.LOCK_UN)
        lock(one, WR)
        lock(two, WR)  # a process's own locks are no obstacle
        lock(one, UN)
        lock(one, WR, how=fcntl.F_OFD_SETLK)
        assert attempt(lock, two, WR, how=fcntl.F_OFD_SETLK) == "EAGAIN"
        assert attempt(lock, two, RD) == "EAGAIN"


@table("way", [("flock",), ("lockf",)])
def test_the_death_of_a_process_ends_its_locks(place: Path, other: Other, third: Other, way: str) -> None:
    path = write(place / "file")
    for process in (other, third):
        process("open", "f", path)
    take = ("flock", "f", fcntl.LOCK_EX) if way == "flock" else ("lockf", "f", WAIT, WR, 0, 0)
    assert other(*take) == "ok"
    third.begin(*take)
    assert not third.has_answered(0.1)
    other.kill()
    assert third.end() == "ok"


@table("way", [("flock",), ("lockf",)])
def test_who_waits_gets_it(place: Path, other: Other, third: Other, way: str) -> None:
    path = write(place / "file")
    for process in (other, third):
        process("open", "f", path)
    take = ("flock", "f", fcntl.LOCK_EX) if way == "flock" else ("lockf", "f", WAIT, WR, 0, 0)
    give_up = ("flock", "f", fcntl.LOCK_UN) if way == "flock" else ("lockf", "f", SET, UN, 0, 0)
    assert other(*take) == "ok"
    third.begin(*take)
    assert not third.has_answered(0.1)
    assert other(*give_up) == "ok"
    assert third.end() == "ok"
    other.begin(*take)
    assert not other.has_answered(0.1)
    assert third("close", "f") == "ok"
    assert other.end() == "ok"


def test_two_who_wait_for_each_other(place: Path, other: Other, third: Other) -> None:
    path = write(place / "file")
    for process in (other, third):
        process("open", "f", path)
    assert other("lockf", "f", SET, WR, 0, 1) == "ok"
    assert third("lockf", "f", SET, WR, 1, 1) == "ok"
    other.begin("lockf", "f", WAIT, WR, 1, 1)
    assert not other.has_answered(0.1)
    assert third("lockf", "f", WAIT, WR, 0, 1) == "EDEADLOCK"  # errno.errorcode's name of EDEADLK
    assert third("lockf", "f", SET, UN, 1, 1) == "ok"
    assert other.end() == "ok"


@table(
    "flags kind expected",
    [("R", "shared", "ok"), ("R", "exclusive", "EBADF"), ("W", "shared", "EBADF"), ("W", "exclusive", "ok")],
)
def test_a_lock_needs_a_descriptor_that_fits(place: Path, flags: str, kind: str, expected: str) -> None:
    with opened(write(place / "file"), {"R": os.O_RDONLY, "W": os.O_WRONLY}[flags]) as fd:
        assert attempt(lock, fd, KINDS[kind]) == expected


def test_a_flock_changes_its_kind(place: Path, other: Other) -> None:
    path = write(place / "file")
    other("open", "f", path)
    with opened(path) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert other("flock", "f", fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert other("flock", "f", fcntl.LOCK_SH | fcntl.LOCK_NB) == "ok"
        assert attempt(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN"


def test_locks_of_a_file_without_a_name_and_of_a_directory(place: Path, other: Other) -> None:
    path = write(place / "file")
    other("open", "f", path)
    with opened(path, os.O_RDWR) as fd, opened(place) as directory:
        path.unlink()
        lock(fd, WR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert other("lockf", "f", SET, RD, 0, 0) == "EAGAIN"
        assert other("flock", "f", fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"
        fcntl.flock(directory, fcntl.LOCK_EX)
        with opened(place) as again:
            assert attempt(fcntl.flock, again, fcntl.LOCK_SH | fcntl.LOCK_NB) == "EAGAIN"


def test_of_several_locks_in_the_way_the_first_is_told(place: Path, other: Other) -> None:
    path = write(place / "file")
    other("open", "f", path)
    with opened(path, os.O_RDWR) as fd:
        lock(fd, WR, 10, 5)
        lock(fd, RD, 1, 5)
        assert other("get", "f", WR, 0, 0) == [RD, 1, 5, os.getpid()]
        assert other("get", "f", RD, 0, 0) == [WR, 10, 5, os.getpid()]
