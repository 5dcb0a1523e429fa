"""Volumes on the node: directories of the node's mount, bound to the places where pods look for them.

Owns what a volume may show (a path that stays inside the mount), the bind mounts, and finding out whether the mount is alive.
There is no state: what is published is what mountinfo says, so a plugin that was started anew knows it all. A bind mount stays
good while daemons of the FUSE mount come and go, since they serve the same mount; it does not outlive the mount itself, and is
replaced when it is published again then.

Rule of concurrency: blocking calls, made from threads, one at a time for the changes (`Publisher` has a lock). Everything that
may wait for the FUSE daemon is bounded by `check_s`; the thread that waits is left behind then.
"""

import contextlib
import errno
import os
import posixpath
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alluxio_like.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    InvalidArgument,
    NotADirectory,
    NotFound,
    Unavailable,
)
from alluxio_like.fuse import libc
from alluxio_like.fuse.mountinfo import MountLine, find_top_line
from alluxio_like.fuse.mountpoint import FSTYPE

T = TypeVar("T")

FLAGS = {"ro": libc.MS_RDONLY, "nosuid": libc.MS_NOSUID, "nodev": libc.MS_NODEV, "noexec": libc.MS_NOEXEC}
"""What a mount option of a volume may be."""
ALWAYS = frozenset({"nosuid", "nodev"})
_LAYERS = 16
"""Mounts above each other at one place that are taken away at once; more than one there is nobody's intent."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A volume at a place. `path` is one of the namespace; `options` are of FLAGS."""

    path: str
    target: str
    options: frozenset[str]


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals of what a volume shows, in bytes and in files."""

    total_bytes: int
    available_bytes: int
    total_files: int
    available_files: int


class Publisher:
    """Publishes parts of the mount at `mountpoint`, which shows `path` of the namespace."""

    def __init__(self, mountpoint: Path, path: str, check_s: float) -> None:
        self._mountpoint = mountpoint.parent.resolve() / mountpoint.name
        self._path = normalize(path)
        self._check_s = check_s
        self._changing = threading.Lock()

    def check(self) -> None:
        """Raises Unavailable unless the mount is there and answers."""
        os.close(self._open("."))

    def publish(self, wish: Wish) -> None:
        """Have `wish.target` show the directory; nothing changes where it does already.

        Raises Unavailable (no mount, or a dead one), NotFound, NotADirectory, AccessDenied (the path leads out of what is
        mounted), AlreadyExists (something else is at the target), Conflict.
        """
        source = self._open(self._to_relative(wish.path))
        try:
            with self._changing:
                self._publish(source, wish)
        finally:
            os.close(source)

    def unpublish(self, target: str) -> None:
        """Take away what was published at a target, and the target; nothing is done where there is nothing.

        Raises Conflict for what is not ours.
        """
        place = _resolve_parent(target)
        with self._changing:
            for _ in range(_LAYERS):
                line = find_top_line(str(place))
                if line is None:
                    break
                if line.fstype != FSTYPE:
                    raise Conflict(f"a mount of {line.fstype} is at the target, which is not ours: unmount it", subject=target)
                # Whoever still has it open keeps it; nobody else finds it.
                _mount_call(target, lambda: libc.unmount(place, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW))
            try:
                place.rmdir()
            except FileNotFoundError:
                pass
            except NotADirectoryError:
                raise Conflict("the target is no directory, so not ours: remove it", subject=target) from None
            except OSError as error:
                # Never more than an empty directory: what is in it was not put there by us.
                raise Conflict(f"the target cannot be removed ({error.strerror})", subject=target) from None

    def measure(self, place: str) -> Usage:
        """Totals of what is published at a place. Raises NotFound where nothing of ours is, Unavailable for a dead mount."""
        if not Path(place).is_absolute():
            raise NotFound("no volume is published there, which is no absolute path", subject=place)
        resolved = _resolve_parent(place)
        line = find_top_line(str(resolved))
        if line is None or line.fstype != FSTYPE:
            raise NotFound("no volume is published there", subject=place)
        found = self._ask(lambda: os.statvfs(resolved), place)
        unit = found.f_frsize
        return Usage(found.f_blocks * unit, found.f_bavail * unit, found.f_files, found.f_favail)

    # Inside.

    def _publish(self, source: int, wish: Wish) -> None:
        place = _resolve_parent(wish.target)
        line = find_top_line(str(place))
        if line is not None:
            if self._is_alive(place) and self._is_same(source, place):
                self._tighten(line, place, wish)
                return
            if line.fstype != FSTYPE:
                raise AlreadyExists(f"a mount of {line.fstype} is at the target", subject=wish.target)
            if line.device == self._get_line().device:
                raise AlreadyExists("another volume is published at the target", subject=wish.target)
            # Of a mount that is no more: nothing can be read there.
            _mount_call(wish.target, lambda: libc.unmount(place, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW))
        try:
            place.mkdir(0o750)
        except FileExistsError:
            if not place.is_dir() or place.is_symlink():
                raise AlreadyExists("the target is there, and no directory", subject=wish.target) from None
        except OSError as error:
            raise Conflict(f"the target cannot be made ({error.strerror})", subject=wish.target) from None
        _mount_call(wish.target, lambda: libc.mount(f"/proc/self/fd/{source}", place, "", libc.MS_BIND))
        try:
            self._set_options(place, wish)
        except BaseException:
            with contextlib.suppress(OSError):
                libc.unmount(place, libc.MNT_DETACH | libc.UMOUNT_NOFOLLOW)
            raise

    def _tighten(self, line: MountLine, place: Path, wish: Wish) -> None:
        """The volume is there already: with the options that are wanted, or before they were set, as a plugin was killed."""
        more = (line.options & FLAGS.keys()) - wish.options
        if more:
            raise AlreadyExists(
                f"the volume is published there, but with {', '.join(sorted(more))}: unpublish it first", subject=wish.target
            )
        if wish.options - line.options:
            self._set_options(place, wish)

    @staticmethod
    def _set_options(place: Path, wish: Wish) -> None:
        flags = libc.MS_REMOUNT | libc.MS_BIND
        for option in wish.options:
            flags |= FLAGS[option]
        _mount_call(wish.target, lambda: libc.mount("", place, "", flags))

    def _to_relative(self, path: str) -> str:
        wanted = normalize(path)
        if self._path == "/":
            return wanted.lstrip("/") or "."
        if wanted != self._path and not wanted.startswith(self._path + "/"):
            raise NotFound(f"the node's mount shows {self._path} alone, which this is not below", subject=path)
        return wanted[len(self._path) :].lstrip("/") or "."

    def _get_line(self) -> MountLine:
        line = find_top_line(str(self._mountpoint))
        if line is None or line.fstype != FSTYPE:
            raise Unavailable(
                f"nothing of ours is mounted at {self._mountpoint} on this node yet: see its FUSE daemon",
                subject=str(self._mountpoint),
            )
        return line

    def _open(self, path: str) -> int:
        """A directory of the mount, by its path below it."""
        self._get_line()

        def open_it() -> int:
            top = os.open(self._mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fd = libc.open_beneath(top, path)
            finally:
                os.close(top)
            try:
                # What was opened may have been in the kernel's memory; this asks the daemon.
                os.statvfs(fd)
            except BaseException:
                os.close(fd)
                raise
            return fd

        try:
            return self._ask(open_it, path, late=os.close)
        except OSError as error:
            kinds = {errno.ENOENT: NotFound, errno.ENOTDIR: NotADirectory, errno.EXDEV: AccessDenied, errno.ELOOP: AccessDenied}
            said = {
                errno.ENOENT: "no such directory in the node's mount",
                errno.ENOTDIR: "not a directory: a volume shows a directory",
                errno.EXDEV: "the path leads out of the mount",
                errno.ELOOP: "the path leads through too many symbolic links",
            }
            kind = kinds.get(error.errno or 0, Unavailable)
            raise kind(said.get(error.errno or 0, f"the mount failed ({error.strerror})"), subject=path) from None

    def _is_alive(self, place: Path) -> bool:
        try:
            self._ask(lambda: os.statvfs(place), str(place))
        except (OSError, Unavailable):
            return False
        return True

    def _is_same(self, source: int, place: Path) -> bool:
        """Whether a place shows what the descriptor is of."""
        one, other = self._ask(lambda: (os.fstat(source), place.stat()), str(place))
        return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)

    def _ask(self, call: Callable[[], T], what: str, *, late: Callable[[T], None] = lambda _: None) -> T:
        """Call what may wait for the daemon. Raises what it raises, and Unavailable: dead, or not answered in time.

        `late` is given what came after that.
        """
        try:
            return call_within(self._check_s, call, late)
        except TimeoutError:
            raise Unavailable(
                f"the mount at {self._mountpoint} did not answer within {self._check_s:g} s: see its FUSE daemon", subject=what
            ) from None
        except OSError as error:
            if error.errno in {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}:
                raise Unavailable(
                    f"the mount is dead ({error.strerror}): no FUSE daemon serves it", subject=str(self._mountpoint)
                ) from None
            raise


def normalize(path: str) -> str:
    """An absolute path of the namespace, without a slash at its end. Raises InvalidArgument for "..", and for relative ones."""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise InvalidArgument(f"{path!r} is no path of the namespace: write /data/imagenet", subject="path")
    return "/" + posixpath.normpath(path).strip("/")


def call_within(seconds: float, call: Callable[[], T], late: Callable[[T], None] = lambda _: None) -> T:
    """The result of a call that may hang in the kernel. Raises what it raises, and TimeoutError: the call is then left to itself,
    and `late` gets its result.
    """
    done = threading.Event()
    decided = threading.Lock()
    results: list[T] = []
    failures: list[BaseException] = []
    given_up = False

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  raised again by the caller
            failures.append(error)
        else:
            with decided:
                if not given_up:
                    results.append(result)
            if not results:
                late(result)
        done.set()

    threading.Thread(target=run, name="ask mount", daemon=True).start()
    if not done.wait(seconds):
        with decided:
            given_up = not results
        if given_up and not failures:
            raise TimeoutError
    if failures:
        raise failures[0]
    return results[0]


def _resolve_parent(target: str) -> Path:
    """A target without symbolic links above it; the target itself is not looked at, which may be a dead mount."""
    path = Path(target)
    if not path.is_absolute() or ".." in path.parts or not path.name:
        raise InvalidArgument(f"{target!r} is no absolute path of a target", subject="target_path")
    return path.parent.resolve() / path.name


def _mount_call(target: str, call: Callable[[], None]) -> None:
    """Change what is mounted. Raises Conflict with the kernel's reason."""
    try:
        call()
    except PermissionError:
        raise Conflict("mounting is refused: the plugin needs CAP_SYS_ADMIN", subject=target) from None
    except OSError as error:
        raise Conflict(f"the kernel refused ({error.strerror})", subject=target) from None
