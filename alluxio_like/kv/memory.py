"""The engine that forgets: sorted keys in memory, for tests and for namespaces that need not outlive their process.

Owns snapshots: a commit copies the tables only if a read that began before is still open. Rule of concurrency: as in api.py;
reads from any thread, writes serialised by a lock.
"""

import contextlib
import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence

from alluxio_like import errors
from alluxio_like.kv.api import MAX_KEY_BYTES, Begun, ReadTransaction, WriteTransaction
from alluxio_like.kv.columns import Columns, Numbers, make_columns, scan_runs


class _Table:
    """Pairs with their keys in order; `readers` counts the open snapshots that look at it."""

    __slots__ = ("keys", "readers", "values")

    def __init__(self, keys: list[bytes], values: dict[bytes, bytes]) -> None:
        self.keys = keys
        self.values = values
        self.readers = 0


def _check_key(key: bytes) -> None:
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {len(key)}")


class _Reader:
    """A snapshot."""

    def __init__(self, table: _Table) -> None:
        self._table: _Table | None = table

    def _open(self) -> _Table:
        if self._table is None:
            raise errors.Internal("a transaction is used outside of its block")
        return self._table

    def finish(self) -> None:
        self._table = None

    def get(self, key: bytes) -> bytes | None:
        _check_key(key)
        return self._open().values.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def scan(
        self, start: bytes, stop: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        table = self._open()
        found = table.keys[bisect_left(table.keys, start) : max(bisect_left(table.keys, start), bisect_left(table.keys, stop))]
        if reverse:
            found.reverse()
        for key in found[:limit]:
            yield key, self._open().values[key]

    def scan_columns(self, start: bytes, stop: bytes, *, limit: int | None = None) -> Columns:
        return make_columns(self.scan(start, stop, limit=limit))

    def scan_numbers(self, letter: bytes, numbers: Numbers) -> tuple[Columns, Numbers]:
        return scan_runs(self.scan, letter, numbers)


class _Writer(_Reader):
    """A snapshot with changes over it."""

    def __init__(self, table: _Table) -> None:
        super().__init__(table)
        self.changes: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        _check_key(key)
        table = self._open()
        return self.changes[key] if key in self.changes else table.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        _check_key(key)
        self._open()
        self.changes[key] = bytes(value)

    def put_many(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in pairs:
            self.put(key, value)

    def delete(self, key: bytes) -> bool:
        there = self.get(key) is not None
        if there:
            self.changes[key] = None
        return there

    def scan(
        self, start: bytes, stop: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        changed = {key: value for key, value in self.changes.items() if start <= key < stop}
        pairs = {**dict(super().scan(start, stop)), **changed}
        keys = sorted((key for key, value in pairs.items() if value is not None), reverse=reverse)
        for key in keys[:limit]:
            value = pairs[key]
            assert value is not None
            yield key, value


class MemoryStore:
    """A KeyValueStore in memory."""

    def __init__(self) -> None:
        self._table = _Table([], {})
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._writer: int | None = None
        self._closed = False

    @contextlib.contextmanager
    def read(self) -> Iterator[ReadTransaction]:
        with self._lock:
            self._check_open()
            table = self._table
            table.readers += 1
        reader = _Reader(table)
        try:
            yield reader
        finally:
            reader.finish()
            with self._lock:
                table.readers -= 1

    @contextlib.contextmanager
    def write(self) -> Iterator[WriteTransaction]:
        if self._writer == threading.get_ident():
            raise errors.Internal("a write transaction within another one of the same thread")
        with self._write_lock:
            self._check_open()
            self._writer = threading.get_ident()
            writer = _Writer(self._table)
            try:
                yield writer
                self._commit(writer.changes)
            finally:
                self._writer = None
                writer.finish()

    def _commit(self, changes: dict[bytes, bytes | None]) -> None:
        with self._lock:
            table = self._table
            if table.readers:
                table = _Table(list(table.keys), dict(table.values))
            for key, value in changes.items():
                if value is not None:
                    if key not in table.values:
                        insort(table.keys, key)
                    table.values[key] = value
                elif table.values.pop(key, None) is not None:
                    del table.keys[bisect_left(table.keys, key)]
            self._table = table

    def _check_open(self) -> None:
        if self._closed:
            raise errors.Internal("the key-value store is closed")

    def read_ahead(self, keys: Sequence[bytes]) -> Begun:
        return Begun()

    def read_through(self, may_go_on: Callable[[], bool]) -> None:
        self._check_open()

    def flush(self) -> None:
        self._check_open()

    def keep(self) -> None:
        self._check_open()

    def get_size_bytes(self) -> int:
        with self._lock:
            return sum(len(key) + len(value) for key, value in self._table.values.items())

    def close(self) -> None:
        self._closed = True
