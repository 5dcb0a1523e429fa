"""What the client remembers of names and attributes, and for how long.

Owns the answers of the master, each for the time the master gave it, counted from before it was asked. Those that a lease covers
(coherence.py) are usable while it lives and until they are recalled; the others until their time has passed. After that they
are kept for the case that the master is away. An answer that was under way while its directory was recalled is not kept, and
not to be used longer than for the call that waits for it. Bounded: entries.py, and here the oldest names and directories go
first.

A name is found in the pages of its directory's listing, which are in the order of names, or among the single names. Rule of
concurrency: one event loop; no method awaits.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

from alluxio_like.client.entries import MAX_ENTRIES, EntryStore, Record
from alluxio_like.rpc.messages import DirPage, LookupResult
from alluxio_like.rpc.messages_writing import Told
from alluxio_like.types import EVERYWHERE, ROOT_INODE, SNAPSHOT_FOLDER, Entry, InodeId, Kind, Recall, to_bytes

MAX_NAMES = 50_000
"""Names that were asked for one by one, and paths. A guess: about 12 MB when full."""
MAX_DIRECTORIES = 100_000
"""Directories of which something is remembered. A guess: 0.3 to 0.8 KB each, so up to 80 MB."""
OLD_VALID_S = 1.0
"""How long an old answer is used before the master is tried again."""
UNCOVERED_VALID_S = 1.0
"""How long an answer is used that a lease covers of which we do not know whether it still lives."""
_MAX_CHANGED = 10_000
"""Names of one listing that changed since; with more the listing is forgotten."""
_TICKS_A_S = 10

_NOTHING = InodeId(0)
_SNAPSHOT_FOLDER = to_bytes(SNAPSHOT_FOLDER)
_UNCOVERED = 1 << 31
"""Of a stamp: no lease covers the answer. The rest is the stamp of its directory; 0 is nobody's."""


class Begun(NamedTuple):
    """The moment at which something was asked."""

    sequence: int
    time_s: float
    session: int


class _Link(NamedTuple):
    """What a name led to; _NOTHING: to nothing."""

    inode: InodeId
    stamp: int
    expires: int


class _Page:
    """Part of a listing: `first` is where it begins in the order of names, None where it is not in that order.

    Names are with the inodes, of which each has the name by which it was told last. `marks` are checksums of those by which it
    was listed, since another one, of a renamed file or one of several names, says nothing of this listing."""

    __slots__ = ("cursor", "dir_key", "expires", "first", "inodes", "marks", "mount_id", "next_cursor", "stamp")

    def __init__(
        self, page: DirPage, cursor: bytes, inodes: Sequence[InodeId], first: bytes | None, stamp: int, expires: int
    ) -> None:
        self.marks = array("I", [crc32(_get_listed_name(entry)) for entry in page.entries])
        self.cursor, self.next_cursor = cursor, page.next_cursor
        self.mount_id, self.dir_key = page.mount_id, page.dir_key
        self.inodes, self.first = inodes, first
        self.stamp, self.expires = stamp, expires


_NO_PAGES: list[_Page] = []
_NO_NAMES: list[bytes] = []
_NO_CHANGES: set[bytes] = set()


class _Directory:
    """`stamp`: of what is covered now; a number drawn anew when all of it is recalled. `changed`: when it was last recalled
    from. `has_lost`: names were answered that are not remembered any more."""

    __slots__ = ("changed", "changed_names", "firsts", "has_lost", "pages", "session", "stamp")

    def __init__(self) -> None:
        self.session = -1
        self.stamp = 0
        self.changed = 0
        self.has_lost = False
        self.forget_listing()

    def forget_listing(self) -> None:
        # Shared while they are empty: there may be millions of directories.
        self.pages, self.firsts, self.changed_names = _NO_PAGES, _NO_NAMES, _NO_CHANGES

    def add_page(self, page: _Page) -> None:
        # Of a page that is not in order nothing can be found: whatever would be in it is asked for.
        first = page.first if page.first is not None else self.firsts[-1] if self.firsts else b""
        if not self.pages:
            self.pages, self.firsts = [], []
        self.pages.append(page)
        self.firsts.append(first)

    def note_changed(self, name: bytes) -> None:
        """A name of the listing that was kept means something else now."""
        if not self.changed_names:
            self.changed_names = set()
        self.changed_names.add(name)
        if len(self.changed_names) > _MAX_CHANGED:
            self.forget_listing()


class MetadataCache:
    """Answers by (parent, name), by path, by inode and by page. `now` is a clock in seconds that never goes back; `is_live`
    says whether the lease lives."""

    def __init__(
        self,
        now: Callable[[], float],
        is_live: Callable[[], bool] = lambda: False,
        *,
        max_names: int = MAX_NAMES,
        max_entries: int = MAX_ENTRIES,
        max_directories: int = MAX_DIRECTORIES,
    ) -> None:
        self._now = now
        self._is_live = is_live
        self._base_s = now()
        self._max_names = max_names
        self._entries = EntryStore(max_entries)
        self._max_directories = max_directories
        self._directories: dict[InodeId, _Directory] = {}
        self._forgotten = 0
        """When one of the directories that are not remembered any more was last recalled from, at the latest."""
        self._names: dict[tuple[InodeId, bytes], _Link] = {}
        self._paths: dict[str, tuple[LookupResult, float]] = {}
        self._sequence = 1
        self._cleared = 0
        self._session = 0
        self._last_stamp = 0

    def __len__(self) -> int:
        return len(self._names) + len(self._paths)

    def count_entries(self) -> int:
        """Inodes that are remembered."""
        return len(self._entries)

    def count_directories(self) -> int:
        """Directories of which something is remembered."""
        return len(self._directories)

    def begin(self) -> Begun:
        """To be called before asking; what keeps the answer needs it."""
        return Begun(self._sequence, self._now(), self._session)

    # Looking up

    def lookup(self, parent: InodeId, name: str) -> LookupResult | None:
        """A remembered answer with what is left of its time; None: ask."""
        directory = self._directories.get(parent)
        link = self._find_link(parent, directory, to_bytes(name))
        if link is None:
            return None
        left_s = self._get_left_s(directory, link.stamp, link.expires)
        if left_s <= 0:
            return None
        if link.inode == _NOTHING:
            if (parent, to_bytes(name)) not in self._names:
                # By a listing: whoever is told may keep it, so it has to be among the names that can be taken back.
                self._put_name((parent, to_bytes(name)), link)
            return LookupResult(None, left_s)
        record = self._entries.lookup(link.inode)
        if record is None or record.parent != parent or record.entry.name != name:
            return None
        left_s = min(left_s, self._get_left_s(directory, record.stamp, record.expires))
        return LookupResult(record.entry, left_s) if left_s > 0 else None

    def lookup_old(self, parent: InodeId, name: str) -> LookupResult | None:
        """An answer whose time may have passed, for when the master cannot be asked; to be used for OLD_VALID_S.

        While the lease lives, and so the master does, nothing is that was recalled."""
        link = self._find_link(parent, self._directories.get(parent), to_bytes(name), old=True)
        if link is None or self._is_recalled(parent, link.stamp):
            return None
        if link.inode == _NOTHING:
            return LookupResult(None, OLD_VALID_S)
        record = self._entries.lookup(link.inode)
        if record is None or self._is_recalled(parent, record.stamp):
            return None
        return LookupResult(record.entry, OLD_VALID_S)

    def get(self, inode: InodeId) -> LookupResult | None:
        """What is known of an inode, with what is left of its time; None: ask."""
        state = self._entries.lookup_state(inode)
        if state is None or (state[1] <= self._get_tick()):
            return None
        record = self._entries.lookup(inode)
        if record is None:
            return None
        left_s = self._get_left_s(self._directories.get(record.parent), record.stamp, record.expires)
        return LookupResult(record.entry, left_s) if left_s > 0 else None

    def get_old(self, inode: InodeId) -> Record | None:
        """What was last known of an inode, however long ago."""
        return self._entries.lookup(inode)

    def lookup_path(self, path: str) -> LookupResult | None:
        """As `lookup`, for an absolute path."""
        known = self._paths.get(path)
        if known is not None:
            left_s = known[1] - self._now()
            if left_s > 0:
                return LookupResult(known[0].entry, left_s)
        return self._walk(path)

    def lookup_path_old(self, path: str) -> LookupResult | None:
        """As `lookup_old`, for an absolute path."""
        known = self._paths.get(path)
        return self._walk(path, old=True) if known is None else LookupResult(known[0].entry, OLD_VALID_S)

    def _walk(self, path: str, *, old: bool = False) -> LookupResult | None:
        parts = [part for part in path.split("/") if part]
        if not parts:
            record = self.get_old(ROOT_INODE) if old else None
            return self.get(ROOT_INODE) if record is None else LookupResult(record.entry, OLD_VALID_S)
        at, left_s = ROOT_INODE, OLD_VALID_S if old else float("inf")
        for part in parts[:-1]:
            directory = self._directories.get(at)
            link = self._find_link(at, directory, to_bytes(part), old=old)
            if link is None or (old and self._is_recalled(at, link.stamp)):
                return None
            if not old:
                left_s = min(left_s, self._get_left_s(directory, link.stamp, link.expires))
            if left_s <= 0:
                return None
            if link.inode == _NOTHING:
                return LookupResult(None, left_s)
            at = link.inode
        result = self.lookup_old(at, parts[-1]) if old else self.lookup(at, parts[-1])
        return None if result is None else LookupResult(result.entry, min(left_s, result.valid_s))

    def list_page(self, parent: InodeId, cursor: bytes) -> DirPage | None:
        """A page of a listing as it was kept, if all of it is usable still; None: ask."""
        directory = self._directories.get(parent)
        if directory is None or directory.changed_names:
            return None
        page = next((one for one in directory.pages if one.cursor == cursor), None)
        if page is None:
            return None
        left_s = self._get_left_s(directory, page.stamp, page.expires)
        entries: list[Entry] = []
        for place, inode in enumerate(page.inodes) if left_s > 0 else ():
            record = self._entries.lookup(inode)
            if record is None or record.parent != parent or self._get_name(page, place) is None:
                return None
            left_s = min(left_s, self._get_left_s(directory, record.stamp, record.expires))
            entries.append(record.entry)
        if left_s <= 0:
            return None
        return DirPage(tuple(entries), page.next_cursor, left_s, page.mount_id, page.dir_key)

    def list_names(self, parent: InodeId, limit: int) -> list[bytes] | None:
        """All names of a directory that were ever answered, there or not; None: more than `limit`, or not all are remembered."""
        directory = self._directories.get(parent)
        if directory is not None and directory.has_lost:
            return None
        pages = () if directory is None else directory.pages
        if sum(len(page.inodes) for page in pages) > limit:
            return None
        names = {name for place, name in self._names if place == parent}
        for page in pages:
            for place in range(len(page.inodes)):
                name = self._get_name(page, place)
                if name is None:
                    return None
                names.add(name.removesuffix(b"/"))
        return list(names) if len(names) <= limit else None

    # Keeping

    def keep(self, parent: InodeId, name: str, result: LookupResult, begun: Begun) -> LookupResult:
        """Remember an answer about a name; returns it with what is left of its time."""
        fresh = self._keep_entry(result, parent, begun)
        if fresh.valid_s > 0 or self._names.get((parent, to_bytes(name))) is None:
            inode = _NOTHING if result.entry is None else result.entry.attr.inode
            stamp, expires = self._get_state(result, parent, fresh.valid_s, begun)
            self._put_name((parent, to_bytes(name)), _Link(inode, stamp, expires))
        return fresh

    def keep_inode(self, result: LookupResult, begun: Begun) -> LookupResult:
        """Remember an answer about an inode."""
        return self._keep_entry(result, result.directory, begun)

    def keep_path(self, path: str, result: LookupResult, begun: Begun) -> LookupResult:
        """Remember an answer about an absolute path."""
        names = [part for part in path.split("/") if part]
        if not (result.leased and 0 < len(result.chain) <= len(names)):
            fresh = self._keep_entry(result, EVERYWHERE, begun)
            if fresh.valid_s > 0 or path not in self._paths:
                self._paths.pop(path, None)
                self._paths[path] = (fresh, self._now() + fresh.valid_s)
                if len(self._paths) > self._max_names:
                    del self._paths[next(iter(self._paths))]
            return fresh
        for place, (directory, below) in enumerate(pairwise(result.chain)):
            left_s = self._get_fresh_s(result, directory, begun)
            stamp, expires = self._get_state(result, directory, left_s, begun)
            if left_s > 0:
                self._put_name((directory, to_bytes(names[place])), _Link(below, stamp, expires))
        return self.keep(result.chain[-1], names[len(result.chain) - 1], result, begun)

    def keep_page(self, parent: InodeId, cursor: bytes, page: DirPage, begun: Begun) -> DirPage:
        """Remember what a listing said of each entry, and the listing; returns it with what is left of its time."""
        covered = LookupResult(None, page.valid_s, page.leased, parent)
        left_s = self._get_fresh_s(covered, parent, begun)
        page = replace(page, valid_s=left_s)
        if left_s <= 0:
            return page
        stamp, expires = self._get_state(covered, parent, left_s, begun)
        uncovered = set(page.unleased)
        soon = self._get_tick() + int(UNCOVERED_VALID_S * _TICKS_A_S)
        for entry in page.entries:
            if uncovered and entry.attr.inode in uncovered:
                self._entries.put(entry, parent, stamp | _UNCOVERED, min(expires, soon))
            else:
                self._entries.put(entry, parent, stamp, expires)
        directory = self._get_directory(parent)
        if not cursor:
            directory.forget_listing()
        if not cursor or (directory.pages and directory.pages[-1].next_cursor == cursor):
            self._add_page(directory, page, cursor, stamp, expires)
        return page

    def _add_page(self, directory: _Directory, page: DirPage, cursor: bytes, stamp: int, expires: int) -> None:
        if not page.entries and directory.pages:
            # It says where the page before it ends, and has no place of its own in the order of names.
            last = directory.pages[-1]
            last.next_cursor, last.expires = page.next_cursor, min(last.expires, expires)
            return
        inodes: Sequence[InodeId] = [entry.attr.inode for entry in page.entries]
        if inodes and list(range(inodes[0], inodes[0] + len(inodes))) == inodes:
            inodes = range(inodes[0], inodes[0] + len(inodes))  # type: ignore[assignment]
        sort_names = [_get_sort_name(entry) for entry in page.entries]
        in_order = None not in sort_names and all(one < other for one, other in pairwise(sort_names))  # type: ignore[operator]
        first = (sort_names[0] if sort_names else b"") if in_order else None
        directory.add_page(_Page(page, cursor, inodes, first, stamp, expires))

    def keep_change(self, recalls: Iterable[Recall], told: Iterable[Told], begun: Begun) -> None:
        """A change of our own: forget what is no longer so, and remember how it is now. Where something else was recalled since
        it was asked for, nobody knows which of the two came first."""
        newest = [one for one in told if self._get_told_s(one, begun) > 0]
        self.recall(recalls)
        now = Begun(self._sequence, begun.time_s, begun.session)
        for one in newest:
            if one.name:
                self.keep(one.parent, one.name, one.result, now)
            else:
                self.keep_inode(one.result, now)
            if one.is_empty and one.result.entry is not None:
                empty = DirPage((), b"", one.result.valid_s, leased=True)
                self.keep_page(one.result.entry.attr.inode, b"", empty, now)

    def _get_told_s(self, told: Told, begun: Begun) -> float:
        return min(self._get_fresh_s(told.result, one, begun) for one in (told.result.directory, told.parent))

    def _keep_entry(self, result: LookupResult, parent: InodeId, begun: Begun) -> LookupResult:
        left_s = self._get_fresh_s(result, parent, begun)
        if result.entry is not None and result.entry.attr.kind is Kind.DIRECTORY and left_s > 0:
            # What changes in a directory changes its attributes.
            left_s = min(left_s, self._get_fresh_s(result, result.entry.attr.inode, begun))
        if result.entry is not None:
            known = self._entries.lookup(result.entry.attr.inode)
            if known is None or left_s > 0:
                if known is not None and parent == EVERYWHERE:
                    parent = known.parent
                self._entries.put(result.entry, parent, *self._get_state(result, parent, left_s, begun))
        return LookupResult(result.entry, left_s)

    def _get_fresh_s(self, result: LookupResult, directory: InodeId, begun: Begun) -> float:
        """What is left of an answer's time when it arrives. `directory` EVERYWHERE: it is not known which one it rests on."""
        since = self._cleared
        if directory == EVERYWHERE:
            # Any recall may have been about it.
            since = self._sequence - 1
        else:
            known = self._directories.get(directory)
            since = max(since, self._forgotten if known is None else known.changed)
        if since >= begun.sequence:
            return 0.0
        left_s = begun.time_s + result.valid_s - self._now()
        if result.leased and (begun.session != self._session or not self._is_live()):
            left_s = min(left_s, UNCOVERED_VALID_S)
        return max(left_s, 0.0)

    def _get_state(self, result: LookupResult, parent: InodeId, left_s: float, begun: Begun) -> tuple[int, int]:
        if left_s <= 0:
            return 0, 0
        expires = self._get_tick() + int(left_s * _TICKS_A_S)
        directory = self._get_directory(parent)
        if directory.session != self._session:
            directory.session, directory.stamp = self._session, self._draw_stamp()
        if not result.leased or begun.session != self._session or not self._is_live():
            return directory.stamp | _UNCOVERED, expires
        return directory.stamp, expires

    # Forgetting

    def recall(self, recalls: Iterable[Recall]) -> None:
        """What the master takes back is not used any more (but when it is away)."""
        for recall in recalls:
            self._sequence += 1
            if recall.directory == EVERYWHERE:
                self.clear()
                continue
            directory = self._get_directory(recall.directory)
            directory.changed = self._sequence
            if recall.all_names:
                directory.session = -1
            for name in recall.names:
                self._forget_name(recall.directory, directory, name)
            for inode in (*recall.inodes, recall.directory):
                self._entries.set_state(inode, 0, 0)
            self._sequence += 1

    def _forget_name(self, parent: InodeId, directory: _Directory, name: bytes) -> None:
        link = self._find_link(parent, directory, name, old=True)
        if link is not None:
            # Kept as what it was, for when the master is away.
            self._put_name((parent, name), _Link(link.inode, 0, 0))
            self._entries.set_state(link.inode, 0, 0)
        if directory.pages:
            directory.note_changed(name)

    def clear(self) -> None:
        """Use nothing any more of what is known (but when the master is away), what is being asked now included."""
        self._sequence += 2
        self._cleared = self._sequence - 1
        self._session += 1
        self._paths.clear()

    # Inside

    def _find_link(self, parent: InodeId, directory: _Directory | None, name: bytes, *, old: bool = False) -> _Link | None:
        link = self._names.get((parent, name))
        if link is not None and (old or self._get_left_s(directory, link.stamp, link.expires) > 0):
            return link
        if directory is None or not directory.pages or name in directory.changed_names:
            return link
        return self._find_in_listing(directory, name) or link

    def _find_in_listing(self, directory: _Directory, name: bytes) -> _Link | None:
        """What a name led to by the pages that were kept; None: they do not tell."""
        if b"%~" in name or name == _SNAPSHOT_FOLDER:
            # Shown in place of one that cannot be: where it stands in the order of names is not known. Or in no listing.
            return None
        page = directory.pages[0]
        for sort_name in (name, name + b"/"):
            place = bisect_right(directory.firsts, sort_name) - 1
            page = directory.pages[max(place, 0)]
            if page.first is None:
                return None
            inode = _NOTHING if place < 0 else self._find_in_page(page, sort_name)
            if inode is None:
                return None
            if inode != _NOTHING:
                return _Link(inode, page.stamp, page.expires)
            if place == len(directory.pages) - 1 and page.next_cursor:
                last = self._get_name(page, len(page.inodes) - 1) if page.inodes else None
                if last is None or sort_name > last:
                    return None  # behind what was listed so far
        return _Link(_NOTHING, page.stamp, page.expires)

    def _find_in_page(self, page: _Page, sort_name: bytes) -> InodeId | None:
        """The entry of that name; _NOTHING: none; None: not known any more."""
        low, high = 0, len(page.inodes)
        while low < high:
            middle = (low + high) // 2
            found = self._get_name(page, middle)
            if found is None:
                return None
            if found == sort_name:
                return page.inodes[middle]
            if found < sort_name:
                low = middle + 1
            else:
                high = middle
        return _NOTHING

    def _get_name(self, page: _Page, place: int) -> bytes | None:
        """By which name an entry of a page was listed, with a slash behind a directory's; None: not known any more."""
        name = self._entries.get_sort_name(page.inodes[place])
        return name if name is not None and crc32(name) == page.marks[place] else None

    def _put_name(self, key: tuple[InodeId, bytes], link: _Link) -> None:
        # Taken out first, so that a dictionary's order is that of the answers' age.
        self._names.pop(key, None)
        self._names[key] = link
        if len(self._names) > self._max_names:
            oldest = next(iter(self._names))
            del self._names[oldest]
            self._get_directory(oldest[0]).has_lost = True

    def _get_directory(self, inode: InodeId) -> _Directory:
        directory = self._directories.get(inode)
        if directory is None:
            directory = self._directories[inode] = _Directory()
            directory.changed = self._forgotten
            if len(self._directories) > self._max_directories:
                # Answers of it have a stamp that is nobody's from now on: they are asked for again.
                oldest = self._directories.pop(next(iter(self._directories)))
                self._forgotten = max(self._forgotten, oldest.changed)
        return directory

    def _get_left_s(self, directory: _Directory | None, stamp: int, expires: int) -> float:
        """How long something may still be used; not above 0: no longer."""
        if directory is None or directory.session != self._session or stamp & ~_UNCOVERED != directory.stamp:
            return 0.0
        if not stamp & _UNCOVERED and not self._is_live():
            return 0.0
        return expires / _TICKS_A_S - (self._now() - self._base_s)

    def _is_recalled(self, parent: InodeId, stamp: int) -> bool:
        """Whether an answer was taken back by a master that we are in contact with."""
        directory = self._directories.get(parent)
        is_current = directory is not None and directory.session == self._session and stamp & ~_UNCOVERED == directory.stamp
        return not is_current and self._is_live()

    def _get_tick(self) -> int:
        return int((self._now() - self._base_s) * _TICKS_A_S)

    def _draw_stamp(self) -> int:
        self._last_stamp = self._last_stamp % (_UNCOVERED - 1) + 1
        return self._last_stamp


def _get_sort_name(entry: Entry) -> bytes | None:
    """What listings are sorted by; None where the shown name does not tell it."""
    name = to_bytes(entry.name)
    if b"%~" in name or (entry.ref is not None and not entry.ref.key.endswith(entry.name)):
        return None
    return _get_listed_name(entry)


def _get_listed_name(entry: Entry) -> bytes:
    name = to_bytes(entry.name)
    return name + b"/" if entry.attr.kind is Kind.DIRECTORY else name
