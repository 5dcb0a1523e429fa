"""A TCP proxy that can cut what passes through it, in a thread of this process.

Owns its listening socket and the connections through it. `cut_when` arms one cut: the first message from the client that contains
the mark is passed on (or kept), and nothing comes back any more. For protocols without TLS. Safe from any thread.
"""

import contextlib
import selectors
import socket
import threading
from typing import Self


class CuttingProxy:
    """Passes connections on to 127.0.0.1:`upstream`."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._others: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._mark: bytes | None = None
        self._how = ""
        self._refuses = False
        self._told, self._tell = socket.socketpair()
        self.cuts = 0
        self.kept: list[tuple[socket.socket, bytes]] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        for end in (self._listener, self._told):
            self._selector.register(end, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tell.close()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def cut_when(self, mark: bytes, how: str) -> None:
        """Cut the connection in which `mark` passes next. `how`: "after" the server got it; "before" (it never does); "keep": the
        client sees it cut, the server gets the message when `release` is called."""
        with self._lock:
            self._mark, self._how = mark, how

    def refuse(self, refuses: bool) -> None:
        """Close new connections at once, or take them again."""
        self._refuses = refuses

    def release(self) -> None:
        """Send on what was kept."""
        for upstream, data in self.kept:
            with contextlib.suppress(OSError):
                upstream.sendall(data)

    def _run(self) -> None:
        ends = False
        while not ends:
            for key, _ in self._selector.select():
                if key.fileobj is self._told:
                    ends = True
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._pass_on(key.fileobj)
        for end in [self._told, self._listener, *self._others, *(upstream for upstream, _ in self.kept)]:
            end.close()
        self._selector.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._refuses:
            client.close()
            return
        try:
            upstream = socket.create_connection(("127.0.0.1", self._upstream))
        except OSError:
            client.close()
            return
        self._clients.add(client)
        for mine, other in ((client, upstream), (upstream, client)):
            self._others[mine] = other
            self._selector.register(mine, selectors.EVENT_READ)

    def _pass_on(self, end: socket.socket) -> None:
        other = self._others.get(end)
        if other is None:
            return
        try:
            data = end.recv(1 << 16)
        except OSError:
            data = b""
        with self._lock:
            cuts = end in self._clients and self._mark is not None and self._mark in data
            how = self._how
            if cuts:
                self._mark = None
        if not data or cuts:
            self.cuts += cuts
            if cuts and how == "after":
                other.sendall(data)
                # The server works on it before it notices that nobody listens.
                other.settimeout(60.0)
                with contextlib.suppress(OSError):
                    other.recv(1 << 16)
            self._close(end, keep=data if cuts and how == "keep" else b"")
            return
        with contextlib.suppress(OSError):
            other.sendall(data)

    def _close(self, end: socket.socket, keep: bytes) -> None:
        other = self._others[end]
        for one in (end, other):
            self._selector.unregister(one)
            del self._others[one]
            self._clients.discard(one)
        end.close()
        if keep:
            self.kept.append((other, keep))
        else:
            other.close()
