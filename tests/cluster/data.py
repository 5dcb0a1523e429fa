"""Data of the cluster tests: made from seeds, put into buckets, read through mounts."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.servers.fixtures import S3Server

MIB = 1 << 20


def make_data(seed: int, size: int) -> bytes:
    """Bytes that differ from seed to seed."""
    return random.Random(seed).randbytes(size)


def put_samples(server: S3Server, bucket: str, count: int, size: int = 110_000, prefix: str = "train/") -> dict[str, bytes]:
    """Small objects; key to bytes."""
    objects = {f"{prefix}{number:05d}.bin": make_data(number, size) for number in range(count)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: server.put(bucket, *item), objects.items()))
    return objects


def read_epoch(root: Path, names: list[str], seed: int = 0) -> dict[str, bytes]:
    """All files, whole, in random order."""
    names = list(names)
    random.Random(seed).shuffle(names)
    return {name: (root / name).read_bytes() for name in names}


def read_timed(path: Path) -> tuple[bytes | OSError, float]:
    """What a read gives, and the seconds it took."""
    start = time.monotonic()
    try:
        return path.read_bytes(), time.monotonic() - start
    except OSError as error:
        return error, time.monotonic() - start
