"""What a worker answers: the handlers of its gRPC services.

Owns which bytes are kept here (home, guest, or read through) and what is counted about reads. Reading and filling are the
fetcher's,
loads the loader's. Rule of concurrency: one event loop; nothing here is shared between calls but counters and the table of
guests.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence

from alluxio_like import errors
from alluxio_like.cache.file import CachedFile, Role
from alluxio_like.cache.store import CacheStore, Removed
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import (
    CheckResult,
    DirectoryStatus,
    Filled,
    FilledPages,
    FreeResult,
    LoadFile,
    LoadProgress,
    Priority,
    Touched,
    WorkerStatus,
)
from alluxio_like.types import (
    BLOCK_BYTES,
    FileId,
    FileRef,
    Worker,
    get_pages,
)
from alluxio_like.waits import NONE, Seconds, Waits, subtract
from alluxio_like.worker.cluster import ClusterView
from alluxio_like.worker.core.admission import GuestRequest, admits_guest
from alluxio_like.worker.disk import DiskQueue
from alluxio_like.worker.evictor import Evictor
from alluxio_like.worker.fetcher import Fetcher, Landed, PeerChoice
from alluxio_like.worker.loader import Loader
from alluxio_like.worker.repair import Repairer
from alluxio_like.worker.replicating import REPLICA_JOB, Replicator

_GUESTS_WATCHED = 4096
_FILES_PER_STEP = 256


class DataService:
    """Data, for clients and other workers."""

    def __init__(
        self,
        *,
        fetcher: Fetcher,
        store: CacheStore,
        evictor: Evictor,
        view: ClusterView,
        metrics: Metrics,
        repairer: Repairer,
    ) -> None:
        self._repairer = repairer
        self._fetcher = fetcher
        self._store = store
        self._evictor = evictor
        self._view = view
        self._metrics = metrics
        self._read_locally = metrics.read_bytes.labels("local")
        # Bytes read and times opened of files whose home is elsewhere: what admission asks.
        self._guests: OrderedDict[FileId, list[int]] = OrderedDict()

    async def read(
        self, ref: FileRef, offset: int, length: int, *, priority: Priority, cached_only: bool, waits: Waits | None = None
    ) -> AsyncIterator[bytes | bytearray | memoryview]:
        """See DataHandler."""
        _check_range(ref, offset, length)
        if cached_only:
            async for data in self._fetcher.read_cached(ref, offset, length):
                yield data
            return
        served = 0
        try:
            for start, stop in _split_by_block(offset, offset + length, self._view.is_block_placed(ref)):
                role, peers = self._choose_role(ref, start // BLOCK_BYTES)
                if priority is Priority.LOAD:
                    # Another worker makes its replica from ours, which the master has asked of us or is about to.
                    role = Role.HOME
                pieces = self._fetcher.read(ref, start, stop - start, priority=priority, role=role, peers=peers, waits=waits)
                try:
                    async for piece, source in pieces:
                        self._metrics.read_bytes.labels(source).inc(len(piece))
                        served += len(piece)
                        yield piece
                finally:
                    await pieces.aclose()  # type: ignore[attr-defined]
        except errors.AlluxioLikeError as error:
            self._metrics.read_failures.labels(error.code).inc()
            raise
        finally:
            if served:
                self._evictor.record_read(ref.file_id, served)

    def read_ahead(self, ref: FileRef, offset: int, length: int, *, priority: Priority) -> None:
        """See ReadHandler of data_server.py."""
        if offset < 0 or offset + length > ref.size or length > BLOCK_BYTES:
            return
        role, peers = self._choose_role(ref, offset // BLOCK_BYTES)
        if role is None and priority is not Priority.LOAD:
            return
        wanted = get_pages(offset, length, ref.size)
        self._fetcher.begin(ref, wanted, priority=priority, role=role or Role.HOME, peers=peers)

    def note_read(self, ref: FileRef, read_bytes: int) -> None:
        """See ReadHandler of data_server.py."""
        self._read_locally.inc(read_bytes)
        self._evictor.record_read(ref.file_id, read_bytes)

    async def fill(self, ref: FileRef, offset: int, length: int, *, priority: Priority) -> AsyncIterator[Filled]:
        """See DataHandler."""
        _check_range(ref, offset, length)
        waits, told = Waits(), NONE
        for start, stop in _split_by_block(offset, offset + length, self._view.is_block_placed(ref)):
            role, peers = self._choose_role(ref, start // BLOCK_BYTES)
            if role is None:
                home = self._view.get_home(ref, start // BLOCK_BYTES)
                if home is None or not self._admits(ref, start, stop - start):
                    yield Filled(read_through=True)
                    return
                role, peers = Role.GUEST, ((home.address, False),)
            pages = get_pages(start, stop - start, ref.size)
            landings = self._fetcher.fill(ref, pages, priority=priority, role=role, peers=peers, waits=waits)
            try:
                async for landed in landings:
                    waited, told = subtract(waits.get(), told), waits.get()
                    if landed.cached is None:
                        yield Filled(read_through=True, waited=waited)
                        return
                    yield _describe(landed, landed.cached, waited)
            except errors.AlluxioLikeError as error:
                self._metrics.read_failures.labels(error.code).inc()
                raise
            finally:
                await landings.aclose()  # type: ignore[attr-defined]

    async def touch(self, files: Sequence[Touched]) -> None:
        """See DataHandler."""
        for touched in files:
            if touched.read_bytes and self._store.lookup(touched.file_id) is None:
                # Read from its home, past this worker: what admission goes by.
                self._watch(touched.file_id)[0] += touched.read_bytes
                continue
            self._evictor.record_read(touched.file_id, touched.read_bytes)
            self._metrics.read_bytes.labels("local").inc(touched.read_bytes)

    async def report_bad(self, ref: FileRef, pages: Sequence[int]) -> int:
        """See DataHandler."""
        return await self._repairer.check(ref, pages)

    def _choose_role(self, ref: FileRef, block: int) -> tuple[Role | None, PeerChoice]:
        """As what this block would be kept here (None: not at all), and who may have it."""
        cached = self._store.lookup(ref.file_id)
        if self._view.is_home(ref, block):
            probe = self._view.choose_probe(ref, block) if cached is None else None
            return Role.HOME, ((probe.address, True),) if probe is not None else ()
        if cached is not None and (cached.role is Role.GUEST or not self._view.is_block_placed(ref)):
            home = self._view.get_home(ref, block)
            return cached.role, ((home.address, True),) if home is not None else ()
        return None, ()

    def _admits(self, ref: FileRef, offset: int, length: int) -> bool:
        """Whether a copy of a file whose home is elsewhere is worth its space."""
        watched = self._watch(ref.file_id)
        watched[0] += length
        watched[1] += offset == 0
        usage = self._store.get_usage()
        return admits_guest(
            GuestRequest(ref.size, watched[0], watched[1]),
            capacity_bytes=sum(directory.quota_bytes for directory in usage if directory.state == "ok"),
            home_bytes=sum(directory.home_bytes for directory in usage),
            guest_bytes=sum(directory.guest_bytes for directory in usage),
        )

    def _watch(self, file_id: FileId) -> list[int]:
        """Bytes read and times opened of a file that is not kept here, to be added to."""
        watched = self._guests.setdefault(file_id, [0, 0])
        self._guests.move_to_end(file_id)
        if len(self._guests) > _GUESTS_WATCHED:
            self._guests.popitem(last=False)
        return watched


class AdminService:
    """WorkerAdmin, for the master. `describe` tells what the worker says of itself, `count_leases` what its door has handed
    out."""

    def __init__(
        self,
        *,
        loader: Loader,
        store: CacheStore,
        evictor: Evictor,
        fetcher: Fetcher,
        disk: DiskQueue,
        describe: Callable[[], Worker],
        count_leases: Callable[[], int] = lambda: 0,
        replicator: Replicator | None = None,
    ) -> None:
        self._replicator = replicator
        self._count_leases = count_leases
        self._loader = loader
        self._store = store
        self._evictor = evictor
        self._fetcher = fetcher
        self._disk = disk
        self._describe = describe

    def load_files(self, job_id: str, files: Sequence[LoadFile], bandwidth_bytes_s: float) -> AsyncIterator[LoadProgress]:
        """See AdminHandler."""
        if self._replicator is not None and job_id.startswith(REPLICA_JOB):
            return self._replicator.receive(job_id, files)
        return self._loader.load(job_id, files, bandwidth_bytes_s)

    def check_files(self, files: Sequence[LoadFile], *, verify: bool) -> AsyncIterator[CheckResult]:
        """See AdminHandler."""
        return self._loader.check(files, verify=verify)

    async def free_files(self, files: Sequence[FileId], *, force: bool) -> FreeResult:
        """Drop files; those that somebody has open give their space back when they are closed."""
        count = size = pinned = 0
        for start in range(0, len(files), _FILES_PER_STEP):
            part = files[start : start + _FILES_PER_STEP]
            removed = await self._disk.submit(lambda part=part: self._free(part, force))  # type: ignore[misc]
            count += removed.files
            size += removed.bytes
            pinned += len(removed.pinned)
        return FreeResult(count, size, pinned)

    async def set_pinned(self, files: Sequence[FileId], *, pinned: bool) -> None:
        """See AdminHandler."""
        await self._disk.submit(lambda: self._pin(files, pinned))

    def _free(self, files: Sequence[FileId], force: bool) -> Removed:
        """In a disk thread."""
        removed = self._store.remove(files, force=True, include_pinned=force)
        kept = {*removed.pinned, *removed.in_use}
        for file_id in files:
            if file_id not in kept:
                self._evictor.record_removed(file_id)
        return removed

    def _pin(self, files: Sequence[FileId], pinned: bool) -> None:
        """In a disk thread."""
        self._store.set_pinned(files, pinned)
        for file_id in files:
            if (cached := self._store.lookup(file_id)) is not None:
                self._evictor.record_state(cached)

    async def get_status(self) -> WorkerStatus:
        """See AdminHandler."""
        directories = tuple(
            DirectoryStatus(
                path=str(usage.path),
                quota_bytes=usage.quota_bytes,
                used_bytes=usage.used_bytes,
                held_bytes=usage.held_bytes,
                free_disk_bytes=usage.free_disk_bytes,
                state=usage.state,
                reason=usage.reason,
                held_files=usage.held_files,
                file_system=usage.file_system.name,
                passthrough=usage.file_system.passthrough,
                passthrough_reason=usage.file_system.reason,
            )
            for usage in self._store.get_usage()
        )
        return WorkerStatus(self._describe(), directories, self._fetcher.count_flights(), self._count_leases())


def _check_range(ref: FileRef, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > ref.size:
        raise errors.InvalidArgument(
            f"bytes {offset} to {offset + length} are not all within the {ref.size} of the file", subject=ref.key
        )


def _split_by_block(start: int, stop: int, by_block: bool) -> list[tuple[int, int]]:
    """The parts of a range that have one home each."""
    if not by_block:
        return [(start, stop)] if start < stop else []
    parts = []
    while start < stop:
        end = min(stop, start - start % BLOCK_BYTES + BLOCK_BYTES)
        parts.append((start, end))
        start = end
    return parts


def _describe(landed: Landed, cached: CachedFile, waited: Seconds) -> Filled:
    """What a local reader needs to find these pages in the cache file."""
    runs = [run for run in cached.get_present_runs(landed.pages) if run.generation == cached.generation]
    present = tuple(FilledPages(run.pages, run.checksums) for run in runs)
    return Filled(present=present, directory=cached.directory, generation=cached.generation, waited=waited)
