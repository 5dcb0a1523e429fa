"""Backup and restore of the metadata: what the file holds, what is refused, and which numbers are never given again."""

import json
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.cli import backup_work
from alluxio_like.cli.backup_work import restore, write_backup
from alluxio_like.cli.metadata import Metadata
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.kv.lmdb import LmdbStore
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import (
    changes,
    checking,
    journal,
    mounts,
    namespace,
    records,
    restoring,
    snapshots,
    tables,
    versions,
)
from alluxio_like.master.core.changes import NewInode
from alluxio_like.master.core.journal import Op
from alluxio_like.types import Fingerprint, InodeId, Kind, VersionId
from tests.model.checked import assert_whole
from tests.unit.test_checking import MAX_KEY, fill


def read_all(txn: ReadTransaction) -> dict[bytes, bytes]:
    return dict(txn.scan(b"\0", b"\xff"))


def quiet(_pairs: int, _size: int) -> None:
    pass


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A stopped master's."""
    made = tmp_path / "home"
    store = LmdbStore(made / "meta")
    fill(store)
    store.close()
    for name, text in (
        ("lock", ""),
        ("cluster_id", "c1\n"),
        ("token", "secret-token\n"),
        ("secrets.json", '{"1": {"key": "k"}}'),
    ):
        (made / name).write_text(text)
        (made / name).chmod(0o600)
    return made


def open_home(home: Path) -> LmdbStore:
    return LmdbStore(home / "meta")


def test_a_home_is_made_again_elsewhere(home: Path, tmp_path: Path) -> None:
    file, there = tmp_path / "a.backup", tmp_path / "there"
    count, size = write_backup(file, Metadata(home), token_file=None, on_progress=quiet)
    assert size == file.stat().st_size and file.stat().st_mode & 0o777 == 0o600
    assert restore(file, Metadata(there), replace=False, on_progress=quiet) == count
    assert json.loads((there / "secrets.json").read_text()) == {"1": {"key": "k"}}
    assert [(there / name).read_text() for name in ("cluster_id", "token")] == ["c1\n", "secret-token\n"]
    store = open_home(there)
    assert_whole(store)
    with store.read() as txn:
        root = mounts.list_mounts(txn)[0].root
        assert {entry.name for entry in namespace.list_entries(txn, root).entries} >= {
            "file",
            "dir",
            "symlink",
            "moved",
            "another",
        }
    store.close()


def test_what_is_there_is_not_touched_but_with_replace(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.backup"
    write_backup(file, Metadata(home), token_file=None, on_progress=quiet)
    with pytest.raises(errors.Conflict, match="--replace"):
        restore(file, Metadata(home), replace=False, on_progress=quiet)
    with pytest.raises(errors.AlreadyExists):
        write_backup(file, Metadata(home), token_file=None, on_progress=quiet)
    (home / "meta/data.mdb").write_bytes(b"damaged")
    restore(file, Metadata(home), replace=True, on_progress=quiet)
    assert [place.name for place in home.glob("meta.before-*/data.mdb")] == ["data.mdb"]
    store = open_home(home)
    assert_whole(store)
    store.close()


@pytest.mark.parametrize("where", ["first", "middle", "last", "end"])
def test_a_damaged_backup_is_refused_before_anything_is_written(home: Path, tmp_path: Path, where: str) -> None:
    file, there = tmp_path / "a.backup", tmp_path / "there"
    write_backup(file, Metadata(home), token_file=None, on_progress=quiet)
    data = bytearray(file.read_bytes())
    if where == "end":
        del data[-5:]
    else:
        data[{"first": 3, "middle": len(data) // 2, "last": len(data) - 3}[where]] ^= 1
    file.write_bytes(data)
    with pytest.raises(errors.Corrupt):
        restore(file, Metadata(there), replace=True, on_progress=quiet)
    assert not (there / "meta").exists()


def test_what_was_cut_short_is_never_served(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, there = tmp_path / "a.backup", tmp_path / "there"
    write_backup(file, Metadata(home), token_file=None, on_progress=quiet)
    monkeypatch.setattr(backup_work, "_BATCH", 10)
    calls = []

    def stop(pairs: int, _size: int) -> None:
        calls.append(pairs)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(file, Metadata(there), replace=False, on_progress=stop)
    store = open_home(there)
    with pytest.raises(errors.Corrupt, match="restore"), store.write() as txn:
        namespace.prepare(txn, 100)
    with store.read() as txn:
        assert [one.rule for one in checking.check(txn)] == ["restore"]
    store.close()
    restore(file, Metadata(there), replace=False, on_progress=quiet)
    store = open_home(there)
    assert_whole(store)
    store.close()


class Twice:
    """A namespace, and what becomes of a backup of it while it goes on."""

    def __init__(self) -> None:
        self.kv = MemoryStore()
        self.root = fill(self.kv)
        self.restored = MemoryStore()

    def restore(self) -> None:
        with self.kv.read() as txn, self.restored.write() as new:
            new.put_many(list(restoring.transform_all(read_all(txn).items())))
            restoring.finish(new)
        assert_whole(self.restored)


@pytest.fixture
def twice() -> Twice:
    return Twice()


def test_no_number_is_given_a_second_time(twice: Twice) -> None:
    twice.restore()
    seen = []
    for kv in (twice.kv, twice.restored):
        with kv.write() as txn:
            namespace.prepare(txn, 50)
            made = changes.create(txn, twice.root, b"new", NewInode(Kind.FILE, 0o600, 0, 0), 51, max_key_bytes=MAX_KEY)
            file = namespace.lookup(txn, twice.root, "file")
            assert file is not None
            sealed = versions.seal(txn, file.attr.inode, 5, 52, ("w1",), 52)
            changes.unlink(txn, twice.root, b"kept", 53)
            mount = mounts.add_mount(txn, "/n", "s3://n", options={}, read_only=True, uid=0, gid=0, now_ns=54)
            snapshot = snapshots.create(txn, twice.root, "second", 55)
            step = max(one.number for one in journal.list_steps(txn))
            seen.append((made.inode, (file.attr.inode, sealed.version), mount.mount_id, snapshot.number, step))
    for one, other in zip(*seen, strict=True):
        assert one != other
    assert_whole(twice.restored)


def test_what_was_written_and_stored_is_known_by_what_the_store_says(twice: Twice) -> None:
    """Its versions go on while the backup lies there: with the same numbers they would be other contents."""
    with twice.kv.write() as txn:
        file = namespace.lookup(txn, twice.root, "linked")
        assert file is not None and file.ref is not None
        plan = versions.UploadPlan(file.ref.mount_id, file.ref.key, None)
        versions.note_persisted(txn, file.attr.inode, file.ref.version, plan, Fingerprint("stored", 4), 20)
    twice.restore()
    with twice.restored.read() as txn:
        entry = namespace.get_entry(txn, file.attr.inode)
    assert entry.ref is not None
    assert entry.ref.version > file.ref.version + 1_000_000 and entry.ref.fingerprint == Fingerprint("stored", 4)


def test_nothing_is_removed_at_the_store_that_was_to_be_removed_then(twice: Twice) -> None:
    with twice.kv.read() as txn:
        assert any(step.op is Op.DELETE and step.expected for step in journal.list_steps(txn))
    twice.restore()
    with twice.restored.read() as txn:
        steps = journal.list_steps(txn)
        assert steps and not any(step.op is Op.DELETE and step.expected for step in steps)


def test_what_workers_hold_of_the_time_between_is_kept(twice: Twice) -> None:
    with twice.kv.read() as txn:
        file = namespace.lookup(txn, twice.root, "linked")
        later = InodeId(records.unpack_id(txn.get(records.KEY_NEXT_INODE) or b""))
    assert file is not None
    twice.restore()
    with twice.restored.write() as txn:
        for inode, version in ((later, VersionId(2)), (file.attr.inode, VersionId(file.attr.version + 1))):
            with pytest.raises(errors.Conflict, match=r"docs/keeping\.md"):
                versions.plan_upload(txn, inode, version)
        with pytest.raises(errors.Conflict, match=r"docs/keeping\.md"):
            versions.seal(txn, later, 5, 52, ("w1",), 52)
        # What was never given is unknown as ever.
        with pytest.raises(errors.Stale):
            versions.plan_upload(txn, InodeId(1 << 40), VersionId(1))


def test_a_later_version_at_the_store_becomes_the_content(twice: Twice) -> None:
    twice.restore()
    with twice.restored.write() as txn:
        (inode, record), *_ = [one for one in restoring.list_unsure(txn) if one[1].size == 4]
        assert restoring.adopt(txn, inode, record, Fingerprint("later", 9), 60)
        assert not restoring.adopt(txn, inode, record, Fingerprint("later", 9), 61)
        entry = namespace.get_entry(txn, inode)
        assert entry.ref is not None and entry.ref.is_stored
        assert (entry.attr.size, entry.ref.fingerprint) == (9, Fingerprint("later", 9))
        assert tables.get_dirty(txn, inode).holders == ()
    assert_whole(twice.restored)
