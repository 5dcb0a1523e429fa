"""Warm reads through the mount beside native files and rclone; epochs over data sets below and above the caches' size."""

import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path

from bench.measure import MB, Result, drop_page_cache
from bench.stack import SAMPLE_BYTES, fill_bucket, forget_pages, make_bytes, mount_rclone, run_baseline
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.stack import start_stack

ROUNDS = 5


def measure_warm_reads(server: S3Server, directory: Path, *, quick: bool) -> list[Result]:
    """Sequential and small-file reads: data in the page cache of the files behind the mount, nothing in the mount's own."""
    size, count = ((256 << 20), 1000) if quick else ((1 << 30), 5000)
    bucket = server.make_bucket()
    large = fill_bucket(server, bucket, "large/", 1, size)[0]
    fill_bucket(server, bucket, "small/", count, SAMPLE_BYTES)
    native = _write_native(directory, size, count)
    shutil.rmtree(directory / "home", ignore_errors=True)
    shutil.rmtree(directory / "rclone-cache", ignore_errors=True)
    rclone = _measure_rclone(directory, server, bucket, large)
    with start_stack(directory, {"/": f"s3://{bucket}"}, server.environment, "--workers", "1") as stack:
        stack.load("/")
        sequential = _read_large(stack.mountpoint / large)
        # The first pass brings the cache files into the page cache as rclone's first pass did.
    files = []
    for _ in range(ROUNDS):
        with start_stack(directory, {"/": f"s3://{bucket}"}, server.environment, "--workers", "1") as stack:
            files.append(_read_small(stack.mountpoint / "small"))
    shutil.rmtree(directory / "native")
    ours = {"sequential": sequential, "files": statistics.median(files)}
    rows = [
        ("warm sequential read, rclone", "sequential", rclone, 2.0, "MB/s"),
        ("warm small files in random order, rclone", "files", rclone, 2.0, "files/s"),
        ("warm sequential read, native", "sequential", native, None, "MB/s"),
        ("warm small files in random order, native", "files", native, None, "files/s"),
    ]
    return [Result(name, ours[key], reference[key], unit, aim) for name, key, reference, aim, unit in rows]


def _read_large(path: Path) -> float:
    rates = []
    for _ in range(ROUNDS + 1):
        forget_pages([path])
        done = run_baseline("sequential", str(path))
        rates.append(done["bytes"] / MB / done["seconds"])
    return statistics.median(rates[1:])


def _read_small(directory: Path, seed: int = 1) -> float:
    done = run_baseline("random-files", str(directory), "--seed", str(seed))
    return done["files"] / done["seconds"]


def _write_native(directory: Path, size: int, count: int) -> Mapping[str, float]:
    native = directory / "native"
    shutil.rmtree(native, ignore_errors=True)
    (native / "small").mkdir(parents=True)
    for number in range(count):
        (native / "small" / f"{number:06d}.bin").write_bytes(make_bytes(number, SAMPLE_BYTES))
    with open(native / "large", "wb") as file:
        for number in range(size >> 25):
            file.write(make_bytes(number, 1 << 25))
    sequential = []
    for _ in range(ROUNDS):
        done = run_baseline("sequential", str(native / "large"))
        sequential.append(done["bytes"] / MB / done["seconds"])
    files = [_read_small(native / "small", seed) for seed in range(ROUNDS)]
    return {"sequential": statistics.median(sequential), "files": statistics.median(files)}


def _measure_rclone(directory: Path, server: S3Server, bucket: str, large: str) -> Mapping[str, float]:
    with mount_rclone(directory, server, bucket) as mountpoint:
        run_baseline("sequential", str(mountpoint / large))
        _read_small(mountpoint / "small")
        sequential = _read_large(mountpoint / large)
    files = []
    for _ in range(ROUNDS):
        with mount_rclone(directory, server, bucket) as mountpoint:
            files.append(_read_small(mountpoint / "small"))
    return {"sequential": sequential, "files": statistics.median(files)}


def measure_epochs(server: S3Server, directory: Path, *, quick: bool) -> list[Result]:
    """Two epochs in random order over two workers: 0.75 of both caches, then twice both caches."""
    cache_bytes = (64 << 20) if quick else (256 << 20)
    results = []
    for share, aim, at_most in ((0.75, 0.0, True), (2.0, 0.45, False)):
        count = int(share * 2 * cache_bytes / SAMPLE_BYTES)
        bucket = server.make_bucket()
        fill_bucket(server, bucket, "samples/", count, SAMPLE_BYTES)
        shutil.rmtree(directory / "home", ignore_errors=True)
        with FaultProxy(server.endpoint) as proxy:
            environment = {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
            arguments = ("--workers", "2", "--cache-size", str(2 * cache_bytes))
            requests = []
            # The mount's own page cache would hide the cache: each epoch begins with a mount of its own, on the same home.
            for seed in (1, 2):
                with start_stack(directory, {"/": f"s3://{bucket}"}, environment, *arguments) as stack:
                    proxy.reset_log()
                    _read_small(stack.mountpoint / "samples", seed)
                    requests.append(proxy.get_counts())
        first, second = (counts["GET"] for counts in requests)
        lists = requests[1]["LIST"] + requests[1]["HEAD"]
        name = f"two epochs, data {share:g} of both caches"
        detail = {"requests": [dict(counts) for counts in requests], "files": count}
        results.append(Result(f"{name}: first epoch's GETs per file", first, count, "GETs", 1.02, at_most=True, detail=detail))
        if at_most:
            results.append(
                Result(f"{name}: second epoch's requests per file", second + lists, count, "requests", aim, at_most=True)
            )
        else:
            results.append(Result(f"{name}: second epoch's hits per file", count - second, count, "hits", aim))
        drop_page_cache()
    return results
