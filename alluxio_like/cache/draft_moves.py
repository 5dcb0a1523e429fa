"""How files below drafts/ become cache files of their versions; see drafts.py for the order of its steps."""

import contextlib
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from alluxio_like.cache import format as fmt
from alluxio_like.cache.draft import Draft
from alluxio_like.cache.format import FileRecord
from alluxio_like.cache.index import BlockPut, FilePut
from alluxio_like.cache.layout import CacheDirectory
from alluxio_like.cache.pages import Role
from alluxio_like.clock import Clock
from alluxio_like.types import PAGES_PER_BLOCK, FileId, FileRef, InodeId, get_block_count, get_full_mask


class Reserving(Protocol):
    """What is needed of the store."""

    def reserve(self, file_id: FileId) -> None:
        """Remove the cache file of that id, if there is one; nobody creates one before `allow`."""

    def allow(self, file_id: FileId) -> None:
        """A cache file of that id may be created again."""


@dataclass(frozen=True, slots=True)
class Move:
    """How a file below drafts/ becomes the cache file of a version. `values` are committed with it; `draft`: whose file it is,
    None: a copy's."""

    path: str
    ref: FileRef
    generation: int
    sums: "array[int]"
    values: Mapping[bytes, bytes | None]
    unpersisted: bool
    draft: Draft | None = None


class Mover:
    """Of all drafts of a worker. `on_moved` is told of each draft that is one no more; `checkpoint`: see Drafts."""

    def __init__(
        self, owner: Reserving, clock: Clock, *, on_moved: Callable[[InodeId], None], checkpoint: Callable[[str], None]
    ) -> None:
        self._owner = owner
        self._clock = clock
        self._on_moved = on_moved
        self._checkpoint = checkpoint

    def move_all(self, moves: Sequence[Move], directory: CacheDirectory, held: contextlib.ExitStack | None = None) -> None:
        """Make files below drafts/ the cache files of their versions, in one transaction. `held`: what keeps writers out. Raises
        DiskError, NoSpace: those that are drafts stay so."""
        if not moves:
            return
        reserved: list[FileId] = []
        puts: list[FilePut] = []
        values: dict[bytes, bytes | None] = {}
        try:
            for move in moves:
                # Fetched from the store by others meanwhile, perhaps: one content has one cache file here.
                self._owner.reserve(move.ref.file_id)
                reserved.append(move.ref.file_id)
            for move in moves:
                target = fmt.make_file_path(move.ref.file_id, move.generation)
                if move.draft is not None:
                    move.draft.sums, move.draft.becomes = move.sums, target
                with directory.translated():
                    os.rename(move.path, target, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
                self._checkpoint("end: renamed")
                puts.append(self._make_put(move, directory))
                values |= move.values
            if held is not None:
                # A writer would not find them any more; who uploads them, once they are cache files, is not to be kept out.
                held.close()
            with directory.translated():
                directory.get_index().commit_grouped(values, puts=puts)
            self._checkpoint("end: committed")
        except BaseException:
            for move in moves:
                if move.draft is not None:
                    move.draft.sums = None  # it stays a draft, and may come to hold something else
            raise
        else:
            for move in moves:
                directory.give_back(-fmt.get_disk_bytes(move.ref.size))
                directory.note_draft(move.generation, 0)
                if move.draft is not None:
                    self._on_moved(move.ref.inode)
        finally:
            for file_id in reserved:
                self._owner.allow(file_id)

    def _make_put(self, move: Move, directory: CacheDirectory) -> FilePut:
        ref, size = move.ref, move.ref.size
        now_s = self._clock.now_ns() // 1_000_000_000
        put = FilePut(
            ref.file_id,
            FileRecord(size, move.generation, size, now_s, Role.HOME, ref.pinned, ref.fingerprint.token, move.unpersisted),
        )
        trust = directory.get_index().trust
        for block in range(get_block_count(size)):
            of_block = move.sums[block * PAGES_PER_BLOCK : (block + 1) * PAGES_PER_BLOCK]
            put.blocks.append(BlockPut(block, trust, get_full_mask(size, block), of_block))
        return put
