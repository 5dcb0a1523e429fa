"""Several processes that serve one mount: READs that readers answer, their deaths, the daemon's, replacements, the end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.fuse import mountpoint as places
from tests.fuse.held_mounts import HeldMount, show, wait_until
from tests.fuse.test_held_mount import SIZE, Hold, Load, hold

__all__ = ["hold"]

pytestmark = pytest.mark.mount

KILLS = 100 if os.environ.get("ALLUXIO_LIKE_TEST_SOAK") else 3
LARGE = (8 << 20) + 77
SETTINGS: dict[str, Any] = {"passthrough": "off", "processes": 3, "fill_in_background": False}

SWEEP = """
import mmap, os, sys
path, end, rounds = sys.argv[1], sys.argv[2], 0
size = os.stat(path).st_size
content = b"".join((size + n).to_bytes(8, "big") for n in range(size // 8 + 1))[:size]
print("reading", flush=True)
while not os.path.exists(end):
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for start in range(0, size, 1 << 20):
        data = os.pread(fd, 1 << 20, start)
        assert data == content[start : start + (1 << 20)], (rounds, start, len(data))
    os.close(fd)
    rounds += 1
print(rounds)
"""


class Sweeps:
    """Programs that read a whole large file again and again, from the daemon and not from the page cache, and compare it."""

    def __init__(self, mount: HeldMount, count: int = 2) -> None:
        self.mount, self.count = mount, count
        self.end = mount.directory / "swept"
        self.rounds: list[int] = []

    def __enter__(self) -> "Sweeps":
        command = [sys.executable, "-c", SWEEP, str(self.mount.path / "large"), str(self.end)]
        self.programs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(self.count)]
        for program in self.programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "reading\n"
        return self

    def __exit__(self, *error: object) -> None:
        self.end.touch()
        for program in self.programs:
            try:
                output, _ = program.communicate(timeout=60)
            finally:
                program.kill()
                program.wait(60)
            if error[0] is None:
                assert program.returncode == 0
                self.rounds.append(int(output))


def make_mount(hold: Hold, **changes: Any) -> HeldMount:
    tree = {"big_files": {"/big": SIZE, "/large": LARGE}, "complete": ["/big", "/large"]}
    mount = hold(plan={"passthrough": "off"}, tree=tree, **{**SETTINGS, **changes})
    if mount.config["processes"] > 1:
        wait_readers(mount)
    return mount


def fetch(mount: HeldMount, page: str) -> str:
    """A page of the daemon's HTTP server, whose address changes hands with the mount."""

    def ask() -> str | None:
        try:
            with urllib.request.urlopen(f"http://{mount.facts()['http_address']}{page}", timeout=60) as answer:
                return str(answer.read().decode())
        except OSError:
            return None

    return str(wait_until(ask, page))


def get_readers(mount: HeldMount) -> list[int]:
    return list(json.loads(fetch(mount, "/jobs.json"))["readers"])


def wait_readers(mount: HeldMount, gone: int = 0) -> list[int]:
    """Both readers, once they take part; without the process `gone`."""

    def both() -> list[int] | None:
        pids = get_readers(mount)
        return pids if len(pids) == 2 and gone not in pids else None

    return list(wait_until(both, "two readers"))


def count_handed(mount: HeldMount) -> float:
    """READs that readers have answered."""
    name = 'alluxio_like_fuse_reads_handed_total{outcome="answered"} '
    (line,) = [line for line in fetch(mount, "/metrics").splitlines() if line.startswith(name)]
    return float(line.split()[1])


def wait_handed(mount: HeldMount, count: int = 5) -> None:
    """Until readers have answered some more READs."""
    before = count_handed(mount)
    wait_until(lambda: count_handed(mount) >= before + count, "READs answered by readers")


def test_readers_answer_reads(hold: Hold) -> None:
    mount = make_mount(hold)
    with Sweeps(mount, 1) as sweeps:
        wait_handed(mount, 20)
    show(f"rounds {sweeps.rounds}, {count_handed(mount):.0f} READs answered by readers")
    assert min(sweeps.rounds) > 0
    # What was read is booked, whoever answered.
    assert json.loads(fetch(mount, "/jobs.json"))["total"]["read_bytes"] >= sum(sweeps.rounds) * LARGE
    readers = get_readers(mount)
    # Unmounted from outside, readers and all.
    places.detach(mount.path)
    assert mount.process.wait(60) == 0
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in readers), "the readers' end")


def test_killed_readers_under_load(hold: Hold) -> None:
    """What a reader had is answered by the daemon, and another takes its place."""
    mount = make_mount(hold)
    rng = random.Random(5)
    with Sweeps(mount, 1) as sweeps:
        for _ in range(KILLS):
            victim = rng.choice(get_readers(mount))
            wait_handed(mount)
            os.kill(victim, signal.SIGKILL)
            wait_readers(mount, victim)
    show(f"{KILLS} kills of readers, rounds {sweeps.rounds}")
    assert mount.facts()["generation"] == 1


@pytest.mark.timeout(60 + 10 * KILLS)
def test_killed_daemons_with_readers_under_load(hold: Hold) -> None:
    """Readers end with their daemon; what they had is sent again to the next."""
    mount = make_mount(hold)
    rng = random.Random(6)
    with Sweeps(mount, 1) as sweeps, Load(mount) as load:
        for generation in range(2, 2 + KILLS):
            before = wait_readers(mount)
            wait_handed(mount)
            time.sleep(rng.random() * 0.1)
            if generation % 2:
                os.kill(before[0], signal.SIGKILL)
            mount.kill_daemon()
            mount.wait_ready(generation)
            wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), "the readers' end")  # noqa: B023
    show(f"{KILLS} kills of daemons with readers, rounds {sweeps.rounds}")
    assert [errors for _, errors, _ in load.results.values()] == [0, 0, 0]


def test_replacement_changes_the_number_of_processes(hold: Hold) -> None:
    mount = make_mount(hold, processes=1)
    assert get_readers(mount) == []
    with Sweeps(mount, 1), Load(mount) as load:
        for generation, processes in ((2, 3), (3, 1), (4, 3)):
            assert mount.replace(processes=processes)["generation"] == generation
            if processes > 1:
                wait_readers(mount)
                wait_handed(mount)
            else:
                wait_until(lambda: get_readers(mount) == [], "no readers")
    assert [errors for _, errors, _ in load.results.values()] == [0, 0, 0]
