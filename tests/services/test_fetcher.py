"""The fetcher: one fetch for all who want a page, in the right order, with the right bytes or a clear error in time."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile, Role
from alluxio_like.rpc.messages import LoadFile, Priority
from alluxio_like.types import FileRef, Fingerprint, JobId, PageRange
from alluxio_like.ufs.memory import Fault, MemoryUfs
from alluxio_like.worker import fetcher
from alluxio_like.worker.flight import Flight
from tests.unit.worker_parts import MIB, Parts, gather_bytes, make_data, running_parts, total_length, wait_until


def read(
    parts: Parts,
    ref: FileRef,
    offset: int,
    length: int,
    *,
    priority: Priority = Priority.DEMAND,
    role: Role | None = Role.HOME,
) -> "asyncio.Task[bytes]":
    return asyncio.ensure_future(gather_bytes(parts.fetcher.read(ref, offset, length, priority=priority, role=role)))


async def test_a_thousand_readers_of_a_cold_page_cause_one_request(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        data = make_data(20 * MIB, 1)
        ref = parts.put(1, data)
        readers = [read(parts, ref, 9 * MIB + n, 1000) for n in range(1000)]
        results = await asyncio.gather(*readers)
        assert all(results[n] == data[9 * MIB + n : 9 * MIB + n + 1000] for n in range(1000))
        assert [(r.offset, r.length) for r in parts.ufs.requests] == [(9 * MIB, MIB)]


async def test_overlapping_reads_fetch_each_page_once(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        data = make_data(20 * MIB + 77, 2)
        ref = parts.put(1, data)
        spans = [(3 * MIB + 5, 4 * MIB), (5 * MIB, 6 * MIB), (0, 1), (19 * MIB, MIB + 77), (2 * MIB, 15 * MIB)]
        results = await asyncio.gather(*(read(parts, ref, offset, length) for offset, length in spans))
        for (offset, length), result in zip(spans, results, strict=True):
            assert result == data[offset : offset + length]
        wanted = set()
        for offset, length in spans:
            wanted |= set(range(offset // MIB, -(-(offset + length) // MIB)))
        assert total_length(parts.ufs.requests) == sum(min(MIB, len(data) - page * MIB) for page in wanted)
        # All is here now: the same reads ask nobody.
        before = len(parts.ufs.requests)
        assert await read(parts, ref, 3 * MIB, 10 * MIB) == data[3 * MIB : 13 * MIB]
        assert len(parts.ufs.requests) == before


async def test_a_small_file_is_one_request_whatever_part_of_its_start_is_read(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        data = make_data(5 * MIB + 1, 3)
        ref = parts.put(1, data)
        assert await read(parts, ref, 0, 10) == data[:10]
        await wait_until(lambda: parts.fetcher.count_flights() == 0)
        assert await read(parts, ref, 0, len(data)) == data
        assert [(r.offset, r.length) for r in parts.ufs.requests] == [(0, len(data))]


async def test_a_page_is_served_before_its_request_has_ended(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        data = make_data(6 * MIB, 4)
        ref = parts.put(1, data)
        rest = asyncio.Event()
        parts.ufs.fail("GET", Fault(after_bytes=3 * MIB, until=rest))
        whole = read(parts, ref, 0, len(data))
        assert await asyncio.wait_for(read(parts, ref, 100, MIB), 60) == data[100 : 100 + MIB]
        assert not whole.done()
        rest.set()
        assert await whole == data
        assert len(parts.ufs.requests) == 1


class Late:
    """A store that can only be asked after the read whether the content was the one meant, as a POSIX store."""

    checks_first = False

    def __init__(self, ufs: MemoryUfs) -> None:
        self._ufs = ufs
        self.stale = False
        self.last_chunk = asyncio.Event()
        self.go_on = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ufs, name)

    async def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        async for chunk in self._ufs.read(key, fingerprint, offset, length):
            yield chunk
        self.last_chunk.set()
        await self.go_on.wait()
        if self.stale:
            raise errors.Stale("changed during the read", subject=key)


class Keeping:
    """A store that keeps what was there before; `asked` counts the reads for which any version will do."""

    checks_first = True

    def __init__(self, ufs: MemoryUfs) -> None:
        self._ufs = ufs
        self.old = b""
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ufs, name)

    async def keeps_versions(self) -> bool:
        return True

    async def read_kept(self, _key: str, _fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        self.asked += 1
        yield memoryview(self.old)[offset : offset + length]


async def test_only_what_is_in_a_snapshot_may_be_an_older_version(tmp_path: Path) -> None:
    stores: list[Keeping] = []
    async with running_parts(tmp_path, wrap=lambda ufs: stores.append(Keeping(ufs)) or stores[0]) as parts:  # type: ignore[func-returns-value]
        old = stores[0].old = make_data(3 * MIB, 1)
        ref, store = parts.put(1, old), stores[0]
        parts.put(1, make_data(3 * MIB, 2))
        with pytest.raises(errors.Stale):
            await read(parts, ref, 0, len(old))
        assert store.asked == 0
        frozen = replace(ref, frozen=True)
        assert await read(parts, frozen, 0, len(old)) == old
        assert store.asked == 1
        # It is in the cache as what it is: whoever asks for this version gets it.
        assert await read(parts, ref, 0, len(old)) == old
        assert store.asked == 1


async def test_a_reader_of_a_snapshot_is_not_refused_with_others_whose_fetch_it_joins(tmp_path: Path) -> None:
    stores: list[Keeping] = []
    async with running_parts(tmp_path, wrap=lambda ufs: stores.append(Keeping(ufs)) or stores[0]) as parts:  # type: ignore[func-returns-value]
        old = stores[0].old = make_data(MIB, 1)
        ref, store = parts.put(1, old), stores[0]
        parts.put(1, make_data(MIB, 2))
        go_on = asyncio.Event()
        parts.ufs.fail("GET", Fault(until=go_on))
        live = read(parts, ref, 0, MIB)
        await wait_until(lambda: parts.ufs.in_flight == 1)
        frozen = read(parts, replace(ref, frozen=True), 0, MIB)
        await asyncio.sleep(0.05)
        go_on.set()
        assert await frozen == old
        assert await live == old
        assert (len(parts.ufs.requests), store.asked) == (1, 1)


@pytest.mark.parametrize("stale", [True, False])
async def test_nothing_is_believed_before_the_end_where_the_store_is_asked_afterwards(tmp_path: Path, stale: bool) -> None:
    late: list[Late] = []

    def wrap(ufs: MemoryUfs) -> Late:
        late.append(Late(ufs))
        return late[0]

    async with running_parts(tmp_path, wrap=wrap) as parts:
        data = make_data(3 * MIB, 5)
        ref = parts.put(1, data)
        late[0].stale = stale
        reader = read(parts, ref, 0, len(data))
        await asyncio.wait_for(late[0].last_chunk.wait(), 60)
        cached = parts.store.lookup(ref.file_id)
        assert cached is None or cached.present_bytes == 0
        assert not reader.done()
        late[0].go_on.set()
        if stale:
            with pytest.raises(errors.Stale):
                await reader
            cached = parts.store.lookup(ref.file_id)
            assert cached is None or cached.present_bytes == 0
        else:
            assert await reader == data


async def test_a_changed_object_is_stale_at_once(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        ref = parts.put(1, make_data(MIB, 6))
        parts.ufs.put(ref.key, make_data(MIB, 7))
        with pytest.raises(errors.Stale):
            await read(parts, ref, 0, 10)
        assert len(parts.ufs.requests) == 1


async def test_passing_failures_are_repeated_from_where_they_struck(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        data = make_data(6 * MIB, 8)
        ref = parts.put(1, data)
        parts.ufs.fail(
            "GET",
            errors.StoreThrottled("slow down"),
            Fault(error=errors.StoreUnavailable("cut"), after_bytes=3 * MIB + 5),
            errors.StoreProtocol("another length"),
        )
        assert await read(parts, ref, 0, len(data)) == data
        assert [r.offset for r in parts.ufs.requests] == [0, 0, 3 * MIB, 3 * MIB]
        throttles, _ = parts.turns.drain_report()
        assert [(t.bucket, t.count) for t in throttles] == [("memory://bucket", 1)]


@pytest.mark.parametrize("error", [errors.StoreUnavailable("503"), errors.StoreThrottled("429")])
async def test_a_store_that_stays_away_is_a_clear_error_in_time(tmp_path: Path, error: errors.StoreError) -> None:
    async with running_parts(tmp_path, io_timeout_s=2.0) as parts:
        ref = parts.put(1, make_data(MIB))
        parts.ufs.fail("GET", error, always=True)
        started = time.monotonic()
        with pytest.raises(type(error)):
            await read(parts, ref, 0, 10)
        assert time.monotonic() - started < 20
        assert len(parts.ufs.requests) > 1
        parts.ufs.heal()
        assert len(await read(parts, ref, 0, 10)) == 10


@pytest.mark.parametrize("after", [0, 700_000])
async def test_a_store_that_stalls_is_a_clear_error_in_time(tmp_path: Path, after: int) -> None:
    async with running_parts(tmp_path, io_timeout_s=2.0) as parts:
        ref = parts.put(1, make_data(3 * MIB))
        parts.ufs.fail("GET", Fault(until=asyncio.Event(), after_bytes=after), always=True)
        started = time.monotonic()
        with pytest.raises(errors.StoreUnavailable):
            await read(parts, ref, 0, 3 * MIB)
        assert 0.4 < time.monotonic() - started < 20


async def test_a_wrong_bucket_or_credential_is_not_repeated(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        ref = parts.put(1, make_data(MIB))
        parts.ufs.fail("GET", errors.StoreMissing("no such bucket"))
        with pytest.raises(errors.StoreMissing):
            await read(parts, ref, 0, 10)
        assert len(parts.ufs.requests) == 1


async def test_a_reader_that_leaves_takes_nothing_from_the_others(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        data = make_data(2 * MIB, 9)
        ref = parts.put(1, data)
        go = asyncio.Event()
        parts.ufs.fail("GET", Fault(until=go))
        first, second = read(parts, ref, 0, len(data)), read(parts, ref, MIB, 100)
        await wait_until(lambda: parts.ufs.in_flight == 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        assert await second == data[MIB : MIB + 100]
        assert len(parts.ufs.requests) == 1


async def test_what_nobody_waits_for_any_more_is_not_begun(tmp_path: Path) -> None:
    async with running_parts(tmp_path, demand_slots=1) as parts:
        go = asyncio.Event()
        parts.ufs.fail("GET", Fault(until=go))
        held, dropped = parts.put(1, make_data(MIB, 1)), parts.put(2, make_data(MIB, 2))
        first = read(parts, held, 0, 10)
        await wait_until(lambda: parts.ufs.in_flight == 1)
        second = read(parts, dropped, 0, 10)
        await wait_until(lambda: parts.turns.count_waiting(Priority.DEMAND) == 1)
        second.cancel()
        await wait_until(lambda: parts.fetcher.count_flights() == 1)
        assert parts.turns.count_waiting(Priority.DEMAND) == 0
        go.set()
        assert len(await first) == 10
        # Whoever comes later gets a fetch of his own, and the slot was not lost.
        assert await read(parts, dropped, 0, 10) == make_data(MIB, 2)[:10]


async def test_a_full_cache_reads_through_and_still_shares(tmp_path: Path) -> None:
    async with running_parts(tmp_path, quota_bytes=MIB) as parts:
        data = make_data(7 * MIB + 3, 10)
        ref = parts.put(1, data)
        results = await asyncio.gather(*(read(parts, ref, 0, len(data)) for _ in range(20)))
        assert all(result == data for result in results)
        assert total_length(parts.ufs.requests) <= 2 * len(data)


async def test_a_page_handed_to_the_disk_before_an_earlier_one_was_refused_finds_no_room(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        ref = parts.put(1, make_data(MIB, 10))
        refused = Flight(ref, PageRange(0, 1), Priority.DEMAND, None, (), None)
        with pytest.raises(errors.NoSpace):
            parts.fetcher._pilot._write(refused, 0, memoryview(make_data(MIB, 10)), None)  # what the disk's thread runs
        assert parts.store.lookup(ref.file_id) is None


async def test_reading_through_keeps_nothing(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        data = make_data(9 * MIB + 3, 11)
        ref = parts.put(1, data)
        results = await asyncio.gather(*(read(parts, ref, 0, len(data), role=None) for _ in range(5)))
        assert all(result == data for result in results)
        assert total_length(parts.ufs.requests) == len(data)
        assert parts.store.lookup(ref.file_id) is None


async def test_fill_says_what_has_landed_as_it_lands(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        data = make_data(4 * MIB + 9, 12)
        ref = parts.put(1, data)
        go = asyncio.Event()
        parts.ufs.fail("GET", Fault(after_bytes=2 * MIB, until=go))
        pages: list[int] = []
        async for landed in parts.fetcher.fill(ref, PageRange(0, 5), priority=Priority.DEMAND, role=Role.HOME):
            assert landed.cached is not None
            pages.extend(range(landed.pages.first, landed.pages.stop))
            if pages == [0, 1]:
                go.set()
        assert pages == [0, 1, 2, 3, 4]
        cached = parts.store.lookup(ref.file_id)
        assert cached is not None
        assert cached.is_complete
        assert cached.read(0, len(data)) == data


async def test_fill_of_a_full_cache_says_read_it_through(tmp_path: Path) -> None:
    async with running_parts(tmp_path, quota_bytes=MIB) as parts:
        ref = parts.put(1, make_data(6 * MIB, 13))
        landed = [x async for x in parts.fetcher.fill(ref, PageRange(0, 6), priority=Priority.DEMAND, role=Role.HOME)]
        assert landed[-1].cached is None


async def test_read_cached_only_has_what_is_here(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        data = make_data(3 * MIB, 14)
        ref = parts.put(1, data)
        with pytest.raises(errors.NotFound):
            await gather_bytes(parts.fetcher.read_cached(ref, 0, 10))
        await read(parts, ref, 0, len(data))
        before = len(parts.ufs.requests)
        assert await gather_bytes(parts.fetcher.read_cached(ref, 5, 2 * MIB)) == data[5 : 5 + 2 * MIB]
        assert len(parts.ufs.requests) == before


async def test_another_content_under_the_same_id_is_never_mixed_in(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        old, new = make_data(2 * MIB, 15), make_data(2 * MIB, 16)
        ref = parts.put(1, old)
        assert await read(parts, ref, 0, 10) == old[:10]
        await wait_until(lambda: parts.fetcher.count_flights() == 0)
        # A namespace that was lost gives out the same inode and version again.
        other = parts.put(1, new)
        assert other.file_id == ref.file_id
        assert await read(parts, other, 0, len(new)) == new


async def test_loads_give_way_to_readers(tmp_path: Path) -> None:
    async with running_parts(tmp_path, load_slots=4) as parts:
        go = asyncio.Event()
        parts.ufs.fail("GET", Fault(until=go), always=True)
        loads = [parts.put(n, make_data(1000, n)) for n in range(1, 9)]
        reader_ref = parts.put(100, make_data(MIB, 100))
        bringing = [asyncio.ensure_future(parts.fetcher.bring(ref, PageRange(0, 1), job=JobId("j"))) for ref in loads]
        await wait_until(lambda: parts.ufs.in_flight == 4, "as many loads as there are slots")
        reader = read(parts, reader_ref, 0, 10)
        await wait_until(lambda: parts.ufs.in_flight == 5, "a reader does not wait for a load's slot")
        assert parts.ufs.requests[-1].key == reader_ref.key
        go.set()
        parts.ufs.heal()
        assert await reader == make_data(MIB, 100)[:10]
        brought = await asyncio.gather(*bringing)
        assert sum(b.requests for b in brought) == 8
        assert all(b.fetched_bytes == 1000 for b in brought)


async def test_a_reader_raises_the_priority_of_a_load_it_joins(tmp_path: Path) -> None:
    async with running_parts(tmp_path, load_slots=1) as parts:
        go = asyncio.Event()
        parts.ufs.fail("GET", Fault(until=go))
        first, second = parts.put(1, make_data(1000, 1)), parts.put(2, make_data(1000, 2))
        bringing = [asyncio.ensure_future(parts.fetcher.bring(ref, PageRange(0, 1), job=JobId("j"))) for ref in (first, second)]
        await wait_until(lambda: parts.turns.count_waiting(Priority.LOAD) == 1)
        assert await asyncio.wait_for(read(parts, second, 0, 1000), 60) == make_data(1000, 2)
        assert not bringing[0].done()
        go.set()
        await asyncio.gather(*bringing)
        assert len(parts.ufs.requests) == 2


async def _load(parts: Parts, refs: list[FileRef], bandwidth: float = 0.0, job: str = "job") -> list[Any]:
    return [message async for message in parts.loader.load(job, [LoadFile(ref) for ref in refs], bandwidth)]


async def test_a_load_tells_of_every_file_once_and_makes_one_request_each(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        sizes = [110_000] * 300 + [0, 1, MIB, MIB + 1, 20 * MIB + 5]
        refs = [parts.put(n + 1, make_data(size, n)) for n, size in enumerate(sizes)]
        messages = await _load(parts, refs)
        results = [result for message in messages for result in message.results]
        assert sorted(r.file_id.inode for r in results) == [ref.inode for ref in refs]
        assert all(r.code == "" for r in results)
        assert sum(m.loaded_bytes for m in messages) == sum(sizes)
        assert sum(m.requests for m in messages) == len(parts.ufs.requests) == 303 + 3
        assert len(messages) < 150
        checks = [c async for c in parts.loader.check([LoadFile(ref) for ref in refs], verify=True)]
        assert [(c.missing_pages, c.bad_pages) for c in checks] == [(0, 0)] * len(refs)
        damaged = parts.store.lookup(refs[-1].file_id)
        assert damaged is not None
        page = damaged.read(MIB, MIB)
        with damaged.open_fd() as fd:
            os.pwrite(fd, b"!" if page[:1] != b"!" else b"?", MIB)
        checks = [c async for c in parts.loader.check([LoadFile(refs[-1])], verify=True)]
        assert [(c.missing_pages, c.bad_pages) for c in checks] == [(1, 1)]
        assert parts.metrics.registry.get_sample_value("alluxio_like_corrupt_pages_total") == 1
        damaged.write_pages(1, memoryview(page))
        again = await _load(parts, refs, job="another")
        assert all(result.skipped for message in again for result in message.results)
        assert sum(m.skipped_bytes for m in again) == sum(sizes)
        assert len(parts.ufs.requests) == 306


async def test_a_job_that_asks_again_is_told_what_was_missing_when_it_asked_first(tmp_path: Path) -> None:
    """Its master was killed meanwhile; what others loaded before was there."""
    async with running_parts(tmp_path) as parts:
        refs = [parts.put(n + 1, make_data(1000, n)) for n in range(20)]
        await _load(parts, refs[:5], job="before")
        for _ in range(2):
            messages = await _load(parts, refs)
            results = {result.file_id.inode: result.skipped for message in messages for result in message.results}
            assert results == {ref.inode: ref.inode <= 5 for ref in refs}
        assert len(parts.ufs.requests) == 20


async def test_a_load_goes_on_after_a_file_that_fails(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        refs = [parts.put(n, make_data(1000, n)) for n in range(1, 6)]
        parts.ufs.delete(refs[2].key)
        messages = await _load(parts, refs)
        codes = {result.file_id.inode: result.code for message in messages for result in message.results}
        assert codes == {1: "", 2: "", 3: "stale", 4: "", 5: ""}
        checks = {c.file_id.inode: c.missing_pages async for c in parts.loader.check([LoadFile(r) for r in refs], verify=False)}
        assert checks == {1: 0, 2: 0, 3: 1, 4: 0, 5: 0}


async def test_pages_that_cannot_be_verified_after_a_crash_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_parts(tmp_path) as parts:
        data = make_data(2 * MIB, 5)
        ref = parts.put(1, data)
        await read(parts, ref, 0, len(data))
        cached = parts.store.lookup(ref.file_id)
        assert cached is not None

        def fail(_: CachedFile, pages: PageRange) -> None:
            assert parts.store.remove([ref.file_id]).files == 1
            raise errors.NotFound("no longer in the cache")

        monkeypatch.setattr(CachedFile, "has_suspects", lambda self, pages: True)
        monkeypatch.setattr(CachedFile, "verify_suspects", fail)
        reader = read(parts, ref, MIB, 10)
        assert await asyncio.wait_for(reader, 60) == data[MIB : MIB + 10]


async def test_pages_kept_in_memory_leave_no_table_behind(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        refs = [parts.put(n, make_data(1000, n)) for n in range(1, 6)]
        for ref in [*refs, *refs]:
            assert len(await read(parts, ref, 0, 1000, role=None)) == 1000
        await wait_until(lambda: parts.fetcher.count_flights() == 0)
        assert len(parts.ufs.requests) == 5
        assert parts.fetcher._flights == {}


async def test_who_comes_while_an_abandoned_fetch_is_cancelled_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled fetch takes as long to end as the disk takes for what it has already got."""
    monkeypatch.setattr(fetcher, "_ABANDONED_S", 0.01)
    async with running_parts(tmp_path) as parts:
        data = make_data(3 * MIB, 9)
        ref = parts.put(1, data)
        go, disk_goes = asyncio.Event(), threading.Event()
        disk = parts.fetcher._pilot._disk
        for _ in range(2):
            disk.submit(lambda: disk_goes.wait(60))
        await wait_until(disk._queue.empty)
        parts.ufs.fail("GET", Fault(after_bytes=MIB, until=go))
        reader = read(parts, ref, 0, 10)
        await wait_until(lambda: disk._queue.qsize() == 1)
        (flight,) = {*parts.fetcher._flights[ref.file_id].values()}
        assert flight.task is not None
        reader.cancel()
        await wait_until(lambda: flight.task is not None and flight.task.cancelling() > 0)
        late = read(parts, ref, 2 * MIB, 10)
        await asyncio.sleep(0)
        disk_goes.set()
        assert await asyncio.wait_for(late, 60) == data[2 * MIB : 2 * MIB + 10]


async def test_a_load_ends_when_its_planning_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of a file's index is that file's; a defect ends the load with an error. Neither leaves the caller waiting."""
    async with running_parts(tmp_path) as parts:
        refs = [parts.put(n, make_data(1000, n)) for n in range(1, 4)]
        await _load(parts, refs)
        plain = CachedFile.missing_pages

        def missing_pages(self: CachedFile, pages: PageRange) -> list[PageRange]:
            if self.file_id.inode == 2:
                raise failure
            return plain(self, pages)

        failure: Exception = errors.DiskError("index of the cache failed")
        monkeypatch.setattr(CachedFile, "missing_pages", missing_pages)
        messages = await asyncio.wait_for(_load(parts, refs), 60)
        codes = {result.file_id.inode: result.code for message in messages for result in message.results}
        assert codes == {1: "", 2: "disk_error", 3: ""}
        failure = RuntimeError("a defect")
        with pytest.raises(RuntimeError, match="a defect"):
            await asyncio.wait_for(_load(parts, refs), 60)
        assert await asyncio.wait_for(_load(parts, []), 60) == []


async def test_a_load_keeps_to_its_bandwidth(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        refs = [parts.put(n, make_data(100_000, n)) for n in range(1, 11)]
        started = time.monotonic()
        await _load(parts, refs, bandwidth=1_000_000)
        assert 0.6 < time.monotonic() - started < 30


async def test_a_load_that_is_left_stops(tmp_path: Path) -> None:
    async with running_parts(tmp_path, load_slots=2) as parts:
        refs = [parts.put(n, make_data(1000, n)) for n in range(1, 101)]
        go = asyncio.Event()
        parts.ufs.fail("GET", Fault(until=go), always=True)

        async def consume() -> None:
            async for _ in parts.loader.load("job", [LoadFile(ref) for ref in refs], 0):
                pass

        task = asyncio.ensure_future(consume())
        await wait_until(lambda: parts.ufs.in_flight == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        parts.ufs.heal()
        await wait_until(lambda: parts.fetcher.count_flights() == 0)
        assert len(parts.ufs.requests) == 2


class _Immediate:
    """A disk queue that is done at once: its futures' callbacks run only after whoever awaits them went on."""

    def submit(self, function: Any, *, alone: bool = False) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(function())
        return future


async def test_pages_count_as_landed_when_their_write_is_awaited(tmp_path: Path) -> None:
    async with running_parts(tmp_path) as parts:
        parts.fetcher._pilot._disk = _Immediate()  # type: ignore[assignment]
        data = make_data(5 * MIB + 3, 21)
        ref = parts.put(1, data)
        brought = await parts.fetcher.bring(ref, PageRange(0, 6), job=JobId("j"))
        assert (brought.fetched_bytes, brought.requests) == (len(data), 1)
        assert len(parts.ufs.requests) == 1
