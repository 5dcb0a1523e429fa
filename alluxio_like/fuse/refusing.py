"""Answers requests when no daemon does: with an error, so that whoever waits for one can end.

Standard library and the wire's layouts only: the holder uses it. The descriptor must not block. One thread.
"""

import errno
import mmap
import os

from alluxio_like.fuse import wire
from alluxio_like.fuse.device import BUFFER_BYTES

_HARMLESS = frozenset({wire.RELEASE, wire.RELEASEDIR})
"""They change nothing that a later daemon would miss. FLUSH does: it comes of files that are written, and its answer says that
what was written is the file's content."""
_BURST = 256


class Refuser:
    """Reads requests and refuses them. Its buffer is memory that is never touched beyond what requests are long."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)
        self.count = 0

    def work(self) -> None:
        """Refuse what waits, up to a burst of it. Raises OSError (ENODEV, ECONNABORTED) when the mount is gone."""
        for _ in range(_BURST):
            try:
                size = os.readv(self._fd, [self._buffer])
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                raise
            if size < wire.IN_HEADER.size:
                continue
            _, opcode, unique, *_ = wire.IN_HEADER.unpack_from(self._buffer)
            if opcode in wire.UNANSWERED:
                continue
            self.count += 1
            answer = wire.pack_reply(unique) if opcode in _HARMLESS else wire.pack_error(unique, errno.EIO)
            try:
                os.write(self._fd, answer)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EINTR):
                    raise

    def close(self) -> None:
        self._buffer.close()
