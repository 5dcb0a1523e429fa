"""Fixtures of a real HDFS, for all tests: `hdfs_server`, `hdfs_root`, `hdfs_proxies`.

The server starts with the first test that asks for it, once a session, and is gone when the session ends.
"""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hdfs_native import Client

from tests.servers.hdfs import Cluster
from tests.servers.tcp_proxy import TcpProxy

_SERVER_FIXTURES = {"hdfs_server", "hdfs_root", "hdfs_proxies"}
PROXIED_HOST = "127.0.0.2"
"""What DataNodes report as their host name: a proxy listens there on the DataNode's own port."""


@dataclass
class HdfsServer:
    """A running HDFS, and somebody else's client of it."""

    cluster: Cluster
    _client: Client | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.cluster.uri, config_dir=str(self.cluster.config_dir))
        return self._client

    def make_root(self) -> str:
        """A new directory; its path."""
        path = f"/root-{os.getpid()}-{next(self._numbers)}"
        self.client.mkdirs(path)
        return path

    def put(self, path: str, data: bytes, **parameters: object) -> None:
        """Write a file, by Hadoop's own client; see `Cluster.put`."""
        self.cluster.put(path, data, **parameters)

    def get(self, path: str) -> bytes:
        """Read a file. Raises LookupError."""
        try:
            reader = self.client.read(path)
        except FileNotFoundError:
            raise LookupError(path) from None
        return reader.read_range(0, len(reader)) if len(reader) else b""

    def delete(self, path: str) -> None:
        """Remove a file, or a directory with all below."""
        self.client.delete(path, recursive=True)


@contextlib.contextmanager
def start_hdfs_server(
    *,
    datanodes: int = 1,
    replication: int = 1,
    is_ha: bool = False,
    settings: dict[str, str] | None = None,
    jvm_options: tuple[str, ...] = (),
) -> Iterator[HdfsServer]:
    """An HDFS for as long as the context lasts; installs what is missing."""
    with tempfile.TemporaryDirectory(prefix="hdfs-", ignore_cleanup_errors=True) as directory:
        cluster = Cluster(
            Path(directory) / "c",
            datanodes=datanodes,
            replication=replication,
            is_ha=is_ha,
            datanode_host=PROXIED_HOST,
            settings=settings or {},
            jvm_options=jvm_options,
            die_with_parent=True,
        )
        try:
            cluster.start()
            yield HdfsServer(cluster)
        finally:
            cluster.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the server."""
    for item in items:
        if _SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def hdfs_server() -> Iterator[HdfsServer]:
    """The session's HDFS. Nobody stops it: a test of a dead store uses the proxies, or a server of its own."""
    with start_hdfs_server() as server:
        yield server


@pytest.fixture
def hdfs_root(hdfs_server: HdfsServer) -> Iterator[str]:
    """The path of a fresh directory, removed afterwards."""
    path = hdfs_server.make_root()
    yield path
    hdfs_server.delete(path)


@dataclass
class HdfsProxies:
    """The server through proxies: mount `uri` with `options`."""

    namenode: TcpProxy
    datanode: TcpProxy

    @property
    def uri(self) -> str:
        return f"hdfs://127.0.0.1:{self.namenode.port}"

    @property
    def options(self) -> dict[str, str]:
        return {"use_datanode_hostname": "true"}


@pytest.fixture
def hdfs_proxies(hdfs_server: HdfsServer) -> Iterator[HdfsProxies]:
    """Proxies in front of NameNode and DataNode, which pass everything on until they are told otherwise."""
    with open_hdfs_proxies(hdfs_server) as proxies:
        yield proxies


@contextlib.contextmanager
def open_hdfs_proxies(server: HdfsServer) -> Iterator[HdfsProxies]:
    """The same for as long as a context lasts: one at a time."""
    cluster = server.cluster
    port = cluster.get_datanode_port(0)
    with TcpProxy(cluster.namenode_port) as namenode, TcpProxy(port, host=PROXIED_HOST, port=port) as datanode:
        yield HdfsProxies(namenode, datanode)
