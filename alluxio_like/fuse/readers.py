"""The processes that read for a daemon (`processes` above 1): which they are, and which READs they have.

Owns their processes and what was handed to them. The daemon alone reads the device, so it sees every request, and sees them in
order; it hands out READs of bytes that are at hand in a cache file, and a reader (reader.py) answers those to the kernel by
itself. A reader keeps nothing that is needed: what one that died had is answered by the daemon, and another is started.

Rule of concurrency: one event loop. A READ that was handed out comes back exactly once: by `on_done`, or from `take_back`.
"""

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from alluxio_like.clock import Clock
from alluxio_like.fuse import handing
from alluxio_like.fuse.handing import Record
from alluxio_like.metrics import Metrics
from alluxio_like.types import SharedRange

log = logging.getLogger(__name__)

LEAST_BYTES = 64 << 10
"""A READ of less is not worth handing out: that costs some 25 us here and there, as much as copying so much. A guess."""
_QUEUE = 2
"""READs that a reader has at a time: one in work, and one so that it need not wait for the next."""
_HANGS_AFTER_S = 5.0
"""A reader that has not answered for so long is killed. A guess; it waits for no disk that can say that it would have to."""
_LOOK_S = 1.0
_LONGEST_PAUSE_S = 60.0
"""Between looks for readers that have died or hang; before one is started again that died before it had loaded. Guesses."""
_END_S = 1.0


class Handed(NamedTuple):
    """A READ that a reader has. `what` is its session's own."""

    what: object
    shared: SharedRange
    since_s: float


@dataclass(eq=False)
class _Process:
    """One reader, and what it knows: `slots` of files by handle, each with what it is a copy of. `owed`: slots that it is still
    to be told to forget. `loaded`: it listens."""

    process: "subprocess.Popen[bytes]"
    sock: socket.socket
    loaded: bool = False
    reads: dict[int, Handed] = field(default_factory=dict)
    slots: dict[int, tuple[int, object]] = field(default_factory=dict)
    free: list[int] = field(default_factory=lambda: list(range(handing.SLOTS)))
    owed: list[int] = field(default_factory=list)

    def send(self, record: Record, fd: int = -1) -> bool:
        """Whether it was told. False: it does not listen now; or it has died, which its socket will tell."""
        try:
            if fd < 0:
                self.sock.send(record.pack())
            else:
                socket.send_fds(self.sock, [record.pack()], [fd])
        except OSError:
            return False
        return True

    def forget(self, handle: int) -> None:
        """Have it close a file. What it was told to read of it before, it has read by then."""
        self.owed.append(self.slots.pop(handle)[0])
        self.pay()

    def pay(self) -> None:
        """Tell it what it is to forget; what it does not listen to, later."""
        while self.owed and self.send(Record(handing.FORGET, self.owed[-1])):
            self.free.append(self.owed.pop())

    def get_slot(self, handle: int, shared: SharedRange) -> int:
        """The slot of a file, which is given to it first where it has none; -1: it cannot be told."""
        known = self.slots.get(handle)
        if known is not None:
            if known[1] is shared.source:
                return known[0]
            self.forget(handle)  # another cache file by now
        elif len(self.slots) + len(self.owed) >= handing.SLOTS and self.slots:
            self.forget(next(iter(self.slots)))
        self.pay()
        if not self.free or not self.send(Record(handing.OPEN, self.free[-1]), shared.fd):
            return -1
        slot = self.free.pop()
        self.slots[handle] = slot, shared.source
        return slot


OnDone = Callable[[int, Handed, bool], None]
"""Takes `unique`, what was handed out, and whether it was answered."""


class Readers:
    """`count` processes that answer READs through `device_fd`, from `start` to `take_back`."""

    def __init__(self, count: int, device_fd: int, clock: Clock, metrics: Metrics) -> None:
        self._count = count
        self._device_fd = device_fd
        self._clock = clock
        self._processes: list[_Process] = []
        self._ended: list[subprocess.Popen[bytes]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._on_done: OnDone | None = None
        self._failures = 0
        self._start_s = 0.0
        self._answered = metrics.fuse_reads_handed.labels("answered")
        self._returned = metrics.fuse_reads_handed.labels("handed back")
        metrics.fuse_readers.set_function(lambda: len(self._processes))

    def start(self, on_done: OnDone) -> None:
        """Start them; they take part as soon as they have loaded, and those that die are started again."""
        self._on_done = on_done
        self._look()

    @property
    def pids(self) -> list[int]:
        """The processes that take part."""
        return [one.process.pid for one in self._processes if one.loaded]

    def __len__(self) -> int:
        """READs that are handed out."""
        return sum(len(one.reads) for one in self._processes)

    def find_free(self) -> "_Process | None":
        """The reader that has least to do; None: all have enough."""
        free = self._find_free()
        if free is None:
            # What they have done by now is heard at once: the event loop's turn comes only after a burst of requests, and
            # meanwhile they would have nothing to do (16 cores, 4 programs reading: 2.3 GB/s with 4 processes as with one).
            for one in list(self._processes):
                self._hear(one)
            free = self._find_free()
        return free

    def _find_free(self) -> "_Process | None":
        best, least = None, _QUEUE
        for one in self._processes:
            if len(one.reads) < least and one.loaded:
                best, least = one, len(one.reads)
        return best

    def hand_out(self, to: _Process, handle: int, unique: int, shared: SharedRange, what: object) -> bool:
        """Have a READ of an open file answered. False: it could not be handed out, and is the caller's as before."""
        slot = to.get_slot(handle, shared)
        if slot < 0:
            return False
        record = Record(handing.READ, slot, unique, shared.offset, shared.length, shared.size, shared.nowait, shared.checksums)
        if not to.send(record):
            return False
        to.reads[unique] = Handed(what, shared, self._clock.monotonic())
        return True

    def forget(self, handle: int) -> None:
        """A file was closed."""
        for one in self._processes:
            if handle in one.slots:
                one.forget(handle)

    def take_back(self) -> list[tuple[int, Handed]]:
        """End all readers; the READs they had, which are the caller's again."""
        self._on_done = None
        if self._timer is not None:
            self._timer.cancel()
        left: list[tuple[int, Handed]] = []
        for one in list(self._processes):
            left += one.reads.items()
            self._drop(one)
        return left

    async def close(self) -> None:
        """End them all, and wait for their ends; after the session's end. Does not raise."""
        self.take_back()
        for process in self._ended:
            try:
                await asyncio.to_thread(process.wait, _END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
        self._ended.clear()

    # Inside

    def _look(self) -> None:
        """Kill those that hang, start those that are missing."""
        loop = asyncio.get_running_loop()
        self._ended = [process for process in self._ended if process.poll() is None]
        now_s = self._clock.monotonic()
        for one in self._processes:
            if any(now_s - handed.since_s > _HANGS_AFTER_S for handed in one.reads.values()):
                log.warning("a reader does not answer: it is killed", extra={"pid": one.process.pid})
                one.process.kill()
        while len(self._processes) < self._count and now_s >= self._start_s:
            try:
                self._processes.append(self._start_one(loop))
            except OSError as error:
                log.warning("a reader cannot be started", extra={"reason": error.strerror})
                break
        self._timer = loop.call_later(_LOOK_S, self._look)

    def _start_one(self, loop: asyncio.AbstractEventLoop) -> _Process:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                command = [sys.executable, "-P", "-m", "alluxio_like.fuse.reader", str(theirs.fileno())]
                process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        except OSError:
            ours.close()
            raise
        ours.setblocking(False)
        one = _Process(process, ours)
        one.send(Record(handing.SERVE), self._device_fd)
        loop.add_reader(ours.fileno(), self._hear, one)
        return one

    def _hear(self, one: _Process) -> None:
        while one in self._processes:
            try:
                data = one.sock.recv(handing.DONE_BYTES)
            except BlockingIOError:
                one.pay()
                return
            except OSError:
                data = b""
            if not data:
                self._lose(one)
                return
            unique, answered = handing.unpack_done(data)
            if not one.loaded:
                one.loaded, self._failures = True, 0
                continue
            handed = one.reads.pop(unique, None)
            if handed is not None:
                self._give_back(unique, handed, answered)

    def _give_back(self, unique: int, handed: Handed, answered: bool) -> None:
        (self._answered if answered else self._returned).inc()
        if self._on_done is not None:
            self._on_done(unique, handed, answered)

    def _lose(self, one: _Process) -> None:
        """It has died: what it had is the session's again, and another is started with the next look."""
        log.warning("a reader has ended", extra={"pid": one.process.pid, "reads": len(one.reads)})
        if not one.loaded:
            self._failures += 1
            self._start_s = self._clock.monotonic() + min(2.0**self._failures, _LONGEST_PAUSE_S)
        self._drop(one)
        for unique, handed in one.reads.items():
            self._give_back(unique, handed, answered=False)

    def _drop(self, one: _Process) -> None:
        """Its end of the socket is its end."""
        self._processes.remove(one)
        asyncio.get_running_loop().remove_reader(one.sock.fileno())
        one.sock.close()
        self._ended.append(one.process)
