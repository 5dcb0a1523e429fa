"""The check of the namespace finds whatever is missing or too much, and mends what can be mended without a loss."""

from collections.abc import Iterator

import pytest

from alluxio_like import errors
from alluxio_like.findings import Finding
from alluxio_like.kv.api import KeyValueStore
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import (
    changes,
    checking,
    journal,
    mounts,
    namespace,
    operations,
    records,
    snapshots,
    tables,
    versions,
    xattrs,
)
from alluxio_like.master.core.changes import NewInode
from alluxio_like.types import ROOT_INODE, Fingerprint, InodeId, Kind
from alluxio_like.ufs.api import StoreEntry
from tests.model.checked import assert_whole

LONG = "%" * 100
MAX_KEY = 1024


def fill(kv: KeyValueStore) -> InodeId:
    """Something of everything that a namespace can hold; the mount's root."""
    with kv.write() as txn:
        namespace.prepare(txn, 1)
        root = mounts.add_mount(txn, "/m", "s3://b", options={}, read_only=False, uid=0, gid=0, now_ns=2, write="through").root
        mounts.set_interval(txn, mounts.list_mounts(txn)[0].mount_id, "d/", 5.0)
        listing = namespace.begin_listing(txn, root, 3)
        entries = [
            StoreEntry(name, Kind.FILE, Fingerprint(name, 3), 5) for name in sorted([LONG, "gone", "kept", "moving", "linked"])
        ]
        namespace.apply_page(txn, listing, None, [*entries[:1], StoreEntry("d", Kind.DIRECTORY), *entries[1:]], True, 3)
    with kv.write() as txn:
        snapshots.create(txn, root, "first", 4)
    with kv.write() as txn:
        recording = snapshots.record(txn)
        for name, kind in ((b"file", Kind.FILE), (b"dir", Kind.DIRECTORY), (b"symlink", Kind.SYMLINK)):
            new = NewInode(kind, 0o600, 1, 2, b"target" if kind is Kind.SYMLINK else b"")
            made = changes.create(recording, root, name, new, 5, max_key_bytes=MAX_KEY)
            xattrs.set_xattr(recording, made.inode, b"user.a", b"v", 6, create=False, replace=False)
        changes.rename(recording, root, b"moving", root, b"moved", 7, max_key_bytes=MAX_KEY)
        changes.unlink(recording, root, b"gone", 8)
        linked = namespace.lookup(recording, root, "linked")
        assert linked is not None
        changes.link(recording, linked.attr.inode, root, b"another", 9, max_key_bytes=MAX_KEY)
        versions.seal(recording, linked.attr.inode, 4, 10, ("w1",), 10)
        operations.run_once(txn, "op", "m", 11, lambda: b"r")
    return root


@pytest.fixture
def kv() -> Iterator[KeyValueStore]:
    store = MemoryStore()
    fill(store)
    yield store
    store.close()


def check(kv: KeyValueStore) -> list[Finding]:
    with kv.read() as txn:
        return list(checking.check(txn))


def list_keys(kv: KeyValueStore) -> list[bytes]:
    with kv.read() as txn:
        return [key for key, _ in txn.scan(b"A", b"a")]


def test_nothing_is_found_where_nothing_is_wrong(kv: KeyValueStore) -> None:
    assert_whole(kv)
    letters = {key[:1] for key in list_keys(kv)}
    assert letters == {bytes([letter]) for letter in b"ABCDHIJKMNOPQSTUVWXY"}, "tables that the other tests look at"


_MAY_GO = {
    b"A": "how many attributes there were is not counted",
    b"T": "a name that comes back with the next listing, and is looked at by the step that goes on",
    b"V": "a setting",
    b"U": "what was there is not known any more",
    b"O": "the result of an operation",
}
_LOST = {records.KEY_FORMAT, records.KEY_LEASES}


def test_each_row_that_is_missing_is_found(kv: KeyValueStore) -> None:
    for key in list_keys(kv):
        with kv.read() as txn:
            value = txn.get(key)
        with kv.write() as txn:
            txn.delete(key)
        found = check(kv)
        is_empty = key[:1] == b"S" and not any(records.unpack_state(value)[5:])
        if key[:1] not in _MAY_GO and key not in _LOST and not is_empty:
            assert found, key
        with kv.write() as txn:
            assert value is not None
            txn.put(key, value)
    assert_whole(kv)


def test_what_is_mended_is_whole_afterwards(kv: KeyValueStore) -> None:
    """Each row missing in turn: what can be mended is, and nothing that programs wrote goes with it."""
    mended = set()
    for key in list_keys(kv):
        copy = MemoryStore()
        with kv.read() as old, copy.write() as new:
            for other, value in old.scan(b"\0", b"\xff"):
                if other != key:
                    new.put(other, value)
        found = check(copy)
        for _ in range(5):
            if not any(one.writes for one in found):
                break
            with copy.write() as txn:
                checking.mend(txn, found)
            found = check(copy)
        if not found and key[:1] not in _MAY_GO and key not in _LOST:
            mended.add(key[:1])
            with copy.read() as txn:
                for row, _ in txn.scan(b"W", b"X"):
                    assert tables.lookup_inode(txn, InodeId(int.from_bytes(row[1:9], "big"))) is not None
        copy.close()
    assert mended >= {b"C", b"D", b"H", b"J", b"P", b"S", b"X"}


@pytest.mark.parametrize(
    ("rule", "row"),
    [
        ("beside", (records.dirty_key(999), records.pack_dirty(records.Dirty()))),
        ("beside", (records.xattr_key(999, b"user.a"), b"v")),
        ("links", (records.name_key(999, 1), records.pack_name(ROOT_INODE, b"a"))),
        ("state", (records.state_key(999), records.pack_state(records.State()))),
        ("names", (records.dentry_key(999, b"a"), records.pack_id(1))),
        ("orphan", (records.orphan_key(5, 999), b"")),
        ("journal", (b"J" + bytes(28), b"")),
        ("snapshots", (b"Csnapshot", bytes(24))),
        ("totals", (records.KEY_TOTALS, bytes(40))),
        ("counter", (records.KEY_SEQUENCE, b"\1")),
        ("counter", (records.KEY_JOURNAL, b"\0")),
        ("counter", (records.KEY_NEXT_INODE, b"\1")),
    ],
)
def test_what_is_too_much_is_found(kv: KeyValueStore, rule: str, row: tuple[bytes, bytes]) -> None:
    with kv.write() as txn:
        txn.put(*row)
    assert rule in {one.rule for one in check(kv)}


def test_a_directory_below_itself_is_found(kv: KeyValueStore) -> None:
    with kv.write() as txn:
        root = mounts.list_mounts(txn)[0].root
        inner = namespace.lookup(txn, root, "dir")
        assert inner is not None
        record = tables.get_inode(txn, inner.attr.inode)
        txn.put(records.inode_key(inner.attr.inode), records.pack_inode(record._replace(parent=inner.attr.inode)))
    assert "loop" in {one.rule for one in check(kv)}


def test_files_with_several_names_are_forgotten_with_their_mount(kv: KeyValueStore) -> None:
    """The second name once found no inode, and nothing was ever forgotten after it."""
    with kv.write() as txn:
        root = mounts.list_mounts(txn)[0].root
        inner = namespace.lookup(txn, root, "dir")
        file = namespace.lookup(txn, root, "linked")
        assert inner is not None and file is not None
        recording = snapshots.record(txn)
        changes.link(recording, file.attr.inode, inner.attr.inode, b"third", 20, max_key_bytes=MAX_KEY)
        mounts.remove_mount(recording, "/m", 21, force=True)
    assert_whole(kv)
    while True:
        with kv.write() as txn:
            more = namespace.purge(snapshots.record(txn), 30, 0, 2).more
        assert_whole(kv)
        if not more:
            break
    with kv.read() as txn:
        assert [key for key, _ in txn.scan(b"I", b"J")] == [records.inode_key(ROOT_INODE)]
        assert journal.is_empty(txn)


def test_a_mount_hides_nothing_that_its_store_does_not_have(kv: KeyValueStore) -> None:
    with kv.write() as txn:
        root = mounts.list_mounts(txn)[0].root
        inner = namespace.lookup(txn, root, "dir")
        assert inner is not None
        new = NewInode(Kind.FILE, 0o600, 1, 2)
        changes.create(snapshots.record(txn), inner.attr.inode, b"precious", new, 20, max_key_bytes=MAX_KEY)
    with pytest.raises(errors.Conflict, match="fs wait"), kv.write() as txn:
        mounts.add_mount(txn, "/m/dir", "s3://c", options={}, read_only=True, uid=0, gid=0, now_ns=22)
    assert_whole(kv)


def test_no_snapshot_gets_the_number_of_one_that_was_deleted(kv: KeyValueStore) -> None:
    """Mounts know what is in a snapshot by its number."""
    with kv.write() as txn:
        root = mounts.list_mounts(txn)[0].root
        second = snapshots.create(txn, root, "second", 20)
        snapshots.delete(txn, second)
        cursor: bytes | None = b""
        while cursor is not None:
            cursor = snapshots.collect(txn, second.number, cursor)
        assert snapshots.create(txn, root, "third", 21).number > second.number
    assert_whole(kv)
