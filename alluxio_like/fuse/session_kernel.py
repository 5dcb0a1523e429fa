"""The kernel session: answers the requests of /dev/fuse by itself, on this process's event loop.

Owns the handlers of all kinds of requests: what is unpacked, asked and packed. What a request means is the operations'
(operations.py), how an open is served the opener's (opening.py), how bytes are laid out the wire's, the loop request_loop.py's.

Requests that can be answered without waiting are answered at once, in one step and without a task: opens of files that are at
hand, reads from cache files, names and attributes that are known. The rest goes to tasks, one each. Rule of concurrency: one
event loop.
"""

import errno
import os
import time

from alluxio_like.errors import NotFound
from alluxio_like.fuse import answers, wire, xattrs
from alluxio_like.fuse.accounting import Accounting
from alluxio_like.fuse.attributes import get_stat_mode
from alluxio_like.fuse.backend import Buffer
from alluxio_like.fuse.changing import Answerer
from alluxio_like.fuse.device import Device
from alluxio_like.fuse.handles import FileHandle
from alluxio_like.fuse.meter import Meter
from alluxio_like.fuse.modes import Way
from alluxio_like.fuse.nodes import Nodes
from alluxio_like.fuse.opening import Choice, Opener
from alluxio_like.fuse.operations import Operations
from alluxio_like.fuse.request_loop import HEADER_BYTES, RESENT_MASK, WRITES, Handler, RequestLoop
from alluxio_like.fuse.writing import Opened, Writing
from alluxio_like.types import Attr, Kind

_READ = wire.READ_IN
_DOTS = frozenset({b".", b".."})
_FMODE_EXEC = 1 << 5
"""Among the flags of OPEN: a program is opened to run. (Not the protocol's, but the kernel's own: include/linux/fs.h.)"""


class Session(RequestLoop):
    """One mount's requests, from `run` to the mount's end or `stop`."""

    def __init__(
        self,
        operations: Operations,
        opener: Opener,
        nodes: Nodes,
        device: Device,
        io_timeout_s: float,
        meter: Meter,
        accounting: Accounting,
        writing: Writing | None = None,
    ) -> None:
        """`writing`: None where nothing can be changed."""
        super().__init__(device, io_timeout_s, meter, accounting)
        self._operations = operations
        self._writing = writing
        self._answerers = {} if writing is None else writing.list_answerers()
        self._opener = opener
        self._nodes = nodes
        self._handlers = self._make_handlers()

    # Names and attributes

    def _lookup(self, unique: int, node: int, thread: int, length: int) -> None:
        started_s = time.perf_counter()
        name = self._get_name(length)
        if name in _DOTS:
            self._spawn("lookup", unique, thread, started_s, self._lookup_by_handle(node, name))
            return
        answer = self._operations.try_lookup(node, name)
        if answer is None:
            self._spawn("lookup", unique, thread, started_s, self._lookup_slowly(unique, node, name))
            return
        self._reply_lookup(unique, answers.pack_lookup(self._opener, answer))
        if answer.entry is not None:
            self._opener.note_lookup(answer.entry, thread)
        self._meter.count("lookup", started_s)

    async def _lookup_slowly(self, unique: int, node: int, name: bytes) -> None:
        answer = await self._operations.lookup(node, name)
        self._reply_lookup(unique, answers.pack_lookup(self._opener, answer))

    async def _lookup_by_handle(self, node: int, name: bytes) -> bytes:
        """The kernel has a node id and nothing else: of open_by_handle_at(2), or of a client of NFS. A node id never stands for
        anything else than it did, so what it leads to is there or is not."""
        found = node if name == b"." else await self._operations.get_parent(self._nodes.get_inode(node))
        attr, valid_s = await self._operations.getattr(self._nodes.get_inode(found))
        is_same = attr.kind is Kind.DIRECTORY or self._opener.get_node(attr) == found
        if not attr.nlink or not is_same:
            raise NotFound("what the handle stands for is not there any more", subject=str(attr.inode))
        return wire.pack_entry(found, answers.pack_attributes(attr), valid_s, valid_s)

    def _reply_lookup(self, unique: int, body: bytes) -> None:
        self._write(wire.pack_reply(unique, body) if body else wire.pack_error(unique, errno.ENOENT))

    def _getattr(self, unique: int, node: int, thread: int, _length: int) -> None:
        started_s = time.perf_counter()
        inode = self._nodes.get_inode(node)
        known = self._operations.try_getattr(inode)
        if known is None:
            self._spawn("getattr", unique, thread, started_s, self._getattr_slowly(node))
            return
        self._write(wire.pack_reply(unique, self._pack_attr(node, *known)))
        self._meter.count("getattr", started_s)

    async def _getattr_slowly(self, node: int) -> bytes:
        return self._pack_attr(node, *await self._operations.getattr(self._nodes.get_inode(node)))

    def _pack_attr(self, node: int, attr: Attr, valid_s: float) -> bytes:
        return wire.pack_attr_out(answers.pack_attributes(self._operations.show_opened(node, attr)), valid_s)

    # Files

    def _open(self, unique: int, node: int, thread: int, _length: int) -> None:
        started_s = time.perf_counter()
        flags, open_flags = wire.OPEN_IN.unpack_from(self._buffer, HEADER_BYTES)
        if self._writing is not None and flags & (os.O_ACCMODE | os.O_TRUNC):
            header = wire.parse_header(memoryview(self._buffer))
            self._spawn("open for writing", unique, thread, started_s, self._open_to_write(header, flags, open_flags))
            return
        entry = self._operations.find_entry(self._nodes.get_inode(node), flags & ~os.O_APPEND)
        if entry is not None and (draft := self._operations.find_draft(entry)) is not None:
            found = self._opener.open_draft(node, entry, draft, thread, unique & RESENT_MASK, writes=False)
            self._reply_open(unique, thread, FileHandle(entry, None, node, found.way, runs=_runs(flags)), found)
            return
        is_prepared = not self._opener.passes or self._accounting.is_prepared(thread)
        choice = None if entry is None or not is_prepared else self._opener.try_open(node, entry, thread, unique & RESENT_MASK)
        if entry is None or choice is None:
            self._spawn("open", unique, thread, started_s, self._open_slowly(unique, node, flags, thread))
            return
        self._reply_open(unique, thread, FileHandle(entry, choice.reader, node, choice.way, runs=_runs(flags)), choice)
        self._meter.count("open", started_s)

    async def _open_slowly(self, unique: int, node: int, flags: int, thread: int) -> None:
        started_s = time.perf_counter()
        inode = self._nodes.get_inode(node)
        entry = self._operations.find_entry(inode, flags & ~os.O_APPEND)
        if entry is None:
            entry = await self._operations.get_entry_to_open(inode, flags & ~os.O_APPEND)
            self._accounting.note_wait(thread, time.perf_counter() - started_s)
        if self._opener.passes and not self._accounting.is_prepared(thread):
            await self._accounting.prepare(thread)
        draft = self._operations.find_draft(entry)
        if draft is not None:
            choice = self._opener.open_draft(node, entry, draft, thread, unique & RESENT_MASK, writes=False)
        else:
            choice = await self._opener.open(node, entry, thread, unique & RESENT_MASK)
        self._reply_open(unique, thread, FileHandle(entry, choice.reader, node, choice.way, runs=_runs(flags)), choice)

    async def _open_to_write(self, header: wire.InHeader, flags: int, open_flags: int) -> None:
        assert self._writing is not None
        opened = await self._writing.open(header, flags, open_flags)
        self._reply_open(header.unique, header.pid, opened.file, opened.choice)

    def _reply_open(self, unique: int, thread: int, file: FileHandle, choice: Choice, entry: bytes = b"") -> None:
        """Answer OPEN, or with an entry CREATE."""
        handle = self._operations.add_open(file)
        self._operations.attach(file)
        # Now: once it is answered it may end.
        self._accounting.get_pid(thread)
        taken = False
        try:
            if entry:
                opened = wire.pack_open(handle, choice.open_flags, choice.backing_id)
                taken = self._write(wire.pack_reply(unique, wire.pack_create(entry, opened)))
            else:
                message = wire.OPEN_REPLY.pack(wire.OPEN_REPLY.size, 0, unique, handle, choice.open_flags, choice.backing_id)
                taken = self._write(message)
        finally:
            if not taken:
                # The kernel knows nothing of it and will never release it.
                self._forget_handle(handle)
        if taken:
            # Whoever opened it goes on meanwhile.
            self._accounting.opened(thread, file, waited=choice.waited)

    def _read(self, unique: int, node: int, thread: int, _length: int) -> None:
        started_s = time.perf_counter()
        handle, offset, size, _, _, flags = _READ.unpack_from(self._buffer, HEADER_BYTES)
        self._do_read(unique, node, thread, handle, offset, size, started_s, flags)

    def _do_read(
        self, unique: int, node: int, thread: int, handle: int, offset: int, size: int, started_s: float, flags: int = 0
    ) -> None:
        """Answer a READ, now or in a task."""
        file = self._operations.lookup_file(handle)
        if file is not None:
            data = self._operations.try_read_file(file, offset, size, self._scratch)
            if data is not None:
                self._write_data(unique, data)
                self._note_read(file, len(data))
                self._meter.count("read", started_s)
                return
            if self._begin_read(file, unique, node, thread, handle, offset, size, started_s):
                return
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        call = self._read_slowly(unique, node, thread, handle, offset, size, writes=writes)
        self._spawn("read", unique, thread, started_s, call)

    def _begin_read(
        self, file: FileHandle, unique: int, node: int, thread: int, handle: int, offset: int, size: int, started_s: float
    ) -> bool:
        """Answer a READ when its bytes come, without a task. False: it takes one."""

        def spawn() -> None:
            waited_s = time.perf_counter() - started_s
            call = self._read_slowly(unique, node, thread, handle, offset, size, waited_s=waited_s)
            self._spawn("read", unique, thread, started_s, call)

        def end(data: Buffer | None) -> None:
            if data is None:
                spawn()
                return
            self._end_begun(unique)
            self._write_data(unique, data)
            file.waited_bytes += len(data)
            self._note_read(file, len(data))
            self._meter.count("read", started_s)

        give_up = self._operations.begin_read(file, offset, size, end)
        if give_up is None:
            return False

        def to_task() -> None:
            give_up()
            spawn()

        self._begin("read", unique, thread, started_s, to_task)
        return True

    async def _read_slowly(
        self,
        unique: int,
        node: int,
        thread: int,
        handle: int,
        offset: int,
        size: int,
        *,
        writes: bool = False,
        waited_s: float = 0.0,
    ) -> None:
        operations = self._operations
        if operations.lookup_file(handle) is None:
            await operations.adopt_file(handle, self._nodes.get_inode(node), writes=writes)
            adopted = operations.lookup_file(handle)
            if adopted is not None and adopted.account is None:
                self._accounting.opened(thread, adopted)
        data = await operations.read(handle, offset, size, waited_s=waited_s)
        self._write_data(unique, data)
        file = operations.lookup_file(handle)
        if file is not None:
            file.waited_bytes += len(data)
            self._note_read(file, len(data))

    def _note_read(self, file: FileHandle, count: int) -> None:
        file.read_bytes += count
        if file.way is Way.CACHED:
            self._opener.note_read(file.entry, file.read_bytes, count)

    def _release(self, unique: int, node: int, _thread: int, _length: int) -> None:
        started_s = time.perf_counter()
        handle, flags, release_flags, lock_owner = wire.RELEASE_IN.unpack_from(self._buffer, HEADER_BYTES)
        self._write(wire.pack_reply(unique))
        if self._writing is not None:
            self._writing.note_release(node, handle, release_flags, lock_owner)
        if self._writing is not None and self._operations.lookup_file(handle) is None:
            ending = self._writing.release_unknown(node, flags)
            if ending is not None:
                self._close_later(ending)
        self._forget_handle(handle)
        self._meter.count("release", started_s)

    def _forget_handle(self, handle: int) -> None:
        file = self._operations.begin_release(handle)
        if file is None:
            return  # an earlier daemon's
        if file.way is not None:
            self._opener.release(file.node, file.way)
        if file.draft is not None and file.writes and self._operations.drafts is not None:
            self._close_later(self._operations.drafts.begin_release(file.draft))
        if file.reader is not None:
            ending = file.reader.begin_close()
            if ending is not None:
                self._close_later(ending)
        self._accounting.closed(file)

    def _ioctl(self, unique: int, _node: int, _thread: int, _length: int) -> None:
        # Python asks each file that it opens whether it is a terminal.
        started_s = time.perf_counter()
        self._write(wire.pack_error(unique, errno.ENOTTY))
        self._meter.count("ioctl", started_s)

    # Directories

    def _opendir(self, unique: int, node: int, thread: int, _length: int) -> None:
        self._spawn("opendir", unique, thread, time.perf_counter(), self._opendir_slowly(node))

    async def _opendir_slowly(self, node: int) -> bytes:
        operations = self._operations
        directory = await operations.get_directory(node)
        # No await from here on: `open_listing` is about the opens that there are.
        uses, keeps = operations.kernel_memory.open_listing(node, lambda: not operations.has_open_directory(node))
        handle = operations.add_directory(directory, in_kernel=uses)
        return wire.pack_open(handle, (wire.FOPEN_CACHE_DIR if uses else 0) | (wire.FOPEN_KEEP_CACHE if keeps else 0))

    def _readdir(self, unique: int, node: int, thread: int, _length: int) -> None:
        handle, offset, size, _, _, _ = _READ.unpack_from(self._buffer, HEADER_BYTES)
        self._spawn("readdir", unique, thread, time.perf_counter(), self._list(node, handle, offset, size, plus=False))

    def _readdirplus(self, unique: int, node: int, thread: int, _length: int) -> None:
        handle, offset, size, _, _, _ = _READ.unpack_from(self._buffer, HEADER_BYTES)
        self._spawn("readdir", unique, thread, time.perf_counter(), self._list(node, handle, offset, size, plus=True))

    async def _list(self, node: int, handle: int, offset: int, size: int, *, plus: bool) -> bytes:
        page = wire.Directory(size)
        reached = offset
        unlinked = wire.ENTRY_OUT.pack(0, 0, 0, 0, 0, 0, b"")

        def emit(name: bytes, attr: Attr, valid_s: float, following: int, is_real: bool) -> bool:
            nonlocal reached
            mode = get_stat_mode(attr)
            if not plus:
                taken = page.add(attr.inode, following, mode, name)
            elif is_real:
                taken = page.add_plus(answers.pack_entry(self._opener, attr, valid_s), attr.inode, following, mode, name)
            else:
                taken = page.add_plus(unlinked, attr.inode, following, mode, name)
            if taken:
                reached = following
            return taken

        await self._operations.adopt_directory(handle, node)
        valid_s = await self._operations.readdir(handle, offset, emit)
        directory = self._operations.lookup_directory(handle)
        if directory is not None and directory.in_kernel:
            self._operations.kernel_memory.note_listing(node, offset, reached, valid_s)
        return bytes(page.data)

    def _releasedir(self, unique: int, _node: int, _thread: int, _length: int) -> None:
        handle, _, _, _ = wire.RELEASE_IN.unpack_from(self._buffer, HEADER_BYTES)
        self._write(wire.pack_reply(unique))
        self._operations.forget_directory(handle)

    # The rest

    def _statfs(self, unique: int, node: int, thread: int, _length: int) -> None:
        async def ask() -> bytes:
            return answers.pack_statfs(await self._operations.statfs(self._nodes.get_inode(node)))

        self._spawn("statfs", unique, thread, time.perf_counter(), ask())

    def _getxattr(self, unique: int, node: int, thread: int, length: int) -> None:
        started_s = time.perf_counter()
        size, *_ = wire.GETXATTR_IN.unpack_from(self._buffer, HEADER_BYTES)
        name = self._get_name(length, HEADER_BYTES + wire.GETXATTR_IN.size)
        inode = self._nodes.get_inode(node)
        if not self._operations.may_have_xattr(inode, name):
            # Two for each name that `ls -l` shows, and one for who is not the owner; without an exception, which costs more than
            # all else here.
            self._write(wire.pack_error(unique, errno.ENODATA if xattrs.has_namespace(name) else errno.EOPNOTSUPP))
            self._meter.count("getxattr", started_s)
            return

        async def ask() -> None:
            self._reply_sized(unique, size, await self._operations.getxattr(inode, name))

        self._spawn("getxattr", unique, thread, started_s, ask())

    def _listxattr(self, unique: int, node: int, thread: int, _length: int) -> None:
        size, *_ = wire.GETXATTR_IN.unpack_from(self._buffer, HEADER_BYTES)
        inode = self._nodes.get_inode(node)
        uid = wire.parse_header(memoryview(self._buffer)).uid

        async def ask() -> None:
            names = await self._operations.listxattr(inode, uid)
            self._reply_sized(unique, size, b"".join(name + b"\0" for name in names))

        self._spawn("listxattr", unique, thread, time.perf_counter(), ask())

    def _reply_sized(self, unique: int, size: int, value: bytes) -> None:
        if not size:
            self._write(wire.pack_reply(unique, wire.pack_xattr_size(len(value))))
        elif len(value) > size:
            self._write(wire.pack_error(unique, errno.ERANGE))
        else:
            self._write(wire.pack_reply(unique, value))

    def _readlink(self, unique: int, node: int, thread: int, _length: int) -> None:
        self._spawn("readlink", unique, thread, time.perf_counter(), self._operations.readlink(node))

    def _change(self, unique: int, _node: int, thread: int, length: int) -> None:
        """A request that changes something."""
        started_s = time.perf_counter()
        request = wire.parse(memoryview(bytes(self._get_request(length))))
        what, answerer = self._answerers[request.header.opcode]
        self._spawn(what, unique, thread, started_s, self._change_slowly(request, answerer))

    async def _change_slowly(self, request: wire.Request, answerer: Answerer) -> bytes | None:
        answer = await answerer(request)
        if isinstance(answer, Opened):
            self._reply_open(request.header.unique, request.header.pid, answer.file, answer.choice, answer.entry)
            return None
        assert isinstance(answer, bytes)
        return answer

    def _write_request(self, unique: int, node: int, thread: int, length: int) -> None:
        assert self._writing is not None
        started_s = time.perf_counter()
        handle, offset, size, write_flags, _, flags = wire.WRITE_IN.unpack_from(self._buffer, HEADER_BYTES)
        data = memoryview(self._buffer)[HEADER_BYTES + wire.WRITE_IN.size : length]
        count = self._writing.try_write(unique, handle, offset, data, flags, write_flags) if len(data) == size else -1
        if count < 0:
            self._change(unique, node, thread, length)
            return
        self._write(wire.pack_reply(unique, wire.pack_write(count)))
        self._meter.count("write", started_s)

    def _refuse(self, _unique: int, _node: int, _thread: int, _length: int) -> None:
        raise self._operations.refuse_write()

    def _ignore(self, _unique: int, _node: int, _thread: int, _length: int) -> None:
        """FORGET: inode ids are never used twice, so nothing is remembered for the kernel."""

    def _destroy(self, unique: int, _node: int, _thread: int, _length: int) -> None:
        self._write(wire.pack_reply(unique))

    def _make_handlers(self) -> dict[int, Handler]:
        # What is not here is answered with ENOSYS, most of which the kernel remembers: it does not ask again for FLUSH, FSYNC,
        # ACCESS, LSEEK, POLL, BMAP, STATX and does what is right for a file without holes.
        handlers = {
            wire.LOOKUP: self._lookup,
            wire.FORGET: self._ignore,
            wire.BATCH_FORGET: self._ignore,
            wire.GETATTR: self._getattr,
            wire.READLINK: self._readlink,
            wire.OPEN: self._open,
            wire.READ: self._read,
            wire.RELEASE: self._release,
            wire.STATFS: self._statfs,
            wire.GETXATTR: self._getxattr,
            wire.LISTXATTR: self._listxattr,
            wire.OPENDIR: self._opendir,
            wire.READDIR: self._readdir,
            wire.READDIRPLUS: self._readdirplus,
            wire.RELEASEDIR: self._releasedir,
            wire.INTERRUPT: self._interrupt,
            wire.DESTROY: self._destroy,
            wire.IOCTL: self._ioctl,
        }
        refused = {getattr(wire, name): self._refuse for name in WRITES}
        answered: dict[int, Handler] = dict.fromkeys(self._answerers, self._change)
        if wire.WRITE in answered:
            answered[wire.WRITE] = self._write_request
        return {**handlers, **refused, **answered}


def _runs(flags: int) -> bool:
    """Whether a file is opened to run it."""
    return flags & _FMODE_EXEC != 0
