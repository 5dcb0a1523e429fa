"""Room that is claimed for files being written, which the namespace does not know of before they are sealed.

Owns the claims, in memory: what a file may grow to, so that many who write at once do not all get the same room. A claim
ends when its file is sealed, or after a minute in which nobody renewed it; after a restart of the master all are gone, and are
claimed again. Deterministic: time is given. Rule of concurrency: one at a time.
"""

from collections.abc import Iterator

from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import quotas, records, tables
from alluxio_like.types import InodeId

KEEP_S = 60.0


class Claims:
    """By inode: the size that it may grow to, and until when that is kept for it."""

    def __init__(self) -> None:
        self._claims: dict[InodeId, tuple[int, float]] = {}

    def claim(self, txn: ReadTransaction, inode: InodeId, size: int, now_s: float, *, only_asks: bool = False) -> int | None:
        """The size up to `size` that a file may have now; None: no quota limits it."""
        record = tables.lookup_inode(txn, inode)
        if record is None or record.flags & records.ORPHAN:
            return None
        limits = [one for one in quotas.list_above(txn, inode) if one.max_bytes is not None]
        if not limits:
            return None
        allowed = size
        for quota in limits:
            assert quota.max_bytes is not None
            taken = quotas.get_usage(txn, quota.directory).size_bytes
            taken += sum(self._iter_claimed(txn, quota.directory, inode, now_s))
            allowed = min(allowed, record.size + max(0, quota.max_bytes - taken))
        if not only_asks and allowed > record.size:
            self._claims[inode] = allowed, now_s + KEEP_S
        return allowed

    def end(self, inode: InodeId) -> None:
        """A file was sealed: what is in it is counted by now."""
        self._claims.pop(inode, None)

    def _iter_claimed(self, txn: ReadTransaction, directory: InodeId, but: InodeId, now_s: float) -> Iterator[int]:
        for inode, (size, until_s) in list(self._claims.items()):
            if until_s <= now_s:
                del self._claims[inode]
            elif inode != but and tables.is_below(txn, inode, directory):
                record = tables.lookup_inode(txn, inode)
                yield max(0, size - record.size) if record is not None else 0
