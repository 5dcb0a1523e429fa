"""Snapshots of an S3 mount: what was replaced or deleted since is read from the store's older versions, where it keeps them."""

import errno
import os
import shutil
import signal
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import StackMaker
from tests.cluster.writing import list_names, wait_until
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack

pytestmark = pytest.mark.mount

MIB = 1 << 20


def keep_versions(server: S3Server, bucket: str) -> None:
    server.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def make_contents(*names: str) -> dict[str, bytes]:
    """Contents of their own for names; those that say so are large."""
    return {name: os.urandom(20 * MIB + 7 if "large" in name else 1000) for name in names}


def read_sum(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def check(place: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        assert read_sum(place / name) == sha256(data).hexdigest(), name


def make_snapshot(stack: Stack, target: str) -> Any:
    stack.run_command("alluxio-like", "fs", "wait", "/")
    stack.run_command("alluxio-like", "fs", "sync", "-r", "/")
    return stack.run_command("alluxio-like", "snapshot", "create", target)


def see_changes(stack: Stack) -> None:
    """The store has all that was written, the master knows all that is there, and no cache has any of it."""
    stack.run_command("alluxio-like", "fs", "wait", "/")
    stack.run_command("alluxio-like", "fs", "sync", "-r", "/")
    stack.free()


def test_a_snapshot_is_read_whatever_became_of_the_tree(
    make_stack: StackMaker, s3_server: S3Server, s3_bucket: str, proxy: FaultProxy, workplace: Path
) -> None:
    keep_versions(s3_server, s3_bucket)
    foreign = make_contents("d/small", "d/large", "d/gone", "d/e/deep", "d/e/large too", "d/f/later", "d/f/large later", "d/same")
    for name, data in foreign.items():
        s3_server.put(s3_bucket, name, data)
    stack = make_stack("-o", "write=through")
    place = stack.mountpoint
    mine = make_contents("d/mine", "d/my large", "d/renamed over")
    for name, data in mine.items():
        (place / name).write_bytes(data)
    with pytest.raises(FileNotFoundError):
        list_names(place / "d" / ".snapshots")
    old = {name.removeprefix("d/"): data for name, data in (foreign | mine).items()}
    made = make_snapshot(stack, "/d@before")
    assert (made["old_versions"], made["unlisted"]) == ("yes", 0)
    assert [one["old_versions"] for one in stack.run_command("alluxio-like", "snapshot", "list", "/d")] == ["yes"]

    new = make_contents("small", "large", "mine", "my large", "renamed over")
    for name in ("small", "large"):
        s3_server.put(s3_bucket, f"d/{name}", new[name])
    s3_server.delete(s3_bucket, "d/gone")
    for name in ("mine", "my large"):
        with open(place / "d" / name, "r+b") as file:
            file.write(new[name])
    (place / "d" / "new name").write_bytes(new["renamed over"])
    (place / "d" / "new name").rename(place / "d" / "renamed over")
    shutil.rmtree(place / "d" / "e")
    see_changes(stack)

    frozen = place / "d" / ".snapshots" / "before"
    assert ".snapshots" not in list_names(place / "d")
    assert list_names(frozen) == sorted({name.partition("/")[0] for name in old})
    first = {name: data for name, data in old.items() if not name.startswith("f/")}
    with open(frozen / "large", "rb") as held:
        assert held.read(MIB) == old["large"][:MIB]
        os.kill(stack.get_service_pids("workers")[0], signal.SIGKILL)
        assert held.read() == old["large"][MIB:]
    check(frozen, first)
    check(place / "d", new | {"same": old["same"]})

    # The whole tree is gone, and what nobody has read so far is loaded.
    for name in list_names(place / "d"):
        path = place / "d" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    stack.run_command("alluxio-like", "fs", "wait", "/")
    assert list_names(place / "d") == []
    assert not s3_server.client.list_objects_v2(Bucket=s3_bucket, Prefix="d/f/").get("Contents")
    # What is still open as it was written is no cache file yet.
    wait_until(lambda: not any((workplace / "home" / "worker-1" / "cache" / "drafts").iterdir()), "drafts are over")
    done = stack.load("/d/.snapshots/before")
    assert (done["state"], done["total_files"]) == ("done", len(old)), done
    proxy.set_rules({"status": 503, "code": "SlowDown"})
    check(frozen, old)
    proxy.set_rules()
    assert list_names(place / "d" / ".snapshots") == ["before"]


def test_what_was_removed_for_good_is_said(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str) -> None:
    keep_versions(s3_server, s3_bucket)
    s3_server.put(s3_bucket, "d/a", b"old")
    stack = make_stack()
    make_snapshot(stack, "/d@one")
    s3_server.put(s3_bucket, "d/a", b"newer")
    found = s3_server.client.list_object_versions(Bucket=s3_bucket, Prefix="d/a")["Versions"]
    [before] = [one["VersionId"] for one in found if not one["IsLatest"]]
    s3_server.client.delete_object(Bucket=s3_bucket, Key="d/a", VersionId=before)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        (stack.mountpoint / "d" / ".snapshots" / "one" / "a").read_bytes()
    refused = stack.try_command("alluxio-like", "fs", "cat", "/d/.snapshots/one/a")
    assert refused.returncode == 1
    assert "no older version is this one" in refused.stderr
    stack.run_command("alluxio-like", "fs", "sync", "-r", "/")
    assert (stack.mountpoint / "d" / "a").read_bytes() == b"newer"


def test_a_bucket_that_keeps_nothing_is_said_at_once(make_stack: StackMaker, s3_server: S3Server, s3_bucket: str) -> None:
    contents = make_contents("cached", "not cached")
    for name, data in contents.items():
        s3_server.put(s3_bucket, f"d/{name}", data)
    stack = make_stack()
    assert make_snapshot(stack, "/d@one")["old_versions"] == "no"
    assert (stack.mountpoint / "d" / "cached").read_bytes() == contents["cached"]
    for name in contents:
        s3_server.put(s3_bucket, f"d/{name}", b"new")
    stack.run_command("alluxio-like", "fs", "sync", "-r", "/")
    frozen = stack.mountpoint / "d" / ".snapshots" / "one"
    assert (frozen / "cached").read_bytes() == contents["cached"]
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        (frozen / "not cached").read_bytes()
    refused = stack.try_command("alluxio-like", "fs", "cat", "/d/.snapshots/one/not cached")
    assert "keeps no older versions" in refused.stderr
    done = stack.try_command("cache", "load", "/d/.snapshots/one")
    assert done.returncode == 1
    assert "keeps no older versions" in done.stdout + done.stderr
