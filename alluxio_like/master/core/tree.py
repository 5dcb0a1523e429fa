"""A directory's children as columns, for who wants a whole tree and no object for each entry of it.

Owns how they are read (pages of dentries, then the records of their inodes) and put together. Nothing is done for a single entry
but for directories and for names that are not shown as they are, which go the way of namespace.py. Reads are functions over a
transaction, like those there; what they found may be put together after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.kv.columns import Bytes, Columns, Ints, gather, join_bytes, join_columns, make_columns, pick
from alluxio_like.master.core import namespace, records, tables
from alluxio_like.master.core.record_columns import Records, join_tokens, open_records
from alluxio_like.types import InodeId, Kind, TreeColumns

Inodes = NDArray[np.uint64]

_UNUSUAL: Final = records.ODD | records.LINKED
_DIRECTORY: Final = int(Kind.DIRECTORY)
_HEAD_BYTES: Final = 9
"""What stands before a name in a dentry's key."""
_FEW: Final = 128
"""So many pairs are read one by one in less time than by columns (LMDB: 60 µs for a range, 0.3 µs for a pair)."""
_NEAR: Final = 64
"""Records with fewer others between them are read with these (a guess)."""


@dataclass(frozen=True, slots=True)
class Children:
    """Some of a directory's children as they were read. `shown`, by row: names that are not their records' own. `directories`:
    those among them, with their paths. `cursor` continues (b"": that was all)."""

    path: bytes
    inodes: Inodes
    data: Bytes
    starts: Ints
    lengths: Ints
    shown: dict[int, bytes]
    directories: list[tuple[InodeId, bytes]]
    cursor: bytes

    def __len__(self) -> int:
        return len(self.inodes)


def read_children(txn: ReadTransaction, directory: InodeId, path: bytes, cursor: bytes, limit: int) -> Children:
    """Up to `limit` children from `cursor` on (b"": the first), in the order of list_entries. `path` is the directory's own, as
    shown.

    Raises NotFound, NotADirectory.
    """
    tables.get_directory(txn, directory)
    table = tables.get_table(txn, directory)
    state = tables.get_state(txn, table)
    start = records.dentry_key(table, cursor[1:] + b"\0" if cursor else b"")
    dentries = _scan(txn, start, records.dentry_stop(table), state.files + state.directories, limit)
    inodes = _read_ids(dentries)
    found = _read_records(txn, inodes)
    shown: dict[int, bytes] = {}
    shadowed = bool(state.shadowed)
    for row in range(len(inodes)) if shadowed else np.flatnonzero(found.flags & _UNUSUAL).tolist():
        filed = dentries.get_key(row)[_HEAD_BYTES:]
        shown[row] = namespace.show_child(txn, directory, table, filed, records.unpack_inode(found.get(row)), shadowed)
    base = path.rstrip(b"/") + b"/"
    directories: list[tuple[InodeId, bytes]] = []
    for row in np.flatnonzero(found.kinds == _DIRECTORY).tolist():
        name = shown[row] if row in shown else records.unpack_inode(found.get(row)).name
        directories.append((InodeId(int(inodes[row])), base + name))
    more = b"/" + dentries.get_key(limit - 1)[_HEAD_BYTES:] if len(inodes) == limit else b""
    return Children(path, inodes, found.data, found.starts, found.lengths, shown, directories, more)


def _read_ids(dentries: Columns) -> Inodes:
    """The inodes of dentries: numbers of 1 to 8 bytes."""
    # The 8 bytes that end where the number does begin within the key at the earliest; what is not the number's is cut off.
    ends = dentries.value_starts + dentries.value_lengths
    words = pick(dentries.data, ends - 8, ">u8").astype(np.uint64)
    cut = ((8 - dentries.value_lengths) * 8).astype(np.uint64)
    return words << cut >> cut


def _read_records(txn: ReadTransaction, inodes: Inodes) -> Records:
    """The records of inodes, in their order. What was listed at once has numbers in the order of its names, and lies side by
    side."""
    if not len(inodes):
        found = make_columns([])
        return open_records(found.data, found.value_starts, found.value_lengths)
    first, last, count = int(inodes[0]), int(inodes[-1]), len(inodes)
    if last - first == count - 1 and (inodes == np.arange(first, last + 1, dtype=np.uint64)).all():
        found = _scan(txn, records.inode_key(first), records.inode_key(last + 1), count)
        if len(found) == count:
            return open_records(found.data, found.value_starts, found.value_lengths)
    else:
        in_order = np.sort(inodes)
        runs = np.split(in_order, np.flatnonzero(np.diff(in_order) > _NEAR) + 1)
        found = _scan_runs(txn, runs) if len(runs) * _FEW <= count else _get_each(txn, inodes)
        there = pick(found.data, found.key_starts + 1, ">u8")
        rows = np.minimum(np.searchsorted(there, inodes), max(0, len(there) - 1))
        if len(there) and (there[rows] == inodes).all():
            return open_records(found.data, found.value_starts[rows], found.value_lengths[rows])
    raise errors.Internal("a name without an inode", subject=f"one of {inodes.min()} to {inodes.max()}")


def _scan_runs(txn: ReadTransaction, runs: Sequence[Inodes]) -> Columns:
    bounds = [(int(run[0]), int(run[-1]) + 1) for run in runs]
    return join_columns([txn.scan_columns(records.inode_key(first), records.inode_key(stop)) for first, stop in bounds])


def _get_each(txn: ReadTransaction, inodes: Inodes) -> Columns:
    keys = [records.inode_key(inode) for inode in np.unique(inodes).tolist()]
    return make_columns((key, data) for key, data in zip(keys, txn.get_many(keys), strict=True) if data is not None)


def _scan(txn: ReadTransaction, start: bytes, stop: bytes, expected: int, limit: int | None = None) -> Columns:
    if expected > _FEW:
        return txn.scan_columns(start, stop, limit=limit)
    return make_columns(txn.scan(start, stop, limit=limit))


def add_columns(columns: TreeColumns, parts: Sequence[Children]) -> None:
    """Add all of them, one after another. Of some thousands at once: it takes 0.1 ms for however few, and more are slower again,
    since memory is asked of the kernel anew each time."""
    if not parts:
        return
    data, offsets = join_bytes([part.data for part in parts])
    starts = np.concatenate([part.starts + offset for part, offset in zip(parts, offsets, strict=True)])
    found = open_records(data, starts, np.concatenate([part.lengths for part in parts]))
    names, name_ends = _join_names(found, parts)
    tokens, token_ends = join_tokens(found)
    for part in parts:
        columns.inodes.frombytes(part.inodes.tobytes())
    columns.kinds += found.kinds.tobytes()
    columns.sizes.frombytes(found.sizes.tobytes())
    columns.mtimes_ns.frombytes(found.mtimes_ns.tobytes())
    columns.name_ends.frombytes((name_ends + len(columns.names)).astype(np.int32).tobytes())
    columns.names += names.tobytes()
    columns.token_ends.frombytes((token_ends + len(columns.tokens)).astype(np.int32).tobytes())
    columns.tokens += tokens.tobytes()
    columns.directories += [part.path for part in parts]
    columns.counts.extend([len(part) for part in parts])


def _join_names(found: Records, parts: Sequence[Children]) -> tuple[Bytes, Ints]:
    data, (starts, lengths) = found.data, found.find_names()
    first, end = 0, len(data)
    others: list[bytes] = []
    for part in parts:
        for row, name in part.shown.items():
            starts[first + row], lengths[first + row] = end, len(name)
            others.append(name)
            end += len(name)
        first += len(part)
    if others:
        data = np.concatenate([data, np.frombuffer(b"".join(others), np.uint8)])
    return gather(data, starts, lengths)
