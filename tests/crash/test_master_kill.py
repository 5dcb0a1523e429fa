"""kill -9 of the master's process, and its restart: nothing that it acknowledged is lost, jobs go on."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.config import MasterConfig, save_config
from alluxio_like.master.job_runner import COMMIT_INTERVAL_S
from alluxio_like.rpc.auth import read_token
from alluxio_like.rpc.channel import RpcChannel, open_channel
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.messages import Job, JobState, LoadSpec, MountSpec
from alluxio_like.types import Entry, InodeId, JobId
from tests.unit.master_parts import FakeWorker, wait_until

RUN = """
import asyncio, sys
from pathlib import Path
from alluxio_like.config import MasterConfig, load_config
from alluxio_like.errors import AlluxioLikeError
from alluxio_like.master.app import run
try:
    sys.exit(asyncio.run(run(load_config(MasterConfig, file=Path(sys.argv[1])))))
except AlluxioLikeError as error:
    sys.exit(f"{error.code}: {error}")
"""


class MasterProcess:
    """A master in a process of its own, always on the same port."""

    def __init__(self, directory: Path, *, metadata_url: str = "") -> None:
        self.directory = directory
        self.home = directory / "home"
        self.metadata_url = metadata_url
        self.token_file: Path | None = None
        self.ready = directory / "ready.json"
        self.process: subprocess.Popen[bytes] | None = None
        self.address = "127.0.0.1:0"
        self.channel: RpcChannel | None = None

    async def start(self) -> None:
        self.ready.unlink(missing_ok=True)
        config = MasterConfig(
            home=self.home,
            metadata_url=self.metadata_url,
            token_file=self.token_file,
            bind=self.address,
            http_bind="",
            ready_file=self.ready,
            io_timeout_s=10,
            page_entries=100,
            worker_timeout_s=5,
        )
        save_config(config, self.directory / "master.json")
        process = self.process = self._spawn()
        await wait_until(lambda: self.ready.exists() or process.poll() is not None, "the master", 120)
        assert process.poll() is None, (self.directory / "master.log").read_text()
        facts = json.loads(self.ready.read_text())
        self.address = facts["address"]
        self.token = read_token(Path(facts["token_file"]))
        if self.channel is None:
            self.channel = open_channel(self.address, token=self.token)
            self.stub = MasterStub(self.channel, timeout_s=60)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.directory / "master.log").open("ab") as log:
            command = [sys.executable, "-c", RUN, str(self.directory / "master.json")]
            return subprocess.Popen(command, stderr=log, stdout=log)

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    async def close(self) -> None:
        if self.channel is not None:
            await self.channel.close()
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)


@pytest.fixture
async def master(tmp_path: Path) -> AsyncIterator[MasterProcess]:
    made = MasterProcess(tmp_path)
    await made.start()
    yield made
    await made.close()


async def make_files(directory: Path, count: int) -> None:
    """Small files, old enough for their fingerprints to be trusted (younger ones are taken for replaced when listed again)."""
    for number in range(count):
        (directory / f"d{number % 7}").mkdir(parents=True, exist_ok=True)
        (directory / f"d{number % 7}" / f"{number:05}").write_bytes(b"x" * (number % 100 + 1))
    made = time.time()
    await wait_until(lambda: time.time() - made > 2.1, "the files to grow old")


async def list_all(master: MasterProcess, inode: InodeId) -> list[Entry]:
    """All pages: one may be short while its directory is being listed."""
    entries: list[Entry] = []
    cursor = b""
    while True:
        page = await master.stub.list_dir(inode, cursor)
        entries += page.entries
        cursor = page.next_cursor
        if not cursor:
            return entries


async def watch_to_end(master: MasterProcess, job_id: JobId) -> Job:
    """What a watch says last. Streams are not repeated by themselves where the master cannot be reached yet."""
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(errors.Unavailable):
                *_, job = [state async for state in master.stub.watch_job(job_id)]
                return job
            await asyncio.sleep(0.05)


async def test_a_killed_master_goes_on_with_its_jobs(master: MasterProcess, tmp_path: Path) -> None:
    await make_files(tmp_path / "files", 2000)
    await master.stub.mount(MountSpec("/data", f"file://{tmp_path / 'files'}"))
    workers = [FakeWorker(f"w{number}", master.stub, master.token) for number in range(2)]
    for worker in workers:
        await worker.start()
    try:
        for worker in workers:
            worker.most_loads = 300
        job_id = await master.stub.submit_load(LoadSpec(), ["/data"])
        done = 0
        for kill in range(2):
            # The workers stop in the middle of a batch; what ended before is stored within the stated interval.
            await wait_until(lambda: all(len(worker.loads) >= worker.most_loads for worker in workers), "the loading")
            await asyncio.sleep(4 * COMMIT_INTERVAL_S)
            before = await master.stub.get_job(job_id)
            master.end(signal.SIGKILL)
            await master.start()
            again = await master.stub.get_job(job_id)
            assert again.done_files >= max(200 * (kill + 1), done)
            assert again.done_files <= before.done_files
            done = again.done_files
            for worker in workers:
                worker.most_loads += 300
        for worker in workers:
            worker.most_loads = 1 << 60
        async with asyncio.timeout(120):
            async for job in master.stub.watch_job(job_id):
                if job.state is JobState.CHECKING:
                    break
        # In the middle of the check, or when all is done: that is to say the same.
        master.end(signal.SIGKILL)
        await master.start()
        job = await watch_to_end(master, job_id)
        assert (job.state.name, job.done_files, job.checked_files, job.failed_files) == ("DONE", 2000, 2000, 0)
        assert job.total_bytes == job.done_bytes == sum(number % 100 + 1 for number in range(2000))
        assert sum(worker.fetched_bytes for worker in workers) == job.done_bytes
    finally:
        for worker in workers:
            await worker.kill()


async def test_what_was_acknowledged_survives(master: MasterProcess, tmp_path: Path) -> None:
    await make_files(tmp_path / "files", 300)
    await master.stub.mount(MountSpec("/data", f"file://{tmp_path / 'files'}"), operation_id="first")
    names = []
    for directory in range(7):
        entry = (await master.stub.resolve_path(f"/data/d{directory}")).entry
        assert entry is not None
        names.append((directory, {one.name: one.attr for one in await list_all(master, entry.attr.inode)}))
    await master.stub.set_pinned("/data/d3", pinned=True)
    master.end(signal.SIGKILL)
    await master.start()
    assert [info.path for info in await master.stub.list_mounts()] == ["/data"]
    # A repeat of what was done is answered and not done again.
    again = await master.stub.mount(MountSpec("/data", f"file://{tmp_path / 'files'}"), operation_id="first")
    assert again.path == "/data"
    with pytest.raises(errors.AlreadyExists):
        await master.stub.mount(MountSpec("/data", f"file://{tmp_path / 'files'}"), operation_id="second")
    for directory, known in names:
        entry = (await master.stub.resolve_path(f"/data/d{directory}")).entry
        assert entry is not None
        entries = await list_all(master, entry.attr.inode)
        assert {one.name: one.attr for one in entries} == known
        assert all(one.ref is not None and one.ref.pinned == (directory == 3) for one in entries)


async def test_a_second_master_on_the_home_is_told_so(master: MasterProcess, tmp_path: Path) -> None:
    second = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RUN, str(tmp_path / "master.json")],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr.decode().startswith("conflict: another master (pid ")
    assert master.end(signal.SIGTERM) == 0
    await master.start()
    assert await master.stub.list_mounts() == []
