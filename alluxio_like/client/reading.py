"""An open file.

Owns one reader's cache file, its flights and its pattern: what is at hand, what has to be fetched, what is fetched ahead.
Does not know where bytes come from (fetching.py). Rule of concurrency: one event loop; `try_read` neither awaits nor blocks;
several reads may be under way at once; a read that is cancelled takes with it what was fetched for it alone.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace

from alluxio_like.cache.reader import LocalFile
from alluxio_like.client.fetching import Fetcher, OnEnd
from alluxio_like.client.flight import Flight
from alluxio_like.client.local import LocalCaches
from alluxio_like.client.readahead import AT_HAND_WINDOW_BYTES, FEW_BYTES, NEVER, PIECE_BYTES, SMALL_FILE_BYTES, Budget, Pattern
from alluxio_like.errors import (
    AlluxioLikeError,
    Corrupt,
    DiskError,
    Internal,
    InvalidArgument,
    Stale,
    StoreError,
    StoreThrottled,
    TimedOut,
)
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.data_pool import BegunRead
from alluxio_like.rpc.messages import Filled, Priority
from alluxio_like.types import PAGE_BYTES, Entry, FileRef, SharedRange, Worker, WorkerId
from alluxio_like.waits import Cause, Seconds, SharedWaits, Waits, subtract

_log = logging.getLogger(__name__)

REPORT_READS = 1 << 14
"""Reads of an open file after which its worker is told of them; a guess."""
FEW_IN_ALL_BYTES = 1 << 20
"""After so much was read in that way a worker here is asked again whether it wants to keep the file, with the page that is being
read. A guess."""
FILL_BYTES = 64 << 20
"""How much of a file is asked for at once when all of it is to be filled: little is queued with the worker. A guess."""
SLICE_BYTES = 4 * PIECE_BYTES
"""A longer read is done in parts of this size, so that read-ahead and its budget apply to it."""


class Scratch:
    """Memory that reads which do not wait are answered from, one after the other: no allocation for each."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(1 << 20))

    def get(self, length: int) -> memoryview:
        """`length` bytes, the same ones each time."""
        if length > len(self._memory):
            self._memory = memoryview(bytearray(length))
        return self._memory[:length]


class FileReader:
    """One open file: one content, to the end."""

    def __init__(
        self,
        entry: Entry,
        ref: FileRef,
        *,
        fetcher: Fetcher,
        local: LocalCaches,
        budget: Budget,
        scratch: Scratch,
        readahead_max_bytes: int,
        io_timeout_s: float,
        metrics: Metrics | None,
        on_stale: Callable[[Entry, FileRef], Awaitable[FileRef | None]],
        on_close: Callable[["FileReader"], None],
    ) -> None:
        """`on_stale` is told of a content that was not where it should be, and says where the same content is by now (None: it is
        gone)."""
        self.entry = entry
        self.ref = ref
        self.size = ref.size
        self._fetcher = fetcher
        self._local = local
        self._budget = budget
        self._scratch = scratch
        self._io_timeout_s = io_timeout_s
        self._metrics = metrics
        self._on_stale = on_stale
        self._on_close = on_close
        self._pattern = Pattern(ref.size, readahead_max_bytes)
        self._readahead_max_bytes = readahead_max_bytes
        self._files: dict[WorkerId, LocalFile] = {}
        self._file: LocalFile | None = None
        """Of `_files` the one that answered last: blocks of a large file may be with several workers."""
        self._distrusted = False
        self._unkept = False
        """Whether a worker here said that it does not keep this file."""
        self._past = False
        """Whether a worker here was asked for a part of this large file and does not keep it."""
        self._stumbled = False
        """Whether a worker that this file was read from has failed."""
        self._begun: dict[BegunRead, None] = {}
        """Reads for which no task waits."""
        self._flights: list[Flight] = []
        self._read_bytes = 0
        self._reads = 0
        self._served_bytes = 0
        self._few_bytes = 0
        self._was_read = False
        """Whether anybody has had bytes of this content by this handle."""
        self._closed = False
        self._waits = SharedWaits()
        self._rest = Cause.OTHER
        """What the last read waited for, as far as workers have not said."""

    def get_waits(self) -> Seconds:
        """For how long, and for what, reads and fills of this file have waited, those still under way excepted."""
        return self._waits.get()

    # the whole of it

    def find_whole(self) -> LocalFile | None:
        """The cache file, open, if one worker on this machine has every page of the content (by its trusted index); else None.

        It belongs to this reader: done with it, or its descriptor duplicated, before the reader is closed. Quick; does not wait.
        """
        if self._closed or self._distrusted:
            return None
        for file in self._files.values():
            if file.is_complete:
                return file
        if not self._files:
            self._find(0)
            return next((file for file in self._files.values() if file.is_complete), None)
        return None

    async def fill_whole(self, priority: Priority) -> bool:
        """Have a worker on this machine bring the whole content into one cache file; whether it is there now.

        False when no worker here may keep it (reads of this reader then ask none to), when it does not come within io_timeout_s
        for each FILL_BYTES, and for anything else that a read would tell better, save Stale, which is raised.
        """
        try:
            for start in range(0, self.size, FILL_BYTES):
                if self.find_whole() is not None:
                    return True
                flight = Flight(start, min(start + FILL_BYTES, self.size), priority)
                if self.has_local(flight.start, flight.stop):
                    continue
                rest = Cause.OTHER
                self._waits.begin(time.monotonic())
                try:
                    async with asyncio.timeout(self._io_timeout_s):
                        kept = await self._fetcher.fill(self, flight)
                except AlluxioLikeError as error:
                    rest = _get_cause(error)
                    raise
                finally:
                    self._waits.end(time.monotonic(), flight.told.get(), rest)
                if not kept:
                    self._unkept = self._unkept or self.size <= SMALL_FILE_BYTES
                    return False
        except Stale as stale:
            if await self._find_again():
                return False
            raise Stale(stale.message, subject=stale.subject or self.ref.key) from None
        except (AlluxioLikeError, TimeoutError) as error:
            _log.info("a file was not filled: %s", error or "not in time", extra={"key": self.ref.key})
            return False
        return self.find_whole() is not None

    # what is at hand

    def try_read(self, offset: int, length: int) -> bytes | memoryview | None:
        """The bytes of the range (clipped at the end of the file) if they are at hand without waiting, else None.

        Never blocks on a disk or a peer and never switches tasks. None says nothing about the bytes: use `read`. The memory
        is used again by the next `try_read` of the same client: be done with it, or copy it, before that.
        """
        stop = offset + length
        stop = min(stop, self.size)
        if stop <= offset:
            return b"" if offset >= 0 else None
        if stop - offset > SLICE_BYTES:
            # Neither is the loop to be held up for so long, nor so much memory to be kept for ever.
            return None
        return self._try_read(offset, stop)

    def share(self, offset: int, length: int) -> SharedRange | None:
        """What another process needs to read a range within the file by itself; None: not all of it is in a cache file here.

        It may hand the range back, which is then to be read. Counts as a read for read-ahead.
        """
        file = self._file or (None if self._flights else self._find(offset))
        if file is None:
            return None
        shared = file.share(offset, length)
        if shared is not None and offset + length > self._pattern.trigger:
            self._pattern.hit(offset + length)
            self._read_ahead()
        return shared

    def note_shared(self, shared: SharedRange) -> None:
        """Another process has read what was shared, and verified it."""
        if isinstance(shared.source, LocalFile):
            shared.source.note_verified(shared)
        self._note_local_read(shared.length)

    def _note_local_read(self, count: int) -> None:
        self._was_read = True
        self._read_bytes += count
        self._reads += 1
        if self._reads >= REPORT_READS:
            self._report()

    def _try_read(self, offset: int, stop: int) -> memoryview | None:
        """Bytes [offset, stop), in scratch memory or in a flight's."""
        data: memoryview | None = None
        file = self._file
        if file is None and not self._flights:
            file = self._find(offset)
        if file is not None:
            data = self._scratch.get(stop - offset)
            if file.try_read_into(offset, data) or (len(self._files) > 1 and self._try_others(offset, data)):
                self._note_local_read(stop - offset)
            else:
                data = None
        if data is None and self._flights:
            data = self._take_landed(offset, stop)
        if data is not None and stop > self._pattern.trigger:
            self._pattern.hit(stop)
            self._read_ahead()
        return data

    def _try_others(self, offset: int, data: memoryview) -> bool:
        for file in self._files.values():
            if file is not self._file and file.try_read_into(offset, data):
                self._file = file
                return True
        return False

    def _find(self, offset: int) -> LocalFile | None:
        """The cache file that has most from `offset` on; opens those there are, if none is open. None: no such byte."""
        if not self._files and not self._closed and not self._distrusted:
            self._files = self._local.open_files(self.ref)
        best, most = None, 0
        for file in self._files.values():
            run = file.get_present_run(offset, PIECE_BYTES)
            if run > most:
                best, most = file, run
        self._file = best
        return best

    def _get_run(self, offset: int, length: int) -> int:
        """Bytes from `offset` on that one of the open cache files has."""
        return max((file.get_present_run(offset, length) for file in self._files.values()), default=0)

    def _take_landed(self, offset: int, stop: int) -> memoryview | None:
        for flight in self._flights:
            data = flight.get_slice(offset, stop)
            if data is not None:
                self._note_served(stop - offset)
                return data
        return None

    def _note_served(self, count: int) -> None:
        self._was_read = True
        # A small file that was read once from memory, in whatever order, need not stay there.
        self._served_bytes += count
        if self._served_bytes >= self.size and self.size <= SMALL_FILE_BYTES:
            for flight in [one for one in self._flights if one.done and not one.waiters]:
                self._drop(flight)

    # the long way

    async def read(self, offset: int, length: int, *, found_again: bool = False) -> bytes | memoryview:
        """Exactly the bytes of the range, clipped at the end of the file; within the client's io_timeout_s.

        Raises Stale when this content is gone from the store and not cached, TimedOut, Store*, Unavailable, AccessDenied.
        """
        if offset < 0 or length < 0:
            raise InvalidArgument(f"no range: offset {offset}, length {length}")
        data = self.try_read(offset, length)
        if data is not None:
            return bytes(data)
        stop = min(offset + length, self.size)
        if stop - offset > SLICE_BYTES:
            return await self._read_slices(offset, stop)
        told = Waits()
        cause = Cause.OTHER
        self._waits.begin(time.monotonic())
        try:
            async with asyncio.timeout(self._io_timeout_s):
                data = await self._read_slowly(offset, stop, told)
            cause = self._rest
            self._was_read = True
            return data
        except TimeoutError:
            cause = self._rest
            error: AlluxioLikeError = TimedOut(f"not read within {self._io_timeout_s:g} s", subject=self.ref.key)
        except Stale as stale:
            cause = Cause.STORE
            if not found_again and (await self._find_again() or self._may_read_on()):
                return await self.read(offset, length, found_again=True)
            error = Stale(stale.message, subject=stale.subject or self.ref.key)
        except AlluxioLikeError as other:
            cause = _get_cause(other)
            error = other
        finally:
            self._waits.end(time.monotonic(), told.get(), cause)
        if self._metrics is not None:
            self._metrics.read_failures.labels(error.code).inc()
        raise error

    async def _find_again(self) -> bool:
        """Whether the content is elsewhere by now: its file was renamed, or what only workers had has come to the store."""
        moved = await self._on_stale(self.entry, self.ref)
        if moved is not None:
            self.ref = moved
        return moved is not None

    def _may_read_on(self) -> bool:
        """Have older versions of the object asked for from now on, for who has read a part of this content already. Who has just
        opened it is to have ESTALE, and opens what is there now."""
        if self.ref.frozen or not self._was_read:
            return False
        self.ref = replace(self.ref, frozen=True)
        return True

    def begin_read(self, offset: int, length: int, on_end: OnEnd) -> Callable[[], None] | None:
        """Begin a read, of what `try_read` does not have, for which no task is needed, of a large file: of what is on its way to
        memory, or of a few bytes in no order that nobody here has.

        `on_end` is called later, once, with the bytes or with None: `read` is to be asked then, also for what was wrong. What is
        returned gives the read up: `on_end` is not called any more. None: `read` is to be asked at once.
        """
        stop = offset + length
        if self.size <= SMALL_FILE_BYTES or not 0 <= offset < stop <= self.size:
            return None
        for flight in self._flights:
            if flight.buffer is not None and not flight.done and flight.start <= offset and stop <= flight.stop:
                return self._begin_landing(flight, offset, stop, on_end)
        if length > FEW_BYTES or self._pattern.follows(offset, stop) or not self._is_nowhere(offset, stop):
            return None
        given_up = False
        told = Waits()

        def end(data: memoryview | None) -> None:
            del self._begun[begun]
            self._waits.end(time.monotonic(), told.get(), Cause.PEER)
            if data is not None:
                self._was_read = True
                self._few_bytes += length
            if not given_up:
                on_end(data)

        def give_up() -> None:
            nonlocal given_up
            given_up = True
            begun.cancel()

        coming = self._fetcher.begin(self.ref, offset, stop, told, end)
        if coming is None:
            return None
        begun = coming
        self._begun[begun] = None
        self._waits.begin(time.monotonic())
        self._pattern.miss(offset, stop)
        self._note_few(offset, stop)
        return give_up

    def _begin_landing(self, flight: Flight, offset: int, stop: int, on_end: OnEnd) -> Callable[[], None]:
        """Wait for a range of a flight: it is handed on in the step in which it lands, while the processor has it at hand."""
        said = flight.told.get()

        def stop_waiting() -> None:
            flight.waiters -= 1
            self._waits.end(time.monotonic(), subtract(flight.told.get(), said), Cause.PEER)

        def end() -> None:
            stop_waiting()
            data = flight.get_slice(offset, stop)
            if data is not None:
                self._note_served(stop - offset)
            on_end(data)

        def give_up() -> None:
            flight.unwatch(end)
            stop_waiting()
            self._drop_unwanted(flight)

        self._waits.begin(time.monotonic())
        flight.waiters += 1
        flight.watch(stop, end)
        self._pattern.miss(offset, stop)
        self._read_ahead()
        return give_up

    async def _read_slices(self, offset: int, stop: int) -> memoryview:
        # Each slice has the whole of io_timeout_s: a read of many gigabytes takes as long as it takes, while it goes on.
        whole = memoryview(bytearray(stop - offset))
        for start in range(offset, stop, SLICE_BYTES):
            part = await self.read(start, min(SLICE_BYTES, stop - start))
            whole[start - offset : start - offset + len(part)] = part
        return whole

    async def _read_slowly(self, offset: int, stop: int, told: Waits) -> bytes | memoryview:
        small = self.size <= SMALL_FILE_BYTES
        if not small:
            self._pattern.miss(offset, stop)
            if stop - offset <= FEW_BYTES and (few := await self._read_few(offset, stop, told)) is not None:
                return few
        first = True
        while True:
            if self._closed:
                raise Internal("read of a closed file", subject=self.ref.key)
            data = await self._take(offset, stop)
            if data is not None:
                self._drop_used()
                return data
            flights = self._ensure(0, self.size) if small else self._ensure(offset, stop)
            if first:
                first = False
                self._read_ahead()
            if flights:
                await self._wait(flights, offset, stop, told)
            else:
                # All is there by now; but should that not last, the clock must be able to end this.
                await asyncio.sleep(0.001)

    async def _read_few(self, offset: int, stop: int, told: Waits) -> memoryview | None:
        """A small read in no order, of what nobody here has: without filling a page for it. None: the long way."""
        if not self._is_nowhere(offset, stop):
            return None
        self._note_few(offset, stop)
        data = await self._fetcher.read_few(self.ref, offset, stop, told)
        if data is not None:
            self._few_bytes += len(data)
        return data

    def _is_nowhere(self, offset: int, stop: int) -> bool:
        """Whether nothing of a range is here or on its way, and reads are in no order."""
        if self._pattern.trigger != NEVER or self._closed or self._get_run(offset, 1):
            return False
        return not any(one.start < stop and offset < one.stop for one in self._flights)

    def _note_few(self, offset: int, stop: int) -> None:
        if self._few_bytes >= FEW_IN_ALL_BYTES:
            # Behind this read, which is answered as any other: to bring a page takes ten times as long.
            self._report_few()
            self._begin(offset, stop, Priority.DEMAND)

    def _report_few(self) -> None:
        """Let a worker here know what was read past it: it decides whether a copy is worth its space."""
        if self._few_bytes and not self._files:
            self._local.touch_any(self.ref.file_id, self._few_bytes)
        self._few_bytes = 0

    async def _take(self, offset: int, stop: int) -> bytes | memoryview | None:
        """The bytes, if all of them have landed somewhere: in memory, in the cache file, or part here and part there."""
        parts: list[bytes | memoryview] = []
        position = offset
        in_memory = 0
        while position < stop:
            part: bytes | memoryview | None = None
            for flight in self._flights:
                if flight.buffer is not None and flight.start <= position < flight.start + flight.landed:
                    part = flight.get_slice(position, min(stop, flight.start + flight.landed))
                    in_memory += 0 if part is None else len(part)
                    break
            if not part:
                part = await self._read_file(position, stop)
            if not part:
                return None
            parts.append(part)
            position += len(part)
        self._note_served(in_memory)
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    async def _read_file(self, offset: int, stop: int) -> bytes | memoryview | None:
        """As much of the range, from its start on, as the cache file has; None if that is nothing."""
        file = self._find(offset)
        if file is None:
            return None
        run = file.get_present_run(offset, stop - offset)
        try:
            # In a thread at once: try_read has just found that it takes waiting, or that pages have to be verified.
            data = await asyncio.to_thread(file.read, offset, run)
        except (Corrupt, DiskError) as error:
            # This handle reads through a worker from now on: through the file's own, which then looks for itself, or through
            # another one, which cannot. So the file's own is told.
            _log.warning("a cache file is not trusted any more: %s", error)
            pages = range(offset // PAGE_BYTES, -(-(offset + run) // PAGE_BYTES))
            self._local.note_bad(self.ref, file, pages)
            self._distrusted = True
            self._drop_files()
            return None
        self._read_bytes += len(data)
        self._reads += 1
        return data

    def _drop_used(self) -> None:
        """Flights that were begun for one read alone; those of a small file are a cache until it was read (_note_served)."""
        for flight in [one for one in self._flights if one.done and one.priority is Priority.DEMAND and not one.waiters]:
            if self.size > SMALL_FILE_BYTES or not flight.taken_bytes:
                self._drop(flight)

    # flights

    def _ensure(self, offset: int, stop: int) -> list[Flight]:
        """Flights under way that cover what is not at hand of the range; begins those that are missing."""
        needed: list[Flight] = []
        position = offset
        while position < stop:
            run = self._get_run(position, stop - position)
            if run:
                position += run
                continue
            flight = next((one for one in self._flights if one.start <= position < one.stop and one.error is None), None)
            if flight is None or (flight.done and flight.buffer is None):
                # None, or one that ended in a cache file that has lost its pages since.
                if flight is not None:
                    self._drop(flight)
                later = [one.start for one in self._flights if one.start > position and one.error is None]
                end = min([stop, position - position % PIECE_BYTES + PIECE_BYTES, *later])
                flight = self._begin(position, end, Priority.DEMAND, self._take_small(end - position))
            if not flight.done:
                needed.append(flight)
            position = flight.stop
        return needed

    def _take_small(self, size: int) -> int:
        """The budget for keeping a small file; without it the file is still read, and dropped at once."""
        fits = self.size <= SMALL_FILE_BYTES and self._budget.try_take(size, self, self._give_back)
        return size if fits else 0

    def _begin(self, start: int, stop: int, priority: Priority, taken_bytes: int = 0) -> Flight:
        if not self._flights:
            self._served_bytes = 0
        flight = Flight(start, stop, priority, taken_bytes)
        self._flights.append(flight)
        fill = not (self._distrusted or self._unkept or (priority is Priority.AHEAD and self._passes(start, stop)))
        flight.task = asyncio.create_task(self._fetcher.run(self, flight, fill=fill), name=f"fetch {start}-{stop}")
        flight.task.add_done_callback(lambda _: self._landed(flight))
        return flight

    def _passes(self, start: int, stop: int) -> bool:
        """Whether a range that is read in order goes past the workers here: they did not keep what was read before, and have
        nothing of the file. To have it written here meanwhile would take as long as reading it; they are told what is read, and
        the file is brought afterwards, if at all.
        """
        self._past = self._past or any(self._was_passed(one) for one in self._flights)
        if not self._past or self._stumbled or self._files or self._find(start) is not None:
            return False
        self._few_bytes += stop - start
        if self._few_bytes >= FILL_BYTES:
            self._report_few()
        return True

    def _was_passed(self, flight: Flight) -> bool:
        return flight.read_through and self.size > SMALL_FILE_BYTES

    def _landed(self, flight: Flight) -> None:
        if not flight.done:
            # Cancelled before its first step: nobody else tells those who wait.
            flight.done = True
            flight.note_progress()
        # What ended in a cache file takes no memory here; what was dropped before it ended gives back now.
        if flight.taken_bytes and (flight.buffer is None or flight not in self._flights):
            self._budget.release(flight.taken_bytes)
            flight.taken_bytes = 0
        self._past = self._past or self._was_passed(flight)
        # From then on a worker here is in between: it finds out by itself whom to ask, and remembers it for all its callers.
        self._stumbled = self._stumbled or flight.stumbled
        if flight.buffer is not None:
            # Where the worker that was asked had to wait for a store, many requests are to be under way there.
            self._pattern.limit(min(AT_HAND_WINDOW_BYTES if flight.at_hand else NEVER, self._readahead_max_bytes))
        alone = flight.priority is Priority.DEMAND and not flight.taken_bytes
        served = self.size <= SMALL_FILE_BYTES and self._served_bytes >= self.size
        if flight.waiters == 0 and (alone or served or flight.error is not None or flight.buffer is None):
            self._drop(flight)

    def _drop(self, flight: Flight) -> None:
        if flight in self._flights:
            self._flights.remove(flight)
        if flight.task is not None and not flight.task.done():
            flight.task.cancel()
        elif flight.taken_bytes:
            self._budget.release(flight.taken_bytes)
            flight.taken_bytes = 0

    async def _wait(self, flights: list[Flight], offset: int, stop: int, told: Waits) -> None:
        """Return when something new has landed in the range; raises what ended a flight that was begun for it.

        `told` gets what workers said meanwhile of how the time goes by.
        """
        for flight in flights:
            flight.waiters += 1
        said = [flight.told.get() for flight in flights]
        cancelled = False
        try:
            for flight in flights:
                if flight.stop <= offset or flight.start >= stop:
                    continue
                await flight.wait_progress()
                if flight.error is not None:
                    self._drop(flight)
                    if flight.priority is Priority.DEMAND:
                        raise flight.error
                return
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            self._rest = Cause.PEER if any(flight.buffer is not None for flight in flights) else Cause.OTHER
            for flight, before in zip(flights, said, strict=True):
                told.add_all(subtract(flight.told.get(), before))
                flight.waiters -= 1
                if cancelled:
                    self._drop_unwanted(flight)

    def _drop_unwanted(self, flight: Flight) -> None:
        """End what was begun for reads alone that have all been given up."""
        if not flight.waiters and flight.priority is Priority.DEMAND and not flight.done:
            self._drop(flight)

    def _read_ahead(self) -> None:
        """Begin what the pattern wants and the budget allows; drop what has been read."""
        low = self._pattern.low
        for flight in [one for one in self._flights if one.done and one.stop <= low and not one.waiters]:
            self._drop(flight)
        wanted = self._pattern.advance()
        if wanted is None or self._closed:
            return
        start, end = wanted
        while start < end:
            stop = min(end, start - start % PIECE_BYTES + PIECE_BYTES)
            run = self._get_run(start, stop - start)
            covered = next((one.stop for one in self._flights if one.start <= start < one.stop), 0)
            if run or covered:
                start = min(end, max(start + run, covered))
                continue
            if not self._budget.try_take(stop - start, self, self._give_back):
                self._pattern.take_back(start)
                return
            self._begin(start, stop, Priority.AHEAD, stop - start)
            start = stop

    def _give_back(self) -> None:
        """Another reader needs memory: what nobody here has asked for goes."""
        for flight in [one for one in self._flights if one.done and one.taken_bytes and not one.waiters]:
            self._drop(flight)

    # the cache file

    def learn(self, worker: Worker, filled: Filled) -> bool:
        """Take note of pages in a worker's cache file; False: that file cannot be read from here."""
        if self._closed or self._distrusted:
            return False
        file = self._files.get(worker.worker_id)
        if file is None or file.generation != filled.generation:
            opened = self._local.open_filled(worker, self.ref, filled.directory, filled.generation)
            if opened is None:
                return False
            # The one before is not closed but let go: a thread may be reading from it now; its descriptor goes with it.
            self._files[worker.worker_id] = file = opened
            self._file = None
        return all(file.add_present(filled.generation, one.pages, one.checksums) for one in filled.present)

    def has_local(self, offset: int, stop: int) -> bool:
        """Whether these bytes are in a cache file that is open."""
        return self._get_run(offset, stop - offset) >= stop - offset

    def _drop_files(self) -> None:
        """Not closed but let go: a thread may be reading now; a descriptor goes with the last reference to its file."""
        self._report()
        self._files = {}
        self._file = None

    def _report(self) -> None:
        if self._reads:
            for worker_id in self._files:
                self._local.touch(worker_id, self.ref.file_id, self._read_bytes, self._reads)
            if self._metrics is not None:
                self._metrics.read_bytes.labels("local").inc(self._read_bytes)
        self._read_bytes = self._reads = 0

    def note_handed(self) -> None:
        """All of it is going to be read by somebody who does not ask us again."""
        self._read_bytes += self.size
        self._reads += 1

    def begin_close(self) -> Coroutine[None, None, None] | None:
        """End read-ahead and reads under way, let go of descriptors, at once; what is to be awaited then, if anything."""
        if self._closed:
            return None
        self._closed = True
        self._on_close(self)
        self._report_few()
        tasks = [flight.task for flight in self._flights if flight.task is not None and not flight.task.done()]
        for begun in list(self._begun):
            begun.cancel()
        for flight in list(self._flights):
            self._drop(flight)
        self._budget.forget(self)
        self._drop_files()
        return _wait_ended(tasks) if tasks else None

    async def close(self) -> None:
        """As `begin_close`, and wait. Does not raise; may be called twice."""
        ending = self.begin_close()
        if ending is not None:
            await ending


def _get_cause(error: AlluxioLikeError) -> Cause:
    """What somebody waited for who got this error in the end."""
    if isinstance(error, StoreThrottled):
        return Cause.QUEUE
    return Cause.STORE if isinstance(error, StoreError) else Cause.OTHER


async def _wait_ended(tasks: "list[asyncio.Task[None]]") -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
