"""Calls from the master to its workers.

Owns one channel for each worker's address. A stream from a worker is watched: it ends with Unavailable when the worker is taken
for dead or says nothing for too long. Event loop alone.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from alluxio_like import errors
from alluxio_like.config import TlsConfig
from alluxio_like.master.workers import WorkerRegistry
from alluxio_like.rpc.channel import RpcChannel, open_channel
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

    async def stream(
        self, worker_id: WorkerId, call: Callable[[WorkerStub], AsyncIterator[T]], *, silence_s: float
    ) -> AsyncIterator[T]:
        """What a streaming call gives, watched; raises Unavailable when the worker died or was silent for `silence_s`."""
        stub = self.get_stub(worker_id)
        before = self._registry.lookup_worker(worker_id)
        items = call(stub)
        following: asyncio.Task[T] | None = None
        try:
            silent = 0.0
            while True:
                following = following or asyncio.ensure_future(anext(items))
                done, _ = await asyncio.wait({following}, timeout=LOOK_INTERVAL_S)
                if done:
                    task, following = following, None
                    silent = 0.0
                    try:
                        item = task.result()
                    except StopAsyncIteration:
                        return
                    yield item
                    continue
                silent += LOOK_INTERVAL_S
                worker = self._registry.lookup_worker(worker_id)
                if worker is None or not worker.live or before is None or worker.address != before.address:
                    raise errors.Unavailable("the worker died", subject=worker_id)
                if silent >= silence_s:
                    raise errors.Unavailable(f"the worker said nothing for {silent:.0f} s", subject=worker_id)
        except errors.Unavailable:
            self._registry.report_unreachable(worker_id)
            raise
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    async def close(self) -> None:
        """Close all channels; calls under way fail."""
        for channel, _ in self._channels.values():
            await channel.close()
        self._channels.clear()
