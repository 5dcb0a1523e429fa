"""Processes that the tests stop for a while. Stateless; safe from anywhere."""

import os
import signal
from pathlib import Path

from tests.servers.net import wait_until


def freeze(pid: int) -> None:
    """Stop a process, and return once it stands still: a signal alone returns before, and it may still answer somebody."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(f"process {pid} stands still", lambda: _is_frozen(pid), timeout_s=60, interval_s=0.001)


def _is_frozen(pid: int) -> bool:
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)
