"""`cache load` that watches its job while the master goes away and comes back."""

import json
import os
import signal
import subprocess

import pytest

from tests.cluster.conftest import StackMaker
from tests.cluster.data import put_samples
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.net import wait_until
from tests.servers.stack import PROGRAMS

pytestmark = pytest.mark.mount


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_watching_load_goes_on_through_a_restart_of_the_master(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy, number: int
) -> None:
    objects = put_samples(s3_server, s3_bucket, 600)
    stack = make_stack(workers=2)
    proxy.set_limits(latency_s=0.05)
    proxy.reset_log()
    command = [str(PROGRAMS / "cache"), "load", "/", "--json"]
    watching = subprocess.Popen(command, env=stack.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until("some files are loaded", lambda: proxy.get_counts()["GET"] > 60, timeout_s=60)
        os.kill(stack.get_service_pids("master")[0], number)
        wait_until("some more are loaded", lambda: proxy.get_counts()["GET"] > 300, timeout_s=60)
        proxy.set_limits()
        said, errors = watching.communicate(timeout=200)
    finally:
        watching.kill()
        watching.wait()
    assert watching.returncode == 0, errors
    job = json.loads(said.strip().splitlines()[-1])
    assert (job["state"], job["total_files"], job["done_files"], job["checked_files"]) == ("done", *[len(objects)] * 3)
    assert job["done_bytes"] == job["total_bytes"] == sum(map(len, objects.values()))
    assert "Traceback" not in errors
    # What was being fetched while the master went away may be asked for once more, and nothing else.
    assert proxy.get_counts()["GET"] <= len(objects) + 64
