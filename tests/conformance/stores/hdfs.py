"""HDFS: a directory of one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alluxio_like.types import to_bytes
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import open_ufs
from tests.conformance.stores import StoreUnderTest
from tests.servers.fixtures_hdfs import HdfsServer


@contextmanager
def open_hdfs(request: pytest.FixtureRequest, _directory: Path, count: Callable[[str], None]) -> Iterator[StoreUnderTest]:
    server: HdfsServer = request.getfixturevalue("hdfs_server")
    root: str = request.getfixturevalue("hdfs_root")

    def open_once() -> Ufs:
        return open_ufs(f"{server.cluster.uri}{root}", {}, secrets={}, on_request=count, io_timeout_s=20)

    yield StoreUnderTest(
        open_once(),
        lambda key, data: server.put(f"{root}/{key}", data),
        lambda key: server.delete(f"{root}/{key}"),
        lambda key: server.get(f"{root}/{key}"),
        is_flat=False,
        reopen=open_once,
        can_name=_can_name,
    )


def _can_name(name: str) -> bool:
    has_surrogates = any("\ud800" <= char <= "\udfff" for char in name)
    return name not in {"", ".", ".."} and ":" not in name and not has_surrogates and len(to_bytes(name)) <= 255


STORES = {"hdfs": open_hdfs}
