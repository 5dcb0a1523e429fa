"""kill -9 of the worker while programs write: everything that was acknowledged is there afterwards, and nothing is torn."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.cache.draft_files import open_draft
from alluxio_like.config import CacheDirConfig, WorkerConfig, save_config
from alluxio_like.rpc.changes import ChangesStub
from alluxio_like.rpc.channel import RpcChannel, open_channel
from alluxio_like.rpc.drafts import DraftsStub
from alluxio_like.rpc.messages import MountSpec, Priority
from alluxio_like.rpc.messages_writing import DraftSealed, NewName
from alluxio_like.rpc.worker_stub import WorkerStub
from alluxio_like.types import FileRef, InodeId, Kind
from tests.crash.test_master_kill import MasterProcess
from tests.servers.fixtures import S3Server
from tests.servers.whole import assert_whole_disks
from tests.unit.worker_parts import gather_bytes, make_data, wait_until

RUN = """
import asyncio, sys
from pathlib import Path
from alluxio_like.config import WorkerConfig, load_config
from alluxio_like.worker import publishing, replicating
from alluxio_like.worker.app import run
replicating.HEIR_S = 2.0
publishing.GRACE_S = 2.0
sys.exit(asyncio.run(run(load_config(WorkerConfig, file=Path(sys.argv[1])))))
"""
KILLS = int(os.environ.get("WORKER_KILLS", "6"))
MIB = 1 << 20
PART_BYTES = WorkerConfig.model_fields["upload_part_bytes"].default


class WorkerProcess:
    """A worker in a process of its own; a new address after each start."""

    def __init__(self, directory: Path, master: MasterProcess, name: str) -> None:
        self.directory = directory / name
        self.directory.mkdir()
        self.cache = self.directory / "cache"
        self.ready = self.directory / "ready.json"
        token = self.directory / "token"
        token.write_text(master.token + "\n")
        token.chmod(0o600)
        self.token = master.token
        self.config = WorkerConfig(
            home=self.directory / "home",
            master=master.address,
            cache_dirs=(CacheDirConfig(path=self.cache, quota_bytes=1 << 30),),
            allow_root_disk=True,
            keep_free_fraction=0.0,
            heartbeat_interval_s=0.2,
            io_timeout_s=10.0,
            token_file=token,
            ready_file=self.ready,
            http_bind="",
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: RpcChannel | None = None
        self.worker_id = ""

    async def start(self) -> None:
        self.ready.unlink(missing_ok=True)
        save_config(self.config, self.directory / "worker.json")
        with (self.directory / "log").open("ab") as log:
            command = [sys.executable, "-c", RUN, str(self.directory / "worker.json")]
            process = self.process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220 (forks, and no more)
        await wait_until(lambda: self.ready.exists() or process.poll() is not None, "the worker", 120)
        assert process.poll() is None, (self.directory / "log").read_text()
        facts = json.loads(self.ready.read_text())
        self.worker_id = facts["worker_id"]
        if self.channel is not None:
            await self.channel.close()
        self.channel = open_channel(facts["address"], token=self.token)
        self.drafts = DraftsStub(self.channel, timeout_s=20)
        self.stub = WorkerStub(self.channel, timeout_s=20)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    async def close(self) -> None:
        if self.channel is not None:
            await self.channel.close()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        if self.process is not None and self.process.poll() is None:
            self.kill()


class Writing:
    """A master, workers and a directory as the store, mounted at /data; and a program that writes there."""

    def __init__(self, directory: Path, master: MasterProcess) -> None:
        self.directory = directory
        self.master = master
        self.store = directory / "store"
        self.store.mkdir()
        self.workers: list[WorkerProcess] = []
        assert master.channel is not None
        self.changes = ChangesStub(master.channel, timeout_s=60)

    async def mount(self, policy: str, uri: str = "") -> None:
        spec = MountSpec("/data", uri or f"file://{self.store}", {"write": policy}, read_only=False)
        await self.master.stub.mount(spec, operation_id=uuid.uuid4().hex)
        self.root = (await self.master.stub.resolve_path("/data")).entry.attr.inode  # type: ignore[union-attr]

    async def add_worker(self) -> WorkerProcess:
        worker = WorkerProcess(self.directory, self.master, f"w{len(self.workers) + 1}")
        self.workers.append(worker)
        await worker.start()
        return worker

    async def create(self, name: str) -> FileRef:
        changed = await self.changes.create(uuid.uuid4().hex, NewName(self.root, name, Kind.FILE, 0o644, 0, 0))
        assert changed.entry is not None
        assert changed.entry.ref is not None
        return changed.entry.ref

    async def get_ref(self, inode: InodeId) -> FileRef:
        entry = (await self.master.stub.get_entry(inode)).entry
        assert entry is not None
        assert entry.ref is not None
        return entry.ref

    async def open(self, worker: WorkerProcess, ref: FileRef, *, truncate: bool) -> int:
        """As a daemon does, however often the worker dies meanwhile."""
        while True:
            with contextlib.suppress(errors.Unavailable, errors.NotFound, errors.TimedOut, errors.Cancelled):
                place = await worker.drafts.begin(ref, truncate=truncate)
                directory = os.open(worker.cache, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    return open_draft(directory, place.path)
                finally:
                    os.close(directory)
            await asyncio.sleep(0.05)

    async def seal(self, worker: WorkerProcess, inode: InodeId) -> DraftSealed:
        """As the kernel's FLUSH: one operation id, until it is answered."""
        operation_id = uuid.uuid4().hex
        while True:
            with contextlib.suppress(errors.Unavailable, errors.TimedOut, errors.Cancelled):
                return await worker.drafts.seal(operation_id, inode, "")
            await asyncio.sleep(0.05)

    async def wait_persisted(self, limit_s: float = 60.0) -> None:
        async with asyncio.timeout(limit_s):
            while True:
                left = await self.changes.list_unpersisted("/", 10)
                if not left.files and not left.steps:
                    return
                await asyncio.sleep(0.1)

    def list_store(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.store)): path.read_bytes() for path in self.store.rglob("*") if path.is_file()}

    async def close(self) -> None:
        for worker in self.workers:
            await worker.close()


@pytest.fixture
async def writing(tmp_path: Path) -> AsyncIterator[Writing]:
    master = MasterProcess(tmp_path)
    await master.start()
    made = Writing(tmp_path, master)
    yield made
    await made.close()
    await master.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("policy", ["through", "back:1"])
async def test_what_was_acknowledged_outlives_a_worker_killed_again_and_again(writing: Writing, policy: str) -> None:
    await writing.mount(policy)
    worker = await writing.add_worker()
    chance = random.Random(42)
    acknowledged: dict[str, bytes] = {}
    stop = asyncio.Event()

    async def write(number: int) -> None:
        """A program: makes files, writes them anew, appends to them."""
        refs: dict[str, FileRef] = {}
        count = 0
        while not stop.is_set():
            count += 1
            name = f"{number}-{chance.randrange(8)}"
            is_new = name not in refs
            ref = await writing.create(name) if is_new else await writing.get_ref(refs[name].inode)
            truncate = is_new or chance.random() < 0.5
            fd = await writing.open(worker, ref, truncate=truncate)
            try:
                if truncate:
                    os.ftruncate(fd, 0)
                size = os.fstat(fd).st_size
                before = b"" if truncate else acknowledged.get(name, b"")
                assert size == len(before)
                data = make_data(chance.choice([0, 100, MIB + 7]), chance.randrange(256))
                os.pwrite(fd, data, size)
                sealed = await writing.seal(worker, ref.inode)
                assert sealed.ref is not None
                acknowledged[name] = before + data
                refs[name] = sealed.ref
            finally:
                os.close(fd)
            with contextlib.suppress(errors.AlluxioLikeError):
                await worker.drafts.end(ref.inode)

    programs = [asyncio.create_task(write(number)) for number in range(3)]
    try:
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.2, 1.5))
            worker.kill()
            await asyncio.to_thread(assert_whole_disks, None, worker.cache)
            await worker.start()
        await wait_until(lambda: len(acknowledged) > 5 or any(one.done() for one in programs), "something to compare")
    finally:
        stop.set()
        await asyncio.gather(*programs)
    await writing.wait_persisted()
    assert writing.list_store() == acknowledged
    # Nothing is left of what was cut short: neither at the store (uploads lie there as files) nor in the cache.
    await wait_until(lambda: not list((worker.cache / "drafts").iterdir()), "the drafts to end")
    worker.kill()
    writing.master.end(signal.SIGKILL)
    await asyncio.to_thread(assert_whole_disks, writing.master.home, worker.cache)


@pytest.mark.timeout(300)
async def test_a_large_upload_is_gone_on_with_by_the_next_worker_process(
    writing: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writing.mount("back:1")
    worker = await writing.add_worker()
    data = make_data(8 * PART_BYTES + 1000)
    ref = await writing.create("large")
    fd = await writing.open(worker, ref, truncate=True)
    os.pwrite(fd, data, 0)
    await writing.seal(worker, ref.inode)
    os.close(fd)

    def has_parts() -> bool:
        return any(path.name.startswith("part-") for path in writing.store.rglob("*"))

    await wait_until(lambda: has_parts() or (writing.store / "large").exists(), "the first part", 60)
    worker.kill()
    await worker.start()
    await writing.wait_persisted()
    assert writing.list_store() == {"large": data}
    ref = await writing.get_ref(ref.inode)
    assert ref.is_stored
    read = worker.stub.read(ref, 5, 1000, priority=Priority.DEMAND, cached_only=False)
    assert b"".join([bytes(piece) async for piece in read]) == data[5:1005]


@pytest.mark.server
@pytest.mark.timeout(300)
async def test_an_upload_to_s3_is_gone_on_with_and_leaves_no_parts(
    tmp_path: Path, s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    master = MasterProcess(tmp_path)
    await master.start()
    writing = Writing(tmp_path, master)
    try:
        worker = await writing.add_worker()
        await writing.mount("back:1", f"s3://{s3_bucket}")
        data = make_data(12 * PART_BYTES + 1000)
        ref = await writing.create("large")
        fd = await writing.open(worker, ref, truncate=True)
        os.pwrite(fd, data, 0)
        await writing.seal(worker, ref.inode)
        os.close(fd)

        def list_uploads() -> list[dict[str, Any]]:
            # (What the server can do may be tried out just then: with uploads of other names.)
            found = s3_server.client.list_multipart_uploads(Bucket=s3_bucket, Prefix="large").get("Uploads", [])
            return [dict(one) for one in found]

        def is_under_way() -> bool:
            begun = list_uploads()
            if not begun:
                return bool(s3_server.client.list_objects_v2(Bucket=s3_bucket, Prefix="large").get("Contents"))
            try:
                parts = s3_server.client.list_parts(Bucket=s3_bucket, Key="large", UploadId=begun[0]["UploadId"])
            except s3_server.client.exceptions.NoSuchUpload:
                return True  # it has ended meanwhile
            return bool(parts.get("Parts"))

        await wait_until(is_under_way, "the first part", 60)
        worker.kill()
        await worker.start()
        await writing.wait_persisted(120.0)
        assert s3_server.client.get_object(Bucket=s3_bucket, Key="large")["Body"].read() == data
        assert not list_uploads()
    finally:
        await writing.close()
        await master.close()


@pytest.mark.timeout(300)
async def test_with_a_second_copy_a_lost_node_loses_nothing(writing: Writing) -> None:
    first = await writing.add_worker()
    second = await writing.add_worker()
    await writing.mount("back:2")
    data = make_data(3 * MIB + 5)
    ref = await writing.create("precious")
    # The store is away, too.
    store = writing.store.rename(writing.directory / "away")
    fd = await writing.open(first, ref, truncate=True)
    os.pwrite(fd, data, 0)
    await writing.seal(first, ref.inode)
    os.close(fd)
    ref = await writing.get_ref(ref.inode)
    assert set(ref.holders) == {first.worker_id, second.worker_id}
    # The node is lost, with all that was on it.
    first.kill()
    shutil.rmtree(first.cache)
    read = second.stub.read(ref, 0, len(data), priority=Priority.DEMAND, cached_only=False)
    assert await gather_bytes(read) == data
    # Also for who was told of the version before there was a copy of it, and asks another worker.
    third = await writing.add_worker()
    early = replace(ref, holders=(first.worker_id,))
    read = third.stub.read(early, 0, len(data), priority=Priority.DEMAND, cached_only=False)
    assert await gather_bytes(read) == data
    store.rename(writing.store)
    await writing.wait_persisted()
    assert writing.list_store() == {"precious": data}


@pytest.mark.timeout(300)
async def test_a_policy_that_wants_more_workers_than_there_are_fails_the_close_and_keeps_the_bytes(writing: Writing) -> None:
    first = await writing.add_worker()
    second = await writing.add_worker()
    await writing.mount("back:2")
    second.kill()
    ref = await writing.create("alone")
    store = writing.store.rename(writing.directory / "away")
    fd = await writing.open(first, ref, truncate=True)
    os.pwrite(fd, b"alone", 0)
    assert first.channel is not None
    drafts = DraftsStub(first.channel, timeout_s=3.0)

    async def seal() -> str:
        """Why it is refused. The call is repeated until its time is over, which may be just before an answer comes."""
        while True:
            with contextlib.suppress(errors.TimedOut):
                try:
                    await drafts.seal("op-1", ref.inode, "")
                except errors.Unavailable as error:
                    return str(error)
                return "it is sealed"

    assert "on 2 workers, and only 1" in await seal()
    os.close(fd)
    await first.drafts.end(ref.inode)
    # Once the store has it, nothing more is asked for.
    store.rename(writing.store)
    await writing.wait_persisted()
    assert writing.list_store() == {"alone": b"alone"}
