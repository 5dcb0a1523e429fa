"""A master and workers with real cache directories and doors, in a process of their own, for tests of local reads.

Usage: local_worker.py DIRECTORY FILES SIZE WORKERS. Says the master's address; then a line of JSON for each command on
standard input: ["counts"], ["flip", inode, offset], ["refuse", bool] (answer fills with read_through), ["fail", code] (all
calls; "" ends it), ["flush"], ["evict", inode], ["free", inode], ["held"], ["calls"],
["replace", name, seed].
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from alluxio_like import errors
from alluxio_like.cache.format import make_file_path
from alluxio_like.cache.store import CacheDirSpec, CacheStore, Role
from alluxio_like.clock import SystemClock
from alluxio_like.rpc.messages import Filled, FilledPages
from alluxio_like.types import PAGE_BYTES, Cluster, FileRef, PageRange
from alluxio_like.worker.door import Door, Guests
from tests.fakes_rpc import FakeMaster, FakeWorker, make_content, make_entry, make_worker, serve

GUEST = 65534
"""A user that may have single files."""


class LocalWorker(FakeWorker):
    """Fills real cache files from its dictionary."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.read_through = False
        self.fill_into = self.fill_pages
        home.mkdir(parents=True)
        spec = CacheDirSpec(home / "cache", quota_bytes=1 << 30, allow_root_disk=True)
        self.store = CacheStore.open([spec], cluster_id="c", clock=SystemClock(), boot_id="boot")
        self.address = ""
        self.door = Door(
            home,
            self.store.worker_id,
            lambda: self.address,
            lambda: self.store.directory_fds,
            open_whole=lambda file_id, fingerprint: asyncio.to_thread(self.store.open_whole, file_id, fingerprint),
            guests=Guests(frozenset({GUEST})),
        )

    def fill_pages(self, ref: FileRef, pages: PageRange) -> Filled:
        cached = self.store.create(ref, Role.HOME)
        content = self.contents[ref.file_id]
        for missing in cached.missing_pages(pages):
            cached.write_pages(missing.first, memoryview(content)[missing.first * PAGE_BYTES : missing.stop * PAGE_BYTES])
        runs = cached.get_present_runs(pages)
        present = tuple(FilledPages(run.pages, run.checksums) for run in runs)
        return Filled(present, cached.directory, cached.generation)

    async def report_bad(self, ref: FileRef, pages: Sequence[int]) -> int:
        self.bad_pages += pages
        cached = self.store.lookup(ref.file_id)
        bad = [] if cached is None else [one for page in pages for one in cached.verify(PageRange(page, page + 1))]
        self.store.flush()
        return len(bad)

    def flip(self, ref: FileRef, offset: int) -> None:
        """Change one byte of the cache file."""
        cached = self.store.lookup(ref.file_id)
        assert cached is not None
        path = make_file_path(ref.file_id, cached.generation)
        fd = os.open(path, os.O_RDWR, dir_fd=self.store.directory_fds[cached.directory])
        byte = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([byte[0] ^ 1]), offset)
        os.close(fd)


def obey(words: list[Any], master: FakeMaster, workers: list[LocalWorker]) -> Any:
    command, *args = words
    if command == "counts":
        return [
            {
                "workers": 1,
                "reads": len(one.reads),
                "fills": len(one.fills),
                "touched": sum(touched.read_bytes for touched in one.touched),
                "bad_pages": len(one.bad_pages),
                "leases": len(one.door.list_leases()),
            }
            for one in workers
        ]
    if command == "flip":
        entry = next(entry for entry in master.entries.values() if entry.attr.inode == args[0])
        for one in workers:
            if entry.ref is not None and one.store.lookup(entry.ref.file_id) is not None:
                one.flip(entry.ref, args[1])
    elif command == "refuse":
        for one in workers:
            one.read_through = args[0]
    elif command == "fail":
        for one in workers:
            one.always = errors.make_error(args[0], "as ordered") if args[0] else None
    elif command in {"evict", "free"}:
        # How many files that went, and how many must stay because somebody has them.
        entry = next(entry for entry in master.entries.values() if entry.attr.inode == args[0])
        assert entry.ref is not None
        removed = [one.store.remove([entry.ref.file_id], force=command == "free") for one in workers]
        return [sum(one.files for one in removed), sum(len(one.in_use) for one in removed)]
    elif command == "calls":
        return len(master.calls)
    elif command == "replace":
        # Another content under the same name, as after a change in the store.
        name, seed = args
        old = master.entries[name]
        assert old.ref is not None
        master.entries[name] = new = make_entry(name, old.attr.inode + 1000, old.ref.size)
        assert new.ref is not None
        for one in workers:
            one.contents[new.ref.file_id] = make_content(old.ref.size, seed)
    elif command == "held":
        for one in workers:
            one.store.reap_held()
        return sum(usage.held_files for one in workers for usage in one.store.get_usage())
    elif command == "flush":
        for one in workers:
            one.store.flush()
    return None


async def main(directory: Path, files: int, size: int, count: int) -> None:
    master = FakeMaster()
    workers = [LocalWorker(directory / f"w{number}") for number in range(count)]
    for number in range(files):
        entry = make_entry(f"f{number}", 10 + number, size)
        assert entry.ref is not None
        master.entries[entry.name] = entry
        for one in workers:
            one.contents[entry.ref.file_id] = make_content(size, number)
    async with AsyncExitStack() as stack:
        shown = []
        for one in workers:
            server = await stack.enter_async_context(serve(worker=one))
            one.address = server.address
            await one.door.start()
            stack.push_async_callback(one.door.stop)
            stack.callback(one.store.close)
            shown.append(replace(make_worker(server, one.store.worker_id), door_path=str(one.door.path)))
        master.cluster = Cluster("c", 1, tuple(shown), whole_file_limit_bytes=16 << 20)
        master_server = await stack.enter_async_context(serve(master=master))
        print(master_server.address, flush=True)  # noqa: T201
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(obey(json.loads(line), master, workers)), flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *(int(text) for text in sys.argv[2:5])))
