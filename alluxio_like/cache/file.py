"""One cache file on the worker's side: which of its pages are there, and their bytes.

Owns the presence and the checksums of one content while the worker uses it. Does not own the index (the store commits what
changes here, in groups) nor space (the store accounts for it). Every method may be called from any thread and may block on the
disk, except those marked "quick", which only look at memory once the file is at hand.
"""

import contextlib
import logging
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import lmdb

from alluxio_like import errors
from alluxio_like.cache import format as fmt
from alluxio_like.cache import syscalls
from alluxio_like.cache.checksum import compute_checksum, compute_checksums
from alluxio_like.cache.format import FileRecord
from alluxio_like.cache.index import BlockPut, FilePut
from alluxio_like.cache.layout import CacheDirectory
from alluxio_like.cache.pages import NO_BLOCK, Block, PresentRun, Role, split_pages, write_all
from alluxio_like.cache.scratch import get_scratch
from alluxio_like.types import (
    PAGE_BYTES,
    PAGES_PER_BLOCK,
    FileId,
    Fingerprint,
    PageRange,
    get_block_count,
    get_full_mask,
    get_page_count,
    get_pages,
)

__all__ = ["CachedFile", "Owner", "PresentRun", "Role"]

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


class Owner(Protocol):
    """What a file needs of its store. Neither call takes a file's lock."""

    def mark_dirty(self, file: "CachedFile") -> None:
        """The file has something to commit."""

    def forget_lost(self, file: "CachedFile") -> None:
        """The file's bytes are gone from the disk: drop it from the index."""


class CachedFile:
    """A cached content. There is one object per file id at a time; it stays valid while somebody refers to it.

    After the file was removed (evicted, replaced, freed) every call that needs bytes raises NotFound: look it up or create it
    again.
    """

    __slots__ = (
        "__weakref__",
        "_blocks",
        "_dir",
        "_dirty",
        "_fd",
        "_last_use_s",
        "_lock",
        "_owner",
        "_pinned",
        "_present_bytes",
        "_punching",
        "_removed",
        "_role",
        "_size",
        "_trust",
        "_unpersisted",
        "_users",
        "directory",
        "file_id",
        "fingerprint",
        "generation",
        "stored",
    )

    def __init__(self, file_id: FileId, record: FileRecord, directory: CacheDirectory, owner: Owner, *, stored: bool) -> None:
        self.file_id = file_id
        self.fingerprint = Fingerprint(record.token, record.size)
        self.generation = record.generation
        self.directory = directory.number
        self.stored = stored
        """Whether the index may know the file (a new one has no blocks to look up)."""
        self._size = record.size
        self._dir = directory
        self._owner = owner
        self._role = Role(record.role)
        self._pinned = record.pinned
        self._unpersisted = record.unpersisted
        self._last_use_s = record.last_use_s
        self._present_bytes = record.present_bytes
        self._trust = directory.get_index().trust
        self._blocks: dict[int, Block] = {}
        self._dirty: set[int] = set()
        self._lock = threading.Lock()
        self._fd = -1
        self._users = 0
        self._removed = False
        self._punching = False

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def size(self) -> int:
        """Bytes of the whole content."""
        return self._size

    @property
    def role(self) -> Role:
        return self._role

    @property
    def pinned(self) -> bool:
        return self._pinned

    @property
    def unpersisted(self) -> bool:
        """Quick. It was written here and the store does not have it: it never goes, nor does any of its pages."""
        return self._unpersisted

    @property
    def removed(self) -> bool:
        """Quick. The file was dropped from the cache; this object is of no more use."""
        return self._removed or not self._dir.ok

    @property
    def is_complete(self) -> bool:
        """Quick. Every page is there (an empty file always is)."""
        if self.removed or self._present_bytes < self._size:
            return False
        if self._trust == 0:
            return True
        return all(self.get_present(block) == get_full_mask(self._size, block) for block in range(get_block_count(self._size)))

    @property
    def present_bytes(self) -> int:
        """Quick. Bytes of the pages that are there (suspect ones included)."""
        return self._present_bytes

    def get_present(self, block: int) -> int:
        """Quick. Bits of the pages of a block that are there (bit n: page n of the block)."""
        with self._lock:
            if self.removed:
                return 0
            found = self._get_block(block)
            return found.bits & ~found.suspect

    def missing_pages(self, pages: PageRange) -> list[PageRange]:
        """Quick. The parts of `pages` that are not there, in order."""
        return self._get_runs(pages, present=False)

    def get_present_runs(self, pages: PageRange) -> list[PresentRun]:
        """Quick. The parts of `pages` that are there, with checksums, in order."""
        runs = self._get_runs(pages, present=True)
        with self._lock:
            return [
                PresentRun(self.generation, run, tuple(self._get_checksum(page) for page in range(run.first, run.stop)))
                for run in runs
            ]

    def has_suspects(self, pages: PageRange) -> bool:
        """Quick. Some of `pages` were there before the machine crashed and are not verified since (they count as missing)."""
        if self._trust == 0:
            return False
        with self._lock:
            return any(self._get_block(block).suspect & mask for block, mask in split_pages(pages))

    def verify_suspects(self, pages: PageRange) -> None:
        """Verify the blocks of `pages` that a crash of the machine made suspect; good pages are present afterwards."""
        for block, _ in split_pages(pages):
            first = block * PAGES_PER_BLOCK
            if self.has_suspects(PageRange(first, first + PAGES_PER_BLOCK)):
                self.verify(PageRange(first, first + PAGES_PER_BLOCK))

    def check_on_disk(self) -> bool:
        """Whether the file is on the disk, long enough for the pages that are there. Raises NotFound (removed), DiskError."""
        if self._size == 0:
            return not self._removed
        with self._using() as fd:
            size = self._io(lambda: os.fstat(fd).st_size)
        with self._lock:
            for block in range(get_block_count(self._size) - 1, -1, -1):
                if bits := self._get_block(block).bits:
                    last = block * PAGES_PER_BLOCK + bits.bit_length()
                    return size >= min(last * PAGE_BYTES, self._size)
        return True

    def write_pages(self, first_page: int, data: memoryview | bytes, *, expected: Sequence[int] = ()) -> None:
        """Put whole pages (the file's last one may be short) where they belong, checksum them, then mark them present.

        Pages that are there already are left alone. Threads may write disjoint ranges at once. `expected`: the checksums that the
        pages came with. Raises NoSpace (quota or disk full: nothing is marked), DiskError (the directory is failed from now on),
        NotFound (removed), Corrupt (a page is not as expected: it is not marked), InvalidArgument.
        """
        if not len(data):
            return
        start = first_page * PAGE_BYTES
        if start < 0 or start + len(data) > self._size or (len(data) % PAGE_BYTES and start + len(data) != self._size):
            raise errors.InvalidArgument(f"{len(data)} bytes at page {first_page} are not whole pages of a file of {self._size}")
        view = memoryview(data)
        wanted = PageRange(first_page, first_page + get_page_count(len(data)))
        with self._using(create=True) as fd:
            for run in self.missing_pages(wanted):
                low, high = run.first - first_page, run.stop - first_page
                self._write_run(fd, run, view[low * PAGE_BYTES : high * PAGE_BYTES], expected[low:high])
        if self._present_bytes >= self._size:
            self.close_idle()

    def read(self, offset: int, length: int, *, verify: bool = True) -> bytes:
        """Bytes [offset, offset + length), clipped at the end of the file.

        Raises NoData when one of the pages is not there, Corrupt when one does not match its checksum (the bad pages are dropped
        first, so that they count as missing), DiskError, NotFound (removed).
        """
        pages = get_pages(offset, length, self._size)
        if not len(pages):
            return b""
        stop = min(offset + length, self._size)
        with self._using() as fd:
            if self.missing_pages(pages):
                raise errors.NoData("pages are not in the cache", subject=str(self.file_id))
            if not verify:
                return self._read_exactly(fd, offset, stop - offset)
            start = pages.first * PAGE_BYTES
            data = self._read_exactly(fd, start, min(pages.stop * PAGE_BYTES, self._size) - start)
            bad = self._find_bad(pages, data)
            if bad:
                raise errors.Corrupt(f"pages {bad} did not match their checksums and were dropped", subject=str(self.file_id))
        return data if start == offset and len(data) == stop - offset else data[offset - start : stop - start]

    def verify(self, pages: PageRange | None = None) -> list[int]:
        """Check every page that is there (of `pages`, or of the file); drop the bad ones, return their numbers."""
        pages = pages or PageRange(0, get_page_count(self._size))
        pages = PageRange(pages.first, min(pages.stop, get_page_count(self._size)))
        bad: list[int] = []
        if self._present_bytes == 0 or not len(pages):
            return bad
        with self._using() as fd:
            for page in range(pages.first, pages.stop):
                with self._lock:
                    there = not self._removed and self._get_block(page // PAGES_PER_BLOCK).bits >> page % PAGES_PER_BLOCK & 1
                if there:
                    start = page * PAGE_BYTES
                    room = get_scratch(min(PAGE_BYTES, self._size - start))
                    count = self._io(lambda: os.preadv(fd, (room,), start))  # noqa: B023 (called before the next turn)
                    data = room if count == len(room) else self._read_some(fd, start, len(room))
                    bad += self._find_bad(PageRange(page, page + 1), data, trust=True)
        return bad

    @contextmanager
    def open_fd(self) -> Iterator[int]:
        """A read-write descriptor of the file, valid inside the with statement; the file is not evicted meanwhile."""
        with self._using() as fd:
            yield fd

    def open_read_only(self) -> int:
        """A new read-only descriptor, the caller's. Raises NotFound (removed), Unavailable (being evicted), DiskError."""
        # Through the descriptor and not by name: a removal that comes in between may have moved the file to held/.
        with self._using() as fd:
            return self._io(lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))

    # For the store.

    def make_put(self) -> FilePut | None:
        """What is to be committed, and mark it so; None: removed."""
        with self._lock:
            if self._removed:
                return None
            record = FileRecord(
                self._size,
                self.generation,
                self._present_bytes,
                self._last_use_s,
                self._role,
                self._pinned,
                self.fingerprint.token,
                self._unpersisted,
            )
            put = FilePut(self.file_id, record)
            for number in self._dirty:
                block = self._blocks[number]
                # One suspect page left keeps the whole block suspect on the disk: it costs a second look, never a wrong byte.
                trust = self._trust if not block.suspect else self._trust - 1
                put.blocks.append(BlockPut(number, trust, block.bits, array("Q", block.checksums)))
            self._dirty = set()
            self.stored = True
            return put

    def set_state(self, *, role: Role | None = None, pinned: bool | None = None, unpersisted: bool | None = None) -> None:
        """Change role or pin, or that the store does not have it; the caller marks the file dirty."""
        with self._lock:
            self._role = self._role if role is None else role
            self._pinned = self._pinned if pinned is None else pinned
            self._unpersisted = self._unpersisted if unpersisted is None else unpersisted

    def begin_removal(self, *, force: bool, include_pinned: bool) -> tuple[str, int]:
        """Mark the file removed, if it may go: ("free" | "held" | "pinned" | "in_use" | "removed", descriptor).

        With "free" the descriptor (or -1: no such file) carries a lease, with which nobody can open the file; close it when the
        bytes are gone.
        """
        with self._lock:
            if self._removed:
                return "removed", -1
            if (self._pinned and not include_pinned) or self._unpersisted:
                return "pinned", -1
            if (self._users or self._punching) and not force:
                return "in_use", -1
            if self._punching:
                # Who punches uses the descriptor, and has a lease with it. Closed under them, its number could mean another file
                # by the time the hole is made: this one goes whole, and gets its hole in held/.
                self._removed = True
                return "held", -1
            fd, self._fd = self._fd, -1
            if fd < 0 or self._users:
                # Those who use the old descriptor keep it; it is closed with this object.
                self._fd, fd = fd, -1
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._dir.fd)
            free = fd < 0 or syscalls.take_write_lease(fd)
            if not free and not force:
                os.close(fd)
                return "in_use", -1
            self._removed = True
            return ("free" if free else "held"), fd

    def begin_punch(self, block: int) -> tuple[int, int]:
        """Take the bits of a block out of memory: (descriptor with a lease, bytes to free), or (-1, 0) where it may not go.

        Until `end_punch` the file can be read (the worker's own descriptor is the one with the lease) but not written to.
        """
        with self._lock:
            if self._removed or self._pinned or self._unpersisted or self._users or self._punching:
                return -1, 0
            found = self._get_block(block)
            if not found.bits:
                return -1, 0
            fd = self._get_fd(create=False)
            if not syscalls.take_write_lease(fd):
                return -1, 0
            freed = self._count_bytes(block, found.bits)
            self._blocks[block] = Block(0, 0, found.checksums)
            self._present_bytes -= freed
            self._dirty.add(block)
            self._punching = True
            return fd, freed

    def end_punch(self, fd: int) -> None:
        """Let the file be written to again."""
        with self._lock:
            self._punching = False
            syscalls.drop_lease(fd)
            if self._removed and not self._users:
                os.close(fd)
                self._fd = -1

    def begin_takeover(self) -> bool:
        """Let nobody use the file any more who does not use it now: it is to become a draft. False: it was removed already, or
        is being punched."""
        with self._lock:
            if self._removed or self._punching:
                return False
            self._removed = True
            return True

    def end_takeover(self, *, taken: bool) -> None:
        """It is one, or it stays what it is."""
        with self._lock:
            self._removed = taken

    @property
    def users(self) -> int:
        """Quick. How many use the descriptor at this moment."""
        return self._users

    def mark_removed(self) -> bool:
        """The file's bytes are lost. False: it was removed already."""
        with self._lock:
            was, self._removed = self._removed, True
            return not was

    # Inside. `_lock` is held where the name of a method below says nothing else.

    @property
    def _path(self) -> str:
        return fmt.make_file_path(self.file_id, self.generation)

    def _get_block(self, number: int) -> Block:
        block = self._blocks.get(number)
        if block is not None:
            return block
        if self.stored:
            try:
                record = self._dir.get_index().lookup_block(self.file_id, number)
            except lmdb.Error as error:
                self._dir.fail(f"index: {error}")
                raise errors.DiskError(f"index of the cache failed ({error})", subject=str(self._dir.spec.path)) from error
            if record is not None and record.generation == self.generation:
                suspect = record.bits if record.trust < self._trust else 0
                block = Block(record.bits, suspect, record.checksums)
        if block is None:
            block = Block(0, 0, array("Q", bytes(8 * fmt.get_pages_in_block(self._size, number))))
        self._blocks[number] = block
        return block

    def _get_checksum(self, page: int) -> int:
        return self._get_block(page // PAGES_PER_BLOCK).checksums[page % PAGES_PER_BLOCK]

    def _count_bytes(self, block: int, bits: int) -> int:
        last = get_page_count(self._size) - 1
        short = 0
        if last // PAGES_PER_BLOCK == block and bits >> last % PAGES_PER_BLOCK & 1:
            short = (last + 1) * PAGE_BYTES - self._size
        return bits.bit_count() * PAGE_BYTES - short

    def _get_fd(self, *, create: bool) -> int:
        if self._fd < 0:
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                self._fd = self._open_or_create(flags) if create else os.open(self._path, flags, dir_fd=self._dir.fd)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise self._translate(error) from error
        return self._fd

    def _open_or_create(self, flags: int) -> int:
        try:
            return os.open(self._path, flags | os.O_CREAT, 0o600, dir_fd=self._dir.fd)
        except FileNotFoundError:
            # Somebody has removed directories. Taken for a file that was removed, it would be tried again and again.
            try:
                self._dir.make_place(self._path)
                return os.open(self._path, flags | os.O_CREAT, 0o600, dir_fd=self._dir.fd)
            except FileNotFoundError as error:
                self._dir.fail("it was removed")
                raise errors.DiskError("cache directory was removed", subject=str(self._dir.spec.path)) from error

    def _get_runs(self, pages: PageRange, *, present: bool) -> list[PageRange]:
        runs: list[PageRange] = []
        first = -1
        with self._lock:
            for block, mask in split_pages(PageRange(pages.first, min(pages.stop, get_page_count(self._size)))):
                found = NO_BLOCK if self.removed else self._get_block(block)
                bits = found.bits & ~found.suspect
                wanted = (bits if present else ~bits) & mask
                base = block * PAGES_PER_BLOCK
                if first < 0 and not wanted:
                    continue
                low, high = (mask & -mask).bit_length() - 1, mask.bit_length()
                if first >= 0 and wanted == mask:
                    continue
                for bit in range(low, high):
                    if wanted >> bit & 1:
                        first = base + bit if first < 0 else first
                    elif first >= 0:
                        runs.append(PageRange(first, base + bit))
                        first = -1
        if first >= 0:
            runs.append(PageRange(first, min(pages.stop, get_page_count(self._size))))
        return runs

    def hold(self) -> int:
        """Keep the file from eviction until `release`; its descriptor. Look at bits after that. Raises NotFound, DiskError."""
        return self._hold(create=False)

    def release(self) -> None:
        """Quick. The end of one `hold`."""
        with self._lock:
            self._users -= 1

    def _hold(self, *, create: bool) -> int:
        """Not under the lock."""
        try:
            with self._lock:
                if self._removed:
                    raise errors.NotFound("no longer in the cache", subject=str(self.file_id))
                self._dir.get_index()
                if self._punching and create:
                    raise errors.NoSpace("a block of the file is being evicted", subject=str(self.file_id))
                fd = self._get_fd(create=create and (not self.stored or not self._present_bytes))
                self._users += 1
                return fd
        except FileNotFoundError:
            self._owner.forget_lost(self)
            raise errors.NotFound("cache file is gone from the disk", subject=str(self.file_id)) from None

    @contextmanager
    def _using(self, *, create: bool = False) -> Iterator[int]:
        """Not under the lock. Keep the file from eviction, with a descriptor."""
        fd = self._hold(create=create)
        try:
            yield fd
        finally:
            self.release()

    def close_idle(self) -> None:
        """Give the descriptor back until somebody needs it again, unless somebody does now."""
        with self._lock:
            if not self._users and not self._punching and self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _write_run(self, fd: int, run: PageRange, data: memoryview, expected: Sequence[int]) -> None:
        """Not under the lock. Pages of a run that is missing: charge, write, checksum, mark."""
        suspects = self.has_suspects(run)
        charged = 0 if suspects else fmt.get_disk_bytes(len(data))
        if suspects:
            # Some of these pages have their space already: charge for those that have not.
            with self._lock:
                charged = sum(
                    fmt.get_disk_bytes(self._count_bytes(block, mask & ~self._get_block(block).bits))
                    for block, mask in split_pages(run)
                )
        self._dir.charge(charged)
        fresh = 0
        try:
            checksums = compute_checksums(data)
            if expected and list(expected) != checksums:
                bad = [run.first + n for n, (one, other) in enumerate(zip(expected, checksums, strict=True)) if one != other]
                raise errors.Corrupt(f"pages {bad} are not what was sent", subject=str(self.file_id))
            self._io(lambda: write_all(fd, data, run.first * PAGE_BYTES))
            with self._lock:
                if self._removed:
                    raise errors.NotFound("removed while it was written", subject=str(self.file_id))
                for block, mask in split_pages(run):
                    found = self._get_block(block)
                    base = block * PAGES_PER_BLOCK
                    fresh += self._count_bytes(block, mask & ~found.bits)
                    for bit in range(max(0, run.first - base), min(PAGES_PER_BLOCK, run.stop - base)):
                        found.checksums[bit] = checksums[base + bit - run.first]
                    found.bits |= mask
                    found.suspect &= ~mask
                    self._dirty.add(block)
                self._present_bytes += fresh
        finally:
            # Another thread may have written the same pages meanwhile; they take their space once.
            if (surplus := charged - fmt.get_disk_bytes(fresh)) > 0:
                self._dir.give_back(surplus)
        self._owner.mark_dirty(self)

    def _find_bad(self, pages: PageRange, data: bytes | memoryview, *, trust: bool = False) -> list[int]:
        """Not under the lock. Compare pages with their checksums; drop the bad ones, with `trust` believe the good ones."""
        view = memoryview(data)
        bad: list[int] = []
        changed = False
        for page in range(pages.first, pages.stop):
            start = (page - pages.first) * PAGE_BYTES
            length = min(PAGE_BYTES, self._size - page * PAGE_BYTES)
            piece = view if len(view) == length and start == 0 else view[start : start + length]
            actual = compute_checksum(piece) if len(piece) == length else -1
            bit = 1 << page % PAGES_PER_BLOCK
            with self._lock:
                block = self._get_block(page // PAGES_PER_BLOCK)
                good = actual == block.checksums[page % PAGES_PER_BLOCK]
                if not good:
                    bad.append(page)
                # Bad bytes are bad for everybody who read them, also when another reader has dropped the page by now.
                if self._removed or not block.bits & bit:
                    continue
                if not good and self._unpersisted:
                    # Nobody has anything better.
                    _LOG.error(
                        "page %d of file %s does not match its checksum, and the store does not have it: look at the disk of %s",
                        page, self.file_id, self._dir.spec.path,
                    )  # fmt: skip
                    continue
                if not good:
                    block.bits &= ~bit
                    block.suspect &= ~bit
                    self._present_bytes -= length
                    self._dir.give_back(fmt.get_disk_bytes(length))
                elif not (trust and block.suspect & bit):
                    continue
                block.suspect &= ~bit
                self._dirty.add(page // PAGES_PER_BLOCK)
                changed = True
        if changed:
            self._owner.mark_dirty(self)
        return bad

    def _read_some(self, fd: int, offset: int, length: int) -> bytes:
        """Not under the lock. What is there of a range; short only at the end of the file on the disk."""
        data = self._io(lambda: os.pread(fd, length, offset))
        while 0 < len(data) < length:
            have = len(data)
            more = self._io(lambda: os.pread(fd, length - have, offset + have))  # noqa: B023 (called before the next turn)
            if not more:
                break
            data += more
        return data

    def _read_exactly(self, fd: int, offset: int, length: int) -> bytes:
        """Not under the lock. A cache file shorter than its pages say is corrupt: verify finds the pages and drops them."""
        data = self._read_some(fd, offset, length)
        if len(data) != length:
            pages = get_pages(offset, length, self._size)
            for page in range(pages.first, pages.stop):
                self._find_bad(PageRange(page, page + 1), self._read_some(fd, page * PAGE_BYTES, PAGE_BYTES))
            raise errors.Corrupt(
                "cache file is shorter than it should be; its missing pages were dropped", subject=str(self.file_id)
            )
        return data

    def _io(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except OSError as error:
            raise self._translate(error) from error

    def _translate(self, error: OSError) -> errors.AlluxioLikeError:
        return self._dir.translate(error, str(self.file_id))
