"""Brings a directory's names by the page when many of them are asked for one by one.

A training job opens the files of a directory in random order, each of them once an epoch: one call to the master for each would
bound it to some 500 files a second on two cores (measured, master and daemon together 1.6 ms of CPU a call), where a page of a
thousand names costs about as much as twenty lookups. Owns the counts of misses and the one listing under way; what a listing
says is remembered by whoever lists. Rule of concurrency: one event loop; `note_miss` does not await.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from alluxio_like.errors import AlluxioLikeError
from alluxio_like.rpc.messages import DirPage
from alluxio_like.types import InodeId

_log = logging.getLogger(__name__)

MISSES = 16
"""Names of one directory asked for one by one before it is listed. A guess."""
MAX_ENTRIES = 20_000
ENTRIES_A_MISS = 50
"""Of a directory so many names are listed, and so many more for each further name that is asked for: listing a page costs what
twenty lookups cost, and whoever opens ten files of a million shall not pay for all."""
_REMEMBERED_DIRECTORIES = 10_000


@dataclass(slots=True)
class _Begun:
    """A listing that stopped for the time being."""

    cursor: bytes
    count: int
    misses: int = 0


class NamePrefetch:
    """One per client. `list_page` lists one page of a directory and remembers its names."""

    def __init__(self, list_page: Callable[[InodeId, bytes], Awaitable[DirPage]]) -> None:
        self._list_page = list_page
        self._misses: dict[InodeId, int] = {}
        self._begun: dict[InodeId, _Begun] = {}
        self._task: asyncio.Task[None] | None = None

    def note_miss(self, directory: InodeId) -> None:
        """The master had to be asked for one name of a directory."""
        begun = self._begun.get(directory)
        if begun is not None:
            begun.misses += 1
            if self._task is None and begun.count < MAX_ENTRIES + ENTRIES_A_MISS * begun.misses:
                self._start(directory, begun)
            return
        if self._task is not None:
            return
        misses = self._misses.get(directory, 0) + 1
        if misses < MISSES:
            if len(self._misses) >= _REMEMBERED_DIRECTORIES:
                self._misses.clear()
            self._misses[directory] = misses
            return
        self._misses.pop(directory, None)
        self._start(directory, _Begun(b"", 0))

    def _start(self, directory: InodeId, begun: _Begun) -> None:
        self._task = asyncio.create_task(self._run(directory, begun), name=f"names of {directory}")

    async def _run(self, directory: InodeId, begun: _Begun) -> None:
        try:
            while True:
                page = await self._list_page(directory, begun.cursor)
                begun.count += len(page.entries)
                begun.cursor = page.next_cursor
                if not begun.cursor:
                    self._begun.pop(directory, None)
                    return
                if begun.count >= MAX_ENTRIES + ENTRIES_A_MISS * begun.misses:
                    if len(self._begun) >= _REMEMBERED_DIRECTORIES:
                        self._begun.clear()
                    self._begun[directory] = begun
                    return
        except AlluxioLikeError as error:
            # Whoever needs a name of it asks for that name and hears of it.
            _log.debug("names of a directory were not listed ahead: %s", error)
            self._begun.pop(directory, None)
        finally:
            self._task = None

    async def close(self) -> None:
        """Stop the listing under way."""
        task = self._task
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
