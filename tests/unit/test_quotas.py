"""Quotas: what is counted and refused in the namespace, claims of files being written, and what statfs makes of it.

(Counting beside whatever changes: tests/model/test_quotas_model.py; on a mount: tests/cluster/test_quotas.py.)"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from alluxio_like import errors
from alluxio_like.client.space import LITTLE_BYTES, limit_space
from alluxio_like.fuse.answers import UNLIMITED_BYTES, get_space
from alluxio_like.fuse.backend import Totals
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import changes, checking_quotas, mounts, namespace, quotas, usage, versions
from alluxio_like.master.core.changes import NewInode
from alluxio_like.master.core.claims import KEEP_S, Claims
from alluxio_like.master.core.quotas import Quota
from alluxio_like.master.core.usage import Usage
from alluxio_like.rpc.messages import FsTotals
from alluxio_like.types import ROOT_INODE, Fingerprint, InodeId, Kind, Space, Worker, WorkerId
from alluxio_like.ufs.api import StoreEntry

NOW = 1_700_000_000 * 10**9
KEY_BYTES = 1024


@pytest.fixture
def txn() -> Iterator[WriteTransaction]:
    store = MemoryStore()
    with store.write() as txn:
        namespace.prepare(txn, NOW)
        mounts.add_mount(txn, "/", "s3://b", options={}, read_only=False, uid=7, gid=8, now_ns=NOW)
        apply_listing(txn, ROOT_INODE, [])
        yield txn
        assert not list(checking_quotas.check(txn))
    store.close()


def apply_listing(txn: WriteTransaction, directory: InodeId, names: list[str]) -> None:
    plan = namespace.begin_listing(txn, directory, NOW)
    page = [
        StoreEntry(name.rstrip("/"), Kind.DIRECTORY)
        if name.endswith("/")
        else StoreEntry(name, Kind.FILE, Fingerprint(f"e-{name}", 5), 3)
        for name in sorted(names)
    ]
    namespace.apply_page(txn, plan, None, page, True, NOW)


def create(txn: WriteTransaction, name: str, parent: InodeId = ROOT_INODE, kind: Kind = Kind.FILE) -> InodeId:
    return changes.create(txn, parent, name.encode(), NewInode(kind, 0o644, 1, 2), NOW, max_key_bytes=KEY_BYTES).inode


def rename(txn: WriteTransaction, old: str, into: InodeId, new: str, parent: InodeId = ROOT_INODE) -> None:
    changes.rename(txn, parent, old.encode(), into, new.encode(), NOW, max_key_bytes=KEY_BYTES)


def seal(txn: WriteTransaction, inode: InodeId, size: int) -> bool:
    return versions.seal(txn, inode, size, NOW, ("w1",), NOW).over_quota


def set_quota(txn: WriteTransaction, directory: InodeId, *, max_bytes: int | None = None, max_files: int | None = None) -> None:
    quotas.set_quota(txn, Quota(directory, max_bytes, max_files))
    while quotas.count_some(txn, 3):
        pass


@contextmanager
def refused(txn: WriteTransaction, match: str = "the quota of") -> Iterator[None]:
    """Something that a quota refuses, after which all is as it was: its transaction is aborted."""
    before = dict(txn.scan(b"A", b"\xff"))
    with pytest.raises(errors.QuotaExceeded, match=match):
        yield
    for key in [key for key, _ in txn.scan(b"A", b"\xff") if key not in before]:
        txn.delete(key)
    for key, value in before.items():
        txn.put(key, value)


def test_what_was_there_is_counted_in_steps_and_what_comes_meanwhile_too(txn: WriteTransaction) -> None:
    top = create(txn, "top", kind=Kind.DIRECTORY)
    below = create(txn, "below", top, Kind.DIRECTORY)
    for number in range(10):
        seal(txn, create(txn, f"f{number}", below), 10)
    quotas.set_quota(txn, Quota(top, 1000, None))
    assert quotas.is_counting(txn, top)
    assert quotas.count_some(txn, 4)
    # Before and behind where the count is.
    seal(txn, create(txn, "a", below), 7)
    seal(txn, create(txn, "z", below), 7)
    changes.unlink(txn, below, b"f0", NOW)
    while quotas.count_some(txn, 4):
        assert quotas.is_counting(txn, top)
    assert not quotas.is_counting(txn, top)
    assert quotas.get_usage(txn, top) == Usage(12, 104)


def test_a_full_quota_refuses_names_and_never_takes_less_for_more(txn: WriteTransaction) -> None:
    top = create(txn, "top", kind=Kind.DIRECTORY)
    file = create(txn, "file", top)
    assert not seal(txn, file, 90)
    set_quota(txn, top, max_bytes=100)
    assert not seal(txn, file, 100)
    for kind in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK):
        with refused(txn, match="alluxio-like quota set"):
            create(txn, "more", top, kind)
    # A version is kept whatever it makes of the quota, and says so; a smaller one is fine.
    assert seal(txn, file, 150)
    assert quotas.get_usage(txn, top) == Usage(1, 150)
    assert not seal(txn, file, 120)
    rename(txn, "file", top, "other", top)
    changes.unlink(txn, top, b"other", NOW)
    create(txn, "more", top)


def test_renames_across_quotas(txn: WriteTransaction) -> None:
    top, other = create(txn, "top", kind=Kind.DIRECTORY), create(txn, "other", kind=Kind.DIRECTORY)
    seal(txn, create(txn, "big", other), 60)
    seal(txn, create(txn, "mine", top), 50)
    set_quota(txn, top, max_bytes=100)
    set_quota(txn, ROOT_INODE, max_bytes=1000)
    with refused(txn):
        rename(txn, "big", top, "big", other)


def test_a_rename_over_what_is_there_needs_only_the_difference(txn: WriteTransaction) -> None:
    top = create(txn, "top", kind=Kind.DIRECTORY)
    seal(txn, create(txn, "big"), 60)
    seal(txn, create(txn, "mine", top), 50)
    set_quota(txn, top, max_bytes=60, max_files=1)
    rename(txn, "big", top, "mine")
    assert quotas.get_usage(txn, top) == Usage(1, 60)


def test_a_directory_comes_and_goes_with_all_that_is_in_it(txn: WriteTransaction) -> None:
    top, tree = create(txn, "top", kind=Kind.DIRECTORY), create(txn, "tree", kind=Kind.DIRECTORY)
    deep = create(txn, "deep", tree, Kind.DIRECTORY)
    seal(txn, create(txn, "file", deep), 30)
    set_quota(txn, top, max_bytes=100)
    rename(txn, "tree", top, "tree")
    assert quotas.is_counting(txn, top)
    while quotas.count_some(txn, 1):
        pass
    assert quotas.get_usage(txn, top) == Usage(3, 30)
    mine = create(txn, "mine", top, Kind.DIRECTORY)
    seal(txn, create(txn, "file", mine), 5)
    assert quotas.get_usage(txn, top) == Usage(5, 35)
    rename(txn, "mine", ROOT_INODE, "mine", top)
    assert quotas.get_usage(txn, top) == Usage(3, 30)
    # What is not below a quota any more is not counted for ever.
    while quotas.count_some(txn, 1):
        pass
    assert usage.lookup(txn, mine) is None
    quotas.clear_quota(txn, top)
    while quotas.count_some(txn, 1):
        pass
    assert not list(txn.scan(b"Z", b"["))


def test_what_a_store_lists_counts_and_is_not_refused(txn: WriteTransaction) -> None:
    apply_listing(txn, ROOT_INODE, ["d/"])
    found = namespace.lookup(txn, ROOT_INODE, "d")
    assert found is not None
    directory = found.attr.inode
    set_quota(txn, directory, max_files=2)
    apply_listing(txn, directory, ["one", "three", "two"])
    assert quotas.get_usage(txn, directory) == Usage(3, 15)
    with refused(txn):
        create(txn, "mine", directory)
    apply_listing(txn, directory, ["one"])
    assert quotas.get_usage(txn, directory) == Usage(1, 5)
    set_quota(txn, ROOT_INODE, max_files=100)
    apply_listing(txn, ROOT_INODE, [])
    assert quotas.get_usage(txn, ROOT_INODE) == Usage()
    assert [one.directory for one in quotas.list_all(txn)] == [ROOT_INODE]


def test_a_file_with_two_names_counts_where_the_older_is(txn: WriteTransaction) -> None:
    one, two = create(txn, "one", kind=Kind.DIRECTORY), create(txn, "two", kind=Kind.DIRECTORY)
    file = create(txn, "file", one)
    seal(txn, file, 40)
    for directory in (one, two):
        set_quota(txn, directory, max_bytes=1000)
    changes.link(txn, file, two, b"again", NOW, max_key_bytes=KEY_BYTES)
    assert (quotas.get_usage(txn, one), quotas.get_usage(txn, two)) == (Usage(1, 40), Usage())
    changes.unlink(txn, one, b"file", NOW)
    assert (quotas.get_usage(txn, one), quotas.get_usage(txn, two)) == (Usage(), Usage(1, 40))


def test_what_is_mounted_below_counts_and_leaves_with_its_mount(txn: WriteTransaction) -> None:
    top = create(txn, "top", kind=Kind.DIRECTORY)
    set_quota(txn, top, max_bytes=1000)
    mount = mounts.add_mount(txn, "/top/way/m", "s3://c", options={}, read_only=False, uid=7, gid=8, now_ns=NOW)
    apply_listing(txn, mount.root, ["one", "two"])
    assert quotas.get_usage(txn, top) == Usage(4, 10)
    mounts.remove_mount(txn, "/top/way/m", NOW)
    while quotas.count_some(txn):
        pass
    # (The way to it stays, as a directory of the store's.)
    assert quotas.get_usage(txn, top).size_bytes == 0
    assert not list(checking_quotas.check(txn))
    set_quota(txn, ROOT_INODE, max_files=100)
    mounts.remove_mount(txn, "/", NOW, force=True)
    assert quotas.list_all(txn) == []
    assert quotas.get_usage(txn, ROOT_INODE) == Usage()
    while quotas.count_some(txn):
        pass
    while namespace.purge(txn, NOW + 10, 1).more:
        pass
    assert not list(txn.scan(b"Z", b"["))
    assert not list(txn.scan(b"F", b"G"))


def test_quotas_that_are_nearly_used_up_are_reported(txn: WriteTransaction) -> None:
    top = create(txn, "top", kind=Kind.DIRECTORY)
    set_quota(txn, top, max_bytes=100, max_files=10)
    seal(txn, create(txn, "file", top), 89)
    assert quotas.list_warnings(txn) == []
    seal(txn, create(txn, "more", top), 1)
    assert quotas.list_warnings(txn) == ["quota of /top: 90 of 100 bytes are used"]


def test_what_cannot_be_set(txn: WriteTransaction) -> None:
    file = create(txn, "file")
    for wrong, error in (
        (Quota(file, 1, None), errors.NotADirectory),
        (Quota(ROOT_INODE, None, None), errors.InvalidArgument),
        (Quota(ROOT_INODE, -1, None), errors.InvalidArgument),
        (Quota(InodeId(1 << 50), 1, None), errors.ReadOnly),
    ):
        with pytest.raises(error):
            quotas.set_quota(txn, wrong)
    assert not quotas.clear_quota(txn, ROOT_INODE)


def test_a_wrong_count_is_found_and_mended(txn: WriteTransaction) -> None:
    create(txn, "file")
    set_quota(txn, ROOT_INODE, max_files=5)
    usage.put(txn, ROOT_INODE, Usage(7, 7))
    (finding,) = checking_quotas.check(txn)
    assert "7 files" in finding.message
    for key, value in finding.writes:
        assert value is not None
        txn.put(key, value)
    assert quotas.get_usage(txn, ROOT_INODE) == Usage(1, 0)


def test_claims_share_what_is_left(txn: WriteTransaction) -> None:
    top = create(txn, "top", kind=Kind.DIRECTORY)
    one, two, free = create(txn, "one", top), create(txn, "two", top), create(txn, "free")
    seal(txn, one, 40)
    set_quota(txn, top, max_bytes=100)
    claims = Claims()
    assert claims.claim(txn, free, 1 << 40, 0.0) is None
    assert claims.claim(txn, one, 1000, 0.0, only_asks=True) == 100
    assert claims.claim(txn, one, 70, 0.0) == 70
    assert claims.claim(txn, two, 50, 0.0) == 30
    assert claims.claim(txn, one, 90, 0.0) == 70
    # Sealed with less than was claimed: the rest is there for others.
    seal(txn, one, 45)
    claims.end(one)
    assert claims.claim(txn, two, 90, 1.0) == 55
    assert claims.claim(txn, one, 90, 1.0 + KEEP_S) == 90


def make_worker(capacity: int, kept: int = 0) -> Worker:
    return Worker(WorkerId("w"), "a:1", "h", "d", capacity, used_bytes=capacity // 2, kept_bytes=kept)


def make_totals(policy: str, space: Space | None = None) -> FsTotals:
    return FsTotals(10, 1000, 0, 0, space, policy)


def test_what_workers_leave_is_what_can_be_written() -> None:
    store = Space(900 << 30, 800 << 30, 50, 40)
    large, small = make_worker(100 << 30, 30 << 30), make_worker(LITTLE_BYTES // 2)
    for policy in ("back", "cache"):
        assert limit_space(make_totals(policy), [large]) == Space(100 << 30, 70 << 30)
        assert limit_space(make_totals(policy, store), [large]) == Space(900 << 30, 70 << 30, 50, 40)
        assert limit_space(make_totals(policy), []) is None
    # Each close empties what is written with `through`.
    assert limit_space(make_totals("through"), [large]) is None
    assert limit_space(make_totals("through", store), [large]) == store
    assert limit_space(make_totals("through"), [small]) == Space(LITTLE_BYTES // 2, LITTLE_BYTES // 2)
    assert limit_space(make_totals("", store), [small]) == store


def test_statfs_without_a_limit_has_room_for_every_program() -> None:
    space = get_space(Totals(10, 5000))
    assert (space.free_bytes, space.total_bytes) == (2 * UNLIMITED_BYTES - 8192, 2 * UNLIMITED_BYTES)
    assert get_space(Totals(10, UNLIMITED_BYTES)).free_bytes >= UNLIMITED_BYTES
    assert space.total_files - space.free_files == 10
    limited = get_space(Totals(10, 5000, Space(100, 50)))
    assert (limited.total_bytes, limited.free_bytes) == (100, 50)
    assert limited.free_files > 1 << 30
