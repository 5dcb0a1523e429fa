"""The kernel session with a socket in the device's place: every request is answered exactly once, whatever it is."""

import asyncio
import errno
import os
import random
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alluxio_like.clock import SystemClock
from alluxio_like.fuse import wire
from alluxio_like.fuse.accounting import Accounting
from alluxio_like.fuse.ledger import Ledger, SentAway, copy_sent, make_memory
from alluxio_like.fuse.memory import MemoryBackend, MemoryReader
from alluxio_like.fuse.meter import Meter
from alluxio_like.fuse.nodes import Nodes
from alluxio_like.fuse.opening import Opener, OpenSettings
from alluxio_like.fuse.operations import Operations, Settings
from alluxio_like.fuse.readers import LEAST_BYTES, Readers
from alluxio_like.fuse.session_kernel import Session
from alluxio_like.fuse.session_shared import SharedSession
from alluxio_like.metrics import Metrics
from alluxio_like.types import ROOT_INODE
from tests.servers.processes import freeze

UNANSWERED = {wire.FORGET, wire.BATCH_FORGET, wire.INTERRUPT}
HEADER = wire.OUT_HEADER.size


class FakeDevice:
    """The session's end of a socket, and backing ids that are counted."""

    def __init__(self, fd: int, ledger: Ledger | None = None) -> None:
        self.fd = fd
        self.ledger = Ledger(make_memory()) if ledger is None else ledger
        self.backings: set[int] = set()
        self._next = 1

    def open_backing(self, fd: int) -> int:
        os.fstat(fd)
        self._next += 1
        self.backings.add(self._next)
        return self._next

    def close_backing(self, backing_id: int) -> bool:
        self.backings.remove(backing_id)
        return True

    def note_sent(self, sent: SentAway) -> None:
        self.ledger.note_sent(sent)

    def forget_sent(self, thread: int, inode: int) -> None:
        self.ledger.forget_sent(thread, inode)

    def list_sent(self) -> list[SentAway]:
        return self.ledger.list_sent()

    def close(self) -> None:
        os.close(self.fd)
        self.ledger.close()


class Kernel:
    """The other end: asks, and collects answers."""

    def __init__(self, backend: MemoryBackend, device: FakeDevice, end: socket.socket, operations: Operations) -> None:
        self.backend, self.device, self.operations = backend, device, operations
        self._end = end
        self._unique = 0
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.counts: Counter[int] = Counter()
        self.session: Session
        self.readers: Readers

    def send(self, opcode: int, node: int, body: bytes = b"", *, thread: int | None = None) -> int:
        self._unique += 2
        size = wire.IN_HEADER.size + len(body)
        pid = os.getpid() if thread is None else thread
        self._end.send(wire.IN_HEADER.pack(size, opcode, self._unique, node, 0, 0, pid, 0) + body)
        return self._unique

    def collect(self) -> None:
        while True:
            try:
                data = self._end.recv(2 << 20)
            except BlockingIOError:
                return
            length, error, unique = wire.OUT_HEADER.unpack_from(data)
            assert length == len(data)
            assert -512 < error <= 0
            assert error == 0 or length == HEADER
            self.counts[unique] += 1
            self.answers[unique] = (-error, data[HEADER:])

    async def ask(self, opcode: int, node: int, body: bytes = b"", *, thread: int | None = None) -> tuple[int, bytes]:
        """errno and body of the answer."""
        unique = self.send(opcode, node, body, thread=thread)
        async with asyncio.timeout(60):
            while unique not in self.answers:
                await asyncio.sleep(0)
                self.collect()
        return self.answers[unique]

    async def look_up(self, name: bytes) -> int:
        number, body = await self.ask(wire.LOOKUP, 1, name + b"\0")
        assert number == 0
        return int(wire.ENTRY_OUT.unpack(body)[0])

    async def open(self, node: int, *, thread: int | None = None) -> tuple[int, int, int]:
        """errno, handle, flags."""
        number, body = await self.ask(wire.OPEN, node, wire.OPEN_IN.pack(os.O_RDONLY, 0), thread=thread)
        if number:
            return number, 0, 0
        handle, flags, _ = wire.OPEN_OUT.unpack(body)
        return 0, handle, flags

    async def release(self, node: int, handle: int) -> None:
        number, _ = await self.ask(wire.RELEASE, node, wire.RELEASE_IN.pack(handle, 0, 0, 0))
        assert number == 0


IO_TIMEOUT_S = 60.0
"""No request of these tests is to end by it."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers are frozen here for as long as a busy machine takes for the next step."""
    monkeypatch.setattr("alluxio_like.fuse.readers._HANGS_AFTER_S", 60.0)


@asynccontextmanager
async def serving(tmp_path: Any = None, **given: Any) -> Any:
    backend = MemoryBackend(io_timeout_s=IO_TIMEOUT_S, whole_dir=tmp_path)
    backend.add_file("/file", bytes(range(256)) * 40)
    backend.add_file("/other", b"other")
    backend.add_directory("/dir")
    root = (await backend.get_entry(ROOT_INODE)).entry
    assert root is not None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    device = FakeDevice(ours.detach(), given.get("ledger"))
    metrics, nodes, clock = Metrics(), Nodes(given.get("generation", 0)), SystemClock()
    why_not = "" if tmp_path is not None else "not here"
    opener = Opener(
        backend, device, nodes, OpenSettings(why_not, given.get("fill", 1 << 20), False, 0, False, IO_TIMEOUT_S), clock, metrics
    )
    operations = Operations(
        backend, root, Settings(60.0, IO_TIMEOUT_S), clock, serving=opener, generation=given.get("generation", 0)
    )
    kernel = Kernel(backend, device, theirs, operations)
    meter, accounting = Meter(metrics), Accounting(clock, metrics)
    readers = None
    if count := given.get("readers", 0):
        readers = kernel.readers = Readers(count, device.fd, clock, metrics)
        kernel.session = SharedSession(operations, opener, nodes, device, IO_TIMEOUT_S, meter, accounting, readers)  # type: ignore[arg-type]
    else:
        kernel.session = Session(operations, opener, nodes, device, IO_TIMEOUT_S, meter, accounting)  # type: ignore[arg-type]
    task = asyncio.create_task(kernel.session.run())
    await kernel.session.wait_ready()
    try:
        yield kernel
    finally:
        kernel.session.stop()
        async with asyncio.timeout(60):
            await task
        if readers is not None:
            await readers.close()
        kernel.collect()
        theirs.close()
        await opener.close()
        await operations.close()
        device.close()
    assert not kernel.session._under_way
    assert all(count == 1 for count in kernel.counts.values())


async def test_a_file_is_opened_read_and_released() -> None:
    async with serving() as kernel:
        node = await kernel.look_up(b"file")
        number, handle, flags = await kernel.open(node)
        assert (number, flags) == (0, wire.FOPEN_KEEP_CACHE | wire.FOPEN_NOFLUSH)
        number, body = await kernel.ask(wire.READ, node, wire.READ_IN.pack(handle, 250, 20, 0, 0, 0))
        assert (number, body) == (0, bytes(range(250, 256)) + bytes(range(14)))
        await kernel.release(node, handle)
        assert kernel.operations.count_open() == 0
        assert (await kernel.ask(wire.IOCTL, node, bytes(wire.IOCTL_IN.size)))[0] == errno.ENOTTY
        assert (await kernel.ask(wire.LOOKUP, 1, b"nothing\0")) == (0, wire.pack_missing(5.0))


async def test_an_open_that_does_not_fit_is_sent_to_another_node_id_once(tmp_path: Any) -> None:
    async with serving(tmp_path, fill=0) as kernel:
        node = await kernel.look_up(b"file")
        _, first, flags = await kernel.open(node, thread=7)
        assert not flags & wire.FOPEN_PASSTHROUGH
        kernel.backend.complete_path("/file")
        assert await kernel.open(node, thread=7) == (errno.ESTALE, 0, 0)
        moved = await kernel.look_up(b"file")
        assert moved != node
        number, second, flags = await kernel.open(moved, thread=7)
        assert (number, flags) == (0, wire.FOPEN_PASSTHROUGH | wire.FOPEN_NOFLUSH)
        assert len(kernel.device.backings) == 1
        # Who has no name to look up comes back by the same node id.
        assert (await kernel.open(node, thread=8))[0] == errno.ESTALE
        number, third, flags = await kernel.open(node, thread=8)
        assert (number, flags) == (0, wire.FOPEN_KEEP_CACHE | wire.FOPEN_NOFLUSH)
        # Of callers that cannot be told from each other none is sent away twice.
        assert (await kernel.open(node, thread=0))[0] == errno.ESTALE
        handles = [await kernel.open(node, thread=0) for _ in range(3)]
        assert [number for number, _, _ in handles] == [0, 0, 0]
        for handle in (first, third, *(handle for _, handle, _ in handles)):
            await kernel.release(node, handle)
        await kernel.release(moved, second)
        assert kernel.device.backings == set()


async def test_what_an_earlier_daemon_gave_out_is_adopted(tmp_path: Any) -> None:
    async with serving(tmp_path, generation=3) as kernel:
        node = await kernel.look_up(b"file")
        old_node, old_handle = node & (1 << 48) - 1 | 2 << 54, 2 << 40 | 5
        number, body = await kernel.ask(wire.READ, old_node, wire.READ_IN.pack(old_handle, 0, 10, 0, 0, 0))
        assert (number, body) == (0, bytes(range(10)))
        await kernel.release(old_node, old_handle)
        await kernel.release(old_node, 2 << 40 | 6)
        assert kernel.operations.count_open() == 0
        assert (await kernel.open(old_node, thread=9))[0] == errno.ESTALE
        number, handle, flags = await kernel.open(node, thread=9)
        assert number == 0
        assert flags & wire.FOPEN_PASSTHROUGH
        await kernel.release(node, handle)
        number, _ = await kernel.ask(wire.READ, node, wire.READ_IN.pack(3 << 40 | 99, 0, 10, 0, 0, 0))
        assert number == errno.EIO, "a number of our own that was never given out"
        directory = await kernel.look_up(b"dir")
        number, body = await kernel.ask(wire.READDIR, directory, wire.READ_IN.pack(2 << 40 | 7, 0, 4096, 0, 0, 0))
        assert number == 0
        assert body


async def test_an_open_that_is_sent_again_is_sent_away_again(tmp_path: Any) -> None:
    """The kernel sends again what the daemon before had read, and with it what this one has just read."""
    async with serving(tmp_path, generation=3) as kernel:
        old_node = await kernel.look_up(b"file") & (1 << 48) - 1 | 2 << 54
        body = wire.OPEN_IN.pack(os.O_RDONLY, 0)
        for mark in (0, wire.UNIQUE_RESEND, wire.UNIQUE_RESEND):
            kernel._end.send(wire.IN_HEADER.pack(48, wire.OPEN, 7777 | mark, old_node, 0, 0, 7, 0) + body)
            async with asyncio.timeout(60):
                while 7777 | mark not in kernel.answers:
                    await asyncio.sleep(0)
                    kernel.collect()
            assert kernel.answers.pop(7777 | mark)[0] == errno.ESTALE
        kernel.counts.clear()
        assert (await kernel.open(old_node, thread=7))[0] == 0, "another request of that thread has no name to look up"


async def test_an_open_that_one_daemon_sent_away_is_served_by_the_next(tmp_path: Any) -> None:
    """The kernel looks a name up again once only: killed between that and the open that follows, a daemon must not fail it."""
    memory, successor = make_memory(), make_memory()
    async with serving(tmp_path, generation=3, ledger=Ledger(os.dup(memory))) as kernel:
        node = await kernel.look_up(b"file")
        assert (await kernel.open(node & (1 << 48) - 1 | 2 << 54, thread=9))[0] == errno.ESTALE
    copy_sent(memory, successor)
    async with serving(tmp_path, generation=4, ledger=Ledger(os.dup(successor))) as kernel:
        kernel._unique = 1000
        assert (await kernel.open(node, thread=8))[0] == errno.ESTALE, "another thread has not been sent away"
        assert (await kernel.open(node, thread=9))[0] == 0
        assert (await kernel.open(node, thread=9))[0] == errno.ESTALE, "it was back"
        assert [sent.thread for sent in kernel.device.list_sent()] == [8, 9]
    os.close(memory)
    os.close(successor)


@pytest.mark.parametrize("mark", [0, wire.UNIQUE_RESEND])
async def test_requests_cancelled_before_their_first_step_are_answered(mark: int) -> None:
    """By the number they came with: the kernel knows one that it has sent again by no other."""
    async with serving() as kernel:
        uniques = [7777 + number | mark for number in range(5)]
        for unique in uniques:
            kernel._end.send(wire.IN_HEADER.pack(wire.IN_HEADER.size, wire.STATFS, unique, 1, 0, 0, 7, 0))
        kernel.session._take()
        kernel.session.cancel_requests()
        async with asyncio.timeout(60):
            while not all(unique in kernel.answers for unique in uniques):
                await asyncio.sleep(0)
                kernel.collect()
        assert {kernel.answers[unique][0] for unique in uniques} == {errno.EINTR}


async def test_a_request_is_given_up_when_its_caller_is_gone() -> None:
    async with serving() as kernel:
        kernel.backend.faults.stall_names = asyncio.Event()
        gone = kernel.send(wire.LOOKUP, 1, b"file\0", thread=(1 << 22) - 1)
        alive = kernel.send(wire.LOOKUP, 1, b"other\0")
        kernel.session._take()
        kernel.send(wire.INTERRUPT, 1, wire.INTERRUPT_IN.pack(gone))
        kernel.send(wire.INTERRUPT, 1, wire.INTERRUPT_IN.pack(alive))
        kernel.send(wire.INTERRUPT, 1, wire.INTERRUPT_IN.pack(12345678))
        async with asyncio.timeout(60):
            while gone not in kernel.answers:
                await asyncio.sleep(0)
                kernel.collect()
        assert kernel.answers[gone][0] == errno.EINTR
        assert alive not in kernel.answers
        kernel.backend.faults.stall_names.set()
        async with asyncio.timeout(60):
            while alive not in kernel.answers:
                await asyncio.sleep(0)
                kernel.collect()
        assert kernel.answers[alive][0] == 0


class Begun:
    """Reads for which no task waits, as a client begins them: the test says when they end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends: list[Callable[[bytes | None], None]] = []
        self.given_up: list[int] = []

        def begin_read(
            _reader: MemoryReader, _offset: int, _length: int, on_end: Callable[[bytes | None], None]
        ) -> Callable[[], None]:
            number = len(self.ends)
            self.ends.append(on_end)
            return lambda: self.given_up.append(number)

        monkeypatch.setattr(MemoryReader, "begin_read", begin_read)


async def wait_answered(kernel: Kernel, unique: int) -> tuple[int, bytes]:
    async with asyncio.timeout(60):
        while unique not in kernel.answers:
            await asyncio.sleep(0)
            kernel.collect()
    return kernel.answers[unique]


async def test_reads_that_need_no_task_are_answered_when_their_bytes_come(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Begun(monkeypatch)
    async with serving() as kernel:
        kernel.backend.never_now = True
        node = await kernel.look_up(b"file")
        _, handle, _ = await kernel.open(node)
        body = wire.READ_IN.pack(handle, 0, 4, 0, 0, 0)
        first, second = kernel.send(wire.READ, node, body), kernel.send(wire.READ, node, body)
        kernel.session._take()
        kernel.collect()
        assert first not in kernel.answers
        assert [what for _, what, _ in kernel.session.list_waiting()] == ["read", "read"]
        begun.ends[0](b"abcd")
        assert await wait_answered(kernel, first) == (0, b"abcd")
        # Where they do not come the ordinary way finds out why, or has them.
        begun.ends[1](None)
        assert await wait_answered(kernel, second) == (0, bytes(range(4)))
        assert begun.given_up == []


async def test_a_read_without_a_task_gets_one_when_its_caller_may_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Begun(monkeypatch)
    async with serving() as kernel:
        kernel.backend.never_now = True
        node = await kernel.look_up(b"file")
        _, handle, _ = await kernel.open(node)
        stall = kernel.backend.faults.stall_reads = asyncio.Event()
        body = wire.READ_IN.pack(handle, 0, 4, 0, 0, 0)
        gone = kernel.send(wire.READ, node, body, thread=(1 << 22) - 1)
        alive = kernel.send(wire.READ, node, body)
        kernel.session._take()
        kernel.send(wire.INTERRUPT, 1, wire.INTERRUPT_IN.pack(gone))
        kernel.send(wire.INTERRUPT, 1, wire.INTERRUPT_IN.pack(alive))
        assert (await wait_answered(kernel, gone))[0] == errno.EINTR
        assert sorted(begun.given_up) == [0, 1]
        assert alive not in kernel.answers
        stall.set()
        assert await wait_answered(kernel, alive) == (0, bytes(range(4)))


async def test_reads_without_a_task_are_answered_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Begun(monkeypatch)
    async with serving() as kernel:
        kernel.backend.never_now = True
        node = await kernel.look_up(b"file")
        _, handle, _ = await kernel.open(node)
        last = kernel.send(wire.READ, node, wire.READ_IN.pack(handle, 0, 4, 0, 0, 0))
        kernel.session._take()
    assert begun.given_up == [0]
    assert kernel.answers[last] == (0, bytes(range(4)))


async def test_reads_that_wait_together_are_shared_and_answered_once_whatever_dies(tmp_path: Any) -> None:
    content = random.Random(1).randbytes(1 << 20)
    async with serving(tmp_path, fill=0, readers=2) as kernel:
        kernel.backend.add_file("/large", content)
        node = await kernel.look_up(b"large")
        # Opened before it is whole: read by READs.
        _, handle, flags = await kernel.open(node)
        assert flags & wire.FOPEN_KEEP_CACHE
        kernel.backend.complete_path("/large")
        async with asyncio.timeout(60):
            while len(kernel.readers.pids) < 2:
                await asyncio.sleep(0.01)

        def send() -> dict[int, int]:
            places = [number * 200_000 for number in range(5)]
            return {
                kernel.send(wire.READ, node, wire.READ_IN.pack(handle, place, LEAST_BYTES, 0, 0, 0)): place for place in places
            }

        async def check(sent: dict[int, int]) -> None:
            async with asyncio.timeout(60):
                while any(unique not in kernel.answers for unique in sent):
                    await asyncio.sleep(0)
                    kernel.collect()
            for unique, place in sent.items():
                assert kernel.answers[unique] == (0, content[place : place + LEAST_BYTES])

        await check(send())
        async with asyncio.timeout(60):
            while kernel.backend.reads_shared < 2:
                await asyncio.sleep(0)
        # Both stand still with what they have; one dies of it, the other goes on.
        pids = kernel.readers.pids
        for pid in pids:
            freeze(pid)
        sent = send()
        async with asyncio.timeout(60):
            while len(kernel.readers) < 4:
                await asyncio.sleep(0)
        os.kill(pids[0], signal.SIGKILL)
        os.kill(pids[1], signal.SIGCONT)
        await check(sent)
        # A file that is closed while one of them has read of it is closed there too.
        await kernel.release(node, handle)
        assert kernel.operations.count_open() == 0


async def test_an_end_does_not_wait_for_a_reader_that_hangs(tmp_path: Any) -> None:
    async with serving(tmp_path, fill=0, readers=1) as kernel:
        kernel.backend.add_file("/large", bytes(1 << 20))
        node = await kernel.look_up(b"large")
        _, handle, _ = await kernel.open(node)
        kernel.backend.complete_path("/large")
        async with asyncio.timeout(60):
            while not kernel.readers.pids:
                await asyncio.sleep(0.01)
        (pid,) = kernel.readers.pids
        freeze(pid)
        sent = [kernel.send(wire.READ, node, wire.READ_IN.pack(handle, 0, LEAST_BYTES, 0, 0, 0)) for _ in range(2)]
        async with asyncio.timeout(60):
            while not len(kernel.readers):
                await asyncio.sleep(0)
        kernel.session.stop()
        kernel.session.cancel_requests()
        async with asyncio.timeout(60):
            while any(unique not in kernel.answers for unique in sent):
                await asyncio.sleep(0)
                kernel.collect()
        assert sorted(kernel.answers[unique][0] for unique in sent) == [0, errno.EINTR]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_any_request_is_answered_exactly_once(seed: int) -> None:
    async def play() -> None:
        generator = random.Random(seed)
        async with serving() as kernel:
            nodes = [1, 2, await kernel.look_up(b"file"), 4, 1 << 60, generator.getrandbits(64)]
            sent: list[tuple[int, int]] = []
            for _ in range(150):
                opcode = generator.randrange(1, 60)
                body = generator.randbytes(generator.choice([0, 1, 7, 8, 16, 24, 40, 41, 64, 200]))
                if generator.random() < 0.5:
                    body = struct.pack("<QQI", generator.choice([1, 2, 3, 1 << 40]), generator.randrange(1 << 34), 4096) + body
                if generator.random() < 0.3:
                    body = generator.choice([b"file", b"dir", b"x" * 300, b""]) + b"\0"
                if opcode != wire.INIT:
                    sent.append((opcode, kernel.send(opcode, generator.choice(nodes), body)))
            async with asyncio.timeout(60):
                while any(unique not in kernel.answers for opcode, unique in sent if opcode not in UNANSWERED):
                    await asyncio.sleep(0)
                    kernel.collect()
            assert not any(unique in kernel.answers for opcode, unique in sent if opcode in UNANSWERED)

    asyncio.run(play())


def test_files_that_are_being_written_are_found_in_their_places_and_not_across_two() -> None:
    ledger = Ledger(make_memory())
    # In memory the end of the first and the beginning of the second look like the third.
    first, second = 0x0000_0007_0000_0001, 0x0000_0002_0000_0009
    across = int.from_bytes((first.to_bytes(8, "little") + second.to_bytes(8, "little"))[4:12], "little")
    ledger.note_written(first)
    ledger.note_written(second)
    ledger.forget_written(across)
    assert ledger.list_written() == [first, second]
    ledger.note_written(across)
    ledger.note_written(across)
    assert ledger.list_written() == [first, second, across]
    ledger.forget_written(first)
    ledger.note_written(5)
    assert ledger.list_written() == [5, second, across]
    ledger.close()
