"""Which worker holds which blocks: memory only, rebuilt from the workers' reports.

Owns the map and its totals; does not know names, sizes or placement. Compact: a file of one block whose pages are there from the
first on (every wholly cached file up to 64 MiB) costs 8 bytes a copy, one word in an array indexed by inode; anything else one
object a copy, with 12 bytes a block. Nothing is an object per block.

A worker's full report builds a new generation of that worker beside the old one and replaces it at once when it is complete;
changes that arrive meanwhile count for both. What a gone generation left is passed over, and swept out later, a few chunks at a
time (`sweep_some`), since the map may have a hundred million slots and nobody else runs meanwhile.

Single-threaded: used from the event loop alone; no method awaits.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from alluxio_like.types import BLOCK_BYTES, PAGE_BYTES, FileId, InodeId, VersionId, WorkerId

_CHUNK_BITS = 12
"""4,096 inodes: of 100 million files 24,000 chunks, whose objects stay in the processor's cache (with 1,024 reports take twice as
long); a chunk of which one file is cached costs 32 KiB."""
_CHUNK = 1 << _CHUNK_BITS
_CHUNK_MASK = _CHUNK - 1
_SIZE_BITS = 27
_SIZE_MASK = (1 << _SIZE_BITS) - 1
_INDEX_SHIFT = _SIZE_BITS + 16
_MAX_SLOT_VERSION = (1 << 16) - 1
_MAX_GENERATIONS = (1 << 16) - 1
_SWEEP_AFTER = 64
"""Gone generations before a sweep pays (a guess: it looks at the whole map)."""
_SWEEP_PART = 16
"""Or when so large a part of the map is of gone ones."""
_FILES_A_CHUNK = 32
"""Files with extents that take as long to sweep as a chunk (a guess)."""
SWEEP_CHUNKS = 8
"""Chunks swept in one step: about 2 ms."""


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
    """One report's worth of a worker; `live` only while it is the worker's current one, `gone` once it is not."""

    index: int
    worker_id: WorkerId
    gone: bool = False
    bytes: int = 0
    blocks: int = 0


def _make_layer() -> "array[int]":
    """The n-th copy of each file in a chunk: generation (16 bits; 0: a free slot), version (16) and bytes (27) in a word."""
    return array("Q", bytes(8 * _CHUNK))


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


class BlockMap:
    """The map; see the module."""

    def __init__(self) -> None:
        self._chunks: dict[int, list[array[int]]] = {}
        """Layers of each chunk of inodes: see `_make_layer`."""
        self._extents: dict[FileId, dict[int, _Extents]] = {}
        self._extended: Counter[int] = Counter()
        """Inodes that have extents of any version, and of how many copies."""
        self._generations: dict[int, _Generation] = {}
        self._current: dict[WorkerId, _Generation] = {}
        self._building: dict[WorkerId, tuple[str, _Generation, list[BlockDelta]]] = {}
        self._next_index = 1
        self._sweep: tuple[frozenset[int], list[int], list[FileId]] | None = None
        """Under way: the generations that it removes, and the chunks and files with extents that it has still to look at."""

    # -- reports -------------------------------------------------------------------------------------------------------

    def begin_report(self, worker_id: WorkerId, session_id: str) -> None:
        """A full report begins; one begun before and not finished is forgotten."""
        self.abort_report(worker_id)
        self._building[worker_id] = (session_id, self._make_generation(worker_id), [])

    def add_report(self, worker_id: WorkerId, session_id: str, blocks: Iterable[BlockDelta]) -> bool:
        """A part of the report; False when another one was begun since, whose parts alone count."""
        building = self._building.get(worker_id)
        if building is None or building[0] != session_id:
            return False
        generation = building[1]
        for delta in blocks:
            self._apply(generation, delta)
        return True

    def add_whole_files(self, worker_id: WorkerId, session_id: str, files: WholeFiles) -> bool:
        """`add_report` for files of the usual kind, five times as fast. Raises ValueError for columns that cannot be."""
        building = self._building.get(worker_id)
        if building is None or building[0] != session_id:
            return False
        inodes, versions, sizes = files
        if not len(inodes) == len(versions) == len(sizes) or (sizes and not 0 < min(sizes) <= max(sizes) <= BLOCK_BYTES):
            raise ValueError("columns of a block report that do not fit each other")
        generation = building[1]
        mine, chunks, extended = generation.index << _INDEX_SHIFT, self._chunks, self._extended
        odd: list[tuple[int, int, int]] = []
        for inode, version, size in zip(inodes, versions, sizes, strict=True):
            layers = chunks.get(inode >> _CHUNK_BITS)
            if layers is None:
                layers = chunks[inode >> _CHUNK_BITS] = [_make_layer()]
            slot = inode & _CHUNK_MASK
            free = None
            for layer in layers:
                word = layer[slot]
                if not word:
                    free = free or layer
                elif word >> _INDEX_SHIFT == generation.index:
                    free = None
                    break
            if free is None or version > _MAX_SLOT_VERSION or inode in extended:
                odd.append((inode, version, size))
            else:
                free[slot] = mine | version << _SIZE_BITS | size
        blocks, total = len(inodes) - len(odd), sum(sizes) - sum(size for _, _, size in odd)
        self._count(generation, blocks, total)
        for inode, version, size in odd:
            bits = (1 << -(-size // PAGE_BYTES)) - 1
            self._apply(generation, BlockDelta(make_file_id(inode, version), 0, bits, size))
        return True

    def finish_report(self, worker_id: WorkerId, session_id: str) -> bool:
        """The report replaces what was known of the worker; False when another one was begun since."""
        building = self._building.get(worker_id)
        if building is None or building[0] != session_id:
            return False
        del self._building[worker_id]
        _, generation, journal = building
        for delta in journal:
            self._apply(generation, delta)
        self._retire(self._current.get(worker_id))
        self._current[worker_id] = generation
        return True

    def abort_report(self, worker_id: WorkerId) -> None:
        """Forget a report that was not finished."""
        building = self._building.pop(worker_id, None)
        if building is not None:
            self._retire(building[1])

    def apply_changes(self, worker_id: WorkerId, changes: Iterable[BlockDelta]) -> None:
        """Changes since the last report or the last changes. Changes to a worker that never reported are taken as its first."""
        generation = self._current.get(worker_id)
        if generation is None:
            generation = self._current[worker_id] = self._make_generation(worker_id)
        building = self._building.get(worker_id)
        for delta in changes:
            self._apply(generation, delta)
            if building is not None:
                building[2].append(delta)

    def drop_worker(self, worker_id: WorkerId) -> None:
        """Forget all that a worker holds."""
        self.abort_report(worker_id)
        self._retire(self._current.pop(worker_id, None))

    def drop_file(self, file_id: FileId) -> None:
        """Forget all copies of a file (its workers will say so too)."""
        for generation in list(self._generations.values()):
            if not generation.gone:
                for block, _, _ in self._get_blocks(generation, file_id):
                    self._apply(generation, BlockDelta(file_id, block, 0, 0))

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
        return list(self._chunks.keys() | {file_id.inode >> _CHUNK_BITS for file_id in self._extents})

    def list_files(self, part: int) -> set[FileId]:
        """The files in one part of the map, copies of gone generations left out."""
        first = part << _CHUNK_BITS
        found: set[FileId] = set()
        for layer in self._chunks.get(part, ()):
            for slot, word in enumerate(layer):
                if word and not self._generations[word >> _INDEX_SHIFT].gone:
                    found.add(make_file_id(first + slot, word >> _SIZE_BITS & _MAX_SLOT_VERSION))
        if self._extended:
            inodes = [inode for inode in range(first, first + _CHUNK) if inode in self._extended]
            if inodes:
                found.update(file_id for file_id in self._extents if first <= file_id.inode < first + _CHUNK)
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
        slots = sum(len(layers) for layers in self._chunks.values()) * _CHUNK * 8
        return slots + sum(400 + 12 * len(e.bits) for copies in self._extents.values() for e in copies.values())

    # -- inside --------------------------------------------------------------------------------------------------------

    def _make_generation(self, worker_id: WorkerId) -> _Generation:
        if len(self._generations) == _MAX_GENERATIONS:
            self.sweep()
        while self._next_index in self._generations:
            self._next_index = self._next_index % _MAX_GENERATIONS + 1
        generation = _Generation(self._next_index, worker_id)
        self._generations[generation.index] = generation
        self._next_index = self._next_index % _MAX_GENERATIONS + 1
        return generation

    def _retire(self, generation: _Generation | None) -> None:
        if generation is not None and not generation.gone:
            generation.gone = True

    def sweep(self) -> None:
        """Remove all that gone generations left, so that their numbers can be used again; long for a large map."""
        while self.sweep_some(len(self._chunks) + len(self._extents) + 1, force=True):
            pass

    def sweep_some(self, chunks: int = SWEEP_CHUNKS, *, force: bool = False) -> bool:
        """A step of a sweep, which is begun where it pays (`force`: where there is anything); whether there is more to do."""
        if self._sweep is None:
            ended = [generation for generation in self._generations.values() if generation.gone]
            waste = sum(generation.blocks for generation in ended)
            held = sum(generation.blocks for generation in self._current.values())
            if not ended or not (force or len(ended) >= _SWEEP_AFTER or waste * _SWEEP_PART > held):
                return False
            gone = frozenset(generation.index for generation in ended)
            self._sweep = (gone, list(self._chunks), list(self._extents))
        gone, numbers, files = self._sweep
        for number in numbers[-chunks:]:
            self._sweep_chunk(number, gone)
        del numbers[-chunks:]
        if numbers:
            return True
        for file_id in files[-chunks * _FILES_A_CHUNK :]:
            for index in gone & self._extents.get(file_id, {}).keys():
                self._drop_extents(file_id, index)
        del files[-chunks * _FILES_A_CHUNK :]
        if files:
            return True
        for index in gone:
            del self._generations[index]
        self._sweep = None
        return False

    def _sweep_chunk(self, number: int, gone: frozenset[int]) -> None:
        kept = []
        for layer in self._chunks.get(number, ()):
            words = array("Q", [0 if word >> _INDEX_SHIFT in gone else word for word in layer])
            if any(words):
                kept.append(words)
        if kept:
            self._chunks[number] = kept
        else:
            self._chunks.pop(number, None)

    def _iter_copies(self, file_id: FileId) -> Iterator[tuple[int, int, int, int]]:
        """(generation, block, bits, bytes) of every copy, those of gone generations left out."""
        slot = file_id.inode & _CHUNK_MASK
        for layer in self._chunks.get(file_id.inode >> _CHUNK_BITS, ()):
            word = layer[slot]
            index = word >> _INDEX_SHIFT
            if word and word >> _SIZE_BITS & _MAX_SLOT_VERSION == file_id.version and not self._generations[index].gone:
                size = word & _SIZE_MASK
                yield index, 0, (1 << -(-size // PAGE_BYTES)) - 1, size
        for index, extents in self._extents.get(file_id, {}).items():
            if not self._generations[index].gone:
                for block, bits in enumerate(extents.bits):
                    if bits:
                        yield index, block, bits, extents.sizes[block]

    def _get_blocks(self, generation: _Generation, file_id: FileId) -> list[tuple[int, int, int]]:
        return [(block, bits, size) for index, block, bits, size in self._iter_copies(file_id) if index == generation.index]

    def _apply(self, generation: _Generation, delta: BlockDelta) -> None:
        """Make one copy of one block what the delta says."""
        file_id, block = delta.file_id, delta.block
        copies = self._extents.get(file_id)
        extents = copies.get(generation.index) if copies is not None else None
        if extents is None:
            old = self._find_slot(generation, file_id)
            if old is not None:
                layer, slot = old
                word = layer[slot]
                old_size = word & _SIZE_MASK
                if block == 0:
                    self._count(generation, -1, -old_size)
                layer[slot] = 0
                if block != 0 and delta.bits:
                    self._put_extent(generation, file_id, 0, (1 << -(-old_size // PAGE_BYTES)) - 1, old_size)
                    extents = self._extents[file_id][generation.index]
                elif block != 0:
                    layer[slot] = word
                    return
        else:
            old_bits, old_bytes = extents.get(block)
            if old_bits:
                self._count(generation, -1, -old_bytes)
        if delta.bits:
            self._count(generation, 1, delta.bytes)
        slot_fits = block == 0 and file_id.version <= _MAX_SLOT_VERSION and _is_prefix(delta.bits, delta.bytes)
        if extents is None and slot_fits:
            self._put_slot(generation, file_id, delta.bytes)
        elif extents is not None or delta.bits:
            self._put_extent(generation, file_id, block, delta.bits, delta.bytes)
            self._fold(generation, file_id)

    def _count(self, generation: _Generation, blocks: int, size: int) -> None:
        generation.blocks += blocks
        generation.bytes += size

    def _find_slot(self, generation: _Generation, file_id: FileId) -> "tuple[array[int], int] | None":
        if file_id.version > _MAX_SLOT_VERSION:
            return None
        slot = file_id.inode & _CHUNK_MASK
        wanted = generation.index << 16 | file_id.version
        for layer in self._chunks.get(file_id.inode >> _CHUNK_BITS, ()):
            if layer[slot] >> _SIZE_BITS == wanted:
                return layer, slot
        return None

    def _put_slot(self, generation: _Generation, file_id: FileId, size: int) -> None:
        layers = self._chunks.setdefault(file_id.inode >> _CHUNK_BITS, [])
        slot = file_id.inode & _CHUNK_MASK
        for layer in layers:
            word = layer[slot]
            if not word or self._generations[word >> _INDEX_SHIFT].gone:
                break
        else:
            layer = _make_layer()
            layers.append(layer)
        layer[slot] = generation.index << _INDEX_SHIFT | file_id.version << _SIZE_BITS | size

    def _put_extent(self, generation: _Generation, file_id: FileId, block: int, bits: int, size: int) -> None:
        copies = self._extents.setdefault(file_id, {})
        extents = copies.get(generation.index)
        if extents is None:
            extents = copies[generation.index] = _Extents()
            self._extended[file_id.inode] += 1
        extents.set(block, bits, size)

    def _drop_extents(self, file_id: FileId, index: int) -> None:
        copies = self._extents[file_id]
        del copies[index]
        if not copies:
            del self._extents[file_id]
        self._extended[file_id.inode] -= 1
        if not self._extended[file_id.inode]:
            del self._extended[file_id.inode]

    def _fold(self, generation: _Generation, file_id: FileId) -> None:
        """Give up an extent record that is empty or that a slot can describe."""
        copies = self._extents[file_id]
        extents = copies[generation.index]
        while extents.bits and not extents.bits[-1]:
            extents.bits.pop()
            extents.sizes.pop()
        count = len(extents.bits)
        fits = count == 1 and file_id.version <= _MAX_SLOT_VERSION and _is_prefix(extents.bits[0], extents.sizes[0])
        if count and not fits:
            return
        if fits:
            self._put_slot(generation, file_id, extents.sizes[0])
        self._drop_extents(file_id, generation.index)


def make_file_id(inode: int, version: int) -> FileId:
    """A FileId from plain numbers."""
    return FileId(InodeId(inode), VersionId(version))
