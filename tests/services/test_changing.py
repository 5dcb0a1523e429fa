"""What programs change, through a real master over a store in memory: decided on what is known, durable, told, followed.

(What a change means: test_changes.py; sequences of them: tests/model/test_changes_model.py.)"""

import asyncio
import errno
import itertools
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.client.changes import Changes
from alluxio_like.client.client import Client
from alluxio_like.client.coherence import LeaseKeeper
from alluxio_like.client.metadata import MetadataCache
from alluxio_like.client.news import News
from alluxio_like.config import ClientConfig
from alluxio_like.errors import get_disposition
from alluxio_like.master import follower as follower_module
from alluxio_like.master.core import acls, following
from alluxio_like.master.following_store import StoreFollower
from alluxio_like.rpc.changes import ChangesStub
from alluxio_like.rpc.messages import MountSpec
from alluxio_like.rpc.messages_writing import (
    Changed,
    NewAttributes,
    NewName,
    Persisted,
    Renaming,
    Sealed,
    SealedDraft,
    UploadPlan,
    WriteMode,
    WritePolicy,
    XattrChange,
)
from alluxio_like.types import Entry, FileId, Fingerprint, InodeId, Kind, MountId, Recall, VersionId, to_str
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.memory import Fault, MemoryUfs
from alluxio_like.ufs.memory_writing import WritableMemoryUfs
from tests.pending_parts import make_nothing_pending
from tests.unit.master_parts import Cluster, wait_until

numbers = itertools.count()


def op() -> str:
    return f"op-{next(numbers)}"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "home")
    made.is_written = True
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def store(cluster: Cluster) -> MemoryUfs:
    return await cluster.add_store(options={"write": "through"})


async def get(cluster: Cluster, path: str) -> Entry:
    entry = (await cluster.stub.resolve_path(path)).entry
    assert entry is not None, path
    return entry


async def create(cluster: Cluster, path: str, kind: Kind = Kind.FILE, **more: str) -> Entry:
    above, _, name = path.rpartition("/")
    parent = (await get(cluster, above)).attr.inode
    changed = await cluster.changes.create(op(), NewName(parent, name, kind, 0o644, 1, 2, **more))
    assert changed.entry is not None
    return changed.entry


async def rename(cluster: Cluster, old: str, new: str, **flags: bool) -> Changed:
    (old_above, _, old_name), (new_above, _, new_name) = old.rpartition("/"), new.rpartition("/")
    renaming = Renaming(
        (await get(cluster, old_above)).attr.inode, old_name, (await get(cluster, new_above)).attr.inode, new_name, **flags
    )
    return await cluster.changes.rename(op(), renaming)


async def remove(cluster: Cluster, path: str, *, directory: bool = False) -> Changed:
    above, _, name = path.rpartition("/")
    return await cluster.changes.remove(op(), (await get(cluster, above)).attr.inode, name, directory=directory)


async def seal(cluster: Cluster, inode: InodeId, size: int, *, operation_id: str = "") -> Sealed:
    return await cluster.changes.seal(operation_id or op(), SealedDraft(inode, size, 77, "w1", 1))


async def upload(cluster: Cluster, store: MemoryUfs, sealed: Sealed, data: bytes) -> Fingerprint:
    """What a worker does with a version."""
    plan = await cluster.changes.plan_upload(sealed.ref.file_id)
    assert store.lookup_fingerprint(plan.key) == plan.expected
    store.put(plan.key, data)
    stored = store.lookup_fingerprint(plan.key)
    assert stored is not None
    assert await cluster.changes.note_persisted([Persisted(sealed.ref.file_id, plan, stored)]) == [None]
    return stored


async def write(cluster: Cluster, store: MemoryUfs, path: str, data: bytes = b"data") -> Entry:
    """A file that the store has."""
    entry = await create(cluster, path)
    await upload(cluster, store, await seal(cluster, entry.attr.inode, len(data)), data)
    return await get(cluster, path)


async def wait_followed(cluster: Cluster, path: str = "/data") -> None:
    async with asyncio.timeout(60):
        while (await cluster.changes.list_unpersisted(path)).steps:
            await asyncio.sleep(0.01)


def list_keys(store: MemoryUfs) -> set[str]:
    return {to_str(key) for key in store._get_sorted()}


async def test_a_file_is_made_sealed_uploaded_and_read(cluster: Cluster, store: MemoryUfs) -> None:
    entry = await create(cluster, "/data/a")
    assert (entry.name, entry.attr.uid, entry.attr.gid, entry.attr.size) == ("a", 1, 2, 0)
    assert entry.ref is not None
    assert not entry.ref.is_stored
    sealed = await seal(cluster, entry.attr.inode, 4)
    assert (sealed.ref.version, sealed.ref.size, sealed.ref.holders) == (2, 4, ("w1",))
    assert sealed.policy == WritePolicy()
    assert not sealed.unwanted
    known = (await get(cluster, "/data/a")).ref
    assert known == sealed.ref
    waiting = await cluster.changes.list_unpersisted("/data")
    assert (waiting.files, waiting.size_bytes, waiting.paths) == (1, 4, ("/data/a",))
    await cluster.changes.note_holders(sealed.ref.file_id, ["w2", "w1"])
    known = (await get(cluster, "/data/a")).ref
    assert known is not None
    assert known.holders == ("w1", "w2")
    plan = await cluster.changes.plan_upload(sealed.ref.file_id)
    assert (plan.key, plan.expected) == ("a", None)
    assert plan.metadata == {"mode": str(0o100644), "uid": "1", "gid": "2", "mtime": "0.000000077"}
    stored = await upload(cluster, store, sealed, b"data")
    known = (await get(cluster, "/data/a")).ref
    assert known is not None
    assert (known.stored, known.fingerprint, known.holders) == (stored, sealed.ref.fingerprint, ())
    waiting = await cluster.changes.list_unpersisted("/data")
    assert (waiting.files, waiting.steps) == (0, 0)
    with pytest.raises(errors.Stale):
        await cluster.changes.plan_upload(sealed.ref.file_id)


async def test_whoever_asks_is_told_since_when_a_file_has_only_grown(cluster: Cluster, store: MemoryUfs) -> None:
    entry = await create(cluster, "/data/log")
    root = (await get(cluster, "/data")).attr.inode

    async def grow(base: int, *, extends: bool = True) -> None:
        draft = SealedDraft(entry.attr.inode, 10 * (base + 1), 7, "w1", base, early=True, extends=extends)
        assert (await cluster.changes.seal(op(), draft)).ref.version == base + 1

    async def ask() -> list[int | None]:
        answers = [
            (await cluster.stub.resolve_path("/data/log")).entry,
            (await cluster.stub.lookup(root, "log")).entry,
            (await cluster.stub.get_entry(entry.attr.inode)).entry,
            *(await cluster.stub.list_dir(root)).entries,
        ]
        return [None if one is None or one.ref is None else one.ref.continues for one in answers]

    assert await ask() == [0] * 4
    await grow(1)
    await grow(2)
    assert await ask() == [1] * 4
    await grow(3, extends=False)
    assert await ask() == [0] * 4
    await grow(4)
    assert await ask() == [4] * 4


async def test_many_uploads_are_planned_and_noted_together_and_each_is_decided_by_itself(
    cluster: Cluster, store: MemoryUfs
) -> None:
    sealed = [await seal(cluster, (await create(cluster, f"/data/f{number}")).attr.inode, number) for number in range(4)]
    file_ids = [one.ref.file_id for one in sealed]
    older = FileId(file_ids[0].inode, VersionId(1))
    planned = await cluster.changes.plan_uploads([older, *file_ids, FileId(InodeId(1 << 40), VersionId(1))])
    assert [isinstance(one, UploadPlan) for one in planned] == [False, True, True, True, True, False]
    assert {type(planned[0]), type(planned[-1])} == {errors.Stale}
    plans = [one for one in planned if isinstance(one, UploadPlan)]
    assert [plan.key for plan in plans] == ["f0", "f1", "f2", "f3"]
    for number, plan in enumerate(plans):
        store.put(plan.key, bytes(number))
    told = [
        Persisted(file_id, plan, store.lookup_fingerprint(plan.key) or Fingerprint("", 0))
        for file_id, plan in zip(file_ids, plans, strict=True)
    ]
    # Of one mount nobody knows: the others are noted all the same.
    strange = Persisted(FileId(InodeId(1 << 40), VersionId(1)), UploadPlan(MountId(99), "x", None), told[0].stored)
    noted = await cluster.changes.note_persisted([told[0], strange, *told[1:]])
    assert [error is None for error in noted] == [True, False, True, True, True]
    assert isinstance(noted[1], errors.AlluxioLikeError)
    waiting = await cluster.changes.list_unpersisted("/data")
    assert (waiting.files, waiting.steps, waiting.trouble) == (0, 0, "")
    # A repeat does no harm, and what is there is not wanted again.
    assert await cluster.changes.note_persisted(told) == [None] * 4
    assert {type(one) for one in await cluster.changes.plan_uploads(file_ids)} == {errors.Stale}
    assert (await cluster.changes.list_unpersisted("/data")).steps == 0
    assert list_keys(store) == {"f0", "f1", "f2", "f3"}


async def test_what_cannot_be_planned_yet_is_waited_for_alone(cluster: Cluster, store: MemoryUfs) -> None:
    """Together it keeps no other version waiting."""
    entry = await write(cluster, store, "/data/a")
    store.fail("DELETE", errors.StoreUnavailable("away"), always=True)
    await remove(cluster, "/data/a")
    again = await seal(cluster, (await create(cluster, "/data/a")).attr.inode, 4)
    other = await seal(cluster, (await create(cluster, "/data/b")).attr.inode, 4)
    assert again.ref.inode != entry.attr.inode
    planned = await cluster.changes.plan_uploads([again.ref.file_id, other.ref.file_id])
    assert isinstance(planned[0], errors.Unavailable)
    assert isinstance(planned[1], UploadPlan)
    alone = asyncio.create_task(cluster.changes.plan_upload(again.ref.file_id))
    store.heal()
    assert (await alone).key == "a"


async def test_a_repeat_is_answered_and_not_done_again(cluster: Cluster, store: MemoryUfs) -> None:
    root = (await get(cluster, "/data")).attr.inode
    new = NewName(root, "a", Kind.FILE, 0o600, 0, 0)
    first = await cluster.changes.create("same", new)
    assert await cluster.changes.create("same", new) == first
    assert first.entry is not None
    sealed = await seal(cluster, first.entry.attr.inode, 4, operation_id="seal")
    assert await seal(cluster, first.entry.attr.inode, 4, operation_id="seal") == sealed
    later = await seal(cluster, first.entry.attr.inode, 5)
    assert later.ref.version == sealed.ref.version + 1
    again = await seal(cluster, first.entry.attr.inode, 4, operation_id="seal")
    assert (again.ref.version, again.ref.fingerprint) == (sealed.ref.version, sealed.ref.fingerprint)
    with pytest.raises(errors.Stale):
        await cluster.changes.plan_upload(sealed.ref.file_id)
    with pytest.raises(errors.AlreadyExists):
        await cluster.changes.create(op(), new)


async def test_names_that_no_listing_has_covered_are_asked_for_first(cluster: Cluster, store: MemoryUfs) -> None:
    store.put("d/there", b"x")
    store.put("e/below/x", b"x")
    directory = (await get(cluster, "/data/d")).attr.inode
    with pytest.raises(errors.AlreadyExists):
        await cluster.changes.create(op(), NewName(directory, "there", Kind.FILE, 0o600, 0, 0))
    with pytest.raises(errors.DirectoryNotEmpty):
        await remove(cluster, "/data/e/below", directory=True)
    with pytest.raises(errors.DirectoryNotEmpty):
        await rename(cluster, "/data/d", "/data/e/below")
    await create(cluster, "/data/e/f", Kind.DIRECTORY)
    with pytest.raises(errors.NotFound):
        await rename(cluster, "/data/d/none", "/data/d/other")
    assert get_disposition(errors.NotFound()).errno == errno.ENOENT


async def test_a_store_that_does_not_answer_keeps_nobody_from_what_is_known(cluster: Cluster, store: MemoryUfs) -> None:
    await get(cluster, "/data")
    await create(cluster, "/data/d", Kind.DIRECTORY)
    await wait_followed(cluster)
    store.fail("LIST", Fault(errors.StoreUnavailable("down")), always=True)
    await cluster.stub.set_sync_interval("/data", 0.01)
    await create(cluster, "/data/d/new")
    await rename(cluster, "/data/d/new", "/data/d/newer")
    await remove(cluster, "/data/d/newer")
    await remove(cluster, "/data/d", directory=True)


async def test_what_lies_in_a_directory_that_moves_can_be_changed_while_the_store_is_down(
    cluster: Cluster, store: MemoryUfs
) -> None:
    await create(cluster, "/data/d", Kind.DIRECTORY)
    await create(cluster, "/data/d/deep", Kind.DIRECTORY)
    await write(cluster, store, "/data/d/deep/a")
    await wait_followed(cluster)
    for op_name in ("LIST", "HEAD", "PUT", "DELETE", "COPY"):
        store.fail(op_name, Fault(errors.StoreUnavailable("down")), always=True)
    await rename(cluster, "/data/d", "/data/e")
    await create(cluster, "/data/e/new")
    await rename(cluster, "/data/e/deep", "/data/e/deeper")
    await remove(cluster, "/data/e/deeper/a")
    await rename(cluster, "/data/e", "/data/f")
    await create(cluster, "/data/f/deeper/b")
    store.heal()
    await wait_followed(cluster)
    assert list_keys(store) - {"f/new", "f/deeper/b"} == {"f/", "f/deeper/"}


async def test_a_file_that_was_to_replace_another_one_moves_on_with_its_directory(cluster: Cluster, store: MemoryUfs) -> None:
    await create(cluster, "/data/d", Kind.DIRECTORY)
    await write(cluster, store, "/data/d/a", b"new")
    await write(cluster, store, "/data/d/b", b"old")
    await wait_followed(cluster)
    store.fail("COPY", Fault(errors.StoreUnavailable("down")), always=True)
    await rename(cluster, "/data/d/a", "/data/d/b")
    await rename(cluster, "/data/d", "/data/e")
    await create(cluster, "/data/e/x", Kind.DIRECTORY)
    store.heal()
    await wait_followed(cluster)
    assert not (await cluster.changes.list_unpersisted("/data")).conflicts
    assert {key: store.get(key) for key in list_keys(store)} == {"e/": b"", "e/x/": b"", "e/b": b"new"}


async def test_the_store_follows_renames_and_removals(cluster: Cluster, store: MemoryUfs) -> None:
    await create(cluster, "/data/d", Kind.DIRECTORY)
    await create(cluster, "/data/d/deep", Kind.DIRECTORY)
    first = await write(cluster, store, "/data/d/a", b"first")
    await write(cluster, store, "/data/d/deep/b", b"second")
    await write(cluster, store, "/data/gone")
    assert list_keys(store) == {"d/", "d/deep/", "d/a", "d/deep/b", "gone"}
    await rename(cluster, "/data/d", "/data/e")
    moved = await get(cluster, "/data/e/a")
    assert moved.attr.inode == first.attr.inode
    await remove(cluster, "/data/gone")
    await wait_followed(cluster)
    assert list_keys(store) == {"e/", "e/deep/", "e/a", "e/deep/b"}
    assert (store.get("e/a"), store.get("e/deep/b")) == (b"first", b"second")
    settled = (await get(cluster, "/data/e/a")).ref
    assert settled is not None
    assert (settled.key, settled.stored) == ("e/a", store.lookup_fingerprint("e/a"))
    assert settled.fingerprint == moved.ref.fingerprint if moved.ref is not None else False
    await rename(cluster, "/data/e/a", "/data/e/deep/b")
    await wait_followed(cluster)
    assert list_keys(store) == {"e/", "e/deep/", "e/deep/b"}
    assert store.get("e/deep/b") == b"first"
    await remove(cluster, "/data/e/deep/b")
    await remove(cluster, "/data/e/deep", directory=True)
    await remove(cluster, "/data/e", directory=True)
    await wait_followed(cluster)
    assert list_keys(store) == set()
    await cluster.stub.sync("/data", recursive=True)
    assert (await cluster.stub.resolve_path("/data/e")).entry is None


async def test_names_are_swapped(cluster: Cluster, store: MemoryUfs) -> None:
    await write(cluster, store, "/data/a", b"one")
    await write(cluster, store, "/data/b", b"two")
    with pytest.raises(errors.AlreadyExists):
        await rename(cluster, "/data/a", "/data/b", no_replace=True)
    await rename(cluster, "/data/a", "/data/b", exchange=True)
    await wait_followed(cluster)
    assert {key: store.get(key) for key in list_keys(store)} == {"a": b"two", "b": b"one"}


async def test_many_files_of_a_directory_go_in_few_requests(cluster: Cluster, store: MemoryUfs) -> None:
    for number in range(300):
        store.put(f"d/{number:03}", b"x")
    directory = (await get(cluster, "/data/d")).attr.inode
    await cluster.stub.list_dir(directory)
    store.fail("DELETE", Fault(errors.StoreUnavailable("down")), always=True)
    foreign = "d/123"
    await asyncio.gather(*(cluster.changes.remove(op(), directory, f"{n:03}", directory=False) for n in range(123)))
    store.put(foreign, b"somebody else's")
    await asyncio.gather(*(cluster.changes.remove(op(), directory, f"{n:03}", directory=False) for n in range(123, 300)))
    before = len(store.requests)
    store.heal()
    await wait_followed(cluster)
    assert list_keys(store) - {"d/"} == {foreign}, "a foreign content stays"
    assert len(store.requests) - before < 20
    await cluster.stub.sync("/data/d", recursive=False)
    await get(cluster, "/data/d/123")


async def test_a_step_whose_answer_is_lost_is_done_once(cluster: Cluster, store: MemoryUfs) -> None:
    await write(cluster, store, "/data/a", b"one")
    await write(cluster, store, "/data/b", b"two")
    store.fail("COPY", Fault(errors.StoreUnavailable("lost"), is_late=True))
    store.fail("DELETE", Fault(errors.StoreUnavailable("lost"), is_late=True))
    await rename(cluster, "/data/a", "/data/b")
    await wait_followed(cluster)
    assert {key: store.get(key) for key in list_keys(store)} == {"b": b"one"}
    assert not (await cluster.changes.list_unpersisted("/data")).conflicts


async def test_what_fails_stays_and_is_seen_and_goes_on(cluster: Cluster, store: MemoryUfs) -> None:
    await write(cluster, store, "/data/a")
    store.fail("DELETE", Fault(errors.StoreDenied("not for you")), always=True)
    await remove(cluster, "/data/a")
    async with asyncio.timeout(60):
        while not (waiting := await cluster.changes.list_unpersisted("/data")).trouble:
            await asyncio.sleep(0.01)
    assert waiting.steps == 1
    assert "not for you" in waiting.trouble
    assert "a" in waiting.trouble
    await cluster.stub.sync("/data", recursive=False)
    assert (await cluster.stub.resolve_path("/data/a")).entry is None, "it does not come back meanwhile"
    report = await cluster.stub.report()
    assert report.journal_steps == 1
    assert any("not for you" in warning for warning in report.warnings)
    with pytest.raises(errors.Conflict, match="fs wait"):
        await cluster.stub.unmount("/data")
    store.heal()
    await wait_followed(cluster)
    assert list_keys(store) == set()
    await cluster.stub.unmount("/data")


async def test_what_was_to_follow_is_followed_after_a_restart(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    cluster.is_written = True
    await cluster.start()
    store = await cluster.add_store(options={"write": "back"})
    await create(cluster, "/data/d", Kind.DIRECTORY)
    await write(cluster, store, "/data/d/a", b"one")
    kept = await create(cluster, "/data/d/kept")
    sealed = await seal(cluster, kept.attr.inode, 3)
    store.fail("COPY", Fault(errors.StoreUnavailable("down")), always=True)
    await rename(cluster, "/data/d/a", "/data/d/b")
    await cluster.stop_master()
    store.heal()
    await cluster.start()
    await wait_followed(cluster)
    assert store.get("d/b") == b"one"
    known = await get(cluster, "/data/d/kept")
    assert known.ref == sealed.ref
    await upload(cluster, store, sealed, b"abc")
    (mount,) = await cluster.stub.list_mounts()
    assert (mount.write, mount.read_only) == ("back", False)
    await cluster.close()


async def test_a_foreign_content_and_ours_are_both_kept(cluster: Cluster, store: MemoryUfs) -> None:
    entry = await create(cluster, "/data/a")
    sealed = await seal(cluster, entry.attr.inode, 4)
    store.put("a", b"somebody else's")
    with pytest.raises(errors.Conflict, match="plan"):
        # Nobody knows of an upload: what is there may be on its way to somewhere else.
        await cluster.changes.note_conflict(op(), sealed.ref.file_id)
    store.delete("a")
    await cluster.changes.plan_upload(sealed.ref.file_id)
    with pytest.raises(errors.Conflict, match="plan"):
        await cluster.changes.note_conflict(op(), sealed.ref.file_id)
    store.put("a", b"somebody else's")
    changed = await cluster.changes.note_conflict(op(), sealed.ref.file_id)
    assert changed.entry is not None
    assert changed.entry.name.startswith("a.conflict-2")
    path = f"/data/{changed.entry.name}"
    assert (await get(cluster, path)).attr.inode == entry.attr.inode
    async with asyncio.timeout(60):
        while (await cluster.stub.resolve_path("/data/a")).entry is None:
            await asyncio.sleep(0.01)
    assert (await get(cluster, "/data/a")).attr.size == 15
    assert (await cluster.changes.list_unpersisted("/data")).conflicts == (path,)
    report = await cluster.stub.report()
    assert (report.unpersisted_files, report.unpersisted_bytes) == (1, 4)
    assert any(path in warning for warning in report.warnings)
    await upload(cluster, store, sealed, b"ours")
    assert {key: store.get(key) for key in list_keys(store)} == {"a": b"somebody else's", path[6:]: b"ours"}
    await remove(cluster, path)
    assert (await cluster.changes.list_unpersisted("/data")).conflicts == ()


async def test_a_file_that_is_renamed_while_the_store_is_asked_is_not_set_aside(
    cluster: Cluster, store: MemoryUfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await create(cluster, "/data/a")
    sealed = await seal(cluster, entry.attr.inode, 4)
    await cluster.changes.plan_upload(sealed.ref.file_id)
    store.put("a", b"somebody else's")
    stat = WritableMemoryUfs.stat

    async def rename_and_stat(self: WritableMemoryUfs, key: str) -> StoreEntry:
        monkeypatch.undo()
        await rename(cluster, "/data/a", "/data/b")
        return await stat(self, key)

    monkeypatch.setattr(WritableMemoryUfs, "stat", rename_and_stat)
    with pytest.raises(errors.Conflict, match="plan"):
        await cluster.changes.note_conflict(op(), sealed.ref.file_id)
    await upload(cluster, store, sealed, b"ours")
    await wait_followed(cluster)
    assert {key: store.get(key) for key in list_keys(store)} == {"a": b"somebody else's", "b": b"ours"}


async def test_a_move_to_where_something_foreign_came_goes_beside_it(cluster: Cluster, store: MemoryUfs) -> None:
    await write(cluster, store, "/data/a", b"ours")
    store.fail("COPY", Fault(errors.StoreUnavailable("down")))
    store.put("b", b"somebody else's")
    await rename(cluster, "/data/a", "/data/b")
    await wait_followed(cluster)
    (path,) = (await cluster.changes.list_unpersisted("/data")).conflicts
    assert path.startswith("/data/b.conflict-2")
    await wait_followed(cluster)
    assert {key: store.get(key) for key in list_keys(store)} == {"b": b"somebody else's", path[6:]: b"ours"}


async def test_a_file_that_nobody_writes_to_is_put_as_it_is(
    cluster: Cluster, store: MemoryUfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alluxio_like.master.empty_files.EMPTY_AFTER_S", 0.05)
    await create(cluster, "/data/empty")
    async with asyncio.timeout(60):
        while "empty" not in list_keys(store):
            await asyncio.sleep(0.01)
    async with asyncio.timeout(60):
        while not ((ref := (await get(cluster, "/data/empty")).ref) and ref.is_stored):
            await asyncio.sleep(0.01)
    sealed = await seal(cluster, ref.inode, 4)
    plan = await cluster.changes.plan_upload(sealed.ref.file_id)
    assert plan.expected == ref.stored


async def test_an_empty_file_is_recorded_before_anybody_else_may_do_something_there(
    cluster: Cluster, store: MemoryUfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files swap places while one of them is just put: the other one is not to meet it there as something foreign."""
    monkeypatch.setattr("alluxio_like.master.empty_files.EMPTY_AFTER_S", 0.05)
    await write(cluster, store, "/data/there", b"there")
    swapped = asyncio.Event()
    put_empty = StoreFollower.put_empty

    async def put_and_swap(self: StoreFollower, key: str, inode: InodeId, expected: Fingerprint | None) -> Fingerprint | None:
        stored = await put_empty(self, key, inode, expected)
        if not swapped.is_set():
            await rename(cluster, "/data/there", "/data/new", exchange=True)
            swapped.set()
        return stored

    monkeypatch.setattr(StoreFollower, "put_empty", put_and_swap)
    await create(cluster, "/data/new")
    await swapped.wait()
    await wait_followed(cluster)
    assert {key: store.get(key) for key in list_keys(store)} == {"new": b"there", "there": b""}


async def test_a_move_is_not_begun_to_where_something_was_recorded_since_it_was_chosen(
    cluster: Cluster, store: MemoryUfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are chosen in a thread, by what was so as it began: the empty file that was put meanwhile goes from there first."""
    monkeypatch.setattr("alluxio_like.master.empty_files.EMPTY_AFTER_S", 0.05)
    await write(cluster, store, "/data/there", b"there")
    swapped, chosen, recorded = asyncio.Event(), threading.Event(), threading.Event()
    put_empty, list_ready, end_upload = StoreFollower.put_empty, following.list_ready, follower_module.Follower.end_upload

    async def put_and_swap(self: StoreFollower, key: str, inode: InodeId, expected: Fingerprint | None) -> Fingerprint | None:
        stored = await put_empty(self, key, inode, expected)
        if not swapped.is_set():
            await rename(cluster, "/data/there", "/data/new", exchange=True)
            swapped.set()
            assert await asyncio.to_thread(chosen.wait, 60)
        return stored

    def choose_late(*arguments: Any, **more: Any) -> list[following.Plan]:
        plans = list_ready(*arguments, **more)
        if not chosen.is_set() and any(plan.target == "new" for plan in plans):
            chosen.set()
            assert recorded.wait(60)
        return plans

    def note_recorded(self: follower_module.Follower, file_id: FileId) -> None:
        end_upload(self, file_id)
        if swapped.is_set():
            recorded.set()

    monkeypatch.setattr(StoreFollower, "put_empty", put_and_swap)
    monkeypatch.setattr(following, "list_ready", choose_late)
    monkeypatch.setattr(follower_module.Follower, "end_upload", note_recorded)
    await create(cluster, "/data/new")
    await swapped.wait()
    await wait_followed(cluster)
    assert {key: store.get(key) for key in list_keys(store)} == {"new": b"there", "there": b""}


async def test_an_upload_that_was_given_up_keeps_no_key(cluster: Cluster, store: MemoryUfs) -> None:
    """The store followed nothing at that key any more for an hour."""
    entry = await create(cluster, "/data/a")
    sealed = await seal(cluster, entry.attr.inode, 4)
    await cluster.changes.plan_upload(sealed.ref.file_id)
    await rename(cluster, "/data/a", "/data/b")
    await remove(cluster, "/data/b")
    await cluster.changes.end_upload(sealed.ref.file_id)
    await wait_followed(cluster)


async def test_what_is_not_wanted_any_more_keeps_its_key_until_it_is_ended(cluster: Cluster, store: MemoryUfs) -> None:
    """It may be there, and would be taken for foreign by what has its name by then."""
    before = await seal(cluster, (await create(cluster, "/data/a")).attr.inode, 4)
    await cluster.changes.plan_upload(before.ref.file_id)
    await remove(cluster, "/data/a")
    with pytest.raises(errors.Stale):
        await cluster.changes.plan_upload(before.ref.file_id)
    again = await seal(cluster, (await create(cluster, "/data/a")).attr.inode, 4)
    assert isinstance((await cluster.changes.plan_uploads([again.ref.file_id]))[0], errors.Unavailable)
    await cluster.changes.end_upload(before.ref.file_id)
    assert (await cluster.changes.plan_upload(again.ref.file_id)).key == "a"


@pytest.mark.parametrize("told", [True, False])
async def test_what_is_unexpectedly_there_after_a_start_may_be_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """An upload that the master before had planned arrives, of what a rename has replaced; and its worker tells the next one."""
    if not told:
        monkeypatch.setattr(follower_module, "HEARD_S", 0.5)
    cluster = Cluster(tmp_path / "home")
    cluster.is_written = True
    await cluster.start()
    store = await cluster.add_store(options={"write": "back"})
    replaced = await write(cluster, store, "/data/name", b"before")
    await write(cluster, store, "/data/new", b"after")
    sealed = await seal(cluster, replaced.attr.inode, 4)
    plan = await cluster.changes.plan_upload(sealed.ref.file_id)
    store.fail("COPY", errors.StoreUnavailable("down"), always=True)
    await rename(cluster, "/data/new", "/data/name")
    await cluster.stop_master()
    store.put("name", b"late")
    store.heal()
    await cluster.start()
    stored = store.lookup_fingerprint("name")
    assert stored is not None
    if told:
        async with asyncio.timeout(60):
            while "whether it is ours" not in (await cluster.changes.list_unpersisted("/data")).trouble:
                await asyncio.sleep(0.01)
        assert await cluster.changes.note_persisted([Persisted(sealed.ref.file_id, plan, stored)]) == [None]
    await wait_followed(cluster)
    assert store.get("name") == (b"after" if told else b"late")
    assert len((await cluster.changes.list_unpersisted("/data")).conflicts) == (0 if told else 1)
    assert list_keys(store) == {"name"} or not told
    await cluster.close()


async def test_an_empty_file_whose_master_was_killed_is_no_foreign_one(cluster: Cluster, store: MemoryUfs) -> None:
    entry = await create(cluster, "/data/a")
    ufs = WritableMemoryUfs(store)
    follower = StoreFollower(ufs, await ufs.get_capabilities(), cluster.master.cluster_id)
    empty = await follower.put_empty("a", entry.attr.inode, None)
    sealed = await seal(cluster, entry.attr.inode, 4)
    assert (await cluster.changes.plan_upload(sealed.ref.file_id)).expected is None
    with pytest.raises(errors.Conflict, match="plan"):
        await cluster.changes.note_conflict(op(), sealed.ref.file_id)
    assert (await cluster.changes.plan_upload(sealed.ref.file_id)).expected == empty
    await upload(cluster, store, sealed, b"data")
    assert list_keys(store) == {"a"}


async def test_a_seal_of_a_file_without_a_name_is_not_wanted(cluster: Cluster, store: MemoryUfs) -> None:
    entry = await create(cluster, "/data/a")
    gone = await remove(cluster, "/data/a")
    assert gone.entry is not None
    assert gone.entry.attr.nlink == 0
    assert (await seal(cluster, entry.attr.inode, 4)).unwanted
    with pytest.raises(errors.NotFound):
        await seal(cluster, InodeId(1 << 40), 4)


async def test_links_and_attributes(cluster: Cluster, store: MemoryUfs) -> None:
    target = await create(cluster, "/data/link", Kind.SYMLINK, target="some/where")
    assert target.attr.size == 10
    assert await cluster.changes.read_link(target.attr.inode) == "some/where"
    entry = await write(cluster, store, "/data/a")
    root = (await get(cluster, "/data")).attr.inode
    linked = await cluster.changes.link(op(), entry.attr.inode, root, "b")
    assert linked.entry is not None
    assert (linked.entry.name, linked.entry.attr.nlink) == ("b", 2)
    changed = await cluster.changes.set_attributes(op(), entry.attr.inode, NewAttributes(mode=0o600, mtime_ns=5))
    assert changed.entry is not None
    assert (changed.entry.attr.mode, changed.entry.attr.mtime_ns) == (0o600, 5)
    assert {name for recall in changed.recalls for name in recall.names} == {b"a", b"b"}
    await remove(cluster, "/data/a")
    await wait_followed(cluster)
    assert list_keys(store) == {"b"}


async def test_extended_attributes(cluster: Cluster, store: MemoryUfs) -> None:
    inode = (await create(cluster, "/data/a")).attr.inode
    await cluster.changes.set_xattr(op(), inode, XattrChange(b"user.x", b"1\0"))
    await cluster.changes.set_xattr(op(), inode, XattrChange(b"user.y", b""))
    assert await cluster.changes.get_xattrs(inode) == {b"user.x": b"1\0", b"user.y": b""}
    with pytest.raises(errors.AlreadyExists):
        await cluster.changes.set_xattr(op(), inode, XattrChange(b"user.x", b"", create=True))
    with pytest.raises(errors.NoData):
        await cluster.changes.set_xattr(op(), inode, XattrChange(b"user.z", b"", replace=True))
    with pytest.raises(errors.NameTooLong):
        await cluster.changes.set_xattr(op(), inode, XattrChange(b"user." + b"x" * 251, b""))
    with pytest.raises(errors.InvalidArgument):
        await cluster.changes.set_xattr(op(), inode, XattrChange(b"user.x", b"x" * 65_537))
    await cluster.changes.set_xattr(op(), inode, XattrChange(b"user.x", None))
    assert await cluster.changes.get_xattrs(inode) == {b"user.y": b""}


def make_list(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """An access control list: (tag, permissions) or (tag, permissions, id) each."""
    packed = (struct.pack("<HHI", entry[0], entry[1], entry[2] if len(entry) == 3 else 0xFFFFFFFF) for entry in entries)
    return struct.pack("<I", 2) + b"".join(packed)


FOR_USER_7 = make_list((1, 6), (2, 6, 7), (4, 0), (16, 6), (32, 0))


async def test_access_control_lists(cluster: Cluster, store: MemoryUfs) -> None:
    """(What they mean: tests/posix/test_lists.py.)"""
    entry = await create(cluster, "/data/a")
    assert not entry.attr.has_xattrs
    changed = await cluster.changes.set_xattr(op(), entry.attr.inode, XattrChange(acls.ACCESS, FOR_USER_7))
    assert changed.entry is not None
    assert (changed.entry.attr.mode, changed.entry.attr.has_xattrs) == (0o660, True)
    changed = await cluster.changes.set_attributes(op(), entry.attr.inode, NewAttributes(mode=0o640))
    masked = make_list((1, 6), (2, 6, 7), (4, 0), (16, 4), (32, 0))
    assert await cluster.changes.get_xattrs(entry.attr.inode) == {acls.ACCESS: masked}
    default = XattrChange(acls.DEFAULT, FOR_USER_7)
    with pytest.raises(errors.InvalidArgument):
        await cluster.changes.set_xattr(op(), entry.attr.inode, default)
    root = (await get(cluster, "/data")).attr.inode
    await cluster.changes.set_xattr(op(), root, default)
    made = (await cluster.changes.create(op(), NewName(root, "b", Kind.FILE, 0o600, 1, 2, asked_mode=0o666))).entry
    assert made is not None
    assert (made.attr.mode, made.attr.has_xattrs) == (0o660, True)
    # An earlier release of a client says what is left of the mode only.
    made = (await cluster.changes.create(op(), NewName(root, "c", Kind.FILE, 0o600, 1, 2))).entry
    assert made is not None
    assert made.attr.mode == 0o600


@pytest.mark.parametrize(
    "value",
    [
        b"",
        FOR_USER_7[:-1],
        b"\1" + FOR_USER_7[1:],
        make_list(),
        make_list((1, 6), (4, 6)),
        make_list((1, 6), (1, 6), (4, 6), (32, 6)),
        make_list((1, 6), (2, 6, 7), (4, 6), (32, 6)),
        make_list((4, 6), (1, 6), (32, 6)),
        make_list((1, 8), (4, 6), (32, 6)),
        make_list((1, 6), (3, 6), (4, 6), (32, 6)),
    ],
)
async def test_lists_that_are_none_are_refused(cluster: Cluster, store: MemoryUfs, value: bytes) -> None:
    entry = await create(cluster, "/data/a")
    with pytest.raises(errors.InvalidArgument):
        await cluster.changes.set_xattr(op(), entry.attr.inode, XattrChange(acls.ACCESS, value))
    assert not (await get(cluster, "/data/a")).attr.has_xattrs


async def test_what_replaces_a_file_keeps_its_access_control_list(cluster: Cluster, store: MemoryUfs) -> None:
    entry = await write(cluster, store, "/data/a")
    await cluster.changes.set_xattr(op(), entry.attr.inode, XattrChange(acls.ACCESS, FOR_USER_7))
    await cluster.changes.set_xattr(op(), entry.attr.inode, XattrChange(b"user.x", b"of the old content"))
    store.put("a", b"foreign")
    await cluster.stub.sync("/data", recursive=False)
    replaced = await get(cluster, "/data/a")
    assert replaced.attr.inode != entry.attr.inode
    assert replaced.attr.mode == 0o660
    assert await cluster.changes.get_xattrs(replaced.attr.inode) == {acls.ACCESS: FOR_USER_7}


async def test_policies(cluster: Cluster, store: MemoryUfs) -> None:
    with suppress(errors.AlreadyExists):
        await create(cluster, "/data/d", Kind.DIRECTORY)
    await create(cluster, "/data/d/deep", Kind.DIRECTORY)
    cache = WritePolicy(WriteMode.CACHE)
    assert (await cluster.changes.get_write_policy("/data/d")).set_at == "/data"
    at = await cluster.changes.set_write_policy(op(), "/data/d", cache)
    assert (at.policy, at.set_at) == (cache, "/data/d")
    assert (await cluster.changes.get_write_policy("/data/d/deep")).policy == cache
    (mount,) = await cluster.stub.list_mounts()
    assert (mount.write, mount.write_paths) == ("through", {"/data/d": "cache"})
    sealed = await seal(cluster, (await create(cluster, "/data/d/deep/x")).attr.inode, 9)
    assert sealed.policy == cache
    waiting = await cluster.changes.list_unpersisted("/data/d")
    assert (waiting.files, waiting.kept_files, waiting.kept_bytes) == (1, 1, 9)
    with pytest.raises(errors.InvalidArgument, match="needs 2 workers"):
        await cluster.changes.set_write_policy(op(), "/data/d", WritePolicy(WriteMode.BACK, 2))
    at = await cluster.changes.set_write_policy(op(), "/data/d", None)
    assert (at.policy, at.set_at) == (WritePolicy(), "/data")
    await cluster.changes.set_write_policy(op(), "/data", cache)
    (mount,) = await cluster.stub.list_mounts()
    assert (mount.write, mount.write_paths) == ("cache", {})


async def test_holders_are_asked_to_upload_what_is_only_cached(cluster: Cluster, store: MemoryUfs) -> None:
    worker = await cluster.add_worker("w1")
    await cluster.changes.set_write_policy(op(), "/data", WritePolicy(WriteMode.CACHE))
    await create(cluster, "/data/d", Kind.DIRECTORY)
    inodes = [(await create(cluster, f"/data/d/{number}")).attr.inode for number in range(3)]
    for inode in inodes:
        await seal(cluster, inode, 4)
    lost = await create(cluster, "/data/d/lost")
    await cluster.changes.seal(op(), SealedDraft(lost.attr.inode, 4, 77, "w9", 1))
    outside = await create(cluster, "/data/outside")
    await seal(cluster, outside.attr.inode, 4)
    found = await cluster.changes.persist("/data/d")
    assert (found.files, found.out_of_reach) == (3, 1)
    assert worker.persisted == inodes


async def test_what_cannot_be_written_is_refused_at_once(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="write policy"):
        await cluster.add_store(options={"write": "sometimes"})
    with pytest.raises(errors.InvalidArgument, match="needs 3 workers"):
        await cluster.add_store(options={"write": "back:3"})
    await cluster.add_store()
    with pytest.raises(errors.ReadOnly):
        await create(cluster, "/data/a")
    with pytest.raises(errors.ReadOnly):
        await cluster.changes.create(op(), NewName(InodeId(1), "other", Kind.FILE, 0o644, 0, 0))
    await cluster.stub.mount(MountSpec("/data", "", {"write": "cache"}, update=True, keep_others=True))
    await create(cluster, "/data/a")
    await cluster.stub.mount(MountSpec("/data", "", {"write": ""}, update=True, keep_others=True))
    with pytest.raises(errors.ReadOnly):
        await create(cluster, "/data/b")
    with pytest.raises(errors.Conflict, match="--force"):
        await cluster.stub.unmount("/data")
    await cluster.stub.unmount("/data", force=True)


async def test_a_store_that_is_only_read_is_not_mounted_to_be_written(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    await cluster.start()
    with pytest.raises(errors.Unsupported, match="only be read"):
        await cluster.add_store(options={"write": "through"})
    await cluster.close()


async def test_keys_fit_the_store(cluster: Cluster, store: MemoryUfs) -> None:
    path = "/data"
    for _ in range(4):
        path += "/" + "x" * 240
        await create(cluster, path, Kind.DIRECTORY)
    await create(cluster, path + "/" + "y" * 54)
    with pytest.raises(errors.NameTooLong, match="1019"):
        await create(cluster, path + "/" + "y" * 55)


async def test_names_fit_the_store(cluster: Cluster, store: MemoryUfs) -> None:
    await create(cluster, "/data/f")
    for kind in (Kind.FILE, Kind.DIRECTORY):
        with pytest.raises(errors.InvalidArgument, match="choose another name: keys are UTF-8"):
            await create(cluster, "/data/\udcff", kind)
    with pytest.raises(errors.InvalidArgument, match="choose another name"):
        await rename(cluster, "/data/f", "/data/\udcff")
    await rename(cluster, "/data/f", "/data/g")


async def test_an_upload_waits_for_what_the_store_has_to_follow_first(cluster: Cluster, store: MemoryUfs) -> None:
    await get(cluster, "/data")
    gate = asyncio.Event()
    store.fail("PUT", Fault(until=gate))
    await create(cluster, "/data/d", Kind.DIRECTORY)
    sealed = await seal(cluster, (await create(cluster, "/data/d/a")).attr.inode, 4)
    planning = asyncio.create_task(cluster.changes.plan_upload(sealed.ref.file_id))
    await asyncio.sleep(0.1)
    assert not planning.done()
    gate.set()
    plan = await planning
    assert plan.key == "d/a"
    assert FileId(sealed.ref.inode, sealed.ref.version) == sealed.ref.file_id


async def test_names_are_durable_soon_and_at_once_when_asked(
    cluster: Cluster, store: MemoryUfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store
    meta = cluster.master.meta
    flushes: list[float] = []
    store_flush = meta._store.flush

    def flush() -> None:
        flushes.append(time.monotonic())
        store_flush()

    async def settle() -> None:
        """What was written before is durable."""
        await wait_until(lambda: meta._soon is None and meta._next_flush is None and not meta._is_flushing, "the flush")
        flushes.clear()

    monkeypatch.setattr(meta._store, "flush", flush)
    await settle()
    root = (await cluster.stub.resolve_path("/data")).entry
    assert root is not None
    begun = time.monotonic()
    await cluster.changes.create("", NewName(root.attr.inode, "soon", Kind.DIRECTORY, 0o755, 0, 0))
    await wait_until(lambda: flushes, "the flush that comes by itself")
    assert flushes[0] - begun >= 0.04, "not at once"
    flushes.clear()
    keeper = LeaseKeeper(cluster._channel, lambda _: None, lambda _: None, None)  # type: ignore[arg-type]
    news = News(MetadataCache(time.monotonic), keeper, lambda _: None)
    client = Changes(ChangesStub(cluster._channel, timeout_s=5), news, make_nothing_pending())  # type: ignore[arg-type]
    await client.create(NewName(root.attr.inode, "now", Kind.DIRECTORY, 0o755, 0, 0))
    await client.flush()
    assert flushes
    await settle()
    await client.flush()
    assert not flushes, "nothing has changed since"


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    """One that holds a lease."""
    config = ClientConfig(master=cluster.master.address, token_file=Path(cluster.master.token_file))
    async with Client.open(config) as made:
        made.watch(lambda _: None)
        await wait_until(lambda: made._keeper.is_live() and made._keeper.session, "the lease")
        yield made


def count_asked(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the master from now on, beside changes."""
    asked: list[str] = []
    ask = client._ask

    async def note(*arguments: object) -> object:
        asked.append("asked")
        return await ask(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "_ask", note)
    return asked


async def test_who_makes_and_removes_names_asks_for_nothing_again(
    cluster: Cluster, store: MemoryUfs, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = (await client.get_path("/data")).attr.inode
    await client.lookup(top, "d")
    asked = count_asked(client, monkeypatch)
    made = (await client.changes.create(NewName(top, "d", Kind.DIRECTORY, 0o755, 0, 0))).entry
    assert made is not None
    assert (await client.lookup(top, "d")).entry == made
    assert (await client.get_entry(top)).entry is not None
    for name in ("a", "b"):
        assert (await client.lookup(made.attr.inode, name)).entry is None
        file = (await client.changes.create(NewName(made.attr.inode, name, Kind.FILE, 0o644, 0, 0))).entry
        assert file is not None
        assert (await client.lookup(made.attr.inode, name)).entry == file
        assert (await client.get_entry(file.attr.inode)).entry == file
        assert (await client.get_entry(made.attr.inode)).entry is not None
    await client.changes.rename(Renaming(made.attr.inode, "a", made.attr.inode, "c"))
    assert (await client.lookup(made.attr.inode, "a")).entry is None
    assert (await client.lookup(made.attr.inode, "c")).entry is not None
    for name in ("b", "c"):
        await client.changes.remove(made.attr.inode, name, directory=False)
        assert (await client.lookup(made.attr.inode, name)).entry is None
        shown = (await client.get_entry(made.attr.inode)).entry
        assert shown == (await cluster.stub.get_entry(made.attr.inode)).entry, "with the times of now"
    await client.changes.remove(top, "d", directory=True)
    assert (await client.lookup(top, "d")).entry is None
    assert not asked
    # What others change is told as before.
    await create(cluster, "/data/d")
    assert (await client.lookup(top, "d")).entry is not None


async def test_a_seal_is_told_by_its_answer_to_who_asked_for_it_and_to_others_by_a_recall(
    cluster: Cluster, store: MemoryUfs, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await create(cluster, "/data/f")
    inode = file.attr.inode
    top = (await client.get_path("/data")).attr.inode
    assert (await client.lookup(top, "f")).entry == file
    recalled: list[Recall] = []
    monkeypatch.setattr(client._keeper, "_listener", recalled.extend)
    asked = count_asked(client, monkeypatch)
    for size in range(2, 40):
        # (More often than a directory may be recalled before its lease is withheld.)
        begun = client._news.begin()
        draft = SealedDraft(inode, size, 77, "w1", 1, client._news.lease)
        sealed = await cluster.changes.seal(op(), draft)
        client._news.take(sealed.recalls, sealed.told, begun)
        known = (await client.get_entry(inode)).entry
        assert known is not None
        assert (known.attr.size, known.ref) == (size, sealed.ref)
        assert (await client.lookup(top, "f")).entry == known
    assert not asked
    assert not recalled
    sealed = await seal(cluster, inode, 99)
    assert not sealed.recalls
    assert recalled, "nobody said whose it was"
    known = (await client.get_entry(inode)).entry
    assert known is not None
    assert known.attr.size == 99
    # An answer that does not come makes it doubtful.
    asked.clear()
    client._news.doubt(inode)
    await client.get_entry(inode)
    await client.lookup(top, "f")
    assert asked


@pytest.mark.parametrize("error", [errors.TimedOut("late"), errors.Unavailable("away")])
async def test_a_change_whose_answer_is_lost_makes_its_names_doubtful(
    cluster: Cluster, store: MemoryUfs, client: Client, monkeypatch: pytest.MonkeyPatch, error: errors.AlluxioLikeError
) -> None:
    await create(cluster, "/data/old")
    top = (await client.get_path("/data")).attr.inode
    assert (await client.lookup(top, "new")).entry is None
    assert (await client.lookup(top, "old")).entry is not None
    rename_there = client.changes._stub.rename

    async def lose_answer(*arguments: Any) -> Any:
        await rename_there(*arguments)
        raise error

    monkeypatch.setattr(client.changes._stub, "rename", lose_answer)
    with pytest.raises(type(error)):
        await client.changes.rename(Renaming(top, "old", top, "new"))
    assert (await client.lookup(top, "old")).entry is None
    assert (await client.lookup(top, "new")).entry is not None
