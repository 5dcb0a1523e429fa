"""How commands wait for a master that does not answer, and what they say meanwhile."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from alluxio_like.cli import common
from alluxio_like.errors import NotFound, Unavailable
from tests.servers.net import find_ports


@pytest.fixture
def port() -> int:
    (found,) = find_ports(1)
    return found


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield made


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("ALLUXIO_LIKE_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(common, "SILENT_S", 0.05)


async def find(port: int, **how: float) -> None:
    async with common.open_client(f"127.0.0.1:{port}", **how):
        pass


async def test_a_master_that_comes_later_is_waited_for_and_that_is_said(
    port: int, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []

    def start(address: str) -> None:
        said.append(address)
        listener.bind(("127.0.0.1", port))
        listener.listen()

    monkeypatch.setattr(common, "_say_waiting", start)
    monkeypatch.setenv("ALLUXIO_LIKE_MASTER_WAIT_S", "60")
    await find(port)
    assert said == [f"127.0.0.1:{port}"], "once, and nobody listened before"


async def test_nothing_is_said_of_a_master_that_is_there(
    port: int, listener: socket.socket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "SILENT_S", 60.0)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    await find(port)
    assert capsys.readouterr().err == ""


async def test_the_time_is_the_settings_or_the_callers(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALLUXIO_LIKE_MASTER_WAIT_S", "2")
    with pytest.raises(Unavailable, match=f"no master answers at 127.0.0.1:{port} .*: start one with"):
        await find(port)
    assert capsys.readouterr().err == f"waiting for the master at 127.0.0.1:{port}\n"
    monkeypatch.setenv("ALLUXIO_LIKE_MASTER_WAIT_S", "1e9")
    with pytest.raises(Unavailable):
        await find(port, deadline=0.0)


async def test_a_master_that_goes_away_under_a_command_is_said(
    port: int, listener: socket.socket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call is tried again by itself; when that came to nothing the error says what to do."""
    listener.bind(("127.0.0.1", port))
    listener.listen()
    monkeypatch.setenv("ALLUXIO_LIKE_IO_TIMEOUT_S", "4")
    with pytest.raises(Unavailable, match="went away, and was not back in 4 s: see its log, and repeat the command"):
        async with common.open_client(f"127.0.0.1:{port}") as client:
            listener.close()
            async with asyncio.timeout(60):
                while not client.master_away_s:
                    await client.list_mounts()
    assert "waiting for the master" in capsys.readouterr().err


async def test_an_error_of_something_else_stays_what_it_is(port: int, listener: socket.socket) -> None:
    listener.bind(("127.0.0.1", port))
    listener.listen()
    for error in (NotFound("not there"), Unavailable("no worker is live")):
        with pytest.raises(type(error), match=str(error)):
            async with common.open_client(f"127.0.0.1:{port}"):
                raise error
