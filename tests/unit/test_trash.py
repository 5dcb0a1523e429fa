"""The trash in the namespace: what comes into it, what it refuses, and how it ends.

(Whatever is removed and restored in whatever order: tests/model/test_trash_model.py; on a mount: tests/cluster/test_trash.py.)"""

from collections.abc import Iterator

import pytest

from alluxio_like import errors
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import changes, checking, emptying, mounts, namespace, quotas, records, tables, trash, versions
from alluxio_like.master.core.changes import NewInode
from alluxio_like.master.core.quotas import Quota
from alluxio_like.types import ROOT_INODE, Fingerprint, InodeId, Kind
from alluxio_like.ufs.api import StoreEntry

NOW = 1_700_000_000 * 10**9
HOUR = 3600 * 10**9
KEY_BYTES = 1024


@pytest.fixture
def txn() -> Iterator[WriteTransaction]:
    store = MemoryStore()
    with store.write() as txn:
        namespace.prepare(txn, NOW)
        mounts.add_mount(txn, "/", "s3://b", options={}, read_only=False, uid=7, gid=8, now_ns=NOW)
        apply_listing(txn, ROOT_INODE, [])
        yield txn
        assert not list(checking.check(txn))
    store.close()


def apply_listing(txn: WriteTransaction, directory: InodeId, entries: list[StoreEntry]) -> None:
    plan = namespace.begin_listing(txn, directory, NOW)
    namespace.apply_page(txn, plan, None, entries, True, NOW)


def create(txn: WriteTransaction, name: str, parent: InodeId = ROOT_INODE, kind: Kind = Kind.FILE) -> InodeId:
    target = b"somewhere" if kind is Kind.SYMLINK else b""
    new = NewInode(kind, 0o644, 1, 2, target)
    return changes.create(txn, parent, name.encode(), new, NOW, max_key_bytes=KEY_BYTES).inode


def unlink(txn: WriteTransaction, name: str, parent: InodeId = ROOT_INODE) -> None:
    changes.unlink(txn, parent, name.encode(), NOW)


def restore(txn: WriteTransaction, inode: InodeId) -> str:
    return emptying.restore(txn, inode, NOW, max_key_bytes=KEY_BYTES)[0]


def list_paths(txn: WriteTransaction) -> list[str]:
    return sorted(one.path for one in trash.iter_thrown(txn) if trash.is_there(txn, one.inode))


def test_files_and_links_come_into_it_by_their_last_name(txn: WriteTransaction) -> None:
    emptying.turn_on(txn, ROOT_INODE, HOUR, NOW)
    file = create(txn, "file")
    create(txn, "link", kind=Kind.SYMLINK)
    directory = create(txn, "d", kind=Kind.DIRECTORY)
    changes.link(txn, file, directory, b"again", NOW, max_key_bytes=KEY_BYTES)
    unlink(txn, "file")
    assert list_paths(txn) == []
    unlink(txn, "again", directory)
    unlink(txn, "link")
    changes.rmdir(txn, ROOT_INODE, b"d", NOW)
    assert list_paths(txn) == ["/d/again", "/link"]
    # Its directory is made again.
    assert restore(txn, file) == "/d/again"
    made = namespace.lookup(txn, ROOT_INODE, "d")
    assert made is not None
    assert (made.attr.uid, made.attr.gid) == (1, 2)
    assert list_paths(txn) == ["/link"]


def test_the_nearest_setting_holds_and_another_mount_has_a_trash_of_its_own(txn: WriteTransaction) -> None:
    top = create(txn, "top", kind=Kind.DIRECTORY)
    below = create(txn, "below", top, Kind.DIRECTORY)
    emptying.turn_on(txn, top, HOUR, NOW)
    emptying.turn_on(txn, below, 2 * HOUR, NOW)
    for directory in (ROOT_INODE, top, below):
        create(txn, f"f{directory}", directory)
        unlink(txn, f"f{directory}", directory)
    kept = {one.path: one.expires_ns - one.removed_ns for one in trash.iter_thrown(txn)}
    assert kept == {f"/top/f{top}": HOUR, f"/top/below/f{below}": 2 * HOUR}
    assert trash.clear_keep(txn, below)
    assert not trash.clear_keep(txn, below)
    other = mounts.add_mount(txn, "/top/m", "s3://c", options={}, read_only=False, uid=7, gid=8, now_ns=NOW)
    apply_listing(txn, other.root, [])
    create(txn, "file", other.root)
    unlink(txn, "file", other.root)
    assert len(list_paths(txn)) == 2
    emptying.turn_on(txn, other.root, HOUR, NOW)
    gone = create(txn, "file", other.root)
    unlink(txn, "file", other.root)
    assert "/top/m/file" in list_paths(txn)
    mounts.remove_mount(txn, "/top/m", NOW, force=True)
    assert trash.lookup_directory(txn, other.mount_id) is None
    namespace.purge(txn, NOW + HOUR, HOUR - 1)
    assert tables.lookup_inode(txn, gone) is None
    assert emptying.remove(txn, [gone], NOW) == (0, ())


def test_its_name_is_taken_and_nothing_is_put_there(txn: WriteTransaction) -> None:
    create(txn, "file")
    (recall,) = emptying.turn_on(txn, ROOT_INODE, HOUR, NOW)
    assert recall.names == (b".trash",)
    assert emptying.turn_on(txn, ROOT_INODE, 2 * HOUR, NOW) == ()
    found = namespace.lookup(txn, ROOT_INODE, ".trash")
    assert found is not None
    assert (found.attr.mode, found.attr.uid) == (0o700, 7)
    hidden = found.attr.inode
    with pytest.raises(errors.AlreadyExists):
        create(txn, ".trash")
    with pytest.raises(errors.NotPermitted):
        create(txn, "x", hidden)
    with pytest.raises(errors.NotPermitted):
        changes.rename(txn, ROOT_INODE, b"file", hidden, b"file", NOW, max_key_bytes=KEY_BYTES)
    # What the store has of it is shown by no listing.
    apply_listing(txn, ROOT_INODE, [StoreEntry(".trash", Kind.DIRECTORY)])
    assert [entry.name for entry in namespace.list_entries(txn, ROOT_INODE).entries] == ["file"]
    assert namespace.get_path(txn, hidden) == "/.trash"


def test_where_it_cannot_be_turned_on(txn: WriteTransaction) -> None:
    file = create(txn, "file")
    with pytest.raises(errors.InvalidArgument):
        emptying.turn_on(txn, ROOT_INODE, 0, NOW)
    with pytest.raises(errors.NotADirectory):
        emptying.turn_on(txn, file, HOUR, NOW)
    with pytest.raises(errors.ReadOnly):
        emptying.turn_on(txn, InodeId(1 << 50), HOUR, NOW)
    create(txn, ".trash", kind=Kind.DIRECTORY)
    with pytest.raises(errors.AlreadyExists, match="rename it"):
        emptying.turn_on(txn, ROOT_INODE, HOUR, NOW)
    for key in (records.trash_setting_key(ROOT_INODE), records.KEY_TRASH):
        txn.delete(key)


def test_a_restore_overwrites_nothing_and_needs_room(txn: WriteTransaction) -> None:
    emptying.turn_on(txn, ROOT_INODE, HOUR, NOW)
    top = create(txn, "top", kind=Kind.DIRECTORY)
    quotas.set_quota(txn, Quota(top, 100, None))
    while quotas.count_some(txn):
        pass
    file = create(txn, "file", top)
    versions.seal(txn, file, 90, NOW, ("w1",), NOW)
    unlink(txn, "file", top)
    # What is in the trash is nobody's quota's.
    assert quotas.get_usage(txn, top).size_bytes == 0
    other = create(txn, "file", top)
    with pytest.raises(errors.AlreadyExists):
        restore(txn, file)
    changes.rename(txn, top, b"file", top, b"other", NOW, max_key_bytes=KEY_BYTES)
    versions.seal(txn, other, 5, NOW, ("w1",), NOW)
    assert restore(txn, file) == "/top/file"
    assert quotas.get_usage(txn, top).size_bytes == 95
    with pytest.raises(errors.NotFound):
        restore(txn, file)


def test_names_in_it_can_always_be_made(txn: WriteTransaction) -> None:
    emptying.turn_on(txn, ROOT_INODE, HOUR, NOW)
    for name in ("ä" * 127, "n" * 255, "plain"):
        create(txn, name)
        unlink(txn, name)
    names = [
        entry.name for entry in namespace.list_entries(txn, trash.lookup_directory(txn, one_mount(txn)) or ROOT_INODE).entries
    ]
    assert len(names) == 3
    assert all(len(name.encode()) <= 255 for name in names)
    assert trash.make_name(0x1F, b"x%~") == b"1f-file"


def one_mount(txn: WriteTransaction) -> mounts.MountId:
    return mounts.list_mounts(txn)[0].mount_id


def test_what_has_expired_goes_and_what_cannot_go_waits(txn: WriteTransaction) -> None:
    emptying.turn_on(txn, ROOT_INODE, HOUR, NOW)
    plan = namespace.begin_listing(txn, ROOT_INODE, NOW + 1)
    stored = StoreEntry("stored", Kind.FILE, Fingerprint("e", 5), 3)
    namespace.apply_page(txn, plan, None, [stored], True, NOW + 1)
    unlink(txn, "stored")
    file = create(txn, "file")
    unlink(txn, "file")
    assert trash.list_expired(txn, NOW + HOUR, 10) == []
    due = trash.list_expired(txn, NOW + HOUR + 1, 10)
    assert len(due) == 2
    mount = mounts.list_mounts(txn)[0]
    mounts.update_mount(txn, mount.mount_id, options={}, sync_interval_s=None, write="")
    assert emptying.remove(txn, due, NOW + HOUR + 1) == (0, ())
    assert trash.list_expired(txn, NOW + HOUR + 1, 10) == []
    mounts.update_mount(txn, mount.mount_id, options={}, sync_interval_s=None, write="through")
    count, recalls = emptying.remove(txn, due, NOW + 2 * HOUR)
    assert (count, len(recalls) >= 2) == (2, True)
    assert tables.get_inode(txn, file).flags & records.ORPHAN
    assert list_paths(txn) == []
