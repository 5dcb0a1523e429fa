"""What a check of the namespace says, as a test asks it: after whatever step, nothing is wrong and nothing is left over."""

from collections.abc import Iterable
from itertools import pairwise

from alluxio_like.kv.api import KeyValueStore, ReadTransaction
from alluxio_like.master.core import checking, namespace, tree
from alluxio_like.types import InodeId, Kind, TreeColumns, to_bytes


def assert_whole(kv: KeyValueStore) -> None:
    with kv.read() as txn:
        found = list(checking.check(txn))
    assert not found, found


def assert_columns(txn: ReadTransaction, directory: InodeId, limit: int = 2) -> None:
    """A directory read as columns says of each of its names what a listing does."""
    parts: list[tree.Children] = []
    below: list[tuple[InodeId, bytes]] = []
    cursor = b""
    while True:
        part = tree.read_children(txn, directory, b"/at", cursor, limit)
        parts.append(part)
        below += part.directories
        cursor = part.cursor
        if not cursor:
            break
    columns = TreeColumns()
    tree.add_columns(columns, parts[:1])
    tree.add_columns(columns, parts[1:])
    entries = namespace.list_entries(txn, directory).entries
    names = [to_bytes(entry.name) for entry in entries]
    assert _cut(columns.names, columns.name_ends) == names
    assert _cut(columns.tokens, columns.token_ends) == [
        to_bytes(entry.ref.fingerprint.token) if entry.ref is not None else b"" for entry in entries
    ]
    seen = zip(columns.inodes, columns.kinds, columns.sizes, columns.mtimes_ns, strict=True)
    attrs = [entry.attr for entry in entries]
    assert list(seen) == [(attr.inode, attr.kind, attr.size, attr.mtime_ns) for attr in attrs]
    assert below == [(attr.inode, b"/at/" + name) for attr, name in zip(attrs, names, strict=True) if attr.kind is Kind.DIRECTORY]
    assert sum(columns.counts) == len(entries)


def _cut(joined: bytearray, ends: Iterable[int]) -> list[bytes]:
    return [bytes(joined[start:stop]) for start, stop in pairwise([0, *ends])]
