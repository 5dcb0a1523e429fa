"""Keeps the daemons of a mount going whose holder is another process, which they join.

Owns the processes of its daemons: starts them again when they end, at once where they had lived for a while, and ends them when
it is told to. With a standby it runs two, of which the holder lets one serve. The command `fuse --join` turns into this one:
small, standard library only, one thread. The daemons' way to the holder is theirs (daemon.py), and who serves is the holder's to
say.
"""

import os
import select
import signal
import socket
import sys
import time
from typing import NamedTuple

from alluxio_like.fuse.holder_child import TOLD, Launch, fork_daemon
from alluxio_like.fuse.holding import FIRST_PAUSE_S, LONGEST_PAUSE_S

SHORT_LIFE_S = 5.0
"""A daemon that ended sooner is started again after a pause that doubles. A guess."""


class Running(NamedTuple):
    pid: int
    pidfd: int
    started_s: float


class Joiner:
    """`count` daemons, each started with the configuration in a descriptor of its own."""

    def __init__(self, launch: Launch, config: bytes, count: int) -> None:
        self._launch = launch
        self._config = config
        self._count = count
        self._running: dict[int, Running] = {}
        self._poll = select.poll()
        self._short = 0
        self._next_s = 0.0
        self._signals, write = socket.socketpair()
        self._signals_write = write
        for end in (self._signals, write):
            end.setblocking(False)

    def run(self) -> int:
        """Until SIGTERM or SIGINT, and until the daemons have ended then; the exit code."""
        signal.set_wakeup_fd(self._signals_write.fileno(), warn_on_full_buffer=False)
        for number in TOLD:
            signal.signal(number, lambda *_: None)
        self._poll.register(self._signals.fileno(), select.POLLIN)
        ending = False
        while not (ending and not self._running):
            if not ending and len(self._running) < self._count and time.monotonic() >= self._next_s:
                self._start()
            for fd, _ in self._poll.poll(1000 if ending or len(self._running) == self._count else 50):
                if fd == self._signals.fileno():
                    self._signals.recv(64)
                    self._signal_all(signal.SIGKILL if ending else signal.SIGTERM)
                    ending = True
                else:
                    self._note_end(self._running.pop(fd))
        return 0

    def _start(self) -> None:
        descriptor = os.memfd_create("config", 0)
        try:
            os.write(descriptor, self._config)
            os.lseek(descriptor, 0, os.SEEK_SET)
            pid = fork_daemon(self._launch, descriptor, tied=True)
        except OSError as error:
            sys.stderr.write(f"alluxio-like: no daemon could be started ({error.strerror})\n")
            self._next_s = time.monotonic() + LONGEST_PAUSE_S
            return
        finally:
            os.close(descriptor)
        running = Running(pid, os.pidfd_open(pid), time.monotonic())
        self._running[running.pidfd] = running
        self._poll.register(running.pidfd, select.POLLIN)

    def _note_end(self, ended: Running) -> None:
        self._poll.unregister(ended.pidfd)
        os.close(ended.pidfd)
        os.waitpid(ended.pid, 0)
        now = time.monotonic()
        self._short = self._short + 1 if now - ended.started_s < SHORT_LIFE_S else 0
        pause_s = min(FIRST_PAUSE_S * 2 ** min(self._short - 1, 10), LONGEST_PAUSE_S) if self._short else 0.0
        self._next_s = now + pause_s

    def _signal_all(self, number: int) -> None:
        for running in self._running.values():
            signal.pidfd_send_signal(running.pidfd, number)


def main(plan_fd: int) -> int:
    """Run with the configuration that a descriptor holds: JSON, an object with `launch`, `config` and `count`."""
    import json

    with os.fdopen(plan_fd, "rb") as stream:
        facts = json.loads(stream.read())
    launch = Launch.from_facts({**facts["launch"], "config": {}})
    return Joiner(launch, json.dumps(facts["config"]).encode(), int(facts["count"])).run()
