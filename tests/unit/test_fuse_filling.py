"""When large files are brought in the background."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from alluxio_like.clock import ManualClock
from alluxio_like.fuse import filling
from alluxio_like.fuse.backend import Backend
from alluxio_like.fuse.filling import Filler
from alluxio_like.metrics import Metrics
from alluxio_like.types import Entry
from tests.fakes_rpc import make_entry, wait_until

MIB = 1 << 20
SIZE = 100 * MIB


class _Reader:
    async def fill_whole(self, _priority: object) -> bool:
        return True

    async def close(self) -> None:
        pass


class _Backend:
    def __init__(self) -> None:
        self.brought: list[str] = []

    def open_file(self, entry: Entry) -> _Reader:
        self.brought.append(entry.name)
        return _Reader()


Make = Callable[[], tuple[Filler, _Backend, ManualClock]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    # The clock says how long a pause is; how often it is looked at is not to be waited for.
    monkeypatch.setattr(filling, "_LOOK_S", 0.001)

    def make_one() -> tuple[Filler, _Backend, ManualClock]:
        backend, clock = _Backend(), ManualClock()
        return Filler(cast(Backend, backend), clock, Metrics()), backend, clock

    return make_one


async def test_a_file_that_is_read_in_order_is_brought_when_that_pauses(make: Make) -> None:
    filler, backend, clock = make()
    entry = make_entry("f", 7, SIZE)
    for mib in range(1, 60):
        filler.note_read(entry, mib * MIB, MIB)
        clock.advance(0.1)
        await asyncio.sleep(0.002)
    assert backend.brought == []
    clock.advance(5)
    await wait_until(lambda: backend.brought == ["f"])
    await filler.close()


async def test_it_is_brought_at_once_when_all_of_it_was_read(make: Make) -> None:
    filler, backend, _ = make()
    entry = make_entry("f", 7, SIZE)
    for mib in range(1, 101):
        filler.note_read(entry, mib * MIB, MIB)
    await wait_until(lambda: backend.brought == ["f"])
    await filler.close()


async def test_reads_here_and_there_wait_for_no_pause(make: Make) -> None:
    filler, backend, _ = make()
    entry = make_entry("f", 7, SIZE)
    filler.note_read(entry, 24 * MIB, 4096)
    await asyncio.sleep(0.01)
    assert backend.brought == []
    filler.note_read(entry, 25 * MIB, 4096)
    await wait_until(lambda: backend.brought == ["f"])
    await filler.close()


async def test_nothing_is_left_when_it_is_closed_during_a_read(make: Make) -> None:
    filler, backend, clock = make()
    filler.note_read(make_entry("f", 7, SIZE), 50 * MIB, MIB)
    await filler.close()
    clock.advance(100)
    await asyncio.sleep(0.01)
    assert backend.brought == []
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("fill")]
