"""The S3 server of tests and demo: up, down, and gone with whoever started it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.ceph import install_packages
from tests.servers.net import is_listening

SCRIPT = Path(__file__).parents[1] / "servers" / "ceph.py"
pytestmark = pytest.mark.server


@pytest.fixture
def root() -> Iterator[Path]:
    install_packages()
    with tempfile.TemporaryDirectory(prefix="ceph-", ignore_cleanup_errors=True) as made:
        yield Path(made) / "c"
        subprocess.run([sys.executable, str(SCRIPT), "down", "--root", f"{made}/c"], check=True, timeout=60)


def get_daemons(root: Path) -> list[int]:
    """Processes that run with this root's configuration."""
    wanted = f"CEPH_CONF={root.resolve()}/ceph.conf".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def wait_for(condition: object, timeout_s: float = 60) -> None:
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_up_and_down_by_the_system_python(root: Path) -> None:
    command = ["/usr/bin/python3", str(SCRIPT), "up", "--root", str(root)]
    ports = []
    for _ in range(2):  # a second start begins from scratch and leaves nothing of the first
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
        ports.append(int(json.loads(done.stdout)["endpoint"].rpartition(":")[2]))
        assert is_listening(ports[-1])
    assert ports[0] == ports[1] or not is_listening(ports[0])
    assert len(get_daemons(root)) == 3
    subprocess.run(["/usr/bin/python3", str(SCRIPT), "down", "--root", str(root)], check=True, timeout=60)
    assert get_daemons(root) == [] and not root.exists() and not is_listening(ports[-1])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_daemons_end_with_who_started_them(root: Path, how: signal.Signals) -> None:
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests themselves run in the background
        "from tests.servers.fixtures import start_s3_server\n"
        "with start_s3_server(pathlib.Path(sys.argv[1])) as server:\n"
        "    print(server.endpoint, flush=True)\n"
        "    time.sleep(100)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, "-c", program, str(root.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline()
        assert endpoint.startswith(b"http")
        assert len(get_daemons(root)) == 3
        process.send_signal(how)
        process.wait(60)
    wait_for(lambda: not get_daemons(root))
    assert how == signal.SIGKILL or not root.exists()


def test_a_foreign_directory_is_not_wiped(root: Path) -> None:
    root.mkdir()
    (root / "mine").write_text("precious")
    done = subprocess.run([sys.executable, str(SCRIPT), "up", "--root", str(root)], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "not one of mine" in done.stderr
    assert (root / "mine").read_text() == "precious"
