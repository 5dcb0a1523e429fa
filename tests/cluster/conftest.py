"""A whole file system in front of the real S3 server, run as a user would run it, and nothing left of it afterwards."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack, start_stack

PATIENCE_S = 60.0
"""The one setting that bounds every operation: what a busy machine may take for it."""
IO_TIMEOUT_S = 6.0
"""The same where a test waits until it is over."""
HASTY = ("--io-timeout", f"{IO_TIMEOUT_S:g}s")
MARGIN_S = 30.0
"""What a busy machine may take beyond such a time."""


def list_mounts(below: Path) -> list[str]:
    """Mountpoints below a directory."""
    return [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1].startswith(str(below))]


def list_processes(home: Path) -> list[str]:
    """Processes whose command line names a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(home) in command:
                    found.append(f"{entry.name}: {command}")
    return found


class StackMaker:
    """Starts `up` with the test's bucket at /, all requests through the fault proxy."""

    def __init__(self, workplace: Path, server: S3Server, bucket: str) -> None:
        self._workplace = workplace
        self._server = server
        self._bucket = bucket
        self._running = contextlib.ExitStack()

    def __call__(self, *arguments: str, workers: int = 1) -> Stack:
        options = ["--workers", str(workers), "--io-timeout", f"{PATIENCE_S:g}s", *arguments]
        context = start_stack(self._workplace, {"/": f"s3://{self._bucket}"}, self._server.environment, *options)
        return self._running.enter_context(context)

    def close(self) -> None:
        """Stop what was started."""
        self._running.close()


@pytest.fixture
def workplace() -> Iterator[Path]:
    """A directory on the disk, with a short path (unix sockets), in which nothing may be left running or mounted."""
    with make_workplace() as directory:
        yield directory


@contextlib.contextmanager
def make_workplace() -> Iterator[Path]:
    """The same for as long as a context lasts."""
    with tempfile.TemporaryDirectory(prefix="al-", dir="/var/tmp") as made:
        directory = Path(made)
        yield directory
        assert not list_mounts(directory)
        assert not list_processes(directory)


@pytest.fixture
def make_stack(workplace: Path, s3_via_proxy: S3Server, s3_bucket: str) -> Iterator[StackMaker]:
    maker = StackMaker(workplace, s3_via_proxy, s3_bucket)
    yield maker
    maker.close()


@pytest.fixture
def proxy(fault_proxy: FaultProxy) -> FaultProxy:
    return fault_proxy
