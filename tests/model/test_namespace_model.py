"""A store that changes all the time under a namespace that learns of it in pages: what may be seen.

The model is the full history of the store. Whatever happens (pages fetched and applied at any time, listings begun and given up,
flat ones over whole trees beside them, single files asked about, mounts above, restarts, purges), it must hold that

- a visible file's key and fingerprint were together in the store at some time, and an inode id never stands for two contents;
- what is said of a name that a listing has covered (be it there or not) was true at some time since that listing began;
- names are shown without collision, found again under the name shown, and all counts are right;
- nothing is left over: each inode has a name or is a queued orphan, and is forgotten when purged.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alluxio_like import errors
from alluxio_like.kv.api import ReadTransaction
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import flat, mounts, namespace, paths, records, tables
from alluxio_like.master.core.model import ListingPlan
from alluxio_like.types import ROOT_INODE, Entry, Fingerprint, InodeId, Kind, MountId, to_bytes
from alluxio_like.ufs.api import StoreEntry
from tests.model.checked import assert_columns, assert_whole

LONG = "p" * 480
NAMES = ["a", "a!", "b", "", ".", "x%~", "n" * 300, LONG, LONG + "x", LONG + "y", LONG[:470]]
LEAVES = st.sampled_from(NAMES)
KEYS = st.lists(LEAVES, min_size=1, max_size=3).map("/".join).filter(bool)
VALUES = st.tuples(st.sampled_from(["1", "2", "3"]), st.integers(0, 2))
Value = tuple[str, int] | None
"""A file's fingerprint, ("dir", 0) for a directory, None for nothing."""
DIRECTORY: Value = ("dir", 0)


class Store:
    """An object store with its history: what was at (prefix, sort name) from when on."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, int]] = {}
        self.history: dict[tuple[str, str], list[tuple[int, Value]]] = {}

    def put(self, time: int, key: str, value: tuple[str, int] | None) -> None:
        if value is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = value
        parts = key.split("/")
        for depth in range(len(parts)):
            prefix = "".join(part + "/" for part in parts[:depth])
            is_file = depth == len(parts) - 1
            # An object whose name is empty is its directory's marker and not listed.
            if is_file and not parts[depth]:
                continue
            sort_name = parts[depth] if is_file else parts[depth] + "/"
            events = self.history.setdefault((prefix, sort_name), [(-1, None)])
            now = self.get(prefix, sort_name)
            if events[-1][1] != now:
                events.append((time, now))

    def get(self, prefix: str, sort_name: str) -> Value:
        if not sort_name.endswith("/"):
            return self.objects.get(prefix + sort_name)
        return DIRECTORY if any(key.startswith(prefix + sort_name) for key in self.objects) else None

    def held_since(self, prefix: str, sort_name: str, value: Value, since: int) -> bool:
        """Whether a value was there at some time from `since` on."""
        events = self.history.get((prefix, sort_name), [(-1, None)])
        ends = [time for time, _ in events[1:]] + [1 << 60]
        return any(held == value and end > since for (_, held), end in zip(events, ends, strict=True))

    def list_flat(self, prefix: str) -> list[StoreEntry]:
        keys = sorted((key[len(prefix) :] for key in self.objects if key.startswith(prefix) and key != prefix), key=to_bytes)
        return [
            StoreEntry(key[:-1], Kind.DIRECTORY)
            if key.endswith("/")
            else StoreEntry(key, Kind.FILE, Fingerprint(*self.objects[prefix + key]), 5)
            for key in keys
        ]

    def list_prefix(self, prefix: str) -> list[StoreEntry]:
        found: dict[str, StoreEntry] = {}
        for key, (token, size) in self.objects.items():
            if key.startswith(prefix) and key != prefix:
                name, slash, _ = key[len(prefix) :].partition("/")
                entry = StoreEntry(name, Kind.DIRECTORY) if slash else StoreEntry(name, Kind.FILE, Fingerprint(token, size), 5)
                found[entry.sort_name] = entry
        return [found[name] for name in sorted(found, key=to_bytes)]


@dataclass
class Listing:
    plan: ListingPlan
    begun: int
    after: str | None = None
    fetched: tuple[list[StoreEntry], bool] | None = None


@dataclass
class FlatListing:
    mount_id: MountId
    base: str
    first: str
    run: flat.Run
    cutter: flat.Cutter
    since_ns: int
    targets: dict[str, flat.Target] = field(default_factory=dict)
    passed: str = ""
    asked: flat.Asked | None = None
    fetched: tuple[list[StoreEntry], bool] | None = None


@dataclass
class Known:
    """What the test claims of one directory: for each name, the time since which what is said must have been true."""

    since: dict[str, int] = field(default_factory=dict)
    touched: int = 0


class NamespaceMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.time = 1
        self.remote = Store()
        self.kv = MemoryStore()
        self.listings: dict[InodeId, Listing] = {}
        self.claims = flat.Claims()
        self.flats: list[FlatListing] = []
        self.known: dict[InodeId, Known] = {}
        self.contents: dict[InodeId, tuple[str, str, int]] = {}
        self.inner_root: InodeId | None = None
        with self.kv.write() as txn:
            namespace.prepare(txn, self.now_ns)
            self.root = mounts.add_mount(txn, "/", "s3://b", options={}, read_only=True, uid=0, gid=0, now_ns=self.now_ns).root

    @property
    def now_ns(self) -> int:
        return self.time * 1000

    def tick(self) -> int:
        self.time += 1
        return self.time

    @rule(key=KEYS, value=VALUES)
    def put(self, key: str, value: tuple[str, int]) -> None:
        self.remote.put(self.tick(), key, value)

    @precondition(lambda self: self.remote.objects)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.remote.put(self.tick(), data.draw(st.sampled_from(sorted(self.remote.objects))), None)

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Begin a listing; one of the same directory that is under way is given up."""
        with self.kv.read() as txn:
            directories = [inode for inode, _ in self.walk(txn)]
        directory = data.draw(st.sampled_from(directories))
        with self.kv.read() as txn:
            plan = namespace.begin_listing(txn, directory, self.now_ns)
        self.claims.start(directory)
        self.listings[directory] = Listing(plan, self.tick())

    @precondition(lambda self: self.listings)
    @rule(data=st.data(), count=st.integers(1, 4))
    def step(self, data: st.DataObject, count: int) -> None:
        """Fetch a listing's next page, or apply the one that was fetched."""
        directory = data.draw(st.sampled_from(sorted(self.listings)))
        listing = self.listings[directory]
        self.tick()
        if listing.fetched is None:
            self.fetch(listing, count)
        else:
            self.apply(directory, listing)

    def fetch(self, listing: Listing, count: int) -> None:
        entries = [
            entry
            for entry in self.remote.list_prefix(listing.plan.prefix)
            if listing.after is None or to_bytes(entry.sort_name) > to_bytes(listing.after)
        ]
        listing.fetched = (entries[:count], len(entries) <= count)

    def apply(self, directory: InodeId, listing: Listing) -> None:
        assert listing.fetched is not None
        page, is_last = listing.fetched
        listing.fetched = None
        after = listing.after
        with self.kv.write() as txn:
            attached = directory in dict(self.walk(txn))
            try:
                changes = namespace.apply_page(txn, listing.plan, after, page, is_last, self.now_ns)
            except errors.Stale:
                assert not attached
                self.end(directory)
                return
        self.claim(directory, listing.begun, after, page[-1].sort_name if page else "", is_last=is_last)
        listing.after = changes.covered
        if is_last:
            self.end(directory)

    def end(self, directory: InodeId) -> None:
        del self.listings[directory]
        self.claims.end(directory)

    def claim(self, directory: InodeId, begun: int, after: str | None, upto: str, *, is_last: bool) -> None:
        """What a listing that began then has covered is to have been true since then."""
        known = self.known.setdefault(directory, Known())
        if known.touched >= begun:
            return
        for sort_name in [name + slash for name in NAMES for slash in ("", "/")]:
            if (after is None or to_bytes(sort_name) > to_bytes(after)) and (is_last or to_bytes(sort_name) <= to_bytes(upto)):
                known.since[sort_name] = begun

    @rule(data=st.data())
    def begin_flat(self, data: st.DataObject) -> None:
        """Begin a flat listing of all below a directory, or of what follows from one of its directories on."""
        with self.kv.read() as txn:
            directory, prefix = data.draw(st.sampled_from(self.walk(txn)))
            mount_id = namespace.get_key(txn, directory)[0]
            asked = flat.Asked(tables.get_sequence(txn), self.now_ns)
            names = [(one, key[len(prefix) :]) for one, key in self.walk(txn) if key.startswith(prefix)]
            below = [(one, prefix + name) for one, name in names if name and "/" not in name[:-1]]
            first, first_prefix = data.draw(st.sampled_from([(directory, prefix), *below]))
            name = first_prefix[len(prefix) :]
            targets = {name: flat.make_target(txn, first, mount_id, first_prefix, asked)}
        if name:
            targets[""] = flat.Target(directory)
        listing = FlatListing(mount_id, prefix, name, self.claims.start_run(), flat.Cutter(name), self.now_ns, targets, name)
        listing.asked = asked
        self.tick()
        self.flats.append(listing)

    @precondition(lambda self: self.flats)
    @rule(data=st.data(), count=st.integers(1, 6))
    def step_flat(self, data: st.DataObject, count: int) -> None:
        """Ask for a flat listing's next page, have its answer come about, or apply that."""
        listing = data.draw(st.sampled_from(self.flats))
        self.tick()
        if listing.fetched is not None:
            self.apply_flat(listing)
        elif listing.asked is None:
            with self.kv.read() as txn:
                listing.asked = flat.Asked(tables.get_sequence(txn), self.now_ns)
        else:
            keys = [one for one in self.remote.list_flat(listing.base) if to_bytes(one.sort_name) > to_bytes(listing.passed)]
            listing.fetched = (keys[:count], len(keys) <= count)

    @precondition(lambda self: self.flats)
    @rule(data=st.data())
    def give_up_flat(self, data: st.DataObject) -> None:
        """It failed, or was not worth it."""
        listing = data.draw(st.sampled_from(self.flats))
        self.flats.remove(listing)
        self.claims.end_run(listing.run)

    def apply_flat(self, listing: FlatListing) -> None:
        assert listing.fetched is not None
        assert listing.asked is not None
        keys, ended = listing.fetched
        parts = listing.cutter.cut(keys, ended=ended)
        with self.kv.write() as txn:
            applied = flat.apply_parts(
                txn, listing.mount_id, listing.base, listing.targets, parts, listing.asked,
                busy=frozenset(listing.run.taken), since_ns=listing.since_ns, now_ns=self.now_ns,
            )  # fmt: skip
        for part, target, changes in applied.changes:
            assert target.plan is not None
            (self.claims.leave if part.is_last else self.claims.enter)(listing.run, changes.directory)
            upto = part.entries[-1].sort_name if part.entries else ""
            self.claim(changes.directory, target.plan.started_ns // 1000, part.after, upto, is_last=part.is_last)
        listing.targets = applied.targets
        listing.passed = keys[-1].sort_name if keys else listing.passed
        listing.fetched = listing.asked = None
        if ended:
            self.flats.remove(listing)
            self.claims.end_run(listing.run)

    @rule(data=st.data(), name=LEAVES)
    def stat(self, data: st.DataObject, name: str) -> None:
        with self.kv.read() as txn:
            directory = data.draw(st.sampled_from([inode for inode, _ in self.walk(txn)]))
        self.ask_about(directory, name)

    @precondition(lambda self: any(listing.fetched for listing in self.listings.values()))
    @rule(data=st.data(), value=st.none() | VALUES, name=LEAVES)
    def change_behind_a_page(self, data: st.DataObject, value: tuple[str, int] | None, name: str) -> None:
        """A page was fetched and not yet applied; one of its names changes, and the namespace learns of that first."""
        directory = data.draw(st.sampled_from(sorted(inode for inode, listing in self.listings.items() if listing.fetched)))
        fetched = self.listings[directory].fetched
        assert fetched is not None
        names = [entry.name for entry in fetched[0] if entry.kind is Kind.FILE]
        name = data.draw(st.sampled_from(names)) if names else name
        with self.kv.read() as txn:
            if directory not in dict(self.walk(txn)):
                return
        if name:
            self.remote.put(self.tick(), self.listings[directory].plan.prefix + name, value)
            self.ask_about(directory, name)

    def ask_about(self, directory: InodeId, name: str) -> None:
        """Ask the store about one file, and apply the answer."""
        with self.kv.read() as txn:
            plan = namespace.begin_listing(txn, directory, self.now_ns)
        begun = self.tick()
        value = self.remote.get(plan.prefix, name) if name else None
        found = StoreEntry(name, Kind.FILE, Fingerprint(*value), 5) if value is not None else None
        with self.kv.write() as txn:
            namespace.apply_stat(txn, plan, name, found, self.now_ns)
        known = self.known.setdefault(directory, Known())
        known.since[name] = begun
        # A listing under way leaves alone what this did, so it claims nothing for itself.
        known.touched = self.tick()

    @rule()
    def mount_or_unmount(self) -> None:
        """Over and away from the directory "a"."""
        self.tick()
        with self.kv.write() as txn:
            if self.inner_root is None:
                found = namespace.lookup(txn, self.root, "a")
                if found is not None and found.ref is not None:
                    return
                self.inner_root = mounts.add_mount(
                    txn, "/a", "s3://c", options={}, read_only=True, uid=0, gid=0, now_ns=self.now_ns
                ).root
            else:
                mounts.remove_mount(txn, "/a", self.now_ns)
                self.inner_root = None
        known = self.known.setdefault(self.root, Known())
        known.since.pop("a/", None)
        known.touched = self.tick()

    @rule()
    def restart(self) -> None:
        self.listings.clear()
        self.flats.clear()
        self.claims = flat.Claims()
        with self.kv.write() as txn:
            namespace.prepare(txn, self.now_ns)

    @rule(keep=st.integers(0, 10), limit=st.integers(1, 5))
    def purge(self, keep: int, limit: int) -> None:
        with self.kv.write() as txn:
            namespace.purge(txn, self.now_ns, keep * 1000, limit)

    def walk(self, txn: ReadTransaction) -> list[tuple[InodeId, str]]:
        """The directories of the outer mount that are there, with their prefixes."""
        found = [(self.root, "")]
        for inode, prefix in found:
            for entry in namespace.list_entries(txn, inode).entries:
                if entry.attr.kind is Kind.DIRECTORY and entry.attr.inode != self.inner_root:
                    key = namespace.get_key(txn, entry.attr.inode)[1]
                    assert key.startswith(prefix)
                    found.append((entry.attr.inode, key))
        return found

    @invariant()
    def names_are_as_the_store_had_them(self) -> None:
        with self.kv.read() as txn:
            for inode, prefix in self.walk(txn):
                entries = self.list_all(txn, inode)
                seen: dict[str, Value] = {}
                for entry in entries:
                    if entry.attr.inode == self.inner_root:
                        continue
                    if entry.ref is None:
                        key = namespace.get_key(txn, entry.attr.inode)[1]
                        seen[key[len(prefix) :]] = DIRECTORY
                    else:
                        seen[entry.ref.key[len(prefix) :]] = (entry.ref.fingerprint.token, entry.ref.size)
                        content = (entry.ref.key, entry.ref.fingerprint.token, entry.ref.size)
                        assert self.contents.setdefault(entry.attr.inode, content) == content
                known = self.known.get(inode, Known())
                for sort_name, value in seen.items():
                    assert self.remote.held_since(prefix, sort_name, value, known.since.get(sort_name, -1)), (prefix, sort_name)
                complete = namespace.get_dir_state(txn, inode).complete
                for sort_name, since in known.since.items():
                    if sort_name not in seen and (prefix, sort_name, self.inner_root is not None) != ("", "a/", True):
                        assert self.remote.held_since(prefix, sort_name, None, since), (prefix, sort_name)
                if complete and inode in self.known and not self.known[inode].touched:
                    assert set(known.since) >= {name + slash for name in NAMES for slash in ("", "/")}

    def list_all(self, txn: ReadTransaction, inode: InodeId) -> list[Entry]:
        """Listed in pages of two; each shown name leads back to its entry."""
        entries: list[Entry] = []
        cursor = b""
        while True:
            page = namespace.list_entries(txn, inode, cursor, 2)
            entries.extend(page.entries)
            cursor = page.cursor
            if not cursor:
                break
        assert len({entry.name for entry in entries}) == len(entries)
        assert_columns(txn, inode)
        for entry in entries:
            assert namespace.lookup(txn, inode, entry.name) == entry
            assert namespace.get_entry(txn, entry.attr.inode) == entry
            resolved = namespace.resolve(txn, namespace.get_path(txn, entry.attr.inode))
            assert (resolved.entry, resolved.rest) == (entry, ())
        return entries

    @invariant()
    def counts_are_right_and_nothing_is_left_over(self) -> None:
        with self.kv.read() as txn:
            inodes = {key[1:]: records.unpack_inode(data) for key, data in txn.scan(b"I", b"J")}
            named: set[bytes] = {records.inode_key(ROOT_INODE)[1:]}
            tables: dict[int, list[records.Inode]] = {}
            for key, data in txn.scan(b"D", b"E"):
                child = records.unpack_id(data).to_bytes(8, "big")
                assert child not in named
                named.add(child)
                record = inodes[child]
                assert key[9:] == paths.file_name(record.sort_name)
                tables.setdefault(int.from_bytes(key[1:9], "big"), []).append(record)
            orphans = {key[9:17] for key, _ in txn.scan(b"X", b"Y")}
            assert not orphans & named
            assert set(inodes) == named | orphans
            shadowed_in_all = 0
            root_table = records.unpack_id(txn.get(records.KEY_ROOT_TABLE) or b"")
            for table, children in tables.items():
                directories = {record.name for record in children if record.kind is Kind.DIRECTORY}
                files = [record for record in children if record.kind is Kind.FILE]
                state = records.unpack_state(txn.get(records.state_key(table)))
                shadowed = sum(record.name in directories for record in files)
                assert (state.files, state.directories, state.shadowed) == (len(files), len(directories), shadowed)
                shadowed_in_all += shadowed
                assert table == root_table or table.to_bytes(8, "big") in inodes
            shown = [inodes[child] for child in named]
            totals = namespace.get_totals(txn)
            assert totals.files == sum(record.kind is Kind.FILE for record in shown)
            assert totals.directories == sum(record.kind is Kind.DIRECTORY for record in shown)
            assert totals.known_bytes == sum(record.size for record in shown)
            # The root's own name is empty and not counted.
            assert totals.odd_names == sum(paths.is_odd(record.name) for record in shown) - 1 + shadowed_in_all
            assert totals.orphans == len(orphans)
            assert all(bool(inodes[inode].flags & records.ORPHAN) == (inode in orphans) for inode in inodes)
            hashed = {(key[1:9], key[9:]) for key, _ in txn.scan(b"H", b"I")}
            expected = {
                (table.to_bytes(8, "big"), paths.get_shown_hash(record.name, record.kind))
                for table, children in tables.items()
                for record in children
                if paths.needs_index(record.name)
            }
            assert hashed >= expected
            assert all(table in inodes for table, _ in hashed - expected if table != root_table.to_bytes(8, "big"))

    @invariant()
    def it_is_whole(self) -> None:
        assert_whole(self.kv)

    @invariant()
    def a_quiet_listing_shows_the_store(self) -> None:
        """On a copy: list everything while the store stands still; then exactly the store is seen, and after a purge nothing else
        is left."""
        if self.time % 7:
            return
        copy = MemoryStore()
        with self.kv.read() as old, copy.write() as new:
            for key, value in old.scan(b"\0", b"\xff"):
                new.put(key, value)
        with copy.write() as txn:
            seen: dict[str, tuple[str, int]] = {}
            waiting = [self.root]
            while waiting:
                inode = waiting.pop()
                plan = namespace.begin_listing(txn, inode, self.now_ns)
                listing = Listing(plan, 0)
                while True:
                    self.fetch(listing, 2)
                    assert listing.fetched is not None
                    page, is_last = listing.fetched
                    listing.after = namespace.apply_page(txn, plan, listing.after, page, is_last, self.now_ns).covered
                    if is_last:
                        break
                for entry in namespace.list_entries(txn, inode).entries:
                    if entry.ref is not None:
                        seen[entry.ref.key] = (entry.ref.fingerprint.token, entry.ref.size)
                    elif entry.attr.inode != self.inner_root:
                        waiting.append(entry.attr.inode)
            assert all(namespace.get_dir_state(txn, inode).complete for inode, _ in self.walk(txn))
            hidden = {key for key in self.remote.objects if self.inner_root is not None and key.startswith("a/")}
            markers = {key for key in self.remote.objects if key.endswith("/")}
            assert seen == {key: value for key, value in self.remote.objects.items() if key not in hidden | markers}
            for _ in range(200):
                if not namespace.purge(txn, self.now_ns + 1, 0, 10).more:
                    break
            totals = namespace.get_totals(txn)
            assert (totals.files, totals.orphans) == (len(seen), 0)
            assert len(list(txn.scan(b"I", b"J"))) == totals.files + totals.directories
        copy.close()


TestNamespaceMachine = NamespaceMachine.TestCase
TestNamespaceMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
