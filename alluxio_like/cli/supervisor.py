"""Keeps a set of services running as processes of their own, and ends them in a bounded time.

Owns the processes: starting, waiting until ready, starting again with a growing pause after a crash, stopping. Knows nothing of
what they do. Everything runs on one event loop, started from the main thread (the kernel ties a child's death signal to the
thread that made it). A service is told to stop by SIGTERM and killed if it has not ended in STOP_TIMEOUT_S; if this process dies
without stopping them, they see the end of a pipe and end by themselves (services.tie_to_supervisor).
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alluxio_like.cli.finding import get_start_ticks
from alluxio_like.errors import AlluxioLikeError, ConfigError, Conflict, TimedOut

log = logging.getLogger(__name__)

PROGRAM = (sys.executable, "-P", "-m", "alluxio_like.cli.main")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0
STEADY_S = 30.0
"""After having run for so long a crash counts as the first one again."""
LOG_LIMIT_BYTES = 16 << 20
_LOOK_S = 1.0
"""How often it is looked at whether a service says something else of itself."""


@dataclass(slots=True)
class Service:
    """One service: its command (`kind` with its configuration file); while it runs, its process and what its ready file says."""

    name: str
    kind: str
    config: Path
    ready_file: Path
    log_file: Path
    stop_first: bool = False
    stop_last: bool = False
    process: asyncio.subprocess.Process | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    ready_stamp: int = 0
    started_s: float = 0.0
    log_start: int = 0
    crashes: int = 0

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self.process.pid if self.process is not None and self.process.returncode is None else 0


class StartFailed(AlluxioLikeError):
    """A service ended before it was ready; the message is its own last line."""


class Supervisor:
    """Runs services until `stop`. `on_change` is called after each start and end, to let the world know the pids."""

    def __init__(
        self,
        pids_file: Path,
        on_change: Callable[[], None],
        *,
        program: Sequence[str] = PROGRAM,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self._pids_file = pids_file
        self._program = tuple(program)
        self._stop_timeout_s = stop_timeout_s
        self._on_change = on_change
        self._services: list[Service] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._spawns: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._lifeline, self._lifeline_write = os.pipe()
        self.left_by_itself = asyncio.Event()
        """Set when a service that `stop_first` marks has ended with 0: somebody unmounted."""

    async def start(self, service: Service) -> None:
        """Start a service and return at once; raises OSError."""
        self._services.append(service)
        await self._spawn(service)

    async def wait_ready(self, service: Service, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for a service's ready file, then keep it running. Raises StartFailed, ConfigError, TimedOut."""
        deadline = time.monotonic() + timeout_s
        while not self._read_ready(service):
            process = service.process
            if process is not None and process.returncode is not None:
                reason = _get_last_line(service) or f"{service.name} ended with {process.returncode}: see {service.log_file}"
                # A service ends with 2 when it was told something impossible.
                raise ConfigError(reason) if process.returncode == 2 else StartFailed(reason)
            if time.monotonic() > deadline:
                raise TimedOut(f"{service.name} was not ready after {timeout_s:.0f} s: see {service.log_file}")
            await asyncio.sleep(0.02)
        self._keepers.append(asyncio.create_task(self._keep(service), name=f"keep {service.name}"))
        self._changed()

    async def stop(self, *, force: asyncio.Event | None = None) -> None:
        """End everything: what `stop_first` marks, then the rest, then what `stop_last` marks, to which the others say goodbye.

        Each within STOP_TIMEOUT_S, or at once when `force` is set.
        """
        self._stopping = True
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*self._spawns, return_exceptions=True)
        for group in ((True, False), (False, False), (False, True)):
            await asyncio.gather(*(self._end(s, force) for s in self._services if (s.stop_first, s.stop_last) == group))
        for descriptor in (self._lifeline, self._lifeline_write):
            os.close(descriptor)
        self._pids_file.unlink(missing_ok=True)

    async def _spawn(self, service: Service) -> None:
        """Start a process. A cancelled caller does not interrupt it: a process that nobody knows of would be left behind."""
        task = asyncio.create_task(self._do_spawn(service))
        self._spawns.add(task)
        task.add_done_callback(self._spawns.discard)
        await asyncio.shield(task)

    async def _do_spawn(self, service: Service) -> None:
        service.ready_file.unlink(missing_ok=True)
        service.facts = {}
        with contextlib.suppress(FileNotFoundError):
            if service.log_file.stat().st_size > LOG_LIMIT_BYTES:
                service.log_file.replace(service.log_file.with_name(service.log_file.name + ".1"))
        command = [*self._program, service.kind, "--config", str(service.config)]
        command += ["--supervisor", str(os.getpid()), "--lifeline", str(self._lifeline)]
        with service.log_file.open("ab") as output:
            service.log_start = output.tell()
            service.started_s = time.monotonic()
            service.process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A Ctrl-C in the terminal reaches us alone: we stop the services in their order.
                start_new_session=True,
                pass_fds=(self._lifeline,),
            )
        self._changed()

    async def _keep(self, service: Service) -> None:
        while service.process is not None:
            status = await self._wait_end(service, service.process)
            self._changed()
            if service.stop_first and status == 0:
                self.left_by_itself.set()
                return
            if time.monotonic() - service.started_s > STEADY_S:
                service.crashes = 0
            pause = min(FIRST_PAUSE_S * 2**service.crashes, LONGEST_PAUSE_S)
            service.crashes += 1
            why = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
            log.warning("%s %s: starting it again in %g s; see %s", service.name, why, pause, service.log_file)
            await asyncio.sleep(pause)
            await self._spawn(service)
            while not self._read_ready(service) and service.process.returncode is None:
                await asyncio.sleep(0.05)
            if service.process.returncode is None:
                log.warning("%s is back, pid %d", service.name, service.pid)
            self._changed()

    async def _wait_end(self, service: Service, process: asyncio.subprocess.Process) -> int:
        """Wait for a process's end; meanwhile what its ready file says may change (a mount's holder starts daemons anew)."""
        ending = asyncio.ensure_future(process.wait())
        try:
            while not (await asyncio.wait([ending], timeout=_LOOK_S))[0]:
                if _get_stamp(service.ready_file) != service.ready_stamp and self._read_ready(service, anew=True):
                    self._changed()
            return ending.result()
        finally:
            ending.cancel()

    async def _end(self, service: Service, force: asyncio.Event | None) -> None:
        process = service.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        waiting = {asyncio.ensure_future(process.wait())}
        if force is not None:
            waiting.add(asyncio.ensure_future(force.wait()))
        _, pending = await asyncio.wait(waiting, timeout=self._stop_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if process.returncode is None:
            log.warning("%s (pid %d) did not stop: killed", service.name, process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # A killed process may still wait for a disk or a file system; it is not waited for without end.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._stop_timeout_s / 2):
                    await process.wait()

    def _read_ready(self, service: Service, *, anew: bool = False) -> bool:
        if service.facts and not anew:
            return True
        stamp = _get_stamp(service.ready_file)
        try:
            facts = json.loads(service.ready_file.read_text())
        except (OSError, ValueError):
            return False
        if facts.get("pid") != service.pid:
            return False
        service.facts = facts
        service.ready_stamp = stamp
        return True

    def _changed(self) -> None:
        running = [[service.pid, get_start_ticks(service.pid)] for service in self._services if service.pid]
        with contextlib.suppress(OSError):
            temporary = self._pids_file.with_suffix(".new")
            temporary.write_text(json.dumps(running))
            temporary.replace(self._pids_file)
        if not self._stopping:
            self._on_change()


def _get_stamp(file: Path) -> int:
    """Tells one content of a file that is replaced as a whole from another; 0 where there is none."""
    try:
        found = file.stat()
    except OSError:
        return 0
    return hash((found.st_ino, found.st_mtime_ns))


def _get_last_line(service: Service) -> str:
    """The last line a service wrote before it ended, without its program's name."""
    try:
        with service.log_file.open("rb") as stream:
            stream.seek(service.log_start)
            lines = stream.read()[-65536:].decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].removeprefix("alluxio-like: ") if lines else ""


def end_leftovers(pids_file: Path, timeout_s: float = 20.0) -> None:
    """End what a supervisor that was killed has left running. Only processes that it recorded, told by pid and start time.

    They end by themselves within services.ORPHAN_GRACE_S; after `timeout_s` they are killed. Raises Conflict if even that fails.
    """
    try:
        recorded: Sequence[Sequence[int]] = json.loads(pids_file.read_text())
        left = [(int(pid), int(ticks)) for pid, ticks in recorded]
    except (OSError, ValueError, TypeError):
        return
    deadline = time.monotonic() + timeout_s
    killed = False
    while left := [(pid, ticks) for pid, ticks in left if get_start_ticks(pid) == ticks]:
        if time.monotonic() > deadline:
            if killed:
                raise Conflict(f"processes of an earlier run cannot be ended: {', '.join(str(pid) for pid, _ in left)}")
            for pid, _ in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            killed, deadline = True, time.monotonic() + 5
        time.sleep(0.05)
    pids_file.unlink(missing_ok=True)
