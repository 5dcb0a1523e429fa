"""Checks what is counted for quotas: each record is the sum of what its directory has counted, and what is not counted is queued.

Owns the rules that usage.py keeps, looked at from outside. Functions over a read transaction: one pass over the names of counted
directories. For checking.py.
"""

from collections.abc import Iterator

from alluxio_like.findings import REPAIR, Finding, Grade
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import paths, records, tables, usage
from alluxio_like.master.core.records import Inode
from alluxio_like.master.core.usage import Usage
from alluxio_like.types import InodeId, Kind


def check(txn: ReadTransaction) -> Iterator[Finding]:
    """Quotas, records of usage, and the queue of what is to be counted."""
    for letter, what in ((b"F", "a quota"), (b"R", "a place in the queue"), (b"Z", "a count")):
        for row, _ in txn.scan(letter, bytes([letter[0] + 1])):
            inode = InodeId(int.from_bytes(row[1:9], "big"))
            record = tables.lookup_inode(txn, inode)
            if record is None or record.kind is not Kind.DIRECTORY:
                yield Finding(Grade.LEFTOVER, "quotas", f"{what} of directory {inode}, which is gone", "", ((row, None),))
            elif letter == b"Z" and not record.flags & records.ORPHAN:
                yield from _check_count(txn, inode)


def sum_children(txn: ReadTransaction, directory: InodeId, known: Usage) -> tuple[int, int]:
    """Files and bytes of what a directory has counted so far."""
    files = size_bytes = 0
    for filed, inode, record in iter_counted(txn, directory, known):
        if record.kind is Kind.DIRECTORY:
            below = usage.lookup(txn, inode) or Usage()
            files, size_bytes = files + 1 + below.files, size_bytes + below.size_bytes
        elif record.parent == directory and paths.file_name(record.sort_name) == filed:
            files, size_bytes = files + 1, size_bytes + record.size
    return files, size_bytes


def iter_counted(txn: ReadTransaction, directory: InodeId, known: Usage) -> Iterator[tuple[bytes, InodeId, Inode]]:
    """The children that a directory has counted so far: as they are filed, inodes and records."""
    table = tables.get_table(txn, directory)
    for key, data in txn.scan(records.dentry_key(table, b""), records.dentry_stop(table)):
        inode = InodeId(records.unpack_id(data))
        record = tables.lookup_inode(txn, inode)
        if record is not None and known.covers(key[9:]):
            yield key[9:], inode, record


def _check_count(txn: ReadTransaction, directory: InodeId) -> Iterator[Finding]:
    known = usage.lookup(txn, directory)
    assert known is not None
    right = Usage(*sum_children(txn, directory, known), known.cursor)
    if right != known:
        message = f"directory {directory} has counted {known.files} files and {known.size_bytes} bytes, and there are "
        message += f"{right.files} and {right.size_bytes}"
        yield Finding(Grade.WRONG, "quotas", message, REPAIR, ((records.usage_key(directory), usage.pack(right)),))
    queued = records.counting_key(directory)
    if known.cursor is not None and txn.get(queued) is None:
        yield Finding(Grade.WRONG, "quotas", f"directory {directory} is not counted to its end", REPAIR, ((queued, b""),))
    for _, inode, record in iter_counted(txn, directory, known):
        waits = records.counting_key(inode)
        if record.kind is Kind.DIRECTORY and usage.lookup(txn, inode) is None and txn.get(waits) is None:
            yield Finding(Grade.WRONG, "quotas", f"directory {inode} was left out of a count", REPAIR, ((waits, b""),))
