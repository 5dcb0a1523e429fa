"""The one client library behind FUSE, CLI and SDK: `Client` (asynchronous) and `connect` (a synchronous one)."""

from pathlib import Path
from typing import Any

from alluxio_like.client.client import Client, FileReader
from alluxio_like.client.descriptor import LocalDescriptor
from alluxio_like.client.sync import File, SyncClient
from alluxio_like.config import ClientConfig, load_config

__all__ = ["Client", "File", "FileReader", "LocalDescriptor", "SyncClient", "connect"]


def connect(
    master: str = "",
    *,
    ca: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    token_file: str | Path | None = None,
    io_timeout_s: float | None = None,
    config: ClientConfig | None = None,
) -> SyncClient:
    """A synchronous client of the cluster whose master listens at `master` (host:port; empty: as configured, or the default).

    `ca`: TLS, with PEM files: the authority of the services' certificates, and the `certificate` with its `key` that they demand.
    Nothing is sent before its first call. It may be handed to other processes, by fork or pickled.
    """
    given: dict[str, Any] = {"master": master, "io_timeout_s": io_timeout_s, "token_file": token_file}
    tls = {name: path for name, path in (("ca", ca), ("certificate", certificate), ("key", key)) if path is not None}
    flags = {name: value for name, value in given.items() if value not in (None, "")}
    base = config if config is not None else load_config(ClientConfig)
    return SyncClient(ClientConfig.model_validate(base.model_dump() | flags | {"tls": base.tls.model_dump() | tls}))
