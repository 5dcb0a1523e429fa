"""One fetch under way, shared by all who want its pages.

Owns which of its pages have landed, who waits for which, and the bytes of pages that nothing could keep. Does not fetch: the
fetcher drives it. Rule of concurrency: everything on one event loop.
"""

import asyncio
import enum
from collections.abc import Callable

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile, Role
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import PAGE_BYTES, FileRef, JobId, PageRange
from alluxio_like.waits import Cause, Stopwatch
from alluxio_like.worker.turns import Turn


class State(enum.Enum):
    """QUEUED until the first request may be sent, then RUNNING, then ENDED."""

    QUEUED = 1
    RUNNING = 2
    ENDED = 3


class Flight:
    """Pages [first, stop) of one content, which land in order.

    `role` None: nothing is kept. `held` has the bytes of landed pages that are not in the cache (none could be kept, or the disk
    refused); a landed page that is not held is in the cache file.
    """

    __slots__ = (
        "_ahead",
        "_waiters",
        "cached",
        "error",
        "first",
        "held",
        "job",
        "landed",
        "last_error",
        "on_abandoned",
        "peers",
        "priority",
        "ref",
        "refused",
        "requests",
        "role",
        "source",
        "spent",
        "state",
        "stop",
        "task",
        "turn",
        "users",
    )

    def __init__(
        self,
        ref: FileRef,
        pages: PageRange,
        priority: Priority,
        role: Role | None,
        peers: tuple[tuple[str, bool], ...],
        job: JobId | None,
        now_s: float = 0.0,
    ) -> None:
        self.ref = ref
        self.first = pages.first
        self.stop = pages.stop
        self.landed = pages.first
        """Pages [first, landed) have landed."""
        self.priority = priority
        self.role = role
        self.peers = peers
        """Addresses to ask before the store, each with whether it may only answer from its cache."""
        self.job = job
        self.held: dict[int, memoryview] = {}
        self.cached: CachedFile | None = None
        """The cache file once one was written to; touched by the disk's threads."""
        self.state = State.QUEUED
        self.error: errors.AlluxioLikeError | None = None
        self.last_error: errors.AlluxioLikeError | None = None
        """Of the attempt before, while there are further ones: tells a waiter whose time is up what was wrong."""
        self.refused = False
        """The cache had no room, or its disk failed."""
        self.users = 0
        self.requests = 0
        """Requests to the store."""
        self.source = "store"
        """Where the last bytes came from: store or peer."""
        self.spent = Stopwatch(Cause.QUEUE, now_s)
        """What its time goes into."""
        self.task: asyncio.Task[None] | None = None
        self.turn: Turn | None = None
        self.on_abandoned: Callable[[Flight], None] | None = None
        self._ahead: set[int] = set()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def length_bytes(self) -> int:
        """Bytes of its pages."""
        return min(self.stop * PAGE_BYTES, self.ref.size) - self.first * PAGE_BYTES

    def land(self, first: int, count: int) -> None:
        """Pages are there for everybody to read."""
        self._ahead.update(range(first, first + count))
        while self.landed in self._ahead:
            self._ahead.discard(self.landed)
            self.landed += 1
        if self._waiters:
            self._wake()

    def end(self, error: errors.AlluxioLikeError | None) -> None:
        """Nothing more will land; `error` is for those who still wait."""
        self.state = State.ENDED
        if self.landed < self.stop and error is None:
            error = errors.Internal("a fetch ended early", subject=self.ref.key)
        self.error = error
        self._wake()

    def join(self) -> None:
        """Count one who wants it; pair with `leave`."""
        self.users += 1

    def leave(self) -> None:
        """One less; when nobody is left, the fetcher decides whether it goes on."""
        self.users -= 1
        if self.users == 0 and self.state is not State.ENDED and self.on_abandoned is not None:
            self.on_abandoned(self)

    async def wait_landed(self, page: int) -> None:
        """Return once `page` has landed; raises the flight's error."""
        if page < self.landed:
            return
        if self.state is State.ENDED:
            raise self._copy_error()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((page, waiter))
        try:
            await waiter
        finally:
            if not waiter.done() or waiter.cancelled():
                self._waiters = [item for item in self._waiters if item[1] is not waiter]
        if page >= self.landed:
            raise self._copy_error()

    def _wake(self) -> None:
        ended = self.state is State.ENDED
        rest: list[tuple[int, asyncio.Future[None]]] = []
        for item in self._waiters:
            page, waiter = item
            if not (ended or page < self.landed):
                rest.append(item)
            elif not waiter.done():
                waiter.set_result(None)
        self._waiters = rest

    def _copy_error(self) -> errors.AlluxioLikeError:
        """A new exception for each waiter: one object raised in many tasks grows a traceback for each."""
        error = self.error or errors.Internal("a fetch ended early", subject=self.ref.key)
        return type(error)(error.message, subject=error.subject)


class Assembler:
    """Makes whole pages of one flight out of chunks of any size, copying only what does not fit.

    `first` and `stop` are the pages that the chunks will fill.
    """

    __slots__ = ("_buffer", "_filled", "_size", "page", "stop")

    def __init__(self, first: int, stop: int, size: int) -> None:
        self.page = first
        self.stop = stop
        self._size = size
        self._buffer: bytearray | None = None
        self._filled = 0

    def feed(self, chunk: memoryview) -> list[tuple[int, memoryview]]:
        """The runs of whole pages (first page, bytes) that this chunk completes. Raises StoreProtocol for more than was asked."""
        ready: list[tuple[int, memoryview]] = []
        while len(chunk):
            if self.page >= self.stop:
                raise errors.StoreProtocol("more bytes than asked for")
            if self._buffer is None:
                whole = self._count_whole(len(chunk))
                if whole:
                    taken = min((self.page + whole) * PAGE_BYTES, self._size) - self.page * PAGE_BYTES
                    ready.append((self.page, chunk[:taken]))
                    self.page += whole
                    chunk = chunk[taken:]
                    continue
                self._buffer = bytearray(self._page_bytes(self.page))
                self._filled = 0
            taken = min(len(self._buffer) - self._filled, len(chunk))
            self._buffer[self._filled : self._filled + taken] = chunk[:taken]
            self._filled += taken
            chunk = chunk[taken:]
            if self._filled == len(self._buffer):
                ready.append((self.page, memoryview(self._buffer)))
                self.page += 1
                self._buffer = None
        return ready

    def finish(self) -> None:
        """The chunks have ended. Raises StoreProtocol when bytes are missing."""
        if self.page < self.stop:
            raise errors.StoreProtocol("fewer bytes than asked for")

    def _page_bytes(self, page: int) -> int:
        return min(PAGE_BYTES, self._size - page * PAGE_BYTES)

    def _count_whole(self, length: int) -> int:
        """Whole pages at the start of a chunk of `length` bytes."""
        whole = min(length // PAGE_BYTES, self.stop - self.page)
        rest = self.page + whole
        if rest < self.stop and self._page_bytes(rest) < PAGE_BYTES and length >= self._size - self.page * PAGE_BYTES:
            whole += 1
        return whole
