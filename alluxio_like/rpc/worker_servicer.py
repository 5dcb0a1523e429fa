"""The worker's services as the wire sees them, over handlers in our own types.

Owns the handler Protocols that the worker implements and the adapters to protobuf. Errors, request ids and tokens are the
interceptor's in server.py. Rule of concurrency: every call runs as a task of the server's loop and is cancelled when its caller
has gone; an iterator that a handler returned is closed (`aclose`) however the call ends.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from alluxio_like.rpc import convert, convert_worker
from alluxio_like.rpc.messages import CheckResult, Filled, FreeResult, LoadFile, LoadProgress, Priority, Touched, WorkerStatus
from alluxio_like.rpc.streams import closing
from alluxio_like.rpc.v1 import worker_pb2, worker_pb2_grpc
from alluxio_like.types import FileId, FileRef
from alluxio_like.waits import NONE, Seconds, Waits, subtract

_TOLD_S = 0.0005
"""A shorter wait of a read is not worth a message of its own. A guess."""
_CHECKED_PER_MESSAGE = 256
_CHECK_INTERVAL_S = 0.2
"""Files checked go out together: a message each costs more than checking a small file."""


class DataHandler(Protocol):
    """For clients and other workers; every call is idempotent."""

    def read(
        self, ref: FileRef, offset: int, length: int, *, priority: Priority, cached_only: bool, waits: Waits | None = None
    ) -> AsyncIterator[bytes | bytearray | memoryview]:
        """Exactly these bytes (the range lies within the file), in pieces of at most 1 MiB. `waits` gets what was waited for.

        A piece is copied before the iterator is asked for the next one. `cached_only`: NotFound instead of going to the store.
        Raises Stale, Store*, InvalidArgument for a range outside the file.
        """
        ...

    def fill(self, ref: FileRef, offset: int, length: int, *, priority: Priority) -> AsyncIterator[Filled]:
        """Bring a range into the cache; one item as soon as further pages are there, until all of them are."""
        ...

    async def touch(self, files: Sequence[Touched]) -> None: ...

    async def report_bad(self, ref: FileRef, pages: Sequence[int]) -> int:
        """Look at pages of the cache file that a local reader found bad; drop those that are, have them fetched again.

        How many were dropped; the index says so by then. Raises InvalidArgument for pages outside the file or too many.
        """
        ...


class AdminHandler(Protocol):
    """For the master; every call needs the cluster token."""

    def load_files(self, job_id: str, files: Sequence[LoadFile], bandwidth_bytes_s: float) -> AsyncIterator[LoadProgress]:
        """Load files or blocks of them; one item with a result for each file. The job's latest bandwidth holds; 0: no limit."""
        ...

    def check_files(self, files: Sequence[LoadFile], *, verify: bool) -> AsyncIterator[CheckResult]: ...

    async def free_files(self, files: Sequence[FileId], *, force: bool) -> FreeResult: ...

    async def set_pinned(self, files: Sequence[FileId], *, pinned: bool) -> None: ...

    async def get_status(self) -> WorkerStatus: ...


_DATA = "alluxio_like.rpc.v1.Data"


def add_worker_services(server: grpc.aio.Server, *, data: DataHandler, admin: AdminHandler) -> None:
    """Make a server (see rpc.server) answer with these handlers."""
    data_servicer = _Data(data)
    # By hand and not by the generated function: Read's replies have an encoder of their own.
    read = grpc.unary_stream_rpc_method_handler(
        data_servicer.Read,
        request_deserializer=worker_pb2.ReadRequest.FromString,
        response_serializer=convert_worker.encode_read_reply,
    )
    fill = grpc.unary_stream_rpc_method_handler(
        data_servicer.Fill,
        request_deserializer=worker_pb2.FillRequest.FromString,
        response_serializer=worker_pb2.FillReply.SerializeToString,
    )
    touch = grpc.unary_unary_rpc_method_handler(
        data_servicer.Touch,
        request_deserializer=worker_pb2.TouchRequest.FromString,
        response_serializer=worker_pb2.TouchReply.SerializeToString,
    )
    report_bad = grpc.unary_unary_rpc_method_handler(
        data_servicer.ReportBad,
        request_deserializer=worker_pb2.ReportBadRequest.FromString,
        response_serializer=worker_pb2.ReportBadReply.SerializeToString,
    )
    methods: dict[str, Any] = {"Read": read, "Fill": fill, "Touch": touch, "ReportBad": report_bad}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_DATA, methods),))
    server.add_registered_method_handlers(_DATA, methods)
    add: Any = worker_pb2_grpc
    add.add_WorkerAdminServicer_to_server(_Admin(admin), server)


class _Data:
    def __init__(self, handler: DataHandler) -> None:
        self._handler = handler

    async def Read(self, request: worker_pb2.ReadRequest, _: Any) -> AsyncGenerator[bytes | bytearray | memoryview | Seconds]:
        waits, told, told_s = Waits(), NONE, 0.0
        pieces = self._handler.read(
            convert.to_file_ref(request.file),
            request.offset,
            request.length,
            priority=convert_worker.to_priority(request.priority),
            cached_only=request.cached_only,
            waits=waits,
        )
        async with closing(pieces):
            async for piece in pieces:
                if waits.total_s - told_s >= _TOLD_S:
                    yield subtract(waits.get(), told)
                    told, told_s = waits.get(), waits.total_s
                yield piece

    async def Fill(self, request: worker_pb2.FillRequest, _: Any) -> AsyncGenerator[worker_pb2.FillReply]:
        priority = convert_worker.to_priority(request.priority)
        fills = self._handler.fill(convert.to_file_ref(request.file), request.offset, request.length, priority=priority)
        async with closing(fills):
            async for filled in fills:
                yield convert_worker.fill_reply(filled)

    async def Touch(self, request: worker_pb2.TouchRequest, _: Any) -> worker_pb2.TouchReply:
        await self._handler.touch(convert_worker.to_touched(request))
        return worker_pb2.TouchReply()

    async def ReportBad(self, request: worker_pb2.ReportBadRequest, _: Any) -> worker_pb2.ReportBadReply:
        return worker_pb2.ReportBadReply(
            bad_pages=await self._handler.report_bad(convert.to_file_ref(request.file), list(request.pages))
        )


class _Admin:
    def __init__(self, handler: AdminHandler) -> None:
        self._handler = handler

    async def LoadFiles(self, request: worker_pb2.LoadFilesRequest, _: Any) -> AsyncGenerator[worker_pb2.LoadFilesReply]:
        files = convert_worker.to_load_files(request.files)
        steps = self._handler.load_files(request.job_id, files, request.bandwidth_bytes_s)
        async with closing(steps):
            async for step in steps:
                yield convert_worker.load_progress_reply(step)

    async def CheckFiles(self, request: worker_pb2.CheckFilesRequest, _: Any) -> AsyncGenerator[worker_pb2.CheckFilesReply]:
        results = self._handler.check_files(convert_worker.to_load_files(request.files), verify=request.verify)
        batch: list[CheckResult] = []
        sent = time.monotonic()
        async with closing(results):
            async for result in results:
                batch.append(result)
                now = time.monotonic()
                if len(batch) >= _CHECKED_PER_MESSAGE or now - sent > _CHECK_INTERVAL_S:
                    yield convert_worker.check_reply(batch)
                    batch, sent = [], now
        if batch:
            yield convert_worker.check_reply(batch)

    async def FreeFiles(self, request: worker_pb2.FreeFilesRequest, _: Any) -> worker_pb2.FreeFilesReply:
        files = [convert.to_file_id(file) for file in request.files]
        result = await self._handler.free_files(files, force=request.force)
        return worker_pb2.FreeFilesReply(files=result.files, bytes=result.freed_bytes, kept_pinned_files=result.kept_pinned_files)

    async def SetPinned(self, request: worker_pb2.SetFilesPinnedRequest, _: Any) -> worker_pb2.SetFilesPinnedReply:
        await self._handler.set_pinned([convert.to_file_id(file) for file in request.files], pinned=request.pinned)
        return worker_pb2.SetFilesPinnedReply()

    async def GetStatus(self, request: worker_pb2.WorkerStatusRequest, _: Any) -> worker_pb2.WorkerStatusReply:
        return convert_worker.worker_status_reply(await self._handler.get_status())
