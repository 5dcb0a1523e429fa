"""Reads of what another worker holds, through the mount and from worker to worker, by data socket, gRPC, and gRPC in TLS, beside
bare sendfile, which is in the clear.

Two workers on one machine; the door of the second is taken away before anybody enters it, so that the mount's client reads that
worker's files as it would those of another machine.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alluxio_like.client.client import Client
from alluxio_like.config import ClientConfig, TlsConfig
from alluxio_like.placement import rank_workers
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.data_pool import DataPool
from alluxio_like.rpc.messages import Filled, Priority
from alluxio_like.rpc.worker_stub import WorkerStub
from alluxio_like.types import BLOCK_BYTES, Cluster, Entry, Worker
from bench.measure import MB, Result, back_memory, get_cpu_seconds
from bench.stack import SAMPLE_BYTES, make_bytes, run_baseline
from tests.certificates import Authority
from tests.servers.stack import Stack, start_stack

ROUNDS = 3
_QUIET_CPU_S = 0.2
"""CPU seconds of all in two seconds with nothing to do, and some to spare."""
_LARGE = 3
"""How many large files of the far worker a round needs."""
LATENCY_READS = 3000
CARRIERS = ("data socket", "gRPC", "gRPC with TLS")


@dataclass
class Held:
    """A namespace whose files lie with two workers, and which of them with the far one; `own`: small ones with the near one."""

    stack: Stack
    tls: TlsConfig
    near: Worker
    far: Worker
    cluster: Cluster
    large: list[Entry]
    small: list[Entry]
    own: list[Entry]

    @property
    def pids(self) -> list[int]:
        return [*self.stack.get_service_pids("workers"), *self.stack.get_service_pids("fuse")]


def measure_peers(directory: Path, *, quick: bool) -> list[Result]:
    """All rows of peers."""
    size, count = ((128 << 20), 400) if quick else ((512 << 20), 4000)
    source = directory / "source"
    _write_source(source, 6, size, count)
    # Contents of a directory are believed once they are two seconds old.
    time.sleep(2.5)
    bare = _measure_bare(directory, size, count // 2)
    results: list[Result] = []
    for name in CARRIERS:
        shown = name == "data socket"
        rows: dict[str, list[float]] = {}
        cpu: dict[str, list[float]] = {}
        latencies: list[float] = []
        for _ in range(ROUNDS):
            with hold(directory, source, name) as held:
                for key, rate, cpu_s_gb in _measure_reads(held):
                    rows.setdefault(key, []).append(rate)
                    cpu.setdefault(key, []).append(cpu_s_gb)
                latencies += _measure_latency(held)
        for key, title, unit, aim in (
            ("stream", "peer: sequential read through the mount", "MB/s", 0.6),
            ("fill", "peer: sequential fill of a cache from another worker", "MB/s", None),
            ("files", "peer: 110 KB files in random order through the mount", "files/s", 0.5),
            (
                "own files",
                "the same files of this machine, passed through: what a mount's open, read and close take",
                "files/s",
                None,
            ),
            ("fill files", "peer: fill of 110 KB files from another worker, 16 at once", "files/s", None),
        ):
            reference = bare["stream"] if unit == "MB/s" else bare["files"]
            detail = {"rounds": rows[key], "cpu_s_per_gb": statistics.median(cpu[key]), "bare_cpu_s_per_gb": bare[f"cpu {unit}"]}
            results.append(
                Result(f"{title}, {name}", statistics.median(rows[key]), reference, unit, aim if shown else None, detail=detail)
            )
        latencies.sort()
        for quantile, limit in ((0.5, 0.3), (0.99, 1.0)):
            found = latencies[int(len(latencies) * quantile)] * 1000
            results.append(
                Result(
                    f"peer: random 4 KiB, queue depth 1, quantile {quantile:g}, {name}",
                    found,
                    limit,
                    "ms",
                    1.0 if shown else None,
                    at_most=True,
                )
            )
    return results


@contextmanager
def hold(directory: Path, source: Path, carrier: str) -> Iterator[Held]:
    """Two workers that hold everything once, the second of them as if on another machine."""
    arguments = ("--workers", "2", "--cache-size", "32GiB")
    tls, environment = TlsConfig(), {} if carrier == "data socket" else {"ALLUXIO_LIKE_DATA_BIND": "off"}
    if carrier == "gRPC with TLS":
        tls = Authority(directory).issue("host")
        environment = {f"ALLUXIO_LIKE_TLS__{name.upper()}": str(getattr(tls, name)) for name in ("certificate", "key", "ca")}
    # Which worker has which file is chance, and another with each home.
    for number in range(20):
        home = f"home-{CARRIERS.index(carrier)}-{number}"
        with start_stack(directory, {"/": source.as_uri()}, environment, *arguments, home=home) as stack:
            (directory / home / "worker-2" / "door.sock").unlink()
            held = asyncio.run(_look(stack, tls))
            if len(held.large) >= _LARGE:
                # What the rounds before brought to the near worker as guests goes.
                stack.free("/")
                stack.load("/")
                yield held
                return
    raise RuntimeError("in twenty homes fewer than three large files had their home on the far worker")


async def _look(stack: Stack, tls: TlsConfig) -> Held:
    async with Client.open(ClientConfig(master=stack.master, use_local_cache=False, tls=tls)) as client:
        cluster = await client.get_cluster()
        doors = {worker.worker_id: "worker-1" in worker.door_path for worker in cluster.workers}
        near = next(worker for worker in cluster.workers if doors[worker.worker_id])
        far = next(worker for worker in cluster.workers if not doors[worker.worker_id])
        held = Held(stack, tls, near, far, cluster, [], [], [])
        for name, found in (("large", held.large), ("small", held.small)):
            parent = (await client.get_path(f"/{name}")).attr.inode
            cursor = b""
            while True:
                page = await client.list_dir(parent, cursor)
                for entry in page.entries:
                    if entry.ref is not None and rank_workers(cluster.workers, entry.ref.file_id, None)[0] == far:
                        found.append(entry)
                    elif name == "small":
                        held.own.append(entry)
                cursor = page.next_cursor
                if not cursor:
                    break
        return held


def _measure_reads(held: Held) -> Iterator[tuple[str, float, float]]:
    """(row, rate, CPU seconds per GB) of each kind of read; every file is read once, so that none is near when it is read."""
    mountpoint = held.stack.mountpoint
    large = mountpoint / "large" / held.large[0].name
    back_memory(4 * held.large[0].attr.size)
    before = get_cpu_seconds(held.pids)
    done = run_baseline("sequential", str(large))
    yield "stream", done["bytes"] / MB / done["seconds"], _per_gb(held, before, done["cpu_seconds"], done["bytes"])
    _wait_quiet(held)
    before = get_cpu_seconds(held.pids)
    total, seconds = asyncio.run(_fill(held, held.large[1:2], 1))
    yield "fill", total / MB / seconds, _per_gb(held, before, 0.0, total)
    half = len(held.small) // 2
    back_memory(1 << 30)
    for key, entries in (("files", held.small[:half]), ("own files", held.own[:half])):
        names = "\n".join(str(mountpoint / "small" / entry.name) for entry in entries)
        before = get_cpu_seconds(held.pids)
        done = _read_names(names)
        yield key, done["files"] / done["seconds"], _per_gb(held, before, done["cpu_seconds"], done["bytes"])
    before = get_cpu_seconds(held.pids)
    total, seconds = asyncio.run(_fill(held, held.small[half:], 16))
    yield "fill files", (len(held.small) - half) / seconds, _per_gb(held, before, 0.0, total)


def _wait_quiet(held: Held) -> None:
    """Until nothing is brought any more of what was read: that is not part of what comes next."""
    before = -1.0
    while (now := get_cpu_seconds(held.pids)) - before > _QUIET_CPU_S:
        before = now
        time.sleep(2)


def _per_gb(held: Held, before: float, more: float, size: float) -> float:
    return (get_cpu_seconds(held.pids) - before + more) / (size / 1e9)


def _measure_latency(held: Held) -> list[float]:
    path = held.stack.mountpoint / "large" / held.large[2].name
    return run_peer_baseline("latency", str(path), "--count", str(LATENCY_READS))["seconds"]  # type: ignore[no-any-return]


def _read_names(names: str) -> dict[str, float]:
    program = (
        "import json, random, resource, sys, time\n"
        "names = sys.stdin.read().split('\\n'); random.Random(1).shuffle(names); total = 0\n"
        "start = time.perf_counter()\n"
        "for name in names:\n"
        "    with open(name, 'rb') as file: total += len(file.read())\n"
        "seconds = time.perf_counter() - start; usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(json.dumps({'files': len(names), 'bytes': total, 'seconds': seconds,"
        " 'cpu_seconds': usage.ru_utime + usage.ru_stime}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=names, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


async def _fill(held: Held, entries: list[Entry], at_once: int) -> tuple[int, float]:
    """Have the near worker bring files, as a mount does; bytes and seconds."""
    channel = open_channel(held.near.address, tls=held.tls)
    stub = WorkerStub(channel, timeout_s=120)
    pool = DataPool(silence_s=30)
    gate = asyncio.Semaphore(at_once)

    async def fill(entry: Entry, *, only: int = 1 << 62) -> None:
        ref, kept = entry.ref, True
        assert ref is not None

        def on_filled(filled: Filled) -> bool:
            nonlocal kept
            kept = kept and not filled.read_through
            return kept

        async with gate:
            for start in range(0, min(ref.size, only), BLOCK_BYTES):
                length = min(BLOCK_BYTES, ref.size - start, only)
                if pool.can_read(held.near):
                    await pool.fill(held.cluster, held.near, ref, start, length, priority=Priority.DEMAND, on_filled=on_filled)
                else:
                    async for filled in stub.fill(ref, start, length):
                        on_filled(filled)
        if not kept and only > ref.size:
            raise RuntimeError(f"{entry.name} is not kept")

    try:
        # Opened twice, so that admission keeps them.
        for entry in entries * 2 if at_once == 1 else ():
            await fill(entry, only=1)
        began = time.perf_counter()
        await asyncio.gather(*(fill(entry) for entry in entries))
        seconds = time.perf_counter() - began
    finally:
        await pool.close()
        await channel.close()
    return sum(entry.ref.size for entry in entries if entry.ref is not None), seconds


def _write_source(source: Path, large: int, size: int, small: int) -> None:
    for name, count, length in (("large", large, size), ("small", small, SAMPLE_BYTES)):
        (source / name).mkdir(parents=True)
        for number in range(count):
            with open(source / name / f"{number:06d}.bin", "wb") as file:
                for start in range(0, length, 1 << 25):
                    file.write(make_bytes(number * 1000 + start // (1 << 25), min(1 << 25, length - start)))


def _measure_bare(directory: Path, size: int, count: int) -> dict[str, float]:
    """MB/s and files/s of bare sendfile, and CPU seconds per GB of both ends."""
    source = directory / "source"
    rates: dict[str, list[float]] = {}
    back_memory(4 * size)
    for _ in range(ROUNDS + 1):
        for key, folder, arguments in (
            ("stream", "large", ("stream", "{port}", "0", str(size), "--into", str(directory / "received"))),
            ("files", "small", ("files", "{port}", str(count), str(SAMPLE_BYTES))),
        ):
            command = [sys.executable, "-m", "bench.peer_baseline", "serve", str(source / folder)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout is not None
                port = server.stdout.readline().strip()
                before = get_cpu_seconds([server.pid])
                done = run_peer_baseline(*(one.format(port=port) for one in arguments))
                cpu = get_cpu_seconds([server.pid]) - before + done["cpu_seconds"]
                server.wait(10)
            per_s = done["bytes"] / MB if key == "stream" else count
            rates.setdefault(key, []).append(per_s / done["seconds"])
            rates.setdefault("cpu MB/s" if key == "stream" else "cpu files/s", []).append(cpu / (done["bytes"] / 1e9))
        (directory / "received").unlink()
    return {key: statistics.median(found[1:]) for key, found in rates.items()}


def run_peer_baseline(*arguments: str) -> dict[str, Any]:
    """What `python -m bench.peer_baseline` measured."""
    command = [sys.executable, "-m", "bench.peer_baseline", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result
