"""Which versions are the beginning of which."""

from alluxio_like.master.core.growth import Growth
from alluxio_like.types import InodeId, VersionId

FILE = InodeId(7)


def seal(growth: Growth, base: int, version: int, *, extends: bool = True, inode: InodeId = FILE) -> None:
    growth.note_sealed(inode, base, VersionId(version), extends=extends)


def first(growth: Growth, version: int, inode: InodeId = FILE) -> int:
    return growth.get_first(inode, VersionId(version))


def test_each_version_that_goes_on_from_the_one_before_begins_where_that_began() -> None:
    growth = Growth()
    assert first(growth, 1) == 0
    seal(growth, 1, 2)
    assert first(growth, 2) == 1
    seal(growth, 2, 3)
    assert (first(growth, 3), first(growth, 2)) == (1, 0)  # of what it is now alone


def test_another_content_ends_it() -> None:
    growth = Growth()
    seal(growth, 1, 2)
    seal(growth, 2, 3, extends=False)
    assert first(growth, 3) == 0
    seal(growth, 3, 4)
    assert first(growth, 4) == 3


def test_what_was_made_without_the_version_in_between_is_not_its_beginning() -> None:
    """Two machines: the later close was made from what the file was before the other's."""
    growth = Growth()
    seal(growth, 1, 2)
    seal(growth, 1, 3)
    assert first(growth, 3) == 0


def test_a_version_that_was_not_heard_of_is_not_gone_on_from() -> None:
    growth = Growth()
    seal(growth, 1, 2)
    seal(growth, 3, 4)
    assert first(growth, 4) == 3


def test_what_is_told_twice_or_late_changes_nothing() -> None:
    growth = Growth()
    seal(growth, 1, 2)
    seal(growth, 2, 3)
    seal(growth, 2, 3, extends=False)
    seal(growth, 1, 2)
    assert first(growth, 3) == 1


def test_files_that_changed_longest_ago_are_forgotten() -> None:
    growth = Growth(most_files=2)
    for inode in (1, 2):
        seal(growth, 1, 2, inode=InodeId(inode))
    seal(growth, 2, 3, inode=InodeId(1))
    seal(growth, 1, 2, inode=InodeId(3))
    assert [first(growth, version, InodeId(inode)) for inode, version in ((1, 3), (2, 2), (3, 2))] == [1, 0, 1]
