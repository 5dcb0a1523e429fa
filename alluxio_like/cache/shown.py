"""What others were shown of a draft while its file stays open: the checksums of those versions, and the copies made for them.

Owns what is remembered of it, in memory; a worker that starts again has forgotten it. A file that only grows still has each of
them as its beginning, and checksums say so, page by page. What a draft is: drafts.py. Rule of concurrency: any thread may call;
each step is one operation of a dictionary or list.
"""

from array import array
from collections.abc import Iterator

from alluxio_like.types import FileId, FileRef, VersionId

KEPT = 8
"""Versions. One lasts some seconds, so whoever has begun to read one has so many times that to end. A guess."""
_COPIES = 2


class Shown:
    """Of one draft."""

    def __init__(self) -> None:
        self._versions: dict[VersionId, tuple[FileRef, array[int]]] = {}
        self._copies: list[FileId] = []

    def note(self, ref: FileRef, sums: "array[int]") -> None:
        """A version that is in the draft itself."""
        self._versions[ref.version] = ref, sums
        while len(self._versions) > KEPT:
            self._versions.pop(next(iter(self._versions)), None)

    def lookup(self, ref: FileRef) -> "array[int] | None":
        """The checksums of a version; None: it is not known here."""
        found = self._versions.get(ref.version)
        is_it = found is not None and found[0].size == ref.size and found[0].fingerprint == ref.fingerprint
        return found[1] if found is not None and is_it else None

    def note_copy(self, file_id: FileId) -> None:
        """A version of which a copy was made."""
        self._copies.append(file_id)

    def pop_old_copies(self) -> Iterator[FileId]:
        """Those that nobody needs: who reads may have begun with the one before the last."""
        while len(self._copies) > _COPIES:
            yield self._copies.pop(0)
