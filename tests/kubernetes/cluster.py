"""A cluster in miniature: what the API server and the controllers do with a rendered chart, for a few nodes.

Owns which pods there are: of DaemonSets (rolling, with surge, or on delete), of the StatefulSet, of Jobs and hooks, in the order
in which Helm and Kubernetes bring them about; Services by address. A node's pods are kubelet.py's. One thread calls it.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kubernetes.kubelet import Node, Objects, Pod
from tests.kubernetes.spaces import Network

WAIT_S = 90.0
Object = dict[str, Any]


def wait_until(condition: Callable[[], Any], what: str | Callable[[], str], limit_s: float = WAIT_S) -> Any:
    """What a condition gives once it is true."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.05)
    return found


class Cluster:
    """Nodes with what was applied to them."""

    def __init__(self, directory: Path, nodes: int, namespace: str = "storage") -> None:
        self.namespace = namespace
        self.network = Network()
        self.objects = Objects()
        self.nodes = [Node(f"node-{number}", directory / f"node-{number}", self.network, {}) for number in range(nodes)]
        self._directory = directory
        self._applied: dict[tuple[str, str], Object] = {}
        self._addresses = itertools.count(1)
        self._names = itertools.count()

    # What there is

    def list_pods(self, component: str = "", node: Node | None = None) -> list[Pod]:
        """Pods that are not gone, by component."""
        return [
            pod
            for one in self.nodes
            for pod in one.pods
            if not pod.is_gone
            and (node is None or one is node)
            and component in {"", pod.labels.get("app.kubernetes.io/component")}
        ]

    def get_pod(self, component: str, node: Node | None = None) -> Pod:
        """The one pod of a component (on a node)."""
        (pod,) = self.list_pods(component, node)
        return pod

    # Helm

    def install(self, objects: Sequence[Object], *, wait: bool = False) -> None:
        """Bring the cluster to what was rendered: `helm install`, or `helm upgrade`; waits for hooks, and for pods, before
        hooks begin, where that is asked for (`--wait`)."""
        hooks = [one for one in objects if "helm.sh/hook" in one["metadata"].get("annotations", {})]
        wanted = {(one["kind"], one["metadata"]["name"]): one for one in objects if one not in hooks}
        for key in [key for key in self._applied if key not in wanted]:
            self._remove(key)
        order = {"ConfigMap": 0, "Secret": 0, "Service": 1}
        for key, one in sorted(wanted.items(), key=lambda item: order.get(item[0][0], 2)):
            self._applied[key] = one
            self._apply(one)
        if wait:
            for pod in self.list_pods():
                wait_until(
                    lambda pod=pod: not pod.owner or pod.ready, lambda pod=pod: f"{pod.name}: {pod.node.log(pod.name)[-3000:]}"
                )
        for hook in sorted(hooks, key=lambda one: int(one["metadata"]["annotations"]["helm.sh/hook-weight"])):
            self.run_job(hook)

    def uninstall(self) -> None:
        """`helm uninstall`: everything is told to end at the same time; waits until all pods are gone."""
        pods = [pod for key in list(self._applied) for pod in self._remove(key)]
        for pod in pods:
            pod.join()

    def run_all(self, objects: Sequence[Object], node: Node) -> str:
        """Apply somebody else's objects, with one Job among them, on a node; what its last container said."""
        jobs = [one for one in objects if one["kind"] == "Job"]
        for one in objects:
            if one not in jobs:
                self._apply(one)
        (job,) = jobs
        pod = self.run_job(job, node=node)
        last = job["spec"]["template"]["spec"]["containers"][-1]["name"]
        return node.log(pod.name, last)

    def run_job(self, job: Object, limit_s: float = WAIT_S, *, node: Node | None = None) -> Pod:
        """Run a Job to its end. Raises AssertionError when it fails."""
        pod = self._start(node or self.nodes[0], f"{job['metadata']['name']}-{next(self._names)}", job["spec"]["template"], "Job")
        wait_until(
            lambda: pod.phase in {"Succeeded", "Failed"} or pod.phase.startswith("Failed"),
            lambda: f"{pod.name}: {pod.node.log(pod.name)[-3000:]}",
            limit_s,
        )
        pod.join()
        assert pod.phase == "Succeeded", f"{pod.name} {pod.phase}: {pod.node.log(pod.name)[-3000:]}"
        return pod

    def run_pod(self, node: Node, pod: Object) -> Pod:
        """Start a pod of somebody else on a node."""
        return self._start(node, f"{pod['metadata']['name']}-{next(self._names)}", pod, "")

    def wait_ready(self, component: str, count: int, limit_s: float = WAIT_S) -> list[Pod]:
        """So many pods of a component are there, and all of them are ready."""

        def look() -> list[Pod]:
            pods = self.list_pods(component)
            return pods if len(pods) == count and all(pod.ready for pod in pods) else []

        def say() -> str:
            pods = self.list_pods(component)
            logs = "\n".join(pod.node.log(pod.name)[-3000:] for pod in pods)
            return f"{[(pod.name, pod.phase, pod.ready) for pod in pods]} instead of {count}\n{logs}"

        return list(wait_until(look, say, limit_s))

    # Controllers

    def _apply(self, one: Object) -> None:
        name = one["metadata"]["name"]
        match one["kind"]:
            case "ConfigMap":
                self.objects.config_maps[name] = one
            case "Secret":
                self.objects.secrets.setdefault(name, one)
            case "Service" if one["spec"].get("clusterIP") != "None":
                names = f"{name}.{self.namespace}.svc {name}.{self.namespace}.svc.cluster.local {name}"
                if names not in self.objects.hosts:
                    self.objects.hosts[names] = f"10.244.250.{next(self._addresses)}"
            case "PersistentVolume":
                source = one["spec"].get("csi") or one["spec"]["hostPath"]["path"]
                self.objects.claims[one["spec"]["claimRef"]["name"]] = source
            case "PersistentVolumeClaim":
                assert name in self.objects.claims, f"no volume for the claim {name}"
            case "StatefulSet":
                self._apply_stateful_set(one)
            case "DaemonSet":
                self._apply_daemon_set(one)

    def _apply_stateful_set(self, one: Object) -> None:
        name, template = one["metadata"]["name"], one["spec"]["template"]
        pods = [pod for pod in self.list_pods() if pod.owner == name]
        if pods and pods[0].template == template:
            return
        for pod in pods:
            pod.delete()
            pod.join()
        for claim in one["spec"].get("volumeClaimTemplates", []):
            directory = self._directory / "claims" / f"{claim['metadata']['name']}-{name}-0"
            directory.mkdir(parents=True, exist_ok=True)
            self.objects.claims[directory.name] = directory
            volume = {"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": directory.name}}
            template = {**template, "spec": {**template["spec"], "volumes": [*template["spec"]["volumes"], volume]}}
        pod = self._start(self.nodes[0], f"{name}-0", template, name)
        pod.template = one["spec"]["template"]

    def _apply_daemon_set(self, one: Object) -> None:
        name, spec = one["metadata"]["name"], one["spec"]
        strategy = spec["updateStrategy"]
        for node in self.nodes:
            there = [pod for pod in self.list_pods(node=node) if pod.owner == name]
            fits = spec["template"]["spec"].get("nodeSelector", {}).items() <= node.labels.items()
            old = [pod for pod in there if pod.template != spec["template"]]
            if not fits:
                for pod in there:
                    pod.delete()
            elif not there:
                self._start(node, f"{name}-{next(self._names)}", spec["template"], name)
            elif old and strategy["type"] == "RollingUpdate":
                self._replace(node, name, spec["template"], old[0], surge=bool(strategy["rollingUpdate"].get("maxSurge")))

    def _replace(self, node: Node, name: str, template: Object, old: Pod, *, surge: bool) -> None:
        """One node's turn in a rolling update: with surge the new pod first, until it is ready."""
        if not surge:
            old.delete()
            old.join()
        pod = self._start(node, f"{name}-{next(self._names)}", template, name)
        wait_until(lambda: pod.ready, lambda: f"{pod.name} ready: {pod.phase} {node.log(pod.name)[-3000:]}")
        if surge:
            old.delete()
            old.join()

    def reschedule(self, pod: Pod, node: Node) -> Pod:
        """The StatefulSet's pod is gone with its node: the controller makes it again, and the scheduler puts it elsewhere. What
        it had on a volume is not taken along."""
        return self._start(node, pod.name, pod.template, pod.owner)

    def replace_deleted(self, pod: Pod) -> Pod:
        """A DaemonSet's pod was deleted (and waited for): the controller makes another."""
        name = pod.owner
        template = self._applied["DaemonSet", name]["spec"]["template"]
        pod.delete()
        pod.join()
        return self._start(pod.node, f"{name}-{next(self._names)}", template, name)

    def label(self, node: Node, **labels: str) -> None:
        """Labels of a node, and what DaemonSets make of them."""
        node.labels.update(labels)
        for (kind, _), one in list(self._applied.items()):
            if kind == "DaemonSet":
                self._apply_daemon_set(one)

    def _remove(self, key: tuple[str, str]) -> list[Pod]:
        del self._applied[key]
        pods = [pod for pod in self.list_pods() if pod.owner == key[1] and key[0] in {"DaemonSet", "StatefulSet"}]
        for pod in pods:
            pod.delete()
        return pods

    def _start(self, node: Node, name: str, template: Mapping[str, Any], owner: str) -> Pod:
        pod = Pod(node, name, template, self.objects, owner)
        for one in self._applied.values():
            if one["kind"] != "Service" or one["spec"].get("clusterIP") == "None":
                continue
            if one["spec"]["selector"].items() <= pod.labels.items():
                address = next(a for names, a in self.objects.hosts.items() if one["metadata"]["name"] in names.split())
                self.network.give(pod.network_pid, address)
                self.network.forget([other.network_pid for other in self.list_pods() if other is not pod])
        pod.start()
        return pod

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self.network.close()


@contextlib.contextmanager
def start_cluster(directory: Path, nodes: int) -> Iterator[Cluster]:
    """A cluster for as long as the context lasts."""
    cluster = Cluster(directory, nodes)
    try:
        yield cluster
    finally:
        cluster.close()
