"""Messages between two processes of one machine, over a unix socket: what a call of one request and one reply is made of.

Owns the framing and one end of a connection. What the messages are for is local_link.py's (who calls) and local_server.py's (who
answers). Rule of concurrency: one event loop, which also does the sending and receiving; nothing here waits.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import IntEnum

_HEAD = struct.Struct("<IQB")
_CALL = struct.Struct("<dHH")
_RECEIVE_BYTES = 64 << 10
MAX_BYTES = 64 << 20
"""Longer than any message of ours, as in channel.py."""


class Kind(IntEnum):
    """What a message is; the numbers are those of the wire."""

    CALL = 1
    CANCEL = 2
    REPLY = 3
    ERROR = 4
    PING = 5
    PONG = 6


def make_name(address: str) -> str:
    """Where the server that is bound to host:port takes such calls: a name that belongs, as the port does, to one process of a
    network namespace, and goes with it."""
    return f"\0alluxio-like/calls/{address}"


def pack_call(method: str, metadata: tuple[tuple[str, str], ...], timeout_s: float, request: bytes) -> bytes:
    """The body of a CALL; no timeout: 0."""
    path = method.encode()
    said = "\0".join(text for pair in metadata for text in pair).encode()
    return b"".join((_CALL.pack(timeout_s, len(path), len(said)), path, said, request))


def unpack_call(body: bytes) -> tuple[str, tuple[tuple[str, str], ...], float, bytes]:
    """What `pack_call` was given. Raises ValueError."""
    try:
        timeout_s, path_bytes, said_bytes = _CALL.unpack_from(body)
    except struct.error as error:
        raise ValueError("a call without a head") from error
    said_at = _CALL.size + path_bytes
    texts = body[said_at : said_at + said_bytes].decode().split("\0") if said_bytes else []
    metadata = tuple(zip(texts[::2], texts[1::2], strict=True))
    return body[_CALL.size : said_at].decode(), metadata, timeout_s, body[said_at + said_bytes :]


class Wire:
    """One end. `on_message` gets call id, kind and body of each message; `on_closed` is called once, when the other end has gone
    or says what is no message."""

    def __init__(
        self, connection: socket.socket, on_message: Callable[[int, int, bytes], None], on_closed: Callable[[], None]
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._waiting = bytearray()
        self._closed = False
        self._loop.add_reader(connection.fileno(), self._receive)

    def send(self, call_id: int, kind: Kind, body: bytes = b"") -> None:
        """Send a message; what does not fit is sent as soon as the other end takes it. Nothing happens once it is closed."""
        if self._closed:
            return
        message = _HEAD.pack(len(body), call_id, kind) + body
        if self._waiting:
            self._waiting += message
            return
        sent = self._try_send(message)
        if 0 <= sent < len(message):
            self._waiting += memoryview(message)[sent:]
            self._loop.add_writer(self._socket.fileno(), self._send_waiting)

    def close(self) -> None:
        """May be called twice. `on_closed` is not called for it."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def _end(self) -> None:
        if not self._closed:
            self.close()
            self._on_closed()

    def _try_send(self, data: bytes | memoryview) -> int:
        """How many bytes were taken; -1: the other end has gone."""
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            # Told from the loop: who sends is in the midst of something.
            self._loop.call_soon(self._end)
            return -1

    def _send_waiting(self) -> None:
        with memoryview(self._waiting) as view:
            sent = self._try_send(view)
        if sent > 0:
            del self._waiting[:sent]
        if not self._waiting and not self._closed:
            self._loop.remove_writer(self._socket.fileno())

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        received = self._received
        received += data
        at = 0
        while len(received) - at >= _HEAD.size and not self._closed:
            length, call_id, kind = _HEAD.unpack_from(received, at)
            if length > MAX_BYTES:
                self._end()
                return
            stop = at + _HEAD.size + length
            if len(received) < stop:
                break
            self._on_message(call_id, kind, bytes(memoryview(received)[at + _HEAD.size : stop]))
            at = stop
        del received[:at]
