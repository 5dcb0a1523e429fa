"""Having what is asked for in memory before the event loop reads it, where the namespace is larger than its memory.

Owns whether reads have waited for the disk lately, and what is to be read ahead: the names of all calls that are under way, many
at a time, so that the disk reads for all of them at once. A read that waits on the loop holds up every client, so after one that
did, the next ones are read ahead, as long as enough of them were not in memory (WORTH). What is brought here is a hint: the read
itself runs on the loop as ever, in one step with what it grants, whatever has changed meanwhile.

Rule of concurrency: event loop alone. The disk is told on the loop what to begin with, which does not wait, and waited for in
MetaStore's thread for that, which does hardly anything else: a thread of Python that read for itself would have the loop
wait for its turn again and again.
"""

import asyncio
import logging
import resource
from collections.abc import Sequence

from alluxio_like import errors
from alluxio_like.master.core import ahead
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.types import InodeId

log = logging.getLogger(__name__)

WORTH = 8
"""Of so many names one page at least must come from the disk: then reading ahead takes less time than waiting (measured: 50 µs a
name; 84 µs a page on a fast disk, some times that on others)."""
MOST_LEFT = 64
"""So many names are read ahead in vain at most, once all are in memory."""
MOST = 64
"""Names brought at once: some milliseconds, for which the next ones wait."""


class ReadAhead:
    """See the module."""

    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta
        self._left = 0
        self._faults = _count_faults()
        self._waiting: list[tuple[tuple[InodeId, str], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether reads have waited for the disk lately: then bring first what is to be read."""
        return self._left > 0

    def note_read(self) -> None:
        """The loop has read something, and may have waited for the disk."""
        faults = _count_faults()
        if faults != self._faults:
            self._earn(faults - self._faults)
            self._faults = faults

    async def bring_name(self, parent: InodeId, name: str) -> None:
        """A name that is to be looked up; an empty one: the inode itself."""
        asked = asyncio.get_running_loop().create_future()
        self._waiting.append(((parent, name), asked))
        if self._task is None:
            self._task = asyncio.create_task(self._bring_waiting(), name="read-ahead")
        await asked

    async def bring_page(self, directory: InodeId, cursor: bytes, limit: int) -> None:
        """A page of a directory that is to be listed."""

        def look() -> None:
            with self._meta.read() as txn:
                ahead.bring_page(txn, directory, cursor, limit)

        self._left -= 1
        try:
            await self._meta.wait_aside(look)
        except errors.AlluxioLikeError:
            return  # the read itself will say

    async def _bring_waiting(self) -> None:
        try:
            while self._waiting:
                # Those whose names are here ask for others first, so that all are brought together.
                await asyncio.sleep(0)
                batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                try:
                    await self._bring([place for place, _ in batch])
                finally:
                    for _, asked in batch:
                        if not asked.done():
                            asked.set_result(None)
        finally:
            self._task = None

    async def _bring(self, asked: list[tuple[InodeId, str]]) -> None:
        missing = 0
        try:
            for list_keys in (ahead.list_first_keys, ahead.list_next_keys):
                with self._meta.read() as txn:
                    keys: Sequence[bytes] = list_keys(txn, asked)
                while keys and (begun := self._meta.read_ahead(keys)).wait is not None:
                    missing += begun.missing
                    await self._meta.wait_aside(begun.wait)
                    keys = begun.again
        except errors.AlluxioLikeError:
            pass  # the read itself will say
        except Exception:
            log.exception("reading ahead failed")
        self._left -= len(asked)
        self._earn(missing)

    def _earn(self, missing: int) -> None:
        self._left = min(MOST_LEFT, max(0, self._left) + WORTH * missing)


def _count_faults() -> int:
    """How often this thread has waited for a page from a disk."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
