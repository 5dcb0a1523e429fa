"""A master on PostgreSQL loses its machine (kill -9, its home removed) and is started elsewhere: nothing is lost."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from alluxio_like import errors
from alluxio_like.rpc.messages import JobState, LoadSpec, MountSpec
from alluxio_like.types import InodeId
from tests.crash.test_master_kill import RUN, MasterProcess, list_all, make_files
from tests.servers.postgresql import PostgresqlServer
from tests.unit.master_parts import FakeWorker, wait_until

SECRET = "hush-hush-secret"


@pytest.fixture
async def master(postgresql_server: PostgresqlServer, tmp_path: Path) -> AsyncIterator[MasterProcess]:
    url = postgresql_server.get_url(schema=postgresql_server.make_schema())
    made = MasterProcess(tmp_path, metadata_url=url)
    await made.start()
    yield made
    await made.close()


def lose_machine(master: MasterProcess) -> None:
    """All that is left is the token, which lies in a file of its own elsewhere, as with a cluster that is run in earnest."""
    kept = master.directory / "token"
    shutil.copy2(master.home / "token", kept)
    master.end(signal.SIGKILL)
    shutil.rmtree(master.home)
    master.home = master.directory / "elsewhere"
    master.token_file = kept


async def test_nothing_is_lost(master: MasterProcess, tmp_path: Path) -> None:
    files = tmp_path / "files"
    await make_files(files, 1000)
    options = {"endpoint": "http://127.0.0.1:1", "access_key": "me", "secret_key": SECRET}
    s3 = await master.stub.mount(MountSpec("/far", "s3://bucket", options, skip_check=True))
    await master.stub.mount(MountSpec("/data", f"file://{files}"), operation_id="first")
    before = {}
    for number in range(7):
        entry = (await master.stub.resolve_path(f"/data/d{number}")).entry
        assert entry is not None
        before[number] = {one.name: one.attr for one in await list_all(master, InodeId(entry.attr.inode))}
    await master.stub.set_pinned("/data/d3", pinned=True)
    worker = FakeWorker("w", master.stub, master.token)
    await worker.start()
    try:
        worker.most_loads = 300
        paths = [f"/data/d{number % 7}/{number:05}" for number in range(1000)]
        job_id = await master.stub.submit_load(LoadSpec(), paths)
        await wait_until(lambda: len(worker.loads) >= worker.most_loads, "the loading")
        lose_machine(master)
        worker.most_loads = 1 << 60
        await master.start()
        assert sorted(info.path for info in await master.stub.list_mounts()) == ["/data", "/far"]
        assert (await master.stub.get_mount_secrets(s3.mount_id)).secrets == {"access_key": "me", "secret_key": SECRET}
        # A repeat of what was done before is answered and not done again.
        assert (await master.stub.mount(MountSpec("/data", f"file://{files}"), operation_id="first")).path == "/data"
        for number, known in before.items():
            entry = (await master.stub.resolve_path(f"/data/d{number}")).entry
            assert entry is not None
            entries = await list_all(master, InodeId(entry.attr.inode))
            assert {one.name: one.attr for one in entries} == known
            assert all(one.ref is not None and one.ref.pinned == (number == 3) for one in entries)
        async with asyncio.timeout(120):
            *_, job = [state async for state in master.stub.watch_job(job_id)]
        assert (job.state, job.done_files, job.path_count) == (JobState.DONE, 1000, 1000)
    finally:
        await worker.kill()


async def test_secrets_are_nowhere_in_the_clear(
    master: MasterProcess, postgresql_server: PostgresqlServer, tmp_path: Path
) -> None:
    await master.stub.mount(MountSpec("/far", "s3://bucket", {"access_key": "me", "secret_key": SECRET}, skip_check=True))
    with psycopg.connect(master.metadata_url) as connection:
        rows = connection.execute("SELECT key || value FROM alluxio_like_pairs").fetchall()
    stored = b"".join(row[0] for row in rows)
    assert b"secret/" in stored
    for word in (SECRET.encode(), master.token.encode()):
        assert word not in stored
    assert master.end(signal.SIGTERM) == 0
    for path in [*(tmp_path / "home").rglob("*"), tmp_path / "master.log"]:
        if path.is_file():
            data = path.read_bytes()
            assert SECRET.encode() not in data
            assert postgresql_server.password.encode() not in data


async def test_another_token_is_refused(master: MasterProcess, tmp_path: Path) -> None:
    lose_machine(master)
    kept, master.token_file = master.token_file, None
    assert kept is not None
    other = tmp_path / "other"
    other.touch(0o600)
    other.write_text("something else\n")
    for file, words in ((None, "whose token is not in"), (other, "the token is not that of cluster")):
        master.token_file = file
        with pytest.raises(AssertionError, match=words) as caught:
            await master.start()
        assert "config_error: " in str(caught.value).splitlines()[-1] or "give --token-file" in str(caught.value)
    master.token_file = kept
    await master.start()


async def test_a_master_whose_place_is_taken_stops(
    master: MasterProcess, postgresql_server: PostgresqlServer, tmp_path: Path
) -> None:
    """By force, as an operator would who knows that the other must not go on; else the second is told who is there."""
    second = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RUN, str(_write_second(master, tmp_path))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith("conflict: another master (process ")
    with psycopg.connect(master.metadata_url, autocommit=True) as connection:
        connection.execute("UPDATE alluxio_like_place SET epoch = epoch + 1")
    assert master.process is not None
    assert await asyncio.to_thread(master.process.wait, 60) == 1


async def test_reads_go_on_while_the_database_is_away(
    master: MasterProcess, postgresql_server: PostgresqlServer, tmp_path: Path
) -> None:
    await make_files(tmp_path / "files", 70)
    await master.stub.mount(MountSpec("/data", f"file://{tmp_path / 'files'}", sync_interval_s=-1))
    assert len(await list_all(master, InodeId((await master.stub.resolve_path("/data/d1")).entry.attr.inode))) == 10  # type: ignore[union-attr]
    postgresql_server.stop()
    try:
        entry = (await master.stub.resolve_path("/data/d1")).entry
        assert entry is not None
        assert len(await list_all(master, InodeId(entry.attr.inode))) == 10
        pinning = asyncio.create_task(master.stub.set_pinned("/data/d1", pinned=True))
        # It waits for the database, within the I/O timeout; who reads does not.
        done, _ = await asyncio.wait({pinning}, timeout=1.0)
        assert not done
        assert (await master.stub.resolve_path("/data/d1")).entry is not None
    finally:
        postgresql_server.start()
    assert await pinning == 10
    with pytest.raises(errors.NotFound):
        await master.stub.set_pinned("/data/d1/absent", pinned=True)


def _write_second(master: MasterProcess, tmp_path: Path) -> Path:
    """The configuration of a second master on the same database."""
    config = json.loads((master.directory / "master.json").read_text())
    config |= {"home": str(tmp_path / "second"), "bind": "127.0.0.1:0", "ready_file": None}
    config |= {"token_file": str(master.home / "token")}
    file = tmp_path / "second.json"
    file.write_text(json.dumps(config))
    return file
