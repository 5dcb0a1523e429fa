"""Uploads: what programs have written goes to the stores.

Owns the uploads under way, their repeats, and what becomes of a version that is not wanted any more or whose place at the store
somebody else has taken. What is to be uploaded is in the cache's index (cache/drafts.py), and outlives the worker there. Where a
version goes is the master's to say, each time. Rule of concurrency: one event loop; one upload of an inode at a time; files are
opened and looked at in the disk queue's threads.

A write to a store that may have happened is never guessed at: each version has a token, kept with the object, which says later
whether what is there is ours.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from alluxio_like import errors
from alluxio_like.cache.store import CacheStore
from alluxio_like.cache.writing_records import Destination, UploadRecord, make_token
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import Priority
from alluxio_like.rpc.messages_writing import Changed, Persisted, UploadPlan, WriteMode
from alluxio_like.types import FileId, Fingerprint, InodeId, MountId, VersionId
from alluxio_like.ufs.writing import Expected, Source, Upload, WritableUfs, WriteOptions, get_writable, make_directories
from alluxio_like.worker.dirty import Pace
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.stores import Stores
from alluxio_like.worker.together import Together
from alluxio_like.worker.turns import Turns
from alluxio_like.worker.upload_parts import Opened, PartSender, Replan, Superseded, get_fingerprint
from alluxio_like.worker.upload_sources import UploadSources

_LOG = logging.getLogger(__name__)

REPLICA = "replica"
"""The mode of a version that another worker is to upload, and of which this one has a copy."""
_UPLOADED = frozenset({WriteMode.THROUGH.value, WriteMode.BACK.value})

PUT_BYTES = 16 << 20
"""Up to this size a version goes in one request, from a copy in memory: the request makes it visible, so nobody may change it
meanwhile. A guess."""
_COPIES_AT_ONCE = 8
"""Such copies, which bounds them to 128 MiB."""
_UPLOADS_AT_ONCE = 16
"""Versions on their way at once. What bounds the requests is the turns."""
SMALL_BYTES = 256 << 10
_SMALL_AT_ONCE = 128
"""Beside those, so many that are small, of which _COPIES_AT_ONCE are being sent: one call to the master and one commit of the
disk are then for many of them. Measured: with as many being sent, who makes files meanwhile makes a quarter less."""
_MOST_TOGETHER = 256
"""Versions of one call. A guess: by then its price is no matter."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_ASK_PAUSE_S = 1.0
"""Between two questions to the master whose answer was "not yet", at most."""
QUIET_S = 2.0
LONGEST_S = 60.0
"""A file that was uploaded before, and is written anew in the background, goes once nobody has for so long, or after so long. So
a log that is appended to a thousand times does not go a thousand times. Where it is appended to again after each such pause, the
pause has to be twice as long each time, up to LONGEST_S. Guesses."""
_REMEMBERED_S = 120.0
_FORGOTTEN_AT_ONCE = 32
_VERSIONS_TRIED = 8
"""How many versions, this one and those before it, may be what is unexpectedly there. A guess: one is usual."""


class Changes(Protocol):
    """What is asked of the master (rpc.changes.ChangesStub)."""

    async def plan_upload(self, file_id: FileId) -> UploadPlan: ...

    async def end_upload(self, file_id: FileId) -> None: ...

    async def plan_uploads(self, file_ids: Sequence[FileId]) -> Sequence[UploadPlan | Exception]: ...

    async def note_persisted(self, persisted: Sequence[Persisted]) -> Sequence[Exception | None]: ...

    async def note_conflict(self, operation_id: str, file_id: FileId) -> Changed: ...


@dataclass(slots=True, eq=False)
class _Job:
    """What is on its way of one inode. `urgent`: somebody waits for it. `error`: why the last try failed, of `failures`.
    `forward_s`: when a request for it last succeeded. `wake` ends a pause, `news` tells of failures and the end."""

    task: "asyncio.Task[None] | None" = None
    urgent: bool = False
    done: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    error: errors.AlluxioLikeError | None = None
    failures: int = 0
    forward_s: float = 0.0


@dataclass(slots=True)
class _Settling:
    """A file that was uploaded a while ago: the version that is now to go, since when it is there, and since when some is."""

    version: int
    uploaded_s: float
    sealed_s: float = 0.0
    first_s: float = 0.0
    quiet_s: float = QUIET_S


class Uploader:
    """One per worker."""

    def __init__(
        self,
        *,
        store: CacheStore,
        stores: Stores,
        turns: Turns,
        changes: Changes,
        disk: DiskQueue,
        metrics: Metrics,
        pace: Pace,
        part_bytes: int,
        on_persisted: Callable[[FileId], None] = lambda _: None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`part_bytes`: the length of an upload's parts. `on_persisted`: a cache file may be evicted from now on."""
        self._store = store
        self._drafts = store.drafts
        self._stores = stores
        self._turns = turns
        self._changes = changes
        self._disk = disk
        self._sources = UploadSources(store)
        self._parts = PartSender(store.drafts, disk, turns.monotonic, now_ns, part_bytes)
        self._put_bytes = min(PUT_BYTES, part_bytes)
        self._metrics = metrics
        self._pace = pace
        self._on_persisted = on_persisted
        self._jobs: dict[InodeId, _Job] = {}
        self._sent = {record.file_id: _get_place(record) for record in self._drafts.list_uploads()}
        """Versions of which the store may have something, and where: all that were there before the start, since nobody knows."""
        self._planned = set(self._sent)
        """Versions for whose uploads the master keeps keys free."""
        self._slots = asyncio.Semaphore(_UPLOADS_AT_ONCE)
        self._small_slots = asyncio.Semaphore(_SMALL_AT_ONCE)
        self._copies = asyncio.Semaphore(_COPIES_AT_ONCE)
        self._small_copies = asyncio.Semaphore(_COPIES_AT_ONCE)
        self._plans = Together("plan uploads", changes.plan_uploads, _MOST_TOGETHER)
        self._notes = Together("note uploads", changes.note_persisted, _MOST_TOGETHER)
        self._commits = Together("commit uploads", self._commit_all, _MOST_TOGETHER)
        self._drops = Together("forget uploads", self._drop_all, _MOST_TOGETHER)
        self._closed = False
        self._draining = False
        self._forward_s = 0.0
        """When a request for any of them last succeeded."""
        self._settling: dict[InodeId, _Settling] = {}

    # -- what others call --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Begin whatever is to be uploaded and is not on its way: after a start, and now and then."""
        for inode in self._drafts.uploads.list_inodes(_UPLOADED):
            self.look_at(inode)

    def look_at(self, inode: InodeId) -> None:
        """As `look`, for one inode: something may have come of it."""
        if inode in self._jobs:
            return
        record = self._get_newest(inode)
        if record is not None and record.mode in _UPLOADED and self._is_settled(record):
            self._begin(inode)

    def _is_settled(self, record: UploadRecord) -> bool:
        """Whether a version is to go now: a file that is written again and again goes when that pauses, or now and then."""
        if record.early:
            # Of a file that is appended to all day, all of it would go again and again.
            return self._draining
        inode = record.file_id.inode
        settling = self._settling.get(inode)
        if settling is None or self._draining or (record.mode == WriteMode.THROUGH and not record.appended):
            return True
        now_s = self._turns.monotonic()
        if settling.version != record.file_id.version:
            settling.version, settling.sealed_s = record.file_id.version, now_s
            settling.first_s = settling.first_s or now_s
        return now_s - settling.sealed_s >= settling.quiet_s or now_s - settling.first_s >= LONGEST_S

    def may_wait(self, record: UploadRecord) -> bool:
        """Whether a close need not wait for a version: the store has the one before, which was sent a moment ago and is the
        beginning of this one; else a file that grows by small pieces would be sent as a whole for each of them."""
        job = self._jobs.get(record.file_id.inode)
        # One whose upload fails is to be told of it.
        return record.appended and record.file_id.inode in self._settling and (job is None or job.error is None)

    def _note_uploaded(self, record: UploadRecord) -> None:
        """What is written to that file again soon may wait for more."""
        now_s = self._turns.monotonic()
        before = self._settling.get(record.file_id.inode)
        quiet_s = min(LONGEST_S, 2 * before.quiet_s) if before is not None and record.appended else QUIET_S
        self._settling.pop(record.file_id.inode, None)
        self._settling[record.file_id.inode] = _Settling(record.file_id.version, now_s, quiet_s=quiet_s)
        self._forget_settled(now_s)

    def _forget_settled(self, now_s: float) -> None:
        """Those that were uploaded long ago stand first; one that is on its way goes behind the others."""
        for inode, known in list(itertools.islice(self._settling.items(), _FORGOTTEN_AT_ONCE)):
            if now_s - known.uploaded_s <= _REMEMBERED_S:
                return
            del self._settling[inode]
            if inode in self._jobs:
                self._settling[inode] = known

    def has_begun(self, file_id: FileId) -> bool:
        """Whether the store may have something of a version, or the master keeps a key free for it."""
        return file_id in self._planned or file_id in self._sent

    def is_uploading(self, record: UploadRecord) -> bool:
        """Whether a version is one that this worker uploads: the newest here of its file, and by a policy that says so."""
        return record.mode in _UPLOADED and self._get_newest(record.file_id.inode) == record

    async def upload(self, file_id: FileId, *, patience_s: float) -> None:
        """Have a version uploaded; returns when the store has it, or is to have another one instead.

        Raises what is in its way: at once if no waiting mends that, else when nothing has gone forward for `patience_s`; it is
        repeated in the background nevertheless. Cancelling stops nothing.
        """
        while self._drafts.lookup_upload(file_id) is not None and not self._closed:
            job = self._jobs.get(file_id.inode) or self._begin(file_id.inode)
            job.urgent = True
            job.wake.set()
            error = await self._wait(job, patience_s)
            if error is not None:
                raise type(error)(error.message, subject=error.subject)
            newest = self._get_newest(file_id.inode)
            if newest is None or (job.done and not await self._disk.submit(functools.partial(self._sources.has, newest))):
                return

    async def _wait(self, job: _Job, patience_s: float) -> errors.AlluxioLikeError | None:
        """Until a job has ended (None), or fails: see `upload`."""
        began = self._turns.monotonic()
        known = job.failures
        while not job.done:
            # One that has not failed may wait for others, as long as those go forward.
            forward = job.forward_s if job.failures > known else max(job.forward_s, self._forward_s)
            left = max(began, forward) + patience_s - self._turns.monotonic()
            if left <= 0:
                return job.error or errors.TimedOut("the store does not have it yet; the upload goes on")
            job.news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(job.news.wait(), left)
            if job.error is not None and job.failures > known and not errors.get_disposition(job.error).retryable:
                return job.error
        return None

    async def forget(self, record: UploadRecord) -> None:
        """A version is not wanted any more, or the store has it."""
        await self._forget(record)

    def count_running(self) -> int:
        """Inodes with an upload on its way."""
        return len(self._jobs)

    def get_trouble(self) -> str:
        """Why some upload failed last; empty: none did."""
        return next((str(job.error) for job in self._jobs.values() if job.error is not None), "")

    async def drain(self, limit_s: float) -> int:
        """Before this worker ends: upload what is left, what was written last first, for at most so long; how many versions are
        left then. Who has the newest checkpoint can go on, who has only older ones has lost work."""
        deadline = self._turns.monotonic() + limit_s
        self._draining = True
        records = await self._disk.submit(self._list_newest_first)
        ahead = {record.file_id.inode for record in records[:_UPLOADS_AT_ONCE]}
        # What is under way of older ones makes room; it is gone on with later.
        await _cancel([job for inode, job in self._jobs.items() if inode not in ahead])
        for record in records:
            job = self._jobs.get(record.file_id.inode) or self._begin(record.file_id.inode)
            job.urgent = True
            job.wake.set()
        while (tasks := [job.task for job in self._jobs.values() if job.task is not None]) and not self._closed:
            left_s = deadline - self._turns.monotonic()
            if left_s <= 0:
                break
            await asyncio.wait(tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        return self.count_left()

    def count_left(self) -> int:
        """Versions that this worker is to upload and the store does not have."""
        return self._drafts.uploads.count(_UPLOADED)[0]

    def measure_left(self) -> int:
        """Their bytes."""
        return self._drafts.uploads.count(_UPLOADED)[1]

    def _list_newest_first(self) -> list[UploadRecord]:
        """In a disk thread. The newest version of each inode, by when it was written."""
        dated = []
        for record in self._drafts.list_uploads():
            if self.is_uploading(record) and (opened := self._sources.open(record)) is not None:
                os.close(opened.fd)
                dated.append((opened.stamp.mtime_ns, record))
        return [record for _, record in sorted(dated, key=lambda one: one[0], reverse=True)]

    async def close(self) -> None:
        """Stop; what is not there yet is taken up after the next start."""
        self._closed = True
        await _cancel(list(self._jobs.values()))
        await self._commits.close()
        await self._plans.close()
        await self._notes.close()
        await self._drops.close()

    # -- one inode's upload ------------------------------------------------------------------------------------------------

    def _begin(self, inode: InodeId) -> _Job:
        job = self._jobs[inode] = _Job()
        job.task = asyncio.create_task(self._run(inode, job), name=f"upload {inode}")
        return job

    def _get_newest(self, inode: InodeId) -> UploadRecord | None:
        records = self._drafts.uploads.list_of(inode)
        return records[-1] if records else None

    async def _run(self, inode: InodeId, job: _Job) -> None:
        """Until the store has the newest version of the inode, or nothing more can be done for now."""
        pause_s = _FIRST_PAUSE_S
        try:
            while (record := self._get_newest(inode)) is not None and record.mode in _UPLOADED:
                # One that fails does not end to wait for more: who appends next would not be told.
                if not (job.urgent or job.error is not None or self._is_settled(record)):
                    return
                try:
                    async with self._slots if record.ref.size > SMALL_BYTES else self._small_slots:
                        await self._upload(record, job)
                except Superseded:
                    return
                except Replan:
                    continue
                except errors.AlluxioLikeError as error:
                    self._note_failure(record, job, error)
                except Exception as error:  # noqa: BLE001 (an upload that ends by a defect would never be made)
                    _LOG.exception("the upload of %s failed", record.ref.key)
                    self._note_failure(record, job, errors.Internal(f"{type(error).__name__}: {error}", subject=record.ref.key))
                else:
                    pause_s, job.error = _FIRST_PAUSE_S, None
                    continue
                await self._pause(job, pause_s * random.uniform(0.5, 1.0))
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
        finally:
            if self._jobs.get(inode) is job:
                del self._jobs[inode]
            job.done = True
            job.news.set()

    def _note_failure(self, record: UploadRecord, job: _Job, error: errors.AlluxioLikeError) -> None:
        job.error = error
        job.failures += 1
        self._metrics.upload_failures.labels(error.code).inc()
        _LOG.warning("the upload of %s failed, and is repeated: %s", record.ref.key, error)
        job.news.set()

    async def _upload(self, record: UploadRecord, job: _Job) -> None:
        opened = await self._disk.submit(lambda: self._sources.open(record))
        if opened is None:
            await self._give_up(record)
            raise Superseded
        started = self._turns.monotonic()
        try:
            # Who comes after a kill has to know what may be at the store, and for what the master keeps a key.
            await self._commits.ask(record.file_id)
            plan = await self.plan(record, job)
            if plan is None:
                await self._settle_unwanted(record)
                return
            stored = await self._send(opened, plan, job)
            await self._notes.ask(Persisted(record.file_id, plan, stored))
            await self._settle_older(record)
            self._note_uploaded(record)
            self._metrics.uploaded_bytes.inc(record.ref.size)
            self._metrics.upload_seconds.observe(self._turns.monotonic() - started)
            await self._forget(record)
        except Superseded:
            await self._give_up(record)
            raise
        finally:
            os.close(opened.fd)

    async def _give_up(self, record: UploadRecord) -> None:
        """The bytes are others by now: should no version come after this one, its key is not to stay taken."""
        if record.file_id in self._planned:
            self._planned.discard(record.file_id)
            with contextlib.suppress(errors.AlluxioLikeError):
                await self._changes.end_upload(record.file_id)

    async def plan(self, record: UploadRecord, job: _Job) -> UploadPlan | None:
        """Where it goes; None: nowhere any more. Waits while the store has something else to follow first."""
        may_be_kept = record.file_id in self._planned
        self._planned.add(record.file_id)
        pause_s, alone = 0.01, False
        while True:
            try:
                return await (self._changes.plan_upload if alone else self._plans.ask)(record.file_id)
            except (errors.Stale, errors.NotFound):
                if not may_be_kept:
                    self._planned.discard(record.file_id)
                return None
            except errors.Unavailable as error:
                may_be_kept = True
                if alone or pause_s >= _ASK_PAUSE_S:
                    job.error = error
            if job.urgent and not alone:
                # Who asks for one alone is answered in the moment in which the store has followed.
                alone = True
                continue
            await self._pause(job, pause_s)
            pause_s = min(_ASK_PAUSE_S, pause_s * 2)

    @staticmethod
    async def _pause(job: _Job, pause_s: float) -> None:
        """Until somebody comes to wait for the upload, for so long at most."""
        job.wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.wake.wait(), pause_s)

    async def _send(self, opened: Opened, plan: UploadPlan, job: _Job) -> Fingerprint:
        """Make the version the content of its key; its fingerprint there."""
        file_id, place = opened.record.file_id, (plan.mount_id, plan.key)
        if self._sent.get(file_id, place) != place and await self._settle_sent(opened.record):
            # It has arrived where it belonged before, and is moved from there.
            raise Replan
        self._sent[file_id] = place
        ufs = get_writable(await self._stores.get_ufs(plan.mount_id))
        try:
            capabilities = await ufs.get_capabilities()
            if opened.record.ref.size <= min(self._put_bytes, capabilities.max_put_bytes):
                return await self._put(ufs, opened, plan, job)
            return await self._parts.send(ufs, capabilities, opened, plan, _Steps(self, ufs, opened, job))
        except errors.StoreDenied:
            # Credentials may have been replaced at the master since the store was opened.
            self._stores.renew(plan.mount_id, ufs)
            raise
        except (errors.Conflict, errors.IsADirectory):
            return await self._settle_conflict(ufs, opened, plan, job)
        except errors.NotFound:
            # Somebody removed the directory at the store: what is written in it here has not been.
            await make_directories(ufs, plan.key)
            raise Replan from None

    async def _put(self, ufs: WritableUfs, opened: Opened, plan: UploadPlan, job: _Job) -> Fingerprint:
        record = opened.record
        if _get_place(record) != (plan.mount_id, plan.key):
            # Renamed since it was sealed: a worker that comes after this one has to know where something of it may be.
            to = Destination(plan.mount_id, plan.key, plan.expected, plan.metadata)
            record = opened.record = replace(record, destination=to, upload_id="", asked_ns=0)
            await self._disk.submit(functools.partial(self._drafts.put_upload, record))
        options = WriteOptions(record.token, plan.metadata)
        async with self._copies if record.ref.size > SMALL_BYTES else self._small_copies:
            copy = await self._disk.submit(lambda: self._sources.copy(opened))
            try:
                async with self.turn(ufs, job, "PUT", record.ref.size):
                    source = Source(copy, 0, record.ref.size)
                    entry = await ufs.put(plan.key, source, options, expected=Expected(plan.expected))
            finally:
                os.close(copy)
        return get_fingerprint(entry)

    async def _settle_conflict(self, ufs: WritableUfs, opened: Opened, plan: UploadPlan, job: _Job) -> Fingerprint:
        """What is at the key is not what was expected: was it us?"""
        record = opened.record
        file_id = record.file_id
        for version in range(file_id.version, max(0, file_id.version - _VERSIONS_TRIED), -1):
            one = FileId(file_id.inode, VersionId(version))
            entry = await ufs.lookup_written(plan.key, make_token(self._store.cluster_id or "", one))
            if entry is None:
                continue
            stored = get_fingerprint(entry)
            if one == file_id:
                return stored
            # A version before this one, from whichever worker, of which the master has not heard: it expects that from now on.
            await self._notes.ask(Persisted(one, plan, stored))
            raise Replan
        if plan.expected is not None and await _is_gone(ufs, plan.key):
            # What was to be replaced was removed by somebody else: there is no content to be kept beside ours.
            return await self._send(opened, replace(plan, expected=None), job)
        try:
            changed = await self._changes.note_conflict(uuid.uuid4().hex, record.file_id)
        except (errors.Conflict, errors.Stale, errors.NotFound):
            # It is not so any more, or the version is not wanted any more.
            raise Replan from None
        name = changed.entry.name if changed.entry is not None else ""
        self._metrics.upload_conflicts.inc()
        _LOG.error(
            "%s was changed at the store by others while it was written here: what was written here is kept beside it as %s",
            plan.key, name,
        )  # fmt: skip
        raise Replan

    async def _settle_unwanted(self, record: UploadRecord) -> None:
        """The version is not wanted any more: replaced, removed, or the store has it and only the answer was lost."""
        await self._settle_sent(record)
        await self._settle_older(record)
        for one in self._drafts.uploads.list_of(record.file_id.inode):
            if one.file_id.version <= record.file_id.version and one.file_id in self._planned:
                # Not before: what has its name by now would find it there, and take it for foreign.
                await self._changes.end_upload(one.file_id)
        await self._forget(record)

    async def _settle_older(self, record: UploadRecord) -> None:
        """What a version has replaced may have come to the store, under another name."""
        for one in self._drafts.uploads.list_of(record.file_id.inode):
            if one.file_id.version < record.file_id.version:
                await self._settle_sent(one)

    async def _settle_sent(self, record: UploadRecord) -> bool:
        """Something of a version may have come to the store, where it does not belong any more: say so, or have it dropped.
        Whether it is there."""
        if record.file_id not in self._sent:
            return False
        mount_id, key = self._sent[record.file_id]
        to = record.destination
        try:
            ufs = get_writable(await self._stores.get_ufs(mount_id))
            if to is not None and record.upload_id:
                await ufs.abort_upload(Upload(to.key, record.upload_id))
            elif to is not None and record.asked_ns:
                await self._parts.abort_unknown(ufs, record)
            entry = await ufs.lookup_written(key, record.token)
        except (errors.NotFound, errors.Unsupported, errors.StoreMissing) as error:
            _LOG.warning("%s was perhaps sent to a store that is not there any more: %s", key, error)
            return False
        if entry is not None:
            await self._notes.ask(Persisted(record.file_id, UploadPlan(mount_id, key, None), get_fingerprint(entry)))
        return entry is not None

    async def _forget(self, record: UploadRecord) -> None:
        """It, and versions before it, are done with; the oldest first: killed in between, the newest is left, of which the bytes
        are here."""
        for one in self._drafts.uploads.list_of(record.file_id.inode):
            if one.file_id.version <= record.file_id.version:
                await self._drops.ask(one.file_id)
                self._sent.pop(one.file_id, None)
                self._planned.discard(one.file_id)
                self._on_persisted(one.file_id)

    async def _commit_all(self, file_ids: Sequence[FileId]) -> Sequence[Exception | None]:
        return await self._disk.submit(functools.partial(self._drafts.commit_uploads, file_ids), alone=True)

    async def _drop_all(self, file_ids: Sequence[FileId]) -> Sequence[Exception | None]:
        return await self._disk.submit(functools.partial(self._drafts.drop_uploads, file_ids), alone=True)

    async def check(self, opened: Opened) -> None:
        """Raises Superseded: the bytes are others by now."""
        if not await self._disk.submit(lambda: self._sources.is_unchanged(opened)):
            raise Superseded

    @asynccontextmanager
    async def turn(self, ufs: WritableUfs, job: _Job, op: str, size: int = 0) -> AsyncIterator[None]:
        """Within this, one request, which takes so many bytes there: readers go first, then what a close waits for, then the
        rest."""
        turn = self._turns.make_turn(Priority.AHEAD if job.urgent else Priority.LOAD, ufs.bucket)
        await self._turns.take(turn)
        started = self._turns.monotonic()
        try:
            yield
            job.forward_s = self._forward_s = self._turns.monotonic()
            if size:
                self._pace.note(size, started, self._forward_s)
        except errors.StoreError as error:
            self._metrics.store_errors.labels(op, ufs.bucket, error.code).inc()
            if isinstance(error, errors.StoreThrottled):
                self._turns.note_throttle(ufs.bucket)
                self._metrics.store_throttles.labels(ufs.bucket).inc()
            raise
        finally:
            self._turns.give_back(turn)
            self._metrics.store_latency.labels(op).observe(self._turns.monotonic() - started)


class _Steps:
    """Steps of upload_parts.py, of one upload."""

    def __init__(self, uploader: Uploader, ufs: WritableUfs, opened: Opened, job: _Job) -> None:
        self._uploader = uploader
        self._ufs = ufs
        self._opened = opened
        self._job = job

    def turn(self, op: str, size: int = 0) -> AbstractAsyncContextManager[None]:
        return self._uploader.turn(self._ufs, self._job, op, size)

    async def check(self) -> None:
        await self._uploader.check(self._opened)

    async def plan(self) -> UploadPlan | None:
        return await self._uploader.plan(self._opened.record, self._job)


def _get_place(record: UploadRecord) -> tuple[MountId, str]:
    """Where a version was last sent, or belonged when it was sealed."""
    to = record.destination
    return (record.ref.mount_id, record.ref.key) if to is None else (to.mount_id, to.key)


async def _cancel(jobs: Sequence[_Job]) -> None:
    """End jobs wherever they are."""
    tasks = [job.task for job in jobs if job.task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _is_gone(ufs: WritableUfs, key: str) -> bool:
    try:
        await ufs.stat(key)
    except errors.NotFound:
        return True
    return False
