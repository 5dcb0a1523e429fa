"""The trash over the wire: both ends of the service Trash in our own types.

Owns the handler's Protocol, the servicer and the stub. Rule of concurrency: as in master_servicer and master_stub.
"""

import uuid
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio

from alluxio_like.rpc.channel import Method, RpcChannel, call_unary
from alluxio_like.rpc.v1 import trash_pb2, trash_pb2_grpc
from alluxio_like.types import to_bytes, to_str

_LONG_S = 600.0


@dataclass(frozen=True, slots=True)
class Thrown:
    """Something in the trash: its name there, and where it was."""

    entry: str
    path: str
    size: int
    removed_ns: int
    expires_ns: int


@dataclass(frozen=True, slots=True)
class TrashSetting:
    """A directory below which is kept what is removed."""

    path: str
    keep_s: float


@dataclass(frozen=True, slots=True)
class TrashPage:
    """What is in the trash, the oldest first (`more`: there are others), and the settings."""

    entries: tuple[Thrown, ...]
    more: bool = False
    settings: tuple[TrashSetting, ...] = ()


class TrashHandler(Protocol):
    """Paths are absolute; all raise NotFound and NotADirectory for them."""

    async def keep(self, operation_id: str, path: str, keep_s: float) -> None: ...

    async def stop_keeping(self, operation_id: str, path: str) -> None: ...

    async def list_trash(self, path: str, limit: int) -> TrashPage:
        """What was removed below a path; "": anywhere."""
        ...

    async def restore(self, operation_id: str, entry: str) -> str:
        """Where it is now; `entry` is a name in the trash, or a path."""
        ...

    async def empty(self, path: str) -> int: ...


def add_trash_service(server: grpc.aio.Server, handler: TrashHandler) -> None:
    """Make a server (see rpc.server) answer with this handler."""
    add: Any = trash_pb2_grpc
    add.add_TrashServicer_to_server(_Trash(handler), server)


class _Trash:
    def __init__(self, handler: TrashHandler) -> None:
        self._handler = handler

    async def Keep(self, request: trash_pb2.KeepRequest, _: Any) -> trash_pb2.KeepReply:
        await self._handler.keep(request.operation_id, to_str(request.path), request.keep_s)
        return trash_pb2.KeepReply()

    async def StopKeeping(self, request: trash_pb2.StopKeepingRequest, _: Any) -> trash_pb2.StopKeepingReply:
        await self._handler.stop_keeping(request.operation_id, to_str(request.path))
        return trash_pb2.StopKeepingReply()

    async def List(self, request: trash_pb2.ListTrashRequest, _: Any) -> trash_pb2.ListTrashReply:
        page = await self._handler.list_trash(to_str(request.path), request.limit)
        return trash_pb2.ListTrashReply(
            entries=[
                trash_pb2.Thrown(
                    entry=to_bytes(one.entry),
                    path=to_bytes(one.path),
                    size=one.size,
                    removed_ns=one.removed_ns,
                    expires_ns=one.expires_ns,
                )
                for one in page.entries
            ],
            more=page.more,
            settings=[trash_pb2.TrashSetting(path=to_bytes(one.path), keep_s=one.keep_s) for one in page.settings],
        )

    async def Restore(self, request: trash_pb2.RestoreThrownRequest, _: Any) -> trash_pb2.RestoreThrownReply:
        path = await self._handler.restore(request.operation_id, to_str(request.entry))
        return trash_pb2.RestoreThrownReply(path=to_bytes(path))

    async def Empty(self, request: trash_pb2.EmptyRequest, _: Any) -> trash_pb2.EmptyReply:
        return trash_pb2.EmptyReply(files=await self._handler.empty(to_str(request.path)))


class TrashStub:
    """The master's trash at the other end of a channel. `timeout_s` bounds each call. An empty operation id is made up."""

    def __init__(self, channel: RpcChannel, *, timeout_s: float = 30.0) -> None:
        make: Any = trash_pb2_grpc
        self._channel = channel
        self._timeout_s = timeout_s
        channel.add_stub("Trash", make.TrashStub)

    async def _call(self, name: str, request: Any, timeout_s: float | None = None) -> Any:
        method = Method(self._channel, "master", "Trash", name)
        return await call_unary(method, request, timeout_s or self._timeout_s, repeat_s=self._timeout_s)

    async def keep(self, path: str, keep_s: float, *, operation_id: str = "") -> None:
        """Keep what is removed below a directory for so long, from now on. Raises ReadOnly, AlreadyExists, InvalidArgument."""
        request = trash_pb2.KeepRequest(operation_id=operation_id or uuid.uuid4().hex, path=to_bytes(path), keep_s=keep_s)
        await self._call("Keep", request)

    async def stop_keeping(self, path: str, *, operation_id: str = "") -> None:
        """Take a directory's setting away. Raises NotFound (it has none)."""
        request = trash_pb2.StopKeepingRequest(operation_id=operation_id or uuid.uuid4().hex, path=to_bytes(path))
        await self._call("StopKeeping", request)

    async def list(self, path: str = "", limit: int = 0) -> TrashPage:
        """What was removed below a path; "": anywhere."""
        reply = await self._call("List", trash_pb2.ListTrashRequest(path=to_bytes(path), limit=limit))
        entries = [Thrown(to_str(one.entry), to_str(one.path), one.size, one.removed_ns, one.expires_ns) for one in reply.entries]
        settings = [TrashSetting(to_str(one.path), one.keep_s) for one in reply.settings]
        return TrashPage(tuple(entries), reply.more, tuple(settings))

    async def restore(self, entry: str, *, operation_id: str = "") -> str:
        """Give something its name back, by its name in the trash or its path; its path. Raises AlreadyExists, NotFound."""
        request = trash_pb2.RestoreThrownRequest(operation_id=operation_id or uuid.uuid4().hex, entry=to_bytes(entry))
        return to_str((await self._call("Restore", request)).path)

    async def empty(self, path: str) -> int:
        """End what was removed below a path; how many files."""
        return int((await self._call("Empty", trash_pb2.EmptyRequest(path=to_bytes(path)), _LONG_S)).files)
