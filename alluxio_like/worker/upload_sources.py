"""Where the bytes of an upload come from: the cache file of a version, or the draft as long as that holds just them.

Owns finding them, and whether a file that was opened still holds them. Everything here looks at disks: to be called in the disk
queue's threads.
"""

import contextlib
import os

from alluxio_like import errors
from alluxio_like.cache.draft_files import get_stamp
from alluxio_like.cache.store import CacheStore
from alluxio_like.cache.writing_records import UploadRecord
from alluxio_like.types import PageRange, get_page_count
from alluxio_like.worker.upload_parts import Opened, Superseded

_LOOKS = 3
"""How often a version is looked for among the cache files and the drafts: it may move from one to the other in between."""


class UploadSources:
    """One per worker."""

    def __init__(self, store: CacheStore) -> None:
        self._store = store
        self._drafts = store.drafts

    def open(self, record: UploadRecord) -> Opened | None:
        """The bytes of a version; None: they are not here any more."""
        if not record.ref.size:
            fd = os.memfd_create("empty", os.MFD_CLOEXEC)
            return Opened(record, fd, get_stamp(fd))
        found = (self._open_cached(record) or self._open_draft(record) for _ in range(_LOOKS))
        return next((opened for opened in found if opened is not None), None)

    def has(self, record: UploadRecord) -> bool:
        """Whether they are here."""
        opened = self.open(record)
        if opened is not None:
            os.close(opened.fd)
        return opened is not None

    def _open_cached(self, record: UploadRecord) -> Opened | None:
        cached = self._store.lookup(record.file_id)
        if cached is None or cached.fingerprint != record.ref.fingerprint:
            return None
        pages = PageRange(0, get_page_count(record.ref.size))
        with contextlib.suppress(errors.NotFound):
            if cached.has_suspects(pages):
                cached.verify_suspects(pages)
            fd = cached.open_read_only()
            opened = Opened(record, fd, get_stamp(fd))
            if not cached.removed and cached.is_complete:
                return opened
            os.close(fd)
        return None

    def _open_draft(self, record: UploadRecord) -> Opened | None:
        draft = self._drafts.lookup(record.file_id.inode)
        if draft is None or draft.record.ref.file_id != record.file_id:
            return None
        fd = self._drafts.contents.open_draft(draft)
        opened = Opened(record, fd, get_stamp(fd))
        if self._drafts.holds(draft, record.file_id, opened.stamp):
            return opened
        os.close(fd)
        return None

    def is_unchanged(self, opened: Opened) -> bool:
        """Whether the file that was opened still holds the version."""
        return not opened.record.ref.size or any(self._holds_still(opened) for _ in range(_LOOKS))

    def _holds_still(self, opened: Opened) -> bool:
        file_id = opened.record.file_id
        now = get_stamp(opened.fd)
        if now == opened.stamp:
            return True
        # Renames, from draft to cache file and back, give another stamp too.
        cached = self._store.lookup(file_id)
        if cached is not None and cached.fingerprint == opened.record.ref.fingerprint:
            with contextlib.suppress(errors.NotFound), cached.open_fd() as fd:
                return os.fstat(fd).st_ino == now.number
        draft = self._drafts.lookup(file_id.inode)
        return draft is not None and self._drafts.holds(draft, file_id, now)

    def copy(self, opened: Opened) -> int:
        """A descriptor of the version's bytes that nobody changes any more. Raises Superseded: they are others by now."""
        copy = os.memfd_create("upload", os.MFD_CLOEXEC)
        try:
            done, size = 0, opened.record.ref.size
            while done < size and (count := os.sendfile(copy, opened.fd, done, size - done)):
                done += count
            if not self.is_unchanged(opened):
                raise Superseded
        except BaseException:
            os.close(copy)
            raise
        return copy
