"""Files that are being written through this mount: one draft an inode, for all that have it open here.

Owns the drafts' descriptors, who uses them, and when one is sealed and over. While an inode has a draft, all its handles here
read it, those opened before included, and its size and times are the draft's. What a draft is, and how it becomes a version, is
the worker's (decision 0038); how the kernel is served is opening.py's.

Rule of concurrency: one event loop. Beginning and ending a draft of one inode wait for each other (`_locks`); what only looks at
the table does not wait. Whatever was begun for a request goes on when its caller is killed.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from alluxio_like.errors import AlluxioLikeError, Internal, NoSpace, QuotaExceeded, ReadOnly, Stale
from alluxio_like.fuse.attributes import STAT_BLOCK_BYTES, FileError, WrittenAttr
from alluxio_like.fuse.backend import DraftFiles
from alluxio_like.fuse.handles import FileHandle
from alluxio_like.rpc.messages_writing import DraftSealed
from alluxio_like.types import SNAPSHOT_SHIFT, Attr, Entry, FileRef, InodeId, VersionId, WorkerId

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""How often it is looked whether what an earlier daemon's callers write is written still. A guess."""
CARELESS_BYTES = 1 << 30
"""Where quotas leave so much, the kernel may write by itself. A guess."""
_CLAIMED_BYTES = 8 << 20
_AGAIN_PAUSE_S = 0.005
_AGAIN_LONGEST_S = 2.0
"""Pauses before what a file is now is asked for again, which double from the first to the longest. Guesses."""
LEFT_S = 0.2
"""How long a draft that nobody writes any more stays one: who opens it again asks nobody, and its worker is told of several at
once. A guess; small files that are made one after the other come at some hundreds a second."""
_MOST_LEFT = 64
_T = TypeVar("_T")
Stamp = tuple[int, int, int]
"""Size, mtime and ctime of a file: others than before when it was written to."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Draft:
    """An inode's draft. `version` is what was sealed last, or what it began from; `key` stands for the file."""

    inode: InodeId
    worker_id: WorkerId
    fd: int
    version: VersionId
    key: tuple[int, int]
    sealed: Stamp | None = None
    """What the file looked like when all of it was sealed; None: not known, or never."""
    made: Stamp | None = None
    """What a new file looked like before anything was written: its times are the name's."""
    writers: int = 0
    users: int = 0
    """Handles that read or write it, and operations under way."""
    is_new: bool = False
    """Made with this draft: the kernel was never given attributes of it to keep."""
    is_unnamed: bool = False
    """Nobody can open its file by a name (yet): nothing is sealed."""
    is_known_durably: bool = False
    """Its worker finds it again also after the loss of power."""
    over: bool = False
    own_blocks: int = 0
    """Of its blocks on the disk those that are not content: where its worker keeps what it notes beside it."""
    limit: int | None = None
    """The size that quotas let it grow to without being asked again; None: none limits it."""
    shown: bool = False
    """What was sealed last was for others to see while the file is open: a close is to be told of it."""
    shown_over_quota: bool = False
    reading: bool = False
    """Its descriptor is for reading only: nobody writes it through this daemon, but somebody may through the kernel."""
    ending: bool = False
    """Nobody writes it any more, and its worker is being told."""
    sealing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_left(self) -> bool:
        """Whether its last writer has gone; whoever opens it next may go on with it."""
        return not self.writers and (self.ending or not self.reading)

    def is_behind(self, version: VersionId) -> bool:
        """Whether others have written the file since, and nobody writes it here: it says no more what the file is."""
        return self.version < version and not self.writers and (self.is_left or not _is_written(self.fd))

    def stat(self) -> os.stat_result:
        return os.fstat(self.fd)

    @property
    def is_changed(self) -> bool:
        """Whether there may be something to seal."""
        return self.sealed is None or self.sealed != get_stamp(self.stat())

    def says_more_than_its_name(self, found: os.stat_result) -> bool:
        """Whether its size or time is not what its name has. (Its ctime alone is another one when its worker keeps something
        beside it, or makes it a cache file.)"""
        known = self.sealed or self.made
        return known is None or get_stamp(found)[:2] != known[:2]


def get_stamp(found: os.stat_result) -> Stamp:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


async def take_newest(lookup: Callable[[], Awaitable[Entry]], take: Callable[[Entry], Awaitable[Draft]]) -> tuple[Entry, Draft]:
    """What a file is now, and its draft. Others may write it meanwhile: what was looked up is gone then when it is to be brought,
    and the next is tried, for some seconds. (Of itself the kernel looks once more; where two machines write one file in turns
    that is too little.) Raises Stale after that, and what the two functions raise."""
    pause_s = _AGAIN_PAUSE_S
    while True:
        entry = await lookup()
        try:
            return entry, await take(entry)
        except Stale:
            if pause_s > _AGAIN_LONGEST_S:
                raise
        await asyncio.sleep(pause_s)
        pause_s *= 2


def _is_written(fd: int) -> bool:
    """Whether somebody has a file open for writing, which a lease for reading finds out; `fd` is open for reading only."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


class Notes(Protocol):
    """Where it is written down for the daemon after this one what is being written."""

    def note_written(self, inode: int) -> None: ...

    def forget_written(self, inode: int) -> None: ...


class _NoNotes:
    def note_written(self, inode: int) -> None: ...

    def forget_written(self, inode: int) -> None: ...


class Drafts:
    """The drafts of one mount. `list_open` gives the handles of an inode; `on_sealed(draft, before)` is called when the version
    before has become another one, and `tell_attributes` awaited before that is answered."""

    def __init__(
        self,
        files: DraftFiles,
        list_open: Callable[[InodeId], Iterable[FileHandle]],
        on_sealed: Callable[[Draft, VersionId], None],
        tell_attributes: Callable[[InodeId], Awaitable[None]] | None = None,
        notes: Notes | None = None,
    ) -> None:
        self._notes = notes or _NoNotes()
        self._files = files
        self._list_open = list_open
        self._on_sealed = on_sealed
        self._tell_attributes = tell_attributes
        self._drafts: dict[InodeId, Draft] = {}
        self._locks: WeakValueDictionary[InodeId, asyncio.Lock] = WeakValueDictionary()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._left: dict[InodeId, Draft] = {}
        """Those whose worker is to be told that nobody writes them any more."""
        self._telling: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._drafts)

    def lookup(self, inode: InodeId) -> Draft | None:
        """The draft of an inode, if it has one here."""
        return self._drafts.get(inode)

    def list_all(self) -> list[Draft]:
        """Those of all inodes that have one here."""
        return list(self._drafts.values())

    def find(self, entry: Entry) -> Draft | None:
        """The draft that says what a file is now. One that was left is none any more once others have written the file."""
        draft = self._drafts.get(entry.attr.inode)
        return None if draft is None or draft.is_behind(entry.attr.version) else draft

    def says(self, inode: InodeId) -> bool:
        """Whether what a file is comes from its draft, whatever others have written."""
        draft = self._drafts.get(inode)
        return draft is not None and not draft.is_left

    def show(self, attr: Attr) -> Attr:
        """Attributes as they are with what was written: size and times of the draft."""
        draft = self._drafts.get(attr.inode)
        if draft is None:
            return attr
        found = draft.stat()
        values = {field.name: getattr(attr, field.name) for field in fields(Attr)}
        values |= {"size": found.st_size, "blocks": max(0, found.st_blocks - draft.own_blocks)}
        if draft.says_more_than_its_name(found) and found.st_mtime_ns != attr.mtime_ns:
            # Its ctime is not that of the write where something else was done with it since.
            written_ns = min(found.st_mtime_ns, found.st_ctime_ns)
            values |= {"mtime_ns": found.st_mtime_ns, "ctime_ns": max(attr.ctime_ns, written_ns)}
        return WrittenAttr(**values)

    async def check(self, inode: InodeId) -> None:
        """Raises ReadOnly where nothing can be written from here."""
        await self._files.find(inode)

    # Beginning

    async def open(self, entry: Entry, *, truncate: bool, created: bool = False) -> Draft:
        """The draft of a file, with one more writer; `release` takes it back. `created`: nothing was ever sealed.

        Raises as DraftFiles.begin; Stale: the entry is not the newest."""
        return await self._take(self._open(entry, truncate=truncate, known=not created, is_new=created))

    async def adopt(self, entry: Entry) -> Draft:
        """As `open`, for a writer that was there before this daemon was: what it has written may not be sealed."""
        return await self._take(self._open(entry, truncate=False, known=False))

    async def _take(self, call: Coroutine[Any, Any, Draft]) -> Draft:
        task = self._start(call)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._give_back)
            raise

    def _give_back(self, task: "asyncio.Task[Draft]") -> None:
        """Nobody waited for it to the end."""
        if not task.cancelled() and task.exception() is None:
            self._start(self._release(task.result()))

    async def _open(self, entry: Entry, *, truncate: bool, known: bool, is_new: bool = False) -> Draft:
        inode = entry.attr.inode
        if entry.ref is None:
            raise Internal("only files have drafts", subject=entry.name)
        if inode >> SNAPSHOT_SHIFT:
            # Its content may still be that of a file that can be written.
            raise ReadOnly("what is below .snapshots is frozen: copy it elsewhere to change it", subject=entry.name)
        async with self._lock(inode):
            draft = self._drafts.get(inode)
            if draft is not None and self.find(entry) is None:
                await self._end([draft])
                draft = None
            if draft is None:
                draft = await self._begin(entry.ref, truncate=truncate, known=known, is_new=is_new)
                if is_new:
                    # Made after its name: it is not to look as if it had been written. (Where it is another user's, the
                    # worker's, its mtime is a moment later once it is closed.)
                    with contextlib.suppress(PermissionError):
                        os.utime(draft.fd, ns=(entry.attr.mtime_ns, entry.attr.mtime_ns))
                    draft.made = get_stamp(draft.stat())
                draft.is_unnamed = not entry.attr.nlink
            elif draft.reading:
                await self._begin_again(draft, entry.ref)
            if truncate and known:
                # What is empty has other times then, too.
                await asyncio.to_thread(os.ftruncate, draft.fd, 0)
                draft.sealed = None
            draft.writers += 1
            draft.users += 1
            return draft

    async def _begin(self, ref: FileRef, *, truncate: bool, known: bool, is_new: bool = False) -> Draft:
        opened = await self._files.begin(ref, truncate=truncate)
        found = os.fstat(opened.fd)
        draft = Draft(ref.inode, opened.worker_id, opened.fd, ref.version, (found.st_dev, found.st_ino), is_new=is_new)
        if known and found.st_size == ref.size and not truncate:
            draft.sealed = get_stamp(found)
        if is_new and not found.st_size:
            draft.own_blocks = found.st_blocks
        draft.limit = await self._files.claim(ref.inode, found.st_size + CARELESS_BYTES, only_asks=True)
        self._drafts[ref.inode] = draft
        self._notes.note_written(ref.inode)
        for file in self._list_open(ref.inode):
            self.attach(file, draft)
        return draft

    async def _begin_again(self, draft: Draft, ref: FileRef) -> None:
        opened = await self._files.begin(ref, truncate=False)
        os.dup2(opened.fd, draft.fd, inheritable=False)
        os.close(opened.fd)
        found = draft.stat()
        draft.key, draft.reading, draft.is_known_durably = (found.st_dev, found.st_ino), False, False

    async def revive(self, entry: Entry, patience_s: float) -> None:
        """Know a draft again that a daemon before this one had, for as long as somebody writes it through the kernel; whoever
        writes it through a daemon has `patience_s` to come with a request. Raises as `open`."""
        inode = entry.attr.inode
        async with self._lock(inode):
            if inode in self._drafts or entry.ref is None:
                return
            draft = await self._begin(entry.ref, truncate=False, known=False)
            draft.is_unnamed = not entry.attr.nlink
            self._stop_writing(draft)
        self._start(self._watch(draft, patience_s))

    def forget(self, inode: InodeId) -> None:
        """A file that a daemon before this one had a draft of is gone."""
        self._notes.forget_written(inode)

    async def _watch(self, draft: Draft, patience_s: float = 0.0) -> None:
        await asyncio.sleep(patience_s)
        while draft.reading and not draft.over:
            async with self._lock(draft.inode):
                if draft.reading and not draft.over and not _is_written(draft.fd):
                    await self._end([draft])
                    return
            await asyncio.sleep(_LOOK_S)

    def attach(self, file: FileHandle, draft: Draft) -> None:
        """Have a handle that only reads read a draft from now on."""
        if file.draft is not draft and not file.writes:
            before, file.draft = file.draft, draft
            draft.users += 1
            if before is not None:
                self._leave(before)

    # Sealing

    async def seal(self, draft: Draft, operation_id: str) -> None:
        """What was written by now is the file's content when this returns, for all that open it from then on. Raises NoSpace,
        Stale, Store*, Unavailable, ...

        Without a name nobody can, and a version that no name leads to is not kept: what was written waits for its name."""
        if (draft.is_changed or draft.shown) and not draft.is_unnamed:
            await self.finish(self._seal(draft, operation_id))

    async def show_others(self, draft: Draft, operation_id: str) -> None:
        """As `seal`, while the file stays open: what was written by now is seen by who opens it elsewhere, and nothing else is
        done with it before a close. Raises also Conflict, NotFound: there is something else to be seen."""
        await self.finish(self._seal(draft, operation_id, early=True))

    async def _seal(self, draft: Draft, operation_id: str, *, early: bool = False) -> None:
        draft.users += 1
        try:
            async with draft.sealing:
                if early and draft.over:
                    return
                before = get_stamp(draft.stat())
                sealed = await self._files.seal(draft.worker_id, draft.inode, operation_id, early=early)
                if sealed is None:
                    return
                self._note_sealed(draft, sealed, before)
                is_over = sealed.over_quota or (draft.shown_over_quota and sealed.unchanged)
                draft.shown, draft.shown_over_quota = early, early and is_over
                if early and draft.limit is not None:
                    # The master counts what is sealed, and keeps no more room for it.
                    draft.limit = min(draft.limit, before[0])
                if self._tell_attributes is not None and not draft.is_new and not sealed.unchanged:
                    await self._tell_attributes(draft.inode)
            if is_over and not early:
                raise QuotaExceeded("it is kept, and is more than the quota of its directory allows: remove something")
        finally:
            self._leave(draft)

    def _note_sealed(self, draft: Draft, sealed: DraftSealed, before: Stamp) -> None:
        if sealed.ref is not None and sealed.ref.version != draft.version:
            old, draft.version = draft.version, sealed.ref.version
            self._on_sealed(draft, old)
        # What was written meanwhile may or may not be in it.
        draft.sealed = before if get_stamp(draft.stat()) == before else None

    def stat_pending(self, inode: InodeId) -> os.stat_result | None:
        """What the draft of an inode is now, if it has one here."""
        draft = self._drafts.get(inode)
        return None if draft is None else draft.stat()

    def note_published(self, inode: InodeId, ref: FileRef, before: os.stat_result | None) -> None:
        """The master has heard of a file that was made here: that version is all that was in its draft when that was as
        `before`."""
        draft = self._drafts.get(inode)
        if draft is not None and before is not None:
            self._note_sealed(draft, DraftSealed(ref, before.st_mtime_ns), get_stamp(before))

    # Quotas

    def needs_asking(self, draft: Draft) -> bool:
        """Whether a quota leaves so little that each write has to be looked at.

        (What the kernel writes by itself is seen when the file is closed.)"""
        return draft.limit is not None and draft.limit < draft.stat().st_size + CARELESS_BYTES

    async def claim(self, draft: Draft, size: int) -> None:
        """Have a file grow to a size. Raises QuotaExceeded."""
        if draft.limit is None or size <= max(draft.limit, draft.stat().st_size):
            return
        draft.limit = await self._files.claim(draft.inode, size + _CLAIMED_BYTES)
        if draft.limit is not None and size > draft.limit:
            raise QuotaExceeded("the quota of the file's directory is used up: remove something, or have it raised")

    async def check_room(self, draft: Draft, length: int) -> None:
        """Before so much of a file is allocated. Raises NoSpace where its worker's cache could not hold it, whatever the disk
        below has free: that would be taken from what others may cache."""
        more = length - draft.stat().st_blocks * STAT_BLOCK_BYTES
        if more > 0 and not await self._files.has_room(draft.worker_id, more):
            raise NoSpace("the cache of this machine cannot hold as much as is to be allocated", subject=str(draft.inode))

    # Ending

    def begin_release(self, draft: Draft) -> Coroutine[None, None, None]:
        """A writer has gone; what has to be awaited then. (That it was sealed is FLUSH's.)"""
        return self._release(draft)

    async def _release(self, draft: Draft) -> None:
        try:
            async with draft.sealing:
                # The close of a killed writer is sealed without anybody who waits. Until that is told, the draft alone says how
                # large the file is.
                pass
            async with self._lock(draft.inode):
                draft.writers -= 1
                if draft.is_left:
                    self._tell_later(draft)
        finally:
            self._leave(draft)

    def _tell_later(self, draft: Draft) -> None:
        self._left[draft.inode] = draft
        if len(self._left) >= _MOST_LEFT:
            self._begin_telling()
        elif self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(LEFT_S, self._begin_telling)

    def _begin_telling(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        left, self._left = list(self._left.values()), {}
        if left:
            self._start(self._end_left(left))

    async def _end_left(self, drafts: Iterable[Draft]) -> None:
        """End those that nobody has taken up again."""
        async with contextlib.AsyncExitStack() as held:
            ending: dict[WorkerId, list[Draft]] = {}
            for draft in drafts:
                lock = self._lock(draft.inode)
                if lock.locked():
                    # Not waited for: others are held here. Whoever has it takes it up, or it is left once more.
                    self._tell_later(draft)
                    continue
                await held.enter_async_context(lock)
                if draft.is_left and self._drafts.get(draft.inode) is draft:
                    ending.setdefault(draft.worker_id, []).append(draft)
            for of_worker in ending.values():
                await self._end(of_worker)

    async def _end(self, drafts: Sequence[Draft]) -> None:
        """Under the locks of their inodes; drafts of one worker."""
        try:
            await self._files.settle([draft.inode for draft in drafts])
        except AlluxioLikeError as error:
            # Until the master knows of what was made here, nothing but the draft says what is in it.
            log.info("files that were made here are not published yet: %s", error, extra={"files": len(drafts)})
            for draft in drafts:
                self._tell_later(draft)
            return
        # From here on this process does not keep them from being over; those who read them go on.
        for draft in drafts:
            self._stop_writing(draft)
            draft.ending = True
        try:
            await self._files.end_all(drafts[0].worker_id, [draft.inode for draft in drafts])
        except AlluxioLikeError as error:
            log.info("a worker was not told that files are not written any more: %s", error, extra={"files": len(drafts)})
        for draft in drafts:
            draft.over = True
            if self._drafts.get(draft.inode) is draft:
                del self._drafts[draft.inode]
                self._notes.forget_written(draft.inode)
            self._close_unused(draft)

    @staticmethod
    def _stop_writing(draft: Draft) -> None:
        with contextlib.suppress(OSError):
            reading = os.open(f"/proc/self/fd/{draft.fd}", os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(reading, draft.fd, inheritable=False)
            os.close(reading)
            draft.reading = True

    async def end_unknown(self, inode: InodeId) -> None:
        """A writer of an earlier daemon's has gone. Does not raise."""
        try:
            # (One that is known here is watched, or has other writers.)
            if inode not in self._drafts:
                await self._files.end(await self._files.find(inode), inode)
        except AlluxioLikeError as error:
            log.info("a worker was not told that a file is not written any more: %s", error, extra={"inode": inode})

    def detach(self, file: FileHandle) -> None:
        """A handle that only read it has gone."""
        draft, file.draft = file.draft, None
        if draft is not None:
            self._leave(draft)

    def _leave(self, draft: Draft) -> None:
        draft.users -= 1
        self._close_unused(draft)

    @staticmethod
    def _close_unused(draft: Draft) -> None:
        if draft.over and draft.users <= 0 and draft.fd >= 0:
            fd, draft.fd = draft.fd, -1
            os.close(fd)

    # Bytes

    def try_read_into(self, draft: Draft, offset: int, buffer: memoryview) -> int:
        """Read without waiting for a disk: how many bytes, -1: they are not in memory."""
        try:
            return os.preadv(draft.fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return -1
        except OSError:
            return -1  # `read` says what is wrong

    async def use(self, draft: Draft, work: Callable[[int], _T]) -> _T:
        """Do something with a draft's descriptor in a thread, to its end, whoever waits for it. Raises FileError."""
        # From this moment on: the last writer may be just going, and would take the descriptor with it.
        draft.users += 1
        return await self.finish(self._use(draft, work))

    async def _use(self, draft: Draft, work: Callable[[int], _T]) -> _T:
        try:
            return await asyncio.to_thread(work, draft.fd)
        except OSError as error:
            raise FileError(error.errno, error.strerror) from error
        finally:
            self._leave(draft)

    async def set_times(self, draft: Draft, atime_ns: int | None, mtime_ns: int) -> None:
        """Give a draft the times that were set for its file. (One that nobody writes any more holds just what was sealed, and is
        to stay so, also while it is ending: the name has them.)"""
        says_all = not draft.writers and not draft.says_more_than_its_name(draft.stat())
        if says_all and not self._files.is_pending(draft.inode):
            return
        await self.use(draft, lambda fd: os.utime(fd, ns=(mtime_ns if atime_ns is None else atime_ns, mtime_ns)))

    async def sync(self, draft: Draft, *, data_only: bool) -> None:
        """What was written by now outlives the loss of power when this returns. Raises FileError, Unavailable."""
        await self.use(draft, os.fdatasync if data_only else os.fsync)
        if not draft.is_known_durably:
            await self.finish(self._files.sync(draft.worker_id, draft.inode))
            draft.is_known_durably = True

    # Under way

    async def finish(self, call: Coroutine[Any, Any, _T]) -> _T:
        """Await something that is carried to its end even if whoever waits for it is cancelled."""
        return await asyncio.shield(self._start(call))

    def _start(self, call: Coroutine[Any, Any, _T]) -> "asyncio.Task[_T]":
        task = asyncio.get_running_loop().create_task(call)
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waited, if somebody did

    async def close(self) -> None:
        """Give the descriptors back; what is not sealed stays with its worker. Does not raise."""
        self._begin_telling()
        for draft in self._drafts.values():
            draft.over = True
        if self._under_way:
            await asyncio.wait(list(self._under_way), timeout=5.0)
        if self._telling is not None:
            self._telling.cancel()
        drafts, self._drafts = list(self._drafts.values()), {}
        for draft in drafts:
            if draft.fd >= 0:
                fd, draft.fd = draft.fd, -1
                os.close(fd)

    def _lock(self, inode: InodeId) -> asyncio.Lock:
        lock = self._locks.get(inode)
        if lock is None:
            lock = self._locks[inode] = asyncio.Lock()
        return lock


def kill_set_ids(mode: int) -> int:
    """Permission bits after a write by somebody who may not keep set-id bits."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode
