"""What is open: files with their readers, directories with their place in the listing.

Owns handle numbers and per-handle state, not the bytes. Used from one event loop; where a step of a directory handle awaits, its
lock is held, so that two readdir calls on one handle follow each other.
"""

import asyncio
import bisect
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from alluxio_like.errors import Internal
from alluxio_like.fuse.accounts import Open
from alluxio_like.fuse.backend import Backend, Listing, Reader
from alluxio_like.fuse.modes import Way
from alluxio_like.types import Entry, InodeId, Kind, to_bytes

if TYPE_CHECKING:
    from alluxio_like.fuse.drafts import Draft

_T = TypeVar("_T")
_K = TypeVar("_K")

_KEPT_PAGES = 2
"""Pages of a listing kept in a handle: the current one and the one before, for programs that step back."""

_KEPT_FAILURES = 64


HANDLE_BITS = 40
"""Handle numbers have the daemon's generation above these bits, so that a daemon knows those of an earlier one on the same
mount."""


class HandleTable(Generic[_T]):
    """Numbers for what is open; a number is never used twice."""

    def __init__(self, generation: int = 0) -> None:
        self._items: dict[int, _T] = {}
        self._generation = generation
        self._next = (generation << HANDLE_BITS) + 1

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[_T]:
        return iter(list(self._items.values()))

    def add(self, item: _T) -> int:
        """The number under which the item is found from now on."""
        number = self._next
        self._next += 1
        self._items[number] = item
        return number

    def get(self, number: int) -> _T:
        """The item. Raises Internal for a number that is not open."""
        try:
            return self._items[number]
        except KeyError:
            raise Internal(f"handle {number} is not open") from None

    def lookup(self, number: int) -> _T | None:
        """The item, or None for a number that is not open."""
        return self._items.get(number)

    def is_foreign(self, number: int) -> bool:
        """Whether a number was given out by another daemon."""
        return number >> HANDLE_BITS != self._generation

    def adopt(self, number: int, item: _T) -> None:
        """Take over a number that another daemon gave out."""
        self._items[number] = item

    def pop(self, number: int) -> _T | None:
        """Forget a number; None when it was not open."""
        return self._items.pop(number, None)


class BoundedDict(Generic[_K, _T]):
    """A dictionary that forgets what was set longest ago once it holds `limit` items."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[_K, _T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: _K) -> bool:
        return key in self._items

    def lookup(self, key: _K) -> _T | None:
        return self._items.get(key)

    def set(self, key: _K, value: _T) -> None:
        items = self._items
        if key in items:
            items.move_to_end(key)
        items[key] = value
        if len(items) > self._limit:
            items.popitem(last=False)

    def list_keys(self) -> list[_K]:
        """All keys, those set longest ago first."""
        return list(self._items)

    def discard(self, key: _K) -> None:
        self._items.pop(key, None)

    def clear(self) -> None:
        self._items.clear()


@dataclass(slots=True)
class Failure:
    """A read that failed after a long wait: which bytes, how, and until when it is answered the same way at once."""

    start: int
    stop: int
    error: BaseException
    until_s: float


@dataclass(slots=True, eq=False)
class FileHandle:
    """An open file. It has a reader from its first read on; where the kernel reads by itself there may never be one."""

    entry: Entry
    reader: Reader | None = None
    node: int = 0
    way: Way | None = None
    """How the kernel session serves it; `node` is the node id that was opened."""
    read_bytes: int = 0
    waited_bytes: int = 0
    """Of `read_bytes`, given by reads that had to wait."""
    account: Open | None = None
    draft: "Draft | None" = None
    """What it reads instead of `reader`, since the file is being written on this machine; with `writes`, what it writes."""
    writes: bool = False
    runs: bool = False
    """It is the program of a process."""
    failures: list[Failure] = field(default_factory=list)

    def add_failure(self, failure: Failure) -> None:
        """Remember a failure; the oldest is forgotten where there are too many."""
        self.failures.append(failure)
        del self.failures[:-_KEPT_FAILURES]

    def lookup_failure(self, start: int, stop: int, now_s: float) -> Failure | None:
        """A failure, not yet outlived, of some of these bytes."""
        self.failures = [failure for failure in self.failures if now_s < failure.until_s]
        for failure in self.failures:
            if start < failure.stop and failure.start < stop:
                return failure
        return None


@dataclass(slots=True)
class _Start:
    """Where a page of a listing begins. `names`: hashes of those that it had when it was fetched first, `last` of them the last;
    None: it was not, or had none."""

    ordinal: int
    cursor: bytes | None
    names: "array[int] | None" = None
    last: Entry | None = None


class KeptPage(NamedTuple):
    """Entries of a listing and their numbers, and what was marked when they were asked for: how many recalls there had been, and
    when."""

    entries: Sequence[Entry]
    numbers: Sequence[int]
    valid_s: float
    mark: tuple[int, float]


@dataclass(slots=True)
class DirectoryHandle:
    """An open directory. Entries are numbered from 0 in the order of the listing, for as long as the handle is open."""

    entry: Entry
    parent: InodeId
    in_kernel: bool = True
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _starts: list[_Start] = field(default_factory=lambda: [_Start(0, None)])
    _pages: "OrderedDict[int, KeptPage]" = field(default_factory=OrderedDict)
    _total: int | None = None

    @property
    def last_page(self) -> KeptPage | None:
        """The page that was fetched last."""
        return next(reversed(self._pages.values()), None)

    def restart(self) -> None:
        """Begin a new listing, as rewinddir(3) does."""
        self._starts = [_Start(0, None)]
        self._pages.clear()
        self._total = None

    async def find_page(
        self, backend: Backend, ordinal: int, mark: Callable[[], tuple[int, float]]
    ) -> tuple[KeptPage, int] | None:
        """The page that holds entry `ordinal`, and the entry's place in it; None behind the end. Where that entry has gone, it is
        the next one.

        `mark` gives what to keep with a page of the moment at which it is asked for. The caller holds `lock`.
        """
        while self._total is None or ordinal < self._total:
            index = self._find_start(ordinal)
            page = await self._fetch(backend, index, mark)
            place = bisect.bisect_left(page.numbers, ordinal)
            if place < len(page.numbers):
                return page, place
            if index + 1 == len(self._starts):
                return None
            ordinal = max(ordinal, self._starts[index + 1].ordinal)
        return None

    def _find_start(self, ordinal: int) -> int:
        index = len(self._starts) - 1
        while self._starts[index].ordinal > ordinal:
            index -= 1
        return index

    async def _fetch(self, backend: Backend, index: int, mark: Callable[[], tuple[int, float]]) -> KeptPage:
        kept = self._pages.get(index)
        if kept is not None:
            return kept
        start, marked = self._starts[index], mark()
        listing = await backend.list_dir(self.entry.attr.inode, start.cursor)
        entries = listing.entries
        if start.names is None:
            start.names = array("q", [hash(entry.name) for entry in entries])
            start.last = entries[-1] if entries else None
            numbers: Sequence[int] = range(start.ordinal, start.ordinal + len(entries))
            stop = start.ordinal + len(entries)
            if listing.next_cursor is None:
                self._total = stop
            else:
                self._starts.append(_Start(stop, listing.next_cursor))
        else:
            entries, numbers = await self._find_again(backend, start, listing)
        page = self._pages[index] = KeptPage(entries, numbers, listing.valid_s, marked)
        while len(self._pages) > _KEPT_PAGES:
            self._pages.popitem(last=False)
        return page

    async def _find_again(self, backend: Backend, start: _Start, listing: Listing) -> tuple[list[Entry], list[int]]:
        """What is left of a page that was fetched before, under the numbers of then.

        Names that have come since are left out: they would take the numbers of others, which would be given twice, or never.
        """
        assert start.names is not None
        wanted = {name: number for number, name in enumerate(start.names, start.ordinal)}
        found: list[tuple[int, Entry]] = []
        while True:
            found += [(wanted.pop(hash(one.name)), one) for one in listing.entries if hash(one.name) in wanted]
            # What has come between may have pushed the rest of it behind the end of the page.
            is_over = start.last is None or any(_is_behind(entry, start.last) for entry in listing.entries)
            if not wanted or is_over or listing.next_cursor is None:
                break
            listing = await backend.list_dir(self.entry.attr.inode, listing.next_cursor)
        found.sort(key=lambda one: one[0])
        return [entry for _, entry in found], [number for number, _ in found]


def _is_behind(entry: Entry, other: Entry) -> bool:
    """Whether one comes after another in a listing, by their names or as stores order them (0003), whichever it is."""
    name, name_of_other = to_bytes(entry.name), to_bytes(other.name)
    return name > name_of_other and name + _get_slash(entry) > name_of_other + _get_slash(other)


def _get_slash(entry: Entry) -> bytes:
    return b"/" if entry.attr.kind is Kind.DIRECTORY else b""
