"""Fixtures of the servers that stand for Google Cloud Storage and Azure: `gs_server`, `gs_bucket`, `az_server`, `az_container`.

They start with the first test that asks for them, once a session. What tests put there goes through Google's own client and, for
Azure, through a signature made by Microsoft's, so that what we send and sign ourselves is held against somebody else's reading.
"""

import itertools
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
import urllib3

from tests.servers.clouds import start_azurite, start_gcs

if TYPE_CHECKING:
    from google.cloud.storage import Bucket, Client

_NONE: Mapping[str, str] = {}
AZ_ACCOUNT = "devstoreaccount1"
AZ_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's, the same for everybody: no secret, but looked for in what is shown as if it were."""


@dataclass
class GsServer:
    """A running GCS server and how to reach it. It takes any token."""

    endpoint: str
    scheme: str = "gs"
    _client: "Client | None" = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def options(self) -> dict[str, str]:
        return {"endpoint": self.endpoint, "access_token": "testsecret0123456789"}

    @property
    def client(self) -> "Client":
        """Google's client of the server."""
        if self._client is None:
            from google.auth.credentials import AnonymousCredentials

            with warnings.catch_warnings():  # it would like a package for gRPC, which is not used here
                warnings.simplefilter("ignore", ImportWarning)
                from google.cloud.storage import Client

            self._client = Client(
                project="test", credentials=AnonymousCredentials(), client_options={"api_endpoint": self.endpoint}
            )
        return self._client

    def make_bucket(self, *, keeps_versions: bool = False) -> str:
        """A new bucket; its name."""
        bucket = self.client.bucket(f"bucket-{os.getpid()}-{next(self._numbers)}")
        bucket.versioning_enabled = keeps_versions
        self.client.create_bucket(bucket)
        return str(bucket.name)

    def get_bucket(self, name: str) -> "Bucket":
        """Google's handle of a bucket."""
        return self.client.bucket(name)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object."""
        self.get_bucket(bucket).blob(key).upload_from_string(data, retry=None)

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object."""
        self.get_bucket(bucket).blob(key).delete(retry=None)

    def get(self, bucket: str, key: str) -> bytes:
        """An object's bytes. Raises LookupError."""
        from google.api_core.exceptions import NotFound

        try:
            return bytes(self.get_bucket(bucket).blob(key).download_as_bytes(retry=None))
        except NotFound:
            raise LookupError(key) from None

    def list_keys(self, bucket: str) -> list[str]:
        """All keys there are."""
        return sorted(blob.name for blob in self.client.list_blobs(bucket))

    def close(self) -> None:
        """Close the client's connections."""
        if self._client is not None:
            self._client.close()


@dataclass
class AzServer:
    """A running Azurite and how to reach it."""

    endpoint: str
    scheme: str = "az"
    _signature: str = ""
    _pool: Any = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def options(self) -> dict[str, str]:
        return {"endpoint": self.endpoint, "account": AZ_ACCOUNT, "account_key": AZ_KEY}

    @property
    def signature(self) -> str:
        """A shared access signature for everything, by Microsoft's client."""
        if not self._signature:
            from datetime import UTC, datetime, timedelta

            from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

            self._signature = generate_account_sas(
                AZ_ACCOUNT,
                AZ_KEY,
                ResourceTypes(service=True, container=True, object=True),
                AccountSasPermissions(read=True, write=True, delete=True, list=True, add=True, create=True),
                datetime.now(UTC) + timedelta(days=1),
                start=datetime.now(UTC) - timedelta(hours=1),
            )
        return self._signature

    def call(
        self, method: str, path: str, query: str = "", body: bytes = b"", headers: Mapping[str, str] = _NONE
    ) -> urllib3.BaseHTTPResponse:
        """A request below the account, its path percent-encoded already; fails unless it succeeds."""
        if self._pool is None:
            self._pool = urllib3.HTTPConnectionPool(
                urlsplit(self.endpoint).hostname or "", urlsplit(self.endpoint).port, maxsize=8
            )
        sent = {"x-ms-version": "2021-12-02", **headers}
        target = f"/{AZ_ACCOUNT}/{path}?{query}{'&' if query else ''}{self.signature}"
        answer: urllib3.BaseHTTPResponse = self._pool.urlopen(method, target, body=body, headers=sent, retries=False)
        if answer.status == 404:
            raise LookupError(path)
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.data[:200]!r}")
        return answer

    def make_bucket(self) -> str:
        """A new container; its name."""
        name = f"container-{os.getpid()}-{next(self._numbers)}"
        self.call("PUT", name, "restype=container")
        return name

    def put(self, container: str, key: str, data: bytes, headers: Mapping[str, str] = _NONE) -> None:
        """Write a blob."""
        sent = {"x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream", **headers}
        self.call("PUT", f"{container}/{quote(key, safe='')}", body=data, headers=sent)

    def delete(self, container: str, key: str) -> None:
        """Remove a blob."""
        self.call("DELETE", f"{container}/{quote(key, safe='')}")

    def get(self, container: str, key: str) -> bytes:
        """A blob's bytes. Raises LookupError."""
        return self.call("GET", f"{container}/{quote(key, safe='')}").data

    def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            self._pool.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a server."""
    for item in items:
        if {"gs_server", "az_server"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def gs_server() -> Iterator[GsServer]:
    """The session's GCS server."""
    with start_gcs() as endpoint:
        server = GsServer(endpoint)
        yield server
        server.close()


@pytest.fixture
def gs_bucket(gs_server: GsServer) -> str:
    """The name of a fresh bucket; it is gone with the server."""
    return gs_server.make_bucket()


@pytest.fixture(scope="session")
def az_server() -> Iterator[AzServer]:
    """The session's Azurite."""
    with start_azurite() as endpoint:
        server = AzServer(endpoint)
        yield server
        server.close()


@pytest.fixture
def az_container(az_server: AzServer) -> str:
    """The name of a fresh container; it is gone with the server."""
    return az_server.make_bucket()
