"""The namespace core: names, listings, replacements, mounts, orphans, pins, operations."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from alluxio_like import errors
from alluxio_like.kv.api import KeyValueStore, WriteTransaction
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import mounts, namespace, operations, paths, records
from alluxio_like.master.core.model import Changes, MountRecord
from alluxio_like.types import ROOT_INODE, Entry, Fingerprint, InodeId, Kind, StoredAttributes, to_bytes
from alluxio_like.ufs.api import StoreEntry

SECOND = 10**9
NOW = 1_700_000_000 * SECOND


@pytest.fixture
def store() -> Iterator[KeyValueStore]:
    store = MemoryStore()
    with store.write() as txn:
        namespace.prepare(txn, NOW)
    yield store
    store.close()


@pytest.fixture
def txn(store: KeyValueStore) -> Iterator[WriteTransaction]:
    with store.write() as txn:
        yield txn


def add_mount(txn: WriteTransaction, path: str = "/", now_ns: int = NOW, uid: int = 7) -> MountRecord:
    return mounts.add_mount(
        txn, path, "s3://bucket/prefix", options={"region": "x"}, read_only=True, uid=uid, gid=8, now_ns=now_ns
    )


def file(name: str, token: str = "a", size: int = 10, *, trusted: bool = True, mtime_ns: int = NOW - SECOND) -> StoreEntry:
    return StoreEntry(name, Kind.FILE, Fingerprint(token, size), mtime_ns, trusted)


def directory(name: str, mtime_ns: int = 0) -> StoreEntry:
    return StoreEntry(name, Kind.DIRECTORY, None, mtime_ns)


def apply_listing(
    txn: WriteTransaction, inode: InodeId, entries: list[StoreEntry], now_ns: int = NOW, page: int = 1000
) -> list[Changes]:
    entries = sorted(entries, key=lambda entry: to_bytes(entry.sort_name))
    plan = namespace.begin_listing(txn, inode, now_ns)
    pages = [entries[at : at + page] for at in range(0, len(entries), page)] or [[]]
    done: list[Changes] = []
    after = None
    for number, part in enumerate(pages):
        done.append(namespace.apply_page(txn, plan, after, part, number == len(pages) - 1, now_ns))
        after = done[-1].covered
    return done


def show(txn: WriteTransaction, inode: InodeId, limit: int = 1000) -> list[str]:
    return [entry.name for entry in read_all(txn, inode, limit)]


def read_all(txn: WriteTransaction, inode: InodeId, limit: int = 1000) -> list[Entry]:
    entries: list[Entry] = []
    cursor = b""
    while True:
        page = namespace.list_entries(txn, inode, cursor, limit)
        entries.extend(page.entries)
        cursor = page.cursor
        if not cursor:
            return entries


def get(txn: WriteTransaction, path: str) -> Entry:
    found = namespace.resolve(txn, path)
    assert not found.rest, found
    return found.entry


class TestReading:
    def test_empty(self, txn: WriteTransaction) -> None:
        root = namespace.get_entry(txn, ROOT_INODE)
        assert (root.name, root.attr.kind, root.attr.mode, root.ref) == ("/", Kind.DIRECTORY, 0o755, None)
        assert namespace.lookup(txn, ROOT_INODE, "x") is None
        assert namespace.get_dir_state(txn, ROOT_INODE).complete
        assert show(txn, ROOT_INODE) == []
        with pytest.raises(errors.Unsupported):
            namespace.begin_listing(txn, ROOT_INODE, NOW)
        with pytest.raises(errors.NotFound):
            namespace.get_entry(txn, InodeId(99))

    def test_attributes_and_keys(self, txn: WriteTransaction) -> None:
        mount = add_mount(txn, "/data")
        apply_listing(txn, mount.root, [directory("sub"), file("a.bin", "abc", 123)])
        sub = get(txn, "/data/sub")
        apply_listing(txn, sub.attr.inode, [file("b.bin", '"0123456789abcdef0123456789abcdef-7"', 456)])
        entry = get(txn, "/data/sub/b.bin")
        assert (entry.attr.mode, entry.attr.uid, entry.attr.gid, entry.attr.size) == (0o644, 7, 8, 456)
        assert (entry.attr.mtime_ns, entry.attr.nlink, entry.attr.version) == (NOW - SECOND, 1, 1)
        assert entry.ref is not None
        assert (entry.ref.mount_id, entry.ref.key) == (mount.mount_id, "sub/b.bin")
        assert entry.ref.fingerprint == Fingerprint('"0123456789abcdef0123456789abcdef-7"', 456)
        assert namespace.get_entry(txn, entry.attr.inode) == entry
        assert namespace.get_key(txn, entry.attr.inode) == (mount.mount_id, "sub/b.bin")
        assert namespace.get_key(txn, sub.attr.inode) == (mount.mount_id, "sub/")
        assert namespace.get_key(txn, mount.root) == (mount.mount_id, "")
        assert namespace.get_path(txn, entry.attr.inode) == "/data/sub/b.bin"
        assert namespace.get_path(txn, ROOT_INODE) == "/"
        page = namespace.list_entries(txn, sub.attr.inode)
        assert (page.entries, page.cursor, page.dir_key) == ((entry,), b"", "sub/")
        totals = namespace.get_totals(txn)
        assert (totals.files, totals.directories, totals.known_bytes) == (2, 3, 579)

    def test_resolve(self, txn: WriteTransaction) -> None:
        mount = add_mount(txn, "/data")
        apply_listing(txn, mount.root, [file("f")])
        found = namespace.resolve(txn, "/data/x//./y")
        assert (found.entry.attr.inode, found.rest) == (mount.root, ("x", "y"))
        with pytest.raises(errors.NotADirectory):
            namespace.resolve(txn, "/data/f/x")
        for path in ("data", "", "/data/../x", "/a\0b"):
            with pytest.raises(errors.InvalidArgument):
                namespace.resolve(txn, path)
        with pytest.raises(errors.NameTooLong):
            namespace.resolve(txn, "/" + "x" * 256)

    def test_paging_meets_each_entry_once(self, txn: WriteTransaction) -> None:
        mount = add_mount(txn)
        names = [f"{number:04}" for number in range(100)]
        apply_listing(txn, mount.root, [file(name) for name in names], page=7)
        for limit in (1, 3, 100, 101):
            assert show(txn, mount.root, limit) == names
        with pytest.raises(errors.InvalidArgument):
            namespace.list_entries(txn, mount.root, b"bad")


class TestListing:
    def test_unchanged_writes_nothing_but_the_state(self, store: KeyValueStore) -> None:
        entries = [file(f"{number:03}") for number in range(50)] + [directory("d"), directory("e", NOW - 5)]
        with store.write() as txn:
            root = add_mount(txn).root
            apply_listing(txn, root, entries, page=10)
            before = dict(txn.scan(b"\0", b"\xff"))
        with store.write() as txn:
            changes = apply_listing(txn, root, entries, NOW + SECOND, page=10)
            after = dict(txn.scan(b"\0", b"\xff"))
        assert [key for key in after if before.get(key) != after[key]] == [records.state_key(2)]
        assert before.keys() == after.keys()
        assert sum(change.unchanged for change in changes) == 52
        assert not any(changes)

    def test_attributes_that_the_store_keeps(self, txn: WriteTransaction) -> None:
        mount = add_mount(txn)
        kept = StoredAttributes(0o600, 1000, None, NOW - 7 * SECOND)
        apply_listing(txn, mount.root, [replace(file("a"), attributes=kept), replace(file("b"), attributes=StoredAttributes())])
        attr = get(txn, "/a").attr
        assert (attr.mode, attr.uid, attr.gid, attr.mtime_ns, attr.ctime_ns) == (0o600, 1000, 8, NOW - 7 * SECOND, NOW - SECOND)
        attr = get(txn, "/b").attr
        assert (attr.mode, attr.uid, attr.gid, attr.mtime_ns) == (0o644, 7, 8, NOW - SECOND)
        # Of the next content what it says; what it does not say is carried over.
        other = StoredAttributes(None, 2000, 3000, None)
        entries = [replace(file("a", "other", mtime_ns=NOW), attributes=other), file("b"), file("new"), directory("sub")]
        plan = namespace.begin_listing(txn, mount.root, NOW + SECOND)
        assert namespace.list_new_contents(txn, plan, None, entries, is_last=True) == {"a", "new"}
        assert namespace.list_new_contents(txn, plan, None, entries[:2], is_last=False) == {"a"}
        assert namespace.list_new_contents(txn, plan, "a", entries[1:], is_last=True) == {"new"}
        apply_listing(txn, mount.root, entries, NOW + SECOND)
        attr = get(txn, "/a").attr
        assert (attr.mode, attr.uid, attr.gid, attr.mtime_ns) == (0o600, 2000, 3000, NOW)

    def test_replacement(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        apply_listing(txn, root, [file("a", "1", 10), file("b")])
        old = get(txn, "/a")
        assert old.ref is not None
        namespace.set_pinned(txn, old.attr.inode, True)
        record = records.unpack_inode(txn.get(records.inode_key(old.attr.inode)) or b"")
        txn.put(records.inode_key(old.attr.inode), records.pack_inode(record._replace(mode=0o600, uid=70, gid=80)))
        (changes,) = apply_listing(txn, root, [file("a", "2", 25), file("b")], NOW + SECOND)
        new = get(txn, "/a")
        assert new.ref is not None
        assert changes.replaced == ((old.attr.inode, new.attr.inode),)
        assert new.attr.inode != old.attr.inode
        assert new.ref.fingerprint == Fingerprint("2", 25)
        assert (new.attr.mode, new.attr.uid, new.attr.gid, new.ref.pinned) == (0o600, 70, 80, True)
        orphan = namespace.get_entry(txn, old.attr.inode)
        assert orphan.ref is not None
        assert (orphan.ref.fingerprint, orphan.ref.key, orphan.attr.nlink) == (Fingerprint("1", 10), "a", 0)
        with pytest.raises(errors.NotFound):
            namespace.get_path(txn, old.attr.inode)
        with pytest.raises(errors.NotFound):
            namespace.set_pinned(txn, old.attr.inode, False)
        totals = namespace.get_totals(txn)
        assert (totals.files, totals.known_bytes, totals.orphans) == (2, 35, 1)

    def test_same_size_or_same_token_alone_is_not_the_same(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        for token, size in (("1", 10), ("2", 10), ("2", 11)):
            apply_listing(txn, root, [file("a", token, size)])
            assert get(txn, "/a").ref is not None
            assert get(txn, "/a").ref.fingerprint == Fingerprint(token, size)  # type: ignore[union-attr]
        assert namespace.get_totals(txn).orphans == 2

    def test_incomplete_until_the_last_page(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        plan = namespace.begin_listing(txn, root, NOW)
        first = namespace.apply_page(txn, plan, None, [file("a"), directory("b")], False, NOW)
        assert first.covered == "b/"
        assert namespace.lookup(txn, root, "a") is not None
        assert not namespace.get_dir_state(txn, root).complete
        assert [namespace.is_covered(name, first.covered) for name in ("a", "b", "b-", "b.", "c", "%~")] == [
            True,
            True,
            True,
            True,
            False,
            True,
        ]
        last = namespace.apply_page(txn, plan, first.covered, [file("c")], True, NOW + SECOND)
        assert last.covered is None
        state = namespace.get_dir_state(txn, root)
        assert (state.complete, state.listed_ns, state.files, state.directories) == (True, NOW, 2, 1)
        # Interrupted when repeated: complete still, as of before.
        plan = namespace.begin_listing(txn, root, NOW + 2 * SECOND)
        namespace.apply_page(txn, plan, None, [file("a")], False, NOW + 2 * SECOND)
        assert namespace.get_dir_state(txn, root).listed_ns == NOW

    def test_page_settles_its_range_only(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        apply_listing(txn, root, [file(name) for name in "abcdefg"])
        plan = namespace.begin_listing(txn, root, NOW)
        changes = namespace.apply_page(txn, plan, "b", [file("d")], False, NOW)
        assert len(changes.removed) == 1
        assert show(txn, root) == ["a", "b", "d", "e", "f", "g"]
        namespace.apply_page(txn, plan, "d", [], True, NOW)
        assert show(txn, root) == ["a", "b", "d"]

    def test_file_becomes_directory(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        apply_listing(txn, root, [file("a")])
        apply_listing(txn, root, [directory("a")])
        assert get(txn, "/a").attr.kind is Kind.DIRECTORY
        assert namespace.get_totals(txn).files == 0

    @pytest.mark.parametrize(
        "page",
        [
            [file("b"), file("a")],
            [file("a"), file("a")],
            [file("a/b")],
            [StoreEntry("a", Kind.FILE)],
        ],
    )
    def test_nonsense_from_the_store(self, txn: WriteTransaction, page: list[StoreEntry]) -> None:
        root = add_mount(txn).root
        plan = namespace.begin_listing(txn, root, NOW)
        with pytest.raises(errors.StoreProtocol):
            namespace.apply_page(txn, plan, None, page, True, NOW)
        with pytest.raises(errors.StoreProtocol):
            namespace.apply_page(txn, plan, "z", [file("y")], True, NOW)
        with pytest.raises(errors.InvalidArgument):
            namespace.apply_page(txn, plan, None, [], False, NOW)

    def test_what_changed_after_the_start_is_left_alone(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        apply_listing(txn, root, [file("a", "1"), file("gone"), file("stays")])
        slow = namespace.begin_listing(txn, root, NOW + SECOND)
        # Meanwhile single files were asked about, later than the slow listing's pages were made.
        for name, found in (("a", file("a", "2")), ("new", file("new")), ("gone", None)):
            plan = namespace.begin_listing(txn, root, NOW + 2 * SECOND)
            assert namespace.apply_stat(txn, plan, name, found, NOW + 2 * SECOND)
        fresh = get(txn, "/a").attr.inode
        changes = namespace.apply_page(txn, slow, None, [file("a", "1"), file("gone"), file("stays")], True, NOW + 3 * SECOND)
        assert changes.kept == 3
        assert not changes
        assert show(txn, root) == ["a", "new", "stays"]
        assert get(txn, "/a").attr.inode == fresh
        # The next listing settles it all, and leaves no tombstone.
        apply_listing(txn, root, [file("gone"), file("stays")], NOW + 4 * SECOND)
        assert show(txn, root) == ["gone", "stays"]
        assert list(txn.scan(b"T", b"U")) == []

    def test_stat(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        plan = namespace.begin_listing(txn, root, NOW)
        changes = namespace.apply_stat(txn, plan, "a", file("a"), NOW)
        assert changes.added
        assert not namespace.get_dir_state(txn, root).complete
        plan = namespace.begin_listing(txn, root, NOW)
        assert not namespace.apply_stat(txn, plan, "a", file("a"), NOW)
        assert not namespace.apply_stat(txn, plan, "other", None, NOW)
        with pytest.raises(errors.StoreProtocol):
            namespace.apply_stat(txn, plan, "a", file("b"), NOW)

    def test_listing_of_what_was_removed_meanwhile(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        apply_listing(txn, root, [directory("d")])
        plan = namespace.begin_listing(txn, get(txn, "/d").attr.inode, NOW)
        apply_listing(txn, root, [])
        with pytest.raises(errors.Stale):
            namespace.apply_page(txn, plan, None, [file("x")], True, NOW)
        with pytest.raises(errors.NotFound):
            namespace.begin_listing(txn, plan.directory, NOW)
        with pytest.raises(errors.NotFound):
            namespace.lookup(txn, plan.directory, "x")

    def test_listing_of_what_was_unmounted_meanwhile(self, txn: WriteTransaction) -> None:
        for path in ("/", "/m"):
            mount = add_mount(txn, path)
            apply_listing(txn, mount.root, [directory("d")])
            below = namespace.lookup(txn, mount.root, "d")
            assert below is not None
            plans = [namespace.begin_listing(txn, inode, NOW) for inode in (mount.root, below.attr.inode)]
            mounts.remove_mount(txn, path, NOW)
            add_mount(txn, path)
            for plan in plans:
                with pytest.raises(errors.Stale):
                    namespace.apply_page(txn, plan, None, [file("x")], True, NOW)
            with pytest.raises(errors.NotFound):
                namespace.begin_listing(txn, below.attr.inode, NOW)
            with pytest.raises(errors.NotFound):
                namespace.get_path(txn, below.attr.inode)
            mounts.remove_mount(txn, path, NOW)

    def test_an_older_listing_does_not_undo_a_newer_one(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        old = namespace.begin_listing(txn, root, NOW)
        apply_listing(txn, root, [file("a")])
        apply_listing(txn, root, [file("a"), file("b")])
        with pytest.raises(errors.Stale):
            namespace.apply_page(txn, old, None, [file("c")], True, NOW)

    def test_a_clock_that_went_back(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        apply_listing(txn, root, [file("a")], NOW)
        apply_listing(txn, root, [file("a"), file("b")], NOW - 100 * SECOND)
        assert show(txn, root) == ["a", "b"]
        assert get(txn, "/").attr.mtime_ns > NOW

    def test_missing_directory(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        apply_listing(txn, root, [directory("d"), directory("e")])
        d = get(txn, "/d").attr.inode
        assert namespace.apply_missing(txn, namespace.begin_listing(txn, d, NOW), NOW).removed == (d,)
        assert show(txn, root) == ["e"]
        add_mount(txn, "/e/below")
        e = get(txn, "/e").attr.inode
        namespace.apply_missing(txn, namespace.begin_listing(txn, e, NOW), NOW)
        assert show(txn, root) == ["e"]
        assert show(txn, e) == ["below"]
        namespace.apply_missing(txn, namespace.begin_listing(txn, root, NOW), NOW)
        assert show(txn, root) == ["e"]

    def test_directory_times(self, txn: WriteTransaction) -> None:
        root = add_mount(txn, now_ns=NOW).root
        assert get(txn, "/").attr.mtime_ns == NOW + 1
        apply_listing(txn, root, [file("a"), directory("seen"), directory("stored", NOW - 5)], NOW + SECOND)
        assert get(txn, "/").attr.mtime_ns == NOW + 1
        assert get(txn, "/seen").attr.mtime_ns == NOW + SECOND
        assert get(txn, "/stored").attr.mtime_ns == NOW - 5
        again = [file("a"), directory("seen"), directory("stored", NOW - 4)]
        apply_listing(txn, root, again, NOW + 2 * SECOND)
        assert get(txn, "/").attr.mtime_ns == NOW + 1
        assert get(txn, "/stored").attr.mtime_ns == NOW - 4
        apply_listing(txn, root, again[1:], NOW + 3 * SECOND)
        assert get(txn, "/").attr.mtime_ns == NOW + 3 * SECOND
        stored = get(txn, "/stored").attr.inode
        apply_listing(txn, stored, [file("x")], NOW + 4 * SECOND)
        apply_listing(txn, stored, [], NOW + 5 * SECOND)
        assert get(txn, "/stored").attr.mtime_ns == NOW - 4

    def test_untrusted_fingerprints(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        apply_listing(txn, root, [file("a"), file("b", trusted=False), file("c")], page=1)
        young = get(txn, "/b").attr.inode
        assert namespace.get_dir_state(txn, root).untrusted
        apply_listing(txn, root, [file("a"), file("b", trusted=False), file("c")], page=1)
        assert get(txn, "/b").attr.inode == young
        (changes,) = apply_listing(txn, root, [file("a"), file("b"), file("c")])
        # Now trusted: what was cached under the young fingerprint may have been another content.
        assert [old for old, _ in changes.replaced] == [young]
        assert not namespace.get_dir_state(txn, root).untrusted
        assert not any(apply_listing(txn, root, [file("a"), file("b"), file("c")]))


ODD_NAMES = [
    ("", "%~"),
    (".", "%2E%~"),
    ("..", "%2E%2E%~"),
    ("a\0b", "a%00b%~"),
    ("x%~", "x%25~%~"),
    ("x%~file", "x%25~file%~"),
    ("%~%~", "%25~%25~%~"),
    ("x%~" + "0" * 32, "x%25~" + "0" * 32 + "%~"),
]


class TestOddNames:
    @pytest.mark.parametrize("kind", [Kind.FILE, Kind.DIRECTORY])
    def test_shown_and_found(self, txn: WriteTransaction, kind: Kind) -> None:
        root = add_mount(txn).root
        raws = [raw for raw, _ in ODD_NAMES] + ["n" * 256, "n" * 1000, "n" * 999 + "m", "ü" * 300, "\0" * 200, "50%"]
        entries = [directory(raw) if kind is Kind.DIRECTORY else file(raw) for raw in raws]
        apply_listing(txn, root, entries, page=3)
        assert not any(apply_listing(txn, root, entries, page=2))
        found = {to_bytes(entry.name): entry for entry in read_all(txn, root, 4)}
        assert len(found) == len(raws)
        assert all(0 < len(name) <= 255 and b"\0" not in name and name not in (b".", b"..") for name in found)
        for raw, shown in ODD_NAMES:
            entry = namespace.lookup(txn, root, shown)
            assert entry is not None
            assert namespace.get_key(txn, entry.attr.inode)[1] == raw + "/" * (kind is Kind.DIRECTORY)
        for name, entry in found.items():
            again = namespace.lookup(txn, root, entry.name)
            assert again == entry
            assert to_bytes(namespace.get_path(txn, entry.attr.inode)) == b"/" + name
            assert namespace.get_entry(txn, entry.attr.inode).name == entry.name
        assert namespace.get_totals(txn).odd_names == len(raws) - 1
        for missing in ("", ".", "..", "a\0b", "n%~" + "0" * 32, "50%~", "%~file"):
            assert namespace.lookup(txn, root, missing) is None
        with pytest.raises(errors.NameTooLong):
            namespace.lookup(txn, root, "n" * 256)
        apply_listing(txn, root, [])
        assert namespace.get_totals(txn).odd_names == 0
        assert list(txn.scan(b"H", b"I")) == []

    def test_a_file_beside_a_directory_of_its_name(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        long_name = "l" * 254
        for entries in (
            [file("a"), directory("a"), file("a!"), file(long_name), directory(long_name)],
            [file("a"), file("a!"), file(long_name)],
            [directory("a"), file("a"), file("a!"), file(long_name), directory(long_name)],
        ):
            apply_listing(txn, root, entries)
            beside = any(entry.kind is Kind.DIRECTORY for entry in entries)
            assert namespace.get_dir_state(txn, root).shadowed == 2 * beside
            names = {entry.name: entry for entry in read_all(txn, root)}
            assert len(names) == len(entries)
            shown = "a%~file" if beside else "a"
            assert names[shown].ref is not None
            assert names[shown].ref.key == "a"  # type: ignore[union-attr]
            for name, entry in names.items():
                assert namespace.lookup(txn, root, name) == entry
                assert len(to_bytes(name)) <= 255
            a = namespace.lookup(txn, root, "a")
            assert a is not None
            assert a.attr.kind is (Kind.DIRECTORY if beside else Kind.FILE)
            assert (namespace.lookup(txn, root, "a%~file") is None) != beside
        assert namespace.get_totals(txn).odd_names == 2

    def test_bytes_that_are_not_utf8(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        name = b"\xff\xfe\x80".decode("utf-8", "surrogateescape")
        apply_listing(txn, root, [file(name)])
        assert show(txn, root) == [name]
        assert namespace.lookup(txn, root, name) is not None
        assert paths.split_path("/" + name) == (name,)


class TestMounts:
    def test_table(self, txn: WriteTransaction) -> None:
        data = add_mount(txn, "/a/b/data")
        other = add_mount(txn, "/a/other")
        assert [mount.path for mount in mounts.list_mounts(txn)] == ["/a/b/data", "/a/other"]
        assert mounts.get_mount(txn, data.mount_id) == data
        assert data.options == {"region": "x"}
        assert show(txn, get(txn, "/a").attr.inode) == ["b", "other"]
        assert get(txn, "/a/b/data").attr.uid == 7
        found = mounts.lookup_mount_of(txn, "/a/b/data/x/y")
        assert found == (data, "x/y")
        assert mounts.lookup_mount_of(txn, "/a/other") == (other, "")
        assert mounts.lookup_mount_of(txn, "/a/otherwise") is None
        with pytest.raises(errors.AlreadyExists):
            add_mount(txn, "/a/b/data")
        with pytest.raises(errors.NotFound):
            mounts.remove_mount(txn, "/a/b", NOW)
        mounts.remove_mount(txn, "/a/b/data", NOW)
        assert show(txn, get(txn, "/a").attr.inode) == ["other"]
        with pytest.raises(errors.NotFound):
            mounts.get_mount(txn, data.mount_id)
        mounts.remove_mount(txn, "/a/other", NOW)
        assert show(txn, ROOT_INODE) == []
        assert add_mount(txn, "/a/b/data").mount_id not in (data.mount_id, other.mount_id)

    def test_nested(self, txn: WriteTransaction) -> None:
        outer = add_mount(txn, "/data")
        inner = add_mount(txn, "/data/x/y/inner", uid=9)
        apply_listing(txn, inner.root, [file("f")])
        # The way there stays, though the store knows nothing of it.
        apply_listing(txn, outer.root, [file("z")])
        assert show(txn, outer.root) == ["x", "z"]
        assert namespace.get_key(txn, get(txn, "/data/x").attr.inode) == (outer.mount_id, "x/")
        apply_listing(txn, get(txn, "/data/x").attr.inode, [directory("y"), file("q")])
        apply_listing(txn, get(txn, "/data/x/y").attr.inode, [directory("inner"), file("inner")])
        entry = get(txn, "/data/x/y/inner/f")
        assert entry.ref is not None
        assert (entry.ref.mount_id, entry.ref.key) == (inner.mount_id, "f")
        assert get(txn, "/data/x/y/inner").attr.inode == inner.root
        assert mounts.lookup_mount_of(txn, "/data/x/y/inner/f") == (inner, "f")
        assert mounts.lookup_mount_of(txn, "/data/x/y") == (outer, "x/y")
        with pytest.raises(errors.Conflict, match="/data/x/y/inner"):
            mounts.remove_mount(txn, "/data", NOW)
        with pytest.raises(errors.Conflict):
            add_mount(txn, "/data/x")
        mounts.remove_mount(txn, "/data/x/y/inner", NOW)
        # What the store itself has there shows when it is asked again.
        y = get(txn, "/data/x/y").attr.inode
        assert not namespace.get_dir_state(txn, y).complete
        assert not namespace.get_dir_state(txn, outer.root).complete
        apply_listing(txn, y, [directory("inner")])
        assert get(txn, "/data/x/y/inner").attr.inode != inner.root
        apply_listing(txn, outer.root, [])
        assert show(txn, outer.root) == []
        mounts.remove_mount(txn, "/data", NOW)
        assert show(txn, ROOT_INODE) == []

    def test_over_a_known_directory(self, txn: WriteTransaction) -> None:
        outer = add_mount(txn, "/data")
        apply_listing(txn, outer.root, [directory("d"), file("f")])
        apply_listing(txn, get(txn, "/data/d").attr.inode, [file("hidden")])
        inner = add_mount(txn, "/data/d")
        assert show(txn, inner.root) == []
        apply_listing(txn, outer.root, [directory("d"), file("f")])
        assert get(txn, "/data/d").attr.inode == inner.root
        with pytest.raises(errors.NotADirectory):
            add_mount(txn, "/data/f")
        with pytest.raises(errors.NotADirectory):
            add_mount(txn, "/data/f/x")
        with pytest.raises(errors.InvalidArgument):
            add_mount(txn, "/x%~")

    def test_root(self, txn: WriteTransaction) -> None:
        """The root can be mounted before or after others, and be unmounted with all that is known below it."""
        data = add_mount(txn, "/a/data")
        root = add_mount(txn, "/")
        assert root.root == ROOT_INODE
        assert not namespace.get_dir_state(txn, ROOT_INODE).complete
        apply_listing(txn, ROOT_INODE, [file("f"), directory("d")])
        assert show(txn, ROOT_INODE) == ["a", "d", "f"]
        a = get(txn, "/a").attr.inode
        assert namespace.get_key(txn, a) == (root.mount_id, "a/")
        apply_listing(txn, a, [file("g"), directory("data")])
        assert show(txn, a) == ["data", "g"]
        assert get(txn, "/a/data").attr.inode == data.root
        old = get(txn, "/f")
        with pytest.raises(errors.Conflict):
            mounts.remove_mount(txn, "/", NOW)
        mounts.remove_mount(txn, "/a/data", NOW)
        mounts.remove_mount(txn, "/", NOW)
        assert show(txn, ROOT_INODE) == []
        assert namespace.get_dir_state(txn, ROOT_INODE).complete
        assert namespace.get_entry(txn, old.attr.inode).attr == old.attr
        again = add_mount(txn, "/")
        apply_listing(txn, ROOT_INODE, [file("f")])
        assert get(txn, "/f").attr.inode != old.attr.inode
        assert namespace.get_key(txn, get(txn, "/f").attr.inode) == (again.mount_id, "f")
        purged = namespace.purge(txn, NOW + 10 * SECOND, 0)
        while purged.more:
            purged = namespace.purge(txn, NOW + 10 * SECOND, 0)
        totals = namespace.get_totals(txn)
        assert (totals.files, totals.directories, totals.orphans) == (1, 1, 0)


class TestOrphans:
    def test_kept_for_a_while_and_purged_in_steps(self, txn: WriteTransaction) -> None:
        root = add_mount(txn, "/m").root
        apply_listing(txn, root, [directory("d"), file("f")])
        d = get(txn, "/m/d").attr.inode
        apply_listing(txn, d, [directory("e"), *(file(f"{number:02}") for number in range(20)), file("e")])
        apply_listing(txn, get(txn, "/m/d/e").attr.inode, [file("deep"), file("n" * 300)])
        deep = get(txn, "/m/d/e/deep")
        apply_listing(txn, root, [], NOW + SECOND)
        assert namespace.get_entry(txn, deep.attr.inode) == deep
        assert namespace.purge(txn, NOW + SECOND + 3600 * SECOND - 1) == namespace.purge(txn, NOW)
        files = []
        directories = []
        for _ in range(40):
            purged = namespace.purge(txn, NOW + 3602 * SECOND, limit=4)
            files.extend(purged.files)
            directories.extend(purged.directories)
            if not purged.more:
                break
        assert len(set(files)) == len(files) == 24
        assert len(directories) == 2
        totals = namespace.get_totals(txn)
        assert (totals.files, totals.directories, totals.known_bytes, totals.odd_names, totals.orphans) == (0, 2, 0, 0, 0)
        with pytest.raises(errors.NotFound):
            namespace.get_entry(txn, deep.attr.inode)
        left = {key[:1] for key, _ in txn.scan(b"\0", b"\xff")}
        assert left == {b"C", b"D", b"I", b"S", b"M"}
        assert len(list(txn.scan(b"I", b"J"))) == 2

    def test_an_orphan_whose_directory_is_gone(self, txn: WriteTransaction) -> None:
        root = add_mount(txn).root
        apply_listing(txn, root, [directory("d")])
        d = get(txn, "/d").attr.inode
        apply_listing(txn, d, [directory("e")])
        e = get(txn, "/d/e").attr.inode
        apply_listing(txn, root, [])
        purged = namespace.purge(txn, NOW + SECOND, 0, limit=2)
        assert purged.directories == (d,)
        assert purged.more
        for ask in (namespace.get_entry, namespace.get_key, namespace.get_path, namespace.is_pinned):
            with pytest.raises(errors.NotFound):
                ask(txn, e)


class TestPins:
    def test_effective_pins(self, txn: WriteTransaction) -> None:
        root = add_mount(txn, "/m").root
        apply_listing(txn, root, [directory("d"), file("f")])
        d = get(txn, "/m/d").attr.inode
        apply_listing(txn, d, [file("g")])

        def pinned(path: str) -> bool:
            entry = get(txn, path)
            assert entry.ref is not None
            listed = namespace.list_entries(txn, namespace.resolve(txn, path.rpartition("/")[0]).entry.attr.inode).entries
            assert entry in listed
            assert namespace.get_entry(txn, entry.attr.inode) == entry
            assert namespace.is_pinned(txn, entry.attr.inode) == entry.ref.pinned
            return entry.ref.pinned

        assert not pinned("/m/d/g")
        assert namespace.set_pinned(txn, d, True)
        assert not namespace.set_pinned(txn, d, True)
        assert pinned("/m/d/g")
        assert not pinned("/m/f")
        namespace.set_pinned(txn, ROOT_INODE, True)
        assert pinned("/m/f")
        namespace.set_pinned(txn, ROOT_INODE, False)
        namespace.set_pinned(txn, d, False)
        assert not pinned("/m/d/g")


class TestStart:
    def test_ids_are_never_given_twice(self, store: KeyValueStore) -> None:
        """A power loss may undo the last commits; ids given away in them are not given again."""
        with store.write() as txn:
            root = add_mount(txn).root
        undone: set[InodeId] = set()
        with pytest.raises(InterruptedError), store.write() as txn:
            for changes in apply_listing(txn, root, [file(f"{number:04}") for number in range(3000)]):
                undone.update(changes.added)
            raise InterruptedError
        with store.write() as txn:
            namespace.prepare(txn, NOW)
            (changes,) = apply_listing(txn, root, [file("x")])
        assert len(undone) == 3000
        assert not undone & set(changes.added)

    def test_newer_format(self, store: KeyValueStore) -> None:
        with store.write() as txn:
            txn.put(records.KEY_FORMAT, records.pack_id(records.FORMAT + 1))
            with pytest.raises(errors.FormatTooNew, match="newer release"):
                namespace.prepare(txn, NOW)


class TestOperations:
    def test_once(self, txn: WriteTransaction) -> None:
        calls: list[int] = []

        def work() -> bytes:
            calls.append(1)
            return b"result%d" % len(calls)

        assert operations.run_once(txn, "id", "mount", NOW, work) == b"result1"
        assert operations.run_once(txn, "id", "mount", NOW + 599 * SECOND, work) == b"result1"
        assert operations.run_once(txn, "x" * 10_000, "mount", NOW, work) == b"result2"
        assert operations.run_once(txn, "", "mount", NOW, work) == b"result3"
        assert operations.run_once(txn, "", "mount", NOW, work) == b"result4"
        with pytest.raises(errors.InvalidArgument):
            operations.run_once(txn, "id", "unmount", NOW, work)
        assert operations.purge(txn, NOW + 600 * SECOND) == 0
        assert operations.purge(txn, NOW + 601 * SECOND) == 2
        assert operations.run_once(txn, "id", "mount", NOW + 601 * SECOND, work) == b"result5"
        assert len(list(txn.scan(b"O", b"Q"))) == 2

    def test_failure_stores_nothing(self, txn: WriteTransaction) -> None:
        def fail() -> bytes:
            raise errors.AlreadyExists("x")

        with pytest.raises(errors.AlreadyExists):
            operations.run_once(txn, "id", "mount", NOW, fail)
        assert operations.run_once(txn, "id", "mount", NOW, lambda: b"ok") == b"ok"
