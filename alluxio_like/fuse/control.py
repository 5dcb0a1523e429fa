"""What a holder and its daemons, and commands, say to each other: JSON messages over a unix socket that keeps their bounds.

Owns the form of the messages and where a mount's socket is; what they mean is the holder's (holder.py) and the daemon's
(held.py).
A holder outlives upgrades of the daemon, so this stays small: names are added, never changed, and what is not known is ignored.
Standard library only. A socket is one thread's.

    holder → daemon    hello    version, generation, config, resumed, planned, socket
                       serve    handshake, place, device, restarts, resend, leases: of daemons that have ended, by what `lease`
                                said; descriptors: the device, the ledger of backing ids
                       drain    take no further request
                       stop     end, the mount goes
                       ping     number
    daemon → holder    ready    everything is prepared: requests could be served
                       lease    id: of its lease at the master, before that begins
                       serving  facts; requests are being served
                       paused   no further request will be taken
                       drained  all that was taken is answered; the daemon ends
                       gone     the mount is gone
                       failed   message: why the daemon ends
                       pong     number
    command → holder   status   → status
                       replace  argv, env, cwd, config → replaced or refused, when it is over
    daemon → holder    join     version, since_ns, config: it came by itself, and waits for hello (refused: it is not wanted)
    holder → orphan    adopt    → adopted: what hello and serve said, and their descriptors; from then on it is its holder
"""

import array
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from alluxio_like.errors import AccessDenied, InvalidArgument

VERSION = 1
MAX_MESSAGE_BYTES = 160 << 10
"""Below what a unix socket takes in one message by default (208 KiB)."""
_MAX_FDS = 8
_PEER = struct.Struct("iII")


def send(sock: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> bool:
    """Send one message. False when the other side is gone or does not take it; raises InvalidArgument for one that is too
    large."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidArgument(f"a message of {len(data)} bytes to or from the holder is too large: is the environment?")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """One message and the descriptors that came with it (close-on-exec); None when the other side is gone.

    Raises BlockingIOError on a socket that does not block, TimeoutError on one with a time limit.
    """
    try:
        data, ancillary, flags, _ = sock.recvmsg(
            MAX_MESSAGE_BYTES, socket.CMSG_LEN(_MAX_FDS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except (BlockingIOError, TimeoutError):
        raise
    except OSError:
        return None
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    try:
        message = json.loads(data) if data and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) else None
    except ValueError:
        message = None
    if not isinstance(message, dict):
        for fd in fds:
            os.close(fd)
        return None
    return message, list(fds)


def make_pair() -> tuple[socket.socket, socket.socket]:
    """A channel between a holder and its daemon; neither end is inherited by itself."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def get_socket_name(place: str) -> str:
    """The name of a mount's socket, in the directory of what runs on this machine; `place` is the resolved mount point."""
    import hashlib  # 4 MiB that the holder can do without

    return f"fuse-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.sock"


@contextmanager
def _short(path: str) -> Iterator[str]:
    """A name for a path that fits into a socket's address (107 bytes), whatever its directory is called."""
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"  # noqa: PTH119
    finally:
        os.close(directory)


def listen(path: str) -> socket.socket:
    """Listen at a path, for this user and root only, in the place of whoever listened there. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    temporary = f"{path}.{os.getpid()}"
    try:
        with _short(temporary) as name:
            before = os.umask(0o177)
            try:
                sock.bind(name)
            finally:
                os.umask(before)
        sock.listen(8)
        sock.setblocking(False)
        os.rename(temporary, path)  # noqa: PTH104
    except OSError:
        sock.close()
        raise
    return sock


def connect(path: str, timeout_s: float) -> socket.socket | None:
    """A connection to who listens at a path; None when nobody does. `timeout_s` holds for each message too."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(timeout_s)
    try:
        with _short(path) as name:
            sock.connect(name)
    except PermissionError:
        sock.close()
        raise AccessDenied("the mount is another user's", subject=path) from None
    except OSError:
        sock.close()
        return None
    return sock


def get_peer(sock: socket.socket) -> tuple[int, int]:
    """Pid and uid of the process at the other end."""
    pid, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


def is_allowed(sock: socket.socket) -> bool:
    """Whether the other end may command this process: root, or the same user."""
    return get_peer(sock)[1] in (0, os.geteuid())
