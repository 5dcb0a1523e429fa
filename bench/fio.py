"""Runs fio and says what it measured.

Owns the options that all runs share: one job, no invalidation of the page cache (what is warm stays warm). Each run is a process.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN_S = 4


@dataclass(frozen=True, slots=True)
class FioRun:
    """Bytes and operations a second; latencies in milliseconds; CPU seconds of fio itself for each GB."""

    bytes_s: float
    iops: float
    median_ms: float
    p99_ms: float
    cpu_s_per_gb: float


def run_fio(
    path: Path, rw: str, block_bytes: int, *, direct: bool, depth: int = 1, engine: str = "", seconds: float = 4.0
) -> FioRun:
    """Read one file: `rw` is read or randread; `depth` above 1 takes libaio; `engine` mmap reads by faults, each page once."""
    engine = engine or ("libaio" if depth > 1 else "psync")
    size = path.stat().st_size
    options: dict[str, Any] = {
        "name": "run",
        "filename": str(path),
        "rw": rw,
        "bs": block_bytes,
        "direct": int(direct),
        "ioengine": engine,
        "iodepth": depth,
        "invalidate": 0,
        "readonly": None,
        "randrepeat": 1,
        "size": size,
        "output-format": "json",
    }
    if engine == "mmap":
        options |= {"io_size": size // 4}
    else:
        options |= {"time_based": None, "runtime": RUN_S}
    return _run(options, "read")


def run_fio_write(path: Path, block_bytes: int, *, fsync: int) -> FioRun:
    """Write into a file that is there, at random places, each once at most in a turn; fsync after each `fsync` writes."""
    options: dict[str, Any] = {
        "name": "run",
        "filename": str(path),
        "rw": "randwrite",
        "bs": block_bytes,
        "ioengine": "psync",
        "fsync": fsync,
        "size": path.stat().st_size,
        "time_based": None,
        "runtime": RUN_S,
        "output-format": "json",
    }
    return _run(options, "write")


def _run(options: dict[str, Any], direction: str) -> FioRun:
    command = ["fio", *(f"--{key}" if value is None else f"--{key}={value}" for key, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = job[direction]
    percentiles = side["clat_ns"].get("percentile", {})
    busy_s = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
    return FioRun(
        bytes_s=side["bw_bytes"],
        iops=side["iops"],
        median_ms=percentiles.get("50.000000", 0) / 1e6,
        p99_ms=percentiles.get("99.000000", 0) / 1e6,
        cpu_s_per_gb=busy_s / max(side["io_bytes"] / 1e9, 1e-9),
    )
