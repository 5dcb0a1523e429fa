"""The operations of the file system, written once on our own types.

Owns what each operation means: which errors, which attributes, how long the kernel may keep an answer, what an open handle
promises. Knows neither a session's library nor the client library; it raises the package's errors, and sessions turn them into
errno. What changes something is in changing.py and writing.py; here it is refused with ReadOnly. What is being written is shown
as it is (drafts.py).

Concurrency: one event loop, any number of operations at once. State is touched only between awaits, except in directory handles,
which have a lock each. Inode ids are never used twice, so nothing has to be remembered for the kernel: forget is not needed.

The mount's root has node id 1 whatever inode it is. All other node ids are inode ids.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace

from alluxio_like.clock import Clock
from alluxio_like.errors import (
    AlluxioLikeError,
    Internal,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NoData,
    NotADirectory,
    NotFound,
    ReadOnly,
    Stale,
    StoreError,
    TimedOut,
    Unavailable,
    Unsupported,
)
from alluxio_like.fuse import xattrs
from alluxio_like.fuse.attributes import FileError
from alluxio_like.fuse.backend import Answer, Backend, Buffer, Reader, Totals
from alluxio_like.fuse.continuing import Continuing, as_opened
from alluxio_like.fuse.drafts import Draft, Drafts, Notes, take_newest
from alluxio_like.fuse.handles import BoundedDict, DirectoryHandle, Failure, FileHandle, HandleTable, KeptPage
from alluxio_like.fuse.kernel_memory import ROOT_NODE, KernelMemory
from alluxio_like.fuse.nested import Steps
from alluxio_like.fuse.notify import SILENT, Teller
from alluxio_like.types import EVERYWHERE, Attr, Entry, InodeId, Kind, Recall, SharedRange, VersionId, to_bytes, to_str

log = logging.getLogger(__name__)

NAME_MAX_BYTES = 255

_TOTALS_KEPT = 1000
_QUICK_ANSWER_S = 0.5
"""How long the root's attributes and statfs may wait for the services: umount(8) asks for both, also when these are down. A
guess."""
_ORPHAN_VALID_S = 5.0
"""Of the attributes of an open file whose inode the services have forgotten: they stay as they are."""
_SLOW_FAILURE_S = 1.0
_FAILURE_KEPT_S = 1.0
"""A read that failed after more than _SLOW_FAILURE_S is answered the same way for _FAILURE_KEPT_S: the kernel repeats each failed
read-ahead once by itself, page by page, and the caller would wait the whole io_timeout_s twice."""
_STALE_INODES = 10_000

_WAIT_KNOWN_S = 2.0
_WAIT_AWAY_S = 0.2
_AWAY_S = 5.0
_KNOWN_VALID_S = 1.0
"""A name or inode that is known is answered from memory, for _KNOWN_VALID_S, when the services do not answer within
_WAIT_KNOWN_S, and in the _AWAY_S after that within _WAIT_AWAY_S: training goes on while the master restarts. Guesses."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator can choose. `entry_timeout_s`: the longest time the kernel keeps a name or attributes."""

    entry_timeout_s: float
    io_timeout_s: float


Emit = Callable[[bytes, Attr, float, int, bool], bool]
"""Takes (name, attributes, seconds valid, offset of what follows, whether it is a real entry); False: no room, not taken."""


class Operations:
    """One mount of the directory `root` of the namespace."""

    def __init__(
        self,
        backend: Backend,
        root: Entry,
        settings: Settings,
        clock: Clock,
        teller: Teller = SILENT,
        *,
        serving: xattrs.Serving = xattrs.PYFUSE3,
        get_url: Callable[[], str] = str,
        generation: int = 0,
        writes: bool = False,
        list_nodes: Callable[[InodeId], Iterable[int]] | None = None,
        on_sealed: Callable[[Draft, VersionId], None] = lambda draft, before: None,
        on_moved: Callable[[InodeId, VersionId, VersionId], None] = lambda inode, before, version: None,
        notes: Notes | None = None,
        list_nested: Callable[[], frozenset[Steps]] = frozenset,
    ) -> None:
        """`teller` tells the kernel what it should ask for again. `writes`: the mount may be written, where the backend can be.
        `list_nodes` gives the node ids of a file; `on_sealed`, `notes`: see Drafts; `on_moved`: see
        Continuing; `list_nested`: see
        KernelMemory.

        `get_url` says where the daemon's HTTP server is. `generation` tells this daemon's handles from those of an earlier one
        on the same mount.
        """
        self._serving = serving
        self._get_url = get_url
        self._backend = backend
        self._root = root
        self._settings = settings
        self._clock = clock
        self._files: HandleTable[FileHandle] = HandleTable(generation)
        self._directories: HandleTable[DirectoryHandle] = HandleTable(generation)
        self._stale: BoundedDict[InodeId, None] = BoundedDict(_STALE_INODES)
        self._page_versions: BoundedDict[InodeId, int] = BoundedDict(_STALE_INODES)
        self._continuing = Continuing(on_moved, settings.io_timeout_s)
        self._root_until_s = 0.0
        self.drafts: Drafts | None = None
        """What is being written; None: nothing can be."""
        if writes and backend.drafts is not None:
            self.drafts = Drafts(
                backend.drafts,
                lambda inode: list(self._open.get(inode, ())),
                on_sealed,
                lambda inode: self.kernel_memory.tell_attributes(inode),  # noqa: PLW0108  (it is made below)
                notes,
            )
        self.kernel_memory = KernelMemory(
            backend,
            teller,
            root.attr.inode,
            clock,
            changes=self.drafts is not None,
            list_nodes=list_nodes,
            list_nested=list_nested,
        )
        self._away_until_s = 0.0
        self._open: dict[InodeId, list[FileHandle]] = {}
        self._totals: dict[int, Totals] = {}
        self._refreshes: dict[str, asyncio.Task[None]] = {}

    # Names and attributes

    async def lookup(self, parent: int, name: bytes) -> Answer:
        """A name in a directory; an answer without an entry may be kept by the kernel too."""
        if len(name) > NAME_MAX_BYTES:
            raise NameTooLong("a name has at most 255 bytes")
        directory, text = self.get_inode(parent), to_str(name)
        known = self._backend.lookup_old(directory, text)
        if known is not None and known.attr.inode in self._stale:
            known = None
        answer, is_fresh = await self._ask(lambda: self._backend.lookup(directory, text), known)
        if is_fresh and answer.entry is not None:
            # Whoever looked it up again has been told that this is the content of the moment.
            self._stale.discard(answer.entry.attr.inode)
        return self._show(answer.entry, answer.valid_s)

    def _show(self, entry: Entry | None, valid_s: float) -> Answer:
        """An answer for the kernel: with what is being written, which it is not to remember."""
        if entry is not None and (opened := self._open.get(entry.attr.inode)) is not None:
            self._continuing.move_on(opened, entry)
        if entry is not None and self.drafts is not None and self.drafts.find(entry) is not None:
            return Answer(replace(entry, attr=self.drafts.show(entry.attr)), 0.0)
        return Answer(entry, self._limit(valid_s))

    def show(self, entry: Entry, valid_s: float) -> tuple[Attr, float]:
        """Attributes as they are to be shown, and for how long."""
        shown = self._show(entry, valid_s)
        assert shown.entry is not None
        return shown.entry.attr, shown.valid_s

    def show_made(self, entry: Entry) -> tuple[Attr, float]:
        """As `show`, of what was just made or named: for as long as what is remembered of it is covered."""
        known = self._backend.get_known(entry.attr.inode)
        is_covered = known is not None and known.entry is not None and known.entry.attr == entry.attr
        return self.show(entry, known.valid_s if known is not None and is_covered else 0.0)

    async def getattr(self, node: int) -> tuple[Attr, float]:
        """Attributes and for how many seconds they may be kept."""
        if node == ROOT_NODE:
            if self._clock.monotonic() >= self._root_until_s:
                await self._refresh("root", self._refresh_root)
            left_s = self._root_until_s - self._clock.monotonic()
            return self._root.attr, self._limit(max(left_s, _KNOWN_VALID_S))
        return self.show(*await self._get_entry(InodeId(node)))

    def show_opened(self, node: int, attr: Attr) -> Attr:
        """Attributes as who has a node id open is to see them (where node ids have epochs, see nodes.py)."""
        opened = self._open.get(attr.inode)
        return attr if opened is None else as_opened(attr, opened, node)

    async def get_parent(self, node: int) -> int:
        """The node id of the directory that a directory is in. Raises NotFound where nobody has looked it up by its name."""
        await self.getattr(node)
        known = None if node == ROOT_NODE else self._backend.get_old(InodeId(node))
        if known is None or not known[1]:
            raise NotFound("the directory above it is not known: look it up by its path", subject=str(node))
        return ROOT_NODE if known[1] == self._root.attr.inode else known[1]

    def try_lookup(self, parent: int, name: bytes) -> Answer | None:
        """What `lookup` gives, when it can be had without asking anybody; else None."""
        directory = self.get_inode(parent)
        if len(name) > NAME_MAX_BYTES:
            return None
        answer = self._backend.lookup_known(directory, to_str(name))
        if answer is None:
            return None
        if answer.entry is not None:
            self._stale.discard(answer.entry.attr.inode)
        return self._show(answer.entry, answer.valid_s)

    def try_getattr(self, node: int) -> tuple[Attr, float] | None:
        """What `getattr` gives, when it can be had without asking anybody; else None."""
        if node == ROOT_NODE:
            left_s = self._root_until_s - self._clock.monotonic()
            return (self._root.attr, self._limit(left_s)) if left_s > 0 else None
        answer = self._backend.get_known(InodeId(node))
        if answer is None or answer.entry is None:
            return None
        return self.show(answer.entry, answer.valid_s)

    def begin_recall(self, recalls: Sequence[Recall]) -> Awaitable[None]:
        """Have the kernel ask again for what is taken back; what is returned is done once it will. The backend has forgotten
        it."""
        self._forget_root(recalls)
        drafts = self.drafts
        return self.kernel_memory.recall(
            recalls,
            [file.entry.attr.inode for file in self._files],
            [directory.entry.attr.inode for directory in self._directories],
            is_shown=lambda inode: drafts is not None and drafts.says(inode),
        )

    def note_changed(self, recalls: Sequence[Recall], entry: Entry | None) -> None:
        """What the kernel asked for was changed, so it knows; `entry` was made or changed."""
        self._forget_root(recalls)
        if entry is not None and entry.attr.inode == self._root.attr.inode:
            self._root_until_s = 0.0
        self.kernel_memory.note_own(recalls)

    def _forget_root(self, recalls: Sequence[Recall]) -> None:
        inode = self._root.attr.inode
        if any(recall.directory in (EVERYWHERE, inode) or inode in recall.inodes for recall in recalls):
            self._root_until_s = 0.0

    # Files

    def find_entry(self, node: int, flags: int) -> Entry | None:
        """The file that is to be opened, when it is known; else None. Raises ReadOnly for anything but reading, Stale,
        IsADirectory."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & (os.O_TRUNC | os.O_APPEND):
            raise self.refuse_write()
        inode = self.get_inode(node)
        if inode in self._stale:
            raise Stale("the file was replaced or removed", subject=str(inode))
        if self._backend.changes is None:
            # However long ago it was heard of: an inode's content is the same for ever.
            old = self._backend.get_old(inode)
            return None if old is None else self._check_kind(old[0])
        known = self._backend.get_known(inode)
        return None if known is None else self._check_kind(known.entry)

    async def get_entry_to_write(self, node: int) -> Entry:
        """The file that is to be written, as it is now. Raises IsADirectory, NotFound."""
        entry, _ = await self._get_entry(self.get_inode(node))
        self._check_kind(entry)
        return entry

    async def get_entry_to_open(self, node: int, flags: int) -> Entry:
        """The file that is to be opened. Raises as `find_entry`, and what keeps it from being known."""
        entry = self.find_entry(node, flags)
        if entry is None:
            entry, _ = await self._get_entry(self.get_inode(node))
            self._check_kind(entry)
        return entry

    def try_open(self, node: int, flags: int) -> int | None:
        """What `open` gives, when it can be had without asking anybody; else None."""
        entry = self.find_entry(node, flags)
        return None if entry is None else self.add_open(FileHandle(entry))

    async def open(self, node: int, flags: int) -> int:
        """The number of a new handle. Raises ReadOnly for anything but reading, Stale to make the kernel look the name up
        again."""
        return self.add_open(FileHandle(await self.get_entry_to_open(node, flags)))

    def add_open(self, file: FileHandle) -> int:
        """The number of a handle."""
        inode = file.entry.attr.inode
        opened = self._open.get(inode)
        if opened is None:
            self._open[inode] = [file]
        else:
            opened.append(file)
        return self._files.add(file)

    def refuse_running(self, inode: InodeId, seen_node: int = 0) -> None:
        """Raise FileError (ETXTBSY) for a change of the file of a program that runs. `seen_node`: of this node id the kernel has
        seen to that by itself."""
        if any(file.runs and file.node != seen_node for file in self._open.get(inode, ())):
            raise FileError(errno.ETXTBSY, "the file is a program that runs")

    def choose_pages(self, file: FileHandle) -> tuple[bool, bool]:
        """Of a file that was just opened, where it has one node id whatever its version: whether the kernel's pages of it are of
        this version, and whether it has to be read without them, since another version is open."""
        inode, version = file.entry.attr.inode, file.entry.attr.version
        if any(other.entry.attr.version != version for other in self._open.get(inode, ())):
            return True, True
        known = self._page_versions.lookup(inode)
        if known is not None or version > 1:
            self._page_versions.set(inode, version)
        return known == version if known is not None else version <= 1, False

    def lookup_file(self, handle: int) -> FileHandle | None:
        """What is open under a number; None: nothing of ours."""
        return self._files.lookup(handle)

    async def adopt_file(self, handle: int, node: int, *, writes: bool = False) -> None:
        """Take over a handle that an earlier daemon gave out for a node. Raises Internal for a number of our own that is not
        open."""
        if self._files.lookup(handle) is not None:
            return
        if not self._files.is_foreign(handle):
            raise Internal(f"handle {handle} is not open")
        entry, draft = await self._adopt(node, writes=writes)
        if self._files.lookup(handle) is None:
            file = FileHandle(entry, draft=draft, writes=draft is not None)
            self._open.setdefault(entry.attr.inode, []).append(file)
            self._files.adopt(handle, file)
            self.attach(file)
        elif draft is not None and self.drafts is not None:
            await self.drafts.begin_release(draft)

    async def _adopt(self, node: int, *, writes: bool) -> tuple[Entry, Draft | None]:
        async def lookup() -> Entry:
            try:
                return await self.get_entry_to_write(node)
            except NotFound:
                raise Stale("what an earlier daemon had open is gone", subject=str(node)) from None

        if not writes or self.drafts is None:
            return await lookup(), None
        # While nobody here had it open its worker may have sealed what was written, of which we are being told.
        return await take_newest(lookup, self.drafts.adopt)

    async def revive(self, inodes: Iterable[int], patience_s: float) -> None:
        """Know again what was being written through the daemon before this one; see Drafts. Does not raise."""
        for inode in inodes:
            if self.drafts is not None:
                try:
                    entry, _ = await self._get_entry(InodeId(inode))
                    await self.drafts.revive(entry, patience_s)
                except NotFound:
                    self.drafts.forget(InodeId(inode))
                except AlluxioLikeError as error:
                    log.info("a file that was being written is not known again: %s", error, extra={"inode": inode})

    def find_draft(self, entry: Entry) -> Draft | None:
        """What is being written of a file here."""
        return None if self.drafts is None else self.drafts.find(entry)

    def attach(self, file: FileHandle) -> None:
        """Have a handle that was just opened read what is being written, if the file is."""
        draft = self.find_draft(file.entry)
        if draft is not None and self.drafts is not None:
            self.drafts.attach(file, draft)

    def note_unlinked(self, entry: Entry) -> None:
        """A name of an inode was taken away: whoever has it open is shown how many are left."""
        for file in self._open.get(entry.attr.inode, ()):
            file.entry = replace(file.entry, attr=replace(file.entry.attr, nlink=entry.attr.nlink, ctime_ns=entry.attr.ctime_ns))

    def note_stale(self, entry: Entry) -> None:
        """The content of a file turned out to be gone: whoever opens it next looks its name up first."""
        inode = entry.attr.inode
        self._stale.set(inode, None)
        self.kernel_memory.tell_name(inode)

    @staticmethod
    def _check_kind(entry: Entry | None) -> Entry | None:
        if entry is not None and entry.attr.kind is Kind.DIRECTORY:
            raise IsADirectory("a directory cannot be read as a file", subject=entry.name)
        return entry

    def _get_reader(self, file: FileHandle) -> Reader:
        if file.reader is None:
            file.reader = self._backend.open_file(file.entry)
        return file.reader

    def try_read(self, handle: int, offset: int, length: int) -> Buffer | None:
        """What `read` gives, when it is at hand without waiting; valid until the next call of it."""
        return self.try_read_file(self._files.get(handle), offset, length)

    def try_read_file(self, file: FileHandle, offset: int, length: int, scratch: memoryview | None = None) -> Buffer | None:
        """As `try_read`. `scratch`: memory of at least that length; without it what is being written is not at hand."""
        if file.draft is not None:
            if self.drafts is None or scratch is None:
                return None
            count = self.drafts.try_read_into(file.draft, offset, scratch[:length])
            return scratch[:count] if count >= 0 else None
        length = min(length, file.entry.attr.size - offset)
        return self._get_reader(file).try_read(offset, length) if length > 0 else b""

    def begin_read(
        self, file: FileHandle, offset: int, length: int, on_end: Callable[[Buffer | None], None]
    ) -> Callable[[], None] | None:
        """Begin what `try_read_file` does not have, where no task is needed for it: see Reader. None: ask `read`."""
        length = min(length, file.entry.attr.size - offset)
        if file.draft is not None or file.failures or length <= 0:
            return None
        return self._get_reader(file).begin_read(offset, length, on_end)

    def share(self, file: FileHandle, offset: int, length: int) -> SharedRange | None:
        """What another process needs to answer a read by itself; None: it is to be answered here."""
        length = min(length, file.entry.attr.size - offset)
        return self._get_reader(file).share(offset, length) if length > 0 and file.draft is None else None

    async def read(self, handle: int, offset: int, length: int, *, waited_s: float = 0.0) -> Buffer:
        """Bytes of the file, short only at its end. Raises Stale, Store*, Unavailable, TimedOut, ... within io_timeout_s, less
        `waited_s`."""
        file = self._files.get(handle)
        if file.draft is not None and self.drafts is not None:
            return await self.drafts.use(file.draft, lambda fd: os.pread(fd, length, offset))
        length = min(length, file.entry.attr.size - offset)
        if length <= 0:
            return b""
        started_s = self._clock.monotonic()
        if file.failures:
            failure = file.lookup_failure(offset, offset + length, started_s)
            if failure is not None:
                raise failure.error
        try:
            async with asyncio.timeout(self._settings.io_timeout_s - waited_s):
                data = await self._get_reader(file).read(offset, length)
        except TimeoutError:
            error: AlluxioLikeError = TimedOut(f"not read within {self._settings.io_timeout_s:g} s", subject=file.entry.name)
            self._note_failure(file, offset, length, started_s, error)
            raise error from None
        except AlluxioLikeError as error:
            self._note_failure(file, offset, length, started_s, error)
            raise
        if len(data) != length:
            raise StoreError(f"{len(data)} bytes instead of {length}", subject=file.entry.name)
        return data

    def begin_release(self, handle: int) -> FileHandle | None:
        """Forget an open file; it is the caller's to close its reader, and to release its draft if it writes. None: it was not
        open."""
        file = self._files.pop(handle)
        if file is not None:
            inode = file.entry.attr.inode
            opened = self._open[inode]
            if len(opened) == 1:
                del self._open[inode]
            else:
                opened.remove(file)
            if file.draft is not None and not file.writes and self.drafts is not None:
                self.drafts.detach(file)
        return file

    async def release(self, handle: int) -> None:
        """Forget an open file."""
        file = self.begin_release(handle)
        if file is not None and file.reader is not None:
            await file.reader.close()

    # Directories

    async def opendir(self, node: int) -> int:
        """The number of a new directory handle."""
        return self.add_directory(await self.get_directory(node))

    def add_directory(self, directory: DirectoryHandle, *, in_kernel: bool = True) -> int:
        """The number of a handle. `in_kernel`: the kernel copies what is listed by it."""
        directory.in_kernel = in_kernel
        return self._directories.add(directory)

    def lookup_directory(self, handle: int) -> DirectoryHandle | None:
        """The directory that is open under a number; None: none of ours."""
        return self._directories.lookup(handle)

    def has_open_directory(self, node: int) -> bool:
        """Whether a directory is open."""
        inode = self.get_inode(node)
        return any(directory.entry.attr.inode == inode for directory in self._directories)

    async def adopt_directory(self, handle: int, node: int) -> None:
        """Take over a directory handle that an earlier daemon gave out. Raises Internal for a number of our own that is not
        open."""
        if self._directories.lookup(handle) is not None:
            return
        if not self._directories.is_foreign(handle):
            raise Internal(f"handle {handle} is not open")
        directory = await self.get_directory(node)
        if self._directories.lookup(handle) is None:
            self._directories.adopt(handle, directory)

    async def get_directory(self, node: int) -> DirectoryHandle:
        """What becomes a handle. Raises NotADirectory."""
        if node == ROOT_NODE:
            entry = self._root
        else:
            known = self._backend.get_old(InodeId(node))
            entry = (await self._get_entry(InodeId(node)))[0] if known is None else known[0]
        if entry.attr.kind is not Kind.DIRECTORY:
            raise NotADirectory("not a directory", subject=entry.name)
        found = None if node == ROOT_NODE else self._backend.get_old(entry.attr.inode)
        return DirectoryHandle(entry, entry.attr.inode if found is None or not found[1] else found[1])

    async def readdir(self, handle: int, offset: int, emit: Emit) -> float:
        """Hands entries from `offset` on to `emit` until it has no room; nothing handed over means the end. For how many seconds
        what it says may be kept.

        Offsets 0 and 1 are "." and "..", and entry number n of the listing is offset n + 2. A reply ends where a page of the
        listing ends, so that no entry waits for those behind it.
        """
        directory = self._directories.get(handle)
        async with directory.lock:
            if offset == 0:
                directory.restart()
                if not emit(b".", directory.entry.attr, 0.0, 1, False):
                    return 0.0
                offset = 1
            if offset == 1:
                dotdot = replace(directory.entry.attr, inode=directory.parent)
                if not emit(b"..", dotdot, 0.0, 2, False):
                    return 0.0
                offset = 2
            found = await directory.find_page(
                self._backend, offset - 2, lambda: (self.kernel_memory.recalls, self._clock.monotonic())
            )
            if found is None:
                # That there is no more is as good as what came last.
                return 0.0 if directory.last_page is None else self._get_valid_s(directory.last_page)
            page, first = found
            valid_s = self._get_valid_s(page)
            for place in range(first, len(page.entries)):
                entry = page.entries[place]
                attr, shown_s = self.show(entry, valid_s) if self.drafts is not None else (entry.attr, valid_s)
                if not emit(to_bytes(entry.name), attr, shown_s, page.numbers[place] + 3, True):
                    break
            return valid_s

    def _get_valid_s(self, page: KeptPage) -> float:
        recalls, asked_s = page.mark
        if recalls != self.kernel_memory.recalls:
            return 0.0
        return self._limit(page.valid_s - (self._clock.monotonic() - asked_s))

    async def releasedir(self, handle: int) -> None:
        """Forget an open directory."""
        self.forget_directory(handle)

    def forget_directory(self, handle: int) -> None:
        """Forget an open directory."""
        self._directories.pop(handle)

    # The rest

    async def statfs(self, node: int) -> Totals:
        """Sums over the namespace and the space at an inode, from memory when the services do not answer at once."""
        await self._refresh(f"totals {node}", lambda: self._refresh_totals(node))
        known = self._totals.get(node) or next(iter(self._totals.values()), None)
        return known or Totals(0, 0)

    def may_have_xattr(self, node: int, name: bytes) -> bool:
        """Whether an extended attribute can be there; what cannot need not be asked for."""
        if xattrs.is_known(name):
            return True
        if not xattrs.is_settable(name):
            return False
        if node == ROOT_NODE:
            return self._clock.monotonic() >= self._root_until_s or self._root.attr.has_xattrs
        answer = self._backend.get_known(InodeId(node))
        return answer is None or answer.entry is None or answer.entry.attr.has_xattrs

    async def getxattr(self, node: int, name: bytes) -> bytes:
        """The value of an extended attribute. Raises NoData for one that is not there, Unsupported for one that cannot be."""
        if not xattrs.has_namespace(name):
            raise Unsupported("there are no such extended attributes", subject=to_str(name))
        if not xattrs.is_known(name):
            # The kernel and ls ask for security.* and lists of every file; that must cost nothing.
            value = (await self._get_users_xattrs(node)).get(name) if xattrs.is_settable(name) else None
            if value is None:
                raise NoData("no such extended attribute")
            return value
        entry = await self.get_shown_entry(node)
        if name == xattrs.HTTP and node == ROOT_NODE:
            return self._get_url().encode()
        if name == xattrs.SESSION and node == ROOT_NODE:
            return self._serving.describe_session().encode()
        if name == xattrs.PASSTHROUGH and entry.attr.kind is Kind.FILE:
            if not self._backend.is_prepared:
                await self._backend.prepare()
            return (await self._serving.describe_file(entry)).encode()
        state = None
        if entry.attr.kind is Kind.FILE and xattrs.needs_cache_state(name):
            state = await self._backend.get_cache_state(entry)
        return xattrs.format_value(name, entry, state)

    async def listxattr(self, node: int, uid: int = 0) -> list[bytes]:
        """The names of an inode's extended attributes that a user sees. Ours are not among them: whoever copies a file with its
        attributes, or compares them, asks for this list."""
        await self.get_shown_entry(node)
        return [name for name in await self._get_users_xattrs(node) if xattrs.is_shown(name, uid)]

    async def _get_users_xattrs(self, node: int) -> dict[bytes, bytes]:
        changes = self._backend.changes
        # (That there are none is known without the master, also while it restarts.)
        if changes is None or not (await self.getattr(node))[0].has_xattrs:
            return {}
        return await changes.get_xattrs(self.get_inode(node))

    async def readlink(self, node: int) -> bytes:
        """Where a symbolic link leads. Raises InvalidArgument for anything else."""
        changes = self._backend.changes
        if changes is None:
            raise InvalidArgument("not a symbolic link", subject=str(node))
        return to_bytes(await changes.read_link(self.get_inode(node)))

    def refuse_write(self) -> ReadOnly:
        """What every operation that would change something raises."""
        return ReadOnly("this mount is read-only")

    def count_open(self) -> int:
        """Open files and directories."""
        return len(self._files) + len(self._directories)

    async def close(self) -> None:
        """Let go of everything that is still open; does not raise."""
        for task in list(self._refreshes.values()):
            task.cancel()
        await asyncio.gather(*self._refreshes.values(), return_exceptions=True)
        await self._continuing.close()
        readers = [file.reader for file in self._files if file.reader is not None]
        await asyncio.gather(*(reader.close() for reader in readers), return_exceptions=True)
        if self.drafts is not None:
            await self.drafts.close()
        self._files = HandleTable()
        self._directories = HandleTable()
        self._open.clear()

    # Inside

    def get_inode(self, node: int) -> InodeId:
        """The inode of a node id that was stripped of its epoch (nodes.py); the mount's root has node id 1."""
        return self._root.attr.inode if node == ROOT_NODE else InodeId(node)

    def _limit(self, valid_s: float) -> float:
        return max(0.0, min(valid_s, self._settings.entry_timeout_s))

    async def get_shown_entry(self, node: int) -> Entry:
        """What is known of an inode now."""
        return self._root if node == ROOT_NODE else (await self._get_entry(InodeId(node)))[0]

    async def _get_entry(self, inode: InodeId) -> tuple[Entry, float]:
        """The backend's answer; while it is away, what was last known; for what is open, what was opened."""
        try:
            known = self._backend.get_old(inode)
            answer, _ = await self._ask(lambda: self._backend.get_entry(inode), None if known is None else known[0])
        except NotFound:
            opened = self._open.get(inode)
            if not opened:
                raise
            return opened[-1].entry, _ORPHAN_VALID_S
        if answer.entry is None:
            raise NotFound("no such inode", subject=str(inode))
        return answer.entry, answer.valid_s

    async def _ask(self, call: Callable[[], Awaitable[Answer]], known: Entry | None) -> tuple[Answer, bool]:
        """The backend's answer and True; or, when that does not come soon, what is known, for a moment, and False."""
        if known is None:
            return await call(), True
        is_away = self._clock.monotonic() < self._away_until_s
        try:
            async with asyncio.timeout(_WAIT_AWAY_S if is_away else _WAIT_KNOWN_S):
                return await call(), True
        except (TimeoutError, Unavailable, TimedOut):
            self._away_until_s = self._clock.monotonic() + _AWAY_S
            return Answer(known, _KNOWN_VALID_S), False

    async def _refresh(self, name: str, refresh: Callable[[], Coroutine[None, None, None]]) -> None:
        """Let a refresh run, one at a time, and wait for it a little while only."""
        task = self._refreshes.get(name)
        if task is None:
            task = asyncio.create_task(refresh())
            self._refreshes[name] = task
            task.add_done_callback(lambda _: self._refreshes.pop(name, None))
        await asyncio.wait([task], timeout=_QUICK_ANSWER_S)

    async def _refresh_root(self) -> None:
        try:
            answer = await self._backend.get_entry(self._root.attr.inode)
        except AlluxioLikeError:
            return
        if answer.entry is not None and answer.entry.attr.kind is Kind.DIRECTORY:
            self._root = answer.entry
            self._root_until_s = self._clock.monotonic() + answer.valid_s

    async def _refresh_totals(self, node: int) -> None:
        try:
            totals = await self._backend.get_totals(self.get_inode(node))
        except AlluxioLikeError:
            return
        if len(self._totals) >= _TOTALS_KEPT:
            self._totals.clear()
        self._totals[node] = totals

    def _note_failure(self, file: FileHandle, offset: int, length: int, started_s: float, error: AlluxioLikeError) -> None:
        if isinstance(error, Stale):
            self.note_stale(file.entry)
        now_s = self._clock.monotonic()
        if now_s - started_s >= _SLOW_FAILURE_S:
            file.add_failure(Failure(offset, offset + length, error, now_s + _FAILURE_KEPT_S))
