"""A master on PostgreSQL loses its machine in the midst of writes, again and again, and is started elsewhere: nothing that was
acknowledged is lost. And its metadata goes into a home, and back into a database."""

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.cli.backup_work import restore, write_backup
from alluxio_like.cli.metadata import Metadata
from alluxio_like.rpc.messages import MountSpec
from alluxio_like.types import FileRef
from tests.crash.test_master_kill import MasterProcess
from tests.crash.test_master_moves import SECRET, lose_machine
from tests.crash.test_worker_kill import Writing
from tests.servers.postgresql import PostgresqlServer
from tests.servers.whole import assert_whole_disks
from tests.unit.worker_parts import make_data, wait_until

pytestmark = pytest.mark.server

MOVES = 3


@pytest.fixture
async def master(postgresql_server: PostgresqlServer, tmp_path: Path) -> AsyncIterator[MasterProcess]:
    url = postgresql_server.get_url(schema=postgresql_server.make_schema())
    made = MasterProcess(tmp_path, metadata_url=url)
    await made.start()
    yield made
    await made.close()


@pytest.mark.timeout(300)
async def test_what_was_acknowledged_is_there_on_the_next_machine(master: MasterProcess, tmp_path: Path) -> None:
    writing = Writing(tmp_path, master)
    await writing.mount("through")
    worker = await writing.add_worker()
    acknowledged: dict[str, bytes] = {}
    stop = asyncio.Event()

    async def write(number: int) -> None:
        """A program that makes files, and writes them anew."""
        chance = random.Random(number)
        refs: dict[str, FileRef] = {}
        while not stop.is_set():
            name = f"{number}-{chance.randrange(6)}"
            data = make_data(chance.choice([0, 100, 300_000]), chance.randrange(256))
            try:
                ref = await writing.get_ref(refs[name].inode) if name in refs else await writing.create(name)
            except (errors.Unavailable, errors.TimedOut, errors.Cancelled):
                continue
            except errors.AlreadyExists:
                # It was made, and the answer was lost with the machine: the next try is another operation.
                entry = (await master.stub.resolve_path(f"/data/{name}")).entry
                assert entry is not None and entry.ref is not None
                ref = entry.ref
            fd = await writing.open(worker, ref, truncate=True)
            try:
                os.ftruncate(fd, 0)
                os.pwrite(fd, data, 0)
                sealed = await writing.seal(worker, ref.inode)
                assert sealed.ref is not None
                refs[name], acknowledged[name] = sealed.ref, data
            finally:
                os.close(fd)
            with contextlib.suppress(errors.AlluxioLikeError):
                await worker.drafts.end(ref.inode)

    programs = [asyncio.create_task(write(number)) for number in range(3)]
    try:
        for move in range(MOVES):
            before = len(acknowledged)
            await wait_until(lambda before=before: len(acknowledged) > min(before, 12), "some writes", 60)  # type: ignore[misc]
            lose_machine(master) if not move else _lose_next(master)
            master.home = tmp_path / f"machine-{move}"
            await master.start()
        await asyncio.sleep(0.5)
    finally:
        stop.set()
        await asyncio.gather(*programs)
    await writing.wait_persisted()
    assert writing.list_store() == acknowledged
    await wait_until(lambda: not list((worker.cache / "drafts").iterdir()), "the drafts to end", 60)
    master.end(signal.SIGKILL)
    worker.kill()
    await asyncio.to_thread(assert_whole_disks, None, worker.cache, metadata=master.metadata_url)
    await writing.close()


def _lose_next(master: MasterProcess) -> None:
    """The token lies elsewhere already."""
    master.end(signal.SIGKILL)


@pytest.mark.timeout(300)
async def test_metadata_moves_from_a_database_to_a_home_and_back(
    master: MasterProcess, postgresql_server: PostgresqlServer, tmp_path: Path
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a").write_bytes(b"a")
    options = {"endpoint": "http://127.0.0.1:1", "access_key": "me", "secret_key": SECRET}
    await master.stub.mount(MountSpec("/far", "s3://bucket", options, skip_check=True))
    await master.stub.mount(MountSpec("/data", f"file://{tmp_path / 'files'}"))
    assert (await master.stub.resolve_path("/data/a")).entry is not None

    def move(source: Metadata, target: Metadata, name: str) -> None:
        file = tmp_path / name
        write_backup(file, source, token_file=None, on_progress=lambda _pairs, _size: None)
        assert SECRET.encode() in file.read_bytes().partition(b"\n")[2].partition(b"\n")[0], "the mounts' secrets go along"
        restore(file, target, replace=False, on_progress=lambda _pairs, _size: None)

    async def check() -> None:
        await master.start()
        secrets = {
            info.path: (await master.stub.get_mount_secrets(info.mount_id)).secrets for info in await master.stub.list_mounts()
        }
        assert secrets == {"/far": {"access_key": "me", "secret_key": SECRET}, "/data": {}}
        assert (await master.stub.resolve_path("/data/a")).entry is not None

    home, url = master.home, master.metadata_url
    # While it serves.
    await asyncio.to_thread(move, Metadata(home, url), Metadata(tmp_path / "there"), "first")
    master.end(signal.SIGKILL)
    master.home, master.metadata_url = tmp_path / "there", ""
    await check()
    second = postgresql_server.get_url(schema=postgresql_server.make_schema())
    back = Metadata(tmp_path / "back", second)
    await asyncio.to_thread(move, Metadata(master.home), back, "second")
    master.end(signal.SIGKILL)
    master.home, master.metadata_url = tmp_path / "back", second
    await check()
    assert json.loads((tmp_path / "there/secrets.json").read_text())
    master.end(signal.SIGKILL)
    await asyncio.to_thread(assert_whole_disks, None, metadata=second)
