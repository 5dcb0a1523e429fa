"""How a worker's cache directories pass to local processes: one message over a unix socket.

Owns the format of that message, both ends of it. Does not own the socket's place nor who is let in (worker/door.py) nor what is
read through the descriptors (cache/reader.py). Blocking calls, bounded by the given time; safe from any thread.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from alluxio_like import errors
from alluxio_like.types import WorkerId

DOOR_FORMAT = 1
MAX_DIRECTORIES = 250
"""The kernel passes at most 253 descriptors in one message."""
_MESSAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class DoorGreeting:
    """Who is behind a door: `directory_fds` belong to the receiver, which closes them (or hands them to a CacheReader)."""

    worker_id: WorkerId
    address: str
    pid: int
    directory_fds: tuple[int, ...]


def encode_greeting(worker_id: WorkerId, address: str) -> bytes:
    """The message that goes with the descriptors."""
    text = json.dumps({"format": DOOR_FORMAT, "worker_id": worker_id, "address": address, "pid": os.getpid()})
    return text.encode() + b"\n"


def send_greeting(connection: socket.socket, greeting: bytes, fds: Sequence[int]) -> None:
    """Send the message and the descriptors at once; it is small enough to fit any socket's buffer."""
    socket.send_fds(connection, [greeting], list(fds)[:MAX_DIRECTORIES])


def enter_door(path: str, *, timeout_s: float = 2.0) -> DoorGreeting:
    """Connect to a worker's door and take what it hands out.

    Raises Unavailable (nobody is there, not on this machine), AccessDenied (another user's), FormatTooNew.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            text, fds, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, MAX_DIRECTORIES + 3, socket.MSG_CMSG_CLOEXEC)
    except PermissionError as error:
        raise errors.AccessDenied("the worker's door is not open to this user", subject=path) from error
    except OSError as error:
        raise errors.Unavailable(f"nobody is at the worker's door: {error.strerror or error}", subject=path) from error
    try:
        return _parse(path, text, fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _parse(path: str, text: bytes, fds: Sequence[int]) -> DoorGreeting:
    if not text.endswith(b"\n"):
        raise errors.AccessDenied("the worker's door was shut: it lets in its own user and root", subject=path)
    message = json.loads(text)
    if message["format"] > DOOR_FORMAT:
        raise errors.FormatTooNew(
            f"the worker's door speaks format {message['format']}, this release {DOOR_FORMAT}", subject=path
        )
    return DoorGreeting(WorkerId(message["worker_id"]), message["address"], message["pid"], tuple(fds))
