"""Words by inode, several of one inode: copies of small files, 8 bytes each.

Owns the words, their layout and the memory they lie in. Knows owners by number (0: nobody) and which of them are gone, not what
they are.

A leaf has a word for each of 512 consecutive inodes, and behind it hang more leaves where some of them have more than one. All
leaves lie in one array that grows where it is, so numpy puts the columns of a report into all the leaves that they concern at
once; calls for one word read the same memory through a memoryview, since numbers of numpy are slow one by one.

Memory is anonymous and private: nothing outside the process is touched. Single-threaded; no method awaits.
"""

import mmap
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_LEAF_BITS = 9
"""512 inodes: 4 KiB, what the kernel gives at least, so a leaf of which one word is used costs no more than it must."""
_LEAF = 1 << _LEAF_BITS
_LEAF_MASK = _LEAF - 1
PART_BITS = 12
"""Inodes of one part, for those who look through all of them: 4,096."""
_PART_LEAVES = 1 << (PART_BITS - _LEAF_BITS)

# A copy in a word: 16 bits of owner, 16 of version, 27 of bytes.
_SIZE_BITS = 27
_SIZE_MASK = (1 << _SIZE_BITS) - 1
_OWNER_SHIFT = _SIZE_BITS + 16
MAX_VERSION = (1 << 16) - 1
MAX_OWNER = (1 << 16) - 1
MAX_INODE = (1 << 36) - 1
"""What finds leaves has 4 bytes of addresses for 512 inodes up to the last one, so 512 MiB for these, and memory only where there
are some. Inodes of snapshots are far above."""


def fits(inode: int, version: int) -> bool:
    """Whether a copy can be a word."""
    return inode <= MAX_INODE and version <= MAX_VERSION


class _Zeros:
    """An array of zeros that grows where it lies: growing copies nothing, and what was never written to takes no memory.

    While it grows nobody may hold `array`, `items` or a view of them (BufferError).
    """

    __slots__ = ("_map", "_typecode", "array", "items")

    array: NDArray[Any]
    items: "memoryview[int]"

    def __init__(self, typecode: Literal["q", "i"]) -> None:
        self._typecode = typecode
        self._map = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._open()

    def _open(self) -> None:
        self.array = np.frombuffer(self._map, dtype=self._typecode)
        self.items = memoryview(self._map).cast(self._typecode)

    def grow(self, length: int) -> None:
        """Have room for so many at least."""
        old = len(self.items)
        if length <= old:
            return
        # By a quarter: each time the kernel moves the entries of its page tables, a few milliseconds for 100 million words.
        wanted = max(length, old + old // 4) * self.items.itemsize
        del self.array, self.items
        try:
            self._map.resize(-(-wanted // mmap.PAGESIZE) * mmap.PAGESIZE)
        finally:
            self._open()

    def give_back(self, first: int, end: int) -> None:
        """The memory of items that are zero, as far as it is whole pages."""
        size = self.items.itemsize
        start = -(-first * size // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end * size // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, start, length)


class Slots:
    """See the module. `fits` says which copies can be given.

    `gone[owner]` says that an owner's words are waste, whose places may be taken; `gone[0]` has to be set. The caller changes it.
    """

    def __init__(self, gone: bytearray) -> None:
        self._gone = gone
        self._is_gone: Bools = np.frombuffer(gone, dtype=np.bool_)
        self._words = _Zeros("q")
        self._first = _Zeros("i")
        """By inode >> _LEAF_BITS: its first leaf; 0: none, so no leaf has the number 0."""
        self._next = _Zeros("i")
        """By leaf: the one behind it."""
        self._place = _Zeros("i")
        """By leaf: 1 + inode >> _LEAF_BITS; 0: it is not in use, and all its words are 0."""
        self._end = 1
        self._unused: list[int] = []
        """Leaves below `_end` that are not in use."""

    # -- one by one ----------------------------------------------------------------------------------------------------

    def put(self, inode: int, version: int, owner: int, size: int) -> int:
        """Make an owner's copy of a version one of so many bytes (0: of none, so that there is none); of how many it was."""
        place, slot = inode >> _LEAF_BITS, inode & _LEAF_MASK
        wanted = owner << 16 | version
        word = wanted << _SIZE_BITS | size if size else 0
        words, behind, gone = self._words.items, self._next.items, self._gone
        last = free = 0
        leaf = self._get_first(place)
        while leaf:
            position = leaf << _LEAF_BITS | slot
            old = words[position]
            if old >> _SIZE_BITS == wanted:
                words[position] = word
                return old & _SIZE_MASK
            if not free and gone[old >> _OWNER_SHIFT]:
                free = position
            last, leaf = leaf, behind[leaf]
        if word and free:
            words[free] = word
        elif word:
            del words, behind
            free = self._append_leaf(place, last) << _LEAF_BITS | slot
            self._words.items[free] = word
        return 0

    def list_copies_of(self, inode: int, version: int) -> list[tuple[int, int]]:
        """(owner, bytes) of the copies of a version whose owners are not gone."""
        words, slot = self._words.items, inode & _LEAF_MASK
        found = []
        leaf = self._get_first(inode >> _LEAF_BITS)
        while leaf:
            word = words[leaf << _LEAF_BITS | slot]
            if word >> _SIZE_BITS & MAX_VERSION == version:
                owner = word >> _OWNER_SHIFT
                if not self._gone[owner]:
                    found.append((owner, word & _SIZE_MASK))
            leaf = self._next.items[leaf]
        return found

    # -- many at once --------------------------------------------------------------------------------------------------

    def put_many(self, inodes: Ints, versions: Ints, sizes: Ints, owner: int) -> Bools:
        """A word more for each of the inodes, which ascend; but not where the owner has one already. Says of which it was put."""
        places, slots = inodes >> _LEAF_BITS, inodes & _LEAF_MASK
        leaves = self._list_first(places)
        targets = (leaves << _LEAF_BITS) + slots
        owners = self._words.array[targets] >> _OWNER_SHIFT
        is_own = owners == owner
        # Where nothing free was found yet the target is 0.
        targets *= self._is_gone[owners]
        behind = self._next.array[leaves]
        deeper = np.flatnonzero(behind)
        while deeper.size:
            leaves[deeper] = behind[deeper]
            positions = (leaves[deeper] << _LEAF_BITS) + slots[deeper]
            owners = self._words.array[positions] >> _OWNER_SHIFT
            is_own[deeper] |= owners == owner
            takes = self._is_gone[owners] & (targets[deeper] == 0)
            targets[deeper[takes]] = positions[takes]
            behind[deeper] = self._next.array[leaves[deeper]]
            deeper = deeper[behind[deeper] != 0]
        is_new: Bools = ~is_own
        homeless = np.flatnonzero(is_new & (targets == 0))
        if homeless.size:
            targets[homeless] = (self._append_leaves(leaves[homeless], places[homeless]) << _LEAF_BITS) + slots[homeless]
        words = (versions << _SIZE_BITS) + sizes + (owner << _OWNER_SHIFT)
        if is_own.any():
            targets, words = targets[is_new], words[is_new]
        self._words.array[targets] = words
        return is_new

    def list_copies(self, part: int) -> tuple[Ints, Ints]:
        """Inodes and versions of the copies in a part whose owners are not gone."""
        start = part * _PART_LEAVES
        leaves = self._first.array[start : start + _PART_LEAVES].astype(np.int64)
        places = np.arange(start, start + len(leaves))
        inodes, versions = [], []
        while leaves.any():
            places, leaves = places[leaves > 0], leaves[leaves > 0]
            words = self._words.array.reshape(-1, _LEAF)[leaves]
            rows, slots = np.nonzero(~self._is_gone[words >> _OWNER_SHIFT])
            inodes.append((places[rows] << _LEAF_BITS) + slots)
            versions.append(words[rows, slots] >> _SIZE_BITS & MAX_VERSION)
            leaves = self._next.array[leaves].astype(np.int64)
        none = np.zeros(0, dtype=np.int64)
        return np.concatenate([none, *inodes]), np.concatenate([none, *versions])

    def list_parts(self) -> list[int]:
        """Parts that have leaves."""
        places = self._place.array[1 : self._end]
        parts: list[int] = np.unique((places[places > 0] - 1) // _PART_LEAVES).tolist()
        return parts

    def count_leaves(self) -> int:
        """Numbers of leaves, in use or not, are below this."""
        return self._end

    def sweep(self, first: int, end: int, owners: Bools) -> None:
        """Take words of some owners out of the leaves with these numbers; memory of those that are empty then is given back."""
        words = self._words.array[first << _LEAF_BITS : end << _LEAF_BITS]
        words[owners[words >> _OWNER_SHIFT]] = 0
        is_empty = ~words.reshape(-1, _LEAF).any(axis=1)
        empty = np.flatnonzero(is_empty & (self._place.array[first:end] > 0)) + first
        for leaf in empty.tolist():
            self._unlink(leaf)
        for start, stop in _iter_runs(empty):
            self._words.give_back(start << _LEAF_BITS, stop << _LEAF_BITS)

    def get_memory_bytes(self) -> int:
        """What leaves in use take, with what points to them."""
        return (self._end - 1 - len(self._unused)) * (_LEAF * 8 + 12)

    # -- leaves --------------------------------------------------------------------------------------------------------

    def _get_first(self, place: int) -> int:
        try:
            return self._first.items[place]
        except IndexError:
            return 0

    def _list_first(self, places: Ints) -> Ints:
        """The first leaves of places that ascend, made where there are none."""
        self._first.grow(int(places[-1]) + 1)
        leaves: Ints = self._first.array[places].astype(np.int64)
        lacking = places[leaves == 0]
        if lacking.size:
            lacking = lacking[_is_first(lacking)]
            self._first.array[lacking] = self._take_leaves(lacking)
            leaves = self._first.array[places].astype(np.int64)
        return leaves

    def _append_leaf(self, place: int, last: int) -> int:
        """A leaf more for a place; `last`: its last one, 0: it has none."""
        self._first.grow(place + 1)
        leaf = int(self._take_leaves(np.array([place]))[0])
        if last:
            self._next.items[last] = leaf
        else:
            self._first.items[place] = leaf
        return leaf

    def _append_leaves(self, lasts: Ints, places: Ints) -> Ints:
        """A leaf more behind each of the last ones of places that ascend; places more than once share theirs."""
        is_first = _is_first(places)
        leaves = self._take_leaves(places[is_first])
        self._next.array[lasts[is_first]] = leaves
        shared: Ints = leaves[np.cumsum(is_first) - 1]
        return shared

    def _take_leaves(self, places: Ints) -> Ints:
        """One leaf, empty, for each place."""
        again = min(len(self._unused), len(places))
        new = len(places) - again
        for column in (self._next, self._place):
            column.grow(self._end + new)
        self._words.grow((self._end + new) << _LEAF_BITS)
        taken = self._unused[len(self._unused) - again :]
        del self._unused[len(self._unused) - again :]
        leaves = np.concatenate([np.array(taken, dtype=np.int64), np.arange(self._end, self._end + new)])
        self._end += new
        self._place.array[leaves] = places + 1
        return leaves

    def _unlink(self, leaf: int) -> None:
        """Take an empty leaf out of its chain."""
        behind, place = self._next.items[leaf], self._place.items[leaf] - 1
        before = self._first.items[place]
        if before == leaf:
            self._first.items[place] = behind
        else:
            while self._next.items[before] != leaf:
                before = self._next.items[before]
            self._next.items[before] = behind
        self._next.items[leaf] = self._place.items[leaf] = 0
        self._unused.append(leaf)


def _is_first(ascending: Ints) -> Bools:
    """Of equal ones that follow each other the first."""
    is_first = np.ones(len(ascending), dtype=np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=is_first[1:])
    return is_first


def _iter_runs(numbers: Ints) -> Iterator[tuple[int, int]]:
    """(first, end) of consecutive ones."""
    if numbers.size:
        cuts = np.flatnonzero(np.diff(numbers) != 1)
        starts = numbers[np.concatenate([[0], cuts + 1])]
        ends = numbers[np.concatenate([cuts, [len(numbers) - 1]])] + 1
        yield from zip(starts.tolist(), ends.tolist(), strict=True)
