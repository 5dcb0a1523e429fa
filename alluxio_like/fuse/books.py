"""Who read how much, by which way, and what for they waited: the books of one mount.

Owns what is added to the accounts of jobs and of files (accounts.py). Decides from what it is told, times included; touches no
clock, no
process and no file system. A job is a process (thread group); everything is booked twice, under its job and under its file, so
both sides have the same sum. What has no room any more is booked under "others" of its side: nothing is lost.

READs and waits are told exactly. Reads that the kernel answers by itself are not: they are estimated here from how much the
process has read in all by the kernel's own accounting (`sample`), and kept apart from the rest (`passed_bytes`).

Rule of concurrency: one event loop; nothing here waits. Cost on the way of a request: `open` and `close` of a file 5 us
together, READs nothing.
"""

from dataclasses import dataclass, field

from alluxio_like.fuse.accounts import FileAccount, FileInfo, JobAccount, JobInfo, Mode, Open, Table, Tally
from alluxio_like.waits import NONE, Cause, Seconds, subtract

SMALL_BYTES = 8 << 20
"""Files up to this size are taken to be read once by each open, where the kernel's accounting allows that much; a guess that
fits samples of training. Larger ones share the rest."""
_PENDING = 1 << 16
"""Closed opens that may wait for a sample of their process; beyond it they are booked at once as read once."""


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
        self._jobs: Table[tuple[int, int], JobAccount] = Table(
            JobAccount(JobInfo(-1, 0, "others"), 0.0), self._limits.recent_jobs, self._limits.worst_jobs
        )
        self._files: Table[int, FileAccount] = Table(FileAccount(None), self._limits.recent_files, self._limits.worst_files)
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
            if file.size > SMALL_BYTES:
                job.large_open += 1
                job.moved_s = now_s
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
        job.large_open -= opened.size > SMALL_BYTES
        owed = max(0, opened.size - opened.booked_passed)
        if opened.size > SMALL_BYTES and len(job.closed_large) < _PENDING and job.info.pid > 0:
            # Also with nothing owed: it may have been read more than once, up to its close.
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
        key = info.pid, info.birth
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
        if booked.total:
            job.moved_s = now_s
        booked.total += job.certain_bytes
        job.certain_bytes = 0
        return booked

    def _share(self, job: JobAccount, new: int, since_s: float, now_s: float, booked: Booked) -> None:
        """Share out among the files open meanwhile what a process has read: small ones as read once, large ones the rest by
        time."""
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
            (file, SMALL_BYTES + 1, max(stop_s - max(start_s, since_s), 1e-4), None)
            for file, _, start_s, stop_s in job.closed_large
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
                owed = int(job.rate * max(0.0, stop_s - max(start_s, job.since[0])))  # noqa: PLW2901
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
