"""What the stores do not have yet: versions that were written here, by where they are.

Owns the sums and lists over the table of dirty inodes. Functions over a transaction; they walk all that is dirty, so they are for
who asks now and then, in a thread of his own.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import keys, records, tables
from alluxio_like.master.core.records import Dirty, Inode
from alluxio_like.types import InodeId, Kind, MountId, VersionId


class DirtyFile(NamedTuple):
    """A file whose content the store does not have."""

    inode: InodeId
    record: Inode
    dirty: Dirty


class Sums(NamedTuple):
    """Files and bytes; `kept` of them nobody uploads by himself."""

    files: int = 0
    size_bytes: int = 0
    kept_files: int = 0
    kept_bytes: int = 0


def is_empty(txn: ReadTransaction) -> bool:
    """Whether nothing was written that the stores do not have."""
    return next(iter(txn.scan(b"W", b"X", limit=1)), None) is None


def iter_files(txn: ReadTransaction, top: InodeId | None = None) -> Iterator[DirtyFile]:
    """All, or those at and below an inode, in the order of their inodes."""
    for key, data in txn.scan(b"W", b"X"):
        inode = InodeId(int.from_bytes(key[1:9], "big"))
        record = tables.lookup_inode(txn, inode)
        if record is None or record.kind is not Kind.FILE or record.flags & records.ORPHAN or not record.flags & records.LOCAL:
            continue
        if top is None or tables.is_below(txn, inode, top):
            yield DirtyFile(inode, record, records.unpack_dirty(data))


def summarize(
    txn: ReadTransaction, top: InodeId | None, is_kept: Callable[[MountId, str], bool], limit: int = 0
) -> tuple[Sums, list[InodeId]]:
    """Sums at and below an inode, and the first of the files. `is_kept` says whether nobody uploads what is at a key. Files that
    somebody still writes are not among them: how long they stay open nobody knows."""
    files = size_bytes = kept_files = kept_bytes = 0
    some: list[InodeId] = []
    for found in iter_files(txn, top):
        record = found.record
        if found.dirty.early:
            continue
        files += 1
        size_bytes += record.size
        if is_kept(record.mount_id, keys.get_key(txn, found.inode, record, natural=True)):
            kept_files += 1
            kept_bytes += record.size
        if len(some) < limit:
            some.append(found.inode)
    return Sums(files, size_bytes, kept_files, kept_bytes), some


def add_holders(txn: WriteTransaction, inode: InodeId, version: VersionId, holders: tuple[str, ...]) -> bool:
    """More workers hold a version; False where it is another by now, or the store has it."""
    record = tables.lookup_inode(txn, inode)
    if record is None or record.version != version or not record.flags & records.LOCAL:
        return False
    dirty = tables.get_dirty(txn, inode)
    added = dirty.holders + tuple(one for one in holders if one not in dirty.holders)
    txn.put(records.dirty_key(inode), records.pack_dirty(dirty._replace(holders=added)))
    return True


def count_steps(txn: ReadTransaction, mount_id: MountId) -> int:
    """Steps of the journal that a mount's store still has to follow."""
    start = b"J" + mount_id.to_bytes(4, "big")
    return sum(1 for _ in txn.scan(start, b"J" + (mount_id + 1).to_bytes(4, "big")))
