"""Locks of ranges by several owners, beside a model that knows each byte: and beside the kernel's own."""

import errno
import fcntl
import os
import struct
import tempfile
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from alluxio_like.locks import END, Lock, LockKind, LockTable, Owner, Place
from alluxio_like.types import InodeId

PLACE = Place(InodeId(1), whole=False)
BYTES = 12
OWNERS = [Owner("a", 1), Owner("a", 2), Owner("b", 1)]
RANGES = st.tuples(st.integers(0, BYTES - 1), st.integers(0, BYTES - 1)).map(sorted)
_F_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")
_TYPES = {LockKind.NONE: fcntl.F_UNLCK, LockKind.READ: fcntl.F_RDLCK, LockKind.WRITE: fcntl.F_WRLCK}


class LocksMachine(RuleBasedStateMachine):
    """Open file descriptions of one file stand for owners: the kernel says what is right."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LockTable()
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115  closed in teardown
        self.fds = {owner: os.open(self.file.name, os.O_RDWR) for owner in OWNERS}
        self.bytes: dict[Owner, list[LockKind]] = {owner: [LockKind.NONE] * BYTES for owner in OWNERS}

    def teardown(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.file.close()

    @rule(owner=st.sampled_from(OWNERS), kind=st.sampled_from(list(LockKind)), span=RANGES, to_end=st.booleans())
    def set(self, owner: Owner, kind: LockKind, span: list[int], to_end: bool) -> None:
        start, end = span[0], END if to_end else span[1]
        refused = self.table.set(PLACE, Lock(owner, kind, start, end, 7))
        length = 0 if to_end else end - start + 1
        try:
            fcntl.fcntl(self.fds[owner], _F_OFD_SETLK, _FLOCK.pack(_TYPES[kind], os.SEEK_SET, start, length, 0))
        except OSError as error:
            assert error.errno in (errno.EAGAIN, errno.EACCES)
            assert refused is not None
            assert refused.owner != owner
            return
        assert refused is None
        for byte in range(start, min(end, BYTES - 1) + 1):
            self.bytes[owner][byte] = kind

    @rule(holder=st.sampled_from(["a", "b"]))
    def drop_holder(self, holder: str) -> None:
        self.table.drop_holder(holder)
        for owner in OWNERS:
            if owner.holder == holder:
                os.close(self.fds[owner])
                self.fds[owner] = os.open(self.file.name, os.O_RDWR)
                self.bytes[owner] = [LockKind.NONE] * BYTES

    @invariant()
    def is_the_same(self) -> None:
        found = {owner: [LockKind.NONE] * BYTES for owner in OWNERS}
        for holder in ("a", "b"):
            for place, lock in self.table.iter_locks(holder):
                assert place == PLACE
                for byte in range(lock.start, min(lock.end, BYTES - 1) + 1):
                    assert found[lock.owner][byte] is LockKind.NONE, "two locks of one owner on one byte"
                    found[lock.owner][byte] = lock.kind
        assert found == self.bytes


TestLocks = LocksMachine.TestCase
TestLocks.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def make_lock(owner: Owner, start: int, kind: LockKind = LockKind.WRITE) -> Lock:
    return Lock(owner, kind, start, start, 7)


def raises_conflict(call: Callable[[], object]) -> bool:
    from alluxio_like.errors import Conflict

    try:
        call()
    except Conflict:
        return True
    return False


def test_a_circle_of_three_is_a_deadlock_and_a_chain_is_none() -> None:
    table = LockTable()
    one, two, three = OWNERS
    for number, owner in enumerate(OWNERS):
        assert table.set(PLACE, make_lock(owner, number)) is None
    assert not raises_conflict(lambda: table.wait(PLACE, make_lock(one, 1)))
    assert not raises_conflict(lambda: table.wait(PLACE, make_lock(two, 2)))
    assert raises_conflict(lambda: table.wait(PLACE, make_lock(three, 0)))
    table.stop_waiting(two)
    assert not raises_conflict(lambda: table.wait(PLACE, make_lock(three, 0)))


def test_whole_files_and_ranges_do_not_see_each_other() -> None:
    table = LockTable()
    whole = Place(InodeId(1), whole=True)
    assert table.set(PLACE, Lock(OWNERS[0], LockKind.WRITE, 0, END, 1)) is None
    assert table.set(whole, Lock(OWNERS[2], LockKind.WRITE, 0, END, 1)) is None
    assert table.set(whole, Lock(OWNERS[0], LockKind.READ, 0, END, 1)) is not None
    assert table.drop_owner(whole, OWNERS[2])
    assert table.set(whole, Lock(OWNERS[0], LockKind.READ, 0, END, 1)) is None
