"""The namespace: names, attributes and contents of all that is known, over a key-value transaction.

Functions over a transaction and a given time (nanoseconds since the epoch); they do no I/O of their own. Reads take any
transaction, changes take a write transaction, and a change is whole when that commits. Rule of concurrency: that of the
transactions; one listing of one directory at a time (`begin_listing`), which its caller sees to.
"""

from collections.abc import Sequence

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction, WriteTransaction
from alluxio_like.master.core.model import Changes, DirState, EntryPage, Listed, ListingPlan, Purged, Resolved, Totals
from alluxio_like.types import Entry, InodeId, MountId


def prepare(txn: WriteTransaction, now_ns: int) -> None:
    """Once at each start of a master: create the root, check the format (FormatTooNew), skip ids that may have been given away."""
    raise errors.Internal("not built yet")


def lookup(txn: ReadTransaction, parent: InodeId, name: str) -> Entry | None:
    """One displayed name in a directory; None: not known (see get_dir_state for whether it does not exist).

    Raises NotFound (no such directory, or it was removed), NotADirectory.
    """
    raise errors.Internal("not built yet")


def get_entry(txn: ReadTransaction, inode: InodeId) -> Entry:
    """An inode by its id, orphans included while they are kept. Raises NotFound."""
    raise errors.Internal("not built yet")


def list_entries(txn: ReadTransaction, directory: InodeId, cursor: bytes = b"", limit: int = 1000) -> EntryPage:
    """Known children, a page at a time, in an order that stays. Raises NotFound, NotADirectory, InvalidArgument (cursor)."""
    raise errors.Internal("not built yet")


def get_dir_state(txn: ReadTransaction, directory: InodeId) -> DirState:
    """Raises NotFound, NotADirectory."""
    raise errors.Internal("not built yet")


def get_key(txn: ReadTransaction, inode: InodeId) -> tuple[MountId, str]:
    """(mount, key): a file's key, or a directory's prefix ("" or ending in "/"); NO_MOUNT gives "". Raises NotFound."""
    raise errors.Internal("not built yet")


def get_path(txn: ReadTransaction, inode: InodeId) -> str:
    """The absolute path under which an inode is shown. Raises NotFound for an orphan and what is below one."""
    raise errors.Internal("not built yet")


def resolve(txn: ReadTransaction, path: str) -> Resolved:
    """An absolute path as far as it is known. Raises InvalidArgument, NotADirectory."""
    raise errors.Internal("not built yet")


def get_totals(txn: ReadTransaction) -> Totals:
    """Sums over the known namespace."""
    raise errors.Internal("not built yet")


def is_pinned(txn: ReadTransaction, inode: InodeId) -> bool:
    """Whether an inode or any directory above it is pinned. Raises NotFound."""
    raise errors.Internal("not built yet")


def set_pinned(txn: WriteTransaction, inode: InodeId, pinned: bool) -> bool:
    """Set an inode's own pin; whether it changed. Raises NotFound."""
    raise errors.Internal("not built yet")


def begin_listing(txn: ReadTransaction, directory: InodeId, now_ns: int) -> ListingPlan:
    """Before the store is first asked. Raises NotFound, NotADirectory, Unsupported (no store stands behind it)."""
    raise errors.Internal("not built yet")


def apply_page(
    txn: WriteTransaction, plan: ListingPlan, after: str | None, page: Sequence[Listed], is_last: bool, now_ns: int
) -> Changes:
    """Apply a listing's next page, which covers the sort names above `after` (None: from the first on) up to its last entry's, or
    to the end if `is_last`. Entries must be strictly ascending by the bytes of sort_name (StoreProtocol). Call with the
    `covered` of the page before as `after`.

    Raises Stale when the directory has been removed or mounted over since the plan was made: give up the listing.
    """
    raise errors.Internal("not built yet")


def apply_stat(txn: WriteTransaction, plan: ListingPlan, raw_name: str, found: Listed | None, now_ns: int) -> Changes:
    """Apply what the store says of one file in a directory (None: not there); the plan was made before the store was asked."""
    raise errors.Internal("not built yet")


def apply_missing(txn: WriteTransaction, plan: ListingPlan, now_ns: int) -> Changes:
    """The store says that the directory itself does not exist: remove it with all below, or leave it empty if a mount hangs on it."""
    raise errors.Internal("not built yet")


def is_covered(name: str, covered: str | None) -> bool:
    """Whether a listing applied up to `covered` has settled a raw name, be it a file or a directory (None: it has ended)."""
    raise errors.Internal("not built yet")


def purge(txn: WriteTransaction, now_ns: int, keep_ns: int = 3600 * 10**9, limit: int = 1000) -> Purged:
    """Forget orphans removed longer than `keep_ns` ago, at most `limit` inodes a call."""
    raise errors.Internal("not built yet")
