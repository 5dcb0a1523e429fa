"""What a handler may know of the call it serves.

Owns the call's deadline as a context variable, set by the server's interceptor. Safe from any task.
"""

import time
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def set_deadline(remaining_s: float | None) -> None:
    """Remember when the current call's caller stops waiting; None: never."""
    _deadline.set(None if remaining_s is None else time.monotonic() + remaining_s)


def get_remaining_s() -> float | None:
    """Seconds until the current call's caller stops waiting; None outside a call or where it has no deadline."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()
