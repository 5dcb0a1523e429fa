"""The daemon's side of its holder: what the holder tells it, and what it tells the holder.

Owns the channel on the daemon's event loop and what becomes of it when the holder dies: then the daemon serves on, waits at the
mount's socket for another holder, and says so in the log. What it does when it is told to drain or to stop is the application's
(app.py). Rule of concurrency: the event loop's thread.
"""

import asyncio
import contextlib
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alluxio_like.errors import ConfigError, Conflict, Unavailable
from alluxio_like.fuse import control
from alluxio_like.fuse.device import Handshake

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hello:
    """What a daemon is told first. `resumed`: another one served the mount before; `planned`: and is still there.

    `socket`: the path at which commands and holders find this mount.
    """

    generation: int
    resumed: bool
    planned: bool
    socket: str
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Serving:
    """What to serve; the two descriptors are the caller's. `restarts`: how many daemons took over from one that died;
    `resend`: ask for what the daemon before has left unanswered; `ledger_fd`: see ledger.py; `leases`: of daemons before whose
    processes are gone."""

    device_fd: int
    ledger_fd: int
    handshake: Handshake
    place: Path
    number: str
    restarts: int
    resend: bool
    leases: tuple[str, ...] = ()


class Held:
    """A daemon's holder. `draining` and `stopping` are set when it says so; both stay set.

    `since_ns`: of a daemon that came by itself, when what keeps it going was started.
    """

    def __init__(self, sock: socket.socket, since_ns: int = 0) -> None:
        self._sock = sock
        self._since_ns = since_ns
        self._listener: socket.socket | None = None
        self._asking: set[socket.socket] = set()
        self._hello: Hello | None = None
        self._serve: tuple[dict[str, Any], list[int]] | None = None
        self._serving: Serving | None = None
        self._facts: dict[str, Any] | None = None
        self._lease = ""
        self._told = asyncio.Event()
        self.draining = asyncio.Event()
        self.stopping = asyncio.Event()
        self.is_orphan = False

    @property
    def hello(self) -> Hello:
        """What it said first, once it has."""
        assert self._hello is not None
        return self._hello

    async def wait_hello(self) -> Hello:
        """The first message; may be asked for again. Raises Unavailable when there is no holder, ConfigError when it speaks
        another language, Conflict when it does not want this daemon."""
        if self._hello is not None:
            return self._hello
        loop = asyncio.get_running_loop()
        self._sock.setblocking(False)
        readable = asyncio.Event()
        loop.add_reader(self._sock.fileno(), readable.set)
        # For a process on standby that is when the one before it dies; when the holder dies, the socket ends.
        await readable.wait()
        loop.remove_reader(self._sock.fileno())
        received = control.receive(self._sock)
        if received is not None and received[0].get("kind") == "refused":
            raise Conflict(f"the mount's holder does not take this daemon: {received[0].get('reason')}")
        if received is None or received[0].get("kind") != "hello":
            raise Unavailable("the mount's holder is gone")
        message = received[0]
        if message.get("version") != control.VERSION:
            raise ConfigError(f"the mount's holder speaks version {message.get('version')}, not {control.VERSION}: mount anew")
        self._hello = Hello(*(message[name] for name in Hello.__slots__))
        loop.add_reader(self._sock.fileno(), self._on_readable)
        return self._hello

    async def wait_serving(self) -> Serving | None:
        """Say that everything is prepared; what to serve then, or None when the daemon is to end instead."""
        self._tell("ready")
        await self._told.wait()
        if self._serve is None:
            return None
        message, (device_fd, ledger_fd) = self._serve
        self._serving = Serving(
            device_fd,
            ledger_fd,
            Handshake.from_facts(message["handshake"]),
            Path(message["place"]),
            str(message["device"]),
            int(message.get("restarts", 0)),
            bool(message["resend"]),
            tuple(map(str, message.get("leases", ()))),
        )
        return self._serving

    def tell_lease(self, lease: str) -> None:
        """Say by what the master knows this daemon's lease, before that begins: who serves after us, if we are killed, has it
        ended. (A holder of an earlier release does not keep it.)"""
        self._lease = lease
        self._tell("lease", id=lease)

    def tell_serving(self, **facts: Any) -> None:
        """Say that requests are being served; `facts` are what the ready file says of the mount."""
        self._facts = facts
        self._tell("serving", facts=facts)

    def tell_paused(self) -> None:
        """Say that no further request will be taken."""
        self._tell("paused")

    def tell_drained(self) -> None:
        """Say that all that was taken is answered."""
        self._tell("drained")

    def tell_gone(self) -> None:
        """Say that the mount is gone."""
        self._tell("gone")

    def tell_failed(self, message: str) -> None:
        """Say why this daemon ends."""
        self._tell("failed", message=message)

    def close(self) -> None:
        """Hear nothing more. The device and the ledger's descriptor stay open: they are their users'."""
        for sock in (self._sock, *self._asking):
            self._forget(sock)
        if self._listener is not None:
            self._forget(self._listener)
            self._listener = None
            if self._hello is not None:
                with contextlib.suppress(OSError):
                    Path(self._hello.socket).unlink()

    # Inside

    def _tell(self, kind: str, **details: Any) -> None:
        control.send(self._sock, {"kind": kind, **details})

    def _forget(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
        self._asking.discard(sock)

    def _on_readable(self) -> None:
        while True:
            try:
                received = control.receive(self._sock)
            except BlockingIOError:
                return
            if received is None:
                self._forget(self._sock)
                self._on_orphaned()
                return
            self._obey(*received)

    def _obey(self, message: dict[str, Any], fds: list[int]) -> None:
        kind = message.get("kind")
        if kind == "serve" and len(fds) == 2 and self._serve is None:
            self._serve = message, fds
            self._told.set()
            return
        for fd in fds:
            os.close(fd)
        if kind == "ping":
            self._tell("pong", number=message.get("number"))
        elif kind == "drain":
            self.draining.set()
        elif kind == "stop":
            self.stopping.set()
            self._told.set()

    def _on_orphaned(self) -> None:
        """The holder is gone. Who serves goes on; who does not has nothing to do any more."""
        if self.stopping.is_set() or self.draining.is_set() or self._serving is None or self._hello is None:
            self.stopping.set()
            self._told.set()
            return
        self.is_orphan = True
        log.warning(
            "the mount's holder has died: serving on, but nothing would start this daemon again; start the mount's command anew"
        )
        try:
            self._listener = control.listen(self._hello.socket)
        except OSError as error:
            log.error("another holder will not find this daemon", extra={"reason": error.strerror})
            return
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._on_connection)

    def _on_connection(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if not control.is_allowed(sock):
            sock.close()
            return
        sock.setblocking(False)
        self._asking.add(sock)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._on_asked, sock)

    def _on_asked(self, sock: socket.socket) -> None:
        try:
            received = control.receive(sock)
        except BlockingIOError:
            return
        if received is None:
            self._forget(sock)
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        if message.get("kind") == "status":
            control.send(sock, {"kind": "status", "state": "orphan", **self._describe()})
        elif message.get("kind") == "adopt" and self.is_orphan:
            self._be_adopted(sock)
        elif message.get("kind") == "join":
            self._forget(sock)  # another daemon, which looks for a holder, too
        else:
            control.send(sock, {"kind": "refused", "reason": "the mount's holder has died: start the mount's command anew first"})

    def _be_adopted(self, sock: socket.socket) -> None:
        assert self._serving is not None
        assert self._listener is not None
        if not control.send(sock, {"kind": "adopted", **self._describe()}, [self._serving.device_fd, self._serving.ledger_fd]):
            self._forget(sock)
            return
        loop = asyncio.get_running_loop()
        self._asking.discard(sock)
        self._sock = sock
        loop.remove_reader(sock.fileno())
        loop.add_reader(sock.fileno(), self._on_readable)
        # The new holder listens at the path itself.
        self._forget(self._listener)
        self._listener = None
        self.is_orphan = False
        log.info("the mount has a holder again")

    def _describe(self) -> dict[str, Any]:
        assert self._hello is not None
        serving = self._serving
        return {
            "daemon_pid": os.getpid(),
            "generation": self._hello.generation,
            "restarts": serving.restarts if serving else 0,
            "place": str(serving.place) if serving else "",
            "device": serving.number if serving else "",
            "handshake": serving.handshake._asdict() if serving else {},
            "config": self._hello.config,
            "since_ns": self._since_ns,
            "facts": self._facts or {},
            "lease": self._lease,
        }
