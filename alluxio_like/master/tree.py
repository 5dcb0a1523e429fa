"""Whole trees, in pages of columns: what a program reads once before it trains.

Owns the walk (directories are listed where they are not believed, as for any reader) and the memory of what was found unchanged:
a tree that was listed whole at one sequence number of the namespace is the same as long as that number is, and is believed as
long as its directories are. Then the next epoch is one message. Event loop alone; long walks let others run.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.master.core import tables, tree
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.surveying import Survey, Surveyor
from alluxio_like.rpc.messages import TreePage
from alluxio_like.types import InodeId, Kind, TreeColumns, to_bytes

PAGE_ENTRIES = 8192
STEP_ENTRIES = 2048
"""Entries read at once, and about as many put together: some 0.5 ms each."""
AHEAD = 8
KEPT = 1000
"""Trees remembered (a guess)."""


@dataclass(slots=True)
class _Found:
    """What a walk has not yet given out, and for how long all it saw is believed."""

    columns: TreeColumns = field(default_factory=TreeColumns)
    parts: list[tree.Children] = field(default_factory=list)
    """What was read and is not in the columns yet."""
    reads: int = 0
    """Entries in them."""
    believed_s: float = float("inf")

    def get_room(self) -> int:
        """How many entries are to be read next at most."""
        return min(STEP_ENTRIES, PAGE_ENTRIES - len(self.columns) - self.reads)

    def add(self, part: tree.Children) -> None:
        if len(part):
            self.parts.append(part)
            self.reads += len(part)
        if self.reads >= STEP_ENTRIES or not self.get_room():
            self._put_together()

    def is_full(self) -> bool:
        return len(self.columns) == PAGE_ENTRIES

    def take(self) -> TreeColumns:
        """What there is, which is no longer here then."""
        self._put_together()
        columns, self.columns = self.columns, TreeColumns()
        return columns

    def _put_together(self) -> None:
        tree.add_columns(self.columns, self.parts)
        self.parts, self.reads = [], 0


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

        Raises NotFound, NotADirectory, and the store's error where a directory cannot be listed: never a part for the whole.
        """
        entry = (await self._lister.resolve_path(path)).entry
        if entry is None:
            raise errors.NotFound("no such file or directory", subject=path)
        if entry.attr.kind is not Kind.DIRECTORY:
            raise errors.NotADirectory("not a directory", subject=path)
        top = entry.attr.inode
        begun = self._get_sequence()
        known = self._known.get(top)
        if unless and known is not None and known[0] == unless == begun and self._clock.monotonic() < known[1]:
            yield TreePage(TreeColumns(), mark=unless, unchanged=True)
            return
        found = _Found()
        survey = self._surveyor.begin(self._clock.now_ns())
        try:
            async for page in self._walk(survey, top, to_bytes("/" + path.strip("/")), found):
                yield page
        finally:
            await survey.close()
        # What changed while it was listed may be in it or not: such a tree is no mark for the next.
        mark = begun if self._get_sequence() == begun and begun else 0
        if mark:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[top] = (mark, self._clock.monotonic() + found.believed_s)
        yield TreePage(found.take(), mark=mark)

    async def _walk(self, survey: Survey, top: InodeId, shown: bytes, found: "_Found") -> AsyncIterator[TreePage]:
        """Full pages; what is left when all was seen is in `found`."""
        waiting: list[tuple[InodeId, bytes]] = [(top, shown)]
        while waiting:
            if not _is_known(survey, waiting[-1][0]):
                await self._bring(survey, [inode for inode, _ in waiting[-AHEAD:]])
            inode, shown = waiting.pop()
            cursor, below = b"", []
            while True:
                try:
                    with self._meta.read() as txn:
                        part = tree.read_children(txn, inode, shown, cursor, found.get_room())
                except errors.NotFound:
                    break
                found.add(part)
                below += part.directories
                cursor = part.cursor
                if found.is_full():
                    yield TreePage(found.take())
                await asyncio.sleep(0)
                if not cursor:
                    found.believed_s = min(found.believed_s, self._lister.get_believed_s(inode))
                    break
            waiting += reversed(below)

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


def _is_known(survey: Survey, inode: InodeId) -> bool:
    try:
        return survey.is_known(inode)
    except errors.NotFound:
        # The walk meets it again.
        return True
