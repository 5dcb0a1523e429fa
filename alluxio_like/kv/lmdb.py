"""The embedded engine: one LMDB environment in a directory on a local disk.

Owns the environment and the growth of its map; its lock and format number are in lmdb_home.py. Does not know what is stored.

Each first byte of a key that is a letter has its own tree (a named database of LMDB), and so has what lies between. What grows at
its end then fills its pages, whatever lies behind it: with one tree for all they stay half empty (350 bytes an inode instead of
170, bench/namespace_size.py). Long runs of pairs of some letters are packed, and have another tree each (lmdb_blocks.py): a pair
is in one of the two, and whoever asks here finds it, wherever it is.

Durability: a committed write survives kill -9. Data pages are synced at each commit and the meta page is not (`metasync` off), so
a power loss may undo the last commits since the last flush, in order and without damage; `flush` closes that gap.

Rule of concurrency: reads from any thread at any time, never blocked by the writer; write transactions are serialised by a lock
and stay in the thread that began them. The map is grown only between transactions: at the start of a write, at a moment when
no read of this process is under way (LMDB asks for that), so reads should be short. Reads may fault pages in from the disk.
"""

import bisect
import contextlib
import errno
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
import numpy as np

from alluxio_like import errors
from alluxio_like.kv.api import MAX_KEY_BYTES, Begun, ReadTransaction, WriteTransaction
from alluxio_like.kv.columns import Columns, Numbers, find_runs, get_number_stop, make_columns, merge_columns, pick, scan_runs
from alluxio_like.kv.lmdb_blocks import Blocks, get_packed
from alluxio_like.kv.lmdb_home import check_format, lock_directory, translate_os_error
from alluxio_like.kv.lmdb_pages import PAGE_HEAD_BYTES, PageFile, list_behind, open_pages
from alluxio_like.kv.packing import unpack_columns

PACKED_LETTERS = b"DI"
"""Of the namespace's tables those that hold nearly all pairs, names and inodes: most come in runs and stay as they are."""
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
        group = _GROUPS[key[0]]
        try:
            txn = self._open()
            value = txn.get(key, db=self._trees[group])
            if value is None and (tree := self._store.blocks[group]) is not None:
                return get_packed(txn, tree, key)
            return value
        except lmdb.Error as error:
            raise self._store.fail(error) from error

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if keys:
            _check_key(min(keys, key=len))
            _check_key(max(keys, key=len))
        get = self._open().get
        trees = self._trees
        try:
            values = [get(key, db=trees[_GROUPS[key[0]]]) for key in keys]
            for group in {_GROUPS[key[0]] for key in keys}:
                if (blocks := self._get_blocks(group)) is not None:
                    for row, key in enumerate(keys):
                        if values[row] is None and _GROUPS[key[0]] == group:
                            values[row] = blocks.get_again(key)
            return values
        except lmdb.Error as error:
            raise self._store.fail(error) from error

    def put(self, key: bytes, value: bytes) -> None:
        _check_key(key)
        group = _GROUPS[key[0]]
        try:
            if (blocks := self._get_blocks(group)) is not None:
                blocks.remove(key)
            self._open().put(key, value, db=self._trees[group])
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
                    if (blocks := self._get_blocks(group)) is not None:
                        if blocks.put_run(run, cursor, self._store.page_bytes - PAGE_HEAD_BYTES):
                            continue
                        blocks.remove_all([key for key, _ in run])
                    behind = list_behind(cursor, run, self._store.page_bytes)
                    for key, _ in behind:
                        txn.delete(key, db=self._trees[group])
                    cursor.putmulti(run)
                    cursor.putmulti(behind)
        except lmdb.Error as error:
            raise self._store.fail(error) from error

    def delete(self, key: bytes) -> bool:
        _check_key(key)
        group = _GROUPS[key[0]]
        try:
            if self._open().delete(key, db=self._trees[group]):
                return True
            blocks = self._get_blocks(group)
            return blocks is not None and blocks.remove(key)
        except lmdb.Error as error:
            raise self._store.fail(error) from error

    def scan(
        self, start: bytes, stop: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        # In chunks, each from a fresh cursor: so writes between two of them cannot disturb it, and a scan that is given up holds
        # nothing in the environment.
        left = limit
        for group in self._list_groups(start, stop, reverse):
            low, high = start, stop
            while left is None or left > 0:
                count = _CHUNK if left is None else min(left, _CHUNK)
                chunk = self._scan_group(group, low, high, count, reverse)
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
        groups = self._list_groups(start, stop, False)
        pages = self._store.get_pages() if len(groups) == 1 and not self._write else None
        if pages is None:
            # What a write has changed is not in the file yet.
            return make_columns(self.scan(start, stop, limit=limit))
        found = pages.scan(self.get_tree_record(_name_tree(groups[0])), start, stop, limit)
        if (blocks := self._get_blocks(groups[0])) is None:
            return found
        try:
            found = merge_columns(found, unpack_columns(blocks.list_blocks(start, stop, limit)))
        except lmdb.Error as error:
            raise self._store.fail(error) from error
        return found if limit is None else found.cut(0, limit)

    def scan_numbers(self, letter: bytes, numbers: Numbers) -> tuple[Columns, Numbers]:
        pages = self._store.get_pages() if not self._write else None
        if pages is None:
            return scan_runs(self.scan, letter, numbers)
        group = _GROUPS[letter[0]]
        found, own = pages.scan_numbers(self.get_tree_record(_name_tree(group)), numbers)
        if (blocks := self._get_blocks(group)) is None:
            return found, own
        packed: list[bytes] = []
        firsts, lasts = find_runs(numbers)
        try:
            for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
                packed += blocks.list_blocks(letter + first.to_bytes(8, "big"), get_number_stop(letter, last), None)
        except lmdb.Error as error:
            raise self._store.fail(error) from error
        if not packed:
            return found, own
        found = merge_columns(found, unpack_columns(packed))
        return found, pick(found.data, found.key_starts + 1, ">u8").astype(np.uint64)

    def _get_blocks(self, group: int) -> Blocks | None:
        """The packed pairs of this tree's letter; None where none are."""
        tree = self._store.blocks[group]
        return Blocks(self._open(), tree) if tree is not None else None

    def get_tree_record(self, name: bytes) -> bytes:
        """For this module's classes only."""
        try:
            tree = self._open().get(name)
        except lmdb.Error as error:
            raise self._store.fail(error) from error
        assert tree is not None
        return tree

    def _list_groups(self, start: bytes, stop: bytes, reverse: bool) -> range:
        if start >= stop:
            return range(0)
        groups = range(_GROUPS[start[0]] if start else 0, _GROUPS[stop[0]] + 1)
        return groups[::-1] if reverse else groups

    def _scan_group(self, group: int, start: bytes, stop: bytes, count: int, reverse: bool) -> list[tuple[bytes, bytes]]:
        found = self._scan_chunk(self._trees[group], start, stop, count, reverse)
        blocks = self._get_blocks(group)
        if blocks is None:
            return found
        try:
            packed = blocks.list_pairs(start, stop, count, reverse)
        except lmdb.Error as error:
            raise self._store.fail(error) from error
        if not found or not packed:
            return found or packed
        # Each is in order, so that this merges them.
        return sorted(found + packed, key=_get_key, reverse=reverse)[:count]

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
        self.blocks: list[lmdb._Database | None] = []
        """Those of the trees whose letter is packed, by the same numbers."""
        self.notes: lmdb._Database | None = None
        self._pages: PageFile | None = None
        self._are_pages_known = False
        try:
            if read_only:
                self._open_read_only(path)
                return
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_fd = lock_directory(path)
            check_format(path)
            self._env, self._map_bytes = _open_environment(path, map_bytes)
            self._env.reader_check()
            with self._env.begin(write=True) as txn:
                self.trees = [self._env.open_db(_name_tree(group), txn=txn) for group in range(_GROUPS[-1] + 1)]
                self.blocks = [None] * len(self.trees)
                for letter in PACKED_LETTERS:
                    self.blocks[_GROUPS[letter]] = self._env.open_db(_name_blocks(_GROUPS[letter]), txn=txn)
                if notes:
                    self.notes = self._env.open_db(b"notes", txn=txn)
        except BaseException as error:
            self.close()
            if isinstance(error, lmdb.Error):
                raise _translate(error, path) from error
            if isinstance(error, OSError):
                raise translate_os_error(error, path) from error
            raise

    def _open_read_only(self, path: Path) -> None:
        if not (path / "format").exists() or not (path / "data.mdb").exists():
            raise errors.ConfigError("there is no metadata store", subject=str(path))
        check_format(path, is_read_only=True)
        self._env, self._map_bytes = _open_environment(path, 0, readonly=True, create=False)
        self.trees = [self._env.open_db(_name_tree(group), create=False) for group in range(_GROUPS[-1] + 1)]
        self.blocks = [None] * len(self.trees)
        for letter in PACKED_LETTERS:
            with contextlib.suppress(lmdb.NotFoundError):  # of a release that packed nothing
                self.blocks[_GROUPS[letter]] = self._env.open_db(_name_blocks(_GROUPS[letter]), create=False)

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
                ways = [pages.read_ahead(txn.get_tree_record(_name_tree(group)), same)]
                if self.blocks[group] is not None:
                    ways.append(pages.read_ahead(txn.get_tree_record(_name_blocks(group)), same, is_behind=True))
                for numbers, waiting in ways:
                    missing += numbers
                    again += waiting
        return Begun(len(missing), functools.partial(pages.wait_read, missing), again) if missing else Begun()

    def read_through(self, may_go_on: Callable[[], bool]) -> None:
        self._get_env()
        piece = bytearray(1 << 20)
        try:
            with open(self._path / "data.mdb", "rb", buffering=0) as data:
                while may_go_on() and data.readinto(piece):
                    pass
        except OSError as error:
            raise translate_os_error(error, self._path) from error

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
                        raise translate_os_error(error, self._path) from error
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


def _name_tree(group: int) -> bytes:
    return b"%02d" % group


def _name_blocks(group: int) -> bytes:
    return b"%02d packed" % group


def _open_environment(path: Path, map_bytes: int, **more: Any) -> tuple[lmdb.Environment, int]:
    """Open with as large a map as the address space allows (RLIMIT_AS, vm.overcommit_memory)."""
    settings: dict[str, Any] = {
        **more,
        "metasync": False,
        "max_readers": _MAX_READERS,
        "mode": 0o600,
        "readahead": False,
        "max_dbs": _GROUPS[-1] + 2 + len(PACKED_LETTERS),
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
