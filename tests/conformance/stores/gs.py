"""Google Cloud Storage: what lies below a prefix of a bucket (test_cloud_faults.py and the cluster mount whole ones)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from alluxio_like.types import to_bytes
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import open_ufs, split_secrets
from tests.conformance.stores import StoreUnderTest
from tests.servers.fixtures_clouds import GsServer


@contextmanager
def open_gs(
    request: pytest.FixtureRequest, _directory: Path, count: Callable[[str], None], *, prefix: str = ""
) -> Iterator[StoreUnderTest]:
    server: GsServer = request.getfixturevalue("gs_server")
    bucket: str = request.getfixturevalue("gs_bucket")
    if prefix:
        for outside in ("a", "some/outside", "some/prefix-not", "some/prefix.txt", "z"):
            server.put(bucket, outside, b"outside")
    public, secret = split_secrets("gs", server.options)

    def open_once() -> Ufs:
        return open_ufs(f"gs://{bucket}/{prefix}", public, secrets=secret, on_request=count, io_timeout_s=20)

    yield StoreUnderTest(
        open_once(),
        lambda key, data: server.put(bucket, prefix + key, data),
        lambda key: server.delete(bucket, prefix + key),
        lambda key: server.get(bucket, prefix + key),
        is_flat=True,
        reopen=open_once,
        can_name=_can_name,
    )


def _can_name(name: str) -> bool:
    """What the documents allow; the server in the tests takes line breaks, too."""
    return len(to_bytes(name)) <= 1000 and not any("\ud800" <= char <= "\udfff" or char in "\r\n" for char in name)


STORES = {"gs-prefix": partial(open_gs, prefix="some/prefix/")}
