"""What passes between a CephFS store and its helper process.

Owns the two messages and their bounds. They are pickled: both ends are the same program, started by the same one, and nobody else
has the socket. Plain data.
"""

from dataclasses import dataclass
from typing import Any

MAX_MESSAGE_BYTES = 384 << 10
"""A page of a listing (`posix_tree._PAGE_BYTES`), pickled; within twice 208 KiB, which the kernel gives a socket's buffer."""
BUFFER_BYTES = 208 << 10
THREADS = 24
"""Calls at once on one helper. A guess: enough to hide the latency of small files, few beside what one mount can do."""


@dataclass(frozen=True, slots=True)
class Request:
    """Run `step`. `place` is where in the shared memory the bytes of a read go, -1 for other steps."""

    number: int
    step: str
    arguments: tuple[Any, ...]
    place: int = -1


@dataclass(frozen=True, slots=True)
class Answer:
    """`error` is (code, message, subject), or None. `is_lost`: the mount is worth nothing any more. Number 0: it is mounted."""

    number: int
    value: Any = None
    error: tuple[str, str, str] | None = None
    is_lost: bool = False
