"""What clients ask of the namespace, and of the mount table: thin handlers over the lister and the mount table.

Owns how a question becomes reads and listings; the answers' conversion is rpc's. Event loop alone.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.master.core import namespace
from alluxio_like.master.core.growth import Growth
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.listing import Answer, Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.snapshot_trees import is_frozen
from alluxio_like.master.spaces import Spaces
from alluxio_like.master.surveying import Survey, Surveyor
from alluxio_like.master.tree import TreeLister
from alluxio_like.master.workers import WorkerRegistry
from alluxio_like.rpc.context import get_lease
from alluxio_like.rpc.messages import (
    ArchiveStatus,
    DirPage,
    FsTotals,
    LookupResult,
    MountInfo,
    MountSecrets,
    MountSpec,
    SyncInterval,
    SyncResult,
    TreePage,
)
from alluxio_like.types import Entry, InodeId, Kind, MountId
from alluxio_like.ufs import archive
from alluxio_like.ufs.archive import get_archiving

DEFAULT_PAGE = 1000
MAX_PAGE = 10_000
SYNCS_AT_ONCE = 8


class NamespaceService:
    """NamespaceHandler of rpc.master_servicer."""

    def __init__(
        self,
        meta: MetaStore,
        lister: Lister,
        surveyor: Surveyor,
        registry: WorkerRegistry,
        spaces: Spaces,
        growth: Growth,
        *,
        clock: Clock,
    ) -> None:
        self._meta = meta
        self._lister = lister
        self._surveyor = surveyor
        self._registry = registry
        self._spaces = spaces
        self._growth = growth
        self._clock = clock
        self._trees = TreeLister(meta, lister, surveyor, clock=clock)

    async def lookup(self, parent: InodeId, name: str) -> LookupResult:
        return self._make_result(await self._lister.lookup(parent, name, session=get_lease()))

    async def lookup_many(self, lookups: Sequence[tuple[InodeId, str]]) -> list[LookupResult]:
        if len(lookups) > MAX_PAGE:
            raise errors.InvalidArgument(f"at most {MAX_PAGE} names in one call")
        return list(await asyncio.gather(*(self.lookup(parent, name) for parent, name in lookups)))

    async def resolve_path(self, path: str, *, sync: bool) -> LookupResult:
        return self._make_result(await self._lister.resolve_path(path, sync=sync, session=get_lease()))

    async def get_entry(self, inode: InodeId) -> LookupResult:
        return self._make_result(await self._lister.ask_entry(inode, session=get_lease()))

    async def list_dir(self, inode: InodeId, cursor: bytes, limit: int) -> DirPage:
        limit = min(limit or DEFAULT_PAGE, MAX_PAGE)
        listed = await self._lister.list_page(inode, cursor, limit, session=get_lease())
        page = listed.page
        entries = page.entries if self._growth.is_empty else tuple([self._add_growth(entry) for entry in page.entries])
        return DirPage(entries, page.cursor, listed.valid_s, page.mount_id, page.dir_key, listed.leased, listed.unleased)

    async def sync(self, path: str | None, inode: InodeId | None, *, recursive: bool) -> SyncResult:
        now_ns = self._clock.now_ns()
        if inode is None:
            known = await self._lister.resolve_path(path or "/")
            found = known.entry or (await self._lister.resolve_path(path or "/", sync=True)).entry
            if found is None:
                raise errors.NotFound(
                    "neither known nor in the store: see what is there with `alluxio-like fs ls` of the directory above it",
                    subject=path or "/",
                )
            inode = found.attr.inode
        if is_frozen(inode):
            return SyncResult()  # it never changes
        with self._meta.read() as txn:
            entry = namespace.get_entry(txn, inode)
            if entry.attr.kind is not Kind.DIRECTORY:
                path = namespace.get_path(txn, inode).rpartition("/")[0] or "/"
                inode = namespace.resolve(txn, path).entry.attr.inode
        survey = self._surveyor.begin(now_ns, strict=True)
        try:
            if recursive:
                await self._sync_below(inode, survey)
            else:
                await survey.bring(inode)
            if (parent := self._lookup_doubtful(inode)) is not None:
                await survey.bring(parent)
        finally:
            await survey.close()
        total = survey.total
        return SyncResult(total.directories, total.added, total.removed, total.replaced)

    def _lookup_doubtful(self, directory: InodeId) -> InodeId | None:
        """Where to look whether a directory that turned out empty is there at all: in a store without directories of its own, its
        listing alone does not tell."""
        with self._meta.read() as txn:
            try:
                state = namespace.get_dir_state(txn, directory)
                parent = namespace.lookup_parent(txn, directory)
                if state.files or state.directories or parent is None or parent == directory:
                    return None
                return parent if namespace.get_dir_state(txn, parent).mount_id == state.mount_id != NO_MOUNT else None
            except errors.NotFound:
                return None

    async def _sync_below(self, top: InodeId, survey: Survey) -> None:
        """A directory and all below it, a few at a time, the deepest first, else in their order: what waits is one page of each
        directory on the way down."""
        waiting: list[tuple[InodeId, bytes]] = []
        ready: list[tuple[InodeId, InodeId | None]] = [(top, None)]
        running: set[asyncio.Task[InodeId | None]] = set()

        async def visit(directory: InodeId, among: InodeId | None) -> InodeId | None:
            try:
                await survey.bring(directory, among=among)
            except (errors.NotFound, errors.Stale):
                if among is None:
                    raise
                return None
            return directory

        try:
            while waiting or ready or running:
                while ready and len(running) < SYNCS_AT_ONCE:
                    running.add(asyncio.create_task(visit(*ready.pop())))
                if waiting and len(running) < SYNCS_AT_ONCE:
                    directory, cursor = waiting.pop()
                    try:
                        with self._meta.read() as txn:
                            page = namespace.list_entries(txn, directory, cursor, DEFAULT_PAGE)
                    except errors.NotFound:
                        continue
                    below = [entry.attr.inode for entry in page.entries if entry.attr.kind is Kind.DIRECTORY]
                    ready += [(inode, directory) for inode in reversed(below)]
                    if page.cursor:
                        waiting.append((directory, page.cursor))
                    await asyncio.sleep(0)
                    continue
                if not running:
                    continue
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                waiting += [(found, b"") for task in done if (found := task.result()) is not None]
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _make_result(self, answer: Answer) -> LookupResult:
        entry = None if answer.entry is None else self._add_growth(answer.entry)
        return LookupResult(entry, answer.valid_s, answer.leased, answer.directory, answer.chain)

    def _add_growth(self, entry: Entry) -> Entry:
        ref = entry.ref
        first = 0 if ref is None else self._growth.get_first(ref.inode, ref.version)
        return replace(entry, ref=replace(ref, continues=first)) if ref is not None and first else entry

    def list_tree(self, path: str, unless: int) -> AsyncIterator[TreePage]:
        return self._trees.list_tree(path, unless)

    async def stat_fs(self, inode: InodeId | None = None) -> FsTotals:
        totals = get_totals(self._meta, self._registry)
        return totals if inode is None else await self._spaces.add_room(totals, inode)


def get_totals(meta: MetaStore, registry: WorkerRegistry) -> FsTotals:
    """The known namespace and the live caches."""
    with meta.read() as txn:
        totals = namespace.get_totals(txn)
    live = registry.get_live()
    capacity = sum(worker.capacity_bytes for worker in live)
    return FsTotals(totals.files + totals.directories, totals.known_bytes, capacity, sum(w.used_bytes for w in live))


class MountsService:
    """MountsHandler of rpc.master_servicer."""

    def __init__(self, mounts: MountTable, lister: Lister) -> None:
        self._mounts = mounts
        self._lister = lister

    async def mount(self, operation_id: str, spec: MountSpec) -> MountInfo:
        return await self._mounts.mount(operation_id, spec)

    async def unmount(self, operation_id: str, path: str, *, force: bool) -> None:
        await self._mounts.unmount(operation_id, path, force=force)

    async def list_mounts(self) -> list[MountInfo]:
        return self._mounts.list_mounts()

    async def set_sync_interval(self, operation_id: str, path: str, interval_s: float) -> SyncInterval:
        # Idempotent by itself.
        return await self._mounts.set_sync_interval(await self._get_directory(path), interval_s or None)

    async def get_sync_interval(self, path: str) -> SyncInterval:
        return self._mounts.describe_sync_interval(await self._get_directory(path))

    async def _get_directory(self, path: str) -> InodeId:
        directory = await self._lister.resolve_directory(path, otherwise="only directories are listed")
        if is_frozen(directory):
            raise errors.InvalidArgument("what is below .snapshots is frozen, and is not listed again", subject=path)
        return directory

    async def get_mount_secrets(self, mount_id: MountId) -> MountSecrets:
        return self._mounts.get_mount_secrets(mount_id)

    async def get_archive_status(self, mount_id: MountId, key: str) -> ArchiveStatus:
        return _describe_archive(await get_archiving(self._mounts.get_ufs(mount_id)).get_archive_status(key))

    async def restore(self, mount_id: MountId, key: str, days: int, tier: str) -> ArchiveStatus:
        return _describe_archive(await get_archiving(self._mounts.get_ufs(mount_id)).restore(key, days, tier))


def _describe_archive(status: archive.ArchiveStatus) -> ArchiveStatus:
    return ArchiveStatus(str(status.state), status.storage_class, status.until_ns)
