"""What the suite runs on: a local ext4, which judges the checks themselves, and mounts of our own.

Owns making each of them and taking it away again. What a check asks of a target is its directory alone; what may happen to it
meanwhile (test_differential.py) is there by name.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.stores import STORES
from tests.servers.fault_control import FaultProxy
from tests.servers.net import wait_until
from tests.servers.stack import Stack, start_stack

EXT4_BYTES = 2 << 30
POLICY = os.environ.get("ALLUXIO_LIKE_TEST_WRITE", "through")
"""When a close on the mounts returns."""


@dataclass(frozen=True)
class Target:
    """A file system to check."""

    name: str
    root: Path
    disturb: dict[str, Callable[[], object]] = field(default_factory=dict)
    """What may happen to it without anybody noticing: by name, what makes it happen and returns when it has."""


@contextmanager
def workplace() -> Iterator[Path]:
    """A directory on the disk that other users reach, with a short path."""
    with tempfile.TemporaryDirectory(prefix="al-", dir="/var/tmp") as made:
        os.chmod(made, 0o755)
        yield Path(made)


@contextmanager
def make_ext4(request: pytest.FixtureRequest) -> Iterator[Target]:
    """An ext4 of its own, in an image."""
    with workplace() as directory:
        image, root = directory / "image", directory / "mnt"
        root.mkdir()
        with open(image, "wb") as file:
            file.truncate(EXT4_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, root], check=True)
        try:
            yield Target("ext4", root)
        finally:
            subprocess.run(["umount", root], check=True)


@contextmanager
def make_mount(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A mount of a local directory, which everything written is in when it is closed."""
    with workplace() as directory:
        (directory / "store").mkdir()
        with serve(directory, f"file://{directory}/store", {}) as stack:
            yield Target("mount", stack.mountpoint, list_disturbances(stack))


@contextmanager
def make_s3_mount(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A mount of a bucket, which everything written is in when it is closed."""
    server = request.getfixturevalue("s3_server")
    with workplace() as directory, FaultProxy(server.endpoint) as proxy:
        environment = {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}

        def fail() -> None:
            proxy.set_rules({"status": 503, "times": 5})

        with serve(directory, f"s3://{server.make_bucket()}", environment) as stack:
            yield Target("s3", stack.mountpoint, list_disturbances(stack) | {"the store fails": fail})


def make_store_mount(name: str, request: pytest.FixtureRequest) -> AbstractContextManager[Target]:
    """A mount of another store (tests/cluster/stores.py)."""

    @contextmanager
    def make() -> Iterator[Target]:
        with workplace() as directory, STORES[name](request, directory) as store:
            options = [f"-o{option}={value}" for option, value in store.options.items()]
            with serve(directory, store.uri, store.environment, *options) as stack:
                yield Target(name, stack.mountpoint, list_disturbances(stack))

    return make()


@contextmanager
def serve(directory: Path, uri: str, environment: Mapping[str, str], *more: str) -> Iterator[Stack]:
    options = ["--workers", "1", "--io-timeout", "60s", "-o", f"write={POLICY}", *more]
    # What must stay free of a disk is for who owns it to say; here others may have filled it.
    roomy = {**environment, "ALLUXIO_LIKE_KEEP_FREE_FRACTION": "0.01"}
    with start_stack(directory, {"/": uri}, roomy, *options) as stack:
        yield stack


def list_disturbances(stack: Stack) -> dict[str, Callable[[], object]]:
    """What may happen to any mount of ours."""
    return {
        "what is cached is freed": lambda: free(stack),
        "the daemon is killed": lambda: kill(stack, "alluxio_like.fuse.daemon"),
        "the worker is killed": lambda: kill(stack, "worker"),
        "the master is killed": lambda: kill(stack, "master"),
    }


def free(stack: Stack) -> None:
    """Drop what is cached; the master may have been killed just now."""
    wait_until("the master frees", lambda: stack.try_command("cache", "free", "/").returncode == 0, timeout_s=60)


def kill(stack: Stack, service: str, limit_s: float = 60) -> None:
    """Kill a service, and wait until another one is in its place."""
    end = time.monotonic() + limit_s
    while not (before := find_processes(stack.process.pid, service)):  # one that was killed just now is not back yet
        assert time.monotonic() < end, f"{service} is not there"
        time.sleep(0.01)
    os.kill(before[0], signal.SIGKILL)
    while not set(find_processes(stack.process.pid, service)) - set(before):
        assert time.monotonic() < end, f"{service} did not come back"
        time.sleep(0.01)


def find_processes(parent: int, service: str) -> list[int]:
    """The processes below one that are a service, by their command lines."""
    found = []
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        pids = ""
        with suppress(OSError):  # the thread has ended
            pids = children.read_text()
        for pid in map(int, pids.split()):
            with suppress(OSError):  # it has ended
                if service.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
            found += find_processes(pid, service)
    return found


TARGETS: dict[str, Callable[[pytest.FixtureRequest], AbstractContextManager[Target]]] = {
    "ext4": make_ext4,
    "mount": make_mount,
    "s3": make_s3_mount,
    **{name: partial(make_store_mount, name) for name in ("gs", "az", "hdfs", "cephfs")},
}
USUAL = ("ext4", "mount")
"""Those of the usual run. The calls of a mount of S3 are the same ones; what differs there are the names that can be."""
