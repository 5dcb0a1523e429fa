"""Services on other addresses than loopback: refused in the clear; each shows a certificate, which is renewed while they run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.servers.net import find_ports, wait_until
from tests.servers.stack import PROGRAMS


class Site:
    """Where the services run."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.authority = Authority(place)
        self.authority.issue("host")
        self.authority.issue("expired", days=-1)
        Authority(place, "other").issue("stranger")
        clean = {key: value for key, value in os.environ.items() if not key.startswith("ALLUXIO_LIKE_")}
        self.environment = {
            **clean,
            "ALLUXIO_LIKE_RUN_DIR": str(place / "run"),
            "HOME": str(place),
            # What is refused must be so at once, and not when this is over.
            "ALLUXIO_LIKE_IO_TIMEOUT_S": "150",
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
            timeout=140, check=False,
        )  # fmt: skip

    def start(self, name: str, *arguments: str) -> dict[str, str]:
        """A service, once it is ready; what it says of itself."""
        ready = self.place / f"{name}.ready"
        command = [str(PROGRAMS / "alluxio-like"), *arguments, "--ready-file", str(ready)]
        log = self.running.enter_context((self.place / f"{name}.log").open("wb"))
        process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.running.callback(process.wait, 60)
        self.running.callback(process.send_signal, signal.SIGTERM)
        wait_until(f"{name} is ready", lambda: ready.exists() or process.poll() is not None, timeout_s=60)
        assert process.poll() is None, (self.place / f"{name}.log").read_text()
        return dict(json.loads(ready.read_text()))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
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


def list_sockets(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))  # noqa: PTH115 (no path)
    return inodes


def list_listening(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    inodes = list_sockets(pid)
    tables = "".join(Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    rows = [line.split() for line in tables.splitlines() if "address" not in line]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


def list_local(pid: int) -> set[str]:
    """Names of unix sockets in the abstract namespace on which a process listens: nobody's file rights guard them."""
    inodes = list_sockets(pid)
    rows = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    # Num RefCount Protocol Flags Type St Inode Path; of the flags one says that it listens.
    listening = [row for row in rows if int(row[3], 16) & 0x10000 and len(row) > 7]
    return {row[7] for row in listening if row[7].startswith("@") and row[6] in inodes}


AT_ONCE_S = 50.0
"""A command's start takes seconds on a busy machine; the timeout of calls is three times as long."""


class Cluster:
    """A master and a worker with certificates, and a file."""

    def __init__(self, site: Site, *settings: str) -> None:
        self.site = site
        source = site.place / "source"
        source.mkdir()
        (source / "a").write_bytes(b"content" * 1000)
        os.utime(source / "a", (1_600_000_000, 1_600_000_000))
        port, self.worker_port = find_ports(2)
        self.address = f"127.0.0.1:{port}"
        words = ["--home", str(site.place / "m"), "--bind", f"0.0.0.0:{port}", "--advertise", self.address, *site.tls, *settings]
        master = self.master = site.start("master", "master", *words)
        self.token_file = master["token_file"]
        self.worker_words = ["worker", "--master", self.address, "--home", str(site.place / "w"), "--allow-root-disk"]
        self.worker_words += ["--cache-dir", f"{site.place / 'cache'}=1GB", "--bind", f"0.0.0.0:{self.worker_port}"]
        self.worker_words += ["--advertise", f"127.0.0.1:{self.worker_port}", *settings]
        self.worker = site.start("worker", *self.worker_words, *site.tls, "--token-file", self.token_file)
        self.mount = ["mount", "/data", f"file://{source}"]

    def get_environment(self, *, token: str = "", certificate: str = "host", ca: str = "ca") -> dict[str, str]:
        """What a command that trusts `ca` and shows `certificate` ("" for none) is given."""
        place = self.site.place
        lines = [f'[client]\nmaster = "{self.address}"', f'[client.tls]\nca = "{place / ca}.pem"']
        if certificate:
            lines += [f'certificate = "{place / certificate}.pem"', f'key = "{place / certificate}.key"']
        config = place / f"client-{certificate}-{ca}.toml"
        config.write_text("\n".join(lines) + "\n")
        return {"ALLUXIO_LIKE_CONFIG": str(config), **({"ALLUXIO_LIKE_TOKEN_FILE": token} if token else {})}

    def expect_refusal(self, said: str, *words: str, **environment: str) -> None:
        """A command that is refused, with one line, at once."""
        started = time.monotonic()
        refused = self.site.run("alluxio-like", *words, **environment)
        assert refused.returncode == 1, refused.stderr
        *logged, last = refused.stderr.strip().splitlines()
        assert said in last, refused.stderr
        assert all(" WARNING " in line for line in logged), refused.stderr
        assert time.monotonic() - started < AT_ONCE_S


def test_master_worker_and_commands_over_tls(site: Site) -> None:
    cluster = Cluster(site)
    cluster.expect_refusal("the cluster's token is missing or wrong", *cluster.mount, **cluster.get_environment())
    trust = cluster.get_environment(token=cluster.token_file)
    assert site.run("alluxio-like", *cluster.mount, **trust).returncode == 0
    loaded = site.run("cache", "load", "/data", "--verify", "--json", **trust)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout)["checked_files"] == 1
    trust = cluster.get_environment()
    assert site.run("alluxio-like", "fs", "cat", "/data/a", **trust).stdout == "content" * 1000
    # The Python client, told of its files by hand.
    place = site.place
    words = f"connect({cluster.address!r}, ca={str(place / 'ca.pem')!r}, certificate={str(place / 'host.pem')!r}"
    code = f"from alluxio_like import connect; print(len({words}, key={str(place / 'host.key')!r}).read('/data/a')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=site.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "7000\n", done.stderr
    # The data socket knows no TLS, so there is none.
    ports = {cluster.worker_port, int(cluster.worker["http_address"].rpartition(":")[2])}
    assert list_listening(int(cluster.worker["pid"])) == ports
    # Nor is there a unix socket by which a process of the machine could call without a certificate.
    assert [list_local(int(service["pid"])) for service in (cluster.master, cluster.worker)] == [set(), set()]


def test_without_the_right_certificates_all_is_refused_at_once(site: Site) -> None:
    cluster = Cluster(site)
    plain = {"ALLUXIO_LIKE_MASTER": cluster.address}
    ours = cluster.get_environment()
    for said, environment in (
        ("it speaks TLS, and we do not: set tls.ca", plain),
        ("of another authority than the one in", cluster.get_environment(ca="other")),
        ("it demands a certificate of its callers: set tls.certificate", cluster.get_environment(certificate="")),
        ("which has expired: renew", cluster.get_environment(certificate="expired")),
        ("is to be signed by the authority that its tls.ca names", cluster.get_environment(certificate="stranger")),
    ):
        cluster.expect_refusal(said, "mounts", **environment)
    # Services are refused as clients are, and say so before they end.
    place = site.place / "refused"
    worker = [
        "worker",
        "--master",
        cluster.address,
        "--home",
        str(place),
        "--cache-dir",
        f"{place}-cache=1GB",
        "--allow-root-disk",
    ]
    token = ["--token-file", cluster.token_file]
    stranger = [word.replace("host.", "stranger.") for word in site.tls]
    cluster.expect_refusal("is to be signed by the authority that its tls.ca names", *worker, *token, *stranger)
    cluster.expect_refusal("the cluster's token is missing or wrong", *worker, *site.tls)
    fuse = ["fuse", str(place / "mnt"), "--session", "pyfuse3", "--set", "http_bind="]
    cluster.expect_refusal("it demands a certificate of its callers", *fuse, **cluster.get_environment(certificate=""))
    assert site.run("alluxio-like", "mounts", **ours).returncode == 0


def test_clients_may_have_to_show_a_token_for_reading(site: Site) -> None:
    clients = site.place / "clients"
    clients.touch(0o600)
    clients.write_text("a-client\nanother-client\n")
    token = site.place / "client-token"
    token.touch(0o600)
    token.write_text("another-client\n")
    cluster = Cluster(site, "--set", f"client_token_file={clients}")
    all_of_it = cluster.get_environment(token=cluster.token_file)
    assert site.run("alluxio-like", *cluster.mount, **all_of_it).returncode == 0
    asked = "this cluster asks its clients for a token"
    for words in (["fs", "cat", "/data/a"], ["fs", "ls", "/"], ["mounts"], ["report"]):
        cluster.expect_refusal(asked, *words, **cluster.get_environment())
    reading = cluster.get_environment(token=str(token))
    assert site.run("alluxio-like", "fs", "cat", "/data/a", **reading).stdout == "content" * 1000
    cluster.expect_refusal("the cluster's token is missing or wrong", "unmount", "/data", **reading)


@pytest.mark.mount
def test_certificates_are_renewed_while_services_run(site: Site) -> None:
    cluster = Cluster(site)
    trust = cluster.get_environment(token=cluster.token_file)
    assert site.run("alluxio-like", *cluster.mount, **trust).returncode == 0
    mountpoint = site.place / "mnt"
    site.start("fuse", "fuse", str(mountpoint), "--master", cluster.address, *site.tls)
    assert (mountpoint / "data/a").read_text() == "content" * 1000
    old = site.place / "old.pem"
    old.write_bytes(site.authority.ca.read_bytes())
    # Another authority: nothing that began with the certificates of before could go on by itself.
    authority = Authority(site.place)
    authority.issue("host")

    def is_read() -> bool:
        return site.run("alluxio-like", "fs", "cat", "/data/a", **trust).stdout == "content" * 1000

    wait_until("the services have taken up their new certificates", is_read, timeout_s=120)
    (site.place / "source/b").write_text("new")
    os.utime(site.place / "source/b", (1_600_000_000, 1_600_000_000))
    assert site.run("alluxio-like", "fs", "sync", "/data", **trust).returncode == 0
    assert (mountpoint / "data/b").read_text() == "new"
    loaded = site.run("cache", "load", "/data", "--verify", **trust)
    assert loaded.returncode == 0, loaded.stderr
    cluster.expect_refusal("of another authority than the one in", "mounts", **cluster.get_environment(ca="old"))
    log = (site.place / "master.log").read_text() + (site.place / "worker.log").read_text()
    assert "Traceback" not in log
    # The worker was never away.
    assert "waiting for the master" not in log
