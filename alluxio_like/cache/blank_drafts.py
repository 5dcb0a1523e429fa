"""Blank drafts: empty files for clients to make files of, before the master knows of these; how they begin, are published and go.

Owns the steps of their records, for many of them at once; all else of drafts is drafts.py's, whose rules apply. What a client has
made of one is noted with its file (new_files.py). The order of steps:

    begin      create in drafts/, the record with it | commit soon: draft in
    publish    commit: what the master is told, with the stamp and checksums of the content | commit soon: a draft like others

    a blank draft in the index, no file in drafts/    a power loss has undone it, or it was deleted: it goes; unless it is being
                                                      published: then it is as it was when it was made
    a file in drafts/, no draft in the index          as it says itself: see drafts.py
    one that is being published                       the master is told once more, under the same operation ids

Everything that is not marked "quick" blocks on disks.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from alluxio_like import errors
from alluxio_like.cache import draft_files as files
from alluxio_like.cache import format as fmt
from alluxio_like.cache import new_files, syscalls
from alluxio_like.cache import writing_records as records
from alluxio_like.cache.draft import Draft
from alluxio_like.cache.draft_contents import DraftContents, Observation
from alluxio_like.cache.layout import CacheDirectory
from alluxio_like.cache.new_files import NewFile, Note
from alluxio_like.cache.upload_table import UploadTable
from alluxio_like.cache.writing_records import DraftRecord, Sealing, UploadRecord
from alluxio_like.types import OWN_TOKEN, FileRef, Fingerprint, InodeId, MountId, VersionId

_FIRST = VersionId(1)
_NO_SUMS = b""


@dataclass(frozen=True, slots=True)
class Telling:
    """What the master is about to be told of a draft; `seen`: with that content, None: without any."""

    draft: Draft
    file: NewFile
    seen: Observation | None


class Known(NamedTuple):
    """What a draft is, now that the master knows of it. `upload`: the store is to have it, or never will, and does not yet."""

    draft: Draft
    ref: FileRef
    upload: UploadRecord | None
    unwanted: bool


class Found(NamedTuple):
    """A blank draft as it lies there."""

    draft: Draft
    note: Note | None
    in_use: bool
    """Somebody has it open for writing."""


_T = TypeVar("_T", Telling, Known, Draft)


class BlankDrafts:
    """Of all drafts of a worker. `drafts` is the table of all of them; `choose_directory` raises NoSpace, DiskError."""

    def __init__(
        self,
        directories: list[CacheDirectory],
        drafts: dict[InodeId, Draft],
        contents: DraftContents,
        uploads: UploadTable,
        choose_directory: Callable[[], CacheDirectory],
        checkpoint: Callable[[str], None],
    ) -> None:
        self._dirs = directories
        self._drafts = drafts
        self._contents = contents
        self._uploads = uploads
        self._choose_directory = choose_directory
        self._checkpoint = checkpoint

    def list_all(self) -> list[Draft]:
        """Quick. Those on disks that work."""
        return [draft for draft in list(self._drafts.values()) if draft.record.blank and self._dirs[draft.directory].ok]

    # -- begin -------------------------------------------------------------------------------------------------------------

    def begin(self, inodes: Sequence[InodeId]) -> list[Draft] | None:
        """A blank draft of each; one that is there already is given as it is. They outlive a kill when this returns. None:
        nothing can be noted with files here, and none was made.

        Raises NoSpace, DiskError, Conflict (one of them is no blank draft).
        """
        there = {inode: draft for inode in inodes if (draft := self._drafts.get(inode)) is not None}
        if not all(draft.record.blank and draft.record.publishing is None for draft in there.values()):
            raise errors.Conflict("there is a draft of another file already", subject=str(inodes[0]))
        directory = self._choose_directory()
        made: list[Draft] = []
        values: dict[bytes, bytes | None] = {}
        try:
            with directory.translated():
                for inode in inodes:
                    if inode not in there and not self._make(directory, inode, made, values):
                        self._remove(directory, made)
                        return None
                self._checkpoint("blank: created")
                for draft in made:
                    self._drafts[draft.inode] = draft
                directory.get_index().commit_soon(values)
        except errors.AlluxioLikeError:
            for draft in made:
                self._drafts.pop(draft.inode, None)
            self._remove(directory, made)
            raise
        self._checkpoint("blank: committed")
        return [self._drafts[inode] for inode in inodes]

    def _make(self, directory: CacheDirectory, inode: InodeId, made: list[Draft], values: dict[bytes, bytes | None]) -> bool:
        ref = FileRef(inode, _FIRST, MountId(0), "", Fingerprint(f"{OWN_TOKEN}{_FIRST:x}", 0))
        record = DraftRecord(ref, secrets.randbits(63), blank=True)
        path = fmt.make_draft_path(inode, record.generation)
        raw = records.pack_draft(record)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | files.FLAGS, 0o600, dir_fd=directory.fd)
        try:
            made.append(Draft(record, directory.number, path))
            values[records.make_draft_key(inode)] = raw
            values[records.make_sums_key(inode)] = _NO_SUMS
            return files.note_record(fd, raw)
        finally:
            os.close(fd)

    @staticmethod
    def _remove(directory: CacheDirectory, made: Iterable[Draft]) -> None:
        for draft in made:
            with contextlib.suppress(OSError):
                os.unlink(draft.path, dir_fd=directory.fd)

    # -- look --------------------------------------------------------------------------------------------------------------

    def look_at(self, draft: Draft) -> Found:
        """How a blank draft lies there; its space is counted. Raises DiskError."""
        with contextlib.ExitStack() as held:
            return self._look_at(draft, held)

    def _look_at(self, draft: Draft, held: contextlib.ExitStack) -> Found:
        """Until `held` is closed nobody opens one for writing that is not in use."""
        directory = self._dirs[draft.directory]
        fd = self._contents.open_draft(draft)
        held.callback(os.close, fd)
        with directory.translated():
            in_use = not syscalls.take_read_lease(fd)
            directory.note_draft(draft.record.generation, os.fstat(fd).st_blocks * 512)
            return Found(draft, new_files.read_note(directory.fd, draft.path), in_use)

    def list_unused(self, drafts: Iterable[Draft], held: contextlib.ExitStack) -> tuple[list[Draft], list[Found]]:
        """Those that nobody has open, or has noted anything with, which stay so until `held` is closed; and the others. What
        cannot be looked at is in neither."""
        unused: list[Draft] = []
        others: list[Found] = []
        for draft in drafts:
            with contextlib.suppress(errors.AlluxioLikeError), contextlib.ExitStack() as mine:
                found = self._look_at(draft, mine)
                if found.note is None and not found.in_use and draft.record.publishing is None:
                    held.push(mine.pop_all())
                    unused.append(draft)
                else:
                    others.append(found)
        return unused, others

    # -- publish -----------------------------------------------------------------------------------------------------------

    def note_publishing(self, tellings: Sequence[Telling]) -> dict[InodeId, errors.AlluxioLikeError]:
        """The master is about to be told so; those of which that could not be written down, and why."""
        failed: dict[InodeId, errors.AlluxioLikeError] = {}
        for directory, together in self._group(tellings):
            changed: list[tuple[Draft, DraftRecord]] = []
            values: dict[bytes, bytes | None] = {}
            for one in together:
                sealing = None if one.seen is None else Sealing(one.file.operation_id, one.seen.stamp)
                record = replace(one.draft.record, publishing=one.file, sealing=sealing)
                changed.append((one.draft, record))
                values[records.make_draft_key(record.inode)] = records.pack_draft(record)
                if one.seen is not None:
                    values[records.make_sums_key(record.inode)] = records.pack_sums(one.seen.sums)
            try:
                with directory.translated():
                    directory.get_index().commit_grouped(values)
            except errors.AlluxioLikeError as error:
                failed |= {draft.inode: error for draft, _ in changed}
                continue
            for draft, record in changed:
                draft.record = record
        self._checkpoint("publish: begun")
        return failed

    def note_known(self, known: Sequence[Known]) -> None:
        """Quick. The master knows of them: they are drafts like others from now on, of the version that was published."""
        for directory, together in self._group(known):
            changed: list[tuple[Draft, DraftRecord]] = []
            values: dict[bytes, bytes | None] = {}
            for one in together:
                record = self._make_known(one)
                changed.append((one.draft, record))
                values[records.make_draft_key(record.inode)] = records.pack_draft(record)
                if one.upload is not None:
                    values[records.make_upload_key(one.ref.file_id)] = records.pack_upload(one.upload)
                    # Before there is a file that says so: else it would seem to be a leftover.
                    self._uploads.put(one.upload, directory.number)
            try:
                with directory.translated():
                    # Killed before that, they are published once more under their operation ids, and become the same versions.
                    directory.get_index().commit_soon(values)
            except BaseException:
                for one in together:
                    self._uploads.pop(one.ref.file_id)
                raise
            for draft, record in changed:
                draft.record = record
        self._checkpoint("publish: committed")

    @staticmethod
    def _make_known(one: Known) -> DraftRecord:
        record, sealing = one.draft.record, one.draft.record.sealing
        stamp = None if sealing is None else sealing.stamp
        return replace(record, ref=one.ref, stamp=stamp, sealing=None, unwanted=one.unwanted, blank=False, publishing=None)

    def note_refused(self, refused: Sequence[Draft]) -> None:
        """Quick. The master does not take them as they are: they are blank as before."""
        for directory, together in self._group(refused):
            changed = [(draft, replace(draft.record, sealing=None, publishing=None)) for draft in together]
            with directory.translated():
                directory.get_index().commit_soon(
                    {records.make_draft_key(record.inode): records.pack_draft(record) for _, record in changed}
                )
            for draft, record in changed:
                draft.record = record

    def _group(self, all_of_them: Iterable[_T]) -> list[tuple[CacheDirectory, list[_T]]]:
        """By the cache directory that they are in."""
        groups: dict[int, list[_T]] = {}
        for one in all_of_them:
            draft = one if isinstance(one, Draft) else one.draft
            groups.setdefault(draft.directory, []).append(one)
        return [(self._dirs[number], together) for number, together in groups.items()]
