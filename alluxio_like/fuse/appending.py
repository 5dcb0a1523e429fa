"""Appends that go through this daemon, each done once, although the kernel sends again what a killed daemon has not answered.

Owns where an append goes: to the end of the file as it is, since others on this machine append to the same one and the kernel may
not know of it. What is sent again goes where it went before, if it did. Between two mounts that append to one file at the same
instant nothing decides; of one mount the kernel has one append of a file under way. Event loop only, without an await inside.
"""

import os
from typing import NamedTuple, Protocol

from alluxio_like.fuse import wire
from alluxio_like.fuse.ledger import Append


class AppendLog(Protocol):
    """What outlives the daemon (device.Device)."""

    def note_append(self, append: Append) -> None: ...

    def lookup_append(self, unique: int) -> Append | None: ...


class Place(NamedTuple):
    """Where an append goes; `written`: so many bytes of it are there already, and that is its answer (-1: it is to be done)."""

    offset: int
    written: int


class Appends:
    """Those of one mount."""

    def __init__(self, log: AppendLog) -> None:
        self._log = log

    def begin(self, unique: int, inode: int, fd: int, data: memoryview | bytes) -> Place:
        """What is to be done for a request; `fd` can be read. Follow it with `end` when it has been written. Raises OSError."""
        key = unique & ~wire.UNIQUE_RESEND
        if unique & wire.UNIQUE_RESEND and (known := self._log.lookup_append(key)) is not None:
            if known.written >= 0:
                return Place(known.offset, known.written)
            if _is_begun(fd, known.offset, data):
                # As far as it came it is there; what is written once more is the same.
                return Place(known.offset, -1)
        offset = os.fstat(fd).st_size
        self._log.note_append(Append(inode, key, offset, -1))
        return Place(offset, -1)

    def end(self, unique: int, inode: int, offset: int, count: int) -> None:
        """So many bytes were written."""
        self._log.note_append(Append(inode, unique & ~wire.UNIQUE_RESEND, offset, count))


def _is_begun(fd: int, offset: int, data: memoryview | bytes) -> bool:
    """Whether what a file has from there on is what was to be appended, or its beginning and no more."""
    there = os.pread(fd, len(data), offset)
    return os.fstat(fd).st_size >= offset and there == data[: len(there)]
