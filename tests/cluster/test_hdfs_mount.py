"""A mount of HDFS as a training job sees it."""

from pathlib import Path

import pytest

from tests.cluster.data import MIB, make_data
from tests.servers.fixtures_hdfs import HdfsServer
from tests.servers.net import wait_until
from tests.servers.stack import start_stack

pytestmark = pytest.mark.mount


def test_a_mount_of_hdfs(workplace: Path, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    old, new = make_data(1, 3 * MIB), make_data(2, 2 * MIB + 1)
    files = {f"train/{number:03}.bin": make_data(number, 50_000) for number in range(40)}
    for name, data in files.items():
        hdfs_server.put(f"{hdfs_root}/{name}", data)
    hdfs_server.put(f"{hdfs_root}/model.bin", old, blocksize=MIB)
    with start_stack(workplace, {"/": f"{hdfs_server.cluster.uri}{hdfs_root}"}, {}, "--workers", "1") as stack:
        path = stack.mountpoint / "model.bin"
        assert path.read_bytes() == old
        job = stack.load("/", "--verify")
        assert (job["state"].lower().endswith("done"), job["done_files"]) == (True, len(files) + 1)
        assert {name: (stack.mountpoint / name).read_bytes() for name in files} == files
        inode = path.stat().st_ino
        with open(path, "rb") as held:
            hdfs_server.put(f"{hdfs_root}/model.bin", new)
            stack.run_command("alluxio-like", "fs", "sync", "/")
            wait_until("the replacement is seen", lambda: path.stat().st_ino != inode, timeout_s=60)
            assert path.read_bytes() == new
            assert held.read() == old
        hdfs_server.delete(f"{hdfs_root}/model.bin")
        stack.run_command("alluxio-like", "fs", "sync", "/")
        wait_until("the name is gone", lambda: not path.exists(), timeout_s=60)
