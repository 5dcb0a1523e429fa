"""How the master is found, and what a path means."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alluxio_like.cli import finding
from alluxio_like.cli.finding import (
    Record,
    find_master,
    list_records,
    lookup_token_file,
    match_uri,
    recorded,
    to_namespace_path,
    write_record,
)
from alluxio_like.errors import InvalidArgument, NotFound


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "run"
    monkeypatch.setenv("ALLUXIO_LIKE_RUN_DIR", str(directory))
    monkeypatch.delenv("ALLUXIO_LIKE_MASTER", raising=False)
    return directory


def ticks() -> int:
    found = finding.get_start_ticks(os.getpid())
    assert found is not None
    return found


def test_the_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_master("")[0] == ""
    with recorded("up", master="a:1", mountpoint=str(tmp_path / "mnt")):
        assert find_master("")[0] == "a:1"
        write_record("fuse", Record(os.getpid(), ticks(), "b:2", mountpoint=str(tmp_path / "other")))
        with pytest.raises(InvalidArgument, match=r"a:1, b:2.*--master"):
            find_master("")
        assert find_master("", str(tmp_path / "other" / "x"))[0] == "b:2"
        assert find_master("", str(tmp_path / "mnt"))[0] == "a:1"
        assert find_master("c:3", str(tmp_path / "mnt"))[0] == "c:3"
        assert find_master("", configured=True)[0] == ""
        assert find_master("", str(tmp_path / "mnt"), configured=True)[0] == "a:1"
        monkeypatch.setenv("ALLUXIO_LIKE_MASTER", "d:4")
        assert find_master("")[0] == ""


def test_the_token_of_a_running_up_is_found(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    with recorded("up", master="a:1", home=str(tmp_path)):
        assert lookup_token_file("a:1") == tmp_path / "token"
        assert lookup_token_file("b:2") is None
    with recorded("up", master="b:2", home=str(tmp_path / "none")):
        assert lookup_token_file("b:2") is None


def test_a_record_ends_with_its_context_and_with_its_process(run_dir: Path) -> None:
    with recorded("up", master="a:1"):
        assert [record.master for record in list_records()] == ["a:1"]
    assert list_records() == []
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_record("up", Record(ended.pid, 1, "b:2"))
    write_record("up", Record(os.getpid(), ticks() + 1, "c:3"))
    (run_dir / "broken.json").write_text("{")
    assert list_records() == []
    assert [file.name for file in run_dir.iterdir()] == ["broken.json"]


def test_paths_below_a_mount_are_those_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    with recorded("fuse", master="a:1", mountpoint=str(place), path="/data"):
        assert to_namespace_path(str(place / "x" / "y")) == "/data/x/y"
        assert to_namespace_path(str(place)) == "/data"
        assert to_namespace_path(str(place) + "/x/../z/") == "/data/z"
        assert to_namespace_path(str(tmp_path / "link" / "x")) == "/data/x"
        monkeypatch.chdir(place)
        assert to_namespace_path("x") == "/data/x"
        assert to_namespace_path(".") == "/data"
        monkeypatch.chdir(tmp_path)
        assert to_namespace_path("mnt/x") == "/data/x"
        assert to_namespace_path(str(place) + "x") == str(place) + "x"


def test_other_paths_are_the_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert to_namespace_path("/") == "/"
    assert to_namespace_path("//a/./b/") == "/a/b"
    assert to_namespace_path("s3://b/./k//") == "s3://b/./k//"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match="absolute path"):
        to_namespace_path("a/b")
    with pytest.raises(InvalidArgument):
        to_namespace_path("")


def test_a_mount_of_the_whole_namespace(tmp_path: Path) -> None:
    with recorded("fuse", master="a:1", mountpoint=str(tmp_path)):
        assert to_namespace_path(str(tmp_path)) == "/"
        assert to_namespace_path(str(tmp_path / "a")) == "/a"


def test_uris_are_found_in_the_mount_table() -> None:
    mounts = [("/", "s3://b"), ("/data", "s3://b/deep/"), ("/f", "file:///srv")]
    assert match_uri("s3://b/x", mounts) == "/x"
    assert match_uri("s3://b", mounts) == "/"
    assert match_uri("s3://b/deep/x", mounts) == "/data/x"
    assert match_uri("s3://b/deeper", mounts) == "/deeper"
    assert match_uri("file:///srv/a/", mounts) == "/f/a"
    with pytest.raises(NotFound, match="mount it first"):
        match_uri("s3://bb/x", mounts)


def test_no_place_to_write_records_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALLUXIO_LIKE_RUN_DIR", str(tmp_path / "file"))
    with recorded("up", master="a:1"):
        assert list_records() == []


def test_a_user_whom_the_machine_does_not_know_needs_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in many containers."""

    def expand(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ALLUXIO_LIKE_RUN_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(Path, "expanduser", expand)
    assert finding.get_run_dirs() == [Path("/run/alluxio-like")]
    assert finding.to_namespace_path("/imagenet") == "/imagenet"
