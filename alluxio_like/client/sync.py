"""The client of a cluster, synchronous.

Owns the blocking front of Client. A SyncClient holds nothing but its configuration and, in each process that uses it, a runtime
(runtime.py) made on first use: so it may be forked, spawned and pickled freely; so may a File. Any number of threads may use one.
"""

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from alluxio_like.client.client import MANY_BYTES, Client
from alluxio_like.client.descriptor import LocalDescriptor
from alluxio_like.client.many import SmallFiles, iter_files
from alluxio_like.client.reading import FileReader
from alluxio_like.client.runtime import RuntimeClosed, RuntimeHolder
from alluxio_like.client.tree import make_batch
from alluxio_like.client.writing import Data
from alluxio_like.config import ClientConfig
from alluxio_like.errors import InvalidArgument, IsADirectory, NotADirectory, TimedOut
from alluxio_like.rpc.messages import (
    CacheStatus,
    FreeResult,
    FsTotals,
    Job,
    LoadSpec,
    MountInfo,
    MountSpec,
    ProblemPage,
    Report,
    SyncInterval,
    SyncResult,
    TreePage,
)
from alluxio_like.types import Cluster, Entry, InodeId, JobId, Kind

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


class SyncClient:
    """Blocking front of Client; see there for what each call means and raises, and docs/python.md for examples."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._holder = RuntimeHolder(config)

    def __repr__(self) -> str:
        return f"SyncClient({self.config.master!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (SyncClient, (self.config,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what this process has opened. Using the client again opens it anew."""
        self._holder.close()

    def _iterate(self, make: Callable[[Client], AsyncGenerator[T]]) -> Iterator[T]:
        runtime = self._holder.get()
        stream = make(runtime.client)
        try:
            while True:
                try:
                    item = runtime.run(anext(stream))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if not runtime.closed:
                runtime.run(stream.aclose())

    # names

    def stat(self, path: str, *, sync: bool = False) -> Entry:
        """Raises NotFound. `sync` asks the store first."""
        return self._holder.run(lambda client: client.get_path(path, sync=sync))

    def get_entry(self, inode: InodeId) -> Entry:
        """An inode by its id. Raises NotFound."""
        entry = self._holder.run(lambda client: client.get_entry(inode)).entry
        assert entry is not None
        return entry

    def list_dir(self, path: str) -> Iterator[Entry]:
        """All of a directory, page by page. Raises NotFound, NotADirectory."""
        entry = self.stat(path)
        if entry.attr.kind is not Kind.DIRECTORY:
            raise NotADirectory("not a directory", subject=path)
        cursor = b""
        while True:
            # Page by page and not as one stream, so that a fork between two pages does no harm.
            page = self._holder.run(lambda client, cursor=cursor: client.list_dir(entry.attr.inode, cursor))  # type: ignore[misc]
            yield from page.entries
            cursor = page.next_cursor
            if not cursor:
                return

    def open(self, path: str) -> "File":
        """A file for reading; it stays with the content that `path` has now."""
        return File(self, self.stat(path), path)

    def read(self, path: str) -> bytes:
        """All of a file."""
        with self.open(path) as file:
            return file.read()

    def open_local(self, path: str, *, fill: bool = True) -> LocalDescriptor:
        """The cache file's own descriptor, for io_uring, GPUDirect Storage or mmap; see Client.open_local. Close it, or use
        `with`.
        """
        return self._holder.run(lambda client: client.open_local(path, fill=fill))

    def read_many(
        self, paths: Iterable[str], *, max_bytes: int = MANY_BYTES, verify: bool = False
    ) -> Iterator[tuple[str, bytes]]:
        """Each path with all bytes of its file, in their order: for many small files; see Client.read_many."""
        if isinstance(paths, str):
            raise InvalidArgument("paths are to be a list of paths, not one string", subject=paths)
        return iter_files(
            paths,
            self._get_small,
            lambda part, through: self._holder.run(lambda client: client.bring_many(part, max_bytes, through)),
            verify=verify,
        )

    def _get_small(self) -> SmallFiles:
        while True:
            runtime = self._holder.get()
            try:
                return runtime.client.small_files
            except AttributeError:
                # Closed just now, by a fork in another thread.
                if not runtime.closed:
                    raise

    def write_file(self, path: str, data: Data, *, mode: int = 0o644) -> Entry:
        """Make a file, or give it another content; see TreeWriter.write_file."""
        return self._holder.run(lambda client: client.writing.write_file(path, data, mode=mode))

    def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = False) -> Entry:
        """Make a directory; `parents`: those above it too, and one that is there is fine."""
        return self._holder.run(lambda client: client.writing.mkdir(path, mode=mode, parents=parents))

    def remove(self, path: str) -> None:
        """Remove a file or symbolic link."""
        self._holder.run(lambda client: client.writing.remove(path))

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self._holder.run(lambda client: client.writing.rmdir(path))

    def rename(self, path: str, new_path: str, *, no_replace: bool = False) -> None:
        """Rename within one mount, over what is there unless `no_replace`."""
        self._holder.run(lambda client: client.writing.rename(path, new_path, no_replace=no_replace))

    def sync_path(self, path: str, *, recursive: bool = False) -> SyncResult:
        return self._holder.run(lambda client: client.sync_path(path, recursive=recursive))

    def stat_fs(self) -> FsTotals:
        return self._holder.run(lambda client: client.stat_fs())

    # mounts

    def mount(self, spec: MountSpec, *, operation_id: str = "") -> MountInfo:
        return self._holder.run(lambda client: client.mount(spec, operation_id=operation_id))

    def unmount(self, path: str, *, force: bool = False, operation_id: str = "") -> None:
        self._holder.run(lambda client: client.unmount(path, force=force, operation_id=operation_id))

    def list_mounts(self) -> list[MountInfo]:
        return self._holder.run(lambda client: client.list_mounts())

    def set_sync_interval(self, path: str, interval_s: float) -> SyncInterval:
        return self._holder.run(lambda client: client.set_sync_interval(path, interval_s))

    def get_sync_interval(self, path: str) -> SyncInterval:
        return self._holder.run(lambda client: client.get_sync_interval(path))

    # the cluster and its caches

    def get_cluster(self) -> Cluster:
        return self._holder.run(lambda client: client.get_cluster())

    def submit_load(self, paths: Iterable[str], spec: LoadSpec = LoadSpec(), *, operation_id: str = "") -> JobId:
        """Begin to load; `wait_job` waits for its end."""
        if isinstance(paths, str):
            raise InvalidArgument("paths are to be a list of paths, not one string", subject=paths)
        listed: Sequence[str] = paths if isinstance(paths, Sequence) else list(paths)
        return self._holder.run(lambda client: client.submit_load(spec, listed, operation_id=operation_id))

    def get_job(self, job_id: JobId) -> Job:
        return self._holder.run(lambda client: client.get_job(job_id))

    def list_jobs(self) -> list[Job]:
        return self._holder.run(lambda client: client.list_jobs())

    def list_tree(self, path: str = "/", *, unless: "TreeListing | None" = None) -> "TreeListing":
        """All below a directory as Arrow record batches, which come as they are iterated over (the extra `arrow`).

        `unless`: an earlier listing of it that was read to its end. If the tree has not changed since, nothing is read
        again: the new listing is `unchanged` and has no batches.
        """
        mark = unless.mark if unless is not None else 0
        return TreeListing(self._iterate(lambda client: client.list_tree(path, unless=mark)))

    def watch_job(self, job_id: JobId) -> Iterator[Job]:
        """States until the job has ended."""
        return self._iterate(lambda client: client.watch_job(job_id))

    def wait_job(self, job_id: JobId, *, timeout_s: float | None = None) -> Job:
        """The job once it has ended. Raises TimedOut; the job goes on."""
        return self._holder.run(lambda client: _wait_job(client, job_id, timeout_s))

    def cancel_job(self, job_id: JobId, *, operation_id: str = "") -> Job:
        return self._holder.run(lambda client: client.cancel_job(job_id, operation_id=operation_id))

    def list_job_problems(self, job_id: JobId, cursor: int = 0) -> ProblemPage:
        return self._holder.run(lambda client: client.list_job_problems(job_id, cursor))

    def get_cache_status(self, path: str) -> CacheStatus:
        return self._holder.run(lambda client: client.get_cache_status(path))

    def free(self, path: str, *, force: bool = False, operation_id: str = "") -> FreeResult:
        return self._holder.run(lambda client: client.free(path, force=force, operation_id=operation_id))

    def set_pinned(self, path: str, *, pinned: bool, operation_id: str = "") -> int:
        """How many files it concerns."""
        return self._holder.run(lambda client: client.set_pinned(path, pinned=pinned, operation_id=operation_id))

    def report(self) -> Report:
        return self._holder.run(lambda client: client.report())


async def _wait_job(client: Client, job_id: JobId, timeout_s: float | None) -> Job:
    job: Job | None = None
    try:
        async with asyncio.timeout(timeout_s):
            async for state in client.watch_job(job_id):
                job = state
    except TimeoutError:
        raise TimedOut(f"job {job_id} has not ended within {timeout_s:g} s", subject=job_id) from None
    assert job is not None
    return job


class TreeListing:
    """The batches of a tree: directory, name, kind, inode, size, mtime, etag. Iterated over once."""

    def __init__(self, pages: Iterator[TreePage]) -> None:
        self._pages = pages
        self.mark = 0
        """Names what the tree was, once all of it is here; 0: it changed meanwhile."""
        self.unchanged = False

    def __iter__(self) -> "Iterator[pa.RecordBatch]":
        for page in self._pages:
            self.mark, self.unchanged = page.mark, page.unchanged
            if len(page.columns):
                yield make_batch(page)


class File(io.RawIOBase):
    """An open file: one content, to the end. A raw binary stream; picklable, and usable after fork (each with its own position).

    `pread` needs no position and may be called from any number of threads.
    """

    def __init__(self, client: SyncClient, entry: Entry, path: str) -> None:
        super().__init__()
        if entry.attr.kind is Kind.DIRECTORY:
            raise IsADirectory("a directory has no bytes to read", subject=path)
        self._client = client
        self._reader: tuple[Client, FileReader] | None = None
        self._position = 0
        self.entry = entry
        self.path = path
        self.name = path
        self.mode = "rb"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self._client, self.entry, self.path, self._position))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.entry.attr.size

    def pread(self, length: int, offset: int) -> bytes:
        """The bytes of a range, fewer only at the end of the file."""
        self._check_open()
        return self._client._holder.run(lambda client: self._read_on(client, offset, length))

    async def _read_on(self, client: Client, offset: int, length: int) -> bytes:
        # On the loop's thread: no other call is between the check and the making.
        if self._reader is None or self._reader[0] is not client:
            self._reader = (client, client.open_file(self.entry))
        return bytes(await self._reader[1].read(offset, length))

    def read(self, size: int | None = -1, /) -> bytes:
        """From the position on, `size` bytes or all there are; fewer only at the end of the file."""
        left = max(0, self.size - self._position)
        data = self.pread(left if size is None or size < 0 else min(size, left), self._position)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """From the position to the end."""
        return self.read(-1)

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer from the position on; the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position; returns it."""
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise InvalidArgument(f"no position: {base + offset}", subject=self.path)
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        if not self.closed:
            reader, self._reader = self._reader, None
            runtime = self._client._holder.peek()
            if reader is not None and runtime is not None:
                # A reader of another runtime went with it.
                with contextlib.suppress(RuntimeClosed):
                    runtime.run(reader[1].close() if runtime.client is reader[0] else asyncio.sleep(0))
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def _reopen(client: SyncClient, entry: Entry, path: str, position: int) -> File:
    file = File(client, entry, path)
    file.seek(position)
    return file
