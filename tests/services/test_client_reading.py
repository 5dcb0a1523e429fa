"""Reading through the client from in-process workers over real gRPC: failover, staleness, time limits, cancellation,
read-ahead."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from alluxio_like import errors
from alluxio_like.client import Client, FileReader
from alluxio_like.config import ClientConfig
from alluxio_like.rpc.messages import Priority
from alluxio_like.rpc.server import RpcServer
from alluxio_like.types import PAGE_BYTES, Cluster, Entry
from alluxio_like.waits import Cause
from tests.fakes_rpc import FakeMaster, FakeWorker, make_entry, make_worker, serve, wait_until


class Stage:
    """A master, some workers that hold the same content, and a client."""

    def __init__(self, master: FakeMaster, workers: list[FakeWorker], servers: list[RpcServer], client: Client) -> None:
        self.master = master
        self.workers = workers
        self.servers = servers
        self.client = client

    def add_file(self, name: str, size: int, inode: int = 5) -> tuple[Entry, bytes]:
        content = random.Random(inode).randbytes(size)
        entry = make_entry(name, inode, size)
        assert entry.ref is not None
        self.master.entries[name] = entry
        for worker in self.workers:
            worker.contents[entry.ref.file_id] = content
        return entry, content

    def home_first(self, reader: FileReader) -> list[FakeWorker]:
        """The workers in the order in which they are asked for the file's start."""
        ranked = self.client._cluster.rank(self.master.cluster, reader.ref, 0)
        return [self.workers[int(worker.worker_id)] for worker in ranked]


@asynccontextmanager
async def stage(workers: int = 1, **settings: object) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        fakes = [FakeWorker() for _ in range(workers)]
        servers = [await stack.enter_async_context(serve(worker=fake)) for fake in fakes]
        master = FakeMaster()
        master.cluster = Cluster("c", 1, tuple(make_worker(server, str(n)) for n, server in enumerate(servers)))
        master_server = await stack.enter_async_context(serve(master=master))
        config = ClientConfig.model_validate({"master": master_server.address, "io_timeout_s": 60, **settings})
        async with Client.open(config) as client:
            yield Stage(master, fakes, servers, client)
            assert client._budget.used_bytes >= 0
        assert client._budget.used_bytes == 0, "what was taken of the budget comes back"
        left = [task for task in asyncio.all_tasks() if task.get_name().startswith(("fetch ", "cluster", "doors", "touch"))]
        assert left == []


async def test_bytes_are_right_for_any_range() -> None:
    async with stage(2) as here:
        entry, content = here.add_file("f", 20 * PAGE_BYTES + 12345)
        reader = here.client.open_file(entry)
        chance = random.Random(1)
        for _ in range(40):
            offset = chance.randrange(len(content) + 10)
            length = chance.choice([1, 4096, 131072, PAGE_BYTES + 1, 9 * PAGE_BYTES])
            assert await reader.read(offset, length) == content[offset : offset + length]
        assert await reader.read(len(content), 10) == b""
        await reader.close()


async def test_concurrent_reads_of_one_reader() -> None:
    async with stage(2) as here:
        entry, content = here.add_file("f", 30 * PAGE_BYTES)
        reader = here.client.open_file(entry)
        chance = random.Random(2)
        ranges = [(chance.randrange(len(content)), chance.randrange(1, 3 * PAGE_BYTES)) for _ in range(60)]
        got = await asyncio.gather(*(reader.read(offset, length) for offset, length in ranges))
        for (offset, length), data in zip(ranges, got, strict=True):
            assert data == content[offset : offset + length]


async def test_a_small_file_is_asked_for_once_and_whole() -> None:
    async with stage(1) as here:
        entry, content = here.add_file("f", 5 * PAGE_BYTES)
        reader = here.client.open_file(entry)
        got = b"".join([bytes(await reader.read(offset, 131072)) for offset in range(0, len(content), 131072)])
        assert got == content
        assert here.workers[0].reads == [(0, len(content), Priority.DEMAND)]


async def test_a_read_ends_when_its_file_is_closed_whatever_had_begun() -> None:
    async with stage(1) as here:
        entry, _ = here.add_file("f", 5 * PAGE_BYTES)
        here.workers[0].stall = True
        for turns in range(12):
            reader = here.client.open_file(entry)
            reading = asyncio.create_task(reader.read(0, 10))
            for _ in range(turns):
                await asyncio.sleep(0)
            await reader.close()
            with pytest.raises(errors.AlluxioLikeError):
                await asyncio.wait_for(reading, 60)


async def test_a_random_read_asks_for_no_more_than_it_needs() -> None:
    async with stage(1) as here:
        entry, content = here.add_file("f", 64 * PAGE_BYTES)
        reader = here.client.open_file(entry)
        for offset in (30 * PAGE_BYTES + 5, 3 * PAGE_BYTES, 50 * PAGE_BYTES, 11):
            assert await reader.read(offset, 4096) == content[offset : offset + 4096]
        assert [(offset, length) for offset, length, _ in here.workers[0].reads] == [
            (30 * PAGE_BYTES + 5, 4096),
            (3 * PAGE_BYTES, 4096),
            (50 * PAGE_BYTES, 4096),
            (11, 4096),
        ]
        await wait_until(lambda: reader._flights == [])


async def test_sequential_reads_run_ahead_and_ask_for_nothing_twice() -> None:
    async with stage(1) as here:
        entry, content = here.add_file("f", 100 * PAGE_BYTES + 17)
        reader = here.client.open_file(entry)
        position = 0
        while position < len(content):
            data = bytes(await reader.read(position, 262144))
            assert data == content[position : position + 262144]
            position += len(data)
        reads = here.workers[0].reads
        assert sum(length for _, length, _ in reads) == len(content)
        assert here.workers[0].max_open_reads >= 3
        assert sum(priority is Priority.DEMAND for _, _, priority in reads) <= 4
        ahead = [(offset, length) for offset, length, priority in reads if priority is Priority.AHEAD]
        assert sum(length == 8 * PAGE_BYTES for _, length in ahead) >= 8
    assert here.workers[0].cancelled == 0


async def begin_on_its_way(reader: FileReader, page: int, got: list[bytes | None]) -> Callable[[], None]:
    """Begin a read of a page that is on its way to memory, or will be in a moment; what gives it up. `got` gets how it ends."""
    for _ in range(1000):
        tasks = asyncio.all_tasks()
        give_up = reader.begin_read(page * PAGE_BYTES, PAGE_BYTES, lambda data: got.append(None if data is None else bytes(data)))
        if give_up is not None:
            more = asyncio.all_tasks() - tasks
            assert not [task for task in more if not task.get_name().startswith("fetch ")], "no task waits for it"
            return give_up
        await asyncio.sleep(0)
    raise AssertionError("such a read takes a task")


async def test_reads_of_what_is_on_its_way_take_no_task() -> None:
    async with stage(1) as here:
        entry, content = here.add_file("f", 64 * PAGE_BYTES)
        reader = here.client.open_file(entry)
        await reader.read(0, PAGE_BYTES)
        here.workers[0].gate = gate = asyncio.Semaphore(0)
        second = asyncio.create_task(reader.read(PAGE_BYTES, PAGE_BYTES))
        await asyncio.sleep(0)
        begun = 0
        for page in range(2, 24):
            expected = content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
            at_hand = reader.try_read(page * PAGE_BYTES, PAGE_BYTES)
            if at_hand is not None:
                assert at_hand == expected
                continue
            begun += 1
            got: list[bytes | None] = []
            given_up: list[bytes | None] = []
            await begin_on_its_way(reader, page, got)
            (await begin_on_its_way(reader, page, given_up))()
            assert (got, given_up) == ([], []), "not before it is there"
            while not got:
                gate.release()
                await asyncio.sleep(0.005)
            assert (got, given_up) == ([expected], [])
        assert await second == content[PAGE_BYTES : 2 * PAGE_BYTES]
        assert begun > 4
        reads = here.workers[0].reads
        assert len({offset for offset, _, _ in reads}) == len(reads), "nothing was asked for twice"
        assert max(offset for offset, _, _ in reads) > 24 * PAGE_BYTES, "read-ahead went on"
        assert all(flight.waiters == 0 for flight in reader._flights)


async def test_a_begun_read_is_told_when_what_was_on_its_way_does_not_come() -> None:
    async with stage(1) as here:
        entry, content = here.add_file("f", 64 * PAGE_BYTES)
        reader = here.client.open_file(entry)
        await reader.read(0, PAGE_BYTES)
        here.workers[0].fail_ahead = errors.StoreUnavailable("away")
        second = asyncio.create_task(reader.read(PAGE_BYTES, PAGE_BYTES))
        await asyncio.sleep(0)
        failed: list[bytes | None] = []
        await begin_on_its_way(reader, 2, failed)
        await wait_until(lambda: failed == [None])
        assert await second == content[PAGE_BYTES : 2 * PAGE_BYTES]
        assert await reader.read(2 * PAGE_BYTES, PAGE_BYTES) == content[2 * PAGE_BYTES : 3 * PAGE_BYTES]
        here.workers[0].fail_ahead, here.workers[0].stall = None, True
        waiting = asyncio.create_task(reader.read(40 * PAGE_BYTES, 2 * PAGE_BYTES))
        await asyncio.sleep(0)
        closed: list[bytes | None] = []
        await begin_on_its_way(reader, 41, closed)
        await reader.close()
        assert closed == [None]
        with pytest.raises(errors.Internal):
            await waiting


async def test_read_ahead_keeps_to_one_budget_and_idle_readers_give_back() -> None:
    budget = 24 * PAGE_BYTES
    async with stage(1, buffer_bytes=budget, readahead_max_bytes=16 * PAGE_BYTES) as here:
        readers = []
        for number in range(6):
            entry, content = here.add_file(f"f{number}", 64 * PAGE_BYTES, inode=10 + number)
            readers.append((here.client.open_file(entry), content))
        for step in range(12):
            for reader, content in readers:
                offset = step * 262144
                assert await reader.read(offset, 262144) == content[offset : offset + 262144]
                assert here.client._budget.used_bytes <= budget
                held = sum(len(flight.buffer or b"") for one, _ in readers for flight in one._flights if flight.taken_bytes)
                assert held <= budget
        # The first reader alone goes on: the others' unread bytes make room for it.
        reader, content = readers[0]
        await wait_until(lambda: all(flight.done for one, _ in readers for flight in one._flights))
        before = len(here.workers[0].reads)
        for step in range(12, 100):
            offset = step * 262144
            assert await reader.read(offset, 262144) == content[offset : offset + 262144]
        ahead = [priority for _, _, priority in here.workers[0].reads[before:]]
        assert ahead.count(Priority.AHEAD) >= 2


async def test_another_worker_goes_on_where_one_stopped() -> None:
    async with stage(3) as here:
        entry, content = here.add_file("f", 6 * PAGE_BYTES)
        reader = here.client.open_file(entry)
        await here.client._cluster.get_view()
        first, second, _ = here.home_first(reader)
        first.cut_after = 2 * PAGE_BYTES
        assert await reader.read(0, len(content)) == content
        assert first.reads == [(0, len(content), Priority.DEMAND)]
        assert second.reads == [(2 * PAGE_BYTES, 4 * PAGE_BYTES, Priority.DEMAND)]


async def test_a_dead_worker_is_passed_over_at_once() -> None:
    async with stage(2) as here:
        entry, content = here.add_file("f", 3 * PAGE_BYTES)
        reader = here.client.open_file(entry)
        await here.client._cluster.get_view()
        dead = here.workers.index(here.home_first(reader)[0])
        await here.servers[dead].stop(0)
        started = time.monotonic()
        assert await reader.read(0, len(content)) == content
        assert time.monotonic() - started < 15


async def test_a_worker_that_hangs_leaves_time_for_another() -> None:
    async with stage(2, io_timeout_s=6) as here:
        entry, content = here.add_file("f", 3 * PAGE_BYTES)
        reader = here.client.open_file(entry)
        await here.client._cluster.get_view()
        here.home_first(reader)[0].stall = True
        started = time.monotonic()
        assert await reader.read(0, len(content)) == content
        assert time.monotonic() - started < 20
        await wait_until(lambda: all(worker.open_reads == 0 for worker in here.workers))


async def test_when_all_hang_it_ends_within_the_time() -> None:
    async with stage(2, io_timeout_s=1.5) as here:
        entry, _ = here.add_file("f", 3 * PAGE_BYTES)
        for worker in here.workers:
            worker.stall = True
        started = time.monotonic()
        with pytest.raises(errors.TimedOut):
            await here.client.open_file(entry).read(0, 10)
        assert time.monotonic() - started < 20
        await wait_until(lambda: all(worker.open_reads == 0 for worker in here.workers))


async def test_without_any_worker_it_is_unavailable_within_the_time() -> None:
    async with stage(1, io_timeout_s=1) as here:
        entry, _ = here.add_file("f", 10)
        here.master.cluster = Cluster("c", 2, ())
        started = time.monotonic()
        with pytest.raises((errors.Unavailable, errors.TimedOut), match=r"no worker is live|not read within"):
            await here.client.open_file(entry).read(0, 10)
        assert time.monotonic() - started < 20


async def test_a_worker_that_comes_later_is_found() -> None:
    async with stage(1) as here:
        entry, content = here.add_file("f", 10)
        there, here.master.cluster = here.master.cluster, Cluster("c", 2, ())
        reading = asyncio.create_task(here.client.open_file(entry).read(0, 10))
        await wait_until(lambda: here.master.calls.count("get_cluster") >= 2)
        here.master.cluster = replace(there, epoch=3)
        assert await reading == content


async def test_stale_is_said_and_the_master_is_asked_to_look_again() -> None:
    async with stage(2) as here:
        entry, _ = here.add_file("f", 3 * PAGE_BYTES)
        await here.client.lookup_path("/f")
        for worker in here.workers:
            worker.always = errors.Stale("another content", subject="data/f")
        reader = here.client.open_file(entry)
        with pytest.raises(errors.Stale):
            await reader.read(0, 10)
        assert f"sync None {entry.attr.inode}" in here.master.calls
        assert sum(len(worker.reads) for worker in here.workers) == 1, "no other worker is asked about what the store said"
        here.master.calls.clear()
        await here.client.lookup_path("/f")
        assert here.master.calls == ["resolve /f"], "the old answer is forgotten"
        with pytest.raises(errors.Stale):
            await reader.read(0, 10)


async def test_who_has_read_a_part_reads_on_where_the_store_keeps_older_versions() -> None:
    async with stage(1) as here:
        entry, content = here.add_file("f", 30 * PAGE_BYTES)
        [worker] = here.workers
        reader, late = here.client.open_file(entry), here.client.open_file(entry)
        assert await reader.read(0, 10) == content[:10]
        worker.is_replaced = True
        with pytest.raises(errors.Stale):
            await late.read(0, 10)
        with pytest.raises(errors.Stale):
            await reader.read(25 * PAGE_BYTES, 10)
        worker.keeps_versions = True
        assert await reader.read(25 * PAGE_BYTES, 10) == content[25 * PAGE_BYTES : 25 * PAGE_BYTES + 10]
        assert f"sync None {entry.attr.inode}" in here.master.calls
        # Who has had nothing of it is to see what is there now.
        with pytest.raises(errors.Stale):
            await late.read(0, 10)


@pytest.mark.parametrize("kind", [errors.StoreDenied, errors.StoreUnavailable, errors.StoreProtocol, errors.AccessDenied])
async def test_what_the_store_said_is_final(kind: type[errors.AlluxioLikeError]) -> None:
    async with stage(2) as here:
        entry, _ = here.add_file("f", 100)
        for worker in here.workers:
            worker.always = kind("no")
        with pytest.raises(kind):
            await here.client.open_file(entry).read(0, 10)
        assert sum(len(worker.reads) for worker in here.workers) == 1


async def test_a_cancelled_read_ends_what_was_begun_for_it_alone() -> None:
    async with stage(1) as here:
        entry, content = here.add_file("f", 3 * PAGE_BYTES)
        here.workers[0].stall = True
        reader = here.client.open_file(entry)
        one = asyncio.create_task(reader.read(0, 10))
        two = asyncio.create_task(reader.read(PAGE_BYTES, 10))
        await wait_until(lambda: here.workers[0].open_reads == 1)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        await asyncio.sleep(0.05)
        assert here.workers[0].open_reads == 1, "the other one still waits for it"
        two.cancel()
        with pytest.raises(asyncio.CancelledError):
            await two
        await wait_until(lambda: here.workers[0].open_reads == 0)
        await wait_until(lambda: reader._flights == [])
        here.workers[0].stall = False
        assert await reader.read(0, 10) == content[:10]


async def test_closing_ends_reads_and_read_ahead() -> None:
    async with stage(1) as here:
        entry, _ = here.add_file("f", 64 * PAGE_BYTES)
        reader = here.client.open_file(entry)
        for step in range(4):
            await reader.read(step * PAGE_BYTES, PAGE_BYTES)
        here.workers[0].stall = True
        waiting = asyncio.create_task(reader.read(60 * PAGE_BYTES, 10))
        await wait_until(lambda: here.workers[0].open_reads >= 1)
        await reader.close()
        await reader.close()
        with pytest.raises(errors.Internal):
            await waiting
        await wait_until(lambda: here.workers[0].open_reads == 0)
        assert here.client._budget.used_bytes == 0


async def test_a_failed_read_ahead_is_nobodys_error() -> None:
    async with stage(1) as here:
        entry, content = here.add_file("f", 64 * PAGE_BYTES)
        reader = here.client.open_file(entry)
        here.workers[0].fail_ahead = errors.StoreUnavailable("away")
        for step in range(64):
            data = await reader.read(step * PAGE_BYTES, PAGE_BYTES)
            assert data == content[step * PAGE_BYTES : (step + 1) * PAGE_BYTES]
        assert any(priority is Priority.AHEAD for _, _, priority in here.workers[0].reads), "nothing was read ahead"


async def test_reading_goes_on_without_the_master() -> None:
    async with stage(1) as here:
        entry, content = here.add_file("f", 2 * PAGE_BYTES)
        other, other_content = here.add_file("g", 2 * PAGE_BYTES, inode=6)
        assert await here.client.open_file(entry).read(0, 10) == content[:10]
        here.master.fail = [errors.Internal("broken") for _ in range(100)]
        here.client._cluster._refreshed_s -= 100
        assert await here.client.open_file(other).read(0, 10) == other_content[:10]


async def test_names_are_remembered_for_as_long_as_the_master_said() -> None:
    async with stage(1) as here:
        here.add_file("f", 10)
        for _ in range(3):
            assert (await here.client.lookup_path("/f")).entry is not None
            assert (await here.client.lookup_path("/none")).entry is None
        assert here.master.calls == ["resolve /f", "resolve /none"]
        here.master.valid_s = 0.0
        here.client._names.clear()
        here.master.calls.clear()
        for _ in range(2):
            await here.client.lookup_path("/f")
        assert here.master.calls == ["resolve /f"] * 2


async def test_listings_are_paged_and_remembered() -> None:
    async with stage(1) as here:
        for number in range(25):
            here.add_file(f"f{number:02}", 10, inode=100 + number)
        page = await here.client.list_dir(make_entry("", 1, 0).attr.inode, b"", 10)
        assert len(page.entries) == 10
        names = [entry.name async for entry in here.client.iter_dir(make_entry("", 1, 0).attr.inode)]
        assert names == [f"f{number:02}" for number in range(25)]
        here.master.calls.clear()
        entry = (await here.client.lookup(make_entry("", 1, 0).attr.inode, "f07")).entry
        assert entry is not None and entry.ref is not None and entry.ref.key == "data/f07"
        assert here.master.calls == []


async def test_no_descriptors_are_left() -> None:
    async with stage(2) as here:
        entry, _ = here.add_file("f", PAGE_BYTES)
        await here.client.open_file(entry).read(0, 10)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        async with stage(2) as here:
            entry, _ = here.add_file("f", PAGE_BYTES)
            await here.client.open_file(entry).read(0, 10)
    # gRPC closes its sockets in threads of its own, a moment later.
    await wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 3)  # noqa: PTH208


# What reads wait for


@pytest.mark.parametrize(
    ("told", "cause"), [(Cause.STORE, Cause.STORE), (Cause.QUEUE, Cause.QUEUE), (Cause.FILL, Cause.FILL), (None, Cause.PEER)]
)
async def test_a_wait_is_for_what_the_worker_says_else_for_the_worker(told: Cause | None, cause: Cause) -> None:
    async with stage() as here:
        entry, _ = here.add_file("f", 3 * PAGE_BYTES)
        here.workers[0].delay_s, here.workers[0].delayed_by = 0.1, told
        reader = here.client.open_file(entry)
        started_s = time.monotonic()
        await asyncio.gather(*(reader.read(offset, 1000) for offset in (0, PAGE_BYTES, 2 * PAGE_BYTES)))
        elapsed_s = time.monotonic() - started_s
        waits = reader.get_waits()
        assert 0.3 <= sum(waits) <= elapsed_s + 0.001, "three that wait at once wait once"
        # (How much of it depends on what else the machine does.)
        assert waits[cause] >= 0.09
        assert sum(waits) - waits[cause] == pytest.approx(sum(waits[one] for one in {Cause.PEER, Cause.OTHER} - {cause}))
        await reader.close()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (errors.StoreUnavailable("away"), Cause.STORE),
        (errors.StoreThrottled("less"), Cause.QUEUE),
        (errors.Stale("gone"), Cause.STORE),
    ],
)
async def test_a_read_that_failed_has_waited_for_what_failed(error: errors.AlluxioLikeError, cause: Cause) -> None:
    async with stage(io_timeout_s=1.0) as here:
        entry, _ = here.add_file("f", 1000)
        here.workers[0].always = error
        reader = here.client.open_file(entry)
        with pytest.raises(type(error)):
            await reader.read(0, 1000)
        waits = reader.get_waits()
        assert waits[cause] == sum(waits) > 0
        await reader.close()
