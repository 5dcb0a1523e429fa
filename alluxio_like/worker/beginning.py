"""Where drafts come from: the whole of a version, brought to this worker, or nothing; and the room for them.

Owns the repeats while files are removed from the cache meanwhile, and while what is only cached makes room. Rule of concurrency:
one event loop; the caller has the inode's lock; disks are asked in the queue's threads.
"""

import functools
from collections.abc import Sequence

from alluxio_like import errors
from alluxio_like.cache.draft import Draft
from alluxio_like.cache.file import CachedFile
from alluxio_like.cache.store import CacheStore
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import FileRef, InodeId, JobId, PageRange, get_page_count
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.evictor import Evictor
from alluxio_like.worker.fetcher import Fetcher

_BRING_TRIES = 10
"""What is freed amid a fetch takes another, or two: the next may join one that is under way, of whose pages some are gone."""
_GOES = "the file is removed from the cache again and again before it can be written"


class Beginner:
    """One per worker."""

    def __init__(self, store: CacheStore, fetcher: Fetcher, evictor: Evictor, disk: DiskQueue) -> None:
        self._store = store
        self._fetcher = fetcher
        self._evictor = evictor
        self._disk = disk

    async def begin_blank(self, inodes: Sequence[InodeId]) -> list[Draft] | None:
        """See cache.blank_drafts."""
        begin = functools.partial(self._store.drafts.blanks.begin, inodes)
        try:
            return await self._disk.submit(begin, alone=True)
        except errors.NoSpace:
            if not await self._disk.submit(self._evictor.make_room_to_begin):
                raise
        return await self._disk.submit(begin, alone=True)

    async def begin(self, ref: FileRef, *, truncate: bool) -> Draft:
        """A draft of an inode that has none: of all of a version, or empty. Raises Stale (there is a newer one here), NoSpace,
        DiskError, Store*, Unavailable."""
        if self._store.drafts.has_newer(ref):
            # Sealed here since the caller has looked: what it would write would undo that.
            raise errors.Stale("the file has been written anew; open it again", subject=ref.key)
        for _ in range(_BRING_TRIES):
            cached = await self._find_whole(ref) if truncate or not ref.size else await self._bring(ref)
            begin = functools.partial(self._store.drafts.begin, ref, cached, truncate=truncate)
            try:
                draft = await self._disk.submit(begin, alone=True)
            except errors.NotFound:
                # It was evicted just now.
                continue
            except errors.NoSpace:
                # What is only cached makes room, as it does for what is brought to be written.
                if cached is not None or not await self._disk.submit(self._evictor.make_room_to_begin):
                    raise
                continue
            if cached is not None:
                self._evictor.record_removed(ref.file_id)
            return draft
        raise errors.Unavailable(_GOES, subject=ref.key)

    async def _find_whole(self, ref: FileRef) -> CachedFile | None:
        if not ref.size:
            return None
        cached = await self._fetcher.get_cached(ref, PageRange(0, get_page_count(ref.size)))
        return cached if cached is not None and cached.is_complete else None

    async def _bring(self, ref: FileRef) -> CachedFile:
        """All of a version, in the cache of this worker. Others make room for it, as they do for a load: what cannot be kept can
        be read, but not be written. Raises NoSpace; Unavailable: it is removed again and again."""
        pages = PageRange(0, get_page_count(ref.size))
        for _ in range(_BRING_TRIES):
            cached = await self._find_whole(ref)
            if cached is not None:
                return cached
            try:
                await self._fetcher.bring(ref, pages, job=JobId(f"write {ref.inode}"), priority=Priority.DEMAND)
            except errors.NoSpace:
                if not await self._disk.submit(functools.partial(self._evictor.make_room_for, ref)):
                    raise
        raise errors.Unavailable(_GOES, subject=ref.key)
