"""A worker's drafts and uploads around a store in memory and as much of a master as they talk to."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alluxio_like import errors
from alluxio_like.cache.draft_files import open_draft
from alluxio_like.cache.new_files import NewFile, Note, write_note
from alluxio_like.cache.store import CacheStore
from alluxio_like.rpc.messages_writing import (
    Changed,
    DraftPlace,
    Persisted,
    Published,
    PublishedFile,
    Sealed,
    SealedDraft,
    UploadPlan,
    WriteMode,
    WritePolicy,
)
from alluxio_like.types import OWN_TOKEN, Attr, Entry, FileId, FileRef, Fingerprint, InodeId, Kind, MountId, VersionId, WorkerId
from alluxio_like.ufs.memory import MemoryUfs
from alluxio_like.ufs.memory_writing import WritableMemoryUfs
from alluxio_like.worker.dirty import DrainCap, Pace
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.drafts import DraftsService
from alluxio_like.worker.peers import Peers
from alluxio_like.worker.replicating import Replicator
from alluxio_like.worker.stores import Stores
from alluxio_like.worker.turns import Turns
from alluxio_like.worker.uploading import Uploader
from tests.unit.worker_parts import MOUNT, Parts, mount_secrets, no_channel, running_parts


@dataclass
class FakeChanges:
    """A master's side of writing: versions, operation ids, where a version goes. `away`: it cannot be reached."""

    policy: WritePolicy = field(default_factory=WritePolicy)
    away: bool = False
    versions: dict[InodeId, int] = field(default_factory=dict)
    keys: dict[InodeId, str] = field(default_factory=dict)
    """Inodes that have a name."""
    stored: dict[InodeId, Fingerprint | None] = field(default_factory=dict)
    """What the store has, as far as is known here."""
    dirty: set[InodeId] = field(default_factory=set)
    gone: set[InodeId] = field(default_factory=set)
    operations: dict[str, Sealed] = field(default_factory=dict)
    following: bool = False
    """The store has something else to follow first: nothing is uploaded."""
    persisted: list[tuple[FileId, str]] = field(default_factory=list)
    """Versions of which was said that the store has them, and at which key."""
    planned: list[tuple[FileId, ...]] = field(default_factory=list)
    """Versions for whose uploads each call has asked where they go."""
    noted: list[int] = field(default_factory=list)
    """Of how many each call has said that the store has them."""
    ended: list[FileId] = field(default_factory=list)
    """Versions whose uploads were given up."""
    conflicts: list[FileId] = field(default_factory=list)
    seals: list[SealedDraft] = field(default_factory=list)
    made: dict[str, NewFile] = field(default_factory=dict)
    """Files that were published, by operation id: as they were given first."""
    published: list[tuple[NewFile, ...]] = field(default_factory=list)
    """What each call has asked for."""
    refused: dict[InodeId, errors.AlluxioLikeError] = field(default_factory=dict)
    """Why no file is made in a directory."""
    refused_versions: dict[InodeId, errors.AlluxioLikeError] = field(default_factory=dict)
    """Why it cannot be said where an inode's version goes."""
    lose_answers: int = 0
    """So many calls are carried out, and their answers lost."""

    def create(self, inode: int, key: str) -> FileRef:
        """As the master's `create`: a version 1 that nobody has."""
        self.versions[InodeId(inode)] = 1
        self.keys[InodeId(inode)] = key
        self.stored[InodeId(inode)] = None
        self.dirty.add(InodeId(inode))
        return make_own_ref(inode, 1, key, 0)

    def add_stored(self, ref: FileRef) -> None:
        """A file that was found in the store."""
        self.versions[ref.inode] = ref.version
        self.keys[ref.inode] = ref.key
        self.stored[ref.inode] = ref.fingerprint

    def get_ref(self, inode: int, size: int, worker_id: str = "") -> FileRef:
        ref = make_own_ref(inode, self.versions[InodeId(inode)], self.keys.get(InodeId(inode), ""), size)
        is_dirty = InodeId(inode) in self.dirty
        return replace(
            ref,
            source=None if is_dirty else self.stored[InodeId(inode)],
            holders=(WorkerId(worker_id),) if is_dirty and worker_id else (),
        )

    def get_entry(self, inode: InodeId) -> Entry:
        if inode in self.gone or inode not in self.versions:
            raise errors.NotFound("no such inode", subject=str(inode))
        ref = self.get_ref(inode, 1)
        attr = Attr(inode, Kind.FILE, 0o644, 0, 0, ref.size, 1, 1, int(inode in self.keys), ref.version)
        return Entry(self.keys.get(inode, ""), attr, ref)

    async def seal(self, operation_id: str, draft: SealedDraft) -> Sealed:
        await self._reach()
        if operation_id not in self.operations:
            if draft.inode in self.gone:
                raise errors.NotFound("no such inode", subject=str(draft.inode))
            self.seals.append(draft)
            self.versions[draft.inode] += 1
            self.dirty.add(draft.inode)
            ref = self.get_ref(draft.inode, draft.size, draft.worker_id)
            self.operations[operation_id] = Sealed(ref, self.policy, draft.inode not in self.keys)
        self._answer()
        return self.operations[operation_id]

    async def publish(self, worker_id: WorkerId, lease: str, files: Sequence[NewFile]) -> Published:
        await self._reach()
        self.published.append(tuple(files))
        answers = [self._publish(worker_id, file) for file in files]
        self._answer()
        return Published(tuple(answers))

    def _publish(self, worker_id: WorkerId, file: NewFile) -> PublishedFile:
        """As the master: the name under the operation id, the version under another one; both or none."""
        if file.operation_id not in self.made:
            error = self.refused.get(file.parent)
            if error is not None:
                return PublishedFile(None, error=error)
            self.create(file.inode, f"{file.parent}/{file.name}")
            self.made[file.operation_id] = file
        ref = make_own_ref(file.inode, 1, self.keys[file.inode], 0)
        if file.sealed:
            seal = f"{file.operation_id}.s"
            if seal not in self.operations:
                self.versions[file.inode] += 1
                self.operations[seal] = Sealed(self.get_ref(file.inode, file.size, worker_id), self.policy)
            ref = self.operations[seal].ref
        return PublishedFile(ref, self.policy)

    async def plan_upload(self, file_id: FileId) -> UploadPlan:
        await self._reach()
        return self._plan(file_id)

    async def plan_uploads(self, file_ids: Sequence[FileId]) -> list[UploadPlan | errors.AlluxioLikeError]:
        await self._reach()
        self.planned.append(tuple(file_ids))
        planned: list[UploadPlan | errors.AlluxioLikeError] = []
        for file_id in file_ids:
            try:
                planned.append(self._plan(file_id))
            except errors.AlluxioLikeError as error:
                planned.append(error)
        return planned

    def _plan(self, file_id: FileId) -> UploadPlan:
        inode = file_id.inode
        if inode in self.refused_versions:
            raise self.refused_versions[inode]
        if inode not in self.keys or self.versions[inode] != file_id.version or inode not in self.dirty:
            raise errors.Stale("not wanted", subject=str(inode))
        if self.following:
            raise errors.Unavailable("later", subject=str(inode))
        return UploadPlan(MOUNT, self.keys[inode], self.stored[inode], {"mode": "644"})

    async def end_upload(self, file_id: FileId) -> None:
        await self._reach()
        self.ended.append(file_id)

    async def note_persisted(self, persisted: Sequence[Persisted]) -> list[errors.AlluxioLikeError | None]:
        await self._reach()
        self.noted.append(len(persisted))
        for file_id, plan, stored in [(one.file_id, one.plan, one.stored) for one in persisted]:
            self.persisted.append((file_id, plan.key))
            if self.keys.get(file_id.inode, plan.key) == plan.key:
                self.stored[file_id.inode] = stored
            if self.versions[file_id.inode] == file_id.version:
                self.dirty.discard(file_id.inode)
        self._answer()
        return [None] * len(persisted)

    async def note_conflict(self, operation_id: str, file_id: FileId) -> Changed:
        await self._reach()
        self.conflicts.append(file_id)
        self.keys[file_id.inode] += ".mine"
        self.stored[file_id.inode] = None
        return Changed(None)

    async def note_holders(self, file_id: FileId, worker_ids: object) -> None:
        await self._reach()

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise errors.Unavailable("the master is away")

    def _answer(self) -> None:
        if self.lose_answers:
            self.lose_answers -= 1
            raise errors.Unavailable("the answer was lost")


def make_own_ref(inode: int, version: int, key: str, size: int) -> FileRef:
    return FileRef(InodeId(inode), VersionId(version), MountId(MOUNT), key, Fingerprint(f"{OWN_TOKEN}{version:x}", size))


def make_new_file(inode: int, **others: Any) -> NewFile:
    """A file of a client that it has made in directory 2."""
    return replace(
        NewFile(f"op-{inode}", InodeId(inode), InodeId(2), f"new-{inode}", 0o644, 0, 0, changed_ns=1_000, mtime_ns=1_000),
        **others,
    )


@dataclass
class DraftParts:
    """What is under test, and what is around it."""

    parts: Parts
    changes: FakeChanges
    service: DraftsService
    uploader: Uploader
    replicator: Replicator
    cap: DrainCap

    @property
    def ufs(self) -> MemoryUfs:
        return self.parts.ufs

    @property
    def store(self) -> CacheStore:
        return self.parts.store

    def open(self, place: DraftPlace) -> int:
        """As a daemon does."""
        return open_draft(self.store.directory_fds[place.directory], place.path)

    def make(self, place: DraftPlace, file: NewFile, data: bytes = b"", *, owner: str = "client") -> int:
        """As a daemon makes a file of a blank draft, and a program writes to it; open."""
        fd = self.open(place)
        write_note(fd, Note(owner, file))
        os.pwrite(fd, data, 0)
        return fd

    async def write(self, ref: FileRef, data: bytes, *, truncate: bool = True, operation_id: str = "") -> FileRef:
        """A program's open, write and close of one file."""
        place = await self.service.begin(ref, truncate=truncate)
        fd = self.open(place)
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, data, 0)
            sealed = await self.service.seal(operation_id or os.urandom(8).hex(), ref.inode)
        finally:
            os.close(fd)
        await self.service.end(ref.inode)
        assert sealed.ref is not None
        return sealed.ref


@asynccontextmanager
async def running_drafts(
    directory: Path,
    *,
    changes: FakeChanges | None = None,
    ufs: MemoryUfs | None = None,
    quota_bytes: int = 1 << 30,
    io_timeout_s: float = 5.0,
    mode: WriteMode = WriteMode.THROUGH,
    drain_s: float | None = None,
    guess_bytes_s: float = 1e8,
    part_bytes: int = 32 << 20,
) -> AsyncIterator[DraftParts]:
    """Drafts that are taken down at the end; `changes` and `ufs` outlive them. `drain_s`: what may wait for its upload is
    bounded."""
    changes = changes or FakeChanges(WritePolicy(mode))
    async with running_parts(directory, quota_bytes=quota_bytes, wrap=lambda made: WritableMemoryUfs(ufs or made)) as parts:
        if ufs is not None:
            parts.ufs = ufs
        disk = DiskQueue("drafts", 8)
        turns = Turns(8, 4, asyncio.get_running_loop().time)

        async def get_secrets(_: MountId) -> object:
            return mount_secrets()

        stores = Stores(
            get_secrets,  # type: ignore[arg-type]
            lambda _mount, on_request: WritableMemoryUfs(parts.ufs, min_part_bytes=1 << 20),
            lambda op, mount: None,
            asyncio.get_running_loop().time,
        )
        pace = Pace(guess_bytes_s)
        uploader = Uploader(
            store=parts.store,
            stores=stores,
            turns=turns,
            changes=changes,
            disk=disk,
            metrics=parts.metrics,
            pace=pace,
            part_bytes=part_bytes,
            now_ns=lambda: parts.ufs.now_ns,
        )

        async def lookup_entry(inode: InodeId) -> Entry | None:
            return changes.get_entry(inode)

        replicator = Replicator(
            store=parts.store,
            view=parts.view,
            peers=Peers(no_channel, 5.0),
            loader=parts.loader,
            uploader=uploader,
            changes=changes,
            disk=disk,
            get_address=lambda: "here:1",
            lookup_entry=lookup_entry,
        )
        cap = DrainCap(pace, drain_s, uploader.measure_left, parts.metrics)
        service = DraftsService(
            store=parts.store,
            fetcher=parts.fetcher,
            evictor=parts.evictor,
            uploader=uploader,
            replicator=replicator,
            changes=changes,
            disk=disk,
            metrics=parts.metrics,
            cap=cap,
            lookup_entry=lookup_entry,
            io_timeout_s=io_timeout_s,
        )
        try:
            yield DraftParts(parts, changes, service, uploader, replicator, cap)
        finally:
            await service.close()
            await uploader.close()
            await stores.close()
            turns.close()
            await disk.close()
