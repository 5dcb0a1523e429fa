"""A whole file system for tests, benchmarks and the demo: `alluxio-like up` as a user would run it.

Owns its processes for as long as a context lasts; everything lies below one directory.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = Path(sys.executable).parent
STOP_S = 60.0


def get_pids(ready: Any) -> list[int]:
    """Every pid in what `up --json` printed; of a mount, its daemon's before its holder's."""
    if isinstance(ready, dict):
        return [ready[name] for name in ("daemon_pid", "pid") if name in ready] + [
            pid for value in ready.values() for pid in get_pids(value)
        ]
    return [pid for value in ready for pid in get_pids(value)] if isinstance(ready, list) else []


@dataclass
class Stack:
    """A running file system."""

    ready: dict[str, Any]
    mountpoint: Path
    environment: dict[str, str]
    process: subprocess.Popen[str]
    pids: list[int] = field(default_factory=list)

    @property
    def master(self) -> str:
        return str(self.ready["master"]["address"])

    def get_service_pids(self, name: str) -> list[int]:
        """The pids of master, workers or fuse."""
        return get_pids(self.ready[name])

    def run_command(self, program: str, *arguments: str, timeout_s: float = 900) -> Any:
        """What a command prints with --json; fails when it does."""
        done = self.try_command(program, *arguments, "--json", timeout_s=timeout_s)
        command = [program, *arguments]
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        lines = done.stdout.strip().splitlines()
        return json.loads(lines[-1]) if lines else None

    def try_command(self, program: str, *arguments: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """Run `alluxio-like` or `cache`; whatever comes of it."""
        command = [str(PROGRAMS / program), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False)

    def load(self, *arguments: str) -> Any:
        """`cache load`, waited for."""
        return self.run_command("cache", "load", *arguments)

    def free(self, path: str = "/") -> None:
        """Drop what is cached below a path."""
        self.run_command("cache", "free", path)


@contextmanager
def start_stack(
    directory: Path, mounts: Mapping[str, str], environment: Mapping[str, str], *arguments: str, home: str = "home"
) -> Iterator[Stack]:
    """`alluxio-like up` with the given mounts (path: URI), ready for use; stopped and unmounted afterwards."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True, exist_ok=True)
    command = [str(PROGRAMS / "alluxio-like"), "up", "--json", "--home", str(directory / home), "--fuse", str(mountpoint)]
    for path, uri in mounts.items():
        command += ["--mount", f"{path}={uri}"]
    log = open(directory / f"{home}.log", "a")  # noqa: SIM115  closed below
    env = {**os.environ, **environment}
    process = subprocess.Popen([*command, *arguments], env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"up ended with {process.wait(60)}; see {log.name}")
        ready = json.loads(line)
        if "master" not in ready:
            raise RuntimeError(f"up: {ready}; see {log.name}")
        stack = Stack(ready, mountpoint, {**env, "ALLUXIO_LIKE_MASTER": ready["master"]["address"]}, process)
        stack.pids = sorted(set(get_pids(ready)) - {process.pid})
        yield stack
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        if process.poll() is None:
            process.kill()
            process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
        log.close()
