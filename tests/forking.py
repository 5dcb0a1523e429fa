"""What test_client_processes.py has done by a process that holds no gRPC but the client's: forking.py ADDRESS WHAT [METHOD]."""

import asyncio
import concurrent.futures
import multiprocessing
import os
import sys
import threading
import time
from typing import Any

from alluxio_like import errors
from alluxio_like.client import File, SyncClient, connect
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.master_stub import MasterStub
from tests.fakes_rpc import make_content

FILES = 8
SIZE = 3_000_000
WORKERS = 8
SIZE_MANY = int(os.environ.get("ALLUXIO_LIKE_TEST_SIZE", "0"))
"""Of the files, where they are not SIZE."""


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


def eight_workers(address: str, method: str) -> None:
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
        said = [results.get(timeout=200) for _ in children]
        for one in children:
            one.join(60)
        assert said == [""] * WORKERS
        assert [one.exitcode for one in children] == [0] * WORKERS
        file.seek(7)
        assert check_all(client, file, 3) == ""


def threads(address: str) -> None:
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
            assert all(reader.result(60) > 0 for reader in readers)


def wait_for(pid: int, timeout_s: float = 60) -> int:
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


def many_forks(address: str) -> None:
    """A fork between two files, and children of every kind that read many."""
    paths = [f"/f{number % FILES}" for number in range(600)]
    with connect(address) as client:
        count = 0
        for path, data in client.read_many(paths):
            assert path == paths[count]
            assert data == make_content(SIZE_MANY or SIZE, count % FILES)
            count += 1
            if count in {3, 256, 300, 599}:
                pid = os.fork()
                if pid == 0:
                    os._exit(_read_rest(client, paths[count:]))
                assert wait_for(pid, 60) == 0
        assert count == len(paths)
        for method in ("fork", "spawn", "forkserver"):
            context: Any = multiprocessing.get_context(method)
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
                assert list(pool.map(_read_rest, [client] * 4, [paths[:50]] * 4)) == [0] * 4


def _read_rest(client: SyncClient, paths: list[str]) -> int:
    """Runs in the child."""
    for path, data in client.read_many(paths):
        if data != make_content(SIZE_MANY or SIZE, int(path[2:])):
            return 1
    return 0


def grandchild(address: str) -> None:
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


def kept_errors(address: str) -> None:
    """Errors that somebody keeps, with all their frames, keep nothing of gRPC alive; nor do files left open."""
    kept: list[BaseException] = []
    with connect(address, io_timeout_s=60) as client:
        file = client.open("/f1")
        for _ in range(3):
            try:
                client.stat("/missing")
            except errors.NotFound as error:
                kept.append(error)
            try:
                client.free("/missing")
            except errors.NotFound as error:
                kept.append(error)
            try:
                client.wait_job(client.submit_load(["/f1"]), timeout_s=0.0001)
            except errors.TimedOut as error:
                kept.append(error)
            assert file.pread(5, 0) == make_content(SIZE, 1)[:5]
            states = client.watch_job(client.submit_load(["/f1"]))
            next(states)
            pid = os.fork()
            if pid == 0:
                ok = False
                try:
                    ok = file.pread(5, 7) == make_content(SIZE, 1)[7:12]
                finally:
                    os._exit(0 if ok else 1)
            assert wait_for(pid) == 0
        assert len(kept) == 9
        file.close()


def foreign_grpc(address: str) -> None:
    """Where other code of the process uses gRPC, the child is told so, and does not hang."""

    async def use() -> None:
        channel = open_channel(address)
        await MasterStub(channel).stat_fs()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                connect(address, io_timeout_s=60).stat("/f0")
            except errors.Unsupported:
                code = 0
            finally:
                os._exit(code)
        assert await asyncio.to_thread(wait_for, pid) == 0
        assert (await MasterStub(channel).stat_fs()).files == FILES
        await channel.close()

    with connect(address) as client:
        assert client.stat("/f0").attr.size == SIZE
        asyncio.run(use())
        assert client.stat("/f1").attr.size == SIZE


if __name__ == "__main__":
    globals()[sys.argv[2]](sys.argv[1], *sys.argv[3:])
