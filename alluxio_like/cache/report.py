"""What the store says of itself: space, files, blocks, and the changes that the master is told of.

Owns the log of changes that were committed and not yet reported; bounded. Its lock is held for a dictionary's update only.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

from alluxio_like.cache.file import Role
from alluxio_like.cache.index import Effect
from alluxio_like.cache.probe import UNKNOWN, FileSystem
from alluxio_like.types import PAGE_BYTES, PAGES_PER_BLOCK, FileId, get_page_count

MAX_PENDING_CHANGES = 500_000


@dataclass(frozen=True, slots=True)
class DirectoryUsage:
    """One directory. `state` is "ok" or "failed" (then `reason` says why); `held_bytes` are evicted but still open somewhere, in
    `held_files` files; `file_system` says what it is on. Of `used_bytes`, `draft_bytes` are files that are being written.

    `room_bytes` may still be written: by the quota, and by what must stay free on the disk; of that, `overdrawn_bytes` lack.
    """

    path: Path
    tier: str
    quota_bytes: int
    used_bytes: int
    held_bytes: int
    home_bytes: int
    guest_bytes: int
    pinned_bytes: int
    file_count: int
    room_bytes: int
    free_disk_bytes: int
    state: str
    reason: str
    held_files: int = 0
    overdrawn_bytes: int = 0
    file_system: FileSystem = UNKNOWN
    draft_bytes: int = 0

    @property
    def usable_bytes(self) -> int:
        """Of the quota, what the disk leaves (others use it too): what is held, and what may still be written."""
        return min(self.quota_bytes, self.used_bytes + self.held_bytes + self.room_bytes) if self.state == "ok" else 0


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
    unpersisted: bool = False


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


class ChangeLog:
    """Changes of blocks since the last drain; the newest of each block counts. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changes: dict[tuple[FileId, int], tuple[int, int]] = {}
        self._overflowed = False

    def add(self, effects: list[Effect]) -> None:
        """Take in what a commit did; to be called in commit order."""
        with self._lock:
            for effect in effects:
                self._changes[effect.file_id, effect.block] = (effect.bits, count_bytes(effect.size, effect.block, effect.bits))
            if len(self._changes) > MAX_PENDING_CHANGES:
                self._changes = {}
                self._overflowed = True

    def overflow(self) -> None:
        """More changed than can be told: only a full report will do. Takes no lock, for it may be called under a file's."""
        self._overflowed = True

    def drain(self) -> ChangeBatch:
        with self._lock:
            changes, self._changes = self._changes, {}
            overflowed, self._overflowed = self._overflowed, False
        return ChangeBatch(tuple(BlockChange(file_id, block, *value) for (file_id, block), value in changes.items()), overflowed)


def count_bytes(size: int, block: int, bits: int) -> int:
    """Bytes of the pages `bits` of a block of a file of `size` bytes."""
    last = get_page_count(size) - 1
    short = 0
    if last // PAGES_PER_BLOCK == block and bits >> last % PAGES_PER_BLOCK & 1:
        short = (last + 1) * PAGE_BYTES - size
    return bits.bit_count() * PAGE_BYTES - short
