"""`alluxio-like doctor`: what it finds on real file systems, files and processes, and what it makes of it."""

import gzip
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alluxio_like.cache.probe import get_kernel_version, judge_file_system, probe_file_system
from alluxio_like.cli import checks, diagnosis
from alluxio_like.cli.checks import CachePlace, Check
from alluxio_like.cli.main import app
from tests.servers.net import wait_until

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("release", "state", "said"),
    [
        ("6.18.44-fc", "ok", "may have FUSE passthrough"),
        ("6.9.0-rc1", "ok", "may have"),
        ("6.8.0-31-generic", "warn", "no FUSE passthrough"),
        ("5.14.0-503.el9", "warn", "no FUSE passthrough"),
        ("5.4.0", "warn", "pyfuse3 only"),
    ],
)
def test_kernels(release: str, state: str, said: str) -> None:
    check = checks.check_kernel(release)
    assert check.state == state
    assert said in check.message
    assert bool(check.cure) == (state != "ok")


def test_the_kernels_configuration_is_read_where_it_lies(tmp_path: Path) -> None:
    assert checks.check_kernel_config("6.12", tmp_path).state == "skip"
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/config-6.12").write_text("CONFIG_FUSE_FS=y\nCONFIG_FUSE_PASSTHROUGH=y\n")
    assert checks.check_kernel_config("6.12", tmp_path).state == "ok"
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_FUSE_FS=y\n# CONFIG_FUSE_PASSTHROUGH is not set\n"))
    assert checks.check_kernel_config("6.12", tmp_path).state == "warn"
    assert checks.check_kernel_config("6.1", tmp_path).state == "skip"


def test_limits_memory_and_pages(tmp_path: Path) -> None:
    assert checks.check_descriptors(1024, 1 << 20).cure == "ulimit -n 65536"
    assert checks.check_descriptors(1024, 1024).state == "warn"
    assert checks.check_descriptors(1 << 20, 1 << 20).state == "ok"
    assert checks.check_descriptors(1 << 20, 1 << 20, used=1 << 20).state == "warn"
    own = checks.check_process(os.getpid(), "the test")
    assert own is not None
    assert f"pid {os.getpid()}" in own.name
    assert checks.check_process(2**22 + 1, "nobody") is None
    (tmp_path / "proc/sys/fs/fuse").mkdir(parents=True)
    assert checks.check_max_pages(tmp_path).state == "ok"
    (tmp_path / "proc/sys/fs/fuse/max_pages_limit").write_text("32\n")
    assert checks.check_max_pages(tmp_path).state == "warn"
    for available, free, state in ((8 << 20, 4 << 20, "ok"), (512 << 10, 4 << 20, "warn"), (2 << 20, 1 << 20, "warn")):
        text = f"MemTotal: 16777216 kB\nMemAvailable: {available} kB\nSwapTotal: {4 << 20} kB\nSwapFree: {free} kB\n"
        (tmp_path / "proc/meminfo").write_text(text)
        assert checks.check_memory(tmp_path).state == state


def test_versions_of_kernels_and_file_systems() -> None:
    assert get_kernel_version("6.9.0-rc1") == (6, 9)
    assert get_kernel_version("nonsense") == (0, 0)
    assert judge_file_system("ext4", "6.12").passthrough == "yes"
    assert "6.9" in judge_file_system("ext4", "6.8").reason
    assert "ELOOP" in judge_file_system("overlay", "6.12").reason
    assert judge_file_system("nfs", "6.12").passthrough == "unknown"
    assert judge_file_system("0x1234", "6.12").passthrough == "unknown"


# file systems


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")


def make_loop(path: Path, make: list[str], size: int) -> Callable[[], None]:
    """Mount a new file system from an image at `path`/mnt; what takes it away."""
    image, place = path / "image", path / "mnt"
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run([*make, str(image)], check=True, capture_output=True)
    place.mkdir()
    done = subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount an image here: {done.stderr.strip()}")
    return lambda: subprocess.run(["umount", str(place)], check=True) and None  # type: ignore[func-returns-value]


@pytest.fixture(params=["ext4", "xfs", "tmpfs", "overlay"])
def file_system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A file system's name, and a directory on one."""
    name, place = str(request.param), tmp_path / "mnt"
    if name in {"ext4", "xfs"} and shutil.which(f"mkfs.{name}") is None:
        pytest.skip(f"mkfs.{name} is not installed")
    if name == "ext4":
        end = make_loop(tmp_path, ["mkfs.ext4", "-q", "-F"], 64 << 20)
    elif name == "xfs":
        end = make_loop(tmp_path, ["mkfs.xfs", "-q"], 320 << 20)
    else:
        place.mkdir()
        for part in ("lower", "upper", "work"):
            (tmp_path / part).mkdir()
        layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        what = ["tmpfs"] if name == "tmpfs" else ["overlay", "-o", layers]
        done = subprocess.run(
            ["mount", "-t", what[0], *what[1:], "none", str(place)], check=False, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount {name} here: {done.stderr.strip()}")

        def end() -> None:
            subprocess.run(["umount", str(place)], check=True)

    yield name, place
    end()


@needs_root
@pytest.mark.mount
def test_what_can_be_passed_through_is_foretold_and_tried(file_system: tuple[str, Path]) -> None:
    name, place = file_system
    fd = os.open(place, os.O_RDONLY)
    found = probe_file_system(fd)
    os.close(fd)
    assert found.name == name
    said = list(checks.check_cache_dirs([CachePlace(place, 1 << 20)], privileged=True))
    kernel = next(check for check in said if check.name == "passthrough")
    mine = next(check for check in said if check.name == f"cache {place}")
    if kernel.state != "ok":
        assert get_kernel_version(os.uname().release) < (6, 9) or "cannot be tried" in kernel.message
        pytest.skip(kernel.message)
    assert (mine.state, found.passthrough) == (("warn", "no") if name == "overlay" else ("ok", "yes"))
    if name == "overlay":
        assert "hostPath" in mine.cure
        assert "Too many levels" in mine.message
    else:
        assert "(tried)" in mine.message
    # Nothing is left of the trial. (Those of other processes of the tests end, too.)
    assert [one.name for one in place.iterdir() if one.name != "lost+found"] == []
    wait_until("the trial's end", lambda: "alluxio-like-trial" not in Path("/proc/self/mountinfo").read_text(), timeout_s=60)


def test_cache_directories(tmp_path: Path) -> None:
    def look(place: CachePlace) -> dict[str, Check]:
        return {
            check.name.removeprefix(f"cache {place.path}"): check for check in checks.check_cache_dirs([place], privileged=False)
        }

    assert look(CachePlace(tmp_path / "missing"))[""].state == "skip"
    found = look(CachePlace(tmp_path, 1 << 60))
    assert "more than the disk" in found[", space"].message
    (tmp_path / "index").mkdir()
    (tmp_path / "index/data.mdb").write_bytes(bytes(1 << 20))
    assert look(CachePlace(tmp_path, 80 << 20))[", index"].state == "ok"
    assert look(CachePlace(tmp_path, 8 << 20))[", index"].state == "warn"
    if tmp_path.stat().st_dev == Path("/").stat().st_dev:
        assert look(CachePlace(tmp_path, allow_root_disk=False))[", disk"].state == "fail"
        assert ", disk" not in look(CachePlace(tmp_path))


# files


def test_files_that_only_their_owner_may_read(tmp_path: Path) -> None:
    token = tmp_path / "token"
    assert checks.check_secret("token", token).state == "fail"
    token.write_text("secret")
    token.chmod(0o640)
    check = checks.check_secret("token", token)
    assert (check.state, check.cure) == ("warn", f"chmod 600 {token}")
    assert "secret" not in repr(check)
    token.chmod(0o600)
    assert checks.check_secret("token", token).state == "ok"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificates_run_out(tmp_path: Path) -> None:
    path = tmp_path / "host.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "90"]
    subprocess.run(
        [*command, "-subj", "/CN=x", "-keyout", str(tmp_path / "key"), "-out", str(path)], check=True, capture_output=True
    )
    now, day = time.time() + 5, 86400
    states = [checks.check_certificate("certificate", path, now + days * day).state for days in (0, 70, 100, -10)]
    assert states == ["ok", "warn", "fail", "fail"]
    assert checks.check_certificate("certificate", tmp_path / "missing").state == "fail"
    path.write_text("rubbish")
    assert checks.check_certificate("certificate", path).state == "fail"
    assert isinstance(ssl.OPENSSL_VERSION, str)


def test_the_configuration_and_its_files(tmp_path: Path) -> None:
    token, file = tmp_path / "token", tmp_path / "al.toml"
    token.write_text("x")
    token.chmod(0o644)
    text = f'[common]\ntoken_file = "{token}"\n[master]\nhome = "/m"\n[worker]\nhome = "/w"\n'
    text += f'cache_dirs = [{{ path = "{tmp_path}", quota_bytes = 5 }}]\n'
    file.write_text(text)
    places, found = diagnosis._read_config(file)
    assert places == [CachePlace(tmp_path, 5, False)]
    assert [(check.name, check.state) for check in found] == [("token", "warn"), ("configuration", "ok")]
    file.write_text(text + "nonsense = 1\n")
    _, found = diagnosis._read_config(file)
    assert ("configuration of the worker", "fail") in [(check.name, check.state) for check in found]


# what may hang, and what tells the time


def test_what_hangs_is_left_behind() -> None:
    assert diagnosis.ask_within(60, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        diagnosis.ask_within(60, lambda: 1 // 0)
    gate = threading.Event()
    with pytest.raises(TimeoutError):
        diagnosis.ask_within(0.05, gate.wait)
    gate.set()


@pytest.mark.parametrize(("ahead_s", "state"), [(0, "ok"), (60, "warn"), (-3600, "fail"), (None, "skip")])
def test_clocks(ahead_s: float | None, state: str) -> None:
    class Store(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(403)
            if ahead_s is not None:
                self.send_header("Date", self.date_time_string(time.time() + ahead_s))
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        assert diagnosis.check_clock(f"http://127.0.0.1:{server.server_port}").state == state
        server.shutdown()
        thread.join()


def test_a_store_that_does_not_answer_is_no_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert diagnosis.check_clock(f"http://127.0.0.1:{unused.getsockname()[1]}").state == "skip"


# the command


def test_it_works_where_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLUXIO_LIKE_RUN_DIR", str(tmp_path))
    monkeypatch.delenv("ALLUXIO_LIKE_CONFIG", raising=False)
    arguments = ["doctor", "--master", "127.0.0.1:1", "--cache-dir", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    found = json.loads(done.stdout)
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert states["master"] == "skip"
    assert states["kernel"] in {"ok", "warn"}
    assert f"cache {tmp_path}" in states
    assert done.exit_code == (1 if found["failed"] else 0)
    shown = CliRunner().invoke(app, [*arguments, "--all"]).stdout
    # Mounts of others may come and go meanwhile.
    assert all(name in shown for name in states if not name.startswith("mount "))
    assert shown.splitlines()[-1].endswith("could not be looked at")


def test_commands_do_not_load_what_only_the_doctor_needs() -> None:
    code = "import sys, alluxio_like.cli.main; assert not {'lmdb', 'grpc', 'alluxio_like.cli.checks'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
