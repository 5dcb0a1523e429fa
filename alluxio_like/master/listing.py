"""Bringing directories into the namespace: one listing at a time for each directory, used by all who wait for it.

Owns when a store is asked and how long somebody waits for it. Pages are applied as they come: a name is answered as soon as the
page that covers it was applied, a directory is read while it is still being listed. A listing goes on when those who asked have
gone. While a store does not answer, what is known stays served; what is not known fails with the store's error.

Rule of concurrency: event loop alone; `_flights` holds the one listing of each directory, and is looked at and changed without
an await between. Applying happens in the writer's thread.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.master import stored_attributes
from alluxio_like.master.asking import MAX_EMPTY_PAGES, Asker
from alluxio_like.master.core import flat, leases, namespace, paths
from alluxio_like.master.core.flat import Applied, Asked, Claims, Part, Run, Target
from alluxio_like.master.core.model import NO_MOUNT, Changes, DirState, EntryPage, ListingPlan
from alluxio_like.master.core.record_columns import Flags
from alluxio_like.master.core.tree import Directories
from alluxio_like.master.flight import Flight
from alluxio_like.master.meta_store import MetaStore, run_to_end
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.reading_ahead import ReadAhead
from alluxio_like.master.snapshot_trees import SnapshotTrees, is_frozen
from alluxio_like.master.stored_attributes import AttributeReader
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.context import get_lease, get_remaining_s
from alluxio_like.types import ROOT_INODE, SNAPSHOT_FOLDER, Entry, InodeId, Kind, MountId, Recall, to_bytes, to_str
from alluxio_like.ufs.api import ListPage, StoreEntry, Ufs

log = logging.getLogger(__name__)

MAX_VALID_S = 10.0
"""Clients without a lease ask again at least so often."""
MAX_LEASED_S = 86_400.0
"""Clients with one, where a listing is believed for longer than that."""
SHORT_VALID_S = 1.0
"""For answers that may change by our own doing (mount points) or that are known to be old."""
REFRESH_WAIT_S = 2.0
"""How long a name that is known waits for a listing that may change it, before it is served as it is (a guess)."""
STAT_AFTER_S = 1.0
STAT_AFTER_PAGES = 3
"""When a listing has gone on for so long without reaching a name, the store is asked for that name (a guess)."""
YOUNG_S = 2.0
"""A directory with fingerprints too young to be trusted is listed again after so long."""
ANSWER_S = 1.0


class Leases(Protocol):
    """What covers answers, and hears of changes: master/coherence.py."""

    def grant(self, session_id: str, directory: InodeId) -> bool: ...

    def tell(self, recalls: Iterable[Recall]) -> object: ...

    def is_anothers(self, directory: InodeId, session_id: str) -> bool: ...

    async def take_back(self, directories: Iterable[InodeId], session_id: str, *, own: bool = False) -> None: ...

    def list_delegated(self) -> Iterable[InodeId]: ...

    def pause_delegating(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """About one name: None says that it does not exist. Usable for `valid_s` seconds; see LookupResult for the rest."""

    entry: Entry | None
    valid_s: float
    leased: bool = False
    directory: InodeId = InodeId(0)
    chain: tuple[InodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of a directory: usable for `valid_s` seconds; see DirPage for the rest."""

    page: EntryPage
    valid_s: float
    leased: bool = False
    unleased: tuple[InodeId, ...] = ()


class Lister:
    """See the module."""

    def __init__(
        self,
        meta: MetaStore,
        mounts: MountTable,
        *,
        clock: Clock,
        metrics: Metrics,
        asker: Asker,
        leases: Leases,
        page_entries: int,
        io_timeout_s: float,
    ) -> None:
        self._meta = meta
        self._mounts = mounts
        self._leases = leases
        self._clock = clock
        self._metrics = metrics
        self.asker = asker
        self._attributes = AttributeReader(meta, mounts, asker)
        self.snapshots = SnapshotTrees(meta)
        self._ahead = ReadAhead(meta)
        self.page_entries = page_entries
        self._io_timeout_s = io_timeout_s
        self._flights: dict[InodeId, Flight] = {}
        self.claims = Claims()
        self._flat_turn = asyncio.Lock()
        """Held while a page of a flat listing is applied: no listing is planned meanwhile, and no other such page applied."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._interrupted: set[InodeId] = set()
        """Directories whose last listing has ended early: names may have been answered by what it found."""

    # -- names ---------------------------------------------------------------------------------------------------------

    async def lookup(self, parent: InodeId, name: str, *, session: str = "") -> Answer:
        """One displayed name; the lease of `session` is to cover it. Raises NotFound and NotADirectory for the parent, and the
        store's errors."""
        asker = session or get_lease()
        await self._take_back(parent, asker)
        answer = await self._lookup(parent, name, session)
        if self._list_anothers((answer.entry,), asker):
            with self._leases.pause_delegating():
                while found := self._list_anothers((answer.entry,), asker):
                    await self._leases.take_back(found, asker)
                    answer = await self._lookup(parent, name, session)
        return answer

    async def _take_back(self, directory: InodeId, asker: str) -> None:
        """Have nothing of a directory be known to one client alone, other than who asks."""
        if self._leases.is_anothers(directory, asker):
            await self._leases.take_back((directory,), asker)

    def _list_anothers(self, entries: Iterable[Entry | None], asker: str) -> list[InodeId]:
        """Directories among what was found that are delegated to others: they are to be taken back, and read again. To be called
        in the step in which they were read."""
        found = [entry.attr.inode for entry in entries if entry is not None and entry.attr.kind is Kind.DIRECTORY]
        return [directory for directory in found if self._leases.is_anothers(directory, asker)]

    def is_anothers(self, directory: InodeId, session: str) -> bool:
        """Whether it is delegated to another client: nothing is to be told of it now."""
        return self._leases.is_anothers(directory, session)

    async def _lookup(self, parent: InodeId, name: str, session: str) -> Answer:
        if name == SNAPSHOT_FOLDER or is_frozen(parent):
            frozen = self._lookup_frozen(parent, name)
            if frozen is not None:
                return frozen
            answer = await self._lookup_listed(parent, name, "")
            # Nobody is told when the first snapshot makes it a name.
            return answer if answer.entry is not None else replace(answer, valid_s=0.0)
        return await self._lookup_listed(parent, name, session)

    async def _lookup_listed(self, parent: InodeId, name: str, session: str) -> Answer:
        if self._ahead.is_wanted:
            await self._ahead.bring_name(parent, name)
        entry, state = self._read_name(parent, name)
        if self._is_fresh(state):
            return self._cover(session, state, entry)
        flight = self._flights.get(parent)
        if flight is None:
            trouble = self._mounts.lookup_trouble(state.mount_id, parent)
            if trouble is not None:
                return self._answer_known(entry, trouble)
            flight = self._start(parent)
        raw_name = _get_raw_name(entry, name)
        await self._wait_for_name(flight, raw_name, known=entry is not None)
        settled = flight.settles(raw_name)
        entry, state = self._read_name(parent, name)
        if settled:
            return self._cover(session, state, entry, flight)
        return self._answer_known(entry, flight.error or errors.TimedOut("the store did not list this in time", subject=name))

    def read(self, parent: InodeId, name: str, *, session: str) -> Answer | None:
        """As `lookup`, of what is believed now; None: it would have to be asked for. Raises as `lookup`."""
        if name == SNAPSHOT_FOLDER or is_frozen(parent):
            return None
        entry, state = self._read_name(parent, name)
        if entry is not None and self._leases.is_anothers(entry.attr.inode, session):
            return None
        return self._cover(session, state, entry) if self._is_fresh(state) else None

    def read_names(self, parent: InodeId, names: Sequence[str], *, session: str) -> list[Answer]:
        """As `read`, of many names that lead to no directories, under the lease of `session`; none where that does not hold."""
        if self._leases.is_anothers(parent, session):
            return []
        with self._meta.read() as txn:
            state = namespace.get_dir_state(txn, parent)
            left_s = self._get_lease_s(state, None)
            if not self._is_fresh(state) or left_s <= 0 or not self._leases.grant(session, parent):
                return []
            return [Answer(entry, left_s, True, parent) for entry in namespace.lookup_names(txn, parent, names)]

    def _lookup_frozen(self, parent: InodeId, name: str) -> Answer | None:
        """A name in a snapshot, or the folder of a directory's snapshots; None: that has none, and the name is like any other."""
        if is_frozen(parent):
            return Answer(self.snapshots.lookup(parent, name), MAX_VALID_S)
        folder = self.snapshots.lookup_folder(parent)
        return None if folder is None else Answer(folder, SHORT_VALID_S)

    def _read_name(self, parent: InodeId, name: str) -> tuple[Entry | None, DirState]:
        with self._meta.read() as txn:
            found = namespace.lookup_known(txn, parent, name)
        self._ahead.note_read()
        return found

    @staticmethod
    def _answer_known(entry: Entry | None, error: errors.AlluxioLikeError) -> Answer:
        if entry is None:
            raise error
        return Answer(entry, SHORT_VALID_S)

    async def _wait_for_name(self, flight: Flight, raw_name: str | None, *, known: bool) -> None:
        begun = self._clock.monotonic()
        limit = self._get_wait_s()
        if known:
            limit = min(REFRESH_WAIT_S, limit)
        asked = False
        while not flight.done and not flight.settles(raw_name):
            waited = self._clock.monotonic() - begun
            if waited >= limit:
                return
            if not asked and raw_name is not None and waited >= STAT_AFTER_S and flight.pages >= STAT_AFTER_PAGES:
                asked = True
                if await self._stat(flight, raw_name):
                    return
            await flight.wait_progress(min(limit - waited, STAT_AFTER_S))

    def _get_wait_s(self) -> float:
        """How long a caller may be kept: a little less than it waits, so that it hears the reason from us."""
        remaining = get_remaining_s()
        return self._io_timeout_s if remaining is None else max(0.1, min(self._io_timeout_s, remaining - ANSWER_S))

    async def _stat(self, flight: Flight, raw_name: str) -> bool:
        """Ask the store for one file of a directory that is large; whether there is one."""
        with self._meta.read() as txn:
            plan = namespace.begin_listing(txn, flight.directory, self._clock.now_ns())
        try:
            ufs = self._mounts.get_ufs(plan.mount_id)
            await self.asker.wait_turn(ufs)
            found = await ufs.stat(plan.prefix + raw_name)
            listed = StoreEntry(raw_name, found.kind, found.fingerprint, found.mtime_ns, found.trusted, found.archived)
            entry = await self._attributes.complete_one(plan, listed)
        except errors.AlluxioLikeError:
            return False
        now_ns = self._clock.now_ns()

        async def apply() -> None:
            changes = await self._meta.write(lambda txn: namespace.apply_stat(txn, plan, raw_name, entry, now_ns))
            self._leases.tell(leases.list_recalls(changes))

        # To the end: what has committed is told, also when who asked has gone.
        await run_to_end(apply())
        return True

    async def resolve_path(self, path: str, *, sync: bool = False, session: str = "") -> Answer:
        """An absolute path, component by component; with `sync` the store is asked about the last one first."""
        parts = split_path(path)
        answer = self.get_entry(ROOT_INODE, session=session)
        entry, valid_s, leased = answer.entry, answer.valid_s, answer.leased
        chain: list[InodeId] = []
        for place, part in enumerate(parts):
            if entry is None:
                break
            if entry.attr.kind is not Kind.DIRECTORY:
                raise errors.NotADirectory("not a directory", subject="/" + "/".join(parts[:place]))
            if sync and place == len(parts) - 1:
                await self.refresh(entry.attr.inode, self._clock.now_ns())
            answer = await self.lookup(entry.attr.inode, part, session=session)
            chain.append(entry.attr.inode)
            leased = leased and answer.leased
            valid_s = min(valid_s, answer.valid_s) if leased else answer.valid_s
            entry = answer.entry
        return Answer(entry, valid_s, leased, chain[-1] if chain else ROOT_INODE, tuple(chain))

    async def resolve_directory(self, path: str, *, otherwise: str) -> InodeId:
        """The directory at a path. Raises NotFound, and NotADirectory with what `otherwise` says of what it is for."""
        entry = (await self.resolve_path(path)).entry
        if entry is None:
            raise errors.NotFound("no such directory: see `alluxio-like fs ls` of the one above it", subject=path)
        if entry.attr.kind is not Kind.DIRECTORY:
            raise errors.NotADirectory(f"{otherwise}: name the one that the file is in", subject=path)
        return entry.attr.inode

    async def ask_entry(self, inode: InodeId, *, session: str = "") -> Answer:
        """As `get_entry`, for who can wait while it comes from the disk."""
        if self._ahead.is_wanted and not is_frozen(inode):
            await self._ahead.bring_name(inode, "")
        return self.get_entry(inode, session=session)

    def get_entry(self, inode: InodeId, *, session: str = "") -> Answer:
        """An inode by its id. Raises NotFound."""
        if is_frozen(inode):
            return Answer(self.snapshots.get_entry(inode), MAX_VALID_S)
        with self._meta.read() as txn:
            entry = namespace.get_entry(txn, inode)
            parent = namespace.lookup_parent(txn, inode)
            state = None if parent is None else namespace.get_dir_state(txn, parent)
        self._ahead.note_read()
        # A file that only the store changes never holds another content; a directory's attributes follow its listing.
        uncovered_s = MAX_VALID_S if entry.attr.kind is Kind.FILE else SHORT_VALID_S
        if state is not None and self._mounts.can_be_written(state.mount_id):
            uncovered_s = 0.0
        covered = None
        if state is not None and session and (state.complete or state.mount_id == NO_MOUNT):
            covered = self._cover(session, state, entry)
        return covered if covered is not None and covered.leased else Answer(entry, uncovered_s)

    # -- directories ---------------------------------------------------------------------------------------------------

    async def list_page(
        self,
        directory: InodeId,
        cursor: bytes,
        limit: int,
        *,
        since_ns: int = 0,
        patience: float = 1.0,
        session: str = "",
    ) -> Listed:
        """Children from `cursor` on, at most `limit`, and how long they may be used; waits only for what it returns.

        `since_ns`: a listing that began then or later is believed too. `patience`: how many I/O timeouts it may take. Raises what
        `lookup` raises, and TimedOut.
        """
        asker = session or get_lease()
        await self._take_back(directory, asker)
        read = partial(self._list_page, directory, cursor, limit, since_ns=since_ns, patience=patience, session=session)
        listed = await read()
        if self._list_anothers(listed.page.entries, asker):
            with self._leases.pause_delegating():
                while found := self._list_anothers(listed.page.entries, asker):
                    await self._leases.take_back(found, asker)
                    listed = await read()
        return listed

    async def _list_page(
        self, directory: InodeId, cursor: bytes, limit: int, *, since_ns: int, patience: float, session: str
    ) -> Listed:
        if is_frozen(directory):
            return Listed(self.snapshots.list_page(directory, cursor, limit), MAX_VALID_S)
        if self._ahead.is_wanted:
            await self._ahead.bring_page(directory, cursor, limit)
        flight = self._flights.get(directory)
        with self._meta.read() as txn:
            state = namespace.get_dir_state(txn, directory)
        if flight is None and not self._is_fresh(state, since_ns) and not (cursor and state.complete):
            trouble = self._mounts.lookup_trouble(state.mount_id, directory)
            if trouble is None:
                flight = self._start(directory)
            elif not state.complete:
                raise trouble
        if flight is None or self._is_fresh(state, since_ns):
            # Also the further pages of a listing that has grown old while it was read.
            return self._cover_page(session, state, self._read_page(directory, cursor, limit))
        begun, wait_s = self._clock.monotonic(), self._get_wait_s()
        while not flight.done:
            with self._meta.read() as txn:
                state = namespace.get_dir_state(txn, directory)
            page = self._read_page(directory, cursor, limit)
            count = _count_settled(flight, page)
            if count and count == len(page.entries) and page.cursor:
                return self._cover_page(session, state, page, flight)
            if count >= 2:
                return self._cover_page(session, state, self._read_page(directory, cursor, count - 1), flight)
            left = patience * wait_s - (self._clock.monotonic() - begun)
            if not await flight.wait_progress(left):
                raise errors.TimedOut("the store did not list this directory in time", subject=page.dir_key)
        with self._meta.read() as txn:
            state = namespace.get_dir_state(txn, directory)
        if flight.error is not None and not state.complete:
            raise flight.error
        return self._cover_page(session, state, self._read_page(directory, cursor, limit))

    def _read_page(self, directory: InodeId, cursor: bytes, limit: int) -> EntryPage:
        with self._meta.read() as txn:
            page = namespace.list_entries(txn, directory, cursor, limit)
        self._ahead.note_read()
        return page

    def lookup_flight(self, directory: InodeId) -> Flight | None:
        """The listing of a directory that is under way."""
        return self._flights.get(directory)

    def begin(self, directory: InodeId) -> Flight:
        """The listing of a directory that is under way, or else a new one. Raises NotFound, NotADirectory, Unsupported."""
        return self._flights.get(directory) or self._start(directory)

    def is_listed(self, directory: InodeId, since_ns: int, *, strict: bool = False) -> bool:
        """Whether a directory is known as a whole by a listing that began then or later, or (but for `strict`) that is still
        believed; True for one without a store. Raises NotFound, NotADirectory."""
        with self._meta.read() as txn:
            state = namespace.get_dir_state(txn, directory)
        if strict and state.mount_id != NO_MOUNT:
            return state.complete and state.listed_ns >= since_ns
        return self._is_fresh(state, since_ns)

    async def refresh(self, directory: InodeId, since_ns: int) -> Flight | None:
        """List a directory, whatever is known; returns the ended listing that began at `since_ns` or later.

        None for a directory without a store. Raises the listing's error.
        """
        while True:
            flight = self._flights.get(directory)
            mine = flight is None
            if flight is None:
                with self._meta.read() as txn:
                    if namespace.get_dir_state(txn, directory).mount_id == NO_MOUNT:
                        return None
                flight = self._start(directory)
            # One begun here is new, whatever the clock says: it may have been set back since `since_ns` was read.
            if mine or flight.started_ns >= since_ns:
                await self.wait_flight(flight)
                return flight
            await self.wait_end(flight)

    async def wait_flight(self, flight: Flight) -> None:
        """Wait for the end of a listing, as long as it makes progress. Raises its error, or TimedOut."""
        await self.wait_end(flight)
        if flight.error is not None:
            raise flight.error

    async def wait_end(self, flight: Flight) -> None:
        """Wait for the end of a listing, failed or not. Raises TimedOut."""
        # A page's own bound is the store's; this one holds for a page that is tried again until the flight gives up.
        while not flight.done:
            if not await flight.wait_progress(3 * self._io_timeout_s):
                raise errors.TimedOut("the store did not list this directory in time")

    # -- what is believed ----------------------------------------------------------------------------------------------

    def _is_fresh(self, state: DirState, since_ns: int = 0) -> bool:
        if state.mount_id == NO_MOUNT:
            return True
        if not state.complete:
            return False
        if since_ns and state.listed_ns >= since_ns:
            return True
        return self._get_left_s(state) > 0

    def judge(self, found: Directories, since_ns: int) -> tuple[Flags, NDArray[np.float64]]:
        """Of many directories what `is_listed` says of one; and for how long each is believed from now on, 0: not at all."""
        left_s = np.full(len(found), np.inf)
        for mount_id in np.unique(found.mounts[found.there]).tolist():
            if mount_id == NO_MOUNT:
                continue
            rows = np.flatnonzero(found.there & (found.mounts == mount_id))
            interval = self._mounts.get_sync_intervals_s(MountId(mount_id), found.inodes[rows])
            interval[found.states.untrusted[rows]] = np.minimum(interval[found.states.untrusted[rows]], YOUNG_S)
            age_s = (self._clock.now_ns() - found.states.listed_ns[rows]) / 1e9
            interval -= age_s
            # See _get_left_s.
            interval[(age_s < 0) & (interval != np.inf)] = 0
            left_s[rows] = np.where(found.states.complete[rows], np.maximum(interval, 0), 0)
        known = left_s > 0
        if since_ns:
            known |= found.states.complete & (found.states.listed_ns >= since_ns)
        return known, left_s

    def _get_left_s(self, state: DirState) -> float:
        interval = self._mounts.get_sync_interval_s(state.mount_id, state.directory)
        if state.untrusted:
            interval = min(interval, YOUNG_S)
        age_s = (self._clock.now_ns() - state.listed_ns) / 1e9
        # From the future: the clock was set back, and nobody knows how old it is.
        return interval - age_s if age_s >= 0 or interval == float("inf") else 0.0

    def _cover(self, session: str, state: DirState, entry: Entry | None, flight: Flight | None = None) -> Answer:
        """An answer about a name of a directory, under the lease of `session` where that can be had: then it is usable until the
        directory is to be listed again. Call it in one step with the reading of the entry. `flight`: the listing that settled
        it."""
        left_s = self._get_lease_s(state, flight)
        if session and left_s > 0 and self._leases.grant(session, state.directory):
            if entry is None or entry.attr.kind is not Kind.DIRECTORY:
                return Answer(entry, left_s, True, state.directory)
            own_s = self._cover_attributes(session, entry.attr.inode)
            if own_s > 0:
                return Answer(entry, min(left_s, own_s), True, state.directory)
        return Answer(entry, self._get_uncovered_s(session, state, flight))

    def _cover_page(self, session: str, state: DirState, page: EntryPage, flight: Flight | None = None) -> Listed:
        """As `_cover`, for a page of a listing."""
        left_s = self._get_lease_s(state, flight)
        if not session or left_s <= 0 or not self._leases.grant(session, state.directory):
            return Listed(page, self._get_uncovered_s(session, state, flight))
        below = [entry.attr.inode for entry in page.entries if entry.attr.kind is Kind.DIRECTORY]
        unleased = tuple([inode for inode in below if self._cover_attributes(session, inode) < left_s])
        return Listed(page, left_s, True, unleased)

    def _cover_attributes(self, session: str, directory: InodeId) -> float:
        """Have a directory's own attributes covered; for how many seconds, 0: they are not."""
        if self._leases.is_anothers(directory, session):
            # It is taken back first. Who fills it would wait for us, of whom it is not known that we rely on nothing.
            return 0.0
        with self._meta.read() as txn:
            state = namespace.get_dir_state(txn, directory)
        # Nothing changes the attributes of one that was never listed to its end but a listing, which tells.
        left_s = self._get_lease_s(state, None) if state.complete else MAX_LEASED_S
        return left_s if left_s > 0 and self._leases.grant(session, directory) else 0.0

    def _get_lease_s(self, state: DirState, flight: Flight | None) -> float:
        """How long what a directory's last listing, or the one under way, said is usable under a lease."""
        if state.mount_id == NO_MOUNT:
            return MAX_LEASED_S
        if flight is not None and not (flight.done and flight.error is None):
            interval = self._mounts.get_sync_interval_s(state.mount_id, state.directory)
            age_s = max(0.0, (self._clock.now_ns() - flight.started_ns) / 1e9)
            return min(MAX_LEASED_S, (min(interval, YOUNG_S) if state.untrusted else interval) - age_s)
        return min(MAX_LEASED_S, self._get_left_s(state)) if state.complete else 0.0

    def _get_uncovered_s(self, session: str, state: DirState, flight: Flight | None) -> float:
        """How long an answer that no lease covers is usable. Whoever asks for a lease and gets none (the directory changes all
        the time) is not told of changes, so that it has to ask again soon; at once, where programs change it."""
        if self._mounts.can_be_written(state.mount_id):
            return 0.0
        if session or not (flight is None or flight.done):
            return min(SHORT_VALID_S, self._get_valid_s(state))
        return self._get_valid_s(state)

    def _get_valid_s(self, state: DirState) -> float:
        if state.mount_id == NO_MOUNT:
            return SHORT_VALID_S
        left = self._get_left_s(state)
        if left > 0:
            return min(left, MAX_VALID_S)
        return min(SHORT_VALID_S, self._mounts.get_sync_interval_s(state.mount_id, state.directory))

    # -- flights -------------------------------------------------------------------------------------------------------

    def _start(self, directory: InodeId) -> Flight:
        """Begin the listing of a directory that none is under way for."""
        now_ns = self._clock.now_ns()
        must_wait = self._flat_turn.locked()
        with self._meta.read() as txn:
            plan = namespace.begin_listing(txn, directory, now_ns)
            state = namespace.get_dir_state(txn, directory)
        flight = self._flights[directory] = Flight(directory, plan.mount_id, now_ns)
        known = state.complete or state.files or state.directories or directory in self._interrupted
        flight.is_first = not known
        self.claims.start(directory)
        task = asyncio.create_task(self._run(flight, plan, must_wait=must_wait), name=f"list-{directory}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return flight

    async def _run(self, flight: Flight, plan: ListingPlan, *, must_wait: bool) -> None:
        begun = self._clock.monotonic()
        try:
            # What the store has may take names that somebody has taken by himself. (Who causes this is not waited for.)
            await self._leases.take_back((flight.directory,), get_lease(), own=True)
            if must_wait:
                # What is being applied just now is older than what this listing will say.
                async with self._flat_turn:
                    with self._meta.read() as txn:
                        plan = namespace.begin_listing(txn, flight.directory, flight.started_ns)
            await self._list(flight, plan)
            self._mounts.note_success(plan.mount_id, flight.directory)
        except errors.AlluxioLikeError as error:
            flight.error = error
            if isinstance(error, errors.StoreError):
                self._mounts.note_failure(plan.mount_id, flight.directory, error)
                log.warning("listing failed", extra={"mount": plan.mount_id, "prefix": plan.prefix, "error": str(error)})
        except Exception:
            log.exception("listing failed", extra={"mount": plan.mount_id, "prefix": plan.prefix})
            flight.error = errors.Internal("listing a directory failed: see the master's log", subject=plan.prefix)
        except asyncio.CancelledError:
            flight.error = errors.Unavailable("the master is stopping")
            raise
        finally:
            flight.done = True
            flight.took_s = self._clock.monotonic() - begun
            self.claims.end(flight.directory)
            if flight.error is None:
                flight.directories = 1
                self._interrupted.discard(flight.directory)
            elif flight.pages:
                self._interrupted.add(flight.directory)
            if self._flights.get(flight.directory) is flight:
                del self._flights[flight.directory]
            flight.advance()

    async def _list(self, flight: Flight, plan: ListingPlan) -> None:
        ufs = self._mounts.get_ufs(plan.mount_id)
        listed = self._metrics.listed_entries.labels(self._mounts.get_record(plan.mount_id).path)
        token: str | None = None
        after: str | None = None
        ahead: asyncio.Task[ListPage] | None = None
        empty = 0
        try:
            while True:
                if ahead is None:
                    ahead = asyncio.create_task(self._ask(ufs, plan, token))
                try:
                    page = await ahead
                except errors.NotFound:
                    await self._apply(flight, lambda txn: namespace.apply_missing(txn, plan, self._clock.now_ns()))
                    return
                finally:
                    ahead = None
                token = page.token
                empty = 0 if page.entries else empty + 1
                if empty > MAX_EMPTY_PAGES:
                    raise errors.StoreProtocol("the store's listing has no end", subject=plan.prefix)
                if token is not None:
                    # The next page comes while this one is applied.
                    ahead = asyncio.create_task(self._ask(ufs, plan, token))
                after = await self._apply_page(flight, plan, after, await self._attributes.complete(plan, after, page))
                listed.inc(len(page.entries))
                flight.entries += len(page.entries)
                if token is None:
                    return
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    async def _apply_page(self, flight: Flight, plan: ListingPlan, after: str | None, page: ListPage) -> str | None:
        now_ns = self._clock.now_ns()
        is_last = page.token is None
        if not page.entries and not is_last:
            return after
        changes = await self._apply(flight, lambda txn: namespace.apply_page(txn, plan, after, page.entries, is_last, now_ns))
        if is_last:
            return None
        return changes.covered

    async def _apply(self, flight: Flight, apply: Callable[[WriteTransaction], Changes]) -> Changes:
        changes = await self._meta.write(apply)
        if not flight.is_first or changes.removed or changes.replaced or changes.touched:
            self._leases.tell(leases.list_recalls(changes))
        flight.pages += 1
        flight.covered = changes.covered
        flight.added += len(changes.added)
        flight.removed += len(changes.removed)
        flight.replaced += len(changes.replaced)
        flight.advance()
        return changes

    async def apply_flat(
        self, run: Run, mount_id: MountId, base_prefix: str, targets: Mapping[str, Target], parts: Sequence[Part], asked: Asked,
        *, since_ns: int,
    ) -> Applied:  # fmt: skip
        """Apply a page of a flat listing; see flat.apply_parts. Goes on to its end when the caller is cancelled."""

        async def apply() -> Applied:
            async with self._flat_turn:
                # (One that a client fills by itself is taken back when it is listed by itself.)
                busy, now_ns = run.taken.union(self._leases.list_delegated()), self._clock.now_ns()
                applied = await self._meta.write(
                    lambda txn: flat.apply_parts(
                        txn, mount_id, base_prefix, targets, parts, asked, busy=busy, since_ns=since_ns, now_ns=now_ns
                    )
                )
                for part, target, changes in applied.changes:
                    self._note_part(run, part, target, changes)
                return applied

        return await run_to_end(apply())

    def _note_part(self, run: Run, part: Part, target: Target, changes: Changes) -> None:
        directory = changes.directory
        is_quiet = target.is_new and directory not in self._interrupted
        if not is_quiet or changes.removed or changes.replaced or changes.touched:
            self._leases.tell(leases.list_recalls(changes))
        if part.is_last:
            self._interrupted.discard(directory)
            self.claims.leave(run, directory)
        else:
            self.claims.enter(run, directory)
            if run.ended:
                # It was given up while this was applied.
                self._interrupted.add(directory)

    def end_flat(self, run: Run) -> None:
        """A flat listing has ended, or was given up: what it did not finish is as interrupted as any listing."""
        self._interrupted.update(run.open)
        self.claims.end_run(run)

    async def _ask(self, ufs: Ufs, plan: ListingPlan, token: str | None) -> ListPage:
        most = self.page_entries
        if self._mounts.wants_stored_attributes(plan.mount_id):
            most = min(most, stored_attributes.PAGE_ENTRIES)
        return await self.asker.ask(plan.mount_id, ufs, lambda: ufs.list_page(plan.prefix, token, max_entries=most))

    async def close(self) -> None:
        """End all listings; what they applied stays, as incomplete."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def split_path(path: str) -> list[str]:
    """The components of an absolute path. Raises InvalidArgument for others."""
    if not path.startswith("/"):
        raise errors.InvalidArgument("a path is absolute in the namespace, such as /data/train", subject=path)
    return [part for part in path.split("/") if part]


def _get_raw_name(entry: Entry | None, name: str) -> str | None:
    """The store's own name of what is displayed under `name`; None where only an index of what is known could tell."""
    if entry is not None and entry.ref is not None:
        return entry.ref.key.rpartition("/")[2]
    raw = paths.read_name(to_bytes(name)).raw
    return to_str(raw) if raw is not None else None


def _count_settled(flight: Flight, page: EntryPage) -> int:
    """How many of a page's entries, from its start, the listing has settled."""
    for count, entry in enumerate(page.entries):
        name = entry.ref.key[len(page.dir_key) :] if entry.ref is not None else entry.name
        if not flight.settles(name):
            return count
    return len(page.entries)
