"""The chart in a real Kubernetes, as docs/kubernetes.md says it: installed, read from, killed, upgraded, drained, gone.

Then once more, with certificates of cert-manager's. Not among the usual tests: its programs take twenty minutes to build.
`make cluster`. The tests go on from one another.
"""

import base64
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.cluster import wait_until
from tests.kubernetes.real.images import make_images
from tests.kubernetes.real.node import NAME, PAUSE, REGISTRAR, RealNode, start_node
from tests.kubernetes.real.programs import CERT_MANAGER, PARTS, get_definitions
from tests.kubernetes.rendering import CHART, ROOT, render
from tests.servers.fixtures import S3Server

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.environ.get("ALLUXIO_LIKE_TEST_CLUSTER") != "1", reason="builds Kubernetes: make cluster"),
]

FILES, BYTES = 30, 100_000
EXAMPLES = ROOT / "deploy/examples"
LIMIT_S = 300.0
READER = """
import os, sys, time
place = "/alluxio/data/imagenet"
while not os.path.isdir(place):
    time.sleep(0.2)
worst = 0.0
while True:
    for name in sorted(os.listdir(place)):
        begun = time.monotonic()
        try:
            with open(f"{place}/{name}", "rb") as stream:
                size = len(stream.read())
            worst = max(worst, time.monotonic() - begun)
            print(name, round(worst, 2), size, flush=True)
        except OSError as error:
            print("ERROR", name, error, flush=True)
        time.sleep(0.02)
"""

CALLER = """
import os, time
from alluxio_like import connect
client = connect(os.environ["ALLUXIO_LIKE_MASTER"])
while True:
    try:
        for entry in client.list_dir("/imagenet"):
            begun = time.monotonic()
            size = len(client.read(f"/imagenet/{entry.name}"))
            print(entry.name, round(time.monotonic() - begun, 2), size, flush=True)
            time.sleep(0.02)
    except Exception as error:
        print("ERROR", error, flush=True)
        time.sleep(1)
"""
"""Reads all files again and again, as the one above, but by the Python client: every read is a call to a service."""
ISSUER = "alluxio-like"
ISSUERS: list[dict[str, Any]] = [
    {"kind": "ClusterIssuer", "metadata": {"name": "own"}, "spec": {"selfSigned": {}}},
    {
        "kind": "Certificate",
        "metadata": {"name": "authority", "namespace": "cert-manager"},
        "spec": {
            "isCA": True,
            "commonName": "authority of the storage",
            "secretName": "authority",
            "privateKey": {"algorithm": "ECDSA", "size": 256},
            "issuerRef": {"name": "own", "kind": "ClusterIssuer"},
        },
    },
    {"kind": "ClusterIssuer", "metadata": {"name": ISSUER}, "spec": {"ca": {"secretName": "authority"}}},
]
"""As cert-manager's manual bootstraps an authority of a cluster's own."""


class World:
    """The cluster, and how the chart is installed in it."""

    def __init__(self, node: RealNode, settings: list[str]) -> None:
        self.node, self.settings = node, settings

    def helm(self, verb: str, *settings: str) -> None:
        options = [f"--set={setting}" for setting in (*self.settings, *settings)]
        self.node.helm(verb, "al", str(CHART), "-n", "storage", "-f", str(EXAMPLES / "values.yaml"), "--timeout=5m", *options)

    def wait_rolled_out(self, *components: str) -> None:
        """`kubectl rollout status`, of what is replaced by itself."""
        for component in components:
            kind = "statefulset" if component == "master" else "daemonset"
            self.node.kubectl(
                "-n", "storage", "rollout", "status", f"{kind}/al-alluxio-like-{component}", "--timeout=5m", limit_s=400
            )

    def list_pods(self, component: str = "") -> list[Any]:
        selector = ["-l", f"app.kubernetes.io/component={component}"] if component else []
        return list(self.node.get("-n", "storage", "pods", *selector)["items"])

    def describe(self) -> str:
        return self.node.kubectl("get", "pods,events", "-A", check=False)[-6000:]

    def run_example(self, name: str) -> str:
        """Apply it as it stands; what its Job says at its end."""
        self.node.kubectl("apply", "-f", str(EXAMPLES / f"{name}.yaml"))
        job = f"job/train-{ {'init-container': 'warm'}.get(name, name) }"

        def has_ended() -> bool:
            conditions = self.node.get("-n", "training", job).get("status", {}).get("conditions", [])
            assert not any(one["type"] == "Failed" and one["status"] == "True" for one in conditions), self.describe()
            return any(one["type"] == "Complete" and one["status"] == "True" for one in conditions)

        wait_until(has_ended, self.describe, LIMIT_S)
        return self.node.kubectl("-n", "training", "logs", job)

    def start_reader(self) -> None:
        """A pod that reads by the node's mount, from now on."""
        security = {"runAsUser": 1000, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        mount = {"name": "alluxio", "mountPath": "/alluxio", "mountPropagation": "HostToContainer", "readOnly": True}
        container: dict[str, Any] = {"name": "reader", "image": "python:3.11-slim", "command": ["python3", "-c", READER]}
        container |= {"volumeMounts": [mount], "securityContext": security}
        volume = {"name": "alluxio", "hostPath": {"path": "/var/lib/alluxio-like/mnt", "type": "DirectoryOrCreate"}}
        self._start_pod("reader", {}, {"containers": [container], "volumes": [volume], "terminationGracePeriodSeconds": 1})

    def start_caller(self) -> None:
        """A pod that reads by the Python client, from now on; made as the example for it is."""
        template = yaml.safe_load((EXAMPLES / "sdk.yaml").read_text())["spec"]["template"]
        template["spec"]["containers"][0]["args"] = [CALLER]
        self._start_pod("caller", template["metadata"]["labels"], template["spec"] | {"terminationGracePeriodSeconds": 1})

    def _start_pod(self, name: str, labels: dict[str, str], spec: dict[str, Any]) -> None:
        metadata = {"name": name, "namespace": "training", "labels": labels}
        self.node.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
        self.node.kubectl("-n", "training", "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=4m")

    def read_said(self, pod: str = "reader") -> list[str]:
        return self.node.kubectl("-n", "training", "logs", pod, "--tail=-1").splitlines()

    def wait_reads(self, pod: str = "reader") -> None:
        """A reading pod reads on, and no read of its has failed since it began."""
        begun = len(self.read_said(pod))
        wait_until(lambda: len(self.read_said(pod)) >= begun + 2 * FILES, self.describe, LIMIT_S)
        said = self.read_said(pod)
        wrong = [line for line in said if line.split()[-1] != str(BYTES)]
        assert not wrong, wrong[:5]
        print(f"longest read of {pod} so far: {max(float(line.split()[1]) for line in said):g} s")  # noqa: T201

    def get_shown(self, component: str, port: int) -> str:
        """The certificate that a service shows who connects to it, as PEM."""
        (pod,) = self.list_pods(component)
        ask = f"import ssl; print(ssl.get_server_certificate(('{pod['status']['podIP']}', {port})))"
        return self.node.kubectl("-n", "storage", "exec", "al-alluxio-like-master-0", "--", "python", "-c", ask).strip()


@pytest.fixture(scope="module")
def world(s3_server: S3Server) -> Iterator[World]:
    bucket = s3_server.make_bucket()
    for number in range(FILES):
        s3_server.put(bucket, f"datasets/imagenet/{number:03}", os.urandom(BYTES))
    port = int(s3_server.endpoint.rpartition(":")[2])
    with (
        tempfile.TemporaryDirectory(prefix="al-real-", dir="/var/tmp") as made,
        start_node(Path(made)) as node,
        node.network.forwarded(port) as forwarded,
    ):
        images = Path(made, "images")
        images.mkdir()
        for archive in make_images(images, PARTS.install(), PAUSE, REGISTRAR):
            node.load(archive)
            archive.unlink()
        settings = [
            f"mounts[0].uri=s3://{bucket}/datasets",
            f"mounts[0].options.endpoint=http://{node.address}:{forwarded}",
            "image.repository=alluxio-like",
            "worker.disks[0].path=/var/lib/alluxio-like/cache",
            "worker.disks[0].size=2GB",
            "worker.allowRootDisk=true",
            *(f"{component}.resources.requests.cpu=50m" for component in ("master", "worker", "fuse")),
            *(f"{component}.resources.requests.memory=128Mi" for component in ("master", "worker", "fuse")),
        ]
        node.kubectl("create", "namespace", "storage")
        node.kubectl("label", "namespace", "storage", "pod-security.kubernetes.io/enforce=privileged")
        node.kubectl("create", "namespace", "training")
        keys = [f"--from-literal=access={s3_server.access_key}", f"--from-literal=secret={s3_server.secret_key}"]
        node.kubectl("-n", "storage", "create", "secret", "generic", "s3", *keys)
        node.apply(json.dumps(make_volume(node)))
        yield World(node, settings)


def make_volume(node: RealNode) -> dict[str, Any]:
    """For the master's claim: there is no provisioner here."""
    place = node.directory / "own/var/lib/volume"
    place.mkdir()
    os.chown(place, 10001, 10001)
    claim = {"namespace": "storage", "name": "home-al-alluxio-like-master-0"}
    spec = {
        "capacity": {"storage": "20Gi"},
        "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/var/lib/volume"},
        "claimRef": claim,
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "master"}, "spec": spec}


def test_install(world: World) -> None:
    world.node.kubectl("label", "node", NAME, "alluxio-like/node=true")
    begun = time.monotonic()
    try:
        world.helm("install")
        world.wait_rolled_out("master", "worker", "fuse")
    except RuntimeError as error:
        raise AssertionError(f"{error}\n{world.describe()}") from error
    print(f"installed in {time.monotonic() - begun:.0f} s")  # noqa: T201
    assert world.node.space.list_mounts() == ["/var/lib/alluxio-like/mnt/data"]
    certificate = world.node.get("-n", "storage", "secret", "al-alluxio-like-tls")["data"]["tls.crt"]
    assert base64.b64decode(certificate).startswith(b"-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize("example", ["hostpath", "pvc", "init-container", "sdk"])
def test_each_way_to_give_data_to_pods(world: World, example: str) -> None:
    assert world.run_example(example) == f"{FILES} files, {FILES * BYTES} bytes\n"


def test_a_pod_whose_data_cannot_be_loaded_does_not_start(world: World) -> None:
    """Its init container ends with 1, and says what is missing."""
    job = yaml.safe_load((EXAMPLES / "init-container.yaml").read_text())
    job["metadata"]["name"] = "train-none"
    command = job["spec"]["template"]["spec"]["initContainers"][0]["command"]
    command[command.index("/imagenet")] = "/no-such-set"
    world.node.apply(json.dumps(job))
    world.node.kubectl("-n", "training", "wait", "--for=condition=Failed", "job/train-none", "--timeout=4m")
    (pod,) = world.node.get("-n", "training", "pods", "-l", "job-name=train-none")["items"]
    assert pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 1
    assert "no-such-set" in world.node.kubectl("-n", "training", "logs", pod["metadata"]["name"], "-c", "warm")
    assert (
        world.node.kubectl("-n", "training", "logs", pod["metadata"]["name"], "-c", "training", check=False).count("files,") == 0
    )


def test_a_pod_of_the_chart_says_how_the_node_reads(world: World) -> None:
    (pod,) = world.list_pods("fuse")
    report = json.loads(
        world.node.kubectl("-n", "storage", "exec", pod["metadata"]["name"], "--", "alluxio-like", "report", "--json")
    )
    (mount,) = report["local_mounts"]
    assert mount["state"] == "serving"
    print(f"session: {mount['session']}, opens: {mount['total']['opens']}")  # noqa: T201


def test_a_pod_reads_while_the_fuse_pod_is_deleted(world: World) -> None:
    world.start_reader()
    world.wait_reads()
    for grace in ("60", "0"):
        (pod,) = world.list_pods("fuse")
        force = ["--force"] if grace == "0" else []
        world.node.kubectl("-n", "storage", "delete", "pod", pod["metadata"]["name"], f"--grace-period={grace}", *force)
        world.wait_rolled_out("fuse")
        world.wait_reads()


def test_certificates_are_kept_and_pods_replaced_by_an_upgrade(world: World) -> None:
    secrets = [world.node.get("-n", "storage", "secret", f"al-alluxio-like-{name}")["data"] for name in ("tls", "token")]
    before = {pod["metadata"]["uid"] for pod in world.list_pods("fuse") + world.list_pods("worker")}
    holders = {pod["metadata"]["uid"] for pod in world.list_pods("holder")}
    world.helm("upgrade", "logLevel=debug", "csi.enabled=true")
    world.wait_rolled_out("master", "worker", "fuse", "csi")
    assert not before & {pod["metadata"]["uid"] for pod in world.list_pods()}
    assert holders == {pod["metadata"]["uid"] for pod in world.list_pods("holder")}
    assert secrets == [world.node.get("-n", "storage", "secret", f"al-alluxio-like-{name}")["data"] for name in ("tls", "token")]
    world.wait_reads()


def test_volumes_by_csi(world: World) -> None:
    assert world.run_example("csi") == f"{FILES} files, {FILES * BYTES} bytes\n"


def test_the_values_of_before_come_back_by_a_rollback(world: World) -> None:
    before = {pod["metadata"]["uid"] for pod in world.list_pods("fuse") + world.list_pods("worker")}
    holders = {pod["metadata"]["uid"] for pod in world.list_pods("holder")}
    world.wait_reads()
    world.node.helm("rollback", "al", "1", "-n", "storage", "--timeout=5m")
    world.wait_rolled_out("master", "worker", "fuse")
    wait_until(lambda: not world.list_pods("csi"), world.describe, LIMIT_S)
    assert not before & {pod["metadata"]["uid"] for pod in world.list_pods()}
    assert holders == {pod["metadata"]["uid"] for pod in world.list_pods("holder")}
    world.wait_reads()


def test_a_node_is_drained_and_comes_back(world: World) -> None:
    """Training pods and the master go, what belongs to the node stays."""
    world.wait_reads()
    world.node.kubectl("drain", NAME, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=3m")
    pods = world.node.get("-n", "training", "pods")["items"]
    assert not [pod for pod in pods if pod["status"]["phase"] == "Running"]
    for component in ("worker", "holder", "fuse"):
        (pod,) = world.list_pods(component)
        assert "deletionTimestamp" not in pod["metadata"]
    assert world.node.space.list_mounts() == ["/var/lib/alluxio-like/mnt/data"]
    world.node.kubectl("uncordon", NAME)
    world.wait_rolled_out("master", "worker", "fuse")
    world.node.kubectl("-n", "training", "delete", "job", "train-hostpath")
    assert world.run_example("hostpath") == f"{FILES} files, {FILES * BYTES} bytes\n"


def test_uninstall_leaves_nothing(world: World) -> None:
    world.node.kubectl("delete", "namespace", "training", "--timeout=3m")
    world.node.helm("uninstall", "al", "-n", "storage", "--wait", "--timeout=3m")
    wait_until(lambda: not [pod for pod in world.list_pods() if pod["status"]["phase"] == "Running"], world.describe, LIMIT_S)
    wait_until(lambda: world.node.space.list_mounts() == [], world.describe, LIMIT_S)
    kinds = "daemonsets,statefulsets,services,configmaps,serviceaccounts,secrets,priorityclasses,csidrivers"
    left = [
        one["metadata"]["name"]
        for one in world.node.get("-n", "storage", kinds)["items"]
        if "al-alluxio" in one["metadata"]["name"]
    ]
    assert left == []
    assert [process for process in world.node.space.list_processes() if "/opt/alluxio-like/" in process] == []


def test_certificates_of_cert_manager(world: World) -> None:
    """Installed once more, in its place; works alone, too."""
    node = world.node
    node.kubectl("label", "node", NAME, "alluxio-like/node=true", "--overwrite")
    for file in get_definitions():
        node.kubectl("create", "-f", str(file))
    node.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=2m")
    for namespace in ("cert-manager", "training"):
        node.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
    node.start("cert-manager", CERT_MANAGER.install(), node.kubeconfig, "cert-manager")
    for issuer in ISSUERS:
        node.apply(json.dumps({"apiVersion": "cert-manager.io/v1", **issuer}))
    issued = [f"tls.certManager.issuerRef.{key}" for key in (f"name={ISSUER}", "kind=ClusterIssuer")]
    # The shortest life that cert-manager gives, of which two minutes go by: then they are renewed, again and again.
    issued += ["tls.certManager.duration=60m", "tls.certManager.renewBefore=58m"]
    rendered = render(EXAMPLES / "values.yaml", settings=[*world.settings, *issued])
    certificates = [one for one in rendered if one["kind"] == "Certificate"]
    for one in certificates:
        one["metadata"].setdefault("namespace", "storage")
    assert len(certificates) == 2
    strictly = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
    node.kubectl(*strictly, text=yaml.safe_dump_all(certificates))
    with pytest.raises(RuntimeError, match=r'unknown field "spec\.renew"'):
        node.kubectl(*strictly, text=yaml.safe_dump(certificates[0] | {"spec": {**certificates[0]["spec"], "renew": "1h"}}))
    # A pod that is there before everything sees the mount come.
    world.start_reader()
    try:
        world.helm("install", *issued)
        world.wait_rolled_out("master", "worker", "fuse")
    except RuntimeError as error:
        raise AssertionError(f"{error}\n{world.describe()}\n{node.read_log('cert-manager')[-6000:]}") from error
    assert world.run_example("sdk") == f"{FILES} files, {FILES * BYTES} bytes\n"
    world.start_caller()


def test_certificates_are_renewed_under_reading_pods(world: World) -> None:
    def get_issued() -> str:
        data = world.node.get("-n", "storage", "secret", "al-alluxio-like-tls")["data"]
        return base64.b64decode(data["tls.crt"]).decode().strip()

    def get_used() -> set[str]:
        return {world.get_shown(component, port) for component, port in (("master", 19998), ("worker", 19999))}

    def list_restarts() -> list[tuple[str, str, int]]:
        pods = [pod for component in ("master", "worker", "fuse", "holder") for pod in world.list_pods(component)]
        states = [(pod, one) for pod in pods for one in pod["status"]["containerStatuses"]]
        return [(pod["metadata"]["uid"], one["name"], one["restartCount"]) for pod, one in states]

    def are_all_taken_up() -> bool:
        issued.add(get_issued())
        return get_used() <= issued - first

    restarts = list_restarts()
    for pod in ("reader", "caller"):
        world.wait_reads(pod)
    first, issued = get_used() | {get_issued()}, set[str]()
    # Two minutes, and what the kubelet hands out comes within a minute or two after that.
    wait_until(are_all_taken_up, world.describe, 2 * LIMIT_S)
    print(f"{len(issued)} certificates issued in the course of this")  # noqa: T201
    for pod in ("reader", "caller"):
        world.wait_reads(pod)
    world.node.kubectl("-n", "training", "delete", "job", "train-sdk")
    for example in ("init-container", "sdk"):
        assert world.run_example(example) == f"{FILES} files, {FILES * BYTES} bytes\n"
    assert list_restarts() == restarts
