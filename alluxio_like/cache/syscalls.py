"""The few system calls that Python's library lacks or that need care: punching holes, reserving space, syncfs, fstatfs, leases.

Owns nothing. Errors come as OSError. Safe from any thread.
"""

import ctypes
import fcntl
import os
import signal

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_F_SETSIG = 10
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the bytes' space back; they read as zeros afterwards. The file's size stays."""
    _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)


def reserve(fd: int, offset: int, length: int) -> None:
    """Have space for these bytes, on file systems that can; the file's size and what it holds stay."""
    _fallocate(fd, _FALLOC_FL_KEEP_SIZE, offset, length)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sync_file_system(fd: int) -> None:
    """syncfs(2): returns when everything written to the descriptor's file system is on the disk."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def begin_writing(fd: int) -> None:
    """Have what was written to a file go to the disk, without waiting for that: a hint, which some file systems ignore."""
    _libc.sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def get_fs_magic(fd: int) -> int:
    """The type of the file system that a descriptor is on: fstatfs(2)'s f_type, which Python's fstatvfs leaves out."""
    # struct statfs is 120 bytes on 64-bit Linux, and its first field, a long, is the type.
    buffer = (ctypes.c_ulong * 64)()
    if _libc.fstatfs(fd, buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(buffer[0]) & 0xFFFFFFFF


def take_write_lease(fd: int) -> bool:
    """F_SETLEASE(F_WRLCK): True when nobody else has the file open or mapped. Held until the descriptor is closed.

    While it is held, an open(2) by others waits, or with O_NONBLOCK fails with EWOULDBLOCK. The signal that says so is
    SIGURG, which is ignored by default: the kernel's own choice, SIGIO, would end the process.
    """
    try:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return False
    return True


def take_read_lease(fd: int) -> bool:
    """F_SETLEASE(F_RDLCK): True when nobody has the file open for writing, or mapped so. As `take_write_lease` for the rest; only
    opens for writing wait. `fd` is open for reading."""
    try:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return False
    return True


def drop_lease(fd: int) -> None:
    """Give a lease back."""
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
