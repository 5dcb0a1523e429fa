"""Small files of other machines that were asked for before they are opened.

Whoever asks for them believes that they are about to be: the bytes travel meanwhile. Owns the readers that nobody has opened yet,
and lets go of those that nobody opens. Does not know why somebody believes it (fuse/habits.py does). Their memory is counted as
that of other readers, and given back to those first where it is short (far.py).

Rule of concurrency: one event loop; no method awaits or raises.
"""

import asyncio
from collections.abc import Callable

from alluxio_like.client.far import FarReader
from alluxio_like.types import Entry, InodeId

_MOST = 32
"""Files at a time; those asked for longest ago go first. A guess."""
_KEEP_S = 1.0
"""How long an open may let one wait for it. A guess."""


class Expected:
    """By inode. `begin_far` has a file asked for, if it is one to be read so; else it gives None."""

    def __init__(self, begin_far: Callable[[Entry], FarReader | None]) -> None:
        self._begin_far = begin_far
        self._readers: dict[InodeId, tuple[FarReader, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._readers)

    def begin(self, entry: Entry) -> None:
        """A file is about to be opened."""
        inode = entry.attr.inode
        reader = None if inode in self._readers else self._begin_far(entry)
        if reader is None:
            return
        if len(self._readers) >= _MOST:
            self._drop(next(iter(self._readers)))
        loop = asyncio.get_running_loop()
        self._readers[inode] = reader, loop.time() + _KEEP_S
        if self._timer is None:
            self._timer = loop.call_later(_KEEP_S, self._sweep)

    def take(self, entry: Entry) -> FarReader | None:
        """The reader of a file that is opened now, the caller's from now on. None: this content was not asked for, or it does not
        come."""
        found = self._readers.get(entry.attr.inode)
        if found is None:
            return None
        reader = found[0]
        if reader.ref != entry.ref or not reader.is_of_use:
            self._drop(entry.attr.inode)
            return None
        del self._readers[entry.attr.inode]
        return reader

    def close(self) -> None:
        """Let go of all. May be called twice."""
        for inode in list(self._readers):
            self._drop(inode)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self, inode: InodeId) -> None:
        # Nobody has read by it: there is nothing to be awaited.
        self._readers.pop(inode)[0].begin_close()

    def _sweep(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for inode, (_, until_s) in list(self._readers.items()):
            if until_s > loop.time():
                self._timer = loop.call_at(until_s, self._sweep)
                return
            self._drop(inode)
