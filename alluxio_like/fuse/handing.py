"""What a daemon and the processes that read for it say to each other: fixed records over a unix socket that keeps their bounds.

Owns the form of the records. A daemon and its readers are of one release and die together, so the form may change with any.
Standard library only. Pure.

    daemon → reader    serve    first: what READs are answered through; a descriptor of the device comes with it
                       open     a slot, which a cache file gets; its descriptor comes with it
                       read     a READ's `unique`, a slot, the range, and the pages to verify first with their checksums
                       forget   a slot is free again
    reader → daemon    done     first: it listens; then for each READ its `unique`, and whether it was answered: if not, the
                                daemon does it
"""

import struct
from typing import NamedTuple

SERVE, OPEN, READ, FORGET = range(4)

_RECORD = struct.Struct("<BBHIIQQQQQ")
_DONE = struct.Struct("<Q?")
RECORD_BYTES = _RECORD.size
DONE_BYTES = _DONE.size
SLOTS = 500
"""Files that a reader has open at a time; below what a process may have without being allowed more (1024)."""
PAGES = 2
"""That a READ touches at most: none is longer than a page."""


class Record(NamedTuple):
    """What a reader is told. READ: `length` bytes from `offset` on of a file of `size` bytes, read with the flag `nowait`.

    `sums`: the checksum of the first page that it touches and of the next, None for one that need not be verified.
    """

    kind: int
    slot: int = 0
    unique: int = 0
    offset: int = 0
    length: int = 0
    size: int = 0
    nowait: int = 0
    sums: tuple[int | None, ...] = ()

    def pack(self) -> bytes:
        mask, sums = 0, [0] * PAGES
        for place, checksum in enumerate(self.sums):
            if checksum is not None:
                mask |= 1 << place
                sums[place] = checksum
        return _RECORD.pack(self.kind, mask, self.slot, self.length, self.nowait, self.unique, self.offset, self.size, *sums)

    @classmethod
    def unpack(cls, data: bytes) -> "Record":
        kind, mask, slot, length, nowait, unique, offset, size, *sums = _RECORD.unpack(data)
        shown = tuple(value if mask >> place & 1 else None for place, value in enumerate(sums))
        return cls(kind, slot, unique, offset, length, size, nowait, shown)


def pack_done(unique: int, *, answered: bool) -> bytes:
    """What a reader says of a READ."""
    return _DONE.pack(unique, answered)


def unpack_done(data: bytes) -> tuple[int, bool]:
    """`unique`, and whether it was answered."""
    unique, answered = _DONE.unpack(data)
    return unique, answered
