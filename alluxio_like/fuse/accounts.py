"""The accounts that the books of a mount consist of, and the tables that remember a bounded number of them.

Owns what is kept of a job, a file and an open, and which accounts are forgotten when there are too many; what is booked, and
where, is decided in books.py. Deterministic; touches nothing but itself. Rule of concurrency: one event loop.
"""

import enum
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from alluxio_like.waits import NONE, Seconds

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
    birth: int
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
        "large_open",
        "last_s",
        "moved_s",
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
        self.closed_small: list[tuple[FileAccount, int, float]] = []
        self.closed_bytes = 0
        """Of these, the small files that were closed since the last sample: what was booked for each, and when; in all."""
        self.closed_large: list[tuple[Open, float]] = []
        """And the large ones, with the time of their close."""
        self.since: tuple[float, int] | None = None
        """When it was sampled last, and what it had read in all by then."""
        self.certain_bytes = 0
        """Booked as read once, and not to be compared with anything."""
        self.reads = self.sampled = 0
        """Bytes of its READs by now, and by the last sample."""
        self.disk_bytes: int | None = None
        self.unseen_bytes = 0
        """Read from disks, of whatever files, without read(2) and the like: mapped files, asynchronous reads."""
        self.large_open = 0
        """Of `passing`, those of large files."""
        self.moved_s = 0.0
        """When such a one was opened, or something was found to have been read past us."""
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


class Table(Generic[_K, _A]):
    """Accounts: the `recent` ones by last use, and of the older ones the `worst` by weight: so many at most, and at least half as
    many. What falls out of both goes to the others."""

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
                self._shrink_worst()

    def _shrink_worst(self) -> None:
        """Forget the lighter half: to search for the lightest at each file that is waited for takes longer than its READ."""
        # With more open than there is room for, those too are forgotten; their tallies live on among the others.
        by_weight = sorted(self._worst, key=lambda one: (self._worst[one].open_count > 0, self._worst[one].weight))
        for key in by_weight[: len(by_weight) - self._limits[1] // 2]:
            self._fold(self._worst.pop(key))

    def _fold(self, account: _A) -> None:
        self.others.tally.add(account.tally)
        account.tally = self.others.tally
