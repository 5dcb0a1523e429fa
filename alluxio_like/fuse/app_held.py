"""The FUSE daemon under a holder: prepares, serves what the holder hands it, and leaves when the holder says so.

Wires like app.py, whose parts it uses; apart from it because its life is another: the mount is there before it and after it.
Runs on one event loop (uvloop).

Leaving for a successor: no request is taken any more (`paused`), those under way are answered (`drained`), the process ends. So
no request is lost and none is answered twice. The address of /metrics changes hands in the same moment; where it is not free yet,
the successor serves the mount first and tries again.

The lease at the master says what the kernel may rely on, and the kernel remembers on when a daemon has ended. So what was told
under a lease is taken back before that ends: who leaves in good order does it himself, and gives his lease back then. Who is
killed leaves both to the next one, which hears of the lease from the holder once the process is gone. (A kernel before 6.16
cannot be told of all names at once: there the lease of one that was killed runs out by itself.)
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

from alluxio_like.client.client import Client
from alluxio_like.config import FuseConfig
from alluxio_like.errors import Conflict, Internal
from alluxio_like.fuse import mountpoint, wire
from alluxio_like.fuse.app import (
    Connection,
    MountHealth,
    Parts,
    begin_making,
    end_requests,
    get_root,
    make_kernel_parts,
    may_tell,
    serve_http,
    unite_timeouts,
    wait_first,
)
from alluxio_like.fuse.backend import Backend
from alluxio_like.fuse.client_backend import ClientBackend
from alluxio_like.fuse.device import Device
from alluxio_like.fuse.held import Held, Serving
from alluxio_like.fuse.ledger import Ledger
from alluxio_like.metrics import HttpServer, Metrics
from alluxio_like.types import EVERYWHERE, Recall

log = logging.getLogger(__name__)

_GRACE_S = 2.0
"""What ends get. As in app.py."""
_REVIVE_S = 5.0
"""How long it may take to know again what is being written, before anything is answered. A guess."""
_PATIENCE_S = 10.0
"""How long writers have to come with a request, before what they had written is sealed for them. A guess."""
_TAKE_BACK_S = 1.0
"""What the kernel gets to hear what it is to ask for again, when a daemon leaves: a moment, unless a program waits there. A
guess."""
_HTTP_RETRY_S = 0.5
_HTTP_TRIES = 120


async def run(config: FuseConfig, held: Held) -> int:
    """Serve the mount that a holder keeps, until it is gone or the holder says so; the exit code. Raises the package's errors."""
    metrics = Metrics(process=True)
    config = unite_timeouts(config)
    client = Client.open(config.client, metrics=metrics)
    try:
        return await serve(config, ClientBackend(client), metrics, held)
    finally:
        await client.close()


async def serve(config: FuseConfig, backend: Backend, metrics: Metrics, held: Held) -> int:
    """As `run`, of a backend, which is not closed."""
    root = await get_root(config, backend)
    serving = await held.wait_serving()
    if serving is None:
        return 0
    device = Device(serving.device_fd, Ledger(serving.ledger_fd))
    parts: Parts | None = None
    try:
        connection = Connection(device, serving.handshake, held.hello.generation, serving.number)
        parts = make_kernel_parts(config, backend, root, metrics, connection)
        await begin_making(config, backend, parts, connection)
        metrics.fuse_generation.set(held.hello.generation)
        metrics.fuse_restarts.set(serving.restarts)
        # What breaks a lease that is only taken to see whether a file is written must not end us.
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REVIVE_S):
                # Where the kernel writes by itself it can be asked who writes; else writers are known once they write.
                passes = parts.opener is not None and parts.opener.passes
                await parts.operations.revive(device.list_written(), 0.0 if passes else _PATIENCE_S)
        daemon = _Daemon(config, parts, held, serving, device, metrics)
        try:
            return await daemon.run()
        finally:
            await daemon.http.close()
    finally:
        if parts is not None:
            await parts.close()
        device.close()


class _Http:
    """The server of /metrics, which may have to wait for the daemon before to let go of its address."""

    def __init__(self, open_server: Callable[[], "contextlib.AbstractAsyncContextManager[HttpServer | None]"]) -> None:
        self._open = open_server
        self._stack = contextlib.AsyncExitStack()
        self._trying: asyncio.Task[None] | None = None
        self.server: HttpServer | None = None

    async def open(self) -> None:
        """Raises Conflict when the address is taken."""
        self.server = await self._stack.enter_async_context(self._open())

    def open_later(self, on_open: Callable[[], None]) -> None:
        """Try until it is free, for a minute."""
        self._trying = asyncio.create_task(self._try(on_open), name="http")

    async def _try(self, on_open: Callable[[], None]) -> None:
        for _ in range(_HTTP_TRIES):
            await asyncio.sleep(_HTTP_RETRY_S)
            with contextlib.suppress(Conflict):
                await self.open()
                on_open()
                return
        log.error("metrics are not served: their address stays taken")

    async def close(self) -> None:
        """Let go of the address; may be called again."""
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.gather(self._trying, return_exceptions=True)
        await self._stack.aclose()


class _Daemon:
    """One daemon's time on the mount."""

    def __init__(self, config: FuseConfig, parts: Parts, held: Held, serving: Serving, device: Device, metrics: Metrics) -> None:
        self._config = config
        self._parts = parts
        self._held = held
        self._serving = serving
        self._device = device
        self._watching = False
        health = MountHealth(serving.place, parts.session)
        health.device = serving.number
        self.http = _Http(lambda: serve_http(config, metrics, health, parts))

    async def run(self) -> int:
        """Serve until the mount is gone or somebody else is to; the exit code."""
        held, session, notifier = self._held, self._parts.session, self._parts.notifier
        leaving, gone = asyncio.Event(), False
        has_http = await self._try_http()
        self._parts.start()
        if self._serving.resend:
            # Before anything is taken: what is being answered would come a second time, too.
            self._device.notify(wire.pack_resend())
        task = asyncio.create_task(session.run(), name="fuse-session")
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, leaving.set)
        try:
            await wait_first(task, session.wait_ready(), self._config.client.io_timeout_s)
            # What the daemon before has told the kernel nobody vouches for any more; `start` has all names asked for again.
            # (But for what others have mounted below: see nested.py.)
            gently = self._parts.nested is not None and bool(self._parts.nested.list_steps())
            notifier.start(gently=gently)
            notifier.tell_inode(wire.ROOT_ID)
            if gently:
                await self._ask_again()
            self._watch()
            self._tell_serving()
            if not has_http:
                self.http.open_later(self._tell_serving)
            await asyncio.to_thread(mountpoint.tune, self._serving.number, self._config.read_ahead_kb)
            await _wait_any(task, leaving, held.draining, held.stopping)
            gone = task.done()
            session.stop()
            if held.draining.is_set() and not held.stopping.is_set() and not gone:
                await self._drain(task)
        finally:
            if self._watching and not held.stopping.is_set() and not (gone and task.exception() is None):
                await self._take_back(task)
            # What it waits for in the kernel is answered by whoever serves next, or ends with the mount.
            notifier.end()
            await end_requests(task, session)
            await asyncio.to_thread(notifier.join, _GRACE_S)
        if task.done() and not task.cancelled() and task.exception() is not None:
            raise Internal(f"the FUSE session broke: {task.exception()}")
        if gone:
            held.tell_gone()
        log.info("the mount is gone" if gone else "left the mount", extra={"generation": held.hello.generation})
        return 0

    def _watch(self) -> None:
        """Hold a lease, and have those ended of daemons that left none to end them."""
        parts = self._parts
        leases = self._serving.leases if parts.notifier.can_tell_all and may_tell() else ()
        self._watching = True
        # In one step: nothing is promised to anybody before the holder has been told.
        self._held.tell_lease(parts.watch(parts.operations.begin_recall, leases))

    async def _take_back(self, task: "asyncio.Task[None]") -> None:
        """The mount stays, and our lease does not: have the kernel ask again for what we have told it."""
        # Of what is answered later it would not know.
        await _wait_any(task, timeout_s=_GRACE_S)
        await self._ask_again()

    async def _ask_again(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKE_BACK_S):
                await self._parts.operations.begin_recall([Recall(EVERYWHERE, all_names=True)])

    async def _try_http(self) -> bool:
        try:
            await self.http.open()
        except Conflict:
            if not self._held.hello.resumed:
                raise
            return False
        return True

    def _tell_serving(self) -> None:
        server, place = self.http.server, self._serving.place
        self._parts.address.url = server.url if server is not None else ""
        self._held.tell_serving(
            mountpoint=str(place),
            path=self._config.path,
            session=self._parts.description,
            http_address=server.address if server is not None else "",
        )
        facts = {"mountpoint": str(place), "generation": self._held.hello.generation, "resend": self._serving.resend}
        log.info("serving", extra={**facts, "session": self._parts.description})

    async def _drain(self, task: "asyncio.Task[None]") -> None:
        """Answer what was taken; nothing more is."""
        held = self._held
        held.tell_paused()
        closing = asyncio.create_task(self.http.close(), name="http-close")
        await _wait_any(task, held.stopping)
        if task.done():
            held.tell_drained()
            await _wait_any(held.stopping, timeout_s=_GRACE_S)
        await closing


async def _wait_any(*what: "asyncio.Task[None] | asyncio.Event", timeout_s: float | None = None) -> None:
    """Wait until one of these is done or set."""
    waits = {thing if isinstance(thing, asyncio.Task) else asyncio.ensure_future(thing.wait()) for thing in what}
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits - set(what):
            wait.cancel()
