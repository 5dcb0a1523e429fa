"""The FUSE daemon: wires client, operations and session, and serves until the mount is gone.

The only module here that builds concrete things. Runs on one event loop (uvloop); one mount a process. The end of a mount comes
from outside (umount: the session ends when the last open file is closed) or from SIGTERM and SIGINT: the mount is detached,
requests under way get a moment, the rest fails.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from alluxio_like.client.client import Client
from alluxio_like.clock import SystemClock
from alluxio_like.config import FuseConfig, write_ready_file
from alluxio_like.errors import AlluxioLikeError, ConfigError, Conflict, Internal, NotADirectory, NotFound, TimedOut
from alluxio_like.fuse import mountpoint
from alluxio_like.fuse.accounting import Accounting
from alluxio_like.fuse.appending import Appends
from alluxio_like.fuse.backend import Backend
from alluxio_like.fuse.books_page import make_page, show_waiting
from alluxio_like.fuse.changing import Changing
from alluxio_like.fuse.choosing import choose_session
from alluxio_like.fuse.client_backend import ClientBackend
from alluxio_like.fuse.device import LOCKS, Device, DeviceWriter, Handshake, get_extra_flags
from alluxio_like.fuse.following import Following
from alluxio_like.fuse.locking import Locking
from alluxio_like.fuse.meter import Meter
from alluxio_like.fuse.nested import NestedMounts
from alluxio_like.fuse.nodes import Nodes
from alluxio_like.fuse.notify import Notifier
from alluxio_like.fuse.opening import Opener, OpenSettings
from alluxio_like.fuse.operations import Operations, Settings
from alluxio_like.fuse.readers import Readers
from alluxio_like.fuse.session_kernel import Session
from alluxio_like.fuse.session_shared import SharedSession
from alluxio_like.fuse.writing import Writing
from alluxio_like.metrics import Health, HttpServer, Metrics, start_http
from alluxio_like.types import Entry, Kind, Recall

if TYPE_CHECKING:
    from alluxio_like.fuse.session_pyfuse3 import Session as Pyfuse3Session

log = logging.getLogger(__name__)

_UNTOLD_TIMEOUT_S = 5.0
_EPOCHS_MINOR = 44
"""The protocol that has FUSE_NOTIFY_INC_EPOCH."""
_GRACE_S = 2.0
"""What requests under way get to end when the daemon is told to stop. A guess."""


async def run(config: FuseConfig) -> int:
    """Serve one mount until it is unmounted or told to stop by SIGTERM or SIGINT; the exit code.

    Raises the package's errors when the mount cannot be made (NotFound, Conflict, ConfigError, Unavailable, ...); nothing stays
    behind then.
    """
    metrics = Metrics(process=True)
    config = unite_timeouts(config)
    client = Client.open(config.client, metrics=metrics)
    try:
        return await serve(config, ClientBackend(client), metrics)
    finally:
        await client.close()


def unite_timeouts(config: FuseConfig) -> FuseConfig:
    """One setting for the whole daemon; the stricter of the two names it has."""
    io_timeout_s = min(config.io_timeout_s, config.client.io_timeout_s)
    return config.model_copy(update={"client": config.client.model_copy(update={"io_timeout_s": io_timeout_s})})


@dataclass(frozen=True, slots=True)
class Connection:
    """A mount's end of the kernel, INIT answered. `generation`: how many daemons served this mount before."""

    device: Device
    handshake: Handshake
    generation: int = 0
    number: str = ""
    """The mount's device number, major:minor."""


async def serve(config: FuseConfig, backend: Backend, metrics: Metrics, connection: Connection | None = None) -> int:
    """Mount `config.path` of a backend at `config.mountpoint` and serve it; the exit code. Does not close the backend.

    With a connection it is mounted already, and served through that. The connection's device is closed in any case.
    """
    given = connection is not None
    place, was_made = config.mountpoint, False
    parts: Parts | None = None
    try:
        kind = "kernel" if given else choose_session(config.session)
        root = await get_root(config, backend)
        if not given:
            place, was_made = await asyncio.to_thread(mountpoint.check_place, config.mountpoint)
        if kind == "kernel":
            if connection is None:
                connection = await asyncio.to_thread(connect, config, place)
            parts = make_kernel_parts(config, backend, root, metrics, connection)
            await begin_making(config, backend, parts, connection)
        else:
            parts = _make_pyfuse3_parts(config, backend, root, metrics)
        health = MountHealth(place, parts.session)
        async with serve_http(config, metrics, health, parts) as http:
            parts.address.url = http.url if http is not None else ""
            await _serve_mount(config, parts, place, http, health)
    finally:
        if parts is not None:
            await parts.close()
        if connection is not None:
            connection.device.close()
            if not given:
                await asyncio.to_thread(_detach_dead, place, connection.number)
        if was_made:
            await asyncio.to_thread(mountpoint.remove_place, place)
    return 0


def connect(config: FuseConfig, place: Path) -> Connection:
    """Mount at a place that was checked, and answer the kernel's first request. Blocks. Raises the package's errors; then
    nothing stays."""
    allow_other = mountpoint.may_allow_other() if config.allow_other is None else config.allow_other
    device = Device.mount(
        place,
        allow_other=allow_other,
        read_only=config.read_only,
        suid=config.suid,
        source=mountpoint.SOURCE,
        subtype=mountpoint.SUBTYPE,
    )
    try:
        handshake = device.shake_hands(
            passthrough=config.passthrough != "off",
            extra_flags=get_extra_flags(read_only=config.read_only, locks=config.shares_locks),
            timeout_s=config.client.io_timeout_s,
        )
        if config.passthrough == "on" and not handshake.passthrough:
            raise ConfigError("this kernel has no FUSE passthrough (it came with Linux 6.9)", subject="passthrough")
    except BaseException:
        device.close()
        _detach_quietly(place)
        raise
    top = mountpoint.find_top(place)
    return Connection(device, handshake, number=top.device if top is not None else "")


def _detach_quietly(place: Path) -> None:
    with contextlib.suppress(AlluxioLikeError):
        mountpoint.detach(place)


def _detach_dead(place: Path, number: str) -> None:
    """Take a mount away whose device was closed, if it is still there: something failed between mounting and serving."""
    top = mountpoint.find_top(place)
    if top is not None and top.device == number:
        _detach_quietly(place)


class _Session(Protocol):
    """What the two sessions have in common; see session_kernel.Session."""

    @property
    def is_serving(self) -> bool: ...

    async def wait_ready(self) -> None: ...

    async def run(self) -> None: ...

    def stop(self) -> None: ...

    def cancel_requests(self) -> None: ...

    def list_waiting(self) -> list[tuple[int, str, float]]: ...

    def close(self, *, unmount: bool) -> None: ...


@dataclass(slots=True)
class _Address:
    """Where the HTTP server is, once it is there."""

    url: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """What one mount is made of. `watch`: Backend.watch; `to_mount`: the session that has to mount first."""

    operations: Operations
    session: _Session
    notifier: Notifier
    description: str
    accounting: Accounting
    address: _Address
    watch: Callable[[Callable[[Sequence[Recall]], Awaitable[None]], Sequence[str]], str]
    opener: Opener | None = None
    readers: Readers | None = None
    to_mount: "Pyfuse3Session | None" = None
    writing: Writing | None = None
    nested: NestedMounts | None = None
    following: Following | None = None

    def start(self) -> None:
        """Begin with what nobody asks for."""
        self.accounting.start()
        if self.following is not None:
            self.following.start()

    async def close(self) -> None:
        """Let go of what is open; after the session's end."""
        if self.following is not None:
            await self.following.close()
        if self.nested is not None:
            self.nested.close()
        if self.readers is not None:
            await self.readers.close()
        if self.opener is not None:
            await self.opener.close()
        if self.writing is not None:
            await self.writing.close()
        await self.accounting.close()
        await self.operations.close()


class MountHealth:
    """Whether the mount is served and is what programs find at its place; asked from the HTTP server's threads."""

    def __init__(self, place: Path, session: _Session) -> None:
        self._place = place
        self._session = session
        self.device = ""
        """The mount's device number, once it is there."""

    def get(self) -> Health:
        top = mountpoint.find_top(self._place)
        mounted = top is not None and bool(self.device) and top.device == self.device
        serving = self._session.is_serving
        return Health(mounted and serving, {"mountpoint": str(self._place), "mounted": mounted, "serving": serving})


def make_kernel_parts(config: FuseConfig, backend: Backend, root: Entry, metrics: Metrics, connection: Connection) -> Parts:
    io_timeout_s = config.client.io_timeout_s
    if config.passthrough == "off":
        why_not = "passthrough is switched off"
    elif not connection.handshake.passthrough:
        why_not = "the kernel has no passthrough"
    else:
        why_not = ""
    settings = OpenSettings(
        why_not,
        config.fill_at_open_bytes,
        config.fill_in_background,
        config.open_wait_bytes,
        config.verify_open,
        io_timeout_s,
    )
    address = _Address()
    # Where no daemon of the mount can have a backing file open, an earlier one's node ids are as good as ours. To send an open
    # on from them would fail it, if this daemon were killed between that and the open that follows.
    nodes = Nodes(connection.generation if connection.handshake.passthrough else 0)
    clock, device = SystemClock(), connection.device
    opener = Opener(backend, device, nodes, settings, clock, metrics)
    notifier = Notifier(DeviceWriter(device), enabled=may_tell(), has_epochs=connection.handshake.minor >= _EPOCHS_MINOR)
    nested = NestedMounts(connection.number)
    operations = Operations(
        backend,
        root,
        Settings(_get_timeout_s(config, connection), io_timeout_s),
        clock,
        notifier,
        serving=opener,
        get_url=lambda: address.url,
        generation=connection.generation,
        writes=not config.read_only,
        list_nodes=nodes.list_nodes,
        on_sealed=opener.note_sealed,
        on_moved=opener.note_moved,
        notes=device,
        list_nested=nested.list_steps,
    )
    writing: Writing | None = None
    if operations.drafts is not None and backend.changes is not None:
        identity = connection.handshake.identity or int.from_bytes(os.urandom(7), "little")
        agreed = connection.handshake.flags
        changing = Changing(operations, backend.changes, operations.drafts, opener, identity, agreed)
        locking = None
        if connection.handshake.flags & LOCKS:
            locking = Locking(operations, nodes, backend.open_locks(f"{identity:x}"))
        writing = Writing(operations, changing, operations.drafts, opener, nodes, backend, Appends(device), locking)
    following = None
    if operations.drafts is not None:
        following = Following(operations.drafts, config.follow_interval_s, clock, metrics)
    metrics.fuse_handles.set_function(operations.count_open)
    metrics.fuse_session.labels(opener.describe_session()).set(1)
    accounting = Accounting(clock, metrics, backend.note_read)
    readers = Readers(config.processes - 1, device.fd, clock, metrics) if config.processes > 1 else None
    session = (
        Session(operations, opener, nodes, device, io_timeout_s, Meter(metrics), accounting, writing)
        if readers is None
        else SharedSession(operations, opener, nodes, device, io_timeout_s, Meter(metrics), accounting, readers, writing)
    )
    description = opener.describe_session()
    return Parts(
        operations,
        session,
        notifier,
        description,
        accounting,
        address,
        backend.watch,
        opener,
        readers=readers,
        writing=writing,
        nested=nested,
        following=following,
    )


async def begin_making(config: FuseConfig, backend: Backend, parts: Parts, connection: Connection) -> None:
    """Before the first request: what a daemon before this one has made is there for others, and files may be made ahead of the
    master."""
    drafts, identity = parts.operations.drafts, connection.handshake.identity
    if backend.pending is not None and drafts is not None and identity:
        backend.pending.contents = drafts
        # (A holder's first daemon has the number 1.)
        succeeds = connection.generation > 1
        await backend.pending.start(f"{identity:x}", succeeds=succeeds, makes=config.delegated_directories)


def _make_pyfuse3_parts(config: FuseConfig, backend: Backend, root: Entry, metrics: Metrics) -> Parts:
    if config.passthrough == "on":
        raise ConfigError("passthrough needs the kernel session", subject="passthrough")
    if config.suid:
        raise ConfigError("set-id programs need the kernel session: mount as root", subject="suid")
    if config.processes > 1:
        raise ConfigError("several processes need the kernel session", subject="processes")
    try:
        from alluxio_like.fuse.session_pyfuse3 import Pyfuse3Writer
        from alluxio_like.fuse.session_pyfuse3 import Session as Pyfuse3Session
    except ImportError as error:
        needs = "it is built with gcc, pkg-config and the headers of Python and libfuse3"
        raise ConfigError(f"pyfuse3 cannot be used ({error}): install alluxio-like[fuse]; {needs}") from None

    io_timeout_s = config.client.io_timeout_s
    notifier = Notifier(Pyfuse3Writer(), enabled=may_tell())
    address = _Address()
    operations = Operations(
        backend,
        root,
        Settings(_get_timeout_s(config), io_timeout_s),
        SystemClock(),
        notifier,
        get_url=lambda: address.url,
    )
    metrics.fuse_handles.set_function(operations.count_open)
    metrics.fuse_session.labels("pyfuse3").set(1)
    accounting = Accounting(SystemClock(), metrics)
    session = Pyfuse3Session(operations, io_timeout_s, metrics, accounting)
    return Parts(operations, session, notifier, "pyfuse3", accounting, address, backend.watch, to_mount=session)


def may_tell() -> bool:
    """Whether the kernel is notified: only where we could abort the connection of a notification that hangs
    (mountpoint.end_ours)."""
    return os.geteuid() == 0


def _get_timeout_s(config: FuseConfig, connection: Connection | None = None) -> float:
    """The kernel keeps nothing for long that it is not told to forget: by this daemon, or by the one that comes after it and
    does not know what there is (it can tell of everything at once, from Linux 6.16 on)."""
    succeeds = connection is not None and connection.generation > 0 and connection.handshake.minor < _EPOCHS_MINOR
    return min(config.entry_timeout_s, _UNTOLD_TIMEOUT_S) if succeeds or not may_tell() else config.entry_timeout_s


async def get_root(config: FuseConfig, backend: Backend) -> Entry:
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
async def serve_http(config: FuseConfig, metrics: Metrics, health: MountHealth, parts: Parts) -> AsyncIterator[HttpServer | None]:
    tls = config.tls
    facts = {"mountpoint": str(config.mountpoint), "path": config.path, "session": parts.description, "pid": os.getpid()}

    def get_facts() -> dict[str, Any]:
        why_not = parts.opener.list_refusals() if parts.opener is not None else []
        readers = parts.readers.pids if parts.readers is not None else []
        return {
            **facts,
            "why_not": why_not,
            "readers": readers,
            "waiting": show_waiting(parts.accounting, parts.session.list_waiting()),
        }

    show = make_page(parts.accounting, get_facts)
    http = start_http(
        config.http_bind,
        metrics,
        health.get,
        certificate=tls.certificate,
        key=tls.key,
        insecure=config.insecure,
        pages={"/jobs.json": show},
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


async def _serve_mount(config: FuseConfig, made: Parts, place: Path, http: HttpServer | None, health: MountHealth) -> None:
    session, operations = made.session, made.operations
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    if made.to_mount is not None:
        made.to_mount.mount(str(place), _make_options(config))
    device = ""
    made.start()
    task = asyncio.create_task(session.run(), name="fuse-session")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    try:
        await wait_first(task, session.wait_ready(), config.client.io_timeout_s)
        top = await asyncio.to_thread(mountpoint.find_top, place)
        if top is not None and top.fstype == mountpoint.FSTYPE:
            device = health.device = top.device
            await asyncio.to_thread(mountpoint.tune, device, config.read_ahead_kb)
        if may_tell():
            made.notifier.start()
        made.watch(operations.begin_recall, ())
        write_ready_file(
            config, mountpoint=str(place), path=config.path, session=made.description, http_address=http.address if http else ""
        )
        log.info("mounted", extra={"mountpoint": str(place), "path": config.path, "session": made.description})
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


async def wait_first(task: "asyncio.Task[None]", ready: Coroutine[None, None, None], timeout_s: float) -> None:
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


async def _end(task: "asyncio.Task[None]", made: Parts, place: Path, device: str) -> str:
    """End the session and take the mount away if it is still there; bounded. Why the mount could not be taken away, or
    nothing."""
    session = made.session
    left = ""
    made.notifier.end()
    if not task.done():
        await end_requests(task, session)
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


async def end_requests(task: "asyncio.Task[None]", session: _Session) -> None:
    """Take no further request; those under way get a moment, then EINTR."""
    if not task.done():
        session.stop()
        await asyncio.wait([task], timeout=_GRACE_S)
        if not task.done():
            session.cancel_requests()
            await asyncio.wait([task], timeout=_GRACE_S)
