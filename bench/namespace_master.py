"""A real master, in this process, over a store that lists as fast as it is asked: DIRS directories of FILES objects.

    echo '{"do": "load"}' | python -m bench.namespace_master --home DIR --dirs 1000 --files 1000

Starts a master on DIR, then does what its standard input says, a JSON line each, and answers with one: see `Session`. Ends with
its input.

The store is in the process too, and makes its entries as they are asked for: what is measured is the master, from a page of a
listing on. How fast a page comes out of an S3 answer is another figure (bench/metadata.py).
"""

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from alluxio_like import errors
from alluxio_like.clock import SystemClock
from alluxio_like.config import MasterConfig
from alluxio_like.master import app
from alluxio_like.master.core import namespace
from alluxio_like.master.tree import TreeLister
from alluxio_like.rpc.messages import MountSpec
from alluxio_like.types import ROOT_INODE, Fingerprint, InodeId, Kind
from alluxio_like.ufs.api import ListPage, StoreEntry
from bench.measure import get_anonymous_bytes, get_rss_bytes

DIRECTORIES_AT_ONCE = 16
FILE_BYTES = 110_000
_ALL_BITS = (1 << 64) - 1
MTIME_NS = 1_700_000_000 * 10**9


class SyntheticUfs:
    """`ufs.api.Ufs` as far as a listing needs it: objects named like samples of an image data set, an ETag each."""

    bucket = "s3://synthetic"
    checks_first = True

    def __init__(self, dirs: int, files: int) -> None:
        self._dirs = dirs
        self._files = files

    async def check(self) -> None:
        pass

    async def stat(self, key: str) -> StoreEntry:
        raise errors.NotFound("no such object", subject=key)

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        start = int(token or 0)
        if prefix:
            directory = int(prefix[1:-1])
            stop = min(start + max_entries, self._files)
            entries = [
                StoreEntry(
                    f"sample-{n:09}.jpg",
                    Kind.FILE,
                    Fingerprint(make_etag(directory, n), FILE_BYTES + n * 7919 % 65_536),
                    MTIME_NS + n * 7919 % 86_400 * 10**9,
                )
                for n in range(start, stop)
            ]
        else:
            stop = min(start + max_entries, self._dirs)
            entries = [StoreEntry(f"d{n:07}", Kind.DIRECTORY) for n in range(start, stop)]
        total = self._files if prefix else self._dirs
        return ListPage(tuple(entries), str(stop) if stop < total else None)

    def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        raise errors.NotFound("its objects have no bytes", subject=key)

    async def close(self) -> None:
        pass


def make_etag(directory: int, file: int) -> str:
    """As good as random in all its 128 bits, as an MD5 sum is: what can be packed of it is what can be packed of real ones."""
    high = (file * 0x9E3779B97F4A7C15 + directory * 0xD1B54A32D192ED03) & _ALL_BITS
    low = (file * 0xC2B2AE3D27D4EB4F + directory * 0xA0761D6478BD642F) & _ALL_BITS
    return f"{high:016x}{low:016x}"


def make_opener(dirs: int, files: int) -> Callable[..., SyntheticUfs]:
    """What opens every mount of this process."""

    def opener(uri: str, options: Mapping[str, str], **_others: object) -> SyntheticUfs:
        return SyntheticUfs(dirs, files)

    return opener


class Session:
    """What can be asked on standard input: {"do": NAME, …}."""

    def __init__(self, master: app.Master, dirs: int, files: int) -> None:
        self._master = master
        self._dirs = dirs
        self._files = files

    async def load(self) -> dict[str, Any]:
        """Everything listed, directories in random order; entries a second."""
        lister, meta = self._master.lister, self._master.meta
        begun, cpu = time.perf_counter(), time.process_time()
        await lister.wait_flight(lister.begin(ROOT_INODE))
        waiting = self.list_directories()
        random.Random(1).shuffle(waiting)
        total = len(waiting)

        async def work() -> None:
            while waiting:
                inode = waiting.pop()
                # What an interrupted run has listed is believed for ever.
                if not lister.is_listed(inode, 0):
                    await lister.wait_flight(lister.begin(inode))
                done = total - len(waiting)
                if done % 5000 == 0:
                    print(f"{done} directories, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)

        await asyncio.gather(*(work() for _ in range(DIRECTORIES_AT_ONCE)))
        seconds = time.perf_counter() - begun
        await meta.flush()
        with meta.read() as txn:
            totals = namespace.get_totals(txn)
        if totals.files != self._dirs * self._files:
            raise RuntimeError(f"{totals.files} files were listed of {self._dirs * self._files}")
        return {"entries": totals.files + totals.directories, "seconds": seconds, "cpu_seconds": time.process_time() - cpu}

    def list_directories(self) -> list[InodeId]:
        """Inodes of all directories, in the order of their names."""
        found: list[InodeId] = []
        cursor = b""
        while True:
            with self._master.meta.read() as txn:
                page = namespace.list_entries(txn, ROOT_INODE, cursor, 10_000)
            found += [entry.attr.inode for entry in page.entries]
            cursor = page.cursor
            if not cursor:
                return found

    def _choose(self, count: int, seed: int) -> list[tuple[InodeId, str]]:
        directories = self.list_directories()
        chooser = random.Random(seed)
        return [(chooser.choice(directories), f"sample-{chooser.randrange(self._files):09}.jpg") for _ in range(count)]

    async def lookups(self, count: int, seed: int = 1) -> dict[str, Any]:
        """Random names looked up in the engine."""
        asked = self._choose(count, seed)
        meta = self._master.meta
        begun, cpu, faults = time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        for parent, name in asked:
            with meta.read() as txn:
                if namespace.lookup(txn, parent, name) is None:
                    raise RuntimeError(f"{name} is missing in {parent}")
        return {
            "lookups": count,
            "seconds": time.perf_counter() - begun,
            "cpu_seconds": time.process_time() - cpu,
            "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
        }

    async def lookups_at_once(self, count: int, in_flight: int, seed: int = 1) -> dict[str, Any]:
        """Random names looked up as calls of clients have it done, so many at a time."""
        lister = self._master.lister
        asked = self._choose(count, seed)

        async def work() -> None:
            while asked:
                parent, name = asked.pop()
                if (await lister.lookup(parent, name)).entry is None:
                    raise RuntimeError(f"{name} is missing in {parent}")

        begun, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(work() for _ in range(in_flight)))
        return {"lookups": count, "seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}

    async def tree(self, path: str = "/") -> dict[str, Any]:
        """The whole tree as columns, in the engine, twice: the second time nothing has changed."""
        trees = TreeLister(self._master.meta, self._master.lister, self._master.surveyor, clock=SystemClock())
        found: dict[str, Any] = {}
        mark = 0
        for name in ("first", "again"):
            begun, cpu = time.perf_counter(), time.process_time()
            count = 0
            async for page in trees.list_tree(path, mark):
                count += len(page.columns)
                mark = page.mark
            found |= {f"{name}_entries": count, f"{name}_seconds": time.perf_counter() - begun}
            found[f"{name}_cpu_seconds"] = time.process_time() - cpu
        return found

    async def memory(self) -> dict[str, Any]:
        """What the process has resident, and of it what is its own."""
        import os

        return {"rss_bytes": get_rss_bytes(os.getpid()), "own_bytes": get_anonymous_bytes(os.getpid())}


async def serve(home: Path, dirs: int, files: int) -> None:
    """See the module."""
    begun = time.perf_counter()
    config = MasterConfig(bind="127.0.0.1:0", home=home, sync_interval_s=-1, http_bind="")
    master = await app.start(config, opener=make_opener(dirs, files))
    say({"started_s": time.perf_counter() - begun, "address": master.address, "token_file": master.token_file})
    try:
        if not master.mounts.list_mounts():
            await master.mounts.mount("", MountSpec("/", "s3://synthetic/data", {}))
        session = Session(master, dirs, files)
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            what = json.loads(line)
            say(await getattr(session, what.pop("do"))(**what))
    finally:
        await master.close()


def say(answer: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--dirs", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1000)
    arguments = parser.parse_args()
    import uvloop

    uvloop.run(serve(arguments.home, arguments.dirs, arguments.files))


if __name__ == "__main__":
    main()
