"""Bringing large files to this machine in the background, so that their next open can be read by the kernel itself.

Owns which files are brought and how many at a time. Whether a file is kept is the worker's to say (admission). A file is brought
when it is opened a second time, or once a quarter of it was read; while it is read in order, not before that pauses or ends.
Rule of concurrency: one event loop.
"""

import asyncio
import logging
from collections import deque

from alluxio_like.clock import Clock
from alluxio_like.errors import AlluxioLikeError
from alluxio_like.fuse.backend import Backend
from alluxio_like.fuse.handles import BoundedDict
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import Entry, InodeId

log = logging.getLogger(__name__)

_AT_ONCE = 2
"""Files brought at the same time; each has at most FILL_BYTES (client/reading.py) queued with a worker. A guess."""
_WAITING = 256
_READ_FRACTION = 0.25
"""As in worker/core/admission.py. One open that reads here and there brings what it reads and no more (SEMANTICS 9.3)."""
_FEW_BYTES = 64 << 10
"""The kernel asks for more than this at a time of a file that is read in order."""
_PAUSE_S = 1.0
"""A file that is being read in order is brought when that has ended or pauses for so long: brought meanwhile, its bytes would be
written beside the reading, which took from the reader more than half of its rate (decision 0057). A guess."""
_LOOK_S = 0.5
_AGAIN_S = 60.0
"""How long a file that was not kept is left alone. A guess."""
_REMEMBERED = 10_000


class Filler:
    """Brings files one after the other, the first asked for first."""

    def __init__(self, backend: Backend, clock: Clock, metrics: Metrics) -> None:
        self._backend = backend
        self._clock = clock
        self._metrics = metrics
        self._opened: BoundedDict[InodeId, float] = BoundedDict(_REMEMBERED)
        """Files that were opened while they were not wholly local, and until when they are left alone."""
        self._waiting: deque[Entry] = deque()
        self._known: set[InodeId] = set()
        """Files that wait or are being brought."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._read: dict[InodeId, tuple[Entry, float]] = {}
        """Files that are being read in order, and when that was last so."""
        self._pauses: asyncio.Task[None] | None = None
        self._closed = False

    def note_open(self, entry: Entry) -> None:
        """A file was opened that is not wholly local."""
        inode = entry.attr.inode
        if inode in self._opened:
            self._want(entry)
        else:
            self._opened.set(inode, 0.0)

    def leave_alone(self, entry: Entry) -> None:
        """It was just tried in vain to bring this file."""
        self._opened.set(entry.attr.inode, self._clock.monotonic() + _AGAIN_S)

    def note_read(self, entry: Entry, read_bytes: int, last_bytes: int) -> None:
        """So many bytes of it were read through one handle by now, and by its last read."""
        if read_bytes < entry.attr.size * _READ_FRACTION:
            return
        if self._closed:
            return
        if last_bytes <= _FEW_BYTES or read_bytes >= entry.attr.size:
            self._read.pop(entry.attr.inode, None)
            self._want(entry)
        elif entry.attr.inode in self._read or len(self._read) < _WAITING:
            self._read[entry.attr.inode] = (entry, self._clock.monotonic())
            if self._pauses is None:
                self._pauses = asyncio.create_task(self._wait_for_pauses(), name="fill after reading")

    async def _wait_for_pauses(self) -> None:
        try:
            while self._read:
                await asyncio.sleep(_LOOK_S)
                before_s = self._clock.monotonic() - _PAUSE_S
                for inode, (entry, read_s) in list(self._read.items()):
                    if read_s <= before_s:
                        del self._read[inode]
                        self._want(entry)
        finally:
            self._pauses = None

    def _want(self, entry: Entry) -> None:
        inode = entry.attr.inode
        if self._closed or inode in self._known or len(self._waiting) >= _WAITING:
            return
        if (self._opened.lookup(inode) or 0.0) > self._clock.monotonic():
            return
        self._known.add(inode)
        self._waiting.append(entry)
        if len(self._tasks) < _AT_ONCE:
            task = asyncio.create_task(self._run(), name="fill")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while self._waiting:
            entry = self._waiting.popleft()
            inode = entry.attr.inode
            filled = False
            try:
                filled = await self._fill(entry)
            except AlluxioLikeError as error:
                log.info("a file was not brought: %s", error, extra={"file": entry.name})
            except Exception:
                log.exception("a file was not brought", extra={"file": entry.name})
            finally:
                self._known.discard(inode)
                if not filled:
                    self.leave_alone(entry)
            self._metrics.fuse_fills.labels("background", "whole" if filled else "not kept").inc()

    async def _fill(self, entry: Entry) -> bool:
        reader = self._backend.open_file(entry)
        try:
            return await reader.fill_whole(Priority.AHEAD)
        finally:
            await reader.close()

    async def close(self) -> None:
        """End what is under way. Does not raise."""
        self._closed = True
        self._waiting.clear()
        tasks = [*self._tasks, *([] if self._pauses is None else [self._pauses])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
