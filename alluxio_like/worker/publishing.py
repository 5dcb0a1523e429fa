"""Files that clients have made in blank drafts: the master is told of many of them at once.

Owns when a blank draft begins, is published and goes, and what is told of those whose client is no more; their records are
cache/blank_drafts.py's. Once it is published, a draft is one like others (drafts.py). Rule of concurrency: one event loop; what
is done to one inode is done under its lock, which is held for many at a time: one of them is waited for, the others are taken as
they are free. Disks are asked in the queue's threads.
"""

import asyncio
import contextlib
import functools
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from alluxio_like import errors
from alluxio_like.cache.blank_drafts import Found, Known, Telling
from alluxio_like.cache.draft import Draft
from alluxio_like.cache.draft_contents import Observation
from alluxio_like.cache.new_files import NewFile
from alluxio_like.cache.store import CacheStore
from alluxio_like.cache.writing_records import UploadRecord, make_token
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages_writing import (
    BlankDrafts,
    DraftPlace,
    DraftSealed,
    Published,
    PublishedFile,
    Told,
    WriteMode,
    WritePolicy,
)
from alluxio_like.types import Entry, FileRef, InodeId, Recall, WorkerId, to_bytes
from alluxio_like.worker.beginning import Beginner
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.inode_locks import InodeLocks
from alluxio_like.worker.uploading import Uploader

_LOG = logging.getLogger(__name__)

MOST = 256
"""Files that are published together, or blank drafts that are asked for. A guess: by then the price of a call is no matter."""
GRACE_S = 10.0
"""A draft that was just begun is not over because nobody has opened it yet; and what the master has refused is tried again after
so long. A guess: the caller opens it within milliseconds."""
_OBSERVED_TOGETHER = 32
"""Files that one thread syncs and sums, one after the other: fewer cost more hops between threads, and more commits of the disk's
journal. A guess."""


class Changes(Protocol):
    """What is asked of the master (rpc.changes.ChangesStub)."""

    async def publish(self, worker_id: WorkerId, lease: str, files: Sequence[NewFile]) -> Published: ...


class Sealer(Protocol):
    """Makes what is in a draft the next version, under its inode's lock."""

    def __call__(self, draft: Draft, operation_id: str, lease: str) -> Awaitable[DraftSealed]: ...


@dataclass(slots=True)
class _Answers:
    """What has come of files so far, and what the master had to say of all of them."""

    files: dict[InodeId, PublishedFile] = field(default_factory=dict)
    recalls: list[Recall] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)


class Publisher:
    """One per worker. `end` has drafts that are over become cache files, under their locks; `lookup_entry` asks the master for an
    inode (NotFound: it is gone)."""

    def __init__(
        self,
        *,
        store: CacheStore,
        beginner: Beginner,
        uploader: Uploader,
        changes: Changes,
        disk: DiskQueue,
        metrics: Metrics,
        locks: InodeLocks,
        seal: Sealer,
        end: Callable[[Sequence[Draft]], Awaitable[object]],
        lookup_entry: Callable[[InodeId], Awaitable[Entry | None]],
    ) -> None:
        self._store = store
        self._drafts = store.drafts
        self._blanks = store.drafts.blanks
        self._beginner = beginner
        self._uploader = uploader
        self._changes = changes
        self._disk = disk
        self._metrics = metrics
        self._locks = locks
        self._seal = seal
        self._end = end
        self._lookup_entry = lookup_entry
        self._loop = asyncio.get_running_loop()
        self._since_s: dict[InodeId, float] = {}
        """When a blank draft was begun, found after a start, or refused."""
        self.noted = 0
        """Blank drafts of which a client had made a file, at the last look."""

    # -- what clients ask for ----------------------------------------------------------------------------------------------

    async def begin_blank(self, first: InodeId, count: int) -> BlankDrafts:
        """See DraftsHandler."""
        if not 0 < count <= MOST:
            raise errors.InvalidArgument(f"from 1 to {MOST} blank drafts are begun at once", subject=str(count))
        inodes = [InodeId(first + number) for number in range(count)]
        async with self._locks.hold_free(inodes) as free:
            if len(free) < count:
                raise errors.Unavailable("they are just being looked at; try again", subject=str(first))
            made = await self._beginner.begin_blank(inodes)
            now_s = self._loop.time()
            for draft in made or ():
                self._since_s[draft.inode] = now_s
        return BlankDrafts(first, tuple(DraftPlace(draft.directory, draft.path) for draft in made or ()), made is not None)

    async def publish(self, lease: str, files: Sequence[NewFile]) -> Published:
        """See DraftsHandler; whether their policy is met is the caller's matter."""
        answers = _Answers()
        left = {file.inode: file for file in files}
        while left:
            some = list(left)[:MOST]
            async with self._locks.hold_some(some) as held:
                # (In the order in which they were given, which is that of their making.)
                await self._publish_held([left.pop(inode) for inode in some if inode in held], lease, answers)
        return Published(tuple(answers.files[file.inode] for file in files), tuple(answers.recalls), tuple(answers.told))

    async def publish_left(self, owner: str | None) -> int:
        """See DraftsHandler; None: of whatever client."""
        answers = _Answers()
        left = [draft.inode for draft in self._blanks.list_all()]
        while left:
            some = left[:MOST]
            async with self._locks.hold_some(some) as held:
                left = [inode for inode in left if inode not in held]
                found = await self._disk.submit(functools.partial(self._look_at_all, self._list_blank(held)), alone=True)
                wanted = [one for one in found if one.note is not None and owner in (None, one.note.owner)]
                await self._publish_left(wanted, answers)
        return len(answers.files)

    def _look_at_all(self, drafts: Sequence[Draft]) -> list[Found]:
        """In a disk thread. What cannot be looked at is left out."""
        found: list[Found] = []
        for draft in drafts:
            with contextlib.suppress(errors.AlluxioLikeError):
                found.append(self._blanks.look_at(draft))
        return found

    # -- what nobody asks for ----------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Publish what is left of clients that are no more and what was cut short, and delete what nobody uses."""
        drafts = [draft for draft in self._blanks.list_all() if not self._locks.is_held(draft.inode)]
        self.noted = 0
        if not drafts:
            return
        found = await self._disk.submit(functools.partial(self._look_at_all, drafts), alone=True)
        self.noted = sum(one.note is not None for one in found)
        due = [one.draft.inode for one in found if self._is_due(one.draft, in_use=one.in_use)]
        for start in range(0, len(due), MOST):
            async with self._locks.hold_free(due[start : start + MOST]) as held:
                # (Since the look somebody may have been given one.)
                await self.end_held([draft for draft in self._list_blank(held) if self._is_due(draft)])

    def _is_due(self, draft: Draft, *, in_use: bool = False) -> bool:
        if draft.record.publishing is not None:
            return True
        now_s = self._loop.time()
        return not in_use and now_s - self._since_s.setdefault(draft.inode, now_s) > GRACE_S

    async def end_held(self, drafts: Sequence[Draft]) -> None:
        """Under their locks, of blank drafts whose users may be gone: publish those that somebody has made a file of, and delete
        the others, but for what is in use."""
        others = await self._disk.submit(functools.partial(self._drafts.drop_unused, drafts), alone=True)
        for draft in drafts:
            if self._drafts.lookup(draft.inode) is not draft:
                self._since_s.pop(draft.inode, None)
        await self._publish_left([one for one in others if not one.in_use or one.draft.record.publishing is not None], _Answers())

    async def publish_held(self, draft: Draft) -> None:
        """Under its lock: have the master know of what a client has made of a blank draft, if it has; without its content, where
        that was not written down before. Raises what is wrong with it."""
        found = await self._disk.submit(functools.partial(self._blanks.look_at, draft), alone=True)
        answers = _Answers()
        await self._publish_left([found._replace(in_use=True)], answers)
        error = answers.files[draft.inode].error if draft.inode in answers.files else None
        if error is not None:
            raise error

    async def _publish_left(self, left: Sequence[Found], answers: _Answers) -> None:
        """Files that nobody asks for; those that somebody has open without their content."""
        wanted: list[tuple[Draft, NewFile]] = []
        for one in left:
            if one.draft.record.publishing is not None:
                wanted.append((one.draft, one.draft.record.publishing))
            elif one.note is not None:
                wanted.append((one.draft, replace(one.note.file, sealed=not one.in_use)))
        await self._publish_blank(wanted, "", answers, is_left=True)
        over: list[Draft] = []
        for draft, file in wanted:
            error = answers.files[draft.inode].error
            if error is not None:
                _LOG.warning("a file whose client is gone is not published (inode %d): %s", draft.inode, error)
            elif file.sealed:
                over.append(draft)
            self._uploader.look_at(draft.inode)
        await self._end(over)

    # -- under the locks ---------------------------------------------------------------------------------------------------

    def _list_blank(self, inodes: Iterable[InodeId]) -> list[Draft]:
        found = [self._drafts.lookup(inode) for inode in inodes]
        return [draft for draft in found if draft is not None and draft.record.blank]

    async def _publish_held(self, files: Sequence[NewFile], lease: str, answers: _Answers) -> None:
        blank: list[tuple[Draft, NewFile]] = []
        known: list[NewFile] = []
        for file in files:
            draft = self._drafts.lookup(file.inode)
            if draft is not None and draft.record.blank:
                blank.append((draft, file))
            else:
                known.append(file)
        await self._publish_blank(blank, lease, answers)
        for file in known:
            answers.files[file.inode] = await self._find(file, lease, answers)

    async def _publish_blank(
        self, wanted: Sequence[tuple[Draft, NewFile]], lease: str, answers: _Answers, *, is_left: bool = False
    ) -> None:
        """Have the master know of files. What was cut short before goes on as it was written down, under the same operation ids;
        what is wanted beyond that is a change like others."""
        started = self._loop.time()
        cut_short = {draft.inode for draft, _ in wanted if draft.record.publishing is not None}
        await self._write_down([one for one in wanted if one[0].inode not in cut_short], answers, is_left=is_left)
        told = [draft for draft, _ in wanted if draft.record.publishing is not None]
        sealed = {draft.inode for draft in told if draft.record.sealing is not None}
        if told:
            files = [draft.record.publishing for draft in told if draft.record.publishing is not None]
            published = await self._changes.publish(self._store.worker_id, lease, files)
            answers.recalls += published.recalls
            answers.told += published.told
            for draft, file in wanted:
                if draft.inode in cut_short:
                    _recall(file, answers)
            await self._note(list(zip(told, published.files, strict=True)), answers)
        for inode in sealed:
            if answers.files[inode].error is None:
                self._metrics.seal_seconds.observe(self._loop.time() - started)
        for draft, file in wanted:
            is_whole = draft.inode in sealed and draft.inode not in cut_short
            if file.sealed and not is_whole and answers.files[draft.inode].error is None:
                # Others went on changing it, or may have since it was observed.
                answers.files[draft.inode] = await self._find(file, lease, answers)

    async def _write_down(self, wanted: Sequence[tuple[Draft, NewFile]], answers: _Answers, *, is_left: bool) -> None:
        """Observe what is in drafts, and write down what the master is to be told."""
        if not wanted:
            return
        seen = await self._observe([draft for draft, file in wanted if file.sealed])
        tellings: list[Telling] = []
        for draft, file in wanted:
            found = seen.get(draft.inode)
            if isinstance(found, errors.AlluxioLikeError):
                answers.files[draft.inode] = PublishedFile(None, error=found)
            else:
                tellings.append(Telling(draft, _fill(file, found, is_left=is_left), found))
        if tellings:
            failed = await self._disk.submit(functools.partial(self._blanks.note_publishing, tellings), alone=True)
            for inode, error in failed.items():
                answers.files[inode] = PublishedFile(None, error=error)

    async def _observe(self, drafts: Sequence[Draft]) -> "dict[InodeId, Observation | errors.AlluxioLikeError | None]":
        parts = [drafts[start : start + _OBSERVED_TOGETHER] for start in range(0, len(drafts), _OBSERVED_TOGETHER)]
        work = [self._disk.submit(functools.partial(self._observe_all, part), alone=True) for part in parts]
        return {inode: one for part in await asyncio.gather(*work) for inode, one in part.items()}

    def _observe_all(self, drafts: Sequence[Draft]) -> "dict[InodeId, Observation | errors.AlluxioLikeError | None]":
        """In a disk thread. None: others go on changing it."""
        seen: dict[InodeId, Observation | errors.AlluxioLikeError | None] = {}
        self._drafts.contents.begin_writing(drafts)
        for draft in drafts:
            try:
                seen[draft.inode] = self._drafts.contents.observe(draft)
            except errors.AlluxioLikeError as error:
                seen[draft.inode] = error
        return seen

    async def _note(self, published: Sequence[tuple[Draft, PublishedFile]], answers: _Answers) -> None:
        """What the master has said of each."""
        known: list[Known] = []
        refused: list[Draft] = []
        gone: list[Draft] = []
        for draft, one in published:
            answers.files[draft.inode] = one
            if one.ref is not None:
                known.append(Known(draft, one.ref, self._make_upload(draft, one), one.unwanted))
                self._since_s.pop(draft.inode, None)
            elif isinstance(one.error, errors.NotFound):
                gone.append(draft)
                self._since_s.pop(draft.inode, None)
            else:
                refused.append(draft)
                self._since_s[draft.inode] = self._loop.time()
        self._blanks.note_known(known)
        self._blanks.note_refused(refused)
        if gone:
            await self._disk.submit(functools.partial(self._drafts.delete_all, gone), alone=True)

    def _make_upload(self, draft: Draft, one: PublishedFile) -> UploadRecord | None:
        if one.ref is None or one.policy is None or one.unwanted or draft.record.sealing is None:
            return None
        token = make_token(self._store.cluster_id or "", one.ref.file_id)
        return UploadRecord(one.ref, one.policy.mode, one.policy.replicas, token)

    async def _find(self, file: NewFile, lease: str, answers: _Answers) -> PublishedFile:
        """A file that is published: as it is now, sealed if it is to be and has changed since."""
        try:
            _recall(file, answers)
            draft = self._drafts.lookup(file.inode)
            if draft is None:
                return await self._find_over(file)
            if file.sealed:
                sealed = await self._seal(draft, uuid.uuid4().hex, lease)
                answers.recalls += sealed.recalls
                answers.told += sealed.told
        except errors.AlluxioLikeError as error:
            return PublishedFile(None, error=error)
        return PublishedFile(draft.record.ref, self._find_policy(draft.record.ref), draft.record.unwanted)

    async def _find_over(self, file: NewFile) -> PublishedFile:
        """One that is no draft any more, or has been lost here."""
        waiting = self._drafts.uploads.list_of(file.inode)
        if waiting:
            return PublishedFile(waiting[-1].ref, self._find_policy(waiting[-1].ref))
        with contextlib.suppress(errors.NotFound):
            entry = await self._lookup_entry(file.inode)
            if entry is not None and entry.ref is not None:
                return PublishedFile(entry.ref)
        raise errors.DiskError("what was written to the file is not here any more", subject=file.name)

    def _find_policy(self, ref: FileRef) -> WritePolicy | None:
        upload = self._drafts.lookup_upload(ref.file_id)
        return None if upload is None else WritePolicy(WriteMode(upload.mode), upload.replicas)


def _recall(file: NewFile, answers: _Answers) -> None:
    """Have the caller ask anew: what was told when the master came to know of the file may have been lost with its answer."""
    answers.recalls.append(Recall(file.parent, (to_bytes(file.name),), inodes=(file.inode,)))


def _fill(file: NewFile, seen: Observation | None, *, is_left: bool) -> NewFile:
    """What the master is told of a file. `is_left`: nobody says when it was changed last. (An mtime that was set may be any time;
    one that comes of writing is before the last change of the draft's file.)"""
    if seen is None:
        return replace(file, sealed=False, size=0) if file.sealed else file
    stamp = seen.stamp
    changed_ns = max(file.changed_ns, min(stamp.mtime_ns, stamp.ctime_ns)) if is_left else file.changed_ns
    return replace(file, size=stamp.size, mtime_ns=stamp.mtime_ns, changed_ns=changed_ns)
