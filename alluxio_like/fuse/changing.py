"""What programs change in the tree through this mount: names, links, attributes, extended attributes.

Owns how a request of the kernel becomes a change at the master, under an operation id made of the request's own number: what a
daemon did and did not live to answer is sent again to the next one, and is then not done twice. Permissions were checked by the
kernel. What is written into files is writing.py's.

Rule of concurrency: one event loop. A change that was begun is carried to its end, also when its caller is killed.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from alluxio_like.errors import Cancelled, InvalidArgument, NameTooLong, NoData, TimedOut, Unavailable, Unsupported
from alluxio_like.fuse import answers, wire, xattrs
from alluxio_like.fuse.answers import NodeGiver
from alluxio_like.fuse.attributes import get_kind
from alluxio_like.fuse.backend import Changes
from alluxio_like.fuse.drafts import Drafts, kill_set_ids
from alluxio_like.fuse.nodes import Nodes
from alluxio_like.fuse.operations import NAME_MAX_BYTES, Operations
from alluxio_like.rpc.messages_writing import Changed, NewAttributes, NewName, Renaming, XattrChange
from alluxio_like.types import Entry, InodeId, Kind, to_str

_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_XATTR_CREATE = 1
_XATTR_REPLACE = 2
_NS = 1_000_000_000
_MOST_NS = (1 << 63) - 1
"""Times from 1677 to 2262 are kept; later ones become the last of these, as on file systems whose times end earlier."""
_ATTRIBUTES = (
    wire.FATTR_MODE | wire.FATTR_UID | wire.FATTR_GID | wire.FATTR_SIZE | wire.FATTR_ATIME | wire.FATTR_MTIME
)  # fmt: skip

Answerer = Callable[[wire.Request], Coroutine[Any, Any, object]]


class Changing:
    """Changes through one mount. `identity` is the mount's, see Handshake; `agreed` are the flags of INIT that hold."""

    def __init__(
        self, operations: Operations, changes: Changes, drafts: Drafts, node_giver: NodeGiver, identity: int, agreed: int
    ) -> None:
        self._operations = operations
        self._changes = changes
        self._drafts = drafts
        self._node_giver = node_giver
        self._identity = identity
        self._masks = bool(agreed & wire.DONT_MASK)
        self._has_lists = bool(agreed & wire.POSIX_ACL)

    def list_answerers(self) -> dict[int, tuple[str, Answerer]]:
        """What answers each kind of request: its name, and what gives the body of the answer."""
        return {
            wire.MKDIR: ("mkdir", self.mkdir),
            wire.SYMLINK: ("symlink", self.symlink),
            wire.UNLINK: ("unlink", self.unlink),
            wire.FSYNCDIR: ("fsyncdir", self.fsyncdir),
            wire.RMDIR: ("rmdir", self.rmdir),
            wire.RENAME: ("rename", self.rename),
            wire.RENAME2: ("rename", self.rename),
            wire.SETXATTR: ("setxattr", self.set_xattr),
            wire.REMOVEXATTR: ("removexattr", self.remove_xattr),
        }

    def make_operation_id(self, header: wire.InHeader, step: str = "") -> str:
        """The same for a request that is sent again; `step` tells several changes for one request apart."""
        return f"{self._identity:x}.{header.unique & ~wire.UNIQUE_RESEND:x}{step}"

    async def change(self, call: Coroutine[Any, Any, Changed]) -> Changed:
        """Make a change, and note what is no longer so; also when nobody waits for it any more."""
        is_awaited = True

        async def make() -> Changed:
            try:
                changed = await call
            except (Unavailable, TimedOut, Cancelled):
                self._operations.kernel_memory.doubt_names()
                raise
            self._operations.note_changed(changed.recalls, changed.entry)
            if not is_awaited:
                # The kernel was told that it was given up, and may have looked names up since.
                self._operations.kernel_memory.doubt_names()
            return changed

        try:
            return await self._drafts.finish(make())
        except asyncio.CancelledError:
            is_awaited = False
            raise

    async def create(
        self,
        header: wire.InHeader,
        name: bytes,
        kind: Kind,
        mode: int,
        target: str = "",
        device: int = 0,
        *,
        umask: int = 0,
        unnamed: bool = False,
    ) -> Entry:
        """A new name, or a file without one. Raises what Changes.create raises."""
        asked = mode & 0o7777
        new = NewName(
            self._get_parent(header),
            _get_name(name),
            kind,
            asked & ~umask if self._masks else asked,
            header.uid,
            header.gid,
            target,
            device,
            asked if self._masks and umask else None,
            unnamed,
        )
        changed = await self.change(self._changes.create(new, self.make_operation_id(header)))
        if changed.entry is None:
            raise InvalidArgument("what was made is not there any more", subject=new.name)
        return changed.entry

    async def mknod(self, request: wire.Request) -> bytes:
        """A special file. (A regular one is writing.py's.)"""
        header, body = request
        assert isinstance(body, wire.Mknod)
        kind = get_kind(body.mode)
        if kind is None or kind is Kind.DIRECTORY:
            raise InvalidArgument("a kind of file that is not known", subject=oct(body.mode))
        return self.pack_entry(await self.create(header, body.name, kind, body.mode, device=body.rdev, umask=body.umask))

    async def mkdir(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Mkdir)
        return self.pack_entry(await self.create(header, body.name, Kind.DIRECTORY, body.mode, umask=body.umask))

    async def symlink(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Symlink)
        return self.pack_entry(await self.create(header, body.name, Kind.SYMLINK, 0o777, to_str(body.target)))

    async def link(self, request: wire.Request) -> Entry:
        """A further name of an inode, or its first one; the inode under it."""
        header, body = request
        assert isinstance(body, wire.Link)
        inode = self._operations.get_inode(Nodes.get_inode(body.old_nodeid))
        call = self._changes.link(inode, self._get_parent(header), _get_name(body.name), self.make_operation_id(header))
        changed = await self.change(call)
        if changed.entry is None:
            raise InvalidArgument("what was linked is not there any more", subject=str(inode))
        return changed.entry

    async def unlink(self, request: wire.Request) -> bytes:
        return await self._remove(request, directory=False)

    async def rmdir(self, request: wire.Request) -> bytes:
        return await self._remove(request, directory=True)

    async def _remove(self, request: wire.Request, *, directory: bool) -> bytes:
        header, body = request
        assert isinstance(body, wire.Name)
        parent, operation_id = self._get_parent(header), self.make_operation_id(header)
        call = self._changes.remove(parent, _get_name(body.name), directory=directory, operation_id=operation_id)
        changed = await self.change(call)
        if changed.entry is not None:
            self._operations.note_unlinked(changed.entry)
        return b""

    async def rename(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Rename)
        if body.flags & ~(_RENAME_NOREPLACE | _RENAME_EXCHANGE):
            raise InvalidArgument("a flag of rename that is not known", subject=hex(body.flags))
        renaming = Renaming(
            self._get_parent(header),
            _get_name(body.name),
            self._operations.get_inode(body.new_parent),
            _get_name(body.new_name),
            no_replace=bool(body.flags & _RENAME_NOREPLACE),
            exchange=bool(body.flags & _RENAME_EXCHANGE),
        )
        await self.change(self._changes.rename(renaming, self.make_operation_id(header)))
        return b""

    async def set_attributes(self, header: wire.InHeader, body: wire.Setattr, inode: InodeId, entry: Entry) -> Entry:
        """Mode, owner and times, where they are given; the entry as it is then."""
        valid = body.valid
        now_ns = time.time_ns()
        wanted = NewAttributes(
            body.mode & 0o7777 if valid & wire.FATTR_MODE else self._get_killed(valid, entry),
            body.uid if valid & wire.FATTR_UID else None,
            body.gid if valid & wire.FATTR_GID else None,
            _get_time(valid, wire.FATTR_ATIME, wire.FATTR_ATIME_NOW, body.atime, body.atimensec, now_ns),
            _get_time(valid, wire.FATTR_MTIME, wire.FATTR_MTIME_NOW, body.mtime, body.mtimensec, now_ns),
        )
        if wanted == NewAttributes():
            return entry
        call = self._changes.set_attributes(inode, wanted, self.make_operation_id(header, ".a"))
        changed = await self.change(call)
        draft = self._drafts.lookup(inode)
        if draft is not None and wanted.mtime_ns is not None:
            await self._drafts.set_times(draft, wanted.atime_ns, wanted.mtime_ns)
        return changed.entry or entry

    async def kill_set_ids(self, header: wire.InHeader, entry: Entry) -> None:
        """Take set-id bits away: somebody has written who may not keep them."""
        mode = kill_set_ids(entry.attr.mode)
        if mode != entry.attr.mode:
            wanted = NewAttributes(mode)
            await self.change(self._changes.set_attributes(entry.attr.inode, wanted, self.make_operation_id(header, ".k")))

    @staticmethod
    def _get_killed(valid: int, entry: Entry) -> int | None:
        # What comes without any attribute comes before a write by somebody who may not keep them.
        if not valid & wire.FATTR_KILL_SUIDGID and valid & _ATTRIBUTES:
            return None
        if entry.attr.kind is Kind.DIRECTORY:
            return None
        mode = kill_set_ids(entry.attr.mode)
        return mode if mode != entry.attr.mode else None

    async def fsyncdir(self, _request: wire.Request) -> bytes:
        await self.flush()
        return b""

    async def flush(self) -> None:
        """Have all names that were changed through this mount be durable."""
        await self._drafts.finish(self._changes.flush())

    async def set_xattr(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Setxattr)
        change = XattrChange(
            body.name,
            bytes(body.value),
            create=bool(body.flags & _XATTR_CREATE),
            replace=bool(body.flags & _XATTR_REPLACE),
            kill_sgid=bool(body.setxattr_flags & wire.SETXATTR_ACL_KILL_SGID),
        )
        return await self._change_xattr(header, change)

    async def remove_xattr(self, request: wire.Request) -> bytes:
        header, body = request
        assert isinstance(body, wire.Name)
        return await self._change_xattr(header, XattrChange(body.name, None))

    async def _change_xattr(self, header: wire.InHeader, change: XattrChange) -> bytes:
        if xattrs.is_known(change.name):
            return b""  # what tells of the cache; who copies all attributes of a file neither sets nor removes them here
        if change.name in (b"user.", b"trusted.", b"security."):
            raise InvalidArgument("the attribute has no name behind its namespace")
        if not xattrs.is_settable(change.name):
            raise Unsupported(
                "extended attributes are those of user., trusted. and security. (no labels of SELinux), and lists",
                subject=to_str(change.name),
            )
        if xattrs.is_list(change.name) and not self._has_lists:
            raise Unsupported("this mount was made by a release without access control lists: mount it again")
        inode = self._operations.get_inode(Nodes.get_inode(header.nodeid))
        try:
            await self.change(self._changes.set_xattr(inode, change, self.make_operation_id(header)))
        except NoData:
            # To take away a list that is not there is no mistake.
            if change.value is not None or not xattrs.is_list(change.name):
                raise
        return b""

    def pack_entry(self, entry: Entry, *, opens: bool = False) -> bytes:
        """An inode that was just made. Where no lease covers it, or it is written, it is looked up once more before the kernel
        relies on it; but `opens`: see answers.py."""
        attr, valid_s = self._operations.show_made(entry)
        return answers.pack_entry(self._node_giver, attr, valid_s, opens=opens)

    def _get_parent(self, header: wire.InHeader) -> InodeId:
        return self._operations.get_inode(header.nodeid)


def _get_name(name: bytes) -> str:
    if len(name) > NAME_MAX_BYTES:
        raise NameTooLong("a name has at most 255 bytes")
    return to_str(name)


def _get_time(valid: int, given: int, now: int, seconds: int, rest_ns: int, now_ns: int) -> int | None:
    if not valid & given:
        return None
    if valid & now:
        return now_ns
    # Times before 1970 are negative, and come as what that is in 64 bits.
    time_ns = (seconds - (1 << 64) if seconds >> 63 else seconds) * _NS + rest_ns
    return max(-_MOST_NS, min(time_ns, _MOST_NS))
