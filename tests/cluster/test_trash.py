"""The trash on a mount: what is removed and replaced can be had back until its time is over, also after a kill of the master."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.writing import list_names, wait_until
from tests.servers.stack import Stack, start_stack

pytestmark = pytest.mark.mount


@pytest.fixture
def stack(workplace: Path) -> Iterator[Stack]:
    (workplace / "store" / "d").mkdir(parents=True)
    (workplace / "store" / "d" / "foreign").write_bytes(b"f" * 1000)
    with start_stack(workplace, {"/": f"file://{workplace}/store"}, {}, "--workers", "1", "-o", "write=through") as made:
        yield made


def list_trash(stack: Stack, path: str = "") -> list[dict[str, Any]]:
    found = stack.run_command("alluxio-like", "trash", "list", *([path] if path else []))
    return list(found["entries"])


def test_what_is_removed_comes_back(stack: Stack, workplace: Path) -> None:
    place = stack.mountpoint
    (place / "e").mkdir()
    (place / "e" / "gone").write_bytes(b"gone for good")
    stack.run_command("alluxio-like", "trash", "on", str(place / "d"), "--keep", "7d")
    (place / "e" / "gone").unlink()
    assert list_trash(stack) == []
    assert list_names(place) == ["d", "e"]
    (place / "d" / "deep").mkdir()
    (place / "d" / "deep" / "mine").write_bytes(b"mine")
    (place / "d" / "new").write_bytes(b"new")
    with open(place / "d" / "deep" / "mine", "rb") as held:
        shutil.rmtree(place / "d" / "deep")
        assert held.read() == b"mine"
    (place / "d" / "foreign").unlink()
    assert list_names(place / "d") == ["new"]
    os.kill(stack.get_service_pids("master")[0], signal.SIGKILL)
    (place / "d" / "other").write_bytes(b"other")
    os.rename(place / "d" / "other", place / "d" / "new")  # noqa: PTH104 - over what is there
    found = {one["path"]: one["entry"] for one in list_trash(stack, str(place / "d"))}
    assert sorted(found) == ["/d/deep/mine", "/d/foreign", "/d/new"]
    assert (place / ".trash" / found["/d/foreign"]).read_bytes() == b"f" * 1000
    assert list_names(place) == ["d", "e"]
    stack.run_command("alluxio-like", "fs", "wait", "/")
    # The store has followed, and what it lists brings nothing back.
    stack.run_command("alluxio-like", "fs", "sync", "-r", "/")
    assert list_names(place) == ["d", "e"]
    assert list_names(place / "d") == ["new"]
    assert len(list_names(workplace / "store" / ".trash")) == 3
    # By its path, and by its name in the trash; never over what is there.
    assert stack.run_command("alluxio-like", "trash", "restore", "/d/deep/mine") == {"path": "/d/deep/mine"}
    assert (place / "d" / "deep" / "mine").read_bytes() == b"mine"
    refused = stack.try_command("alluxio-like", "trash", "restore", found["/d/new"])
    assert refused.returncode == 1
    assert "rename it" in refused.stderr
    (place / "d" / "new").unlink()
    stack.run_command("alluxio-like", "trash", "restore", found["/d/new"])
    assert (place / "d" / "new").read_bytes() == b"new"
    # Nothing comes into the trash but by being removed; what is removed there is gone.
    with pytest.raises(PermissionError):
        (place / ".trash" / "x").touch()
    (place / ".trash" / found["/d/foreign"]).unlink()
    assert [one["path"] for one in list_trash(stack)] == ["/d/new"]
    assert stack.run_command("alluxio-like", "trash", "empty", "/d") == {"files": 1}
    assert list_trash(stack) == []
    stack.run_command("alluxio-like", "fs", "wait", "/")
    assert list_names(workplace / "store" / ".trash") == []
    stack.run_command("alluxio-like", "trash", "off", "/d")
    (place / "d" / "new").unlink()
    assert list_trash(stack) == []
    assert stack.try_command("alluxio-like", "trash", "off", "/d").returncode == 1


def test_it_goes_when_its_time_is_over(stack: Stack, workplace: Path) -> None:
    place = stack.mountpoint
    stack.run_command("alluxio-like", "trash", "on", "/", "--keep", "1s")
    (place / "d" / "foreign").unlink()
    os.kill(stack.get_service_pids("master")[0], signal.SIGKILL)
    wait_until(lambda: not list_names(place / ".trash"), "it is gone")
    assert list_trash(stack) == []
    stack.run_command("alluxio-like", "fs", "wait", "/")
    assert list_names(workplace / "store") == [".trash", "d"]
    assert list_names(workplace / "store" / ".trash") == list_names(workplace / "store" / "d") == []
