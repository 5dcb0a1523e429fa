"""Programs change the namespace while the store follows at its own pace: what is seen, and what the store holds in the end.

The model is a plain tree of names. At any moment steps of the journal begin, reach the store, and are recorded as done, each by
itself; versions are sealed and uploaded; directories are listed in between. It must hold that

- the namespace is the model's tree at every moment, whatever a listing says;
- a file that the store has is there under the key and the fingerprint that a reader is given, with the bytes of the version;
- once the journal is empty and all is uploaded, the store holds exactly the files of the tree, and nothing else;
- links are counted right, totals are right, and nothing is left over;
- of each change those hear who know something that is not so any more.

Run for a store that moves directories in one step, and for one that does not.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alluxio_like import errors
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import changes, following, journal, mounts, namespace, records, versions
from alluxio_like.master.core.changes import NewInode
from alluxio_like.master.core.following import Plan
from alluxio_like.master.core.journal import Op
from alluxio_like.master.core.versions import UploadPlan
from alluxio_like.types import Fingerprint, InodeId, Kind, VersionId, to_bytes
from alluxio_like.ufs.api import StoreEntry
from tests.model.checked import assert_columns, assert_recalled, assert_whole, read_names

NAMES = st.sampled_from([b"a", b"b", b"c"])
MAX_KEY = 1024


@dataclass(eq=False)
class Node:
    """A file (with the number of its content) or a directory of the model."""

    kind: Kind
    content: int = 0
    children: dict[bytes, "Node"] = field(default_factory=dict)
    inode: InodeId = InodeId(0)

    def __repr__(self) -> str:
        return f"{self.kind.name.lower()} {self.inode}"


class Store:
    """Objects by key: (number of the content, fingerprint). Directories are what has something below it, or a marker."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[int, Fingerprint]] = {}
        self.tokens: dict[Fingerprint, str] = {}
        self._numbers = itertools.count()

    def put(self, key: str, content: int, token: str = "") -> Fingerprint:
        fingerprint = Fingerprint(f"e{next(self._numbers)}", 10 + content if content else 0)
        self.objects[key] = (content, fingerprint)
        self.tokens[fingerprint] = token
        return fingerprint

    def lookup_written(self, key: str, token: str) -> Fingerprint | None:
        """What is at a key, if it was put there with this token."""
        found = self.lookup(key)
        return found if found is not None and self.tokens[found] == token else None

    def lookup(self, key: str) -> Fingerprint | None:
        return self.objects[key][1] if key in self.objects else None

    def list_prefix(self, prefix: str) -> list[StoreEntry]:
        found: dict[str, StoreEntry] = {}
        for key, (_, fingerprint) in self.objects.items():
            if key.startswith(prefix) and key != prefix:
                name, slash, _ = key[len(prefix) :].partition("/")
                entry = StoreEntry(name, Kind.DIRECTORY) if slash else StoreEntry(name, Kind.FILE, fingerprint, 5)
                found[entry.sort_name] = entry
        return [found[name] for name in sorted(found, key=to_bytes)]


@dataclass
class Running:
    """A step that was begun; `arrived`: what it did at the store is done, and not recorded yet."""

    plan: Plan
    arrived: bool = False
    stored: Fingerprint | None = None
    cursor: bytes | None = b""


@dataclass
class Upload:
    inode: InodeId
    version: VersionId
    plan: UploadPlan
    content: int
    stored: Fingerprint | None = None


class ChangesMachine(RuleBasedStateMachine):
    renames = False
    hidden_directories = 0
    """Directories that no listing shows."""

    @initialize()
    def start(self) -> None:
        self.time = 1
        self.kv = MemoryStore()
        self.store = Store()
        self.root = Node(Kind.DIRECTORY)
        self.running: dict[int, Running] = {}
        self.uploads: list[Upload] = []
        self.chosen: list[Plan] = []
        """Plans that were made a while ago, as the follower makes them in a thread: much may have happened since."""
        self.crashed = False
        self.contents: dict[tuple[InodeId, int], int] = {}
        self.numbers = itertools.count(1)
        with self.kv.write() as txn:
            namespace.prepare(txn, self.now_ns)
            mount = mounts.add_mount(txn, "/", "s3://b", options={}, read_only=False, uid=0, gid=0, now_ns=self.now_ns)
            self.mount_id = mount.mount_id
            self.root.inode = mount.root
        # Some files are there from the beginning.
        for key in ("a", "d/x", "d/y"):
            content = next(self.numbers)
            fingerprint = self.store.put(key, content)
            assert fingerprint is not None
            *above, name = key.split("/")
            node = self.root
            for part in above:
                node = node.children.setdefault(to_bytes(part), Node(Kind.DIRECTORY))
            node.children[to_bytes(name)] = Node(Kind.FILE, content)
        self.list_directory(self.root)
        self.list_directory(self.root.children[b"d"])

    @property
    def now_ns(self) -> int:
        self.time += 1
        return self.time * 1000

    # -- what programs do ------------------------------------------------------------------------------------------------------

    def directories(self) -> list[Node]:
        found = [self.root]
        for node in found:
            found += [child for child in node.children.values() if child.kind is Kind.DIRECTORY]
        return found

    def draw_directory(self, data: st.DataObject) -> Node:
        return data.draw(st.sampled_from(self.directories()))

    def apply(self, call: Any, *arguments: Any, expected: type[Exception] | None, **options: Any) -> Any:
        """Call the core; what it raises must be what the model says. None: it waits for the store, and nothing was done."""
        try:
            with self.kv.write() as txn:
                before = read_names(txn)
                outcome = call(txn, *arguments, self.now_ns, **options)
                after = read_names(txn)
        except errors.Unavailable:
            with self.kv.read() as txn:
                assert any(step.op is Op.SETTLE for step in journal.list_steps(txn))
            return None
        except errors.AlluxioLikeError as error:
            assert expected is not None and isinstance(error, expected), (error, expected)
            return None
        assert expected is None, expected
        assert_recalled(before, after, outcome.recalls)
        return outcome

    @rule(data=st.data(), name=NAMES, kind=st.sampled_from([Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK]))
    def create(self, data: st.DataObject, name: bytes, kind: Kind) -> None:
        node = self.draw_directory(data)
        expected = errors.AlreadyExists if name in node.children else None
        new = NewInode(kind, 0o600, 1, 2, b"target" if kind is Kind.SYMLINK else b"")
        outcome = self.apply(changes.create, node.inode, name, new, expected=expected, max_key_bytes=MAX_KEY)
        if outcome is not None:
            node.children[name] = Node(kind, 0, inode=outcome.inode)
            self.contents[outcome.inode, 1] = 0

    @rule(data=st.data(), name=NAMES)
    def unlink(self, data: st.DataObject, name: bytes) -> None:
        node = self.draw_directory(data)
        there = node.children.get(name)
        expected: type[Exception] | None = errors.NotFound if there is None else None
        if there is not None and there.kind is Kind.DIRECTORY:
            expected = errors.IsADirectory
        if self.apply(changes.unlink, node.inode, name, expected=expected) is not None:
            del node.children[name]

    @rule(data=st.data(), name=NAMES)
    def rmdir(self, data: st.DataObject, name: bytes) -> None:
        node = self.draw_directory(data)
        there = node.children.get(name)
        expected: type[Exception] | None = errors.NotFound if there is None else None
        if there is not None:
            if there.kind is not Kind.DIRECTORY:
                expected = errors.NotADirectory
            elif there.children:
                expected = errors.DirectoryNotEmpty
        if self.apply(changes.rmdir, node.inode, name, expected=expected) is not None:
            del node.children[name]

    @rule(data=st.data(), old=NAMES, new=NAMES, replace=st.booleans())
    def rename(self, data: st.DataObject, old: bytes, new: bytes, replace: bool) -> None:
        source, target = self.draw_directory(data), self.draw_directory(data)
        moving, there = source.children.get(old), target.children.get(new)
        expected: tuple[type[Exception], ...] = ()
        if moving is None:
            expected += (errors.NotFound,)
        elif moving.kind is Kind.DIRECTORY and self.is_below(target, moving):
            expected += (errors.InvalidArgument,)
        elif there is not None and not replace:
            expected += (errors.AlreadyExists,)
        elif there is not None and there is not moving:
            if moving.kind is Kind.DIRECTORY and there.kind is not Kind.DIRECTORY:
                expected += (errors.NotADirectory,)
            elif moving.kind is Kind.DIRECTORY and there.children:
                expected += (errors.DirectoryNotEmpty,)
            elif moving.kind is not Kind.DIRECTORY and there.kind is Kind.DIRECTORY:
                expected += (errors.IsADirectory,)
        arguments = (source.inode, old, target.inode, new)
        wanted = expected[0] if expected else None
        outcome = self.apply(changes.rename, *arguments, expected=wanted, max_key_bytes=MAX_KEY, replace=replace)
        if outcome is not None and moving is not there:
            assert moving is not None
            del source.children[old]
            target.children[new] = moving

    @rule(data=st.data(), old=NAMES, new=NAMES)
    def exchange(self, data: st.DataObject, old: bytes, new: bytes) -> None:
        source, target = self.draw_directory(data), self.draw_directory(data)
        one, two = source.children.get(old), target.children.get(new)
        expected: type[Exception] | None = None
        if one is None or two is None:
            expected = errors.NotFound
        elif one is not two and (
            (one.kind is Kind.DIRECTORY and self.is_below(target, one))
            or (two.kind is Kind.DIRECTORY and self.is_below(source, two))
        ):
            expected = errors.InvalidArgument
        arguments = (source.inode, old, target.inode, new)
        if self.apply(changes.exchange, *arguments, expected=expected, max_key_bytes=MAX_KEY) is not None:
            assert one is not None and two is not None
            source.children[old], target.children[new] = two, one

    @rule(data=st.data(), name=NAMES)
    def link(self, data: st.DataObject, name: bytes) -> None:
        files = [child for node in self.directories() for child in node.children.values()]
        if not files:
            return
        node, target = self.draw_directory(data), data.draw(st.sampled_from(files))
        expected: type[Exception] | None = errors.AlreadyExists if name in node.children else None
        if target.kind is Kind.DIRECTORY:
            expected = errors.NotPermitted
        outcome = self.apply(changes.link, target.inode, node.inode, name, expected=expected, max_key_bytes=MAX_KEY)
        if outcome is not None:
            node.children[name] = target

    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        files = [child for node in self.directories() for child in node.children.values() if child.kind is Kind.FILE]
        if not files:
            return
        node = data.draw(st.sampled_from(files))
        content = next(self.numbers)
        with self.kv.write() as txn:
            before = read_names(txn)
            outcome = versions.seal(txn, node.inode, 10 + content, self.now_ns, ("w1",), self.now_ns)
            assert_recalled(before, read_names(txn), outcome.recalls)
            version = records.unpack_inode(txn.get(records.inode_key(node.inode)) or b"").version
        node.content = content
        self.contents[node.inode, version] = content

    # -- what the store does ---------------------------------------------------------------------------------------------------

    def busy_keys(self) -> set[str]:
        keys = {key for running in self.running.values() for key in running.plan.keys}
        return keys | {upload.plan.key for upload in self.uploads}

    @rule()
    def choose_steps(self) -> None:
        with self.kv.read() as txn:
            renames = [self.mount_id] if self.renames else []
            self.chosen = following.list_ready(txn, self.running.keys(), renames=renames)

    @rule(data=st.data(), anew=st.booleans())
    def begin_step(self, data: st.DataObject, anew: bool) -> None:
        if anew:
            self.choose_steps()
        busy = self.busy_keys()
        ready = [plan for plan in self.chosen if plan.step.number not in self.running and plan.is_free(busy)]
        if ready:
            plan = data.draw(st.sampled_from(ready))
            self.chosen.remove(plan)
            self.begin(plan)

    def begin(self, plan: Plan) -> None:
        with self.kv.write() as txn:
            begun = following.begin(txn, plan)
            if begun is None or not following.is_current(txn, begun):
                return  # It is made anew.
        self.running[plan.step.number] = Running(begun)

    @precondition(lambda self: self.running)
    @rule()
    def crash(self) -> None:
        """Whatever runs is forgotten, and nobody knows how far it came."""
        self.running.clear()
        self.chosen.clear()
        self.crashed = True

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def go_on_with_a_step(self, data: st.DataObject) -> None:
        self.advance(data.draw(st.sampled_from(sorted(self.running))))

    def advance(self, number: int) -> None:
        """A step reaches the store, or is recorded as done."""
        running = self.running[number]
        plan = running.plan
        pushes = plan.step.op is Op.SETTLE and plan.target.endswith("/") and not self.renames
        if pushes and not plan.nothing:
            with self.kv.write() as txn:
                assert running.cursor is not None
                running.cursor = following.push_down(txn, plan, running.cursor, self.now_ns, limit=1)
            if running.cursor is None:
                del self.running[number]
        elif not running.arrived and not plan.nothing:
            running.stored = self.carry_out(plan)
            running.arrived = True
        else:
            copied = plan.step.op is Op.SETTLE and not self.renames
            with self.kv.write() as txn:
                following.finish(txn, plan, self.now_ns, stored=running.stored, copied=copied)
            del self.running[number]

    def carry_out(self, plan: Plan) -> Fingerprint | None:
        objects = self.store.objects
        token = f"{plan.step.number} {plan.target}"
        if plan.step.op is Op.DELETE:
            stored = self.store.lookup_written(plan.target, token) if plan.target else None
            if self.store.lookup(plan.source) == plan.expected:
                objects.pop(plan.source, None)
            return stored
        elif plan.step.op is Op.REMOVE_DIRECTORY:
            objects.pop(plan.source, None)
        elif plan.step.op is Op.MAKE_DIRECTORY:
            self.store.put(plan.source, 0)
        elif plan.target.endswith("/"):
            assert not any(key.startswith(plan.target) for key in objects if key != plan.target), "moved over something"
            for key in [key for key in objects if key.startswith(plan.source)]:
                objects[plan.target + key[len(plan.source) :]] = objects.pop(key)
        else:
            if (stored := self.store.lookup_written(plan.target, token)) is not None:
                return stored  # carried out before, and not recorded
            assert self.store.lookup(plan.source) == plan.fingerprint, "what was to be moved is not there"
            assert self.store.lookup(plan.target) == plan.expected, "something else is there"
            content = objects[plan.source][0]
            if self.renames:
                del objects[plan.source]
            return self.store.put(plan.target, content, token)
        return None

    @rule(data=st.data())
    def begin_upload(self, data: st.DataObject) -> None:
        busy = self.busy_keys()
        plans = []
        with self.kv.read() as txn:
            for key, _ in txn.scan(b"W", b"X"):
                inode = InodeId(int.from_bytes(key[1:], "big"))
                record = records.unpack_inode(txn.get(records.inode_key(inode)) or b"")
                if record.kind is Kind.FILE:
                    try:
                        plan = versions.plan_upload(txn, inode, record.version)
                    except (errors.Stale, errors.Unavailable):
                        continue
                    if not any(plan.key == key.rstrip("/") or plan.key.startswith(key) for key in busy):
                        plans.append(Upload(inode, record.version, plan, self.contents[inode, record.version]))
        if plans:
            self.uploads.append(data.draw(st.sampled_from(plans)))

    @precondition(lambda self: self.uploads)
    @rule(data=st.data())
    def go_on_with_an_upload(self, data: st.DataObject) -> None:
        self.advance_upload(data.draw(st.integers(0, len(self.uploads) - 1)))

    def advance_upload(self, place: int) -> None:
        upload = self.uploads[place]
        if upload.stored is None:
            assert self.store.lookup(upload.plan.key) == upload.plan.expected, "a foreign content, where nobody else writes"
            upload.stored = self.store.put(upload.plan.key, upload.content)
        else:
            with self.kv.write() as txn:
                versions.note_persisted(txn, upload.inode, upload.version, upload.plan, upload.stored, self.now_ns)
            self.uploads.pop(place)

    @rule(data=st.data())
    def list_one(self, data: st.DataObject) -> None:
        self.list_directory(self.draw_directory(data))

    def list_directory(self, node: Node) -> None:
        with self.kv.write() as txn:
            plan = namespace.begin_listing(txn, node.inode, self.now_ns)
            namespace.apply_page(txn, plan, None, self.store.list_prefix(plan.prefix), True, self.now_ns)
            for name, child in node.children.items():
                if not child.inode:
                    found = namespace.lookup(txn, node.inode, name.decode())
                    assert found is not None
                    child.inode = found.attr.inode
                    self.contents[child.inode, found.attr.version] = child.content

    @rule()
    def purge(self) -> None:
        with self.kv.write() as txn:
            namespace.purge(txn, self.now_ns, 10_000, 5)

    # -- what must hold --------------------------------------------------------------------------------------------------------

    def is_below(self, node: Node, top: Node) -> bool:
        return node is top or any(self.is_below(node, child) for child in top.children.values() if child.kind is Kind.DIRECTORY)

    @invariant()
    def it_is_whole(self) -> None:
        assert_whole(self.kv)

    @invariant()
    def the_tree_is_the_models(self) -> None:
        with self.kv.read() as txn:
            names: dict[int, int] = {}
            for node in self.directories():
                assert_columns(txn, node.inode)
                entries = {to_bytes(entry.name): entry for entry in namespace.list_entries(txn, node.inode).entries}
                assert {name: child.inode for name, child in node.children.items()} == {
                    name: entry.attr.inode for name, entry in entries.items()
                }
                for name, child in node.children.items():
                    entry = entries[name]
                    assert entry == namespace.lookup(txn, node.inode, name.decode())
                    assert entry.attr.kind is child.kind
                    names[child.inode] = names.get(child.inode, 0) + 1
                    if child.kind is Kind.FILE:
                        self.check_file(entry, child)
            below = {
                node.inode: sum(child.kind is Kind.DIRECTORY for child in node.children.values()) for node in self.directories()
            }
            for inode, count in names.items():
                links = count
                if inode in below:
                    links = 2 + below[InodeId(inode)] if namespace.get_dir_state(txn, InodeId(inode)).complete else 1
                assert namespace.get_entry(txn, InodeId(inode)).attr.nlink == links
                path = namespace.get_path(txn, InodeId(inode))
                assert namespace.resolve(txn, path).entry.attr.inode == inode
            totals = namespace.get_totals(txn)
            found = [namespace.get_entry(txn, InodeId(inode)).attr for inode in names]
            assert totals.files == sum(attr.kind is not Kind.DIRECTORY for attr in found)
            assert totals.directories == 1 + self.hidden_directories + sum(attr.kind is Kind.DIRECTORY for attr in found)
            assert totals.known_bytes == sum(attr.size for attr in found)
            self.check_journal(txn)

    def check_file(self, entry: Any, child: Node) -> None:
        ref = entry.ref
        assert ref is not None
        assert self.contents[ref.inode, ref.version] == child.content
        if ref.fingerprint.token.startswith("own-") and ref.source is None:
            return  # the workers have it, and the store does not
        at_store = ref.source or ref.fingerprint
        # In a store that renames, where nobody has recorded it yet.
        moved_in_flight = self.renames and (self.running or self.crashed)
        if not moved_in_flight:
            assert self.store.objects.get(ref.key) == (child.content, at_store), ref

    def check_journal(self, txn: Any) -> None:
        settling = [step.inode for step in journal.list_steps(txn) if step.op is Op.SETTLE]
        moving = [
            InodeId(int.from_bytes(key[1:], "big"))
            for key, data in txn.scan(b"I", b"J")
            if records.unpack_inode(data).flags & records.MOVED and not records.unpack_inode(data).flags & records.ORPHAN
        ]
        assert set(moving) <= set(settling)

    def teardown(self) -> None:
        """Let everything come to its end: then the store is the tree."""
        for _ in range(2000):
            if self.running:
                self.advance(next(iter(self.running)))
                continue
            while self.uploads:
                self.advance_upload(0)
            with self.kv.read() as txn:
                ready = following.list_ready(txn, (), renames=[self.mount_id] if self.renames else [])
            if ready:
                self.begin(ready[0])
                continue
            self.begin_upload(_First())  # type: ignore[arg-type]
            if not self.uploads:
                break
        with self.kv.read() as txn:
            assert journal.is_empty(txn), journal.list_steps(txn)
        self.crashed = False
        self.the_tree_is_the_models()
        expected: dict[str, int] = {}
        seen: set[InodeId] = set()
        with self.kv.read() as txn:
            for node in self.directories():
                for child in node.children.values():
                    if child.kind is Kind.FILE and child.inode not in seen:
                        seen.add(child.inode)
                        expected[namespace.get_key(txn, child.inode)[1]] = child.content
        held = {key: content for key, (content, _) in self.store.objects.items() if not key.endswith("/")}
        assert held == expected
        for node in self.directories():
            self.list_directory(node)
        self.the_tree_is_the_models()
        self.kv.close()


class _First:
    """Draws the first of what there is."""

    def draw(self, strategy: Any) -> Any:
        return strategy.elements[0]


class RenamingStoreMachine(ChangesMachine):
    renames = True


TestChanges = ChangesMachine.TestCase
TestChanges.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRenamingStore = RenamingStoreMachine.TestCase
TestRenamingStore.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
