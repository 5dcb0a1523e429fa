"""The stores that the conformance suites run on.

A module beside this one adds its own: it has `STORES`, from the name that tests show to a factory. A factory is given the request
of the test (for the fixtures of its server), an empty directory and what counts requests, and is the context of one
`StoreUnderTest`. Nothing else is to be changed to add a store; a server's fixtures go into a module `fixtures_*.py` under
tests/servers/, which tests/conftest.py finds by its name.
"""

import importlib
import os
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import StoreEntry, Ufs
from alluxio_like.ufs.writing import Source, WritableUfs, get_writable


def has_any_name(_name: str) -> bool:
    """Of a store that takes every name there is."""
    return True


@dataclass
class StoreUnderTest:
    """A store, how to look and change it behind its back, and the requests it has reported.

    `put`, `delete` and `get` are somebody else's client: whole contents by key (directories on the way are made; `get` raises
    LookupError). `is_flat`: it has no directories of its own, as in S3. `can_name` says whether it can have a component of this
    name. `reopen` opens the same store once more, as after a restart of the process. `writes`: the suite of writing runs too.
    """

    ufs: Ufs
    put: Callable[[str, bytes], object]
    delete: Callable[[str], object]
    get: Callable[[str], bytes]
    is_flat: bool
    reopen: Callable[[], Ufs] | None = None
    can_name: Callable[[str], bool] = has_any_name
    writes: bool = True
    requests: Counter[str] = field(default_factory=Counter)

    @property
    def writable(self) -> WritableUfs:
        return get_writable(self.ufs)

    async def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> bytes:
        return b"".join([bytes(chunk) async for chunk in self.ufs.read(key, fingerprint, offset, length)])

    async def read_all(self, key: str) -> bytes:
        """The content that is there now."""
        fingerprint = (await self.ufs.stat(key)).fingerprint
        assert fingerprint is not None
        return await self.read(key, fingerprint, 0, fingerprint.size)

    async def list_all(self, prefix: str, max_entries: int = 1000) -> list[StoreEntry]:
        entries: list[StoreEntry] = []
        token = None
        for _ in range(100_000):
            page = await self.ufs.list_page(prefix, token, max_entries=max_entries)
            assert len(page.entries) <= max_entries
            entries.extend(page.entries)
            token = page.token
            if token is None:
                return entries
        raise AssertionError("the listing does not end")


Factory = Callable[[pytest.FixtureRequest, Path, Callable[[str], None]], AbstractContextManager[StoreUnderTest]]


def load_factories() -> Mapping[str, Factory]:
    """All stores by name, in the order of their modules."""
    found: dict[str, Factory] = {}
    for module in pkgutil.iter_modules(__path__):
        found.update(importlib.import_module(f"{__name__}.{module.name}").STORES)
    return found


@contextmanager
def make_source(data: bytes) -> Iterator[Source]:
    """A source of these bytes, in the middle of an open file."""
    fd = os.memfd_create("source")
    try:
        os.pwrite(fd, b"before" + data + b"behind", 0)
        yield Source(fd, len(b"before"), len(data))
    finally:
        os.close(fd)
