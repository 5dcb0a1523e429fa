"""What reads of the namespace look at in its store, to have it brought into memory before they run where nothing may wait.

Owns which keys those are. What is not there, or not what it was taken for, is left to the read itself to say. Functions over a
read transaction; any thread.
"""

from collections.abc import Iterable

import numpy as np

from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import namespace, paths, records, tables
from alluxio_like.types import InodeId, Kind, to_bytes


def list_first_keys(txn: ReadTransaction, asked: Iterable[tuple[InodeId, str]]) -> list[bytes]:
    """What `namespace.lookup` of these names looks at before anything else, or for an empty one `namespace.get_entry` of the
    inode itself."""
    keys: dict[bytes, None] = {}
    for inode, name in asked:
        keys[records.inode_key(inode)] = None
        if name:
            table = tables.get_table(txn, inode)
            found = paths.read_name(to_bytes(name))
            keys[records.state_key(table)] = None
            if found.raw is not None:
                keys[records.dentry_key(table, paths.file_name(found.raw))] = None
            else:
                keys[records.hash_key(table, found.shown_hash)] = None
    return list(keys)


def list_next_keys(txn: ReadTransaction, asked: Iterable[tuple[InodeId, str]]) -> list[bytes]:
    """What they look at then, once the first keys are in memory."""
    keys: dict[bytes, None] = {}
    for inode, name in asked:
        if name:
            table = tables.get_table(txn, inode)
            state = tables.get_state(txn, table)
            for sort_name in namespace.list_sort_names(txn, table, to_bytes(name), state):
                if (found := tables.lookup_child(txn, table, sort_name)) is not None:
                    keys[records.inode_key(found)] = None
                    if sort_name[-1:] == b"/":
                        keys[records.state_key(found)] = None
        elif (record := tables.lookup_inode(txn, inode)) is not None:
            keys[records.inode_key(record.parent)] = None
            keys[records.state_key(tables.get_table(txn, record.parent))] = None
            if record.kind is Kind.DIRECTORY:
                keys[records.state_key(tables.get_table(txn, inode))] = None
    return list(keys)


def bring_page(txn: ReadTransaction, directory: InodeId, cursor: bytes, limit: int) -> None:
    """Read what `namespace.list_entries` looks at, in a thread that may wait for the disk."""
    table = tables.get_table(txn, directory)
    start = namespace.get_page_start(table, cursor)
    found = txn.scan_columns(start, records.dentry_stop(table), limit=limit)
    ids = [records.unpack_id(found.get_value(row)) for row in range(len(found))]
    txn.scan_numbers(b"I", np.unique(np.array(ids, np.uint64)))
