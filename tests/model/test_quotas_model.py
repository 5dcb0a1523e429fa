"""What quotas count beside a walk: whatever programs change, link and move, wherever quotas are set and cleared, and however far
the counting is.

The tree, its store and what programs do are those of test_changes_model.py. At every moment each record must be the sum of what
its directory has counted, and once nothing is queued, a quota's usage is what a walk below it finds.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from alluxio_like.kv.api import ReadTransaction
from alluxio_like.master.core import checking_quotas, quotas, tables, usage
from alluxio_like.master.core.quotas import Quota
from alluxio_like.master.core.usage import Usage
from alluxio_like.types import InodeId, Kind
from tests.model.test_changes_model import ChangesMachine, Node

NO_LIMIT = 1 << 60


class QuotasMachine(ChangesMachine):
    @rule(data=st.data())
    def set_quota(self, data: st.DataObject) -> None:
        node = self.draw_directory(data)
        with self.kv.write() as txn:
            quotas.set_quota(txn, Quota(node.inode, NO_LIMIT, None))

    @rule(data=st.data())
    def clear_quota(self, data: st.DataObject) -> None:
        node = self.draw_directory(data)
        with self.kv.write() as txn:
            quotas.clear_quota(txn, node.inode)

    @rule(limit=st.integers(1, 3))
    def count(self, limit: int) -> None:
        with self.kv.write() as txn:
            quotas.count_some(txn, limit)

    @invariant()
    def records_are_sums(self) -> None:
        with self.kv.read() as txn:
            assert not list(checking_quotas.check(txn))

    def teardown(self) -> None:
        super_kv = self.kv
        with super_kv.write() as txn:
            while quotas.count_some(txn, 5):
                pass
            wanted = {quota.directory for quota in quotas.list_all(txn)}
            for node in self.directories():
                counted = usage.lookup(txn, node.inode)
                assert (counted is not None) == self.is_at_or_below(node, wanted)
                if counted is not None:
                    assert counted == Usage(*self.walk(txn, node)), node
            assert not any(quotas.is_counting(txn, directory) for directory in wanted)
        super().teardown()

    def is_at_or_below(self, node: Node, tops: set[InodeId]) -> bool:
        return any(top.inode in tops and self.is_below(node, top) for top in self.directories())

    def walk(self, txn: ReadTransaction, top: Node) -> tuple[int, int]:
        """Inodes below a directory whose oldest name is below it."""
        files = size_bytes = 0
        for node in self.directories():
            if not self.is_below(node, top):
                continue
            for name, child in node.children.items():
                record = tables.get_inode(txn, child.inode)
                if child.kind is Kind.DIRECTORY or (record.parent, record.name) == (node.inode, name):
                    files += 1
                    size_bytes += record.size if child.kind is not Kind.DIRECTORY else 0
        return files, size_bytes


class RenamingStoreMachine(QuotasMachine):
    renames = True


TestQuotas = QuotasMachine.TestCase
TestQuotas.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestQuotasRenaming = RenamingStoreMachine.TestCase
TestQuotasRenaming.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
