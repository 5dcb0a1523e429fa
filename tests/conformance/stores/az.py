"""Azure: what lies below a prefix of a container (test_cloud_faults.py and the cluster mount whole ones)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from alluxio_like.types import to_bytes
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import open_ufs, split_secrets
from tests.conformance.stores import StoreUnderTest
from tests.servers.fixtures_clouds import AzServer


@contextmanager
def open_az(
    request: pytest.FixtureRequest, _directory: Path, count: Callable[[str], None], *, prefix: str = ""
) -> Iterator[StoreUnderTest]:
    server: AzServer = request.getfixturevalue("az_server")
    container: str = request.getfixturevalue("az_container")
    if prefix:
        for outside in ("a", "some/outside", "some/prefix-not", "some/prefix.txt", "z"):
            server.put(container, outside, b"outside")
    public, secret = split_secrets("az", server.options)

    def open_once() -> Ufs:
        return open_ufs(f"az://{container}/{prefix}", public, secrets=secret, on_request=count, io_timeout_s=20)

    yield StoreUnderTest(
        open_once(),
        lambda key, data: server.put(container, prefix + key, data),
        lambda key: server.delete(container, prefix + key),
        lambda key: server.get(container, prefix + key),
        is_flat=True,
        reopen=open_once,
        can_name=_can_name,
    )


def _can_name(name: str) -> bool:
    """Azure has no control characters in names (its listings are XML), and takes a backslash for a slash."""
    return len(to_bytes(name)) <= 1000 and not any(
        char < " " or char in "\\\x7f\ufffe\uffff" or "\ud800" <= char <= "\udfff" for char in name
    )


STORES = {"az-prefix": partial(open_az, prefix="some/prefix/")}
