"""What stores do not have yet, for who asks: sums and names of it, and having it uploaded.

Owns which worker is asked to upload a file; the records are core's (unpersisted.py). Event loop alone; the walks over what is
dirty go on in threads, over snapshots.
"""

import asyncio
import logging
from collections.abc import Mapping

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import conflicts, namespace, tables, unpersisted
from alluxio_like.master.follower import Follower
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.worker_pool import WorkerPool
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages_writing import Persisting, Unpersisted, WriteMode
from alluxio_like.types import ROOT_INODE, InodeId, MountId, WorkerId

log = logging.getLogger(__name__)

COUNT_INTERVAL_S = 10.0
_ASKED_AT_ONCE = 10_000
_SHOWN = 20


class UnpersistedFiles:
    """See the module."""

    def __init__(self, meta: MetaStore, mounts: MountTable, pool: WorkerPool, follower: Follower, metrics: Metrics) -> None:
        self._meta = meta
        self._mounts = mounts
        self._pool = pool
        self._follower = follower
        self._metrics = metrics

    async def summarize(self, top: InodeId, limit: int) -> Unpersisted:
        """At and below an inode."""
        return await asyncio.to_thread(self._summarize, top, limit)

    def _summarize(self, top: InodeId, limit: int) -> Unpersisted:
        with self._meta.read() as txn:

            def is_kept(mount_id: MountId, key: str) -> bool:
                return self._mounts.find_policy(txn, mount_id, key).policy.mode is WriteMode.CACHE

            sums, some = unpersisted.summarize(txn, top, is_kept, limit)
            paths = tuple(namespace.get_path(txn, inode) for inode in some)
            mounted = self._list_mounts(txn, top)
            steps = sum(unpersisted.count_steps(txn, mount_id) for mount_id in mounted)
            beside = [inode for inode, _ in conflicts.list_conflicts(txn) if tables.is_below(txn, inode, top)]
            shown = tuple(namespace.get_path(txn, inode) for inode in beside)
        trouble = next((text for one in mounted if (text := self._follower.describe_trouble(one))), "")
        return Unpersisted(sums.files, sums.size_bytes, paths, steps, trouble, sums.kept_files, sums.kept_bytes, shown)

    def _list_mounts(self, txn: ReadTransaction, top: InodeId) -> list[MountId]:
        """Those that an inode is in or above of."""
        mine = tables.get_inode(txn, top).mount_id
        known = self._mounts.list_ids()
        return [one for one in known if one == mine or tables.is_below(txn, self._mounts.get_record(one).root, top)]

    def list_warnings(self, found: Unpersisted) -> list[str]:
        """What a person should hear of."""
        troubles = [(self._mounts.get_record(one).path, self._follower.describe_trouble(one)) for one in self._mounts.list_ids()]
        lines = [f"mount {path}: the store does not follow, and is tried again: {why}" for path, why in troubles if why]
        more = f", and {len(found.conflicts) - _SHOWN} more" if len(found.conflicts) > _SHOWN else ""
        if found.conflicts:
            shown = ", ".join(found.conflicts[:_SHOWN])
            lines.append(f"kept beside what others have put in their places, to be renamed or removed: {shown}{more}")
        return lines

    async def persist(self, top: InodeId) -> Persisting:
        """Have who holds them upload all files at and below an inode."""
        by_holder, out_of_reach = await asyncio.to_thread(self._find_holders, top)
        count = 0
        for worker_id, inodes in by_holder.items():
            try:
                drafts = self._pool.get_drafts(worker_id)
                for start in range(0, len(inodes), _ASKED_AT_ONCE):
                    count += await drafts.persist(inodes[start : start + _ASKED_AT_ONCE])
            except errors.AlluxioLikeError as error:
                log.warning("a worker was not told to upload", extra={"worker": worker_id, "error": str(error)})
                out_of_reach += len(inodes)
        return Persisting(count, out_of_reach)

    def _find_holders(self, top: InodeId) -> tuple[Mapping[WorkerId, list[InodeId]], int]:
        by_holder: dict[WorkerId, list[InodeId]] = {}
        out_of_reach = 0
        live = set(self._pool.list_live())
        with self._meta.read() as txn:
            for found in unpersisted.iter_files(txn, top):
                holders = [WorkerId(one) for one in found.dirty.holders if one in live]
                if holders:
                    by_holder.setdefault(holders[0], []).append(found.inode)
                elif found.dirty.holders:
                    out_of_reach += 1
        return by_holder, out_of_reach

    async def count_always(self) -> None:
        """Keep the metrics up to date, and forget conflicts that were settled; a chore that runs for ever."""
        while True:
            try:
                await self._count()
            except Exception:
                log.exception("a chore failed")
            await asyncio.sleep(COUNT_INTERVAL_S)

    async def _count(self) -> None:
        found = await self.summarize(ROOT_INODE, 0)
        self._metrics.namespace_unpersisted_files.set(found.files)
        self._metrics.namespace_unpersisted_bytes.set(found.size_bytes)
        self._metrics.journal_steps.set(found.steps)
        with self._meta.read() as txn:
            settled = conflicts.has_settled(txn)
        self._metrics.write_conflicts.set(len(found.conflicts))
        if settled:
            await self._meta.write(conflicts.purge)
