"""Turns: who goes first, how many at once, and at what rate."""

import asyncio
import time

import pytest

from alluxio_like.rpc.messages import Priority
from alluxio_like.worker.turns import Turn, Turns

BUCKET = "s3://bucket"


class Queue:
    """Turns with a clock of its own, and what was granted in order."""

    def __init__(self, demand_slots: int = 4, load_slots: int = 4) -> None:
        self.now = 100.0
        self.turns = Turns(demand_slots, load_slots, lambda: self.now)
        self.granted: list[str] = []

    def ask(self, name: str, priority: Priority, bucket: str = BUCKET) -> tuple[Turn, "asyncio.Task[None]"]:
        turn = self.turns.make_turn(priority, bucket)

        async def wait() -> None:
            await self.turns.take(turn)
            self.granted.append(name)

        return turn, asyncio.ensure_future(wait())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_goes_before_read_ahead_and_loads() -> None:
    queue = Queue(demand_slots=1)
    first, _ = queue.ask("first", Priority.DEMAND)
    await settle()
    queue.ask("ahead", Priority.AHEAD)
    queue.ask("demand", Priority.DEMAND)
    await settle()
    assert queue.granted == ["first"]
    queue.turns.give_back(first)
    await settle()
    assert queue.granted == ["first", "demand"]
    queue.turns.close()


async def test_loads_keep_one_slot_while_somebody_waits_and_get_theirs_back() -> None:
    queue = Queue(load_slots=4)
    reader, _ = queue.ask("reader", Priority.DEMAND)
    loads = [queue.ask(f"load {n}", Priority.LOAD) for n in range(4)]
    await settle()
    assert queue.granted == ["reader", "load 0"]
    queue.turns.give_back(reader)
    await settle()
    assert queue.granted == ["reader", "load 0"], "the reader's next request may come at once"
    queue.now += 0.3
    queue.turns.give_back(loads[0][0])
    await settle()
    assert len(queue.granted) == 5
    queue.turns.close()


async def test_readers_on_other_workers_count_too() -> None:
    queue = Queue(load_slots=4)
    queue.turns.note_demand_elsewhere(1.0)
    for n in range(4):
        queue.ask(f"load {n}", Priority.LOAD)
    await settle()
    assert queue.granted == ["load 0"]
    queue.now += 1.1
    queue.turns.set_rate("s3://other", 0)
    await settle()
    assert len(queue.granted) == 4
    queue.turns.close()


async def test_a_raised_turn_moves_up() -> None:
    queue = Queue(load_slots=1)
    queue.ask("load 0", Priority.LOAD)
    turn, _ = queue.ask("load 1", Priority.LOAD)
    await settle()
    assert queue.granted == ["load 0"]
    queue.turns.raise_priority(turn, Priority.DEMAND)
    await settle()
    assert queue.granted == ["load 0", "load 1"]
    assert queue.turns.count_waiting(Priority.LOAD) == queue.turns.count_waiting(Priority.DEMAND) == 0
    queue.turns.close()


async def test_a_cancelled_turn_gives_its_place_back_whenever_it_is_cancelled() -> None:
    queue = Queue(demand_slots=1)
    first, _ = queue.ask("first", Priority.DEMAND)
    await settle()
    waiting, task = queue.ask("second", Priority.DEMAND)
    await settle()
    # Granted and cancelled in the same step: the slot must not be lost.
    queue.turns.give_back(first)
    assert waiting.pool
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    queue.ask("third", Priority.DEMAND)
    await settle()
    assert queue.granted == ["first", "third"]
    queue.turns.close()


async def test_a_rate_spaces_requests_of_its_bucket_alone() -> None:
    turns = Turns(16, 16, time.monotonic)
    turns.set_rate(BUCKET, 20.0)

    async def ask(bucket: str, count: int) -> float:
        started = time.monotonic()
        for _ in range(count):
            turn = turns.make_turn(Priority.DEMAND, bucket)
            await turns.take(turn)
            turns.give_back(turn)
        return time.monotonic() - started

    limited, free = await asyncio.gather(ask(BUCKET, 15), ask("s3://other", 15))
    assert limited > 0.4
    assert free < limited
    throttles, demand = turns.drain_report()
    assert demand == 30
    assert {t.bucket: t.count for t in throttles} == {BUCKET: 0, "s3://other": 0}
    turns.close()
