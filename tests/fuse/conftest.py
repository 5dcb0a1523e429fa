"""Mounts of the real daemon over a tree in memory, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.fuse import mountpoint as places

DAEMON = Path(__file__).with_name("memory_daemon.py")
START_S = 120


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
    """What `condition` gives once it is true; fails when that takes longer than `limit_s`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s: {what}")


class Mount:
    """A daemon and its mount point."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        directory.mkdir(exist_ok=True)
        self.path = directory / "mnt"
        self.ours = False
        self.log = directory / "log"
        self._ready = directory / "ready"
        self._ready.unlink(missing_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(DAEMON), str(self.path), str(self._ready), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def wait_ready(self) -> None:
        wait_until(lambda: self._ready.exists() or self.process.poll() is not None, "the mount", START_S)
        assert self.process.poll() is None, self.log.read_text()
        self.ours = True

    def do(self, command: str, **details: Any) -> Any:
        """Have the daemon do something to its tree; see memory_daemon.Control."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": command, **details}).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @property
    def mounted(self) -> bool:
        return places.find_top(self.path) is not None

    def stop(self, number: int = signal.SIGTERM, limit_s: float = 60) -> int:
        """Send a signal and give the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(limit_s)

    def clean(self) -> None:
        """Leave nothing behind, whatever the test did; failing here is the test's failure."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        try:
            if self.process.poll() is None:
                assert self.stop() == 0, self.log.read_text()
                assert not self.mounted
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(60)
            while self.ours and self.mounted:
                places.detach(self.path)
        text = self.log.read_text()
        assert "Traceback" not in text, text
        assert "CRITICAL" not in text, text
        assert "never retrieved" not in text, text


SESSIONS: dict[str, dict[str, Any]] = {
    "pyfuse3": {"session": "pyfuse3"},
    "kernel-reads": {"session": "kernel", "passthrough": "off"},
    "kernel": {"session": "kernel"},
}
"""The ways in which a mount is served, all of which behave alike; `kernel` passes wholly local files through, where the kernel
can."""


@pytest.fixture(params=list(SESSIONS))
def session(request: pytest.FixtureRequest) -> str:
    """The session that `mount` uses."""
    return str(request.param)


@pytest.fixture
def mount(tmp_path: Path, session: str) -> Iterator[Callable[..., Mount]]:
    """A function that mounts; all mounts are taken away afterwards."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse and root")
    mounts: list[Mount] = []

    def make(*, ready: bool = True, at: str = "m", **settings: Any) -> Mount:
        if session == "kernel" and "whole_dir" not in settings:
            whole = tmp_path / f"{at}-whole"
            whole.mkdir(exist_ok=True)
            settings["whole_dir"] = str(whole)
        settings["fuse"] = {**SESSIONS[session], **settings.get("fuse", {})}
        made = Mount(tmp_path / at, settings)
        mounts.append(made)
        if ready:
            made.wait_ready()
        return made

    yield make
    for made in reversed(mounts):
        made.clean()
