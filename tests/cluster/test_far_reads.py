"""Files that another worker holds, read through a mount: by the data socket, on good days and bad ones."""

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from alluxio_like.client.prefetch import MISSES
from tests.cluster.conftest import MARGIN_S, PATIENCE_S, StackMaker
from tests.cluster.data import MIB, make_data, put_samples
from tests.cluster.far import get_metric, list_far, take_away
from tests.servers.fixtures import S3Server
from tests.servers.net import wait_until
from tests.servers.processes import freeze
from tests.servers.stack import Stack

pytestmark = pytest.mark.mount
SILENCE_S = 20.0
"""For how long a worker that stands still is waited for."""
LARGE = 48 * MIB


def put_large(server: S3Server, bucket: str, count: int) -> dict[str, bytes]:
    objects = {f"large/{number}.bin": make_data(number, LARGE) for number in range(count)}
    for key, data in objects.items():
        server.put(bucket, key, data)
    return objects


def put_far(stack: Stack, server: S3Server, bucket: str, count: int) -> dict[str, bytes]:
    """Large objects, so many of which the far worker keeps; where each is placed is chance."""
    objects: dict[str, bytes] = {}
    for number in itertools.count(100):
        key, data = f"large/{number}.bin", make_data(number, LARGE)
        server.put(bucket, key, data)
        stack.run_command("alluxio-like", "fs", "sync", "--recursive", "/")
        if list_far(stack, [key]):
            objects[key] = data
        if len(objects) == count:
            return objects
    raise AssertionError("unreachable")


def start_far(make_stack: StackMaker, workplace: Path, *arguments: str) -> Stack:
    stack = make_stack(*arguments, workers=2)
    take_away(workplace / "home")
    return stack


def get_http(stack: Stack, number: int) -> str:
    return str(stack.ready["workers"][number - 1]["http_address"])


def read_checked(path: Path, data: bytes, after: threading.Event | None = None) -> tuple[list[str], float]:
    """Read a file 1 MiB at a time: what was wrong with it, and the longest that a read took. `after`: set after a quarter."""
    wrong, longest = [], 0.0
    with open(path, "rb", buffering=0) as file:
        for offset in range(0, len(data), MIB):
            began = time.monotonic()
            try:
                got = file.read(MIB)
            except OSError as error:
                wrong.append(f"{path.name} at {offset}: {error}")
                break
            longest = max(longest, time.monotonic() - began)
            if got != data[offset : offset + MIB]:
                wrong.append(f"{path.name} at {offset}: wrong bytes")
            if after is not None and offset >= len(data) // 4:
                after.set()
    return wrong, longest


def test_small_and_large_files_come_by_the_data_socket(
    make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    objects = put_samples(s3_server, s3_bucket, 1000, size=20_000) | put_large(s3_server, s3_bucket, 3)
    stack = start_far(make_stack, workplace)
    stack.load("/")
    names = list(objects)
    random.Random(1).shuffle(names)
    with ThreadPoolExecutor(8) as pool:
        wrong = [
            name
            for name, data in zip(names, pool.map(lambda n: (stack.mountpoint / n).read_bytes(), names), strict=True)
            if data != objects[name]
        ]
    assert not wrong
    far = list_far(stack, names)
    assert 300 < len(far) < 700
    sent = get_metric(get_http(stack, 2), "alluxio_like_data_sent_bytes_total")
    assert sent >= sum(len(objects[name]) for name in far)
    assert get_metric(get_http(stack, 2), "alluxio_like_data_connections") > 0


def find_cache_file(home: Path, data: bytes) -> Path:
    """The far worker's cache file of a content."""
    files = (home / "worker-2" / "cache" / "files").rglob("*")
    [found] = [one for one in files if one.is_file() and one.stat().st_size == len(data) and one.read_bytes() == data]
    return found


def test_small_far_files_pass_this_machine_by_until_they_are_read_again(
    make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    objects = put_samples(s3_server, s3_bucket, 60)
    stack = start_far(make_stack, workplace)
    stack.load("/")
    far = list_far(stack, objects)
    first, *names, flipped, replaced = far
    # The first one of all finds no connection, and is brought.
    assert (stack.mountpoint / first).read_bytes() == objects[first]
    wait_until("a connection", lambda: get_metric(get_http(stack, 2), "alluxio_like_data_connections") >= 2, timeout_s=60)
    brought = get_metric(get_http(stack, 1), "alluxio_like_peer_bytes_total")
    assert [name for name in names if (stack.mountpoint / name).read_bytes() != objects[name]] == []
    assert get_metric(get_http(stack, 1), "alluxio_like_peer_bytes_total") == brought, "read once, no copy is made here"

    # A bit that flips on the other machine's disk is not given out.
    path = find_cache_file(workplace / "home", objects[flipped])
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, bytes([objects[flipped][5000] ^ 1]), 5000)
    os.close(fd)
    assert (stack.mountpoint / flipped).read_bytes() == objects[flipped]

    # A content that is replaced between open and read, and one that is evicted.
    new = make_data(99, 110_000)
    with open(stack.mountpoint / replaced, "rb", buffering=0) as old:
        s3_server.put(s3_bucket, replaced, new)
        stack.run_command("alluxio-like", "fs", "sync", "/train")
        stack.free("/")
        assert old.read(200_000) == objects[replaced]
    assert (stack.mountpoint / replaced).read_bytes() == new
    objects[replaced] = new

    # Read again, it is brought behind the answer, and read by the kernel from then on.
    stack.load("/")
    for name in names:
        fd = os.open(stack.mountpoint / name, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    for name in names:
        assert (stack.mountpoint / name).read_bytes() == objects[name]
    if os.getxattr(stack.mountpoint, "user.alluxio_like.session") == b"kernel with passthrough":
        for name in names:
            wait_until(
                "a copy here",
                lambda name=name: os.getxattr(stack.mountpoint / name, "user.alluxio_like.passthrough") == b"passthrough",
                timeout_s=60,
            )
            assert (stack.mountpoint / name).read_bytes() == objects[name]


def test_who_reads_one_small_far_file_after_the_other_has_the_next_sent_for_at_its_lookup(
    make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    objects = put_samples(s3_server, s3_bucket, 60)
    stack = start_far(make_stack, workplace)
    stack.load("/")
    first, *names = list_far(stack, objects)
    assert (stack.mountpoint / first).read_bytes() == objects[first]
    wait_until("a connection", lambda: get_metric(get_http(stack, 2), "alluxio_like_data_connections") >= 2, timeout_s=60)
    for number in range(MISSES + 1):
        assert not (stack.mountpoint / "train" / f"none-{number}").exists()

    def get_sent() -> float:
        return get_metric(get_http(stack, 2), "alluxio_like_data_sent_bytes_total")

    def wait_sent(name: str, before: float) -> None:
        wait_until(name, lambda: get_sent() >= before + len(objects[name]), timeout_s=60)

    # Until the directory's names are known the lookups wait for the master, and nothing is sent for.
    *read, looked_at, too_far, last = names[:20]
    for name in read:
        assert (stack.mountpoint / name).read_bytes() == objects[name]
    before = get_sent()
    (stack.mountpoint / looked_at).stat()
    wait_sent(looked_at, before)

    # One that is looked at and not opened ends it; what was sent is let go of.
    before = get_sent()
    (stack.mountpoint / too_far).stat()
    wait_until(
        "let go", lambda: get_metric(stack.ready["fuse"]["http_address"], "alluxio_like_readahead_bytes") == 0, timeout_s=60
    )
    assert get_sent() == before
    for name in (looked_at, too_far, last):
        assert (stack.mountpoint / name).read_bytes() == objects[name]


def test_small_files_of_a_far_worker_that_is_killed(
    make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    objects = put_samples(s3_server, s3_bucket, 400, size=30_000)
    stack = start_far(make_stack, workplace)
    stack.load("/")
    names = list_far(stack, objects)
    [pid] = [one["pid"] for one in stack.ready["workers"] if one["http_address"] == get_http(stack, 2)]

    def read(name: str) -> tuple[str, float]:
        began = time.monotonic()
        try:
            wrong = "" if (stack.mountpoint / name).read_bytes() == objects[name] else "wrong bytes"
        except OSError as error:
            wrong = str(error)
        return wrong, time.monotonic() - began

    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(read, name) for name in names]
        for one in pending[: len(names) // 4]:
            one.result(60)
        os.kill(pid, signal.SIGKILL)
        results = [one.result(120) for one in pending]
    assert [wrong for wrong, _ in results if wrong] == []
    assert max(longest for _, longest in results) < PATIENCE_S + MARGIN_S


def test_random_small_reads_of_a_far_file(make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str) -> None:
    stack = start_far(make_stack, workplace)
    objects = put_far(stack, s3_server, s3_bucket, 1)
    stack.load("/")
    [name] = objects
    chance = random.Random(3)
    fd = os.open(stack.mountpoint / name, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(600):
            offset = chance.randrange(LARGE - 5000)
            assert os.pread(fd, 4096, offset) == objects[name][offset : offset + 4096]
    finally:
        os.close(fd)
    sent = get_metric(get_http(stack, 2), "alluxio_like_data_sent_bytes_total")
    assert 0 < sent < LARGE // 2, "only what was asked for came, and what was near"


def test_a_large_far_file_is_brought_when_it_has_been_read(
    make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    stack = start_far(make_stack, workplace)
    objects = put_far(stack, s3_server, s3_bucket, 1)
    stack.load("/")
    [name] = objects
    path = stack.mountpoint / name
    assert read_checked(path, objects[name])[0] == []
    if os.getxattr(stack.mountpoint, "user.alluxio_like.session") == b"kernel with passthrough":
        wait_until("a copy here", lambda: os.getxattr(path, "user.alluxio_like.passthrough") == b"passthrough", timeout_s=60)
    assert read_checked(path, objects[name])[0] == []


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_far_worker_that_is_killed_or_stopped_while_it_sends(
    make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str, how: str
) -> None:
    samples = put_samples(s3_server, s3_bucket, 60)
    patience_s = PATIENCE_S if how == "killed" else SILENCE_S
    stack = start_far(make_stack, workplace, "--io-timeout", f"{patience_s:g}s")
    large = put_far(stack, s3_server, s3_bucket, 2)
    stack.load("/")
    small = list_far(stack, samples)
    objects = large | samples
    begun = threading.Event()
    [pid] = [one["pid"] for one in stack.ready["workers"] if one["http_address"] == get_http(stack, 2)]
    with ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(read_checked, stack.mountpoint / name, objects[name], begun) for name in large]
        assert begun.wait(60)
        if how == "killed":
            os.kill(pid, signal.SIGKILL)
        else:
            freeze(pid)
        try:
            pending += [pool.submit(read_checked, stack.mountpoint / name, objects[name]) for name in small[:10]]
            results = [one.result(120) for one in pending]
        finally:
            if how == "stopped":
                os.kill(pid, signal.SIGCONT)
    assert [wrong for wrong, _ in results if wrong] == []
    assert max(longest for _, longest in results) < patience_s + MARGIN_S
    # And with it back, its files are read again.
    wait_until("all is well", lambda: (stack.mountpoint / small[-1]).read_bytes() == objects[small[-1]], timeout_s=60)


@contextmanager
def freeing(stack: Stack) -> Iterator[None]:
    """Frees and loads everything again and again meanwhile."""
    ending = threading.Event()

    def run() -> None:
        while not ending.is_set():
            stack.free("/")
            stack.try_command("cache", "load", "/large")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(200)


def test_files_are_freed_while_they_are_sent(
    make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    objects = put_large(s3_server, s3_bucket, 4)
    stack = start_far(make_stack, workplace)
    stack.load("/")
    with freeing(stack), ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            results = list(pool.map(lambda name: read_checked(stack.mountpoint / name, objects[name]), objects))
            assert [wrong for wrong, _ in results if wrong] == []
            for name in objects:
                fd = os.open(stack.mountpoint / name, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)


def test_a_content_that_is_replaced_is_never_mixed_with_the_old_one(
    make_stack: StackMaker, workplace: Path, s3_server: S3Server, s3_bucket: str
) -> None:
    stack = start_far(make_stack, workplace)
    objects = put_far(stack, s3_server, s3_bucket, 1)
    stack.load("/")
    [name] = objects
    new = make_data(99, LARGE)
    path = stack.mountpoint / name
    old_fd = os.open(path, os.O_RDONLY)
    try:
        assert os.pread(old_fd, MIB, 0) == objects[name][:MIB]
        s3_server.put(s3_bucket, name, new)
        stack.run_command("alluxio-like", "fs", "sync", "/large")
        stack.load("/large")
        wait_until("the new content", lambda: path.read_bytes() == new, timeout_s=60)
        for page in range(1, LARGE // MIB):
            try:
                assert os.pread(old_fd, MIB, page * MIB) == objects[name][page * MIB : (page + 1) * MIB]
            except OSError:
                break
    finally:
        os.close(old_fd)
