"""Bits that flip on a cache disk: found by a reader or the scrubber, dropped, and fetched again where they were."""

import asyncio
import mmap
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.cache.format import make_file_path
from alluxio_like.cache.store import CachedFile, CacheDirSpec, CacheStore, Role, ScrubMark
from alluxio_like.clock import SystemClock
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import FileId, FileRef, PageRange
from alluxio_like.ufs.memory import Fault
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.repair import MOST_PAGES, Repairer
from alluxio_like.worker.scrub import Scrubber
from tests.unit.worker_parts import MIB, Parts, make_data, running_parts, wait_until

SIZE = 4 * MIB + 99


@dataclass
class Bench:
    parts: Parts
    repairer: Repairer
    disk: DiskQueue
    refs: dict[FileId, FileRef]

    async def put(self, inode: int, size: int = SIZE) -> tuple[FileRef, bytes]:
        """A cached file."""
        data = make_data(size, inode)
        ref = self.parts.put(inode, data)
        self.refs[ref.file_id] = ref
        pages = PageRange(0, -(-size // MIB))
        async for _ in self.parts.fetcher.fill(ref, pages, priority=Priority.DEMAND, role=Role.HOME):
            pass
        return ref, data

    def get(self, ref: FileRef) -> CachedFile:
        cached = self.parts.store.lookup(ref.file_id)
        assert cached is not None
        return cached

    def open(self, ref: FileRef) -> int:
        """As somebody who reads the file without us."""
        path = make_file_path(ref.file_id, self.get(ref).generation)
        return os.open(path, os.O_RDONLY, dir_fd=self.parts.store.directory_fds[0])

    def flip(self, ref: FileRef, offset: int) -> None:
        path = make_file_path(ref.file_id, self.get(ref).generation)
        fd = os.open(path, os.O_RDWR, dir_fd=self.parts.store.directory_fds[0])
        byte = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([byte[0] ^ 4]), offset)
        os.close(fd)

    def is_whole(self, ref: FileRef) -> bool:
        return self.get(ref).is_complete

    def count_gets(self) -> int:
        return sum(request.op == "GET" for request in self.parts.ufs.requests)

    def count(self, name: str) -> float:
        value = self.parts.metrics.registry.get_sample_value(f"alluxio_like_{name}")
        assert value is not None
        return value


@asynccontextmanager
async def running_bench(directory: Path) -> AsyncIterator[Bench]:
    async with running_parts(directory) as parts:
        refs: dict[FileId, FileRef] = {}
        disk = DiskQueue("slow", 1)

        async def lookup_ref(file_id: FileId) -> FileRef | None:
            return refs.get(file_id)

        repairer = Repairer(store=parts.store, fetcher=parts.fetcher, disk=disk, metrics=parts.metrics, lookup_ref=lookup_ref)
        try:
            yield Bench(parts, repairer, disk, refs)
        finally:
            await repairer.close()
            await disk.close()


async def test_a_page_that_a_reader_reports_is_dropped_and_fetched_again(tmp_path: Path) -> None:
    async with running_bench(tmp_path) as bench:
        ref, data = await bench.put(1)
        generation = bench.get(ref).generation
        fd = bench.open(ref)
        mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        bench.flip(ref, 2 * MIB + 5)
        assert os.pread(fd, 10, 2 * MIB) != data[2 * MIB : 2 * MIB + 10]
        gets = bench.count_gets()
        assert await bench.repairer.check(ref, [1, 2, 3]) == 1
        await wait_until(lambda: bench.is_whole(ref))
        assert bench.count_gets() == gets + 1, "one page, not the file"
        # Those who have it open, or mapped, see the right bytes: it is still the same file.
        assert os.pread(fd, SIZE, 0) == data
        assert mapped[:] == data
        assert bench.get(ref).generation == generation
        await wait_until(lambda: bench.count("repaired_bytes_total") == MIB)
        assert bench.count("corrupt_pages_total") == 1
        mapped.close()
        os.close(fd)


async def test_a_readers_word_is_not_believed(tmp_path: Path) -> None:
    async with running_bench(tmp_path) as bench:
        ref, _ = await bench.put(1)
        gets = bench.count_gets()
        assert await bench.repairer.check(ref, [0, 1, 2, 3, 4]) == 0
        assert await bench.repairer.check(FileRef(ref.inode, ref.version, ref.mount_id, "k", Other), [0]) == 0
        for pages in ([5], [-1], list(range(MOST_PAGES + 1))):
            with pytest.raises(errors.InvalidArgument):
                await bench.repairer.check(ref, pages)
        assert bench.is_whole(ref)
        assert bench.count_gets() == gets


async def test_what_is_dropped_is_out_of_the_index_before_the_reader_is_told(tmp_path: Path) -> None:
    async with running_bench(tmp_path) as bench:
        ref, _ = await bench.put(1)
        bench.parts.ufs.fail("GET", Fault(until=asyncio.Event()), always=True)
        bench.flip(ref, 5)
        assert await bench.repairer.check(ref, [0]) == 1
        record = bench.parts.store._dirs[0].get_index().lookup_block(ref.file_id, 0)
        assert record is not None
        assert not record.bits & 1
        bench.parts.ufs.heal()


async def test_what_the_store_no_longer_has_stays_missing(tmp_path: Path) -> None:
    async with running_bench(tmp_path) as bench:
        ref, _ = await bench.put(1)
        bench.parts.ufs.put("file-1", b"another content")
        bench.flip(ref, 5)
        assert await bench.repairer.check(ref, [0]) == 1
        await wait_until(lambda: not bench.repairer._tasks)
        assert [(run.first, run.stop) for run in bench.get(ref).missing_pages(PageRange(0, 5))] == [(0, 1)]


async def test_reports_during_a_repair_are_taken_up_by_it(tmp_path: Path) -> None:
    async with running_bench(tmp_path) as bench:
        ref, data = await bench.put(1)
        go = asyncio.Event()
        bench.parts.ufs.fail("GET", Fault(until=go), always=True)
        bench.flip(ref, 5)
        bench.flip(ref, 3 * MIB)
        assert await bench.repairer.check(ref, [0]) == 1
        assert await bench.repairer.check(ref, [3]) == 1
        assert len(bench.repairer._tasks) == 1
        bench.parts.ufs.heal()
        go.set()
        await wait_until(lambda: bench.is_whole(ref))
        assert bench.get(ref).read(0, SIZE) == data


# the scrubber


def make_scrubber(bench: Bench, period_s: float) -> Scrubber:
    return Scrubber(
        bench.parts.store,
        bench.disk,
        bench.parts.metrics,
        SystemClock(),
        period_s=period_s,
        on_bad=bench.repairer.note_bad,
    )


async def end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_bit_flipped_under_an_open_file_is_found_within_the_period(tmp_path: Path) -> None:
    """As under a reader whom the kernel serves: nobody of us sees those reads."""
    async with running_bench(tmp_path) as bench:
        files = [await bench.put(inode) for inode in range(1, 5)]
        ref, data = files[2]
        bench.parts.store.flush()
        fd = bench.open(ref)
        mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        bench.flip(ref, SIZE - 1)
        assert mapped[SIZE - 1] != data[SIZE - 1]
        task = asyncio.create_task(make_scrubber(bench, 1.0).run())
        await wait_until(lambda: bench.count("repaired_bytes_total") > 0, "the scrubber finds it")
        await wait_until(lambda: bench.is_whole(ref))
        assert mapped[:] == data
        assert os.pread(fd, SIZE, 0) == data
        # The next rounds find nothing.
        before = bench.count("scrubbed_bytes_total")
        await wait_until(lambda: bench.count("scrubbed_bytes_total") > before + 6 * SIZE, "further rounds")
        assert bench.count("corrupt_pages_total") == 1
        await end(task)
        mapped.close()
        os.close(fd)


class Steps:
    """Counts what the scrubber verifies."""

    def __init__(self, scrubber: Scrubber, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        verify = scrubber._verify

        def counting(info: Any, pages: PageRange) -> Any:
            self.seen.append(info.file_id.inode)
            return verify(info, pages)

        monkeypatch.setattr(scrubber, "_verify", counting)


async def test_a_round_is_spread_over_the_period(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_bench(tmp_path) as bench:
        for inode in range(1, 21):
            await bench.put(inode, 1000)
        bench.parts.store.flush()
        scrubber = make_scrubber(bench, 2.0)
        steps = Steps(scrubber, monkeypatch)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        task = asyncio.create_task(scrubber.run())
        await wait_until(lambda: len(steps.seen) >= 10)
        assert loop.time() - begun > 0.5, "half of it in about half of nine tenths of the period"
        await wait_until(lambda: len(steps.seen) >= 20)
        assert loop.time() - begun > 1.4
        await end(task)


async def test_a_round_goes_on_where_it_was_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_bench(tmp_path) as bench:
        for inode in range(1, 11):
            await bench.put(inode, 1000)
        store = bench.parts.store
        store.flush()
        now_s = SystemClock().now_ns() / 1e9
        cost = 64 << 10
        store.set_scrub_mark(0, ScrubMark(now_s - 450, FileId(*_id(5)), 5 * (1000 + cost)))
        scrubber = make_scrubber(bench, 1000.0)
        steps = Steps(scrubber, monkeypatch)
        task = asyncio.create_task(scrubber.run())
        await wait_until(lambda: len(steps.seen) >= 1)
        assert steps.seen == [6], "what was done is not done again, what is to come keeps its pace"
        await end(task)
        # One that is far too old, or of the future, begins anew.
        for started_s in (now_s - 5000, now_s + 5000):
            store.set_scrub_mark(0, ScrubMark(started_s, FileId(*_id(9)), 1))
            scrubber = make_scrubber(bench, 1000.0)
            steps = Steps(scrubber, monkeypatch)
            task = asyncio.create_task(scrubber.run())
            await wait_until(lambda: len(steps.seen) >= 1)  # noqa: B023 (awaited before the next turn)
            assert steps.seen[0] == 1
            await end(task)
    reopened = CacheStore.open(
        [CacheDirSpec(tmp_path / "cache", 1 << 30, allow_root_disk=True)], cluster_id=None, clock=SystemClock(), boot_id="boot"
    )
    mark = reopened.get_scrub_mark(0)
    assert mark is not None
    assert mark.last is None
    reopened.set_scrub_mark(0, None)
    assert reopened.get_scrub_mark(0) is None
    reopened.close()


async def test_a_directory_that_fails_ends_its_own_walk_only(tmp_path: Path) -> None:
    specs = [CacheDirSpec(tmp_path / name, 1 << 30, allow_root_disk=True) for name in ("d0", "d1")]
    store = CacheStore.open(specs, cluster_id=None, clock=SystemClock(), boot_id="boot")
    disk = DiskQueue("slow", 1)
    scrubber = Scrubber(store, disk, Metrics(), SystemClock(), period_s=0.05, on_bad=lambda file_id, pages: None)
    store._dirs[0].fail("as ordered")
    task = asyncio.create_task(scrubber.run())
    for _ in range(3):
        await wait_until(lambda: store.get_scrub_mark(1) is not None)
        await wait_until(lambda: store.get_scrub_mark(1) is None or task.done())
    assert not task.done()
    await end(task)
    await disk.close()
    await asyncio.to_thread(store.close)


def _id(inode: int) -> Any:
    return inode, 1


Other: Any = type("Other", (), {"token": "other", "size": SIZE})()
