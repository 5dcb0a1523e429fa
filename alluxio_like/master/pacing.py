"""The master's own requests to stores under the one rate of their bucket.

Owns the counting of what the master asks, and its waiting for its turn while a bucket is limited. The rates themselves are
core/rates.py's. Event loop alone: no method awaits between looking at a bucket's next turn and taking it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from alluxio_like.clock import Clock
from alluxio_like.master.core.rates import RateController
from alluxio_like.types import Worker, WorkerId

MASTER = WorkerId("master")
"""The name under which the master's own requests count where a bucket's rate is divided."""
LEAST_RATE = 1.0
"""Requests per second that the master may always make: one LIST stands for a thousand GETs (a guess)."""
_WINDOW_S = 1.0


@dataclass(slots=True)
class _Use:
    begun_s: float
    count: int = 0
    before: float = 0.0
    """Requests per second of the window before."""
    next_s: float = 0.0

    def get_rate(self, now: float) -> float:
        return max(self.before, self.count / max(now - self.begun_s, _WINDOW_S))


class Pacer:
    """See the module. `get_workers` tells who shares a bucket's rate."""

    def __init__(self, rates: RateController, get_workers: Callable[[], list[Worker]], clock: Clock) -> None:
        self._rates = rates
        self._get_workers = get_workers
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    async def wait_turn(self, bucket: str) -> None:
        """Return when a request may be made; at once where the bucket is not limited."""
        now = self._clock.monotonic()
        use = self._count(bucket, now)
        if bucket not in self._rates.get_rates(now):
            use.next_s = 0.0
            return
        self._rates.note(bucket, MASTER, 0, use.get_rate(now), now)
        workers = [worker.worker_id for worker in self._get_workers()]
        rate = max(LEAST_RATE, self._rates.get_shares(MASTER, workers, now)[bucket])
        turn = max(now, use.next_s)
        use.next_s = turn + 1 / rate
        if turn > now:
            await asyncio.sleep(turn - now)

    def note_throttle(self, bucket: str) -> None:
        """The store told the master to slow down."""
        now = self._clock.monotonic()
        use = self._uses.get(bucket)
        self._rates.note(bucket, MASTER, 1, use.get_rate(now) if use is not None else 0.0, now)

    def _count(self, bucket: str, now: float) -> _Use:
        use = self._uses.setdefault(bucket, _Use(now))
        if now - use.begun_s >= _WINDOW_S:
            use.before = use.count / (now - use.begun_s)
            use.begun_s, use.count = now, 0
        use.count += 1
        return use
