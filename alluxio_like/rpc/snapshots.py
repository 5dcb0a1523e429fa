"""Snapshots over the wire: both ends of the service Snapshots in our own types.

Owns the handler's Protocol, the servicer and the stub. Rule of concurrency: as in master_servicer and master_stub.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import grpc.aio

from alluxio_like.rpc.channel import Method, RpcChannel, call_stream, call_unary, repeat_stream
from alluxio_like.rpc.streams import closing
from alluxio_like.rpc.v1 import snapshots_pb2, snapshots_pb2_grpc
from alluxio_like.types import to_bytes, to_str


class OldVersions(StrEnum):
    """Whether stores keep old versions; PARTLY: some of them do."""

    YES = "yes"
    NO = "no"
    PARTLY = "partly"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frozen version of the tree below `path`. `unlisted`: when it was made, directories there that no listing had covered.
    `old_versions`: whether the stores below it keep what is replaced or deleted there from now on."""

    path: str
    name: str
    created_ns: int
    unlisted: int = 0
    old_versions: OldVersions = OldVersions.UNKNOWN


@dataclass(frozen=True, slots=True)
class Difference:
    """A path below the directory that is "added", "removed", "changed", or of which "attributes" alone changed."""

    path: str
    what: str
    size: int


class SnapshotsHandler(Protocol):
    """Paths are absolute; all raise NotFound and NotADirectory for them."""

    async def create_snapshot(self, operation_id: str, path: str, name: str) -> Snapshot: ...

    async def list_snapshots(self, path: str) -> list[Snapshot]: ...

    async def delete_snapshot(self, operation_id: str, path: str, name: str) -> None: ...

    def diff(self, path: str, name: str, other: str) -> AsyncIterator[Sequence[Difference]]:
        """`other` against `name`; an empty name is the tree as it is now."""
        ...


def add_snapshots_service(server: grpc.aio.Server, handler: SnapshotsHandler) -> None:
    """Make a server (see rpc.server) answer with this handler."""
    add: Any = snapshots_pb2_grpc
    add.add_SnapshotsServicer_to_server(_Snapshots(handler), server)


class _Snapshots:
    def __init__(self, handler: SnapshotsHandler) -> None:
        self._handler = handler

    async def Create(self, request: snapshots_pb2.CreateSnapshotRequest, _: Any) -> snapshots_pb2.Snapshot:
        path, name = to_str(request.path), to_str(request.name)
        return _snapshot(await self._handler.create_snapshot(request.operation_id, path, name))

    async def List(self, request: snapshots_pb2.ListSnapshotsRequest, _: Any) -> snapshots_pb2.ListSnapshotsReply:
        found = await self._handler.list_snapshots(to_str(request.path))
        return snapshots_pb2.ListSnapshotsReply(snapshots=[_snapshot(one) for one in found])

    async def Delete(self, request: snapshots_pb2.DeleteSnapshotRequest, _: Any) -> snapshots_pb2.DeleteSnapshotReply:
        await self._handler.delete_snapshot(request.operation_id, to_str(request.path), to_str(request.name))
        return snapshots_pb2.DeleteSnapshotReply()

    async def Diff(self, request: snapshots_pb2.DiffSnapshotsRequest, _: Any) -> AsyncGenerator[snapshots_pb2.DiffSnapshotsReply]:
        parts = self._handler.diff(to_str(request.path), to_str(request.name), to_str(request.other))
        async with closing(parts):
            async for part in parts:
                yield snapshots_pb2.DiffSnapshotsReply(
                    differences=[snapshots_pb2.Difference(path=to_bytes(one.path), what=one.what, size=one.size) for one in part]
                )


class SnapshotsStub:
    """The master's snapshots at the other end of a channel; methods are those of the handler. `timeout_s` bounds each call."""

    def __init__(self, channel: RpcChannel, *, timeout_s: float = 30.0) -> None:
        make: Any = snapshots_pb2_grpc
        self._channel = channel
        self._timeout_s = timeout_s
        channel.add_stub("Snapshots", make.SnapshotsStub)

    async def _call(self, name: str, request: Any) -> Any:
        method = Method(self._channel, "master", "Snapshots", name)
        return await call_unary(method, request, self._timeout_s, repeat_s=self._timeout_s)

    async def create_snapshot(self, operation_id: str, path: str, name: str) -> Snapshot:
        request = snapshots_pb2.CreateSnapshotRequest(operation_id=operation_id, path=to_bytes(path), name=to_bytes(name))
        return _to_snapshot(await self._call("Create", request))

    async def list_snapshots(self, path: str) -> list[Snapshot]:
        reply = await self._call("List", snapshots_pb2.ListSnapshotsRequest(path=to_bytes(path)))
        return [_to_snapshot(one) for one in reply.snapshots]

    async def delete_snapshot(self, operation_id: str, path: str, name: str) -> None:
        request = snapshots_pb2.DeleteSnapshotRequest(operation_id=operation_id, path=to_bytes(path), name=to_bytes(name))
        await self._call("Delete", request)

    async def diff(self, path: str, name: str, other: str) -> AsyncGenerator[list[Difference]]:
        request = snapshots_pb2.DiffSnapshotsRequest(path=to_bytes(path), name=to_bytes(name), other=to_bytes(other))
        method = Method(self._channel, "master", "Snapshots", "Diff")
        parts = repeat_stream(lambda: call_stream(method, request, 0.0, _to_differences), self._timeout_s)
        async with closing(parts):
            async for part in parts:
                yield part


def _snapshot(value: Snapshot) -> snapshots_pb2.Snapshot:
    return snapshots_pb2.Snapshot(
        path=to_bytes(value.path),
        name=to_bytes(value.name),
        created_ns=value.created_ns,
        unlisted=value.unlisted,
        old_versions=value.old_versions,
    )


def _to_snapshot(message: snapshots_pb2.Snapshot) -> Snapshot:
    # A master of another release may say nothing of it, or a word that is not known here.
    told = message.old_versions if message.old_versions in set(OldVersions) else OldVersions.UNKNOWN
    return Snapshot(to_str(message.path), to_str(message.name), message.created_ns, message.unlisted, OldVersions(told))


def _to_differences(message: snapshots_pb2.DiffSnapshotsReply) -> list[Difference]:
    return [Difference(to_str(one.path), one.what, one.size) for one in message.differences]
