"""Quotas, room and the trash through a real master: as commands and mounts ask for them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.client.client import Client
from alluxio_like.config import ClientConfig
from alluxio_like.master import spaces
from alluxio_like.rpc.messages_writing import NewName, SealedDraft, WritePolicy
from alluxio_like.rpc.quotas import Claimed, Quota
from alluxio_like.types import InodeId, Kind, Space
from tests.unit import master_parts
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


async def make(cluster: Cluster, parent: InodeId, name: str, kind: Kind = Kind.FILE, size: int = 0) -> InodeId:
    entry = (await cluster.changes.create(f"create {name}", NewName(parent, name, kind, 0o644, 0, 0))).entry
    assert entry is not None
    if size:
        await cluster.changes.seal(f"seal {name}", SealedDraft(entry.attr.inode, size, 5, "w1", 1))
    return entry.attr.inode


async def wait_counted(client: Client, path: str) -> Quota:
    async with asyncio.timeout(60):
        while True:
            found = await client.quotas.list_quotas(path)
            if not any(one.counting for one in found):
                return found[-1]
            await asyncio.sleep(0.01)


async def test_quotas_are_set_seen_kept_and_cleared(cluster: Cluster, client: Client) -> None:
    await cluster.add_store(options={"write": "through"})
    root = (await client.get_path("/data")).attr.inode
    top = await make(cluster, root, "top", Kind.DIRECTORY)
    file = await make(cluster, top, "file", size=50)
    assert await client.quotas.claim(file, 100) == Claimed(None, has_quotas=False)
    await client.quotas.set_quota("/data/top", 80, 10)
    assert await wait_counted(client, "/data/top") == Quota("/data/top", 80, 10, 50, 1)
    assert await client.quotas.claim(file, 100, only_asks=True) == Claimed(80)
    assert await client.quotas.claim(file, 70) == Claimed(70)
    other = await make(cluster, top, "other")
    assert await client.quotas.claim(other, 30) == Claimed(10)
    # What is sealed is counted, and not claimed any more.
    sealed = await cluster.changes.seal("again", SealedDraft(file, 60, 5, "w1", 2))
    assert not sealed.over_quota
    assert await client.quotas.claim(other, 30) == Claimed(20)
    sealed = await cluster.changes.seal("more", SealedDraft(other, 30, 5, "w1", 1))
    assert sealed.over_quota
    repeated = await cluster.changes.seal("more", SealedDraft(other, 30, 5, "w1", 1))
    assert repeated.over_quota
    with pytest.raises(errors.QuotaExceeded, match="quota set"):
        await make(cluster, top, "third")
    address = cluster.master.address
    await cluster.master.close()
    await cluster.start(address)
    assert (await wait_counted(client, "/data/top")).used_bytes == 90
    assert "quota of /data/top" in " ".join((await client.report()).warnings)
    await client.quotas.clear_quota("/data/top")
    with pytest.raises(errors.NotFound, match="quota list"):
        await client.quotas.clear_quota("/data/top")
    with pytest.raises(errors.NotADirectory):
        await client.quotas.set_quota("/data/top/file", 1, None)
    assert await client.quotas.list_quotas() == []


async def test_room_is_what_quotas_stores_and_policies_leave(
    cluster: Cluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "MEASURED_S", 0.0)
    await cluster.add_store(options={"write": "through"})
    root = (await client.get_path("/data")).attr.inode
    top = await make(cluster, root, "top", Kind.DIRECTORY)
    file = await make(cluster, top, "file", size=50)
    found = await client.stat_fs(file)
    assert (found.space, found.policy, found.has_quotas) == (None, "through", False)
    assert (await client.stat_fs()).policy == ""
    # A quota where the store has no end.
    await client.quotas.set_quota("/data/top", 1000, None)
    await wait_counted(client, "/data/top")
    found = await client.stat_fs(file)
    assert found.space is not None
    assert (found.space.total_bytes, found.space.free_bytes, found.quota_free_bytes) == (1000, 950, 950)
    await client.quotas.set_quota("/data/top", None, 7)
    await wait_counted(client, "/data/top")
    found = await client.stat_fs(top)
    assert found.space is not None
    assert (found.space.total_files, found.space.free_files) == (7, 6)
    assert found.space.free_bytes == 2 * spaces.UNLIMITED_BYTES - 50
    # A store with an end, which may be nearer.
    sizes = [Space(500, 400, 20, 10)]

    async def measure(_: object) -> Space:
        return sizes[0]

    monkeypatch.setattr(master_parts._Written, "measure", measure, raising=False)
    assert (await client.stat_fs(root)).space == Space(500, 400, 20, 10)
    assert (await client.stat_fs(top)).space == Space(500, 400, 7, 6)
    sizes[0] = Space(0, 0)
    assert (await client.stat_fs(root)).space is None
    await cluster.changes.set_write_policy("p", "/data/top", WritePolicy.parse("cache"))
    assert (await client.stat_fs(file)).policy == "cache"


async def test_the_trash_through_a_master(cluster: Cluster, client: Client) -> None:
    store = await cluster.add_store(options={"write": "through"})
    store.put("a", b"12345")
    root = (await client.get_path("/data")).attr.inode
    await client.get_path("/data/a")
    with pytest.raises(errors.InvalidArgument):
        await client.trash.keep("/data", 0)
    await client.trash.keep("/data", 3600)
    await cluster.changes.remove("remove", root, "a", directory=False)
    (one,) = (await client.trash.list("/data")).entries
    assert (one.path, one.size) == ("/data/a", 5)
    assert (await client.trash.list("/data")).settings[0].path == "/data"
    assert (await client.trash.list("/elsewhere")).entries == ()
    await wait_until(lambda: store.has_below(".trash/"), "the store has followed")
    assert await client.trash.restore(one.entry, operation_id="restore") == "/data/a"
    # A repeat is answered, though it is not there any more.
    assert await client.trash.restore(one.entry, operation_id="restore") == "/data/a"
    with pytest.raises(errors.NotFound, match="trash list"):
        await client.trash.restore(one.entry)
