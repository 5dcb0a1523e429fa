"""What the worker tells the master, and what it is told.

Owns joining, the full report, the heartbeats and what is still unsaid, and leaving. Survives a master that is away or starts
anew: reads
go on meanwhile with the view of before. Rule of concurrency: one task on the event loop; the index is read in threads.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import islice

import tenacity

from alluxio_like import errors
from alluxio_like.cache.store import BlockChange, CacheStore
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.messages import BlockDelta, Heartbeat, HeartbeatResult
from alluxio_like.types import Cluster, Worker
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.turns import Turns

_LOG = logging.getLogger(__name__)
_CHANGES_PER_BEAT = 10_000
_BLOCKS_PER_CHUNK = 5_000
"""Messages of about 300 KB, far below gRPC's limit of 4 MB."""
_MOST_UNSAID = 1_000_000
"""Changes kept for a master that is away; beyond them it gets a full report."""
_CALL_S = 5.0
_REPORT_S = 60.0
_SLOWEST_REPORT = 2_000
"""Files a second that a report is given time for: tens of millions take longer than a minute. A guess, ten times below what is
usual."""
_LEAVE_S = 2.0


class Heart:
    """One per worker. `describe` tells what the worker is now; `on_cluster` gets each new view."""

    def __init__(
        self,
        *,
        master: MasterStub,
        store: CacheStore,
        turns: Turns,
        disk: DiskQueue,
        session_id: str,
        interval_s: float,
        describe: Callable[[], Worker],
        on_cluster: Callable[[Cluster], None],
    ) -> None:
        self._master = master
        self._store = store
        self._turns = turns
        self._disk = disk
        self._session_id = session_id
        self._interval_s = interval_s
        self._describe = describe
        self._on_cluster = on_cluster
        self._epoch = 0
        self._sequence = 0
        self._unsaid: list[BlockDelta] = []
        self._report_needed = True
        self._limited: set[str] = set()
        self._known = False
        self.joined = asyncio.Event()
        """Set while the master knows this worker."""

    async def run(self) -> None:
        """Join, report, beat, until cancelled. Raises Conflict: this cache belongs to another cluster."""
        while True:
            await self._join()
            try:
                await self._beat_on()
            finally:
                self.joined.clear()

    async def leave(self) -> None:
        """Say goodbye, if the master can hear it; after `run` was cancelled, which would join again."""
        if not self._known:
            return
        try:
            await self._master.leave(self._store.worker_id, self._session_id, timeout_s=_LEAVE_S)
        except errors.AlluxioLikeError as error:
            _LOG.info("left without the master's knowledge: %s", error)

    async def _join(self) -> None:
        """Register, however long the master is away."""
        retrying = tenacity.AsyncRetrying(
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=max(1.0, self._interval_s)),
            # A worker that has served goes on when a certificate is renewed late; one that was never let in says so and ends.
            retry=tenacity.retry_if_exception(
                lambda error: _is_passing(error) or (self._known and isinstance(error, errors.Untrusted))
            ),
            before_sleep=_log_absence,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                result = await self._master.register(
                    self._describe(), self._store.cluster_id or "", self._session_id, timeout_s=_CALL_S
                )
        if self._store.cluster_id != result.cluster_id:
            await self._disk.submit(lambda: self._store.set_cluster_id(result.cluster_id))
        self._take_cluster(result.cluster)
        self._report_needed = True
        self._known = True
        self.joined.set()
        _LOG.info("joined cluster %s as %s", result.cluster_id, self._store.worker_id)

    async def _beat_on(self) -> None:
        """Heartbeats until the master asks to register again."""
        failures = 0
        report: asyncio.Task[None] | None = None
        try:
            while True:
                try:
                    if report is not None and report.done():
                        done, report = report, None
                        done.result()
                    if self._report_needed and report is None:
                        report = self._start_report()
                    # Heartbeats go on during a long report, so that nobody takes the worker for dead; changes wait for its end.
                    if await self._beat(with_changes=report is None):
                        return
                    failures = 0
                except errors.AlluxioLikeError as error:
                    failures += 1
                    if failures in {1, 10} or failures % 60 == 0:
                        _LOG.warning("the master does not answer (%d times): %s", failures, error)
                if report is not None:
                    await asyncio.wait([report], timeout=self._interval_s)
                elif len(self._unsaid) < _CHANGES_PER_BEAT:
                    await asyncio.sleep(self._interval_s)
        finally:
            if report is not None:
                report.cancel()
                await asyncio.gather(report, return_exceptions=True)

    def _start_report(self) -> "asyncio.Task[None]":
        """Everything the index holds. Changes from its start on go into later heartbeats, so nothing is missed."""
        self._unsaid.clear()
        self._store.drain_changes()
        self._report_needed = False
        return asyncio.create_task(self._report(), name="full report")

    async def _report(self) -> None:
        try:
            timeout_s = _REPORT_S + self._describe().file_count / _SLOWEST_REPORT
            await self._master.report_blocks(self._store.worker_id, self._session_id, self._iter_chunks(), timeout_s=timeout_s)
        except BaseException:
            self._report_needed = True
            raise

    async def _iter_chunks(self) -> AsyncIterator[Sequence[BlockDelta]]:
        blocks: Iterator[BlockChange] = self._store.iter_blocks()
        while chunk := await self._disk.submit(lambda: [_to_delta(change) for change in islice(blocks, _BLOCKS_PER_CHUNK)]):
            yield chunk

    async def _beat(self, *, with_changes: bool) -> bool:
        """One heartbeat; True: register again."""
        self._gather()
        changes = tuple(self._unsaid[:_CHANGES_PER_BEAT]) if with_changes else ()
        throttles, demand = self._turns.drain_report()
        self._sequence += 1
        beat = Heartbeat(
            worker_id=self._store.worker_id,
            session_id=self._session_id,
            sequence=self._sequence,
            changes=changes,
            status=self._describe(),
            throttles=throttles,
            cluster_epoch=self._epoch,
            demand=demand,
        )
        try:
            result = await self._master.heartbeat(beat, timeout_s=_CALL_S)
        except BaseException:
            self._turns.take_back_report(throttles, demand)
            raise
        del self._unsaid[: len(changes)]
        self._obey(result)
        return result.register_again

    def _gather(self) -> None:
        """Take the store's changes; too many of them make a full report needed."""
        batch = self._store.drain_changes()
        if batch.overflowed or len(self._unsaid) + len(batch.changes) > _MOST_UNSAID:
            self._unsaid.clear()
            self._report_needed = True
            return
        self._unsaid.extend(_to_delta(change) for change in batch.changes)

    def _obey(self, result: HeartbeatResult) -> None:
        if result.cluster is not None:
            self._take_cluster(result.cluster)
        named = set()
        for share in result.rates:
            self._turns.set_rate(share.bucket, share.requests_per_s)
            if share.requests_per_s > 0:
                named.add(share.bucket)
        for bucket in self._limited - named:
            # The master no longer limits it.
            self._turns.set_rate(bucket, 0)
        self._limited = named
        if result.demand_elsewhere:
            self._turns.note_demand_elsewhere(self._interval_s * 1.5)

    def _take_cluster(self, cluster: Cluster) -> None:
        self._epoch = cluster.epoch
        self._on_cluster(cluster)


def _to_delta(change: BlockChange) -> BlockDelta:
    return BlockDelta(change.file_id, change.block, change.present_bits, change.present_bytes)


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, errors.AlluxioLikeError) and (
        errors.get_disposition(error).retryable or isinstance(error, errors.TimedOut)
    )


def _log_absence(state: tenacity.RetryCallState) -> None:
    if state.attempt_number in {1, 10} or state.attempt_number % 60 == 0:
        error = state.outcome.exception() if state.outcome else None
        _LOG.warning("waiting for the master: %s", error)
