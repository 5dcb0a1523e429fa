"""The kernel session of a daemon that has readers: hands READs to other processes, and is the kernel session in everything else.

Owns which READs are handed out. Only this process reads the device, so requests are seen in the kernel's order, and everything
but the moving of bytes happens here. Of READs that wait at the same time the last is done here and those before it are
handed out; one that comes alone is done here, which is faster than waking somebody. Rule of concurrency: one event loop.
"""

import asyncio
import errno
import os
import time
from typing import NamedTuple

from alluxio_like.fuse import wire
from alluxio_like.fuse.accounting import Accounting
from alluxio_like.fuse.device import Device
from alluxio_like.fuse.meter import Meter
from alluxio_like.fuse.nodes import Nodes
from alluxio_like.fuse.opening import Opener
from alluxio_like.fuse.operations import Operations
from alluxio_like.fuse.readers import LEAST_BYTES, Handed, Readers
from alluxio_like.fuse.request_loop import BURST
from alluxio_like.fuse.session_kernel import Session
from alluxio_like.fuse.writing import Writing

_READ_BYTES = wire.IN_HEADER.size + wire.READ_IN.size
_LOOK_S = 0.01
"""How often an end looks whether readers have given back what they had. A guess."""


class _Read(NamedTuple):
    """A READ, as it came."""

    unique: int
    node: int
    thread: int
    handle: int
    offset: int
    size: int
    started_s: float
    flags: int


class SharedSession(Session):
    """One mount's requests, READs of them answered by `readers` too."""

    def __init__(
        self,
        operations: Operations,
        opener: Opener,
        nodes: Nodes,
        device: Device,
        io_timeout_s: float,
        meter: Meter,
        accounting: Accounting,
        readers: Readers,
        writing: Writing | None = None,
    ) -> None:
        super().__init__(operations, opener, nodes, device, io_timeout_s, meter, accounting, writing)
        self._readers = readers

    async def run(self) -> None:
        self._readers.start(self._on_read_done)
        await super().run()

    async def _wait_answered(self) -> None:
        await super()._wait_answered()
        while len(self._readers):
            # Each is answered in a moment, and given up where its reader hangs (`Readers`).
            await asyncio.sleep(_LOOK_S)
            await super()._wait_answered()

    def cancel_requests(self) -> None:
        super().cancel_requests()
        for unique, _ in self._readers.take_back():
            self._write(wire.pack_error(unique, errno.EINTR))

    def _take(self) -> None:
        kept: _Read | None = None
        try:
            for _ in range(BURST):
                try:
                    size = os.readv(self._fd, [self._buffer])
                except OSError as error:
                    if self._is_over(error):
                        return
                    continue
                if not size:
                    self._end(None)
                    return
                read = self._parse_read(size)
                if read is None:
                    self._handle(size)
                else:
                    if kept is not None:
                        self._answer(kept, alone=False)
                    kept = read
                if not self._reading:
                    return
        finally:
            if kept is not None:
                self._answer(kept, alone=True)

    def _parse_read(self, length: int) -> _Read | None:
        """The READ in the buffer; None: it is something else, or not whole."""
        said, opcode, unique, node, _, _, thread, _ = wire.IN_HEADER.unpack_from(self._buffer)
        if opcode != wire.READ or said != length or length < _READ_BYTES:
            return None
        handle, offset, size, _, _, flags = wire.READ_IN.unpack_from(self._buffer, wire.IN_HEADER.size)
        return _Read(unique, node, thread, handle, offset, size, time.perf_counter(), flags)

    def _answer(self, read: _Read, *, alone: bool) -> None:
        """Answer a READ, in whatever way; `alone`: no other one waits."""
        try:
            if alone or not self._hand_out(read):
                self._do_read(*read)
        except BaseException as error:
            self._fail("read", read.unique, error)
            if not isinstance(error, Exception):
                raise

    def _hand_out(self, read: _Read) -> bool:
        """Have a reader answer a READ; False: none has time, or the bytes are not at hand."""
        file = self._operations.lookup_file(read.handle)
        to = self._readers.find_free() if file is not None and read.size >= LEAST_BYTES else None
        if file is not None and to is not None:
            shared = self._operations.share(file, read.offset, read.size)
            if shared is not None and self._readers.hand_out(to, read.handle, read.unique, shared, read):
                # Booked now: the file's RELEASE may come before we hear of the answer.
                self._note_read(file, shared.length)
                return True
        return False

    def _on_read_done(self, unique: int, handed: Handed, answered: bool) -> None:
        """A READ was answered by a reader, or comes back to be answered here."""
        read, shared = handed.what, handed.shared
        assert isinstance(read, _Read)
        file = self._operations.lookup_file(read.handle)
        if answered:
            if file is not None and file.reader is not None:
                file.reader.note_shared(shared)
            self._meter.count("read", read.started_s)
            return
        if file is not None:
            file.read_bytes -= shared.length
        call = self._read_slowly(unique, read.node, read.thread, read.handle, read.offset, read.size)
        self._spawn("read", unique, read.thread, read.started_s, call)

    def _forget_handle(self, handle: int) -> None:
        self._readers.forget(handle)
        super()._forget_handle(handle)
