"""Whole trees as a master gives them: all of it once, in pages of a bounded size, and believed no longer than its directories."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alluxio_like import errors
from alluxio_like.master import tree as master_tree
from alluxio_like.master.core import namespace, tree
from alluxio_like.master.core.records import State
from alluxio_like.types import ROOT_INODE, InodeId, Kind, MountId
from alluxio_like.ufs.memory import MemoryUfs
from tests.model.checked import list_paths
from tests.unit.master_parts import Cluster


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "home")
    await made.start()
    yield made
    await made.close()


def fill(store: MemoryUfs, sizes: list[int]) -> set[str]:
    """Directories of so many files, two below each other by turns; keys of all."""
    keys = {f"d{place}/{'below/' * (place % 3)}{number:03}" for place, size in enumerate(sizes) for number in range(size)}
    for key in keys:
        store.put(key, b"x" * len(key))
    return keys


def list_with_parents(keys: set[str]) -> set[str]:
    parts = {key.rpartition("/")[0] for key in keys}
    while any("/" in part and part.rpartition("/")[0] not in parts for part in parts):
        parts |= {part.rpartition("/")[0] for part in parts if "/" in part}
    return keys | parts


@pytest.mark.parametrize("page", [1, 7, 10, 10_000])
async def test_a_tree_comes_once_in_bounded_pages(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr(master_tree, "PAGE_ENTRIES", page)
    keys = list_with_parents(fill(await cluster.add_store(), [1, 10, 4, 40, 2, 0, 9, 1, 11, *[1] * 40, 100]))
    inner = list_with_parents(fill(await cluster.add_store("/data/d1/in/side", "s3://bucket/other"), [3, 25]))
    expected = {f"/data/{key}" for key in keys} | {f"/data/d1/in/side/{key}" for key in inner}
    expected |= {"/data", "/data/d1/in", "/data/d1/in/side"}
    for _ in range(2):
        found: list[str] = []
        async with aclosing(cluster.stub.list_tree("/")) as pages:
            async for one in pages:
                assert len(one.columns) <= page
                assert sum(kind == Kind.DIRECTORY for kind in one.columns.kinds) <= len(one.columns)
                found += list_paths(one.columns)
        assert sorted(found) == sorted(expected)
    async with aclosing(cluster.stub.list_tree("/", one.mark)) as pages:
        assert [(len(one.columns), one.unchanged) async for one in pages] == [(0, True)]


async def test_a_tree_that_goes_while_it_is_listed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it is listed; nothing is made up, and it is no mark for the next time."""
    monkeypatch.setattr(master_tree, "PAGE_ENTRIES", 10)
    store = await cluster.add_store()
    keys = fill(store, [30] * 6)
    await cluster.stub.sync("/data", recursive=True)
    found: list[str] = []
    lister = master_tree.TreeLister(
        cluster.master.meta, cluster.master.lister, cluster.master.surveyor, clock=cluster.master.lister._clock
    )
    mark, gone = -1, [key for key in keys if not key.startswith("d0/")]
    async for one in lister.list_tree("/data", 0):
        found += list_paths(one.columns)
        mark = one.mark
        while gone:
            store.delete(gone.pop())
        await cluster.stub.sync("/data", recursive=True)
    assert len(set(found)) == len(found)
    assert set(found) <= {f"/data/{key}" for key in list_with_parents(keys)}
    assert {f"/data/{key}" for key in keys if key.startswith("d0/")} <= set(found)
    assert mark == 0
    with pytest.raises(errors.NotFound):
        async for _ in lister.list_tree("/data/d5", 0):
            pass


async def test_many_directories_are_believed_as_each_is(cluster: Cluster) -> None:
    store = await cluster.add_store()
    fill(store, [2] * 12)
    await cluster.add_store("/never", "s3://bucket/never", sync_interval_s=-1.0)
    await cluster.add_store("/none", "s3://bucket/none", sync_interval_s=0.0)
    for path in ("/data/d1/below/000", "/data/d2", "/data/d3/000", "/never", "/none"):
        await cluster.stub.resolve_path(path)
    await cluster.stub.sync("/never")
    await cluster.stub.sync("/none")
    now_ns = cluster.master.lister._clock.now_ns()
    for interval_s in (None, 1000.0):
        if interval_s is not None:
            # With an interval below the mount each is asked for by itself.
            await cluster.stub.set_sync_interval("/data/d3", interval_s)
        inodes: list[InodeId] = [ROOT_INODE]
        lister = cluster.master.lister
        with cluster.master.meta.read() as txn:
            for inode in inodes:
                entries = namespace.list_entries(txn, inode).entries
                inodes += [entry.attr.inode for entry in entries if entry.attr.kind is Kind.DIRECTORY]
            assert len(inodes) > 15
            found = tree.describe_directories(txn, inodes)
        for since_ns in (0, now_ns, now_ns + 10**12):
            known, _ = lister.judge(found, since_ns)
            assert known.tolist() == [lister.is_listed(inode, since_ns) for inode in inodes]
        # And of states as they may be: young, from the future, not yet whole.
        whole = np.array([True, True, False, True])[np.arange(len(found)) % 4]
        young = np.arange(len(found)) % 3 == 0
        for age_s in (-50, 0.5, 100, 400, 2000):
            listed_ns = np.full(len(found), now_ns - int(age_s * 10**9))
            states = replace(found.states, complete=whole, untrusted=young, listed_ns=listed_ns)
            known, left_s = lister.judge(replace(found, states=states), now_ns)
            for row, inode in enumerate(inodes):
                state = State(bool(whole[row]), bool(young[row]), False, int(listed_ns[row]))
                one = state.describe(inode, MountId(int(found.mounts[row])))
                if not one.mount_id:
                    assert (known[row], left_s[row]) == (True, np.inf)
                    continue
                assert known[row] == lister._is_fresh(one, now_ns), (age_s, one)
                expected = max(0.0, lister._get_left_s(one)) if one.complete else 0.0
                assert left_s[row] == pytest.approx(expected, abs=1), (age_s, one)
