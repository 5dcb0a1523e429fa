"""The servers that stand for GCS and Azure end with who started them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.clouds import install
from tests.servers.net import is_listening, wait_until

ROOT = Path(__file__).parents[2]
CODE = "import sys, time; from tests.servers.clouds import *\nwith {}() as endpoint: print(endpoint, flush=True); time.sleep(60)"


@pytest.mark.server
@pytest.mark.parametrize("start", ["start_gcs", "start_azurite"])
def test_a_killed_test_run_leaves_no_server(start: str) -> None:
    install()
    with subprocess.Popen([sys.executable, "-c", CODE.format(start)], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        assert is_listening(port)
        os.kill(process.pid, signal.SIGKILL)
    wait_until("the server is gone", lambda: not is_listening(port), timeout_s=60)
