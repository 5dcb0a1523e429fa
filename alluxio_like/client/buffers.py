"""Memory for pieces of files on their way to this process, used again and again.

A piece of 8 MiB in fresh memory costs a page fault for each 4 KiB of it, which is more than receiving it. Owns the memory; knows
nothing of what is in it: what is taken holds whatever was there before. Its callers are flights (fetching.py). Not thread-safe:
one event loop.
"""

import mmap
import sys

BUFFER_BYTES = 8 << 20
"""What is kept to be used again; smaller pieces take part of one. A piece of read-ahead (readahead.py)."""
_LEAST_BYTES = 1 << 20
"""Less than this is cheaper got anew."""
_MOST_KEPT = 16
"""Together 128 MiB: how far one reader runs ahead."""


def _count_references(kept: list[mmap.mmap], number: int) -> int:
    return sys.getrefcount(kept[number])


_UNSEEN = _count_references([mmap.mmap(-1, mmap.PAGESIZE)], 0)
"""Of a buffer that nobody has a view of: the list's, and what the interpreter adds while it counts, which is not the same in all
releases of it."""


class Buffers:
    """Memory is free again once the last view of it, and of any slice of it, has gone: nobody says so, and nobody can say it too
    early."""

    def __init__(self) -> None:
        self._kept: list[mmap.mmap] = []

    @property
    def count(self) -> int:
        """How many are kept, whether or not somebody sees them."""
        return len(self._kept)

    def take(self, size: int) -> memoryview:
        """`size` bytes that nobody else has a view of."""
        if not _LEAST_BYTES <= size <= BUFFER_BYTES:
            return memoryview(bytearray(size))
        # The first that is free: those that were used last are still in the processor's caches.
        for number in range(len(self._kept)):
            if _count_references(self._kept, number) == _UNSEEN:
                return memoryview(self._kept[number])[:size]
        memory = mmap.mmap(-1, BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if len(self._kept) < _MOST_KEPT:
            self._kept.append(memory)
        return memoryview(memory)[:size]

    def trim(self) -> None:
        """Give back to the system what nobody has a view of."""
        for number in reversed(range(len(self._kept))):
            if _count_references(self._kept, number) == _UNSEEN:
                del self._kept[number]
