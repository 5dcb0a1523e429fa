"""Keeps room in the cache: ties the eviction policy to the store.

Owns the policies' state (one a directory; fed from the index at start and from every use) and the background removal down to the
low watermark. Removal runs in a thread of its own, or in a load's; never inside a read. All methods may be called from any
thread: one lock guards the policies, and is not held while the disk works.
"""

import logging
import threading
from array import array
from collections.abc import Callable, Iterator

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile, Role
from alluxio_like.cache.store import CacheStore, DirectoryUsage, FileInfo
from alluxio_like.clock import Clock
from alluxio_like.metrics import Metrics
from alluxio_like.types import (
    BLOCK_BYTES,
    PAGE_BYTES,
    WHOLE_FILE_LIMIT_BYTES,
    FileId,
    FileRef,
    InodeId,
    JobId,
    VersionId,
    get_block_count,
)
from alluxio_like.worker.core.eviction import EvictionPolicy, Victim

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
REAP_INTERVAL_S = 60.0
REAP_AGAIN_S = 5.0
"""While files are held: looking whether somebody still has a file open costs an open and a lease."""
MAX_ROUNDS = 12
"""Each round asks for twice as many victims, should those of the last have been in use."""
_NO_JOB = JobId("")
"""The job, which has loaded nothing, for which files go that the disk has no space for any more, or as another must be here."""
REMOVE_BATCH = 256
"""Files removed in one commit of the index."""


class Evictor:
    """One per worker. `start` begins the background thread, `stop` ends it."""

    def __init__(
        self,
        store: CacheStore,
        clock: Clock,
        *,
        high_watermark: float = 0.95,
        low_watermark: float = 0.90,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._high = high_watermark
        self._low = low_watermark
        self._lock = threading.Lock()
        capacity = store.capacity_bytes
        self._policies = [EvictionPolicy(capacity) for _ in store.directory_fds]
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._removing = threading.Lock()
        """Held by who removes: two at once would both make the same room."""
        self._thread = threading.Thread(target=self._run, name="evictor", daemon=True)

    def start(self) -> None:
        """Learn the files of the index, sweep leftovers, then watch the space, in a daemon thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns when it has ended (bounded by one batch of removals)."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def create(self, ref: FileRef, role: Role, *, job: JobId | None = None) -> CachedFile:
        """store.create, when there is room for the file or room can be made. Blocks; for threads.

        Raises NoSpace: nothing may go for it, read through instead. A load (`job`) may turn out older homes, and waits for it;
        for a reader only what the background has made free counts. A file above the whole-file limit needs room for a block.
        """
        found = self._store.lookup_content(ref)
        if found is None:
            needed = ref.size if ref.size <= WHOLE_FILE_LIMIT_BYTES else BLOCK_BYTES
            if self._get_best_room() >= needed or (job is not None and self._make_room_anywhere(needed, job)):
                found = self._store.create(ref, role)
                with self._lock:
                    self._record(found, job)
                return found
            # Another thread may have made it meanwhile: the room is short of what that has written of it.
            found = self._store.lookup_content(ref)
            if found is None:
                self._wake.set()
                raise errors.NoSpace("cache is full of what must stay", subject=str(ref.file_id))
        if job is not None:
            self.record_loaded(found, job)
        return found

    def make_room(self, file: CachedFile, needed_bytes: int, *, job: JobId) -> bool:
        """Make room for more pages of a file that a load is filling (its write_pages raised NoSpace). Blocks; for threads."""
        return self._make_room(file.directory, needed_bytes, job)

    def make_room_for(self, ref: FileRef) -> bool:
        """Make room for what is missing of a file that must be here whole. Blocks; for threads."""
        found = self._store.lookup_content(ref)
        if found is not None:
            return self._make_room(found.directory, ref.size - found.present_bytes, _NO_JOB)
        return self._get_best_room() >= ref.size or self._make_room_anywhere(ref.size, _NO_JOB)

    def make_room_to_begin(self) -> bool:
        """Make room for a file that is to be written from nothing. Blocks; for threads."""
        return self._get_best_room() >= PAGE_BYTES or self._make_room_anywhere(PAGE_BYTES, _NO_JOB)

    def record_read(self, file_id: FileId, bytes_: int) -> None:
        """Quick. A reader was given bytes of a file: from the cache, from another worker, or read through."""
        now_s = self._clock.now_ns() / 1e9
        with self._lock:
            for policy in self._policies:
                policy.record_read(file_id, bytes_, now_s)
        self._store.record_use(file_id)

    def record_loaded(self, file: CachedFile, job: JobId) -> None:
        """Quick. A load brought or confirmed this file: the same load will not evict it."""
        with self._lock:
            self._record(file, job)

    def record_state(self, file: CachedFile) -> None:
        """Quick. The file was pinned, unpinned, or changed its role."""
        with self._lock:
            self._record(file, None)

    def record_removed(self, file_id: FileId) -> None:
        """Quick. The file was removed by somebody else (freed, replaced)."""
        with self._lock:
            for policy in self._policies:
                policy.record_removed(file_id)

    def _record(self, file: CachedFile, job: JobId | None) -> None:
        """Under the lock."""
        bytes_ = max(file.present_bytes, file.size if file.size <= WHOLE_FILE_LIMIT_BYTES else BLOCK_BYTES)
        self._policies[file.directory].record_stored(
            file.file_id,
            bytes_,
            guest=file.role is Role.GUEST,
            pinned=file.pinned or file.unpersisted,
            now_s=self._clock.now_ns() / 1e9,
            job=job,
        )

    def _get_best_room(self) -> int:
        return max((usage.room_bytes for usage in self._store.get_usage()), default=0)

    def _make_room_anywhere(self, needed: int, job: JobId) -> bool:
        usages = sorted(enumerate(self._store.get_usage()), key=lambda pair: -pair[1].room_bytes)
        return any(self._make_room(number, needed, job) for number, usage in usages if usage.state == "ok")

    def _make_room(self, number: int, needed: int, job: JobId) -> bool:
        """Remove victims of one directory until `needed` bytes fit. Some more go at once, so that not each file waits for a
        commit."""
        usage = self._store.get_usage()[number]
        if needed + usage.draft_bytes > usage.quota_bytes:
            return False
        with self._removing:
            usage = self._store.get_usage()[number]
            if usage.room_bytes < needed:
                # What is being written may have outgrown the quota, and others the disk.
                beyond = max(0, usage.used_bytes + usage.held_bytes - usage.quota_bytes, usage.overdrawn_bytes)
                spare = int(usage.quota_bytes * (1 - self._high))
                self._remove(number, needed - usage.room_bytes + beyond + spare, job)
            return self._store.get_usage()[number].room_bytes >= needed

    def _remove(self, number: int, needed: int, job: JobId | None) -> int:
        """Under `_removing`. Remove victims worth `needed` bytes; returns the bytes freed."""
        freed = 0
        for attempt in range(MAX_ROUNDS):
            if freed >= needed or self._stop.is_set():
                break
            with self._lock:
                wanted = (needed - freed) << attempt
                victims = self._policies[number].choose_victims(wanted, self._clock.now_ns() / 1e9, job=job)
            if not victims:
                break
            freed += self._remove_victims(number, victims, needed - freed)
        return freed

    def _remove_victims(self, number: int, victims: list[Victim], needed: int) -> int:
        freed = 0
        position = 0
        while position < len(victims) and freed < needed and not self._stop.is_set():
            batch: list[Victim] = []
            planned = 0
            while position < len(victims) and len(batch) < REMOVE_BATCH and planned < needed - freed:
                batch.append(victims[position])
                planned += victims[position].bytes
                position += 1
            freed += self._remove_batch(number, batch, needed - freed)
        return freed

    def _remove_batch(self, number: int, batch: list[Victim], needed: int) -> int:
        freed = 0
        whole: list[FileId] = []
        found: dict[FileId, tuple[Role, int]] = {}
        for victim in batch:
            file = self._store.lookup(victim.file_id)
            if file is not None and file.size > WHOLE_FILE_LIMIT_BYTES:
                freed += self._punch(number, file, needed - freed)
            else:
                whole.append(victim.file_id)
                if file is not None:
                    found[victim.file_id] = (file.role, file.present_bytes)
        removed = self._store.remove(whole)
        kept = {*removed.in_use, *removed.pinned}
        with self._lock:
            policy = self._policies[number]
            for file_id in whole:
                if file_id in kept:
                    policy.record_busy(file_id)
                else:
                    policy.record_removed(file_id)
        self._metrics.evictions_skipped.inc(len(removed.in_use))
        for role, size in (found[file_id] for file_id in found.keys() - kept):
            self._count(role, 1, size)
        return freed + removed.bytes

    def _count(self, role: Role, files: int, size: int) -> None:
        self._metrics.evicted_files.labels(role.name.lower()).inc(files)
        self._metrics.evicted_bytes.labels(role.name.lower()).inc(size)

    def _punch(self, number: int, file: CachedFile, needed: int) -> int:
        """Take blocks from the end of a large file; it goes when none is left."""
        freed = 0
        for block in range(get_block_count(file.size) - 1, -1, -1):
            if freed >= needed:
                break
            freed += self._store.punch_block(file.file_id, block)
        with self._lock:
            policy = self._policies[number]
            if freed == 0:
                policy.record_busy(file.file_id)
            elif file.present_bytes == 0:
                policy.record_removed(file.file_id)
        self._count(file.role, file.present_bytes == 0, freed)
        if file.present_bytes == 0:
            self._store.remove([file.file_id])
        return freed

    def _run(self) -> None:
        self._guard("learning the cached files", self._learn)
        self._guard("sweeping", self._store.sweep)
        next_reap = self._clock.monotonic() + REAP_INTERVAL_S
        while not self._stop.is_set():
            self._guard("eviction", self._evict_all)
            if self._clock.monotonic() >= next_reap:
                self._guard("removing held files", self._store.reap_held)
                held = any(usage.held_bytes for usage in self._store.get_usage())
                next_reap = self._clock.monotonic() + (REAP_AGAIN_S if held else REAP_INTERVAL_S)
            self._wake.wait(CHECK_INTERVAL_S)
            self._wake.clear()

    @staticmethod
    def _guard(what: str, call: Callable[[], object]) -> None:
        """A cache without its evictor stays full for ever: no failure, not even a defect, may end the thread."""
        try:
            call()
        except errors.AlluxioLikeError as error:
            log.warning("%s failed: %s", what, error)
        except Exception:
            log.exception("%s failed", what)

    def _evict_all(self) -> None:
        for number, usage in enumerate(self._store.get_usage()[: len(self._policies)]):
            self._evict(number, usage)

    def _evict(self, number: int, usage: DirectoryUsage) -> None:
        if usage.overdrawn_bytes:
            # Others have filled the disk. What must stay free goes before what is cached, homes included, as for a load.
            with self._removing:
                self._remove(number, usage.overdrawn_bytes, _NO_JOB)
            return
        quota = usage.usable_bytes
        if usage.state != "ok" or usage.used_bytes + usage.held_bytes <= quota * self._high:
            return
        with self._removing:
            self._remove(number, usage.used_bytes + usage.held_bytes - int(quota * self._low), None)

    def _learn(self) -> None:
        """The files of the index, in the order of their last use."""
        found = _Learned()
        for info in self._store.iter_files():
            if self._stop.is_set():
                return
            found.add(info)
            if info.unpersisted and self._store.drafts.lookup_upload(info.file_id) is None:
                # Killed between the two records: the store has it.
                self._store.set_persisted([info.file_id])
        now_s = self._clock.now_ns() / 1e9
        for file_id, bytes_, last_use_s, state in found.iter_by_last_use():
            if self._stop.is_set():
                return
            with self._lock:
                self._policies[state >> 2].record_stored(
                    file_id,
                    bytes_,
                    guest=bool(state & 2),
                    pinned=bool(state & 1),
                    now_s=now_s,
                    last_use_s=float(last_use_s),
                )


class _Learned:
    """What there is to know of millions of files, at 30 bytes each (and 40 while they are put in order)."""

    def __init__(self) -> None:
        self._inodes = array("Q")
        self._versions = array("Q")
        self._bytes = array("Q")
        self._last_uses = array("I")
        self._states = array("H")

    def add(self, info: FileInfo) -> None:
        self._inodes.append(info.file_id.inode)
        self._versions.append(info.file_id.version)
        self._bytes.append(info.present_bytes)
        self._last_uses.append(info.last_use_s)
        self._states.append(info.directory << 2 | (info.role is Role.GUEST) << 1 | (info.pinned or info.unpersisted))

    def iter_by_last_use(self) -> Iterator[tuple[FileId, int, int, int]]:
        """File id, bytes, last use, and directory << 2 | guest << 1 | pinned."""
        for n in sorted(range(len(self._inodes)), key=self._last_uses.__getitem__):
            file_id = FileId(InodeId(self._inodes[n]), VersionId(self._versions[n]))
            yield file_id, self._bytes[n], self._last_uses[n], self._states[n]
