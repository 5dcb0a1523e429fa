"""The place of a mount: is it free, is it ours, is what a dead daemon left there still in the way; and the kernel's knobs for it.

Owns what is done to the system around a mount, not the mount's session. All functions block for a short time: call them in a
thread. None of them touches a live mount of our own except `check_place`, which is called before mounting; a daemon that asks
its own mount for anything on its own event loop would wait for itself.
"""

import contextlib
import errno
import logging
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alluxio_like.errors import ConfigError, Conflict
from alluxio_like.fuse import libc, mountinfo

log = logging.getLogger(__name__)

SOURCE = "alluxio-like"
SUBTYPE = "alluxio_like"
FSTYPE = f"fuse.{SUBTYPE}"

MAX_BACKGROUND = 512
"""Read-ahead requests the kernel keeps under way on one mount. Its default of 12 would let twelve cold reads that wait for a
store stop the read-ahead of every warm file."""

_DETACH_TIMEOUT_S = 10
_STAT_TIMEOUT_S = 5.0
_CONNECTIONS = Path("/sys/fs/fuse/connections")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of /proc/self/mountinfo. `device` is "major:minor", unique among what is mounted at the moment."""

    device: str
    place: Path
    fstype: str
    source: str


def list_mounted() -> list[Mounted]:
    """Everything mounted in this process's mount namespace, in the order of mounting. Asks no file system."""
    return [Mounted(line.device, Path(line.place), line.fstype, line.source) for line in mountinfo.list_lines()]


def find_top(place: Path) -> Mounted | None:
    """What is mounted exactly at a resolved path, the topmost."""
    line = mountinfo.find_top_line(str(place))
    return Mounted(line.device, Path(line.place), line.fstype, line.source) if line else None


def check_place(place: Path) -> tuple[Path, bool]:
    """Make a path ready to be mounted on: its resolved form, and whether the directory was made just now.

    What a dead daemon of ours left mounted there is taken away. Raises Conflict where a live one serves it, ConfigError for
    anything that cannot be mounted on.
    """
    resolved = Path(os.path.realpath(place.parent)) / place.name if place.name else Path(os.path.realpath(place))
    for _ in range(16):
        try:
            kind = _stat(resolved)
            break
        except FileNotFoundError:
            return _make_place(resolved), True
        except OSError as error:
            top = find_top(resolved)
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO) or top is None or top.fstype != FSTYPE:
                raise ConfigError(f"cannot mount there ({error.strerror})", subject=str(place)) from None
            log.warning("taking away what a daemon that died left mounted", extra={"mountpoint": str(resolved)})
            detach(resolved)
    else:
        raise Conflict("dead mounts there cannot be taken away", subject=str(place))
    resolved = Path(os.path.realpath(resolved))
    if not stat.S_ISDIR(kind.st_mode):
        raise ConfigError("the mount point is not a directory", subject=str(place))
    top = find_top(resolved)
    if top is not None and top.fstype == FSTYPE:
        raise Conflict("already mounted there: unmount it first, or choose another directory", subject=str(place))
    return resolved, False


def _stat(place: Path) -> os.stat_result:
    """os.stat, given up after _STAT_TIMEOUT_S: what is mounted there may be served by a daemon that hangs. Raises Conflict
    then."""
    outcome: list[os.stat_result | OSError] = []

    def ask() -> None:
        try:
            # The kernel may remember the attributes of a dead mount for a while; this it always asks for.
            os.statvfs(place)
            outcome.append(place.stat())
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_STAT_TIMEOUT_S)
    if not outcome:
        raise Conflict(
            "what is mounted there does not answer: unmount it with umount -l, or choose another directory", subject=str(place)
        )
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]


def _make_place(place: Path) -> Path:
    try:
        place.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot make the mount point ({error.strerror})", subject=str(place)) from None
    return Path(os.path.realpath(place))


def remove_place(place: Path) -> None:
    """Remove the directory of a mount point, if it is empty and nothing is mounted there."""
    with contextlib.suppress(OSError):
        place.rmdir()


def detach(place: Path) -> None:
    """Unmount at once, whatever is open; what is open fails (as root) or lives on. Raises Conflict where that is refused."""
    if os.geteuid() == 0:
        with _refusals("umount2", place):
            libc.unmount(place, libc.MNT_DETACH | libc.MNT_FORCE)
        return
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise ConfigError("fusermount3 is not installed (package fuse3): cannot unmount", subject=str(place))
    done = subprocess.run(
        [program, "-u", "-z", "--", str(place)], capture_output=True, text=True, timeout=_DETACH_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise Conflict(f"cannot unmount ({done.stderr.strip()})", subject=str(place))


def end_ours(place: Path, device: str) -> None:
    """Unmount what was mounted as `device`, if it is still on top at `place`, and fail all its requests (where we may).

    A thread of ours that waits in the kernel for a request which nobody will answer any more would else never end, and with it
    the process.
    """
    if os.geteuid() == 0:
        try:
            with open_connections() as connections:
                (connections / device.partition(":")[2] / "abort").write_text("1")
        except (OSError, Conflict) as error:
            log.debug("the connection is not aborted", extra={"reason": str(error)})
    top = find_top(place)
    if top is not None and top.device == device:
        detach(place)


def may_allow_other() -> bool:
    """Whether this process may let other users into its mount."""
    if os.geteuid() == 0:
        return True
    with contextlib.suppress(OSError):
        lines = Path("/etc/fuse.conf").read_text(errors="replace").splitlines()
        return any(line.strip() == "user_allow_other" for line in lines)
    return False


def tune(device: str, read_ahead_kb: int) -> None:
    """Raise the kernel's read-ahead and the number of its requests under way; what is refused is logged and left."""
    try:
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(read_ahead_kb))
    except OSError as error:
        log.info("the kernel's read-ahead stays as it is", extra={"reason": error.strerror, "wanted_kb": read_ahead_kb})
    try:
        with open_connections() as connections:
            connection = connections / device.partition(":")[2]
            (connection / "max_background").write_text(str(MAX_BACKGROUND))
            (connection / "congestion_threshold").write_text(str(MAX_BACKGROUND * 3 // 4))
    except (OSError, Conflict) as error:
        log.info("the kernel's limit of background requests stays as it is", extra={"reason": str(error)})


@contextlib.contextmanager
def open_connections() -> Iterator[Path]:
    """The kernel's directory of FUSE connections, mounted aside for a moment where the system has not mounted it."""
    if _CONNECTIONS.is_dir() and any(_CONNECTIONS.iterdir()):
        yield _CONNECTIONS
        return
    aside = tempfile.mkdtemp(prefix="fusectl-")
    try:
        with _refusals("mount", aside):
            libc.mount("fusectl", aside, "fusectl")
        try:
            yield Path(aside)
        finally:
            with _refusals("umount2", aside):
                libc.unmount(aside)
    finally:
        Path(aside).rmdir()


@contextlib.contextmanager
def _refusals(name: str, place: str | Path) -> Iterator[None]:
    """What a call of libc refuses is a Conflict with the reason."""
    try:
        yield
    except OSError as error:
        raise Conflict(f"{name} refused ({error.strerror})", subject=str(place)) from None
