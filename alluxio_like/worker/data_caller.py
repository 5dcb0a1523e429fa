"""The server's end of one data connection: its greeting, its calls, and the answers on their way.

Owns the socket, the reads and fills under way for it, and when a thread has its outbox. Asks the server (data_server.py) what
the answer
is. Rule of concurrency: one event loop; while `_sending` is set a thread has the outbox, and the socket is not closed before it
is done.
"""

import asyncio
import contextlib
import hmac
import logging
import socket
from typing import TYPE_CHECKING

from alluxio_like import errors
from alluxio_like.rpc import data_wire as wire
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import PAGE_BYTES, FileRef, get_pages
from alluxio_like.waits import NONE, Waits, subtract
from alluxio_like.worker.data_outbox import FileLost, Frame, Outbox, Sent

if TYPE_CHECKING:
    from alluxio_like.worker.data_server import DataServer

_LOG = logging.getLogger(__name__)

_QUEUED_BYTES = 8 << 20
"""In memory for one connection, before reads that go to the store wait for it."""
_QUEUED_FRAMES = 512
"""Beyond this no further calls of a connection are read."""
_HELLO_S = 10.0
_CALLS_BYTES = 64 << 10
_TOLD_S = 0.001
"""Less waiting than this is told with the next bytes."""


class Caller:
    """One connection; it belongs to `server`."""

    def __init__(self, server: "DataServer", sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(sock)
        self._calls = bytearray()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._greeted = False
        self._closing = False
        self._reading = True
        self._sending = False
        """A thread has the outbox."""
        self._waiting = False
        """The socket takes no more: the loop tells when it does."""
        self._counted = 0
        self._room: list[asyncio.Future[None]] = []
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(_HELLO_S, self.close)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def close(self) -> None:
        """End it; the socket itself is closed once no thread uses it. May be called twice."""
        if self._closing:
            return
        self._closing = True
        if self._reading:
            self._loop.remove_reader(self._sock.fileno())
        if self._waiting:
            self._loop.remove_writer(self._sock.fileno())
        self._stop_timer()
        for task in self._tasks.values():
            task.cancel()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._wake()
        if not self._sending:
            self._finish()

    async def wait_closed(self) -> None:
        """Return when no thread uses the socket and no task is left."""
        if self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await asyncio.shield(self._closed)

    def _finish(self) -> None:
        self._outbox.clear()
        self._sock.close()
        if not self._closed.done():
            self._closed.set_result(None)
        self._server.forget(self)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    # What comes.

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(_CALLS_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._calls += data
        try:
            if self._greeted or self._greet():
                self._parse()
        except wire.Malformed as error:
            _LOG.warning("a data connection was closed: %s", error)
            self.close()

    def _greet(self) -> bool:
        """The beginning of a connection. True: it is through."""
        if len(self._calls) < wire.HELLO_BYTES:
            return False
        protocol, lengths = wire.parse_hello_head(self._calls[: wire.HELLO_BYTES])
        if protocol != wire.PROTOCOL:
            self._refuse(f"this worker speaks version {wire.PROTOCOL} of the data socket")
            return False
        end = wire.HELLO_BYTES + sum(lengths)
        if len(self._calls) < end:
            return False
        hello = wire.parse_hello_texts(bytes(self._calls[wire.HELLO_BYTES : end]), lengths)
        del self._calls[:end]
        server = self._server
        if hello.worker_id != server.worker_id or server.get_cluster_id() not in {None, hello.cluster_id}:
            self._refuse("another worker is at this address: ask the master for the workers anew")
            return False
        if not hmac.compare_digest(hello.nonce.encode(), server.nonce.encode()):
            self._refuse("the number shown is not the one of this worker's present start: ask the master for it anew")
            return False
        self._greeted = True
        self._stop_timer()
        self._put(Frame(0, wire.pack_welcome(), last=False))
        return True

    def _refuse(self, reason: str) -> None:
        self._put(Frame(0, wire.pack_welcome(reason), last=False))
        self.close()

    def _parse(self) -> None:
        """Take the calls that are complete."""
        position = 0
        while not self._closing and len(self._calls) - position >= wire.CALL_BYTES:
            call = wire.parse_call(self._calls, position)
            end = position + wire.CALL_BYTES + call.ref_bytes
            if len(self._calls) < end:
                break
            encoded = bytes(self._calls[position + wire.CALL_BYTES : end])
            position = end
            self._take(call, encoded)
        del self._calls[:position]
        if self._reading and len(self._outbox) + len(self._tasks) > _QUEUED_FRAMES and not self._closing:
            # Whoever asks for so much and takes nothing has to wait.
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def _take(self, call: wire.Call, encoded: bytes) -> None:
        if call.kind == wire.Kind.CANCEL:
            if self._outbox.cancel(call.request_id) and (running := self._tasks.get(call.request_id)) is not None:
                running.cancel()
            return
        ref = self._server.get_ref(encoded)
        if call.kind == wire.Kind.BAD_PAGE:
            self._server.look_at(ref, call.offset)
            return
        try:
            Priority(call.priority)
        except ValueError:
            raise wire.Malformed(f"no priority is {call.priority}") from None
        self._outbox.expect(call.request_id)
        if call.kind == wire.Kind.FILL:
            self._begin(call, ref)
            return
        frames = self._server.make_frames(call, ref)
        if frames is None:
            self._begin(call, ref)
        else:
            self._send(call, ref, frames)

    def _begin(self, call: wire.Call, ref: FileRef) -> None:
        task = self._loop.create_task(self._answer(call, ref), name="data read")
        self._tasks[call.request_id] = task
        self._server.under_way += 1
        task.add_done_callback(lambda _: self._forget(call.request_id))

    def _forget(self, request_id: int) -> None:
        self._server.under_way -= 1
        self._tasks.pop(request_id, None)

    def _send(self, call: wire.Call, ref: FileRef, frames: list[Frame]) -> None:
        for frame in frames:
            self._put(frame)
        # Behind the answer, which somebody waits for.
        if not call.cached_only:
            self._server.handler.note_read(ref, call.length)

    # What takes waiting.

    async def _answer(self, call: wire.Call, ref: FileRef) -> None:
        """Answer a read by verifying, or by the handler, which fetches what is missing."""
        failure: errors.AlluxioLikeError
        try:
            if call.kind == wire.Kind.FILL:
                await self._fill(call, ref)
                return
            if await self._server.verify_parts(call, ref):
                frames = self._server.make_frames(call, ref)
                if frames is not None:
                    self._send(call, ref, frames)
                    return
            await self._relay(call, ref)
            return
        except errors.AlluxioLikeError as error:
            failure = error
        except asyncio.CancelledError:
            if self._closing:
                return
            failure = errors.Cancelled("cancelled")
        except Exception as error:  # noqa: BLE001 (a caller must never be left waiting; it is logged)
            _LOG.exception("a data read failed in a way nobody foresaw")
            failure = errors.Internal(f"{type(error).__name__} while reading: see the worker's log", subject=ref.key)
        self._put(Frame(call.request_id, wire.pack_error(call.request_id, failure), last=True))

    async def _relay(self, call: wire.Call, ref: FileRef) -> None:
        position, end = call.offset, call.offset + call.length
        waits, told, told_s = Waits(), NONE, 0.0
        if call.ahead > call.length and not call.cached_only:
            self._server.handler.read_ahead(ref, call.offset, call.ahead, priority=Priority(call.priority))
        pieces = self._server.handler.read(
            ref, call.offset, call.length, priority=Priority(call.priority), cached_only=call.cached_only, waits=waits
        )
        try:
            async for piece in pieces:
                if waits.total_s - told_s >= _TOLD_S:
                    self._put(Frame(call.request_id, wire.pack_waited(call.request_id, subtract(waits.get(), told)), last=False))
                    told, told_s = waits.get(), waits.total_s
                last = position + len(piece) >= end
                head = wire.pack_data(call.request_id, position, len(piece), (), last=last)
                position += len(piece)
                self._put(Frame(call.request_id, head, piece, last=last))
                if not last:
                    await self._wait_room()
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]
        if position < end:
            raise errors.Internal("fewer bytes than the range has", subject=ref.key)

    async def _fill(self, call: wire.Call, ref: FileRef) -> None:
        wanted, landed = len(get_pages(call.offset, call.length, ref.size)), 0
        last = False
        fills = self._server.handler.fill(ref, call.offset, call.length, priority=Priority(call.priority))
        try:
            async for filled in fills:
                landed += sum(len(one.pages) for one in filled.present)
                last = filled.read_through or landed >= wanted
                self._put_text(wire.Kind.FILLED, call.request_id, wire.encode_filled(filled), last=last)
                if last:
                    return
        finally:
            await fills.aclose()  # type: ignore[attr-defined]
        self._put_text(wire.Kind.FILLED, call.request_id, b"", last=True)

    def _put_text(self, kind: wire.Kind, request_id: int, body: bytes, *, last: bool = False) -> None:
        self._put(Frame(request_id, wire.pack_text(kind, request_id, body, last=last), last=last))

    async def _wait_room(self) -> None:
        """Until not too much is queued in memory."""
        while self._outbox.queued_bytes > _QUEUED_BYTES and not self._closing:
            future: asyncio.Future[None] = self._loop.create_future()
            self._room.append(future)
            await future

    def _wake(self) -> None:
        waiting, self._room = self._room, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # What goes.

    def _put(self, frame: Frame) -> None:
        if self._closing:
            frame.drop()
            return
        self._outbox.put(frame)
        if not self._sending and not self._waiting:
            self._send_more()

    def _send_more(self) -> None:
        """On the loop, with no thread at it: send from memory, give files to a thread."""
        try:
            sent = self._outbox.send_now()
        except OSError:
            self._loop.call_soon(self.close)
            return
        self._note(sent)

    def _note(self, sent: Sent) -> None:
        """Go on after some was sent."""
        self._count()
        if sent is Sent.MORE:
            self._sending = True
            self._server.sends.submit(self._outbox.drain, alone=True).add_done_callback(self._on_drained)
        elif sent is Sent.BLOCKED and not self._waiting:
            self._waiting = True
            self._loop.add_writer(self._sock.fileno(), self._on_writable)
            self._stop_timer()
            self._timer = self._loop.call_later(self._server.patience_s, self._give_up)
        if self._outbox.queued_bytes <= _QUEUED_BYTES // 2:
            self._wake()
        if not self._reading and not self._closing and len(self._outbox) + len(self._tasks) <= _QUEUED_FRAMES // 2:
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self._waiting = False
        self._stop_timer()
        self._send_more()

    def _give_up(self) -> None:
        _LOG.info("a data connection was closed: nothing was taken for %g s", self._server.patience_s)
        self.close()

    def _on_drained(self, done: "asyncio.Future[Sent]") -> None:
        self._sending = False
        error = None if done.cancelled() else done.exception()
        if isinstance(error, FileLost):
            _LOG.warning("a read ended early: %s", error)
            self._server.verify_later(error.file, error.offset // PAGE_BYTES)
        elif error is not None and not isinstance(error, OSError):
            _LOG.error("sending failed in a way nobody foresaw", exc_info=error)
        if self._closing:
            self._finish()
        elif error is not None:
            # A head that was sent promises bytes: without them the connection cannot go on.
            self.close()
        else:
            self._note(done.result()) if done.result() is not Sent.ALL or len(self._outbox) == 0 else self._send_more()

    def _count(self) -> None:
        sent = self._outbox.sent_bytes
        if sent > self._counted:
            self._server.metrics.data_sent_bytes.inc(sent - self._counted)
            self._counted = sent
