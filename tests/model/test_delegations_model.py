"""Delegated directories against a plain model: clients that fill them, lag, lose messages, stop and come back, others that ask,
and a master that starts anew.

What must hold: once a question about a directory is answered to somebody, no other client has files there that nobody knows of,
or can make some by itself, unless its lease has run out by its own clock; and no question waits longer than one lease time
(after a start, until two from it).
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alluxio_like.master.core.delegations import Delegations
from alluxio_like.master.core.leases import LEASE_S, LeaseTable, Session
from alluxio_like.types import EVERYWHERE, InodeId, Recall

CLIENTS = ("a", "b", "c")
MOST_HELD = 2

clients = st.sampled_from(CLIENTS)
askers = st.sampled_from((*CLIENTS, ""))
places = st.integers(0, 7)
"""Of the directories that there are, counted from the newest on."""


@dataclass
class Client:
    """One mount: what it may fill, and what it has made there that it has not published."""

    session: Session | None = None
    table: LeaseTable | None = None
    expires_s: float = 0.0
    held: set[InodeId] = field(default_factory=set)
    made: dict[InodeId, int] = field(default_factory=dict)
    arriving: list[tuple[Recall, int]] = field(default_factory=list)
    confirmed: int = 0


@dataclass
class Question:
    """What somebody asks, and is not answered yet."""

    asker: str
    directories: list[InodeId]
    begun_s: float


class DelegationsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.started_s = self.now_s - 2 * LEASE_S
        self.rows: dict[InodeId, str] = {}
        self.begin_master()
        self.clients = {name: Client() for name in CLIENTS}
        self.directories: list[InodeId] = []
        self.questions: list[Question] = []
        self.shared: dict[InodeId, set[str]] = {}
        """By directory, who was told of it, "" for those without a lease."""

    def begin_master(self) -> None:
        self.table = LeaseTable(self.started_s, max_directories=4)
        self.delegations = Delegations(self.table, self.rows, most_held=MOST_HELD)

    def is_there(self, name: str) -> bool:
        client = self.clients[name]
        return client.session is not None and client.table is self.table and not client.session.ended

    def settle(self) -> None:
        for question in list(self.questions):
            if self.delegations.get_wait_s(question.directories, question.asker, self.now_s) <= 0:
                self.questions.remove(question)
                for directory in question.directories:
                    self.shared.setdefault(directory, set()).add(question.asker)

    def drop_late(self, client: Client) -> None:
        """A client whose lease has run out by its own clock makes no more by itself, and what it has made others hear of late."""
        if self.now_s >= client.expires_s:
            client.held.clear()
            client.made.clear()

    @rule(name=clients, resume=st.booleans())
    def connect(self, name: str, resume: bool) -> None:
        client = self.clients[name]
        self.drop_late(client)
        if not resume and self.now_s < client.expires_s and client.table is self.table:
            return  # only who has lost its lease begins anew
        session, fresh = self.table.begin(name, self.now_s, resume=client.table is self.table and resume)
        left_s = self.table.renew(session, self.now_s, client.confirmed)
        assert left_s is not None
        self.table.rewind(session)
        client.arriving.clear()
        if fresh:
            client.held.clear()
            client.confirmed = 0
            client.arriving.append((Recall(EVERYWHERE, all_names=True), 0))
        client.session, client.table = session, self.table
        client.expires_s = self.now_s + left_s
        self.delegations.take_up(session, self.now_s)
        self.settle()

    @rule(name=clients, lost=st.booleans(), delay_s=st.sampled_from([0.0, 0.5, 4.0]))
    def renew(self, name: str, lost: bool, delay_s: float) -> None:
        client = self.clients[name]
        if client.session is None or client.table is not self.table:
            return
        sent_s, confirmed = self.now_s, client.confirmed
        self.now_s += delay_s
        left_s = self.table.renew(client.session, self.now_s, confirmed)
        if left_s is None:
            client.session = None
        elif not lost:
            client.expires_s = max(client.expires_s, sent_s + left_s)
        self.settle()

    @rule(name=clients, count=st.integers(1, 3))
    def receive(self, name: str, count: int) -> None:
        """Recalls arrive: what is recalled is not filled any more."""
        if not self.is_there(name):
            return
        client = self.clients[name]
        assert client.session is not None
        recalls, sequence = self.table.take(client.session, count)
        for recall in recalls:
            client.arriving.append((recall, sequence))

    @rule(name=clients)
    def confirm(self, name: str) -> None:
        """What has arrived is confirmed, in its order, once it is published."""
        client = self.clients[name]
        for recall, sequence in client.arriving:
            for directory in {*client.held, *client.made}:
                if recall.all_names and recall.directory in (EVERYWHERE, directory):
                    client.held.discard(directory)
                    client.made.pop(directory, None)
            client.confirmed = max(client.confirmed, sequence)
        client.arriving.clear()

    @rule(name=clients, is_lost=st.booleans(), dies=st.booleans())
    def mkdir(self, name: str, is_lost: bool, dies: bool) -> None:
        if not self.is_there(name):
            return
        directory = InodeId(100 + len(self.directories))
        self.directories.append(directory)
        self.rows[directory] = name
        self.delegations.prepare(directory, name)
        if dies:
            self.restart()
            return
        self.table.grant(name, directory, self.now_s)
        given = self.delegations.give(name, directory, self.now_s)
        self.delegations.drop(directory)
        assert given == self.delegations.has(name, directory, self.now_s)
        if given and not is_lost and self.now_s < self.clients[name].expires_s:
            self.clients[name].held.add(directory)

    @rule(name=clients, place=places)
    def make(self, name: str, place: int) -> None:
        """A program makes a file."""
        client = self.clients[name]
        self.drop_late(client)
        held = sorted(client.held)
        if held:
            directory = held[place % len(held)]
            client.made[directory] = client.made.get(directory, 0) + 1

    @rule(name=clients)
    def publish(self, name: str) -> None:
        if self.is_there(name):
            self.clients[name].made.clear()

    @rule(asker=askers, place=places, also_own=st.booleans())
    def ask(self, asker: str, place: int, also_own: bool) -> None:
        if self.directories:
            self.take_back(asker, [self.directories[-1 - place % len(self.directories)]], own=also_own)

    @rule(asker=askers)
    def ask_about_all(self, asker: str) -> None:
        self.take_back(asker, self.delegations.list_all(), own=True)

    def take_back(self, asker: str, directories: list[InodeId], *, own: bool) -> None:
        for directory in directories:
            if own or self.delegations.concerns(asker, directory):
                self.delegations.take(directory, self.now_s)
        self.questions.append(Question(asker, directories, self.now_s))
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 9.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.settle()

    @rule()
    def expire(self) -> None:
        self.table.expire(self.now_s)
        self.delegations.expire(self.now_s)
        self.settle()

    @rule()
    def forget_rows(self) -> None:
        ended = self.delegations.list_ended()
        for directory in ended:
            self.rows.pop(directory, None)
        self.delegations.forget_ended(ended)

    @precondition(lambda self: self.now_s > self.started_s)
    @rule()
    def restart(self) -> None:
        self.started_s = self.now_s
        self.questions.clear()
        self.begin_master()

    @invariant()
    def nobody_was_told_of_what_another_fills(self) -> None:
        for name, client in self.clients.items():
            if self.now_s < client.expires_s:
                for directory in {*client.held, *client.made}:
                    assert not self.shared.get(directory, set()) - {name}, (name, directory)

    @invariant()
    def no_question_waits_longer_than_a_lease(self) -> None:
        for question in self.questions:
            assert self.now_s < max(question.begun_s, self.started_s + LEASE_S) + LEASE_S

    @invariant()
    def the_bound_holds(self) -> None:
        held = [self.delegations._by_session.get(client.session) for client in self.clients.values() if client.session]
        assert all(one is None or len(one) <= MOST_HELD for one in held)


TestDelegations = DelegationsMachine.TestCase
TestDelegations.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
