"""The worker's services as the wire sees them, over handlers in our own types.

Owns the handler Protocols that the worker implements and the adapters to protobuf. Errors, request ids and tokens are the
interceptor's in server.py. Rule of concurrency: every call runs as a task of the server's loop and is cancelled when its caller
has gone; an iterator that a handler returned is closed (`aclose`) however the call ends.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import grpc
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


class DataHandler(Protocol):
    """For clients and other workers; every call is idempotent."""

    def read(
        self, ref: FileRef, offset: int, length: int, *, priority: Priority, cached_only: bool
    ) -> AsyncIterator[bytes | bytearray | memoryview]:
        """Exactly these bytes (the range lies within the file), in pieces of at most 1 MiB.

        A piece is copied before the iterator is asked for the next one. `cached_only`: NotFound instead of going to the store.
        Raises Stale, Store*, InvalidArgument for a range outside the file.
        """
        ...

    def fill(self, ref: FileRef, offset: int, length: int, *, priority: Priority) -> AsyncIterator[Filled]:
        """Bring a range into the cache; one item as soon as further pages are there, until all of them are."""
        ...

    async def touch(self, files: Sequence[Touched]) -> None: ...


class AdminHandler(Protocol):
    """For the master; every call needs the cluster token."""

    def load_files(self, job_id: str, files: Sequence[LoadFile], bandwidth_bytes_s: float) -> AsyncIterator[LoadProgress]:
        """Load files or blocks of them; one item with a result for each file. The job's latest bandwidth holds; 0: no limit."""
        ...

    def check_files(self, files: Sequence[LoadFile], *, verify: bool) -> AsyncIterator[CheckResult]: ...

    async def free_files(self, files: Sequence[FileId], *, force: bool) -> FreeResult: ...

    async def set_pinned(self, files: Sequence[FileId], *, pinned: bool) -> None: ...

    async def get_status(self) -> WorkerStatus: ...


def add_worker_services(server: grpc.aio.Server, *, data: DataHandler, admin: AdminHandler) -> None:
    """Make a server (see rpc.server) answer with these handlers."""
    raise NotImplementedError
