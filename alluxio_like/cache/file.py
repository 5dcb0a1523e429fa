"""One cache file on the worker's side: which of its pages are there, and their bytes.

Owns the presence and the checksums of one content while the worker uses it. Does not own the index (the store commits what
changes here, in groups) nor space (the store accounts for it). Every method may be called from any thread and may block on the
disk, except those marked "quick", which only look at memory once the file is at hand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from alluxio_like import errors
from alluxio_like.types import FileId, Fingerprint, PageRange


class Role(IntEnum):
    """Why a worker holds a file; the numbers are those of the disk."""

    HOME = 1
    GUEST = 2


@dataclass(frozen=True, slots=True)
class PresentRun:
    """Pages of one generation of a file that are there, with their checksums: what a Fill reply tells a local reader."""

    generation: int
    pages: PageRange
    checksums: tuple[int, ...]


class CachedFile:
    """A cached content. There is one object per file id at a time; it stays valid while somebody refers to it.

    After the file was removed (evicted, replaced, freed) every call that needs bytes raises NotFound: look it up or create it
    again.
    """

    file_id: FileId
    fingerprint: Fingerprint
    generation: int
    directory: int
    """Place of its directory in the configured order, which is the door's order too."""

    @property
    def size(self) -> int:
        """Bytes of the whole content."""
        raise errors.Internal("not yet")

    @property
    def role(self) -> Role:
        raise errors.Internal("not yet")

    @property
    def pinned(self) -> bool:
        raise errors.Internal("not yet")

    @property
    def removed(self) -> bool:
        """Quick. The file was dropped from the cache; this object is of no more use."""
        raise errors.Internal("not yet")

    @property
    def is_complete(self) -> bool:
        """Quick. Every page is there (an empty file always is)."""
        raise errors.Internal("not yet")

    @property
    def present_bytes(self) -> int:
        """Quick. Bytes of the pages that are there."""
        raise errors.Internal("not yet")

    def get_present(self, block: int) -> int:
        """Quick. Bits of the pages of a block that are there (bit n: page n of the block)."""
        raise errors.Internal("not yet")

    def missing_pages(self, pages: PageRange) -> list[PageRange]:
        """Quick. The parts of `pages` that are not there, in order."""
        raise errors.Internal("not yet")

    def get_present_runs(self, pages: PageRange) -> list[PresentRun]:
        """Quick. The parts of `pages` that are there, with checksums, in order."""
        raise errors.Internal("not yet")

    def has_suspects(self, pages: PageRange) -> bool:
        """Quick. Some of `pages` were there before the machine crashed and are not verified since (they count as missing)."""
        raise errors.Internal("not yet")

    def verify_suspects(self, pages: PageRange) -> None:
        """Verify the blocks of `pages` that a crash of the machine made suspect; good pages are present afterwards."""
        raise errors.Internal("not yet")

    def write_pages(self, first_page: int, data: memoryview | bytes) -> None:
        """Put whole pages (the file's last one may be short) where they belong, checksum them, then mark them present.

        Pages that are there already are left alone. Threads may write disjoint ranges at once. Raises NoSpace (quota or disk
        full: nothing is marked), DiskError (the directory is failed from now on), NotFound (removed), InvalidArgument.
        """
        raise errors.Internal("not yet")

    def read(self, offset: int, length: int, *, verify: bool = True) -> bytes:
        """Bytes [offset, offset + length), clipped at the end of the file.

        Raises NoData when one of the pages is not there, Corrupt when one does not match its checksum (the bad pages are dropped
        first, so that they count as missing), DiskError, NotFound (removed).
        """
        raise errors.Internal("not yet")

    def verify(self, pages: PageRange | None = None) -> list[int]:
        """Check every page that is there (of `pages`, or of the file); drop the bad ones, return their numbers."""
        raise errors.Internal("not yet")

    @contextmanager
    def open_fd(self) -> Iterator[int]:
        """A read-write descriptor of the file, valid inside the with statement; the file is not evicted meanwhile."""
        yield -1
