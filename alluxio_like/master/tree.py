"""Whole trees, in pages of columns: what a program reads once before it trains.

Owns the walk (directories are listed where they are not believed, as for any reader) and the memory of what was found unchanged:
a tree that was listed whole at one sequence number of the namespace is the same as long as that number is, and is believed as
long as its directories are. Then the next epoch is one message. Event loop alone; long walks let others run.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import snapshots, tables, tree
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.surveying import Survey, Surveyor
from alluxio_like.rpc.messages import TreePage
from alluxio_like.types import InodeId, Kind, TreeColumns, to_bytes

Floats = NDArray[np.float64]

PAGE_ENTRIES = 16_384
"""Read in one step, and put together in another, of 1 to 2 ms each: half as many take 0.03 µs more an entry (measured)."""
AHEAD = 8
"""Directories that are listed at once."""
LOOKED_AT = 4096
"""Directories of which it is seen at once what is known of them, at most."""
KEPT = 1000
"""Trees remembered (a guess)."""


@dataclass(slots=True)
class _Walk:
    """What a walk has not come to yet, and what it has read and not given out."""

    waiting: list[tuple[InodeId, bytes]]
    """The next one last."""
    since_ns: int
    snapshot: int = 0
    """The number of the one whose tree it is; 0: none's."""
    parts: list[tree.Children] = field(default_factory=list)
    reads: int = 0
    """Entries in them."""
    looked_at: int = AHEAD
    believed_until: float = float("inf")

    @property
    def room(self) -> int:
        """How many more entries a page takes."""
        return PAGE_ENTRIES - self.reads

    def open(self, txn: ReadTransaction) -> ReadTransaction:
        """The tree in a transaction. Raises NotFound: it is a snapshot's, which was deleted."""
        return snapshots.View(txn, snapshots.get(txn, self.snapshot).number) if self.snapshot else txn

    def add(self, part: tree.Children) -> None:
        if len(part):
            if self.snapshot:
                part = replace(part, inodes=part.inodes + np.uint64(snapshots.make_id(self.snapshot, InodeId(0))))
            self.parts.append(part)
            self.reads += len(part)

    def read(self, txn: ReadTransaction, found: tree.Directories) -> int:
        """Read as many of the next directories, which `found` describes, as fit; how many."""
        sums = np.cumsum(np.where(found.there, found.counts, 0))
        taken = int(np.searchsorted(sums, self.room, "right"))
        if not taken:
            return 0
        asked = [self.waiting.pop() for _ in range(taken)]
        rows = np.flatnonzero(found.there[:taken])
        part = tree.read_directories(txn, found[rows], [asked[row][1] for row in rows.tolist()])
        self.add(part)
        self.waiting += reversed(part.directories)
        # As many as fill a page, if they are like these.
        self.looked_at = min(LOOKED_AT, AHEAD + PAGE_ENTRIES * taken // max(1, int(sums[taken - 1])))
        return taken

    def take(self) -> TreeColumns:
        """What there is, which is no longer here then."""
        parts, self.parts, self.reads = self.parts, [], 0
        return tree.join_columns(parts) if parts else TreeColumns()


class TreeLister:
    """See the module."""

    def __init__(self, meta: MetaStore, lister: Lister, surveyor: Surveyor, *, clock: Clock) -> None:
        self._meta = meta
        self._lister = lister
        self._surveyor = surveyor
        self._clock = clock
        self._known: dict[InodeId, tuple[int, float]] = {}
        """By top directory: the sequence number at which its tree was listed, and until when it is believed."""

    async def list_tree(self, path: str, unless: int) -> AsyncIterator[TreePage]:
        """All below a directory; the last page has the tree's mark. One page that says so if the tree still is what it was when
        the mark `unless` was given.

        Raises NotFound, NotADirectory, InvalidArgument (what is asked for are all snapshots of a directory), and the store's
        error where a directory cannot be listed: never a part for the whole.
        """
        entry = (await self._lister.resolve_path(path)).entry
        if entry is None:
            raise errors.NotFound("no such file or directory", subject=path)
        if entry.attr.kind is not Kind.DIRECTORY:
            raise errors.NotADirectory("not a directory", subject=path)
        top = entry.attr.inode
        shown = to_bytes("/" + path.strip("/"))
        snapshot, own = snapshots.split_id(top)
        if snapshots.is_folder(snapshot):
            raise errors.InvalidArgument("list the tree of one of the snapshots in it", subject=path)
        if snapshot:
            async for page in self._list_frozen(_Walk([(own, shown)], 0, snapshot), int(top), unless):
                yield page
            return
        begun = self._get_sequence()
        known = self._known.get(top)
        if unless and known is not None and known[0] == unless == begun and self._clock.monotonic() < known[1]:
            yield TreePage(TreeColumns(), mark=unless, unchanged=True)
            return
        begun_ns = self._clock.now_ns()
        walk = _Walk([(top, shown)], begun_ns)
        survey = self._surveyor.begin(begun_ns)
        try:
            async for page in self._walk(survey, walk):
                yield page
        finally:
            await survey.close()
        # What changed while it was listed may be in it or not: such a tree is no mark for the next.
        mark = begun if self._get_sequence() == begun and begun else 0
        if mark:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[top] = (mark, walk.believed_until)
        yield TreePage(walk.take(), mark=mark)

    async def _list_frozen(self, walk: _Walk, mark: int, unless: int) -> AsyncIterator[TreePage]:
        """A tree of a snapshot: it never changes, so its top's own id is its mark."""
        if unless == mark:
            yield TreePage(TreeColumns(), mark=mark, unchanged=True)
            return
        survey = self._surveyor.begin(walk.since_ns)
        try:
            async for page in self._walk(survey, walk):
                yield page
        finally:
            await survey.close()
        yield TreePage(walk.take(), mark=mark)

    async def _walk(self, survey: Survey, walk: _Walk) -> AsyncIterator[TreePage]:
        """Full pages; what is left when all was seen is in `walk`."""
        is_brought = False
        while walk.waiting:
            with self._meta.read() as txn:
                view = walk.open(txn)
                found, until = self._look_ahead(view, walk, is_brought=is_brought)
                taken = walk.read(view, found)
            walk.believed_until = min(walk.believed_until, until[: max(1, taken)].min(initial=np.inf))
            is_brought = not len(found)
            if is_brought:
                await self._bring(survey, [inode for inode, _ in walk.waiting[-AHEAD:]])
                continue
            await asyncio.sleep(0)
            if walk.parts and (taken < len(found) or not walk.room):
                # It is full, or the next directory does not fit beside what there is.
                yield TreePage(walk.take())
            elif not taken:
                async for page in self._read_large(walk):
                    yield page

    def _look_ahead(self, txn: ReadTransaction, walk: _Walk, *, is_brought: bool) -> tuple[tree.Directories, Floats]:
        """The next directories, as far as nothing needs to be brought for them. `is_brought`: not for the first one."""
        asked = [inode for inode, _ in walk.waiting[: -1 - walk.looked_at : -1]]
        found = tree.describe_directories(txn, asked)
        if walk.snapshot:
            return found, np.full(len(found), np.inf)
        known, left_s = self._lister.judge(found, walk.since_ns)
        known[0] |= is_brought
        count = len(known) if known.all() else int(np.argmin(known))
        return found[:count], self._clock.monotonic() + left_s[:count]

    async def _read_large(self, walk: _Walk) -> AsyncIterator[TreePage]:
        """The next directory, which is more than a page, in as many transactions as it has pages."""
        inode, shown = walk.waiting.pop()
        cursor, below = b"", []
        while True:
            try:
                with self._meta.read() as txn:
                    part = tree.read_some(walk.open(txn), inode, shown, cursor, walk.room)
            except errors.NotFound:
                if walk.snapshot:
                    raise
                break
            walk.add(part)
            below += part.directories
            cursor = part.cursor
            await asyncio.sleep(0)
            if not cursor:
                break
            yield TreePage(walk.take())
        walk.waiting += reversed(below)

    @staticmethod
    async def _bring(survey: Survey, inodes: list[InodeId]) -> None:
        """Have the next directories listed, several at once. One that is gone is met again by the walk."""
        done = await asyncio.gather(*(survey.bring(inode) for inode in inodes), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException) and not isinstance(error, (errors.NotFound, errors.NotADirectory)):
                raise error

    def _get_sequence(self) -> int:
        with self._meta.read() as txn:
            return tables.get_sequence(txn)
