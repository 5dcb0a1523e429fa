"""The caller's end of one connection of a worker's data socket.

Owns the socket, the reads under way on it, and the parsing of what comes. Bytes of a read are received straight into its buffer;
a read that is cancelled leaves the others alone, and what still comes for it is thrown away. A read of which nothing is heard for
`silence_s` fails, and if nothing at all came meanwhile, the connection with it. Does not choose connections (data_pool.py).

Rule of concurrency: one event loop. A buffer is written to only from the loop, and not any more once its read has ended.
"""

import asyncio
import socket
from array import array
from collections.abc import Callable

from alluxio_like.cache.checksum import compute_checksum
from alluxio_like.errors import AlluxioLikeError, Cancelled, Corrupt, TimedOut, Unavailable, Unsupported
from alluxio_like.rpc import data_wire as wire
from alluxio_like.types import PAGE_BYTES

_STAGE_BYTES = 32 << 10
"""What is read beyond the buffer that is being filled: heads, and small replies whole. A guess."""
_SCRATCH_BYTES = 256 << 10
_TURN_BYTES = 4 << 20
"""Received in one go before the loop does something else: about 1 ms."""
_CHECKS_PER_SILENCE = 8

OnFrame = Callable[[int, int, "array[int] | None"], None]
"""Called with what has landed: (offset from the buffer's start, bytes, checksums of its pages or None). May raise an error of the
tree, which ends the read."""


OnText = Callable[[int, bytes], None]
"""Called with the kind and the bytes of a Filled or Waited. May raise as OnFrame, and Malformed."""


class PendingRead:
    """A read or fill (whose buffer is empty) under way. `done` has no value; it raises what ended it."""

    __slots__ = ("buffer", "done", "heard_s", "offset", "on_frame", "on_text", "received", "ref", "request_id", "size")

    def __init__(
        self,
        request_id: int,
        ref: bytes,
        size: int,
        offset: int,
        buffer: memoryview,
        on_frame: OnFrame | None,
        on_text: OnText | None,
        heard_s: float,
    ) -> None:
        self.request_id = request_id
        self.ref = ref
        self.size = size
        """Of the whole content."""
        self.offset = offset
        self.buffer: memoryview | None = buffer
        self.on_frame = on_frame
        self.on_text = on_text
        self.received = 0
        self.heard_s = heard_s
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: AlluxioLikeError | None = None) -> None:
        """Nothing more is written to the buffer."""
        self.buffer = self.on_frame = self.on_text = None
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)
                # Whoever was to wait may have gone.
                self.done.exception()


class DataConnection:
    """A connection that is through with its greeting; `connect` makes one."""

    def __init__(self, sock: socket.socket, address: str, silence_s: float, on_close: Callable[["DataConnection"], None]) -> None:
        self.address = address
        self.closed = False
        self.outstanding_bytes = 0
        """Asked for and neither received nor failed."""
        self.used_s = 0.0
        """When the last read was begun, by the loop's clock."""
        self._sock = sock
        self._silence_s = silence_s
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._reads: dict[int, PendingRead] = {}
        self._next_id = 1
        self._heard_s = self._loop.time()
        self._check: asyncio.TimerHandle | None = None
        self._unsent = bytearray()
        self._stage = bytearray(_STAGE_BYTES)
        self._stage_view = memoryview(self._stage)
        self._low = self._high = 0
        # The frame that is being received.
        self._reply: wire.Reply | None = None
        self._sums: array[int] | None = None
        self._text: bytearray | None = None
        self._rest = 0
        self._scratch: memoryview | None = None
        self._loop.add_reader(sock.fileno(), self._on_readable)

    @property
    def count(self) -> int:
        """Reads under way."""
        return len(self._reads)

    def start(
        self,
        ref: bytes,
        size: int,
        offset: int,
        buffer: memoryview,
        *,
        priority: int,
        cached_only: bool,
        on_frame: OnFrame | None,
        on_text: OnText | None = None,
        ahead: int = 0,
    ) -> PendingRead:
        """Ask for as many bytes as `buffer` has, from `offset` on. Raises Unavailable when the connection is closed."""
        read = self._expect(ref, size, offset, buffer, on_frame, on_text)
        self._send(
            wire.pack_read(read.request_id, ref, offset, len(buffer), priority=priority, cached_only=cached_only, ahead=ahead)
        )
        return read

    def fill(self, ref: bytes, size: int, offset: int, length: int, *, priority: int, on_text: OnText) -> PendingRead:
        """Have a range brought into the worker's cache. Raises Unavailable when the connection is closed."""
        read = self._expect(ref, size, offset, memoryview(b""), None, on_text)
        self._send(wire.pack_fill(read.request_id, ref, offset, length, priority=priority))
        return read

    def _expect(
        self, ref: bytes, size: int, offset: int, buffer: memoryview, on_frame: OnFrame | None, on_text: OnText | None
    ) -> PendingRead:
        if self.closed:
            raise Unavailable(f"the data connection to {self.address} was closed")
        request_id, self._next_id = self._next_id, self._next_id % 0xFFFFFFFF + 1
        self.used_s = now = self._loop.time()
        if not self._reads:
            self._heard_s = now
        read = self._reads[request_id] = PendingRead(request_id, ref, size, offset, buffer, on_frame, on_text, now)
        self.outstanding_bytes += len(buffer)
        if self._check is None:
            self._check = self._loop.call_later(self._silence_s / _CHECKS_PER_SILENCE, self._look_for_silence)
        return read

    def cancel(self, read: PendingRead, error: AlluxioLikeError | None = None) -> None:
        """Nobody wants it any more; its buffer is free at once."""
        if read.buffer is None:
            return
        self.outstanding_bytes -= len(read.buffer) - read.received
        read.end(error or Cancelled("nobody waits for it any more"))
        read.heard_s = self._loop.time()
        # It stays in the table until the server has said its last word of it.
        if not self.closed:
            self._send(wire.pack_cancel(read.request_id))

    def report_bad(self, ref: bytes, page: int) -> None:
        """Tell the server that a page does not match its checksum."""
        if not self.closed:
            self._send(wire.pack_bad_page(ref, page))

    def close(self, error: AlluxioLikeError | None = None) -> None:
        """Disconnect; reads under way fail with `error`. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        if self._unsent:
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        if self._check is not None:
            self._check.cancel()
        self.outstanding_bytes = 0
        reads, self._reads = self._reads, {}
        failure = error or Unavailable(f"the data connection to {self.address} was closed")
        for read in reads.values():
            if read.buffer is not None:
                read.end(type(failure)(failure.message, subject=failure.subject))
        self._on_close(self)

    # Sending.

    def _send(self, data: bytes) -> None:
        if not self._unsent:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                # Not at once: the caller is about to wait for a read that this ends.
                self._loop.call_soon(self._fail, error)
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._loop.add_writer(self._sock.fileno(), self._on_writable)
        self._unsent += data

    def _on_writable(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _fail(self, error: OSError) -> None:
        self.close(Unavailable(f"the data connection to {self.address} broke ({error.strerror})"))

    # Receiving.

    def _on_readable(self) -> None:
        taken = 0
        try:
            while not self.closed and taken < _TURN_BYTES:
                wanted, count = self._receive()
                if not count:
                    self.close(Unavailable(f"the worker at {self.address} closed the data connection"))
                    return
                taken += count
                self._parse()
                if count < wanted:
                    # The socket is empty; a further look would only say so.
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
        except wire.Malformed as error:
            self.close(Unavailable(f"the worker at {self.address} sent what nobody understands: {error}"))
        if taken:
            self._heard_s = self._loop.time()

    def _receive(self) -> tuple[int, int]:
        """(bytes there was room for, bytes that came), into the frame's buffer and what is beyond it into the stage."""
        if not self._rest:
            room = self._stage_view[self._high :]
            count = self._sock.recv_into(room)
            self._high += count
            return len(room), count
        target = self._get_target()
        count = self._sock.recvmsg_into([target, self._stage_view])[0]
        in_target = min(count, len(target))
        self._rest -= in_target
        self._high = count - in_target
        return len(target) + _STAGE_BYTES, count

    def _get_target(self) -> memoryview:
        """Where the rest of the frame goes."""
        if self._text is not None:
            return memoryview(self._text)[len(self._text) - self._rest :]
        assert self._reply is not None
        read = self._reads[self._reply.request_id]
        if read.buffer is None:
            if self._scratch is None:
                self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
            return self._scratch[: self._rest]
        end = self._reply.offset - read.offset + self._reply.length
        return read.buffer[end - self._rest : end]

    def _parse(self) -> None:
        while not self.closed:
            if self._reply is None and not self._begin_frame():
                break
            if self._rest:
                take = min(self._rest, self._high - self._low)
                if take:
                    target = self._get_target()
                    take = min(take, len(target))
                    target[:take] = self._stage_view[self._low : self._low + take]
                    self._low += take
                    self._rest -= take
                    continue
                break
            self._end_frame()
        # Either a head is incomplete, and goes to the front; or nothing is left.
        left = self._high - self._low
        if left and self._low:
            self._stage[:left] = self._stage[self._low : self._high]
        self._low, self._high = 0, left

    def _begin_frame(self) -> bool:
        """Parse a head and its checksums. False: not all of it is there."""
        have = self._high - self._low
        if have < wire.REPLY_BYTES:
            return False
        reply = wire.parse_reply(self._stage, self._low)
        if have < wire.REPLY_BYTES + 8 * reply.sums:
            return False
        read = self._reads.get(reply.request_id)
        if read is None:
            raise wire.Malformed("a reply to nothing that was asked")
        low = self._low + wire.REPLY_BYTES
        self._sums = wire.parse_sums(self._stage_view[low : low + 8 * reply.sums]) if reply.sums else None
        self._low = low + 8 * reply.sums
        if reply.kind != wire.Kind.DATA:
            self._text = bytearray(reply.length)
        elif read.buffer is not None:
            if reply.offset != read.offset + read.received or read.received + reply.length > len(read.buffer):
                raise wire.Malformed("bytes that were not asked for")
            if reply.sums and (reply.offset + reply.length) % PAGE_BYTES and reply.offset + reply.length != read.size:
                raise wire.Malformed("a checksum of half a page")
        self._reply, self._rest = reply, reply.length
        return True

    def _end_frame(self) -> None:
        reply, sums, text = self._reply, self._sums, self._text
        self._reply = self._sums = self._text = None
        assert reply is not None
        read = self._reads[reply.request_id]
        read.heard_s = self._loop.time()
        if reply.last:
            del self._reads[reply.request_id]
        if read.buffer is None:
            return
        if reply.kind == wire.Kind.ERROR and text is not None:
            self.outstanding_bytes -= len(read.buffer) - read.received
            read.end(wire.parse_error(bytes(text)))
            return
        try:
            if text is not None:
                if read.on_text is not None:
                    read.on_text(reply.kind, bytes(text))
            else:
                start = read.received
                read.received += reply.length
                self.outstanding_bytes -= reply.length
                if read.on_frame is not None:
                    read.on_frame(start, reply.length, sums)
        except AlluxioLikeError as error:
            self._give_up(read, error, cancel=not reply.last)
            return
        if reply.last:
            missing = len(read.buffer) - read.received if read.buffer is not None else 0
            self.outstanding_bytes -= missing
            read.end(Unavailable(f"the worker at {self.address} sent {missing} bytes too few") if missing else None)

    def _give_up(self, read: PendingRead, error: AlluxioLikeError, *, cancel: bool) -> None:
        if cancel:
            self.cancel(read, error)
        else:
            if read.buffer is not None:
                self.outstanding_bytes -= len(read.buffer) - read.received
            read.end(error)

    # Silence.

    def _look_for_silence(self) -> None:
        self._check = None
        limit = self._loop.time() - self._silence_s
        for read in list(self._reads.values()):
            if read.heard_s > limit:
                continue
            said = f"the worker at {self.address} said nothing for {self._silence_s:g} s"
            if self._heard_s <= limit:
                self.close(TimedOut(said))
                return
            if read.buffer is not None:
                self.cancel(read, TimedOut(said))
            else:
                self.close(Unavailable(f"the worker at {self.address} does not answer a cancelled read"))
                return
        if self._reads:
            self._check = self._loop.call_later(self._silence_s / _CHECKS_PER_SILENCE, self._look_for_silence)


def verify_pages(data: memoryview, sums: "array[int]", first_page: int, subject: str) -> None:
    """Compare pages with the checksums that came with them. Raises Corrupt."""
    for n, checksum in enumerate(sums):
        if compute_checksum(data[n * PAGE_BYTES : (n + 1) * PAGE_BYTES]) != checksum:
            raise Corrupt(f"page {first_page + n} does not match the checksum that came with it", subject=subject)


async def connect(
    address: str, hello: wire.Hello, *, connect_s: float, silence_s: float, on_close: Callable[[DataConnection], None]
) -> DataConnection:
    """A greeted connection to host:port.

    Raises Unsupported where the other end cannot be reached within `connect_s` or speaks another version, so that gRPC is to be
    used; Unavailable where it is another worker than expected, TimedOut where it says nothing.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(connect_s):
                await loop.sock_connect(sock, (host, int(port)))
        except (OSError, TimeoutError, ValueError) as error:
            raise Unsupported(f"no data connection to {address} ({error or 'it does not answer'})") from None
        try:
            async with asyncio.timeout(silence_s):
                await _greet(loop, sock, address, hello)
        except TimeoutError:
            raise TimedOut(f"the worker at {address} said nothing for {silence_s:g} s") from None
        except (OSError, wire.Malformed) as error:
            raise Unavailable(f"no data connection to {address} ({error})") from None
        return DataConnection(sock, address, silence_s, on_close)
    except BaseException:
        sock.close()
        raise


async def _greet(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: str, hello: wire.Hello) -> None:
    await loop.sock_sendall(sock, wire.pack_hello(hello))
    welcome = wire.parse_welcome(await _receive_exactly(loop, sock, wire.WELCOME_BYTES))
    if welcome.protocol != wire.PROTOCOL:
        raise Unsupported(f"the worker at {address} speaks version {welcome.protocol} of the data socket")
    if not welcome.accepted:
        reason = (await _receive_exactly(loop, sock, welcome.text_bytes)).decode("ascii", "replace")
        raise Unavailable(f"the worker at {address} refused a data connection: {reason}")


async def _receive_exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await loop.sock_recv(sock, count - len(data))
        if not more:
            raise wire.Malformed("it closed the connection")
        data += more
    return data
