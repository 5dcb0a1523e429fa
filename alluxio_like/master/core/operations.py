"""Results of mutating calls, kept so that a repeat is answered and not executed again.

The result is stored in the transaction that does the work: either both are there after a crash, or neither. Functions over a
transaction, like namespace.py.
"""

from collections.abc import Callable

from alluxio_like import errors
from alluxio_like.kv.api import WriteTransaction

KEEP_NS = 600 * 10**9


def run_once(txn: WriteTransaction, operation_id: str, method: str, now_ns: int, work: Callable[[], bytes]) -> bytes:
    """The stored result of an operation, else that of `work`, which is then stored. An empty id is never stored.

    What `work` raises passes through and nothing is stored (the transaction is aborted with it). Raises InvalidArgument when the
    id was used for another method.
    """
    raise errors.Internal("not built yet")


def purge(txn: WriteTransaction, now_ns: int, limit: int = 1000) -> int:
    """Forget results older than 10 minutes; how many."""
    raise errors.Internal("not built yet")
