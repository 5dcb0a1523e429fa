"""Memory that pages of other workers are received into, used again and again.

Owns a bounded number of buffers of one page, and who waits for one. The one given back last is taken first: what was just
written to
the disk is still in the processor's cache, and no fresh memory is touched (receiving into fresh buffers of 8 MiB took 1.7 times
as long). Rule of concurrency: the event loop only.
"""

import asyncio
from collections import deque

from alluxio_like.types import PAGE_BYTES


class Buffers:
    """At most `count` buffers are out at a time."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._free: list[memoryview] = []
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def available(self) -> bool:
        """Whether `take` would not wait."""
        return self._left > 0

    async def take(self) -> memoryview:
        """PAGE_BYTES bytes, whatever is in them; `give_back` or `drop` them. Waits, in turn, while all are out."""
        while not self._left:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()
                raise
        self._left -= 1
        return self._free.pop() if self._free else memoryview(bytearray(PAGE_BYTES))

    def give_back(self, buffer: memoryview) -> None:
        """Nobody looks at it any more."""
        self._free.append(buffer)
        self.drop()

    def drop(self) -> None:
        """A buffer that was taken stays with somebody: another may be made in its place."""
        self._left += 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._left:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
