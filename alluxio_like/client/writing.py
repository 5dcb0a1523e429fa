"""Changes of the tree by path, for programs that work without a mount.

Owns what a path stands for, and the writing of whole files through a worker of this machine. Permissions are not checked: whoever
has the cluster's token may change everything below mounts that can be written. New files and directories belong to this process's
user. Rule of concurrency: one event loop; bytes are written in threads.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from alluxio_like.client.changes import Changes, make_operation_id
from alluxio_like.client.drafts import DraftFiles
from alluxio_like.errors import AlreadyExists, InvalidArgument, IsADirectory, NoSpace, NotADirectory, NotFound, QuotaExceeded
from alluxio_like.rpc.messages import LookupResult
from alluxio_like.rpc.messages_writing import NewAttributes, NewName, Renaming
from alluxio_like.types import Entry, InodeId, Kind

Data: TypeAlias = bytes | bytearray | memoryview | Iterable[bytes]


class TreeWriter:
    """`lookup_path` is Client.lookup_path."""

    def __init__(self, lookup_path: Callable[[str], Awaitable[LookupResult]], changes: Changes, drafts: DraftFiles) -> None:
        self._lookup_path = lookup_path
        self._changes = changes
        self._drafts = drafts

    async def write_file(self, path: str, data: Data, *, mode: int = 0o644) -> Entry:
        """Make a file, or give it another content: all of `data`, or all of its pieces. When it returns the bytes are where the
        mount's write policy wants them. Who reads the file on this machine meanwhile may see a part of it: to have others see all
        or nothing, write another name and rename it.

        Raises ReadOnly (also: no worker on this machine that this user may write through), IsADirectory, NotFound (no such
        directory), NoSpace, QuotaExceeded (also when all is written, and is too much), Store*, Unavailable.
        """
        parent, name = await self._split(path)
        entry = (await self._lookup_path(path)).entry
        if entry is None:
            await self._drafts.find(parent)
            try:
                entry = await self._create(parent, name, Kind.FILE, mode)
            except AlreadyExists:
                entry = (await self._lookup_path(path)).entry
        if entry is None or entry.attr.kind is not Kind.FILE or entry.ref is None:
            raise IsADirectory("not a file that could be written", subject=path)
        opened = await self._drafts.begin(entry.ref, truncate=True)
        try:
            await asyncio.to_thread(_write_all, opened.fd, data)
            sealed = await self._drafts.seal(opened.worker_id, entry.attr.inode, make_operation_id())
        finally:
            os.close(opened.fd)
            await self._drafts.end(opened.worker_id, entry.attr.inode)
        if sealed is not None and sealed.over_quota:
            raise QuotaExceeded("it is written, and is more than the quota of its directory allows", subject=path)
        return await self._get(path)

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = False) -> Entry:
        """Make a directory. `parents`: those above it too, and one that is there is fine. Raises AlreadyExists, NotFound,
        ReadOnly."""
        if not parents:
            parent, name = await self._split(path)
            return await self._create(parent, name, Kind.DIRECTORY, mode)
        parts = _split_names(path)
        for count in range(1, len(parts) + 1):
            part = "/" + "/".join(parts[:count])
            if (await self._lookup_path(part)).entry is None:
                try:
                    await self.mkdir(part, mode=mode)
                except AlreadyExists:
                    continue
        entry = await self._get(path)
        if entry.attr.kind is not Kind.DIRECTORY:
            raise NotADirectory("there is something else", subject=path)
        return entry

    async def remove(self, path: str) -> None:
        """Remove a file or symbolic link. Raises NotFound, IsADirectory, ReadOnly."""
        parent, name = await self._split(path)
        await self._changes.remove(parent, name, directory=False)

    async def rmdir(self, path: str) -> None:
        """Remove an empty directory. Raises NotFound, NotADirectory, DirectoryNotEmpty, ReadOnly."""
        parent, name = await self._split(path)
        await self._changes.remove(parent, name, directory=True)

    async def rename(self, path: str, new_path: str, *, no_replace: bool = False) -> None:
        """Rename within one mount, over what is there unless `no_replace`. Raises NotFound, AlreadyExists, CrossDevice,
        ReadOnly."""
        parent, name = await self._split(path)
        new_parent, new_name = await self._split(new_path)
        await self._changes.rename(Renaming(parent, name, new_parent, new_name, no_replace=no_replace))

    async def set_attributes(
        self,
        path: str,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> None:
        """Change what is given. Raises NotFound, ReadOnly."""
        inode = (await self._get(path)).attr.inode
        await self._changes.set_attributes(inode, NewAttributes(mode, uid, gid, atime_ns, mtime_ns))

    async def _create(self, parent: InodeId, name: str, kind: Kind, mode: int) -> Entry:
        entry = (await self._changes.create(NewName(parent, name, kind, mode, os.geteuid(), os.getegid()))).entry
        if entry is None:
            raise NotFound("it was made, and is not there any more", subject=name)
        return entry

    async def _get(self, path: str) -> Entry:
        entry = (await self._lookup_path(path)).entry
        if entry is None:
            raise NotFound("no such file or directory", subject=path)
        return entry

    async def _split(self, path: str) -> tuple[InodeId, str]:
        """The directory of a path, and the name in it."""
        parts = _split_names(path)
        if not parts:
            raise InvalidArgument("the root itself cannot be made, moved or removed", subject=path)
        above = await self._get("/" + "/".join(parts[:-1]))
        if above.attr.kind is not Kind.DIRECTORY:
            raise NotADirectory("not a directory", subject=path)
        return above.attr.inode, parts[-1]


def _split_names(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    if not path.startswith("/") or "." in parts or ".." in parts:
        raise InvalidArgument("an absolute path of the namespace, without . and .., is needed", subject=path)
    return parts


def _write_all(fd: int, data: Data) -> None:
    pieces = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    offset = 0
    os.ftruncate(fd, 0)
    try:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            while view:
                count = os.pwrite(fd, view, offset)
                offset += count
                view = view[count:]
    except OSError as error:
        raise NoSpace(f"what was written does not fit on the worker's disk ({error.strerror})") from error
