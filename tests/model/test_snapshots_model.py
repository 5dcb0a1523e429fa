"""Snapshots beside copies: whatever changes, is deleted and collected in whatever order, each snapshot is what was copied."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alluxio_like.kv.api import ReadTransaction
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import namespace, records, snapshots
from alluxio_like.types import ROOT_INODE, InodeId

TABLES = [int(ROOT_INODE), 40, 41]
LONG = b"l" * 470
NAMES = [b"a", b"a\0", b"a\0\1", b"a\1", b"b", b"n\xff", LONG[:445], LONG[:445] + b"1", LONG[:445] + b"2", LONG]
KEYS = [records.dentry_key(table, name) for table in TABLES for name in NAMES] + [
    records.inode_key(InodeId(n)) for n in TABLES[1:]
]


class SnapshotsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.copies: dict[int, dict[bytes, bytes]] = {}
        self.dead: dict[int, bytes] = {}
        self.names = 0

    @initialize()
    def prepare(self) -> None:
        with self.store.write() as txn:
            namespace.prepare(txn, 1)
            txn.put(records.KEY_NEXT_INODE, records.pack_id(100))

    @rule(key=st.sampled_from(KEYS), value=st.binary(max_size=2))
    def put(self, key: bytes, value: bytes) -> None:
        with self.store.write() as txn:
            snapshots.record(txn).put(key, value)

    @rule(pairs=st.lists(st.tuples(st.sampled_from(KEYS), st.binary(max_size=2)), max_size=4))
    def put_many(self, pairs: list[tuple[bytes, bytes]]) -> None:
        with self.store.write() as txn:
            snapshots.record(txn).put_many(pairs)

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key: bytes) -> None:
        with self.store.write() as txn:
            snapshots.record(txn).delete(key)

    @rule()
    @precondition(lambda self: len(self.copies) < 4)
    def freeze(self) -> None:
        self.names += 1
        with self.store.write() as txn:
            made = snapshots.create(txn, ROOT_INODE, f"s{self.names}", 1)
            self.copies[made.number] = self.read_all(txn)

    @rule(data=st.data())
    @precondition(lambda self: self.copies)
    def drop(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.copies)))
        del self.copies[number]
        self.dead[number] = b""
        with self.store.write() as txn:
            snapshots.delete(txn, snapshots.get(txn, number))

    @rule(data=st.data(), part=st.integers(1, 3))
    @precondition(lambda self: self.dead)
    def collect(self, data: st.DataObject, part: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.dead)))
        before, snapshots._COLLECTED = snapshots._COLLECTED, part  # type: ignore[misc]
        try:
            with self.store.write() as txn:
                cursor = snapshots.collect(txn, number, self.dead[number])
        finally:
            snapshots._COLLECTED = before  # type: ignore[misc]
        if cursor is None:
            del self.dead[number]
        else:
            self.dead[number] = cursor

    @staticmethod
    def read_all(txn: ReadTransaction) -> dict[bytes, bytes]:
        return dict(_scan(txn))

    @invariant()
    def are_the_same(self) -> None:
        with self.store.read() as txn:
            for number, copy in self.copies.items():
                view = snapshots.View(txn, number)
                assert dict(_scan(view)) == copy
                for key in KEYS:
                    assert view.get(key) == copy.get(key)
                for table in TABLES:
                    start, stop = records.dentry_key(table, b"a\0"), records.dentry_stop(table)
                    wanted = sorted(pair for pair in copy.items() if start <= pair[0] < stop)
                    assert list(view.scan(start, stop)) == wanted
                    assert list(view.scan(start, stop, limit=2)) == wanted[:2]
                    assert list(view.scan(start, stop, limit=2, reverse=True)) == wanted[::-1][:2]
            if not self.copies and not self.dead:
                assert not list(txn.scan(b"U", b"V"))


def _scan(txn: ReadTransaction) -> list[tuple[bytes, bytes]]:
    """All that the test changes."""
    found: list[tuple[bytes, bytes]] = []
    for table in TABLES:
        found += txn.scan(records.dentry_key(table, b""), records.dentry_stop(table))
        data = txn.get(records.inode_key(InodeId(table)))
        if data is not None:
            found.append((records.inode_key(InodeId(table)), data))
    return found


TestSnapshots = SnapshotsMachine.TestCase
TestSnapshots.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
