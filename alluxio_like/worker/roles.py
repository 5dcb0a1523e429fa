"""Roles after workers came or went: a guest whose home this worker has become is home.

Owns that scan. The reverse, homes that placement has moved elsewhere, stay as they are: they may be replicas that a load asked
for, and they go when nobody reads them. Blocking; for one thread at a time.
"""

from alluxio_like.cache.file import Role
from alluxio_like.cache.store import CacheStore
from alluxio_like.placement import get_homes
from alluxio_like.types import Cluster, FileId
from alluxio_like.worker.evictor import Evictor


def promote_guests(store: CacheStore, evictor: Evictor, cluster: Cluster) -> None:
    """Make home every guest that placement puts on this worker. Looks at guests alone, so it is quick where there are few."""
    mine: list[FileId] = []
    for info in store.iter_files():
        if info.role is Role.GUEST:
            homes = get_homes(cluster.workers, info.file_id, info.size, 0, cluster.whole_file_limit_bytes)
            if homes and homes[0] == store.worker_id:
                mine.append(info.file_id)
    if not mine:
        return
    store.set_role(mine, Role.HOME)
    for file_id in mine:
        if (cached := store.lookup(file_id)) is not None:
            evictor.record_state(cached)
