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
    G mount(4)             write policies of directories below it, by their prefixes (JSON)
    N inode(8) order(8)    a further name of an inode with several: parent(8) name; the oldest is in the inode's record
    K inode(8)             where the bytes of what has moved still are at the store (JSON)
    W inode(8)             a version that the store does not have (JSON)
    Y inode(8)             a symbolic link's target; a special file's device number
    A inode(8) name        extended attribute
    E inode(8)             what was kept beside a foreign content: its name before (JSON)
    Q number(8)            journal: what is still to be done at the store (JSON)
    J mount(4) hash(16) number(8)    which steps of the journal touch a key
    L number(8)            which steps of the journal move directories
    B number(8)            a snapshot (JSON); Csnapshot says what is recorded for the newest
    U key, number(8)       what was at a key when the snapshot of that number was made (snapshots.py)
    F inode(8)             a directory's quota (JSON)
    Z inode(8)             what was counted below a directory (usage.py)
    R inode(8)             a directory that is to be counted, or not any more; how far the latter is
    td inode(8)            how long what is removed below a directory is kept (JSON)
    tm mount(4)            the directory that takes what is removed in a mount
    d inode(8)             the session that a directory is delegated to (delegations.py)
    ti inode(8)            something in the trash: where it was, and when it goes (JSON); tx time(8) inode(8)  when
    O operation id, P time(8) operation id    results of mutating calls, and when they can go

Other tables of the master begin with lower-case letters. A directory's table is its inode id, but for the root's (tables.py).
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import fields as get_fields
from typing import Any, Final, NamedTuple

from alluxio_like.master.core.model import DirState, MountRecord, Totals
from alluxio_like.types import OWN_TOKEN, Fingerprint, InodeId, Kind, MountId, VersionId, to_bytes, to_str

FORMAT: Final = 3
"""2 counted nothing for quotas: none of the tables F, Z, R. 1 had nothing of what programs write: no flag from LOCAL on, and none
of the tables N, K, W, Y, A, Q, L, G, E, B, U."""

KEY_FORMAT: Final = b"Cformat"
KEY_NEXT_INODE: Final = b"Cinode"
KEY_NEXT_MOUNT: Final = b"Cmount"
KEY_SEQUENCE: Final = b"Cseq"
KEY_TOTALS: Final = b"Ctotals"
KEY_ROOT_TABLE: Final = b"Croot"
KEY_JOURNAL: Final = b"Cjournal"
KEY_SNAPSHOTS: Final = b"Csnapshot"
KEY_USAGE: Final = b"Cusage"
"""There while directories are counted for quotas, or were."""
KEY_RESTORING: Final = b"Arestoring"
"""There while a restore is under way: what is there then is never served. It comes before all that a restore writes."""
KEY_TRASH: Final = b"Ctrash"
"""There once something is, or was, to be kept when it is removed."""
KEY_RESTORED: Final = b"Crestored"
KEY_LEASES: Final = b"Cleases"
"""b"0": no client can hold a lease of this master or of one before it; anything else, or nothing: some may."""

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
LOCAL: Final = 128
"""The store does not have it, or not as we know it: no listing removes or replaces it."""
LINKED: Final = 256
"""It has more names than one: table N."""
MOVED: Final = 512
"""Its bytes, a directory's with all below it, are under another key at the store: table K."""
OWN: Final = 1024
"""The content was written here, and is known by its version."""
XATTRS: Final = 2048
"""It has extended attributes: table A."""
HIDDEN: Final = 4096
"""A directory in a mount's root that has no entry there: its trash."""

_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
# kind, flags, mode, nlink, uid, gid, mount, size, mtime, version, sequence, parent, the token's length; then ctime if it differs
_INODE = struct.Struct("<BHHHIIIQqIQQH")
INODE_BYTES: Final = _INODE.size
"""What every record begins with; record_columns.py knows its parts too."""
_CTIME = struct.Struct("<q")
OWN_CTIME: Final = 1 << 15
OWN_ATIME: Final = 1 << 14
"""Flags in a packed record alone: which times follow its head."""
_TOTALS = struct.Struct("<qqqqq")
_STATE = struct.Struct("<BqQQQQ")
STATE_BYTES: Final = _STATE.size
STATE_COMPLETE: Final = 1
STATE_UNTRUSTED: Final = 2
STATE_UNTRUSTED_SO_FAR: Final = 4
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
    atime_ns: int | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        """What the content is known by in caches."""
        if self.flags & OWN:
            return Fingerprint(f"{OWN_TOKEN}{self.version:x}", self.size)
        token = self.token
        return Fingerprint(unpack_token(token if token[:1] != _TWO else _split_two(token)[0]), self.size)

    @property
    def stored(self) -> Fingerprint:
        """What the store says of the content, if it has it."""
        return Fingerprint(unpack_token(get_stored_token(self.token)), self.size)

    @property
    def source(self) -> Fingerprint | None:
        """What the store says of the content, where that is another fingerprint and the store has it."""
        if self.flags & OWN:
            return None if self.flags & LOCAL else self.stored
        return self.stored if self.token[:1] == _TWO else None

    @property
    def sort_name(self) -> bytes:
        return self.name + b"/" if self.kind is Kind.DIRECTORY else self.name


NewFile = tuple[bytes, int, int, bytes]
"""What tells one new file from another: raw name, size, mtime in ns, packed token."""


_MOUNT_FIELDS = tuple(field.name for field in get_fields(MountRecord))
_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}


def pack_inode(inode: Inode) -> bytes:
    """Its bytes: 57, 8 more if ctime is not mtime and 8 if atime was set, and those of the token and the name."""
    ctime = b""
    flags = inode.flags
    if inode.ctime_ns != inode.mtime_ns:
        ctime = _CTIME.pack(inode.ctime_ns)
        flags |= OWN_CTIME
    if inode.atime_ns is not None:
        ctime += _CTIME.pack(inode.atime_ns)
        flags |= OWN_ATIME
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
    if flags & OWN_CTIME:
        flags ^= OWN_CTIME
        (ctime,) = _CTIME.unpack_from(data, at)
        at += _CTIME.size
    atime = None
    if flags & OWN_ATIME:
        flags ^= OWN_ATIME
        (atime,) = _CTIME.unpack_from(data, at)
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
        atime,
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


_TWO = b"\3"


def keep_identity(token: bytes, stored: str) -> bytes:
    """The token of a content that the store gave another one, as it was moved there: caches go on to know it by the first."""
    packed = pack_token(stored)
    first = _split_two(token)[0] if token[:1] == _TWO else token
    if packed == first:
        return packed
    return _TWO + len(first).to_bytes(2, "big") + first + packed


def get_stored_token(token: bytes) -> bytes:
    """Of a packed token what the store knows the content by."""
    return _split_two(token)[1] if token[:1] == _TWO else token


def _split_two(token: bytes) -> tuple[bytes, bytes]:
    stop = 3 + int.from_bytes(token[1:3], "big")
    return token[3:stop], token[stop:]


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


def name_key(inode: int, order: int) -> bytes:
    """A further name of an inode; `order` grows with each."""
    return b"N" + _U64.pack(inode) + _U64.pack(order)


def name_stop(inode: int) -> bytes:
    return b"N" + _U64.pack(inode + 1)


def pack_name(parent: int, name: bytes) -> bytes:
    return _U64.pack(parent) + name


def unpack_name(data: bytes) -> tuple[InodeId, bytes]:
    """(directory, name)."""
    return InodeId(int.from_bytes(data[:8], "big")), data[8:]


def moved_key(inode: int) -> bytes:
    return b"K" + _U64.pack(inode)


def dirty_key(inode: int) -> bytes:
    return b"W" + _U64.pack(inode)


def target_key(inode: int) -> bytes:
    return b"Y" + _U64.pack(inode)


def xattr_key(inode: int, name: bytes) -> bytes:
    return b"A" + _U64.pack(inode) + name


def xattr_stop(inode: int) -> bytes:
    return b"A" + _U64.pack(inode + 1)


def quota_key(inode: int) -> bytes:
    return b"F" + _U64.pack(inode)


def usage_key(inode: int) -> bytes:
    return b"Z" + _U64.pack(inode)


def counting_key(inode: int) -> bytes:
    return b"R" + _U64.pack(inode)


def trash_setting_key(inode: int) -> bytes:
    return b"td" + _U64.pack(inode)


def trash_directory_key(mount_id: int) -> bytes:
    return b"tm" + _U32.pack(mount_id)


def thrown_key(inode: int) -> bytes:
    return b"ti" + _U64.pack(inode)


def expiry_key(expires_ns: int, inode: int) -> bytes:
    return b"tx" + _U64.pack(max(0, expires_ns)) + _U64.pack(inode)


def conflict_key(inode: int) -> bytes:
    return b"E" + _U64.pack(inode)


def delegation_key(inode: int) -> bytes:
    return b"d" + _U64.pack(inode)


def journal_key(number: int) -> bytes:
    return b"Q" + _U64.pack(number)


def directory_step_key(number: int) -> bytes:
    return b"L" + _U64.pack(number)


def mount_key(mount_id: int) -> bytes:
    return b"M" + _U32.pack(mount_id)


def intervals_key(mount_id: int) -> bytes:
    return b"V" + _U32.pack(mount_id)


def pack_intervals(intervals: Mapping[str, float]) -> bytes:
    return json.dumps(dict(intervals), sort_keys=True, separators=(",", ":")).encode()


def unpack_intervals(data: bytes | None) -> dict[str, float]:
    return {str(prefix): float(seconds) for prefix, seconds in json.loads(data).items()} if data is not None else {}


def policies_key(mount_id: int) -> bytes:
    return b"G" + _U32.pack(mount_id)


def pack_policies(policies: Mapping[str, str]) -> bytes:
    return json.dumps(dict(policies), sort_keys=True, separators=(",", ":")).encode()


def unpack_policies(data: bytes | None) -> dict[str, str]:
    return {str(prefix): str(policy) for prefix, policy in json.loads(data).items()} if data is not None else {}


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
    flags = state.complete * STATE_COMPLETE + state.untrusted * STATE_UNTRUSTED + state.untrusted_so_far * STATE_UNTRUSTED_SO_FAR
    return _STATE.pack(flags, *state[3:])


def unpack_state(data: bytes | None) -> State:
    """The state that was packed; that of a directory never listed if there is none."""
    if data is None:
        return State()
    flags, *fields = _STATE.unpack(data)
    return State(bool(flags & STATE_COMPLETE), bool(flags & STATE_UNTRUSTED), bool(flags & STATE_UNTRUSTED_SO_FAR), *fields)


def pack_totals(totals: Totals) -> bytes:
    return _TOTALS.pack(totals.files, totals.directories, totals.known_bytes, totals.odd_names, totals.orphans)


def unpack_totals(data: bytes | None) -> Totals:
    return Totals(*_TOTALS.unpack(data)) if data is not None else Totals(0, 0, 0, 0, 0)


class Moved(NamedTuple):
    """Where the bytes of an inode still are (`key`; of a directory a prefix), and what the store has where they belong (None:
    nothing)."""

    key: str
    base: Fingerprint | None = None


class Dirty(NamedTuple):
    """A version that the store does not have: who holds it, and what the store has at its key (None: nothing). `early`: its file
    was still open, and the store gets what it holds when it is closed."""

    holders: tuple[str, ...] = ()
    base: Fingerprint | None = None
    early: bool = False


def pack_moved(moved: Moved) -> bytes:
    return json.dumps([moved.key.encode("utf-8", "surrogateescape").hex(), list_fingerprint(moved.base)]).encode()


def unpack_moved(data: bytes) -> Moved:
    key, base = json.loads(data)
    return Moved(to_str(bytes.fromhex(key)), make_fingerprint(base))


def pack_dirty(dirty: Dirty) -> bytes:
    return json.dumps([dirty.holders, list_fingerprint(dirty.base), *([True] if dirty.early else [])]).encode()


def unpack_dirty(data: bytes) -> Dirty:
    holders, base, *early = json.loads(data)
    return Dirty(tuple(holders), make_fingerprint(base), bool(early))


def list_fingerprint(fingerprint: Fingerprint | None) -> list[Any] | None:
    """A fingerprint as JSON has it."""
    return [fingerprint.token, fingerprint.size] if fingerprint is not None else None


def make_fingerprint(fields: list[Any] | None) -> Fingerprint | None:
    """The fingerprint that `list_fingerprint` was given."""
    return Fingerprint(fields[0], fields[1]) if fields is not None else None


def pack_mount(mount: MountRecord) -> bytes:
    fields: dict[str, Any] = {name: getattr(mount, name) for name in _MOUNT_FIELDS}
    fields["options"] = dict(mount.options)
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def unpack_mount(data: bytes) -> MountRecord:
    fields: dict[str, Any] = json.loads(data)
    if "write" not in fields:
        # Of a release that wrote nothing.
        fields["read_only"] = True
    return MountRecord(**fields)
