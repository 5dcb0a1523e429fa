"""Keeps the books of a mount: turns what the session does, and what the kernel says of processes, into entries of the ledger.

Owns the ledger, which thread belongs to which process, the sampling of processes that read past us, and telling the workers what
was read of their files so. Does not decide how anything is booked (books.py) or look into /proc itself (processes.py).

Rule of concurrency: one event loop. What a session calls (`opened`, `closed`, `note_wait`) neither awaits nor waits; an open and
a release together cost
about 6 us, and the first one of a thread in a second 50 us more. /proc/PID/io is read in one thread of its own: a process in the
middle of
execve(2) holds a lock that it needs, and may be waiting for this mount. While that thread is stuck nothing is sampled, and all
else goes on.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from alluxio_like.clock import Clock
from alluxio_like.fuse import processes
from alluxio_like.fuse.accounts import FileInfo, JobAccount, JobInfo, Mode
from alluxio_like.fuse.books import SMALL_BYTES, Booked, Ledger
from alluxio_like.fuse.handles import FileHandle
from alluxio_like.fuse.modes import Way
from alluxio_like.metrics import Metrics
from alluxio_like.types import FileRef
from alluxio_like.waits import NONE, Cause, Seconds

log = logging.getLogger(__name__)

_T = TypeVar("_T")

TICK_S = 1.0
"""How often processes that read past us are sampled. Between two samples a file's share is a guess, so not much longer."""
QUICK_S = 0.25
_MOVING_S = 3.0
"""While a process reads a large file, and for _MOVING_S after, it is sampled each QUICK_S: if it has ended when it is to be
sampled for the last time, what it read since is taken from its rate. Guesses."""
_CHECK_S = 10.0
"""How often it is looked whether the processes of the books still run."""
_TRUST_S = 1.0
"""For how long a thread's number is taken to be the same thread."""
_PREPARE_S = 0.05
"""How long the first open of a process waits at most for a look at what it has read: in general it takes 0.2 ms."""
_PER_LOOK = 16
"""Processes looked at in one step, so that whoever comes meanwhile does not wait for all."""
_THREADS = 4096
_WAIT_S = 0.0002
"""A shorter time is this daemon's own work, and no wait. A guess."""
_MOST_SAMPLES = 256
"""Processes sampled in one go; the others' turn comes with the next."""
_UNSEEN = JobInfo(0, 0, "not visible here")
_MODES = {Way.PASSTHROUGH: Mode.PASSTHROUGH, Way.CACHED: Mode.CACHED, Way.DIRECT: Mode.DIRECT, Way.REROUTED: Mode.DIRECT}


class Processes(Protocol):
    """What is asked about processes: the module `processes`, or a test's."""

    def find_process(self, thread: int) -> JobInfo | None: ...

    def is_alive(self, job: JobInfo) -> bool: ...

    def read_counts(self, job: JobInfo) -> processes.IoCounts | None: ...

    def list_heirs(self, job: JobInfo, files: Mapping[str, Collection[int]]) -> list[JobInfo]: ...

    def read_details(self, job: JobInfo) -> processes.Details | None: ...


@dataclass(slots=True)
class _Heirs:
    """Processes that inherited open files of a job: what each had read when it was looked at last; what was new then, in all."""

    seen: dict[tuple[int, int], int] = field(default_factory=dict)
    read_chars: int = 0

    def note(self, counts: list[tuple[JobInfo, int]]) -> None:
        """They were looked at. A fork begins with nothing read."""
        now = {(info.pid, info.birth): count for info, count in counts}
        self.read_chars += sum(max(0, count - self.seen.get(key, 0)) for key, count in now.items())
        self.seen = now


class _Asker:
    """A thread that asks the kernel what may take long, one question after the other. It keeps no process from ending."""

    def __init__(self) -> None:
        self._questions: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, question: Callable[[], _T]) -> _T:
        """The answer; as late as the kernel gives it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="accounting", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()
        self._questions.put((answer, question))
        return await answer

    def close(self) -> None:
        """End the thread after the question that it is at."""
        self._questions.put(None)

    def _work(self) -> None:
        while (item := self._questions.get()) is not None:
            answer, question = item
            result, error = None, None
            try:
                result = question()
            except Exception as failure:  # noqa: BLE001  raised where it was asked
                error = failure
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                answer.get_loop().call_soon_threadsafe(_settle, answer, result, error)


def _settle(answer: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)


class Accounting:
    """The books of one mount."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        touch: Callable[[FileRef, int], None] = lambda _ref, _bytes: None,
        ask: Processes = processes,
    ) -> None:
        """`touch` is told what was read past us of a file, for recency; it must not wait."""
        self.ledger = Ledger()
        self._clock = clock
        self._touch = touch
        self._ask = ask
        self._passed = metrics.read_bytes.labels("passthrough")
        self._waits = {cause: metrics.wait_seconds.labels(cause.name.lower()) for cause in Cause}
        self._threads: dict[int, tuple[JobInfo, float]] = {}
        self._heirs: WeakKeyDictionary[JobAccount, _Heirs] = WeakKeyDictionary()
        self._prepared: set[tuple[int, int]] = set()
        """Processes, by pid and start, of which it was seen once what they have read."""
        self._read: dict[FileHandle, None] = {}
        """Handles that are read by READs."""
        self._refs: dict[int, FileRef] = {}
        """By inode, of the large files that are passed through. (Of small ones their worker is told by each open.)"""
        self.open_now = [0, 0, 0]
        """Handles by mode."""
        self.details: dict[tuple[int, int], processes.Details] = {}
        """What tells a person which process a job is, as far as it lived long enough to be asked; by pid and start."""
        self._learnt: dict[tuple[int, int], str] = {}
        """The names they had when that was asked: a process may become another program."""
        self._urgent: set[JobAccount] = set()
        self._kicked = asyncio.Event()
        self._asker = _Asker()
        self._task: asyncio.Task[None] | None = None

    # What a session tells

    def is_prepared(self, thread: int) -> bool:
        """Whether a thread's next open needs no `prepare`."""
        known = self._threads.get(thread)
        if known is None or self._clock.monotonic() - known[1] >= _TRUST_S:
            known = self._find_job(thread, self._clock.monotonic()), 0.0
        info = known[0]
        return not info.pid or (info.pid, info.birth) in self._prepared

    async def prepare(self, thread: int) -> None:
        """See what a thread's process has read before its first open of a file that passes through is answered: to count from
        there.

        Without that, all that a short process reads may be over before it is looked at. Waits for _PREPARE_S at most.
        """
        now_s = self._clock.monotonic()
        info = self._find_job(thread, now_s)
        self._prepared.add((info.pid, info.birth))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PREPARE_S):
                await self._sample([self.ledger.use_job(info, now_s)])

    def opened(self, thread: int, file: FileHandle, *, waited: Seconds = NONE) -> None:
        """A file was opened by a thread. `waited`: for what the open waited that brought the file here."""
        now_s = self._clock.monotonic()
        entry, ref = file.entry, file.entry.ref
        if ref is None:
            return
        mode = _MODES[file.way] if file.way is not None else Mode.CACHED
        info = FileInfo(ref.inode, entry.attr.size, ref.key or entry.name, ref.mount_id)
        opened = self.ledger.open(self._find_job(thread, now_s), info, mode, now_s, waited=waited, brought=waited is not NONE)
        file.account = opened
        self.open_now[mode] += 1
        if waited is not NONE:
            self._count_waits(waited)
        if mode is Mode.PASSTHROUGH:
            if info.size > SMALL_BYTES:
                self._refs[ref.inode] = ref
            if opened.job.since is None:
                self._hurry(opened.job)
        else:
            self._read[file] = None

    def closed(self, file: FileHandle) -> None:
        """A file was closed; its reader still knows what it waited for."""
        opened = file.account
        if opened is None:
            return
        self._update(file)
        file.account = None
        self.open_now[opened.mode] -= 1
        self._read.pop(file, None)
        self.ledger.close(opened, self._clock.monotonic())
        if opened.mode is Mode.PASSTHROUGH and opened.size > SMALL_BYTES:
            # It may be the last thing that its process does.
            self._hurry(opened.job)

    def note_wait(self, thread: int, waited_s: float) -> None:
        """A request of a thread for a name, attributes or a listing took so long; a very short while is no waiting."""
        if waited_s < _WAIT_S:
            return
        now_s = self._clock.monotonic()
        self.ledger.note_metadata(self._find_job(thread, now_s), waited_s, now_s)
        self._waits[Cause.METADATA].inc(waited_s)

    def get_pid(self, thread: int) -> int:
        """The process of a thread; 0: not visible. Whoever is asked for while it waits is known when its wait has ended, too."""
        return self._find_job(thread, self._clock.monotonic()).pid

    def _update(self, file: FileHandle) -> None:
        opened = file.account
        if opened is not None:
            waits = NONE if file.reader is None else file.reader.get_waits()
            fresh = self.ledger.update(opened, file.read_bytes, file.waited_bytes, waits)
            if fresh is not NONE:
                self._count_waits(fresh)

    def _count_waits(self, seconds: Seconds) -> None:
        for cause, counter in self._waits.items():
            if seconds[cause] > 0:
                counter.inc(seconds[cause])

    def _find_job(self, thread: int, now_s: float) -> JobInfo:
        known = self._threads.get(thread)
        if known is not None and now_s - known[1] < _TRUST_S:
            return known[0]
        found = self._ask.find_process(thread) or (known[0] if known is not None and thread else _UNSEEN)
        self._threads.pop(thread, None)
        self._threads[thread] = (found, now_s)
        if len(self._threads) > _THREADS:
            del self._threads[next(iter(self._threads))]
        return found

    # What the kernel tells

    def start(self) -> None:
        """Begin to sample."""
        self._task = asyncio.create_task(self._run(), name="accounting")

    def _hurry(self, job: JobAccount) -> None:
        self._urgent.add(job)
        self._kicked.set()

    async def _run(self) -> None:
        checked_s = ticked_s = self._clock.monotonic()
        while True:
            now_s = self._clock.monotonic()
            moving = [job for job in self.ledger.jobs if job.large_open and now_s - job.moved_s < _MOVING_S]
            left_s = min(ticked_s + TICK_S, now_s + QUICK_S if moving else now_s + TICK_S) - now_s
            if left_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._kicked.wait()
            self._kicked.clear()
            urgent, self._urgent = self._urgent, set()
            try:
                await self._sample(urgent or moving)
                now_s = self._clock.monotonic()
                if now_s - ticked_s >= TICK_S:
                    ticked_s = now_s
                    self.refresh()
                    jobs = [job for job in self.ledger.jobs if job.wants_sample][:_MOST_SAMPLES]
                    await self._look_for_heirs(jobs)
                    await self._sample(jobs)
                    await self._learn()
                if now_s - checked_s >= _CHECK_S:
                    checked_s = now_s
                    await self._check()
            except Exception:
                log.exception("the books could not be kept up")

    def refresh(self) -> None:
        """Book what open handles have read and waited for by now."""
        for file in self._read:
            self._update(file)

    async def _sample(self, jobs: Iterable[JobAccount]) -> None:
        # The oldest first, so that those beyond the limit have their turn.
        chosen = sorted((job for job in jobs if not job.gone), key=lambda job: job.since or (0.0, 0))[:_MOST_SAMPLES]
        if not chosen:
            return
        self.refresh()
        for first in range(0, len(chosen), _PER_LOOK):
            part = chosen[first : first + _PER_LOOK]
            infos = [job.info for job in part]

            def look(infos: list[JobInfo] = infos) -> list[tuple[float, processes.IoCounts | None]]:
                # (The time before it, not when the answer comes: files may be read and closed meanwhile.)
                return [(self._clock.monotonic(), self._ask.read_counts(info)) for info in infos]

            counts = await self._asker.run(look)
            for job, (now_s, found) in zip(part, counts, strict=True):
                if found is None:
                    # It has ended, or may not be looked at.
                    job.gone = not self._ask.is_alive(job.info)
                    self._book(self.ledger.sample(job, None, 0, now_s))
                else:
                    heirs = self._heirs.get(job)
                    read_chars = found.read_chars + (heirs.read_chars if heirs is not None else 0)
                    self._book(self.ledger.sample(job, read_chars, found.disk_bytes, now_s))

    async def _look_for_heirs(self, jobs: Iterable[JobAccount]) -> None:
        """See what children have read that have files open which their parent opened, and asked for nothing themselves."""
        own = {job.info.pid for job in self.ledger.jobs}
        for job in jobs:
            if not job.passing:
                continue
            files: dict[str, set[int]] = {}
            for opened in job.passing:
                if opened.file.info is not None:
                    files.setdefault(opened.file.info.key.rpartition("/")[2], set()).add(opened.file.info.inode)
            info = job.info

            def look(info: JobInfo = info, files: dict[str, set[int]] = files) -> list[tuple[JobInfo, int]]:
                heirs = [heir for heir in self._ask.list_heirs(info, files) if heir.pid not in own]
                counts = [(heir, self._ask.read_counts(heir)) for heir in heirs]
                return [(heir, count.read_chars) for heir, count in counts if count is not None]

            found = await self._asker.run(look)
            if found or job in self._heirs:
                self._heirs.setdefault(job, _Heirs()).note(found)

    def _book(self, booked: Booked) -> None:
        if not booked.total:
            return
        self._passed.inc(booked.total)
        for file, count in booked.by_file.items():
            ref = self._refs.get(file.info.inode) if file.info is not None else None
            if ref is not None:
                self._touch(ref, count)

    async def _learn(self) -> None:
        """Ask which processes the new jobs are."""
        infos = [job.info for job in self.ledger.jobs if not job.gone and job.info.pid > 0]
        infos = [info for info in infos if self._learnt.get((info.pid, info.birth)) != info.name][:_MOST_SAMPLES]
        if not infos:
            return
        found = await self._asker.run(lambda: [self._ask.read_details(info) for info in infos])
        for info, details in zip(infos, found, strict=True):
            key = info.pid, info.birth
            self._learnt[key] = info.name
            if details is not None:
                self.details[key] = details

    async def _check(self) -> None:
        jobs = [job for job in self.ledger.jobs if not job.gone and job.info.pid > 0]
        infos = [job.info for job in jobs]
        alive = await self._asker.run(lambda: [self._ask.is_alive(info) for info in infos])
        for job, lives in zip(jobs, alive, strict=True):
            if not lives:
                if job.wants_sample:
                    self._book(self.ledger.sample(job, None, 0, self._clock.monotonic()))
                job.gone = True
        self.ledger.forget_old(self._clock.monotonic())
        kept = {(job.info.pid, job.info.birth) for job in self.ledger.jobs}
        self.details = {key: details for key, details in self.details.items() if key in kept}
        self._prepared &= kept
        self._learnt = {key: name for key, name in self._learnt.items() if key in kept}
        open_now = {file.info.inode for file in self.ledger.files if file.info is not None}
        self._refs = {inode: ref for inode, ref in self._refs.items() if inode in open_now}

    async def close(self) -> None:
        """End sampling. Does not raise."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._asker.close()
