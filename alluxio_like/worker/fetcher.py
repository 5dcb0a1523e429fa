"""Brings pages to whoever wants them, fetching each missing page once, whoever wants it.

Owns the flights and the plan (which pages are present, in flight, or to be fetched), what is fetched together, and a little
memory of
pages that nothing could keep. Does not fetch itself (pilot), decide what is kept (cluster view, admission, evictor) or speak
gRPC. Rule of concurrency: one event loop; a plan is made without an await between looking and registering its flights.
"""

import asyncio
import functools
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile, Role
from alluxio_like.cache.store import CacheStore
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import PAGE_BYTES, PAGES_PER_BLOCK, FileId, FileRef, JobId, PageRange, get_page_count
from alluxio_like.waits import Waits, subtract
from alluxio_like.worker.cluster import ClusterView
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.flight import Flight, State
from alluxio_like.worker.pilot import Pilot, describe_wait
from alluxio_like.worker.turns import Turns

_THROUGH_PAGES = 4
"""Pages of one fetch whose bytes stay in memory only: with the demand slots it bounds the memory for reading through."""
_MEMORY_BYTES = 32 << 20
"""Pages that nothing could keep, remembered for those who come right after. A guess."""
_ABANDONED_S = 10.0
"""How long a fetch under way that nobody waits for any more may go on filling the cache."""
_TRIES = 4
"""How often a page that vanished between its arrival and its reading (evicted, or found corrupt) is fetched again."""

_VANISHED = (errors.NoData, errors.NotFound, errors.DiskError)
"""What a cache file answers that was evicted, or whose disk failed."""

PeerChoice = tuple[tuple[str, bool], ...]
Piece = tuple[int, int, "Flight | None"]
_PageKey = tuple[FileId, str, int]


@dataclass(frozen=True, slots=True)
class Landed:
    """Pages that are in the cache file; `cached` None: they cannot be kept, read them through."""

    pages: PageRange
    cached: CachedFile | None


@dataclass(frozen=True, slots=True)
class Brought:
    """What a fetch for a load did: bytes that came and bytes that were there, requests to the store."""

    fetched_bytes: int
    present_bytes: int
    requests: int


class Fetcher:
    """One per worker. `max_request_bytes` is the largest range asked of a store at once."""

    def __init__(
        self,
        *,
        store: CacheStore,
        pilot: Pilot,
        turns: Turns,
        view: ClusterView,
        reads: DiskQueue,
        metrics: Metrics,
        io_timeout_s: float,
        max_request_bytes: int,
    ) -> None:
        self._store = store
        self._pilot = pilot
        self._turns = turns
        self._view = view
        self._reads = reads
        self._metrics = metrics
        # Answers before the caller's own deadline, which is io_timeout_s, so that the caller learns what was wrong.
        self._wait_s = io_timeout_s * 0.9
        self._max_pages = max(1, max_request_bytes // PAGE_BYTES)
        self._flights: dict[FileId, dict[int, Flight]] = {}
        self._memory: OrderedDict[_PageKey, memoryview] = OrderedDict()
        self._memory_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # -- what services call ------------------------------------------------------------------------------------------------

    async def read(
        self,
        ref: FileRef,
        offset: int,
        length: int,
        *,
        priority: Priority,
        role: Role | None,
        peers: PeerChoice = (),
        waits: Waits | None = None,
    ) -> AsyncIterator[tuple[memoryview | bytes, str]]:
        """Exactly bytes [offset, offset + length), a piece per page, each with its source: local, peer or store.

        `waits` gets what was waited for.
        `role` None: what is missing is fetched but not kept. Raises Stale, Store*, TimedOut, DiskError.
        """
        step = (self._max_pages * 2 if role is not None else _THROUGH_PAGES) * PAGE_BYTES
        end = offset + length
        while offset < end:
            # Windows end on multiples of their size, so that readers of one file share what is read through.
            window_end = min(end, offset + step - offset % step)
            pages = _get_pages(offset, window_end)
            cached = await self.get_cached(ref, pages)
            with self._plan(ref, pages, priority, role, peers, None, cached) as plan:
                for first, stop, flight in plan:
                    for page in range(first, stop):
                        start = max(offset, page * PAGE_BYTES)
                        stop_byte = min(window_end, (page + 1) * PAGE_BYTES)
                        yield await self._read_page(ref, page, start, stop_byte, flight, priority, role, waits)
            offset = window_end

    async def read_cached(self, ref: FileRef, offset: int, length: int) -> AsyncIterator[bytes]:
        """The bytes of a range if all of its pages are here, verified, or in a draft that still holds just that version.

        Raises NotFound, also when pages vanish meanwhile; Stale (the draft is being changed).
        """
        pages = _get_pages(offset, offset + length)
        cached = await self.get_cached(ref, pages)
        end = offset + length
        if cached is None or cached.missing_pages(pages):
            draft = self._store.drafts.lookup(ref.inode)
            if draft is None or not self._store.drafts.may_hold(draft, ref):
                raise errors.NotFound("not cached here", subject=ref.key)
            while offset < end:
                stop = min(end, offset - offset % PAGE_BYTES + PAGE_BYTES)
                read = functools.partial(self._store.drafts.contents.read, draft, ref, offset, stop - offset)
                try:
                    piece = await self._reads.submit(read)
                except (errors.Stale, errors.DiskError):
                    # It has become a cache file just now, or a copy of it has.
                    cached = self._store.lookup_content(ref)
                    if cached is None or cached.missing_pages(pages):
                        raise
                    break
                yield piece
                offset = stop
            else:
                return
        assert cached is not None
        while offset < end:
            stop = min(end, offset - offset % PAGE_BYTES + PAGE_BYTES)
            try:
                yield await self._reads.submit(lambda a=offset, n=stop - offset: cached.read(a, n))  # type: ignore[misc]
            except (errors.Corrupt, errors.Unavailable, *_VANISHED) as error:
                raise errors.NotFound("no longer cached here", subject=ref.key) from error
            offset = stop

    async def fill(
        self,
        ref: FileRef,
        pages: PageRange,
        *,
        priority: Priority,
        role: Role,
        peers: PeerChoice = (),
        waits: Waits | None = None,
    ) -> AsyncIterator[Landed]:
        """Bring pages into the cache file; says which are there as they land. Ends after a `Landed` that cannot be kept.

        `waits` gets what was waited for.
        """
        cached = await self.get_cached(ref, pages)
        with self._plan(ref, pages, priority, role, peers, None, cached) as plan:
            for first, stop, flight in plan:
                if flight is None:
                    yield Landed(PageRange(first, stop), self._store.lookup_content(ref))
                    continue
                while first < stop:
                    try:
                        await self._wait(flight, first, waits)
                    except errors.NoSpace:
                        yield Landed(PageRange(first, stop), None)
                        return
                    except errors.Stale:
                        if not self._has(ref, PageRange(first, stop)):
                            raise
                        yield Landed(PageRange(first, stop), self._store.lookup_content(ref))
                        break
                    landed = min(flight.landed, stop)
                    kept = flight.cached or self._store.lookup_content(ref)
                    if kept is None or any(page in flight.held for page in range(first, landed)):
                        yield Landed(PageRange(first, stop), None)
                        return
                    yield Landed(PageRange(first, landed), kept)
                    first = landed  # noqa: PLW2901  (what is left of the piece)

    def begin(self, ref: FileRef, pages: PageRange, *, priority: Priority, role: Role, peers: PeerChoice = ()) -> None:
        """Start to fetch what is missing, for readers who are about to come and join."""
        with self._plan(ref, pages, priority, role, peers, None, self._store.lookup_content(ref)) as plan:
            # Not left at once: who has just begun to be fetched would be given up for want of readers.
            for _, _, flight in plan:
                if flight is not None:
                    flight.join()
                    asyncio.get_running_loop().call_later(_ABANDONED_S, flight.leave)

    async def bring(
        self, ref: FileRef, pages: PageRange, *, job: JobId, peers: PeerChoice = (), priority: Priority = Priority.LOAD
    ) -> Brought:
        """Bring pages into the cache, for which what `job` has not brought may go; without a bound on a load's wait for a turn.

        Raises what stopped it; NoSpace when they cannot be kept, Unavailable when they were, and were removed at once.
        """
        fetched = requests = 0
        kept = False
        for attempt in range(_TRIES):
            cached = await self.get_cached(ref, pages)
            present, kept = 0, True
            with self._plan(ref, pages, priority, Role.HOME, peers, job, cached) as plan:
                for first, stop, flight in plan:
                    size = min(stop * PAGE_BYTES, ref.size) - first * PAGE_BYTES
                    if flight is None:
                        present += size
                        continue
                    await flight.wait_landed(stop - 1)
                    if flight.refused:
                        raise errors.NoSpace("the cache has no room for it", subject=ref.key)
                    kept = kept and not flight.held
                    fetched += size
                    requests, flight.requests = requests + flight.requests, 0
            if kept and (not pages or self._has(ref, pages)):
                return Brought(fetched, present if attempt == 0 else 0, requests)
            # It shared the fetch of a reader that keeps nothing, or what landed was removed. Who joins that fetch again before it
            # has ended would find the same.
            if tasks := [flight.task for _, _, flight in plan if flight is not None and flight.task is not None]:
                await asyncio.wait(tasks)
        if kept:
            raise errors.Unavailable("it is removed from the cache again and again", subject=ref.key)
        raise errors.NoSpace("other readers' fetches keep passing it by", subject=ref.key)

    async def get_cached(self, ref: FileRef, pages: PageRange) -> CachedFile | None:
        """The cache file of this very content, if there is one; pages made suspect by a crash are verified first."""
        cached = self._store.lookup_content(ref)
        if cached is not None and cached.has_suspects(pages):
            try:
                await self._reads.submit(lambda: cached.verify_suspects(pages))
            except (errors.Unavailable, *_VANISHED):
                # It cannot be opened now, or is gone: what is not present after all is fetched.
                return self._store.lookup_content(ref)
        return cached

    def count_flights(self) -> int:
        """Fetches that wait or are under way."""
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel what is under way; waiters get Unavailable."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- planning ----------------------------------------------------------------------------------------------------------

    def _has(self, ref: FileRef, pages: PageRange) -> bool:
        """Whether pages are here, whatever became of their fetch: they may be removed again, or have been written here."""
        cached = self._store.lookup_content(ref)
        return cached is not None and not cached.missing_pages(pages)

    @contextmanager
    def _plan(
        self,
        ref: FileRef,
        pages: PageRange,
        priority: Priority,
        role: Role | None,
        peers: PeerChoice,
        job: JobId | None,
        cached: CachedFile | None,
    ) -> Iterator[list[Piece]]:
        """How each page is come by, in order: (first, stop, flight), flight None for pages that are here. Joined until left."""
        plan: list[Piece] = []
        position = pages.first
        # `cached` is what the caller looked up just now, without an await in between (get_cached awaits only for what it found).
        if cached is not None and cached.removed:
            cached = None
        missing = cached.missing_pages(pages) if cached is not None else [pages] if len(pages) else []
        for run in missing:
            if position < run.first:
                plan.append((position, run.first, None))
            position = run.first
            while position < run.stop:
                piece = self._join_or_start(ref, PageRange(position, run.stop), priority, role, peers, job, cached)
                plan.append(piece)
                position = piece[1]
        if position < pages.stop:
            plan.append((position, pages.stop, None))
        for _, _, flight in plan:
            if flight is not None:
                flight.join()
        try:
            yield plan
        finally:
            for _, _, flight in plan:
                if flight is not None:
                    flight.leave()

    def _join_or_start(
        self,
        ref: FileRef,
        pages: PageRange,
        priority: Priority,
        role: Role | None,
        peers: PeerChoice,
        job: JobId | None,
        cached: CachedFile | None,
    ) -> Piece:
        """A flight for the first of `pages`, and for as many after it as it covers."""
        flights = self._flights.get(ref.file_id, {})
        flight = flights.get(pages.first)
        if flight is not None and flight.ref.fingerprint == ref.fingerprint:
            if ref.frozen and not flight.ref.frozen:
                flight.ref = replace(flight.ref, frozen=True)
            if priority < flight.priority:
                flight.priority = priority
                if flight.turn is not None:
                    self._turns.raise_priority(flight.turn, priority)
            return pages.first, min(pages.stop, flight.stop), flight
        if job is None and _get_key(ref, pages.first) in self._memory:
            return pages.first, pages.first + 1, None
        stop = self._choose_stop(ref, pages, role, cached)
        limit = next((page for page in range(pages.first + 1, stop) if page in flights), stop)
        flight = Flight(ref, PageRange(pages.first, limit), priority, role, peers, job, self._turns.monotonic())
        flight.on_abandoned = self._abandon
        self._flights[ref.file_id] = flights
        for page in range(flight.first, flight.stop):
            flights[page] = flight
        flight.task = asyncio.create_task(self._fly(flight), name=f"fetch {ref.inode}/{flight.first}")
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        return flight.first, min(pages.stop, flight.stop), flight

    def _choose_stop(self, ref: FileRef, pages: PageRange, role: Role | None, cached: CachedFile | None) -> int:
        """Where a new flight ends.

        At most one request's worth, within a block where blocks have homes of their own. A reader at the start of a file that
        fits
        one request gets all of it (one GET for each such file); elsewhere somebody who waits gets exactly the pages asked for.
        """
        most = self._max_pages if role is not None else _THROUGH_PAGES
        stop = min(pages.stop, pages.first + most)
        count = get_page_count(ref.size)
        if pages.first == 0 and count <= most:
            whole = cached.missing_pages(PageRange(0, count)) if cached is not None else [PageRange(0, count)]
            stop = max(stop, whole[0].stop) if whole and whole[0].first == 0 else stop
        if self._view.is_block_placed(ref):
            stop = min(stop, pages.first - pages.first % PAGES_PER_BLOCK + PAGES_PER_BLOCK)
        return stop

    # -- flying and waiting ------------------------------------------------------------------------------------------------

    async def _fly(self, flight: Flight) -> None:
        started = self._turns.monotonic()
        error: errors.AlluxioLikeError | None = None
        try:
            await self._pilot.fly(flight)
        except errors.AlluxioLikeError as failure:
            error = failure
        except asyncio.CancelledError:
            error = errors.Unavailable("the worker stops") if self._closing else errors.Cancelled("nobody waits any more")
        except Exception as failure:  # noqa: BLE001 (a defect must not leave its waiters waiting)
            error = errors.Internal(f"{type(failure).__name__}: {failure}", subject=flight.ref.key)
        finally:
            self._retire(flight)
            flight.end(error)
            self._metrics.fetch_seconds.labels(flight.priority.name.lower()).observe(self._turns.monotonic() - started)

    def _retire(self, flight: Flight) -> None:
        """Take a flight off the map; from now on its pages are present, remembered, or fetched anew."""
        for page, held in flight.held.items():
            self._remember(_get_key(flight.ref, page), held)
        flights = self._flights.get(flight.ref.file_id)
        if flights is None:
            return
        for page in range(flight.first, flight.stop):
            if flights.get(page) is flight:
                del flights[page]
        if not flights:
            del self._flights[flight.ref.file_id]

    def _abandon(self, flight: Flight) -> None:
        """Nobody waits for it any more: stop it if it has not begun or keeps nothing, else let it fill the cache for a while."""
        task = flight.task
        if task is None or flight.landed >= flight.stop:
            return
        if flight.state is State.QUEUED or flight.role is None or flight.last_error is not None:
            # Off the map at once: who comes now starts another one instead of sharing its end.
            self._retire(flight)
            task.cancel()
            return
        asyncio.get_running_loop().call_later(_ABANDONED_S, self._cancel_abandoned, flight)

    def _cancel_abandoned(self, flight: Flight) -> None:
        if flight.users == 0 and flight.task is not None and flight.state is not State.ENDED:
            self._retire(flight)
            flight.task.cancel()

    async def _wait(self, flight: Flight, page: int, waits: Waits | None = None) -> None:
        """Wait for a page, within the time that a read may take; `waits` gets what the flight was busy with meanwhile."""
        if page < flight.landed:
            return
        before = flight.spent.read(self._turns.monotonic())
        try:
            async with asyncio.timeout(self._wait_s):
                await flight.wait_landed(page)
        except TimeoutError:
            raise describe_wait(flight, self._wait_s) from None
        finally:
            if waits is not None:
                waits.add_all(subtract(flight.spent.read(self._turns.monotonic()), before))

    async def _read_page(
        self,
        ref: FileRef,
        page: int,
        start: int,
        stop: int,
        flight: Flight | None,
        priority: Priority,
        role: Role | None,
        waits: Waits | None,
    ) -> tuple[memoryview | bytes, str]:
        """Bytes [start, stop) of one page, from wherever they are by now."""
        base = page * PAGE_BYTES
        source = "local"
        for _ in range(_TRIES):
            if flight is not None:
                try:
                    await self._wait(flight, page, waits)
                except errors.NoSpace:
                    # A load's fetch found no room; a reader needs none.
                    role = None
                    flight = await self._refetch(ref, page, priority, role)
                    continue
                except errors.Stale:
                    if not self._has(ref, PageRange(page, page + 1)):
                        raise
                    flight = None
                    continue
                source = flight.source
                held = flight.held.get(page)
                if held is not None:
                    return held[start - base : stop - base], source
            remembered = self._memory.get(_get_key(ref, page))
            if remembered is not None:
                return remembered[start - base : stop - base], source
            cached = (flight.cached if flight is not None else None) or self._store.lookup_content(ref)
            if cached is not None:
                try:
                    return await self._reads.submit(lambda file=cached: file.read(start, stop - start)), source  # type: ignore[misc]
                except errors.Corrupt:
                    self._metrics.corrupt_pages.inc()
                except _VANISHED:
                    pass  # fetch the page again
            flight = await self._refetch(ref, page, priority, role)
        raise errors.DiskError("the page vanished again and again after it was fetched", subject=ref.key)

    async def _refetch(self, ref: FileRef, page: int, priority: Priority, role: Role | None) -> Flight | None:
        """Fetch one page again and wait for it; None: it is present after all."""
        with self._plan(ref, PageRange(page, page + 1), priority, role, (), None, self._store.lookup_content(ref)) as plan:
            flight = plan[0][2]
            if flight is not None:
                await self._wait(flight, page)
            return flight

    def _remember(self, key: _PageKey, held: memoryview) -> None:
        old = self._memory.pop(key, None)
        self._memory_bytes += len(held) - (len(old) if old is not None else 0)
        self._memory[key] = held
        while self._memory_bytes > _MEMORY_BYTES:
            _, dropped = self._memory.popitem(last=False)
            self._memory_bytes -= len(dropped)


def _get_key(ref: FileRef, page: int) -> _PageKey:
    return ref.file_id, ref.fingerprint.token, page


def _get_pages(start: int, stop: int) -> PageRange:
    """The pages that bytes [start, stop) touch."""
    return PageRange(start // PAGE_BYTES, -(-stop // PAGE_BYTES))
