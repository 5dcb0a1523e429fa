"""The calls of the system that Python does not offer: mount(2), umount2(2), prctl(2), openat2(2).

They block for a short time and raise OSError. Imports ctypes and nothing else of weight: the holder uses it. Safe from any
thread.
"""

import ctypes
import os

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
_PR_SET_PDEATHSIG = 1
_SYS_OPENAT2 = 437
"""The same on every architecture."""
_RESOLVE_NO_XDEV = 1
_RESOLVE_NO_MAGICLINKS = 2
_RESOLVE_BENEATH = 8

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, place: str | os.PathLike[str], fstype: str, flags: int = 0, options: str = "") -> None:
    """Mount a file system. Raises OSError."""
    texts = (source.encode(), os.fsencode(place), fstype.encode())
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), options.encode() or None), place)


def unmount(place: str | os.PathLike[str], flags: int = MNT_DETACH) -> None:
    """Unmount what is on top at `place`; with MNT_DETACH it vanishes at once and ends when its last user does. Raises OSError."""
    _check(_libc.umount2(os.fsencode(place), ctypes.c_int(flags)), place)


def set_death_signal(number: int) -> None:
    """Have this process sent a signal when its parent ends; this outlasts an exec. Raises OSError."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number), "prctl")


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(directory: int, path: str) -> int:
    """Open a directory below another, by a relative path that leads out of it by nothing: no "..", no symbolic link, no other
    mount. The descriptor is good for reaching it only (O_PATH). Raises OSError: EXDEV where the path leads out.
    """
    how = _OpenHow(os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS)
    call = (ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(directory), os.fsencode(path), ctypes.byref(how))
    fd = _libc.syscall(*call, ctypes.c_size_t(ctypes.sizeof(how)))
    _check(0 if fd >= 0 else fd, path)
    return int(fd)


def _check(status: int, place: str | os.PathLike[str]) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(place))
