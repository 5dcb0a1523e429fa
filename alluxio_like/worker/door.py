"""The worker's door: a unix socket that hands its cache directories to processes of the same user (and of root).

Owns the socket and who is let in: whoever holds a directory's descriptor can read every cached file, whatever its mode in the namespace,
so the callers are asked by the kernel who they are (SO_PEERCRED). The message is cache/door.py's. Rule of concurrency: one event loop.
"""

import asyncio
import logging
import os
import socket
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from alluxio_like.cache.door import encode_greeting, send_greeting
from alluxio_like.types import WorkerId

_LOG = logging.getLogger(__name__)
_LONGEST_PATH = 107
"""Bytes of a unix socket's path that the kernel takes."""


class Door:
    """Listens at `home`/door.sock, or in a short directory of its own where that path is too long for a socket."""

    def __init__(self, home: Path, worker_id: WorkerId, get_address: Callable[[], str], get_fds: Callable[[], Sequence[int]]) -> None:
        self._worker_id = worker_id
        self._get_address = get_address
        self._get_fds = get_fds
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._temporary: Path | None = None
        path = home.resolve() / "door.sock"
        if len(os.fsencode(path)) > _LONGEST_PATH:
            self._temporary = Path(tempfile.mkdtemp(prefix="alluxio-like-"))
            path = self._temporary / "door.sock"
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
        """Stop listening and take the socket away."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.path.unlink(missing_ok=True)
        if self._temporary is not None:
            self._temporary.rmdir()
            self._temporary = None

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                _LOG.warning("the door could not take a caller: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        if uid not in {0, os.geteuid()}:
            _LOG.info("the door stays shut for pid %d of user %d", pid, uid)
            return
        try:
            send_greeting(connection, encode_greeting(self._worker_id, self._get_address()), self._get_fds())
        except OSError as error:
            _LOG.info("pid %d did not wait at the door: %s", pid, error.strerror)
