"""Calls to the master in our own types.

Owns the default deadlines and which calls are repeated: all of them are, within the caller's time, because every one is
idempotent or carries an operation id. Errors are those of the tree (rpc/status.py). Rule of
concurrency: used on the channel's event loop; any number of calls at once.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence

import grpc.aio

from alluxio_like.rpc.messages import (
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
    SyncResult,
)
from alluxio_like.types import Cluster, FileId, InodeId, JobId, MountId, Worker, WorkerId


class MasterStub:
    """The master at the other end of a channel. `timeout_s` bounds each call, its repeats included, unless the call says other.

    The four services in one: names are those of the handlers in master_servicer. `set_pinned` and `free` are the cache's.
    """

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float = 30.0) -> None:
        raise NotImplementedError

    async def lookup(self, parent: InodeId, name: str, *, timeout_s: float | None = None) -> LookupResult:
        raise NotImplementedError

    async def lookup_many(self, lookups: Sequence[tuple[InodeId, str]], *, timeout_s: float | None = None) -> list[LookupResult]:
        raise NotImplementedError

    async def resolve_path(self, path: str, *, sync: bool = False, timeout_s: float | None = None) -> LookupResult:
        raise NotImplementedError

    async def get_entry(self, inode: InodeId, *, timeout_s: float | None = None) -> LookupResult:
        raise NotImplementedError

    async def list_dir(self, inode: InodeId, cursor: bytes = b"", limit: int = 0, *, timeout_s: float | None = None) -> DirPage:
        raise NotImplementedError

    async def sync(
        self,
        path: str | None = None,
        inode: InodeId | None = None,
        *,
        recursive: bool = False,
        timeout_s: float | None = None,
    ) -> SyncResult:
        raise NotImplementedError

    async def stat_fs(self, *, timeout_s: float | None = None) -> FsTotals:
        raise NotImplementedError

    async def mount(self, spec: MountSpec, *, operation_id: str = "", timeout_s: float | None = None) -> MountInfo:
        """An empty operation id is made up; repeats within the call keep it."""
        raise NotImplementedError

    async def unmount(self, path: str, *, operation_id: str = "", timeout_s: float | None = None) -> None:
        raise NotImplementedError

    async def list_mounts(self, *, timeout_s: float | None = None) -> list[MountInfo]:
        raise NotImplementedError

    async def get_mount_secrets(self, mount_id: MountId, *, timeout_s: float | None = None) -> MountSecrets:
        raise NotImplementedError

    async def register(
        self, worker: Worker, cluster_id: str, session_id: str, *, timeout_s: float | None = None
    ) -> RegisterResult:
        raise NotImplementedError

    async def report_blocks(
        self,
        worker_id: WorkerId,
        session_id: str,
        chunks: AsyncIterable[Sequence[BlockDelta]],
        *,
        timeout_s: float | None = None,
    ) -> None:
        """A full report; not repeated by itself, since the chunks are gone."""
        raise NotImplementedError

    async def heartbeat(self, heartbeat: Heartbeat, *, timeout_s: float | None = None) -> HeartbeatResult:
        raise NotImplementedError

    async def leave(self, worker_id: WorkerId, session_id: str, *, timeout_s: float | None = None) -> None:
        raise NotImplementedError

    async def get_cluster(self, *, timeout_s: float | None = None) -> Cluster:
        raise NotImplementedError

    async def locate(self, files: Sequence[FileId], *, timeout_s: float | None = None) -> list[tuple[BlockLocation, ...]]:
        raise NotImplementedError

    async def submit_load(
        self, spec: LoadSpec, paths: Iterable[str], *, operation_id: str = "", timeout_s: float | None = None
    ) -> JobId:
        """`paths` may be long; it is sent in pieces. Repeated only if it is a sequence."""
        raise NotImplementedError

    async def get_job(self, job_id: JobId, *, timeout_s: float | None = None) -> Job:
        raise NotImplementedError

    async def list_jobs(self, *, timeout_s: float | None = None) -> list[Job]:
        raise NotImplementedError

    def watch_job(self, job_id: JobId, *, timeout_s: float | None = None) -> AsyncIterator[Job]:
        """States until the job has ended. No deadline unless one is given; a broken stream raises Unavailable."""
        raise NotImplementedError

    async def cancel_job(self, job_id: JobId, *, operation_id: str = "", timeout_s: float | None = None) -> Job:
        raise NotImplementedError

    async def list_job_problems(self, job_id: JobId, cursor: int = 0, *, timeout_s: float | None = None) -> ProblemPage:
        raise NotImplementedError

    async def get_cache_status(self, path: str, *, timeout_s: float | None = None) -> CacheStatus:
        raise NotImplementedError

    async def free(self, path: str, *, force: bool = False, operation_id: str = "", timeout_s: float | None = None) -> FreeResult:
        raise NotImplementedError

    async def set_pinned(self, path: str, *, pinned: bool, operation_id: str = "", timeout_s: float | None = None) -> int:
        raise NotImplementedError

    async def report(self, *, timeout_s: float | None = None) -> Report:
        raise NotImplementedError
