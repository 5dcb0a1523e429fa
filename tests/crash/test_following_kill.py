"""kill -9 of the master's process while programs change the namespace and stores follow: in the end each store holds the tree.

One program makes, renames and removes files and directories at random, and uploads what it wrote as a worker does; the model is a
dictionary. Meanwhile the master is killed and started again, again and again. What it had acknowledged is there each time, and
once all has been followed the store holds what the model says, byte for byte, and nothing else. On radosgw, and on a directory.
"""

import asyncio
import itertools
import os
import random
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.rpc.changes import ChangesStub
from alluxio_like.rpc.messages import MountSpec
from alluxio_like.rpc.messages_writing import NewName, Persisted, Renaming, SealedDraft
from alluxio_like.types import Entry, Kind
from alluxio_like.ufs.api import ListPage
from alluxio_like.ufs.open import open_ufs
from alluxio_like.ufs.writing import Expected, Source, WritableUfs, WriteOptions, get_writable
from tests.crash.test_master_kill import MasterProcess
from tests.servers.fixtures import S3Server
from tests.servers.whole import assert_whole_disks

SOAK = bool(os.environ.get("ALLUXIO_LIKE_TEST_SOAK"))
STEPS = 120
KILLS = 4
NAMES = ("a", "b", "c", "d e", "é")


class Program:
    """What changes the tree, and what the tree is to be: contents by path, None for a directory."""

    def __init__(self, master: MasterProcess, ufs: WritableUfs, seed: int) -> None:
        assert master.channel is not None
        self.master = master
        self.changes = ChangesStub(master.channel, timeout_s=60)
        self.ufs = ufs
        self.tree: dict[str, bytes | None] = {"": None}
        self.random = random.Random(seed)
        self.numbers = itertools.count()

    def op(self) -> str:
        return f"{id(self)}-{next(self.numbers)}"

    async def get(self, path: str) -> Entry:
        entry = (await self.master.stub.resolve_path(f"/data/{path}", timeout_s=60)).entry
        assert entry is not None, path
        return entry

    def draw(self, kind: type | None = None) -> str:
        """A path of the tree: of a file (bytes), of a directory, or of either."""
        paths = [path for path, data in self.tree.items() if kind is None or isinstance(data, kind)]
        return self.random.choice(sorted(paths)) if paths else ""

    def draw_new(self) -> str:
        """A path in a directory that is there."""
        directory = self.draw(type(None))
        return f"{directory}/{self.random.choice(NAMES)}".strip("/")

    def below(self, path: str) -> list[str]:
        return [one for one in self.tree if one.startswith(f"{path}/")]

    async def step(self) -> None:
        chosen = self.random.choices([self.write, self.make, self.rename, self.remove], [5, 2, 4, 2])[0]
        await chosen()

    async def write(self) -> None:
        path = self.draw_new()
        if path in self.tree and self.tree[path] is None:
            return
        above, _, name = path.rpartition("/")
        if path not in self.tree:
            new = NewName((await self.get(above)).attr.inode, name, Kind.FILE, 0o644, 0, 0)
            entry = (await self.changes.create(self.op(), new)).entry
        else:
            entry = await self.get(path)
        assert entry is not None
        data = secrets.token_bytes(self.random.randrange(1, 2000))
        sealed = await self.changes.seal(self.op(), SealedDraft(entry.attr.inode, len(data), 5, "w1", 1))
        self.tree[path] = data
        token = secrets.token_hex(16)
        while True:
            try:
                plan = await self.changes.plan_upload(sealed.ref.file_id)
            except errors.Unavailable:
                continue
            fd = os.memfd_create("content")
            try:
                os.write(fd, data)
                options = WriteOptions(token, plan.metadata)
                written = await self.ufs.put(plan.key, Source(fd, 0, len(data)), options, expected=Expected(plan.expected))
            except errors.Conflict:
                # The master that was killed had not heard of something: it is asked again.
                with pytest.raises(errors.Conflict):
                    await self.changes.note_conflict(self.op(), sealed.ref.file_id)
                continue
            finally:
                os.close(fd)
            assert written.fingerprint is not None
            await self.changes.note_persisted([Persisted(sealed.ref.file_id, plan, written.fingerprint)])
            return

    async def make(self) -> None:
        path = self.draw_new()
        if path in self.tree:
            return
        above, _, name = path.rpartition("/")
        await self.changes.create(self.op(), NewName((await self.get(above)).attr.inode, name, Kind.DIRECTORY, 0o755, 0, 0))
        self.tree[path] = None

    async def rename(self) -> None:
        old, new = self.draw(), self.draw_new()
        if not old or old == new or new.startswith(f"{old}/"):
            return
        there, moving = self.tree.get(new, b"" if new not in self.tree else None), self.tree[old]
        if new in self.tree and ((moving is None) != (there is None) or self.below(new)):
            return
        (old_above, _, old_name), (new_above, _, new_name) = old.rpartition("/"), new.rpartition("/")
        parents = (await self.get(old_above)).attr.inode, (await self.get(new_above)).attr.inode
        await self.changes.rename(self.op(), Renaming(parents[0], old_name, parents[1], new_name))
        for path in [old, *self.below(old)]:
            self.tree[new + path[len(old) :]] = self.tree.pop(path)

    async def remove(self) -> None:
        path = self.draw()
        if not path or self.below(path):
            return
        above, _, name = path.rpartition("/")
        directory = self.tree[path] is None
        await self.changes.remove(self.op(), (await self.get(above)).attr.inode, name, directory=directory)
        del self.tree[path]

    async def wait_followed(self) -> None:
        async with asyncio.timeout(120):
            while (found := await self.changes.list_unpersisted("/data")).steps or found.files:
                await asyncio.sleep(0.1)
        assert not found.conflicts

    async def read_store(self) -> dict[str, bytes | None]:
        """The tree that the store holds."""
        found: dict[str, bytes | None] = {"": None}
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            token: str | None = None
            while True:
                page: ListPage = await self.ufs.list_page(prefix, token)
                for entry in page.entries:
                    path = prefix + entry.name
                    if entry.kind is Kind.DIRECTORY:
                        found[path] = None
                        waiting.append(f"{path}/")
                    else:
                        assert entry.fingerprint is not None
                        chunks = self.ufs.read(path, entry.fingerprint, 0, entry.fingerprint.size)
                        found[path] = b"".join([bytes(chunk) async for chunk in chunks])
                token = page.token
                if token is None:
                    break
        return found

    async def read_names(self, path: str = "") -> set[str]:
        """The tree as the master knows it."""
        found = {path}
        entry = await self.get(path)
        if entry.attr.kind is Kind.DIRECTORY:
            page = await self.master.stub.list_dir(entry.attr.inode)
            for child in page.entries:
                found |= await self.read_names(f"{path}/{child.name}".strip("/"))
        return found


@pytest.fixture
async def master(tmp_path: Path) -> AsyncIterator[MasterProcess]:
    made = MasterProcess(tmp_path)
    await made.start()
    yield made
    await made.close()


async def try_kills(master: MasterProcess, uri: str, options: dict[str, str], secret: dict[str, str], seed: int) -> None:
    await master.stub.mount(MountSpec("/data", uri, {**options, **secret, "write": "through"}))
    ufs = get_writable(open_ufs(uri, options, secrets=secret, on_request=lambda _: None, io_timeout_s=20))
    program = Program(master, ufs, seed)
    chance = random.Random(seed)

    async def work() -> None:
        for _ in range(STEPS):
            await program.step()

    working = asyncio.create_task(work())
    try:
        for _ in range(KILLS):
            await asyncio.wait([working], timeout=chance.uniform(0.2, 2.0))
            master.end(signal.SIGKILL)
            await asyncio.to_thread(assert_whole_disks, master.home)
            await master.start()
        await working
        master.end(signal.SIGKILL)
        await master.start()
        assert await program.read_names() == program.tree.keys(), "the namespace, at once"
        await program.wait_followed()
        assert await program.read_store() == program.tree, "the store, in the end"
        await master.stub.sync("/data", recursive=True, timeout_s=60)
        assert await program.read_names() == program.tree.keys(), "the namespace, listed again"
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await ufs.close()
    master.end(signal.SIGKILL)
    await asyncio.to_thread(assert_whole_disks, master.home)


@pytest.mark.parametrize("seed", range(1, 20 if SOAK else 2))
async def test_a_directory_follows_through_kills(master: MasterProcess, tmp_path: Path, seed: int) -> None:
    (tmp_path / "store").mkdir()
    await try_kills(master, f"file://{tmp_path}/store", {}, {}, seed)


@pytest.mark.parametrize("seed", range(1, 20 if SOAK else 3))
async def test_a_bucket_follows_through_kills(master: MasterProcess, s3_server: S3Server, s3_bucket: str, seed: int) -> None:
    await try_kills(master, f"s3://{s3_bucket}/in/here", dict(s3_server.public_options), dict(s3_server.secrets), seed)
