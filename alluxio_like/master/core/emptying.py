"""What becomes of the trash: turned on, taken out of, and ended when its time has come.

Owns the making of a mount's trash directory, the way back to where something was, and its removal for good. Settings and
records are trash.py's. Functions over a write transaction and a given time; each is whole when that commits, and returns what is
no longer as clients may know it.
"""

from collections.abc import Iterable

from alluxio_like import errors
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.master.core import changes, journal, keys, mounts, namespace, records, tables, trash
from alluxio_like.master.core.changes import NewInode
from alluxio_like.master.core.journal import Op, Step
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.core.records import Dirty
from alluxio_like.master.core.tables import Edit
from alluxio_like.types import SNAPSHOT_SHIFT, InodeId, Kind, Recall, to_bytes

_MODE = 0o700
_DIRECTORY_MODE = 0o755
_LATER_NS = 600 * 10**9


def turn_on(txn: WriteTransaction, directory: InodeId, keep_ns: int, now_ns: int) -> tuple[Recall, ...]:
    """Keep what is removed below a directory from now on. Raises NotFound, NotADirectory, ReadOnly, AlreadyExists (something of
    that name is in the mount's root), InvalidArgument."""
    if directory >> SNAPSHOT_SHIFT:
        raise errors.ReadOnly("what is below .snapshots is frozen: nothing is removed there")
    record = tables.get_directory(txn, directory)
    if record.mount_id == NO_MOUNT:
        raise errors.InvalidArgument("no store is mounted there: see `alluxio-like mounts`")
    changes.get_writable(txn, directory)
    trash.set_keep(txn, directory, keep_ns)
    if trash.lookup_directory(txn, record.mount_id) is not None:
        return ()
    edit = Edit(txn, now_ns)
    root = edit.open_directory(mounts.get_mount(txn, record.mount_id).root)
    if namespace.find_child(txn, root.table, trash.NAME) is not None:
        raise errors.AlreadyExists("the mount's root has something of that name: rename it", subject=".trash")
    made = tables.make_directory(
        trash.NAME, record.mount_id, root.record.uid, root.record.gid, now_ns, records.LOCAL | records.HIDDEN
    )._replace(mode=_MODE)
    inode = edit.link_hidden(root, made)
    txn.put(records.trash_directory_key(record.mount_id), records.pack_id(inode))
    txn.put(records.dirty_key(inode), records.pack_dirty(Dirty()))
    listed = records.State(complete=True, listed_ns=now_ns, start_seq=edit.sequence)
    txn.put(records.state_key(inode), records.pack_state(listed))
    key = keys.get_prefix(txn, root.inode, root.record, natural=True) + trash.NAME.decode() + "/"
    journal.append(txn, Step(0, Op.MAKE_DIRECTORY, record.mount_id, inode, key))
    edit.finish()
    return (Recall(root.inode, (trash.NAME,)),)


def restore(txn: WriteTransaction, inode: InodeId, now_ns: int, *, max_key_bytes: int) -> tuple[str, tuple[Recall, ...]]:
    """Give something in the trash its name back; its path. Directories that are gone are made anew, for the file's owner.

    Raises NotFound (not in the trash), AlreadyExists (something else has the name), NotADirectory, QuotaExceeded, ReadOnly,
    Unavailable (a directory there moves: try again).
    """
    thrown = trash.lookup_thrown(txn, inode)
    if thrown is None or not trash.is_there(txn, inode):
        raise errors.NotFound("not in the trash: see `alluxio-like trash list`")
    record = tables.get_inode(txn, inode)
    mount = mounts.get_mount(txn, record.mount_id)
    recalls: list[Recall] = []
    at = mount.root
    *above, name = [part for part in thrown.path[len(mount.path) :].split("/") if part]
    for part in above:
        found = namespace.lookup(txn, at, part)
        if found is None:
            new = NewInode(Kind.DIRECTORY, _DIRECTORY_MODE, record.uid, record.gid)
            outcome = changes.create(txn, at, to_bytes(part), new, now_ns, max_key_bytes=max_key_bytes)
            recalls += outcome.recalls
            at = outcome.inode
        elif found.attr.kind is not Kind.DIRECTORY:
            raise errors.NotADirectory("a file is where its directory was: rename that", subject=thrown.path)
        else:
            at = found.attr.inode
    outcome = changes.rename(
        txn, record.parent, record.name, at, to_bytes(name), now_ns, max_key_bytes=max_key_bytes, replace=False
    )
    trash.forget_thrown(txn, inode)
    return thrown.path, (*recalls, *outcome.recalls)


def remove(txn: WriteTransaction, inodes: Iterable[InodeId], now_ns: int) -> tuple[int, tuple[Recall, ...]]:
    """End what is in the trash; how many there were. What is not there any more, or cannot be removed now, is forgotten, or left
    for later."""
    recalls: list[Recall] = []
    count = 0
    for inode in inodes:
        if not trash.is_there(txn, inode):
            trash.forget_thrown(txn, inode)
            continue
        record = tables.get_inode(txn, inode)
        try:
            recalls += changes.unlink(txn, record.parent, record.name, now_ns).recalls
        except (errors.ReadOnly, errors.Unavailable):
            thrown = trash.lookup_thrown(txn, inode)
            if thrown is not None and thrown.expires_ns <= now_ns:
                trash.note_thrown(txn, thrown._replace(expires_ns=now_ns + _LATER_NS))
            continue
        trash.forget_thrown(txn, inode)
        count += 1
    return count, tuple(recalls)
