"""Locks of files across mounts: who may have them, who waits, and whose end with a lease.

Owns which client speaks for which mount, the waiting, and the time after a start in which mounts claim what they held. The table
is alluxio_like/locks.py's, leases are coherence.py's. In memory alone: what a master held when it was killed its clients claim
again, and nobody else gets a lock before all leases of before have run out.

Rule of concurrency: event loop alone; nothing but `wait` awaits.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from alluxio_like import errors
from alluxio_like.locks import Lock, LockTable, Owner, Place
from alluxio_like.rpc.context import get_lease
from alluxio_like.rpc.locks import Attached, LockAnswer, PlacedLock

log = logging.getLogger(__name__)

MAX_WAIT_S = 60.0
ATTACH_S = 20.0
"""How long a mount without a client keeps its locks: the one before has lost its lease, the next is about to come. As long again
as a lease. A guess."""


class LocksService:
    """LocksHandler of rpc.locks. `is_live` says whether a session's lease holds; `get_start_wait_s` for how long leases that a
    master before gave may still last."""

    def __init__(
        self, *, is_live: Callable[[str], bool], get_start_wait_s: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._is_live = is_live
        self._get_start_wait_s = get_start_wait_s
        self._monotonic = monotonic
        self._table = LockTable()
        self._sessions: dict[str, str] = {}
        """By mount, the session of the client that speaks for it."""
        self._left_s: dict[str, float] = {}
        """By mount, since when its client has no lease."""
        self._changes: dict[Place, asyncio.Event] = {}

    async def attach(self, holder: str, locks: Sequence[PlacedLock]) -> Attached:
        session = get_lease()
        if not session or not self._is_live(session):
            raise errors.Unavailable("a client without a lease cannot hold locks: it is to be asked for first")
        if not holder:
            raise errors.InvalidArgument("a mount has a name")
        self._sessions[holder] = session
        self._left_s.pop(holder, None)
        lost = [one for one in locks if self._table.set(one.place, one.lock) is not None]
        for one in lost:
            log.warning("a lock was lost", extra={"inode": one.place.inode, "mount": holder})
        return Attached(tuple(PlacedLock(*one) for one in self._table.iter_locks(holder)), tuple(lost))

    async def set(self, place: Place, lock: Lock) -> LockAnswer:
        self._check(lock.owner.holder)
        if not lock.kind:
            self._table.set(place, lock)
            self._tell(place)
            return LockAnswer()
        wait_s = self._get_start_wait_s()
        if wait_s > 0:
            return LockAnswer(wait_s=wait_s)
        conflict = self._table.set(place, lock)
        if conflict is None:
            # A lock that became weaker lets others in.
            self._tell(place)
        return LockAnswer(conflict)

    async def test(self, place: Place, lock: Lock) -> LockAnswer:
        self._check(lock.owner.holder)
        wait_s = self._get_start_wait_s()
        return LockAnswer(wait_s=wait_s) if wait_s > 0 else LockAnswer(self._table.find_conflict(place, lock))

    async def wait(self, place: Place, lock: Lock, wait_s: float) -> bool:
        self._check(lock.owner.holder)
        try:
            async with asyncio.timeout(max(0.0, min(wait_s, MAX_WAIT_S))):
                while self._table.find_conflict(place, lock) is not None:
                    self._table.wait(place, lock)
                    await self._changes.setdefault(place, asyncio.Event()).wait()
        except TimeoutError:
            return False
        finally:
            self._table.stop_waiting(lock.owner)
        return True

    async def drop(self, place: Place, owner: Owner) -> None:
        self._check(owner.holder)
        if self._table.drop_owner(place, owner):
            self._tell(place)

    def expire(self) -> None:
        """Take the locks of mounts whose client has lost its lease, and which no other client took up; to be called every second
        or so."""
        now_s = self._monotonic()
        for holder, session in list(self._sessions.items()):
            if self._is_live(session):
                self._left_s.pop(holder, None)
            elif now_s - self._left_s.setdefault(holder, now_s) >= ATTACH_S or not self._has_locks(holder):
                del self._sessions[holder]
                del self._left_s[holder]
                places = self._table.drop_holder(holder)
                if places:
                    log.warning("a mount is gone, and its locks with it", extra={"mount": holder, "files": len(places)})
                for place in places:
                    self._tell(place)

    def count(self) -> int:
        """Locks held."""
        return self._table.count()

    def _has_locks(self, holder: str) -> bool:
        return next(self._table.iter_locks(holder), None) is not None

    def _check(self, holder: str) -> None:
        session = get_lease()
        if not session or self._sessions.get(holder) != session or not self._is_live(session):
            raise errors.Unavailable("this client does not speak for the mount (any more): it is to attach first", subject=holder)

    def _tell(self, place: Place) -> None:
        event = self._changes.pop(place, None)
        if event is not None:
            event.set()
