"""What is on the disk: the format's number, the index's keys and records, the names of cache files.

Format 2; format 1, which had neither the table `writing` nor the flag of what only this cache has, is read and raised. The index
has four tables, each a tree of its own (decision 0006). Keys, integers big-endian so that they sort:

    files    inode version         -> a file: size, generation, present bytes, last use, role, flags, fingerprint token
    blocks   inode version block   -> a block: generation, trust, presence bits, then one checksum a page
    writing  D inode, S inode, U inode version -> what programs write here: see cache/writing_records.py
    (main)   M name                -> of the directory: boot id, clean mark, trust, usage, how far the scrubber is

`trust` counts the crashes of the machine that the directory went through: a block with a smaller number than the directory's was
there at the last one and is suspect until verified. `generation` names an incarnation of a cache file; it is random, so that it
never comes twice. Pure functions, safe from any thread.
"""

import struct
from array import array
from dataclasses import dataclass

from alluxio_like.types import PAGES_PER_BLOCK, FileId, InodeId, VersionId, get_page_count

FORMAT_NUMBER = 2

_KEY_FILE = struct.Struct(">QQ")
_KEY_BLOCK = struct.Struct(">QQI")
_FILE = struct.Struct("<QQQIBB")
_BLOCK = struct.Struct("<QIQ")
_USAGE = struct.Struct("<QQQQQ")
_SCRUB = struct.Struct("<dQBQQ")

_PINNED = 1
_UNPERSISTED = 2
"""Flags of a file."""

BLOCK_HEADER_BYTES = _BLOCK.size
KEY_TRUST = b"Mtrust"
KEY_BOOT = b"Mboot"
KEY_CLEAN = b"Mclean"
KEY_USAGE = b"Musage"
KEY_SCRUB = b"Mscrub"

FILES = b"files"
BLOCKS = b"blocks"
WRITING = b"writing"
"""The names of the tables; the main one, which has none, holds their roots too."""


@dataclass(slots=True)
class FileRecord:
    """A file in the index; `last_use_s` is seconds since the epoch. `unpersisted`: written here, and the store does not have it:
    it never goes."""

    size: int
    generation: int
    present_bytes: int
    last_use_s: int
    role: int
    pinned: bool
    token: str
    unpersisted: bool = False


@dataclass(slots=True)
class BlockRecord:
    """A block in the index; `checksums` has one a page of the block, meaningless where the bit is not set."""

    generation: int
    trust: int
    bits: int
    checksums: "array[int]"


@dataclass(slots=True)
class UsageRecord:
    """Sums over all files of a directory, kept in the same transactions."""

    used_bytes: int = 0
    home_bytes: int = 0
    guest_bytes: int = 0
    pinned_bytes: int = 0
    file_count: int = 0


def make_file_key(file_id: FileId) -> bytes:
    return _KEY_FILE.pack(file_id.inode, file_id.version)


def parse_file_key(key: bytes) -> FileId:
    inode, version = _KEY_FILE.unpack(key)
    return FileId(InodeId(inode), VersionId(version))


def make_block_key(file_id: FileId, block: int) -> bytes:
    return _KEY_BLOCK.pack(file_id.inode, file_id.version, block)


def make_block_prefix(file_id: FileId) -> bytes:
    """What the keys of all blocks of a file begin with."""
    return make_file_key(file_id)


def parse_block_key(key: bytes) -> tuple[FileId, int]:
    inode, version, block = _KEY_BLOCK.unpack(key)
    return FileId(InodeId(inode), VersionId(version)), block


def pack_file(record: FileRecord) -> bytes:
    flags = (_PINNED if record.pinned else 0) | (_UNPERSISTED if record.unpersisted else 0)
    head = _FILE.pack(record.size, record.generation, record.present_bytes, record.last_use_s, record.role, flags)
    return head + record.token.encode("utf-8", "surrogateescape")


def unpack_file(raw: bytes) -> FileRecord:
    size, generation, present_bytes, last_use_s, role, flags = _FILE.unpack_from(raw)
    token = raw[_FILE.size :].decode("utf-8", "surrogateescape")
    unpersisted = bool(flags & _UNPERSISTED)
    return FileRecord(size, generation, present_bytes, last_use_s, role, bool(flags & _PINNED), token, unpersisted)


def find_whole_generation(raw: bytes, size: int, token: str) -> int:
    """The generation of a file's record if it is of this content and has as many bytes as that, else -1; see `unpack_file`."""
    known_size, generation, present_bytes, _, _, _ = _FILE.unpack_from(raw)
    if known_size != size or present_bytes != size or not size:
        return -1
    return generation if raw[_FILE.size :] == token.encode("utf-8", "surrogateescape") else -1


def pack_block(generation: int, trust: int, bits: int, checksums: "array[int]") -> bytes:
    return _BLOCK.pack(generation, trust, bits) + checksums.tobytes()


def unpack_block(raw: bytes) -> BlockRecord:
    generation, trust, bits = _BLOCK.unpack_from(raw)
    checksums = array("Q")
    checksums.frombytes(raw[_BLOCK.size :])
    return BlockRecord(generation, trust, bits, checksums)


def unpack_block_header(raw: bytes) -> tuple[int, int, int]:
    """Generation, trust and bits of a block, without its checksums."""
    generation, trust, bits = _BLOCK.unpack_from(raw)
    return generation, trust, bits


def pack_usage(usage: UsageRecord) -> bytes:
    return _USAGE.pack(usage.used_bytes, usage.home_bytes, usage.guest_bytes, usage.pinned_bytes, usage.file_count)


def unpack_usage(raw: bytes) -> UsageRecord:
    return UsageRecord(*_USAGE.unpack(raw))


@dataclass(frozen=True, slots=True)
class ScrubMark:
    """How far a round of the scrubber is in a directory: begun at `started_s` (since the epoch), files up to `last` are done
    (None: none yet), which came to `done_bytes`."""

    started_s: float
    last: FileId | None
    done_bytes: int


def pack_scrub(mark: ScrubMark) -> bytes:
    last = mark.last or FileId(InodeId(0), VersionId(0))
    return _SCRUB.pack(mark.started_s, mark.done_bytes, mark.last is not None, last.inode, last.version)


def unpack_scrub(raw: bytes) -> ScrubMark | None:
    """None for what is not one: it is forgotten, and a round begins."""
    if len(raw) != _SCRUB.size:
        return None
    started_s, done_bytes, has_last, inode, version = _SCRUB.unpack(raw)
    return ScrubMark(started_s, FileId(InodeId(inode), VersionId(version)) if has_last else None, done_bytes)


def get_pages_in_block(size: int, block: int) -> int:
    """Pages of block `block` of a file of `size` bytes."""
    return max(0, min(PAGES_PER_BLOCK, get_page_count(size) - block * PAGES_PER_BLOCK))


def make_file_path(file_id: FileId, generation: int) -> str:
    """A cache file's path below its directory.

    4,096 inodes that follow one another share a directory: ext4 keeps a directory's files together, and creating files that go
    round 256 directories took 400 to 1,100 us each where in one directory it took 35 (measured on ext4, Linux 6.18, shortly
    after other files had been deleted; each directory has a block group of its own to search).
    """
    return f"files/{file_id.inode >> 12 & 0xFF:02x}/{file_id.inode:x}-{file_id.version:x}-{generation:016x}"


def make_draft_path(inode: InodeId, generation: int) -> str:
    """A draft's path below its directory."""
    return f"drafts/{inode:x}-{generation:016x}"


def parse_file_name(name: str) -> tuple[FileId, int] | None:
    """The file id and generation in a cache file's name; None when it is none."""
    parts = name.split("-")
    try:
        inode, version, generation = (int(part, 16) for part in parts)
    except ValueError:
        return None
    file_id = FileId(InodeId(inode), VersionId(version))
    return (file_id, generation) if make_file_path(file_id, generation).rpartition("/")[2] == name else None


def get_disk_bytes(present_bytes: int) -> int:
    """Space that present pages take on the disk: only a file's last page is not a multiple of 4 KiB."""
    return (present_bytes + 4095) & ~4095
