"""Mounts that a file declares, and commands that start before what they need is there."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.net import find_ports
from tests.servers.stack import PROGRAMS, Stack, start_stack

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    for name in ("a", "b"):
        (directory / name).mkdir()
        (directory / name / "file").write_text(name * 1000)
    return directory


@pytest.fixture(scope="module")
def stack(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with start_stack(tmp_path_factory.mktemp("stack"), {"/": f"file://{source}/a"}, {}) as running:
        running.environment["ALLUXIO_LIKE_TOKEN_FILE"] = str(Path(running.ready["home"]) / "token")
        yield running


def declare(directory: Path, *mounts: dict[str, Any]) -> str:
    file = directory / "mounts.json"
    file.write_text(json.dumps(mounts))
    return str(file)


def test_what_is_declared_is_mounted_once_and_updated_then(stack: Stack, source: Path, tmp_path: Path) -> None:
    uri = f"file://{source}/b"
    done = stack.try_command("alluxio-like", "mount", "--from", declare(tmp_path, {"path": "/x", "uri": uri}))
    assert (done.returncode, done.stdout) == (0, f"mounted {uri} at /x\n"), done.stderr
    assert (stack.mountpoint / "x/file").read_text() == "b" * 1000
    again = declare(tmp_path, {"path": "/x", "uri": uri, "sync_interval": "7s"})
    assert stack.try_command("alluxio-like", "mount", "--from", again).stdout == f"updated {uri} at /x\n"
    mounts = {mount["path"]: mount["sync_interval_s"] for mount in stack.run_command("alluxio-like", "mounts")}
    assert mounts["/x"] == 7
    assert set(mounts) == {"/", "/x"}
    other = declare(tmp_path, {"path": "/x", "uri": f"file://{source}/a"})
    refused = stack.try_command("alluxio-like", "mount", "--from", other)
    assert refused.returncode == 1
    assert "unmount it first" in refused.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ('[{"path": "/x"}]', "0.uri: Field required"),
        ('[{"path": "/x", "uri": "s3://b", "sync": 1}]', "0.sync: Extra inputs"),
        ('[{"path": "/x", "uri": "s3://b", "options": {"uid": "me"}}]', "are numbers"),
    ],
)
def test_a_wrong_file_is_refused_in_a_line(stack: Stack, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mounts.json"
    file.write_text(text)
    done = stack.try_command("alluxio-like", "mount", "--from", str(file))
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_load_waits_for_the_mount_and_says_what_is_in_the_way(stack: Stack, tmp_path: Path) -> None:
    done = stack.try_command("cache", "load", "/", "--mounted", str(tmp_path), "--wait", "200ms")
    assert done.returncode == 1
    assert "no mount of ours is there" in done.stderr
    done = stack.try_command("cache", "load", "/", "--mounted", str(stack.mountpoint), "--wait", "60s")
    assert done.returncode == 0, done.stderr


def test_a_command_waits_for_a_master_that_comes_later(tmp_path: Path) -> None:
    (port,) = find_ports(1)
    address = f"127.0.0.1:{port}"
    command = [str(PROGRAMS / "alluxio-like"), "mount", "/", f"file://{tmp_path}", "--master", address]
    done = subprocess.run([*command, "--wait", "0s"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no master answers" in done.stderr
    waiting = subprocess.Popen([*command, "--wait", "150s", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        service = [
            sys.executable,
            "-P",
            "-m",
            "alluxio_like.cli.main",
            "master",
            "--home",
            str(tmp_path / "m"),
            "--bind",
            address,
        ]
        started.append(subprocess.Popen(service, stderr=subprocess.DEVNULL))

    threading.Timer(0.5, start).start()
    try:
        _, errors = waiting.communicate(timeout=200)
        # It was heard: without the token it may not mount.
        assert "token is missing or wrong" in errors
    finally:
        waiting.kill()
        for master in started:
            master.terminate()
            master.wait(60)
