"""Versions of what is written here: from a sealed draft to an object of the store.

Owns the life of a version: sealed by a worker, uploaded under a plan, persisted. A version is known in caches by its number from
the moment it is sealed, so nothing is invalidated when the store has it at last. Functions over a transaction and a given time.
"""

from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import journal, keys, mounts, quotas, records, restoring, tables
from alluxio_like.master.core.changes import Outcome, check_settled, drop_stored, list_recalls
from alluxio_like.master.core.journal import Op, Step
from alluxio_like.master.core.records import Dirty, Inode, Moved
from alluxio_like.master.core.tables import Edit, get_dirty
from alluxio_like.types import Fingerprint, InodeId, Kind, MountId, VersionId


class UploadPlan(NamedTuple):
    """Where a version is to go, and what must be there for it to be written (None: nothing)."""

    mount_id: MountId
    key: str
    expected: Fingerprint | None


def seal(
    txn: WriteTransaction,
    inode: InodeId,
    size: int,
    mtime_ns: int,
    holders: tuple[str, ...],
    now_ns: int,
    *,
    early: bool = False,
    changed_ns: int | None = None,
) -> Outcome:
    """A new version of a file, held by these workers and by nobody else. Raises NotFound, IsADirectory, InvalidArgument.

    Also of a file that has no name any more: whoever has it open goes on writing. That one is never uploaded. `early`: it stays
    open, and a later version is the one that is uploaded. `changed_ns`: when it was changed, which somebody was shown already.
    """
    edit = Edit(txn, now_ns)
    record = tables.lookup_inode(txn, inode)
    if record is None:
        restoring.check_known(txn, inode)
        raise errors.NotFound("no such inode", subject=str(inode))
    if record.kind is not Kind.FILE:
        raise errors.InvalidArgument("only files have versions", subject=str(inode))
    written_ns = record.ctime_ns if mtime_ns == record.mtime_ns else max(record.ctime_ns, min(now_ns, mtime_ns))
    sealed = record._replace(
        size=size,
        mtime_ns=mtime_ns,
        # When it was written, which is what it was while it was open; not when it was closed. Where its time was set, also to a
        # later one, it was changed then, and not since.
        ctime_ns=written_ns if changed_ns is None else max(record.ctime_ns, changed_ns),
        version=restoring.get_next_version(txn, record.version),
        flags=record.flags & ~records.MOVED | records.LOCAL | records.OWN,
        token=b"",
    )
    if record.flags & records.ORPHAN:
        txn.put(records.inode_key(inode), records.pack_inode(sealed))
        txn.put(records.dirty_key(inode), records.pack_dirty(Dirty(holders)))
        return Outcome(inode, (), sealed.version)
    base = drop_stored(txn, inode, record)
    txn.put(records.dirty_key(inode), records.pack_dirty(Dirty(holders, base, early)))
    edit.change(inode, record, sealed)
    edit.finish()
    # What was written is kept, whatever it makes of quotas: who wrote it is told.
    over_quota = quotas.is_exceeded(txn, edit.grown)
    return Outcome(inode, list_recalls(txn, inode, record), sealed.version, over_quota)


def plan_upload(txn: ReadTransaction, inode: InodeId, version: VersionId) -> UploadPlan:
    """What an upload of this version has to know.

    Raises Stale (another version by now, or no name: not wanted any more), Unavailable (the store has something else to follow
    first: try again).
    """
    record = tables.lookup_inode(txn, inode)
    if record is None:
        restoring.check_known(txn, inode)
    else:
        restoring.check_given(inode, version, record.version)
    if record is None or record.flags & records.ORPHAN or record.version != version or not record.flags & records.LOCAL:
        raise errors.Stale("this version is not wanted any more", subject=str(inode))
    check_settled(txn, record.parent)
    if tables.get_inode(txn, record.parent).flags & records.LOCAL:
        raise errors.Unavailable("the store does not have the directory yet", subject=str(inode))
    key = keys.get_key(txn, inode, record)
    if not journal.is_free(txn, record.mount_id, key):
        raise errors.Unavailable("the store is still to follow an earlier change there", subject=key)
    return UploadPlan(record.mount_id, key, get_dirty(txn, inode).base)


def note_persisted(
    txn: WriteTransaction, inode: InodeId, version: VersionId, plan: UploadPlan, stored: Fingerprint, now_ns: int
) -> None:
    """The store has this version, as `stored`, at the plan's key. Does nothing harmful when it is told twice."""
    edit = Edit(txn, now_ns)
    record = tables.lookup_inode(txn, inode)
    if record is None or record.flags & records.ORPHAN:
        note_arrived(txn, plan.mount_id, inode, plan.key, stored)
        return
    natural = keys.get_key(txn, inode, record, natural=True)
    is_there = natural == plan.key
    if record.version != version:
        if not is_there:
            note_arrived(txn, plan.mount_id, inode, plan.key, stored)
        elif record.flags & records.LOCAL:
            dirty = get_dirty(txn, inode)
            txn.put(records.dirty_key(inode), records.pack_dirty(dirty._replace(base=stored)))
        elif record.flags & records.MOVED:
            # A later version is on its way to where this one has come late.
            moved = keys.get_moved(txn, inode)
            txn.put(records.moved_key(inode), records.pack_moved(moved._replace(base=stored)))
        return
    if not record.flags & records.LOCAL:
        _note_again(txn, inode, record, plan, stored, is_there)
        return
    persisted = record._replace(flags=record.flags & ~records.LOCAL, token=records.pack_token(stored.token))
    if not is_there:
        # It was renamed meanwhile.
        base = get_dirty(txn, inode).base
        txn.put(records.moved_key(inode), records.pack_moved(Moved(plan.key, base)))
        _settle_arrived(txn, inode, plan)
        persisted = persisted._replace(flags=persisted.flags | records.MOVED)
    txn.delete(records.dirty_key(inode))
    edit.change(inode, record, persisted)
    edit.finish()


def _note_again(
    txn: WriteTransaction, inode: InodeId, record: Inode, plan: UploadPlan, stored: Fingerprint, is_there: bool
) -> None:
    """A version that the store has already has come there a second time: it was renamed between two uploads."""
    if is_there and record.flags & records.MOVED:
        moved = keys.get_moved(txn, inode)
        txn.put(records.moved_key(inode), records.pack_moved(moved._replace(base=stored)))
    elif not is_there and not (record.flags & records.MOVED and keys.get_moved(txn, inode).key == plan.key):
        note_arrived(txn, plan.mount_id, inode, plan.key, stored)


def note_arrived(txn: WriteTransaction, mount_id: MountId, inode: InodeId, key: str, stored: Fingerprint) -> None:
    """Something of an inode has arrived at a key where it is not wanted any more: it is to be deleted, or to be replaced by what
    belongs there now. A name that it had there stays buried until then."""
    for step in journal.iter_at(txn, mount_id, key):
        if step.op is Op.DELETE:
            journal.replace(txn, step._replace(expected=stored))
            return
    owner = keys.lookup_owner(txn, mounts.get_mount(txn, mount_id).root, key)
    if owner is not None and owner[1].flags & records.MOVED:
        moved = keys.get_moved(txn, owner[0])
        txn.put(records.moved_key(owner[0]), records.pack_moved(moved._replace(base=stored)))
    elif owner is not None and owner[1].flags & records.LOCAL and owner[1].kind is Kind.FILE:
        dirty = get_dirty(txn, owner[0])
        txn.put(records.dirty_key(owner[0]), records.pack_dirty(dirty._replace(base=stored)))
    else:
        append_hidden(txn, Step(0, Op.DELETE, mount_id, inode, key, stored))


def append_hidden(txn: WriteTransaction, step: Step) -> None:
    """Add a step for something that is at its key and is not to be seen there."""
    place = keys.lookup_place(txn, mounts.get_mount(txn, step.mount_id).root, step.key)
    if place is None:
        journal.append(txn, step)
    else:
        journal.append_buried(txn, step, tables.get_table(txn, place[0]), place[1])


def _settle_arrived(txn: WriteTransaction, inode: InodeId, plan: UploadPlan) -> None:
    """What was uploaded is wanted elsewhere: the deletion of what was at its key before becomes the move of what is there now."""
    for step in journal.iter_at(txn, plan.mount_id, plan.key):
        if step.op is Op.DELETE and step.inode == inode:
            journal.requeue(txn, step, Op.SETTLE)
            return
    append_hidden(txn, Step(0, Op.SETTLE, plan.mount_id, inode, plan.key))
