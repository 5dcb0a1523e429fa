"""The block map at size: BLOCKS on WORKERS simulated workers; memory, rebuilding from reports, heartbeats, a worker's death.

    python -m bench.block_map [BLOCKS] [WORKERS]

The handlers of the master's own service in one process and event loop, fed with what reports carry; no network. Beside it a task
that wants to run every millisecond measures how long the loop was away: what a reader's call would have waited.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from alluxio_like.clock import SystemClock
from alluxio_like.kv.lmdb import LmdbStore
from alluxio_like.master.core import namespace
from alluxio_like.master.core.blockmap import make_file_id
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.service_workers import WorkersService
from alluxio_like.master.worker_pool import WorkerPool
from alluxio_like.master.workers import WorkerRegistry
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import BlockDelta, BlockReport, Heartbeat
from alluxio_like.types import Worker, WorkerId
from bench.measure import get_anonymous_bytes

FILES_A_MESSAGE = 4096
SIZE = 110_000


class Pauses:
    """How long the event loop did not come round, while the context lasts."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._before = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.longest_s = 0.0
        self._task = asyncio.create_task(self._watch())
        return self

    def forgive(self) -> None:
        """What was done since the last turn was the benchmark's own."""
        self._before = time.perf_counter()

    async def _watch(self) -> None:
        while True:
            self._before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest_s = max(self.longest_s, time.perf_counter() - self._before - 0.001)

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def make_worker(number: int) -> Worker:
    return Worker(WorkerId(f"worker-{number:05}"), f"10.{number >> 8}.{number & 255}.1:29998", f"host-{number}", "", 1 << 44)


def get_inode(worker: int, number: int, workers: int) -> int:
    """The NUMBER-th inode of a worker: of each WORKERS consecutive ones one is its own, at a place that jumps about."""
    return 1 + number * workers + (worker * 7919 + number * 104_729) % workers


def make_report(worker: int, blocks: int, workers: int) -> list[BlockReport]:
    """A worker's share, in the order of its index."""
    inodes = array("Q", [get_inode(worker, number, workers) for number in range(blocks // workers)])
    parts = [inodes[at : at + FILES_A_MESSAGE] for at in range(0, len(inodes), FILES_A_MESSAGE)]
    return [BlockReport((), part, array("I", [1]) * len(part), array("I", [SIZE]) * len(part)) for part in parts]


async def measure(blocks: int, workers: int, directory: Path) -> dict[str, Any]:
    clock = SystemClock()
    meta = MetaStore(LmdbStore(directory))
    meta.write_now(lambda txn: namespace.prepare(txn, time.time_ns()))
    registry = WorkerRegistry("bench", clock=clock, timeout_s=3600, whole_file_limit_bytes=1 << 30)
    pool = WorkerPool(registry, token="x", tls=None, timeout_s=5)  # type: ignore[arg-type]
    service = WorkersService(meta, registry, pool, clock=clock, metrics=Metrics())
    members = [make_worker(number) for number in range(workers)]
    for worker in members:
        registry.register(worker, "", "session")
    found: dict[str, Any] = {"blocks": blocks // workers * workers, "workers": workers}
    before = get_anonymous_bytes(_pid())
    making = 0.0

    async def give(parts: list[BlockReport]) -> AsyncIterator[BlockReport]:
        for part in parts:
            yield part
            # As between two messages of a stream.
            await asyncio.sleep(0)

    async with Pauses() as pauses:
        begun, cpu = time.perf_counter(), time.process_time()
        for number, worker in enumerate(members):
            made = time.perf_counter(), time.process_time()
            parts = make_report(number, blocks, workers)
            begun += time.perf_counter() - made[0]
            making += time.process_time() - made[1]
            pauses.forgive()
            await service.report_blocks(worker.worker_id, "session", give(parts))
        found["rebuild_s"] = time.perf_counter() - begun
        found["rebuild_cpu_s"] = time.process_time() - cpu - making
    found["rebuild_longest_pause_ms"] = pauses.longest_s * 1000
    found["bytes_a_block"] = (get_anonymous_bytes(_pid()) - before) / found["blocks"]
    found["bytes_a_block_counted"] = registry.block_map.get_memory_bytes() / found["blocks"]
    found |= await measure_answers(service, registry, members, blocks)
    async with Pauses() as pauses:
        begun, cpu = time.perf_counter(), time.process_time()
        registry.block_map.drop_worker(members[0].worker_id)
        found["death_us"] = (time.perf_counter() - begun) * 1e6
        begun = time.perf_counter()
        while registry.block_map.sweep_some(force=True):
            await asyncio.sleep(0)
        found["sweep_s"] = time.perf_counter() - begun
    found["sweep_longest_pause_ms"] = pauses.longest_s * 1000
    await meta.close()
    return found


async def measure_answers(
    service: WorkersService, registry: WorkerRegistry, members: list[Worker], blocks: int
) -> dict[str, float]:
    """Heartbeats with 10 changes each, and questions for where a file is."""
    count = min(20_000, 4 * len(members))
    workers = len(members)
    changes = [
        tuple(BlockDelta(make_file_id(get_inode(number, one, workers), 1), 0, 1, SIZE) for one in range(10))
        for number in range(workers)
    ]
    beats = [
        Heartbeat(member.worker_id, "session", 1, changes[number], member, (), registry.epoch, 0)
        for number, member in enumerate(members)
    ]
    begun = time.process_time()
    for number in range(count):
        await service.heartbeat(beats[number % len(beats)])
    beat_us = (time.process_time() - begun) / count * 1e6
    begun = time.process_time()
    chooser = random.Random(3)
    for _ in range(20_000):
        registry.block_map.get_holdings(make_file_id(chooser.randrange(1, blocks), 1))
    return {"heartbeat_us": beat_us, "holdings_us": (time.process_time() - begun) / 20_000 * 1e6}


def _pid() -> int:
    import os

    return os.getpid()


def main() -> None:
    blocks = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 5000
    import uvloop

    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(uvloop.run(measure(blocks, workers, Path(directory)))), flush=True)


if __name__ == "__main__":
    main()
