"""What a job feels that opened its files before they were whole here, and keeps them open. (Killed daemons: restarts.py.)"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from bench.measure import MB, Result
from bench.mounted import start_baseline
from bench.stack import fill_bucket, make_bytes, run_baseline
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack, start_stack

PIECE_BYTES = 32 << 20
READS_BYTES_S = 3e9
"""What is asked for, where the machine can answer so many bytes of READs at all."""


def measure_holding(server: S3Server, directory: Path, *, quick: bool) -> list[Result]:
    """The speed of handles that were opened too early."""
    size = (256 << 20) if quick else (1 << 30)
    bucket = server.make_bucket()
    large = fill_bucket(server, bucket, "large/", 3, size)
    environment = {"ALLUXIO_LIKE_SESSION": "kernel", **server.environment}
    limit = statistics.median(_measure_limit(directory, size) for _ in range(3))
    with start_stack(directory, {"/": f"s3://{bucket}"}, environment, "--workers", "1") as stack:
        return _measure_early_handles(stack, large, limit)


def _measure_limit(directory: Path, size: int) -> float:
    """Bytes/s of a mount that answers READs from a local file, in the page cache, and does nothing else (bare_reads.py)."""
    place, file = directory / "bare", directory / "local.bin"
    if not file.exists():
        file.write_bytes(make_bytes(1, PIECE_BYTES) * (size // PIECE_BYTES))
    command = [sys.executable, "-m", "bench.bare_reads", str(place), str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        done = run_baseline("sequential", str(place / "file"))
        process.communicate("end\n")
    return done["bytes"] / done["seconds"]


def _measure_early_handles(stack: Stack, keys: list[str], limit_bytes_s: float) -> list[Result]:
    """Sequential reads through handles that were opened before anything of their files was local: the first time, when each page
    is held against its checksum, and again."""
    rates: dict[str, list[float]] = {"": [], ", read again": []}
    for key in keys:
        with start_baseline("held", str(stack.mountpoint / key)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            stack.load(f"/{key}")
            done = json.loads(process.communicate("go\n")[0])
        for seconds, found in zip((done["seconds"], done["again_seconds"]), rates.values(), strict=True):
            found.append(done["bytes"] / seconds)
    reference = min(READS_BYTES_S, limit_bytes_s)
    limit = f"3 GB/s, or what READs can give here at most: {limit_bytes_s / 1e9:.1f} GB/s"
    name = f"a handle opened before the file was complete, of {limit}"
    return [
        Result(
            name + which,
            statistics.median(found) / MB,
            reference / MB,
            "MB/s",
            1.0,
            detail={"bytes_s": found, "limit_bytes_s": limit_bytes_s},
        )
        for which, found in rates.items()
    ]
