"""Memory that pages of other workers are received into, used again and again.

Owns a few buffers of the largest size. A fresh one costs a page fault for every 4 KiB of it, about a tenth of the time that receiving
into it takes. Rule of concurrency: the event loop only.
"""

from array import array
from collections.abc import Sequence

from alluxio_like.types import PAGE_BYTES

_KEPT = 4
_SMALL_BYTES = 1 << 20


class Buffers:
    """Buffers of up to `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[bytearray] = []

    def take(self, length: int) -> memoryview:
        """`length` bytes, whatever is in them."""
        if not _SMALL_BYTES < length <= self._size:
            return memoryview(bytearray(length))
        return memoryview(self._free.pop() if self._free else bytearray(self._size))[:length]

    def give_back(self, buffer: memoryview) -> None:
        """Nobody looks at it any more."""
        whole = buffer.obj
        if isinstance(whole, bytearray) and len(whole) == self._size and len(self._free) < _KEPT:
            self._free.append(whole)


class Landing:
    """What of a buffer, which begins at a page, has been received: cuts it into runs of whole pages as they are complete."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._received = 0
        self._cut = 0
        self._sums: list[int | None] = []

    @property
    def is_complete(self) -> bool:
        return self._cut == self._length

    def add(self, start: int, length: int, sums: "array[int] | Sequence[int] | None") -> tuple[int, int, Sequence[int]] | None:
        """`length` bytes came at `start`; the run that is complete now, if any: (start, stop, its checksums or none)."""
        if sums is not None and start == len(self._sums) * PAGE_BYTES:
            self._sums += sums
        self._received = start + length
        stop = self._length if self._received == self._length else self._received - self._received % PAGE_BYTES
        if stop <= self._cut:
            return None
        first, self._cut = self._cut, stop
        pages = -(-stop // PAGE_BYTES)
        self._sums += [None] * (pages - len(self._sums))
        known = self._sums[first // PAGE_BYTES : pages]
        return first, stop, [] if None in known else [one for one in known if one is not None]
