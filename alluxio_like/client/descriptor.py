"""A cache file's own descriptor, for whoever wants to read it by other means than ours: io_uring, GPUDirect Storage, mmap.

Owns how it is come by (from the cache directories that a worker's door gave, else as a single file through the door) and its end.
What keeps its bytes is the kernel: while a descriptor of the file, a copy of it in whatever process, or a mapping lives, it
refuses the write lease without which the worker neither evicts the file in place nor truncates it. Rule of concurrency: `Opener`
belongs to the client's event loop; a LocalDescriptor belongs to nobody, and any thread may use it.
"""

import asyncio
import fcntl
import logging
import os
import socket
import warnings
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Self

from alluxio_like.client.cluster import ClusterTracker
from alluxio_like.client.fetching import OTHER_WORKER_MAY
from alluxio_like.client.local import LocalCaches
from alluxio_like.client.reading import FILL_BYTES, FileReader
from alluxio_like.errors import Corrupt, NotFound, TimedOut
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import Cluster, Entry, FileRef, VersionId, Worker

_log = logging.getLogger(__name__)


class LocalDescriptor:
    """An open cache file, whole: `fileno()` for reading only, at any offset below `size`.

    It stays with the content that it was opened for. Usable after fork, in both processes; to another process it goes like any
    descriptor (socket.send_fds, multiprocessing.reduction.DupFd). Not pickled. Its bytes were compared with their checksums when
    they came.
    """

    def __init__(self, fd: int, entry: Entry, ref: FileRef, path: str, lease: socket.socket | None = None) -> None:
        self._fd = fd
        self._lease = lease
        self.entry = entry
        self.ref = ref
        self.path = path

    def fileno(self) -> int:
        """The descriptor; it is closed with this object. Raises ValueError once it is."""
        if self._fd < 0:
            raise ValueError("I/O operation on closed descriptor")
        return self._fd

    @property
    def size(self) -> int:
        """Bytes."""
        return self.ref.size

    @property
    def version(self) -> VersionId:
        """Of the content, in its inode."""
        return self.ref.version

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Let go. Copies of the descriptor and mappings stay good, and go on keeping the file. May be called twice."""
        fd, self._fd = self._fd, -1
        lease, self._lease = self._lease, None
        if fd >= 0:
            os.close(fd)
        if lease is not None:
            lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return f"LocalDescriptor({self.path!r}, fd={self._fd})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a descriptor belongs to its process: send it with socket.send_fds, or open the path again over there")


class Opener:
    """Finds, or has brought, the cache file that `Client.open_local` hands out."""

    def __init__(
        self,
        cluster: ClusterTracker,
        local: LocalCaches,
        open_file: Callable[[Entry], FileReader],
        *,
        io_timeout_s: float,
    ) -> None:
        self._cluster = cluster
        self._local = local
        self._open_file = open_file
        self._io_timeout_s = io_timeout_s

    async def open(self, entry: Entry, path: str, *, fill: bool) -> LocalDescriptor:
        """See Client.open_local."""
        reader = self._open_file(entry)
        ref = reader.ref
        if not ref.size:
            await reader.close()
            # An empty file has no cache file.
            return LocalDescriptor(os.memfd_create("empty", os.MFD_CLOEXEC), entry, ref, path)
        try:
            view = await self._enter_doors(path)
            found = self._take(reader, entry, path) or await self._ask_doors(view, entry, ref, path)
            if found is None and fill:
                if await reader.fill_whole(Priority.DEMAND):
                    found = self._take(reader, entry, path)
                elif await self._fill_behind_doors(view, ref):
                    found = await self._ask_doors(view, entry, ref, path)
        finally:
            await reader.close()
        if found is None:
            raise NotFound(self._explain(view, filled=fill), subject=path)
        return found

    async def _enter_doors(self, path: str) -> Cluster:
        try:
            async with asyncio.timeout(self._io_timeout_s):
                view = await self._cluster.get_view()
                await self._local.refresh(view)
                return view
        except TimeoutError:
            raise TimedOut(f"no worker's door answered within {self._io_timeout_s:g} s", subject=path) from None

    def _take(self, reader: FileReader, entry: Entry, path: str) -> LocalDescriptor | None:
        file = reader.find_whole()
        if file is None:
            return None
        # A copy: the reader closes its own, and then this one's offset and flags are nobody else's.
        fd = fcntl.fcntl(file.fd, fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            if os.fstat(fd).st_size < reader.size:
                raise Corrupt("the cache file is shorter than it should be", subject=path)
            # It was opened so as not to wait for an eviction; who reads it by other means need not know.
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        except BaseException:
            os.close(fd)
            raise
        reader.note_handed()
        return LocalDescriptor(fd, entry, reader.ref, path)

    async def _ask_doors(self, view: Cluster, entry: Entry, ref: FileRef, path: str) -> LocalDescriptor | None:
        """From a worker whose directories this user may not have."""
        for worker in self._list_doors(view, ref):
            handed = await self._local.ask_door(worker, ref)
            if handed is not None:
                fcntl.fcntl(handed.fd, fcntl.F_SETFL, fcntl.fcntl(handed.fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
                return LocalDescriptor(handed.fd, entry, ref, path, handed.lease)
        return None

    async def _fill_behind_doors(self, view: Cluster, ref: FileRef) -> bool:
        """Have such a worker bring all of a file; whether one says that it did."""
        for worker in self._list_doors(view, ref):
            try:
                if await self._fill_from(worker, ref):
                    return True
            except OTHER_WORKER_MAY as error:
                _log.info("worker %s did not fill a file: %s", worker.address, error)
                self._cluster.note_failure(worker)
        return False

    async def _fill_from(self, worker: Worker, ref: FileRef) -> bool:
        stub = self._cluster.get_stub(worker)
        # In parts, each with the whole of the time: a large file takes as long as it takes, while it goes on.
        for start in range(0, ref.size, FILL_BYTES):
            length = min(FILL_BYTES, ref.size - start)
            stream = stub.fill(ref, start, length, priority=Priority.DEMAND, timeout_s=self._io_timeout_s)
            async with aclosing(stream):
                async for filled in stream:
                    if filled.read_through:
                        return False
        return True

    def _list_doors(self, view: Cluster, ref: FileRef) -> list[Worker]:
        return [worker for worker in self._cluster.rank(view, ref, 0) if self._local.gives_files(worker)]

    def _explain(self, view: Cluster, *, filled: bool) -> str:
        if not any(self._local.is_local(worker) or self._local.gives_files(worker) for worker in view.workers):
            return (
                "no worker on this machine lets this user at its cache files: run one here, as this user or with the user in its "
                "setting door_users, and let its home be reached"
            )
        if filled:
            return (
                "no worker on this machine may keep all of it (the cache is full of what must stay, or the file's blocks are "
                "placed on several workers): read it by open(), or make room"
            )
        return "not wholly in a cache of this machine: load it first, with 'cache load PATH', or leave fill at True"
