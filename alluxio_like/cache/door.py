"""How a worker's cache files pass to local processes: messages and descriptors over a unix socket.

Owns the format of those messages, both ends of it:

    worker -> caller   a greeting, at once: who is behind the door; with it, for its own user and root, the cache directories
    caller -> worker   (if it likes) a request for one file, a content named by inode, version, token and size
    worker -> caller   the file, read-only, or an error; from then on the connection stands for the lease on it

Each is one line of JSON. A greeting with directories has format 1, which every release understands; those who may have single
files only are greeted with format 2, which releases without requests turn away from (they read through the worker then).
`requests` in a greeting names the newest form of request that the worker takes; where it is missing it takes none.

Does not own the socket's place nor who is let in (worker/door.py) nor what is read through the descriptors (cache/reader.py).
Blocking calls, bounded by the given time; safe from any thread.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alluxio_like import errors
from alluxio_like.types import FileId, FileRef, Fingerprint, InodeId, VersionId, WorkerId

DIRECTORIES_FORMAT = 1
FILES_FORMAT = 2
REQUEST_FORMAT = 1
MAX_DIRECTORIES = 250
"""The kernel passes at most 253 descriptors in one message."""
MESSAGE_BYTES = 4096
"""The longest line; a token is a few dozen bytes."""


@dataclass(frozen=True, slots=True)
class DoorGreeting:
    """Who is behind a door: `directory_fds` belong to the receiver, which closes them (or hands them to a CacheReader).

    `files_only`: there are none, this caller may ask for one file at a time (`open_at_door`).
    """

    worker_id: WorkerId
    address: str
    pid: int
    directory_fds: tuple[int, ...]
    files_only: bool = False
    takes_requests: bool = False


@dataclass(slots=True)
class HandedFile:
    """One cache file, whole. `fd` and `lease` belong to the receiver; closing `lease`, which its end does too, ends the lease."""

    fd: int
    lease: socket.socket
    generation: int

    def close(self) -> None:
        """Close both."""
        os.close(self.fd)
        self.lease.close()


def encode_greeting(worker_id: WorkerId, address: str, *, files_only: bool = False) -> bytes:
    """The message that goes with the directories' descriptors, or with none."""
    number = FILES_FORMAT if files_only else DIRECTORIES_FORMAT
    fields = {"format": number, "worker_id": worker_id, "address": address, "pid": os.getpid(), "requests": REQUEST_FORMAT}
    return json.dumps(fields).encode() + b"\n"


def send_greeting(connection: socket.socket, greeting: bytes, fds: Sequence[int]) -> None:
    """Send the message and the descriptors at once; it is small enough to fit any socket's buffer."""
    socket.send_fds(connection, [greeting], list(fds)[:MAX_DIRECTORIES])


def parse_request(line: bytes) -> tuple[FileId, Fingerprint]:
    """The content that a caller asks for. Raises InvalidArgument."""
    try:
        fields = json.loads(line)
        if fields["request"] > REQUEST_FORMAT:
            raise errors.InvalidArgument(f"the door takes requests of form {REQUEST_FORMAT}, not {fields['request']}")
        inode, version = (int(part) for part in fields["open"])
        return FileId(InodeId(inode), VersionId(version)), Fingerprint(str(fields["token"]), int(fields["size"]))
    except (ValueError, KeyError, TypeError) as error:
        raise errors.InvalidArgument("not a request that the door understands") from error


def encode_handover(generation: int) -> bytes:
    """The message that goes with a file's descriptor."""
    return json.dumps({"generation": generation}).encode() + b"\n"


def encode_refusal(error: errors.AlluxioLikeError) -> bytes:
    """Why no descriptor comes."""
    return json.dumps({"error": error.code, "message": error.message[:500]}).encode() + b"\n"


def enter_door(path: str, *, timeout_s: float = 2.0) -> DoorGreeting:
    """Connect to a worker's door and take what it hands out.

    Raises Unavailable (nobody is there, not on this machine), AccessDenied (another user's), FormatTooNew.
    """
    with _knock(path, time.monotonic() + timeout_s) as connection:
        return _take_greeting(connection, path)


def open_at_door(path: str, ref: FileRef, worker_id: WorkerId, *, timeout_s: float = 2.0) -> HandedFile:
    """Ask a worker's door for one file, all of which is in its cache.

    Raises NotFound (not wholly there: have the worker fill it first), Unavailable (also: not this worker's door, or one that
    takes no requests), AccessDenied, FormatTooNew.
    """
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(_knock(path, deadline))
        greeting = _take_greeting(connection, path)
        for fd in greeting.directory_fds:
            os.close(fd)
        if greeting.worker_id != worker_id or not greeting.takes_requests:
            raise errors.Unavailable("the worker behind the door takes no requests for single files", subject=path)
        fields = {
            "request": REQUEST_FORMAT, "open": [ref.inode, ref.version], "token": ref.fingerprint.token, "size": ref.size,
        }  # fmt: skip
        try:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            connection.sendall(json.dumps(fields).encode() + b"\n")
        except OSError as error:
            raise errors.Unavailable(f"the worker's door was closed: {error.strerror or error}", subject=path) from error
        answer, fds = _receive(connection, path, deadline)
        handed = _parse_handover(answer, fds, connection, ref, path)
        # The connection is the lease: it goes with the file.
        stack.pop_all()
        return handed


def _knock(path: str, deadline: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        connection.connect(path)
    except OSError as error:
        connection.close()
        if isinstance(error, PermissionError):
            raise errors.AccessDenied("the worker's door is not open to this user", subject=path) from error
        raise errors.Unavailable(f"nobody is at the worker's door: {error.strerror or error}", subject=path) from error
    return connection


def _receive(connection: socket.socket, path: str, deadline: float) -> tuple[bytes, list[int]]:
    """One line and the descriptors that came with it; an empty line: the door was shut. Raises Unavailable."""
    text, fds = b"", []
    try:
        while not text.endswith(b"\n") and len(text) < MESSAGE_BYTES:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            part, more, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, MAX_DIRECTORIES + 3, socket.MSG_CMSG_CLOEXEC)
            fds += more
            text += part
            if not part:
                break
    except OSError as error:
        _close_all(fds)
        raise errors.Unavailable(f"nobody answers at the worker's door: {error.strerror or error}", subject=path) from error
    except BaseException:
        _close_all(fds)
        raise
    return text, fds


def _take_greeting(connection: socket.socket, path: str) -> DoorGreeting:
    text, fds = _receive(connection, path, time.monotonic() + (connection.gettimeout() or 0.0))
    try:
        if not text.endswith(b"\n"):
            raise errors.AccessDenied(
                "the worker's door was shut: it lets in its own user, root, and whom the setting door_users names", subject=path
            )
        message = json.loads(text)
        if message["format"] > FILES_FORMAT:
            raise errors.FormatTooNew(
                f"the worker's door speaks format {message['format']}, this release {FILES_FORMAT}", subject=path
            )
        return DoorGreeting(
            WorkerId(message["worker_id"]),
            message["address"],
            message["pid"],
            tuple(fds),
            files_only=message["format"] == FILES_FORMAT,
            takes_requests=message.get("requests", 0) >= REQUEST_FORMAT,
        )
    except (ValueError, KeyError, TypeError) as error:
        _close_all(fds)
        raise errors.Unavailable("what is behind the door is no worker", subject=path) from error
    except BaseException:
        _close_all(fds)
        raise


def _parse_handover(text: bytes, fds: list[int], connection: socket.socket, ref: FileRef, path: str) -> HandedFile:
    try:
        fields: dict[str, Any] = json.loads(text)
        if "error" in fields:
            raise errors.make_error(str(fields["error"]), str(fields.get("message", "")), subject=path)
        (fd,) = fds
        if os.fstat(fd).st_size != ref.size:
            raise errors.Corrupt("the file that the worker handed out has another size", subject=path)
        connection.settimeout(None)
        return HandedFile(fd, connection, int(fields["generation"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _close_all(fds)
        raise errors.Unavailable("the worker's door gave no answer", subject=path) from error
    except BaseException:
        _close_all(fds)
        raise


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
