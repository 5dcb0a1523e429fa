"""What the namespace answers and is told: plain frozen data shared by the modules of the core.

Owns no behaviour and touches no store. Safe from any thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from alluxio_like.types import Entry, FileId, Fingerprint, InodeId, Kind, MountId, StoredAttributes

NO_MOUNT = MountId(0)
"""The mount id of directories that no store stands behind: the root and the way to mount points, where nothing is mounted."""


class Listed(Protocol):
    """One thing directly below a directory as a store lists it; `ufs.api.StoreEntry` is one.

    `sort_name` is the raw name, with a slash behind a directory's. `fingerprint` is None for directories. `mtime_ns` is 0 where
    the store does not say. `trusted` is False where the fingerprint is too young to stand for the content. `attributes` are those
    that the store keeps with a file's content, None where it was not asked for them.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def fingerprint(self) -> Fingerprint | None: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def trusted(self) -> bool: ...
    @property
    def attributes(self) -> StoredAttributes | None: ...
    @property
    def sort_name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class DirState:
    """What is known of a directory's children.

    `complete`: all of them were known at `listed_ns` (the start of the last listing that was applied to its end), so a name that
    is not there does not exist as of then. `untrusted`: among them are files whose fingerprints were too young to be trusted, so
    the directory should be listed again some 2 s after `listed_ns`, whatever its sync interval. `mount_id` is NO_MOUNT for a
    directory without a store, which is always complete and never listed.
    """

    directory: InodeId
    mount_id: MountId
    complete: bool
    listed_ns: int
    start_seq: int
    untrusted: bool
    files: int
    directories: int
    shadowed: int


@dataclass(frozen=True, slots=True)
class ListingPlan:
    """A listing that is about to start: what to list, and the moment before which nothing it says is believed over us."""

    directory: InodeId
    mount_id: MountId
    prefix: str
    start_seq: int
    started_ns: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What applying part of a listing did.

    `replaced` holds (old inode, new inode) of files whose content is another now; the old ones are orphans. `kept` counts entries
    that were left alone because they changed after the listing had begun. `covered` is the sort name up to which the listing has
    been applied (None: to the end). `names` are those under which any of it is or was shown, `touched` child directories whose
    own attributes changed; `gone_from`: the directory itself was removed, from there, and `names` are its own.
    """

    directory: InodeId
    added: tuple[InodeId, ...] = ()
    removed: tuple[InodeId, ...] = ()
    replaced: tuple[tuple[InodeId, InodeId], ...] = ()
    unchanged: int = 0
    kept: int = 0
    covered: str | None = None
    names: tuple[bytes, ...] = ()
    touched: tuple[InodeId, ...] = ()
    gone_from: InodeId | None = None

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.replaced)


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Part of a directory. `cursor` continues it (b"": the end); `dir_key` stands before a raw name in an entry's key."""

    entries: tuple[Entry, ...]
    cursor: bytes
    mount_id: MountId
    dir_key: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """How far a path is known: `entry` is the deepest known inode, `rest` the components below it that are not known."""

    entry: Entry
    rest: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the known namespace, orphans left out: `known_bytes` sums the files' sizes, `odd_names` counts names shown escaped."""

    files: int
    directories: int
    known_bytes: int
    odd_names: int
    orphans: int


@dataclass(frozen=True, slots=True)
class Purged:
    """Inodes that are gone for good: `files` are contents that nobody can ask for any more. `more`: call again."""

    files: tuple[FileId, ...]
    directories: tuple[InodeId, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class MountRecord:
    """A mount without its secrets, which are kept elsewhere. `sync_interval_s` None: the default; negative: never."""

    mount_id: MountId
    path: str
    uri: str
    read_only: bool
    uid: int
    gid: int
    created_ns: int
    root: InodeId
    sync_interval_s: float | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    write: str = ""
    """The write policy, as `rpc.messages_writing.WritePolicy` is written; empty where it is read-only."""
