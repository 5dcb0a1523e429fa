"""Bad days against real processes: the right bytes or a clear error within the stated time, never a hang, never wrong bytes."""

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import HASTY, IO_TIMEOUT_S, MARGIN_S, PATIENCE_S, StackMaker
from tests.cluster.data import MIB, make_data, put_samples, read_timed
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.net import wait_until
from tests.servers.stack import PROGRAMS

pytestmark = pytest.mark.mount
ESTALE = 116


def list_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def name_rule(rule: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" if not isinstance(value, dict) else "-".join(value) for key, value in rule.items())


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """What is done ends within the time that bounds every operation, well or with an error."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < PATIENCE_S + MARGIN_S


def check_epoch(root: Path, objects: dict[str, bytes], seed: int = 0) -> None:
    """Each file, in random order: the right bytes, in time."""
    for name in random.Random(seed).sample(list(objects), len(objects)):
        with in_time():
            assert (root / name).read_bytes() == objects[name], name


BROKEN_ONCE: list[dict[str, Any]] = [
    {"status": 503, "code": "SlowDown"},
    {"status": 500, "code": "InternalError"},
    {"status": 429, "code": "TooManyRequests"},
    {"drop": True},
    {"cut_after_bytes": 500_000},
    {"short_by": 1000},
    {"set_headers": {"etag": '"0123456789abcdef0123456789abcdef"'}},
    {"set_headers": {"content-range": "bytes 7-99/100"}},
    {"set_status": 200},
    {"stall_s": 3600.0},
    {"stall_s": 3600.0, "stall_after_bytes": 300_000},
]
BROKEN_FOR_GOOD: list[dict[str, Any]] = [
    {"status": 503, "code": "SlowDown"},
    {"drop": True},
    {"stall_s": 3600.0},
    {"stall_s": 3600.0, "stall_after_bytes": 100_000},
    {"short_by": 1000},
    {"set_headers": {"etag": '"0123456789abcdef0123456789abcdef"'}},
    {"status": 403, "code": "AccessDenied"},
]


@pytest.mark.parametrize("rule", BROKEN_ONCE, ids=name_rule)
def test_a_store_that_misbehaves_twice_is_asked_again(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy, rule: dict[str, Any]
) -> None:
    data = make_data(3, 5 * MIB + 17)
    s3_server.put(s3_bucket, "x.bin", data)
    # With little patience for one request, and much for all of them.
    stack = make_stack("-o", "timeout_s=2")
    proxy.set_rules({"op": "GET", "times": 2, **rule})
    with in_time():
        assert (stack.mountpoint / "x.bin").read_bytes() == data


@pytest.mark.parametrize("rule", BROKEN_FOR_GOOD, ids=name_rule)
def test_a_store_that_stays_broken_is_an_error_in_time_and_cached_data_stays_readable(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy, rule: dict[str, Any]
) -> None:
    data, warm = make_data(3, 3 * MIB), make_data(4, 3 * MIB)
    s3_server.put(s3_bucket, "cold.bin", data)
    s3_server.put(s3_bucket, "warm.bin", warm)
    stack = make_stack(*HASTY)
    stack.load("/warm.bin")
    proxy.set_rules({"op": "GET", **rule})
    with ThreadPoolExecutor(2) as pool:
        pending = pool.submit(read_timed, stack.mountpoint / "cold.bin")
        assert (stack.mountpoint / "warm.bin").read_bytes() == warm
        result, seconds = pending.result(60)
    assert isinstance(result, OSError)
    assert seconds < IO_TIMEOUT_S + MARGIN_S
    proxy.set_rules()
    wait_until("it is readable again", lambda: read_timed(stack.mountpoint / "cold.bin")[0] == data, timeout_s=60)


def test_what_people_are_told_while_a_store_is_down(workplace: Path, s3_server: S3Server, s3_bucket: str) -> None:
    s3_server.put(s3_bucket, "listed/x.bin", make_data(3, MIB))
    s3_server.put(s3_bucket, "other/x.bin", make_data(4, MIB))
    with FaultProxy(s3_server.endpoint) as front:
        via_front = replace(s3_server, endpoint=front.endpoint)
        maker = StackMaker(workplace, via_front, s3_bucket)
        with contextlib.closing(maker):
            stack = maker(*HASTY)
            assert list_names(stack.mountpoint) == ["listed", "other"]
            assert list_names(stack.mountpoint / "listed") == ["x.bin"]
            front.stop()
            told = stack.try_command("alluxio-like", "fs", "ls", "/other")
            assert told.returncode == 1
            (line,) = told.stderr.strip().splitlines()
            assert "see that it is up" in line
            assert front.endpoint in line
            assert front.endpoint in stack.try_command("alluxio-like", "mounts").stderr
            result, seconds = read_timed(stack.mountpoint / "listed/x.bin")
            assert isinstance(result, OSError)
            assert seconds < IO_TIMEOUT_S + MARGIN_S
            # What is known stays.
            assert stack.try_command("alluxio-like", "fs", "ls", "/listed").stdout.split() == ["x.bin"]
            assert list_names(stack.mountpoint / "listed") == ["x.bin"]
            with pytest.raises(OSError):
                list_names(stack.mountpoint / "other")


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_an_object_changed_during_a_read_gives_estale_and_never_mixed_bytes(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, change: str
) -> None:
    old, new = make_data(5, 40 * MIB), make_data(6, 40 * MIB)
    s3_server.put(s3_bucket, "x.bin", old)
    stack = make_stack()
    path = stack.mountpoint / "x.bin"
    fd = os.open(path, os.O_RDONLY)
    failures = []
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(fd, MIB, 0) == old[:MIB]
        if change == "replaced":
            s3_server.put(s3_bucket, "x.bin", new)
        else:
            s3_server.delete(s3_bucket, "x.bin")
        for page in range(40):
            try:
                with in_time():
                    assert os.pread(fd, MIB, page * MIB) == old[page * MIB : (page + 1) * MIB]
            except OSError as error:
                failures.append(error.errno)
    finally:
        os.close(fd)
    assert set(failures) == {ESTALE}
    if change == "replaced":
        wait_until("the new content", lambda: read_timed(path)[0] == new, timeout_s=60)
    else:
        wait_until("the name is gone", lambda: not path.exists(), timeout_s=60)


@pytest.mark.parametrize("victim", ["workers", "master", "fuse"])
def test_a_service_killed_during_reads(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy, victim: str
) -> None:
    objects = put_samples(s3_server, s3_bucket, 400)
    stack = make_stack(workers=2)
    proxy.set_limits(latency_s=0.005)
    started = threading.Event()
    bad: list[str] = []

    def read(name: str) -> None:
        result, seconds = read_timed(stack.mountpoint / name)
        started.set()
        if isinstance(result, OSError):
            bad.append(f"{name}: {result}")
        elif result != objects[name]:
            bad.append(f"{name}: wrong bytes")
        elif seconds > PATIENCE_S + MARGIN_S:
            bad.append(f"{name}: {seconds} s")

    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(read, name) for name in objects]
        assert started.wait(60)
        os.kill(stack.get_service_pids(victim)[0], signal.SIGKILL)
        for future in pending:
            future.result(120)
    assert not bad


@pytest.mark.parametrize("victim", ["workers", "master"])
def test_a_service_killed_during_a_load(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy, victim: str
) -> None:
    objects = put_samples(s3_server, s3_bucket, 600)
    stack = make_stack(workers=2)
    proxy.set_limits(latency_s=0.02)
    proxy.reset_log()
    job_id = stack.run_command("cache", "load", "/", "--detach")["job_id"]
    wait_until("some files are loaded", lambda: proxy.get_counts()["GET"] > 60, timeout_s=60)
    os.kill(stack.get_service_pids(victim)[0], signal.SIGKILL)
    proxy.set_limits()

    def is_ended() -> bool:
        done = stack.try_command("cache", "jobs", job_id, "--json")
        return done.returncode == 0 and any(f'"{state}' in done.stdout.lower() for state in ("done", "failed", "cancelled"))

    wait_until("the job ends", is_ended, timeout_s=200, interval_s=0.3)
    job = stack.load("/")
    assert job["failed_files"] == 0
    assert job["done_files"] == len(objects)
    proxy.reset_log()
    check_epoch(stack.mountpoint, objects)
    assert not proxy.get_log("GET")


def test_a_load_waits_for_a_worker_that_is_being_restarted(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    objects = put_samples(s3_server, s3_bucket, 20)
    stack = make_stack()
    stack.load("/")
    proxy.reset_log()
    os.kill(stack.get_service_pids("workers")[0], signal.SIGKILL)
    job = stack.load("/")
    assert job["skipped_files"] == len(objects)
    assert not proxy.get_log("GET")


def test_a_full_cache_reads_through(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str) -> None:
    objects = put_samples(s3_server, s3_bucket, 40, size=3 * MIB)
    stack = make_stack("--cache-size", "48MiB")
    stack.load("/train/00000.bin")
    for seed in (1, 2):
        check_epoch(stack.mountpoint, objects, seed)
    refused = stack.try_command("cache", "load", "/", "--json")
    assert refused.returncode == 1
    assert "fit" in refused.stdout + refused.stderr
    assert stack.try_command("cache", "load", "/", "--dry-run").returncode == 1
    assert stack.try_command("cache", "load", "/train/00000.bin", "--dry-run").returncode == 0


def test_a_cache_disk_that_others_fill(make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str) -> None:
    """Its file system refuses every write: what was cached goes, reads go past it, and it is used again when there is room."""
    objects = put_samples(s3_server, s3_bucket, 12, size=3 * MIB)
    disk = workplace / "home/worker-1"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    try:
        stack = make_stack("--cache-size", "1GB")
        assert stack.load("/train/00000.bin")["done_files"] == 1
        with open(disk / "others", "wb") as others:
            with pytest.raises(OSError, match="No space left"):
                while True:
                    os.posix_fallocate(others.fileno(), others.seek(0, os.SEEK_END), MIB)
            with ThreadPoolExecutor(4) as pool:
                read = dict(zip(objects, pool.map(read_timed, [stack.mountpoint / name for name in objects]), strict=True))
            assert {name: result for name, (result, _) in read.items()} == objects
            assert max(seconds for _, seconds in read.values()) < PATIENCE_S + MARGIN_S
            assert stack.run_command("alluxio-like", "report")
        (disk / "others").unlink()
        wait_until("all of it fits", lambda: stack.try_command("cache", "load", "/").returncode == 0, timeout_s=120)
        check_epoch(stack.mountpoint, objects)
    finally:
        make_stack.close()
        subprocess.run(["umount", disk], check=True)


def test_a_flipped_bit_in_a_cache_file_is_found_and_never_kept(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, workplace: Path, proxy: FaultProxy
) -> None:
    data = make_data(8, 6 * MIB)
    s3_server.put(s3_bucket, "x.bin", data)
    stack = make_stack()
    stack.load("/")
    home = workplace / "home"
    [file] = [path for path in home.rglob("*") if path.is_file() and path.stat().st_size == len(data)]
    with open(file, "r+b") as cached:
        cached.seek(2 * MIB + 5)
        byte = cached.read(1)[0]
        cached.seek(2 * MIB + 5)
        cached.write(bytes([byte ^ 1]))
    proxy.reset_log()
    job = stack.load("/", "--verify")
    assert job["failed_files"] == 0
    assert sum(request.sent_bytes for request in proxy.get_log("GET")) == MIB, "the bad page alone is fetched again"
    with in_time():
        assert (stack.mountpoint / "x.bin").read_bytes() == data


def test_two_processes_on_one_home(make_stack: StackMaker, workplace: Path, s3_bucket: str) -> None:
    stack = make_stack()
    for command in (
        ["alluxio-like", "up", "--home", str(workplace / "home"), "--mount", f"/=s3://{s3_bucket}"],
        ["alluxio-like", "master", "--home", str(workplace / "home" / "master"), "--bind", "127.0.0.1:0"],
    ):
        done = subprocess.run(
            [str(PROGRAMS / command[0]), *command[1:]],
            env=stack.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert re.search(r"use", done.stderr)
        assert re.search(r"process \d+|pid \d+", done.stderr)


WRONG = [
    (["s3://no-such-bucket-at-all"], "bucket"),
    (["s3://{bucket}", "-o", "endpoint=http://127.0.0.1:9"], "127.0.0.1:9"),
    (["s3://{bucket}", "-o", "access_key=wrong", "-o", "secret_key=wrongsecretvalue"], "credential|denied|key"),
    (["s3://{bucket}", "-o", "endpont=http://x"], "endpoint"),
    (["s4://{bucket}"], "s3"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_mount_is_one_line_that_says_what_is_right(
    make_stack: StackMaker, s3_bucket: str, arguments: list[str], says: str
) -> None:
    stack = make_stack(*HASTY)
    before = stack.run_command("alluxio-like", "mounts")
    start = time.monotonic()
    done = stack.try_command("alluxio-like", "mount", "/other", *(text.format(bucket=s3_bucket) for text in arguments))
    assert time.monotonic() - start < IO_TIMEOUT_S + MARGIN_S
    assert done.returncode in {1, 2}
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "wrongsecretvalue" not in done.stderr
    assert stack.run_command("alluxio-like", "mounts") == before


def test_a_wrong_path_in_a_bucket_is_pointed_out(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str) -> None:
    s3_server.put(s3_bucket, "set/x.bin", b"x")
    stack = make_stack()
    # A prefix is no directory: it may be meant to be empty. Who meant another one sees it.
    right = stack.try_command("alluxio-like", "mount", "/right", f"s3://{s3_bucket}/set")
    assert (right.returncode, right.stderr) == (0, "")
    wrong = stack.try_command("alluxio-like", "mount", "/wrong", f"s3://{s3_bucket}/sett")
    assert wrong.returncode == 0
    (line,) = wrong.stderr.splitlines()
    assert line.startswith("/wrong: nothing is there yet")
    assert not stack.try_command("alluxio-like", "mounts").stderr


def test_unmounting_works_with_open_files_and_a_stuck_store(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    s3_server.put(s3_bucket, "x.bin", make_data(1, MIB))
    stack = make_stack(*HASTY)
    fd = os.open(stack.mountpoint / "x.bin", os.O_RDONLY)
    proxy.set_rules({"stall_s": 3600.0})
    make_stack.close()
    assert stack.process.returncode == 0, "it was killed when its time was up"
    # The kernel has nothing to say to a daemon that is gone; where it asks at all (FLUSH), it hears that.
    with contextlib.suppress(OSError):
        os.close(fd)
    assert not stack.mountpoint.is_mount()


def test_killed_readers_leave_nothing_hanging(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    data = make_data(1, 2 * MIB)
    s3_server.put(s3_bucket, "x.bin", data)
    stack = make_stack(*HASTY)
    (stack.mountpoint / "x.bin").stat()
    proxy.set_rules({"op": "GET", "stall_s": 3600.0})
    proxy.reset_log()
    readers = [subprocess.Popen(["cat", str(stack.mountpoint / "x.bin")], stdout=subprocess.DEVNULL) for _ in range(5)]
    wait_until("a request is stuck", lambda: proxy.get_max_in_flight() > 0, timeout_s=60)
    for reader in readers:
        reader.kill()
    start = time.monotonic()
    for reader in readers:
        reader.wait(60)
    assert time.monotonic() - start < IO_TIMEOUT_S + MARGIN_S
    proxy.set_rules()
    wait_until("it is readable", lambda: read_timed(stack.mountpoint / "x.bin")[0] == data, timeout_s=60)
