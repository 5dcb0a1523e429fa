"""What is known of LMDB's pages: how a run of pairs fills them, how all pairs on many of them are read at once, and which ones
will be, so that the disk reads them before.

Owns the form of a data file as LMDB 0.9 has it (data version 1, little-endian): the tree's record, branch and leaf pages. Does
not know transactions: whoever reads has one open that the tree's record came from, so none of its pages is used again meanwhile,
and each was written before the record was. Writes nothing. Any thread.

    page    number(8) pad(2) flags(2) lower(2) upper(2), then places(2) of its nodes up to `lower`
    node    low(2) high(2) flags(2) key length(2) key value; on a branch page low, high and flags are the child's number
    record  pad(4) flags(2) depth(2) branch pages(8) leaf pages(8) overflow pages(8) entries(8) root(8)
"""

import bisect
import itertools
import mmap
import operator
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from alluxio_like import errors
from alluxio_like.kv.columns import (
    NUMBER_STOP,
    Bytes,
    Columns,
    Ints,
    Numbers,
    find_runs,
    join_columns,
    list_rows,
    pick,
)

if TYPE_CHECKING:
    import lmdb

_META = struct.Struct("<16xII16xI")
_MAGIC: Final = 0xBEEFC0DE
_DATA_VERSION: Final = 1
_TREE = struct.Struct("<4xHH32xQ")
_HEADER = struct.Struct("<Q2xHH2x")
PAGE_HEAD_BYTES: Final = _HEADER.size
_NODE_BYTES: Final = 8
_HEAD: Final = np.dtype(
    {
        "names": ["low", "flags", "key_bytes", "number"],
        "formats": ["<u4", "<u2", "<u2", ">u8"],
        "offsets": [0, 4, 6, 9],
        "itemsize": _NODE_BYTES + NUMBER_STOP,
    }
)
"""A node's, with the number that its key may have behind a letter."""
_BRANCH: Final = 1
_LEAF: Final = 2
_OVERFLOW: Final = 4
_KINDS: Final = _BRANCH | _LEAF | _OVERFLOW
_PROBED: Final = 4
"""Pages that are looked at to see whether leaves are in memory."""
_KEPT: Final = 1000
"""Branch pages that are kept taken apart, of some 10 KB each: enough for thousands of millions of pairs."""
_LARGE: Final = 1
"""A node whose value lies on overflow pages, of which it has the first one's number."""


def list_behind(cursor: "lmdb.Cursor[bytes]", run: Sequence[tuple[bytes, bytes]], page_bytes: int) -> list[tuple[bytes, bytes]]:
    """What is to be taken out and put again behind a long run of new pairs, as much as a page holds.

    LMDB fills a page wholly only where the next pair is the page's last. Where others follow on the page it splits at the middle,
    again and again just before these, and leaves half a page empty each time (decision 0068).
    """
    if len(run) * _count_bytes(run[0]) < page_bytes or not cursor.set_range(run[0][0]):
        return []
    if cursor.key() <= run[-1][0] or any(map(operator.ge, run, itertools.islice(run, 1, None))):
        # Not a run into a gap.
        return []
    behind: list[tuple[bytes, bytes]] = []
    for pair in cursor.iternext():
        page_bytes -= _count_bytes(pair)
        if page_bytes < 0:
            break
        behind.append(pair)
    return behind


def _count_bytes(pair: tuple[bytes, bytes]) -> int:
    """What a pair takes on a page, its place among the others included."""
    size = len(pair[0]) + len(pair[1])
    return size + (size & 1) + _NODE_BYTES + 2


def open_pages(path: Path) -> "PageFile | None":
    """A data file's pages; None where they have another form than the one known here (on a big-endian machine
    among others)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    magic, version, page_bytes = _META.unpack(os.pread(fd, _META.size, 0))
    if (magic, version) != (_MAGIC, _DATA_VERSION):
        os.close(fd)
        return None
    # A page is what is asked for, not what lies behind it too.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return PageFile(path, fd, page_bytes)


@dataclass(frozen=True, slots=True)
class _Nodes:
    """The nodes of some pages, in order: where each begins, its head; and which of them is each page's first."""

    data: Bytes
    starts: Ints
    heads: NDArray[Any]
    firsts: Ints

    def get_numbers(self) -> Numbers:
        """What their keys begin with behind a letter."""
        return self.heads["number"].astype(np.uint64)


class PageFile:
    """See the module; `fd` is closed with it."""

    def __init__(self, path: Path, fd: int, page_bytes: int) -> None:
        self._path = path
        self._fd = fd
        self._page_bytes = page_bytes
        self._pages: NDArray[np.uint8] = np.empty((0, page_bytes), np.uint8)
        self._probe = bytearray(1)
        self._branches: dict[int, tuple[bytes, list[bytes], list[int]]] = {}
        """Branch pages far from the leaves, by number: content, first keys of all children but the first, children."""

    def close(self) -> None:
        os.close(self._fd)

    def scan(self, tree: bytes, start: bytes, stop: bytes, limit: int | None) -> Columns:
        """Pairs with start <= key < stop, at most `limit`, of the tree with this record. Raises Corrupt."""
        _, depth, root = _TREE.unpack(tree)
        parts: list[Columns] = []
        left = limit
        for some in self._iter_leaves(root, depth, start, stop) if depth else ():
            self._begin_reads(np.array(some, np.int64))
            first, _ = self._find_place(some[0], start)
            leaves = some if left is None else self._take_enough(some, first + left)
            end, count = self._find_place(leaves[-1], stop)
            part = self._get_pairs(self._read_nodes(np.array(leaves, np.int64), _LEAF))
            part = part.cut(first, len(part) - count + end)
            if left is not None:
                part = part.cut(0, left)
                left -= len(part)
            parts.append(part)
            if left == 0:
                break
        return join_columns(parts) if parts else _EMPTY

    def read_ahead(self, tree: bytes, keys: Sequence[bytes], *, is_behind: bool = False) -> tuple[list[int], list[bytes]]:
        """Have the disk begin to read the leaves that may hold these keys, of the tree with this record, all at once, without
        waiting: the pages that were not in memory, and the keys for which these are the way to others. `is_behind`: not the
        leaves are asked for, but the overflow pages of the values of the next keys on them. Raises Corrupt."""
        _, depth, root = _TREE.unpack(tree)
        missing: list[int] = []
        again: list[bytes] = []
        level: dict[int, list[bytes]] = {root: list(keys)} if depth else {}
        for height in range(depth - 1, -1 if is_behind else 0, -1):
            below: dict[int, list[bytes]] = {}
            for number, asked in level.items():
                content = bytearray(self._page_bytes)
                if self._begin_read(number, content):
                    missing.append(number)
                    again += asked
                    continue
                if height:
                    find_child = self._open_branch(number, bytes(content), is_kept=height > 1)
                    for key in asked:
                        below.setdefault(find_child(key), []).append(key)
                else:
                    for page in self._list_large(number, bytes(content), asked):
                        below.setdefault(page, [])
            level = below
        return missing + [number for number in level if self._begin_read(number, self._probe)], again

    def _open_branch(self, number: int, content: bytes, *, is_kept: bool) -> Callable[[bytes], int]:
        """What finds the child of a branch page that may hold a key. `is_kept`: the page is one of the few far from the leaves,
        and stays taken apart as long as it has this content."""
        kept = self._branches.get(number)
        if kept is not None and kept[0] == content:
            _, firsts, children = kept
            return lambda key: children[bisect.bisect_right(firsts, key)]
        page, places, get_key = self._take_apart(number, content, _BRANCH)

        def get_child(place: int) -> int:
            return int.from_bytes(page[place : place + 6], "little")

        if is_kept:
            if len(self._branches) >= _KEPT:
                self._branches.clear()
            self._branches[number] = (content, [get_key(place) for place in places[1:]], [get_child(place) for place in places])
        return lambda key: get_child(places[bisect.bisect_right(places, key, 1, key=get_key) - 1])

    def _list_large(self, number: int, content: bytes, asked: Sequence[bytes]) -> Iterator[int]:
        """The first overflow pages of the values that lie on some, of the first keys of a leaf from those asked for on."""
        page, places, get_key = self._take_apart(number, content, _LEAF)
        for key in asked:
            row = bisect.bisect_left(places, key, key=get_key)
            if row < len(places) and page[places[row] + 4] & _LARGE:
                value = places[row] + _NODE_BYTES + len(get_key(places[row]))
                yield int.from_bytes(page[value : value + 8], "little")

    def wait_read(self, numbers: Sequence[int]) -> None:
        """Return when these pages are in memory; other threads go on meanwhile."""
        flat = self._get_pages(max(numbers)).reshape(-1)
        np.take(flat, np.array(numbers, np.int64) * self._page_bytes, mode="clip")

    def _begin_reads(self, numbers: Ints) -> None:
        """Have the disk read all of these pages at once, if some of them are not in memory, as far as a few tell."""
        few = numbers[:: max(1, len(numbers) // _PROBED)].tolist()
        if not any(self._begin_read(number, self._probe) for number in few):
            return
        ends = np.append(np.flatnonzero(np.diff(numbers) != 1), len(numbers) - 1)
        begin = 0
        for end in ends.tolist():
            at, stop = int(numbers[begin]), int(numbers[end]) + 1
            os.posix_fadvise(self._fd, at * self._page_bytes, (stop - at) * self._page_bytes, os.POSIX_FADV_WILLNEED)
            begin = end + 1

    def _begin_read(self, number: int, content: bytearray) -> bool:
        """Read as much of a page as there is room for, or else have the disk begin with it; whether it was not in memory."""
        at = number * self._page_bytes
        try:
            os.preadv(self._fd, [content], at, os.RWF_NOWAIT)
        except BlockingIOError:
            os.posix_fadvise(self._fd, at, self._page_bytes, os.POSIX_FADV_WILLNEED)
            return True
        except OSError:
            # A file system that cannot tell.
            os.preadv(self._fd, [content], at)
        return False

    def _iter_leaves(self, number: int, depth: int, start: bytes, stop: bytes) -> Iterator[list[int]]:
        """The leaves that may hold the range, in order: those of one branch page at a time."""
        if depth == 1:
            yield [number]
        elif depth == 2:
            yield self._list_children(number, start, stop)
        else:
            for child in self._list_children(number, start, stop):
                yield from self._iter_leaves(child, depth - 1, start, stop)

    def _list_children(self, number: int, start: bytes, stop: bytes) -> list[int]:
        page, places, get_key = self._open_page(number, _BRANCH)
        # The first child has no key: it holds all that comes before the second one's.
        first = bisect.bisect_right(places, start, 1, key=get_key) - 1
        last = bisect.bisect_left(places, stop, first + 1, key=get_key)
        return [int.from_bytes(page[place : place + 6], "little") for place in places[first:last]]

    def _find_place(self, number: int, key: bytes) -> tuple[int, int]:
        """How many pairs of a leaf come before a key, and how many it has."""
        _, places, get_key = self._open_page(number, _LEAF)
        return bisect.bisect_left(places, key, key=get_key), len(places)

    def _open_page(self, number: int, kind: int) -> "tuple[bytes, memoryview[int], Callable[[int], bytes]]":
        """A page, the places of its nodes, and what gives the key of one of these."""
        # Not from the mapping: other threads go on while this one waits for the disk.
        return self._take_apart(number, os.pread(self._fd, self._page_bytes, number * self._page_bytes), kind)

    def _take_apart(self, number: int, page: bytes, kind: int) -> "tuple[bytes, memoryview[int], Callable[[int], bytes]]":
        if len(page) < self._page_bytes:
            raise self._say_damaged(number)
        own, flags, lower = _HEADER.unpack_from(page)
        if own != number or flags & _KINDS != kind:
            raise self._say_damaged(number)

        def get_key(place: int) -> bytes:
            key = place + _NODE_BYTES
            return page[key : key + page[place + 6] + (page[place + 7] << 8)]

        return page, memoryview(page)[PAGE_HEAD_BYTES:lower].cast("H"), get_key

    def _take_enough(self, numbers: list[int], count: int) -> list[int]:
        """Of these leaves the first ones that have so many pairs; all, if there are not so many."""
        pages = self._get_pages(max(numbers))
        asked = np.array(numbers, np.int64)
        lowers = pages[asked, 12].astype(np.int64) | pages[asked, 13].astype(np.int64) << 8
        return numbers[: 1 + int(np.searchsorted(np.cumsum((lowers - PAGE_HEAD_BYTES) >> 1), count))]

    def scan_numbers(self, tree: bytes, numbers: Numbers) -> tuple[Columns, Numbers]:
        """See ReadTransaction: of the tree with this record, whose pages are looked at level by level, for all numbers at once.
        Raises Corrupt."""
        _, depth, root = _TREE.unpack(tree)
        if not depth or not len(numbers):
            return _EMPTY, _NONE.astype(np.uint64)
        firsts, lasts = find_runs(numbers)
        pages, lowest = np.array([root], np.int64), np.zeros(1, np.uint64)
        for _ in range(depth - 1):
            level = self._read_nodes(pages, _BRANCH)
            found = level.get_numbers()
            # The first child of a page has no key: it holds what comes from the page's own first number on.
            found[level.firsts] = lowest
            # What has a child's first number may begin on the child before it.
            starts = np.maximum(np.searchsorted(found, firsts, "left") - 1, 0)
            stops = np.searchsorted(found, lasts, "right")
            begun = np.bincount(starts, minlength=len(found) + 1) - np.bincount(stops, minlength=len(found) + 1)
            asked = np.flatnonzero(np.cumsum(begun[:-1]))
            heads = level.heads[asked]
            pages, lowest = heads["low"].astype(np.int64) | heads["flags"].astype(np.int64) << 32, found[asked]
        leaves = self._read_nodes(pages, _LEAF)
        columns = self._get_pairs(leaves)
        if int(columns.key_lengths.min(initial=NUMBER_STOP)) < NUMBER_STOP:
            raise self._say_damaged(int(pages[0]))
        found = leaves.get_numbers()
        starts, stops = np.searchsorted(found, firsts, "left"), np.searchsorted(found, lasts, "right")
        if len(firsts) == 1:
            return columns.cut(int(starts[0]), int(stops[0])), found[starts[0] : stops[0]]
        rows = list_rows(starts, stops - starts)
        return columns.take(rows), found[rows]

    def _read_nodes(self, asked: Ints, kind: int) -> "_Nodes":
        """All nodes of these pages."""
        pages = self._get_pages(int(asked.max()))
        if kind == _LEAF:
            self._begin_reads(asked)
        size = len(asked) * self._page_bytes
        # Some bytes more: the last node's head may be shorter than others'.
        data = np.empty(size + _HEAD.itemsize, np.uint8)
        block = data[:size].reshape(-1, self._page_bytes)
        np.take(pages, asked, axis=0, out=block, mode="clip")
        words = block.view("<u2")
        if (block[:, :8].copy().view("<i8")[:, 0] != asked).any() or ((words[:, 5] & _KINDS) != kind).any():
            raise self._say_damaged(int(asked[0]))
        counts = (words[:, 6].astype(np.int64) - PAGE_HEAD_BYTES) >> 1
        page_starts = np.arange(0, size, self._page_bytes, dtype=np.int64)
        # The places of all nodes stand behind each page's header, one after another.
        at = list_rows(page_starts + PAGE_HEAD_BYTES >> 1, counts)
        nodes = np.repeat(page_starts, counts) + words.reshape(-1)[at]
        return _Nodes(data, nodes, pick(data, nodes, _HEAD), np.cumsum(counts) - counts)

    def _get_pairs(self, leaves: "_Nodes") -> Columns:
        heads = leaves.heads
        key_starts = leaves.starts + _NODE_BYTES
        key_lengths = heads["key_bytes"].astype(np.int64)
        found = Columns(leaves.data, key_starts, key_lengths, key_starts + key_lengths, heads["low"].astype(np.int64))
        flags = np.ascontiguousarray(heads["flags"])
        if not flags.any():
            return found
        if (flags > _LARGE).any():
            raise errors.Corrupt("a pair of the metadata store has another form than is known here", subject=str(self._path))
        return self._bring_large(found, np.flatnonzero(flags))

    def _bring_large(self, found: Columns, rows: Ints) -> Columns:
        """The same, with the values that lie on overflow pages."""
        starts = found.value_starts.copy()
        parts: list[Bytes] = [found.data]
        end = len(found.data)
        for row in rows.tolist():
            at, size = int(starts[row]), int(found.value_lengths[row])
            number = int.from_bytes(found.data[at : at + 8].tobytes(), "little")
            stop = number * self._page_bytes + PAGE_HEAD_BYTES + size
            pages = self._get_pages(-(-stop // self._page_bytes) - 1)
            if int.from_bytes(pages[number, 10:12].tobytes(), "little") & _OVERFLOW == 0:
                raise self._say_damaged(number)
            parts.append(pages.reshape(-1)[stop - size : stop])
            starts[row] = end
            end += size
        return Columns(np.concatenate(parts), found.key_starts, found.key_lengths, starts, found.value_lengths)

    def _get_pages(self, last: int) -> NDArray[np.uint8]:
        """The file as an array of pages, up to a page at least."""
        pages = self._pages
        if last >= len(pages):
            count = os.fstat(self._fd).st_size // self._page_bytes
            if last >= count:
                raise self._say_damaged(last)
            # What was mapped before goes when nobody looks at it any more.
            mapped = mmap.mmap(self._fd, count * self._page_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
            mapped.madvise(mmap.MADV_RANDOM)
            self._pages = pages = np.frombuffer(mapped, np.uint8).reshape(count, self._page_bytes)
        return pages

    def _say_damaged(self, number: int) -> errors.Corrupt:
        return errors.Corrupt(f"page {number} of the metadata store is not what it should be", subject=str(self._path))


_NONE = np.empty(0, np.int64)
_EMPTY = Columns(np.empty(0, np.uint8), _NONE, _NONE, _NONE, _NONE)
