"""A CephFS behind the mount: read, loaded, changed by another client."""

import time
from pathlib import Path

import pytest

from tests.cluster.data import MIB, make_data
from tests.servers.fixtures_cephfs import CephFsServer
from tests.servers.stack import start_stack

pytestmark = pytest.mark.mount


def test_a_changed_file_is_replaced(workplace: Path, cephfs_server: CephFsServer, cephfs_root: str) -> None:
    client = cephfs_server.client
    files = {f"train/{number}": make_data(number, 100_000 + number) for number in range(50)}
    files["shard"] = make_data(99, 20 * MIB + 17)
    for name, data in files.items():
        client.put(f"{cephfs_root}/{name}", data)
    client.call("link", "shard", f"{cephfs_root}/link")
    options = [argument for name, value in cephfs_server.options.items() for argument in ("-o", f"{name}={value}")]
    with start_stack(workplace, {"/": cephfs_server.get_uri(cephfs_root)}, {}, "--io-timeout", "20s", *options) as stack:
        mounted = stack.mountpoint
        assert (mounted / "shard").read_bytes() == files["shard"]  # cold
        assert sorted(path.name for path in mounted.iterdir()) == ["shard", "train"]
        job = stack.load("/", "--verify")
        assert (job["done_files"], job["state"].lower()[-4:]) == (len(files), "done")
        for name, data in files.items():
            assert (mounted / name).read_bytes() == data

        before = (mounted / "shard").stat().st_ino
        client.call("write", f"{cephfs_root}/shard", b"changed in place", 5 * MIB)
        client.put(f"{cephfs_root}/train/7", b"replaced")
        changed = bytearray(files["shard"])
        changed[5 * MIB : 5 * MIB + 16] = b"changed in place"
        end = time.monotonic() + 60
        while (mounted / "shard").read_bytes() != changed:
            assert time.monotonic() < end
            assert (mounted / "shard").read_bytes() in {files["shard"], bytes(changed)}
            stack.run_command("alluxio-like", "fs", "sync", "/")
        assert (mounted / "shard").stat().st_ino != before
        stack.run_command("alluxio-like", "fs", "sync", "/train")
        assert (mounted / "train/7").read_bytes() == b"replaced"
