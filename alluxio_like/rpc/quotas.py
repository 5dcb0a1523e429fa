"""Quotas over the wire: both ends of the service Quotas in our own types.

Owns the handler's Protocol, the servicer and the stub. Rule of concurrency: as in master_servicer and master_stub.
"""

import uuid
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio

from alluxio_like.rpc.channel import Method, RpcChannel, call_unary
from alluxio_like.rpc.v1 import quotas_pb2, quotas_pb2_grpc
from alluxio_like.types import InodeId, to_bytes, to_str

_QUICK_S = 2.0


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of a directory (None: none) and what was counted below it. `counting`: not all that is known there yet."""

    path: str
    max_bytes: int | None
    max_files: int | None
    used_bytes: int = 0
    used_files: int = 0
    counting: bool = False


@dataclass(frozen=True, slots=True)
class Claimed:
    """The size that a file may grow to (None: no quota limits it). `has_quotas`: there are quotas somewhere."""

    size: int | None
    has_quotas: bool = True


class QuotasHandler(Protocol):
    """Paths are absolute; all raise NotFound and NotADirectory for them."""

    async def set_quota(self, operation_id: str, path: str, max_bytes: int | None, max_files: int | None) -> Quota: ...

    async def clear_quota(self, operation_id: str, path: str) -> None: ...

    async def claim(self, inode: InodeId, size: int, *, only_asks: bool = False) -> Claimed:
        """The size up to `size` that a file may grow to, reserved for a while unless `only_asks`."""
        ...

    async def list_quotas(self, path: str) -> list[Quota]:
        """Those that hold at a path; "": all there are."""
        ...


def add_quotas_service(server: grpc.aio.Server, handler: QuotasHandler) -> None:
    """Make a server (see rpc.server) answer with this handler."""
    add: Any = quotas_pb2_grpc
    add.add_QuotasServicer_to_server(_Quotas(handler), server)


class _Quotas:
    def __init__(self, handler: QuotasHandler) -> None:
        self._handler = handler

    async def Set(self, request: quotas_pb2.SetQuotaRequest, _: Any) -> quotas_pb2.Quota:
        max_bytes = request.max_bytes if request.HasField("max_bytes") else None
        max_files = request.max_files if request.HasField("max_files") else None
        return _quota(await self._handler.set_quota(request.operation_id, to_str(request.path), max_bytes, max_files))

    async def Clear(self, request: quotas_pb2.ClearQuotaRequest, _: Any) -> quotas_pb2.ClearQuotaReply:
        await self._handler.clear_quota(request.operation_id, to_str(request.path))
        return quotas_pb2.ClearQuotaReply()

    async def Claim(self, request: quotas_pb2.ClaimRequest, _: Any) -> quotas_pb2.ClaimReply:
        claimed = await self._handler.claim(InodeId(request.inode), request.size, only_asks=request.only_asks)
        return quotas_pb2.ClaimReply(size=claimed.size, has_quotas=claimed.has_quotas)

    async def List(self, request: quotas_pb2.ListQuotasRequest, _: Any) -> quotas_pb2.ListQuotasReply:
        found = await self._handler.list_quotas(to_str(request.path))
        return quotas_pb2.ListQuotasReply(quotas=[_quota(one) for one in found])


class QuotasStub:
    """The master's quotas at the other end of a channel. `timeout_s` bounds each call. An empty operation id is made up."""

    def __init__(self, channel: RpcChannel, *, timeout_s: float = 30.0) -> None:
        make: Any = quotas_pb2_grpc
        self._channel = channel
        self._timeout_s = timeout_s
        channel.add_stub("Quotas", make.QuotasStub)

    async def _call(self, name: str, request: Any) -> Any:
        method = Method(self._channel, "master", "Quotas", name)
        return await call_unary(method, request, self._timeout_s, repeat_s=self._timeout_s)

    async def set_quota(self, path: str, max_bytes: int | None, max_files: int | None, *, operation_id: str = "") -> Quota:
        """Give a directory a quota, or another one. Raises ReadOnly, InvalidArgument."""
        request = quotas_pb2.SetQuotaRequest(
            operation_id=operation_id or uuid.uuid4().hex, path=to_bytes(path), max_bytes=max_bytes, max_files=max_files
        )
        return _to_quota(await self._call("Set", request))

    async def clear_quota(self, path: str, *, operation_id: str = "") -> None:
        """Take a directory's quota away. Raises NotFound (it has none)."""
        request = quotas_pb2.ClearQuotaRequest(operation_id=operation_id or uuid.uuid4().hex, path=to_bytes(path))
        await self._call("Clear", request)

    async def claim(self, inode: InodeId, size: int, *, only_asks: bool = False) -> Claimed:
        """The size up to `size` that a file may grow to, reserved for a while unless `only_asks`."""
        request = quotas_pb2.ClaimRequest(inode=inode, size=size, only_asks=only_asks)
        if only_asks:
            # (Who opens a file does not wait for a master that is away.)
            method = Method(self._channel, "master", "Quotas", "Claim")
            reply = await call_unary(method, request, min(_QUICK_S, self._timeout_s), repeat_s=0.0)
        else:
            reply = await self._call("Claim", request)
        return Claimed(reply.size if reply.HasField("size") else None, reply.has_quotas)

    async def list_quotas(self, path: str = "") -> list[Quota]:
        """Those that hold at a path; "": all there are."""
        reply = await self._call("List", quotas_pb2.ListQuotasRequest(path=to_bytes(path)))
        return [_to_quota(one) for one in reply.quotas]


def _quota(value: Quota) -> quotas_pb2.Quota:
    return quotas_pb2.Quota(
        path=to_bytes(value.path),
        max_bytes=value.max_bytes,
        max_files=value.max_files,
        used_bytes=value.used_bytes,
        used_files=value.used_files,
        counting=value.counting,
    )


def _to_quota(message: quotas_pb2.Quota) -> Quota:
    return Quota(
        to_str(message.path),
        message.max_bytes if message.HasField("max_bytes") else None,
        message.max_files if message.HasField("max_files") else None,
        message.used_bytes,
        message.used_files,
        message.counting,
    )
