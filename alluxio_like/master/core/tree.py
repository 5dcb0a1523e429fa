"""Directories' children as columns, for who wants a whole tree and no object for each entry of it.

Owns how they are read (dentries, then the records of their inodes, of many directories at once) and put together. Nothing is done
for a single entry but for directories and for names that are not shown as they are, which go the way of namespace.py. Reads are
functions over a transaction, like those there; what they found may be put together after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.kv.columns import (
    Bytes,
    Columns,
    Ints,
    Numbers,
    gather,
    list_rows,
    pick,
    scan_runs,
)
from alluxio_like.master.core import namespace, records, tables
from alluxio_like.master.core.record_columns import (
    Flags,
    Records,
    Spans,
    States,
    join_records,
    join_tokens,
    open_records,
    open_states,
)
from alluxio_like.types import ROOT_INODE, InodeId, Kind, TreeColumns

_UNUSUAL: Final = records.ODD | records.LINKED
_DIRECTORY: Final = int(Kind.DIRECTORY)
_HEAD_BYTES: Final = 9
"""What stands before a name in a dentry's key."""
_FEW: Final = 64
"""So many pairs are read one by one in less time than by columns."""


@dataclass(frozen=True, slots=True)
class Directories:
    """What is known of directories, by columns; of one that is gone nothing but that. `tables`: where children are filed."""

    inodes: Numbers
    tables: Numbers
    there: Flags
    mounts: Ints
    states: States

    def __len__(self) -> int:
        return len(self.inodes)

    def __getitem__(self, rows: slice | Ints) -> "Directories":
        """Some of them."""
        return Directories(self.inodes[rows], self.tables[rows], self.there[rows], self.mounts[rows], self.states[rows])

    @property
    def counts(self) -> Ints:
        """How many children each has."""
        return self.states.files + self.states.directories


@dataclass(frozen=True, slots=True)
class Children:
    """Children of directories as they were read: so many (`counts`) of each. `shown`, by row: names that are not their records'
    own. `directories`: those among them, with their paths. `cursor` continues what is a part of one directory's (b"": that was
    all)."""

    paths: Sequence[bytes]
    counts: Ints
    inodes: Numbers
    found: Records
    shown: dict[int, bytes]
    directories: list[tuple[InodeId, bytes]]
    cursor: bytes

    def __len__(self) -> int:
        return len(self.inodes)


def describe_directories(txn: ReadTransaction, inodes: Sequence[InodeId]) -> Directories:
    """What `namespace.get_dir_state` says of one, of many."""
    asked = np.array(inodes, np.uint64)
    filed = asked
    if ROOT_INODE in inodes:
        filed = np.where(asked == ROOT_INODE, np.uint64(tables.get_table(txn, ROOT_INODE)), asked)
    at, found = _find(txn, b"I", asked)
    heads = open_records(found.data, found.value_starts, found.value_lengths)
    there = at >= 0
    there[there] = (heads.kinds[at[there]] == _DIRECTORY) & ((heads.flags[at[there]] & records.ORPHAN) == 0)
    mounts = np.zeros(len(asked), np.int64)
    mounts[there] = heads.mounts[at[there]]
    rows, states = _find(txn, b"S", filed)
    return Directories(asked, filed, there, mounts, open_states(states.data, states.value_starts, rows))


def read_directories(txn: ReadTransaction, found: Directories, paths: Sequence[bytes]) -> Children:
    """All children of directories that are there, one directory after another, of each in the order of list_entries. `paths` are
    their own, as shown; `found` comes from the same transaction.

    No more than fits into memory is to be asked for.
    """
    numbers = np.unique(found.tables)
    dentries, filed = _scan(txn, b"D", numbers, int(found.counts.sum()))
    starts = np.searchsorted(filed, found.tables, "left")
    counts = np.searchsorted(filed, found.tables, "right") - starts
    if len(numbers) < len(found) or (numbers != found.tables).any():
        dentries = dentries.take(list_rows(starts, counts))
    return _read_children(txn, found, paths, counts, dentries, b"")


def read_some(txn: ReadTransaction, directory: InodeId, path: bytes, cursor: bytes, limit: int) -> Children:
    """Up to `limit` children of one directory from `cursor` on (b"": the first).

    Raises NotFound.
    """
    found = describe_directories(txn, [directory])
    if not found.there[0]:
        raise errors.NotFound("no such directory", subject=str(directory))
    table = int(found.tables[0])
    start = records.dentry_key(table, cursor[1:] + b"\0" if cursor else b"")
    dentries = txn.scan_columns(start, records.dentry_stop(table), limit=limit)
    count = len(dentries)
    more = b"/" + dentries.get_key(limit - 1)[_HEAD_BYTES:] if count == limit else b""
    return _read_children(txn, found, [path], np.array([count], np.int64), dentries, more)


def _read_children(
    txn: ReadTransaction, asked: Directories, paths: Sequence[bytes], counts: Ints, dentries: Columns, cursor: bytes
) -> Children:
    inodes = _read_ids(dentries)
    found = _read_records(txn, inodes)
    ends = np.cumsum(counts)

    def get_name(row: int, place: int) -> bytes:
        """The name that is shown for a row, which is of this directory."""
        record = records.unpack_inode(found.get(row))
        filed = dentries.get_key(row)[_HEAD_BYTES:]
        shadowed = bool(asked.states.shadowed[place])
        return namespace.show_child(txn, InodeId(int(asked.inodes[place])), int(asked.tables[place]), filed, record, shadowed)

    unusual = (found.flags & _UNUSUAL) != 0
    for place in np.flatnonzero(asked.states.shadowed).tolist():
        unusual[ends[place] - counts[place] : ends[place]] = True
    rows = np.flatnonzero(unusual)
    places = np.searchsorted(ends, rows, "right")
    shown = {row: get_name(row, place) for row, place in zip(rows.tolist(), places.tolist(), strict=True)}
    rows = np.flatnonzero(found.kinds == _DIRECTORY)
    places = np.searchsorted(ends, rows, "right")
    below = found.take(rows)
    names = _cut(found.data, *below.find_names(below.find_tokens()))
    bases = [path.rstrip(b"/") + b"/" for path in paths]
    directories = [
        (InodeId(inode), bases[place] + shown.get(row, name))
        for inode, place, row, name in zip(inodes[rows].tolist(), places.tolist(), rows.tolist(), names, strict=True)
    ]
    return Children(paths, counts, inodes, found, shown, directories, cursor)


def _cut(data: Bytes, starts: Ints, lengths: Ints) -> list[bytes]:
    joined, ends = gather(data, starts, lengths)
    whole = joined.tobytes()
    return [whole[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def _read_ids(dentries: Columns) -> Numbers:
    """The inodes of dentries: numbers of 1 to 8 bytes."""
    # The 8 bytes that end where the number does begin within the key at the earliest; what is not the number's is cut off.
    ends = dentries.value_starts + dentries.value_lengths
    words = pick(dentries.data, ends - 8, ">u8").astype(np.uint64)
    cut = ((8 - dentries.value_lengths) * 8).astype(np.uint64)
    return words << cut >> cut


def _read_records(txn: ReadTransaction, inodes: Numbers) -> Records:
    """The records of inodes, in their order."""
    at, found = _find(txn, b"I", inodes)
    if (at < 0).any():
        raise errors.Internal("a name without an inode", subject=f"one of {inodes.min()} to {inodes.max()}")
    return open_records(found.data, found.value_starts[at], found.value_lengths[at])


def _find(txn: ReadTransaction, letter: bytes, numbers: Numbers) -> tuple[Ints, Columns]:
    """Pairs of a table with one for each number, and where in them each of these numbers is; -1: there is none."""
    # What was listed at once has numbers in the order of its names.
    order = np.argsort(numbers, kind="stable")
    ascending = numbers[order]
    is_new = ascending[1:] != ascending[:-1]
    if is_new.all():
        asked, rank = ascending, np.arange(len(numbers), dtype=np.int64)
    else:
        asked, rank = ascending[np.append(True, is_new)], np.append(0, np.cumsum(is_new))
    found, there = _scan(txn, letter, asked, len(asked))
    if len(there) < len(asked):
        # Some are missing.
        rank = np.searchsorted(there, ascending)
        rank[np.append(there, 0)[rank] != ascending] = -1
    at = np.empty(len(numbers), np.int64)
    at[order] = rank
    return at, found


def _scan(txn: ReadTransaction, letter: bytes, numbers: Numbers, expected: int) -> tuple[Columns, Numbers]:
    if expected > _FEW:
        return txn.scan_numbers(letter, numbers)
    return scan_runs(txn.scan, letter, numbers)


def join_columns(parts: Sequence[Children]) -> TreeColumns:
    """All of them, one after another, put together."""
    found = join_records([part.found for part in parts])
    packed = found.find_tokens()
    tokens, token_ends = join_tokens(found, packed)
    names, name_ends = _join_names(found, packed, parts)
    return TreeColumns(
        inodes=np.concatenate([part.inodes for part in parts]).astype("<u8", copy=False).tobytes(),
        kinds=found.kinds.tobytes(),
        sizes=found.sizes.astype("<i8", copy=False).tobytes(),
        mtimes_ns=found.mtimes_ns.astype("<i8", copy=False).tobytes(),
        names=names.tobytes(),
        name_ends=name_ends.astype("<i4").tobytes(),
        tokens=tokens.tobytes(),
        token_ends=token_ends.astype("<i4").tobytes(),
        directories=[path for part in parts for path in part.paths],
        counts=np.concatenate([part.counts for part in parts]).astype("<u4").tobytes(),
    )


def _join_names(found: Records, tokens: Spans, parts: Sequence[Children]) -> tuple[Bytes, Ints]:
    data, (starts, lengths) = found.data, found.find_names(tokens)
    end = len(data)
    others: list[bytes] = []
    for first, part in zip(accumulate(map(len, parts), initial=0), parts, strict=False):
        for row, name in part.shown.items():
            starts[first + row], lengths[first + row] = end, len(name)
            others.append(name)
            end += len(name)
    if others:
        data = np.concatenate([data, np.frombuffer(b"".join(others), np.uint8)])
    return gather(data, starts, lengths)
