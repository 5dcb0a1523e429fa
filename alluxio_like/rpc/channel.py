"""Channels to our services. See open_channel."""

import grpc.aio

from alluxio_like.config import TlsConfig


def open_channel(address: str, *, tls: TlsConfig | None = None, token: str = "") -> grpc.aio.Channel:
    """A channel to host:port, connected when first used; close it with `await channel.close()`.

    `tls.ca` set: TLS, checked against that CA. `token`: the cluster's, sent with every call.
    """
    raise NotImplementedError
