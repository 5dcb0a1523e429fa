"""Where things are at their stores: keys and prefixes, of inodes that moved too.

Owns the way from an inode to its key. An inode's natural key is made of the raw names from its mount's root down; what was
renamed keeps its bytes under the key of before until the store has followed (MOVED), and a directory lends that to all below it.
Functions over a transaction.
"""

from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import records, tables, trash
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.core.records import Inode, Moved
from alluxio_like.types import ROOT_INODE, InodeId, Kind, to_bytes, to_str


def get_prefix(txn: ReadTransaction, directory: InodeId, record: Inode, *, natural: bool = False) -> str:
    """The prefix under which a directory's children are at the store, "" or ending in "/".

    `natural`: that under which they belong; it is another one while the directory, or one above it, moves.
    """
    names: list[bytes] = []
    at = directory
    while at != ROOT_INODE and not record.flags & records.MOUNT_POINT:
        if record.flags & records.MOVED and not natural:
            return get_moved(txn, at).key + to_str(b"".join(reversed(names)))
        names.append(record.name + b"/")
        at = record.parent
        record = tables.get_inode(txn, at)
    return to_str(b"".join(reversed(names))) if record.mount_id != NO_MOUNT else ""


def get_key(txn: ReadTransaction, inode: InodeId, record: Inode, *, natural: bool = False) -> str:
    """A file's key, or a directory's prefix."""
    if record.kind is Kind.DIRECTORY:
        return get_prefix(txn, inode, record, natural=natural)
    if record.flags & records.MOVED and not natural:
        return get_moved(txn, inode).key
    return get_prefix(txn, record.parent, tables.get_inode(txn, record.parent), natural=natural) + to_str(record.name)


def lookup_place(txn: ReadTransaction, root: InodeId, key: str) -> tuple[InodeId, bytes] | None:
    """The directory below a mount's root in which a key's name is, and its sort name (a directory's key ends in "/"); None: there
    is no such directory."""
    *above, name = to_bytes(key.rstrip("/")).split(b"/")
    at = root
    for part in above:
        found = tables.lookup_child(txn, tables.get_table(txn, at), part + b"/")
        if found is None:
            hidden = trash.lookup_hidden(txn, at, part)
            if hidden is None:
                return None
            found = hidden[0]
        at = found
    return at, name + b"/" if key.endswith("/") else name


def lookup_owner(txn: ReadTransaction, root: InodeId, key: str) -> tuple[InodeId, Inode] | None:
    """The file or directory that belongs at a key below a mount's root; None: there is none.

    Not the further names of a file: what it holds belongs at its oldest.
    """
    place = lookup_place(txn, root, key)
    if place is None:
        return None
    found = tables.lookup_child(txn, tables.get_table(txn, place[0]), place[1])
    if found is None:
        return None
    record = tables.get_inode(txn, found)
    return (found, record) if (record.parent, record.sort_name) == place else None


def get_moved(txn: ReadTransaction, inode: InodeId) -> Moved:
    """Where the bytes of an inode that moved are."""
    data = txn.get(records.moved_key(inode))
    assert data is not None, f"inode {inode} is marked as moved and has no record of it"
    return records.unpack_moved(data)
