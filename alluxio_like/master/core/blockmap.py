"""Which worker holds which blocks: memory only, rebuilt from the workers' reports.

Owns the map and its totals; does not know names, sizes or placement. Compact: a file of one block whose pages are there from the
first on (every wholly cached file up to 64 MiB) costs 8 bytes a copy, one word (`slots.py`); anything else one object a copy,
with 12 bytes a block. Nothing is an object per block.

A worker's full report builds a new generation of that worker beside the old one and replaces it at once when it is complete;
changes that arrive meanwhile count for both. What a gone generation left is passed over, and swept out later, a few leaves at a
time (`sweep_some`), since the map may have a hundred million words and nobody else runs meanwhile.

Single-threaded: used from the event loop alone; no method awaits.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from alluxio_like.master.core.slots import MAX_INODE, MAX_OWNER, MAX_VERSION, PART_BITS, Bools, Ints, Slots, fits
from alluxio_like.types import BLOCK_BYTES, PAGE_BYTES, FileId, InodeId, VersionId, WorkerId

_SWEEP_AFTER = 64
"""Gone generations before a sweep pays (a guess: it looks at the whole map)."""
_SWEEP_PART = 16
"""Or when so large a part of the map is of gone ones."""
SWEEP_LEAVES = 64
"""Leaves swept in one step: 0.15 ms, also where all of them go."""
_FILES_A_LEAF = 4
"""Files with extents that take as long to sweep as a leaf (a guess)."""


@dataclass(frozen=True, slots=True)
class BlockDelta:
    """What a worker holds of one block now: bit n of `bits` is page n, `bytes` those of the pages present; 0 bits: nothing."""

    file_id: FileId
    block: int
    bits: int
    bytes: int


class WholeFiles(NamedTuple):
    """Files of which a worker holds block 0 from its first page on and no hole in it: `_is_prefix` holds of (pages, size).

    Columns of one length: 16 bytes a file on the wire, and no object for each.
    """

    inodes: "array[int]"
    versions: "array[int]"
    sizes: "array[int]"


@dataclass(frozen=True, slots=True)
class Holding:
    """What one worker holds of one block."""

    worker_id: WorkerId
    block: int
    bits: int
    bytes: int


@dataclass(slots=True)
class _Generation:
    """One report's worth of a worker: its current one, one that is being built, or gone."""

    index: int
    worker_id: WorkerId
    bytes: int = 0
    blocks: int = 0


@dataclass(slots=True)
class _Report:
    """A report under way; `journal` are changes since it began, `singles` inodes that it told of otherwise than by columns."""

    session_id: str
    generation: _Generation
    journal: list[BlockDelta] = field(default_factory=list)
    singles: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Sweep:
    """A sweep under way: whose words and extents it removes, and how far it has still to go, from behind."""

    gone: frozenset[int]
    is_gone: Bools
    leaves: int
    files: list[FileId]


@dataclass(slots=True)
class _Extents:
    """A copy that the slots cannot describe: bits and bytes by block."""

    bits: "array[int]" = field(default_factory=lambda: array("Q"))
    sizes: "array[int]" = field(default_factory=lambda: array("I"))

    def set(self, block: int, bits: int, size: int) -> None:
        missing = block + 1 - len(self.bits)
        if missing > 0:
            self.bits.extend([0] * missing)
            self.sizes.extend([0] * missing)
        self.bits[block] = bits
        self.sizes[block] = size

    def get(self, block: int) -> tuple[int, int]:
        return (self.bits[block], self.sizes[block]) if block < len(self.bits) else (0, 0)


def _is_prefix(bits: int, size: int) -> bool:
    """Whether the bits follow from the bytes: pages from the first on, none but the last one short."""
    return 0 < size <= BLOCK_BYTES and bits == (1 << -(-size // PAGE_BYTES)) - 1


def _get_prefix(size: int) -> int:
    """The bits of so many bytes from the first page on."""
    return (1 << -(-size // PAGE_BYTES)) - 1


def _get_column(numbers: "array[int]") -> Ints:
    """Numbers of a message; those of 64 bits that are too large for a slot anyway may become negative."""
    return np.frombuffer(numbers, dtype=numbers.typecode).astype(np.int64)


def _find_odd(inodes: Ints, versions: Ints) -> Bools:
    """Which files of a message no slot can describe, or are named in it more than once."""
    is_odd = (inodes < 0) | (inodes > MAX_INODE) | (versions > MAX_VERSION)
    if (inodes[1:] <= inodes[:-1]).any():
        order = np.argsort(inodes)
        twice = np.flatnonzero(inodes[order[1:]] == inodes[order[:-1]])
        is_odd[order[twice]] = is_odd[order[twice + 1]] = True
    return is_odd


class BlockMap:
    """The map; see the module."""

    def __init__(self) -> None:
        self._gone = bytearray(MAX_OWNER + 1)
        """By generation's index, whether it is gone; 0, which no generation has, is."""
        self._gone[0] = 1
        self._slots = Slots(self._gone)
        self._extents: dict[FileId, dict[int, _Extents]] = {}
        self._extended: dict[int, set[FileId]] = {}
        """Files with extents by part."""
        self._generations: dict[int, _Generation] = {}
        self._current: dict[WorkerId, _Generation] = {}
        self._building: dict[WorkerId, _Report] = {}
        self._next_index = 1
        self._sweep: _Sweep | None = None

    # -- reports -------------------------------------------------------------------------------------------------------

    def begin_report(self, worker_id: WorkerId, session_id: str) -> None:
        """A full report begins; one begun before and not finished is forgotten."""
        self.abort_report(worker_id)
        self._building[worker_id] = _Report(session_id, self._make_generation(worker_id))

    def add_report(self, worker_id: WorkerId, session_id: str, blocks: Iterable[BlockDelta]) -> bool:
        """A part of the report; False when another one was begun since, whose parts alone count."""
        report = self._get_report(worker_id, session_id)
        if report is None:
            return False
        for delta in blocks:
            report.singles.add(delta.file_id.inode)
            self._apply(report.generation, delta)
        return True

    def add_whole_files(self, worker_id: WorkerId, session_id: str, files: WholeFiles) -> bool:
        """`add_report` for files of the usual kind, all at once. Raises ValueError for columns that cannot be."""
        report = self._get_report(worker_id, session_id)
        if report is None:
            return False
        inodes, versions, sizes = (_get_column(column) for column in files)
        if not len(inodes) == len(versions) == len(sizes):
            raise ValueError("columns of a block report that do not fit each other")
        if not len(inodes):
            return True
        if not 0 < sizes.min() <= sizes.max() <= BLOCK_BYTES:
            raise ValueError("sizes in a block report that no block can have")
        generation = report.generation
        is_odd = _find_odd(inodes, versions)
        if report.singles and not report.singles.isdisjoint(files.inodes):
            is_odd |= np.fromiter((inode in report.singles for inode in files.inodes), dtype=np.bool_, count=len(inodes))
        order = np.flatnonzero(~is_odd)
        if order.size:
            if (inodes[order[1:]] < inodes[order[:-1]]).any():
                order = order[np.argsort(inodes[order])]
            is_put = self._slots.put_many(inodes[order], versions[order], sizes[order], generation.index)
            is_odd[order[~is_put]] = True
            put = order[is_put]
            self._count(generation, len(put), int(sizes[put].sum()))
        for number in np.flatnonzero(is_odd).tolist():
            inode, version, size = files.inodes[number], files.versions[number], files.sizes[number]
            self._apply(generation, BlockDelta(make_file_id(inode, version), 0, _get_prefix(size), size))
        return True

    def finish_report(self, worker_id: WorkerId, session_id: str) -> bool:
        """The report replaces what was known of the worker; False when another one was begun since."""
        report = self._get_report(worker_id, session_id)
        if report is None:
            return False
        del self._building[worker_id]
        for delta in report.journal:
            self._apply(report.generation, delta)
        self._retire(self._current.get(worker_id))
        self._current[worker_id] = report.generation
        return True

    def abort_report(self, worker_id: WorkerId) -> None:
        """Forget a report that was not finished."""
        report = self._building.pop(worker_id, None)
        if report is not None:
            self._retire(report.generation)

    def apply_changes(self, worker_id: WorkerId, changes: Iterable[BlockDelta]) -> None:
        """Changes since the last report or the last changes. Changes to a worker that never reported are taken as its first."""
        generation = self._current.get(worker_id)
        if generation is None:
            generation = self._current[worker_id] = self._make_generation(worker_id)
        report = self._building.get(worker_id)
        for delta in changes:
            self._apply(generation, delta)
            if report is not None:
                report.journal.append(delta)

    def drop_worker(self, worker_id: WorkerId) -> None:
        """Forget all that a worker holds."""
        self.abort_report(worker_id)
        self._retire(self._current.pop(worker_id, None))

    def drop_file(self, file_id: FileId) -> None:
        """Forget all copies of a file (its workers will say so too)."""
        for index, block, _, _ in list(self._iter_copies(file_id)):
            self._apply(self._generations[index], BlockDelta(file_id, block, 0, 0))

    # -- questions -----------------------------------------------------------------------------------------------------

    def has_reported(self, worker_id: WorkerId) -> bool:
        return worker_id in self._current

    def get_holdings(self, file_id: FileId) -> list[Holding]:
        """All copies of all blocks of a file that somebody holds pages of, by worker and block."""
        found = []
        for index, block, bits, size in self._iter_copies(file_id):
            generation = self._generations[index]
            if self._current.get(generation.worker_id) is generation:
                found.append(Holding(generation.worker_id, block, bits, size))
        return found

    def list_parts(self) -> list[int]:
        """Numbers for `list_files`, which together give every file that somebody holds some of."""
        return list({*self._slots.list_parts(), *self._extended})

    def list_files(self, part: int) -> set[FileId]:
        """The files in one part of the map, copies of gone generations left out."""
        inodes, versions = self._slots.list_copies(part)
        found = set(map(make_file_id, inodes.tolist(), versions.tolist()))
        for file_id in self._extended.get(part, ()):
            if not all(self._gone[index] for index in self._extents[file_id]):
                found.add(file_id)
        return found

    def get_bytes_by_worker(self, file_id: FileId) -> dict[WorkerId, int]:
        """Bytes of a file on each worker that holds any."""
        totals: dict[WorkerId, int] = {}
        for holding in self.get_holdings(file_id):
            totals[holding.worker_id] = totals.get(holding.worker_id, 0) + holding.bytes
        return totals

    def get_worker_totals(self, worker_id: WorkerId) -> tuple[int, int]:
        """Blocks and bytes on a worker."""
        generation = self._current.get(worker_id)
        return (generation.blocks, generation.bytes) if generation is not None else (0, 0)

    def get_memory_bytes(self) -> int:
        """What the arrays take, roughly."""
        return self._slots.get_memory_bytes() + sum(
            400 + 12 * len(e.bits) for copies in self._extents.values() for e in copies.values()
        )

    # -- inside --------------------------------------------------------------------------------------------------------

    def _get_report(self, worker_id: WorkerId, session_id: str) -> _Report | None:
        """The report that is being built, unless it is another one."""
        report = self._building.get(worker_id)
        return report if report is not None and report.session_id == session_id else None

    def _make_generation(self, worker_id: WorkerId) -> _Generation:
        if len(self._generations) == MAX_OWNER:
            self.sweep()
        while self._next_index in self._generations:
            self._next_index = self._next_index % MAX_OWNER + 1
        generation = _Generation(self._next_index, worker_id)
        self._generations[generation.index] = generation
        self._gone[generation.index] = 0
        self._next_index = self._next_index % MAX_OWNER + 1
        return generation

    def _retire(self, generation: _Generation | None) -> None:
        if generation is not None:
            self._gone[generation.index] = 1

    def sweep(self) -> None:
        """Remove all that gone generations left, so that their numbers can be used again; long for a large map."""
        while self.sweep_some(self._slots.count_leaves() + len(self._extents), force=True):
            pass

    def sweep_some(self, leaves: int = SWEEP_LEAVES, *, force: bool = False) -> bool:
        """A step of a sweep, which is begun where it pays (`force`: where there is anything); whether there is more to do."""
        if self._sweep is None:
            ended = [generation for generation in self._generations.values() if self._gone[generation.index]]
            waste = sum(generation.blocks for generation in ended)
            held = sum(generation.blocks for generation in self._current.values())
            if not ended or not (force or len(ended) >= _SWEEP_AFTER or waste * _SWEEP_PART > held):
                return False
            gone = frozenset(generation.index for generation in ended)
            is_gone = np.zeros(len(self._gone), dtype=np.bool_)
            is_gone[list(gone)] = True
            self._sweep = _Sweep(gone, is_gone, self._slots.count_leaves(), list(self._extents))
        sweep = self._sweep
        if sweep.leaves:
            first = max(0, sweep.leaves - leaves)
            self._slots.sweep(first, sweep.leaves, sweep.is_gone)
            sweep.leaves = first
        else:
            for file_id in sweep.files[-leaves * _FILES_A_LEAF :]:
                for index in sweep.gone & self._extents.get(file_id, {}).keys():
                    self._drop_extents(file_id, index)
            del sweep.files[-leaves * _FILES_A_LEAF :]
        if sweep.leaves or sweep.files:
            return True
        for index in sweep.gone:
            del self._generations[index]
        self._sweep = None
        return False

    def _iter_copies(self, file_id: FileId) -> Iterator[tuple[int, int, int, int]]:
        """(generation, block, bits, bytes) of every copy, those of gone generations left out."""
        for index, size in self._slots.list_copies_of(file_id.inode, file_id.version):
            yield index, 0, (1 << -(-size // PAGE_BYTES)) - 1, size
        copies = self._extents.get(file_id)
        for index, extents in copies.items() if copies is not None else ():
            if not self._gone[index]:
                for block, bits in enumerate(extents.bits):
                    if bits:
                        yield index, block, bits, extents.sizes[block]

    def _apply(self, generation: _Generation, delta: BlockDelta) -> None:
        """Make one copy of one block what the delta says."""
        file_id, block, bits, size = delta.file_id, delta.block, delta.bits, delta.bytes
        index, inode, version = generation.index, file_id.inode, file_id.version
        copies = self._extents.get(file_id)
        if copies is not None and index in copies:
            self._apply_to_extents(generation, delta)
            return
        has_slot = fits(inode, version)
        if has_slot and block == 0 and (not bits or _is_prefix(bits, size)):
            old_size = self._slots.put(inode, version, index, size if bits else 0)
            if old_size:
                self._count(generation, -1, -old_size)
            if bits:
                self._count(generation, 1, size)
            return
        if not bits:
            return
        # A slot cannot tell of it.
        old_size = self._slots.put(inode, version, index, 0) if has_slot else 0
        if old_size and block == 0:
            self._count(generation, -1, -old_size)
        elif old_size:
            self._put_extent(generation, file_id, 0, _get_prefix(old_size), old_size)
        self._put_extent(generation, file_id, block, bits, size)
        self._count(generation, 1, size)

    def _apply_to_extents(self, generation: _Generation, delta: BlockDelta) -> None:
        old_bits, old_bytes = self._extents[delta.file_id][generation.index].get(delta.block)
        if old_bits:
            self._count(generation, -1, -old_bytes)
        if delta.bits:
            self._count(generation, 1, delta.bytes)
        self._put_extent(generation, delta.file_id, delta.block, delta.bits, delta.bytes)
        self._fold(generation, delta.file_id)

    def _count(self, generation: _Generation, blocks: int, size: int) -> None:
        generation.blocks += blocks
        generation.bytes += size

    def _put_extent(self, generation: _Generation, file_id: FileId, block: int, bits: int, size: int) -> None:
        copies = self._extents.setdefault(file_id, {})
        extents = copies.get(generation.index)
        if extents is None:
            extents = copies[generation.index] = _Extents()
            self._extended.setdefault(file_id.inode >> PART_BITS, set()).add(file_id)
        extents.set(block, bits, size)

    def _drop_extents(self, file_id: FileId, index: int) -> None:
        copies = self._extents[file_id]
        del copies[index]
        if copies:
            return
        del self._extents[file_id]
        part = self._extended[file_id.inode >> PART_BITS]
        part.remove(file_id)
        if not part:
            del self._extended[file_id.inode >> PART_BITS]

    def _fold(self, generation: _Generation, file_id: FileId) -> None:
        """Give up an extent record that is empty or that a slot can describe."""
        copies = self._extents[file_id]
        extents = copies[generation.index]
        while extents.bits and not extents.bits[-1]:
            extents.bits.pop()
            extents.sizes.pop()
        count = len(extents.bits)
        is_whole = count == 1 and fits(file_id.inode, file_id.version) and _is_prefix(extents.bits[0], extents.sizes[0])
        if count and not is_whole:
            return
        if is_whole:
            self._slots.put(file_id.inode, file_id.version, generation.index, extents.sizes[0])
        self._drop_extents(file_id, generation.index)


def make_file_id(inode: int, version: int) -> FileId:
    """A FileId from plain numbers."""
    return FileId(InodeId(inode), VersionId(version))
