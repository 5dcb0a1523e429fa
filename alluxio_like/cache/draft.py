"""What a draft is: a file that is being written, and what its worker knows of it. Pure data."""

import enum
from array import array
from dataclasses import dataclass, field, replace

from alluxio_like.cache.shown import Shown
from alluxio_like.cache.writing_records import DraftRecord, Stamp
from alluxio_like.types import FileRef, InodeId


class Ending(enum.Enum):
    """What came of a look whether a draft is over."""

    IN_USE = enum.auto()
    CHANGED = enum.auto()
    DONE = enum.auto()


@dataclass(slots=True, eq=False)
class Draft:
    """A draft; `record` is as in the index."""

    record: DraftRecord
    directory: int
    path: str
    becomes: str = ""
    """Where its file is once it is a cache file; empty: it is not about to be one."""
    sums: "array[int] | None" = None
    """Checksums of its pages, from when it is about to be one: the index has them elsewhere then."""
    summing: bool = False
    """The checksums on disk are being replaced: of which version they are cannot be told."""
    shown: Shown = field(default_factory=Shown)

    @property
    def inode(self) -> InodeId:
        return self.record.inode


def is_as(draft: Draft, record: DraftRecord, stamp: Stamp) -> bool:
    """Whether a draft's file is still as it was sealed. (It is renamed as it becomes a cache file: that gives another ctime.)
    `record`: of that version, since the draft's own may be the next one's by now."""
    sealed = record.stamp
    if sealed is None or not draft.becomes:
        return sealed == stamp
    return replace(sealed, ctime_ns=stamp.ctime_ns) == stamp


def may_become(record: DraftRecord, ref: FileRef) -> bool:
    """Whether a version may be the one that a seal under way is making."""
    return record.sealing is not None and ref.version > record.ref.version and ref.size == record.sealing.stamp.size
