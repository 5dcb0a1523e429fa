"""How much room there is at an inode: what its quotas leave, and what its store has.

Owns the measuring of stores, each at most once a second and never for long: who waits for statfs gets what was known before. Rule
of concurrency: event loop alone.
"""

import asyncio

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import keys, quotas, records, tables, usage
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.core.quotas import Room
from alluxio_like.master.core.records import Inode
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.snapshot_trees import is_frozen
from alluxio_like.rpc.messages import FsTotals
from alluxio_like.types import InodeId, MountId, Space
from alluxio_like.ufs.measuring import MeasuredUfs

MEASURED_S = 1.0
_PATIENCE_S = 0.5
"""Who waits for statfs waits for a store no longer. A guess."""


class Spaces:
    """See the module."""

    def __init__(self, meta: MetaStore, mounts: MountTable, *, clock: Clock) -> None:
        self._meta = meta
        self._mounts = mounts
        self._clock = clock
        self._known: dict[MountId, tuple[Space | None, float]] = {}
        self._measuring: dict[MountId, asyncio.Task[None]] = {}

    async def add_room(self, totals: FsTotals, inode: InodeId) -> FsTotals:
        """Totals with what is so at an inode. One that is not there, or frozen, has no room of its own to tell."""
        with self._meta.read() as txn:
            record = None if is_frozen(inode) else tables.lookup_inode(txn, inode)
            if record is None:
                return totals
            room = quotas.get_room(txn, inode)
            policy = self._get_policy(txn, inode, record)
            has_quotas = usage.is_on(txn)
        space = await self._measure(record.mount_id) if record.mount_id != NO_MOUNT else None
        return FsTotals(
            totals.files,
            totals.known_bytes,
            totals.capacity_bytes,
            totals.used_bytes,
            _limit(space, room, totals),
            policy,
            room.free_bytes,
            has_quotas,
        )

    def _get_policy(self, txn: ReadTransaction, inode: InodeId, record: Inode) -> str:
        if record.mount_id == NO_MOUNT or record.flags & records.ORPHAN:
            return ""
        if self._mounts.get_record(record.mount_id).read_only:
            return ""
        key = keys.get_key(txn, inode, record, natural=True)
        return self._mounts.find_policy(txn, record.mount_id, key).policy.mode.value

    async def _measure(self, mount_id: MountId) -> Space | None:
        known, until = self._known.get(mount_id, (None, 0.0))
        if self._clock.monotonic() < until:
            return known
        task = self._measuring.get(mount_id)
        if task is None:
            task = self._measuring[mount_id] = asyncio.create_task(self._ask(mount_id))
            task.add_done_callback(lambda _: self._measuring.pop(mount_id, None))
        await asyncio.wait([task], timeout=_PATIENCE_S)
        return self._known.get(mount_id, (None, 0.0))[0]

    async def _ask(self, mount_id: MountId) -> None:
        space = self._known.get(mount_id, (None, 0.0))[0]
        try:
            ufs = self._mounts.get_ufs(mount_id)
            if isinstance(ufs, MeasuredUfs):
                measured = await ufs.measure()
                # (One that says zero does not know: a Ceph without a manager.)
                space = measured if measured.total_bytes else None
        except errors.AlluxioLikeError:
            pass  # what was known before must do
        self._known[mount_id] = (space, self._clock.monotonic() + MEASURED_S)

    async def close(self) -> None:
        """Let go of what is asked. Does not raise."""
        for task in list(self._measuring.values()):
            task.cancel()
        await asyncio.gather(*self._measuring.values(), return_exceptions=True)


def _limit(space: Space | None, room: Room, totals: FsTotals) -> Space | None:
    """A store's space as quotas leave it: a place with a quota is as large as that."""
    if room.max_bytes is None and room.max_files is None:
        return space
    total_bytes, free_bytes = (space.total_bytes, space.free_bytes) if space is not None else (0, 0)
    total_files, free_files = (space.total_files, space.free_files) if space is not None else (0, 0)
    if room.max_bytes is not None:
        assert room.free_bytes is not None
        # (Where the store has less than the quota leaves, that is what can be written.)
        free_bytes = room.free_bytes if space is None else min(space.free_bytes, room.free_bytes)
        total_bytes = max(room.max_bytes, free_bytes)
    elif space is None:
        total_bytes = UNLIMITED_BYTES * (2 + totals.known_bytes // UNLIMITED_BYTES)
        free_bytes = total_bytes - totals.known_bytes
    if room.max_files is not None:
        assert room.free_files is not None
        free_files = min(free_files, room.free_files) if total_files else room.free_files
        total_files = max(room.max_files, free_files)
    return Space(total_bytes, free_bytes, total_files, free_files)


UNLIMITED_BYTES = 1 << 50
"""What is shown as free where nothing is known to limit it: other clients of object stores show as much."""
