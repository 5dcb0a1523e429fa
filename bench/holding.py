"""What a job feels of events: a daemon that is killed and comes back, a file that was opened before it was whole.

Owns the events and their order. Each figure is one process's, which reads as programs do.
"""

import contextlib
import json
import os
import shutil
import signal
import statistics
import time
from pathlib import Path

from bench.measure import MB, Result, get_descendants
from bench.mounted import start_baseline
from bench.stack import SAMPLE_BYTES, fill_bucket
from tests.servers.fixtures import S3Server
from tests.servers.net import wait_until
from tests.servers.stack import Stack, start_stack

KILLS = 5
BETWEEN_KILLS_S = 4.0
READ_LIMIT_BYTES_S = 3e9


def measure_holding(server: S3Server, directory: Path, *, quick: bool) -> list[Result]:
    """Pauses while the FUSE daemon is killed, with and without passthrough; the speed of handles that were opened too early."""
    size, count = ((256 << 20), 200) if quick else ((1 << 30), 2000)
    bucket = server.make_bucket()
    fill_bucket(server, bucket, "small/", count, SAMPLE_BYTES)
    large = fill_bucket(server, bucket, "large/", 3, size)
    results = []
    for passthrough in ("auto", "off"):
        shutil.rmtree(directory / "home", ignore_errors=True)
        environment = {"ALLUXIO_LIKE_SESSION": "kernel", "ALLUXIO_LIKE_PASSTHROUGH": passthrough, **server.environment}
        with start_stack(directory, {"/": f"s3://{bucket}"}, environment, "--workers", "1") as stack:
            if passthrough == "auto":
                results.append(_measure_early_handles(stack, large))
            stack.load("/small")
            results += _measure_kills(stack, passthrough)
    return results


def _measure_kills(stack: Stack, passthrough: str) -> list[Result]:
    """The longest call of a reader beside kill -9 of the daemon, which the holder starts again."""
    duration = KILLS * BETWEEN_KILLS_S + 2
    arguments = ("steady", str(stack.mountpoint / "small"), "--duration", str(duration))
    with start_baseline(*arguments) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(KILLS):
            time.sleep(BETWEEN_KILLS_S)
            os.kill(get_daemon(stack), signal.SIGKILL)
        seen = json.loads(process.communicate()[0])
    name = f"kill -9 of the FUSE daemon under load, passthrough {passthrough}"
    detail = {"kills": KILLS, "calls": seen["files"]}
    return [
        Result(f"{name}: longest call, of 2 s", seen["longest_s"], 2.0, "s", 1.0, at_most=True, detail=detail),
        Result(f"{name}: errors", seen["errors"], 1, "errors", 0.0, at_most=True, detail=detail),
    ]


def get_daemon(stack: Stack) -> int:
    """The process that serves the mount now: the holder's child."""
    (holder,) = stack.get_service_pids("fuse")
    found: list[int] = []

    def look() -> bool:
        with contextlib.suppress(OSError):
            found[:] = [pid for pid in get_descendants(holder) if pid != holder]
        return bool(found)

    wait_until("the holder has a daemon", look, timeout_s=30)
    return found[0]


def _measure_early_handles(stack: Stack, keys: list[str]) -> Result:
    """Sequential reads through handles that were opened before anything of their files was local."""
    rates = []
    for key in keys:
        with start_baseline("held", str(stack.mountpoint / key)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            stack.load(f"/{key}")
            done = json.loads(process.communicate("go\n")[0])
        rates.append(done["bytes"] / done["seconds"])
    name = "a handle opened before the file was complete, of 3 GB/s"
    return Result(name, statistics.median(rates) / MB, READ_LIMIT_BYTES_S / MB, "MB/s", 1.0, detail={"bytes_s": rates})
