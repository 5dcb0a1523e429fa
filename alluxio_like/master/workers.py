"""The workers of the cluster: who they are, who is alive, what they hold.

Owns the registry and its view (`Cluster`), the block map's feeding, and the rates of throttled buckets. A worker is known by the
identity in its cache directory. The registry is stored at joins and leaves, so that a master that comes back places files as
before, while its workers have not yet registered again: each is taken for live until one timeout after the start.

Single-threaded: used from the event loop alone; no method but `wait_reports` awaits, so each sees and leaves a consistent state.
"""

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import ReadTransaction, WriteTransaction, get_prefix_stop
from alluxio_like.master.core.blockmap import BlockMap, Holding
from alluxio_like.master.core.rates import RateController
from alluxio_like.placement import get_homes
from alluxio_like.types import BLOCK_BYTES, Cluster, FileId, Worker, WorkerId, get_block_count, get_full_mask

log = logging.getLogger(__name__)

_WORKER = b"worker/"
FORGET_S = 3600.0
"""A worker dead for so long is listed no more (a guess: long enough for a restart of its machine)."""
CAPACITY_STEP = 0.05
"""A capacity that changes by less moves no file (placement is weighted by it)."""


@dataclass(slots=True)
class _Member:
    worker: Worker
    session_id: str
    """Empty: known from the store, not heard of since the start."""
    seen_s: float
    dead_s: float = 0.0
    """When it was taken for dead."""


class WorkerRegistry:
    """See the module. `clock.monotonic` decides who lives; `epoch` starts at the time of day, so that it grows over restarts."""

    def __init__(self, cluster_id: str, *, clock: Clock, timeout_s: float, whole_file_limit_bytes: int) -> None:
        self.cluster_id = cluster_id
        self.block_map = BlockMap()
        self.rates = RateController()
        self._clock = clock
        self._timeout_s = timeout_s
        self._limit = whole_file_limit_bytes
        self._members: dict[WorkerId, _Member] = {}
        self._epoch = clock.now_ns() // 1_000_000

    def restore(self, workers: Iterable[Worker]) -> None:
        """Take up the workers that `list_stored` gave."""
        now = self._clock.monotonic()
        for worker in workers:
            self._members[worker.worker_id] = _Member(worker, "", now)

    # -- what workers say ----------------------------------------------------------------------------------------------

    def register(self, worker: Worker, cluster_id: str, session_id: str) -> Worker:
        """A worker joins or comes back; the record to store. Raises Conflict when its cache belongs to another cluster."""
        if not worker.worker_id or not worker.address or not session_id:
            raise errors.InvalidArgument("a worker needs an id, an address and a session to register")
        if cluster_id and cluster_id != self.cluster_id:
            raise errors.Conflict(
                f"the cache of worker {worker.worker_id} belongs to cluster {cluster_id}, this is {self.cluster_id}: "
                "give it an empty cache directory or the right master",
                subject=str(worker.worker_id),
            )
        old = self._members.get(worker.worker_id)
        joined = replace(worker, live=True, last_seen_s=0.0)
        if old is None or not old.worker.live or _get_place(old.worker) != _get_place(joined):
            self._epoch += 1
            log.info("worker joined", extra={"worker": worker.worker_id, "address": worker.address})
        self._members[worker.worker_id] = _Member(joined, session_id, self._clock.monotonic())
        return joined

    def heartbeat(self, worker_id: WorkerId, session_id: str, status: Worker) -> bool:
        """A sign of life; False when the session is not known or was taken for dead, and the worker has to register again."""
        member = self._members.get(worker_id)
        if member is None or member.session_id != session_id or not member.worker.live:
            # One that was taken for dead tells all anew: what was decided meanwhile never reached it.
            return False
        member.seen_s = self._clock.monotonic()
        known = member.worker
        capacity = known.capacity_bytes
        if abs(status.capacity_bytes - capacity) > CAPACITY_STEP * capacity:
            capacity = status.capacity_bytes
            self._epoch += 1
        member.worker = replace(
            known,
            capacity_bytes=capacity,
            usable_bytes=status.usable_bytes,
            used_bytes=status.used_bytes,
            home_bytes=status.home_bytes,
            guest_bytes=status.guest_bytes,
            pinned_bytes=status.pinned_bytes,
            kept_bytes=status.kept_bytes,
            file_count=status.file_count,
            unpersisted_bytes=status.unpersisted_bytes,
            unpersisted_limit_bytes=status.unpersisted_limit_bytes,
            live=True,
        )
        return True

    def has_session(self, worker_id: WorkerId, session_id: str) -> bool:
        member = self._members.get(worker_id)
        return member is not None and member.session_id == session_id

    def leave(self, worker_id: WorkerId, session_id: str) -> bool:
        """A clean leave; False when another session of it has come since."""
        member = self._members.get(worker_id)
        if member is None or member.session_id not in {session_id, ""}:
            return False
        self._set_dead(member, "worker left")
        member.session_id = ""
        return True

    def report_unreachable(self, worker_id: WorkerId) -> None:
        """A call to it failed: dead at once if it has also been silent for two heartbeats, else the timeout decides."""
        member = self._members.get(worker_id)
        if member is not None and self._clock.monotonic() - member.seen_s > min(2.5, self._timeout_s):
            self._set_dead(member, "worker cannot be reached")

    def expire(self) -> list[Worker]:
        """Take for dead who was silent too long; those who are newly so, as they are to be stored."""
        now = self._clock.monotonic()
        dead = [m for m in self._members.values() if m.worker.live and now - m.seen_s > self._timeout_s]
        for member in dead:
            self._set_dead(member, "worker is silent")
        return [member.worker for member in dead]

    def forget_dead(self) -> list[WorkerId]:
        """Forget who has been dead for long; who it was. One that comes back after all joins as any other."""
        now = self._clock.monotonic()
        gone = [w for w, m in self._members.items() if not m.worker.live and now - max(m.dead_s, m.seen_s) > FORGET_S]
        for worker_id in gone:
            del self._members[worker_id]
            self.block_map.drop_worker(worker_id)
        return gone

    def _set_dead(self, member: _Member, why: str) -> None:
        if member.worker.live:
            member.worker = replace(member.worker, live=False)
            member.dead_s = self._clock.monotonic()
            self._epoch += 1
            log.warning(why, extra={"worker": member.worker.worker_id, "address": member.worker.address})

    # -- questions -----------------------------------------------------------------------------------------------------

    @property
    def whole_file_limit_bytes(self) -> int:
        return self._limit

    @property
    def epoch(self) -> int:
        return self._epoch

    def get_cluster(self) -> Cluster:
        """The view of the moment; workers by id."""
        now = self._clock.monotonic()
        workers = [replace(m.worker, last_seen_s=now - m.seen_s) for m in self._members.values()]
        workers.sort(key=lambda worker: worker.worker_id)
        return Cluster(self.cluster_id, self._epoch, tuple(workers), self._limit)

    def get_live(self) -> list[Worker]:
        return [member.worker for member in self._members.values() if member.worker.live]

    def lookup_worker(self, worker_id: WorkerId) -> Worker | None:
        member = self._members.get(worker_id)
        return member.worker if member is not None else None

    def choose(self, hosts: Sequence[str]) -> list[Worker]:
        """The live workers that a list of worker ids, host names or addresses means; all when it is empty.

        Raises NotFound for one that means nobody.
        """
        live = self.get_live()
        if not hosts:
            return live
        chosen = []
        for host in hosts:
            found = [w for w in live if host in {w.worker_id, w.address, w.address.rpartition(":")[0], w.host_id}]
            if not found:
                names = ", ".join(f"{w.worker_id} ({w.address})" for w in live) or "none"
                raise errors.NotFound(f"no live worker is called {host}; there are: {names}", subject=host)
            chosen += [worker for worker in found if worker not in chosen]
        return chosen

    async def wait_reports(self, timeout_s: float) -> None:
        """After a start of the master: until the live workers have told what they hold, or the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while loop.time() < deadline:
            if all(self.block_map.has_reported(worker.worker_id) for worker in self.get_live()):
                return
            await asyncio.sleep(0.05)

    def locate(self, file_id: FileId, size: int) -> list[Holding]:
        """Who holds blocks of a file now, by the reports; for live workers that have not yet reported since the start: what
        placement says they hold."""
        live = self.get_live()
        ids = {worker.worker_id for worker in live}
        found = [holding for holding in self.block_map.get_holdings(file_id) if holding.worker_id in ids]
        silent = {worker.worker_id for worker in live if not self.block_map.has_reported(worker.worker_id)}
        if silent:
            for block in range(get_block_count(size)):
                for worker_id in get_homes(live, file_id, size, block, self._limit):
                    if worker_id in silent:
                        held = min(BLOCK_BYTES, size - block * BLOCK_BYTES)
                        found.append(Holding(worker_id, block, get_full_mask(size, block), held))
        return found


def _get_place(worker: Worker) -> tuple[str | int, ...]:
    return worker.address, worker.host_id, worker.door_path, worker.capacity_bytes, worker.data_address, worker.data_nonce


def put_worker(txn: WriteTransaction, worker: Worker) -> None:
    """Store a worker that joined or left."""
    txn.put(_WORKER + worker.worker_id.encode(), json.dumps(asdict(worker)).encode())


def delete_worker(txn: WriteTransaction, worker_id: WorkerId) -> None:
    txn.delete(_WORKER + worker_id.encode())


def list_stored(txn: ReadTransaction) -> list[Worker]:
    """The workers that were stored."""
    return [Worker(**json.loads(raw)) for _, raw in txn.scan(_WORKER, get_prefix_stop(_WORKER))]
