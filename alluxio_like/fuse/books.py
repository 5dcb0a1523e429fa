"""Who read how much, by which way, and what for they waited: the books of one mount.

Owns the accounts of jobs and of files and what is added to them. Decides from what it is told, times included; touches no clock, no
process and no file system. A job is a process (thread group); everything is booked twice, under its job and under its file, so both
sides have the same sum. What has no room any more is booked under "others" of its side: nothing is lost.

READs and waits are told exactly. Reads that the kernel answers by itself are not: they are estimated here from how much the process has
read in all by the kernel's own accounting (`sample`), and kept apart from the rest (`passed_bytes`).

Rule of concurrency: one event loop; nothing here waits. Cost on the way of a request: `open` and `close` of a file 5 us together, READs nothing.
"""

import enum
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from alluxio_like.waits import NONE, Cause, Seconds, subtract

SMALL_BYTES = 8 << 20
"""Files up to this size are taken to be read once by each open, where the kernel's accounting allows that much; a guess that fits samples
of training. Larger ones share the rest."""
_PENDING = 1 << 16
"""Closed opens that may wait for a sample of their process; beyond it they are booked at once as read once."""
_WEIGHTY_BYTES = 64 << 20
"""A file of which so much was read is remembered among the worst even if nobody waited for it. A guess."""

_K = TypeVar("_K", bound=Hashable)


class Mode(enum.IntEnum):
    """How an open is served. The numbers index `Tally.opens`."""

    PASSTHROUGH = 0
    CACHED = 1
    DIRECT = 2


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A process. `pid` 0: one that cannot be seen from here."""

    pid: int
    start_ticks: int
    name: str = ""
    parent: int = 0
    uid: int = -1


class FileInfo(NamedTuple):
    """A file; `key` is its name below the root of the mount `mount_id` of a store."""

    inode: int
    size: int
    key: str
    mount_id: int = 0


class Tally:
    """What adds up."""

    __slots__ = ("brought_bytes", "metadata_waits", "open_wait_s", "opens", "passed_bytes", "read_bytes", "waited_bytes", "waits")

    def __init__(self) -> None:
        self.opens = [0, 0, 0]
        self.read_bytes = 0
        """Given in answer to READs: exact."""
        self.waited_bytes = 0
        """Of these, what had to be waited for."""
        self.passed_bytes = 0
        """Read by the kernel itself: estimated."""
        self.brought_bytes = 0
        """Of files that were brought at their open, before they were passed through."""
        self.waits = list(NONE)
        self.open_wait_s = 0.0
        """Of `waits`, what opens waited."""
        self.metadata_waits = 0
        """Requests for names, attributes and listings that had to wait."""

    def add(self, other: "Tally") -> None:
        """Book all of another one here too."""
        opens, more = self.opens, other.opens
        opens[0] += more[0]
        opens[1] += more[1]
        opens[2] += more[2]
        self.read_bytes += other.read_bytes
        self.waited_bytes += other.waited_bytes
        self.passed_bytes += other.passed_bytes
        self.brought_bytes += other.brought_bytes
        if any(other.waits):
            self.add_waits(other.waits)
        self.open_wait_s += other.open_wait_s
        self.metadata_waits += other.metadata_waits

    def add_waits(self, seconds: "Seconds | list[float]") -> None:
        for cause, part in enumerate(seconds):
            self.waits[cause] += part

    @property
    def all_bytes(self) -> int:
        """Bytes read, exact and estimated ones."""
        return self.read_bytes + self.passed_bytes

    @property
    def wait_s(self) -> float:
        return sum(self.waits)

    def get_hit_ratio(self) -> float | None:
        """The share of bytes that were at hand when somebody wanted them; None when nothing was read."""
        total = self.all_bytes
        if not total:
            return None
        return max(0.0, total - self.waited_bytes - min(self.brought_bytes, self.passed_bytes)) / total


class Account:
    """One job's or one file's. Once it is forgotten, `tally` is that of the others, and what still comes in for it goes there."""

    __slots__ = ("__weakref__", "open_count", "tally")

    def __init__(self) -> None:
        self.tally = Tally()
        self.open_count = 0

    @property
    def weight(self) -> float:
        """How much it is worth remembering; 0: not once others are more recent."""
        return self.tally.wait_s + (self.tally.all_bytes * 1e-12 if self.tally.all_bytes >= _WEIGHTY_BYTES else 0.0)


class FileAccount(Account):
    """Of one content; `info` None: of what has no file, or of all others."""

    __slots__ = ("first_s", "info")

    def __init__(self, info: FileInfo | None, now_s: float = 0.0) -> None:
        super().__init__()
        self.info = info
        self.first_s = now_s


class JobAccount(Account):
    """Of one process. `worst` has what it waited for and read of single files, of those that count."""

    __slots__ = (
        "certain_bytes",
        "closed_bytes",
        "closed_large",
        "closed_small",
        "disk_bytes",
        "first_s",
        "gone",
        "info",
        "last_s",
        "passing",
        "rate",
        "reads",
        "sampled",
        "since",
        "unseen_bytes",
        "worst",
    )

    def __init__(self, info: JobInfo, now_s: float) -> None:
        super().__init__()
        self.info = info
        self.first_s = self.last_s = now_s
        self.gone = False
        self.worst: dict[FileAccount, Tally] = {}
        self.passing: dict[Open, None] = {}
        """Its opens that the kernel serves by itself."""
        self.closed_small: list[tuple[FileAccount, int]] = []
        self.closed_bytes = 0
        """Of these, the small files that were closed since the last sample, and what was booked for each; in all."""
        self.closed_large: list[tuple[FileAccount, int, float, float]] = []
        """And the large ones: file, bytes of it that are not booked, from when to when it was open."""
        self.since: tuple[float, int] | None = None
        """When it was sampled last, and what it had read in all by then."""
        self.certain_bytes = 0
        """Booked as read once, and not to be compared with anything."""
        self.reads = self.sampled = 0
        """Bytes of its READs by now, and by the last sample."""
        self.disk_bytes: int | None = None
        self.unseen_bytes = 0
        """Read from disks, of whatever files, without read(2) and the like: mapped files, asynchronous reads."""
        self.rate = 0.0
        """Passed bytes per second by the last sample that had any."""

    @property
    def weight(self) -> float:
        return self.tally.wait_s + self.tally.all_bytes * 1e-12 + 1e-15 * sum(self.tally.opens)

    @property
    def wants_sample(self) -> bool:
        """Whether the kernel's accounting of it has something to tell."""
        return bool(self.passing or self.closed_small or self.closed_large) and self.info.pid > 0


class Open:
    """One open file. The handle's own counts are told by `Ledger.update` now and then; this remembers what of them is booked."""

    __slots__ = ("booked_passed", "booked_reads", "booked_waited", "booked_waits", "file", "job", "mode", "opened_s", "size")

    def __init__(self, job: JobAccount, file: FileAccount, mode: Mode, size: int, now_s: float) -> None:
        self.job = job
        self.file = file
        self.mode = mode
        self.size = size
        self.opened_s = now_s
        self.booked_reads = 0
        self.booked_waited = 0
        self.booked_waits: Seconds = NONE
        self.booked_passed = 0


_A = TypeVar("_A", bound=Account)


class _Table(Generic[_K, _A]):
    """Accounts: the `recent` ones by last use, and of the older ones the `worst` by weight. What falls out of both goes to the others."""

    def __init__(self, others: _A, recent: int, worst: int) -> None:
        self.others = others
        # Ordered ones: to find the oldest of a plain dictionary takes a step for each that was taken out before it.
        self._recent: OrderedDict[_K, _A] = OrderedDict()
        self._worst: OrderedDict[_K, _A] = OrderedDict()
        self._limits = recent, worst

    def __len__(self) -> int:
        return len(self._recent) + len(self._worst)

    def __iter__(self) -> Iterator[_A]:
        yield from self._recent.values()
        yield from self._worst.values()

    def use(self, key: _K) -> _A | None:
        """The account, noted as just used."""
        found = self._recent.get(key)
        if found is not None:
            self._recent.move_to_end(key)
            return found
        found = self._worst.pop(key, None)
        if found is not None:
            self._recent[key] = found
            self._shrink()
        return found

    def lookup(self, key: _K) -> _A | None:
        """The account, if it is remembered."""
        return self._recent.get(key) or self._worst.get(key)

    def add(self, key: _K, account: _A) -> None:
        self._recent[key] = account
        self._shrink()

    def drop(self, which: Callable[[_A], bool]) -> None:
        """Forget accounts of which nothing is open."""
        for table in (self._recent, self._worst):
            for key in [key for key, account in table.items() if not account.open_count and which(account)]:
                self._fold(table.pop(key))

    def _shrink(self) -> None:
        while len(self._recent) > self._limits[0]:
            key, account = self._recent.popitem(last=False)
            if account.weight <= 0:
                self._fold(account)
                continue
            self._worst[key] = account
            if len(self._worst) > self._limits[1]:
                # With more open than there is room for, those too are forgotten; their tallies live on among the others.
                lightest = min(self._worst, key=lambda one: (self._worst[one].open_count > 0, self._worst[one].weight))
                self._fold(self._worst.pop(lightest))

    def _fold(self, account: _A) -> None:
        self.others.tally.add(account.tally)
        account.tally = self.others.tally


@dataclass(slots=True)
class Limits:
    """How much is remembered."""

    recent_jobs: int = 128
    worst_jobs: int = 128
    recent_files: int = 1024
    worst_files: int = 256
    files_of_a_job: int = 64
    keep_s: float = 3600.0
    """A process that has ended is forgotten so long after its last request. A guess."""


@dataclass(slots=True)
class Booked:
    """What a sample found: by file, bytes that its process read past us."""

    by_file: dict[FileAccount, int] = field(default_factory=dict)
    total: int = 0


class Ledger:
    """The books of one mount."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._jobs: _Table[tuple[int, int], JobAccount] = _Table(
            JobAccount(JobInfo(-1, 0, "others"), 0.0), self._limits.recent_jobs, self._limits.worst_jobs
        )
        self._files: _Table[int, FileAccount] = _Table(
            FileAccount(None), self._limits.recent_files, self._limits.worst_files
        )
        self.names = FileAccount(None)
        """Books waits for names, attributes and listings on the files' side."""

    # What is shown

    @property
    def jobs(self) -> list[JobAccount]:
        """Those that are remembered by themselves."""
        return list(self._jobs)

    @property
    def files(self) -> list[FileAccount]:
        """Those that are remembered by themselves."""
        return list(self._files)

    @property
    def other_jobs(self) -> JobAccount:
        return self._jobs.others

    @property
    def other_files(self) -> FileAccount:
        return self._files.others

    def lookup_file(self, inode: int) -> FileAccount | None:
        """An inode's account, if it is remembered."""
        return self._files.lookup(inode)

    def get_total(self) -> Tally:
        """Everything."""
        total = Tally()
        for job in self._jobs:
            total.add(job.tally)
        total.add(self._jobs.others.tally)
        return total

    # Events

    def open(
        self, info: JobInfo, file: FileInfo, mode: Mode, now_s: float, *, waited: Seconds = NONE, brought: bool = False
    ) -> Open:
        """A file was opened. `waited`: for what the open waited; `brought`: the file came to this machine meanwhile."""
        job = self.use_job(info, now_s)
        account = self._files.use(file.inode)
        if account is None:
            account = FileAccount(file, now_s)
            self._files.add(file.inode, account)
        made = Open(job, account, mode, file.size, now_s)
        job.open_count += 1
        account.open_count += 1
        if mode is Mode.PASSTHROUGH:
            job.passing[made] = None
        if brought and mode is Mode.PASSTHROUGH:
            job.tally.brought_bytes += file.size
            account.tally.brought_bytes += file.size
        if waited is not NONE:
            total_s = sum(waited)
            job.tally.open_wait_s += total_s
            account.tally.open_wait_s += total_s
            self._book_waits(job, account, waited)
        job.tally.opens[mode] += 1
        account.tally.opens[mode] += 1
        if file.size > SMALL_BYTES or account in job.worst:
            self._use_worst(job, account).opens[mode] += 1
        return made

    def update(self, opened: Open, read_bytes: int, waited_bytes: int, waits: Seconds) -> Seconds:
        """What a handle has read and waited for since it was opened; what of the waits is new."""
        new = read_bytes - opened.booked_reads
        if new:
            slow = waited_bytes - opened.booked_waited
            opened.booked_reads, opened.booked_waited = read_bytes, waited_bytes
            opened.job.reads += new
            for tally in self._get_tallies(opened.job, opened.file, opened.size):
                tally.read_bytes += new
                tally.waited_bytes += slow
        if waits is NONE or waits == opened.booked_waits:
            return NONE
        fresh = subtract(waits, opened.booked_waits)
        opened.booked_waits = waits
        self._book_waits(opened.job, opened.file, fresh)
        return fresh

    def close(self, opened: Open, now_s: float) -> None:
        """The last `update` came just before."""
        job, file = opened.job, opened.file
        job.open_count -= 1
        file.open_count -= 1
        job.last_s = now_s
        if opened.mode is not Mode.PASSTHROUGH:
            return
        job.passing.pop(opened, None)
        owed = opened.size - opened.booked_passed
        if owed <= 0:
            return
        if opened.size > SMALL_BYTES and len(job.closed_large) < _PENDING and job.info.pid > 0:
            job.closed_large.append((file, owed, opened.opened_s, now_s))
            return
        # Taken to be read once; what turns out to be too much is taken back with the next sample.
        job.tally.passed_bytes += owed
        file.tally.passed_bytes += owed
        if (worst := job.worst.get(file)) is not None:
            worst.passed_bytes += owed
        if len(job.closed_small) < _PENDING and job.info.pid > 0:
            job.closed_small.append((file, owed))
            job.closed_bytes += owed
        else:
            job.certain_bytes += owed

    def note_metadata(self, info: JobInfo, waited_s: float, now_s: float) -> None:
        """A request for a name, attributes or a listing had to wait."""
        job = self.use_job(info, now_s)
        for tally in (job.tally, self.names.tally):
            tally.metadata_waits += 1
            tally.waits[Cause.METADATA] += waited_s

    def use_job(self, info: JobInfo, now_s: float) -> JobAccount:
        """The account of a process, which has just asked for something."""
        key = info.pid, info.start_ticks
        job = self._jobs.use(key)
        if job is None:
            job = JobAccount(info, now_s)
            self._jobs.add(key, job)
        # The same process may have become another program.
        job.info = info
        job.last_s = now_s
        return job

    # What the kernel reads by itself

    def sample(self, job: JobAccount, read_chars: int | None, disk_bytes: int, now_s: float) -> Booked:
        """What a process has read in all by now, by the kernel's accounting; None: that cannot be seen, or no more.

        Books what is new.
        """
        booked = Booked()
        if read_chars is not None and job.since is not None:
            since_s, chars = job.since
            new = max(0, read_chars - chars - max(0, job.reads - job.sampled))
            self._share(job, new, since_s, now_s, booked)
            if job.disk_bytes is not None:
                job.unseen_bytes += max(0, disk_bytes - job.disk_bytes - (read_chars - chars))
            if booked.total:
                job.rate = booked.total / max(now_s - since_s, 1e-3)
        else:
            self._book_unseen(job, booked)
        if read_chars is not None:
            job.since, job.disk_bytes = (now_s, read_chars), disk_bytes
        job.sampled = job.reads
        booked.total += job.certain_bytes
        job.certain_bytes = 0
        return booked

    def _share(self, job: JobAccount, new: int, since_s: float, now_s: float, booked: Booked) -> None:
        """Share out among the files open meanwhile what a process has read: small ones as read once, large ones the rest by time."""
        self._settle_small(job, new, booked)
        rest = max(0, new - booked.total)
        takers: list[tuple[FileAccount, int, float, Open | None]] = []
        for one in job.passing:
            if one.size > SMALL_BYTES:
                takers.append((one.file, one.size, max(now_s - max(one.opened_s, since_s), 1e-4), one))
            elif rest > 0 and (owed := one.size - one.booked_passed) > 0:
                owed = min(owed, rest)
                self._book_passed(job, one.file, owed, one.size, booked, one)
                rest -= owed
        takers += [
            (file, SMALL_BYTES + 1, max(stop_s - max(start_s, since_s), 1e-4), None) for file, _, start_s, stop_s in job.closed_large
        ]
        job.closed_large.clear()
        if not takers:
            # Read again and again while they stay open.
            takers = [(one.file, one.size, 1.0, one) for one in job.passing if one.size and one.opened_s < since_s]
        total_time = sum(taker[2] for taker in takers)
        for n, (file, size, seconds, opened) in enumerate(takers, 1):
            part = rest if n == len(takers) else int(rest * seconds / total_time)
            self._book_passed(job, file, part, size, booked, opened)
            rest -= part
            total_time -= seconds

    def _settle_small(self, job: JobAccount, new: int, booked: Booked) -> None:
        """Take back what was booked for closed small files beyond what their process can have read."""
        booked.total += min(new, job.closed_bytes)
        left = max(0, job.closed_bytes - new)
        share = left / job.closed_bytes if job.closed_bytes else 0.0
        if left:
            job.tally.passed_bytes -= left
            for n, (file, given) in enumerate(job.closed_small, 1):
                back = min(left, given if n == len(job.closed_small) else int(given * share))
                file.tally.passed_bytes -= back
                if (worst := job.worst.get(file)) is not None:
                    worst.passed_bytes = max(0, worst.passed_bytes - back)
                left -= back
            # What rounding left over.
            job.tally.passed_bytes += left
            booked.total += left
        job.closed_small.clear()
        job.closed_bytes = 0

    def _book_unseen(self, job: JobAccount, booked: Booked) -> None:
        """There is nothing to compare with: small files count as read once, large ones go on as before, or as read once too."""
        booked.total += job.closed_bytes
        job.closed_small.clear()
        job.closed_bytes = 0
        for file, owed, start_s, stop_s in job.closed_large:
            if job.since is not None and job.rate:
                owed = int(job.rate * max(0.0, stop_s - max(start_s, job.since[0])))
            self._book_passed(job, file, owed, SMALL_BYTES + 1, booked)
        job.closed_large.clear()

    def _book_passed(
        self, job: JobAccount, file: FileAccount, count: int, size: int, booked: Booked, opened: Open | None = None
    ) -> None:
        if not count:
            return
        for tally in self._get_tallies(job, file, size):
            tally.passed_bytes += count
        if opened is not None:
            opened.booked_passed += count
        booked.by_file[file] = booked.by_file.get(file, 0) + count
        booked.total += count

    # Inside

    def _book_waits(self, job: JobAccount, file: FileAccount, waited: Seconds) -> None:
        if not any(waited):
            return
        for tally in (job.tally, file.tally, self._use_worst(job, file)):
            tally.add_waits(waited)

    def _get_tallies(self, job: JobAccount, file: FileAccount, size: int) -> tuple[Tally, ...]:
        worst = job.worst.get(file)
        if worst is None:
            if size <= SMALL_BYTES:
                return job.tally, file.tally
            worst = self._use_worst(job, file)
        return job.tally, file.tally, worst

    def _use_worst(self, job: JobAccount, file: FileAccount) -> Tally:
        """What this job waited for and read of this file: kept for a bounded number of files, of no account in sums."""
        tally = job.worst.get(file)
        if tally is None:
            if len(job.worst) >= self._limits.files_of_a_job:
                lightest = min(job.worst, key=lambda one: (job.worst[one].wait_s, job.worst[one].all_bytes))
                del job.worst[lightest]
            tally = job.worst[file] = Tally()
        return tally

    def forget_old(self, now_s: float) -> None:
        """Forget processes that ended long ago."""
        self._jobs.drop(lambda job: job.gone and now_s - job.last_s > self._limits.keep_s)
