"""How much is below a directory, kept while it changes: files and bytes, of directories that quotas need counted.

Owns the records of usage, what each change of an inode adds to them, and the order in which directories are counted a first time.
Limits are quotas.py's. An inode counts once, where its oldest name is: a file with its size, a directory as one. A directory's
record is the sum over its children so far counted: each of them, and with a directory what its own record says. So a change
touches the records from its directory up to the first that has none. A directory that is to be counted, or not any more, is
queued; below one that has a record none is without one and not queued. Functions over a transaction.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import paths, records
from alluxio_like.master.core.records import Inode, NewFile
from alluxio_like.types import ROOT_INODE, InodeId, Kind

_RECORD = struct.Struct("<qqB")


class Usage(NamedTuple):
    """What was counted below a directory. `cursor`: of its children those filed up to this; None: all."""

    files: int = 0
    size_bytes: int = 0
    cursor: bytes | None = None

    def covers(self, filed: bytes) -> bool:
        """Whether a child is among those that were counted."""
        return self.cursor is None or filed <= self.cursor

    def add(self, files: int, size_bytes: int) -> "Usage":
        return self._replace(files=self.files + files, size_bytes=self.size_bytes + size_bytes)


class Growth(NamedTuple):
    """What a change has added below a directory that is counted, and what is there now."""

    directory: InodeId
    files: int
    size_bytes: int
    now: Usage


def is_on(txn: ReadTransaction) -> bool:
    """Whether anything is counted at all."""
    return txn.get(records.KEY_USAGE) is not None


def lookup(txn: ReadTransaction, directory: InodeId) -> Usage | None:
    """What was counted below a directory; None: it is not counted."""
    data = txn.get(records.usage_key(directory))
    if data is None:
        return None
    files, size_bytes, partly = _RECORD.unpack_from(data)
    return Usage(files, size_bytes, data[_RECORD.size :] if partly else None)


def put(txn: WriteTransaction, directory: InodeId, usage: Usage) -> None:
    txn.put(records.usage_key(directory), pack(usage))


def pack(usage: Usage) -> bytes:
    """A record's bytes."""
    return _RECORD.pack(usage.files, usage.size_bytes, usage.cursor is not None) + (usage.cursor or b"")


def enqueue(txn: WriteTransaction, directory: InodeId) -> None:
    """Have it looked at whether a directory is counted as it should be."""
    if txn.get(records.counting_key(directory)) is None:
        txn.put(records.counting_key(directory), b"")


def forget(txn: WriteTransaction, directory: InodeId) -> None:
    """A directory is gone for good."""
    txn.delete(records.usage_key(directory))
    txn.delete(records.counting_key(directory))
    txn.delete(records.quota_key(directory))


class Tally:
    """What one edit changes; `finish` writes it, after the inodes' records."""

    def __init__(self, txn: WriteTransaction) -> None:
        self._txn = txn
        self._is_on: bool | None = None
        self._usages: dict[InodeId, Usage | None] = {}
        self._deltas: dict[InodeId, list[int]] = {}

    def is_on(self) -> bool:
        if self._is_on is None:
            self._is_on = is_on(self._txn)
        return self._is_on

    def add(self, inode: InodeId, record: Inode) -> None:
        """An inode has come to where its record says. A new directory is counted from the start if the one above it is."""
        self._count(inode, record, 1)

    def take(self, inode: InodeId, record: Inode) -> None:
        """An inode is not where its record says any more."""
        self._count(inode, record, -1)

    def begin_new(self, parent: InodeId, inode: InodeId) -> None:
        """A directory is made, and nothing is below it."""
        if self.is_on() and self._lookup(parent) is not None:
            put(self._txn, inode, Usage())

    def change(self, inode: InodeId, old: Inode, new: Inode) -> None:
        """An inode has another size or another oldest name."""
        is_there = old.parent == new.parent and old.name == new.name
        if (is_there and (old.size == new.size or new.kind is Kind.DIRECTORY)) or not self.is_on():
            return
        self.take(inode, old)
        self.add(inode, new)

    def add_files(self, directory: InodeId, files: Sequence[NewFile]) -> None:
        """Many new files in one directory."""
        usage = self._lookup(directory) if self.is_on() else None
        if usage is not None:
            sizes = [file[1] for file in files if usage.covers(paths.file_name(file[0]))]
            self._note(directory, len(sizes), sum(sizes))

    def finish(self) -> list[Growth]:
        """Write it; where something has grown."""
        net: dict[InodeId, list[int]] = {}
        for directory, (files, size_bytes) in self._deltas.items():
            for at in _list_counted(self._txn, directory):
                total = net.setdefault(at, [0, 0])
                total[0] += files
                total[1] += size_bytes
        self._deltas.clear()
        grown = []
        for at, (files, size_bytes) in net.items():
            if not files and not size_bytes:
                continue
            usage = lookup(self._txn, at)
            assert usage is not None, f"directory {at} was counted a moment ago"
            usage = usage.add(files, size_bytes)
            put(self._txn, at, usage)
            if files > 0 or size_bytes > 0:
                grown.append(Growth(at, files, size_bytes, usage))
        self._usages.clear()
        return grown

    def _count(self, inode: InodeId, record: Inode, sign: int) -> None:
        if not self.is_on():
            return
        above = self._lookup(record.parent)
        below = self._lookup(inode) if record.kind is Kind.DIRECTORY else None
        if sign > 0 and record.kind is Kind.DIRECTORY and (above is None) != (below is None):
            enqueue(self._txn, inode)
        if above is None or not above.covers(paths.file_name(record.sort_name)):
            return
        if record.kind is Kind.DIRECTORY:
            more = below or Usage()
            self._note(record.parent, sign * (1 + more.files), sign * more.size_bytes)
        else:
            self._note(record.parent, sign, sign * record.size)

    def _lookup(self, directory: InodeId) -> Usage | None:
        if directory not in self._usages:
            self._usages[directory] = lookup(self._txn, directory)
        return self._usages[directory]

    def _note(self, directory: InodeId, files: int, size_bytes: int) -> None:
        delta = self._deltas.setdefault(directory, [0, 0])
        delta[0] += files
        delta[1] += size_bytes


def add_below(txn: WriteTransaction, directory: InodeId, files: int, size_bytes: int) -> None:
    """So much more was counted in a directory, by who counts it a first time."""
    for at in _list_counted(txn, directory):
        usage = lookup(txn, at)
        assert usage is not None, f"directory {at} was counted a moment ago"
        put(txn, at, usage.add(files, size_bytes))


def _list_counted(txn: ReadTransaction, directory: InodeId) -> list[InodeId]:
    """The directories whose records hold what is counted in this one: itself, and those above it."""
    found: list[InodeId] = []
    at, usage = directory, lookup(txn, directory)
    while usage is not None:
        found.append(at)
        data = txn.get(records.inode_key(at))
        record = records.unpack_inode(data) if data is not None else None
        if record is None or record.flags & records.ORPHAN or at == ROOT_INODE:
            break
        at, usage = record.parent, lookup(txn, record.parent)
        if usage is not None and not usage.covers(paths.file_name(record.sort_name)):
            break
    return found
