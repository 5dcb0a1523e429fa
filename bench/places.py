"""Where the benchmarks of writing write, and the programs that write there.

Owns places (the local disk, our mount, another system's), and writers as processes of their own. What is compared, and how
often, is writing.py's and its neighbours'.
"""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import Result, get_cpu_seconds
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack, start_stack

_WRITER = """
import os, sys, time
root, count, size, mode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
block = os.urandom(1 << 20) if size >= 1 << 20 else os.urandom(size)
start = time.perf_counter()
for number in range(count):
    path = f"{root}/{number:06d}"
    aside = path + ".tmp" if mode == "rename" else path
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    left = size
    while left:
        left -= os.write(fd, block[:left])
    if mode != "plain":
        os.fsync(fd)
    os.close(fd)
    if mode == "rename":
        os.rename(aside, path)
print(time.perf_counter() - start)
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere to write; `pids` serve it."""

    name: str
    root: Path
    pids: Sequence[int] = ()


@contextmanager
def mount_ours(
    server: S3Server | None, directory: Path, policy: str, *, store: str = "", workers: int = 1, home: str = ""
) -> Iterator[tuple[Stack, Place]]:
    """Our mount of a new bucket, or of `store`; gone with its home afterwards."""
    home = home or f"home-{policy.partition(':')[0]}"
    environment = {} if server is None else server.environment
    with start_stack(directory, {}, environment, "--workers", str(workers), home=home) as stack:
        if not store:
            assert server is not None
            store = f"s3://{server.make_bucket()}"
        stack.run_command("alluxio-like", "mount", "/data", store, "-o", f"write={policy}")
        yield stack, Place(f"ours ({policy})", stack.mountpoint / "data", stack.pids)
    shutil.rmtree(directory / home, ignore_errors=True)


def write(place: Place, label: str, count: int, size: int, mode: str = "fsync", writers: int = 1) -> float:
    """Seconds that so many writers took, each with files of its own, until the last has closed its last; the files stay.

    `mode`: plain, fsync (before each close), rename (fsync, then renamed into place).
    """
    roots = [place.root / f"{label}-{number}" for number in range(writers)]
    for root in roots:
        root.mkdir()
    start = time.perf_counter()
    command = [sys.executable, "-c", _WRITER]
    running = [
        subprocess.Popen([*command, str(root), str(count), str(size), mode], stdout=subprocess.PIPE, text=True) for root in roots
    ]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"a writer on {place.name} failed")
    return float(printed[0]) if writers == 1 else time.perf_counter() - start


def write_and_remove(place: Place, label: str, count: int, size: int, mode: str, writers: int = 1) -> float:
    """As `write`; what was written is removed again, which is not counted."""
    try:
        return write(place, label, count, size, mode, writers)
    finally:
        for number in range(writers):
            shutil.rmtree(place.root / f"{label}-{number}", ignore_errors=True)


def run_for(command: Sequence[str], limit_s: float) -> float:
    """Run a program, but no longer than that; the seconds that it ran. Raises RuntimeError where it fails by itself."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    try:
        if process.wait(limit_s):
            raise RuntimeError(f"{command[0]} failed with {process.returncode}")
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    return time.perf_counter() - start


def run_rounds(rounds: int, limit_s: float) -> Iterator[int]:
    """Numbers of rounds, no further one after so long."""
    ends = time.monotonic() + limit_s
    for number in range(rounds):
        if number and time.monotonic() > ends:
            return
        yield number


@dataclass
class Turns:
    """What rounds in which ours and a reference take turns have given."""

    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def make_result(self, name: str, unit: str, aim: float | None, cpu_unit: str = "services_cpu_s_per_gb") -> Result:
        """Of the medians."""
        detail = {"ours": self.ours, "reference": self.reference, cpu_unit: self.cpu}
        return Result(name, statistics.median(self.ours), statistics.median(self.reference), unit, aim, detail=detail)


class Cpu:
    """CPU seconds of the processes that serve a place, from now on."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._before = get_cpu_seconds(pids)

    def per(self, amount: float) -> float:
        """What they took by now, for each of an amount."""
        return (get_cpu_seconds(self._pids) - self._before) / amount
