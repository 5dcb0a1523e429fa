"""What a data connection has still to send, and sending it.

Owns the order of frames on one socket, and the moving of their bytes: those of cache files by `sendfile`, so that they pass
through no memory of this process. A frame of a file keeps the file from eviction until it is sent.

Rule of concurrency: frames are added on the event loop. `send_now` (the loop) and `drain` (a thread) are never under way at once:
the connection sees to that. Neither waits for the other end for longer than `_PATIENCE_S`; `drain` may wait for a disk.
"""

import errno
import os
import select
import socket
from collections import deque
from collections.abc import Sequence
from enum import Enum

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile
from alluxio_like.rpc import data_wire as wire

_PATIENCE_S = 0.02
"""How long a thread waits for the other end before it turns to another connection. A guess: the loop takes over then."""
_SLICE_BYTES = 16 << 20
"""Sent by a thread before other connections have their turn."""

_DISK_ERRORS = (errno.EIO, errno.EBADMSG, errno.ESTALE, errno.EBADF, errno.EINVAL)
"""Of sendfile: what the file is to blame for, not the socket."""


class Sent(Enum):
    """What came of sending: all of it; the other end takes no more now; there is more, and others' turn."""

    ALL = 1
    BLOCKED = 2
    MORE = 3


class FileLost(Exception):
    """A cache file gave fewer bytes than were promised to the other end: `file` and the page to look at."""

    def __init__(self, file: CachedFile, offset: int, error: OSError | None) -> None:
        super().__init__(f"cache file cannot be sent ({error.strerror if error else 'it is too short'})")
        self.file = file
        self.offset = offset
        self.error = error


class Frame:
    """A head, then bytes from memory or from a file that `file.hold` was called for."""

    __slots__ = ("fd", "file", "head", "last", "left", "offset", "payload", "request_id")

    def __init__(self, request_id: int, head: bytes, payload: "memoryview | bytes | bytearray" = b"", *, last: bool) -> None:
        self.request_id = request_id
        self.head = memoryview(head)
        self.payload = memoryview(payload)
        self.last = last
        self.file: CachedFile | None = None
        self.fd = -1
        self.offset = 0
        self.left = 0

    @classmethod
    def of_file(
        cls, request_id: int, file: CachedFile, fd: int, offset: int, length: int, sums: Sequence[int], *, last: bool
    ) -> "Frame":
        """Bytes of a cache file, which is released when they are sent or dropped."""
        frame = cls(request_id, wire.pack_data(request_id, offset, length, sums, last=last), last=last)
        frame.file, frame.fd, frame.offset, frame.left = file, fd, offset, length
        return frame

    def drop(self) -> None:
        """It is sent, or will not be."""
        file, self.file = self.file, None
        if file is not None:
            file.release()


class Outbox:
    """The frames of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames: deque[Frame] = deque()
        self._begun = False
        """Of the first frame something is sent already."""
        self._open: set[int] = set()
        """Requests whose last frame is not sent yet."""
        self._cancelled: set[int] = set()
        self.queued_bytes = 0
        """Of frames in memory; an estimate, changed from two threads."""
        self.sent_bytes = 0
        self.file_bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def expect(self, request_id: int) -> None:
        """Frames of this request will be put; one of them is its last."""
        self._open.add(request_id)

    def cancel(self, request_id: int) -> bool:
        """Its frames are not wanted any more: they are left out, and the last is an Error. False: it is over."""
        if request_id not in self._open:
            return False
        self._cancelled.add(request_id)
        return True

    def put(self, frame: Frame) -> None:
        """Add a frame at the end."""
        self.queued_bytes += len(frame.payload)
        self._frames.append(frame)

    def is_file_next(self) -> bool:
        """Whether the next frame is one that may wait for a disk."""
        return bool(self._frames) and self._frames[0].file is not None

    def send_now(self) -> Sent:
        """Send frames in memory until one of a file comes. Raises OSError."""
        while self._frames:
            if self.is_file_next() and not self._leave_out(self._frames[0]):
                return Sent.MORE
            if not self._send_first():
                return Sent.BLOCKED
        return Sent.ALL

    def drain(self) -> Sent:
        """In a thread: send whatever there is. Raises OSError, FileLost."""
        poll: select.poll | None = None
        until = self.sent_bytes + _SLICE_BYTES
        while self._frames:
            if self._send_first():
                if self.sent_bytes >= until:
                    return Sent.MORE
                continue
            if poll is None:
                poll = select.poll()
                poll.register(self._sock.fileno(), select.POLLOUT)
            if not poll.poll(_PATIENCE_S * 1000):
                return Sent.BLOCKED
        return Sent.ALL

    def clear(self) -> None:
        """Drop everything."""
        while self._frames:
            self._frames.popleft().drop()
        self._open.clear()
        self._cancelled.clear()

    def _leave_out(self, frame: Frame) -> bool:
        """Turn the first frame into less, if its request was cancelled and nothing of it is sent. False: it is to be sent
        whole."""
        if self._begun or frame.request_id not in self._cancelled:
            return False
        self.queued_bytes -= len(frame.payload)
        frame.drop()
        error = errors.Cancelled("cancelled")
        frame.head = memoryview(wire.pack_error(frame.request_id, error) if frame.last else b"")
        frame.payload = memoryview(b"")
        frame.left = 0
        return True

    def _send_first(self) -> bool:
        """Send the first frame, or what the socket takes of it; True: it is done."""
        frame = self._frames[0]
        if not self._begun and self._cancelled:
            self._leave_out(frame)
        try:
            self._send_memory(frame)
            if frame.left:
                self._send_file(frame)
        except BlockingIOError:
            return False
        self._frames.popleft()
        self._begun = False
        frame.drop()
        if frame.last:
            self._open.discard(frame.request_id)
            self._cancelled.discard(frame.request_id)
        return True

    def _send_memory(self, frame: Frame) -> None:
        while frame.head or frame.payload:
            if frame.payload:
                sent = self._sock.sendmsg([frame.head, frame.payload])
            else:
                # MSG_MORE: the head goes out in one packet with what follows.
                sent = self._sock.send(frame.head, socket.MSG_MORE if frame.left else 0)
            self._begun = True
            self.sent_bytes += sent
            in_head = min(sent, len(frame.head))
            frame.head = frame.head[in_head:]
            frame.payload = frame.payload[sent - in_head :]
            self.queued_bytes -= sent - in_head

    def _send_file(self, frame: Frame) -> None:
        file = frame.file
        assert file is not None
        while frame.left:
            try:
                sent = os.sendfile(self._sock.fileno(), frame.fd, frame.offset, frame.left)
            except BlockingIOError:
                raise
            except OSError as error:
                if error.errno in _DISK_ERRORS:
                    raise FileLost(file, frame.offset, error) from error
                raise
            if not sent:
                raise FileLost(file, frame.offset, None)
            frame.offset += sent
            frame.left -= sent
            self.sent_bytes += sent
            self.file_bytes += sent
