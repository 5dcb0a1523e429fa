"""What programs of this machine write: the handler of the service Drafts.

Owns when a draft begins, is sealed and is over. The files are cache/drafts.py's, what a draft begins from beginning.py's, uploads
uploading.py's, what a close waits for policies.py's, files that the master does not know yet publishing.py's; which version a
content becomes the master decides. Rule of concurrency: one event loop; what is done to one inode is done under its lock
(`_locks`), to its end, whoever has gone meanwhile; disks are asked in the queue's threads.
"""

import asyncio
import functools
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

from alluxio_like import errors
from alluxio_like.cache.draft import Draft, Ending
from alluxio_like.cache.new_files import NewFile
from alluxio_like.cache.store import CacheStore
from alluxio_like.cache.writing_records import Stamp, UploadRecord, make_token
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages_writing import (
    BlankDrafts,
    DraftPlace,
    DraftSealed,
    Published,
    Sealed,
    SealedDraft,
    WriteMode,
)
from alluxio_like.types import Entry, FileRef, InodeId
from alluxio_like.worker import publishing
from alluxio_like.worker.beginning import Beginner
from alluxio_like.worker.dirty import DrainCap
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.evictor import Evictor
from alluxio_like.worker.fetcher import Fetcher
from alluxio_like.worker.inode_locks import InodeLocks
from alluxio_like.worker.policies import Policies
from alluxio_like.worker.publishing import GRACE_S, Publisher
from alluxio_like.worker.replicating import Replicator
from alluxio_like.worker.uploading import Uploader

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)

LOOK_S = 1.0
_LOOKS_AT_ONCE = 64
_CLOSE_S = 2.0
_SEAL_ROUNDS = 3
_NOBODY = InodeId(0)


class Changes(publishing.Changes, Protocol):
    """What is asked of the master (rpc.changes.ChangesStub)."""

    async def seal(self, operation_id: str, draft: SealedDraft) -> Sealed: ...


class _Begun(NamedTuple):
    """What a seal found. `is_changed`: it is not the version that was there before; `extends`: it is known to begin with that,
    `appended`: and has more behind it."""

    stamp: Stamp
    is_changed: bool = True
    extends: bool = False
    appended: bool = False


class DraftsService:
    """DraftsHandler of rpc.drafts. `lookup_entry` asks the master for an inode (NotFound: it is gone)."""

    def __init__(
        self,
        *,
        store: CacheStore,
        fetcher: Fetcher,
        evictor: Evictor,
        uploader: Uploader,
        replicator: Replicator,
        changes: Changes,
        disk: DiskQueue,
        metrics: Metrics,
        cap: DrainCap,
        lookup_entry: Callable[[InodeId], Awaitable[Entry | None]],
        io_timeout_s: float,
    ) -> None:
        self._store = store
        self._drafts = store.drafts
        self._evictor = evictor
        self._uploader = uploader
        self._replicator = replicator
        self._changes = changes
        self._disk = disk
        self._metrics = metrics
        self._lookup_entry = lookup_entry
        # What a caller waits for is over before its own deadline, so that it learns what was wrong.
        self._policies = Policies(store.drafts, uploader, replicator, cap, io_timeout_s * 0.8)
        self._loop = asyncio.get_running_loop()
        self._locks = InodeLocks()
        self._asked_s: dict[InodeId, float] = {}
        """When a draft's place was last given to somebody who has yet to open it."""
        self._looked = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._beginner = Beginner(store, fetcher, evictor, disk)
        self._publisher = Publisher(
            store=store,
            beginner=self._beginner,
            uploader=uploader,
            changes=changes,
            disk=disk,
            metrics=metrics,
            locks=self._locks,
            seal=self._seal,
            end=self._end_held,
            lookup_entry=lookup_entry,
        )

    # -- the service -------------------------------------------------------------------------------------------------------

    async def begin(self, ref: FileRef, *, truncate: bool) -> DraftPlace:
        """See DraftsHandler."""
        return await self._to_end(self._begin_locked(ref, truncate=truncate))

    async def _begin_locked(self, ref: FileRef, *, truncate: bool) -> DraftPlace:
        async with self._locks.hold(ref.inode):
            draft = self._drafts.lookup(ref.inode)
            if draft is not None and draft.record.blank:
                # Who asks knows of it from the master, whose answer was lost here.
                await self._publisher.publish_held(draft)
                draft = self._drafts.lookup(ref.inode)
            if draft is not None and ref.version > draft.record.ref.version:
                # Somebody else has written it since. What is still open here goes on: the last to seal wins.
                await self._end(draft)
                draft = self._drafts.lookup(ref.inode)
            if draft is None:
                draft = await self._beginner.begin(ref, truncate=truncate)
            self._asked_s[ref.inode] = self._loop.time()
            return DraftPlace(draft.directory, draft.path)

    async def begin_blank(self, first: InodeId, count: int) -> BlankDrafts:
        """See DraftsHandler."""
        return await self._to_end(self._publisher.begin_blank(first, count))

    async def publish(self, lease: str, files: Sequence[NewFile]) -> Published:
        """See DraftsHandler."""
        return await self._policies.meet_all(await self._to_end(self._publisher.publish(lease, files)))

    async def publish_left(self, owner: str) -> int:
        """See DraftsHandler."""
        return await self._to_end(self._publisher.publish_left(owner))

    async def seal(self, operation_id: str, inode: InodeId, lease: str = "", *, early: bool = False) -> DraftSealed:
        """See DraftsHandler."""
        started = self._loop.time()
        sealed = await self._to_end(self._seal_locked(operation_id, inode, lease, early=early))
        self._metrics.seal_seconds.observe(self._loop.time() - started)
        if sealed.ref is not None and not early:
            await self._policies.meet(sealed.ref)
        return sealed

    async def _seal_locked(self, operation_id: str, inode: InodeId, lease: str, *, early: bool) -> DraftSealed:
        async with self._locks.hold(inode):
            draft = self._drafts.lookup(inode)
            if draft is None:
                raise errors.NotFound("no such draft here; begin it again", subject=str(inode))
            try:
                if draft.record.blank:
                    await self._publisher.publish_held(draft)
                if early:
                    await self._check_newest(draft)
                return await self._seal(draft, operation_id, lease, early=early)
            except errors.NotFound:
                if self._drafts.lookup(inode) is not None:
                    raise
                # Nobody has a name of the file, nor has it open elsewhere: there is nothing to be kept.
                return DraftSealed(None, 0, unchanged=True)

    async def _check_newest(self, draft: Draft) -> None:
        """Raises Conflict where another machine has written the file since, NotFound where it has no name: the close decides
        then."""
        entry = await self._lookup_entry(draft.inode)
        if entry is None or entry.ref is None or not entry.attr.nlink:
            raise errors.NotFound("the file has no name any more", subject=str(draft.inode))
        if entry.ref.version > draft.record.ref.version and draft.record.sealing is None:
            raise errors.Conflict("another machine has written the file", subject=entry.ref.key)

    async def end(self, inode: InodeId) -> None:
        """See DraftsHandler."""
        await self._to_end(self._end_locked(inode))

    async def end_all(self, inodes: Sequence[InodeId]) -> None:
        """See DraftsHandler."""
        await self._to_end(self._end_all(inodes))

    async def _end_all(self, inodes: Sequence[InodeId]) -> None:
        """Most were sealed and are over: these become cache files together. The others go on one by one."""
        left = dict.fromkeys(inodes)
        async with self._locks.hold_free(left) as held:
            # (One that is locked is not waited for: others are held here.)
            drafts = [draft for inode in left if inode in held and (draft := self._drafts.lookup(inode)) is not None]
            ending = [draft for draft in drafts if not draft.record.blank]
            done = await self._end_held(ending)
            blank = [draft for draft in drafts if draft.record.blank]
            if blank:
                await self._publisher.end_held(blank)
        over = {draft.inode for draft in done} | {draft.inode for draft in blank if draft.record.blank}
        for inode in left:
            if inode not in over:
                await self._end_locked(inode)

    async def _end_held(self, drafts: Sequence[Draft]) -> list[Draft]:
        """Under their locks. Those that are over become cache files; which."""
        done = await self._disk.submit(lambda: self._drafts.end_all(drafts), alone=True) if drafts else []
        for draft in done:
            await self._note_over(draft)
        return done

    async def _end_locked(self, inode: InodeId) -> None:
        async with self._locks.hold(inode):
            self._asked_s.pop(inode, None)
            draft = self._drafts.lookup(inode)
            if draft is None:
                return
            if draft.record.blank:
                await self._publisher.end_held([draft])
                return
            await self._end(draft)
            if self._drafts.lookup(inode) is draft:
                # Others have it open, or the kernel keeps the writer's file for those who read. What a killed writer left is
                # nevertheless to be seen now.
                await self._seal_quietly(draft)

    async def sync(self, inode: InodeId) -> None:
        """See DraftsHandler."""
        draft = self._drafts.lookup(inode)
        if draft is not None:
            await self._disk.submit(functools.partial(self._drafts.sync, draft), alone=True)

    async def persist(self, inodes: Sequence[InodeId]) -> int:
        """See DraftsHandler."""
        return await self._to_end(self._persist(frozenset(inodes)))

    async def _persist(self, inodes: frozenset[InodeId]) -> int:
        """Have what was to stay here, or to wait for a close, uploaded as well, in the background."""
        found = [record for inode in inodes for record in self._drafts.uploads.list_of(inode)]
        for record in found:
            async with self._locks.hold(record.file_id.inode):
                now = self._drafts.lookup_upload(record.file_id)
                if now is not None and (now.mode == WriteMode.CACHE or now.early):
                    changed = replace(now, mode=WriteMode.BACK.value, early=False)
                    await self._disk.submit(functools.partial(self._drafts.put_upload, changed))
        self._uploader.look()
        return len({record.file_id.inode for record in found})

    # -- looking after what nobody asks for --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look after drafts that nobody has open any more, seals that were cut short, and uploads; until cancelled."""
        looking: dict[InodeId, asyncio.Task[None]] = {}
        try:
            while True:
                self._uploader.look()
                self._begin_looks(looking)
                if _NOBODY not in looking:
                    looking[_NOBODY] = asyncio.create_task(self._look_at_blanks(), name="look at blank drafts")
                await self._replicator.look()
                self._show()
                await asyncio.sleep(LOOK_S)
        finally:
            for task in looking.values():
                task.cancel()
            await asyncio.gather(*looking.values(), return_exceptions=True)

    def _begin_looks(self, looking: "dict[InodeId, asyncio.Task[None]]") -> None:
        """One that waits, for the master or for a long seal, keeps none of the others waiting."""
        for inode in [inode for inode, task in looking.items() if task.done()]:
            del looking[inode]
        now_s = self._loop.time()
        drafts = [draft for draft in self._drafts.list_drafts() if not draft.record.blank]
        for draft in drafts:
            self._asked_s.setdefault(draft.inode, now_s)
        # Those that are open for long are not to keep others from being looked at.
        start = self._looked % max(1, len(drafts))
        for draft in drafts[start:] + drafts[:start]:
            if len(looking) >= _LOOKS_AT_ONCE:
                break
            if draft.inode not in looking and self._drafts.is_healthy(draft):
                self._looked += 1
                looking[draft.inode] = asyncio.create_task(self._look_safely(draft), name=f"look at draft {draft.inode}")

    async def _look_at_blanks(self) -> None:
        try:
            await self._to_end(self._publisher.look())
        except errors.AlluxioLikeError as error:
            _LOG.warning("files that their clients have left are looked at again later: %s", error)
        except Exception:  # noqa: BLE001 (nobody would notice drafts that are never over)
            _LOG.exception("the look at files that their clients have left failed")

    async def _look_safely(self, draft: Draft) -> None:
        try:
            await self._to_end(self._look(draft))
        except errors.AlluxioLikeError as error:
            _LOG.warning("the draft of inode %d is looked at again later: %s", draft.inode, error)
        except Exception:  # noqa: BLE001 (nobody would notice drafts that are never over)
            _LOG.exception("the look at the draft of inode %d failed", draft.inode)

    async def _look(self, draft: Draft) -> None:
        if self._locks.is_held(draft.inode):
            return
        async with self._locks.hold(draft.inode):
            if self._drafts.lookup(draft.inode) is not draft:
                return
            if draft.record.sealing is not None:
                # A seal that this worker's death or the master's absence cut short.
                await self._finish_seal(draft)
            await self._disk.submit(lambda: self._drafts.contents.measure(draft))
            if self._loop.time() - self._asked_s.setdefault(draft.inode, self._loop.time()) > GRACE_S:
                await self._end(draft)

    def _show(self) -> None:
        count, size = self._drafts.uploads.count()
        written = sum(not draft.record.blank for draft in self._drafts.list_drafts())
        self._metrics.drafts.set(written + self._publisher.noted)
        self._metrics.draft_bytes.set(sum(usage.draft_bytes for usage in self._store.get_usage()))
        self._metrics.unpersisted_files.set(count)
        self._metrics.unpersisted_bytes.set(size)

    # -- seal --------------------------------------------------------------------------------------------------------------

    async def _seal(self, draft: Draft, operation_id: str, lease: str = "", *, early: bool = False) -> DraftSealed:
        """Under the inode's lock. Make what is in the draft now the next version, if it is not one. `early`: for others to see,
        while the file stays open. Raises NotFound: the inode is gone, and the draft with it."""
        if draft.record.blank:
            raise errors.Conflict("nobody has made a file of the draft", subject=str(draft.inode))
        if draft.record.sealing is not None:
            is_repeat = draft.record.sealing.operation_id == operation_id
            await self._finish_seal(draft)
            # What came into it since is another content, which needs a number of its own.
            operation_id = f"{operation_id}+" if is_repeat else operation_id
            unchanged = False
        else:
            unchanged = True
        begun = await self._disk.submit(lambda: self._begin_seal(draft, operation_id, early=early), alone=True)
        stamp = begun.stamp
        if not begun.is_changed:
            return DraftSealed(draft.record.ref, stamp.mtime_ns, unchanged=unchanged)
        sealed = await self._finish_seal(draft, lease, extends=begun.extends, appended=begun.appended, early=early)
        return DraftSealed(
            draft.record.ref, stamp.mtime_ns, recalls=sealed.recalls, told=sealed.told, over_quota=sealed.over_quota
        )

    def _begin_seal(self, draft: Draft, operation_id: str, *, early: bool) -> _Begun:
        """In a disk thread. Write down that what is in the draft now becomes a version, if it is none."""
        stamp = self._drafts.contents.read_stamp(draft)
        # What others were only shown is sealed once more when it is closed: from then on the store is to have it.
        if stamp == draft.record.stamp and (early or not self._drafts.is_early(draft)):
            return _Begun(stamp, is_changed=False)
        contents = self._drafts.contents
        seen = contents.observe(draft)
        # (Every new file begins with nothing: that it grows is known of one that stays open.)
        extends = seen is not None and (contents.extends(draft, seen) if early else contents.is_append(draft, seen))
        if seen is None or (early and not extends):
            # What only grows still has this version when more has come. Of anything else others need a copy to read.
            seen = contents.observe_copy(draft)
        appended = contents.is_append(draft, seen)
        self._drafts.note_sealing(draft, operation_id, seen)
        return _Begun(seen.stamp, extends=extends, appended=appended)

    async def _finish_seal(
        self, draft: Draft, lease: str = "", *, extends: bool = False, appended: bool = False, early: bool = False
    ) -> Sealed:
        """Have the master give the version its number, under the operation id that was written down. `lease`: of the client to
        which its answer is given on; all others are told by recalls."""
        sealing = draft.record.sealing
        assert sealing is not None
        base = draft.record.ref.version
        size, mtime_ns = sealing.stamp.size, sealing.stamp.mtime_ns
        content = SealedDraft(draft.inode, size, mtime_ns, self._store.worker_id, base, lease, early, extends)
        operation_id = sealing.operation_id
        try:
            while (sealed := await self._changes.seal(operation_id, content)).ref.version <= base:
                # A close that was answered by a daemon that died was sent again: its id made the version that was there before.
                # What others have written since is another content, which needs a number of its own.
                operation_id += "+"
                await self._disk.submit(functools.partial(self._drafts.rename_sealing, draft, operation_id), alone=True)
        except errors.NotFound:
            await self._disk.submit(lambda: self._drafts.delete(draft))
            raise
        upload = None
        if not sealed.unwanted:
            policy = sealed.policy
            token = make_token(self._store.cluster_id or "", sealed.ref.file_id)
            upload = UploadRecord(sealed.ref, policy.mode, policy.replicas, token, appended=appended, early=early)
        note = functools.partial(self._drafts.note_sealed, draft, sealed.ref, upload, unwanted=sealed.unwanted)
        if sealing.copy:
            await self._disk.submit(note, alone=True)
        else:
            note()  # without waiting for the disk: committed soon
        if sealing.copy or any(record.early for record in self._drafts.uploads.list_of(draft.inode)):
            await self._disk.submit(functools.partial(self._drop_shown, draft))
        return sealed

    def _drop_shown(self, draft: Draft) -> None:
        """In a disk thread. Versions that others were shown before the newest one need no upload, nor more than a few copies."""
        for record in self._drafts.uploads.list_of(draft.inode):
            if record.early and record.ref.version < draft.record.ref.version and not self._uploader.has_begun(record.file_id):
                self._drafts.drop_upload(record.file_id)
        for file_id in draft.shown.pop_old_copies():
            self._store.remove([file_id], force=True)
            self._evictor.record_removed(file_id)

    # -- end ---------------------------------------------------------------------------------------------------------------

    async def _end(self, draft: Draft) -> None:
        """Under the inode's lock. Make it an ordinary cache file, sealed first if need be; if nobody has it open."""
        for _ in range(_SEAL_ROUNDS):
            ending = await self._disk.submit(lambda: self._drafts.end(draft), alone=True)
            if ending is Ending.IN_USE:
                return
            if ending is Ending.DONE:
                await self._note_over(draft)
                return
            if not await self._seal_quietly(draft):
                return

    async def _note_over(self, draft: Draft) -> None:
        """Under the inode's lock. It has become a cache file, or has gone."""
        self._asked_s.pop(draft.inode, None)
        cached = self._store.lookup(draft.record.ref.file_id)
        if cached is not None:
            if cached.unpersisted and self._drafts.lookup_upload(cached.file_id) is None:
                # The store had it while the file was being moved.
                await self._disk.submit(functools.partial(self._store.set_persisted, [cached.file_id]))
            self._evictor.record_state(cached)
        # An upload that came while the file was being moved did not find it.
        self._uploader.look_at(draft.inode)

    async def _seal_quietly(self, draft: Draft) -> bool:
        """Under the inode's lock. Seal what nobody has sealed; False: the inode is gone, and the draft with it."""
        try:
            await self._seal(draft, uuid.uuid4().hex)
        except errors.NotFound:
            return False
        self._uploader.look_at(draft.inode)
        return True

    async def drain(self, limit_s: float) -> None:
        """Before this worker ends: have what was written uploaded, the newest first, for at most so long."""
        if not limit_s:
            return
        deadline_s = self._loop.time() + limit_s
        try:
            # What the master does not know has no place at a store.
            await asyncio.wait_for(self._to_end(self._publisher.publish_left(None)), limit_s)
        except (TimeoutError, errors.AlluxioLikeError) as error:
            _LOG.warning("files that clients have made and the master does not know yet are kept here: %s", error)
        count = self._uploader.count_left()
        if not count:
            return
        _LOG.info("uploading what was written before ending", extra={"versions": count, "limit_s": limit_s})
        left = await self._uploader.drain(max(0.0, deadline_s - self._loop.time()))
        if left:
            _LOG.warning("%d versions are not uploaded: they are kept here and taken up after the next start", left)
        else:
            _LOG.info("all that was written is uploaded")

    async def close(self) -> None:
        """Give what is under way a moment to end. What is cut short the next start takes up: that is what the records are for."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _to_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do it to its end, also when the caller is cancelled: a thread at work on an inode cannot be called back."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget_task)
        return await asyncio.shield(task)

    def _forget_task(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Whoever waited has been told; who has gone is not to leave a warning behind.
            task.exception()
