"""Files that are written to, one by one: opening a draft, its stamp, its checksums, a copy of it.

Owns nothing. Who writes opens a draft with `open_draft`, in any process; the rest is the worker's (cache/drafts.py). All block on
disks; errors of the disk come as OSError. Safe from any thread.
"""

import contextlib
import errno
import functools
import os
import time
from array import array

from alluxio_like import errors
from alluxio_like.cache.checksum import compute_checksum
from alluxio_like.cache.scratch import get_scratch
from alluxio_like.cache.writing_records import Stamp
from alluxio_like.types import PAGE_BYTES

FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_RECORD = "user.alluxio_like.draft"
_COARSE_TICK_NS = 11_000_000
"""Two changes within so long may have the same time, where the kernel's clock for files ticks (100 Hz at the slowest)."""


def open_draft(directory_fd: int, path: str) -> int:
    """A descriptor for reading and writing of a draft, for who was just told its path by the worker. While it is open, the file
    stays a draft.

    Raises NotFound (it is no draft any more: begin it again), Unavailable (the worker looks just now whether anybody has it open:
    try again in a moment), OSError.
    """
    try:
        fd = os.open(path, os.O_RDWR | FLAGS, dir_fd=directory_fd)
    except FileNotFoundError:
        raise errors.NotFound("the draft is over; begin it again", subject=path) from None
    except BlockingIOError:
        raise errors.Unavailable("the worker is busy with the draft; try again", subject=path) from None
    # It may have become a cache file before the descriptor was there: then it has another name.
    if _is_at(directory_fd, path, fd):
        return fd
    os.close(fd)
    raise errors.NotFound("the draft is over; begin it again", subject=path)


def _is_at(directory_fd: int, path: str, fd: int) -> bool:
    try:
        return os.stat(path, dir_fd=directory_fd, follow_symlinks=False).st_ino == os.fstat(fd).st_ino
    except OSError:
        return False


def _make_stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def get_stamp(fd: int) -> Stamp:
    """The stamp of an open file. Raises OSError."""
    return _make_stamp(os.fstat(fd))


def get_stamp_at(directory_fd: int, path: str) -> Stamp:
    """The stamp of a file by its path below a directory."""
    return _make_stamp(os.stat(path, dir_fd=directory_fd, follow_symlinks=False))


def note_record(fd: int, raw: bytes) -> bool:
    """Have a file say by itself whose draft it is, for a start that finds nothing about it in the index; False: the file system
    has no place for that. It changes the stamp."""
    try:
        os.setxattr(fd, _RECORD, raw)
    except OSError:
        return False
    return True


def lookup_record(directory_fd: int, path: str) -> bytes | None:
    """What `note_record` has noted."""
    try:
        return os.getxattr(f"/proc/self/fd/{directory_fd}/{path}", _RECORD)
    except OSError:
        return None


def drop_record(directory_fd: int, path: str) -> None:
    """Before the index forgets a draft: from here on its file is nobody's without it."""
    with contextlib.suppress(OSError):
        os.removexattr(f"/proc/self/fd/{directory_fd}/{path}", _RECORD)


def exists(directory_fd: int, path: str) -> bool:
    """Whether there is such a file below a directory."""
    try:
        os.stat(path, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def wait_tick(stamp: Stamp) -> None:
    """Until a change would have another time than the stamp's."""
    newest = max(stamp.mtime_ns if stamp.mtime_ns <= time.time_ns() else 0, stamp.ctime_ns)
    left = newest + _COARSE_TICK_NS - time.time_ns()
    if left > 0:
        time.sleep(min(left, _COARSE_TICK_NS) / 1e9)


def compute_sums(fd: int, size: int) -> "array[int] | None":
    """A checksum for each page; None: the file is shorter by now. Pages of holes are not read."""
    if os.fstat(fd).st_size < size:
        return None
    sums = array("Q")
    while len(sums) * PAGE_BYTES < size:
        start = len(sums) * PAGE_BYTES
        empty = (min(_find_data(fd, start), size) - start) // PAGE_BYTES
        if empty:
            sums.extend(array("Q", [_get_empty_sum()]) * empty)
            continue
        room = get_scratch(min(PAGE_BYTES, size - start))
        count = os.preadv(fd, (room,), start)
        while 0 < count < len(room):
            more = os.preadv(fd, (room[count:],), start + count)
            if not more:
                break
            count += more
        if count < len(room):
            return None
        sums.append(compute_checksum(room))
    return sums


@functools.cache
def _get_empty_sum() -> int:
    return compute_checksum(bytes(PAGE_BYTES))


def _find_data(fd: int, offset: int) -> int:
    """Where data comes next; far away where none does. A file system that cannot tell has data everywhere."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        return 1 << 62 if error.errno == errno.ENXIO else offset


def copy_all(source: int, target: int) -> None:
    """All of a file that may change meanwhile; shared blocks where the file system can."""
    done = 0
    while count := os.copy_file_range(source, target, 1 << 30, done, done):
        done += count


def read_all(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    while 0 < len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def has_fine_clock(directory_fd: int) -> bool:
    """Whether each change that follows a look gives another time (Linux 6.13 and later, where the file system takes part)."""
    name = "drafts/.clock"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | FLAGS, 0o600, dir_fd=directory_fd)
    try:
        seen = set()
        for _ in range(16):
            os.pwrite(fd, b"x", 0)
            seen.add(os.fstat(fd).st_ctime_ns)
        return len(seen) == 16
    finally:
        os.close(fd)
        os.unlink(name, dir_fd=directory_fd)
