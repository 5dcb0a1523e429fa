"""What a load job says to the workers.

Owns how files are grouped into calls, and what answers mean for the files. A call that breaks loses its files' answers: they are
marked lost, and whoever runs the job tries them again. The first replicas are loaded before the second ones, so that these come
from the workers that have them. Event loop alone.
"""

import asyncio
from collections.abc import Callable, Sequence

from alluxio_like import errors
from alluxio_like.master.assigning import Outcome, Unit, get_block_size, is_cached, make_load_file
from alluxio_like.master.bandwidth import Bandwidth
from alluxio_like.master.core.blockmap import BlockDelta
from alluxio_like.master.core.jobs import Counts, JobRecord
from alluxio_like.master.worker_pool import WorkerPool
from alluxio_like.master.workers import WorkerRegistry
from alluxio_like.rpc.messages import CheckResult, FileResult, LoadFile, LoadProgress
from alluxio_like.types import FileId, WorkerId, get_block_count, get_full_mask

SILENCE_S = 120.0
"""A worker that says nothing of its files for so long is given up; one that dies is noticed sooner."""
TELL_S = 2.0
VERIFY_SILENCE_S = 600.0
SLOW_DISK_BYTES_S = 50 << 20
"""Reading and checking every page of a large file takes its time (a guess: a third of a hard disk's speed)."""
PIECE_BYTES = 8 << 20
"""What a worker asks of a store at once."""

Pair = tuple[Outcome, Unit]


class JobCalls:
    """Calls for one job."""

    def __init__(
        self,
        record: JobRecord,
        registry: WorkerRegistry,
        pool: WorkerPool,
        note_loaded: Callable[[int], None],
        *,
        resumed: bool,
    ) -> None:
        """`resumed`: by another master than the one that began the job. What it had under way may be there by now, and only the
        workers know what of it the job has brought itself."""
        self._resumed = resumed
        self._record = record
        self._registry = registry
        self._pool = pool
        self._bandwidth = Bandwidth(record.spec.bandwidth_bytes_s, self._tell_bandwidth)
        self._note_loaded = note_loaded

    async def load(self, counts: Counts, outcomes: Sequence[Outcome]) -> None:
        """Have the units of files loaded that are not; `counts` grow as bytes come."""
        for replica in range(self._record.spec.replicas):
            pairs = []
            for outcome in outcomes:
                for unit in outcome.units:
                    if unit.replica != replica or unit.part in outcome.loaded or unit.part in outcome.skipped:
                        continue
                    known = not self._resumed and is_cached(unit, self._registry.block_map)
                    if known and not outcome.checked_missing(unit):
                        outcome.skipped.add(unit.part)
                        counts.done_files += outcome.is_done
                        counts.done_bytes += unit.size
                        counts.skipped_bytes += unit.size
                    else:
                        pairs.append((outcome, unit))
            for turn in _divide(pairs):
                await asyncio.gather(*(self._load_on(worker, mine, counts) for worker, mine in _group(turn).items()))

    async def _load_on(self, worker_id: WorkerId, pairs: list[Pair], counts: Counts) -> None:
        workers = self._registry.get_live()
        waiting = _index(pairs)
        files = [make_load_file(unit, self._registry.block_map, workers) for _, unit in _get_first(waiting)]

        def take(progress: LoadProgress) -> None:
            counts.done_bytes += progress.loaded_bytes + progress.skipped_bytes
            counts.skipped_bytes += progress.skipped_bytes
            counts.requests += progress.requests
            self._note_loaded(progress.loaded_bytes)
            for result in progress.results:
                counts.done_files += _take_result(waiting, result)

        bandwidth = await self._bandwidth.enter(worker_id)
        try:
            await self._pool.consume(
                worker_id,
                lambda stub: stub.load_files(self._record.job_id, files, bandwidth),
                take,
                silence_s=self._get_silence_s(len(workers)),
            )
        except errors.AlluxioLikeError as error:
            for outcome, _ in _get_all(waiting):
                outcome.fail(error.code, f"worker {worker_id}: {error}", lost=True)
        else:
            for outcome, _ in _get_all(waiting):
                outcome.fail(errors.Internal.code, f"worker {worker_id} did not say what became of it", lost=True)
        finally:
            self._bandwidth.leave(worker_id)

    def _get_silence_s(self, workers: int) -> float:
        """A worker with little bandwidth waits before each piece, and says nothing meanwhile."""
        total = self._record.spec.bandwidth_bytes_s
        return SILENCE_S + (2 * PIECE_BYTES * max(1, workers) / total if total else 0.0)

    async def _tell_bandwidth(self, worker_id: WorkerId, bytes_s: float) -> None:
        """A call without files changes the job's bandwidth on a worker at once."""
        await self._pool.consume(
            worker_id, lambda stub: stub.load_files(self._record.job_id, [], bytes_s), lambda _: None, silence_s=TELL_S
        )

    async def close(self) -> None:
        """Nothing is told to anybody any more."""
        await self._bandwidth.close()

    async def check(self, outcomes: Sequence[Outcome]) -> None:
        """Ask the workers for every page of these files; `checked` of each says what was found whole."""
        pairs = [(outcome, unit) for outcome in outcomes if not outcome.gone for unit in outcome.units]
        await asyncio.gather(*(self._check_on(worker, mine) for worker, mine in _group(pairs).items()))

    async def _check_on(self, worker_id: WorkerId, pairs: list[Pair]) -> None:
        verify = self._record.spec.verify
        waiting = _index(pairs)
        files = [LoadFile(mine[0][1].ref, _join_blocks(mine)) for mine in waiting.values()]

        def take(result: CheckResult) -> None:
            found = waiting.pop(result.file_id, [])
            for outcome, unit in found:
                _take_check(outcome, unit, result)
                if not result.missing_pages and not result.bad_pages:
                    self._note_held(unit)

        try:
            # It answers file by file.
            largest = max(unit.size for _, unit in pairs)
            silence_s = VERIFY_SILENCE_S + largest / SLOW_DISK_BYTES_S if verify else SILENCE_S
            await self._pool.consume(worker_id, lambda stub: stub.check_files(files, verify=verify), take, silence_s=silence_s)
        except errors.AlluxioLikeError as error:
            for outcome, _ in _get_all(waiting):
                outcome.fail(error.code, f"worker {worker_id}: {error}", lost=True)
        else:
            for outcome, _ in _get_all(waiting):
                outcome.fail(errors.Internal.code, f"worker {worker_id} did not say whether it has it", lost=True)

    def _note_held(self, unit: Unit) -> None:
        """The worker's own report comes with its next heartbeat; whoever asks right after the job is told the same."""
        known = self._registry.block_map
        if known.has_reported(unit.worker_id):
            size = unit.ref.size
            blocks = unit.blocks or range(get_block_count(size))
            known.apply_changes(
                unit.worker_id,
                [BlockDelta(unit.file_id, b, get_full_mask(size, b), get_block_size(size, b)) for b in blocks],
            )


def _group(pairs: Sequence[Pair]) -> dict[WorkerId, list[Pair]]:
    groups: dict[WorkerId, list[Pair]] = {}
    for outcome, unit in pairs:
        groups.setdefault(unit.worker_id, []).append((outcome, unit))
    return groups


def _divide(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pairs in turns, in each of which a worker is asked for a file once: a call's answers name files and not blocks."""
    turns: list[tuple[dict[tuple[WorkerId, FileId], tuple[int, ...]], list[Pair]]] = []
    for outcome, unit in pairs:
        key = unit.worker_id, unit.file_id
        for asked, mine in turns:
            if asked.setdefault(key, unit.blocks) == unit.blocks:
                mine.append((outcome, unit))
                break
        else:
            turns.append(({key: unit.blocks}, [(outcome, unit)]))
    return [mine for _, mine in turns]


def _join_blocks(pairs: Sequence[Pair]) -> tuple[int, ...]:
    """The blocks of one file in all of its units; empty: the whole file."""
    if not all(unit.blocks for _, unit in pairs):
        return ()
    return tuple(sorted({block for _, unit in pairs for block in unit.blocks}))


def _index(pairs: Sequence[Pair]) -> dict[FileId, list[Pair]]:
    """Pairs by file: a list of paths may name one twice."""
    index: dict[FileId, list[Pair]] = {}
    for outcome, unit in pairs:
        index.setdefault(unit.file_id, []).append((outcome, unit))
    return index


def _get_first(waiting: dict[FileId, list[Pair]]) -> list[Pair]:
    return [pairs[0] for pairs in waiting.values()]


def _get_all(waiting: dict[FileId, list[Pair]]) -> list[Pair]:
    return [pair for pairs in waiting.values() for pair in pairs]


def _take_result(waiting: dict[FileId, list[Pair]], result: FileResult) -> int:
    """How many files are whole by it."""
    whole = 0
    for outcome, unit in waiting.pop(result.file_id, ()):
        if result.code:
            outcome.fail(result.code, result.message or result.code)
            continue
        parts = outcome.skipped if result.skipped else outcome.loaded
        parts.add(unit.part)
        whole += outcome.is_done
    return whole


def _take_check(outcome: Outcome, unit: Unit, result: CheckResult) -> None:
    outcome.loaded.discard(unit.part)
    outcome.skipped.discard(unit.part)
    if result.missing_pages or result.bad_pages:
        outcome.checked.discard(unit.part)
        outcome.missed.add(unit.part)
        if not outcome.code:
            outcome.message = _describe(unit.worker_id, result.missing_pages, result.bad_pages)
    else:
        outcome.checked.add(unit.part)
        outcome.loaded.add(unit.part)


def _describe(worker_id: WorkerId, missing: int, bad: int) -> str:
    parts = ([f"{missing} pages are missing"] if missing else []) + ([f"{bad} pages are damaged"] if bad else [])
    return f"{' and '.join(parts)} on worker {worker_id}"
