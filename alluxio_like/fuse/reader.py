"""A process that reads for a daemon: `python -P -m alluxio_like.fuse.reader SOCKET`, its end of their channel.

Owns nothing that lasts: it is told which cache file to read where, verifies what it is told to, and answers the kernel itself,
through the daemon's own descriptor. What it cannot answer at once it hands back. It knows no names, no index and no
services, and ends when the daemon does. One thread; started by readers.py.
"""

import array
import contextlib
import os
import socket
import sys

from alluxio_like.cache.checksum import compute_checksum
from alluxio_like.fuse import handing, wire
from alluxio_like.fuse.handing import Record
from alluxio_like.types import PAGE_BYTES

_OUT_BYTES = wire.OUT_HEADER.size


class _Reader:
    """Serves one daemon until it has gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._device_fd = -1
        self._files: dict[int, int] = {}
        self._memory = memoryview(bytearray(_OUT_BYTES + PAGE_BYTES))
        self._page = memoryview(bytearray(PAGE_BYTES))

    def run(self) -> None:
        while True:
            data, ancillary, _, _ = self._sock.recvmsg(handing.RECORD_BYTES, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
            if not data:
                return
            record = Record.unpack(data)
            if record.kind == handing.READ:
                answered = self._answer(record)
                self._sock.send(handing.pack_done(record.unique, answered=answered))
            elif record.kind == handing.FORGET:
                os.close(self._files.pop(record.slot))
            else:
                (fd,) = array.array("i", ancillary[0][2])
                if record.kind == handing.SERVE:
                    self._device_fd = fd
                    self._sock.send(handing.pack_done(0, answered=True))
                else:
                    self._files[record.slot] = fd

    def _answer(self, record: Record) -> bool:
        """Whether a READ was answered, by us or by whoever else."""
        memory = self._memory[: _OUT_BYTES + record.length]
        try:
            if not self._read(record, memory[_OUT_BYTES:]):
                return False
            wire.OUT_HEADER.pack_into(memory, 0, len(memory), 0, record.unique)
            os.write(self._device_fd, memory)
        except OSError as error:
            # One that nobody waits for any more needs no answer; one that the kernel has not taken needs another.
            return error.errno in wire.GONE
        return True

    def _read(self, record: Record, into: memoryview) -> bool:
        """Fill `into`, verified, without waiting for a disk; False where that cannot be. Raises OSError."""
        fd = self._files[record.slot]
        first = record.offset // PAGE_BYTES
        for place, checksum in enumerate(record.sums):
            if checksum is None:
                continue
            start = (first + place) * PAGE_BYTES
            length = min(PAGE_BYTES, record.size - start)
            if start == record.offset and length == len(into):
                # The page is all that is wanted: what was verified is what is given.
                return os.preadv(fd, (into,), start, record.nowait) == length and compute_checksum(into) == checksum
            page = self._page[:length]
            if os.preadv(fd, (page,), start, record.nowait) != length or compute_checksum(page) != checksum:
                return False
        return os.preadv(fd, (into,), record.offset, record.nowait) == len(into)


def main(descriptor: int) -> None:
    sock = socket.socket(fileno=descriptor)
    with sock, contextlib.suppress(ConnectionError):
        _Reader(sock).run()


if __name__ == "__main__":
    main(int(sys.argv[-1]))
