"""kill -9 of the worker and of the master at each moment of a file's way, from its making to the store, one after the other on
the same disks: all that was acknowledged is there, nothing is torn, nothing is taken for foreign, and `fsck` finds nothing.

The moments are those of points/sitecustomize.py. In CI some of them, in `make soak` all, with both policies.
"""

import os
from pathlib import Path

import pytest

from tests.cluster.conftest import workplace  # noqa: F401  (a fixture)
from tests.cluster.writing import start_written, wait_until
from tests.crash.test_random_kills import Program, read_store, writing
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
