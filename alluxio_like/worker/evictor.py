"""Keeps room in the cache: ties the eviction policy to the store.

Owns the policy's state (fed from the store's files at start and from every use) and the background removal down to the low
watermark. Removal runs in a thread and never inside a read. All methods may be called from any thread: one lock guards the policy, and
is not held while the disk works.
"""

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile, Role
from alluxio_like.cache.store import CacheStore
from alluxio_like.clock import Clock
from alluxio_like.types import FileId, FileRef, JobId


class Evictor:
    """One per worker. `start` begins the background thread, `stop` ends it."""

    def __init__(self, store: CacheStore, clock: Clock, *, high_watermark: float = 0.95, low_watermark: float = 0.90) -> None:
        self._store = store
        self._clock = clock
        self._high = high_watermark
        self._low = low_watermark

    def start(self) -> None:
        """Learn the files of the index, sweep leftovers, then watch the space, in a daemon thread."""
        raise errors.Internal("not yet")

    def stop(self) -> None:
        """End the thread; returns when it has ended (bounded by one removal)."""
        raise errors.Internal("not yet")

    def create(self, ref: FileRef, role: Role, *, job: JobId | None = None) -> CachedFile:
        """store.create, when there is room for the file or room can be made. Blocks; for threads.

        Raises NoSpace: nothing may go for it, read through instead. A load (`job`) may turn out older homes, a reader only guests and
        what went stale.
        """
        raise errors.Internal("not yet")

    def record_read(self, file_id: FileId, bytes_: int) -> None:
        """Quick. A reader was given bytes of a file: from the cache, from another worker, or read through."""
        raise errors.Internal("not yet")

    def record_loaded(self, file: CachedFile, job: JobId) -> None:
        """Quick. A load brought or confirmed this file: the same load will not evict it."""
        raise errors.Internal("not yet")
