"""One range of one file on its way to this process.

Owns the state of the range: who waits, how much has landed, how it ended. A flight ends in a local cache file (`buffer`
stays None) or in memory. Decides nothing about where the bytes come from (fetching.py) or which ranges are wanted
(reading.py). Rule of concurrency: one event loop; only `wait_progress` awaits.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from alluxio_like.errors import AlluxioLikeError
from alluxio_like.rpc.messages import Priority
from alluxio_like.waits import Waits


@dataclass(eq=False, slots=True)
class Flight:
    """Bytes [start, stop). `taken_bytes` of the budget belong to it until it is dropped."""

    start: int
    stop: int
    priority: Priority
    taken_bytes: int = 0
    buffer: memoryview | None = None
    landed: int = 0
    """Bytes of `buffer` from its start on that are there."""
    done: bool = False
    error: AlluxioLikeError | None = None
    waiters: int = 0
    read_through: bool = False
    """Whether a worker here was asked for it and does not keep it."""
    stumbled: bool = False
    """Whether a worker that was read from has failed."""
    at_hand: bool = False
    """Whether the worker that sent it had it, by its own account."""
    told: Waits = field(default_factory=Waits)
    """What workers said of how its time went by."""
    task: "asyncio.Task[None] | None" = None
    _progress: asyncio.Event = field(default_factory=asyncio.Event)
    _watches: dict[Callable[[], None], int] = field(default_factory=dict)

    def note_progress(self) -> None:
        """Wake who waits: more has landed, or it has ended."""
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()
        landed = self.start + self.landed
        for tell, stop in list(self._watches.items()):
            if (stop <= landed or self.done) and self._watches.pop(tell, None) is not None:
                tell()

    def watch(self, stop: int, tell: Callable[[], None]) -> None:
        """Have `tell` called once, in the step in which all up to `stop` has landed, or it has ended. To one that has not."""
        self._watches[tell] = stop

    def unwatch(self, tell: Callable[[], None]) -> None:
        """It is not to be called any more."""
        self._watches.pop(tell, None)

    async def wait_progress(self) -> None:
        """Return at the next progress, at once if it has ended. The flight is not cancelled with the waiter."""
        if not self.done:
            await self._progress.wait()

    def get_slice(self, offset: int, stop: int) -> memoryview | None:
        """Bytes [offset, stop) from memory, if they lie within this flight and have landed."""
        if self.buffer is not None and self.start <= offset and stop <= self.start + self.landed:
            return self.buffer[offset - self.start : stop - self.start]
        return None
