"""What a holder decides: its rules one by one, and against any order of events."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alluxio_like.fuse import holding as h

SETTINGS = h.Settings(give_up_s=10, start_timeout_s=60, stop_s=6, leave_s=40)


class World:
    """Daemons as the holder's process would see them: does what is decided, at once."""

    def __init__(self) -> None:
        self.core = h.Holding(SETTINGS)
        self.now = 100.0
        self.log: list[h.Action] = []
        self.alive: dict[int, str] = {}
        self.reading: set[int] = set()
        self.refusing = False
        self.mounted = False
        self.status: int | None = None
        self.asked = 0
        self.do(self.core.begin(self.now))

    def do(self, actions: list[h.Action]) -> list[h.Action]:
        todo = list(actions)
        while todo:
            action = todo.pop(0)
            self.log.append(action)
            match action:
                case h.Spawn(generation, _, _):
                    assert generation not in self.alive
                    self.alive[generation] = "starting"
                case h.Mount():
                    assert not self.mounted
                    self.mounted = True
                    todo[:0] = self.core.mounted(self.now)
                case h.Serve(generation, _):
                    assert not self.refusing
                    assert generation in self.alive
                    # Who served before takes no further request.
                    assert not self.reading, self.log
                    self.reading.add(generation)
                case h.Refuse(on):
                    assert on != self.refusing
                    assert not (on and self.reading)
                    self.refusing = on
                case h.Drain(generation) | h.Stop(generation) | h.Ping(generation, _) | h.Kill(generation, _):
                    assert generation in self.alive
                case h.Unmount():
                    assert self.mounted
                    self.mounted = False
                case h.Finish(status):
                    assert self.status is None
                    assert not self.alive
                    assert not self.mounted
                    self.status = status
                case h.Replaced():
                    assert self.asked == 1
                    self.asked = 0
        return actions

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end and self.status is None:
            self.now = min(end, self.now + max(0.05, self.core.get_wait(self.now)))
            self.do(self.core.tick(self.now))

    def take(self, kind: type[h.Action]) -> list[h.Action]:  # type: ignore[valid-type]
        found = [action for action in self.log if isinstance(action, kind)]
        self.log = [action for action in self.log if not isinstance(action, kind)]
        return found

    def ready(self, generation: int) -> None:
        self.do(self.core.ready(generation, self.now))

    def confirm(self, generation: int) -> None:
        self.do(self.core.confirmed(generation, self.now))

    def exit(self, generation: int, status: int = 1, *, killed: bool = False) -> None:
        del self.alive[generation]
        self.reading.discard(generation)
        self.do(self.core.exited(generation, status, "a reason", self.now, killed=killed))

    def serve_first(self) -> "World":
        self.ready(1)
        self.confirm(1)
        return self


def test_nothing_is_mounted_before_the_first_daemon_is_ready() -> None:
    world = World()
    assert not world.mounted
    world.ready(1)
    assert world.mounted
    assert world.take(h.Serve) == [h.Serve(1, resend=False)]


def test_a_first_daemon_that_fails_ends_it_with_its_status() -> None:
    world = World()
    world.exit(1, 2)
    assert world.status == 2
    assert not world.take(h.Unmount)


def test_a_daemon_that_dies_is_followed_at_once_and_what_it_left_is_sent_again() -> None:
    world = World().serve_first()
    world.pass_time(60)
    world.exit(1, killed=True)
    assert world.take(h.Spawn)[-1] == h.Spawn(2, resumed=True, replacement=False)
    world.ready(2)
    assert world.take(h.Serve)[-1] == h.Serve(2, resend=True)
    assert world.core.restarts == 1


def test_requests_are_refused_after_a_while_and_served_again() -> None:
    world = World().serve_first()
    world.exit(1, killed=True)
    world.pass_time(9.9)
    assert not world.refusing
    world.pass_time(0.2)
    assert world.refusing
    assert world.core.state == "refusing"
    world.ready(2)
    assert not world.refusing
    # Nothing is left that could be sent again.
    assert world.take(h.Serve)[-1] == h.Serve(2, resend=False)
    assert world.core.restarts == 1


def test_pauses_grow_between_daemons_that_do_not_start() -> None:
    world = World().serve_first()
    world.exit(1, killed=True)
    world.pass_time(0.1)
    starts = []
    for _ in range(9):
        generation = max(world.alive)
        world.exit(generation)
        since = world.now
        while not world.alive:
            world.pass_time(0.05)
        starts.append(round(world.now - since, 1))
    assert starts[0] <= 0.3
    assert starts == sorted(starts)
    assert 9.9 <= starts[-1] <= 10.2


def test_a_request_that_crashes_each_daemon_is_given_up() -> None:
    world = World().serve_first()
    for _ in range(h.POISONED):
        assert not world.take(h.DropRequests)
        world.exit(max(world.alive))
        world.pass_time(1.5)
        world.ready(max(world.alive))
        world.confirm(max(world.alive))
    assert world.take(h.DropRequests)
    assert world.take(h.Serve)[-1] == h.Serve(1 + h.POISONED, resend=False)


def test_kills_from_outside_are_not_taken_for_that() -> None:
    world = World().serve_first()
    for generation in range(1, 300):
        world.exit(generation, killed=True)
        if generation < h.KILLS_AT_ONCE:
            assert generation + 1 in world.alive, "not started at once"
        world.pass_time(h.PAUSE_AFTER_KILLS_S)
        assert generation + 1 in world.alive, "not started soon"
        world.ready(generation + 1)
        world.confirm(generation + 1)
    assert not world.take(h.DropRequests)


def test_a_daemon_that_answers_no_pings_is_killed() -> None:
    world = World().serve_first()
    for _ in range(20):
        world.pass_time(2)
        world.core.pong(1)
    assert not world.take(h.Kill)
    world.pass_time(h.PING_EVERY_S * (h.MISSED_PINGS + 2))
    assert world.take(h.Kill) == [h.Kill(1, "it does not answer")]


def test_a_machine_that_was_paused_costs_no_daemon_its_life() -> None:
    world = World().serve_first()
    world.pass_time(3)
    world.now += 3600
    world.do(world.core.tick(world.now))
    world.do(world.core.tick(world.now + 0.1))
    assert not world.take(h.Kill)


def ask(world: World) -> None:
    world.asked = 1
    world.do(world.core.replace(world.now))


def test_a_replacement_takes_over_when_the_old_one_has_drained() -> None:
    world = World().serve_first()
    ask(world)
    assert world.take(h.Spawn)[-1] == h.Spawn(2, resumed=True, replacement=True)
    world.ready(2)
    assert world.take(h.Drain) == [h.Drain(1)]
    world.reading.discard(1)
    world.do(world.core.paused(1, world.now))
    assert world.take(h.Serve) == [h.Serve(1, resend=False)]
    world.do(world.core.drained(1, world.now))
    assert world.take(h.Serve) == [h.Serve(2, resend=False)]
    world.confirm(2)
    assert world.take(h.Replaced) == [h.Replaced(done=True, reason="")]
    world.exit(1, 0)
    assert world.core.serving == 2
    assert world.core.restarts == 0


def test_a_replacement_does_not_wait_for_long_requests() -> None:
    world = World().serve_first()
    ask(world)
    world.ready(2)
    world.reading.discard(1)
    world.do(world.core.paused(1, world.now))
    world.pass_time(h.OVERLAP_S + 0.1)
    assert world.core.serving == 2
    world.confirm(2)
    for _ in range(6):
        world.pass_time(5)
        world.core.pong(2)
    assert not world.take(h.Kill)
    world.pass_time(10)
    assert h.Kill(1, "it did not finish its requests") in world.take(h.Kill)


def test_an_old_daemon_that_does_not_pause_is_killed_and_its_requests_are_sent_again() -> None:
    world = World().serve_first()
    ask(world)
    world.ready(2)
    world.pass_time(h.PAUSE_S + 0.1)
    assert world.take(h.Kill) == [h.Kill(1, "it did not stop taking requests")]
    world.exit(1, killed=True)
    assert world.take(h.Serve)[-1] == h.Serve(2, resend=True)


def test_a_replacement_that_fails_leaves_the_old_one_alone() -> None:
    world = World().serve_first()
    ask(world)
    world.exit(2)
    assert world.take(h.Replaced) == [h.Replaced(done=False, reason="a reason")]
    assert world.core.serving == 1
    world.pass_time(20)
    assert list(world.alive) == [1]


@pytest.mark.parametrize("asked", [False, True])
def test_a_replacement_that_dies_when_the_old_one_drains_is_followed(asked: bool) -> None:
    world = World().serve_first()
    ask(world)
    world.ready(2)
    world.reading.discard(1)
    world.do(world.core.paused(1, world.now))
    world.exit(2)
    assert world.take(h.Replaced) == [h.Replaced(done=False, reason="a reason")]
    if asked:
        ask(world)
    else:
        world.pass_time(1)
    assert 3 in world.alive, "who drains takes no requests"
    world.ready(3)
    world.pass_time(h.OVERLAP_S + 0.1)
    assert world.core.serving == 3
    assert world.take(h.Drain) == [h.Drain(1)]


def test_a_replacement_may_come_when_nothing_else_starts() -> None:
    world = World().serve_first()
    world.exit(1, killed=True)
    world.pass_time(15)
    ask(world)
    assert isinstance(world.take(h.Kill)[-1], h.Kill)
    world.exit(2, killed=True)
    assert world.take(h.Spawn)[-1] == h.Spawn(3, resumed=True, replacement=True)
    world.ready(3)
    world.confirm(3)
    assert world.take(h.Replaced) == [h.Replaced(done=True, reason="")]


def test_two_replacements_at_once_are_one_too_many() -> None:
    world = World().serve_first()
    ask(world)
    assert world.core.replace(world.now) == [h.Replaced(done=False, reason="it is being replaced already")]


def test_an_impossible_transition_says_what_went_before() -> None:
    daemon = h._Daemon(7, 0.0)
    daemon.go(h.READY, 1)
    with pytest.raises(RuntimeError, match=r"daemon 7 cannot be draining after starting → ready"):
        daemon.go(h.DRAINING, 2)


class Machine(RuleBasedStateMachine):
    """Any order of events."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.told_to_drain: set[int] = set()

    def over(self) -> bool:
        return self.world.status is not None

    def pick(self, choice: int) -> int:
        alive = sorted(self.world.alive)
        return alive[choice % len(alive)]

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 11.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @precondition(lambda self: self.world.alive)
    @rule(choice=st.integers(0, 9))
    def is_ready(self, choice: int) -> None:
        self.world.ready(self.pick(choice))

    @precondition(lambda self: self.world.alive)
    @rule(choice=st.integers(0, 9))
    def is_confirmed(self, choice: int) -> None:
        self.world.confirm(self.pick(choice))

    @precondition(lambda self: self.world.alive)
    @rule(choice=st.integers(0, 9), status=st.integers(0, 3), killed=st.booleans())
    def ends(self, choice: int, status: int, killed: bool) -> None:
        self.world.exit(self.pick(choice), status, killed=killed)

    @precondition(lambda self: self.world.alive)
    @rule(choice=st.integers(0, 9))
    def answers(self, choice: int) -> None:
        self.world.core.pong(self.pick(choice))

    @precondition(lambda self: any(isinstance(a, h.Drain) for a in self.world.log))
    @rule(fully=st.booleans())
    def drains(self, fully: bool) -> None:
        world = self.world
        (drain,) = world.take(h.Drain)[-1:]
        assert isinstance(drain, h.Drain)
        if drain.generation in world.alive:
            world.reading.discard(drain.generation)
            world.do(world.core.paused(drain.generation, world.now))
            if fully:
                world.do(world.core.drained(drain.generation, world.now))

    @precondition(lambda self: not self.world.asked)
    @rule()
    def somebody_asks(self) -> None:
        if not self.over():
            ask(self.world)

    @rule(chance=st.integers(0, 9))
    def is_told_to_stop(self, chance: int) -> None:
        if chance == 0:
            self.world.do(self.world.core.stop(self.world.now))

    @invariant()
    def what_it_says_is_so(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        assert len(world.reading) <= 1
        assert world.core.refusing == world.refusing
        if world.core.serving and not self.over():
            assert world.core.serving in world.alive

    def teardown(self) -> None:
        """Whatever happened: with daemons that do as they should it serves again, and told to stop it ends."""
        if not hasattr(self, "world"):
            return
        world = self.world
        for _ in range(200):
            if world.status is not None or (world.core.serving and not world.asked and len(world.alive) == 1):
                break
            for kill in world.take(h.Kill):
                assert isinstance(kill, h.Kill)
                if kill.generation in world.alive:
                    world.exit(kill.generation, killed=True)
            for drain in world.take(h.Drain):
                assert isinstance(drain, h.Drain)
                if drain.generation in world.alive:
                    world.reading.discard(drain.generation)
                    world.do(world.core.paused(drain.generation, world.now))
                    world.do(world.core.drained(drain.generation, world.now))
                    if drain.generation in world.alive and world.core.serving != drain.generation:
                        world.exit(drain.generation, 0)
            for generation in sorted(world.alive):
                world.ready(generation)
                world.confirm(generation)
                world.core.pong(generation)
            world.pass_time(1)
        else:
            raise AssertionError(f"it never serves again: {world.core.state}, {world.log[-20:]}")
        world.do(world.core.stop(world.now))
        for _ in range(100):
            if world.status is not None:
                return
            world.pass_time(1)
            for kill in world.take(h.Kill):
                assert isinstance(kill, h.Kill)
                if kill.generation in world.alive:
                    world.exit(kill.generation, killed=True)
        raise AssertionError("it does not end")


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_the_ledger_hands_on_what_is_written() -> None:
    import os

    from alluxio_like.fuse.ledger import Ledger, copy_sent, list_left, make_memory

    fd, successor = make_memory(), make_memory()
    kept = os.dup(fd)
    ledger = Ledger(fd)
    try:
        for inode in (5, 1 << 40, 7, 5):
            ledger.note_written(inode)
        ledger.forget_written(7)
        ledger.forget_written(8)
        ledger.begin()
        ledger.add(99)
        copy_sent(kept, successor)
        assert list_left(kept) == ([99], None)
    finally:
        ledger.close()
        os.close(kept)
    ledger = Ledger(successor)
    try:
        assert sorted(ledger.list_written()) == [5, 1 << 40]
        for inode in range(100, 1000):
            ledger.note_written(inode)
        assert len(ledger.list_written()) == 256
        for inode in (5, 1 << 40, *range(100, 1000)):
            ledger.forget_written(inode)
        assert ledger.list_written() == []
    finally:
        ledger.close()


def test_the_ledger_tells_what_was_left(tmp_path: object) -> None:
    import os

    from alluxio_like.fuse.ledger import Ledger, SentAway, copy_sent, list_left, make_memory

    fd, successor = make_memory(), make_memory()
    kept = os.dup(fd)
    try:
        assert list_left(kept) == ([], None)
        ledger = Ledger(fd)
        for backing_id in range(1, 3001):
            ledger.begin()
            ledger.add(backing_id)
        for backing_id in range(1, 3001):
            if backing_id % 1000:
                ledger.remove(backing_id)
        ledger.begin()
        ledger.abandon()
        ids, last = list_left(kept)
        assert sorted(ids) == [1000, 2000, 3000]
        assert last is None
        ledger.begin()
        assert list_left(kept)[1] == 3000
        ledger.add(3001)
        assert len(ledger) == 4
        assert ledger.list_sent() == []
        away = [SentAway(thread, 1 << 47 | thread, 2 * thread, 1e6 + thread) for thread in range(1, 101)]
        for one in away:
            ledger.note_sent(one)
        ledger.forget_sent(100, 1 << 47 | 100)
        assert sorted(ledger.list_sent()) == away[36:99]
        copy_sent(kept, successor)
        assert sorted(list_left(kept)[0]) == [1000, 2000, 3000, 3001], "beside it"
        other = Ledger(os.dup(successor))
        assert sorted(other.list_sent()) == away[36:99]
        assert list_left(successor) == ([], None)
        other.close()
        assert sorted(list_left(kept)[0]) == [1000, 2000, 3000, 3001]
        ledger.close()
        os.ftruncate(kept, 0)
        assert list_left(kept) == ([], None)
        copy_sent(kept, successor)
    finally:
        os.close(kept)
        os.close(successor)


class PatientWorld(World):
    """Daemons that come by themselves: `waiting` of them are there."""

    def __init__(self) -> None:
        self.waiting = 0
        super().__init__()
        self.core = h.Holding(SETTINGS._replace(patient=True))
        self.alive.clear()
        self.log.clear()
        assert self.core.begin(self.now) == []

    def do(self, actions: list[h.Action]) -> list[h.Action]:
        for action in super().do(actions):
            if isinstance(action, h.Spawn):
                if self.waiting:
                    self.waiting -= 1
                else:
                    del self.alive[action.generation]
                    self.do(self.core.absent(action.generation))
        return actions

    def arrive(self) -> None:
        self.waiting += 1
        self.do(self.core.arrived(self.now))


def test_a_patient_holder_outlives_first_daemons_that_fail() -> None:
    world = PatientWorld()
    world.pass_time(3600)
    assert not world.alive
    world.arrive()
    world.exit(1, 2)
    world.pass_time(60)
    assert world.status is None
    assert not world.mounted
    world.arrive()
    generation = max(world.alive)
    world.ready(generation)
    assert world.mounted
    assert world.take(h.Serve) == [h.Serve(generation, resend=False)]


def test_a_patient_holder_refuses_while_nobody_comes_and_serves_who_does() -> None:
    world = PatientWorld()
    world.arrive()
    world.serve_first()
    world.exit(1, killed=True)
    world.pass_time(11)
    assert world.refusing
    assert not world.alive
    world.arrive()
    generation = max(world.alive)
    world.ready(generation)
    assert not world.refusing
    world.confirm(generation)
    assert world.core.serving == generation


def test_who_arrives_while_one_serves_waits() -> None:
    world = PatientWorld()
    world.arrive()
    world.serve_first()
    world.arrive()
    assert list(world.alive) == [1]
    world.exit(1, killed=True)
    assert len(world.alive) == 1
    assert world.waiting == 0
