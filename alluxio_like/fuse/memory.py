"""A backend in memory, for tests: a tree of names and bytes that can change, stall and fail on demand.

Owns its tree; keeps to the Backend's promises, time limit included. With a directory for whole files it plays the local cache
too: what is filled becomes a real file there, which the kernel can read by itself. Used from one event loop.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alluxio_like.errors import AlluxioLikeError, NotADirectory, NotFound, Stale, TimedOut, Unsupported
from alluxio_like.fuse.backend import (
    Answer,
    Buffer,
    CachedCopy,
    CacheState,
    Changes,
    DraftFiles,
    Listing,
    MountLocks,
    Totals,
    WholeFile,
)
from alluxio_like.fuse.memory_writing import MemoryWriting
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import (
    ROOT_INODE,
    Attr,
    Entry,
    FileRef,
    Fingerprint,
    InodeId,
    Kind,
    MountId,
    Recall,
    SharedRange,
    VersionId,
    to_bytes,
)
from alluxio_like.waits import NONE, Seconds

_PIECE_BYTES = 1 << 20
_TIME_NS = 1_700_000_000_123_456_789

Content = bytes | Callable[[int, int], bytes]
"""A file's bytes, or a function of offset and length that makes them."""


@dataclass(slots=True)
class _Node:
    entry: Entry
    content: Content = b""
    children: dict[str, InodeId] = field(default_factory=dict)
    gone: bool = False


@dataclass(slots=True)
class Faults:
    """What goes wrong at the moment. `stall_reads` and `stall_names` make calls wait until it is lifted or time is up."""

    stall_reads: asyncio.Event | None = None
    stall_names: asyncio.Event | None = None
    stall_fills: asyncio.Event | None = None
    stall_creates: asyncio.Event | None = None
    refuse_fills: bool = False
    fail_reads: AlluxioLikeError | None = None
    fail_names: AlluxioLikeError | None = None
    fail_changes: AlluxioLikeError | None = None
    """Changes are made, and their answers are this."""


class MemoryWhole:
    """An opened file of the directory of whole files, which `directory` stands for."""

    def __init__(self, path: Path, directory: object) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.directory = directory

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class MemoryReader:
    """An open file of a MemoryBackend."""

    def __init__(self, backend: "MemoryBackend", node: _Node) -> None:
        self._backend = backend
        self._node = node
        self._whole: MemoryWhole | None = None
        self.closed = False

    def get_waits(self) -> Seconds:
        return NONE

    def find_whole(self) -> MemoryWhole | None:
        if self._whole is None:
            self._whole = self._backend.find_whole(self._node.entry)
        return self._whole

    async def fill_whole(self, priority: Priority) -> bool:
        backend = self._backend
        backend.fills += 1
        await backend.wait(backend.faults.stall_fills)
        if self._node.gone:
            raise Stale("the content is gone", subject=self._node.entry.name)
        faults = backend.faults
        if not (faults.refuse_fills or faults.fail_reads or faults.stall_reads or backend.never_now):
            backend.complete(self._node.entry.attr.inode)
        return self.find_whole() is not None

    def begin_read(self, offset: int, length: int, on_end: Callable[[Buffer | None], None]) -> Callable[[], None] | None:
        return None

    def share(self, offset: int, length: int) -> SharedRange | None:
        backend = self._backend
        whole = self.find_whole()
        if whole is None or backend.never_now or backend.faults.stall_reads or backend.faults.fail_reads or self._node.gone:
            return None
        return SharedRange(whole, whole.fd, self._node.entry.attr.size, offset, length, 0, ())

    def note_shared(self, shared: SharedRange) -> None:
        self._backend.reads_shared += 1

    def try_read(self, offset: int, length: int) -> Buffer | None:
        backend = self._backend
        if backend.never_now or backend.faults.stall_reads or backend.faults.fail_reads or self._node.gone:
            return None
        backend.reads_now += 1
        return self._get(offset, length)

    async def read(self, offset: int, length: int) -> Buffer:
        self._backend.reads += 1
        await self._backend.wait(self._backend.faults.stall_reads)
        if self._backend.faults.fail_reads is not None:
            raise self._backend.faults.fail_reads
        if self._node.gone:
            raise Stale("the content is gone", subject=self._node.entry.name)
        return self._get(offset, length)

    def begin_close(self) -> Coroutine[None, None, None] | None:
        if not self.closed:
            self.closed = True
            self._backend.open_readers -= 1
            if self._whole is not None:
                self._whole.close()
        return None

    async def close(self) -> None:
        self.begin_close()

    def _get(self, offset: int, length: int) -> bytes:
        content = self._node.content
        return content[offset : offset + length] if isinstance(content, bytes) else content(offset, length)


class MemoryBackend:
    """A tree below inode 1. Inode ids are never used twice; replacing a file gives its path a new one."""

    def __init__(
        self,
        *,
        valid_s: float = 5.0,
        io_timeout_s: float = 30.0,
        page_entries: int = 1000,
        whole_dir: Path | None = None,
        write_dir: Path | None = None,
    ) -> None:
        """`whole_dir`: where files that are wholly local are kept; None: there are none. `write_dir`: where files are while they
        are written; None: nothing can be changed."""
        self.valid_s = valid_s
        self.io_timeout_s = io_timeout_s
        self.page_entries = page_entries
        self.faults = Faults()
        self.never_now = False
        self.calls: dict[str, int] = {}
        self.reads = 0
        self.reads_now = 0
        self.reads_shared = 0
        self.fills = 0
        self._whole_dir = whole_dir
        self.open_readers = 0
        self.listener: Callable[[Sequence[Recall]], Awaitable[None]] | None = None
        self._next_inode = 2
        self.writing = None if write_dir is None else MemoryWriting(self, write_dir)
        self._answered: dict[InodeId, tuple[Entry, InodeId]] = {}
        self._answered_names: dict[tuple[InodeId, str], InodeId] = {}
        self._nodes: dict[InodeId, _Node] = {ROOT_INODE: _Node(self._make_entry("", ROOT_INODE, Kind.DIRECTORY, 0))}

    # Building the tree

    def add_directory(self, path: str) -> InodeId:
        """The directory at an absolute path, made with all that lead to it."""
        inode = ROOT_INODE
        for name in [part for part in path.split("/") if part]:
            children = self._nodes[inode].children
            if name not in children:
                children[name] = self.add_node(name, Kind.DIRECTORY, 0, b"")
            inode = children[name]
        return inode

    def add_file(self, path: str, content: Content, size: int | None = None) -> InodeId:
        """A file, or the replacement of one; `size` is needed where the content is a function."""
        directory, _, name = path.rpartition("/")
        children = self._nodes[self.add_directory(directory)].children
        self._drop(children, name)
        length = len(content) if isinstance(content, bytes) else size or 0
        children[name] = self.add_node(name, Kind.FILE, length, content)
        return children[name]

    def add_many(self, directory: str, names: Iterable[str], content: bytes = b"") -> None:
        """Files of equal content in one directory."""
        children = self._nodes[self.add_directory(directory)].children
        for name in names:
            children[name] = self.add_node(name, Kind.FILE, len(content), content)

    def remove(self, path: str) -> None:
        """Take a name away; what is open of it turns stale."""
        directory, _, name = path.rpartition("/")
        self._drop(self._nodes[self.add_directory(directory)].children, name)

    def set_owner(self, path: str, uid: int, gid: int, mode: int) -> None:
        """Change owner and permission bits in place."""
        node = self._nodes[self._find(path)]
        node.entry = replace(node.entry, attr=replace(node.entry.attr, uid=uid, gid=gid, mode=mode))

    def complete(self, inode: InodeId) -> None:
        """Make a file wholly local."""
        node = self.get_node(inode)
        path = self.get_whole_path(inode)
        if path is None or path.exists():
            return
        size, content = node.entry.attr.size, node.content
        with open(path.with_suffix(".new"), "wb") as file:
            for offset in range(0, size, _PIECE_BYTES):
                length = min(_PIECE_BYTES, size - offset)
                file.write(content[offset : offset + length] if isinstance(content, bytes) else content(offset, length))
        path.with_suffix(".new").rename(path)

    def complete_path(self, path: str) -> None:
        """Make the file at a path wholly local."""
        self.complete(self._find(path))

    def evict(self, path: str) -> None:
        """Take a wholly local file away; who has it open keeps it."""
        self.evict_inode(self._find(path))

    def evict_inode(self, inode: InodeId) -> None:
        """As `evict`."""
        whole = self.get_whole_path(inode)
        if whole is not None:
            whole.unlink(missing_ok=True)

    def get_whole_path(self, inode: InodeId) -> Path | None:
        """Where a file is once it is wholly local; None: nowhere."""
        return None if self._whole_dir is None else self._whole_dir / str(inode)

    # Backend

    @property
    def changes(self) -> Changes | None:
        return self.writing

    @property
    def pending(self) -> None:
        return None

    def open_locks(self, holder: str) -> MountLocks:
        raise Unsupported("a tree in memory leaves locks to the kernel", subject=holder)

    @property
    def drafts(self) -> DraftFiles | None:
        return self.writing

    def open_far(self, entry: Entry) -> "MemoryReader | None":
        return None

    def expect_open(self, entry: Entry) -> None:
        """Nothing is on another machine."""

    def find_whole(self, entry: Entry) -> MemoryWhole | None:
        path = self.get_whole_path(entry.attr.inode)
        return MemoryWhole(path, self) if path is not None and path.exists() else None

    async def verify_whole(self, entry: Entry, whole: WholeFile) -> bool:
        await self._enter("verify_whole")
        node, size = self.get_node(entry.attr.inode), entry.attr.size
        wanted = node.content if isinstance(node.content, bytes) else node.content(0, size)
        right = os.pread(whole.fd, size, 0) == wanted
        if not right and (path := self.get_whole_path(entry.attr.inode)) is not None:
            path.unlink()
        return right

    @property
    def is_prepared(self) -> bool:
        return True

    async def prepare(self) -> None:
        return None

    def note_read(self, ref: FileRef, read_bytes: int) -> None:
        pass

    def lookup_known(self, parent: InodeId, name: str) -> Answer | None:
        return None

    def get_known(self, inode: InodeId) -> Answer | None:
        return None

    def lookup_old(self, parent: InodeId, name: str) -> Entry | None:
        known = self._answered_names.get((parent, name))
        return None if known is None else self._answered[known][0]

    def get_old(self, inode: InodeId) -> tuple[Entry, InodeId] | None:
        return self._answered.get(inode)

    def list_known_names(self, directory: InodeId, limit: int) -> list[bytes] | None:
        names = [to_bytes(name) for parent, name in self._answered_names if parent == directory]
        return names if len(names) <= limit else None

    def _remember(self, parent: InodeId, name: str, entry: Entry) -> None:
        self._answered[entry.attr.inode] = (entry, parent)
        self._answered_names[parent, name] = entry.attr.inode

    async def resolve(self, path: str) -> Answer:
        await self._enter("resolve")
        return Answer(self._nodes[self._find(path)].entry, self.valid_s)

    async def lookup(self, parent: InodeId, name: str) -> Answer:
        await self._enter("lookup")
        inode = self.get_directory(parent).children.get(name)
        if inode is None:
            self._answered_names.pop((parent, name), None)
            return Answer(None, self.valid_s)
        self._remember(parent, name, self._nodes[inode].entry)
        return Answer(self._nodes[inode].entry, self.valid_s)

    async def get_entry(self, inode: InodeId) -> Answer:
        await self._enter("get_entry")
        return Answer(self.get_node(inode).entry, self.valid_s)

    async def list_dir(self, inode: InodeId, cursor: bytes | None) -> Listing:
        await self._enter("list_dir")
        children = self.get_directory(inode).children
        names = sorted(name for name in children if cursor is None or name.encode(errors="surrogateescape") > cursor)
        page = names[: self.page_entries]
        for name in page:
            self._remember(inode, name, self._nodes[children[name]].entry)
        more = page[-1].encode(errors="surrogateescape") if len(names) > len(page) else None
        return Listing([self._nodes[children[name]].entry for name in page], more, self.valid_s)

    def open_file(self, entry: Entry) -> MemoryReader:
        self.open_readers += 1
        return MemoryReader(self, self.get_node(entry.attr.inode))

    def watch(self, listener: Callable[[Sequence[Recall]], Awaitable[None]], succeeds: Sequence[str] = ()) -> str:
        self.listener = listener
        return ""

    async def get_totals(self, inode: InodeId) -> Totals:
        await self._enter("get_totals")
        live = [node.entry.attr.size for node in self._nodes.values() if not node.gone]
        return Totals(len(live), sum(live))

    async def get_cache_state(self, entry: Entry) -> CacheState:
        await self._enter("get_cache_state")
        return CacheState(entry.attr.size, [CachedCopy("w1", "127.0.0.1:1", entry.attr.size)])

    # Inside

    async def wait(self, stall: asyncio.Event | None) -> None:
        """Wait for a stall's end as a real service would be waited for."""
        if stall is None:
            return
        try:
            async with asyncio.timeout(self.io_timeout_s):
                await stall.wait()
        except TimeoutError:
            raise TimedOut(f"no answer within {self.io_timeout_s:g} s") from None

    async def _enter(self, call: str) -> None:
        self.calls[call] = self.calls.get(call, 0) + 1
        await self.wait(self.faults.stall_names)
        if self.faults.fail_names is not None:
            raise self.faults.fail_names

    def _make_entry(self, name: str, inode: InodeId, kind: Kind, size: int) -> Entry:
        is_file = kind is Kind.FILE
        version = VersionId(1 if is_file else 0)
        attr = Attr(inode, kind, 0o644 if is_file else 0o755, 0, 0, size, _TIME_NS, _TIME_NS, 1, version)
        ref = FileRef(inode, version, MountId(1), name, Fingerprint(f"t{inode}", size)) if is_file else None
        return Entry(name, attr, ref)

    def add_node(self, name: str, kind: Kind, size: int, content: Content = b"") -> InodeId:
        """An inode that no name leads to yet."""
        inode = InodeId(self._next_inode)
        self._next_inode += 1
        self._nodes[inode] = _Node(self._make_entry(name, inode, kind, size), content)
        return inode

    def _drop(self, children: dict[str, InodeId], name: str) -> None:
        inode = children.pop(name, None)
        if inode is not None:
            self._nodes[inode].gone = True

    def _find(self, path: str) -> InodeId:
        inode = ROOT_INODE
        for name in [part for part in path.split("/") if part]:
            found = self.get_directory(inode).children.get(name)
            if found is None:
                raise NotFound("no such path", subject=path)
            inode = found
        return inode

    def get_node(self, inode: InodeId) -> _Node:
        """What is known of an inode. Raises NotFound."""
        node = self._nodes.get(inode)
        if node is None:
            raise NotFound("no such inode", subject=str(inode))
        return node

    def get_directory(self, inode: InodeId) -> _Node:
        """As `get_node`. Raises NotADirectory too."""
        node = self.get_node(inode)
        if node.entry.attr.kind is not Kind.DIRECTORY:
            raise NotADirectory("not a directory", subject=node.entry.name)
        return node
