"""Appends of a mount are done once, whoever dies; and what a daemon has written down of them reaches the next."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from alluxio_like.fuse import ledger, wire
from alluxio_like.fuse.appending import Appends, Place
from alluxio_like.fuse.ledger import Append, Ledger

INODE = 9
AGAIN = wire.UNIQUE_RESEND


class Daemons:
    """One after the other on one mount, of which the holder hands on what each has written down."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self._memory = ledger.make_memory()
        self.ledger = Ledger(os.dup(self._memory))
        self.appends = Appends(self.ledger)

    def replace(self) -> None:
        memory = ledger.make_memory()
        ledger.copy_sent(self._memory, memory)
        self.close_ledger()
        self._memory, self.ledger = memory, Ledger(os.dup(memory))
        self.appends = Appends(self.ledger)

    def append(self, unique: int, data: bytes, *, killed_after: int | None = None, ends: bool = True) -> Place:
        """What a daemon does for a WRITE: all of it, or until it is killed, so many bytes written, or before `end`."""
        place = self.appends.begin(unique, INODE, self.fd, data)
        if place.written < 0:
            count = os.pwrite(self.fd, data[:killed_after], place.offset)
            if killed_after is None and ends:
                self.appends.end(unique, INODE, place.offset, count)
        return place

    def read(self) -> bytes:
        return os.pread(self.fd, 1000, 0)

    def close_ledger(self) -> None:
        self.ledger.close()
        os.close(self._memory)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    made = Daemons(tmp_path / "file")
    yield made
    made.close_ledger()
    os.close(made.fd)


def test_an_append_goes_to_the_end_whoever_made_it_grow(daemons: Daemons) -> None:
    daemons.append(1, b"one ")
    os.pwrite(daemons.fd, b"others ", 4)
    daemons.append(2, b"two")
    assert daemons.read() == b"one others two"


def test_one_that_was_done_is_not_done_again(daemons: Daemons) -> None:
    """Also when its bytes are not there any more."""
    daemons.append(1, b"one")
    os.pwrite(daemons.fd, b"ONE", 0)
    for _ in range(2):
        daemons.replace()
        assert daemons.append(1 | AGAIN, b"one") == Place(0, 3)
    assert daemons.read() == b"ONE"
    daemons.append(2, b"one")
    assert daemons.read() == b"ONEone"


@pytest.mark.parametrize("killed_after", [0, 2, 6])
def test_one_that_was_begun_is_brought_to_its_end(daemons: Daemons, killed_after: int) -> None:
    daemons.append(1, b"first ")
    daemons.append(2, b"second", killed_after=killed_after)
    daemons.replace()
    daemons.append(2 | AGAIN, b"second")
    assert daemons.read() == b"first second"


def test_one_that_was_written_and_not_noted_is_not_done_again(daemons: Daemons) -> None:
    daemons.append(1, b"first ", ends=False)
    os.pwrite(daemons.fd, b"of others", 6)
    daemons.replace()
    daemons.append(1 | AGAIN, b"first ")
    assert daemons.read() == b"first of others"


def test_one_that_was_not_begun_overwrites_nothing(daemons: Daemons) -> None:
    daemons.append(1, b"mine", killed_after=0)
    os.pwrite(daemons.fd, b"others", 0)
    daemons.replace()
    daemons.append(1 | AGAIN, b"mine")
    assert daemons.read() == b"othersmine"


def test_what_was_truncated_since_is_appended_to_where_it_ends(daemons: Daemons) -> None:
    daemons.append(1, b"long before")
    daemons.append(2, b"mine", killed_after=0)
    os.ftruncate(daemons.fd, 4)
    daemons.replace()
    daemons.append(2 | AGAIN, b"mine")
    assert daemons.read() == b"longmine"


def test_the_last_append_of_each_file_is_known_of_the_last_files(daemons: Daemons) -> None:
    for inode in range(1, 101):
        daemons.ledger.note_append(Append(inode, 2 * inode, 0, -1))
        daemons.ledger.note_append(Append(inode, 2 * inode + 1, 10, 5))
        if inode == 50:
            daemons.replace()
    known = [daemons.ledger.lookup_append(2 * inode + 1) for inode in range(1, 101)]
    assert [one.inode for one in known if one is not None] == list(range(37, 101))
    assert daemons.ledger.lookup_append(200) is None, "another one of that file came after it"
    assert daemons.ledger.lookup_append(0) is None
