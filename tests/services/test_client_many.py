"""`read_many`: many small files through remembered places and open descriptors; the workers are another process."""

import concurrent.futures
import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.client import Client, connect, many
from alluxio_like.config import ClientConfig
from tests.fakes_rpc import make_content
from tests.servers.net import wait_until
from tests.services.test_client_local import ROOT, Workers, count_descriptors

FILES = 40
SIZE = 110_001
PATHS = [f"/f{number}" for number in range(FILES)]
WHOLE = [(f"/f{number}", make_content(SIZE, number)) for number in range(FILES)]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    command = [sys.executable, "-m", "tests.local_worker", str(tmp_path / "home"), str(FILES), str(SIZE), "1"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Workers(process)
        process.communicate(timeout=60)


def make_config(workers: Workers, **more: Any) -> ClientConfig:
    return ClientConfig(master=workers.master, io_timeout_s=60, **more)


@pytest.mark.parametrize("open_files", [0, 10, 16384])
def test_files_come_in_order_and_are_at_hand_from_then_on(workers: Workers, open_files: int) -> None:
    with connect(config=make_config(workers)) as client:
        # What gRPC keeps for itself is there from now on.
        client.stat("/f0")
    before = count_descriptors()
    chance = random.Random(1)
    with connect(config=make_config(workers, open_files=open_files)) as client:
        # Cold: brought by the worker. Then the places are learned. Then nobody is asked.
        assert list(client.read_many(PATHS)) == WHOLE
        workers.tell("flush")
        assert list(client.read_many(iter(PATHS))) == WHOLE
        small = client._get_small()
        assert len(small.slots) == FILES
        fills, reads, calls = workers.count("fills"), workers.count("reads"), workers.tell("calls")
        for _ in range(5):
            order = chance.sample(range(FILES), FILES)
            assert list(client.read_many([PATHS[number] for number in order])) == [WHOLE[number] for number in order]
        assert (workers.count("fills"), workers.count("reads"), workers.tell("calls")) == (fills, reads, calls)
        assert sum(slot.descriptor is not None for slot in small.slots.values()) == min(open_files, FILES)
        assert list(client.read_many([])) == []
        del small
    wait_until("descriptors are closed", lambda: gc.collect() >= 0 and count_descriptors() <= before, timeout_s=60)


def test_what_stands_in_the_way_is_said_when_its_turn_has_come(workers: Workers) -> None:
    with connect(config=make_config(workers)) as client:
        for path, wanted in (("/missing", errors.NotFound), ("/", errors.IsADirectory), ("/f0/x", errors.NotADirectory)):
            files = client.read_many(["/f0", path, "/f1"])
            assert next(files) == WHOLE[0]
            with pytest.raises(wanted):
                next(files)
        with pytest.raises(errors.InvalidArgument, match="max_bytes"):
            list(client.read_many(["/f9"], max_bytes=SIZE - 1))
        with pytest.raises(errors.InvalidArgument, match="one string"):
            client.read_many("/f0")
        workers.tell("fail", "store_denied")
        with pytest.raises(errors.StoreDenied):
            list(client.read_many(["/f2"]))
        workers.tell("fail", "")
        assert list(client.read_many(["/f2"])) == [WHOLE[2]]


def test_little_memory_is_enough(workers: Workers) -> None:
    with connect(config=make_config(workers, use_local_cache=False)) as client:
        brought: list[int] = []
        bring = Client.bring_many

        async def counting(self: Client, *args: Any) -> Any:
            found = await bring(self, *args)
            brought.append(sum(isinstance(one, bytes) for one in found.values()))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Client, "bring_many", counting)
            assert list(client.read_many(PATHS, max_bytes=3 * SIZE)) == WHOLE
        assert max(brought) == 3
        # The same one twice, too.
        assert list(client.read_many(["/f1", "/f1", "/f0", "/f1"], max_bytes=SIZE)) == [WHOLE[1], WHOLE[1], WHOLE[0], WHOLE[1]]


def test_files_that_are_kept_open_are_not_evicted_until_nobody_reads_them(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No sweep but those of the test.
    monkeypatch.setattr(many, "SWEEP_S", 3600.0)
    with connect(config=make_config(workers)) as client:
        for _ in range(2):
            assert list(client.read_many(PATHS)) == WHOLE
            workers.tell("flush")
        list(client.read_many(PATHS))
        assert workers.tell("evict", 10) == [0, 1]
        small = client._get_small()
        runtime = client._holder.get()
        # Three sweeps without a read, after one that has seen some.
        for _ in range(many.IDLE_SWEEPS + 1):
            assert workers.tell("evict", 10) == [0, 1]
            runtime.run(runtime.client._many.sweep())
        assert workers.tell("evict", 10) == [1, 0]
        assert len(small.slots) == FILES
        # What is gone is brought again.
        assert list(client.read_many(PATHS)) == WHOLE
        for _ in range(many.FORGET_SWEEPS + 1):
            runtime.run(runtime.client._many.sweep())
        assert not small.slots
        # Reads are told to the worker, for recency.
        wait_until("the worker is told", lambda: workers.count("touched") > 0, timeout_s=60)


def test_a_file_that_was_freed_while_it_is_open_is_read_on(workers: Workers) -> None:
    with connect(config=make_config(workers)) as client:
        for _ in range(3):
            list(client.read_many(PATHS))
            workers.tell("flush")
        assert workers.tell("free", 13) == [1, 0]
        assert list(client.read_many(PATHS)) == WHOLE


def test_a_replaced_file_is_seen_as_soon_as_the_name_is_asked_for_again(workers: Workers) -> None:
    with connect(config=make_config(workers)) as client:
        for _ in range(3):
            list(client.read_many(PATHS))
            workers.tell("flush")
        workers.tell("replace", "f7", 77)
        client.sync_path("/")
        assert list(client.read_many(["/f6", "/f7"])) == [WHOLE[6], ("/f7", make_content(SIZE, 77))]
        workers.tell("flush")
        assert list(client.read_many(["/f7", "/f8"])) == [("/f7", make_content(SIZE, 77)), WHOLE[8]]


def test_verified_bytes_are_right_where_a_bit_has_flipped(workers: Workers) -> None:
    with connect(config=make_config(workers)) as client:
        for _ in range(3):
            assert list(client.read_many(PATHS, verify=True)) == WHOLE
            workers.tell("flush")
        workers.tell("flip", 15, 5000)
        assert list(client.read_many(PATHS, verify=True)) == WHOLE
        assert workers.count("bad_pages") == 1


async def test_the_asynchronous_client_has_it_too(workers: Workers) -> None:
    async with Client.open(make_config(workers)) as client:
        for _ in range(3):
            assert [one async for one in client.read_many(PATHS)] == WHOLE
            workers.tell("flush")
        async for path, _ in client.read_many(PATHS):
            if path == "/f20":
                break
        with pytest.raises(errors.NotFound):
            assert [one async for one in client.read_many(["/f0", "/missing"])]


def test_threads_read_right_bytes_while_files_come_and_go(workers: Workers) -> None:
    stop = threading.Event()
    with connect(config=make_config(workers, open_files=15)) as client:

        def read_on(seed: int) -> int:
            chance, count = random.Random(seed), 0
            while not count or not stop.is_set():
                order = [chance.randrange(FILES) for _ in range(60)]
                got = list(client.read_many([PATHS[number] for number in order]))
                assert got == [WHOLE[number] for number in order]
                count += len(got)
            return count

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read_on, seed) for seed in range(3)]
            try:
                chance = random.Random(9)
                for turn in range(150):
                    workers.tell(chance.choice(["evict", "free"]), 10 + chance.randrange(FILES))
                    if turn % 10 == 0:
                        workers.tell("flush")
                        client._get_small().expire()
            finally:
                stop.set()
            assert all(reader.result(60) >= 60 for reader in readers)


def test_it_goes_on_over_forks_and_in_children_of_every_kind(workers: Workers) -> None:
    with connect(config=make_config(workers)) as client:
        list(client.read_many(PATHS))
        workers.tell("flush")
    # By a process of its own: this one may hold gRPC's objects of other tests' servers.
    command = [sys.executable, "-W", "error", "-m", "tests.forking", workers.master, "many_forks"]
    environment = {**os.environ, "ALLUXIO_LIKE_TEST_SIZE": str(SIZE)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False, env=environment)
    # gRPC itself says, in the log of its core, that a connection ended.
    said = [line for line in done.stderr.splitlines() if "chttp2_transport" not in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_a_closed_client_opens_again_in_the_midst(workers: Workers) -> None:
    client = connect(config=make_config(workers))
    files = client.read_many(PATHS)
    assert next(files) == WHOLE[0]
    client.close()
    assert list(files) == WHOLE[1:]
    client.close()
