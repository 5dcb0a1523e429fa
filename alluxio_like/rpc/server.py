"""A gRPC server of ours: where it listens, TLS, health, and what happens to every call.

Owns the refusal of other addresses than loopback without TLS, the demand of clients' certificates, the interceptor (errors to
statuses, request ids, tokens, deadlines, metrics) and the standard health service. Rule of concurrency: made and used on one
event loop.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from alluxio_like import logs
from alluxio_like.certificates import PemFiles
from alluxio_like.config import TlsConfig
from alluxio_like.errors import AlluxioLikeError, ConfigError, Conflict, Internal, TimedOut
from alluxio_like.metrics import Metrics, is_loopback, split_address
from alluxio_like.rpc import context as call_context
from alluxio_like.rpc import status
from alluxio_like.rpc.auth import TOKEN_KEY, Guard
from alluxio_like.rpc.channel import MAX_MESSAGE_BYTES, REQUEST_ID_KEY
from alluxio_like.rpc.local_server import Answerer, LocalServer

Gate = Callable[[Any], AbstractAsyncContextManager[None]]
"""What a call is served within, made of its request."""

_log = logging.getLogger(__name__)

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Else a second process on the same port would quietly share its calls.
    ("grpc.so_reuseport", 0),
    # Clients ping every 10 s while calls are under way (channel.py).
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


class RpcServer:
    """A server that is bound but does not answer before `start`. Add services to `.grpc_server` first."""

    def __init__(self, server: grpc.aio.Server, host: str, port: int, interceptor: "_Interceptor", *, local: bool) -> None:
        """`local`: processes of this machine may call by its unix socket."""
        self._server = server
        self._local = LocalServer(interceptor.local) if local else None
        self.grpc_server: grpc.aio.Server = cast("grpc.aio.Server", _Registrar(server, interceptor))
        self.port = port
        """The port it is bound to (the one that was picked where 0 was asked for)."""
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        """host:port it is bound to."""
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if self._local is not None:
            self._local.bind(self.address)

    def add_local_name(self, address: str) -> None:
        """Processes of this machine know the server by another address, too. Before `start`."""
        if self._local is not None and address != self.address:
            self._local.bind(address)

    async def start(self) -> None:
        """Answer calls, and health checks with SERVING."""
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        if self._local is not None:
            self._local.start()

    async def stop(self, grace_s: float = 2.0) -> None:
        """Say NOT_SERVING, let calls end within `grace_s`, cancel the rest. May be called twice."""
        await self._health.enter_graceful_shutdown()
        stopping = [self._server.stop(grace_s)]
        if self._local is not None:
            stopping.append(self._local.stop(grace_s))
        await asyncio.gather(*stopping)


def create_server(
    bind: str,
    *,
    tls: TlsConfig | None = None,
    insecure: bool = False,
    guard: Guard | None = None,
    metrics: Metrics | None = None,
    make_gate: Callable[[str], Gate | None] | None = None,
) -> RpcServer:
    """Bind a server to host:port (port 0: a free one).

    With a certificate and key in `tls` it speaks TLS, and with `client_auth` only with who shows a certificate of its authority.
    `guard` says which calls need which token; None: nobody may make those that need the cluster's. `make_gate` says within what
    the calls of a method are served, if in anything. Raises ConfigError for an
    address other than loopback with neither TLS nor `insecure`, for certificates that cannot be used, and Conflict for a port
    in use.
    """
    host, _ = split_address(bind)
    credentials = _get_credentials(tls)
    if credentials is None and not insecure and not is_loopback(bind):
        raise ConfigError(
            f"{bind} is not a loopback address: give a certificate and key (tls), or --insecure to serve it in the clear",
            subject=bind,
        )
    interceptor = _Interceptor(guard or Guard(""), metrics, make_gate)
    server = grpc.aio.server(interceptors=(interceptor,), options=_OPTIONS)
    try:
        port = server.add_insecure_port(bind) if credentials is None else server.add_secure_port(bind, credentials)
    except RuntimeError as error:
        raise Conflict(f"cannot listen on {bind}: it is in use, or no address of this machine", subject=bind) from error
    return RpcServer(server, host, port, interceptor, local=credentials is None)


def get_advertised(advertise: str, server: RpcServer) -> str:
    """The address under which others reach a server: `advertise`, or what it is bound to.

    Raises ConfigError where that is every address of the machine, which means nothing elsewhere.
    """
    if not advertise and server.address.rpartition(":")[0] in {"0.0.0.0", "[::]"}:
        raise ConfigError(
            f"{server.address} is no address that others can call: say with --advertise HOST:PORT where this machine is reached",
            subject="advertise",
        )
    if advertise:
        server.add_local_name(advertise)
    return advertise or server.address


def _get_credentials(tls: TlsConfig | None) -> grpc.ServerCredentials | None:
    if tls is None or (tls.certificate is None and tls.key is None):
        return None
    demanding = tls.client_auth == "require"
    if demanding and tls.ca is None:
        raise ConfigError(
            "clients are to show certificates (tls.client_auth = require), and no authority is named that signs them: "
            "set tls.ca, or tls.client_auth = off to answer whoever can connect",
            subject="tls.ca",
        )
    files = PemFiles(tls.certificate, tls.key, tls.ca if demanding else None)

    def configure() -> grpc.ServerCertificateConfiguration:
        # Called by gRPC, in threads of its own, with each connection.
        pem = files.get()
        assert pem.key is not None
        assert pem.certificate is not None
        return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.ca)

    return grpc.dynamic_ssl_server_credentials(configure(), configure, demanding)


class _Registrar:
    """What services are added to: the gRPC server, and by the same handlers what processes of this machine call."""

    def __init__(self, server: grpc.aio.Server, interceptor: "_Interceptor") -> None:
        self._server = server
        self._interceptor = interceptor

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._server.add_registered_method_handlers(service, handlers)
        for name, handler in handlers.items():
            self._interceptor.add_local(f"/{service}/{name}", handler)


class _Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every method: token before, status and detail after, whatever its shape."""

    def __init__(self, guard: Guard, metrics: Metrics | None, make_gate: Callable[[str], Gate | None] | None) -> None:
        self._tokens = guard
        self._make_gate = make_gate
        self._metrics = metrics
        self._wrapped: dict[str, tuple[Any, Any]] = {}
        self.local: dict[str, Answerer] = {}
        """Methods of one request and one reply, wrapped the same way."""

    def add_local(self, method: str, handler: Any) -> None:
        """Have a method answered over the unix socket too."""
        if not handler.request_streaming and not handler.response_streaming:
            guarded = self._guard(method, handler.unary_unary)
            self.local[method] = Answerer(handler.request_deserializer, guarded, handler.response_serializer)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith("/grpc."):
            return handler
        known = self._wrapped.get(method)
        # The handler object is made anew for some services on each call, its behaviour is not.
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(method, handler))
        return known[1]

    def _wrap(self, method: str, handler: Any) -> Any:
        codec = {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

            async def serve_stream(request: Any, context: Any) -> None:
                # With write() and not as a generator, so that a cancelled call closes the handler's iterator at once.
                async with aclosing(inner(request, context)) as replies:
                    async for reply in replies:
                        await context.write(reply)

            stream = self._guard(method, serve_stream)
            if handler.request_streaming:
                return grpc.stream_stream_rpc_method_handler(stream, **codec)
            return grpc.unary_stream_rpc_method_handler(stream, **codec)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(self._guard(method, handler.stream_unary), **codec)
        return grpc.unary_unary_rpc_method_handler(self._guard(method, handler.unary_unary), **codec)

    def _guard(self, method: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        count = self._make_counter(method.rpartition(".")[2])
        gate = None if self._make_gate is None else self._make_gate(method)

        async def serve(request: Any, context: Any) -> Any:
            started = time.monotonic()
            metadata = dict(context.invocation_metadata() or ())
            logs.request_id.set(str(metadata.get(REQUEST_ID_KEY, "")))
            call_context.set_deadline(context.time_remaining())
            call_context.set_lease(str(metadata.get(call_context.LEASE_KEY, "")))
            failure: AlluxioLikeError | None = None
            outcome = "CANCELLED"
            try:
                self._tokens.check(method, metadata.get(TOKEN_KEY, ""))
                if gate is None:
                    reply = await behaviour(request, context)
                else:
                    async with gate(request):
                        reply = await behaviour(request, context)
                outcome = "OK"
                return reply
            except (AlluxioLikeError, TimeoutError) as error:
                failure = error if isinstance(error, AlluxioLikeError) else TimedOut("not done within the stated time")
                outcome = status.get_status_code(failure).name
            except grpc.aio.AbortError:
                outcome = "ABORTED"
                raise
            except Exception as error:  # noqa: BLE001 (the last place where one can be caught; it is logged)
                _log.exception("a call failed in a way nobody foresaw", extra={"method": method})
                failure = Internal(f"{type(error).__name__} while serving {method.rpartition('.')[2]}: see the service's log")
                outcome = "INTERNAL"
            finally:
                count(outcome, time.monotonic() - started)
            return await _abort(context, failure)

        return serve

    def _make_counter(self, name: str) -> Callable[[str, float], None]:
        """What counts the calls of one method, by their outcome and seconds."""
        if self._metrics is None:
            return lambda _outcome, _seconds: None
        requests, latency = self._metrics.rpc_requests, self._metrics.rpc_latency
        # To find a counter by its labels costs more than to count.
        known: dict[str, tuple[Callable[[], None], Callable[[float], None]]] = {}

        def count(outcome: str, seconds: float) -> None:
            counters = known.get(outcome)
            if counters is None:
                counters = known[outcome] = requests.labels(name, outcome).inc, latency.labels(name).observe
            increment, observe = counters
            increment()
            observe(seconds)

        return count


async def _abort(context: Any, error: AlluxioLikeError) -> NoReturn:
    code, detail = status.get_status_code(error), str(error)[:500].encode("ascii", "backslashreplace").decode()
    await context.abort(code, detail, ((status.ERROR_KEY, status.encode_error(error)),))
    raise AssertionError("abort returned")
