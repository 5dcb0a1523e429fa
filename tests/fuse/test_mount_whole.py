"""A mount with its services, over a local directory: what only the whole can show."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.stack import Stack, start_stack

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]

IO_TIMEOUT_S = 6
SIZE = (3 << 20) + 77


@pytest.fixture
def stack() -> Iterator[tuple[Stack, Path]]:
    """A running file system over a directory, and that directory."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse and root")
    with tempfile.TemporaryDirectory(prefix="al-", dir="/var/tmp") as made:
        data = Path(made) / "data"
        (data / "sub").mkdir(parents=True)
        (data / "small.txt").write_bytes(b"small\n")
        (data / "sub" / "big.bin").write_bytes(os.urandom(SIZE))
        old = time.time() - 100
        for file in (data / "small.txt", data / "sub" / "big.bin"):
            os.utime(file, (old, old))
        time.sleep(2.1)  # a fingerprint younger than this is not trusted for caching (ctime)
        with start_stack(Path(made), {"/": f"file://{data}"}, {}, "--workers", "2", "--io-timeout", f"{IO_TIMEOUT_S}s") as running:
            yield running, data


def get_cached(path: Path) -> int:
    return int(os.getxattr(path, "user.alluxio_like.cached"))


def test_extended_attributes_tell_what_is_cached(stack: tuple[Stack, Path]) -> None:
    running, data = stack
    path = running.mountpoint / "sub" / "big.bin"
    assert get_cached(path) == 0
    assert os.getxattr(path, "user.alluxio_like.locations") == b""
    assert path.read_bytes() == (data / "sub" / "big.bin").read_bytes()
    end = time.monotonic() + 10
    while get_cached(path) != SIZE:
        assert time.monotonic() < end, get_cached(path)
        time.sleep(0.1)
    addresses = {worker["address"] for worker in running.ready["workers"]}
    locations = dict(part.split("=") for part in os.getxattr(path, "user.alluxio_like.locations").decode().split(","))
    assert set(locations) <= addresses
    assert int(os.getxattr(path, "user.alluxio_like.version")) >= 1


def test_warm_files_stay_readable_and_unmount_works_without_a_master(stack: tuple[Stack, Path]) -> None:
    running, data = stack
    path = running.mountpoint / "sub" / "big.bin"
    expected = (data / "sub" / "big.bin").read_bytes()
    assert path.read_bytes() == expected
    (running.mountpoint / "small.txt").read_bytes()
    with open(path, "rb", buffering=0) as kept:
        for pid in running.get_service_pids("master"):
            os.kill(pid, signal.SIGSTOP)
        try:
            os.posix_fadvise(kept.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(kept.fileno(), 1000, 1 << 20) == expected[1 << 20 : (1 << 20) + 1000]
            assert path.read_bytes() == expected
            assert (running.mountpoint / "small.txt").read_bytes() == b"small\n"
            started = time.monotonic()
            subprocess.run(["umount", "-l", running.mountpoint], check=True, timeout=20)
            assert time.monotonic() - started < 5
            assert os.pread(kept.fileno(), 10, 2 << 20) == expected[2 << 20 : (2 << 20) + 10]
        finally:
            for pid in running.get_service_pids("master"):
                os.kill(pid, signal.SIGCONT)


def test_a_second_up_at_the_same_place_is_refused_and_takes_nothing_away(stack: tuple[Stack, Path], tmp_path: Path) -> None:
    running, data = stack
    second = running.try_command(
        "alluxio-like", "up", "--home", str(tmp_path / "second"), f"file://{data}", str(running.mountpoint), timeout_s=60
    )
    assert second.returncode == 1
    assert "already mounted there" in second.stderr
    assert (running.mountpoint / "small.txt").read_bytes() == b"small\n"
    assert running.process.poll() is None


def test_another_user_reads_through_the_worker_and_may_not_mount(stack: tuple[Stack, Path]) -> None:
    running, data = stack

    def run_as_nobody(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        # Not by its path: another user may not even be able to reach this checkout's programs.
        code = (
            "import os, sys; import grpc, uvloop, lmdb, google.protobuf, tenacity, alluxio_like.client, alluxio_like.cli.tree;"
            "from alluxio_like.cli.main import main;"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.argv[0] = 'alluxio-like'; main()"
        )
        environment = {**running.environment, "HOME": "/nonexistent", "ALLUXIO_LIKE_RUN_DIR": "/nonexistent"}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, cwd="/", capture_output=True, timeout=60, check=False
        )

    read = run_as_nobody("fs", "cat", "/sub/big.bin")
    assert read.stdout == (data / "sub" / "big.bin").read_bytes(), read.stderr
    refused = run_as_nobody("mount", "/root", "file:///root")
    assert refused.returncode == 1
    assert b"token" in refused.stderr
    running.run_command("alluxio-like", "mount", "/more", f"file://{data}/sub")
    running.run_command("alluxio-like", "unmount", "/more")
