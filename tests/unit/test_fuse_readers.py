"""Processes that read for a daemon, without a kernel: what is written to "the device" is read from a socket here."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from alluxio_like.cache.checksum import compute_checksum
from alluxio_like.clock import SystemClock
from alluxio_like.fuse import handing, wire
from alluxio_like.fuse.handing import Record
from alluxio_like.fuse.readers import Handed, Readers
from alluxio_like.metrics import Metrics
from alluxio_like.types import PAGE_BYTES, SharedRange
from tests.servers.processes import freeze

SIZE = 2 * PAGE_BYTES + 100
CONTENT = os.urandom(SIZE)


class World:
    """Readers, the other end of their device, and what came back."""

    def __init__(self, readers: Readers, device: socket.socket, directory: Path) -> None:
        self.readers, self.device, self.directory = readers, device, directory
        self.done: dict[int, bool] = {}
        self.files: list[int] = []
        self._change = asyncio.Event()

    def on_done(self, unique: int, handed: Handed, answered: bool) -> None:
        assert unique not in self.done
        assert handed.what == f"read {unique}"
        self.done[unique] = answered
        self._change.set()

    def open(self) -> int:
        path = self.directory / str(len(self.files))
        path.write_bytes(CONTENT)
        self.files.append(os.open(path, os.O_RDONLY))
        return self.files[-1]

    def hand_out(self, unique: int, fd: int, offset: int, length: int, handle: int = 1, *, bad: bool = False) -> bool:
        first = offset // PAGE_BYTES
        pages = range(first, -(-(offset + length) // PAGE_BYTES))
        sums = tuple(compute_checksum(CONTENT[page * PAGE_BYTES :][:PAGE_BYTES]) + bad for page in pages)
        to = self.readers.find_free()
        assert to is not None
        shared = SharedRange(fd, fd, SIZE, offset, length, 0, sums)
        return self.readers.hand_out(to, handle, unique, shared, f"read {unique}")

    async def answer(self) -> tuple[int, bytes]:
        """The next answer that a reader wrote: `unique` and the bytes."""
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.device, 2 * PAGE_BYTES), 60)
        length, error, unique = wire.OUT_HEADER.unpack_from(data)
        assert (length, error) == (len(data), 0)
        return unique, data[wire.OUT_HEADER.size :]

    async def wait_done(self, *uniques: int) -> list[bool]:
        async with asyncio.timeout(60):
            while any(unique not in self.done for unique in uniques):
                self._change.clear()
                await self._change.wait()
        return [self.done[unique] for unique in uniques]

    async def wait_loaded(self, count: int) -> list[int]:
        async with asyncio.timeout(60):
            while len(self.readers.pids) < count:
                await asyncio.sleep(0.01)
        return self.readers.pids


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers are frozen here for as long as a busy machine takes for the next step."""
    monkeypatch.setattr("alluxio_like.fuse.readers._HANGS_AFTER_S", 60.0)


@asynccontextmanager
async def make_world(directory: Path, count: int) -> AsyncIterator[World]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    ours.setblocking(False)
    readers = Readers(count, theirs.fileno(), SystemClock(), Metrics())
    world = World(readers, ours, directory)
    readers.start(world.on_done)
    try:
        await world.wait_loaded(count)
        yield world
    finally:
        await readers.close()
        for fd in world.files:
            os.close(fd)
        ours.close()
        theirs.close()


def test_records_are_what_they_were() -> None:
    for record in (
        Record(handing.SERVE),
        Record(handing.READ, 499, (1 << 63) + 5, 1 << 40, PAGE_BYTES, 1 << 41, 8, (None, (1 << 64) - 1)),
        Record(handing.READ, 1, 2, 3, 4, 5, 6, (7,)),
    ):
        found = Record.unpack(record.pack())
        assert found._replace(sums=found.sums[: len(record.sums)]) == record
        assert all(checksum is None for checksum in found.sums[len(record.sums) :])
    assert handing.unpack_done(handing.pack_done(1 << 63, answered=True)) == (1 << 63, True)


async def test_ranges_are_verified_and_answered(tmp_path: Path) -> None:
    ranges = [
        (0, PAGE_BYTES),
        (PAGE_BYTES, PAGE_BYTES),
        (2 * PAGE_BYTES, 100),
        (5, 70_000),
        (PAGE_BYTES - 10, 2000),
        (SIZE - 1, 1),
    ]
    async with make_world(tmp_path, 1) as world:
        fd = world.open()
        for unique, (offset, length) in enumerate(ranges, 1):
            assert world.hand_out(unique, fd, offset, length)
            assert await world.answer() == (unique, CONTENT[offset : offset + length])
            assert await world.wait_done(unique) == [True]


async def test_what_does_not_match_comes_back(tmp_path: Path) -> None:
    async with make_world(tmp_path, 1) as world:
        fd = world.open()
        for unique, (offset, length) in enumerate([(0, PAGE_BYTES), (5, 1000), (PAGE_BYTES - 1, 2)], 1):
            assert world.hand_out(unique, fd, offset, length, bad=True)
            assert await world.wait_done(unique) == [False]
        # Behind the end of the file, which was made shorter: not to be had either.
        os.truncate(tmp_path / "0", 10)
        assert world.hand_out(9, fd, PAGE_BYTES, PAGE_BYTES)
        assert await world.wait_done(9) == [False]
        with pytest.raises(BlockingIOError):
            world.device.recv(10)


async def test_files_come_and_go(tmp_path: Path) -> None:
    """More files than a reader has open at a time, each closed or not, and one handle over two files."""
    async with make_world(tmp_path, 1) as world:
        (pid,) = world.readers.pids
        fds = [world.open() for _ in range(3)]
        count = handing.SLOTS + 50
        for handle in range(count):
            assert world.hand_out(handle + 1, fds[handle % 3], handle, 10, handle)
            assert await world.answer() == (handle + 1, CONTENT[handle : handle + 10])
            await world.wait_done(handle + 1)
            if handle % 3 == 0:
                world.readers.forget(handle)
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < handing.SLOTS + 20
        for handle in range(count):
            world.readers.forget(handle)
        other = world.open()
        for unique, fd in ((count + 1, fds[0]), (count + 2, other), (count + 3, other)):
            # One that has yet to hear of all those that were closed takes nothing more for now.
            async with asyncio.timeout(60):
                while not world.hand_out(unique, fd, 0, 10, 1):
                    await asyncio.sleep(0.01)
            assert await world.answer() == (unique, CONTENT[:10])
            await world.wait_done(unique)
        assert world.readers.pids == [pid]
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < 20


async def test_a_dead_reader_gives_back_and_is_replaced(tmp_path: Path) -> None:
    async with make_world(tmp_path, 2) as world:
        pids = world.readers.pids
        for pid in pids:
            freeze(pid)
        fd = world.open()
        for unique in (1, 2, 3, 4):
            assert world.hand_out(unique, fd, 0, 10)
        assert world.readers.find_free() is None
        assert len(world.readers) == 4
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert await world.wait_done(1, 2, 3, 4) == [False] * 4
        fresh = await world.wait_loaded(2)
        assert not set(fresh) & set(pids)
        assert world.hand_out(5, fd, 0, 10)
        assert await world.answer() == (5, CONTENT[:10])


async def test_one_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alluxio_like.fuse.readers._HANGS_AFTER_S", 0.1)
    monkeypatch.setattr("alluxio_like.fuse.readers._LOOK_S", 0.05)
    async with make_world(tmp_path, 1) as world:
        (pid,) = world.readers.pids
        freeze(pid)
        assert world.hand_out(1, world.open(), 0, 10)
        assert await world.wait_done(1) == [False]


async def test_take_back_ends_them(tmp_path: Path) -> None:
    async with make_world(tmp_path, 1) as world:
        (pid,) = world.readers.pids
        freeze(pid)
        assert world.hand_out(1, world.open(), 0, 10)
        assert [unique for unique, _ in world.readers.take_back()] == [1]
        assert world.readers.find_free() is None
        os.kill(pid, signal.SIGCONT)
        await world.readers.close()
        assert not Path(f"/proc/{pid}").exists()
        assert world.done == {}


async def test_what_readers_have_done_is_heard_without_the_loops_turn(tmp_path: Path) -> None:
    """Else a daemon that has many requests to take finds its readers busy, and does everything itself."""
    async with make_world(tmp_path, 1) as world:
        fd = world.open()
        assert world.hand_out(1, fd, 0, PAGE_BYTES)
        assert world.hand_out(2, fd, PAGE_BYTES, PAGE_BYTES)
        os.set_blocking(world.device.fileno(), True)
        for _ in range(2):
            os.read(world.device.fileno(), 2 * PAGE_BYTES)
        end_s = time.monotonic() + 60
        while world.readers.find_free() is None:
            assert time.monotonic() < end_s
        os.set_blocking(world.device.fileno(), False)
        assert world.done.get(1)
