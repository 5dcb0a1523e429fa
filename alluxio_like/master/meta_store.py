"""The namespace's store as the event loop uses it.

Owns the one thread in which every write transaction runs, one after another, the one that waits for what is read ahead from the
disk, the one that reads all of it after a start, and the closing of the store. Does not own what is written or read: that is core
functions over a transaction. Rule of concurrency: reads are short and run where they are asked for; a write whose caller is
cancelled still happens or fails as a whole.
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from alluxio_like import errors
from alluxio_like.kv.api import Begun, KeyValueStore, ReadTransaction, WriteTransaction
from alluxio_like.master.core import snapshots

T = TypeVar("T")

log = logging.getLogger(__name__)

FLUSH_SOON_S = 0.05
"""What a power loss may undo of what nobody has asked to be durable. Local file systems take 5 s."""


async def run_to_end(work: Coroutine[object, object, T]) -> T:
    """Await something that must not stop half way when the caller is cancelled: it then goes on by itself."""
    return await asyncio.shield(asyncio.ensure_future(work))


class _Thread:
    """Runs functions one after the other. (An executor does more for each than most writes do themselves.) Event loop alone."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        """A future of what it returns or raises. Cancelling it does not stop the function."""
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, args=(loop,), name=self._name, daemon=True)
            self._thread.start()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put((function, future))
        return future

    async def end(self) -> None:
        """After what was submitted."""
        self._queue.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while (item := self._queue.get()) is not None:
            function, future = item
            result, error = None, None
            try:
                result = function()
            except BaseException as failure:  # noqa: BLE001 (handed to whoever waits)
                error = failure
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
                loop.call_soon_threadsafe(_settle, future, result, error)
            del item, function, future, result, error


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class MetaStore:
    """A KeyValueStore with a writer thread."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._writer = _Thread("meta-writer")
        self._closed = False
        # Not in the writer's thread: writes need not wait for the disk.
        self._flusher = _Thread("meta-flusher")
        self._reader = _Thread("meta-reader")
        self._warmer = _Thread("meta-warmer")
        self._is_flushing = False
        self._next_flush: asyncio.Future[None] | None = None
        """What those wait for, together, who have written while the store is flushed."""
        self._soon: asyncio.TimerHandle | None = None

    def read(self) -> AbstractContextManager[ReadTransaction]:
        """A snapshot for a short read; never hold one across an await."""
        return self._store.read()

    def read_ahead(self, keys: Sequence[bytes]) -> Begun:
        """Have the disk begin to read what holds these keys."""
        return self._store.read_ahead(keys)

    async def wait_aside(self, wait: Callable[[], T]) -> T:
        """What a function returns that may wait for the disk, called in the thread for that."""
        if self._closed:
            raise errors.Unavailable("the master is stopping")
        return await self._reader.submit(wait)

    async def read_through(self) -> None:
        """Have all of the store read from the disk once, in a thread of its own: nothing else waits for it."""
        await self._warmer.submit(lambda: self._store.read_through(lambda: not self._closed))

    async def write(self, apply: Callable[[WriteTransaction], T]) -> T:
        """What `apply` returns, once its transaction is committed; nothing is changed when it raises."""
        if self._closed:
            raise errors.Unavailable("the master is stopping")
        return await self._writer.submit(lambda: self.write_now(apply))

    def write_now(self, apply: Callable[[WriteTransaction], T]) -> T:
        """The same in the calling thread; for the start, when nothing else runs."""
        with self._store.write() as txn:
            return apply(snapshots.record(txn))

    async def flush(self) -> None:
        """Make what was written before survive a power loss too. Of calls at the same time all but the first share one."""
        await asyncio.shield(self._ask_for_flush())

    def _ask_for_flush(self) -> "asyncio.Future[None]":
        if self._next_flush is None:
            self._next_flush = asyncio.get_running_loop().create_future()
        asked = self._next_flush
        if not self._is_flushing:
            self._flush_next()
        return asked

    def _flush_next(self) -> None:
        # Whoever comes from here on may have written too late for this one.
        asked, self._next_flush = self._next_flush, None
        assert asked is not None
        self._is_flushing = True

        def end(flushed: "asyncio.Future[None]") -> None:
            self._is_flushing = False
            _settle(asked, None, flushed.exception())
            if self._next_flush is not None:
                self._flush_next()

        self._flusher.submit(self._store.flush).add_done_callback(end)

    def flush_soon(self) -> None:
        """Have it made durable within FLUSH_SOON_S, without waiting for that."""
        if self._soon is None and not self._closed:
            self._soon = asyncio.get_running_loop().call_later(FLUSH_SOON_S, self._begin_flush)

    def _begin_flush(self) -> None:
        self._soon = None
        if not self._closed:
            self._ask_for_flush().add_done_callback(_log_failure)

    async def keep(self) -> None:
        """Look whether this process may still write. Raises Conflict when another took its place, Unavailable when the store is
        away."""
        await self._writer.submit(self._store.keep)

    def get_size_bytes(self) -> int:
        return self._store.get_size_bytes()

    async def close(self) -> None:
        """Let the writes under way end, make all durable, close the store."""
        if self._closed:
            return
        self._closed = True
        if self._soon is not None:
            self._soon.cancel()
        await self._warmer.end()
        await self._reader.end()
        await self._writer.end()
        if self._next_flush is not None:
            await self.flush()  # behind the one that is under way
        await self._flusher.end()
        await asyncio.to_thread(self._store.flush)
        self._store.close()


def _log_failure(flushed: "asyncio.Future[None]") -> None:
    if not flushed.cancelled() and (error := flushed.exception()) is not None:
        log.warning("the namespace could not be made durable: %s", error)
