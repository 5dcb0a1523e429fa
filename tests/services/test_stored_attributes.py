"""Owner, mode and time from objects' metadata (-o attrs=object): which files a store is asked for, and what happens when it does
not say."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.rpc.messages import MountSpec
from alluxio_like.types import Attr
from alluxio_like.ufs.memory import Fault, MemoryUfs
from tests.unit.master_parts import Cluster, wait_until

URI = "s3://bucket/data"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "home", io_timeout_s=2.0)
    made.is_written = True
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def store(cluster: Cluster) -> MemoryUfs:
    return await cluster.add_store(options={"attrs": "object"})


def put(store: MemoryUfs, key: str, mode: int = 0o600, uid: int = 1000) -> None:
    store.put(key, b"x", {"mode": str(stat.S_IFREG | mode), "uid": str(uid), "gid": "2000", "mtime": "1600000000.5"})


async def get(cluster: Cluster, path: str, *, sync: bool = False) -> Attr:
    entry = (await cluster.stub.resolve_path(path, sync=sync)).entry
    assert entry is not None, path
    return entry.attr


async def test_each_content_is_asked_for_once(cluster: Cluster, store: MemoryUfs) -> None:
    for number in range(450):
        put(store, f"a/{number:03}", 0o600, number)
    store.put("a/plain", b"x")
    put(store, "a/sub/deeper")
    assert await get(cluster, "/data/a/007")
    for number in (0, 199, 200, 449):
        attr = await get(cluster, f"/data/a/{number:03}")
        assert (attr.mode, attr.uid, attr.gid, attr.mtime_ns) == (0o600, number, 2000, 1_600_000_000_500_000_000)
    attr, directory = await get(cluster, "/data/a/plain"), await get(cluster, "/data/a/sub")
    assert (attr.mode, attr.uid, directory.mode) == (0o644, directory.uid, 0o755)
    assert attr.mtime_ns > 1_600_000_001_000_000_000
    assert store.count_requests()["HEAD"] == 451
    put(store, "a/300", 0o640, 7)
    attr = await get(cluster, "/data/a/300", sync=True)
    assert (attr.mode, attr.uid) == (0o640, 7)
    assert store.count_requests()["HEAD"] == 452
    # What the new content does not say is carried over.
    store.put("a/300", b"y")
    attr = await get(cluster, "/data/a/300", sync=True)
    assert (attr.mode, attr.uid, attr.gid) == (0o640, 7, 2000)


async def test_some_are_asked_for_at_once_and_not_more(cluster: Cluster, store: MemoryUfs) -> None:
    for number in range(40):
        put(store, f"{number:02}")
    gate = asyncio.Event()
    store.fail("HEAD", Fault(until=gate), always=True)
    looking = asyncio.create_task(get(cluster, "/data/07"))
    await wait_until(lambda: store.count_requests()["HEAD"] == 16, "sixteen requests")
    await asyncio.sleep(0.1)
    assert store.count_requests()["HEAD"] == 16
    gate.set()
    assert (await looking).uid == 1000


async def test_a_mount_that_does_not_want_them_asks_for_none(cluster: Cluster) -> None:
    store = await cluster.add_store()
    put(store, "f")
    assert (await get(cluster, "/data/f")).mode == 0o644
    assert "HEAD" not in store.count_requests()


async def test_what_the_store_does_not_say_is_as_the_mount_says(cluster: Cluster, store: MemoryUfs) -> None:
    put(store, "f")
    store.fail("HEAD", errors.StoreDenied("no"), always=True)
    assert (await get(cluster, "/data/f")).mode == 0o644


async def test_while_the_store_does_not_answer_nothing_is_shown_as_everybodys(cluster: Cluster, store: MemoryUfs) -> None:
    for number in range(100):
        put(store, f"{number:02}")
    store.fail("HEAD", errors.StoreUnavailable("down"), always=True)
    with pytest.raises(errors.StoreUnavailable):
        await get(cluster, "/data/99")
    assert store.count_requests()["HEAD"] < 16 * 16
    store.heal()

    async def is_back() -> bool:
        try:
            return (await get(cluster, "/data/99")).mode == 0o600
        except errors.StoreUnavailable:
            return False

    async with asyncio.timeout(60):
        while not await is_back():
            await asyncio.sleep(0.05)


async def test_a_tree_is_listed_with_them(cluster: Cluster, store: MemoryUfs) -> None:
    for number in range(60):
        put(store, f"d{number:02}/f", 0o640)
    await cluster.stub.sync("/data", recursive=True)
    assert {(await get(cluster, f"/data/d{number:02}/f")).mode for number in range(60)} == {0o640}


async def test_they_stay_as_long_as_the_mount(cluster: Cluster, store: MemoryUfs) -> None:
    with pytest.raises(errors.Conflict, match="attrs"):
        await cluster.stub.mount(MountSpec("/data", URI, options={"attrs": "mount"}, update=True, keep_others=True))
    assert store is cluster.stores[URI]
    with pytest.raises(errors.ConfigError, match="no option attrs"):
        await cluster.stub.mount(MountSpec("/dir", "file:///tmp", options={"attrs": "object"}))
