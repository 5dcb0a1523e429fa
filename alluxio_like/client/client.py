"""The client of a cluster, asynchronous.

Owns the calls that FUSE, CLI and SDK make: names through the metadata cache, files through readers, everything else straight
to the master. Built from parts by `Client.open`; decides nothing itself. Rule of concurrency: everything is called from the
one event loop it was opened on; any number of calls at once. A client belongs to the process that opened it (see sync.py for
one that survives fork and pickling).
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Self

from alluxio_like.cache.reader import LocalFile
from alluxio_like.client.blanks import BlankPool
from alluxio_like.client.changes import Changes
from alluxio_like.client.cluster import ClusterTracker
from alluxio_like.client.coherence import LeaseKeeper
from alluxio_like.client.descriptor import LocalDescriptor, Opener
from alluxio_like.client.draft_workers import DraftWorkers
from alluxio_like.client.drafts import DraftFiles
from alluxio_like.client.expected import Expected
from alluxio_like.client.far import FAR_FILE_BYTES, FarReader
from alluxio_like.client.fetching import Fetcher
from alluxio_like.client.guests import Guests
from alluxio_like.client.local import LocalCaches
from alluxio_like.client.locks import Locks
from alluxio_like.client.many import Brought, Many, SmallFiles, iter_files_async
from alluxio_like.client.metadata import OLD_VALID_S, Begun, MetadataCache
from alluxio_like.client.news import News
from alluxio_like.client.pending import PendingFiles
from alluxio_like.client.prefetch import NamePrefetch
from alluxio_like.client.readahead import Budget
from alluxio_like.client.reading import FileReader, Scratch
from alluxio_like.client.resolving import Resolver
from alluxio_like.client.space import limit_space
from alluxio_like.client.writing import TreeWriter
from alluxio_like.config import ClientConfig
from alluxio_like.errors import AlluxioLikeError, InvalidArgument, IsADirectory, NotFound, TimedOut, Unavailable
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.auth import read_token
from alluxio_like.rpc.changes import ChangesStub
from alluxio_like.rpc.channel import RpcChannel, open_channel
from alluxio_like.rpc.data_pool import DataPool
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.messages import (
    ArchiveStatus,
    BlockLocation,
    CacheStatus,
    DirPage,
    FreeResult,
    FsTotals,
    Job,
    LoadSpec,
    LookupResult,
    MountInfo,
    MountSpec,
    ProblemPage,
    Report,
    SyncInterval,
    SyncResult,
    TreePage,
)
from alluxio_like.rpc.quotas import QuotasStub
from alluxio_like.rpc.snapshots import Difference, Snapshot, SnapshotsStub
from alluxio_like.rpc.trash import TrashStub
from alluxio_like.types import EVERYWHERE, Cluster, Entry, FileId, FileRef, InodeId, JobId, Kind, Recall, Space

_log = logging.getLogger(__name__)

_MOVING_PAUSES_S = (0.0, 0.1, 0.2)
"""Before each look at where a content is, that was not found where it should be. A guess: a rename at a store takes less."""
_LONG_S = 600.0
"""For calls that walk a whole tree. A master that cannot be reached is not waited for longer than io_timeout_s."""
MANY_BYTES = 64 << 20
"""What `read_many` brings at once."""

__all__ = ["Client", "FileReader"]


class Client:
    """The cluster whose master is at `config.master`.

    Every call ends within `config.io_timeout_s`, those that walk a tree (sync, loads, free, pin, status) within ten minutes."""

    def __init__(self, config: ClientConfig, token: str, metrics: Metrics | None) -> None:
        self._config = config
        self._metrics = metrics
        self._timeout_s = config.io_timeout_s
        self._token = token
        self._channel = self._open_channel(config.master)
        self._master = MasterStub(self._channel, timeout_s=config.io_timeout_s)
        self._snapshots = SnapshotsStub(self._channel, timeout_s=config.io_timeout_s)
        self.trash = TrashStub(self._channel, timeout_s=config.io_timeout_s)
        self.quotas = QuotasStub(self._channel, timeout_s=config.io_timeout_s)
        self._keeper = LeaseKeeper(self._channel, self._forget, self._note_epoch, metrics, strict=config.strict)
        self._names = MetadataCache(time.monotonic, self._keeper.is_live)
        self._news = News(self._names, self._keeper, self._note_forgotten)
        self._prefetch = NamePrefetch(self.list_dir)
        # A worker that is stopped, or cut off, leaves time to ask others. Where the cluster has TLS nothing goes in the clear.
        pool = DataPool(silence_s=config.io_timeout_s / 3) if config.tls.ca is None else None
        self._cluster = ClusterTracker(
            self._master, self._open_channel, io_timeout_s=config.io_timeout_s, metrics=metrics, pool=pool
        )
        self._local = LocalCaches(self._cluster, enabled=config.use_local_cache)
        changes = ChangesStub(self._channel, timeout_s=config.io_timeout_s)
        workers = DraftWorkers(self._cluster, self._local, io_timeout_s=config.io_timeout_s)
        self.pending = PendingFiles(
            self._names,
            self._keeper.is_live,
            self._news,
            BlankPool(changes.reserve_inodes, workers, self._local),
            workers,
            io_timeout_s=config.io_timeout_s,
        )
        """Files that the master is yet to hear of."""
        self.changes = Changes(changes, self._news, self.pending)
        """What programs change in the namespace."""
        self.drafts = DraftFiles(
            self._cluster,
            workers,
            self._local,
            self.pending,
            self.list_mounts,
            self._news,
            self.quotas.claim,
            io_timeout_s=config.io_timeout_s,
        )
        """Files that are being written."""
        self.writing = TreeWriter(self.lookup_path, self.changes, self.drafts)
        """Changes of the tree, by path."""
        self._fetcher = Fetcher(self._cluster, self._local, io_timeout_s=config.io_timeout_s, metrics=metrics)
        self._guests = Guests(self._fetcher, io_timeout_s=config.io_timeout_s)
        self._budget = Budget(config.buffer_bytes)
        if metrics is not None:
            metrics.readahead_bytes.set_function(lambda: self._budget.used_bytes)
        self._scratch = Scratch()
        self._opener = Opener(self._cluster, self._local, self.open_file, io_timeout_s=config.io_timeout_s)
        self._expected = Expected(self._begin_far)
        self._small = SmallFiles(self._keeper.is_live, most_open=config.open_files)
        resolver = Resolver(self._names, self._master, self._cluster, self.lookup_path, strict=config.strict)
        self._many = Many(
            self._small,
            self._local,
            resolve=resolver.resolve,
            find_local=self.find_local,
            open_file=self.open_file,
            open_far=self.open_far,
        )
        self._readers: set[FileReader | FarReader] = set()
        self._closed = False

    def _open_channel(self, address: str) -> RpcChannel:
        return open_channel(address, tls=self._config.tls, token=self._token)

    @classmethod
    def open(cls, config: ClientConfig, *, metrics: Metrics | None = None) -> Self:
        """No I/O happens before the first call. Raises ConfigError for unreadable certificates or token files."""
        token = "" if config.token_file is None else read_token(config.token_file)
        return cls(config, token, metrics)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all readers, channels and descriptors. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._expected.close()
        await asyncio.gather(*(reader.close() for reader in list(self._readers)), return_exceptions=True)
        await self._guests.close()
        await self.pending.close()
        await self._keeper.close()
        await self._prefetch.close()
        await self._many.close()
        await self._local.close()
        await self._cluster.close()
        await self._channel.close()

    @property
    def master_away_s(self) -> float:
        """For how long calls have not reached the master and are tried again; 0: it answers, as far as is known."""
        return self._channel.away_s

    # names

    async def lookup(self, parent: InodeId, name: str) -> LookupResult:
        """One name in one directory; a missing one gives entry None. `valid_s` is what is left of the answer's time."""
        known = self._names.lookup(parent, name)
        if known is not None:
            return known
        self._prefetch.note_miss(parent)
        await self.pending.settle([parent])
        return await self._ask(
            self._names.lookup_old(parent, name),
            lambda **how: self._master.lookup(parent, name, **how),
            lambda result, begun: self._names.keep(parent, name, result, begun),
        )

    def lookup_known(self, parent: InodeId, name: str) -> LookupResult | None:
        """What is remembered of a name in a directory, and still usable; None: ask."""
        return self._names.lookup(parent, name)

    def get_known(self, inode: InodeId) -> LookupResult | None:
        """What is remembered of an inode, and still usable; None: ask."""
        return self._names.get(inode)

    def lookup_old(self, parent: InodeId, name: str) -> Entry | None:
        """What a name led to when it was last asked for, however long ago."""
        old = self._names.lookup_old(parent, name)
        return None if old is None else old.entry

    def get_old(self, inode: InodeId) -> tuple[Entry, InodeId] | None:
        """What was last known of an inode, and the directory it was in. A file's content is the same for ever."""
        record = self._names.get_old(inode)
        return None if record is None else (record.entry, record.parent)

    def list_known_names(self, directory: InodeId, limit: int) -> list[bytes] | None:
        """The names of a directory that were ever answered, there or not; None: more than `limit`, or not all are remembered."""
        return self._names.list_names(directory, limit)

    async def lookup_path(self, path: str, *, sync: bool = False) -> LookupResult:
        """An absolute path; `sync` asks the store first. A missing one gives entry None."""
        if sync:
            await self.pending.settle_all()
            begun = self._names.begin()
            return self._names.keep_path(path, await self._master.resolve_path(path, sync=True), begun)
        known = self._names.lookup_path(path)
        if known is not None:
            return known
        await self.pending.settle_all()
        return await self._ask(
            self._names.lookup_path_old(path),
            lambda **how: self._master.resolve_path(path, **how),
            lambda result, begun: self._names.keep_path(path, result, begun),
        )

    async def get_path(self, path: str, *, sync: bool = False) -> Entry:
        """As `lookup_path`; raises NotFound."""
        entry = (await self.lookup_path(path, sync=sync)).entry
        if entry is None:
            raise NotFound("no such file or directory", subject=path)
        return entry

    async def get_entry(self, inode: InodeId) -> LookupResult:
        """An inode by its id, also an orphan that the master still keeps. Raises NotFound; entry is never None."""
        known = self._names.get(inode)
        if known is not None:
            return known
        await self.pending.settle([inode])
        old = self._names.get_old(inode)
        return await self._ask(
            None if old is None else LookupResult(old.entry, OLD_VALID_S),
            lambda **how: self._master.get_entry(inode, **how),
            self._names.keep_inode,
        )

    async def _ask(
        self,
        old: LookupResult | None,
        call: Callable[..., Awaitable[LookupResult]],
        keep: Callable[[LookupResult, Begun], LookupResult],
    ) -> LookupResult:
        """The master's answer, kept; while the master is away one that was remembered, though nothing covers it any more."""
        if self._config.strict:
            old = None
        if old is not None and self._cluster.is_master_away:
            return self._use_old(old)
        begun = self._names.begin()
        try:
            result = await call(repeat=old is None)
        except (Unavailable, TimedOut) as error:
            self._cluster.note_master(away=True)
            if old is None:
                if self._config.strict and isinstance(error, Unavailable):
                    raise TimedOut("the master cannot be asked, and nothing covers what is remembered") from error
                raise
            return self._use_old(old)
        self._cluster.note_master(away=False)
        return keep(result, begun)

    def _use_old(self, old: LookupResult) -> LookupResult:
        if self._metrics is not None:
            self._metrics.uncovered_answers.inc()
        return old

    async def list_dir(self, inode: InodeId, cursor: bytes = b"", limit: int = 0) -> DirPage:
        """One page of a directory with attributes; what it says is remembered for lookups, and for the next one who asks."""
        if not limit:
            known = self._names.list_page(inode, cursor)
            if known is not None:
                return known
        await self.pending.settle([inode])
        begun = self._names.begin()
        page = await self._master.list_dir(inode, cursor, limit)
        if limit:
            return page
        return self._names.keep_page(inode, cursor, page, begun)

    def watch(
        self, listener: Callable[[Sequence[Recall]], Awaitable[None] | None] | None = None, succeeds: Sequence[str] = ()
    ) -> str:
        """Hold a lease from now on: names are remembered for long, and what changes is told. Call it on the event loop, once.
        What the lease is known by.

        `listener` hears what is not so any more, after it was forgotten here; when what it returns is done, the master is told
        that this client knows. It must not raise. `succeeds`: see LeaseKeeper.start.
        """

        def listen(recalls: Sequence[Recall]) -> Awaitable[None] | None:
            published, told = self.pending.give_up(recalls), None if listener is None else listener(recalls)
            return _wait_both(published, told) if published is not None else told

        self._keeper.start(listen, succeeds)
        return self._keeper.lease_id

    def open_locks(self, holder: str) -> Locks:
        """Locks of files for a mount that is named so; the client must hold a lease (`watch`). Once."""
        locks = Locks(self._channel, holder, self.pending.settle, io_timeout_s=self._timeout_s)
        self._keeper.on_begun = locks.begin_attaching
        return locks

    async def iter_dir(self, inode: InodeId) -> AsyncGenerator[Entry]:
        """All of a directory, page by page."""
        cursor = b""
        while True:
            page = await self.list_dir(inode, cursor)
            for entry in page.entries:
                yield entry
            cursor = page.next_cursor
            if not cursor:
                return

    def _forget(self, recalls: Sequence[Recall]) -> None:
        self._names.recall(recalls)
        self._note_forgotten(recalls)

    def _note_forgotten(self, recalls: Sequence[Recall]) -> None:
        self._small.expire()
        if any(recall.directory == EVERYWHERE for recall in recalls):
            self.drafts.forget_mounts()

    def _note_epoch(self, epoch: int) -> None:
        self._cluster.note_epoch(epoch)

    async def list_tree(self, path: str = "/", *, unless: int = 0) -> AsyncGenerator[TreePage]:
        """All below a directory, as columns (`tree.make_batch` makes Arrow batches of them); the last page has the tree's mark.

        With `unless`, the mark of an earlier call: one page that is `unchanged`, if the tree is. Raises what `stat` raises, and
        the store's error where a directory cannot be listed.
        """
        await self.pending.settle_all()
        async with aclosing(self._master.list_tree(path, unless)) as pages:
            async for page in pages:
                yield page

    async def sync_path(self, path: str, *, recursive: bool = False) -> SyncResult:
        """Ask the store again about a path; what was remembered is dropped."""
        result = await self._master.sync(path, recursive=recursive, timeout_s=_LONG_S)
        self._names.clear()
        self._small.expire()
        return result

    async def stat_fs(self, inode: InodeId | None = None) -> FsTotals:
        """Totals of all there is, and what the quotas and the store of an inode leave there."""
        return await self._master.stat_fs(inode)

    async def measure(self, inode: InodeId) -> tuple[FsTotals, Space | None]:
        """The same, and what can be written there from this machine; None: nothing is known to limit it."""
        totals = await self._master.stat_fs(inode)
        # (The master's word that a view is as new as its own is of which workers there are, not of what they hold.)
        view = await self._cluster.get_view(newer=True)
        return totals, limit_space(totals, [one for one in view.workers if one.live and self._local.is_local(one)])

    # files

    def open_file(self, entry: Entry) -> FileReader:
        """A reader of the content that `entry` names (no I/O yet). Raises IsADirectory, InvalidArgument for other kinds."""
        if entry.attr.kind is Kind.DIRECTORY:
            raise IsADirectory("a directory has no bytes to read", subject=entry.name)
        if entry.ref is None:
            raise InvalidArgument(f"{entry.name!r} has no content that could be read")
        reader = FileReader(
            entry,
            entry.ref,
            fetcher=self._fetcher,
            local=self._local,
            budget=self._budget,
            scratch=self._scratch,
            readahead_max_bytes=self._config.readahead_max_bytes,
            io_timeout_s=self._timeout_s,
            metrics=self._metrics,
            on_stale=self._note_stale,
            on_close=self._readers.discard,
        )
        self._readers.add(reader)
        return reader

    def find_whole(self, ref: FileRef) -> LocalFile | None:
        """The cache file of a content, open, if a worker on this machine has every page of it; the caller closes it.

        Does not wait."""
        return self._local.find_whole(ref)

    def open_far(self, entry: Entry) -> FarReader | None:
        """A reader of a small file whose home is a worker of another machine, all of it on its way from there; else None.

        Does not wait, and does not look whether this machine has a copy (`find_whole`)."""
        reader = self._expected.take(entry) or self._begin_far(entry)
        if reader is not None:
            self._guests.note_read(reader.ref)
        return reader

    def expect_open(self, entry: Entry) -> None:
        """A file is about to be opened: what `open_far` would ask for then is asked for now."""
        self._expected.begin(entry)

    def _begin_far(self, entry: Entry) -> FarReader | None:
        ref = entry.ref
        if ref is None or not 0 < ref.size <= FAR_FILE_BYTES or entry.attr.kind is Kind.DIRECTORY:
            return None
        reader = FarReader(
            entry,
            ref,
            budget=self._budget,
            open_full=self.open_file,
            io_timeout_s=self._timeout_s,
            on_close=self._readers.discard,
        )
        if not reader.begin(self._fetcher):
            return None
        self._readers.add(reader)
        return reader

    @property
    def is_local_known(self) -> bool:
        """Whether it was found out which workers' caches can be read from here; until then `find_whole` finds nothing."""
        return self._local.is_known

    async def find_local(self) -> None:
        """Find out which workers' caches can be read from here. Does not raise."""
        try:
            await self._local.refresh(await self._cluster.get_view())
        except AlluxioLikeError as error:
            _log.info("the workers are not known yet: %s", error)

    def note_local_read(self, ref: FileRef, read_bytes: int) -> None:
        """So many bytes were read of what `find_whole` gave, not through a reader: its worker is told, for recency."""
        self._local.note_read(ref, read_bytes)

    async def verify_whole(self, ref: FileRef, file: LocalFile) -> bool:
        """Whether all of a cache file that `find_whole` gave matches its checksums. Where it does not, the worker has dropped the
        bad pages when this returns, and is fetching them again: the file is whole no more for now. Raises DiskError.
        """
        return await self._local.verify_whole(ref, file, timeout_s=self._timeout_s)

    async def open_local(self, path: str, *, fill: bool = True) -> LocalDescriptor:
        """The cache file's own descriptor, read-only, of a file that is wholly in a cache of this machine.

        While it, a copy of it in any process or a mapping of it lives, the file is neither evicted in place nor truncated. With
        `fill` a file that is not wholly there is brought first, each 64 MiB of it within io_timeout_s. Raises NotFound (also: not
        wholly here, or it may not be; says what to do), IsADirectory, Stale, TimedOut, Unavailable.
        """
        return await self._opener.open(await self.get_path(path), path, fill=fill)

    async def read_many(
        self, paths: Iterable[str], *, max_bytes: int = MANY_BYTES, verify: bool = False
    ) -> AsyncGenerator[tuple[str, bytes]]:
        """Each path with all bytes of its file, in their order: for many small files.

        What is not in a cache of this machine is brought, 256 files at once as far as they come to `max_bytes`. A file in one was
        compared with its checksums when it came; `verify`: at each read. Raises what stands in the way of a path when its turn
        has come; InvalidArgument for a file above `max_bytes`.
        """
        async with aclosing(
            iter_files_async(paths, self._small, lambda part, through: self.bring_many(part, max_bytes, through), verify=verify)
        ) as files:
            async for one in files:
                yield one

    @property
    def small_files(self) -> SmallFiles:
        """Small files whose places are known: for iter_files of client/many.py."""
        return self._small

    async def bring_many(self, paths: Sequence[str], max_bytes: int, through: bool) -> dict[str, Brought]:
        """See Many.bring. From the first one on this client holds a lease, so that names are not asked for again and again."""
        self.watch()
        return await self._many.bring(paths, max_bytes=max_bytes, through=through)

    async def _note_stale(self, entry: Entry, ref: FileRef) -> FileRef | None:
        """Where the same content is by now; None: it is gone, and the master was made to look again, so that the next open finds
        the replacement. Does not raise."""
        try:
            for pause_s in _MOVING_PAUSES_S:
                # Where a directory is renamed in one step, the store may be ahead of the master for a moment.
                await asyncio.sleep(pause_s)
                found = (await self._master.get_entry(entry.attr.inode, timeout_s=min(5.0, self._timeout_s))).entry
                now = found.ref if found is not None else None
                if now is None or now.file_id != ref.file_id or now.fingerprint != ref.fingerprint:
                    break
                if (now.key, now.source, now.holders) != (ref.key, ref.source, ref.holders):
                    self._names.clear()
                    return now
            await self._master.sync(inode=entry.attr.inode, timeout_s=min(5.0, self._timeout_s))
        except AlluxioLikeError as error:
            _log.info("the master was not asked about a changed file: %s", error)
        self._names.clear()
        self._small.expire()
        return None

    # mounts

    async def mount(self, spec: MountSpec, *, operation_id: str = "") -> MountInfo:
        info = await self._master.mount(spec, operation_id=operation_id)
        self._names.clear()
        self._small.expire()
        return info

    async def unmount(self, path: str, *, force: bool = False, operation_id: str = "") -> None:
        await self._master.unmount(path, force=force, operation_id=operation_id)
        self._names.clear()
        self._small.expire()

    async def list_mounts(self) -> list[MountInfo]:
        return await self._master.list_mounts()

    async def set_sync_interval(self, path: str, interval_s: float) -> SyncInterval:
        """How long listings of a directory and of all below it are believed; 0: as above it, negative: for ever."""
        found = await self._master.set_sync_interval(path, interval_s)
        self._names.clear()
        return found

    async def get_sync_interval(self, path: str) -> SyncInterval:
        return await self._master.get_sync_interval(path)

    async def create_snapshot(self, path: str, name: str, *, operation_id: str) -> Snapshot:
        """Freeze the tree below a directory: seen below PATH/.snapshots/NAME from now on. Raises AlreadyExists."""
        return await self._snapshots.create_snapshot(operation_id, path, name)

    async def list_snapshots(self, path: str = "") -> list[Snapshot]:
        """Snapshots of a directory, or all."""
        return await self._snapshots.list_snapshots(path)

    async def delete_snapshot(self, path: str, name: str, *, operation_id: str) -> None:
        """Delete a snapshot. Raises NotFound."""
        await self._snapshots.delete_snapshot(operation_id, path, name)

    def diff_snapshots(self, path: str, name: str, other: str = "") -> AsyncGenerator[list[Difference]]:
        """What is other in snapshot `other` (or the tree as it is now) than in snapshot `name`."""
        return self._snapshots.diff(path, name, other)

    async def get_archive_status(self, ref: FileRef) -> ArchiveStatus:
        """Whether a file is in its store's archive. Raises Unsupported where the store has none."""
        return await self._master.get_archive_status(ref.mount_id, ref.key)

    async def restore(self, ref: FileRef, days: int = 1, tier: str = "") -> ArchiveStatus:
        """Ask the store for an archived file's return; what holds then. Raises Unsupported, InvalidArgument."""
        return await self._master.restore(ref.mount_id, ref.key, days, tier)

    # the cluster and its caches

    async def get_cluster(self) -> Cluster:
        return await self._master.get_cluster()

    async def locate(self, files: Sequence[FileId]) -> list[tuple[BlockLocation, ...]]:
        """Who holds blocks of these files, by the master's block map; in their order."""
        return await self._master.locate(files)

    async def submit_load(self, spec: LoadSpec, paths: Iterable[str], *, operation_id: str = "") -> JobId:
        return await self._master.submit_load(spec, paths, operation_id=operation_id, timeout_s=_LONG_S)

    async def get_job(self, job_id: JobId) -> Job:
        return await self._master.get_job(job_id)

    async def list_jobs(self) -> list[Job]:
        return await self._master.list_jobs()

    async def watch_job(self, job_id: JobId) -> AsyncGenerator[Job]:
        """States until the job has ended; goes on by itself when the master restarts (Unavailable after io_timeout_s of that)."""
        while True:
            try:
                async with aclosing(self._master.watch_job(job_id)) as states:
                    async for job in states:
                        yield job
                        if job.state.ended:
                            return
            except Unavailable:
                # get_job waits for the master, within the time for one call.
                _log.info("the master is away: the job goes on, watching resumes when it is back")
            job = await self._master.get_job(job_id)
            yield job
            if job.state.ended:
                return
            await asyncio.sleep(0.2)

    async def cancel_job(self, job_id: JobId, *, operation_id: str = "") -> Job:
        return await self._master.cancel_job(job_id, operation_id=operation_id)

    async def list_job_problems(self, job_id: JobId, cursor: int = 0) -> ProblemPage:
        return await self._master.list_job_problems(job_id, cursor)

    async def get_cache_status(self, path: str) -> CacheStatus:
        return await self._master.get_cache_status(path, timeout_s=_LONG_S)

    async def free(self, path: str, *, force: bool = False, operation_id: str = "") -> FreeResult:
        return await self._master.free(path, force=force, operation_id=operation_id, timeout_s=_LONG_S)

    async def set_pinned(self, path: str, *, pinned: bool, operation_id: str = "") -> int:
        """How many files it concerns."""
        return await self._master.set_pinned(path, pinned=pinned, operation_id=operation_id, timeout_s=_LONG_S)

    async def report(self) -> Report:
        return await self._master.report()


async def _wait_both(published: Awaitable[None], told: Awaitable[None] | None) -> None:
    """What is taken back was published, and the listener knows."""
    await asyncio.gather(published, *(() if told is None else (told,)))
