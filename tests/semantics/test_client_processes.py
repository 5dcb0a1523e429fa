"""The blocking client in several processes: fork, spawn, forkserver, pickle, threads; as data loaders use it."""

import concurrent.futures
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.client import File, SyncClient, connect
from tests.fakes_rpc import make_content

FILES = 8
SIZE = 3_000_000
WORKERS = 8

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    # A process of its own: what forks in these tests must hold no gRPC but the client's.
    command = [sys.executable, "-m", "tests.fakes_rpc", str(FILES), str(SIZE)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.communicate(timeout=20)


def check_all(client: SyncClient, file: File, seed: int) -> str:
    """What a data loader's worker does: read the file it was given, then some of its own."""
    content = make_content(SIZE, 0)
    if file.pread(1000, 5000) != content[5000:6000]:
        return "the given file has other bytes"
    if file.tell() != 7 or file.read(10) != content[7:17]:
        return "the given file has another position"
    for step in range(3):
        number = (seed + step) % FILES
        if client.read(f"/f{number}") != make_content(SIZE, number):
            return f"f{number} has other bytes"
    return "" if client.stat("/f1").attr.size == SIZE else "size"


def child(client: SyncClient, file: File, seed: int, results: Any) -> None:
    """Runs in the child."""
    try:
        results.put(check_all(client, file, seed))
    except BaseException as error:
        results.put(repr(error))
        raise


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_eight_workers(address: str, method: str) -> None:
    with connect(address) as client, client.open("/f0") as file:
        # The parent has used it before: its loop, channel and reader exist, and gRPC with them.
        assert file.read(7) == make_content(SIZE, 0)[:7]
        context: Any = multiprocessing.get_context(method)
        results = context.Queue()
        children = [context.Process(target=child, args=(client, file, seed, results)) for seed in range(WORKERS)]
        for one in children:
            one.start()
            # In between the parent goes on using it.
            assert file.pread(10, 100) == make_content(SIZE, 0)[100:110]
        said = [results.get(timeout=90) for _ in children]
        for one in children:
            one.join(30)
        assert said == [""] * WORKERS
        assert [one.exitcode for one in children] == [0] * WORKERS
        file.seek(7)
        assert check_all(client, file, 3) == ""


def test_reads_of_other_threads_survive_a_fork(address: str) -> None:
    content = make_content(SIZE, 2)
    with connect(address) as client:
        stop = threading.Event()

        def read_on() -> int:
            count = 0
            while not stop.is_set():
                assert client.read("/f2") == content
                count += 1
            return count

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read_on) for _ in range(3)]
            try:
                for _ in range(5):
                    pid = os.fork()
                    if pid == 0:
                        ok = False
                        try:
                            ok = client.read("/f2") == content
                        finally:
                            os._exit(0 if ok else 1)
                    assert wait_for(pid) == 0
            finally:
                stop.set()
            assert all(reader.result(30) > 0 for reader in readers)


def wait_for(pid: int, timeout_s: float = 30) -> int:
    """A child's exit status; it is killed when it hangs."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def test_a_grandchild(address: str) -> None:
    with connect(address) as client:
        assert client.read("/f1") == make_content(SIZE, 1)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert client.read("/f1") == make_content(SIZE, 1)
                inner = os.fork()
                if inner == 0:
                    os._exit(0 if client.read("/f3") == make_content(SIZE, 3) else 1)
                code = wait_for(inner) if client.read("/f2") == make_content(SIZE, 2) else 1
            finally:
                os._exit(code)
        assert wait_for(pid) == 0


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
    threads[0].join(10)
    assert not threads[0].is_alive()
