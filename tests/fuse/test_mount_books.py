"""What the daemon says of who reads: exact where it answers READs itself, as the kernel's accounting has it where it does not."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.conftest import Mount, wait_until

pytestmark = pytest.mark.mount

LARGE = 16 << 20
Make = Callable[..., Mount]
PROGRAMS = Path(sys.executable).parent


def ask(mount: Mount, query: str = "") -> Any:
    """/jobs.json of a mount, found as the commands do."""
    url = os.getxattr(mount.path, "user.alluxio_like.http").decode()
    with urllib.request.urlopen(f"{url}/jobs.json{query}", timeout=60) as answer:
        return json.load(answer)


def find_job(mount: Mount, pid: int) -> Any:
    return next((job for job in ask(mount)["jobs"] if job["pid"] == pid), None)


def make_mount(mount: Make, **more: Any) -> Mount:
    return mount(big_files={"/large": LARGE, "/small": 100_000}, fuse={"fill_at_open_bytes": LARGE}, **more)


@pytest.fixture
def passing(mount: Make, session: str) -> Mount:
    """A mount whose files the kernel reads by itself."""
    if session != "kernel":
        pytest.skip("this session has no passthrough")
    made = make_mount(mount)
    (made.path / "large").read_bytes()
    state = os.getxattr(made.path / "large", "user.alluxio_like.passthrough").decode()
    if state != "passthrough":
        pytest.skip(f"no passthrough here: {state}")
    return made


def run_reader(code: str, *arguments: object) -> int:
    """Run a Python program that reads; the number of its process, which has ended."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    assert process.wait(60) == 0
    return process.pid


def get_total(job: Any) -> int:
    return int(job["read_bytes"] + job["passthrough_bytes"])


# Passthrough


@pytest.mark.parametrize("pattern", ["read", "randread"])
@pytest.mark.parametrize("direct", [0, 1])
def test_passthrough_reads_agree_with_fio(passing: Mount, tmp_path: Path, pattern: str, direct: int) -> None:
    """While its process is there. (Once it has gone, what it read since it was looked at last is guessed.)"""
    if shutil.which("fio") is None:
        pytest.skip("fio is not installed")
    block, size = ("1m", 256 << 20) if pattern == "read" else ("4k", 40 << 20)
    counted = tmp_path / "counted"

    def count() -> int:
        return sum(job["passthrough_bytes"] for job in ask(passing)["jobs"] if job["name"] == "fio")

    with subprocess.Popen(
        ["fio", "--name=t", f"--filename={passing.path}/large", f"--rw={pattern}", f"--bs={block}", f"--direct={direct}",
         f"--io_size={size}", "--norandommap", "--ioengine=psync", "--readonly", "--thread=0", "--output-format=json",
         f"--exec_postrun=until [ -e {counted} ]; do sleep 0.05; done"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    ) as fio:  # fmt: skip
        try:
            wait_until((tmp_path / "t.postrun.txt").exists, "the end of its reads")
            wait_until(lambda: abs(count() - size) <= 0.05 * size, f"{size} bytes")
            assert all(job["read_bytes"] == 0 for job in ask(passing)["jobs"] if job["name"] == "fio")
        finally:
            counted.touch()
            output, errors = fio.communicate(timeout=60)
    assert fio.returncode == 0, errors
    assert json.loads(output[output.index("{") :])["jobs"][0]["read"]["io_bytes"] == size


def test_a_process_that_ends_at_once_has_read_what_it_opened(passing: Mount) -> None:
    process = subprocess.Popen(["cat", str(passing.path / "small"), str(passing.path / "large")], stdout=subprocess.DEVNULL)
    assert process.wait(60) == 0
    expected = 100_000 + LARGE
    wait_until(
        lambda: (job := find_job(passing, process.pid)) and abs(get_total(job) - expected) < 0.05 * expected,
        f"{expected} bytes",
    )
    job = find_job(passing, process.pid)
    assert job["opens"] == {"passthrough": 2, "cached": 0, "direct": 0}
    wait_until(lambda: find_job(passing, process.pid)["ended"], "its end")


def test_a_file_that_stays_open_is_booked_while_it_is_read(passing: Mount) -> None:
    code = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "sys.stdin.readline()\n"
        "for n in range(64): os.pread(fd, 1 << 20, (n % 16) << 20)\n"
        "print('read', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code, passing.path / "large"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with reader:
        assert reader.stdin is not None and reader.stdout is not None
        try:
            wait_until(lambda: find_job(passing, reader.pid), "the job")
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "read\n"
            expected = 64 << 20
            wait_until(lambda: abs(find_job(passing, reader.pid)["passthrough_bytes"] - expected) < 0.05 * expected, "its bytes")
            assert find_job(passing, reader.pid)["open"] == 1
        finally:
            reader.kill()
    wait_until(lambda: find_job(passing, reader.pid)["open"] == 0, "its end")


def test_children_that_inherited_a_file_read_for_their_parent(passing: Mount) -> None:
    code = (
        "import os, sys, time\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "if os.fork() == 0:\n"
        "    for n in range(32): os.pread(fd, 1 << 20, (n % 16) << 20)\n"
        "sys.stdin.readline()\n"
    )
    reader = subprocess.Popen([sys.executable, "-c", code, passing.path / "large"], stdin=subprocess.PIPE, text=True)
    with reader:
        expected = 32 << 20
        wait_until(
            lambda: (job := find_job(passing, reader.pid)) and abs(job["passthrough_bytes"] - expected) < 0.05 * expected,
            "its child's bytes",
        )


def test_what_is_read_past_us_is_in_the_metrics(passing: Mount) -> None:
    run_reader("import sys; open(sys.argv[1], 'rb').read()", passing.path / "large")
    url = os.getxattr(passing.path, "user.alluxio_like.http").decode()

    def count() -> float:
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        name = 'alluxio_like_read_bytes_total{source="passthrough"}'
        return sum(float(line.split()[1]) for line in lines if line.startswith(name))

    wait_until(lambda: count() >= LARGE * 0.95, "its bytes")


# Reads that come to the daemon


def test_reads_are_counted_exactly(mount: Make, session: str) -> None:
    if session == "kernel":
        pytest.skip("for reads that come to the daemon")
    made = make_mount(mount)
    code = "import os, sys\nfd = os.open(sys.argv[1], os.O_RDONLY)\nassert len(os.pread(fd, 65536, 0)) == 65536\n"
    pid = run_reader(code, made.path / "small")
    job = find_job(made, pid)
    assert job["passthrough_bytes"] == 0
    # The kernel reads ahead: no more than the file.
    assert 65536 <= job["read_bytes"] <= 100_000
    assert job["opens"] == {"passthrough": 0, "cached": 1, "direct": 0}
    assert job["name"].startswith("python")


def test_both_sides_of_the_books_agree(mount: Make, session: str) -> None:
    made = make_mount(mount)
    for number in range(3):
        run_reader("import sys; [open(name, 'rb').read() for name in sys.argv[1:]]", made.path / "small", made.path / "large")
        wait_until(lambda n=number: sum(sum(job["opens"].values()) for job in ask(made)["jobs"]) == 2 * (n + 1), "opens")  # type: ignore[misc]
    books = ask(made)
    for what in ("read_bytes", "passthrough_bytes", "waited_bytes", "metadata_waits"):
        jobs = sum(job[what] for job in books["jobs"]) + books["other_jobs"][what]
        files = sum(file[what] for file in books["files"]) + books["other_files"][what] + books["names"][what]
        assert jobs == files == books["total"][what], what


# Commands


def run_command(*arguments: str, code: int = 0) -> Any:
    done = subprocess.run([str(PROGRAMS / "alluxio-like"), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def test_top_looks_once(mount: Make, session: str) -> None:
    made = make_mount(mount)
    code = "import sys, time\nwhile True:\n  open(sys.argv[1], 'rb').read()\n  time.sleep(0.01)\n"
    with subprocess.Popen([sys.executable, "-c", code, made.path / "small"]) as reader:
        try:
            wait_until(lambda: find_job(made, reader.pid), "the job")
            arguments = ("top", "--once", "--interval", "1.5s", "--mount", str(made.path))
            (shown,) = json.loads(run_command(*arguments, "--json"))
            (job,) = [row for row in shown["jobs"] if row["pid"] == reader.pid]
            assert job["files_per_s"] > 0
            if session == "kernel":
                assert job["bytes_per_s"] > 0
            assert [row["label"] for row in shown["files"]] == ["small"]
            lines = run_command(*arguments).splitlines()
            assert all(len(line) <= 80 for line in lines[2:])
            assert any(line.split()[:1] == [str(reader.pid)] for line in lines)
        finally:
            reader.kill()


def test_why_tells_of_a_process_that_has_ended(mount: Make, session: str) -> None:
    made = make_mount(mount)
    pid = run_reader("import sys; open(sys.argv[1], 'rb').read()", made.path / "large")
    shown = json.loads(run_command("why", str(pid), "--json"))
    assert shown["mountpoint"] == str(made.path)
    assert shown["job"]["pid"] == pid
    assert [file["key"] for file in shown["job"]["worst"]] == ["large"]
    assert "large" in run_command("why", str(made.path / "large"))
    assert "no mount of this machine remembers" in run_command("why", "1", code=1)
    assert "not on a mount" in run_command("why", "/etc/passwd", code=1)
    assert "a directory: give a file in it" in run_command("why", str(made.path), code=1)


def test_requests_that_wait_now_are_shown(mount: Make, session: str) -> None:
    if session == "pyfuse3":
        pytest.skip("pyfuse3 does not say who asks")
    made = make_mount(mount, io_timeout_s=200.0)
    (made.path / "small").read_bytes()
    made.do("stall", what="stall_names")
    with subprocess.Popen(["stat", str(made.path / "nothing-of-this-name")], stderr=subprocess.DEVNULL) as asker:
        wait_until(lambda: [one for one in ask(made)["waiting"] if one["pid"] == asker.pid], "the request")
        (waiting,) = [one for one in ask(made)["waiting"] if one["pid"] == asker.pid]
        assert waiting["what"] == "lookup"
        assert "Waiting now, and not counted yet: 1 request(s), the longest (lookup)" in run_command("why", str(asker.pid))
        made.do("lift")
        assert asker.wait(60) == 1
    wait_until(lambda: not ask(made)["waiting"], "its end")
    waited = find_job(made, asker.pid)
    assert waited["metadata_waits"] == 1
    assert waited["waits_s"]["metadata"] > 0.1
