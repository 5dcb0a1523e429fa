"""What a worker tells its master is told in the end, whatever becomes of a single heartbeat."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from alluxio_like import errors
from alluxio_like.cache.store import CacheDirSpec, CacheStore
from alluxio_like.clock import SystemClock
from alluxio_like.rpc.messages import Heartbeat, HeartbeatResult, Priority, RegisterResult
from alluxio_like.types import Cluster, Worker
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.heartbeat import Heart
from alluxio_like.worker.turns import Turns
from tests.unit.worker_parts import wait_until

BUCKET = "s3://bucket"


class Master:
    """Answers a worker; the first `failures` heartbeats get lost."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.beats: list[Heartbeat] = []
        self.refusals: list[errors.AlluxioLikeError] = []
        """Of those who register, one after the other."""
        self.joined = 0
        self.forgets = False

    async def register(self, *_: Any, **__: Any) -> RegisterResult:
        if self.refusals:
            raise self.refusals.pop(0)
        self.joined += 1
        return RegisterResult("c", Cluster("c", 1, ()))

    async def report_blocks(self, _worker: Any, _session: Any, chunks: Any, **_kwargs: Any) -> None:
        async for _ in chunks:
            pass

    async def heartbeat(self, beat: Heartbeat, **_: Any) -> HeartbeatResult:
        if self.failures:
            self.failures -= 1
            raise errors.Unavailable("lost")
        self.beats.append(beat)
        forgets, self.forgets = self.forgets, False
        return HeartbeatResult(register_again=forgets)


@asynccontextmanager
async def beating(master: Master, place: Path) -> AsyncIterator[tuple[Heart, Turns]]:
    """A heart of a worker with an empty cache, which is not started."""
    store = CacheStore.open(
        [CacheDirSpec(place / "cache", 1 << 30, allow_root_disk=True)], cluster_id=None, clock=SystemClock(), boot_id="boot"
    )
    disk = DiskQueue("slow", 1)
    turns = Turns(4, 4, time.monotonic)
    heart = Heart(
        master=cast("Any", master),
        store=store,
        turns=turns,
        disk=disk,
        session_id="s",
        interval_s=0.01,
        describe=lambda: Worker(store.worker_id, "127.0.0.1:1", "h", "", 1 << 30),
        on_cluster=lambda _: None,
    )
    try:
        yield heart, turns
    finally:
        turns.close()
        await disk.close()
        await asyncio.to_thread(store.close)


async def test_throttles_and_demand_of_a_lost_heartbeat_are_told_with_the_next(tmp_path: Path) -> None:
    master = Master(failures=2)
    async with beating(master, tmp_path) as (heart, turns):
        turn = turns.make_turn(Priority.DEMAND, BUCKET)
        await turns.take(turn)
        turns.give_back(turn)
        for _ in range(3):
            turns.note_throttle(BUCKET)
        task = asyncio.create_task(heart.run())
        await wait_until(lambda: bool(master.beats))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [(one.bucket, one.count) for one in master.beats[0].throttles] == [(BUCKET, 3)]
    assert master.beats[0].demand == 1
    assert sum(one.count for beat in master.beats[1:] for one in beat.throttles) == 0


async def test_a_worker_that_was_never_let_in_ends(tmp_path: Path) -> None:
    for refusal in (errors.Untrusted("no"), errors.AccessDenied("no")):
        master = Master(failures=0)
        master.refusals = [errors.Unavailable("starting"), refusal]
        async with beating(master, tmp_path) as (heart, _):
            with pytest.raises(type(refusal)):
                await heart.run()


async def test_a_worker_that_has_served_waits_for_a_certificate_that_is_renewed_late(tmp_path: Path) -> None:
    master = Master(failures=0)
    async with beating(master, tmp_path) as (heart, _):
        task = asyncio.create_task(heart.run())
        await wait_until(lambda: master.joined == 1)
        master.refusals = [errors.Untrusted("expired"), errors.Untrusted("expired")]
        master.forgets = True
        await wait_until(lambda: master.joined == 2)
        assert not master.refusals
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
