"""A master restored from a backup that is older than its store and its workers: what is read is right, or fails clearly."""

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.cli.backup_work import restore, write_backup
from alluxio_like.cli.metadata import Metadata
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import FileRef
from tests.crash.test_master_kill import MasterProcess
from tests.crash.test_worker_kill import WorkerProcess, Writing
from tests.servers.whole import assert_whole_disks
from tests.unit.worker_parts import gather_bytes, wait_until


def quiet(_pairs: int, _size: int) -> None:
    pass


class Restored(Writing):
    """The file system, whose master is backed up and restored while its worker goes on."""

    async def back_up(self) -> Path:
        file = self.directory / "a.backup"
        # In another process' data base, while it serves.
        await asyncio.to_thread(write_backup, file, Metadata(self.master.home), token_file=None, on_progress=quiet)
        return file

    async def restore(self, file: Path) -> None:
        self.master.end(signal.SIGKILL)
        await asyncio.to_thread(restore, file, Metadata(self.master.home), replace=True, on_progress=quiet)
        await self.master.start()
        await self.master.stub.sync("/data", recursive=True, timeout_s=60)

    async def list_refs(self) -> dict[str, FileRef]:
        entry = (await self.master.stub.resolve_path("/data")).entry
        assert entry is not None
        page = await self.master.stub.list_dir(entry.attr.inode)
        return {one.name: one.ref for one in page.entries if one.ref is not None}

    async def write(self, worker: WorkerProcess, name: str, data: bytes, *, is_new: bool = True) -> FileRef:
        ref = await self.create(name) if is_new else (await self.list_refs())[name]
        fd = await self.open(worker, ref, truncate=True)
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
            sealed = await self.seal(worker, ref.inode)
        finally:
            os.close(fd)
        with contextlib.suppress(errors.AlluxioLikeError):
            await worker.drafts.end(ref.inode)
        assert sealed.ref is not None
        return sealed.ref

    async def read_all(self, worker: WorkerProcess) -> dict[str, bytes | str]:
        """Contents by name, or how reading one failed."""
        found: dict[str, bytes | str] = {}
        for name, ref in (await self.list_refs()).items():
            try:
                read = worker.stub.read(ref, 0, ref.size, priority=Priority.DEMAND, cached_only=False)
                found[name] = await gather_bytes(read) if ref.size else b""
            except errors.AlluxioLikeError as error:
                found[name] = error.code
        return found


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Restored]:
    master = MasterProcess(tmp_path)
    await master.start()
    made = Restored(tmp_path, master)
    yield made
    await made.close()
    await master.close()


@pytest.mark.timeout(300)
async def test_a_restored_master_serves_no_wrong_byte(cluster: Restored) -> None:
    worker = await cluster.add_worker()
    await cluster.mount("through")
    for name in ("same", "rewritten", "removed"):
        await cluster.write(worker, name, f"{name} before".encode())
    file = await cluster.back_up()
    # Of the same length as what comes after the restore: number and size alone would not tell them apart.
    lost = await cluster.write(worker, "rewritten", b"rewritten between", is_new=False)
    await cluster.write(worker, "new", b"new between")
    root = (await cluster.master.stub.resolve_path("/data")).entry
    assert root is not None
    await cluster.changes.remove(uuid.uuid4().hex, root.attr.inode, "removed", directory=False)
    await cluster.wait_persisted()
    await cluster.restore(file)
    expected: dict[str, bytes | str] = {
        "same": b"same before",
        "rewritten": b"rewritten between",
        "new": b"new between",
    }
    assert await cluster.read_all(worker) == expected
    again = await cluster.write(worker, "rewritten", b"rewritten again !", is_new=False)
    assert (again.inode, again.version) != (lost.inode, lost.version)
    expected["rewritten"] = b"rewritten again !"
    assert await cluster.read_all(worker) == expected
    await cluster.wait_persisted()
    assert cluster.list_store() == expected
    await _check_disks(cluster, worker)


@pytest.mark.timeout(300)
async def test_what_the_store_lacked_at_the_backup(cluster: Restored) -> None:
    """Uploaded since, written anew and uploaded since, or still with the worker."""
    worker = await cluster.add_worker()
    await cluster.mount("back:1")
    assert not await cluster.list_refs()  # known from now on: new names need no store
    store = cluster.store.rename(cluster.directory / "away")
    for name in ("uploaded", "rewritten"):
        await cluster.write(worker, name, f"{name} before".encode())
    file = await cluster.back_up()
    store.rename(cluster.store)
    await cluster.wait_persisted()
    await cluster.write(worker, "rewritten", b"rewritten between", is_new=False)
    await cluster.wait_persisted()
    store = cluster.store.rename(cluster.directory / "away")
    # Of these two nobody has the bytes but the worker, which keeps them.
    unsaved = await cluster.write(worker, "new", b"new between")
    worker.kill()
    store.rename(cluster.store)
    await cluster.restore(file)
    await worker.start()
    await cluster.wait_persisted()
    assert await cluster.read_all(worker) == {"uploaded": b"uploaded before", "rewritten": b"rewritten between"}
    assert list((worker.cache / "files").glob(f"*/{unsaved.inode:x}-{unsaved.version:x}-*")), "the only copy"
    await _check_disks(cluster, worker)


async def _check_disks(cluster: Restored, worker: WorkerProcess) -> None:
    await wait_until(lambda: not list((worker.cache / "drafts").iterdir()), "the drafts to end")
    cluster.master.end(signal.SIGKILL)
    worker.kill()
    await asyncio.to_thread(assert_whole_disks, cluster.master.home, worker.cache)
