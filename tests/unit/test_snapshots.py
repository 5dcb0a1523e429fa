"""Snapshots through a real master: made of a store's tree, read while it goes on changing, compared, deleted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.client.client import Client
from alluxio_like.config import ClientConfig
from alluxio_like.master import snapshots as service
from alluxio_like.master import tree as master_tree
from alluxio_like.rpc.messages import JobState, SyncResult, TreePage
from alluxio_like.rpc.messages_writing import NewName, Renaming, XattrChange
from alluxio_like.rpc.snapshots import OldVersions
from alluxio_like.types import SNAPSHOT_SHIFT, Kind
from alluxio_like.ufs.memory import MemoryUfs
from tests.model.checked import list_paths, unpack
from tests.unit.master_parts import Cluster, wait_until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "home")
    made.is_written = True
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    async with Client.open(ClientConfig(master=cluster.master.address, token_file=Path(cluster.master.token_file))) as made:
        yield made


async def list_names(client: Client, path: str) -> list[str]:
    entry = await client.get_path(path)
    return sorted([one.name async for one in client.iter_dir(entry.attr.inode)])


async def test_a_snapshot_stays_as_it_was(cluster: Cluster, client: Client) -> None:
    store = await cluster.add_store(options={"write": "through"})
    for key in ("a", "b", "d/x", "d/e/y"):
        store.put(key, key.encode())
    await client.sync_path("/data", recursive=True)
    before = await client.get_path("/data/a")
    made = await client.create_snapshot("/data", "monday", operation_id="one")
    assert (made.path, made.name, made.unlisted) == ("/data", "monday", 0)
    assert await client.create_snapshot("/data", "monday", operation_id="one") == made
    with pytest.raises(errors.AlreadyExists, match="another name"):
        await client.create_snapshot("/data", "monday", operation_id="two")

    store.put("a", b"longer than before")
    store.delete("b")
    store.put("d/new", b"n")
    await client.sync_path("/data", recursive=True)
    tree = await client.get_path("/data")
    directory = await client.get_path("/data/d")
    await cluster.changes.create("three", NewName(tree.attr.inode, "made", Kind.DIRECTORY, 0o755, 0, 0))
    await cluster.changes.rename("four", Renaming(tree.attr.inode, "d", tree.attr.inode, "moved"))

    frozen = "/data/.snapshots/monday"
    assert await list_names(client, "/data/.snapshots") == ["monday"]
    assert await list_names(client, frozen) == ["a", "b", "d"]
    assert await list_names(client, f"{frozen}/d") == ["e", "x"]
    assert await list_names(client, f"{frozen}/d/e") == ["y"]
    assert await list_names(client, "/data") == ["a", "made", "moved"]
    old = await client.get_path(f"{frozen}/a")
    assert old.attr.size == 1
    assert before.ref is not None
    assert old.ref == replace(before.ref, frozen=True)
    assert old.attr.inode >> SNAPSHOT_SHIFT
    assert (await client.get_entry(old.attr.inode)).entry == old
    moved = await client.get_path(f"{frozen}/d/x")
    assert moved.ref is not None
    assert moved.ref.inode == (await client.get_path("/data/moved/x")).attr.inode, "cached bytes are shared"

    # Nothing of it can be changed.
    root = await client.get_path(frozen)
    for parent in (root.attr.inode, (await client.get_path("/data/.snapshots")).attr.inode):
        with pytest.raises(errors.ReadOnly, match="frozen"):
            await cluster.changes.create("", NewName(parent, "x", Kind.FILE, 0o644, 0, 0))
        with pytest.raises(errors.ReadOnly):
            await cluster.changes.remove("", parent, "a", directory=False)
    with pytest.raises(errors.ReadOnly):
        await cluster.changes.rename("", Renaming(root.attr.inode, "a", directory.attr.inode, "a"))
    with pytest.raises(errors.ReadOnly):
        await client.create_snapshot(frozen, "again", operation_id="")


async def test_the_folder_is_found_beside_what_a_listing_showed(cluster: Cluster, client: Client) -> None:
    store = await cluster.add_store()
    store.put("a", b"1")
    client.watch()
    await wait_until(lambda: client._keeper.session, "a lease")
    tree = (await client.get_path("/data")).attr.inode
    assert await list_names(client, "/data") == ["a"]
    assert (await client.lookup(tree, "b")).entry is None
    assert (await client.lookup(tree, ".snapshots")).entry is None
    await client.create_snapshot("/data", "one", operation_id="one")
    found = (await client.lookup(tree, ".snapshots")).entry
    assert found is not None
    assert await list_names(client, "/data") == ["a"]
    # Also when what was said of it is over, and the listing is not.
    await asyncio.sleep(1.2)
    assert client.lookup_known(tree, "b") is not None
    assert (await client.lookup(tree, ".snapshots")).entry == found


async def test_what_is_other_since(cluster: Cluster, client: Client) -> None:
    store = await cluster.add_store()
    for key in ("same", "gone", "grows", "d/gone too"):
        store.put(key, key.encode())
    await client.sync_path("/data", recursive=True)
    await client.create_snapshot("/data", "one", operation_id="one")
    assert not [part async for part in client.diff_snapshots("/data", "one")]
    store.delete("gone")
    store.delete("d/gone too")
    store.put("grows", b"grows and grows")
    store.put("new/x", b"1")
    await client.sync_path("/data", recursive=True)
    await client.create_snapshot("/data", "two", operation_id="two")
    wanted = {
        "gone": ("removed", 4),
        "d": ("removed", 0),
        "d/gone too": ("removed", 10),
        "grows": ("changed", 15),
        "new": ("added", 0),
        "new/x": ("added", 1),
    }
    for other in ("", "two"):
        found = [one async for part in client.diff_snapshots("/data", "one", other) for one in part]
        assert {one.path: (one.what, one.size) for one in found} == wanted
    with pytest.raises(errors.NotFound, match="snapshot list"):
        [part async for part in client.diff_snapshots("/data", "one", "three")]


async def test_deleted_ones_are_gone_and_leave_nothing(cluster: Cluster, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_COLLECT_PAUSE_S", 0.0)
    store = await cluster.add_store()
    store.put("a", b"1")
    await client.sync_path("/data", recursive=True)
    for name in ("one", "two"):
        await client.create_snapshot("/data", name, operation_id=name)
        store.put("a", name.encode())
        store.put(name, b"1")
        await client.sync_path("/data", recursive=True)
    seen = await client.get_path("/data/.snapshots/one/a")
    assert [one.name for one in await client.list_snapshots("/data")] == ["one", "two"]
    assert [one.path for one in await client.list_snapshots()] == ["/data", "/data"]
    await client.delete_snapshot("/data", "two", operation_id="delete two")
    assert await list_names(client, "/data/.snapshots/one") == ["a"]
    await client.delete_snapshot("/data", "one", operation_id="delete one")
    with pytest.raises(errors.NotFound):
        await client.delete_snapshot("/data", "one", operation_id="")
    with pytest.raises(errors.NotFound):
        await cluster.stub.get_entry(seen.attr.inode)

    def count_kept() -> int:
        with cluster.master.meta.read() as txn:
            return sum(1 for _ in txn.scan(b"U", b"V")) + sum(1 for _ in txn.scan(b"B", b"C"))

    await wait_until(lambda: count_kept() == 0, "what was kept to go")


async def test_they_live_through_a_restart_and_so_does_collecting(cluster: Cluster, client: Client) -> None:
    store = await cluster.add_store()
    store.put("a", b"1")
    await client.sync_path("/data", recursive=True)
    await client.create_snapshot("/data", "one", operation_id="one")
    address = cluster.master.address
    await cluster.close()
    await cluster.start(address)
    store.put("a", b"22")
    await client.sync_path("/data", recursive=True)
    assert (await client.get_path("/data/.snapshots/one/a")).attr.size == 1
    assert (await client.get_path("/data/a")).attr.size == 2
    await asyncio.sleep(0)


async def test_symbolic_links_and_attributes_of_programs_are_those_of_then(cluster: Cluster, client: Client) -> None:
    await cluster.add_store(options={"write": "through"})
    tree = (await client.get_path("/data")).attr.inode
    made = (await cluster.changes.create("", NewName(tree, "link", Kind.SYMLINK, 0o777, 0, 0, "somewhere"))).entry
    assert made is not None
    await cluster.changes.set_xattr("", made.attr.inode, XattrChange(b"trusted.a", b"1"))
    await client.create_snapshot("/data", "one", operation_id="one")
    await cluster.changes.set_xattr("", made.attr.inode, XattrChange(b"trusted.a", b"2"))
    await cluster.changes.remove("", tree, "link", directory=False)
    frozen = await client.get_path("/data/.snapshots/one/link")
    assert await cluster.changes.read_link(frozen.attr.inode) == "somewhere"
    assert await cluster.changes.get_xattrs(frozen.attr.inode) == {b"trusted.a": b"1"}
    with pytest.raises(errors.ReadOnly):
        await cluster.changes.set_xattr("", frozen.attr.inode, XattrChange(b"trusted.a", b"3"))


async def test_a_load_of_it_brings_what_was_there_then(cluster: Cluster, client: Client) -> None:
    store = await cluster.add_store()
    for key in ("a", "b", "d/x", "d/e/y"):
        store.put(key, key.encode())
    await client.sync_path("/data", recursive=True)
    await client.create_snapshot("/data", "one", operation_id="one")
    for key in ("a", "d/x", "d/e/y"):
        store.delete(key)
    store.put("new", b"new")
    await client.sync_path("/data", recursive=True)
    worker = await cluster.add_worker("w")
    # Neither the store's listing nor the tree of today has any part in it.
    lists = store.count_requests()["LIST"]
    for target, keys in (
        ("/data/.snapshots/one/d/e", ["d/e/y"]),
        ("/data/.snapshots/one/b", ["b"]),
        ("/data/.snapshots", ["a", "b", "d/e/y", "d/x"]),
    ):
        worker.loads.clear()
        worker.cached.clear()
        job = await cluster.load(target)
        assert (job.state, job.done_files, job.problems) == (JobState.DONE, len(keys), ()), target
        loaded = [one.ref for one, _ in worker.loads]
        assert sorted(ref.key for ref in loaded) == keys
        assert all(ref.frozen for ref in loaded)
    assert store.count_requests()["LIST"] == lists


async def test_what_is_cached_of_it_is_told_and_dropped(cluster: Cluster, client: Client) -> None:
    store = await cluster.add_store()
    for key in ("a", "b", "d/x"):
        store.put(key, key.encode())
    await client.sync_path("/data", recursive=True)
    await client.create_snapshot("/data", "one", operation_id="one")
    await cluster.add_worker("w")
    store.delete("d/x")
    # A path that leads through that name is a snapshot's, whatever the store has of that name.
    store.put(".snapshots/one/hidden", b"h")
    await client.sync_path("/data", recursive=True)
    frozen = "/data/.snapshots/one"
    await cluster.load(f"{frozen}/d")
    await cluster.load(f"{frozen}/a")

    async def count(path: str) -> tuple[int, int, bool]:
        found = await client.get_cache_status(path)
        return found.files, found.cached_files, found.complete

    assert [await count(path) for path in (frozen, f"{frozen}/d", f"{frozen}/b", "/data/.snapshots", "/data")] == [
        (3, 2, True),
        (1, 1, True),
        (1, 0, True),
        (3, 2, True),
        (3, 1, True),
    ]
    assert await client.sync_path(frozen, recursive=True) == SyncResult()
    with pytest.raises(errors.InvalidArgument, match="pin that"):
        await client.set_pinned(frozen, pinned=True)
    for ask in (
        client.changes.list_unpersisted,
        client.changes.persist,
        client.get_sync_interval,
        client.changes.get_write_policy,
    ):
        with pytest.raises(errors.InvalidArgument, match="is frozen"):
            await ask(frozen)
    with pytest.raises(errors.InvalidArgument, match="is frozen"):
        await cluster.add_store(f"{frozen}/inside", "s3://bucket/other")
    assert (await client.free(frozen)).files == 2
    assert [await count(path) for path in (frozen, "/data")] == [(3, 0, True), (3, 0, True)]


class _Told:
    """A store that says whether it keeps old versions, or why it does not say."""

    def __init__(self, store: MemoryUfs, told: bool | Exception) -> None:
        self._store = store
        self._told = told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def keeps_versions(self) -> bool:
        if isinstance(self._told, Exception):
            raise self._told
        return self._told

    def read_kept(self, *_: Any) -> Any:
        raise NotImplementedError


async def test_it_says_what_the_stores_below_keep(cluster: Cluster, client: Client) -> None:
    told: dict[str, bool | Exception] = {"s3://yes": True, "s3://no": False, "s3://denied": errors.StoreDenied("no")}
    for path, uri in (
        ("/in/yes", "s3://yes"),
        ("/in/no", "s3://no"),
        ("/in/denied", "s3://denied"),
        ("/in/no/plain", "s3://plain"),
    ):
        await cluster.add_store(path, uri)
    mounts = cluster.master.mounts
    for info in mounts.list_mounts():
        if info.uri in told:
            store = mounts.get_ufs(info.mount_id)
            mounts._open[info.mount_id] = _Told(store, told[info.uri])  # type: ignore[arg-type,assignment]
    wanted = {"/in/yes": "yes", "/in/denied": "unknown", "/in/no": "no", "/in": "unknown"}
    for path, says in wanted.items():
        assert (await client.create_snapshot(path, "one", operation_id=path)).old_versions == says
    assert {one.path: one.old_versions for one in await client.list_snapshots()} == wanted
    told_all = [OldVersions.YES, OldVersions.NO]
    assert service._sum_up(told_all) is OldVersions.PARTLY
    assert service._sum_up([]) is OldVersions.NO


async def walk_names(client: Client, path: str) -> dict[str, int]:
    """The paths below a directory with their inodes, directory by directory."""
    found = {}
    entry = await client.get_path(path)
    async for one in client.iter_dir(entry.attr.inode):
        below = f"{path}/{one.name}"
        found[below] = one.attr.inode
        if one.attr.kind is Kind.DIRECTORY:
            found |= await walk_names(client, below)
    return found


@pytest.mark.parametrize("page", [3, 7, 10_000])
async def test_a_snapshots_tree_is_listed_as_columns(
    cluster: Cluster, client: Client, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(master_tree, "PAGE_ENTRIES", page)
    store = await cluster.add_store(options={"write": "through"})
    keys = [f"d{number % 4}/{'e/' * (number % 2)}{number:03}" for number in range(60)] + ["a", "b"]
    for key in keys:
        store.put(key, key.encode())
    await client.sync_path("/data", recursive=True)
    await client.create_snapshot("/data", "one", operation_id="one")
    frozen = "/data/.snapshots/one"
    expected = await walk_names(client, frozen)
    assert set(expected) > {f"{frozen}/{key}" for key in keys}
    for key in keys[::3]:
        store.delete(key)
    store.put("d0/new", b"n")
    await client.sync_path("/data", recursive=True)

    async def list_tree(path: str, unless: int = 0) -> tuple[dict[str, int], TreePage]:
        found: dict[str, int] = {}
        async with aclosing(cluster.stub.list_tree(path, unless)) as pages:
            async for one in pages:
                assert len(one.columns) <= page
                paths, inodes = list_paths(one.columns), unpack(one.columns.inodes, "<u8")
                assert not set(paths) & set(found)
                found |= dict(zip(paths, inodes, strict=True))
        return found, one

    found, last = await list_tree(frozen)
    assert found == expected
    assert (await list_tree(f"{frozen}/d1"))[0] == {
        path: ino for path, ino in expected.items() if path.startswith(f"{frozen}/d1/")
    }
    assert (await list_tree("/data"))[0].keys() == (await walk_names(client, "/data")).keys()
    # It never changes, whatever else does.
    again, unchanged = await list_tree(frozen, last.mark)
    assert (again, unchanged.unchanged, unchanged.mark) == ({}, True, last.mark)
    with pytest.raises(errors.InvalidArgument, match="one of the snapshots"):
        await list_tree("/data/.snapshots")
    master = cluster.master
    lister = master_tree.TreeLister(master.meta, master.lister, master.surveyor, clock=master.lister._clock)
    pages = lister.list_tree(frozen, 0)
    first = len((await anext(pages)).columns)
    await client.delete_snapshot("/data", "one", operation_id="two")
    if first < len(expected):
        with pytest.raises(errors.NotFound):
            async for _ in pages:
                pass
    with pytest.raises(errors.NotFound):
        await list_tree(frozen, last.mark)
