"""Blank drafts: empty files at a worker of this machine, with inode ids that the master has reserved, for files that are made
without asking either.

Owns the store of them: it is filled ahead of its use, and given back when nobody has made files for a while. Rule of concurrency:
one event loop; only `_fill` and what gives back await.
"""

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from alluxio_like.client.draft_workers import DraftWorkers
from alluxio_like.client.local import LocalCaches
from alluxio_like.errors import AlluxioLikeError, NotFound, Unavailable
from alluxio_like.types import InodeId, WorkerId

_log = logging.getLogger(__name__)

_FIRST, _MOST = 16, 128
"""So many are brought at once, twice as many each time as long as they are used, whenever there are fewer than twice as many.
Guesses: one program makes some hundred files in the time that takes on a busy machine."""
_IDLE_S = 5.0
_PAUSE_S = 1.0
"""After a failure nobody is asked for so long."""
_CALL_S = 10.0


class OpenedDraft(NamedTuple):
    """A draft, open for reading and writing; `fd` is the receiver's. `worker_id`: who keeps it."""

    worker_id: WorkerId
    fd: int


class Blank(NamedTuple):
    """A blank draft, opened as `draft`; it becomes that of a new file with this inode id."""

    inode: InodeId
    draft: OpenedDraft


class BlankPool:
    """See the module. `reserve` asks the master for so many inode ids in a row."""

    def __init__(self, reserve: Callable[[int], Awaitable[InodeId]], workers: DraftWorkers, local: LocalCaches) -> None:
        self._reserve = reserve
        self._workers = workers
        self._local = local
        self._blanks: deque[Blank] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._giving_back: set[asyncio.Task[None]] = set()
        self._not_before_s = 0.0
        self._closed = False
        self._at_once = _FIRST

    def take(self) -> Blank | None:
        """One of them, which is the caller's from then on; None: there is none just now. Does not wait."""
        self.warm()
        return self._blanks.popleft() if self._blanks else None

    async def wait(self) -> None:
        """Until there are some, if they are on their way."""
        if not self._blanks and self._filling is not None:
            await asyncio.wait([self._filling])

    def warm(self) -> None:
        """Some are about to be needed."""
        loop = asyncio.get_running_loop()
        if self._closed:
            return
        if self._idle is not None:
            self._idle.cancel()
        self._idle = loop.call_later(_IDLE_S, self._give_back)
        if len(self._blanks) < 2 * self._at_once and self._filling is None and loop.time() >= self._not_before_s:
            self._filling = asyncio.create_task(self._fill(), name="blank drafts")

    async def close(self) -> None:
        """Give them all back. Does not raise."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
        if self._filling is not None:
            await asyncio.wait([self._filling])
        self._give_back()
        if self._giving_back:
            await asyncio.wait(self._giving_back, timeout=_PAUSE_S)

    async def _fill(self) -> None:
        try:
            worker_id = await self._workers.choose_only()
            if worker_id is None:
                # Which of them has the draft of an inode is not ours to say.
                self._not_before_s = asyncio.get_running_loop().time() + _IDLE_S
                return
            count = self._at_once
            first = await self._reserve(count)
            blank = await self._workers.ask(worker_id, lambda stub: stub.begin_blank(first, count, timeout_s=_CALL_S), wait_s=0.0)
            if not blank.noted:
                self._not_before_s = float("inf")
                _log.info("files are not made ahead of the master: the cache's file system has no extended attributes")
                return
            for inode, place in enumerate(blank.places, first):
                with contextlib.suppress(NotFound, Unavailable):
                    fd = self._local.open_draft(worker_id, place.directory, place.path)
                    self._blanks.append(Blank(InodeId(inode), OpenedDraft(worker_id, fd)))
            self._at_once = min(2 * count, _MOST)
        except AlluxioLikeError as error:
            self._not_before_s = asyncio.get_running_loop().time() + _PAUSE_S
            _log.info("there are no blank drafts: %s", error)
        finally:
            self._filling = None

    def _give_back(self) -> None:
        self._idle = None
        self._at_once = _FIRST
        blanks, self._blanks = self._blanks, deque()
        by_worker: dict[WorkerId, list[InodeId]] = {}
        for blank in blanks:
            os.close(blank.draft.fd)
            by_worker.setdefault(blank.draft.worker_id, []).append(blank.inode)
        for worker_id, inodes in by_worker.items():
            task = asyncio.create_task(self._tell(worker_id, inodes), name="give blank drafts back")
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)

    async def _tell(self, worker_id: WorkerId, inodes: list[InodeId]) -> None:
        with contextlib.suppress(AlluxioLikeError):  # it finds out by itself, too
            await self._workers.ask(worker_id, lambda stub: stub.end_all(inodes, timeout_s=_CALL_S), wait_s=0.0)
