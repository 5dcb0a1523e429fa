"""Copies here of small files of other machines, made behind the answers to those who read them.

A small file is read from its home past the worker of this machine (far.py) until there is a copy here. To create, write and index
one costs several times what reading it does, and for what is read once nothing is gained by it. When it is read again, the worker
here is asked to bring it, which it does if admission says so; nobody waits for that.

Owns which files were read before, and the few that are being brought. Does not decide what is kept (worker/core/admission.py).
Rule of concurrency: one event loop; `note_read` neither awaits nor raises.
"""

import asyncio
import logging
from collections import OrderedDict, deque

from alluxio_like.client.fetching import Fetcher
from alluxio_like.client.flight import Flight
from alluxio_like.errors import AlluxioLikeError
from alluxio_like.rpc.messages import Filled, Priority
from alluxio_like.types import FileRef, Worker

_log = logging.getLogger(__name__)

_AT_ONCE = 2
"""Copies made at the same time: readers go first. A guess."""
_WAITING = 256
"""What is read again faster than it is brought is left for the next time. A guess."""
_GROUP_BITS = 12
_GROUPS = 4096
"""Inodes are remembered in groups of 4096 neighbours, half a KiB each: 16 million files of whole directories in 2 MiB."""


class ReadOnce:
    """Which inodes were read before; those read longest ago are forgotten by groups."""

    def __init__(self, groups: int = _GROUPS) -> None:
        self._limit = groups
        self._groups: OrderedDict[int, int] = OrderedDict()

    def note(self, inode: int) -> bool:
        """Whether it was read before."""
        group, bit = inode >> _GROUP_BITS, 1 << (inode & ((1 << _GROUP_BITS) - 1))
        known = self._groups.get(group, 0)
        if known & bit:
            return True
        self._groups[group] = known | bit
        self._groups.move_to_end(group)
        if len(self._groups) > self._limit:
            self._groups.popitem(last=False)
        return False


class _Target:
    """Nobody here reads what is brought: it is looked up when it is opened next."""

    def __init__(self, ref: FileRef) -> None:
        self.ref = ref

    def learn(self, worker: Worker, filled: Filled) -> bool:
        return True

    def has_local(self, offset: int, stop: int) -> bool:
        return True


class Guests:
    """What is brought."""

    def __init__(self, fetcher: Fetcher, *, io_timeout_s: float) -> None:
        self._fetcher = fetcher
        self._io_timeout_s = io_timeout_s
        self._read = ReadOnce()
        self._waiting: deque[FileRef] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def note_read(self, ref: FileRef) -> None:
        """A small file is being read from its home on another machine."""
        if not self._read.note(ref.inode) or self._closed or len(self._waiting) >= _WAITING:
            return
        self._waiting.append(ref)
        if len(self._tasks) < _AT_ONCE:
            task = asyncio.create_task(self._run(), name="bring guests")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while self._waiting:
            ref = self._waiting.popleft()
            try:
                async with asyncio.timeout(self._io_timeout_s):
                    await self._fetcher.fill(_Target(ref), Flight(0, ref.size, Priority.AHEAD))
            except (AlluxioLikeError, TimeoutError) as error:
                _log.info("a file was not brought: %s", error, extra={"key": ref.key})

    async def close(self) -> None:
        """End what is under way. Does not raise."""
        self._closed = True
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
