"""Calls to a worker in our own types.

Owns the default deadlines. Streams are not repeated here: their callers know what they have got already and where else to ask.
Errors are those of the tree. Rule of concurrency: used on the channel's event loop; any number of calls at once. Leaving a stream
early (break, cancellation, aclose) cancels the call.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import grpc.aio

from alluxio_like.errors import Internal, Unavailable
from alluxio_like.rpc import convert, convert_worker
from alluxio_like.rpc.channel import Method, RpcChannel, call_stream, call_unary
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
from alluxio_like.rpc.v1 import worker_pb2, worker_pb2_grpc
from alluxio_like.types import FileId, FileRef
from alluxio_like.waits import Waits


class _ReadStub:
    """Data.Read with a decoder of its own, which does not copy."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.Read: Any = channel.unary_stream(
            "/alluxio_like.rpc.v1.Data/Read",
            request_serializer=worker_pb2.ReadRequest.SerializeToString,
            response_deserializer=convert_worker.decode_read_reply,
        )


class WorkerStub:
    """The worker at the other end of a channel. `timeout_s` bounds each call unless the call says other; 0 lifts it."""

    def __init__(self, channel: RpcChannel, *, timeout_s: float = 30.0) -> None:
        make: Any = worker_pb2_grpc
        self._channel = channel
        self._timeout_s = timeout_s
        channel.add_stub("Data", make.DataStub)
        channel.add_stub("WorkerAdmin", make.WorkerAdminStub)
        channel.add_stub("Read", _ReadStub)

    async def _call(self, stub: str, name: str, request: Any, timeout_s: float | None) -> Any:
        timeout = self._timeout_s if timeout_s is None else timeout_s
        return await call_unary(Method(self._channel, "worker", stub, name), request, timeout, repeat_s=self._timeout_s)

    def _stream(self, stub: str, name: str, request: Any, timeout_s: float | None, convert_reply: Any) -> AsyncGenerator[Any]:
        timeout = self._timeout_s if timeout_s is None else timeout_s
        return call_stream(Method(self._channel, "worker", stub, name), request, timeout, convert_reply)

    async def read(
        self,
        ref: FileRef,
        offset: int,
        length: int,
        *,
        priority: Priority = Priority.DEMAND,
        cached_only: bool = False,
        waits: Waits | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[memoryview]:
        """Exactly these bytes in pieces; a stream that ends short or runs over raises Unavailable or Internal.

        `waits` gets what the worker says was waited for.
        """
        request = worker_pb2.ReadRequest(
            file=convert.file_ref(ref),
            offset=offset,
            length=length,
            priority=int(priority),  # type: ignore[arg-type]
            cached_only=cached_only,
        )
        missing = length
        async with aclosing(self._stream("Read", "Read", request, timeout_s, None)) as pieces:
            async for piece in pieces:
                if isinstance(piece, tuple):
                    if waits is not None:
                        waits.add_all(piece)
                    continue
                missing -= len(piece)
                if missing < 0:
                    raise Internal(f"the worker at {self._channel.address} sent more than it was asked for")
                yield piece
        if missing:
            raise Unavailable(f"the worker at {self._channel.address} sent {missing} bytes less than it was asked for")

    def fill(
        self,
        ref: FileRef,
        offset: int,
        length: int,
        *,
        priority: Priority = Priority.DEMAND,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Filled]:
        request = worker_pb2.FillRequest(
            file=convert.file_ref(ref),
            offset=offset,
            length=length,
            priority=int(priority),  # type: ignore[arg-type]
        )
        return self._stream("Data", "Fill", request, timeout_s, convert_worker.to_filled)

    async def touch(self, files: Sequence[Touched], *, timeout_s: float | None = None) -> None:
        await self._call("Data", "Touch", convert_worker.touch_request(files), timeout_s)

    async def report_bad(self, ref: FileRef, pages: Sequence[int], *, timeout_s: float | None = None) -> int:
        """How many of these pages the worker found bad too, and dropped."""
        request = worker_pb2.ReportBadRequest(file=convert.file_ref(ref), pages=pages)
        reply = await self._call("Data", "ReportBad", request, timeout_s)
        return int(reply.bad_pages)

    def load_files(
        self, job_id: str, files: Sequence[LoadFile], bandwidth_bytes_s: float = 0.0, *, timeout_s: float | None = None
    ) -> AsyncGenerator[LoadProgress]:
        """No deadline unless one is given: keepalive finds a dead worker, the caller watches progress."""
        request = worker_pb2.LoadFilesRequest(
            job_id=job_id, files=convert_worker.load_files(files), bandwidth_bytes_s=bandwidth_bytes_s
        )
        return self._stream("WorkerAdmin", "LoadFiles", request, timeout_s or 0, convert_worker.to_load_progress)

    def check_files(
        self, files: Sequence[LoadFile], *, verify: bool = False, timeout_s: float | None = None
    ) -> AsyncGenerator[CheckResult]:
        """No deadline unless one is given."""
        request = worker_pb2.CheckFilesRequest(files=convert_worker.load_files(files), verify=verify)
        batches = self._stream("WorkerAdmin", "CheckFiles", request, timeout_s or 0, convert_worker.to_check_results)
        return _flatten(batches)

    async def free_files(self, files: Sequence[FileId], *, force: bool = False, timeout_s: float | None = None) -> FreeResult:
        request = worker_pb2.FreeFilesRequest(files=[convert.file_id(file) for file in files], force=force)
        return convert.to_free_result(await self._call("WorkerAdmin", "FreeFiles", request, timeout_s))

    async def set_pinned(self, files: Sequence[FileId], *, pinned: bool, timeout_s: float | None = None) -> None:
        request = worker_pb2.SetFilesPinnedRequest(files=[convert.file_id(file) for file in files], pinned=pinned)
        await self._call("WorkerAdmin", "SetPinned", request, timeout_s)

    async def get_status(self, *, timeout_s: float | None = None) -> WorkerStatus:
        reply = await self._call("WorkerAdmin", "GetStatus", worker_pb2.WorkerStatusRequest(), timeout_s)
        return convert_worker.to_worker_status(reply)


async def _flatten(batches: AsyncGenerator[list[CheckResult]]) -> AsyncGenerator[CheckResult]:
    async with aclosing(batches):
        async for batch in batches:
            for result in batch:
                yield result
