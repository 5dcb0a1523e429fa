"""Which workers are home to a file or a block: weighted rendezvous hashing.

Pure: the same workers give the same answer in every process, so nobody has to be asked. A join or a leave moves only that
worker's share. Scores follow the weighted form of highest random weight hashing, -weight / ln(u) with u uniform in (0, 1)
(Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005; the hash is xxh3-64). Safe from any thread.
"""

import math
from collections.abc import Iterable

import xxhash

from alluxio_like.types import FileId, Worker, WorkerId

_TWO_53 = 1 << 53


def compute_score(worker: Worker, file_id: FileId, block: int | None) -> float:
    """How strongly a worker attracts a file (`block` None: placed whole) or one block of it; higher wins."""
    text = f"{worker.worker_id}/{file_id.inode}/{file_id.version}/{'' if block is None else block}"
    uniform = ((xxhash.xxh3_64_intdigest(text.encode()) >> 11) + 0.5) / _TWO_53
    return -max(worker.capacity_bytes, 1) / math.log(uniform)


def rank_workers(workers: Iterable[Worker], file_id: FileId, block: int | None) -> list[Worker]:
    """Live workers, the strongest home first; ties (there are none in practice) by id."""
    live = [worker for worker in workers if worker.live]
    return sorted(live, key=lambda worker: (-compute_score(worker, file_id, block), worker.worker_id))


def get_placement_unit(size: int, block: int, whole_file_limit_bytes: int) -> int | None:
    """What `rank_workers` takes as block: None for a file placed whole, else the block's number."""
    return None if size <= whole_file_limit_bytes else block


def get_homes(
    workers: Iterable[Worker], file_id: FileId, size: int, block: int, whole_file_limit_bytes: int, replicas: int = 1
) -> list[WorkerId]:
    """The `replicas` workers that are home to a block; fewer when fewer live."""
    unit = get_placement_unit(size, block, whole_file_limit_bytes)
    return [worker.worker_id for worker in rank_workers(workers, file_id, unit)[:replicas]]
