"""Handlers over dictionaries for tests that want a real gRPC server in this process."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from alluxio_like import errors
from alluxio_like.rpc.auth import Guard
from alluxio_like.rpc.channel import RpcChannel, open_channel
from alluxio_like.rpc.master_servicer import add_master_services
from alluxio_like.rpc.messages import (
    BlockDelta,
    BlockReport,
    DirPage,
    Filled,
    FilledPages,
    FsTotals,
    Job,
    JobState,
    LoadSpec,
    LookupResult,
    MountInfo,
    MountSpec,
    Priority,
    SyncInterval,
    Touched,
)
from alluxio_like.rpc.server import RpcServer, create_server
from alluxio_like.rpc.worker_servicer import add_worker_services
from alluxio_like.types import (
    PAGE_BYTES,
    Attr,
    Cluster,
    Entry,
    FileId,
    FileRef,
    Fingerprint,
    InodeId,
    JobId,
    Kind,
    MountId,
    VersionId,
    Worker,
    WorkerId,
    get_pages,
)
from alluxio_like.waits import Cause, Waits

TOKEN = "the-token"


def make_entry(name: str, inode: int, size: int, version: int = 1) -> Entry:
    """A file's entry."""
    attr = Attr(InodeId(inode), Kind.FILE, 0o644, 0, 0, size, 1, 1, 1, VersionId(version))
    ref = FileRef(attr.inode, attr.version, MountId(1), f"data/{name}", Fingerprint(f"etag{inode}.{version}", size))
    return Entry(name, attr, ref)


def make_dir(name: str, inode: int) -> Entry:
    """A directory's entry."""
    return Entry(name, Attr(InodeId(inode), Kind.DIRECTORY, 0o755, 0, 0, 0, 1, 1, 2, VersionId(0)))


class FakeMaster:
    """All four services over a dictionary of one directory (inode 1)."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.cluster = Cluster("c", 1, ())
        self.valid_s = 60.0
        self.calls: list[str] = []
        self.fail: list[Exception] = []
        self.delay_s = 0.0
        self.operations: list[str] = []
        self.seen_paths: list[str] = []
        self.reports: list[tuple[str, list[BlockDelta]]] = []
        self.cancelled = asyncio.Event()
        self.job_states: Iterable[JobState] = [JobState.PLANNING, JobState.RUNNING, JobState.DONE]

    async def _enter(self, call: str) -> None:
        self.calls.append(call)
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.fail:
            raise self.fail.pop(0)

    async def lookup(self, parent: InodeId, name: str) -> LookupResult:
        await self._enter(f"lookup {name}")
        return LookupResult(self.entries.get(name), self.valid_s)

    async def lookup_many(self, lookups: Sequence[tuple[InodeId, str]]) -> list[LookupResult]:
        return [await self.lookup(parent, name) for parent, name in lookups]

    async def resolve_path(self, path: str, *, sync: bool) -> LookupResult:
        await self._enter(f"resolve {path}")
        entry = make_dir("", 1) if path == "/" else self.entries.get(path[1:])
        return LookupResult(entry, self.valid_s)

    async def get_entry(self, inode: InodeId) -> LookupResult:
        await self._enter(f"get_entry {inode}")
        for entry in self.entries.values():
            if entry.attr.inode == inode:
                return LookupResult(entry, self.valid_s)
        raise errors.NotFound("no such inode", subject=str(inode))

    async def list_dir(self, inode: InodeId, cursor: bytes, limit: int) -> DirPage:
        await self._enter("list_dir")
        names = sorted(name for name in self.entries if name.encode("utf-8", "surrogateescape") > cursor)
        page = names[: limit or 1000]
        more = page[-1].encode("utf-8", "surrogateescape") if len(names) > len(page) else b""
        return DirPage(tuple(self.entries[name] for name in page), more, self.valid_s, MountId(1), "data/")

    async def sync(self, path: str | None, inode: InodeId | None, *, recursive: bool) -> Any:
        from alluxio_like.rpc.messages import SyncResult

        await self._enter(f"sync {path} {inode}")
        return SyncResult(1, 0, 0, 0)

    async def stat_fs(self, inode: InodeId | None = None) -> FsTotals:
        await self._enter("stat_fs")
        return FsTotals(len(self.entries), 1, 2, 3)

    async def mount(self, operation_id: str, spec: MountSpec) -> MountInfo:
        self.operations.append(operation_id)
        await self._enter("mount")
        return MountInfo(MountId(1), spec.path, spec.uri, {"secret_key": "***"}, True, 1.0, 0, 0, 5)

    async def unmount(self, operation_id: str, path: str) -> None:
        await self._enter("unmount")

    async def list_mounts(self) -> list[MountInfo]:
        return []

    async def set_sync_interval(self, operation_id: str, path: str, interval_s: float) -> SyncInterval:
        return SyncInterval(interval_s, path)

    async def get_sync_interval(self, path: str) -> SyncInterval:
        return SyncInterval(1.0, "")

    async def get_mount_secrets(self, mount_id: MountId) -> Any:
        from alluxio_like.rpc.messages import MountSecrets

        return MountSecrets(MountInfo(mount_id, "/", "s3://b", {}, True, 1.0, 0, 0, 5), {"secret_key": "hush"})

    async def register(self, worker: Worker, cluster_id: str, session_id: str) -> Any:
        from alluxio_like.rpc.messages import RegisterResult

        return RegisterResult("c", self.cluster)

    async def report_blocks(self, worker_id: WorkerId, session_id: str, chunks: AsyncIterator[BlockReport]) -> None:
        deltas = [delta async for chunk in chunks for delta in chunk.iter_deltas()]
        self.reports.append((worker_id, deltas))

    async def heartbeat(self, heartbeat: Any) -> Any:
        raise errors.Conflict("not here")

    async def leave(self, worker_id: WorkerId, session_id: str) -> None: ...

    async def get_cluster(self) -> Cluster:
        await self._enter("get_cluster")
        return self.cluster

    async def locate(self, files: Sequence[FileId]) -> list[Any]:
        return [() for _ in files]

    async def submit_load(self, operation_id: str, spec: LoadSpec, paths: AsyncIterator[Sequence[str]]) -> JobId:
        self.operations.append(operation_id)
        self.seen_paths = [path async for piece in paths for path in piece]
        await self._enter("submit_load")
        return JobId("j1")

    async def get_job(self, job_id: JobId) -> Job:
        return Job(job_id, JobState.DONE)

    async def list_jobs(self) -> list[Job]:
        return []

    async def watch_job(self, job_id: JobId) -> AsyncIterator[Job]:
        try:
            for state in self.job_states:
                await self._enter("watch")
                yield Job(job_id, state)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def cancel_job(self, operation_id: str, job_id: JobId) -> Job:
        return Job(job_id, JobState.CANCELLED)

    async def list_job_problems(self, job_id: JobId, cursor: int) -> Any:
        raise errors.NotFound("no such job", subject=job_id)

    async def get_cache_status(self, path: str) -> Any:
        raise RuntimeError("password=hunter2")

    async def free(self, operation_id: str, path: str, *, force: bool) -> Any:
        raise errors.NotFound("no such path", subject=path)

    async def set_pinned(self, operation_id: str, path: str, *, pinned: bool) -> int:
        return 3

    async def report(self) -> Any:
        raise TimeoutError


class FakeWorker:
    """Data over dictionaries, with faults to order."""

    def __init__(self) -> None:
        self.contents: dict[FileId, bytes] = {}
        self.reads: list[tuple[int, int, Priority]] = []
        self.fills: list[tuple[int, int, Priority]] = []
        self.touched: list[Touched] = []
        self.fail: list[Exception] = []
        self.always: Exception | None = None
        self.is_replaced = False
        """Whether the store has another content by now; with `keeps_versions` it has the one before too."""
        self.keeps_versions = False
        self.fail_ahead: Exception | None = None
        """What every read ahead ends with; reads that somebody waits for are answered."""
        self.stall = False
        self.cut_after: int | None = None
        self.delay_s = 0.0
        self.delayed_by: Cause | None = None
        """What `delay_s` is said to be for."""
        self.gate: asyncio.Semaphore | None = None
        """Where set: each page of an answer waits until it may pass."""
        self.open_reads = 0
        self.max_open_reads = 0
        self.cancelled = 0
        self.read_through = True
        self.fill_into: Any = None
        self.bad_pages: list[int] = []

    async def read(
        self, ref: FileRef, offset: int, length: int, *, priority: Priority, cached_only: bool, waits: Waits | None = None
    ) -> AsyncIterator[bytes | bytearray | memoryview]:
        self.reads.append((offset, length, priority))
        self.open_reads += 1
        self.max_open_reads = max(self.max_open_reads, self.open_reads)
        try:
            if self.always is not None:
                raise self.always
            if self.is_replaced and not (self.keeps_versions and ref.frozen):
                raise errors.Stale("another content", subject=ref.key)
            if self.fail_ahead is not None and priority is Priority.AHEAD:
                raise self.fail_ahead
            if self.fail:
                raise self.fail.pop(0)
            if self.stall:
                await asyncio.Event().wait()
            content, sent = self.contents[ref.file_id], 0
            while sent < length:
                if self.gate is not None:
                    await self.gate.acquire()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                    if waits is not None and self.delayed_by is not None:
                        waits.add(self.delayed_by, self.delay_s)
                size = min(PAGE_BYTES, length - sent)
                if self.cut_after is not None and sent + size > self.cut_after:
                    self.cut_after = None
                    return
                yield content[offset + sent : offset + sent + size]
                sent += size
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open_reads -= 1

    async def fill(self, ref: FileRef, offset: int, length: int, *, priority: Priority) -> AsyncIterator[Filled]:
        self.fills.append((offset, length, priority))
        if self.always is not None:
            raise self.always
        if self.fail:
            raise self.fail.pop(0)
        if self.stall:
            await asyncio.Event().wait()
        if self.read_through:
            yield Filled(read_through=True)
            return
        pages = get_pages(offset, length, ref.size)
        yield self.fill_into(ref, pages) if self.fill_into else Filled((FilledPages(pages),))

    async def touch(self, files: Sequence[Touched]) -> None:
        self.touched += files

    async def report_bad(self, ref: FileRef, pages: Sequence[int]) -> int:
        self.bad_pages += pages
        return len(pages)

    def load_files(self, job_id: str, files: Sequence[Any], bandwidth_bytes_s: float) -> Any:
        raise errors.Unsupported("not here")

    async def check_files(self, files: Sequence[Any], *, verify: bool) -> AsyncIterator[Any]:
        from alluxio_like.rpc.messages import CheckResult

        for one in files:
            yield CheckResult(one.ref.file_id, 1, 2)

    async def free_files(self, files: Sequence[FileId], *, force: bool) -> Any:
        raise errors.NotFound("no")

    async def set_pinned(self, files: Sequence[FileId], *, pinned: bool) -> None: ...

    async def get_status(self) -> Any:
        raise errors.Unsupported("not here")


@asynccontextmanager
async def serve(
    *, master: FakeMaster | None = None, worker: FakeWorker | None = None, bind: str = "127.0.0.1:0"
) -> AsyncIterator[RpcServer]:
    """A server with these handlers."""
    server = create_server(bind, guard=Guard(TOKEN))
    if master is not None:
        add_master_services(server.grpc_server, namespace=master, mounts=master, workers=master, cache=master)
    if worker is not None:
        add_worker_services(server.grpc_server, data=worker, admin=worker)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@asynccontextmanager
async def connected(server: RpcServer, *, token: str = "") -> AsyncIterator[RpcChannel]:
    """A channel to it."""
    channel = open_channel(server.address, token=token)
    try:
        yield channel
    finally:
        await channel.close()


def make_worker(server: RpcServer, worker_id: str, *, host_id: str = "elsewhere", door_path: str = "") -> Worker:
    """How the cluster view shows a server."""
    return Worker(WorkerId(worker_id), server.address, host_id, door_path, 10**9)


async def wait_until(condition: Any, timeout_s: float = 60.0) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def make_content(size: int, seed: int) -> bytes:
    """Bytes that any process can make again."""
    return random.Random(seed).randbytes(size)


async def _serve_alone(files: int, size: int) -> None:
    """A master and a worker until standard input ends; says the master's address on standard output."""
    master, worker = FakeMaster(), FakeWorker()
    for number in range(files):
        entry = make_entry(f"f{number}", 10 + number, size)
        assert entry.ref is not None
        master.entries[entry.name] = entry
        worker.contents[entry.ref.file_id] = make_content(size, number)
    async with serve(worker=worker) as worker_server, serve(master=master) as server:
        master.cluster = Cluster("c", 1, (make_worker(worker_server, "w"),))
        print(server.address, flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve_alone(int(sys.argv[1]), int(sys.argv[2])))
