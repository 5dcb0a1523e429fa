"""An open small file that a worker of another machine has.

All of it is asked for when it is opened, by one message, and lands in memory, verified; reads are answered from there. So between
open and read nothing is created, written or indexed here, and the bytes travel while the kernel does what it does between the
two. What was read once is let go of. Where anything goes wrong, or something is read a second time, an ordinary reader
(reading.py) takes over, which knows all other ways.

Bytes belong to one content (inode, version, fingerprint) and to one open handle: nothing here outlives a file that was replaced.
Rule of concurrency: one event loop; `try_read` neither awaits nor blocks.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine

from alluxio_like.cache.reader import LocalFile
from alluxio_like.client.fetching import Fetcher, OnEnd
from alluxio_like.client.readahead import Budget
from alluxio_like.client.reading import FileReader
from alluxio_like.errors import Internal, TimedOut
from alluxio_like.rpc.data_pool import BegunRead
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import Entry, FileRef, SharedRange
from alluxio_like.waits import Cause, Seconds, SharedWaits, Waits, subtract

FAR_FILE_BYTES = 1 << 20
"""The largest such file: a page, which is one message with one checksum. What is larger costs by its bytes."""


class FarReader:
    """One open file: one content, to the end. `begin` before anything else."""

    __slots__ = (
        "_begun",
        "_budget",
        "_closed",
        "_data",
        "_full",
        "_io_timeout_s",
        "_on_close",
        "_open_full",
        "_passed_over",
        "_served_bytes",
        "_taken",
        "_told",
        "_waiters",
        "_waits",
        "entry",
        "ref",
        "size",
    )

    def __init__(
        self,
        entry: Entry,
        ref: FileRef,
        *,
        budget: Budget,
        open_full: Callable[[Entry], FileReader],
        io_timeout_s: float,
        on_close: Callable[["FarReader"], None],
    ) -> None:
        self.entry = entry
        self.ref = ref
        self.size = ref.size
        self._budget = budget
        self._open_full = open_full
        self._io_timeout_s = io_timeout_s
        self._on_close = on_close
        self._begun: BegunRead | None = None
        self._data: memoryview | None = None
        """All of the file, once it has landed and until it was read."""
        self._taken = False
        """Whether this reader's bytes are counted in the budget."""
        self._passed_over = False
        """Whether it was asked to give back while it could not."""
        self._full: FileReader | None = None
        self._served_bytes = 0
        self._waiters: list[Callable[[], None]] = []
        self._waits = SharedWaits()
        self._told = Waits()
        self._closed = False

    def begin(self, fetcher: Fetcher) -> bool:
        """Ask for the file. False: it is no such file, or there is no memory for it; this reader is of no use then."""
        if not self._budget.try_take(self.size, self, self._give_back):
            return False
        self._begun = fetcher.begin(self.ref, 0, self.size, self._told, self._end)
        if self._begun is None:
            self._budget.release(self.size)
            self._budget.forget(self)
            return False
        self._taken = True
        return True

    def _end(self, data: memoryview | None) -> None:
        """It has landed; None: that worker failed, and what was wrong an ordinary reader finds out."""
        self._begun = None
        self._data = data
        if data is None:
            self._release()
        elif self._passed_over:
            self._budget.try_take(0, self, self._give_back)
        waiters, self._waiters = self._waiters, []
        for tell in waiters:
            tell()

    def _release(self) -> None:
        self._data = None
        if self._taken:
            self._taken = False
            self._budget.release(self.size)

    def _give_back(self) -> None:
        """Another reader needs memory. What is under way stays, for it is about to be read; once here it is asked again."""
        if self._data is not None:
            self._release()
        self._passed_over = self._begun is not None

    @property
    def is_of_use(self) -> bool:
        """Whether all of the file is here or on its way."""
        return self._begun is not None or self._data is not None

    # What is asked of a reader

    def get_waits(self) -> Seconds:
        """For how long, and for what, reads of this file have waited, those still under way excepted."""
        waited = self._waits.get()
        if self._full is None:
            return waited
        more = Waits()
        more.add_all(waited)
        more.add_all(self._full.get_waits())
        return more.get()

    def find_whole(self) -> LocalFile | None:
        """See FileReader."""
        return None if self._full is None else self._full.find_whole()

    async def fill_whole(self, priority: Priority) -> bool:
        """See FileReader."""
        return await self._get_full().fill_whole(priority)

    def share(self, offset: int, length: int) -> SharedRange | None:
        """See FileReader."""
        return None if self._full is None else self._full.share(offset, length)

    def note_shared(self, shared: SharedRange) -> None:
        """See FileReader."""
        if self._full is not None:
            self._full.note_shared(shared)

    def try_read(self, offset: int, length: int) -> bytes | memoryview | None:
        """See FileReader."""
        data = self._data
        if data is None or offset < 0 or length < 0:
            return None if self._full is None else self._full.try_read(offset, length)
        found = data[offset : offset + length]
        self._note_served(len(found))
        return found

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """See FileReader."""
        try:
            async with asyncio.timeout(self._io_timeout_s):
                if self._begun is not None:
                    await self._wait()
                if self._data is not None and offset >= 0 and length >= 0:
                    found = self._data[offset : offset + length]
                    self._note_served(len(found))
                    return found
                return await self._get_full().read(offset, length)
        except TimeoutError:
            raise TimedOut(f"not read within {self._io_timeout_s:g} s", subject=self.ref.key) from None

    def begin_read(self, offset: int, length: int, on_end: OnEnd) -> Callable[[], None] | None:
        """See FileReader."""
        if self._begun is None:
            return None
        told = self._told.get()
        self._waits.begin(time.monotonic())

        def end() -> None:
            landed_s = time.monotonic()
            data = self._data
            if data is not None:
                data = data[offset : offset + length]
                self._note_served(length)
            # Whoever waits goes on while the rest is done.
            on_end(data)
            self._waits.end(landed_s, subtract(self._told.get(), told), Cause.PEER)

        def give_up() -> None:
            self._waiters.remove(end)
            self._waits.end(time.monotonic(), subtract(self._told.get(), told), Cause.PEER)

        self._waiters.append(end)
        return give_up

    async def _wait(self) -> None:
        """Until it has landed, or will not."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(lambda: None if waiter.done() else waiter.set_result(None))
        self._waits.begin(time.monotonic())
        told = self._told.get()
        try:
            await waiter
        finally:
            self._waits.end(time.monotonic(), subtract(self._told.get(), told), Cause.PEER)

    def _note_served(self, count: int) -> None:
        # Read once, in whatever order, it need not stay.
        self._served_bytes += count
        if self._served_bytes >= self.size:
            self._release()

    def _get_full(self) -> FileReader:
        if self._closed:
            raise Internal("read of a closed file", subject=self.ref.key)
        if self._full is None:
            self._full = self._open_full(self.entry)
        return self._full

    def begin_close(self) -> Coroutine[None, None, None] | None:
        """See FileReader."""
        if self._closed:
            return None
        self._closed = True
        self._on_close(self)
        begun = self._begun
        if begun is not None:
            self._end(None)
            begun.cancel()
        self._release()
        self._budget.forget(self)
        return None if self._full is None else self._full.begin_close()

    async def close(self) -> None:
        """See FileReader."""
        ending = self.begin_close()
        if ending is not None:
            await ending
