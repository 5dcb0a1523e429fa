"""The store follows: what a step of the journal has to do, and what it means that it was done.

Owns the way from a step to what the store is asked, and back to the namespace. The caller picks a step that `list_ready` gives,
asks for its plan, does that at the store, and tells the outcome; between the two the namespace may change, so the outcome is held
against what is so by then. Functions over a transaction and a given time. Rule of concurrency: one caller for each step, and a
plan is begun only while it `is_free` beside the keys of all that run; uploads use their key.

A file that moves may have arrived although nobody came to record it: the process was killed, or the store's answer was lost. So
`begin` writes down where it goes, and until its outcome is known the same is tried again, whatever its name is by then.
"""

from collections.abc import Collection
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import journal, keys, mounts, namespace, records, tables, versions
from alluxio_like.master.core.changes import check_settled
from alluxio_like.master.core.journal import Op, Step
from alluxio_like.master.core.records import Dirty, Inode, Moved
from alluxio_like.master.core.tables import Edit, get_dirty
from alluxio_like.types import Fingerprint, InodeId, Kind, MountId, to_str

_ALL = 1 << 40
_LOOKED_AT = 1000
"""Steps that `list_steps` gives at a time. Where there are more, what is below a directory is not looked for in all of them."""


class Plan(NamedTuple):
    """What is to be done for a step.

    SETTLE of a file: the content `fingerprint` at `source` goes to `target`, where `expected` must be (None: nothing), and from
    `source`. SETTLE of a directory, in a store that renames: `source` and `target` are prefixes. DELETE: `expected` at `source`
    (None: nothing is to be done); with a `target`, what may have come there in its place is found out before. The others: the
    directory with the prefix `source`.
    `nothing`: all is as it should be; only `finish` is to be called.
    """

    step: Step
    source: str
    target: str = ""
    fingerprint: Fingerprint | None = None
    expected: Fingerprint | None = None
    nothing: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.source, self.target) if self.target else (self.source,)

    @property
    def is_directory(self) -> bool:
        """Whether a directory is to move."""
        return self.target.endswith("/")

    def is_free(self, busy: Collection[str]) -> bool:
        """Whether it may be carried out while others use these keys."""
        mine = {key.rstrip("/") for key in self.keys}
        if any(key.rstrip("/") in mine for key in busy):
            return False
        return not self.is_directory or not any(key.startswith(self.keys) for key in busy)


def list_ready(
    txn: ReadTransaction,
    running: Collection[int],
    *,
    renames: Collection[MountId],
    limit: int = 100,
    mount_id: MountId | None = None,
) -> list[Plan]:
    """Plans of steps that may begin now, beside those that run (by number), the oldest first; of all mounts or of one.

    `renames`: mounts whose stores move directories in one step. Those of others come first, by `push_down`: that asks no store,
    and programs may wait for it.
    """
    ready = [
        plan
        for plan in _list_pushes(txn)
        if plan.step.mount_id not in renames and mount_id in (None, plan.step.mount_id) and plan.step.number not in running
    ]
    pushed = {plan.step.number for plan in ready}
    blocked: list[Step] = []
    unfinished: set[MountId] = set()
    for step in journal.iter_steps(txn):
        if mount_id is not None and step.mount_id != mount_id:
            continue
        if step.number in running or step.number in pushed:
            unfinished.add(step.mount_id)
            continue
        plan = make_plan(txn, step)
        # What is below a directory goes before it.
        is_last = step.op is Op.REMOVE_DIRECTORY or (plan.is_directory and step.mount_id in renames)
        waits_for_all = is_last and step.mount_id in unfinished
        parent_missing = step.op is Op.MAKE_DIRECTORY and not plan.nothing and _is_parent_local(txn, step.inode)
        # Where it belongs is there only once the directories above it are.
        is_new = step.op is not Op.DELETE and not plan.nothing and not step.tried
        parent_moves = step.op is Op.SETTLE and is_new and _is_parent_moving(txn, step.inode)
        unfinished.add(step.mount_id)
        if waits_for_all or parent_missing or parent_moves or journal.get_blockers(txn, step, plan.target if is_new else None):
            blocked.append(step)
            continue
        ready.append(plan)
        if len(ready) >= limit:
            break
    if not ready and not running:
        ready += _break_cycle(txn, blocked)
    return ready


def list_pushes(txn: ReadTransaction, mount_id: MountId, running: Collection[int]) -> list[Plan]:
    """As `list_ready`, in a store that does not move directories: only those for which no store is asked."""
    return [plan for plan in _list_pushes(txn) if plan.step.mount_id == mount_id and plan.step.number not in running]


def _list_pushes(txn: ReadTransaction) -> list[Plan]:
    plans = [make_plan(txn, step) for step in journal.iter_directory_moves(txn)]
    # From the top down: what is below is pushed to where it belongs once those above it are there.
    return [plan for plan in plans if not plan.nothing and not _is_parent_moving(txn, plan.step.inode)]


def make_plan(txn: ReadTransaction, step: Step) -> Plan:
    """What a step has to do as things are now."""
    if step.op is Op.DELETE:
        return Plan(step, step.key, step.tried, expected=step.expected, nothing=step.expected is None and not step.tried)
    if step.op is Op.REMOVE_DIRECTORY:
        # Another directory may have come to that place meanwhile.
        return Plan(step, step.key, nothing=_is_there(txn, step))
    record = tables.lookup_inode(txn, step.inode)
    if record is None or record.flags & records.ORPHAN:
        return Plan(step, step.key, nothing=True)
    if step.op is Op.MAKE_DIRECTORY:
        return Plan(step, step.key, nothing=not _is_to_be_made(txn, step, record))
    if step.tried:
        return Plan(step, step.key, step.tried, record.stored, step.base)
    target = keys.get_key(txn, step.inode, record, natural=True)
    if not record.flags & records.MOVED or target == step.key:
        return Plan(step, step.key, nothing=True)
    moved = keys.get_moved(txn, step.inode)
    return Plan(step, step.key, target, record.stored if record.kind is Kind.FILE else None, moved.base)


def is_current(txn: ReadTransaction, plan: Plan) -> bool:
    """Whether a plan is still what its step has to do."""
    step = journal.lookup_step(txn, plan.step.number)
    return step == plan.step and (bool(step.tried) or plan.is_directory or make_plan(txn, step) == plan)


def begin(txn: WriteTransaction, plan: Plan) -> Plan | None:
    """Write down that a plan is about to be carried out, where that matters, to be durable before; the plan as it is then (None:
    it is to be made anew: since it was made, an upload may have changed what is at the target, or a rename where that is, or what
    was recorded there has to go from there first)."""
    if plan.step.op is not Op.SETTLE or plan.nothing or plan.is_directory or plan.step.tried:
        return plan
    step = journal.lookup_step(txn, plan.step.number)
    if step is None or plan not in (now := make_plan(txn, step), _step_aside(now)) or _is_blocked(txn, step, plan, now):
        return None
    return plan._replace(step=journal.note_tried(txn, step, plan.target, plan.expected))


def _is_blocked(txn: ReadTransaction, step: Step, plan: Plan, now: Plan) -> bool:
    """Whether something of ours is known to be at a plan's target by now, to be moved or removed first. (Aside nothing is.)"""
    return plan.target == now.target and bool(journal.get_blockers(txn, step, plan.target))


def give_up(txn: WriteTransaction, plan: Plan) -> None:
    """Nothing came of a plan that was begun: something is in the way."""
    step = journal.lookup_step(txn, plan.step.number)
    if step is not None:
        journal.note_tried(txn, step, "", None)


def is_in_the_way(txn: ReadTransaction, plan: Plan) -> bool:
    """Whether what a plan has found at its target is in the way of what is to be done now: no, where something else is, by what
    was told since it was begun. Then it is to be made anew."""
    step = journal.lookup_step(txn, plan.step.number)
    if step is None or step.op is not Op.SETTLE:
        return False
    now = make_plan(txn, step._replace(tried="", base=None))
    if _is_blocked(txn, step, plan, now):
        return False
    return (plan.target, plan.expected) in {(one.target, one.expected) for one in (now, _step_aside(now))}


def finish(txn: WriteTransaction, plan: Plan, now_ns: int, *, stored: Fingerprint | None = None, copied: bool = False) -> None:
    """What a plan wanted is so at the store. `stored`: of a file that was settled, its fingerprint at the target; `copied`: it is
    still at the source too."""
    edit = Edit(txn, now_ns)
    step = journal.lookup_step(txn, plan.step.number)
    if step is None or (plan.nothing and not make_plan(txn, step).nothing):
        # Since it was planned something has come that is to be done.
        return
    if step.tried:
        step = journal.note_tried(txn, step, "", None)
    if step.op is Op.DELETE and plan.step.op is Op.DELETE and stored is not None:
        versions.note_arrived(txn, step.mount_id, step.inode, plan.target, stored)
    if step.op is not plan.step.op:
        # The move was called off while it ran: what has arrived is not wanted. The step deletes the source by now.
        if stored is not None:
            versions.note_arrived(txn, step.mount_id, step.inode, plan.target, stored)
        return
    if step.op is Op.DELETE and step.expected != plan.step.expected:
        # Something else has arrived there meanwhile, and is to be removed too.
        return
    if step.op is Op.SETTLE:
        _finish_settling(edit, plan, stored)
        if plan.is_directory and not plan.nothing:
            _carry_keys(txn, plan)
    elif step.op is Op.MAKE_DIRECTORY:
        record = tables.lookup_inode(txn, step.inode)
        if record is not None and not record.flags & records.ORPHAN and _is_to_be_made(txn, step, record):
            txn.delete(records.dirty_key(step.inode))
            edit.change(step.inode, record, record._replace(flags=record.flags & ~records.LOCAL))
    if copied and stored is not None:
        # The source goes next; until then its name stays buried.
        journal.replace(txn, step._replace(op=Op.DELETE, expected=plan.fingerprint))
    else:
        journal.remove(txn, step)
        journal.unbury(txn, step, edit.sequence)
    edit.finish()


def postpone_removal(txn: WriteTransaction, plan: Plan) -> bool:
    """A directory is not empty at the store: whether that is because of what is still to be done below it. Then it is tried again
    after that."""
    step = journal.lookup_step(txn, plan.step.number)
    if step is None or step.op is not Op.REMOVE_DIRECTORY:
        return False
    later = journal.list_steps(txn, after=step.number)
    if len(later) < _LOOKED_AT and not any(one.mount_id == step.mount_id and one.key.startswith(step.key) for one in later):
        return False
    journal.requeue(txn, step, Op.REMOVE_DIRECTORY)
    return True


def push_down(txn: WriteTransaction, plan: Plan, cursor: bytes, now_ns: int, *, limit: int = 1000) -> bytes | None:
    """In a store that does not move directories: have each child of one move by itself, `limit` of them a call.

    Returns the cursor for the next call; None: the directory has moved. Its children must be known: list it first.
    """
    edit = Edit(txn, now_ns)
    step = journal.lookup_step(txn, plan.step.number)
    record = tables.lookup_inode(txn, plan.step.inode)
    if step is None or record is None or record.flags & records.ORPHAN or not record.flags & records.MOVED:
        finish(txn, plan._replace(nothing=True), now_ns)
        return None
    page = namespace.list_entries(txn, plan.step.inode, cursor, limit)
    for entry in page.entries:
        child = tables.get_inode(txn, entry.attr.inode)
        if child.parent == plan.step.inode:
            _push_child(edit, plan, entry.attr.inode, child)
    if page.cursor:
        edit.finish()
        return page.cursor
    txn.delete(records.moved_key(plan.step.inode))
    txn.put(records.dirty_key(plan.step.inode), records.pack_dirty(Dirty()))
    edit.change(plan.step.inode, record, record._replace(flags=record.flags & ~records.MOVED | records.LOCAL))
    journal.remove(txn, step)
    target = keys.get_prefix(txn, plan.step.inode, record, natural=True)
    journal.append(txn, Step(0, Op.MAKE_DIRECTORY, step.mount_id, step.inode, target))
    last = journal.append(txn, step._replace(op=Op.REMOVE_DIRECTORY))
    if last.table:
        journal.bury(txn, last)
    edit.finish()
    return None


def _push_child(edit: Edit, plan: Plan, inode: InodeId, child: Inode) -> None:
    txn, mount_id = edit.txn, plan.step.mount_id
    if child.flags & records.MOVED and child.kind is Kind.FILE:
        moved = keys.get_moved(txn, inode)
        if moved.base is not None:
            # What it was to replace stays behind, and nothing is where it belongs now.
            journal.append(txn, Step(0, Op.DELETE, mount_id, inode, plan.source + to_str(child.name), moved.base))
            txn.put(records.moved_key(inode), records.pack_moved(moved._replace(base=None)))
    if child.flags & (records.MOVED | records.MOUNT_POINT | records.ANCHOR):
        return
    if child.kind is Kind.DIRECTORY:
        key = plan.source + to_str(child.name) + "/"
    else:
        key = plan.source + to_str(child.name)
        if child.kind is not Kind.FILE:
            return
        if child.flags & records.LOCAL:
            dirty = get_dirty(txn, inode)
            journal.append(txn, Step(0, Op.DELETE, mount_id, inode, key, dirty.base))
            txn.put(records.dirty_key(inode), records.pack_dirty(dirty._replace(base=None)))
            return
    txn.put(records.moved_key(inode), records.pack_moved(Moved(key)))
    journal.append(txn, Step(0, Op.SETTLE, mount_id, inode, key))
    edit.change(inode, child, child._replace(flags=child.flags | records.MOVED))


def _finish_settling(edit: Edit, plan: Plan, stored: Fingerprint | None) -> None:
    txn, inode = edit.txn, plan.step.inode
    record = tables.lookup_inode(txn, inode)
    if record is None or record.flags & records.ORPHAN or not record.flags & records.MOVED:
        return
    settled = record
    if stored is not None and not record.flags & records.OWN:
        settled = record._replace(token=records.keep_identity(record.token, stored.token))
    elif stored is not None:
        settled = record._replace(token=records.pack_token(stored.token))
    natural = keys.get_key(txn, inode, record, natural=True)
    if natural == (plan.step.key if plan.nothing else plan.target):
        txn.delete(records.moved_key(inode))
        settled = settled._replace(flags=record.flags & ~records.MOVED)
    else:
        _settle_again(txn, plan)
    edit.change(inode, record, settled)


def _carry_keys(txn: WriteTransaction, plan: Plan) -> None:
    """A directory was moved in one step, and with it what was below it on its way to somewhere else."""
    for row, data in txn.scan(b"K", b"L"):
        moved = records.unpack_moved(data)
        record = tables.lookup_inode(txn, InodeId(int.from_bytes(row[1:], "big")))
        if record is not None and record.mount_id == plan.step.mount_id and moved.key.startswith(plan.source):
            txn.put(row, records.pack_moved(moved._replace(key=plan.target + moved.key[len(plan.source) :])))
    for step in journal.list_steps(txn, limit=_ALL):
        if step.mount_id != plan.step.mount_id or step.key == plan.source:
            continue
        key, tried = (
            plan.target + one[len(plan.source) :] if one.startswith(plan.source) else one for one in (step.key, step.tried)
        )
        if (key, tried) != (step.key, step.tried):
            journal.remove(txn, step)
            journal.restore(txn, step._replace(key=key, tried=tried))


def lookup_place(txn: ReadTransaction, plan: Plan) -> InodeId | None:
    """The directory in which a plan's source is."""
    place = keys.lookup_place(txn, mounts.get_mount(txn, plan.step.mount_id).root, plan.source)
    return place[0] if place is not None else None


def _settle_again(txn: WriteTransaction, plan: Plan) -> None:
    """It was renamed while it was moved, or had to step aside: from the target it has to go on. The deletion that a rename has
    left there becomes the step that moves it."""
    inode = plan.step.inode
    moved = keys.get_moved(txn, inode)
    txn.put(records.moved_key(inode), records.pack_moved(moved._replace(key=plan.target)))
    for step in journal.iter_at(txn, plan.step.mount_id, plan.target):
        if step.op is Op.DELETE and step.inode == inode:
            journal.requeue(txn, step, Op.SETTLE)
            return
    versions.append_hidden(txn, Step(0, Op.SETTLE, plan.step.mount_id, inode, plan.target))


def _break_cycle(txn: ReadTransaction, blocked: list[Step]) -> list[Plan]:
    """Nothing can begin and nothing runs: names were swapped. The first of those that move steps aside."""
    for step in blocked:
        if step.op is Op.SETTLE:
            return [_step_aside(make_plan(txn, step))]
    return []


def _step_aside(plan: Plan) -> Plan:
    """A move, not to where its file or directory belongs, but beside where it is."""
    aside = f"{plan.source.rstrip('/')}.alluxio-like.{plan.step.number:x}"
    return plan._replace(target=aside + "/" if plan.source.endswith("/") else aside, expected=None)


def _is_to_be_made(txn: ReadTransaction, step: Step, record: Inode) -> bool:
    """Whether a directory is wanted where a step makes it: it may have gone on by now, to be made elsewhere."""
    return bool(record.flags & records.LOCAL) and keys.get_prefix(txn, step.inode, record) == step.key


def _is_there(txn: ReadTransaction, step: Step) -> bool:
    return keys.lookup_owner(txn, mounts.get_mount(txn, step.mount_id).root, step.key) is not None


def _is_parent_moving(txn: ReadTransaction, inode: InodeId) -> bool:
    try:
        check_settled(txn, tables.get_inode(txn, inode).parent)
    except errors.Unavailable:
        return True
    return False


def _is_parent_local(txn: ReadTransaction, inode: InodeId) -> bool:
    record = tables.get_inode(txn, inode)
    parent = tables.lookup_inode(txn, record.parent)
    return parent is not None and bool(parent.flags & records.LOCAL)
