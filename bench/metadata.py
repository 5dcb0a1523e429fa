"""A million objects in the namespace: time to list them, memory, disk, restarts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from alluxio_like import connect
from bench.measure import Result, get_anonymous_bytes, get_rss_bytes, timed
from tests.servers.net import wait_until
from tests.servers.stack import Stack, start_stack

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


def count_disk_bytes(directory: Path) -> int:
    """Bytes that files below a directory occupy on disk."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def measure_metadata(directory: Path, *, quick: bool) -> list[Result]:
    """List everything through `cache load --dry-run`, then restart the whole on the same home."""
    dirs, files = (10, 1000) if quick else (100, 10_000)
    total = dirs * files
    shutil.rmtree(directory / "home", ignore_errors=True)
    command = [sys.executable, "-m", "bench.synthetic_store", "--dirs", str(dirs), "--files", str(files)]
    store = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert store.stdout is not None
        endpoint = json.loads(store.stdout.readline())["endpoint"]
        environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
        with start_stack(directory, {"/": "s3://synthetic/data"}, environment, "--workers", "1") as stack:
            master = stack.get_service_pids("master")[0]
            with timed([master]) as timing:
                job = stack.run_command("cache", "load", "/", "--dry-run", "--fit", timeout_s=1800)
            memory, resident = get_anonymous_bytes(master), get_rss_bytes(master)
            disk = count_disk_bytes(directory / "home" / "master")
            with connect(stack.master) as client:
                client.stat("/d00007")
                start = time.perf_counter()
                os.kill(master, signal.SIGKILL)
                while client.stat("/d00007/f00000007.jpg").attr.size <= 0 or master in get_live(stack):
                    time.sleep(0.01)
                restart = time.perf_counter() - start
    finally:
        store.terminate()
        store.wait(10)
        assert store.stdout is not None
        store.stdout.close()
    detail = {"job": job, "cpu_seconds": timing.cpu_seconds}
    return [
        Result(f"listing {total} objects", total / timing.seconds, 1, "entries/s", detail=detail),
        Result(f"bytes an inode on disk, {total} objects", disk / total, 1, "bytes"),
        Result(f"master's own memory after {total} objects", memory / 1e6, 1, "MB", detail={"resident_bytes": resident}),
        Result("restart of the master after kill -9, until it answers a listing, of 2 s", restart, 2.0, "s", 1.0, at_most=True),
    ]


def measure_worker_restart(directory: Path, *, quick: bool) -> list[Result]:
    """kill -9 of a worker that holds many files, until a file of its cache is read again through it."""
    count = 2000 if quick else 20_000
    source = directory / "source"
    source.mkdir()
    for number in range(count):
        (source / f"{number:06d}").write_bytes(b"%d" % number)
    shutil.rmtree(directory / "home", ignore_errors=True)
    with start_stack(directory, {"/": f"file://{source}"}, {}, "--workers", "1") as stack:
        stack.load("/", "--quiet")
        worker = stack.get_service_pids("workers")[0]
        (source / "000001").unlink()
        with connect(stack.master) as client:
            client.stat("/000001")
            start = time.perf_counter()
            os.kill(worker, signal.SIGKILL)
            # Through the worker that was killed: its client has no other, and the source's file is gone.
            wait_until("the worker's end", lambda: worker not in get_live(stack), timeout_s=10)
            data = client.read("/000001")
            seconds = time.perf_counter() - start
        if data != b"1":
            raise RuntimeError(f"wrong bytes: {data!r}")
    shutil.rmtree(source)
    name = f"restart of a worker with {count} files after kill -9, until a load finds them, of 2 s"
    return [Result(name, seconds, 2.0, "s", 1.0, at_most=True)]


def get_live(stack: Stack) -> list[int]:
    """Those of the stack's first processes that still live."""
    return [pid for pid in stack.pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]
