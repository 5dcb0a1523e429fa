"""The workers as the client sees them, and the channels to them.

Owns the cluster view (asked of the master every 2 s while it is used, and at once when a worker fails), which workers failed
just now, and one channel to each worker. With the master gone the last view is used. Rule of concurrency: one event loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from alluxio_like.errors import AlluxioLikeError, Unavailable
from alluxio_like.metrics import Metrics
from alluxio_like.placement import get_placement_unit, rank_workers
from alluxio_like.rpc.channel import RpcChannel
from alluxio_like.rpc.data_pool import DataPool
from alluxio_like.rpc.drafts import DraftsStub
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.worker_stub import WorkerStub
from alluxio_like.types import BLOCK_BYTES, Cluster, FileId, FileRef, Worker, WorkerId

_log = logging.getLogger(__name__)

REFRESH_S = 2.0
TOLD_S = 8.0
"""How long a view is taken for new after the master said so; with each renewal of the lease it does, every 2.5 s."""
_HOMES = 4096
SUSPECT_S = 3.0
"""How long a worker that failed is asked last; a guess, a little above what the master needs to see it gone."""


class ClusterTracker:
    """The view, ranked for a file; the stubs."""

    def __init__(
        self,
        master: MasterStub,
        open_channel: Callable[[str], RpcChannel],
        *,
        io_timeout_s: float,
        metrics: Metrics | None = None,
        pool: DataPool | None = None,
    ) -> None:
        self.pool = pool
        """Data connections to workers; None: bytes come by gRPC."""
        self._master = master
        self._open_channel = open_channel
        self._io_timeout_s = io_timeout_s
        self._view: Cluster | None = None
        self._refreshed_s = 0.0
        self._told_until_s = 0.0
        self._refresh: asyncio.Task[Cluster] | None = None
        self._suspects: dict[WorkerId, float] = {}
        self._homes: dict[tuple[FileId, int | None], Worker | None] = {}
        self._homes_of: Cluster | None = None
        self._stubs: dict[str, tuple[RpcChannel, WorkerStub, DraftsStub]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._metrics = metrics
        self._away = False

    @property
    def view(self) -> Cluster | None:
        """The last view; asks for a newer one in the background when it is old. None: none was ever seen."""
        if self._view is not None and time.monotonic() - self._refreshed_s > REFRESH_S:
            self._begin_refresh()
        return self._view

    @property
    def is_master_away(self) -> bool:
        """Whether the master could not be reached when it was last asked; it is tried again in the background."""
        if self._away:
            self._begin_refresh()
        return self._away

    def note_master(self, *, away: bool) -> None:
        """The master was, or was not, reached."""
        if away != self._away:
            self._away = away
            _log.warning("the master cannot be reached: serving what is known" if away else "the master is back")
            if self._metrics is not None:
                self._metrics.degraded.set(away)

    async def get_view(self, *, newer: bool = False) -> Cluster:
        """A view; `newer`: one that is asked for now, if the master answers. Raises Unavailable if there never was one."""
        view = self.view
        if view is not None and not newer:
            return view
        try:
            return await asyncio.shield(self._begin_refresh())
        except AlluxioLikeError:
            if self._view is None:
                raise
            return self._view

    def note_epoch(self, epoch: int) -> None:
        """The master said of which epoch its view is: what we have is as new, or is asked for again."""
        self._told_until_s = time.monotonic() + TOLD_S
        if self._view is not None and self._view.epoch == epoch:
            self._refreshed_s = self._told_until_s - REFRESH_S
        elif self._view is not None:
            self._begin_refresh()

    def note_failure(self, worker: Worker) -> None:
        """A worker did not do what it should: ask it last for a while, and ask the master who is there."""
        self._suspects[worker.worker_id] = time.monotonic() + SUSPECT_S
        self._begin_refresh()

    def note_success(self, worker: Worker) -> None:
        """A worker answered."""
        self._suspects.pop(worker.worker_id, None)

    def rank(self, view: Cluster, ref: FileRef, offset: int) -> list[Worker]:
        """Live workers for the block at `offset`, its home first; those that failed just now last."""
        unit = get_placement_unit(ref.size, offset // BLOCK_BYTES, view.whole_file_limit_bytes)
        ranked = rank_workers(view.workers, ref.file_id, unit)
        if self._suspects:
            now = time.monotonic()
            self._suspects = {one: until for one, until in self._suspects.items() if until > now}
            ranked.sort(key=lambda worker: worker.worker_id in self._suspects)
        return ranked

    def lookup_home(self, view: Cluster, ref: FileRef, offset: int) -> Worker | None:
        """The first that `rank` names, remembered for as long as the view lasts. None: no worker is live."""
        if self._suspects:
            return next(iter(self.rank(view, ref, offset)), None)
        if view is not self._homes_of or len(self._homes) > _HOMES:
            self._homes_of, self._homes = view, {}
        key = (ref.file_id, get_placement_unit(ref.size, offset // BLOCK_BYTES, view.whole_file_limit_bytes))
        if key not in self._homes:
            self._homes[key] = next(iter(self.rank(view, ref, offset)), None)
        return self._homes[key]

    def get_stub(self, worker: Worker) -> WorkerStub:
        """The stub of a worker at its present address."""
        return self._get_stubs(worker)[1]

    def get_drafts_stub(self, worker: Worker) -> DraftsStub:
        """The stub of a worker's drafts at its present address."""
        return self._get_stubs(worker)[2]

    def _get_stubs(self, worker: Worker) -> tuple[RpcChannel, WorkerStub, DraftsStub]:
        known = self._stubs.get(worker.address)
        if known is None:
            channel, timeout_s = self._open_channel(worker.address), self._io_timeout_s
            known = channel, WorkerStub(channel, timeout_s=timeout_s), DraftsStub(channel, timeout_s=timeout_s)
            self._stubs[worker.address] = known
        return known

    async def close(self) -> None:
        """Close the channels. May be called twice."""
        refresh, self._refresh = self._refresh, None
        if refresh is not None:
            refresh.cancel()
            await asyncio.gather(refresh, return_exceptions=True)
        if self.pool is not None:
            await self.pool.close()
        stubs, self._stubs = self._stubs, {}
        await asyncio.gather(*(channel.close() for channel, *_ in stubs.values()), *self._closing, return_exceptions=True)

    def _begin_refresh(self) -> asyncio.Task[Cluster]:
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._ask(), name="cluster-view")
            # With nobody waiting a failure is not worth a word: the next use asks again.
            self._refresh.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._refresh

    async def _ask(self) -> Cluster:
        # So that a master that is gone is asked once in a while, not at each read.
        self._refreshed_s = time.monotonic()
        try:
            view = await self._master.get_cluster()
        except Unavailable:
            self.note_master(away=True)
            raise
        self.note_master(away=False)
        self._view, self._refreshed_s = view, max(time.monotonic(), self._told_until_s - REFRESH_S)
        if self.pool is not None:
            await self.pool.keep_only(worker for worker in view.workers if worker.live)
        present = {worker.address for worker in view.workers}
        for address in [one for one in self._stubs if one not in present]:
            closing = asyncio.create_task(self._close_later(self._stubs.pop(address)[0]))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return view

    async def _close_later(self, channel: RpcChannel) -> None:
        # Streams of a worker that has just left may still end well.
        await channel.close(self._io_timeout_s)


def require_workers(workers: list[Worker]) -> list[Worker]:
    """The workers, of which there must be one. Raises Unavailable."""
    if not workers:
        raise Unavailable("no worker is live: start one, or look at alluxio-like report")
    return workers
