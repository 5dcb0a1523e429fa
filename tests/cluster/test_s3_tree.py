"""S3 as users meet it: any key in the tree, archived objects, and mounts that are made, changed and nested by commands."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from alluxio_like.master.core.paths import show_name
from alluxio_like.types import Kind, to_bytes
from tests.cluster.conftest import StackMaker
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server

pytestmark = pytest.mark.mount

NAMES = ["a b", "a+b", "100%", "%41", "h#1", "q?x=1&y", "n\nl", "t\tb", "\x01", "back\\slash", "<&>;'\"", "é", "e\u0301", "日本"]
NAMES += ["x" * 255, "y" * 256, "ü" * 200, "z" * 511, "w" * 512, "v" * 900, "~%~", "like%~"]


def test_any_key_is_listed_and_read(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str) -> None:
    keys = [f"odd/{name}" for name in NAMES]
    keys += [f"odd/in {name[:600]}/x" for name in NAMES]
    keys += ["odd//empty", "odd/./dot", "odd/../dots", "odd/both", "odd/both/inside", "odd/marker/"]
    for key in keys:
        s3_server.put(s3_bucket, key, b"" if key.endswith("/") else to_bytes(key))
    root = os.fsencode(make_stack().mountpoint / "odd")
    found: dict[bytes, bytes] = {}
    for directory, _, files in os.walk(root, onerror=_fail):
        for name in files:
            with open(os.path.join(directory, name), "rb") as file:  # noqa: PTH118 - bytes
                found[os.path.relpath(os.path.join(directory, name), root)] = file.read()  # noqa: PTH118

    def shown(name: str, kind: Kind = Kind.FILE, shadowed: bool = False) -> bytes:
        return show_name(to_bytes(name), kind, shadowed)

    expected = {shown(name): f"odd/{name}" for name in NAMES}
    expected |= {shown(f"in {name[:600]}", Kind.DIRECTORY) + b"/x": f"odd/in {name[:600]}/x" for name in NAMES}
    expected |= {
        shown("", Kind.DIRECTORY) + b"/empty": "odd//empty",
        shown(".", Kind.DIRECTORY) + b"/dot": "odd/./dot",
        shown("..", Kind.DIRECTORY) + b"/dots": "odd/../dots",
        shown("both", shadowed=True): "odd/both",
        b"both/inside": "odd/both/inside",
    }
    assert found == {name: to_bytes(key) for name, key in expected.items()}
    assert os.path.isdir(root + b"/marker") and os.listdir(root + b"/marker") == []  # noqa: PTH112, PTH208 - bytes
    # Again by name alone, in another daemon's memory.
    for name in list(expected)[:30]:
        assert os.stat(os.path.join(root, name)).st_size == len(found[name])  # noqa: PTH116, PTH118


def _fail(error: OSError) -> None:
    raise error


def test_archived_objects(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy) -> None:
    s3_server.put(s3_bucket, "cold.bin", b"0123456789")
    stack = make_stack()
    proxy.set_rules(
        {"op": "GET", "status": 403, "code": "InvalidObjectState"},
        {"op": "HEAD", "times": 4, "set_headers": {"x-amz-storage-class": "GLACIER"}},
        {"op": "HEAD", "set_headers": {"x-amz-storage-class": "GLACIER", "x-amz-restore": 'ongoing-request="true"'}},
        {"op": "POST", "query": "restore", "status": 202},
    )
    path = stack.mountpoint / "cold.bin"
    assert path.stat().st_size == 10
    with pytest.raises(OSError) as caught:
        path.read_bytes()
    assert caught.value.errno == errno.ENODATA
    told = stack.try_command("alluxio-like", "fs", "cat", "/cold.bin")
    assert (told.returncode, told.stdout) == (1, "")
    assert "fs restore" in told.stderr
    proxy.reset_log()
    assert stack.run_command("alluxio-like", "fs", "stat", "/cold.bin")["archive"]["state"] == "archived"
    asked = stack.run_command("alluxio-like", "fs", "restore", "/cold.bin", "--days", "2", "--tier", "Bulk")
    states = {asked["state"], *(stack.run_command("alluxio-like", "fs", "stat", "/cold.bin")["archive"]["state"] for _ in "123")}
    assert "restoring" in states
    assert proxy.get_counts()["POST"] == 1
    assert "restoring (GLACIER)" in stack.try_command("alluxio-like", "fs", "stat", str(path)).stdout
    wrong = stack.try_command("alluxio-like", "fs", "restore", "/")
    assert wrong.returncode == 1 and "one by one" in wrong.stderr
    proxy.set_rules()
    assert path.read_bytes() == b"0123456789"


def test_mounts_over_and_inside_others(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, workplace: Path) -> None:
    for name in ("inner", "deeper"):
        (workplace / name / "sub").mkdir(parents=True)
        (workplace / name / "file").write_text(name)
    s3_server.put(s3_bucket, "dir/file", b"bucket")
    s3_server.put(s3_bucket, "dir/other", b"bucket")
    stack = make_stack()
    root = stack.mountpoint

    def mount(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return stack.try_command("alluxio-like", "mount", *arguments)

    def command(*arguments: str) -> None:
        done = stack.try_command("alluxio-like", *arguments)
        assert done.returncode == 0, done.stderr

    assert (root / "dir/file").read_bytes() == b"bucket"
    # Over a directory that the bucket has, inside of that mount, and where the bucket has nothing.
    command("mount", "/dir", f"file://{workplace}/inner")
    command("mount", "/dir/sub", f"file://{workplace}/deeper")
    command("mount", "/new/place", f"file://{workplace}/deeper")
    assert (root / "dir/file").read_text() == "inner"
    assert (root / "dir/sub/file").read_text() == "deeper"
    assert (root / "new/place/file").read_text() == "deeper"
    assert sorted(path.name for path in (root / "dir").iterdir()) == ["file", "sub"]
    assert not (root / "dir/other").exists()
    refused = stack.try_command("alluxio-like", "unmount", "/dir")
    assert refused.returncode == 1 and "/dir/sub" in refused.stderr
    for path in ("/dir/sub", "/dir", "/new/place"):
        command("unmount", path)
    assert (root / "dir/other").read_bytes() == (root / "dir/file").read_bytes() == b"bucket"
    # Wrong options change nothing and say so in one line.
    for option, told in [("uid=me", "uid"), ("uids=1", "did you mean uid"), ("uid", "KEY=VALUE")]:
        wrong = mount("/wrong", f"file://{workplace}/inner", "-o", option)
        assert wrong.returncode in (1, 2) and told in wrong.stderr and len(wrong.stderr.strip().splitlines()) == 1, wrong.stderr
    listed = mount("file://", "-o", "help", "--json")
    assert {"uid", "gid"} <= {option["name"] for option in json.loads(listed.stdout)}
    # Single options of a mount that is there.
    command("mount", "--update", "/", "-o", "timeout_s=2")
    changed = stack.run_command("alluxio-like", "mounts")
    command("mount", "--update", "/", "-o", "timeout_s=", "-o", "requester_pays=true")
    again = stack.run_command("alluxio-like", "mounts")
    (before,), (after,) = ([info["options"] for info in found] for found in (changed, again))
    assert before["timeout_s"] == "2" and "timeout_s" not in after and after["requester_pays"] == "true"
    assert {**before, "timeout_s": None, "requester_pays": None} == {**after, "timeout_s": None, "requester_pays": None}
    assert (root / "dir/file").read_bytes() == b"bucket"
