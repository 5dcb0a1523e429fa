"""Entries by inode, packed: a million files in some 70 MB.

Owns the layout in memory. What a record may be used for is told by two numbers that its keeper sets and reads (metadata.py):
`stamp` and `expires`. Records lie in chunks of 64 consecutive inode ids, since a listing gives its files consecutive ids; the
chunks made longest ago go first when there are too many. Rule of concurrency: one event loop; no method awaits.

A chunk is a bytearray: 64 offsets of 4 bytes (0: no record), then records one after the other in any order. What is replaced by
a record of another length is garbage until the chunk is packed anew.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from alluxio_like.types import Attr, Entry, FileRef, Fingerprint, InodeId, Kind, MountId, VersionId, WorkerId, to_bytes, to_str

MAX_ENTRIES = 2_000_000
"""About 150 MB. A guess."""

_CHUNK_SHIFT = 6
_CHUNK_MASK = (1 << _CHUNK_SHIFT) - 1
_HEAD_BYTES = 4 << _CHUNK_SHIFT
_EMPTY = bytes(_HEAD_BYTES)
_PACK_ABOVE_BYTES = 64 << 10

_OFFSET = struct.Struct("<I")
_RECORD = struct.Struct("<IIBHIQqB")
"""stamp, expires, flags, profile, place of the parent, size, mtime, bytes of the name; then the name and what the flags say."""
_STATE = struct.Struct("<II")
_LONG = struct.Struct("<q")
_SHORT = struct.Struct("<H")

_HEX_TOKEN = 1
"""32 hexadecimal digits in lower case, as 16 bytes: the ETag of most objects."""
_TOKEN = 2
_OTHER_CTIME = 4
_OTHER_VERSION = 8
_OTHER_KEY = 16
_QUOTED_TOKEN = 32
"""With _HEX_TOKEN: between double quotes."""

_WRITTEN = 64
"""What few entries have, as JSON: source and holders of the content, what it continues, when it was read, a device number."""

_MAX_PROFILES = 1 << 16


class Record(NamedTuple):
    """What is kept of an inode. `parent` is the directory it was found in."""

    entry: Entry
    parent: InodeId
    stamp: int
    expires: int


class _Profile(NamedTuple):
    """What many files have in common."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    nlink: int
    mount_id: MountId | None
    pinned: bool


class _Written(NamedTuple):
    source: Fingerprint | None = None
    holders: tuple[WorkerId, ...] = ()
    atime_ns: int | None = None
    device: int = 0
    has_xattrs: bool = False
    continues: int = 0


_NOT_WRITTEN = _Written()


class EntryStore:
    """See the module."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._chunks: dict[int, bytearray] = {}
        self._count = 0
        self._profiles: dict[_Profile, int] = {}
        self._profile_list: list[_Profile] = []
        self._parents: dict[InodeId, int] = {}
        self._parent_list: list[InodeId] = []
        self._dir_keys: list[str | None] = []
        """By the parent's place: what stands before the names in the keys of its files."""

    def __len__(self) -> int:
        return self._count

    def put(self, entry: Entry, parent: InodeId, stamp: int, expires: int) -> None:
        """Keep an entry, in place of what was kept of its inode. What cannot be packed (it does not occur) is not kept."""
        data = self._pack(entry, parent, stamp, expires)
        if data is None:
            self.set_state(entry.attr.inode, 0, 0)
            return
        inode = entry.attr.inode
        number, slot = inode >> _CHUNK_SHIFT, 4 * (inode & _CHUNK_MASK)
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = bytearray(_EMPTY)
        (offset,) = _OFFSET.unpack_from(chunk, slot)
        if offset:
            if self._get_length(chunk, offset) == len(data):
                chunk[offset : offset + len(data)] = data
                return
        else:
            self._count += 1
        _OFFSET.pack_into(chunk, slot, len(chunk))
        chunk += data
        if len(chunk) > _PACK_ABOVE_BYTES:
            self._chunks[number] = self._pack_chunk(chunk)
        if self._count > self._max_entries:
            self._drop_oldest(number)

    def lookup(self, inode: InodeId) -> Record | None:
        """What is kept of an inode."""
        found = self._find(inode)
        if found is None:
            return None
        chunk, offset = found
        stamp, expires, flags, profile_number, place, size, mtime_ns, name_bytes = _RECORD.unpack_from(chunk, offset)
        profile, parent = self._profile_list[profile_number], self._parent_list[place]
        at = offset + _RECORD.size
        name = to_str(bytes(chunk[at : at + name_bytes]))
        at += name_bytes
        ctime_ns, version = mtime_ns, 1 if profile.mount_id is not None else 0
        if flags & _OTHER_CTIME:
            (ctime_ns,) = _LONG.unpack_from(chunk, at)
            at += 8
        if flags & _OTHER_VERSION:
            (version,) = _LONG.unpack_from(chunk, at)
            at += 8
        attr = Attr(
            inode,
            profile.kind,
            profile.mode,
            profile.uid,
            profile.gid,
            size,
            mtime_ns,
            ctime_ns,
            profile.nlink,
            VersionId(version),
        )
        written = _Written()
        if flags & _WRITTEN:
            (length,) = _SHORT.unpack_from(chunk, at)
            written = _unpack_written(bytes(chunk[at + 2 : at + 2 + length]))
            attr = replace(attr, atime_ns=written.atime_ns, device=written.device, has_xattrs=written.has_xattrs)
            at += 2 + length
        if profile.mount_id is None:
            return Record(Entry(name, attr), parent, stamp, expires)
        if flags & _HEX_TOKEN:
            token = bytes(chunk[at : at + 16]).hex()
            if flags & _QUOTED_TOKEN:
                token = f'"{token}"'
            at += 16
        else:
            (length,) = _SHORT.unpack_from(chunk, at)
            token = to_str(bytes(chunk[at + 2 : at + 2 + length]))
            at += 2 + length
        if flags & _OTHER_KEY:
            (length,) = _SHORT.unpack_from(chunk, at)
            key = to_str(bytes(chunk[at + 2 : at + 2 + length]))
        else:
            key = (self._dir_keys[place] or "") + name
        ref = FileRef(
            inode,
            attr.version,
            profile.mount_id,
            key,
            Fingerprint(token, size),
            profile.pinned,
            written.source,
            written.holders,
            continues=written.continues,
        )
        return Record(Entry(name, attr, ref), parent, stamp, expires)

    def lookup_state(self, inode: InodeId) -> tuple[int, int] | None:
        """Stamp and expiry of what is kept of an inode."""
        found = self._find(inode)
        return None if found is None else _STATE.unpack_from(found[0], found[1])

    def set_state(self, inode: InodeId, stamp: int, expires: int) -> None:
        """Change stamp and expiry, if the inode is kept."""
        found = self._find(inode)
        if found is not None:
            _STATE.pack_into(found[0], found[1], stamp, expires)

    def get_sort_name(self, inode: InodeId) -> bytes | None:
        """The name, with a slash behind a directory's: what listings are sorted by."""
        found = self._find(inode)
        if found is None:
            return None
        chunk, offset = found
        head = _RECORD.unpack_from(chunk, offset)
        at = offset + _RECORD.size
        name = bytes(chunk[at : at + head[7]])
        return name + b"/" if self._profile_list[head[3]].kind is Kind.DIRECTORY else name

    # Inside

    def _find(self, inode: InodeId) -> tuple[bytearray, int] | None:
        chunk = self._chunks.get(inode >> _CHUNK_SHIFT)
        if chunk is None:
            return None
        (offset,) = _OFFSET.unpack_from(chunk, 4 * (inode & _CHUNK_MASK))
        return (chunk, offset) if offset else None

    def _pack(self, entry: Entry, parent: InodeId, stamp: int, expires: int) -> bytes | None:
        attr, ref = entry.attr, entry.ref
        if ref is not None and (ref.inode, ref.version, ref.size) != (attr.inode, attr.version, attr.size):
            return None
        mount_id = None if ref is None else ref.mount_id
        pinned = ref is not None and ref.pinned
        profile = _Profile(attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink, mount_id, pinned)
        number = self._profiles.get(profile)
        if number is None:
            number = len(self._profile_list)
            if number == _MAX_PROFILES:
                return None
            self._profiles[profile] = number
            self._profile_list.append(profile)
        place = self._parents.get(parent)
        if place is None:
            place = self._parents[parent] = len(self._parent_list)
            self._parent_list.append(parent)
            self._dir_keys.append(None)
        name = to_bytes(entry.name)
        if len(name) > 255:
            return None
        flags, rest = 0, b""
        if attr.ctime_ns != attr.mtime_ns:
            flags |= _OTHER_CTIME
            rest += _LONG.pack(attr.ctime_ns)
        if attr.version != (0 if ref is None else 1):
            flags |= _OTHER_VERSION
            rest += _LONG.pack(attr.version)
        source, holders, continues = (None, (), 0) if ref is None else (ref.source, ref.holders, ref.continues)
        written = _Written(source, holders, attr.atime_ns, attr.device, attr.has_xattrs, continues)
        if written != _NOT_WRITTEN:
            flags |= _WRITTEN
            rest += _pack_written(written)
        if ref is not None:
            token_flags, token = _pack_token(ref.fingerprint.token)
            flags |= token_flags
            rest += token
            dir_key = self._dir_keys[place]
            if dir_key is None and ref.key.endswith(entry.name):
                dir_key = self._dir_keys[place] = ref.key[: len(ref.key) - len(entry.name)]
            if dir_key is None or ref.key != dir_key + entry.name:
                flags |= _OTHER_KEY
                key = to_bytes(ref.key)
                rest += _SHORT.pack(len(key)) + key
        return _RECORD.pack(stamp, expires, flags, number, place, attr.size, attr.mtime_ns, len(name)) + name + rest

    def _get_length(self, chunk: bytearray, offset: int) -> int:
        head = _RECORD.unpack_from(chunk, offset)
        flags = head[2]
        at = offset + _RECORD.size + head[7]
        at += 8 * (bool(flags & _OTHER_CTIME) + bool(flags & _OTHER_VERSION))
        if flags & _WRITTEN:
            at += 2 + _SHORT.unpack_from(chunk, at)[0]
        if flags & _HEX_TOKEN:
            at += 16
        elif flags & _TOKEN:
            at += 2 + _SHORT.unpack_from(chunk, at)[0]
        if flags & _OTHER_KEY:
            at += 2 + _SHORT.unpack_from(chunk, at)[0]
        return int(at - offset)

    def _pack_chunk(self, chunk: bytearray) -> bytearray:
        """Without garbage."""
        packed = bytearray(_EMPTY)
        for slot, offset in _iter_offsets(chunk):
            _OFFSET.pack_into(packed, slot, len(packed))
            packed += chunk[offset : offset + self._get_length(chunk, offset)]
        return packed

    def _drop_oldest(self, keep: int) -> None:
        for number in self._chunks:
            if number != keep:
                self._count -= sum(1 for _ in _iter_offsets(self._chunks.pop(number)))
                return


def _iter_offsets(chunk: bytearray) -> Iterator[tuple[int, int]]:
    for slot in range(0, _HEAD_BYTES, 4):
        (offset,) = _OFFSET.unpack_from(chunk, slot)
        if offset:
            yield slot, offset


def _pack_written(written: _Written) -> bytes:
    source = None if written.source is None else [written.source.token, written.source.size]
    text = json.dumps([source, written.holders, written.atime_ns, written.device, written.has_xattrs, written.continues]).encode()
    return _SHORT.pack(len(text)) + text


def _unpack_written(data: bytes) -> _Written:
    source, holders, atime_ns, device, has_xattrs, continues = json.loads(data)
    stored = None if source is None else Fingerprint(source[0], source[1])
    return _Written(stored, tuple(holders), atime_ns, device, has_xattrs, continues)


def _pack_token(token: str) -> tuple[int, bytes]:
    inner = token[1:-1] if len(token) == 34 and token[0] == token[-1] == '"' else token
    if len(inner) == 32:
        try:
            data = bytes.fromhex(inner)
        except ValueError:
            data = b""
        if data.hex() == inner:
            return (_HEX_TOKEN if inner is token else _HEX_TOKEN | _QUOTED_TOKEN), data
    text = to_bytes(token)
    return _TOKEN, _SHORT.pack(len(text)) + text
