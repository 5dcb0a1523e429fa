"""The mount table, and the mount points in the namespace.

Owns which store stands behind which directory, without secrets, and the directories on the way to mount points: those stay,
whatever the store around them lists, as long as a mount is below. Functions over a transaction, like namespace.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction, get_prefix_stop
from alluxio_like.master.core import journal, namespace, paths, records, tables, trash, usage
from alluxio_like.master.core.model import NO_MOUNT, MountRecord
from alluxio_like.master.core.records import Inode
from alluxio_like.master.core.tables import Directory, Edit
from alluxio_like.types import ROOT_INODE, SNAPSHOT_FOLDER, InodeId, Kind, MountId, Recall, to_bytes

MAX_INTERVALS = 1000
"""Directories of one mount with a sync interval, or a write policy, of their own: they are one record. A guess."""
DEFAULT_POLICY = "through"


def add_mount(
    txn: WriteTransaction,
    path: str,
    uri: str,
    *,
    options: Mapping[str, str],
    read_only: bool,
    uid: int,
    gid: int,
    now_ns: int,
    sync_interval_s: float | None = None,
    write: str = "",
) -> MountRecord:
    """Mount a store; directories on the way are created. `options` must hold no secrets.

    A directory of another mount is hidden with all that is known below it. Raises AlreadyExists (a mount is there), Conflict
    (mounts are below it in another mount, or something that its store does not have), NotADirectory, InvalidArgument,
    NameTooLong.
    """
    parts = paths.split_path(path)
    if SNAPSHOT_FOLDER in parts:
        raise errors.InvalidArgument("what is below .snapshots is frozen: nothing can be mounted there", subject=path)
    stored = txn.get(records.KEY_NEXT_MOUNT)
    mount_id = MountId(records.unpack_id(stored) if stored is not None else 1)
    txn.put(records.KEY_NEXT_MOUNT, records.pack_id(mount_id + 1))
    edit = Edit(txn, now_ns)
    root = _make_mount_point(edit, parts, mount_id, uid, gid)
    edit.finish()
    path = paths.join_path(parts)
    mount = MountRecord(mount_id, path, uri, read_only, uid, gid, now_ns, root, sync_interval_s, dict(options), write)
    txn.put(records.mount_key(mount_id), records.pack_mount(mount))
    return mount


def update_mount(
    txn: WriteTransaction, mount_id: MountId, *, options: Mapping[str, str], sync_interval_s: float | None, write: str
) -> MountRecord:
    """Other options for a mount, whose inodes stay. `options` must hold no secrets. Raises NotFound."""
    record = get_mount(txn, mount_id)
    record = replace(record, options=dict(options), sync_interval_s=sync_interval_s, write=write, read_only=not write)
    txn.put(records.mount_key(mount_id), records.pack_mount(record))
    return record


def remove_mount(txn: WriteTransaction, path: str, now_ns: int, *, force: bool = False) -> MountRecord:
    """Take a mount away with all that is known below it. Raises NotFound, Conflict (mounts are below it; but for `force`
    something that the store does not have)."""
    parts = paths.split_path(path)
    others = []
    mount = None
    for other in list_mounts(txn):
        if other.path == paths.join_path(parts):
            mount = other
        else:
            others.append(other)
    if mount is None:
        raise errors.NotFound("nothing is mounted there", subject=path)
    below = [other.path for other in others if _is_below(other.path, mount.path)]
    if below:
        raise errors.Conflict(f"unmount what is mounted below it first: {', '.join(below)}", subject=path)
    if not force and (journal.has_steps(txn, mount.mount_id) or tables.has_pending_below(txn, mount.root)):
        raise errors.Conflict(
            f"the store does not have all of what was changed there: `alluxio-like fs wait {path}` waits until it has, "
            f"`alluxio-like fs persist {path}` uploads what is only cached; links and special files it never has: "
            "`alluxio-like unmount --force` loses all of that",
            subject=path,
        )
    edit = Edit(txn, now_ns)
    if mount.root == ROOT_INODE:
        _clear_root(edit)
    else:
        directory = edit.open_directory(tables.get_inode(txn, mount.root).parent)
        edit.unlink(directory, mount.root, tables.get_inode(txn, mount.root))
        directory.set_changed(now_ns)
        _clear_way(edit, directory, parts[:-1], [other.path for other in others])
    hidden = trash.lookup_directory(txn, mount.mount_id)
    if hidden is not None:
        record = tables.get_inode(txn, hidden)
        edit.count_detached(record)
        edit.abandon(hidden, record)
        txn.delete(records.trash_directory_key(mount.mount_id))
    edit.finish()
    txn.delete(records.mount_key(mount.mount_id))
    txn.delete(records.intervals_key(mount.mount_id))
    txn.delete(records.policies_key(mount.mount_id))
    journal.drop_mount(txn, mount.mount_id)
    return mount


def get_mount(txn: ReadTransaction, mount_id: MountId) -> MountRecord:
    """Raises NotFound."""
    data = txn.get(records.mount_key(mount_id))
    if data is None:
        raise errors.NotFound("no such mount", subject=str(mount_id))
    return records.unpack_mount(data)


def list_intervals(txn: ReadTransaction, mount_id: MountId) -> dict[str, float]:
    """The sync intervals (seconds; negative: never) of directories of a mount, by their prefixes in the store."""
    return records.unpack_intervals(txn.get(records.intervals_key(mount_id)))


def set_interval(txn: WriteTransaction, mount_id: MountId, prefix: str, seconds: float | None) -> None:
    """Set a directory's sync interval; the mount's own for its root. None: what holds above it.

    It stays with the prefix, whatever becomes of the directory. Raises NotFound, and InvalidArgument for too many.
    """
    mount = get_mount(txn, mount_id)
    if not prefix:
        update_mount(txn, mount_id, options=mount.options, sync_interval_s=seconds, write=mount.write)
        return
    intervals = list_intervals(txn, mount_id)
    if seconds is None:
        intervals.pop(prefix, None)
    else:
        intervals[prefix] = seconds
    if len(intervals) > MAX_INTERVALS:
        raise errors.InvalidArgument(
            f"a mount has at most {MAX_INTERVALS} directories with an interval of their own: set it above them", subject=prefix
        )
    if intervals:
        txn.put(records.intervals_key(mount_id), records.pack_intervals(intervals))
    else:
        txn.delete(records.intervals_key(mount_id))


def list_policies(txn: ReadTransaction, mount_id: MountId) -> dict[str, str]:
    """The write policies of directories of a mount, by their prefixes in the store."""
    return records.unpack_policies(txn.get(records.policies_key(mount_id)))


def set_policy(txn: WriteTransaction, mount_id: MountId, prefix: str, policy: str) -> None:
    """Set a directory's write policy; the mount's own for its root. Empty: what holds above it.

    It stays with the prefix, whatever becomes of the directory. Raises NotFound, ReadOnly, and InvalidArgument for too many.
    """
    mount = get_mount(txn, mount_id)
    if mount.read_only:
        raise errors.ReadOnly(
            f"the store is mounted read-only: `alluxio-like mount --update {mount.path} -o write=through` lets programs write"
        )
    if not prefix:
        policy = policy or DEFAULT_POLICY
        update_mount(txn, mount_id, options=mount.options, sync_interval_s=mount.sync_interval_s, write=policy)
        return
    policies = list_policies(txn, mount_id)
    policies.pop(prefix, None)
    if policy:
        policies[prefix] = policy
    if len(policies) > MAX_INTERVALS:
        raise errors.InvalidArgument(
            f"a mount has at most {MAX_INTERVALS} directories with a policy of their own: set it above them", subject=prefix
        )
    if policies:
        txn.put(records.policies_key(mount_id), records.pack_policies(policies))
    else:
        txn.delete(records.policies_key(mount_id))


def find_setting(settings: Mapping[str, object], prefix: str) -> str | None:
    """Whose setting holds for a directory: the longest prefix of its own that has one."""
    at = len(prefix)
    while at > 0:
        if prefix[:at] in settings:
            return prefix[:at]
        at = prefix.rfind("/", 0, at - 1) + 1
    return None


def list_mounts(txn: ReadTransaction) -> list[MountRecord]:
    """All mounts, by id."""
    return [records.unpack_mount(data) for _, data in txn.scan(b"M", get_prefix_stop(b"M"))]


def lookup_mount_of(txn: ReadTransaction, path: str) -> tuple[MountRecord, str] | None:
    """The mount that a path lies in, and the path relative to the mount's root; None: none. Raises InvalidArgument,
    NameTooLong."""
    path = paths.join_path(paths.split_path(path))
    found = [mount for mount in list_mounts(txn) if mount.path == path or _is_below(path, mount.path)]
    if not found:
        return None
    mount = max(found, key=lambda mount: len(mount.path))
    return mount, path[len(mount.path) :].strip("/")


def _is_below(path: str, top: str) -> bool:
    return path != top and path.startswith(top.rstrip("/") + "/")


def _make_mount_point(edit: Edit, parts: tuple[str, ...], mount_id: MountId, uid: int, gid: int) -> InodeId:
    """The inode of a new mount's root; directories on the way are made and marked."""
    if not parts:
        return _convert(edit, edit.open_directory(ROOT_INODE), mount_id, uid, gid)
    directory = edit.open_directory(ROOT_INODE)
    for place, part in enumerate(parts[:-1], start=1):
        found = _find(edit, directory, part, paths.join_path(parts[:place]))
        if found is None:
            owner = directory.record if directory.record.mount_id != NO_MOUNT else None
            record = tables.make_directory(
                to_bytes(part),
                directory.record.mount_id,
                owner.uid if owner else uid,
                owner.gid if owner else gid,
                edit.now_ns,
                records.ANCHOR,
            )
            inode = edit.link(directory, record)
            directory.set_changed(edit.now_ns)
            directory = edit.open_directory(inode)
        else:
            directory = edit.open_directory(found)
            directory.record = directory.record._replace(flags=directory.record.flags | records.ANCHOR)
    found = _find(edit, directory, parts[-1], paths.join_path(parts))
    if found is not None:
        there = edit.open_directory(found)
        if there.record.flags & records.MOUNT_POINT:
            raise errors.AlreadyExists("something is mounted there", subject=paths.join_path(parts))
        if there.record.mount_id == NO_MOUNT:
            return _convert(edit, there, mount_id, uid, gid)
        if there.record.flags & records.ANCHOR:
            raise errors.Conflict("mounts are below it: unmount them first, or mount this first", subject=paths.join_path(parts))
        if tables.has_pending_below(edit.txn, found):
            raise errors.Conflict(
                "the store there does not have all of what was changed below it: `alluxio-like fs wait` waits until it has",
                subject=paths.join_path(parts),
            )
        edit.unlink(directory, found, there.record)
    directory.set_changed(edit.now_ns)
    record = tables.make_directory(to_bytes(parts[-1]), mount_id, uid, gid, edit.now_ns, records.MOUNT_POINT)
    return edit.link(directory, record)


def list_recalls(txn: ReadTransaction, path: str) -> list[Recall]:
    """What mounting or unmounting at a path takes back, of what is known there now: to be asked before and after."""
    recalls: list[Recall] = []
    at = ROOT_INODE
    for part in paths.split_path(path):
        # All of its names: it may be listed anew, as if nothing had ever been told of it.
        recalls.append(Recall(at, (to_bytes(part),), all_names=True))
        found = namespace.lookup(txn, at, part)
        if found is None or found.attr.kind is not Kind.DIRECTORY:
            return recalls
        at = found.attr.inode
    waiting = [at]
    while waiting:
        directory = waiting.pop()
        recalls.append(Recall(directory, all_names=True))
        if tables.get_directory(txn, directory).mount_id == NO_MOUNT:
            # Directories on the way to other mounts: few, and they change their mount with it.
            page = namespace.list_entries(txn, directory, limit=namespace.MAX_ENTRIES)
            waiting += [entry.attr.inode for entry in page.entries if entry.attr.kind is Kind.DIRECTORY]
    return recalls


def _find(edit: Edit, directory: Directory, part: str, path: str) -> InodeId | None:
    """A directory by its shown name; raises NotADirectory, and InvalidArgument for a name that could not be made."""
    found = namespace.lookup(edit.txn, directory.inode, part)
    if found is None:
        if paths.is_odd(to_bytes(part)):
            raise errors.InvalidArgument("a new directory cannot have an escaped name", subject=path)
        return None
    if found.attr.kind is not Kind.DIRECTORY:
        raise errors.NotADirectory("a file is in the way", subject=path)
    return found.attr.inode


def _convert(edit: Edit, top: Directory, mount_id: MountId, uid: int, gid: int) -> InodeId:
    """Make a directory without a store a mount's root; those below it, on the way to other mounts, become directories of that
    mount."""
    if top.record.flags & records.MOUNT_POINT:
        raise errors.AlreadyExists("something is mounted there", subject=namespace.get_path(edit.txn, top.inode))
    waiting = list(_iter_plain_directories(edit, top))
    top.record = top.record._replace(
        mount_id=mount_id, uid=uid, gid=gid, flags=top.record.flags | records.MOUNT_POINT, sequence=edit.sequence
    )
    top.set_changed(edit.now_ns)
    while waiting:
        below = edit.open_directory(waiting.pop())
        waiting.extend(_iter_plain_directories(edit, below))
        below.record = below.record._replace(mount_id=mount_id, sequence=edit.sequence)
    return top.inode


def _iter_plain_directories(edit: Edit, directory: Directory) -> Iterator[InodeId]:
    """The children that no store stands behind; without a store there are few."""
    for inode, record in _iter_children(edit, directory):
        if record.mount_id == NO_MOUNT:
            yield inode


def _iter_children(edit: Edit, directory: Directory) -> Iterator[tuple[InodeId, Inode]]:
    for _, data in edit.txn.scan(records.dentry_key(directory.table, b""), records.dentry_stop(directory.table)):
        inode = InodeId(records.unpack_id(data))
        yield inode, tables.get_inode(edit.txn, inode)


def _clear_root(edit: Edit) -> None:
    """Take the store away from the root: its table with all children becomes that of an orphan, and it gets an empty one."""
    txn = edit.txn
    root = edit.open_directory(ROOT_INODE)
    table = InodeId(root.table)
    edit.abandon(table, tables.make_directory(b"", root.record.mount_id, 0, 0, edit.now_ns))
    root.record = root.record._replace(
        mount_id=NO_MOUNT, uid=0, gid=0, flags=root.record.flags & ~records.MOUNT_POINT, sequence=edit.sequence
    )
    root.set_changed(edit.now_ns)
    txn.put(records.KEY_ROOT_TABLE, records.pack_id(edit.new_inode_id()))
    usage.forget(txn, ROOT_INODE)


def _clear_way(edit: Edit, directory: Directory, parts: tuple[str, ...], others: list[str]) -> None:
    """Go up from where a mount point was: directories that lead to no other mount are no longer held, or vanish if only mounts
    had made them; the store is asked again about the others."""
    while True:
        directory.state = directory.state._replace(complete=False)
        path = paths.join_path(parts)
        if not parts or directory.record.flags & records.MOUNT_POINT or any(_is_below(other, path) for other in others):
            return
        directory.record = directory.record._replace(flags=directory.record.flags & ~records.ANCHOR)
        parent = edit.open_directory(directory.record.parent)
        if directory.record.mount_id == NO_MOUNT:
            # Nothing but the way to mounts is in a directory without a store.
            edit.unlink(parent, directory.inode, directory.record)
            parent.set_changed(edit.now_ns)
        directory = parent
        parts = parts[:-1]
