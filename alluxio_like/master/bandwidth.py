"""One job's bandwidth, divided over the workers that are at work for it.

Owns who is at work and what each was told. A worker that begins gets its part once the others have been told of their smaller
ones; when one has nothing more to do, the others get its part within REBALANCE_S. All are told again now and then, because a call
that was under way may have brought a worker an older number. Event loop alone; `_turn` lets one division at a time be told.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from alluxio_like import errors
from alluxio_like.types import WorkerId

REBALANCE_S = 0.5
"""A guess: short beside a load, long beside a call."""
_REMIND_EVERY = 4

Tell = Callable[[WorkerId, float], Awaitable[None]]


class Bandwidth:
    """`total_bytes_s` 0: no limit, and nobody is told anything. `tell` gives a worker its part; it must be bounded in time."""

    def __init__(self, total_bytes_s: float, tell: Tell) -> None:
        self._total = total_bytes_s
        self._tell = tell
        self._calls: dict[WorkerId, int] = {}
        self._told: dict[WorkerId, float] = {}
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def enter(self, worker_id: WorkerId) -> float:
        """A call to a worker begins; the bytes per second to give it. Follow with `leave`, whatever becomes of the call."""
        if not self._total:
            return 0.0
        self._calls[worker_id] = self._calls.get(worker_id, 0) + 1
        try:
            if worker_id not in self._told:
                async with self._turn:
                    share = self._get_share()
                    await self._tell_all([other for other, told in self._told.items() if told > share], share)
                    self._told.setdefault(worker_id, share)
            if self._task is None:
                self._task = asyncio.create_task(self._balance(), name="divide bandwidth")
            return self._told.get(worker_id, self._get_share())
        except BaseException:
            self.leave(worker_id)
            raise

    def leave(self, worker_id: WorkerId) -> None:
        """A call to a worker has ended."""
        left = self._calls.get(worker_id, 0) - 1
        if left > 0:
            self._calls[worker_id] = left
        else:
            self._calls.pop(worker_id, None)
            self._told.pop(worker_id, None)

    async def close(self) -> None:
        """Nobody is told anything any more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _get_share(self) -> float:
        return self._total / max(1, len(self._calls))

    async def _balance(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(REBALANCE_S)
            number += 1
            async with self._turn:
                share = self._get_share()
                remind = number % _REMIND_EVERY == 0
                # Lower first, raise then: their sum is never more than the whole.
                await self._tell_all([w for w, told in self._told.items() if told > share or (remind and told == share)], share)
                await self._tell_all([w for w, told in self._told.items() if told < share], share)

    async def _tell_all(self, workers: Iterable[WorkerId], share: float) -> None:
        async def tell(worker_id: WorkerId) -> None:
            try:
                await self._tell(worker_id, share)
            except errors.AlluxioLikeError:
                return  # one that cannot be reached loads nothing either, or is told with the next round
            if worker_id in self._told:
                self._told[worker_id] = share

        await asyncio.gather(*(tell(worker_id) for worker_id in list(workers)))
