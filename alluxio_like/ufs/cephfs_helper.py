"""The process in which libcephfs runs: `python -m alluxio_like.ufs.cephfs_helper SOCKET MEMORY`, started by `cephfs.py`.

A call into libcephfs may block for ever when the cluster is gone, and its failed assertions abort the process; here both end no
more than this process. It mounts once, then threads take requests from one socket (SOCK_SEQPACKET: a message is taken whole, by
one of them), run them, and answer. Bytes of files go into the memory that is shared with the parent, at the place that the
request names. When the parent closes the socket, or dies, the file system is unmounted, for a while, and the process ends.
"""

import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from mmap import mmap

from alluxio_like import errors
from alluxio_like.ufs.cephfs_library import CephOps, CephSettings
from alluxio_like.ufs.cephfs_messages import MAX_MESSAGE_BYTES, THREADS, Answer, Request
from alluxio_like.ufs.posix_ufs import PosixSteps

_UNMOUNT_S = 10.0
"""Longest wait for the cluster to take back what it lent. Nobody waits for this process meanwhile; but if it went without, others
would wait for what it held until its session has timed out (60 s)."""


class _Server:
    def __init__(self, connection: socket.socket, memory: mmap, settings: CephSettings) -> None:
        self._connection = connection
        self._memory = memoryview(memory)
        self._ops = CephOps(settings)
        self._steps = PosixSteps(self._ops, settings.root)
        self._end = threading.Event()
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._end.set())

    def serve(self) -> None:
        """Until the parent has closed its end."""
        for number in range(THREADS):
            threading.Thread(target=self._work, name=f"ceph-{number}", daemon=True).start()
        send(self._connection, Answer(0))
        self._end.wait()

    def unmount(self) -> None:
        """For `_UNMOUNT_S` at most."""
        thread = threading.Thread(target=self._ops.unmount, name="unmount", daemon=True)
        thread.start()
        thread.join(_UNMOUNT_S)

    def _work(self) -> None:
        try:
            while True:
                data, fds, _, _ = socket.recv_fds(self._connection, MAX_MESSAGE_BYTES, 1)
                if not data:
                    return
                request: Request = pickle.loads(data)
                answer = self._answer(request, fds)
                if request.number:
                    send(self._connection, answer)
        except OSError:
            return  # the parent has gone
        finally:
            self._end.set()

    def _answer(self, request: Request, fds: Sequence[int]) -> Answer:
        error = None
        value = None
        try:
            if fds:
                value = self._steps.call_with_fd(request.step, fds[0], request.arguments)
            elif request.place >= 0:
                length = request.arguments[4]
                into = self._memory[request.place : request.place + length]
                value = self._steps.call("read_part", (*request.arguments, into))
            else:
                value = self._steps.call(request.step, request.arguments)
        except errors.AlluxioLikeError as raised:
            error = (raised.code, raised.message, raised.subject)
        except Exception as raised:  # noqa: BLE001 - whatever it is, somebody waits for an answer
            error = (errors.Internal.code, f"{type(raised).__name__}: {raised}", request.step)
        return Answer(request.number, value, error, self._ops.is_lost)


def send(connection: socket.socket, answer: Answer) -> None:
    """One message; what does not fit is answered with an error."""
    data = pickle.dumps(answer)
    if len(data) > MAX_MESSAGE_BYTES:
        error = (errors.Internal.code, "an answer of the helper process is too long", "")
        data = pickle.dumps(Answer(answer.number, None, error))
    connection.sendall(data)


def main() -> None:
    """Serve until the parent goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the parent's affair, which then closes the socket
    connection = socket.socket(fileno=int(sys.argv[1]))
    memory_fd = int(sys.argv[2])
    with mmap(memory_fd, os.fstat(memory_fd).st_size) as memory:
        settings: CephSettings = pickle.loads(connection.recv(MAX_MESSAGE_BYTES))
        try:
            server = _Server(connection, memory, settings)
        except errors.AlluxioLikeError as error:
            send(connection, Answer(0, error=(error.code, error.message, error.subject)))
            os._exit(0)
        server.serve()
        server.unmount()
        # At once: threads may be in calls that never return, and the library's own end would wait for them.
        os._exit(0)


if __name__ == "__main__":
    main()
