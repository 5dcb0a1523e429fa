"""What a training job sees: the bucket's bytes, requests that are few, caches that stay warm."""

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.conftest import StackMaker
from tests.cluster.data import MIB, make_data, put_samples, read_epoch
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.net import wait_until

pytestmark = pytest.mark.mount


def test_cold_and_warm_epochs_read_the_buckets_bytes_and_the_bill_is_small(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    objects = put_samples(s3_server, s3_bucket, 1200)
    stack = make_stack(workers=2)
    proxy.reset_log()
    assert read_epoch(stack.mountpoint, list(objects)) == objects
    counts = proxy.get_counts()
    assert counts["GET"] == len(objects)
    assert counts["HEAD"] == 0
    assert counts["LIST"] <= 4
    proxy.reset_log()
    assert read_epoch(stack.mountpoint, list(objects), seed=1) == objects
    assert not proxy.get_log()


def test_a_load_warms_everything_and_a_restart_keeps_it(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    objects = put_samples(s3_server, s3_bucket, 300)
    large = make_data(7, 70 * MIB + 12345)
    s3_server.put(s3_bucket, "shards/a.tar", large)
    stack = make_stack(workers=2)
    job = stack.load("/", "--verify")
    assert job["state"].lower().endswith("done")
    assert job["done_files"] == len(objects) + 1
    proxy.reset_log()
    assert (stack.mountpoint / "shards/a.tar").read_bytes() == large
    assert read_epoch(stack.mountpoint, list(objects)) == objects
    assert not proxy.get_log("GET")
    make_stack.close()
    stack = make_stack(workers=2)
    proxy.reset_log()
    assert read_epoch(stack.mountpoint, list(objects)) == objects
    assert (stack.mountpoint / "shards/a.tar").read_bytes() == large
    assert not proxy.get_log("GET")
    again = stack.load("/")
    assert again["skipped_files"] == len(objects) + 1
    assert not proxy.get_log("GET")


def test_two_replicas_are_on_two_workers(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy) -> None:
    put_samples(s3_server, s3_bucket, 50)
    stack = make_stack(workers=2)
    proxy.reset_log()
    stack.load("/train", "--replicas", "2")
    assert proxy.get_counts()["GET"] == 50, "the second copy comes from the first"
    status = stack.run_command("cache", "status", "/train")
    assert status["replicas"] == [{"replicas": 2, "files": 50}]
    assert sorted(holder["files"] for holder in status["holders"]) == [50, 50]


def test_a_thousand_readers_of_one_cold_page_cause_one_request(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    data = make_data(1, MIB)
    s3_server.put(s3_bucket, "one.bin", data)
    stack = make_stack()
    (stack.mountpoint / "one.bin").stat()
    proxy.reset_log()
    proxy.set_limits(latency_s=0.3)

    def read(_: int) -> str:
        with open(stack.mountpoint / "one.bin", "rb", buffering=0) as file:
            return hashlib.sha256(file.read()).hexdigest()

    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(read, range(1000))) == {hashlib.sha256(data).hexdigest()}
    assert proxy.get_counts()["GET"] == 1


def test_random_reads_of_a_cold_file_fetch_pages_not_blocks(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy
) -> None:
    data = make_data(2, 64 * MIB)
    s3_server.put(s3_bucket, "big.bin", data)
    stack = make_stack()
    fd = os.open(stack.mountpoint / "big.bin", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        proxy.reset_log()
        for offset in (50 * MIB + 5, 3 * MIB, 30 * MIB + 99, 17 * MIB):
            assert os.pread(fd, 4096, offset) == data[offset : offset + 4096]
    finally:
        os.close(fd)
    assert sum(request.sent_bytes for request in proxy.get_log("GET")) <= 8 * MIB


def test_ordinary_tools_see_an_ordinary_tree(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, workplace: Path
) -> None:
    objects = {
        "a/b/c.txt": b"deep",
        "a/.hidden": b"hidden",
        "empty": b"",
        "space and #%+.txt": b"odd",
        "ünï/ñ.txt": b"unicode",
        "dir/": b"",
        "both": b"a file",
        "both/inside": b"and a directory",
    }
    for key, data in objects.items():
        s3_server.put(s3_bucket, key, data)
    stack = make_stack()
    root = stack.mountpoint
    for key in ("a/b/c.txt", "a/.hidden", "empty", "space and #%+.txt", "ünï/ñ.txt", "both/inside"):
        assert (root / key).read_bytes() == objects[key]
    assert (root / "dir").is_dir()
    assert (root / "both").is_dir()
    assert (root / "a/b/c.txt").stat().st_mode & 0o777 == 0o644
    assert (root / "a").stat().st_mode & 0o777 == 0o755
    target = workplace / "copy"
    target.mkdir()
    subprocess.run(f"tar -C {root} -S -cf - a empty | tar -C {target} -xf -", shell=True, check=True)
    assert (target / "a/b/c.txt").read_bytes() == b"deep"
    with pytest.raises(OSError, match="Read-only"):
        (root / "new").write_bytes(b"x")
    assert os.getxattr(root / "a/b/c.txt", "user.alluxio_like.version")


def test_a_changed_object_is_a_replacement(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str) -> None:
    old, new = make_data(1, 3 * MIB), make_data(2, 2 * MIB + 1)
    s3_server.put(s3_bucket, "model.bin", old)
    stack = make_stack()
    path = stack.mountpoint / "model.bin"
    with open(path, "rb") as held:
        assert held.read() == old
        inode = path.stat().st_ino
        s3_server.put(s3_bucket, "model.bin", new)
        stack.run_command("alluxio-like", "fs", "sync", "/")
        wait_until("the replacement is seen", lambda: path.stat().st_ino != inode, timeout_s=60)
        assert path.read_bytes() == new
        held.seek(0)
        assert held.read() == old, "an open handle reads one content to the end"
    s3_server.delete(s3_bucket, "model.bin")
    stack.run_command("alluxio-like", "fs", "sync", "/")
    wait_until("the name is gone", lambda: not path.exists(), timeout_s=60)
