"""What a holder is told to hold, how it starts a daemon, and the daemon's process as the holder sees it.

Owns the description that the command `fuse` hands to the holder (`Plan`), and a daemon's descriptors: its channel, its pidfd,
what is kept of its device. What to do with them is the holder's. Standard library only. One thread.
"""

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Iterable
from typing import Any, NamedTuple

from alluxio_like.errors import InvalidArgument
from alluxio_like.fuse import control, ledger, libc
from alluxio_like.fuse.device import Device

_STANDBY_AFTER_S = 1.0
_STANDBY_RETRY_S = 10.0
"""After a daemon serves, and between two tries: starting one takes a second of CPU that others may need. Guesses."""
_CONTROL_FD = 3
"""The number of the daemon's end of the channel, told to it as its last argument."""
TOLD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What a holder or a joiner takes itself."""


class Launch(NamedTuple):
    """How a daemon is started, and its configuration."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    config: dict[str, Any]

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "Launch":
        """Raises InvalidArgument."""
        try:
            argv, env, cwd, config = (facts[name] for name in cls._fields)
            if not argv or not isinstance(config, dict):
                raise ValueError("no command")
            return cls([str(word) for word in argv], {str(k): str(v) for k, v in env.items()}, str(cwd), config)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"no way to start a daemon ({error!r})") from None


class Plan(NamedTuple):
    """What a holder is to hold. `place`: resolved; `adopt`: a daemon without a holder serves it already; `joined`: its daemons
    are started elsewhere and come by themselves; then `read_ahead_kb` is set here (0: not), and `leave_after_s` is how long a
    holder that is told to stop waits for them to be stopped too. Times in seconds."""

    place: str
    launch: Launch
    socket: str
    allow_other: bool
    adopt: bool = False
    place_made: bool = False
    passthrough: str = "auto"
    read_only: bool = False
    locks: bool = False
    resend: bool = True
    ready_file: str = ""
    record_file: str = ""
    lifeline: int = -1
    log_format: str = "text"
    standby: bool = True
    give_up_s: float = 10.0
    start_timeout_s: float = 60.0
    leave_s: float = 40.0
    joined: bool = False
    leave_after_s: float = 15.0
    read_ahead_kb: int = 0
    suid: bool = False

    def to_json(self) -> str:
        return json.dumps({**self._asdict(), "launch": self.launch._asdict()})

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        facts = json.loads(text)
        return cls(**{**facts, "launch": Launch.from_facts(facts["launch"])})


class Child:
    """A daemon's process; generation 0 before it has one. `kept`: a copy of its descriptor, which keeps the requests that it
    leaves unanswered; `since_ns`: when what keeps it going was started, of one that came by itself; `lease`: what its lease at
    the master is known by, once it has said so."""

    def __init__(self, generation: int, pid: int, pidfd: int, sock: socket.socket, ledger_fd: int, *, is_child: bool) -> None:
        self.generation = generation
        self.pid = pid
        self.pidfd = pidfd
        self.sock = sock
        self.ledger_fd = ledger_fd
        self.is_child = is_child
        self.kept: Device | None = None
        self.reason = ""
        self.facts: dict[str, Any] = {}
        self.since_ns = 0
        self.lease = ""

    def send(self, kind: str, fds: Iterable[int] = (), **details: Any) -> None:
        """Tell it something; where it does not listen any more, its end shows that soon."""
        control.send(self.sock, {"kind": kind, **details}, list(fds))

    def get_end(self) -> tuple[int, str, bool]:
        """After its end: the exit code (0 where it is not known), what it died of in words, and whether that was SIGKILL."""
        if not self.is_child:
            return 0, self.reason or "it has ended", False
        code = 1
        with contextlib.suppress(ChildProcessError):
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        said = f"it was killed by signal {-code}" if code < 0 else f"it ended with {code}"
        return max(code, 1) if code else 0, self.reason or said, code == -signal.SIGKILL

    def kill(self, reason: str) -> None:
        """End it at once; its end comes by its pidfd."""
        self.reason = reason
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether its process is gone."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        self.sock.close()
        os.close(self.pidfd)
        os.close(self.ledger_fd)


class Standby:
    """A process that has loaded everything and waits to be greeted: on a busy machine loading takes seconds, while calls wait."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._launch: Launch | None = None
        self._next_s = 0.0

    def wait(self, now: float) -> None:
        """A daemon has just begun to serve: leave it the CPU for a moment."""
        self._next_s = now + _STANDBY_AFTER_S

    def keep(self, launch: Launch, now: float) -> None:
        """Have one for this launch."""
        if self._child is not None and (launch is not self._launch or self._child.has_ended()):
            self.drop()
        if self._child is None and now >= self._next_s:
            self._next_s = now + _STANDBY_RETRY_S
            with contextlib.suppress(OSError):
                self._child, self._launch = start_child(launch), launch

    def take(self, launch: Launch) -> Child | None:
        """The one that waits, if it is for this launch and lives."""
        if self._child is None or launch is not self._launch or self._child.has_ended():
            self.drop()
            return None
        child, self._child = self._child, None
        return child

    def drop(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.kill("")
            self._child.get_end()
            self._child.close()
            self._child = None


def start_child(launch: Launch) -> Child:
    """Start a daemon; it waits to be greeted. Raises OSError; nothing stays behind then."""
    ours, theirs = control.make_pair()
    ledger_fd = -1
    try:
        ledger_fd = ledger.make_memory()
        pid = fork_daemon(launch, theirs.fileno())
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    except OSError:
        ours.close()
        if ledger_fd >= 0:
            os.close(ledger_fd)
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return Child(0, pid, pidfd, ours, ledger_fd, is_child=True)


def fork_daemon(launch: Launch, descriptor: int, *, tied: bool = False) -> int:
    """Start a daemon in a session of its own, so that a terminal's Ctrl-C reaches the holder alone; its pid. Raises OSError.

    `descriptor` becomes its descriptor _CONTROL_FD; `tied`: it is told to end when this process has.
    """
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid:
        return pid
    try:
        # A signal for it must not be taken by our handlers, nor be told to us through the descriptor that wakes us.
        signal.set_wakeup_fd(-1)
        for number in TOLD:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.setsid()
        if tied:
            libc.set_death_signal(signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(127)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(descriptor, _CONTROL_FD)
        os.set_inheritable(_CONTROL_FD, True)
        os.chdir(launch.cwd)
        os.execve(launch.argv[0], [*launch.argv, str(_CONTROL_FD)], launch.env)
    except OSError as error:
        os.write(2, f"alluxio-like: cannot start {launch.argv[0]} ({error.strerror})\n".encode())
    finally:
        os._exit(127)
