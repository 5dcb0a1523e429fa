"""What waiting is for.

Owns the causes, and the arithmetic that shares waited time out among them. Takes times, never looks at a clock; knows nothing of
who waits. Plain objects of one event loop each.
"""

import enum
from typing import Final


class Cause(enum.IntEnum):
    """Why somebody waited. The numbers index `Seconds`."""

    STORE = 0
    """for bytes of a store, pauses between attempts included"""
    PEER = 1
    """for bytes of another worker"""
    FILL = 2
    """for the worker's disk to take what has come"""
    METADATA = 3
    """for the master: names, attributes, listings"""
    QUEUE = 4
    """for a turn: slots of the worker, a bucket that asked for less"""
    OTHER = 5
    """for what none of the others explains, such as calls between processes"""


Seconds = tuple[float, float, float, float, float, float]
"""Seconds by cause."""

NONE: Final[Seconds] = (0.0,) * 6


class Waits:
    """Seconds by cause, adding up."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds = list(NONE)

    def add(self, cause: Cause, seconds: float) -> None:
        """So long was waited for one cause."""
        self._seconds[cause] += seconds

    def add_all(self, seconds: Seconds) -> None:
        """So long was waited for each cause."""
        for cause, part in enumerate(seconds):
            self._seconds[cause] += part

    @property
    def total_s(self) -> float:
        """Seconds in all."""
        return sum(self._seconds)

    def get(self) -> Seconds:
        """Seconds by cause until now."""
        store, peer, fill, metadata, queue, other = self._seconds
        return store, peer, fill, metadata, queue, other


class Stopwatch:
    """How one piece of work spends its time: it is for one cause at a time."""

    __slots__ = ("_since_s", "_waits", "cause")

    def __init__(self, cause: Cause, now_s: float) -> None:
        self.cause = cause
        self._since_s = now_s
        self._waits = Waits()

    def enter(self, cause: Cause, now_s: float) -> None:
        """From now on it is for another cause."""
        self._waits.add(self.cause, now_s - self._since_s)
        self.cause, self._since_s = cause, now_s

    def share(self, told: Seconds, now_s: float) -> None:
        """The time since the last call of any of these was spent as `told` says, as far as that goes."""
        self._waits.add_all(share_out(now_s - self._since_s, told, self.cause))
        self._since_s = now_s

    def read(self, now_s: float) -> Seconds:
        """What was spent by now. The difference of two readings is what was spent in between."""
        self.enter(self.cause, now_s)
        return self._waits.get()


class SharedWaits:
    """Waits of several requests for one thing: the time in which more than one waits counts once."""

    __slots__ = ("_count", "_since_s", "_waits")

    def __init__(self) -> None:
        self._waits = Waits()
        self._count = 0
        self._since_s = 0.0

    def begin(self, now_s: float) -> None:
        """A request begins to wait; pair with `end`."""
        if not self._count:
            self._since_s = now_s
        self._count += 1

    def end(self, now_s: float, told: Seconds, rest: Cause) -> None:
        """It waits no longer; `told` is what is known of why, `rest` what else it was for."""
        self._count -= 1
        self._waits.add_all(share_out(now_s - self._since_s, told, rest))
        self._since_s = now_s

    def get(self) -> Seconds:
        """Seconds by cause, of requests that have ended."""
        return self._waits.get()


def subtract(later: Seconds, earlier: Seconds) -> Seconds:
    """Cause by cause, what came between two readings."""
    return tuple([a - b for a, b in zip(later, earlier, strict=True)])  # type: ignore[return-value]


def share_out(waited_s: float, told: Seconds, rest: Cause) -> Seconds:
    """A wait of `waited_s`, shared out as `told` says: what it does not cover is for `rest`, what goes beyond is scaled down."""
    total_s = sum(told)
    scale = waited_s / total_s if total_s > waited_s else 1.0
    shares = [part * scale for part in told]
    shares[rest] += max(0.0, waited_s - total_s)
    store, peer, fill, metadata, queue, other = shares
    return store, peer, fill, metadata, queue, other
