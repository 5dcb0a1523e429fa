"""Changes and drafts of a tree in memory, for tests of mounts without services.

Owns what memory.py's tree needs to be changed and written; drafts are files in a directory. Each operation id is carried out
once, and remembered. Nobody else's leases are recalled: there is one mount. Used from one event loop.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alluxio_like import errors
from alluxio_like.rpc.messages_writing import Changed, DraftSealed, NewAttributes, NewName, Renaming, XattrChange
from alluxio_like.types import FileRef, InodeId, Kind, MountId, Recall, VersionId, WorkerId, to_bytes

if TYPE_CHECKING:
    from alluxio_like.fuse.memory import MemoryBackend


class MemoryDraft(NamedTuple):
    """See backend.OpenedDraft."""

    worker_id: WorkerId
    fd: int


class MemoryWriting:
    """Both backend.Changes and backend.DraftFiles of one MemoryBackend."""

    def __init__(self, backend: "MemoryBackend", directory: Path) -> None:
        self._backend = backend
        self._directory = directory
        self._done: dict[str, Changed] = {}
        self._xattrs: dict[InodeId, dict[bytes, bytes]] = {}
        self._targets: dict[InodeId, str] = {}
        self.seals = 0
        self.fail_seals: errors.AlluxioLikeError | None = None

    # Changes

    def _once(self, operation_id: str, change: Callable[[], Changed]) -> Changed:
        done = self._done.get(operation_id) if operation_id else None
        if done is None:
            done = change()
            if operation_id:
                self._done[operation_id] = done
        if self._backend.faults.fail_changes is not None:
            raise self._backend.faults.fail_changes
        return done

    def _get_children(self, parent: InodeId) -> dict[str, InodeId]:
        return self._backend.get_directory(parent).children

    def _note(self, *parents: InodeId) -> None:
        for parent in parents:
            node = self._backend.get_node(parent)
            now = time.time_ns()
            node.entry = replace(node.entry, attr=replace(node.entry.attr, mtime_ns=now, ctime_ns=now))

    async def create(self, new: NewName, operation_id: str = "") -> Changed:
        self._backend.calls["create"] = self._backend.calls.get("create", 0) + 1
        await self._backend.wait(self._backend.faults.stall_creates)

        def do() -> Changed:
            children = self._get_children(new.parent)
            if new.name in children:
                raise errors.AlreadyExists("it exists", subject=new.name)
            inode = self._backend.add_node(new.name, new.kind, len(to_bytes(new.target)))
            if not new.unnamed:
                children[new.name] = inode
            node = self._backend.get_node(inode)
            now = time.time_ns()
            attr = replace(
                node.entry.attr, mode=new.mode, uid=new.uid, gid=new.gid, mtime_ns=now, ctime_ns=now, device=new.device
            )
            if new.unnamed:
                node.entry = replace(node.entry, attr=replace(attr, nlink=0))
                return Changed(node.entry)
            node.entry = replace(node.entry, attr=attr)
            if new.kind is Kind.SYMLINK:
                self._targets[inode] = new.target
            self._note(new.parent)
            return Changed(node.entry, (Recall(new.parent, (to_bytes(new.name),)),))

        return self._once(operation_id, do)

    async def link(self, inode: InodeId, parent: InodeId, name: str, operation_id: str = "") -> Changed:
        def do() -> Changed:
            children = self._get_children(parent)
            if name in children:
                raise errors.AlreadyExists("it exists", subject=name)
            children[name] = inode
            self._note(parent)
            return Changed(self._count_link(inode, 1), (Recall(parent, (to_bytes(name),), inodes=(inode,)),))

        return self._once(operation_id, do)

    def _count_link(self, inode: InodeId, change: int) -> Any:
        node = self._backend.get_node(inode)
        attr = replace(node.entry.attr, nlink=node.entry.attr.nlink + change, ctime_ns=time.time_ns())
        node.entry = replace(node.entry, attr=attr)
        return node.entry

    async def remove(self, parent: InodeId, name: str, *, directory: bool, operation_id: str = "") -> Changed:
        def do() -> Changed:
            children = self._get_children(parent)
            inode = children.get(name)
            if inode is None:
                raise errors.NotFound("no such name", subject=name)
            node = self._backend.get_node(inode)
            is_directory = node.entry.attr.kind is Kind.DIRECTORY
            if is_directory != directory:
                raise (errors.NotADirectory if directory else errors.IsADirectory)("the wrong kind", subject=name)
            if node.children:
                raise errors.DirectoryNotEmpty("not empty", subject=name)
            del children[name]
            self._note(parent)
            return Changed(self._count_link(inode, -1), (Recall(parent, (to_bytes(name),), inodes=(inode,)),))

        return self._once(operation_id, do)

    async def rename(self, renaming: Renaming, operation_id: str = "") -> Changed:
        def do() -> Changed:
            source, target = self._get_children(renaming.parent), self._get_children(renaming.new_parent)
            inode = source.get(renaming.name)
            if inode is None:
                raise errors.NotFound("no such name", subject=renaming.name)
            there = target.get(renaming.new_name)
            if there is not None and renaming.no_replace:
                raise errors.AlreadyExists("it exists", subject=renaming.new_name)
            if renaming.exchange:
                if there is None:
                    raise errors.NotFound("no such name", subject=renaming.new_name)
                source[renaming.name] = there
            elif there != inode:
                del source[renaming.name]
                if there is not None:
                    self._count_link(there, -1)
            target[renaming.new_name] = inode
            node = self._backend.get_node(inode)
            node.entry = replace(node.entry, name=renaming.new_name)
            self._note(renaming.parent, renaming.new_parent)
            recalls = (
                Recall(renaming.parent, (to_bytes(renaming.name),), inodes=(inode,)),
                Recall(renaming.new_parent, (to_bytes(renaming.new_name),)),
            )
            return Changed(node.entry, recalls)

        return self._once(operation_id, do)

    async def set_attributes(self, inode: InodeId, wanted: NewAttributes, operation_id: str = "") -> Changed:
        def do() -> Changed:
            node = self._backend.get_node(inode)
            names = ("mode", "uid", "gid", "atime_ns", "mtime_ns")
            given = {name: getattr(wanted, name) for name in names if getattr(wanted, name) is not None}
            node.entry = replace(node.entry, attr=replace(node.entry.attr, ctime_ns=time.time_ns(), **given))
            return Changed(node.entry)

        return self._once(operation_id, do)

    async def flush(self) -> None:
        pass

    async def read_link(self, inode: InodeId) -> str:
        if inode not in self._targets:
            raise errors.InvalidArgument("not a symbolic link", subject=str(inode))
        return self._targets[inode]

    async def get_xattrs(self, inode: InodeId) -> dict[bytes, bytes]:
        return self._xattrs.get(inode, {})

    async def set_xattr(self, inode: InodeId, change: XattrChange, operation_id: str = "") -> Changed:
        def do() -> Changed:
            known = self._xattrs.setdefault(inode, {})
            if change.create and change.name in known:
                raise errors.AlreadyExists("it is there")
            if (change.replace or change.value is None) and change.name not in known:
                raise errors.NoData("it is not there")
            if change.value is None:
                del known[change.name]
            else:
                known[change.name] = change.value
            node = self._backend.get_node(inode)
            node.entry = replace(node.entry, attr=replace(node.entry.attr, has_xattrs=bool(known)))
            return Changed(self._backend.get_node(inode).entry)

        return self._once(operation_id, do)

    # Drafts

    def _get_path(self, inode: InodeId) -> Path:
        return self._directory / str(inode)

    async def check_writable(self, mount_id: MountId) -> None:
        return None

    async def claim(self, inode: InodeId, size: int, *, only_asks: bool = False) -> int | None:
        return None

    async def has_room(self, worker_id: WorkerId, size: int) -> bool:
        return True

    async def find(self, inode: InodeId) -> WorkerId:
        return WorkerId("w1")

    async def begin(self, ref: FileRef, *, truncate: bool) -> MemoryDraft:
        path, node = self._get_path(ref.inode), self._backend.get_node(ref.inode)
        if ref.version != node.entry.attr.version:
            raise errors.Stale("another version by now", subject=ref.key)
        whole = self._backend.get_whole_path(ref.inode)
        if not path.exists() and whole is not None and whole.exists():
            # As a worker does: a draft is the cache file itself.
            whole.rename(path)
        elif not path.exists():
            content = node.content
            path.write_bytes(b"" if truncate else content if isinstance(content, bytes) else content(0, ref.size))
        return MemoryDraft(WorkerId("w1"), os.open(path, os.O_RDWR | os.O_CLOEXEC))

    async def seal(self, worker_id: WorkerId, inode: InodeId, operation_id: str, *, early: bool = False) -> DraftSealed:
        if self.fail_seals is not None:
            raise self.fail_seals
        path, node = self._get_path(inode), self._backend.get_node(inode)
        if not path.exists():
            raise errors.NotFound("no such draft", subject=str(inode))
        self.seals += 1
        node.content = path.read_bytes()
        size, mtime_ns = len(node.content), path.stat().st_mtime_ns
        version = VersionId(node.entry.attr.version + 1)
        attr = replace(node.entry.attr, size=size, version=version, mtime_ns=mtime_ns, ctime_ns=time.time_ns())
        assert node.entry.ref is not None
        ref = replace(node.entry.ref, version=version, fingerprint=replace(node.entry.ref.fingerprint, size=size))
        node.entry = replace(node.entry, attr=attr, ref=ref)
        return DraftSealed(ref, mtime_ns)

    async def sync(self, worker_id: WorkerId, inode: InodeId) -> None:
        """Nothing here outlives the process."""

    def is_pending(self, inode: InodeId) -> bool:
        return False

    async def settle(self, inodes: Iterable[InodeId]) -> None:
        pass

    async def end(self, worker_id: WorkerId, inode: InodeId) -> None:
        path, whole = self._get_path(inode), self._backend.get_whole_path(inode)
        if whole is not None and path.exists():
            path.rename(whole)
        path.unlink(missing_ok=True)

    async def end_all(self, worker_id: WorkerId, inodes: Sequence[InodeId]) -> None:
        for inode in inodes:
            await self.end(worker_id, inode)
