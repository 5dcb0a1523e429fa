"""Nodes in miniature: the chart's pods as processes, a real S3 server behind, training pods in front that must notice nothing.

The tests go on from one another, as the life of an installation does: installed, killed piece by piece, upgraded, drained, gone.
"""

import base64
import contextlib
import hashlib
import json
import os
import signal
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.cluster import Cluster, Object, start_cluster, wait_until
from tests.kubernetes.kubelet import Node
from tests.kubernetes.rendering import ROOT, VALUES, parse, render
from tests.servers.fixtures import S3Server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

MOUNTS = "/var/lib/alluxio-like/mnt"
CAPABILITIES = {"DAC_OVERRIDE": 1, "SYS_PTRACE": 19, "SYS_ADMIN": 21}
TOKEN = "token-of-the-cluster-4711-0815-4242-2357"

READER = """
import hashlib, json, os, sys, time
place, wanted = sys.argv[1], json.loads(sys.argv[2])
while not os.path.exists(place):
    time.sleep(0.05)
print("mounted", flush=True)
rounds, worst = 0, 0.0
while True:
    for name, digest in wanted.items():
        start = time.monotonic()
        try:
            with open(os.path.join(place, name), "rb") as stream:
                data = stream.read()
            if hashlib.sha256(data).hexdigest() != digest:
                print("WRONG", name, flush=True)
        except OSError as error:
            print("ERROR", name, error, flush=True)
        worst = max(worst, time.monotonic() - start)
        time.sleep(0.002)
    rounds += 1
    print("round", rounds, round(worst, 2), flush=True)
"""


class Training:
    """A pod that reads all files over and over, and says what goes wrong."""

    def __init__(self, cluster: Cluster, node: Node, digests: dict[str, str]) -> None:
        command = ["python3", "-c", READER, "/alluxio/data/imagenet", json.dumps(digests)]
        volume = {"name": "data", "hostPath": {"path": MOUNTS, "type": "DirectoryOrCreate"}}
        mount = {"name": "data", "mountPath": "/alluxio", "mountPropagation": "HostToContainer", "readOnly": True}
        security = {"runAsUser": 1234, "runAsGroup": 1234, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        container = {"name": "training", "image": "any", "command": command, "volumeMounts": [mount], "securityContext": security}
        spec = {"containers": [container], "volumes": [volume], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
        self.pod = cluster.run_pod(node, {"metadata": {"name": "training", "labels": {}}, "spec": spec})

    @property
    def said(self) -> list[str]:
        return self.pod.node.log(self.pod.name).splitlines()

    @property
    def rounds(self) -> int:
        return sum(line.startswith("round") for line in self.said)

    def wait_rounds(self, more: int = 2) -> None:
        """So many more rounds, without an error ever since it began."""
        begun = self.rounds
        wait_until(lambda: self.rounds >= begun + more, lambda: f"rounds: {self.said[-5:]}")
        self.check()

    @property
    def worst_s(self) -> float:
        """The longest that a file took, in all rounds so far."""
        return max([float(line.split()[-1]) for line in self.said if line.startswith("round")], default=0.0)

    def check(self) -> None:
        wrong = [line for line in self.said if not line.startswith(("mounted", "round"))]
        assert not wrong, wrong[:5]
        assert self.pod.phase == "Running"


def make_writer(path: str) -> Object:
    """A Job that writes a checkpoint."""
    code = "import sys; stream = open(sys.argv[1], 'wb'); stream.write(b'x' * 3_000_000); stream.close(); print('written')"
    security = {"runAsUser": 1234, "runAsGroup": 1234, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    mount = {"name": "data", "mountPath": "/alluxio", "mountPropagation": "HostToContainer"}
    container = {"name": "writer", "command": ["python3", "-c", code, path], "volumeMounts": [mount], "securityContext": security}
    volume = {"name": "data", "hostPath": {"path": MOUNTS, "type": "Directory"}}
    spec = {"containers": [container], "volumes": [volume], "restartPolicy": "Never"}
    return {"kind": "Job", "metadata": {"name": "writer"}, "spec": {"template": {"metadata": {}, "spec": spec}}}


class World:
    """The cluster, what is in the store, and how the chart is rendered for it."""

    def __init__(self, cluster: Cluster, settings: list[str], digests: dict[str, str], store: S3Server, bucket: str) -> None:
        self.cluster, self.settings, self.digests = cluster, settings, digests
        self.store, self.bucket = store, bucket
        self.trainings: list[Training] = []
        self.secrets = (store.secret_key, TOKEN)

    def render(self, *settings: str) -> list[Object]:
        return render(VALUES.parent / "node.yaml", settings=[*self.settings, *settings], namespace=self.cluster.namespace)

    def call(self, component: str, *command: str, node: Node | None = None) -> Any:
        """Run a command of ours in a pod, as kubectl exec would; what it prints."""
        pod = self.cluster.get_pod(component, node)
        done = pod.containers[component].enter(*command, "--json")
        return json.loads(done.stdout.splitlines()[-1])

    def ask_holder(self, node: Node) -> dict[str, Any]:
        """What the holder says of the mount: who serves it."""
        code = "import json; from alluxio_like.cli import mounting; print(json.dumps(mounting.ask_status(%r)))"
        pod = self.cluster.get_pod("holder", node)
        done = pod.containers["holder"].enter("python", "-c", code % f"{MOUNTS}/data")
        return dict(json.loads(done.stdout))

    def has_object(self, key: str) -> bool:
        """Whether the store has it."""
        with contextlib.suppress(LookupError):
            return bool(self.store.get(self.bucket, key))
        return False

    def read_metric(self, node: Node, name: str) -> float:
        """Of a node's worker; one without labels."""
        address = self.cluster.get_pod("worker", node).address
        text = self.cluster.network.call(lambda: _get(address, "/metrics"))
        (line,) = [line for line in text.splitlines() if line.startswith(f"alluxio_like_{name} ")]
        return float(line.split()[-1])

    def count_store_requests(self) -> float:
        """By all workers since each was started."""
        total = 0.0
        for pod in self.cluster.list_pods("worker"):
            text = self.cluster.network.call(lambda pod=pod: _get(pod.address, "/metrics"))
            counts = [
                line for line in text.splitlines() if line.startswith("alluxio_like_store_requests_total{") and '"read"' in line
            ]
            total += sum(float(line.split()[-1]) for line in counts)
        return total

    def wait_serving(self) -> None:
        """Both nodes have their mounts, and everything is well."""
        count = len(self.cluster.nodes)
        for component, number in (("master", 1), ("worker", count), ("holder", count), ("fuse", count)):
            self.cluster.wait_ready(component, number)


def _get(host: str, path: str) -> str:
    import urllib.request

    context = ssl._create_unverified_context()
    with urllib.request.urlopen(f"https://{host}:20000{path}", timeout=60, context=context) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def world(s3_server: S3Server) -> Iterator[World]:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    bucket = s3_server.make_bucket()
    digests = {}
    for number in range(40):
        data = os.urandom(60_000) if number else os.urandom(9 << 20)
        name = f"{number:03}.bin"
        s3_server.put(bucket, f"train/imagenet/{name}", data)
        digests[name] = hashlib.sha256(data).hexdigest()
    port = int(s3_server.endpoint.rpartition(":")[2])
    # Not below /tmp, which containers hide with a directory of their own; short, for the paths of sockets.
    with (
        tempfile.TemporaryDirectory(prefix="al-k8s-", dir="/var/tmp") as made,
        start_cluster(Path(made), 2) as cluster,
        cluster.network.forwarded(port) as forwarded,
    ):
        keys = {"access": s3_server.access_key, "secret": s3_server.secret_key, "token": TOKEN}
        encoded = {name: base64.b64encode(key.encode()).decode() for name, key in keys.items()}
        cluster.objects.secrets["s3"] = {"data": encoded}
        cluster.objects.secrets["token"] = {"data": {"token": encoded["token"]}}
        settings = [
            f"mounts[0].uri=s3://{bucket}/train",
            f"mounts[0].options.endpoint=http://{cluster.network.address}:{forwarded}",
            f"mounts[1].uri=s3://{bucket}/ckpt",
            f"mounts[1].options.endpoint=http://{cluster.network.address}:{forwarded}",
        ]
        yield World(cluster, settings, digests, s3_server, bucket)


def test_a_training_pod_may_come_before_everything(world: World) -> None:
    """It sees the mount when that comes."""
    world.trainings.append(Training(world.cluster, world.cluster.nodes[0], world.digests))
    wait_until(lambda: world.trainings[0].pod.phase == "Running", "the pod running")
    assert world.trainings[0].said == []


def test_install(world: World) -> None:
    """The hooks mount and load; nodes get their pods when they are labelled."""
    begun = time.monotonic()
    for node in world.cluster.nodes:
        world.cluster.label(node, **{"alluxio-like/node": "true"})
    world.cluster.install(world.render())
    world.wait_serving()
    print(f"installed in {time.monotonic() - begun:.0f} s")  # noqa: T201
    assert [mount["path"] for mount in world.call("master", "alluxio-like", "mounts")] == ["/", "/ckpt"]
    jobs = world.call("master", "cache", "jobs")
    assert [job["state"] for job in jobs] == ["done"]
    status = world.call("master", "cache", "status", "/imagenet")
    assert status["cached_files"] == len(world.digests), status
    for node in world.cluster.nodes:
        assert node.space.list_mounts() == [f"{node.space.files}{MOUNTS}/data"]


def test_training_pods_read_on_both_nodes(world: World) -> None:
    world.trainings.append(Training(world.cluster, world.cluster.nodes[1], world.digests))
    for training in world.trainings:
        training.wait_rounds()
    assert world.trainings[0].said[0] == "mounted"


def test_users_and_capabilities_are_those_of_the_chart(world: World) -> None:
    wanted = {
        "master": (10001, 0),
        "worker": (10001, 0),
        "fuse": (0, sum(1 << bit for bit in CAPABILITIES.values())),
    }
    for component, (uid, capabilities) in wanted.items():
        for pid in world.cluster.get_pod(component, world.cluster.nodes[0]).containers[component].list_pids():
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
            assert int(status["Uid"].split()[0]) == uid, component
            assert int(status["CapEff"], 16) == capabilities, component
            assert int(status["CapBnd"], 16) == capabilities, component
    fuse = world.cluster.get_pod("fuse", world.cluster.nodes[0]).containers["fuse"]
    assert fuse.enter("test", "-e", "/dev/fuse", check=False).returncode == 1
    token = (
        world.cluster.get_pod("worker", world.cluster.nodes[0])
        .containers["worker"]
        .enter("stat", "-c", "%U:%g %a", "/etc/alluxio-like/token/token")
    )
    assert token.stdout.split() == ["root:10001", "440"]


def test_secrets_are_in_no_argument(world: World) -> None:
    for pod in world.cluster.list_pods():
        for container in pod.containers.values():
            for pid in container.list_pids():
                with contextlib.suppress(OSError):  # one of a probe has ended
                    said = Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
                    assert not [secret for secret in world.secrets if secret in said], (pod.name, pid)


def test_the_kernel_reads_cache_files_by_itself(world: World) -> None:
    """So the capabilities are enough, and the FUSE pod reaches the worker's cache."""
    session = world.ask_holder(world.cluster.nodes[0])["facts"]["session"]
    if "passthrough" not in session:
        pytest.skip(f"this kernel has no passthrough: {session}")
    training = world.trainings[0].pod.containers["training"]
    paths = [f"/alluxio/data/imagenet/{name}" for name in world.digests]
    code = "import os, sys; print({os.getxattr(p, 'user.alluxio_like.passthrough').decode() for p in sys.argv[1:]})"
    assert training.enter("python3", "-c", code, *paths).stdout == "{'passthrough'}\n"


@pytest.mark.parametrize("example", ["hostpath", "pvc", "init-container", "sdk"])
def test_each_way_to_give_data_to_pods(world: World, example: str) -> None:
    """The documented examples, as they stand: on the other node than the master's, with what the store holds."""
    objects = parse((ROOT / f"deploy/examples/{example}.yaml").read_text())
    said = world.cluster.run_all(objects, world.cluster.nodes[1])
    total = (9 << 20) + 60_000 * (len(world.digests) - 1)
    assert said == f"{len(world.digests)} files, {total} bytes\n"


def test_a_pod_whose_data_cannot_be_loaded_does_not_start(world: World) -> None:
    (job,) = parse((ROOT / "deploy/examples/init-container.yaml").read_text())
    init = job["spec"]["template"]["spec"]["initContainers"][0]
    init["command"][init["command"].index("/imagenet")] = "/no-such-set"
    with pytest.raises(AssertionError, match="no-such-set"):
        world.cluster.run_job(job, node=world.cluster.nodes[1])


@pytest.mark.parametrize("component", ["fuse", "worker", "holder", "master"])
def test_a_container_that_is_killed_is_not_noticed(world: World, component: str) -> None:
    node = world.cluster.nodes[0]
    pod = world.cluster.get_pod(component, node)
    restarts = pod.restarts
    pod.containers[component].signal(signal.SIGKILL)
    wait_until(lambda: pod.restarts > restarts, "the container started again")
    wait_until(lambda: pod.ready, lambda: f"{pod.name} ready: {node.log(pod.name)[-2000:]}")
    world.wait_serving()
    for training in world.trainings:
        training.wait_rounds()


def test_a_daemon_that_is_killed_is_followed_by_the_one_on_standby(world: World) -> None:
    node = world.cluster.nodes[0]
    restarts = world.cluster.get_pod("fuse", node).restarts
    for _ in range(2):
        serving = world.ask_holder(node)
        inside = world.cluster.get_pod("holder", node).containers["holder"]
        inside.enter("sh", "-c", f"kill -9 {serving['daemon_pid']}")
        wait_until(lambda known=serving["daemon_pid"]: world.ask_holder(node)["daemon_pid"] not in {0, known}, "another daemon")
        world.trainings[0].wait_rounds()
    assert world.cluster.get_pod("fuse", node).restarts == restarts


def test_fuse_pods_are_replaced_under_reading_pods(world: World) -> None:
    """The holder stays; no read fails, and none waits for long."""
    holders = {pod.uid for pod in world.cluster.list_pods("holder")}
    before = {pod.uid for pod in world.cluster.list_pods("fuse")}
    world.cluster.install(world.render("fuse.seeProcesses=false"))
    world.wait_serving()
    assert {pod.uid for pod in world.cluster.list_pods("holder")} == holders
    assert not {pod.uid for pod in world.cluster.list_pods("fuse")} & before
    for node, training in zip(world.cluster.nodes, world.trainings, strict=True):
        daemon = world.ask_holder(node)["daemon_pid"]
        fuse = world.cluster.get_pod("fuse", node).containers["fuse"]
        lines = []
        for pid in fuse.list_pids():
            with contextlib.suppress(OSError):  # one of a probe has ended
                lines.append(Path(f"/proc/{pid}/status").read_text().partition("NSpid:")[2].splitlines()[0])
        assert str(daemon) in {line.split()[-1] for line in lines}
        training.wait_rounds()
        print(f"longest read so far: {training.worst_s} s")  # noqa: T201


def test_workers_are_replaced_and_keep_their_caches(world: World) -> None:
    world.cluster.install(world.render("fuse.seeProcesses=false", "config.worker.scrub_period_s=86400"))
    world.wait_serving()
    for training in world.trainings:
        training.wait_rounds()
    assert world.count_store_requests() == 0
    # What a worker holds is known once it has reported, which is after it serves.
    count = len(world.digests)
    wait_until(lambda: world.call("master", "cache", "status", "/imagenet")["cached_files"] == count, "all is cached still")


def test_a_holder_is_replaced_by_hand(world: World) -> None:
    """The mount stays, and so does the daemon that serves it."""
    node = world.cluster.nodes[0]
    mounts, daemon = node.space.list_mounts(), world.ask_holder(node)["daemon_pid"]
    pod = world.cluster.replace_deleted(world.cluster.get_pod("holder", node))
    wait_until(lambda: pod.ready, "the next holder")
    wait_until(lambda: world.ask_holder(node).get("state") == "serving", "its mount")
    assert node.space.list_mounts() == mounts
    assert world.ask_holder(node)["daemon_pid"] == daemon
    world.trainings[0].wait_rounds()
    world.ask_holder(node)
    world.cluster.get_pod("holder", node).containers["holder"].enter("sh", "-c", f"kill -9 {daemon}")
    world.trainings[0].wait_rounds()


def test_a_node_that_is_shut_down_ends_in_time_and_leaves_nothing(world: World) -> None:
    """All its pods are told at once; the other node reads on. What was written on it and did not reach the store yet does so."""
    node = world.cluster.nodes[1]
    training = world.trainings.pop()
    assert world.cluster.run_all([make_writer("/alluxio/data/ckpt/step-0")], node) == "written\n"
    wait_until(lambda: world.has_object("ckpt/step-0"), "the first checkpoint in the store")
    # No more may wait than goes in the time to drain, at the speed measured.
    speed, limit = (world.read_metric(node, name) for name in ("upload_bytes_per_second", "unpersisted_limit_bytes"))
    assert speed > 0
    assert limit == pytest.approx(60 * speed, rel=0.01)
    world.cluster.network.stall()
    assert world.cluster.run_all([make_writer("/alluxio/data/ckpt/step-100")], node) == "written\n"
    begun = time.monotonic()
    ended = world.cluster.list_pods(node=node)
    for pod in ended:
        pod.delete()
    wait_until(lambda: "uploading what was written" in node.log("al-alluxio-like-worker"), "the worker draining")
    assert not world.has_object("ckpt/step-100")
    world.cluster.network.resume()
    for pod in ended:
        pod.join()
    seconds = time.monotonic() - begun
    print(f"shut down in {seconds:.1f} s")  # noqa: T201
    assert seconds < max(pod.spec["terminationGracePeriodSeconds"] for pod in ended), "it was killed in the end"
    assert world.store.get(world.bucket, "ckpt/step-100") == b"x" * 3_000_000
    assert not [line for line in training.said if line.startswith("WRONG")]
    assert node.space.list_mounts() == []
    assert node.space.list_processes() == []
    gone = {pod.address for pod in ended}
    workers = world.call("master", "alluxio-like", "workers")["workers"]
    assert [worker["live"] for worker in workers if worker["address"].partition(":")[0] not in gone] == [True]
    assert not any(worker["live"] for worker in workers if worker["address"].partition(":")[0] in gone)
    world.trainings[0].wait_rounds()


def test_uninstall_leaves_nothing(world: World) -> None:
    """A training pod that still has files open cannot keep the mount on the node."""
    node = world.cluster.nodes[0]
    begun = time.monotonic()
    world.cluster.uninstall()
    print(f"uninstalled in {time.monotonic() - begun:.1f} s")  # noqa: T201
    assert node.space.list_mounts() == []
    pod = world.trainings[0].pod
    pod.delete()
    pod.join()
    assert node.space.list_processes() == []
    assert [str(file) for file in Path(f"{node.space.files}/run").rglob("*") if not file.is_dir()] == []


def test_secrets_are_in_no_log(world: World) -> None:
    """Of all that has run here."""
    logs = [file for node in world.cluster.nodes for file in (node.directory / "logs").iterdir()]
    for component in ("master", "worker", "fuse", "holder", "mounts", "preload-imagenet", "warm", "training"):
        assert any(file.stem.endswith(f"-{component}") for file in logs), component
    for file in logs:
        text = file.read_text(errors="replace")
        assert not [secret for secret in world.secrets if secret in text], file.name
