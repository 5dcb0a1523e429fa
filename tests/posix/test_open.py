"""open: every flag on every kind of file, O_TMPFILE, O_PATH, O_APPEND, O_DIRECT; and files that are open without a name."""

import mmap
import os
import select
import socket
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.posix.system import (
    ANN,
    BOB,
    acting,
    attempt,
    bind,
    give,
    link_followed,
    link_open_file,
    look,
    make,
    open_close,
    opened,
    remove,
    umask,
    write,
)
from tests.posix.table import grid, table

pytestmark = pytest.mark.mount

R, W, RW, CREAT, EXCL, TRUNC, APPEND = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND
DIRECTORY, NOFOLLOW, PATH, TMPFILE, NONBLOCK = os.O_DIRECTORY, os.O_NOFOLLOW, os.O_PATH, os.O_TMPFILE, os.O_NONBLOCK

FLAGS = {
    "R": R, "W": W, "RW": RW, "W|TRUNC": W | TRUNC, "R|TRUNC": R | TRUNC, "W|APPEND": W | APPEND,
    "RW|CREAT": RW | CREAT, "R|CREAT": R | CREAT, "W|CREAT|TRUNC": W | CREAT | TRUNC, "W|CREAT|EXCL": W | CREAT | EXCL,
    "R|DIRECTORY": R | DIRECTORY, "W|DIRECTORY": W | DIRECTORY,
    "R|NOFOLLOW": R | NOFOLLOW, "W|CREAT|NOFOLLOW": W | CREAT | NOFOLLOW, "PATH": PATH, "PATH|NOFOLLOW": PATH | NOFOLLOW,
    "PATH|DIRECTORY": PATH | DIRECTORY, "PATH|NOFOLLOW|DIRECTORY": PATH | NOFOLLOW | DIRECTORY, "RW|TMPFILE": RW | TMPFILE,
    "W|TMPFILE": W | TMPFILE, "R|TMPFILE": R | TMPFILE,
}  # fmt: skip

KINDS: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: None,
    "file": lambda path: write(path, b"content"),
    "dir": lambda path: path.mkdir(),
    "link>file": lambda path: path.symlink_to("a-file"),
    "link>dir": lambda path: path.symlink_to("a-directory"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "socket": lambda path: make("socket", path),
    "fifo": lambda path: os.mkfifo(path),
}

OPENING = """
                  absent    file       dir        link>file  link>dir   dangling   loop     socket    fifo
    R             ENOENT    ok         ok         ok         ok         ENOENT     ELOOP    ENXIO     ok
    W             ENOENT    ok         EISDIR     ok         EISDIR     ENOENT     ELOOP    ENXIO     ENXIO
    RW            ENOENT    ok         EISDIR     ok         EISDIR     ENOENT     ELOOP    ENXIO     ok
    W|TRUNC       ENOENT    ok         EISDIR     ok         EISDIR     ENOENT     ELOOP    ENXIO     ENXIO
    R|TRUNC       ENOENT    ok         EISDIR     ok         EISDIR     ENOENT     ELOOP    ENXIO     ok
    W|APPEND      ENOENT    ok         EISDIR     ok         EISDIR     ENOENT     ELOOP    ENXIO     ENXIO
    RW|CREAT      ok        ok         EISDIR     ok         EISDIR     ok         ELOOP    ENXIO     ok
    R|CREAT       ok        ok         EISDIR     ok         EISDIR     ok         ELOOP    ENXIO     ok
    W|CREAT|TRUNC  ok       ok         EISDIR     ok         EISDIR     ok         ELOOP    ENXIO     ENXIO
    W|CREAT|EXCL  ok        EEXIST     EEXIST     EEXIST     EEXIST     EEXIST     EEXIST   EEXIST    EEXIST
    R|DIRECTORY   ENOENT    ENOTDIR    ok         ENOTDIR    ok         ENOENT     ELOOP    ENOTDIR   ENOTDIR
    W|DIRECTORY   ENOENT    ENOTDIR    EISDIR     ENOTDIR    EISDIR     ENOENT     ELOOP    ENOTDIR   ENOTDIR
    R|NOFOLLOW    ENOENT    ok         ok         ELOOP      ELOOP      ELOOP      ELOOP    ENXIO     ok
    W|CREAT|NOFOLLOW  ok    ok         EISDIR     ELOOP      ELOOP      ELOOP      ELOOP    ENXIO     ENXIO
    PATH          ENOENT    ok         ok         ok         ok         ENOENT     ELOOP    ok        ok
    PATH|NOFOLLOW  ENOENT   ok         ok         ok         ok         ok         ok       ok        ok
    PATH|DIRECTORY  ENOENT  ENOTDIR    ok         ENOTDIR    ok         ENOENT     ELOOP    ENOTDIR   ENOTDIR
    PATH|NOFOLLOW|DIRECTORY  ENOENT  ENOTDIR  ok  ENOTDIR    ENOTDIR    ENOTDIR    ENOTDIR  ENOTDIR   ENOTDIR
    RW|TMPFILE    ENOENT    ENOTDIR    ok         ENOTDIR    ok         ENOENT     ELOOP    ENOTDIR   ENOTDIR
    W|TMPFILE     ENOENT    ENOTDIR    ok         ENOTDIR    ok         ENOENT     ELOOP    ENOTDIR   ENOTDIR
    R|TMPFILE     EINVAL    EINVAL     EINVAL     EINVAL     EINVAL     EINVAL     EINVAL   EINVAL    EINVAL
"""


@table("flags kind expected", grid(OPENING))
def test_every_flag_on_every_kind(place: Path, flags: str, kind: str, expected: str) -> None:
    write(place / "a-file", b"content")
    (place / "a-directory").mkdir()
    KINDS[kind](place / "name")
    names = set(os.listdir(place))
    assert attempt(open_close, place / "name", FLAGS[flags] | NONBLOCK) == expected
    made = {"absent": {"name"}, "dangling": {"nowhere"}}.get(kind, set()) if "CREAT" in flags and expected == "ok" else set()
    assert set(os.listdir(place)) == names | made
    if kind in ("file", "link>file"):
        content = (place / "name").read_bytes()
        assert content == (b"" if "TRUNC" in flags and expected == "ok" else b"content")


@table("mode call expected", [
    ("R", "read", "ok"), ("R", "write", "EBADF"), ("R", "ftruncate", "EINVAL"), ("R", "fsync", "ok"), ("R", "fchmod", "ok"),
    ("R", "lseek before", "EINVAL"), ("R", "pread before", "EINVAL"), ("R", "fallocate", "EBADF"),
    ("W", "read", "EBADF"), ("W", "write", "ok"), ("W", "ftruncate", "ok"), ("W", "pwrite before", "EINVAL"),
    ("W", "ftruncate below", "EINVAL"), ("W|APPEND", "write", "ok"), ("PATH", "read", "EBADF"), ("PATH", "write", "EBADF"),
    ("PATH", "fchmod", "EBADF"), ("PATH", "fstat", "ok"), ("PATH", "fsync", "EBADF"),
])  # fmt: skip
def test_what_an_open_file_lets_do(place: Path, mode: str, call: str, expected: str) -> None:
    calls: dict[str, Callable[[int], object]] = {
        "read": lambda fd: os.read(fd, 1),
        "write": lambda fd: os.write(fd, b"x"),
        "ftruncate": lambda fd: os.ftruncate(fd, 1),
        "fchmod": lambda fd: os.fchmod(fd, 0o600),
        "fstat": os.fstat,
        "fsync": os.fsync,
        "lseek before": lambda fd: os.lseek(fd, -1, os.SEEK_SET),
        "pread before": lambda fd: os.pread(fd, 1, -1),
        "pwrite before": lambda fd: os.pwrite(fd, b"x", -1),
        "ftruncate below": lambda fd: os.ftruncate(fd, -1),
        "fallocate": lambda fd: os.posix_fallocate(fd, 0, 10),
    }
    with opened(write(place / "file", b"content"), FLAGS[mode]) as fd:
        assert attempt(calls[call], fd) == expected


@table(
    "call expected",
    [("read", "EISDIR"), ("pread", "EISDIR"), ("fsync", "ok"), ("fstat", "ok"), ("fchmod", "ok"), ("ftruncate", "EINVAL")],
)
def test_what_an_open_directory_lets_do(place: Path, call: str, expected: str) -> None:
    calls: dict[str, Callable[[int], object]] = {
        "read": lambda fd: os.read(fd, 1),
        "pread": lambda fd: os.pread(fd, 1, 0),
        "fsync": os.fsync,
        "fstat": os.fstat,
        "fchmod": lambda fd: os.fchmod(fd, 0o755),
        "ftruncate": lambda fd: os.ftruncate(fd, 0),
    }
    with opened(place) as fd:
        assert attempt(calls[call], fd) == expected


KINDS_OF_CALLS = """
                    file        directory   symlink     fifo        socket      character
    truncate        ok          EISDIR      ENOENT      EINVAL      EINVAL      EINVAL
    truncate below  EINVAL      EINVAL      EINVAL      EINVAL      EINVAL      EINVAL
    rmdir           ENOTDIR     ok          ENOTDIR     ENOTDIR     ENOTDIR     ENOTDIR
    unlink          ok          EISDIR      ok          ok          ok          ok
    readlink        EINVAL      EINVAL      ok          EINVAL      EINVAL      EINVAL
    list            ENOTDIR     ok          ENOENT      ENOTDIR     ENOTDIR     ENOTDIR
    link            ok          EPERM       ok          ok          ok          ok
    bind            EADDRINUSE  EADDRINUSE  EADDRINUSE  EADDRINUSE  EADDRINUSE  EADDRINUSE
"""


@table("call kind expected", grid(KINDS_OF_CALLS))
def test_calls_on_the_kinds_they_are_for(place: Path, call: str, kind: str, expected: str) -> None:
    calls: dict[str, Callable[[Path], object]] = {
        "truncate": lambda path: os.truncate(path, 3),
        "truncate below": lambda path: os.truncate(path, -1),
        "rmdir": os.rmdir,
        "unlink": os.unlink,
        "readlink": os.readlink,
        "list": os.listdir,
        "link": lambda path: os.link(path, path.parent / "linked", follow_symlinks=False),
        "bind": bind,
    }
    path = make(kind, place / "name")
    assert attempt(calls[call], path) == expected
    if call in ("rmdir", "unlink"):
        assert os.path.lexists(path) == (expected != "ok")


def test_a_directory_that_is_not_empty_stays(place: Path) -> None:
    (place / "directory").mkdir()
    for kind in ("file", "directory", "symlink", "fifo"):
        path = make(kind, place / "directory" / "name")
        assert attempt(os.rmdir, place / "directory") == "ENOTEMPTY"
        remove(path)
    assert attempt(os.rmdir, place / "directory") == "ok"


# -- O_TMPFILE -------------------------------------------------------------------------------------------------------------------


def test_a_file_without_a_name_gets_one(place: Path) -> None:
    with opened(place, RW | TMPFILE, 0o640) as fd:
        assert os.listdir(place) == []
        assert os.fstat(fd).st_nlink == 0
        os.write(fd, b"content")
        assert os.pread(fd, 99, 0) == b"content"
        link_open_file(fd, place / "name")
        assert os.fstat(fd).st_nlink == 1
        os.write(fd, b" more")
    assert (place / "name").read_bytes() == b"content more"
    assert look(place / "name").st_mode & 0o777 == 0o640


def test_a_file_without_a_name_and_o_excl_gets_none(place: Path) -> None:
    with opened(place, RW | TMPFILE | EXCL, 0o640) as fd:
        os.write(fd, b"content")
        assert attempt(link_open_file, fd, place / "name") == "ENOENT"
    assert os.listdir(place) == []


def test_a_file_without_a_name_goes_with_its_last_descriptor(place: Path) -> None:
    with opened(place, RW | TMPFILE, 0o640) as fd:
        os.write(fd, b"content")
        with opened(f"/proc/self/fd/{fd}", RW) as again:
            assert os.read(again, 99) == b"content"
            os.ftruncate(again, 3)
        assert os.fstat(fd).st_size == 3
    place.rmdir()


def test_a_file_without_a_name_has_attributes(place: Path) -> None:
    with umask(0o27), opened(place, RW | TMPFILE, 0o6777) as fd:
        found = os.fstat(fd)
        assert (stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode)) == (stat.S_IFREG, 0o6750)
        os.fchmod(fd, 0o604)
        os.fchown(fd, 5, 6)
        os.utime(fd, ns=(7, 8))
        os.setxattr(fd, "user.x", b"v")
        link_open_file(fd, place / "name")
        assert os.getxattr(place / "name", "user.x") == b"v"
    found = look(place / "name")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o604, 5, 6)
    assert (found.st_atime_ns, found.st_mtime_ns, found.st_nlink) == (7, 8, 1)


def test_a_file_without_a_name_gets_several(place: Path) -> None:
    (place / "other").mkdir()
    write(place / "taken", b"taken")
    with opened(place, RW | TMPFILE) as fd:
        os.write(fd, b"content")
        assert attempt(link_open_file, fd, place / "taken") == "EEXIST"
        link_open_file(fd, place / "other/one")
        assert (place / "other/one").read_bytes() == b"content"
        link_open_file(fd, place / "two")
        assert os.fstat(fd).st_nlink == 2
        os.write(fd, b" more")
        os.unlink(place / "two")
    assert (place / "other/one").read_bytes() == b"content more"
    assert os.listdir(place / "other") == ["one"]
    assert (place / "taken").read_bytes() == b"taken"


def test_a_file_without_a_name_is_linked_by_who_only_reads_it(place: Path) -> None:
    with opened(place, RW | TMPFILE, 0o644) as writes:
        os.write(writes, b"content")
        reads = os.open(f"/proc/self/fd/{writes}", R)
    link_open_file(reads, place / "name")
    os.close(reads)
    assert (place / "name").read_bytes() == b"content"


@table("who mode expected", [("bob", 0o755, "EACCES"), ("bob", 0o777, "ok"), ("bob", 0o1777, "ok"), ("ann", 0o500, "EACCES")])
def test_who_may_make_a_file_without_a_name(place: Path, who: str, mode: int, expected: str) -> None:
    give(place, ANN, mode)
    with acting({"ann": ANN, "bob": BOB}[who]):
        assert attempt(open_close, place, RW | TMPFILE, 0o600) == expected


def test_once_removed_a_file_gets_no_name_again(place: Path) -> None:
    path = write(place / "file", b"content")
    with opened(path) as fd:
        path.unlink()
        assert attempt(link_open_file, fd, place / "name") == "ENOENT"


@table("kind expected", [("file", "EPERM"), ("dir", "EPERM"), ("fifo", "ok")])
def test_what_epoll_waits_for(place: Path, kind: str, expected: str) -> None:
    KINDS[kind](place / "it")
    with opened(place / "it", R | NONBLOCK) as it, select.epoll() as waiting:
        assert attempt(waiting.register, it) == expected


# -- O_EXCL ----------------------------------------------------------------------------------------------------------------------


def test_one_of_many_makes_it(place: Path) -> None:
    with ThreadPoolExecutor(4) as makers:
        for i in range(20):
            path = place / f"lock{i}"
            results = list(makers.map(lambda _n, path=path: attempt(open_close, path, W | CREAT | EXCL), range(4)))
            assert sorted(results) == ["EEXIST"] * 3 + ["ok"]


# -- O_APPEND --------------------------------------------------------------------------------------------------------------------


def test_appending_goes_to_the_end_wherever_that_is(place: Path) -> None:
    path = write(place / "file", b"123")
    with opened(path, W | APPEND) as one, opened(path, RW | APPEND) as two, opened(path, W) as other:
        os.write(one, b"4")
        os.write(two, b"5")
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"6")
        assert os.lseek(one, 0, os.SEEK_CUR) == 6
        os.pwrite(other, b"A", 0)
        os.ftruncate(other, 10)
        os.write(two, b"7")
        os.ftruncate(other, 2)
        os.write(one, b"8")
    assert path.read_bytes() == b"A28"


def test_what_many_append_is_all_there(place: Path) -> None:
    path = write(place / "log")

    def append(who: int) -> None:
        with opened(path, W | APPEND) as fd:
            for i in range(50):
                os.write(fd, f"{who}:{i:04}\n".encode())

    with ThreadPoolExecutor(4) as writers:
        list(writers.map(append, range(4)))
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{who}:{i:04}" for who in range(4) for i in range(50))
    for who in range(4):
        assert [line for line in lines if line.startswith(f"{who}:")] == [f"{who}:{i:04}" for i in range(50)]


# -- O_DIRECT --------------------------------------------------------------------------------------------------------------------


@table("size", [(4096,), (65536,), (1 << 20,)])
def test_direct_writes_and_reads(place: Path, size: int) -> None:
    path = place / "file"
    buffer = mmap.mmap(-1, size)
    data = os.urandom(size)
    with opened(path, RW | CREAT | os.O_DIRECT) as fd, opened(path, RW) as buffered:
        buffer[:] = data
        assert os.pwritev(fd, [buffer], 0) == size
        assert os.pwritev(fd, [buffer], size) == size
        assert os.pread(buffered, size, size) == data
        os.pwrite(buffered, b"changed", 0)
        assert os.preadv(fd, [buffer], 0) == size
        assert buffer[:] == b"changed" + data[7:]
        assert os.preadv(fd, [buffer], 2 * size) == 0
    assert path.read_bytes() == b"changed" + data[7:] + data


# -- open, and without a name ----------------------------------------------------------------------------------------------------


def test_an_unlinked_file_lives_while_it_is_open(place: Path) -> None:
    path = write(place / "file", b"content")
    with opened(path, RW) as fd:
        number = os.fstat(fd).st_ino
        path.unlink()
        assert os.listdir(place) == []
        assert attempt(os.stat, path) == "ENOENT"
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 99, 0) == b"content"
        os.pwrite(fd, b"more and more", 7)
        os.fsync(fd)
        os.ftruncate(fd, 15)
        assert os.fstat(fd).st_size == 15
        write(path, b"another")  # the name is free
        assert look(path).st_ino != number
        assert os.pread(fd, 99, 0) == b"contentmore and"
        with opened(f"/proc/self/fd/{fd}", RW) as again:
            assert os.pread(again, 7, 0) == b"content"
    assert path.read_bytes() == b"another"


def test_an_unlinked_file_stays_mapped(place: Path) -> None:
    path = write(place / "file", bytes(8192))
    with opened(path, RW) as fd:
        mapped = mmap.mmap(fd, 8192)
    path.unlink()
    mapped[:7] = b"written"
    mapped.flush()
    assert mapped[:8] == b"written\0"
    mapped.close()


def test_a_removed_directory_is_empty_while_it_is_open(place: Path) -> None:
    (place / "directory").mkdir()
    with opened(place / "directory") as fd:
        (place / "directory").rmdir()
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(fd) == []
        assert attempt(os.mkdir, "below", dir_fd=fd) == "ENOENT"
        assert attempt(os.stat, "below", dir_fd=fd) == "ENOENT"
        assert attempt(os.stat, place / "directory") == "ENOENT"


# -- link counts -----------------------------------------------------------------------------------------------------------------


@table("kind", [("file",), ("symlink",), ("fifo",), ("socket",), ("character",)])
def test_link_counts_of_files(place: Path, kind: str) -> None:
    path = make(kind, place / "0")
    (place / "below").mkdir()
    names = [place / "1", place / "below" / "2"]
    for number, name in enumerate(names, 2):
        os.link(path, name, follow_symlinks=False)
        assert {look(each).st_nlink for each in (path, *names[: number - 1])} == {number}
        assert look(name).st_ino == look(path).st_ino
    path.unlink()
    assert [look(name).st_nlink for name in names] == [2, 2]
    names[0].unlink()
    assert look(names[1]).st_nlink == 1


def test_link_counts_of_directories(place: Path) -> None:
    assert look(place).st_nlink == 2
    for number in range(3, 6):
        (place / str(number)).mkdir()
        assert look(place).st_nlink == number
        assert look(place / str(number)).st_nlink == 2
    write(place / "file")
    (place / "link").symlink_to("3")
    assert look(place).st_nlink == 5
    (place / "3").rmdir()
    assert look(place).st_nlink == 4


def test_all_names_of_a_file_are_one_file(place: Path) -> None:
    one, two = write(place / "one", b"content"), place / "two"
    os.link(one, two)
    with opened(one, RW) as fd:
        os.pwrite(fd, b"C", 0)
        assert two.read_bytes() == b"Content"
    two.chmod(0o600)
    os.truncate(two, 3)
    os.utime(two, ns=(1, 2))
    os.setxattr(two, "user.x", b"y")
    found = look(one)
    assert (found.st_mode & 0o777, found.st_size, found.st_mtime_ns, found.st_nlink) == (0o600, 3, 2, 2)
    assert os.getxattr(one, "user.x") == b"y"
    one.unlink()
    assert two.read_bytes() == b"Con"
    os.link(two, one)
    assert one.read_bytes() == b"Con"


def test_a_link_to_a_link_and_to_what_it_leads_to(place: Path) -> None:
    write(place / "file")
    (place / "link").symlink_to("file")
    os.link(place / "link", place / "of-the-link", follow_symlinks=False)
    link_followed(place / "link", place / "of-the-file")
    assert os.readlink(place / "of-the-link") == "file"
    assert look(place / "of-the-file").st_ino == look(place / "file").st_ino
    assert look(place / "file").st_nlink == 2


def test_many_links(place: Path) -> None:
    path = write(place / "file")
    for i in range(200):
        os.link(path, place / f"link{i}")
    assert look(path).st_nlink == 201
    for i in range(200):
        (place / f"link{i}").unlink()
    assert look(path).st_nlink == 1


def test_devices_keep_their_numbers(place: Path) -> None:
    for major, minor in ((1, 3), (0, 0), (259, 70000), (511, 255)):
        for kind in (stat.S_IFCHR, stat.S_IFBLK):
            path = place / f"{kind}-{major}-{minor}"
            os.mknod(path, kind | 0o600, os.makedev(major, minor))
            assert (os.major(look(path).st_rdev), os.minor(look(path).st_rdev)) == (major, minor)
            assert stat.S_IFMT(look(path).st_mode) == kind


def test_a_fifo_carries_bytes(place: Path) -> None:
    os.mkfifo(place / "fifo")
    with opened(place / "fifo", RW | NONBLOCK) as end, opened(place / "fifo", W) as other:
        os.write(other, b"through")
        assert os.read(end, 99) == b"through"


def test_a_socket_connects(place: Path) -> None:
    bind(place / "gone")
    with opened(place, PATH) as held, socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(f"/proc/self/fd/{held}/name")
        server.listen(1)
        client.connect(f"/proc/self/fd/{held}/name")
        assert attempt(client.connect, f"/proc/self/fd/{held}/gone") in ("ECONNREFUSED", "EISCONN")
