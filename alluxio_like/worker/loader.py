"""Loads files ahead of use and says of every one how it ended; asks the index and the disk whether files are there.

Owns how a batch of files is spread over fetches, a job's bandwidth on this worker, and the counting. Fetching is the fetcher's.
Rule of concurrency: one event loop; a fixed number of tasks per batch, whatever the number of files; disks are asked in threads.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile
from alluxio_like.cache.store import CacheStore
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import CheckResult, FileResult, LoadFile, LoadProgress
from alluxio_like.types import PAGE_BYTES, PAGES_PER_BLOCK, FileId, FileRef, JobId, PageRange, get_page_count
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.evictor import Evictor
from alluxio_like.worker.fetcher import Fetcher

_REPORT_S = 0.05
"""Results are gathered for so long before they are sent: thousands of small files a second share a few messages. A guess."""
_SKIPS_PER_STEP = 64
"""Files that were there already pass in steps of so many between two looks at everything else."""
_CHECKS_PER_JOB = 64
_SPARE_TASKS = 4
"""Tasks beyond the store's slots: they write to the disk while the others' requests are under way."""
_BURST_S = 0.25
_REMEMBERED_FILES = 65_536
"""Files that jobs lately found missing here: more than a master has under way, so that the next one can ask for them again. They
take some 250 bytes each."""


@dataclass(slots=True, eq=False)
class _Pace:
    """A job's share of bandwidth on this worker; `bytes_s` 0: no limit."""

    bytes_s: float = 0.0
    tokens: float = 0.0
    at: float = 0.0
    users: int = 0


@dataclass(slots=True, eq=False)
class _Progress:
    """One file of a batch."""

    file: LoadFile
    left: int = 0
    fetched: bool = False
    error: errors.AlluxioLikeError | None = None


@dataclass(slots=True, eq=False)
class _Batch:
    """What happened since the last message."""

    job: JobId
    pieces: Iterator[tuple[_Progress, PageRange] | None]
    loaded: int = 0
    skipped: int = 0
    requests: int = 0
    results: list[FileResult] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> LoadProgress | None:
        """A message of what happened, None when nothing did."""
        self.changed.clear()
        if not (self.loaded or self.skipped or self.requests or self.results):
            return None
        message = LoadProgress(self.loaded, self.skipped, self.requests, tuple(self.results))
        self.loaded = self.skipped = self.requests = 0
        self.results = []
        return message

    def end_file(self, progress: _Progress) -> None:
        """A file has ended, well or not."""
        file_id, error = progress.file.ref.file_id, progress.error
        if error is None:
            self.results.append(FileResult(file_id, skipped=not progress.fetched))
        else:
            self.results.append(FileResult(file_id, code=error.code, message=str(error)))
        self.changed.set()


class Loader:
    """One per worker. `slots` is how many fetches one batch keeps under way."""

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        store: CacheStore,
        evictor: Evictor,
        disk: DiskQueue,
        slots: int,
        max_request_bytes: int,
        monotonic: Callable[[], float],
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._fetcher = fetcher
        self._store = store
        self._evictor = evictor
        self._disk = disk
        self._tasks = slots + _SPARE_TASKS
        self._piece_pages = max(1, max_request_bytes // PAGE_BYTES)
        self._monotonic = monotonic
        self._paces: dict[str, _Pace] = {}
        self._found_missing: dict[tuple[str, FileId, tuple[int, ...]], None] = {}
        """What a job asked for that was not here then, oldest first: brought meanwhile, it was not there before the job."""

    async def load(self, job_id: str, files: Sequence[LoadFile], bandwidth_bytes_s: float) -> AsyncIterator[LoadProgress]:
        """Load files or blocks of them; every file's result comes once. Leaving the iteration stops what is not yet under way."""
        pace = self._paces.setdefault(job_id, _Pace(at=self._monotonic()))
        pace.users += 1
        pace.bytes_s = bandwidth_bytes_s
        batch = _Batch(JobId(job_id), iter(()))
        batch.pieces = self._iter_pieces(batch, files)
        count = min(
            self._tasks, max(1, sum(-(-max(f.ref.size, 1) // (self._piece_pages * PAGE_BYTES)) for f in files[: self._tasks]))
        )
        tasks = [asyncio.create_task(self._work(batch, pace), name=f"load {job_id}/{n}") for n in range(count)]
        for task in tasks:
            # However it ends: nobody waits for a word from one that broke.
            task.add_done_callback(lambda _: batch.changed.set())
        try:
            while working := [task for task in tasks if not task.done()]:
                await batch.changed.wait()
                await asyncio.wait(working, timeout=_REPORT_S)
                if (message := batch.take()) is not None:
                    yield message
            for task in tasks:
                task.result()
            if (message := batch.take()) is not None:
                yield message
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            pace.users -= 1
            if not pace.users:
                self._paces.pop(job_id, None)

    async def check(self, files: Sequence[LoadFile], *, verify: bool) -> AsyncIterator[CheckResult]:
        """What is missing of each file, asked of the index, after a commit, and of the disk; `verify` reads and checks every
        page."""
        await self._disk.submit(self._store.flush)
        step = 1 if verify else _CHECKS_PER_JOB
        for start in range(0, len(files), step):
            part = files[start : start + step]
            for result in await self._disk.submit(lambda part=part: [self._check(file, verify) for file in part]):  # type: ignore[misc]
                yield result

    # -- loading -----------------------------------------------------------------------------------------------------------

    def _iter_pieces(self, batch: _Batch, files: Sequence[LoadFile]) -> Iterator[tuple[_Progress, PageRange] | None]:
        """The requests to make, in the order of the files; None now and then where nothing needs one. Ends files that are
        here."""
        skipped = 0
        for file in files:
            progress = _Progress(file)
            pieces: list[PageRange] = []
            try:
                pieces = self._choose_pieces(batch, file)
            except errors.AlluxioLikeError as error:
                # The index of its directory failed just now; the next try finds the file nowhere and loads it again.
                progress.error = error
            progress.left = len(pieces)
            key = batch.job, file.ref.file_id, file.blocks
            if pieces:
                self._found_missing[key] = None
                if len(self._found_missing) > _REMEMBERED_FILES:
                    del self._found_missing[next(iter(self._found_missing))]
            else:
                progress.fetched = key in self._found_missing
                batch.end_file(progress)
                skipped += 1
                if skipped % _SKIPS_PER_STEP == 0:
                    yield None
            for piece in pieces:
                yield progress, piece

    def _choose_pieces(self, batch: _Batch, file: LoadFile) -> list[PageRange]:
        """What is missing of a file, in pieces of one request each; counts what is there. Raises DiskError."""
        cached = self._store.lookup_content(file.ref)
        if cached is not None:
            self._evictor.record_loaded(cached, batch.job)
        pieces: list[PageRange] = []
        for pages in _get_wanted(file):
            missing = cached.missing_pages(pages) if cached is not None else [pages] if len(pages) else []
            if cached is not None and cached.has_suspects(pages):
                missing = [pages]
            gone = sum(_get_bytes(file.ref, run) for run in missing)
            batch.skipped += _get_bytes(file.ref, pages) - gone
            for run in missing:
                pieces.extend(self._split(run))
        return pieces

    def _split(self, pages: PageRange) -> Iterator[PageRange]:
        """Pieces of one request each, ending on multiples of a request's size."""
        first = pages.first
        while first < pages.stop:
            stop = min(pages.stop, first - first % self._piece_pages + self._piece_pages)
            yield PageRange(first, stop)
            first = stop

    async def _work(self, batch: _Batch, pace: _Pace) -> None:
        for item in batch.pieces:
            if item is None:
                await asyncio.sleep(0)
                continue
            progress, pages = item
            if progress.error is None:
                await self._bring(batch, pace, progress, pages)
            progress.left -= 1
            if progress.left == 0:
                batch.end_file(progress)

    async def _bring(self, batch: _Batch, pace: _Pace, progress: _Progress, pages: PageRange) -> None:
        """One piece of a file; a failure is the file's."""
        file = progress.file
        size = _get_bytes(file.ref, pages)
        try:
            await self._pay(pace, size)
            # A source that is still fetching it does so for both: it is asked not only for what it has.
            peers = tuple((address, False) for address in file.sources)
            brought = await self._fetcher.bring(file.ref, pages, job=batch.job, peers=peers)
        except errors.AlluxioLikeError as error:
            progress.error = error
            return
        progress.fetched = progress.fetched or brought.fetched_bytes > 0
        batch.loaded += brought.fetched_bytes
        batch.skipped += brought.present_bytes
        batch.requests += brought.requests
        batch.changed.set()

    async def _pay(self, pace: _Pace, size: int) -> None:
        """Wait until the job's bandwidth allows `size` bytes; a change of the bandwidth counts at once."""
        while pace.bytes_s > 0:
            now = self._monotonic()
            pace.tokens = min(pace.bytes_s * _BURST_S, pace.tokens + (now - pace.at) * pace.bytes_s)
            pace.at = now
            if pace.tokens >= 0:
                pace.tokens -= size
                return
            await asyncio.sleep(min(0.2, -pace.tokens / pace.bytes_s + 0.001))

    # -- checking ----------------------------------------------------------------------------------------------------------

    def _check(self, file: LoadFile, verify: bool) -> CheckResult:
        """In a disk thread."""
        missing = bad = 0
        cached = self._store.lookup_content(file.ref)
        for pages in _get_wanted(file):
            if cached is None:
                missing += len(pages)
                continue
            try:
                if cached.has_suspects(pages):
                    cached.verify_suspects(pages)
                if verify or not _is_on_disk(cached, pages):
                    dropped = len(cached.verify(pages))
                    self._metrics.corrupt_pages.inc(dropped)
                    bad += dropped
                missing += sum(len(run) for run in cached.missing_pages(pages))
            except (errors.NotFound, errors.DiskError):
                missing += len(pages)
        return CheckResult(file.ref.file_id, missing, bad)


def _get_wanted(file: LoadFile) -> list[PageRange]:
    count = get_page_count(file.ref.size)
    if not file.blocks:
        return [PageRange(0, count)]
    return [PageRange(b * PAGES_PER_BLOCK, min(count, (b + 1) * PAGES_PER_BLOCK)) for b in sorted(set(file.blocks))]


def _get_bytes(ref: FileRef, pages: PageRange) -> int:
    return max(0, min(pages.stop * PAGE_BYTES, ref.size) - pages.first * PAGE_BYTES)


def _is_on_disk(cached: CachedFile, pages: PageRange) -> bool:
    """Whether the file has data, not holes, wherever the index says that pages of `pages` are present."""
    missing = cached.missing_pages(pages)
    position = pages.first
    with cached.open_fd() as fd:
        end_of_file = os.fstat(fd).st_size
        for run in [*missing, PageRange(pages.stop, pages.stop)]:
            start, stop = position * PAGE_BYTES, min(run.first * PAGE_BYTES, cached.size)
            if start < stop and (stop > end_of_file or os.lseek(fd, start, os.SEEK_HOLE) < stop):
                return False
            position = run.stop
    return True
