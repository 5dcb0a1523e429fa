"""What can be written from this machine: where the quotas, the store or its workers end.

Owns the rule by which statfs counts workers. What is written lies on a worker of this machine first. With the policies `back` and
`cache` it stays there until the store has it, or for good, so its room is what there is. With `through` each file goes on to the
store when it is closed, so what the worker has matters only when next to nothing is left of it. A pure function.
"""

from collections.abc import Sequence

from alluxio_like.rpc.messages import FsTotals
from alluxio_like.rpc.messages_writing import WriteMode
from alluxio_like.types import Space, Worker

LITTLE_BYTES = 1 << 30
"""A worker with less than this is where writing ends, whatever the store has. A guess."""


def limit_space(totals: FsTotals, workers: Sequence[Worker]) -> Space | None:
    """The space at the inode that was asked about; None: nothing is known to limit it. `workers`: those of this machine."""
    if not totals.policy or not workers:
        return totals.space
    # A file goes to one of them, and its inode says to which.
    free = sum(worker.writable_bytes for worker in workers)
    if totals.policy == WriteMode.THROUGH and free >= LITTLE_BYTES:
        return totals.space
    if totals.space is None:
        return Space(sum(worker.capacity_bytes for worker in workers), free)
    space = totals.space
    return Space(space.total_bytes, min(space.free_bytes, free), space.total_files, space.free_files)
