"""What leaves a cache when it is full: guests first, then homes that nobody comes back to; homes in use are kept, not cycled.

Deterministic: time and traffic are given, files are numbers. Knows files by id with their bytes, role and last use; knows nothing of
disks. Not thread-safe: one owner calls it (worker/evictor.py, under its lock).
"""

from dataclasses import dataclass

from alluxio_like import errors
from alluxio_like.types import FileId, JobId


@dataclass(frozen=True, slots=True)
class Victim:
    """A file to remove, with the bytes that it frees."""

    file_id: FileId
    bytes: int


class EvictionPolicy:
    """Scan-resistant choice of victims. `capacity_bytes` is that of the worker."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes

    def record_stored(self, file_id: FileId, bytes_: int, *, guest: bool, pinned: bool, now_s: float, job: JobId | None) -> None:
        """A file holds `bytes_` in the cache now (created, grown or shrunk); `job`: a load brought or confirmed it."""
        raise errors.Internal("not yet")

    def record_removed(self, file_id: FileId) -> None:
        """A file has left the cache."""
        raise errors.Internal("not yet")

    def record_read(self, file_id: FileId, bytes_: int, now_s: float) -> None:
        """A reader was given `bytes_` of a file, be it from the cache or read through."""
        raise errors.Internal("not yet")

    def choose_victims(self, needed_bytes: int, now_s: float, *, job: JobId | None = None) -> list[Victim]:
        """Files that may go, at least `needed_bytes` of them if there are so many, best first.

        For a reader (`job` None): guests, then homes gone stale. For a load: then also homes by last use, but nothing that the same
        job brought in.
        """
        raise errors.Internal("not yet")
