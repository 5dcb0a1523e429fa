"""A directory's entries in the order of the interface, from a NameNode's order.

Owns the reordering, and what is kept of a listing from page to page. The NameNode gives names by their bytes as Java compares
them: 0x80 to 0xff come before 0x00 to 0x7f, at each place; and a directory's name has no slash behind it. Nothing is read ahead
for that: an entry is held back until no later name can come before it, which for names in ASCII is at once, or, for a directory,
once the few names have passed that go on with a character below the slash. Plain data; a listing is used by one thread at a time.
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Protocol

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind, to_bytes
from alluxio_like.ufs.api import StoreEntry

YOUNG_MS = 2_000
"""A fingerprint is not trusted within so long after its mtime."""


class Status(Protocol):
    """What the library says of a file or directory; times in ms."""

    @property
    def path(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def isdir(self) -> bool: ...
    @property
    def modification_time(self) -> int: ...


def make_fingerprint(status: Status) -> Fingerprint:
    """What stands for a file's content."""
    return Fingerprint(f"{status.modification_time:x}", status.length)


def make_entry(name: str, status: Status, now_ms: int) -> StoreEntry:
    """An entry of a listing, or the answer to stat."""
    mtime_ns = status.modification_time * 1_000_000
    if status.isdir:
        return StoreEntry(name, Kind.DIRECTORY, None, mtime_ns)
    return StoreEntry(name, Kind.FILE, make_fingerprint(status), mtime_ns, trusted=now_ms - status.modification_time >= YOUNG_MS)


class Listing:
    """A listing under way: pages are taken one after the other.

    `statuses` are the directory's in the NameNode's order; `after` is the sort name behind which the first page begins;
    `is_ours` says of a name that it is a temporary of ours, which is not shown. `now_ms` is when the listing began: what is
    younger by then is not trusted, since the library asks for many entries at once, and gives them out later.
    """

    def __init__(self, path: str, statuses: Iterator[Status], after: bytes, is_ours: Callable[[str], bool], now_ms: int) -> None:
        self._path = path
        self._skip = len(path) + (path != "/")
        self._statuses = statuses
        self._after = self._last = after
        self._is_ours = is_ours
        self._now_ms = now_ms
        self._held: list[tuple[bytes, StoreEntry]] = []
        self._bound: bytes | None = b""
        """All names to come are behind it; None: there are none."""

    @property
    def last(self) -> bytes:
        """The sort name that the pages so far end with."""
        return self._last

    def take_page(self, max_entries: int) -> tuple[tuple[StoreEntry, ...], bool]:
        """The next entries, and whether there may be more. Blocks in `statuses`. Raises NotFound where the path is a file's."""
        entries: list[StoreEntry] = []
        while len(entries) < max_entries:
            if self._held and (self._bound is None or self._held[0][0] <= self._bound):
                sort_name, entry = heapq.heappop(self._held)
                if sort_name <= self._last:
                    raise errors.StoreProtocol("the NameNode's listing is in no known order", subject=self._path)
                self._last = sort_name
                entries.append(entry)
            elif self._bound is None:
                return tuple(entries), False
            else:
                self._read_one()
        return tuple(entries), True

    def _read_one(self) -> None:
        status = next(self._statuses, None)
        if status is None:
            self._bound = None
            return
        if status.path == self._path and not status.isdir:  # a file is listed as itself
            raise errors.NotFound("not a directory", subject=self._path)
        name = status.path[self._skip :]
        self._bound = get_bound(to_bytes(name))
        if not self._is_ours(name):
            entry = make_entry(name, status, self._now_ms)
            sort_name = to_bytes(entry.sort_name)
            if sort_name > self._after:
                heapq.heappush(self._held, (sort_name, entry))


def get_bound(name: bytes) -> bytes:
    """What all names that the NameNode gives after this one come behind, by the order of the interface: the name up to its first
    byte outside of ASCII, since at that place an ASCII one may still come."""
    for place, byte in enumerate(name):
        if byte >= 0x80:
            return name[:place]
    return name
