"""The worker's door: a unix socket that hands cached files to processes of the same machine.

Owns the socket, who is let in, and the leases on files handed out one by one. The callers are asked by the kernel who they are
(SO_PEERCRED). Whoever holds a directory's descriptor can read every cached file, so those go to the worker's own user and to
root alone;
users that the setting door_users names get single files, read-only, whose connection is their lease: it ends with the caller,
however that ends. (What keeps the file's bytes is the kernel, which refuses the write lease that eviction takes; the count is for
people.) The messages are cache/door.py's. Rule of concurrency: one event loop; files are opened in a thread.
"""

import asyncio
import grp
import logging
import os
import pwd
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alluxio_like import errors
from alluxio_like.cache.door import (
    MESSAGE_BYTES,
    encode_greeting,
    encode_handover,
    encode_refusal,
    parse_request,
    send_greeting,
)
from alluxio_like.types import FileId, Fingerprint, WorkerId

_LOG = logging.getLogger(__name__)
_LONGEST_PATH = 107
"""Bytes of a unix socket's path that the kernel takes."""
_SO_PEERGROUPS = 59
"""asm-generic/socket.h; Python has no name for it."""
_MOST_GROUPS = 256
REQUEST_S = 5.0
"""How long a caller who said nothing yet is kept. Those who came for directories leave at once."""
MAX_CALLERS = 4096
"""Connections at once, each of which is a descriptor of the worker; half of them for any one user."""

OpenWhole = Callable[[FileId, Fingerprint], Awaitable[tuple[int, int]]]
"""Opens a cache file that is wholly there: a descriptor (then the caller's) and the generation. Raises NotFound, Unavailable,
DiskError."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A file that was handed out and not given back: to whom, by the kernel's word."""

    pid: int
    uid: int
    file_id: FileId


@dataclass(frozen=True, slots=True)
class Guests:
    """Who beside the worker's own user and root may have single files: uids and gids. False when there are none."""

    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.uids or self.gids)

    def has(self, connection: socket.socket, uid: int) -> bool:
        """Whether the process at the other end was one of them when it connected."""
        return uid in self.uids or (bool(self.gids) and not self.gids.isdisjoint(_get_groups(connection)))


class Door:
    """Listens at `home`/door.sock, or in a short directory of its own where that path is too long for a socket."""

    def __init__(
        self,
        home: Path,
        worker_id: WorkerId,
        get_address: Callable[[], str],
        get_fds: Callable[[], Sequence[int]],
        *,
        open_whole: OpenWhole | None = None,
        guests: "Guests | None" = None,
    ) -> None:
        """`guests` may have single files, which `open_whole` opens."""
        self._worker_id = worker_id
        self._get_address = get_address
        self._get_fds = get_fds
        self._open_whole = open_whole
        self._guests = guests or Guests()
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._callers: dict[asyncio.Task[None], int] = {}
        self._leases: dict[int, Lease] = {}
        self._temporary: Path | None = None
        path = home.resolve() / "door.sock"
        if len(os.fsencode(path)) > _LONGEST_PATH:
            self._temporary = Path(tempfile.mkdtemp(prefix="alluxio-like-"))
            path = self._temporary / "door.sock"
        if self._guests:
            # Others than the owner of the directory have to reach the socket; they may not list what else is there.
            directory = path.parent
            directory.chmod(directory.stat().st_mode & 0o7777 | 0o011)
        self.path = path

    async def start(self) -> None:
        """Listen. The home directory's lock is held, so a socket that is there is a dead one's."""
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            listener.bind(str(self.path))
            # Anybody may knock: the kernel's word on who it is decides.
            self.path.chmod(0o666)
            listener.listen(64)
        except BaseException:
            listener.close()
            raise
        self._socket = listener
        self._task = asyncio.create_task(self._serve(listener), name="door")

    async def stop(self) -> None:
        """Stop listening, end the leases' connections (the descriptors stay good) and take the socket away."""
        tasks = [task for task in (self._task, *self._callers) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.path.unlink(missing_ok=True)
        if self._temporary is not None:
            self._temporary.rmdir()
            self._temporary = None

    def list_leases(self) -> list[Lease]:
        """Files handed out one by one, and not yet given back."""
        return list(self._leases.values())

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                _LOG.warning("the door could not take a caller: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            try:
                pid, uid = _get_peer(connection)
                if not self._greet(connection, pid, uid):
                    connection.close()
                    continue
            except OSError as error:
                connection.close()
                _LOG.info("a caller did not wait at the door: %s", error.strerror)
                continue
            task = asyncio.create_task(self._attend(connection, pid, uid), name=f"door caller {pid}")
            self._callers[task] = uid
            task.add_done_callback(lambda done: self._callers.pop(done, None))

    def _greet(self, connection: socket.socket, pid: int, uid: int) -> bool:
        """Say who is here. False: that was all."""
        if uid in {0, os.geteuid()}:
            send_greeting(connection, encode_greeting(self._worker_id, self._get_address()), self._get_fds())
        elif self._open_whole is not None and self._guests.has(connection, uid):
            connection.send(encode_greeting(self._worker_id, self._get_address(), files_only=True))
        else:
            _LOG.info("the door stays shut for pid %d of user %d", pid, uid)
            return False
        mine = sum(1 for one in self._callers.values() if one == uid)
        return self._open_whole is not None and len(self._callers) < MAX_CALLERS and mine < MAX_CALLERS // 2

    async def _attend(self, connection: socket.socket, pid: int, uid: int) -> None:
        """One caller: its request, if it has one, and its lease until it goes."""
        loop = asyncio.get_running_loop()
        with connection:
            try:
                async with asyncio.timeout(REQUEST_S):
                    file_id = await self._hand_out(loop, connection)
                if file_id is None:
                    return
                self._leases[id(connection)] = Lease(pid, uid, file_id)
                try:
                    # Nothing more is said; it ends when the last copy of the caller's end is closed.
                    while await loop.sock_recv(connection, 1):
                        pass
                finally:
                    del self._leases[id(connection)]
            except (OSError, TimeoutError):
                pass

    async def _hand_out(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> FileId | None:
        """Take one request and answer it; the content if its file was handed out. Raises OSError: the caller has gone."""
        line = b""
        while not line.endswith(b"\n"):
            part = await loop.sock_recv(connection, MESSAGE_BYTES)
            line += part
            if not part or len(line) > MESSAGE_BYTES:
                return None
        assert self._open_whole is not None
        try:
            file_id, fingerprint = parse_request(line)
            fd, generation = await self._open_whole(file_id, fingerprint)
        except errors.AlluxioLikeError as error:
            connection.send(encode_refusal(error))
            return None
        try:
            socket.send_fds(connection, [encode_handover(generation)], [fd])
        finally:
            os.close(fd)
        return file_id


def _get_peer(connection: socket.socket) -> tuple[int, int]:
    """The caller's pid and uid when it connected, by the kernel's word."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def _get_groups(connection: socket.socket) -> set[int]:
    """All groups of the caller when it connected."""
    _, _, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * 4)
    except OSError:
        # More groups than fit: its first one has to do.
        return {gid}
    return {gid, *struct.unpack(f"{len(raw) // 4}I", raw)}


def parse_guests(names: Sequence[str]) -> Guests:
    """The setting door_users: users by name or uid, groups as @name or @gid. Raises ConfigError for one this machine does not
    know."""
    uids, gids = set(), set()
    for name in names:
        try:
            if name.startswith("@"):
                gids.add(int(name[1:]) if name[1:].isdecimal() else grp.getgrnam(name[1:]).gr_gid)
            else:
                uids.add(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
        except KeyError:
            raise errors.ConfigError(
                f"door_users: this machine has no {'group' if name.startswith('@') else 'user'} {name!r}", subject=name
            ) from None
    return Guests(frozenset(uids), frozenset(gids))
