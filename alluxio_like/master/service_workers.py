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
from alluxio_like.rpc.messages import BlockDelta, BlockLocation, Heartbeat, HeartbeatResult, RateShare, RegisterResult
from alluxio_like.types import Cluster, FileId, Worker, WorkerId

log = logging.getLogger(__name__)

MAX_LOCATED = 10_000
FILES_PER_CALL = 1000
_DEMAND_S = 2.5
"""Readers on one worker make loads on the others step back for so long after its heartbeat. A guess: two heartbeats and some."""


class WorkersService:
    """WorkersHandler of rpc.master_servicer."""

    def __init__(self, meta: MetaStore, registry: WorkerRegistry, pool: WorkerPool, *, clock: Clock, metrics: Metrics) -> None:
        self._meta = meta
        self._registry = registry
        self._pool = pool
        self._freeing: set[asyncio.Task[None]] = set()
        self._clock = clock
        self._metrics = metrics
        # By worker: store requests that somebody waited for, of its latest heartbeat, and when that came.
        self._demand: dict[WorkerId, tuple[int, float]] = {}

    async def register(self, worker: Worker, cluster_id: str, session_id: str) -> RegisterResult:
        joined = self._registry.register(worker, cluster_id, session_id)
        await self._meta.write(lambda txn: put_worker(txn, joined))
        return RegisterResult(self._registry.cluster_id, self._registry.get_cluster())

    async def report_blocks(self, worker_id: WorkerId, session_id: str, chunks: AsyncIterator[Sequence[BlockDelta]]) -> None:
        if not self._registry.has_session(worker_id, session_id):
            raise errors.Conflict("register before reporting blocks", subject=worker_id)
        known = self._registry.block_map
        # Each report has a name of its own: one that was broken off and begun again is another.
        report = f"{session_id}/{self._clock.monotonic()}"
        known.begin_report(worker_id, report)
        gone: set[FileId] = set()
        async for chunk in chunks:
            with self._meta.read() as txn:
                gone |= set(namespace.list_unknown(txn, (delta.file_id for delta in chunk)))
            if not known.add_report(worker_id, report, (_to_core(delta) for delta in chunk)):
                raise errors.Conflict("another report of this worker has begun", subject=worker_id)
        if not self._registry.has_session(worker_id, session_id) or not known.finish_report(worker_id, report):
            raise errors.Conflict("another report of this worker has begun", subject=worker_id)
        if gone:
            # Forgotten while it was away. Inode ids are never given again, so nobody can ask for these any more.
            task = asyncio.create_task(self._free(worker_id, list(gone)), name=f"free gone files on {worker_id}")
            self._freeing.add(task)
            task.add_done_callback(self._freeing.discard)

    async def _free(self, worker_id: WorkerId, files: list[FileId]) -> None:
        try:
            for start in range(0, len(files), FILES_PER_CALL):
                await self._pool.get_stub(worker_id).free_files(files[start : start + FILES_PER_CALL], force=True)
        except errors.AlluxioLikeError as error:
            # It reports them again when it comes back.
            log.warning("a worker keeps files that are gone", extra={"worker": worker_id, "error": str(error)})

    async def close(self) -> None:
        """End what goes on by itself."""
        for task in list(self._freeing):
            task.cancel()
        await asyncio.gather(*self._freeing, return_exceptions=True)

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
        live = [worker.worker_id for worker in registry.get_live()]
        shares = registry.rates.get_shares(worker_id, live, now)
        return HeartbeatResult(
            cluster=registry.get_cluster() if heartbeat.cluster_epoch != registry.epoch else None,
            rates=tuple(RateShare(bucket, rate) for bucket, rate in shares.items()),
            demand_elsewhere=self._count_demand_elsewhere(worker_id, now),
        )

    def _count_demand_elsewhere(self, worker_id: WorkerId, now: float) -> int:
        """Store requests that somebody waited for on the other workers lately: loads make room for them everywhere."""
        return sum(count for other, (count, at) in self._demand.items() if other != worker_id and now - at < _DEMAND_S)

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
