"""Whole trees brought into the namespace: by flat listings where directories are small, and never wrong for it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.master.surveying import REQUEST_S, SAMPLE, Costs
from alluxio_like.master.walking import PAGE_ENTRIES
from alluxio_like.rpc.messages import JobState, MountSpec
from alluxio_like.types import InodeId, Kind
from alluxio_like.ufs.memory import Fault, MemoryUfs
from tests.unit.master_parts import Cluster, wait_until


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    # What a request takes decides how a tree is listed: here all take the same, whatever else the machine does meanwhile.
    note_listing, note_flat = Costs.note_listing, Costs.note_flat
    monkeypatch.setattr(Costs, "note_listing", lambda self, entries, _, at_once: note_listing(self, entries, REQUEST_S, at_once))
    monkeypatch.setattr(Costs, "note_flat", lambda self, keys, directories, _: note_flat(self, keys, directories, REQUEST_S))
    # A page of 100 keys.
    made = Cluster(tmp_path / "home")
    await made.start()
    yield made
    await made.close()


def put_tree(store: MemoryUfs, directories: int, files: int = 2, top: str = "t") -> set[str]:
    """`directories` leaves, ten in each directory above them."""
    keys = {f"{top}/{number // 10:04}/{number:05}/{file}" for number in range(directories) for file in range(files)}
    for key in keys:
        store.put(key, key.encode())
    return keys


async def list_known(cluster: Cluster, path: str) -> set[str]:
    """All keys below a path, listed by a client; no further listing is needed where all is known."""
    found: set[str] = set()
    entry = (await cluster.stub.resolve_path(path)).entry
    assert entry is not None
    waiting = [entry.attr.inode]
    while waiting:
        cursor, inode = b"", waiting.pop()
        while True:
            page = await cluster.stub.list_dir(inode, cursor, 1000)
            waiting += [one.attr.inode for one in page.entries if one.attr.kind is Kind.DIRECTORY]
            found.update(one.ref.key for one in page.entries if one.ref is not None)
            cursor = page.next_cursor
            if not cursor:
                break
    return found


def count_lists(store: MemoryUfs) -> int:
    return store.count_requests()["LIST"]


async def get_inode(cluster: Cluster, path: str) -> InodeId:
    entry = (await cluster.stub.resolve_path(path)).entry
    assert entry is not None
    return entry.attr.inode


async def test_a_tree_of_small_directories_costs_a_list_for_a_page_of_keys(cluster: Cluster) -> None:
    store = await cluster.add_store()
    keys = put_tree(store, 1000)
    before = count_lists(store)
    done = await cluster.stub.sync("/data", recursive=True)
    spent = count_lists(store) - before
    # 1,102 directories and 2,000 keys: 20 pages, the sample, and what is asked for around them.
    assert spent < 20 + 30, spent
    assert (done.directories, done.added) == (1 + 1 + 100 + 1000, len(keys) + 1 + 100 + 1000)
    assert await list_known(cluster, "/data") == keys
    assert count_lists(store) - before == spent, "all is known"
    # Again, with changes: each is found, and counted once.
    for number in range(0, 1000, 100):
        store.put(f"t/{number // 10:04}/{number:05}/0", b"other")
        store.delete(f"t/{number // 10:04}/{number:05}/1")
        store.put(f"t/{number // 10:04}/{number:05}/new", b"new")
    before = count_lists(store)
    done = await cluster.stub.sync("/data", recursive=True)
    assert (done.directories, done.added, done.removed, done.replaced) == (1102, 10, 10, 10)
    assert count_lists(store) - before < 50


async def test_a_load_of_small_directories_lists_flat(cluster: Cluster) -> None:
    store = await cluster.add_store()
    keys = put_tree(store, 600)
    await cluster.add_worker("w1")
    before = count_lists(store)
    job = await cluster.load("/data/t")
    assert (job.state, job.done_files) == (JobState.DONE, len(keys))
    assert count_lists(store) - before < 12 + 40


async def test_a_directory_of_more_directories_than_a_walk_reads_at_once(cluster: Cluster) -> None:
    """The last one that is read at a time is a directory, and others follow."""
    store = await cluster.add_store()
    keys = {f"class{number:04}/{file}" for number in range(2 * PAGE_ENTRIES + 3) for file in range(2)}
    for key in keys:
        store.put(key, b"x")
    await cluster.add_worker("w1")
    async with asyncio.timeout(120):
        done = await cluster.stub.sync("/data", recursive=True)
        assert done.directories == 1 + 2 * PAGE_ENTRIES + 3
        job = await cluster.load("/data")
    assert (job.state, job.done_files) == (JobState.DONE, len(keys))


async def test_large_directories_are_listed_by_themselves(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for directory in range(30):
        for number in range(250):
            store.put(f"d{directory:02}/{number:03}", b"x")
    before = count_lists(store)
    done = await cluster.stub.sync("/data", recursive=True)
    assert done.directories == 31
    # 30 directories of three pages each, and the top.
    assert count_lists(store) - before <= 30 * 3 + 1 + 3


async def test_a_deep_narrow_tree(cluster: Cluster) -> None:
    store = await cluster.add_store()
    keys = {f"{'/'.join(f'{number:09b}')}/x" for number in range(512)}
    for key in keys:
        store.put(key, b"x")
    before = count_lists(store)
    done = await cluster.stub.sync("/data", recursive=True)
    assert done.directories == 1023
    assert count_lists(store) - before < 60
    assert await list_known(cluster, "/data") == keys


async def test_an_interrupted_flat_listing_leaves_no_false_absence(cluster: Cluster) -> None:
    """It fails in its midst, for good: what it was through with is known, the rest is said to be unknown, and nothing is gone."""
    store = await cluster.add_store()
    keys = put_tree(store, 300)
    await cluster.stub.sync("/data", recursive=True)
    added = {key + "new" for key in keys if key.endswith("/0")}
    for key in added:
        store.put(key, b"new")
    lists = count_lists(store)
    # The sample and two pages, then nothing any more.
    store.fail("LIST", *[Fault() for _ in range(SAMPLE + 12)], errors.StoreDenied("no"), always=True)
    with pytest.raises(errors.StoreDenied):
        await cluster.stub.sync("/data", recursive=True)
    assert count_lists(store) > lists + SAMPLE
    known = await list_known(cluster, "/data")
    assert known >= keys, "what was known stays"
    assert known - keys < added
    store.heal()
    await cluster.stub.sync("/data", recursive=True)
    assert await list_known(cluster, "/data") == keys | added


async def test_a_failing_flat_listing_is_done_without(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await cluster.add_store()
    keys = put_tree(store, 200)

    async def refuse(*arguments: object, **settings: object) -> None:
        raise errors.StoreProtocol("not in order")

    monkeypatch.setattr(MemoryUfs, "list_flat", refuse)
    done = await cluster.stub.sync("/data", recursive=True)
    assert done.directories == 222
    assert await list_known(cluster, "/data") == keys


async def test_nothing_below_a_mount_that_is_mounted_inside_is_touched(cluster: Cluster) -> None:
    store = await cluster.add_store()
    keys = put_tree(store, 200)
    inner = cluster.stores["s3://inner"] = MemoryUfs(name="inner")
    inner.put("mine", b"x")
    await cluster.stub.sync("/data", recursive=True)
    await cluster.stub.mount(MountSpec("/data/t/0010", "s3://inner"))
    hidden = {key for key in keys if key.startswith("t/0010/")}
    store.put("t/0010/00100/later", b"x")
    store.put("t/0011/00110/later", b"x")
    done = await cluster.stub.sync("/data", recursive=True)
    assert done.added == 2  # "mine" of the inner one, "later" of the outer one
    assert await list_known(cluster, "/data") == (keys - hidden) | {"mine", "t/0011/00110/later"}


async def test_a_name_asked_for_meanwhile_is_answered_by_its_directorys_own_listing(cluster: Cluster) -> None:
    """A flat listing hangs; who looks a name up does not hang with it, and what it brings later is not believed over that."""
    store = await cluster.add_store()
    put_tree(store, 400)
    gate = asyncio.Event()
    hung: list[str] = []
    list_flat = store.list_flat

    async def hang(prefix: str, token: str | None = None, *, after: str = "", max_entries: int = 1000) -> object:
        page = await list_flat(prefix, token, after=after, max_entries=max_entries)
        hung.append(prefix)
        # The answer is on its way, as of now.
        await gate.wait()
        return page

    store.list_flat = hang  # type: ignore[assignment,method-assign]
    sync = asyncio.create_task(cluster.stub.sync("/data", recursive=True))
    await wait_until(lambda: hung, "the flat listing")
    store.delete("t/0005/00055/0")
    store.put("t/0005/00055/new", b"x")
    for name, is_there in (("0", False), ("new", True), ("1", True), ("never", False)):
        async with asyncio.timeout(60):
            entry = (await cluster.stub.resolve_path(f"/data/t/0005/00055/{name}")).entry
        assert (entry is not None) == is_there, name
    assert not sync.done()
    gate.set()
    await sync
    assert {key[-1] for key in await list_known(cluster, "/data/t/0005/00055")} == {"1", "w"}


async def test_two_at_once_list_a_tree_once(cluster: Cluster) -> None:
    store = await cluster.add_store()
    keys = put_tree(store, 1000)
    before = count_lists(store)
    await asyncio.gather(*(cluster.stub.sync("/data", recursive=True) for _ in range(3)))
    assert count_lists(store) - before < 3 * (20 + 30)
    assert await list_known(cluster, "/data") == keys


async def test_a_cancelled_load_stops_its_listing(cluster: Cluster) -> None:
    store = await cluster.add_store()
    put_tree(store, 2000)
    await cluster.add_worker("w1")
    gate = asyncio.Event()
    store.fail("LIST", *[Fault() for _ in range(25)], Fault(until=gate), always=True)
    job_id = await cluster.submit("/data/t")
    await wait_until(lambda: count_lists(store) >= 25, "the listing")
    await cluster.stub.cancel_job(job_id)
    await wait_until(lambda: not any("flat-list" in task.get_name() for task in asyncio.all_tasks()), "its end")
    store.heal()
    gate.set()


def test_the_choice_follows_what_was_measured() -> None:
    costs = Costs()
    for _ in range(SAMPLE):
        assert not costs.prefers_flat()
        costs.note_listing(10, 0.04, 8)
    assert costs.prefers_flat(), "ten files in a directory"
    # Slow pages: a hundred directories one after the other, in the time of two hundred at once.
    costs.note_flat(1000, 100, 2.0)
    assert not costs.prefers_flat()
    large = Costs()
    for _ in range(SAMPLE):
        large.note_listing(1000, 0.1, 8)
    assert not large.prefers_flat()
    # It began with small ones, and came to large ones.
    costs = Costs()
    for _ in range(SAMPLE):
        costs.note_listing(5, 0.04, 8)
    before = costs.compare()
    for _ in range(3):
        costs.note_flat(1000, 0, 0.1)
    assert costs.compare() > 10 * before
