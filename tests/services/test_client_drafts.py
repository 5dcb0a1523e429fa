"""Drafts at a worker that hangs: whoever writes is told in time, and nobody is cut off from one that is at work."""

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alluxio_like.client.draft_workers import DraftWorkers
from alluxio_like.client.drafts import DraftFiles
from alluxio_like.client.local import LocalCaches
from alluxio_like.errors import ReadOnly, Unavailable
from alluxio_like.rpc.messages_writing import DraftSealed
from alluxio_like.types import Cluster, InodeId, Worker, WorkerId
from tests.pending_parts import make_nothing_pending
from tests.unit.draft_parts import MOUNT, make_own_ref

HANGS_S = 60.0


class Stub:
    """A worker's drafts: what was asked for comes once the worker was asked `answers` times whether it lives; None: it says
    nothing."""

    def __init__(self, answers: int | None) -> None:
        self._answers = answers
        self.asked = 0
        self._enough = asyncio.Event()

    async def begin(self, *_: Any, **__: Any) -> Any:
        await self._enough.wait()

    async def seal(self, *_: Any, **__: Any) -> DraftSealed:
        await self._enough.wait()
        return DraftSealed(None, 5)

    async def sync(self, *_: Any, **__: Any) -> None:
        self.asked += 1
        if self._answers is None:
            raise Unavailable("nobody answers")
        if self.asked >= self._answers:
            self._enough.set()


def make_files(stub: Stub, doubted: list[InodeId]) -> DraftFiles:
    worker = SimpleNamespace(worker_id=WorkerId("w"), live=True)

    async def get_view(*, newer: bool) -> Any:
        return SimpleNamespace(workers=(worker,))

    async def refresh(_: Any) -> None:
        """Nothing to be found out."""

    async def list_mounts() -> list[Any]:
        return [SimpleNamespace(mount_id=MOUNT, read_only=False)]

    async def claim(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(has_quotas=False)

    cluster: Any = SimpleNamespace(get_view=get_view, get_drafts_stub=lambda _: stub)
    local: Any = SimpleNamespace(refresh=refresh, is_local=lambda _: True)
    workers = DraftWorkers(cluster, local, io_timeout_s=0.3)
    workers._pick = lambda workers, inode: worker  # type: ignore[assignment,method-assign,return-value]
    return DraftFiles(
        cluster,
        workers,
        local,
        make_nothing_pending(),
        list_mounts,
        SimpleNamespace(lease="", begin=lambda: None, doubt=doubted.append),  # type: ignore[arg-type]
        claim,
        io_timeout_s=0.3,
    )


async def test_what_a_cache_cannot_hold_has_no_room() -> None:
    asked, kept = 0, [90, 90, 20]

    async def get_view(*, newer: bool) -> Any:
        nonlocal asked
        assert newer, "the known one may be of long ago"
        asked += 1
        worker = Worker(WorkerId("w"), "", "", "", 100 << 30, kept_bytes=kept[min(asked, 3) - 1] << 30)
        return SimpleNamespace(workers=(worker,))

    files = make_files(Stub(None), [])
    files._cluster = SimpleNamespace(get_view=get_view)  # type: ignore[assignment]
    assert await files.has_room(WorkerId("w"), 1 << 20)
    assert asked == 0, "for little nobody is asked"
    assert not await files.has_room(WorkerId("w"), 101 << 30)
    assert asked == 1, "it is told at once where nothing could make room"
    assert await files.has_room(WorkerId("w"), 80 << 30), "what was just removed is heard of later"
    assert asked == 3
    assert not await files.has_room(WorkerId("w"), 90 << 30)
    assert await files.has_room(WorkerId("another"), 101 << 30)


async def test_a_close_fails_when_the_worker_says_nothing() -> None:
    doubted: list[InodeId] = []
    files = make_files(Stub(None), doubted)
    async with asyncio.timeout(HANGS_S):
        with pytest.raises(Unavailable, match="does not answer"):
            await files.seal(WorkerId("w"), InodeId(5), "op")
    assert doubted == [5], "it may have been sealed all the same"


async def test_an_open_fails_when_the_worker_says_nothing() -> None:
    files = make_files(Stub(None), [])
    async with asyncio.timeout(HANGS_S):
        with pytest.raises(Unavailable, match="does not answer"):
            await files.begin(make_own_ref(5, 1, "a", 3), truncate=False)


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_worker_that_hangs_is_no_mount_that_cannot_be_written(tmp_path: Path, hangs: bool) -> None:
    """A daemon that has just started has not got the cache's directories yet: a worker that hangs does not answer at its door."""
    door = tmp_path / "door.sock"
    worker = Worker(WorkerId("w"), "127.0.0.1:1", Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(door), 0)

    async def get_view(*, newer: bool) -> Cluster:
        return Cluster("c", 1, (worker,))

    cluster: Any = SimpleNamespace(get_view=get_view, view=None)
    unused: Any = None
    local = LocalCaches(cluster)
    workers = DraftWorkers(cluster, local, io_timeout_s=0.3)
    files = DraftFiles(cluster, workers, local, make_nothing_pending(), unused, unused, unused, io_timeout_s=0.3)
    with socket.socket(socket.AF_UNIX) as listening:
        if hangs:
            listening.bind(str(door))
            listening.listen()
        async with asyncio.timeout(HANGS_S):
            with pytest.raises(Unavailable if hangs else ReadOnly, match="it is away" if hangs else "none runs here"):
                await files.find(InodeId(5))
    await local.close()


async def test_a_close_takes_as_long_as_a_worker_is_at_work() -> None:
    # (Longer than a call waits: it is asked four times in that.)
    stub = Stub(12)
    async with asyncio.timeout(HANGS_S):
        sealed = await make_files(stub, []).seal(WorkerId("w"), InodeId(5), "op")
    assert sealed.mtime_ns == 5
    assert stub.asked >= 12
