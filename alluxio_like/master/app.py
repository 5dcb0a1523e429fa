"""The master's process: builds its parts from the configuration, wires them, and takes them down again.

Owns the order of start and stop, signals, and the regular chores (silent workers, orphans, old results). Decides nothing. One
event loop, one process.
"""

import asyncio
import logging
import secrets
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib import metadata

from alluxio_like import errors
from alluxio_like.clock import Clock, SystemClock
from alluxio_like.config import MasterConfig, write_ready_file
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.master.asking import Asker
from alluxio_like.master.changing import ChangesService
from alluxio_like.master.coherence import Coherence
from alluxio_like.master.core import delegations, namespace, operations
from alluxio_like.master.core.delegations import Delegations
from alluxio_like.master.core.growth import Growth
from alluxio_like.master.core.leases import LEASE_S, LeaseTable, may_be_outstanding, note_outstanding
from alluxio_like.master.core.model import Purged
from alluxio_like.master.delegating import forget_ended, make_gate
from alluxio_like.master.empty_files import EmptyFiles
from alluxio_like.master.follower import Follower
from alluxio_like.master.home import Home
from alluxio_like.master.keeping import identify, keep_place, open_meta, take_up_late
from alluxio_like.master.listing import Lister
from alluxio_like.master.loading import JobManager
from alluxio_like.master.locking import LocksService
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable, UfsOpener
from alluxio_like.master.pacing import Pacer
from alluxio_like.master.quotas import QuotasService
from alluxio_like.master.reconciling import Reconciler
from alluxio_like.master.service_cache import CacheService
from alluxio_like.master.service_namespace import MountsService, NamespaceService
from alluxio_like.master.service_workers import WorkersService
from alluxio_like.master.snapshots import SnapshotsService
from alluxio_like.master.spaces import Spaces
from alluxio_like.master.surveying import Surveyor
from alluxio_like.master.trash import TrashService
from alluxio_like.master.unpersisted_files import UnpersistedFiles
from alluxio_like.master.warming import warm
from alluxio_like.master.worker_pool import WorkerPool
from alluxio_like.master.workers import WorkerRegistry, delete_worker, list_stored, put_worker
from alluxio_like.metrics import Health, Metrics, start_http
from alluxio_like.rpc.auth import Guard
from alluxio_like.rpc.changes import add_changes_service
from alluxio_like.rpc.coherence import add_coherence_service
from alluxio_like.rpc.locks import add_locks_service
from alluxio_like.rpc.master_servicer import add_master_services
from alluxio_like.rpc.quotas import add_quotas_service
from alluxio_like.rpc.server import create_server
from alluxio_like.rpc.snapshots import add_snapshots_service
from alluxio_like.rpc.trash import add_trash_service
from alluxio_like.types import FileId, WorkerId
from alluxio_like.ufs.open import open_ufs

log = logging.getLogger(__name__)

EXPIRE_INTERVAL_S = 0.5
PURGE_INTERVAL_S = 30.0


@dataclass(slots=True)
class Master:
    """A master that serves; `close` takes it down. For `run`, and for tests that want one in their own loop."""

    address: str
    http_address: str
    cluster_id: str
    token_file: str
    stack: AsyncExitStack
    jobs: JobManager
    registry: WorkerRegistry
    meta: MetaStore
    mounts: MountTable
    lister: Lister
    surveyor: Surveyor
    coherence: Coherence
    lost: asyncio.Event
    """Set when another master has taken over the metadata: this one must stop."""

    async def close(self) -> None:
        """Stop serving, stop the jobs where they are, make all durable, let the home go."""
        await self.stack.aclose()


async def start(  # noqa: PLR0915  (one after the other, nothing decided)
    config: MasterConfig, *, clock: Clock | None = None, opener: UfsOpener = open_ufs
) -> Master:
    """Build a master and let it serve. Raises as `run` does; nothing is left behind then."""
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        home = Home.open(config.home)
        stack.callback(home.close)
        version = metadata.version("alluxio-like")
        metrics = Metrics(process=True)
        late, lost = asyncio.Event(), asyncio.Event()
        meta = await open_meta(config, late)
        stack.push_async_callback(meta.close)
        identity = identify(config, home, meta)
        cluster_id, token = identity.cluster_id, identity.token
        now_ns = clock.now_ns()
        meta.write_now(lambda txn: namespace.prepare(txn, now_ns))

        registry = WorkerRegistry(
            cluster_id, clock=clock, timeout_s=config.worker_timeout_s, whole_file_limit_bytes=config.whole_file_limit_bytes
        )
        with meta.read() as txn:
            registry.restore(list_stored(txn))
            waits_for_leases = may_be_outstanding(txn)
            delegated = delegations.list_rows(txn)

        async def note_leases(outstanding: bool) -> None:
            await meta.write(lambda txn: note_outstanding(txn, outstanding))
            await meta.flush()

        leases = LeaseTable(clock.monotonic() - (0.0 if waits_for_leases else LEASE_S), first_sequence=secrets.randbits(32) << 24)
        coherence = Coherence(
            leases,
            clock=clock,
            metrics=metrics,
            get_cluster_epoch=lambda: registry.get_cluster().epoch,
            note_outstanding=note_leases,
            delegations=Delegations(leases, delegated),
        )
        mounts = MountTable(
            meta,
            identity.secrets,
            opener,
            clock=clock,
            metrics=metrics,
            io_timeout_s=config.io_timeout_s,
            default_sync_interval_s=config.sync_interval_s,
            tell=coherence.tell,
            count_workers=lambda: len(registry.get_live()),
        )
        mounts.restore()
        stack.push_async_callback(mounts.close)

        pacer = Pacer(registry.rates, registry.get_live, clock)
        asker = Asker(mounts, clock=clock, metrics=metrics, pacer=pacer, io_timeout_s=config.io_timeout_s)
        lister = Lister(
            meta,
            mounts,
            clock=clock,
            metrics=metrics,
            asker=asker,
            leases=coherence,
            page_entries=config.page_entries,
            io_timeout_s=config.io_timeout_s,
        )
        stack.push_async_callback(lister.close)
        follower = Follower(meta, mounts, lister, asker, coherence, clock=clock, metrics=metrics, cluster_id=cluster_id)
        surveyor = Surveyor(lister, meta, mounts, clock=clock, io_timeout_s=config.io_timeout_s)
        pool = WorkerPool(registry, tls=config.tls, token=token, timeout_s=config.io_timeout_s)
        stack.push_async_callback(pool.close)
        jobs = JobManager(
            config.home / "jobs", meta, lister, surveyor, mounts, registry, pool, clock=clock, io_timeout_s=config.io_timeout_s
        )
        stack.push_async_callback(jobs.close)

        unpersisted = UnpersistedFiles(meta, mounts, pool, follower, metrics)
        workers = WorkersService(meta, registry, pool, clock=clock, metrics=metrics)
        guard = Guard(token, config.client_token_file)
        spaces = Spaces(meta, mounts, clock=clock)
        stack.push_async_callback(spaces.close)
        server = create_server(
            config.bind,
            tls=config.tls,
            insecure=config.insecure,
            guard=guard,
            metrics=metrics,
            make_gate=partial(make_gate, coherence),
        )
        growth = Growth()
        add_master_services(
            server.grpc_server,
            namespace=NamespaceService(meta, lister, surveyor, registry, spaces, growth, clock=clock),
            mounts=MountsService(mounts, lister),
            workers=workers,
            cache=CacheService(meta, lister, mounts, registry, pool, jobs, coherence, unpersisted, clock=clock, version=version),
        )
        add_coherence_service(server.grpc_server, coherence)
        empty = EmptyFiles(meta, mounts, asker, coherence, follower, clock=clock, cluster_id=cluster_id)
        limits = QuotasService(meta, lister, metrics, clock=clock)
        reconciler = Reconciler(meta, mounts, asker, coherence, clock=clock, cluster_id=cluster_id)
        changing = ChangesService(
            meta,
            lister,
            mounts,
            coherence,
            follower,
            unpersisted,
            empty,
            limits.note_sealed,
            growth,
            clock=clock,
            io_timeout_s=config.io_timeout_s,
            metrics=metrics,
        )
        add_changes_service(server.grpc_server, changing)
        locks = LocksService(is_live=coherence.is_live, get_start_wait_s=coherence.get_start_wait_s, monotonic=clock.monotonic)
        add_locks_service(server.grpc_server, locks)
        frozen = SnapshotsService(meta, lister, mounts, clock=clock)
        add_snapshots_service(server.grpc_server, frozen)
        add_quotas_service(server.grpc_server, limits)
        bin_ = TrashService(meta, lister, mounts, follower, coherence, clock=clock)
        add_trash_service(server.grpc_server, bin_)
        http = start_http(
            config.http_bind,
            metrics,
            lambda: Health(True, {"cluster_id": cluster_id, "live_workers": len(registry.get_live())}),
            certificate=config.tls.certificate,
            key=config.tls.key,
            insecure=config.insecure,
        )
        if http is not None:
            # Joining its thread must not stop the loop.
            stack.push_async_callback(asyncio.to_thread, http.close)
        jobs.restore()
        chores = [
            asyncio.create_task(_watch_workers(meta, registry, jobs, metrics, clock), name="watch workers"),
            asyncio.create_task(frozen.collect(), name="collect snapshots"),
            asyncio.create_task(bin_.run(), name="end what is in the trash"),
            asyncio.create_task(limits.count(), name="count for quotas"),
            asyncio.create_task(_watch_leases(coherence, locks), name="watch leases"),
            asyncio.create_task(forget_ended(meta, coherence), name="forget delegations"),
            asyncio.create_task(_forget_old(meta, registry, pool, clock), name="forget old"),
            asyncio.create_task(mounts.check_all(), name="check mounts"),
            asyncio.create_task(workers.check_reported(), name="check reported"),
            asyncio.create_task(keep_place(meta, lost), name="keep place"),
            asyncio.create_task(follower.run(), name="follow"),
            asyncio.create_task(_run_both(reconciler, empty), name="put empty files"),
            asyncio.create_task(unpersisted.count_always(), name="count unpersisted"),
            asyncio.create_task(warm(meta), name="read the namespace through"),
            asyncio.create_task(take_up_late(late, mounts, jobs, coherence), name="take up late"),
        ]
        stack.push_async_callback(_cancel, chores)
        await server.start()
        stack.push_async_callback(coherence.settle)
        stack.push_async_callback(server.stop)
        # Before that, since it waits for what is open.
        stack.callback(coherence.close)
        return Master(
            config.advertise or server.address,
            http.address if http is not None else "",
            cluster_id,
            str(identity.token_file),
            stack.pop_all(),
            jobs,
            registry,
            meta,
            mounts,
            lister,
            surveyor,
            coherence,
            lost,
        )
    raise AssertionError("unreachable")


async def run(config: MasterConfig) -> int:
    """Serve until SIGTERM or SIGINT. Returns the process' exit status.

    Raises ConfigError, Conflict (another process has the home or the port), FormatTooNew before it serves. Writes
    `config.ready_file` (pid, address, http_address, cluster_id, token_file) once it serves.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    master = await start(config)
    try:
        log.info("master serves", extra={"address": master.address, "cluster": master.cluster_id})
        write_ready_file(
            config,
            address=master.address,
            http_address=master.http_address,
            cluster_id=master.cluster_id,
            token_file=master.token_file,
        )
        waits = [asyncio.create_task(event.wait()) for event in (stopping, master.lost)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        log.info("master stops")
    finally:
        await master.close()
    return 1 if master.lost.is_set() else 0


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _watch_workers(meta: MetaStore, registry: WorkerRegistry, jobs: JobManager, metrics: Metrics, clock: Clock) -> None:
    """What must happen in time, so it calls nobody. A chore that fails is tried again the next time."""
    while True:
        await asyncio.sleep(EXPIRE_INTERVAL_S)
        try:
            for worker in registry.expire():
                await meta.write(partial(put_worker, worker=worker))
            for worker_id in registry.forget_dead():
                await meta.write(partial(delete_worker, worker_id=worker_id))
            _set_gauges(meta, registry, jobs, metrics, clock)
            while registry.block_map.sweep_some():
                await asyncio.sleep(0)
        except Exception:
            log.exception("a chore failed")


async def _run_both(reconciler: Reconciler, empty: EmptyFiles) -> None:
    """An empty file is put only once it is known what a restore has left in its place."""
    await reconciler.run()
    await empty.run()


async def _watch_leases(coherence: Coherence, locks: LocksService) -> None:
    while True:
        await asyncio.sleep(EXPIRE_INTERVAL_S)
        try:
            coherence.expire()
            locks.expire()
        except Exception:
            log.exception("a chore failed")


async def _forget_old(meta: MetaStore, registry: WorkerRegistry, pool: WorkerPool, clock: Clock) -> None:
    """What waits for workers, which may be slow or hang."""
    while True:
        await asyncio.sleep(PURGE_INTERVAL_S)
        try:
            await _purge(meta, registry, pool, clock)
        except Exception:
            log.exception("a chore failed")


async def _purge(meta: MetaStore, registry: WorkerRegistry, pool: WorkerPool, clock: Clock) -> None:
    """Forget orphans and old results; workers drop what nobody can ask for any more."""
    more = True
    while more:
        now_ns = clock.now_ns()

        def apply(txn: WriteTransaction, now_ns: int = now_ns) -> Purged:
            operations.purge(txn, now_ns)
            return namespace.purge(txn, now_ns)

        purged = await meta.write(apply)
        more = purged.more
        held: dict[WorkerId, list[FileId]] = {}
        for file_id in purged.files:
            for worker_id in registry.block_map.get_bytes_by_worker(file_id):
                held.setdefault(worker_id, []).append(file_id)
        for worker_id, files in held.items():
            try:
                await pool.get_stub(worker_id).free_files(files, force=True)
            except errors.AlluxioLikeError as error:
                # It is told again when it reports them.
                log.warning("a worker keeps files that are gone", extra={"worker": worker_id, "error": str(error)})


def _set_gauges(meta: MetaStore, registry: WorkerRegistry, jobs: JobManager, metrics: Metrics, clock: Clock) -> None:
    with meta.read() as txn:
        totals = namespace.get_totals(txn)
    metrics.namespace_inodes.set(totals.files + totals.directories)
    workers = registry.get_cluster().workers
    live = sum(worker.live for worker in workers)
    metrics.workers.labels("live").set(live)
    metrics.workers.labels("dead").set(len(workers) - live)
    metrics.blocks.set(sum(registry.block_map.get_worker_totals(worker.worker_id)[0] for worker in workers))
    rates = registry.rates.get_rates(clock.monotonic())
    metrics.store_rate_limit.clear()
    for bucket, rate in rates.items():
        metrics.store_rate_limit.labels(bucket).set(rate)
    jobs.set_gauges(metrics)
