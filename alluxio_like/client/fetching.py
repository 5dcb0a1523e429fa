"""Where a range's bytes come from: a local worker's fill, or any worker's stream.

Owns the order in which workers are asked and what a failure of one means: another is asked, from where the first one
stopped, until the time is over; what the store said (Stale, StoreDenied, ...) is final. Rule of concurrency: one event loop;
each flight is one task.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final, Protocol, TypeVar

from alluxio_like.client.buffers import Buffers
from alluxio_like.client.cluster import ClusterTracker, require_workers
from alluxio_like.client.flight import Flight
from alluxio_like.client.local import LocalCaches
from alluxio_like.errors import (
    AlluxioLikeError,
    Cancelled,
    Corrupt,
    DiskError,
    Internal,
    NoSpace,
    NotFound,
    TimedOut,
    Unavailable,
    Unsupported,
    get_disposition,
)
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.data_pool import BegunRead, DataPool
from alluxio_like.rpc.messages import Filled
from alluxio_like.types import BLOCK_BYTES, Cluster, FileRef, Worker
from alluxio_like.waits import Waits

_log = logging.getLogger(__name__)

T = TypeVar("T")

_DONE: Final = AlluxioLikeError("done")
"""What stands for "no failure"."""

_TRIM_S = 5.0
"""How often memory that no piece needs now goes back to the system. A guess."""

OTHER_WORKER_MAY = (Unavailable, TimedOut, Cancelled, DiskError, Corrupt, NoSpace, Internal, Unsupported, NotFound)
"""Failures of one worker that say nothing about another."""


class FillTarget(Protocol):
    """Who wants to know what a fill brought."""

    ref: FileRef

    def learn(self, worker: Worker, filled: Filled) -> bool:
        """Take note of pages in a worker's cache file; False: that file cannot be read from here."""
        ...

    def has_local(self, offset: int, stop: int) -> bool:
        """Whether these bytes are in the cache file that is open."""
        ...


OnEnd = Callable[[memoryview | None], None]
"""Called on the loop, once: with all that was asked for, verified, or with None when it did not come (that it was cancelled is
one reason)."""


class _Coming:
    """Bytes on their way from another machine, for which no task waits."""

    __slots__ = ("_fetcher", "_landed", "_on_end", "_worker", "buffer")

    def __init__(self, fetcher: "Fetcher", worker: Worker, size: int, on_end: OnEnd) -> None:
        self._fetcher = fetcher
        self._worker = worker
        self._on_end: OnEnd | None = on_end
        self._landed = 0
        self.buffer = memoryview(bytearray(size))

    def on_frame(self, _start: int, length: int, _sums: object) -> None:
        self._landed += length
        if self._landed == len(self.buffer):
            # At once: whoever waits is not to wait for one more turn of the loop.
            self._end(self.buffer)

    def on_done(self, done: "asyncio.Future[None]") -> None:
        error = done.exception()
        self._fetcher.note_came(self._worker, len(self.buffer), error)
        self._end(None)

    def _end(self, data: memoryview | None) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(data)


class Fetcher:
    """Runs flights."""

    def __init__(
        self, cluster: ClusterTracker, local: LocalCaches, *, io_timeout_s: float, metrics: Metrics | None = None
    ) -> None:
        self._cluster = cluster
        self._local = local
        self._io_timeout_s = io_timeout_s
        self._streamed = None if metrics is None else metrics.read_bytes.labels("peer")
        # So that a worker that is stopped, or cut off, leaves time to ask others.
        self._silence_s = io_timeout_s / 3
        self._buffers = Buffers()
        self._trim: asyncio.TimerHandle | None = None

    async def run(self, target: FillTarget, flight: Flight, *, fill: bool) -> None:
        """Bring a flight's bytes, within io_timeout_s. Ends the flight; raises nothing but cancellation."""
        deadline = time.monotonic() + self._io_timeout_s
        try:
            async with asyncio.timeout(self._io_timeout_s):
                if not (fill and await self._fill(target, flight, deadline)):
                    await self._stream(target.ref, flight, deadline)
        except TimeoutError:
            flight.error = TimedOut(f"not read within {self._io_timeout_s:g} s", subject=target.ref.key)
        except AlluxioLikeError as error:
            flight.error = error.with_traceback(None)
        except asyncio.CancelledError as error:
            # The task keeps it and the flight the task, as it keeps an error. The frames that it came through know gRPC's call,
            # and asyncio's timeout in them knows the task: such a cycle would hold a connection until garbage is collected.
            raise error.with_traceback(None) from None
        except Exception as error:  # noqa: BLE001 (a waiter must never be left behind; it is logged)
            _log.exception("a read failed in a way nobody foresaw")
            flight.error = Internal(f"{type(error).__name__} while reading", subject=target.ref.key)
        finally:
            flight.done = True
            flight.note_progress()

    async def fill(self, target: FillTarget, flight: Flight) -> bool:
        """Have a local worker bring a range into its cache, in io_timeout_s or until cancelled; whether it is there now."""
        return await self._fill(target, flight, time.monotonic() + self._io_timeout_s)

    async def read_few(self, ref: FileRef, offset: int, stop: int, told: Waits) -> memoryview | None:
        """A few bytes of a content whose home is no worker of this machine, from that worker alone; nobody keeps them.

        One message there and one back. None: it is to be read the long way, which also finds out what is wrong. Raises what the
        store said (Stale, StoreDenied, ...).
        """
        view, pool = self._cluster.view, self._cluster.pool
        if view is None or pool is None:
            return None
        if not self._local.is_current:
            await self._local.refresh(view)
        worker = self._cluster.lookup_home(view, ref, offset)
        if worker is None or self._local.is_local(worker) or not pool.can_read(worker):
            return None
        buffer = memoryview(bytearray(stop - offset))
        try:
            await pool.read(view, worker, ref, offset, buffer, waits=told)
        except OTHER_WORKER_MAY as error:
            self._note(worker, error)
            return None
        self._cluster.note_success(worker)
        if self._streamed is not None:
            self._streamed.inc(len(buffer))
        return buffer

    def begin(self, ref: FileRef, offset: int, stop: int, told: Waits, on_end: OnEnd) -> BegunRead | None:
        """Ask the home of a content, if that is no worker of this machine, for a range of at most a page: one message there and
        one back, no task, nothing waited for. None: it is to be had another way. `told` gets what the worker says was waited for.
        """
        view, pool = self._cluster.view, self._cluster.pool
        if view is None or pool is None or not self._local.is_current:
            return None
        worker = self._cluster.lookup_home(view, ref, offset)
        if worker is None or self._local.is_local(worker):
            return None
        coming = _Coming(self, worker, stop - offset, on_end)
        again = stop - offset < ref.size
        begun = pool.try_begin(view, worker, ref, offset, coming.buffer, on_frame=coming.on_frame, waits=told, again=again)
        if begun is not None:
            begun.done.add_done_callback(coming.on_done)
        return begun

    def note_came(self, worker: Worker, size: int, error: BaseException | None) -> None:
        """How a read that `begin` began has ended."""
        if error is None:
            self._cluster.note_success(worker)
            if self._streamed is not None:
                self._streamed.inc(size)
        elif isinstance(error, OTHER_WORKER_MAY) and not isinstance(error, Cancelled):
            self._note(worker, error)

    async def _fill(self, target: FillTarget, flight: Flight, deadline: float) -> bool:
        """Have a local worker bring the range into its cache. False: read it as a stream."""
        view = await self._cluster.get_view()
        await self._local.refresh(view)
        for worker in self._cluster.rank(view, target.ref, flight.start):
            if not self._local.is_local(worker):
                continue
            try:
                return await self._fill_from(view, worker, target, flight)
            except OTHER_WORKER_MAY as error:
                self._note(worker, error)
            if time.monotonic() >= deadline:
                break
        return False

    async def _fill_from(self, view: Cluster, worker: Worker, target: FillTarget, flight: Flight) -> bool:
        """By the worker's data socket, which costs less than a gRPC stream, or by gRPC where there is none."""
        pool = self._cluster.pool
        if pool is not None and pool.can_read(worker):
            kept = True

            def on_filled(filled: Filled) -> bool:
                nonlocal kept
                flight.told.add_all(filled.waited)
                flight.read_through = filled.read_through
                kept = not filled.read_through and target.learn(worker, filled)
                if kept:
                    flight.note_progress()
                return kept

            length = flight.stop - flight.start
            try:
                await pool.fill(view, worker, target.ref, flight.start, length, priority=flight.priority, on_filled=on_filled)
            except Unsupported as error:
                _log.info("worker %s is asked by gRPC: %s", worker.address, error)
            else:
                self._cluster.note_success(worker)
                return kept and target.has_local(flight.start, flight.stop)
        return await self._fill_by_stream(worker, target, flight)

    async def _fill_by_stream(self, worker: Worker, target: FillTarget, flight: Flight) -> bool:
        stub = self._cluster.get_stub(worker)
        length = flight.stop - flight.start
        stream = stub.fill(target.ref, flight.start, length, priority=flight.priority, timeout_s=self._io_timeout_s)
        async with aclosing(stream):
            while True:
                filled = await self._next(stream, worker)
                if filled is None:
                    break
                flight.told.add_all(filled.waited)
                flight.read_through = filled.read_through
                if filled.read_through or not target.learn(worker, filled):
                    return False
                flight.note_progress()
        self._cluster.note_success(worker)
        return target.has_local(flight.start, flight.stop)

    async def _stream(self, ref: FileRef, flight: Flight, deadline: float) -> None:
        """Read the range into memory, from the best worker that answers, block by block."""
        if flight.buffer is None:
            flight.buffer = self._buffers.take(flight.stop - flight.start)
            if self._trim is None and self._buffers.count:
                self._trim = asyncio.get_running_loop().call_later(_TRIM_S, self._trim_buffers)
        pause_s, newer = 0.05, False
        while flight.start + flight.landed < flight.stop:
            failure: AlluxioLikeError
            try:
                view = await self._cluster.get_view(newer=newer)
                failure = await self._stream_block(view, ref, flight)
            except (Unavailable, TimedOut) as error:
                # No master and no view of old, or no worker at all.
                failure = error
            if failure is _DONE:
                pause_s, newer = 0.05, False
                continue
            if not (get_disposition(failure).retryable or isinstance(failure, (TimedOut, Cancelled))):
                raise failure
            left = deadline - time.monotonic()
            pause_s = min(1.0, pause_s * 2)
            pause = pause_s * random.uniform(0.5, 1.0)
            if left <= pause:
                raise failure
            await asyncio.sleep(pause)
            newer = True

    def _trim_buffers(self) -> None:
        self._buffers.trim()
        self._trim = None
        if self._buffers.count:
            self._trim = asyncio.get_running_loop().call_later(_TRIM_S, self._trim_buffers)

    async def _stream_block(self, view: Cluster, ref: FileRef, flight: Flight) -> AlluxioLikeError:
        """Read on to the end of the block (or of the flight). _DONE, or why the last of all workers failed."""
        position = flight.start + flight.landed
        stop = min(flight.stop, position - position % BLOCK_BYTES + BLOCK_BYTES)
        failure: AlluxioLikeError = _DONE
        for worker in require_workers(self._cluster.rank(view, ref, position)):
            try:
                await self._read_from(view, worker, ref, flight, stop)
            except OTHER_WORKER_MAY as error:
                self._note(worker, error)
                flight.stumbled = True
                failure = error
                continue
            self._cluster.note_success(worker)
            return _DONE
        return failure

    async def _read_from(self, view: Cluster, worker: Worker, ref: FileRef, flight: Flight, stop: int) -> None:
        """By the worker's data socket, or by gRPC where there is none."""
        pool = self._cluster.pool
        if pool is not None and pool.can_read(worker):
            try:
                await self._receive_from(pool, view, worker, ref, flight, stop)
                return
            except Unsupported as error:
                _log.info("worker %s is read by gRPC: %s", worker.address, error)
        await self._stream_from(worker, ref, flight, stop)

    async def _receive_from(self, pool: DataPool, view: Cluster, worker: Worker, ref: FileRef, flight: Flight, stop: int) -> None:
        position, buffer = flight.start + flight.landed, flight.buffer
        if position >= stop or buffer is None:
            return
        target = buffer[flight.landed : stop - flight.start]

        def on_frame(start: int, length: int, _: object) -> None:
            flight.landed = position - flight.start + start + length
            if self._streamed is not None:
                self._streamed.inc(length)
            flight.note_progress()

        told_s = flight.told.total_s
        await pool.read(view, worker, ref, position, target, priority=flight.priority, on_frame=on_frame, waits=flight.told)
        flight.at_hand = flight.told.total_s == told_s

    async def _stream_from(self, worker: Worker, ref: FileRef, flight: Flight, stop: int) -> None:
        position, buffer = flight.start + flight.landed, flight.buffer
        if position >= stop or buffer is None:
            return
        stub = self._cluster.get_stub(worker)
        stream = stub.read(
            ref, position, stop - position, priority=flight.priority, waits=flight.told, timeout_s=self._io_timeout_s
        )
        async with aclosing(stream):
            while True:
                piece = await self._next(stream, worker)
                if piece is None:
                    return
                buffer[flight.landed : flight.landed + len(piece)] = piece
                flight.landed += len(piece)
                if self._streamed is not None:
                    self._streamed.inc(len(piece))
                flight.note_progress()

    async def _next(self, stream: AsyncIterator[T], worker: Worker) -> T | None:
        """The stream's next item, None at its end. Raises TimedOut when the worker is silent for too long."""
        try:
            async with asyncio.timeout(self._silence_s) as silence:
                return await anext(stream, None)
        except TimeoutError:
            if not silence.expired():
                raise
            raise TimedOut(f"the worker at {worker.address} said nothing for {self._silence_s:g} s") from None

    def _note(self, worker: Worker, error: AlluxioLikeError) -> None:
        _log.info("worker %s did not answer a read: %s", worker.address, error)
        self._cluster.note_failure(worker)
