"""A large directory's entries in order, in bounded memory.

Owns the records of one listing between its pages: up to a limit in memory, beyond it sorted runs in an unlinked temporary file,
which are merged as they are read. POSIX systems list in no order, so the whole directory is read before its first page; `fill`
does that in slices of time. One thread at a time.
"""

import heapq
import os
import tempfile
import time
from bisect import bisect_left
from collections.abc import Generator, Iterator
from typing import IO

MAX_IN_MEMORY = 100_000
"""Records kept in memory: about 15 MB. A guess."""
_BLOCK_BYTES = 64 << 10
_LENGTH_BYTES = 4


class SortedNames:
    """Records are `sort_name + NUL + anything`; names have no NUL, so records are in the order of their names."""

    def __init__(self, source: Generator[bytes, None, None], max_in_memory: int = MAX_IN_MEMORY) -> None:
        self._source: Generator[bytes, None, None] | None = source
        self._max_in_memory = max_in_memory
        self._records: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._runs: list[tuple[int, int]] = []
        self._merged: Iterator[bytes] = iter(())
        self._ahead: bytes | None = None
        self._last = b""

    def fill(self, until_s: float) -> bool:
        """Go on reading the directory until `time.monotonic()` is `until_s`; True once all of it is read."""
        if self._source is None:
            return True
        for count, record in enumerate(self._source, 1):
            self._records.append(record)
            if len(self._records) >= self._max_in_memory:
                self._spill()
            if count % 256 == 0 and time.monotonic() >= until_s:
                return False
        self._source = None
        if self._runs:
            self._spill()
            self._rewind()
        else:
            self._records.sort()
        return True

    def take(self, after: bytes, count: int) -> tuple[list[bytes], bool]:
        """The next records whose names lie behind `after`, at most `count`, and whether they are the last."""
        if not self._runs:
            # Records of the name `after` itself go on with \0, and those of names that begin with it with a greater byte.
            start = bisect_left(self._records, after + b"\1") if after else 0
            taken = self._records[start : start + count]
            return taken, start + count >= len(self._records)
        if after != self._last:
            self._rewind()
        taken = []
        while self._ahead is not None and len(taken) < count:
            if not after or _get_name(self._ahead) > after:
                taken.append(self._ahead)
            self._ahead = next(self._merged, None)
        if taken:
            self._last = _get_name(taken[-1])
        return taken, self._ahead is None

    def close(self) -> None:
        """Let go of the directory and the file. Idempotent."""
        if self._source is not None:
            self._source.close()
            self._source = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="alluxio-like-listing-")  # noqa: SIM115 - closed by close()
        self._records.sort()
        start = self._runs[-1][1] if self._runs else 0
        data = b"".join(part for record in self._records for part in (len(record).to_bytes(_LENGTH_BYTES), record))
        self._file.write(data)
        self._file.flush()
        self._runs.append((start, start + len(data)))
        self._records.clear()

    def _rewind(self) -> None:
        self._merged = heapq.merge(*[self._read_run(*run) for run in self._runs])
        self._ahead = next(self._merged, None)
        self._last = b""

    def _read_run(self, position: int, end: int) -> Iterator[bytes]:
        assert self._file is not None
        fd = self._file.fileno()
        block = b""
        at = 0
        while True:
            length = int.from_bytes(block[at : at + _LENGTH_BYTES]) if len(block) - at >= _LENGTH_BYTES else -1
            if 0 <= length <= len(block) - at - _LENGTH_BYTES:
                at += _LENGTH_BYTES
                yield block[at : at + length]
                at += length
                continue
            if position >= end:
                return
            more = os.pread(fd, min(_BLOCK_BYTES, end - position), position)
            if not more:
                raise OSError("a listing's temporary file has become shorter")
            position += len(more)
            block, at = block[at:] + more, 0


def _get_name(record: bytes) -> bytes:
    return record.partition(b"\0")[0]
