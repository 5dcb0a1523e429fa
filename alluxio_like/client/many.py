"""Many small files, one after the other, faster than opening each.

Owns what makes that fast: for each path that was read lately the place of its cache file, and for as many as may be the file's
open descriptor. A file that is known costs one pread, or an open and a pread, without an index, a master or a task; all others
are resolved and brought by the window on the client's loop. Does not know where bytes come from (reading.py) nor who may read
them (local.py).

Why a remembered place is good: a cache file's name carries its generation, which never comes twice; a small file is evicted whole
or not at all; and whoever removes it takes its name away before its bytes. So if the name can still be opened, the file is what
it was.

Rule of concurrency: `SmallFiles.slots` is filled and swept on the client's event loop and read in any thread. Nothing there is
closed but by its last reference: a descriptor that a thread is using stays.
"""

import asyncio
import itertools
import logging
import os
import resource
import time
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence

from alluxio_like.cache.checksum import compute_checksums
from alluxio_like.cache.reader import SmallPlace
from alluxio_like.client.far import FarReader
from alluxio_like.client.local import LocalCaches
from alluxio_like.client.readahead import SMALL_FILE_BYTES
from alluxio_like.client.reading import FileReader
from alluxio_like.errors import AlluxioLikeError, InvalidArgument, IsADirectory, NotFound
from alluxio_like.rpc.messages import LookupResult
from alluxio_like.types import Entry, FileId, FileRef, Kind, WorkerId

_log = logging.getLogger(__name__)

WINDOW = 256
"""Files looked at, and where they are not at hand brought, together."""
MOST_FETCHES = 32
"""Files brought at once. A guess."""
LEFT_DESCRIPTORS = 2048
"""Of what `ulimit -n` allows, or half of it where that is less. A guess."""
MOST_SLOTS = 200_000
"""Files remembered, at about 500 bytes each (measured, path included)."""
SWEEP_S = 10.0
RECHECK_S = 1.0
"""How often a reader who takes his time looks whether the lease still lives."""
IDLE_SWEEPS = 3
"""Sweeps after which a file that nobody read is closed: while it is open it cannot be evicted. A guess."""
FORGET_SWEEPS = 30
_STEP = 5000
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

Brought = bytes | AlluxioLikeError | None
"""A file's bytes, why it cannot be read, or None: its place is known now."""


def _never() -> bool:
    return False


class Descriptor:
    """Closes a descriptor with its last reference."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Slot:
    """One path: the place of its cache file, good until `expires` (by time.monotonic) and in its epoch; `descriptor` while it is
    kept open.
    """

    __slots__ = (
        "checksums",
        "descriptor",
        "directory",
        "epoch",
        "expires",
        "file_id",
        "idle",
        "name",
        "reads",
        "size",
        "token",
        "worker_id",
    )

    def __init__(
        self, ref: FileRef, worker_id: WorkerId, directory: Descriptor, place: SmallPlace, epoch: int, expires: float
    ) -> None:
        self.file_id: FileId = ref.file_id
        self.token = ref.fingerprint.token
        self.size = ref.size
        self.worker_id = worker_id
        self.directory = directory
        self.name: str = place.name
        self.checksums: array[int] = place.checksums
        self.epoch = epoch
        self.expires = expires
        self.descriptor: Descriptor | None = None
        self.reads = 0
        self.idle = 0

    def matches(self, data: bytes) -> bool:
        """Whether bytes are those that the checksums are of."""
        return compute_checksums(data) == self.checksums.tolist()


class SmallFiles:
    """The slots. `most_open` descriptors are kept at most, and some of what `ulimit -n` allows are left to the program.

    Knows nothing of the client: whoever is in the midst of reading holds it, over a fork too, and must hold nothing of gRPC.
    """

    def __init__(self, is_live: Callable[[], bool], *, most_open: int) -> None:
        """`is_live`: whether a lease covers what is remembered; from any thread."""
        self.slots: dict[str, Slot] = {}
        self.epoch = 0
        self.is_live = is_live
        self._was_live = False
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = most_open if soft == resource.RLIM_INFINITY else max(soft - LEFT_DESCRIPTORS, soft // 2)
        self._most_open = min(most_open, spare)
        # A count that threads change without a lock; each sweep sets it right.
        self._open = 0

    def read(self, slot: Slot) -> bytes:
        """All of a file whose descriptor is not kept. Raises OSError: gone, or just being evicted."""
        fd = os.open(slot.name, _OPEN_FLAGS, dir_fd=slot.directory.fd)
        if self._open < self._most_open:
            self._open += 1
            slot.descriptor = descriptor = Descriptor(fd)
            return os.pread(descriptor.fd, slot.size, 0)
        try:
            return os.pread(fd, slot.size, 0)
        finally:
            os.close(fd)

    def find_missing(self, paths: Iterable[str]) -> list[str]:
        """Those of these paths whose places are not known, or not any more."""
        get, epoch, moment = self.slots.get, self.epoch, time.monotonic()
        return [path for path in paths if (slot := get(path)) is None or slot.expires < moment or slot.epoch != epoch]

    def note_open(self, count: int) -> None:
        """How many descriptors are kept, counted."""
        self._open = count

    def expire(self) -> None:
        """What paths show may have changed: slots of before are looked at again before their next use."""
        self.epoch += 1

    def check_lease(self) -> None:
        """Whenever some time has passed. What a lease covered is good for no longer than it."""
        live = self.is_live()
        if self._was_live and not live:
            self.expire()
        self._was_live = live

    def close(self) -> None:
        """Let go of everything."""
        self.slots.clear()
        self.is_live = _never


class Many:
    """What the loop does: learns the places of small files, brings what is not at hand, sweeps."""

    def __init__(
        self,
        small: SmallFiles,
        local: LocalCaches,
        *,
        resolve: Callable[[Sequence[str]], Awaitable[list[LookupResult | AlluxioLikeError]]],
        find_local: Callable[[], Awaitable[None]],
        open_file: Callable[[Entry], FileReader],
        open_far: Callable[[Entry], FarReader | None],
    ) -> None:
        self._small = small
        self._local = local
        self._resolve = resolve
        self._find_local = find_local
        self._open_file = open_file
        self._open_far = open_far
        self._directories: dict[object, Descriptor] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._last_expires = 0.0

    def _remember(self, path: str, ref: FileRef, valid_s: float, epoch: int) -> bool:
        """Note where a content's cache file is; False: it is not wholly in a cache of this machine."""
        expires = self._share(time.monotonic() + valid_s)
        slots = self._small.slots
        known = slots.get(path)
        if known is not None and known.file_id == ref.file_id and known.token == ref.fingerprint.token:
            known.epoch, known.expires = epoch, expires
            return True
        if ref.size > SMALL_FILE_BYTES or (known is None and len(slots) >= MOST_SLOTS):
            return False
        found = self._local.locate_small(ref)
        if found is None:
            return False
        worker_id, place = found
        directory = self._directories.get(place.directory)
        if directory is None:
            directory = self._directories[place.directory] = Descriptor(os.dup(place.directory_fd))
        slots[path] = Slot(ref, worker_id, directory, place, epoch, expires)
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep_on(), name="sweep small files")
        return True

    def _share(self, expires: float) -> float:
        """A little earlier, in quarters of a second, and one object for many slots: each that is not shared is memory to be
        waited for.
        """
        whole = float(int(expires * 4)) / 4
        if whole != self._last_expires:
            self._last_expires = whole
        return self._last_expires

    async def close(self) -> None:
        """Report what was read and let go of everything."""
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            await asyncio.gather(sweeper, return_exceptions=True)
        for slot in list(self._small.slots.values()):
            if slot.reads:
                self._local.touch(slot.worker_id, slot.file_id, slot.size * slot.reads, slot.reads)
        self._small.close()
        self._directories.clear()

    async def _sweep_on(self) -> None:
        while self._small.slots:
            await asyncio.sleep(SWEEP_S)
            await self.sweep()
        self._sweeper = None

    async def sweep(self) -> None:
        """Report what was read, close and forget what was not. Other tasks run in between."""
        count = 0
        slots = self._small.slots
        for number, (path, slot) in enumerate(list(slots.items())):
            if number % _STEP == _STEP - 1:
                await asyncio.sleep(0)
            reads = slot.reads
            if reads:
                slot.reads = slot.idle = 0
                self._local.touch(slot.worker_id, slot.file_id, slot.size * reads, reads)
            else:
                slot.idle += 1
                if slot.idle >= IDLE_SWEEPS:
                    slot.descriptor = None
                if slot.idle >= FORGET_SWEEPS and slots.get(path) is slot:
                    del slots[path]
            count += slot.descriptor is not None
        self._small.note_open(count)
        for directory in [one for one in self._directories if not self._local.has_directory(one)]:
            del self._directories[directory]

    async def bring(self, paths: Sequence[str], *, max_bytes: int, through: bool) -> dict[str, Brought]:
        """Of the first of these files, and as many as `max_bytes` allow: their bytes, or where they are. `through`: the bytes."""
        brought: dict[str, Brought] = {}
        # Of before it is asked: what is recalled meanwhile is not believed.
        epoch = self._small.epoch
        paths = list(dict.fromkeys(paths))
        await self._find_local()
        wanted: list[tuple[str, Entry]] = []
        for path, answer in zip(paths, await self._resolve(paths), strict=True):
            if isinstance(answer, AlluxioLikeError):
                brought[path] = answer
            elif answer.entry is None:
                brought[path] = NotFound("no such file or directory", subject=path)
            elif answer.entry.attr.kind is Kind.DIRECTORY:
                brought[path] = IsADirectory("a directory has no bytes to read", subject=path)
            elif answer.entry.attr.size > max_bytes:
                brought[path] = InvalidArgument(
                    f"a file of {answer.entry.attr.size} bytes is more than max_bytes ({max_bytes}): read it by open()",
                    subject=path,
                )
            elif not answer.entry.attr.size:
                brought[path] = b""
            elif not through and answer.entry.ref and self._remember(path, answer.entry.ref, answer.valid_s, epoch):
                brought[path] = None
            else:
                wanted.append((path, answer.entry))
        gate = asyncio.Semaphore(MOST_FETCHES)
        left = max_bytes
        fetches = []
        for path, entry in wanted:
            left -= entry.attr.size
            if left < 0:
                # Asked for again when their turn has come.
                break
            fetches.append(self._fetch(gate, path, entry, through=through))
        brought.update(await asyncio.gather(*fetches))
        return brought

    async def _fetch(self, gate: asyncio.Semaphore, path: str, entry: Entry, *, through: bool) -> tuple[str, Brought]:
        async with gate:
            try:
                # What is to come through a reader may be here, and bad: then its worker has to hear of it.
                reader = (None if through else self._open_far(entry)) or self._open_file(entry)
                try:
                    data = bytes(await reader.read(0, reader.size))
                finally:
                    await reader.close()
            except AlluxioLikeError as error:
                return path, error
            return path, data


Bring = Callable[[Sequence[str], bool], dict[str, Brought]]


def iter_files(
    paths: Iterable[str], get_small: Callable[[], SmallFiles], bring: Bring, *, verify: bool
) -> Iterator[tuple[str, bytes]]:
    """Each path with all bytes of its file, in their order. Raises what stands in the way of one when its turn has come.

    `get_small` and `bring` may give those of another client later: a fork closes the one there was.
    """
    pread, now = os.pread, time.monotonic
    remaining = iter(paths)
    while window := list(itertools.islice(remaining, WINDOW)):
        small = get_small()
        get = small.slots.get
        recheck = 0.0
        brought: dict[str, Brought] = {}
        for position, path in enumerate(window):
            asked = False
            while True:
                moment = now()
                if moment > recheck:
                    small.check_lease()
                    recheck = moment + RECHECK_S
                slot = get(path)
                if slot is not None and slot.expires >= moment and slot.epoch == small.epoch:
                    try:
                        descriptor = slot.descriptor
                        data = pread(descriptor.fd, slot.size, 0) if descriptor is not None else small.read(slot)
                    except OSError:
                        data = b""
                    if len(data) == slot.size and (not verify or slot.matches(data)):
                        slot.reads += 1
                        yield path, data
                        break
                    # Evicted or replaced meanwhile, its disk failed, or a bit flipped: a reader knows what to do.
                    small.slots.pop(path, None)
                    found = bring([path], True)[path]
                else:
                    found = brought.get(path)
                    if found is None and not asked:
                        # Those behind it are asked for with it. Then its bytes are here, or its place is known.
                        asked = True
                        brought = bring(small.find_missing(window[position:]) or [path], False)
                        small = get_small()
                        get = small.slots.get
                        continue
                    if found is None:
                        found = bring([path], True)[path]
                if not isinstance(found, bytes):
                    assert found is not None
                    raise found
                yield path, found
                break


async def iter_files_async(
    paths: Iterable[str],
    small: SmallFiles,
    bring: Callable[[Sequence[str], bool], Awaitable[dict[str, Brought]]],
    *,
    verify: bool,
) -> AsyncGenerator[tuple[str, bytes]]:
    """As `iter_files`, on the loop itself; cache files are read in a thread, a few at a time."""
    loop = asyncio.get_running_loop()

    def bring_from_thread(wanted: Sequence[str], through: bool) -> dict[str, Brought]:
        return asyncio.run_coroutine_threadsafe(_await(bring(wanted, through)), loop).result()

    files = iter_files(paths, lambda: small, bring_from_thread, verify=verify)
    while part := await asyncio.to_thread(lambda: list(itertools.islice(files, 16))):
        for one in part:
            yield one


async def _await(call: "Awaitable[dict[str, Brought]]") -> dict[str, Brought]:
    return await call
