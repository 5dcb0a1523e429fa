"""Channels to our services, and how calls are made on them.

Owns connection options, TLS, the metadata of every call (request id, token), deadlines, and the repeating of calls whose service
cannot be reached. Certificates that were replaced on the disk are used from the next call on; calls under way end on the
connection that they began on. Stubs build on it. Rule of concurrency: a channel belongs to the event loop, and so to the
process, that made it.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
import tenacity

from alluxio_like import logs
from alluxio_like.certificates import Pem, PemFiles
from alluxio_like.config import TlsConfig
from alluxio_like.errors import AlluxioLikeError, Cancelled, TimedOut, Unavailable, Untrusted
from alluxio_like.metrics import split_address
from alluxio_like.rpc import status
from alluxio_like.rpc.auth import TOKEN_KEY
from alluxio_like.rpc.context import LEASE_KEY
from alluxio_like.rpc.local_link import LocalLink, LocalMethod, MethodFinder
from alluxio_like.rpc.streams import closing
from alluxio_like.rpc.trust import TRY_S, find_refusal

REQUEST_ID_KEY = "x-request-id"

MAX_MESSAGE_BYTES = 64 << 20
"""Larger than any message we make (a heartbeat after a long silence is the largest)."""

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Retries are ours, with the caller's deadline in view.
    ("grpc.enable_retries", 0),
    # Services of a cluster are never behind the HTTP proxy that the environment names for the rest of the world.
    ("grpc.enable_http_proxy", 0),
    # A peer that vanished without closing is noticed within 15 s while calls are under way.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A service that is back is found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # How long (no pause, whatever its name) a connection may take to come about, TLS included: else only until the next try would
    # be due, too little for a busy machine or a far one. As long as a peer's answer to a ping is waited for.
    ("grpc.min_reconnect_backoff_ms", 5_000),
]

_REFUSAL_S = 1.0
_EARLY_S = 0.05
"""A deadline that gRPC found passed may lie so far ahead by this process's clock."""
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 1.0
_wait = tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LAST_PAUSE_S)
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Link:
    """What gRPC connects with one set of certificates, and the stubs on it."""

    channel: grpc.aio.Channel | None
    """None: closed."""
    pem: Pem | None
    stubs: dict[str, Any] = field(default_factory=dict)
    calls: int = 0
    """Under way."""

    def add_stub(self, name: str, make: Callable[[grpc.aio.Channel], Any]) -> None:
        assert self.channel is not None
        self.stubs[name] = make(self.channel)

    async def close(self, grace_s: float | None) -> None:
        self.stubs = {}
        channel, self.channel = self.channel, None
        if channel is not None:
            await channel.close(grace_s)


class RpcChannel:
    """A connection to one service, made when first used.

    It alone holds gRPC's objects, and lets go of them in `close`: gRPC shuts down with the last of them, and only after that may
    a process fork (client/runtime.py).
    """

    def __init__(self, address: str, token: str, files: PemFiles | None, server_name: str = "") -> None:
        self.address = address
        self._files = files
        self._server_name = server_name
        self._makers: dict[str, Callable[[grpc.aio.Channel], Any]] = {}
        self._local = LocalLink(address) if files is None else None
        self._local_stubs: dict[str, Any] = {}
        self._link: _Link | None = self._connect(files.get() if files is not None else None)
        self._older: set[_Link] = set()
        """Of certificates that were replaced, with calls under way."""
        self._closing: set[asyncio.Task[None]] = set()
        self.spoke = False
        """Whether a call has ever been answered, be it by an error."""
        self._lost_s = 0.0
        """When a call, after which none was answered, first did not reach the service; 0: it answers, as far as is known."""
        self._token = token
        self.lease = ""
        """Sent with every call: the session of the lease that is to cover its answer; empty: none."""
        self._id_prefix = secrets.token_hex(4)
        self._ids = itertools.count(1)
        self._refusal: asyncio.Task[str] | None = None
        self._refusal_until_s = 0.0

    def add_stub(self, name: str, make: Callable[[grpc.aio.Channel], Any]) -> None:
        """Have an object made whose attributes are methods, for `use`. Raises Cancelled after `close`."""
        self._makers[name] = make
        self._get_link().add_stub(name, make)
        if self._local is not None:
            self._local_stubs[name] = make(cast("grpc.aio.Channel", MethodFinder()))

    def find_local(self, name: str, method: str) -> tuple[LocalLink, LocalMethod] | None:
        """How to call a method without gRPC, now; None: by gRPC."""
        stub = self._local_stubs.get(name)
        found = getattr(stub, method, None)
        if self._local is None or self._link is None or found is None or not self._local.try_connect():
            return None
        return self._local, found

    @contextmanager
    def use(self, name: str, method: str) -> Iterator[Any]:
        """A method of a stub that was added, for one call, which ends with the context. Raises Cancelled after `close`."""
        link = self._get_link()
        link.calls += 1
        try:
            yield getattr(link.stubs[name], method)
        finally:
            link.calls -= 1
            if link in self._older and not link.calls:
                self._drop(link)

    async def close(self, grace_s: float | None = None) -> None:
        """Let what is under way end within `grace_s` (None: cancel it) and disconnect. May be called twice."""
        if self._local is not None:
            self._local.close()
        link, self._link = self._link, None
        links = self._older | ({link} if link is not None else set())
        self._older = set()
        if self._refusal is not None:
            self._refusal.cancel()
        await asyncio.gather(*(one.close(grace_s) for one in links), *self._closing)

    @property
    def away_s(self) -> float:
        """For how long no call has reached the service, while calls were made; 0: it answers, as far as is known."""
        return time.monotonic() - self._lost_s if self._lost_s else 0.0

    def note_answer(self) -> None:
        """The service answered a call."""
        self.spoke = True
        self._lost_s = 0.0

    def note_lost(self) -> None:
        """A call did not reach it."""
        self._lost_s = self._lost_s or time.monotonic()

    async def explain(self, error: Unavailable, target: str, within_s: float) -> Unavailable:
        """An error of a call that did not reach its service, or, where certificates are why, one that says so.

        Looked up once a second at most.
        """
        if self._files is None and self.spoke:
            # In the clear, as it should be: there is nothing to explain, and a service that has stopped is not to be waited for.
            return error
        loop = asyncio.get_running_loop()
        if self._refusal is None or (self._refusal.done() and loop.time() > self._refusal_until_s):
            self._refusal = loop.create_task(find_refusal(self.address, self._files, self._server_name), name="find refusal")
            self._refusal.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._refusal_until_s = loop.time() + _REFUSAL_S
        refusal = self._refusal
        await asyncio.wait([refusal], timeout=within_s)
        said = refusal.result() if refusal.done() and not refusal.cancelled() else ""
        return Untrusted(f"no call to {target}: {said}", subject=error.subject) if said else error

    def _connect(self, pem: Pem | None) -> _Link:
        if pem is None:
            return _Link(grpc.aio.insecure_channel(self.address, OPTIONS), None)
        credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate)
        named = [("grpc.ssl_target_name_override", self._server_name)] if self._server_name else []
        link = _Link(grpc.aio.secure_channel(self.address, credentials, OPTIONS + named), pem)
        for name, make in self._makers.items():
            link.add_stub(name, make)
        return link

    def _get_link(self) -> _Link:
        if self._link is None:
            raise Cancelled(f"the channel to {self.address} is closed")
        if self._files is not None and (pem := self._files.get()) is not self._link.pem:
            old, self._link = self._link, self._connect(pem)
            self._older.add(old)
            if not old.calls:
                self._drop(old)
        return self._link

    def _drop(self, link: _Link) -> None:
        self._older.discard(link)
        task = asyncio.create_task(link.close(None), name="close channel")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def make_metadata(self) -> tuple[tuple[str, str], ...]:
        """Of one call: the id of the request that is being served, or a new one; and the token."""
        request = logs.request_id.get() or f"{self._id_prefix}-{next(self._ids):x}"
        metadata: tuple[tuple[str, str], ...] = ((REQUEST_ID_KEY, request),)
        if self._token:
            metadata += ((TOKEN_KEY, self._token),)
        if self.lease:
            metadata += ((LEASE_KEY, self.lease),)
        return metadata


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a stub that a channel keeps; `service` is its name in messages."""

    channel: RpcChannel
    service: str
    stub: str
    name: str

    @property
    def target(self) -> str:
        """Whom it calls, for messages."""
        return f"the {self.service} at {self.channel.address}"

    def to_error(self, failure: grpc.aio.AioRpcError) -> AlluxioLikeError:
        """What a failed call means."""
        return status.to_error(failure, self.target)

    def make_closed(self) -> AlluxioLikeError:
        """What a call means whose channel was closed under it: gRPC cancels it as if the caller had."""
        return Cancelled(f"the channel to {self.channel.address} was closed")


def _count_cancels() -> int:
    """How often this task has been cancelled by now; 0 where a call was cancelled by its channel."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _check_cancelled(before: int) -> None:
    """Raises CancelledError where this task was cancelled since, and gRPC tells of its call's failure only: it would go on, and
    whoever cancelled it wait for ever."""
    if _count_cancels() > before:
        raise asyncio.CancelledError


def open_channel(address: str, *, tls: TlsConfig | None = None, token: str = "") -> RpcChannel:
    """A channel to host:port, connected when first used; close it with `await channel.close()`.

    `tls.ca` set: TLS, checked against that CA; the certificate in `tls`, if there is one, is shown, and the other's
    is to name the host, or `tls.server_name`. `token`: sent with every
    call. Raises ConfigError for an address that is none and for files that cannot be used.
    """
    split_address(address)
    files = PemFiles(tls.certificate, tls.key, tls.ca) if tls is not None and tls.ca is not None else None
    return RpcChannel(address, token, files, tls.server_name if tls is not None else "")


async def _describe(method: Method, failure: grpc.aio.AioRpcError, stop_at: float | None = None) -> AlluxioLikeError:
    """The error that a failed call stands for."""
    error = method.to_error(failure)
    if status.has_detail(failure):
        method.channel.note_answer()
    elif isinstance(error, Unavailable):
        within_s = TRY_S if stop_at is None else max(stop_at - time.monotonic(), 0.001)
        error = await method.channel.explain(error, method.target, within_s)
        method.channel.note_lost()
    return error


async def call_unary(method: Method, request: Any, timeout_s: float, *, repeat_s: float = 0.0) -> Any:
    """One call and its reply, within `timeout_s` (0: no limit).

    It is made again, with pauses, while the service cannot be reached, for `repeat_s` at most, but not where the two do not
    trust each other. Where the time ends in the midst of a later try, what the service said last is raised, as it says more.
    `request` may be a function that makes the request (a fresh stream for each try). Raises errors of the
    tree.
    """
    stop_at = time.monotonic() + timeout_s if timeout_s else None
    metadata = method.channel.make_metadata()

    async def call_once() -> Any:
        cancels = _count_cancels()
        failed: grpc.aio.AioRpcError | None = None
        timeout = None if stop_at is None else max(stop_at - time.monotonic(), 0.001)
        local = method.channel.find_local(method.stub, method.name)
        if local is not None:
            reply = await local[0].call(local[1], request, metadata, timeout, method.target)
            method.channel.note_answer()
            return reply
        with method.channel.use(method.stub, method.name) as rpc:
            try:
                reply = await rpc(request() if callable(request) else request, timeout=timeout, metadata=metadata)
                method.channel.note_answer()
                return reply
            except grpc.aio.AioRpcError as failure:
                _check_cancelled(cancels)
                failed = failure
            except asyncio.CancelledError:
                if _count_cancels():
                    raise
            finally:
                del rpc
        # Outside of the except clause and without its locals: an error that somebody keeps must not keep gRPC's objects alive.
        error = await _describe(method, failed, stop_at) if failed is not None else method.make_closed()
        del failed
        raise error

    try:
        return await call_once()
    except Untrusted:
        raise
    except Unavailable as error:
        left_s = repeat_s if stop_at is None else min(repeat_s, stop_at - time.monotonic())
        if left_s <= 0:
            raise
        said = error

    async def call_again() -> Any:
        nonlocal said
        try:
            return await call_once()
        except TimedOut:
            if stop_at is None or time.monotonic() < stop_at - _EARLY_S:
                raise  # the service's own words
            raise said from None
        except Unavailable as error:
            said = error
            raise

    async for attempt in tenacity.AsyncRetrying(
        stop=tenacity.stop_before_delay(left_s), wait=_wait, retry=tenacity.retry_if_exception(_may_repeat), reraise=True
    ):
        with attempt:
            return await call_again()
    raise AssertionError("unreachable")


def _may_repeat(error: BaseException) -> bool:
    return isinstance(error, Unavailable) and not isinstance(error, Untrusted)


async def call_stream(
    method: Method, request: Any, timeout_s: float, convert: Callable[[Any], Any] | None
) -> AsyncGenerator[Any]:
    """One call and its replies, each through `convert`; made once. Closing the generator early cancels the call."""
    cancels = _count_cancels()
    failed: grpc.aio.AioRpcError | None = None
    closed = False
    with method.channel.use(method.stub, method.name) as rpc:
        call = rpc(request, timeout=timeout_s or None, metadata=method.channel.make_metadata())
        del rpc
        try:
            async for reply in call:
                method.channel.note_answer()
                yield reply if convert is None else convert(reply)
        except grpc.aio.AioRpcError as failure:
            _check_cancelled(cancels)
            failed = failure
        except asyncio.CancelledError:
            if _count_cancels():
                raise
            closed = True
        finally:
            call.cancel()
            # As in call_unary.
            del call
    if failed is not None:
        error = await _describe(method, failed)
        del failed
        raise error
    if closed:
        raise method.make_closed()


async def repeat_stream(make: Callable[[], AsyncGenerator[T]], repeat_s: float) -> AsyncGenerator[T]:
    """The replies of a stream that only reads; `make` makes the call. It is made again, with pauses, while the service cannot be
    reached and nothing has come yet, for `repeat_s` at most."""
    stop_at, pause_s, begun = time.monotonic() + repeat_s, _FIRST_PAUSE_S, False
    while True:
        try:
            replies = make()
            async with closing(replies):
                async for reply in replies:
                    begun = True
                    yield reply
            return
        except Unavailable as error:
            if begun or not _may_repeat(error) or time.monotonic() + pause_s > stop_at:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
