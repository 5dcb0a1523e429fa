"""A whole file system with a bucket of Google's and a container of Azure's in one tree, through the mount."""

from pathlib import Path

import pytest

from tests.cluster.conftest import PATIENCE_S
from tests.cluster.data import make_data
from tests.servers.fixtures_clouds import AZ_ACCOUNT, AZ_KEY, AzServer, GsServer
from tests.servers.net import wait_until
from tests.servers.stack import start_stack

pytestmark = pytest.mark.mount

MIB = 1 << 20


def test_both_are_mounted_read_and_seen_to_change(
    workplace: Path, gs_server: GsServer, gs_bucket: str, az_server: AzServer, az_container: str
) -> None:
    old, new = make_data(1, 3 * MIB), make_data(2, 2 * MIB + 1)
    servers = {"gs": (gs_server, gs_bucket), "az": (az_server, az_container)}
    for server, bucket in servers.values():
        server.put(bucket, "set/model.bin", old)
        server.put(bucket, "set/odd//key", b"odd")
    environment = {"AZURE_STORAGE_CONNECTION_STRING": f"AccountKey={AZ_KEY};BlobEndpoint={az_server.endpoint}/{AZ_ACCOUNT}"}
    arguments = ["--io-timeout", f"{PATIENCE_S:g}s"]
    with start_stack(workplace, {"/az": f"az://{az_container}/set"}, environment, *arguments) as stack:
        options = [f"-oendpoint={gs_server.endpoint}", "-oanonymous=true"]
        stack.run_command("alluxio-like", "mount", "/gs", f"gs://{gs_bucket}/set", *options)
        for scheme, (server, bucket) in servers.items():
            path = stack.mountpoint / scheme / "model.bin"
            assert sorted(child.name for child in path.parent.iterdir())[0] == "model.bin"
            with open(path, "rb") as held:
                assert held.read() == old
                inode = path.stat().st_ino
                server.put(bucket, "set/model.bin", new)
                stack.run_command("alluxio-like", "fs", "sync", f"/{scheme}")
                wait_until("the replacement is seen", lambda path=path, inode=inode: path.stat().st_ino != inode, timeout_s=60)  # type: ignore[misc]
                assert path.read_bytes() == new
                held.seek(0)
                assert held.read() == old, "an open handle reads one content to the end"
            odd = [child for child in path.parent.rglob("*") if child.name == "key"]
            assert [child.read_bytes() for child in odd] == [b"odd"]
        stack.load("/")
        wrong = stack.try_command("alluxio-like", "mount", "/wrong", "gs://no-such-bucket", *options)
        assert wrong.returncode == 1 and "there is no such bucket" in wrong.stderr and "\n" not in wrong.stderr.strip()
        wrong = stack.try_command("alluxio-like", "mount", "/wrong", f"az://{az_container}", "-oacount=x")
        assert "did you mean account?" in wrong.stderr
