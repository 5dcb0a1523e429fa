"""Timestamps: which call sets which of them, of the file and of its directory; utimensat and what it may set."""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.posix.system import (
    KEEP_SIZE,
    KINDS,
    PUNCH_HOLE,
    RENAME_EXCHANGE,
    UTIME_NOW,
    UTIME_OMIT,
    attempt,
    fallocate,
    look,
    make,
    open_close,
    opened,
    renameat2,
    utimensat,
    write,
)
from tests.posix.table import table

pytestmark = pytest.mark.mount

REALTIME_COARSE = 5
"""The clock that the kernel stamps with (clock_gettime(2)); Python has no name for it."""

OLD_NS = 1_000_000_000 * 10**9


def _with(path: Path, call: Callable[[int], Any], flags: int = os.O_RDWR) -> None:
    with opened(path, flags) as fd:
        call(fd)


CALLS: dict[str, tuple[Callable[[Path], Any], dict[str, str]]] = {
    # what is done in a directory with `from/name` and `to/other`; and of which file it sets which times
    "create": (lambda d: open_close(d / "from/new", os.O_CREAT | os.O_WRONLY), {"from": "mc"}),
    "open O_CREAT what is there": (lambda d: open_close(d / "from/name", os.O_CREAT | os.O_WRONLY), {}),
    "create that fails": (lambda d: attempt(open_close, d / "from/name", os.O_CREAT | os.O_EXCL), {}),
    "mkdir": (lambda d: os.mkdir(d / "from/new"), {"from": "mc"}),
    "mkfifo": (lambda d: os.mkfifo(d / "from/new"), {"from": "mc"}),
    "mknod": (lambda d: os.mknod(d / "from/new", stat.S_IFSOCK | 0o600), {"from": "mc"}),
    "symlink": (lambda d: os.symlink("x", d / "from/new"), {"from": "mc"}),
    "link": (lambda d: os.link(d / "from/name", d / "to/new"), {"to": "mc", "from/name": "c"}),
    "link that fails": (lambda d: attempt(os.link, d / "from/name", d / "to/other"), {}),
    "unlink": (lambda d: os.unlink(d / "from/name"), {"from": "mc"}),
    "unlink one of two names": (lambda d: os.unlink(d / "from/twin"), {"from": "mc", "to/twin": "c"}),
    "unlink that fails": (lambda d: attempt(os.unlink, d / "from/missing"), {}),
    "rmdir": (lambda d: os.rmdir(d / "from/below"), {"from": "mc"}),
    "rmdir that fails": (lambda d: attempt(os.rmdir, d / "from"), {}),
    "rename within": (lambda d: os.rename(d / "from/name", d / "from/new"), {"from": "mc", "from/name>from/new": "c"}),
    "rename elsewhere": (lambda d: os.rename(d / "from/name", d / "to/new"), {"from": "mc", "to": "mc", "from/name>to/new": "c"}),
    "rename over": (lambda d: os.rename(d / "from/name", d / "to/other"), {"from": "mc", "to": "mc", "from/name>to/other": "c"}),
    "rename over one of two names": (
        lambda d: os.rename(d / "from/name", d / "from/twin"),
        {"from": "mc", "from/name>from/twin": "c", "to/twin": "c"},
    ),
    "rename of a directory": (
        lambda d: os.rename(d / "from/below", d / "to/new"),
        {"from": "mc", "to": "mc", "from/below>to/new": "c"},
    ),
    "rename to itself": (lambda d: os.rename(d / "from/name", d / "from/name"), {}),
    "rename that fails": (lambda d: attempt(os.rename, d / "from/below", d / "to/other"), {}),
    "exchange": (
        lambda d: renameat2(d / "from/name", d / "to/other", RENAME_EXCHANGE),
        {"from": "mc", "to": "mc", "from/name>to/other": "c", "to/other>from/name": "c"},
    ),
    "write": (lambda d: _with(d / "from/name", lambda fd: os.write(fd, b"x")), {"from/name": "mc"}),
    "write nothing": (lambda d: _with(d / "from/name", lambda fd: os.write(fd, b"")), {}),
    "append": (lambda d: _with(d / "from/name", lambda fd: os.write(fd, b"x"), os.O_WRONLY | os.O_APPEND), {"from/name": "mc"}),
    "open O_TRUNC": (lambda d: open_close(d / "from/name", os.O_WRONLY | os.O_TRUNC), {"from/name": "mc"}),
    "open O_TRUNC what is empty": (lambda d: open_close(d / "from/empty", os.O_WRONLY | os.O_TRUNC), {"from/empty": "mc"}),
    "truncate": (lambda d: os.truncate(d / "from/name", 3), {"from/name": "mc"}),
    "truncate to more": (lambda d: os.truncate(d / "from/name", 9999), {"from/name": "mc"}),
    "ftruncate": (lambda d: _with(d / "from/name", lambda fd: os.ftruncate(fd, 3)), {"from/name": "mc"}),
    "ftruncate to the same size": (lambda d: _with(d / "from/name", lambda fd: os.ftruncate(fd, 7)), {"from/name": "mc"}),
    "fallocate": (lambda d: _with(d / "from/name", lambda fd: fallocate(fd, 0, 0, 9999)), {"from/name": "mc"}),
    "punch a hole": (
        lambda d: _with(d / "from/name", lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 3)),
        {"from/name": "mc"},
    ),
    "copy a range": (
        lambda d: _with(d / "from/name", lambda fd: _with(d / "to/other", lambda to: os.copy_file_range(fd, to, 5))),
        {"to/other": "mc"},
    ),
    "write and fsync": (lambda d: _with(d / "from/name", lambda fd: (os.write(fd, b"x"), os.fsync(fd))), {"from/name": "mc"}),
    "open and close": (lambda d: open_close(d / "from/name", os.O_RDWR), {}),
    "chmod": (lambda d: os.chmod(d / "from/name", 0o600), {"from/name": "c"}),
    "chmod to the same": (lambda d: os.chmod(d / "from/name", 0o644), {"from/name": "c"}),
    "chown": (lambda d: os.chown(d / "from/name", 5, 6), {"from/name": "c"}),
    "chown to the same": (lambda d: os.chown(d / "from/name", 0, 0), {"from/name": "c"}),
    "chmod of a directory": (lambda d: os.chmod(d / "from", 0o700), {"from": "c"}),
    "chown that changes nothing": (lambda d: os.chown(d / "from/name", -1, -1), {"from/name": "c"}),
    "setxattr": (lambda d: os.setxattr(d / "from/name", "user.x", b"1"), {"from/name": "c"}),
    "removexattr": (lambda d: os.removexattr(d / "from/name", "user.given"), {"from/name": "c"}),
    "removexattr that fails": (lambda d: attempt(os.removexattr, d / "from/name", "user.missing"), {}),
    "utimes": (lambda d: os.utime(d / "from/name", ns=(OLD_NS, OLD_NS)), {"from/name": "c"}),
    "utimes to now": (lambda d: os.utime(d / "from/name"), {"from/name": "amc"}),
    "utimes to nothing": (lambda d: utimensat(d / "from/name", (0, UTIME_OMIT), (0, UTIME_OMIT)), {}),
    "utimes of one": (lambda d: utimensat(d / "from/name", (0, UTIME_OMIT), (0, UTIME_NOW)), {"from/name": "mc"}),
    "stat": (lambda d: os.stat(d / "from/name"), {}),
    "readlink": (lambda d: os.readlink(d / "from/link"), {}),
    "getxattr": (lambda d: os.getxattr(d / "from/name", "user.given"), {}),
    "access": (lambda d: os.access(d / "from/name", os.R_OK), {}),
    "lchown of a link": (lambda d: os.lchown(d / "from/link", 5, 6), {"from/link": "c"}),
}

READING = ("copy a range", "readlink")
"""Whether these set the time of access is for the mount to say (relatime, noatime)."""

FILES = ("from", "to", "from/name", "to/other", "from/empty", "from/twin", "to/twin", "from/below", "from/link")


@pytest.fixture
def aged(place: Path) -> Path:
    """Two directories of files whose every time lies back."""
    (place / "from" / "below").mkdir(parents=True)
    (place / "to").mkdir()
    write(place / "from/name", b"content")
    write(place / "to/other", b"content")
    write(place / "from/empty")
    write(place / "from/twin")
    os.link(place / "from/twin", place / "to/twin")
    (place / "from/link").symlink_to("name")
    os.setxattr(place / "from/name", "user.given", b"value")
    for name in reversed(FILES):
        os.utime(place / name, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    wait_for_another_time(place / "from/link")
    return place


def wait_for_another_time(path: Path) -> None:
    """Wait until what is done now has a later time than what was done to a file."""
    changed = look(path).st_ctime_ns
    while time.clock_gettime_ns(REALTIME_COARSE) <= changed:
        time.sleep(0.001)


def times_of(path: Path) -> dict[str, int]:
    found = look(path)
    return {"a": found.st_atime_ns, "m": found.st_mtime_ns, "c": found.st_ctime_ns}


@table("call", [(call,) for call in CALLS])
def test_which_times_a_call_sets(aged: Path, call: str) -> None:
    do, expected = CALLS[call]
    before = {name: times_of(aged / name) for name in FILES}
    begun = time.time_ns()
    do(aged)
    ended = time.time_ns()
    moved = dict(key.split(">") for key in expected if ">" in key)
    changes = {key.split(">")[0]: value for key, value in expected.items()}
    for name in FILES:
        path = aged / moved.get(name, name)
        if not os.path.lexists(path) or (name not in moved and name in moved.values()):
            continue
        after = times_of(path)
        changed = "".join(which for which in "amc" if after[which] != before[name][which])
        if call in READING:
            changed = changed.replace("a", "")
        assert changed == changes.get(name, ""), name
        for which in changed:
            # The kernel stamps with a clock that is up to a tick behind.
            assert begun - 20_000_000 <= after[which] <= ended, (name, which)


@table("kind", [(kind,) for kind in KINDS])
def test_what_is_made_is_new_in_all_its_times(place: Path, kind: str) -> None:
    begun = time.time_ns()
    path = make(kind, place / "name")
    ended = time.time_ns()
    assert all(begun - 20_000_000 <= value <= ended for value in times_of(path).values()), times_of(path)


@table("kind", [(kind,) for kind in KINDS])
def test_times_are_set_to_the_nanosecond(place: Path, kind: str) -> None:
    path = make(kind, place / "name")
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321), follow_symlinks=False)
    assert (look(path).st_atime_ns, look(path).st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_987_654_321)


@table("seconds", [(0,), (1,), (2**31 - 1,), (2**31,), (2**32,), (-1,), (-(2**31) + 1,)])
def test_far_times(place: Path, seconds: int) -> None:
    path = write(place / "file")
    os.utime(path, ns=(seconds * 10**9 + 5, seconds * 10**9 + 999_999_999))
    assert (look(path).st_atime_ns, look(path).st_mtime_ns) == (seconds * 10**9 + 5, seconds * 10**9 + 999_999_999)


@table("atime mtime", [(a, m) for a in ("set", "now", "omit") for m in ("set", "now", "omit")])
def test_utimensat_sets_each_by_itself(place: Path, atime: str, mtime: str) -> None:
    path = write(place / "file")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    how = {"set": (77, 5), "now": (0, UTIME_NOW), "omit": (0, UTIME_OMIT)}
    begun = time.time_ns()
    utimensat(path, how[atime], how[mtime])
    for chosen, value in ((atime, look(path).st_atime_ns), (mtime, look(path).st_mtime_ns)):
        if chosen == "now":
            assert value >= begun - 20_000_000
        else:
            assert value == {"set": 77 * 10**9 + 5, "omit": OLD_NS}[chosen]


@table("nanoseconds expected", [(999_999_999, "ok"), (10**9, "EINVAL"), (-1, "EINVAL")])
def test_nanoseconds_that_are_none(place: Path, nanoseconds: int, expected: str) -> None:
    assert attempt(utimensat, write(place / "file"), (1, nanoseconds), (1, 0)) == expected


def test_times_of_a_link_are_its_own(place: Path) -> None:
    write(place / "file")
    (place / "link").symlink_to("file")
    os.utime(place / "file", ns=(OLD_NS, OLD_NS))
    utimensat(place / "link", (5, 0), (6, 0), follow=False)
    assert look(place / "file").st_mtime_ns == OLD_NS
    assert look(place / "link").st_mtime_ns == 6 * 10**9
    utimensat(place / "link", (7, 0), (8, 0))
    assert look(place / "file").st_mtime_ns == 8 * 10**9
    assert look(place / "link").st_mtime_ns == 6 * 10**9


def test_writing_to_what_has_no_name_sets_its_times(place: Path) -> None:
    path = write(place / "file")
    with opened(path, os.O_RDWR) as fd:
        os.utime(fd, ns=(OLD_NS, OLD_NS))
        path.unlink()
        os.write(fd, b"x")
        assert os.fstat(fd).st_mtime_ns > OLD_NS
        os.utime(fd, ns=(1, 2))
        assert (os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns) == (1, 2)


def test_a_time_that_was_set_stays_over_the_close_of_a_writer(place: Path) -> None:
    # cp -p, tar, rsync: write, set the times, close.
    with opened(place / "file", os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"content")
        os.utime(fd, ns=(OLD_NS, OLD_NS + 1))
    assert look(place / "file").st_mtime_ns == OLD_NS + 1
    with opened(place / "file", os.O_WRONLY) as fd:
        os.write(fd, b"x")
        os.utime(place / "file", ns=(OLD_NS, OLD_NS + 2))
        assert os.fstat(fd).st_mtime_ns == OLD_NS + 2
    assert look(place / "file").st_mtime_ns == OLD_NS + 2


@table("when_ns", [(OLD_NS,), (3 * OLD_NS,)])
@table("written", [(False,), (True,)])
def test_a_close_changes_no_time_that_was_set(place: Path, *, written: bool, when_ns: int) -> None:
    path = write(place / "file", b"content")
    with opened(path, os.O_RDWR) as fd:
        if written:
            os.write(fd, b"other")
        os.utime(fd, ns=(when_ns, when_ns))
        before = _get_times(os.fstat(fd))
        wait_for_another_time(path)
        assert _get_times(os.fstat(fd)) == before
    assert _get_times(path.stat()) == before


def test_mtime_of_what_is_open_is_seen_by_its_name(place: Path) -> None:
    path = write(place / "file", b"content")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"other")
        during = look(path).st_mtime_ns
        assert during > OLD_NS
        assert os.fstat(fd).st_mtime_ns == during
    assert look(path).st_mtime_ns == during


@table("ahead_s", [(100_000,), (100_000_000,), (8_000_000_000,), ((1 << 63) // 1_000_000_000 - 1,)])
def test_a_directory_of_the_future_is_of_now_once_it_is_changed(place: Path, ahead_s: int) -> None:
    path = place / "directory"
    path.mkdir()
    os.utime(path, (ahead_s, min(ahead_s + time.time(), (1 << 63) // 1_000_000_000 - 1)))
    for name in ("one", "two"):
        before = time.time() - 1
        write(path / name, b"content")
        assert before < look(path).st_mtime < before + 60


def test_reading_sets_the_time_of_access(place: Path) -> None:
    # As with relatime: where it is not after the time of modification.
    path = write(place / "file", b"content")
    os.utime(path, ns=(OLD_NS, OLD_NS + 5))
    path.read_bytes()
    assert look(path).st_atime_ns > OLD_NS + 5


@table("flags", [("O_RDONLY",), ("O_WRONLY",), ("O_RDWR",)])
def test_a_new_file_has_its_times_from_its_making_on(place: Path, flags: str) -> None:
    path = place / "new"
    fd = os.open(path, os.O_CREAT | getattr(os, flags), 0o644)
    made = _get_times(path.stat())
    time.sleep(0.03)
    assert _get_times(os.fstat(fd)) == made
    assert _get_times(path.stat()) == made
    os.close(fd)
    for _ in range(20):
        assert _get_times(path.stat()) == made
        time.sleep(0.01)


def test_a_written_file_has_its_times_from_the_write_and_not_from_the_close(place: Path) -> None:
    path = place / "file"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    time.sleep(0.03)
    os.write(fd, b"content")
    written = _get_times(path.stat())
    time.sleep(0.03)
    os.close(fd)
    for _ in range(20):
        assert _get_times(path.stat()) == written
        time.sleep(0.01)


def _get_times(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns
