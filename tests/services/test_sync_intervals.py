"""How long listings are believed: for each mount, and for each directory below one that has an interval of its own."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.master.core.mounts import MAX_INTERVALS, find_setting
from alluxio_like.rpc.messages import SyncInterval
from alluxio_like.ufs.memory import MemoryUfs
from tests.unit.master_parts import Cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "home")
    await made.start()
    yield made
    await made.close()


async def is_there(cluster: Cluster, path: str) -> bool:
    return (await cluster.stub.resolve_path(path)).entry is not None


async def wait_there(cluster: Cluster, path: str) -> None:
    async with asyncio.timeout(60):
        while not await is_there(cluster, path):
            await asyncio.sleep(0.01)


async def make_known(cluster: Cluster, store: MemoryUfs, *directories: str) -> None:
    for directory in directories:
        store.put(f"{directory}/old", b"x")
    for directory in directories:
        assert await is_there(cluster, f"/data/{directory}/old")


async def test_a_directorys_interval_holds_below_it_and_nowhere_else(cluster: Cluster) -> None:
    store = await cluster.add_store()
    await make_known(cluster, store, "live/deep/er", "live/frozen/x", "liver", "still")
    assert await cluster.stub.get_sync_interval("/data/live") == SyncInterval(300.0, "")
    assert await cluster.stub.set_sync_interval("/data/live", 0.05) == SyncInterval(0.05, "/data/live")
    assert await cluster.stub.set_sync_interval("/data/live/frozen", -1.0) == SyncInterval(-1.0, "/data/live/frozen")
    assert await cluster.stub.get_sync_interval("/data/live/deep/er") == SyncInterval(0.05, "/data/live")
    assert await cluster.stub.get_sync_interval("/data/live/frozen/x") == SyncInterval(-1.0, "/data/live/frozen")
    assert await cluster.stub.get_sync_interval("/data/liver") == SyncInterval(300.0, "")
    (mount,) = await cluster.stub.list_mounts()
    assert mount.sync_paths == {"/data/live": 0.05, "/data/live/frozen": -1.0}
    for directory in ("live/deep/er", "live/frozen/x", "liver", "still"):
        store.put(f"{directory}/new", b"x")
    await wait_there(cluster, "/data/live/deep/er/new")
    for directory in ("live/frozen/x", "liver", "still"):
        assert not await is_there(cluster, f"/data/{directory}/new"), directory


async def test_it_survives_a_restart_an_update_and_the_directorys_going(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    await cluster.start()
    try:
        store = await cluster.add_store()
        await make_known(cluster, store, "a", "b/c")
        await cluster.stub.set_sync_interval("/data/b", 0.05)
        await cluster.stub.set_sync_interval("/data", 77.0)
        await cluster.stop_master()
        await cluster.start()
        assert await cluster.stub.get_sync_interval("/data/b/c") == SyncInterval(0.05, "/data/b")
        assert await cluster.stub.get_sync_interval("/data/a") == SyncInterval(77.0, "/data")
        store.delete("b/c/old")
        await cluster.stub.sync("/data", recursive=True)
        assert not await is_there(cluster, "/data/b")
        assert (await cluster.stub.list_mounts())[0].sync_paths == {"/data/b": 0.05}
        store.put("b/c/back", b"x")
        await cluster.stub.sync("/data")
        assert await is_there(cluster, "/data/b/c/back")
        store.put("b/c/new", b"x")
        await wait_there(cluster, "/data/b/c/new")
        # Taken away again: what holds above it holds.
        assert await cluster.stub.set_sync_interval("/data/b", 0.0) == SyncInterval(77.0, "/data")
        assert await cluster.stub.set_sync_interval("/data", 0.0) == SyncInterval(300.0, "")
        assert (await cluster.stub.list_mounts())[0].sync_paths == {}
        # With the mount it goes.
        await cluster.stub.set_sync_interval("/data/b", 5.0)
        await cluster.stub.unmount("/data")
        await cluster.add_store()
        assert (await cluster.stub.list_mounts())[0].sync_paths == {}
    finally:
        await cluster.close()


async def test_answers_that_were_given_for_longer_are_taken_back(cluster: Cluster) -> None:
    store = await cluster.add_store()
    await make_known(cluster, store, "a")
    directory = (await cluster.stub.resolve_path("/data/a")).entry
    assert directory is not None
    assert (await cluster.stub.lookup(directory.attr.inode, "old")).valid_s > 5
    await cluster.stub.set_sync_interval("/data/a", 0.5)
    assert (await cluster.stub.lookup(directory.attr.inode, "old")).valid_s <= 0.5


async def test_wrong_places_are_refused_in_words(cluster: Cluster) -> None:
    store = await cluster.add_store()
    await make_known(cluster, store, "a")
    with pytest.raises(errors.NotFound, match="no such directory"):
        await cluster.stub.set_sync_interval("/data/nothing", 1.0)
    with pytest.raises(errors.NotADirectory, match="the one that the file is in"):
        await cluster.stub.set_sync_interval("/data/a/old", 1.0)
    with pytest.raises(errors.InvalidArgument, match="no store is mounted there"):
        await cluster.stub.set_sync_interval("/", 1.0)
    for number in range(MAX_INTERVALS + 1):
        store.put(f"many/{number}/x", b"x")
    mounts, lister = cluster.master.jobs._mounts, cluster.master.jobs._lister
    await cluster.stub.sync("/data", recursive=True)
    for number in range(MAX_INTERVALS):
        entry = (await lister.resolve_path(f"/data/many/{number}")).entry
        assert entry is not None
        await mounts.set_sync_interval(entry.attr.inode, 1.0)
    with pytest.raises(errors.InvalidArgument, match="at most"):
        await cluster.stub.set_sync_interval(f"/data/many/{MAX_INTERVALS}", 1.0)


async def test_a_directory_that_is_gone_from_the_store_is_gone_after_a_sync(cluster: Cluster) -> None:
    store = await cluster.add_store()
    await make_known(cluster, store, "a/b", "c")
    store.delete("a/b/old")
    changes = await cluster.stub.sync("/data/a/b")
    assert changes.removed == 2  # the file, and the directory
    assert not await is_there(cluster, "/data/a/b")
    with pytest.raises(errors.NotFound, match="neither known nor in the store"):
        await cluster.stub.sync("/data/a/b")


def test_the_closest_setting_holds() -> None:
    settings = {"a/": 1.0, "a/b/c/": 2.0, "/": 3.0}
    for prefix, where in {
        "": None, "a/": "a/", "a/b/": "a/", "a/b/c/": "a/b/c/", "a/b/c/d/": "a/b/c/", "ab/": None, "a/b/cd/": "a/", "//": "/",
    }.items():  # fmt: skip
        assert find_setting(settings, prefix) == where, prefix
