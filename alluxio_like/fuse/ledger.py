"""Which backing ids a daemon has open, in memory that outlives it.

The kernel keeps a registered backing file until its id is closed or the mount ends, so the ids of a daemon that was killed must
be closed by somebody else, or the worker could never evict those files. The daemon writes each id into a piece of shared memory
that the
holder keeps; the holder reads what is left in it. Standard library only. A Ledger is one thread's; `list_left` is for when its
writer is dead.

    word 0    MAGIC                            word 2    1 while an id is being registered
    word 1    the layout's number              word 3    the last id that was written down
    from 4    ids, 0 for a free place
"""

import mmap
import os

_MAGIC = 0x42414B47
_LAYOUT = 1
_HEAD = 4
_WORD = 4
_FIRST_BYTES = 4096


def make_memory() -> int:
    """A descriptor of fresh shared memory for a Ledger."""
    fd = os.memfd_create("backing-ids", os.MFD_CLOEXEC)
    os.ftruncate(fd, _FIRST_BYTES)
    return fd


class Ledger:
    """The writing side. `close` lets go of the memory, which keeps what was written."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._words = memoryview(self._map).cast("I")
        self._words[0], self._words[1], self._words[2] = _MAGIC, _LAYOUT, 0
        self._used = _HEAD

    def begin(self) -> None:
        """An id is about to be registered: from here to `add` or `abandon` only the kernel may know it."""
        self._words[2] = 1

    def abandon(self) -> None:
        """Nothing was registered."""
        self._words[2] = 0

    def add(self, backing_id: int) -> None:
        """An id was registered."""
        if self._free:
            place = self._free.pop()
        else:
            place = self._used
            if place == len(self._words):
                self._grow()
            self._used += 1
        words = self._words
        words[place] = backing_id
        words[3] = backing_id
        words[2] = 0
        self._places[backing_id] = place

    def remove(self, backing_id: int) -> None:
        """An id was closed."""
        place = self._places.pop(backing_id, 0)
        if place:
            self._words[place] = 0
            self._free.append(place)

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Let go of the memory; the descriptor is closed too."""
        if self._fd >= 0:
            self._words.release()
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    def _grow(self) -> None:
        size = 2 * len(self._map)
        os.ftruncate(self._fd, size)
        self._words.release()
        self._map.close()
        self._map = mmap.mmap(self._fd, size)
        self._words = memoryview(self._map).cast("I")


def list_left(fd: int) -> tuple[list[int], int | None]:
    """The ids that a dead writer has left open, and, if it died while it registered one, the last id before that (else None)."""
    size = os.fstat(fd).st_size // _WORD * _WORD
    words = memoryview(os.pread(fd, size, 0)).cast("I")
    if len(words) <= _HEAD or words[0] != _MAGIC or words[1] != _LAYOUT:
        return [], None
    return [word for word in words[_HEAD:] if word], words[3] if words[2] else None
