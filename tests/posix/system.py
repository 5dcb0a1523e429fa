"""System calls as the checks need them: with their flags, under other credentials, and with what comes of them as a word.

Owns what Python's `os` lacks (renameat2, fallocate with modes, utimensat with UTIME_NOW and UTIME_OMIT, acting as another user)
and the names that tables use: of calls, of kinds of files, of users. Knows no target and expects nothing.
"""

import ctypes
import errno
import os
import platform
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_SETRESUID, _SETRESGID, _SETGROUPS = {"x86_64": (117, 119, 116), "aarch64": (147, 149, 159)}[platform.machine()]

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_SYMLINK_FOLLOW = -100, 0x100, 0x400


def attempt(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """What comes of a call, as tables write it: `ok`, or the name of its errno."""
    try:
        call(*arguments, **named)
    except OSError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]
    return "ok"


def _check(result: int, path: Any = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


# -- who acts --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class User:
    """Credentials. The group of a user has the user's number."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)
ANN = User(65501, 65501)
BOB = User(65502, 65502)
PEER = User(65503, ANN.gid)
"""In Ann's group."""
GUEST = User(65504, 65504, (65510, ANN.gid))
"""In Ann's group by a supplementary one."""


@contextmanager
def acting(user: User) -> Iterator[None]:
    """What this thread does meanwhile, it does as somebody else, without root's capabilities."""
    # The raw calls change this thread alone, as libc's do not; root stays the saved id, and is the way back.
    before = os.getgroups()
    _set_groups(user.groups)
    _check(_libc.syscall(_SETRESGID, -1, user.gid, -1))
    _check(_libc.syscall(_SETRESUID, -1, user.uid, -1))
    try:
        yield
    finally:
        _check(_libc.syscall(_SETRESUID, -1, 0, -1))
        _check(_libc.syscall(_SETRESGID, -1, 0, -1))
        _set_groups(before)


def _set_groups(groups: Sequence[int]) -> None:
    _check(_libc.syscall(_SETGROUPS, len(groups), (ctypes.c_uint32 * max(1, len(groups)))(*groups)))


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# -- calls that Python lacks -----------------------------------------------------------------------------------------------------


def renameat2(source: Path, target: Path, flags: int) -> None:
    _check(_libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags), source)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True) -> None:
    """Set times given as (seconds, nanoseconds), the latter possibly UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _check(_libc.utimensat(_AT_FDCWD, os.fsencode(path), times, 0 if follow else _AT_SYMLINK_NOFOLLOW), path)


def link_followed(path: Path | str, new: Path) -> None:
    """Link what a path leads to, through symbolic links (os.link only says so)."""
    _check(_libc.linkat(_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(new), _AT_SYMLINK_FOLLOW), path)


def link_open_file(fd: int, path: Path) -> None:
    """Give an open file a name, as O_TMPFILE is followed by."""
    link_followed(f"/proc/self/fd/{fd}", path)


def seek(path: Path, offset: int, how: int) -> int:
    with opened(path, os.O_RDONLY) as fd:
        return os.lseek(fd, offset, how)


# -- short forms -----------------------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def open_close(path: Path | str, flags: int = os.O_RDONLY, mode: int = 0o644) -> None:
    os.close(os.open(path, flags, mode))


def write(path: Path, data: bytes = b"", mode: int = 0o644) -> Path:
    """Make a file."""
    path.write_bytes(data)
    path.chmod(mode)
    return path


def give(path: Path, user: User, mode: int | None = None) -> Path:
    """Have somebody own a file; with a mode, that is set afterwards (chown clears bits of it)."""
    os.chown(path, user.uid, user.gid, follow_symlinks=False)
    if mode is not None:
        path.chmod(mode)
    return path


def look(path: Path) -> os.stat_result:
    return path.lstat()


def get_mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# -- kinds of files --------------------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[int, Callable[[Path], Any]]] = {
    "file": (stat.S_IFREG, lambda path: path.write_bytes(b"content")),
    "directory": (stat.S_IFDIR, lambda path: path.mkdir()),
    "symlink": (stat.S_IFLNK, lambda path: path.symlink_to("nowhere")),
    "fifo": (stat.S_IFIFO, lambda path: os.mkfifo(path)),
    "socket": (stat.S_IFSOCK, lambda path: os.mknod(path, stat.S_IFSOCK | 0o644)),
    "character": (stat.S_IFCHR, lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3))),
    "block": (stat.S_IFBLK, lambda path: os.mknod(path, stat.S_IFBLK | 0o644, os.makedev(259, 70000))),
}


def make(kind: str, path: Path) -> Path:
    """Make a file of a kind."""
    KINDS[kind][1](path)
    return path


def remove(path: Path) -> None:
    """unlink, or rmdir of a directory."""
    if stat.S_ISDIR(path.lstat().st_mode):
        path.rmdir()
    else:
        path.unlink()


def bind(path: Path) -> None:
    """Make a socket by bind(2)."""
    with socket.socket(socket.AF_UNIX) as made, opened(path.parent, os.O_PATH) as parent:
        made.bind(f"/proc/self/fd/{parent}/{path.name}")  # a socket's address has room for 107 bytes


# -- calls by name, each given the path that a check is about and the check's directory ------------------------------------------

CREATING: dict[str, Callable[[Path, Path], Any]] = {
    "open O_CREAT": lambda path, place: open_close(path, os.O_CREAT | os.O_WRONLY),
    "open O_EXCL": lambda path, place: open_close(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "mkdir": lambda path, place: os.mkdir(path),
    "mkfifo": lambda path, place: os.mkfifo(path),
    "mknod": lambda path, place: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3)),
    "symlink": lambda path, place: os.symlink("nowhere", path),
    "link to": lambda path, place: os.link(place / "other", path),
    "rename to": lambda path, place: os.rename(place / "other", path),
}
"""Calls that make their path. The last two need a file `other` there."""

FOLLOWING: dict[str, Callable[[Path, Path], Any]] = {
    "open": lambda path, place: open_close(path, os.O_RDONLY | os.O_NONBLOCK),
    "open O_PATH": lambda path, place: open_close(path, os.O_PATH),
    "stat": lambda path, place: os.stat(path),
    "access": lambda path, place: _access(path),
    "statvfs": lambda path, place: os.statvfs(path),
    "truncate": lambda path, place: os.truncate(path, 0),
    "chmod": lambda path, place: os.chmod(path, 0o755),
    "chown": lambda path, place: os.chown(path, os.geteuid(), os.getegid()),
    "utimensat": lambda path, place: utimensat(path, (1, 0), (1, 0)),
    "getxattr": lambda path, place: os.getxattr(path, "user.given"),
    "setxattr": lambda path, place: os.setxattr(path, "user.given", b"value"),
    "listxattr": lambda path, place: os.listxattr(path),
}
"""Calls about what their path leads to. For `getxattr` it needs an attribute `user.given`."""

NAMING: dict[str, Callable[[Path, Path], Any]] = {
    "lstat": lambda path, place: os.lstat(path),
    "open O_PATH|O_NOFOLLOW": lambda path, place: open_close(path, os.O_PATH | os.O_NOFOLLOW),
    "lchown": lambda path, place: os.lchown(path, os.geteuid(), os.getegid()),
    "lutimes": lambda path, place: utimensat(path, (1, 0), (1, 0), follow=False),
    "unlink": lambda path, place: os.unlink(path),
    "rename from": lambda path, place: os.rename(path, place / "renamed"),
    "link from": lambda path, place: os.link(path, place / "linked", follow_symlinks=False),
}
"""Calls about their path itself, be it a symbolic link."""

OTHERS: dict[str, Callable[[Path, Path], Any]] = {
    "rmdir": lambda path, place: os.rmdir(path),
    "readlink": lambda path, place: os.readlink(path),
    "list": lambda path, place: os.listdir(path),
    "removexattr": lambda path, place: os.removexattr(path, "user.given"),
}
"""Calls about a path that must be of some kind."""


def _access(path: Path) -> None:
    # os.access hides the errno.
    result = _libc.faccessat(_AT_FDCWD, os.fsencode(path), os.R_OK, 0x200)  # AT_EACCESS
    _check(result, path)
