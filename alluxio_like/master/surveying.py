"""Bringing whole trees into the namespace: each directory by a listing of its own, or many by a flat one.

Owns the choice between the two, by what they have cost so far, and the flat listings under way. A directory at a time is as fast
as the requests that can be under way at once, and costs one for each directory; a flat listing costs one for a thousand keys,
however many directories they lie in, one after the other. So trees of large directories are listed one way and trees of small
ones the other; a survey begins with single directories and changes over when these prove small, and back.

Event loop alone. A survey is one walk's; the flat listings of all surveys are known to all.
"""

from collections import deque
from dataclasses import dataclass

from alluxio_like.clock import Clock
from alluxio_like.master.core import namespace
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.flat_run import FlatRun, Place, Progress
from alluxio_like.master.flight import Flight
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.types import InodeId, MountId, to_bytes
from alluxio_like.ufs.api import FlatUfs

SAMPLE = 8
"""Directories that are listed one by one before any other way is thought of."""
REQUEST_S = 0.005
"""What a listing request costs beside the time waited for it: of the bucket's rate, of its price ($5 for a million), of our own
CPU (boto3 takes some 3 ms). A guess."""
FLAT_PAGE_COST = 4.0
"""A flat page before any was seen: as long as so many listings of small directories (measured on radosgw: see
docs/decisions/0034)."""
LIMIT_WORSE = 2.0
"""A flat listing is given up when it costs so many times what single directories would."""
SMOOTHING = 1 / 16


class Costs:
    """What both ways have cost lately, in seconds: for a directory, and for a key of a flat listing. Plain; not thread-safe."""

    def __init__(self) -> None:
        self.directories = 0
        self.keys_per_directory = 0.0
        self.directory_s = 0.0
        self.key_s = 0.0

    def note_listing(self, entries: int, seconds: float, at_once: int) -> None:
        """A directory was listed alone, with so many under way at once."""
        self.directories += 1
        weight = max(SMOOTHING, 1 / self.directories)
        self.keys_per_directory += weight * (entries - self.keys_per_directory)
        self.directory_s += weight * (seconds / max(1, at_once) - self.directory_s)

    def note_flat(self, keys: int, directories: int, seconds: float) -> None:
        """A page of a flat listing, which went through so many directories to their ends."""
        if keys:
            self.key_s = seconds / keys if not self.key_s else self.key_s + SMOOTHING * 4 * (seconds / keys - self.key_s)
            self.keys_per_directory += 0.5 * (keys / max(1, directories) - self.keys_per_directory)

    def compare(self) -> float:
        """What a directory costs by a flat listing, as a part of what it costs alone."""
        key_s = self.key_s or self.directory_s * FLAT_PAGE_COST / 1000
        return self.keys_per_directory * (key_s + REQUEST_S / 1000) / (self.directory_s + REQUEST_S)

    def prefers_flat(self) -> bool:
        return self.directories >= SAMPLE and self.compare() < 1.0


@dataclass(slots=True)
class Surveyed:
    """What listings changed, in sum."""

    directories: int = 0
    added: int = 0
    removed: int = 0
    replaced: int = 0

    def add(self, one: Flight | FlatRun) -> None:
        self.directories += one.directories
        self.added += one.added
        self.removed += one.removed
        self.replaced += one.replaced


class Surveyor:
    """Makes surveys, and knows the flat listings of all of them."""

    def __init__(self, lister: Lister, meta: MetaStore, mounts: MountTable, *, clock: Clock, io_timeout_s: float) -> None:
        self.lister = lister
        self.meta = meta
        self.mounts = mounts
        self.clock = clock
        self.io_timeout_s = io_timeout_s
        self.runs: list[FlatRun] = []

    def begin(self, since_ns: int, *, strict: bool = False) -> "Survey":
        """A survey that brings what was not listed at `since_ns` or later; unless `strict`, what is still believed will do."""
        return Survey(self, since_ns, strict=strict)

    def lookup_run(self, mount_id: MountId, prefix: str) -> FlatRun | None:
        """A flat listing that will come to a directory, or is in it."""
        self.runs = [run for run in self.runs if not run.done]
        return next((run for run in self.runs if run.place.mount_id == mount_id and run.is_ahead(prefix)), None)


class Survey:
    """See the module. To be closed."""

    def __init__(self, surveyor: Surveyor, since_ns: int, *, strict: bool) -> None:
        self._s = surveyor
        self.since_ns = since_ns
        self._strict = strict
        self._costs = Costs()
        self._flights: deque[tuple[Flight, int]] = deque()
        self._runs: list[FlatRun] = []
        self._no_flat = False
        self.total = Surveyed()

    def is_known(self, directory: InodeId) -> bool:
        """Whether nothing needs to be brought for a directory. Raises NotFound, NotADirectory."""
        return self._s.lister.is_listed(directory, self.since_ns, strict=self._strict)

    async def bring(self, directory: InodeId, *, among: InodeId | None = None, whole: bool = True) -> None:
        """Return when a directory is known as a whole; or, without `whole`, when the caller had better list it by itself.
        `among`: the directory it is in, of which the survey wants the others behind it too.

        Raises NotFound, NotADirectory, the store's errors, and TimedOut when nothing goes on.
        """
        if self.is_known(directory):
            return
        with self._s.meta.read() as txn:
            mount_id, prefix = namespace.get_key(txn, directory)
        run = self._s.lookup_run(mount_id, prefix) or self._start_run(mount_id, prefix, directory, among)
        while run is not None:
            await run.wait_passed(prefix, 3 * self._s.io_timeout_s)
            if self.is_known(directory):
                return
            run = self._s.lookup_run(mount_id, prefix)
        if whole:
            await self._list(directory)

    async def close(self) -> None:
        """End what this survey has begun, but for listings of single directories; then `total` is whole."""
        for run in self._runs:
            await run.close()
        self._note_ended()

    async def _list(self, directory: InodeId) -> None:
        lister = self._s.lister
        flight = lister.lookup_flight(directory)
        while flight is not None and self._strict and flight.started_ns < self.since_ns:
            # One that began before will not do.
            await lister.wait_end(flight)
            flight = lister.lookup_flight(directory)
        flight = flight or lister.begin(directory)
        if all(other is not flight for other, _ in self._flights):
            self._flights.append((flight, 1 + sum(not other.done for other, _ in self._flights)))
        await lister.wait_flight(flight)

    def _note_ended(self) -> None:
        """Take what has ended into the sums and the costs."""
        for flight, at_once in [pair for pair in self._flights if pair[0].done]:
            self._flights.remove((flight, at_once))
            self.total.add(flight)
            if flight.error is None:
                self._costs.note_listing(flight.entries, flight.took_s, at_once)
        for run in [run for run in self._runs if run.done]:
            self._runs.remove(run)
            self.total.add(run)
            if run.error is not None:
                # Single listings will tell whether that was the store's, or the way of asking.
                self._no_flat = True

    def _start_run(self, mount_id: MountId, prefix: str, directory: InodeId, among: InodeId | None) -> FlatRun | None:
        """A flat listing from a directory on, if that is thought to be cheaper."""
        self._note_ended()
        if self._no_flat or mount_id == NO_MOUNT or not self._costs.prefers_flat() or self._s.lister.lookup_flight(directory):
            return None
        store = self._s.mounts.get_ufs(mount_id)
        if not isinstance(store, FlatUfs) or self._s.mounts.wants_stored_attributes(mount_id):
            # (Where files are asked for one by one, few listings are no gain.)
            self._no_flat = True
            return None
        place = self._find_place(mount_id, prefix, directory, among)
        run = FlatRun(
            self._s.lister, self._s.meta, store, place, clock=self._s.clock, since_ns=self.since_ns, goes_on=self._goes_on
        )
        self._runs.append(run)
        self._s.runs.append(run)
        return run

    def _find_place(self, mount_id: MountId, prefix: str, directory: InodeId, among: InodeId | None) -> Place:
        if among is not None:
            with self._s.meta.read() as txn:
                base_mount, base = namespace.get_key(txn, among)
            if base_mount == mount_id and prefix.startswith(base):
                name = prefix[len(base) :]
                begun = [run.place.name for run in self._s.runs if run.place.prefix == base and not run.done]
                end = min((other for other in begun if to_bytes(other) > to_bytes(name)), key=to_bytes, default=None)
                return Place(mount_id, among, base, directory, name, end)
        return Place(mount_id, directory, prefix, directory, "")

    def _goes_on(self, progress: Progress) -> bool:
        self._costs.note_flat(progress.keys, progress.directories, progress.seconds)
        return progress.keys_below > 0 and self._costs.compare() < LIMIT_WORSE
