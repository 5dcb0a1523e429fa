"""A gRPC server of ours: where it listens, TLS, health, and what happens to every call.

Owns the refusal of other addresses than loopback without TLS, the interceptor (errors to statuses, request ids, tokens,
deadlines) and the standard health service. Rule of concurrency: made and used on one event loop.
"""

import grpc.aio

from alluxio_like.config import TlsConfig


class RpcServer:
    """A server that is bound but does not answer before `start`. Add services to `.grpc_server` first."""

    grpc_server: grpc.aio.Server
    port: int
    """The port it is bound to (the one that was picked where 0 was asked for)."""
    address: str
    """host:port it is bound to."""

    async def start(self) -> None:
        """Answer calls, and health checks with SERVING."""
        raise NotImplementedError

    async def stop(self, grace_s: float = 2.0) -> None:
        """Say NOT_SERVING, let calls end within `grace_s`, cancel the rest. May be called twice."""
        raise NotImplementedError


def create_server(bind: str, *, tls: TlsConfig | None = None, insecure: bool = False, token: str = "") -> RpcServer:
    """Bind a server to host:port (port 0: a free one).

    With a certificate and key in `tls` it speaks TLS. `token`: the cluster's; methods that need it (rpc/auth.py) refuse callers
    without it, and everybody where it is empty. Raises ConfigError for an address other than loopback with neither TLS nor
    `insecure`, for unreadable certificates, and Conflict for a port in use.
    """
    raise NotImplementedError
