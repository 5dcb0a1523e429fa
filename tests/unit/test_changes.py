"""What programs change in the namespace: what POSIX says of names, and how an older namespace is taken over.

(Sequences of changes with the store following: tests/model/test_changes_model.py.)"""

import stat
from collections.abc import Iterator

import pytest

from alluxio_like import errors
from alluxio_like.kv.api import WriteTransaction
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import changes, checking, following, journal, mounts, namespace, records, versions
from alluxio_like.master.core.changes import Attributes, NewInode, Outcome
from alluxio_like.master.core.journal import Op
from alluxio_like.types import ROOT_INODE, Entry, Fingerprint, InodeId, Kind
from alluxio_like.ufs.api import StoreEntry
from tests.model.checked import assert_columns

NOW = 1_700_000_000 * 10**9
KEY_BYTES = 1024
HOUR = 3600 * 10**9


@pytest.fixture
def txn() -> Iterator[WriteTransaction]:
    store = MemoryStore()
    with store.write() as txn:
        namespace.prepare(txn, NOW)
        add_mount(txn, "/")
        apply_listing(txn, ROOT_INODE, [])
        yield txn
    store.close()


def add_mount(txn: WriteTransaction, path: str, *, read_only: bool = False) -> InodeId:
    return mounts.add_mount(txn, path, "s3://b", options={}, read_only=read_only, uid=7, gid=8, now_ns=NOW).root


def apply_listing(txn: WriteTransaction, directory: InodeId, names: list[str]) -> None:
    plan = namespace.begin_listing(txn, directory, NOW)
    page = [StoreEntry(name, Kind.FILE, Fingerprint(f"e-{name}", 5), 3) for name in sorted(names)]
    namespace.apply_page(txn, plan, None, page, True, NOW)


def create(
    txn: WriteTransaction,
    name: str | bytes,
    kind: Kind = Kind.FILE,
    parent: InodeId = ROOT_INODE,
    mode: int = 0o644,
    **more: object,
) -> InodeId:
    raw = name.encode() if isinstance(name, str) else name
    new = NewInode(kind, mode, 1, 2, **more)  # type: ignore[arg-type]
    return changes.create(txn, parent, raw, new, NOW + 5, max_key_bytes=KEY_BYTES).inode


def rename(txn: WriteTransaction, old: str, new: str, parent: InodeId = ROOT_INODE, into: InodeId = ROOT_INODE) -> Outcome:
    return changes.rename(txn, parent, old.encode(), into, new.encode(), NOW + 9, max_key_bytes=KEY_BYTES)


def get(txn: WriteTransaction, name: str, parent: InodeId = ROOT_INODE) -> Entry:
    found = namespace.lookup(txn, parent, name)
    assert found is not None
    return found


def test_what_is_made_has_the_makers_attributes(txn: WriteTransaction) -> None:
    create(txn, "file", mode=0o4750)
    attr = get(txn, "file").attr
    assert (attr.kind, attr.mode, attr.uid, attr.gid, attr.size, attr.nlink) == (Kind.FILE, 0o4750, 1, 2, 0, 1)
    assert attr.mtime_ns == attr.ctime_ns == NOW + 5
    assert namespace.get_entry(txn, ROOT_INODE).attr.mtime_ns > NOW


def test_a_directory_with_the_set_group_bit_gives_its_group(txn: WriteTransaction) -> None:
    top = create(txn, "top", Kind.DIRECTORY)
    changes.set_attributes(txn, top, Attributes(mode=0o2775, gid=99), NOW)
    file, below = create(txn, "file", parent=top), create(txn, "below", Kind.DIRECTORY, top, 0o755)
    assert namespace.get_entry(txn, file).attr.gid == 99
    assert namespace.get_entry(txn, below).attr.gid == 99
    assert namespace.get_entry(txn, below).attr.mode & stat.S_ISGID
    assert not namespace.get_entry(txn, file).attr.mode & stat.S_ISGID


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"", errors.InvalidArgument),
        (b".", errors.InvalidArgument),
        (b"..", errors.InvalidArgument),
        (b"a/b", errors.InvalidArgument),
        (b"a\0b", errors.InvalidArgument),
        (b"x%~", errors.InvalidArgument),
        (b"n" * 256, errors.NameTooLong),
    ],
)
def test_names_that_cannot_be(txn: WriteTransaction, name: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        create(txn, name)


def test_keys_that_the_store_cannot_hold(txn: WriteTransaction) -> None:
    at = ROOT_INODE
    for _ in range(4):
        at = create(txn, "d" * 250, Kind.DIRECTORY, at)
    create(txn, "f" * 15, parent=at)
    with pytest.raises(errors.NameTooLong):
        create(txn, "f" * 30, parent=at)


def test_symbolic_links_and_special_files_keep_what_they_are(txn: WriteTransaction) -> None:
    link = create(txn, "link", Kind.SYMLINK, target=b"../\xff/somewhere")
    device = create(txn, "device", Kind.BLOCK_DEVICE, device=0x801)
    assert changes.read_link(txn, link) == b"../\xff/somewhere"
    assert get(txn, "link").attr.size == 14
    assert get(txn, "device").attr.device == 0x801
    with pytest.raises(errors.InvalidArgument):
        changes.read_link(txn, device)
    apply_listing(txn, ROOT_INODE, [])
    assert get(txn, "link").attr.inode == link
    assert journal.is_empty(txn)


def test_nothing_is_written_where_it_may_not_be(txn: WriteTransaction) -> None:
    inner = add_mount(txn, "/ro", read_only=True)
    with pytest.raises(errors.ReadOnly):
        create(txn, "file", parent=inner)
    with pytest.raises(errors.Conflict):
        changes.rmdir(txn, ROOT_INODE, b"ro", NOW)
    with pytest.raises(errors.Conflict):
        rename(txn, "ro", "rw")
    writable = add_mount(txn, "/rw")
    apply_listing(txn, writable, [])
    create(txn, "file")
    with pytest.raises(errors.CrossDevice):
        rename(txn, "file", "file", into=writable)
    with pytest.raises(errors.CrossDevice):
        changes.link(txn, get(txn, "file").attr.inode, writable, b"file", NOW, max_key_bytes=KEY_BYTES)


def test_a_directory_that_was_not_listed_is_not_taken_for_empty(txn: WriteTransaction) -> None:
    plan = namespace.begin_listing(txn, ROOT_INODE, NOW)
    namespace.apply_page(txn, plan, None, [StoreEntry("seen", Kind.DIRECTORY)], True, NOW)
    seen = get(txn, "seen").attr.inode
    with pytest.raises(errors.Stale):
        changes.rmdir(txn, ROOT_INODE, b"seen", NOW)
    apply_listing(txn, seen, ["file"])
    with pytest.raises(errors.DirectoryNotEmpty):
        changes.rmdir(txn, ROOT_INODE, b"seen", NOW)


def test_links_share_an_inode_until_the_last_is_gone(txn: WriteTransaction) -> None:
    inode = create(txn, "one")
    changes.link(txn, inode, ROOT_INODE, b"two", NOW + 6, max_key_bytes=KEY_BYTES)
    assert {get(txn, name).attr.inode for name in ("one", "two")} == {inode}
    assert get(txn, "two").attr.nlink == 2
    changes.unlink(txn, ROOT_INODE, b"one", NOW + 7)
    attr = get(txn, "two").attr
    assert (attr.inode, attr.nlink, attr.ctime_ns) == (inode, 1, NOW + 7)
    assert namespace.get_path(txn, inode) == "/two"
    changes.unlink(txn, ROOT_INODE, b"two", NOW + 8)
    assert namespace.get_entry(txn, inode).attr.nlink == 0
    with pytest.raises(errors.NotPermitted):
        directory = create(txn, "d", Kind.DIRECTORY)
        changes.link(txn, directory, ROOT_INODE, b"e", NOW, max_key_bytes=KEY_BYTES)


def test_a_tree_as_columns_has_all_names_of_a_file_and_what_its_content_is_known_by(txn: WriteTransaction) -> None:
    apply_listing(txn, ROOT_INODE, ["old"])
    inode = create(txn, "one")
    versions.seal(txn, inode, 3, NOW + 6, ("w1",), NOW + 6)
    changes.link(txn, inode, ROOT_INODE, b"two", NOW + 6, max_key_bytes=KEY_BYTES)
    changes.set_attributes(txn, inode, Attributes(atime_ns=1, mtime_ns=2), NOW + 30)
    create(txn, "place", Kind.DIRECTORY)
    rename(txn, "old", "moved")
    assert [entry.name for entry in namespace.list_entries(txn, ROOT_INODE).entries] == ["moved", "one", "place", "two"]
    assert_columns(txn, ROOT_INODE)


def test_times_are_those_that_were_set(txn: WriteTransaction) -> None:
    inode = create(txn, "file")
    changes.set_attributes(txn, inode, Attributes(atime_ns=1, mtime_ns=2), NOW + 30)
    attr = namespace.get_entry(txn, inode).attr
    assert (attr.atime_ns, attr.mtime_ns, attr.ctime_ns) == (1, 2, NOW + 30)


@pytest.mark.parametrize(
    ("mtime_ns", "expected"),
    [(NOW + 40, NOW + 40), (NOW + 90, NOW + 50), (2, NOW + 30), (NOW + HOUR, NOW + 30)],
    ids=["written", "written by a clock that is ahead", "set to the past", "set to the future"],
)
def test_a_close_is_no_change_of_the_file(txn: WriteTransaction, mtime_ns: int, expected: int) -> None:
    """What is sealed was changed when it was written, or when its time was set, which the name has by then."""
    inode = create(txn, "file")
    is_set = expected == NOW + 30
    changes.set_attributes(txn, inode, Attributes(mtime_ns=mtime_ns if is_set else 7), NOW + 30)
    versions.seal(txn, inode, 3, mtime_ns, ("w1",), NOW + 50)
    attr = namespace.get_entry(txn, inode).attr
    assert (attr.mtime_ns, attr.ctime_ns) == (mtime_ns, expected)


def test_a_moved_file_is_read_where_it_is_until_the_store_has_followed(txn: WriteTransaction) -> None:
    apply_listing(txn, ROOT_INODE, ["old"])
    before = get(txn, "old").ref
    assert before is not None
    rename(txn, "old", "new")
    moved = get(txn, "new").ref
    assert moved is not None
    assert (moved.inode, moved.key, moved.fingerprint) == (before.inode, "old", before.fingerprint)
    # The store still has the old name; nobody sees it.
    apply_listing(txn, ROOT_INODE, ["old"])
    assert namespace.lookup(txn, ROOT_INODE, "old") is None
    (plan,) = following.list_ready(txn, (), renames=())
    assert (plan.step.op, plan.source, plan.target) == (Op.SETTLE, "old", "new")
    following.finish(txn, plan, NOW + 10, stored=Fingerprint("other", 5), copied=True)
    after = get(txn, "new").ref
    assert after is not None
    # Caches know the content by what it was known by before.
    assert (after.key, after.fingerprint, after.source) == ("new", before.fingerprint, Fingerprint("other", 5))
    (plan,) = following.list_ready(txn, (), renames=())
    assert (plan.step.op, plan.source, plan.expected) == (Op.DELETE, "old", Fingerprint("e-old", 5))
    following.finish(txn, plan, NOW + 11)
    assert journal.is_empty(txn)
    # A content that somebody else puts under the old name now is theirs.
    apply_listing(txn, ROOT_INODE, ["new", "old"])
    assert get(txn, "old").attr.inode != before.inode


def test_a_version_is_known_by_its_number_before_and_after_the_store_has_it(txn: WriteTransaction) -> None:
    inode = create(txn, "file")
    versions.seal(txn, inode, 11, NOW, ("w1",), NOW)
    before = get(txn, "file").ref
    assert before is not None and before.source is None
    version = before.version
    plan = versions.plan_upload(txn, inode, version)
    assert (plan.key, plan.expected) == ("file", None)
    versions.note_persisted(txn, inode, version, plan, Fingerprint("e", 11), NOW)
    after = get(txn, "file").ref
    assert after is not None
    assert (after.fingerprint, after.source) == (before.fingerprint, Fingerprint("e", 11))
    with pytest.raises(errors.Stale):
        versions.plan_upload(txn, inode, version)


def test_a_directory_that_holds_what_the_store_does_not_have_is_not_removed_by_a_listing(txn: WriteTransaction) -> None:
    plan = namespace.begin_listing(txn, ROOT_INODE, NOW)
    namespace.apply_page(txn, plan, None, [StoreEntry("d", Kind.DIRECTORY)], True, NOW)
    directory = get(txn, "d").attr.inode
    apply_listing(txn, directory, ["x"])
    create(txn, "mine", parent=directory)
    apply_listing(txn, ROOT_INODE, [])
    assert get(txn, "mine", get(txn, "d").attr.inode).attr.kind is Kind.FILE


def test_a_namespace_of_the_format_before_is_taken_over(txn: WriteTransaction) -> None:
    txn.put(records.KEY_FORMAT, records.pack_id(1))
    namespace.prepare(txn, NOW)
    assert records.unpack_id(txn.get(records.KEY_FORMAT) or b"") == records.FORMAT == 3
    txn.put(records.KEY_FORMAT, records.pack_id(4))
    with pytest.raises(errors.FormatTooNew):
        namespace.prepare(txn, NOW)


def test_what_was_renamed_to_and_fro_goes_on_when_nothing_was_to_be_done(txn: WriteTransaction) -> None:
    """It is renamed again between the plan, that nothing is to be done, and its end: its bytes were then said to be nowhere."""
    apply_listing(txn, ROOT_INODE, ["a"])
    file = get(txn, "a").attr.inode
    rename(txn, "a", "b")
    rename(txn, "b", "a")
    plans = [plan for plan in following.list_ready(txn, (), renames=()) if plan.nothing]
    assert {plan.step.op for plan in plans} == {Op.SETTLE, Op.DELETE}
    rename(txn, "a", "c")
    for plan in plans:
        following.finish(txn, plan, NOW + 10)
    assert namespace.get_key(txn, file)[1] == "a"
    (moving,) = [one for one in following.list_ready(txn, (), renames=()) if one.step.op is Op.SETTLE]
    assert (moving.source, moving.target, moving.nothing) == ("a", "c", False)


def test_what_has_arrived_while_a_removal_ran_is_removed_too(txn: WriteTransaction) -> None:
    apply_listing(txn, ROOT_INODE, ["a"])
    file = get(txn, "a").attr.inode
    changes.unlink(txn, ROOT_INODE, b"a", NOW + 9)
    (plan,) = following.list_ready(txn, (), renames=())
    versions.note_arrived(txn, plan.step.mount_id, file, "a", Fingerprint("late", 4))
    following.finish(txn, plan, NOW + 10)
    (again,) = following.list_ready(txn, (), renames=())
    assert (again.source, again.expected) == ("a", Fingerprint("late", 4))


@pytest.mark.parametrize("takes", ["link", "symlink"])
def test_what_arrives_under_a_name_that_something_without_bytes_took(txn: WriteTransaction, takes: str) -> None:
    """A file is replaced while its upload is under way, by what brings no bytes there, and that goes, too: a listing once showed
    what then came to the store."""
    replaced = create(txn, "name")
    sealed = versions.seal(txn, replaced, 3, NOW + 6, ("w1",), NOW + 6)
    plan = versions.plan_upload(txn, replaced, sealed.version)
    if takes == "link":
        changes.link(txn, create(txn, "other"), ROOT_INODE, b"taker", NOW + 7, max_key_bytes=KEY_BYTES)
    else:
        create(txn, "taker", Kind.SYMLINK, target=b"elsewhere")
    rename(txn, "taker", "name")
    changes.unlink(txn, ROOT_INODE, b"name", NOW + 10)
    listing = namespace.begin_listing(txn, ROOT_INODE, NOW + 11)
    arrived = StoreEntry("name", Kind.FILE, Fingerprint("arrived", 3), 3)
    namespace.apply_page(txn, listing, None, [arrived], True, NOW + 11)
    assert namespace.lookup(txn, ROOT_INODE, "name") is None
    versions.note_persisted(txn, replaced, sealed.version, plan, Fingerprint("arrived", 3), NOW + 12)
    deletions = [one for one in following.list_ready(txn, (), renames=()) if one.step.op is Op.DELETE and not one.nothing]
    assert [(one.source, one.expected) for one in deletions] == [("name", Fingerprint("arrived", 3))]


def test_what_has_arrived_since_a_move_was_planned_is_replaced_by_it(txn: WriteTransaction) -> None:
    """The upload of what a rename replaced ends between the plan of the move and its beginning: the move then found another
    content than the one before that upload, and what was renamed was set aside as if others had written there."""
    apply_listing(txn, ROOT_INODE, ["name", "new"])
    replaced = get(txn, "name").attr.inode
    sealed = versions.seal(txn, replaced, 3, NOW + 6, ("w1",), NOW + 6)
    upload = versions.plan_upload(txn, replaced, sealed.version)
    rename(txn, "new", "name")
    (early,) = following.list_ready(txn, (), renames=(1,))
    assert early.expected == Fingerprint("e-name", 5)
    arrived = Fingerprint("arrived", 3)
    versions.note_persisted(txn, replaced, sealed.version, upload, arrived, NOW + 12)
    assert following.begin(txn, early) is None
    (plan,) = following.list_ready(txn, (), renames=(1,))
    begun = following.begin(txn, plan)
    assert begun is not None
    assert (begun.source, begun.target, begun.expected, begun.step.base) == ("new", "name", arrived, arrived)


def test_a_move_that_a_swap_needs_begins_with_a_step_aside(txn: WriteTransaction) -> None:
    apply_listing(txn, ROOT_INODE, ["one", "two"])
    names = (ROOT_INODE, b"one", ROOT_INODE, b"two")
    changes.exchange(txn, *names, NOW + 9, max_key_bytes=KEY_BYTES)
    (plan,) = following.list_ready(txn, (), renames=(1,))
    begun = following.begin(txn, plan)
    assert begun is not None
    assert begun.step.tried == begun.target not in {"one", "two"}


def test_what_is_in_the_way_of_a_move_is_what_is_not_expected_by_now(txn: WriteTransaction) -> None:
    """A move has found something unexpected at its target: that is foreign only while the file still belongs there, in the place
    of what the move was to replace."""
    apply_listing(txn, ROOT_INODE, ["name", "new"])
    replaced = get(txn, "name").attr.inode
    sealed = versions.seal(txn, replaced, 3, NOW + 6, ("w1",), NOW + 6)
    upload = versions.plan_upload(txn, replaced, sealed.version)
    rename(txn, "new", "name")
    (chosen,) = following.list_ready(txn, (), renames=(1,))
    plan = following.begin(txn, chosen)
    assert plan is not None
    assert following.is_in_the_way(txn, plan)
    # As when a master was killed that knew of the upload, and the next one hears of it late.
    versions.note_persisted(txn, replaced, sealed.version, upload, Fingerprint("arrived", 3), NOW + 12)
    assert not following.is_in_the_way(txn, plan)
    following.give_up(txn, plan)
    (again,) = following.list_ready(txn, (), renames=(1,))
    assert (again.target, again.expected) == ("name", Fingerprint("arrived", 3))
    rename(txn, "name", "elsewhere")
    assert not following.is_in_the_way(txn, again)
    changes.unlink(txn, ROOT_INODE, b"elsewhere", NOW + 13)
    assert not following.is_in_the_way(txn, again)


def test_a_version_that_came_late_to_where_a_later_one_is_on_its_way_is_replaced(txn: WriteTransaction) -> None:
    inode = create(txn, "name")
    first = versions.seal(txn, inode, 3, NOW + 6, ("w1",), NOW + 6)
    early = versions.plan_upload(txn, inode, first.version)
    rename(txn, "name", "other")
    (plan,) = following.list_ready(txn, (), renames=(1,))
    assert plan.nothing
    # As a master does that knows nothing of the upload, since the one before was killed.
    following.finish(txn, plan, NOW + 10)
    second = versions.seal(txn, inode, 4, NOW + 11, ("w1",), NOW + 11)
    late = versions.plan_upload(txn, inode, second.version)
    versions.note_persisted(txn, inode, second.version, late, Fingerprint("second", 4), NOW + 12)
    rename(txn, "other", "name")
    versions.note_persisted(txn, inode, first.version, early, Fingerprint("first", 3), NOW + 13)
    (plan,) = following.list_ready(txn, (), renames=(1,))
    assert (plan.source, plan.target, plan.expected) == ("other", "name", Fingerprint("first", 3))


def make_unnamed(txn: WriteTransaction, now_ns: int = NOW + 5) -> InodeId:
    return changes.create_unnamed(txn, ROOT_INODE, NewInode(Kind.FILE, 0o644, 1, 2), now_ns).inode


def link(txn: WriteTransaction, inode: InodeId, name: bytes, now_ns: int = NOW + 9) -> Outcome:
    return changes.link(txn, inode, ROOT_INODE, name, now_ns, max_key_bytes=KEY_BYTES)


@pytest.mark.parametrize("hours", [0, 2, 100])
def test_a_file_without_a_name_gets_one(txn: WriteTransaction, hours: int) -> None:
    before = namespace.get_totals(txn)
    inode = make_unnamed(txn)
    assert namespace.get_entry(txn, inode).attr.nlink == 0
    assert list(checking.check(txn)) == []
    changes.set_attributes(txn, inode, Attributes(mode=0o600), NOW + 6)
    versions.seal(txn, inode, 7, NOW + 7, ("w1",), NOW + 7)
    link(txn, inode, b"a", NOW + hours * HOUR)
    assert get(txn, "a") == namespace.get_entry(txn, inode)
    assert (get(txn, "a").attr.nlink, get(txn, "a").attr.size) == (1, 7)
    after = namespace.get_totals(txn)
    assert (after.files, after.known_bytes, after.orphans) == (before.files + 1, before.known_bytes + 7, before.orphans)
    assert namespace.purge(txn, NOW + 1000 * HOUR, 0).files == ()
    assert list(checking.check(txn)) == []
    link(txn, inode, b"b")
    assert get(txn, "b").attr.nlink == 2


def test_a_file_without_a_name_goes_as_what_was_removed_does(txn: WriteTransaction) -> None:
    inode = make_unnamed(txn)
    assert namespace.purge(txn, NOW + HOUR - 1).files == ()
    assert [one.inode for one in namespace.purge(txn, NOW + 3 * HOUR).files] == [inode]
    with pytest.raises(errors.NotFound):
        link(txn, inode, b"a")
    assert list(checking.check(txn)) == []


def test_what_was_removed_gets_no_name_again(txn: WriteTransaction) -> None:
    inode = create(txn, "a")
    changes.unlink(txn, ROOT_INODE, b"a", NOW + 6)
    with pytest.raises(errors.NotFound):
        link(txn, inode, b"b")
