"""A namespace that was restored: older than what workers, clients and stores have seen of the one before.

Owns what a restored namespace must never do, and the record of it (`Crestored`). Between the backup and the restore inodes,
versions, steps and mounts were given numbers that nothing here knows of, and their contents lie in caches and stores. So every
counter goes on far beyond what may have been given; a file that the store has gets a version that was never given, so that
nothing that is cached of it is believed; the next version of any other is beyond all that were given. What the store was to
remove is not removed: it may be another content by now. What a worker holds of the time between is not wanted, and is not to be
thrown away either (`check_known`, `check_given`).

Functions over pairs and transactions. What the stores have by now of what they lacked then is asked by master/reconciling.py.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import journal, records, snapshots, tables
from alluxio_like.types import SNAPSHOT_SHIFT, Fingerprint, InodeId, Kind, VersionId

INODES_SKIPPED = 1 << 35
"""Inode ids that may have been given between a backup and its restore; 500 restores fit."""
VERSIONS_SKIPPED = 1 << 24
"""Versions of one file; 255 restores fit."""
STEPS_SKIPPED = 1 << 40
MOUNTS_SKIPPED = 1 << 16
SNAPSHOTS_SKIPPED = 500
_KEPT = "the worker keeps its bytes: docs/keeping.md says how to get them"


class Restored(NamedTuple):
    """`gaps`: inode ids [first, stop) that may have been given between a backup and its restore. `base`: versions up to this one
    may have been given then. `pending`: what the stores have of it was not looked at yet."""

    gaps: tuple[tuple[int, int], ...] = ()
    base: int = 0
    pending: bool = False


def get_restored(txn: ReadTransaction) -> Restored:
    """The record; the empty one if the namespace was never restored."""
    data = txn.get(records.KEY_RESTORED)
    if data is None:
        return Restored()
    gaps, base, pending = json.loads(data)
    return Restored(tuple((first, stop) for first, stop in gaps), base, pending)


def put_restored(txn: WriteTransaction, restored: Restored) -> None:
    txn.put(records.KEY_RESTORED, json.dumps(restored).encode())


def get_next_version(txn: ReadTransaction, version: int) -> VersionId:
    """The version after one of a file."""
    return VersionId(max(version, get_restored(txn).base) + 1)


def check_known(txn: ReadTransaction, inode: InodeId) -> None:
    """Raises Conflict where an inode that is not there may have been made between a backup and its restore: who holds bytes of
    it keeps them."""
    if any(first <= inode < stop for first, stop in get_restored(txn).gaps):
        raise errors.Conflict(
            f"the file was written after the backup from which the master was restored, and has no name any more; {_KEPT}",
            subject=str(inode),
        )


def check_given(inode: InodeId, version: VersionId, newest: VersionId) -> None:
    """Raises Conflict for a version that this namespace never gave: it was sealed between the backup and the restore."""
    if version > newest:
        raise errors.Conflict(
            f"version {version} was written after the backup from which the master was restored (it knows {newest}); {_KEPT}",
            subject=str(inode),
        )


# -- a restore ----------------------------------------------------------------------------------------------------------------


def make_transform(counters: Callable[[bytes], bytes | None]) -> Callable[[bytes, bytes], bytes]:
    """What becomes of each pair of a backup whose counters (`C…`) are given."""
    data = counters(records.KEY_RESTORED)
    base = (json.loads(data)[1] if data is not None else 0) + VERSIONS_SKIPPED

    def transform(key: bytes, value: bytes) -> bytes:
        if key[:1] == b"I":
            return _renew_inode(value, base)
        if key[:1] == b"S":
            # What the store has is looked at again, whatever is known.
            return records.pack_state(records.unpack_state(value)._replace(complete=False))
        if key[:1] == b"Q":
            return journal.disarm(key, value)
        return value

    return transform


def _renew_inode(data: bytes, base: int) -> bytes:
    record = records.unpack_inode(data)
    if record.kind is not Kind.FILE or not record.flags & records.OWN or record.flags & records.LOCAL:
        return data
    # It is known by what the store says of it, as a file that was never written here.
    renewed = record._replace(version=VersionId(max(base, record.version + VERSIONS_SKIPPED)), flags=record.flags & ~records.OWN)
    return records.pack_inode(renewed)


def finish(txn: WriteTransaction) -> None:
    """After all pairs: no number is given a second time."""
    before = get_restored(txn)
    first = records.unpack_id(txn.get(records.KEY_NEXT_INODE) or b"\0")
    stop = first + INODES_SKIPPED
    if stop >> SNAPSHOT_SHIFT:
        raise errors.NoSpace("this namespace was restored too often: mount the stores in a new one")
    txn.put(records.KEY_NEXT_INODE, records.pack_id(stop))
    for key, skipped in ((records.KEY_JOURNAL, STEPS_SKIPPED), (records.KEY_NEXT_MOUNT, MOUNTS_SKIPPED)):
        txn.put(key, records.pack_id(records.unpack_id(txn.get(key) or b"\1") + skipped))
    snapshots.skip_numbers(txn, SNAPSHOTS_SKIPPED)
    put_restored(txn, Restored((*before.gaps, (first, stop)), before.base + VERSIONS_SKIPPED, pending=True))
    # Clients of the time between may hold leases.
    txn.put(records.KEY_LEASES, b"1")


# -- afterwards ---------------------------------------------------------------------------------------------------------------


def list_unsure(txn: ReadTransaction) -> Iterator[tuple[InodeId, records.Inode]]:
    """Files that the store lacked at the backup, and may have by now."""
    for row, _ in txn.scan(b"W", b"X"):
        inode = InodeId(int.from_bytes(row[1:9], "big"))
        record = tables.lookup_inode(txn, inode)
        if record is not None and record.kind is Kind.FILE and record.flags & records.LOCAL and not record.flags & records.ORPHAN:
            yield inode, record


def adopt(txn: WriteTransaction, inode: InodeId, known: records.Inode, stored: Fingerprint, now_ns: int) -> bool:
    """The store has a later version of a file, written between: that is its content. False: something was written since."""
    edit = tables.Edit(txn, now_ns)
    record = tables.lookup_inode(txn, inode)
    if record is None or record.version != known.version or not record.flags & records.LOCAL or record.flags & records.ORPHAN:
        return False
    txn.delete(records.dirty_key(inode))
    adopted = record._replace(
        size=stored.size,
        version=get_next_version(txn, record.version),
        flags=record.flags & ~(records.LOCAL | records.OWN),
        token=records.pack_token(stored.token),
        mtime_ns=now_ns,
        ctime_ns=now_ns,
    )
    edit.change(inode, record, adopted)
    edit.finish()
    return True


def settle(txn: WriteTransaction) -> None:
    """All has been looked at."""
    put_restored(txn, get_restored(txn)._replace(pending=False))


def transform_all(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of a backup, in the order of their keys, as a restored namespace begins with them."""
    counters: dict[bytes, bytes] = {}
    transform: Callable[[bytes, bytes], bytes] | None = None
    for key, value in pairs:
        if key[:1] == b"C":
            counters[key] = value
        elif key[:1] > b"C" and transform is None:
            transform = make_transform(counters.get)
        yield key, value if transform is None else transform(key, value)
