"""Processes that the tests stop for a while. Stateless; safe from anywhere."""

import os
import signal
from pathlib import Path

from tests.servers.net import wait_until


def freeze(pid: int) -> None:
    """Stop a process, and return once it stands still: a signal alone returns before, and it may still answer somebody."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(f"process {pid} stands still", lambda: _is_frozen(pid), timeout_s=60, interval_s=0.001)


def get_state(pid: int) -> str:
    """What a process does, as ps shows it: "T" is stopped, "D" waits for the kernel."""
    return _get_state(Path(f"/proc/{pid}"))


def _is_frozen(pid: int) -> bool:
    return all(_get_state(task) == "T" for task in Path(f"/proc/{pid}/task").iterdir())


def _get_state(place: Path) -> str:
    return (place / "stat").read_text().rpartition(")")[2].split()[0]


def become(uid: int, gid: int) -> list[str]:
    """What has a command run as somebody else, before it.

    (With Popen's own `user` the child is forked, and runs what libraries do in a child: where gRPC is at work in this process,
    some children die of that, with SIGABRT or SIGSEGV.)
    """
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
