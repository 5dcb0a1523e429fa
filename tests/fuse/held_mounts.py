"""Mounts under a holder, and what the tests of them do to them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alluxio_like.fuse import control
from alluxio_like.fuse import mountpoint as places
from alluxio_like.fuse.holder_child import Launch, Plan
from tests.servers.processes import freeze

HOLDER = Path(control.__file__).with_name("holder_main.py")
ROOT = Path(__file__).parents[2]


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = 60) -> Any:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {limit_s} s: {what}")


class HeldMount:
    """A holder and its mount."""

    def __init__(self, directory: Path, program: Path, config: dict[str, Any], **plan: Any) -> None:
        self.program = program
        self.directory = directory
        self.path = directory / "mnt"
        self.path.mkdir(parents=True, exist_ok=True)
        self.ready_file = directory / "ready"
        self.log = directory / "log"
        self.socket = str(directory / "control")
        self.config, self.plan = {"blocked_by": str(directory / "blocked"), **config}, plan
        self.lifeline, self.lifeline_write = os.pipe()
        self.start()

    def launch(self, config: dict[str, Any]) -> Launch:
        return Launch([sys.executable, str(self.program)], {**os.environ, "PYTHONPATH": str(ROOT)}, "/", config)

    def start(self, **changes: Any) -> None:
        self.ready_file.unlink(missing_ok=True)
        plan = Plan(
            place=str(self.path),
            launch=self.launch(self.config),
            socket=self.socket,
            allow_other=False,
            ready_file=str(self.ready_file),
            lifeline=self.lifeline,
            **{**self.plan, **changes},
        )
        fd = os.memfd_create("plan", 0)
        os.write(fd, plan.to_json().encode())
        os.lseek(fd, 0, 0)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(HOLDER), str(fd)], stdout=log, stderr=log, pass_fds=[fd, self.lifeline]
            )
        os.close(fd)

    def facts(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.ready_file.read_text()))
        except FileNotFoundError:
            return {}

    def wait_ready(self, generation: int = 1, limit_s: float = 60) -> dict[str, Any]:
        def ready() -> dict[str, Any] | None:
            assert self.process.poll() is None, self.log.read_text()
            facts = self.facts()
            return facts if facts.get("generation", 0) >= generation and facts["pid"] == self.process.pid else None

        return dict(wait_until(ready, f"generation {generation}", limit_s))

    def kill_daemon(self) -> None:
        os.kill(self.facts()["daemon_pid"], signal.SIGKILL)

    def freeze_daemon(self) -> None:
        freeze(self.facts()["daemon_pid"])

    def ask(self, message: dict[str, Any], timeout_s: float = 60) -> dict[str, Any]:
        sock = control.connect(self.socket, timeout_s)
        assert sock is not None
        with sock:
            assert control.send(sock, message)
            received = control.receive(sock)
        assert received is not None
        return received[0]

    def replace(self, **config: Any) -> dict[str, Any]:
        return self.ask({"kind": "replace", **self.launch({**self.config, **config})._asdict()})

    @property
    def generation(self) -> int:
        return int((self.path / "g").read_text())

    @property
    def mounted(self) -> bool:
        return places.find_top(self.path) is not None

    def stop(self, number: int = signal.SIGTERM, limit_s: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(limit_s)

    def clean(self) -> None:
        try:
            if self.process.poll() is None:
                assert self.stop() == 0, self.log.read_text()
            assert not self.mounted
        finally:
            while self.mounted:
                places.detach(self.path)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(60)
            os.close(self.lifeline)
            os.close(self.lifeline_write)
        wait_until(lambda: not self.daemons(), "the daemons' end")
        text = self.log.read_text()
        assert "Traceback" not in text, text
        assert "unexpected" not in text, text

    def daemons(self) -> list[int]:
        """Processes that run our daemon for this test's mount."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    if str(self.directory) in os.readlink(entry / "fd/2") and entry.name != str(self.process.pid):
                        found.append(int(entry.name))
        return found


READER = """
import os, sys, time
path, content, errors, worst = sys.argv[1], bytes(range(256)) * 4096, 0, 0.0
held = os.open(path + "/f", os.O_RDONLY)
count = 0
print("reading", flush=True)
while not os.path.exists(sys.argv[2]):
    start = time.monotonic()
    try:
        piece = os.pread(held, 65536, 4096 * (count % 100))
        assert piece and piece == content[4096 * (count % 100):][:len(piece)]
        assert os.stat(path + "/f").st_size == len(content)
        assert "f" in os.listdir(path)
        with open(path + "/f", "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert stream.read() == content
    except OSError as error:
        errors += 1
        print(error, file=sys.stderr)
    worst = max(worst, time.monotonic() - start)
    count += 1
print(count, errors, round(worst, 3))
"""


class Load:
    """Processes that read, stat and list for as long as it is entered; then `results`: (rounds, errors, worst pause)."""

    def __init__(self, mount: HeldMount, count: int = 2) -> None:
        self.mount, self.count = mount, count
        self.end = mount.directory / "end"
        self.results: list[tuple[int, int, float]] = []

    def __enter__(self) -> "Load":
        command = [sys.executable, "-c", READER, str(self.mount.path), str(self.end)]
        self.readers = []
        for _ in range(self.count):
            with open(self.mount.directory / "readers", "ab") as errors:
                self.readers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True))
        for reader in self.readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
        return self

    def __exit__(self, *error: object) -> None:
        self.end.touch()
        for reader in self.readers:
            try:
                output, _ = reader.communicate(timeout=90)
            finally:
                reader.kill()
                reader.wait(60)
            if output:
                count, errors, worst = output.split()
                self.results.append((int(count), int(errors), float(worst)))
        self.end.unlink()
        if error[0] is None:
            assert len(self.results) == self.count, (self.mount.directory / "readers").read_text()[-3000:]


def show(text: str) -> None:
    sys.stdout.write(text + "\n")


class Statting:
    """A stat(2) in a thread; `wait` gives its errno, 0 for none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcome: int | None = None

    def __enter__(self) -> "Statting":
        self.thread = threading.Thread(target=self._stat, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()

    def _stat(self) -> None:
        try:
            os.stat(self.path)
            self.outcome = 0
        except OSError as error:
            self.outcome = error.errno

    def wait_taken(self, mount: HeldMount) -> None:
        """Until the mount's daemon, which answers one request after the other, has the call before it."""
        where = Path(f"/proc/self/task/{self.thread.native_id}/wchan")
        wait_until(lambda: "request_wait" in where.read_text(), "the call's wait")
        assert mount.generation > 0

    def wait(self, limit_s: float = 60) -> int:
        return int(wait_until(lambda: None if self.outcome is None else str(self.outcome), "the answer", limit_s))


@contextlib.contextmanager
def block_daemons(mount: HeldMount) -> Iterator[None]:
    """No daemon can start while this is entered."""
    file = Path(mount.config["blocked_by"])
    file.touch()
    try:
        yield
    finally:
        file.unlink()


@contextlib.contextmanager
def kept_open(path: Path) -> Iterator[int]:
    """Open while this is entered; that closing it fails on a mount that is gone does not matter."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def is_orphan(mount: HeldMount) -> bool:
    with contextlib.suppress(OSError, TimeoutError, AssertionError):
        return mount.ask({"kind": "status"})["state"] == "orphan"
    return False
