"""Ports of servers that the tests start. Stateless; safe from anywhere.

Ports lie below the kernel's ephemeral range (32768 and up): above it a client's own port could take a server's.
"""

import contextlib
import random
import socket
import time
from collections.abc import Callable


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections there now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def find_ports(count: int, *, low: int = 20000, high: int = 32000) -> list[int]:
    """`count` free ports in a row; nobody reserves them, so a start may have to be repeated."""
    rng = random.SystemRandom()
    for _ in range(200):
        first = rng.randrange(low, high - count)
        ports = list(range(first, first + count))
        if all(_can_bind(port) for port in ports):
            return ports
    raise RuntimeError(f"no {count} free ports in a row between {low} and {high}")


def wait_until(what: str, condition: Callable[[], bool], *, timeout_s: float, interval_s: float = 0.02) -> None:
    """Return once `condition()` holds; RuntimeError naming `what` after `timeout_s` seconds."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"timed out after {timeout_s:g} s: {what}")
        time.sleep(interval_s)


def _can_bind(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
