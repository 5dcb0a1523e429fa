"""Snapshots: the namespace as it was, made in constant time, kept by what changes afterwards.

Owns the record of snapshots, what a change has to remember for them, and the namespace as a transaction over the state of one of
them, so that all that reads the namespace reads a snapshot too. A change of a key first keeps what was there, once for the newest
snapshot (`record`). A snapshot of number n finds at a key what was kept there under the smallest number from n on, else what is
there now (`View`). What was kept for a snapshot that is gone goes with it, or to the one before it (`collect`).

Bytes are not owned: a snapshot names contents, and who reads them asks caches and stores as ever. Functions over a transaction.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction, get_prefix_stop
from alluxio_like.kv.columns import Columns, Numbers, make_columns, scan_runs
from alluxio_like.master.core import records, tables
from alluxio_like.types import SNAPSHOT_SHIFT, InodeId, to_str

MAX_NAME_BYTES = 255
MAX_SNAPSHOTS = (1 << 17) - 1
_FOLDER = 1 << 17
"""In the place of a snapshot's number: the folder of an inode's snapshots."""

_COVERED = frozenset(b"IDNHSYAKW")
"""Tables of the namespace proper, by their first byte; each key goes on with 8 bytes of an inode's (or table's) id."""
_HEAD_BYTES = 9
_EXACT_BYTES = 440
_END = b"\0\1"
_NUMBER = struct.Struct(">Q")
_MARK = struct.Struct(">QQQ")
_LENGTH = struct.Struct(">BH")
_COLLECTED = 1000


class Snapshot(NamedTuple):
    """A frozen version of the tree below the directory `root`. `deleted`: it cannot be seen any more, and is being collected."""

    number: int
    root: InodeId
    name: str
    created_ns: int
    deleted: bool = False


class _Mark(NamedTuple):
    """What every write looks at. `last`: the newest number ever given, so that none is given twice; `newest`: of the snapshots
    that there are (0: none); `next_inode`: the first inode id that no snapshot can have seen."""

    last: int
    newest: int
    next_inode: int


# Ids


def make_id(number: int, inode: InodeId) -> InodeId:
    """The id of an inode as a snapshot has it."""
    return InodeId(number << SNAPSHOT_SHIFT | inode)


def make_folder_id(directory: InodeId) -> InodeId:
    """The id of the folder of a directory's snapshots."""
    return make_id(_FOLDER, directory)


def split_id(inode: InodeId) -> tuple[int, InodeId]:
    """The number of the snapshot (0: none) and the inode's own id."""
    return inode >> SNAPSHOT_SHIFT, InodeId(inode & (1 << SNAPSHOT_SHIFT) - 1)


def is_folder(number: int) -> bool:
    """Whether the number that `split_id` gave is that of no snapshot, but of the folder of a directory's snapshots."""
    return number == _FOLDER


# Snapshots


def create(txn: WriteTransaction, root: InodeId, name: str, now_ns: int) -> Snapshot:
    """Freeze the tree below a directory. Raises AlreadyExists, NotFound, NotADirectory, InvalidArgument, NoSpace."""
    tables.get_directory(txn, root)
    if not name or name in {".", ".."} or "/" in name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
        raise errors.InvalidArgument("a snapshot's name is a file name", subject=name)
    known = list_all(txn)
    if any(one.root == root and one.name == name and not one.deleted for one in known):
        raise errors.AlreadyExists("this directory has a snapshot of that name; delete it, or take another name", subject=name)
    number = _get_mark(txn).last + 1
    if number > MAX_SNAPSHOTS:
        raise errors.NoSpace(f"a namespace has at most {MAX_SNAPSHOTS} snapshots in its life")
    snapshot = Snapshot(number, root, name, now_ns)
    _put(txn, snapshot)
    _put_mark(txn, _Mark(number, number, records.unpack_id(txn.get(records.KEY_NEXT_INODE) or b"\0")))
    return snapshot


def lookup(txn: ReadTransaction, root: InodeId, name: str) -> Snapshot | None:
    """The snapshot of a directory by its name."""
    return next((one for one in list_all(txn) if one.root == root and one.name == name and not one.deleted), None)


def get(txn: ReadTransaction, number: int) -> Snapshot:
    """A snapshot by its number; raises NotFound."""
    data = txn.get(_key(number))
    found = None if data is None else _unpack(number, data)
    if found is None or found.deleted:
        raise errors.NotFound("this snapshot was deleted", subject=str(number))
    return found


def list_all(txn: ReadTransaction) -> list[Snapshot]:
    """All snapshots, those being collected too, by their numbers."""
    return [_unpack(_NUMBER.unpack_from(key, 1)[0], data) for key, data in txn.scan(b"B", b"C")]


def delete(txn: WriteTransaction, snapshot: Snapshot) -> None:
    """Let a snapshot not be seen any more; `collect` takes what was kept for it."""
    _put(txn, snapshot._replace(deleted=True))
    newest = max((one.number for one in list_all(txn) if not one.deleted), default=0)
    _put_mark(txn, _get_mark(txn)._replace(newest=newest))


def collect(txn: WriteTransaction, number: int, cursor: bytes) -> bytes | None:
    """Take what was kept for a deleted snapshot, or leave it to the one before it, a part each call from `cursor` (b"": the
    start); the next cursor, None: it is done, and the snapshot forgotten."""
    older = max((one.number for one in list_all(txn) if one.number < number and not one.deleted), default=0)
    seen = 0
    for row, value in list(txn.scan(cursor or b"U", b"V", limit=_COLLECTED)):
        seen += 1
        cursor = row + b"\0"
        if _NUMBER.unpack_from(row, len(row) - 8)[0] != number:
            continue
        body = row[:-8]
        if older and next(iter(txn.scan(body + _NUMBER.pack(older), row, limit=1)), None) is None:
            txn.put(body + _NUMBER.pack(older), value)
        txn.delete(row)
    if seen == _COLLECTED:
        return cursor
    txn.delete(_key(number))
    return None


class Marks(NamedTuple):
    """What every write looks at, for who checks it: see `_Mark`."""

    last: int
    newest: int


def get_marks(txn: ReadTransaction) -> Marks:
    mark = _get_mark(txn)
    return Marks(mark.last, mark.newest)


def skip_numbers(txn: WriteTransaction, count: int) -> None:
    """Give the next numbers to nobody."""
    mark = _get_mark(txn)
    _put_mark(txn, mark._replace(last=min(mark.last + count, MAX_SNAPSHOTS)))


def read_kept(row: bytes, value: bytes) -> tuple[int, bytes, bool]:
    """Of a row that was kept: the snapshot's number, the key that it is of, and whether it lies where that key is looked for."""
    key, _ = _unpack_kept(value)
    return _NUMBER.unpack_from(row, len(row) - 8)[0], key, row[:-8] == _make_body(key)


# What a change remembers


def record(txn: WriteTransaction) -> WriteTransaction:
    """A transaction whose changes remember what was there, for the newest snapshot; the same one where there is none."""
    mark = _get_mark(txn)
    return _Recording(txn, mark.newest, mark.next_inode) if mark.newest else txn


class _Recording:
    """See `record`."""

    def __init__(self, txn: WriteTransaction, number: int, next_inode: int) -> None:
        self._txn = txn
        self._number = number
        self._next_inode = next_inode
        self._kept: set[bytes] = set()

    def get(self, key: bytes) -> bytes | None:
        return self._txn.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._txn.get_many(keys)

    def scan(
        self, start: bytes, stop: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._txn.scan(start, stop, limit=limit, reverse=reverse)

    def scan_columns(self, start: bytes, stop: bytes, *, limit: int | None = None) -> Columns:
        return self._txn.scan_columns(start, stop, limit=limit)

    def scan_numbers(self, letter: bytes, numbers: Numbers) -> tuple[Columns, Numbers]:
        return self._txn.scan_numbers(letter, numbers)

    def put(self, key: bytes, value: bytes) -> None:
        self._keep(key)
        self._txn.put(key, value)

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        for key, _ in pairs:
            self._keep(key)
        self._txn.put_many(pairs)

    def delete(self, key: bytes) -> bool:
        self._keep(key)
        return self._txn.delete(key)

    def _keep(self, key: bytes) -> None:
        if key in self._kept or not _is_covered(key):
            return
        # What belongs to an inode that came later no snapshot can see.
        if key[0] != _C and int.from_bytes(key[1:_HEAD_BYTES], "big") >= self._next_inode:
            return
        self._kept.add(key)
        body = _make_body(key)
        if next(iter(self._txn.scan(body + _NUMBER.pack(self._number), get_prefix_stop(body), limit=1)), None) is None:
            self._txn.put(body + _NUMBER.pack(self._number), _pack_kept(key, self._txn.get(key)))


# The namespace as it was


class View:
    """A transaction that reads the namespace as a snapshot has it."""

    def __init__(self, txn: ReadTransaction, number: int) -> None:
        self._txn = txn
        self._number = number

    def get(self, key: bytes) -> bytes | None:
        if _is_covered(key):
            body = _make_body(key)
            for _, value in self._txn.scan(body + _NUMBER.pack(self._number), get_prefix_stop(body), limit=1):
                return _unpack_kept(value)[1]
        return self._txn.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def scan(
        self, start: bytes, stop: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """See ReadTransaction. `reverse` reads all of the range."""
        if not start or not _is_covered(start):
            yield from self._txn.scan(start, stop, limit=limit, reverse=reverse)
            return
        merged: Iterable[tuple[bytes, bytes]] = self._merge(start, stop)
        if reverse:
            merged = reversed(list(merged))
        for count, pair in enumerate(merged):
            if count == limit:
                return
            yield pair

    def scan_columns(self, start: bytes, stop: bytes, *, limit: int | None = None) -> Columns:
        return make_columns(self.scan(start, stop, limit=limit))

    def scan_numbers(self, letter: bytes, numbers: Numbers) -> tuple[Columns, Numbers]:
        return scan_runs(self.scan, letter, numbers)

    def _merge(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        kept = self._iter_kept(start, stop)
        old = next(kept, None)
        for key, value in self._txn.scan(start, stop):
            while old is not None and old[0] < key:
                if old[1] is not None:
                    yield old[0], old[1]
                old = next(kept, None)
            if old is not None and old[0] == key:
                if old[1] is not None:
                    yield key, old[1]
                old = next(kept, None)
            else:
                yield key, value
        while old is not None:
            if old[1] is not None:
                yield old[0], old[1]
            old = next(kept, None)

    def _iter_kept(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes | None]]:
        """What was kept for this snapshot of the keys in a range, in their order. Long keys lie side by side in any order."""
        group: dict[bytes, bytes | None] = {}
        group_body = b""
        rows = self._txn.scan(b"U" + _escape(start), b"V" if stop[:1] > start[:1] else b"U" + _escape(stop) + b"\xff")
        for row, value in rows:
            if _NUMBER.unpack_from(row, len(row) - 8)[0] < self._number:
                continue
            key, data = _unpack_kept(value)
            if key >= stop and len(key) <= _EXACT_BYTES:
                break
            body = row[:-8][: 1 + _HEAD_BYTES + _EXACT_BYTES]
            if body != group_body:
                yield from sorted(group.items())
                group, group_body = {}, body
            if start <= key < stop:
                group.setdefault(key, data)
        yield from sorted(group.items())


# Inside

_C = ord("C")


def _is_covered(key: bytes) -> bool:
    return key[0] in _COVERED or key == records.KEY_ROOT_TABLE


def _escape(key: bytes) -> bytes:
    """A key's place among others: its head, and of the rest what is compared exactly, with no end in it."""
    return key[:_HEAD_BYTES] + key[_HEAD_BYTES:].replace(b"\0", b"\0\xff")[:_EXACT_BYTES]


def _make_body(key: bytes) -> bytes:
    """What stands before the number: keys in their order, but for those that are longer than what is compared."""
    rest = key[_HEAD_BYTES:].replace(b"\0", b"\0\xff")
    tail = blake2b(key, digest_size=16).digest() if len(rest) > _EXACT_BYTES else b""
    return b"U" + key[:_HEAD_BYTES] + rest[:_EXACT_BYTES] + tail + _END


def _pack_kept(key: bytes, data: bytes | None) -> bytes:
    return _LENGTH.pack(data is not None, len(key)) + key + (data or b"")


def _unpack_kept(value: bytes) -> tuple[bytes, bytes | None]:
    was_there, length = _LENGTH.unpack_from(value)
    at = _LENGTH.size + length
    return value[_LENGTH.size : at], value[at:] if was_there else None


def _key(number: int) -> bytes:
    return b"B" + _NUMBER.pack(number)


def _put(txn: WriteTransaction, snapshot: Snapshot) -> None:
    fields = [snapshot.root, snapshot.name.encode("utf-8", "surrogateescape").hex(), snapshot.created_ns, snapshot.deleted]
    txn.put(_key(snapshot.number), json.dumps(fields).encode())


def _unpack(number: int, data: bytes) -> Snapshot:
    root, name, created_ns, deleted = json.loads(data)
    return Snapshot(number, InodeId(root), to_str(bytes.fromhex(name)), created_ns, deleted)


def _get_mark(txn: ReadTransaction) -> _Mark:
    data = txn.get(records.KEY_SNAPSHOTS)
    return _Mark(0, 0, 0) if data is None else _Mark(*_MARK.unpack(data))


def _put_mark(txn: WriteTransaction, mark: _Mark) -> None:
    txn.put(records.KEY_SNAPSHOTS, _MARK.pack(*mark))
