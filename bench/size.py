"""Namespaces of 1, 10 and 100 million files, and block maps of as many blocks: how everything grows.

`python -m bench --only size` (not in the default run: the largest takes half an hour and 25 GB of disk). Each size is loaded by a
master of its own (bench/namespace_master.py), started again, and asked under a limit of 4 GiB for all its memory, page cache
included. Writes bench/out/size.json and size.png: a curve each, with the exponent fitted to it.
"""

import asyncio
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from alluxio_like.client.tree import make_batch
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.types import ROOT_INODE, InodeId
from bench.limits import get_peak_bytes, join, limited_memory
from bench.measure import Result, drop_page_cache
from bench.metadata import count_disk_bytes

FILES = 1000
SIZES = (1_000_000, 10_000_000, 100_000_000)
QUICK_SIZES = (20_000, 100_000)
WORKERS = 5000
LIMIT_BYTES = 4 << 30
LOOKUPS = 200_000
IN_FLIGHT = 32
CALLS_S = 3.0
TREE_ENTRIES = 10_000_000
"""The largest namespace that is listed whole: the figure is one of entries per second."""


class NamespaceMaster:
    """A bench/namespace_master.py process, in a cgroup where one is given."""

    def __init__(self, home: Path, entries: int, group: Path | None = None) -> None:
        command = [sys.executable, "-m", "bench.namespace_master", "--home", str(home), "--dirs", str(entries // FILES)]
        self._process = subprocess.Popen(
            [*command, "--files", str(FILES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if group is not None:
            join(group, self._process.pid)
        self.started: dict[str, Any] = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the master ended with status {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """What a `Session` of it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(300)
        self._process.stdout.close()


def measure_namespace(home: Path, entries: int, *, is_loaded: bool = False, lookups: int = LOOKUPS) -> dict[str, Any]:
    """One size: loaded (unless it is there), restarted, asked under the limit."""
    found: dict[str, Any] = {"entries": entries}
    if not is_loaded:
        master = NamespaceMaster(home, entries)
        loaded = master.ask("load")
        found["load_per_s"] = loaded["entries"] / loaded["seconds"]
        found["load_cpu_us"] = loaded["cpu_seconds"] / loaded["entries"] * 1e6
        master.close()
    found["bytes_per_inode"] = count_disk_bytes(home / "meta") / entries
    count = min(lookups, entries)
    with limited_memory(LIMIT_BYTES) as group:
        drop_page_cache()
        master = NamespaceMaster(home, entries, group)
        found["restart_s"] = master.started["started_s"]
        for name in ("cold", "warm"):
            asked = master.ask("lookups", count=count, seed=1 if name == "cold" else 2)
            found[f"{name}_lookups_per_s"] = asked["lookups"] / asked["seconds"]
            found[f"{name}_major_faults"] = asked["major_faults"]
        # What a process has mapped is not dropped.
        master.close()
        drop_page_cache()
        master = NamespaceMaster(home, entries, group)
        for name in ("cold", "warm"):
            asked = master.ask("lookups_at_once", count=count, in_flight=IN_FLIGHT, seed=1 if name == "cold" else 2)
            found[f"{name}_lookups_at_once_per_s"] = asked["lookups"] / asked["seconds"]
        found |= master.ask("memory")
        if entries <= TREE_ENTRIES:
            found["tree"] = tree = master.ask("tree")
            found["tree_entries_per_s"] = tree["first_entries"] / tree["first_seconds"]
        found["limit_bytes"] = LIMIT_BYTES if group is not None else 0
        found["peak_bytes"] = get_peak_bytes(group) if group is not None else 0
        found |= asyncio.run(measure_calls(master.started["address"], entries))
        master.close()
    return found


async def measure_calls(address: str, entries: int) -> dict[str, Any]:
    """What arrives over gRPC at a client beside the master: lookups, pages of directories, a whole tree as Arrow batches."""
    chooser = random.Random(5)
    directories = entries // FILES
    channel = open_channel(address)
    try:
        stub = MasterStub(channel, timeout_s=30)
        inodes: list[InodeId] = []
        for number in chooser.sample(range(directories), min(100, directories)):
            entry = (await stub.resolve_path(f"/d{number:07}")).entry
            assert entry is not None
            inodes.append(entry.attr.inode)
        latencies_ms: list[float] = []

        async def look(among: Sequence[InodeId], ends: float) -> int:
            count = 0
            while time.perf_counter() < ends:
                await stub.lookup(chooser.choice(among), f"sample-{chooser.randrange(FILES):09}.jpg")
                count += 1
            return count

        async def time_one(ends: float) -> int:
            while time.perf_counter() < ends:
                begun = time.perf_counter()
                await stub.lookup(inodes[0], f"sample-{0:09}.jpg")
                latencies_ms.append((time.perf_counter() - begun) * 1e3)
            return len(latencies_ms)

        async def measure_lookups(name: str, among: Sequence[InodeId]) -> dict[str, float]:
            """Of 16 at a time, and how long one that is in memory takes meanwhile."""
            latencies_ms.clear()
            ends = time.perf_counter() + CALLS_S
            counts = await asyncio.gather(*(look(among, ends) for _ in range(16)), time_one(ends))
            latencies_ms.sort()
            found = {f"{name}_per_s": sum(counts) / CALLS_S}
            found |= {f"{name}_p{part}_ms": latencies_ms[len(latencies_ms) * part // 100] for part in (50, 99)}
            return found

        every: list[InodeId] = []
        cursor = b""
        while cursor or not every:
            page = await stub.list_dir(ROOT_INODE, cursor, 10_000)
            every += [entry.attr.inode for entry in page.entries]
            cursor = page.next_cursor
        found: dict[str, Any] = await measure_lookups("grpc_everywhere", every)
        found |= await measure_lookups("grpc_lookups", inodes)
        begun, listed = time.perf_counter(), 0
        for inode in inodes:
            listed += len((await stub.list_dir(inode, b"", FILES)).entries)
        found["grpc_listed_per_s"] = listed / (time.perf_counter() - begun)
        if entries <= TREE_ENTRIES:
            begun, rows = time.perf_counter(), 0
            async with aclosing(stub.list_tree("/")) as pages:
                async for page in pages:
                    rows += make_batch(page).num_rows
            found["grpc_tree_per_s"] = rows / (time.perf_counter() - begun)
    finally:
        await channel.close()
    return found


def measure_block_map(blocks: int) -> dict[str, Any]:
    """One size of bench/block_map.py."""
    workers = min(WORKERS, blocks // 100)
    done = subprocess.run(
        [sys.executable, "-m", "bench.block_map", str(blocks), str(workers)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure_size(directory: Path, out: Path, *, quick: bool) -> list[Result]:
    """All sizes, smallest first."""
    namespaces, maps = [], []
    for entries in QUICK_SIZES if quick else SIZES:
        home = directory / f"namespace-{entries}"
        namespaces.append(measure_namespace(home, entries))
        shutil.rmtree(home)
        maps.append(measure_block_map(entries))
        write_curves(out, namespaces, maps)
    return [result for found in namespaces for result in describe_namespace(found)] + [
        result for found in maps for result in describe_map(found)
    ]


def describe_namespace(found: dict[str, Any]) -> list[Result]:
    size = f"{found['entries']:,} files"
    limit = "4 GiB" if found["limit_bytes"] else "no limit (no cgroup could be made)"
    results = [
        Result(f"{size}: bytes an inode on disk", found["bytes_per_inode"], 200, "bytes", 1.0, at_most=True),
        Result(f"{size}: start of the master", found["restart_s"], 1.0, "s", 1.0, at_most=True),
        Result(f"{size}: random lookups in the engine, {limit}", found["warm_lookups_per_s"], 50_000, "1/s", 1.0),
        Result(f"{size}: the same from a cold cache", found["cold_lookups_per_s"], 0, "1/s"),
        Result(
            f"{size}: random lookups, {IN_FLIGHT} at a time, cold cache", found["cold_lookups_at_once_per_s"], 50_000, "1/s", 1.0
        ),
        Result(f"{size}: the same again", found["warm_lookups_at_once_per_s"], 50_000, "1/s", 1.0),
        Result(
            f"{size}: a lookup in memory over gRPC while 16 others ask everywhere, p99", found["grpc_everywhere_p99_ms"], 0, "ms"
        ),
    ]
    for name, what in (
        ("grpc_lookups_per_s", "lookups over gRPC, a call each"),
        ("grpc_everywhere_per_s", "the same in all directories"),
        ("grpc_listed_per_s", "entries over gRPC, a directory page a call"),
        ("grpc_tree_per_s", "whole tree over gRPC to Arrow batches"),
    ):
        if name in found:
            results.append(Result(f"{size}: {what}", found[name], 0, "1/s"))
    if "tree" in found:
        again = found["tree"]["again_seconds"]
        results.append(Result(f"{size}: whole tree as columns, engine", found["tree_entries_per_s"], 5e6, "entries/s", 1.0))
        results.append(Result(f"{size}: the same again, unchanged", again, 0, "s"))
    if "load_per_s" in found:
        results.insert(0, Result(f"{size}: listed into the namespace", found["load_per_s"], 100_000, "entries/s", 1.0))
    return results


def describe_map(found: dict[str, Any]) -> list[Result]:
    size = f"{found['blocks']:,} blocks on {found['workers']:,} workers"
    return [
        Result(f"{size}: memory a block", found["bytes_a_block"], 16, "bytes", 1.0, at_most=True),
        Result(f"{size}: rebuilt from reports", found["rebuild_s"], 30, "s", 1.0, at_most=True),
        Result(f"{size}: a heartbeat with 10 changes", found["heartbeat_us"], 0, "us"),
        Result(f"{size}: longest pause meanwhile", found["rebuild_longest_pause_ms"], 0, "ms"),
        Result(f"{size}: a worker's death", found["death_us"], 0, "us"),
        Result(f"{size}: longest pause while it is swept out", found["sweep_longest_pause_ms"], 0, "ms"),
    ]


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """b of value = a * size ** b, by least squares of the logarithms."""
    xs, ys = [math.log(size) for size in sizes], [math.log(value) for value in values]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread if spread else float("nan")


CURVES = (
    ("load_per_s", "entries/s listed"),
    ("bytes_per_inode", "bytes an inode on disk"),
    ("restart_s", "s, start of the master"),
    ("warm_lookups_per_s", "lookups/s in 4 GiB"),
    ("own_bytes", "bytes of the master's own memory"),
    ("bytes_a_block", "bytes a block in the map"),
    ("rebuild_s", "s, map rebuilt"),
    ("heartbeat_us", "us a heartbeat"),
    ("rebuild_longest_pause_ms", "ms, longest pause"),
)


def write_curves(out: Path, namespaces: list[dict[str, Any]], maps: list[dict[str, Any]]) -> None:
    """size.json, and size.png with a plot for each curve."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    curves: dict[str, Any] = {}
    figure, all_axes = plt.subplots(3, 3, figsize=(13, 10))
    for axes, (name, label) in zip(all_axes.flat, CURVES, strict=True):
        rows = [(found.get("entries", found.get("blocks")), found[name]) for found in namespaces + maps if found.get(name)]
        if rows:
            sizes, values = [row[0] for row in rows], [row[1] for row in rows]
            exponent = fit_exponent(sizes, values)
            curves[name] = {"sizes": sizes, "values": values, "exponent": exponent}
            axes.loglog(sizes, values, "o-")
            axes.set_title(f"{label}, exponent {exponent:.2f}", fontsize=9)
            axes.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(out / "size.png", dpi=110)
    plt.close(figure)
    (out / "size.json").write_text(json.dumps({"namespaces": namespaces, "maps": maps, "curves": curves}, indent=1) + "\n")
