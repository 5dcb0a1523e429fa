"""One load job at work: counts, loads, checks.

Owns the passes of one job and its live figures. PLANNING walks once and counts; loading follows beside it as long as what has
been counted fits into space that is free now (nothing is evicted for a job that may yet be refused), and in full once all fits;
with the first pinned file it waits for that, since what it brings would be counted among what others have pinned.
CHECKING walks again and asks each worker for each page; what is missing is loaded again a bounded number of times. Progress is
stored a few times a second: cursor and counts in one transaction, so that a killed master goes on from there.

Event loop alone. Batches of files run as tasks of one group; cancelling the run ends them and the workers' streams.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.master.assigning import Outcome, assign, get_cached_bytes, get_free_now, get_usable, sum_by_worker, sum_units
from alluxio_like.master.core import jobs as core
from alluxio_like.master.core.jobs import (
    Batch,
    Counts,
    Cursor,
    FitPlan,
    JobEvent,
    JobRecord,
    JobState,
    Ledger,
    Problem,
    format_bytes,
)
from alluxio_like.master.job_calls import JobCalls
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.snapshot_trees import is_frozen
from alluxio_like.master.surveying import Surveyor
from alluxio_like.master.walking import Targets, Walker, with_pauses
from alluxio_like.master.worker_pool import WorkerPool
from alluxio_like.master.workers import WorkerRegistry
from alluxio_like.types import Entry, Worker, WorkerId

log = logging.getLogger(__name__)

FILES_PER_BATCH = 128
"""For each worker: large enough that a call's cost vanishes, small enough that the cursor moves (a guess)."""
MAX_BATCH_FILES = 4096
MAX_BATCH_BYTES = 4 << 30
BATCHES_AT_ONCE = 6
"""Enough that no worker waits for the slowest one of a batch (a guess)."""
LOAD_PAUSES_S = (0.5, 2.0, 4.0)
"""Before a file whose worker was lost is tried again: longer, together, than it takes to notice that a worker is dead."""
SHORT_WAIT_S = 8.0
"""How long copies wait for a worker that is being restarted, before they count as missing (a guess: a restart takes 2 s)."""
CHECKS = 3
"""Times that a file is checked; between two of them what is missing is loaded again."""
COMMIT_INTERVAL_S = 0.25
RATE_WINDOW_S = 5.0
REQUEST_BYTES = 8 << 20
ASSUMED_RATE = 200 << 20
"""Bytes per second and worker, for the estimate of a dry run where nothing was ever measured (a guess)."""


@dataclass(slots=True)
class Services:
    """What a job works with."""

    meta: MetaStore
    lister: Lister
    surveyor: Surveyor
    registry: WorkerRegistry
    pool: WorkerPool
    clock: Clock
    io_timeout_s: float
    get_known_rate: Callable[[], float]


class _RefusedError(Exception):
    """Ends the passes of a job that does not fit."""


@dataclass(slots=True)
class _Pass:
    """A walk whose files are dealt with in batches."""

    cursor: Cursor
    fit: FitPlan
    handle: Callable[[Batch, list[Outcome]], Awaitable[None]]
    may_start: Callable[[list[Outcome]], Awaitable[None]]
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(BATCHES_AT_ONCE))
    running: int = 0


class JobRunner:
    """See the module. `record` is changed here alone; `ended` is set when the job has ended and that is stored."""

    def __init__(self, record: JobRecord, targets: Targets, services: Services, *, resumed: bool) -> None:
        self.record = record
        self.ended = asyncio.Event()
        self._targets = targets
        self._s = services
        self._ledger = Ledger()
        self._planned = asyncio.Event()
        self._matches = core.compile_glob(record.spec.glob)
        self._calls = JobCalls(record, services.registry, services.pool, self._note_loaded, resumed=resumed)
        self._samples: deque[tuple[float, int]] = deque()
        self._loaded_bytes = 0
        self._seen_files = 0
        self._seen_bytes = 0
        self._stored = b""
        self._unsaved: list[Problem] = []
        self._committing = asyncio.Lock()
        self._short_until = 0.0
        """While too few workers are live: until when more are waited for."""

    # -- figures -------------------------------------------------------------------------------------------------------

    def get_counts(self) -> Counts:
        """What is stored and what is under way."""
        counts = self.record.counts.copy()
        counts.add(self._ledger.get_open_counts())
        return counts

    def get_totals(self) -> tuple[int, int]:
        """Files and bytes counted so far."""
        if self.record.listing_done:
            return self.record.total_files, self.record.total_bytes
        return self._seen_files, self._seen_bytes

    def get_open_problems(self) -> list[Problem]:
        return self._ledger.get_open_problems()

    def get_rate(self) -> float:
        """Bytes loaded per second over the last seconds."""
        now = self._s.clock.monotonic()
        while len(self._samples) > 1 and now - self._samples[1][0] > RATE_WINDOW_S:
            self._samples.popleft()
        if not self._samples:
            return 0.0
        begun, before = self._samples[0]
        return (self._loaded_bytes - before) / max(now - begun, 0.5)

    def get_average_rate(self) -> float:
        """Bytes per second over the whole run so far; 0 when too little was loaded to tell."""
        took = (self.record.ended_ns or self._s.clock.now_ns()) - self.record.created_ns
        return self._loaded_bytes / (took / 1e9) if self._loaded_bytes > REQUEST_BYTES and took > 0 else 0.0

    def _note_loaded(self, size: int) -> None:
        now = self._s.clock.monotonic()
        if not self._samples or now - self._samples[-1][0] > 0.2:
            self._samples.append((now, self._loaded_bytes))
        self._loaded_bytes += size

    # -- the run -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring the job to its end from wherever it is. Cancelled: stores how far it came, and ends nothing."""
        commits = asyncio.create_task(self._commit_regularly())
        try:
            try:
                if self.record.state in {JobState.PLANNING, JobState.RUNNING}:
                    await self._plan_and_load()
                if self.record.state is JobState.CHECKING:
                    await self._check()
            except* _RefusedError as group:
                await self._end(JobEvent.REFUSED, str(_get_first(group)))
            except* errors.AlluxioLikeError as group:
                await self._end(JobEvent.BROKEN, str(_get_first(group)))
            except* Exception as group:
                log.error("job broke", extra={"job": self.record.job_id}, exc_info=_get_first(group))
                await self._end(JobEvent.BROKEN, "a defect of the master's: see its log")
        finally:
            commits.cancel()
            await asyncio.gather(commits, return_exceptions=True)
            await self._calls.close()
            await self._commit()

    async def cancel(self) -> None:
        """The job's end, once the task of its run has been cancelled."""
        await self._end(JobEvent.CANCEL, "cancelled")

    def give_up(self, reason: str) -> None:
        """End it here although that cannot be stored: nobody is to wait for it. It goes on at the next start of the master."""
        if not self.record.state.ended:
            self.record.advance(JobEvent.BROKEN, self._s.clock.now_ns(), reason)
        self.ended.set()

    async def _end(self, event: JobEvent, reason: str = "") -> None:
        if not self.record.state.ended:
            await self._commit()
        # Somebody else may have ended it meanwhile.
        if not self.record.state.ended:
            # What was under way counts for what it is; nobody goes on from here.
            self.record.counts = self.get_counts()
            self._ledger = Ledger()
            self.record.advance(event, self._s.clock.now_ns(), reason)
            log.info("job ended", extra={"job": self.record.job_id, "state": self.record.state.name, "reason": reason})
        # Also where an end was decided and its storing was cancelled.
        await self._commit()
        self.ended.set()

    async def _plan_and_load(self) -> None:
        if self.record.spec.dry_run:
            await self._count()
            return
        async with asyncio.TaskGroup() as group:
            if self.record.state is JobState.RUNNING:
                self._planned.set()
            else:
                group.create_task(self._count())
            group.create_task(self._load())
        await self._commit()
        record = self.record
        self._ledger = Ledger()
        record.advance(JobEvent.LOADED, self._s.clock.now_ns())
        record.problem_count = record.counts.failed_files = 0
        # Counted anew by what is there in the end: a worker may be lost between loading and checking.
        record.counts.unfit_files = record.counts.unfit_bytes = 0

        def apply(txn: WriteTransaction) -> None:
            core.clear_problems(txn, record.job_id)
            core.put_job(txn, record)

        await self._s.meta.write(apply)

    async def _check(self) -> None:
        """Every worker is asked for every page; what is missing at the end is the job's list of problems."""
        record = self.record
        fit = FitPlan(record.usable)
        fit.planned = dict(record.check_planned)
        await self._run_pass(_Pass(record.check_cursor, fit, self._check_batch, self._start_at_once))
        await self._commit()
        counts = record.counts
        record.total_files = counts.checked_files + counts.failed_files
        record.total_bytes = counts.checked_bytes + counts.failed_bytes
        counts.done_files, counts.done_bytes = counts.checked_files, counts.checked_bytes
        counts.skipped_files = min(counts.skipped_files, counts.done_files)
        counts.skipped_bytes = min(counts.skipped_bytes, counts.done_bytes)
        if counts.failed_files:
            text = f"{counts.failed_files} of {record.total_files} files are missing: see `cache jobs {record.job_id}`"
            await self._end(JobEvent.INCOMPLETE, text)
        else:
            await self._end(JobEvent.COMPLETE)

    # -- planning ------------------------------------------------------------------------------------------------------

    def _get_workers(self) -> list[Worker]:
        return self._s.registry.choose(self.record.spec.hosts)

    async def _wait_workers(self, *, enough: bool = False) -> list[Worker]:
        """The workers to load to; raises Unavailable when there is none within the I/O timeout, NotFound for unknown hosts.

        `enough`: as many as there are to be copies; they are waited for too, for SHORT_WAIT_S once in a row.
        """
        workers = await self._wait_some_workers()
        while enough and len(workers) < self.record.spec.replicas:
            now = self._s.clock.monotonic()
            self._short_until = self._short_until or now + SHORT_WAIT_S
            if now >= self._short_until:
                return workers
            await asyncio.sleep(0.1)
            workers = await self._wait_some_workers()
        self._short_until = 0.0
        return workers

    async def _wait_some_workers(self) -> list[Worker]:
        deadline = self._s.clock.monotonic() + self._s.io_timeout_s
        while True:
            try:
                workers = self._get_workers()
                if workers:
                    return workers
                error: errors.AlluxioLikeError = errors.Unavailable("no worker is live: start one, or see `alluxio-like report`")
            except errors.NotFound as missing:
                error = missing
            if self._s.clock.monotonic() > deadline:
                raise error
            await asyncio.sleep(0.1)

    def _make_walker(self) -> Walker:
        survey = self._s.surveyor.begin(self.record.created_ns)
        return Walker(self._s.meta, self._s.lister, self._targets, matches=self._matches, survey=survey)

    async def _count(self) -> None:  # noqa: PLR0915
        """Walk all, sum up, and decide whether the job may go on."""
        record, spec = self.record, self.record.spec
        # What is cached already, and what of the pinned bytes is the job's own, is known only then.
        await self._s.registry.wait_reports(self._s.io_timeout_s)
        workers = await self._wait_workers()
        if spec.replicas > len(workers):
            raise _RefusedError(f"{spec.replicas} replicas need as many workers; {len(workers)} would take part")
        plan = FitPlan(get_usable(self._s.registry, workers, {}))
        pinned: dict[WorkerId, int] = {}
        requests = missing = whole = problem_count = 0
        problems: list[Problem] = []
        limit = self._s.registry.whole_file_limit_bytes
        async with aclosing(self._make_walker().walk()) as walk:
            async for step in walk:
                problems += step.problems[: core.SHOWN_PROBLEMS - len(problems)]
                problem_count += len(step.problems)
                for item in step.items:
                    units = assign(item, workers, spec.replicas, limit)
                    if not plan.add(sum_units(units), only_if_fits=spec.fit):
                        continue
                    self._seen_files += 1
                    absent = 0
                    for unit in units:
                        self._seen_bytes += unit.size
                        there = min(unit.size, get_cached_bytes(unit, self._s.registry.block_map))
                        absent += unit.size - there
                        if unit.ref.pinned and there:
                            pinned[unit.worker_id] = pinned.get(unit.worker_id, 0) + there
                        if unit.replica == 0 and there < unit.size:
                            requests += -(-(unit.size - there) // REQUEST_BYTES)
                    missing += absent
                    whole += not absent
        if not spec.fit:
            plan.usable = get_usable(self._s.registry, workers, pinned)
        record.usable = plan.usable
        record.free_bytes = sum(plan.usable.values())
        record.total_files, record.total_bytes = self._seen_files, self._seen_bytes
        record.planned_requests = requests
        record.listing_done = True
        excess = "" if plan.fits() else self._describe_excess(plan)
        if spec.dry_run:
            rate = spec.bandwidth_bytes_s or self._s.get_known_rate() or ASSUMED_RATE * len(workers)
            record.eta_s = missing / rate
            record.counts.requests = requests
            record.counts.skipped_files, record.counts.skipped_bytes = whole, self._seen_bytes - missing
            record.counts.failed_files, record.problem_count = problem_count, len(problems)
            if problems:
                self._unsaved += problems
                text = f"{problem_count} paths could not be counted: {problems[0].path}: {problems[0].message}"
                await self._end(JobEvent.BROKEN, text)
            else:
                await self._end(JobEvent.COUNTED, excess)
        elif excess:
            raise _RefusedError(excess)
        else:
            record.advance(JobEvent.PLANNED, self._s.clock.now_ns())
            self._planned.set()

    def _describe_excess(self, plan: FitPlan) -> str:
        worst, excess = max(plan.get_excess().items(), key=lambda pair: pair[1])
        return (
            f"does not fit: {format_bytes(self.record.total_bytes)} are asked for, {format_bytes(self.record.free_bytes)} can be "
            f"held beside what is pinned, and worker {worst} would have to hold {format_bytes(excess)} too much; "
            "load less, free or add space, or load what fits with --fit"
        )

    # -- passes --------------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        workers = await self._wait_workers()
        early = FitPlan(get_free_now(workers))

        async def may_start(outcomes: list[Outcome]) -> None:
            if not self._planned.is_set():
                pins = any(one.item.entry.ref is not None and one.item.entry.ref.pinned for one in outcomes)
                if pins or not early.add(sum_by_worker(outcomes), only_if_fits=True):
                    await self._planned.wait()

        fit = FitPlan(self.record.usable)
        if self.record.spec.fit:
            # What fits is known when all is counted.
            await self._planned.wait()
            fit = FitPlan(self.record.usable)
        fit.planned = dict(self.record.load_planned)
        await self._run_pass(_Pass(self.record.load_cursor, fit, self._load_batch, may_start))
        await self._planned.wait()

    @staticmethod
    async def _start_at_once(_outcomes: list[Outcome]) -> None: ...

    async def _run_pass(self, this: _Pass) -> None:
        outcomes: list[Outcome] = []
        problems: list[Problem] = []
        cursor, size = this.cursor, 0
        async with asyncio.TaskGroup() as group, aclosing(self._make_walker().walk(this.cursor)) as walk:
            async for step in with_pauses(walk):
                if step is None:
                    # The listing is slow: what is there need not wait for it.
                    if outcomes:
                        await self._launch(this, group, cursor, outcomes, problems)
                        outcomes, problems, size = [], [], 0
                    continue
                workers = await self._wait_workers()
                outcomes += [Outcome(item) for item in step.items]
                problems += step.problems
                size += sum(item.entry.attr.size for item in step.items)
                cursor = step.cursor
                most = min(MAX_BATCH_FILES, FILES_PER_BATCH * len(workers))
                # Small batches while nothing is under way, so that nobody waits for a slow listing.
                if len(outcomes) >= most or size >= MAX_BATCH_BYTES or (outcomes and not this.running):
                    await self._launch(this, group, cursor, outcomes, problems)
                    outcomes, problems, size = [], [], 0
            await self._launch(this, group, cursor, outcomes, problems)

    async def _launch(
        self, this: _Pass, group: asyncio.TaskGroup, cursor: Cursor, outcomes: list[Outcome], problems: list[Problem]
    ) -> None:
        workers = await self._wait_workers(enough=self.record.state is JobState.CHECKING) if outcomes else []
        spec = self.record.spec
        limit = self._s.registry.whole_file_limit_bytes
        taken = []
        counts = Counts()
        for outcome in outcomes:
            outcome.assign(workers, spec.replicas, limit)
            parts = sum_units(outcome.units)
            if this.fit.add(parts, only_if_fits=spec.fit):
                taken.append(outcome)
            else:
                counts.unfit_files += 1
                counts.unfit_bytes += sum(parts.values())
        await this.may_start(taken)
        await this.gate.acquire()
        this.running += 1
        batch = self._ledger.open(cursor)
        batch.counts = counts
        batch.problems = problems
        counts.failed_files += len(problems)
        if spec.fit:
            batch.planned = dict(this.fit.planned)
        group.create_task(self._run_batch(this, batch, taken))

    async def _run_batch(self, this: _Pass, batch: Batch, outcomes: list[Outcome]) -> None:
        try:
            await this.handle(batch, outcomes)
            self._ledger.close(batch)
        finally:
            this.running -= 1
            this.gate.release()

    async def _load_batch(self, batch: Batch, outcomes: list[Outcome]) -> None:
        live = Counts()
        before = batch.counts.copy()
        # While it is under way its bytes and whole files show; in the end it is counted by what became of each.
        batch.counts = live
        live.add(before)
        await self._load_outcomes(live, outcomes)
        exact = before
        exact.requests = live.requests
        for outcome in outcomes:
            size = sum(unit.size for unit in outcome.units)
            if not outcome.is_done:
                exact.failed_files += 1
                batch.problems.append(outcome.make_problem())
                continue
            exact.done_files += 1
            exact.done_bytes += size
            if outcome.was_there:
                exact.skipped_files += 1
                exact.skipped_bytes += size
        batch.counts = exact

    async def _load_outcomes(self, counts: Counts, outcomes: Sequence[Outcome]) -> None:
        """Load files, those whose worker was lost again where placement puts them then."""
        todo = [outcome for outcome in outcomes if not outcome.gone]
        for pause_s in (*LOAD_PAUSES_S, 0.0):
            await self._calls.load(counts, todo)
            todo = [outcome for outcome in todo if outcome.lost and not outcome.is_done]
            if not todo or not pause_s:
                return
            await asyncio.sleep(pause_s)
            await self._assign_again(todo)

    async def _assign_again(self, outcomes: Iterable[Outcome]) -> None:
        workers = await self._wait_workers(enough=self.record.state is JobState.CHECKING)
        limit = self._s.registry.whole_file_limit_bytes
        for outcome in outcomes:
            outcome.assign(workers, self.record.spec.replicas, limit)
            outcome.forget_failure()

    async def _check_batch(self, batch: Batch, outcomes: list[Outcome]) -> None:
        todo = outcomes
        counts = batch.counts
        for number, pause_s in enumerate((0.0, *LOAD_PAUSES_S)):
            if number:
                lost = any(outcome.lost for outcome in todo)
                if number >= CHECKS and not lost:
                    break
                # A worker that is being restarted comes back with what it holds: nothing need be fetched for that.
                await asyncio.sleep(pause_s if lost else 0.0)
                await self._look_again(todo)
                scratch = Counts()
                await self._load_outcomes(scratch, todo)
                counts.requests += scratch.requests
                await asyncio.sleep(0.25 * (number - 1))
            await self._calls.check(todo)
            # For copies that have no worker nothing can be done here.
            todo = [outcome for outcome in todo if not outcome.is_held and not outcome.gone]
            if not todo:
                break
        for outcome in outcomes:
            size = sum(unit.size for unit in outcome.units)
            if outcome.is_checked:
                counts.checked_files += 1
                counts.checked_bytes += size
            elif not outcome.gone:
                counts.failed_files += 1
                counts.failed_bytes += size
                batch.problems.append(outcome.make_problem())

    async def _look_again(self, outcomes: list[Outcome]) -> None:
        """Before files are loaded again: those that the store holds otherwise by now are taken as they are there."""
        changed = [outcome for outcome in outcomes if outcome.code in {errors.Stale.code, errors.NotFound.code}]
        now_ns = self._s.clock.now_ns()
        for parent in {outcome.item.path.rpartition("/")[0] or "/" for outcome in changed}:
            try:
                directory = (await self._s.lister.resolve_path(parent)).entry
                if directory is not None and not is_frozen(directory.attr.inode):
                    await self._s.lister.refresh(directory.attr.inode, now_ns)
            except errors.AlluxioLikeError as error:
                log.warning("cannot list a changed directory", extra={"path": parent, "error": str(error)})
        for outcome in changed:
            try:
                entry: Entry | None = (await self._s.lister.resolve_path(outcome.item.path)).entry
            except errors.AlluxioLikeError as error:
                # Its reason stays what it was; the other files go on.
                log.warning("cannot look up a changed file", extra={"path": outcome.item.path, "error": str(error)})
                continue
            outcome.replace(entry)
        await self._assign_again([outcome for outcome in outcomes if not outcome.gone])

    # -- what is stored ------------------------------------------------------------------------------------------------

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL_S)
            try:
                await self._commit()
            except errors.AlluxioLikeError as error:
                # The next one has it all; a store that cannot be written ends the job where it must be written.
                log.warning("progress is not stored", extra={"job": self.record.job_id, "error": str(error)})

    async def _commit(self) -> None:
        """Store the record with all batches that may count, and their problems."""
        async with self._committing:
            record = self.record
            for batch in self._ledger.take():
                record.counts.add(batch.counts)
                record.problem_count += len(batch.problems)
                self._unsaved += batch.problems
                if record.state is JobState.CHECKING:
                    record.check_cursor, record.check_planned = batch.cursor_after, batch.planned
                else:
                    record.load_cursor, record.load_planned = batch.cursor_after, batch.planned
            raw = record.encode()
            if raw == self._stored:
                return
            saving = list(self._unsaved)
            first = record.problem_count - len(saving)

            def apply(txn: WriteTransaction) -> None:
                core.put_raw_job(txn, record.job_id, raw)
                core.put_problems(txn, record.job_id, first, saving)

            await self._s.meta.write(apply)
            del self._unsaved[: len(saving)]
            self._stored = raw


def _get_first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
