"""Reading a worker's cache files from another process on the same machine, without asking the worker.

Owns read-only views of the indexes and the opened cache files. Opened from descriptors of cache directories (a worker's door
hands them out). The file is always opened before its bits are read, so that bits that are set speak of bytes that stay.
A CacheReader belongs to the process that opened it (after fork the child opens its own); any of its threads may use it.
"""

from collections.abc import Sequence
from typing import Self

from alluxio_like import errors
from alluxio_like.types import FileRef, PageRange


class LocalFile:
    """One opened cache file. While it is open the worker neither punches nor overwrites what is present."""

    fd: int
    size: int
    generation: int

    def get_present_run(self, offset: int, length: int) -> int:
        """Bytes from `offset` on that are there (at most `length`, clipped at the end). Asks the index again when short."""
        raise errors.Internal("not yet")

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Bytes from `offset`, as many of `length` as are there (clipped at end of file; empty: none there), each page verified
        against its checksum the first time this object reads it.

        Raises Corrupt (read through the worker instead, which drops and fetches the page again), DiskError.
        """
        raise errors.Internal("not yet")

    def add_present(self, generation: int, pages: PageRange, checksums: Sequence[int]) -> bool:
        """Learn from a Fill reply what the index may not yet say. False: it speaks of another generation, open the file anew."""
        raise errors.Internal("not yet")

    @property
    def is_complete(self) -> bool:
        """Every page is known to be there."""
        raise errors.Internal("not yet")

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        raise errors.Internal("not yet")


class CacheReader:
    """Looks into the cache directories of one worker."""

    @classmethod
    def open(cls, directory_fds: Sequence[int]) -> Self:
        """Take over descriptors of cache directories. Raises FormatTooNew, DiskError (then ask the worker by RPC)."""
        raise errors.Internal("not yet")

    def lookup(self, ref: FileRef) -> LocalFile | None:
        """The cache file of a content if any of it is there; None: ask the worker."""
        raise errors.Internal("not yet")

    def open_filled(self, ref: FileRef, directory: int, generation: int) -> LocalFile | None:
        """The cache file that a Fill reply names (the directory by its place in the door's order), known to the index or not yet.

        None: it is gone by now, fill again. Learn its pages with `add_present`.
        """
        raise errors.Internal("not yet")

    def close(self) -> None:
        """Close indexes and directory descriptors; files that are open stay usable for what they know. Idempotent."""
        raise errors.Internal("not yet")
