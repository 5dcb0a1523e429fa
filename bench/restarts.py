"""kill -9 of a mount's daemon, and its replacement, under programs that read: errors and the longest pause."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure import Result
from bench.stack import SAMPLE_BYTES, make_bytes
from tests.servers.net import wait_until
from tests.servers.stack import PROGRAMS, Stack, start_stack

COUNT = 500
READERS = 3
BETWEEN_S = 6.0
"""From one kill to the next: long enough for the next process on standby to be there, as it is in life."""

READER = """
import os, random, sys, time
root, end, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = sorted(os.listdir(root))
rng, held = random.Random(seed), os.open(f"{root}/{names[0]}", os.O_RDONLY)
errors = rounds = 0
worst = 0.0
print("reading", flush=True)
while not os.path.exists(end):
    start = time.monotonic()
    try:
        name = rng.choice(names)
        with open(f"{root}/{name}", "rb") as file:
            assert len(file.read()) == 110_000
        os.stat(f"{root}/{rng.choice(names)}")
        os.pread(held, 4096, 8192)
        if rounds % 50 == 0:
            assert len(os.listdir(root)) == len(names)
    except OSError as error:
        errors += 1
        print(error, file=sys.stderr)
    worst = max(worst, time.monotonic() - start)
    rounds += 1
print(rounds, errors, worst)
"""


def measure_restarts(directory: Path, *, quick: bool) -> list[Result]:
    """Readers of warm files that pass through, and of the same without passthrough."""
    times = 2 if quick else 5
    store = directory / "store"
    store.mkdir()
    old = time.time() - 3600
    for number in range(COUNT):
        path = store / f"{number:06d}.bin"
        path.write_bytes(make_bytes(number, SAMPLE_BYTES))
        # A file that was changed just now is not trusted for caching.
        os.utime(path, (old, old))
    results = []
    mountpoint = directory / "mnt"
    for way in ("auto", "off"):
        config = directory / "bench.toml"
        config.write_text(f'[fuse]\npassthrough = "{way}"\n')
        arguments = ["--workers", "1", "--cache-size", "2GB", "--config", str(config)]
        with start_stack(directory, {"/": f"file://{store}"}, {}, *arguments) as stack:
            stack.load("/")
            what = "passthrough" if way == "auto" else "no passthrough"
            results.append(_measure(directory, mountpoint, f"kill -9 of the daemon, {what}", times, lambda: _kill(directory)))
            if way == "auto":
                results.append(_measure(directory, mountpoint, "fuse --replace", times, lambda: _replace(stack, mountpoint)))
        shutil.rmtree(directory / "home", ignore_errors=True)
    shutil.rmtree(store)
    return results


def _get_facts(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "home/run/fuse.ready").read_text()))


def _kill(directory: Path) -> None:
    before = _get_facts(directory)
    os.kill(before["daemon_pid"], signal.SIGKILL)
    wait_until("the next daemon", lambda: _get_facts(directory)["generation"] > before["generation"], timeout_s=30)


def _replace(stack: Stack, mountpoint: Path) -> None:
    command = [str(PROGRAMS / "alluxio-like"), "fuse", str(mountpoint), "--replace"]
    subprocess.run(command, check=True, env=stack.environment, stdout=subprocess.DEVNULL)


def _measure(directory: Path, mountpoint: Path, name: str, times: int, disturb: Callable[[], None]) -> Result:
    end = directory / "end"
    end.unlink(missing_ok=True)
    command = [sys.executable, "-c", READER, str(mountpoint), str(end)]
    readers = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(READERS)]
    for reader in readers:
        assert reader.stdout is not None
        reader.stdout.readline()
    for _ in range(times):
        time.sleep(BETWEEN_S)
        disturb()
    time.sleep(1)
    end.touch()
    outcomes = [reader.communicate(timeout=60)[0].split() for reader in readers]
    errors = sum(int(outcome[1]) for outcome in outcomes)
    if errors:
        raise RuntimeError(f"{errors} errors while: {name}")
    worst_s = max(float(outcome[2]) for outcome in outcomes)
    detail = {"errors": errors, "times": times, "rounds": [int(outcome[0]) for outcome in outcomes]}
    return Result(f"{name} under {READERS} readers, longest pause, of 2 s", worst_s, 2.0, "s", 1.0, at_most=True, detail=detail)
