"""Locks over the wire: both ends of the service Locks in our own types.

Owns the handler's Protocol, the servicer and the stub. What a lock means is alluxio_like/locks.py's. Rule of concurrency: as in
master_servicer and master_stub.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import grpc.aio

from alluxio_like.locks import Lock, LockKind, Owner, Place
from alluxio_like.rpc.channel import Method, RpcChannel, call_unary
from alluxio_like.rpc.v1 import locks_pb2, locks_pb2_grpc
from alluxio_like.types import InodeId

_ANSWER_S = 5.0
"""Beyond the time that a wait may take."""


class PlacedLock(NamedTuple):
    """A lock and the file that it is on."""

    place: Place
    lock: Lock


@dataclass(frozen=True, slots=True)
class Attached:
    """All locks of a mount; `lost`: claimed in vain."""

    locks: tuple[PlacedLock, ...]
    lost: tuple[PlacedLock, ...] = ()


@dataclass(frozen=True, slots=True)
class LockAnswer:
    """`conflict` None: it is set, or could be; unless `wait_s`: nobody gets a lock yet, ask again after so long."""

    conflict: Lock | None = None
    wait_s: float = 0.0


class LocksHandler(Protocol):
    """What the master answers. The caller's lease (rpc.context) must be that of the client attached to the holder: else
    Unavailable, attach first."""

    async def attach(self, holder: str, locks: Sequence[PlacedLock]) -> Attached: ...

    async def set(self, place: Place, lock: Lock) -> LockAnswer: ...

    async def test(self, place: Place, lock: Lock) -> LockAnswer: ...

    async def wait(self, place: Place, lock: Lock, wait_s: float) -> bool:
        """Whether it could be had now; False when the time is over. Raises Conflict: a deadlock."""
        ...

    async def drop(self, place: Place, owner: Owner) -> None: ...


def add_locks_service(server: grpc.aio.Server, handler: LocksHandler) -> None:
    """Make a server (see rpc.server) answer with this handler."""
    add: Any = locks_pb2_grpc
    add.add_LocksServicer_to_server(_Locks(handler), server)


class _Locks:
    def __init__(self, handler: LocksHandler) -> None:
        self._handler = handler

    async def Attach(self, request: locks_pb2.AttachLocksRequest, _: Any) -> locks_pb2.AttachLocksReply:
        known = [_to_placed(one, request.holder) for one in request.locks]
        attached = await self._handler.attach(request.holder, known)
        return locks_pb2.AttachLocksReply(
            locks=[_file_lock(*one) for one in attached.locks], lost=[_file_lock(*one) for one in attached.lost]
        )

    async def Set(self, request: locks_pb2.SetLockRequest, _: Any) -> locks_pb2.SetLockReply:
        place, lock = _to_placed(request.lock, request.holder)
        return _reply(place, await self._handler.set(place, lock))

    async def Test(self, request: locks_pb2.SetLockRequest, _: Any) -> locks_pb2.SetLockReply:
        place, lock = _to_placed(request.lock, request.holder)
        return _reply(place, await self._handler.test(place, lock))

    async def Wait(self, request: locks_pb2.WaitLockRequest, _: Any) -> locks_pb2.WaitLockReply:
        place, lock = _to_placed(request.lock, request.holder)
        return locks_pb2.WaitLockReply(free=await self._handler.wait(place, lock, request.wait_s))

    async def Drop(self, request: locks_pb2.DropLocksRequest, _: Any) -> locks_pb2.DropLocksReply:
        place = Place(InodeId(request.inode), request.whole)
        await self._handler.drop(place, Owner(request.holder, request.owner))
        return locks_pb2.DropLocksReply()


class LocksStub:
    """The master's locks at the other end of a channel, for one mount (`holder`). `timeout_s` bounds each call."""

    def __init__(self, channel: RpcChannel, holder: str, *, timeout_s: float = 30.0) -> None:
        make: Any = locks_pb2_grpc
        self._channel = channel
        self._holder = holder
        self._timeout_s = timeout_s
        channel.add_stub("Locks", make.LocksStub)

    async def _call(self, name: str, request: Any, more_s: float = 0.0) -> Any:
        method = Method(self._channel, "master", "Locks", name)
        return await call_unary(method, request, self._timeout_s + more_s, repeat_s=self._timeout_s)

    async def attach(self, locks: Sequence[PlacedLock]) -> Attached:
        request = locks_pb2.AttachLocksRequest(holder=self._holder, locks=[_file_lock(*one) for one in locks])
        reply = await self._call("Attach", request)
        return Attached(
            tuple(_to_placed(one, self._holder) for one in reply.locks),
            tuple(_to_placed(one, self._holder) for one in reply.lost),
        )

    async def set(self, place: Place, lock: Lock) -> LockAnswer:
        return _to_answer(await self._call("Set", self._make_set(place, lock)))

    async def test(self, place: Place, lock: Lock) -> LockAnswer:
        return _to_answer(await self._call("Test", self._make_set(place, lock)))

    def _make_set(self, place: Place, lock: Lock) -> locks_pb2.SetLockRequest:
        return locks_pb2.SetLockRequest(holder=self._holder, lock=_file_lock(place, lock))

    async def wait(self, place: Place, lock: Lock, wait_s: float) -> bool:
        request = locks_pb2.WaitLockRequest(holder=self._holder, lock=_file_lock(place, lock), wait_s=wait_s)
        return bool((await self._call("Wait", request, wait_s + _ANSWER_S)).free)

    async def drop(self, place: Place, number: int) -> None:
        request = locks_pb2.DropLocksRequest(holder=self._holder, inode=place.inode, whole=place.whole, owner=number)
        await self._call("Drop", request)


def _file_lock(place: Place, lock: Lock) -> locks_pb2.FileLock:
    return locks_pb2.FileLock(
        inode=place.inode,
        whole=place.whole,
        owner=lock.owner.number,
        kind=int(lock.kind),  # type: ignore[arg-type]
        start=lock.start,
        end=lock.end,
        pid=lock.pid,
        holder=lock.owner.holder,
    )


def _to_placed(message: locks_pb2.FileLock, holder: str) -> PlacedLock:
    place = Place(InodeId(message.inode), message.whole)
    owner = Owner(holder, message.owner)
    return PlacedLock(place, Lock(owner, LockKind(message.kind), message.start, message.end, message.pid))


def _reply(place: Place, answer: LockAnswer) -> locks_pb2.SetLockReply:
    conflict = None if answer.conflict is None else _file_lock(place, answer.conflict)
    return locks_pb2.SetLockReply(conflict=conflict, wait_s=answer.wait_s)


def _to_answer(message: locks_pb2.SetLockReply) -> LockAnswer:
    conflict = _to_placed(message.conflict, message.conflict.holder).lock if message.HasField("conflict") else None
    return LockAnswer(conflict, message.wait_s)
