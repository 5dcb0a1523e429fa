"""Quotas: how many files and bytes there may be below a directory, and the first count of what is there.

Owns the limits, what they refuse and what they leave, and the counting of directories in small steps while the tree changes. What
is there is usage.py's. Functions over a transaction.

A quota refuses what would make more of what is counted than it allows, and a new name where it is full; it never refuses to make
less. While a count is under way it knows of too little, and refuses too late. What a store lists is counted and never refused.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core import namespace, paths, records, tables, usage
from alluxio_like.master.core.usage import Growth, Usage
from alluxio_like.types import ROOT_INODE, SNAPSHOT_SHIFT, InodeId, Kind

MAX_QUOTAS = 100_000
_LOOKED_AT = 1000
_NEARLY = 0.9
COUNTED_AT_ONCE = 1000
"""Names that a step of counting looks at: some 5 ms of the thread that writes. A guess."""


class Quota(NamedTuple):
    """Limits of a directory with all below it; None: none."""

    directory: InodeId
    max_bytes: int | None
    max_files: int | None


class Room(NamedTuple):
    """What the tightest quotas of a place allow and what is there; None: none limits it."""

    max_bytes: int | None = None
    used_bytes: int = 0
    max_files: int | None = None
    used_files: int = 0

    @property
    def free_bytes(self) -> int | None:
        return None if self.max_bytes is None else max(0, self.max_bytes - self.used_bytes)

    @property
    def free_files(self) -> int | None:
        return None if self.max_files is None else max(0, self.max_files - self.used_files)


def set_quota(txn: WriteTransaction, quota: Quota) -> None:
    """Give a directory a quota, or another one. Raises NotFound, NotADirectory, ReadOnly, InvalidArgument."""
    if quota.directory >> SNAPSHOT_SHIFT:
        raise errors.ReadOnly("what is below .snapshots is frozen, and has no quota: set it on the directory itself")
    tables.get_directory(txn, quota.directory)
    if quota.max_bytes is None and quota.max_files is None:
        raise errors.InvalidArgument("a quota limits bytes, files or both: name --bytes or --files")
    if (quota.max_bytes or 0) < 0 or (quota.max_files or 0) < 0:
        raise errors.InvalidArgument("a quota is not below zero")
    if lookup(txn, quota.directory) is None and len(list_all(txn)) >= MAX_QUOTAS:
        raise errors.InvalidArgument(f"there are at most {MAX_QUOTAS} quotas: clear some")
    txn.put(records.quota_key(quota.directory), json.dumps([quota.max_bytes, quota.max_files]).encode())
    txn.put(records.KEY_USAGE, b"")
    usage.enqueue(txn, quota.directory)


def clear_quota(txn: WriteTransaction, directory: InodeId) -> bool:
    """Take a directory's quota away; whether it had one. What was counted for it goes in the background."""
    if not txn.delete(records.quota_key(directory)):
        return False
    usage.enqueue(txn, directory)
    return True


def lookup(txn: ReadTransaction, directory: InodeId) -> Quota | None:
    """A directory's own quota."""
    data = txn.get(records.quota_key(directory))
    return None if data is None else Quota(directory, *json.loads(data))


def list_all(txn: ReadTransaction) -> list[Quota]:
    """All quotas of directories that are there, by their inodes."""
    found = []
    for key, data in txn.scan(b"F", b"G"):
        inode = InodeId(int.from_bytes(key[1:9], "big"))
        # (Below a directory that was removed none are left, though they are forgotten later.)
        if namespace.lookup_path(txn, inode) is not None:
            found.append(Quota(inode, *json.loads(data)))
    return found


def list_above(txn: ReadTransaction, directory: InodeId) -> list[Quota]:
    """Those that hold at a directory: its own and those of the directories above."""
    return [quota for quota, _ in _iter_quotas(txn, directory)]


def is_counting(txn: ReadTransaction, directory: InodeId) -> bool:
    """Whether what is known to be below a directory is not all counted yet."""
    queued = list(txn.scan(b"R", b"S", limit=_LOOKED_AT))
    return len(queued) == _LOOKED_AT or any(
        tables.is_below(txn, InodeId(int.from_bytes(key[1:9], "big")), directory) for key, _ in queued
    )


def get_usage(txn: ReadTransaction, directory: InodeId) -> Usage:
    """What was counted below a directory so far."""
    return usage.lookup(txn, directory) or Usage()


def get_room(txn: ReadTransaction, inode: InodeId) -> Room:
    """What quotas leave at an inode: of its own directory and of those above, the ones that leave least."""
    room = Room()
    if not usage.is_on(txn):
        return room
    for quota, used in _iter_quotas(txn, inode):
        if quota.max_bytes is not None:
            free = room.free_bytes
            if free is None or quota.max_bytes - used.size_bytes < free:
                room = room._replace(max_bytes=quota.max_bytes, used_bytes=used.size_bytes)
        if quota.max_files is not None:
            free = room.free_files
            if free is None or quota.max_files - used.files < free:
                room = room._replace(max_files=quota.max_files, used_files=used.files)
    return room


def list_warnings(txn: ReadTransaction, limit: int = 20) -> list[str]:
    """The first quotas of which nine tenths are used, a line each."""
    warnings: list[str] = []
    for quota in list_all(txn):
        used = get_usage(txn, quota.directory)
        for what, most, now in (("bytes", quota.max_bytes, used.size_bytes), ("files", quota.max_files, used.files)):
            if most is not None and now >= _NEARLY * most and len(warnings) < limit:
                warnings.append(f"quota of {_show_path(txn, quota.directory)}: {now:,} of {most:,} {what} are used")
    return warnings


def check(txn: ReadTransaction, grown: list[Growth]) -> None:
    """Raises QuotaExceeded where a change has made more than a quota allows, or has put something where it was full."""
    for growth in grown:
        over = _find_excess(txn, growth)
        if over:
            raise errors.QuotaExceeded(
                f"the quota of {over} is used up: remove something, or give it more with `alluxio-like quota set`",
                subject=_show_path(txn, growth.directory),
            )


def is_exceeded(txn: ReadTransaction, grown: list[Growth]) -> bool:
    """Whether a change has made more than a quota allows."""
    return any(_find_excess(txn, growth) for growth in grown)


def _find_excess(txn: ReadTransaction, growth: Growth) -> str:
    quota = lookup(txn, growth.directory)
    if quota is None:
        return ""
    before = growth.now.size_bytes - growth.size_bytes
    if quota.max_bytes is not None:
        is_full = growth.files > 0 and growth.size_bytes >= 0 and before >= quota.max_bytes
        if is_full or (growth.size_bytes > 0 and growth.now.size_bytes > quota.max_bytes):
            return f"{quota.max_bytes:,} bytes"
    if quota.max_files is not None and growth.files > 0 and growth.now.files > quota.max_files:
        return f"{quota.max_files:,} files"
    return ""


def _iter_quotas(txn: ReadTransaction, inode: InodeId) -> Iterator[tuple[Quota, Usage]]:
    at = inode
    while True:
        record = tables.lookup_inode(txn, at)
        if record is None or record.flags & records.ORPHAN:
            return
        quota = lookup(txn, at) if record.kind is Kind.DIRECTORY else None
        if quota is not None:
            yield quota, get_usage(txn, at)
        if at == ROOT_INODE:
            return
        at = record.parent


def _show_path(txn: ReadTransaction, directory: InodeId) -> str:
    parts = []
    at = directory
    while at != ROOT_INODE:
        record = tables.get_inode(txn, at)
        parts.append(record.name)
        at = record.parent
    return "/" + b"/".join(reversed(parts)).decode("utf-8", "replace")


# Counting


def is_queued(txn: ReadTransaction) -> bool:
    """Whether there is anything to count."""
    return next(iter(txn.scan(b"R", b"S", limit=1)), None) is not None


def count_some(txn: WriteTransaction, limit: int = COUNTED_AT_ONCE) -> bool:
    """Go on with what is queued, about `limit` names a call; whether there is more."""
    left = limit
    for key, cursor in list(txn.scan(b"R", b"S", limit=limit)):
        if left <= 0:
            return True
        left -= 1 + _settle(txn, InodeId(int.from_bytes(key[1:9], "big")), cursor, left)
    return is_queued(txn)


def _settle(txn: WriteTransaction, directory: InodeId, cursor: bytes, limit: int) -> int:
    """Have a directory counted if it should be, or not any more; how many of its names were looked at."""
    record = tables.lookup_inode(txn, directory)
    if record is None or record.kind is not Kind.DIRECTORY or record.flags & records.ORPHAN:
        txn.delete(records.counting_key(directory))
        return 0
    is_below_counted = directory != ROOT_INODE and usage.lookup(txn, record.parent) is not None
    if is_below_counted or lookup(txn, directory) is not None:
        return _count(txn, directory, limit)
    return _uncount(txn, directory, cursor, limit)


def _count(txn: WriteTransaction, directory: InodeId, limit: int) -> int:
    known = usage.lookup(txn, directory)
    if known is None:
        known = Usage(cursor=b"")
        usage.put(txn, directory, known)
    if known.cursor is None:
        txn.delete(records.counting_key(directory))
        return 0
    table = tables.get_table(txn, directory)
    names = _list_names(txn, table, known.cursor, limit)
    files = size_bytes = 0
    for filed, inode in names:
        record = tables.get_inode(txn, inode)
        if record.kind is Kind.DIRECTORY:
            below = usage.lookup(txn, inode)
            files += 1 + (below.files if below is not None else 0)
            size_bytes += below.size_bytes if below is not None else 0
            if below is None:
                usage.enqueue(txn, inode)
        elif record.parent == directory and paths.file_name(record.sort_name) == filed:
            files += 1
            size_bytes += record.size
    is_last = len(names) < limit
    usage.put(txn, directory, known._replace(cursor=None if is_last else names[-1][0]))
    usage.add_below(txn, directory, files, size_bytes)
    if is_last:
        txn.delete(records.counting_key(directory))
    return len(names)


def _uncount(txn: WriteTransaction, directory: InodeId, cursor: bytes, limit: int) -> int:
    if txn.delete(records.usage_key(directory)):
        cursor = b""
    names = _list_names(txn, tables.get_table(txn, directory), cursor, limit)
    for _, inode in names:
        if usage.lookup(txn, inode) is not None:
            usage.enqueue(txn, inode)
    if len(names) < limit:
        txn.delete(records.counting_key(directory))
    else:
        txn.put(records.counting_key(directory), names[-1][0])
    return len(names)


def _list_names(txn: ReadTransaction, table: int, after: bytes, limit: int) -> list[tuple[bytes, InodeId]]:
    start = records.dentry_key(table, after + b"\0" if after else b"")
    found = txn.scan(start, records.dentry_stop(table), limit=limit)
    return [(key[9:], InodeId(records.unpack_id(data))) for key, data in found]
