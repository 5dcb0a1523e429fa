"""Snapshots as people make, compare and delete them, and the collecting of deleted ones.

What a snapshot is belongs to core/snapshots.py, how it is read to snapshot_trees.py. Rule of concurrency: event loop alone; one
task collects.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import namespace, operations, snapshots
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.core.snapshots import View
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.snapshot_trees import is_frozen
from alluxio_like.rpc.snapshots import Difference, OldVersions, Snapshot
from alluxio_like.types import Entry, InodeId, Kind, MountId
from alluxio_like.ufs.versions import VersionedUfs

log = logging.getLogger(__name__)

_PAGE = 1000
_LOOKED_AT = 2_000
"""Directories and files of a tree that making a snapshot looks at, to say what no listing has covered. A guess: 20 ms."""
_VERSIONS_S = 2.0
"""For so long a store is asked whether it keeps old versions; making a snapshot waits for that at most. A guess."""
_COLLECT_PAUSE_S = 0.02
_COLLECT_AGAIN_S = 60.0


class SnapshotsService:
    """SnapshotsHandler of rpc.snapshots."""

    def __init__(self, meta: MetaStore, lister: Lister, mounts: MountTable, *, clock: Clock) -> None:
        self._meta = meta
        self._lister = lister
        self._mounts = mounts
        self._clock = clock
        self._deleted = asyncio.Event()
        self._deleted.set()

    async def create_snapshot(self, operation_id: str, path: str, name: str) -> Snapshot:
        now_ns = self._clock.now_ns()
        root = await self._resolve(path)
        with self._meta.read() as txn:
            unlisted = _count_unlisted(txn, root)

        def work(txn: WriteTransaction) -> bytes:
            return str(snapshots.create(txn, root, name, now_ns).created_ns).encode()

        created = await self._once(operation_id, "create snapshot", now_ns, work)
        mounts = self._list_mounts(root)
        return Snapshot(path, name, int(created), unlisted, _sum_up((await self._ask_versions(mounts)).values()))

    async def list_snapshots(self, path: str) -> list[Snapshot]:
        root = await self._resolve(path) if path else None
        with self._meta.read() as txn:
            live = [one for one in snapshots.list_all(txn) if not one.deleted and root in (None, one.root)]
            made = [Snapshot(_find_path(txn, one.root), one.name, one.created_ns) for one in live]
        below = [self._list_mounts(one.root) for one in live]
        kept = await self._ask_versions(frozenset().union(*below))
        found = [
            replace(one, old_versions=_sum_up([kept[mount_id] for mount_id in mounts]))
            for one, mounts in zip(made, below, strict=True)
        ]
        return sorted(found, key=lambda one: (one.path, one.created_ns))

    async def delete_snapshot(self, operation_id: str, path: str, name: str) -> None:
        root, now_ns = await self._resolve(path), self._clock.now_ns()

        def work(txn: WriteTransaction) -> bytes:
            found = snapshots.lookup(txn, root, name)
            if found is None:
                raise errors.NotFound(f"no such snapshot: see `alluxio-like snapshot list {path}`", subject=f"{path}@{name}")
            snapshots.delete(txn, found)
            return b""

        await self._once(operation_id, "delete snapshot", now_ns, work)
        self._deleted.set()

    async def diff(self, path: str, name: str, other: str) -> AsyncIterator[Sequence[Difference]]:
        root = await self._resolve(path)
        with self._meta.read() as txn:
            for wanted in (name, other):
                if wanted and snapshots.lookup(txn, root, wanted) is None:
                    raise errors.NotFound(
                        f"no such snapshot: see `alluxio-like snapshot list {path}`", subject=f"{path}@{wanted}"
                    )
        waiting: list[tuple[str, InodeId | None, InodeId | None]] = [("", root, root)]
        while waiting:
            below, first, second = waiting.pop()
            with self._meta.read() as txn:
                views = [_open_view(txn, root, wanted) for wanted in (name, other)]
                found = list(_compare(views[0], views[1], below, first, second, waiting))
            if found:
                yield found
            await asyncio.sleep(0)

    def _list_mounts(self, root: InodeId) -> frozenset[MountId]:
        """The mounts of which a tree has something."""
        with self._meta.read() as txn:
            try:
                path, mount_id = namespace.get_path(txn, root).rstrip("/") + "/", namespace.get_dir_state(txn, root).mount_id
            except errors.NotFound:
                return frozenset()
        below = {info.mount_id for info in self._mounts.list_mounts() if f"{info.path}/".startswith(path)}
        return frozenset(below if mount_id == NO_MOUNT else {mount_id, *below})

    async def _ask_versions(self, mount_ids: frozenset[MountId]) -> dict[MountId, OldVersions]:
        """What the stores of mounts say of old versions, each asked once; who does not say so soon: not known."""

        async def ask(mount_id: MountId) -> OldVersions:
            try:
                ufs = self._mounts.get_ufs(mount_id)
                if not isinstance(ufs, VersionedUfs):
                    return OldVersions.NO
                async with asyncio.timeout(_VERSIONS_S):
                    return OldVersions.YES if await ufs.keeps_versions() else OldVersions.NO
            except (errors.AlluxioLikeError, TimeoutError) as error:
                log.info("not known whether a store keeps old versions", extra={"mount": mount_id, "error": str(error)})
                return OldVersions.UNKNOWN

        ordered = sorted(mount_ids)
        return dict(zip(ordered, await asyncio.gather(*map(ask, ordered)), strict=True))

    async def _resolve(self, path: str) -> InodeId:
        inode = await self._lister.resolve_directory(path, otherwise="snapshots are of directories")
        if is_frozen(inode):
            raise errors.ReadOnly("what is below .snapshots is frozen, and has no snapshots of its own", subject=path)
        return inode

    async def _once(self, operation_id: str, method: str, now_ns: int, work: Callable[[WriteTransaction], bytes]) -> bytes:
        result = await self._meta.write(lambda txn: operations.run_once(txn, operation_id, method, now_ns, lambda: work(txn)))
        await self._meta.flush()
        return result

    async def collect(self) -> None:
        """Take what was kept for deleted snapshots, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_COLLECT_AGAIN_S):
                    await self._deleted.wait()
            except TimeoutError:
                pass
            self._deleted.clear()
            try:
                await self._collect_all()
            except errors.AlluxioLikeError as error:
                log.warning("a deleted snapshot could not be collected yet: %s", error)

    async def _collect_all(self) -> None:
        with self._meta.read() as txn:
            deleted = [one.number for one in snapshots.list_all(txn) if one.deleted]
        for number in deleted:
            cursor: bytes | None = b""
            while cursor is not None:
                at = cursor
                cursor = await self._meta.write(lambda txn, at=at, number=number: snapshots.collect(txn, number, at))  # type: ignore[misc]
                await asyncio.sleep(_COLLECT_PAUSE_S)


def _sum_up(told: Iterable[OldVersions]) -> OldVersions:
    """Of a tree, from what is so of its stores. One without any can lose nothing but what is kept here alone."""
    different = set(told)
    if len(different) == 1:
        return different.pop()
    if OldVersions.UNKNOWN in different:
        return OldVersions.UNKNOWN
    return OldVersions.PARTLY if different else OldVersions.NO


def _find_path(txn: ReadTransaction, inode: InodeId) -> str:
    try:
        return namespace.get_path(txn, inode)
    except errors.NotFound:
        return ""


def _count_unlisted(txn: ReadTransaction, root: InodeId) -> int:
    """Directories that no listing has covered, of the first that are met."""
    waiting, seen, unlisted = [root], 0, 0
    while waiting and seen < _LOOKED_AT:
        directory = waiting.pop()
        state = namespace.get_dir_state(txn, directory)
        unlisted += not state.complete
        if not state.directories:
            seen += 1
            continue
        cursor = b""
        while seen < _LOOKED_AT:
            page = namespace.list_entries(txn, directory, cursor, _PAGE)
            seen += len(page.entries) + 1
            waiting += [entry.attr.inode for entry in page.entries if entry.attr.kind is Kind.DIRECTORY]
            cursor = page.cursor
            if not cursor:
                break
    return unlisted


def _open_view(txn: ReadTransaction, root: InodeId, name: str) -> ReadTransaction:
    if not name:
        return txn
    found = snapshots.lookup(txn, root, name)
    if found is None:
        raise errors.NotFound("the snapshot was deleted meanwhile", subject=name)
    return View(txn, found.number)


def _compare(
    first: ReadTransaction,
    second: ReadTransaction,
    below: str,
    one: InodeId | None,
    other: InodeId | None,
    waiting: list[tuple[str, InodeId | None, InodeId | None]],
) -> Iterator[Difference]:
    """What differs in one directory; directories to look into next are added to `waiting`."""
    before = {} if one is None else {entry.name: entry for entry in _iter_entries(first, one)}
    after = {} if other is None else {entry.name: entry for entry in _iter_entries(second, other)}
    for name in sorted({*before, *after}):
        old, new, path = before.get(name), after.get(name), below + name
        difference = _describe(path, old, new)
        if difference is not None:
            yield difference
        inodes = [None if entry is None or entry.attr.kind is not Kind.DIRECTORY else entry.attr.inode for entry in (old, new)]
        if any(inode is not None for inode in inodes):
            waiting.append((path + "/", inodes[0], inodes[1]))


def _describe(path: str, old: Entry | None, new: Entry | None) -> Difference | None:
    if old is None or new is None:
        there = new or old
        assert there is not None
        return Difference(path, "added" if old is None else "removed", there.attr.size)
    if old.attr.kind is not new.attr.kind:
        return Difference(path, "changed", new.attr.size)
    contents = [(entry.attr.inode, entry.attr.version, entry.attr.size) for entry in (old, new)]
    if new.attr.kind is not Kind.DIRECTORY and contents[0] != contents[1]:
        return Difference(path, "changed", new.attr.size)
    if (old.attr.mode, old.attr.uid, old.attr.gid) != (new.attr.mode, new.attr.uid, new.attr.gid):
        return Difference(path, "attributes", new.attr.size)
    return None


def _iter_entries(txn: ReadTransaction, directory: InodeId) -> Iterator[Entry]:
    cursor = b""
    while True:
        page = namespace.list_entries(txn, directory, cursor, _PAGE)
        yield from page.entries
        cursor = page.cursor
        if not cursor:
            return
