"""What a kubelet does for volumes of CSI: finds the plugin by what its registrar is told, and has it publish and take away.

Owns the paths of such volumes on a node. Blocks; called in a pod's own thread.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from alluxio_like.csi.v1 import csi_pb2, csi_pb2_grpc

if TYPE_CHECKING:
    from tests.kubernetes.kubelet import Node

REGISTRAR = "registrar"
"""The container of the plugin's pod that is a program of others; what it tells the kubelet is read from its arguments here."""
_REGISTRATION = "--kubelet-registration-path="


def _find_plugin(node: "Node") -> tuple[str, str]:
    """(socket, the kubelet's directory) as paths of the node. Raises LookupError while no plugin's pod is ready."""
    for pod in node.pods:
        for container in pod.spec["containers"] if pod.ready else ():
            for argument in container.get("args", []):
                if container["name"] == REGISTRAR and argument.startswith(_REGISTRATION):
                    socket = argument.removeprefix(_REGISTRATION)
                    return socket, str(Path(socket).parents[2])
    raise LookupError("no plugin has registered")


class CsiVolume:
    """One volume of a pod, published on its node."""

    def __init__(self, node: "Node", uid: str, namespace: str, volume: Mapping[str, Any]) -> None:
        self._node = node
        self._spec = volume["csi"]
        self._name = str(volume["name"])
        self._pod = {"csi.storage.k8s.io/pod.uid": uid, "csi.storage.k8s.io/pod.namespace": namespace}
        self._uid = uid
        self._handle = self._spec.get("volumeHandle", f"csi-{uid}-{self._name}")
        self._target = ""
        self.failures: list[str] = []
        """What the plugin has said each time it could not, as in the pod's events."""

    def publish(self, give_up: Callable[[float], bool]) -> Path:
        """Have it published, again until it is; where it is on the node. Raises InterruptedError once `give_up`, which waits as
        long as it is told, says so."""
        while True:
            try:
                socket, kubelet = _find_plugin(self._node)
                self._target = f"{kubelet}/pods/{self._uid}/volumes/kubernetes.io~csi/{self._name}/mount"
                place = Path(f"{self._node.space.files}{self._target}")
                # The target itself is the plugin's to make.
                place.parent.mkdir(parents=True, exist_ok=True)
                self._call(socket, "NodePublishVolume", self._make_request())
                return place
            except LookupError as error:
                self.failures.append(str(error))
            except grpc.RpcError as error:
                self.failures.append(str(error.details()))
            if give_up(0.2):
                raise InterruptedError(self.failures[-1])

    def unpublish(self) -> None:
        """Have it taken away, if it was ever asked for."""
        if self._target:
            socket, _ = _find_plugin(self._node)
            self._call(
                socket,
                "NodeUnpublishVolume",
                csi_pb2.NodeUnpublishVolumeRequest(volume_id=self._handle, target_path=self._target),
            )

    def _make_request(self) -> csi_pb2.NodePublishVolumeRequest:
        inline = {} if "volumeHandle" in self._spec else {"csi.storage.k8s.io/ephemeral": "true"}
        modes = csi_pb2.VolumeCapability.AccessMode
        return csi_pb2.NodePublishVolumeRequest(
            volume_id=self._handle,
            target_path=self._target,
            readonly=bool(self._spec.get("readOnly")),
            volume_context={**self._spec.get("volumeAttributes", {}), **self._pod, **inline},
            volume_capability=csi_pb2.VolumeCapability(
                mount=csi_pb2.VolumeCapability.MountVolume(),
                access_mode=modes(mode=modes.SINGLE_NODE_WRITER if inline else modes.MULTI_NODE_READER_ONLY),
            ),
        )

    def _call(self, socket: str, name: str, request: Any) -> None:
        make: Any = csi_pb2_grpc
        with grpc.insecure_channel(f"unix:{self._node.space.files}{socket}") as channel:
            getattr(make.NodeStub(channel), name)(request, timeout=60)
