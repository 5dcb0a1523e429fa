"""The background event loop of a process, and what keeps it safe across fork.

gRPC's threads and locks do not survive fork: a child that inherits them hangs or crashes (tried with 1.85: with and without
GRPC_ENABLE_FORK_SUPPORT). A process that has shut gRPC down before it forks has healthy children (tried too). So before a fork
every runtime of the process is closed; parent and children open new ones on their next use, and calls of other threads that were
under way are made again.

Owns the thread, its loop and the Client on it. This is the one place with state of the whole process: hooks of fork cannot be had
otherwise. Rule of concurrency: any thread may call `run` and `close`; the gate is held only while a runtime is made or closed,
and from before a fork until after it.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import gc
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from alluxio_like.client.client import Client
from alluxio_like.config import ClientConfig
from alluxio_like.errors import AlluxioLikeError, Internal, Unsupported

T = TypeVar("T")

_gate = threading.RLock()
_open: "weakref.WeakSet[Runtime]" = weakref.WeakSet()
_shared: "dict[str, Runtime]" = {}
"""By the configuration, as JSON. One that was closed, or that belongs to the parent process, is replaced on the next use."""

_forked_with_grpc = False
_is_broken = False

_GRPC_THREADS = frozenset({"event_engine", "grpc_global_tim", "lifeguard"})
_SHUTDOWN_S = 3.0
_CLOSE_S = 5.0
"""Longest that closing waits for what is under way; a guess."""


class RuntimeClosed(Exception):
    """The call did not end because the runtime was closed: make it again on a new one."""


class Runtime:
    """A thread with an event loop and a Client, of this process alone."""

    def __init__(self, config: ClientConfig) -> None:
        if _is_broken:
            raise Unsupported(
                "this process was forked while other code of its parent used gRPC, which does not survive that: "
                "start it with spawn or forkserver"
            )
        self.pid = os.getpid()
        self.closed = False
        self.users: weakref.WeakSet[RuntimeHolder] = weakref.WeakSet()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="alluxio-like-client", daemon=True)
        self._thread.start()
        try:
            self.client = self.run(_open_client(config))
        except BaseException:
            self._stop()
            raise

    def run(self, call: Awaitable[T], timeout_s: float | None = None) -> T:
        """The result of a coroutine run on the loop; it is cancelled with the caller (Ctrl-C). Raises RuntimeClosed."""
        if threading.current_thread() is self._thread:
            raise Internal("a blocking call from the client's own thread would wait for itself")
        try:
            future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(_as_coroutine(call), self._loop)
        except RuntimeError:
            raise RuntimeClosed from None
        try:
            return future.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise RuntimeClosed from None
        except BaseException as error:
            future.cancel()
            if isinstance(error, AlluxioLikeError):
                # What it was raised from has frames that hold gRPC's objects; an error that is kept must not keep those alive.
                error.__cause__ = error.__context__ = None
            raise

    def close(self) -> None:
        """Cancel what is under way, close the client, end the thread. Its callers get RuntimeClosed."""
        with _gate:
            if self.closed:
                return
            self.closed = True
            _open.discard(self)
            if self.pid != os.getpid():
                # Forked behind our back: nothing of it works here, nor may be touched.
                return
            try:
                asyncio.run_coroutine_threadsafe(_wind_up(self.client), self._loop).result(_CLOSE_S * 2)
            except (TimeoutError, RuntimeError):
                pass
            finally:
                del self.client
                self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()


class RuntimeHolder:
    """One user of the open Runtime of a configuration, made when it is needed and closed with its last user.

    Shared by equal configurations: a client that comes pickled with each task of a pool must not cost the pool's process a
    thread and a channel each, and LMDB lets a process have one view of an index.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._key = config.model_dump_json()

    def get(self) -> Runtime:
        """The runtime of this process."""
        runtime = self.peek()
        if runtime is not None and self in runtime.users:
            return runtime
        with _gate:
            runtime = self.peek()
            if runtime is None:
                runtime = _shared[self._key] = Runtime(self._config)
                _open.add(runtime)
            runtime.users.add(self)
            return runtime

    def peek(self) -> Runtime | None:
        """The runtime, if there is one that can be used in this process."""
        runtime = _shared.get(self._key)
        return runtime if runtime is not None and not runtime.closed and runtime.pid == os.getpid() else None

    def run(self, call: Callable[[Client], Awaitable[T]]) -> T:
        """The result of a call, made again if the runtime was closed under it (by a fork in another thread)."""
        while True:
            runtime = self.get()
            try:
                return runtime.run(call(runtime.client))
            except (RuntimeClosed, AttributeError):
                if not runtime.closed:
                    raise

    def close(self) -> None:
        """Close this process's runtime, if there is one and nobody else uses it."""
        with _gate:
            runtime = self.peek()
            if runtime is not None:
                runtime.users.discard(self)
                if not runtime.users:
                    del _shared[self._key]
                    runtime.close()


async def _open_client(config: ClientConfig) -> Client:
    return Client.open(config)


async def _as_coroutine(call: Awaitable[T]) -> T:
    return await call


async def _wind_up(client: Client) -> None:
    """On the loop: end everything, so that nothing of gRPC stays alive."""
    # Callers first, so that they see a cancelled call (and make it again) and not a closed client.
    await _cancel_others()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(client.close(), _CLOSE_S)
    await _cancel_others()
    await asyncio.get_running_loop().shutdown_asyncgens()
    await asyncio.get_running_loop().shutdown_default_executor()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _before_fork() -> None:
    global _forked_with_grpc
    _gate.acquire()
    runtimes = list(_open)
    for runtime in runtimes:
        runtime.close()
    if runtimes:
        del runtimes
        # gRPC shuts down with the last of its objects; some of ours may be in cycles, and its threads take a moment to end.
        deadline = time.monotonic() + _SHUTDOWN_S
        while is_grpc_running() and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.002)
    # Not ours then: a child could not use gRPC, and is told so.
    _forked_with_grpc = is_grpc_running()


def is_grpc_running() -> bool:
    """Whether threads of gRPC's core are alive in this process (told by their names)."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().strip() in _GRPC_THREADS:
                return True
    return False


def _after_fork_in_parent() -> None:
    _gate.release()


def _after_fork_in_child() -> None:
    global _gate, _is_broken
    _gate = threading.RLock()
    _is_broken = _is_broken or _forked_with_grpc


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@atexit.register
def _at_exit() -> None:
    for runtime in list(_open):
        runtime.close()
