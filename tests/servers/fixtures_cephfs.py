"""Fixtures of a real CephFS: `cephfs_server`, `cephfs_root`."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.servers.ceph import FILE_SYSTEM, Cluster
from tests.servers.cephfs_client import CephFsClient
from tests.servers.fixtures import S3Server

_ROOTS = itertools.count()


@dataclass
class CephFsServer:
    """A CephFS and how to reach it; `client` changes it from outside. `options` are what `open_ufs` and the like take."""

    cluster: Cluster
    client: CephFsClient

    @property
    def options(self) -> dict[str, str]:
        return {"conf": str(self.cluster.root / "ceph.conf")}

    def get_uri(self, root: str) -> str:
        return f"cephfs://{FILE_SYSTEM}{root}"


@contextlib.contextmanager
def start_cephfs_server(cluster: Cluster) -> Iterator[CephFsServer]:
    """The CephFS of a running cluster, and another client of it, for as long as the context lasts."""
    cluster.start_file_system()
    client = CephFsClient(cluster.root / "ceph.conf", FILE_SYSTEM)
    try:
        yield CephFsServer(cluster, client)
    finally:
        client.close()


@pytest.fixture(scope="session")
def cephfs_server(s3_server: S3Server) -> Iterator[CephFsServer]:
    """The session's CephFS, on the cluster that also serves S3; its mds starts with the first test that asks for it."""
    assert s3_server.cluster is not None
    with start_cephfs_server(s3_server.cluster) as server:
        yield server


@pytest.fixture
def cephfs_root(cephfs_server: CephFsServer) -> str:
    """A fresh directory, as an absolute path in the file system. It goes with the cluster."""
    path = f"/test-{os.getpid()}-{next(_ROOTS)}"
    cephfs_server.client.call("make_directories", path)
    return path
