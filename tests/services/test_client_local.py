"""Reads of cache files of workers on this machine: real directories, doors and indexes; the workers are another process."""

import asyncio
import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.client import Client, reading
from alluxio_like.config import ClientConfig
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import PAGE_BYTES, Entry, VersionId
from tests.fakes_rpc import make_content, wait_until

ROOT = Path(__file__).parents[2]
FILES = 16
SIZE = 20 * PAGE_BYTES + 777


class Workers:
    """The other process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        assert process.stdout is not None
        self.master = process.stdout.readline().strip()

    def tell(self, *words: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def count(self, what: str) -> int:
        return sum(one[what] for one in self.tell("counts"))


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    command = [sys.executable, "-m", "tests.local_worker", str(tmp_path_factory.mktemp("home")), str(FILES), str(SIZE)]
    command.append(str(request.param))
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Workers(process)
        process.communicate(timeout=60)


@pytest.fixture
async def client(workers: Workers) -> Any:
    config = ClientConfig(master=workers.master, io_timeout_s=60)
    async with Client.open(config, metrics=Metrics()) as client:
        yield client
    assert client._budget.used_bytes == 0


async def get_file(client: Client, number: int) -> tuple[Entry, bytes]:
    return await client.get_path(f"/f{number}"), make_content(SIZE, number)


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


async def test_a_sequential_read_fills_and_reads_files(client: Client, workers: Workers) -> None:
    entry, content = await get_file(client, 0)
    before = workers.count("reads")
    reader = client.open_file(entry)
    got = bytearray()
    while len(got) < SIZE:
        got += await reader.read(len(got), 300_000)
    assert bytes(got) == content
    assert workers.count("reads") == before, "all came from the cache files"
    fills = workers.count("fills")
    # Warm, in another reader: nobody is asked, and the index has not to be committed for what this process filled.
    workers.tell("flush")
    again = client.open_file(entry)
    for offset in range(0, SIZE, 100_000):
        data = again.try_read(offset, 100_000)
        assert data is not None
        assert data == content[offset : offset + 100_000]
    assert workers.count("fills") == fills
    await again.close()
    await reader.close()


async def test_random_reads_are_right(client: Client, workers: Workers) -> None:
    chance = random.Random(3)
    readers = [(client.open_file(entry), content) for entry, content in [await get_file(client, n) for n in (1, 2)]]

    async def read_some() -> None:
        for _ in range(15):
            reader, content = chance.choice(readers)
            offset, length = chance.randrange(SIZE), chance.choice([1, 5000, PAGE_BYTES, 3 * PAGE_BYTES + 1])
            assert await reader.read(offset, length) == content[offset : offset + length]

    await asyncio.gather(*(read_some() for _ in range(4)))


async def test_try_read_says_none_for_what_is_not_there(client: Client, workers: Workers) -> None:
    entry, content = await get_file(client, 3)
    reader = client.open_file(entry)
    assert reader.try_read(0, 10) is None
    await reader.read(5 * PAGE_BYTES, 10)
    assert reader.try_read(5 * PAGE_BYTES, 100) == content[5 * PAGE_BYTES : 5 * PAGE_BYTES + 100]
    assert reader.try_read(7 * PAGE_BYTES, 100) is None
    assert reader.try_read(6 * PAGE_BYTES - 10, 20) is None
    assert reader.try_read(SIZE, 10) == b""
    assert workers.count("fills") >= 1


async def test_a_flipped_bit_is_never_read(client: Client, workers: Workers) -> None:
    entry, content = await get_file(client, 4)
    first = client.open_file(entry)
    assert await first.read(0, SIZE) == content
    await first.close()
    workers.tell("flush")
    workers.tell("flip", entry.attr.inode, 9 * PAGE_BYTES + 5)
    reader = client.open_file(entry)
    got = b"".join([bytes(await reader.read(offset, 1 << 17)) for offset in range(0, SIZE, 1 << 17)])
    assert got == content
    await reader.close()
    # The worker whose file it is was told, so that it looks for itself.
    await wait_until(lambda: workers.count("bad_pages") > 0)


async def test_a_whole_file_is_verified_and_its_bad_pages_are_dropped(client: Client, workers: Workers) -> None:
    entry, content = await get_file(client, 11)
    reader = client.open_file(entry)
    assert await reader.fill_whole(Priority.DEMAND)
    await reader.close()
    workers.tell("flush")
    assert entry.ref is not None
    file = client.find_whole(entry.ref)
    assert file is not None
    assert await client.verify_whole(entry.ref, file)
    workers.tell("flip", entry.attr.inode, SIZE - 1)
    workers.tell("flip", entry.attr.inode, 3)
    assert not await client.verify_whole(entry.ref, file)
    # By the index it is whole no more, neither for this object nor for a new one.
    assert not file.is_complete
    assert file.get_present_run(0, SIZE) == 0
    assert file.get_present_run(PAGE_BYTES, SIZE) == 19 * PAGE_BYTES
    file.close()
    while (other := client.find_whole(entry.ref)) is not None:
        # With two workers the other one's may be whole.
        assert await client.verify_whole(entry.ref, other)
        other.close()
        break
    reader = client.open_file(entry)
    assert await reader.fill_whole(Priority.DEMAND)
    assert await reader.read(0, SIZE) == content
    await reader.close()


async def test_read_through_when_nothing_can_be_kept(client: Client, workers: Workers) -> None:
    entry, content = await get_file(client, 5)
    workers.tell("refuse", True)
    try:
        reader = client.open_file(entry)
        assert await reader.read(3 * PAGE_BYTES + 9, 2 * PAGE_BYTES) == content[3 * PAGE_BYTES + 9 : 5 * PAGE_BYTES + 9]
    finally:
        workers.tell("refuse", False)
    # The same handle, now that it can be kept; part is in memory, part in the file.
    assert await reader.read(0, SIZE) == content


async def test_what_is_read_in_order_goes_past_a_worker_that_does_not_keep_it(client: Client, workers: Workers) -> None:
    entry, content = await get_file(client, 15)
    workers.tell("refuse", True)
    try:
        fills, touched = workers.count("fills"), workers.count("touched")
        reader = client.open_file(entry)
        for offset in range(0, SIZE, 262_144):
            assert await reader.read(offset, 262_144) == content[offset : offset + 262_144]
        await reader.close()
        # The first two reads, which may be anything, ask; what is read ahead does not ask again for each piece.
        assert workers.count("fills") - fills <= 2 * workers.count("workers")
        await wait_until(lambda: workers.count("touched") - touched >= SIZE - 3 * PAGE_BYTES)
    finally:
        workers.tell("refuse", False)
    # Once a copy is here, a reader that went past finds it.
    reader = client.open_file(entry)
    assert await reader.fill_whole(Priority.DEMAND)
    await reader.close()


async def test_half_in_the_file_and_half_through_the_worker(client: Client, workers: Workers) -> None:
    entry, content = await get_file(client, 6)
    reader = client.open_file(entry)
    await reader.read(2 * PAGE_BYTES, PAGE_BYTES)
    workers.tell("refuse", True)
    try:
        start = 2 * PAGE_BYTES + 100
        assert await reader.read(start, 3 * PAGE_BYTES) == content[start : start + 3 * PAGE_BYTES]
    finally:
        workers.tell("refuse", False)


async def test_what_is_cached_stays_readable_when_the_workers_fail(client: Client, workers: Workers) -> None:
    entry, content = await get_file(client, 7)
    reader = client.open_file(entry)
    assert await reader.read(0, 4 * PAGE_BYTES) == content[: 4 * PAGE_BYTES]
    await wait_until(lambda: all(flight.done for flight in reader._flights))
    workers.tell("fail", "stale")
    try:
        assert await reader.read(0, 4 * PAGE_BYTES) == content[: 4 * PAGE_BYTES]
        with pytest.raises(errors.Stale):
            await reader.read(15 * PAGE_BYTES, 10)
        assert await reader.read(PAGE_BYTES, 10) == content[PAGE_BYTES : PAGE_BYTES + 10]
    finally:
        workers.tell("fail", "")


async def test_workers_are_told_what_was_read(client: Client, workers: Workers) -> None:
    entry, _ = await get_file(client, 8)
    before = workers.count("touched")
    reader = client.open_file(entry)
    await reader.read(0, SIZE)
    for _ in range(10):
        await reader.read(0, 1000)
    await reader.close()
    await wait_until(lambda: workers.count("touched") > before)


async def test_a_long_read_keeps_no_memory(client: Client, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SLICE_BYTES", 2 * PAGE_BYTES)
    entry, content = await get_file(client, 10)
    reader = client.open_file(entry)
    for _ in range(2):
        assert await reader.read(0, SIZE) == content
    assert len(client._scratch._memory) <= 2 * PAGE_BYTES
    await reader.close()


async def test_no_descriptors_are_left(workers: Workers) -> None:
    async def use() -> None:
        async with Client.open(ClientConfig(master=workers.master, io_timeout_s=60)) as client:
            entry, content = await get_file(client, 9)
            readers = [client.open_file(entry) for _ in range(10)]
            for reader in readers:
                assert await reader.read(0, 100) == content[:100]
                assert reader.try_read(0, 100) == content[:100]

    await use()
    gc.collect()
    before = count_descriptors()
    # Nothing may wait for the garbage collector: what keeps gRPC's objects in a cycle keeps connections.
    gc.disable()
    try:
        for _ in range(3):
            await use()
        # gRPC closes its sockets in threads of its own, a moment later.
        await wait_until(lambda: count_descriptors() <= before)
    finally:
        gc.enable()


async def test_without_local_reads_it_works_too(workers: Workers) -> None:
    async with Client.open(ClientConfig(master=workers.master, io_timeout_s=60, use_local_cache=False)) as client:
        entry, content = await get_file(client, 10)
        fills = workers.count("fills")
        reader = client.open_file(entry)
        assert await reader.read(0, SIZE) == content
        assert workers.count("fills") == fills


async def test_a_file_is_brought_whole_and_found(client: Client, workers: Workers) -> None:
    entry, content = await get_file(client, 12)
    assert entry.ref is not None
    await client.find_local()
    assert client.is_local_known
    assert client.find_whole(entry.ref) is None
    reader = client.open_file(entry)
    assert reader.find_whole() is None
    assert await reader.read(5 * PAGE_BYTES, 100) == content[5 * PAGE_BYTES :][:100]
    assert reader.find_whole() is None, "a part of it is not all of it"
    assert await reader.fill_whole(Priority.AHEAD)
    whole = reader.find_whole()
    assert whole is not None
    assert os.pread(whole.fd, SIZE + 1, 0) == content
    fills = workers.count("fills")
    assert await reader.fill_whole(Priority.AHEAD)
    assert workers.count("fills") == fills, "nobody is asked when it is there"
    await reader.close()
    assert reader.find_whole() is None
    workers.tell("flush")
    found = client.find_whole(entry.ref)
    assert found is not None
    assert os.pread(found.fd, SIZE + 1, 0) == content
    assert client.find_whole(replace(entry.ref, version=VersionId(99))) is None
    other = replace(entry.ref, fingerprint=replace(entry.ref.fingerprint, token="other"))
    assert client.find_whole(other) is None
    found.close()
    del whole  # descriptors go with the last that speaks of them
    links = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    assert not [link for link in links if "/cache/files/" in link]


async def test_a_file_that_no_worker_here_keeps_is_not_brought(client: Client, workers: Workers) -> None:
    entry, content = await get_file(client, 13)
    workers.tell("refuse", True)
    try:
        async with aclosing_reader(client, entry) as reader:
            assert not await reader.fill_whole(Priority.DEMAND)
            assert await reader.read(0, 1000) == content[:1000]
    finally:
        workers.tell("refuse", False)
    workers.tell("fail", "unavailable")
    try:
        async with aclosing_reader(client, entry) as reader:
            assert not await reader.fill_whole(Priority.DEMAND)
    finally:
        workers.tell("fail", "")
    workers.tell("fail", "stale")
    try:
        async with aclosing_reader(client, entry) as reader:
            with pytest.raises(errors.Stale):
                await reader.fill_whole(Priority.DEMAND)
    finally:
        workers.tell("fail", "")
    async with aclosing_reader(client, entry) as reader:
        assert await reader.fill_whole(Priority.DEMAND)


async def test_bringing_a_file_can_be_given_up(client: Client) -> None:
    entry, content = await get_file(client, 14)
    async with aclosing_reader(client, entry) as reader:
        for delay_s in (0.0, 0.001, 0.005):
            task = asyncio.create_task(reader.fill_whole(Priority.AHEAD))
            await asyncio.sleep(delay_s)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert await reader.read(0, SIZE) == content


@asynccontextmanager
async def aclosing_reader(client: Client, entry: Entry) -> AsyncIterator[reading.FileReader]:
    reader = client.open_file(entry)
    try:
        yield reader
    finally:
        await reader.close()
