"""What a handler may know of the call it serves.

Owns the call's deadline and its caller's lease as context variables, set by the server's interceptor. Safe from any task.
"""

import time
from contextvars import ContextVar

LEASE_KEY = "alluxio-lease"
"""In a call's metadata: the session of the caller's lease, where it has one."""

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
_lease: ContextVar[str] = ContextVar("lease", default="")


def set_deadline(remaining_s: float | None) -> None:
    """Remember when the current call's caller stops waiting; None: never."""
    _deadline.set(None if remaining_s is None else time.monotonic() + remaining_s)


def get_remaining_s() -> float | None:
    """Seconds until the current call's caller stops waiting; None outside a call or where it has no deadline."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()


def set_lease(session_id: str) -> None:
    """Remember whose lease the current call's answer may be covered by; empty: nobody's."""
    _lease.set(session_id)


def get_lease() -> str:
    """The session of the current call's caller; empty where it has none."""
    return _lease.get()
