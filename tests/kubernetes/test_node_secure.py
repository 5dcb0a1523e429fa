"""A node in miniature with mutual TLS, tokens of clients and volumes by CSI: the chart as a cluster with tenants would have it.

The tests go on from one another, as those of test_node.py do.
"""

import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.cluster import Cluster, Object, start_cluster, wait_until
from tests.kubernetes.kubelet import Pod
from tests.kubernetes.rendering import ROOT, parse, render

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

# What every Debian and Ubuntu has, for a store: a few files in one directory.
STORE = Path("/usr/share/common-licenses")
FILE = "GPL-2"
VALUES = f"""
mounts: [{{path: /team-a/licenses, uri: "file://{STORE}"}}, {{path: /imagenet, uri: "file://{STORE}"}}]
clientTokens: {{secretName: clients}}
csi: {{enabled: true, inlinePaths: ["/{{namespace}}"]}}
worker:
  allowRootDisk: true
  disks: [{{path: /mnt/nvme0/cache, size: 1GB}}]
"""
READER = """
import hashlib, sys, time
rounds = 0
while True:
    try:
        with open(sys.argv[1], "rb") as stream:
            right = hashlib.sha256(stream.read()).hexdigest() == sys.argv[2]
        print("right" if right else "WRONG", rounds, flush=True)
    except OSError as error:
        print("ERROR", error, flush=True)
    rounds += 1
    time.sleep(0.05)
"""


class Tenant:
    """A pod with a volume, that reads one file over and over."""

    def __init__(self, cluster: Cluster, volume: Object, namespace: str = "team-a", *, path: str = FILE, **mount: str) -> None:
        digest = hashlib.sha256((STORE / FILE).read_bytes()).hexdigest()
        command = ["python3", "-c", READER, f"/volume/{path}", digest]
        mount |= {"name": "data", "mountPath": "/volume"}
        security = {"runAsUser": 1234, "runAsGroup": 1234, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        container = {"name": "reader", "image": "any", "command": command, "volumeMounts": [mount], "securityContext": security}
        spec = {"containers": [container], "volumes": [{"name": "data", **volume}], "terminationGracePeriodSeconds": 1}
        self.pod: Pod = cluster.run_pod(
            cluster.nodes[0], {"metadata": {"name": "tenant", "namespace": namespace, "labels": {}}, "spec": spec}
        )

    @property
    def said(self) -> list[str]:
        return self.pod.node.log(self.pod.name).splitlines()

    def wait_reads(self, more: int = 10) -> None:
        """So many more reads, none of them wrong since it began."""
        begun = len(self.said)
        wait_until(lambda: len(self.said) >= begun + more, lambda: f"{self.pod.phase}: {self.said[-5:]}")
        assert [line for line in self.said if not line.startswith("right")] == []

    def end(self) -> None:
        self.pod.delete()
        self.pod.join()


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """Rendered once: the chart makes other secrets each time."""
    file = tmp_path_factory.mktemp("values") / "values.yaml"
    file.write_text(VALUES)
    return render(file, namespace="storage")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    with tempfile.TemporaryDirectory(prefix="al-k8s-", dir="/var/tmp") as made, start_cluster(Path(made), 1) as running:
        running.objects.secrets["clients"] = {"stringData": {"tokens": f"{'b' * 40}\n{'c' * 40}\n"}}
        yield running


INLINE: dict[str, Any] = {"csi": {"driver": "csi.alluxio-like", "volumeAttributes": {"path": "/team-a/licenses"}}}


@pytest.fixture(scope="module")
def tenants() -> list[Tenant]:
    return []


def test_install(cluster: Cluster, objects: list[Object], tenants: list[Tenant]) -> None:
    """With `--wait`: our pods are ready before the hooks mount anything. Others may be there before the plugin and the mount."""
    tenants.append(Tenant(cluster, INLINE))
    wait_until(lambda: bool(tenants[0].pod.csi_volumes and tenants[0].pod.csi_volumes[0].failures), "the pod waits")
    cluster.label(cluster.nodes[0], **{"alluxio-like/node": "true"})
    cluster.install(objects, wait=True)
    for component in ("master", "worker", "holder", "fuse", "csi"):
        cluster.wait_ready(component, 1)
    tenants[0].wait_reads()


def test_services_speak_with_those_alone_who_have_a_certificate(cluster: Cluster) -> None:
    pod = cluster.get_pod("master")
    ours = pod.containers["master"].enter("alluxio-like", "mounts", check=False)
    assert "/team-a/licenses" in ours.stdout, ours.stderr
    (address,) = [address for names, address in cluster.objects.hosts.items() if "-master." in names]
    for target in (f"{address}:19998", f"{cluster.get_pod('worker').address}:19999"):
        started = time.monotonic()
        words = ("env", "-u", "ALLUXIO_LIKE_CONFIG", "alluxio-like", "mounts", "--master", target)
        refused = pod.containers["master"].enter(*words, check=False)
        assert refused.returncode == 1
        assert "it speaks TLS, and we do not" in refused.stderr, refused.stderr
        assert time.monotonic() - started < 60


def test_clients_show_a_token_beside_their_certificate(cluster: Cluster) -> None:
    """A program in the master's pod, with the master's certificate."""
    master = cluster.get_pod("master").containers["master"]
    code = """
import os, sys
from pathlib import Path
from alluxio_like.config import ClientConfig, load_config
from alluxio_like import connect, errors
for token in sys.argv[1:]:
    shown = Path("/tmp", token)
    shown.write_text(token)
    shown.chmod(0o600)
    file = Path(os.environ["ALLUXIO_LIKE_CONFIG"])
    config = load_config(ClientConfig, file=file, flags={"token_file": shown})
    try:
        print(any(connect(config=config).list_dir("/team-a/licenses")))
    except errors.AccessDenied as error:
        print(error)
"""
    said = master.enter("python", "-c", code, "b" * 40, "c" * 40, "wrong").stdout.splitlines()
    assert said[:2] == ["True", "True"]
    assert "this cluster asks its clients for a token" in said[2]


def test_a_claim_shows_a_volume_that_the_cluster_offers(cluster: Cluster, tenants: list[Tenant]) -> None:
    document = ROOT / "docs/csi.md"
    volume = yaml.safe_load(document.read_text().partition("```yaml\n")[2].partition("```")[0])
    volume["spec"]["csi"]["volumeAttributes"]["path"] = "/team-a/licenses"
    cluster.objects.claims[volume["spec"]["claimRef"]["name"]] = volume["spec"]["csi"]
    tenants.append(Tenant(cluster, {"persistentVolumeClaim": {"claimName": "imagenet"}}, "team-b"))
    tenants[-1].wait_reads()
    assert len(cluster.nodes[0].space.list_mounts()) == 3


def test_the_documented_example_as_it_stands(cluster: Cluster) -> None:
    objects = parse((ROOT / "deploy/examples/csi.yaml").read_text())
    files = [file for file in STORE.iterdir() if file.is_file() and not file.is_symlink()]
    said = cluster.run_all(objects, cluster.nodes[0])
    assert said == f"{len(files)} files, {sum(file.stat().st_size for file in files)} bytes\n"


def test_a_tenant_sees_no_more_than_his_own(cluster: Cluster) -> None:
    tenant = Tenant(cluster, INLINE, "team-b")
    volumes = tenant.pod.csi_volumes
    wait_until(lambda: bool(volumes) and any("use a PersistentVolume" in said for said in volumes[0].failures), "a refusal")
    tenant.end()
    assert tenant.said == []


@pytest.mark.parametrize("component", ["csi", "fuse", "worker", "master"])
def test_a_container_that_is_killed_is_not_noticed(cluster: Cluster, tenants: list[Tenant], component: str) -> None:
    cluster.get_pod(component).containers[component].signal(signal.SIGKILL)
    for tenant in tenants:
        tenant.wait_reads()
    cluster.wait_ready(component, 1)


def test_volumes_go_with_their_pods(cluster: Cluster, tenants: list[Tenant]) -> None:
    node = cluster.nodes[0]
    for tenant in tenants:
        tenant.wait_reads(2)
        tenant.end()
    assert node.space.list_mounts() == [f"{node.space.files}/var/lib/alluxio-like/mnt/data"]
    pods = Path(f"{node.space.files}/var/lib/kubelet/pods")
    assert [path.name for path in pods.rglob("mount")] == []


def test_a_pod_that_lives_through_a_new_mount_sees_that(cluster: Cluster) -> None:
    """All that keeps and serves the mount is killed at once. It may fail to read meanwhile, and is not started again."""
    volume = {"hostPath": {"path": "/var/lib/alluxio-like/mnt", "type": "DirectoryOrCreate"}}
    path = f"data/team-a/licenses/{FILE}"
    tenant = Tenant(cluster, volume, path=path, mountPropagation="HostToContainer")
    tenant.wait_reads()
    pods = [cluster.get_pod(component) for component in ("holder", "fuse")]
    restarts = [pod.restarts for pod in pods]
    for pod, component in zip(pods, ("holder", "fuse"), strict=True):
        for pid in pod.containers[component].list_pids():
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(pod.restarts > count for pod, count in zip(pods, restarts, strict=True)), "both started again")
    for component in ("holder", "fuse"):
        cluster.wait_ready(component, 1)
    begun = len(tenant.said)
    wait_until(lambda: "right" in " ".join(tenant.said[begun:]), lambda: f"the new mount: {tenant.said[-3:]}")
    assert not [line for line in tenant.said if line.startswith("WRONG")]
    assert tenant.pod.restarts == 0
    tenant.end()


def test_uninstall_leaves_nothing(cluster: Cluster) -> None:
    cluster.uninstall()
    assert cluster.nodes[0].space.list_mounts() == []
    assert cluster.nodes[0].space.list_processes() == []
