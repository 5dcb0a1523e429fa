"""The slow scrubber: reads every cached page again and drops those that do not match their checksum.

Owns the pace and the walk. Verifying and dropping is the cache's. Rule of concurrency: one task; disks are asked in the given
queue's threads, one block at a time.
"""

import asyncio
import logging
from collections.abc import Iterator

from alluxio_like import errors
from alluxio_like.cache.store import CacheStore, FileInfo
from alluxio_like.metrics import Metrics
from alluxio_like.types import PAGE_BYTES, PAGES_PER_BLOCK, PageRange, get_page_count
from alluxio_like.worker.disk import DiskQueue

_LOG = logging.getLogger(__name__)
_BATCH_FILES = 256


class Scrubber:
    """Walks all files again and again at `bytes_s`, with at least `pause_s` between two rounds."""

    def __init__(
        self, store: CacheStore, disk: DiskQueue, metrics: Metrics, *, bytes_s: float = 16 << 20, pause_s: float = 3600.0
    ) -> None:
        self._store = store
        self._disk = disk
        self._metrics = metrics
        self._bytes_s = bytes_s
        self._pause_s = pause_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._pause_s)
            try:
                await self.scrub_all()
            except errors.AlluxioLikeError as error:
                _LOG.warning("a round of scrubbing ended early: %s", error)

    async def scrub_all(self) -> int:
        """One round; returns how many bad pages were dropped."""
        bad = 0
        files = self._store.iter_files()
        while batch := await self._disk.submit(lambda: _take(files)):
            for info in batch:
                bad += await self._scrub(info)
        return bad

    async def _scrub(self, info: FileInfo) -> int:
        bad = 0
        count = get_page_count(info.size)
        for first in range(0, count, PAGES_PER_BLOCK):
            pages = PageRange(first, min(count, first + PAGES_PER_BLOCK))
            dropped, size = await self._disk.submit(lambda pages=pages: self._verify(info, pages))  # type: ignore[misc]
            if dropped:
                bad += dropped
                self._metrics.corrupt_pages.inc(dropped)
                _LOG.warning("dropped %d pages of file %s that did not match their checksum", dropped, info.file_id)
            self._metrics.scrubbed_bytes.inc(size)
            await asyncio.sleep(size / self._bytes_s)
        return bad

    def _verify(self, info: FileInfo, pages: PageRange) -> tuple[int, int]:
        """In a disk thread: bad pages dropped, bytes read."""
        cached = self._store.lookup(info.file_id)
        if cached is None:
            return 0, 0
        try:
            here = len(pages) - sum(len(run) for run in cached.missing_pages(pages))
            return len(cached.verify(pages)) if here else 0, here * PAGE_BYTES
        except errors.NotFound:
            return 0, 0


def _take(files: Iterator[FileInfo]) -> list[FileInfo]:
    """The next files of the walk, in a disk thread."""
    batch: list[FileInfo] = []
    for info in files:
        batch.append(info)
        if len(batch) == _BATCH_FILES:
            break
    return batch
