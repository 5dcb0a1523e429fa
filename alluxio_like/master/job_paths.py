"""Long lists of a job's paths, in the namespace's store, so that they are wherever the job is.

Owns the table `jobl/JOB/FIRST`: pieces of up to 1,024 paths under the number of their first. A list is durable before its job is.
Reading is on the event loop, a piece at a time; writing and removing are short transactions of the writer's thread.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from alluxio_like.kv.api import ReadTransaction, WriteTransaction, get_prefix_stop
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.types import JobId

_PATHS = b"jobl/"
PIECE_PATHS = 1024
PIECE_BYTES = 1 << 20
_REMOVED_AT_ONCE = 100


def _make_prefix(job_id: JobId) -> bytes:
    return _PATHS + job_id.encode() + b"/"


class StoredPaths:
    """`walking.Targets` over a stored list."""

    def __init__(self, meta: MetaStore, job_id: JobId) -> None:
        self._meta = meta
        self._prefix = _make_prefix(job_id)
        self._first = 0
        self._piece: list[str] = []

    def read(self, start: int, limit: int) -> Sequence[str]:
        """Paths `start` to `start + limit - 1`, fewer only at the end."""
        found: list[str] = []
        while len(found) < limit:
            at = start + len(found)
            if not self._first <= at < self._first + len(self._piece):
                with self._meta.read() as txn:
                    self._read_piece(txn, at)
            part = self._piece[at - self._first : at - self._first + limit - len(found)]
            if not part:
                break
            found += part
        return found

    def _read_piece(self, txn: ReadTransaction, at: int) -> None:
        """The piece that a path is in, if it is in any: the last one that begins no later."""
        stop = self._prefix + (at + 1).to_bytes(8, "big")
        for key, raw in txn.scan(self._prefix, stop, limit=1, reverse=True):
            self._first, self._piece = int.from_bytes(key[len(self._prefix) :], "big"), json.loads(raw)


class PathsWriter:
    """Stores a list as it comes in."""

    def __init__(self, meta: MetaStore, job_id: JobId) -> None:
        self._meta = meta
        self._prefix = _make_prefix(job_id)
        self._piece: list[str] = []
        self._piece_bytes = 0
        self._count = 0

    async def add(self, path: str) -> None:
        self._piece.append(path)
        self._piece_bytes += len(path)
        if len(self._piece) == PIECE_PATHS or self._piece_bytes >= PIECE_BYTES:
            await self.finish()

    async def finish(self) -> None:
        """Return when all that was added is stored."""
        if self._piece:
            # As JSON: names that are not UTF-8 come back as they were.
            key, raw = self._prefix + self._count.to_bytes(8, "big"), json.dumps(self._piece).encode("ascii")
            self._count += len(self._piece)
            self._piece, self._piece_bytes = [], 0
            await self._meta.write(lambda txn: txn.put(key, raw))


async def remove_paths(meta: MetaStore, job_id: JobId) -> None:
    """Remove a job's list, if it has any, in small steps."""
    while await meta.write(partial(_remove_some, job_id=job_id)):
        pass


def _remove_some(txn: WriteTransaction, job_id: JobId) -> bool:
    """Whether there is more."""
    prefix = _make_prefix(job_id)
    keys = [key for key, _ in txn.scan(prefix, get_prefix_stop(prefix), limit=_REMOVED_AT_ONCE)]
    for key in keys:
        txn.delete(key)
    return len(keys) == _REMOVED_AT_ONCE


def list_stored(txn: ReadTransaction) -> list[JobId]:
    """The jobs that have a list."""
    found: list[JobId] = []
    start, stop = _PATHS, get_prefix_stop(_PATHS)
    while True:
        pair = next(iter(txn.scan(start, stop, limit=1)), None)
        if pair is None:
            return found
        found.append(JobId(pair[0][len(_PATHS) :].rpartition(b"/")[0].decode()))
        start = get_prefix_stop(_make_prefix(found[-1]))


def take_over_files(meta: MetaStore, directory: Path, known: set[JobId]) -> None:
    """Move the lists that an earlier release kept in files (one JSON string a line) into the store; for the start."""
    for file in directory.glob("*.paths") if directory.is_dir() else ():
        job_id = JobId(file.stem)
        if job_id in known:
            with file.open("rb") as lines:
                paths = [json.loads(line) for line in lines]
            pairs = [
                (_make_prefix(job_id) + at.to_bytes(8, "big"), json.dumps(paths[at : at + PIECE_PATHS]).encode("ascii"))
                for at in range(0, len(paths), PIECE_PATHS)
            ]
            meta.write_now(lambda txn, pairs=pairs: txn.put_many(pairs))  # type: ignore[misc]
        file.unlink()
        file.with_suffix(".index").unlink(missing_ok=True)
