"""What the operations need from below: names, attributes, listings, bytes.

Owns the Protocol and its plain data; the client library is adapted to it in `client_backend`, tests have a tree in memory.
Everything is called from one event loop, any number of calls at once. Every awaited call ends within the configured io_timeout_s,
by an answer or by one of the package's errors; a cancelled call leaves nothing behind.
"""

import os
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from alluxio_like.locks import Lock, Place
from alluxio_like.rpc.messages import Priority
from alluxio_like.rpc.messages_writing import Changed, DraftSealed, NewAttributes, NewName, Renaming, XattrChange
from alluxio_like.types import Entry, FileRef, InodeId, MountId, Recall, SharedRange, Space, WorkerId
from alluxio_like.waits import Seconds

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Answer:
    """An entry, or None for a name that does not exist, and for how many seconds it may be used without asking again."""

    entry: Entry | None
    valid_s: float


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a directory in the order of the listing; `next_cursor` continues it, None ends it."""

    entries: Sequence[Entry]
    next_cursor: bytes | None
    valid_s: float


@dataclass(frozen=True, slots=True)
class Totals:
    """What is known of the whole namespace: inodes and the bytes of all files. `space`: what the place asked about can hold
    (None: nothing is known to limit it)."""

    files: int
    known_bytes: int
    space: Space | None = None


@dataclass(frozen=True, slots=True)
class CachedCopy:
    """What one worker holds of a file; `address` is host:port."""

    worker_id: str
    address: str
    cached_bytes: int


@dataclass(frozen=True, slots=True)
class CacheState:
    """Where a file is cached. `cached_bytes` counts each byte once, however many workers hold it."""

    cached_bytes: int
    copies: Sequence[CachedCopy]


class WholeFile(Protocol):
    """A file on this machine that holds all of a content, open for reading. It is not evicted while it is open, here or in the
    kernel."""

    @property
    def fd(self) -> int:
        """The descriptor; the file's own until `close`."""
        ...

    @property
    def directory(self) -> Hashable:
        """What stands for the cache directory it is in."""
        ...

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        ...


class Reader(Protocol):
    """One open file: one content, to the end."""

    def get_waits(self) -> Seconds:
        """For how long, and for what, reads and fills of it have waited by now."""
        ...

    def find_whole(self) -> WholeFile | None:
        """The file on this machine that holds all of the content, if there is one; the reader's own, open while the reader is.

        Quick; waits for nothing.
        """
        ...

    async def fill_whole(self, priority: Priority) -> bool:
        """Have all of the content brought to this machine, if it may be kept here; whether `find_whole` has it now.

        Raises Stale when the content is gone; any other failure is False, and for `read` to tell.
        """
        ...

    def share(self, offset: int, length: int) -> SharedRange | None:
        """What another process needs to read a range within the file by itself; None: it is not at hand in a cache file."""
        ...

    def note_shared(self, shared: SharedRange) -> None:
        """Another process has read and verified what was shared. It may also be told after `begin_close`."""
        ...

    def try_read(self, offset: int, length: int) -> Buffer | None:
        """Exactly `length` bytes when they are at hand without waiting for anything, else None.

        The caller keeps the range within the file. The buffer may be used again by the next call from the event loop.
        """
        ...

    def begin_read(self, offset: int, length: int, on_end: Callable[[Buffer | None], None]) -> Callable[[], None] | None:
        """Begin a read within the file, of what `try_read` does not have, for which no task is needed. None: use `read`.

        `on_end` is called later, once, with exactly `length` bytes or with None: `read` is to be asked, also for what was wrong.
        What is returned gives the read up: `on_end` is not called any more.
        """
        ...

    async def read(self, offset: int, length: int) -> Buffer:
        """Exactly `length` bytes within the file. Raises Stale when the content is gone, Store*, Unavailable, TimedOut, ..."""
        ...

    def begin_close(self) -> Coroutine[None, None, None] | None:
        """Let go of descriptors and buffers, now; what then has to be awaited until reads under way have ended, if there are
        any."""
        ...

    async def close(self) -> None:
        """Let go of descriptors and buffers; ends reads under way. Does not raise."""
        ...


class Changes(Protocol):
    """What programs change in the namespace: client/changes.py, whose words apply."""

    async def create(self, new: NewName, operation_id: str = "") -> Changed: ...

    async def link(self, inode: InodeId, parent: InodeId, name: str, operation_id: str = "") -> Changed: ...

    async def remove(self, parent: InodeId, name: str, *, directory: bool, operation_id: str = "") -> Changed: ...

    async def rename(self, renaming: Renaming, operation_id: str = "") -> Changed: ...

    async def set_attributes(self, inode: InodeId, wanted: NewAttributes, operation_id: str = "") -> Changed: ...

    async def flush(self) -> None: ...

    async def read_link(self, inode: InodeId) -> str: ...

    async def get_xattrs(self, inode: InodeId) -> dict[bytes, bytes]: ...

    async def set_xattr(self, inode: InodeId, change: XattrChange, operation_id: str = "") -> Changed: ...


class OpenedDraft(Protocol):
    """A draft, open for reading and writing; `fd` is the receiver's. `worker_id`: who keeps it."""

    @property
    def worker_id(self) -> WorkerId: ...

    @property
    def fd(self) -> int: ...


class DraftFiles(Protocol):
    """Files that are being written: client/drafts.py, whose words apply."""

    async def check_writable(self, mount_id: MountId) -> None: ...

    async def begin(self, ref: FileRef, *, truncate: bool) -> OpenedDraft: ...

    async def seal(
        self, worker_id: WorkerId, inode: InodeId, operation_id: str, *, early: bool = False
    ) -> DraftSealed | None: ...

    async def sync(self, worker_id: WorkerId, inode: InodeId) -> None: ...

    async def end(self, worker_id: WorkerId, inode: InodeId) -> None: ...

    async def end_all(self, worker_id: WorkerId, inodes: Sequence[InodeId]) -> None: ...

    def is_pending(self, inode: InodeId) -> bool: ...

    async def settle(self, inodes: Iterable[InodeId]) -> None: ...

    async def find(self, inode: InodeId) -> WorkerId: ...

    async def claim(self, inode: InodeId, size: int, *, only_asks: bool = False) -> int | None: ...

    async def has_room(self, worker_id: WorkerId, size: int) -> bool: ...


class PendingContents(Protocol):
    """What such files hold: drafts.py, whose words apply."""

    def stat_pending(self, inode: InodeId) -> os.stat_result | None: ...

    def note_published(self, inode: InodeId, ref: FileRef, before: os.stat_result | None) -> None: ...


class PendingFiles(Protocol):
    """Files that are made without asking the master: client/pending.py, whose words apply."""

    contents: PendingContents | None

    async def start(self, owner: str, *, succeeds: bool, makes: bool = True) -> None: ...


class MountLocks(Protocol):
    """Locks of one mount: client/locks.py, whose words apply."""

    holder: str

    async def set(self, place: Place, lock: Lock, *, wait: bool) -> Lock | None: ...

    async def test(self, place: Place, lock: Lock) -> Lock | None: ...

    async def drop(self, place: Place, number: int) -> None: ...

    def has_any(self, place: Place, number: int) -> bool: ...

    def list_ranges(self) -> list[tuple[Place, Lock]]: ...


class Backend(Protocol):
    """The namespace and its files."""

    @property
    def changes(self) -> Changes | None:
        """What changes the namespace; None: nothing can be changed, and nothing be written."""
        ...

    @property
    def drafts(self) -> DraftFiles | None:
        """Files that are being written; there where `changes` is."""
        ...

    @property
    def pending(self) -> PendingFiles | None:
        """Files that are made without asking the master; None: it is always asked."""
        ...

    def open_locks(self, holder: str) -> MountLocks:
        """Locks of files for the mount of that name; once."""
        ...

    async def resolve(self, path: str) -> Answer:
        """An absolute path of the namespace."""
        ...

    async def lookup(self, parent: InodeId, name: str) -> Answer:
        """A name in a directory."""
        ...

    def lookup_known(self, parent: InodeId, name: str) -> Answer | None:
        """What `lookup` would answer, if it would do so without asking anybody."""
        ...

    def get_known(self, inode: InodeId) -> Answer | None:
        """What `get_entry` would answer, if it would do so without asking anybody."""
        ...

    def lookup_old(self, parent: InodeId, name: str) -> Entry | None:
        """What a name led to when it was last asked for, however long ago."""
        ...

    def get_old(self, inode: InodeId) -> tuple[Entry, InodeId] | None:
        """What was last known of an inode, and the directory it was in, however long ago."""
        ...

    def list_known_names(self, directory: InodeId, limit: int) -> Sequence[bytes] | None:
        """The names of a directory that were ever answered and are still remembered; None: more than `limit`."""
        ...

    async def get_entry(self, inode: InodeId) -> Answer:
        """An inode by its id, also one that no name leads to any more. Raises NotFound; the answer's entry is never None."""
        ...

    async def list_dir(self, inode: InodeId, cursor: bytes | None) -> Listing:
        """The next page of a directory; `cursor` None starts."""
        ...

    def open_file(self, entry: Entry) -> Reader:
        """A reader of the content the entry names; no I/O yet."""
        ...

    def open_far(self, entry: Entry) -> Reader | None:
        """A reader of a small file that is best read from another machine, its bytes on their way here already; else None. Quick,
        waits for nothing.
        """
        ...

    def expect_open(self, entry: Entry) -> None:
        """A file is about to be opened: what `open_far` would have sent here then may be sent now. Quick, waits for nothing."""
        ...

    def find_whole(self, entry: Entry) -> WholeFile | None:
        """The file on this machine that holds all of a file's content, if there is one; the caller closes it. Quick, waits for
        nothing.

        Finding it counts as a use of the cached copy.
        """
        ...

    async def verify_whole(self, entry: Entry, whole: WholeFile) -> bool:
        """Whether all of what `find_whole` gave matches its checksums; bad pages are being fetched again then. Raises
        DiskError."""
        ...

    @property
    def is_prepared(self) -> bool:
        """Whether it is known which caches are on this machine; until then `find_whole` finds nothing."""
        ...

    async def prepare(self) -> None:
        """Find out which caches are on this machine. Does not raise."""
        ...

    def note_read(self, ref: FileRef, read_bytes: int) -> None:
        """So many bytes of a file that is wholly on this machine were read by others than its readers here: for recency.
        Quick."""
        ...

    def watch(self, listener: Callable[[Sequence[Recall]], Awaitable[None]], succeeds: Sequence[str] = ()) -> str:
        """Call `listener` with what is not so any more, from now on; what was answered before holds at most for its time.

        What is told is forgotten here before. When what the listener returns is done, those who changed it may rely on that.
        It returns at once, before anything is promised: what this is known by, for a later backend's `succeeds`, which lists
        backends that are no more. Nobody has to wait for those any longer, once this listener was told that nothing is so any
        more.
        """
        ...

    async def get_totals(self, inode: InodeId) -> Totals:
        """Sums for statfs, and the space at an inode."""
        ...

    async def get_cache_state(self, entry: Entry) -> CacheState:
        """Where a file's bytes are cached now, by the master's block map."""
        ...
