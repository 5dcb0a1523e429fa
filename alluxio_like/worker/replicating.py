"""Copies of what the store does not have, on other workers: made before a close returns, kept until the store has it.

Owns who gets a copy, what a worker does that is given one, and when copies are ordinary cached files again. Bytes come by the
loader, from the worker that has them; uploads are uploading.py's. Should the worker be lost that was to upload a version, the
next one in the master's list of its holders does. Rule of concurrency: one event loop; disks are asked in the queue's threads.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from alluxio_like import errors
from alluxio_like.cache.store import CacheStore
from alluxio_like.cache.writing_records import UploadRecord, make_token
from alluxio_like.placement import rank_workers
from alluxio_like.rpc.messages import FileResult, LoadFile, LoadProgress
from alluxio_like.rpc.messages_writing import WriteMode
from alluxio_like.types import Entry, FileId, FileRef, InodeId, Worker, WorkerId
from alluxio_like.worker.cluster import ClusterView
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.loader import Loader
from alluxio_like.worker.peers import Peers
from alluxio_like.worker.uploading import REPLICA, Uploader

_LOG = logging.getLogger(__name__)

REPLICA_JOB = "replica-of-"
"""The job under which a copy is sent begins so, and ends with the policy of what is copied."""
HEIR_S = 30.0
"""A worker that was to upload a version is given so long to come back. A guess: a restart takes a few seconds."""
_LOOKS = 20
"""Versions about which the master is asked in one look."""
_EXAMINED = 2_000
"""Versions that are looked at for that: a look is on the loop."""


class Changes(Protocol):
    """What is asked of the master (rpc.changes.ChangesStub)."""

    async def note_holders(self, file_id: FileId, worker_ids: Sequence[WorkerId]) -> None: ...


class Replicator:
    """One per worker. `get_address` is where others reach this one; `lookup_entry` asks the master for an inode (NotFound: it is
    gone)."""

    def __init__(
        self,
        *,
        store: CacheStore,
        view: ClusterView,
        peers: Peers,
        loader: Loader,
        uploader: Uploader,
        changes: Changes,
        disk: DiskQueue,
        get_address: Callable[[], str],
        lookup_entry: Callable[[InodeId], Awaitable[Entry | None]],
    ) -> None:
        self._store = store
        self._drafts = store.drafts
        self._view = view
        self._peers = peers
        self._loader = loader
        self._uploader = uploader
        self._changes = changes
        self._disk = disk
        self._get_address = get_address
        self._lookup_entry = lookup_entry
        self._loop = asyncio.get_running_loop()
        self._replicated: set[FileId] = set()
        self._alone_s: dict[FileId, float] = {}
        """Since when those who were to upload a version before this worker are gone."""
        self._looked = 0

    # -- giving ------------------------------------------------------------------------------------------------------------

    async def replicate(self, record: UploadRecord, *, patience_s: float) -> None:
        """Have as many workers hold a version as its policy says, this one counted.

        Raises Unavailable: fewer than that can take it now.
        """
        if record.replicas < 2 or record.file_id in self._replicated:
            return
        wanted, held = record.replicas - 1, list[WorkerId]()
        try:
            async with asyncio.timeout(patience_s):
                for worker in self._rank_others(record.ref):
                    if len(held) == wanted:
                        break
                    if await self._give(record, worker):
                        held.append(worker.worker_id)
        except TimeoutError:
            pass
        if held:
            await self._changes.note_holders(record.file_id, held)
        if len(held) < wanted:
            raise errors.Unavailable(
                f"its write policy wants it on {record.replicas} workers, and only {len(held) + 1} have it: start more workers, "
                "or set another policy",
                subject=record.ref.key,
            )
        self._replicated.add(record.file_id)

    def _rank_others(self, ref: FileRef) -> list[Worker]:
        cluster = self._view.cluster
        others = [] if cluster is None else [one for one in cluster.workers if one.worker_id != self._view.worker_id and one.live]
        return list(rank_workers(others, ref.file_id, None))

    async def _give(self, record: UploadRecord, worker: Worker) -> bool:
        ref = replace(record.ref, holders=(self._view.worker_id,), source=None)
        mode = WriteMode.CACHE.value if record.mode == WriteMode.CACHE else REPLICA
        stub = self._peers.get_stub(worker.address)
        try:
            async for progress in stub.load_files(REPLICA_JOB + mode, [LoadFile(ref, sources=(self._get_address(),))]):
                for result in progress.results:
                    if result.code:
                        raise errors.make_error(result.code, result.message)
                    return True
        except errors.AlluxioLikeError as error:
            _LOG.warning("worker %s took no copy of %s: %s", worker.worker_id, ref.key, error)
        return False

    # -- taking ------------------------------------------------------------------------------------------------------------

    async def receive(self, job_id: str, files: Sequence[LoadFile]) -> AsyncIterator[LoadProgress]:
        """Load copies that are to be kept; a file has ended well when all of it is on the disk."""
        mode = job_id.removeprefix(REPLICA_JOB)
        refs = {file.ref.file_id: file.ref for file in files}
        async for progress in self._loader.load(job_id, files, 0.0):
            results = [await self._secure(result, refs[result.file_id], mode) for result in progress.results]
            yield replace(progress, results=tuple(results))

    async def _secure(self, result: FileResult, ref: FileRef, mode: str) -> FileResult:
        if result.code:
            return result
        try:
            await self._disk.submit(lambda: self._keep(ref, mode))
        except errors.AlluxioLikeError as error:
            return FileResult(ref.file_id, code=error.code, message=str(error))
        return result

    def _keep(self, ref: FileRef, mode: str) -> None:
        """In a disk thread. Sync a copy, and mark it as what nobody may evict."""
        if self._drafts.lookup_upload(ref.file_id) is not None:
            return
        token = make_token(self._store.cluster_id or "", ref.file_id)
        record = UploadRecord(ref, mode, 1, token)
        if not ref.size:
            self._drafts.adopt(record, 0)
            return
        cached = self._store.lookup_content(ref)
        if cached is None or not cached.is_complete:
            raise errors.NoSpace("the copy was evicted before it was marked", subject=ref.key)
        with cached.open_fd() as fd:
            os.fdatasync(fd)
            cached.set_state(unpersisted=True)
            self._store.mark_dirty(cached)
            # (A flag without a record would be taken for a leftover, and a record without a flag is given one at the next start.)
            self._drafts.adopt(record, cached.directory)
            self._store.flush()

    # -- until the store has it --------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Ask the master about some of the versions that are not this worker's to upload: are they still wanted, and whose are
        they?"""
        records = self._drafts.list_uploads()
        asked = 0
        for _ in range(min(_EXAMINED, len(records))):
            record = records[self._looked % len(records)]
            self._looked += 1
            if self._uploader.is_uploading(record):
                continue
            if (asked := asked + 1) > _LOOKS:
                return
            try:
                await self._look_at(record)
            except errors.NotFound:
                await self._uploader.forget(record)
            except errors.AlluxioLikeError:
                # The master is away: later.
                return

    async def _look_at(self, record: UploadRecord) -> None:
        entry = await self._lookup_entry(record.file_id.inode)
        ref = None if entry is None else entry.ref
        if ref is None or ref.version < record.file_id.version:
            return
        if ref.version > record.file_id.version or ref.is_stored:
            self._replicated.discard(record.file_id)
            await self._uploader.forget(record)
            return
        if record.mode != REPLICA or not self._is_heir(ref):
            self._alone_s.pop(record.file_id, None)
            return
        now_s = self._loop.time()
        if now_s - self._alone_s.setdefault(record.file_id, now_s) > HEIR_S:
            _LOG.warning("the worker that was to upload %s is gone: this one does", ref.key)
            del self._alone_s[record.file_id]
            await self._disk.submit(lambda: self._drafts.put_upload(replace(record, mode=WriteMode.BACK.value)))
            self._uploader.look()

    def _is_heir(self, ref: FileRef) -> bool:
        """Whether nobody before this worker in the list of holders lives."""
        cluster = self._view.cluster
        live = set() if cluster is None else {worker.worker_id for worker in cluster.workers if worker.live}
        first = next((holder for holder in ref.holders if holder in live or holder == self._view.worker_id), None)
        return first == self._view.worker_id
