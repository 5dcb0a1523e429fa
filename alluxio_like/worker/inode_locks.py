"""Locks by inode: what is done to one draft is done by one task at a time.

Owns the locks, which are there as long as somebody has or wants them. Rule of concurrency: event loop alone.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from alluxio_like.types import InodeId


@dataclass(slots=True)
class _Lock:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class InodeLocks:
    """One per worker."""

    def __init__(self) -> None:
        self._locks: dict[InodeId, _Lock] = {}

    def is_held(self, inode: InodeId) -> bool:
        known = self._locks.get(inode)
        return known is not None and known.lock.locked()

    @asynccontextmanager
    async def hold(self, inode: InodeId) -> AsyncIterator[None]:
        """Wait for the lock of one inode, and have it. (Who waits holds none.)"""
        known = self._locks.setdefault(inode, _Lock())
        known.users += 1
        try:
            async with known.lock:
                yield
        finally:
            known.users -= 1
            if not known.users:
                self._locks.pop(inode, None)

    @asynccontextmanager
    async def hold_free(self, inodes: Iterable[InodeId]) -> AsyncIterator[set[InodeId]]:
        """Have the locks of those that nobody has or waits for, without waiting: so whoever has others may ask."""
        held: dict[InodeId, _Lock] = {}
        for inode in inodes:
            if inode not in self._locks:
                held[inode] = self._locks[inode] = one = _Lock(users=1)
                await one.lock.acquire()  # at once, since nobody else knows of it
        try:
            yield set(held)
        finally:
            for inode, one in held.items():
                one.lock.release()
                one.users -= 1
                if not one.users:
                    self._locks.pop(inode, None)

    @asynccontextmanager
    async def hold_some(self, inodes: Iterable[InodeId]) -> AsyncIterator[set[InodeId]]:
        """Wait for the lock of the first, and have it with those of others that are free then."""
        first, *others = inodes
        async with self.hold(first), self.hold_free(others) as free:
            yield free | {first}
