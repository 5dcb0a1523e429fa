"""What processes and the kernel do around files: programs that run, signals and limits, shared offsets, flags that change, places
where something is mounted, working directories, events, leases, handles, and the smaller calls."""

import ctypes
import faulthandler
import fcntl
import mmap
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.posix.system import ANN, BOB, acting, attempt, give, look, make, opened, write
from tests.posix.table import table
from tests.servers.processes import become

pytestmark = pytest.mark.mount

_libc = ctypes.CDLL(None, use_errno=True)


def run_child(work: Callable[[], int]) -> int:
    """The exit status of a forked child that does something, or minus the signal that ended it."""
    with warnings.catch_warnings():
        # Of forking beside other threads, from Python 3.12 on: the child does nothing that could wait for one.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 99
        faulthandler.disable()  # a signal may be what is expected
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- programs that run -----------------------------------------------------------------------------------------------------------


@table("call expected", [
    ("open to write", "ETXTBSY"), ("open to read, and cut off", "ETXTBSY"), ("truncate", "ETXTBSY"), ("open to read", "ok"),
    ("unlink", "ok"), ("rename over", "ok"), ("chmod", "ok"),
])  # fmt: skip
def test_a_program_that_runs_is_not_written(place: Path, call: str, expected: str) -> None:
    path = write(place / "program", Path("/bin/sleep").read_bytes(), 0o755)
    new = write(place / "new", b"new")
    calls: dict[str, Callable[[], object]] = {
        "open to write": lambda: os.close(os.open(path, os.O_WRONLY)),
        "open to read, and cut off": lambda: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC)),
        "truncate": lambda: os.truncate(path, 5),
        "open to read": lambda: os.close(os.open(path, os.O_RDONLY)),
        "unlink": path.unlink,
        "rename over": lambda: os.rename(new, path),
        "chmod": lambda: path.chmod(0o700),
    }
    running = subprocess.Popen([path, "60"])
    try:
        assert attempt(calls[call]) == expected
        assert running.poll() is None
        if expected == "ETXTBSY":
            assert path.read_bytes() == Path("/bin/sleep").read_bytes()
    finally:
        running.kill()
        running.wait(60)
    if expected == "ETXTBSY":
        assert attempt(calls[call]) == "ok"


def test_what_is_open_to_write_is_not_run(place: Path) -> None:
    path = write(place / "program", b"#!/bin/sh\nexit 0\n", 0o755)
    with opened(path, os.O_WRONLY):
        assert attempt(os.posix_spawn, path, [path], {}) == "ETXTBSY"


def test_set_user_id_programs(place: Path) -> None:
    path = write(place / "program", Path("/usr/bin/id").read_bytes(), 0o755)
    give(path, ANN, 0o6755)
    output = subprocess.run([*become(BOB.uid, BOB.gid), path, "-u"], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == str(ANN.uid)


# -- signals and limits ----------------------------------------------------------------------------------------------------------


def test_a_mapping_ends_with_the_file(place: Path) -> None:
    path = write(place / "file", bytes(100))

    def touch() -> int:
        fd = os.open(path, os.O_RDWR)
        os.ftruncate(fd, 8192)
        mapped = mmap.mmap(fd, 8192)
        os.ftruncate(fd, 100)
        if mapped[4095] != 0:
            return 1
        return mapped[4096]  # of a page behind the end: SIGBUS

    assert run_child(touch) == -signal.SIGBUS


@contextmanager
def size_limit(size: int) -> Iterator[None]:
    """RLIMIT_FSIZE, with its signal ignored."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_the_limit_of_a_files_size(place: Path) -> None:
    with opened(write(place / "file"), os.O_RDWR) as fd:
        with size_limit(10_000):
            assert os.pwrite(fd, bytes(20_000), 0) == 10_000
            assert attempt(os.pwrite, fd, b"x", 10_000) == "EFBIG"
            assert attempt(os.ftruncate, fd, 10_001) == "EFBIG"
            assert attempt(os.posix_fallocate, fd, 0, 10_001) == "EFBIG"
            assert attempt(os.ftruncate, fd, 10_000) == "ok"
        assert os.pwrite(fd, b"x", 10_000) == 1


def test_a_signal_ends_no_write(place: Path) -> None:
    ticks = []
    handler = signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        data = os.urandom(1 << 20)
        for i in range(5):
            (place / f"file{i}").write_bytes(data)
            assert (place / f"file{i}").read_bytes() == data
            os.rename(place / f"file{i}", place / "kept")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert ticks
    assert os.listdir(place) == ["kept"]


# -- offsets and flags -----------------------------------------------------------------------------------------------------------


def test_copies_of_a_descriptor_share_offset_and_flags(place: Path) -> None:
    with opened(write(place / "file"), os.O_RDWR) as fd:
        copy = os.dup(fd)
        os.write(fd, b"one")
        os.write(copy, b"two")
        fcntl.fcntl(copy, fcntl.F_SETFL, os.O_APPEND)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        assert run_child(lambda: os.write(fd, b"child") - 5) == 0
        os.close(copy)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 11
    assert (place / "file").read_bytes() == b"onetwochild"


def test_appending_is_switched_on_and_off(place: Path) -> None:
    path = write(place / "file", b"content")
    with opened(path, os.O_RDWR) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"+end")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"C")
    assert path.read_bytes() == b"Content+end"


@table(
    "flag",
    [("O_SYNC",), ("O_DSYNC",), ("O_CLOEXEC",), ("O_NONBLOCK",), ("O_NOCTTY",), ("O_LARGEFILE",), ("O_NOATIME",), ("O_RSYNC",)],
)
def test_flags_that_change_little(place: Path, flag: str) -> None:
    path = write(place / "file")
    with opened(path, os.O_RDWR | getattr(os, flag)) as fd:
        os.write(fd, b"content")
        assert os.pread(fd, 99, 0) == b"content"
    assert path.read_bytes() == b"content"


@table("who expected", [("ann", "ok"), ("bob", "EPERM")])
def test_no_atime_is_the_owners(place: Path, who: str, expected: str) -> None:
    path = give(write(place / "file", b"content"), ANN, 0o644)
    with acting({"ann": ANN, "bob": BOB}[who]):
        assert attempt(lambda: os.close(os.open(path, os.O_RDONLY | os.O_NOATIME))) == expected


@table("flags at expected", [("RWF_SYNC", 3, b"conXYnt"), ("RWF_DSYNC", 3, b"conXYnt"), ("RWF_APPEND", 0, b"contentXY")])
def test_flags_of_a_single_write(place: Path, flags: str, at: int, expected: bytes) -> None:
    path = write(place / "file", b"content")
    with opened(path, os.O_RDWR) as fd:
        assert os.pwritev(fd, [b"X", b"Y"], at, getattr(os, flags)) == 2
    assert path.read_bytes() == expected


# -- places where something is mounted -------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(place: Path) -> Iterator[Path]:
    """Something is mounted on `over`, a directory, and on `file`."""
    for name in ("under", "over", "empty"):
        (place / name).mkdir()
    for name in ("file", "other"):
        write(place / name)
    mounts = [("under", "over"), ("other", "file")]
    for source, target in mounts:
        subprocess.run(["mount", "--bind", place / source, place / target], check=True)
    yield place
    for _source, target in mounts:
        subprocess.run(["umount", "-l", place / target], check=False, capture_output=True)


@table("call expected", [
    ("rmdir", "EBUSY"), ("rename from", "EBUSY"), ("rename over", "EBUSY"), ("unlink", "EBUSY"), ("rename a file over", "EBUSY"),
    ("rename out", "EXDEV"), ("link out", "EXDEV"),
])  # fmt: skip
def test_a_place_where_something_is_mounted(mounted: Path, call: str, expected: str) -> None:
    write(mounted / "under" / "inside")
    calls: dict[str, Callable[[], object]] = {
        "rmdir": lambda: os.rmdir(mounted / "over"),
        "rename from": lambda: os.rename(mounted / "over", mounted / "new"),
        "rename over": lambda: os.rename(mounted / "empty", mounted / "over"),
        "unlink": lambda: os.unlink(mounted / "file"),
        "rename a file over": lambda: os.rename(mounted / "other", mounted / "file"),
        "rename out": lambda: os.rename(mounted / "over" / "inside", mounted / "new"),
        "link out": lambda: os.link(mounted / "over" / "inside", mounted / "new"),
    }
    assert attempt(calls[call]) == expected


def test_a_bind_that_is_read_only(place: Path) -> None:
    write(place / "file", b"content")
    (place / "view").mkdir()
    subprocess.run(["mount", "--bind", place, place / "view"], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place / "view"], check=True)
        view = place / "view"
        for do in (
            lambda: write(view / "new"),
            lambda: (view / "file").unlink(),
            lambda: (view / "file").chmod(0o600),
            lambda: os.truncate(view / "file", 1),
            lambda: os.utime(view / "file"),
            lambda: os.mkdir(view / "directory"),
            lambda: os.rename(view / "file", view / "renamed"),
            lambda: os.link(view / "file", view / "linked"),
            lambda: os.symlink("x", view / "link"),
            lambda: os.setxattr(view / "file", "user.x", b"v"),
        ):
            assert attempt(do) == "EROFS"
        assert (view / "file").read_bytes() == b"content"
    finally:
        subprocess.run(["umount", place / "view"], check=True)


# -- working directories ---------------------------------------------------------------------------------------------------------


def test_working_directories(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)

    def work() -> int:
        os.chdir(place / "a" / "b")
        os.rename(place / "a", place / "c")
        if os.getcwd() != str(place / "c" / "b"):
            return 1
        os.chdir("..")
        if os.listdir(".") != ["b"]:
            return 2
        os.chdir("b")
        os.rmdir(place / "c" / "b")
        if (
            attempt(os.getcwd) != "ENOENT"
            or attempt(os.mkdir, "new") != "ENOENT"
            or attempt(os.listdir, ".") not in ("ok", "ENOENT")
        ):
            return 3
        return 0

    assert run_child(work) == 0


@table("mode expected", [(0o700, "EACCES"), (0o744, "EACCES"), (0o711, "ok"), (0o701, "ok")])
def test_who_may_work_in_a_directory(place: Path, mode: int, expected: str) -> None:
    (place / "directory").mkdir()
    give(place / "directory", ANN, mode)
    before = os.getcwd()
    with acting(BOB):
        came = attempt(os.chdir, place / "directory")
    os.chdir(before)
    assert came == expected


# -- events, leases, handles -----------------------------------------------------------------------------------------------------

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 2, 4, 8, 0x40, 0x80, 0x100, 0x200


def test_watchers_are_told(place: Path) -> None:
    watcher = _libc.inotify_init1(os.O_NONBLOCK)
    mask = IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
    assert _libc.inotify_add_watch(watcher, os.fsencode(place), mask) >= 0
    write(place / "a", b"x")
    os.rename(place / "a", place / "b")
    (place / "b").unlink()
    data = b""
    while select.select([watcher], [], [], 0)[0]:
        data += os.read(watcher, 65536)
    os.close(watcher)
    events = []
    while data:
        _, kind, _, length = struct.unpack_from("iIII", data)
        events.append((kind & 0xFFF, data[16 : 16 + length].rstrip(b"\0").decode()))
        data = data[16 + length :]
    assert events == [
        (IN_CREATE, "a"), (IN_MODIFY, "a"), (IN_CLOSE_WRITE, "a"), (IN_ATTRIB, "a"), (IN_MOVED_FROM, "a"), (IN_MOVED_TO, "b"),
        (IN_DELETE, "b"),
    ]  # fmt: skip


@table(
    "lease others expected",
    [("read", "none", "ok"), ("write", "none", "ok"), ("read", "writer", "EAGAIN"), ("write", "reader", "EAGAIN")],
)
def test_leases(place: Path, lease: str, others: str, expected: str) -> None:
    path = write(place / "file")
    other = {"none": None, "writer": os.O_WRONLY, "reader": os.O_RDONLY}[others]
    held = None if other is None else os.open(path, other)
    with opened(path, os.O_RDONLY if lease == "read" else os.O_RDWR) as fd:
        kind = fcntl.F_RDLCK if lease == "read" else fcntl.F_WRLCK
        assert attempt(fcntl.fcntl, fd, fcntl.F_SETLEASE, kind) == expected
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == (kind if expected == "ok" else fcntl.F_UNLCK)
    if held is not None:
        os.close(held)


def get_handle(path: Path) -> ctypes.Array[ctypes.c_char]:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    number = ctypes.c_int()
    assert _libc.name_to_handle_at(-100, os.fsencode(path), handle, ctypes.byref(number), 0) == 0, os.strerror(ctypes.get_errno())
    return handle


def open_handle(place: Path, handle: ctypes.Array[ctypes.c_char], flags: int = os.O_RDONLY) -> int:
    with opened(place) as directory:
        fd: int = _libc.open_by_handle_at(directory, handle, flags)
    _check(fd)
    return fd


def forget_names() -> None:
    """Have the kernel forget names and inodes that nobody uses."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")


@table("forgotten", [(False,), (True,)])
def test_what_is_there_is_found_by_its_handle(place: Path, forgotten: bool) -> None:
    path = place / "above/directory/file"
    path.parent.mkdir(parents=True)
    write(path, b"content")
    of_file, of_directory = get_handle(path), get_handle(path.parent)
    if forgotten:
        forget_names()
    fd = open_handle(place, of_file, os.O_RDWR)
    assert os.read(fd, 99) == b"content"
    os.write(fd, b" and more")
    os.close(fd)
    directory = open_handle(place, of_directory)
    assert os.listdir(directory) == ["file"]
    assert os.readlink(f"/proc/self/fd/{directory}").endswith("/above/directory")
    os.close(directory)
    assert path.read_bytes() == b"content and more"


@table("forgotten", [(False,), (True,)])
def test_the_handle_of_what_was_removed_is_stale(place: Path, forgotten: bool) -> None:
    path = write(place / "file")
    handle = get_handle(path)
    path.rename(place / "renamed")
    os.close(open_handle(place, handle))
    (place / "renamed").unlink()
    if forgotten:
        forget_names()
    assert attempt(open_handle, place, handle) == "ESTALE"


# -- smaller calls ---------------------------------------------------------------------------------------------------------------

SMALL: dict[str, Callable[[int], object]] = {
    "fsync": os.fsync,
    "fdatasync": os.fdatasync,
    "syncfs": lambda fd: _check(_libc.syncfs(fd)),
    "sync_file_range": lambda fd: _check(_libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(4096), 7)),
    "readahead": lambda fd: _check(_libc.readahead(fd, ctypes.c_int64(0), 4096)),
    "fadvise WILLNEED": lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED),
    "fadvise DONTNEED": lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED),
    "fadvise RANDOM": lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM),
    "fpathconf": lambda fd: os.fpathconf(fd, "PC_NAME_MAX"),
}


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@table("call", [(call,) for call in SMALL])
def test_small_calls_work_and_change_nothing(place: Path, call: str) -> None:
    path = write(place / "file")
    with opened(path, os.O_RDWR) as fd:
        os.write(fd, b"content")
        assert attempt(SMALL[call], fd) == "ok"
        assert os.pread(fd, 99, 0) == b"content"
        os.write(fd, b" and more")
    assert path.read_bytes() == b"content and more"


@table("kind", [("file",), ("directory",)])
def test_limits_of_names_are_told(place: Path, kind: str) -> None:
    path = make(kind, place / "name")
    assert os.pathconf(path, "PC_NAME_MAX") == 255
    assert os.pathconf(path, "PC_PATH_MAX") == 4096
    assert os.pathconf(path, "PC_LINK_MAX") >= 8


@table("size expected", [(4, "ERANGE"), (5, 5), (100, 5), (0, 5)])
def test_room_for_an_attribute(place: Path, size: int, expected: int | str) -> None:
    path = write(place / "file")
    os.setxattr(path, "user.x", b"value")
    buffer = ctypes.create_string_buffer(max(size, 1))
    found = _libc.getxattr(os.fsencode(path), b"user.x", buffer, size)
    assert found == (-1 if expected == "ERANGE" else expected)
    if expected == "ERANGE":
        assert attempt(_check, found) == "ERANGE"


def test_what_a_killed_writer_wrote_is_there(place: Path) -> None:
    path = place / "file"
    program = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(fd, b"written")
print(flush=True)
os.read(0, 1)
"""
    writer = subprocess.Popen([sys.executable, "-S", "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdin is not None
    writer.stdout.readline()
    writer.kill()
    writer.wait(60)
    writer.stdout.close()
    writer.stdin.close()
    end = time.monotonic() + 60
    while path.read_bytes() != b"written":
        assert time.monotonic() < end
    assert look(path).st_size == 7
