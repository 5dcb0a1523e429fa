"""`cache load` and cold reads against a bare obstore loop, unthrottled and with the store at 300 MB/s and 10 ms."""

import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import MB, Result, back_memory, drop_page_cache, get_anonymous_bytes, timed
from bench.stack import SAMPLE_BYTES, fill_bucket, run_baseline
from tests.servers.fault_control import FaultProxy
from tests.servers.fixtures import S3Server
from tests.servers.net import wait_until
from tests.servers.stack import Stack, start_stack

STORE_BYTES_S = 300 * MB
STORE_LATENCY_S = 0.010


def measure_loading(server: S3Server, directory: Path, *, quick: bool) -> list[Result]:
    """All loads, each of ours right after its reference, `rounds` times; medians."""
    large, small = (2, 1000) if quick else (3, 5000)
    size = (256 << 20) if quick else (1 << 30)
    bucket = server.make_bucket()
    keys = {
        "1 GiB objects" if not quick else "256 MiB objects": fill_bucket(server, bucket, "large/", large, size),
        f"{small} objects of 110 KB": fill_bucket(server, bucket, "small/", small, SAMPLE_BYTES),
    }
    results = []
    with FaultProxy(server.endpoint) as proxy:
        proxy.set_limits(latency_s=STORE_LATENCY_S, bytes_per_s=STORE_BYTES_S)
        for endpoint, label, aim in ((server.endpoint, "unthrottled", 0.7), (proxy.endpoint, "300 MB/s and 10 ms", 0.95)):
            for what, names in keys.items():
                results.append(_compare_load(server, endpoint, directory, bucket, names, f"cache load, {what}, {label}", aim))
        results.append(_measure_cold_read(server, proxy, directory, bucket, keys[next(iter(keys))]))
        results.append(_measure_reader_beside_load(server, proxy, directory, bucket, keys[next(iter(keys))]))
    results += _measure_memory(server, directory, bucket, "large/", rounds=2 if quick else 4)
    return results


@contextmanager
def _reference_directory(directory: Path) -> Iterator[Path]:
    target = directory / "reference"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    yield target
    shutil.rmtree(target)


def _run_reference(server: S3Server, endpoint: str, directory: Path, bucket: str, keys: list[str]) -> dict[str, float]:
    listing = directory / "keys"
    listing.write_text("\n".join(keys))
    with _reference_directory(directory) as target:
        return run_baseline(
            "fetch",
            "--endpoint",
            endpoint,
            "--bucket",
            bucket,
            "--dir",
            str(target),
            "--keys-from",
            str(listing),
            environment=server.environment,
        )


def _compare_load(
    server: S3Server, endpoint: str, directory: Path, bucket: str, keys: list[str], name: str, aim: float, rounds: int = 3
) -> Result:
    prefix = keys[0].rpartition("/")[0]
    environment = {**server.environment, "AWS_ENDPOINT_URL": endpoint}
    ours, theirs, cpu, reference_cpu, command = [], [], [], [], []
    shutil.rmtree(directory / "home", ignore_errors=True)
    with start_stack(directory, {"/": f"s3://{bucket}"}, environment, "--workers", "1") as stack:
        stack.run_command("alluxio-like", "fs", "ls", f"/{prefix}")
        for _ in range(rounds):
            drop_page_cache()
            reference = _run_reference(server, endpoint, directory, bucket, keys)
            drop_page_cache()
            theirs.append(reference["bytes"] / MB / reference["seconds"])
            reference_cpu.append(reference["cpu_seconds"] / (reference["bytes"] / 1e9))
            with timed(stack.pids) as timing:
                job = stack.load(f"/{prefix}")
            # The reference's seconds begin after its interpreter's start, so ours are the job's and not the command's.
            ours.append(reference["bytes"] / MB / ((job["ended_ns"] - job["created_ns"]) / 1e9))
            command.append(reference["bytes"] / MB / timing.seconds)
            cpu.append(timing.cpu_seconds / (reference["bytes"] / 1e9))
            stack.free(f"/{prefix}")
    return Result(
        name,
        statistics.median(ours),
        statistics.median(theirs),
        "MB/s",
        aim,
        detail={
            "cpu_s_per_gb": statistics.median(cpu),
            "reference_cpu_s_per_gb": statistics.median(reference_cpu),
            "ours": ours,
            "with_the_commands_start": command,
            "reference": theirs,
        },
    )


def _measure_cold_read(server: S3Server, proxy: FaultProxy, directory: Path, bucket: str, keys: list[str]) -> Result:
    """One reader, front to back, of files that nobody has cached."""
    environment = {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
    shutil.rmtree(directory / "home", ignore_errors=True)
    ours, theirs = [], []
    with start_stack(directory, {"/": f"s3://{bucket}"}, environment, "--workers", "1") as stack:
        for key in keys:
            back_memory()
            reference = _run_reference(server, proxy.endpoint, directory, bucket, [key])
            theirs.append(reference["bytes"] / MB / reference["seconds"])
            back_memory()
            read = run_baseline("sequential", str(stack.mountpoint / key))
            ours.append(read["bytes"] / MB / read["seconds"])
    name = "cold sequential read through the mount, 300 MB/s and 10 ms"
    detail = {"ours": ours, "reference": theirs}
    return Result(name, statistics.median(ours), statistics.median(theirs), "MB/s", 0.85, detail=detail)


def _measure_reader_beside_load(server: S3Server, proxy: FaultProxy, directory: Path, bucket: str, keys: list[str]) -> Result:
    """One cold reader alone, then one (of another file) while a load of the rest runs at full speed."""
    environment = {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
    rates = []
    for beside_load in (False, True):
        shutil.rmtree(directory / "home", ignore_errors=True)
        with start_stack(directory, {"/": f"s3://{bucket}"}, environment, "--workers", "1") as stack:
            stack.run_command("alluxio-like", "fs", "ls", f"/{keys[0].rpartition('/')[0]}")
            back_memory()
            if beside_load:
                job = stack.run_command("cache", "load", *(f"/{key}" for key in keys[1:]), "--detach")["job_id"]
                wait_until("the load fetches", lambda: proxy.get_max_in_flight() > 4, timeout_s=30)
            read = run_baseline("sequential", str(stack.mountpoint / keys[0]))
            rates.append(read["bytes"] / MB / read["seconds"])
            if beside_load:
                stack.run_command("cache", "cancel", job)
        proxy.reset_log()
    name = "cold reader beside a load at full speed, of the same reader alone"
    return Result(name, rates[1], rates[0], "MB/s", 0.8)


def _measure_memory(server: S3Server, directory: Path, bucket: str, prefix: str, rounds: int) -> list[Result]:
    """Resident memory of the worker while it loads the same objects again and again (10 GiB and more in all)."""
    shutil.rmtree(directory / "home", ignore_errors=True)
    series = []
    with start_stack(directory, {"/": f"s3://{bucket}"}, server.environment, "--workers", "1") as stack:
        worker = stack.get_service_pids("workers")[0]
        for _ in range(rounds):
            with _sampled(stack, worker) as samples:
                stack.load(f"/{prefix}")
            series.append(max(samples))
            stack.free(f"/{prefix}")
    return [
        Result(
            "worker's memory under load: most, of 400 MB",
            max(series) / MB,
            400,
            "MB",
            1.0,
            at_most=True,
            detail={"series": series},
        ),
        Result("worker's memory: last load beside the first", series[-1] / MB, series[0] / MB, "MB", 1.15, at_most=True),
    ]


@contextmanager
def _sampled(_stack: Stack, pid: int) -> Iterator[list[int]]:
    """Samples of a process's own memory every 50 ms while the block runs."""
    import threading

    samples = [get_anonymous_bytes(pid)]
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.05):
            samples.append(get_anonymous_bytes(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
