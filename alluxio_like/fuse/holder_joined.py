"""A holder whose daemons are started elsewhere, in another container, say, and come to it by themselves.

Owns the daemons that wait for their turn, and what is different where nobody can be started: the mount is made when the first
one that came is ready, and an end has to be told from a change of holders. Which of several serves is said by the time at which
what keeps it going (joiner.py) was started: the latest does, the others are there in case it dies. All else is holder.py's.
One thread; standard library only.
"""

import os
import socket
import time
from typing import Any

from alluxio_like.errors import AccessDenied, AlluxioLikeError, InvalidArgument
from alluxio_like.fuse import control, holding, ledger
from alluxio_like.fuse.holder import Holder
from alluxio_like.fuse.holder_child import Child, Launch, Plan
from alluxio_like.fuse.holding import Action


class JoinedHolder(Holder):
    """One mount whose daemons join."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._waiting: list[Child] = []
        self._launches: dict[int, Launch] = {}
        """By the pid of a daemon that is here."""
        self._leave_s: float | None = None
        if not plan.adopt:
            self._listen()
            self._log("INFO", "waiting for a daemon to join", place=plan.place)
        self._note_listening()

    def _note_listening(self) -> None:
        """Say where that is read that daemons may come."""
        if not self._plan.adopt:
            self._replace_ready_file({"pid": os.getpid()})

    # Daemons that come

    def _obey_other(self, sock: socket.socket, message: dict[str, Any]) -> None:
        if message.get("kind") != "join":
            super()._obey_other(sock, message)
            return
        try:
            child, launch = _welcome(sock, message)
        except AlluxioLikeError as error:
            self._log("ERROR", f"a daemon was not taken: {error}")
            control.send(sock, {"kind": "refused", "reason": str(error)})
            return
        self._remove(sock.fileno())
        self._waiting.append(child)
        self._launches[child.pid] = launch
        self._add(sock.fileno(), lambda: self._on_waiting(child))
        self._log("INFO", "a daemon has joined", pid=child.pid)
        self._do(self._core.arrived(time.monotonic()))
        self._do(self._prefer())

    def _on_waiting(self, child: Child) -> None:
        """It has nothing to say before it is greeted: it has ended."""
        self._remove(child.sock.fileno())
        self._waiting.remove(child)
        self._launches.pop(child.pid, None)
        child.close()

    def _prefer(self) -> list[Action]:
        """Let a daemon that waits take over, if it is a later one than who serves."""
        serving = self._children.get(self._core.serving)
        latest = self._get_latest()
        if serving is None or latest is None or latest.since_ns <= serving.since_ns or self._core.state != "serving":
            return []
        self._log("INFO", "a later daemon takes over", pid=latest.pid)
        return self._core.replace(time.monotonic())

    def _get_latest(self) -> Child | None:
        return max(self._waiting, key=lambda child: child.since_ns, default=None)

    def _spawn(self, generation: int, resumed: bool, replacement: bool) -> list[Action]:
        child = self._get_latest()
        if child is None:
            self._log("WARNING", "no daemon has joined that could serve")
            return self._core.absent(generation)
        self._waiting.remove(child)
        self._remove(child.sock.fileno())
        child.generation = generation
        self._attach(child)
        self._greet(child, self._launches[child.pid], resumed=resumed, planned=replacement)
        return []

    def _perform(self, action: Action) -> list[Action]:
        follows = super()._perform(action)
        if isinstance(action, holding.Served):
            child = self._children[action.generation]
            self._launch = self._launches.get(child.pid, self._launch)
            follows += self._prefer()
        return follows

    def _on_exit(self, child: Child) -> None:
        self._launches.pop(child.pid, None)
        super()._on_exit(child)

    def _replace(self, sock: socket.socket, message: dict[str, Any]) -> None:
        reason = "its daemons come by themselves: start another one with alluxio-like fuse MOUNTPOINT --join"
        control.send(sock, {"kind": "refused", "reason": reason})

    # The mount

    def _mount(self) -> list[Action]:
        follows = super()._mount()
        if self._device is not None and self._plan.read_ahead_kb:
            # A daemon's container cannot: its /sys is not to be written to.
            try:
                with open(f"/sys/class/bdi/{self._device_number}/read_ahead_kb", "w") as stream:
                    stream.write(str(self._plan.read_ahead_kb))
            except OSError as error:
                self._log("WARNING", f"the kernel's read-ahead stays as it is ({error.strerror})")
        return follows

    # Ends

    def _stop(self) -> None:
        """Is all of it to go, or only this holder? Then a daemon still serves when it has waited, and the mount stays."""
        if not self._children or self._core.state == "ending":
            super()._stop()
            return
        self._told_to_stop = True
        self._leave_s = time.monotonic() + self._plan.leave_after_s
        limit_s = self._plan.leave_after_s
        self._log("INFO", "told to stop: waiting for the mount's daemons to be stopped too", limit_s=limit_s)

    def _look(self, now: float) -> None:
        super()._look(now)
        if self._leave_s is None or self._core.state == "ending":
            return
        is_late = now >= self._leave_s
        if not (self._children or self._waiting) or (is_late and not self._core.serving):
            super()._stop()
        elif is_late:
            self._log("INFO", "a daemon serves on: the mount is left to it, and to the next holder")
            self._status = 0

    def _clean_up(self) -> None:
        for child in self._waiting:
            child.close()
        super()._clean_up()


def _welcome(sock: socket.socket, message: dict[str, Any]) -> tuple[Child, Launch]:
    """A daemon that has come, and how it is configured. Raises the package's errors."""
    pid, _ = control.get_peer(sock)
    config = message.get("config")
    if message.get("version") != control.VERSION or not isinstance(config, dict):
        raise InvalidArgument(f"it speaks version {message.get('version')}, not {control.VERSION}")
    if not pid:
        raise AccessDenied("its process cannot be seen: run holder and daemons among the host's processes (hostPID)")
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise AccessDenied(f"its process cannot be watched ({error.strerror})") from None
    child = Child(0, pid, pidfd, sock, ledger.make_memory(), is_child=False)
    child.since_ns = int(message.get("since_ns", 0))
    return child, Launch([], {}, "/", config)
