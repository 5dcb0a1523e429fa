"""What another user of the machine can reach of the services, also where their directories were left open to all."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from alluxio_like.rpc import data_wire
from tests.cluster.test_tls import Site, list_listening, list_local
from tests.servers.net import find_ports

STRANGER = 65533

CHILD = """
import json, os, socket, sys
os.setgroups([]); os.setgid(65533); os.setuid(65533)
reached = []
for kind, path in json.load(sys.stdin):
    try:
        if kind == "directory":
            os.listdir(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(path)
                data, fds, _, _ = socket.recv_fds(connection, 100, 16)
                if not data and not fds:
                    continue
        else:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        reached.append(path)
    except OSError:
        pass
print(json.dumps(reached))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody can reach, with a short path."""
    with tempfile.TemporaryDirectory(prefix="al-", dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def list_below(top: Path) -> list[tuple[str, str]]:
    kinds = {stat.S_IFDIR: "directory", stat.S_IFSOCK: "socket"}
    return [(kinds.get(stat.S_IFMT(path.lstat().st_mode), "file"), str(path)) for path in sorted(top.rglob("*"))]


def list_reached(paths: list[tuple[str, str]]) -> list[str]:
    """Those that another user can list, open, or gets an answer from."""
    command = [sys.executable, "-I", "-c", CHILD]
    done = subprocess.run(command, input=json.dumps(paths), capture_output=True, text=True, timeout=60, check=True, cwd="/")
    return list(json.loads(done.stdout))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_reaches_no_file_of_the_services(place: Path) -> None:
    site = Site(place)
    source = place / "source"
    for name in ("m", "w", "cache", "source", "run"):
        (place / name).mkdir()
        (place / name).chmod(0o755)
    (source / "a").write_bytes(b"what was cached" * 100)
    os.utime(source / "a", (1_600_000_000, 1_600_000_000))
    source.chmod(0o700)
    with site.running:
        (port,) = find_ports(1)
        master = site.start("master", "master", "--home", str(place / "m"), "--bind", f"127.0.0.1:{port}")
        words = ["worker", "--master", master["address"], "--home", str(place / "w"), "--allow-root-disk"]
        worker = site.start("worker", *words, "--cache-dir", f"{place / 'cache'}=1GB", "--token-file", master["token_file"])
        environment = {"ALLUXIO_LIKE_MASTER": master["address"], "ALLUXIO_LIKE_TOKEN_FILE": master["token_file"]}
        mounted = site.run("alluxio-like", "mount", "/data", f"file://{source}", **environment)
        assert mounted.returncode == 0, mounted.stderr
        assert site.run("cache", "load", "/data", **environment).returncode == 0
        paths = [entry for name in ("m", "w", "cache") for entry in list_below(place / name)]
        assert worker["door_path"] in [path for kind, path in paths if kind == "socket"]
        assert master["token_file"] in [path for _, path in paths]
        # Its own check: it reaches what it may.
        (place / "open").write_text("")
        assert list_reached([("file", str(place / "open")), ("directory", str(place))]) == [str(place / "open"), str(place)]
        assert list_reached(paths) == []
        # HTTP says nothing that is secret, and nothing of what is stored.
        for service in (master, worker):
            for page in ("metrics", "healthz"):
                with urllib.request.urlopen(f"http://{service['http_address']}/{page}", timeout=60) as answer:
                    shown = answer.read()
                assert Path(master["token_file"]).read_bytes().strip() not in shown
                assert str(source).encode() not in shown


def ask_data_socket(port: int, said: bytes) -> bytes:
    """All that a data socket answers to a caller, until it closes the connection; it must not be kept waiting."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(said)
        answer = b""
        while data := connection.recv(4096):
            answer += data
        return answer


def test_in_the_clear_a_token_may_be_asked_for_and_the_data_socket_opens_to_nobody_else(place: Path) -> None:
    site = Site(place)
    clients = place / "clients"
    clients.touch(0o600)
    clients.write_text("of-a-client\n")
    (place / "source").mkdir()
    (place / "source/a").write_bytes(b"content" * 1000)
    os.utime(place / "source/a", (1_600_000_000, 1_600_000_000))
    asking = ["--set", f"client_token_file={clients}"]
    with site.running:
        master = site.start("master", "master", "--home", str(place / "m"), "--bind", "127.0.0.1:0", *asking)
        words = ["worker", "--master", master["address"], "--home", str(place / "w"), "--allow-root-disk", *asking]
        worker = site.start("worker", *words, "--cache-dir", f"{place / 'cache'}=1GB", "--token-file", master["token_file"])
        # Commands of the machine come by unix sockets in the clear, where the same is asked of them.
        assert all(list_local(int(service["pid"])) for service in (master, worker))
        environment = {"ALLUXIO_LIKE_MASTER": master["address"]}
        refused = site.run("alluxio-like", "workers", **environment)
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert "this cluster asks its clients for a token" in refused.stderr
        environment["ALLUXIO_LIKE_TOKEN_FILE"] = master["token_file"]
        mounted = site.run("alluxio-like", "mount", "/data", f"file://{place / 'source'}", **environment)
        assert mounted.returncode == 0, mounted.stderr
        environment["ALLUXIO_LIKE_TOKEN_FILE"] = str(clients)
        assert site.run("alluxio-like", "fs", "cat", "/data/a", **environment).stdout == "content" * 1000
        # What a stranger does not know is the worker's number.
        known = {int(worker[name].rpartition(":")[2]) for name in ("address", "http_address")}
        (port,) = list_listening(int(worker["pid"])) - known
        for nonce in ("", "0" * 32):
            hello = data_wire.Hello(master["cluster_id"], worker["worker_id"], nonce)
            answer = ask_data_socket(port, data_wire.pack_hello(hello))
            assert b"ask the master for it anew" in answer, answer
        hello = data_wire.Hello("another", worker["worker_id"], "")
        assert b"ask the master for the workers anew" in ask_data_socket(port, data_wire.pack_hello(hello))
        assert ask_data_socket(port, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n") == b""
