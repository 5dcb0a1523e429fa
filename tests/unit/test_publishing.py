"""Files that clients have made by themselves come into the namespace whole: counted, filed, kept apart, and once each."""

import json
from dataclasses import replace

import pytest

from alluxio_like import errors
from alluxio_like.cache.new_files import NewFile
from alluxio_like.kv.api import KeyValueStore
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import changes, mounts, namespace, operations, publishing, quotas, snapshots, tables
from alluxio_like.master.core.changes import NewInode, Outcome
from alluxio_like.master.core.publishing import Packer, Published
from alluxio_like.master.core.quotas import Quota
from alluxio_like.master.core.snapshots import View
from alluxio_like.types import InodeId, Kind, VersionId
from tests.model.checked import assert_whole

MAX_KEY = 1024
PACKER = Packer(
    lambda outcome: json.dumps([outcome.inode, outcome.version]).encode(),
    lambda data: Outcome(InodeId(json.loads(data)[0]), (), VersionId(json.loads(data)[1])),
)


class Place:
    """A namespace with a directory, and ids for what comes there."""

    def __init__(self) -> None:
        self.kv: KeyValueStore = MemoryStore()
        with self.kv.write() as txn:
            namespace.prepare(txn, 1)
            self.root = mounts.add_mount(
                txn, "/m", "s3://b", options={}, read_only=False, uid=0, gid=0, now_ns=2, write="back"
            ).root
            made = changes.create(txn, self.root, b"d", NewInode(Kind.DIRECTORY, 0o755, 1, 2), 100, max_key_bytes=MAX_KEY)
            self.directory = made.inode
            self.next = tables.reserve_inodes(txn, 100)

    def make(self, name: str, **more: object) -> NewFile:
        inode = self.next
        self.next = InodeId(inode + 1)
        fields = {"mode": 0o600, "uid": 1, "gid": 2, "changed_ns": 150, "mtime_ns": 140, "sealed": True, "size": 5, **more}
        return NewFile(f"op-{inode}", inode, fields.pop("parent", self.directory), name, **fields)  # type: ignore[arg-type]

    def publish(self, *files: NewFile, now_ns: int = 1000) -> list[Published]:
        try:
            with self.kv.write() as txn:
                recording = snapshots.record(txn)
                return publishing.publish(recording, files, "w1", now_ns, PACKER, lambda _, name: name == "refused")
        finally:
            assert_whole(self.kv)

    def list_names(self) -> list[str]:
        with self.kv.read() as txn:
            return [entry.name for entry in namespace.list_entries(txn, self.directory).entries]


@pytest.fixture
def place() -> Place:
    return Place()


def test_what_is_published_is_counted_and_found(place: Place) -> None:
    with place.kv.write() as txn:
        quotas.set_quota(txn, Quota(place.root, 7, 1))
        while quotas.is_queued(txn):
            quotas.count_some(txn)
        before = namespace.get_totals(txn)
    place.publish(place.make("a"), place.make("b", sealed=False, size=0), place.make("c", size=7))
    with place.kv.read() as txn:
        after = namespace.get_totals(txn)
        assert (after.files, after.known_bytes) == (before.files + 3, before.known_bytes + 12)
        used = quotas.get_usage(txn, place.root)
        assert (used.files - 1, used.size_bytes) == (3, 12), "it is counted, and kept whatever quotas say"
    assert place.list_names() == ["a", "b", "c"]


def test_what_was_renamed_before_is_found_by_that_rename(place: Place) -> None:
    file = place.make("final", renamed_id="op-rename", made_ns=170)
    (made,) = place.publish(file)
    assert place.list_names() == ["final"]
    with place.kv.write() as txn:
        # As a rename that is sent again.
        raw = operations.run_once(txn, "op-rename", "rename", 2000, lambda: pytest.fail("it is done again"))
        assert PACKER.unpack(raw).inode == made.outcome.inode == file.inode
    place.publish(file)
    assert place.list_names() == ["final"]


def test_the_directory_that_a_file_has_left_was_changed_by_that(place: Place) -> None:
    with place.kv.write() as txn:
        made = [
            changes.create(txn, place.root, name, NewInode(Kind.DIRECTORY, 0o755, 1, 2), 100, max_key_bytes=MAX_KEY).inode
            for name in (b"left", b"gone")
        ]
        changes.rmdir(txn, place.root, b"gone", 110)
    moved = [place.make(f"f{number}", left=inode, left_ns=170, made_ns=170) for number, inode in enumerate(made)]
    done = place.publish(*moved)
    with place.kv.read() as txn:
        times = [namespace.get_entry(txn, inode).attr.mtime_ns for inode in (made[0], place.directory)]
    assert times == [170, 170]
    assert place.list_names() == ["f0", "f1"], "whether that is still there or not"
    assert {recall.directory for recall in publishing.list_recalls(done)} == {place.directory, made[0]}


def test_the_next_inode_is_nobodys(place: Place) -> None:
    place.publish(place.make("a"))
    with place.kv.write() as txn:
        made = changes.create(txn, place.directory, b"x", NewInode(Kind.FILE, 0o600, 1, 2), 200, max_key_bytes=MAX_KEY)
    assert made.inode >= place.next + 99 - 1
    with pytest.raises(errors.InvalidArgument):
        place.publish(replace(place.make("b"), inode=InodeId(made.inode + 5)))
    assert place.list_names() == ["a", "x"]


def test_all_of_a_call_come_or_none(place: Place) -> None:
    with pytest.raises(errors.NotFound):
        place.publish(place.make("a"), place.make("b", parent=InodeId(9999)), place.make("c"))
    assert place.list_names() == []


def test_a_directory_goes_no_further_back_than_it_was(place: Place) -> None:
    def get_times() -> tuple[int, int]:
        with place.kv.read() as txn:
            attr = namespace.get_entry(txn, place.directory).attr
        return attr.mtime_ns, attr.ctime_ns

    assert get_times() == (100, 100)
    place.publish(place.make("early", made_ns=50))
    assert get_times() == (100, 100)
    place.publish(place.make("b", made_ns=300), place.make("c", made_ns=200))
    assert get_times() == (300, 300)
    with place.kv.write() as txn:
        changes.set_attributes(txn, place.directory, changes.Attributes(mtime_ns=10), 400)
    place.publish(place.make("d", made_ns=350))
    assert get_times() == (350, 400)
    days = 86_400 * 10**9
    with place.kv.write() as txn:
        changes.set_attributes(txn, place.directory, changes.Attributes(mtime_ns=7 * days), 7 * days)
    # By a worker that was away for long.
    place.publish(place.make("late", made_ns=500))
    assert get_times() == (7 * days, 7 * days)


def test_a_name_that_is_taken_or_cannot_be_there_is_kept_beside(place: Place) -> None:
    with place.kv.write() as txn:
        for name, kind in ((b"file", Kind.FILE), (b"dir", Kind.DIRECTORY)):
            changes.create(txn, place.directory, name, NewInode(kind, 0o700, 1, 2), 110, max_key_bytes=MAX_KEY)
    published = place.publish(place.make("file"), place.make("dir"), place.make("refused"), place.make("new"), place.make("new"))
    kept = [one.kept.decode().partition(".conflict-")[0] for one in published]
    assert kept == ["file", "dir", "refused", "", "new"]
    assert len(place.list_names()) == 7
    [recall] = publishing.list_recalls(published)
    assert recall.directory == place.directory
    assert {b"file", b"dir", b"refused", b"new", *(one.kept for one in published if one.kept)} == set(recall.names)


def test_what_was_done_is_not_done_again(place: Place) -> None:
    file, open_one = place.make("a"), place.make("b", sealed=False, size=0)
    first = place.publish(file, open_one)
    assert [one.sealed.version if one.sealed else None for one in first] == [2, None]
    again = place.publish(file, replace(open_one, sealed=True, size=3, changed_ns=500), now_ns=2000)
    assert [one.sealed.version for one in again if one.sealed] == [2, 2]
    assert [one.is_new for one in again] == [False, False]
    with place.kv.write() as txn:
        assert operations.purge(txn, 2000 + 2 * operations.KEEP_NS)
    # Its result is forgotten: it is known by its inode.
    place.publish(file, now_ns=3000 + 2 * operations.KEEP_NS)
    assert place.list_names() == ["a", "b"]
    with place.kv.write() as txn:
        changes.unlink(txn, place.directory, b"a", 600)
    [removed] = place.publish(file, now_ns=4000 + 2 * operations.KEEP_NS)
    assert removed.sealed is not None
    assert place.list_names() == ["b"], "what was removed does not come back"


def test_a_file_that_another_call_has_made_instead_is_nothing_more(place: Place) -> None:
    file = place.make("a")
    with place.kv.write() as txn:

        def create() -> bytes:
            new = NewInode(Kind.FILE, 0o600, 1, 2)
            return PACKER.pack(changes.create(txn, place.directory, b"a", new, 110, max_key_bytes=MAX_KEY))

        operations.run_once(txn, file.operation_id, "create", 110, create)
    with pytest.raises(errors.NotFound):
        place.publish(file)
    assert place.list_names() == ["a"]


def test_a_snapshot_of_before_has_nothing_of_it(place: Place) -> None:
    with place.kv.write() as txn:
        snapshot = snapshots.create(txn, place.root, "first", 120)
    place.publish(place.make("a"))
    with place.kv.read() as txn:
        assert namespace.list_entries(View(txn, snapshot.number), place.directory).entries == ()
    assert place.list_names() == ["a"]
