"""Results of mutating calls, kept so that a repeat is answered and not executed again.

The result is stored in the transaction that does the work: either both are there after a crash, or neither. Functions over a
transaction, like namespace.py.
"""

import struct
from collections.abc import Callable
from hashlib import blake2b

from alluxio_like import errors
from alluxio_like.kv.api import WriteTransaction

KEEP_NS = 600 * 10**9

_HEAD = struct.Struct(">QH")
_TIME = struct.Struct(">Q")


def _short(operation_id: str) -> bytes:
    """An id of any length as 16 bytes."""
    return blake2b(operation_id.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def run_once(txn: WriteTransaction, operation_id: str, method: str, now_ns: int, work: Callable[[], bytes]) -> bytes:
    """The stored result of an operation, else that of `work`, which is then stored. An empty id is never stored.

    What `work` raises passes through and nothing is stored (the transaction is aborted with it). Raises InvalidArgument when the
    id was used for another method.
    """
    if not operation_id:
        return work()
    short = _short(operation_id)
    stored = txn.get(b"O" + short)
    if stored is not None:
        _, method_bytes = _HEAD.unpack_from(stored)
        name_end = _HEAD.size + method_bytes
        if stored[_HEAD.size : name_end] != method.encode():
            raise errors.InvalidArgument("an operation id was used for another call before", subject=operation_id)
        return stored[name_end:]
    result = work()
    txn.put(b"O" + short, _HEAD.pack(now_ns, len(method.encode())) + method.encode() + result)
    txn.put(b"P" + _TIME.pack(now_ns) + short, b"")
    return result


def purge(txn: WriteTransaction, now_ns: int, limit: int = 1000) -> int:
    """Forget results older than 10 minutes; how many."""
    count = 0
    for key, _ in txn.scan(b"P", b"P" + _TIME.pack(max(0, now_ns - KEEP_NS)), limit=limit):
        txn.delete(b"O" + key[9:])
        txn.delete(key)
        count += 1
    return count
