"""One real Kubernetes on this machine: etcd, API server, controllers, scheduler, kubelet, kube-proxy and containerd as processes.

Owns their namespaces (a network, mounts and processes of their own, so that nothing of this machine's is touched, but for cgroups
of the kubelet below `kubepods`, which it removes), their files below one directory, and their order. The store is reached at the
network's own address. Needs root. One thread calls it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.kubernetes.real.keys import Keys
from tests.kubernetes.real.programs import KUBERNETES, get_packages, make_environment
from tests.kubernetes.spaces import Network, NodeSpace, run
from tests.servers.tools import HELM

NAME = "gpu-1"
PAUSE = "registry.k8s.io/pause:3.10"
REGISTRAR = "registry.k8s.io/sig-storage/csi-node-driver-registrar:v2.16.0"
START_S = 120.0
_SERVICES = "10.96.0.0/16"
_DNS = "10.96.0.10"
_PODS = "10.200.0.0/24"

CONTAINERD = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Where this machine is a container itself, it may not take a process out of the kernel's choice.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{packages}/usr/lib/cni"
conf_dir = "{directory}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
"""
CNI = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": _PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": "/run/cni",
            },
        },
        {"type": "loopback"},
    ],
}


def wait_for(what: str, condition: Callable[[], Any], limit_s: float = START_S) -> Any:
    """What a condition gives once it is true."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {limit_s:g} s: {what}")
        time.sleep(0.5)
    return found


class RealNode:
    """A cluster of one node, which begins when it is made. `address`: where pods reach what is on this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = Network()
        self.address = self.network.address
        self.space = NodeSpace(directory / "host")
        self.packages = get_packages()
        self.kubernetes = KUBERNETES.install()
        self._environment = make_environment(self.packages)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (directory / "logs").mkdir()
        self.keys = Keys(directory / "keys", self.address)
        self._url = f"https://{self.address}:6443"
        self.kubeconfig = self.keys.write_kubeconfig(self._url)
        try:
            self._prepare()
            self._start_all()
        except BaseException:
            self.close()
            raise

    # What users do

    def kubectl(self, *words: str, text: str = "", check: bool = True, limit_s: float = 300) -> str:
        """A command of kubectl's; what it prints. Raises RuntimeError with what it said."""
        return self._call([str(self.kubernetes), "kubectl", *words], text, check, limit_s)

    def helm(self, *words: str, limit_s: float = 600) -> str:
        """A command of helm's."""
        return self._call([str(HELM.install()), *words], "", True, limit_s)

    def get(self, *words: str) -> Any:
        """Objects, as `kubectl get … -o json` shows them."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, text: str) -> None:
        self.kubectl("apply", "-f", "-", text=text)

    def load(self, archive: Path) -> None:
        """Bring an image, as if it had been pulled."""
        self._call(["ctr", "-n", "k8s.io", "images", "import", str(archive)], "", True, 300)

    def read_log(self, name: str) -> str:
        """What a part of the node has said."""
        return (self.directory / "logs" / f"{name}.log").read_text(errors="replace")

    # Its parts

    def _prefix(self) -> list[str]:
        return [*self.space.prefix(), f"--net=/proc/{self.network.pid}/ns/net"]

    def _call(self, command: Sequence[str], text: str, check: bool, limit_s: float) -> str:
        environment = {**self._environment, "KUBECONFIG": str(self.kubeconfig), "HELM_CACHE_HOME": f"{self.directory}/helm"}
        done = subprocess.run(
            [*self._prefix(), *command], input=text, capture_output=True, text=True, check=False, timeout=limit_s, env=environment
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command[1:])}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def start(self, name: str, *command: str | Path) -> None:
        """A process of the node, until the node is closed. What it says is `read_log(name)`."""
        with open(self.directory / "logs" / f"{name}.log", "ab") as log:
            words = [*self._prefix(), *map(str, command)]
            self._processes[name] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def _prepare(self) -> None:
        """Directories that a node has for itself, shared as an init system shares them, and its network."""
        for name in ("var/lib", "var/log", "run"):
            source = self.directory / "own" / name
            source.mkdir(parents=True)
            self.space.enter("sh", "-c", 'mount --bind "$1" "$2" && mount --make-rshared "$2"', "sh", source, f"/{name}")
        lines = [f"addr add {_DNS}/32 dev lo"]
        run("nsenter", f"--net=/proc/{self.network.pid}/ns/net", "ip", "-batch", "-", text="\n".join(lines))
        self._call(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], "", False, 10)
        (self.directory / "cni").mkdir()
        (self.directory / "cni" / "10-pods.conflist").write_text(json.dumps(CNI))
        config = CONTAINERD.format(pause=PAUSE, packages=self.packages, directory=self.directory)
        (self.directory / "containerd.toml").write_text(config)
        (self.directory / "resolv.conf").write_text("")
        kubelet = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": f"{self.keys.place}/ca.crt"},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "clusterDNS": [_DNS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "failCgroupV1": False,
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": False,
            "makeIPTablesUtilChains": False,
            "resolvConf": f"{self.directory}/resolv.conf",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        }
        (self.directory / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "hostnameOverride": NAME,
            "clientConnection": {"kubeconfig": str(self.kubeconfig)},
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "nftables": {"masqueradeAll": True},
        }
        (self.directory / "proxy.yaml").write_text(yaml.safe_dump(proxy))

    def _start_all(self) -> None:
        place, kubeconfig, made = self.keys.place, f"--kubeconfig={self.kubeconfig}", "--cert-dir=/run/kubernetes"
        self.start("etcd", "etcd", "--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--listen-peer-urls=http://127.0.0.1:2380")
        self.start("containerd", "containerd", "--config", self.directory / "containerd.toml")
        self.start(
            "kube-apiserver", self.kubernetes, "kube-apiserver", made, "--etcd-servers=http://127.0.0.1:2379",
            f"--service-cluster-ip-range={_SERVICES}", f"--advertise-address={self.address}",
            f"--tls-cert-file={place}/apiserver.crt", f"--tls-private-key-file={place}/apiserver.key",
            f"--client-ca-file={place}/ca.crt", f"--service-account-key-file={place}/accounts.pub",
            f"--service-account-signing-key-file={place}/accounts.key", "--service-account-issuer=https://kubernetes.default.svc",
            f"--kubelet-client-certificate={place}/admin.crt", f"--kubelet-client-key={place}/admin.key",
            "--authorization-mode=RBAC", "--allow-privileged=true", "--kubelet-preferred-address-types=InternalIP",
        )  # fmt: skip
        wait_for("the API server", lambda: self.kubectl("get", "--raw=/readyz", check=False) == "ok")
        self.start(
            "kube-controller-manager", self.kubernetes, "kube-controller-manager", made, kubeconfig, "--leader-elect=false",
            f"--service-account-private-key-file={place}/accounts.key", f"--root-ca-file={place}/ca.crt",
        )  # fmt: skip
        self.start("kube-scheduler", self.kubernetes, "kube-scheduler", made, kubeconfig, "--leader-elect=false")
        self.start("kube-proxy", self.kubernetes, "kube-proxy", f"--config={self.directory}/proxy.yaml")
        self.start("names", sys.executable, Path(__file__).with_name("names.py"), _DNS, self._url, place)
        wait_for("containerd", lambda: "Server:" in self._call(["ctr", "version"], "", False, 30))
        self.start(
            "kubelet", self.kubernetes, "kubelet", kubeconfig, f"--config={self.directory}/kubelet.yaml",
            f"--hostname-override={NAME}", f"--node-ip={self.address}",
        )  # fmt: skip
        ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        wait_for("the node", lambda: self.kubectl("get", "node", NAME, "-o", ready, check=False) == "True")

    def close(self) -> None:
        """End all of it; with the node's processes its containers go."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        self.space.close()
        for process in self._processes.values():
            process.kill()
            process.wait(60)
        self.network.close()
        for hierarchy in Path("/sys/fs/cgroup").iterdir():
            _remove_groups(hierarchy / "kubepods")


def _remove_groups(top: Path) -> None:
    """Cgroups that nobody is in any more, from below."""
    if top.is_dir():
        for place, _, _ in sorted(os.walk(top), key=lambda one: -len(one[0])):
            with contextlib.suppress(OSError):
                Path(place).rmdir()


@contextlib.contextmanager
def start_node(directory: Path) -> Iterator[RealNode]:
    """A cluster for as long as the context lasts."""
    node = RealNode(directory)
    try:
        yield node
    finally:
        node.close()
