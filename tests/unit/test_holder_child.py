"""How a daemon's process is begun."""

import os
import select
import signal
import socket
from collections.abc import Iterator

import pytest

from alluxio_like.fuse.holder_child import Launch, fork_daemon


@pytest.fixture
def woken() -> Iterator[socket.socket]:
    """What is told of signals to this process, which takes SIGTERM itself, as a holder does."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    earlier_fd = signal.set_wakeup_fd(theirs.fileno())
    earlier = signal.signal(signal.SIGTERM, lambda *_: None)
    yield ours
    signal.signal(signal.SIGTERM, earlier)
    signal.set_wakeup_fd(earlier_fd)
    ours.close()
    theirs.close()


def test_a_signal_before_a_daemon_has_begun_is_the_daemons(monkeypatch: pytest.MonkeyPatch, woken: socket.socket) -> None:
    """It dies of it, and this process does not take it for its own."""
    monkeypatch.setattr(os, "setsid", lambda: os.kill(os.getpid(), signal.SIGTERM))
    launch = Launch.from_facts({"argv": ["/bin/true"], "env": {}, "cwd": "/", "config": {}})
    descriptor = os.open(os.devnull, os.O_RDONLY)
    pid = fork_daemon(launch, descriptor)
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert not select.select([woken], [], [], 0)[0]
    os.kill(os.getpid(), signal.SIGTERM)
    assert select.select([woken], [], [], 0)[0]
