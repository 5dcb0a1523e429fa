"""The slow scrubber: reads every cached page again within a period, and drops those that do not match their checksum.

Owns the pace and the walks, one for each directory. A round is spread over nine tenths of the period by what the directory holds
at its
start, and takes up where it was after a restart of the worker: a worker that restarts each night would never see its last files
otherwise. Verifying and dropping is the cache's, fetching again the repairer's. Rule of concurrency: one task a directory; disks
are asked in the given queue's threads, a few pages at a time.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from alluxio_like import errors
from alluxio_like.cache.store import CacheStore, FileInfo, ScrubMark
from alluxio_like.clock import Clock
from alluxio_like.metrics import Metrics
from alluxio_like.types import PAGE_BYTES, FileId, PageRange, get_page_count
from alluxio_like.worker.disk import DiskQueue

_LOG = logging.getLogger(__name__)
_BATCH_FILES = 256
_STEP_PAGES = 16
"""Pages verified in one go: what others in the same queue wait for, at most."""
_FILE_COST_BYTES = 64 << 10
"""What opening a file counts for, in bytes read. A guess."""
_SHARE = 0.9
"""Of the period, for one round: the rest is for what was added meanwhile and for falling behind."""
_MOST_BYTES_S = 256 << 20
"""Never faster, however far behind. A guess: a tenth of an NVMe disk."""
_MARK_S = 60.0
_SHORTEST_SLEEP_S = 0.002


class OnBad(Protocol):
    """Takes note of pages that were dropped."""

    def __call__(self, file_id: FileId, pages: Sequence[int]) -> None: ...


@dataclass(slots=True)
class _Round:
    """One walk over a directory. `done` of `total` are bytes as they are counted here."""

    mark: ScrubMark
    total: float
    done: float = 0.0


class Scrubber:
    """Walks all files again and again, all of them within `period_s`."""

    def __init__(
        self, store: CacheStore, disk: DiskQueue, metrics: Metrics, clock: Clock, *, period_s: float, on_bad: OnBad
    ) -> None:
        self._store = store
        self._disk = disk
        self._metrics = metrics
        self._clock = clock
        self._period_s = period_s
        self._on_bad = on_bad

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(len(self._store.directory_fds)):
                group.create_task(self._run(number), name=f"scrubber {number}")

    async def _run(self, number: int) -> None:
        while True:
            try:
                await self._scrub_directory(number)
            except errors.DiskError:
                # A directory that has failed is looked at no more until the worker starts anew.
                return
            except errors.AlluxioLikeError as error:
                _LOG.warning("a round of scrubbing ended early: %s", error)
            except Exception:  # noqa: BLE001
                # Nobody would notice a scrubber that is gone.
                _LOG.exception("a round of scrubbing failed")
            else:
                continue
            await asyncio.sleep(min(60.0, self._period_s / 10))

    async def _scrub_directory(self, number: int) -> None:
        """What is left of one round, then the wait for the next one's time."""
        current = await self._disk.submit(lambda: self._begin(number))
        marked = self._clock.monotonic()
        files = self._store.iter_files(number, after=current.mark.last)
        while batch := await self._disk.submit(lambda: _take(files)):
            for info in batch:
                await self._scrub_file(info, current, number)
                current.mark = replace(current.mark, last=info.file_id, done_bytes=int(current.done))
                if self._clock.monotonic() - marked > _MARK_S:
                    marked = self._clock.monotonic()
                    await self._disk.submit(lambda: self._store.set_scrub_mark(number, current.mark))
        late_s = self._get_age(current.mark) - self._period_s
        if late_s > 0:
            _LOG.warning(
                "scrubbing directory %d took %.0f s longer than its period of %.0f s: it holds more than can be "
                "read in that time",
                number, late_s, self._period_s,
            )  # fmt: skip
        self._metrics.scrub_progress.labels(self._get_name(number)).set(1.0)
        # The next round begins when this one's share is over; at once it would read faster than it has to.
        await asyncio.sleep(max(_SHORTEST_SLEEP_S, self._period_s * _SHARE - self._get_age(current.mark)))
        await self._disk.submit(lambda: self._store.set_scrub_mark(number, None))

    def _begin(self, number: int) -> _Round:
        """In a disk thread. The round under way, else a new one."""
        usage = self._store.get_usage()[number]
        mark = self._store.get_scrub_mark(number)
        if mark is None or mark.started_s > self._now_s() or self._get_age(mark) > 2 * self._period_s:
            mark = ScrubMark(self._now_s(), None, 0)
            self._store.set_scrub_mark(number, mark)
        total = usage.used_bytes + usage.file_count * _FILE_COST_BYTES
        return _Round(mark, max(total, mark.done_bytes, 1), mark.done_bytes)

    async def _scrub_file(self, info: FileInfo, current: _Round, number: int) -> None:
        count = get_page_count(info.size)
        bad: list[int] = []
        current.done += _FILE_COST_BYTES
        for first in range(0, count, _STEP_PAGES):
            pages = PageRange(first, min(count, first + _STEP_PAGES))
            dropped, size = await self._disk.submit(lambda pages=pages: self._verify(info, pages))  # type: ignore[misc]
            bad += dropped
            current.done += size
            self._metrics.scrubbed_bytes.inc(size)
            await self._keep_pace(current, size)
        if bad:
            await self._disk.submit(self._store.flush)
            self._on_bad(info.file_id, bad)
        self._metrics.scrub_progress.labels(self._get_name(number)).set(min(1.0, current.done / current.total))

    async def _keep_pace(self, current: _Round, size: int) -> None:
        """Wait until so much of the round's time has passed as of its bytes are done."""
        ahead_s = current.done / current.total * self._period_s * _SHARE - self._get_age(current.mark)
        pause_s = max(min(ahead_s, self._period_s), size / _MOST_BYTES_S)
        if pause_s > _SHORTEST_SLEEP_S:
            await asyncio.sleep(pause_s)

    def _verify(self, info: FileInfo, pages: PageRange) -> tuple[list[int], int]:
        """In a disk thread: bad pages, dropped by now, and bytes read."""
        cached = self._store.lookup(info.file_id)
        if cached is None:
            return [], 0
        try:
            here = len(pages) - sum(len(run) for run in cached.missing_pages(pages))
            return cached.verify(pages) if here else [], min(here * PAGE_BYTES, info.size)
        except (errors.NotFound, errors.Unavailable):
            return [], 0

    def _get_name(self, number: int) -> str:
        return str(self._store.get_usage()[number].path)

    def _now_s(self) -> float:
        return self._clock.now_ns() / 1e9

    def _get_age(self, mark: ScrubMark) -> float:
        return self._now_s() - mark.started_s


def _take(files: Iterator[FileInfo]) -> list[FileInfo]:
    """The next files of the walk, in a disk thread."""
    batch: list[FileInfo] = []
    for info in files:
        batch.append(info)
        if len(batch) == _BATCH_FILES:
            break
    return batch
