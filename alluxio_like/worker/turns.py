"""Whose request to a store goes next.

Owns the slots for requests under way, the order in which they are given (somebody waits, read-ahead, loads), the room that loads
leave while somebody waits, here or on another worker, and the rate that each bucket may be asked at. Does no I/O. Rule of
concurrency: everything happens on one event loop; no method but `take` awaits, and `take` changes nothing after its await.
"""

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from alluxio_like.rpc.messages import Priority, Throttle

_QUIET_S = 0.25
"""How long after the last request that somebody waited for loads stay reduced. A guess: longer than the pause between two
requests of one sequential reader, shorter than anybody notices."""
_LOADS_BESIDE_DEMAND = 1
"""Load requests under way while somebody waits. A reader with eight requests in flight keeps 8/9 of a shared line."""
_BURST_S = 0.25
"""How much of a rate may be used at once after a pause. A guess."""


@dataclass(slots=True, eq=False)
class Turn:
    """One request's place in the queue, or its slot."""

    priority: Priority
    bucket: str
    granted: asyncio.Future[None]
    pool: str = ""


@dataclass(slots=True)
class _Rate:
    per_s: float
    tokens: float
    at: float


@dataclass(slots=True)
class _Use:
    """What a bucket saw since the last report."""

    requests: int = 0
    throttles: int = 0


@dataclass(slots=True)
class Turns:
    """Gives slots: `demand_slots` for what somebody waits for and read-ahead, `load_slots` for loads.

    Read-ahead leaves a quarter of the former to those who wait.
    """

    demand_slots: int
    load_slots: int
    monotonic: Callable[[], float]
    _queue: list[tuple[int, int, Turn]] = field(default_factory=list)
    _serial: int = 0
    _running: Counter[str] = field(default_factory=Counter)
    _waiting: Counter[Priority] = field(default_factory=Counter)
    _rates: dict[str, _Rate] = field(default_factory=dict)
    _uses: dict[str, _Use] = field(default_factory=dict)
    _reported_at: float = 0.0
    _demand_until: float = 0.0
    _demand_count: int = 0
    _timer: asyncio.TimerHandle | None = None

    async def take(self, turn: Turn) -> None:
        """Wait for a slot. When cancelled, the slot (or the place in the queue) is given back."""
        self._waiting[turn.priority] += 1
        self._push(turn)
        self._pump()
        if turn.granted.done():
            return
        try:
            await turn.granted
        except asyncio.CancelledError:
            if turn.pool:
                self.give_back(turn)
            else:
                self._waiting[turn.priority] -= 1
                turn.granted.cancel()
            raise

    def make_turn(self, priority: Priority, bucket: str) -> Turn:
        """A place that has not been queued yet."""
        return Turn(priority, bucket, asyncio.get_running_loop().create_future())

    def give_back(self, turn: Turn) -> None:
        """A request has ended; gives its slot to the next. A second call does nothing."""
        if not turn.pool:
            return
        self._running[turn.pool] -= 1
        if turn.pool != "load":
            self._demand_until = max(self._demand_until, self.monotonic() + _QUIET_S)
        turn.pool = ""
        self._pump()

    def raise_priority(self, turn: Turn, priority: Priority) -> None:
        """Somebody more urgent wants the same: move up, if still waiting."""
        if turn.granted.done() or turn.priority <= priority:
            return
        self._waiting[turn.priority] -= 1
        self._waiting[priority] += 1
        turn.priority = priority
        self._push(turn)
        self._pump()

    def set_rate(self, bucket: str, per_s: float) -> None:
        """Limit the requests per second to a bucket; 0 lifts the limit."""
        if per_s <= 0:
            self._rates.pop(bucket, None)
        elif (rate := self._rates.get(bucket)) is not None:
            self._refill(rate)
            rate.per_s = per_s
        else:
            self._rates[bucket] = _Rate(per_s, 1.0, self.monotonic())
        self._pump()

    def note_demand_elsewhere(self, for_s: float) -> None:
        """Somebody waits for a store on another worker: loads here make room for `for_s` seconds."""
        self._demand_until = max(self._demand_until, self.monotonic() + for_s)

    def note_throttle(self, bucket: str) -> None:
        """A store asked for less."""
        self._uses.setdefault(bucket, _Use()).throttles += 1

    def drain_report(self) -> tuple[tuple[Throttle, ...], int]:
        """Throttles and use by bucket, and how many requests somebody waited for, since the last call."""
        now = self.monotonic()
        elapsed = max(now - self._reported_at, 1e-3)
        # Without a throttle too: the master measures by it what was in use when a trouble begins, and what of a share is used.
        throttles = tuple(Throttle(bucket, use.throttles, use.requests / elapsed) for bucket, use in self._uses.items())
        self._uses.clear()
        self._reported_at = now
        demand, self._demand_count = self._demand_count, 0
        return throttles, demand

    def take_back_report(self, throttles: tuple[Throttle, ...], demand: int) -> None:
        """What `drain_report` gave could not be told: it counts again with the next one."""
        for throttle in throttles:
            if throttle.count:
                self._uses.setdefault(throttle.bucket, _Use()).throttles += throttle.count
        self._demand_count += demand

    def count_waiting(self, priority: Priority) -> int:
        return self._waiting[priority]

    def count_running(self, priority: Priority) -> int:
        return self._running["load" if priority is Priority.LOAD else "ahead" if priority is Priority.AHEAD else "demand"]

    def _push(self, turn: Turn) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (turn.priority, self._serial, turn))

    def _pump(self) -> None:
        """Give slots to whoever may go, the most urgent first."""
        aside: list[tuple[int, int, Turn]] = []
        wake_at: float | None = None
        while self._queue:
            item = heapq.heappop(self._queue)
            priority, _, turn = item
            if turn.granted.done() or turn.priority != priority:
                continue  # cancelled, or moved up and queued a second time
            pool, room_at = self._find_room(turn.priority)
            if not pool:
                aside.append(item)
                if room_at is not None:
                    wake_at = room_at if wake_at is None else min(wake_at, room_at)
                if turn.priority is Priority.LOAD:
                    break  # nothing after it is more urgent
                continue
            token_at = self._take_token(turn.bucket)
            if token_at is not None:
                aside.append(item)
                wake_at = token_at if wake_at is None else min(wake_at, token_at)
                continue
            self._grant(turn, pool)
        for item in aside:
            heapq.heappush(self._queue, item)
        self._set_timer(wake_at)

    def _grant(self, turn: Turn, pool: str) -> None:
        turn.pool = pool
        self._running[pool] += 1
        self._waiting[turn.priority] -= 1
        self._uses.setdefault(turn.bucket, _Use()).requests += 1
        if pool == "demand":
            self._demand_count += 1
        turn.granted.set_result(None)

    def _find_room(self, priority: Priority) -> tuple[str, float | None]:
        """The pool with a free slot ("" for none), and when there may be one again if time alone can bring it."""
        interactive = self._running["demand"] + self._running["ahead"]
        if priority is Priority.DEMAND:
            return ("demand" if interactive < self.demand_slots else ""), None
        if priority is Priority.AHEAD:
            return ("ahead" if interactive < max(1, self.demand_slots * 3 // 4) else ""), None
        busy = interactive or self._waiting[Priority.DEMAND] or self._waiting[Priority.AHEAD]
        quiet = not busy and self.monotonic() >= self._demand_until
        limit = self.load_slots if quiet else _LOADS_BESIDE_DEMAND
        if self._running["load"] < limit:
            return "load", None
        return "", (None if quiet or busy else self._demand_until)

    def _take_token(self, bucket: str) -> float | None:
        """Use one request of a bucket's rate; else when there will be one."""
        rate = self._rates.get(bucket)
        if rate is None:
            return None
        self._refill(rate)
        if rate.tokens >= 1.0:
            rate.tokens -= 1.0
            return None
        return rate.at + (1.0 - rate.tokens) / rate.per_s

    def _refill(self, rate: _Rate) -> None:
        now = self.monotonic()
        rate.tokens = min(max(1.0, rate.per_s * _BURST_S), rate.tokens + (now - rate.at) * rate.per_s)
        rate.at = now

    def _set_timer(self, wake_at: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wake_at is not None:
            delay = max(wake_at - self.monotonic(), 0.001)
            self._timer = asyncio.get_running_loop().call_later(delay, self._pump)

    def close(self) -> None:
        """Stop the timer; nothing is granted by time any more."""
        self._set_timer(None)
