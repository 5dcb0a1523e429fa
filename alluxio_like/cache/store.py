"""The worker's cache: directories of sparse cache files with their indexes. The worker process is the only writer.

Owns the directories (locks, identity, format, quotas, health), the table of files in use, group commits of the index, removal of
files and blocks, and the deltas for the master. Does not decide what to evict (worker/core/eviction) nor fetch anything. All
methods may be called from any thread; those marked "quick" touch memory and at most the memory-mapped index, the others may
block on disks and are for threads.

Locks, outermost first: an index's lock (a commit), a file's lock, the store's lock, a directory's lock. None of the last three is
held while the disk works, except a file's lock while it is opened.
"""

import contextlib
import errno
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Self, TypeVar
from weakref import WeakValueDictionary

import lmdb

from alluxio_like import errors
from alluxio_like.cache import format as fmt
from alluxio_like.cache import syscalls
from alluxio_like.cache.drafts import Drafts
from alluxio_like.cache.file import CachedFile, PresentRun, Role
from alluxio_like.cache.format import FileRecord, ScrubMark
from alluxio_like.cache.index import FilePut
from alluxio_like.cache.layout import (
    CacheDirectory,
    CacheDirSpec,
    Identity,
    get_default_quotas,
    open_directory,
    settle_identity,
)
from alluxio_like.cache.report import BlockChange, ChangeBatch, ChangeLog, DirectoryUsage, FileInfo, Removed, count_bytes
from alluxio_like.cache.upkeep import sweep_directory, sync_disks
from alluxio_like.clock import Clock
from alluxio_like.types import BLOCK_BYTES, FileId, FileRef, Fingerprint, WorkerId

__all__ = [
    "BlockChange",
    "CacheDirSpec",
    "CacheStore",
    "CachedFile",
    "ChangeBatch",
    "DirectoryUsage",
    "FileInfo",
    "PresentRun",
    "Removed",
    "Role",
    "ScrubMark",
]

_Record = TypeVar("_Record")

COMMIT_INTERVAL_S = 0.25
"""A commit waits so long for company. Until then a kill -9 loses what was cached, and other processes ask by RPC (a guess)."""
USE_FLUSH_INTERVAL_S = 60.0
RECENT_FILES = 256
"""Files kept at hand (with their descriptors) after everybody has let go of them."""
REMOVAL_WAIT_S = 20.0
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EWOULDBLOCK)
"""What open(2) says of this process or of this moment, and not of the disk."""
CLOSE_SYNC_S = 8.0
"""The longest that close waits for the disks; without it the cache is verified after a reboot."""


class CacheStore:
    """See the module. Build it with `open`; end it with `close`."""

    def __init__(self, directories: list[CacheDirectory], identity: Identity, clock: Clock) -> None:
        self.worker_id = WorkerId(identity.worker_id)
        self._cluster_id = identity.cluster_id
        self._dirs = directories
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._files: WeakValueDictionary[FileId, CachedFile] = WeakValueDictionary()
        self._recent: OrderedDict[FileId, CachedFile] = OrderedDict()
        self._dirty: list[dict[FileId, CachedFile]] = [{} for _ in directories]
        self._lost: list[CachedFile] = []
        self._removing: set[FileId] = set()
        self._uses: dict[FileId, int] = {}
        self._log = ChangeLog()
        self.drafts = Drafts(directories, self, clock)
        """Files that programs write."""
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._absent: list[tuple[CacheDirSpec, str]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run_commits, name="cache-commit", daemon=True)

    @classmethod
    def open(cls, dirs: Sequence[CacheDirSpec], *, cluster_id: str | None, clock: Clock, boot_id: str) -> Self:
        """Lock and open the directories; quick whatever their size.

        Raises Conflict (another process has one; its pid is named), FormatTooNew, ConfigError (a directory on the root file
        system, not empty and not ours, of another worker or cluster). A directory whose disk fails is marked failed, unless all
        are (DiskError).
        """
        if not dirs:
            raise errors.ConfigError("no cache directory is configured")
        opened: list[CacheDirectory] = []
        try:
            absent: list[tuple[CacheDirSpec, str]] = []
            for spec in dirs:
                try:
                    opened.append(open_directory(spec, len(opened), clock))
                except OSError as error:
                    absent.append((spec, str(error)))
            if not opened:
                raise errors.DiskError("; ".join(f"{spec.path}: {reason}" for spec, reason in absent))
            identity = settle_identity(opened, cluster_id)
            store = cls(opened, identity, clock)
            store._absent = absent
            quotas = get_default_quotas([directory.spec for directory in opened], [directory.fd for directory in opened])
            for directory, quota in zip(opened, quotas, strict=True):
                directory.start(boot_id, quota, store._log.add, store._note_failed)
            for directory in opened:
                if directory.ok:
                    store.drafts.load(directory)
            store._flag_unpersisted()
            if not any(directory.ok for directory in opened):
                raise errors.DiskError("; ".join(f"{directory.spec.path}: {directory.reason}" for directory in opened))
        except BaseException:
            for directory in opened:
                directory.close(clean=False)
            raise
        store._thread.start()
        return store

    @property
    def cluster_id(self) -> str | None:
        """The cluster this cache belongs to; None until it joined one."""
        return self._cluster_id

    def set_cluster_id(self, cluster_id: str) -> None:
        """Bind a new cache to a cluster. Raises Conflict when it belongs to another one."""
        if self._cluster_id == cluster_id:
            return
        if self._cluster_id is not None:
            raise errors.Conflict(
                f"cache belongs to cluster {self._cluster_id}, not {cluster_id}", subject=str(self._dirs[0].spec.path)
            )
        for directory in self._dirs:
            if directory.ok:
                directory.write_identity(Identity(self.worker_id, cluster_id))
        self._cluster_id = cluster_id

    @property
    def capacity_bytes(self) -> int:
        """Quick. Quotas of the healthy directories: the worker's weight in placement."""
        return sum(directory.quota_bytes for directory in self._dirs if directory.ok)

    @property
    def directory_fds(self) -> list[int]:
        """One descriptor per opened directory, in the order of CachedFile.directory; valid until close (never close them)."""
        return [directory.fd for directory in self._dirs]

    def lookup(self, file_id: FileId) -> CachedFile | None:
        """Quick. The cached file, or None, whatever its fingerprint."""
        with self._lock:
            return self._lookup(file_id)

    def lookup_content(self, ref: FileRef) -> CachedFile | None:
        """Quick. The cached file of this very content, or None. Another fingerprint under the same id is another content (a
        namespace that was lost): `create` drops it."""
        found = self.lookup(ref.file_id)
        return found if found is not None and found.fingerprint == ref.fingerprint else None

    def create(self, ref: FileRef, role: Role) -> CachedFile:
        """The cache file of a content: the one that is there, else a new one.

        One that is there with another fingerprint is dropped first. Raises NoSpace (no directory has room), DiskError.
        """
        file_id = ref.file_id
        for _ in range(8):
            with self._lock:
                if not self._changed.wait_for(lambda: file_id not in self._removing, REMOVAL_WAIT_S):
                    raise errors.Unavailable("the file's removal takes too long", subject=str(file_id))
                found = self._lookup(file_id)
                if found is None:
                    return self._create(ref, role)
                if found.fingerprint == ref.fingerprint:
                    return found
            self.remove([file_id], force=True, include_pinned=True)
        raise errors.Unavailable("the file is replaced again and again", subject=str(file_id))

    def open_whole(self, file_id: FileId, fingerprint: Fingerprint) -> tuple[int, int]:
        """A read-only descriptor (the caller's) of the cache file of a content, all of it there, and the file's generation.

        While it or a mapping made of it lives, the file is neither evicted in place nor truncated. Raises NotFound (not wholly
        here; not for empty files, which have no cache file), Unavailable (just being evicted, no descriptor left), DiskError.
        """
        file = self.lookup(file_id)
        if file is None or file.fingerprint != fingerprint or not file.size:
            raise errors.NotFound("not in the cache", subject=str(file_id))
        fd = file.open_read_only()
        try:
            # Looked at after it was opened: from then on what is there stays.
            if not file.is_complete:
                raise errors.NotFound("not wholly in the cache", subject=str(file_id))
        except BaseException:
            os.close(fd)
            raise
        return fd, file.generation

    def iter_files(self, number: int | None = None, *, after: FileId | None = None) -> Iterator[FileInfo]:
        """All files in the index (committed), in order of directory and file id; holds nothing between batches.

        `number`: of one directory only; `after`: those behind a file id.
        """
        for directory in self._dirs if number is None else [self._dirs[number]]:
            if directory.ok:
                for file_id, record in _scan(directory, directory.get_index().scan_files(after)):
                    yield FileInfo(
                        file_id,
                        record.size,
                        Role(record.role),
                        record.pinned,
                        record.generation,
                        record.present_bytes,
                        record.last_use_s,
                        directory.number,
                        record.unpersisted,
                    )

    def iter_blocks(self) -> Iterator[BlockChange]:
        """All blocks that hold pages (committed), for a full report; call drain_changes before it, so nothing is missed.

        Blocks that a crash of the machine made suspect are left out; they are reported when they have been verified.
        """
        for directory in self._dirs:
            if not directory.ok:
                continue
            index = directory.get_index()
            sizes: tuple[FileId | None, int] = (None, 0)
            for file_id, block, trust, bits in _scan(directory, index.scan_blocks()):
                if trust < index.trust:
                    continue
                if sizes[0] != file_id:
                    record = index.lookup_file(file_id)
                    if record is None:
                        continue
                    sizes = (file_id, record.size)
                yield BlockChange(file_id, block, bits, count_bytes(sizes[1], block, bits))

    def get_scrub_mark(self, number: int) -> ScrubMark | None:
        """How far the scrubber is in a directory; None: it has not begun. Raises DiskError."""
        raw = self._dirs[number].get_index().get_meta(fmt.KEY_SCRUB)
        return fmt.unpack_scrub(raw) if raw else None

    def set_scrub_mark(self, number: int, mark: ScrubMark | None) -> None:
        """Remember how far the scrubber is. Raises DiskError."""
        directory = self._dirs[number]
        try:
            directory.get_index().put_meta({fmt.KEY_SCRUB: fmt.pack_scrub(mark) if mark is not None else b""})
        except lmdb.Error as error:
            directory.fail(f"index: {error}")
            directory.get_index()

    def remove(self, file_ids: Iterable[FileId], *, force: bool = False, include_pinned: bool = False) -> Removed:
        """Drop whole files: index first, committed, then the bytes.

        A file that somebody has open is skipped, or with `force` moved to held/ and its space counted until it is closed. Pinned
        files stay unless `include_pinned`.
        """
        marked: list[tuple[CachedFile, str, int]] = []
        pinned: list[FileId] = []
        in_use: list[FileId] = []
        try:
            for file_id in file_ids:
                file = self._begin_removal(file_id)
                if file is None:
                    continue
                outcome, fd = "removed", -1
                try:
                    outcome, fd = file.begin_removal(force=force, include_pinned=include_pinned)
                except OSError as error:
                    if error.errno in _PASSING:
                        outcome = "in_use"
                    else:
                        self._dirs[file.directory].fail(str(error))
                finally:
                    if outcome not in {"free", "held"}:
                        self._end_removal(file_id)
                if outcome in {"free", "held"}:
                    marked.append((file, outcome, fd))
                elif outcome == "pinned":
                    pinned.append(file_id)
                elif outcome == "in_use":
                    in_use.append(file_id)
            freed = self._finish_removal(marked)
        finally:
            for file, _, fd in marked:
                if fd >= 0:
                    os.close(fd)
                self._end_removal(file.file_id)
        return Removed(len(marked), freed, tuple(pinned), tuple(in_use))

    def punch_block(self, file_id: FileId, block: int) -> int:
        """Drop one block of a file nobody has open; returns the bytes freed (0: in use, pinned or not there)."""
        file = self.lookup(file_id)
        if file is None:
            return 0
        directory = self._dirs[file.directory]
        try:
            fd, freed = file.begin_punch(block)
        except (OSError, errors.AlluxioLikeError):
            return 0
        if fd < 0:
            return 0
        try:
            self.mark_dirty(file)
            if not self._commit(directory):
                return 0
            try:
                syscalls.punch_hole(fd, block * BLOCK_BYTES, BLOCK_BYTES)
            except OSError as error:
                directory.fail(str(error))
                return 0
        finally:
            file.end_punch(fd)
        directory.give_back(fmt.get_disk_bytes(freed))
        return freed

    def reap_held(self) -> int:
        """Remove files in held/ that nobody has open any more; returns the bytes freed. For about once a minute."""
        freed = 0
        for directory in self._dirs:
            if directory.ok:
                with contextlib.suppress(OSError):
                    freed += directory.reap_held()
        return freed

    def set_pinned(self, file_ids: Iterable[FileId], pinned: bool) -> None:
        """Pin or unpin files that are there; others are ignored. Committed on return."""
        self._set_state(file_ids, role=None, pinned=pinned)

    def set_role(self, file_ids: Iterable[FileId], role: Role) -> None:
        """Make guests home or the reverse (after workers came or went). Committed on return."""
        self._set_state(file_ids, role=role, pinned=None)

    def set_persisted(self, file_ids: Sequence[FileId]) -> None:
        """The store has what was written here, or is not to have it any more: it may be evicted like others. Committed on
        return."""
        changed: set[int] = set()
        for file_id in file_ids:
            file = self.lookup(file_id)
            if file is not None and file.unpersisted:
                file.set_state(unpersisted=False)
                self.mark_dirty(file)
                changed.add(file.directory)
        for number in changed:
            self._commit(self._dirs[number])

    def record_use(self, file_id: FileId) -> None:
        """Quick. The file was used now; kept in memory, written about each minute by the commit thread."""
        self._uses[file_id] = self._clock.now_ns() // 1_000_000_000

    def get_usage(self) -> list[DirectoryUsage]:
        """Quick. One per directory in the configured order; last those that could not be opened."""
        usages = []
        for directory in self._dirs:
            sums = directory.index.usage if directory.index is not None else fmt.UsageRecord()
            free = 0
            if directory.ok:
                with contextlib.suppress(OSError):
                    stat = os.fstatvfs(directory.fd)
                    free = stat.f_bavail * stat.f_frsize
            usages.append(
                DirectoryUsage(
                    path=directory.spec.path,
                    tier=directory.spec.tier,
                    quota_bytes=directory.quota_bytes,
                    used_bytes=directory.used_bytes + directory.draft_bytes,
                    draft_bytes=directory.draft_bytes,
                    held_bytes=directory.held_bytes,
                    home_bytes=sums.home_bytes,
                    guest_bytes=sums.guest_bytes,
                    pinned_bytes=sums.pinned_bytes,
                    file_count=sums.file_count,
                    room_bytes=directory.get_room(),
                    free_disk_bytes=free,
                    overdrawn_bytes=directory.get_overdraft(),
                    state=directory.state,
                    reason=directory.reason,
                    held_files=directory.held_files,
                    file_system=directory.file_system,
                )
            )
        for spec, reason in self._absent:
            usages.append(DirectoryUsage(spec.path, spec.tier, 0, 0, 0, 0, 0, 0, 0, 0, 0, "failed", reason))
        return usages

    def drain_changes(self) -> ChangeBatch:
        """Quick. Committed changes since the last call."""
        return self._log.drain()

    def flush(self) -> None:
        """Commit everything that is present now; returns when it is in the index: seen by readers, safe from kill -9."""
        for directory in self._dirs:
            if directory.ok:
                self._commit(directory)

    def sweep(self) -> int:
        """Remove files on disk that no index knows (left by a kill -9); returns how many. Slow; once after start, in a thread."""
        count = 0
        for directory in self._dirs:
            if directory.ok:
                try:
                    count += sweep_directory(directory, directory.get_index(), self._is_in_use)
                except (lmdb.Error, OSError) as error:
                    directory.fail(str(error))
        return count

    def close(self) -> None:
        """Commit, sync, set the clean mark, release locks. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._stop.set()
        self._wake.set()
        self._thread.join()
        uses = self._take_uses()
        for directory in self._dirs:
            if directory.ok:
                self._commit(directory, uses=uses)
        synced = sync_disks(self._dirs, CLOSE_SYNC_S)
        with self._lock:
            files = list(self._files.values())
            self._recent.clear()
        for file in files:
            file.close_idle()
        for directory in self._dirs:
            directory.close(clean=directory.number in synced)

    # For CachedFile (its Owner).

    def mark_dirty(self, file: CachedFile) -> None:
        """The file has something to commit."""
        with self._lock:
            self._dirty[file.directory][file.file_id] = file
        self._wake.set()

    def forget_lost(self, file: CachedFile) -> None:
        """The file's bytes are gone from the disk: drop it from the index."""
        if not file.mark_removed():
            return
        with self._lock:
            self._take_out(file)
            self._removing.add(file.file_id)
            self._lost.append(file)
        self._wake.set()

    def _flag_unpersisted(self) -> None:
        """Killed between the two records of a version that the store does not have: its file says so, too."""
        for upload in self.drafts.list_uploads():
            file = self.lookup(upload.file_id)
            if file is not None and not file.unpersisted:
                file.set_state(unpersisted=True)
                self.mark_dirty(file)

    # For Drafts (its Owner).

    def forget(self, file: CachedFile) -> None:
        """The file is to become a draft: nobody finds it, nor creates one of its id, before `allow`."""
        with self._lock:
            self._changed.wait_for(lambda: file.file_id not in self._removing, REMOVAL_WAIT_S)
            self._removing.add(file.file_id)
            self._take_out(file)

    def recall(self, file: CachedFile) -> None:
        """It stays what it is."""
        with self._lock:
            self._files[file.file_id] = file

    def reserve(self, file_id: FileId) -> None:
        """Remove the file of that id; nobody creates one before `allow`. Raises Unavailable."""
        for _ in range(8):
            self.remove([file_id], force=True, include_pinned=True)
            with self._lock:
                self._changed.wait_for(lambda: file_id not in self._removing, REMOVAL_WAIT_S)
                if file_id not in self._removing and self._lookup(file_id) is None:
                    self._removing.add(file_id)
                    return
        raise errors.Unavailable("the file is replaced again and again", subject=str(file_id))

    def allow(self, file_id: FileId) -> None:
        """A file of that id may be created again."""
        self._end_removal(file_id)

    # Inside.

    def _take_out(self, file: CachedFile) -> None:
        """Under the lock."""
        if self._files.get(file.file_id) is file:
            del self._files[file.file_id]
        self._recent.pop(file.file_id, None)

    def _lookup(self, file_id: FileId) -> CachedFile | None:
        """Under the lock."""
        file = self._files.get(file_id)
        if file is not None and not file.removed:
            self._keep_recent(file)
            return file
        if file_id in self._removing:
            return None
        for directory in self._dirs:
            if directory.ok:
                try:
                    record = directory.get_index().lookup_file(file_id)
                except lmdb.Error as error:
                    directory.fail(f"index: {error}")
                    continue
                if record is not None:
                    file = CachedFile(file_id, record, directory, self, stored=True)
                    self._files[file_id] = file
                    self._keep_recent(file)
                    return file
        return None

    def _is_in_use(self, file_id: FileId, generation: int) -> bool:
        if self.drafts.is_generation_used(file_id.inode, generation):
            return True
        with self._lock:
            file = self._files.get(file_id)
            return file is not None and file.generation == generation

    def _keep_recent(self, file: CachedFile) -> None:
        """Under the lock."""
        self._recent[file.file_id] = file
        self._recent.move_to_end(file.file_id)
        if len(self._recent) > RECENT_FILES:
            self._recent.popitem(last=False)

    def _create(self, ref: FileRef, role: Role) -> CachedFile:
        """Under the lock."""
        healthy = [directory for directory in self._dirs if directory.ok]
        if not healthy:
            raise errors.DiskError("all cache directories have failed")
        best = max(healthy, key=lambda directory: directory.get_room())
        if best.get_room() < min(ref.size, BLOCK_BYTES):
            raise errors.NoSpace("cache is full", subject=str(ref.file_id))
        record = FileRecord(
            ref.size, secrets.randbits(63), 0, self._clock.now_ns() // 1_000_000_000, role, ref.pinned, ref.fingerprint.token
        )
        file = CachedFile(ref.file_id, record, best, self, stored=False)
        self._files[ref.file_id] = file
        self._keep_recent(file)
        return file

    def _begin_removal(self, file_id: FileId) -> CachedFile | None:
        with self._lock:
            if file_id in self._removing:
                return None
            file = self._lookup(file_id)
            if file is not None:
                self._removing.add(file_id)
            return file

    def _end_removal(self, file_id: FileId) -> None:
        with self._lock:
            self._removing.discard(file_id)
            self._changed.notify_all()

    def _finish_removal(self, marked: list[tuple[CachedFile, str, int]]) -> int:
        """Index first, then the bytes; returns the bytes freed or held."""
        freed = 0
        for directory in self._dirs:
            mine = [(file, outcome) for file, outcome, _ in marked if file.directory == directory.number]
            if not mine:
                continue
            with self._lock:
                for file, _ in mine:
                    self._take_out(file)
            if not self._commit(directory, removes=[(file.file_id, file.generation) for file, _ in mine]):
                continue
            for file, outcome in mine:
                path = fmt.make_file_path(file.file_id, file.generation)
                try:
                    if outcome == "held":
                        directory.hold(path, file.generation)
                    else:
                        os.unlink(path, dir_fd=directory.fd)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    directory.fail(str(error))
                    break
                directory.give_back(fmt.get_disk_bytes(file.present_bytes))
                freed += file.present_bytes
        return freed

    def _set_state(self, file_ids: Iterable[FileId], *, role: Role | None, pinned: bool | None) -> None:
        for file_id in file_ids:
            file = self.lookup(file_id)
            if file is not None:
                file.set_state(role=role, pinned=pinned)
                self.mark_dirty(file)
        self.flush()

    def _commit(
        self, directory: CacheDirectory, *, removes: list[tuple[FileId, int]] | None = None, uses: dict[FileId, int] | None = None
    ) -> bool:
        """Commit what is dirty, and removals. False: the directory has failed."""
        index = directory.index
        if index is None or not directory.ok:
            return False
        with index.lock:
            with self._lock:
                dirty, self._dirty[directory.number] = self._dirty[directory.number], {}
            if not (dirty or removes or uses):
                return True

            def make_puts() -> list[FilePut]:
                return [put for file in dirty.values() if (put := file.make_put()) is not None]

            try:
                index.commit(make_puts, removes or [], uses)
            except (lmdb.Error, OSError) as error:
                directory.fail(f"index: {error}")
                return False
        return True

    def _run_commits(self) -> None:
        """The commit thread: groups what comes in COMMIT_INTERVAL_S."""
        next_uses = self._clock.monotonic() + USE_FLUSH_INTERVAL_S
        while not self._stop.is_set():
            self._wake.wait(USE_FLUSH_INTERVAL_S)
            self._wake.clear()
            self._drop_lost()
            uses: dict[FileId, int] = {}
            is_due = self._clock.monotonic() >= next_uses
            if is_due:
                next_uses = self._clock.monotonic() + USE_FLUSH_INTERVAL_S
                uses = self._take_uses()
            for directory in self._dirs:
                # A use of a file that is in another directory is ignored by this one's index.
                if directory.ok and self._commit(directory, uses=uses) and is_due:
                    # Whoever was killed in a read keeps pages of the index from being used again.
                    with contextlib.suppress(lmdb.Error, errors.DiskError):
                        directory.get_index().check_readers()
            self._stop.wait(COMMIT_INTERVAL_S)

    def _take_uses(self) -> dict[FileId, int]:
        with self._lock:
            uses, self._uses = self._uses, {}
        return uses

    def _drop_lost(self) -> None:
        with self._lock:
            lost, self._lost = self._lost, []
        for file in lost:
            directory = self._dirs[file.directory]
            if self._commit(directory, removes=[(file.file_id, file.generation)]):
                directory.give_back(fmt.get_disk_bytes(file.present_bytes))
            self._end_removal(file.file_id)

    def _note_failed(self, directory: CacheDirectory) -> None:
        """Called by a directory that failed, perhaps under a file's lock: nothing but a flag is touched."""
        self._log.overflow()


def _scan(directory: CacheDirectory, records: Iterator[_Record]) -> Iterator[_Record]:
    """Records of an index to their end, or to where its disk fails: the directory is taken out then."""
    try:
        yield from records
    except (lmdb.Error, OSError) as error:
        directory.fail(f"index: {error}")
