"""Nodes in miniature whose master keeps its metadata in a real PostgreSQL: it goes on on another node, with nothing but that.

The tests go on from one another, as those of test_node.py do.
"""

import base64
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.cluster import Cluster, start_cluster, wait_until
from tests.kubernetes.kubelet import Pod
from tests.kubernetes.rendering import render
from tests.servers.postgresql import PostgresqlServer

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

STORE = Path("/usr/share/common-licenses")
NAMES = ("GPL-2", "BSD")
VALUES = """
mounts: [{{path: /licenses, uri: "file://{store}"}}]
preloads: [{{name: all, paths: [/licenses], wait: true}}]
master:
  metadata:
    url: {url}
    passwordSecret: {{name: db, key: password}}
  storage: {{ephemeral: true}}
worker:
  allowRootDisk: true
  disks: [{{path: /mnt/nvme0/cache, size: 1GB}}]
"""
READER = """
import sys, time
while True:
    for name in sys.argv[2:]:
        try:
            with open(f"{sys.argv[1]}/{name}", "rb") as stream:
                print(name, len(stream.read()), flush=True)
        except OSError as error:
            print("ERROR", error, flush=True)
        time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def cluster(postgresql_server: PostgresqlServer) -> Iterator[Cluster]:
    """Installed, with a node that has the label and one that has it too and no master."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    with (
        tempfile.TemporaryDirectory(prefix="al-k8s-", dir="/var/tmp") as made,
        start_cluster(Path(made), 2) as running,
        running.network.forwarded(postgresql_server.port) as port,
    ):
        url = postgresql_server.get_url(schema=postgresql_server.make_schema(), password=False)
        file = Path(made, "values.yaml")
        file.write_text(
            VALUES.format(
                store=STORE, url=url.replace(f"127.0.0.1:{postgresql_server.port}", f"{running.network.address}:{port}")
            )
        )
        password = base64.b64encode(postgresql_server.password.encode()).decode()
        running.objects.secrets["db"] = {"data": {"password": password}}
        for node in running.nodes:
            running.label(node, **{"alluxio-like/node": "true"})
        running.install(render(file, namespace="storage"))
        for component, count in (("master", 1), ("worker", 2), ("holder", 2), ("fuse", 2)):
            running.wait_ready(component, count)
        yield running


@pytest.fixture(scope="module")
def reader(cluster: Cluster) -> Pod:
    """A pod that reads two files over and over, where the master will come to."""
    volume = {"name": "data", "hostPath": {"path": "/var/lib/alluxio-like/mnt", "type": "Directory"}}
    mount = {"name": "data", "mountPath": "/alluxio", "mountPropagation": "HostToContainer", "readOnly": True}
    security = {"runAsUser": 1234, "runAsGroup": 1234, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    command = ["python3", "-c", READER, "/alluxio/data/licenses", *NAMES]
    container = {"name": "reader", "command": command, "volumeMounts": [mount], "securityContext": security}
    spec = {"containers": [container], "volumes": [volume], "terminationGracePeriodSeconds": 1}
    return cluster.run_pod(cluster.nodes[1], {"metadata": {"name": "reader", "labels": {}}, "spec": spec})


def wait_reads(reader: Pod, more: int = 20) -> None:
    """So many more reads, none of them wrong since it began."""

    def list_said() -> list[str]:
        return reader.node.log(reader.name).splitlines()

    begun = len(list_said())
    wait_until(lambda: len(list_said()) >= begun + more, lambda: f"{reader.phase}: {list_said()[-5:]}")
    assert set(list_said()) == {f"{name} {(STORE / name).stat().st_size}" for name in NAMES}


def list_mounts(cluster: Cluster) -> str:
    return str(cluster.get_pod("master").containers["master"].enter("alluxio-like", "mounts", "--json").stdout)


def test_the_password_is_in_no_command_and_no_file_of_the_master(cluster: Cluster, postgresql_server: PostgresqlServer) -> None:
    master = cluster.get_pod("master").containers["master"]
    for pid in master.list_pids():
        assert postgresql_server.password not in Path(f"/proc/{pid}/cmdline").read_text()
    said = master.enter(
        "grep", "-r", postgresql_server.password, "/etc/alluxio-like", "/var/lib/alluxio-like/master", check=False
    )
    assert said.returncode == 1


def test_a_master_that_is_killed_with_its_node_goes_on_on_another(cluster: Cluster, reader: Pod) -> None:
    """What is open and known is read on; names, mounts and jobs are there again."""
    wait_reads(reader)
    before = list_mounts(cluster)
    old = cluster.get_pod("master")
    old.containers["master"].signal(signal.SIGKILL)
    old.delete(0)
    wait_reads(reader)
    old.join()
    new = cluster.reschedule(old, cluster.nodes[1])
    wait_until(lambda: new.ready, lambda: f"the master on the other node: {new.phase} {new.node.log(new.name)[-3000:]}")
    wait_reads(reader)
    assert list_mounts(cluster) == before
    jobs = new.containers["master"].enter("cache", "jobs", "--json").stdout
    assert '"done"' in jobs
    for component, count in (("worker", 2), ("fuse", 2)):
        cluster.wait_ready(component, count)


def test_a_database_that_goes_away_and_comes_back(cluster: Cluster, reader: Pod, postgresql_server: PostgresqlServer) -> None:
    postgresql_server.stop(signal.SIGQUIT)
    wait_reads(reader)
    postgresql_server.start()
    master = cluster.get_pod("master")
    said = []

    def mount() -> bool:
        """As the chart's notes say that it is done by hand."""
        done = master.containers["master"].enter("alluxio-like", "mount", "/again", f"file://{STORE}", check=False)
        said.append(done.stderr)
        return done.returncode == 0

    wait_until(mount, lambda: f"a mount: {said[-1]} {master.node.log(master.name)[-3000:]}")
    assert "/again" in list_mounts(cluster)
    wait_reads(reader)


def test_uninstall_leaves_nothing(cluster: Cluster, reader: Pod) -> None:
    reader.delete()
    reader.join()
    cluster.uninstall()
    for node in cluster.nodes:
        assert node.space.list_mounts() == []
        assert node.space.list_processes() == []
