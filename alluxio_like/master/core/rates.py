"""One request rate for each bucket, for the whole cluster: additive increase, multiplicative decrease.

A bucket has no limit until a store says SlowDown or 429. Then the rate becomes a part of what was in use, at most once in a
while (answers to requests that were under way do not count twice); it grows again by itself and the limit is lifted when it has
grown well past where the trouble began, or after a long quiet time. The rate is divided over those who use the bucket, a floor
for each and the rest by use.

Deterministic: time is given. Single-threaded: used from the event loop alone.
"""

import math
from dataclasses import dataclass, field

from alluxio_like.types import WorkerId

DECREASE = 0.7
"""Of the rate in use, after a throttle. Gentler than halving: S3 splits busy prefixes by itself (a guess)."""
DECREASE_INTERVAL_S = 3.0
"""Between two decreases: a heartbeat each way and the requests that were under way (a guess)."""
INCREASE_PER_S = 0.05
"""Of the rate at the throttle, each second: back to it within half a minute (a guess)."""
LIFT_FACTOR = 3.0
MIN_RATE = 5.0
"""Requests per second below which no bucket is pushed."""
QUIET_S = 300.0
USER_TIMEOUT_S = 10.0
"""A worker that said nothing of a bucket for so long gets the floor only."""


@dataclass(slots=True)
class _Bucket:
    rate: float
    knee: float
    """Use of the whole cluster when the latest trouble began."""
    before: float
    """The rate before the latest trouble."""
    trouble_s: float
    throttled_s: float
    updated_s: float
    used: dict[WorkerId, tuple[float, float]] = field(default_factory=dict)


class RateController:
    """The rates of all buckets; `now` is a monotonic time in seconds everywhere."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}
        self._quiet_use: dict[str, dict[WorkerId, tuple[float, float]]] = {}
        """Who used how much of buckets that have no limit, and when: what a first trouble is measured by."""

    def note(self, bucket: str, worker_id: WorkerId, count: int, used_rate: float, now: float) -> None:
        """A worker says that `count` answers (0: none) told it to slow down while it made `used_rate` requests per second.

        Reports that follow the first of a trouble within DECREASE_INTERVAL_S belong to it: they tell how much the others used.
        """
        state = self._buckets.get(bucket)
        if state is None:
            if count <= 0:
                self._quiet_use.setdefault(bucket, {})[worker_id] = (max(0.0, used_rate), now)
                return
            state = self._buckets[bucket] = _Bucket(math.inf, MIN_RATE, math.inf, now, now, now)
            state.used = self._quiet_use.pop(bucket, {})
        self._grow(state, now)
        state.used[worker_id] = (max(0.0, used_rate), now)
        if count > 0:
            state.throttled_s = now
            if now - state.trouble_s >= DECREASE_INTERVAL_S:
                state.trouble_s, state.before = now, state.rate
        if now - state.trouble_s < DECREASE_INTERVAL_S:
            in_use = sum(rate for rate, seen in state.used.values() if now - seen < USER_TIMEOUT_S)
            state.knee = max(MIN_RATE, min(state.before, in_use) if in_use > 0 or math.isinf(state.before) else state.before)
            state.rate = max(MIN_RATE, state.knee * DECREASE)

    def get_rates(self, now: float) -> dict[str, float]:
        """Requests per second of each bucket that is limited now."""
        for bucket in list(self._buckets):
            state = self._buckets[bucket]
            self._grow(state, now)
            if state.rate >= state.knee * LIFT_FACTOR or now - state.throttled_s > QUIET_S:
                del self._buckets[bucket]
        return {bucket: state.rate for bucket, state in self._buckets.items()}

    def get_shares(self, worker_id: WorkerId, workers: list[WorkerId], now: float) -> dict[str, float]:
        """What one of the live workers may ask of each limited bucket; the shares of all add up to the rate."""
        shares = {}
        for bucket, rate in self.get_rates(now).items():
            used = self._buckets[bucket].used
            weights = {w: self._get_weight(used.get(w), now) for w in workers}
            # Also who is no worker and uses it: the master lists.
            weights |= {w: self._get_weight(use, now) for w, use in used.items() if now - use[1] < USER_TIMEOUT_S}
            weights.setdefault(worker_id, self._get_weight(None, now))
            total = sum(weights.values())
            floor = 0.2 * rate / len(weights)
            shares[bucket] = floor + 0.8 * rate * weights[worker_id] / total
        return shares

    @staticmethod
    def _get_weight(use: tuple[float, float] | None, now: float) -> float:
        return 1.0 + use[0] if use is not None and now - use[1] < USER_TIMEOUT_S else 1.0

    @staticmethod
    def _grow(state: _Bucket, now: float) -> None:
        elapsed = now - state.updated_s
        if elapsed > 0:
            if now - state.trouble_s >= DECREASE_INTERVAL_S:
                state.rate += elapsed * INCREASE_PER_S * state.knee
            state.updated_s = now
