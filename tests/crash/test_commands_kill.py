"""kill -9 of the master while commands run: none fails, they wait until it is back."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from alluxio_like.rpc.messages import MountSpec
from tests.crash.test_master_kill import MasterProcess
from tests.crash.test_worker_kill import WorkerProcess
from tests.unit.master_parts import wait_until

PROGRAMS = Path(sys.executable).parent
COMMANDS = (
    "alluxio-like fs ls /data",
    "alluxio-like fs cat /data/7",
    "cache load /data",
    "cache status /data",
    "alluxio-like report",
    "alluxio-like mounts",
)
KILLS = 2


@dataclass
class Site:
    """A master, a worker, and commands that know where they are."""

    master: MasterProcess
    directory: Path

    async def begin(self, command: str, name: str) -> asyncio.subprocess.Process:
        program, *arguments = command.split()
        environment = {
            **os.environ,
            "ALLUXIO_LIKE_MASTER": self.master.address,
            "ALLUXIO_LIKE_RUN_DIR": str(self.directory),
            "ALLUXIO_LIKE_MASTER_WAIT_S": "120",
            "ALLUXIO_LIKE_IO_TIMEOUT_S": "120",
        }
        with (self.directory / f"{name}.err").open("wb") as said:
            return await asyncio.create_subprocess_exec(
                str(PROGRAMS / program), *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=said
            )

    def read_said(self, name: str) -> str:
        return (self.directory / f"{name}.err").read_text()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    store = tmp_path / "store"
    store.mkdir()
    for number in range(20):
        (store / str(number)).write_text(f"content {number}\n")
    master = MasterProcess(tmp_path)
    await master.start()
    worker = WorkerProcess(tmp_path, master, "w1")
    try:
        await worker.start()
        await master.stub.mount(MountSpec("/data", f"file://{store}"))
        yield Site(master, tmp_path)
    finally:
        await worker.close()
        await master.close()


async def finish(running: Sequence[asyncio.subprocess.Process]) -> list[tuple[int | None, str]]:
    """How each ended, and what it printed."""
    try:
        async with asyncio.timeout(300):
            printed = [(await one.communicate())[0].decode() for one in running]
        return [(one.returncode, text) for one, text in zip(running, printed, strict=True)]
    finally:
        for one in running:
            if one.returncode is None:
                one.kill()
                await one.wait()


async def test_commands_wait_for_a_master_that_is_started_again(site: Site) -> None:
    site.master.end(signal.SIGKILL)
    running = [await site.begin(command, str(number)) for number, command in enumerate(COMMANDS[:4])]
    address = site.master.address

    def all_wait() -> bool:
        return all(site.read_said(str(n)) == f"waiting for the master at {address}\n" for n in range(len(running)))

    await wait_until(all_wait, "every command to say that it waits", 120)
    await site.master.start()
    ended = await finish(running)
    assert [code for code, _ in ended] == [0] * len(running), [site.read_said(str(n)) for n in range(len(running))]
    assert ended[1][1] == "content 7\n"


async def test_commands_in_a_loop_go_on_through_kills(site: Site) -> None:
    chance = random.Random(5)
    over = False
    ran = 0

    async def loop(number: int) -> None:
        nonlocal ran
        while not over:
            command = COMMANDS[(ran + number) % len(COMMANDS)]
            ((code, printed),) = await finish([await site.begin(command, f"loop-{number}")])
            assert code == 0, (command, printed, site.read_said(f"loop-{number}"))
            ran += 1

    loops = [asyncio.create_task(loop(number)) for number in range(2)]
    try:
        for _ in range(KILLS):
            before = ran
            await wait_until(lambda before=before: ran > before + 1 or any(one.done() for one in loops), "commands to run", 300)
            await asyncio.wait(loops, timeout=chance.uniform(0.0, 1.0), return_when=asyncio.FIRST_COMPLETED)
            site.master.end(signal.SIGKILL)
            await site.master.start()
        over = True
        await asyncio.gather(*loops)
    finally:
        for one in loops:
            one.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def test_what_a_load_brought_before_a_kill_was_not_there(site: Site) -> None:
    count = 600
    (site.directory / "store/many").mkdir()
    for number in range(count):
        (site.directory / f"store/many/{number}").write_bytes(bytes(20_000))
    made = time.time()
    await wait_until(lambda: time.time() - made > 2.1, "the files to grow old: younger ones are taken for replaced")
    (first,) = await finish([await site.begin("cache load /data/7 /data/many/8 --json", "first")])
    assert (first[0], json.loads(first[1])["done_files"]) == (0, 2)
    loading = await site.begin("cache load /data --bandwidth 3MB --json", "load")

    async def has_begun() -> bool:
        jobs = await site.master.stub.list_jobs()
        return any(job.done_files > 100 for job in jobs if job.spec.bandwidth_bytes_s)

    async with asyncio.timeout(120):
        while not await has_begun():
            await asyncio.sleep(0.01)
    site.master.end(signal.SIGKILL)
    await site.master.start()
    ((code, printed),) = await finish([loading])
    job = json.loads(printed.splitlines()[-1])
    assert (code, job["done_files"], job["skipped_files"]) == (0, count + 20, 2), site.read_said("load")
