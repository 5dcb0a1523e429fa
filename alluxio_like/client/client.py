"""The client of a cluster, asynchronous.

Owns the calls that FUSE, CLI and SDK make: names through the metadata cache, files through readers, everything else straight to
the master. Built from parts by `Client.open`; decides nothing itself. Rule of concurrency: everything is called from the one
event loop it was opened on; any number of calls at once. A client belongs to the process that opened it (see sync.py for one that
survives fork and pickling).
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Self

from alluxio_like.config import ClientConfig
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import (
    BlockLocation,
    CacheStatus,
    DirPage,
    FreeResult,
    FsTotals,
    Job,
    LoadSpec,
    LookupResult,
    MountInfo,
    MountSpec,
    ProblemPage,
    Report,
    SyncResult,
)
from alluxio_like.types import Cluster, Entry, FileId, InodeId, JobId


class FileReader:
    """One open file: one content, to the end."""

    entry: Entry
    size: int

    def try_read(self, offset: int, length: int) -> bytes | memoryview | None:
        """The bytes of the range (clipped at the end of the file) if they are at hand without waiting, else None.

        Never blocks on a disk or a peer and never switches tasks. None says nothing about the bytes: use `read`.
        """
        raise NotImplementedError

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Exactly the bytes of the range, clipped at the end of the file; within the client's io_timeout_s.

        Raises Stale when this content is gone from the store and not cached, TimedOut, Store*, Unavailable, AccessDenied.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """End read-ahead and reads under way, let go of descriptors. Does not raise; may be called twice."""
        raise NotImplementedError


class Client:
    """The cluster whose master is at `config.master`. Every call ends within `config.io_timeout_s` unless it says other."""

    @classmethod
    def open(cls, config: ClientConfig, *, metrics: Metrics | None = None) -> Self:
        """No I/O happens before the first call. Raises ConfigError for unreadable certificates or token files."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close all readers, channels and descriptors. May be called twice."""
        raise NotImplementedError

    # names

    async def lookup(self, parent: InodeId, name: str) -> LookupResult:
        """One name in one directory; a missing one gives entry None. `valid_s` is what is left of the answer's time."""
        raise NotImplementedError

    async def lookup_path(self, path: str, *, sync: bool = False) -> LookupResult:
        """An absolute path; `sync` asks the store first. A missing one gives entry None."""
        raise NotImplementedError

    async def get_path(self, path: str, *, sync: bool = False) -> Entry:
        """As `lookup_path`; raises NotFound."""
        raise NotImplementedError

    async def get_entry(self, inode: InodeId) -> LookupResult:
        """An inode by its id, also an orphan that the master still keeps. Raises NotFound; entry is never None."""
        raise NotImplementedError

    async def list_dir(self, inode: InodeId, cursor: bytes = b"", limit: int = 0) -> DirPage:
        """One page of a directory with attributes; what it says is remembered for lookups."""
        raise NotImplementedError

    def iter_dir(self, inode: InodeId) -> AsyncIterator[Entry]:
        """All of a directory, page by page."""
        raise NotImplementedError

    async def sync_path(self, path: str, *, recursive: bool = False) -> SyncResult:
        """Ask the store again about a path; what was remembered is dropped."""
        raise NotImplementedError

    async def stat_fs(self) -> FsTotals:
        raise NotImplementedError

    # files

    def open_file(self, entry: Entry) -> FileReader:
        """A reader of the content that `entry` names (no I/O yet). Raises IsADirectory, InvalidArgument for other kinds."""
        raise NotImplementedError

    # mounts

    async def mount(self, spec: MountSpec, *, operation_id: str = "") -> MountInfo:
        raise NotImplementedError

    async def unmount(self, path: str, *, operation_id: str = "") -> None:
        raise NotImplementedError

    async def list_mounts(self) -> list[MountInfo]:
        raise NotImplementedError

    # the cluster and its caches

    async def get_cluster(self) -> Cluster:
        raise NotImplementedError

    async def locate(self, files: Sequence[FileId]) -> list[tuple[BlockLocation, ...]]:
        """Who holds blocks of these files, by the master's block map; in their order."""
        raise NotImplementedError

    async def submit_load(self, spec: LoadSpec, paths: Iterable[str], *, operation_id: str = "") -> JobId:
        raise NotImplementedError

    async def get_job(self, job_id: JobId) -> Job:
        raise NotImplementedError

    async def list_jobs(self) -> list[Job]:
        raise NotImplementedError

    def watch_job(self, job_id: JobId) -> AsyncIterator[Job]:
        """States until the job has ended; goes on by itself when the master restarts (Unavailable after io_timeout_s of that)."""
        raise NotImplementedError

    async def cancel_job(self, job_id: JobId, *, operation_id: str = "") -> Job:
        raise NotImplementedError

    async def list_job_problems(self, job_id: JobId, cursor: int = 0) -> ProblemPage:
        raise NotImplementedError

    async def get_cache_status(self, path: str) -> CacheStatus:
        raise NotImplementedError

    async def free(self, path: str, *, force: bool = False, operation_id: str = "") -> FreeResult:
        raise NotImplementedError

    async def set_pinned(self, path: str, *, pinned: bool, operation_id: str = "") -> int:
        """How many files it concerns."""
        raise NotImplementedError

    async def report(self) -> Report:
        raise NotImplementedError
