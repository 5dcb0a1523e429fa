"""The CSI node plugin over a real mount: what the kubelet asks, what pods see, and what happens when parts are killed."""

import contextlib
import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from alluxio_like.csi.v1 import csi_pb2
from alluxio_like.fuse import libc, mountinfo, mountpoint
from tests.cluster.csi import MODES, Kubelet, Plugin, serve_with_controller
from tests.servers.net import wait_until
from tests.servers.processes import freeze
from tests.servers.stack import PROGRAMS, Stack, start_stack
from tests.servers.tools import CSI_SANITY

pytestmark = pytest.mark.mount

POD = {"csi.storage.k8s.io/pod.name": "train-0", "csi.storage.k8s.io/pod.namespace": "team-a"}
INLINE = {**POD, "csi.storage.k8s.io/ephemeral": "true"}


@pytest.fixture
def stack(workplace: Path) -> Iterator[Stack]:
    source = workplace / "source"
    for path, text in {"team-a/set/x.bin": "x" * 5000, "team-b/y.bin": "yy", "top.txt": "top"}.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
        os.utime(source / path, (1_600_000_000, 1_600_000_000))
    with start_stack(workplace, {"/": str(source)}, {}, "--io-timeout", "10s") as running:
        yield running


@pytest.fixture
def plugin(workplace: Path, stack: Stack) -> Iterator[Plugin]:
    made = Plugin(workplace, stack.mountpoint, "--inline-path=/{namespace}")
    (workplace / "pods").mkdir()
    made.start()
    try:
        yield made
    finally:
        made.stop()
        for line in reversed(mountinfo.list_lines()):
            if line.place.startswith(str(workplace / "pods")):
                libc.unmount(line.place)


@pytest.fixture
def kubelet(plugin: Plugin) -> Iterator[Kubelet]:
    with plugin.connected() as made:
        yield made


@pytest.fixture
def pods(workplace: Path, plugin: Plugin) -> Path:
    return workplace / "pods"


@contextlib.contextmanager
def refused(code: grpc.StatusCode, said: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    assert said in caught.value.details()
    assert "\n" not in caught.value.details()


def list_volumes(pods: Path) -> list[str]:
    return [line.place for line in mountinfo.list_lines() if line.place.startswith(str(pods))]


def test_who_it_is(kubelet: Kubelet, plugin: Plugin) -> None:
    assert kubelet.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest()).name == "csi.alluxio-like"
    assert not kubelet.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest()).capabilities
    assert kubelet.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest()).node_id == "node-7"
    assert kubelet.is_ready()
    assert plugin.socket.stat().st_mode & 0o077 == 0
    with refused(grpc.StatusCode.UNIMPLEMENTED, ""):
        kubelet.node.NodeStageVolume(csi_pb2.NodeStageVolumeRequest())


def test_a_volume_shows_a_directory_of_the_namespace_and_goes_again(kubelet: Kubelet, pods: Path) -> None:
    target = pods / "mount"
    kubelet.publish(target, path="/team-a/set")
    assert (target / "x.bin").read_text() == "x" * 5000
    assert [one.name for one in target.iterdir()] == ["x.bin"]
    line = mountinfo.find_top_line(str(target))
    assert line is not None
    assert {"ro", "nosuid", "nodev"} <= line.options
    with pytest.raises(OSError, match="Read-only") as caught:
        (target / "new").write_text("")
    assert caught.value.errno == errno.EROFS
    # Again, as often as it likes.
    kubelet.publish(target, path="/team-a/set/")
    assert list_volumes(pods) == [str(target)]
    usage = kubelet.measure(target)
    assert usage[csi_pb2.VolumeUsage.BYTES].total >= usage[csi_pb2.VolumeUsage.BYTES].available > 0
    assert csi_pb2.VolumeUsage.INODES in usage
    kubelet.unpublish(target)
    kubelet.unpublish(target)
    assert list_volumes(pods) == []
    assert not target.exists()
    with refused(grpc.StatusCode.NOT_FOUND, "no volume is published there"):
        kubelet.measure(target)
    # Without a path it is all of it.
    kubelet.publish(target)
    assert (target / "top.txt").read_text() == "top"
    kubelet.unpublish(target)


def test_options_of_a_volume(kubelet: Kubelet, pods: Path) -> None:
    target = pods / "mount"
    kubelet.publish(target, mode=MODES.MULTI_NODE_MULTI_WRITER)
    line = mountinfo.find_top_line(str(target))
    assert line is not None
    assert "rw" in line.options
    # As a plugin that was killed between the mount and its options leaves it.
    kubelet.publish(target, mode=MODES.MULTI_NODE_MULTI_WRITER, readOnly="true", flags=("noexec",))
    line = mountinfo.find_top_line(str(target))
    assert line is not None
    assert {"ro", "noexec", "nosuid", "nodev"} <= line.options
    with refused(grpc.StatusCode.ALREADY_EXISTS, "but with noexec, ro: unpublish it first"):
        kubelet.publish(target, mode=MODES.MULTI_NODE_MULTI_WRITER)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "another volume is published at the target"):
        kubelet.publish(target, path="/team-b")
    kubelet.unpublish(target)


def test_what_cannot_be_published(kubelet: Kubelet, pods: Path, stack: Stack, workplace: Path) -> None:
    target = pods / "mount"
    for code, said, attributes in (
        (grpc.StatusCode.NOT_FOUND, "no such directory in the node's mount: ", {"path": "/none"}),
        (grpc.StatusCode.FAILED_PRECONDITION, "not a directory", {"path": "/top.txt"}),
        (grpc.StatusCode.INVALID_ARGUMENT, "is no path of the namespace", {"path": "/team-a/../../etc"}),
        (grpc.StatusCode.INVALID_ARGUMENT, "is no path of the namespace", {"path": "team-a"}),
        (grpc.StatusCode.INVALID_ARGUMENT, "unknown volume attribute 'pth': did you mean path?", {"pth": "/team-a"}),
        (grpc.StatusCode.INVALID_ARGUMENT, 'write "true" or "false"', {"readOnly": "yes"}),
    ):
        with refused(code, said):
            kubelet.publish(target, **attributes)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "mount option 'suid' cannot be had"):
        kubelet.publish(target, flags=("suid",))
    request = csi_pb2.NodePublishVolumeRequest(volume_id="v", target_path=str(target))
    request.volume_capability.block.SetInParent()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "volumeMode is to be Filesystem"):
        kubelet.node.NodePublishVolume(request)
    target.write_text("a file")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "no directory"):
        kubelet.publish(target)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "no directory, so not ours"):
        kubelet.unpublish(target)
    target.unlink()
    target.mkdir()
    (target / "kept").write_text("somebody's")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "the target cannot be removed"):
        kubelet.unpublish(target)
    assert (target / "kept").read_text() == "somebody's"
    libc.mount("tmpfs", target, "tmpfs")
    try:
        with refused(grpc.StatusCode.ALREADY_EXISTS, "a mount of tmpfs is at the target"):
            kubelet.publish(target)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "which is not ours"):
            kubelet.unpublish(target)
    finally:
        libc.unmount(target)
    assert list_volumes(pods) == []


def test_inline_volumes_stay_where_they_may(kubelet: Kubelet, pods: Path) -> None:
    target = pods / "mount"
    kubelet.publish(target, path="/team-a/set", **INLINE)
    assert (target / "x.bin").exists()
    kubelet.unpublish(target)
    for path in ("/team-b", "/", "/team-ab"):
        with refused(grpc.StatusCode.PERMISSION_DENIED, "use a PersistentVolume"):
            kubelet.publish(target, path=path, **INLINE)
    with refused(grpc.StatusCode.UNAVAILABLE, "set podInfoOnMount"):
        kubelet.publish(target, path="/team-a", **{"csi.storage.k8s.io/ephemeral": "true"})
    # A persistent volume may show all, in whatever pod.
    kubelet.publish(target, path="/team-b", **POD)
    kubelet.unpublish(target)


def test_a_volume_outlives_the_plugin_and_daemons_of_the_mount(plugin: Plugin, pods: Path, stack: Stack) -> None:
    target = pods / "mount"
    with plugin.connected() as kubelet:
        kubelet.publish(target, path="/team-a/set")
    plugin.stop(signal.SIGKILL)
    with (target / "x.bin").open() as kept:
        assert kept.read(10) == "x" * 10
        daemon = stack.ready["fuse"]["daemon_pid"]
        os.kill(daemon, signal.SIGKILL)
        # A new daemon serves the same mount; nobody sees more than a pause.
        assert kept.read() == "x" * 4990
        assert (target / "x.bin").read_text() == "x" * 5000
    plugin.start()
    with plugin.connected() as kubelet:
        kubelet.publish(target, path="/team-a/set")
        assert list_volumes(pods) == [str(target)]
        kubelet.unpublish(target)
    assert list_volumes(pods) == []
    assert plugin.stop() == 0
    assert not plugin.socket.exists()


def test_a_daemon_that_hangs_is_not_waited_for(kubelet: Kubelet, pods: Path, stack: Stack) -> None:
    target = pods / "mount"
    kubelet.publish(target)
    daemon = stack.ready["fuse"]["daemon_pid"]
    freeze(daemon)
    try:
        with refused(grpc.StatusCode.UNAVAILABLE, "did not answer within 3 s: see its FUSE daemon"):
            kubelet.publish(pods / "other", path="/team-a")
        kubelet.unpublish(target)
        assert list_volumes(pods) == []
    finally:
        # The holder may have given it up meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGCONT)


@contextlib.contextmanager
def mounted(place: Path, stack: Stack) -> Iterator[None]:
    """One more mount, which ends with the context."""
    command = [str(PROGRAMS / "alluxio-like"), "fuse", str(place), "--master", stack.master]
    process = subprocess.Popen(command, env=stack.environment, stderr=subprocess.DEVNULL)
    try:
        wait_until("it is mounted", lambda: mountpoint.find_top(place) is not None, timeout_s=60)
        yield
    finally:
        process.terminate()
        process.wait(60)


def test_without_a_mount_it_says_so_and_mends_volumes_when_there_is_one(stack: Stack, workplace: Path) -> None:
    """The mount is made anew, which a volume does not outlive."""
    target, place = workplace / "volume", workplace / "later"
    place.mkdir()
    plugin = Plugin(workplace, place)
    plugin.start()
    try:
        with plugin.connected() as kubelet:
            assert not kubelet.is_ready()
            with refused(grpc.StatusCode.UNAVAILABLE, "nothing of ours is mounted at"):
                kubelet.publish(target)
            with mounted(place, stack):
                wait_until("the plugin is ready", kubelet.is_ready, timeout_s=60)
                kubelet.publish(target, path="/team-a")
            assert not kubelet.is_ready()
            with refused(grpc.StatusCode.UNAVAILABLE, "the mount is dead"):
                kubelet.measure(target)
            with mounted(place, stack):
                wait_until("the plugin is ready again", kubelet.is_ready, timeout_s=60)
                kubelet.publish(target, path="/team-a")
                assert (target / "set/x.bin").exists()
                assert list_volumes(target) == [str(target)]
            # Taken away without waiting for anybody.
            kubelet.unpublish(target)
            assert list_volumes(target) == []
            assert not target.exists()
    finally:
        plugin.stop()
        if list_volumes(target):
            libc.unmount(target)


def run_sanity(endpoint: Path, place: Path, focus: str) -> int:
    """Run what Kubernetes' storage group tests plugins with; how many of its tests passed. None may fail."""
    options = [f"--csi.endpoint=unix://{endpoint}", f"--csi.mountdir={place / 'sanity'}", f"--csi.stagingdir={place / 'staging'}"]
    command = [str(CSI_SANITY.install()), *options, "--ginkgo.no-color", f"--ginkgo.focus={focus}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    found = re.search(r"(\d+) Passed \| 0 Failed", done.stdout)
    assert found is not None, done.stdout[-2000:]
    return int(found[1])


@pytest.mark.server
def test_csi_sanity(plugin: Plugin, pods: Path, workplace: Path) -> None:
    """Its tests of publishing want a controller that makes volumes: here a test's own, of directories in the store."""
    assert run_sanity(plugin.socket, pods, "Identity Service") >= 3
    with serve_with_controller(plugin.socket, workplace / "front.sock", "/team-a"):
        assert run_sanity(workplace / "front.sock", pods, "Node Service") >= 14
    assert list_volumes(pods) == []
