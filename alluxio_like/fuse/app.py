"""The FUSE daemon: wires client, operations and session, and serves until the mount is gone.

The only module here that builds concrete things. Runs on one event loop (uvloop); one mount a process. The end of a mount comes from
outside (umount: the session ends when the last open file is closed) or from SIGTERM and SIGINT: the mount is detached, requests
under way get a moment, the rest fails.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alluxio_like.client.client import Client
from alluxio_like.clock import SystemClock
from alluxio_like.config import FuseConfig, write_ready_file
from alluxio_like.errors import AlluxioLikeError, ConfigError, Conflict, Internal, NotADirectory, NotFound, TimedOut
from alluxio_like.fuse import mountpoint
from alluxio_like.fuse.backend import Backend
from alluxio_like.fuse.client_backend import ClientBackend
from alluxio_like.fuse.notify import Notifier
from alluxio_like.fuse.operations import Operations, Settings
from alluxio_like.metrics import Health, HttpServer, Metrics, start_http
from alluxio_like.types import Entry, Kind

if TYPE_CHECKING:
    from alluxio_like.fuse.session_pyfuse3 import Session

log = logging.getLogger(__name__)

_GRACE_S = 2.0
"""What requests under way get to end when the daemon is told to stop. A guess."""


async def run(config: FuseConfig) -> int:
    """Serve one mount until it is unmounted or told to stop by SIGTERM or SIGINT; the exit code.

    Raises the package's errors when the mount cannot be made (NotFound, Conflict, ConfigError, Unavailable, ...); nothing stays
    behind then.
    """
    metrics = Metrics(process=True)
    # One setting for the whole daemon; the stricter of the two names it has.
    io_timeout_s = min(config.io_timeout_s, config.client.io_timeout_s)
    config = config.model_copy(update={"client": config.client.model_copy(update={"io_timeout_s": io_timeout_s})})
    client = Client.open(config.client, metrics=metrics)
    try:
        return await serve(config, ClientBackend(client), metrics)
    finally:
        await client.close()


async def serve(config: FuseConfig, backend: Backend, metrics: Metrics) -> int:
    """Mount `config.path` of a backend at `config.mountpoint` and serve it; the exit code. Does not close the backend."""
    if config.session == "kernel":
        raise ConfigError("the kernel session is not here yet: use pyfuse3", subject="session")
    parts = _make_parts(config, backend, await _get_root(config, backend), metrics)
    place, was_made = await asyncio.to_thread(mountpoint.check_place, config.mountpoint)
    try:
        health = _MountHealth(place, parts.session)
        async with _serve_http(config, metrics, health) as http:
            await _serve_mount(config, parts, place, http, health)
    finally:
        await parts.operations.close()
        if was_made:
            await asyncio.to_thread(mountpoint.remove_place, place)
    return 0


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one mount is made of."""

    operations: Operations
    session: "Session"
    notifier: Notifier


class _MountHealth:
    """Whether the mount is served and is what programs find at its place; asked from the HTTP server's threads."""

    def __init__(self, place: Path, session: "Session") -> None:
        self._place = place
        self._session = session
        self.device = ""
        """The mount's device number, once it is there."""

    def get(self) -> Health:
        top = mountpoint.find_top(self._place)
        mounted = top is not None and bool(self.device) and top.device == self.device
        serving = self._session.is_serving
        return Health(mounted and serving, {"mountpoint": str(self._place), "mounted": mounted, "serving": serving})


def _make_parts(config: FuseConfig, backend: Backend, root: Entry, metrics: Metrics) -> _Parts:
    try:
        from alluxio_like.fuse.session_pyfuse3 import Session
    except ImportError as error:
        needs = "it is built with gcc, pkg-config and the headers of Python and libfuse3"
        raise ConfigError(f"pyfuse3 cannot be used ({error}): install alluxio-like[fuse]; {needs}") from None

    io_timeout_s = config.client.io_timeout_s
    notifier = Notifier(Session.invalidate_entry)
    operations = Operations(backend, root, Settings(config.entry_timeout_s, io_timeout_s), SystemClock(), notifier.tell)
    metrics.fuse_handles.set_function(operations.count_open)
    return _Parts(operations, Session(operations, io_timeout_s, metrics), notifier)


async def _get_root(config: FuseConfig, backend: Backend) -> Entry:
    try:
        answer = await backend.resolve(config.path)
    except NotFound:
        raise NotFound("no such directory in the namespace: nothing to mount", subject=config.path) from None
    if answer.entry is None:
        raise NotFound("no such directory in the namespace: nothing to mount", subject=config.path)
    if answer.entry.attr.kind is not Kind.DIRECTORY:
        raise NotADirectory("only a directory can be mounted", subject=config.path)
    return answer.entry


@contextlib.asynccontextmanager
async def _serve_http(config: FuseConfig, metrics: Metrics, health: "_MountHealth") -> AsyncIterator[HttpServer | None]:
    tls = config.tls
    http = start_http(
        config.http_bind,
        metrics,
        health.get,
        certificate=tls.certificate,
        key=tls.key,
        insecure=config.insecure,
    )
    try:
        yield http
    finally:
        if http is not None:
            await asyncio.to_thread(http.close)


def _make_options(config: FuseConfig) -> set[str]:
    options = {f"fsname={mountpoint.SOURCE}", f"subtype={mountpoint.SUBTYPE}", "default_permissions", "ro", "nosuid", "nodev"}
    allow_other = mountpoint.may_allow_other() if config.allow_other is None else config.allow_other
    if allow_other:
        options.add("allow_other")
    return options


async def _serve_mount(config: FuseConfig, made: _Parts, place: Path, http: HttpServer | None, health: "_MountHealth") -> None:
    session, operations = made.session, made.operations
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    session.mount(str(place), _make_options(config))
    device = ""
    task = asyncio.create_task(session.run(), name="fuse-session")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    try:
        await _wait_first(task, session.wait_ready(), config.client.io_timeout_s)
        top = await asyncio.to_thread(mountpoint.find_top, place)
        if top is not None and top.fstype == mountpoint.FSTYPE:
            device = health.device = top.device
            await asyncio.to_thread(mountpoint.tune, device, config.read_ahead_kb)
        if os.geteuid() == 0:
            # Only where we can abort: see mountpoint.end_ours.
            made.notifier.start()
        write_ready_file(config, mountpoint=str(place), path=config.path, http_address=http.address if http else "")
        log.info("mounted", extra={"mountpoint": str(place), "path": config.path})
        stopping = asyncio.create_task(told.wait())
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
    finally:
        # The signals stay handled: one that comes now must not turn a clean end into a kill.
        left = await _end(task, made, place, device)
    if left:
        raise Conflict(f"still mounted ({left}): take it away with umount -l", subject=str(place))
    log.info("unmounted", extra={"mountpoint": str(place), "left_open": operations.count_open()})
    if task.done() and not task.cancelled() and task.exception() is not None:
        raise Internal(f"the FUSE session broke: {task.exception()}")


async def _wait_first(task: "asyncio.Task[None]", ready: Coroutine[None, None, None], timeout_s: float) -> None:
    """Wait for the kernel's first request. Raises what ended the session instead, or TimedOut."""
    waiting = asyncio.create_task(ready)
    try:
        await asyncio.wait([task, waiting], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            raise Internal("the FUSE session ended before it began")
        if not waiting.done():
            raise TimedOut(f"the kernel sent no request within {timeout_s:g} s")
    finally:
        waiting.cancel()


async def _end(task: "asyncio.Task[None]", made: _Parts, place: Path, device: str) -> str:
    """End the session and take the mount away if it is still there; bounded. Why the mount could not be taken away, or nothing."""
    session = made.session
    left = ""
    made.notifier.end()
    if not task.done():
        session.stop()
        await asyncio.wait([task], timeout=_GRACE_S)
        if not task.done():
            session.cancel_requests()
            await asyncio.wait([task], timeout=_GRACE_S)
        if device:
            try:
                await asyncio.to_thread(mountpoint.end_ours, place, device)
            except AlluxioLikeError as error:
                top = await asyncio.to_thread(mountpoint.find_top, place)
                left = str(error) if top is not None and top.device == device else ""
    await asyncio.to_thread(made.notifier.join, _GRACE_S)
    # Without a device number it was never seen mounted: leave that to libfuse.
    session.close(unmount=not device)
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_GRACE_S)
    return left
