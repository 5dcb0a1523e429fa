"""A real master over real gRPC: names, mounts, listings, workers. Stores are in memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.clock import SystemClock
from alluxio_like.master.core import namespace
from alluxio_like.master.listing import Lister
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.messages import MountSpec, Throttle
from alluxio_like.types import ROOT_INODE, InodeId, Kind, WorkerId
from alluxio_like.ufs.memory import Fault, MemoryUfs
from tests.unit.master_parts import Cluster, wait_until


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "home")
    await made.start()
    yield made
    await made.close()


async def read_dir(cluster: Cluster, inode: InodeId, limit: int = 7) -> list[str]:
    names: list[str] = []
    cursor = b""
    while True:
        page = await cluster.stub.list_dir(inode, cursor, limit)
        names += [entry.name for entry in page.entries]
        cursor = page.next_cursor
        if not cursor:
            return names


async def get_inode(cluster: Cluster, path: str) -> InodeId:
    entry = (await cluster.stub.resolve_path(path)).entry
    assert entry is not None
    return entry.attr.inode


async def test_names_attributes_and_listings(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for number in range(250):
        store.put(f"a/{number:03}", b"x" * number)
    store.put("top", b"abc")
    assert await read_dir(cluster, ROOT_INODE) == ["data"]
    data = await get_inode(cluster, "/data")
    assert await read_dir(cluster, data) == ["a", "top"]
    top = await cluster.stub.lookup(data, "top")
    assert top.entry is not None
    assert (top.entry.attr.size, top.entry.attr.kind, top.entry.ref and top.entry.ref.key) == (3, Kind.FILE, "top")
    assert 0 < top.valid_s <= 10
    assert (await cluster.stub.lookup(data, "absent")).entry is None
    assert await read_dir(cluster, await get_inode(cluster, "/data/a")) == [f"{number:03}" for number in range(250)]
    assert store.count_requests() == {"LIST": 1 + 1 + 3}
    with pytest.raises(errors.NotADirectory):
        await cluster.stub.resolve_path("/data/top/x")
    with pytest.raises(errors.NotFound):
        await cluster.stub.lookup(InodeId(999_999), "x")


async def test_a_hundred_lookups_cause_one_listing(cluster: Cluster) -> None:
    store = await cluster.add_store()
    gate = asyncio.Event()
    for number in range(50):
        store.put(f"{number}", b"x")
    data = await get_inode(cluster, "/data")
    before = store.count_requests()["LIST"]
    store.fail("LIST", Fault(until=gate))
    lookups = [asyncio.create_task(cluster.stub.lookup(data, f"{number % 60}")) for number in range(100)]
    await wait_until(lambda: store.count_requests()["LIST"] > before, "the listing")
    gate.set()
    found = [result.entry is not None for result in await asyncio.gather(*lookups)]
    assert found == [number % 60 < 50 for number in range(100)]
    assert store.count_requests()["LIST"] == before + 1


async def test_a_name_is_answered_once_its_page_is_there(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for number in range(300):
        store.put(f"{number:03}", b"x")
    data = await get_inode(cluster, "/data")
    never = asyncio.Event()
    store.fail("LIST", Fault(), Fault(until=never))
    try:
        async with asyncio.timeout(60):
            assert (await cluster.stub.lookup(data, "007")).entry is not None
            assert (await cluster.stub.lookup(data, "0070")).entry is None
            page = await cluster.stub.list_dir(data, b"", 50)
            assert [entry.name for entry in page.entries] == [f"{number:03}" for number in range(50)]
        late = asyncio.create_task(cluster.stub.lookup(data, "299"))
        await asyncio.sleep(0)
        assert not late.done()
    finally:
        never.set()
    assert (await late).entry is not None
    assert len(await read_dir(cluster, data, 100)) == 300


async def test_an_interrupted_listing_leaves_no_false_absence(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for number in range(300):
        store.put(f"{number:03}", b"x")
    data = await get_inode(cluster, "/data")
    store.fail("LIST", Fault(), errors.StoreDenied("no"))
    with pytest.raises(errors.StoreDenied):
        await cluster.stub.lookup(data, "250")
    # What the first page brought is served, what is not known is not said to be absent.
    assert (await cluster.stub.lookup(data, "050")).entry is not None
    with pytest.raises(errors.StoreDenied):
        await cluster.stub.lookup(data, "250")
    with pytest.raises(errors.StoreDenied):
        await read_dir(cluster, data)

    async def is_back() -> bool:
        try:
            return (await cluster.stub.lookup(data, "250")).entry is not None
        except errors.StoreDenied:
            return False

    async with asyncio.timeout(60):
        while not await is_back():
            await asyncio.sleep(0.05)
    assert len(await read_dir(cluster, data)) == 300


async def test_while_the_store_is_down_what_is_known_stays(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home", io_timeout_s=1.0, sync_interval_s=0.05)
    await cluster.start()
    try:
        store = await cluster.add_store()
        store.put("a", b"x")
        data = await get_inode(cluster, "/data")
        assert await read_dir(cluster, data) == ["a"]
        store.fail("LIST", errors.StoreUnavailable("gone"), always=True)
        async with asyncio.timeout(60):
            with pytest.raises(errors.StoreUnavailable):
                # Until the listing is believed no more.
                while (await cluster.stub.lookup(data, "b")).entry is None:
                    await asyncio.sleep(0.01)
            assert (await cluster.stub.lookup(data, "a")).entry is not None
            assert await read_dir(cluster, data) == ["a"]
        report = await cluster.stub.report()
        assert any("gone" in warning for warning in report.warnings)
        store.heal()
        store.put("b", b"y")

        async def is_back() -> bool:
            try:
                return (await cluster.stub.lookup(data, "b")).entry is not None
            except errors.StoreUnavailable:
                return False

        async with asyncio.timeout(60):
            while not await is_back():
                await asyncio.sleep(0.05)
    finally:
        await cluster.close()


async def test_a_directory_that_is_refused_says_nothing_of_the_others(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for name in ("closed/a", "open/b"):
        store.put(name, b"x")
    closed, opened = [await get_inode(cluster, f"/data/{name}") for name in ("closed", "open")]
    store.fail("LIST", errors.StoreDenied("not this one"))
    with pytest.raises(errors.StoreDenied):
        await cluster.stub.lookup(closed, "a")
    assert (await cluster.stub.lookup(opened, "b")).entry is not None
    assert any("not this one" in warning for warning in (await cluster.stub.report()).warnings)


async def test_throttled_listings_are_repeated_and_lower_the_rate(cluster: Cluster) -> None:
    store = await cluster.add_store()
    store.put("a", b"x")
    store.fail("LIST", errors.StoreThrottled("slow down"), errors.StoreUnavailable("503"))
    data = await get_inode(cluster, "/data")
    assert (await cluster.stub.lookup(data, "a")).entry is not None
    assert [share.bucket for share in (await cluster.stub.report()).limited_buckets] == [store.bucket]


async def test_listings_obey_the_buckets_rate(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for number in range(30):
        store.put(f"d{number}/x", b"x")
    data = await get_inode(cluster, "/data")
    names = await read_dir(cluster, data, 100)
    rates = cluster.master.registry.rates
    rates.note(store.bucket, WorkerId("w"), 1, 10.0, asyncio.get_running_loop().time())
    begun = time.monotonic()
    before = store.count_requests()["LIST"]
    async with asyncio.timeout(60):
        await asyncio.gather(*(get_inode(cluster, f"/data/{name}/x") for name in names[:15]))
    took = time.monotonic() - begun
    assert store.count_requests()["LIST"] - before == 15
    # Seven a second of the whole cluster, growing while it goes on.
    assert took > 1.0


async def test_a_changed_object_is_a_replacement(cluster: Cluster) -> None:
    store = await cluster.add_store()
    store.put("d/a", b"one")
    store.put("d/b", b"x")
    first = (await cluster.stub.resolve_path("/data/d/a")).entry
    other = (await cluster.stub.resolve_path("/data/d/b")).entry
    store.put("d/a", b"three")
    store.delete("d/b")
    store.put("d/c", b"new")
    changes = await cluster.stub.sync("/data/d")
    assert (changes.directories, changes.added, changes.removed, changes.replaced) == (1, 1, 1, 1)
    second = (await cluster.stub.resolve_path("/data/d/a")).entry
    assert first is not None
    assert second is not None
    assert other is not None
    assert second.attr.inode != first.attr.inode
    assert second.attr.size == 5
    # The old ones live on for whoever has them open.
    assert (await cluster.stub.get_entry(first.attr.inode)).entry is not None
    assert (await cluster.stub.get_entry(other.attr.inode)).entry is not None
    assert (await cluster.stub.resolve_path("/data/d/b")).entry is None


async def test_resolving_with_sync_and_syncing_below(cluster: Cluster) -> None:
    store = await cluster.add_store()
    store.put("d/e/a", b"one")
    assert (await cluster.stub.resolve_path("/data/d/e/new")).entry is None
    store.put("d/e/new", b"x")
    assert (await cluster.stub.resolve_path("/data/d/e/new")).entry is None
    assert (await cluster.stub.resolve_path("/data/d/e/new", sync=True)).entry is not None
    store.put("d/e/newer", b"x")
    assert (await cluster.stub.sync("/data", recursive=True)).added == 1
    assert (await cluster.stub.resolve_path("/data/d/e/newer")).entry is not None


async def test_a_clock_set_back_neither_freezes_what_is_known_nor_stops_a_sync(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_s = 7200
    monkeypatch.setattr(SystemClock, "now_ns", lambda _: time.time_ns() + shift_s * 10**9)
    store = await cluster.add_store()
    store.put("a", b"x")
    await get_inode(cluster, "/data/a")
    shift_s = 0
    store.put("b", b"x")
    data = await get_inode(cluster, "/data")
    assert (await cluster.stub.lookup(data, "b")).entry is not None
    async with asyncio.timeout(60):
        flight = await cluster.master.jobs._lister.refresh(data, time.time_ns() + 10**12)
    assert flight is not None


async def test_syncing_a_wide_tree_keeps_little_under_way(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await cluster.add_store()
    for number in range(400):
        store.put(f"d{number % 20}/e{number}/x", b"x")
    most = 0
    refresh = Lister.refresh

    async def watch(self: Lister, *arguments: Any) -> Any:
        nonlocal most
        most = max(most, len(asyncio.all_tasks()))
        return await refresh(self, *arguments)

    monkeypatch.setattr(Lister, "refresh", watch)
    done = await cluster.stub.sync("/data", recursive=True)
    assert (done.directories, done.added) == (421, 820)
    assert most < 60
    with pytest.raises(errors.StoreUnavailable):
        store.fail("LIST", *[errors.StoreUnavailable("gone")] * 1000)
        await cluster.stub.sync("/data", recursive=True)
    store.heal()


async def test_mounts_survive_a_restart_and_secrets_stay_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "alluxio_like.master")
    cluster = Cluster(tmp_path / "home")
    await cluster.start()
    store = await cluster.add_store(options={"endpoint": "http://127.0.0.1:1", "access_key": "AK", "secret_key": "hush-hush"})
    store.put("a", b"x")
    inode = await get_inode(cluster, "/data/a")
    info = (await cluster.stub.list_mounts())[0]
    assert "hush-hush" not in repr(info)
    assert info.options["secret_key"] == "***"
    with pytest.raises(errors.AlreadyExists):
        await cluster.stub.mount(MountSpec("/data", "s3://bucket/data"))
    await cluster.stop_master()
    assert (cluster.home / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert (cluster.home / "token").stat().st_mode & 0o777 == 0o600
    for file in (cluster.home / "meta").rglob("*"):
        assert not file.is_file() or b"hush-hush" not in file.read_bytes()
    await cluster.start()
    try:
        before = store.count_requests()
        assert await get_inode(cluster, "/data/a") == inode
        assert store.count_requests() == before
        mount_id = (await cluster.stub.list_mounts())[0].mount_id
        assert (await cluster.stub.get_mount_secrets(mount_id)).secrets["secret_key"] == "hush-hush"
        nobody = open_channel(cluster.master.address)
        with pytest.raises(errors.AccessDenied):
            await MasterStub(nobody).get_mount_secrets(mount_id)
        await nobody.close()
        await cluster.stub.unmount("/data")
        assert "hush-hush" not in (cluster.home / "secrets.json").read_text()
        assert (await cluster.stub.resolve_path("/data/a")).entry is None
        said = [vars(record) for record in caplog.records if record.name.endswith("mount_table")]
        assert [(one["msg"], one["path"]) for one in said] == [("mounted", "/data"), ("unmounted", "/data")]
        assert "hush-hush" not in repr(said)
    finally:
        await cluster.close()


async def test_an_unmount_leaves_the_secrets_of_a_mount_made_at_the_same_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.add_store("/old", "s3://old", options={"access_key": "AK", "secret_key": "old-secret"})
    cluster.stores["s3://new"] = MemoryUfs()
    secrets = cluster.home / "secrets.json"
    meta = cluster.master.meta
    write, loop = meta.write, asyncio.get_running_loop()
    asked: asyncio.Queue[Any] = asyncio.Queue()
    stored: asyncio.Future[Any] = loop.create_future()

    async def write_in_turn(apply: Any) -> Any:
        if unmounting.done() or "unmount" in seen:
            asked.put_nowait(apply)
            return await (await stored)
        seen.add("unmount")
        result = await write(apply)
        mount = loop.run_in_executor(None, meta.write_now, await asked.get())
        # The mount is stored by another thread, and this loop has not heard of it yet when the unmount goes on.
        deadline = time.monotonic() + 60
        while "new-secret" not in secrets.read_text() and time.monotonic() < deadline:
            time.sleep(0.001)  # noqa: ASYNC251 (this loop must hear of nothing meanwhile)
        stored.set_result(mount)
        return result

    seen: set[str] = set()
    monkeypatch.setattr(cluster.master.meta, "write", write_in_turn)
    unmounting = asyncio.create_task(cluster.stub.unmount("/old"))
    await wait_until(lambda: seen, "the unmount to be stored")
    mounting = asyncio.create_task(
        cluster.stub.mount(MountSpec("/new", "s3://new", {"access_key": "AK", "secret_key": "new-secret"}))
    )
    await unmounting
    info = await mounting
    assert (await cluster.stub.get_mount_secrets(info.mount_id)).secrets["secret_key"] == "new-secret"
    assert "old-secret" not in secrets.read_text()


async def test_an_update_gives_a_mount_other_credentials_and_keeps_its_inodes(cluster: Cluster) -> None:
    old = {"endpoint": "http://127.0.0.1:1", "access_key": "AK", "secret_key": "old-secret"}
    store = await cluster.add_store(options=old)
    store.put("a", b"x")
    inode = await get_inode(cluster, "/data/a")
    mount = (await cluster.stub.list_mounts())[0]
    requests = store.count_requests()
    same = await cluster.stub.mount(MountSpec("/data", "s3://bucket/data", old, update=True))
    assert (same, store.count_requests()) == (mount, requests)
    new = {**old, "access_key": "AK2", "secret_key": "new-secret"}
    store.fail("LIST", errors.StoreDenied("no"))
    with pytest.raises(errors.StoreDenied):
        await cluster.stub.mount(MountSpec("/data", "s3://bucket/data", new, update=True))
    assert (await cluster.stub.get_mount_secrets(mount.mount_id)).secrets["secret_key"] == "old-secret"
    updated = await cluster.stub.mount(MountSpec("/data/", "s3://bucket/data/", {**new, "region": "r"}, update=True))
    assert updated.options == {"endpoint": "http://127.0.0.1:1", "region": "r", "access_key": "***", "secret_key": "***"}
    assert updated.mount_id == mount.mount_id
    assert (await cluster.stub.get_mount_secrets(mount.mount_id)).secrets == {"access_key": "AK2", "secret_key": "new-secret"}
    assert await get_inode(cluster, "/data/a") == inode
    # Secrets that are not given stay; data from elsewhere is no update.
    await cluster.stub.mount(MountSpec("/data", "s3://bucket/data", {"endpoint": "http://127.0.0.1:1"}, update=True))
    assert (await cluster.stub.get_mount_secrets(mount.mount_id)).secrets["secret_key"] == "new-secret"
    for spec in (
        MountSpec("/data", "s3://bucket/data", {**new, "endpoint": "http://127.0.0.1:2"}, update=True),
        MountSpec("/data", "s3://bucket/other", new, update=True),
    ):
        with pytest.raises(errors.Conflict, match="unmount"):
            await cluster.stub.mount(spec)
    with pytest.raises(errors.NotFound):
        await cluster.stub.mount(MountSpec("/none", "s3://bucket/data", new, update=True))


async def test_an_update_changes_single_options(cluster: Cluster) -> None:
    def change(path: str = "/data", uri: str = "", **options: str) -> MountSpec:
        return MountSpec(path, uri, options, update=True, keep_others=True)

    first = {"endpoint": "http://127.0.0.1:1", "region": "r", "access_key": "AK", "secret_key": "old-secret"}
    await cluster.add_store(options=first, sync_interval_s=7)
    mount = (await cluster.stub.list_mounts())[0]
    updated = await cluster.stub.mount(change(secret_key="new-secret"))
    assert updated.options == {**first, "access_key": "***", "secret_key": "***"}
    assert (updated.mount_id, updated.uri, updated.sync_interval_s) == (mount.mount_id, "s3://bucket/data", 7)
    assert (await cluster.stub.get_mount_secrets(mount.mount_id)).secrets == {"access_key": "AK", "secret_key": "new-secret"}
    # Named instead: nothing secret is kept any more.
    updated = await cluster.stub.mount(change(region="", access_key="env:AK", secret_key="file:/run/key"))
    assert updated.options == {"endpoint": "http://127.0.0.1:1", "access_key": "env:AK", "secret_key": "file:/run/key"}
    assert (await cluster.stub.get_mount_secrets(mount.mount_id)).secrets == {}
    assert "new-secret" not in (cluster.home / "secrets.json").read_text()
    for wrong in (change(access_key=""), change(regon=""), change(verify="perhaps"), change(profile="p")):
        with pytest.raises(errors.ConfigError):
            await cluster.stub.mount(wrong)
    for elsewhere in (change(uri="s3://other"), change(endpoint="http://127.0.0.1:2"), change(endpoint="")):
        with pytest.raises(errors.Conflict):
            await cluster.stub.mount(elsewhere)
    with pytest.raises(errors.NotFound):
        await cluster.stub.mount(change("/none", region="r"))
    assert [info.options for info in await cluster.stub.list_mounts()] == [updated.options]


async def test_a_store_that_is_down_at_the_start_stops_nobody(cluster: Cluster) -> None:
    up = await cluster.add_store("/up", "s3://bucket/up")
    down = await cluster.add_store("/down", "s3://bucket/down")
    stuck = await cluster.add_store("/stuck", "s3://bucket/stuck")
    up.put("x", b"1")
    await cluster.stop_master()
    down.fail("LIST", errors.StoreUnavailable("the store cannot be reached"), always=True)
    held = asyncio.Event()
    stuck.fail("LIST", Fault(until=held))
    await cluster.start()
    assert await read_dir(cluster, await get_inode(cluster, "/up")) == ["x"]

    async def troubles() -> dict[str, str]:
        return {info.path: info.trouble for info in await cluster.stub.list_mounts()}

    async with asyncio.timeout(60):
        while not (await troubles())["/down"]:
            await asyncio.sleep(0.01)
    assert await troubles() == {"/up": "", "/down": "the store cannot be reached", "/stuck": ""}
    assert any("/down" in line for line in (await cluster.stub.report()).warnings)
    down.heal()
    held.set()
    inode = await get_inode(cluster, "/down")
    async with asyncio.timeout(60):
        while (await troubles())["/down"]:
            try:  # for a moment it is left alone
                assert await read_dir(cluster, inode) == []
            except errors.StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_a_mount_that_does_not_answer_changes_nothing(cluster: Cluster) -> None:
    await cluster.add_store("/good", "s3://good")
    cluster.stores["s3://bad"] = bad = MemoryUfs()
    bad.fail("LIST", errors.StoreMissing("no such bucket"), always=True)
    with pytest.raises(errors.StoreMissing):
        await cluster.stub.mount(MountSpec("/bad", "s3://bad", {"secret_key": "x", "access_key": "y"}))
    assert [info.path for info in await cluster.stub.list_mounts()] == ["/good"]
    assert not (cluster.home / "secrets.json").exists()
    await cluster.stub.mount(MountSpec("/bad", "s3://bad", skip_check=True))
    with pytest.raises(errors.ConfigError):
        await cluster.stub.mount(MountSpec("/c", "s3://bad", {"endpiont": "x"}))


async def test_who_mounts_what_is_empty_is_told(cluster: Cluster) -> None:
    cluster.stores["s3://bbb/tpyo"], cluster.stores["s3://ccc"], filled = MemoryUfs(), MemoryUfs(), MemoryUfs()
    cluster.stores["s3://ddd"] = filled
    filled.put("x", b"x")
    mounted = await cluster.stub.mount(MountSpec("/b", "s3://bbb/tpyo"))
    assert "nothing is there" in mounted.trouble
    assert not (await cluster.stub.mount(MountSpec("/c", "s3://ccc", skip_check=True))).trouble
    assert not (await cluster.stub.mount(MountSpec("/d", "s3://ddd"))).trouble
    assert not any(info.trouble for info in await cluster.stub.list_mounts()), "it is no failure of the store"


async def test_a_repeated_mount_is_answered_and_not_done_again(cluster: Cluster) -> None:
    cluster.stores["s3://bbb"] = MemoryUfs()
    first = await cluster.stub.mount(MountSpec("/m", "s3://bbb"), operation_id="op1")
    again = await cluster.stub.mount(MountSpec("/m", "s3://bbb"), operation_id="op1")
    assert first == again


async def test_two_masters_on_one_home(cluster: Cluster) -> None:
    second = Cluster(cluster.home)
    with pytest.raises(errors.Conflict, match="another master"):
        await second.start()


async def test_workers_join_die_and_come_back(cluster: Cluster) -> None:
    one = await cluster.add_worker("w1")
    two = await cluster.add_worker("w2")
    view = await cluster.stub.get_cluster()
    assert [(w.worker_id, w.live) for w in view.workers] == [("w1", True), ("w2", True)]
    await cluster.lose(two)

    async def is_seen_dead() -> bool:
        return [w.live for w in (await cluster.stub.get_cluster()).workers] == [True, False]

    async with asyncio.timeout(60):
        while not await is_seen_dead():
            await asyncio.sleep(0.02)
    assert (await cluster.stub.get_cluster()).epoch > view.epoch
    await two.start()
    assert all(w.live for w in (await cluster.stub.get_cluster()).workers)
    assert one.registered == 1
    with pytest.raises(errors.Conflict, match="belongs to cluster"):
        await cluster.stub.register(one.describe(), "another", "s9")


async def test_a_worker_that_comes_back_frees_what_was_forgotten_meanwhile(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await cluster.add_store()
    for name in ("stays", "goes"):
        store.put(name, b"x" * 1000)
    worker = await cluster.add_worker("w")
    assert (await cluster.load("/data")).checked_files == 2
    await cluster.lose(worker)
    await wait_until(lambda: not cluster.master.registry.get_live(), "the worker to be missed")
    store.delete("goes")
    await cluster.stub.sync("/data")
    await cluster.master.meta.write(lambda txn: namespace.purge(txn, time.time_ns(), keep_ns=0))
    await worker.start()
    await wait_until(lambda: len(worker.cached) == 1, "the forgotten file to be freed")
    assert [ref.key for file_id, ref in worker.refs.items() if (file_id, 0) in worker.cached] == ["stays"]


async def test_a_worker_that_was_only_cut_off_tells_all_anew(cluster: Cluster) -> None:
    worker = await cluster.add_worker("w")
    cluster.master.registry._set_dead(cluster.master.registry._members[worker.worker_id], "cut off")
    await wait_until(lambda: worker.registered == 2, "another full report")
    assert [w.live for w in (await cluster.stub.get_cluster()).workers] == [True]


async def test_a_worker_that_left_is_not_taken_for_live_after_a_restart(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    await cluster.start()
    try:
        worker = await cluster.add_worker("w")
        await worker.kill()
        await cluster.stub.leave(worker.worker_id, f"s{worker.session}")
        await cluster.stop_master()
        await cluster.start()
        assert [w.live for w in (await cluster.stub.get_cluster()).workers] == [False]
    finally:
        await cluster.close()


async def test_after_a_restart_locations_come_from_placement_until_workers_report(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    await cluster.start()
    store = await cluster.add_store()
    store.put("a", b"x" * 1000)
    worker = await cluster.add_worker("w1")
    entry = (await cluster.stub.resolve_path("/data/a")).entry
    assert entry is not None
    assert entry.ref is not None
    assert await cluster.stub.locate([entry.ref.file_id]) == [()]
    await worker.kill()
    await cluster.stop_master()
    await cluster.start()
    try:
        located = (await cluster.stub.locate([entry.ref.file_id]))[0]
        assert [(one.worker_id, one.present_bits, one.present_bytes) for one in located] == [("w1", 1, 1000)]
    finally:
        await cluster.close()


@pytest.mark.parametrize("asked", ["status", "free"])
async def test_after_a_restart_workers_are_heard_before_it_is_said_what_is_cached(
    tmp_path: Path, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path / "home", worker_timeout_s=120.0)
    await cluster.start()
    store = await cluster.add_store()
    for number in range(20):
        store.put(f"d/{number}", b"x" * 1000)
    worker = await cluster.add_worker("w1")
    assert (await cluster.load("/data/d")).state.name == "DONE"
    await worker.kill()
    await cluster.stop_master()
    await cluster.start()
    worker._master = cluster.stub
    worker.report_gate.clear()
    starting = asyncio.create_task(worker.start())
    registry = cluster.master.registry
    wait = registry.wait_reports

    async def note_waiting(timeout_s: float) -> None:
        worker.report_gate.set()
        await wait(60)

    monkeypatch.setattr(registry, "wait_reports", note_waiting)
    try:
        await wait_until(lambda: worker.reporting, "the report to begin")
        if asked == "status":
            assert (await cluster.stub.get_cache_status("/data/d")).cached_files == 20
        else:
            assert (await cluster.stub.free("/data/d")).files == 20
            assert not worker.cached
        await starting
    finally:
        starting.cancel()
        await cluster.close()


async def test_throttles_become_shares_of_one_rate(cluster: Cluster) -> None:
    workers = [await cluster.add_worker(f"w{number}") for number in range(2)]
    workers[0].throttles.append(Throttle("s3://bucket", 3, 100.0))
    await wait_until(lambda: all("s3://bucket" in worker.rates for worker in workers), "the rates")
    limited = {share.bucket: share.requests_per_s for share in (await cluster.stub.report()).limited_buckets}
    assert sum(worker.rates["s3://bucket"] for worker in workers) == pytest.approx(limited["s3://bucket"], rel=0.2)
    assert limited["s3://bucket"] < 100


async def test_status_free_and_pin(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await cluster.add_store()
    for number in range(20):
        store.put(f"d/{number}", b"x" * 1000)
    store.put("e/empty", b"")
    workers = [await cluster.add_worker(f"w{number}") for number in range(2)]
    job = await cluster.load("/data/d", replicas=2)
    assert (job.state.name, job.done_files) == ("DONE", 20)

    async def get_replicas() -> dict[int, int]:
        return {one.replicas: one.files for one in (await cluster.stub.get_cache_status("/data/d")).replicas}

    async with asyncio.timeout(60):
        while await get_replicas() != {2: 20}:
            await asyncio.sleep(0.02)
    status = await cluster.stub.get_cache_status("/data/d")
    assert (status.files, status.cached_files, status.cached_bytes, status.stored_bytes) == (20, 20, 20_000, 40_000)
    assert [(holder.files, holder.cached_bytes) for holder in status.holders] == [(20, 20_000)] * 2
    assert status.complete
    with monkeypatch.context() as patch:
        # Of very many files the root's status is a sum.
        patch.setattr("alluxio_like.master.service_cache.SUMMED_FILES", 19)
        assert not (await cluster.stub.get_cache_status("/data")).summed
        root = await cluster.stub.get_cache_status("/")
        assert (root.summed, root.files, root.known_bytes, root.cached_bytes) == (True, 20, 20_000, 20_000)
        assert [(holder.files, holder.cached_bytes) for holder in root.holders] == [(0, 20_000)] * 2
    assert await cluster.stub.set_pinned("/data/d", pinned=True) == 20
    assert all(len(worker.pinned) == 20 for worker in workers)
    assert (await cluster.stub.get_cache_status("/data/d")).pinned_files == 20
    kept = await cluster.stub.free("/data/d")
    assert (kept.files, kept.freed_bytes, kept.kept_pinned_files) == (0, 0, 20)
    await cluster.stub.set_pinned("/data/d", pinned=False)
    freed = await cluster.stub.free("/data/d")
    assert (freed.files, freed.freed_bytes, freed.kept_pinned_files) == (20, 40_000, 0)
    assert await get_replicas() == {0: 20}, "at once, without waiting for a heartbeat"
    await get_inode(cluster, "/data/e/empty")
    empty = await cluster.stub.get_cache_status("/data/e")
    assert (empty.files, empty.cached_files, empty.replicas) == (1, 1, ()), "an empty file has no copies, nor lacks any"
    with pytest.raises(errors.NotFound):
        await cluster.stub.get_cache_status("/data/none")
