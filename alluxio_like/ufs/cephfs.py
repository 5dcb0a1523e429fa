"""CephFS as a store, by libcephfs in a helper process.

Owns the helper: starting it with the first call, giving up calls in time, and replacing it when a call did not end, when it has
died, or when the cluster has thrown it out. What it runs is `cephfs_helper.py`. Called on one event loop; nothing here blocks
it.

A call that is given up stays behind in its helper. So that helper gets no further calls: it is closed once the others on it
have ended, and killed if it does not go by itself. The next call starts another.
"""

import asyncio
import errno
import mmap
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.cephfs_library import CephSettings
from alluxio_like.ufs.cephfs_messages import BUFFER_BYTES, MAX_MESSAGE_BYTES, THREADS, Answer, Request
from alluxio_like.ufs.options import OptionValue
from alluxio_like.ufs.posix_ufs import CHUNK_BYTES, PosixUfs
from alluxio_like.ufs.uri import StoreUri, is_monitors

_PLACES = 12
"""Reads at once: places of CHUNK_BYTES in the shared memory, which the kernel gives when they are first used. Half of the
helper's threads, so that metadata never waits for data. A guess."""
_EXIT_S = 12.0
"""Longest wait for a helper that was told to go (it unmounts for 10 s) before it is killed. Only a thread waits."""
_FAILED_START_S = 1.0
"""How long a failed start answers for those that follow: the cluster is not asked by each of a thousand callers."""


class CephUfs(PosixUfs):
    """`WritableUfs` on a CephFS."""

    @classmethod
    def open(
        cls, uri: StoreUri, options: Mapping[str, OptionValue], *, on_request: Callable[[str], None], io_timeout_s: float
    ) -> "CephUfs":
        """The store of a cephfs:// URI; the helper is started by the first call. Raises ConfigError."""
        settings = _make_settings(uri, options, io_timeout_s)
        return cls(HelperRunner(settings, io_timeout_s), str(uri), on_request=on_request, io_timeout_s=io_timeout_s)

    def refuse_name(self, name: str, *, at_root: bool) -> str:
        return "CephFS keeps snapshots there" if name == ".snap" else super().refuse_name(name, at_root=at_root)


def _make_settings(uri: StoreUri, options: Mapping[str, OptionValue], io_timeout_s: float) -> CephSettings:
    text = {name: str(value) for name, value in options.items()}
    from_uri = "monitors" if is_monitors(uri.authority) else "fs"
    if uri.authority and from_uri in text and text[from_uri] != uri.authority:
        raise errors.ConfigError(f"{from_uri} is given in the URI and, otherwise, as an option", subject=from_uri)
    if uri.authority:
        text[from_uri] = uri.authority
    if "key" in text and "keyring" in text:
        raise errors.ConfigError("give only one of key, keyring", subject="key")
    # The library takes whole seconds.
    mount_timeout_s = max(1, int(float(options.get("mount_timeout_s", io_timeout_s / 2))))
    return CephSettings(
        conf=text.get("conf", ""),
        monitors=text.get("monitors", ""),
        user=text.get("user", "admin").removeprefix("client."),
        keyring=text.get("keyring", ""),
        key=text.get("key", ""),
        file_system=text.get("fs", ""),
        root="/" + uri.prefix.rstrip("/"),
        mount_timeout_s=mount_timeout_s,
    )


class HelperRunner:
    """`Runner` in helper processes, one at a time but for those that are being left."""

    def __init__(self, settings: CephSettings, timeout_s: float) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._current: _Helper | None = None
        self._starting: asyncio.Task[_Helper] | None = None
        self._failure: tuple[float, errors.AlluxioLikeError] | None = None
        self._endings: dict[asyncio.Task[None], _Helper] = {}
        self._closed = False

    async def run(self, step: str, *arguments: Any, fd: int = -1) -> Any:
        return await self._call(step, arguments, fd, None)

    async def read(self, read_id: int, key: str, fingerprint: Fingerprint, offset: int, length: int, is_last: bool) -> memoryview:
        # (The helper may be another one than for the part before: then it opens the file itself.)
        chunk: memoryview = await self._call("read_part", (read_id, key, fingerprint, offset, length, is_last), -1, length)
        return chunk

    def post(self, step: str, *arguments: Any) -> None:
        if self._current is not None:
            self._current.post(step, arguments)

    async def close(self) -> None:
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._current is not None:
            self._leave(self._current)
        # At once: whoever still calls has gone, or is told that the store is closed.
        for helper in self._endings.values():
            helper.give_up()
        await asyncio.gather(*self._endings, return_exceptions=True)

    async def _call(self, step: str, arguments: tuple[Any, ...], fd: int, length: int | None) -> Any:
        helper: _Helper | None = None
        try:
            async with asyncio.timeout(self._timeout_s) as guard:
                while True:
                    helper = await self._get_helper()
                    try:
                        return await helper.call(step, arguments, fd, length)
                    except BrokenPipeError:  # it died before this call: nothing was asked
                        self._leave(helper)
        except TimeoutError:
            if not guard.expired():
                raise
            if helper is not None:
                self._leave(helper)
            raise errors.StoreUnavailable(
                f"no answer from the Ceph cluster within {self._timeout_s:g} s", subject=self._describe()
            ) from None
        finally:
            if helper is not None and helper.is_lost:
                self._leave(helper)

    async def _get_helper(self) -> "_Helper":
        if self._closed:
            raise errors.StoreUnavailable("the store is closed", subject=self._describe())
        if self._current is not None:
            return self._current
        if self._failure is not None and time.monotonic() < self._failure[0]:
            raise type(self._failure[1])(self._failure[1].message, subject=self._failure[1].subject)
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="start cephfs helper")
            self._starting.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        return await asyncio.shield(self._starting)

    async def _start(self) -> "_Helper":
        helper = _Helper()
        try:
            async with asyncio.timeout(self._timeout_s):
                await helper.start(self._settings)
        except BaseException as error:
            self._end(helper)
            if isinstance(error, asyncio.CancelledError):  # by `close` alone
                error = errors.StoreUnavailable("the store is closed", subject=self._describe())
            if isinstance(error, TimeoutError):
                error = errors.StoreUnavailable(
                    f"no answer from the Ceph cluster within {self._timeout_s:g} s", subject=self._describe()
                )
            if isinstance(error, errors.AlluxioLikeError):
                self._failure = (time.monotonic() + _FAILED_START_S, error)
            raise error from None
        finally:
            self._starting = None
        self._current = helper
        return helper

    def _leave(self, helper: "_Helper") -> None:
        """Give a helper no further calls, and end it once those on it have ended."""
        if self._current is helper:
            self._current = None
            self._end(helper)

    def _end(self, helper: "_Helper") -> None:
        task = asyncio.create_task(helper.end(self._timeout_s), name="end cephfs helper")
        self._endings[task] = helper
        task.add_done_callback(self._forget_ending)

    def _forget_ending(self, task: "asyncio.Task[None]") -> None:
        self._endings.pop(task, None)

    def _describe(self) -> str:
        where = self._settings.monitors or self._settings.conf or "the default configuration"
        return f"cephfs at {where}"


@dataclass(slots=True)
class _Waiting:
    """A call on its way. `place`: what it reads goes there."""

    future: "asyncio.Future[Any]"
    place: int
    length: int


class _Helper:
    """One process, its socket and the memory shared with it."""

    def __init__(self) -> None:
        self.is_lost = False
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._memory: mmap.mmap | None = None
        self._numbers = 0
        self._waiting: dict[int, _Waiting] = {}
        self._places = list(range(0, _PLACES * CHUNK_BYTES, CHUNK_BYTES))
        self._free_places = asyncio.Semaphore(_PLACES)
        self._free_threads = asyncio.Semaphore(THREADS)
        self._buffer = bytearray(MAX_MESSAGE_BYTES)
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, settings: CephSettings) -> None:
        """Start and mount. Raises what the mount raised, StoreUnavailable if the process ended."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        memory_fd = -1
        try:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            ours.setblocking(False)
            memory_fd = os.memfd_create("alluxio-like-cephfs")
            os.ftruncate(memory_fd, _PLACES * CHUNK_BYTES)
            self._memory = mmap.mmap(memory_fd, _PLACES * CHUNK_BYTES)
            command = [sys.executable, "-P", "-m", "alluxio_like.ufs.cephfs_helper", str(theirs.fileno()), str(memory_fd)]
            self._process = subprocess.Popen(  # noqa: ASYNC220 - a fork and an exec, a few ms
                command, pass_fds=[theirs.fileno(), memory_fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        finally:
            theirs.close()
            if memory_fd >= 0:
                os.close(memory_fd)
        ready = self._expect(0, -1, 0)
        self._loop.add_reader(ours, self._receive)
        ours.send(pickle.dumps(settings))
        await ready

    async def call(self, step: str, arguments: tuple[Any, ...], fd: int, length: int | None) -> Any:
        """The step's value or error; with `length`, the bytes it has read. BrokenPipeError: the process had ended before."""
        # A thread of the helper and a place in memory are free again with the answer, whoever still waits for it: until then the
        # helper may write there. (Between taking and sending there is no await.)
        await self._free_threads.acquire()
        if length is None:
            return await self._send(step, arguments, fd, -1, 0)
        try:
            await self._free_places.acquire()
        except BaseException:
            self._free_threads.release()
            raise
        return await self._send(step, arguments, fd, self._places.pop(), length)

    def post(self, step: str, arguments: tuple[Any, ...]) -> None:
        """Run a step whose outcome nobody wants."""
        if self._socket is not None and not self.is_lost:
            try:
                self._socket.send(pickle.dumps(Request(0, step, arguments)))
            except OSError:
                self.is_lost = True  # what it has open goes with it

    def _expect(self, number: int, place: int, length: int) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[number] = _Waiting(future, place, length)
        self._idle.clear()
        return future

    async def _send(self, step: str, arguments: tuple[Any, ...], fd: int, place: int, length: int) -> Any:
        self._numbers += 1
        number = self._numbers
        data = pickle.dumps(Request(number, step, arguments, place))
        future = self._expect(number, place, length)
        try:
            if self._socket is None:
                raise BrokenPipeError
            if len(data) > MAX_MESSAGE_BYTES:
                raise errors.InvalidArgument("the request is too long", subject=step)
            if fd >= 0:
                socket.send_fds(self._socket, [data], [fd])
            else:
                self._socket.send(data)
        except (OSError, errors.InvalidArgument) as error:
            self._forget(number)
            if isinstance(error, OSError):
                self.is_lost = True
                if error.errno in {None, errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN}:
                    raise BrokenPipeError from None
                raise errors.StoreUnavailable("the process that talks to the Ceph cluster takes no requests") from None
            raise
        return await future

    def _forget(self, number: int) -> _Waiting | None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None and number:
            self._free_threads.release()
        if waiting is not None and waiting.place >= 0:
            self._places.append(waiting.place)
            self._free_places.release()
        if not self._waiting:
            self._idle.set()
        return waiting

    def _receive(self) -> None:
        """Deliver the answers that are there."""
        assert self._socket is not None
        try:
            while True:
                count = self._socket.recv_into(self._buffer)
                if not count:
                    break
                self._deliver(pickle.loads(memoryview(self._buffer)[:count]))
        except BlockingIOError:
            return
        except Exception:  # noqa: BLE001 - broken, or another release's: nothing more can be understood
            self.is_lost = True
        self.give_up()

    def _deliver(self, answer: Answer) -> None:
        self.is_lost = self.is_lost or answer.is_lost
        waiting = self._waiting.get(answer.number)
        if waiting is None:
            return
        if not waiting.future.done():
            if answer.error is not None:
                waiting.future.set_exception(errors.make_error(*answer.error))
            elif waiting.place >= 0:
                assert self._memory is not None
                waiting.future.set_result(memoryview(self._memory[waiting.place : waiting.place + waiting.length]))
            else:
                waiting.future.set_result(answer.value)
        self._forget(answer.number)

    def give_up(self) -> None:
        """Fail all calls: the process has ended, or nobody waits for it any more."""
        self.is_lost = True
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
        status = self._process.poll() if self._process is not None else None
        for number in list(self._waiting):
            waiting = self._forget(number)
            if waiting is not None and not waiting.future.done():
                waiting.future.set_exception(
                    errors.StoreUnavailable("the process that talks to the Ceph cluster ended", subject=f"status {status}")
                )

    async def end(self, patience_s: float) -> None:
        """Tell the process to go, once its calls have ended or had their time; by force if it does not, some seconds later."""
        try:
            async with asyncio.timeout(patience_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            self.give_up()
            if self._socket is not None:
                self._loop.remove_reader(self._socket)
                self._socket.close()
                self._socket = None
            if self._process is not None:
                # Nobody waits for it: it gives back what the cluster lent it, and that may take a moment.
                threading.Thread(target=_reap, args=(self._process,), name="cephfs-reaper", daemon=True).start()
            if self._memory is not None:
                self._memory.close()


def _reap(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
