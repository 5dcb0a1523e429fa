"""Flies one flight: asks the sources one after the other, repeats what may succeed, puts pages where they belong.

Owns how a fetch is done: peers before the store (workers alone for what the store does not have), turns, stalls, retries, the
hand-over to the disk. Does not own which fetches there are. Rule of concurrency: `fly` runs as one task per flight on the event
loop; cache files are touched in the disk queue's threads.
"""

import asyncio
import functools
from array import array
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import tenacity

from alluxio_like import errors
from alluxio_like.cache.checksum import compute_checksums
from alluxio_like.cache.draft import Draft
from alluxio_like.cache.drafts import Drafts
from alluxio_like.cache.file import CachedFile
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.data_pool import BegunRead
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import PAGE_BYTES, FileRef
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.versions import VersionedUfs
from alluxio_like.waits import Cause, Waits
from alluxio_like.worker.buffers import Buffers
from alluxio_like.worker.cluster import ClusterView
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.evictor import Evictor
from alluxio_like.worker.flight import Assembler, Flight, State
from alluxio_like.worker.peers import Peers
from alluxio_like.worker.stores import Stores
from alluxio_like.worker.turns import Turns

_WRITES_AHEAD = 3
"""Runs of pages of one flight that may wait for the disk: bounds memory while the disk is slower than the source."""
_PEER_FLIGHTS = 8
_SMALL_PEER_FLIGHTS = 64
_SMALL_BYTES = 1 << 20
"""Fetches from other workers at once, of more and of at most so many bytes: together 128 MiB. Apart from the stores' slots, so
that two workers never wait for each other's. Guesses."""
_PAGES_AHEAD = 4
"""Pages of one flight asked of another worker at a time: enough that its connection is never idle."""
_PEER_BUFFERS = 32
"""Pages of all flights received and not yet written: bounds the memory while the disk is slower than the network."""
_SMALL_PAGE_BYTES = 16 << 10
"""A smaller page gets memory of its own size."""
_MAX_ATTEMPTS = 8
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 3.0
"""Pauses between attempts are random below a bound that doubles from the first to the longest. Guesses."""


@dataclass(slots=True, eq=False)
class _Write:
    """A run of pages on its way to the disk; `data` None: landed."""

    first: int
    count: int
    data: memoryview | None
    written: "asyncio.Future[CachedFile]"
    sums: Sequence[int] = ()
    """The checksums that the pages came with."""
    buffer: memoryview | None = None
    """What to give back when the pages are written."""
    bad: errors.AlluxioLikeError | None = None


@dataclass(slots=True, eq=False)
class _Page:
    """A page that was asked of another worker; `buffer` None: its memory is its own."""

    number: int
    data: memoryview
    buffer: memoryview | None
    sums: list[int]
    begun: BegunRead
    waits: Waits


def is_retryable(error: BaseException) -> bool:
    """Whether the same fetch may succeed when it is repeated."""
    return errors.get_disposition(error).retryable


class Pilot:
    """Runs flights; one per worker."""

    def __init__(
        self,
        *,
        stores: Stores,
        peers: Peers,
        view: ClusterView,
        evictor: Evictor,
        turns: Turns,
        disk: DiskQueue,
        drafts: Drafts,
        metrics: Metrics,
        io_timeout_s: float,
    ) -> None:
        self._stores = stores
        self._drafts = drafts
        self._peers = peers
        self._view = view
        self._evictor = evictor
        self._turns = turns
        self._disk = disk
        self._metrics = metrics
        self._peer_slots = asyncio.Semaphore(_PEER_FLIGHTS)
        self._small_peer_slots = asyncio.Semaphore(_SMALL_PEER_FLIGHTS)
        self._buffers = Buffers(_PEER_BUFFERS)
        # A request that delivers nothing for so long is given up, in time for two more tries.
        self._stall_s = io_timeout_s / 4
        self._budget_s = io_timeout_s * 0.8

    async def fly(self, flight: Flight) -> None:
        """Land every page of a flight. Raises what stopped it."""
        used, was_frozen = self._stores.lookup_ufs(flight.ref.mount_id), flight.ref.frozen
        try:
            if flight.peers and flight.ref.is_stored:
                await self._ask_peers(flight)
            if flight.landed < flight.stop:
                await self._ask_source(flight)
            return
        except errors.AlluxioLikeError as error:
            # A reader of a snapshot may have joined, to whom an older version of the object will do.
            is_wider = isinstance(error, errors.Stale) and flight.ref.frozen and not was_frozen
            if not (is_wider or is_retryable(error) or self._may_renew(flight, used, error)):
                raise
            flight.last_error = error
        await self._ask_again(flight)

    async def _ask_again(self, flight: Flight) -> None:
        """Repeat with growing random pauses while the error may pass."""
        retrying = tenacity.AsyncRetrying(
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
            stop=tenacity.stop_after_delay(self._budget_s) | tenacity.stop_after_attempt(_MAX_ATTEMPTS),
            retry=tenacity.retry_if_exception(is_retryable),
            reraise=True,
        )
        await asyncio.sleep(_FIRST_PAUSE_S * (0.5 + 0.5 * (flight.ref.inode % 64) / 64))
        async for attempt in retrying:
            with attempt:
                try:
                    await self._ask_source(flight)
                except errors.AlluxioLikeError as error:
                    flight.last_error = error
                    raise

    def _may_renew(self, flight: Flight, used: Ufs | None, error: errors.AlluxioLikeError) -> bool:
        """Refused credentials may have been replaced at the master since the store was opened."""
        return isinstance(error, errors.StoreDenied) and self._stores.renew(flight.ref.mount_id, used)

    async def _ask_source(self, flight: Flight) -> None:
        """What has a content for certain: the store, or the workers that hold what was written there."""
        if await self._land_own(flight):
            return
        if flight.ref.is_stored:
            await self._ask_store(flight)
        else:
            await self._ask_holders(flight)

    async def _ask_holders(self, flight: Flight) -> None:
        """Land what only some workers have. Raises Stale (none of them has it any more: it was written anew, or is stored by
        now), Unavailable (one that has it cannot be reached)."""
        ref = flight.ref
        workers = self._view.list_holders(ref)
        missing = set(ref.holders) - {worker.worker_id for worker in workers} - {self._view.worker_id}
        away: errors.AlluxioLikeError | None = None
        for worker in workers:
            flight.source = "peer"
            flight.state = State.RUNNING
            self._spend(flight, Cause.PEER)
            _, length = self._get_rest(flight)
            try:
                await self._ask_peer(flight, worker.address, cached_only=True)
                self._metrics.peer_bytes.inc(length)
                return
            except (errors.NotFound, errors.Stale):
                continue
            except errors.NoSpace:
                raise
            except errors.AlluxioLikeError as error:
                flight.last_error = away = error
        if away is not None or missing:
            why = "is not there" if away is None else str(away)
            raise errors.Unavailable(f"only a worker has it, which cannot be reached ({why}); start that again", subject=ref.key)
        raise errors.Stale("no worker has this version any more", subject=ref.key)

    async def _land_own(self, flight: Flight) -> bool:
        """Land what a draft here still holds: the store may have something newer at its key by now. Whether it did."""
        draft = self._drafts.lookup(flight.ref.inode)
        if draft is None or not self._drafts.may_hold(draft, flight.ref):
            return False
        try:
            await self._land_draft(flight, draft)
        except (errors.Stale, errors.DiskError):
            return False  # it is written anew, or has become a cache file just now
        return True

    async def _land_draft(self, flight: Flight, draft: Draft) -> None:
        """Land what this worker has in a draft that still holds the version. Raises Stale.

        In memory: the draft becomes the version's cache file when it is over. A load is to have that now, and gets a copy, which
        makes way then.
        """
        flight.source = "local"
        flight.state = State.RUNNING
        if flight.job is None:
            flight.role = None
        self._spend(flight, Cause.FILL)
        for page in range(flight.landed, flight.stop):
            start = page * PAGE_BYTES
            length = min(PAGE_BYTES, flight.ref.size - start)
            read = functools.partial(self._drafts.contents.read, draft, flight.ref, start, length)
            write = self._begin_put(flight, page, memoryview(await self._disk.submit(read)), ())
            if write is not None:
                await self._settle(flight, write)

    async def _ask_peers(self, flight: Flight) -> None:
        """Land what other workers have. Their failures are no failures of the flight: the store is still to be asked."""
        for address, cached_only in flight.peers:
            _, length = self._get_rest(flight)
            flight.source = "peer"
            self._spend(flight, Cause.QUEUE)
            try:
                async with self._small_peer_slots if length <= _SMALL_BYTES else self._peer_slots:
                    flight.state = State.RUNNING
                    self._spend(flight, Cause.PEER)
                    await self._ask_peer(flight, address, cached_only=cached_only)
                self._metrics.peer_bytes.inc(length)
                if cached_only:
                    self._view.note_probe(found=True)
                return
            except (errors.Stale, errors.NoSpace):
                raise
            except errors.AlluxioLikeError as error:
                flight.last_error = error
                if cached_only:
                    self._view.note_probe(found=False)
            if flight.landed >= flight.stop:
                return

    async def _ask_peer(self, flight: Flight, address: str, *, cached_only: bool) -> None:
        """Land the rest of a flight from one worker: by its data socket, or by gRPC where it has none."""
        if self._peers.has_data_socket(address):
            try:
                await self._receive_data(flight, address, cached_only=cached_only)
                return
            except errors.Unsupported as error:
                flight.last_error = error
        offset, length = self._get_rest(flight)
        chunks = self._peers.read(address, flight.ref, offset, length, priority=flight.priority, cached_only=cached_only)
        await self._receive(flight, chunks, believe=True)

    async def _receive_data(self, flight: Flight, address: str, *, cached_only: bool) -> None:
        """Land what a data socket brings: a few pages at a time are asked for, each into a buffer of its own."""
        offset, length = self._get_rest(flight)
        end = offset + length
        asked: deque[_Page] = deque()
        writes: deque[_Write] = deque()
        try:
            while offset < end or asked:
                if offset < end and len(asked) < _PAGES_AHEAD and (self._buffers.available or not asked):
                    asked.append(await self._ask_page(flight, address, offset, end, cached_only=cached_only))
                    offset += len(asked[-1].data)
                    continue
                page = asked[0]
                await page.begun.done
                asked.popleft()
                # What the other worker waited for is what is waited for here.
                flight.spent.share(page.waits.get(), self._turns.monotonic())
                if (write := self._begin_put(flight, page.number, page.data, page.sums, page.buffer)) is not None:
                    writes.append(write)
                while writes and writes[0].data is None:
                    await self._settle(flight, writes.popleft())
        except errors.Corrupt:
            for number in range(flight.landed, flight.stop):
                self._peers.report_bad(address, flight.ref, number)
            raise
        finally:
            for page in asked:
                page.begun.cancel()
                self._give_back(page.buffer)
            try:
                while writes:
                    await self._settle(flight, writes.popleft())
            except errors.Corrupt:
                for number in range(flight.landed, flight.stop):
                    self._peers.report_bad(address, flight.ref, number)
                raise

    async def _ask_page(self, flight: Flight, address: str, offset: int, end: int, *, cached_only: bool) -> "_Page":
        size = min(PAGE_BYTES, end - offset)
        buffer = await self._buffers.take() if size > _SMALL_PAGE_BYTES else None
        data = memoryview(bytearray(size)) if buffer is None else buffer[:size]
        sums: list[int] = []
        waits = Waits()

        def on_frame(_start: int, _length: int, of_frame: "array[int] | None") -> None:
            if of_frame is not None:
                sums.extend(of_frame)

        try:
            begun = await self._peers.begin(
                address,
                flight.ref,
                offset,
                data,
                priority=flight.priority,
                cached_only=cached_only,
                on_frame=on_frame,
                ahead=end - offset,
                waits=waits,
            )
        except BaseException:
            self._give_back(buffer)
            raise
        return _Page(offset // PAGE_BYTES, data, buffer, sums, begun, waits)

    def _give_back(self, buffer: memoryview | None) -> None:
        if buffer is not None:
            self._buffers.give_back(buffer)

    async def _ask_store(self, flight: Flight) -> None:
        """One request to the store for what has not landed yet."""
        ufs = self._stores.lookup_ufs(flight.ref.mount_id) or await self._stores.get_ufs(flight.ref.mount_id)
        turn = flight.turn = self._turns.make_turn(flight.priority, ufs.bucket)
        self._spend(flight, Cause.QUEUE)
        await self._turns.take(turn)
        self._spend(flight, Cause.STORE)
        label = self._stores.get_label(flight.ref.mount_id)
        started = self._turns.monotonic()
        try:
            flight.state = State.RUNNING
            flight.source = "store"
            flight.requests += 1
            offset, length = self._get_rest(flight)
            await self._receive(flight, _read(ufs, flight.ref, offset, length), ufs.checks_first)
            self._metrics.store_bytes.labels(label).inc(length)
        except errors.StoreError as error:
            self._metrics.store_errors.labels("GET", label, error.code).inc()
            if isinstance(error, errors.StoreThrottled):
                self._note_throttle(ufs)
                self._spend(flight, Cause.QUEUE)
            raise
        finally:
            self._turns.give_back(turn)
            flight.turn = None
            self._metrics.store_latency.labels("GET").observe(self._turns.monotonic() - started)

    def _spend(self, flight: Flight, cause: Cause) -> None:
        flight.spent.enter(cause, self._turns.monotonic())

    def _note_throttle(self, ufs: Ufs) -> None:
        self._turns.note_throttle(ufs.bucket)
        self._metrics.store_throttles.labels(ufs.bucket).inc()

    def _get_rest(self, flight: Flight) -> tuple[int, int]:
        """Offset and length of what has not landed."""
        offset = flight.landed * PAGE_BYTES
        return offset, min(flight.stop * PAGE_BYTES, flight.ref.size) - offset

    async def _receive(self, flight: Flight, chunks: AsyncIterator[memoryview], believe: bool) -> None:
        """Land what a source sends. `believe` False: nothing lands before the source has ended well."""
        assembler = Assembler(flight.landed, flight.stop, flight.ref.size)
        writes: deque[_Write] = deque()
        unbelieved: list[tuple[int, memoryview]] = []
        loop = asyncio.get_running_loop()
        try:
            try:
                async with asyncio.timeout(self._stall_s) as guard:
                    async for chunk in chunks:
                        # The time that the disk takes is not the source's.
                        guard.reschedule(None)
                        for first, data in assembler.feed(chunk):
                            if believe:
                                await self._put(flight, first, data, writes)
                            else:
                                unbelieved.append((first, data))
                        guard.reschedule(loop.time() + self._stall_s)
            except TimeoutError:
                message = f"no byte came for {self._stall_s:.1f} s"
                raise errors.StoreUnavailable(message, subject=flight.ref.key) from None
            finally:
                if (close := getattr(chunks, "aclose", None)) is not None:
                    await close()
            assembler.finish()
            if flight.turn is not None:
                # The store has done its part: the next request may go while the disk works.
                self._turns.give_back(flight.turn)
            for first, data in unbelieved:
                await self._put(flight, first, data, writes)
        finally:
            while writes:
                await self._settle(flight, writes.popleft())

    async def _put(self, flight: Flight, first: int, data: memoryview, writes: deque[_Write]) -> None:
        """Land whole pages: in the cache file where one may be kept, else in memory."""
        while len(writes) >= _WRITES_AHEAD:
            await self._settle(flight, writes.popleft())
        if (write := self._begin_put(flight, first, data, ())) is not None:
            writes.append(write)

    def _begin_put(
        self, flight: Flight, first: int, data: memoryview, sums: Sequence[int], buffer: memoryview | None = None
    ) -> _Write | None:
        """As `_put`, without waiting; the write that is under way, if it is one. Takes care of `buffer`. Raises Corrupt."""
        count = -(-len(data) // PAGE_BYTES)
        if flight.role is None:
            if buffer is not None:
                self._buffers.drop()
            _check(flight, first, data, sums)
            self._hold(flight, first, data)
            flight.land(first, count)
            return None
        writing = self._disk.submit(lambda: self._write(flight, first, data, sums), alone=buffer is not None)
        write = _Write(first, count, data, writing, sums, buffer)
        # Landed by the callback, since this task may be waiting for the source's next bytes.
        write.written.add_done_callback(lambda _: self._land(flight, write))
        return write

    def _write(self, flight: Flight, first: int, data: memoryview, sums: Sequence[int]) -> CachedFile:
        """In a disk thread: make the cache file if need be, and write."""
        cached = flight.cached
        for _ in range(3):
            if cached is None or cached.removed:
                role = flight.role
                if role is None:
                    # Refused since this write was handed to the disk: the event loop has been told, so the other pages are held
                    # too.
                    raise errors.NoSpace("an earlier page of the same fetch found no room", subject=flight.ref.key)
                cached = flight.cached = self._evictor.create(flight.ref, role, job=flight.job)
            try:
                cached.write_pages(first, data, expected=sums)
                return cached
            except errors.NotFound:
                cached = None  # evicted or freed just now: once more into a new file
            except errors.NoSpace:
                # A load may turn out older homes; a reader only gets what is free.
                if flight.job is None or not self._evictor.make_room(cached, len(data), job=flight.job):
                    raise
        raise errors.NoSpace("the cache file was removed again and again", subject=flight.ref.key)

    def _land(self, flight: Flight, write: "_Write") -> None:
        """A write has ended: its pages have landed, in memory if the disk refused them. A second call does nothing."""
        if write.data is None:
            return
        data, write.data = write.data, None
        error = write.written.exception()
        if write.buffer is not None and not isinstance(error, errors.NoSpace | errors.DiskError):
            self._buffers.give_back(write.buffer)
        elif write.buffer is not None:
            # It may have to be held.
            self._buffers.drop()
        if error is None:
            if flight.job is not None:
                self._evictor.record_loaded(write.written.result(), flight.job)
        elif isinstance(error, errors.NoSpace | errors.DiskError):
            flight.last_error = error
            flight.refused = True
            if flight.priority is Priority.LOAD:
                return  # only loads want it, and they want it on the disk: `_settle` raises
            try:
                _check(flight, write.first, data, write.sums)
            except errors.Corrupt as corrupt:
                write.bad = corrupt
                return
            flight.role = None
            self._hold(flight, write.first, data)
        else:
            return
        flight.land(write.first, write.count)

    async def _settle(self, flight: Flight, write: "_Write") -> None:
        """Wait for a write. Raises its error unless the pages were held in memory. The write goes on when this is cancelled."""
        cause = flight.spent.cause
        self._spend(flight, Cause.FILL)
        try:
            await asyncio.shield(write.written)
        except (errors.NoSpace, errors.DiskError):
            self._land(flight, write)
            if write.bad is not None:
                raise write.bad from None
            if flight.role is not None:
                raise
        else:
            # A future that is done is awaited without its callbacks having run.
            self._land(flight, write)
        finally:
            self._spend(flight, cause)

    @staticmethod
    def _hold(flight: Flight, first: int, data: memoryview) -> None:
        for n in range(-(-len(data) // PAGE_BYTES)):
            flight.held[first + n] = data[n * PAGE_BYTES : (n + 1) * PAGE_BYTES]


def _read(ufs: Ufs, ref: FileRef, offset: int, length: int) -> AsyncIterator[memoryview]:
    """A content from the store; of a snapshot's, an older version of the object too."""
    if ref.frozen and isinstance(ufs, VersionedUfs):
        return ufs.read_kept(ref.key, ref.stored, offset, length)
    return ufs.read(ref.key, ref.stored, offset, length)


def _check(flight: Flight, first: int, data: memoryview, sums: Sequence[int]) -> None:
    """Compare pages with the checksums that they came with, if any. Raises Corrupt."""
    if sums and compute_checksums(data) != list(sums):
        raise errors.Corrupt(f"pages from {first} on are not what was sent", subject=flight.ref.key)


def describe_wait(flight: Flight, waited_s: float) -> errors.AlluxioLikeError:
    """What to tell somebody whose time is up: what went wrong so far, else that nothing came."""
    if flight.last_error is not None:
        error = flight.last_error
        return type(error)(error.message, subject=error.subject)
    return errors.TimedOut(f"not fetched within {waited_s:.0f} s", subject=flight.ref.key)
