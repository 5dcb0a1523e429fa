"""kill -9 of the worker, and of the master, while clients make files in blank drafts: what was acknowledged is there once, whole
and under its name, whether the client repeats it or is gone, too."""

import asyncio
import contextlib
import os
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from alluxio_like import errors
from alluxio_like.cache.draft_files import open_draft
from alluxio_like.cache.new_files import NewFile, Note, write_note
from alluxio_like.rpc.messages_writing import BlankDrafts, NewName
from alluxio_like.types import InodeId, Kind
from tests.crash.test_master_kill import MasterProcess
from tests.crash.test_worker_kill import WorkerProcess, Writing
from tests.servers.whole import assert_whole_disks
from tests.unit.worker_parts import make_data, wait_until

T = TypeVar("T")
KILLS = int(os.environ.get("WORKER_KILLS", "6"))
_AWAY = (errors.Unavailable, errors.TimedOut, errors.Cancelled, errors.NotFound)


@pytest.fixture
async def writing(tmp_path: Path) -> AsyncIterator[Writing]:
    master = MasterProcess(tmp_path)
    await master.start()
    made = Writing(tmp_path, master)
    yield made
    await made.close()
    await master.close()


class Client:
    """As a daemon that makes files by itself; `stops` says when it makes no more."""

    def __init__(self, writing: Writing, worker: WorkerProcess, number: int, stops: asyncio.Event) -> None:
        self.writing = writing
        self.worker = worker
        self.name = f"client-{number}"
        self.stops = stops
        self.chance = random.Random(number)
        self.acknowledged: dict[str, bytes] = {}
        self.open: set[int] = set()

    async def run(self) -> None:
        number = 0
        while not self.stops.is_set():
            number += 1
            await self._fill(f"{self.name}-{number}")

    async def _fill(self, directory: str) -> None:
        """Make a directory and files in it; every third time, leave them as they are."""
        made = NewName(self.writing.root, directory, Kind.DIRECTORY, 0o755, 0, 0)
        operation_id = uuid.uuid4().hex
        changed = await self._repeat(lambda: self.writing.changes.create(operation_id, made))
        assert changed.entry is not None
        parent, count = changed.entry.attr.inode, self.chance.randrange(1, 30)
        first = await self._repeat(lambda: self.writing.changes.reserve_inodes(count))
        blank = await self._repeat(lambda: self.worker.drafts.begin_blank(first, count))
        fds = [await self._repeat(lambda number=number: self._open(blank, number)) for number in range(count)]
        files = []
        used = self.chance.randrange(1, count + 1)
        for number, fd in enumerate(fds[:used]):
            now_ns = time.time_ns()
            file = NewFile(
                uuid.uuid4().hex, InodeId(first + number), parent, f"f{number}", 0o644, 0, 0, now_ns, now_ns, sealed=True
            )
            write_note(fd, Note(self.name, file))
            data = make_data(self.chance.choice([0, 100, 70_000]), number)
            os.pwrite(fd, data, 0)
            self.acknowledged[f"{directory}/{file.name}"] = data
            files.append(file)
        is_left = self.chance.randrange(3) == 0
        if not is_left:
            published = await self._repeat(lambda: self.worker.drafts.publish("", files))
            for file, one in zip(files, published.files, strict=True):
                assert one.error is None, one.error
                assert one.ref is not None
                assert one.ref.size == len(self.acknowledged[f"{directory}/{file.name}"])
        for fd in fds:
            os.close(fd)
        if not is_left:
            with contextlib.suppress(errors.AlluxioLikeError):
                await self.worker.drafts.end_all([InodeId(first + number) for number in range(count)])

    async def _open(self, blank: BlankDrafts, number: int) -> int:
        place = blank.places[number]
        directory = os.open(self.worker.cache, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return open_draft(directory, place.path)
        finally:
            os.close(directory)

    async def _repeat(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            with contextlib.suppress(*_AWAY):
                return await ask()
            await asyncio.sleep(0.05)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", ["worker", "master"])
async def test_what_was_made_in_blank_drafts_outlives_whoever_is_killed(writing: Writing, who: str) -> None:
    await writing.mount("back:1")
    worker = await writing.add_worker()
    stops = asyncio.Event()
    clients = [Client(writing, worker, number, stops) for number in range(3)]
    chance = random.Random(42)
    work = [asyncio.create_task(client.run()) for client in clients]
    try:
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.2, 1.5))
            assert not any(one.done() for one in work)
            if who == "worker":
                worker.kill()
                await asyncio.to_thread(assert_whole_disks, None, worker.cache)
                await worker.start()
            else:
                writing.master.end(signal.SIGKILL)
                await writing.master.start()
        stops.set()
        await asyncio.gather(*work)
    finally:
        for one in work:
            one.cancel()
    # The first one is followed by another client of its name; of the others nobody hears again.
    await worker.drafts.publish_left(clients[0].name)
    await wait_until(lambda: not list((worker.cache / "drafts").iterdir()), "the drafts to end", 60)
    await writing.wait_persisted()
    acknowledged = {path: data for client in clients for path, data in client.acknowledged.items()}
    assert writing.list_store() == acknowledged
    worker.kill()
    writing.master.end(signal.SIGKILL)
    await asyncio.to_thread(assert_whole_disks, writing.master.home, worker.cache)
