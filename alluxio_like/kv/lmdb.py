"""The embedded engine: one LMDB environment in a directory on a local disk.

Owns the environment, its lock (one process at a time), its format number and the growth of its map. Does not know what is stored.

Each first byte of a key that is a letter has its own tree (a named database of LMDB), and so has what lies between. What grows at
its end then fills its pages, whatever lies behind it: with one tree for all they stay half empty (350 bytes an inode instead of
170, bench/namespace_size.py).

Durability: a committed write survives kill -9. Data pages are synced at each commit and the meta page is not (`metasync` off), so
a power loss may undo the last commits since the last flush, in order and without damage; `flush` closes that gap.

Rule of concurrency: reads from any thread at any time, never blocked by the writer; write transactions are serialised by a lock
and stay in the thread that began them. The map is grown only between transactions: at the start of a write, at a moment when
no read of this process is under way (LMDB asks for that), so reads should be short. Reads may fault pages in from the disk.
"""

import bisect
import contextlib
import errno
import fcntl
import functools
import itertools
import operator
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb

from alluxio_like import errors
from alluxio_like.kv.api import MAX_KEY_BYTES, Begun, ReadTransaction, WriteTransaction
from alluxio_like.kv.columns import Columns, Numbers, make_columns, scan_runs
from alluxio_like.kv.lmdb_pages import PageFile, list_behind, open_pages

FORMAT = 1
DEFAULT_MAP_BYTES = 1 << 40
"""Address space only, the file grows with its data: at 200 bytes an inode room for five billion."""
_MIN_MAP_BYTES = 1 << 20
_MAX_READERS = 1024
_CHUNK = 256
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FULL_BYTES = 1 << 20
_GROW_WAIT_S = 5.0
_CLOSE_WAIT_S = 5.0


def _make_groups() -> tuple[int, ...]:
    """For each first byte the number of its tree; trees are in the order of keys."""
    groups = []
    group = 0
    for byte in range(256):
        # A letter begins a tree of its own, and so does what follows a letter.
        if byte and (byte in _LETTERS or byte - 1 in _LETTERS):
            group += 1
        groups.append(group)
    return tuple(groups)


_GROUPS = _make_groups()


def _translate(error: lmdb.Error, path: Path) -> errors.AlluxioLikeError:
    """LMDB's error as one of ours."""
    code = getattr(error, "code", 0)
    if isinstance(error, lmdb.MapFullError) or code in (errno.ENOSPC, errno.EDQUOT):
        return errors.NoSpace("no space left for metadata", subject=str(path))
    if isinstance(error, (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)):
        return errors.Corrupt(f"the metadata store is damaged or none ({error})", subject=str(path))
    if isinstance(error, lmdb.DiskError) or code in (errno.EIO, errno.EROFS):
        # The last piece that fits on a disk is a short write, which LMDB calls an I/O error.
        if os.statvfs(path).f_bavail * os.statvfs(path).f_frsize < _FULL_BYTES:
            return errors.NoSpace("no space left for metadata", subject=str(path))
        return errors.DiskError(f"the disk of the metadata store failed ({error})", subject=str(path))
    if isinstance(error, lmdb.ReadersFullError):
        return errors.Unavailable("too many reads of the metadata store at once", subject=str(path))
    return errors.Internal(f"metadata store: {error}", subject=str(path))


class LmdbTransaction:
    """A read or write transaction; valid within its `with` block only."""

    def __init__(self, store: "LmdbStore", *, write: bool) -> None:
        self._store = store
        self._trees = store.trees
        self._write = write
        self._txn: lmdb.Transaction[bytes] | None = None

    def __enter__(self) -> Self:
        self._txn = self._store.begin(self._write)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        txn, self._txn = self._txn, None
        assert txn is not None
        self._store.end(txn, write=self._write, commit=self._write and kind is None)

    def finish(self, *, commit: bool) -> None:
        """End what `begin_write` gave."""
        self.__exit__(None if commit else InterruptedError, None, None)

    def put_note(self, name: bytes, value: bytes) -> None:
        """Note something beside the keys, in the same transaction; for a store opened with `notes`."""
        assert self._store.notes is not None
        try:
            self._open().put(name, value, db=self._store.notes)
        except lmdb.Error as error:
            raise self._store.fail(error) from error

    def _open(self) -> "lmdb.Transaction[bytes]":
        if self._txn is None:
            raise errors.Internal("a transaction is used outside of its block")
        return self._txn

    def get(self, key: bytes) -> bytes | None:
        _check_key(key)
        try:
            return self._open().get(key, db=self._trees[_GROUPS[key[0]]])
        except lmdb.Error as error:
            raise self._store.fail(error) from error

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if keys:
            _check_key(min(keys, key=len))
            _check_key(max(keys, key=len))
        get = self._open().get
        trees = self._trees
        try:
            return [get(key, db=trees[_GROUPS[key[0]]]) for key in keys]
        except lmdb.Error as error:
            raise self._store.fail(error) from error

    def put(self, key: bytes, value: bytes) -> None:
        _check_key(key)
        try:
            self._open().put(key, value, db=self._trees[_GROUPS[key[0]]])
        except lmdb.Error as error:
            raise self._store.fail(error) from error

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        for key, _ in pairs:
            _check_key(key)
        txn = self._open()
        try:
            for group, same in itertools.groupby(pairs, _get_group):
                run = list(same)
                with txn.cursor(self._trees[group]) as cursor:
                    behind = list_behind(cursor, run, self._store.page_bytes)
                    for key, _ in behind:
                        txn.delete(key, db=self._trees[group])
                    cursor.putmulti(run)
                    cursor.putmulti(behind)
        except lmdb.Error as error:
            raise self._store.fail(error) from error

    def delete(self, key: bytes) -> bool:
        _check_key(key)
        try:
            return self._open().delete(key, db=self._trees[_GROUPS[key[0]]])
        except lmdb.Error as error:
            raise self._store.fail(error) from error

    def scan(
        self, start: bytes, stop: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        # In chunks, each from a fresh cursor: so writes between two of them cannot disturb it, and a scan that is given up holds
        # nothing in the environment.
        left = limit
        for tree in self._get_trees(start, stop, reverse):
            low, high = start, stop
            while left is None or left > 0:
                count = _CHUNK if left is None else min(left, _CHUNK)
                chunk = self._scan_chunk(tree, low, high, count, reverse)
                yield from chunk
                if left is not None:
                    left -= len(chunk)
                if len(chunk) < count:
                    break
                if reverse:
                    high = chunk[-1][0]
                else:
                    low = chunk[-1][0] + b"\0"

    def scan_columns(self, start: bytes, stop: bytes, *, limit: int | None = None) -> Columns:
        trees = self._get_trees(start, stop, False)
        pages = self._store.get_pages() if len(trees) == 1 and not self._write else None
        if pages is None:
            # What a write has changed is not in the file yet.
            return make_columns(self.scan(start, stop, limit=limit))
        return pages.scan(self.get_tree_record(self._trees.index(trees[0])), start, stop, limit)

    def scan_numbers(self, letter: bytes, numbers: Numbers) -> tuple[Columns, Numbers]:
        pages = self._store.get_pages() if not self._write else None
        if pages is None:
            return scan_runs(self.scan, letter, numbers)
        return pages.scan_numbers(self.get_tree_record(_GROUPS[letter[0]]), numbers)

    def get_tree_record(self, group: int) -> bytes:
        """For this module's classes only."""
        try:
            tree = self._open().get(_name_tree(group))
        except lmdb.Error as error:
            raise self._store.fail(error) from error
        assert tree is not None
        return tree

    def _get_trees(self, start: bytes, stop: bytes, reverse: bool) -> "list[lmdb._Database]":
        if start >= stop:
            return []
        first = _GROUPS[start[0]] if start else 0
        trees = self._trees[first : _GROUPS[stop[0]] + 1]
        return trees[::-1] if reverse else trees

    def _scan_chunk(
        self, tree: "lmdb._Database", start: bytes, stop: bytes, count: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        try:
            with self._open().cursor(tree) as cursor:
                # A bound may be longer than any key that LMDB can be asked for.
                if reverse:
                    at = cursor.prev() if cursor.set_range(stop[: MAX_KEY_BYTES + 1]) else cursor.last()
                    for key, value in cursor.iterprev() if at else ():
                        if key < start or len(found) == count:
                            break
                        if key < stop:
                            found.append((key, value))
                elif cursor.set_range(start[:MAX_KEY_BYTES] or b"\0"):
                    pairs = cursor.iternext()
                    found = list(itertools.islice(pairs, count))
                    # What lies before `start` can only have been found by a shortened one.
                    while found and found[0][0] < start:
                        found = [pair for pair in found if pair[0] >= start]
                        found += itertools.islice(pairs, count - len(found))
                    if found and found[-1][0] >= stop:
                        del found[bisect.bisect_left(found, stop, key=_get_key) :]
        except lmdb.Error as error:
            raise self._store.fail(error) from error
        return found


_get_key: Callable[[tuple[bytes, bytes]], bytes] = operator.itemgetter(0)


def _get_group(pair: tuple[bytes, bytes]) -> int:
    return _GROUPS[pair[0][0]]


def _check_key(key: bytes) -> None:
    # LMDB itself refuses such keys when they are put, but not when they are asked for.
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {len(key)}")


class LmdbStore:
    """A KeyValueStore in directory `path`, which is made if it is missing.

    Raises Conflict (another process has it), FormatTooNew, Corrupt, NoSpace, DiskError, AccessDenied. `read_only`: it is there,
    and may be another process's (ConfigError: there is none); a long read then keeps that one from using freed pages again.
    """

    def __init__(self, path: Path, *, map_bytes: int = DEFAULT_MAP_BYTES, notes: bool = False, read_only: bool = False) -> None:
        self._path = path
        self._gate = threading.Condition()
        self._reads = 0
        self._write_lock = threading.Lock()
        self._writer: int | None = None
        self._must_grow = False
        self._lock_fd = -1
        self._env: lmdb.Environment | None = None
        self.trees: list[lmdb._Database] = []
        self.notes: lmdb._Database | None = None
        self._pages: PageFile | None = None
        self._are_pages_known = False
        try:
            if read_only:
                self._open_read_only(path)
                return
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_fd = _lock_directory(path)
            _check_format(path)
            self._env, self._map_bytes = _open_environment(path, map_bytes)
            self._env.reader_check()
            with self._env.begin(write=True) as txn:
                self.trees = [self._env.open_db(_name_tree(group), txn=txn) for group in range(_GROUPS[-1] + 1)]
                if notes:
                    self.notes = self._env.open_db(b"notes", txn=txn)
        except BaseException as error:
            self.close()
            if isinstance(error, lmdb.Error):
                raise _translate(error, path) from error
            if isinstance(error, OSError):
                raise _translate_os(error, path) from error
            raise

    def _open_read_only(self, path: Path) -> None:
        if not (path / "format").exists() or not (path / "data.mdb").exists():
            raise errors.ConfigError("there is no metadata store", subject=str(path))
        _check_format(path)
        self._env, self._map_bytes = _open_environment(path, 0, readonly=True, create=False)
        self.trees = [self._env.open_db(_name_tree(group), create=False) for group in range(_GROUPS[-1] + 1)]

    def read(self) -> contextlib.AbstractContextManager[ReadTransaction]:
        return LmdbTransaction(self, write=False)

    def write(self) -> contextlib.AbstractContextManager[WriteTransaction]:
        return LmdbTransaction(self, write=True)

    def read_ahead(self, keys: Sequence[bytes]) -> Begun:
        pages = self.get_pages()
        if pages is None:
            return Begun()
        groups: dict[int, list[bytes]] = {}
        for key in keys:
            groups.setdefault(_GROUPS[key[0]], []).append(key)
        missing: list[int] = []
        again: list[bytes] = []
        with LmdbTransaction(self, write=False) as txn:
            for group, same in groups.items():
                numbers, waiting = pages.read_ahead(txn.get_tree_record(group), same)
                missing += numbers
                again += waiting
        return Begun(len(missing), functools.partial(pages.wait_read, missing), again) if missing else Begun()

    def begin_write(self) -> LmdbTransaction:
        """A write transaction for who cannot use a `with` block: `finish` must end it."""
        return LmdbTransaction(self, write=True).__enter__()

    def get_pages(self) -> PageFile | None:
        """For this module's transactions only: the pages of the file; None where they are not as we know them."""
        if not self._are_pages_known:
            with self._gate:
                if not self._are_pages_known:
                    try:
                        self._pages = open_pages(self._path / "data.mdb")
                    except OSError as error:
                        raise _translate_os(error, self._path) from error
                    self._are_pages_known = True
        return self._pages

    def get_note(self, name: bytes) -> bytes | None:
        """What a transaction noted; for a store opened with `notes`."""
        assert self.notes is not None
        with self._gate:
            try:
                with self._get_env().begin(self.notes) as txn:
                    return txn.get(name)
            except lmdb.Error as error:
                raise self.fail(error) from error

    def begin(self, write: bool) -> "lmdb.Transaction[bytes]":
        """For this module's transactions only."""
        if write:
            return self._begin_write()
        with self._gate:
            env = self._get_env()
            try:
                txn = env.begin()
            except lmdb.Error as error:
                raise self.fail(error) from error
            self._reads += 1
            return txn

    def _begin_write(self) -> "lmdb.Transaction[bytes]":
        if self._writer == threading.get_ident():
            raise errors.Internal("a write transaction within another one of the same thread")
        self._write_lock.acquire()
        try:
            self._grow_if_tight()
            txn = self._get_env().begin(write=True)
        except BaseException as error:
            self._write_lock.release()
            if isinstance(error, lmdb.Error):
                raise self.fail(error) from error
            raise
        self._writer = threading.get_ident()
        return txn

    def end(self, txn: "lmdb.Transaction[bytes]", *, write: bool, commit: bool) -> None:
        """For this module's transactions only."""
        try:
            if commit:
                txn.commit()
            else:
                txn.abort()
        except lmdb.Error as error:
            raise self.fail(error) from error
        finally:
            if write:
                self._writer = None
                self._write_lock.release()
            else:
                with self._gate:
                    self._reads -= 1
                    if not self._reads:
                        self._gate.notify_all()

    def fail(self, error: lmdb.Error) -> errors.AlluxioLikeError:
        """LMDB's error as one of ours; a full map is grown before the next write."""
        if isinstance(error, lmdb.MapFullError):
            self._must_grow = True
        return _translate(error, self._path)

    def _grow_if_tight(self) -> None:
        """Double the map when the last eighth is begun, so that a write as large as an eighth of the map still fits."""
        info = self._get_env().info()
        used = (info["last_pgno"] + 1) * self.page_bytes
        if not self._must_grow and used < self._map_bytes - self._map_bytes // 8:
            return
        with self._gate:
            # Readers are not held off meanwhile: one that waits for another of the same thread would wait for itself. They are
            # short, so a moment without any comes soon; if none does, the write goes on and may still fit.
            if self._gate.wait_for(lambda: self._reads == 0, timeout=_GROW_WAIT_S):
                try:
                    self._get_env().set_mapsize(self._map_bytes * 2)
                except lmdb.Error:
                    # No address space: go on with what there is until it is full, then NoSpace.
                    return
                self._map_bytes *= 2
                self._must_grow = False

    @property
    def page_bytes(self) -> int:
        return int(self._get_env().stat()["psize"])

    def _get_env(self) -> lmdb.Environment:
        if self._env is None:
            raise errors.Internal("the key-value store is closed", subject=str(self._path))
        return self._env

    def flush(self) -> None:
        try:
            self._get_env().sync(True)
        except lmdb.Error as error:
            raise self.fail(error) from error

    def keep(self) -> None:
        self._get_env()

    def get_size_bytes(self) -> int:
        return (self._path / "data.mdb").stat().st_blocks * 512

    def close(self) -> None:
        """Waits a few seconds for transactions under way, then raises Internal; a second call does nothing."""
        if not self._write_lock.acquire(timeout=_CLOSE_WAIT_S):
            raise errors.Internal("the key-value store is closed during a write", subject=str(self._path))
        try:
            with self._gate:
                # Closing under an open transaction would pull its memory away.
                if not self._gate.wait_for(lambda: self._reads == 0, timeout=_CLOSE_WAIT_S):
                    raise errors.Internal("the key-value store is closed during a read", subject=str(self._path))
                env, self._env = self._env, None
                if env is not None:
                    env.close()
                if self._pages is not None:
                    self._pages.close()
                self._pages, self._are_pages_known = None, True
            fd, self._lock_fd = self._lock_fd, -1
            if fd >= 0:
                os.close(fd)
        finally:
            self._write_lock.release()


def _lock_directory(path: Path) -> int:
    """The open lock file, locked; the kernel unlocks it when the process ends, however it ends."""
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise errors.Conflict(f"process {owner or 'unknown'} has the metadata store open", subject=str(path)) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _check_format(path: Path) -> None:
    """Read the format number, or write it into a new directory."""
    file = path / "format"
    if not file.exists():
        if (path / "data.mdb").exists():
            raise errors.Corrupt(
                "data.mdb is there without a format number: not a metadata store of this software", subject=str(path)
            )
        partial = path / "format.new"
        with open(partial, "w", encoding="ascii") as out:
            out.write(f"{FORMAT}\n")
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return
    text = file.read_text(encoding="ascii", errors="replace").strip()
    if not text.isdecimal():
        raise errors.Corrupt("the format number of the metadata store cannot be read", subject=str(file))
    if int(text) > FORMAT:
        raise errors.FormatTooNew(
            f"written by a newer release (format {text}; this one reads up to {FORMAT}); use that release", subject=str(path)
        )


def _name_tree(group: int) -> bytes:
    return b"%02d" % group


def _open_environment(path: Path, map_bytes: int, **more: Any) -> tuple[lmdb.Environment, int]:
    """Open with as large a map as the address space allows (RLIMIT_AS, vm.overcommit_memory)."""
    settings: dict[str, Any] = {
        **more,
        "metasync": False,
        "max_readers": _MAX_READERS,
        "mode": 0o600,
        "readahead": False,
        "max_dbs": _GROUPS[-1] + 2,
    }
    while True:
        try:
            env = lmdb.open(str(path), map_size=map_bytes, **settings)
        except lmdb.Error as error:
            if getattr(error, "code", 0) != errno.ENOMEM or map_bytes // 2 < _MIN_MAP_BYTES:
                raise
            map_bytes //= 2
        else:
            # What is there already may be larger than the map asked for; then LMDB maps all of it.
            return env, int(env.info()["map_size"])


def _translate_os(error: OSError, path: Path) -> errors.AlluxioLikeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.NoSpace("no space left for metadata", subject=str(path))
    if error.errno in (errno.EACCES, errno.EPERM):
        return errors.AccessDenied("no access to the directory of the metadata store", subject=str(path))
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return errors.ConfigError("the metadata store must be a directory", subject=str(path))
    return errors.DiskError(f"the metadata store cannot be opened ({error.strerror})", subject=str(path))
