"""What `why` says of jobs that wait for a real store through the fault proxy: for what, for which files, and what would help."""

import subprocess
import sys
from typing import Any

import pytest

from tests.cluster.conftest import StackMaker
from tests.cluster.data import MIB, make_data, put_samples
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.net import wait_until
from tests.servers.stack import Stack

pytestmark = pytest.mark.mount

READ_ALL = "import sys, os\nd = sys.argv[1]\nfor n in sorted(os.listdir(d)): open(os.path.join(d, n), 'rb').read()"
STAT_ALL = "import sys, os\nfor d, _, names in os.walk(sys.argv[1]):\n  for n in names: os.stat(os.path.join(d, n))"


def run_job(code: str, *arguments: object) -> int:
    """Run a Python program; the number of its process, which has ended."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    assert process.wait(60) == 0
    return process.pid


def ask_why(stack: Stack, target: object) -> Any:
    return stack.run_command("alluxio-like", "why", str(target))


def wait_booked(stack: Stack, pid: int) -> Any:
    """What is said of a job once its closes have been booked."""
    wait_until("the job's books", lambda: not ask_why(stack, pid)["job"]["open"], timeout_s=60, interval_s=0.2)
    return ask_why(stack, pid)


def test_a_slow_store_is_what_a_cold_job_waits_for(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    put_samples(s3_server, s3_bucket, 12)
    stack = make_stack()
    subprocess.run(["ls", "-l", stack.mountpoint / "train"], check=True, capture_output=True)
    proxy.set_rules({"op": "GET", "latency_s": 0.5})
    pid = run_job(READ_ALL, stack.mountpoint / "train")
    job = wait_booked(stack, pid)["job"]
    waits = job["waits_s"]
    assert waits["store"] > 12 * 0.4
    assert max(waits, key=waits.__getitem__) == "store", waits
    assert len(job["worst"]) == 10
    assert all(file["key"].startswith("train/") and file["waits_s"]["store"] > 0.4 for file in job["worst"]), job["worst"]

    advice = ask_why(stack, pid)["advice"]
    assert "for the store" in advice[0]["evidence"]
    assert "/train is cached by now" in advice[0]["help"]
    # With part of it gone again, loading is what would help, and it is said what it takes.
    stack.free("/train")
    wait_until(
        "what is missing",
        lambda: "cache load /train" in ask_why(stack, pid)["advice"][0]["help"],
        timeout_s=60,
        interval_s=0.2,
    )
    assert "it fits" in ask_why(stack, pid)["advice"][0]["help"]

    warm = run_job(READ_ALL, stack.mountpoint / "train")
    proxy.set_rules()
    again = run_job(READ_ALL, stack.mountpoint / "train")
    assert sum(wait_booked(stack, warm)["job"]["waits_s"].values()) > 12 * 0.4
    assert sum(wait_booked(stack, again)["job"]["waits_s"].values()) < 12 * 0.4


def test_a_large_file_that_is_streamed_waits_for_the_store(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    s3_server.put(s3_bucket, "large", make_data(1, 48 * MIB))
    stack = make_stack()
    proxy.set_limits(bytes_per_s=16 * MIB)
    pid = run_job("import sys; open(sys.argv[1], 'rb').read()", stack.mountpoint / "large")
    job = wait_booked(stack, pid)["job"]
    waits = job["waits_s"]
    assert sum(waits.values()) > 1.5
    (mount,) = [
        one for one in stack.run_command("alluxio-like", "report")["local_mounts"] if one["mountpoint"] == str(stack.mountpoint)
    ]
    assert (mount["session"], sum(mount["open"].values())) == (stack.ready["fuse"]["session"], 0)
    assert str(stack.mountpoint) in stack.try_command("alluxio-like", "report").stdout
    file = job["worst"][0]["waits_s"]
    assert file["store"] > 0.5 * sum(file.values()), file
    assert file["peer"] < 0.3 * sum(file.values()), file
    assert job["worst"][0]["key"] == "large"
    assert ask_why(stack, stack.mountpoint / "large")["file"]["jobs"][0]["pid"] == pid


def test_slow_listings_are_what_a_job_waits_for_that_looks_at_names(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    for number in range(6):
        put_samples(s3_server, s3_bucket, 3, 100, f"dir{number}/")
    stack = make_stack()
    proxy.set_rules({"op": "LIST", "latency_s": 0.3})
    pid = run_job(STAT_ALL, stack.mountpoint)
    found = wait_booked(stack, pid)
    waits = found["job"]["waits_s"]
    assert waits["metadata"] > 1.5
    assert waits["metadata"] > 0.95 * sum(waits.values())
    assert found["job"]["metadata_waits"] >= 6
    assert "names and attributes" in found["advice"][0]["evidence"]


def test_a_store_that_asks_for_less_is_waited_for_in_the_queue(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    put_samples(s3_server, s3_bucket, 8)
    stack = make_stack()
    subprocess.run(["ls", "-l", stack.mountpoint / "train"], check=True, capture_output=True)
    proxy.set_rules({"op": "GET", "status": 503, "code": "SlowDown", "times": 8})
    pid = run_job(READ_ALL, stack.mountpoint / "train")
    waits = wait_booked(stack, pid)["job"]["waits_s"]
    assert waits["queue"] > 0.5 * sum(waits.values()), waits
