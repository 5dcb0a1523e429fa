"""What clients ask of the namespace, and of the mount table: thin handlers over the lister and the mount table.

Owns how a question becomes reads and listings; the answers' conversion is rpc's. Event loop alone.
"""

import asyncio
from collections.abc import Sequence

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.master.core import namespace
from alluxio_like.master.listing import Answer, Flight, Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.master.mount_table import MountTable
from alluxio_like.master.workers import WorkerRegistry
from alluxio_like.rpc.context import get_lease
from alluxio_like.rpc.messages import DirPage, FsTotals, LookupResult, MountInfo, MountSecrets, MountSpec, SyncResult
from alluxio_like.types import InodeId, Kind, MountId

DEFAULT_PAGE = 1000
MAX_PAGE = 10_000
SYNCS_AT_ONCE = 8


class NamespaceService:
    """NamespaceHandler of rpc.master_servicer."""

    def __init__(self, meta: MetaStore, lister: Lister, registry: WorkerRegistry, *, clock: Clock) -> None:
        self._meta = meta
        self._lister = lister
        self._registry = registry
        self._clock = clock

    async def lookup(self, parent: InodeId, name: str) -> LookupResult:
        return _make_result(await self._lister.lookup(parent, name, session=get_lease()))

    async def lookup_many(self, lookups: Sequence[tuple[InodeId, str]]) -> list[LookupResult]:
        if len(lookups) > MAX_PAGE:
            raise errors.InvalidArgument(f"at most {MAX_PAGE} names in one call")
        return list(await asyncio.gather(*(self.lookup(parent, name) for parent, name in lookups)))

    async def resolve_path(self, path: str, *, sync: bool) -> LookupResult:
        return _make_result(await self._lister.resolve_path(path, sync=sync, session=get_lease()))

    async def get_entry(self, inode: InodeId) -> LookupResult:
        return _make_result(self._lister.get_entry(inode, session=get_lease()))

    async def list_dir(self, inode: InodeId, cursor: bytes, limit: int) -> DirPage:
        limit = min(limit or DEFAULT_PAGE, MAX_PAGE)
        listed = await self._lister.list_page(inode, cursor, limit, session=get_lease())
        page = listed.page
        return DirPage(page.entries, page.cursor, listed.valid_s, page.mount_id, page.dir_key, listed.leased, listed.unleased)

    async def sync(self, path: str | None, inode: InodeId | None, *, recursive: bool) -> SyncResult:
        now_ns = self._clock.now_ns()
        if inode is None:
            known = await self._lister.resolve_path(path or "/")
            found = known.entry or (await self._lister.resolve_path(path or "/", sync=True)).entry
            if found is None:
                raise errors.NotFound("no such file or directory", subject=path or "/")
            inode = found.attr.inode
        with self._meta.read() as txn:
            entry = namespace.get_entry(txn, inode)
            if entry.attr.kind is not Kind.DIRECTORY:
                path = namespace.get_path(txn, inode).rpartition("/")[0] or "/"
                inode = namespace.resolve(txn, path).entry.attr.inode
        total = _Sum()
        total.add(await self._lister.refresh(inode, now_ns))
        if recursive:
            await self._sync_below(inode, now_ns, total)
        return SyncResult(total.directories, total.added, total.removed, total.replaced)

    async def _sync_below(self, top: InodeId, now_ns: int, total: "_Sum") -> None:
        """All directories below, a few at a time, the deepest first: what waits is one page of each directory on the way down."""
        waiting: list[tuple[InodeId, bytes]] = [(top, b"")]
        running: set[asyncio.Task[InodeId | None]] = set()

        async def visit(directory: InodeId) -> InodeId | None:
            try:
                total.add(await self._lister.refresh(directory, now_ns))
            except (errors.NotFound, errors.Stale):
                return None
            return directory

        ready: list[InodeId] = []
        try:
            while waiting or ready or running:
                while ready and len(running) < SYNCS_AT_ONCE:
                    running.add(asyncio.create_task(visit(ready.pop())))
                if waiting and len(running) < SYNCS_AT_ONCE:
                    directory, cursor = waiting.pop()
                    try:
                        with self._meta.read() as txn:
                            page = namespace.list_entries(txn, directory, cursor, DEFAULT_PAGE)
                    except errors.NotFound:
                        continue
                    ready += [entry.attr.inode for entry in page.entries if entry.attr.kind is Kind.DIRECTORY]
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

    async def stat_fs(self) -> FsTotals:
        return get_totals(self._meta, self._registry)


def _make_result(answer: Answer) -> LookupResult:
    return LookupResult(answer.entry, answer.valid_s, answer.leased, answer.directory, answer.chain)


class _Sum:
    """Of what listings changed."""

    def __init__(self) -> None:
        self.directories = self.added = self.removed = self.replaced = 0

    def add(self, flight: Flight | None) -> None:
        if flight is not None:
            self.directories += 1
            self.added += flight.added
            self.removed += flight.removed
            self.replaced += flight.replaced


def get_totals(meta: MetaStore, registry: WorkerRegistry) -> FsTotals:
    """The known namespace and the live caches."""
    with meta.read() as txn:
        totals = namespace.get_totals(txn)
    live = registry.get_live()
    capacity = sum(worker.capacity_bytes for worker in live)
    return FsTotals(totals.files + totals.directories, totals.known_bytes, capacity, sum(w.used_bytes for w in live))


class MountsService:
    """MountsHandler of rpc.master_servicer."""

    def __init__(self, mounts: MountTable) -> None:
        self._mounts = mounts

    async def mount(self, operation_id: str, spec: MountSpec) -> MountInfo:
        return await self._mounts.mount(operation_id, spec)

    async def unmount(self, operation_id: str, path: str) -> None:
        await self._mounts.unmount(operation_id, path)

    async def list_mounts(self) -> list[MountInfo]:
        return self._mounts.list_mounts()

    async def get_mount_secrets(self, mount_id: MountId) -> MountSecrets:
        return self._mounts.get_mount_secrets(mount_id)
