"""Calls to the master in our own types.

Owns the default deadlines and which calls are repeated: all of them are, within the caller's time, because every one is
idempotent or carries an operation id. Errors are those of the tree (rpc/status.py). Rule of
concurrency: used on the channel's event loop; any number of calls at once.
"""

import itertools
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import Any

from alluxio_like.rpc import convert, convert_report
from alluxio_like.rpc.channel import Method, RpcChannel, call_stream, call_unary, repeat_stream
from alluxio_like.rpc.messages import (
    ArchiveStatus,
    BlockDelta,
    BlockLocation,
    CacheStatus,
    DirPage,
    FreeResult,
    FsTotals,
    Heartbeat,
    HeartbeatResult,
    Job,
    LoadSpec,
    LookupResult,
    MountInfo,
    MountSecrets,
    MountSpec,
    ProblemPage,
    RegisterResult,
    Report,
    SyncInterval,
    SyncResult,
    TreePage,
)
from alluxio_like.rpc.v1 import master_pb2, master_pb2_grpc
from alluxio_like.types import Cluster, FileId, InodeId, JobId, MountId, Worker, WorkerId, to_bytes, to_str

_PATHS_PER_MESSAGE = 1000


def make_operation_id() -> str:
    """An id for one mutating call, the same in all its repeats."""
    return uuid.uuid4().hex


class MasterStub:
    """The master at the other end of a channel. `timeout_s` bounds each call, its repeats included, unless the call says other;
    while it cannot be reached a call is repeated for that long at most, whatever the call says.

    The four services in one: names are those of the handlers in master_servicer. `set_pinned` and `free` are the cache's.
    """

    def __init__(self, channel: RpcChannel, *, timeout_s: float = 30.0) -> None:
        make: Any = master_pb2_grpc
        self._channel = channel
        self._timeout_s = timeout_s
        for name in ("Namespace", "Mounts", "Workers", "Cache"):
            channel.add_stub(name, getattr(make, f"{name}Stub"))

    async def _call(self, stub: str, name: str, request: Any, timeout_s: float | None, *, repeat: bool = True) -> Any:
        timeout = self._timeout_s if timeout_s is None else timeout_s
        # A call that may take long still does not wait long for a master that is not there.
        repeat_s = self._timeout_s if repeat else 0.0
        return await call_unary(Method(self._channel, "master", stub, name), request, timeout, repeat_s=repeat_s)

    async def lookup(self, parent: InodeId, name: str, *, timeout_s: float | None = None, repeat: bool = True) -> LookupResult:
        request = master_pb2.LookupRequest(parent=parent, name=to_bytes(name))
        reply = await self._call("Namespace", "Lookup", request, timeout_s, repeat=repeat)
        return convert.to_lookup_result(reply)

    async def lookup_many(self, lookups: Sequence[tuple[InodeId, str]], *, timeout_s: float | None = None) -> list[LookupResult]:
        requests = [master_pb2.LookupRequest(parent=parent, name=to_bytes(name)) for parent, name in lookups]
        request = master_pb2.LookupManyRequest(lookups=requests)
        reply = await self._call("Namespace", "LookupMany", request, timeout_s)
        return [convert.to_lookup_result(one) for one in reply.replies]

    async def resolve_path(
        self, path: str, *, sync: bool = False, timeout_s: float | None = None, repeat: bool = True
    ) -> LookupResult:
        request = master_pb2.ResolvePathRequest(path=to_bytes(path), sync=sync)
        reply = await self._call("Namespace", "ResolvePath", request, timeout_s, repeat=repeat)
        return convert.to_lookup_result(reply)

    async def get_entry(self, inode: InodeId, *, timeout_s: float | None = None, repeat: bool = True) -> LookupResult:
        request = master_pb2.GetEntryRequest(inode=inode)
        reply = await self._call("Namespace", "GetEntry", request, timeout_s, repeat=repeat)
        return convert.to_lookup_result(reply)

    async def list_dir(self, inode: InodeId, cursor: bytes = b"", limit: int = 0, *, timeout_s: float | None = None) -> DirPage:
        request = master_pb2.ListDirRequest(inode=inode, cursor=cursor, limit=limit)
        reply = await self._call("Namespace", "ListDir", request, timeout_s)
        return convert.to_dir_page(reply)

    async def sync(
        self,
        path: str | None = None,
        inode: InodeId | None = None,
        *,
        recursive: bool = False,
        timeout_s: float | None = None,
    ) -> SyncResult:
        request = master_pb2.SyncRequest(path=to_bytes(path or ""), inode=inode or 0, recursive=recursive)
        reply = await self._call("Namespace", "Sync", request, timeout_s)
        return SyncResult(reply.directories, reply.added, reply.removed, reply.replaced)

    def list_tree(self, path: str, unless: int = 0, *, timeout_s: float | None = None) -> AsyncGenerator[TreePage]:
        """Pages to the last one, which has the mark. No deadline unless one is given."""
        request = master_pb2.ListTreeRequest(path=to_bytes(path), unless=unless)
        method = Method(self._channel, "master", "Namespace", "ListTree")
        return repeat_stream(lambda: call_stream(method, request, timeout_s or 0, convert.to_tree_page), self._timeout_s)

    async def stat_fs(self, inode: InodeId | None = None, *, timeout_s: float | None = None) -> FsTotals:
        request = master_pb2.StatFsRequest(inode=inode or 0)
        reply = await self._call("Namespace", "StatFs", request, timeout_s)
        return convert.to_fs_totals(reply)

    async def mount(self, spec: MountSpec, *, operation_id: str = "", timeout_s: float | None = None) -> MountInfo:
        """An empty operation id is made up; repeats within the call keep it."""
        request = convert.mount_request(operation_id or make_operation_id(), spec)
        reply = await self._call("Mounts", "Mount", request, timeout_s)
        return convert.to_mount_info(reply.mount)

    async def unmount(self, path: str, *, force: bool = False, operation_id: str = "", timeout_s: float | None = None) -> None:
        request = master_pb2.UnmountRequest(operation_id=operation_id or make_operation_id(), path=to_bytes(path), force=force)
        await self._call("Mounts", "Unmount", request, timeout_s)

    async def list_mounts(self, *, timeout_s: float | None = None) -> list[MountInfo]:
        request = master_pb2.ListMountsRequest()
        reply = await self._call("Mounts", "ListMounts", request, timeout_s)
        return [convert.to_mount_info(one) for one in reply.mounts]

    async def set_sync_interval(
        self, path: str, interval_s: float, *, operation_id: str = "", timeout_s: float | None = None
    ) -> SyncInterval:
        """0 takes a directory's own setting away; negative: never."""
        request = master_pb2.SetSyncIntervalRequest(
            operation_id=operation_id or make_operation_id(), path=to_bytes(path), interval_s=interval_s
        )
        reply = await self._call("Mounts", "SetSyncInterval", request, timeout_s)
        return SyncInterval(reply.interval_s, to_str(reply.set_at))

    async def get_sync_interval(self, path: str, *, timeout_s: float | None = None) -> SyncInterval:
        request = master_pb2.GetSyncIntervalRequest(path=to_bytes(path))
        reply = await self._call("Mounts", "GetSyncInterval", request, timeout_s)
        return SyncInterval(reply.interval_s, to_str(reply.set_at))

    async def get_mount_secrets(self, mount_id: MountId, *, timeout_s: float | None = None) -> MountSecrets:
        request = master_pb2.GetMountSecretsRequest(mount_id=mount_id)
        reply = await self._call("Mounts", "GetMountSecrets", request, timeout_s)
        return MountSecrets(convert.to_mount_info(reply.mount), dict(reply.secrets))

    async def get_archive_status(self, mount_id: MountId, key: str, *, timeout_s: float | None = None) -> ArchiveStatus:
        request = master_pb2.GetArchiveStatusRequest(mount_id=mount_id, key=to_bytes(key))
        reply = await self._call("Mounts", "GetArchiveStatus", request, timeout_s)
        return ArchiveStatus(reply.state, reply.storage_class, reply.until_ns)

    async def restore(
        self, mount_id: MountId, key: str, days: int, tier: str, *, timeout_s: float | None = None
    ) -> ArchiveStatus:
        request = master_pb2.RestoreRequest(mount_id=mount_id, key=to_bytes(key), days=days, tier=tier)
        reply = await self._call("Mounts", "Restore", request, timeout_s)
        return ArchiveStatus(reply.state, reply.storage_class, reply.until_ns)

    async def register(
        self, worker: Worker, cluster_id: str, session_id: str, *, timeout_s: float | None = None
    ) -> RegisterResult:
        request = master_pb2.RegisterRequest(worker=convert.worker_info(worker), cluster_id=cluster_id, session_id=session_id)
        reply = await self._call("Workers", "Register", request, timeout_s)
        return RegisterResult(reply.cluster_id, convert.to_cluster(reply.cluster))

    async def report_blocks(
        self,
        worker_id: WorkerId,
        session_id: str,
        chunks: AsyncIterable[Sequence[BlockDelta]],
        *,
        timeout_s: float | None = None,
    ) -> None:
        """A full report; not repeated by itself, since the chunks are gone."""

        async def messages() -> AsyncIterator[master_pb2.BlockReport]:
            # At least one, which says whose report it is, also when it is empty.
            yield master_pb2.BlockReport(worker_id=worker_id, session_id=session_id)
            async for chunk in chunks:
                yield convert.block_report(worker_id, session_id, chunk)

        await self._call("Workers", "ReportBlocks", messages(), timeout_s, repeat=False)

    async def heartbeat(self, heartbeat: Heartbeat, *, timeout_s: float | None = None) -> HeartbeatResult:
        request = convert.heartbeat_request(heartbeat)
        reply = await self._call("Workers", "Heartbeat", request, timeout_s)
        return convert.to_heartbeat_result(reply)

    async def leave(self, worker_id: WorkerId, session_id: str, *, timeout_s: float | None = None) -> None:
        await self._call("Workers", "Leave", master_pb2.LeaveRequest(worker_id=worker_id, session_id=session_id), timeout_s)

    async def get_cluster(self, *, timeout_s: float | None = None) -> Cluster:
        request = master_pb2.GetClusterRequest()
        reply = await self._call("Workers", "GetCluster", request, timeout_s)
        return convert.to_cluster(reply)

    async def locate(self, files: Sequence[FileId], *, timeout_s: float | None = None) -> list[tuple[BlockLocation, ...]]:
        request = master_pb2.LocateRequest(files=[convert.file_id(file) for file in files])
        reply = await self._call("Workers", "Locate", request, timeout_s)
        return [convert.to_locations(one) for one in reply.files]

    async def submit_load(
        self, spec: LoadSpec, paths: Iterable[str], *, operation_id: str = "", timeout_s: float | None = None
    ) -> JobId:
        """`paths` may be long; it is sent in pieces. Repeated only if it is a sequence."""
        operation = operation_id or make_operation_id()

        async def messages() -> AsyncIterator[master_pb2.SubmitLoadRequest]:
            yield master_pb2.SubmitLoadRequest(operation_id=operation, spec=convert.load_spec(spec))
            rest = iter(paths)
            while piece := [to_bytes(path) for path in itertools.islice(rest, _PATHS_PER_MESSAGE)]:
                yield master_pb2.SubmitLoadRequest(paths=piece)

        repeat = isinstance(paths, Sequence)
        request = messages if repeat else messages()
        reply = await self._call("Cache", "SubmitLoad", request, timeout_s, repeat=repeat)
        return JobId(reply.job_id)

    async def get_job(self, job_id: JobId, *, timeout_s: float | None = None) -> Job:
        request = master_pb2.GetJobRequest(job_id=job_id)
        reply = await self._call("Cache", "GetJob", request, timeout_s)
        return convert.to_job(reply)

    async def list_jobs(self, *, timeout_s: float | None = None) -> list[Job]:
        request = master_pb2.ListJobsRequest()
        reply = await self._call("Cache", "ListJobs", request, timeout_s)
        return [convert.to_job(one) for one in reply.jobs]

    def watch_job(self, job_id: JobId, *, timeout_s: float | None = None) -> AsyncGenerator[Job]:
        """States until the job has ended. No deadline unless one is given; a stream that breaks raises Unavailable."""
        request = master_pb2.GetJobRequest(job_id=job_id)
        method = Method(self._channel, "master", "Cache", "WatchJob")
        return repeat_stream(lambda: call_stream(method, request, timeout_s or 0, convert.to_job), self._timeout_s)

    async def cancel_job(self, job_id: JobId, *, operation_id: str = "", timeout_s: float | None = None) -> Job:
        request = master_pb2.CancelJobRequest(operation_id=operation_id or make_operation_id(), job_id=job_id)
        reply = await self._call("Cache", "CancelJob", request, timeout_s)
        return convert.to_job(reply)

    async def list_job_problems(self, job_id: JobId, cursor: int = 0, *, timeout_s: float | None = None) -> ProblemPage:
        request = master_pb2.ListJobProblemsRequest(job_id=job_id, cursor=cursor)
        reply = await self._call("Cache", "ListJobProblems", request, timeout_s)
        return ProblemPage(tuple(convert.to_job_problem(one) for one in reply.problems), reply.next_cursor)

    async def get_cache_status(self, path: str, *, timeout_s: float | None = None) -> CacheStatus:
        request = master_pb2.CacheStatusRequest(path=to_bytes(path))
        reply = await self._call("Cache", "GetCacheStatus", request, timeout_s)
        return convert.to_cache_status(reply)

    async def free(self, path: str, *, force: bool = False, operation_id: str = "", timeout_s: float | None = None) -> FreeResult:
        request = master_pb2.FreeRequest(operation_id=operation_id or make_operation_id(), path=to_bytes(path), force=force)
        reply = await self._call("Cache", "Free", request, timeout_s)
        return convert.to_free_result(reply)

    async def set_pinned(self, path: str, *, pinned: bool, operation_id: str = "", timeout_s: float | None = None) -> int:
        operation = operation_id or make_operation_id()
        request = master_pb2.SetPinnedRequest(operation_id=operation, path=to_bytes(path), pinned=pinned)
        reply = await self._call("Cache", "SetPinned", request, timeout_s)
        return int(reply.files)

    async def report(self, *, timeout_s: float | None = None) -> Report:
        request = master_pb2.ReportRequest()
        reply = await self._call("Cache", "Report", request, timeout_s)
        return convert_report.to_report(reply)
