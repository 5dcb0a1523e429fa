"""The supervisor with real processes: readiness, crashes, hangs, its own death."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from alluxio_like.cli.finding import get_start_ticks
from alluxio_like.cli.supervisor import Service, StartFailed, Supervisor, end_leftovers
from alluxio_like.errors import TimedOut
from tests.servers.processes import freeze

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
kind, config = sys.argv[1], json.loads(Path(sys.argv[3]).read_text())
if kind == "fails":
    print("noise", file=sys.stderr)
    sys.exit("alluxio-like: the reason")
if kind == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    def leave(*_):
        time.sleep(0.1)
        with open(config["ended"], "a") as ended:
            print(kind, file=ended)
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
if kind == "tied":
    from alluxio_like.cli import services
    services.ORPHAN_GRACE_S = 0.3
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    services.tie_to_supervisor(int(sys.argv[5]), int(sys.argv[7]))
if kind != "slow":
    ready = Path(config["ready"])
    new = ready.with_name(ready.name + ".x")
    new.write_text(json.dumps({"pid": os.getpid(), "address": "here"}))
    new.replace(ready)
if kind == "leaves":
    while not Path(config["go"]).exists():
        time.sleep(0.01)
    sys.exit(0)
while True:
    time.sleep(3600)
"""


class Stand:
    """A supervisor whose services are the script above."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.script = directory / "service.py"
        self.script.write_text(SCRIPT)
        self.pids_file = directory / "pids.json"
        self.changes = 0
        self.supervisor = Supervisor(self.pids_file, self.count, program=(sys.executable, str(self.script)), stop_timeout_s=60)

    def count(self) -> None:
        self.changes += 1

    def make(self, kind: str, *, stop_first: bool = False, stop_last: bool = False) -> Service:
        config, ready = self.directory / f"{kind}.json", self.directory / f"{kind}.ready"
        config.write_text(
            json.dumps({"ready": str(ready), "go": str(self.directory / "go"), "ended": str(self.directory / "ended")})
        )
        return Service(kind, kind, config, ready, self.directory / f"{kind}.log", stop_first, stop_last)


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    made = Stand(tmp_path)
    yield made
    await made.supervisor.stop()


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.01)


async def test_a_ready_service_tells_its_facts_and_stops(stand: Stand) -> None:
    service = stand.make("plain")
    await stand.supervisor.start(service)
    await stand.supervisor.wait_ready(service)
    assert service.facts["address"] == "here"
    pid = service.pid
    assert json.loads(stand.pids_file.read_text()) == [[pid, get_start_ticks(pid)]]
    await stand.supervisor.stop()
    assert get_start_ticks(pid) is None
    assert not stand.pids_file.exists()
    stand.supervisor = Supervisor(stand.pids_file, stand.count)


async def test_a_service_that_fails_to_start_gives_its_own_reason(stand: Stand) -> None:
    service = stand.make("fails")
    await stand.supervisor.start(service)
    with pytest.raises(StartFailed, match=r"^the reason$"):
        await stand.supervisor.wait_ready(service)


async def test_a_service_that_is_never_ready_is_not_waited_for_without_end(stand: Stand) -> None:
    service = stand.make("slow")
    await stand.supervisor.start(service)
    with pytest.raises(TimedOut, match="was not ready"):
        await stand.supervisor.wait_ready(service, timeout_s=0.3)


async def test_a_crashed_service_is_started_again_with_growing_pauses(stand: Stand) -> None:
    service = stand.make("plain")
    await stand.supervisor.start(service)
    await stand.supervisor.wait_ready(service)
    for crashes in (1, 2):
        pid = service.pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda pid=pid: service.pid not in {0, pid} and bool(service.facts))  # type: ignore[misc]
        assert service.crashes == crashes
    assert stand.changes >= 4


async def test_a_ready_file_of_an_earlier_process_does_not_count(stand: Stand) -> None:
    service = stand.make("slow")
    await stand.supervisor.start(service)
    service.ready_file.write_text(json.dumps({"pid": 1}))
    with pytest.raises(TimedOut):
        await stand.supervisor.wait_ready(service, timeout_s=0.2)


async def test_one_that_hears_no_signal_is_killed_in_time(stand: Stand) -> None:
    services = [stand.make("deaf"), stand.make("plain", stop_first=True)]
    for service in services:
        await stand.supervisor.start(service)
        await stand.supervisor.wait_ready(service)
    pids = [service.pid for service in services]
    freeze(pids[1])
    stand.supervisor._stop_timeout_s = 0.5
    await asyncio.wait_for(stand.supervisor.stop(), 60)
    assert [get_start_ticks(pid) for pid in pids] == [None, None]
    stand.supervisor = Supervisor(stand.pids_file, stand.count)


async def test_services_end_in_their_order(stand: Stand) -> None:
    for service in (stand.make("last", stop_last=True), stand.make("between"), stand.make("first", stop_first=True)):
        await stand.supervisor.start(service)
        await stand.supervisor.wait_ready(service)
    await stand.supervisor.stop()
    assert (stand.directory / "ended").read_text().split() == ["first", "between", "last"]
    stand.supervisor = Supervisor(stand.pids_file, stand.count)


async def test_one_that_leaves_by_itself_is_told_and_not_started_again(stand: Stand) -> None:
    service = stand.make("leaves", stop_first=True)
    await stand.supervisor.start(service)
    await stand.supervisor.wait_ready(service)
    (stand.directory / "go").write_text("")
    async with asyncio.timeout(60):
        await stand.supervisor.left_by_itself.wait()
    assert service.pid == 0


KILLED = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.services.test_supervisor import Stand
async def main():
    stand = Stand(Path(sys.argv[1]))
    for kind in ("plain", "tied"):
        service = stand.make(kind)
        await stand.supervisor.start(service)
        await stand.supervisor.wait_ready(service)
    print("up", flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


def test_what_a_killed_supervisor_leaves_is_ended(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), root], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    pids_file = tmp_path / "pids.json"
    plain, tied = (pid for pid, _ in json.loads(pids_file.read_text()))
    process.kill()
    process.wait()
    process.stdout.close()
    # `tied` ignores SIGTERM: its lifeline ends it. `plain` has none: the next supervisor ends it.
    asyncio.run(until(lambda: get_start_ticks(tied) is None))
    assert get_start_ticks(plain) is not None
    end_leftovers(pids_file, timeout_s=0.2)
    assert get_start_ticks(plain) is None
    assert not pids_file.exists()


def test_nothing_is_ended_that_only_has_the_same_pid(tmp_path: Path) -> None:
    file = tmp_path / "pids.json"
    file.write_text(json.dumps([[os.getpid(), 1]]))
    end_leftovers(file, timeout_s=0)
    assert not file.exists()
    file.write_text("broken")
    end_leftovers(file)
