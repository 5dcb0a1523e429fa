"""What a check of the namespace says, as a test asks it: after whatever step, nothing is wrong and nothing is left over."""

from alluxio_like.kv.api import KeyValueStore
from alluxio_like.master.core import checking


def assert_whole(kv: KeyValueStore) -> None:
    with kv.read() as txn:
        found = list(checking.check(txn))
    assert not found, found
