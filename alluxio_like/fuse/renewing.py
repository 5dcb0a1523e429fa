"""Files that another machine has written since they were opened here, and of which nothing was read yet.

Owns when such a handle may go on with the version that is there now, so that its first read does not fail because the one that
it was opened with is gone: as long as neither the program nor the kernel has anything of that, for the kernel keeps its pages by
node id. Rule of concurrency: one event loop; what is looked at and changed is so without an await in between.
"""

from collections.abc import Callable, Iterable

from alluxio_like.fuse.handles import FileHandle
from alluxio_like.fuse.modes import Way
from alluxio_like.types import Entry, InodeId, VersionId

Renewed = Callable[[int, VersionId], None]
"""Is told of a node id whose opens and pages are of another version from now on."""


class Renewing:
    """Of one mount. `list_open` gives the handles of an inode."""

    def __init__(self, list_open: Callable[[InodeId], Iterable[FileHandle]], on_renewed: Renewed) -> None:
        self._list_open = list_open
        self._on_renewed = on_renewed

    def note_opened(self, file: FileHandle, *, without_pages: bool) -> None:
        """A file is being opened for reading; `without_pages`: the kernel drops what it has of its node id."""
        others = self._list_alike(file)
        # (A later open keeps pages; there are none as long as nobody has read.)
        file.untouched = file.way is Way.CACHED and (all(one.untouched for one in others) if others else without_pages)

    def note_read(self, file: FileHandle) -> None:
        """A READ of an untouched file is answered: the kernel may have its bytes for all that have the node id open."""
        for one in self._list_alike(file):
            one.untouched = False
        file.untouched = False

    def may_renew(self, file: FileHandle) -> bool:
        """Whether nobody has anything of a handle's version."""
        return file.untouched and all(one.untouched for one in self._list_alike(file))

    def renew(self, file: FileHandle, entry: Entry) -> None:
        """Have all that have the node id open read another version."""
        for one in self._list_alike(file):
            if one.reader is not None:
                one.former.append(one.reader)
            one.entry, one.reader = entry, None
        self._on_renewed(file.node, entry.attr.version)

    def _list_alike(self, file: FileHandle) -> list[FileHandle]:
        return [one for one in self._list_open(file.entry.attr.inode) if one.node == file.node]
