"""Changes of the namespace, as programs make them.

Owns the calls of the service Changes and what has to follow here: the master tells everybody else what is no longer so, and the
caller by the answer, which is taken (news.py) before it is given on. Each call has a number,
an operation id; whoever may have to repeat one (a FUSE request that the kernel sends again) gives its own. Rule of concurrency:
one event loop.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Iterable
from dataclasses import replace

from alluxio_like.client.news import News
from alluxio_like.client.pending import PendingFiles
from alluxio_like.errors import (
    AlreadyExists,
    Cancelled,
    DirectoryNotEmpty,
    IsADirectory,
    NotADirectory,
    NotFound,
    TimedOut,
    Unavailable,
)
from alluxio_like.rpc.changes import ChangesStub
from alluxio_like.rpc.messages_writing import (
    Changed,
    NewAttributes,
    NewName,
    Persisting,
    PolicyAt,
    Renaming,
    Unpersisted,
    WritePolicy,
    XattrChange,
)
from alluxio_like.types import InodeId, Kind

_OTHERWISE = (AlreadyExists, NotFound, IsADirectory, NotADirectory, DirectoryNotEmpty)
"""Refusals that tell how names are at the master."""


def make_operation_id() -> str:
    """One that nobody else has."""
    return uuid.uuid4().hex


class Changes:
    """Changes at the master at the other end of `stub`. What their answers tell goes to `news`; what the master is yet to hear
    of (`pending`) it hears before it is asked to change that."""

    def __init__(self, stub: ChangesStub, news: News, pending: PendingFiles) -> None:
        self._stub = stub
        self._pending = pending
        # (What a daemon before this one has changed may not be durable.)
        self._changes, self._flushed = 1, 0
        self._news = news

    async def create(self, new: NewName, operation_id: str = "") -> Changed:
        """A new name of any kind. Raises AlreadyExists, NotFound, NotADirectory, NameTooLong, ReadOnly."""
        operation_id = operation_id or make_operation_id()
        if (made := await self._pending.create(new, operation_id)) is not None:
            self._changes += 1
            return made
        await self._pending.settle_names((new.parent, new.name))
        if new.kind is not Kind.DIRECTORY or not self._pending.is_started:
            return await self._make(self._stub.create(operation_id, new), (new.parent, new.name))
        with self._pending.making_directory() as note:
            new = replace(new, delegate=True)
            changed = await self._make(self._stub.create(operation_id, new), (new.parent, new.name))
            if changed.delegation is not None and changed.entry is not None:
                note(changed.entry.attr.inode, changed.delegation)
        return changed

    async def link(self, inode: InodeId, parent: InodeId, name: str, operation_id: str = "") -> Changed:
        """A further name. Raises NotPermitted (a directory), CrossDevice, AlreadyExists, NotFound, ReadOnly."""
        await self._pending.settle([inode])
        await self._pending.settle_names((parent, name))
        call = self._stub.link(operation_id or make_operation_id(), inode, parent, name)
        return await self._make(call, (parent, name), inode=inode)

    async def remove(self, parent: InodeId, name: str, *, directory: bool, operation_id: str = "") -> Changed:
        """unlink, or rmdir. Raises NotFound, IsADirectory, NotADirectory, DirectoryNotEmpty, Conflict, ReadOnly."""
        await self._pending.settle_names((parent, name))
        call = self._stub.remove(operation_id or make_operation_id(), parent, name, directory=directory)
        return await self._make(call, (parent, name))

    async def rename(self, renaming: Renaming, operation_id: str = "") -> Changed:
        """renameat2. Raises what that fails with."""
        operation_id = operation_id or make_operation_id()
        if (made := self._pending.rename(renaming, operation_id)) is not None:
            self._changes += 1
            return made
        places = (renaming.parent, renaming.name), (renaming.new_parent, renaming.new_name)
        await self._pending.settle_names(*places)
        try:
            return await self._make(self._stub.rename(operation_id, renaming), *places)
        except NotFound:
            # What the client before this one has made may be yet to come, and that it has done this very rename.
            if not await self._pending.wait_succeeded():
                raise
            return await self._make(self._stub.rename(operation_id, renaming), *places)

    async def set_attributes(self, inode: InodeId, wanted: NewAttributes, operation_id: str = "") -> Changed:
        """chmod, chown, utimens. Raises NotFound, ReadOnly."""
        if (made := self._pending.set_attributes(inode, wanted)) is not None:
            return made
        await self._pending.settle([inode])
        return await self._make(self._stub.set_attributes(operation_id or make_operation_id(), inode, wanted), inode=inode)

    async def flush(self) -> None:
        """What this client has changed by now is durable when this returns; nobody is asked where that is known."""
        await self._pending.settle_all()
        wanted = self._changes
        if self._flushed < wanted:
            await self._stub.flush()
            self._flushed = max(self._flushed, wanted)

    async def read_link(self, inode: InodeId) -> str:
        """Where a symbolic link leads. Raises InvalidArgument for anything else."""
        return await self._stub.read_link(inode)

    async def get_xattrs(self, inode: InodeId) -> dict[bytes, bytes]:
        """All extended attributes that programs have set."""
        await self._pending.settle([inode])
        return await self._stub.get_xattrs(inode)

    async def set_xattr(self, inode: InodeId, change: XattrChange, operation_id: str = "") -> Changed:
        """Set or remove one. Raises AlreadyExists, NoData, NoSpace, ReadOnly."""
        await self._pending.settle([inode])
        return await self._make(self._stub.set_xattr(operation_id or make_operation_id(), inode, change), inode=inode)

    async def set_write_policy(self, path: str, policy: WritePolicy | None, operation_id: str = "") -> PolicyAt:
        """What holds for what is written below a path; None: what holds above it."""
        await self._pending.settle_all()
        return await self._stub.set_write_policy(operation_id or make_operation_id(), path, policy)

    async def get_write_policy(self, path: str) -> PolicyAt:
        """What holds for a path, and where it is set."""
        return await self._stub.get_write_policy(path)

    async def list_unpersisted(self, path: str, limit: int = 100) -> Unpersisted:
        """What below a path the store does not have yet."""
        await self._pending.settle_all()
        return await self._stub.list_unpersisted(path, limit)

    async def persist(self, path: str) -> Persisting:
        """Have what below a path is only cached uploaded, whatever the policy."""
        await self._pending.settle_all()
        return await self._stub.persist(path)

    async def _make(self, change: Awaitable[Changed], *places: tuple[InodeId, str], inode: InodeId | None = None) -> Changed:
        """Make a change of names, or of an inode."""
        begun = self._news.begin()
        try:
            changed = await change
        except (Unavailable, TimedOut, Cancelled, asyncio.CancelledError):
            # It may be made all the same, and nobody tells us but this answer.
            self._changes += 1
            self._doubt(places, inode)
            raise
        except _OTHERWISE:
            # Somebody else has changed it just now, and we may not have been told yet: who is refused may look at once.
            self._doubt(places, inode)
            raise
        self._changes += 1
        self._news.take(changed.recalls, changed.told, begun)
        return changed

    def _doubt(self, places: Iterable[tuple[InodeId, str]], inode: InodeId | None) -> None:
        self._news.doubt_names(places)
        if inode is not None:
            self._news.doubt(inode)
