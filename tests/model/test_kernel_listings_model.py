"""The kernel's copies of listings against what we believe of them: never out of date for who comes later, and used again soon.

The kernel is modelled on fs/fuse/readdir.c: a copy grows at its end from uncached answers, becomes whole when an answer at its
end is empty, is used when whole, and starts anew when it is whole and a page of it is gone. It does not start anew before it is
whole.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from alluxio_like.clock import ManualClock
from alluxio_like.fuse.kernel_memory import ROOT_NODE, KernelMemory
from alluxio_like.types import EVERYWHERE, InodeId, Recall

ENTRIES = 3
VALID_S = 10.0
NODE = 7
DONE = object()


@dataclass
class Copy:
    """The kernel's copy of the listing: the version of each entry, in order."""

    versions: list[int] = field(default_factory=list)
    whole: bool = False
    lost: bool = False
    """Its pages were dropped."""

    def drop(self) -> None:
        self.lost = bool(self.versions) or self.whole

    def add(self, at: int, version: int) -> None:
        if not self.whole and at == len(self.versions) and not self.lost:
            self.versions.append(version)

    def end(self, at: int) -> None:
        if not self.whole and at == len(self.versions):
            self.whole = True


@dataclass
class Reader:
    """An open directory. `since`: the version when it was opened or rewound."""

    uses: bool
    since: int
    at: int = 0
    asked: bool = False


class _Teller:
    can_tell_all = True

    def __init__(self, copy: Copy) -> None:
        self.copy = copy

    def tell(self, parent: int, name: bytes, *, gently: bool = False) -> None: ...

    def tell_all(self) -> None: ...

    def tell_all_now(self) -> None: ...

    def tell_inode(self, node: int, *, listing: bool = True) -> None:
        if node == NODE and listing:
            self.copy.drop()

    def flush(self) -> Any:
        return DONE


class _Backend:
    def list_known_names(self, _directory: InodeId, _limit: int) -> list[bytes]:
        return []

    def get_old(self, _inode: InodeId) -> None:
        return None


class Listings(RuleBasedStateMachine):
    """One directory, its readers and its changes."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.copy = Copy()
        backend: Any = _Backend()
        self.memory = KernelMemory(backend, _Teller(self.copy), InodeId(ROOT_NODE), self.clock)
        self.readers: list[Reader] = []
        self.version = 0

    @rule()
    def open(self) -> None:
        if len(self.readers) < 4:
            uses, keeps = self.memory.open_listing(NODE, lambda: not self.readers)
            if not keeps:
                self.copy.drop()
            self.readers.append(Reader(uses, self.version))

    @rule(which=st.integers(0, 3), count=st.integers(1, 2))
    def read(self, which: int, count: int) -> None:
        if self.readers:
            self.read_on(self.readers[which % len(self.readers)], count)

    @rule(which=st.integers(0, 3))
    def read_rest(self, which: int) -> None:
        while self.readers and self.read_on(self.readers[which % len(self.readers)], 3):
            pass

    def read_on(self, reader: Reader, count: int) -> bool:
        """One call of getdents(2); whether it gave anything."""
        copy = self.copy
        if reader.uses and copy.whole:
            if not copy.lost or not copy.versions:
                found = copy.versions[reader.at : reader.at + count]
                # What is listed to who came after a change must not be from before it.
                assert all(version >= reader.since for version in found), "out of date"
                reader.at += len(found)
                return bool(found)
            copy.versions.clear()
            copy.whole = copy.lost = False
        reader.asked = True
        stop = min(reader.at + count, ENTRIES)
        if reader.uses:
            self.memory.note_listing(NODE, reader.at, stop, VALID_S)
            for at in range(reader.at, stop):
                copy.add(at, self.version)
            if stop == reader.at:
                copy.end(stop)
        given, reader.at = stop > reader.at, stop
        return given

    @rule(which=st.integers(0, 3))
    def rewind(self, which: int) -> None:
        if self.readers:
            reader = self.readers[which % len(self.readers)]
            reader.at, reader.since = 0, self.version

    @rule(which=st.integers(0, 3))
    def close(self, which: int) -> None:
        if self.readers:
            self.readers.pop(which % len(self.readers))

    @rule(everything=st.sampled_from([False, False, True]))
    def change(self, everything: bool) -> None:
        """A recall; the kernel is told at once."""
        self.version += 1
        recall = Recall(EVERYWHERE if everything else InodeId(NODE), (b"x",))
        assert self.memory.recall([recall], [], [InodeId(NODE)] if self.readers else []) is DONE

    @rule()
    def grow_old(self) -> None:
        self.clock.advance(VALID_S)

    @rule()
    def evict(self) -> None:
        """The kernel forgets the directory, which nobody has open."""
        if not self.readers:
            self.copy.versions.clear()
            self.copy.whole = self.copy.lost = False

    @invariant()
    def never_stuck(self) -> None:
        """A copy that grows has its pages."""
        assert self.copy.whole or not self.copy.lost

    def teardown(self) -> None:
        """Whatever happened: the third pass after it finds a copy, and asks nothing."""
        self.readers.clear()
        for _ in range(3):
            uses, keeps = self.memory.open_listing(NODE, lambda: True)
            if not keeps:
                self.copy.drop()
            reader = Reader(uses, self.version)
            while self.read_on(reader, 3):
                pass
        assert not reader.asked


TestListings = Listings.TestCase
TestListings.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
