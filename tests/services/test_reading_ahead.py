"""A namespace that does not fit in memory: the disk is waited for in a thread, for many names at once, and the loop goes on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from alluxio_like.kv.api import Begun
from alluxio_like.kv.lmdb import LmdbStore
from alluxio_like.master import reading_ahead
from alluxio_like.master.reading_ahead import MOST_LEFT, WORTH
from alluxio_like.types import InodeId
from alluxio_like.ufs.memory import MemoryUfs
from tests.unit.master_parts import Cluster, wait_until

FILES = 40


class Disk:
    """What the namespace's store is asked to read ahead; while it is held, that waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[bytes]] = []
        self.missing = 0
        self.faults = 0
        self._free = threading.Event()
        self._free.set()
        read_ahead = LmdbStore.read_ahead

        def begin(store: LmdbStore, keys: Sequence[bytes]) -> Begun:
            self.batches.append(list(keys))
            read_ahead(store, keys)
            return Begun(self.missing, self._wait) if self.missing or not self._free.is_set() else Begun()

        monkeypatch.setattr(LmdbStore, "read_ahead", begin)
        monkeypatch.setattr(reading_ahead, "_count_faults", lambda: self.faults)

    def _wait(self) -> None:
        assert self._free.wait(30)

    def hold(self) -> None:
        self._free.clear()

    def let_go(self) -> None:
        self._free.set()

    def list_batches(self) -> list[list[bytes]]:
        """The names of each."""
        return [names for keys in self.batches if (names := [key[9:] for key in keys if key[:1] == b"D"])]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
async def cluster(tmp_path: Path, disk: Disk) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "home")
    await made.start()
    yield made
    disk.let_go()
    await made.close()


async def fill(cluster: Cluster) -> tuple[MemoryUfs, InodeId]:
    store = await cluster.add_store("/data")
    for number in range(FILES):
        store.put(f"d/{number:03}", b"x" * (number + 1))
    entry = (await cluster.stub.resolve_path("/data/d")).entry
    assert entry is not None
    await cluster.stub.list_dir(entry.attr.inode, b"", 1000)
    return store, entry.attr.inode


async def wait_for_disk(cluster: Cluster, disk: Disk, inode: InodeId) -> None:
    """Reads on the loop that have waited."""
    disk.faults += 1000
    await cluster.stub.lookup(inode, "000")
    disk.batches.clear()


async def test_names_in_memory_are_read_at_once(cluster: Cluster, disk: Disk) -> None:
    _, inode = await fill(cluster)
    disk.hold()
    assert [(await cluster.stub.lookup(inode, f"{n:03}")).entry is not None for n in range(3)] == [True] * 3
    assert not disk.batches


async def test_the_loop_goes_on_while_names_come_from_the_disk_together(cluster: Cluster, disk: Disk) -> None:
    _, inode = await fill(cluster)
    await wait_for_disk(cluster, disk, inode)
    disk.hold()
    first = asyncio.create_task(cluster.stub.lookup(inode, "001"))
    await wait_until(lambda: disk.batches, "the first name to be asked of the disk")
    others = [asyncio.create_task(cluster.stub.lookup(inode, f"{n:03}")) for n in range(2, FILES)]
    others += [asyncio.create_task(cluster.stub.get_entry(inode))]
    others[0].cancel()
    # What reads no name is answered meanwhile.
    assert await cluster.stub.list_mounts()
    assert not first.done()
    disk.let_go()
    assert (await first).entry is not None
    found = await asyncio.gather(*others, return_exceptions=True)
    assert [answer.entry.attr.size for answer in found[1:-1]] == list(range(4, FILES + 1))  # type: ignore[union-attr]
    batches = disk.list_batches()
    assert batches[0] == [b"001"]
    assert len(batches[1]) > FILES // 2


async def test_what_changes_while_a_name_comes_from_the_disk_is_answered_as_it_is_then(cluster: Cluster, disk: Disk) -> None:
    store, inode = await fill(cluster)
    await wait_for_disk(cluster, disk, inode)
    disk.hold()
    asked = asyncio.create_task(cluster.stub.lookup(inode, "005"))
    await wait_until(lambda: disk.batches, "the name to be asked of the disk")
    # It waits for its turn behind the name.
    page = asyncio.create_task(cluster.stub.list_dir(inode, b"", 1000))
    store.put("d/005", b"y" * 1000)
    store.delete("d/006")
    survey = cluster.master.surveyor.begin(cluster.master.lister._clock.now_ns(), strict=True)
    await survey.bring(inode)
    await survey.close()
    disk.let_go()
    entry = (await asked).entry
    assert entry is not None
    assert entry.attr.size == 1000
    assert {entry.name for entry in (await page).entries} == {f"{n:03}" for n in range(FILES)} - {"006"}


async def test_names_are_read_ahead_while_enough_are_not_in_memory(cluster: Cluster, disk: Disk) -> None:
    _, inode = await fill(cluster)

    async def count_batches(lookups: int) -> int:
        disk.batches.clear()
        for number in range(lookups):
            await cluster.stub.lookup(inode, f"{number % FILES:03}")
        return len(disk.list_batches())

    disk.faults += 1
    assert await count_batches(30) == WORTH
    disk.faults += 1
    disk.missing = 1
    assert await count_batches(100) == 99
    disk.missing = 0
    assert await count_batches(2 * MOST_LEFT) == MOST_LEFT
    assert await count_batches(30) == 0


async def test_a_disk_that_fails_meanwhile_is_the_reads_to_tell(
    cluster: Cluster, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, inode = await fill(cluster)
    await wait_for_disk(cluster, disk, inode)

    def fail(store: LmdbStore, keys: Sequence[bytes]) -> Begun:
        raise RuntimeError("broken")

    monkeypatch.setattr(LmdbStore, "read_ahead", fail)
    assert (await cluster.stub.lookup(inode, "001")).entry is not None
    assert (await cluster.stub.lookup(inode, "missing")).entry is None
