"""Services on other addresses than loopback: refused in the clear, and with certificates made by openssl as a user would."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.net import find_ports, wait_until
from tests.servers.stack import PROGRAMS

pytestmark = pytest.mark.timeout(120)


def make_certificates(place: Path) -> None:
    """An authority, and a certificate of it for this machine."""
    config = place / "san.cnf"
    config.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for words in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=host -keyout host.key -out host.csr",
        "x509 -req -days 2 -in host.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile san.cnf -out host.pem",
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other-ca -keyout other.key -out other.pem",
    ):
        subprocess.run(["openssl", *words.split()], cwd=place, check=True, capture_output=True)


class Site:
    """Where the services run."""

    def __init__(self, place: Path) -> None:
        self.place = place
        clean = {key: value for key, value in os.environ.items() if not key.startswith("ALLUXIO_LIKE_")}
        self.environment = {
            **clean,
            "ALLUXIO_LIKE_RUN_DIR": str(place / "run"),
            "HOME": str(place),
            "ALLUXIO_LIKE_IO_TIMEOUT_S": "4",
        }
        self.tls = [
            "--tls-certificate",
            str(place / "host.pem"),
            "--tls-key",
            str(place / "host.key"),
            "--tls-ca",
            str(place / "ca.pem"),
        ]
        self.running = contextlib.ExitStack()

    def run(self, program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PROGRAMS / program), *arguments], env={**self.environment, **environment}, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    def start(self, name: str, *arguments: str) -> dict[str, str]:
        """A service, once it is ready; what it says of itself."""
        ready = self.place / f"{name}.ready"
        command = [str(PROGRAMS / "alluxio-like"), *arguments, "--ready-file", str(ready)]
        log = self.running.enter_context((self.place / f"{name}.log").open("wb"))
        process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.running.callback(process.wait, 20)
        self.running.callback(process.send_signal, signal.SIGTERM)
        wait_until(f"{name} is ready", lambda: ready.exists() or process.poll() is not None, timeout_s=30)
        assert process.poll() is None, (self.place / f"{name}.log").read_text()
        return dict(json.loads(ready.read_text()))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    make_certificates(tmp_path)
    made = Site(tmp_path)
    with made.running:
        yield made


def test_other_addresses_need_tls_or_insecure(site: Site) -> None:
    for program in (["master", "--home", "m"], ["worker", "--home", "w", "--allow-root-disk"]):
        for bind in (["--bind", "0.0.0.0:0"], ["--bind", "127.0.0.1:0", "--http-bind", "0.0.0.0:0"]):
            words = [program[0], program[1], str(site.place / program[2]), *program[3:], *bind]
            refused = site.run("alluxio-like", *words)
            assert refused.returncode == 2, refused.stderr
            assert "not a loopback address" in refused.stderr
            assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
            assert "Traceback" not in refused.stderr


def test_a_worker_says_under_which_address_it_is_reached(site: Site) -> None:
    words = ["worker", "--home", str(site.place / "w"), "--allow-root-disk", "--bind", "0.0.0.0:0", "--insecure"]
    refused = site.run("alluxio-like", *words)
    assert refused.returncode == 2, refused.stderr
    assert "--advertise" in refused.stderr


def list_listening(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))  # noqa: PTH115 (no path)
    tables = "".join(Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    rows = [line.split() for line in tables.splitlines() if "address" not in line]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


def test_master_worker_and_commands_over_tls(site: Site) -> None:
    source = site.place / "source"
    source.mkdir()
    (source / "a").write_bytes(b"content" * 1000)
    os.utime(source / "a", (1_600_000_000, 1_600_000_000))
    port, worker_port = find_ports(2)
    master = site.start(
        "master",
        "master",
        "--home",
        str(site.place / "m"),
        "--bind",
        f"0.0.0.0:{port}",
        "--advertise",
        f"127.0.0.1:{port}",
        *site.tls,
    )
    assert master["address"] == f"127.0.0.1:{port}"
    worker = ["worker", "--master", master["address"], "--home", str(site.place / "w"), "--allow-root-disk", "--cache-dir"]
    worker += [
        f"{site.place / 'cache'}=1GB",
        "--bind",
        f"0.0.0.0:{worker_port}",
        "--advertise",
        f"127.0.0.1:{worker_port}",
        *site.tls,
    ]
    ready = site.start("worker", *worker, "--token-file", master["token_file"])
    worker_pid = int(ready["pid"])
    config = site.place / "client.toml"
    config.write_text(f'[client]\nmaster = "{master["address"]}"\n[client.tls]\nca = "{site.place / "ca.pem"}"\n')
    trust = {"ALLUXIO_LIKE_CONFIG": str(config), "ALLUXIO_LIKE_MASTER": master["address"]}
    refused = site.run("alluxio-like", "mount", "/data", f"file://{source}", **trust)
    assert (refused.returncode, "token" in refused.stderr) == (1, True), refused.stderr
    trust["ALLUXIO_LIKE_TOKEN_FILE"] = master["token_file"]
    mounted = site.run("alluxio-like", "mount", "/data", f"file://{source}", **trust)
    assert mounted.returncode == 0, mounted.stderr
    loaded = site.run("cache", "load", "/data", "--verify", "--json", **trust)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout)["checked_files"] == 1
    assert site.run("alluxio-like", "fs", "cat", "/data/a", **trust).stdout == "content" * 1000
    # The data socket knows no TLS, so there is none.
    assert list_listening(worker_pid) == {worker_port, int(ready["http_address"].rpartition(":")[2])}
    # In the clear, or trusting somebody else: no answer, and no hang.
    plain = site.run("alluxio-like", "mounts", "--master", master["address"])
    assert (plain.returncode, "Traceback" in plain.stderr) == (1, False), plain.stderr
    config.write_text(config.read_text().replace("ca.pem", "other.pem"))
    other = site.run("alluxio-like", "mounts", **trust)
    assert (other.returncode, "Traceback" in other.stderr) == (1, False), other.stderr
    # A worker without the cluster's token does not get in.
    changed = {str(site.place / "w"): str(site.place / "w2"), f"0.0.0.0:{worker_port}": "0.0.0.0:0"}
    words = [changed.get(word, word.replace("/cache=", "/cache2=")) for word in worker]
    stranger = subprocess.Popen(
        [str(PROGRAMS / "alluxio-like"), *words],
        env=site.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = stranger.communicate(timeout=20)
    finally:
        stranger.kill()
        stranger.wait()
    assert stranger.returncode
    assert "token" in said.strip().splitlines()[-1], said
