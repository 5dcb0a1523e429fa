"""A POSIX file system as a store: asking, listing and reading, whatever the system below.

Owns the listings between their pages and the files of reads under way. Nothing outside of the root is ever touched: every path
is walked component by component from there, without following symbolic links, each step relative to the directory before.
Symbolic links and special files are left out and counted; with `symlinks=inside` a link to a regular file below the root is
that file. Since such a system cannot be asked for a content, it is compared before and after each read. All methods block, and
may be called from any thread; errors are those of `api.py`.
"""

import contextlib
import errno
import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator
from typing import Generic

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind, Space, to_bytes, to_str
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.posix_ops import D, F, Found, FoundKind, PosixOps
from alluxio_like.ufs.sorted_names import SortedNames
from alluxio_like.ufs.threads import Lent

STAGING_PREFIX = b".alluxio_like-"
"""What we are writing and nobody may see yet carries this and 32 hex digits."""
_KEPT_LISTINGS = 16
"""Directories whose names are kept between two pages: as many as one mount lists at once."""
_YOUNG_NS = 2_000_000_000
_PAGE_BYTES = 280 << 10
"""A page ends after about so many bytes, so that it fits one message of a helper process (`cephfs_helper.MAX_MESSAGE_BYTES`)."""
_REMEMBERED_ENDS = 4096
_FOUND = struct.Struct("<?Qq")


class PosixTree(Generic[D, F]):
    """`name` is what errors call the root."""

    def __init__(self, ops: PosixOps[D, F], name: str) -> None:
        self.ops = ops
        self.name = name
        self._lock = threading.Lock()
        self._listings: OrderedDict[tuple[str, str], SortedNames] = OrderedDict()
        self._reads: dict[int, Lent[F]] = {}
        # A read may end while its first part still waits for a thread: then that part must leave nothing open.
        self._ended: OrderedDict[int, None] = OrderedDict()

    # -- asking ---------------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """`Ufs.check`."""
        with self.translate(""), self.directory("") as root, contextlib.closing(self.ops.scan(root)) as entries:
            next(entries, None)

    def measure(self) -> Space:
        """`MeasuredUfs.measure`."""
        with self.translate(""), self.directory("") as root:
            return self.ops.measure(root)

    def stat(self, key: str) -> StoreEntry:
        """`Ufs.stat`."""
        with self.translate(key), self.parent(key) as (directory, name):
            found = self.ops.stat(directory, name)
            if found.kind is FoundKind.LINK:
                found = self._stat_target(to_bytes(key)) or found
            if found.kind is not FoundKind.FILE:
                raise errors.NotFound("not a regular file", subject=key)
            return make_entry(name, found, time.time_ns())

    # -- listing --------------------------------------------------------------------------------------------------------------

    def list_page(self, prefix: str, token: str | None, max_entries: int, budget_s: float) -> ListPage:
        """`Ufs.list_page`. After `budget_s` seconds of reading a large directory the page is empty, and the next goes on."""
        if prefix and not prefix.endswith("/"):
            raise errors.InvalidArgument("a directory's prefix ends in a slash", subject=prefix)
        # A token is "serial of the listing:last sort name, in hex". The names are read once and kept from page to page; if they
        # were dropped meanwhile, they are read again and the page starts behind the name.
        serial, _, last = (token or "").partition(":")
        serial = serial or f"{time.monotonic_ns():x}.{threading.get_ident():x}"
        listing = self._take_listing(prefix, serial)
        is_kept = False
        try:
            with self.translate(prefix), self.directory(prefix) as directory:
                if listing is None:
                    listing = SortedNames(self._scan(directory))
                if not listing.fill(time.monotonic() + budget_s):
                    page = ListPage((), last)
                else:
                    page = self._make_page(directory, prefix, listing, bytes.fromhex(last), max_entries)
            if page.token is None:
                return page
            self._keep_listing(prefix, serial, listing)
            is_kept = True
            return ListPage(page.entries, f"{serial}:{page.token}", page.left_out)
        finally:
            if listing is not None and not is_kept:
                listing.close()

    def _take_listing(self, prefix: str, serial: str) -> SortedNames | None:
        with self._lock:
            return self._listings.pop((prefix, serial), None)

    def _keep_listing(self, prefix: str, serial: str, listing: SortedNames) -> None:
        dropped = []
        with self._lock:
            if (before := self._listings.pop((prefix, serial), None)) is not None:
                dropped.append(before)  # the same page was asked for twice at once
            self._listings[prefix, serial] = listing
            while len(self._listings) > _KEPT_LISTINGS:
                dropped.append(self._listings.popitem(last=False)[1])
        for old in dropped:
            old.close()

    def _scan(self, directory: D) -> Generator[bytes, None, None]:
        """Records for `SortedNames`: the sort name, and what was found with it at no cost."""
        now_ns = time.time_ns()
        hidden = self.ops.hidden_names
        for scanned in self.ops.scan(directory):
            if is_staging(scanned.name) or scanned.name in hidden:
                continue
            found = scanned.found
            kind = b"/\0" if scanned.is_directory else b"\0"
            rest = b""
            if found is not None and found.kind in {FoundKind.FILE, FoundKind.DIRECTORY}:
                rest = _FOUND.pack(_is_trusted(found, now_ns), found.size, found.mtime_ns) + found.token.encode()
            yield scanned.name + kind + rest

    def _make_page(self, directory: D, prefix: str, listing: SortedNames, after: bytes, max_entries: int) -> ListPage:
        """The entries behind `after`; the page's token is its last sort name in hex."""
        records, is_end = listing.take(after, max_entries)
        now_ns = time.time_ns()
        entries: list[StoreEntry] = []
        left_out = 0
        page_bytes = 0
        last = b""
        for position, record in enumerate(records):
            last, _, rest = record.partition(b"\0")
            name = last.removesuffix(b"/")
            entry = _read_record(last, rest) if rest else self._look(directory, prefix, last, now_ns)
            if entry is None:
                continue
            if isinstance(entry, StoreEntry):
                entries.append(entry)
            else:
                left_out += 1
            page_bytes += 2 * len(name) + 200
            if page_bytes >= _PAGE_BYTES and position + 1 < len(records):
                is_end = False
                break
        return ListPage(tuple(entries), None if is_end else last.hex(), left_out)

    def _look(self, directory: D, prefix: str, sort_name: bytes, now_ns: int) -> StoreEntry | FoundKind | None:
        """The entry; its kind where it cannot be shown; None where it is gone."""
        name = sort_name.removesuffix(b"/")
        try:
            found = self.ops.stat(directory, name)
        except FileNotFoundError:
            return None
        if found.kind is FoundKind.LINK:
            found = self._stat_target(to_bytes(prefix) + name) or found
        if (found.kind is FoundKind.DIRECTORY) != sort_name.endswith(b"/"):
            return None  # replaced by another kind since the scan, which has another place in the order: the next listing has it
        if found.kind is FoundKind.DIRECTORY:
            return StoreEntry(to_str(name), Kind.DIRECTORY, None, found.mtime_ns)
        return make_entry(name, found, now_ns) if found.kind is FoundKind.FILE else found.kind

    def _stat_target(self, key: bytes) -> Found | None:
        """What a symbolic link leads to, if that may be shown."""
        if not self.ops.follows_links:
            return None
        try:
            file = self.ops.follow(key)
        except OSError as error:
            if error.errno in _NO_TARGET or isinstance(error, PermissionError):
                return None
            raise
        try:
            return self.ops.stat_file(file)
        finally:
            self.ops.close_file(file)

    # -- reading --------------------------------------------------------------------------------------------------------------

    def read_part(
        self,
        read_id: int,
        key: str,
        fingerprint: Fingerprint,
        offset: int,
        length: int,
        is_last: bool,
        into: memoryview | None = None,
    ) -> bytes | int:
        """Exactly these bytes of a content, or their number if they go `into` a buffer.

        The file stays open under `read_id` until the last part, an error, or `end_read`. After the last part the content is
        compared once more.
        """
        with self._lock:
            if self._ended.pop(read_id, 0) is None:
                raise errors.Cancelled("nobody waits for it any more")
            is_first = read_id not in self._reads
            lent = self._reads.setdefault(read_id, Lent(self.ops.close_file))
        is_over = True
        try:
            with self.translate(key), lent.use((lambda: self._open_content(key)) if is_first else None) as file:
                if is_first:
                    self._compare(file, fingerprint, key)
                data = self._read_exactly(file, offset, length, key, into)
                if is_last:
                    self._compare(file, fingerprint, key)
            is_over = is_last
            return data
        finally:
            if is_over:
                with self._lock:
                    self._reads.pop(read_id, None)
                lent.abandon()

    def end_read(self, read_id: int) -> None:
        """Close what a read has open, now or once its part under way has ended. Also for a read that never began or has ended."""
        with self._lock:
            lent = self._reads.pop(read_id, None)
            if lent is None:
                self._ended[read_id] = None
                if len(self._ended) > _REMEMBERED_ENDS:
                    self._ended.popitem(last=False)
        if lent is not None:
            lent.abandon()

    def _open_content(self, key: str) -> F:
        """The file at `key`. Raises Stale where there is none any more."""
        try:
            with self.parent(key) as (directory, name):
                try:
                    return self.ops.open_file(directory, name)
                except OSError as error:
                    if error.errno != errno.ELOOP or not self.ops.follows_links:
                        raise
                return self.ops.follow(to_bytes(key))
        except OSError as error:
            if error.errno in _NO_TARGET:
                raise errors.Stale("the file is no longer there", subject=key) from None
            raise

    def _compare(self, file: F, fingerprint: Fingerprint, key: str) -> None:
        """Raises Stale unless the open file is the content meant."""
        found = self.ops.stat_file(file)
        if found.kind is not FoundKind.FILE or make_fingerprint(found) != fingerprint:
            raise errors.Stale("the file has changed", subject=key)

    def _read_exactly(self, file: F, offset: int, length: int, key: str, into: memoryview | None) -> bytes | int:
        done = 0
        pieces: list[bytes] = []
        while done < length:
            if into is None:
                piece = self.ops.read(file, offset + done, length - done)
                pieces.append(piece)
                count = len(piece)
            else:
                count = self.ops.read_into(file, offset + done, into[done:length])
            if not count:
                raise errors.Stale("the file has become shorter", subject=key)
            done += count
        if into is not None:
            return done
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # -- for the writer -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def directory(self, prefix: str) -> Iterator[D]:
        """The directory at `prefix` ("" or ending in "/"), for as long as the context lasts."""
        try:
            current = self.ops.open_root()
        except (FileNotFoundError, NotADirectoryError):
            raise errors.StoreMissing("there is no such directory", subject=self.name) from None
        try:
            for part in to_bytes(prefix).split(b"/")[:-1]:
                self._check_name(part)
                try:
                    below = self.ops.open_directory(current, part)
                except NotADirectoryError:
                    raise FileNotFoundError(errno.ENOENT, "not a directory") from None
                self.ops.close_directory(current)
                current = below
            yield current
        finally:
            self.ops.close_directory(current)

    @contextlib.contextmanager
    def parent(self, key: str) -> Iterator[tuple[D, bytes]]:
        """The directory of a key, and its last component."""
        prefix, slash, name = key.rpartition("/")
        raw = to_bytes(name)
        self._check_name(raw)
        with self.directory(prefix + slash) as directory:
            yield directory, raw

    def _check_name(self, name: bytes) -> None:
        """Raises FileNotFoundError for what no entry can be called."""
        if name in {b"", b".", b".."} or b"\0" in name or is_staging(name) or name in self.ops.hidden_names:
            raise FileNotFoundError(errno.ENOENT, "no such name")

    @contextlib.contextmanager
    def translate(self, key: str) -> Iterator[None]:
        """The system's errors as ours."""
        try:
            yield
        except FileNotFoundError:
            raise errors.NotFound("no such file or directory", subject=key) from None
        except PermissionError:
            raise errors.StoreDenied("this process may not do that there", subject=f"{self.name}/{key}") from None
        except OSError as error:
            raise _convert(error, key, f"{self.name}/{key}") from None


# -- pure helpers ----------------------------------------------------------------------------------------------------------------

_NO_TARGET = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EXDEV, errno.EISDIR, errno.ENAMETOOLONG}
"""There is no regular file at a key: nothing, something else, or a link that may not be followed."""


def is_staging(name: bytes) -> bool:
    """Whether a name is that of something we are writing."""
    rest = name.removeprefix(STAGING_PREFIX)
    return len(rest) == 32 and rest != name and all(byte in b"0123456789abcdef" for byte in rest)


def make_fingerprint(found: Found) -> Fingerprint:
    """What stands for a file's content."""
    return Fingerprint(found.token, found.size)


def make_entry(name: bytes, found: Found, now_ns: int) -> StoreEntry:
    """A file's entry."""
    return StoreEntry(to_str(name), Kind.FILE, make_fingerprint(found), found.mtime_ns, _is_trusted(found, now_ns))


def _is_trusted(found: Found, now_ns: int) -> bool:
    # Of the two times ctime is the one that nobody can set back, and no write leaves it alone.
    return now_ns - found.ctime_ns >= _YOUNG_NS


def _read_record(sort_name: bytes, rest: bytes) -> StoreEntry:
    trusted, size, mtime_ns = _FOUND.unpack_from(rest)
    name = to_str(sort_name.removesuffix(b"/"))
    if sort_name.endswith(b"/"):
        return StoreEntry(name, Kind.DIRECTORY, None, mtime_ns)
    return StoreEntry(name, Kind.FILE, Fingerprint(rest[_FOUND.size :].decode(), size), mtime_ns, trusted)


_BY_ERRNO: dict[int, type[errors.AlluxioLikeError]] = {
    errno.ENOSPC: errors.NoSpace,
    errno.EDQUOT: errors.NoSpace,
    errno.EFBIG: errors.NoSpace,
    errno.EROFS: errors.ReadOnly,
    errno.EEXIST: errors.AlreadyExists,
    errno.ENOTEMPTY: errors.DirectoryNotEmpty,
    errno.EISDIR: errors.IsADirectory,
    errno.ENOTDIR: errors.NotADirectory,
    errno.ELOOP: errors.NotFound,
    errno.ENAMETOOLONG: errors.NotFound,
    errno.EXDEV: errors.Unsupported,
}


def _convert(error: OSError, key: str, path: str) -> errors.AlluxioLikeError:
    text = os.strerror(error.errno) if error.errno else str(error)
    made = _BY_ERRNO.get(error.errno or 0)
    if made is not None:
        return made(text.lower(), subject=key)
    return errors.StoreUnavailable(f"the file system failed: {text}", subject=path)
