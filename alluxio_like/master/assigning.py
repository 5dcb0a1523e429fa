"""Which worker gets what of a file, and what of that it has already.

Pure over the registry's view of the moment: placement says where a file's blocks belong, the block map what is there. Event loop
alone; nothing awaits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from alluxio_like.master.core.blockmap import BlockMap
from alluxio_like.master.core.jobs import Problem
from alluxio_like.master.walking import Item
from alluxio_like.master.workers import WorkerRegistry
from alluxio_like.placement import get_placement_unit, rank_workers
from alluxio_like.rpc.messages import LoadFile
from alluxio_like.types import BLOCK_BYTES, Entry, FileId, FileRef, Worker, WorkerId, get_block_count, get_full_mask


@dataclass(frozen=True, slots=True)
class Unit:
    """What one worker is to hold of one file. `blocks` empty: all. `replica` 0 fetches first, later ones from `sources`."""

    item: Item
    ref: FileRef
    worker_id: WorkerId
    blocks: tuple[int, ...]
    size: int
    replica: int
    sources: tuple[WorkerId, ...] = ()

    @property
    def file_id(self) -> FileId:
        return self.ref.file_id

    @property
    def part(self) -> "Part":
        return self.worker_id, self.blocks


FILL_FRACTION = 0.94
"""Of a worker's capacity that a job may fill: just below where eviction starts."""

Part = tuple[WorkerId, tuple[int, ...]]


@dataclass(slots=True)
class Outcome:
    """What became of a file in a pass. `gone`: the store does not have it any more, so it is not missed."""

    item: Item
    units: list[Unit] = field(default_factory=list)
    loaded: set[Part] = field(default_factory=set)
    skipped: set[Part] = field(default_factory=set)
    checked: set[Part] = field(default_factory=set)
    missed: set[Part] = field(default_factory=set)
    code: str = ""
    message: str = ""
    lost: bool = False
    gone: bool = False
    lacking: int = 0
    """Copies for which there is no worker."""

    def assign(self, workers: Sequence[Worker], replicas: int, limit_bytes: int) -> None:
        """Give it to the workers where placement puts it now."""
        self.units = assign(self.item, workers, replicas, limit_bytes)
        self.lacking = max(0, replicas - len(workers))

    @property
    def is_done(self) -> bool:
        """Every worker that is to hold some of it says that it does."""
        return bool(self.units) and all(unit.part in self.loaded or unit.part in self.skipped for unit in self.units)

    @property
    def was_there(self) -> bool:
        return all(unit.part in self.skipped for unit in self.units)

    @property
    def is_checked(self) -> bool:
        """Every worker was asked and misses no page, and there are as many workers as there are to be copies."""
        return self.is_held and not self.lacking

    @property
    def is_held(self) -> bool:
        """Every worker there is was asked and misses no page."""
        return bool(self.units) and all(unit.part in self.checked for unit in self.units)

    def checked_missing(self, unit: Unit) -> bool:
        """Whether its worker, asked, did not have all of it, whatever the block map says."""
        return unit.part in self.missed

    def fail(self, code: str, message: str, *, lost: bool = False) -> None:
        """Remember why it failed; `lost`: for a reason that is the worker's and not the file's."""
        self.code, self.message, self.lost = code, message, lost

    def forget_failure(self) -> None:
        self.code, self.message, self.lost = "", "", False

    def replace(self, entry: Entry | None) -> None:
        """The path holds another content now, or none."""
        if entry is None or entry.ref is None:
            self.gone = True
        elif self.item.entry.ref is None or entry.ref.file_id != self.item.entry.ref.file_id:
            self.item = Item(self.item.path, entry)
            for parts in (self.loaded, self.skipped, self.checked, self.missed):
                parts.clear()

    def make_problem(self) -> Problem:
        """What is said of it at the end."""
        if self.code:
            return Problem(self.item.path, self.code, self.message)
        if self.lacking:
            return Problem(self.item.path, "missing", f"{self.lacking} copies are missing: too few workers are live for them")
        return Problem(self.item.path, "missing", self.message or "pages are missing on a worker that should hold them")


def assign(item: Item, workers: Sequence[Worker], replicas: int, limit_bytes: int) -> list[Unit]:
    """The units of a file: all blocks that a worker is to hold as the same copy from the same sources are one.

    Fewer replicas where there are fewer workers.
    """
    ref = item.entry.ref
    if ref is None:
        return []
    if get_placement_unit(ref.size, 0, limit_bytes) is None:
        ranked = [worker.worker_id for worker in rank_workers(workers, ref.file_id, None)[:replicas]]
        return [Unit(item, ref, w, (), ref.size, replica, tuple(ranked[:replica])) for replica, w in enumerate(ranked)]
    blocks: dict[tuple[WorkerId, ...], list[int]] = {}
    for block in range(get_block_count(ref.size)):
        ranked = [worker.worker_id for worker in rank_workers(workers, ref.file_id, block)[:replicas]]
        for replica in range(len(ranked)):
            blocks.setdefault(tuple(ranked[: replica + 1]), []).append(block)
    return [
        Unit(item, ref, holders[-1], tuple(mine), sum(get_block_size(ref.size, b) for b in mine), len(holders) - 1, holders[:-1])
        for holders, mine in blocks.items()
    ]


def get_block_size(size: int, block: int) -> int:
    """Bytes of a block of a file of `size` bytes."""
    return min(BLOCK_BYTES, size - block * BLOCK_BYTES)


def get_cached_bytes(unit: Unit, block_map: BlockMap) -> int:
    """Bytes of a unit that its worker holds, by the block map."""
    wanted = set(unit.blocks)
    return sum(
        holding.bytes
        for holding in block_map.get_holdings(unit.file_id)
        if holding.worker_id == unit.worker_id and (not wanted or holding.block in wanted)
    )


def is_cached(unit: Unit, block_map: BlockMap) -> bool:
    """Whether the block map says that a worker holds all of its unit. An empty file is never said to be held."""
    held = {h.block: h.bits for h in block_map.get_holdings(unit.file_id) if h.worker_id == unit.worker_id}
    blocks = unit.blocks or range(get_block_count(unit.ref.size))
    return bool(held) and all(held.get(block) == get_full_mask(unit.ref.size, block) for block in blocks)


def make_load_file(unit: Unit, block_map: BlockMap, workers: Sequence[Worker]) -> LoadFile:
    """What a worker is asked to load, with the addresses of the others that hold some of it or will before this one starts."""
    wanted = set(unit.blocks)
    sources = {h.worker_id for h in block_map.get_holdings(unit.file_id) if not wanted or h.block in wanted}
    sources.update(unit.sources)
    addresses = tuple(w.address for w in workers if w.worker_id in sources and w.worker_id != unit.worker_id and w.live)
    return LoadFile(unit.ref, unit.blocks, addresses)


def _get_limit(worker: Worker) -> int:
    return int(FILL_FRACTION * (worker.capacity_bytes if worker.usable_bytes is None else worker.usable_bytes))


def get_usable(registry: WorkerRegistry, workers: Iterable[Worker], pinned: dict[WorkerId, int]) -> dict[WorkerId, int]:
    """Bytes each worker can hold of a job: what its disks leave of its capacity, less what is pinned there (the job's own,
    `pinned`, left out)."""
    usable = {}
    for known in workers:
        worker = registry.lookup_worker(known.worker_id) or known
        foreign = max(0, worker.pinned_bytes - pinned.get(worker.worker_id, 0))
        usable[worker.worker_id] = max(0, _get_limit(worker) - foreign)
    return usable


def get_free_now(workers: Iterable[Worker]) -> dict[WorkerId, int]:
    """Bytes each worker can take without evicting anything."""
    return {w.worker_id: max(0, _get_limit(w) - w.used_bytes) for w in workers}


def sum_units(units: Iterable[Unit]) -> dict[WorkerId, int]:
    """Bytes of units by worker."""
    parts: dict[WorkerId, int] = {}
    for unit in units:
        parts[unit.worker_id] = parts.get(unit.worker_id, 0) + unit.size
    return parts


def sum_by_worker(outcomes: Iterable[Outcome]) -> dict[WorkerId, int]:
    """Bytes of all units by worker."""
    return sum_units(unit for outcome in outcomes for unit in outcome.units)
