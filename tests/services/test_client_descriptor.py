"""`open_local`: cache files' own descriptors, as this user and as another one; the workers are another process."""

import fcntl
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.client import Client, LocalDescriptor, connect
from alluxio_like.config import ClientConfig
from alluxio_like.types import PAGE_BYTES
from tests.fakes_rpc import make_content
from tests.local_worker import GUEST
from tests.servers.net import wait_until
from tests.services.test_client_local import ROOT, Workers, count_descriptors

SIZE = 3 * PAGE_BYTES + 777
FILES = 12


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with tempfile.TemporaryDirectory(prefix="al-open-", dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        command = [sys.executable, "-m", "tests.local_worker", f"{made}/h", str(FILES), str(SIZE), "1"]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield Workers(process)
            process.communicate(timeout=60)


@pytest.fixture
async def client(workers: Workers) -> Any:
    async with Client.open(ClientConfig(master=workers.master, io_timeout_s=30)) as client:
        yield client


async def test_a_file_is_filled_and_its_descriptor_handed_out(client: Client, workers: Workers) -> None:
    content = make_content(SIZE, 0)
    with pytest.raises(errors.NotFound, match="cache load"):
        await client.open_local("/f0", fill=False)
    with await client.open_local("/f0") as file:
        assert (file.size, file.version, file.path) == (SIZE, 1, "/f0")
        assert os.pread(file.fileno(), SIZE + 1, 0) == content
        assert os.fstat(file.fileno()).st_size == SIZE
        assert not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & (os.O_RDWR | os.O_WRONLY | os.O_NONBLOCK)
        assert fcntl.fcntl(file.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        assert workers.tell("evict", 10) == [0, 1]
    assert file.closed
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.fileno()
    # The mapping alone keeps it.
    assert workers.tell("evict", 10) == [0, 1]
    assert mapped[:] == content
    mapped.close()
    fills = workers.count("fills")
    workers.tell("flush")  # who has not filled it knows it by the index, which is written a moment later
    with await client.open_local("/f0", fill=False):
        assert workers.count("fills") == fills
    # The worker's own copy of what it handed out goes with a turn of its loop.
    wait_until("nothing keeps the file", lambda: workers.tell("evict", 10) == [1, 0], timeout_s=60)


async def test_freed_under_a_descriptor_it_is_held_until_that_is_closed(client: Client, workers: Workers) -> None:
    file = await client.open_local("/f1")
    assert workers.tell("free", 11) == [1, 0]
    assert workers.tell("held") == 1
    # Another incarnation comes beside it.
    with await client.open_local("/f1") as other:
        assert os.fstat(other.fileno()).st_ino != os.fstat(file.fileno()).st_ino
        assert os.pread(file.fileno(), SIZE, 0) == os.pread(other.fileno(), SIZE, 0) == make_content(SIZE, 1)
    assert workers.tell("held") == 1
    file.close()
    wait_until("nothing keeps the file", lambda: workers.tell("held") == 0, timeout_s=60)


async def test_what_cannot_be_had(client: Client, workers: Workers) -> None:
    with pytest.raises(errors.NotFound, match="no such file"):
        await client.open_local("/missing")
    with pytest.raises(errors.IsADirectory):
        await client.open_local("/")
    workers.tell("refuse", True)
    try:
        with pytest.raises(errors.NotFound, match="may keep all of it"):
            await client.open_local("/f2")
    finally:
        workers.tell("refuse", False)
    workers.tell("fail", "stale")
    try:
        with pytest.raises(errors.Stale):
            await client.open_local("/f2")
    finally:
        workers.tell("fail", "")


async def test_without_a_local_cache_it_says_so(workers: Workers) -> None:
    async with Client.open(ClientConfig(master=workers.master, io_timeout_s=30, use_local_cache=False)) as client:
        with pytest.raises(errors.NotFound, match="no worker on this machine"):
            await client.open_local("/f3")


def test_the_blocking_client_and_what_a_descriptor_outlives(workers: Workers) -> None:
    before = count_descriptors()
    content = make_content(SIZE, 4)
    with connect(workers.master) as client:
        file = client.open_local("/f4")
    # The client is closed, in this process and, before a fork, in every one.
    assert os.pread(file.fileno(), SIZE, 0) == content
    pid = os.fork()
    if pid == 0:
        os._exit(0 if os.pread(file.fileno(), 100, 5) == content[5:105] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with pytest.raises(TypeError, match="send_fds"):
        pickle.dumps(file)
    # To a process that knows nothing of us, which is killed.
    ours, theirs = socket.socketpair()
    code = "import os, socket, sys; s = socket.socket(fileno=int(sys.argv[1])); _, fds, _, _ = socket.recv_fds(s, 1, 1); "
    code += "s.sendall(os.pread(fds[0], 10, 7)); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-I", "-c", code, str(theirs.fileno())], pass_fds=(theirs.fileno(),), stdin=subprocess.PIPE
    ) as other:
        socket.send_fds(ours, [b"x"], [file.fileno()])
        assert ours.recv(10) == content[7:17]
        file.close()
        assert workers.tell("evict", 14) == [0, 1]
        other.send_signal(signal.SIGKILL)
    wait_until("nothing keeps the file", lambda: workers.tell("evict", 14) == [1, 0], timeout_s=60)
    ours.close()
    theirs.close()
    # gRPC closes its sockets in threads of its own, a moment later.
    wait_until("descriptors are closed", lambda: count_descriptors() <= before, timeout_s=60)


def test_one_that_is_forgotten_is_complained_of(workers: Workers) -> None:
    with connect(workers.master) as client, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        forgotten: list[LocalDescriptor] = [client.open_local("/f5")]
        forgotten.clear()
    # (What earlier tests left may be collected just now, and be complained of too.)
    ours = [warning for warning in said if isinstance(warning.source, LocalDescriptor)]
    assert [warning.category for warning in ours] == [ResourceWarning]
    wait_until("nothing keeps the file", lambda: workers.tell("evict", 15) == [1, 0], timeout_s=60)


# another user

OTHER = """
import asyncio, os, sys
from alluxio_like import errors
from alluxio_like.client import Client
from alluxio_like.config import ClientConfig

async def main(master, path, wanted):
    async with Client.open(ClientConfig(master=master, io_timeout_s=30)) as client:
        try:
            await client.open_local(path, fill=False)
        except errors.NotFound as error:
            print(error.message.partition(":")[0], flush=True)
        file = await client.open_local(path)
        print(len(os.pread(file.fileno(), 1 << 30, 0)), flush=True)
        print(len(await client.open_file(await client.get_path(path)).read(0, file.size)), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        file.close()
        print("closed", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        file = await client.open_local(path)
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_another_user_gets_it_through_the_door(workers: Workers) -> None:
    as_other: dict[str, Any] = {"user": GUEST, "group": GUEST, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", "import alluxio_like"], cwd=ROOT, **as_other, capture_output=True, check=True)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("another user cannot read the source here")
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, workers.master, "/f6", ""],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **as_other,
    ) as other:  # fmt: skip
        assert other.stdin is not None
        assert other.stdout is not None
        said = [other.stdout.readline().strip() for _ in range(3)]
        assert said == ["not wholly in a cache of this machine", str(SIZE), str(SIZE)]
        assert workers.count("leases") == 1
        assert workers.tell("evict", 16) == [0, 1]
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "closed\n"
        wait_until("the lease ends", lambda: workers.count("leases") == 0, timeout_s=60)
        wait_until("nothing keeps the file", lambda: workers.tell("evict", 16) == [1, 0], timeout_s=60)
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "open\n"
        assert workers.count("leases") == 1
        other.send_signal(signal.SIGKILL)
        other.communicate(timeout=60)
        wait_until("the lease ends", lambda: workers.count("leases") == 0, timeout_s=60)
        wait_until("nothing keeps the file", lambda: workers.tell("evict", 16) == [1, 0], timeout_s=60)
