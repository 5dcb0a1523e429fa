"""A master in this process over stores in memory, and workers that are real servers with a dictionary for a cache."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alluxio_like import errors
from alluxio_like.config import MasterConfig
from alluxio_like.master import app
from alluxio_like.rpc.auth import Guard, read_token
from alluxio_like.rpc.changes import ChangesStub
from alluxio_like.rpc.channel import RpcChannel, open_channel
from alluxio_like.rpc.drafts import add_drafts_service
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.messages import (
    BlockDelta,
    CheckResult,
    FileResult,
    FreeResult,
    Heartbeat,
    Job,
    LoadFile,
    LoadProgress,
    MountSpec,
    Throttle,
    WorkerStatus,
)
from alluxio_like.rpc.server import RpcServer, create_server
from alluxio_like.rpc.worker_servicer import add_worker_services
from alluxio_like.types import PAGE_BYTES, FileId, FileRef, InodeId, Worker, WorkerId, get_block_count, get_full_mask
from alluxio_like.ufs.memory import MemoryUfs
from alluxio_like.ufs.memory_writing import WritableMemoryUfs

BLOCK = 64 * PAGE_BYTES


async def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
    """Wait for a condition, with a deadline."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


class FakeWorker:
    """A worker over a dictionary: (file, block) -> bits. `hold` stops loads, `failures` are codes by key."""

    def __init__(
        self, name: str, master: MasterStub, token: str, *, capacity_bytes: int = 10 << 30, usable_bytes: int | None = None
    ) -> None:
        self.worker_id = WorkerId(name)
        self.cached: dict[tuple[FileId, int], int] = {}
        self.refs: dict[FileId, FileRef] = {}
        self.changes: list[BlockDelta] = []
        self.pinned: set[FileId] = set()
        self.failures: dict[str, str] = {}
        self.persisted: list[InodeId] = []
        self.stale: set[str] = set()
        self.lose_once: set[str] = set()
        self.bad_once: set[str] = set()
        self.hold = asyncio.Event()
        self.hold.set()
        self.most_loads = 1 << 60
        self.loads: list[tuple[LoadFile, float]] = []
        self.throttles: list[Throttle] = []
        self.rates: dict[str, float] = {}
        self.fetched_bytes = 0
        self.bandwidth = 0.0
        self.calls = 0
        """Calls for loads that had files."""
        self.show_pinned = False
        self.report_gate = asyncio.Event()
        self.report_gate.set()
        self.reporting = False
        self.capacity_bytes = capacity_bytes
        self.usable_bytes = usable_bytes
        self._master = master
        self._token = token
        self._server: RpcServer | None = None
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self.session = 0
        self.registered = 0
        self.beats = 0
        """Heartbeats that were answered."""

    async def start(self, bind: str = "127.0.0.1:0") -> None:
        self._server = create_server(bind, guard=Guard(self._token))
        add_worker_services(self._server.grpc_server, data=self, admin=self)
        add_drafts_service(self._server.grpc_server, self)
        await self._server.start()
        self.session += 1
        before = self.registered
        self._task = asyncio.create_task(self._live())
        await wait_until(lambda: self.registered > before, "the worker to register")

    def describe(self) -> Worker:
        assert self._server is not None
        used = sum(bits.bit_count() for bits in self.cached.values()) * PAGE_BYTES
        pinned = used if self.show_pinned else 0
        return Worker(
            self.worker_id, self._server.address, f"host-{self.worker_id}", "", self.capacity_bytes, used_bytes=used,
            pinned_bytes=pinned, usable_bytes=self.usable_bytes,
        )  # fmt: skip

    async def _live(self) -> None:
        registered = False
        sequence = 0
        while True:
            with contextlib.suppress(errors.AlluxioLikeError):
                if not registered:
                    session = f"s{self.session}"
                    await self._master.register(self.describe(), "", session, timeout_s=30)
                    everything = [self._delta(file_id, block) for file_id, block in self.cached]
                    self.changes.clear()

                    async def chunks(deltas: list[BlockDelta] = everything) -> AsyncIterator[list[BlockDelta]]:
                        await self.report_gate.wait()
                        yield deltas

                    self.reporting = True
                    await self._master.report_blocks(self.worker_id, session, chunks())
                    self.reporting = False
                    registered = True
                    self.registered += 1
                sequence += 1
                sent, self.changes = self.changes, []
                throttles, self.throttles = self.throttles, []
                beat = Heartbeat(self.worker_id, f"s{self.session}", sequence, tuple(sent), self.describe(), tuple(throttles))
                try:
                    reply = await self._master.heartbeat(beat, timeout_s=30)
                except errors.AlluxioLikeError:
                    self.changes = sent + self.changes
                    raise
                self.beats += 1
                registered = not reply.register_again
                self.rates = {share.bucket: share.requests_per_s for share in reply.rates}
            await asyncio.sleep(0.03)

    def _delta(self, file_id: FileId, block: int) -> BlockDelta:
        bits = self.cached.get((file_id, block), 0)
        size = min(BLOCK, self.refs[file_id].size - block * BLOCK) if bits else 0
        return BlockDelta(file_id, block, bits, size)

    def forget(self, file_id: FileId) -> None:
        """Lose a file without telling the master."""
        for key in [key for key in self.cached if key[0] == file_id]:
            del self.cached[key]

    async def kill(self) -> None:
        """Vanish without a word."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(0)

    # -- the handlers

    async def load_files(self, job_id: str, files: Sequence[LoadFile], bandwidth_bytes_s: float) -> AsyncIterator[LoadProgress]:
        self.bandwidth = bandwidth_bytes_s
        if not files:
            return
        self.calls += 1
        # One call after the other: so what was asked for first is there first.
        async with self._turn:
            async for progress in self._load(files, bandwidth_bytes_s):
                yield progress

    async def _load(self, files: Sequence[LoadFile], bandwidth_bytes_s: float) -> AsyncIterator[LoadProgress]:
        loaded = skipped = requests = 0
        results: list[FileResult] = []
        await asyncio.sleep(0)
        for number, file in enumerate(files):
            if number % 16 == 0:
                await asyncio.sleep(0)
            await self.hold.wait()
            while len(self.loads) >= self.most_loads:
                await asyncio.sleep(0.01)
            self.loads.append((file, bandwidth_bytes_s))
            ref = file.ref
            code = "stale" if ref.fingerprint.token in self.stale else self.failures.get(ref.key, "")
            if code:
                results.append(FileResult(ref.file_id, code=code, message=f"told to: {code}"))
                continue
            blocks = file.blocks or tuple(range(get_block_count(ref.size)))
            self.refs[ref.file_id] = ref
            there = bool(blocks) and all((ref.file_id, block) in self.cached for block in blocks)
            size = 0
            for block in blocks:
                size += min(BLOCK, ref.size - block * BLOCK)
                if ref.key in self.lose_once:
                    continue
                self.cached[ref.file_id, block] = get_full_mask(ref.size, block)
                self.changes.append(self._delta(ref.file_id, block))
            self.lose_once.discard(ref.key)
            results.append(FileResult(ref.file_id, skipped=there))
            if there:
                skipped += size
            else:
                self.fetched_bytes += size
                loaded += size
                requests += 1
            if len(results) >= 16:
                yield LoadProgress(loaded, skipped, requests, tuple(results))
                loaded = skipped = requests = 0
                results = []
        yield LoadProgress(loaded, skipped, requests, tuple(results))

    async def check_files(self, files: Sequence[LoadFile], *, verify: bool) -> AsyncIterator[CheckResult]:
        for file in files:
            ref = file.ref
            blocks = file.blocks or range(get_block_count(ref.size))
            missing = sum(
                get_full_mask(ref.size, b).bit_count() - self.cached.get((ref.file_id, b), 0).bit_count() for b in blocks
            )
            bad = 0
            if verify and ref.key in self.bad_once:
                self.bad_once.discard(ref.key)
                self.forget(ref.file_id)
                bad = 1
            yield CheckResult(ref.file_id, missing, bad)

    async def free_files(self, files: Sequence[FileId], *, force: bool) -> FreeResult:
        freed = kept = 0
        for file_id in files:
            if file_id in self.pinned and not force:
                kept += 1
                continue
            for key in [key for key in self.cached if key[0] == file_id]:
                freed += self._delta(*key).present_bytes
                del self.cached[key]
                self.changes.append(BlockDelta(file_id, key[1], 0, 0))
        return FreeResult(len(files) - kept, freed, kept)

    async def set_pinned(self, files: Sequence[FileId], *, pinned: bool) -> None:
        self.pinned = self.pinned | set(files) if pinned else self.pinned - set(files)

    async def get_status(self) -> WorkerStatus:
        return WorkerStatus(self.describe(), (), 0)

    async def touch(self, files: Sequence[Any]) -> None:
        return

    async def persist(self, inodes: Sequence[InodeId]) -> int:
        self.persisted += inodes
        return len(inodes)

    async def begin(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    seal = end = begin

    def read(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def fill(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class Cluster:
    """A master, its stub, and what hangs on them; take it down with `close`."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.home = home
        self.stores: dict[str, MemoryUfs] = {}
        self.workers: list[FakeWorker] = []
        self.is_written = False
        """Whether its stores can be written."""
        self._settings = {
            "io_timeout_s": 5.0,
            "sync_interval_s": 300.0,
            "worker_timeout_s": 20.0,
            "page_entries": 100,
            **settings,
        }
        self._channel: RpcChannel | None = None

    def _open(
        self, uri: str, options: Mapping[str, str], *, secrets: Mapping[str, str], on_request: Any, io_timeout_s: float
    ) -> Any:
        store = self.stores[uri]
        store._on_request = on_request
        return _Written(store) if self.is_written else _Shared(store)

    async def start(self, bind: str = "127.0.0.1:0") -> None:
        config = MasterConfig(home=self.home, bind=bind, http_bind="", **self._settings)
        self.master = await app.start(config, opener=self._open)
        self.token = read_token(Path(self.master.token_file))
        self._channel = open_channel(self.master.address, token=self.token)
        self.stub = MasterStub(self._channel, timeout_s=60)
        self.changes = ChangesStub(self._channel, timeout_s=60)

    async def add_store(self, path: str = "/data", uri: str = "s3://bucket/data", **options: Any) -> MemoryUfs:
        store = self.stores[uri] = MemoryUfs(name="bucket")
        await self.stub.mount(MountSpec(path, uri, **options))
        return store

    async def add_worker(self, name: str, **settings: Any) -> FakeWorker:
        worker = FakeWorker(name, self.stub, self.token, **settings)
        self.workers.append(worker)
        await worker.start()
        return worker

    async def lose(self, worker: FakeWorker) -> None:
        """Kill it, and have the master take it for silent for too long the next time it looks."""
        await worker.kill()
        self.master.registry._members[worker.worker_id].seen_s = float("-inf")

    async def load(self, *paths: str, **spec: Any) -> Job:
        """Submit a load and wait for its end."""
        return await self.wait_job(await self.submit(*paths, **spec))

    async def submit(self, *paths: str, **spec: Any) -> Any:
        from alluxio_like.rpc.messages import LoadSpec

        return await self.stub.submit_load(LoadSpec(**spec), list(paths))

    async def wait_job(self, job_id: Any) -> Job:
        last = None
        async with asyncio.timeout(60):
            async for job in self.stub.watch_job(job_id):
                last = job
        assert last is not None
        assert last.state.ended
        return last

    async def stop_master(self) -> None:
        assert self._channel is not None
        await self._channel.close()
        await self.master.close()

    async def close(self) -> None:
        for worker in self.workers:
            worker.hold.set()
            await worker.kill()
        await self.stop_master()


class _Shared(MemoryUfs):
    """A store that outlives its closing: the test holds it, and all that it keeps."""

    def __init__(self, store: MemoryUfs) -> None:
        self.__dict__ = store.__dict__

    async def close(self) -> None:
        return


class _Written(WritableMemoryUfs):
    """The same, of one that can be written and lists all keys below a prefix."""

    def list_flat(self, *arguments: Any, **settings: Any) -> Any:
        return self.store.list_flat(*arguments, **settings)

    async def close(self) -> None:
        return
