"""Slow work on whole cache directories: removing what a kill left behind, and bringing everything to the disk.

Owns nothing; blocks on disks, so it is for threads.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from alluxio_like.cache import format as fmt
from alluxio_like.cache import syscalls
from alluxio_like.cache.index import Index
from alluxio_like.cache.layout import CacheDirectory
from alluxio_like.types import FileId


def sweep_directory(directory: CacheDirectory, index: Index, is_in_use: Callable[[FileId, int], bool]) -> int:
    """Remove cache files that the index does not know; returns how many. Raises OSError.

    A file made since the store was opened may not be in the index yet: `is_in_use` (file id, generation) says so, and is asked
    first, since a file that is no longer in use has been committed by then. (Its times would not do: the kernel's clock for
    them runs behind.)
    """
    count = 0
    for number in range(256):
        for entry in os.scandir(f"/proc/self/fd/{directory.fd}/files/{number:02x}"):
            parsed = fmt.parse_file_name(entry.name)
            if parsed is None or is_in_use(*parsed):
                continue
            file_id, generation = parsed
            record = index.lookup_file(file_id)
            if record is not None and record.generation == generation:
                continue
            with contextlib.suppress(FileNotFoundError):
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
