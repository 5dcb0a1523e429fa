"""The store in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alluxio_like.ufs.memory import MemoryUfs
from alluxio_like.ufs.memory_writing import WritableMemoryUfs
from tests.conformance.stores import StoreUnderTest


@contextmanager
def open_memory(_request: pytest.FixtureRequest, _directory: Path, count: Callable[[str], None]) -> Iterator[StoreUnderTest]:
    memory = MemoryUfs(on_request=count)
    ufs = WritableMemoryUfs(memory)
    yield StoreUnderTest(ufs, memory.put, memory.delete, memory.get, is_flat=True, reopen=lambda: WritableMemoryUfs(memory))


STORES = {"memory": open_memory}
