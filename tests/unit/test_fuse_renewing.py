"""Which handles may go on with another version: those of which neither a program nor the kernel has a byte."""

from dataclasses import replace

from alluxio_like.fuse.handles import FileHandle
from alluxio_like.fuse.modes import Way
from alluxio_like.fuse.renewing import Renewing
from alluxio_like.types import Attr, Entry, InodeId, Kind, VersionId

INODE = InodeId(5)
OLD = Entry("f", Attr(INODE, Kind.FILE, 0o644, 0, 0, 10, 1, 1, 1, VersionId(2)), None)
NEW = replace(OLD, attr=replace(OLD.attr, version=VersionId(3), size=20))


class Mount:
    """Opens of one file."""

    def __init__(self) -> None:
        self.opened: list[FileHandle] = []
        self.told: list[tuple[int, int]] = []
        self.renewing = Renewing(lambda _: self.opened, lambda node, version: self.told.append((node, version)))

    def open(self, *, without_pages: bool, node: int = 5, way: Way = Way.CACHED) -> FileHandle:
        file = FileHandle(OLD, None, node, way)
        self.renewing.note_opened(file, without_pages=without_pages)
        self.opened.append(file)
        return file


def test_what_nobody_has_read_becomes_another_version_for_all() -> None:
    mount = Mount()
    first, second = mount.open(without_pages=True), mount.open(without_pages=False)
    elsewhere = mount.open(without_pages=True, node=1 << 48 | 5)
    assert mount.renewing.may_renew(second)
    mount.renewing.renew(second, NEW)
    assert (first.entry, second.entry, elsewhere.entry) == (NEW, NEW, OLD)
    assert mount.told == [(5, 3)]


def test_what_one_has_read_the_kernel_has_for_all() -> None:
    mount = Mount()
    first, second = mount.open(without_pages=True), mount.open(without_pages=False)
    elsewhere = mount.open(without_pages=True, node=1 << 48 | 5)
    mount.renewing.note_read(first)
    mount.opened.remove(first)
    assert not mount.renewing.may_renew(second)
    assert mount.renewing.may_renew(elsewhere)
    assert not mount.open(without_pages=False).untouched
    # One that has the kernel drop its pages is beside one that has read.
    assert not mount.renewing.may_renew(mount.open(without_pages=True))


def test_what_the_kernel_keeps_of_before_stays_that_version() -> None:
    mount = Mount()
    assert not mount.renewing.may_renew(mount.open(without_pages=False))
    assert not mount.renewing.may_renew(mount.open(without_pages=True, node=6, way=Way.PASSTHROUGH))
