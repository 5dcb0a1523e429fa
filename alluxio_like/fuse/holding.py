"""What a holder decides: which daemon serves, when another is started, when requests are refused, and how it ends.

Owns the life of a mount's daemons as a table of phases and the rules between them; deterministic. It is told what happened and
what time it is (seconds of any steady clock), and returns what is to be done, in order; the holder (holder.py) does it. Standard
library only. One thread.

At most one daemon serves and at most one is coming. Others may be leaving: they take no request any more and finish what they
have.
"""

from typing import NamedTuple

STARTING, READY, SERVING, DRAINING, ENDING, GONE = "starting", "ready", "serving", "draining", "ending", "gone"

_PHASES: dict[str, frozenset[str]] = {
    # from → to, for each daemon
    STARTING: frozenset({READY, ENDING, GONE}),
    READY: frozenset({SERVING, ENDING, GONE}),
    SERVING: frozenset({DRAINING, ENDING, GONE}),
    DRAINING: frozenset({ENDING, GONE}),
    ENDING: frozenset({GONE}),
    GONE: frozenset(),
}

PING_EVERY_S = 2.0
MISSED_PINGS = 6
"""A daemon that has answered none of so many is taken for hanging and killed. Pings are counted, not seconds: a machine that was
paused must not cost a daemon its life. A guess."""
PAUSE_S = 5.0
"""What a daemon may take to stop taking requests when it is told to drain. A guess."""
OVERLAP_S = 2.0
"""After so long the successor serves, while the daemon before it still finishes requests that wait for a store. A guess."""
SHORT_LIFE_S = 2.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0
POISONED = 4
"""So many daemons in a row that crashed within SHORT_LIFE_S of serving: what is sent again to each of them may be what they die
of, and is answered with an error instead. A guess."""
KILLS_AT_ONCE = 20
PAUSE_AFTER_KILLS_S = 0.5
"""So many daemons in a row that were killed (SIGKILL) within SHORT_LIFE_S are each started again without a pause, later ones
after this one: somebody kills them, or memory is short. Guesses."""


class Settings(NamedTuple):
    """Times in seconds."""

    give_up_s: float = 10.0
    start_timeout_s: float = 60.0
    stop_s: float = 6.0
    leave_s: float = 40.0
    patient: bool = False
    """Daemons come by themselves (`arrived`), and may be long in coming: without one there is no mount yet, and no end either."""


class Spawn(NamedTuple):
    """Start a daemon. `replacement`: from what `replace` brought, else from what the last good one was started from."""

    generation: int
    resumed: bool
    replacement: bool


class Mount(NamedTuple):
    """Make the mount, then call `mounted` or `mount_failed`."""


class Serve(NamedTuple):
    generation: int
    resend: bool


class Drain(NamedTuple):
    generation: int


class Stop(NamedTuple):
    generation: int


class Kill(NamedTuple):
    generation: int
    reason: str


class Ping(NamedTuple):
    generation: int
    number: int


class Refuse(NamedTuple):
    """Answer all requests with an error, or no longer."""

    on: bool


class DropRequests(NamedTuple):
    """End what dead daemons left unanswered with an error."""


class Served(NamedTuple):
    """A daemon serves now: say so where that is read."""

    generation: int


class Replaced(NamedTuple):
    """The answer to who asked for a replacement."""

    done: bool
    reason: str


class Unmount(NamedTuple):
    pass


class Finish(NamedTuple):
    status: int


Action = Spawn | Mount | Serve | Drain | Stop | Kill | Ping | Refuse | DropRequests | Served | Replaced | Unmount | Finish


class _Daemon:
    """One daemon. `since_s`: when its phase began."""

    __slots__ = ("confirmed", "generation", "history", "killed", "missed", "paused_s", "phase", "pinged_s", "since_s")

    def __init__(self, generation: int, now: float) -> None:
        self.generation = generation
        self.phase = STARTING
        self.since_s = now
        self.history = [STARTING]
        self.paused_s: float | None = None
        self.pinged_s = now
        self.missed = 0
        self.killed = False
        self.confirmed = False

    def go(self, phase: str, now: float) -> None:
        if phase not in _PHASES[self.phase]:
            raise RuntimeError(f"daemon {self.generation} cannot be {phase} after {' → '.join(self.history)}")
        self.phase = phase
        self.since_s = now
        self.history.append(phase)


class Holding:
    """One mount's daemons. `generation`: of the newest; `restarts`: how many took over from one that died."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._daemons: dict[int, _Daemon] = {}
        self._serving: _Daemon | None = None
        self._coming: _Daemon | None = None
        self._is_mounted = False
        self._ending = False
        self._status = 0
        self._finished = False
        self._alone_s: float | None = None
        self._start_s: float | None = None
        self._unanswered = False
        self._died = False
        self._failures = 0
        self._crashes = 0
        self._kills = 0
        self._replacing = False
        self._replacement = 0
        self.refusing = False
        self.generation = 0
        self.restarts = 0

    @property
    def serving(self) -> int:
        """The generation that serves, 0 for none."""
        return self._serving.generation if self._serving else 0

    @property
    def state(self) -> str:
        """In a word, for a person."""
        if self._ending:
            return "ending"
        if self._serving:
            return "replacing" if self._replacing else "serving"
        return "refusing" if self.refusing else "starting"

    def get_wait(self, now: float) -> float:
        """Seconds until `tick` should be called, at most 1."""
        at = [now + 1.0]
        if self._ending:
            return 1.0
        if self._start_s is not None and self._coming is None:
            at.append(self._start_s)
        if self._alone_s is not None and not self.refusing:
            at.append(self._alone_s + self._settings.give_up_s)
        return max(0.0, min(at) - now)

    # What happens

    def begin(self, now: float) -> list[Action]:
        """The holder starts, with nothing mounted."""
        return [] if self._settings.patient else self._spawn(now, replacement=False)

    def arrived(self, now: float) -> list[Action]:
        """A daemon has come by itself (`patient`): it is needed now, or not yet."""
        if self._ending or self._serving or self._coming or self._start_s is not None:
            return []
        return self._spawn(now, replacement=False)

    def absent(self, generation: int) -> list[Action]:
        """There is none to start (`patient`): the next one that arrives is."""
        daemon = self._daemons.pop(generation)
        daemon.go(GONE, daemon.since_s)
        self._coming = None
        self._start_s = None
        if not self._replacing:
            return []
        self._replacing = False
        return [Replaced(done=False, reason="there is none to take its place")]

    def adopt(self, generation: int, restarts: int, now: float) -> list[Action]:
        """The holder starts on a mount that a daemon of an earlier holder serves."""
        daemon = _Daemon(generation, now)
        self._daemons[generation] = self._serving = daemon
        for phase in (READY, SERVING):
            daemon.go(phase, now)
        daemon.confirmed = True
        self._is_mounted = True
        self.generation = generation
        self.restarts = restarts
        return [Served(generation)]

    def ready(self, generation: int, now: float) -> list[Action]:
        """A daemon could serve."""
        daemon = self._daemons.get(generation)
        if daemon is None or daemon.phase != STARTING:
            return []
        daemon.go(READY, now)
        if not self._is_mounted:
            return [Mount()]
        if self._serving is None:
            return self._serve(daemon, now)
        if self._serving.phase == DRAINING:
            # For another one, which died before it served: this one's turn comes as that one's would have.
            return []
        self._serving.go(DRAINING, now)
        return [Drain(self._serving.generation)]

    def mounted(self, now: float) -> list[Action]:
        """The mount was made."""
        self._is_mounted = True
        return self._serve(self._coming, now) if self._coming else []

    def mount_failed(self, status: int, *, mounted: bool, now: float) -> list[Action]:
        """The mount could not be made, or (`mounted`) not be used."""
        self._status = status
        self._is_mounted = mounted
        return self.stop(now)

    def confirmed(self, generation: int, now: float) -> list[Action]:
        """A daemon says that it serves."""
        daemon = self._daemons.get(generation)
        if daemon is None or daemon is not self._serving or daemon.confirmed:
            return []
        daemon.confirmed = True
        daemon.since_s = now
        self._failures = 0
        actions: list[Action] = [Served(generation)]
        if self._replacing and generation == self._replacement:
            self._replacing = False
            actions.append(Replaced(done=True, reason=""))
        return actions

    def paused(self, generation: int, now: float) -> list[Action]:
        """A daemon that was told to drain takes no further request."""
        daemon = self._daemons.get(generation)
        if daemon is not None and daemon.phase == DRAINING:
            daemon.paused_s = now
        return []

    def drained(self, generation: int, now: float) -> list[Action]:
        """A daemon that was told to drain has answered everything and ends."""
        daemon = self._daemons.get(generation)
        if daemon is None or daemon.phase != DRAINING:
            return []
        daemon.go(ENDING, now)
        if daemon is not self._serving:
            return []
        self._serving = None
        self._alone_s = now
        return self._serve(self._coming, now) if self._coming and self._coming.phase == READY else []

    def pong(self, generation: int) -> None:
        """A daemon lives."""
        if daemon := self._daemons.get(generation):
            daemon.missed = 0

    def exited(self, generation: int, status: int, reason: str, now: float, *, killed: bool = False) -> list[Action]:
        """A daemon's process is gone; `reason` in words, `status` is its exit code (or 1), `killed`: by SIGKILL."""
        daemon = self._daemons.pop(generation, None)
        if daemon is None:
            return []
        crashed = daemon.phase in (SERVING, DRAINING)
        lived_s = now - daemon.since_s
        daemon.go(GONE, now)
        was_coming = daemon is self._coming
        if was_coming:
            self._coming = None
        actions: list[Action] = []
        if self._replacing and generation == self._replacement:
            self._replacing = False
            actions.append(Replaced(done=False, reason=reason))
        if self._ending:
            if daemon is self._serving:
                self._serving = None
            return actions + self._finish_if_over()
        if not self._is_mounted and not self._settings.patient:
            self._ending = True
            self._status = status or 1
            return actions + self._finish_if_over()
        if daemon is self._serving:
            self._serving = None
            self._alone_s = now
            if crashed:
                self._unanswered = self._died = True
                is_short = lived_s < SHORT_LIFE_S
                self._crashes = self._crashes + 1 if is_short and not killed else 0
                self._kills = self._kills + 1 if is_short and killed else 0
        # Who drains takes no requests: without the one that it drains for nobody would.
        is_needed = self._serving is None or (was_coming and self._serving.phase == DRAINING)
        if is_needed and self._coming is None:
            # One that never served, or that crashes again and again, is not started at once; one that is asked for is.
            self._failures += not crashed
            count = max(self._failures, self._crashes - 1)
            pause_s = min(FIRST_PAUSE_S * 2 ** min(count - 1, 10), LONGEST_PAUSE_S) if count > 0 else 0.0
            if self._kills > KILLS_AT_ONCE:
                pause_s = max(pause_s, PAUSE_AFTER_KILLS_S)
            self._start_s = now + (0.0 if self._replacing else pause_s)
            return actions + self.tick(now)
        if self._serving is None and self._coming and self._coming.phase == READY:
            return actions + self._serve(self._coming, now)
        return actions

    def replace(self, now: float) -> list[Action]:
        """Somebody wants another daemon to take over; they are answered by Replaced."""
        if self._ending or not self._is_mounted:
            return [Replaced(done=False, reason="the mount is about to end" if self._ending else "the mount is not there yet")]
        if self._replacing or (self._coming and self._serving):
            return [Replaced(done=False, reason="it is being replaced already")]
        self._replacing = True
        self._start_s = None
        if self._coming:
            # It is not known whether this one will ever serve: the new one comes in its place.
            self._replacement = 0
            self._start_s = now
            return self._kill(self._coming, "it is replaced")
        return self._spawn(now, replacement=True)

    def stop(self, now: float) -> list[Action]:
        """The mount is to end, or has ended."""
        if self._finished:
            return []
        if self._ending:
            return self._finish_if_over()
        self._ending = True
        self._start_s = None
        actions: list[Action] = []
        if self._replacing:
            self._replacing = False
            actions.append(Replaced(done=False, reason="the mount ends"))
        for daemon in list(self._daemons.values()):
            if daemon.phase != ENDING:
                daemon.go(ENDING, now)
            actions.append(Stop(daemon.generation))
        return actions + self._finish_if_over()

    def kill_all(self) -> list[Action]:
        """Whoever wants the end does not want to wait for it."""
        return self._unmount() + [
            action for daemon in self._daemons.values() for action in self._kill(daemon, "it was to end at once")
        ]

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        actions: list[Action] = []
        for daemon in list(self._daemons.values()):
            actions += self._look_at(daemon, now)
        if self._ending:
            return actions
        if self._start_s is not None and now >= self._start_s and self._coming is None:
            self._start_s = None
            actions += self._spawn(now, replacement=self._replacing)
        if self._alone_s is not None and now - self._alone_s >= self._settings.give_up_s and not self.refusing:
            self.refusing = True
            self._unanswered = False
            actions.append(Refuse(on=True))
        return actions

    # Inside

    def _look_at(self, daemon: _Daemon, now: float) -> list[Action]:
        spent_s, settings = now - daemon.since_s, self._settings
        if daemon.killed:
            return []
        if daemon.phase == STARTING and spent_s > settings.start_timeout_s:
            return self._kill(daemon, f"it was not ready after {settings.start_timeout_s:g} s")
        if daemon.phase == ENDING and spent_s > settings.stop_s:
            # A thread of it may wait in the kernel for an answer that nobody will give: only the mount's end frees it.
            return self._kill(daemon, "it did not end") + (self._unmount() if self._ending else [])
        if daemon.phase == SERVING and now - daemon.pinged_s >= PING_EVERY_S:
            if daemon.missed >= MISSED_PINGS:
                return self._kill(daemon, "it does not answer")
            daemon.pinged_s = now
            daemon.missed += 1
            return [Ping(daemon.generation, daemon.missed)]
        return self._look_at_draining(daemon, now) if daemon.phase == DRAINING else []

    def _look_at_draining(self, daemon: _Daemon, now: float) -> list[Action]:
        if daemon.paused_s is None:
            return self._kill(daemon, "it did not stop taking requests") if now - daemon.since_s > PAUSE_S else []
        if now - daemon.since_s > self._settings.leave_s:
            return self._kill(daemon, "it did not finish its requests")
        if daemon is self._serving and now - daemon.paused_s > OVERLAP_S and self._coming and self._coming.phase == READY:
            self._serving = None
            return self._serve(self._coming, now)
        return []

    def _spawn(self, now: float, *, replacement: bool) -> list[Action]:
        self.generation += 1
        self._coming = self._daemons[self.generation] = _Daemon(self.generation, now)
        if replacement:
            self._replacement = self.generation
        return [Spawn(self.generation, self._is_mounted, replacement)]

    def _serve(self, daemon: _Daemon | None, now: float) -> list[Action]:
        assert daemon is not None
        daemon.go(SERVING, now)
        daemon.pinged_s = now
        self._coming = None
        self._serving = daemon
        self._alone_s = None
        actions: list[Action] = []
        if self.refusing:
            self.refusing = False
            actions.append(Refuse(on=False))
        self.restarts += self._died
        self._died = False
        if self._unanswered and self._crashes >= POISONED:
            self._unanswered = False
            actions.append(DropRequests())
        actions.append(Serve(daemon.generation, self._unanswered))
        self._unanswered = False
        return actions

    @staticmethod
    def _kill(daemon: _Daemon, reason: str) -> list[Action]:
        if daemon.killed:
            return []
        daemon.killed = True
        return [Kill(daemon.generation, reason)]

    def _finish_if_over(self) -> list[Action]:
        if self._daemons or self._finished:
            return []
        self._finished = True
        return [*self._unmount(), Finish(self._status)]

    def _unmount(self) -> list[Action]:
        was_mounted, self._is_mounted = self._is_mounted, False
        return [Unmount()] if was_mounted else []
