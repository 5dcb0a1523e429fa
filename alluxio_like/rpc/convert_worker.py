"""Between the worker's protobuf messages and our own types; the rest is in convert.py.

Data.Read's reply is encoded by hand: it is one bytes field, and so costs one copy instead of three. Pure functions, safe from any
thread.
"""

from collections.abc import Iterable

from alluxio_like.rpc.convert import file_id, file_ref, to_file_id, to_file_ref, to_worker, worker_info
from alluxio_like.rpc.messages import (
    CheckResult,
    DirectoryStatus,
    FileResult,
    Filled,
    FilledPages,
    LoadFile,
    LoadProgress,
    Priority,
    Touched,
    WorkerStatus,
)
from alluxio_like.rpc.v1 import worker_pb2
from alluxio_like.types import PageRange
from alluxio_like.waits import Cause, Seconds

_READ_REPLY_TAG = 0x0A
"""Field 1, length-delimited."""


def encode_read_reply(data: "bytes | bytearray | memoryview | Seconds") -> bytes:
    """The wire form of ReadReply(data=data), or of one that tells what was waited for."""
    if isinstance(data, tuple):
        return worker_pb2.ReadReply(waited=waited(data)).SerializeToString()
    size = len(data)
    if not size:
        return b""
    head = bytearray((_READ_REPLY_TAG,))
    while size > 0x7F:
        head.append((size & 0x7F) | 0x80)
        size >>= 7
    head.append(size)
    return b"".join((head, data))


def decode_read_reply(wire: bytes) -> "memoryview | Seconds":
    """The data of a ReadReply, without a copy where the message is just that field; or what it tells was waited for."""
    if not wire:
        return memoryview(b"")
    if wire[0] == _READ_REPLY_TAG:
        size = shift = 0
        for position in range(1, min(len(wire), 11)):
            byte = wire[position]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                if position + 1 + size == len(wire):
                    return memoryview(wire)[position + 1 :]
                break
    reply = worker_pb2.ReadReply.FromString(wire)
    return to_waited(reply.waited) if reply.HasField("waited") and not reply.data else memoryview(reply.data)


def waited(seconds: Seconds) -> worker_pb2.Waited:
    """What a worker knows of; the rest is nothing that happened there."""
    return worker_pb2.Waited(
        queue_s=seconds[Cause.QUEUE], store_s=seconds[Cause.STORE], peer_s=seconds[Cause.PEER], fill_s=seconds[Cause.FILL]
    )


def to_waited(message: worker_pb2.Waited) -> Seconds:
    """Never negative, whatever was sent."""
    parts = (message.store_s, message.peer_s, message.fill_s, 0.0, message.queue_s, 0.0)
    store, peer, fill, metadata, queue, other = (part if part > 0 else 0.0 for part in parts)
    return store, peer, fill, metadata, queue, other


def to_priority(number: int) -> Priority:
    """Of an unknown number: DEMAND, so that nobody starves."""
    return Priority(number) if number in (1, 2, 3) else Priority.DEMAND


def fill_reply(value: Filled) -> worker_pb2.FillReply:
    return worker_pb2.FillReply(
        present=[
            worker_pb2.PageRange(first=one.pages.first, count=len(one.pages), checksums=one.checksums) for one in value.present
        ],
        read_through=value.read_through,
        directory=value.directory,
        generation=value.generation,
        waited=waited(value.waited) if any(value.waited) else None,
    )


def to_filled(message: worker_pb2.FillReply) -> Filled:
    present = tuple(FilledPages(PageRange(one.first, one.first + one.count), tuple(one.checksums)) for one in message.present)
    return Filled(present, message.directory, message.generation, message.read_through, to_waited(message.waited))


def touch_request(values: Iterable[Touched]) -> worker_pb2.TouchRequest:
    return worker_pb2.TouchRequest(
        files=[worker_pb2.Touched(file=file_id(one.file_id), bytes=one.read_bytes, reads=one.reads) for one in values]
    )


def to_touched(message: worker_pb2.TouchRequest) -> list[Touched]:
    return [Touched(to_file_id(one.file), one.bytes, one.reads) for one in message.files]


def load_files(values: Iterable[LoadFile]) -> list[worker_pb2.LoadFile]:
    return [worker_pb2.LoadFile(file=file_ref(one.ref), blocks=list(one.blocks), sources=list(one.sources)) for one in values]


def to_load_files(messages: Iterable[worker_pb2.LoadFile]) -> list[LoadFile]:
    return [LoadFile(to_file_ref(one.file), tuple(one.blocks), tuple(one.sources)) for one in messages]


def load_progress_reply(value: LoadProgress) -> worker_pb2.LoadFilesReply:
    return worker_pb2.LoadFilesReply(
        loaded_bytes=value.loaded_bytes,
        skipped_bytes=value.skipped_bytes,
        requests=value.requests,
        results=[
            worker_pb2.FileResult(file=file_id(one.file_id), skipped=one.skipped, code=one.code, message=one.message)
            for one in value.results
        ],
    )


def to_load_progress(message: worker_pb2.LoadFilesReply) -> LoadProgress:
    results = tuple([FileResult(to_file_id(one.file), one.skipped, one.code, one.message) for one in message.results])
    return LoadProgress(message.loaded_bytes, message.skipped_bytes, message.requests, results)


def check_reply(values: Iterable[CheckResult]) -> worker_pb2.CheckFilesReply:
    return worker_pb2.CheckFilesReply(
        files=[
            worker_pb2.CheckedFile(file=file_id(one.file_id), missing_pages=one.missing_pages, bad_pages=one.bad_pages)
            for one in values
        ]
    )


def to_check_results(message: worker_pb2.CheckFilesReply) -> list[CheckResult]:
    return [CheckResult(to_file_id(one.file), one.missing_pages, one.bad_pages) for one in message.files]


def worker_status_reply(value: WorkerStatus) -> worker_pb2.WorkerStatusReply:
    return worker_pb2.WorkerStatusReply(
        info=worker_info(value.info),
        directories=[
            worker_pb2.DirectoryStatus(
                path=one.path,
                quota_bytes=one.quota_bytes,
                used_bytes=one.used_bytes,
                held_bytes=one.held_bytes,
                free_disk_bytes=one.free_disk_bytes,
                state=one.state,
                reason=one.reason,
                held_files=one.held_files,
                file_system=one.file_system,
                passthrough=one.passthrough,
                passthrough_reason=one.passthrough_reason,
            )
            for one in value.directories
        ],
        queue_depth=value.queue_depth,
        leases=value.leases,
    )


def to_worker_status(message: worker_pb2.WorkerStatusReply) -> WorkerStatus:
    directories = tuple(
        DirectoryStatus(
            path=one.path,
            quota_bytes=one.quota_bytes,
            used_bytes=one.used_bytes,
            held_bytes=one.held_bytes,
            free_disk_bytes=one.free_disk_bytes,
            state=one.state,
            reason=one.reason,
            held_files=one.held_files,
            file_system=one.file_system,
            passthrough=one.passthrough or "unknown",
            passthrough_reason=one.passthrough_reason,
        )
        for one in message.directories
    )
    return WorkerStatus(to_worker(message.info), directories, message.queue_depth, message.leases)
