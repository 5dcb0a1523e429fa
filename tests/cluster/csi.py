"""A CSI node plugin for tests: the real process beside a real mount, and the kubelet's side of the socket."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
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
        wait_until("the plugin is ready", lambda: ready.exists() or process.poll() is not None, timeout_s=30)
        assert process.poll() is None, self.log
        assert json.loads(ready.read_text())["socket"] == str(self.socket)

    def stop(self, number: int = signal.SIGTERM) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(30)

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
        self.node.NodePublishVolume(request, timeout=30)

    def unpublish(self, target: Path, volume: str = "v") -> None:
        self.node.NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target)), timeout=30)

    def measure(self, place: Path) -> dict[int, Any]:
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id="v", volume_path=str(place))
        return {one.unit: one for one in self.node.NodeGetVolumeStats(request, timeout=30).usage}

    def is_ready(self) -> bool:
        return bool(self.identity.Probe(csi_pb2.ProbeRequest(), timeout=30).ready.value)
