"""Time, as something that is given and not taken.

Owns the two clocks a service passes to whatever needs the time, so that deterministic code never reads one by itself.
Not thread-bound: both are safe to call from anywhere.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """The time of day and a clock that never goes back."""

    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock for tests, which stands still until it is moved."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = now_ns
        self._monotonic = 1000.0

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by `seconds`."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self._now_ns += int(seconds * 1e9)
        self._monotonic += seconds
