"""How large the namespace is on disk, and how fast the core reads and writes it.

    python bench/namespace_size.py [INODES] [DIRECTORY]

Fills an LMDB store with INODES (default 200,000) made-up files, in directories of 1,000 met in random order and in one flat
directory, in pages of 1,000 as listings bring them; prints one JSON line a shape. No network, no services.
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path

from alluxio_like.kv.lmdb import LmdbStore
from alluxio_like.master.core import mounts, namespace
from alluxio_like.types import Fingerprint, InodeId, Kind
from alluxio_like.ufs.api import StoreEntry

PAGE = 1000


def make_files(first: int, count: int) -> list[StoreEntry]:
    """Samples named like those of an image data set, with an ETag each."""
    return [
        StoreEntry(
            f"sample-{number:09}.jpg",
            Kind.FILE,
            Fingerprint(md5(b"%d" % number, usedforsecurity=False).hexdigest(), 110_000 + number % 999),
            1_700_000_000_000_000_000 + number,
        )
        for number in range(first, first + count)
    ]


def make_pages(files: list[StoreEntry]) -> Iterator[tuple[list[StoreEntry], bool]]:
    for at in range(0, len(files), PAGE):
        yield files[at : at + PAGE], at + PAGE >= len(files)


def list_directory(store: LmdbStore, directory: InodeId, files: list[StoreEntry]) -> None:
    """Apply a whole listing, a transaction a page."""
    now_ns = time.time_ns()
    with store.read() as reader:
        plan = namespace.begin_listing(reader, directory, now_ns)
    after = None
    for page, is_last in make_pages(files):
        with store.write() as txn:
            after = namespace.apply_page(txn, plan, after, page, is_last, now_ns).covered


def measure(shape: str, inodes: int, path: Path) -> dict[str, object]:
    store = LmdbStore(path)
    with store.write() as txn:
        namespace.prepare(txn, time.time_ns())
        root = mounts.add_mount(txn, "/", "s3://bucket/", options={}, read_only=True, uid=0, gid=0, now_ns=time.time_ns()).root
    listings: list[tuple[InodeId, list[StoreEntry]]] = [(root, make_files(0, inodes))]
    if shape == "directories":
        names = [StoreEntry(f"class-{number:06}", Kind.DIRECTORY) for number in range(inodes // PAGE)]
        list_directory(store, root, names)
        with store.read() as reader:
            children = [entry.attr.inode for entry in namespace.list_entries(reader, root, limit=len(names)).entries]
        random.Random(1).shuffle(children)
        listings = [(child, make_files(number * PAGE, PAGE)) for number, child in enumerate(children)]
    seconds = {}
    for label in ("first_listing", "unchanged_listing"):
        begun = time.perf_counter()
        for directory, files in listings:
            list_directory(store, directory, files)
        seconds[label] = time.perf_counter() - begun
    store.flush()
    size = store.get_size_bytes()
    begun = time.perf_counter()
    count = 0
    for directory, _ in listings:
        cursor = b""
        while True:
            with store.read() as reader:
                page = namespace.list_entries(reader, directory, cursor)
            count += len(page.entries)
            cursor = page.cursor
            if not cursor:
                break
    seconds["read_all"] = time.perf_counter() - begun
    asked = [
        (directory, file.name) for directory, files in listings for file in random.Random(2).sample(files, min(20, len(files)))
    ]
    begun = time.perf_counter()
    for directory, name in asked[:20_000]:
        with store.read() as reader:
            assert namespace.lookup(reader, directory, name) is not None
    lookups = len(asked[:20_000]) / (time.perf_counter() - begun)
    store.close()
    begun = time.perf_counter()
    store = LmdbStore(path)
    with store.write() as txn:
        namespace.prepare(txn, time.time_ns())
    reopen_s = time.perf_counter() - begun
    store.close()
    return {
        "shape": shape,
        "inodes": count,
        "bytes": size,
        "bytes_per_inode": round(size / count, 1),
        **{f"{label}_per_s": round(count / taken) for label, taken in seconds.items()},
        "lookups_per_s": round(lookups),
        "reopen_ms": round(reopen_s * 1000, 2),
    }


def main() -> None:
    inodes = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    for shape in ("flat", "directories"):
        with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as directory:
            print(json.dumps(measure(shape, inodes, Path(directory))), flush=True)


if __name__ == "__main__":
    main()
