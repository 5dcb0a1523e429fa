"""Clients' leases, and telling them what has changed.

Owns the streams of clients, the waiting for confirmations, and what a change of the mount table takes back. What is held by whom
is master/core/leases.py. Answers are covered (`grant`) in the same step in which they are read, and a change is told (`tell`,
`invalidate`) after its transaction has committed: whoever was told the old state is among the holders then.

A client may say of others that it has taken their place (WatchRequest.succeeded): their leases end then as if they had run out.
It says so once nothing is relied on that they were told (client/coherence.py), and a stranger cannot: an id has 122 random bits,
and is known to its client, to us, and to workers that seal for it. The session of a client that is there, with a stream, goes on,
whoever says what; the stream of a process that was killed ends with it, or the same is said again with the next renewal.

Directories are delegated to clients under their leases (master/core/delegations.py): `take_back` waits until who holds one has
confirmed that it is over, and nothing is told of one to others before (0071).

Rule of concurrency: event loop alone; no method but `watch`, `invalidate`, `wait_confirmed` and `take_back` awaits.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.master.core.delegations import Delegations
from alluxio_like.master.core.leases import Duty, LeaseTable, Session
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import WatchMessage, WatchReply
from alluxio_like.types import InodeId, Recall

log = logging.getLogger(__name__)

RECALLS_A_MESSAGE = 200
FIRST_MESSAGE_S = 10.0
"""A stream that says nothing for so long is closed."""


class _Stream:
    """One open stream of a session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.answered = 0
        self.lease_s = 0.0
        self.number = 0
        self.ended = False
        self.fresh = False
        self.change = asyncio.Event()

    def end(self) -> None:
        self.ended = True
        self.change.set()


class Telling(NamedTuple):
    """Who is being told of a change, and until when leases may last that a master before this one gave."""

    duties: list[Duty]
    start_s: float


class Coherence:
    """CoherenceHandler of rpc.coherence, and what the rest of the master covers answers and tells changes with."""

    def __init__(
        self,
        table: LeaseTable,
        *,
        clock: Clock,
        metrics: Metrics,
        get_cluster_epoch: Callable[[], int],
        note_outstanding: Callable[[bool], Awaitable[None]] | None = None,
        delegations: Delegations | None = None,
    ) -> None:
        """`note_outstanding` stores whether clients may hold a lease: asked before the first is given, and by `settle`."""
        self._table = table
        self.delegations = delegations or Delegations(table)
        self._clock = clock
        self._metrics = metrics
        self._get_cluster_epoch = get_cluster_epoch
        self._run = secrets.randbits(62) | 1
        self._streams: dict[str, _Stream] = {}
        self._progress = asyncio.Event()
        self._closed = False
        self._note_outstanding = note_outstanding
        self._is_noted = note_outstanding is None

    # What the rest of the master calls

    def grant(self, session_id: str, directory: InodeId) -> bool:
        """Whether a client's lease covers what it is told of a directory now; see LeaseTable.grant."""
        return bool(session_id) and self._table.grant(session_id, directory, self._clock.monotonic())

    def tell(self, recalls: Iterable[Recall], *, source: str = "") -> list[Duty]:
        """Changes that have committed: those who were told otherwise hear of it soon. Does not wait."""
        now_s = self._clock.monotonic()
        duties: list[Duty] = []
        for recall in recalls:
            for duty in self._table.recall(recall, now_s, source=source):
                duties.append(duty)
                self._metrics.lease_recalls.inc()
        for session_id in {duty.session.session_id for duty in duties}:
            self._wake(session_id)
        return duties

    async def invalidate(self, recalls: Iterable[Recall], *, source: str = "", wait: bool) -> None:
        """As `tell`; with `wait` it returns when no other client can still use what was true before: each has confirmed, or its
        lease has run out. Never later than one lease time, and once more that after a start of the master, from it on."""
        told = self.begin(recalls, source=source)
        if wait:
            await self.wait_confirmed(told)

    def begin(self, recalls: Iterable[Recall], *, source: str = "") -> "Telling":
        """As `tell`, of what is to be waited for with `wait_confirmed`."""
        now_s = self._clock.monotonic()
        start_s = now_s + self._table.get_start_wait_s(now_s)
        return Telling(self.tell(recalls, source=source), start_s)

    async def wait_confirmed(self, told: "Telling") -> None:
        """The end of `invalidate`."""
        if (left_s := told.start_s - self._clock.monotonic()) > 0:
            # Clients of the master before this one may hold what nobody here knows of.
            await asyncio.sleep(left_s)
        duties = told.duties
        while duties:
            now_s = self._clock.monotonic()
            duties = self._table.list_unconfirmed(duties, now_s)
            if not duties:
                return
            progress = self._progress
            left_s = min(duty.session.expires_s for duty in duties) - now_s
            try:
                async with asyncio.timeout(left_s):
                    await progress.wait()
            except TimeoutError:
                continue

    def is_live(self, session_id: str) -> bool:
        """Whether a client's lease holds."""
        return self._table.is_live(session_id, self._clock.monotonic())

    def get_start_wait_s(self) -> float:
        """For how long leases may last that a master before this one gave."""
        return self._table.get_start_wait_s(self._clock.monotonic())

    # Delegated directories

    def delegate(self, session_id: str, directory: InodeId) -> bool:
        """Have a directory that was just made be its maker's, whose lease then covers it; False: it is not to be."""
        now_s = self._clock.monotonic()
        self._table.grant(session_id, directory, now_s)
        given = self.delegations.give(session_id, directory, now_s)
        if self._count_taken():
            # The oldest one, for which nobody waits.
            self._wake(session_id)
        return given

    def _count_taken(self) -> int:
        """How many were taken back since this was last asked."""
        taken, self.delegations.taken_back = self.delegations.taken_back, 0
        self._metrics.delegations_taken_back.inc(taken)
        return taken

    def has_delegated(self, session_id: str, directory: InodeId) -> bool:
        """Whether a directory is delegated to a client."""
        return bool(session_id) and self.delegations.has(session_id, directory, self._clock.monotonic())

    def list_delegated(self) -> list[InodeId]:
        """All directories of which something may be known to one client alone."""
        return self.delegations.list_all()

    def is_anothers(self, directory: InodeId, session_id: str) -> bool:
        """Whether a client (or nobody, "") cannot be told of a directory before it was taken back."""
        return self.delegations.concerns(session_id, directory)

    @contextmanager
    def pause_delegating(self) -> Iterator[None]:
        """No directory is delegated meanwhile: for who asks about many, or about those that are just being made."""
        self.delegations.pause()
        try:
            yield
        finally:
            self.delegations.resume()

    def end_delegation(self, directory: InodeId) -> None:
        """A directory's delegation is over, without waiting: its holder is told."""
        session = self.delegations.take(directory, self._clock.monotonic())
        self._count_taken()
        if session is not None:
            self._wake(session.session_id)

    async def take_back(self, directories: Iterable[InodeId] | None, session_id: str, *, own: bool = False) -> None:
        """Return when nothing of these directories (None: of any) is known to another client alone than that of `session_id`:
        each has published what it made and has confirmed that, or its lease has run out. `own`: that one's delegations end too,
        and are not waited for."""
        wanted = self.list_delegated() if directories is None else list(directories)
        for directory in wanted:
            if own or self.delegations.concerns(session_id, directory):
                self.end_delegation(directory)
        while True:
            now_s = self._clock.monotonic()
            left_s = self.delegations.get_wait_s(wanted, session_id, now_s)
            if left_s <= 0:
                return
            progress = self._progress
            try:
                async with asyncio.timeout(left_s):
                    await progress.wait()
            except TimeoutError:
                continue

    def expire(self) -> None:
        """End the sessions whose lease has run out; to be called every second or so."""
        for session in self._table.expire(self._clock.monotonic()):
            log.info("a client's lease has run out", extra={"session": session.session_id})
            self._end_stream(session.session_id)
        self.delegations.expire(self._clock.monotonic())
        self._metrics.delegations.set(self.delegations.count())
        self._advance()
        self._metrics.lease_sessions.set(self._table.count_sessions())
        self._metrics.lease_directories.set(self._table.count_directories())

    def close(self) -> None:
        """End the streams, and take no others: the master stops. Leases run out by themselves."""
        self._closed = True
        for session_id in list(self._streams):
            self._end_stream(session_id)

    async def settle(self) -> None:
        """After `close`, when no call is under way any more: the next start need not wait for leases that were all given back."""
        if self._note_outstanding is not None and not self._table.count_sessions():
            await self._note_outstanding(False)

    # The streams

    async def watch(self, messages: AsyncIterator[WatchMessage]) -> AsyncGenerator[WatchReply]:
        """See rpc.coherence.CoherenceHandler."""
        async with asyncio.timeout(FIRST_MESSAGE_S):
            first = await anext(messages, None)
        if first is None or not first.session_id:
            raise errors.InvalidArgument("the first message names the session")
        if not self._is_noted and self._note_outstanding is not None:
            await self._note_outstanding(True)
            self._is_noted = True
        if self._closed:
            raise errors.Unavailable("the master is stopping")
        stream = self._begin(first)
        reader = asyncio.create_task(self._read(stream, messages), name=f"lease {first.session_id}")
        try:
            while not stream.ended:
                reply = self._make_reply(stream)
                if reply is None:
                    await stream.change.wait()
                    stream.change.clear()
                else:
                    yield reply
        finally:
            if self._streams.get(first.session_id) is stream:
                del self._streams[first.session_id]
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    def _begin(self, first: WatchMessage) -> _Stream:
        now_s = self._clock.monotonic()
        session, fresh = self._table.begin(first.session_id, now_s, resume=first.run == self._run)
        self._end_stream(first.session_id)
        stream = self._streams[first.session_id] = _Stream(session)
        stream.fresh = fresh
        self._renew(stream, first)
        self._table.rewind(session)
        self.delegations.take_up(session, now_s)
        self._count_taken()
        self._advance()
        return stream

    async def _read(self, stream: _Stream, messages: AsyncIterator[WatchMessage]) -> None:
        try:
            async for message in messages:
                if message.bye:
                    self._table.end(stream.session)
                else:
                    self._renew(stream, message)
                self._advance()
                if stream.session.ended:
                    return
        finally:
            stream.end()

    def _renew(self, stream: _Stream, message: WatchMessage) -> None:
        left_s = self._table.renew(stream.session, self._clock.monotonic(), message.confirmed)
        if left_s is not None:
            stream.number, stream.lease_s = message.number, left_s
            stream.change.set()
            self._end_succeeded(message.succeeded)

    def _end_succeeded(self, session_ids: Iterable[str]) -> None:
        """Clients whose place another one has taken rely on nothing any more: what waits for them goes on."""
        for session_id in session_ids:
            if session_id in self._streams:
                continue
            if self.delegations.end_session(session_id):
                self._advance()
            session = self._table.lookup(session_id)
            if session is not None:
                self._table.end(session)
                self._metrics.leases_succeeded.inc()
                log.info("a client's lease was ended by who took its place", extra={"session": session_id})
                self._advance()

    def _make_reply(self, stream: _Stream) -> WatchReply | None:
        """What is to be said now, if anything."""
        number = stream.number if stream.number > stream.answered else 0
        recalls, sequence = self._table.take(stream.session, RECALLS_A_MESSAGE)
        if not number and not recalls:
            return None
        fresh, stream.fresh = stream.fresh, False
        stream.answered = max(stream.answered, number)
        return WatchReply(self._run, number, stream.lease_s, fresh, recalls, sequence, self._get_cluster_epoch())

    def _wake(self, session_id: str) -> None:
        stream = self._streams.get(session_id)
        if stream is not None:
            stream.change.set()

    def _end_stream(self, session_id: str) -> None:
        stream = self._streams.pop(session_id, None)
        if stream is not None:
            stream.end()

    def _advance(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()
