"""A mount's locks of files: set at the master, claimed again from one that was started anew.

Owns the mirror of what the mount holds and the attachment to the master. Waiting is done by asking the master to wait, in turns,
and trying then: a lock is only ever set by a call that does not wait, so that whoever is interrupted has it or has it not. Rule
of concurrency: one event loop; what is set for one file is set in turn (`_turns`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from alluxio_like.errors import TimedOut, Unavailable
from alluxio_like.locks import Lock, LockKind, LockTable, Owner, Place
from alluxio_like.rpc.channel import RpcChannel
from alluxio_like.rpc.locks import LockAnswer, LocksStub, PlacedLock
from alluxio_like.types import InodeId

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_WAIT_S = 20.0
"""What the master is asked to wait at a time."""
_PAUSE_S = 0.1


class Locks:
    """Locks of one mount. `holder` names it, the same for each daemon that serves it; the client must have its lease begun.
    `settle` has the master know of files."""

    def __init__(
        self, channel: RpcChannel, holder: str, settle: Callable[[Iterable[InodeId]], Awaitable[None]], *, io_timeout_s: float
    ) -> None:
        self.holder = holder
        self._settle = settle
        self._stub = LocksStub(channel, holder, timeout_s=io_timeout_s)
        self._io_timeout_s = io_timeout_s
        self._mirror = LockTable()
        self._attaching: asyncio.Task[None] | None = None
        self._is_attached = False

    async def attach(self) -> None:
        """Speak for the mount from now on; what a daemon before held is known then. Raises Unavailable without a lease."""
        await asyncio.shield(self.begin_attaching())

    def begin_attaching(self) -> "asyncio.Task[None]":
        """As `attach`, without waiting: the lease has begun anew, and the master may know nothing of what is held."""
        if self._attaching is None:
            self._is_attached = False
            self._attaching = asyncio.create_task(self._attach(), name="attach locks")
            self._attaching.add_done_callback(self._note_attached)
        return self._attaching

    def _note_attached(self, task: "asyncio.Task[None]") -> None:
        self._attaching = None
        self._is_attached = not task.cancelled() and task.exception() is None

    async def _attach(self) -> None:
        known = [PlacedLock(*one) for one in self._mirror.iter_locks(self.holder)]
        attached = await self._stub.attach(known)
        for one in attached.lost:
            _log.error("a lock of a program is lost: the master was away for too long", extra={"inode": one.place.inode})
        self._mirror = LockTable()
        for place, lock in attached.locks:
            self._mirror.set(place, lock)

    def has_any(self, place: Place, number: int) -> bool:
        """Whether an owner has a lock of a file; without asking anybody."""
        return self._mirror.has_any(place, Owner(self.holder, number))

    def list_ranges(self) -> list[tuple[Place, Lock]]:
        """All locks of ranges that the mount holds."""
        return [(place, lock) for place, lock in self._mirror.iter_locks(self.holder) if not place.whole]

    async def set(self, place: Place, lock: Lock, *, wait: bool) -> Lock | None:
        """Lock or unlock; None: done, else what stands in the way (never with `wait`).

        Raises Conflict (with `wait`: a deadlock), Unavailable, TimedOut. Cancelled, it is as if it had not been called.
        """
        await self._settle([place.inode])
        while True:
            conflict = await self._try(place, lock)
            if conflict is None or not wait:
                return conflict
            await self._ask(lambda: self._stub.wait(place, lock, _WAIT_S))

    async def test(self, place: Place, lock: Lock) -> Lock | None:
        """What stands in the way of a lock."""
        await self._settle([place.inode])
        return await self._ask_in_time(lambda: self._stub.test(place, lock))

    async def drop(self, place: Place, number: int) -> None:
        """An owner has closed the file."""
        owner = Owner(self.holder, number)
        if self._mirror.has_any(place, owner):
            await self._ask(lambda: self._stub.drop(place, number))
            self._mirror.drop_owner(place, owner)

    # Inside

    async def _try(self, place: Place, lock: Lock) -> Lock | None:
        """One try, to its end also when who waits for it has gone: then what was got is given back."""
        trying = asyncio.ensure_future(self._set(place, lock))
        try:
            return await asyncio.shield(trying)
        except asyncio.CancelledError:
            trying.add_done_callback(lambda done: self._undo(done, place, lock))
            raise

    def _undo(self, done: "asyncio.Future[Lock | None]", place: Place, lock: Lock) -> None:
        if done.cancelled() or done.exception() is not None or done.result() is not None or lock.kind is LockKind.NONE:
            return
        task = asyncio.ensure_future(self._set(place, lock._replace(kind=LockKind.NONE)))
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    async def _set(self, place: Place, lock: Lock) -> Lock | None:
        conflict = await self._ask_in_time(lambda: self._stub.set(place, lock))
        if conflict is None:
            self._mirror.set(place, lock)
        return conflict

    async def _ask_in_time(self, call: Callable[[], Awaitable[LockAnswer]]) -> Lock | None:
        """Ask; while nobody gets a lock yet, again, for as long as a call may take."""
        try:
            async with asyncio.timeout(self._io_timeout_s):
                while (answer := await self._ask(call)).wait_s > 0:
                    await asyncio.sleep(min(answer.wait_s, 1.0))
        except TimeoutError:
            raise TimedOut("the master gives no locks yet: it was started a moment ago") from None
        return answer.conflict

    async def _ask(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Ask the master; attach first where it says so, for as long as a call may take."""
        loop = asyncio.get_running_loop()
        stop_s = loop.time() + self._io_timeout_s
        while True:
            try:
                if not self._is_attached:
                    await self.attach()
                return await call()
            except Unavailable:
                self._is_attached = False
                if loop.time() + _PAUSE_S >= stop_s:
                    raise
            await asyncio.sleep(_PAUSE_S)
