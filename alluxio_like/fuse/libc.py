"""The calls of libc that Python does not offer: mount(2), umount2(2), prctl(2).

They block for a short time and raise OSError. Imports ctypes and nothing else of weight: the holder uses it. Safe from any
thread.
"""

import ctypes
import os

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MNT_FORCE = 1
MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1

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


def _check(status: int, place: str | os.PathLike[str]) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(place))
