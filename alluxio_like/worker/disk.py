"""Blocking disk work, done in threads a batch at a time.

Owns a few threads and their queue. One hop back to the event loop carries the results of all that was done meanwhile, so that
thousands of small files a second do not cost thousands of wake-ups. Does not know what it runs. Rule of concurrency: `submit`,
`close` on the event loop; the work itself in any of the threads, in the order of submission when there is one thread.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_BATCH_ITEMS = 16
_BATCH_S = 0.003
"""A batch ends after so many items or so long; guesses between latency and the price of a wake-up (about 50 us)."""

_CLOSE_S = 5.0

_Item = tuple[Callable[[], Any], "asyncio.Future[Any]", bool]


class DiskQueue:
    """Runs functions in `threads` threads. Whoever submits bounds how much is under way."""

    def __init__(self, name: str, threads: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(threads)]
        self._closed = False
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[[], T], *, alone: bool = False) -> "asyncio.Future[T]":
        """A future of what `function` returns or raises. Cancelling it does not stop the function.

        `alone`: handed back at once and not in a batch, because it is waited for, or because what comes after it takes long.
        """
        if self._closed:
            raise RuntimeError("the disk queue is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((function, future, alone))
        return future

    async def close(self) -> None:
        """Finish what was submitted and end the threads; a thread that a disk holds for longer is left behind."""
        if self._closed:
            return
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _CLOSE_S)

    def _work(self) -> None:
        ending = False
        while not ending:
            item = self._queue.get()
            started = time.monotonic()
            done: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
            while item is not None:
                function, future, alone = item
                try:
                    done.append((future, function(), None))
                except BaseException as error:  # noqa: BLE001 (handed to whoever waits)
                    done.append((future, None, error))
                if alone or len(done) >= _BATCH_ITEMS or time.monotonic() - started > _BATCH_S:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            ending = item is None
            if done:
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
                    self._loop.call_soon_threadsafe(_settle, done)
            del item


def _settle(done: "list[tuple[asyncio.Future[Any], Any, BaseException | None]]") -> None:
    for future, value, error in done:
        if future.cancelled():
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
