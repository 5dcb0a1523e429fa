"""What programs write into files through this mount.

Owns the requests that make, open, write, truncate, seal and sync a file's bytes; the drafts behind them are drafts.py's, how the
kernel is served opening.py's. FLUSH seals, so close(2) tells whether what was written is safe as the policy says.

A handle that an earlier daemon gave out is taken over with the first request that needs it: the draft is still with its worker.

Rule of concurrency: one event loop; what may wait for a disk runs in threads.
"""

import ctypes
import errno
import os
from dataclasses import dataclass
from typing import Any

from alluxio_like.errors import AlreadyExists, Internal, InvalidArgument, NotFound, ReadOnly
from alluxio_like.fuse import answers, wire
from alluxio_like.fuse.appending import Appends, Place
from alluxio_like.fuse.attributes import FileError, get_kind
from alluxio_like.fuse.backend import Backend
from alluxio_like.fuse.changing import Answerer, Changing
from alluxio_like.fuse.drafts import Draft, Drafts, take_newest
from alluxio_like.fuse.handles import FileHandle
from alluxio_like.fuse.locking import Locking
from alluxio_like.fuse.modes import Way
from alluxio_like.fuse.nodes import Nodes
from alluxio_like.fuse.opening import Choice, Opener
from alluxio_like.fuse.operations import Operations
from alluxio_like.types import OWN_TOKEN, Entry, Kind, to_str

INLINE_BYTES = 128 << 10
"""A WRITE of up to so much is done at once; a larger one in a thread, since it may have to wait for the disk. A guess."""
_MOST_COPIED = 1 << 30
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_MOST_OFFSET = (1 << 63) - 1
"""The wire's are without a sign: above are those below zero."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that was opened for writing, and how the kernel is to be served; `entry` goes before it in the answer to CREATE."""

    file: FileHandle
    choice: Choice
    entry: bytes = b""


class Writing:
    """Files written through one mount."""

    def __init__(
        self,
        operations: Operations,
        changing: Changing,
        drafts: Drafts,
        opener: Opener,
        nodes: Nodes,
        backend: Backend,
        appends: Appends,
        locking: Locking | None = None,
    ) -> None:
        """`locking`: None where locks are the kernel's own affair."""
        self._appends = appends
        self._locking = locking
        self._operations = operations
        self._changing = changing
        self._drafts = drafts
        self._opener = opener
        self._nodes = nodes
        self._backend = backend

    def list_answerers(self) -> dict[int, tuple[str, Answerer]]:
        """What answers each kind of request, those of Changing included; that of CREATE gives an Opened."""
        return {
            **self._changing.list_answerers(),
            **({} if self._locking is None else self._locking.list_answerers()),
            wire.CREATE: ("create", self.create),
            wire.TMPFILE: ("create", self.create_unnamed),
            wire.LINK: ("link", self.link),
            wire.MKNOD: ("mknod", self.mknod),
            wire.SETATTR: ("setattr", self.setattr),
            wire.WRITE: ("write", self.write),
            wire.FLUSH: ("flush", self.flush),
            wire.FSYNC: ("fsync", self.fsync),
            wire.FALLOCATE: ("fallocate", self.fallocate),
            wire.LSEEK: ("lseek", self.lseek),
            wire.COPY_FILE_RANGE: ("copy_file_range", self.copy_file_range),
            wire.COPY_FILE_RANGE_64: ("copy_file_range", self.copy_file_range),
        }

    # Opening

    async def open(self, header: wire.InHeader, flags: int, open_flags: int) -> Opened:
        """An open for writing. Raises ReadOnly, Stale, IsADirectory, NoSpace, ..."""
        node = header.nodeid
        entry = await self._operations.get_entry_to_write(self._nodes.get_inode(node))
        # (Of O_RDONLY|O_TRUNC the kernel thinks only once all has been cut off.)
        self._operations.refuse_running(entry.attr.inode, node if flags & os.O_ACCMODE else 0)
        opened = await self._open(header, node, entry, truncate=bool(flags & os.O_TRUNC))
        entry = opened.file.entry
        if flags & os.O_TRUNC and open_flags & wire.OPEN_KILL_SUIDGID:
            await self._changing.kill_set_ids(header, entry)
        return opened

    async def _open(self, header: wire.InHeader, node: int, entry: Entry, *, truncate: bool, created: bool = False) -> Opened:
        entry, draft = await self._take(entry, truncate=truncate, created=created)
        try:
            unique = header.unique & ~wire.UNIQUE_RESEND
            passes = not self._drafts.needs_asking(draft)
            choice = self._opener.open_draft(node, entry, draft, header.pid, unique, writes=True, passes=passes)
        except BaseException:
            await self._drafts.begin_release(draft)
            raise
        return Opened(FileHandle(entry, None, node, choice.way, draft=draft, writes=True), choice)

    async def _take(self, entry: Entry, *, truncate: bool, created: bool) -> tuple[Entry, Draft]:
        """The draft of a file that was looked up, and the file as it was then. Raises as `Drafts.open`."""
        found: Entry | None = entry

        async def lookup() -> Entry:
            nonlocal found
            given, found = found, None
            return given or await self._operations.get_entry_to_write(entry.attr.inode)

        return await take_newest(lookup, lambda one: self._drafts.open(one, truncate=truncate, created=created and one is entry))

    async def create(self, request: wire.Request) -> Opened:
        header, body = request
        assert isinstance(body, wire.Create)
        await self._drafts.check(self._operations.get_inode(header.nodeid))
        try:
            entry, created = await self._changing.create(header, body.name, Kind.FILE, body.mode, umask=body.umask), True
        except AlreadyExists:
            if body.flags & os.O_EXCL:
                raise
            # Made by somebody else since the kernel looked.
            found = (await self._operations.lookup(header.nodeid, body.name)).entry
            if found is None:
                raise NotFound("it was there, and is not any more", subject=to_str(body.name)) from None
            entry, created = await self._operations.get_entry_to_write(found.attr.inode), False
        node = self._opener.get_node(entry.attr)
        opened = await self._open(header, node, entry, truncate=created or bool(body.flags & os.O_TRUNC), created=created)
        return Opened(opened.file, opened.choice, self._changing.pack_entry(entry, opens=created))

    async def create_unnamed(self, request: wire.Request) -> Opened:
        """O_TMPFILE: a file without a name, which `link` may give it. (That it is to get none, O_EXCL, the kernel sees to.)"""
        header, body = request
        assert isinstance(body, wire.Create)
        await self._drafts.check(self._operations.get_inode(header.nodeid))
        entry = await self._changing.create(header, b"", Kind.FILE, body.mode, umask=body.umask, unnamed=True)
        opened = await self._open(header, self._opener.get_node(entry.attr), entry, truncate=True, created=True)
        return Opened(opened.file, opened.choice, self._changing.pack_entry(entry))

    async def link(self, request: wire.Request) -> bytes:
        """A further name of a file. With its first one all that was written is sealed: others find it whole, not at the close."""
        header, body = request
        assert isinstance(body, wire.Link)
        before = await self._operations.get_shown_entry(self._nodes.get_inode(body.old_nodeid))
        if not before.attr.nlink and self._drafts.lookup(before.attr.inode) is None:
            # Its worker has let go of it with the last who wrote it.
            raise NotFound("a file without a name gets one while it is open for writing", subject=str(before.attr.inode))
        entry = await self._changing.link(request)
        if not before.attr.nlink and entry.ref is not None:
            draft = await self._drafts.adopt(entry)
            try:
                draft.is_unnamed = False
                await self._drafts.seal(draft, self._changing.make_operation_id(header, ".s"))
            finally:
                await self._drafts.finish(self._drafts.begin_release(draft))
            entry = await self._operations.get_shown_entry(entry.attr.inode)
        return self._changing.pack_entry(entry)

    async def mknod(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Mknod)
        if get_kind(body.mode) is not Kind.FILE:
            return await self._changing.mknod(request)
        await self._drafts.check(self._operations.get_inode(header.nodeid))
        entry = await self._changing.create(header, body.name, Kind.FILE, body.mode, umask=body.umask)
        await self._change_closed(header, entry, truncate=True, created=True)
        return self._changing.pack_entry(entry)

    async def _change_closed(
        self, header: wire.InHeader, entry: Entry, size: int = 0, *, truncate: bool = False, created: bool = False
    ) -> None:
        """Give a file that nobody opened for it another size, and seal that."""
        _, draft = await self._take(entry, truncate=truncate, created=created)
        try:
            if not truncate:
                await self._drafts.claim(draft, size)
                await self._drafts.use(draft, lambda fd: os.ftruncate(fd, size))
            await self._drafts.seal(draft, self._changing.make_operation_id(header, ".s"))
        finally:
            # (Whoever cancels this leaves it to the task that goes on.)
            await self._drafts.finish(self._drafts.begin_release(draft))

    # Attributes

    async def setattr(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Setattr)
        node = self._nodes.get_inode(header.nodeid)
        inode = self._operations.get_inode(node)
        if body.valid & wire.FATTR_SIZE:
            await self._truncate(header, body)
        entry = await self._operations.get_shown_entry(node)
        entry = await self._changing.set_attributes(header, body, inode, entry)
        attr, _ = self._operations.show(entry, 0.0)
        return wire.pack_attr_out(answers.pack_attributes(attr), 0.0)

    async def _truncate(self, header: wire.InHeader, body: wire.Setattr) -> None:
        if body.valid & wire.FATTR_FH:
            draft = await self._get_draft(header, body.fh)
            await self._drafts.claim(draft, body.size)
            await self._drafts.use(draft, lambda fd: os.ftruncate(fd, body.size))
            return
        entry = await self._operations.get_entry_to_write(self._nodes.get_inode(header.nodeid))
        self._operations.refuse_running(entry.attr.inode, header.nodeid)
        await self._change_closed(header, entry, body.size, truncate=not body.size)

    # Bytes

    def try_write(self, unique: int, handle: int, offset: int, data: memoryview, flags: int, write_flags: int) -> int:
        """Write at once: how many bytes; -1: ask `write`. Raises FileError."""
        file = self._operations.lookup_file(handle)
        if file is None or file.draft is None or len(data) > INLINE_BYTES or write_flags & wire.WRITE_KILL_SUIDGID:
            return -1
        draft = file.draft
        appends = _goes_to_the_end(file, flags, write_flags)
        if draft.limit is not None and (draft.stat().st_size if appends else offset) + len(data) > draft.limit:
            return -1
        if not appends:
            return _write(draft.fd, data, offset)
        place = self._begin_append(unique, draft, data)
        if place.written >= 0:
            return place.written
        count = _write(draft.fd, data, place.offset)
        self._appends.end(unique, draft.inode, place.offset, count)
        return count

    async def write(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Write)
        draft = await self._get_draft(header, body.fh)
        file = self._operations.lookup_file(body.fh)
        appends = file is not None and _goes_to_the_end(file, body.flags, body.write_flags)
        if body.write_flags & wire.WRITE_KILL_SUIDGID:
            await self._changing.kill_set_ids(
                header, await self._operations.get_shown_entry(self._nodes.get_inode(header.nodeid))
            )
        data, offset = body.data, body.offset
        await self._drafts.claim(draft, (draft.stat().st_size if appends else offset) + len(data))
        if appends:
            # Not before: others may have appended meanwhile.
            offset, done = self._begin_append(header.unique, draft, data)
            if done >= 0:
                return wire.pack_write(done)
        count = await self._drafts.use(draft, lambda fd: _write(fd, data, offset))
        if appends:
            self._appends.end(header.unique, draft.inode, offset, count)
        return wire.pack_write(count)

    def _begin_append(self, unique: int, draft: Draft, data: memoryview | bytes) -> Place:
        try:
            return self._appends.begin(unique, draft.inode, draft.fd, data)
        except OSError as error:
            raise FileError(error.errno, error.strerror) from error

    async def flush(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Flush)
        try:
            file = await self._get_file(header, body.fh)
            await self._seal(header, file)
        finally:
            # A descriptor is closed whatever close(2) returns.
            if self._locking is not None:
                await self._locking.flush(header.nodeid, body.lock_owner)
        return b""

    async def _seal(self, header: wire.InHeader, file: FileHandle) -> None:
        if file.draft is not None and file.writes:
            await self._drafts.seal(file.draft, self._changing.make_operation_id(header))

    async def fsync(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Fsync)
        file = await self._get_file(header, body.fh)
        if file.draft is not None and file.writes:
            await self._drafts.sync(file.draft, data_only=bool(body.flags & wire.FSYNC_FDATASYNC))
        # Its name too, or what the disk has would belong to nobody.
        await self._changing.flush()
        return b""

    async def fallocate(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Fallocate)
        draft = await self._get_draft(header, body.fh)
        if not body.mode & _FALLOC_FL_KEEP_SIZE:
            await self._drafts.claim(draft, body.offset + body.length)
        if not body.mode & _FALLOC_FL_PUNCH_HOLE:
            await self._drafts.check_room(draft, body.length)
        await self._drafts.use(draft, lambda fd: _fallocate(fd, body.mode, body.offset, body.length))
        return b""

    async def lseek(self, request: wire.Request) -> bytes:
        """SEEK_DATA and SEEK_HOLE. What was not written here shows no holes."""
        header, body = request
        assert isinstance(body, wire.Lseek)
        if body.offset > _MOST_OFFSET:
            raise FileError(errno.ENXIO, "before the beginning of the file")
        file = await self._get_file(header, body.fh, writes=False)
        if body.offset >> 63:
            raise FileError(errno.ENXIO, "before the beginning of the file")
        if file.draft is not None:
            return wire.pack_lseek(await self._drafts.use(file.draft, lambda fd: os.lseek(fd, body.offset, body.whence)))
        whole = self._backend.find_whole(file.entry) if _is_own(file.entry) else None
        if whole is not None:
            try:
                return wire.pack_lseek(os.lseek(whole.fd, body.offset, body.whence))
            except OSError as error:
                raise FileError(error.errno, error.strerror) from error
            finally:
                whole.close()
        size = file.entry.attr.size
        if body.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise InvalidArgument("only holes and data are looked for here")
        if body.offset >= size:
            raise FileError(errno.ENXIO, "beyond the end of the file")
        return wire.pack_lseek(body.offset if body.whence == os.SEEK_DATA else size)

    async def copy_file_range(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.CopyFileRange)
        target = await self._get_draft(header._replace(nodeid=body.nodeid_out), body.fh_out)
        source = await self._get_file(header, body.fh_in, writes=False)
        length = min(body.length, _MOST_COPIED)
        await self._drafts.claim(target, body.offset_out + length)

        def copy(fd: int, from_fd: int) -> int:
            return os.copy_file_range(from_fd, fd, length, body.offset_in, body.offset_out)

        if source.draft is not None:
            from_draft = source.draft
            copied = await self._drafts.use(target, lambda fd: copy(fd, from_draft.fd))
        else:
            whole = self._backend.find_whole(source.entry)
            if whole is None:
                # The kernel copies by itself then.
                raise FileError(errno.EOPNOTSUPP, "the file is not wholly on this machine")
            try:
                copied = await self._drafts.use(target, lambda fd: copy(fd, whole.fd))
            finally:
                whole.close()
        is_wide = header.opcode == wire.COPY_FILE_RANGE_64
        return wire.pack_copied(copied) if is_wide else wire.pack_write(copied)

    # Handles

    def note_release(self, node: int, handle: int, release_flags: int, lock_owner: int) -> None:
        """A handle is gone. Does not wait."""
        if self._locking is not None:
            self._locking.begin_release(node, handle, release_flags, lock_owner)

    async def close(self) -> None:
        """After the session's end. Does not raise."""
        if self._locking is not None:
            await self._locking.close()

    def release_unknown(self, node: int, flags: int) -> Any:
        """What has to be awaited when a handle of an earlier daemon's ends; None: nothing."""
        if flags & os.O_ACCMODE == os.O_RDONLY:
            return None
        return self._drafts.end_unknown(self._operations.get_inode(self._nodes.get_inode(node)))

    async def _get_file(self, header: wire.InHeader, handle: int, *, writes: bool = True) -> FileHandle:
        file = self._operations.lookup_file(handle)
        if file is None:
            await self._operations.adopt_file(handle, self._nodes.get_inode(header.nodeid), writes=writes)
            file = self._operations.lookup_file(handle)
        if file is None:
            raise Internal(f"handle {handle} is not open")
        return file

    async def _get_draft(self, header: wire.InHeader, handle: int) -> Draft:
        file = await self._get_file(header, handle)
        if file.draft is None or not file.writes:
            raise ReadOnly("the file was not opened for writing", subject=file.entry.name)
        return file.draft


def _goes_to_the_end(file: FileHandle, flags: int, write_flags: int) -> bool:
    """Whether a WRITE goes to the end, and not where the kernel says: that need not know where the end is."""
    return bool(flags & os.O_APPEND) and file.way is not Way.CACHED and not write_flags & wire.WRITE_CACHE


def _is_own(entry: Entry) -> bool:
    """Whether a file's content was written through the file system."""
    return entry.ref is not None and entry.ref.fingerprint.token.startswith(OWN_TOKEN)


def _write(fd: int, data: memoryview | bytes, offset: int) -> int:
    written = 0
    while written < len(data):
        try:
            count = os.pwrite(fd, data[written:], offset + written)
        except OSError as error:
            if written:
                break
            raise FileError(error.errno, error.strerror) from error
        written += count
    return written


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
