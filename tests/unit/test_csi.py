"""The CSI plugin's parts without a mount: what requests mean, paths that lead out, and calls that hang."""

import errno
import os
import threading
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.csi.service import make_wish
from alluxio_like.csi.v1 import csi_pb2
from alluxio_like.csi.volumes import Publisher, Wish, call_within, normalize
from alluxio_like.fuse.libc import open_beneath

MODES = csi_pb2.VolumeCapability.AccessMode


def make_request(**attributes: str) -> csi_pb2.NodePublishVolumeRequest:
    request = csi_pb2.NodePublishVolumeRequest(volume_id="v", target_path="/pods/v", volume_context=attributes)
    request.volume_capability.mount.SetInParent()
    request.volume_capability.access_mode.mode = MODES.MULTI_NODE_MULTI_WRITER
    return request


def test_what_a_request_means() -> None:
    assert make_wish(make_request(), ("/",)) == Wish("/", "/pods/v", frozenset({"nosuid", "nodev"}))
    request = make_request(path="/a//b/", readOnly="true", **{"csi.storage.k8s.io/pod.uid": "7"})
    assert make_wish(request, ()) == Wish("/a/b", "/pods/v", frozenset({"nosuid", "nodev", "ro"}))
    request = make_request(readOnly="false")
    request.readonly = True
    assert "ro" in make_wish(request, ()).options
    request = make_request()
    request.volume_capability.access_mode.mode = MODES.SINGLE_NODE_READER_ONLY
    request.volume_capability.mount.mount_flags.extend(["rw", "noexec"])
    assert make_wish(request, ()).options == {"nosuid", "nodev", "noexec", "ro"}


@pytest.mark.parametrize("name", ["volume_id", "target_path", "volume_capability"])
def test_what_is_missing_is_named(name: str) -> None:
    request = make_request()
    request.ClearField(name)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument, match=name):
        make_wish(request, ("/",))
    request = make_request()
    request.volume_capability.mount.fs_type = "ext4"
    with pytest.raises(errors.InvalidArgument, match="leave it out"):
        make_wish(request, ("/",))


@pytest.mark.parametrize(
    ("path", "allowed", "works"),
    [
        ("/", ("/",), True),
        ("/a/b", ("/",), True),
        ("/team/x", ("/{namespace}",), True),
        ("/team", ("/{namespace}",), True),
        ("/team2", ("/{namespace}",), False),
        ("/public/x", ("/{namespace}", "/public/"), True),
        ("/", ("/public",), False),
        ("/a", (), False),
    ],
)
def test_inline_volumes(path: str, allowed: tuple[str, ...], works: bool) -> None:
    own = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.namespace": "team"}
    request = make_request(path=path, **own)
    if works:
        assert make_wish(request, allowed).path == path
    else:
        with pytest.raises(errors.AccessDenied, match="use a PersistentVolume"):
            make_wish(request, allowed)


def test_paths_of_the_namespace() -> None:
    assert [normalize(path) for path in ("/", "//", "/a/", "/a/./b", "//a")] == ["/", "/", "/a", "/a/b", "/a"]
    for path in ("", "a", "/a/..", "/../etc", "/a\0b"):
        with pytest.raises(errors.InvalidArgument):
            normalize(path)


def test_nothing_leads_out_of_a_directory(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (top / "out").symlink_to("../secret")
    (top / "far").symlink_to(tmp_path / "secret")
    (top / "in").symlink_to("a/b")
    (top / "loop").symlink_to("loop")
    (top / "file").touch()
    directory = os.open(top, os.O_PATH)
    try:
        for path in (".", "a", "a/b", "in", "a/../a"):
            fd = open_beneath(directory, path)
            assert Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(top)
            os.close(fd)
        for path, number in {
            "..": errno.EXDEV,
            "../secret": errno.EXDEV,
            "out": errno.EXDEV,
            "far": errno.EXDEV,
            "/": errno.EXDEV,
            "a/../../secret": errno.EXDEV,
            "loop": errno.ELOOP,
            "file": errno.ENOTDIR,
            "none": errno.ENOENT,
        }.items():
            with pytest.raises(OSError, match=r"\[Errno") as caught:
                open_beneath(directory, path)
            assert caught.value.errno == number, path
    finally:
        os.close(directory)


def test_a_call_that_hangs_is_left_to_itself() -> None:
    go, given = threading.Event(), threading.Event()

    def hang() -> str:
        go.wait(60)
        return "late"

    def take(result: str) -> None:
        assert result == "late"
        given.set()

    with pytest.raises(TimeoutError):
        call_within(0.05, hang, take)
    go.set()
    assert given.wait(60)
    assert call_within(10, lambda: "soon", take) == "soon"
    with pytest.raises(FileNotFoundError):
        call_within(10, lambda: Path("/nonexistent").stat())


def test_a_mount_of_a_part_of_the_namespace(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path, "/data", 1.0)
    assert publisher._to_relative("/data/a") == "a"
    assert publisher._to_relative("/data") == "."
    with pytest.raises(errors.NotFound, match="the node's mount shows /data alone"):
        publisher._to_relative("/database")
    with pytest.raises(errors.Unavailable, match="nothing of ours is mounted"):
        publisher.check()
    for target in ("/", "a", "/a/../b"):
        with pytest.raises(errors.InvalidArgument):
            publisher.unpublish(target)
    publisher.unpublish(str(tmp_path / "none"))
