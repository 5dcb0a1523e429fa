"""The words everything else is written in: ids, attributes, contents, ranges of pages.

Plain frozen data without behaviour beyond arithmetic. Names and keys are `str`, decoded from their bytes by `to_str` (UTF-8,
surrogateescape), so that every byte string has exactly one; they are bytes again on the wire and on disk. Safe from any thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, NewType

InodeId = NewType("InodeId", int)
VersionId = NewType("VersionId", int)
WorkerId = NewType("WorkerId", str)
JobId = NewType("JobId", str)
MountId = NewType("MountId", int)

ROOT_INODE = InodeId(1)
EVERYWHERE = InodeId(0)
"""In a recall: every directory."""

OWN_TOKEN = "own-"
"""How the token of a fingerprint begins that stands for a content written here: followed by its version."""

SNAPSHOT_FOLDER = ".snapshots"
"""The name, in every directory that has snapshots, under which they are found; no listing shows it."""
SNAPSHOT_SHIFT = 44
"""Inode ids from 1 << SNAPSHOT_SHIFT on are those of snapshots: the snapshot's number above the inode's own id. None of them can
be changed."""

PAGE_BYTES = 1 << 20
"""Unit of presence and of the checksum. A format parameter: recorded in each cache directory."""
PAGES_PER_BLOCK = 64
BLOCK_BYTES = PAGE_BYTES * PAGES_PER_BLOCK
"""Unit of replication and, for files above the whole-file limit, of placement."""
WHOLE_FILE_LIMIT_BYTES = 1 << 30
"""Files up to this size are placed whole, so that one node can hold and pass through all of it."""


def to_bytes(name: str) -> bytes:
    """A name or key as the bytes it stands for."""
    return name.encode("utf-8", "surrogateescape")


def to_str(name: bytes) -> str:
    """Bytes of a name or key as text; any bytes can be."""
    return name.decode("utf-8", "surrogateescape")


class Kind(IntEnum):
    """What an inode is; the numbers are those of the wire and of the disk."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER_DEVICE = 6
    BLOCK_DEVICE = 7


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a store says of a file's content, compared whole.

    `token` is opaque to all but the store that made it; `size` is the content's length in bytes.
    """

    token: str
    size: int


@dataclass(frozen=True, slots=True)
class StoredAttributes:
    """What a store keeps with a file's content of its attributes; None for what it does not say. `mode` are permission bits."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Attr:
    """An inode's attributes; `mode` holds permission bits only, times are nanoseconds since the epoch.

    `atime_ns` is None where it was never set: it is mtime then. `device` is the device number of a special file.
    `has_xattrs`: programs have, or may have, set extended attributes of it.
    """

    inode: InodeId
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    nlink: int
    version: VersionId
    atime_ns: int | None = None
    device: int = 0
    has_xattrs: bool = False


@dataclass(frozen=True, slots=True, order=True)
class FileId:
    """One content: cached bytes belong to it and to nothing else."""

    inode: InodeId
    version: VersionId


@dataclass(frozen=True, slots=True)
class FileRef:
    """One content and where it comes from: all that a worker needs to fetch and cache it.

    `key` is relative to the root of the mount `mount_id`. `fingerprint` stands for the content in caches. `source` is what the
    store says of it, where that is another: a content that was written here is known by its version, from before the store has it
    and for ever. `holders` are workers that have it, where the store does not: then `source` is None, and only they can be asked.
    `frozen`: wanted as it is in a snapshot, so that the store may be asked for an older version of the object. `continues`: from
    this version on up to `version` each is the beginning of the next; 0: nothing is known of that.
    """

    inode: InodeId
    version: VersionId
    mount_id: MountId
    key: str
    fingerprint: Fingerprint
    pinned: bool = False
    source: Fingerprint | None = None
    holders: tuple[WorkerId, ...] = ()
    frozen: bool = False
    continues: int = field(default=0, compare=False)

    @property
    def is_stored(self) -> bool:
        """Whether the store has this content, as `stored`."""
        return self.source is not None or not self.fingerprint.token.startswith(OWN_TOKEN)

    @property
    def stored(self) -> Fingerprint:
        """What the store says of the content."""
        return self.source if self.source is not None else self.fingerprint

    @property
    def file_id(self) -> FileId:
        return FileId(self.inode, self.version)

    @property
    def size(self) -> int:
        return self.fingerprint.size


@dataclass(frozen=True, slots=True)
class Entry:
    """A name with its attributes; `ref` is there for files."""

    name: str
    attr: Attr
    ref: FileRef | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    """What is no longer so in `directory` (EVERYWHERE: in any): `names` came, went or mean something else, `all_names`: any of
    them, and the lease is gone with them. The directory's own attributes may be others too. `inodes` are what the names led
    to before.

    `pins_only`: names and attributes stayed; whether files are pinned may have changed.
    """

    directory: InodeId
    names: tuple[bytes, ...] = ()
    all_names: bool = False
    inodes: tuple[InodeId, ...] = ()
    pins_only: bool = False


@dataclass(frozen=True, slots=True)
class PageRange:
    """Pages `first` to `stop - 1` of a file."""

    first: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.first)


def get_pages(offset: int, length: int, size: int) -> PageRange:
    """The pages that bytes `offset` to `offset + length` of a file of `size` bytes touch; clipped at the end of the file."""
    stop = min(offset + length, size)
    if stop <= offset:
        return PageRange(0, 0)
    return PageRange(offset // PAGE_BYTES, -(-stop // PAGE_BYTES))


def get_page_count(size: int) -> int:
    """Pages of a file of `size` bytes."""
    return -(-size // PAGE_BYTES)


def get_block_count(size: int) -> int:
    """Blocks of a file of `size` bytes."""
    return -(-size // BLOCK_BYTES)


def get_full_mask(size: int, block: int) -> int:
    """The presence bits of block `block` of a file of `size` bytes when all of it is there."""
    pages = min(PAGES_PER_BLOCK, get_page_count(size) - block * PAGES_PER_BLOCK)
    return (1 << pages) - 1 if pages > 0 else 0


class SharedRange(NamedTuple):
    """A range of a cache file that another process of ours may read: `length` bytes from `offset` on.

    `source` stands for the opened file, `fd` is its descriptor and `size` its length; both hold while it is open. `nowait`: the
    flag that makes preadv fail rather than wait. `checksums`: of each page that the range touches, None where it was verified
    before.
    """

    source: object
    fd: int
    size: int
    offset: int
    length: int
    nowait: int
    checksums: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as placement and clients see it."""

    worker_id: WorkerId
    address: str
    host_id: str
    door_path: str
    capacity_bytes: int
    used_bytes: int = 0
    live: bool = True
    last_seen_s: float = 0.0
    home_bytes: int = 0
    guest_bytes: int = 0
    pinned_bytes: int = 0
    file_count: int = 0
    data_address: str = ""
    """host:port of its data socket; empty: it has none."""
    data_nonce: str = ""
    """What callers of its data socket must know; another one after each start."""
    usable_bytes: int | None = None
    """Of `capacity_bytes`, what its disks leave: what is used, and what may still be written. None: all of it."""
    unpersisted_bytes: int = 0
    """Written here and on its way to the store."""
    unpersisted_limit_bytes: int | None = None
    """How much that may be before writers wait; None: no limit."""
    kept_bytes: int = 0
    """Of `used_bytes`, what nothing can be evicted for: files being written or not at the store yet, and pinned ones."""

    @property
    def writable_bytes(self) -> int:
        """What programs can still write there, when all goes that may go."""
        usable = self.capacity_bytes if self.usable_bytes is None else self.usable_bytes
        return max(0, usable - self.kept_bytes)


@dataclass(frozen=True, slots=True)
class Space:
    """What a place can hold, and what of that is free. `total_files` 0: nobody counts files."""

    total_bytes: int
    free_bytes: int
    total_files: int = 0
    free_files: int = 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The workers of the moment, live or not; `epoch` grows with each join and leave."""

    cluster_id: str
    epoch: int
    workers: tuple[Worker, ...]
    whole_file_limit_bytes: int = WHOLE_FILE_LIMIT_BYTES


@dataclass(frozen=True, slots=True)
class TreeColumns:
    """Entries of one or several directories. Numbers are packed, little-endian, of the sizes that are said here; `ends` are where
    each name or token ends in the bytes before it."""

    inodes: bytes = b""
    """8 bytes each."""
    kinds: bytes = b""
    """1."""
    sizes: bytes = b""
    """8."""
    mtimes_ns: bytes = b""
    """8, signed."""
    names: bytes = b""
    name_ends: bytes = b""
    """4."""
    tokens: bytes = b""
    token_ends: bytes = b""
    """4."""
    directories: Sequence[bytes] = ()
    counts: bytes = b""
    """Of each directory, how many entries it has here: 4."""

    def __len__(self) -> int:
        return len(self.kinds)
