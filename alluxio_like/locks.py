"""Locks of files, as fcntl(2) and flock(2) mean them, of owners on many machines.

Owns the table: who has locked what, what stands in the way of a new lock, and whether waiting for it would be a deadlock. Both
ends keep one: the master of everybody's, a client of its own, so that it can claim them again from a master that was started
anew. Whole-file locks (flock) and locks of ranges (fcntl) do not see each other, as on a local Linux file system.

Deterministic and without I/O; not thread-safe.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.types import InodeId

END = (1 << 63) - 1
"""The last byte that a range may end with: up to the end of the file, however far that is."""
MAX_LOCKS = 100_000
"""Of one holder. A guess: each takes some 200 bytes."""


class LockKind(IntEnum):
    """What a lock is; the numbers are those of the wire."""

    NONE = 0
    READ = 1
    WRITE = 2


class Owner(NamedTuple):
    """Whose lock it is: a mount (`holder`), and the number by which its kernel tells owners apart."""

    holder: str
    number: int


class Place(NamedTuple):
    """What is locked. `whole`: by flock."""

    inode: InodeId
    whole: bool


class Lock(NamedTuple):
    """A lock on bytes `start` to `end`, both included. `pid` is that of the process, on its own machine."""

    owner: Owner
    kind: LockKind
    start: int
    end: int
    pid: int

    def conflicts(self, other: "Lock") -> bool:
        """Whether the two cannot be held at once."""
        return (
            self.owner != other.owner
            and LockKind.WRITE in (self.kind, other.kind)
            and self.start <= other.end
            and other.start <= self.end
        )


@dataclass(slots=True)
class LockTable:
    """See the module."""

    _places: dict[Place, list[Lock]] = field(default_factory=dict)
    _held: dict[str, dict[Place, int]] = field(default_factory=dict)
    """By holder, how many locks it has at each place."""
    _waiting: dict[Owner, tuple[Place, Lock]] = field(default_factory=dict)

    def find_conflict(self, place: Place, wanted: Lock) -> Lock | None:
        """A lock of another that stands in the way, of several the one that begins first."""
        found = (lock for lock in self._places.get(place, ()) if lock.conflicts(wanted))
        return min(found, key=lambda lock: lock.start, default=None)

    def set(self, place: Place, wanted: Lock) -> Lock | None:
        """Lock, or with kind NONE unlock, a range: what the owner had of it before is replaced. None: done; else what stands in
        the way, and nothing has changed.

        Raises NoSpace for one too many of a holder, InvalidArgument for a range that ends before it begins.
        """
        if not 0 <= wanted.start <= wanted.end <= END:
            raise errors.InvalidArgument("a lock's range begins at 0 or later and ends where it begins or later")
        if wanted.kind is not LockKind.NONE:
            conflict = self.find_conflict(place, wanted)
            if conflict is not None:
                return conflict
            if sum(self._held.get(wanted.owner.holder, {}).values()) >= MAX_LOCKS:
                raise errors.NoSpace(f"a mount holds at most {MAX_LOCKS} locks")
        self._replace(place, wanted)
        self._waiting.pop(wanted.owner, None)
        return None

    def wait(self, place: Place, wanted: Lock) -> None:
        """Note that an owner waits for a lock of a range. Raises Conflict where that would never end: the one in the way waits,
        itself or by others, for a lock of this owner."""
        if not place.whole and self._leads_back(place, wanted):
            raise errors.Conflict("waiting for this lock would be a deadlock")
        self._waiting[wanted.owner] = (place, wanted)

    def stop_waiting(self, owner: Owner) -> None:
        self._waiting.pop(owner, None)

    def drop_owner(self, place: Place, owner: Owner) -> bool:
        """An owner is gone from a file; whether it had a lock there."""
        return self._filter(place, lambda lock: lock.owner != owner)

    def drop_holder(self, holder: str) -> list[Place]:
        """A mount is gone with all its locks; where they were."""
        places = list(self._held.get(holder, ()))
        for place in places:
            self._filter(place, lambda lock: lock.owner.holder != holder)
        for owner in [owner for owner in self._waiting if owner.holder == holder]:
            del self._waiting[owner]
        return places

    def iter_locks(self, holder: str) -> Iterator[tuple[Place, Lock]]:
        """All locks of a mount."""
        for place in list(self._held.get(holder, ())):
            for lock in self._places.get(place, ()):
                if lock.owner.holder == holder:
                    yield place, lock

    def has_any(self, place: Place, owner: Owner) -> bool:
        """Whether an owner has a lock there."""
        return any(lock.owner == owner for lock in self._places.get(place, ()))

    def count(self) -> int:
        return sum(len(locks) for locks in self._places.values())

    # Inside

    def _replace(self, place: Place, wanted: Lock) -> None:
        others: list[Lock] = []
        start, end = wanted.start, wanted.end
        for lock in self._places.get(place, ()):
            if lock.owner != wanted.owner or lock.end < start - 1 or lock.start > end + 1:
                others.append(lock)
            elif lock.kind is wanted.kind:
                # Neighbours of one kind become one lock, as fcntl(2) does it.
                start, end = min(start, lock.start), max(end, lock.end)
            else:
                others += _cut(lock, wanted)
        if wanted.kind is not LockKind.NONE:
            others.append(wanted._replace(start=start, end=end))
        self._put(place, others)

    def _filter(self, place: Place, keep: Callable[[Lock], bool]) -> bool:
        before = self._places.get(place, [])
        after = [lock for lock in before if keep(lock)]
        self._put(place, after)
        return len(after) != len(before)

    def _put(self, place: Place, locks: list[Lock]) -> None:
        for lock in self._places.get(place, ()):
            held = self._held[lock.owner.holder]
            held[place] -= 1
            if not held[place]:
                del held[place]
            if not held:
                del self._held[lock.owner.holder]
        for lock in locks:
            held = self._held.setdefault(lock.owner.holder, {})
            held[place] = held.get(place, 0) + 1
        if locks:
            self._places[place] = locks
        else:
            self._places.pop(place, None)

    def _leads_back(self, place: Place, wanted: Lock) -> bool:
        seen: set[Owner] = set()
        queue = [(place, wanted)]
        while queue:
            where, what = queue.pop()
            for lock in self._places.get(where, ()):
                if not lock.conflicts(what) or lock.owner in seen:
                    continue
                seen.add(lock.owner)
                waits = self._waiting.get(lock.owner)
                if waits is None:
                    continue
                if any(held.owner == wanted.owner and held.conflicts(waits[1]) for held in self._places.get(waits[0], ())):
                    return True
                queue.append(waits)
        return False


def _cut(lock: Lock, hole: Lock) -> list[Lock]:
    """What is left of a lock outside of a range."""
    left = [lock._replace(end=hole.start - 1)] if lock.start < hole.start else []
    right = [lock._replace(start=hole.end + 1)] if lock.end > hole.end else []
    return left + right if lock.start <= hole.end and hole.start <= lock.end else [lock]
