"""Empty files that nobody has begun to write: they are put at the store as they are.

Owns which new files are waited for, and their upload, which no worker has anything to do with. Event loop alone.
"""

import asyncio
import logging

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.master.asking import Asker
from alluxio_like.master.coherence import Coherence
from alluxio_like.master.core import conflicts, tables, unpersisted, versions
from alluxio_like.master.core.changes import Outcome
from alluxio_like.master.follower import AT_ONCE, Follower
from alluxio_like.master.following_store import StoreFollower
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.rpc.messages_writing import WriteMode
from alluxio_like.types import FileId, Fingerprint, InodeId, Kind, MountId, VersionId
from alluxio_like.ufs.writing import get_writable

log = logging.getLogger(__name__)

EMPTY_AFTER_S = 3.0
"""A new file whose first content has not been sealed by then is put as the empty file that it is. A guess."""


class EmptyFiles:
    """See the module."""

    def __init__(
        self,
        meta: MetaStore,
        mounts: MountTable,
        asker: Asker,
        coherence: Coherence,
        follower: Follower,
        *,
        clock: Clock,
        cluster_id: str,
    ) -> None:
        self._meta = meta
        self._mounts = mounts
        self._asker = asker
        self._coherence = coherence
        self._follower = follower
        self._clock = clock
        self._cluster_id = cluster_id
        self._created: dict[InodeId, float] = {}
        self._putting: set[InodeId] = set()

    def note_created(self, inode: InodeId) -> None:
        """A new file, of which nothing was sealed yet."""
        self._created[inode] = self._clock.monotonic() + EMPTY_AFTER_S

    def is_putting(self, inode: InodeId) -> bool:
        """Whether a file is just being put: nothing else is to be uploaded there meanwhile."""
        return inode in self._putting

    async def lookup_put(self, mount_id: MountId, key: str, inode: InodeId) -> Fingerprint | None:
        """What is at a key, if that is a file that was put from here, which a master that was killed did not come to record."""
        ufs = get_writable(self._mounts.get_ufs(mount_id))
        return await StoreFollower(ufs, await ufs.get_capabilities(), self._cluster_id).lookup_empty(key, inode)

    def note_sealed(self, inode: InodeId) -> None:
        self._created.pop(inode, None)

    async def run(self) -> None:
        """Put what is to be put, for ever."""
        with self._meta.read() as txn:
            for found in unpersisted.iter_files(txn):
                if not found.dirty.holders and found.record.size == 0:
                    self.note_created(found.inode)
        while True:
            await asyncio.sleep(EMPTY_AFTER_S / 2)
            now_s = self._clock.monotonic()
            due = [inode for inode, due_s in self._created.items() if due_s <= now_s]
            for start in range(0, len(due), AT_ONCE):
                await asyncio.gather(*map(self._put_empty, due[start : start + AT_ONCE]))

    async def _put_empty(self, inode: InodeId) -> None:
        """Put a file that was made and not written to: it is empty at the store too."""
        file_id = FileId(inode, VersionId(1))
        try:
            with self._meta.read() as txn:
                record = tables.lookup_inode(txn, inode)
                if record is None or record.kind is not Kind.FILE or tables.get_dirty(txn, inode).holders:
                    self._created.pop(inode, None)
                    return
                plan = versions.plan_upload(txn, inode, VersionId(1))
                if self._mounts.find_policy(txn, plan.mount_id, plan.key).policy.mode is WriteMode.CACHE:
                    self._created.pop(inode, None)
                    return
            self._follower.begin_upload(file_id, plan.mount_id, plan.key)
            self._putting.add(inode)
            try:
                # What came of it is recorded before others may do something at that key.
                if not await self._put_and_record(file_id, plan):
                    return
            finally:
                self._putting.discard(inode)
                self._follower.end_upload(file_id)
            self._created.pop(inode, None)
            self._follower.wake()
        except (errors.Stale, errors.NotFound):
            self._created.pop(inode, None)
        except errors.AlluxioLikeError as error:
            log.info("an empty file is not at the store yet", extra={"inode": inode, "error": str(error)})
            if inode in self._created:
                self._created[inode] = self._clock.monotonic() + EMPTY_AFTER_S
        except Exception:
            log.exception("an empty file could not be put", extra={"inode": inode})
            self._created.pop(inode, None)

    async def _put_and_record(self, file_id: FileId, plan: versions.UploadPlan) -> bool:
        """Whether it is there now; else it was set aside, as something foreign is."""
        ufs = get_writable(self._mounts.get_ufs(plan.mount_id))
        await self._asker.wait_turn(ufs)
        follower = StoreFollower(ufs, await ufs.get_capabilities(), self._cluster_id)
        stored = await follower.put_empty(plan.key, file_id.inode, plan.expected)
        now_ns = self._clock.now_ns()
        if stored is not None:
            await self._meta.write(lambda txn: versions.note_persisted(txn, file_id.inode, file_id.version, plan, stored, now_ns))
            return True
        self._follower.check_heard(plan.key)

        def set_aside(txn: WriteTransaction) -> Outcome:
            if versions.plan_upload(txn, file_id.inode, file_id.version) != plan:
                raise errors.Unavailable("it was renamed, or something was told of, meanwhile: it is put again", subject=plan.key)
            return conflicts.set_aside(txn, file_id.inode, file_id.version, now_ns)

        outcome = await self._meta.write(set_aside)
        self._coherence.tell(outcome.recalls)
        self._follower.report_conflict(file_id.inode, "the put of an empty file", plan.key, plan.expected, None)
        return False
