"""Frozen trees as the namespace answers for them: what is below `.snapshots`.

Owns how a frozen tree is shown: every inode of it under an id of its own (core/snapshots.py), a file's content as the namespace
knows it now where the version is still the same, so that cached bytes are shared and a moved object is found. Rule of
concurrency: event loop alone; nothing awaits.
"""

from dataclasses import replace

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import namespace, paths, snapshots
from alluxio_like.master.core.model import NO_MOUNT, DirState, EntryPage
from alluxio_like.master.core.snapshots import View
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.types import SNAPSHOT_FOLDER, SNAPSHOT_SHIFT, Attr, Entry, InodeId, Kind, VersionId

_FOLDER_MODE = 0o555


def is_frozen(inode: InodeId) -> bool:
    """Whether an inode is one of a snapshot, or the folder of a directory's snapshots."""
    return inode >> SNAPSHOT_SHIFT > 0


def open_tree(txn: ReadTransaction, inode: InodeId) -> tuple[ReadTransaction, InodeId]:
    """The tree that an inode's id is of, and its own id there. Raises NotFound."""
    number, own = snapshots.split_id(inode)
    if not number or snapshots.is_folder(number):
        return txn, own
    return View(txn, snapshots.get(txn, number).number), own


class SnapshotTrees:
    """What the namespace answers of frozen trees. All methods raise NotFound for what is not there."""

    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta

    def lookup_folder(self, directory: InodeId) -> Entry | None:
        """The folder of a directory's snapshots; None where it has none."""
        with self._meta.read() as txn:
            if not any(one.root == directory and not one.deleted for one in snapshots.list_all(txn)):
                return None
            return _make_folder(txn, directory)

    def lookup(self, parent: InodeId, name: str) -> Entry | None:
        """A name in a frozen directory."""
        number, inode = snapshots.split_id(parent)
        with self._meta.read() as txn:
            if snapshots.is_folder(number):
                found = snapshots.lookup(txn, inode, name)
                return None if found is None else _make_root(txn, found)
            snapshots.get(txn, number)
            entry = namespace.lookup(View(txn, number), inode, name)
            return None if entry is None else _freeze(txn, number, entry)

    def find(self, path: str) -> Entry | None:
        """The entry at a path that leads through the folder of a directory's snapshots; None: it does not, or there is none. No
        store is asked."""
        names = paths.split_path(path)
        if SNAPSHOT_FOLDER not in names:
            return None
        place = names.index(SNAPSHOT_FOLDER)
        with self._meta.read() as txn:
            above = namespace.resolve(txn, "/" + "/".join(names[:place]))
        entry = None if above.rest else self.lookup_folder(above.entry.attr.inode)
        for name in names[place + 1 :]:
            if entry is None or entry.attr.kind is not Kind.DIRECTORY:
                return None
            entry = self.lookup(entry.attr.inode, name)
        return entry

    def get_entry(self, inode: InodeId) -> Entry:
        """A frozen inode by its id."""
        number, own = snapshots.split_id(inode)
        with self._meta.read() as txn:
            if snapshots.is_folder(number):
                return _make_folder(txn, own)
            snapshot = snapshots.get(txn, number)
            if snapshot.root == own:
                return _make_root(txn, snapshot)
            return _freeze(txn, number, namespace.get_entry(View(txn, number), own))

    def get_place(self, directory: InodeId) -> tuple[str, DirState]:
        """The path by which a frozen directory is reached, and what is known of its children."""
        number, own = snapshots.split_id(directory)
        with self._meta.read() as txn:
            if snapshots.is_folder(number):
                count = sum(1 for one in snapshots.list_all(txn) if one.root == own and not one.deleted)
                path = f"{namespace.get_path(txn, own).rstrip('/')}/{SNAPSHOT_FOLDER}"
                return path, replace(
                    namespace.get_dir_state(txn, own), mount_id=NO_MOUNT, complete=True, files=0, directories=count
                )
            snapshot, view = snapshots.get(txn, number), View(txn, number)
            below = namespace.get_path(view, own)[len(namespace.get_path(view, snapshot.root).rstrip("/")) :]
            root = namespace.get_path(txn, snapshot.root).rstrip("/")
            return f"{root}/{SNAPSHOT_FOLDER}/{snapshot.name}{below.rstrip('/')}", namespace.get_dir_state(view, own)

    def list_page(self, directory: InodeId, cursor: bytes, limit: int) -> EntryPage:
        """A page of a frozen directory."""
        number, inode = snapshots.split_id(directory)
        with self._meta.read() as txn:
            if snapshots.is_folder(number):
                found = [one for one in snapshots.list_all(txn) if one.root == inode and not one.deleted]
                return EntryPage(tuple([_make_root(txn, one) for one in found]), b"", NO_MOUNT, "")
            snapshots.get(txn, number)
            page = namespace.list_entries(View(txn, number), inode, cursor, limit)
            return replace(page, entries=tuple([_freeze(txn, number, entry) for entry in page.entries]))


def _freeze(txn: ReadTransaction, number: int, entry: Entry) -> Entry:
    """An entry of a snapshot's view as it is shown. While its version is still the file's, its content is where the namespace
    says now: it may have moved, or been uploaded, since."""
    ref = entry.ref
    if ref is not None:
        try:
            now = namespace.get_entry(txn, ref.inode).ref
        except errors.NotFound:
            now = None
        if now is not None and (now.version, now.fingerprint) == (ref.version, ref.fingerprint):
            ref = now
        ref = replace(ref, frozen=True)
    return replace(entry, attr=replace(entry.attr, inode=snapshots.make_id(number, entry.attr.inode)), ref=ref)


def _make_root(txn: ReadTransaction, snapshot: snapshots.Snapshot) -> Entry:
    entry = namespace.get_entry(View(txn, snapshot.number), snapshot.root)
    return _freeze(txn, snapshot.number, replace(entry, name=snapshot.name))


def _make_folder(txn: ReadTransaction, directory: InodeId) -> Entry:
    attr = namespace.get_entry(txn, directory).attr
    inode = snapshots.make_folder_id(directory)
    made_ns = max((one.created_ns for one in snapshots.list_all(txn) if one.root == directory), default=attr.ctime_ns)
    return Entry(
        SNAPSHOT_FOLDER, Attr(inode, Kind.DIRECTORY, _FOLDER_MODE, attr.uid, attr.gid, 0, made_ns, made_ns, 1, VersionId(0))
    )
