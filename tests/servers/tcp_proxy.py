"""A proxy for any protocol over TCP, which stalls, cuts and refuses: in front of HDFS, and where the HTTP proxy is too clever.

Owns its threads and sockets for as long as its context lasts. All methods may be called from any thread.
"""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 1 << 16


class TcpProxy:
    """Passes connections to `host:port` on to a port of 127.0.0.1.

    `stall` holds back all bytes, of new connections too, until `resume`; `hang` does so to the connections there are, for ever;
    `cut` breaks all connections; `cut_after` breaks each one once so many bytes have come from the server; `refuse` stops
    listening until `resume`.
    """

    def __init__(self, target_port: int, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target = ("127.0.0.1", target_port)
        self._address = (host, port)
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._cut_after: int | None = None
        self._hung: set[socket.socket] = set()
        self._closing = threading.Event()
        self.passed_bytes = 0

    @property
    def port(self) -> int:
        return self._address[1]

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.refuse()
        self._closing.set()
        self._flowing.set()
        self.cut()
        for thread in self._threads:
            thread.join(60)

    def stall(self) -> None:
        """Pass nothing on from now on."""
        self._flowing.clear()

    def hang(self) -> None:
        """Pass nothing on any more of the connections that there are."""
        with self._lock:
            self._hung |= self._sockets

    def refuse(self) -> None:
        """Refuse new connections; those there are go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            listener.close()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut_after(self, size: int | None) -> None:
        """Break each connection once it has given so many bytes; None: no more."""
        self._cut_after = size

    def resume(self) -> None:
        """Pass on, listen and break nothing."""
        self._cut_after = None
        self._flowing.set()
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        listener = socket.create_server(self._address)
        self._address = listener.getsockname()[:2]
        self._listener = listener
        self._run(self._accept, listener)

    def _run(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=60)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            ends = threading.Barrier(2, action=lambda pair=(client, server): self._forget(*pair))  # type: ignore[misc]
            with self._lock:
                self._sockets |= {client, server}
            self._run(self._pump, client, server, ends, False)
            self._run(self._pump, server, client, ends, True)

    def _pump(self, source: socket.socket, target: socket.socket, ends: threading.Barrier, is_answer: bool) -> None:
        passed = 0
        how = socket.SHUT_RDWR
        try:
            while data := source.recv(_CHUNK_BYTES):
                self._flowing.wait()
                if source in self._hung:
                    self._closing.wait()
                limit = self._cut_after
                if is_answer and limit is not None and passed + len(data) > limit:
                    target.sendall(data[: limit - passed] if limit > passed else b"")
                    source.shutdown(socket.SHUT_RDWR)
                    break
                target.sendall(data)
                passed += len(data)
                if is_answer:
                    self.passed_bytes += len(data)
            else:
                how = socket.SHUT_WR  # the other direction may go on: a writer of HDFS's ends its own before it has all answers
        except OSError:
            with contextlib.suppress(OSError):
                source.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            target.shutdown(how)
        with contextlib.suppress(threading.BrokenBarrierError):
            ends.wait()

    def _forget(self, *sockets: socket.socket) -> None:
        with self._lock:
            self._sockets -= set(sockets)
        for sock in sockets:
            sock.close()
