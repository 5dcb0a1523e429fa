"""kill -9 of the master while commands run: none fails, they wait until it is back."""

import asyncio
import os
import random
import signal
import sys
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
