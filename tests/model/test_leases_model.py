"""Leases against a plain model: clients that lag, lose messages, stop and come back, and a master that starts anew.

The model knows what each client was told, and by whose clock it may still use it. What must hold: a client never uses a name
that has changed once the change was waited for; and no wait is longer than one lease time (after a start, until one from it).
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alluxio_like.master.core.leases import LEASE_S, Duty, LeaseTable, Session
from alluxio_like.types import EVERYWHERE, InodeId, Recall

CLIENTS = ("a", "b", "c")
DIRECTORIES = tuple(InodeId(number) for number in range(10, 15))
NAMES = (b"x", b"y")
Key = tuple[InodeId, bytes]

clients = st.sampled_from(CLIENTS)
keys = st.tuples(st.sampled_from(DIRECTORIES), st.sampled_from(NAMES))


@dataclass
class Client:
    """As client/coherence.py does it: what is kept, until when, and what has arrived."""

    session: Session | None = None
    table: LeaseTable | None = None
    begun: int = 0
    expires_s: float = 0.0
    kept: dict[Key, int] = field(default_factory=dict)
    arriving: list[tuple[Recall, int]] = field(default_factory=list)
    confirmed: int = 0


@dataclass
class Wait:
    """A change that is being waited for."""

    table: LeaseTable
    key: Key
    value: int
    duties: list[Duty]
    source: str
    not_before_s: float
    begun_s: float


class LeasesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.started_s = self.now_s - 2 * LEASE_S
        self.table = LeaseTable(self.started_s, max_directories=3)
        self.clients = {name: Client() for name in CLIENTS}
        self.sessions = 0
        self.values: dict[Key, int] = {}
        self.waits: list[Wait] = []
        self.settled: dict[Key, int] = {}
        """By name: the newest value whose change has been waited for to the end; nobody may use an older one."""

    def settle(self) -> None:
        for wait in list(self.waits):
            wait.duties = wait.table.list_unconfirmed(wait.duties, self.now_s) if wait.table is self.table else []
            if wait.table is not self.table:
                self.waits.remove(wait)  # the master died before it answered
            elif not wait.duties and self.now_s >= wait.not_before_s:
                self.waits.remove(wait)
                self.settled[wait.key] = max(self.settled.get(wait.key, 0), wait.value)

    @rule(name=clients)
    def connect(self, name: str) -> None:
        client = self.clients[name]
        resume = client.session is not None and client.table is self.table
        if not resume:
            self.sessions += 1
        session_id = client.session.session_id if resume and client.session else f"{name}{self.sessions}"
        session, fresh = self.table.begin(session_id, self.now_s, resume=resume)
        if fresh:
            client.kept.clear()
            client.arriving.clear()
            client.confirmed = 0
        client.session, client.table = session, self.table
        left_s = self.table.renew(session, self.now_s, client.confirmed)
        assert left_s is not None
        self.table.rewind(session)
        client.arriving.clear()
        client.expires_s = self.now_s + left_s

    @rule(name=clients, lost=st.booleans(), delay_s=st.sampled_from([0.0, 0.5, 4.0]))
    def renew(self, name: str, lost: bool, delay_s: float) -> None:
        client = self.clients[name]
        if client.session is None or client.table is not self.table:
            return
        sent_s = self.now_s
        confirmed = client.confirmed
        self.now_s += delay_s
        left_s = self.table.renew(client.session, self.now_s, confirmed)
        if left_s is None:
            client.session = None
        elif not lost:
            client.expires_s = max(client.expires_s, sent_s + left_s)
        self.settle()

    @rule(name=clients, count=st.integers(1, 3))
    def receive(self, name: str, count: int) -> None:
        """Some of the recalls arrive, and are applied before they are confirmed."""
        client = self.clients[name]
        if client.session is None or client.table is not self.table or client.session.ended:
            return
        recalls, sequence = self.table.take(client.session, count)
        for recall in recalls:
            for key in list(client.kept):
                if recall.directory in (EVERYWHERE, key[0]) and (recall.all_names or key[1] in recall.names):
                    del client.kept[key]
        if recalls:
            client.confirmed = sequence

    @rule(name=clients, key=keys)
    def ask(self, name: str, key: Key) -> None:
        client = self.clients[name]
        if client.session is None or client.table is not self.table:
            return
        if self.table.grant(client.session.session_id, key[0], self.now_s):
            client.kept[key] = self.values.get(key, 0)

    @rule(key=keys, source=st.sampled_from((*CLIENTS, "")))
    def change(self, key: Key, source: str) -> None:
        value = self.values[key] = self.values.get(key, 0) + 1
        client = self.clients.get(source)
        session_id = ""
        if client is not None and client.session is not None and client.table is self.table:
            session_id = client.session.session_id
            if key in client.kept:
                client.kept[key] = value
        duties = self.table.recall(Recall(key[0], (key[1],)), self.now_s, source=session_id)
        not_before_s = self.now_s + self.table.get_start_wait_s(self.now_s)
        self.waits.append(Wait(self.table, key, value, duties, session_id, not_before_s, self.now_s))
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 9.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.settle()

    @rule(beats=st.integers(1, 6))
    def renew_all(self, beats: int) -> None:
        """Nothing else happens for a while."""
        for _ in range(beats):
            self.now_s += LEASE_S / 4
            for name in CLIENTS:
                self.renew(name, lost=False, delay_s=0.0)
        self.settle()

    @rule()
    def expire(self) -> None:
        self.table.expire(self.now_s)
        self.settle()

    @rule(name=clients)
    def say_goodbye(self, name: str) -> None:
        client = self.clients[name]
        if client.session is not None and client.table is self.table:
            self.table.end(client.session)
            client.session = None
            client.kept.clear()
        self.settle()

    @precondition(lambda self: self.now_s > self.started_s)
    @rule()
    def restart(self) -> None:
        self.started_s = self.now_s
        self.table = LeaseTable(self.started_s, max_directories=3)
        self.settle()

    @invariant()
    def nobody_uses_what_was_recalled_everywhere(self) -> None:
        for client in self.clients.values():
            if self.now_s < client.expires_s:
                for key, value in client.kept.items():
                    assert value >= self.settled.get(key, 0), (key, value)

    @invariant()
    def nobody_is_waited_for_longer_than_a_lease(self) -> None:
        for wait in self.waits:
            assert self.now_s < max(wait.begun_s, wait.not_before_s) + LEASE_S

    @invariant()
    def the_bound_holds(self) -> None:
        assert self.table.count_directories() <= 3


TestLeases = LeasesMachine.TestCase
TestLeases.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
