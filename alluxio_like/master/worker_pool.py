"""Calls from the master to its workers.

Owns one channel for each worker's address. A stream from a worker is watched: it ends with Unavailable when the worker is taken
for dead or says nothing for too long. Event loop alone.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from alluxio_like import errors
from alluxio_like.config import TlsConfig
from alluxio_like.master.workers import WorkerRegistry
from alluxio_like.rpc.channel import RpcChannel, open_channel
from alluxio_like.rpc.drafts import DraftsStub
from alluxio_like.rpc.worker_stub import WorkerStub
from alluxio_like.types import WorkerId

T = TypeVar("T")

LOOK_INTERVAL_S = 1.0


class WorkerPool:
    """Stubs by worker."""

    def __init__(self, registry: WorkerRegistry, *, tls: TlsConfig, token: str, timeout_s: float) -> None:
        self._registry = registry
        self._tls = tls
        self._token = token
        self._timeout_s = timeout_s
        self._channels: dict[str, tuple[RpcChannel, WorkerStub]] = {}

    def get_stub(self, worker_id: WorkerId) -> WorkerStub:
        """Raises Unavailable for a worker that is not there or not live."""
        worker = self._registry.lookup_worker(worker_id)
        if worker is None or not worker.live:
            raise errors.Unavailable("the worker is gone", subject=worker_id)
        if worker.address not in self._channels:
            channel = open_channel(worker.address, tls=self._tls, token=self._token)
            self._channels[worker.address] = channel, WorkerStub(channel, timeout_s=self._timeout_s)
        return self._channels[worker.address][1]

    def list_live(self) -> list[WorkerId]:
        return [worker.worker_id for worker in self._registry.get_live()]

    def get_drafts(self, worker_id: WorkerId) -> DraftsStub:
        """Its service of drafts. Raises as `get_stub`."""
        worker = self._registry.lookup_worker(worker_id)
        self.get_stub(worker_id)
        assert worker is not None
        return DraftsStub(self._channels[worker.address][0], timeout_s=self._timeout_s)

    async def consume(
        self, worker_id: WorkerId, call: Callable[[WorkerStub], AsyncGenerator[T]], take: Callable[[T], None], *, silence_s: float
    ) -> None:
        """Give all that a streaming call brings to `take`; Unavailable when the worker died or was silent for `silence_s`."""
        stub = self.get_stub(worker_id)
        before = self._registry.lookup_worker(worker_id)
        loop = asyncio.get_running_loop()
        heard = loop.time()
        reason = ""
        watch: asyncio.TimerHandle | None = None
        try:
            async with asyncio.timeout(None) as bound:

                def look() -> None:
                    nonlocal reason, watch
                    worker = self._registry.lookup_worker(worker_id)
                    if worker is None or not worker.live or before is None or worker.address != before.address:
                        reason = "the worker died"
                    elif loop.time() - heard > silence_s:
                        reason = f"the worker said nothing for {silence_s:.0f} s"
                    if reason:
                        bound.reschedule(loop.time())
                    else:
                        watch = loop.call_later(LOOK_INTERVAL_S, look)

                watch = loop.call_later(LOOK_INTERVAL_S, look)
                try:
                    async with aclosing(call(stub)) as items:
                        async for item in items:
                            heard = loop.time()
                            take(item)
                finally:
                    if watch is not None:
                        watch.cancel()
        except TimeoutError:
            self._registry.report_unreachable(worker_id)
            raise errors.Unavailable(reason or "the worker did not answer in time", subject=worker_id) from None
        except errors.Unavailable:
            self._registry.report_unreachable(worker_id)
            raise

    async def close(self) -> None:
        """Close all channels; calls under way fail."""
        for channel, _ in self._channels.values():
            await channel.close()
        self._channels.clear()
