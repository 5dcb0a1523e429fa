"""The few operations of a POSIX file system that a store is made of, and what they find.

Owns the words between the logic of such stores (`posix_tree.py`, `posix_writer.py`) and the systems below: the local one
(`local_ops.py`) and libcephfs (`cephfs_library.py`). All of them block, raise OSError with an errno, and may be called from any
thread, but one handle from one thread at a time. No operation follows a symbolic link, except `follow`.
"""

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from alluxio_like.types import Space

D = TypeVar("D")
F = TypeVar("F")


class FoundKind(Enum):
    """What lies under a name."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    SPECIAL = "special"


@dataclass(frozen=True, slots=True)
class Found:
    """What a stat tells. `token` stands for the content, together with the size: `Fingerprint.token`."""

    kind: FoundKind
    token: str
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Scanned:
    """A name in a directory; `found` where the system gives it with the name at no further cost."""

    name: bytes
    is_directory: bool
    found: Found | None = None


class PosixOps(Protocol[D, F]):
    """`D` and `F` are handles of a directory and of an open file; names are single components, never "", "." or ".."."""

    @property
    def follows_links(self) -> bool:
        """Whether `follow` may be asked."""
        ...

    @property
    def hidden_names(self) -> frozenset[bytes]:
        """Names that mean something else than an entry, in every directory (snapshots): they are taken as absent."""
        ...

    # -- directories

    def open_root(self) -> D:
        """Raises FileNotFoundError or NotADirectoryError where there is no such directory (any more)."""
        ...

    def open_directory(self, parent: D, name: bytes) -> D:
        """Raises NotADirectoryError also for a symbolic link."""
        ...

    def close_directory(self, directory: D) -> None: ...

    def scan(self, directory: D) -> Generator[Scanned, None, None]:
        """All entries, in any order; lives on when `directory` is closed."""
        ...

    def stat(self, directory: D, name: bytes) -> Found: ...

    def measure(self, directory: D) -> Space:
        """What the file system of a directory can hold, as statvfs says it there."""
        ...

    def make_directory(self, directory: D, name: bytes) -> None: ...

    def remove_directory(self, directory: D, name: bytes) -> None: ...

    def remove_file(self, directory: D, name: bytes) -> None: ...

    def rename(self, source: D, source_name: bytes, target: D, target_name: bytes, *, replace: bool) -> None:
        """Without `replace` FileExistsError if there is anything at the target; atomic where the system can do that."""
        ...

    def sync_directory(self, directory: D) -> None:
        """Return once every change of names in it is durable."""
        ...

    # -- files

    def open_file(self, directory: D, name: bytes) -> F:
        """Open a regular file for reading. What is none is an OSError (ELOOP: a link, ENXIO: something special, EISDIR)."""
        ...

    def follow(self, key: bytes) -> F:
        """Open for reading the regular file below the root that the symbolic link at `key`, a path from the root, leads to. Never
        leaves the root; OSError for everything else."""
        ...

    def create_file(self, directory: D, name: bytes) -> F:
        """A new file, open for reading and writing; FileExistsError if there is anything."""
        ...

    def open_for_writing(self, directory: D, name: bytes) -> F:
        """A file that is there, open for reading and writing."""
        ...

    def close_file(self, file: F) -> None: ...

    def stat_file(self, file: F) -> Found: ...

    def read(self, file: F, offset: int, length: int) -> bytes:
        """At most `length` bytes; none at the end."""
        ...

    def read_into(self, file: F, offset: int, buffer: memoryview) -> int:
        """The same into a writable buffer; the number of bytes."""
        ...

    def copy_in(self, file: F, offset: int, fd: int, source_offset: int, length: int) -> None:
        """Write bytes of the local descriptor `fd`, all of them. Raises EOFError when it has fewer."""
        ...

    def sync_file(self, file: F) -> None: ...

    def truncate(self, file: F, size: int) -> None: ...

    def adopt(self, file: F, found: Found) -> None:
        """Give the file another's permission bits and, if allowed, owner."""
        ...

    def set_mtime_ns(self, file: F, mtime_ns: int) -> None: ...

    def set_attribute(self, file: F, name: str, value: bytes) -> bool:
        """Set an extended attribute of the namespace "user"; False where the system has none."""
        ...

    def get_attributes(self, file: F) -> dict[str, bytes]:
        """All extended attributes of the namespace "user", by name without it; empty where the system has none."""
        ...
