"""The client of a cluster, synchronous.

Owns a background event loop per process, on which an asynchronous Client lives, and what makes it safe to fork and pickle: a
SyncClient holds nothing but its configuration; the loop, the channels and the readers are made in each process on first use.
Any number of threads may use one.
"""

from collections.abc import Iterable, Iterator
from typing import Self

from alluxio_like.config import ClientConfig
from alluxio_like.rpc.messages import CacheStatus, FreeResult, FsTotals, Job, LoadSpec, MountInfo, MountSpec, Report, SyncResult
from alluxio_like.types import Entry, InodeId, JobId


class File:
    """An open file: `read`, `pread`, `seek`, `tell`, `close`; a context manager; picklable and usable after fork."""

    size: int


class SyncClient:
    """Blocking front of Client; see there for what each call means and raises."""

    def __init__(self, config: ClientConfig) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Close what this process has opened. Using the client again opens it anew."""
        raise NotImplementedError

    def stat(self, path: str, *, sync: bool = False) -> Entry:
        """Raises NotFound."""
        raise NotImplementedError

    def get_entry(self, inode: InodeId) -> Entry:
        raise NotImplementedError

    def list_dir(self, path: str) -> Iterator[Entry]:
        """All of a directory, page by page. Raises NotFound, NotADirectory."""
        raise NotImplementedError

    def open(self, path: str) -> File:
        raise NotImplementedError

    def read(self, path: str) -> bytes:
        """All of a file."""
        raise NotImplementedError

    def sync_path(self, path: str, *, recursive: bool = False) -> SyncResult:
        raise NotImplementedError

    def stat_fs(self) -> FsTotals:
        raise NotImplementedError

    def mount(self, spec: MountSpec, *, operation_id: str = "") -> MountInfo:
        raise NotImplementedError

    def unmount(self, path: str, *, operation_id: str = "") -> None:
        raise NotImplementedError

    def list_mounts(self) -> list[MountInfo]:
        raise NotImplementedError

    def submit_load(self, paths: Iterable[str], spec: LoadSpec = LoadSpec(), *, operation_id: str = "") -> JobId:
        raise NotImplementedError

    def get_job(self, job_id: JobId) -> Job:
        raise NotImplementedError

    def list_jobs(self) -> list[Job]:
        raise NotImplementedError

    def watch_job(self, job_id: JobId) -> Iterator[Job]:
        """States until the job has ended."""
        raise NotImplementedError

    def wait_job(self, job_id: JobId, *, timeout_s: float | None = None) -> Job:
        """The job once it has ended. Raises TimedOut."""
        raise NotImplementedError

    def cancel_job(self, job_id: JobId, *, operation_id: str = "") -> Job:
        raise NotImplementedError

    def get_cache_status(self, path: str) -> CacheStatus:
        raise NotImplementedError

    def free(self, path: str, *, force: bool = False, operation_id: str = "") -> FreeResult:
        raise NotImplementedError

    def set_pinned(self, path: str, *, pinned: bool, operation_id: str = "") -> int:
        raise NotImplementedError

    def report(self) -> Report:
        raise NotImplementedError
