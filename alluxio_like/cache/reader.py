"""Reading a worker's cache files from another process on the same machine, without asking the worker.

Owns read-only views of the indexes and the opened cache files. Opened from descriptors of cache directories (a worker's door
hands them out). The file is always opened before its bits are read, so that bits that are set speak of bytes that stay.

One process has at most one CacheReader of a worker at a time (LMDB's rule: close the old one first). It survives fork, in parent
and child: an environment must not, so it is closed just before and opened again when needed. Any thread may use it; a LocalFile's
own state is guarded by nothing but the interpreter: concurrent reads may verify a page twice, never skip it.
"""

import errno
import os
import struct
import threading
import weakref
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import lmdb

from alluxio_like import errors
from alluxio_like.cache import format as fmt
from alluxio_like.cache.checksum import compute_checksum
from alluxio_like.cache.draft_files import open_draft
from alluxio_like.cache.layout import check_format
from alluxio_like.cache.scratch import get_scratch
from alluxio_like.types import (
    BLOCK_BYTES,
    PAGE_BYTES,
    PAGES_PER_BLOCK,
    FileId,
    FileRef,
    PageRange,
    SharedRange,
    get_block_count,
    get_full_mask,
    get_page_count,
)

_HEADER = struct.Struct("<QIQ")


class _View:
    """One directory: its descriptor and its index, read-only. The lock guards the environment's coming and going."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.lock = threading.Lock()
        self.closed = False
        self._env: lmdb.Environment | None = None
        self._tables: dict[bytes, Any] = {}
        path = f"/proc/self/fd/{fd}"
        if not check_format(fd, path):
            raise errors.DiskError("not a cache directory", subject=path)
        self.nowait = get_nowait_flag(fd)
        with self._open_env().begin() as txn:
            self.trust = int.from_bytes(bytes(txn.get(fmt.KEY_TRUST) or b"\0"), "big")

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """A table's record, or None; also None when the index cannot be read now (then the worker is asked)."""
        with self.lock:
            try:
                if self.closed:
                    return None
                with (self._env or self._open_env()).begin() as txn:
                    value = txn.get(key, db=self._tables[table])
                    return None if value is None else bytes(value)
            except lmdb.Error:
                self.close_env()
                return None

    def close_env(self) -> None:
        """Under the lock. The next look opens it again."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def close(self) -> None:
        with self.lock:
            if not self.closed:
                self.closed = True
                self.close_env()
                os.close(self.fd)

    def _open_env(self) -> lmdb.Environment:
        self._env = env = lmdb.open(
            f"/proc/self/fd/{self.fd}/index",
            # As large as the worker's: with lmdb's default of 10 MiB lookups fail as soon as the index has grown beyond that.
            map_size=0,
            readonly=True,
            create=False,
            lock=True,
            max_spare_txns=1,
            max_dbs=2,
            readahead=False,
        )
        self._tables = {name: env.open_db(name, create=False) for name in (fmt.FILES, fmt.BLOCKS)}
        return env


def get_nowait_flag(directory_fd: int) -> int | None:
    """What makes preadv fail rather than wait for the disk; 0 where there is no disk (tmpfs); None where it cannot be had."""
    file = os.open("format", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        os.preadv(file, (bytearray(1),), 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return os.RWF_NOWAIT
    except OSError:
        return 0 if _is_in_memory(directory_fd) else None
    finally:
        os.close(file)
    return os.RWF_NOWAIT


def _is_in_memory(directory_fd: int) -> bool:
    device = os.fstat(directory_fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1] in {"tmpfs", "ramfs"}
    return False


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check of a whole file found: bytes read, and the pages that do not match their checksums."""

    bytes: int
    bad_pages: tuple[int, ...]


class LocalFile:
    """One opened cache file. While it is open the worker neither punches what is present nor writes over it, except bad pages."""

    __slots__ = ("_checksums", "_file_id", "_present", "_verified", "_view", "fd", "generation", "size")

    def __init__(self, view: _View, file_id: FileId, size: int, generation: int, fd: int) -> None:
        self._view = view
        self._file_id = file_id
        self.size = size
        self.generation = generation
        self.fd = fd
        self._present: dict[int, int] = {}
        self._verified: dict[int, int] = {}
        self._checksums: dict[int, array[int]] = {}

    def __del__(self) -> None:
        self.close()

    @property
    def directory(self) -> object:
        """Stands for the cache directory it is in: the same object for all files of one, while it is open here."""
        return self._view

    def get_present_run(self, offset: int, length: int) -> int:
        """Bytes from `offset` on that are there (at most `length`, clipped at the end). Asks the index again when short."""
        stop = min(offset + length, self.size)
        if offset < 0 or stop <= offset:
            return 0
        page = offset // PAGE_BYTES
        last = -(-stop // PAGE_BYTES)
        asked = -1
        while page < last:
            block, bit = divmod(page, PAGES_PER_BLOCK)
            bits = self._present.get(block, 0) >> bit
            # Ones at the low end: the pages of this block that follow one another from here.
            run = (~bits & (bits + 1)).bit_length() - 1
            if run:
                page += run
            elif asked == block:
                break
            else:
                self._load(block)
                asked = block
        return max(0, min(page * PAGE_BYTES, stop) - offset)

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Bytes from `offset`, as many of `length` as are there (clipped at end of file; empty: none there), each page verified
        against its checksum the first time this object reads it.

        Raises Corrupt (read through the worker instead, which drops and fetches the page again), DiskError.
        """
        count = self.get_present_run(offset, length)
        if count <= 0:
            return b""
        first, stop = offset // PAGE_BYTES, -(-(offset + count) // PAGE_BYTES)
        if self._is_verified(first, stop):
            return self._pread(offset, count)
        # Whole pages, because a checksum is of a whole page; what was read for it is at once what is returned. What another
        # thread verifies from now on may be other bytes than those read here: a bad page may be written anew meanwhile.
        unverified = [page for page in range(first, stop) if not self._is_verified(page, page + 1)]
        start = first * PAGE_BYTES
        data = self._pread(start, min(stop * PAGE_BYTES, self.size) - start)
        view = memoryview(data)
        for page in unverified:
            low = (page - first) * PAGE_BYTES
            self._check(page, view[low : low + PAGE_BYTES] if stop - first > 1 else data)
        return data if start == offset and len(data) == count else view[offset - start : offset - start + count]

    def try_read_into(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` from `offset` on without waiting for a disk; False: not there, not verified, or not in memory now.

        Pages are verified as in `read`, from memory too. Never raises: `read` says what is wrong.
        """
        length, nowait = len(buffer), self._view.nowait
        if nowait is None:
            return False
        first, stop = offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)
        try:
            if not self._is_verified(first, stop):
                if offset == first * PAGE_BYTES and stop == first + 1 and length == min(PAGE_BYTES, self.size - offset):
                    return self._try_read_page(first, buffer, nowait)
                if not self._try_verify(offset, length, nowait):
                    return False
            return os.preadv(self.fd, (buffer,), offset, nowait) == length
        except (OSError, errors.AlluxioLikeError):
            # EAGAIN for the most part.
            return False

    def share(self, offset: int, length: int) -> SharedRange | None:
        """What another process needs to read a range as `try_read_into` does; None: not all of it is there. It says what became
        of it by `note_verified`, or leaves it."""
        nowait = self._view.nowait
        if nowait is None or self.fd < 0 or self.get_present_run(offset, length) < length:
            return None
        pages = range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES))
        checksums = tuple(None if self._is_verified(page, page + 1) else self._get_checksum(page) for page in pages)
        return SharedRange(self, self.fd, self.size, offset, length, nowait, checksums)

    def note_verified(self, shared: SharedRange) -> None:
        """The pages of what was shared matched their checksums."""
        for page, checksum in enumerate(shared.checksums, shared.offset // PAGE_BYTES):
            # One that was found bad meanwhile, or written anew, is verified again.
            if checksum is not None and checksum == self._get_checksum(page) and self.get_present_run(page * PAGE_BYTES, 1):
                self._set_verified(page)

    def _try_read_page(self, page: int, buffer: memoryview, nowait: int) -> bool:
        """As `try_read_into` for one whole page: what is verified is at once what is given."""
        offset, length = page * PAGE_BYTES, len(buffer)
        if self.get_present_run(offset, length) < length or os.preadv(self.fd, (buffer,), offset, nowait) != length:
            return False
        self._check(page, buffer)
        return True

    def _try_verify(self, offset: int, length: int, nowait: int) -> bool:
        if self.get_present_run(offset, length) < length:
            return False
        for page in range(offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)):
            if self._is_verified(page, page + 1):
                continue
            start = page * PAGE_BYTES
            data = get_scratch(min(PAGE_BYTES, self.size - start))
            if os.preadv(self.fd, (data,), start, nowait) != len(data):
                return False
            self._check(page, data)
        return True

    def add_present(self, generation: int, pages: PageRange, checksums: Sequence[int]) -> bool:
        """Learn from a Fill reply what the index may not yet say. False: it speaks of another generation, open the file anew."""
        if generation != self.generation:
            return False
        if len(checksums) != len(pages):
            raise errors.InvalidArgument(f"{len(checksums)} checksums for {len(pages)} pages")
        for page, checksum in zip(range(pages.first, pages.stop), checksums, strict=True):
            block, bit = divmod(page, PAGES_PER_BLOCK)
            sums = self._checksums.get(block)
            if sums is None:
                sums = self._checksums[block] = array("Q", bytes(8 * PAGES_PER_BLOCK))
            sums[bit] = checksum
            self._present[block] = self._present.get(block, 0) | 1 << bit
        return True

    @property
    def is_complete(self) -> bool:
        """Every page is known to be there."""
        return self.get_present_run(0, self.size) == self.size

    def verify_whole(self) -> Verified:
        """Read all of the file and compare each page with its checksum, whatever was verified before. Blocks; for threads.

        Bad pages count as absent afterwards, until the index is asked again: have the worker drop them. Pages that are not there
        are not looked at. Raises DiskError.
        """
        count = 0
        bad: list[int] = []
        for page in range(get_page_count(self.size)):
            start = page * PAGE_BYTES
            length = min(PAGE_BYTES, self.size - start)
            if self.get_present_run(start, length) < length:
                continue
            try:
                self._check(page, self._pread(start, length))
            except errors.Corrupt:
                self._forget(page)
                bad.append(page)
            count += length
        return Verified(count, tuple(bad))

    def _forget(self, page: int) -> None:
        """A page that was found bad is neither there nor verified."""
        block, bit = divmod(page, PAGES_PER_BLOCK)
        self._present[block] = self._present.get(block, 0) & ~(1 << bit)
        self._verified[block] = self._verified.get(block, 0) & ~(1 << bit)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def _load(self, block: int) -> None:
        """Read a block's bits and checksums from the index again; what was learned otherwise stays."""
        raw = self._view.get(fmt.BLOCKS, fmt.make_block_key(self._file_id, block))
        if raw is None:
            return
        generation, trust, bits = _HEADER.unpack_from(raw)
        if generation != self.generation or trust < self._view.trust:
            return
        fresh = array("Q")
        fresh.frombytes(raw[_HEADER.size :])
        known = self._present.get(block, 0)
        if known & ~bits:
            # Pages learned from a Fill reply that the index does not have yet keep their checksums.
            sums = self._checksums[block]
            for bit in range(len(fresh)):
                if known & ~bits & 1 << bit:
                    fresh[bit] = sums[bit]
        self._checksums[block] = fresh
        self._present[block] = known | bits

    def _is_verified(self, first: int, stop: int) -> bool:
        page = first
        while page < stop:
            block, bit = divmod(page, PAGES_PER_BLOCK)
            high = min(PAGES_PER_BLOCK, stop - block * PAGES_PER_BLOCK)
            mask = (1 << high) - (1 << bit)
            if self._verified.get(block, 0) & mask != mask:
                return False
            page = (block + 1) * PAGES_PER_BLOCK
        return True

    def _check(self, page: int, data: memoryview | bytes) -> None:
        if compute_checksum(data) != self._get_checksum(page):
            self._forget(page)
            raise errors.Corrupt(f"page {page} of a cache file does not match its checksum", subject=str(self._file_id))
        self._set_verified(page)

    def _get_checksum(self, page: int) -> int:
        """Of a page that is there."""
        block, bit = divmod(page, PAGES_PER_BLOCK)
        return self._checksums[block][bit]

    def _set_verified(self, page: int) -> None:
        block, bit = divmod(page, PAGES_PER_BLOCK)
        self._verified[block] = self._verified.get(block, 0) | 1 << bit

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self.fd, length, offset)
            while 0 < len(data) < length:
                more = os.pread(self.fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise errors.DiskError(f"cache file cannot be read ({error.strerror})", subject=str(self._file_id)) from error
        if len(data) != length:
            raise errors.Corrupt("cache file is shorter than it should be", subject=str(self._file_id))
        return data


@dataclass(frozen=True, slots=True)
class SmallPlace:
    """Where a small content's cache file is: `name` below a directory, whose descriptor belongs to the reader.

    The name stays good until the file is removed: its generation never comes again, and a small file goes as a whole.
    """

    directory: object
    directory_fd: int
    name: str
    checksums: "array[int]"


class CacheReader:
    """Looks into the cache directories of one worker."""

    def __init__(self, views: list[_View]) -> None:
        self._views = views
        _open_readers.append(weakref.ref(self, _open_readers.remove))

    @classmethod
    def open(cls, directory_fds: Sequence[int]) -> Self:
        """Take over descriptors of cache directories, also when it fails.

        Raises FormatTooNew, DiskError (then ask the worker by RPC).
        """
        views: list[_View] = []
        try:
            for fd in directory_fds:
                views.append(_View(fd))  # noqa: PERF401 (those opened must be closed on failure)
        except BaseException as error:
            for view in views:
                view.close()
            for fd in directory_fds[len(views) :]:
                os.close(fd)
            if isinstance(error, (lmdb.Error, OSError)):
                raise errors.DiskError(f"cache directory cannot be read from here ({error})") from error
            raise
        return cls(views)

    def open_draft(self, directory: int, path: str) -> int:
        """A file that is being written, by its path below a directory, for reading and writing; the caller's. Raises DiskError,
        NotFound (it is not being written any more: begin again), Unavailable (not just now)."""
        try:
            return open_draft(self._views[directory].fd, path)
        except IndexError as error:
            raise errors.Unavailable("the worker has other cache directories by now: try again", subject=path) from error
        except OSError as error:
            raise errors.DiskError(f"a file that is being written cannot be opened ({error.strerror})", subject=path) from error

    def lookup(self, ref: FileRef) -> LocalFile | None:
        """The cache file of a content if any of it is there; None: ask the worker."""
        file_id = ref.file_id
        key = fmt.make_file_key(file_id)
        for view in self._views:
            raw = view.get(fmt.FILES, key)
            if raw is None:
                continue
            record = fmt.unpack_file(raw)
            if record.size != ref.fingerprint.size or record.token != ref.fingerprint.token or not record.present_bytes:
                continue
            file = _open_file(view, file_id, record.size, record.generation)
            if file is not None:
                return file
        return None

    def find_whole(self, ref: FileRef) -> LocalFile | None:
        """The cache file of a content if every page of it is there by the trusted index; the caller closes it."""
        file_id, size, token = ref.file_id, ref.fingerprint.size, ref.fingerprint.token
        key = fmt.make_file_key(file_id)
        for view in self._views:
            raw = view.get(fmt.FILES, key)
            # What is not there by the sum of its pages need not be opened to be told so by each.
            generation = -1 if raw is None else fmt.find_whole_generation(raw, size, token)
            if generation >= 0:
                file = _open_file(view, file_id, size, generation)
                if file is not None:
                    # Asked of the index after the file was opened, as always.
                    if _is_whole(view, file_id, size, generation):
                        return file
                    file.close()
        return None

    def locate_small(self, ref: FileRef) -> SmallPlace | None:
        """Where the cache file of a content of at most one block is, if all of it is there. Does not open it."""
        file_id = ref.file_id
        for view in self._views:
            raw = view.get(fmt.FILES, fmt.make_file_key(file_id))
            if raw is None:
                continue
            record = fmt.unpack_file(raw)
            if record.size != ref.size or record.token != ref.fingerprint.token or not 0 < record.size <= BLOCK_BYTES:
                continue
            raw = view.get(fmt.BLOCKS, fmt.make_block_key(file_id, 0))
            if raw is None:
                continue
            block = fmt.unpack_block(raw)
            full = get_full_mask(record.size, 0)
            if block.generation == record.generation and block.trust >= view.trust and block.bits & full == full:
                return SmallPlace(view, view.fd, fmt.make_file_path(file_id, record.generation), block.checksums)
        return None

    def has_directory(self, directory: object) -> bool:
        """Whether a `SmallPlace.directory` or `LocalFile.directory` is one of this reader's."""
        return any(directory is view for view in self._views)

    def owns(self, file: LocalFile) -> bool:
        """Whether a file is one of this reader's."""
        return any(file.directory is view for view in self._views)

    def open_filled(self, ref: FileRef, directory: int, generation: int) -> LocalFile | None:
        """The cache file that a Fill reply names (the directory by its place in the door's order), known to the index or not yet.

        None: it is gone by now, fill again. Learn its pages with `add_present`.
        """
        if directory >= len(self._views):
            return None
        return _open_file(self._views[directory], ref.file_id, ref.size, generation)

    def close(self) -> None:
        """Close indexes and directory descriptors; files that are open stay usable for what they know. Idempotent."""
        for view in self._views:
            view.close()

    def before_fork(self) -> None:
        """Close the environments, and let nobody open them until `after_fork`."""
        # A child that inherits an open environment can neither use it nor, without harm to the parent's slots, close it.
        for view in self._views:
            view.lock.acquire()
            view.close_env()

    def after_fork(self) -> None:
        """In parent and child."""
        for view in self._views:
            view.lock.release()


_open_readers: "list[weakref.ref[CacheReader]]" = []
_forking: list[CacheReader] = []


def _before_fork() -> None:
    _forking.extend(reader for reference in list(_open_readers) if (reader := reference()) is not None)
    for reader in _forking:
        reader.before_fork()


def _after_fork() -> None:
    for reader in _forking:
        reader.after_fork()
    _forking.clear()


# Once for all readers, and not for each when it is made: these hooks run in the reverse order, and one that is registered later
# than the hook which closes a whole client (client/runtime.py) would hold the locks which closing needs.
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _is_whole(view: _View, file_id: FileId, size: int, generation: int) -> bool:
    """Whether the index has every page of a generation of a file; `LocalFile.is_complete` without its memory."""
    for block in range(get_block_count(size)):
        raw = view.get(fmt.BLOCKS, fmt.make_block_key(file_id, block))
        if raw is None:
            return False
        known, trust, bits = _HEADER.unpack_from(raw)
        full = get_full_mask(size, block)
        if known != generation or trust < view.trust or bits & full != full:
            return False
    return True


def _open_file(view: _View, file_id: FileId, size: int, generation: int) -> LocalFile | None:
    """O_NONBLOCK: a file that is just being evicted (under a lease) is as good as gone, and not waited for."""
    if view.closed:
        return None
    try:
        fd = os.open(
            fmt.make_file_path(file_id, generation),
            os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
            dir_fd=view.fd,
        )
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EWOULDBLOCK, errno.EIO, errno.ESTALE}:
            return None
        raise errors.DiskError(f"cache file cannot be opened ({error.strerror})", subject=str(file_id)) from error
    return LocalFile(view, file_id, size, generation, fd)
