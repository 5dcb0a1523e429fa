"""The worker's cache: directories of sparse cache files with their indexes. The worker process is the only writer.

Owns the directories (locks, identity, format, quotas, health), the table of files in use, group commits of the index, removal of
files and blocks, and the deltas for the master. Does not decide what to evict (worker/core/eviction) nor fetch anything. All
methods may be called from any thread; those marked "quick" touch memory and at most the memory-mapped index, the others may
block on disks and are for threads. Lock order: store, then file, then directory (see docs/CONCURRENCY.md).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile, Role
from alluxio_like.clock import Clock
from alluxio_like.types import FileId, FileRef, WorkerId


@dataclass(frozen=True, slots=True)
class CacheDirSpec:
    """A cache directory as configured. `quota_bytes` None: 80 % of the disk (shared by the directories on it)."""

    path: Path
    quota_bytes: int | None = None
    tier: str = "SSD"
    allow_root_disk: bool = False
    keep_free_fraction: float = 0.1


@dataclass(frozen=True, slots=True)
class DirectoryUsage:
    """One directory. `state` is "ok" or "failed" (then `reason` says why); `held_bytes` are evicted but still open somewhere."""

    path: Path
    tier: str
    quota_bytes: int
    used_bytes: int
    held_bytes: int
    home_bytes: int
    guest_bytes: int
    pinned_bytes: int
    file_count: int
    free_disk_bytes: int
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as the index has it. `last_use_s` is seconds since the epoch (0: never used)."""

    file_id: FileId
    size: int
    role: Role
    pinned: bool
    generation: int
    present_bytes: int
    last_use_s: int
    directory: int


@dataclass(frozen=True, slots=True)
class BlockChange:
    """What a worker has of a block: presence bits and their bytes. 0 bits: the block is gone."""

    file_id: FileId
    block: int
    present_bits: int
    present_bytes: int


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Committed changes since the last drain. `overflowed`: too many were missed, send a full report (iter_blocks) instead."""

    changes: tuple[BlockChange, ...]
    overflowed: bool


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal did: files and bytes gone, files kept because pinned or in use (by file id)."""

    files: int
    bytes: int
    pinned: tuple[FileId, ...]
    in_use: tuple[FileId, ...]


class CacheStore:
    """See the module. Build it with `open`; end it with `close`."""

    worker_id: WorkerId

    @classmethod
    def open(cls, dirs: Sequence[CacheDirSpec], *, cluster_id: str | None, clock: Clock, boot_id: str) -> Self:
        """Lock and open the directories; quick whatever their size.

        Raises Conflict (another process has one; its pid is named), FormatTooNew, ConfigError (a directory on the root file
        system, not empty and not ours, of another worker or cluster). A directory whose disk fails is marked failed, unless all
        are (DiskError).
        """
        raise errors.Internal("not yet")

    @property
    def cluster_id(self) -> str | None:
        """The cluster this cache belongs to; None until it joined one."""
        raise errors.Internal("not yet")

    def set_cluster_id(self, cluster_id: str) -> None:
        """Bind a new cache to a cluster. Raises Conflict when it belongs to another one."""
        raise errors.Internal("not yet")

    @property
    def capacity_bytes(self) -> int:
        """Quick. Quotas of the healthy directories: the worker's weight in placement."""
        raise errors.Internal("not yet")

    @property
    def directory_fds(self) -> list[int]:
        """One descriptor per directory in the configured order, for the door; valid until close (never close them)."""
        raise errors.Internal("not yet")

    def lookup(self, file_id: FileId) -> CachedFile | None:
        """Quick. The cached file, or None. Its fingerprint is for the caller to compare (or use `get_or_create`)."""
        raise errors.Internal("not yet")

    def create(self, ref: FileRef, role: Role) -> CachedFile:
        """The cache file of a content: the one that is there, else a new one.

        One that is there with another fingerprint is dropped first. Raises NoSpace (no directory has room), DiskError.
        """
        raise errors.Internal("not yet")

    def iter_files(self) -> Iterator[FileInfo]:
        """All files in the index (committed), in order of directory and file id; holds nothing between batches."""
        raise errors.Internal("not yet")

    def iter_blocks(self) -> Iterator[BlockChange]:
        """All blocks that hold pages (committed), for a full report; call drain_changes before it, so nothing is missed."""
        raise errors.Internal("not yet")

    def remove(self, file_ids: Iterable[FileId], *, force: bool = False, include_pinned: bool = False) -> Removed:
        """Drop whole files: index first, committed, then the bytes.

        A file that somebody has open is skipped, or with `force` moved to held/ and its space counted until it is closed. Pinned
        files stay unless `include_pinned`.
        """
        raise errors.Internal("not yet")

    def punch_block(self, file_id: FileId, block: int) -> int:
        """Drop one block of a file nobody has open; returns the bytes freed (0: in use, pinned or not there)."""
        raise errors.Internal("not yet")

    def reap_held(self) -> int:
        """Remove files in held/ that nobody has open any more; returns the bytes freed. For about once a minute."""
        raise errors.Internal("not yet")

    def set_pinned(self, file_ids: Iterable[FileId], pinned: bool) -> None:
        """Pin or unpin files that are there; others are ignored. Committed on return."""
        raise errors.Internal("not yet")

    def set_role(self, file_ids: Iterable[FileId], role: Role) -> None:
        """Make guests home or the reverse (after workers came or went). Committed on return."""
        raise errors.Internal("not yet")

    def record_use(self, file_id: FileId) -> None:
        """Quick. The file was used now; kept in memory, written about each minute by the commit thread."""
        raise errors.Internal("not yet")

    def get_usage(self) -> list[DirectoryUsage]:
        """Quick. One per directory, in the configured order."""
        raise errors.Internal("not yet")

    def drain_changes(self) -> ChangeBatch:
        """Quick. Committed changes since the last call."""
        raise errors.Internal("not yet")

    def flush(self) -> None:
        """Commit everything that is present now; returns when it is in the index: seen by readers, safe from kill -9."""
        raise errors.Internal("not yet")

    def sweep(self) -> int:
        """Remove files on disk that no index knows (left by a kill -9); returns how many. Slow; once after start, in a thread."""
        raise errors.Internal("not yet")

    def close(self) -> None:
        """Commit, sync, set the clean mark, release locks. Idempotent."""
        raise errors.Internal("not yet")
