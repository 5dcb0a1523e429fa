"""The holder: a small process that keeps a mount's descriptor while the daemons that serve it come and go.

Owns the mount (mount(2), INIT, unmounting), the processes of its daemons, and what they leave behind; it moves no data and knows
no files. What is done when is decided in holding.py. Started by the command `fuse`, in whose place it runs, with a description in
JSON
(`Plan`). One thread, one loop over epoll; imports the standard library and little of it: it must stay small and must not crash,
since the mount ends with it only where its daemon ends too.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from alluxio_like.errors import AlluxioLikeError, ConfigError, InvalidArgument
from alluxio_like.fuse import control, holding, ledger, libc, wire
from alluxio_like.fuse.device import Device, Handshake, get_extra_flags
from alluxio_like.fuse.holder_child import TOLD, Child, Launch, Plan, Standby, start_child
from alluxio_like.fuse.holding import Action, Holding
from alluxio_like.fuse.leaks import Leaks
from alluxio_like.fuse.mountinfo import find_top_line
from alluxio_like.fuse.refusing import Refuser

_CONNECTION_TIMEOUT_S = 5.0
_LEASES = 32
"""Of daemons that have ended, handed on at most: more of them do not die while the first one's lease still lasts. A guess, and
only a wait where it is wrong."""


class Holder:
    """One mount. `run` returns when it is gone."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._launch = plan.launch
        self._candidate: Launch | None = None
        self._core = Holding(holding.Settings(plan.give_up_s, plan.start_timeout_s, leave_s=plan.leave_s, patient=plan.joined))
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._children: dict[int, Child] = {}
        self._device: Device | None = None
        self._device_number = ""
        self._handshake = Handshake(0, 0, 0, 0)
        self._dead: list[Device] = []
        self._leaks = Leaks()
        self._last_ledger = -1
        """Of the daemon that was the last to serve, alive or not."""
        self._ended_leases: list[str] = []
        """What the daemon that serves next may have ended; those whose process is gone, and no others."""
        self._refuser: Refuser | None = None
        self._standby = Standby()
        self._listener: socket.socket | None = None
        self._socket_inode = 0
        self._asker: socket.socket | None = None
        self._told_to_stop = False
        self._status: int | None = None
        # Before anybody hears that it is there, and may tell it to stop.
        self._watch_signals()

    def run(self) -> int:
        """Hold the mount until it ends; the exit code."""
        if self._plan.lifeline >= 0:
            os.set_inheritable(self._plan.lifeline, False)
            self._add(self._plan.lifeline, self._stop)
        if self._plan.adopt:
            self._adopt()
        else:
            self._do(self._core.begin(time.monotonic()))
        while not self._is_over():
            self._look(time.monotonic())
            if self._device is not None:
                self._leaks.close_due(self._device, time.monotonic())
            if self._plan.standby and self._core.state == "serving":
                self._standby.keep(self._launch, time.monotonic())
            if self._is_over():
                break
            for fd, _ in self._poll.poll(self._core.get_wait(time.monotonic())):
                if handler := self._handlers.get(fd):
                    self._guard(handler)
        self._clean_up()
        return self._status or 0

    def _look(self, now: float) -> None:
        """Time has passed."""
        self._do(self._core.tick(now))

    def _is_over(self) -> bool:
        return self._status is not None

    # What happens

    def _guard(self, handler: Callable[[], None]) -> None:
        """A defect in one thing must not end the mount."""
        try:
            handler()
        except Exception as error:  # noqa: BLE001
            self._log("ERROR", f"unexpected: {type(error).__name__}: {error}", where=handler.__qualname__)

    def _add(self, fd: int, handler: Callable[[], None], events: int = select.EPOLLIN) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def _remove(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _watch_signals(self) -> None:
        self._signals, write = socket.socketpair()
        self._signals_write = write
        for end in (self._signals, write):
            end.setblocking(False)
        signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        for number in TOLD:
            signal.signal(number, lambda *_: None)
        self._add(self._signals.fileno(), self._on_signal)

    def _on_signal(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._signals.recv(64)
        if self._told_to_stop:
            self._do(self._core.kill_all())
        self._stop()

    def _stop(self) -> None:
        self._remove(self._plan.lifeline)
        self._told_to_stop = True
        self._do(self._core.stop(time.monotonic()))

    def _on_device(self) -> None:
        """The kernel's end is gone (unmounted, or aborted), or a request waits to be refused."""
        assert self._device is not None
        poll = select.poll()
        poll.register(self._device.fd, select.POLLIN)
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            self._remove(self._device.fd)
            self._log("INFO", "the mount is gone")
            self._do(self._core.stop(time.monotonic()))
        elif self._refuser is not None:
            self._refuser.work()

    def _on_message(self, child: Child) -> None:
        while True:
            try:
                received = control.receive(child.sock)
            except BlockingIOError:
                return
            if received is None:
                self._remove(child.sock.fileno())
                return
            message, fds = received
            for fd in fds:
                os.close(fd)
            self._obey(child, message)

    def _obey(self, child: Child, message: dict[str, Any]) -> None:
        now, number = time.monotonic(), child.generation
        match message.get("kind"):
            case "ready":
                self._do(self._core.ready(number, now))
            case "lease":
                child.lease = str(message.get("id", ""))
            case "serving":
                child.facts = dict(message.get("facts") or {})
                self._do(self._core.confirmed(number, now))
                self._write_ready()
            case "paused":
                self._do(self._core.paused(number, now))
            case "drained":
                self._do(self._core.drained(number, now))
            case "pong":
                self._core.pong(number)
            case "gone":
                self._do(self._core.stop(now))
            case "failed":
                child.reason = child.reason or str(message.get("message", ""))

    def _on_exit(self, child: Child) -> None:
        self._on_message(child)  # what it said before
        self._remove(child.pidfd)
        self._remove(child.sock.fileno())
        del self._children[child.generation]
        if child.lease:
            self._ended_leases = [*self._ended_leases, child.lease][-_LEASES:]
        status, reason, killed = child.get_end()
        was_serving = self._core.serving == child.generation
        if self._device is not None and self._handshake.passthrough:
            self._leaks.note(self._device, child.ledger_fd, time.monotonic(), alone=was_serving)
        if child.kept is not None:
            if was_serving:
                self._dead.append(child.kept)
            else:
                child.kept.close()
        if not self._told_to_stop and (was_serving or status != 0):
            self._log("WARNING", "the daemon has ended", generation=child.generation, pid=child.pid, reason=reason)
        child.close()
        self._do(self._core.exited(child.generation, status, reason, time.monotonic(), killed=killed))

    # What is to be done

    def _do(self, actions: list[Action]) -> None:
        todo = list(actions)
        while todo:
            todo[:1] = self._perform(todo[0])

    def _perform(self, action: Action) -> list[Action]:
        """Do one thing; what follows from it."""
        child = self._children.get(getattr(action, "generation", 0))
        match action:
            case holding.Spawn(generation, resumed, replacement):
                return self._spawn(generation, resumed, replacement)
            case holding.Mount():
                return self._mount()
            case holding.Serve(_, resend) if child:
                self._serve(child, resend)
            case holding.Drain() if child:
                child.send("drain")
            case holding.Stop() if child:
                child.send("stop")
            case holding.Ping(_, number) if child:
                child.send("ping", number=number)
            case holding.Kill(_, reason) if child:
                child.kill(reason)
            case holding.Refuse(on):
                self._refuse(on)
            case holding.DropRequests():
                self._log("ERROR", "daemons die of what they are sent: it is answered with an error")
                self._drop_dead()
            case holding.Served() if child:
                self._on_served(child)
            case holding.Replaced(done, reason):
                self._on_replaced(done, reason)
            case holding.Unmount():
                self._unmount()
            case holding.Finish(status):
                self._status = status
        return []

    def _spawn(self, generation: int, resumed: bool, replacement: bool) -> list[Action]:
        launch = self._candidate if replacement and self._candidate else self._launch
        try:
            child = self._standby.take(launch) or start_child(launch)
        except OSError as error:
            reason = f"no process could be started ({error.strerror})"
            self._log("ERROR", reason)
            return self._core.exited(generation, 1, reason, time.monotonic())
        child.generation = generation
        self._attach(child)
        self._greet(child, launch, resumed=resumed, planned=replacement)
        return []

    def _greet(self, child: Child, launch: Launch, *, resumed: bool, planned: bool) -> None:
        child.send(
            "hello",
            version=control.VERSION,
            generation=child.generation,
            resumed=resumed,
            planned=planned,
            socket=self._plan.socket,
            config=launch.config,
        )

    def _attach(self, child: Child) -> None:
        self._children[child.generation] = child
        self._add(child.sock.fileno(), lambda: self._on_message(child))
        self._add(child.pidfd, lambda: self._on_exit(child))

    def _mount(self) -> list[Action]:
        plan = self._plan
        try:
            self._device = Device.mount(plan.place, allow_other=plan.allow_other, read_only=plan.read_only, suid=plan.suid)
            self._note_number()
            self._handshake = self._device.shake_hands(
                passthrough=plan.passthrough != "off",
                resend=plan.resend,
                extra_flags=get_extra_flags(read_only=plan.read_only, locks=plan.locks),
            )
            if plan.passthrough == "on" and not self._handshake.passthrough:
                raise ConfigError("this kernel has no FUSE passthrough (it came with Linux 6.9)", subject="passthrough")
        except AlluxioLikeError as error:
            sys.stderr.write(f"alluxio-like: {error}\n")
            status = 2 if isinstance(error, InvalidArgument) else 1
            return self._core.mount_failed(status, mounted=self._device is not None, now=time.monotonic())
        self._hold_device()
        return self._core.mounted(time.monotonic())

    def _note_number(self) -> None:
        line = find_top_line(self._plan.place)
        self._device_number = line.device if line else ""

    def _hold_device(self) -> None:
        assert self._device is not None
        os.set_blocking(self._device.fd, False)
        self._add(self._device.fd, self._on_device, 0)  # errors are always told
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        try:
            os.makedirs(os.path.dirname(self._plan.socket), exist_ok=True)  # noqa: PTH103, PTH120
            self._listener = control.listen(self._plan.socket)
            self._socket_inode = os.stat(self._plan.socket).st_ino  # noqa: PTH116
        except OSError as error:
            self._log("WARNING", f"commands will not find this mount ({error.strerror})", socket=self._plan.socket)
            return
        self._add(self._listener.fileno(), self._on_connection)

    def _serve(self, child: Child, resend: bool) -> None:
        assert self._device is not None
        try:
            clone = self._device.clone()
        except (AlluxioLikeError, OSError) as error:
            child.kill(f"it can be given no descriptor ({error})")
            return
        self._hand_on(child)
        resend = resend and self._handshake.resend
        handshake = self._handshake._asdict()
        child.send(
            "serve",
            [clone.fd, child.ledger_fd],
            handshake=handshake,
            place=self._plan.place,
            device=self._device_number,
            restarts=self._core.restarts,
            resend=resend,
            leases=self._ended_leases,
        )
        if self._handshake.resend:
            child.kept = clone
        else:
            # Without resend, what a dead daemon leaves ends with an error: when the last copy of its descriptor goes, with it.
            clone.close()

    def _hand_on(self, child: Child) -> None:
        """Let a daemon know whom the one before has sent away."""
        before, self._last_ledger = self._last_ledger, -1
        try:
            if before >= 0:
                ledger.copy_sent(before, child.ledger_fd)
            self._last_ledger = os.dup(child.ledger_fd)
        except OSError as error:
            self._log("WARNING", f"an open may fail that is under way ({error.strerror})")
        finally:
            if before >= 0:
                os.close(before)

    def _refuse(self, on: bool) -> None:
        assert self._device is not None
        if on:
            self._log("ERROR", "no daemon serves the mount: requests are answered with an error", after_s=self._plan.give_up_s)
            # What is refused may have been done: no name that the kernel knows is relied on any more (older kernels know them for
            # a moment only).
            with contextlib.suppress(OSError):
                self._device.notify(wire.pack_inc_epoch())
            if self._handshake.resend:
                with contextlib.suppress(OSError):
                    self._device.notify(wire.pack_resend())
            self._drop_dead()
            self._refuser = Refuser(self._device.fd)
            self._poll.modify(self._device.fd, select.EPOLLIN)
        elif self._refuser is not None:
            self._poll.modify(self._device.fd, 0)
            self._log("INFO", "requests are served again", refused=self._refuser.count)
            self._refuser.close()
            self._refuser = None

    def _drop_dead(self) -> None:
        """Close what is kept of dead daemons' descriptors, and with it end the requests that are still in there."""
        for device in self._dead:
            device.close()
        self._dead.clear()

    def _on_served(self, child: Child) -> None:
        self._drop_dead()
        self._standby.wait(time.monotonic())
        self._log("INFO", "a daemon serves the mount", generation=child.generation, pid=child.pid, restarts=self._core.restarts)

    def _write_ready(self) -> None:
        """Say who serves, where that is read."""
        child = self._children.get(self._core.serving)
        if child is not None:
            self._replace_ready_file({**child.facts, "pid": os.getpid(), **self._describe(child)})

    def _replace_ready_file(self, facts: dict[str, Any]) -> None:
        """Whoever reads it finds all of it."""
        if not self._plan.ready_file:
            return
        temporary = f"{self._plan.ready_file}.{os.getpid()}"
        try:
            with open(temporary, "w") as stream:
                stream.write(json.dumps(facts) + "\n")
            os.replace(temporary, self._plan.ready_file)  # noqa: PTH105
        except OSError as error:
            self._log("ERROR", f"the ready file cannot be written ({error.strerror})", file=self._plan.ready_file)

    def _describe(self, child: Child | None) -> dict[str, Any]:
        return {
            "daemon_pid": child.pid if child else 0,
            "generation": child.generation if child else 0,
            "restarts": self._core.restarts,
        }

    # Commands

    def _on_connection(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if not control.is_allowed(sock):
            sock.close()
            return
        sock.setblocking(False)
        self._add(sock.fileno(), lambda: self._on_command(sock))

    def _on_command(self, sock: socket.socket) -> None:
        try:
            received = control.receive(sock)
        except BlockingIOError:
            return
        if received is None:
            self._close_command(sock)
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        match message.get("kind"):
            case "status":
                serving = self._children.get(self._core.serving)
                control.send(
                    sock,
                    {
                        "kind": "status",
                        "pid": os.getpid(),
                        "state": self._core.state,
                        "place": self._plan.place,
                        "device": self._device_number,
                        "handshake": self._handshake._asdict(),
                        "config": self._launch.config,
                        "facts": serving.facts if serving else {},
                        **self._describe(serving),
                    },
                )
            case "replace":
                self._replace(sock, message)
            case _:
                self._obey_other(sock, message)

    def _obey_other(self, sock: socket.socket, message: dict[str, Any]) -> None:
        """A command that only some holders know."""
        reason = "no daemons join this mount's holder" if message.get("kind") == "join" else "it does not know this command"
        control.send(sock, {"kind": "refused", "reason": reason})

    def _replace(self, sock: socket.socket, message: dict[str, Any]) -> None:
        if self._asker is not None:
            control.send(sock, {"kind": "refused", "reason": "it is being replaced already"})
            return
        try:
            candidate = Launch.from_facts(message)
        except InvalidArgument as error:
            control.send(sock, {"kind": "refused", "reason": str(error)})
            return
        self._asker, self._candidate = sock, candidate
        self._do(self._core.replace(time.monotonic()))

    def _on_replaced(self, done: bool, reason: str) -> None:
        if done and self._candidate is not None:
            self._launch = self._candidate
        self._candidate = None
        self._log("INFO" if done else "WARNING", "the daemon was replaced" if done else f"the daemon was not replaced: {reason}")
        if self._asker is not None:
            asker, self._asker = self._asker, None
            answer = {"kind": "replaced", **self._describe(self._children.get(self._core.serving))}
            control.send(asker, answer if done else {"kind": "refused", "reason": reason})

    def _close_command(self, sock: socket.socket) -> None:
        self._remove(sock.fileno())
        if self._asker is sock:
            self._asker = None
        sock.close()

    # Taking over a mount whose holder has died

    def _adopt(self) -> None:
        adopted = None
        sock = control.connect(self._plan.socket, _CONNECTION_TIMEOUT_S)
        if sock is not None and control.send(sock, {"kind": "adopt"}):
            with contextlib.suppress(TimeoutError):
                adopted = control.receive(sock)
        if sock is None or adopted is None or len(adopted[1]) != 2:
            sys.stderr.write(
                f"alluxio-like: the daemon that serves {self._plan.place} does not answer: unmount it with umount -l\n"
            )
            self._status = 1
            return
        message, (device_fd, ledger_fd) = adopted
        pid, _ = control.get_peer(sock)
        sock.setblocking(False)
        child = Child(int(message["generation"]), pid, os.pidfd_open(pid), sock, ledger_fd, is_child=False)
        child.facts = dict(message.get("facts") or {})
        child.since_ns = int(message.get("since_ns", 0))
        child.lease = str(message.get("lease", ""))
        theirs = Device(device_fd)
        self._handshake = Handshake.from_facts(message["handshake"])
        self._device = theirs.clone()
        if self._handshake.resend:
            child.kept = theirs
        else:
            theirs.close()
        self._attach(child)
        self._note_number()
        self._hold_device()
        self._log("INFO", "took over a mount whose holder had died", generation=child.generation, pid=pid)
        self._do(self._core.adopt(child.generation, int(message.get("restarts", 0)), time.monotonic()))
        self._write_ready()
        if message.get("config") != self._plan.launch.config and not self._plan.joined:
            self._candidate = self._plan.launch
            self._do(self._core.replace(time.monotonic()))

    # Ends

    def _unmount(self) -> None:
        if self._device is None:
            return
        top = find_top_line(self._plan.place)
        if top is not None and self._device_number and top.device == self._device_number:
            try:
                libc.unmount(self._plan.place, libc.MNT_DETACH | libc.MNT_FORCE)
            except OSError as error:
                self._log("ERROR", f"still mounted ({error.strerror}): take it away with umount -l", place=self._plan.place)
                self._status = 1
        self._remove(self._device.fd)
        self._drop_dead()
        # With the last copy of the last descriptor the connection ends, and with it every request.
        self._device.close()

    def _clean_up(self) -> None:
        self._standby.drop()
        files = [self._plan.record_file, self._plan.ready_file]
        with contextlib.suppress(OSError):
            # Another holder may listen there by now, where this mount was detached while files of it were open.
            if os.stat(self._plan.socket).st_ino == self._socket_inode:  # noqa: PTH116
                files.append(self._plan.socket)
        for file in filter(None, files):
            with contextlib.suppress(OSError):
                os.unlink(file)  # noqa: PTH108
        if self._plan.place_made:
            with contextlib.suppress(OSError):
                os.rmdir(self._plan.place)  # noqa: PTH106
        if self._asker is not None:
            self._close_command(self._asker)

    def _log(self, level: str, text: str, **values: Any) -> None:
        """As logs.py writes it, which is too large for here."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        if self._plan.log_format == "json":
            line = {
                "time": stamp,
                "level": level.lower(),
                "service": "fuse",
                "pid": os.getpid(),
                "logger": "holder",
                "message": text,
            }
            text = json.dumps({**line, **values})
        else:
            shown = "".join(f" {key}={json.dumps(str(value)) if ' ' in str(value) else value}" for key, value in values.items())
            text = f"{stamp} {level:<7} fuse fuse.holder: {text}{shown}"
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text.encode("utf-8", "replace").decode() + "\n")
            sys.stderr.flush()


def main(plan_fd: int) -> int:
    """Run with the plan that a descriptor holds; the exit code."""
    with os.fdopen(plan_fd, "rb") as stream:
        plan = Plan.from_json(stream.read().decode())
    if plan.joined:
        from alluxio_like.fuse.holder_joined import JoinedHolder

        return JoinedHolder(plan).run()
    return Holder(plan).run()
