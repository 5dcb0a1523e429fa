"""After a restore: what the stores have by now of the files that they lacked at the backup.

Owns asking the stores, once after a restore, file by file; the tokens that uploads leave at the store tell which version is
there. What this means to the namespace is in core/restoring.py. Event loop alone; goes on over failures and restarts until all
was asked.
"""

import asyncio
import logging

from alluxio_like import errors
from alluxio_like.cache.writing_records import make_token
from alluxio_like.clock import Clock
from alluxio_like.master.asking import Asker
from alluxio_like.master.coherence import Coherence
from alluxio_like.master.core import changes, keys, restoring, tables, versions
from alluxio_like.master.core.records import Inode
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.types import FileId, InodeId, VersionId
from alluxio_like.ufs.writing import WritableUfs, get_writable

log = logging.getLogger(__name__)

_TRIED = 32
"""Versions, from the one of the backup on, that may be what the store has. A guess: a file that was uploaded more often since
stays as it was at the backup until its worker or its user says otherwise."""
_PAUSE_S = 5.0


class Reconciler:
    """One per master; `run` before anything is put or uploaded."""

    def __init__(
        self, meta: MetaStore, mounts: MountTable, asker: Asker, coherence: Coherence, *, clock: Clock, cluster_id: str
    ) -> None:
        self._meta = meta
        self._mounts = mounts
        self._asker = asker
        self._coherence = coherence
        self._clock = clock
        self._cluster_id = cluster_id

    async def run(self) -> None:
        """Ask for all of them; returns at once where there was no restore."""
        with self._meta.read() as txn:
            if not restoring.get_restored(txn).pending:
                return
            unsure = list(restoring.list_unsure(txn))
        log.info("restored: asking the stores for what they lacked at the backup", extra={"files": len(unsure)})
        while unsure:
            unsure = [one for one in unsure if not await self._try(*one)]
            if unsure:
                await asyncio.sleep(_PAUSE_S)
        await self._meta.write(restoring.settle)
        await self._meta.flush()

    async def _try(self, inode: InodeId, record: Inode) -> bool:
        """Whether it needs no other try."""
        try:
            await self._ask(inode, record)
        except (errors.NotFound, errors.Unsupported, errors.IsADirectory):
            return True
        except errors.AlluxioLikeError as error:
            log.warning("a store cannot say what it has; it is asked again", extra={"inode": inode, "error": str(error)})
            return False
        return True

    async def _ask(self, inode: InodeId, record: Inode) -> None:
        with self._meta.read() as txn:
            key = keys.get_key(txn, inode, record, natural=True)
            base = tables.get_dirty(txn, inode).base
        ufs = get_writable(self._mounts.get_ufs(record.mount_id))
        await self._asker.wait_turn(ufs)
        there = (await ufs.stat(key)).fingerprint
        if there is None or there == base:
            return
        version = await self._find_version(ufs, key, inode, record)
        if version is None:
            log.warning("the store has something else in the place of a file that it lacked at the backup", extra={"key": key})
            return
        now_ns = self._clock.now_ns()
        if version == record.version:
            plan = versions.UploadPlan(record.mount_id, key, base)
            await self._meta.write(lambda txn: versions.note_persisted(txn, inode, version, plan, there, now_ns))
        elif await self._meta.write(lambda txn: restoring.adopt(txn, inode, record, there, now_ns)):
            with self._meta.read() as txn:
                self._coherence.tell(changes.list_recalls(txn, inode, tables.get_inode(txn, inode)))

    async def _find_version(self, ufs: WritableUfs, key: str, inode: InodeId, record: Inode) -> VersionId | None:
        """Which version it is that was uploaded there; None: none of ours that is known."""
        for number in range(record.version, record.version + _TRIED):
            token = make_token(self._cluster_id, FileId(inode, VersionId(number)))
            if await ufs.lookup_written(key, token) is not None:
                return VersionId(number)
        return None
