"""What leaves a cache when it is full: guests first, then homes that nobody comes back to; homes in use are kept, not cycled.

An epoch is a scan: when the data is larger than the cache, replacing on each miss (LRU) throws out everything just before it is
read again and hits nothing. So a miss does not push out a home. A home may go when it is stale: not read for much more traffic
than lies between two reads of the files that miss (of a data set in use, those that are cached and those that are not come back
equally often; of yesterday's, nothing comes back), or for a day. While nothing that misses comes back, keeping it would gain
nothing, and so everything stays. A load was asked for by a person, and may push out any home but its own.

How soon a new data set takes over from one that nobody reads any more: it hits wholly in its fourth epoch, and one that is larger
than the cache as far as it can in its fifth (tests/unit/test_eviction.py); at once when it is loaded.

Deterministic: time and traffic are given, files are numbers. Knows nothing of disks. Not thread-safe: one owner calls it
(worker/evictor.py, under its lock).
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from alluxio_like.types import FileId, JobId

STALE_REUSE_FACTOR = 2.5
"""Traffic, in mean reuse distances of the misses, after which an unread home is stale. In random order a file's distance varies
from 0 to twice the mean."""
REUSE_MATURITY = 2.0
"""Distances are believed after having been watched for so many means: until then the long ones are still to come."""
STALE_AGE_S = 24 * 3600.0
"""Unread for so long is stale in any case (a guess)."""
VISIT_CAPACITIES = 1 / 16
"""Reads of one file closer together than this, in capacities of traffic, are one visit: a file is read in many pieces."""
REUSE_WEIGHT = 1 / 64
"""Weight of the newest distance in the running mean."""
MAX_GHOSTS = 1 << 16
"""Files that missed and are remembered; of larger data sets a sample by hash (spatial sampling keeps distances right)."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A file to remove, with the bytes that it frees."""

    file_id: FileId
    bytes: int


@dataclass(slots=True)
class _Entry:
    bytes: int
    guest: bool
    job: JobId | None
    last_traffic: int
    last_s: float


class EvictionPolicy:
    """Scan-resistant choice of victims. `capacity_bytes` is that of the worker."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = max(1, capacity_bytes)
        self._traffic = 0
        self._guests: OrderedDict[FileId, _Entry] = OrderedDict()
        self._homes: OrderedDict[FileId, _Entry] = OrderedDict()
        self._pinned: dict[FileId, _Entry] = {}
        self._ghosts: dict[FileId, int] = {}
        self._ghost_mask = 0
        self._reuse = 0.0
        self._reuse_seen_at: int | None = None
        self._reuse_since = 0

    def __len__(self) -> int:
        return len(self._guests) + len(self._homes) + len(self._pinned)

    def record_stored(
        self,
        file_id: FileId,
        bytes_: int,
        *,
        guest: bool,
        pinned: bool,
        now_s: float,
        job: JobId | None = None,
        last_use_s: float | None = None,
    ) -> None:
        """A file holds `bytes_` in the cache now, or will soon; `job`: a load brought or confirmed it.

        `last_use_s` is for files learned from an index at start, in the order of their last use; it counts as now otherwise.
        """
        old = self._take(file_id)
        job = job if job is not None or old is None else old.job
        entry = _Entry(bytes_, guest, job, self._traffic, now_s if last_use_s is None else last_use_s)
        if old is not None and last_use_s is not None:
            entry.last_traffic, entry.last_s = old.last_traffic, max(old.last_s, last_use_s)
        self._ghosts.pop(file_id, None)
        if pinned:
            self._pinned[file_id] = entry
        else:
            (self._guests if guest else self._homes)[file_id] = entry

    def record_removed(self, file_id: FileId) -> None:
        """A file has left the cache."""
        self._take(file_id)

    def record_busy(self, file_id: FileId) -> None:
        """A victim could not be removed, because somebody has it open: it counts as just used."""
        for queue in (self._guests, self._homes):
            entry = queue.get(file_id)
            if entry is not None:
                entry.last_traffic = self._traffic
                queue.move_to_end(file_id)

    def record_read(self, file_id: FileId, bytes_: int, now_s: float) -> None:
        """A reader was given `bytes_` of a file, be it from the cache or read through."""
        self._traffic += bytes_
        for queue in (self._homes, self._guests):
            entry = queue.get(file_id)
            if entry is not None:
                entry.last_traffic = self._traffic
                entry.last_s = now_s
                queue.move_to_end(file_id)
                return
        if file_id not in self._pinned:
            self._record_ghost(file_id)

    def choose_victims(
        self, needed_bytes: int, now_s: float, *, job: JobId | None = None, only_guests: bool = False
    ) -> list[Victim]:
        """Files that may go, at least `needed_bytes` of them if there are so many, best first.

        For a reader (`job` None): guests, then homes gone stale. For a load: then also homes by last use, but nothing that the
        same job brought in. The files stay known until record_removed or record_busy.
        """
        victims: list[Victim] = []
        total = 0
        limit = self.stale_after_bytes
        for queue in (self._guests,) if only_guests else (self._guests, self._homes):
            for file_id, entry in queue.items():
                if total >= needed_bytes:
                    return victims
                if queue is self._homes and job is None and not self._is_stale(entry, limit, now_s):
                    # The queue is in the order of last use: what follows is younger.
                    break
                if job is not None and entry.job == job:
                    continue
                victims.append(Victim(file_id, entry.bytes))
                total += entry.bytes
        return victims

    @property
    def stale_after_bytes(self) -> float:
        """The traffic after which an unread home counts as stale."""
        seen = self._reuse_seen_at
        if seen is None or self._traffic - seen > self.capacity_bytes:
            return math.inf
        if self._traffic - self._reuse_since < REUSE_MATURITY * self._reuse:
            # In the second epoch only short distances can have been seen so far.
            return math.inf
        return STALE_REUSE_FACTOR * self._reuse

    def _is_stale(self, entry: _Entry, limit: float, now_s: float) -> bool:
        return self._traffic - entry.last_traffic > limit or now_s - entry.last_s > STALE_AGE_S

    def _take(self, file_id: FileId) -> _Entry | None:
        for queue in (self._homes, self._guests, self._pinned):
            entry = queue.pop(file_id, None)
            if entry is not None:
                return entry
        return None

    def _record_ghost(self, file_id: FileId) -> None:
        if _mix(file_id) & self._ghost_mask:
            return
        last = self._ghosts.pop(file_id, None)
        self._ghosts[file_id] = self._traffic
        if last is None:
            if len(self._ghosts) > MAX_GHOSTS:
                self._ghost_mask = self._ghost_mask * 2 + 1
                self._ghosts = {ghost: seen for ghost, seen in self._ghosts.items() if not _mix(ghost) & self._ghost_mask}
            return
        distance = self._traffic - last
        if distance < self.capacity_bytes * VISIT_CAPACITIES:
            return
        fresh = self._reuse_seen_at is None or self._traffic - self._reuse_seen_at > self.capacity_bytes
        if fresh:
            self._reuse, self._reuse_since = float(distance), self._traffic
        else:
            self._reuse += (distance - self._reuse) * REUSE_WEIGHT
        self._reuse_seen_at = self._traffic


def _mix(file_id: FileId) -> int:
    """A number whose low bits depend on all of the id (a multiplication by an odd constant, upper half)."""
    return ((file_id.inode * 0x9E3779B97F4A7C15 + file_id.version) & 0xFFFFFFFFFFFFFFFF) >> 32
