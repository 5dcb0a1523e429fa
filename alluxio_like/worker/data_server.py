"""The worker's data socket: cached bytes for other workers and for clients, moved by `sendfile`.

Owns the listening socket, its connections, and how a read is answered: from the cache file by `sendfile`, a small one from memory
at once, and what is not (wholly) cached by the handler that serves gRPC too, which fetches it. Does not own what is kept or
fetched.

Whole pages go out with the checksums of the index, and the receiver compares. Parts of pages have none: such a page is verified
here
first, at most once a minute. A cache file is held from before its bits are read until its bytes are sent, so that nothing of it
is evicted meanwhile.

Rule of concurrency: one event loop; frames with bytes of files are sent by threads, one thread on a connection at a time.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from alluxio_like import errors
from alluxio_like.cache.checksum import compute_checksum
from alluxio_like.cache.file import CachedFile
from alluxio_like.cache.reader import get_nowait_flag
from alluxio_like.cache.scratch import get_scratch
from alluxio_like.cache.store import CacheStore
from alluxio_like.metrics import Metrics
from alluxio_like.rpc import data_wire as wire
from alluxio_like.rpc.messages import Filled, Priority
from alluxio_like.types import PAGE_BYTES, FileId, FileRef, PageRange, get_pages
from alluxio_like.waits import Waits
from alluxio_like.worker.data_caller import Caller
from alluxio_like.worker.data_outbox import Frame
from alluxio_like.worker.disk import DiskQueue

_LOG = logging.getLogger(__name__)

MEMORY_BYTES = 256 << 10
"""A read up to this size is copied out of the page cache on the loop (about 20 us); a thread and sendfile would take longer."""
_FRAME_BYTES = 1 << 20
"""Bytes of a file behind one head: what the receiver can verify and pass on."""
_MAX_CONNECTIONS = 4096
_TRUST_S = 60.0
"""How long a page of which parts are sent is taken for good after it was verified. A guess."""
_TRUSTED_FILES = 4096
_TOLD_S = 0.0005
"""A shorter wait of a read is not worth a message of its own. A guess."""
_REFS = 4096


class ReadHandler(Protocol):
    """Answers what is not in the cache; as DataHandler of rpc/worker_servicer.py."""

    def read(
        self, ref: FileRef, offset: int, length: int, *, priority: Priority, cached_only: bool, waits: Waits | None = None
    ) -> AsyncIterator[bytes | bytearray | memoryview]: ...

    def fill(self, ref: FileRef, offset: int, length: int, *, priority: Priority) -> AsyncIterator[Filled]: ...

    def read_ahead(self, ref: FileRef, offset: int, length: int, *, priority: Priority) -> None:
        """The caller is about to ask for these bytes, in several reads: fetch them at once, if they are kept here."""
        ...

    def note_read(self, ref: FileRef, read_bytes: int) -> None:
        """Bytes were given to a reader out of the cache."""
        ...


NoteBad = Callable[[FileId, Sequence[int], FileRef | None], None]
"""Told of pages that were dropped because they were bad."""


class _Trust:
    """Pages that were verified a short while ago, by file and generation."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._files: OrderedDict[FileId, tuple[int, float, int]] = OrderedDict()

    def has(self, file: CachedFile, page: int) -> bool:
        known = self._files.get(file.file_id)
        return known is not None and known[0] == file.generation and known[1] > self._monotonic() and bool(known[2] >> page & 1)

    def add(self, file: CachedFile, page: int) -> None:
        now = self._monotonic()
        generation, until, bits = self._files.pop(file.file_id, (file.generation, now + _TRUST_S, 0))
        if generation != file.generation or until <= now:
            until, bits = now + _TRUST_S, 0
        self._files[file.file_id] = (file.generation, until, bits | 1 << page)
        if len(self._files) > _TRUSTED_FILES:
            self._files.popitem(last=False)


class DataServer:
    """Bound when made; answers from `start` on. `get_cluster_id` gives None while the worker has not joined."""

    def __init__(
        self,
        *,
        sock: socket.socket,
        worker_id: str,
        nonce: str,
        get_cluster_id: Callable[[], str | None],
        store: CacheStore,
        handler: ReadHandler,
        sends: DiskQueue,
        reads: DiskQueue,
        metrics: Metrics,
        patience_s: float,
        note_bad: NoteBad = lambda _file_id, _pages, _ref: None,
    ) -> None:
        self.worker_id = worker_id
        self.nonce = nonce
        self.get_cluster_id = get_cluster_id
        self.handler = handler
        self.sends = sends
        self.metrics = metrics
        self.patience_s = patience_s
        """How long a receiver may take nothing before it is given up."""
        self.under_way = 0
        """Reads and fills that wait for something, of all connections."""
        self._note_bad = note_bad
        self._sock = sock
        self._store = store
        self._reads = reads
        self._connections: set[Caller] = set()
        self._loop = asyncio.get_running_loop()
        self._trust = _Trust(self._loop.time)
        self._nowait = [get_nowait_flag(fd) for fd in store.directory_fds]
        self._refs: dict[bytes, FileRef] = {}
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Accept connections."""
        self._loop.add_reader(self._sock.fileno(), self._accept)

    async def stop(self) -> None:
        """Close everything; returns when no thread uses any of it. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        connections = list(self._connections)
        for connection in connections:
            connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(one.wait_closed() for one in connections), return_exceptions=True)

    def forget(self, connection: Caller) -> None:
        """A connection is no more."""
        self._connections.discard(connection)
        self.metrics.data_connections.set(len(self._connections))

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    _LOG.warning("no data connection can be accepted now: %s", error)
                    self._loop.remove_reader(self._sock.fileno())
                    self._loop.call_later(0.5, self._accept_again)
                    return
                continue
            if len(self._connections) >= _MAX_CONNECTIONS:
                sock.close()
                continue
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                # No SO_SNDBUF: a size that is set is bounded by wmem_max (208 KiB) and ends the kernel's own growing of it to 4
                # MiB.
            self._connections.add(Caller(self, sock))
            self.metrics.data_connections.set(len(self._connections))

    def _accept_again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    # Reads.

    def get_ref(self, encoded: bytes) -> FileRef:
        """A content from its description, which the same readers send again and again."""
        ref = self._refs.get(encoded)
        if ref is None:
            ref = wire.decode_ref(encoded)
            if len(self._refs) >= _REFS:
                self._refs.clear()
            self._refs[encoded] = ref
        return ref

    def make_frames(self, call: wire.Call, ref: FileRef) -> list[Frame] | None:
        """The answer to a read if all of it is cached and at hand; None: it takes waiting."""
        if not 0 <= call.offset < call.offset + call.length <= ref.size:
            return None
        file = self._store.lookup_content(ref)
        if file is None:
            return None
        try:
            fd = file.hold()
        except (errors.AlluxioLikeError, OSError):
            return None
        frames: list[Frame] | None = None
        try:
            frames = self._make_held(call, ref, file, fd)
        except (errors.AlluxioLikeError, OSError):
            # What is wrong with it will be found out by the long way.
            frames = None
        finally:
            # Frames of the file have taken holds of their own.
            file.release()
        return frames

    def _make_held(self, call: wire.Call, ref: FileRef, file: CachedFile, fd: int) -> list[Frame] | None:
        end = call.offset + call.length
        pages = get_pages(call.offset, call.length, ref.size)
        # Looked at after the file was opened: pages that are there now stay, while it is held.
        runs = file.get_present_runs(pages)
        if len(runs) != 1 or runs[0].pages != pages:
            return None
        sums = runs[0].checksums
        parts = _split(call.offset, end, ref.size)
        for start, _, whole in parts:
            page = start // PAGE_BYTES
            if not (whole or self._trust.has(file, page) or self._try_trust(file, fd, page, sums[page - pages.first])):
                return None
        if call.length <= MEMORY_BYTES and len(parts) == 1:
            data = self._try_copy(file, fd, call.offset, call.length)
            if data is not None:
                head = wire.pack_data(call.request_id, call.offset, call.length, sums if parts[0][2] else (), last=True)
                return [Frame(call.request_id, head, data, last=True)]
        frames: list[Frame] = []
        try:
            for start, stop, whole in parts:
                first = start // PAGE_BYTES - pages.first
                of_part = sums[first : first + -(-(stop - start) // PAGE_BYTES)] if whole else ()
                file.hold()
                frames.append(Frame.of_file(call.request_id, file, fd, start, stop - start, of_part, last=stop == end))
        except errors.AlluxioLikeError:
            # Removed just now: what was held is let go of.
            for frame in frames:
                frame.drop()
            raise
        return frames

    def _try_trust(self, file: CachedFile, fd: int, page: int, checksum: int) -> bool:
        """Verify a page of which a part is asked for, at once; False: it is to be verified by a thread.

        That takes 0.3 ms if the page is in memory, and by a thread that is woken, and wakes the loop, three times as long: so a
        single random reader is not kept waiting. With other reads under way the loop has better things to do.
        """
        nowait = self._nowait[file.directory] if file.directory < len(self._nowait) else None
        if nowait is None or self.under_way:
            return False
        room = get_scratch(min(PAGE_BYTES, file.size - page * PAGE_BYTES))
        try:
            if os.preadv(fd, (room,), page * PAGE_BYTES, nowait) != len(room):
                return False
        except OSError:
            return False
        if compute_checksum(room) != checksum:
            # What is to be done about it the long way knows.
            return False
        self._trust.add(file, page)
        return True

    def _try_copy(self, file: CachedFile, fd: int, offset: int, length: int) -> bytearray | None:
        """Bytes of a file that are in the page cache; None: it would take waiting for the disk."""
        nowait = self._nowait[file.directory] if file.directory < len(self._nowait) else None
        if nowait is None:
            return None
        data = bytearray(length)
        try:
            return data if os.preadv(fd, (data,), offset, nowait) == length else None
        except OSError:
            # EAGAIN for the most part; whatever else it is, sendfile will say.
            return None

    async def verify_parts(self, call: wire.Call, ref: FileRef) -> bool:
        """Verify pages of which only a part was asked for; True: the read can be tried again without the long way."""
        file = self._store.lookup_content(ref)
        if file is None or not 0 <= call.offset < call.offset + call.length <= ref.size:
            return False
        found = False
        for start, _, whole in _split(call.offset, call.offset + call.length, ref.size):
            page = start // PAGE_BYTES
            if whole or self._trust.has(file, page):
                continue
            one = PageRange(page, page + 1)
            try:
                bad = await self._reads.submit(lambda one=one: file.verify(one), alone=True)  # type: ignore[misc]
            except (errors.AlluxioLikeError, OSError):
                return False
            if bad:
                self._note_bad(file.file_id, bad, ref)
            if bad or file.missing_pages(one):
                return False
            self._trust.add(file, page)
            found = True
        return found

    def look_at(self, ref: FileRef, page: int) -> None:
        """Somebody says that a page is bad: verify it, and drop it if so."""
        file = self._store.lookup_content(ref)
        if file is not None and 0 <= page * PAGE_BYTES < ref.size:
            self.verify_later(file, page)

    def verify_later(self, file: CachedFile, page: int) -> None:
        """Have a thread verify a page, which drops it when it is bad."""

        async def verify() -> None:
            with contextlib.suppress(errors.AlluxioLikeError, OSError):
                bad = await self._reads.submit(lambda: file.verify(PageRange(page, page + 1)))
                self._note_bad(file.file_id, bad, None)

        self.keep(asyncio.create_task(verify(), name="verify a page"))

    def keep(self, task: "asyncio.Task[None]") -> None:
        """Hold on to a task until it has ended."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _split(start: int, end: int, size: int) -> list[tuple[int, int, bool]]:
    """A range as (start, stop, whether it consists of whole pages), each the bytes of one frame."""
    parts = []
    while start < end:
        page_end = min(start - start % PAGE_BYTES + PAGE_BYTES, size)
        if start % PAGE_BYTES or page_end > end:
            stop, whole = min(page_end, end), False
        else:
            stop, whole = min(start + _FRAME_BYTES, end), True
            if stop % PAGE_BYTES and stop != size:
                stop -= stop % PAGE_BYTES
        parts.append((start, stop, whole))
        start = stop
    return parts


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Conflict."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(512)
    except OSError as error:
        sock.close()
        raise errors.Conflict(
            f"cannot listen on {host}:{port} for data ({error.strerror}): it is in use, or no address of this machine",
            subject="data_bind",
        ) from error
    return sock
