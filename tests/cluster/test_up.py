"""`alluxio-like up` as a person meets it: real processes, a real mount, the real command lines."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import xxhash

from alluxio_like.cli.finding import get_start_ticks
from alluxio_like.fuse.mountpoint import find_top
from tests.servers.processes import freeze

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse"),
]

PROGRAMS = Path(sys.executable).parent
START_S = 60.0
STOP_S = 60.0


YOUNG_S = 2.1


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for a condition; what it returned. What it raises as OSError counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


@dataclass
class Up:
    """A home with data beside it; `start` it as often as needed."""

    directory: Path
    environment: dict[str, str]
    data: dict[str, bytes] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def mountpoint(self) -> Path:
        return self.directory / "mnt"

    @property
    def source(self) -> Path:
        return self.directory / "source"

    @property
    def command(self) -> list[str]:
        return [
            str(PROGRAMS / "alluxio-like"), "up", "--json", "--home", str(self.directory / "home"), "--cache-size", "1GB",
            "--mount", f"/data=file://{self.source}", "--fuse", str(self.mountpoint),
        ]  # fmt: skip

    @property
    def pids(self) -> list[int]:
        found = [self.ready["master"], *self.ready["workers"], *([self.ready["fuse"]] if "fuse" in self.ready else [])]
        return [service["pid"] for service in found]

    def start(self, *arguments: str, command: list[str] | None = None) -> None:
        with (self.directory / "up.err").open("a") as errors:
            self.process = subprocess.Popen(
                [*(command or self.command), *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.directory / "up.err").read_text()
        self.ready = json.loads(line)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it; the exit code. Nothing may be left."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(STOP_S)
        self.forget()
        assert find_top(self.mountpoint) is None
        assert [pid for pid in self.pids if get_start_ticks(pid)] == []
        return status

    def forget(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

    def get_state(self) -> dict[str, Any]:
        """What `up` says of itself now."""
        state: dict[str, Any] = json.loads((self.directory / "home/up.json").read_text())
        return state

    def run(self, program: str, *arguments: str, code: int = 0, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [str(PROGRAMS / program), *arguments], env=self.environment, capture_output=True, cwd=cwd, timeout=200, check=False
        )
        said = done.stderr.decode(errors="surrogateescape")
        assert done.returncode == code, said + done.stdout.decode(errors="surrogateescape")
        assert "Traceback" not in said
        return (said if code else done.stdout.decode(errors="surrogateescape")).strip()

    def run_json(self, program: str, *arguments: str) -> Any:
        return json.loads(self.run(program, *arguments, "--json"))

    def check_reads(self, place: Path) -> None:
        for name, content in self.data.items():
            assert (place / name).read_bytes() == content


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ALLUXIO_LIKE_")}
    made = Up(tmp_path, {**clean, "ALLUXIO_LIKE_RUN_DIR": str(tmp_path / "run"), "HOME": str(tmp_path)})
    made.mountpoint.mkdir()
    (made.source / "deep").mkdir(parents=True)
    for number in range(5):
        made.data[f"f{number}"] = os.urandom(110_000 + number)
    made.data["deep/large"] = os.urandom((9 << 20) + 7)
    made.data["empty"] = b""
    for name, content in made.data.items():
        (made.source / name).write_bytes(content)
        os.utime(made.source / name, (1_600_000_000, 1_600_000_000))
    # A fingerprint is trusted 2 s after the file's last change (ctime); listed younger, files are taken for replaced later.
    until(lambda: time.time() - max(path.stat().st_ctime for path in made.source.rglob("*")) > YOUNG_S)
    try:
        yield made
    finally:
        if made.process is not None:
            made.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                made.process.wait(STOP_S)
            made.process.kill()
            made.process.wait()
            made.forget()
        if find_top(made.mountpoint) is not None:
            subprocess.run(["umount", "-l", str(made.mountpoint)], check=False)


@pytest.mark.timeout(900)  # (fifty commands)
def test_the_first_minute_and_every_command(up: Up, tmp_path: Path) -> None:
    up.start("--workers", "2")
    assert {"pid", "home", "master", "workers", "fuse", "mounts"} <= up.ready.keys()
    assert len(up.ready["workers"]) == 2
    up.check_reads(up.mountpoint / "data")
    with pytest.raises(OSError, match="Read-only"):
        (up.mountpoint / "data" / "new").write_bytes(b"x")

    job = up.run_json("cache", "load", str(up.mountpoint / "data"))
    assert (job["state"], job["total_files"], job["failed_files"]) == ("done", len(up.data), 0)
    total = sum(len(content) for content in up.data.values())
    for path in ("/data", str(up.mountpoint / "data"), f"file://{up.source}"):
        status = up.run_json("cache", "status", path)
        assert (status["files"], status["known_bytes"], status["cached_bytes"]) == (len(up.data), total, total)
    assert up.run("cache", "status", "deep/large", cwd=up.mountpoint / "data").startswith("/data/deep/large: 1 file,")
    assert "already" not in up.run("cache", "load", "/data")
    assert up.run_json("cache", "load", "/data")["skipped_files"] >= len(up.data) - 1
    assert "fits" in up.run("cache", "load", "/data", "--dry-run")
    (tmp_path / "list").write_bytes(b"/data/f0\n\n/data/f1\n")
    assert up.run_json("cache", "load", "--from-file", str(tmp_path / "list"))["total_files"] == 2
    assert up.run_json("cache", "load", "/data", "--glob", "f*", "--replicas", "2", "--verify")["done_files"] >= 5
    job_id = up.run("cache", "load", "/data", "--detach")
    until(lambda: up.run_json("cache", "jobs", job_id)["state"] == "done")
    assert job_id in up.run("cache", "jobs")
    assert up.run("cache", "jobs", job_id, "--watch").startswith("loaded and checked")
    assert up.run_json("cache", "pin", "/data/f0")["files"] == 1
    assert up.run_json("cache", "free", "/data")["kept_pinned_files"] >= 1
    assert up.run_json("cache", "unpin", "/data/f0")["files"] == 1

    assert up.run("alluxio-like", "fs", "ls", "/data").splitlines() == ["deep/", "empty", *(f"f{n}" for n in range(5))]
    assert json.loads(up.run("alluxio-like", "fs", "stat", "/data/f3", "--json"))["attr"]["size"] == 110_003
    assert up.run("alluxio-like", "fs", "cat", "/data/f1") == up.data["f1"].decode(errors="surrogateescape").strip()
    wanted = xxhash.xxh3_128(up.data["deep/large"]).hexdigest()
    assert up.run_json("alluxio-like", "fs", "checksum", "/data/deep/large")["xxh128"] == wanted
    up.run("alluxio-like", "fs", "get", "/data/deep/large", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == up.data["deep/large"]
    assert up.run_json("alluxio-like", "fs", "du", "/data")["files"] == len(up.data)
    assert "WORKER" in up.run("alluxio-like", "fs", "locate", "/data/deep/large")
    (up.source / "f0").unlink()
    assert up.run_json("alluxio-like", "fs", "sync", "/data")["removed"] == 1

    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x").write_bytes(b"more")
    up.run("alluxio-like", "mount", "/data/more", str(tmp_path / "more"))
    assert (up.mountpoint / "data/more/x").read_bytes() == b"more"
    assert {mount["path"] for mount in up.run_json("alluxio-like", "mounts")} == {"/data", "/data/more"}
    up.run("alluxio-like", "unmount", "/data/more")
    assert "2 of 2 workers live" in up.run("alluxio-like", "report")
    assert len(up.run_json("alluxio-like", "workers")["workers"]) == 2

    assert "/data/nothing" in up.run("cache", "status", "/data/nothing", code=1)
    assert "no mount covers" in up.run("cache", "status", "s3://other/x", code=1)
    assert up.stop() == 0


def test_a_second_start_is_warm_and_ctrl_c_stops(up: Up) -> None:
    up.start()
    up.run("cache", "load", "/data")
    before = up.run_json("alluxio-like", "fs", "stat", "/data/f1")["attr"]
    assert up.stop(signal.SIGINT) == 0
    up.start()
    # What a worker holds is known once it has reported, which is after it serves.
    until(lambda: up.run_json("cache", "status", "/data")["cached_bytes"] == sum(len(content) for content in up.data.values()))
    after = up.run_json("alluxio-like", "fs", "stat", "/data/f1")["attr"]
    assert after == before
    up.check_reads(up.mountpoint / "data")
    assert up.stop() == 0


def test_a_second_one_on_the_same_home_is_refused_in_one_line(up: Up, tmp_path: Path) -> None:
    up.start()
    said = up.run("alluxio-like", "up", "--home", str(tmp_path / "home"), code=1)
    assert said.splitlines() == [said]
    assert f"in use by process {up.ready['pid']}" in said
    assert "another --home" in said
    up.check_reads(up.mountpoint / "data")
    assert up.stop() == 0


def test_what_crashes_comes_back(up: Up) -> None:
    up.start("--workers", "2")
    up.run("cache", "load", "/data")
    for service in ("workers", "master", "fuse"):
        before = up.get_state()[service]
        pid = before[0]["pid"] if service == "workers" else before["pid"]
        os.kill(pid, signal.SIGKILL)

        def is_back(service: str = service, pid: int = pid) -> bool:
            now = up.get_state()[service]
            found = now[0] if service == "workers" else now
            return found["pid"] not in {0, pid}

        until(is_back)
        until(lambda: (up.mountpoint / "data/f2").read_bytes() == up.data["f2"])
        up.check_reads(up.mountpoint / "data")
    up.ready = up.get_state()
    assert up.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session")
def test_a_killed_or_replaced_daemon_of_the_mount_is_not_noticed(up: Up) -> None:
    up.start("--processes", "2")
    up.run("cache", "load", "/data")
    file = up.mountpoint / "data/f1"
    assert up.ready["fuse"]["pid"] != up.ready["fuse"]["daemon_pid"]
    assert up.ready["fuse"]["generation"] == 1
    with open(file, "rb") as held:
        os.kill(up.ready["fuse"]["daemon_pid"], signal.SIGKILL)
        assert file.read_bytes() == up.data["f1"]
        assert held.read() == up.data["f1"]
    until(lambda: up.get_state()["fuse"]["generation"] == 2)
    now = up.get_state()["fuse"]
    assert (now["pid"], now["restarts"]) == (up.ready["fuse"]["pid"], 1)
    assert now["daemon_pid"] != up.ready["fuse"]["daemon_pid"]

    said = up.run("alluxio-like", "fuse", str(up.mountpoint), "--replace", "--log-level", "debug")
    until(lambda: up.get_state()["fuse"]["generation"] == 3)
    assert said == f"{up.mountpoint}: served by process {up.get_state()['fuse']['daemon_pid']} now"
    up.check_reads(up.mountpoint / "data")
    said = up.run(
        "alluxio-like", "fuse", str(up.mountpoint), "--replace", "--master", "127.0.0.1:1", "--io-timeout", "2s", code=1
    )
    assert "was not replaced, the old one goes on" in said
    up.check_reads(up.mountpoint / "data")
    assert "with --replace" in up.run("alluxio-like", "fuse", str(up.mountpoint), code=1)
    assert "no mount of ours" in up.run("alluxio-like", "fuse", str(up.source), "--replace", code=1)

    def has_reader() -> bool:
        here = up.run_json("alluxio-like", "report")["local_mounts"]
        return any(one["mountpoint"] == str(up.mountpoint) and len(one["readers"]) == 1 for one in here)

    until(has_reader)
    here = up.run_json("alluxio-like", "report")["local_mounts"]
    (mount,) = (one for one in here if one["mountpoint"] == str(up.mountpoint))
    assert (mount["mountpoint"], mount["generation"], mount["restarts"], mount["state"]) == (
        str(up.mountpoint),
        3,
        1,
        "serving",
    )
    assert "2 processes; its daemon was restarted 1 times" in up.run("alluxio-like", "report")
    assert up.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session")
def test_what_the_kernel_reads_by_itself_needs_nobody(up: Up) -> None:
    """A worker's and a daemon's death do not disturb who reads a file that passes through."""
    up.start()
    up.run("cache", "load", "/data")
    file = up.mountpoint / "data/deep/large"
    assert up.process is not None
    until(lambda: os.getxattr(file, "user.alluxio_like.passthrough").startswith(b"p") or not passes(up))
    with open(file, "rb", buffering=0) as held:
        for service in ("worker", "daemon"):
            state = up.get_state()
            victim = state["workers"][0]["pid"] if service == "worker" else state["fuse"]["daemon_pid"]
            # Who starts another one stands still meanwhile: it is nobody but the kernel that answers.
            starter = up.process.pid if service == "worker" else state["fuse"]["pid"]
            if passes(up):
                freeze(starter)
            os.kill(victim, signal.SIGKILL)
            for offset in range(0, 9 << 20, 1 << 20):
                os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(held.fileno(), 1000, offset) == up.data["deep/large"][offset : offset + 1000]
            os.kill(starter, signal.SIGCONT)
            until(lambda: (up.mountpoint / "data/f2").read_bytes() == up.data["f2"])
    assert up.stop() == 0


def passes(up: Up) -> bool:
    return os.getxattr(up.mountpoint, "user.alluxio_like.session") == b"kernel with passthrough"


def test_hung_services_do_not_keep_it_from_stopping(up: Up) -> None:
    up.start()
    for pid in (up.ready["workers"][0]["pid"], up.ready["fuse"]["pid"]):
        freeze(pid)
    assert up.stop() == 0


def test_everything_ends_with_a_killed_supervisor_and_starts_again(up: Up) -> None:
    up.start()
    assert up.process is not None
    up.process.kill()
    up.process.wait()
    up.forget()
    until(lambda: not [pid for pid in up.pids if get_start_ticks(pid)])
    assert find_top(up.mountpoint) is None
    up.start()
    up.check_reads(up.mountpoint / "data")
    assert up.stop() == 0


def test_an_unmount_from_outside_ends_it(up: Up) -> None:
    up.start()
    subprocess.run(["fusermount3", "-u", str(up.mountpoint)], check=True)
    assert up.process is not None
    assert up.process.wait(STOP_S) == 0
    up.forget()
    assert [pid for pid in up.pids if get_start_ticks(pid)] == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--mount", "/data=file:///nonexistent/directory"], 1),
        (["--bind", "0.0.0.0:0"], 2),
    ],
)
def test_a_start_that_cannot_be_leaves_nothing(up: Up, tmp_path: Path, arguments: list[str], code: int) -> None:
    said = up.run("alluxio-like", "up", "--home", str(tmp_path / "home"), "--fuse", str(up.mountpoint), *arguments, code=code)
    assert said.splitlines() == [said], said
    assert not (tmp_path / "home/up.json").exists()
    assert not list((tmp_path / "home/run").glob("pids*"))
    assert find_top(up.mountpoint) is None


def test_the_short_form_shows_the_store_itself(up: Up) -> None:
    up.start(command=[str(PROGRAMS / "alluxio-like"), "up", "--json", f"file://{up.source}", str(up.mountpoint)])
    up.check_reads(up.mountpoint)
    assert Path(up.ready["home"]).parent == up.directory / ".alluxio-like"
    assert up.run_json("cache", "load", str(up.mountpoint / "deep"))["total_files"] == 1
    assert up.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session")
def test_a_place_can_be_mounted_on_again_while_open_files_keep_the_old_mount(up: Up) -> None:
    up.start()
    held = os.open(up.mountpoint / "data/f1", os.O_RDONLY)
    try:
        subprocess.run(["umount", "-l", str(up.mountpoint)], check=True)
        command = [
            str(PROGRAMS / "alluxio-like"),
            "fuse",
            str(up.mountpoint),
            "--ready-file",
            str(up.directory / "again"),
            "--master",
            up.ready["master"]["address"],
        ]
        again = subprocess.Popen(command, env=up.environment)
        try:
            until((up.directory / "again").exists)
            assert (up.mountpoint / "data/f2").read_bytes() == up.data["f2"]
            assert os.pread(held, 100, 7) == up.data["f1"][7:107]
            os.close(held)
            held = -1
            assert up.process is not None
            assert up.process.wait(STOP_S) == 0, "up ends with its mount"
            assert find_top(up.mountpoint) is not None
        finally:
            again.terminate()
            assert again.wait(STOP_S) == 0
        up.forget()
    finally:
        if held >= 0:
            os.close(held)
