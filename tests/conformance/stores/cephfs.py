"""A directory of a CephFS."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alluxio_like.types import to_bytes
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import open_ufs
from tests.conformance.stores import StoreUnderTest
from tests.conformance.stores.file import can_name
from tests.servers.fixtures_cephfs import CephFsServer


@contextmanager
def open_cephfs(request: pytest.FixtureRequest, _directory: Path, count: Callable[[str], None]) -> Iterator[StoreUnderTest]:
    server: CephFsServer = request.getfixturevalue("cephfs_server")
    root: str = request.getfixturevalue("cephfs_root")

    def get(key: str) -> bytes:
        try:
            content: str = server.client.call("read", to_bytes(f"{root}/{key}"))
        except RuntimeError as error:
            raise LookupError(key) from error
        return content.encode("latin-1")

    def open_once() -> Ufs:
        return open_ufs(server.get_uri(root), server.options, secrets={}, on_request=count, io_timeout_s=20)

    yield StoreUnderTest(
        open_once(),
        lambda key, data: server.client.put(f"{root}/{key}", data),
        lambda key: server.client.call("delete", to_bytes(f"{root}/{key}")),
        get,
        is_flat=False,
        reopen=open_once,
        can_name=can_name,
    )


STORES = {"cephfs": open_cephfs}
