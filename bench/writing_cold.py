"""What was written, read back cold: a checkpoint whose node was lost, a file of tensors from the store; and snapshots.

Owns these rows of writing.py.
"""

import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.snapshots import SnapshotsStub
from bench.measure import MB, Result, back_memory, drop_page_cache
from bench.peers import run_peer_baseline
from bench.places import Cpu, Turns, mount_ours, run_rounds, write
from bench.size import FILES, NamespaceMaster
from bench.stack import run_baseline
from tests.cluster.far import take_away
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack

ROUNDS = 3
ROW_S = 45.0
WORKERS_S = 60.0
SNAPSHOTS = 5

_MAP = """
import sys, time
import numpy, safetensors
start = time.perf_counter()
total = 0
with safetensors.safe_open(sys.argv[1], "np") as file:
    for name in file.keys():
        total += file.get_tensor(name).nbytes
print(total, time.perf_counter() - start)
"""


def measure_snapshot(directory: Path, *, quick: bool) -> Result:
    """A snapshot of a namespace of ten million files, from the call to the answer."""
    entries = 100_000 if quick else 10_000_000
    home = directory / "namespace"
    master = NamespaceMaster(home, entries)
    try:
        loaded = master.ask("load")
        taken = asyncio.run(_take_snapshots(master.started["address"], Path(master.started["token_file"]).read_text().strip()))
    finally:
        master.close()
        shutil.rmtree(home)
    detail = {"files": entries // FILES * FILES, "load_s": loaded["seconds"], "ms": taken}
    name = f"snapshot of {entries:,} files"
    return Result(name, statistics.median(taken), 100.0, "ms", 1.0, at_most=True, detail=detail)


async def _take_snapshots(address: str, token: str) -> list[float]:
    channel = open_channel(address, token=token)
    taken = []
    try:
        stub = SnapshotsStub(channel, timeout_s=60)
        for number in range(SNAPSHOTS):
            start = time.perf_counter()
            await stub.create_snapshot(f"bench-{number}", "/", f"s{number}")
            taken.append(1000 * (time.perf_counter() - start))
    finally:
        await channel.close()
    return taken


def measure_restored(directory: Path, *, quick: bool) -> Result:
    """A checkpoint that was written on a node with `back:2`, read on the node that takes its place, from the other worker. The
    store is taken away before, so that no byte can come from it."""
    count, size = (3, 32 << 20) if quick else (10, 100_000_000)
    store, away = directory / "checkpoint-store", directory / "checkpoint-away"
    store.mkdir()
    turns = Turns()
    with mount_ours(None, directory, "back:2", store=store.as_uri(), workers=2, home="home-restored") as (stack, ours):
        home = directory / "home-restored"
        # The other worker is on another machine, as far as the mount can tell.
        take_away(home)
        write(ours, "checkpoint", count, size)
        stack.run_command("alluxio-like", "fs", "wait", "/data")
        store.rename(away)
        _lose_worker(stack, home / "worker-1")
        names = [str(ours.root / "checkpoint-0" / f"{number:06d}") for number in range(count)]
        cpu = Cpu(stack.pids)
        back_memory(2 * count * size)
        done = run_baseline("sequential", *names)
        turns.ours.append(done["bytes"] / MB / done["seconds"])
        turns.cpu.append(cpu.per(done["bytes"] / 1e9))
        away.rename(store)
    turns.reference.append(_read_bare(directory, size))
    shutil.rmtree(store)
    return turns.make_result("a checkpoint read after its node was lost, beside a bare read of its peer", "MB/s", 0.8)


def _lose_worker(stack: Stack, home: Path) -> None:
    """Kill a worker, with all that is on its disk; wait until another one has taken its place."""
    (lost,) = [one for one in stack.ready["workers"] if one["name"] == home.name]
    before = _list_live(stack)
    shutil.rmtree(home / "cache")
    os.kill(lost["pid"], signal.SIGKILL)
    deadline = time.monotonic() + WORKERS_S
    while len(now := _list_live(stack)) < 2 or now == before:
        if time.monotonic() > deadline:
            raise RuntimeError("no worker has taken the place of the one that was lost")
        time.sleep(0.2)


def _list_live(stack: Stack) -> set[str]:
    found = stack.run_command("alluxio-like", "workers")
    return {worker["worker_id"] for worker in found["workers"] if worker["live"]}


def _read_bare(directory: Path, size: int) -> float:
    """MB/s of a file by sendfile over a bare connection, hashed and written to the disk."""
    source, received = directory / "bare-source", directory / "received"
    source.mkdir()
    with open(source / "000000.bin", "wb") as file:
        file.write(os.urandom(size))
    command = [sys.executable, "-m", "bench.peer_baseline", "serve", str(source)]
    rates: list[float] = []
    for _ in range(ROUNDS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            done = run_peer_baseline("stream", port, "0", str(size), "--into", str(received))
            server.wait(10)
        rates.append(done["bytes"] / MB / done["seconds"])
        received.unlink()
    shutil.rmtree(source)
    return statistics.median(rates)


def measure_mapped(server: S3Server, directory: Path, *, quick: bool) -> Result:
    """A safetensors file of which nothing is cached, mapped and read to its end; beside ranges of it fetched in parallel."""
    tensors = 4 if quick else 24
    turns = Turns()
    bucket = server.make_bucket()
    local = directory / "model.safetensors"
    _write_tensors(local, tensors)
    size = local.stat().st_size
    keys = [f"models/{number}.safetensors" for number in range(ROUNDS)]
    for key in keys:
        server.client.upload_file(str(local), bucket, key)
    local.unlink()
    target = directory / "fetched"
    target.mkdir()
    listed = directory / "keys"
    with mount_ours(server, directory, "cache", store=f"s3://{bucket}", home="home-mapped") as (_, ours):
        for number in run_rounds(ROUNDS, ROW_S):
            listed.write_text(keys[number])
            drop_page_cache()
            arguments = ["--endpoint", server.endpoint, "--bucket", bucket, "--dir", str(target), "--keys-from", str(listed)]
            done = run_baseline("fetch", *arguments, environment=server.environment)
            turns.reference.append(done["bytes"] / MB / done["seconds"])
            cpu = Cpu(ours.pids)
            command = [sys.executable, "-c", _MAP, str(ours.root / keys[number])]
            total, seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            if int(total) < size * 0.99:
                raise RuntimeError(f"{total} bytes of tensors in a file of {size}")
            turns.ours.append(size / MB / float(seconds))
            turns.cpu.append(cpu.per(size / 1e9))
    shutil.rmtree(target)
    for key in keys:
        server.delete(bucket, key)
    return turns.make_result("cold safetensors file, mapped: of a bare parallel GET", "MB/s", 0.8)


def _write_tensors(path: Path, count: int) -> None:
    """Tensors of 32 MiB."""
    import numpy as np
    from safetensors.numpy import save_file

    save_file({f"layer-{n}": np.random.default_rng(n).integers(0, 256, 32 << 20, np.uint8) for n in range(count)}, path)
