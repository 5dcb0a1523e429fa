"""The worker's process: builds its parts from the configuration, wires them, and takes them down again.

Owns the order of start and stop, the home directory's lock, and signals. Decides nothing. One event loop, one process.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from alluxio_like import errors
from alluxio_like.cache.report import DirectoryUsage
from alluxio_like.cache.store import CacheDirSpec, CacheStore
from alluxio_like.clock import Clock, SystemClock
from alluxio_like.config import WorkerConfig, write_ready_file
from alluxio_like.metrics import Health, Metrics, is_loopback, split_address, start_http
from alluxio_like.rpc.auth import Guard, read_token
from alluxio_like.rpc.changes import ChangesStub
from alluxio_like.rpc.channel import RpcChannel, open_channel
from alluxio_like.rpc.data_pool import DataPool
from alluxio_like.rpc.drafts import add_drafts_service
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.messages import MountSecrets, Priority
from alluxio_like.rpc.server import RpcServer, create_server, get_advertised
from alluxio_like.rpc.worker_servicer import add_worker_services
from alluxio_like.types import Cluster, Entry, FileId, FileRef, Fingerprint, InodeId, Worker
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import open_ufs
from alluxio_like.worker.cluster import ClusterView
from alluxio_like.worker.data_server import DataServer, listen
from alluxio_like.worker.dirty import DrainCap, Pace
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.door import Door, OpenWhole, parse_guests
from alluxio_like.worker.drafts import DraftsService
from alluxio_like.worker.evictor import Evictor
from alluxio_like.worker.fetcher import Fetcher
from alluxio_like.worker.heartbeat import Heart
from alluxio_like.worker.loader import Loader
from alluxio_like.worker.memory import bound_arenas
from alluxio_like.worker.peers import Peers
from alluxio_like.worker.pilot import Pilot
from alluxio_like.worker.repair import LookupRef, Repairer
from alluxio_like.worker.replicating import Replicator
from alluxio_like.worker.roles import promote_guests
from alluxio_like.worker.scrub import Scrubber
from alluxio_like.worker.service import AdminService, DataService
from alluxio_like.worker.stores import OpenStore, Stores
from alluxio_like.worker.turns import Turns
from alluxio_like.worker.uploading import Uploader

_LOG = logging.getLogger(__name__)
_JOIN_S = 3.0
"""How long the start waits for the master before it says that it is ready without one."""
_GAUGES_S = 1.0
_WRITE_THREADS = 2
_READ_THREADS = 4
_SEND_THREADS = 2
_DRAFT_THREADS = 8
"""They wait for the disk for the most part, and those that commit at the same time wait once."""


async def run(config: WorkerConfig) -> int:
    """Serve until SIGTERM or SIGINT, then leave the cluster cleanly. Returns the process' exit status.

    Raises ConfigError, Conflict (another process has the home or a cache directory, or the cache is another cluster's),
    FormatTooNew before it serves. Writes `config.ready_file` once it is registered or has begun to wait for its master.
    """
    bound_arenas()
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        """The first one begins the end, a second one spares nothing."""
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        async with start_worker(config) as service:
            write_ready_file(
                config,
                address=service.address,
                http_address=service.http_address,
                worker_id=service.worker_id,
                door_path=service.door_path,
            )
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait({stopped, service.heart_task}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if service.heart_task.done():
                service.heart_task.result()
            await _drain(service.drafts, config.drain_s, hurry)
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """A worker that serves. `heart_task` ends only by an error that no waiting mends."""

    worker_id: str
    address: str
    http_address: str
    door_path: str
    store: CacheStore
    metrics: Metrics
    heart: Heart
    heart_task: asyncio.Task[None]
    drafts: DraftsService


async def _drain(drafts: DraftsService, limit_s: float, hurry: asyncio.Event) -> None:
    """Let what programs have written reach its store, if that takes no longer than it may."""
    tasks = [asyncio.ensure_future(drafts.drain(limit_s)), asyncio.ensure_future(hurry.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            _LOG.error("not all that was written could be looked at: %s", outcome)


@asynccontextmanager
async def start_worker(
    config: WorkerConfig, *, clock: Clock | None = None, open_store: OpenStore | None = None
) -> AsyncIterator[RunningWorker]:
    """Start a worker in this process; leaving the context stops it and leaves the cluster.

    `open_store` replaces how stores are opened (tests).
    """
    clock = clock or SystemClock()
    metrics = Metrics(process=True)
    token = read_token(config.token_file) if config.token_file is not None else ""
    async with AsyncExitStack() as stack:
        stack.enter_context(lock_home(config.home))
        store = await asyncio.to_thread(_open_store, config, clock)
        stack.push_async_callback(asyncio.to_thread, store.close)
        guard = Guard(token, config.client_token_file)
        server = create_server(config.bind, tls=config.tls, insecure=config.insecure, guard=guard, metrics=metrics)
        stack.push_async_callback(server.stop)
        parts = await _wire(stack, config, clock, metrics, store, server, token, open_store)
        http = start_http(
            config.http_bind,
            metrics,
            lambda: Health(True, {"worker_id": store.worker_id, "joined": parts.heart.joined.is_set()}),
            certificate=config.tls.certificate,
            key=config.tls.key,
            insecure=config.insecure,
        )
        if http is not None:
            stack.push_async_callback(asyncio.to_thread, http.close)
        await server.start()
        if parts.data_server is not None:
            parts.data_server.start()
        await parts.door.start()
        stack.push_async_callback(parts.door.stop)
        stack.push_async_callback(parts.heart.leave)
        heart_task = asyncio.create_task(parts.heart.run(), name="heart")
        stack.push_async_callback(_end, heart_task)
        for task in (
            asyncio.create_task(parts.scrubber.run(), name="scrubber"),
            asyncio.create_task(parts.drafts.run(), name="drafts"),
            asyncio.create_task(_show_gauges(store, parts, metrics), name="gauges"),
        ):
            stack.push_async_callback(_end, task)
        await _wait_joined(parts.heart, heart_task)
        _LOG.info("worker %s serves at %s", store.worker_id, server.address)
        yield RunningWorker(
            worker_id=store.worker_id,
            address=get_advertised(config.advertise, server),
            http_address=http.address if http is not None else "",
            door_path=str(parts.door.path),
            store=store,
            metrics=metrics,
            heart=parts.heart,
            heart_task=heart_task,
            drafts=parts.drafts,
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    heart: Heart
    door: Door
    scrubber: Scrubber
    fetcher: Fetcher
    turns: Turns
    peers: Peers
    data_server: DataServer | None
    drafts: DraftsService


async def _wire(  # noqa: PLR0915  (one after the other, nothing decided)
    stack: AsyncExitStack,
    config: WorkerConfig,
    clock: Clock,
    metrics: Metrics,
    store: CacheStore,
    server: RpcServer,
    token: str,
    open_store: OpenStore | None,
) -> _Parts:
    """Build everything between the cache and the server; `stack` gets what must be taken down, in order."""
    writes = DiskQueue("write", _WRITE_THREADS)
    reads = DiskQueue("read", _READ_THREADS)
    slow = DiskQueue("slow", 1)
    for queue in (writes, reads, slow):
        stack.push_async_callback(queue.close)
    evictor = Evictor(store, clock, high_watermark=config.high_watermark, low_watermark=config.low_watermark, metrics=metrics)
    evictor.start()
    stack.push_async_callback(asyncio.to_thread, evictor.stop)

    channel = open_channel(config.master, tls=config.tls, token=token)
    stack.push_async_callback(channel.close)
    master = MasterStub(channel, timeout_s=config.io_timeout_s)
    stores = Stores(
        lambda mount_id: master.get_mount_secrets(mount_id, timeout_s=config.io_timeout_s / 2),
        open_store or _make_opener(config.io_timeout_s),
        lambda op, mount: metrics.store_requests.labels(op, mount).inc(),
        clock.monotonic,
    )
    stack.push_async_callback(stores.close)
    # Where this worker asks others by TLS, nothing goes in the clear. A read that hears nothing for so long is given up, in time
    # for two more tries.
    pool = DataPool(silence_s=config.io_timeout_s / 4) if config.tls.ca is None and config.data_bind != "off" else None
    peers = Peers(lambda address: open_channel(address, tls=config.tls, token=token), config.io_timeout_s, pool)
    stack.push_async_callback(peers.close)

    view = ClusterView(store.worker_id)
    turns = Turns(config.fetch_concurrency, config.load_concurrency, clock.monotonic)
    stack.callback(turns.close)
    pilot = Pilot(
        stores=stores, peers=peers, view=view, evictor=evictor, turns=turns, disk=writes, drafts=store.drafts, metrics=metrics,
        io_timeout_s=config.io_timeout_s,
    )  # fmt: skip
    fetcher = Fetcher(
        store=store, pilot=pilot, turns=turns, view=view, reads=reads, metrics=metrics,
        io_timeout_s=config.io_timeout_s, max_request_bytes=config.max_request_bytes,
    )  # fmt: skip
    stack.push_async_callback(fetcher.close)
    loader = Loader(
        fetcher=fetcher, store=store, evictor=evictor, disk=slow, slots=config.load_concurrency,
        max_request_bytes=config.max_request_bytes, monotonic=clock.monotonic, metrics=metrics,
    )  # fmt: skip
    host_id = _get_host_id()
    address = get_advertised(config.advertise, server)
    door = Door(
        config.home, store.worker_id, lambda: address, lambda: store.directory_fds,
        open_whole=_make_opening(store, reads, evictor), guests=parse_guests(config.door_users),
    )  # fmt: skip

    data_sock = _listen_for_data(config, server)
    if data_sock is not None:
        stack.callback(data_sock.close)
    data_address = _get_data_address(address, data_sock)
    nonce = secrets.token_hex(16)

    def describe() -> Worker:
        known = _describe(store, address, host_id, str(door.path), data_address, nonce)
        return replace(known, unpersisted_bytes=cap.count(), unpersisted_limit_bytes=cap.limit_bytes)

    closing: set[asyncio.Task[None]] = set()

    def on_cluster(cluster: Cluster) -> None:
        view.set_cluster(cluster)
        # Copies of files whose home this worker has become are no guests any more.
        slow.submit(lambda: promote_guests(store, evictor, cluster)).add_done_callback(_log_failure)
        task = asyncio.create_task(peers.set_cluster(cluster), name="close channels")
        closing.add(task)
        task.add_done_callback(closing.discard)

    heart = Heart(
        master=master, store=store, turns=turns, disk=slow, session_id=uuid.uuid4().hex,
        interval_s=config.heartbeat_interval_s, describe=describe, on_cluster=on_cluster,
    )  # fmt: skip
    repairer = Repairer(store=store, fetcher=fetcher, disk=slow, metrics=metrics, lookup_ref=_make_lookup(master))
    stack.push_async_callback(repairer.close)
    data = DataService(fetcher=fetcher, store=store, evictor=evictor, view=view, metrics=metrics, repairer=repairer)
    drafts, replicator, cap = _wire_drafts(
        stack, config, metrics, store, channel, master, lambda: address, (stores, turns, fetcher, evictor, view, peers, loader)
    )
    add_drafts_service(server.grpc_server, drafts)
    admin = AdminService(
        loader=loader, store=store, evictor=evictor, fetcher=fetcher, disk=slow, describe=describe,
        count_leases=lambda: len(door.list_leases()), replicator=replicator,
    )  # fmt: skip
    add_worker_services(server.grpc_server, data=data, admin=admin)
    data_server = None
    if data_sock is not None:
        sends = DiskQueue("send", _SEND_THREADS)
        stack.push_async_callback(sends.close)
        data_server = DataServer(
            sock=data_sock, worker_id=store.worker_id, nonce=nonce, get_cluster_id=lambda: store.cluster_id, store=store,
            handler=data, sends=sends, reads=reads, metrics=metrics, patience_s=config.io_timeout_s,
            note_bad=repairer.note_bad,
        )  # fmt: skip
        stack.push_async_callback(data_server.stop)
    # Calls end before what they use is taken down.
    stack.push_async_callback(server.stop)
    scrubber = Scrubber(store, slow, metrics, clock, period_s=config.scrub_period_s, on_bad=repairer.note_bad)
    return _Parts(heart, door, scrubber, fetcher, turns, peers, data_server, drafts)


def _wire_drafts(
    stack: AsyncExitStack,
    config: WorkerConfig,
    metrics: Metrics,
    store: CacheStore,
    channel: RpcChannel,
    master: MasterStub,
    get_address: Callable[[], str],
    parts: tuple[Stores, Turns, Fetcher, Evictor, ClusterView, Peers, Loader],
) -> tuple[DraftsService, Replicator, DrainCap]:
    """What programs write, and where it goes."""
    stores, turns, fetcher, evictor, view, peers, loader = parts
    disk = DiskQueue("drafts", _DRAFT_THREADS)
    stack.push_async_callback(disk.close)
    changes = ChangesStub(channel, timeout_s=config.io_timeout_s)

    def on_persisted(file_id: FileId) -> None:
        if (cached := store.lookup(file_id)) is not None:
            evictor.record_state(cached)

    pace = Pace(config.upload_guess_bytes_s)
    uploader = Uploader(
        store=store, stores=stores, turns=turns, changes=changes, disk=disk, metrics=metrics, pace=pace,
        part_bytes=config.upload_part_bytes, on_persisted=on_persisted,
    )  # fmt: skip
    stack.push_async_callback(uploader.close)
    cap = DrainCap(pace, config.drain_s if config.cap_unpersisted else None, uploader.measure_left, metrics)

    async def lookup_entry(inode: InodeId) -> Entry | None:
        return (await master.get_entry(inode, timeout_s=config.io_timeout_s)).entry

    replicator = Replicator(
        store=store, view=view, peers=peers, loader=loader, uploader=uploader, changes=changes, disk=disk,
        get_address=get_address, lookup_entry=lookup_entry,
    )  # fmt: skip
    drafts = DraftsService(
        store=store, fetcher=fetcher, evictor=evictor, uploader=uploader, replicator=replicator, changes=changes, disk=disk,
        metrics=metrics, cap=cap, lookup_entry=lookup_entry, io_timeout_s=config.io_timeout_s,
    )  # fmt: skip
    stack.push_async_callback(drafts.close)
    return drafts, replicator, cap


def _listen_for_data(config: WorkerConfig, server: RpcServer) -> socket.socket | None:
    """The data socket, bound; None where there is to be none. It knows no TLS: with TLS all bytes go by gRPC."""
    if config.data_bind == "off" or config.tls.certificate is not None:
        return None
    bind = config.data_bind or f"{server.address.rpartition(':')[0]}:0"
    if not (is_loopback(bind) or config.insecure):
        raise errors.ConfigError(
            f"{bind} is not a loopback address: give --insecure to serve data in the clear, or a certificate and key (tls) "
            "to have gRPC carry it",
            subject="data_bind",
        )
    return listen(*split_address(bind))


def _get_data_address(address: str, sock: socket.socket | None) -> str:
    """Where others reach the data socket: the host under which they reach this worker, and the socket's port."""
    return "" if sock is None else f"{address.rpartition(':')[0]}:{sock.getsockname()[1]}"


def _make_opening(store: CacheStore, disk: DiskQueue, evictor: Evictor) -> OpenWhole:
    async def open_whole(file_id: FileId, fingerprint: Fingerprint) -> tuple[int, int]:
        opening = disk.submit(lambda: store.open_whole(file_id, fingerprint))
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        evictor.record_read(file_id, fingerprint.size)
        return opened

    return open_whole


def _make_lookup(master: MasterStub) -> LookupRef:
    async def lookup_ref(file_id: FileId) -> FileRef | None:
        try:
            entry = (await master.get_entry(file_id.inode)).entry
        except errors.NotFound:
            return None
        return entry.ref if entry is not None and entry.ref is not None and entry.ref.file_id == file_id else None

    return lookup_ref


def _close_opened(opening: "asyncio.Future[tuple[int, int]]") -> None:
    """Nobody waited for it to the end."""
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result()[0])


def _open_store(config: WorkerConfig, clock: Clock) -> CacheStore:
    specs = [
        CacheDirSpec(
            path=directory.path,
            quota_bytes=directory.quota_bytes,
            tier=directory.tier,
            allow_root_disk=config.allow_root_disk,
            keep_free_fraction=config.keep_free_fraction,
        )
        for directory in config.cache_dirs
    ]
    if not specs:
        raise errors.ConfigError("the worker has no cache directory: give cache_dirs", subject="cache_dirs")
    return CacheStore.open(specs, cluster_id=None, clock=clock, boot_id=_get_host_id())


def _make_opener(io_timeout_s: float) -> OpenStore:
    def opener(mount: MountSecrets, on_request: Callable[[str], None]) -> Ufs:
        options = {key: value for key, value in mount.mount.options.items() if key not in mount.secrets}
        return open_ufs(mount.mount.uri, options, secrets=mount.secrets, on_request=on_request, io_timeout_s=io_timeout_s)

    return opener


def _describe(store: CacheStore, address: str, host_id: str, door_path: str, data_address: str, data_nonce: str) -> Worker:
    usage = store.get_usage()
    return Worker(
        worker_id=store.worker_id,
        address=address,
        host_id=host_id,
        door_path=door_path,
        data_address=data_address,
        data_nonce=data_nonce,
        capacity_bytes=store.capacity_bytes,
        usable_bytes=sum(directory.usable_bytes for directory in usage),
        used_bytes=sum(directory.used_bytes for directory in usage),
        home_bytes=sum(directory.home_bytes for directory in usage),
        guest_bytes=sum(directory.guest_bytes for directory in usage),
        pinned_bytes=sum(directory.pinned_bytes for directory in usage),
        kept_bytes=_count_kept(store, usage),
        file_count=sum(directory.file_count for directory in usage),
    )


def _count_kept(store: CacheStore, usage: Sequence[DirectoryUsage]) -> int:
    """What nothing can be evicted for. (A file that is pinned and not at the store yet counts twice: too much, for a while.)"""
    _, unpersisted = store.drafts.uploads.count()
    return unpersisted + sum(directory.draft_bytes + directory.pinned_bytes for directory in usage)


def _log_failure(done: "asyncio.Future[None]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _LOG.warning("could not look after roles: %s", error)


def _get_host_id() -> str:
    """The running kernel's id: processes that share it can share a unix socket, and its change tells of a crash or reboot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Hold a home directory for this process. Raises Conflict, naming who has it, and ConfigError when it cannot be made."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.ConfigError(f"cannot use the home directory: {error.strerror}", subject=str(home)) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise errors.Conflict(f"another process (pid {pid}) uses this home directory", subject=str(home)) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


async def _wait_joined(heart: Heart, heart_task: asyncio.Task[None]) -> None:
    """Until the master knows this worker, for a while; raises what no waiting mends."""
    joined = asyncio.ensure_future(heart.joined.wait())
    await asyncio.wait({joined, heart_task}, timeout=_JOIN_S, return_when=asyncio.FIRST_COMPLETED)
    joined.cancel()
    if heart_task.done():
        heart_task.result()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, errors.AlluxioLikeError):
        await task


async def _show_gauges(store: CacheStore, parts: _Parts, metrics: Metrics) -> None:
    """Keep the gauges current, until cancelled; a cache directory that fails is logged."""
    failed: set[str] = set()
    while True:
        for usage in store.get_usage():
            name = str(usage.path)
            if usage.state == "failed" and name not in failed:
                failed.add(name)
                _LOG.error("the cache directory %s is out of use until the next start: %s", name, usage.reason)
            metrics.cache_used_bytes.labels(name).set(usage.used_bytes)
            metrics.cache_capacity_bytes.labels(name).set(usage.quota_bytes)
            metrics.cache_files.labels(name).set(usage.file_count)
            metrics.cache_failed.labels(name).set(usage.state != "ok")
            metrics.cache_held_bytes.labels(name).set(usage.held_bytes)
        metrics.door_leases.set(len(parts.door.list_leases()))
        for priority in Priority:
            metrics.fetch_queue.labels(priority.name.lower()).set(parts.turns.count_waiting(priority))
            metrics.fetch_running.labels(priority.name.lower()).set(parts.turns.count_running(priority))
        await asyncio.sleep(_GAUGES_S)
