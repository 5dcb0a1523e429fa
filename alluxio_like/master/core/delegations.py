"""Which directories are delegated to which clients, and what is to be waited for before anybody else is told of one.

Owns who holds a delegation, by the session of its lease; how each is taken back: by a recall that the holder confirms, or by the
end of its lease; and those that a master before this one gave. A delegation that has ended never comes back: only a directory
that was just made is delegated.

Deterministic: the time comes from outside (seconds of a clock that never goes back), nothing is sent from here. One event loop
alone, but for `prepare`, `drop` and `is_filled_by_another`, which any thread may call. The rows of the store, by which the next
master knows of them, are functions over a transaction: they stay until nothing is to be waited for any more.
"""

from collections.abc import Iterable, Mapping

from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import records
from alluxio_like.master.core.leases import Duty, LeaseTable, Session
from alluxio_like.types import InodeId

MOST_HELD = 4096
"""Delegations of one session; beyond it the oldest is taken back. A guess: about 200 bytes each here."""


class Delegations:
    """See the module. `before`: of the master before this one, as `list_rows` has them."""

    def __init__(self, leases: LeaseTable, before: Mapping[InodeId, str] | None = None, *, most_held: int = MOST_HELD) -> None:
        self._leases = leases
        self._most_held = most_held
        self._held: dict[InodeId, Session] = {}
        self._by_session: dict[Session, dict[InodeId, None]] = {}
        """What each holds, the oldest first."""
        self._leaving: dict[InodeId, Duty] = {}
        """Those that were recalled from a holder that has not confirmed it, or not been seen to."""
        self._before = dict(before or {})
        """Those that a master before this one gave, until their holder is here and they are recalled."""
        self._prepared: dict[InodeId, str] = {}
        """Those whose making is being committed."""
        self._ended: set[InodeId] = set()
        """Those whose rows can be removed."""
        self._pauses = 0
        self.taken_back = 0
        """How many were recalled, until who counts them sets it back."""

    def count(self) -> int:
        """How many are held."""
        return len(self._held)

    # Giving

    def prepare(self, directory: InodeId, session_id: str) -> None:
        """A directory is being made that `give` is to be called for, or `drop`, once it is known whether that has committed. From
        any thread."""
        self._prepared[directory] = session_id

    def drop(self, directory: InodeId) -> None:
        """Nothing has come of it, or `give` was called."""
        self._prepared.pop(directory, None)

    def is_filled_by_another(self, directory: InodeId, session_id: str) -> bool:
        """Whether a directory that somebody would remove is another session's. From any thread."""
        # (In this order: it comes to the second before it leaves the first.)
        prepared, held = self._prepared.get(directory), self._held.get(directory)
        return (prepared is not None and prepared != session_id) or (held is not None and held.session_id != session_id)

    def give(self, session_id: str, directory: InodeId, now_s: float) -> bool:
        """Delegate a directory that was just made to the session that made it; False: it is not to be, and what the store has of
        it goes. Its lease must cover the directory (LeaseTable.grant)."""
        session = self._leases.lookup(session_id)
        if self._pauses or session is None or now_s >= session.expires_s or not self._leases.holds_alone(session, directory):
            self._ended.add(directory)
            return False
        if len(mine := self._by_session.get(session, {})) >= self._most_held:
            self.take(next(iter(mine)), now_s)
        self._by_session.setdefault(session, {})[directory] = None
        self._held[directory] = session
        return True

    def has(self, session_id: str, directory: InodeId, now_s: float) -> bool:
        """Whether a directory is delegated to a session, and its lease lasts."""
        session = self._held.get(directory)
        return session is not None and session.session_id == session_id and not session.ended and now_s < session.expires_s

    def pause(self) -> None:
        """Give none until `resume`, as often as that was paused."""
        self._pauses += 1

    def resume(self) -> None:
        self._pauses -= 1

    # Taking back

    def concerns(self, session_id: str, directory: InodeId) -> bool:
        """Whether somebody else than that session may have to be waited for before it is told of a directory."""
        if directory in self._held or directory in self._leaving or directory in self._before:
            return not self.is_of(session_id, directory)
        return False

    def is_of(self, session_id: str, directory: InodeId) -> bool:
        """Whether a directory is, or was until it is known that others may be told of it, that session's alone."""
        return self.get_holder(directory) == session_id

    def get_holder(self, directory: InodeId) -> str:
        """Whose alone a directory is, or was until it is known that others may be told of it, by its lease; empty: nobody's."""
        held, duty = self._held.get(directory), self._leaving.get(directory)
        session = held or (duty.session if duty is not None else None)
        return self._before.get(directory, "") if session is None else session.session_id

    def list_all(self) -> list[InodeId]:
        """All that somebody may have to be waited for."""
        return [*self._held, *self._leaving, *self._before]

    def take(self, directory: InodeId, now_s: float) -> Session | None:
        """A delegation ends: its holder is to publish what it made, and to confirm that; who, if it can still hear of it."""
        session = self._drop(directory)
        return session if session is not None and self._recall(session, directory, now_s) else None

    def _recall(self, session: Session, directory: InodeId, now_s: float) -> bool:
        duty = self._leases.take_from(session, directory, now_s)
        if duty is None:
            self._ended.add(directory)
            return False
        self._leaving[directory] = duty
        self.taken_back += 1
        return True

    def end(self, directory: InodeId) -> None:
        """A delegation ends, and its holder knows: it has removed the directory."""
        if self._drop(directory) is not None:
            self._ended.add(directory)

    def _drop(self, directory: InodeId) -> Session | None:
        session = self._held.pop(directory, None)
        if session is None:
            return None
        mine = self._by_session[session]
        del mine[directory]
        if not mine:
            del self._by_session[session]
        return session

    def take_up(self, session: Session, now_s: float) -> None:
        """A session has begun: what it held of a master before this one is recalled."""
        for directory in [one for one, session_id in self._before.items() if session_id == session.session_id]:
            del self._before[directory]
            self._recall(session, directory, now_s)

    def end_session(self, session_id: str) -> bool:
        """What a session held of a master before this one is over: another client has taken its place. Whether it held any."""
        ended = [directory for directory, holder in self._before.items() if holder == session_id]
        for directory in ended:
            del self._before[directory]
        self._ended.update(ended)
        return bool(ended)

    def get_wait_s(self, directories: Iterable[InodeId], session_id: str, now_s: float) -> float:
        """How long at most somebody else than that session has to be waited for, of directories that were taken back; 0: nobody
        has."""
        longest_s = 0.0
        for directory in directories:
            duty = self._leaving.get(directory)
            if duty is not None:
                if not self._leases.list_unconfirmed([duty], now_s):
                    del self._leaving[directory]
                    self._ended.add(directory)
                elif duty.session.session_id != session_id:
                    longest_s = max(longest_s, duty.session.expires_s - now_s)
            elif self._before.get(directory, session_id) != session_id:
                left_s = self._leases.get_start_wait_s(now_s)
                longest_s = max(longest_s, left_s)
                if not left_s:
                    # Who waits looks again at once: it is not to find it here still.
                    del self._before[directory]
                    self._ended.add(directory)
        return longest_s

    def expire(self, now_s: float) -> None:
        """Forget what is over; to be called every second or so."""
        for session in [one for one in self._by_session if one.ended or now_s >= one.expires_s]:
            for directory in list(self._by_session[session]):
                self.end(directory)
        self.get_wait_s(list(self._leaving), "", now_s)
        if self._before and not self._leases.get_start_wait_s(now_s):
            self._ended.update(self._before)
            self._before.clear()

    # Rows of the store

    def list_ended(self) -> list[InodeId]:
        """Whose rows are to be removed; `forget_ended` once they are."""
        return list(self._ended)

    def forget_ended(self, directories: Iterable[InodeId]) -> None:
        self._ended.difference_update(directories)


def put_row(txn: WriteTransaction, directory: InodeId, session_id: str) -> None:
    """Note a delegation with the directory that it is of."""
    txn.put(records.delegation_key(directory), session_id.encode())


def list_rows(txn: ReadTransaction) -> dict[InodeId, str]:
    """All directories that were delegated, by the session that each was delegated to."""
    return {InodeId(int.from_bytes(key[1:], "big")): data.decode() for key, data in txn.scan(b"d", b"e")}


def delete_rows(txn: WriteTransaction, directories: Iterable[InodeId]) -> None:
    for directory in directories:
        txn.delete(records.delegation_key(directory))
