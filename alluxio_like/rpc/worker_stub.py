"""Calls to a worker in our own types.

Owns the default deadlines. Streams are not repeated here: their callers know what they have got already and where else to ask.
Errors are those of the tree. Rule of concurrency: used on the channel's event loop; any number of calls at once. Leaving a stream
early (break, cancellation, aclose) cancels the call.
"""

from collections.abc import AsyncIterator, Sequence

import grpc.aio

from alluxio_like.rpc.messages import (
    CheckResult,
    Filled,
    FreeResult,
    LoadFile,
    LoadProgress,
    Priority,
    Touched,
    WorkerStatus,
)
from alluxio_like.types import FileId, FileRef


class WorkerStub:
    """The worker at the other end of a channel. `timeout_s` bounds each call unless the call says other; 0 lifts it."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float = 30.0) -> None:
        raise NotImplementedError

    def read(
        self,
        ref: FileRef,
        offset: int,
        length: int,
        *,
        priority: Priority = Priority.DEMAND,
        cached_only: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[memoryview]:
        """Exactly these bytes in pieces; a stream that ends short or runs over raises Unavailable or Internal."""
        raise NotImplementedError

    def fill(
        self,
        ref: FileRef,
        offset: int,
        length: int,
        *,
        priority: Priority = Priority.DEMAND,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Filled]:
        raise NotImplementedError

    async def touch(self, files: Sequence[Touched], *, timeout_s: float | None = None) -> None:
        raise NotImplementedError

    def load_files(
        self, job_id: str, files: Sequence[LoadFile], bandwidth_bytes_s: float = 0.0, *, timeout_s: float | None = None
    ) -> AsyncIterator[LoadProgress]:
        """No deadline unless one is given: keepalive finds a dead worker, the caller watches progress."""
        raise NotImplementedError

    def check_files(
        self, files: Sequence[LoadFile], *, verify: bool = False, timeout_s: float | None = None
    ) -> AsyncIterator[CheckResult]:
        """No deadline unless one is given."""
        raise NotImplementedError

    async def free_files(self, files: Sequence[FileId], *, force: bool = False, timeout_s: float | None = None) -> FreeResult:
        raise NotImplementedError

    async def set_pinned(self, files: Sequence[FileId], *, pinned: bool, timeout_s: float | None = None) -> None:
        raise NotImplementedError

    async def get_status(self, *, timeout_s: float | None = None) -> WorkerStatus:
        raise NotImplementedError
