"""Small files of another machine, read into memory: a real data server, and every way in which it can go wrong."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from alluxio_like import errors
from alluxio_like.cache.reader import LocalFile
from alluxio_like.client.cluster import ClusterTracker
from alluxio_like.client.expected import Expected
from alluxio_like.client.far import FarReader
from alluxio_like.client.fetching import Fetcher, FillTarget
from alluxio_like.client.flight import Flight
from alluxio_like.client.guests import Guests, ReadOnce
from alluxio_like.client.local import LocalCaches
from alluxio_like.client.readahead import Budget
from alluxio_like.client.reading import FileReader, Scratch
from alluxio_like.rpc.data_pool import DataPool
from alluxio_like.types import Cluster, Entry, FileId, FileRef, Fingerprint, PageRange, Worker, WorkerId
from alluxio_like.waits import NONE, Cause, Seconds
from tests.fakes_rpc import make_entry
from tests.services.test_data_socket import Place, running
from tests.unit.worker_parts import make_data, make_ref, wait_until

SIZE = 110_000
IO_TIMEOUT_S = 60.0
SILENCE_S = 60.0


def name(inode: int, tag: str = "") -> FileRef:
    """What Place.put would call a content."""
    return make_ref(inode, f"file-{inode}", Fingerprint(tag or f"tag-{inode}", SIZE))


class Tracker:
    """What a Fetcher asks of a ClusterTracker."""

    def __init__(self, place: Place) -> None:
        self.view: Cluster = place.cluster
        self.pool: DataPool = place.pool
        self.worker = place.worker
        self.failures = 0

    def lookup_home(self, view: Cluster, ref: FileRef, offset: int) -> Worker:
        return self.worker

    def note_failure(self, worker: Worker) -> None:
        self.failures += 1

    def note_success(self, worker: Worker) -> None:
        pass


class Local:
    """Workers on this machine: those named."""

    is_current = True

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def is_local(self, worker: Worker) -> bool:
        return worker.worker_id in self.ids


class Full:
    """The ordinary reader: it has the right bytes, however late."""

    def __init__(self, data: bytes, gate: asyncio.Event | None) -> None:
        self.data = data
        self.gate = gate
        self.closed = False

    async def read(self, offset: int, length: int) -> bytes:
        if self.gate is not None:
            await self.gate.wait()
        return self.data[offset : offset + length]

    def try_read(self, offset: int, length: int) -> None:
        return None

    def get_waits(self) -> Seconds:
        return NONE

    def begin_close(self) -> None:
        self.closed = True


class Far:
    """A client's parts around one far worker."""

    def __init__(self, place: Place, budget_bytes: int = 1 << 20, io_timeout_s: float = IO_TIMEOUT_S) -> None:
        self.place = place
        self.io_timeout_s = io_timeout_s
        self.tracker = Tracker(place)
        self.local = Local()
        self.fetcher = Fetcher(
            cast("ClusterTracker", self.tracker), cast("LocalCaches", self.local), io_timeout_s=io_timeout_s, metrics=None
        )
        self.budget = Budget(budget_bytes)
        self.fulls: list[Full] = []
        self.full_gate: asyncio.Event | None = None
        self.open = 0

    def make(self, ref: FileRef, data: bytes) -> FarReader:
        def open_full(_: Entry) -> FileReader:
            self.fulls.append(Full(data, self.full_gate))
            return cast("FileReader", self.fulls[-1])

        def closed(_: FarReader) -> None:
            self.open -= 1

        self.open += 1
        entry = make_entry("f", ref.inode, ref.size)
        return FarReader(entry, ref, budget=self.budget, open_full=open_full, io_timeout_s=self.io_timeout_s, on_close=closed)

    def begin(self, ref: FileRef, data: bytes) -> FarReader:
        reader = self.make(ref, data)
        assert reader.begin(self.fetcher)
        return reader


@asynccontextmanager
async def standing(directory: Path, silence_s: float = SILENCE_S, **how: Any) -> AsyncIterator[Far]:
    """With a connection that is open already: the first read of all goes another way."""
    async with running(directory, silence_s) as place:
        far = Far(place, **how)
        ref = place.put(99, b"first")
        assert not far.make(ref, b"first").begin(far.fetcher)
        await wait_until(lambda: place.metrics.data_connections._value.get() == 1, "a connection")
        await wait_until(lambda: bool(place.pool._lookup(place.cluster, place.worker, 1)), "greeted")
        far.open = 0
        yield far
        assert far.budget.used_bytes == 0
        assert not far.budget._holders


async def test_a_file_is_asked_for_when_it_is_opened_and_read_from_memory(tmp_path: Path) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path) as far:
        ref = far.place.put(1, data)
        reader = far.begin(ref, data)
        await wait_until(lambda: reader._data is not None, "landed")
        assert far.budget.used_bytes == SIZE
        assert reader.try_read(0, 70_000) == data[:70_000]
        assert reader.try_read(70_000, 1 << 20) == data[70_000:]
        assert far.budget.used_bytes == 0, "what was read once is let go of"
        assert reader.try_read(0, 10) is None
        assert await reader.read(0, 10) == data[:10], "read again by another way"
        assert len(far.fulls) == 1
        await reader.close()
        assert far.fulls[0].closed
        assert far.open == 0
        assert far.place.handler.noted == SIZE


async def test_reads_that_come_before_the_bytes_wait_for_them(tmp_path: Path) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path) as far:
        far.place.handler.contents[1] = data
        far.place.handler.gate = asyncio.Event()
        reader = far.begin(name(1), data)
        assert reader.try_read(0, 10) is None
        reads = [asyncio.create_task(reader.read(offset, 50_000)) for offset in (0, 50_000, 100_000)]
        given_up = asyncio.create_task(reader.read(0, 1))
        await wait_until(lambda: far.place.handler.under_way == 1, "asked")
        given_up.cancel()
        far.place.handler.gate.set()
        assert b"".join([bytes(part) for part in await asyncio.gather(*reads)]) == data
        assert not far.fulls
        waited = reader.get_waits()
        assert waited[Cause.STORE] > 0, "the other worker said what it waited for"
        await reader.close()


async def test_reads_that_come_before_the_bytes_need_no_task(tmp_path: Path) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path) as far:
        far.place.handler.contents[1] = data
        far.place.handler.gate = asyncio.Event()
        reader = far.begin(name(1), data)
        got: list[bytes | None] = []

        def end(part: memoryview | None) -> None:
            got.append(None if part is None else bytes(part))

        assert reader.begin_read(0, 60_000, end)
        give_up = reader.begin_read(10, 10, end)
        assert give_up is not None
        assert reader.begin_read(60_000, 50_000, end)
        await wait_until(lambda: far.place.handler.under_way == 1, "asked")
        give_up()
        far.place.handler.gate.set()
        await wait_until(lambda: len(got) == 2, "both")
        assert got == [data[:60_000], data[60_000:]]
        assert reader.get_waits()[Cause.STORE] > 0, "the other worker said what it waited for"
        assert far.budget.used_bytes == 0, "all of it was read"
        assert reader.begin_read(0, 10, end) is None
        await reader.close()
        # Of a worker that fails nothing comes, and the ordinary way is to be asked.
        far.place.handler.error = errors.Unavailable("away")
        reader = far.begin(name(1, "other"), data)
        assert reader.begin_read(0, 10, end)
        await wait_until(lambda: len(got) == 3, "told")
        assert got[2] is None
        await reader.close()


class NoFiles(Local):
    """No cache file is here."""

    def __init__(self) -> None:
        super().__init__()
        self.touched = 0

    def open_files(self, _: FileRef) -> dict[WorkerId, LocalFile]:
        return {}

    def touch_any(self, _: FileId, read_bytes: int) -> None:
        self.touched += read_bytes


async def test_a_few_bytes_in_no_order_need_no_task(tmp_path: Path) -> None:
    data = make_data(12 << 20)
    async with standing(tmp_path) as far:
        ref = far.place.put(1, data)
        local = NoFiles()
        reader = FileReader(
            make_entry("f", ref.inode, ref.size),
            ref,
            fetcher=far.fetcher,
            local=cast("LocalCaches", local),
            budget=far.budget,
            scratch=Scratch(),
            readahead_max_bytes=1 << 20,
            io_timeout_s=IO_TIMEOUT_S,
            metrics=None,
            on_stale=AsyncMock(return_value=None),
            on_close=lambda _: None,
        )
        got: dict[int, bytes | None] = {}

        def begin(offset: int, length: int) -> Callable[[], None] | None:
            return reader.begin_read(offset, length, lambda part: got.update({offset: None if part is None else bytes(part)}))

        offsets = [5 << 20, 1 << 20, (7 << 20) + 3, 30, 11 << 20]
        give_ups = [begin(offset, 4096) for offset in offsets]
        assert all(give_ups)
        assert give_ups[1] is not None
        give_ups[1]()
        del offsets[1]
        await wait_until(lambda: len(got) == len(offsets), "all")
        assert got == {offset: data[offset : offset + 4096] for offset in offsets}
        assert begin(3 << 20, 1 << 20) is None, "that is not little"
        assert begin(len(data) - 10, 20) is None, "not all of that is within the file"
        assert begin((11 << 20) + 4096, 4096) is None, "that follows on the one before: it is read ahead then"
        # One that is still under way when the file is closed.
        assert begin(9 << 20, 4096)
        await reader.close()
        await wait_until(lambda: 9 << 20 in got, "told")
        assert begin(2 << 20, 4096) is None, "it is closed"
        assert local.touched == 4 * 4096 + (4096 if got[9 << 20] else 0)
        assert far.tracker.failures == 0


@pytest.mark.parametrize("when", ["at once", "asked"])
async def test_closing_takes_back_what_is_under_way(tmp_path: Path, when: str) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path) as far:
        far.place.handler.contents[1] = data
        far.place.handler.gate = asyncio.Event()
        reader = far.begin(name(1), data)
        reading = asyncio.create_task(reader.read(0, 10))
        if when == "asked":
            await wait_until(lambda: far.place.handler.under_way == 1, "asked")
        await asyncio.sleep(0)
        await reader.close()
        with pytest.raises(errors.Internal):
            await reading
        assert far.budget.used_bytes == 0
        await wait_until(lambda: far.place.handler.under_way == 0, "given up at the other end, too")
        far.place.handler.gate.set()
        # The connection is as good as before.
        other = make_data(1000)
        again = far.begin(far.place.put(2, other), other)
        assert await again.read(0, 1000) == other
        await again.close()
        assert far.tracker.failures == 0


async def test_a_bit_flipped_at_the_other_end_is_never_given_out(tmp_path: Path) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path) as far:
        ref = far.place.put(1, data)
        [path] = [one for one in (tmp_path / "cache/files").rglob("*") if one.is_file() and one.stat().st_size == SIZE]
        fd = os.open(path, os.O_WRONLY)
        os.pwrite(fd, bytes([data[77_777] ^ 4]), 77_777)
        os.close(fd)
        reader = far.begin(ref, data)
        assert await reader.read(0, SIZE) == data
        assert len(far.fulls) == 1
        assert far.tracker.failures == 1
        await wait_until(lambda: not far.place.get_file(ref).get_present_runs(PageRange(0, 1)), "the bad page dropped there")
        await reader.close()


async def test_another_content_under_the_same_id_is_never_given_out(tmp_path: Path) -> None:
    old = make_data(SIZE)
    async with standing(tmp_path) as far:
        far.place.put(1, make_data(SIZE, 5))
        far.place.handler.error = errors.Stale("replaced", subject="f")
        reader = far.begin(name(1, "another tag"), old)
        assert await reader.read(0, SIZE) == old
        assert len(far.fulls) == 1
        assert far.tracker.failures == 0, "that worker did what it should"
        await reader.close()


@pytest.mark.parametrize("how", ["gone", "silent"])
async def test_a_worker_that_goes_away_or_falls_silent_is_followed_by_the_ordinary_reader(tmp_path: Path, how: str) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path, silence_s=0.5 if how == "silent" else SILENCE_S) as far:
        far.place.handler.contents[1] = data
        far.place.handler.gate = asyncio.Event()
        reader = far.begin(name(1), data)
        reading = asyncio.create_task(reader.read(0, SIZE))
        await wait_until(lambda: far.place.handler.under_way == 1, "asked")
        if how == "gone":
            await far.place.server.stop()
        assert await reading == data
        assert len(far.fulls) == 1
        assert far.tracker.failures == 1
        far.place.handler.gate.set()
        await reader.close()


async def test_all_of_it_ends_within_the_time_for_one_read(tmp_path: Path) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path, silence_s=0.7, io_timeout_s=2.0) as far:
        far.full_gate = asyncio.Event()
        far.place.handler.contents[1] = data
        far.place.handler.gate = asyncio.Event()
        began = time.monotonic()
        reader = far.begin(name(1), data)
        with pytest.raises(errors.TimedOut):
            await asyncio.wait_for(reader.read(0, SIZE), 60)
        assert time.monotonic() - began > 1.9, "it had the time that there is"
        far.place.handler.gate.set()
        await reader.close()


async def test_memory_is_bounded_and_what_nobody_reads_gives_way(tmp_path: Path) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path, budget_bytes=3 * SIZE) as far:
        ref = far.place.put(1, data)
        readers = [far.begin(ref, data) for _ in range(3)]
        assert not far.make(ref, data).begin(far.fetcher), "those under way are about to be read"
        await wait_until(lambda: all(one._data is not None for one in readers), "landed")
        readers.append(far.begin(ref, data))
        assert far.budget.used_bytes <= 3 * SIZE
        assert [bytes(await one.read(0, SIZE)) == data for one in readers] == [True] * 4
        assert len(far.fulls) == 1, "the one that gave way is read by another way"
        for one in readers:
            await one.close()


def expect(far: Far, data: bytes) -> tuple[Expected, list[FarReader]]:
    """Files that are about to be opened, and the readers that were begun for them."""
    begun: list[FarReader] = []

    def begin_far(entry: Entry) -> FarReader | None:
        assert entry.ref is not None
        reader = far.make(entry.ref, data)
        if not reader.begin(far.fetcher):
            return None
        begun.append(reader)
        return reader

    return Expected(begin_far), begun


def make_expected(ref: FileRef) -> Entry:
    return replace(make_entry("f", ref.inode, ref.size), ref=ref)


async def test_what_is_expected_is_asked_for_once_and_belongs_to_who_opens_it(tmp_path: Path) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path) as far:
        entry = make_expected(far.place.put(1, data))
        expected, begun = expect(far, data)
        expected.begin(entry)
        expected.begin(entry)
        await wait_until(lambda: begun[0]._data is not None, "landed")
        reader = expected.take(entry)
        assert reader is begun[0]
        assert expected.take(entry) is None, "of one handle"
        expected.close()
        assert reader.try_read(0, SIZE) == data
        assert far.place.handler.noted == SIZE
        await reader.close()


async def test_what_is_expected_is_given_for_the_very_content_that_is_opened(tmp_path: Path) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path) as far:
        expected, begun = expect(far, data)
        expected.begin(make_expected(far.place.put(1, data)))
        assert expected.take(make_expected(name(1, "replaced"))) is None
        assert begun[0]._closed
        far.place.handler.error = errors.Unavailable("gone")
        expected.begin(make_expected(name(2)))
        await wait_until(lambda: begun[1]._begun is None, "failed")
        assert expected.take(make_expected(name(2))) is None
        assert begun[1]._closed
        expected.close()


async def test_what_nobody_opens_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alluxio_like.client.expected._KEEP_S", 0.05)
    monkeypatch.setattr("alluxio_like.client.expected._MOST", 3)
    data = make_data(SIZE)
    async with standing(tmp_path) as far:
        expected, begun = expect(far, data)
        for inode in range(1, 6):
            expected.begin(make_expected(far.place.put(inode, data)))
        assert len(expected) == 3
        assert [reader._closed for reader in begun] == [True, True, False, False, False]
        await wait_until(lambda: not len(expected), "nobody came")
        assert all(reader._closed for reader in begun)
        expected.close()


async def test_what_is_of_this_machine_or_large_is_not_asked_for(tmp_path: Path) -> None:
    data = make_data(SIZE)
    async with standing(tmp_path) as far:
        ref = far.place.put(1, data)
        far.local.ids.add(far.place.worker.worker_id)
        assert not far.make(ref, data).begin(far.fetcher)
        far.local.ids.clear()
        far.local.is_current = False
        assert not far.make(ref, data).begin(far.fetcher)
        assert far.budget.used_bytes == 0


# Copies here


def test_which_files_were_read_before_is_remembered_by_groups() -> None:
    read = ReadOnce(groups=2)
    assert not read.note(1)
    assert not read.note(4095)
    assert read.note(1)
    assert not read.note(4096)
    assert read.note(4096)
    assert not read.note(1 << 20)
    # The group that was new first has made room.
    assert not read.note(4095)


class Filling:
    """A Fetcher that brings nothing, but notes it."""

    def __init__(self) -> None:
        self.filled: list[int] = []
        self.now = self.most = 0
        self.gate = asyncio.Event()
        self.error: errors.AlluxioLikeError | None = None

    async def fill(self, target: FillTarget, flight: Flight) -> bool:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
            self.filled.append(target.ref.inode)
            if self.error is not None:
                raise self.error
            return True
        finally:
            self.now -= 1


async def test_what_is_read_again_is_brought_behind_the_answer_few_at_a_time() -> None:
    fetcher = Filling()
    guests = Guests(cast("Fetcher", fetcher), io_timeout_s=5.0)
    refs = [name(inode) for inode in range(1, 500)]

    def note_all() -> None:
        for ref in refs:
            guests.note_read(ref)

    note_all()
    await asyncio.sleep(0)
    assert fetcher.now == 0, "what is read once is not kept"
    note_all()
    await wait_until(lambda: fetcher.now == 2, "two under way")
    fetcher.error = errors.Stale("gone")
    fetcher.gate.set()
    await wait_until(lambda: not guests._tasks, "all brought")
    assert fetcher.most == 2
    assert sorted(fetcher.filled)[:10] == list(range(1, 11))
    assert 256 <= len(fetcher.filled) <= 258, "what comes too fast is left for the next time"
    fetcher.gate.clear()
    note_all()
    await wait_until(lambda: fetcher.now == 2, "two under way")
    await guests.close()
    assert fetcher.now == 0
    guests.note_read(refs[0])
    assert not guests._tasks
