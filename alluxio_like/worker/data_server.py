"""The worker's data socket: cached bytes for other workers and for clients, moved by `sendfile`.

Owns the listening socket, its connections, and how a read is answered: from the cache file by `sendfile`, a small one from memory
at once, and what is not (wholly) cached by the handler that serves gRPC too, which fetches it. Does not own what is kept or fetched.

Whole pages go out with the checksums of the index, and the receiver compares. Parts of pages have none: such a page is verified here
first, at most once a minute. A cache file is held from before its bits are read until its bytes are sent, so that nothing of it is
evicted meanwhile.

Rule of concurrency: one event loop; frames with bytes of files are sent by threads, one thread on a connection at a time.
"""

import asyncio
import contextlib
import errno
import hmac
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile
from alluxio_like.cache.reader import get_nowait_flag
from alluxio_like.cache.store import CacheStore
from alluxio_like.metrics import Metrics
from alluxio_like.rpc import data_wire as wire
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import PAGE_BYTES, FileId, FileRef, PageRange, get_pages
from alluxio_like.waits import NONE, Waits, subtract
from alluxio_like.worker.data_outbox import FileLost, Frame, Outbox, Sent
from alluxio_like.worker.disk import DiskQueue

_LOG = logging.getLogger(__name__)

MEMORY_BYTES = 256 << 10
"""A read up to this size is copied out of the page cache on the loop (about 20 us); a thread and sendfile would take longer."""
_FRAME_BYTES = 1 << 20
"""Bytes of a file behind one head: what the receiver can verify and pass on."""
_QUEUED_BYTES = 8 << 20
"""In memory for one connection, before reads that go to the store wait for it."""
_QUEUED_FRAMES = 512
"""Beyond this no further calls of a connection are read."""
_MAX_CONNECTIONS = 4096
_HELLO_S = 10.0
_CALLS_BYTES = 64 << 10
_TRUST_S = 60.0
"""How long a page of which parts are sent is taken for good after it was verified. A guess."""
_TRUSTED_FILES = 4096
_TOLD_S = 0.0005
"""A shorter wait of a read is not worth a message of its own. A guess."""
_REFS = 4096


class ReadHandler(Protocol):
    """Answers what is not in the cache; as DataHandler of rpc/worker_servicer.py."""

    def read(
        self, ref: FileRef, offset: int, length: int, *, priority: Priority, cached_only: bool, waits: Waits | None = None
    ) -> AsyncIterator[bytes | bytearray | memoryview]: ...

    def read_ahead(self, ref: FileRef, offset: int, length: int, *, priority: Priority) -> None:
        """The caller is about to ask for these bytes, in several reads: fetch them at once, if they are kept here."""
        ...

    def note_read(self, ref: FileRef, read_bytes: int) -> None:
        """Bytes were given to a reader out of the cache."""
        ...


NoteBad = Callable[[FileId, Sequence[int], FileRef | None], None]
"""Told of pages that were dropped because they were bad."""


class _Trust:
    """Pages that were verified a short while ago, by file and generation."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._files: OrderedDict[FileId, tuple[int, float, int]] = OrderedDict()

    def has(self, file: CachedFile, page: int) -> bool:
        known = self._files.get(file.file_id)
        return known is not None and known[0] == file.generation and known[1] > self._monotonic() and bool(known[2] >> page & 1)

    def add(self, file: CachedFile, page: int) -> None:
        now = self._monotonic()
        generation, until, bits = self._files.pop(file.file_id, (file.generation, now + _TRUST_S, 0))
        if generation != file.generation or until <= now:
            until, bits = now + _TRUST_S, 0
        self._files[file.file_id] = (file.generation, until, bits | 1 << page)
        if len(self._files) > _TRUSTED_FILES:
            self._files.popitem(last=False)


class DataServer:
    """Bound when made; answers from `start` on. `get_cluster_id` gives None while the worker has not joined."""

    def __init__(
        self,
        *,
        sock: socket.socket,
        worker_id: str,
        nonce: str,
        get_cluster_id: Callable[[], str | None],
        store: CacheStore,
        handler: ReadHandler,
        sends: DiskQueue,
        reads: DiskQueue,
        metrics: Metrics,
        patience_s: float,
        note_bad: NoteBad = lambda _file_id, _pages, _ref: None,
    ) -> None:
        self.worker_id = worker_id
        self.nonce = nonce
        self.get_cluster_id = get_cluster_id
        self.handler = handler
        self.sends = sends
        self.metrics = metrics
        self.patience_s = patience_s
        """How long a receiver may take nothing before it is given up."""
        self._note_bad = note_bad
        self._sock = sock
        self._store = store
        self._reads = reads
        self._connections: set[_Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._trust = _Trust(self._loop.time)
        self._nowait = [get_nowait_flag(fd) for fd in store.directory_fds]
        self._refs: dict[bytes, FileRef] = {}
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Accept connections."""
        self._loop.add_reader(self._sock.fileno(), self._accept)

    async def stop(self) -> None:
        """Close everything; returns when no thread uses any of it. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        connections = list(self._connections)
        for connection in connections:
            connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(one.wait_closed() for one in connections), return_exceptions=True)

    def forget(self, connection: "_Connection") -> None:
        """A connection is no more."""
        self._connections.discard(connection)
        self.metrics.data_connections.set(len(self._connections))

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    _LOG.warning("no data connection can be accepted now: %s", error)
                    self._loop.remove_reader(self._sock.fileno())
                    self._loop.call_later(0.5, self._accept_again)
                    return
                continue
            if len(self._connections) >= _MAX_CONNECTIONS:
                sock.close()
                continue
            sock.setblocking(False)  # noqa: FBT003
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                # No SO_SNDBUF: a size that is set is bounded by wmem_max (208 KiB) and ends the kernel's own growing of it to 4 MiB.
            self._connections.add(_Connection(self, sock))
            self.metrics.data_connections.set(len(self._connections))

    def _accept_again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    # Reads.

    def get_ref(self, encoded: bytes) -> FileRef:
        """A content from its description, which the same readers send again and again."""
        ref = self._refs.get(encoded)
        if ref is None:
            ref = wire.decode_ref(encoded)
            if len(self._refs) >= _REFS:
                self._refs.clear()
            self._refs[encoded] = ref
        return ref

    def make_frames(self, call: wire.Call, ref: FileRef) -> list[Frame] | None:
        """The answer to a read if all of it is cached and at hand; None: it takes waiting."""
        if not 0 <= call.offset < call.offset + call.length <= ref.size:
            return None
        file = self._lookup(ref)
        if file is None:
            return None
        try:
            fd = file.hold()
        except (errors.AlluxioLikeError, OSError):
            return None
        frames: list[Frame] | None = None
        try:
            frames = self._make_held(call, ref, file, fd)
        except (errors.AlluxioLikeError, OSError):
            # What is wrong with it will be found out by the long way.
            frames = None
        finally:
            # Frames of the file have taken holds of their own.
            file.release()
        return frames

    def _lookup(self, ref: FileRef) -> CachedFile | None:
        file = self._store.lookup(ref.file_id)
        return file if file is not None and file.fingerprint == ref.fingerprint else None

    def _make_held(self, call: wire.Call, ref: FileRef, file: CachedFile, fd: int) -> list[Frame] | None:
        end = call.offset + call.length
        pages = get_pages(call.offset, call.length, ref.size)
        # Looked at after the file was opened: pages that are there now stay, while it is held.
        runs = file.get_present_runs(pages)
        if len(runs) != 1 or runs[0].pages != pages:
            return None
        sums = runs[0].checksums
        parts = _split(call.offset, end, ref.size)
        if not all(whole or self._trust.has(file, start // PAGE_BYTES) for start, _, whole in parts):
            return None
        if call.length <= MEMORY_BYTES and len(parts) == 1:
            nowait = self._nowait[file.directory] if file.directory < len(self._nowait) else None
            data = bytearray(call.length)
            if nowait is not None and os.preadv(fd, (data,), call.offset, nowait) == call.length:
                head = wire.pack_data(call.request_id, call.offset, call.length, sums if parts[0][2] else (), last=True)
                return [Frame(call.request_id, head, data, last=True)]
        frames = []
        for start, stop, whole in parts:
            first = start // PAGE_BYTES - pages.first
            of_part = sums[first : first + -(-(stop - start) // PAGE_BYTES)] if whole else ()
            file.hold()
            frames.append(Frame.of_file(call.request_id, file, fd, start, stop - start, of_part, last=stop == end))
        return frames

    async def verify_parts(self, call: wire.Call, ref: FileRef) -> bool:
        """Verify pages of which only a part was asked for; True: the read can be tried again without the long way."""
        file = self._lookup(ref)
        if file is None or not 0 <= call.offset < call.offset + call.length <= ref.size:
            return False
        found = False
        for start, _, whole in _split(call.offset, call.offset + call.length, ref.size):
            page = start // PAGE_BYTES
            if whole or self._trust.has(file, page):
                continue
            try:
                await self._reads.submit(lambda page=page: file.read(page * PAGE_BYTES, PAGE_BYTES), alone=True)  # type: ignore[misc]
            except (errors.AlluxioLikeError, OSError) as error:
                if isinstance(error, errors.Corrupt):
                    self._note_bad(file.file_id, [page], ref)
                return False
            self._trust.add(file, page)
            found = True
        return found

    def look_at(self, ref: FileRef, page: int) -> None:
        """Somebody says that a page is bad: verify it, and drop it if so."""
        file = self._lookup(ref)
        if file is not None and 0 <= page * PAGE_BYTES < ref.size:
            self.verify_later(file, page)

    def verify_later(self, file: CachedFile, page: int) -> None:
        """Have a thread verify a page, which drops it when it is bad."""

        async def verify() -> None:
            with contextlib.suppress(errors.AlluxioLikeError, OSError):
                bad = await self._reads.submit(lambda: file.verify(PageRange(page, page + 1)))
                self._note_bad(file.file_id, bad, None)

        self.keep(asyncio.create_task(verify(), name="verify a page"))

    def keep(self, task: "asyncio.Task[None]") -> None:
        """Hold on to a task until it has ended."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _split(start: int, end: int, size: int) -> list[tuple[int, int, bool]]:
    """A range as (start, stop, whether it consists of whole pages), each the bytes of one frame."""
    parts = []
    while start < end:
        page_end = min(start - start % PAGE_BYTES + PAGE_BYTES, size)
        if start % PAGE_BYTES or page_end > end:
            stop, whole = min(page_end, end), False
        else:
            stop, whole = min(start + _FRAME_BYTES, end), True
            if stop % PAGE_BYTES and stop != size:
                stop -= stop % PAGE_BYTES
        parts.append((start, stop, whole))
        start = stop
    return parts


class _Connection:
    """One caller."""

    def __init__(self, server: DataServer, sock: socket.socket) -> None:
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
            self._refuse("another worker is at this address")
            return False
        if not hmac.compare_digest(hello.nonce.encode(), server.nonce.encode()):
            self._refuse("the worker was started anew")
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
        frames = self._server.make_frames(call, ref)
        if frames is None:
            task = self._loop.create_task(self._answer(call, ref), name="data read")
            self._tasks[call.request_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(call.request_id, None))
            return
        self._send(call, ref, frames)

    def _send(self, call: wire.Call, ref: FileRef, frames: list[Frame]) -> None:
        if not call.cached_only:
            self._server.handler.note_read(ref, call.length)
        for frame in frames:
            self._put(frame)

    # What takes waiting.

    async def _answer(self, call: wire.Call, ref: FileRef) -> None:
        """Answer a read by verifying, or by the handler, which fetches what is missing."""
        failure: errors.AlluxioLikeError
        try:
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
        waits, told = Waits(), NONE
        if call.ahead > call.length and not call.cached_only:
            self._server.handler.read_ahead(ref, call.offset, call.ahead, priority=Priority(call.priority))
        pieces = self._server.handler.read(
            ref, call.offset, call.length, priority=Priority(call.priority), cached_only=call.cached_only, waits=waits
        )
        try:
            async for piece in pieces:
                if waits.total_s - sum(told) >= _TOLD_S:
                    waited = subtract(waits.get(), told)
                    self._put(Frame(call.request_id, wire.pack_waited(call.request_id, waited), last=False))
                    told = waits.get()
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


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Conflict."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(512)
    except OSError as error:
        sock.close()
        raise errors.Conflict(
            f"cannot listen on {host}:{port} for data ({error.strerror}): it is in use, or no address of this machine",
            subject="data_bind",
        ) from error
    return sock
