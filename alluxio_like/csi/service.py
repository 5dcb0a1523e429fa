"""What the kubelet asks: CSI's Identity and Node services.

Owns the checking of requests, what their attributes mean, and gRPC's statuses for errors. Volumes themselves are volumes.py's.
There is no controller: volumes are not made, they are directories of the namespace, named by whoever writes a PersistentVolume
or an inline volume. Rule of concurrency: one event loop; what blocks runs in threads.
"""

import asyncio
import difflib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import grpc
import grpc.aio

from alluxio_like.config import CsiConfig
from alluxio_like.csi.v1 import csi_pb2, csi_pb2_grpc
from alluxio_like.csi.volumes import ALWAYS, FLAGS, Publisher, Wish, normalize
from alluxio_like.errors import AccessDenied, AlluxioLikeError, Internal, InvalidArgument, Unavailable, get_disposition
from alluxio_like.fuse.mountpoint import FSTYPE

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

_ATTRIBUTES = ("path", "readOnly")
_CONTAINERS_OWN = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
"""Attributes that the kubelet and provisioners add."""
_EPHEMERAL = "csi.storage.k8s.io/ephemeral"
_NAMESPACE = "csi.storage.k8s.io/pod.namespace"
_FS_TYPES = frozenset({"", FSTYPE, "fuse", "alluxio-like"})


async def _answer(context: Any, what: str, call: Callable[[], Awaitable[T]]) -> T:
    """What a call gives; an error of ours as gRPC's status and one line."""
    failure: AlluxioLikeError
    try:
        return await call()
    except AlluxioLikeError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 (the last place where one can be caught; it is logged)
        _LOG.exception("a call failed in a way nobody foresaw", extra={"method": what})
        failure = Internal(f"{type(error).__name__} in {what}: see the plugin's log")
    _LOG.warning("%s failed: %s", what, failure)
    await context.abort(grpc.StatusCode[get_disposition(failure).grpc_status], str(failure))
    raise AssertionError("abort returned")


class Identity(csi_pb2_grpc.IdentityServicer):
    """Who the plugin is, and whether the node's mount is there."""

    def __init__(self, config: CsiConfig, publisher: Publisher, version: str) -> None:
        self._config = config
        self._publisher = publisher
        self._version = version

    async def GetPluginInfo(self, _request: csi_pb2.GetPluginInfoRequest, _context: Any) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=self._config.driver_name, vendor_version=self._version)

    async def GetPluginCapabilities(
        self, _request: csi_pb2.GetPluginCapabilitiesRequest, _context: Any
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        # None: no controller, and no topology, since every node with a mount shows the same.
        return csi_pb2.GetPluginCapabilitiesResponse()

    async def Probe(self, _request: csi_pb2.ProbeRequest, _context: Any) -> csi_pb2.ProbeResponse:
        """Ready while the mount answers. Not being so is no failure: a new plugin would not mend it."""
        response = csi_pb2.ProbeResponse()
        try:
            await asyncio.to_thread(self._publisher.check)
            response.ready.value = True
        except AlluxioLikeError as error:
            _LOG.warning("not ready: %s", error)
            response.ready.value = False
        return response


class Node(csi_pb2_grpc.NodeServicer):
    """Publishing on this node. What it has not, staging and expanding, gRPC answers with UNIMPLEMENTED."""

    def __init__(self, config: CsiConfig, publisher: Publisher) -> None:
        self._config = config
        self._publisher = publisher

    async def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: Any
    ) -> csi_pb2.NodePublishVolumeResponse:
        async def publish() -> csi_pb2.NodePublishVolumeResponse:
            wish = make_wish(request, self._config.inline_paths)
            await asyncio.to_thread(self._publisher.publish, wish)
            _LOG.info("%s shows %s", wish.target, wish.path, extra={"volume": request.volume_id})
            return csi_pb2.NodePublishVolumeResponse()

        return await _answer(context, "NodePublishVolume", publish)

    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: Any
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        async def unpublish() -> csi_pb2.NodeUnpublishVolumeResponse:
            _require(request, "volume_id", "target_path")
            await asyncio.to_thread(self._publisher.unpublish, request.target_path)
            _LOG.info("%s shows nothing any more", request.target_path, extra={"volume": request.volume_id})
            return csi_pb2.NodeUnpublishVolumeResponse()

        return await _answer(context, "NodeUnpublishVolume", unpublish)

    async def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: Any
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        async def measure() -> csi_pb2.NodeGetVolumeStatsResponse:
            _require(request, "volume_id", "volume_path")
            usage = await asyncio.to_thread(self._publisher.measure, request.volume_path)
            units = csi_pb2.VolumeUsage.Unit
            figures = (
                (units.BYTES, usage.total_bytes, usage.available_bytes),
                (units.INODES, usage.total_files, usage.available_files),
            )
            return csi_pb2.NodeGetVolumeStatsResponse(
                usage=[
                    csi_pb2.VolumeUsage(unit=unit, total=total, available=available, used=max(0, total - available))
                    for unit, total, available in figures
                ]
            )

        return await _answer(context, "NodeGetVolumeStats", measure)

    async def NodeGetCapabilities(
        self, _request: csi_pb2.NodeGetCapabilitiesRequest, _context: Any
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        rpc = csi_pb2.NodeServiceCapability.RPC(type=csi_pb2.NodeServiceCapability.RPC.GET_VOLUME_STATS)
        return csi_pb2.NodeGetCapabilitiesResponse(capabilities=[csi_pb2.NodeServiceCapability(rpc=rpc)])

    async def NodeGetInfo(self, _request: csi_pb2.NodeGetInfoRequest, _context: Any) -> csi_pb2.NodeGetInfoResponse:
        return csi_pb2.NodeGetInfoResponse(node_id=self._config.node_id)


def make_wish(request: csi_pb2.NodePublishVolumeRequest, inline_paths: tuple[str, ...]) -> Wish:
    """What is to be published where. Raises InvalidArgument with what would be right, and AccessDenied for an inline volume that
    shows what it may not."""
    _require(request, "volume_id", "target_path")
    if not request.HasField("volume_capability") or request.volume_capability.WhichOneof("access_type") is None:
        raise InvalidArgument("volume_capability is missing, or its access_type", subject="volume_capability")
    capability = request.volume_capability
    if capability.WhichOneof("access_type") == "block":
        raise InvalidArgument("there are no block volumes here: volumeMode is to be Filesystem", subject="volume_capability")
    if capability.mount.fs_type not in _FS_TYPES:
        raise InvalidArgument(f"fsType {capability.mount.fs_type!r} cannot be had: leave it out", subject="fs_type")
    attributes = request.volume_context
    path = normalize(_read_attributes(attributes).get("path", "/"))
    if attributes.get(_EPHEMERAL) == "true":
        _check_inline(path, attributes.get(_NAMESPACE, ""), inline_paths)
    return Wish(path, request.target_path, _get_options(request))


def _require(request: Any, *names: str) -> None:
    for name in names:
        if not getattr(request, name):
            raise InvalidArgument(f"{name} is missing", subject=name)


def _read_attributes(attributes: Mapping[str, str]) -> dict[str, str]:
    """Those of a volume that are ours. Raises InvalidArgument."""
    ours = {name: value for name, value in attributes.items() if not name.startswith(_CONTAINERS_OWN)}
    for name in ours:
        if name not in _ATTRIBUTES:
            nearest = difflib.get_close_matches(name, _ATTRIBUTES, n=1)
            meant = f": did you mean {nearest[0]}?" if nearest else f": there are {' and '.join(_ATTRIBUTES)}"
            raise InvalidArgument(f"unknown volume attribute {name!r}{meant}", subject=name)
    if ours.get("readOnly", "false") not in {"true", "false"}:
        raise InvalidArgument(f'readOnly = {ours["readOnly"]!r}: write "true" or "false"', subject="readOnly")
    return ours


def _get_options(request: csi_pb2.NodePublishVolumeRequest) -> frozenset[str]:
    modes = csi_pb2.VolumeCapability.AccessMode.Mode
    readers = {modes.SINGLE_NODE_READER_ONLY, modes.MULTI_NODE_READER_ONLY}
    wanted = set(ALWAYS)
    for option in request.volume_capability.mount.mount_flags:
        if option not in {*FLAGS, "rw"}:
            raise InvalidArgument(f"mount option {option!r} cannot be had: there are {', '.join(FLAGS)}", subject=option)
        wanted.add(option)
    attributes = request.volume_context
    if request.readonly or attributes.get("readOnly") == "true" or request.volume_capability.access_mode.mode in readers:
        wanted.add("ro")
    return frozenset(wanted - {"rw"})


def _check_inline(path: str, namespace: str, inline_paths: tuple[str, ...]) -> None:
    for allowed in inline_paths:
        if "{namespace}" in allowed and not namespace:
            raise Unavailable("the pod's namespace is not told: set podInfoOnMount in the CSIDriver object", subject=path)
        top = normalize(allowed.replace("{namespace}", namespace)).rstrip("/")
        if path == top or path.startswith(top + "/"):
            return
    raise AccessDenied(
        f"inline volumes may be below {', '.join(inline_paths) or 'nothing'} here: use a PersistentVolume", subject=path
    )
