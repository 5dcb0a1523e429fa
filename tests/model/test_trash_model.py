"""The trash beside the tree: whatever programs remove, replace and take out again, and however far the store has followed.

The tree, its store and what programs do are those of test_changes_model.py. What is in the trash is one directory more, which no
listing shows: its files must be what they were, and at the store under their keys.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from alluxio_like import errors
from alluxio_like.master.core import checking, emptying, namespace, records, tables, trash
from alluxio_like.master.core.changes import Outcome
from alluxio_like.types import InodeId, Kind, to_bytes
from tests.model.test_changes_model import MAX_KEY, ChangesMachine, Node


class TrashMachine(ChangesMachine):
    @initialize()
    def start(self) -> None:
        super().start()
        with self.kv.write() as txn:
            emptying.turn_on(txn, self.root.inode, 1 << 50, self.now_ns)
            found = trash.lookup_directory(txn, self.mount_id)
        assert found is not None
        self.trash = Node(Kind.DIRECTORY, inode=found)
        self.hidden_directories = 1

    def directories(self) -> list[Node]:
        return [*super().directories(), *([self.trash] if hasattr(self, "trash") and self.refresh() else [])]

    def refresh(self) -> bool:
        """Have the trash's node hold what is there."""
        self.trash.children.clear()
        # (A further name may lead to it in the tree: it is one node.)
        named = {child.inode: child for one in super().directories() for child in one.children.values()}
        with self.kv.read() as txn:
            for entry in namespace.list_entries(txn, self.trash.inode).entries:
                content = 0
                if entry.ref is not None:
                    content = self.contents[entry.ref.inode, entry.ref.version]
                node = named.get(entry.attr.inode) or Node(entry.attr.kind, content, inode=entry.attr.inode)
                self.trash.children[to_bytes(entry.name)] = node
        return True

    def draw_directory(self, data: st.DataObject) -> Node:
        return data.draw(st.sampled_from(super().directories()))

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        with self.kv.read() as txn:
            thrown = [one for one in trash.iter_thrown(txn) if trash.is_there(txn, one.inode)]
        if not thrown:
            return
        wanted = data.draw(st.sampled_from(thrown))
        *above, name = [to_bytes(part) for part in wanted.path.split("/") if part]
        node: Node | None = self.root
        expected: type[Exception] | None = None
        for part in above:
            node = node.children.get(part) if node is not None else None
            if node is not None and node.kind is not Kind.DIRECTORY:
                expected, node = errors.NotADirectory, None
                break
        if node is not None and name in node.children:
            expected = errors.AlreadyExists
        self.refresh()
        moving = next(child for child in self.trash.children.values() if child.inode == wanted.inode)
        if self.apply(_restore, wanted.inode, expected=expected) is None:
            return
        node = self.root
        for depth, part in enumerate(above, start=1):
            node = node.children.setdefault(part, Node(Kind.DIRECTORY))
            if not node.inode:
                with self.kv.read() as txn:
                    node.inode = self.find(txn, above[:depth])
        # (A further name may lead to it in the tree: it is one node.)
        same = [child for one in super().directories() for child in one.children.values() if child.inode == moving.inode]
        node.children[name] = same[0] if same else moving

    def find(self, txn: Any, parts: list[bytes]) -> InodeId:
        at = self.root.inode
        for part in parts:
            found = tables.lookup_child(txn, tables.get_table(txn, at), part + b"/")
            assert found is not None
            at = found
        return at

    @rule(data=st.data())
    def empty(self, data: st.DataObject) -> None:
        with self.kv.write() as txn:
            some = [one.inode for one in trash.iter_thrown(txn) if data.draw(st.booleans())]
            emptying.remove(txn, some, self.now_ns)
            assert not any(trash.is_there(txn, inode) for inode in some)

    @invariant()
    def no_listing_shows_it(self) -> None:
        if not hasattr(self, "trash"):
            return
        with self.kv.read() as txn:
            names = [entry.name for entry in namespace.list_entries(txn, self.root.inode).entries]
            assert ".trash" not in names
            found = namespace.lookup(txn, self.root.inode, ".trash")
            assert found is not None
            assert found.attr.inode == self.trash.inode
            assert tables.get_inode(txn, self.trash.inode).flags & records.HIDDEN
            assert not [one for one in checking.check(txn) if one.rule == "trash"]


def _restore(txn: Any, inode: InodeId, now_ns: int) -> Outcome:
    _, recalls = emptying.restore(txn, inode, now_ns, max_key_bytes=MAX_KEY)
    return Outcome(inode, recalls)


class RenamingStoreMachine(TrashMachine):
    renames = True


TestTrash = TrashMachine.TestCase
TestTrash.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestTrashRenaming = RenamingStoreMachine.TestCase
TestTrashRenaming.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
