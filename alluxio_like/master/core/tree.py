"""A directory's children as columns, for who wants a whole tree and no object for each entry of it.

Owns how they are read: nothing is done for each entry but taking its record apart, and what is unusual goes the way of
namespace.py. A function over a transaction, like those there.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import namespace, records, tables
from alluxio_like.types import InodeId, Kind, TreeColumns

_UNUSUAL: Final = records.ODD | records.LINKED


def add_children(
    txn: ReadTransaction, directory: InodeId, path: bytes, cursor: bytes, limit: int, columns: TreeColumns
) -> tuple[bytes, list[tuple[InodeId, bytes]]]:
    """Add up to `limit` children from `cursor` on (b"": the first), in the order of list_entries; the next cursor (b"": that was
    all), and the directories among them with their paths. `path` is the directory's own, as shown.

    Raises NotFound, NotADirectory.
    """
    tables.get_directory(txn, directory)
    table = tables.get_table(txn, directory)
    start = records.dentry_key(table, cursor[1:] + b"\0" if cursor else b"")
    dentries = list(txn.scan(start, records.dentry_stop(table), limit=limit))
    if not dentries:
        return b"", []
    ids = [records.unpack_id(data) for _, data in dentries]
    inodes = _read_inodes(txn, ids)
    kinds, flags, sizes, mtimes_ns, tokens, plain = zip(*map(records.unpack_listed, inodes), strict=True)
    names: Sequence[bytes] = plain
    shadowed = bool(tables.get_state(txn, table).shadowed)
    if shadowed or any(map(_UNUSUAL.__and__, flags)):
        names = [
            namespace.show_child(txn, directory, table, key[9:], records.unpack_inode(data), shadowed)
            for (key, _), data in zip(dentries, inodes, strict=True)
        ]
    columns.inodes.extend(ids)
    columns.kinds += bytes(kinds)
    columns.sizes.extend(sizes)
    columns.mtimes_ns.extend(mtimes_ns)
    columns.name_ends.extend(_list_ends(len(columns.names), names))
    columns.names += b"".join(names)
    columns.token_ends.extend(_list_ends(len(columns.tokens), tokens))
    columns.tokens += b"".join(tokens)
    columns.directories.append(path)
    columns.counts.append(len(ids))
    below: list[tuple[InodeId, bytes]] = []
    if Kind.DIRECTORY in kinds:
        base = path.rstrip(b"/") + b"/"
        below = [(InodeId(ids[at]), base + names[at]) for at, kind in enumerate(kinds) if kind == Kind.DIRECTORY]
    return b"/" + dentries[-1][0][9:] if len(ids) == limit else b"", below


def _read_inodes(txn: ReadTransaction, ids: list[int]) -> list[bytes]:
    """Their records. What was listed at once has numbers in the order of its names, and lies side by side."""
    first, last = ids[0], ids[-1]
    if ids == list(range(first, first + len(ids))):
        found: list[bytes | None] = [data for _, data in txn.scan(records.inode_key(first), records.inode_key(last + 1))]
    else:
        found = txn.get_many([records.inode_key(inode) for inode in ids])
    there = [data for data in found if data is not None]
    if len(there) != len(ids):
        raise errors.Internal("a name without an inode", subject=f"one of {first} to {last}")
    return there


def _list_ends(start: int, parts: Sequence[bytes]) -> list[int]:
    """Where each of them ends when they follow each other from `start` on."""
    ends = list(accumulate(map(len, parts), initial=start))
    return ends[1:]
