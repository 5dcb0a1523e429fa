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

import math
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
    worst_jobs: int = 256
    recent_files: int = 1024
    worst_files: int = 512
    """As `worst_jobs` and `files_of_a_job` at most: when there are more, the lighter half is forgotten."""
    files_of_a_job: int = 128
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
        if opened.size > SMALL_BYTES and len(job.closed_large) < _PENDING and job.info.pid > 0:
            # Also with nothing owed: it may have been read more than once, up to its close.
            job.closed_large.append((opened, now_s))
            return
        owed = max(0, opened.size - opened.booked_passed)
        # Taken to be read once; what turns out to be too much is taken back with the next sample.
        job.tally.passed_bytes += owed
        file.tally.passed_bytes += owed
        if (worst := job.worst.get(file)) is not None:
            worst.passed_bytes += owed
        if len(job.closed_small) < _PENDING and job.info.pid > 0:
            job.closed_small.append((file, owed, now_s))
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
        """What a process had read in all at that time, by the kernel's accounting; None: that cannot be seen, or no more.

        Books what is new. What was closed after that time waits for the next one: it may have been read on since.
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
            self._book_unseen(job, math.inf if read_chars is None else now_s, booked)
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
        self._settle_small(job, new, now_s, booked)
        rest = max(0, new - booked.total)
        takers: list[tuple[Open, float]] = []
        for one in job.passing:
            if one.size > SMALL_BYTES:
                takers.append((one, max(now_s - max(one.opened_s, since_s), 1e-4)))
            elif rest > 0 and (owed := one.size - one.booked_passed) > 0:
                owed = min(owed, rest)
                self._book_passed(job, one, owed, booked)
                rest -= owed
        takers += [(one, max(min(stop_s, now_s) - max(one.opened_s, since_s), 1e-4)) for one, stop_s in job.closed_large]
        job.closed_large = [(one, stop_s) for one, stop_s in job.closed_large if stop_s > now_s]
        if not takers:
            # Read again and again while they stay open.
            takers = [(one, 1.0) for one in job.passing if one.size and one.opened_s < since_s]
        total_time = sum(seconds for _, seconds in takers)
        for n, (one, seconds) in enumerate(takers, 1):
            part = rest if n == len(takers) else int(rest * seconds / total_time)
            self._book_passed(job, one, part, booked)
            rest -= part
            total_time -= seconds

    def _settle_small(self, job: JobAccount, new: int, now_s: float, booked: Booked) -> None:
        """Take back what was booked for closed small files beyond what their process can have read."""
        settled = [one for one in job.closed_small if one[2] <= now_s]
        later = job.closed_small[len(settled) :]
        settled_bytes = job.closed_bytes - sum(given for _, given, _ in later)
        booked.total += min(new, settled_bytes)
        left = max(0, settled_bytes - new)
        share = left / settled_bytes if settled_bytes else 0.0
        if left:
            job.tally.passed_bytes -= left
            for n, (file, given, _) in enumerate(settled, 1):
                back = min(left, given if n == len(settled) else int(given * share))
                file.tally.passed_bytes -= back
                if (worst := job.worst.get(file)) is not None:
                    worst.passed_bytes = max(0, worst.passed_bytes - back)
                left -= back
            # What rounding left over.
            job.tally.passed_bytes += left
            booked.total += left
        job.closed_small = self._cover(later, new - settled_bytes, booked)
        job.closed_bytes = sum(given for _, given, _ in job.closed_small)

    @staticmethod
    def _cover(later: list[tuple[FileAccount, int, float]], rest: int, booked: Booked) -> list[tuple[FileAccount, int, float]]:
        """Of small files that were closed since, what was not read by then as far as one can see."""
        left = []
        for file, given, stop_s in later:
            covered = max(0, min(given, rest))
            booked.total += covered
            rest -= covered
            if given > covered:
                left.append((file, given - covered, stop_s))
        return left

    def _book_unseen(self, job: JobAccount, until_s: float, booked: Booked) -> None:
        """There is nothing to compare with: small files that were closed by then count as read once, large ones go on as before,
        or as read once too."""
        later = [one for one in job.closed_small if one[2] > until_s]
        later_bytes = sum(given for _, given, _ in later)
        booked.total += job.closed_bytes - later_bytes
        job.closed_small, job.closed_bytes = later, later_bytes
        for one, stop_s in job.closed_large:
            if stop_s > until_s:
                continue
            owed = max(0, one.size - one.booked_passed)
            if job.since is not None and job.rate:
                # Not more than once again: where this daemon had to wait, the rate and the times say little.
                owed = min(one.size, int(job.rate * max(0.0, stop_s - max(one.opened_s, job.since[0]))))
            self._book_passed(job, one, owed, booked)
        job.closed_large = [(one, stop_s) for one, stop_s in job.closed_large if stop_s > until_s]

    def _book_passed(self, job: JobAccount, opened: Open, count: int, booked: Booked) -> None:
        if not count:
            return
        for tally in self._get_tallies(job, opened.file, opened.size):
            tally.passed_bytes += count
        opened.booked_passed += count
        booked.by_file[opened.file] = booked.by_file.get(opened.file, 0) + count
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
                # Half of them at once: a search for the lightest at each file that is waited for takes longer than its READ.
                by_weight = sorted(job.worst.items(), key=lambda one: (one[1].wait_s, one[1].all_bytes), reverse=True)
                job.worst = dict(by_weight[: self._limits.files_of_a_job // 2])
            tally = job.worst[file] = Tally()
        return tally

    def forget_old(self, now_s: float) -> None:
        """Forget processes that ended long ago."""
        self._jobs.drop(lambda job: job.gone and now_s - job.last_s > self._limits.keep_s)
