"""`read_many` and `open_local` in front of real services on a local directory: forks, leases, what is asked of the master."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from alluxio_like import connect
from tests.fakes_rpc import make_content
from tests.servers.net import wait_until
from tests.servers.stack import Stack, start_stack

ROOT = Path(__file__).parents[2]
FILES = 8
SIZE = 110_001
PATHS = [f"/f{number}" for number in range(FILES)]
WHOLE = [(f"/f{number}", make_content(SIZE, number)) for number in range(FILES)]
LONG_AGO = 1_600_000_000

pytestmark = pytest.mark.mount


def put(directory: Path, number: int, seed: int) -> None:
    """A file of the store, old enough to be trusted for caching."""
    path = directory / f"f{number}"
    made = directory.parent / "made"
    made.write_bytes(make_content(SIZE, seed))
    os.utime(made, (LONG_AGO + seed, LONG_AGO + seed))
    made.replace(path)


@pytest.fixture
def store(workplace: Path) -> Path:
    directory = workplace / "store"
    directory.mkdir()
    for number in range(FILES):
        put(directory, number, number)
    return directory


@pytest.fixture
def stack(workplace: Path, store: Path) -> Iterator[Stack]:
    with start_stack(workplace, {"/": f"file://{store}"}, {}, "--io-timeout", "60s") as running:
        running.load("/")
        yield running


def count_names_asked(stack: Stack) -> float:
    """Calls of the namespace that the master has served, but those of leases."""
    with urllib.request.urlopen(f"http://{stack.ready['master']['http_address']}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = re.findall(r'^alluxio_like_rpc_requests_total\{method="([^"]*)"[^}]*\} (\S+)$', text, flags=re.MULTILINE)
    return sum(float(count) for method, count in found if "Lookup" in method or "ListDir" in method or "Resolve" in method)


def test_a_warm_epoch_asks_the_master_nothing_and_a_change_is_seen_at_once(stack: Stack, store: Path) -> None:
    with connect(stack.master) as client:
        for _ in range(2):
            assert list(client.read_many(PATHS)) == WHOLE
        small = client._get_small()
        wait_until("the lease lives", small.is_live, timeout_s=60)
        # What was learned before is asked for once more, and covered from then on.
        small.expire()
        assert list(client.read_many(PATHS)) == WHOLE
        before = count_names_asked(stack)
        for _ in range(20):
            assert list(client.read_many(PATHS)) == WHOLE
        assert count_names_asked(stack) == before
        put(store, 3, 33)
        stack.run_command("alluxio-like", "fs", "sync", "/")
        wait_until("the change is seen", lambda: list(client.read_many(["/f3"])) != [WHOLE[3]], timeout_s=60)
        assert list(client.read_many(PATHS)) == [*WHOLE[:3], ("/f3", make_content(SIZE, 33)), *WHOLE[4:]]
        with client.open_local("/f3") as file:
            assert os.pread(file.fileno(), SIZE, 0) == make_content(SIZE, 33)


def test_leases_and_descriptors_outlive_forks_and_nothing_else_does(stack: Stack) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.forking", stack.master, "many_forks"]
    environment = {**os.environ, "ALLUXIO_LIKE_TEST_SIZE": str(SIZE)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False, env=environment)
    said = [line for line in done.stderr.splitlines() if "chttp2_transport" not in line]
    assert (done.returncode, said) == (0, [])
    # Nobody has a cache file open any more.
    assert stack.run_command("alluxio-like", "report")["details"][0]["directories"][0]["held_files"] == 0
