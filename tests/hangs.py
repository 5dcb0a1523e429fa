"""A test that goes on long after its time was over: where it hangs is said, and it is ended, so that the run goes on and fails.

A timeout raises in the main thread, once. A call that waits for a FUSE file system without its daemon hears of no signal, and
neither does what a fixture waits for after that. So a thread looks on: it writes where all threads and all child processes are,
aborts the FUSE connections that are this process' own, and, where that was not enough, ends the process, which xdist reports as a
crash.
"""

import contextlib
import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from alluxio_like.errors import Conflict
from alluxio_like.fuse import mountinfo
from alluxio_like.fuse.mountpoint import open_connections

GRACE_S = float(os.environ.get("ALLUXIO_LIKE_TEST_GRACE", "90"))
"""What a test may take beyond its time: a fixture that stops its servers then takes this at the most."""


class Guard:
    """Looks on from a thread of its own. What is said goes to `output`, a descriptor that no test captures."""

    def __init__(self, output: int) -> None:
        self._output = output
        self.made: list[str] = []
        """The temporary directories of this process, in which its mounts are."""
        self._what = ""
        self._end_s = float("inf")
        self._changed = threading.Condition()
        threading.Thread(target=self._look_on, name="hangs", daemon=True).start()

    def expect(self, what: str, limit_s: float) -> None:
        """From now on `what` is under way, and must be over by then."""
        with self._changed:
            self._what, self._end_s = what, time.monotonic() + limit_s
            self._changed.notify()

    def rest(self) -> None:
        """Nothing is under way."""
        self.expect("", float("inf"))

    def _wait(self) -> str:
        with self._changed:
            while (left_s := self._end_s - time.monotonic()) > 0:
                self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
            return self._what

    def _look_on(self) -> None:
        while True:
            what = self._wait()
            self._say(f"\n{what} HANGS\n{''.join(describe_tasks())}{''.join(describe_connections())}")
            faulthandler.dump_traceback(self._output, all_threads=True)
            self._abort()
            with self._changed:
                if self._what == what:  # else it has come to its end meanwhile
                    self._end_s = time.monotonic() + GRACE_S
            if self._wait() == what:
                self._say(f"\n{what} still hangs: its process ends\n")
                os._exit(70)

    def _abort(self) -> None:
        with contextlib.suppress(OSError, Conflict), open_connections() as connections:
            for connection, place in list_mounts():
                if any(place.startswith(f"{made}/") for made in self.made):
                    (connections / connection / "abort").write_text("1")
                    self._say(f"FUSE connection {connection} is aborted\n")

    def _say(self, text: str) -> None:
        os.write(self._output, text.encode(errors="replace"))


def list_waiting() -> set[str]:
    """The FUSE connections in which requests wait, by the number of their device."""
    found = set()
    with contextlib.suppress(OSError, Conflict), open_connections() as connections:
        for waiting in connections.glob("*/waiting"):
            with contextlib.suppress(OSError, ValueError):
                if int(waiting.read_text()):
                    found.add(waiting.parent.name)
    return found


def list_mounts() -> Iterator[tuple[str, str]]:
    """The FUSE mounts: the number of the connection, and where it is."""
    for line in mountinfo.list_lines():
        if line.fstype.startswith("fuse"):
            yield line.device.partition(":")[2], line.place


def describe_connections() -> Iterator[str]:
    waiting = list_waiting()
    for connection, place in list_mounts():
        yield f"  FUSE {connection} on {place}{', requests wait' if connection in waiting else ''}\n"


def describe_tasks() -> Iterator[str]:
    """All threads of this process and of all below it: their state, and where in the kernel one is that cannot be interrupted."""
    pids = [os.getpid()]
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                pids += [int(child) for child in (task / "children").read_text().split()]
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:150]
                yield f"  {pid} {task.name} {state} {(task / 'wchan').read_text()} {command}\n"
                if state == "D":
                    yield (task / "stack").read_text()


def get_limit_s(item: pytest.Item) -> float:
    """How long a test may take, as pytest-timeout has it."""
    marker = item.get_closest_marker("timeout")
    given = (marker.args[0] if marker.args else marker.kwargs["timeout"]) if marker else item.config.getoption("timeout")
    return float(given if given is not None else item.config.getini("timeout") or 0) or float("inf")


_GUARD = pytest.StashKey[Guard]()


def pytest_configure(config: pytest.Config) -> None:
    guard = config.stash[_GUARD] = Guard(os.dup(2))
    make = tempfile.mkdtemp

    def make_known(suffix: str | None = None, prefix: str | None = None, dir: str | None = None) -> str:  # noqa: A002
        guard.made.append(make(suffix, prefix, dir))
        return guard.made[-1]

    tempfile.mkdtemp = make_known  # type: ignore[assignment]


@pytest.fixture(scope="session", autouse=True)
def known_to_guard(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The directories of tests are this process' own, too."""
    pytestconfig.stash[_GUARD].made.append(str(tmp_path_factory.getbasetemp()))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.config.stash[_GUARD].expect(item.nodeid, get_limit_s(item) + GRACE_S)
    try:
        return (yield)
    finally:
        item.config.stash[_GUARD].rest()


def pytest_unconfigure(config: pytest.Config) -> None:
    # What is left is the end of the interpreter, which waits for threads. xdist ends its own processes.
    if not hasattr(config, "workerinput"):
        config.stash[_GUARD].expect("the end of the run", GRACE_S)
