"""The blocking client in several processes: fork, spawn, forkserver, pickle, threads; as data loaders use it."""

import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from alluxio_like.client import SyncClient, connect
from tests.fakes_rpc import make_content

FILES = 8
SIZE = 3_000_000
WORKERS = 8

METHODS = ["fork", "spawn", "forkserver"]
WHAT = [*(f"eight_workers {method}" for method in METHODS), "threads", "grandchild", "kept_errors", "foreign_grpc"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    # A process of its own: what forks in these tests must hold no gRPC but the client's.
    command = [sys.executable, "-m", "tests.fakes_rpc", str(FILES), str(SIZE)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.communicate(timeout=60)


@pytest.mark.parametrize("what", WHAT)
def test_processes(address: str, what: str) -> None:
    # By a process of its own (tests/forking.py): this one may hold gRPC's objects of other tests' servers.
    command = [sys.executable, "-W", "error", "-m", "tests.forking", address, *what.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    # gRPC itself writes a line when it is forked over.
    said = [line for line in done.stderr.splitlines() if what != "foreign_grpc" or "fork() handlers" not in line]
    assert (done.returncode, said) == (0, [])


def test_pickles_are_small_and_whole(address: str) -> None:
    with connect(address) as client:
        file = client.open("/f4")
        file.seek(11)
        clone, other = pickle.loads(pickle.dumps((file, client)))
        assert len(pickle.dumps(file)) < 5000
        assert clone.read(5) == make_content(SIZE, 4)[11:16]
        assert other.config == client.config
        assert clone.read() == make_content(SIZE, 4)[16:]
        clone.close()
        clone._client.close()
        other.close()
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.read(1)


def test_the_file_is_a_file(address: str) -> None:
    content = make_content(SIZE, 5)
    with connect(address) as client, client.open("/f5") as file:
        into = bytearray(10)
        file.seek(20)
        assert file.readinto(into) == 10
        assert into == content[20:30]
        buffered = io.BufferedReader(file, 1 << 16)
        assert buffered.seek(0) == 0
        assert buffered.read(100) == content[:100]
        assert buffered.seek(-50, io.SEEK_END) == SIZE - 50
        assert buffered.read() == content[-50:]
        assert buffered.read() == b""


def test_a_closed_client_opens_again(address: str) -> None:
    client = connect(address)
    threads = {thread for thread in threading.enumerate() if thread.name == "alluxio-like-client"}
    assert client.stat("/f0").attr.size == SIZE
    client.close()
    client.close()
    assert {thread for thread in threading.enumerate() if thread.name == "alluxio-like-client"} == threads
    assert client.stat("/f0").attr.size == SIZE
    client.close()


def test_nothing_is_left_when_the_interpreter_ends(address: str) -> None:
    code = f"from alluxio_like import connect; c = connect({address!r}); f = c.open('/f0'); print(len(f.read()))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"{SIZE}\n")
    assert done.stderr == ""


def test_importing_the_package_loads_no_grpc() -> None:
    light = "import sys, alluxio_like; assert 'grpc' not in sys.modules; alluxio_like.connect; assert 'grpc' in sys.modules"
    subprocess.run([sys.executable, "-c", light], cwd=ROOT, check=True, timeout=60)


def test_clients_that_come_with_each_task_share_one_runtime(address: str) -> None:
    client = connect(address)
    pickled = pickle.dumps(client)
    others: list[SyncClient] = [pickle.loads(pickled) for _ in range(5)]
    assert all(one.stat("/f1").attr.size == SIZE for one in (client, *others))
    threads = [thread for thread in threading.enumerate() if thread.name == "alluxio-like-client"]
    assert len(threads) == 1
    client.close()
    assert threads[0].is_alive(), "others still use it"
    assert others[0].read("/f2") == make_content(SIZE, 2)
    for one in others:
        one.close()
    threads[0].join(60)
    assert not threads[0].is_alive()
