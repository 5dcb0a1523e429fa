"""Asking stores for pages of listings: in turn, not too many at once, and again where that may help.

Owns the bound on listing requests under way for each mount, and the repetition of those that failed. Event loop alone.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.pacing import Pacer
from alluxio_like.metrics import Metrics
from alluxio_like.types import MountId
from alluxio_like.ufs.api import Ufs

T = TypeVar("T")

LISTS_AT_ONCE = 16
"""Listing requests under way for one mount (a guess; S3 answers 3,500 a second for one prefix)."""
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
RETRY_PART = 0.75
"""Of the I/O timeout: whoever waits shall get the store's error and not a timeout."""
MAX_EMPTY_PAGES = 10_000
"""Pages in a row without an entry and not the last: a store may have as much to skip (deleted versions), but not without end. A
guess."""


class Asker:
    """See the module."""

    def __init__(self, mounts: MountTable, *, clock: Clock, metrics: Metrics, pacer: Pacer, io_timeout_s: float) -> None:
        self._mounts = mounts
        self._clock = clock
        self._metrics = metrics
        self._pacer = pacer
        self._io_timeout_s = io_timeout_s
        self._gates: dict[MountId, asyncio.Semaphore] = {}

    async def ask(self, mount_id: MountId, ufs: Ufs, call: Callable[[], Awaitable[T]], op: str = "LIST") -> T:
        """One listing request of a mount, or another one that goes with it (`op`), repeated with growing pauses and jitter where
        that may help, for at most the I/O timeout. Raises the store's error."""
        gate = self._gates.setdefault(mount_id, asyncio.Semaphore(LISTS_AT_ONCE))

        async def ask_in_turn() -> T:
            async with gate:
                await self._pacer.wait_turn(ufs.bucket)
                return await call()

        return await self._retry(ufs.bucket, self._mounts.get_record(mount_id).path, op, ask_in_turn)

    def note_throttle(self, bucket: str) -> None:
        """A store told the master to slow down."""
        self._metrics.store_throttles.labels(bucket).inc()
        self._pacer.note_throttle(bucket)

    async def wait_turn(self, ufs: Ufs) -> None:
        """Until the bucket's rate allows one request more."""
        await self._pacer.wait_turn(ufs.bucket)

    async def _retry(self, bucket: str, path: str, op: str, ask: Callable[[], Awaitable[T]]) -> T:
        begun = self._clock.monotonic()
        pause = RETRY_FIRST_S
        while True:
            try:
                return await ask()
            except errors.AlluxioLikeError as error:
                if isinstance(error, errors.StoreThrottled):
                    self.note_throttle(bucket)
                wait = pause * (0.5 + random.random())
                self._metrics.store_errors.labels(op, path, error.code).inc()
                left = RETRY_PART * self._io_timeout_s - (self._clock.monotonic() - begun)
                if not errors.get_disposition(error).retryable or left < 2 * wait:
                    raise
                await asyncio.sleep(wait)
                pause = min(2 * pause, RETRY_MAX_S)
