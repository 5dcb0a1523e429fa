"""Load jobs: what a job is, how it goes from state to state, how its progress becomes durable, what fits.

Owns the job's record and its table of states, the ledger that turns batches finished in any order into one cursor and one set of
counts, the fit of a job into the workers' space, and the patterns that choose files. Does not walk, list, call or wait: that is
master/loading.py. A job's state is O(1) (and its problems), whatever the number of its files.

A job walks its files three times: PLANNING counts, RUNNING loads, CHECKING asks each worker for each page and loads again what
is missing. Deterministic; the records are used from the event loop, the functions over transactions from the writer's thread.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum, IntEnum
from typing import Any

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction, get_prefix_stop
from alluxio_like.types import JobId, WorkerId, to_bytes, to_str

_JOB = b"job/"
_PROBLEM = b"jobp/"
SHOWN_PATHS = 5
SHOWN_PROBLEMS = 10
MAX_PROBLEMS = 100_000
"""Problems kept of one job; more are counted and not listed (a guess: nobody reads further)."""
KEPT_JOBS = 100
"""Ended jobs kept for `cache jobs`."""


class JobState(IntEnum):
    """Where a job is; the numbers are those of the wire and of the disk."""

    PLANNING = 1
    RUNNING = 2
    CHECKING = 3
    DONE = 4
    FAILED = 5
    CANCELLED = 6

    @property
    def ended(self) -> bool:
        return self >= JobState.DONE


class JobEvent(Enum):
    """What moves a job on."""

    PLANNED = "planned"
    REFUSED = "refused"
    COUNTED = "counted"
    LOADED = "loaded"
    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    BROKEN = "broken"
    CANCEL = "cancel"


TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.PLANNING, JobEvent.PLANNED): JobState.RUNNING,
    (JobState.PLANNING, JobEvent.REFUSED): JobState.FAILED,
    (JobState.PLANNING, JobEvent.COUNTED): JobState.DONE,
    (JobState.PLANNING, JobEvent.BROKEN): JobState.FAILED,
    (JobState.PLANNING, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.RUNNING, JobEvent.LOADED): JobState.CHECKING,
    (JobState.RUNNING, JobEvent.BROKEN): JobState.FAILED,
    (JobState.RUNNING, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.CHECKING, JobEvent.COMPLETE): JobState.DONE,
    (JobState.CHECKING, JobEvent.INCOMPLETE): JobState.FAILED,
    (JobState.CHECKING, JobEvent.BROKEN): JobState.FAILED,
    (JobState.CHECKING, JobEvent.CANCEL): JobState.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """How to load; `bandwidth_bytes_s` is the whole job's, 0 for no limit."""

    replicas: int = 1
    glob: str = ""
    bandwidth_bytes_s: int = 0
    hosts: tuple[str, ...] = ()
    dry_run: bool = False
    fit: bool = False
    verify: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that could not be loaded, and why; `code` is an error's code."""

    path: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a walk has come: everything before it is dealt with.

    `target` counts the job's paths that are done; `stack` leads from the directory of the path after them down to where the walk
    is: (inode, listing cursor) each, the cursor being the namespace's own.
    """

    target: int = 0
    stack: tuple[tuple[int, bytes], ...] = ()


@dataclass(slots=True)
class Counts:
    """What became of files. Bytes are times replicas. `done` includes `skipped`, which was there already."""

    done_files: int = 0
    done_bytes: int = 0
    skipped_files: int = 0
    skipped_bytes: int = 0
    failed_files: int = 0
    unfit_files: int = 0
    unfit_bytes: int = 0
    failed_bytes: int = 0
    checked_files: int = 0
    checked_bytes: int = 0
    requests: int = 0

    def add(self, other: "Counts") -> None:
        """Add another set of counts to this one."""
        for name in _COUNT_NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def copy(self) -> "Counts":
        """An independent copy."""
        copied = Counts()
        copied.add(self)
        return copied


_COUNT_NAMES = tuple(Counts.__dataclass_fields__)


@dataclass(slots=True)
class JobRecord:
    """All that is kept of a job; `counts` hold what is durable, the part under way is the runner's."""

    job_id: JobId
    spec: LoadSpec
    created_ns: int
    paths: tuple[str, ...] = ()
    path_count: int = 0
    state: JobState = JobState.PLANNING
    listing_done: bool = False
    total_files: int = 0
    total_bytes: int = 0
    planned_requests: int = 0
    free_bytes: int = 0
    usable: dict[WorkerId, int] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    load_cursor: Cursor = Cursor()
    check_cursor: Cursor = Cursor()
    load_planned: dict[WorkerId, int] = field(default_factory=dict)
    """With `fit`: what had been given to each worker where the cursor stands."""
    check_planned: dict[WorkerId, int] = field(default_factory=dict)
    problem_count: int = 0
    eta_s: float = -1.0
    ended_ns: int = 0
    reason: str = ""
    history: list[tuple[int, str, str]] = field(default_factory=list)

    def advance(self, event: JobEvent, now_ns: int, reason: str = "") -> None:
        """Follow the table; an event that the state does not know raises Internal with the job's history."""
        target = TRANSITIONS.get((self.state, event))
        if target is None:
            past = ", ".join(f"{name} -> {state}" for _, name, state in self.history) or "new"
            raise errors.Internal(f"job {self.job_id} is {self.state.name} and cannot take {event.value} (history: {past})")
        self.state = target
        self.history.append((now_ns, event.value, target.name))
        if reason:
            self.reason = reason
        if target.ended:
            self.ended_ns = now_ns

    def encode(self) -> bytes:
        """The record as it is stored."""
        fields: dict[str, Any] = asdict(self)
        fields["load_cursor"] = _encode_cursor(self.load_cursor)
        fields["check_cursor"] = _encode_cursor(self.check_cursor)
        return json.dumps(fields, separators=(",", ":")).encode("ascii")

    @classmethod
    def decode(cls, raw: bytes) -> "JobRecord":
        """The record that `encode` stored."""
        fields = json.loads(raw)
        fields["spec"]["hosts"] = tuple(fields["spec"]["hosts"])
        fields["spec"] = LoadSpec(**fields["spec"])
        fields["counts"] = Counts(**fields["counts"])
        fields["paths"] = tuple(fields["paths"])
        fields["state"] = JobState(fields["state"])
        fields["load_cursor"] = _decode_cursor(fields["load_cursor"])
        fields["check_cursor"] = _decode_cursor(fields["check_cursor"])
        fields["history"] = [(when, event, state) for when, event, state in fields["history"]]
        return cls(**fields)


def _encode_cursor(cursor: Cursor) -> list[Any]:
    return [cursor.target, [[inode, position.hex()] for inode, position in cursor.stack]]


def _decode_cursor(raw: list[Any]) -> Cursor:
    return Cursor(raw[0], tuple((inode, bytes.fromhex(position)) for inode, position in raw[1]))


# -- what is stored ------------------------------------------------------------------------------------------------------------


def put_job(txn: WriteTransaction, record: JobRecord) -> None:
    txn.put(_JOB + record.job_id.encode(), record.encode())


def put_raw_job(txn: WriteTransaction, job_id: JobId, raw: bytes) -> None:
    """Store what `encode` gave some time before."""
    txn.put(_JOB + job_id.encode(), raw)


def list_jobs(txn: ReadTransaction) -> list[JobRecord]:
    """All jobs, the oldest first."""
    found = [JobRecord.decode(raw) for _, raw in txn.scan(_JOB, get_prefix_stop(_JOB))]
    return sorted(found, key=lambda record: (record.created_ns, record.job_id))


def delete_job(txn: WriteTransaction, job_id: JobId) -> None:
    """Forget a job and its problems."""
    txn.delete(_JOB + job_id.encode())
    clear_problems(txn, job_id)


def _problem_prefix(job_id: JobId) -> bytes:
    return _PROBLEM + job_id.encode() + b"/"


def put_problems(txn: WriteTransaction, job_id: JobId, first: int, problems: Iterable[Problem]) -> None:
    """Store problems under the numbers from `first` on."""
    for number, problem in enumerate(problems, first):
        if number < MAX_PROBLEMS:
            text = [to_bytes(problem.path).hex(), problem.code, problem.message]
            txn.put(_problem_prefix(job_id) + number.to_bytes(8, "big"), json.dumps(text).encode("ascii"))


def list_problems(txn: ReadTransaction, job_id: JobId, cursor: int, limit: int) -> tuple[list[Problem], int]:
    """Problems from number `cursor` on, and the next cursor, 0 at the end."""
    prefix = _problem_prefix(job_id)
    found: list[Problem] = []
    following = 0
    for key, raw in txn.scan(prefix + cursor.to_bytes(8, "big"), get_prefix_stop(prefix), limit=limit + 1):
        if len(found) == limit:
            following = int.from_bytes(key[len(prefix) :], "big")
            break
        path, code, message = json.loads(raw)
        found.append(Problem(to_str(bytes.fromhex(path)), code, message))
    return found, following


def clear_problems(txn: WriteTransaction, job_id: JobId) -> None:
    prefix = _problem_prefix(job_id)
    for key, _ in list(txn.scan(prefix, get_prefix_stop(prefix))):
        txn.delete(key)


# -- progress ------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Batch:
    """Files dealt with together. `counts` grow while it is under way and are final once it is closed."""

    number: int
    cursor_after: Cursor
    counts: Counts = field(default_factory=Counts)
    problems: list[Problem] = field(default_factory=list)
    planned: dict[WorkerId, int] = field(default_factory=dict)
    closed: bool = False


class Ledger:
    """Batches end in any order; what may be stored is the unbroken row of ended ones from the start.

    A batch that ended beyond a gap is done again after a crash (its files are then found there), so nothing is left out.
    """

    def __init__(self) -> None:
        self._open: dict[int, Batch] = {}
        self._next = 0
        self._first = 0

    def open(self, cursor_after: Cursor) -> Batch:
        """The next batch in the order of the walk."""
        batch = self._open[self._next] = Batch(self._next, cursor_after)
        self._next += 1
        return batch

    def close(self, batch: Batch) -> None:
        """The batch has ended: its counts and problems are final."""
        batch.closed = True

    def take(self) -> list[Batch]:
        """The ended batches that nothing unfinished precedes, each given out once, in order."""
        ready = []
        while (batch := self._open.get(self._first)) is not None and batch.closed:
            ready.append(self._open.pop(self._first))
            self._first += 1
        return ready

    def get_open_counts(self) -> Counts:
        """The sum of all that was not taken yet."""
        total = Counts()
        for batch in self._open.values():
            total.add(batch.counts)
        return total

    def get_open_problems(self) -> list[Problem]:
        """Problems of batches that were not taken yet, in their order."""
        return [problem for number in sorted(self._open) for problem in self._open[number].problems]

    def __len__(self) -> int:
        return len(self._open)


# -- what fits -----------------------------------------------------------------------------------------------------------------


class FitPlan:
    """How much of a job goes to each worker, against what each can take without evicting what must stay.

    A plan replayed in the same order from the same `usable` admits the same files.
    """

    def __init__(self, usable: Mapping[WorkerId, int]) -> None:
        self.usable = dict(usable)
        self.planned: dict[WorkerId, int] = {}

    def add(self, parts: Mapping[WorkerId, int], *, only_if_fits: bool) -> bool:
        """Count a file's bytes by worker; with `only_if_fits`, not at all where one of them has no room."""
        if only_if_fits and not self.fits(parts):
            return False
        for worker_id, size in parts.items():
            self.planned[worker_id] = self.planned.get(worker_id, 0) + size
        return True

    def fits(self, parts: Mapping[WorkerId, int] = {}) -> bool:
        """Whether all that was added, and these bytes more, is within what is usable."""
        workers = {*self.planned, *parts} if not parts else parts.keys()
        return all(self.planned.get(w, 0) + parts.get(w, 0) <= self.usable.get(w, 0) for w in workers)

    def get_excess(self) -> dict[WorkerId, int]:
        """Bytes too many, for each worker that has any."""
        excess = {w: size - self.usable.get(w, 0) for w, size in self.planned.items()}
        return {w: size for w, size in excess.items() if size > 0}


# -- which files ---------------------------------------------------------------------------------------------------------------


def compile_glob(pattern: str) -> Callable[[str, str], bool]:
    """A test of (name, path relative to the given path).

    Without a slash the pattern is of names. With one it is of relative paths: `*` and `?` stop at slashes, `**` does not and
    `**/` may be nothing. Raises InvalidArgument for an unclosed bracket.
    """
    if not pattern:
        return lambda _name, _path: True
    regex = re.compile(_translate(pattern.removeprefix("/")), re.DOTALL)
    if "/" in pattern:
        return lambda _name, path: regex.fullmatch(path) is not None
    return lambda name, _path: regex.fullmatch(name) is not None


def _translate(pattern: str) -> str:
    parts, at = [], 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            parts.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at):
            parts.append(".*")
            at += 2
        elif pattern[at] == "[":
            end = pattern.find("]", at + (3 if pattern[at + 1 : at + 2] == "!" else 2))
            if end < 0:
                raise errors.InvalidArgument("the pattern has an unclosed bracket", subject=pattern)
            body = pattern[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
            parts.append(f"[^/{body[1:]}]" if body.startswith("!") else f"[{body}]")
            at = end + 1
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(pattern[at]) or re.escape(pattern[at]))
            at += 1
    return "".join(parts)


def format_bytes(size: int) -> str:
    """A size for a person, in decimal units."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")
