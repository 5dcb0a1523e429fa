"""What workers tell the master: thin handlers over the registry.

Owns the order of a worker's messages: a full report replaces what was known when its last part is there; what it names that the
namespace has forgotten, the worker is told to free. Event loop alone.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.master.core import blockmap, namespace
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.worker_pool import WorkerPool
from alluxio_like.master.workers import WorkerRegistry, put_worker
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import (
    BlockDelta,
    BlockLocation,
    BlockReport,
    Heartbeat,
    HeartbeatResult,
    RateShare,
    RegisterResult,
)
from alluxio_like.types import Cluster, FileId, Worker, WorkerId

log = logging.getLogger(__name__)

MAX_LOCATED = 10_000
FILES_PER_CALL = 1000
CHECK_PAUSE_S = 2.0
"""Between two walks over the map (a guess: reports of many workers come close together)."""
MANY_WORKERS = 100
DEMAND_SUM_S = 0.25
"""How old the sum of all workers' demand may be: with thousands of workers it must not be made for each heartbeat."""
_DEMAND_S = 2.5
"""Readers on one worker make loads on the others step back for so long after its heartbeat. A guess: two heartbeats and some."""


class WorkersService:
    """WorkersHandler of rpc.master_servicer."""

    def __init__(self, meta: MetaStore, registry: WorkerRegistry, pool: WorkerPool, *, clock: Clock, metrics: Metrics) -> None:
        self._meta = meta
        self._registry = registry
        self._pool = pool
        self._unchecked = asyncio.Event()
        self._clock = clock
        self._metrics = metrics
        # By worker: store requests that somebody waited for, of its latest heartbeat, and when that came.
        self._demand: dict[WorkerId, tuple[int, float]] = {}
        self._demand_sum = (0, 0.0)

    async def register(self, worker: Worker, cluster_id: str, session_id: str) -> RegisterResult:
        joined = self._registry.register(worker, cluster_id, session_id)
        await self._meta.write(lambda txn: put_worker(txn, joined))
        return RegisterResult(self._registry.cluster_id, self._registry.get_cluster())

    async def report_blocks(self, worker_id: WorkerId, session_id: str, chunks: AsyncIterator[BlockReport]) -> None:
        if not self._registry.has_session(worker_id, session_id):
            raise errors.Conflict("register before reporting blocks", subject=worker_id)
        known = self._registry.block_map
        # Each report has a name of its own: one that was broken off and begun again is another.
        report = f"{session_id}/{self._clock.monotonic()}"
        known.begin_report(worker_id, report)
        async for chunk in chunks:
            whole = blockmap.WholeFiles(chunk.inodes, chunk.versions, chunk.sizes)
            try:
                is_current = known.add_whole_files(worker_id, report, whole)
            except ValueError as error:
                raise errors.InvalidArgument(str(error), subject=worker_id) from None
            if not is_current or not known.add_report(worker_id, report, (_to_core(delta) for delta in chunk.blocks)):
                raise errors.Conflict("another report of this worker has begun", subject=worker_id)
        if not self._registry.has_session(worker_id, session_id) or not known.finish_report(worker_id, report):
            raise errors.Conflict("another report of this worker has begun", subject=worker_id)
        self._unchecked.set()

    async def check_reported(self) -> None:
        """Have workers free what the namespace forgot while they were away; a chore that runs for ever.

        Inode ids are never given again, so nobody can ask for it any more. It walks the map once after reports have come in, a
        part at a time, instead of looking each name up while a report waits.
        """
        while True:
            await self._unchecked.wait()
            self._unchecked.clear()
            try:
                await self._check_map()
            except Exception:
                log.exception("a chore failed")
            await asyncio.sleep(CHECK_PAUSE_S)

    async def _check_map(self) -> None:
        known = self._registry.block_map
        gone: dict[WorkerId, list[FileId]] = {}
        for part in known.list_parts():
            with self._meta.read() as txn:
                unknown = namespace.list_unknown(txn, known.list_files(part))
            for file_id in unknown:
                for worker_id in known.get_bytes_by_worker(file_id):
                    gone.setdefault(worker_id, []).append(file_id)
            await asyncio.sleep(0)
        for worker_id, files in gone.items():
            await self._free(worker_id, files)

    async def _free(self, worker_id: WorkerId, files: list[FileId]) -> None:
        try:
            for start in range(0, len(files), FILES_PER_CALL):
                await self._pool.get_stub(worker_id).free_files(files[start : start + FILES_PER_CALL], force=True)
        except errors.AlluxioLikeError as error:
            # It reports them again when it comes back.
            log.warning("a worker keeps files that are gone", extra={"worker": worker_id, "error": str(error)})

    async def heartbeat(self, heartbeat: Heartbeat) -> HeartbeatResult:
        worker_id = heartbeat.worker_id
        registry = self._registry
        if not registry.heartbeat(worker_id, heartbeat.session_id, heartbeat.status):
            return HeartbeatResult(register_again=True)
        if heartbeat.changes:
            # Else it would count as having reported, with nothing, while its report is still coming.
            registry.block_map.apply_changes(worker_id, (_to_core(delta) for delta in heartbeat.changes))
        now = self._clock.monotonic()
        for throttle in heartbeat.throttles:
            registry.rates.note(throttle.bucket, worker_id, throttle.count, throttle.used_rate, now)
        self._demand[worker_id] = (heartbeat.demand, now)
        shares = {}
        if registry.rates.get_rates(now):
            shares = registry.rates.get_shares(worker_id, [worker.worker_id for worker in registry.get_live()], now)
        return HeartbeatResult(
            cluster=registry.get_cluster() if heartbeat.cluster_epoch != registry.epoch else None,
            rates=tuple(RateShare(bucket, rate) for bucket, rate in shares.items()),
            demand_elsewhere=self._count_demand_elsewhere(worker_id, now),
        )

    def _count_demand_elsewhere(self, worker_id: WorkerId, now: float) -> int:
        """Store requests that somebody waited for on the other workers lately: loads make room for them everywhere."""
        mine, _ = self._demand[worker_id]
        total, at = self._demand_sum
        if now - at >= DEMAND_SUM_S or len(self._demand) < MANY_WORKERS:
            total = sum(count for count, heard in self._demand.values() if now - heard < _DEMAND_S)
            self._demand_sum = (total, now)
        return max(0, total - mine)

    async def leave(self, worker_id: WorkerId, session_id: str) -> None:
        if self._registry.leave(worker_id, session_id):
            self._registry.block_map.drop_worker(worker_id)
            left = self._registry.lookup_worker(worker_id)
            if left is not None:
                # Else a master that starts again would place files there until it misses the worker.
                await self._meta.write(lambda txn: put_worker(txn, left))
            worker = self._registry.lookup_worker(worker_id)
            if worker is not None:
                await self._meta.write(lambda txn: put_worker(txn, worker))

    async def get_cluster(self) -> Cluster:
        return self._registry.get_cluster()

    async def locate(self, files: Sequence[FileId]) -> list[tuple[BlockLocation, ...]]:
        if len(files) > MAX_LOCATED:
            raise errors.InvalidArgument(f"at most {MAX_LOCATED} files in one call")
        return [self._locate(file_id) for file_id in files]

    def _locate(self, file_id: FileId) -> tuple[BlockLocation, ...]:
        size = 0
        try:
            with self._meta.read() as txn:
                size = namespace.get_entry(txn, file_id.inode).attr.size
        except errors.NotFound:
            pass
        found = self._registry.locate(file_id, size)
        return tuple(BlockLocation(h.block, h.worker_id, h.bits, h.bytes) for h in found)


def _to_core(delta: BlockDelta) -> blockmap.BlockDelta:
    return blockmap.BlockDelta(delta.file_id, delta.block, delta.present_bits, delta.present_bytes)
