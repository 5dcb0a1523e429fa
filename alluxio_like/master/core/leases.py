"""Which clients were told what, for how long, and who must be told when it changes.

Owns the sessions of clients (one lease each, renewed by each message), for each directory the set of sessions that hold it, and
for each
session the recalls that it has not confirmed yet. A client whose lease has run out knows by its own clock that nothing covers
what it
remembers, a little earlier than the master does; so a change is known everywhere once every other holder has confirmed its
recall or run
out of lease. A recall that is not confirmed keeps the lease from growing beyond LEASE_S after it: nobody is waited for longer.

Deterministic: the time comes from outside (seconds of a clock that never goes back), nothing is sent from here. What is held for
a session ends with it. Bounded: beyond `max_directories` the directory held longest is recalled, beyond MAX_PENDING unconfirmed
recalls a session is told to forget everything. Not thread-safe.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import records
from alluxio_like.master.core.model import Changes
from alluxio_like.types import EVERYWHERE, InodeId, Recall

LEASE_S = 10.0
MAX_SESSIONS = 10_000
"""Renewals cost the master 160 us each: 200 clients 1.3 % of a core (measured), so many two thirds of one."""
MAX_DIRECTORIES = 500_000
"""Directories that are held by anybody; about 150 bytes each. A guess."""
MAX_PENDING = 2_000
"""Recalls of one session that are not confirmed. A guess."""
MAX_NAMES = 2_000
"""Names in one recall; more are recalled as the whole directory. Above the entries of one page of a listing."""
HOT_RECALLS = 16
HOT_WINDOW_S = 10.0
HOT_REST_S = 10.0
"""A directory recalled so often within the window is not leased until it has been left alone for HOT_REST_S. Guesses."""


class _Pending(NamedTuple):
    sequence: int
    queued_s: float
    recall: Recall


@dataclass(slots=True, eq=False)
class Session:
    """One client's lease. `slot` is its bit in the sets of holders; `sent` the newest recall given out, `confirmed` the newest
    applied."""

    session_id: str
    slot: int
    expires_s: float
    newest: int = 0
    sent: int = 0
    confirmed: int = 0
    ended: bool = False
    pending: deque[_Pending] = field(default_factory=deque)

    def has_news(self) -> bool:
        """Whether there is a recall that was not given out."""
        return self.newest > self.sent


class Duty(NamedTuple):
    """A session that must confirm up to `sequence`."""

    session: Session
    sequence: int


@dataclass(slots=True)
class _Heat:
    since_s: float
    count: int = 0
    rest_until_s: float = 0.0


class LeaseTable:
    """See the module. `started_s`: when this master began; leases given by one before it last until `started_s + lease_s`.
    `first_sequence`: the number before its first recall, which no master before it was anywhere near."""

    def __init__(
        self,
        started_s: float,
        *,
        lease_s: float = LEASE_S,
        max_directories: int = MAX_DIRECTORIES,
        first_sequence: int = 0,
    ) -> None:
        self.lease_s = lease_s
        self._started_s = started_s
        self._max_directories = max_directories
        self._sequence = first_sequence
        """The newest recall of any session: what a client confirms that does not know yet that its session began anew is none of
        that."""
        self._sessions: dict[str, Session] = {}
        self._slots: dict[int, Session] = {}
        self._free_slots: list[int] = []
        self._next_slot = 0
        self._holders: dict[InodeId, int] = {}
        """By directory, one bit for each session. A bit may outlive its session: the next one in that slot is then told more than
        it needs."""
        self._leaving: dict[InodeId, list[Duty]] = {}
        """By directory (or EVERYWHERE), who was told to forget all of it: no holder any more, but perhaps not there yet."""
        self._heat: dict[InodeId, _Heat] = {}

    # Sessions

    def count_sessions(self) -> int:
        return len(self._sessions)

    def count_directories(self) -> int:
        return len(self._holders)

    def begin(self, session_id: str, now_s: float, *, resume: bool) -> tuple[Session, bool]:
        """The session of that id, and whether it begins now: then nothing that its client remembers is covered.

        Raises Unavailable for one too many.
        """
        known = self._sessions.get(session_id)
        if known is not None:
            if resume and now_s < known.expires_s:
                return known, False
            self.end(known)
        if len(self._sessions) >= MAX_SESSIONS:
            raise errors.Unavailable(f"{MAX_SESSIONS} clients hold a lease: this one asks without")
        if self._free_slots:
            slot = self._free_slots.pop()
        else:
            slot = self._next_slot
            self._next_slot += 1
        at = self._sequence
        session = Session(session_id, slot, now_s + self.lease_s, newest=at, sent=at, confirmed=at)
        self._sessions[session_id] = self._slots[slot] = session
        return session, True

    def renew(self, session: Session, now_s: float, confirmed: int) -> float | None:
        """A message came: how long the lease lasts from now on, in seconds. None: it has run out, and the session is ended."""
        if session.ended or now_s >= session.expires_s:
            self.end(session)
            return None
        if confirmed <= session.sent:
            session.confirmed = max(session.confirmed, confirmed)
        while session.pending and session.pending[0].sequence <= session.confirmed:
            session.pending.popleft()
        base_s = session.pending[0].queued_s if session.pending else now_s
        session.expires_s = max(session.expires_s, base_s + self.lease_s)
        return session.expires_s - now_s

    def rewind(self, session: Session) -> None:
        """What was sent and not confirmed may be lost with its stream: it is sent again."""
        session.sent = session.confirmed

    def end(self, session: Session) -> None:
        """The client holds nothing any more. May be called twice."""
        if session.ended:
            return
        session.ended = True
        session.pending.clear()
        del self._sessions[session.session_id]
        del self._slots[session.slot]
        self._free_slots.append(session.slot)
        if not self._sessions:
            self._holders.clear()

    def lookup(self, session_id: str) -> Session | None:
        """The session of that id, if it has not ended."""
        return self._sessions.get(session_id)

    def expire(self, now_s: float) -> list[Session]:
        """End the sessions whose lease has run out; which."""
        gone = [session for session in self._sessions.values() if now_s >= session.expires_s]
        for session in gone:
            self.end(session)
        cold = [one for one, heat in self._heat.items() if now_s >= max(heat.rest_until_s, heat.since_s + HOT_WINDOW_S)]
        for directory in cold:
            del self._heat[directory]
        for directory in list(self._leaving):
            self._get_leaving(directory, now_s)
        return gone

    def is_live(self, session_id: str, now_s: float) -> bool:
        """Whether a session's lease holds."""
        session = self._sessions.get(session_id)
        return session is not None and now_s < session.expires_s

    # What is held

    def grant(self, session_id: str, directory: InodeId, now_s: float) -> bool:
        """Note that a client is told of a directory now; False: its lease does not cover the answer.

        To be called in one step with the reading of what is told, so that no change comes between.
        """
        session = self._sessions.get(session_id)
        if session is None or now_s >= session.expires_s:
            return False
        heat = self._heat.get(directory)
        if heat is not None and now_s < heat.rest_until_s:
            return False
        held = self._holders.get(directory, 0)
        bit = 1 << session.slot
        if held & bit:
            return True
        self._holders[directory] = held | bit
        if len(self._holders) > self._max_directories:
            self._take_back(next(iter(self._holders)), Recall(next(iter(self._holders)), all_names=True), now_s)
        return directory in self._holders

    def recall(self, recall: Recall, now_s: float, *, source: str = "") -> list[Duty]:
        """Something has changed: who must confirm before it is known everywhere. `source` is the session whose change it is: it
        knows."""
        if len(recall.names) > MAX_NAMES:
            recall = Recall(recall.directory, all_names=True, inodes=recall.inodes)
        leaving = [*self._get_leaving(recall.directory, now_s), *self._get_leaving(EVERYWHERE, now_s)]
        duties = [*leaving, *self._tell(recall, now_s, source)]
        # The source is told as well where its holding goes, but not waited for: it waits for us.
        return [duty for duty in duties if duty.session.session_id != source]

    def take_from(self, session: Session, directory: InodeId, now_s: float) -> Duty | None:
        """Have one client forget all of a directory, whether it holds it or not. None: its lease does not last any more."""
        if session.ended:
            return None
        return next(iter(self._queue([session], Recall(directory, all_names=True), now_s)), None)

    def holds_alone(self, session: Session, directory: InodeId) -> bool:
        """Whether a session holds a directory, and no other does or did a moment ago."""
        return self._holders.get(directory) == 1 << session.slot and directory not in self._leaving

    def _tell(self, recall: Recall, now_s: float, source: str) -> list[Duty]:
        directory = recall.directory
        if directory == EVERYWHERE:
            if recall.pins_only:
                return self._queue(self._slots.values(), recall, now_s)
            self._holders.clear()
            duties = self._leaving[EVERYWHERE] = self._queue(self._slots.values(), recall, now_s)
            return duties
        held = self._holders.get(directory, 0)
        if not held:
            heat = self._heat.get(directory)
            if heat is not None and heat.rest_until_s:
                heat.rest_until_s = now_s + HOT_REST_S
            return []
        others = [session for session in self._list_holders(held) if session.session_id != source]
        # Who changes what nobody else holds keeps his lease, however often he does.
        if recall.all_names or (others and self._is_hot(directory, now_s)):
            return self._take_back(directory, replace(recall, all_names=True), now_s)
        return self._queue(others, recall, now_s)

    def _take_back(self, directory: InodeId, recall: Recall, now_s: float) -> list[Duty]:
        """Nobody holds the directory any more."""
        duties = self._queue(self._list_holders(self._holders.pop(directory)), recall, now_s)
        if duties:
            self._leaving[directory] = [*self._leaving.get(directory, ()), *duties]
        return duties

    def _get_leaving(self, directory: InodeId, now_s: float) -> list[Duty]:
        waiting = self.list_unconfirmed(self._leaving.get(directory, ()), now_s)
        if waiting:
            self._leaving[directory] = waiting
        else:
            self._leaving.pop(directory, None)
        return waiting

    def _is_hot(self, directory: InodeId, now_s: float) -> bool:
        heat = self._heat.get(directory)
        if heat is None or now_s - heat.since_s > HOT_WINDOW_S:
            heat = self._heat[directory] = _Heat(now_s)
        heat.count += 1
        if heat.count < HOT_RECALLS:
            return False
        heat.rest_until_s = now_s + HOT_REST_S
        return True

    def _list_holders(self, held: int) -> list[Session]:
        return [session for slot in _iter_bits(held) if (session := self._slots.get(slot)) is not None]

    def _queue(self, sessions: Iterable[Session], recall: Recall, now_s: float) -> list[Duty]:
        duties = []
        for session in sessions:
            if now_s >= session.expires_s:
                continue
            self._sequence += 1
            session.newest = self._sequence
            if len(session.pending) >= MAX_PENDING:
                # Forgetting everything is all of them at once, and as old as the oldest.
                queued_s = session.pending[0].queued_s
                session.pending.clear()
                session.pending.append(_Pending(session.newest, queued_s, Recall(EVERYWHERE, all_names=True)))
            else:
                session.pending.append(_Pending(session.newest, now_s, recall))
            duties.append(Duty(session, session.newest))
        return duties

    # What is sent, and waited for

    def take(self, session: Session, limit: int) -> tuple[tuple[Recall, ...], int]:
        """The next recalls to send, at most `limit`, and the sequence number of the last."""
        taken: list[_Pending] = []
        for pending in session.pending:
            if pending.sequence > session.sent:
                if len(taken) == limit:
                    break
                taken.append(pending)
        if taken:
            session.sent = taken[-1].sequence
        return tuple([pending.recall for pending in taken]), session.sent

    def list_unconfirmed(self, duties: Iterable[Duty], now_s: float) -> list[Duty]:
        """Those of the duties that are still to be waited for."""
        return [
            duty
            for duty in duties
            if not duty.session.ended and duty.session.confirmed < duty.sequence and now_s < duty.session.expires_s
        ]

    def get_start_wait_s(self, now_s: float) -> float:
        """How long leases that a master before this one may have given can still last."""
        return max(0.0, self._started_s + self.lease_s - now_s)


def may_be_outstanding(txn: ReadTransaction) -> bool:
    """Whether clients may hold leases that a master before this one gave; its start waits for their end then."""
    return txn.get(records.KEY_LEASES) != b"0"


def note_outstanding(txn: WriteTransaction, outstanding: bool) -> None:
    """To be stored before the first lease is given, and once all have been given back."""
    txn.put(records.KEY_LEASES, b"1" if outstanding else b"0")


def list_recalls(changes: Changes) -> list[Recall]:
    """What changes of a directory take back."""
    recalls = [Recall(directory) for directory in changes.touched]
    if changes.gone_from is not None:
        recalls.append(Recall(changes.directory, all_names=True))
        recalls.append(Recall(changes.gone_from, changes.names, inodes=(changes.directory,)))
    elif changes:
        inodes = (*changes.removed, *(old for old, _ in changes.replaced))
        recalls.append(Recall(changes.directory, changes.names, inodes=inodes))
    return recalls


def _iter_bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
