"""What this worker knows of the others, and whether a file or block is its own to keep.

Owns the latest view of the cluster. Pure arithmetic over it; asks nobody. Rule of concurrency: the event loop only.
"""

from collections import OrderedDict

from alluxio_like.placement import get_placement_unit, rank_workers
from alluxio_like.types import Cluster, FileId, FileRef, Worker, WorkerId

_PROBE_WINDOW = 32
"""After so many probes in a row that found nothing only one in so many files is probed, until the cluster changes. A guess."""
_COPIES_TRIED = 3
"""A policy of more copies than that is rare. A guess."""


class ClusterView:
    """The workers of the moment as seen from `worker_id`. Without any view yet, everything is this worker's."""

    def __init__(self, worker_id: WorkerId) -> None:
        self.worker_id = worker_id
        self.cluster: Cluster | None = None
        self._ranks: OrderedDict[tuple[FileId, int | None], tuple[Worker, ...]] = OrderedDict()
        self._misses = 0
        self._files = 0

    @property
    def epoch(self) -> int:
        return self.cluster.epoch if self.cluster else 0

    def set_cluster(self, cluster: Cluster) -> None:
        """A newer view."""
        self.cluster = cluster
        self._ranks.clear()
        self._misses = 0

    def is_home(self, ref: FileRef, block: int) -> bool:
        """Whether placement puts this block here."""
        ranked = self._rank(ref, block)
        return not ranked or ranked[0].worker_id == self.worker_id

    def get_home(self, ref: FileRef, block: int) -> Worker | None:
        """The other worker that is home to a block; None when it is this one."""
        ranked = self._rank(ref, block)
        return None if not ranked or ranked[0].worker_id == self.worker_id else ranked[0]

    def list_holders(self, ref: FileRef) -> list[Worker]:
        """Other live workers of those that have a content which the store does not have; behind them those to which copies of it
        would be given: who asks may not have heard of copies that were made since, nor this worker of one that died just now."""
        workers = () if self.cluster is None else self.cluster.workers
        others = [one for one in workers if one.live and one.worker_id != self.worker_id]
        rest = [one for one in others if one.worker_id not in ref.holders]
        copies = rank_workers(rest, ref.file_id, None)[:_COPIES_TRIED]
        return [*(one for one in others if one.worker_id in ref.holders), *copies]

    def choose_probe(self, ref: FileRef, block: int) -> Worker | None:
        """A worker that may hold what this one, its home, has not got: whoever was home before this one joined.

        None when there is none, or when asking found nothing of late.
        """
        ranked = self._rank(ref, block)
        if len(ranked) < 2 or ranked[0].worker_id != self.worker_id:
            return None
        self._files += 1
        if self._misses >= _PROBE_WINDOW and self._files % _PROBE_WINDOW:
            return None
        return ranked[1]

    def note_probe(self, found: bool) -> None:
        """What came of a probe."""
        self._misses = 0 if found else self._misses + 1

    def is_block_placed(self, ref: FileRef) -> bool:
        """Whether the file's blocks have homes of their own."""
        return self.cluster is not None and ref.size > self.cluster.whole_file_limit_bytes

    def _rank(self, ref: FileRef, block: int) -> tuple[Worker, ...]:
        if self.cluster is None or len(self.cluster.workers) < 2:
            return ()
        unit = get_placement_unit(ref.size, block, self.cluster.whole_file_limit_bytes)
        key = (ref.file_id, unit)
        ranked = self._ranks.get(key)
        if ranked is None:
            ranked = tuple(rank_workers(self.cluster.workers, ref.file_id, unit))[:2]
            self._ranks[key] = ranked
            if len(self._ranks) > 4096:
                self._ranks.popitem(last=False)
        return ranked
