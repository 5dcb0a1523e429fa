"""The namespace's store as the event loop uses it.

Owns the one thread in which every write transaction runs, one after another, and the closing of the store. Does not own what is
written: that is core functions over a transaction. Rule of concurrency: reads are short and run where they are asked for; a write
whose caller is cancelled still happens or fails as a whole.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

from alluxio_like import errors
from alluxio_like.kv.api import KeyValueStore, ReadTransaction, WriteTransaction
from alluxio_like.master.core import snapshots

T = TypeVar("T")

log = logging.getLogger(__name__)

FLUSH_SOON_S = 0.05
"""What a power loss may undo of what nobody has asked to be durable. Local file systems take 5 s."""


async def run_to_end(work: Coroutine[object, object, T]) -> T:
    """Await something that must not stop half way when the caller is cancelled: it then goes on by itself."""
    return await asyncio.shield(asyncio.ensure_future(work))


class MetaStore:
    """A KeyValueStore with a writer thread."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="meta-writer")
        self._closed = False
        self._flushing = asyncio.Lock()
        """Held while the store is flushed: those who come meanwhile wait for the next flush, together."""
        self._next_flush: asyncio.Task[None] | None = None
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="meta-flusher")
        self._soon: asyncio.TimerHandle | None = None

    def read(self) -> AbstractContextManager[ReadTransaction]:
        """A snapshot for a short read; never hold one across an await."""
        return self._store.read()

    async def write(self, apply: Callable[[WriteTransaction], T]) -> T:
        """What `apply` returns, once its transaction is committed; nothing is changed when it raises."""
        if self._closed:
            raise errors.Unavailable("the master is stopping")
        return await asyncio.get_running_loop().run_in_executor(self._writer, self.write_now, apply)

    def write_now(self, apply: Callable[[WriteTransaction], T]) -> T:
        """The same in the calling thread; for the start, when nothing else runs."""
        with self._store.write() as txn:
            return apply(snapshots.record(txn))

    async def flush(self) -> None:
        """Make what was written before survive a power loss too. Of calls at the same time all but the first share one."""
        if self._next_flush is None:
            self._next_flush = asyncio.ensure_future(self._flush_next())
        await asyncio.shield(self._next_flush)

    def flush_soon(self) -> None:
        """Have it made durable within FLUSH_SOON_S, without waiting for that."""
        if self._soon is None and not self._closed:
            self._soon = asyncio.get_running_loop().call_later(FLUSH_SOON_S, self._begin_flush)

    def _begin_flush(self) -> None:
        self._soon = None
        if not self._closed:
            task = asyncio.ensure_future(self.flush())
            task.add_done_callback(_log_failure)

    async def _flush_next(self) -> None:
        async with self._flushing:
            # Whoever comes from here on may have written too late for this one.
            self._next_flush = None
            # Not in the writer's thread: writes need not wait for the disk.
            await asyncio.get_running_loop().run_in_executor(self._flusher, self._store.flush)

    async def keep(self) -> None:
        """Look whether this process may still write. Raises Conflict when another took its place, Unavailable when the store is
        away."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self._store.keep)

    def get_size_bytes(self) -> int:
        return self._store.get_size_bytes()

    async def close(self) -> None:
        """Let the writes under way end, make all durable, close the store."""
        if self._closed:
            return
        self._closed = True
        if self._soon is not None:
            self._soon.cancel()
        await asyncio.to_thread(self._writer.shutdown)
        await asyncio.to_thread(self._flusher.shutdown)
        await asyncio.to_thread(self._store.flush)
        self._store.close()


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("the namespace could not be made durable: %s", error)
