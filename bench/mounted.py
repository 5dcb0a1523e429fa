"""The warm mount beside the local disk and beside other S3 file systems: the same files, the same reads, in turn.

Owns what is read and in which order. Every system is warm: its data lies in files on one disk whose pages are in the page cache,
and every name has been looked up before. A figure is the median of rounds in which ours and the local disk take turns, so that
what disturbs the machine meets both; the others are measured before, alone.
"""

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.fio import FioRun, run_fio
from bench.measure import MB, Result, get_cpu_seconds, get_descendants
from bench.stack import SAMPLE_BYTES, fill_bucket, make_bytes, mount_rclone, mount_s3fs
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack, start_stack

ROUNDS = 3
PEER_ROUNDS = 2
TINY_BYTES = 1000
KINDS = {"small": "110 KB files", "tiny": "1 KB files"}
READERS = (1, 2, 4)
WAYS = (("kernel", "on", 1), ("kernel", "off", 1), ("kernel", "off", 2), ("kernel", "on", 2), ("pyfuse3", "off", 1))
"""Session, passthrough, processes that serve the mount."""


@dataclass(frozen=True, slots=True)
class System:
    """One way to the same files: `root`/large/…, `root`/small/…, `root`/tiny/…; `pids` serve it (none: the kernel alone)."""

    name: str
    root: Path
    pids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """What another system reads: MB/s of the large file, files/s by kind and number of readers."""

    sequential: float
    files: Mapping[tuple[str, int], float]


@dataclass(frozen=True, slots=True)
class _Case:
    """One kind of read of the large file, and the least it should be of native."""

    name: str
    aim: float
    rw: str
    block_bytes: int
    direct: bool = True
    depth: int = 1
    engine: str = ""

    def run(self, path: Path) -> FioRun:
        return run_fio(path, self.rw, self.block_bytes, direct=self.direct, depth=self.depth, engine=self.engine)


def measure_mounted(server: S3Server, directory: Path, *, quick: bool) -> list[Result]:
    """All rows; ours by kernel session with and without passthrough, by one process and by two, and by pyfuse3."""
    size, count = ((256 << 20), 500) if quick else ((1 << 30), 5000)
    bucket = server.make_bucket()
    large = fill_bucket(server, bucket, "large/", 1, size)[0]
    fill_bucket(server, bucket, "small/", count, SAMPLE_BYTES)
    fill_bucket(server, bucket, "tiny/", count, TINY_BYTES)
    native = _write_native(directory, large, size, count)
    results: list[Result] = []
    uri = {"/": f"s3://{bucket}"}
    peers = {}
    for name, mount in (("rclone", mount_rclone), ("s3fs", mount_s3fs)):
        with mount(directory, server, bucket) as root:
            peers[name] = _measure_peer(System(name, root), large)
    warm_all([native], large)
    sequential: dict[tuple[str, int], Result] = {}
    for session, passthrough, processes in WAYS:
        label = f"{session}, passthrough {passthrough}" if session == "kernel" else session
        label += f", {processes} processes" if processes > 1 else ""
        shutil.rmtree(directory / "home", ignore_errors=True)
        environment = {"ALLUXIO_LIKE_SESSION": session, "ALLUXIO_LIKE_PASSTHROUGH": passthrough, **server.environment}
        with start_stack(directory, uri, environment, "--workers", "1", "--processes", str(processes)) as ours:
            ours.load("/")
            pids = sorted({pid for parent in ours.pids for pid in get_descendants(parent)})
            system = System(f"ours ({label})", ours.mountpoint, pids)
            warm_all([system], large)
            if passthrough == "on" and processes == 1:
                results += _compare_blocks(system, native, large)
            results.append(_compare_sequential(system, peers, large, label))
            sequential.setdefault((passthrough, processes), results[-1])
            results += _compare_files(system, native, peers, label, ours, strict=session == "kernel")
    return [*results, _compare_processes(sequential)]


def _compare_processes(sequential: Mapping[tuple[str, int], Result]) -> Result:
    """What a second process does for one reader whose reads the kernel does not do by itself."""
    one, two = (sequential["off", count] for count in (1, 2))
    name = "warm sequential read (kernel, passthrough off): 2 processes of 1"
    return Result(name, two.ours, one.ours, "MB/s", 1.6)


def warm_all(systems: Sequence[System], large: str) -> None:
    """Read everything once by every way."""
    for system in systems:
        _read_sequentially(system, large)
        for kind in ("small", "tiny"):
            _read_files(system, kind, 1)


def _compare_blocks(ours: System, native: System, large: str) -> list[Result]:
    """Large reads and small ones of one large file, ours beside the local disk's own."""
    cases = [
        _Case("sequential 1 MiB, page cache", 0.8, "read", 1 << 20, direct=False),
        _Case("sequential 1 MiB, O_DIRECT", 0.95, "read", 1 << 20),
        _Case("random 4 KiB, depth 1, O_DIRECT", 0.95, "randread", 4096),
        _Case("random 4 KiB, depth 16, O_DIRECT", 0.95, "randread", 4096, depth=16),
        _Case("mmap, random 4 KiB faults", 0.9, "randread", 4096, direct=False, engine="mmap"),
    ]
    results = []
    for case in cases:
        mine, theirs, cpu = [], [], []
        for _ in range(ROUNDS):
            theirs.append(case.run(native.root / large).bytes_s / MB)
            before = get_cpu_seconds(ours.pids)
            done = case.run(ours.root / large)
            mine.append(done.bytes_s / MB)
            cpu.append({"fio_s_per_gb": done.cpu_s_per_gb, "services_s": get_cpu_seconds(ours.pids) - before})
        detail = {"ours": mine, "native": theirs, "cpu": cpu}
        ours_mb, native_mb = statistics.median(mine), statistics.median(theirs)
        results.append(Result(f"warm, {case.name}: of native", ours_mb, native_mb, "MB/s", case.aim, detail=detail))
    return results


def _measure_peer(peer: System, large: str) -> Peer:
    """A peer's warm figures; it is measured alone, since its daemon would take the cores from what is measured beside it."""
    warm_all([peer], large)
    sequential = [_read_sequentially(peer, large, forget=True) for _ in range(ROUNDS)]
    files = {}
    for kind in KINDS:
        for readers in READERS:
            files[kind, readers] = statistics.median(_read_files(peer, kind, readers) for _ in range(PEER_ROUNDS))
    return Peer(statistics.median(sequential), files)


def _compare_sequential(ours: System, peers: Mapping[str, Peer], large: str, label: str) -> Result:
    mine, cpu = [], []
    for _ in range(ROUNDS):
        before = get_cpu_seconds(ours.pids)
        mine.append(_read_sequentially(ours, large, forget=True))
        cpu.append(get_cpu_seconds(ours.pids) - before)
    detail = {"ours": mine, "peers": {name: peer.sequential for name, peer in peers.items()}, "services_cpu_s": cpu}
    name = f"warm sequential read ({label}): of rclone"
    return Result(name, statistics.median(mine), peers["rclone"].sequential, "MB/s", 2.0, detail=detail)


def _compare_files(
    ours: System, native: System, peers: Mapping[str, Peer], label: str, stack: Stack, *, strict: bool
) -> list[Result]:
    """open, read, close of many files in random order, by 1, 2 and 4 readers."""
    results = []
    for kind, what in KINDS.items():
        for readers in READERS if strict else READERS[:1]:
            mine, theirs = [], []
            trips = 0.0
            for _ in range(ROUNDS):
                theirs.append(_read_files(native, kind, readers))
                before = count_requests(stack)
                mine.append(_read_files(ours, kind, readers))
                after = count_requests(stack)
                trips = sum(after.values()) - sum(before.values())
            files = len(list((ours.root / kind).iterdir())) * readers
            rates = {name: peer.files[kind, readers] for name, peer in peers.items()}
            detail = {"ours": mine, "native": theirs, "peers": rates, "round_trips_per_file": trips / files}
            rate = statistics.median(mine)
            name = f"warm {what} in random order, {readers} readers ({label})"
            results.append(Result(f"{name}: of rclone", rate, rates["rclone"], "files/s", 5.0 if strict else 2.0, detail=detail))
            results.append(Result(f"{name}: of native", rate, statistics.median(theirs), "files/s"))
            if strict and readers == 1:
                results.append(Result(f"{name}: of 6,000 files/s", rate, 6000, "files/s", 1.0))
    return results


def count_requests(stack: Stack) -> dict[str, float]:
    """Requests of the kernel that the FUSE daemon has answered, by operation."""
    address = stack.ready["fuse"]["http_address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("alluxio_like_fuse_requests_total{"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def _read_sequentially(system: System, large: str, *, forget: bool = False) -> float:
    """MB/s of read(1 MiB) to the end."""
    arguments = ["sequential", str(system.root / large)] + (["--forget"] if forget else [])
    with start_baseline(*arguments) as process:
        done = json.loads(process.communicate()[0])
    return float(done["bytes"] / MB / done["seconds"])


def _read_files(system: System, kind: str, readers: int) -> float:
    """Files a second, of all readers together; each reads every file, in an order of its own."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(start_baseline("random-files", str(system.root / kind), "--seed", str(seed), "--wait"))
            for seed in range(readers)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        done = [json.loads(process.communicate()[0]) for process in processes]
    return float(sum(one["files"] for one in done) / max(one["seconds"] for one in done))


@contextlib.contextmanager
def start_baseline(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A reader of bench.baselines as a process; it must end well."""
    command = [sys.executable, "-m", "bench.baselines", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
        if process.wait(600):
            raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}")
    finally:
        process.kill()
        process.wait(10)


def _write_native(directory: Path, large: str, size: int, count: int) -> System:
    root = directory / "native"
    shutil.rmtree(root, ignore_errors=True)
    for kind, length in (("small", SAMPLE_BYTES), ("tiny", TINY_BYTES)):
        (root / kind).mkdir(parents=True)
        for number in range(count):
            (root / kind / f"{number:06d}.bin").write_bytes(make_bytes(number, length))
    (root / large).parent.mkdir()
    with open(root / large, "wb") as file:
        for number in range(size >> 25):
            file.write(make_bytes(number, 1 << 25))
    return System("native", root)
