"""Calls of processes of one machine by a unix socket: whom a caller trusts, what is no message, who says nothing. (What calls do
whatever carries them is in test_rpc.py.)"""

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.rpc import local_link
from alluxio_like.rpc.local_link import LocalLink, LocalMethod
from alluxio_like.rpc.local_wire import Kind, Wire, make_name, pack_call, unpack_call
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.v1 import master_pb2, worker_pb2
from alluxio_like.types import InodeId
from tests.fakes_rpc import FakeMaster, FakeWorker, connected, make_entry, serve, wait_until

ADDRESS = f"127.0.0.9:{os.getpid()}"  # a name of the whole machine: tests run in several processes
ECHO = LocalMethod("/alluxio_like.rpc.v1.Test/Echo", bytes, bytes)


@contextmanager
def listen() -> Iterator[socket.socket]:
    """A server that is ours to write by hand."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(make_name(ADDRESS))
        listener.listen(1)
        yield listener


def test_a_call_is_unpacked_as_it_was_packed() -> None:
    metadata = (("x-request-id", "7"), ("alluxio-token", "t"))
    assert unpack_call(pack_call("/a/b", metadata, 1.5, b"request")) == ("/a/b", metadata, 1.5, b"request")
    assert unpack_call(pack_call("/a/b", (), 0.0, b"")) == ("/a/b", (), 0.0, b"")
    with pytest.raises(ValueError, match="without a head"):
        unpack_call(b"short")


async def test_every_method_of_one_request_and_one_reply_is_answered_here_too() -> None:
    """A caller asks no second time by gRPC."""
    async with serve(master=FakeMaster(), worker=FakeWorker()) as server:
        assert server._local is not None
        answered = set(server._local._methods)
    services = [*master_pb2.DESCRIPTOR.services_by_name.values(), *worker_pb2.DESCRIPTOR.services_by_name.values()]
    methods = [(service, method) for service in services for method in service.methods]
    assert {f"/{service.full_name}/{method.name}" for service, method in methods if not is_stream(method)} == answered


def is_stream(method: Any) -> bool:
    return bool(method.client_streaming or method.server_streaming)


async def test_large_messages_arrive_whole_both_ways() -> None:
    def on_message(call_id: int, kind: int, body: bytes) -> None:
        taken.append((call_id, kind, body))

    taken: list[tuple[int, int, bytes]] = []
    ends = socket.socketpair()
    first, second = (Wire(end, on_message, lambda: None) for end in ends)
    large = os.urandom(5 << 20)
    first.send(1, Kind.CALL, large)
    first.send(2, Kind.CALL, b"behind it")
    await wait_until(lambda: len(taken) == 2)
    second.send(1, Kind.REPLY, large)
    await wait_until(lambda: len(taken) == 3)
    assert taken == [(1, Kind.CALL, large), (2, Kind.CALL, b"behind it"), (1, Kind.REPLY, large)]
    first.close()
    second.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")
async def test_another_users_server_is_not_shown_the_token() -> None:
    program = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1].replace('@', chr(0), 1)); listener.listen(1)\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    name = make_name(ADDRESS).replace("\0", "@", 1)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, name, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    link = LocalLink(ADDRESS)
    assert not link.try_connect()
    link.close()
    await process.communicate(b"")


async def test_what_is_no_message_ends_the_connection_and_nothing_else() -> None:
    async with serve(master=FakeMaster()) as server, connected(server) as channel:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            await loop.sock_connect(caller, make_name(server.address))
            await loop.sock_sendall(caller, struct.pack("<IQB", 1 << 31, 1, Kind.CALL))
            assert await asyncio.wait_for(loop.sock_recv(caller, 1), 60) == b""
        link = LocalLink(server.address)
        assert link.try_connect()
        with pytest.raises(errors.Unsupported, match="no such method"):
            await link.call(ECHO, b"", (), 60.0, "the master")
        link.close()
        assert (await MasterStub(channel).stat_fs()).files == 0


async def test_a_server_that_ends_under_a_call_is_unavailable() -> None:
    with listen() as listener:
        link = LocalLink(ADDRESS)
        assert link.try_connect()
        connection, _ = listener.accept()
        call = asyncio.create_task(link.call(ECHO, b"", (), None, "the master"))
        await asyncio.sleep(0)
        connection.close()
        with pytest.raises(errors.Unavailable, match="the master cannot be reached"):
            await call
    assert not link.try_connect()
    link.close()


async def test_a_server_that_says_nothing_is_given_up_and_one_that_answers_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_link, "_QUIET_S", 0.1)
    # Asked again after so long, and given up after ten times that: what a busy machine takes to answer.
    monkeypatch.setattr(local_link, "_PONG_S", 3.0)
    with listen() as listener:
        link = LocalLink(ADDRESS)
        assert link.try_connect()
        connection, _ = listener.accept()
        pings = 0

        def answer(call_id: int, kind: int, _body: bytes) -> None:
            nonlocal pings
            if kind == Kind.PING:
                pings += 1
                wire.send(call_id, Kind.PONG)

        wire = Wire(connection, answer, lambda: None)
        call = asyncio.create_task(link.call(ECHO, b"", (), None, "the master"))
        await wait_until(lambda: pings > 1)
        assert not call.done()
        # From here on it is as if it had been stopped.
        asyncio.get_running_loop().remove_reader(connection.fileno())
        with pytest.raises(errors.Unavailable, match="the master cannot be reached"):
            await asyncio.wait_for(call, 60)
        wire.close()
        link.close()


async def test_a_channel_that_was_closed_does_not_connect_again() -> None:
    master = FakeMaster()
    master.entries["a"] = make_entry("a", 5, 7)
    async with serve(master=master) as server:
        async with connected(server) as channel:
            assert (await MasterStub(channel).lookup(InodeId(1), "a")).entry == master.entries["a"]
        with pytest.raises(errors.Cancelled):
            await MasterStub(channel).lookup(InodeId(1), "a")
