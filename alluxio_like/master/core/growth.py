"""Which files grow: versions of which each is the beginning of the next.

Owns what is known of that, in memory and of so many files: after a start, or of one that was changed long ago, nothing is known,
which is always true. Deterministic. Rule of concurrency: event loop alone.
"""

from collections import OrderedDict
from typing import NamedTuple

from alluxio_like.types import InodeId, VersionId

MOST_FILES = 10_000
"""Some 2 MB. A guess: so many logs are followed at once, or fewer."""


class _Grown(NamedTuple):
    first: int
    last: VersionId


class Growth:
    """See the module."""

    def __init__(self, most_files: int = MOST_FILES) -> None:
        self._most_files = most_files
        self._grown: OrderedDict[InodeId, _Grown] = OrderedDict()

    @property
    def is_empty(self) -> bool:
        return not self._grown

    def note_sealed(self, inode: InodeId, base: int, version: VersionId, *, extends: bool) -> None:
        """A version was made from another, which is the beginning of it where it `extends` that. May be told twice."""
        known = self._grown.get(inode)
        if known is not None and known.last >= version:
            return
        self._grown.pop(inode, None)
        # Where a version came between the two, the new one was made without it.
        if not extends or version != base + 1:
            return
        self._grown[inode] = _Grown(known.first if known is not None and known.last == base else base, version)
        if len(self._grown) > self._most_files:
            self._grown.popitem(last=False)

    def get_first(self, inode: InodeId, version: VersionId) -> int:
        """The oldest version that is known to be the beginning of this one; 0: none is."""
        known = self._grown.get(inode)
        return known.first if known is not None and known.last == version else 0
