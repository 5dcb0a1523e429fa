"""A small daemon under a holder, for tests of the holder alone: a directory of a few files, served on an event loop.

Its last argument is the descriptor of its channel, its configuration comes from the holder; or it joins one (`join`):
    fail         end before being ready, with this message
    blocked_by   end before being ready while this file exists
    never_ready  prepare for ever
    deaf         do not stop taking requests when told to drain
    stuck_until  requests for the name `stuck` are answered by daemons of this generation and later only
    slow_s       how long an answer for the name `slow` takes
    slow_until   the file without which no answer for the name `slow` comes
    crash_on     end at once when this name is asked for, in daemons before generation `crash_until`
    backing      a file that `p` passes through to
Names: `f` (CONTENT), `p`, `g` (the serving daemon's generation, as text), `stuck`, `slow`, `kept`. That one, and what the
directory is like, the kernel may remember for an hour; and of its close it tells, as of a file that is written.
"""

import asyncio
import errno
import json
import os
import signal
import socket
import sys
import time
from typing import Any

from alluxio_like.errors import AlluxioLikeError
from alluxio_like.fuse import control, wire
from alluxio_like.fuse.device import BUFFER_BYTES, Device
from alluxio_like.fuse.held import Held, Serving
from alluxio_like.fuse.ledger import Ledger

CONTENT = bytes(range(256)) * 4096
FILES = {b"f": 2, b"p": 3, b"g": 4, b"stuck": 5, b"slow": 6, b"kept": 7}
INODE = (1 << 48) - 1


class Server:
    def __init__(self, held: Held, config: dict[str, Any], generation: int, serving: Serving) -> None:
        self.held, self.config, self.generation = held, config, generation
        self.device = Device(serving.device_fd, Ledger(serving.ledger_fd))
        self.loop = asyncio.get_running_loop()
        self.pending = 0
        self.reading = False
        self.over = asyncio.Event()
        self.backings: dict[int, tuple[int, int]] = {}
        self.handles = 0
        self.tasks: list[asyncio.Task[None]] = []
        os.set_blocking(self.device.fd, False)

    def start(self) -> None:
        self.reading = True
        self.loop.add_reader(self.device.fd, self.work)

    def stop(self) -> None:
        if self.reading:
            self.reading = False
            self.loop.remove_reader(self.device.fd)

    def work(self) -> None:
        while self.reading:
            try:
                data = os.read(self.device.fd, BUFFER_BYTES)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                self.held.tell_gone()
                self.stop()
                self.over.set()
                return
            self.answer(*wire.parse(memoryview(data)))

    def attr(self, nodeid: int) -> bytes:
        inode = nodeid & INODE
        size = {3: os.stat(self.config["backing"]).st_size if "backing" in self.config else 0, 4: 1}.get(inode, len(CONTENT))
        return wire.pack_attr(
            inode=inode, size=size, mode=0o40755 if inode == 1 else 0o100644, uid=0, gid=0, mtime_ns=0, ctime_ns=0, atime_ns=0,
            nlink=1, block_bytes=4096, blocks=size // 512,
        )  # fmt: skip

    def write(self, message: bytes) -> None:
        try:
            os.write(self.device.fd, message)
        except OSError as error:
            assert error.errno in (errno.ENOENT, errno.EINVAL, errno.ENODEV, errno.ECONNABORTED), error

    def later(self, delay_s: float, message: bytes) -> None:
        def send() -> None:
            self.pending -= 1
            self.write(message)

        self.pending += 1
        self.loop.call_later(delay_s, send)

    async def wait_file(self, file: str, message: bytes) -> None:
        while not os.path.exists(file):
            await asyncio.sleep(0.01)
        self.pending -= 1
        self.write(message)

    def lookup(self, unique: int, name: bytes) -> None:
        if name == self.config.get("crash_on", "").encode() and self.generation < self.config.get("crash_until", 1 << 30):
            os.kill(os.getpid(), signal.SIGTERM)
        if name == b"stuck" and self.generation < self.config.get("stuck_until", 0):
            self.pending += 1
            return
        inode = FILES.get(name, 0)
        if not inode:
            self.write(wire.pack_error(unique, errno.ENOENT))
            return
        nodeid = inode | self.generation << 48 if inode == 3 else inode
        valid_s = 3600 if name == b"kept" else 0
        answer = wire.pack_reply(unique, wire.pack_entry(nodeid, self.attr(inode), valid_s, valid_s))
        if name == b"slow" and self.config.get("slow_until"):
            self.pending += 1
            self.tasks.append(self.loop.create_task(self.wait_file(self.config["slow_until"], answer)))
        elif name == b"slow":
            self.later(self.config.get("slow_s", 1.0), answer)
        else:
            self.write(answer)

    def open(self, unique: int, nodeid: int) -> None:
        self.handles += 1
        fh = self.generation << 40 | self.handles
        if nodeid & INODE != 3:
            # As the real one does: only of what is written the kernel is to say that it is closed.
            flush = 0 if nodeid == FILES[b"kept"] else wire.FOPEN_NOFLUSH
            self.write(wire.pack_reply(unique, wire.pack_open(fh, flush | (wire.FOPEN_DIRECT_IO if nodeid == 4 else 0))))
            return
        if nodeid >> 48 != self.generation:
            self.write(wire.pack_error(unique, errno.ESTALE))
            return
        backing_id, users = self.backings.get(nodeid, (0, 0))
        if not users:
            with open(self.config["backing"], "rb") as stream:
                backing_id = self.device.open_backing(stream.fileno())
        self.backings[nodeid] = backing_id, users + 1
        self.write(wire.pack_reply(unique, wire.pack_open(fh, wire.FOPEN_PASSTHROUGH | wire.FOPEN_NOFLUSH, backing_id)))

    def release(self, unique: int, nodeid: int) -> None:
        backing_id, users = self.backings.get(nodeid, (0, 0))
        if users == 1:
            self.device.close_backing(backing_id)
        if users:
            self.backings[nodeid] = backing_id, users - 1
        self.write(wire.pack_reply(unique))

    def answer(self, header: wire.InHeader, body: wire.Body) -> None:
        unique, nodeid = header.unique, header.nodeid
        match body:
            case wire.Name(name) if header.opcode == wire.LOOKUP:
                self.lookup(unique, name)
            case wire.Getattr():
                self.write(wire.pack_reply(unique, wire.pack_attr_out(self.attr(nodeid), 3600 if nodeid == 1 else 0)))
            case wire.Open() if header.opcode == wire.OPEN:
                self.open(unique, nodeid)
            case wire.Open():
                self.write(wire.pack_reply(unique, wire.pack_open(0, 0)))
            case wire.Flush():
                self.write(wire.pack_reply(unique))
            case wire.Release():
                self.release(unique, nodeid)
            case wire.Read(_, offset, size) if header.opcode == wire.READ:
                content = str(self.generation).encode() if nodeid == 4 else CONTENT
                self.write(wire.pack_reply(unique, content[offset : offset + size]))
            case wire.Read(_, offset, size):
                listing = wire.Directory(size)
                for at, (name, inode) in enumerate(FILES.items()):
                    entry = b"" if header.opcode == wire.READDIR else wire.pack_missing(0)
                    if at >= offset and not listing.add_plus(entry, inode, at + 1, 0o100644, name):
                        break
                self.write(wire.pack_reply(unique, listing.data))
            case _ if header.opcode in wire.UNANSWERED:
                pass
            case _:
                self.write(wire.pack_error(unique, errno.ENOSYS))


def join() -> int:
    """Go to the holder at argv[2] by itself, started at argv[3] and configured as argv[4] says; the descriptor of the channel."""
    message = {"kind": "join", "version": control.VERSION, "since_ns": int(sys.argv[3]), "config": json.loads(sys.argv[4])}
    while True:
        sock = control.connect(sys.argv[2], 5)
        if sock is not None and control.send(sock, message):
            return sock.detach()
        time.sleep(0.02)


async def main(control_fd: int) -> int:
    is_joining = sys.argv[1] == "--join"
    held = Held(socket.socket(fileno=control_fd), since_ns=int(sys.argv[3]) if is_joining else 0)
    hello = await held.wait_hello()
    config = hello.config
    if "fail" in config:
        held.tell_failed(config["fail"])
        return 3
    if os.path.exists(config.get("blocked_by", "")):
        held.tell_failed("blocked")
        return 4
    if config.get("never_ready"):
        await held.stopping.wait()
        return 0
    serving = await held.wait_serving()
    if serving is None:
        return 0
    server = Server(held, config, hello.generation, serving)
    if serving.resend:
        server.device.notify(wire.pack_resend())
    server.start()
    held.tell_lease(f"of {hello.generation}")
    held.tell_serving(mountpoint=str(serving.place), leases=serving.leases)
    waits = [asyncio.create_task(event.wait()) for event in (server.over, held.stopping, held.draining)]
    await asyncio.wait(waits[:2] if config.get("deaf") else waits, return_when=asyncio.FIRST_COMPLETED)
    server.stop()
    if held.draining.is_set():
        held.tell_paused()
        while server.pending and not held.stopping.is_set():
            await asyncio.sleep(0.01)
        held.tell_drained()
        await held.stopping.wait()
    for wait in waits:
        wait.cancel()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(join() if sys.argv[1] == "--join" else int(sys.argv[-1]))))
    except AlluxioLikeError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
