"""The loop of a kernel session: requests of /dev/fuse are taken, handed to their handlers, and each gets exactly one answer.

Owns the device's buffer, what is under way in tasks, interrupts, and the end. What a request means is its handler's
(session_kernel.py). Rule of concurrency: one event loop. A request is given up only when its caller was killed (interrupts.py).
"""

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from alluxio_like.fuse import wire
from alluxio_like.fuse.accounting import Accounting
from alluxio_like.fuse.device import BUFFER_BYTES, Device
from alluxio_like.fuse.interrupts import is_killed
from alluxio_like.fuse.meter import Meter

log = logging.getLogger(__name__)

BURST = 64
"""Requests taken one after the other before the event loop gets its turn. A guess."""
_KILL_CHECK_S = 0.5
"""How often the caller of a request that was interrupted is looked at again: the kernel tells of the first signal only."""
HEADER_BYTES = wire.IN_HEADER.size
RESENT_MASK = ~wire.UNIQUE_RESEND
# fmt: off
WRITES = [
    "SETATTR", "SYMLINK", "MKNOD", "MKDIR", "UNLINK", "RMDIR", "RENAME", "LINK", "WRITE", "SETXATTR", "REMOVEXATTR", "CREATE",
    "FALLOCATE", "RENAME2", "COPY_FILE_RANGE", "TMPFILE", "COPY_FILE_RANGE_64",
]
# fmt: on
"""Refused here too, for a mount that somebody has made writable."""

Handler = Callable[[int, int, int, int], None]
"""Takes unique, node id, thread and length of the request in the buffer."""


@dataclass(slots=True, eq=False)
class _Request:
    """What is under way: in a task, or without one."""

    what: str
    thread: int
    started_s: float
    to_task: Callable[[], None] | None = None
    """Without a task: gives it to one, which is found under the same number then."""
    task: "asyncio.Task[None] | None" = None
    watch: asyncio.TimerHandle | None = None


class RequestLoop:
    """One mount's requests, from `run` to the mount's end or `stop`. Whoever derives gives the handlers, by opcode; what has none
    is answered with ENOSYS."""

    def __init__(self, device: Device, io_timeout_s: float, meter: Meter, accounting: Accounting) -> None:
        self._device = device
        self._fd = device.fd
        self._io_timeout_s = io_timeout_s
        self._meter = meter
        self._accounting = accounting
        self._handlers: dict[int, Handler] = {}
        self._buffer = bytearray(BUFFER_BYTES)
        self._scratch = memoryview(bytearray(BUFFER_BYTES))
        """For an answer that is written before the next request is taken."""
        self._under_way: dict[int, _Request] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] | None = None
        self._reading = False
        self._ready = asyncio.Event()

    @property
    def is_serving(self) -> bool:
        """Whether the kernel's requests are being answered; from any thread."""
        return self._reading

    async def wait_ready(self) -> None:
        """Wait until requests are answered."""
        await self._ready.wait()

    async def run(self) -> None:
        """Serve until the mount is gone or `stop` is called and all is answered. Raises what broke the loop."""
        loop = asyncio.get_running_loop()
        os.set_blocking(self._fd, False)
        self._ended = loop.create_future()
        loop.add_reader(self._fd, self._take)
        self._reading = True
        self._ready.set()
        try:
            await self._ended
        finally:
            self._stop_reading()
            await self._wait_answered()

    async def _wait_answered(self) -> None:
        """Wait until all that was taken is answered."""
        self._give_to_tasks()
        while self._under_way or self._closing:
            tasks = [request.task for request in self._under_way.values() if request.task is not None]
            await asyncio.wait([*tasks, *self._closing])

    def stop(self) -> None:
        """Take no further request; `run` returns once those under way are answered."""
        self._end(None)

    def list_waiting(self) -> list[tuple[int, str, float]]:
        """The requests that are under way in tasks: thread, what, for how many seconds."""
        now_s = time.perf_counter()
        return [(one.thread, one.what, now_s - one.started_s) for one in self._under_way.values() if one.what]

    def cancel_requests(self) -> None:
        """Answer what is still under way with EINTR."""
        self._give_to_tasks()
        for request in list(self._under_way.values()):
            if request.task is not None:
                request.task.cancel()

    def close(self, *, unmount: bool) -> None:
        """Give the device back, after `run` has returned. (Whoever mounted unmounts.)"""
        self._stop_reading()
        self._device.close()

    # The loop

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._fd)

    def _end(self, error: BaseException | None) -> None:
        self._stop_reading()
        if self._ended is not None and not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)

    def _take(self) -> None:
        """Take what waits, up to a burst."""
        buffers = [self._buffer]
        fd = self._fd
        for _ in range(BURST):
            try:
                size = os.readv(fd, buffers)
            except OSError as error:
                if self._is_over(error):
                    return
                continue
            if not size:
                self._end(None)
                return
            self._handle(size)
            if not self._reading:
                return

    def _is_over(self, error: OSError) -> bool:
        """Whether nothing more can be taken now, after the device gave an error; where that is for good, the session ends."""
        if error.errno == errno.EAGAIN:
            return True
        if error.errno in (errno.ENOENT, errno.EINTR):
            return False  # its caller was killed before it was taken
        if error.errno in (errno.ENODEV, errno.ECONNABORTED):
            self.cancel_requests()  # nobody waits any more
            self._end(None)
        else:
            log.critical("the device cannot be read", exc_info=error)
            self._end(error)
        return True

    def _handle(self, size: int) -> None:
        length, opcode, unique, node, _, _, thread, _ = wire.IN_HEADER.unpack_from(self._buffer)
        if length != size:
            log.error("a request of %d bytes came as %d", length, size)
            self._write(wire.pack_error(unique, errno.EIO))
            return
        handler = self._handlers.get(opcode)
        if handler is None:
            self._write(wire.pack_error(unique, errno.ENOSYS))
            return
        if length < _LEAST_BYTES.get(opcode, 0):
            log.error("a request of kind %d has %d bytes only", opcode, length)
            if opcode not in wire.UNANSWERED:
                self._write(wire.pack_error(unique, errno.EIO))
            return
        try:
            handler(unique, node, thread, length)
        except BaseException as error:
            self._fail(_NAMES.get(opcode, "other"), unique, error)
            if not isinstance(error, Exception):
                raise

    def _write(self, message: bytes | memoryview) -> bool:
        """Write an answer. False: nobody waits for it any more, or the kernel did not understand it (it has another one then)."""
        return self._write_parts([message])

    def _write_data(self, unique: int, data: bytes | bytearray | memoryview) -> bool:
        """Answer with bytes of a file, from where they are."""
        return self._write_parts([wire.pack_header(unique, len(data)), data])

    def _write_parts(self, parts: list[bytes | bytearray | memoryview]) -> bool:
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            if error.errno not in wire.GONE:
                unique = wire.OUT_HEADER.unpack_from(parts[0])[2]
                log.error("the kernel does not take an answer", exc_info=error)
                try:  # noqa: SIM105  (once a request)
                    os.write(self._fd, wire.pack_error(unique, errno.EIO))
                except OSError:
                    pass  # answered by what it refused
            return False
        return True

    def _fail(self, what: str, unique: int, error: BaseException) -> None:
        self._write(wire.pack_error(unique, self._meter.translate(what, error)))

    def _get_body(self, length: int) -> memoryview:
        return memoryview(self._buffer)[HEADER_BYTES:length]

    def _get_request(self, length: int) -> memoryview:
        return memoryview(self._buffer)[:length]

    def _get_name(self, length: int, start: int = HEADER_BYTES) -> bytes:
        """A name that ends the request, with its NUL."""
        return bytes(memoryview(self._buffer)[start : length - 1])

    # Requests that wait

    def _spawn(self, what: str, unique: int, thread: int, started_s: float, call: Coroutine[None, None, bytes | None]) -> None:
        """Answer with what a coroutine gives; None: it has answered by itself."""
        key = unique & RESENT_MASK
        request = _Request(what, thread, started_s)
        self._under_way[key] = request
        # Now: it may be killed before the answer is there.
        self._accounting.get_pid(thread)
        request.task = asyncio.get_running_loop().create_task(self._run(request, unique, call))
        request.task.add_done_callback(lambda task: self._forget(unique, request, call, task))

    def _begin(self, what: str, unique: int, thread: int, started_s: float, to_task: Callable[[], None]) -> None:
        """Note what is under way without a task, until `_end_begun`; whoever does it answers and counts it. `to_task` gives it up
        and spawns a task for it."""
        self._under_way[unique & RESENT_MASK] = _Request(what, thread, started_s, to_task)
        # Now: it may be killed before the answer is there.
        self._accounting.get_pid(thread)

    def _end_begun(self, unique: int) -> None:
        del self._under_way[unique & RESENT_MASK]

    def _give_to_tasks(self) -> None:
        for request in list(self._under_way.values()):
            if request.to_task is not None:
                request.to_task()

    async def _run(self, request: _Request, unique: int, call: Coroutine[None, None, bytes | None]) -> None:
        try:
            # A read bounds itself, and remembers that it failed. A change ends when it is known what became of it.
            async with asyncio.timeout(None if request.what in _BOUNDED_BELOW else self._io_timeout_s):
                body = await call
        except BaseException as error:  # noqa: BLE001  the kernel must get an answer whatever it is
            self._fail(request.what, unique, error)
        else:
            if body is not None:
                self._write(wire.pack_reply(unique, body))
        finally:
            self._meter.count(request.what, request.started_s)
            if request.what in _NAMING:
                self._accounting.note_wait(request.thread, time.perf_counter() - request.started_s)
            request.what = ""

    def _forget(
        self, unique: int, request: _Request, call: Coroutine[None, None, bytes | None], task: "asyncio.Task[None]"
    ) -> None:
        key = unique & RESENT_MASK
        if self._under_way.get(key) is request:
            del self._under_way[key]
        if request.watch is not None:
            request.watch.cancel()
        if request.what:
            # Cancelled before its first step: nothing in it ran.
            call.close()
            self._fail(request.what, unique, asyncio.CancelledError())
        elif not task.cancelled() and task.exception() is not None:
            log.error("a request's task failed", exc_info=task.exception())

    def _interrupt(self, _unique: int, _node: int, _thread: int, _length: int) -> None:
        (target,) = wire.INTERRUPT_IN.unpack_from(self._buffer, HEADER_BYTES)
        request = self._under_way.get(target & RESENT_MASK)
        if request is not None and request.to_task is not None:
            request.to_task()
            request = self._under_way.get(target & RESENT_MASK)
        if request is not None and request.what == "setlkw" and request.task is not None:
            # It may wait for ever; whoever gives up waiting has no lock.
            request.task.cancel()
        elif request is not None and request.watch is None:
            self._watch(request)

    def _watch(self, request: _Request) -> None:
        """Give a request up once its caller is killed, now or later."""
        if request.task is None or request.task.done():
            return
        if is_killed(request.thread):
            # After its first step: the FLUSH of a killed writer begins the seal there, which goes on without anybody who waits.
            asyncio.get_running_loop().call_soon(request.task.cancel)
        else:
            request.watch = asyncio.get_running_loop().call_later(_KILL_CHECK_S, self._watch, request)

    def _close_later(self, ending: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(ending, name="close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


_BOUNDED_BELOW = frozenset(
    {
        "read",
        "open for writing",
        "create",
        "link",
        "mknod",
        "setattr",
        "write",
        "flush",
        "fsync",
        "fallocate",
        "copy_file_range",
        "setlkw",
    }
)
"""What has limits of its own: as long as it goes on, a file may be brought or uploaded."""
_NAMING = frozenset({"lookup", "getattr", "readdir", "opendir", "readlink", "getxattr", "listxattr"})
"""What waits for names and attributes."""
_LEAST_BYTES = {
    opcode: HEADER_BYTES + body_bytes
    for opcode, body_bytes in (
        (wire.LOOKUP, 2),
        (wire.OPEN, wire.OPEN_IN.size),
        (wire.READ, wire.READ_IN.size),
        (wire.READDIR, wire.READ_IN.size),
        (wire.READDIRPLUS, wire.READ_IN.size),
        (wire.RELEASE, wire.RELEASE_IN.size),
        (wire.RELEASEDIR, wire.RELEASE_IN.size),
        (wire.GETXATTR, wire.GETXATTR_IN.size + 2),
        (wire.LISTXATTR, wire.GETXATTR_IN.size),
        (wire.WRITE, wire.WRITE_IN.size),
        (wire.INTERRUPT, wire.INTERRUPT_IN.size),
    )
}
"""What is unpacked without looking must be there: behind a shorter request lies what is left of an earlier one."""
_NAMES = {
    wire.LOOKUP: "lookup",
    wire.GETATTR: "getattr",
    wire.OPEN: "open",
    wire.READ: "read",
    wire.RELEASE: "release",
    wire.GETXATTR: "getxattr",
    wire.RELEASEDIR: "releasedir",
    **{getattr(wire, name): "write" for name in WRITES},
}
