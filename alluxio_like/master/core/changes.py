"""What programs change in the namespace: names, links, attributes.

Owns what POSIX says of creating, linking, renaming and removing names, and which steps of the journal each of these needs so that
the store follows. Versions of contents are in versions.py, carrying out the journal in following.py. Functions over a write
transaction and a given time; each is whole when that commits, and returns what is no longer as clients may know it.

The caller sees to it that what is said of a name is known: a name that no listing has covered is not known to be free, and a
directory that was not listed is not known to be empty (Stale). What lies below a directory whose own move the store has not
followed yet cannot be changed (Unavailable: wait for it and try again). Permissions are checked by the kernel, before.
"""

import stat
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import acls, journal, keys, mounts, namespace, paths, quotas, records, tables, trash
from alluxio_like.master.core.journal import Op, Step
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.core.records import Dirty, Inode, Moved
from alluxio_like.master.core.tables import Directory, Edit, get_dirty
from alluxio_like.types import ROOT_INODE, SNAPSHOT_SHIFT, Fingerprint, InodeId, Kind, Recall, VersionId, to_bytes, to_str

MAX_LINKS = 65_000
MAX_SYMLINK_BYTES = 4095
_FIXED = records.MOUNT_POINT | records.ANCHOR


class NewInode(NamedTuple):
    """What is to be created. `mode` holds permission bits; `target` is a symbolic link's, `device` a special file's.
    `asked_mode` is the mode without the umask: it counts where the directory has a default access control list."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    target: bytes = b""
    device: int = 0
    asked_mode: int | None = None


class Outcome(NamedTuple):
    """The inode that was made or changed, what is no longer so, and of a seal the version that it made, and whether a quota is
    exceeded by it."""

    inode: InodeId
    recalls: tuple[Recall, ...]
    version: VersionId = VersionId(0)
    over_quota: bool = False


class _Found(NamedTuple):
    inode: InodeId
    record: Inode

    def get_raw_name(self, directory: Directory, shown: bytes) -> bytes:
        """The name that is shown so in a directory; names that cannot be shown as they are have come from a store."""
        is_own = self.record.flags & records.LINKED == 0 or (
            self.record.parent == directory.inode and paths.show_name(self.record.name, self.record.kind, False) == shown
        )
        return self.record.name if is_own else shown


def create(txn: WriteTransaction, parent: InodeId, name: bytes, new: NewInode, now_ns: int, *, max_key_bytes: int) -> Outcome:
    """Make a file, directory, symbolic link or special file.

    Raises AlreadyExists, NotFound (no such directory), NotADirectory, NameTooLong, InvalidArgument (a name that cannot be),
    ReadOnly.
    """
    edit = Edit(txn, now_ns)
    directory = _open_writable(edit, parent)
    _check_name(txn, directory, name, max_key_bytes)
    if namespace.find_child(txn, directory.table, name) is not None:
        raise errors.AlreadyExists("it exists", subject=_show(name))
    record, lists = _make_record(txn, directory, name, new, now_ns)
    inode = edit.link(directory, record)
    _put_beside(txn, inode, lists)
    if new.kind is Kind.SYMLINK:
        txn.put(records.target_key(inode), new.target)
    elif new.device:
        txn.put(records.target_key(inode), records.pack_id(new.device))
    directory.set_changed(now_ns)
    if new.kind is Kind.DIRECTORY:
        # Nothing is below it that we do not know of: it need not be listed.
        made = records.State(complete=True, listed_ns=now_ns, start_seq=edit.sequence)
        txn.put(records.state_key(inode), records.pack_state(made))
        key = keys.get_prefix(txn, parent, directory.record, natural=True) + to_str(name) + "/"
        journal.append(txn, Step(0, Op.MAKE_DIRECTORY, record.mount_id, inode, key))
    edit.finish()
    quotas.check(txn, edit.grown)
    return Outcome(inode, (_recall(parent, name),))


def create_unnamed(txn: WriteTransaction, parent: InodeId, new: NewInode, now_ns: int) -> Outcome:
    """Make a file that has no name until `link` gives it one; else it goes as an orphan does. Raises as `create`."""
    edit = Edit(txn, now_ns)
    directory = _open_writable(edit, parent)
    record, lists = _make_record(txn, directory, b"", new, now_ns)
    inode = edit.make_unnamed(directory, record)
    _put_beside(txn, inode, lists)
    edit.finish()
    return Outcome(inode, ())


def _make_record(
    txn: ReadTransaction, directory: Directory, name: bytes, new: NewInode, now_ns: int
) -> tuple[Inode, dict[bytes, bytes]]:
    """The record and the access control lists of what is made in a directory."""
    gid, above = new.gid, directory.record
    mode, lists = _inherit_lists(txn, directory, new)
    if above.mode & stat.S_ISGID:
        gid = above.gid
        mode |= stat.S_ISGID if new.kind is Kind.DIRECTORY else 0
    size = len(new.target) if new.kind is Kind.SYMLINK else 0
    version = VersionId(1 if new.kind is Kind.FILE else 0)
    flags = records.LOCAL | (records.OWN if new.kind is Kind.FILE else 0) | (records.XATTRS if lists else 0)
    times = now_ns, now_ns
    record = Inode(new.kind, flags, mode, 1, new.uid, gid, above.mount_id, size, *times, version, 0, directory.inode, b"", name)
    return record, lists


def _put_beside(txn: WriteTransaction, inode: InodeId, lists: dict[bytes, bytes]) -> None:
    """What belongs to a new inode that the store does not have, and lies in tables of its own."""
    txn.put(records.dirty_key(inode), records.pack_dirty(Dirty()))
    for name, value in lists.items():
        txn.put(records.xattr_key(inode, name), value)


def _inherit_lists(txn: ReadTransaction, directory: Directory, new: NewInode) -> tuple[int, dict[bytes, bytes]]:
    """Mode and access control lists of what is made in a directory."""
    has_lists = directory.record.flags & records.XATTRS and new.kind is not Kind.SYMLINK
    default = txn.get(records.xattr_key(directory.inode, acls.DEFAULT)) if has_lists else None
    if default is None:
        return new.mode, {}
    lists = {acls.DEFAULT: default} if new.kind is Kind.DIRECTORY else {}
    entries, mode = acls.inherit(acls.parse(default), new.mode if new.asked_mode is None else new.asked_mode)
    if acls.adds_to_mode(entries):
        lists[acls.ACCESS] = acls.pack(entries)
    return mode, lists


def link(txn: WriteTransaction, inode: InodeId, parent: InodeId, name: bytes, now_ns: int, *, max_key_bytes: int) -> Outcome:
    """Give an inode a further name, or its first one. Raises NotPermitted (a directory), CrossDevice, and as `create`."""
    edit = Edit(txn, now_ns)
    directory = _open_writable(edit, parent)
    record = tables.get_inode(txn, inode)
    if record.kind is Kind.DIRECTORY:
        raise errors.NotPermitted("a directory has one name", subject=_show(record.name))
    is_unnamed = bool(record.flags & records.ORPHAN) and not record.name
    if record.flags & records.ORPHAN and not is_unnamed:
        raise errors.NotFound("the file was removed", subject=_show(record.name))
    if record.mount_id != directory.record.mount_id:
        raise errors.CrossDevice("the name lies in another mount", subject=_show(name))
    _check_name(txn, directory, name, max_key_bytes)
    if namespace.find_child(txn, directory.table, name) is not None:
        raise errors.AlreadyExists("it exists", subject=_show(name))
    if record.nlink >= MAX_LINKS:
        raise errors.NotPermitted(f"a file has at most {MAX_LINKS} names", subject=_show(record.name))
    if is_unnamed:
        edit.name(directory, inode, record._replace(name=name, nlink=1, ctime_ns=now_ns))
        directory.set_changed(now_ns)
        edit.finish()
        quotas.check(txn, edit.grown)
        return Outcome(inode, (_recall(parent, name, inode),))
    edit.attach(directory, inode, record._replace(parent=parent, name=name))
    txn.put(records.name_key(inode, edit.sequence), records.pack_name(parent, name))
    edit.change(inode, record, record._replace(nlink=record.nlink + 1, ctime_ns=now_ns, flags=record.flags | records.LINKED))
    directory.set_changed(now_ns)
    edit.finish()
    return Outcome(inode, (_recall(parent, name, inode), *list_recalls(txn, inode, record)))


def unlink(txn: WriteTransaction, parent: InodeId, name: bytes, now_ns: int) -> Outcome:
    """Take a name of anything but a directory away; with its last name an inode becomes an orphan, or goes to the trash.

    Raises NotFound, IsADirectory, NotADirectory, Conflict (a mount hangs on it), ReadOnly.
    """
    edit = Edit(txn, now_ns)
    directory = _open_writable(edit, parent)
    found = _get_child(txn, directory, name)
    if found.record.kind is Kind.DIRECTORY:
        raise errors.IsADirectory("a directory", subject=_show(name))
    recalls = (_recall(parent, name, found.inode), *_recall_names(txn, found.inode, found.record))
    if not _throw_away(edit, directory, found, name):
        _drop_name(edit, directory, found, found.get_raw_name(directory, name))
    _keep_empty(edit, directory)
    directory.set_changed(now_ns)
    edit.finish()
    return Outcome(found.inode, recalls)


def rmdir(txn: WriteTransaction, parent: InodeId, name: bytes, now_ns: int) -> Outcome:
    """Remove an empty directory. Raises DirectoryNotEmpty, Stale (list it first), and as `unlink`."""
    edit = Edit(txn, now_ns)
    directory = _open_writable(edit, parent)
    found = _get_child(txn, directory, name)
    _check_empty(txn, found, name)
    _drop_directory(edit, directory, found)
    _keep_empty(edit, directory)
    directory.set_changed(now_ns)
    edit.finish()
    return Outcome(found.inode, (_recall(parent, name, found.inode),))


def rename(
    txn: WriteTransaction,
    old_parent: InodeId,
    old_name: bytes,
    new_parent: InodeId,
    new_name: bytes,
    now_ns: int,
    *,
    max_key_bytes: int,
    replace: bool = True,
) -> Outcome:
    """Another name for what has `old_name`; what had `new_name` is removed in the same step.

    Raises AlreadyExists (not `replace`), InvalidArgument (into itself), CrossDevice, Conflict (a mount hangs on one of them),
    Stale (list the directory that is to be replaced first), and what rename(2) says of kinds.
    """
    edit = Edit(txn, now_ns)
    source = _open_writable(edit, old_parent)
    target = _open_writable(edit, new_parent)
    if source.record.mount_id != target.record.mount_id:
        raise errors.CrossDevice("a rename stays within a mount", subject=_show(new_name))
    moving = _get_child(txn, source, old_name)
    if moving.record.kind is Kind.DIRECTORY:
        _check_movable(txn, moving.inode, new_parent)
    _check_name(txn, target, new_name, max_key_bytes)
    there = _find_child(txn, target, new_name)
    recalls = [_recall(old_parent, old_name, moving.inode), _recall(new_parent, new_name, moving.inode)]
    if there is not None:
        if not replace:
            raise errors.AlreadyExists("it exists", subject=_show(new_name))
        if there.inode == moving.inode:
            return Outcome(moving.inode, ())
        _check_replaceable(txn, moving, there, new_name)
        recalls += [_recall(new_parent, new_name, there.inode), *_recall_names(txn, there.inode, there.record)]
    is_kept = there is not None and there.record.kind is not Kind.DIRECTORY and _throw_away(edit, target, there, new_name)
    base = None if is_kept else _clear_target(edit, target, there, new_name)
    may_arrive = there is not None and not is_kept and there.record.kind is Kind.FILE
    recalls += _recall_names(txn, moving.inode, moving.record)
    _move(edit, source, moving.get_raw_name(source, old_name), target, new_name, moving, base, may_arrive=may_arrive)
    _keep_empty(edit, source)
    source.set_changed(now_ns)
    target.set_changed(now_ns)
    edit.finish()
    quotas.check(txn, edit.grown)
    return Outcome(moving.inode, tuple(recalls))


def exchange(
    txn: WriteTransaction,
    old_parent: InodeId,
    old_name: bytes,
    new_parent: InodeId,
    new_name: bytes,
    now_ns: int,
    *,
    max_key_bytes: int,
) -> Outcome:
    """Swap two names in one step (RENAME_EXCHANGE). Raises as `rename`."""
    edit = Edit(txn, now_ns)
    left, right = _open_writable(edit, old_parent), _open_writable(edit, new_parent)
    if left.record.mount_id != right.record.mount_id:
        raise errors.CrossDevice("a rename stays within a mount", subject=_show(new_name))
    one, two = _get_child(txn, left, old_name), _get_child(txn, right, new_name)
    recalls = (
        _recall(old_parent, old_name, one.inode, two.inode),
        _recall(new_parent, new_name, one.inode, two.inode),
        *_recall_names(txn, one.inode, one.record),
        *_recall_names(txn, two.inode, two.record),
    )
    if one.inode == two.inode:
        return Outcome(one.inode, ())
    for moving, into in ((one, new_parent), (two, old_parent)):
        if moving.record.kind is Kind.DIRECTORY:
            _check_movable(txn, moving.inode, into)
    for directory, name in ((left, old_name), (right, new_name)):
        _check_name(txn, directory, name, max_key_bytes)
    # By way of a name that nobody can have: each of the two moves is then a plain one.
    aside = b"%~" + records.pack_id(edit.sequence)
    _move(edit, left, old_name, left, aside, one, None)
    _move(edit, right, new_name, left, old_name, _Found(two.inode, two.record), None)
    moved = _Found(one.inode, tables.get_inode(txn, one.inode))
    _move(edit, left, aside, right, new_name, moved, None)
    left.set_changed(now_ns)
    right.set_changed(now_ns)
    edit.finish()
    quotas.check(txn, edit.grown)
    return Outcome(one.inode, recalls)


class Attributes(NamedTuple):
    """Attributes to be set; None leaves one as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


def set_attributes(txn: WriteTransaction, inode: InodeId, wanted: Attributes, now_ns: int) -> Outcome:
    """chmod, chown, utimens. Raises NotFound, ReadOnly."""
    edit = Edit(txn, now_ns)
    record = get_writable(txn, inode)
    given = {name: value for name, value in wanted._asdict().items() if value is not None}
    if "mtime_ns" in given:
        given["flags"] = record.flags & ~records.STORE_TIMES
    changed = record._replace(**given, ctime_ns=now_ns)
    if wanted.mode is not None and record.flags & records.XATTRS:
        access = txn.get(records.xattr_key(inode, acls.ACCESS))
        if access is not None:
            txn.put(records.xattr_key(inode, acls.ACCESS), acls.pack(acls.set_mode(acls.parse(access), wanted.mode)))
    edit.change(inode, record, changed)
    edit.finish()
    return Outcome(inode, list_recalls(txn, inode, changed))


def read_link(txn: ReadTransaction, inode: InodeId) -> bytes:
    """A symbolic link's target. Raises NotFound, InvalidArgument (no link)."""
    if tables.get_inode(txn, inode).kind is not Kind.SYMLINK:
        raise errors.InvalidArgument("not a symbolic link", subject=str(inode))
    return txn.get(records.target_key(inode)) or b""


# -- names ---------------------------------------------------------------------------------------------------------------------


def _move(
    edit: Edit,
    source: Directory,
    old_name: bytes,
    target: Directory,
    new_name: bytes,
    moving: _Found,
    base: Fingerprint | None,
    *,
    may_arrive: bool = False,
) -> None:
    """Give what has `old_name` the free name `new_name`; `base` is what the store has there. `may_arrive`: something may still
    come there, of a file whose upload is under way."""
    txn, inode, record = edit.txn, moving.inode, moving.record
    named = record._replace(parent=source.inode, name=old_name)
    is_first = record.parent == source.inode and record.name == old_name
    renamed = record._replace(parent=target.inode, name=new_name, ctime_ns=edit.now_ns)
    edit.detach(source, named)
    edit.attach(target, inode, renamed)
    if (base is not None or may_arrive) and (not is_first or record.kind not in (Kind.FILE, Kind.DIRECTORY)):
        # No bytes come to this name: a further one, or what is kept in the namespace alone.
        key = keys.get_prefix(txn, target.inode, target.record, natural=True) + to_str(new_name)
        _bury(edit, target, renamed, Step(0, Op.DELETE, record.mount_id, inode, key, base))
    if not is_first:
        _rename_further(txn, inode, named, target.inode, new_name)
        edit.change(inode, record, record._replace(ctime_ns=edit.now_ns))
        return
    if record.kind is Kind.DIRECTORY or not record.flags & records.LOCAL:
        _leave_key(edit, source, named, inode, record, keys.get_key(txn, inode, record), base)
        renamed = renamed._replace(flags=renamed.flags | records.MOVED)
    elif record.kind is Kind.FILE:
        _leave_local(edit, source, named, inode, base)
    edit.change(inode, record, renamed)


def _leave_key(
    edit: Edit, source: Directory, named: Inode, inode: InodeId, record: Inode, key: str, base: Fingerprint | None
) -> None:
    """Something that the store has goes to another name: its bytes stay at `key` until the store has followed."""
    txn, mount_id = edit.txn, record.mount_id
    if record.flags & records.MOVED:
        # It was on its way to the name that is left now, and may have arrived there: whatever is there goes.
        natural = keys.get_key(txn, inode, record, natural=True)
        _bury(edit, source, named, Step(0, Op.DELETE, mount_id, inode, natural, keys.get_moved(txn, inode).base))
    else:
        _bury(edit, source, named, Step(0, Op.SETTLE, mount_id, inode, key))
    txn.put(records.moved_key(inode), records.pack_moved(Moved(key, base)))


def _leave_local(edit: Edit, source: Directory, named: Inode, inode: InodeId, base: Fingerprint | None) -> None:
    """A file that the store does not have, or in an older version, goes to another name."""
    txn = edit.txn
    dirty = get_dirty(txn, inode)
    key = keys.get_key(txn, inode, tables.get_inode(txn, inode), natural=True)
    _bury(edit, source, named, Step(0, Op.DELETE, named.mount_id, inode, key, dirty.base))
    txn.put(records.dirty_key(inode), records.pack_dirty(dirty._replace(base=base)))


def _throw_away(edit: Edit, directory: Directory, found: _Found, name: bytes) -> bool:
    """Move a file whose last name goes to the trash, where there is one; whether that was done."""
    txn = edit.txn
    place = trash.find_bin(txn, directory.inode) if not found.record.flags & records.LINKED else None
    if place is None:
        return False
    path = namespace.get_path(txn, directory.inode).rstrip("/") + "/" + to_str(name)
    trash.note_thrown(txn, trash.Thrown(found.inode, path, edit.now_ns, edit.now_ns + place.keep_ns))
    target = _open_writable(edit, place.directory)
    _move(edit, directory, found.get_raw_name(directory, name), target, trash.make_name(edit.sequence, name), found, None)
    target.set_changed(edit.now_ns)
    return True


def _clear_target(edit: Edit, target: Directory, there: _Found | None, name: bytes) -> Fingerprint | None:
    """Take away what a rename replaces; what the store has at its key, which the new content is to replace."""
    if there is None:
        return None
    if there.record.kind is Kind.DIRECTORY:
        _drop_directory(edit, target, there)
        return None
    if there.record.flags & records.LINKED:
        _drop_name(edit, target, there, name)
        return None
    base = drop_stored(edit.txn, there.inode, there.record)
    edit.unlink(target, there.inode, _settle(there.record))
    return base


def _drop_name(edit: Edit, directory: Directory, found: _Found, name: bytes) -> None:
    """Take a name of a file away, and the file with its last one."""
    txn, inode, record = edit.txn, found.inode, found.record
    named = record._replace(parent=directory.inode, name=name)
    if record.flags & records.LINKED:
        _drop_one_of_many(edit, directory, found, named)
        return
    natural = keys.get_key(txn, inode, record, natural=True)
    base = drop_stored(txn, inode, record)
    edit.unlink(directory, inode, _settle(record))
    if record.kind is Kind.FILE:
        _bury(edit, directory, named, Step(0, Op.DELETE, record.mount_id, inode, natural, base))


def _drop_one_of_many(edit: Edit, directory: Directory, found: _Found, named: Inode) -> None:
    txn, inode, record = edit.txn, found.inode, found.record
    further = list(txn.scan(records.name_key(inode, 0), records.name_stop(inode)))
    flags = record.flags if len(further) > 1 else record.flags & ~records.LINKED
    left = record._replace(nlink=record.nlink - 1, ctime_ns=edit.now_ns, flags=flags)
    edit.detach(directory, named)
    if (record.parent, record.name) != (named.parent, named.name):
        order = next(key for key, data in further if records.unpack_name(data) == (named.parent, named.name))
        txn.delete(order)
        edit.change(inode, record, left)
        return
    # The oldest name is the object's key: the next one takes its place.
    order, data = further[0]
    parent, name = records.unpack_name(data)
    txn.delete(order)
    left = left._replace(parent=parent, name=name)
    if record.flags & records.LOCAL:
        if record.kind is Kind.FILE:
            _leave_local(edit, directory, named, inode, None)
    else:
        _leave_key(edit, directory, named, inode, record, keys.get_key(txn, inode, record), None)
        left = left._replace(flags=left.flags | records.MOVED)
    edit.change(inode, record, left)


def _drop_directory(edit: Edit, directory: Directory, found: _Found) -> None:
    """Remove an empty directory."""
    prefix = keys.get_prefix(edit.txn, found.inode, found.record)
    edit.unlink(directory, found.inode, found.record)
    _bury(edit, directory, found.record, Step(0, Op.REMOVE_DIRECTORY, found.record.mount_id, found.inode, prefix))


def _keep_empty(edit: Edit, directory: Directory) -> None:
    """A directory that was emptied stays, also in a store where directories are there by what is below them."""
    txn, record, state = edit.txn, directory.record, directory.state
    if state.files or state.directories or record.flags & (records.LOCAL | _FIXED):
        return
    directory.record = record._replace(flags=record.flags | records.LOCAL)
    txn.put(records.dirty_key(directory.inode), records.pack_dirty(Dirty()))
    prefix = keys.get_prefix(txn, directory.inode, record, natural=True)
    journal.append(txn, Step(0, Op.MAKE_DIRECTORY, record.mount_id, directory.inode, prefix))


def _bury(edit: Edit, directory: Directory, named: Inode, step: Step) -> None:
    """Have a step done at the store, and no listing bring the name back before."""
    journal.append_buried(edit.txn, step, directory.table, named.sort_name)


def drop_stored(txn: WriteTransaction, inode: InodeId, record: Inode) -> Fingerprint | None:
    """A file's content is not needed at the store any more; what the store has at the key where it belongs, for the caller to
    delete or to replace. What is elsewhere, of a file that moves, is deleted."""
    if record.kind is not Kind.FILE:
        return None
    if record.flags & records.LOCAL:
        return get_dirty(txn, inode).base
    if not record.flags & records.MOVED:
        return record.stored
    moved = keys.get_moved(txn, inode)
    step = journal.get_settling(txn, record.mount_id, inode, moved.key)
    # The name that it had is still buried with this step.
    journal.replace(txn, step._replace(op=Op.DELETE, expected=record.stored))
    txn.delete(records.moved_key(inode))
    return moved.base


def _settle(record: Inode) -> Inode:
    """The record of a file whose move was called off by `drop_stored`."""
    return record._replace(flags=record.flags & ~records.MOVED) if record.kind is Kind.FILE else record


def _rename_further(txn: WriteTransaction, inode: InodeId, named: Inode, parent: InodeId, name: bytes) -> None:
    for key, data in txn.scan(records.name_key(inode, 0), records.name_stop(inode)):
        if records.unpack_name(data) == (named.parent, named.name):
            txn.put(key, records.pack_name(parent, name))
            return
    raise errors.Internal("a name that its inode does not know", subject=_show(named.name))


# -- checks --------------------------------------------------------------------------------------------------------------------


def _open_writable(edit: Edit, inode: InodeId) -> Directory:
    check_not_frozen(inode)
    directory = edit.open_directory(inode)
    _check_writable(edit.txn, directory.record)
    check_settled(edit.txn, inode)
    return directory


def get_writable(txn: ReadTransaction, inode: InodeId) -> Inode:
    """An inode that can be changed. Raises NotFound, ReadOnly."""
    check_not_frozen(inode)
    record = tables.get_inode(txn, inode)
    _check_writable(txn, record)
    return record


def check_not_frozen(inode: InodeId) -> None:
    """Raises ReadOnly for what belongs to a snapshot."""
    if inode >> SNAPSHOT_SHIFT:
        raise errors.ReadOnly("what is below .snapshots is frozen: copy it elsewhere to change it")


def _check_writable(txn: ReadTransaction, record: Inode) -> None:
    if record.mount_id == NO_MOUNT:
        raise errors.ReadOnly("no store is mounted there: nothing can be written")
    if mounts.get_mount(txn, record.mount_id).read_only:
        raise errors.ReadOnly("the store is mounted read-only")


def check_settled(txn: ReadTransaction, directory: InodeId) -> None:
    """Raises Unavailable while the store has not followed a move of a directory, or of one above it."""
    at = directory
    while at != ROOT_INODE:
        record = tables.get_inode(txn, at)
        if record.flags & records.MOVED:
            raise errors.Unavailable("the store has not followed a move of the directory yet", subject=_show(record.name))
        at = record.parent


def _check_name(txn: ReadTransaction, directory: Directory, name: bytes, max_key_bytes: int) -> None:
    if len(name) > paths.NAME_MAX_BYTES:
        raise errors.NameTooLong(f"a name has at most {paths.NAME_MAX_BYTES} bytes", subject=_show(name))
    if directory.record.flags & records.HIDDEN:
        raise errors.NotPermitted("only what is removed comes into the trash", subject=_show(name))
    if trash.lookup_hidden(txn, directory.inode, name) is not None:
        raise errors.AlreadyExists("the mount's trash has that name", subject=_show(name))
    if not name or b"/" in name or paths.is_odd(name):
        raise errors.InvalidArgument("such a name cannot be made: it would stand for another one", subject=_show(name))
    prefix = keys.get_prefix(txn, directory.inode, directory.record, natural=True)
    if len(to_bytes(prefix)) + len(name) + 1 > max_key_bytes:
        raise errors.NameTooLong(f"the store's keys have at most {max_key_bytes} bytes", subject=_show(name))


def _find_child(txn: ReadTransaction, directory: Directory, name: bytes) -> _Found | None:
    found = namespace.find_child(txn, directory.table, name)
    if found is None:
        return None
    if found[1].flags & _FIXED:
        raise errors.Conflict("a store is mounted there or below", subject=_show(name))
    return _Found(*found)


def _get_child(txn: ReadTransaction, directory: Directory, name: bytes) -> _Found:
    found = _find_child(txn, directory, name)
    if found is None:
        raise errors.NotFound("no such file or directory", subject=_show(name))
    return found


def _check_empty(txn: ReadTransaction, found: _Found, name: bytes) -> None:
    if found.record.kind is not Kind.DIRECTORY:
        raise errors.NotADirectory("not a directory", subject=_show(name))
    check_settled(txn, found.inode)
    state = tables.get_state(txn, tables.get_table(txn, found.inode))
    if state.files or state.directories:
        raise errors.DirectoryNotEmpty("the directory is not empty", subject=_show(name))
    if not state.complete:
        raise errors.Stale("the directory has not been listed yet", subject=_show(name))


def _check_replaceable(txn: ReadTransaction, moving: _Found, there: _Found, name: bytes) -> None:
    if moving.record.kind is Kind.DIRECTORY:
        _check_empty(txn, there, name)
    elif there.record.kind is Kind.DIRECTORY:
        raise errors.IsADirectory("a directory", subject=_show(name))


def _check_movable(txn: ReadTransaction, inode: InodeId, directory: InodeId) -> None:
    """A directory can be moved into that one: it does not lie below it, and no earlier move is under way."""
    check_settled(txn, inode)
    at = directory
    while at != ROOT_INODE:
        if at == inode:
            raise errors.InvalidArgument("a directory cannot be moved into itself", subject=str(inode))
        at = tables.get_inode(txn, at).parent


# -- small things --------------------------------------------------------------------------------------------------------------


def _recall(directory: InodeId, name: bytes, *inodes: InodeId) -> Recall:
    return Recall(directory, (name,), inodes=inodes)


def _recall_names(txn: ReadTransaction, inode: InodeId, record: Inode) -> tuple[Recall, ...]:
    """All names of an inode with several: the attributes under each are others now."""
    if not record.flags & records.LINKED:
        return ()
    return list_recalls(txn, inode, record)


def list_recalls(txn: ReadTransaction, inode: InodeId, record: Inode) -> tuple[Recall, ...]:
    """What clients may know of an inode's attributes: under each of its names."""
    if not record.name:
        return (Recall(record.parent, inodes=(inode,)),)
    recalls = [_recall(record.parent, record.name, inode)]
    if record.flags & records.LINKED:
        for _, data in txn.scan(records.name_key(inode, 0), records.name_stop(inode)):
            parent, name = records.unpack_name(data)
            recalls.append(_recall(parent, name, inode))
    return tuple(recalls)


def _show(name: bytes) -> str:
    return name.decode("utf-8", "replace")
