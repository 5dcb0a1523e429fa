"""Who is taken to open what he looks up."""

from alluxio_like.fuse.habits import _THREADS, LEAST, Habits
from alluxio_like.types import InodeId


def read(habits: Habits, thread: int, inode: int) -> bool:
    """A small file of another machine is looked up and opened; whether its open was expected."""
    expected = habits.note_lookup(thread, InodeId(inode))
    habits.note_open(thread, InodeId(inode))
    return expected


def acquire(habits: Habits, thread: int) -> None:
    for inode in range(1, LEAST + 2):
        assert not read(habits, thread, inode)


def test_who_opens_what_it_looks_up_is_expected_to_go_on() -> None:
    habits = Habits()
    acquire(habits, 7)
    assert all(read(habits, 7, inode) for inode in range(100, 200))
    assert not habits.note_lookup(8, InodeId(200)), "another thread"


def test_one_name_that_is_not_opened_ends_the_habit() -> None:
    habits = Habits()
    acquire(habits, 7)
    assert habits.note_lookup(7, InodeId(100))
    assert habits.note_lookup(7, InodeId(100)), "stat, then open: the same file"
    assert not habits.note_lookup(7, InodeId(101))
    habits.note_open(7, InodeId(101))
    assert not habits.note_lookup(7, InodeId(102)), "it begins anew"


def test_opens_of_what_the_kernel_knows_make_no_habit() -> None:
    habits = Habits()
    for inode in range(1, 100):
        habits.note_open(7, InodeId(inode))
    assert not habits.note_lookup(7, InodeId(100))


def test_threads_that_cannot_be_told_apart_have_none_and_few_are_remembered() -> None:
    habits = Habits()
    for inode in range(1, 100):
        assert not read(habits, 0, inode)
    for thread in range(1, 10 * _THREADS):
        habits.note_open(thread, InodeId(thread))
    assert len(habits._threads) == _THREADS
