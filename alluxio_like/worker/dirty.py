"""How much of what was written here may wait for its upload: what can still go to the store when this machine is taken away.

Owns the speed at which uploads go, as measured, and the bound on bytes that follows from it. Uploads are uploading.py's, which
tells of each request; a close that has to wait is drafts.py's. Pure; one event loop.
"""

from collections.abc import Callable

from alluxio_like.metrics import Metrics

GUESS_BYTES = 16 << 20
"""So much is what was guessed before the start worth, beside what is measured. A guess itself."""
MEMORY_BYTES = 256 << 20
"""What went before that counts half, and so on. By bytes and not by time: a trickle of small files, which is slow because there
is little to do, says little of what a large one would take. A guess."""


class Pace:
    """The speed of uploads. `guess_bytes_s` holds until something is measured."""

    def __init__(self, guess_bytes_s: float) -> None:
        self._bytes = float(GUESS_BYTES)
        self._seconds = GUESS_BYTES / guess_bytes_s
        self._counted_until_s = float("-inf")

    @property
    def bytes_per_s(self) -> float:
        return self._bytes / self._seconds

    def note(self, size: int, started_s: float, ended_s: float) -> None:
        """A request took `size` bytes to a store. Time during which several were under way is counted once; time without any, or
        with such as failed, is not."""
        self._bytes += size
        self._seconds += max(1e-6, ended_s - max(started_s, self._counted_until_s))
        self._counted_until_s = max(self._counted_until_s, ended_s)
        if self._bytes > MEMORY_BYTES:
            self._seconds *= MEMORY_BYTES / self._bytes
            self._bytes = float(MEMORY_BYTES)


class DrainCap:
    """The bound: what goes to the store in `drain_s`; None: there is none. `measure` counts the bytes that are to be uploaded,
    all of them each time."""

    def __init__(self, pace: Pace, drain_s: float | None, measure: Callable[[], int], metrics: Metrics) -> None:
        self._pace = pace
        self._drain_s = drain_s
        self._measure = measure
        self._metrics = metrics
        self._bytes = 0
        """No less than there is: what was counted last, and what has come since."""

    @property
    def limit_bytes(self) -> int | None:
        return None if self._drain_s is None else int(self._pace.bytes_per_s * self._drain_s)

    def count(self) -> int:
        """Count anew what is to be uploaded, and show it."""
        self._bytes = self._measure()
        self._metrics.upload_pace.set(self._pace.bytes_per_s)
        self._metrics.unpersisted_limit_bytes.set(-1 if self.limit_bytes is None else self.limit_bytes)
        return self._bytes

    def is_passed_with(self, size: int) -> bool:
        """Whether there is more than may be, now that a version of `size` bytes has come."""
        limit = self.limit_bytes
        if limit is None:
            return False
        self._bytes += size
        is_passed = self._bytes > limit and self.count() > limit
        if is_passed:
            self._metrics.capped_closes.inc()
        return is_passed
