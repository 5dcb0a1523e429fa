"""A million names through the mount: `find`, `stat` of each, and `ls -l` of one directory, the first time and again; and the
daemon's memory.

The namespace is listed from a synthetic store, which answers at once; the reference is a tree of as many empty files on the
local disk.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import MB, Result, get_anonymous_bytes, get_rss_bytes
from bench.metadata import ENVIRONMENT
from tests.servers.stack import Stack, start_stack

ROUNDS = 3
MEMORY_AIM_BYTES = 200e6
STAT = """
import os, sys
count = 0
todo = [sys.argv[1]]
while todo:
    with os.scandir(todo.pop()) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                todo.append(entry.path)
            else:
                count += os.stat(entry.path).st_nlink > 0
print(count)
"""


def measure_names(directory: Path, *, quick: bool) -> list[Result]:
    """Walks over all names, ours beside the local disk's, and the memory after them."""
    dirs, files = (10, 2000) if quick else (100, 10_000)
    total = dirs * files
    native = directory / "native"
    _make_native(native, dirs, files)
    command = [sys.executable, "-m", "bench.synthetic_store", "--dirs", str(dirs), "--files", str(files)]
    store = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert store.stdout is not None
        endpoint = json.loads(store.stdout.readline())["endpoint"]
        environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
        with start_stack(directory, {"/": "s3://synthetic/data"}, environment, "--workers", "1") as stack:
            # It looks at every name, and then finds that the files do not fit.
            stack.try_command("cache", "load", "/", "--dry-run", timeout_s=1800)
            return _compare(stack, native, total, dirs)
    finally:
        store.terminate()
        store.wait(10)
        assert store.stdout is not None
        store.stdout.close()
        shutil.rmtree(native)


def _compare(stack: Stack, native: Path, total: int, dirs: int) -> list[Result]:
    daemon = stack.get_service_pids("fuse")[0]
    before = get_anonymous_bytes(daemon)
    results: list[Result] = []
    used = resident = 0
    ways: Sequence[tuple[str, list[str], int, float | None]] = (
        ("find", ["find", "."], total, 0.5),
        ("stat of each name", [sys.executable, "-c", STAT, "."], total, 0.5),
        ("ls -l", ["ls", "-l", "d00000"], total // dirs, None),
    )
    for what, command, names, aim in ways:
        asked = count_requests(stack)
        first = names / _time(command, stack.mountpoint)
        detail: dict[str, Any] = {"requests_a_name": (count_requests(stack) - asked) / names}
        mine, theirs, asked = [], [], count_requests(stack)
        if what == "find":
            used, resident = get_anonymous_bytes(daemon), get_rss_bytes(daemon)
        for _ in range(ROUNDS):
            theirs.append(names / _time(command, native))
            mine.append(names / _time(command, stack.mountpoint))
        again = {"ours": mine, "native": theirs, "requests_a_name": (count_requests(stack) - asked) / ROUNDS / names}
        reference = statistics.median(theirs)
        name = f"{what}, {names} names"
        results.append(Result(f"{name}, again: of native", statistics.median(mine), reference, "names/s", aim, detail=again))
        results.append(Result(f"{name}, the first time: of native", first, reference, "names/s", detail=detail))
    detail = {"before_bytes": before, "own_bytes": used, "own_at_the_end_bytes": get_anonymous_bytes(daemon)}
    name = f"resident memory of the daemon after find over {total} names, of 200 MB"
    results.append(Result(name, resident / MB, MEMORY_AIM_BYTES / MB, "MB", 1.0, at_most=True, detail=detail))
    return results


def count_requests(stack: Stack) -> float:
    """Requests of the kernel that the daemon has answered."""
    with urllib.request.urlopen(f"http://{stack.ready['fuse']['http_address']}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("alluxio_like_fuse_requests_total{"))


def _time(command: list[str], place: Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def _make_native(root: Path, dirs: int, files: int) -> None:
    """As the synthetic store's tree."""
    for place in range(dirs):
        (root / f"d{place:05d}").mkdir(parents=True)
        for number in range(files):
            (root / f"d{place:05d}" / f"f{number:08d}.jpg").touch()
