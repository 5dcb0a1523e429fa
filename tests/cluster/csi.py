"""A CSI node plugin for tests: the real process beside a real mount, and the kubelet's side of the socket."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from alluxio_like.csi.v1 import csi_pb2, csi_pb2_grpc
from tests.servers.net import wait_until
from tests.servers.stack import PROGRAMS

MODES = csi_pb2.VolumeCapability.AccessMode


class Plugin:
    """`alluxio-like csi`, started, killed and started again at one place."""

    def __init__(self, place: Path, mountpoint: Path, *options: str) -> None:
        self.place = place
        self.socket = place / "csi.sock"
        self._command = [str(PROGRAMS / "alluxio-like"), "csi", "--endpoint", f"unix://{self.socket}", "--node-id", "node-7"]
        self._command += ["--mountpoint", str(mountpoint), "--ready-file", str(place / "csi.ready"), "--set", "check_s=3"]
        self._command += options
        self._running = contextlib.ExitStack()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.place / "csi.log").read_text()

    def start(self) -> None:
        ready = self.place / "csi.ready"
        ready.unlink(missing_ok=True)
        with (self.place / "csi.log").open("ab") as log:
            process = self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until("the plugin is ready", lambda: ready.exists() or process.poll() is not None, timeout_s=60)
        assert process.poll() is None, self.log
        assert json.loads(ready.read_text())["socket"] == str(self.socket)

    def stop(self, number: int = signal.SIGTERM) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(60)

    @contextlib.contextmanager
    def connected(self) -> Iterator["Kubelet"]:
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            yield Kubelet(channel)


class Kubelet:
    """The calls that a kubelet makes."""

    def __init__(self, channel: grpc.Channel) -> None:
        make: Any = csi_pb2_grpc
        self.identity = make.IdentityStub(channel)
        self.node = make.NodeStub(channel)

    def publish(
        self,
        target: Path,
        *,
        volume: str = "v",
        mode: int = MODES.MULTI_NODE_READER_ONLY,
        readonly: bool = False,
        flags: tuple[str, ...] = (),
        **attributes: str,
    ) -> None:
        """NodePublishVolume; attributes with "/" in their names have two underscores there."""
        capability = csi_pb2.VolumeCapability(
            mount=csi_pb2.VolumeCapability.MountVolume(mount_flags=flags),
            access_mode=MODES(mode=mode),  # type: ignore[arg-type]
        )
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume, target_path=str(target), volume_capability=capability, readonly=readonly, volume_context=attributes
        )
        self.node.NodePublishVolume(request, timeout=60)

    def unpublish(self, target: Path, volume: str = "v") -> None:
        self.node.NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target)), timeout=60)

    def measure(self, place: Path) -> dict[int, Any]:
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id="v", volume_path=str(place))
        return {one.unit: one for one in self.node.NodeGetVolumeStats(request, timeout=60).usage}

    def is_ready(self) -> bool:
        return bool(self.identity.Probe(csi_pb2.ProbeRequest(), timeout=60).ready.value)


class Controller(csi_pb2_grpc.ControllerServicer):
    """Makes volumes that all show one directory; the least that csi-sanity's tests of nodes ask for."""

    def __init__(self, path: str) -> None:
        self._path = path

    def ControllerGetCapabilities(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        kinds = csi_pb2.ControllerServiceCapability.RPC.Type
        rpc = csi_pb2.ControllerServiceCapability.RPC(type=kinds.CREATE_DELETE_VOLUME)
        return csi_pb2.ControllerGetCapabilitiesResponse(capabilities=[csi_pb2.ControllerServiceCapability(rpc=rpc)])

    def CreateVolume(self, request: Any, _context: Any) -> Any:  # noqa: N802
        volume = csi_pb2.Volume(volume_id=request.name, volume_context={"path": self._path})
        return csi_pb2.CreateVolumeResponse(volume=volume)

    def DeleteVolume(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return csi_pb2.DeleteVolumeResponse()


class Front(csi_pb2_grpc.IdentityServicer):
    """A plugin's identity, and that there is a controller."""

    def __init__(self, channel: grpc.Channel) -> None:
        make: Any = csi_pb2_grpc
        self._stub = make.IdentityStub(channel)

    def GetPluginInfo(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return self._stub.GetPluginInfo(request)

    def Probe(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return self._stub.Probe(request)

    def GetPluginCapabilities(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        service = csi_pb2.PluginCapability.Service(type=csi_pb2.PluginCapability.Service.CONTROLLER_SERVICE)
        return csi_pb2.GetPluginCapabilitiesResponse(capabilities=[csi_pb2.PluginCapability(service=service)])


class Passage(grpc.GenericRpcHandler):
    """Hands calls of the Node service through to the plugin, as they are."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if not str(details.method).startswith("/csi.v1.Node/"):
            return None
        call = self._channel.unary_unary(details.method)

        def hand_on(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return bytes(call(request, timeout=60))
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
                raise AssertionError("abort returned") from None

        return grpc.unary_unary_rpc_method_handler(hand_on)


@contextlib.contextmanager
def serve_with_controller(plugin: Path, front: Path, path: str) -> Iterator[None]:
    """A socket at `front` behind which the plugin is a node, and its volumes are made and show `path`."""
    make: Any = csi_pb2_grpc
    with grpc.insecure_channel(f"unix:{plugin}") as channel:
        server = grpc.server(ThreadPoolExecutor(4))
        make.add_IdentityServicer_to_server(Front(channel), server)
        make.add_ControllerServicer_to_server(Controller(path), server)
        server.add_generic_rpc_handlers((Passage(channel),))
        server.add_insecure_port(f"unix:{front}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()
