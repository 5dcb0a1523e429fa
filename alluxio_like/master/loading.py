"""All load jobs: taking them on, taking them up again after a restart, watching, cancelling, forgetting them.

Owns the jobs' records in memory and their tasks. What one job does is job_runner.py's, where long lists of paths lie
job_paths.py's. Event loop alone; a record is changed by its own runner only.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.master.core import jobs as core
from alluxio_like.master.core import operations
from alluxio_like.master.core.jobs import JobRecord, JobState, LoadSpec, Problem
from alluxio_like.master.job_paths import PathsWriter, StoredPaths, list_stored, remove_paths, take_over_files
from alluxio_like.master.job_runner import JobRunner, Services
from alluxio_like.master.listing import Lister, split_path
from alluxio_like.master.meta_store import MetaStore, run_to_end
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.surveying import Surveyor
from alluxio_like.master.walking import PathList
from alluxio_like.master.worker_pool import WorkerPool
from alluxio_like.master.workers import WorkerRegistry
from alluxio_like.metrics import Metrics
from alluxio_like.rpc import messages
from alluxio_like.types import JobId

log = logging.getLogger(__name__)

CHECKED_PATHS = 20
"""Of so few paths each is looked up before the job is taken on, so that a wrong one is said at once."""
JOBS_AT_ONCE = 4
WATCH_INTERVAL_S = 0.25
MAX_PATH_BYTES = 1 << 16
_SHOWN_PROBLEMS = 10


def _drop_covered(paths: Sequence[str], *, nested: bool) -> list[str]:
    """Paths without repeats and, with `nested`, without those that lie below another: no file counts twice."""
    kept: list[str] = []
    for path in paths:
        above = nested and any(path.startswith(other.rstrip("/") + "/") for other in paths if other != path)
        if path not in kept and not above:
            kept.append(path)
    return kept


class JobManager:
    """See the module."""

    def __init__(
        self,
        directory: Path,
        meta: MetaStore,
        lister: Lister,
        surveyor: Surveyor,
        mounts: MountTable,
        registry: WorkerRegistry,
        pool: WorkerPool,
        *,
        clock: Clock,
        io_timeout_s: float,
    ) -> None:
        self._directory = directory
        self._meta = meta
        self._lister = lister
        self._mounts = mounts
        self._clock = clock
        self._services = Services(meta, lister, surveyor, registry, pool, clock, io_timeout_s, self.get_known_rate)
        self._runners: dict[JobId, JobRunner] = {}
        self._tasks: dict[JobId, asyncio.Task[None]] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(JOBS_AT_ONCE)
        self._known_rate = 0.0

    # -- life ----------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Take up the stored jobs; those that have not ended go on. Lists of jobs that never came to be are removed."""
        with self._meta.read() as txn:
            records = core.list_jobs(txn)
        known = {record.job_id for record in records}
        take_over_files(self._meta, self._directory, known)
        with self._meta.read() as txn:
            orphans = set(list_stored(txn)) - known
        for job_id in orphans:
            task = asyncio.create_task(remove_paths(self._meta, job_id), name=f"forget the list of {job_id}")
            self._chores.add(task)
            task.add_done_callback(self._chores.discard)
        for record in records:
            self._add(record, resumed=True)

    def take_up(self) -> None:
        """Start the stored jobs that are not known here: their submitters were told that nobody could say whether they are."""
        with self._meta.read() as txn:
            records = core.list_jobs(txn)
        for record in records:
            if record.job_id not in self._runners:
                self._add(record)

    def _add(self, record: JobRecord, *, resumed: bool = False) -> None:
        is_long = record.path_count > len(record.paths)
        targets = StoredPaths(self._meta, record.job_id) if is_long else PathList(record.paths)
        runner = self._runners[record.job_id] = JobRunner(record, targets, self._services, resumed=resumed)
        if record.state.ended:
            runner.ended.set()
            return
        task = self._tasks[record.job_id] = asyncio.create_task(self._run(runner), name=f"job-{record.job_id}")
        task.add_done_callback(lambda _: self._tasks.pop(record.job_id, None))

    async def _run(self, runner: JobRunner) -> None:
        try:
            async with self._slots:
                await runner.run()
            self._known_rate = runner.get_average_rate() or self._known_rate
            await self._forget_old()
        except Exception:
            log.exception("job broke", extra={"job": runner.record.job_id})
            runner.give_up("the master could not store it: see its log")

    async def _forget_old(self) -> None:
        ended = sorted((r for r in self._runners.values() if r.record.state.ended), key=lambda r: r.record.ended_ns)
        for runner in ended[: -core.KEPT_JOBS]:
            job_id = runner.record.job_id
            del self._runners[job_id]
            await self._meta.write(lambda txn, job_id=job_id: core.delete_job(txn, job_id))  # type: ignore[misc]
            await remove_paths(self._meta, job_id)

    async def close(self) -> None:
        """Stop all jobs where they are; they go on at the next start."""
        tasks = [*self._tasks.values(), *self._chores]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def get_known_rate(self) -> float:
        """Bytes per second of the latest job that loaded enough to tell; 0: none."""
        return self._known_rate

    # -- what users ask ------------------------------------------------------------------------------------------------

    async def submit(self, operation_id: str, spec: LoadSpec, pieces: AsyncIterator[Sequence[str]]) -> JobId:
        """Take a job on; it survives from when this returns. Raises NotFound for a wrong path among few, InvalidArgument."""
        core.compile_glob(spec.glob)
        if spec.replicas < 1 or spec.bandwidth_bytes_s < 0:
            raise errors.InvalidArgument("replicas are at least 1, bandwidth at least 0")
        job_id = JobId(uuid.uuid4().hex[:12])
        try:
            first, count = await self._receive(job_id, pieces)
            if not count:
                raise errors.InvalidArgument("there is no path to load")
            if count <= CHECKED_PATHS:
                first = _drop_covered(first, nested="/" not in spec.glob)
                count = len(first)
                for path in first:
                    if (await self._lister.resolve_path(path)).entry is None:
                        raise errors.NotFound("no such file or directory", subject=path)
            self._services.registry.choose(spec.hosts if self._services.registry.get_live() else ())
        except BaseException:
            await self._forget_list(job_id)
            raise
        record = JobRecord(job_id, spec, self._clock.now_ns(), tuple(first), count)
        return await run_to_end(self._take_on(operation_id, record))

    async def _take_on(self, operation_id: str, record: JobRecord) -> JobId:
        """Store a job and start it; a repeat of the operation gives the job of the first time."""
        job_id = record.job_id

        def add(txn: WriteTransaction) -> bytes:
            core.put_job(txn, record)
            return job_id.encode()

        def apply(txn: WriteTransaction) -> bytes:
            return operations.run_once(txn, operation_id, "submit_load", record.created_ns, lambda: add(txn))

        try:
            stored = JobId((await self._meta.write(apply)).decode())
        except errors.Unavailable:
            # Nobody knows whether it is there: its list stays until the next start.
            raise
        except errors.AlluxioLikeError:
            await self._forget_list(job_id)
            raise
        if stored != job_id:
            await self._forget_list(job_id)
            self.take_up()
        else:
            self._add(record)
            log.info("job taken on", extra={"job": job_id, "paths": record.path_count})
        return stored

    async def _forget_list(self, job_id: JobId) -> None:
        """Of a job that did not come to be. What fails here is made good by the next start."""
        with contextlib.suppress(errors.AlluxioLikeError):
            await run_to_end(remove_paths(self._meta, job_id))

    async def _receive(self, job_id: JobId, pieces: AsyncIterator[Sequence[str]]) -> tuple[list[str], int]:
        """The first paths and their number; a longer list is stored, durable."""
        first: list[str] = []
        count = 0
        writer = PathsWriter(self._meta, job_id)
        async for piece in pieces:
            for given in piece:
                path = self._to_path(given)
                count += 1
                if count <= CHECKED_PATHS:
                    first.append(path)
                    continue
                if count == CHECKED_PATHS + 1:
                    for one in first:
                        await writer.add(one)
                await writer.add(path)
        if count > CHECKED_PATHS:
            await writer.finish()
            first = first[: core.SHOWN_PATHS]
        return first, count

    def _to_path(self, given: str) -> str:
        if len(given) > MAX_PATH_BYTES:
            raise errors.NameTooLong("a path is at most 64 KiB long", subject=given[:80])
        if "://" in given and not given.startswith("/"):
            path = self._mounts.lookup_path(given)
            if path is None:
                raise errors.NotFound("no mount covers this URI; see `alluxio-like mounts`", subject=given)
            return path
        return "/" + "/".join(split_path(given))

    def get_job(self, job_id: JobId) -> messages.Job:
        """The state of the moment. Raises NotFound."""
        return self._describe(self._get_runner(job_id))

    def _get_runner(self, job_id: JobId) -> JobRunner:
        runner = self._runners.get(job_id)
        if runner is None:
            raise errors.NotFound("no such job; see `cache jobs`", subject=job_id)
        return runner

    def list_jobs(self) -> list[messages.Job]:
        """All jobs that are kept, the latest first."""
        found = sorted(self._runners.values(), key=lambda runner: -runner.record.created_ns)
        return [self._describe(runner) for runner in found]

    async def watch(self, job_id: JobId) -> AsyncIterator[messages.Job]:
        """The state at once and at each change until the job has ended."""
        runner = self._get_runner(job_id)
        last: messages.Job | None = None
        while True:
            ended = runner.ended.is_set()
            state = self._describe(runner)
            if state != last:
                yield state
                last = state
            if ended:
                return
            try:
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await runner.ended.wait()
            except TimeoutError:
                continue

    async def cancel(self, job_id: JobId) -> messages.Job:
        """Stop a job for good; what it has loaded stays. A job that has ended stays as it is."""
        runner = self._get_runner(job_id)
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await runner.cancel()
        return self._describe(runner)

    def list_problems(self, job_id: JobId, cursor: int, limit: int = 1000) -> tuple[list[Problem], int]:
        """Problems from a cursor on, and the next cursor, 0 at the end."""
        runner = self._get_runner(job_id)
        with self._meta.read() as txn:
            found, following = core.list_problems(txn, job_id, cursor, limit)
        if not following:
            found += runner.get_open_problems()
        return found, following

    def set_gauges(self, metrics: Metrics) -> None:
        """Show the jobs' states, and the progress of those that have not ended."""
        for state in JobState:
            known = sum(runner.record.state is state for runner in self._runners.values())
            metrics.jobs.labels(state.name.lower()).set(known)
        metrics.job_files.clear()
        metrics.job_bytes.clear()
        for job_id, runner in self._runners.items():
            if not runner.record.state.ended:
                counts, (files, size) = runner.get_counts(), runner.get_totals()
                for what, value in (("total", files), ("done", counts.done_files), ("failed", counts.failed_files)):
                    metrics.job_files.labels(job_id, what).set(value)
                metrics.job_bytes.labels(job_id, "total").set(size)
                metrics.job_bytes.labels(job_id, "done").set(counts.done_bytes)

    def _describe(self, runner: JobRunner) -> messages.Job:
        record = runner.record
        counts = runner.get_counts()
        files, size = runner.get_totals()
        rate = runner.get_rate() if not record.state.ended else runner.get_average_rate()
        left = max(0, size - counts.done_bytes)
        eta_s = record.eta_s if record.spec.dry_run else left / rate if rate > 0 and record.listing_done else -1.0
        problems = self.list_problems(record.job_id, 0, _SHOWN_PROBLEMS)[0] if counts.failed_files else []
        spec = record.spec
        return messages.Job(
            job_id=record.job_id,
            state=messages.JobState(int(record.state)),
            spec=messages.LoadSpec(
                spec.replicas, spec.glob, spec.bandwidth_bytes_s, spec.hosts, spec.dry_run, spec.fit, spec.verify
            ),
            paths=record.paths[: core.SHOWN_PATHS],
            path_count=record.path_count,
            listing_done=record.listing_done,
            total_files=files,
            total_bytes=size,
            done_files=counts.done_files,
            done_bytes=min(counts.done_bytes, size) if record.listing_done else counts.done_bytes,
            skipped_files=counts.skipped_files,
            skipped_bytes=counts.skipped_bytes,
            failed_files=counts.failed_files,
            unfit_files=counts.unfit_files,
            unfit_bytes=counts.unfit_bytes,
            checked_files=counts.checked_files,
            requests=counts.requests,
            rate_bytes_s=rate if record.state in {JobState.PLANNING, JobState.RUNNING} or record.state.ended else 0.0,
            eta_s=0.0 if record.state.ended and not spec.dry_run else eta_s,
            free_bytes=record.free_bytes,
            created_ns=record.created_ns,
            ended_ns=record.ended_ns,
            reason=record.reason,
            problems=tuple(messages.JobProblem(p.path, p.code, p.message) for p in problems[:_SHOWN_PROBLEMS]),
        )
