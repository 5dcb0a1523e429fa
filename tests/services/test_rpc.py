"""The rpc layer over real gRPC on loopback, and over the unix socket beside it: conversions, errors, deadlines, cancellation,
tokens, health."""

import asyncio
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from alluxio_like import errors
from alluxio_like.rpc import convert, convert_worker, local_link
from alluxio_like.rpc.channel import Method, call_stream, call_unary, open_channel
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.messages import BlockDelta, DirPage, JobState, LoadFile, LoadSpec, MountSpec
from alluxio_like.rpc.server import create_server
from alluxio_like.rpc.v1 import worker_pb2
from alluxio_like.rpc.worker_stub import WorkerStub
from alluxio_like.types import PAGE_BYTES, SNAPSHOT_SHIFT, FileId, Fingerprint, InodeId, JobId, MountId, VersionId, WorkerId
from tests.fakes_rpc import TOKEN, FakeMaster, FakeWorker, connected, make_dir, make_entry, serve, wait_until
from tests.servers.net import find_ports
from tests.servers.tcp_proxy import TcpProxy


@pytest.fixture(params=["unix socket", "grpc"], autouse=True)
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By what calls of one request and one reply go."""
    if request.param == "grpc":
        monkeypatch.setattr(local_link, "_connect", lambda _address: None)
    return str(request.param)


async def test_calls_go_by_what_they_are_to_go(carrier: str) -> None:
    async with serve(master=FakeMaster()) as server, connected(server) as channel:
        await MasterStub(channel).stat_fs()
        assert (channel.find_local("Namespace", "StatFs") is not None) == (carrier == "unix socket")


async def test_names_travel_as_bytes() -> None:
    master = FakeMaster()
    master.entries["a\udcff\n"] = make_entry("a\udcff\n", 5, 7)
    async with serve(master=master) as server, connected(server) as channel:
        result = await MasterStub(channel).lookup(InodeId(1), "a\udcff\n")
        assert result.entry == master.entries["a\udcff\n"]
        assert result.valid_s == 60.0
        assert (await MasterStub(channel).lookup(InodeId(1), "b")).entry is None


def test_a_listing_leaves_out_keys_that_follow_from_names() -> None:
    entries = (make_entry("a", 2, 10), make_entry("b", 3, 10), make_dir("c", 4))
    odd = make_entry("shown", 9, 1)
    page = DirPage((*entries, odd), b"next", 5.0, MountId(1), "data/")
    message = convert.list_dir_reply(page)
    assert [entry.key for entry in message.entries] == [b"", b"", b"", b""]
    assert [entry.mount_id for entry in message.entries] == [0, 0, 0, 0]
    assert convert.to_dir_page(message) == page
    other = DirPage(page.entries, b"", 5.0, MountId(2), "elsewhere/")
    assert convert.to_dir_page(convert.list_dir_reply(other)) == other


def test_what_is_in_a_snapshot_stays_so_on_every_way() -> None:
    live = make_entry("a", 5, 7)
    assert live.ref is not None
    frozen = replace(live, attr=replace(live.attr, inode=InodeId(1 << SNAPSHOT_SHIFT | 5)), ref=replace(live.ref, frozen=True))
    for entry in (live, frozen):
        assert convert.to_entry(convert.entry(entry)) == entry
        assert entry.ref is not None
        written = replace(entry.ref, source=Fingerprint("etag", 7), holders=(WorkerId("w"),))
        for ref in (entry.ref, written):
            assert convert.to_file_ref(convert.file_ref(ref)) == ref


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, PAGE_BYTES])
def test_read_replies_by_hand_are_what_protobuf_makes(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    wire = convert_worker.encode_read_reply(memoryview(data))
    assert wire == worker_pb2.ReadReply(data=data).SerializeToString()
    assert bytes(convert_worker.decode_read_reply(wire)) == data
    # a later field that this release does not know
    assert bytes(convert_worker.decode_read_reply(wire + b"\x10\x05")) == data


async def test_errors_arrive_as_what_they_were() -> None:
    master = FakeMaster()
    async with serve(master=master) as server, connected(server) as channel:
        stub = MasterStub(channel, timeout_s=60)
        with pytest.raises(errors.NotFound, match="no such path: /x") as caught:
            await stub.free("/x")
        assert caught.value.subject == "/x"
        with pytest.raises(errors.TimedOut):
            await stub.report()
        with pytest.raises(errors.Internal, match="RuntimeError while serving") as internal:
            await stub.get_cache_status("/x")
        assert "hunter2" not in str(internal.value)


async def test_unavailable_is_repeated_with_the_same_operation_id() -> None:
    master = FakeMaster()
    master.fail = [errors.Unavailable("starting"), errors.Unavailable("starting")]
    async with serve(master=master) as server, connected(server, token=TOKEN) as channel:
        info = await MasterStub(channel, timeout_s=60).mount(MountSpec("/data", "s3://b"))
    assert info.path == "/data"
    assert len(master.operations) == 3
    assert len(set(master.operations)) == 1


async def test_a_service_that_is_not_there_is_unavailable_within_the_time() -> None:
    # A port at which nobody listens, and no other test's server comes to do so.
    channel = open_channel("127.0.0.1:1")
    with pytest.raises(errors.Unavailable, match=r"the master at 127\.0\.0\.1:1 cannot be reached"):
        await asyncio.wait_for(MasterStub(channel, timeout_s=1.0).stat_fs(), 60)
    assert channel.away_s > 0
    await channel.close()


async def test_a_connection_may_take_its_time() -> None:
    """As one to a busy or far machine does: a read is not repeated."""
    worker = FakeWorker()
    entry = make_entry("a", 2, 1000)
    assert entry.ref is not None
    worker.contents[entry.ref.file_id] = bytes(1000)
    async with serve(worker=worker) as server:
        with TcpProxy(int(server.address.rpartition(":")[2])) as proxy:
            proxy.stall()
            channel = open_channel(f"127.0.0.1:{proxy.port}")
            read = WorkerStub(channel, timeout_s=60).read(entry.ref, 0, 1000)
            reading = asyncio.create_task(anext(aiter(read)))
            await asyncio.wait({reading}, timeout=0.5)
            proxy.resume()
            assert bytes(await reading) == bytes(1000)
            await read.aclose()
            await channel.close()


async def test_a_call_goes_on_when_the_service_is_back() -> None:
    master = FakeMaster()
    bind = f"127.0.0.1:{find_ports(1)[0]}"
    channel = open_channel(bind)
    waiting = asyncio.create_task(MasterStub(channel, timeout_s=60).stat_fs())
    async with asyncio.timeout(60):
        while not channel.away_s:
            await asyncio.sleep(0.01)
    async with serve(master=master, bind=bind):
        assert (await waiting).files == 0
        assert not channel.away_s
        await channel.close()


async def test_a_stream_is_asked_for_again_until_it_has_begun() -> None:
    """As where a master is starting anew, which calls of one reply have reached by its socket already."""
    master = FakeMaster()
    master.job_states = [JobState.RUNNING, JobState.DONE]
    master.fail = [errors.Unavailable("starting")]
    bind = f"127.0.0.1:{find_ports(1)[0]}"
    channel = open_channel(bind)
    stub = MasterStub(channel, timeout_s=60)

    async def watch() -> list[JobState]:
        return [job.state async for job in stub.watch_job(JobId("7"))]

    waiting = asyncio.create_task(watch())
    async with asyncio.timeout(60):
        while not channel.away_s:
            await asyncio.sleep(0.01)
    async with serve(master=master, bind=bind):
        assert await waiting == [JobState.RUNNING, JobState.DONE]
        assert not channel.away_s

        def break_off() -> Iterator[JobState]:
            yield JobState.RUNNING
            master.fail = [errors.Unavailable("going")]
            yield JobState.RUNNING

        # What has begun is not: its reader would have the beginning twice.
        master.job_states = break_off()
        with pytest.raises(errors.Unavailable, match="going"):
            await watch()
        await channel.close()
    with pytest.raises(errors.Unavailable, match="cannot be reached"):
        await asyncio.wait_for(anext(MasterStub(open_channel(bind), timeout_s=0.5).watch_job(JobId("7"))), 60)


async def test_a_service_that_says_that_it_cannot_is_not_away() -> None:
    master = FakeMaster()
    master.fail = [errors.Unavailable("no worker is live")] * 1000
    async with serve(master=master) as server, connected(server, token=TOKEN) as channel:
        with pytest.raises(errors.Unavailable, match="no worker"):
            await MasterStub(channel, timeout_s=1.0).mount(MountSpec("/data", "s3://b"))
        assert not channel.away_s


async def test_what_a_service_said_is_told_where_the_time_ends_in_a_later_try() -> None:
    master = FakeMaster()
    enter = master._enter

    async def enter_once(call: str) -> None:
        master.delay_s = 60.0 if master.calls else 0.0
        await enter(call)

    master._enter = enter_once  # type: ignore[method-assign]
    master.fail = [errors.Unavailable("no worker is live")]
    async with serve(master=master) as server, connected(server, token=TOKEN) as channel:
        with pytest.raises(errors.Unavailable, match="no worker"):
            await MasterStub(channel, timeout_s=1.0).mount(MountSpec("/data", "s3://b"))
    assert len(master.calls) > 1


async def test_a_deadline_ends_the_call_on_both_sides() -> None:
    master = FakeMaster()
    master.delay_s = 60
    async with serve(master=master) as server, connected(server) as channel:
        # Long enough to get there, on whatever machine.
        with pytest.raises(errors.TimedOut):
            await asyncio.wait_for(MasterStub(channel).lookup(InodeId(1), "a", timeout_s=2.0), 60)
        await asyncio.wait_for(master.cancelled.wait(), 60)


async def test_a_cancelled_caller_cancels_the_handler() -> None:
    master = FakeMaster()
    master.delay_s = 60
    async with serve(master=master) as server, connected(server) as channel:
        call = asyncio.create_task(MasterStub(channel).lookup(InodeId(1), "a"))
        await wait_until(lambda: master.calls)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(master.cancelled.wait(), 60)


async def test_leaving_a_stream_cancels_the_handler() -> None:
    worker = FakeWorker()
    entry = make_entry("a", 2, 64 * PAGE_BYTES)
    assert entry.ref is not None
    worker.contents[entry.ref.file_id] = bytes(64 * PAGE_BYTES)
    async with serve(worker=worker) as server, connected(server) as channel:
        stream = WorkerStub(channel).read(entry.ref, 0, 64 * PAGE_BYTES)
        assert len(await anext(stream)) == PAGE_BYTES
        await stream.aclose()
        await wait_until(lambda: worker.open_reads == 0)


async def test_a_channel_closed_under_a_call_is_an_error_and_no_cancellation() -> None:
    """A caller that is not cancelled must be able to ask somebody else."""
    worker, master = FakeWorker(), FakeMaster()
    worker.stall, master.delay_s = True, 60
    entry = make_entry("a", 2, PAGE_BYTES)
    assert entry.ref is not None
    ref = entry.ref

    async def read_all(stub: WorkerStub) -> None:
        async for _ in stub.read(ref, 0, PAGE_BYTES):
            pass

    async with serve(worker=worker, master=master) as server, connected(server) as channel:
        calls: list[asyncio.Task[Any]] = [
            asyncio.create_task(read_all(WorkerStub(channel))),
            asyncio.create_task(MasterStub(channel).lookup(InodeId(1), "a")),
        ]
        await wait_until(lambda: worker.reads and master.calls)
        await channel.close()
        for call in calls:
            with pytest.raises(errors.Cancelled):
                await asyncio.wait_for(call, 60)


async def test_a_read_that_ends_short_is_not_taken_for_whole() -> None:
    worker = FakeWorker()
    entry = make_entry("a", 2, 4 * PAGE_BYTES)
    assert entry.ref is not None
    worker.contents[entry.ref.file_id] = bytes(4 * PAGE_BYTES)
    worker.cut_after = 2 * PAGE_BYTES
    async with serve(worker=worker) as server, connected(server) as channel:
        with pytest.raises(errors.Unavailable, match="less than it was asked for"):
            async for _ in WorkerStub(channel).read(entry.ref, 0, 4 * PAGE_BYTES):
                pass


async def test_a_job_is_watched_to_its_end() -> None:
    master = FakeMaster()
    async with serve(master=master) as server, connected(server) as channel:
        states = [job.state async for job in MasterStub(channel).watch_job(JobId("j"))]
    assert states == [JobState.PLANNING, JobState.RUNNING, JobState.DONE]


async def test_long_lists_of_paths_come_through() -> None:
    master = FakeMaster()
    master.fail = [errors.Unavailable("starting")]
    paths = [f"/data/{number}\udcff" for number in range(2500)]
    async with serve(master=master) as server, connected(server) as channel:
        assert await MasterStub(channel).submit_load(LoadSpec(), paths) == "j1"
        assert master.seen_paths == paths
        assert len(set(master.operations)) == 1
        assert await MasterStub(channel).submit_load(LoadSpec(), iter(paths)) == "j1"
        assert master.seen_paths == paths


async def test_tokens() -> None:
    master, worker = FakeMaster(), FakeWorker()
    deltas = [BlockDelta(FileId(InodeId(2), VersionId(1)), 0, 3, 2 * PAGE_BYTES)]

    async def chunks():  # type: ignore[no-untyped-def]
        yield deltas

    entry = make_entry("a", 2, 10)
    assert entry.ref is not None
    async with serve(master=master, worker=worker) as server:
        for token in ("", "wrong"):
            async with connected(server, token=token) as channel:
                with pytest.raises(errors.AccessDenied, match="token"):
                    await MasterStub(channel).get_mount_secrets(MountId(1))
                with pytest.raises(errors.AccessDenied, match="token"):
                    await MasterStub(channel).mount(MountSpec("/x", "file:///root"))
                with pytest.raises(errors.AccessDenied, match="token"):
                    await MasterStub(channel).unmount("/data")
                with pytest.raises(errors.AccessDenied, match="token"):
                    await MasterStub(channel).report_blocks(WorkerId("w"), "s", chunks())
                with pytest.raises(errors.AccessDenied, match="token"):
                    _ = [one async for one in WorkerStub(channel).check_files([LoadFile(entry.ref)])]
                assert (await MasterStub(channel).get_cluster()).cluster_id == "c"
        async with connected(server, token=TOKEN) as channel:
            secrets = await MasterStub(channel).get_mount_secrets(MountId(1))
            assert secrets.secrets == {"secret_key": "hush"}
            assert "hush" not in repr(secrets)
            await MasterStub(channel).report_blocks(WorkerId("w"), "s", chunks())
            assert master.reports == [("w", deltas)]
            checked = [one async for one in WorkerStub(channel).check_files([LoadFile(entry.ref)])]
            assert [(one.missing_pages, one.bad_pages) for one in checked] == [(1, 2)]


async def test_health() -> None:
    async with serve(master=FakeMaster()) as server, connected(server) as channel:
        channel.add_stub("Health", health_pb2_grpc.HealthStub)
        with channel.use("Health", "Check") as check:
            reply = await check(health_pb2.HealthCheckRequest(), timeout=60)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "192.0.2.1:0", "[::]:0", "example.org:0"])
async def test_other_addresses_than_loopback_need_tls_or_insecure(bind: str) -> None:
    with pytest.raises(errors.ConfigError, match="not a loopback address"):
        create_server(bind)


async def test_a_port_in_use_is_a_conflict() -> None:
    async with serve(master=FakeMaster()) as server:
        with pytest.raises(errors.Conflict, match="in use"):
            create_server(server.address)


async def test_insecure_binds_anywhere() -> None:
    server = create_server("0.0.0.0:0", insecure=True)
    assert server.port > 0
    await server.stop(0)


class _Failing:
    """A call of gRPC's that fails in the moment in which whoever waits for it is cancelled."""

    def __call__(self, *_: object, **__: object) -> "_Failing":
        return self

    def __aiter__(self) -> "_Failing":
        return self

    async def __anext__(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNIMPLEMENTED, nothing, nothing, "as it happens") from None

    def __await__(self) -> Generator[Any, None, None]:
        return self.__anext__().__await__()

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize("streams", [True, False])
async def test_a_task_that_is_cancelled_ends_also_when_its_call_fails_just_then(
    monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    """One that goes on after errors would never end: a lease that is kept, before a fork."""
    calling = asyncio.Event()

    @contextmanager
    def use(*_: object) -> Iterator[_Failing]:
        calling.set()
        yield _Failing()

    channel = open_channel("127.0.0.1:1")
    monkeypatch.setattr(channel, "use", use)
    method = Method(channel, "worker", "Read", "Read")

    async def go_on() -> None:
        while True:
            with suppress(errors.AlluxioLikeError):
                if streams:
                    await anext(call_stream(method, None, 0, None))
                else:
                    await call_unary(method, None, 0)

    task = asyncio.create_task(go_on())
    await calling.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    await channel.close()
