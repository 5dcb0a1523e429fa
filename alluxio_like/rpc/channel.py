"""Channels to our services, and how calls are made on them.

Owns connection options, TLS, the metadata of every call (request id, token), deadlines, and the repeating of calls whose service
cannot be reached. Stubs build on it. Rule of concurrency: a channel belongs to the event loop, and so
to the process, that made it.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import tenacity

from alluxio_like import logs
from alluxio_like.config import TlsConfig
from alluxio_like.errors import AlluxioLikeError, Cancelled, ConfigError, Unavailable
from alluxio_like.metrics import split_address
from alluxio_like.rpc import status
from alluxio_like.rpc.auth import TOKEN_KEY
from alluxio_like.rpc.context import LEASE_KEY

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
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]

_wait = tenacity.wait_random_exponential(multiplier=0.05, max=1.0)


class RpcChannel:
    """A connection to one service, made when first used.

    It alone holds gRPC's objects, and lets go of them in `close`: gRPC shuts down with the last of them, and only after that may
    a process fork (client/runtime.py).
    """

    def __init__(self, channel: grpc.aio.Channel, address: str, token: str) -> None:
        self.address = address
        self._channel: grpc.aio.Channel | None = channel
        self._stubs: dict[str, Any] = {}
        self._token = token
        self.lease = ""
        """Sent with every call: the session of the lease that is to cover its answer; empty: none."""
        self._id_prefix = secrets.token_hex(4)
        self._ids = itertools.count(1)

    @property
    def grpc_channel(self) -> grpc.aio.Channel:
        """For making stubs; not to be kept. Raises Cancelled after `close`."""
        if self._channel is None:
            raise Cancelled(f"the channel to {self.address} is closed")
        return self._channel

    def add_stub(self, name: str, stub: Any) -> None:
        """Keep an object whose attributes are methods, for `get_method`."""
        self._stubs[name] = stub

    def get_method(self, name: str, method: str) -> Any:
        """A method of a stub that was added. Raises Cancelled after `close`."""
        if self._channel is None:
            raise Cancelled(f"the channel to {self.address} is closed")
        return getattr(self._stubs[name], method)

    async def close(self, grace_s: float | None = None) -> None:
        """Let what is under way end within `grace_s` (None: cancel it) and disconnect. May be called twice."""
        channel, self._channel = self._channel, None
        self._stubs = {}
        if channel is not None:
            await channel.close(grace_s)

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

    def to_error(self, failure: grpc.aio.AioRpcError) -> AlluxioLikeError:
        """What a failed call means."""
        return status.to_error(failure, f"the {self.service} at {self.channel.address}")

    def make_closed(self) -> AlluxioLikeError:
        """What a call means whose channel was closed under it: gRPC cancels it as if the caller had."""
        return Cancelled(f"the channel to {self.channel.address} was closed")


def _is_cancelled() -> bool:
    """Whether it is this task that is being cancelled, and not the call by its channel."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def open_channel(address: str, *, tls: TlsConfig | None = None, token: str = "") -> RpcChannel:
    """A channel to host:port, connected when first used; close it with `await channel.close()`.

    `tls.ca` set: TLS, checked against that CA. `token`: the cluster's, sent with every call. Raises ConfigError for an
    address that is none and a CA that cannot be read.
    """
    split_address(address)
    if tls is not None and tls.ca is not None:
        try:
            credentials = grpc.ssl_channel_credentials(root_certificates=tls.ca.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read the CA {tls.ca}: {error.strerror}", subject=str(tls.ca)) from error
        return RpcChannel(grpc.aio.secure_channel(address, credentials, OPTIONS), address, token)
    return RpcChannel(grpc.aio.insecure_channel(address, OPTIONS), address, token)


async def call_unary(method: Method, request: Any, timeout_s: float, *, repeat_s: float = 0.0) -> Any:
    """One call and its reply, within `timeout_s` (0: no limit).

    It is made again, with pauses, while the service cannot be reached, for `repeat_s` at most. `request`
    may be a function that makes the request (a fresh stream for each try). Raises errors of the tree.
    """
    stop_at = time.monotonic() + timeout_s if timeout_s else None
    metadata = method.channel.make_metadata()

    async def call_once() -> Any:
        error: AlluxioLikeError
        timeout = None if stop_at is None else max(stop_at - time.monotonic(), 0.001)
        rpc = method.channel.get_method(method.stub, method.name)
        try:
            return await rpc(request() if callable(request) else request, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as failure:
            error = method.to_error(failure)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            error = method.make_closed()
        # Outside of the except clause and without its locals: an error that somebody keeps must not keep gRPC's objects alive.
        del rpc
        raise error

    try:
        return await call_once()
    except Unavailable:
        left_s = repeat_s if stop_at is None else min(repeat_s, stop_at - time.monotonic())
        if left_s <= 0:
            raise
    async for attempt in tenacity.AsyncRetrying(
        stop=tenacity.stop_before_delay(left_s), wait=_wait, retry=tenacity.retry_if_exception_type(Unavailable), reraise=True
    ):
        with attempt:
            return await call_once()
    raise AssertionError("unreachable")


async def call_stream(
    method: Method, request: Any, timeout_s: float, convert: Callable[[Any], Any] | None
) -> AsyncGenerator[Any]:
    """One call and its replies, each through `convert`; not repeated. Closing the generator early cancels the call."""
    error: AlluxioLikeError | None = None
    rpc = method.channel.get_method(method.stub, method.name)
    call = rpc(request, timeout=timeout_s or None, metadata=method.channel.make_metadata())
    del rpc
    try:
        async for reply in call:
            yield reply if convert is None else convert(reply)
    except grpc.aio.AioRpcError as failure:
        error = method.to_error(failure)
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        error = method.make_closed()
    finally:
        call.cancel()
        # As in call_unary.
        del call
    if error is not None:
        raise error
