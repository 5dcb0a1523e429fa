"""A local directory, or a network file system mounted at one, as a store.

Owns its threads. Nothing outside of the mount's root is ever touched: every path is walked component by component from there,
without following symbolic links, each step relative to the directory before (the root's own path is the mount's choice and may
hold links). Symbolic links and special files are left out and counted.
A content is known by mtime, ctime, size and inode; since the store cannot be asked for a content, it is compared before and after
each read. Called on one event loop; all system calls that can block are made in threads of its own.
"""

import contextlib
import errno
import os
import stat
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TypeVar

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind, to_bytes, to_str
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.threads import BlockingPool, Lent
from alluxio_like.ufs.uri import StoreUri

T = TypeVar("T")

_CHUNK_BYTES = 4 << 20
"""A guess: few hops between threads, yet a reader of the first page does not wait for 8 MiB."""
_THREADS = 16
"""A guess: enough for a network file system's latency; local disks need fewer."""
_KEPT_LISTINGS = 8
"""Directories whose names are kept in memory between two pages; a guess."""
_YOUNG_NS = 2_000_000_000
_O_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_O_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a fifo must not hang the open


class FileUfs:
    """`Ufs` on a directory."""

    def __init__(self, root: str, *, on_request: Callable[[str], None], io_timeout_s: float) -> None:
        self._root = root
        self._on_request = on_request
        self._timeout_s = io_timeout_s
        self._pool = BlockingPool(f"file://{root}", _THREADS)
        self._listings: OrderedDict[tuple[str, str], list[bytes]] = OrderedDict()

    @classmethod
    def open(cls, uri: StoreUri, *, on_request: Callable[[str], None], io_timeout_s: float) -> "FileUfs":
        """The store of a file:// URI; nothing is touched yet."""
        return cls("/" + uri.prefix.rstrip("/"), on_request=on_request, io_timeout_s=io_timeout_s)

    def __repr__(self) -> str:
        return f"FileUfs({self._root!r})"

    @property
    def bucket(self) -> str:
        return f"file://{self._root}"

    @property
    def checks_first(self) -> bool:
        return False

    async def check(self) -> None:
        def look() -> None:
            with self._open_directory("") as fd:
                os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd))

        self._on_request("LIST")
        await self._run(look, "")

    async def stat(self, key: str) -> StoreEntry:
        def look() -> StoreEntry:
            parent, name = _split(key)
            with self._open_directory(parent) as fd:
                return _make_file_entry(name, os.stat(name, dir_fd=fd, follow_symlinks=False), key)

        self._on_request("HEAD")
        return await self._run(look, key)

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        if prefix and not prefix.endswith("/"):
            raise errors.InvalidArgument("a directory's prefix ends in a slash", subject=prefix)
        self._on_request("LIST")
        # A token is "serial of the listing:last sort name, in hex". The names are read once and kept from page to page, so that a
        # large directory costs one pass; if they were dropped meanwhile, they are read again and the page starts behind the name.
        serial, _, last = (token or "").partition(":")
        after = bytes.fromhex(last)
        names = self._listings.pop((prefix, serial), None) if token else None

        def look() -> tuple[list[bytes], ListPage]:
            with self._open_directory(prefix) as fd:
                found = names if names is not None else _scan_names(fd)
                return found, _make_page(fd, found, after, max_entries)

        found, page = await self._run(look, prefix)
        if page.token is None:
            return page
        # The serial tells apart listings of one directory that run at the same time.
        serial = serial or f"{time.monotonic_ns():x}"
        self._listings[prefix, serial] = found
        if len(self._listings) > _KEPT_LISTINGS:
            self._listings.popitem(last=False)
        return ListPage(page.entries, f"{serial}:{page.token}", page.left_out)

    async def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        if offset < 0 or length < 0 or offset + length > fingerprint.size:
            raise errors.InvalidArgument("the range lies outside of the content", subject=key)
        if length == 0:
            return
        self._on_request("GET")
        opened = Lent(os.close)
        try:
            await self._run(partial(self._start_read, opened, key, fingerprint), key)
            end = offset + length
            while offset < end:
                size = min(_CHUNK_BYTES, end - offset)
                is_last = offset + size == end
                chunk = await self._run(partial(_read_part, opened, offset, size, fingerprint, is_last, key), key)
                yield memoryview(chunk)
                offset += size
        finally:
            opened.abandon()

    async def close(self) -> None:
        self._pool.close()
        self._listings.clear()

    # -- in threads -----------------------------------------------------------------------------------------------------------

    async def _run(self, function: Callable[[], T], key: str) -> T:
        """`function()` in a thread, with the system's errors as ours."""
        try:
            return await self._pool.run(function, timeout_s=self._timeout_s)
        except FileNotFoundError:
            raise errors.NotFound("no such file or directory", subject=key) from None
        except PermissionError:
            raise errors.StoreDenied("this process may not read it", subject=f"{self._root}/{key}") from None
        except OSError as error:
            raise _convert(error, f"{self._root}/{key}") from None

    def _start_read(self, opened: Lent[int], key: str, fingerprint: Fingerprint) -> None:
        parent, name = _split(key)

        def open_file() -> int:
            with self._open_directory(parent) as fd:
                return os.open(name, _O_FILE, dir_fd=fd)

        try:
            with opened.use(open_file) as file_fd:
                _compare(file_fd, fingerprint, key)
        except (FileNotFoundError, NotADirectoryError):
            raise errors.Stale("the file is no longer there", subject=key) from None
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENXIO}:
                raise errors.Stale("the file was replaced by something that is none", subject=key) from None
            raise

    @contextlib.contextmanager
    def _open_directory(self, prefix: str) -> Iterator[int]:
        """A descriptor of the directory at `prefix` ("" or ending in "/"), for as long as the context lasts."""
        try:
            fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise errors.StoreMissing("there is no such directory", subject=self._root) from None
        try:
            for part in to_bytes(prefix).split(b"/")[:-1]:
                if part in {b"", b".", b".."} or b"\0" in part:
                    raise FileNotFoundError(errno.ENOENT, "no such name")
                try:
                    below = os.open(part, _O_DIRECTORY, dir_fd=fd)
                except NotADirectoryError:
                    raise FileNotFoundError(errno.ENOENT, "not a directory") from None
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)


def _compare(fd: int, fingerprint: Fingerprint, key: str) -> None:
    """Raises Stale unless the open file is the content meant."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or make_fingerprint(found) != fingerprint:
        raise errors.Stale("the file has changed", subject=key)


def _read_part(opened: Lent[int], offset: int, length: int, fingerprint: Fingerprint, is_last: bool, key: str) -> bytes:
    """Exactly these bytes; after the last of them the content is compared again."""
    pieces = []
    left = length
    with opened.use() as fd:
        while left:
            piece = os.pread(fd, left, offset + length - left)
            if not piece:
                raise errors.Stale("the file has become shorter", subject=key)
            pieces.append(piece)
            left -= len(piece)
        if is_last:
            _compare(fd, fingerprint, key)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


# -- pure helpers ----------------------------------------------------------------------------------------------------------------


def make_fingerprint(found: os.stat_result) -> Fingerprint:
    """What stands for a file's content."""
    return Fingerprint(f"{found.st_mtime_ns:x}.{found.st_ctime_ns:x}.{found.st_ino:x}", found.st_size)


def _split(key: str) -> tuple[str, bytes]:
    """A key as its directory's prefix and its last component."""
    parent, slash, name = key.rpartition("/")
    if name in {"", ".", ".."} or "\0" in name:
        raise FileNotFoundError(errno.ENOENT, "no such name")
    return parent + slash, to_bytes(name)


def _scan_names(fd: int) -> list[bytes]:
    """Sort names of all entries, sorted: what was a directory during the scan has a slash behind it."""
    listing_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        with os.scandir(listing_fd) as entries:
            names = [os.fsencode(entry.name) + (b"/" if entry.is_dir(follow_symlinks=False) else b"") for entry in entries]
    finally:
        os.close(listing_fd)
    names.sort()
    return names


def _make_page(fd: int, names: list[bytes], after: bytes, max_entries: int) -> ListPage:
    """The entries behind `after`; the page's token is its last sort name in hex."""
    start = bisect_right(names, after) if after else 0
    stop = min(len(names), start + max_entries)
    now_ns = time.time_ns()
    entries = []
    left_out = 0
    for sort_name in names[start:stop]:
        name = sort_name.removesuffix(b"/")
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        is_directory = stat.S_ISDIR(found.st_mode)
        if is_directory != sort_name.endswith(b"/"):
            continue  # replaced by another kind since the scan, which has another place in the order: the next listing has it
        if is_directory:
            entries.append(StoreEntry(to_str(name), Kind.DIRECTORY, None, found.st_mtime_ns))
        elif stat.S_ISREG(found.st_mode):
            entries.append(_make_entry(name, found, now_ns))
        else:
            left_out += 1
    return ListPage(tuple(entries), names[stop - 1].hex() if stop < len(names) else None, left_out)


def _make_file_entry(name: bytes, found: os.stat_result, key: str) -> StoreEntry:
    if not stat.S_ISREG(found.st_mode):
        raise errors.NotFound("not a regular file", subject=key)
    return _make_entry(name, found, time.time_ns())


def _make_entry(name: bytes, found: os.stat_result, now_ns: int) -> StoreEntry:
    # Of the two times ctime is the one that nobody can set back, and no write leaves it alone.
    trusted = now_ns - found.st_ctime_ns >= _YOUNG_NS
    return StoreEntry(to_str(name), Kind.FILE, make_fingerprint(found), found.st_mtime_ns, trusted)


def _convert(error: OSError, path: str) -> errors.AlluxioLikeError:
    text = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in {errno.ELOOP, errno.ENAMETOOLONG}:
        return errors.NotFound("no such file or directory", subject=path)
    return errors.StoreUnavailable(f"reading the directory's file system failed: {text}", subject=path)
