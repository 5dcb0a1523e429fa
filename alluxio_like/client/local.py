"""Cache files of workers on this machine, read without asking them.

Owns the descriptors that workers' doors gave, and what local reads are reported to the workers (for recency). A worker is
local when its door lets us in and says the worker's own id; nothing else (host names, ids) is asked. Rule of concurrency:
one event loop; doors are entered in a thread, and `open_files` does not wait.
"""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from alluxio_like.cache.door import DoorGreeting, HandedFile, enter_door, open_at_door
from alluxio_like.cache.reader import CacheReader, LocalFile, SmallPlace
from alluxio_like.client.cluster import ClusterTracker
from alluxio_like.client.readahead import SMALL_FILE_BYTES
from alluxio_like.errors import AlluxioLikeError, Unavailable
from alluxio_like.rpc.messages import Touched
from alluxio_like.types import Cluster, FileId, FileRef, Worker, WorkerId

_log = logging.getLogger(__name__)

RETRY_S = 5.0
"""A door that did not let us in is tried again after so long; a guess."""
REPORT_S = 2.0
REPORT_FILES = 1000
FOUND_FILES = 10_000
REPORT_PAGES = 256
MOST_REPORTS = 32
"""Reports of bad pages under way at once; what is not reported the scrubber finds."""


class LocalCaches:
    """What can be read directly. `refresh` enters doors, `open_files` looks for a content."""

    def __init__(self, cluster: ClusterTracker, *, enabled: bool = True) -> None:
        self._cluster = cluster
        self._enabled = enabled
        self._readers: dict[WorkerId, tuple[str, CacheReader]] = {}
        self._doors: dict[WorkerId, str] = {}
        """Doors that give this user single files only."""
        self._found_at: dict[FileId, WorkerId] = {}
        """With several workers here: where `find_whole` found files lately."""
        self._failed: dict[tuple[WorkerId, str], float] = {}
        self._silent: set[WorkerId] = set()
        self._seen: Cluster | None = None
        self._entering: asyncio.Task[None] | None = None
        self._touched: dict[WorkerId, dict[FileId, list[int]]] = {}
        self._report: asyncio.Task[None] | None = None
        self._reports: set[asyncio.Task[None]] = set()

    @property
    def is_current(self) -> bool:
        """Whether the doors of the present view were tried."""
        return not self._enabled or (self._seen is not None and self._seen is self._cluster.view)

    @property
    def is_known(self) -> bool:
        """Whether the doors of some view were tried."""
        return not self._enabled or self._seen is not None

    def is_local(self, worker: Worker) -> bool:
        """Whether this worker's cache files can be read from here."""
        return worker.worker_id in self._readers

    def gives_files(self, worker: Worker) -> bool:
        """Whether this worker's door gives this user its cache files one by one (`ask_door`), and not its directories."""
        return self._doors.get(worker.worker_id) == worker.door_path

    def is_silent(self, worker: Worker) -> bool:
        """Whether there is a door of this worker on this machine at which nobody answered: it starts, stops, or hangs."""
        return worker.worker_id in self._silent

    async def ask_door(self, worker: Worker, ref: FileRef) -> HandedFile | None:
        """The cache file of a content, whole, through a worker's door; None: it is not wholly there, or cannot be had now."""
        asking = asyncio.ensure_future(asyncio.to_thread(open_at_door, worker.door_path, ref, worker.worker_id))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(_close_handed)
            raise
        except AlluxioLikeError as error:
            _log.info("a worker's door gave no file: %s", error, extra={"worker": worker.worker_id})
            return None

    async def verify_whole(self, ref: FileRef, file: LocalFile, *, timeout_s: float) -> bool:
        """Whether all of an opened cache file matches its checksums, which are read in a thread. Bad pages are out of its
        worker's index when this returns, and on their way anew. Raises DiskError.
        """
        found = await asyncio.to_thread(file.verify_whole)
        if found.bad_pages:
            _log.warning("%d pages of a cache file do not match their checksums", len(found.bad_pages), extra={"key": ref.key})
            await self.report_bad(self._find_owner(file), ref, found.bad_pages, timeout_s=timeout_s)
        return not found.bad_pages

    def note_bad(self, ref: FileRef, file: LocalFile, pages: Sequence[int]) -> None:
        """As `report_bad`, without waiting."""
        if len(self._reports) < MOST_REPORTS:
            task = asyncio.create_task(
                self.report_bad(self._find_owner(file), ref, pages, timeout_s=5.0), name="report bad pages"
            )
            self._reports.add(task)
            task.add_done_callback(self._reports.discard)

    def _find_owner(self, file: LocalFile) -> WorkerId | None:
        return next((worker_id for worker_id, (_, reader) in self._readers.items() if reader.owns(file)), None)

    async def report_bad(self, worker_id: WorkerId | None, ref: FileRef, pages: Sequence[int], *, timeout_s: float) -> None:
        """Tell a worker which pages of its cache file are bad; it has looked and dropped them when this returns. Does not
        raise.
        """
        view = self._cluster.view
        for worker in view.workers if view is not None else ():
            if worker.worker_id == worker_id and worker.live:
                try:
                    for first in range(0, len(pages), REPORT_PAGES):
                        part = pages[first : first + REPORT_PAGES]
                        await self._cluster.get_stub(worker).report_bad(ref, part, timeout_s=timeout_s)
                except AlluxioLikeError as error:
                    # Its scrubber finds them too, later.
                    _log.warning("a worker was not told of bad pages: %s", error, extra={"worker": worker_id})

    async def refresh(self, view: Cluster) -> None:
        """Enter the doors of a view that were not tried yet. Does not raise."""
        if not self._enabled or view is self._seen:
            return
        await asyncio.shield(self._begin_entering(view))

    def open_files(self, ref: FileRef) -> dict[WorkerId, LocalFile]:
        """The opened cache files of a content, of all local workers that have any of it."""
        found: dict[WorkerId, LocalFile] = {}
        for worker_id, (_, reader) in self._readers.items():
            try:
                file = reader.lookup(ref)
            except AlluxioLikeError as error:
                _log.warning("a cache file cannot be opened: %s", error, extra={"worker": worker_id})
                continue
            if file is not None:
                found[worker_id] = file
        return found

    def locate_small(self, ref: FileRef) -> tuple[WorkerId, SmallPlace] | None:
        """Where the cache file of a small content is, if a local worker has all of it."""
        for worker_id, (_, reader) in self._readers.items():
            place = reader.locate_small(ref)
            if place is not None:
                return worker_id, place
        return None

    def has_directory(self, directory: object) -> bool:
        """Whether a place's directory is still read from."""
        return any(reader.has_directory(directory) for _, reader in self._readers.values())

    def find_whole(self, ref: FileRef) -> LocalFile | None:
        """The cache file of a content if one local worker has all of it, noted as used; the caller closes it."""
        view = self._cluster.view
        if self._enabled and view is not None and view is not self._seen:
            self._begin_entering(view)
        for worker_id, (_, reader) in self._readers.items():
            try:
                file = reader.find_whole(ref)
            except AlluxioLikeError as error:
                _log.warning("a cache file cannot be opened: %s", error, extra={"worker": worker_id})
                continue
            if file is not None:
                # A small file is taken to be read once; of what is read of a large one `note_read` tells.
                self.touch(worker_id, ref.file_id, ref.size if ref.size <= SMALL_FILE_BYTES else 0, 1)
                if len(self._readers) > 1:
                    self._found_at[ref.file_id] = worker_id
                    if len(self._found_at) > FOUND_FILES:
                        del self._found_at[next(iter(self._found_at))]
                return file
        return None

    def note_read(self, ref: FileRef, read_bytes: int) -> None:
        """So many bytes were read of a file that `find_whole` gave."""
        only = next(iter(self._readers), None) if len(self._readers) == 1 else None
        worker_id = only or self._found_at.get(ref.file_id)
        if worker_id is not None:
            self.touch(worker_id, ref.file_id, read_bytes, 0)

    def open_filled(self, worker: Worker, ref: FileRef, directory: int, generation: int) -> LocalFile | None:
        """The cache file that a Fill reply names."""
        known = self._readers.get(worker.worker_id)
        return None if known is None else known[1].open_filled(ref, directory, generation)

    def open_draft(self, worker_id: WorkerId, directory: int, path: str) -> int:
        """A descriptor of a file that is being written, below a cache directory of a local worker; the caller's. Raises
        NotFound (begin again), Unavailable, DiskError."""
        known = self._readers.get(worker_id)
        if known is None:
            raise Unavailable("the worker's cache directories are not at hand: try again", subject=worker_id)
        return known[1].open_draft(directory, path)

    def touch_any(self, file_id: FileId, read_bytes: int) -> None:
        """Tell a worker here what was read of a file that it does not hold, from another one."""
        worker_id = next(iter(self._readers), None)
        if worker_id is not None:
            self.touch(worker_id, file_id, read_bytes, 1)

    def touch(self, worker_id: WorkerId, file_id: FileId, read_bytes: int, reads: int) -> None:
        """Tell the worker, before long, what was read of its file."""
        files = self._touched.setdefault(worker_id, {})
        counts = files.setdefault(file_id, [0, 0])
        counts[0] += read_bytes
        counts[1] += reads
        if self._report is None or self._report.done():
            self._report = asyncio.create_task(self._report_later(), name="touch")

    async def close(self) -> None:
        """Report what is left, close everything. Does not raise."""
        for task in (self._report, self._entering, *self._reports):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._send_touched(timeout_s=1.0)
        readers, self._readers = self._readers, {}
        for _, reader in readers.values():
            reader.close()

    def _begin_entering(self, view: Cluster) -> asyncio.Task[None]:
        if self._entering is None or self._entering.done():
            self._entering = asyncio.create_task(self._enter_all(view), name="doors")
        return self._entering

    async def _enter_all(self, view: Cluster) -> None:
        now = time.monotonic()
        self._failed = {key: until for key, until in self._failed.items() if until > now}
        gone = set(self._readers) - {worker.worker_id for worker in view.workers if worker.live}
        for worker_id in gone:
            self._readers.pop(worker_id)[1].close()
        self._silent &= {worker.worker_id for worker in view.workers}
        self._doors = {one.worker_id: one.door_path for one in view.workers if one.live and self.gives_files(one)}
        for worker in view.workers:
            known = self._readers.get(worker.worker_id)
            key = (worker.worker_id, worker.address)
            entered = (known and known[0] == worker.address) or self.gives_files(worker)
            if not worker.live or not worker.door_path or key in self._failed or entered:
                continue
            try:
                greeting = await asyncio.to_thread(_enter, worker)
                self._silent.discard(worker.worker_id)
            except Unavailable:
                greeting = None
                self._silent.add(worker.worker_id)
            if greeting is None:
                self._failed[key] = now + RETRY_S
                continue
            if greeting.files_only:
                self._doors[worker.worker_id] = worker.door_path
                continue
            # LMDB allows a process one view of an index: the old one goes first.
            if known is not None:
                self._readers.pop(worker.worker_id)[1].close()
            try:
                self._readers[worker.worker_id] = (worker.address, CacheReader.open(greeting.directory_fds))
            except AlluxioLikeError as error:
                self._failed[key] = now + RETRY_S
                _log.warning("a local cache cannot be read directly: %s", error, extra={"worker": worker.worker_id})
        # Doors that failed are tried again with a later view.
        self._seen = view

    async def _report_later(self) -> None:
        await asyncio.sleep(REPORT_S)
        await self._send_touched(timeout_s=5.0)

    async def _send_touched(self, *, timeout_s: float) -> None:
        touched, self._touched = self._touched, {}
        view = self._cluster.view
        for worker in view.workers if view is not None else ():
            files = touched.get(worker.worker_id)
            if not files or not worker.live:
                continue
            items = [Touched(file_id, counts[0], counts[1]) for file_id, counts in files.items()]
            try:
                for first in range(0, len(items), REPORT_FILES):
                    part = items[first : first + REPORT_FILES]
                    await self._cluster.get_stub(worker).touch(part, timeout_s=timeout_s)
            except AlluxioLikeError as error:
                # Recency is a hint; nothing is lost.
                _log.debug("a worker was not told what was read: %s", error, extra={"worker": worker.worker_id})


def _close_handed(asking: "asyncio.Future[HandedFile]") -> None:
    """Nobody waited for it to the end."""
    if not asking.cancelled() and asking.exception() is None:
        asking.result().close()


def _enter(worker: Worker) -> DoorGreeting | None:
    """In a thread: what the worker's door gave, or None when it is not on this machine, not ours, or another's. Raises
    Unavailable when nobody answers there."""
    try:
        if not Path(worker.door_path).exists():
            return None
    except OSError:
        # Another user's home: its files are read through the worker.
        return None
    try:
        greeting = enter_door(worker.door_path)
    except AlluxioLikeError as error:
        _log.info("a worker's door stays shut: %s", error, extra={"worker": worker.worker_id})
        if isinstance(error, Unavailable):
            raise
        return None
    if greeting.worker_id != worker.worker_id:
        for fd in greeting.directory_fds:
            os.close(fd)
        return None
    return greeting
