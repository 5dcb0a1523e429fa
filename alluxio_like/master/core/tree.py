"""A directory's children as columns, for who wants a whole tree and no object for each entry of it.

Owns how names are shown in them. A function over a transaction, like
namespace.py.
"""

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import paths, records, tables
from alluxio_like.types import InodeId, Kind, TreeColumns, to_bytes


def add_children(
    txn: ReadTransaction, directory: InodeId, path: bytes, cursor: bytes, limit: int, columns: TreeColumns
) -> tuple[bytes, list[tuple[InodeId, bytes]]]:
    """Add up to `limit` children from `cursor` on (b"": the first), in the order of list_entries; the next cursor (b"": that was
    all), and the directories among them with their paths. `path` is the directory's own, as shown.

    Raises NotFound, NotADirectory.
    """
    tables.get_directory(txn, directory)
    table = tables.get_table(txn, directory)
    shadowed = tables.get_state(txn, table).shadowed
    start = records.dentry_key(table, cursor[1:] + b"\0" if cursor else b"")
    dentries = list(txn.scan(start, records.dentry_stop(table), limit=limit))
    ids = [records.unpack_id(data) for _, data in dentries]
    below: list[tuple[InodeId, bytes]] = []
    base = path.rstrip(b"/") + b"/"
    for inode, data in zip(ids, txn.get_many([records.inode_key(inode) for inode in ids]), strict=True):
        if data is None:
            raise errors.Internal("a name without an inode", subject=str(inode))
        record = records.unpack_inode(data)
        name = record.name
        if record.flags & records.ODD or shadowed:
            beside = record.kind is not Kind.DIRECTORY and tables.lookup_child(txn, table, name + b"/") is not None
            name = paths.show_name(name, record.kind, beside)
        if record.kind is Kind.DIRECTORY:
            below.append((InodeId(inode), base + name))
        else:
            columns.tokens += to_bytes(records.unpack_token(record.token))
        columns.inodes.append(inode)
        columns.kinds.append(record.kind)
        columns.sizes.append(record.size)
        columns.mtimes_ns.append(record.mtime_ns)
        columns.names += name
        columns.name_ends.append(len(columns.names))
        columns.token_ends.append(len(columns.tokens))
    if dentries:
        columns.directories.append(path)
        columns.counts.append(len(dentries))
    return b"/" + dentries[-1][0][9:] if len(dentries) == limit else b"", below
