"""What stat(2) shows of an inode, and the one place where errors become errno.

Pure functions; safe from any thread.
"""

import asyncio
import errno
import stat
from dataclasses import dataclass

from alluxio_like.errors import AlluxioLikeError, get_disposition
from alluxio_like.types import Attr, Kind

STAT_BLOCK_BYTES = 512
"""The unit of st_blocks, whatever the block size of a file system."""
PREFERRED_IO_BYTES = 4096
"""st_blksize: what local file systems say, so that buffered readers behave as they do there."""

_TYPE_BITS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
}
_KINDS = {bits: kind for kind, bits in _TYPE_BITS.items()}


def get_kind(mode: int) -> Kind | None:
    """The kind that st_mode's type bits name; without any, a regular file."""
    return _KINDS.get(stat.S_IFMT(mode) or stat.S_IFREG)


@dataclass(frozen=True, slots=True)
class WrittenAttr(Attr):
    """Of a file that is being written: also what it takes on the disk, in units of STAT_BLOCK_BYTES."""

    blocks: int = 0


def get_stat_mode(attr: Attr) -> int:
    """st_mode: type and permission bits."""
    return _TYPE_BITS[attr.kind] | (attr.mode & 0o7777)


def count_stat_blocks(attr: Attr) -> int:
    """st_blocks: all of a file, cached or not, since programs take fewer blocks for holes; while it is written, what it takes."""
    return attr.blocks if isinstance(attr, WrittenAttr) else -(-attr.size // STAT_BLOCK_BYTES)


class FileError(OSError):
    """A system call on a file that is being written failed: the caller is told the same."""


def get_errno(error: BaseException) -> int:
    """The errno that a failed operation answers with; never 0."""
    if isinstance(error, AlluxioLikeError):
        return get_disposition(error).errno
    if isinstance(error, FileError):
        return error.errno or errno.EIO
    if isinstance(error, asyncio.CancelledError):
        return errno.EINTR
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        # Ours are used up, not the caller's.
        return errno.ENFILE
    return errno.EIO
