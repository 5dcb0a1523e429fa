"""Bad pages: dropped, and fetched again.

Owns what follows when a page of a cache file does not match its checksum, be it that the scrubber found it or a local reader who
reads
cache files by itself. The file stays what it is, with its generation: the right bytes are written over the bad ones, so those
who have
the file open, or mapped for days, get them too (decision 0021). Does not look for bad pages itself; a reader's word makes it
look, and
nothing more. Rule of concurrency: one event loop; files are verified in the given queue's threads; one repair of a file at a
time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile
from alluxio_like.cache.store import CacheStore
from alluxio_like.metrics import Metrics
from alluxio_like.types import FileId, FileRef, JobId, PageRange, get_page_count
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.fetcher import Fetcher

_LOG = logging.getLogger(__name__)

REPAIR_S = 300.0
"""How long a repair may wait for its turn and its bytes; what is still missing then is fetched by the next reader. A guess."""
MOST_REPAIRS = 256
"""Files whose repairs are under way at once; pages of others stay missing until somebody reads them."""
MOST_PAGES = 1024
"""Pages that one report may name."""

LookupRef = Callable[[FileId], Awaitable[FileRef | None]]
"""Where a content comes from, asked of the master; None: the path has another content by now. Raises what the master's call
raises."""


class Repairer:
    """One per worker."""

    def __init__(self, *, store: CacheStore, fetcher: Fetcher, disk: DiskQueue, metrics: Metrics, lookup_ref: LookupRef) -> None:
        self._store = store
        self._fetcher = fetcher
        self._disk = disk
        self._metrics = metrics
        self._lookup_ref = lookup_ref
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted: dict[FileId, set[int]] = {}
        """By file whose repair is under way: its pages that were dropped and are still to be fetched."""

    async def check(self, ref: FileRef, pages: Sequence[int]) -> int:
        """Look at pages that a reader found bad; how many were, and were dropped: they are out of the index when this returns.

        Raises InvalidArgument for pages outside the file or too many of them.
        """
        count = get_page_count(ref.size)
        if len(pages) > MOST_PAGES or any(not 0 <= page < count for page in pages):
            raise errors.InvalidArgument(f"not pages of a file of {count}, or more than {MOST_PAGES}", subject=ref.key)
        cached = self._store.lookup_content(ref)
        if cached is None:
            return 0
        bad = await self._disk.submit(lambda: self._verify(cached, pages))
        self.note_bad(ref.file_id, bad, ref)
        return len(bad)

    def note_bad(self, file_id: FileId, pages: Sequence[int], ref: FileRef | None = None) -> None:
        """Pages of a file were dropped because they were bad: say so, and begin to fetch them again."""
        if not pages:
            return
        self._metrics.corrupt_pages.inc(len(pages))
        cached = self._store.lookup(file_id)
        if cached is not None and cached.unpersisted:
            # Kept, and said by the cache at each look: there is no better one to be had.
            return
        _LOG.warning("dropped %d pages of file %s that did not match their checksums", len(pages), file_id)
        wanted = self._wanted.get(file_id)
        if wanted is not None:
            # A repair under way takes them up.
            wanted.update(pages)
        elif len(self._tasks) < MOST_REPAIRS:
            self._wanted[file_id] = set(pages)
            task = asyncio.create_task(self._repair(file_id, ref), name=f"repair {file_id.inode}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _verify(self, cached: CachedFile, pages: Sequence[int]) -> list[int]:
        """In a disk thread."""
        bad: list[int] = []
        try:
            for page in sorted(set(pages)):
                bad += cached.verify(PageRange(page, page + 1))
        except (errors.NotFound, errors.Unavailable, errors.DiskError):
            # Gone, or cannot be opened: nobody reads bad bytes of it.
            pass
        if bad:
            # Who reads the index by himself must not find them there any more.
            self._store.flush()
        return bad

    async def _repair(self, file_id: FileId, ref: FileRef | None) -> None:
        try:
            async with asyncio.timeout(REPAIR_S):
                if ref is None:
                    ref = await self._lookup_ref(file_id)
                cached = self._store.lookup(file_id)
                if ref is None or cached is None or cached.fingerprint != ref.fingerprint:
                    _LOG.info("bad pages of file %s are not fetched again: it is no longer what its path shows", file_id)
                    return
                await self._bring(ref, cached)
        except TimeoutError:
            _LOG.warning("bad pages of file %s were not fetched again within %g s", file_id, REPAIR_S)
        except errors.AlluxioLikeError as error:
            # The pages stay missing: whoever reads them has them fetched.
            _LOG.warning("bad pages of file %s were not fetched again: %s", file_id, error)
        finally:
            self._wanted.pop(file_id, None)

    async def _bring(self, ref: FileRef, cached: CachedFile) -> None:
        wanted = self._wanted[ref.file_id]
        while wanted:
            page = min(wanted)
            wanted.discard(page)
            # Others may have fetched it meanwhile.
            for hole in cached.missing_pages(PageRange(page, page + 1)):
                brought = await self._fetcher.bring(ref, hole, job=JobId("repair"))
                self._metrics.repaired_bytes.inc(brought.fetched_bytes)
