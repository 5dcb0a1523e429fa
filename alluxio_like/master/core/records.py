"""The namespace's records, packed, and the keys they lie under.

Owns the format on disk: its number, keys, and the bytes of values. No decisions. Pure functions, safe from any thread.

    C name                 counters: format, next inode, sequence number, next mount, totals, the root's table
    D table(8) filed-name  dentry: the inode's id, big-endian without leading zeros
    I inode(8)             inode
    S table(8)             state of a directory's children
    H table(8) hash(16)    the sort name that is shown with this hash
    T table(8) filed-name  what we removed, while a listing that began before may still bring it back
    X time(8) inode(8)     orphans by the time of their removal
    M mount(4)             mount (JSON)
    V mount(4)             sync intervals of directories below it, by their prefixes (JSON)
    O operation id, P time(8) operation id    results of mutating calls, and when they can go

Other tables of the master begin with lower-case letters. A directory's table is its inode id, but for the root's (tables.py).
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import fields as get_fields
from typing import Any, Final, NamedTuple

from alluxio_like.master.core.model import DirState, MountRecord, Totals
from alluxio_like.types import Fingerprint, InodeId, Kind, MountId, VersionId, to_bytes, to_str

FORMAT: Final = 1

KEY_FORMAT: Final = b"Cformat"
KEY_NEXT_INODE: Final = b"Cinode"
KEY_NEXT_MOUNT: Final = b"Cmount"
KEY_SEQUENCE: Final = b"Cseq"
KEY_TOTALS: Final = b"Ctotals"
KEY_ROOT_TABLE: Final = b"Croot"

PINNED: Final = 1
MOUNT_POINT: Final = 2
"""A mount's root; the inode's mount id is that mount's."""
ANCHOR: Final = 4
"""On the way to a mount point: stays whatever a store lists."""
ORPHAN: Final = 8
ODD: Final = 16
"""Its raw name is never shown as it is."""
UNTRUSTED: Final = 32
"""Its fingerprint was too young to stand for the content."""
STORE_TIMES: Final = 64
"""A directory whose times come from the store."""

_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
# kind, flags, mode, nlink, uid, gid, mount, size, mtime, version, sequence, parent, the token's length; then ctime if it differs
_INODE = struct.Struct("<BHHHIIIQqIQQH")
_CTIME = struct.Struct("<q")
_OWN_CTIME = 1 << 15
_TOTALS = struct.Struct("<qqqqq")
_STATE = struct.Struct("<BqQQQQ")
_STATE_COMPLETE = 1
_STATE_UNTRUSTED = 2
_STATE_UNTRUSTED_SO_FAR = 4
TIME_STOP_NS: Final = (1 << 63) - 1


class Inode(NamedTuple):
    """An inode's record; `name` is the raw one, of which `parent` is the directory. `token` is packed, b"" for directories."""

    kind: Kind
    flags: int
    mode: int
    nlink: int
    uid: int
    gid: int
    mount_id: MountId
    size: int
    mtime_ns: int
    ctime_ns: int
    version: VersionId
    sequence: int
    parent: InodeId
    token: bytes
    name: bytes

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(unpack_token(self.token), self.size)

    @property
    def sort_name(self) -> bytes:
        return self.name + b"/" if self.kind is Kind.DIRECTORY else self.name


NewFile = tuple[bytes, int, int, bytes]
"""What tells one new file from another: raw name, size, mtime in ns, packed token."""


_MOUNT_FIELDS = tuple(field.name for field in get_fields(MountRecord))
_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}


def pack_inode(inode: Inode) -> bytes:
    """Its bytes: 57, 8 more if ctime is not mtime, and those of the token and the name."""
    ctime = b""
    flags = inode.flags
    if inode.ctime_ns != inode.mtime_ns:
        ctime = _CTIME.pack(inode.ctime_ns)
        flags |= _OWN_CTIME
    head = _INODE.pack(inode.kind, flags, *inode[2:9], *inode[10:13], len(inode.token))
    return head + ctime + inode.token + inode.name


def make_file_packer(common: Inode) -> Callable[[NewFile], bytes]:
    """`pack_inode` for files that have all but a `NewFile`'s fields in common."""
    pack = _INODE.pack
    before, version, sequence, parent = common[:7], common.version, common.sequence, common.parent

    def pack_file(file: NewFile) -> bytes:
        name, size, mtime_ns, token = file
        return pack(*before, size, mtime_ns, version, sequence, parent, len(token)) + token + name

    return pack_file


def unpack_inode(data: bytes) -> Inode:
    """The record that `pack_inode` made."""
    kind, flags, mode, nlink, uid, gid, mount, size, mtime, version, sequence, parent, token_bytes = _INODE.unpack_from(data)
    at = _INODE.size
    ctime = mtime
    if flags & _OWN_CTIME:
        flags ^= _OWN_CTIME
        (ctime,) = _CTIME.unpack_from(data, at)
        at += _CTIME.size
    name_at = at + token_bytes
    return Inode(
        _KINDS[kind],
        flags,
        mode,
        nlink,
        uid,
        gid,
        mount,
        size,
        mtime,
        ctime,
        version,
        sequence,
        parent,
        data[at:name_at],
        data[name_at:],
    )


def pack_token(token: str) -> bytes:
    """A fingerprint's token: an ETag of 32 hexadecimal digits, with or without quotes and a part count, takes half its length."""
    bare = token
    form = 1
    if len(token) > 2 and token[0] == token[-1] == '"':
        bare = token[1:-1]
        form = 2
    if len(bare) >= 32 and (len(bare) == 32 or bare[32] == "-"):
        digits = bare[:32]
        try:
            packed = bytes.fromhex(digits)
        except ValueError:
            packed = b""
        if packed.hex() == digits:
            return _FORMS[form] + packed + to_bytes(bare[32:])
    return b"\0" + to_bytes(token)


_FORMS: Final = (b"\0", b"\1", b"\2")


def unpack_token(data: bytes) -> str:
    """The token that `pack_token` was given."""
    if not data or data[0] == 0:
        return to_str(data[1:])
    text = data[1:17].hex() + to_str(data[17:])
    return f'"{text}"' if data[0] == 2 else text


def inode_key(inode: int) -> bytes:
    return b"I" + _U64.pack(inode)


def dentry_key(table: int, filed: bytes) -> bytes:
    return b"D" + _U64.pack(table) + filed


def dentry_stop(table: int) -> bytes:
    """The first key after all dentries of a table."""
    return b"D" + _U64.pack(table + 1)


def state_key(table: int) -> bytes:
    return b"S" + _U64.pack(table)


def hash_key(table: int, shown_hash: bytes) -> bytes:
    return b"H" + _U64.pack(table) + shown_hash


def tombstone_key(table: int, filed: bytes) -> bytes:
    return b"T" + _U64.pack(table) + filed


def orphan_key(removed_ns: int, inode: int) -> bytes:
    return b"X" + _U64.pack(max(0, removed_ns)) + _U64.pack(inode)


def unpack_orphan_key(key: bytes) -> tuple[int, InodeId]:
    """(time of removal, inode)."""
    return int.from_bytes(key[1:9], "big"), InodeId(int.from_bytes(key[9:17], "big"))


def mount_key(mount_id: int) -> bytes:
    return b"M" + _U32.pack(mount_id)


def intervals_key(mount_id: int) -> bytes:
    return b"V" + _U32.pack(mount_id)


def pack_intervals(intervals: Mapping[str, float]) -> bytes:
    return json.dumps(dict(intervals), sort_keys=True, separators=(",", ":")).encode()


def unpack_intervals(data: bytes | None) -> dict[str, float]:
    return {str(prefix): float(seconds) for prefix, seconds in json.loads(data).items()} if data is not None else {}


def pack_id(number: int) -> bytes:
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")


def unpack_id(data: bytes) -> int:
    return int.from_bytes(data, "big")


class State(NamedTuple):
    """A directory's children as counted and as last listed; `untrusted_so_far` is of the listing under way."""

    complete: bool = False
    untrusted: bool = False
    untrusted_so_far: bool = False
    listed_ns: int = 0
    start_seq: int = 0
    files: int = 0
    directories: int = 0
    shadowed: int = 0

    def describe(self, directory: InodeId, mount_id: MountId) -> DirState:
        return DirState(
            directory,
            mount_id,
            self.complete,
            self.listed_ns,
            self.start_seq,
            self.untrusted or self.untrusted_so_far,
            self.files,
            self.directories,
            self.shadowed,
        )


def pack_state(state: State) -> bytes:
    flags = (
        state.complete * _STATE_COMPLETE + state.untrusted * _STATE_UNTRUSTED + state.untrusted_so_far * _STATE_UNTRUSTED_SO_FAR
    )
    return _STATE.pack(flags, *state[3:])


def unpack_state(data: bytes | None) -> State:
    """The state that was packed; that of a directory never listed if there is none."""
    if data is None:
        return State()
    flags, *fields = _STATE.unpack(data)
    return State(bool(flags & _STATE_COMPLETE), bool(flags & _STATE_UNTRUSTED), bool(flags & _STATE_UNTRUSTED_SO_FAR), *fields)


def pack_totals(totals: Totals) -> bytes:
    return _TOTALS.pack(totals.files, totals.directories, totals.known_bytes, totals.odd_names, totals.orphans)


def unpack_totals(data: bytes | None) -> Totals:
    return Totals(*_TOTALS.unpack(data)) if data is not None else Totals(0, 0, 0, 0, 0)


def pack_mount(mount: MountRecord) -> bytes:
    fields: dict[str, Any] = {name: getattr(mount, name) for name in _MOUNT_FIELDS}
    fields["options"] = dict(mount.options)
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def unpack_mount(data: bytes) -> MountRecord:
    fields: Mapping[str, Any] = json.loads(data)
    return MountRecord(**fields)
