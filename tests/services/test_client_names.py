"""What the client remembers: packed entries give back what was put in, and nothing that was recalled is used."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alluxio_like.client.entries import EntryStore
from alluxio_like.client.metadata import OLD_VALID_S, Begun, MetadataCache
from alluxio_like.clock import ManualClock
from alluxio_like.rpc.messages import DirPage, LookupResult
from alluxio_like.rpc.messages_writing import Told
from alluxio_like.types import (
    EVERYWHERE,
    ROOT_INODE,
    Attr,
    Entry,
    FileRef,
    Fingerprint,
    InodeId,
    Kind,
    MountId,
    Recall,
    VersionId,
    to_bytes,
)
from tests.fakes_rpc import make_dir, make_entry

ROOT = InodeId(1)


# Without a lease


def test_an_answer_lasts_from_before_it_was_asked_for() -> None:
    clock = ManualClock()
    names = MetadataCache(clock.monotonic)
    begun = names.begin()
    clock.advance(2)
    answer = names.keep(ROOT, "f", LookupResult(make_entry("f", 2, 3), 5.0), begun)
    assert answer.valid_s == pytest.approx(3)
    clock.advance(2.5)
    known = names.lookup(ROOT, "f")
    assert known is not None
    assert known.valid_s == pytest.approx(0.5)
    assert known.entry == make_entry("f", 2, 3)
    assert names.get(InodeId(2)) is not None
    clock.advance(0.5)
    assert names.lookup(ROOT, "f") is None
    assert names.get(InodeId(2)) is None
    assert names.lookup_old(ROOT, "f") == LookupResult(make_entry("f", 2, 3), OLD_VALID_S)


def test_an_answer_that_was_under_way_during_a_sync_is_not_used() -> None:
    names = MetadataCache(ManualClock().monotonic)
    begun = names.begin()
    names.clear()
    assert names.keep(ROOT, "k", LookupResult(None, 5.0), begun).valid_s == 0
    names.keep_page(ROOT, b"", DirPage((make_entry("f", 2, 3),), b"", 5.0), begun)
    names.keep_path("/f", LookupResult(make_entry("f", 2, 3), 5.0), begun)
    assert names.lookup(ROOT, "k") is None
    assert names.lookup(ROOT, "f") is None
    assert names.lookup_path("/f") is None
    assert names.get(InodeId(2)) is None


def test_what_a_sync_made_unusable_is_there_while_the_master_is_away() -> None:
    names = MetadataCache(ManualClock().monotonic)
    names.keep_page(ROOT, b"", DirPage((make_entry("f", 2, 3),), b"", 5.0), names.begin())
    assert names.lookup(ROOT, "f") is not None
    names.clear()
    assert names.lookup(ROOT, "f") is None
    assert names.lookup_old(ROOT, "f") == LookupResult(make_entry("f", 2, 3), OLD_VALID_S)
    assert names.lookup_path_old("/f") == LookupResult(make_entry("f", 2, 3), OLD_VALID_S)


def test_the_oldest_names_go_first() -> None:
    names = MetadataCache(ManualClock().monotonic, max_names=10)
    for number in range(25):
        names.keep(ROOT, str(number), LookupResult(None, 5.0), names.begin())
    assert len(names) == 10
    assert names.lookup(ROOT, "24") is not None
    assert names.lookup(ROOT, "14") is None


def test_the_oldest_directories_go_first_and_late_answers_of_them_are_not_kept() -> None:
    names = MetadataCache(ManualClock().monotonic, max_directories=10)
    names.keep(ROOT, "f", LookupResult(make_entry("f", 2, 3), 50.0), names.begin())
    begun = names.begin()
    names.recall([Recall(ROOT, (b"g",))])
    for number in range(100, 125):
        names.keep_page(InodeId(number), b"", DirPage((), b"", 50.0), names.begin())
    assert names.count_directories() == 10
    assert names.list_page(InodeId(124), b"") is not None
    assert names.list_page(InodeId(110), b"") is None
    assert names.lookup(ROOT, "f") is None, "its directory is not remembered"
    assert names.lookup_old(ROOT, "f") is not None
    assert names.keep(ROOT, "g", LookupResult(None, 50.0), begun).valid_s == 0, "it may have been recalled"
    assert names.keep(ROOT, "g", LookupResult(None, 50.0), names.begin()).valid_s == 50.0


# Under a lease


@dataclass
class Lease:
    live: bool = True


def make_leased(now: ManualClock) -> tuple[MetadataCache, Lease]:
    lease = Lease()
    return MetadataCache(now.monotonic, lambda: lease.live), lease


def test_a_listing_answers_for_names_that_are_there_and_not_there() -> None:
    clock = ManualClock()
    names, lease = make_leased(clock)
    entries = tuple(make_entry(f"f{number:04}", 10 + number, number) for number in range(0, 5000, 2))
    for start in range(0, len(entries), 1000):
        page = entries[start : start + 1000]
        cursor = b"" if not start else entries[start - 1].name.encode()
        following = page[-1].name.encode() if start + 1000 < len(entries) else b""
        names.keep_page(ROOT, cursor, DirPage(page, following, 300.0, MountId(1), "data/", leased=True), names.begin())
    clock.advance(200)
    assert names.lookup(ROOT, "f0042") == LookupResult(entries[21], pytest.approx(100, abs=0.2))
    for missing in ("f0043", "a", "z", "f0042/", "f00420"):
        assert names.lookup(ROOT, missing) == LookupResult(None, pytest.approx(100, abs=0.2)), missing
    assert names.lookup_path("/f4998") == LookupResult(entries[-1], pytest.approx(100, abs=0.2))
    page = names.list_page(ROOT, b"")
    assert page is not None
    assert page.entries == entries[:1000]
    assert names.list_page(ROOT, page.next_cursor) is not None
    lease.live = False
    assert names.lookup(ROOT, "f0042") is None
    assert names.list_page(ROOT, b"") is None
    assert names.lookup_old(ROOT, "f0042") is not None
    lease.live = True
    assert names.lookup(ROOT, "f0042") is not None
    names.recall([Recall(ROOT, (b"f0043", b"f0042"))])
    assert names.lookup(ROOT, "f0042") is None
    assert names.lookup(ROOT, "f0043") is None
    assert names.lookup(ROOT, "f0044") is not None
    assert names.list_page(ROOT, b"") is None


def test_every_name_that_was_answered_can_be_taken_back() -> None:
    """Who asked may keep the answer until told otherwise, also that a name of a known listing is not there."""
    names, _ = make_leased(ManualClock())
    entry = make_entry("there", 10, 1)
    names.keep_page(ROOT, b"", DirPage((entry,), b"", 300.0, MountId(1), "data/", leased=True), names.begin())
    assert names.lookup(ROOT, "not there") == LookupResult(None, pytest.approx(300, abs=0.2))
    known = names.list_names(ROOT, 100)
    assert known is not None
    assert set(known) == {b"there", b"not there"}


def test_a_directory_of_which_answers_are_forgotten_has_names_that_cannot_be_told() -> None:
    clock = ManualClock()
    names = MetadataCache(clock.monotonic, lambda: True, max_names=10)
    for number in range(11):
        answer = LookupResult(None, 300.0, leased=True, directory=ROOT)
        names.keep(ROOT, str(number), answer, names.begin())
    assert names.list_names(ROOT, 100) is None


def test_a_listing_that_has_not_ended_says_nothing_of_what_is_behind() -> None:
    names, _ = make_leased(ManualClock())
    names.keep_page(ROOT, b"", DirPage((make_entry("b", 2, 1), make_entry("d", 3, 1)), b"d", 9.0, leased=True), names.begin())
    assert names.lookup(ROOT, "b") is not None
    assert names.lookup(ROOT, "a") is not None
    assert names.lookup(ROOT, "c") is not None
    assert names.lookup(ROOT, "e") is None
    assert names.lookup(ROOT, "d-") is None


def test_a_path_is_answered_as_long_as_every_directory_on_it_is_covered() -> None:
    names, _ = make_leased(ManualClock())
    chain = (ROOT_INODE, InodeId(5), InodeId(6))
    answer = LookupResult(make_entry("f", 7, 1), 99.0, True, InodeId(6), chain)
    names.keep_path("/a/b/f", answer, names.begin())
    assert names.lookup_path("/a/b/f") is not None
    assert names.lookup_path("/a//b/f/") is not None
    names.recall([Recall(ROOT_INODE, (b"other",))])
    assert names.lookup_path("/a/b/f") is not None
    names.recall([Recall(ROOT_INODE, (b"a",))])
    assert names.lookup_path("/a/b/f") is None


def tell_made(names: MetadataCache, begun: Begun, *, is_empty: bool = False) -> None:
    """A directory `d` (inode 2) was made in the root by ourselves, which the root's attributes show."""
    made = LookupResult(make_dir("d", 2), 300.0, leased=True, directory=ROOT)
    root = LookupResult(make_dir("", 1), 300.0, leased=True, directory=ROOT)
    told = (Told(ROOT, "d", made, is_empty), Told(ROOT, "", root))
    names.keep_change((Recall(ROOT, (b"d",)),), told, begun)


def test_what_we_changed_ourselves_is_known_by_the_answer() -> None:
    names, _ = make_leased(ManualClock())
    names.keep(ROOT, "d", LookupResult(None, 300.0, leased=True, directory=ROOT), names.begin())
    tell_made(names, names.begin(), is_empty=True)
    assert names.lookup(ROOT, "d") == LookupResult(make_dir("d", 2), pytest.approx(300, abs=0.2))
    assert names.get(InodeId(1)) is not None, "the directory's own attributes too"
    nothing = names.lookup(InodeId(2), "x")
    assert nothing is not None
    assert nothing.entry is None, "nothing is in a directory that was just made"
    names.recall([Recall(InodeId(2), (b"x",))])
    assert names.lookup(InodeId(2), "x") is None
    assert names.lookup(InodeId(2), "y") is not None


@pytest.mark.parametrize("other", [Recall(ROOT, (b"d",)), Recall(ROOT, (b"z",)), Recall(EVERYWHERE, all_names=True)])
def test_an_answer_to_our_change_is_not_relied_on_when_others_changed_something_meanwhile(other: Recall) -> None:
    names, _ = make_leased(ManualClock())
    begun = names.begin()
    names.recall([other])
    tell_made(names, begun, is_empty=True)
    assert names.lookup(ROOT, "d") is None
    assert names.get(InodeId(1)) is None
    assert names.lookup(InodeId(2), "x") is None


def test_a_directorys_attributes_that_were_asked_for_before_it_changed_are_not_kept() -> None:
    names, _ = make_leased(ManualClock())
    begun = names.begin()
    names.recall([Recall(InodeId(2), (b"x",))])
    answer = LookupResult(make_dir("d", 2), 300.0, leased=True, directory=ROOT)
    assert names.keep_inode(answer, begun).valid_s == 0
    assert names.get(InodeId(2)) is None


def test_of_two_changes_of_ours_at_the_same_time_what_the_second_said_is_not_relied_on() -> None:
    names, _ = make_leased(ManualClock())
    first, second = names.begin(), names.begin()
    tell_made(names, second)
    gone = Told(ROOT, "d", LookupResult(None, 300.0, leased=True, directory=ROOT))
    names.keep_change((Recall(ROOT, (b"d",)),), (gone,), first)
    assert names.lookup(ROOT, "d") is None, "it is asked for again"


def test_the_attributes_of_a_directory_that_no_lease_covers_are_short_lived() -> None:
    clock = ManualClock()
    names, _ = make_leased(clock)
    page = DirPage((make_dir("hot", 2), make_dir("still", 3)), b"", 300.0, leased=True, unleased=(InodeId(2),))
    names.keep_page(ROOT, b"", page, names.begin())
    clock.advance(2)
    assert names.get(InodeId(2)) is None
    assert names.get(InodeId(3)) is not None
    names.recall([Recall(InodeId(3))])
    assert names.get(InodeId(3)) is None


def test_what_was_recalled_is_used_again_only_when_the_lease_is_lost() -> None:
    names, lease = make_leased(ManualClock())
    names.keep(ROOT, "f", LookupResult(make_entry("f", 2, 3), 99.0, True, ROOT), names.begin())
    names.keep_page(ROOT, b"", DirPage((make_entry("g", 3, 3),), b"", 99.0, leased=True), names.begin())
    for recall in (Recall(ROOT, (b"f", b"g")), Recall(ROOT, all_names=True), Recall(EVERYWHERE, all_names=True)):
        names.recall([recall])
        lease.live = True
        assert names.lookup_old(ROOT, "f") is None
        assert names.lookup_path_old("/g") is None
        lease.live = False
        assert names.lookup_old(ROOT, "f") is not None
        assert names.lookup_path_old("/g") is not None
        assert names.lookup(ROOT, "f") is None


# Packed entries

texts = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=40)
tokens = st.one_of(
    st.just("d41d8cd98f00b204e9800998ecf8427e"), st.just('"d41d8cd98f00b204e9800998ecf8427e"'), st.text(max_size=60)
)


@st.composite
def entries(draw: st.DrawFn, inode: int) -> Entry:
    name = draw(texts)
    is_file = draw(st.booleans())
    times = [draw(st.integers(-(2**40), 2**62)) for _ in range(2)]
    version = VersionId(draw(st.sampled_from([1, 2, 2**40])) if is_file else 0)
    size = draw(st.integers(0, 2**50)) if is_file else 0
    attr = Attr(
        InodeId(inode),
        Kind.FILE if is_file else Kind.DIRECTORY,
        draw(st.sampled_from([0o644, 0o755, 0o600])),
        draw(st.integers(0, 2**32 - 1)),
        0,
        size,
        times[0],
        draw(st.sampled_from(times)),
        draw(st.sampled_from([0, 1])),
        version,
    )
    if not is_file:
        return Entry(name, attr)
    key = draw(st.sampled_from(["", "dir/", "other/dir/"])) + draw(st.sampled_from([name, name, "x"]))
    ref = FileRef(
        attr.inode, version, MountId(draw(st.integers(1, 3))), key, Fingerprint(draw(tokens), size), draw(st.booleans())
    )
    return Entry(name, attr, ref)


@settings(deadline=None)
@given(st.data())
def test_packed_entries_come_back_as_they_were(data: st.DataObject) -> None:
    store = EntryStore()
    model: dict[InodeId, tuple[Entry, InodeId]] = {}
    for _ in range(data.draw(st.integers(1, 30))):
        inode = data.draw(st.sampled_from([1, 2, 63, 64, 65, 2**40, 2**40 + 1]))
        entry = data.draw(entries(inode))
        if len(to_bytes(entry.name)) > 255:
            continue
        parent = InodeId(data.draw(st.sampled_from([1, 9])))
        store.put(entry, parent, 7, 8)
        model[InodeId(inode)] = (entry, parent)
        for known, (expected, above) in model.items():
            record = store.lookup(known)
            assert record is not None
            assert (record.entry, record.parent) == (expected, above)
    assert len(store) == len(model)


def test_a_chunk_without_end_of_changes_stays_small() -> None:
    store = EntryStore()
    for number in range(20_000):
        store.put(make_entry("f" * (1 + number % 50), 5, number), ROOT, 1, 1)
    assert sum(len(chunk) for chunk in store._chunks.values()) < 100_000
    assert store.lookup(InodeId(5)) is not None


def test_the_oldest_entries_go_first() -> None:
    store = EntryStore(max_entries=1000)
    for number in range(5000):
        store.put(make_entry(str(number), 1 + number, number), ROOT, 1, 1)
    assert len(store) <= 1000
    assert store.lookup(InodeId(5000)) is not None
    assert store.lookup(InodeId(5)) is None


# Nothing is used that was recalled

DIRECTORIES = (InodeId(1), InodeId(2))
NAMES = ("a", "b", "c%~", "d", "e")


@dataclass
class Answer:
    """On its way: asked for at `begun`."""

    begun: Begun
    directory: InodeId
    name: str = ""
    entry: Entry | None = None
    pages: list[tuple[bytes, DirPage]] = field(default_factory=list)


def name_anew(entry: Entry, name: str) -> Entry:
    assert entry.ref is not None
    return replace(entry, name=name, ref=replace(entry.ref, key=name))


class NamesMachine(RuleBasedStateMachine):
    """A namespace whose changes are recalled at once, and answers that arrive late."""

    max_directories = 1

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.lease = Lease()
        self.names = MetadataCache(
            self.clock.monotonic, lambda: self.lease.live, max_names=6, max_directories=self.max_directories
        )
        self.tree: dict[InodeId, dict[str, Entry]] = {directory: {} for directory in DIRECTORIES}
        self.next_inode = 10
        self.late: list[Answer] = []

    def make(self, name: str, directory: bool) -> Entry:
        self.next_inode += 1
        return make_dir(name, self.next_inode) if directory else make_entry(name, self.next_inode, self.next_inode)

    @rule(directory=st.sampled_from(DIRECTORIES), name=st.sampled_from(NAMES), what=st.sampled_from(["file", "dir", "gone"]))
    def change(self, directory: InodeId, name: str, what: str) -> None:
        old = self.tree[directory].pop(name, None)
        if what != "gone":
            self.tree[directory][name] = self.make(name, what == "dir")
        inodes = () if old is None else (old.attr.inode,)
        self.names.recall([Recall(directory, (name.encode(),), inodes=inodes)])

    def find_file(self, place: int) -> Entry | None:
        files = [entry for children in self.tree.values() for entry in children.values() if entry.ref is not None]
        return files[place % len(files)] if files else None

    @rule(place=st.integers(0, 10), to=st.sampled_from(DIRECTORIES), name=st.sampled_from(NAMES), ours=st.booleans())
    def move(self, place: int, to: InodeId, name: str, ours: bool) -> None:
        """A file gets another name, and stays the inode that it is; one of our own changes is told by its answer."""
        entry = self.find_file(place)
        if entry is None:
            return
        begun = self.names.begin()
        (old,) = [at for at in DIRECTORIES if self.tree[at].get(entry.name) == entry]
        del self.tree[old][entry.name]
        replaced = self.tree[to].pop(name, None)
        moved = self.tree[to][name] = name_anew(entry, name)
        inodes = (entry.attr.inode, *(() if replaced is None else (replaced.attr.inode,)))
        recalls = (Recall(old, (to_bytes(entry.name),), inodes=inodes), Recall(to, (to_bytes(name),), inodes=inodes))
        if ours:
            told = Told(to, name, LookupResult(moved, 300.0, True, to))
            gone = Told(old, entry.name, LookupResult(None, 300.0, True, old))
            self.names.keep_change(recalls, (told,) if (old, entry.name) == (to, name) else (told, gone), begun)
        else:
            self.names.recall(recalls)

    @rule(directory=st.sampled_from((*DIRECTORIES, EVERYWHERE)), count=st.integers(0, 3))
    def change_all(self, directory: InodeId, count: int) -> None:
        for one in DIRECTORIES if directory == EVERYWHERE else (directory,):
            self.tree[one] = {name: self.make(name, False) for name in NAMES[:count]}
        self.names.recall([Recall(directory, all_names=True)])

    @rule(directory=st.sampled_from(DIRECTORIES), name=st.sampled_from(NAMES))
    def ask(self, directory: InodeId, name: str) -> None:
        self.late.append(Answer(self.names.begin(), directory, name, self.tree[directory].get(name)))

    @rule(directory=st.sampled_from(DIRECTORIES), size=st.integers(1, 3))
    def list_all(self, directory: InodeId, size: int) -> None:
        """As one listing; its pages arrive one by one."""
        found = sorted(self.tree[directory].values(), key=lambda e: e.name + ("/" if e.attr.kind is Kind.DIRECTORY else ""))
        answer = Answer(self.names.begin(), directory)
        cursor = b""
        for start in range(0, max(1, len(found)), size):
            page = tuple(found[start : start + size])
            following = page[-1].name.encode() if start + size < len(found) else b""
            answer.pages.append((cursor, DirPage(page, following, 300.0, MountId(1), "data/", leased=True)))
            cursor = following
        self.late.append(answer)

    @precondition(lambda self: self.late)
    @rule(place=st.integers(0, 10))
    def arrive(self, place: int) -> None:
        answer = self.late[place % len(self.late)]
        if answer.pages:
            cursor, page = answer.pages.pop(0)
            self.names.keep_page(answer.directory, cursor, page, answer.begun)
        if not answer.pages:
            self.late.remove(answer)
        if answer.name:
            result = LookupResult(answer.entry, 300.0, True, answer.directory)
            self.names.keep(answer.directory, answer.name, result, answer.begun)

    @rule(seconds=st.sampled_from([1.0, 200.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(live=st.booleans())
    def lose_or_find(self, live: bool) -> None:
        self.lease.live = live

    @invariant()
    def what_is_answered_is_so(self) -> None:
        for directory, children in self.tree.items():
            for name in (*NAMES, "nothing"):
                known = self.names.lookup(directory, name)
                if known is not None:
                    assert known.entry == children.get(name), (directory, name)
            for entry in children.values():
                by_inode = self.names.get(entry.attr.inode)
                assert by_inode is None or by_inode.entry == entry

    @invariant()
    def what_is_listed_is_so(self) -> None:
        for directory, children in self.tree.items():
            seen: list[Entry] = []
            cursor, page = b"", self.names.list_page(directory, b"")
            while page is not None:
                seen += page.entries
                cursor = page.next_cursor
                if not cursor:
                    assert sorted(map(repr, seen)) == sorted(map(repr, children.values()))
                    break
                page = self.names.list_page(directory, cursor)

    @invariant()
    def it_is_bounded(self) -> None:
        assert len(self.names) <= 6
        assert self.names.count_directories() <= self.max_directories


class WiderNamesMachine(NamesMachine):
    """All directories are remembered."""

    max_directories = 2


TestNames = NamesMachine.TestCase
TestNames.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWiderNames = WiderNamesMachine.TestCase
TestWiderNames.settings = TestNames.settings


def test_a_listing_tells_nothing_of_names_by_those_that_its_files_have_got_since() -> None:
    """Else a name that is there would be said not to be: what is searched would not be in order any more."""
    for old in "bdf":
        for new in "aceg":
            names, _ = make_leased(ManualClock())
            entries = {name: make_entry(name, 2 + number, 3) for number, name in enumerate("bdf")}
            names.keep_page(ROOT, b"", DirPage(tuple(entries.values()), b"", 300.0, leased=True), names.begin())
            moved = name_anew(entries.pop(old), new)
            told = (
                Told(ROOT, new, LookupResult(moved, 300.0, leased=True, directory=ROOT)),
                Told(ROOT, old, LookupResult(None, 300.0, leased=True, directory=ROOT)),
            )
            names.keep_change((Recall(ROOT, (old.encode(), new.encode()), inodes=(moved.attr.inode,)),), told, names.begin())
            for name, entry in {**entries, new: moved}.items():
                known = names.lookup(ROOT, name)
                assert known is None or known.entry == entry, (old, new, name)
            assert names.list_names(ROOT, 100) is None


def test_a_replaced_fingerprint_is_another_profile() -> None:
    """Pins and owners are kept apart."""
    store = EntryStore()
    entry = make_entry("f", 5, 1)
    assert entry.ref is not None
    store.put(entry, ROOT, 1, 1)
    pinned = replace(entry, ref=replace(entry.ref, pinned=True))
    store.put(pinned, ROOT, 1, 1)
    record = store.lookup(InodeId(5))
    assert record is not None
    assert record.entry == pinned


def test_what_a_content_continues_is_kept() -> None:
    store = EntryStore()
    entry = make_entry("log", 5, 1)
    assert entry.ref is not None
    store.put(replace(entry, ref=replace(entry.ref, continues=3)), ROOT, 1, 1)
    record = store.lookup(InodeId(5))
    assert record is not None
    assert record.entry.ref is not None
    assert record.entry.ref.continues == 3


def test_an_empty_page_at_the_end_of_a_listing_hides_nothing() -> None:
    """As a store's listing ends whose last page but one was just full."""
    names = MetadataCache(ManualClock().monotonic)
    entries = [make_entry(name, 2 + number, 3) for number, name in enumerate("abcd")]
    names.keep_page(ROOT, b"", DirPage(tuple(entries[:2]), b"1", 5.0), names.begin())
    names.keep_page(ROOT, b"1", DirPage(tuple(entries[2:]), b"2", 5.0), names.begin())
    names.keep_page(ROOT, b"2", DirPage((), b"", 5.0), names.begin())
    for entry in entries:
        known = names.lookup(ROOT, entry.name)
        assert known is not None
        assert known.entry == entry
    for name in ("0", "aa", "bb", "cc", "e"):
        absent = names.lookup(ROOT, name)
        assert absent is not None
        assert absent.entry is None
    second = names.list_page(ROOT, b"1")
    assert second is not None
    assert second.next_cursor == b""
