"""The master's services as the wire sees them, over handlers in our own types.

Owns the handler Protocols that the master implements and the adapters that convert to and from protobuf. Not here: errors,
request ids and tokens (server.py's interceptor does them for every method). Handlers raise errors of our tree; anything else
becomes Internal. Rule of concurrency: every call runs as a task of the server's loop; a handler is cancelled when its caller
has gone or its deadline has passed (`rpc.context.get_remaining_s` tells how long it has).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Protocol

import grpc.aio

from alluxio_like.rpc import convert, convert_report
from alluxio_like.rpc.messages import (
    ArchiveStatus,
    BlockLocation,
    BlockReport,
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
from alluxio_like.rpc.streams import closing
from alluxio_like.rpc.v1 import common_pb2, master_pb2, master_pb2_grpc
from alluxio_like.types import Cluster, FileId, InodeId, JobId, MountId, Worker, WorkerId, to_bytes, to_str


class NamespaceHandler(Protocol):
    """Names, attributes, listings. All calls are idempotent."""

    async def lookup(self, parent: InodeId, name: str) -> LookupResult:
        """One name in one directory. Raises NotFound, NotADirectory for the parent; a missing name is an answer."""
        ...

    async def lookup_many(self, lookups: Sequence[tuple[InodeId, str]]) -> list[LookupResult]:
        """Many names, answered in their order."""
        ...

    async def resolve_path(self, path: str, *, sync: bool) -> LookupResult:
        """An absolute path; a missing component gives entry None."""
        ...

    async def get_entry(self, inode: InodeId) -> LookupResult:
        """An inode by its id. Raises NotFound."""
        ...

    async def list_dir(self, inode: InodeId, cursor: bytes, limit: int) -> DirPage:
        """One page; `cursor` empty at the start, `limit` 0 leaves it to the master. Raises NotFound, NotADirectory."""
        ...

    async def sync(self, path: str | None, inode: InodeId | None, *, recursive: bool) -> SyncResult:
        """Ask the store again about a path or an inode (one of them is given), whatever the sync interval says."""
        ...

    def list_tree(self, path: str, unless: int) -> AsyncIterator[TreePage]:
        """All below a directory; one page that says so if it still is what it was when the mark `unless` was given."""
        ...

    async def stat_fs(self, inode: InodeId | None = None) -> FsTotals:
        """Totals, and the room at an inode."""
        ...


class MountsHandler(Protocol):
    """The mount table."""

    async def mount(self, operation_id: str, spec: MountSpec) -> MountInfo: ...

    async def unmount(self, operation_id: str, path: str, *, force: bool) -> None: ...

    async def list_mounts(self) -> list[MountInfo]: ...

    async def set_sync_interval(self, operation_id: str, path: str, interval_s: float) -> SyncInterval:
        """0 takes the directory's own setting away; negative: never."""
        ...

    async def get_sync_interval(self, path: str) -> SyncInterval: ...

    async def get_mount_secrets(self, mount_id: MountId) -> MountSecrets:
        """Only callers with the cluster token get here."""
        ...

    async def get_archive_status(self, mount_id: MountId, key: str) -> ArchiveStatus: ...

    async def restore(self, mount_id: MountId, key: str, days: int, tier: str) -> ArchiveStatus: ...


class WorkersHandler(Protocol):
    """What workers tell the master. All but get_cluster and locate need the cluster token."""

    async def register(self, worker: Worker, cluster_id: str, session_id: str) -> RegisterResult: ...

    async def report_blocks(self, worker_id: WorkerId, session_id: str, chunks: AsyncIterator[BlockReport]) -> None:
        """A full report in chunks; it replaces what was known of this worker once the last chunk is here."""
        ...

    async def heartbeat(self, heartbeat: Heartbeat) -> HeartbeatResult: ...

    async def leave(self, worker_id: WorkerId, session_id: str) -> None: ...

    async def get_cluster(self) -> Cluster: ...

    async def locate(self, files: Sequence[FileId]) -> list[tuple[BlockLocation, ...]]:
        """Who holds blocks of these files, in the order of the request."""
        ...


class CacheHandler(Protocol):
    """Jobs and what else is done to cached data."""

    async def submit_load(self, operation_id: str, spec: LoadSpec, paths: AsyncIterator[Sequence[str]]) -> JobId:
        """`paths` are absolute namespace paths or store URIs, in as many pieces as they came."""
        ...

    async def get_job(self, job_id: JobId) -> Job: ...

    async def list_jobs(self) -> list[Job]: ...

    def watch_job(self, job_id: JobId) -> AsyncIterator[Job]:
        """The state at once and at each change, a few times a second at most, until the job has ended."""
        ...

    async def cancel_job(self, operation_id: str, job_id: JobId) -> Job: ...

    async def list_job_problems(self, job_id: JobId, cursor: int) -> ProblemPage: ...

    async def get_cache_status(self, path: str) -> CacheStatus: ...

    async def free(self, operation_id: str, path: str, *, force: bool) -> FreeResult: ...

    async def set_pinned(self, operation_id: str, path: str, *, pinned: bool) -> int:
        """How many files it concerns."""
        ...

    async def report(self) -> Report: ...


def add_master_services(
    server: grpc.aio.Server,
    *,
    namespace: NamespaceHandler,
    mounts: MountsHandler,
    workers: WorkersHandler,
    cache: CacheHandler,
) -> None:
    """Make a server (see rpc.server) answer with these handlers."""
    add: Any = master_pb2_grpc
    add.add_NamespaceServicer_to_server(_Namespace(namespace), server)
    add.add_MountsServicer_to_server(_Mounts(mounts), server)
    add.add_WorkersServicer_to_server(_Workers(workers), server)
    add.add_CacheServicer_to_server(_Cache(cache), server)


class _Namespace:
    def __init__(self, handler: NamespaceHandler) -> None:
        self._handler = handler

    async def Lookup(self, request: master_pb2.LookupRequest, _: Any) -> master_pb2.LookupReply:
        return convert.lookup_reply(await self._handler.lookup(InodeId(request.parent), to_str(request.name)))

    async def LookupMany(self, request: master_pb2.LookupManyRequest, _: Any) -> master_pb2.LookupManyReply:
        lookups = [(InodeId(one.parent), to_str(one.name)) for one in request.lookups]
        results = await self._handler.lookup_many(lookups)
        return master_pb2.LookupManyReply(replies=[convert.lookup_reply(result) for result in results])

    async def ResolvePath(self, request: master_pb2.ResolvePathRequest, _: Any) -> master_pb2.LookupReply:
        return convert.lookup_reply(await self._handler.resolve_path(to_str(request.path), sync=request.sync))

    async def GetEntry(self, request: master_pb2.GetEntryRequest, _: Any) -> master_pb2.LookupReply:
        return convert.lookup_reply(await self._handler.get_entry(InodeId(request.inode)))

    async def ListDir(self, request: master_pb2.ListDirRequest, _: Any) -> master_pb2.ListDirReply:
        page = await self._handler.list_dir(InodeId(request.inode), request.cursor, request.limit)
        return convert.list_dir_reply(page)

    async def Sync(self, request: master_pb2.SyncRequest, _: Any) -> master_pb2.SyncReply:
        path = to_str(request.path) if request.path else None
        inode = InodeId(request.inode) if request.inode else None
        result = await self._handler.sync(path, inode, recursive=request.recursive)
        return master_pb2.SyncReply(
            directories=result.directories, added=result.added, removed=result.removed, replaced=result.replaced
        )

    async def ListTree(self, request: master_pb2.ListTreeRequest, _: Any) -> AsyncGenerator[master_pb2.TreePage]:
        pages = self._handler.list_tree(to_str(request.path), request.unless)
        async with closing(pages):
            async for one in pages:
                yield convert.tree_page(one)

    async def StatFs(self, request: master_pb2.StatFsRequest, _: Any) -> master_pb2.StatFsReply:
        return convert.fs_totals_reply(await self._handler.stat_fs(InodeId(request.inode) or None))


class _Mounts:
    def __init__(self, handler: MountsHandler) -> None:
        self._handler = handler

    async def Mount(self, request: master_pb2.MountRequest, _: Any) -> master_pb2.MountReply:
        info = await self._handler.mount(request.operation_id, convert.to_mount_spec(request))
        return master_pb2.MountReply(mount=convert.mount_info(info))

    async def Unmount(self, request: master_pb2.UnmountRequest, _: Any) -> master_pb2.UnmountReply:
        await self._handler.unmount(request.operation_id, to_str(request.path), force=request.force)
        return master_pb2.UnmountReply()

    async def ListMounts(self, request: master_pb2.ListMountsRequest, _: Any) -> master_pb2.ListMountsReply:
        mounts = await self._handler.list_mounts()
        return master_pb2.ListMountsReply(mounts=[convert.mount_info(info) for info in mounts])

    async def SetSyncInterval(self, request: master_pb2.SetSyncIntervalRequest, _: Any) -> master_pb2.SyncIntervalReply:
        found = await self._handler.set_sync_interval(request.operation_id, to_str(request.path), request.interval_s)
        return master_pb2.SyncIntervalReply(interval_s=found.interval_s, set_at=to_bytes(found.set_at))

    async def GetSyncInterval(self, request: master_pb2.GetSyncIntervalRequest, _: Any) -> master_pb2.SyncIntervalReply:
        found = await self._handler.get_sync_interval(to_str(request.path))
        return master_pb2.SyncIntervalReply(interval_s=found.interval_s, set_at=to_bytes(found.set_at))

    async def GetMountSecrets(self, request: master_pb2.GetMountSecretsRequest, _: Any) -> master_pb2.MountSecrets:
        result = await self._handler.get_mount_secrets(MountId(request.mount_id))
        return master_pb2.MountSecrets(mount=convert.mount_info(result.mount), secrets=dict(result.secrets))

    async def GetArchiveStatus(self, request: master_pb2.GetArchiveStatusRequest, _: Any) -> master_pb2.ArchiveStatus:
        status = await self._handler.get_archive_status(MountId(request.mount_id), to_str(request.key))
        return master_pb2.ArchiveStatus(state=status.state, storage_class=status.storage_class, until_ns=status.until_ns)

    async def Restore(self, request: master_pb2.RestoreRequest, _: Any) -> master_pb2.ArchiveStatus:
        status = await self._handler.restore(MountId(request.mount_id), to_str(request.key), request.days, request.tier)
        return master_pb2.ArchiveStatus(state=status.state, storage_class=status.storage_class, until_ns=status.until_ns)


class _Workers:
    def __init__(self, handler: WorkersHandler) -> None:
        self._handler = handler

    async def Register(self, request: master_pb2.RegisterRequest, _: Any) -> master_pb2.RegisterReply:
        worker = convert.to_worker(request.worker)
        result = await self._handler.register(worker, request.cluster_id, request.session_id)
        return master_pb2.RegisterReply(cluster_id=result.cluster_id, cluster=convert.cluster_view(result.cluster))

    async def ReportBlocks(self, requests: AsyncIterator[master_pb2.BlockReport], _: Any) -> master_pb2.ReportBlocksReply:
        first = await anext(aiter(requests), None)
        if first is None:
            return master_pb2.ReportBlocksReply()

        async def chunks() -> AsyncIterator[BlockReport]:
            yield convert.to_block_report(first)
            async for message in requests:
                yield convert.to_block_report(message)

        await self._handler.report_blocks(WorkerId(first.worker_id), first.session_id, chunks())
        return master_pb2.ReportBlocksReply()

    async def Heartbeat(self, request: master_pb2.HeartbeatRequest, _: Any) -> master_pb2.HeartbeatReply:
        result = await self._handler.heartbeat(convert.to_heartbeat(request))
        return convert.heartbeat_reply(result)

    async def Leave(self, request: master_pb2.LeaveRequest, _: Any) -> master_pb2.LeaveReply:
        await self._handler.leave(WorkerId(request.worker_id), request.session_id)
        return master_pb2.LeaveReply()

    async def GetCluster(self, request: master_pb2.GetClusterRequest, _: Any) -> common_pb2.ClusterView:
        return convert.cluster_view(await self._handler.get_cluster())

    async def Locate(self, request: master_pb2.LocateRequest, _: Any) -> master_pb2.LocateReply:
        located = await self._handler.locate([convert.to_file_id(file) for file in request.files])
        files = [
            master_pb2.FileLocations(
                blocks=[
                    master_pb2.BlockLocation(
                        block=one.block, worker_id=one.worker_id, present_bits=one.present_bits, bytes=one.present_bytes
                    )
                    for one in locations
                ]
            )
            for locations in located
        ]
        return master_pb2.LocateReply(files=files)


class _Cache:
    def __init__(self, handler: CacheHandler) -> None:
        self._handler = handler

    async def SubmitLoad(self, requests: AsyncIterator[master_pb2.SubmitLoadRequest], _: Any) -> master_pb2.SubmitLoadReply:
        first = await anext(aiter(requests), master_pb2.SubmitLoadRequest())

        async def pieces() -> AsyncIterator[Sequence[str]]:
            yield [to_str(path) for path in first.paths]
            async for message in requests:
                yield [to_str(path) for path in message.paths]

        job_id = await self._handler.submit_load(first.operation_id, convert.to_load_spec(first.spec), pieces())
        return master_pb2.SubmitLoadReply(job_id=job_id)

    async def GetJob(self, request: master_pb2.GetJobRequest, _: Any) -> master_pb2.Job:
        return convert.job(await self._handler.get_job(JobId(request.job_id)))

    async def ListJobs(self, request: master_pb2.ListJobsRequest, _: Any) -> master_pb2.ListJobsReply:
        jobs = await self._handler.list_jobs()
        return master_pb2.ListJobsReply(jobs=[convert.job(one) for one in jobs])

    async def WatchJob(self, request: master_pb2.GetJobRequest, _: Any) -> AsyncGenerator[master_pb2.Job]:
        states = self._handler.watch_job(JobId(request.job_id))
        async with closing(states):
            async for one in states:
                yield convert.job(one)

    async def CancelJob(self, request: master_pb2.CancelJobRequest, _: Any) -> master_pb2.Job:
        return convert.job(await self._handler.cancel_job(request.operation_id, JobId(request.job_id)))

    async def ListJobProblems(self, request: master_pb2.ListJobProblemsRequest, _: Any) -> master_pb2.ListJobProblemsReply:
        page = await self._handler.list_job_problems(JobId(request.job_id), request.cursor)
        problems = [convert.job_problem(problem) for problem in page.problems]
        return master_pb2.ListJobProblemsReply(problems=problems, next_cursor=page.next_cursor)

    async def GetCacheStatus(self, request: master_pb2.CacheStatusRequest, _: Any) -> master_pb2.CacheStatusReply:
        return convert.cache_status_reply(await self._handler.get_cache_status(to_str(request.path)))

    async def Free(self, request: master_pb2.FreeRequest, _: Any) -> master_pb2.FreeReply:
        result = await self._handler.free(request.operation_id, to_str(request.path), force=request.force)
        return master_pb2.FreeReply(files=result.files, bytes=result.freed_bytes, kept_pinned_files=result.kept_pinned_files)

    async def SetPinned(self, request: master_pb2.SetPinnedRequest, _: Any) -> master_pb2.SetPinnedReply:
        path = to_str(request.path)
        files = await self._handler.set_pinned(request.operation_id, path, pinned=request.pinned)
        return master_pb2.SetPinnedReply(files=files)

    async def Report(self, request: master_pb2.ReportRequest, _: Any) -> master_pb2.ReportReply:
        return convert_report.report_reply(await self._handler.report())
