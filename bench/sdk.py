"""`read_many` beside an open, read, close loop over files of the local disk, in one process, turn by turn."""

import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from alluxio_like import connect
from bench.measure import Result
from bench.stack import SAMPLE_BYTES, make_bytes
from tests.servers.stack import start_stack

ROUNDS = 3
TURN = 1000
"""Files read in one turn."""


def measure_sdk(directory: Path, *, quick: bool) -> list[Result]:
    """Warm small files in random order; names, places and pages known. The reference reads the store's own files, as warm."""
    count = 2000 if quick else 20_000
    results = []
    for size in (SAMPLE_BYTES, 1000):
        store = directory / "store"
        _write_files(store / "files", count, size)
        with start_stack(directory, {"/": f"file://{store}"}, {}, "--workers", "1", "--cache-size", "20GB") as stack:
            stack.load("/")
            results += _measure(stack.master, store / "files", count, size)
        shutil.rmtree(store)
        shutil.rmtree(directory / "home", ignore_errors=True)
    return results


def _write_files(directory: Path, count: int, size: int) -> None:
    directory.mkdir(parents=True)
    old = time.time() - 3600
    for number in range(count):
        path = directory / f"{number:06d}.bin"
        path.write_bytes(make_bytes(number, size))
        # A file that was changed just now is not trusted for caching.
        os.utime(path, (old, old))


def _measure(master: str, native: Path, count: int, size: int) -> list[Result]:
    rates: dict[str, list[float]] = {}
    with connect(master) as client:

        def read_ours(numbers: Sequence[int]) -> int:
            return sum(len(data) for _, data in client.read_many([f"/files/{number:06d}.bin" for number in numbers]))

        def read_system_calls(numbers: Sequence[int]) -> int:
            return sum(_read_natively(f"{native}/{number:06d}.bin", size) for number in numbers)

        def read_objects(numbers: Sequence[int]) -> int:
            total = 0
            for number in numbers:
                with open(f"{native}/{number:06d}.bin", "rb") as file:
                    total += len(file.read())
            return total

        numbers = list(range(count))
        first = _time(read_ours, numbers, size)
        for call in (read_ours, read_system_calls):
            call(numbers)
        for seed in range(ROUNDS):
            random.Random(seed).shuffle(numbers)
            # Turn by turn, so that whatever else the machine does disturbs all alike.
            for start in range(0, count, TURN):
                for name, call in (("ours", read_ours), ("calls", read_system_calls), ("objects", read_objects)):
                    rates.setdefault(name, []).append(_time(call, numbers[start : start + TURN], size))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    label = f"read_many, {count:,} files of {size:,} bytes, random order"
    detail = {"rates": rates, "first_pass": first}
    return [
        Result(f"{label}; os.open, os.read, os.close", middle["ours"], middle["calls"], "files/s", 1.0, detail=detail),
        Result(f"{label}; open(p, 'rb').read()", middle["ours"], middle["objects"], "files/s", 1.0),
        Result(f"{label}, first pass; os.open, os.read, os.close", first, middle["calls"], "files/s"),
    ]


def _read_natively(path: str, size: int) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return len(os.read(fd, size))
    finally:
        os.close(fd)


def _time(call: Callable[[Sequence[int]], int], numbers: Sequence[int], size: int) -> float:
    begun = time.perf_counter()
    total = call(numbers)
    seconds = time.perf_counter() - begun
    assert total == len(numbers) * size, f"{total} bytes"
    return len(numbers) / seconds
