"""The fixture `store`: each store that there is, in turn. How to add one: tests/conformance/stores/__init__.py."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conformance.stores import StoreUnderTest, load_factories

FACTORIES = load_factories()


@pytest.fixture(params=FACTORIES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StoreUnderTest]:
    requests: Counter[str] = Counter()

    def count(op: str) -> None:
        requests[op] += 1

    directory = tmp_path / "store"
    directory.mkdir()
    with FACTORIES[request.param](request, directory, count) as made:
        made.requests = requests
        yield made
        await made.ufs.close()
