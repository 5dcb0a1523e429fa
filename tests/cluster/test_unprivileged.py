"""What another user of the machine can reach of the services, also where their directories were left open to all."""

import json
import os
import stat
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.test_tls import Site
from tests.servers.net import find_ports

pytestmark = pytest.mark.timeout(120)

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
                with urllib.request.urlopen(f"http://{service['http_address']}/{page}", timeout=10) as answer:
                    shown = answer.read()
                assert Path(master["token_file"]).read_bytes().strip() not in shown
                assert str(source).encode() not in shown
