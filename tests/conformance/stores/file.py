"""A directory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import open_ufs
from tests.conformance.stores import StoreUnderTest


@contextmanager
def open_directory(_request: pytest.FixtureRequest, root: Path, count: Callable[[str], None]) -> Iterator[StoreUnderTest]:
    def put(key: str, data: bytes) -> None:
        # Renamed into place: the inode number is another one, as the clock's resolution alone would not always tell.
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(".being-written")
        new.write_bytes(data)
        new.rename(path)

    def get(key: str) -> bytes:
        try:
            return (root / key).read_bytes()
        except FileNotFoundError:
            raise LookupError(key) from None

    def open_once() -> Ufs:
        return open_ufs(f"file://{root}", {}, secrets={}, on_request=count, io_timeout_s=20)

    yield StoreUnderTest(
        open_once(),
        put,
        lambda key: (root / key).unlink(),
        get,
        is_flat=False,
        reopen=open_once,
        can_name=can_name,
    )


def can_name(name: str) -> bool:
    """POSIX's names."""
    return name not in {"", ".", ".."} and len(name.encode("utf-8", "surrogateescape")) <= 255


STORES = {"file": open_directory}
