"""Fixtures of real servers, for all tests: `s3_server`, `s3_bucket`, `fault_proxy`, `s3_via_proxy`, `postgresql_server`.

The servers start with the first test that asks for them, once a session, and are gone when the session ends, also after Ctrl-C
or SIGKILL (the kernel then ends the daemons). Tests that use them carry the mark `server`, which these fixtures' users get by
themselves.
"""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.ceph import Cluster, install_packages
from tests.servers.fault_control import FaultProxy
from tests.servers.postgresql import PostgresqlServer, run_postgresql

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SERVER_FIXTURES = {"s3_server", "s3_bucket", "fault_proxy", "postgresql_server"}


@dataclass
class S3Server:
    """A real S3 server and how to reach it.

    `options` are what `open_ufs`, `alluxio-like mount -o` and the like take, keys included.
    """

    endpoint: str
    access_key: str
    secret_key: str
    cluster: Cluster | None = None
    region: str = "us-east-1"
    _client: "S3Client | None" = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def options(self) -> dict[str, str]:
        return {**self.public_options, **self.secrets}

    @property
    def public_options(self) -> dict[str, str]:
        return {"endpoint": self.endpoint, "region": self.region}

    @property
    def secrets(self) -> dict[str, str]:
        return {"access_key": self.access_key, "secret_key": self.secret_key}

    @property
    def environment(self) -> dict[str, str]:
        """The same by AWS's environment variables, for processes."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def client(self) -> "S3Client":
        """A boto3 client of the server, for filling and changing buckets."""
        if self._client is None:
            import boto3
            from botocore.config import Config

            config = Config(
                request_checksum_calculation="when_required", s3={"addressing_style": "path"}, max_pool_connections=16
            )
            self._client = boto3.client(
                "s3",
                endpoint_url=self.endpoint,
                aws_access_key_id=self.access_key,
                aws_secret_access_key=self.secret_key,
                region_name=self.region,
                config=config,
            )
        return self._client

    def make_bucket(self, name: str = "") -> str:
        """A new bucket; its name."""
        name = name or f"bucket-{os.getpid()}-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name)
        return name

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Write an object; its ETag, with quotes."""
        return self.client.put_object(Bucket=bucket, Key=key, Body=data)["ETag"]

    def get(self, bucket: str, key: str) -> bytes:
        """Read an object. Raises LookupError."""
        try:
            return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            raise LookupError(key) from None

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object."""
        self.client.delete_object(Bucket=bucket, Key=key)

    def close(self) -> None:
        """Close the client's connections."""
        if self._client is not None:
            self._client.close()
            self._client = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a server."""
    for item in items:
        if _SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)


@contextlib.contextmanager
def start_s3_server(root: Path | None = None, *, size_bytes: int = 4 << 30) -> Iterator[S3Server]:
    """A radosgw for as long as the context lasts; installs the packages where they are missing."""
    install_packages()
    # Not pytest's own directory: the paths of unix sockets must be short.
    with contextlib.ExitStack() as stack:
        if root is None:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ceph-", ignore_cleanup_errors=True)))
        cluster = Cluster(root / "c", size_bytes=size_bytes, die_with_parent=True)
        try:
            cluster.start()
            server = S3Server(cluster.endpoint, cluster.access_key, cluster.secret_key, cluster)
            try:
                yield server
            finally:
                server.close()
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The session's S3 server: a radosgw, or with ALLUXIO_LIKE_TEST_S3 the one at that URL, with the keys of AWS's environment.

    Nobody stops it: a test of a dead store uses the fault proxy, or a server of its own."""
    if endpoint := os.environ.get("ALLUXIO_LIKE_TEST_S3"):
        yours = S3Server(endpoint, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        yield yours
        yours.close()
        return
    with start_s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """The session's PostgreSQL server: a test takes a schema of its own. Who stops it starts it again."""
    with run_postgresql() as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> Iterator[str]:
    """The name of a fresh bucket, emptied and removed afterwards."""
    name = s3_server.make_bucket()
    yield name
    client = s3_server.client
    while True:
        page = client.list_objects_v2(Bucket=name)
        objects: list[Any] = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
        if not objects:
            break
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda entry: client.delete_object(Bucket=name, Key=entry["Key"]), objects))
    if client.get_bucket_versioning(Bucket=name).get("Status"):
        _remove_versions(client, name)
    client.delete_bucket(Bucket=name)


def _remove_versions(client: "S3Client", bucket: str) -> None:
    while True:
        page = client.list_object_versions(Bucket=bucket)
        found: list[Any] = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
        if not found:
            return
        for entry in found:
            client.delete_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])


@pytest.fixture(scope="session")
def _fault_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def fault_proxy(_fault_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy in front of `s3_server`, without rules or limits and with an empty log."""
    _fault_proxy.reset()
    yield _fault_proxy
    _fault_proxy.reset()


@pytest.fixture
def s3_via_proxy(s3_server: S3Server, fault_proxy: FaultProxy) -> Iterator[S3Server]:
    """The same server and keys, reached through the proxy."""
    server = S3Server(fault_proxy.endpoint, s3_server.access_key, s3_server.secret_key, s3_server.cluster)
    yield server
    server.close()
