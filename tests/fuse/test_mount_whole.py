"""A mount with its services, over a local directory: what only the whole can show."""

import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.net import wait_until
from tests.servers.processes import freeze
from tests.servers.stack import Stack, start_stack

pytestmark = pytest.mark.mount

IO_TIMEOUT_S = 60
SIZE = (3 << 20) + 77
SEVERAL = 8


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
        (data / "several").mkdir()
        several = [data / "several" / f"{number}.bin" for number in range(SEVERAL)]
        for file in several:
            file.write_bytes(os.urandom(100_000))
        old = time.time() - 100
        for file in (data / "small.txt", data / "sub" / "big.bin", *several):
            os.utime(file, (old, old))
        time.sleep(2.1)  # a fingerprint younger than this is not trusted for caching (ctime)
        with start_stack(
            Path(made), {"/": f"file://{data}"}, {}, "--workers", "2", "--io-timeout", f"{IO_TIMEOUT_S}s"
        ) as running:
            yield running, data


def get_cached(path: Path) -> int:
    return int(os.getxattr(path, "user.alluxio_like.cached"))


def test_extended_attributes_tell_what_is_cached(stack: tuple[Stack, Path]) -> None:
    running, data = stack
    path = running.mountpoint / "sub" / "big.bin"
    assert get_cached(path) == 0
    assert os.getxattr(path, "user.alluxio_like.locations") == b""
    assert path.read_bytes() == (data / "sub" / "big.bin").read_bytes()
    end = time.monotonic() + 60
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
            freeze(pid)
        try:
            os.posix_fadvise(kept.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(kept.fileno(), 1000, 1 << 20) == expected[1 << 20 : (1 << 20) + 1000]
            assert path.read_bytes() == expected
            assert (running.mountpoint / "small.txt").read_bytes() == b"small\n"
            started = time.monotonic()
            subprocess.run(["umount", "-l", running.mountpoint], check=True, timeout=60)
            assert time.monotonic() - started < IO_TIMEOUT_S / 2
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
        # Not by its path: another user may not even be able to reach this checkout's programs, nor what they import late.
        code = """
import contextlib, importlib, os, pkgutil, sys
import grpc, uvloop, lmdb, google.protobuf, tenacity, typer, alluxio_like.client, alluxio_like.cli.fs
for found in pkgutil.walk_packages(typer.__path__, "typer.", onerror=lambda _name: None):
    if not found.name.endswith("__main__"):
        with contextlib.suppress(Exception):  # some are for other systems
            importlib.import_module(found.name)
from alluxio_like.cli.main import main
os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.argv[0] = "alluxio-like"; main()
"""
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


def get_serving(path: Path) -> str:
    return os.getxattr(path, "user.alluxio_like.passthrough").decode()


def list_cache_files(pids: list[int]) -> list[str]:
    """The cache files that processes have open."""
    links = [str(link.resolve()) for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if "/cache/files/" in link or "/cache/held/" in link]


def wait_closed(running: Stack, what: str) -> None:
    """Until the daemon has no cache file open: it hears of a close a moment later."""
    wait_until(what, lambda: not list_cache_files(running.get_service_pids("fuse")), timeout_s=60)


def skip_without_passthrough(mountpoint: Path) -> None:
    if os.getxattr(mountpoint, "user.alluxio_like.session") != b"kernel with passthrough":
        pytest.skip("this kernel has no passthrough")


def test_what_an_open_has_brought_is_said_to_pass_through_at_once(stack: tuple[Stack, Path]) -> None:
    running, data = stack
    skip_without_passthrough(running.mountpoint)
    names = [f"{number}.bin" for number in range(SEVERAL)]
    # One after the other, so that the index has the first and waits for company before it takes the others.
    for name in names:
        path = running.mountpoint / "several" / name
        assert get_serving(path) == "cached: not all of the file is on this machine"
        assert path.read_bytes() == (data / "several" / name).read_bytes()
        assert get_serving(path) == "passthrough"
    paths = [running.mountpoint / "several" / name for name in names]
    wait_until("the master knows of all", lambda: all(map(get_cached, paths)), timeout_s=60)
    running.free()
    assert {get_serving(path) for path in paths} == {"cached: not all of the file is on this machine"}


def test_the_kernel_reads_on_while_its_file_is_freed_and_the_worker_killed(stack: tuple[Stack, Path]) -> None:
    running, data = stack
    skip_without_passthrough(running.mountpoint)
    path, expected = running.mountpoint / "sub" / "big.bin", (data / "sub" / "big.bin").read_bytes()
    assert path.read_bytes() == expected
    end = time.monotonic() + 60
    # A reader has its bytes before the last page is in the index; and the master frees what it knows of.
    while get_cached(path) != SIZE or get_serving(path) != "passthrough":
        assert time.monotonic() < end, (get_cached(path), get_serving(path))
        time.sleep(0.1)
    with open(path, "rb", buffering=0) as kept, mmap.mmap(kept.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        wait_closed(running, "the kernel alone has it open")
        running.free()
        assert get_serving(path).startswith("cached")
        assert mapped[:] == expected
        assert path.read_bytes() == expected, "brought anew, for another node id"
        for pid in running.get_service_pids("workers"):
            os.kill(pid, signal.SIGKILL)
        os.posix_fadvise(kept.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert kept.read() == expected
        assert mapped[2 << 20 :] == expected[2 << 20 :]
    address = running.ready["fuse"]["http_address"]
    end = time.monotonic() + 60
    while True:
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=60).read().decode()
        if "\nalluxio_like_fuse_open_nodes 0.0\n" in text:
            break
        assert time.monotonic() < end, text
        time.sleep(0.1)
    wait_closed(running, "nothing is left open")


def test_what_passes_through_is_not_evicted(tmp_path: Path) -> None:
    """A cache that holds a third of the data, read round and round, while one file is mapped and another read again and again."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse and root")
    count, size = 60, (1 << 20) + 5
    with tempfile.TemporaryDirectory(prefix="al-", dir="/var/tmp") as made:
        data = Path(made) / "data"
        data.mkdir()
        old = time.time() - 100
        contents = [os.urandom(size) for _ in range(count)]
        for number, content in enumerate(contents):
            (data / f"{number}").write_bytes(content)
            os.utime(data / f"{number}", (old, old))
        time.sleep(2.1)  # a fingerprint younger than this is not trusted for caching (ctime)
        with start_stack(Path(made), {"/": f"file://{data}"}, {}, "--workers", "1", "--cache-size", "20MiB") as running:
            skip_without_passthrough(running.mountpoint)
            with open(running.mountpoint / "0", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                assert mapped[:10] == contents[0][:10]
                generator = random.Random(3)
                held = [open(running.mountpoint / f"{number}", "rb", buffering=0) for number in range(1, 4)]
                for _ in range(3):
                    for number in generator.sample(range(count), count):
                        assert (running.mountpoint / f"{number}").read_bytes() == contents[number]
                    for number, one in enumerate(held, 1):
                        os.posix_fadvise(one.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                        assert os.pread(one.fileno(), size, 0) == contents[number]
                    mapped.madvise(mmap.MADV_DONTNEED)
                    assert mapped[:] == contents[0]
                for one in held:
                    one.close()
            wait_closed(running, "nothing is left open")
