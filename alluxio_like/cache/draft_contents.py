"""What is in drafts: looked at, copied, summed, and read as long as they hold the version that is asked for.

Everything that is not marked "quick" blocks on disks; see drafts.py.
"""

import contextlib
import os
import secrets
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from alluxio_like import errors
from alluxio_like.cache import draft_files as files
from alluxio_like.cache import format as fmt
from alluxio_like.cache import syscalls
from alluxio_like.cache import writing_records as records
from alluxio_like.cache.checksum import compute_checksum
from alluxio_like.cache.draft import Draft, is_as, may_become
from alluxio_like.cache.layout import CacheDirectory
from alluxio_like.cache.writing_records import DraftRecord, Stamp
from alluxio_like.types import PAGE_BYTES, FileRef, get_page_count, get_pages

_POLL_S = 0.005
_OBSERVE_TRIES = 3
_READ_TRIES = 3
_NOTED_S = 0.5
"""How long a read waits for a seal to be noted: the master tells others of a version before its answer is here. A guess."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a draft held at one moment: its stamp then, and a checksum for each page; or those of a copy, the file of generation
    `copy`."""

    stamp: Stamp
    sums: "array[int]"
    copy: int = 0


class DraftContents:
    """Of all drafts below some cache directories."""

    def __init__(self, directories: list[CacheDirectory]) -> None:
        self._dirs = directories
        self._coarse: set[int] = set()

    def load(self, directory: CacheDirectory) -> None:
        """Find out how fine the clock of a directory's file system is."""
        if not files.has_fine_clock(directory.fd):
            self._coarse.add(directory.number)

    def read_stamp(self, draft: Draft) -> Stamp:
        """The stamp of what is in it now. Raises DiskError."""
        directory = self._dirs[draft.directory]
        with directory.translated():
            directory.get_index()
            return files.get_stamp_at(directory.fd, draft.path)

    def measure(self, draft: Draft) -> None:
        """Count the space that a draft takes by now."""
        directory = self._dirs[draft.directory]
        with directory.translated():
            blocks = os.stat(draft.path, dir_fd=directory.fd, follow_symlinks=False).st_blocks
        directory.note_draft(draft.record.generation, blocks * 512)

    def open_draft(self, draft: Draft) -> int:
        """A read-only descriptor of it, the caller's."""
        directory = self._dirs[draft.directory]
        flags = os.O_RDONLY | files.FLAGS
        with directory.translated():
            try:
                return os.open(draft.path, flags, dir_fd=directory.fd)
            except FileNotFoundError:
                if not draft.becomes:
                    raise
                # Moved, and not committed yet.
                return os.open(draft.becomes, flags, dir_fd=directory.fd)

    def begin_writing(self, drafts: Iterable[Draft]) -> None:
        """Before many are observed: what is in them is on its way to the disk together, and one commit of the file system's
        journal does for all."""
        for draft in drafts:
            with contextlib.suppress(errors.DiskError, OSError):
                fd = self.open_draft(draft)
                syscalls.begin_writing(fd)
                os.close(fd)

    def observe(self, draft: Draft) -> Observation | None:
        """Sync what is in a draft, and look at all of it at one moment; None: others go on changing it. Raises DiskError."""
        directory = self._dirs[draft.directory]
        fd = self.open_draft(draft)
        try:
            with directory.translated():
                for _ in range(_OBSERVE_TRIES):
                    before = files.get_stamp(fd)
                    if draft.directory in self._coarse:
                        files.wait_tick(before)
                    # Pages that are mapped and changed before this are clean after it: the next change of any gives a new stamp.
                    directory.sync_written(fd, draft.path)
                    if files.get_stamp(fd) != before:
                        continue
                    sums = files.compute_sums(fd, before.size)
                    if sums is not None and files.get_stamp(fd) == before:
                        return Observation(before, sums)
        finally:
            os.close(fd)
        self.measure(draft)
        return None

    def observe_copy(self, draft: Draft) -> Observation:
        """A copy of a draft that others go on changing, and all that is in it; its mtime is that of what was there when it was
        begun. Raises NoSpace, DiskError."""
        directory = self._dirs[draft.directory]
        generation = secrets.randbits(62) + 1
        path = fmt.make_draft_path(draft.inode, generation)
        source = self.open_draft(draft)
        try:
            with directory.translated():
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | files.FLAGS, 0o600, dir_fd=directory.fd)
                try:
                    written_ns = os.fstat(source).st_mtime_ns
                    files.copy_all(source, fd)
                    os.utime(fd, ns=(written_ns, written_ns))
                    directory.sync_written(fd, path)
                    stamp = files.get_stamp(fd)
                    sums = files.compute_sums(fd, stamp.size)
                    directory.note_draft(generation, os.fstat(fd).st_blocks * 512)
                finally:
                    os.close(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path, dir_fd=directory.fd)
            raise
        finally:
            os.close(source)
        assert sums is not None
        return Observation(stamp, sums, generation)

    def read(self, draft: Draft, ref: FileRef, offset: int, length: int) -> bytes:
        """Bytes of a version from the draft, as long as that has them: of a version whose checksums are known, those pages that
        still match; else of one that nobody has changed.

        Raises Stale: it has changed since, or was never that version.
        """
        for _ in range(_READ_TRIES):
            self._await_noted(draft, ref)
            record = draft.record
            try:
                return self._read(draft, record, ref, offset, length)
            except errors.Stale:
                if draft.record is record:
                    break
                # Sealed, or about to be, since the look at it.
        raise errors.Stale("the file is being written anew", subject=ref.key)

    @staticmethod
    def _await_noted(draft: Draft, ref: FileRef) -> None:
        """Wait while it cannot be told which version is which. (What a seal under way makes may be the version that is asked for,
        or another machine's: only the master's answer says.)"""
        until_s = time.monotonic() + _NOTED_S
        while (draft.summing or may_become(draft.record, ref)) and time.monotonic() < until_s:
            time.sleep(_POLL_S)

    def _read(self, draft: Draft, record: DraftRecord, ref: FileRef, offset: int, length: int) -> bytes:
        stale = errors.Stale("the file is being written anew", subject=ref.key)
        is_newest = record.ref.file_id == ref.file_id and record.ref.fingerprint == ref.fingerprint
        sums = self._find_sums(draft, record, ref, is_newest=is_newest)
        if sums is None and (not is_newest or record.stamp is None):
            raise stale
        if sums is not None and len(sums) != get_page_count(ref.size):
            raise stale  # it has become a cache file just now
        pages = get_pages(offset, length, ref.size)
        start, stop = pages.first * PAGE_BYTES, min(pages.stop * PAGE_BYTES, ref.size)
        fd = self.open_draft(draft)
        try:
            with self._dirs[draft.directory].translated():
                if sums is None and not is_as(draft, record, files.get_stamp(fd)):
                    raise stale
                data = files.read_all(fd, start, stop - start)
                if len(data) != stop - start or (sums is None and not is_as(draft, record, files.get_stamp(fd))):
                    raise stale
        finally:
            os.close(fd)
        if sums is not None:
            for page in range(pages.first, pages.stop):
                low = (page - pages.first) * PAGE_BYTES
                if compute_checksum(memoryview(data)[low : low + PAGE_BYTES]) != sums[page]:
                    raise stale
        return data[offset - start : offset - start + length]

    def _find_sums(self, draft: Draft, record: DraftRecord, ref: FileRef, *, is_newest: bool) -> "array[int] | None":
        """The checksums of a version; None: they are not known. Raises Stale: it cannot be told any more whose they are."""
        if not is_newest or record.sealing is not None:
            return draft.shown.lookup(ref)
        if draft.sums:
            return draft.sums
        sums = self.get_sums(draft)
        if draft.summing or draft.record is not record:
            raise errors.Stale("the file is being written anew", subject=ref.key)
        return sums

    def is_append(self, draft: Draft, seen: Observation) -> bool:
        """Whether what was observed is the version that the draft began from, or was sealed as last, and something behind it."""
        return draft.record.stamp is not None and 0 < draft.record.ref.size < seen.stamp.size and self.extends(draft, seen)

    def extends(self, draft: Draft, seen: Observation) -> bool:
        """Whether the version that the draft began from, or was sealed as last, is the beginning of what was observed."""
        old = draft.record.ref
        if draft.record.sealing is not None or old.size > seen.stamp.size:
            return False
        sums, whole = self.get_sums(draft), old.size // PAGE_BYTES
        if len(sums) != get_page_count(old.size) or sums[:whole] != seen.sums[:whole]:
            return False
        rest = old.size - whole * PAGE_BYTES
        if not rest:
            return True
        fd = self.open_draft(draft)
        try:
            with self._dirs[draft.directory].translated():
                return compute_checksum(files.read_all(fd, whole * PAGE_BYTES, rest)) == sums[whole]
        finally:
            os.close(fd)

    def get_sums(self, draft: Draft) -> "array[int]":
        directory = self._dirs[draft.directory]
        with directory.translated():
            raw = directory.get_index().get_writing(records.make_sums_key(draft.inode))
        return records.unpack_sums(raw or b"")
