"""What a check of the namespace says, as a test asks it: after whatever step, nothing is wrong and nothing is left over."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from alluxio_like import errors
from alluxio_like.kv.api import KeyValueStore, ReadTransaction
from alluxio_like.master.core import checking, namespace, tree
from alluxio_like.master.core.model import NO_MOUNT, DirState
from alluxio_like.types import ROOT_INODE, Attr, InodeId, Kind, Recall, TreeColumns, to_bytes


def assert_whole(kv: KeyValueStore) -> None:
    with kv.read() as txn:
        found = list(checking.check(txn))
    assert not found, found


Names = dict[tuple[InodeId, bytes], Attr]
"""What is known by the directory and the name: what a client may keep of it."""


def read_names(txn: ReadTransaction) -> Names:
    """All that can be found from the root on."""
    found: Names = {}
    pending = [ROOT_INODE]
    while pending:
        directory = pending.pop()
        page = namespace.list_entries(txn, directory)
        assert not page.cursor, "more than a page"
        for entry in page.entries:
            found[directory, to_bytes(entry.name)] = entry.attr
            if entry.attr.kind is Kind.DIRECTORY:
                pending.append(entry.attr.inode)
    return found


def assert_recalled(before: Names, after: Names, recalls: Sequence[Recall]) -> None:
    """Whoever knows something of a name that is not so any more hears of it. (Attributes of directories are kept by nobody for
    long, and what lies below what was moved is the same as it was.)"""
    for place in before.keys() | after.keys():
        old, new = before.get(place), after.get(place)
        is_same = old == new or (old and new and old.kind is Kind.DIRECTORY and old.inode == new.inode)
        if not is_same:
            inodes = {attr.inode for attr in (old, new) if attr is not None}
            told = [one for one in recalls if one.directory == place[0]]
            assert any(place[1] in one.names or one.all_names or inodes <= set(one.inodes) for one in told), (place, old, new)


def assert_columns(txn: ReadTransaction, directory: InodeId, limit: int = 2) -> None:
    """A directory read as columns, so many entries at a time and whole, says of each of its names what a listing does."""
    parts: list[tree.Children] = []
    cursor = b""
    while True:
        parts.append(tree.read_some(txn, directory, b"/at", cursor, limit))
        cursor = parts[-1].cursor
        if not cursor:
            break
    _assert_listed(txn, parts, [(directory, b"/at")])
    assert_columns_of_many(txn, [directory])


def assert_columns_of_many(txn: ReadTransaction, directories: Sequence[InodeId]) -> None:
    """The same of many directories that are read at once; and what is known of each."""
    found = tree.describe_directories(txn, directories)
    known = list(map(_describe, [txn] * len(directories), directories))
    states = found.states
    columns = found.mounts, states.complete, states.untrusted, states.listed_ns, states.files, states.directories, states.shadowed
    rows = zip(found.there.tolist(), *(column.tolist() for column in columns), strict=True)
    for state, (is_there, mount_id, *row) in zip(known, rows, strict=True):
        assert is_there == (state is not None)
        if state is not None:
            assert mount_id == state.mount_id
        if state is not None and mount_id != NO_MOUNT:
            seen = state.complete, state.untrusted, state.listed_ns, state.files, state.directories, state.shadowed
            assert tuple(row) == seen
    there = np.flatnonzero(found.there)
    paths = [b"/%d" % place for place in there.tolist()]
    part = tree.read_directories(txn, found[there], paths)
    _assert_listed(txn, [part], [(directories[place], path) for place, path in zip(there.tolist(), paths, strict=True)])


def _describe(txn: ReadTransaction, directory: InodeId) -> DirState | None:
    try:
        return namespace.get_dir_state(txn, directory)
    except (errors.NotFound, errors.NotADirectory):
        return None


def _assert_listed(txn: ReadTransaction, parts: Sequence[tree.Children], listed: Sequence[tuple[InodeId, bytes]]) -> None:
    columns = tree.join_columns(parts)
    each = [namespace.list_entries(txn, directory).entries for directory, _ in listed]
    entries = [entry for some in each for entry in some]
    attrs = [entry.attr for entry in entries]
    assert _cut(columns.names, columns.name_ends) == [to_bytes(entry.name) for entry in entries]
    assert _cut(columns.tokens, columns.token_ends) == [
        to_bytes(entry.ref.fingerprint.token) if entry.ref is not None else b"" for entry in entries
    ]
    numbers = unpack(columns.inodes, "<u8"), columns.kinds, unpack(columns.sizes, "<i8"), unpack(columns.mtimes_ns, "<i8")
    seen = zip(*numbers, strict=True)
    assert list(seen) == [(attr.inode, attr.kind, attr.size, attr.mtime_ns) for attr in attrs]
    assert [below for part in parts for below in part.directories] == [
        (entry.attr.inode, path + b"/" + to_bytes(entry.name))
        for some, (_, path) in zip(each, listed, strict=True)
        for entry in some
        if entry.attr.kind is Kind.DIRECTORY
    ]
    counts: dict[bytes, int] = {}
    for path, count in zip(columns.directories, unpack(columns.counts, "<u4"), strict=True):
        counts[path] = counts.get(path, 0) + count
    assert counts == {path: len(some) for some, (_, path) in zip(each, listed, strict=True)}


def _cut(joined: bytes, ends: bytes) -> list[bytes]:
    return [joined[start:stop] for start, stop in pairwise([0, *unpack(ends, "<i4")])]


def unpack(column: bytes, form: str) -> list[int]:
    """The numbers of a column."""
    numbers: list[int] = np.frombuffer(column, form).tolist()
    return numbers


def list_paths(columns: TreeColumns) -> list[str]:
    """The paths of a page's entries."""
    ends = unpack(columns.name_ends, "<i4")
    names = [columns.names[start:stop] for start, stop in pairwise([0, *ends])]
    counts = unpack(columns.counts, "<u4")
    places = [place for place, count in zip(columns.directories, counts, strict=True) for _ in range(count)]
    return [(place.rstrip(b"/") + b"/" + name).decode() for place, name in zip(places, names, strict=True)]
