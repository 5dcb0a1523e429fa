"""kill -9 of the worker and of the master at each moment of a file's way, from its making to the store, one after the other on
the same disks: all that was acknowledged is there, nothing is torn, nothing is taken for foreign, and `fsck` finds nothing. So
for the daemon at each moment of an append.

The moments are those of points/sitecustomize.py. In CI some of them, in `make soak` all, with both policies.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import workplace  # noqa: F401  (a fixture)
from tests.cluster.writing import start_written, wait_until
from tests.crash.test_random_kills import Program, _mark, read_store, writing
from tests.crash.test_writing_crash import Running
from tests.servers.whole import assert_whole_disks

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(0 if "ALLUXIO_LIKE_TEST_SOAK" in os.environ else 300),
]

SOAK = "ALLUXIO_LIKE_TEST_SOAK" in os.environ
WORKER = [
    "begin: created",
    "begin: renamed",
    "begin: committed",
    "seal: begun",
    "seal: committed",
    "end: renamed",
    "end: committed",
    "delete: committed",
    "upload: planned",
    "upload: sent",
    "upload: told",
    "upload: forgotten",
]
MASTER = [
    "create: made",
    "rename: made",
    "version: asked for",
    "version: made",
    "upload: asked for",
    "upload: told of",
    "upload: recorded",
    "step: begun",
    "step: done",
]
IN_CI = {"workers": ["seal: committed", "upload: sent"], "master": ["upload: told of", "step: done"]}
FILLING = {
    "workers": [
        "blank: created",
        "blank: committed",
        "publish: begun",
        "publish: committed",
        "delete: committed",
        "upload: planned",
        "upload: sent",
        "upload: told",
        "upload: forgotten",
    ],
    "master": ["upload: asked for", "upload: told of", "upload: recorded"],
}
FILLING_IN_CI = {"workers": ["publish: begun", "publish: committed", "upload: told"], "master": ["upload: recorded"]}


def arm(workplace: Path) -> tuple[Path, dict[str, str]]:  # noqa: F811
    """Where points are armed, and the environment of services that know them."""
    armed = workplace / "points"
    armed.mkdir()
    hooks = os.pathsep.join(filter(None, [str(Path(__file__).parent / "points"), os.environ.get("PYTHONPATH", "")]))
    return armed, {"PYTHONPATH": hooks, "ALLUXIO_LIKE_TEST_POINTS": str(armed)}


@pytest.mark.parametrize("service", ["workers", "master"])
@pytest.mark.parametrize("policy", ["through", "back:1"] if SOAK else ["back:1"])
def test_kills_at(workplace: Path, service: str, policy: str) -> None:  # noqa: F811
    (workplace / "store").mkdir()
    armed, environment = arm(workplace)
    points = (WORKER if service == "workers" else MASTER) if SOAK else IN_CI[service]
    with start_written(workplace, f"file://{workplace / 'store'}", environment, policy) as stack:
        running = Running(stack, workplace)
        programs = [Program(running.place, number) for number in range(2)]
        for point in points:
            pid = running.get_pid(service)
            with writing(programs):
                (armed / point).touch()
                wait_until(lambda point=point: not (armed / point).exists(), f"{point} is reached")
                wait_until(lambda pid=pid: running.get_pid(service) not in (0, pid), f"another {service}")
            try:
                for program in programs:
                    program.check()
                    program.failed.clear()
                assert_whole_disks(workplace / "home", online=True)
            except AssertionError as error:
                raise AssertionError(f"{service} killed at {point}, {policy}: {error}") from error
        stack.run_command("alluxio-like", "fs", "wait", "/data", "--timeout", "5m")
        assert read_store(programs, running.store)
    assert_whole_disks(workplace / "home")


class Unpacker(Program):
    """Fills directories that it has just made, as `tar` does."""

    def __init__(self, place: Path, number: int) -> None:
        super().__init__(place, number)
        self.made: dict[Path, tuple[bytes, int]] = {}
        """What each file holds, and its mtime."""
        self.count = 0

    def run(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self.count += 1
            folder = self.place / f"d{self.count}"
            try:
                folder.mkdir()
                for number in range(20):
                    path, data = folder / f"f{number}", self.random.randbytes(self.random.choice([0, 100, 5000]))
                    path.write_bytes(data)
                    os.utime(path, (number, number))
                    self.made[path] = data, number
            except OSError as error:
                self.failed.append(f"{folder.name}: {error}")

    def check(self) -> None:
        wrong = []
        for path, (data, mtime_s) in self.made.items():
            found = path.read_bytes(), int(path.stat().st_mtime)
            if found != (data, mtime_s):
                wrong.append(
                    f"{path.relative_to(self.place)} has {_mark(found[0])} and mtime {found[1]}, not {_mark(data)}, {mtime_s}"
                )
        assert not wrong, (wrong[:5], self.failed)


@pytest.mark.parametrize("service", ["workers", "master"])
def test_kills_as_new_directories_are_filled(workplace: Path, service: str) -> None:  # noqa: F811
    """What a mount makes by itself: the worker is killed as it begins blank drafts, publishes their files, and deletes them; and
    worker and master as many of these are uploaded together."""
    (workplace / "store").mkdir()
    armed, environment = arm(workplace)
    with start_written(workplace, f"file://{workplace / 'store'}", environment, "back:1") as stack:
        running = Running(stack, workplace)
        programs = [Unpacker(running.place, number) for number in range(2)]
        for point in (FILLING if SOAK else FILLING_IN_CI)[service]:
            pid = running.get_pid(service)
            with writing(programs):
                (armed / point).touch()
                wait_until(lambda point=point: not (armed / point).exists(), f"{point} is reached")
                wait_until(lambda pid=pid: running.get_pid(service) not in (0, pid), f"another {service}")
            try:
                for program in programs:
                    program.check()
                assert_whole_disks(workplace / "home", online=True)
            except AssertionError as error:
                raise AssertionError(f"{service} killed at {point}: {error}") from error
        stack.run_command("alluxio-like", "fs", "wait", "/data", "--timeout", "5m")
        for path, (data, _) in [known for program in programs for known in program.made.items()]:
            assert (running.store / path.relative_to(running.place)).read_bytes() == data
    assert_whole_disks(workplace / "home")


@pytest.mark.parametrize("size", [20, 200_000], ids=["at once", "in a thread"])
def test_an_append_is_done_once(workplace: Path, size: int) -> None:  # noqa: F811
    """Where the kernel does not write by itself: it sends again what a daemon was killed over."""
    (workplace / "store").mkdir()
    armed, environment = arm(workplace)
    environment["ALLUXIO_LIKE_PASSTHROUGH"] = "off"
    with start_written(workplace, f"file://{workplace / 'store'}", environment, "back:1") as stack:
        running = Running(stack, workplace)
        expected = b""
        with (running.place / "log").open("ab", buffering=0) as log:
            # A file that an earlier daemon has opened is written to at its end, which the kernel need not know.
            running.kill("daemon")
            for number, point in enumerate([f"append: {moment}" for moment in ("begun", "written", "noted")] * 3):
                pid = running.get_pid("daemon")
                (armed / point).touch()
                line = (b"%06d " % number).ljust(size - 1, b".") + b"\n"
                assert log.write(line) == size
                expected += line
                assert not (armed / point).exists(), f"{point} was not reached"
                wait_until(lambda pid=pid: running.get_pid("daemon") not in (0, pid), "another daemon")
        assert (running.place / "log").read_bytes() == expected
        stack.run_command("alluxio-like", "fs", "wait", "/data", "--timeout", "5m")
        assert (running.store / "log").read_bytes() == expected
