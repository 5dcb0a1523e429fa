"""Answers calls of processes on the same machine, over a unix socket: the other end of local_link.py.

Owns the socket and its connections. The methods are those of the gRPC server beside it, with the same handlers behind the same
guard. Rule of concurrency: one event loop; each call is a task.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from alluxio_like.errors import AlluxioLikeError, Cancelled, Internal, Unsupported
from alluxio_like.rpc import status
from alluxio_like.rpc.local_wire import Kind, Wire, make_name, unpack_call

_LOG = logging.getLogger(__name__)
_MAX_CONNECTIONS = 4096


@dataclass(frozen=True, slots=True)
class Answerer:
    """What answers a method of one request and one reply."""

    deserialize: Callable[[bytes], Any]
    answer: Callable[[Any, Any], Awaitable[Any]]
    serialize: Callable[[Any], bytes]


class _Aborted(Exception):
    """Ends a handler whose call has failed; `detail` is the error, encoded."""

    def __init__(self, detail: bytes) -> None:
        super().__init__()
        self.detail = detail


class _Context:
    """What a handler may ask of its call, as of gRPC's."""

    def __init__(self, metadata: tuple[tuple[str, str], ...], timeout_s: float) -> None:
        self._metadata = metadata
        self._deadline_s = time.monotonic() + timeout_s if timeout_s else None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    async def abort(self, _code: Any, text: str, trailing: tuple[tuple[str, bytes], ...] = ()) -> NoReturn:
        for key, value in trailing:
            if key == status.ERROR_KEY:
                raise _Aborted(value)
        raise _Aborted(status.encode_error(Internal(text)))


class LocalServer:
    """Bound when made, under the names of `addresses`; answers from `start` on. `methods` by their paths: may grow until then."""

    def __init__(self, methods: dict[str, Answerer]) -> None:
        self._methods = methods
        self._listeners: list[socket.socket] = []
        self._connections: set[_Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def bind(self, address: str) -> None:
        """Take calls for host:port. A name that is taken is left to who has it: callers use gRPC then."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            listener.bind(make_name(address))
        except OSError as error:
            listener.close()
            _LOG.info("calls of this machine come by gRPC alone: %s", error.strerror)
            return
        self._listeners.append(listener)

    def start(self) -> None:
        """Answer."""
        for listener in self._listeners:
            listener.listen(128)
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    async def stop(self, grace_s: float) -> None:
        """Let calls end within `grace_s`, cancel the rest, close all. May be called twice."""
        self._closed = True
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners = []
        tasks = [task for connection in self._connections for task in connection.calls.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        connections, self._connections = self._connections, set()
        for connection in connections:
            connection.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if len(self._connections) >= _MAX_CONNECTIONS:
            connection.close()
            return
        self._connections.add(_Connection(connection, self._methods, self._connections.discard))


class _Connection:
    """One caller."""

    def __init__(
        self, connection: socket.socket, methods: dict[str, Answerer], on_closed: "Callable[[_Connection], None]"
    ) -> None:
        self._methods = methods
        self._on_closed = on_closed
        self.calls: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._wire = Wire(connection, self._take, self._lose)

    def close(self) -> None:
        """Calls under way are cancelled."""
        self._wire.close()
        for task in list(self.calls.values()):
            task.cancel()

    def _lose(self) -> None:
        self._on_closed(self)
        self.close()

    def _take(self, call_id: int, kind: int, body: bytes) -> None:
        if kind == Kind.CALL:
            task = self._loop.create_task(self._serve(call_id, body))
            self.calls[call_id] = task
            # (One that is cancelled before it has begun never gets to its own end.)
            task.add_done_callback(lambda _: self.calls.pop(call_id, None))
        elif kind == Kind.CANCEL:
            if (task_to_end := self.calls.get(call_id)) is not None:
                task_to_end.cancel()
        elif kind == Kind.PING:
            self._wire.send(call_id, Kind.PONG)

    async def _serve(self, call_id: int, body: bytes) -> None:
        try:
            kind, answer = await self._answer(body)
        except asyncio.CancelledError:
            # By its caller, who does not wait any more, or because this server stops.
            kind, answer = Kind.ERROR, status.encode_error(Cancelled("the service has ended the call"))
            raise
        finally:
            self._wire.send(call_id, kind, answer)

    async def _answer(self, body: bytes) -> tuple[Kind, bytes]:
        failure: AlluxioLikeError
        try:
            path, metadata, timeout_s, request = unpack_call(body)
            method = self._methods.get(path)
            if method is None:
                raise Unsupported(f"no such method here: {path}")
            reply = await method.answer(method.deserialize(request), _Context(metadata, timeout_s))
            return Kind.REPLY, method.serialize(reply)
        except _Aborted as aborted:
            return Kind.ERROR, aborted.detail
        except AlluxioLikeError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 (the last place where one can be caught; it is logged)
            _LOG.exception("a call failed in a way nobody foresaw")
            failure = Internal(f"{type(error).__name__} while serving a call: see the service's log")
        return Kind.ERROR, status.encode_error(failure)
