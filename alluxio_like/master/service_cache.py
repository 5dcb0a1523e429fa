"""What users do to cached data: loading it, asking what is there, dropping and pinning it; and the report.

Owns the walks over what is known for status, free and pin. Neither asks a store for more than the path itself. Event loop alone;
long walks let others run.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.master.core import namespace, operations, quotas
from alluxio_like.master.core.blockmap import BlockDelta, Holding
from alluxio_like.master.core.jobs import LoadSpec, format_bytes
from alluxio_like.master.core.model import Totals
from alluxio_like.master.listing import Leases, Lister, split_path
from alluxio_like.master.loading import JobManager
from alluxio_like.master.meta_store import MetaStore, run_to_end
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.service_namespace import get_totals
from alluxio_like.master.snapshot_trees import is_frozen
from alluxio_like.master.unpersisted_files import UnpersistedFiles
from alluxio_like.master.walking import PathList, Step, Walker
from alluxio_like.master.worker_pool import WorkerPool
from alluxio_like.master.workers import WorkerRegistry
from alluxio_like.rpc import messages
from alluxio_like.rpc.messages import (
    CacheStatus,
    FreeResult,
    HolderStatus,
    Job,
    JobProblem,
    ProblemPage,
    RateShare,
    ReplicaCount,
    Report,
)
from alluxio_like.types import (
    BLOCK_BYTES,
    EVERYWHERE,
    ROOT_INODE,
    Entry,
    FileId,
    FileRef,
    JobId,
    Kind,
    Recall,
    VersionId,
    WorkerId,
)

FILES_PER_CALL = 1000
SUMMED_FILES = 1_000_000
"""With more files than this the status of the root is a sum of totals: a walk over them takes some 10 s a million."""
REPORTED_JOBS = 10
_CROWDED = 0.9
"""A worker whose disks leave less than this of its capacity is warned of (a guess)."""
DETAILS_S = 1.0
"""How long a report waits for its workers' own words."""
MOST_DETAILS = 256
"""Workers of which a report has details: it is to fit one message."""


REPORTS_WAIT_S = 10.0
"""How long who asks for what is cached, or has it dropped, waits after a start for workers to tell of it. A guess: as long as
commands wait for the master itself. What nobody told of by then counts as not there."""


class _Summary:
    """Adds up what is cached of files."""

    def __init__(self) -> None:
        self.files = self.known_bytes = self.cached_files = self.cached_bytes = self.stored_bytes = self.pinned_files = 0
        self.holders: dict[WorkerId, list[int]] = {}
        self.replicas: dict[int, int] = {}
        self.complete = True

    def add(self, entry: Entry, holdings: Sequence[Holding]) -> None:
        """One file and who holds what of it."""
        ref = entry.ref
        if ref is None:
            return
        self.files += 1
        self.known_bytes += ref.size
        self.pinned_files += ref.pinned
        by_worker: dict[WorkerId, int] = {}
        best: dict[int, int] = {}
        for holding in holdings:
            by_worker[holding.worker_id] = by_worker.get(holding.worker_id, 0) + holding.bytes
            best[holding.block] = max(best.get(holding.block, 0), holding.bytes)
        cached = min(ref.size, sum(best.values()))
        self.cached_bytes += cached
        self.stored_bytes += sum(by_worker.values())
        for worker_id, size in by_worker.items():
            totals = self.holders.setdefault(worker_id, [0, 0])
            totals[0] += 1
            totals[1] += size
        copies = _count_copies(ref.size, holdings)
        self.cached_files += copies > 0
        if ref.size:
            self.replicas[copies] = self.replicas.get(copies, 0) + 1


def _count_copies(size: int, holdings: Sequence[Holding]) -> int:
    """Whole copies of a file, be they on one worker or spread by block. An empty file needs no cache."""
    blocks = -(-size // BLOCK_BYTES)
    whole = [0] * blocks
    for holding in holdings:
        if holding.block < blocks and holding.bytes >= min(BLOCK_BYTES, size - holding.block * BLOCK_BYTES):
            whole[holding.block] += 1
    return min(whole) if whole else 1


class CacheService:
    """CacheHandler of rpc.master_servicer."""

    def __init__(
        self,
        meta: MetaStore,
        lister: Lister,
        mounts: MountTable,
        registry: WorkerRegistry,
        pool: WorkerPool,
        jobs: JobManager,
        leases: Leases,
        unpersisted: UnpersistedFiles,
        *,
        clock: Clock,
        version: str,
    ) -> None:
        self._version = version
        self._meta = meta
        self._lister = lister
        self._mounts = mounts
        self._registry = registry
        self._pool = pool
        self._jobs = jobs
        self._leases = leases
        self._unpersisted = unpersisted
        self._clock = clock
        self._started = time.monotonic()

    # -- jobs ----------------------------------------------------------------------------------------------------------

    async def submit_load(self, operation_id: str, spec: messages.LoadSpec, paths: AsyncIterator[Sequence[str]]) -> JobId:
        core_spec = LoadSpec(
            max(1, spec.replicas), spec.glob, spec.bandwidth_bytes_s, tuple(spec.hosts), spec.dry_run, spec.fit, spec.verify
        )
        return await self._jobs.submit(operation_id, core_spec, paths)

    async def get_job(self, job_id: JobId) -> Job:
        return self._jobs.get_job(job_id)

    async def list_jobs(self) -> list[Job]:
        return self._jobs.list_jobs()

    async def watch_job(self, job_id: JobId) -> AsyncIterator[Job]:
        async for job in self._jobs.watch(job_id):
            yield job

    async def cancel_job(self, operation_id: str, job_id: JobId) -> Job:
        # Idempotent by itself: a job that has ended stays as it is.
        return await self._jobs.cancel(job_id)

    async def list_job_problems(self, job_id: JobId, cursor: int) -> ProblemPage:
        problems, following = self._jobs.list_problems(job_id, cursor)
        return ProblemPage(tuple(JobProblem(p.path, p.code, p.message) for p in problems), following)

    # -- what is cached ------------------------------------------------------------------------------------------------

    async def _get_known(self, path: str) -> tuple[Entry, str]:
        """The entry of a path or store URI, and its path; the store may be asked for it."""
        if "://" in path and not path.startswith("/"):
            inside = self._mounts.lookup_path(path)
            if inside is None:
                raise errors.NotFound("no mount covers this URI; see `alluxio-like mounts`", subject=path)
            path = inside
        path = "/" + "/".join(split_path(path))
        entry = (await self._lister.resolve_path(path)).entry
        if entry is None:
            raise errors.NotFound("no such file or directory", subject=path)
        return entry, path

    async def _walk_known(self, path: str, visit: Callable[[Step], object]) -> None:
        async with aclosing(Walker(self._meta, self._lister, PathList([path])).walk()) as walk:
            async for step in walk:
                visit(step)

    def _sum_up(self, totals: Totals) -> CacheStatus:
        """The status of the whole namespace from what is counted anyway."""
        holders = []
        for worker in self._registry.get_live():
            _, size = self._registry.block_map.get_worker_totals(worker.worker_id)
            if size:
                holders.append(HolderStatus(worker.worker_id, worker.address, 0, size))
        stored = sum(one.cached_bytes for one in holders)
        return CacheStatus(
            files=totals.files,
            known_bytes=totals.known_bytes,
            cached_bytes=min(stored, totals.known_bytes),
            stored_bytes=stored,
            holders=tuple(sorted(holders, key=lambda one: one.worker_id)),
            # Whether every directory was ever listed only a walk can tell.
            complete=False,
            summed=True,
        )

    async def get_cache_status(self, path: str) -> CacheStatus:
        entry, path = await self._get_known(path)
        await self._registry.wait_reports(REPORTS_WAIT_S)
        if entry.attr.inode == ROOT_INODE:
            with self._meta.read() as txn:
                totals = namespace.get_totals(txn)
            if totals.files > SUMMED_FILES:
                return self._sum_up(totals)
        total = _Summary()

        def visit(step: Step) -> None:
            total.complete = total.complete and not step.incomplete
            for item in step.items:
                ref = item.entry.ref
                if ref is not None:
                    total.add(item.entry, self._get_live_holdings(ref.file_id))

        await self._walk_known(path, visit)
        holders = []
        for worker_id, (files, size) in sorted(total.holders.items()):
            worker = self._registry.lookup_worker(worker_id)
            holders.append(HolderStatus(worker_id, worker.address if worker else "", files, size))
        return CacheStatus(
            files=total.files,
            known_bytes=total.known_bytes,
            cached_files=total.cached_files,
            cached_bytes=total.cached_bytes,
            stored_bytes=total.stored_bytes,
            pinned_files=total.pinned_files,
            holders=tuple(holders),
            replicas=tuple(ReplicaCount(*pair) for pair in sorted(total.replicas.items())),
            version=entry.attr.version if entry.attr.kind is Kind.FILE else VersionId(0),
            complete=total.complete,
        )

    def _get_live_holdings(self, file_id: FileId) -> list[Holding]:
        holdings = self._registry.block_map.get_holdings(file_id)
        return [h for h in holdings if (w := self._registry.lookup_worker(h.worker_id)) is not None and w.live]

    async def _iter_held(self, path: str) -> AsyncIterator[tuple[list[FileRef], dict[WorkerId, list[FileRef]]]]:
        """The files at or below a path, some at a time, and which of them each live worker holds some of."""
        refs: list[FileRef] = []
        async with aclosing(Walker(self._meta, self._lister, PathList([path])).walk()) as walk:
            async for step in walk:
                refs += [item.entry.ref for item in step.items if item.entry.ref is not None]
                if len(refs) >= FILES_PER_CALL:
                    yield refs, self._group_held(refs)
                    refs = []
        yield refs, self._group_held(refs)

    def _group_held(self, refs: Sequence[FileRef]) -> dict[WorkerId, list[FileRef]]:
        held: dict[WorkerId, list[FileRef]] = {}
        for ref in refs:
            for worker_id in {h.worker_id for h in self._get_live_holdings(ref.file_id)}:
                held.setdefault(worker_id, []).append(ref)
        return held

    async def free(self, operation_id: str, path: str, *, force: bool) -> FreeResult:
        # Idempotent by itself: what is gone is not freed again. What is pinned, the namespace knows: workers may have it from
        # before.
        _, path = await self._get_known(path)
        await self._registry.wait_reports(REPORTS_WAIT_S)
        files = freed = kept = 0
        async for _, held in self._iter_held(path):
            kept += len({ref.file_id for mine in held.values() for ref in mine if ref.pinned and not force})
            gone: set[FileId] = set()
            for worker_id, mine in held.items():
                part = [ref.file_id for ref in mine if force or not ref.pinned]
                if part:
                    freed += (await self._pool.get_stub(worker_id).free_files(part, force=True)).freed_bytes
                    gone.update(part)
                    self._note_freed(worker_id, part)
            files += len(gone)
        return FreeResult(files, freed, kept)

    def _note_freed(self, worker_id: WorkerId, files: Sequence[FileId]) -> None:
        """The worker's own report comes with its next heartbeat; whoever asks or loads right after is not told that it is
        there."""
        known = self._registry.block_map
        mine = ((file_id, held) for file_id in files for held in known.get_holdings(file_id) if held.worker_id == worker_id)
        known.apply_changes(worker_id, [BlockDelta(file_id, held.block, 0, 0) for file_id, held in mine])

    async def set_pinned(self, operation_id: str, path: str, *, pinned: bool) -> int:
        entry, path = await self._get_known(path)
        if is_frozen(entry.attr.inode):
            raise errors.InvalidArgument("a snapshot has the pins of what it was made of: pin that", subject=path)
        now_ns = self._clock.now_ns()

        def apply(txn: WriteTransaction) -> bytes:
            def work() -> bytes:
                namespace.set_pinned(txn, entry.attr.inode, pinned)
                return b"{}"

            return operations.run_once(txn, operation_id, "set_pinned", now_ns, work)

        async def commit() -> None:
            await self._meta.write(apply)
            # What is opened from now on is filled as what it is.
            self._leases.tell([Recall(EVERYWHERE, pins_only=True)])

        await run_to_end(commit())
        count = 0
        async for refs, held in self._iter_held(path):
            count += len(refs)
            for worker_id, mine in held.items():
                # What is not pinned by this path may be by another one, above or below it.
                for value in (False, True):
                    files = [ref.file_id for ref in mine if ref.pinned is value]
                    if files:
                        await self._pool.get_stub(worker_id).set_pinned(files, pinned=value)
        return count

    async def report(self) -> Report:
        now = self._clock.monotonic()
        jobs = self._jobs.list_jobs()
        going = [job for job in jobs if not job.state.ended]
        latest = [job for job in jobs if job.state.ended][: max(0, REPORTED_JOBS - len(going))]
        unpersisted = await self._unpersisted.summarize(ROOT_INODE, 0)
        return Report(
            cluster=self._registry.get_cluster(),
            mounts=tuple(self._mounts.list_mounts()),
            jobs=tuple(going + latest),
            totals=get_totals(self._meta, self._registry),
            uptime_s=time.monotonic() - self._started,
            software_version=self._version,
            limited_buckets=tuple(RateShare(b, rate) for b, rate in self._registry.rates.get_rates(now).items()),
            warnings=(*self._get_warnings(), *self._unpersisted.list_warnings(unpersisted)),
            details=await self._ask_details(),
            unpersisted_files=unpersisted.files,
            unpersisted_bytes=unpersisted.size_bytes,
            journal_steps=unpersisted.steps,
        )

    async def _ask_details(self) -> tuple[messages.WorkerStatus, ...]:
        """What each live worker says of itself now; those that do not answer at once are left out."""

        async def ask(worker_id: WorkerId) -> messages.WorkerStatus | None:
            try:
                # The stub repeats a call for longer than one may take here.
                async with asyncio.timeout(DETAILS_S):
                    return await self._pool.get_stub(worker_id).get_status(timeout_s=DETAILS_S)
            except (errors.AlluxioLikeError, TimeoutError):
                return None

        found = await asyncio.gather(*(ask(worker.worker_id) for worker in self._registry.get_live()[:MOST_DETAILS]))
        return tuple(sorted((one for one in found if one is not None), key=lambda one: one.info.worker_id))

    def _get_warnings(self) -> list[str]:
        workers = self._registry.get_cluster().workers
        warnings = [f"worker {w.worker_id} ({w.address}) is not live" for w in workers if not w.live]
        if not any(worker.live for worker in workers):
            warnings.append("no worker is live: reads and loads wait for one")
        warnings += [
            f"worker {w.worker_id} ({w.address}): of its {format_bytes(w.capacity_bytes)} others have left "
            f"{format_bytes(w.usable_bytes)}"
            for w in workers
            if w.live and w.usable_bytes is not None and w.usable_bytes < _CROWDED * w.capacity_bytes
        ]
        warnings += [f"mount {trouble}" for trouble in self._mounts.list_troubles()]
        with self._meta.read() as txn:
            warnings += quotas.list_warnings(txn)
        return warnings
