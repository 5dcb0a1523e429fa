"""Names that mounts keep for long, and hear of when they change: real services, a real S3 server, a real kernel."""

import os
import random
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.conftest import StackMaker
from tests.cluster.data import put_samples, read_epoch
from tests.servers.fixtures import S3Server
from tests.servers.net import wait_until
from tests.servers.stack import PROGRAMS, Stack

pytestmark = [pytest.mark.mount, pytest.mark.timeout(240)]

SOON_S = 1.0
NOT_CALLS = ("Workers/Heartbeat", "Workers/ReportBlocks", "Coherence/Watch")


def read_metrics(address: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def count_calls(stack: Stack) -> dict[str, float]:
    """Calls that the master has answered, by method, but for those of workers and the leases' streams."""
    metrics = read_metrics(stack.ready["master"]["http_address"])
    calls: dict[str, float] = {}
    for (name, labels), value in metrics.items():
        if name == "alluxio_like_rpc_requests_total":
            method = dict(labels)["method"]
            if method not in NOT_CALLS:
                calls[method] = calls.get(method, 0) + value
    return calls


def get_fuse_metric(stack: Stack, name: str) -> float:
    return read_metrics(stack.ready["fuse"]["http_address"])[f"alluxio_like_{name}", ()]


def wait_for_lease(stack: Stack) -> None:
    wait_until("the mount's lease", lambda: get_fuse_metric(stack, "lease_held") == 1, timeout_s=20)


def sync(stack: Stack, path: str) -> float:
    """Have the store asked again; the moment at which that is done."""
    stack.run_command("alluxio-like", "fs", "sync", path)
    return time.monotonic()


@contextmanager
def mount_again(stack: Stack, workplace: Path) -> Iterator[Path]:
    """A second mount of the same cluster, in a process of its own."""
    place, ready = workplace / "mnt2", workplace / "ready2"
    command = [str(PROGRAMS / "alluxio-like"), "fuse", str(place), "--master", stack.master, "--ready-file", str(ready)]
    with open(workplace / "fuse2.log", "w") as log:
        process = subprocess.Popen(command, env=stack.environment, stdout=log, stderr=log)
        try:
            wait_until("the second mount", lambda: ready.exists() or process.poll() is not None, timeout_s=30)
            assert process.poll() is None
            yield place
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def test_a_second_warm_epoch_asks_the_master_nothing(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str) -> None:
    objects = put_samples(s3_server, s3_bucket, 400)
    stack = make_stack()
    wait_for_lease(stack)
    stack.load("/")
    for seed in (0, 1):
        # As a training job does it: look what there is, then open it all in random order.
        found = [path for path in sorted(stack.mountpoint.rglob("*")) if path.is_file()]
        assert len(found) == len(objects)
        assert read_epoch(stack.mountpoint, list(objects), seed=seed) == objects
    before = count_calls(stack)
    assert [path.is_file() for path in stack.mountpoint.rglob("*")].count(True) == len(objects)
    assert read_epoch(stack.mountpoint, list(objects), seed=2) == objects
    assert count_calls(stack) == before


def list_names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def expect_soon(directory: Path, content: bytes, added: str, gone: str) -> None:
    wait_until("the change", lambda: (directory / "a").read_bytes() == content, timeout_s=SOON_S)
    wait_until("the new name", (directory / added).exists, timeout_s=SOON_S)
    wait_until("it is listed", lambda: added in list_names(directory), timeout_s=SOON_S)
    if gone:
        wait_until("a name is gone", lambda: not (directory / gone).exists(), timeout_s=SOON_S)


def test_a_change_is_seen_by_every_mount_at_once(
    make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    s3_server.put(s3_bucket, "d/a", b"one")
    s3_server.put(s3_bucket, "d/gone", b"x")
    stack = make_stack()
    wait_for_lease(stack)
    with mount_again(stack, workplace) as second:
        mounts = (stack.mountpoint, second)
        for mount in mounts:
            assert (mount / "d/a").read_bytes() == b"one"
            assert list_names(mount / "d") == {"a", "gone"}
            assert not (mount / "d/b").exists()
        old = os.open(second / "d/a", os.O_RDONLY)
        try:
            for number in range(4):
                content = f"number {number}".encode()
                s3_server.put(s3_bucket, "d/a", content)
                s3_server.put(s3_bucket, f"d/b{number}", content)
                if number == 2:
                    s3_server.delete(s3_bucket, "d/gone")
                done_s = sync(stack, "/d")
                for mount in mounts:
                    expect_soon(mount / "d", content, f"b{number}", gone="gone" if number >= 2 else "")
                assert time.monotonic() - done_s < 4 * SOON_S
            assert os.pread(old, 100, 0) == b"one", "what is open is read on"
        finally:
            os.close(old)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_mount_that_is_cut_off_serves_what_it_has_and_then_drops_it(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, how: str
) -> None:
    objects = put_samples(s3_server, s3_bucket, 60)
    s3_server.put(s3_bucket, "d/a", b"one")
    stack = make_stack()
    wait_for_lease(stack)
    stack.load("/")
    assert read_epoch(stack.mountpoint, list(objects)) == objects
    assert (stack.mountpoint / "d/a").read_bytes() == b"one"
    (pid,) = stack.get_service_pids("master")
    os.kill(pid, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
    if how == "stopped":
        try:
            wait_until("the lease runs out", lambda: get_fuse_metric(stack, "lease_held") == 0, timeout_s=20)
            # Training goes on.
            assert read_epoch(stack.mountpoint, list(objects), seed=1) == objects
            assert (stack.mountpoint / "d/a").read_bytes() == b"one"
            s3_server.put(s3_bucket, "d/a", b"two")
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_for_lease(stack)
    else:
        s3_server.put(s3_bucket, "d/a", b"two")
        assert read_epoch(stack.mountpoint, list(objects), seed=1) == objects
        # Whoever is master next knows nothing of our lease.
        wait_until("the master is back", lambda: stack.try_command("alluxio-like", "report").returncode == 0, timeout_s=30)
    sync(stack, "/d")
    wait_until("the change", lambda: (stack.mountpoint / "d/a").read_bytes() == b"two", timeout_s=15)
    assert read_epoch(stack.mountpoint, list(objects), seed=random.randrange(100)) == objects
