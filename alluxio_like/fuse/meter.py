"""What a session counts of its requests, and how failures become errno, metrics and log lines.

One event loop.
"""

import asyncio
import errno
import logging
import time

from alluxio_like.errors import AlluxioLikeError
from alluxio_like.fuse.attributes import FileError, get_errno
from alluxio_like.metrics import Metrics, Times

log = logging.getLogger(__name__)


class Meter:
    """Counts requests, errors and times, by operation."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._times: dict[str, Times] = {}

    def count(self, what: str, started_s: float) -> None:
        """A request that began at `started_s` (time.perf_counter) has been answered."""
        times = self._times.get(what)
        if times is None:
            times = self._times[what] = self._metrics.fuse_requests.get(what)
        times.count(time.perf_counter() - started_s)

    def count_error(self, what: str, number: int) -> None:
        """A request was answered with an errno."""
        self._metrics.fuse_errors.labels(what, errno.errorcode.get(number, str(number))).inc()

    def translate(self, what: str, error: BaseException) -> int:
        """The errno that a failed request is answered with; counted, and logged where it is worth it."""
        number = get_errno(error)
        self.count_error(what, number)
        if number == errno.ENFILE:
            log.warning("%s: this process has as many files open as it may: raise LimitNOFILE, or `ulimit -n`, for it", what)
        elif not isinstance(error, AlluxioLikeError | FileError | TimeoutError | asyncio.CancelledError):
            log.error("%s failed unexpectedly", what, exc_info=error)
        elif number == errno.EIO:
            log.warning("%s: %s", what, error or "not done in time")
        return number
