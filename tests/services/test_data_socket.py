"""The data socket: a real server over a real cache, a real pool of connections, on loopback."""

import asyncio
import contextlib
import os
import socket
import struct
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile, Role
from alluxio_like.cache.store import CacheDirSpec, CacheStore
from alluxio_like.clock import SystemClock
from alluxio_like.metrics import Metrics
from alluxio_like.rpc import data_wire as wire
from alluxio_like.rpc.data_pool import DataPool
from alluxio_like.rpc.messages import Filled, FilledPages, Priority
from alluxio_like.types import PAGE_BYTES, Cluster, FileRef, Fingerprint, PageRange, Worker, WorkerId
from alluxio_like.waits import Cause, Waits
from alluxio_like.worker.data_server import DataServer, listen
from alluxio_like.worker.disk import DiskQueue
from tests.unit.worker_parts import make_data, make_ref, wait_until

MIB = PAGE_BYTES
SILENCE_S = 60.0
PATIENCE_S = 60.0


@dataclass
class Handler:
    """What the cache has not got: `contents` stands for the store."""

    contents: dict[int, bytes] = field(default_factory=dict)
    error: errors.AlluxioLikeError | None = None
    gate: asyncio.Event | None = None
    reads: int = 0
    under_way: int = 0
    noted: int = 0
    fills: list[Filled] = field(default_factory=list)

    async def read(
        self, ref: FileRef, offset: int, length: int, *, priority: Priority, cached_only: bool, waits: Waits | None = None
    ) -> AsyncIterator[bytes | bytearray | memoryview]:
        self.reads += 1
        if waits is not None:
            waits.add(Cause.STORE, 1.5)
        self.under_way += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.error is not None:
                raise self.error
            if cached_only or ref.inode not in self.contents:
                raise errors.NotFound("not cached here", subject=ref.key)
            data = self.contents[ref.inode]
            while length:
                step = min(length, MIB - offset % MIB)
                yield data[offset : offset + step]
                offset, length = offset + step, length - step
        finally:
            self.under_way -= 1

    async def fill(self, ref: FileRef, offset: int, length: int, *, priority: Priority) -> AsyncIterator[Filled]:
        self.under_way += 1
        try:
            for filled in self.fills:
                yield filled
            if self.gate is not None:
                await self.gate.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.under_way -= 1

    def read_ahead(self, ref: FileRef, offset: int, length: int, *, priority: Priority) -> None:
        raise AssertionError("nobody asked for it")

    def note_read(self, ref: FileRef, read_bytes: int) -> None:
        self.noted += read_bytes


@dataclass
class Place:
    """A server and a pool that knows it."""

    store: CacheStore
    handler: Handler
    server: DataServer
    pool: DataPool
    worker: Worker
    cluster: Cluster
    metrics: Metrics

    def put(self, inode: int, data: bytes, pages: range | None = None) -> FileRef:
        """A content, in the cache: all of it, or those pages."""
        ref = make_ref(inode, f"file-{inode}", Fingerprint(f"tag-{inode}", len(data)))
        file = self.store.create(ref, Role.HOME)
        for page in pages if pages is not None else range(-(-len(data) // MIB)):
            file.write_pages(page, data[page * MIB : (page + 1) * MIB])
        self.store.flush()
        return ref

    def get_file(self, ref: FileRef) -> CachedFile:
        file = self.store.lookup(ref.file_id)
        assert file is not None
        return file

    async def read(self, ref: FileRef, offset: int, length: int, **how: Any) -> bytes:
        buffer = bytearray(length)
        await self.pool.read(self.cluster, self.worker, ref, offset, memoryview(buffer), **how)
        return bytes(buffer)


@asynccontextmanager
async def running(directory: Path, silence_s: float = SILENCE_S, *, patience_s: float = PATIENCE_S) -> AsyncIterator[Place]:
    store = CacheStore.open(
        [CacheDirSpec(directory / "cache", 1 << 30, allow_root_disk=True, keep_free_fraction=0.0)],
        cluster_id="the-cluster",
        clock=SystemClock(),
        boot_id="boot",
    )
    sends, reads = DiskQueue("send", 2), DiskQueue("read", 2)
    sock = listen("127.0.0.1", 0)
    address = f"127.0.0.1:{sock.getsockname()[1]}"
    worker = Worker(WorkerId(store.worker_id), "127.0.0.1:1", "host", "", 1, data_address=address, data_nonce="the-nonce")
    handler, metrics = Handler(), Metrics()
    server = DataServer(
        sock=sock,
        worker_id=store.worker_id,
        nonce="the-nonce",
        get_cluster_id=lambda: store.cluster_id,
        store=store,
        handler=handler,
        sends=sends,
        reads=reads,
        metrics=metrics,
        patience_s=patience_s,
    )
    server.start()
    pool = DataPool(silence_s=silence_s)
    before = asyncio.all_tasks()
    try:
        yield Place(store, handler, server, pool, worker, Cluster("the-cluster", 1, (worker,)), metrics)
        await pool.close()
        await server.stop()
        await wait_until(lambda: not asyncio.all_tasks() - before, "no task is left")
    finally:
        await pool.close()
        await server.stop()
        await sends.close()
        await reads.close()
        await asyncio.to_thread(store.close)


async def test_any_range_of_a_cached_file(tmp_path: Path) -> None:
    data = make_data(5 * MIB + 4321)
    async with running(tmp_path) as place:
        ref = place.put(1, data)
        ranges = [(0, len(data)), (0, 1), (len(data) - 1, 1), (MIB - 7, 14), (4096, 4096), (3 * MIB, MIB), (17, 4 * MIB)]
        ranges += [(5 * MIB, 4321), (MIB, len(data) - MIB), (MIB + 1, 2 * MIB), (2 * MIB, 100_000)]
        got = await asyncio.gather(*(place.read(ref, offset, length) for offset, length in ranges))
        assert got == [data[offset : offset + length] for offset, length in ranges]
        assert place.handler.reads == 0
        assert place.handler.noted == sum(length for _, length in ranges)
        assert place.get_file(ref)._users == 0


async def test_bytes_land_page_by_page_with_checksums(tmp_path: Path) -> None:
    data = make_data(4 * MIB + 100)
    frames: list[tuple[int, int, bool]] = []
    async with running(tmp_path) as place:
        ref = place.put(1, data)
        buffer = memoryview(bytearray(len(data)))

        def on_frame(start: int, length: int, sums: "array[int] | None") -> None:
            assert buffer[start : start + length] == data[start : start + length]
            frames.append((start, length, sums is not None))

        await place.pool.read(place.cluster, place.worker, ref, 0, buffer, on_frame=on_frame, verify=False)
    assert frames == [(n * MIB, MIB, True) for n in range(4)] + [(4 * MIB, 100, True)]


async def test_what_is_not_cached_comes_from_the_handler(tmp_path: Path) -> None:
    data = make_data(3 * MIB + 5)
    async with running(tmp_path) as place:
        ref = place.put(1, data, pages=range(1, 2))
        place.handler.contents[1] = data
        assert await place.read(ref, 0, len(data)) == data
        assert await place.read(ref, MIB, MIB) == data[MIB : 2 * MIB]
        assert place.handler.reads == 1
        with pytest.raises(errors.NotFound):
            await place.read(ref, 0, 10, cached_only=True)


async def test_fills_are_told_page_by_page(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        ref = make_ref(1, "x", Fingerprint("x", 5 * MIB))
        runs = (FilledPages(PageRange(0, 2), (1, 2**64 - 1)), FilledPages(PageRange(3, 4), (7,)))
        place.handler.fills = [
            Filled(runs, 2, 2**63, waited=(0.0, 1.5, 0.0, 0.0, 0.25, 0.0)),
            Filled((FilledPages(PageRange(2, 3), (9,)),), 2, 2**63),
        ]
        told: list[Filled] = []

        async def fill(enough: int = 99) -> None:
            def on_filled(filled: Filled) -> bool:
                told.append(filled)
                return len(told) < enough

            await place.pool.fill(place.cluster, place.worker, ref, 0, 5 * MIB, priority=Priority.AHEAD, on_filled=on_filled)

        await fill()
        assert told == place.handler.fills
        place.handler.error = errors.Stale("gone", subject="x")
        with pytest.raises(errors.Stale):
            await fill()
        place.handler.error, place.handler.gate = None, asyncio.Event()
        told.clear()
        await fill(enough=1)
        assert len(told) == 1
        await wait_until(lambda: place.handler.under_way == 0, "the rest is cancelled")
        waiting = asyncio.create_task(fill())
        await wait_until(lambda: place.handler.under_way == 1, "it is under way")
        waiting.cancel()
        await wait_until(lambda: place.handler.under_way == 0, "it is cancelled")


async def test_it_is_told_what_was_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        ref = make_ref(1, "x", Fingerprint("x", 1000))
        place.handler.contents[1] = make_data(1000)
        waits = Waits()
        assert await place.read(ref, 0, 1000, waits=waits) == make_data(1000)
        assert waits.get()[Cause.STORE] == 1.5


async def test_another_content_under_the_same_id_is_not_sent(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        ref = place.put(1, make_data(MIB))
        other = replace(ref, fingerprint=Fingerprint("another", MIB))
        shorter = replace(ref, fingerprint=Fingerprint("tag-1", 1000))
        for wrong in (other, shorter):
            with pytest.raises(errors.NotFound):
                await place.read(wrong, 0, 1000, cached_only=True)
        with pytest.raises(errors.NotFound):
            await place.read(ref, MIB - 10, 20, cached_only=True)


async def test_errors_keep_their_kind_and_leave_the_connection(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        ref = place.put(1, make_data(1000))
        missing = make_ref(2, "key\udcff", Fingerprint("x", 5000))
        place.handler.error = errors.Stale("gone from the store", subject="key\udcff")
        with pytest.raises(errors.Stale) as failure:
            await place.read(missing, 0, 10)
        assert failure.value.subject == "key\udcff"
        assert await place.read(ref, 0, 1000) == make_data(1000)
        assert place.metrics.data_connections._value.get() == 1


async def test_a_thousand_small_files_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        refs = {n: place.put(n, make_data(11_000 + n, n)) for n in range(1, 301)}
        many = [(n, refs[n]) for n in refs] * 4
        got = await asyncio.gather(*(place.read(ref, 0, ref.size) for _, ref in many))
        assert all(data == make_data(11_000 + n, n) for (n, _), data in zip(many, got, strict=True))
        assert place.metrics.data_connections._value.get() == 1


async def test_a_small_read_does_not_wait_for_large_ones_or_the_store(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        large, small = place.put(1, make_data(64 * MIB)), place.put(2, make_data(1000))
        place.handler.gate = asyncio.Event()
        slow = make_ref(3, "slow", Fingerprint("x", 5000))
        place.handler.contents[3] = make_data(5000)
        waiting = asyncio.create_task(place.read(slow, 0, 5000))
        big = [asyncio.create_task(place.read(large, n * 8 * MIB, 8 * MIB)) for n in range(8)]
        assert await place.read(small, 0, 1000) == make_data(1000)
        assert not waiting.done()
        assert b"".join(await asyncio.gather(*big)) == make_data(64 * MIB)
        place.handler.gate.set()
        assert await waiting == make_data(5000)


async def test_cancelling_one_read_leaves_the_others_and_its_buffer_alone(tmp_path: Path) -> None:
    data = make_data(32 * MIB)
    async with running(tmp_path) as place:
        ref = place.put(1, data)
        place.handler.gate = asyncio.Event()
        missing = make_ref(2, "missing", Fingerprint("x", 1 << 20))
        for _ in range(5):
            buffers = [memoryview(bytearray(16 * MIB)) for _ in range(3)]
            tasks = [
                asyncio.create_task(place.pool.read(place.cluster, place.worker, ref, n * 8 * MIB, buffer))
                for n, buffer in enumerate(buffers)
            ]
            waiting = asyncio.create_task(place.read(missing, 0, 1000))
            await wait_until(lambda: place.handler.under_way == 1, "it is asked of the handler")
            waiting.cancel()
            tasks[1].cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await tasks[1]
            buffers[1][:] = bytes(len(buffers[1]))
            await tasks[0]
            await tasks[2]
            assert buffers[0] == data[: 16 * MIB]
            assert buffers[2] == data[16 * MIB :]
            assert not any(buffers[1][::4096])
            await wait_until(lambda: place.handler.under_way == 0, "the handler is told")
        assert await place.read(ref, 0, 5000) == data[:5000]
        await wait_until(lambda: place.get_file(ref)._users == 0, "nothing is held")


async def test_a_flipped_bit_is_refused_and_its_page_dropped(tmp_path: Path) -> None:
    data = make_data(3 * MIB)
    async with running(tmp_path) as place:
        ref = place.put(1, data)
        assert await place.read(ref, 0, MIB) == data[:MIB]
        [path] = [path for path in (tmp_path / "cache" / "files").rglob("*") if path.is_file()]
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, bytes([data[MIB + 7] ^ 1]), MIB + 7)
        os.pwrite(fd, bytes([data[2 * MIB + 7] ^ 1]), 2 * MIB + 7)
        os.close(fd)
        # A whole page: the receiver finds it, and the sender is told.
        with pytest.raises(errors.Corrupt):
            await place.read(ref, 0, 2 * MIB)
        await wait_until(lambda: place.get_file(ref).get_present(0) == 0b101, "the page is dropped")
        # A part of a page: the sender finds it.
        with pytest.raises(errors.NotFound):
            await place.read(ref, 2 * MIB + 100, 50, cached_only=True)
        assert place.get_file(ref).get_present(0) == 0b1
        place.handler.contents[1] = data
        assert await place.read(ref, 0, 3 * MIB) == data


async def test_a_file_is_kept_while_it_is_sent(tmp_path: Path) -> None:
    data = make_data(24 * MIB)
    async with running(tmp_path) as place:
        ref = place.put(1, data)
        taken = 0

        def on_frame(start: int, length: int, sums: object) -> None:
            nonlocal taken
            taken = start + length

        buffer = memoryview(bytearray(len(data)))
        reading = asyncio.create_task(place.pool.read(place.cluster, place.worker, ref, 0, buffer, on_frame=on_frame))
        await wait_until(lambda: taken > 0, "some of it is there")
        # Freed under it: the file goes to held/ and is sent to its end.
        await asyncio.to_thread(place.store.remove, [ref.file_id], force=True, include_pinned=True)
        await reading
        assert buffer == data
        with pytest.raises(errors.NotFound):
            await place.read(ref, 0, 10, cached_only=True)


async def test_another_version_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as place:
        ref = place.put(1, make_data(1000))
        assert place.pool.can_read(place.worker)
        pack = wire.pack_hello
        monkeypatch.setattr(wire, "pack_hello", lambda hello: pack(hello, protocol=wire.PROTOCOL + 1))
        monkeypatch.setattr(wire, "PROTOCOL", wire.PROTOCOL)
        real = wire.parse_welcome
        monkeypatch.setattr(wire, "parse_welcome", lambda data: real(data)._replace(protocol=9))
        with pytest.raises(errors.Unsupported, match="version 9"):
            await place.read(ref, 0, 1000)
        assert not place.pool.can_read(place.worker), "gRPC is used for a while"
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"data_nonce": "of-another-start"}, errors.Unavailable),
        ({"worker_id": WorkerId("another")}, errors.Unavailable),
        ({"data_address": "127.0.0.1:1"}, errors.Unsupported),
        ({"data_address": ""}, errors.Unsupported),
    ],
)
async def test_who_is_not_there(tmp_path: Path, wrong: dict[str, Any], kind: type[errors.AlluxioLikeError]) -> None:
    async with running(tmp_path) as place:
        ref = place.put(1, make_data(1000))
        place.worker = replace(place.worker, **wrong)
        with pytest.raises(kind):
            await place.read(ref, 0, 1000)


async def test_another_clusters_worker_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        ref = place.put(1, make_data(1000))
        place.cluster = replace(place.cluster, cluster_id="another")
        with pytest.raises(errors.Unavailable, match="another worker"):
            await place.read(ref, 0, 1000)


async def test_a_worker_that_falls_silent_ends_reads_in_time(tmp_path: Path) -> None:
    async with running(tmp_path, silence_s=0.4) as place:
        ref = place.put(1, make_data(MIB))
        place.handler.gate = asyncio.Event()
        missing = make_ref(2, "missing", Fingerprint("x", 1 << 20))
        with pytest.raises(errors.TimedOut):
            await asyncio.wait_for(place.read(missing, 0, 1000), 60)
        # A new connection serves on.
        place.pool._silence_s = SILENCE_S
        assert await place.read(ref, 0, MIB) == make_data(MIB)
        place.pool._silence_s = 0.4
        # Nothing behind the port ever answers.
        silent = listen("127.0.0.1", 0)
        try:
            place.worker = replace(place.worker, data_address=f"127.0.0.1:{silent.getsockname()[1]}")
            with pytest.raises(errors.TimedOut):
                await place.read(ref, 0, 1000)
        finally:
            silent.close()


async def test_a_server_that_stops_ends_reads(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        ref = place.put(1, make_data(48 * MIB))
        place.handler.gate = asyncio.Event()
        missing = make_ref(2, "missing", Fingerprint("x", 1 << 20))
        reads = [asyncio.create_task(place.read(ref, 0, 48 * MIB)), asyncio.create_task(place.read(missing, 0, 10))]
        await wait_until(lambda: place.handler.under_way == 1, "both are under way")
        await place.server.stop()
        results = await asyncio.gather(*reads, return_exceptions=True)
        assert isinstance(results[1], errors.Unavailable)
        assert isinstance(results[0], errors.Unavailable) or results[0] == make_data(48 * MIB)


async def _greet(place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = place.worker.data_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(wire.pack_hello(wire.Hello("the-cluster", place.worker.worker_id, "the-nonce")))
    assert wire.parse_welcome(await reader.readexactly(wire.WELCOME_BYTES)).accepted
    return reader, writer


async def test_a_receiver_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    async with running(tmp_path, patience_s=3.0) as place:
        ref = place.put(1, make_data(32 * MIB))
        _, writer = await _greet(place)
        encoded = wire.encode_ref(ref)
        for n in range(1, 5):
            writer.write(wire.pack_read(n, encoded, 0, 32 * MIB, priority=1, cached_only=False))
        await wait_until(lambda: place.get_file(ref)._users > 0, "it is being sent")
        # Others are served meanwhile.
        assert await place.read(ref, 0, 32 * MIB) == make_data(32 * MIB)
        await wait_until(lambda: place.get_file(ref)._users == 0, "it is given up")
        writer.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 64,
        struct.pack("<8sHHHH", wire.MAGIC, wire.PROTOCOL, 60000, 60000, 60000),
        struct.pack("<8sHHHH", wire.MAGIC, wire.PROTOCOL, 2, 2, 2) + b"\xff" * 6,
    ],
)
async def test_strangers_are_turned_away(tmp_path: Path, garbage: bytes) -> None:
    async with running(tmp_path) as place:
        ref = place.put(1, make_data(1000))
        host, _, port = place.worker.data_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        assert await place.read(ref, 0, 1000) == make_data(1000)


async def test_nonsense_after_the_greeting_ends_that_connection_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as place:
        ref = place.put(1, make_data(1000))
        reader, writer = await _greet(place)
        writer.write(wire.pack_read(1, b"no content", 0, 10, priority=1, cached_only=False))
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        assert await place.read(ref, 0, 1000) == make_data(1000)


@asynccontextmanager
async def _impostor(
    behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[tuple[Cluster, Worker]]:
    """A server that greets and then does what it likes."""
    running_tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running_tasks.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                _, lengths = wire.parse_hello_head(await reader.readexactly(wire.HELLO_BYTES))
                await reader.readexactly(sum(lengths))
                writer.write(wire.pack_welcome())
                await behave(reader, writer)
                await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            running_tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    worker = Worker(WorkerId("w"), "127.0.0.1:1", "host", "", 1, data_address=address, data_nonce="n")
    try:
        yield Cluster("c", 1, (worker,)), worker
    finally:
        server.close()
        await server.wait_closed()
        await wait_until(lambda: not running_tasks, "its connections are closed")


async def _receive_call(reader: asyncio.StreamReader) -> wire.Call:
    call = wire.parse_call(await reader.readexactly(wire.CALL_BYTES))
    await reader.readexactly(call.ref_bytes)
    return call


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda call: wire.pack_data(call.request_id, 0, MIB, [1], last=True) + bytes(MIB), errors.Corrupt),
        (lambda call: wire.pack_data(call.request_id, 0, 10, (), last=True) + bytes(10), errors.Unavailable),
        (lambda call: wire.pack_data(call.request_id, 5, 10, (), last=True) + bytes(10), errors.Unavailable),
        (lambda call: wire.pack_data(call.request_id + 1, 0, 10, (), last=True) + bytes(10), errors.Unavailable),
        (lambda call: wire.pack_data(call.request_id, 0, 10, [7], last=False) + bytes(10), errors.Unavailable),
        (lambda call: b"\xff" * 100, errors.Unavailable),
        (lambda call: wire.pack_error(call.request_id, errors.StoreDenied("no", subject="x")), errors.StoreDenied),
    ],
)
async def test_a_server_that_answers_otherwise(answer: Callable[[wire.Call], bytes], kind: type[errors.AlluxioLikeError]) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(await _receive_call(reader)))

    pool = DataPool(silence_s=SILENCE_S)
    async with _impostor(behave) as (cluster, worker):
        with pytest.raises(kind):
            await pool.read(cluster, worker, make_ref(1, "x", Fingerprint("x", 4 * MIB)), 0, memoryview(bytearray(MIB)))
        await pool.close()


async def test_replies_in_pieces_of_any_size() -> None:
    """One byte at a time, and several replies in one segment: heads and bytes are put together again."""
    data = make_data(300_000)
    cut = [1, 7, 23, 24, 25, 1000, 40_000]

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls = [await _receive_call(reader) for _ in cut]
        whole = b"".join(
            wire.pack_data(call.request_id, call.offset, call.length, (), last=True)
            + data[call.offset : call.offset + call.length]
            for call in reversed(calls)
        )
        position = 0
        while position < len(whole):
            step = cut[position % len(cut)]
            writer.write(whole[position : position + step])
            await writer.drain()
            position += step

    pool = DataPool(silence_s=SILENCE_S)
    ref = make_ref(1, "x", Fingerprint("x", len(data)))
    buffers = [bytearray(step * 3) for step in cut]
    async with _impostor(behave) as (cluster, worker):
        await asyncio.gather(*(pool.read(cluster, worker, ref, n * 31, memoryview(one)) for n, one in enumerate(buffers)))
        assert buffers == [data[n * 31 : n * 31 + len(buffer)] for n, buffer in enumerate(buffers)]
        await pool.close()


# The format.


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_parsed(data: bytes) -> None:
    for parse, size in (
        (wire.parse_hello_head, wire.HELLO_BYTES),
        (wire.parse_welcome, wire.WELCOME_BYTES),
        (wire.parse_call, wire.CALL_BYTES),
        (wire.parse_reply, wire.REPLY_BYTES),
    ):
        with contextlib.suppress(wire.Malformed):
            parse(data[:size].ljust(size, b"\0"))  # type: ignore[operator]
    with contextlib.suppress(wire.Malformed):
        wire.decode_ref(data)
    with contextlib.suppress(wire.Malformed):
        wire.decode_filled(data)
    with contextlib.suppress(wire.Malformed):
        wire.parse_waited(data)
    assert isinstance(wire.parse_error(data), errors.AlluxioLikeError)


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**63),
    st.binary(max_size=2000),
    st.text(max_size=50),
    st.booleans(),
    st.one_of(st.none(), st.builds(Fingerprint, st.text('ab"[', max_size=5), st.integers(0, 2**60))),
    st.lists(st.text("ab]", max_size=5), max_size=3),
    st.booleans(),
)
def test_a_content_is_the_same_on_the_other_side(
    inode: int,
    version: int,
    size: int,
    key: bytes,
    token: str,
    pinned: bool,
    source: Fingerprint | None,
    holders: list[str],
    frozen: bool,
) -> None:
    ref = replace(
        make_ref(inode, key.decode("utf-8", "surrogateescape"), Fingerprint(token.encode("utf-8", "replace").decode(), size)),
        version=version,  # type: ignore[arg-type]
        pinned=pinned,
        source=source,
        holders=tuple(holders),  # type: ignore[arg-type]
        frozen=frozen,
    )
    encoded = wire.encode_ref(ref)
    # Of what no store has, nobody is asked for an older version.
    assert wire.decode_ref(encoded) == replace(ref, frozen=frozen and ref.is_stored)
    for wrong in (encoded[:-1], encoded + b"x", encoded[:20]):
        with pytest.raises(wire.Malformed):
            wire.decode_ref(wrong)


def test_sockets_are_not_inherited() -> None:
    sock = listen("127.0.0.1", 0)
    try:
        assert not os.get_inheritable(sock.fileno())
        with pytest.raises(errors.Conflict):
            listen("127.0.0.1", sock.getsockname()[1])
    finally:
        sock.close()
    assert socket.AF_INET
