"""Uploads, as the master sees them: where versions are to go, and that stores have them.

Owns what core leaves to its caller: what is waited for, that one bad version keeps no other away, durability, and with the
follower the keys that are kept free meanwhile. Event loop alone.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import tables, versions
from alluxio_like.master.empty_files import EmptyFiles
from alluxio_like.master.follower import Follower, wait_until
from alluxio_like.master.meta_store import MetaStore, run_to_end
from alluxio_like.rpc.messages_writing import Persisted, UploadPlan
from alluxio_like.types import FileId
from alluxio_like.ufs.object_attributes import make_metadata

log = logging.getLogger(__name__)

MOST = 1024
"""Versions in one call."""
_PLANNED_TOGETHER = 64
"""Then others have their turn. A guess: some milliseconds."""


class Uploads:
    """See the module. `get_wait_s`: how long the call that is being answered may wait."""

    def __init__(
        self, meta: MetaStore, follower: Follower, empty: EmptyFiles, get_wait_s: Callable[[], float], *, clock: Clock
    ) -> None:
        self._meta = meta
        self._follower = follower
        self._empty = empty
        self._get_wait_s = get_wait_s
        self._clock = clock

    async def plan(self, file_id: FileId) -> UploadPlan:
        """See rpc.changes.ChangesHandler; waits for the store to follow far enough."""
        deadline = self._clock.monotonic() + self._get_wait_s()
        while True:
            progress = self._follower.progress
            try:
                with self._meta.read() as txn:
                    return self._plan(txn, file_id)
            except errors.Unavailable:
                if not await wait_until(progress, deadline - self._clock.monotonic()):
                    raise

    async def plan_many(self, file_ids: Sequence[FileId]) -> list[UploadPlan | errors.AlluxioLikeError]:
        """See rpc.changes.ChangesHandler."""
        _check_count(len(file_ids))
        planned: list[UploadPlan | errors.AlluxioLikeError] = []
        for start in range(0, len(file_ids), _PLANNED_TOGETHER):
            with self._meta.read() as txn:
                for file_id in file_ids[start : start + _PLANNED_TOGETHER]:
                    try:
                        planned.append(self._plan(txn, file_id))
                    except Exception as error:  # noqa: BLE001 (told of the version whose it is)
                        planned.append(_describe(error, file_id))
            await asyncio.sleep(0)
        return planned

    def _plan(self, txn: ReadTransaction, file_id: FileId) -> UploadPlan:
        # (Of a version that is not wanted any more the store may have something: its key stays taken until who sent it says so.)
        plan = versions.plan_upload(txn, file_id.inode, file_id.version)
        record = tables.get_inode(txn, file_id.inode)
        metadata = make_metadata(record.mode, record.uid, record.gid, record.mtime_ns)
        if self._empty.is_putting(file_id.inode):
            raise errors.Unavailable("the file is just being put as it was made", subject=plan.key)
        self._follower.begin_upload(file_id, plan.mount_id, plan.key)
        return UploadPlan(plan.mount_id, plan.key, plan.expected, metadata)

    async def note_persisted(self, persisted: Sequence[Persisted]) -> list[errors.AlluxioLikeError | None]:
        """See rpc.changes.ChangesHandler."""
        _check_count(len(persisted))
        return await run_to_end(self._note_persisted(persisted))

    async def _note_persisted(self, persisted: Sequence[Persisted]) -> list[errors.AlluxioLikeError | None]:
        failed: dict[int, errors.AlluxioLikeError] = {}
        await self._note_all(persisted, range(len(persisted)), failed)
        for number, one in enumerate(persisted):
            if number not in failed:
                self._follower.end_upload(one.file_id)
        self._follower.wake()
        await self._meta.flush()
        return [failed.get(number) for number in range(len(persisted))]

    async def _note_all(
        self, persisted: Sequence[Persisted], wanted: Sequence[int], failed: dict[int, errors.AlluxioLikeError]
    ) -> None:
        """All of them in one transaction, or each in its own where one cannot be noted."""
        now_ns = self._clock.now_ns()

        def apply(txn: WriteTransaction) -> None:
            for number in wanted:
                file_id, plan = persisted[number].file_id, persisted[number].plan
                core = versions.UploadPlan(plan.mount_id, plan.key, plan.expected)
                versions.note_persisted(txn, file_id.inode, file_id.version, core, persisted[number].stored, now_ns)

        try:
            await self._meta.write(apply)
        except Exception as error:  # noqa: BLE001 (found and told below, of the version whose it is)
            if len(wanted) == 1:
                failed[wanted[0]] = _describe(error, persisted[wanted[0]].file_id)
                return
        else:
            return
        for number in wanted:
            await self._note_all(persisted, [number], failed)


def _check_count(count: int) -> None:
    if count > MOST:
        raise errors.InvalidArgument(f"at most {MOST} versions in one call", subject=str(count))


def _describe(error: Exception, file_id: FileId) -> errors.AlluxioLikeError:
    if isinstance(error, errors.AlluxioLikeError):
        return error
    log.error("an upload met something that nobody foresaw", exc_info=error, extra={"inode": file_id.inode})
    return errors.Internal("see the master's log", subject=str(file_id.inode))
