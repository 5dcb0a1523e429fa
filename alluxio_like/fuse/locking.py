"""Locks of files by programs of this mount, seen by all mounts: fcntl(2) and flock(2).

Owns GETLK, SETLK and SETLKW, and whose locks end with what: a flock's with the last descriptor of its open, a range's when its
owner closes the file. The kernel says nothing of a close of a file that was only read (FOPEN_NOFLUSH); such locks end with the
handle by which they were taken, or when the process is gone. The locks themselves are the client's (client/locks.py).

Rule of concurrency: one event loop.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Coroutine

from alluxio_like.errors import AlluxioLikeError, Conflict
from alluxio_like.fuse import wire
from alluxio_like.fuse.attributes import FileError
from alluxio_like.fuse.backend import MountLocks
from alluxio_like.fuse.changing import Answerer
from alluxio_like.fuse.nodes import Nodes
from alluxio_like.fuse.operations import Operations
from alluxio_like.locks import END, Lock, LockKind, Owner, Place
from alluxio_like.types import InodeId

log = logging.getLogger(__name__)

_KINDS = {fcntl.F_UNLCK: LockKind.NONE, fcntl.F_RDLCK: LockKind.READ, fcntl.F_WRLCK: LockKind.WRITE}
_TYPES = {kind: number for number, kind in _KINDS.items()}
_RELEASE_FLOCK_UNLOCK = 1 << 1
_SWEEP_S = 5.0
"""How often it is looked whether processes with locks are still there. A guess: as a rule they release them by closing."""


class Locking:
    """Locks of one mount."""

    def __init__(self, operations: Operations, nodes: Nodes, locks: MountLocks) -> None:
        self._operations = operations
        self._nodes = nodes
        self._locks = locks
        self._by_handle: dict[int, set[tuple[Place, int]]] = {}
        self._sweeping = asyncio.create_task(self._sweep(), name="sweep locks")
        self._tasks: dict[asyncio.Task[None], Place] = {}
        """What is being given back of which file."""

    def list_answerers(self) -> dict[int, tuple[str, Answerer]]:
        """What answers each kind of request."""
        return {
            wire.GETLK: ("getlk", self.getlk),
            wire.SETLK: ("setlk", self.setlk),
            wire.SETLKW: ("setlkw", self.setlkw),
        }

    async def getlk(self, request: wire.Request) -> bytes:
        place, lock = self._read(request)
        found = await self._locks.test(place, lock)
        if found is None:
            return wire.pack_lock(0, 0, fcntl.F_UNLCK, 0)
        # Processes of other machines have no number here.
        pid = found.pid if found.owner.holder == self._locks.holder else 0
        return wire.pack_lock(found.start, found.end, _TYPES[found.kind], pid)

    async def setlk(self, request: wire.Request) -> bytes:
        return await self._set(request, wait=False)

    async def setlkw(self, request: wire.Request) -> bytes:
        return await self._set(request, wait=True)

    async def _set(self, request: wire.Request, *, wait: bool) -> bytes:
        body = request.body
        assert isinstance(body, wire.Lock)
        place, lock = self._read(request)
        if lock.kind is LockKind.NONE and not self._locks.has_any(place, lock.owner.number):
            return b""
        # What the kernel said before was closed before; two calls to the master are in no order.
        if giving_back := [task for task, of in self._tasks.items() if of == place]:
            await asyncio.wait(giving_back)
        try:
            conflict = await self._locks.set(place, lock, wait=wait)
        except Conflict as error:
            raise FileError(errno.EDEADLK, error.message) from None
        if conflict is not None:
            raise FileError(errno.EAGAIN, "the lock is somebody else's")
        if lock.kind is not LockKind.NONE and not place.whole:
            self._by_handle.setdefault(body.fh, set()).add((place, lock.owner.number))
        return b""

    async def flush(self, node: int, number: int) -> None:
        """An owner has closed a descriptor of a file: its locks of ranges there are gone, as POSIX has it."""
        place = Place(self._get_inode(node), whole=False)
        if self._locks.has_any(place, number):
            await self._locks.drop(place, number)

    def begin_release(self, node: int, handle: int, release_flags: int, number: int) -> None:
        """A handle is gone, and with it what was locked by it. Does not wait."""
        gone = self._by_handle.pop(handle, set())
        if release_flags & _RELEASE_FLOCK_UNLOCK:
            gone.add((Place(self._get_inode(node), whole=True), number))
        for place, owner in gone:
            if self._locks.has_any(place, owner):
                self._start(place, self._locks.drop(place, owner))

    async def close(self) -> None:
        """Stop looking after the locks; they stay for the daemon that comes next. Does not raise."""
        tasks = [*self._tasks, self._sweeping]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Inside

    def _read(self, request: wire.Request) -> tuple[Place, Lock]:
        body = request.body
        assert isinstance(body, wire.Lock)
        place = Place(self._get_inode(request.header.nodeid), bool(body.lk_flags & wire.LK_FLOCK))
        owner = Owner(self._locks.holder, body.owner)
        start, end = (0, END) if place.whole else (body.start, min(body.end, END))
        return place, Lock(owner, _KINDS[body.type], start, end, body.pid)

    def _get_inode(self, node: int) -> InodeId:
        return self._operations.get_inode(self._nodes.get_inode(node))

    def _start(self, place: Place, call: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(call)
        self._tasks[task] = place
        task.add_done_callback(self._note_end)

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a lock could not be given back yet: %s", error)

    async def _sweep(self) -> None:
        """Give back what processes had locked that are gone: the kernel did not say so where a daemon before this one gave out
        the handle."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            for place, lock in self._locks.list_ranges():
                if lock.pid and not _is_alive(lock.pid):
                    with contextlib.suppress(AlluxioLikeError):
                        await self._locks.drop(place, lock.owner.number)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
