"""A kubelet in miniature: runs the pods of one node as their specifications say, probes them, and starts again what ends.

Owns the pods of its node: volumes, network, init containers, containers, probes, restarts with their pauses, and the end with its
grace period. Where a field is not understood that matters, it says so instead of leaving it out. A thread for each pod.
"""

import base64
import http.client
import itertools
import os
import ssl
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kubernetes.containers import Container, Mount, Wanted, remove
from tests.kubernetes.spaces import Anchor, Network, NodeSpace
from tests.kubernetes.volumes import REGISTRAR, CsiVolume

LOOK_S = 0.1
FIRST_BACKOFF_S = 10.0
_KNOWN_POD = {
    "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "priorityClassName", "hostPID", "securityContext",
    "terminationGracePeriodSeconds", "initContainers", "containers", "nodeSelector", "tolerations", "affinity", "volumes",
    "restartPolicy", "topologySpreadConstraints", "imagePullSecrets",
}  # fmt: skip
_KNOWN_CONTAINER = {
    "name", "image", "imagePullPolicy", "command", "args", "env", "ports", "securityContext", "startupProbe", "readinessProbe",
    "livenessProbe", "resources", "volumeMounts",
}  # fmt: skip


@dataclass(slots=True)
class Objects:
    """What pods refer to by name: ConfigMaps, Secrets (as in YAML), what claims are of, addresses by the names of Services."""

    config_maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, Path | str | dict[str, Any]] = field(default_factory=dict)
    """A directory that is its own, or a path of whatever node the pod is on."""
    hosts: dict[str, str] = field(default_factory=dict)


class Node:
    """One node."""

    def __init__(self, name: str, directory: Path, network: Network, labels: Mapping[str, str]) -> None:
        self.name = name
        self.labels = dict(labels)
        self.network = network
        self.directory = directory
        self.space = NodeSpace(directory / "files")
        (directory / "logs").mkdir()
        # Threads of pods come and go, and what the kernel ends with its parent must not end with them.
        self.pods: list[Pod] = []

    def log(self, pod: str, container: str = "") -> str:
        """What a pod's containers have said."""
        files = sorted((self.directory / "logs").glob(f"{pod}*{container}.log"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def close(self) -> None:
        for pod in self.pods:
            pod.delete(0)
        for pod in self.pods:
            pod.join()
        self.space.close()


class Pod:
    """One pod, from when it is started until it is gone."""

    def __init__(self, node: Node, name: str, template: Mapping[str, Any], objects: Objects, owner: str = "") -> None:
        self.node, self.name, self.owner = node, name, owner
        self.template = template
        self.spec: dict[str, Any] = template["spec"]
        self.labels: dict[str, str] = template["metadata"].get("labels", {})
        self.uid = str(uuid.uuid4())
        self.address = ""
        self.phase = "Pending"
        self.ready = False
        self.restarts = 0
        self.containers: dict[str, Container] = {}
        self.csi_volumes: list[CsiVolume] = []
        self.network_pid = 0
        self._objects = objects
        self._directory = node.directory / "pods" / self.uid
        self._deleted = threading.Event()
        self._grace_s = float(self.spec.get("terminationGracePeriodSeconds", 30))
        self._numbers = itertools.count()
        _refuse_unknown(self.spec, _KNOWN_POD, name)
        # It keeps the pod's network, as the pause container does; made here, since it ends with the thread that makes it.
        self._pause = Anchor("--net", "--ipc", "--uts")
        self.network_pid = self._pause.pid
        self.address = node.network.attach(self.network_pid)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        node.pods.append(self)

    def start(self) -> None:
        self._thread.start()

    def delete(self, grace_s: float | None = None) -> None:
        """Begin its end: SIGTERM to all its containers."""
        if grace_s is not None:
            self._grace_s = grace_s
        self._deleted.set()
        if not self._thread.is_alive() and self._thread.ident is None:
            self._thread.start()

    def join(self, limit_s: float = 120) -> None:
        """Wait until it is gone."""
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), f"{self.name} does not end"
        self._pause.close()

    @property
    def is_gone(self) -> bool:
        return self._thread.ident is not None and not self._thread.is_alive()

    # Its life

    def _run(self) -> None:
        try:
            self._live()
        except InterruptedError:
            # Told to end before it had its volumes.
            self.phase = "Failed"
        except Exception as error:
            self.phase = f"Failed: {type(error).__name__}: {error}"
            raise
        finally:
            self.ready = False
            self._end()

    def _live(self) -> None:
        volumes = {volume["name"]: self._make_volume(volume) for volume in self.spec.get("volumes", [])}
        policy = self.spec.get("restartPolicy", "Always")
        for spec in self.spec.get("initContainers", []):
            while (code := self._run_to_end(spec, volumes)) and policy != "Never" and not self._deleted.wait(1):
                self.restarts += 1
            if code or self._deleted.is_set():
                self.phase = "Failed"
                return
        kept = [_Kept(self, spec, volumes, policy) for spec in self.spec["containers"] if spec["name"] != REGISTRAR]
        self.phase = "Running"
        while not self._deleted.wait(LOOK_S):
            for one in kept:
                one.look()
            self.ready = all(one.ready for one in kept)
            codes = [one.code for one in kept]
            if None not in codes:
                self.phase = "Failed" if any(codes) else "Succeeded"
                return

    def _run_to_end(self, spec: Mapping[str, Any], volumes: Mapping[str, Path]) -> int:
        container = self.start_container(spec, volumes)
        while (code := container.poll()) is None and not self._deleted.wait(LOOK_S):
            pass
        return container.stop(self._grace_s) if code is None else code

    def _end(self) -> None:
        """SIGTERM to all at once, as long as the grace period allows; then everything of it is taken away."""
        threads = [threading.Thread(target=one.stop, args=(self._grace_s,)) for one in self.containers.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for volume in self.csi_volumes:
            volume.unpublish()
        remove(self.node.space, self._directory)
        if self._deleted.is_set() and not self.phase.startswith("Failed: "):
            self.phase = "Gone"

    # Containers

    def start_container(self, spec: Mapping[str, Any], volumes: Mapping[str, Path]) -> Container:
        _refuse_unknown(spec, _KNOWN_CONTAINER, self.name)
        mounts = []
        for mount in spec.get("volumeMounts", []):
            source = volumes[mount["name"]] / mount.get("subPath", "")
            place, mode = mount["mountPath"], mount.get("mountPropagation", "None")
            if mode == "Bidirectional" and not spec["securityContext"].get("privileged"):
                raise ValueError("Bidirectional mount propagation is available only to privileged containers")
            mounts.append(Mount(source, place, bool(mount.get("readOnly")), mode))
        environment = self._make_environment(spec)
        wanted = Wanted(
            spec["name"],
            [_expand(word, environment) for word in (*spec["command"], *spec.get("args", []))],
            environment,
            mounts,
            spec.get("securityContext", {"capabilities": {"drop": ["ALL"]}}),
            self.spec.get("securityContext", {}),
            bool(self.spec.get("hostPID")),
            self._objects.hosts,
        )
        directory = self._directory / f"{spec['name']}-{next(self._numbers)}"
        log = self.node.directory / "logs" / f"{self.name}-{self.uid[:4]}-{spec['name']}.log"
        container = Container(self.node.space, self.network_pid, wanted, directory, log)
        self.containers[spec["name"]] = container
        return container

    def _make_environment(self, spec: Mapping[str, Any]) -> dict[str, str]:
        made: dict[str, str] = {}
        for entry in spec.get("env", []):
            if "valueFrom" not in entry:
                value = _expand(str(entry.get("value", "")), made)
            elif "fieldRef" in entry["valueFrom"]:
                fields = {
                    "status.podIP": self.address,
                    "metadata.uid": self.uid,
                    "metadata.name": self.name,
                    "spec.nodeName": self.node.name,
                }
                value = fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            else:
                reference = entry["valueFrom"]["secretKeyRef"]
                value = _decode(self._objects.secrets[reference["name"]])[reference["key"]].decode()
            made[entry["name"]] = value
        return made

    def _make_volume(self, volume: Mapping[str, Any]) -> Path:
        """A volume's directory, as the kubelet would lay it."""
        group = self.spec.get("securityContext", {}).get("fsGroup")
        kind = next(name for name in volume if name != "name")
        match kind:
            case "hostPath":
                path = Path(f"{self.node.space.files}{volume['hostPath']['path']}")
                if volume["hostPath"].get("type") == "DirectoryOrCreate":
                    path.mkdir(parents=True, exist_ok=True)
                elif not path.is_dir():
                    raise ValueError(f"hostPath {path} is not a directory")
                return path
            case "csi":
                return self._publish(volume)
            case "persistentVolumeClaim":
                claimed = self._objects.claims[volume["persistentVolumeClaim"]["claimName"]]
                if isinstance(claimed, dict):
                    return self._publish({"name": volume["name"], "csi": claimed})
                if isinstance(claimed, str):
                    return self._make_volume({"name": volume["name"], "hostPath": {"path": claimed, "type": "DirectoryOrCreate"}})
                _give(claimed, group, 0o2775)
                return claimed
        path = self._directory / "volumes" / str(volume["name"])
        path.mkdir(parents=True)
        match kind:
            case "emptyDir":
                path.chmod(0o777)
                _give(path, group, 0o2777)
            case "configMap":
                texts = self._objects.config_maps[volume["configMap"]["name"]]["data"]
                self._fill(path, {key: text.encode() for key, text in texts.items()}, 0o644, None)
            case "secret":
                secret = volume["secret"]
                data = _decode(self._objects.secrets[secret["secretName"]])
                if "items" in secret:
                    data = {item["path"]: data[item["key"]] for item in secret["items"]}
                self._fill(path, data, secret.get("defaultMode", 0o644), group)
            case _:
                raise ValueError(f"a volume of kind {kind}")
        return path

    def _publish(self, volume: Mapping[str, Any]) -> Path:
        namespace = self.template["metadata"].get("namespace", "default")
        made = CsiVolume(self.node, self.uid, namespace, volume)
        self.csi_volumes.append(made)
        return made.publish(self._deleted.wait)

    @staticmethod
    def _fill(path: Path, files: Mapping[str, bytes], mode: int, group: int | None) -> None:
        for name, data in files.items():
            file = path / name
            file.write_bytes(data)
            file.chmod(mode)
            _give(file, group, mode | 0o040)


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """With $(NAME) replaced by what the environment has."""
    for name, value in environment.items():
        text = text.replace(f"$({name})", value)
    return text


class _Kept:
    """A container that is kept running, with its probes."""

    def __init__(self, pod: Pod, spec: Mapping[str, Any], volumes: Mapping[str, Path], policy: str) -> None:
        self._pod, self._spec, self._volumes, self._policy = pod, spec, volumes, policy
        self.code: int | None = None
        """Of one that is not started again."""
        self.ready = False
        self._backoff_s = 0.0
        self._start_s = 0.0
        self._begin()

    def _begin(self) -> None:
        self._container = self._pod.start_container(self._spec, self._volumes)
        self._probes = {
            name: _Probe(self._spec[name]) for name in ("startupProbe", "readinessProbe", "livenessProbe") if name in self._spec
        }

    def look(self) -> None:
        """Start it again where it has ended, once its pause is over; ask its probes that are due."""
        if self.code is not None:
            return
        code = self._container.poll()
        if code is None:
            self._ask()
            return
        self.ready = False
        if self._policy == "Never" or (self._policy == "OnFailure" and code == 0):
            self.code = code
            return
        if not self._start_s:
            self._start_s = time.monotonic() + self._backoff_s
        elif time.monotonic() >= self._start_s:
            self._backoff_s, self._start_s = max(FIRST_BACKOFF_S, 2 * self._backoff_s), 0.0
            self._pod.restarts += 1
            self._begin()

    def _ask(self) -> None:
        startup = self._probes.get("startupProbe")
        if startup is not None and not startup.ok:
            if not startup.ask(self._pod, self._container) and startup.has_failed:
                self._container.stop(10)
            return
        liveness, readiness = self._probes.get("livenessProbe"), self._probes.get("readinessProbe")
        if liveness is not None and not liveness.ask(self._pod, self._container) and liveness.has_failed:
            self._container.stop(10)
        self.ready = readiness is None or readiness.ask(self._pod, self._container)


class _Probe:
    """One probe: asked each period, and what it said last."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec
        self._next_s = time.monotonic() + spec.get("initialDelaySeconds", 0)
        self._failures = 0
        self.ok = False

    @property
    def has_failed(self) -> bool:
        return self._failures >= self._spec.get("failureThreshold", 3)

    def ask(self, pod: Pod, container: Container) -> bool:
        if time.monotonic() < self._next_s:
            return self.ok
        # Sooner than in a cluster, so that tests wait less; how often it may fail is as it stands.
        self._next_s = time.monotonic() + min(1.0, self._spec.get("periodSeconds", 10))
        good = self._call(pod, container)
        self._failures = 0 if good else self._failures + 1
        self.ok = good or (self.ok and not self.has_failed)
        return self.ok

    def _call(self, pod: Pod, container: Container) -> bool:
        if "exec" in self._spec:
            try:
                return container.enter(*self._spec["exec"]["command"], check=False).returncode == 0
            except (FileNotFoundError, ProcessLookupError):
                return False  # it has ended just now
        get = self._spec["httpGet"]
        spec = next(one for one in pod.spec["containers"] if pod.containers.get(one["name"]) is container)
        port = next(port["containerPort"] for port in spec["ports"] if port["name"] == get["port"])
        timeout_s = self._spec.get("timeoutSeconds", 1)

        def ask() -> bool:
            if get.get("scheme") == "HTTPS":
                context = ssl._create_unverified_context()
                connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                    pod.address, port, timeout=timeout_s, context=context
                )
            else:
                connection = http.client.HTTPConnection(pod.address, port, timeout=timeout_s)
            try:
                connection.request("GET", get["path"])
                return 200 <= connection.getresponse().status < 400
            except OSError:
                return False
            finally:
                connection.close()

        return pod.node.network.call(ask)


def _refuse_unknown(spec: Mapping[str, Any], known: set[str], name: str) -> None:
    if unknown := set(spec) - known:
        raise ValueError(f"{name}: not understood here: {sorted(unknown)}")


def _decode(secret: Mapping[str, Any]) -> dict[str, bytes]:
    data = {key: base64.b64decode(value) for key, value in secret.get("data", {}).items()}
    return data | {key: value.encode() for key, value in secret.get("stringData", {}).items()}


def _give(path: Path, group: int | None, mode: int) -> None:
    """To a group, as fsGroup says; else as it is."""
    if group is not None:
        os.chown(path, 0, group)
        path.chmod(mode)
