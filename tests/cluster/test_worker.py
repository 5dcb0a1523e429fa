"""A worker as a whole, over real gRPC: its services, its door, its place in the cluster, and what it holds over restarts."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.cache.door import enter_door, open_at_door
from alluxio_like.cache.reader import CacheReader
from alluxio_like.config import CacheDirConfig, WorkerConfig
from alluxio_like.placement import rank_workers
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.messages import Filled, LoadFile, RateShare, Touched
from alluxio_like.rpc.worker_stub import WorkerStub
from alluxio_like.types import FileRef, WorkerId
from alluxio_like.ufs.memory import Fault, MemoryUfs
from alluxio_like.ufs.open import open_ufs
from alluxio_like.worker.app import RunningWorker, start_worker
from tests.cluster.fake_master import TOKEN, FakeMaster, serving_master, write_token
from tests.unit.worker_parts import MIB, MOUNT, gather_bytes, make_data, make_ref, wait_until


def make_config(directory: Path, master: str, name: str = "w1", **more: Any) -> WorkerConfig:
    settings: dict[str, Any] = {
        "master": master,
        "home": directory / name,
        "cache_dirs": (CacheDirConfig(path=directory / name / "cache", quota_bytes=256 * MIB),),
        "allow_root_disk": True,
        "keep_free_fraction": 0.0,
        "heartbeat_interval_s": 0.05,
        "io_timeout_s": 60.0,
        "token_file": write_token(directory),
    }
    return WorkerConfig(**{**settings, **more})


@asynccontextmanager
async def stub_of(address: str, token: str = TOKEN) -> AsyncIterator[WorkerStub]:
    channel = open_channel(address, token=token)
    try:
        yield WorkerStub(channel, timeout_s=60)
    finally:
        await channel.close()


@asynccontextmanager
async def one_worker(
    directory: Path, master: FakeMaster, ufs: MemoryUfs, name: str = "w1", **more: Any
) -> AsyncIterator[tuple[RunningWorker, WorkerStub]]:
    """A worker in this process on the given store, and a caller."""

    def open_store(_: object, on_request: Any) -> MemoryUfs:
        ufs._on_request = on_request
        return ufs

    master.add_mount(MOUNT, "memory://bucket")
    config = make_config(directory, master.address, name, **more)
    async with start_worker(config, open_store=open_store) as worker, stub_of(worker.address) as stub:
        yield worker, stub


def put(ufs: MemoryUfs, inode: int, data: bytes) -> FileRef:
    return make_ref(inode, f"file-{inode}", ufs.put(f"file-{inode}", data))


def get_requests(worker: RunningWorker) -> float:
    return worker.metrics.store_requests.labels("GET", "/data")._value.get()


async def test_reads_and_fills_over_the_wire_and_through_the_door(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master, one_worker(tmp_path, master, ufs) as (worker, stub):
        data = make_data(5 * MIB + 123, 1)
        ref = put(ufs, 1, data)
        assert await gather_bytes(stub.read(ref, MIB - 5, 2 * MIB)) == data[MIB - 5 : 3 * MIB - 5]
        filled = [message async for message in stub.fill(ref, 0, len(data))]
        assert not any(message.read_through for message in filled)
        pages = sorted(n for m in filled for run in m.present for n in range(run.pages.first, run.pages.stop))
        assert pages == list(range(6))

        greeting = await asyncio.to_thread(enter_door, worker.door_path)
        assert (greeting.worker_id, greeting.address) == (worker.worker_id, worker.address)
        # A process opens an index once, so who reads through the door is tested with a worker in another process, below.
        for fd in greeting.directory_fds:
            os.close(fd)
        assert len(greeting.directory_fds) == 1

        await stub.touch([Touched(ref.file_id, 1000, 1)])
        assert get_requests(worker) == len(ufs.requests)
        await wait_until(lambda: master.get_bits(worker.worker_id, ref.file_id) == 0b111111, "the block map learns of it")
        with pytest.raises(errors.InvalidArgument):
            await gather_bytes(stub.read(ref, len(data) - 1, 2))
        with pytest.raises(errors.NotFound):
            await gather_bytes(stub.read(put(ufs, 2, b"x" * 100), 0, 100, cached_only=True))


async def test_files_are_handed_out_one_by_one_and_counted(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    more = {"door_users": ("65534",)}
    async with serving_master(FakeMaster()) as master, one_worker(tmp_path, master, ufs, **more) as (worker, stub):
        data = make_data(2 * MIB + 5, 1)
        ref = put(ufs, 1, data)
        with pytest.raises(errors.NotFound):
            await asyncio.to_thread(open_at_door, worker.door_path, ref, WorkerId(worker.worker_id))
        async for _ in stub.fill(ref, 0, len(data)):
            pass
        handed = await asyncio.to_thread(open_at_door, worker.door_path, ref, WorkerId(worker.worker_id))
        assert os.pread(handed.fd, len(data), 0) == data
        # Others reach the socket, and see nothing else there.
        assert Path(worker.door_path).parent.stat().st_mode & 0o777 == 0o711
        assert (await stub.free_files([ref.file_id])).files == 1
        status = await stub.get_status()
        (directory,) = status.directories
        assert (status.leases, directory.held_files, directory.held_bytes >= len(data)) == (1, 1, True)
        assert directory.file_system
        assert directory.passthrough in {"yes", "no", "unknown"}
        assert os.pread(handed.fd, len(data), 0) == data
        handed.close()

        async def is_given_back() -> bool:
            return (await stub.get_status()).leases == 0

        async with asyncio.timeout(60):
            while not await is_given_back():
                await asyncio.sleep(0.02)


async def test_bad_pages_that_readers_report_or_the_scrubber_finds_are_fetched_again(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master, one_worker(tmp_path, master, ufs, scrub_period_s=1.0) as (worker, stub):
        data = make_data(3 * MIB + 5, 1)
        ref = put(ufs, 1, data)
        async for _ in stub.fill(ref, 0, len(data)):
            pass
        worker.store.flush()
        cached = worker.store.lookup(ref.file_id)
        assert cached is not None
        # The scrubber has to ask the master where the bytes come from.
        master.refs[ref.inode] = ref
        with cached.open_fd() as fd:
            os.pwrite(fd, b"!", MIB + 5000)
            await wait_until(lambda: os.pread(fd, len(data), 0) == data, "the scrubber finds it")
        with cached.open_fd() as fd:
            os.pwrite(fd, b"!", 2 * MIB + 5000)
            await stub.report_bad(ref, [0, 2])
            await wait_until(lambda: os.pread(fd, len(data), 0) == data, "it is fetched again")
        assert await gather_bytes(stub.read(ref, 0, len(data))) == data
        assert worker.metrics.corrupt_pages._value.get() == 2
        with pytest.raises(errors.InvalidArgument):
            await stub.report_bad(ref, [4])


async def test_loads_checks_and_frees_for_the_master_alone(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master, one_worker(tmp_path, master, ufs) as (worker, stub):
        refs = [put(ufs, n, make_data(110_000, n)) for n in range(1, 201)]
        files = [LoadFile(ref) for ref in refs]
        messages = [message async for message in stub.load_files("job", files)]
        assert sum(len(m.results) for m in messages) == 200
        assert all(r.code == "" for m in messages for r in m.results)
        assert sum(m.loaded_bytes for m in messages) == 200 * 110_000
        assert ufs.count_requests() == {"GET": 200}
        checks = [check async for check in stub.check_files(files, verify=True)]
        assert {(c.missing_pages, c.bad_pages) for c in checks} == {(0, 0)}
        status = await stub.get_status()
        assert status.info.file_count == 200
        assert status.directories[0].state == "ok"

        cached = worker.store.lookup(refs[0].file_id)
        assert cached is not None
        with cached.open_fd() as fd:
            os.pwrite(fd, b"!", 5000)
        bad = [check async for check in stub.check_files(files[:1], verify=True)]
        assert (bad[0].missing_pages, bad[0].bad_pages) == (1, 1)
        assert await gather_bytes(stub.read(refs[0], 0, 110_000)) == make_data(110_000, 1)

        await stub.set_pinned([refs[1].file_id], pinned=True)
        freed = await stub.free_files([ref.file_id for ref in refs])
        assert (freed.files, freed.kept_pinned_files) == (199, 1)
        async with stub_of(worker.address, token="") as stranger:
            with pytest.raises(errors.AccessDenied):
                await stranger.get_status()
            assert await gather_bytes(stranger.read(refs[2], 0, 10)) == make_data(110_000, 3)[:10]


async def test_a_restarted_worker_is_warm_and_the_same(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    data = make_data(3 * MIB, 3)
    ref = put(ufs, 1, data)
    async with serving_master(FakeMaster()) as master:
        async with one_worker(tmp_path, master, ufs) as (worker, stub):
            assert await gather_bytes(stub.read(ref, 0, len(data))) == data
            first_id = worker.worker_id
        assert master.left == [first_id]
        assert not os.path.exists(worker.door_path)  # noqa: PTH110 (one stat)
        master.forget()
        async with one_worker(tmp_path, master, ufs) as (worker, stub):
            assert worker.worker_id == first_id
            assert await gather_bytes(stub.read(ref, 0, len(data))) == data
            await wait_until(lambda: master.get_bits(first_id, ref.file_id) == 0b111, "the full report")
        assert ufs.count_requests() == {"GET": 1}


async def test_a_second_process_on_the_same_home_is_refused(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master, one_worker(tmp_path, master, ufs):
        with pytest.raises(errors.Conflict, match=str(os.getpid())):
            async with one_worker(tmp_path, master, ufs):
                pass


async def test_a_worker_goes_on_while_the_master_is_away_and_tells_the_next_one_all(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master:
        bind = master.address
        one = one_worker(tmp_path, master, ufs)
        worker, stub = await one.__aenter__()
        early, late = put(ufs, 1, make_data(1000, 1)), put(ufs, 2, make_data(1000, 2))
        assert len(await gather_bytes(stub.read(early, 0, 1000))) == 1000
    try:
        assert await gather_bytes(stub.read(late, 0, 1000)) == make_data(1000, 2)
        master.forget()
        async with serving_master(master, bind):
            await wait_until(lambda: master.get_bits(worker.worker_id, early.file_id) == 1, "joined again")
            await wait_until(lambda: master.get_bits(worker.worker_id, late.file_id) == 1, "told what happened meanwhile")
            assert master.joins == [worker.worker_id] * 2
            await one.__aexit__(None, None, None)
            assert master.left == [worker.worker_id]
    except BaseException:
        await one.__aexit__(None, None, None)
        raise


async def test_rates_of_the_master_hold_and_are_lifted(tmp_path: Path) -> None:
    ufs = MemoryUfs(name="bucket")
    async with serving_master(FakeMaster()) as master, one_worker(tmp_path, master, ufs) as (_, stub):
        ufs.fail("GET", errors.StoreThrottled("slow down"))
        assert len(await gather_bytes(stub.read(put(ufs, 1, b"a" * 100), 0, 100))) == 100
        await wait_until(
            lambda: any(t.bucket == "memory://bucket" and t.count == 1 for beat in master.beats for t in beat.throttles)
        )
        master.rates = (RateShare("memory://bucket", 5.0),)
        beats = len(master.beats)
        await wait_until(lambda: len(master.beats) > beats + 1)
        loop = asyncio.get_running_loop()
        started = loop.time()
        for n in range(2, 8):
            await gather_bytes(stub.read(put(ufs, n, b"a" * 100), 0, 100))
        assert loop.time() - started > 0.7
        for rates in ((RateShare("memory://bucket", 0.01),), ()):
            master.rates = rates
            beats = len(master.beats)
            await wait_until(lambda beats=beats: len(master.beats) > beats + 1)  # type: ignore[misc]
        started = loop.time()
        for n in range(10, 16):
            await gather_bytes(stub.read(put(ufs, n, b"a" * 100), 0, 100))
        assert loop.time() - started < 100, "at the rate of just before it was minutes"


async def test_a_long_report_does_not_silence_the_heartbeats(tmp_path: Path) -> None:
    ufs = MemoryUfs()

    class Slow(FakeMaster):
        go_on: asyncio.Event

        async def report_blocks(self, *args: Any) -> None:
            await self.go_on.wait()
            await super().report_blocks(*args)

    slow = Slow()
    slow.go_on = asyncio.Event()
    async with serving_master(slow) as master, one_worker(tmp_path, master, ufs) as (worker, stub):
        ref = put(ufs, 1, b"a" * 100)
        await gather_bytes(stub.read(ref, 0, 100))
        await wait_until(lambda: len(master.beats) > 5, "heartbeats beside the report")
        assert not any(beat.changes for beat in master.beats), "changes must not come before the report that replaces them"
        slow.go_on.set()
        await wait_until(lambda: master.get_bits(worker.worker_id, ref.file_id) == 1)


@asynccontextmanager
async def two_workers(
    directory: Path, master: FakeMaster, ufs: MemoryUfs, **more: Any
) -> AsyncIterator[dict[str, tuple[RunningWorker, WorkerStub]]]:
    async with (
        one_worker(directory, master, ufs, "w1", **more) as first,
        one_worker(directory, master, ufs, "w2", **more) as second,
    ):
        await wait_until(lambda: len(master.workers) == 2)
        beats = len(master.beats)
        await wait_until(
            lambda: {b.worker_id for b in master.beats[beats:] if b.cluster_epoch == master.epoch} == set(master.workers)
        )
        yield {first[0].worker_id: first, second[0].worker_id: second}


def rank(master: FakeMaster, ref: FileRef) -> list[str]:
    return [worker.worker_id for worker in rank_workers(master.workers.values(), ref.file_id, None)]


async def test_a_guest_is_filled_from_the_home_and_only_when_it_is_worth_it(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master, two_workers(tmp_path, master, ufs) as workers:
        data = make_data(2 * MIB + 5, 4)
        ref = put(ufs, 1, data)
        home, other = (workers[worker_id] for worker_id in rank(master, ref))
        first = [m async for m in other[1].fill(ref, 0, 1000)]
        assert [m.read_through for m in first] == [True]
        assert ufs.count_requests() == {}
        # Opened a second time: a copy is worth it, and the store is asked once for both.
        second = [m async for m in other[1].fill(ref, 0, len(data))]
        assert not any(m.read_through for m in second)
        assert ufs.count_requests() == {"GET": 1}
        for worker, stub in (home, other):
            assert worker.store.lookup(ref.file_id) is not None
            assert await gather_bytes(stub.read(ref, 0, len(data), cached_only=True)) == data
        roles = {worker.store.lookup(ref.file_id).role.name for worker, _ in (home, other)}  # type: ignore[union-attr]
        assert roles == {"HOME", "GUEST"}
        assert get_requests(other[0]) == 0
        # The home goes for good: the copy takes its place.
        del master.workers[WorkerId(home[0].worker_id)]
        master.epoch += 1
        cached = other[0].store.lookup(ref.file_id)
        await wait_until(lambda: cached is not None and cached.role.name == "HOME", "the guest has become home")


@pytest.mark.parametrize("carrier", ["data socket", "gRPC"])
async def test_pages_of_another_worker_come_by_its_data_socket(tmp_path: Path, carrier: str) -> None:
    ufs = MemoryUfs()
    more = {} if carrier == "data socket" else {"data_bind": "off"}
    async with serving_master(FakeMaster()) as master, two_workers(tmp_path, master, ufs, **more) as workers:
        data = make_data(20 * MIB + 5, 4)
        ref = put(ufs, 1, data)
        home, other = (workers[worker_id] for worker_id in rank(master, ref))
        assert await gather_bytes(home[1].read(ref, 0, len(data))) == data
        asked = ufs.count_requests()["GET"]
        assert not any([m.read_through async for m in other[1].fill(ref, 0, len(data))])
        assert await gather_bytes(other[1].read(ref, 0, len(data), cached_only=True)) == data
        assert ufs.count_requests()["GET"] == asked
        sent = home[0].metrics.data_sent_bytes._value
        # (Who sends comes to it a moment after who has received.)
        await wait_until(lambda: (sent.get() >= len(data)) == (carrier == "data socket"), "it is counted")
        await wait_until(lambda: home[0].store.lookup(ref.file_id)._users == 0, "it is let go")  # type: ignore[union-attr]
        # What the home has to fetch it fetches in one request, though it is asked page by page.
        cold = put(ufs, 2, make_data(7 * MIB, 5))
        home, other = (workers[worker_id] for worker_id in rank(master, cold))
        assert not any([m.read_through async for m in other[1].fill(cold, 0, 7 * MIB)])
        assert await gather_bytes(other[1].read(cold, 0, 7 * MIB, cached_only=True)) == make_data(7 * MIB, 5)
        assert ufs.count_requests()["GET"] == asked + 1


async def test_a_page_that_is_bad_at_its_home_is_not_copied(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master, two_workers(tmp_path, master, ufs) as workers:
        data = make_data(3 * MIB + 5, 4)
        ref = put(ufs, 1, data)
        home, other = (workers[worker_id] for worker_id in rank(master, ref))
        assert await gather_bytes(home[1].read(ref, 0, len(data))) == data
        homes = [path for path in tmp_path.glob("w*/cache/files/**/*") if path.is_file() and path.stat().st_size == len(data)]
        assert len(homes) == 1
        fd = os.open(homes[0], os.O_RDWR)
        os.pwrite(fd, bytes([data[MIB + 9] ^ 4]), MIB + 9)
        os.close(fd)
        assert not any([m.read_through async for m in other[1].fill(ref, 0, len(data))])
        assert await gather_bytes(other[1].read(ref, 0, len(data), cached_only=True)) == data
        await wait_until(lambda: home[0].metrics.corrupt_pages._value.get() >= 1, "the home has looked at its page")


async def test_a_data_socket_in_the_clear_obeys_the_rule_of_addresses(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master:
        with pytest.raises(errors.ConfigError, match="--insecure"):
            async with one_worker(tmp_path, master, ufs, data_bind="0.0.0.0:0"):
                pass
        async with one_worker(tmp_path, master, ufs, data_bind="off") as (worker, _):
            assert master.workers[WorkerId(worker.worker_id)].data_address == ""


async def test_a_new_home_asks_the_old_one_before_the_store(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master, two_workers(tmp_path, master, ufs) as workers:
        data = make_data(2 * MIB, 5)
        ref = put(ufs, 1, data)
        home, old = (workers[worker_id] for worker_id in rank(master, ref))
        assert {r.code async for m in old[1].load_files("job", [LoadFile(ref)]) for r in m.results} == {""}
        assert ufs.count_requests() == {"GET": 1}
        assert await gather_bytes(home[1].read(ref, 0, len(data))) == data
        assert ufs.count_requests() == {"GET": 1}


async def test_a_second_replica_comes_from_the_first(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master, two_workers(tmp_path, master, ufs) as workers:
        refs = [put(ufs, n, make_data(200_000, n)) for n in range(1, 21)]
        (one, first), (_, second) = workers.values()
        tasks = [
            asyncio.ensure_future(_results(first, [LoadFile(ref) for ref in refs])),
            asyncio.ensure_future(_results(second, [LoadFile(ref, sources=(one.address,)) for ref in refs])),
        ]
        for results in await asyncio.gather(*tasks):
            assert [r.code for r in results] == [""] * 20
        assert ufs.count_requests() == {"GET": 20}


async def test_a_dead_source_is_no_obstacle(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master, one_worker(tmp_path, master, ufs) as (_, stub):
        ref = put(ufs, 1, make_data(1000, 1))
        results = await _results(stub, [LoadFile(ref, sources=("127.0.0.1:1",))])
        assert [r.code for r in results] == [""]


async def test_a_caller_that_goes_away_leaves_nothing_behind(tmp_path: Path) -> None:
    ufs = MemoryUfs()
    async with serving_master(FakeMaster()) as master, one_worker(tmp_path, master, ufs) as (_, stub):
        go = asyncio.Event()
        ufs.fail("GET", Fault(until=go), always=True)
        ref = put(ufs, 1, make_data(1000, 1))
        task = asyncio.ensure_future(gather_bytes(stub.read(ref, 0, 1000)))
        await wait_until(lambda: ufs.in_flight == 1)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, errors.Cancelled)):
            await task
        ufs.heal()
        go.set()
        assert await gather_bytes(stub.read(ref, 0, 1000)) == make_data(1000, 1)
        status = await stub.get_status()
        assert status.queue_depth == 0


async def _results(stub: WorkerStub, files: list[LoadFile]) -> list[Any]:
    return [result async for message in stub.load_files("job", files) for result in message.results]


# -- a process of its own ------------------------------------------------------------------------------------------------------

_MAIN = """
import sys
import uvloop
from pathlib import Path
from alluxio_like.config import WorkerConfig
from alluxio_like.ufs.open import open_ufs
from alluxio_like.worker.app import run
sys.exit(uvloop.run(run(WorkerConfig.model_validate_json(Path(sys.argv[1]).read_text()))))
"""


@asynccontextmanager
async def worker_process(
    directory: Path, config: WorkerConfig
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    ready = directory / "ready.json"
    ready.unlink(missing_ok=True)
    config = config.model_copy(update={"ready_file": ready})
    (directory / "config.json").write_text(config.model_dump_json())
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _MAIN, str(directory / "config.json"))
    try:
        await wait_until(lambda: ready.exists() or process.returncode is not None, "the worker is ready")
        assert process.returncode is None
        yield process, json.loads(ready.read_text())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _check_local(door: str, ref: FileRef, filled: list[Filled], data: bytes) -> None:
    """Read a file past its worker, as a client on the same machine does, with nothing but what the fill said."""
    reader = CacheReader.open(enter_door(door).directory_fds)
    try:
        file = reader.open_filled(ref, filled[0].directory, filled[0].generation)
        assert file is not None
        for message in filled:
            for run in message.present:
                assert file.add_present(message.generation, run.pages, run.checksums)
        assert file.is_complete
        assert os.pread(file.fd, len(data), 0) == data
        file.close()
    finally:
        reader.close()


async def test_killed_and_started_again_it_is_warm_and_terminated_it_leaves(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    data = make_data(3 * MIB + 7, 6)
    (source / "file-1").write_bytes(data)
    ufs = open_ufs(source.as_uri(), {}, secrets={}, on_request=lambda _: None, io_timeout_s=5)
    entry = await ufs.stat("file-1")
    await ufs.close()
    assert entry.fingerprint is not None
    ref = make_ref(1, "file-1", entry.fingerprint)

    async with serving_master(FakeMaster()) as master:
        master.add_mount(MOUNT, source.as_uri())
        config = make_config(tmp_path, master.address)
        async with worker_process(tmp_path, config) as (process, facts), stub_of(facts["address"]) as stub:
            assert await gather_bytes(stub.read(ref, 0, len(data))) == data
            filled = [message async for message in stub.fill(ref, 0, len(data))]
            await asyncio.to_thread(_check_local, facts["door_path"], ref, filled, data)
            await wait_until(lambda: master.get_bits(facts["worker_id"], ref.file_id) == 0b1111, "committed and told")
            process.kill()
            await process.wait()
        assert master.left == []
        # Nothing but the cache can answer now.
        (source / "file-1").unlink()
        master.forget()
        async with worker_process(tmp_path, config) as (process, again), stub_of(again["address"]) as stub:
            assert again["worker_id"] == facts["worker_id"]
            assert await gather_bytes(stub.read(ref, 0, len(data))) == data
            await wait_until(lambda: master.get_bits(facts["worker_id"], ref.file_id) == 0b1111, "the full report")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 60) == 0
        assert master.left == [facts["worker_id"]]
        assert not os.path.exists(again["door_path"])  # noqa: PTH110 (one stat)
