"""What is kept beside a foreign content: a version written here whose place at the store somebody else has taken.

Owns the name that it gets, and the list of what was kept so, until it is removed or renamed. Functions over a transaction and a
given time.
"""

import json
import time

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import changes, journal, keys, paths, records, tables
from alluxio_like.master.core.changes import Outcome
from alluxio_like.master.core.journal import Op
from alluxio_like.master.core.tables import Edit
from alluxio_like.types import InodeId, Recall, VersionId, to_bytes, to_str

_MOST_TRIES = 1000


def set_aside(txn: WriteTransaction, inode: InodeId, version: VersionId | None, now_ns: int) -> Outcome:
    """Give what was written here another name in its directory, so that what the store has under its own can be seen there.

    Of a file that is not uploaded yet (`version` is the one that could not be), or of something that moves and finds its new
    place taken (None). Raises Stale when that is not so any more.
    """
    edit = Edit(txn, now_ns)
    record = tables.lookup_inode(txn, inode)
    if record is None or record.flags & records.ORPHAN or (version is not None and record.version != version):
        raise errors.Stale("this version is not wanted any more", subject=str(inode))
    if not record.flags & (records.LOCAL if version is not None else records.MOVED):
        raise errors.Stale("the store has it", subject=to_str(record.name))
    directory = edit.open_directory(record.parent)
    name = choose_name(txn, directory.table, record.name, now_ns)
    # What is there is not ours: nothing of it is to be removed or replaced.
    if record.flags & records.MOVED:
        moved = keys.get_moved(txn, inode)
        txn.put(records.moved_key(inode), records.pack_moved(moved._replace(base=None)))
    else:
        txn.put(records.dirty_key(inode), records.pack_dirty(tables.get_dirty(txn, inode)._replace(base=None)))
    natural = keys.get_key(txn, inode, record, natural=True)
    for step in journal.iter_at(txn, record.mount_id, natural):
        if step.op is Op.DELETE and step.inode == inode:
            # Of a move to and fro: what is there now is not what it was to remove.
            journal.replace(txn, step._replace(expected=None))
    edit.detach(directory, record)
    renamed = record._replace(name=name, ctime_ns=now_ns)
    edit.attach(directory, inode, renamed)
    edit.change(inode, record, renamed)
    directory.set_changed(now_ns)
    note_kept(txn, inode, record.name, name)
    edit.finish()
    others = changes.list_recalls(txn, inode, renamed) if record.flags & records.LINKED else ()
    shown = paths.show_name(record.name, record.kind, False)
    return Outcome(inode, (Recall(record.parent, (shown, name), inodes=(inode,)), *others))


def list_conflicts(txn: ReadTransaction, limit: int = 1000) -> list[tuple[InodeId, bytes]]:
    """What was kept so and still has that name: (inode, the name it had before)."""
    found = []
    for key, data in txn.scan(b"E", b"F", limit=limit):
        inode = InodeId(int.from_bytes(key[1:9], "big"))
        before, name = (bytes.fromhex(text) for text in json.loads(data))
        record = tables.lookup_inode(txn, inode)
        if record is not None and not record.flags & records.ORPHAN and record.name == name:
            found.append((inode, before))
    return found


def has_settled(txn: ReadTransaction) -> bool:
    """Whether there are some that were removed or renamed."""
    return bool(_list_settled(txn))


def purge(txn: WriteTransaction) -> None:
    """Forget those that were removed or renamed."""
    for key in _list_settled(txn):
        txn.delete(key)


def _list_settled(txn: ReadTransaction) -> list[bytes]:
    there = {inode for inode, _ in list_conflicts(txn)}
    return [key for key, _ in txn.scan(b"E", b"F", limit=1000) if int.from_bytes(key[1:9], "big") not in there]


def note_kept(txn: WriteTransaction, inode: InodeId, before: bytes, name: bytes) -> None:
    """List something as kept beside what has its name."""
    txn.put(records.conflict_key(inode), json.dumps([before.hex(), name.hex()]).encode())


def choose_name(txn: ReadTransaction, table: int, name: bytes, now_ns: int) -> bytes:
    """A free name in a directory that tells of another one, which is taken. Raises Conflict: there are too many."""
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_ns // 10**9))
    for number in range(_MOST_TRIES):
        tail = to_bytes(f".conflict-{when}" + (f"-{number}" if number else ""))
        chosen = name[: paths.NAME_MAX_BYTES - len(tail)] + tail
        if paths.is_odd(chosen):
            chosen = b"file" + tail
        taken = any(tables.lookup_child(txn, table, one) is not None for one in (chosen, chosen + b"/"))
        if not taken:
            return chosen
    raise errors.Conflict("too many versions are kept beside it: remove some", subject=to_str(name))
