"""Calls of a service on the same machine, over a unix socket: what a call by gRPC costs, both ends of it, is a multiple.

Owns one connection to one server, made when first wanted, and the calls on it. Whom it connects to the kernel says: the name is
that of the address, and the process behind it is to be this user's or root's, because it is shown the token. Where there is
nobody the caller uses gRPC, as it does for all calls but those of one request and one reply. Rule of concurrency: one event loop.
"""

import asyncio
import itertools
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from alluxio_like.errors import AlluxioLikeError, Cancelled, Internal, TimedOut, Unavailable
from alluxio_like.rpc import status
from alluxio_like.rpc.local_wire import Kind, Wire, make_name, pack_call

_RETRY_S = 1.0
"""Where nobody was there it is looked again after so long."""
_QUIET_S = 10.0
_PONG_S = 5.0
"""A server that says nothing for so long while calls are under way is asked whether it lives, and given up when it does not
answer: as with gRPC's keepalive (channel.py)."""


@dataclass(frozen=True, slots=True)
class LocalMethod:
    """A method of one request and one reply, as a generated stub describes it."""

    path: str
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]


class MethodFinder:
    """Stands in for a channel where a generated stub is made: its attributes are LocalMethods then, and None for streams."""

    def unary_unary(
        self, path: str, request_serializer: Callable[[Any], bytes], response_deserializer: Callable[[bytes], Any], **_: Any
    ) -> LocalMethod:
        return LocalMethod(path, request_serializer, response_deserializer)

    def _find_none(self, *_: Any, **__: Any) -> None:
        return None

    unary_stream = stream_unary = stream_stream = _find_none


class LocalLink:
    """The connection to the server at an address, if that is on this machine."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._wire: Wire | None = None
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._ids = itertools.count(1)
        self._retry_s = 0.0
        self._closed = False
        self._watch: asyncio.TimerHandle | None = None
        self._heard_s = 0.0

    def try_connect(self) -> bool:
        """Whether calls can be made now. Does not wait."""
        if self._wire is not None:
            return True
        now_s = asyncio.get_running_loop().time()
        if self._closed or now_s < self._retry_s:
            return False
        connection = _connect(self._address)
        if connection is None:
            self._retry_s = now_s + _RETRY_S
            return False
        self._wire = Wire(connection, self._take, self._lose)
        return True

    async def call(
        self, method: LocalMethod, request: Any, metadata: tuple[tuple[str, str], ...], timeout_s: float | None, target: str
    ) -> Any:
        """One call, after `try_connect`. Raises what the service says, TimedOut, Unavailable (it has gone), Cancelled (this was
        closed)."""
        assert self._wire is not None
        loop = asyncio.get_running_loop()
        call_id = next(self._ids)
        body = pack_call(method.path, metadata, timeout_s or 0.0, method.serialize(request))
        answer: asyncio.Future[bytes] = loop.create_future()
        if not self._calls:
            self._heard_s = loop.time()
        self._calls[call_id] = answer
        self._begin_watch(loop)
        self._wire.send(call_id, Kind.CALL, body)
        timer = None if timeout_s is None else loop.call_later(timeout_s, _fail, answer, TimedOut("no answer in time"))
        try:
            reply = await answer
        except _LostError:
            raise Unavailable(f"{target} cannot be reached") from None
        except TimedOut:
            if call_id in self._calls:
                raise TimedOut(f"{target} did not answer in time") from None
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if self._calls.pop(call_id, None) is not None and self._wire is not None:
                self._wire.send(call_id, Kind.CANCEL)
        try:
            return method.deserialize(reply)
        except DecodeError as error:
            raise Internal(f"{target} gave an answer that is none: is it of another release?") from error

    def close(self) -> None:
        """Calls under way end with Cancelled. May be called twice."""
        self._closed = True
        self._drop(Cancelled(f"the channel to {self._address} was closed"))

    def _take(self, call_id: int, kind: int, body: bytes) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        answer = self._calls.pop(call_id, None)
        if answer is None or answer.done():
            return
        if kind == Kind.REPLY:
            answer.set_result(body)
            return
        try:
            error = status.decode_error(body)
        except DecodeError:
            error = Internal(f"what {self._address} says of its error cannot be read: is it of another release?")
        answer.set_exception(error)

    def _lose(self) -> None:
        self._drop(_LostError())

    def _drop(self, error: AlluxioLikeError) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            _fail(answer, error)

    # Whether it lives

    def _begin_watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._watch is None:
            self._watch = loop.call_later(_QUIET_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watch = None
        if self._wire is None or not self._calls:
            return
        quiet_s = loop.time() - self._heard_s
        if quiet_s >= _QUIET_S + _PONG_S:
            self._lose()
            return
        if quiet_s >= _QUIET_S:
            self._wire.send(0, Kind.PING)
        self._watch = loop.call_later(_PONG_S if quiet_s >= _QUIET_S else _QUIET_S - quiet_s, self._look, loop)


class _LostError(AlluxioLikeError):
    """The server has gone before it answered."""


def _fail(answer: "asyncio.Future[bytes]", error: AlluxioLikeError) -> None:
    if not answer.done():
        answer.set_exception(error)


def _connect(address: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        connection.connect(make_name(address))
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        if uid in {0, os.geteuid()}:
            return connection
    except OSError:
        pass  # nobody is there, or is too busy to say so
    connection.close()
    return None
