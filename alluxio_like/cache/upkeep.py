"""Slow work on whole cache directories: removing what a kill left behind, and bringing everything to the disk.

Owns nothing; blocks on disks, so it is for threads.
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from alluxio_like.cache import format as fmt
from alluxio_like.cache import syscalls
from alluxio_like.cache.index import Index
from alluxio_like.cache.layout import CacheDirectory


def sweep_directory(directory: CacheDirectory, index: Index) -> int:
    """Remove cache files that the index does not know; returns how many. Raises OSError."""
    count = 0
    for number in range(256):
        for entry in os.scandir(f"/proc/self/fd/{directory.fd}/files/{number:02x}"):
            parsed = fmt.parse_file_name(entry.name)
            if parsed is None:
                continue
            file_id, generation = parsed
            record = index.lookup_file(file_id)
            if record is not None and record.generation == generation:
                continue
            with contextlib.suppress(FileNotFoundError):
                # A file made since we opened may not be in the index yet.
                if entry.stat(follow_symlinks=False).st_ctime_ns < directory.opened_ns:
                    Path(entry.path).unlink()
                    count += 1
    return count


def sync_disks(directories: Sequence[CacheDirectory], timeout_s: float) -> set[int]:
    """Numbers of the directories whose file systems were synced within `timeout_s`."""
    synced: set[int] = set()

    def sync(directory: CacheDirectory) -> None:
        with contextlib.suppress(OSError):
            fd = os.dup(directory.fd)
            try:
                syscalls.sync_file_system(fd)
                synced.add(directory.number)
            finally:
                os.close(fd)

    threads = [threading.Thread(target=sync, args=(directory,), daemon=True) for directory in directories if directory.ok]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
    return set(synced)
