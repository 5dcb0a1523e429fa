"""What becomes of removed inodes.

Owns their last hour: an inode that no name leads to any more is kept, so that open handles and fetches under way can end, and
then forgotten in small steps, a removed directory with all below it. Functions over a transaction, like namespace.py.
"""

from alluxio_like.kv.api import WriteTransaction
from alluxio_like.master.core import records, tables
from alluxio_like.master.core.model import Purged
from alluxio_like.master.core.tables import Edit
from alluxio_like.types import FileId, InodeId, Kind, VersionId

KEEP_NS = 3600 * 10**9


def purge(txn: WriteTransaction, now_ns: int, keep_ns: int = KEEP_NS, limit: int = 1000) -> Purged:
    """Forget orphans removed longer than `keep_ns` ago, at most about `limit` inodes a call."""
    edit = Edit(txn, now_ns)
    files: list[FileId] = []
    directories: list[InodeId] = []
    left = limit
    stop = records.orphan_key(now_ns - keep_ns, 0)
    more = False
    for key, _ in txn.scan(b"X", stop, limit=limit):
        if left <= 0:
            more = True
            break
        removed_ns, inode = records.unpack_orphan_key(key)
        record = tables.lookup_inode(txn, inode)
        if record is not None and record.kind is Kind.DIRECTORY:
            children = _forget_children(edit, inode, removed_ns, left, files)
            left -= children
            if left <= 0:
                more = True
                break
            _forget_table(edit, inode)
            directories.append(inode)
        elif record is not None:
            files.append(FileId(inode, VersionId(record.version)))
        if record is not None:
            edit.forget(inode, record, was_orphan=True)
        txn.delete(key)
        left -= 1
    edit.finish()
    more = more or next(iter(txn.scan(b"X", stop, limit=1)), None) is not None
    return Purged(tuple(files), tuple(directories), more)


def _forget_children(edit: Edit, directory: InodeId, removed_ns: int, limit: int, files: list[FileId]) -> int:
    """Forget up to `limit` children of a removed directory; how many. Directories among them become orphans of the same age."""
    txn = edit.txn
    count = 0
    for key, data in txn.scan(records.dentry_key(directory, b""), records.dentry_stop(directory), limit=limit):
        inode = InodeId(records.unpack_id(data))
        record = tables.lookup_inode(txn, inode)
        if record is None:
            # It had more names than one below what was removed, and went with another of them.
            pass
        elif record.kind is Kind.DIRECTORY:
            edit.count_detached(record)
            edit.abandon(inode, record, removed_ns=removed_ns)
        else:
            files.append(FileId(inode, VersionId(record.version)))
            edit.forget(inode, record, was_orphan=False)
        txn.delete(key)
        count += 1
    return count


def _forget_table(edit: Edit, directory: InodeId) -> None:
    """Forget what is filed beside a removed directory's dentries."""
    txn = edit.txn
    edit.forget_shadowed(tables.get_state(txn, directory).shadowed)
    txn.delete(records.state_key(directory))
    for start, stop in (
        (records.hash_key(directory, b""), records.hash_key(directory + 1, b"")),
        (records.tombstone_key(directory, b""), records.tombstone_key(directory + 1, b"")),
    ):
        for key, _ in txn.scan(start, stop):
            txn.delete(key)
