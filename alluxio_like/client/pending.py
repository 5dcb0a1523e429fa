"""Files that this client has made in directories which are delegated to it, before the master knows of them (decision 0071).

Owns the delegations, and the files until they are published: each is noted with its draft before it is said to be there, looks
to the rest of the client as if the master had told of it, and is published with others before long; at once where something is to
be asked or changed that it has to do with. That is `settle`: whoever is about to ask the master or a worker about files or
directories calls it first. Rule of concurrency: one event loop; one batch is being published at a time.
"""

import asyncio
import contextlib
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from alluxio_like.cache.new_files import NewFile, Note, write_note
from alluxio_like.client.blanks import BlankPool, OpenedDraft
from alluxio_like.client.draft_workers import NO_LIMIT_S, DraftWorkers
from alluxio_like.client.metadata import Begun, MetadataCache
from alluxio_like.client.news import News
from alluxio_like.client.pending_table import Pending, PendingTable, may_be_called
from alluxio_like.errors import AlluxioLikeError, Cancelled, Internal, NoSpace, NotFound, ReadOnly, TimedOut, Unavailable
from alluxio_like.rpc.messages import LookupResult
from alluxio_like.rpc.messages_writing import (
    Changed,
    Delegation,
    NewAttributes,
    NewName,
    Published,
    PublishedFile,
    Renaming,
    Told,
)
from alluxio_like.types import (
    EVERYWHERE,
    OWN_TOKEN,
    Attr,
    Entry,
    FileRef,
    Fingerprint,
    InodeId,
    Kind,
    Recall,
    VersionId,
    to_bytes,
)

_log = logging.getLogger(__name__)

_SOON_S = 0.2
"""How long a file waits for others to be published with. A guess."""
_MANY = 64
"""So many that are closed are published at once."""
_MOST_AT_ONCE = 256
_MOST = 512
"""With more that are closed a close waits; with more altogether files are made as before."""
_PASSING = (Unavailable, TimedOut, Cancelled, NoSpace)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_CLOSE_S = 5.0
START_S = 2.0
"""A mount that has lost its daemon and its worker waits no longer for the worker. A guess."""
_FIRST_VERSION = VersionId(1)


class Contents(Protocol):
    """Who writes the files that are made here."""

    def stat_pending(self, inode: InodeId) -> os.stat_result | None:
        """What a file's draft is now; None: nobody here has it open any more."""
        ...

    def note_published(self, inode: InodeId, ref: FileRef, before: os.stat_result | None) -> None:
        """A file has that content at the master, of which all was in its draft when that was as `before`."""
        ...


class PendingFiles:
    """See the module. Nothing is delegated to the client before `start`."""

    def __init__(
        self,
        names: MetadataCache,
        is_live: Callable[[], bool],
        news: News,
        pool: BlankPool,
        workers: DraftWorkers,
        *,
        io_timeout_s: float,
    ) -> None:
        """`is_live`: whether the lease lives that covers what is remembered."""
        self._names = names
        self._is_live = is_live
        self._news = news
        self._pool = pool
        self._workers = workers
        self._io_timeout_s = io_timeout_s
        self._owner = ""
        self._delegations: dict[InodeId, Delegation] = {}
        self._files = PendingTable()
        self._hurried: set[InodeId] = set()
        """Those that somebody waits for."""
        self._making = 0
        self._taken: set[InodeId] = set()
        """Directories that were taken back while some were being made."""
        self._recalled: set[InodeId] = set()
        """Directories that others have changed since what is being published was sent."""
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._publishing: asyncio.Task[None] | None = None
        self._succeeding: asyncio.Task[None] | None = None
        self.contents: Contents | None = None

    @property
    def is_started(self) -> bool:
        """Whether directories may be delegated to this client."""
        return bool(self._owner)

    def __len__(self) -> int:
        return len(self._files)

    async def start(self, owner: str, *, succeeds: bool, makes: bool = True) -> None:
        """Make files ahead of the master from now on (unless `makes` is off). `owner` names the client, and those whose place it
        takes; `succeeds`: one may have been killed, and what it has made is published first, if that can be done within START_S.
        Does not raise."""
        if succeeds:
            self._succeeding = asyncio.create_task(self._succeed(owner), name="publish files that were left")
            await asyncio.wait([self._succeeding], timeout=START_S)
        self._owner = owner if makes else ""

    async def wait_succeeded(self) -> bool:
        """Whether what the client before this one had made may not have been known when this was called; it is now. Raises
        Unavailable: it is not yet."""
        if self._succeeding is None or self._succeeding.done():
            return False
        await asyncio.wait([self._succeeding], timeout=self._io_timeout_s)
        if not self._succeeding.done():
            raise Unavailable("files that the daemon before this one has made are not known yet: their worker is away")
        return True

    async def _succeed(self, owner: str) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                worker = await self._workers.choose(InodeId(0))
                count = await self._workers.ask(
                    worker.worker_id,
                    lambda stub: self._workers.watch(stub, stub.publish_left(owner, timeout_s=NO_LIMIT_S)),
                    wait_s=0.0,
                )
            except ReadOnly:
                return  # nothing was made here
            except AlluxioLikeError as error:
                _log.warning("files that the daemon before this one has made are not to be seen yet: %s", error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                if count:
                    _log.info("files were published that the daemon before this one had made", extra={"files": count})
                return

    # Making files

    @contextlib.contextmanager
    def making_directory(self) -> Iterator[Callable[[InodeId, Delegation], None]]:
        """While a directory is being made; what is given is called if it was delegated to this client. It may have been taken
        back before that is heard of."""
        self._making += 1
        try:
            yield self._note_delegation
        finally:
            self._making -= 1
            if not self._making:
                self._taken.clear()

    def _note_delegation(self, directory: InodeId, delegation: Delegation) -> None:
        if self._owner and self._taken.isdisjoint((directory, EVERYWHERE)):
            self._delegations[directory] = delegation
            self._pool.warm()

    async def create(self, new: NewName, operation_id: str) -> Changed | None:
        """Make a file. None: the master has to be asked."""
        if new.parent in self._delegations:
            await self._pool.wait()
        # No await from here on.
        delegation = self._delegations.get(new.parent)
        is_file = new.kind is Kind.FILE and not new.unnamed
        if delegation is None or not is_file or not may_be_called(new.name, delegation) or not self._is_live():
            return None
        if len(self._files) >= 2 * _MOST:
            return None
        absent, directory = self._names.lookup(new.parent, new.name), self._names.get(new.parent)
        if absent is None or absent.entry is not None or directory is None or directory.entry is None:
            return None
        above = directory.entry.attr
        if above.mode & stat.S_ISGID or above.has_xattrs:
            # What is made there inherits from it.
            return None
        blank = self._pool.take()
        if blank is None:
            return None
        inode, now_ns = blank.inode, time.time_ns()
        file = NewFile(operation_id, inode, new.parent, new.name, new.mode, new.uid, new.gid, now_ns, now_ns, made_ns=now_ns)
        fd = -1
        try:
            fd = os.dup(blank.draft.fd)
            # Last: what is noted is there.
            write_note(fd, Note(self._owner, file))
        except OSError as error:
            for one in (fd, blank.draft.fd):
                if one >= 0:
                    os.close(one)
            _log.warning("a new file cannot be noted with its draft: %s", error)
            return None
        attr = Attr(inode, Kind.FILE, new.mode, new.uid, new.gid, 0, now_ns, now_ns, 1, _FIRST_VERSION)
        fingerprint = Fingerprint(f"{OWN_TOKEN}{_FIRST_VERSION:x}", 0)
        ref = FileRef(inode, _FIRST_VERSION, delegation.mount_id, delegation.key + new.name, fingerprint)
        pending = Pending(file, Entry(new.name, attr, ref), blank.draft.worker_id, fd, time.monotonic(), blank.draft)
        self._files.add(pending)
        self._begin_publishing()
        return self._tell(pending, absent.valid_s, (self._describe_changed(directory, now_ns),))

    def rename(self, renaming: Renaming, operation_id: str) -> Changed | None:
        """Give a file a name that nothing has. None: the master has to be asked. Does not wait."""
        pending = self._files.lookup((renaming.parent, renaming.name))
        if pending is None or pending.is_sent or renaming.exchange or not self._is_live():
            return None
        old, new = (self._delegations.get(directory) for directory in (renaming.parent, renaming.new_parent))
        if old is None or new is None or old.mount_id != new.mount_id or not may_be_called(renaming.new_name, new):
            return None
        file, is_moved = pending.file, renaming.parent != renaming.new_parent
        if is_moved and file.left not in (0, renaming.new_parent):
            # (One directory that it has left is noted.)
            return None
        absent = self._names.lookup(renaming.new_parent, renaming.new_name)
        directories = [self._names.get(one) for one in dict.fromkeys((renaming.new_parent, renaming.parent))]
        if absent is None or absent.entry is not None or any(one is None for one in directories):
            return None
        now_ns = time.time_ns()
        file = replace(
            file,
            parent=renaming.new_parent,
            name=renaming.new_name,
            changed_ns=now_ns,
            made_ns=now_ns,
            renamed_id=operation_id,
            left=renaming.parent if is_moved else file.left,
            left_ns=now_ns if is_moved else file.left_ns,
        )
        try:
            write_note(pending.fd, Note(self._owner, file))
        except OSError as error:
            _log.warning("the name of a new file cannot be noted with its draft: %s", error)
            return None
        entry = pending.entry
        assert entry.ref is not None
        ref = replace(entry.ref, key=new.key + renaming.new_name)
        self._files.rename(pending, file, Entry(renaming.new_name, replace(entry.attr, ctime_ns=now_ns), ref))
        gone = Told(renaming.parent, renaming.name, LookupResult(None, absent.valid_s, True, renaming.parent))
        changed = [self._describe_changed(one, now_ns) for one in directories if one is not None]
        recall = Recall(renaming.parent, (to_bytes(renaming.name),), inodes=(file.inode,))
        return self._tell(pending, absent.valid_s, (gone, *changed), (recall,))

    def _describe_changed(self, directory: LookupResult, now_ns: int) -> Told:
        """A directory in which something was made, or which something has left."""
        entry = directory.entry
        assert entry is not None
        changed = replace(entry, attr=replace(entry.attr, mtime_ns=now_ns, ctime_ns=now_ns))
        inode = entry.attr.inode
        return Told(inode, "", LookupResult(changed, directory.valid_s, True, self._get_above(inode)))

    def set_attributes(self, inode: InodeId, wanted: NewAttributes) -> Changed | None:
        """Change attributes of a file. None: the master has to be asked. Does not wait."""
        pending = self._files.get(inode)
        known = None if pending is None or pending.is_sent else self._names.get(inode)
        if pending is None or known is None:
            return None
        now_ns = time.time_ns()
        attr = pending.entry.attr
        mode = attr.mode if wanted.mode is None else wanted.mode
        uid, gid = attr.uid if wanted.uid is None else wanted.uid, attr.gid if wanted.gid is None else wanted.gid
        atime_ns = attr.atime_ns if wanted.atime_ns is None else wanted.atime_ns
        mtime_ns = attr.mtime_ns if wanted.mtime_ns is None else wanted.mtime_ns
        file = replace(pending.file, mode=mode, uid=uid, gid=gid, atime_ns=atime_ns, mtime_ns=mtime_ns, changed_ns=now_ns)
        try:
            write_note(pending.fd, Note(self._owner, file))
        except OSError as error:
            _log.warning("attributes of a new file cannot be noted with its draft: %s", error)
            return None
        changed = replace(attr, mode=mode, uid=uid, gid=gid, atime_ns=atime_ns, mtime_ns=mtime_ns, ctime_ns=now_ns)
        pending.file, pending.entry = file, replace(pending.entry, attr=changed)
        return self._tell(pending, known.valid_s)

    def take_draft(self, inode: InodeId) -> OpenedDraft | None:
        """The draft of a file that was just made, for who writes it: once."""
        pending = self._files.get(inode)
        if pending is None or pending.draft is None:
            return None
        draft, pending.draft = pending.draft, None
        return draft

    async def note_closed(self, inode: InodeId) -> bool:
        """What was written to a file by now is to be seen by others. False: it is not pending, or being published: seal it."""
        pending = self._files.get(inode)
        if pending is None or pending.is_sent:
            return False
        if not pending.file.sealed:
            file = replace(pending.file, sealed=True)
            pending.file = file
            self._files.closed_count += 1
            if self._files.closed_count >= _MANY:
                self._wake.set()
        if self._files.closed_count > _MOST:
            await self._publish([inode])
        return True

    def _tell(self, pending: Pending, valid_s: float, told: tuple[Told, ...] = (), recalls: tuple[Recall, ...] = ()) -> Changed:
        """Have the rest of the client know a file as it is now, and what else has changed."""
        entry, parent = pending.entry, pending.file.parent
        recalls = (Recall(parent, (to_bytes(entry.name),), inodes=(entry.attr.inode,)), *recalls)
        told = (Told(parent, entry.name, LookupResult(entry, valid_s, True, parent)), *told)
        self._news.take(recalls, told, self._news.begin())
        return Changed(entry, recalls, told)

    def _get_above(self, directory: InodeId) -> InodeId:
        known = self._names.get_old(directory)
        return EVERYWHERE if known is None else known.parent

    # Having them known

    def is_pending(self, inode: InodeId) -> bool:
        """Whether the master does not know of a file."""
        return inode in self._files

    async def settle(self, inodes: Iterable[InodeId]) -> None:
        """The master knows of all of these, and of all that is in them. Raises what keeps it from that."""
        if self._files:
            await self._publish([inode for asked in inodes for inode in self._files.list_of(asked)])

    async def settle_names(self, *places: tuple[InodeId, str]) -> None:
        """The master knows where these names lead to, and what is in those that are directories."""
        for place in places if self._files else ():
            if (pending := self._files.lookup(place)) is not None:
                await self._publish([pending.file.inode])
            elif (old := self._names.lookup_old(*place)) is None:
                await self._publish(list(self._files))
            elif old.entry is not None:
                await self.settle([old.entry.attr.inode])

    async def settle_all(self) -> None:
        """The master knows of all files."""
        if self._files:
            await self._publish(list(self._files))

    def give_up(self, recalls: Sequence[Recall]) -> Awaitable[None] | None:
        """The master takes back what was delegated; what is returned is done once it knows what was made there. None: it does."""
        self._recalled.update(recall.directory for recall in recalls)
        taken = {recall.directory for recall in recalls if recall.all_names}
        if self._making:
            self._taken |= taken
        ended = list(self._delegations) if EVERYWHERE in taken else [one for one in taken if one in self._delegations]
        for directory in ended:
            del self._delegations[directory]
        left = self._files.list_in(taken)
        succeeding = self._succeeding if EVERYWHERE in taken else None
        if succeeding is not None and succeeding.done():
            succeeding = None
        return self._publish_patiently(left, succeeding) if left or succeeding is not None else None

    async def _publish_patiently(self, inodes: list[InodeId], succeeding: "asyncio.Task[None] | None") -> None:
        """Who waits for it does so until our lease has run out."""
        if succeeding is not None:
            # What the one before has made is what it would have given back.
            await asyncio.wait([succeeding])
        while True:
            try:
                await self._publish(inodes)
            except _PASSING as error:
                _log.warning("a directory cannot be given back yet: %s", error)
                await asyncio.sleep(_FIRST_PAUSE_S)
                continue
            except AlluxioLikeError as error:
                # It will not be better for waiting: others see what there is.
                _log.warning("a directory is given back without a file that cannot be published: %s", error)
            return

    async def close(self) -> None:
        """Have all be published, if that can be done at once; else their worker does it. Does not raise."""
        self._owner = ""
        self._delegations.clear()
        with contextlib.suppress(AlluxioLikeError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self.settle_all()
        tasks = [task for task in (self._publishing, self._succeeding) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pending in self._files.list_all():
            self._files.remove(pending)
        await self._pool.close()

    # Publishing

    async def _publish(self, inodes: Sequence[InodeId]) -> None:
        tries = {inode: pending.tries for inode in inodes if (pending := self._files.get(inode)) is not None}
        deadline = time.monotonic() + self._io_timeout_s
        while left := [inode for inode in tries if inode in self._files]:
            for inode in left:
                pending = self._files.get(inode)
                if pending is not None and pending.error is not None and pending.tries > tries[inode]:
                    raise pending.error
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Unavailable("files that were just made here cannot be told to the master: see the log of the worker")
            self._hurried.update(left)
            self._wake.set()
            await self._wait_progress(left_s)

    async def _wait_progress(self, limit_s: float) -> None:
        progress = self._progress
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await progress.wait()

    def _begin_publishing(self) -> None:
        if self._publishing is None or self._publishing.done():
            self._publishing = asyncio.create_task(self._run(), name="publish files")

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._files:
            batch = await self._wait_for_some()
            try:
                await self._send(batch)
                pause_s = _FIRST_PAUSE_S
            except AlluxioLikeError as error:
                _log.warning("files that were made here are not published yet: %s", error, extra={"files": len(batch)})
                for pending in batch:
                    pending.error = error
            for pending in batch:
                pending.tries += 1
            progress, self._progress = self._progress, asyncio.Event()
            progress.set()
            if any(pending.error is not None for pending in batch):
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _wait_for_some(self) -> list[Pending]:
        """Those that are to be published now: of one worker, one at least."""
        while True:
            self._wake.clear()
            if due := self._list_due():
                self._hurried.clear()
                return [pending for pending in due if pending.worker_id == due[0].worker_id][:_MOST_AT_ONCE]
            left_s = self._files.get_oldest().made_s + _SOON_S - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._wake.wait()

    def _list_due(self) -> list[Pending]:
        """When one has to be published, all go that are closed."""
        now_s = time.monotonic()
        oldest = self._files.get_oldest()
        is_due = (
            self._files.closed_count >= _MANY or oldest.made_s + _SOON_S <= now_s or not self._hurried.isdisjoint(self._files)
        )
        return [
            pending
            for pending in (self._files.list_all() if is_due else ())
            if pending.file.sealed or pending.file.inode in self._hurried or pending.made_s + _SOON_S <= now_s
        ]

    async def _send(self, batch: Sequence[Pending]) -> None:
        """Raises what goes wrong with all of them."""
        befores = [self._begin_sending(pending) for pending in batch]
        files, begun = [pending.file for pending in batch], self._news.begin()
        self._recalled = set()
        published = await self._workers.ask(
            batch[0].worker_id,
            lambda stub: self._workers.watch(stub, stub.publish(self._news.lease, files, timeout_s=NO_LIMIT_S)),
            wait_s=self._io_timeout_s,
        )
        if len(published.files) != len(batch):
            raise Internal("a worker has not answered for all files that were to be published")
        for pending, before, result in zip(batch, befores, published.files, strict=True):
            self._note_result(pending, before, result)
        self._take(published, begun)

    def _begin_sending(self, pending: Pending) -> os.stat_result | None:
        pending.is_sent = True
        found = None if self.contents is None else self.contents.stat_pending(pending.file.inode)
        if found is not None and pending.file.sealed:
            # As it was shown until now: what was written has changed it, too.
            written_ns = min(found.st_mtime_ns, found.st_ctime_ns)
            pending.file = replace(pending.file, changed_ns=max(pending.file.changed_ns, written_ns))
        return found

    def _take(self, published: Published, begun: Begun) -> None:
        """What has been told of files that are known now. What was made here in their directories meanwhile has nothing to do
        with them; what others have changed there may be newer."""

        ours: list[Told] = []
        doubtful: list[Told] = []
        for one in published.told:
            (ours if self._recalled.isdisjoint((one.parent, EVERYWHERE)) else doubtful).append(one)
        names = {(one.parent, to_bytes(one.name)) for one in ours if one.name}
        others = [
            recall
            for recall in published.recalls
            if recall.all_names or not names.issuperset((recall.directory, name) for name in recall.names)
        ]
        self._news.take(others, doubtful, begun)
        # (The directories themselves are known as they were shown, or by what has changed them since.)
        self._news.take((), [one for one in ours if one.name], self._news.begin())

    def _note_result(self, pending: Pending, before: os.stat_result | None, result: PublishedFile) -> None:
        pending.error = None if result.ref is not None else result.error
        if pending.error is not None and not isinstance(pending.error, NotFound):
            _log.warning("a file that was made here is not published yet: %s", result.error, extra={"inode": pending.file.inode})
            return
        if result.ref is None:
            _log.warning("others have removed the directory of a file that was made here", extra={"inode": pending.file.inode})
            self._news.doubt_names([(pending.file.parent, pending.file.name)])
            pending.error = None
        elif result.error is not None:
            # It is kept; a close that waits for its policy would say so.
            _log.warning("a file that was made here is not where its policy wants it yet: %s", result.error)
        self._files.remove(pending)
        if result.ref is not None and pending.file.sealed and self.contents is not None:
            self.contents.note_published(pending.file.inode, result.ref, before)
