"""Walking the files below paths in an order that can be taken up again.

Owns the walk's order (in each directory first its files, then its directories, each in the namespace's order) and its cursors.
Directories are listed as the walk comes to them, a few ahead of it. Memory is a page for each level. Event loop alone; a walk is
one task's.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from alluxio_like import errors
from alluxio_like.master.core import namespace
from alluxio_like.master.core.jobs import Cursor, Problem
from alluxio_like.master.core.model import DirState, EntryPage
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.snapshot_trees import is_frozen
from alluxio_like.master.surveying import Survey
from alluxio_like.types import Entry, InodeId, Kind

PAGE_ENTRIES = 256
PAGE_BYTES = 4 << 30
"""A page of large files is cut, so that the cursor moves on every few gigabytes."""
DIRECTORIES_AHEAD = 8
PAUSE_S = 0.05
"""A step that lets wait for itself longer than this is worth telling."""
LISTING_PATIENCE = 4.0
"""I/O timeouts that a page may take: nobody waits at a terminal, and a listing that fails says so itself before."""
START = Cursor()
_FILES, _DIRECTORIES, _END = b"f", b"d", b"e"


class Targets(Protocol):
    """The paths of a walk, by number; any number of them."""

    def read(self, start: int, limit: int) -> Sequence[str]: ...


class PathList:
    """A few paths in memory."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def read(self, start: int, limit: int) -> Sequence[str]:
        return self._paths[start : start + limit]


@dataclass(frozen=True, slots=True)
class Item:
    """A file on the way."""

    path: str
    entry: Entry


@dataclass(slots=True)
class Step:
    """Files dealt with together; `cursor` takes up the walk behind them."""

    cursor: Cursor
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    incomplete: bool = False


@dataclass(slots=True)
class _Buffer:
    """A page of a directory of which the entries before `place` are done; `position` is the cursor that leads to that place."""

    position: bytes
    place: int
    page: EntryPage


class Walker:
    """See the module. `survey` brings what is not known, and is closed with the walk; None: what is known, no store is asked."""

    def __init__(
        self,
        meta: MetaStore,
        lister: Lister,
        targets: Targets,
        *,
        matches: Callable[[str, str], bool] = lambda _name, _path: True,
        survey: Survey | None = None,
    ) -> None:
        self._survey = survey
        self._meta = meta
        self._lister = lister
        self._targets = targets
        self._matches = matches
        self._since_ns = survey.since_ns if survey is not None else None
        self._buffers: dict[InodeId, _Buffer] = {}
        self._ahead: dict[InodeId, asyncio.Task[None]] = {}

    async def walk(self, cursor: Cursor = START) -> AsyncGenerator[Step, None]:
        """The files from a cursor on. What cannot be listed or found is a problem in a step, and the walk goes on."""
        try:
            start = cursor.target
            stack = cursor.stack
            while paths := self._targets.read(start, PAGE_ENTRIES):
                await asyncio.sleep(0)
                for offset, path in enumerate(paths):
                    async for step in self._walk_target(start + offset, path, stack):
                        yield step
                    stack = ()
                start += len(paths)
        finally:
            for task in self._ahead.values():
                task.cancel()
            await asyncio.gather(*self._ahead.values(), return_exceptions=True)
            if self._survey is not None:
                await self._survey.close()

    async def _walk_target(self, number: int, path: str, stack: tuple[tuple[int, bytes], ...]) -> AsyncGenerator[Step, None]:
        after = Cursor(number + 1)
        if not stack:
            try:
                entry = await self._resolve(path)
            except errors.AlluxioLikeError as error:
                yield Step(after, problems=[make_problem(path, error)])
                return
            if entry.attr.kind is not Kind.DIRECTORY:
                name = path.rpartition("/")[2]
                yield Step(after, [Item(path, entry)] if self._matches(name, name) else [])
                return
            stack = ((entry.attr.inode, _FILES),)
        levels = list(stack)
        while levels:
            async for step in self._walk_directory(number, path, levels):
                yield step
        yield Step(after)

    async def _resolve(self, path: str) -> Entry:
        if self._since_ns is None:
            if (frozen := self._lister.snapshots.find(path)) is not None:
                return frozen
            with self._meta.read() as txn:
                known = namespace.resolve(txn, path)
            if known.rest:
                raise errors.NotFound("no such file or directory", subject=path)
            return known.entry
        entry = (await self._lister.resolve_path(path)).entry
        if entry is None:
            raise errors.NotFound("no such file or directory", subject=path)
        return entry

    async def _walk_directory(self, number: int, target: str, levels: list[tuple[int, bytes]]) -> AsyncGenerator[Step, None]:
        """The deepest directory of the stack: its files from the cursor on, or down into its next directory, or up."""
        inode, tagged = InodeId(levels[-1][0]), levels[-1][1]
        phase, position = tagged[:1], tagged[1:]
        try:
            path, state = self._get_place(inode)
        except (errors.NotFound, errors.NotADirectory):
            levels.pop()
            return
        if phase == _FILES:
            try:
                async for step in self._walk_files(number, target, path, levels, position):
                    yield step
            except errors.NotFound:
                levels.pop()
                return
            except errors.AlluxioLikeError as error:
                levels.pop()
                yield Step(Cursor(number, tuple(levels)), problems=[make_problem(path, error)], incomplete=True)
                return
            if self._since_ns is None and not state.complete:
                yield Step(Cursor(number, tuple(levels)), incomplete=True)
            levels[-1] = (inode, _DIRECTORIES)
            return
        if phase == _END or state.directories == 0 or not self._go_down(levels, inode, position):
            levels.pop()
            self._buffers.pop(inode, None)

    async def _walk_files(
        self, number: int, target: str, path: str, levels: list[tuple[int, bytes]], position: bytes
    ) -> AsyncGenerator[Step, None]:
        inode = InodeId(levels[-1][0])
        base = path.rstrip("/") + "/"
        root = target.rstrip("/") + "/"
        limit = PAGE_ENTRIES
        if self._survey is not None and not position and not is_frozen(inode):
            await self._survey.bring(inode, among=InodeId(levels[-2][0]) if len(levels) > 1 else None, whole=False)
        while True:
            if self._since_ns is None:
                page = self._list(inode, position, limit)
            else:
                listed = await self._lister.list_page(inode, position, limit, since_ns=self._since_ns, patience=LISTING_PATIENCE)
                page = listed.page
            size = sum(entry.attr.size for entry in page.entries)
            if size > PAGE_BYTES and len(page.entries) > 1:
                limit = max(1, len(page.entries) * PAGE_BYTES // size)
                if limit < len(page.entries):
                    continue
            position = page.cursor
            levels[-1] = (inode, _FILES + position) if position else (inode, _DIRECTORIES)
            items = [
                Item(base + entry.name, entry)
                for entry in page.entries
                if entry.ref is not None and self._matches(entry.name, (base + entry.name)[len(root) :])
            ]
            yield Step(Cursor(number, tuple(levels)), items)
            # Else a walk over what is known never lets others run.
            await asyncio.sleep(0)
            if not position:
                return
            limit = min(PAGE_ENTRIES, 2 * limit)

    def _go_down(self, levels: list[tuple[int, bytes]], inode: InodeId, position: bytes) -> bool:
        """Push the next directory behind `position` of the deepest one; False when there is none."""
        buffer = self._buffers.get(inode)
        while True:
            if buffer is None or buffer.position != position:
                buffer = _Buffer(position, 0, self._list(inode, position, PAGE_ENTRIES))
            entries = buffer.page.entries
            place = buffer.place
            while place < len(entries) and entries[place].attr.kind is not Kind.DIRECTORY:
                place += 1
            if place < len(entries):
                break
            if not buffer.page.cursor:
                return False
            # This page is over, also where it is kept under the position behind it, as its last entry is a directory.
            position, buffer = buffer.page.cursor, None
        after = buffer.page.cursor
        if place < len(entries) - 1:
            after = self._list(inode, position, place - buffer.place + 1).cursor
        self._list_ahead(inode, [entry.attr.inode for entry in entries[place:] if entry.attr.kind is Kind.DIRECTORY])
        levels[-1] = (inode, _DIRECTORIES + after) if after else (inode, _END)
        levels.append((entries[place].attr.inode, _FILES))
        self._buffers[inode] = _Buffer(after, place + 1, buffer.page)
        return True

    def _get_place(self, inode: InodeId) -> tuple[str, DirState]:
        """A directory's path and what is known of its children. Raises NotFound, NotADirectory."""
        if is_frozen(inode):
            return self._lister.snapshots.get_place(inode)
        with self._meta.read() as txn:
            return namespace.get_path(txn, inode), namespace.get_dir_state(txn, inode)

    def _list(self, inode: InodeId, position: bytes, limit: int) -> EntryPage:
        if is_frozen(inode):
            return self._lister.snapshots.list_page(inode, position, limit)
        with self._meta.read() as txn:
            return namespace.list_entries(txn, inode, position, limit)

    def _list_ahead(self, directory: InodeId, below: list[InodeId]) -> None:
        if self._survey is None or is_frozen(directory):
            return
        for done in [inode for inode, task in self._ahead.items() if task.done()]:
            del self._ahead[done]
        for inode in below[:DIRECTORIES_AHEAD]:
            if inode not in self._ahead and len(self._ahead) < 2 * DIRECTORIES_AHEAD:
                self._ahead[inode] = asyncio.create_task(self._bring(self._survey, inode, directory))

    async def _bring(self, survey: Survey, inode: InodeId, among: InodeId) -> None:
        try:
            await survey.bring(inode, among=among)
        except errors.AlluxioLikeError:
            return  # the walk meets it itself when it comes there


def make_problem(path: str, error: errors.AlluxioLikeError) -> Problem:
    """An error as a job's problem."""
    return Problem(path, error.code, error.message or str(error))


async def with_pauses(walk: AsyncGenerator[Step, None]) -> AsyncGenerator[Step | None, None]:
    """A walk's steps, and None when the next one lets wait for itself."""
    following: asyncio.Future[Step] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(walk))
            done, _ = await asyncio.wait({following}, timeout=PAUSE_S)
            if not done:
                yield None
                continue
            task, following = following, None
            try:
                step = task.result()
            except StopAsyncIteration:
                return
            yield step
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
