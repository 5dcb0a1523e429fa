"""Threads for blocking store libraries, bounded in number and never waited for without a bound.

Owns its threads. They are daemons, unlike those of concurrent.futures: a call that hangs in a dead network file system must not
keep the process from ending. `run` is called from one event loop; what it runs, runs in any of the threads.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from alluxio_like import errors

T = TypeVar("T")


class _Call:
    """One call on its way: what to run, and where the outcome goes."""

    __slots__ = ("function", "future", "loop")

    def __init__(self, function: Callable[[], object], future: "asyncio.Future[object]", loop: asyncio.AbstractEventLoop) -> None:
        self.function = function
        self.future = future
        self.loop = loop

    def run(self) -> None:
        # A race with cancellation is harmless: the loop looks again before it delivers.
        if self.future.cancelled():
            return
        value: object = None
        error: BaseException | None = None
        try:
            value = self.function()
        except BaseException as caught:  # noqa: BLE001 - it belongs to the caller, whatever it is
            error = caught
        try:
            self.loop.call_soon_threadsafe(self._deliver, value, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _deliver(self, value: object, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(value)
        elif isinstance(error, StopIteration):  # a future refuses it
            self.future.set_exception(errors.Internal("a call ended with StopIteration"))
        else:
            self.future.set_exception(error)


class _Post:
    """A call whose outcome nobody wants."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def run(self) -> None:
        with contextlib.suppress(Exception):
            self._function()


class BlockingPool:
    """At most `max_threads` calls at once; more wait in line. Threads start when they are needed and stay until `close`."""

    def __init__(self, name: str, max_threads: int) -> None:
        self._name = name
        self._max_threads = max_threads
        self._calls: queue.SimpleQueue[_Call | _Post | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._unfinished = 0
        self._closed = False

    async def run(self, function: Callable[[], T], *, timeout_s: float) -> T:
        """The value or error of `function()`. Raises StoreUnavailable when it has not ended after `timeout_s` seconds.

        A call that was cancelled or timed out before it began is never begun; one that had begun runs on, and its outcome is
        dropped.
        """
        if self._closed:
            raise errors.StoreUnavailable(f"{self._name} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put(_Call(function, future, loop))  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            if future.done() and not future.cancelled():  # it was the call's own error
                raise
            raise errors.StoreUnavailable(f"no answer within {timeout_s:g} s", subject=self._name) from None

    def post(self, function: Callable[[], object]) -> None:
        """Have a function run when a thread is free, also after `close`; its outcome is nobody's."""
        if self._closed:  # its threads may have ended
            threading.Thread(target=_Post(function).run, name=f"{self._name}-last", daemon=True).start()
            return
        self._put(_Post(function))

    def close(self) -> None:
        """Let the threads end once they are idle. Calls in line are still made. Idempotent."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._calls.put(None)

    def _put(self, call: _Call | _Post) -> None:
        # Calls that were given up count until their thread is free again: another thread goes on meanwhile.
        with self._lock:
            self._unfinished += 1
            is_short = self._unfinished > len(self._threads)
        if is_short and len(self._threads) < self._max_threads:
            self._start_thread()
        self._calls.put(call)

    def _start_thread(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
            with self._lock:
                self._unfinished -= 1
            del call  # the outcome must not live on with an idle thread


class Lent(Generic[T]):
    """Something that threads use and that must be closed once: by `abandon`, or, while a thread is using it, by that thread.

    So a cancelled caller never waits for a thread, and a thread never works on a descriptor that was closed under it.
    """

    def __init__(self, close: Callable[[T], object]) -> None:
        self._close = close
        self._lock = threading.Lock()
        self._held: T | None = None
        self._busy = False
        self._abandoned = False

    @contextlib.contextmanager
    def use(self, make: Callable[[], T] | None = None) -> Iterator[T]:
        """In a thread, one at a time: the thing, made first if `make` is given. Raises Cancelled once it was abandoned."""
        with self._lock:
            if self._abandoned:
                raise errors.Cancelled("nobody waits for it any more")
            self._busy = True
        try:
            if make is not None:
                self._held = make()
            if self._held is None:
                raise errors.Internal("used before it was made")
            yield self._held
        finally:
            self._leave()

    def abandon(self) -> None:
        """On the event loop, once nobody waits for it any more. Never blocks. Idempotent."""
        with self._lock:
            self._abandoned = True
            if not self._busy:
                self._drop()

    def _leave(self) -> None:
        with self._lock:
            self._busy = False
            if self._abandoned:
                self._drop()

    def _drop(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._close(held)
