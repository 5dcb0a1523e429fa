"""The stores that are written through a mount (test_writing_stores.py), each on its real server, and looked at by clients that
are not ours: boto3, Google's and Microsoft's, hdfs_native, the distribution's binding of CephFS, os.

`STORES` has, by name, what makes one: the context of a `WrittenStore`, with a fresh place in the session's server.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from alluxio_like.types import to_bytes
from tests.cluster.writing import read_tree
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.fixtures_cephfs import CephFsServer
from tests.servers.fixtures_clouds import AzServer, GsServer
from tests.servers.fixtures_hdfs import HdfsServer, open_hdfs_proxies

PARTS = ".alluxio-like-parts/"
"""Where GCS and Azure keep uploads under way."""

HELD_S = 300.0
"""Longer than any test waits."""

Tree = dict[str, bytes | None]


def _no_uploads() -> list[str]:
    return []


def _do_nothing() -> None:
    pass


@dataclass
class WrittenStore:
    """`read` gives all there is by key: the bytes of files, None of directories (in a flat store: of their markers).

    `get_metadata` is what the store keeps with a content, None where it keeps nothing. `list_uploads` are uploads in parts that
    `read` does not show. `stop` makes the store unreachable until `resume`; `hold` has an upload in parts that begins then stand
    still in its middle, where the server can be told to; `refuse` has the store refuse all, in the same way. `refused` are names
    that it cannot have, with a word of the reason. `is_waited_for`: closes wait until it is back, rather than fail. `is_flat`: a
    directory is its marker, or what is below.
    """

    uri: str
    options: Mapping[str, str]
    environment: Mapping[str, str]
    read: Callable[[], Tree]
    put: Callable[[str, bytes], object]
    stop: Callable[[], object]
    resume: Callable[[], object]
    hold: Callable[[], object] = _do_nothing
    refuse: Callable[[], object] | None = None
    get_metadata: Callable[[str], Mapping[str, str]] | None = None
    list_uploads: Callable[[], list[str]] = _no_uploads
    refused: Mapping[str, str] = field(default_factory=dict)
    is_waited_for: bool = True
    is_flat: bool = False


@contextmanager
def open_file(_request: pytest.FixtureRequest, workplace: Path) -> Iterator[WrittenStore]:
    root = workplace / "store"
    root.mkdir()
    away = workplace / "away"

    def put(key: str, data: bytes) -> None:
        (root / ".new").write_bytes(data)
        (root / ".new").rename(root / key)

    def resume() -> None:
        if away.exists():
            away.rename(root)

    def get_metadata(key: str) -> Mapping[str, str]:
        names = os.listxattr(root / key)
        return {name.removeprefix("user."): os.getxattr(root / key, name).decode("latin-1") for name in names}

    yield WrittenStore(
        f"file://{root}",
        {},
        {},
        lambda: read_tree(root),
        put,
        lambda: root.rename(away),
        resume,
        get_metadata=get_metadata,
        refused={".alluxio_like-" + "0" * 32: "being written"},
        is_waited_for=False,  # a directory that is not there is no store that is silent
    )


@contextmanager
def open_s3(request: pytest.FixtureRequest, _workplace: Path) -> Iterator[WrittenStore]:
    server: S3Server = request.getfixturevalue("s3_server")
    bucket, client = server.make_bucket(), server.client

    def read() -> Tree:
        found: Tree = {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for one in page.get("Contents", []):
                found |= _take(one["Key"], server.get(bucket, one["Key"]))
        return found

    with FaultProxy(server.endpoint) as proxy:
        yield WrittenStore(
            f"s3://{bucket}",
            {"endpoint": proxy.endpoint},
            server.environment,
            read,
            lambda key, data: server.put(bucket, key, data),
            lambda: proxy.set_rules({"status": 503, "code": "ServiceUnavailable"}),
            proxy.reset,
            lambda: proxy.set_rules({"op": "PUT", "query": "partNumber", "skip": 1, "stall_s": HELD_S}),
            lambda: proxy.set_rules({"op": "PUT", "status": 403, "code": "AccessDenied"}),
            lambda key: client.head_object(Bucket=bucket, Key=key)["Metadata"],
            lambda: [one["Key"] for one in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])],
            refused={"not \udcff": "UTF-8", ".alluxio-like-probe-" + "0" * 16: "tried out with"},
            is_flat=True,
        )


@contextmanager
def open_gs(request: pytest.FixtureRequest, _workplace: Path) -> Iterator[WrittenStore]:
    server: GsServer = request.getfixturevalue("gs_server")
    bucket = server.make_bucket()

    def read() -> Tree:
        found: Tree = {}
        for key in server.list_keys(bucket):
            found |= _take(key, server.get(bucket, key))
        return found

    def get_metadata(key: str) -> Mapping[str, str]:
        blob = server.get_bucket(bucket).get_blob(key)
        assert blob is not None
        return blob.metadata or {}

    with FaultProxy(server.endpoint, style="gs") as proxy:
        yield WrittenStore(
            f"gs://{bucket}",
            {"endpoint": proxy.endpoint, "anonymous": "true"},
            {},
            read,
            lambda key, data: server.put(bucket, key, data),
            lambda: proxy.set_rules({"status": 503}),
            proxy.reset,
            lambda: proxy.set_rules({"op": "PUT", "key": PARTS, "skip": 2, "stall_s": HELD_S}),
            lambda: proxy.set_rules({"op": "PUT", "status": 403}),
            get_metadata,
            refused={"not \udcff": "UTF-8", "a\nb": "line breaks", PARTS.rstrip("/"): "uploads"},
            is_flat=True,
        )


@contextmanager
def open_az(request: pytest.FixtureRequest, _workplace: Path) -> Iterator[WrittenStore]:
    server: AzServer = request.getfixturevalue("az_server")
    container = server.make_bucket()

    def list_blobs(include: str) -> Iterator[ElementTree.Element]:
        answer = server.call("GET", container, f"restype=container&comp=list&include={include}")
        yield from ElementTree.fromstring(answer.data.decode("utf-8-sig")).iter("Blob")

    def get_name(blob: ElementTree.Element) -> str:
        name = blob.find("Name")
        assert name is not None
        return unquote(name.text or "") if name.get("Encoded") else name.text or ""

    def read() -> Tree:
        found: Tree = {}
        for key in map(get_name, list_blobs("metadata")):
            found |= _take(key, server.get(container, key))
        return found

    def get_metadata(key: str) -> Mapping[str, str]:
        for blob in list_blobs("metadata"):
            if get_name(blob) == key:
                return {one.tag.lower(): one.text or "" for one in blob.find("Metadata") or ()}
        raise LookupError(key)

    with FaultProxy(server.endpoint, style="az") as proxy:
        yield WrittenStore(
            f"az://{container}",
            {**server.options, "endpoint": proxy.endpoint},
            {},
            read,
            lambda key, data: server.put(container, key, data),
            lambda: proxy.set_rules({"status": 503, "code": "ServerBusy"}),
            proxy.reset,
            lambda: proxy.set_rules({"op": "PART", "skip": 1, "stall_s": HELD_S}),
            lambda: proxy.set_rules({"op": "PUT", "status": 403, "code": "AuthorizationFailure"}),
            get_metadata,
            refused={"not \udcff": "UTF-8", "back\\slash": "backslashes", "tab\t": "control", PARTS.rstrip("/"): "uploads"},
            is_flat=True,
        )


@contextmanager
def open_hdfs(request: pytest.FixtureRequest, _workplace: Path) -> Iterator[WrittenStore]:
    server: HdfsServer = request.getfixturevalue("hdfs_server")
    root = server.make_root()

    def read() -> Tree:
        found: Tree = {}
        for one in server.client.list_status(root, recursive=True):
            found[one.path.removeprefix(f"{root}/")] = None if one.isdir else server.get(one.path)
        return found

    with open_hdfs_proxies(server) as proxies:

        def stop() -> None:
            proxies.namenode.refuse()
            proxies.namenode.cut()

        def resume() -> None:
            proxies.namenode.resume()
            proxies.datanode.resume()

        yield WrittenStore(
            f"{proxies.uri}{root}",
            proxies.options,
            {},
            read,
            lambda key, data: server.put(f"{root}/{key}", data),
            stop,
            resume,
            proxies.datanode.stall,
            refused={"not \udcff": "UTF-8", "10:30": "colons", ".a.alluxio-like." + "0" * 32: "being written"},
        )
    server.delete(root)


@contextmanager
def open_cephfs(request: pytest.FixtureRequest, _workplace: Path) -> Iterator[WrittenStore]:
    server: CephFsServer = request.getfixturevalue("cephfs_server")
    root = f"/written-{os.getpid()}"
    server.client.call("make_directories", root)

    def read() -> Tree:
        found: dict[str, str | None] = server.client.call("walk", to_bytes(root))
        return {
            name.encode("latin-1").decode("utf-8", "surrogateescape"): None if data is None else data.encode("latin-1")
            for name, data in found.items()
        }

    def get_metadata(key: str) -> Mapping[str, str]:
        path = to_bytes(f"{root}/{key}")
        return {name: server.client.call("get_attribute", path, f"user.{name}") for name in ("mode", "uid", "gid", "mtime")}

    yield WrittenStore(
        server.get_uri(root),
        server.options,
        {},
        read,
        lambda key, data: server.client.put(f"{root}/{key}", data),
        lambda: server.cluster.signal_daemon("osd", signal.SIGSTOP),
        lambda: server.cluster.signal_daemon("osd", signal.SIGCONT),
        get_metadata=get_metadata,
        refused={".alluxio_like-" + "0" * 32: "being written", ".snap": "snapshots"},
    )


def _take(key: str, data: bytes) -> Tree:
    """An object as a file, or as a directory's marker."""
    if key.endswith("/"):
        assert data == b"", key
        return {key.rstrip("/"): None}
    return {key: data}


Factory = Callable[[Any, Path], AbstractContextManager[WrittenStore]]
STORES: Mapping[str, Factory] = {
    "s3": open_s3,
    "gs": open_gs,
    "az": open_az,
    "hdfs": open_hdfs,
    "cephfs": open_cephfs,
    "file": open_file,
}
