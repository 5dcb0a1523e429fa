"""Records and directories read by columns, against the same ones read one by one."""

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alluxio_like import errors
from alluxio_like.kv.api import KeyValueStore, WriteTransaction
from alluxio_like.kv.columns import gather, make_columns, move
from alluxio_like.kv.lmdb import LmdbStore
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import changes, mounts, namespace, record_columns, records, snapshots, tables, tree
from alluxio_like.master.core.model import NO_MOUNT
from alluxio_like.master.core.records import Inode
from alluxio_like.types import ROOT_INODE, Fingerprint, InodeId, Kind, MountId, VersionId, to_bytes, to_str
from alluxio_like.ufs.api import StoreEntry
from tests.model.checked import assert_columns, assert_columns_of_many

SECOND = 10**9
NOW = 1_700_000_000 * SECOND

HEX = st.binary(min_size=16, max_size=16).map(bytes.hex)
PARTS = st.one_of(st.just(""), st.integers(1, 10_000).map("-{}".format))
PLAIN_TOKENS = st.one_of(
    st.builds(str.__add__, HEX, PARTS),
    st.builds('"{}{}"'.format, HEX, PARTS),
    st.text(max_size=40),
    st.binary(max_size=300).map(lambda data: data.decode("utf-8", "surrogateescape")),
    HEX.map(str.upper),
)
TOKENS = st.one_of(
    st.just(b""),
    PLAIN_TOKENS.map(records.pack_token),
    st.builds(records.keep_identity, PLAIN_TOKENS.map(records.pack_token), PLAIN_TOKENS),
)
TIMES = st.one_of(st.integers(-(2**63), 2**63 - 1), st.just(NOW))
INODES = st.builds(
    Inode,
    kind=st.one_of(st.just(Kind.FILE), st.sampled_from(Kind)),
    flags=st.one_of(st.just(0), st.integers(0, (1 << 13) - 1)),
    mode=st.integers(0, 0o7777),
    nlink=st.integers(0, 65535),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    mount_id=st.integers(0, 2**32 - 1).map(MountId),
    size=st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 200)),
    mtime_ns=TIMES,
    ctime_ns=TIMES,
    version=st.integers(0, 2**32 - 1).map(VersionId),
    sequence=st.integers(0, 2**64 - 1),
    parent=st.integers(0, 2**64 - 1).map(InodeId),
    token=TOKENS,
    name=st.one_of(st.binary(max_size=40), st.binary(max_size=700)),
    atime_ns=st.none() | TIMES,
)


def cut(joined: np.ndarray, ends: np.ndarray) -> list[bytes]:
    starts = [0, *ends.tolist()][:-1]
    return [joined[start:end].tobytes() for start, end in zip(starts, ends.tolist(), strict=True)]


@given(inodes=st.lists(INODES, max_size=40))
@settings(max_examples=150, deadline=None)
@example(inodes=[])
def test_records_by_columns(inodes: list[Inode]) -> None:
    packed = [records.pack_inode(inode) for inode in inodes]
    pairs = make_columns([(b"key", data) for data in packed])
    found = record_columns.open_records(pairs.data, pairs.value_starts, pairs.value_lengths)
    assert [found.get(row) for row in range(len(inodes))] == packed
    assert found.kinds.tolist() == [inode.kind for inode in inodes]
    assert found.sizes.tolist() == [inode.size for inode in inodes]
    assert found.mtimes_ns.tolist() == [inode.mtime_ns for inode in inodes]
    tokens = found.find_tokens()
    times = records.OWN_CTIME | records.OWN_ATIME
    assert [flags & ~times for flags in found.flags.tolist()] == [inode.flags for inode in inodes]
    assert cut(*gather(found.data, *found.find_names(tokens))) == [inode.name for inode in inodes]
    assert cut(*record_columns.join_tokens(found, tokens)) == [
        to_bytes(inode.fingerprint.token) if inode.kind is Kind.FILE else b"" for inode in inodes
    ]


@given(spans=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 300)), max_size=50))
def test_bytes_of_any_lengths(spans: list[tuple[int, int]]) -> None:
    data = np.random.default_rng(1).integers(0, 256, 1200, dtype=np.uint8)
    starts = np.array([start for start, _ in spans], np.int64)
    lengths = np.array([length for _, length in spans], np.int64)
    assert cut(*gather(data, starts, lengths)) == [data[start : start + length].tobytes() for start, length in spans]
    # Into places in another order, with room between them that stays as it is.
    out = np.full(len(spans) * 301, 7, np.uint8)
    places = np.arange(len(spans), dtype=np.int64)[::-1] * 301
    move(out, places, data, starts, lengths)
    for place, (start, length) in zip(places.tolist(), spans, strict=True):
        assert out[place : place + 301].tobytes() == data[start : start + length].tobytes() + b"\7" * (301 - length)


@pytest.fixture(params=["memory", "lmdb"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], KeyValueStore]]:
    made: list[KeyValueStore] = []

    def make() -> KeyValueStore:
        if made:
            made.pop().close()
        store: KeyValueStore = MemoryStore() if request.param == "memory" else LmdbStore(Path(mkdtemp(dir=tmp_path)))
        made.append(store)
        with store.write() as txn:
            namespace.prepare(txn, NOW)
            mounts.add_mount(txn, "/", "s3://bucket/", options={}, read_only=False, uid=7, gid=8, now_ns=NOW)
        return store

    yield make
    made.pop().close()


def list_all(txn: WriteTransaction, entries: list[StoreEntry], now_ns: int) -> None:
    plan = namespace.begin_listing(txn, ROOT_INODE, now_ns)
    entries = sorted(entries, key=lambda entry: to_bytes(entry.sort_name))
    namespace.apply_page(txn, plan, None, entries, True, now_ns)


NAMES = [
    *("plain-{:05}", "{:05}", "x" * 300 + "{:05}", "y" * 240 + "{:05}", "é{:05}%~", "\udcff{:05}", "nul\0{:05}", "d{:05}\n"),
    *("z" * 600 + "{:05}", "{:05}%~file"),
]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["file", "directory", "both"])), min_size=1, max_size=6),
    count=st.sampled_from([1, 100, 129, 300]),
    changed=st.sampled_from([0, 1, 3, 40, 200]),
    limit=st.sampled_from([1000, 128, 129, 300, 100_000]),
)
def test_directories_by_columns(
    make_store: Callable[[], KeyValueStore], kinds: list[tuple[str, str]], count: int, changed: int, limit: int
) -> None:
    """Numbers in order and in none, names that are shown otherwise, files beside directories of their names, links."""

    def make(version: int) -> list[StoreEntry]:
        entries = {}
        for number in range(count):
            shape, kind = kinds[number % len(kinds)]
            name = shape.format(number)
            if kind != "file":
                entries[name, Kind.DIRECTORY] = StoreEntry(name, Kind.DIRECTORY)
            if kind != "directory":
                token = f"token-{version if changed and number % changed == 0 else 0}"
                entries[name, Kind.FILE] = StoreEntry(name, Kind.FILE, Fingerprint(token, number), NOW - SECOND)
        return list(entries.values())

    store = make_store()
    with store.write() as txn:
        list_all(txn, make(0), NOW + SECOND)
    with store.write() as txn:
        list_all(txn, make(1), NOW + 2 * SECOND)
        assert_columns(txn, ROOT_INODE, limit)
    with store.write() as txn:
        file = next((entry for entry in namespace.list_entries(txn, ROOT_INODE).entries if entry.attr.kind is Kind.FILE), None)
        if file is not None:
            changes.link(txn, file.attr.inode, ROOT_INODE, b"zz-another-name", NOW + 3 * SECOND, max_key_bytes=1024)
    with store.read() as reader:
        assert_columns(reader, ROOT_INODE, limit)


class Tree:
    """A namespace that grows and changes, as a store's listings and programs make it."""

    def __init__(self, txn: WriteTransaction, chooser: random.Random) -> None:
        self.txn = txn
        self.chooser = chooser
        self.now_ns = NOW

    def find(self, kind: Kind) -> list[tuple[InodeId, bytes, InodeId]]:
        """Parent, shown name and inode of all of a kind."""
        found, waiting = [], [ROOT_INODE]
        while waiting:
            at = waiting.pop()
            for entry in namespace.list_entries(self.txn, at).entries:
                if entry.attr.kind is Kind.DIRECTORY:
                    waiting.append(entry.attr.inode)
                if entry.attr.kind is kind:
                    found.append((at, to_bytes(entry.name), entry.attr.inode))
        return found

    def grow(self, count: int, longest: int) -> None:
        """List some directories, new ones among them."""
        self.now_ns += SECOND
        places = [inode for _, _, inode in self.find(Kind.DIRECTORY)]
        for place in [ROOT_INODE, *self.chooser.sample(places, min(len(places), 4))]:
            if not tables.is_below(self.txn, place, ROOT_INODE) or tables.get_inode(self.txn, place).mount_id == NO_MOUNT:
                # What a listing before this one has removed; a mount point's parent.
                continue
            entries = {}
            for _ in range(self.chooser.randrange(count + 1)):
                name = to_str(self.chooser.randbytes(self.chooser.randint(1, longest)).replace(b"/", b"_"))
                for kind in self.chooser.choice([(Kind.FILE,), (Kind.FILE,), (Kind.DIRECTORY,), (Kind.FILE, Kind.DIRECTORY)]):
                    token = self.chooser.choice(['"%032x"', "%032x", "%032x-7", "%x"]) % self.chooser.getrandbits(100)
                    fingerprint = Fingerprint(token, len(name)) if kind is Kind.FILE else None
                    entries[name, kind] = StoreEntry(name, kind, fingerprint, self.now_ns - self.chooser.choice([0, 9 * SECOND]))
            plan = namespace.begin_listing(self.txn, place, self.now_ns)
            ordered = sorted(entries.values(), key=lambda entry: to_bytes(entry.sort_name))
            is_last = not ordered or self.chooser.random() < 0.8
            namespace.apply_page(self.txn, plan, None, ordered, is_last, self.now_ns)

    def change(self) -> None:
        """What programs do: links, renames, removals."""
        self.now_ns += SECOND
        files, places = self.find(Kind.FILE), [ROOT_INODE, *(inode for _, _, inode in self.find(Kind.DIRECTORY))]
        for number, (parent, name, inode) in enumerate(self.chooser.sample(files, min(len(files), 12))):
            place, other = self.chooser.choice(places), b"other-%d-%d" % (self.now_ns, number)
            with contextlib.suppress(errors.AlluxioLikeError):
                match self.chooser.randrange(3):
                    case 0:
                        changes.link(self.txn, inode, place, other, self.now_ns, max_key_bytes=1024)
                    case 1:
                        changes.unlink(self.txn, parent, name, self.now_ns)
                    case _:
                        changes.rename(self.txn, parent, name, place, other, self.now_ns, max_key_bytes=1024)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 32),
    count=st.sampled_from([3, 12, 60]),
    longest=st.sampled_from([3, 60, 255]),
    few=st.sampled_from([0, 64]),
)
def test_many_directories_at_once(make_store: Callable[[], KeyValueStore], seed: int, count: int, longest: int, few: int) -> None:
    """Of trees with mounts inside, odd names, links, and what was removed: now and in a snapshot, in any order, some twice."""
    store = make_store()
    chooser = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "_FEW", few)
        with store.write() as txn:
            made = Tree(txn, chooser)
            made.grow(count, longest)
            mounts.add_mount(txn, "/in/side", "s3://other/", options={}, read_only=False, uid=7, gid=8, now_ns=NOW)
            for _ in range(3):
                made.grow(count, longest)
            places = [ROOT_INODE, *(inode for _, _, inode in made.find(Kind.DIRECTORY))]
            files = [inode for _, _, inode in made.find(Kind.FILE)]
            number = snapshots.create(txn, ROOT_INODE, "s", made.now_ns).number
        with store.write() as txn:
            made.txn = snapshots.record(txn)
            made.change()
            made.grow(count, longest)
            asked = sorted({*places, *(inode for _, _, inode in made.find(Kind.DIRECTORY))})
            assert_columns_of_many(made.txn, asked)
        asked += [*files[:2], InodeId(1 << 40), InodeId((1 << 64) - 1)]
        with store.read() as reader:
            assert_columns_of_many(reader, asked)
            chooser.shuffle(asked)
            assert_columns_of_many(reader, asked + asked[:3])
            assert_columns_of_many(reader, asked[: len(asked) // 3])
            assert_columns_of_many(snapshots.View(reader, number), places)
            assert_columns_of_many(reader, [])


def test_a_name_without_an_inode_is_an_error(make_store: Callable[[], KeyValueStore]) -> None:
    store = make_store()
    with store.write() as txn:
        list_all(txn, [StoreEntry(f"{number:05}", Kind.FILE, Fingerprint("a", 1), NOW) for number in range(300)], NOW)
        inodes = [entry.attr.inode for entry in namespace.list_entries(txn, ROOT_INODE).entries]
    for missing in (inodes[0], inodes[150], inodes[-1]):
        with store.write() as txn:
            record = txn.get(records.inode_key(missing))
            assert record is not None
            txn.delete(records.inode_key(missing))
        with store.read() as reader, pytest.raises(errors.Internal, match="a name without an inode"):
            tree.read_some(reader, ROOT_INODE, b"/", b"", 1000)
        with store.write() as txn:
            txn.put(records.inode_key(missing), record)
