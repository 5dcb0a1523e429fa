"""Drafts: files of a cache directory that programs write to, and how they come from cache files and become such.

Owns the files below drafts/, the table `writing` of each index (through it also what is known of uploads), and the order of their
changes. Whoever calls sees to it that one call at a time deals with an inode; apart from that any thread may call, and everything
that is not marked "quick" blocks on disks. What a draft means to the cluster is the worker's (worker/drafts.py).

A file has one home at each moment: drafts/ or files/, under the same generation. Renames and the index's transactions cannot be
one step, so each order is such that what a start finds leads to one state:

    begin, from a cache file     rename to drafts/ | commit: draft in, file out
    begin, empty                 create in drafts/, its record with it | commit soon: draft in
    become a cache file          rename to files/  | commit: file in, draft out (or, where a copy was sealed, draft changed)
    delete                       its own record goes | commit: draft out | unlink

    a draft in the index, no file in drafts/    it is in files/, and goes back to drafts/ (killed in becoming a cache file; or a
                                                begin whose rename a power loss undid)
    a file in drafts/, no draft in the index    the cache file of that generation, if the index has one, and goes back to files/
                                                (killed in a begin); else the draft that it says itself to be (killed before the
                                                commit); else nobody was told of it, or it was deleted: it is removed

A new file's name is not forced to the disk by itself: file systems that have a journal do it with the file's first fsync, which a
program's own and each seal are.
"""

import contextlib
import logging
import os
import secrets
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import lmdb

from alluxio_like import errors
from alluxio_like.cache import draft_files as files
from alluxio_like.cache import format as fmt
from alluxio_like.cache import syscalls
from alluxio_like.cache import writing_records as records
from alluxio_like.cache.blank_drafts import BlankDrafts, Found
from alluxio_like.cache.draft import Draft, Ending, is_as, may_become
from alluxio_like.cache.draft_contents import DraftContents, Observation
from alluxio_like.cache.draft_moves import Move, Mover, Reserving
from alluxio_like.cache.draft_start import load_drafts
from alluxio_like.cache.file import CachedFile
from alluxio_like.cache.index import FilePut
from alluxio_like.cache.layout import CacheDirectory
from alluxio_like.cache.upload_table import UploadTable
from alluxio_like.cache.writing_records import DraftRecord, Sealing, Stamp, UploadRecord
from alluxio_like.clock import Clock
from alluxio_like.types import (
    PAGE_BYTES,
    FileId,
    FileRef,
    InodeId,
    PageRange,
    get_page_count,
)

_LOG = logging.getLogger(__name__)

TAKEOVER_S = 10.0
"""How long those who are just being sent a cache file may keep it from becoming a draft. A guess."""
_POLL_S = 0.005


class Owner(Reserving, Protocol):
    """What drafts need of the store."""

    def forget(self, file: CachedFile) -> None:
        """The file is no cache file any more, and nobody creates one of its id before `allow`."""

    def recall(self, file: CachedFile) -> None:
        """It is one after all."""

    def set_persisted(self, file_ids: Sequence[FileId]) -> None:
        """The cache file of that id, if there is one, may be evicted."""


class Drafts:
    """All drafts of a worker, and what it has to upload."""

    def __init__(self, directories: list[CacheDirectory], owner: Owner, clock: Clock) -> None:
        self._dirs = directories
        self._owner = owner
        self._clock = clock
        self._drafts: dict[InodeId, Draft] = {}
        self.uploads = UploadTable()
        """What the store does not have: for reading, to whom it is no matter that it may be others in a moment."""
        self.contents = DraftContents(directories)
        self._mover = Mover(
            owner,
            clock,
            on_moved=self._drafts.__delitem__,
            checkpoint=self._reach,
        )
        self.blanks = BlankDrafts(directories, self._drafts, self.contents, self.uploads, self._choose_directory, self._reach)
        self.checkpoint: Callable[[str], None] = lambda _: None
        """Called by name between the steps of a change: where tests kill."""

    # -- quick -------------------------------------------------------------------------------------------------------------

    def lookup(self, inode: InodeId) -> Draft | None:
        """Quick."""
        return self._drafts.get(inode)

    def list_drafts(self) -> list[Draft]:
        """Quick."""
        return list(self._drafts.values())

    def list_uploads(self) -> list[UploadRecord]:
        """Quick. Versions that the store does not have, in the order of their coming."""
        return self.uploads.list_all()

    def lookup_upload(self, file_id: FileId) -> UploadRecord | None:
        """Quick."""
        found = self.uploads.get(file_id)
        return None if found is None else found[0]

    def is_healthy(self, draft: Draft) -> bool:
        """Quick. The disk that a draft is on has not failed."""
        return self._dirs[draft.directory].ok

    def is_generation_used(self, inode: InodeId, generation: int) -> bool:
        """Quick. A draft has that generation, or is just becoming a cache file with it."""
        draft = self._drafts.get(inode)
        if draft is None:
            return False
        sealing = draft.record.sealing
        return generation == draft.record.generation or (sealing is not None and generation == sealing.copy)

    def may_hold(self, draft: Draft, ref: FileRef) -> bool:
        """Quick. Whether `read` may have bytes of a version."""
        is_newest = draft.record.ref.file_id == ref.file_id
        return is_newest or may_become(draft.record, ref) or draft.shown.lookup(ref) is not None

    def is_early(self, draft: Draft) -> bool:
        """Quick. Whether what was sealed last was for others to see only, and is to be sealed once more when it is closed."""
        found = self.uploads.get(draft.record.ref.file_id)
        return found is not None and found[0].early

    def holds(self, draft: Draft, file_id: FileId, stamp: Stamp) -> bool:
        """Quick. Whether a draft of that stamp holds just that version."""
        # (One that could not become a cache file is written on.)
        is_it = draft.record.stamp == stamp or (draft.sums is not None and is_as(draft, draft.record, stamp))
        return draft.record.ref.file_id == file_id and is_it

    # -- start -------------------------------------------------------------------------------------------------------------

    def load(self, directory: CacheDirectory) -> None:
        """Take up what a directory has, and bring files and index together; see the module. Marks the directory failed where its
        disk fails."""
        try:
            self.contents.load(directory)
            for record in load_drafts(directory):
                path = fmt.make_draft_path(record.inode, record.generation)
                self._drafts[record.inode] = Draft(record, directory.number, path)
            for _, raw in directory.get_index().scan_writing(records.UPLOADS):
                upload = records.unpack_upload(raw)
                self.uploads.put(upload, directory.number)
        except (OSError, lmdb.Error, errors.AlluxioLikeError) as error:
            directory.fail(str(error))

    # -- begin -------------------------------------------------------------------------------------------------------------

    def begin(self, ref: FileRef, cached: CachedFile | None, *, truncate: bool) -> Draft:
        """A draft of an inode that has none: from its cache file, all of it there, or (None) empty. It outlives a kill when this
        returns, and the loss of power after `sync`.

        Raises NoSpace, DiskError, Unavailable (the cache file cannot be had now; nothing has changed), NotFound (it was removed
        meanwhile).
        """
        if cached is not None:
            return self._take_over(ref, cached, truncate=truncate)
        directory = self._choose_directory()
        generation = secrets.randbits(63)
        path = fmt.make_draft_path(ref.inode, generation)
        with directory.translated():
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | files.FLAGS, 0o600, dir_fd=directory.fd)
            try:
                is_noted = files.note_record(fd, records.pack_draft(DraftRecord(ref, generation)))
                # What was created and never sealed, or is cut to nothing, is to be sealed in any case.
                is_new = truncate or ref.size or not (ref.is_stored or ref.holders)
                stamp = None if is_new else files.get_stamp(fd)
            finally:
                os.close(fd)
        self.checkpoint("begin: created")
        return self._record_begun(directory, DraftRecord(ref, generation, stamp), path, array("Q"), (), soon=is_noted)

    def sync(self, draft: Draft) -> None:
        """Have what is known of a draft be durable; what is in it is synced by who writes it."""
        directory = self._dirs[draft.directory]
        with directory.translated():
            directory.get_index().commit_durably({})

    def has_newer(self, ref: FileRef) -> bool:
        """Quick. Whether a later version of the same file is in the cache. Raises DiskError."""
        for directory in self._dirs:
            if directory.ok:
                with directory.translated():
                    if any(file_id.version > ref.version for file_id, _ in directory.get_index().scan_inode(ref.inode)):
                        return True
        return False

    def _take_over(self, ref: FileRef, cached: CachedFile, *, truncate: bool) -> Draft:
        directory = self._dirs[cached.directory]
        runs = cached.get_present_runs(PageRange(0, get_page_count(ref.size)))
        if not cached.is_complete or len(runs) != 1 or not cached.begin_takeover():
            raise errors.NotFound("not wholly in the cache", subject=str(ref.file_id))
        self._owner.forget(cached)
        taken = False
        try:
            deadline = time.monotonic() + TAKEOVER_S
            while cached.users:
                if time.monotonic() > deadline:
                    raise errors.Unavailable("others are just being sent the file; try again", subject=ref.key)
                time.sleep(_POLL_S)
            path = fmt.make_draft_path(ref.inode, cached.generation)
            there = fmt.make_file_path(ref.file_id, cached.generation)
            with directory.translated():
                os.rename(there, path, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
                self.checkpoint("begin: renamed")
                stamp = None if truncate else files.get_stamp_at(directory.fd, path)
            sums = array("Q", runs[0].checksums)
            record = DraftRecord(ref, cached.generation, stamp)
            try:
                draft = self._record_begun(directory, record, path, sums, [(ref.file_id, cached.generation)])
            except errors.NoSpace:
                os.rename(path, there, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
                raise
            taken = True
            directory.give_back(fmt.get_disk_bytes(cached.present_bytes))
            cached.close_idle()
            if truncate:
                with directory.translated():
                    os.truncate(f"/proc/self/fd/{directory.fd}/{path}", 0)
                self.contents.measure(draft)
            return draft
        finally:
            cached.end_takeover(taken=taken)
            if not taken:
                self._owner.recall(cached)
            self._owner.allow(ref.file_id)

    def _record_begun(
        self,
        directory: CacheDirectory,
        record: DraftRecord,
        path: str,
        sums: "array[int]",
        removes: Sequence[tuple[FileId, int]],
        *,
        soon: bool = False,
    ) -> Draft:
        """`soon`: its file says whose it is, so nobody has to wait for the index."""
        draft = Draft(record, directory.number, path)
        self._drafts[record.inode] = draft
        try:
            values: dict[bytes, bytes | None] = {
                records.make_draft_key(record.inode): records.pack_draft(record),
                records.make_sums_key(record.inode): records.pack_sums(sums),
            }
            with directory.translated():
                if soon:
                    directory.get_index().commit_soon(values)
                else:
                    directory.get_index().commit_durably(values, removes=removes)
        except BaseException:
            del self._drafts[record.inode]
            raise
        self.checkpoint("begin: committed")
        self.contents.measure(draft)
        return draft

    def _choose_directory(self) -> CacheDirectory:
        healthy = [directory for directory in self._dirs if directory.ok]
        if not healthy:
            raise errors.DiskError("all cache directories of the worker have failed; see its log")
        best = max(healthy, key=lambda directory: directory.get_room())
        if best.get_room() < PAGE_BYTES:
            raise errors.NoSpace("the worker's disk is full up to what must stay free; remove files or give it more", subject="")
        return best

    # -- seal --------------------------------------------------------------------------------------------------------------

    def note_sealing(self, draft: Draft, operation_id: str, seen: Observation) -> None:
        """What was observed is about to become a version, under that operation id."""
        record = replace(draft.record, sealing=Sealing(operation_id, seen.stamp, seen.copy))
        values = {records.make_draft_key(draft.inode): records.pack_draft(record)}
        values[records.make_sums_key(draft.inode)] = records.pack_sums(seen.sums)
        draft.summing = True
        try:
            self._commit(self._dirs[draft.directory], values)
            draft.record = record
        finally:
            draft.summing = False
        self.checkpoint("seal: begun")

    def rename_sealing(self, draft: Draft, operation_id: str) -> None:
        """The seal under way is to have another operation id."""
        assert draft.record.sealing is not None
        record = replace(draft.record, sealing=replace(draft.record.sealing, operation_id=operation_id))
        self._commit(self._dirs[draft.directory], {records.make_draft_key(draft.inode): records.pack_draft(record)})
        draft.record = record

    def note_sealed(self, draft: Draft, ref: FileRef, upload: UploadRecord | None, *, unwanted: bool) -> None:
        """It has become that version. `upload`: the store is to have it, or never will, and does not yet. Quick, unless a copy
        was sealed."""
        sealing = draft.record.sealing
        assert sealing is not None
        stamp = None if sealing.copy else sealing.stamp
        record = replace(draft.record, ref=ref, stamp=stamp, sealing=None, unwanted=unwanted)
        values: dict[bytes, bytes | None] = {records.make_draft_key(draft.inode): records.pack_draft(record)}
        if upload is not None:
            values[records.make_upload_key(ref.file_id)] = records.pack_upload(upload)
        if upload is not None:
            # Before there is a file that says so: else it would seem to be a leftover.
            self.uploads.put(upload, draft.directory)
        try:
            if sealing.copy:
                self._place_copy(draft, sealing, ref, values, unpersisted=upload is not None)
            else:
                # Killed before that, it is sealed once more under its operation id, and becomes the same version.
                self._commit_soon(self._dirs[draft.directory], values)
        except BaseException:
            self.uploads.pop(ref.file_id)
            raise
        if upload is not None and upload.early:
            if sealing.copy:
                draft.shown.note_copy(ref.file_id)
            else:
                draft.shown.note(ref, self.contents.get_sums(draft))
        draft.record = record
        self.checkpoint("seal: committed")

    def _place_copy(
        self, draft: Draft, sealing: Sealing, ref: FileRef, values: "dict[bytes, bytes | None]", *, unpersisted: bool
    ) -> None:
        """The copy is the cache file of its version at once; the draft goes on as something else."""
        directory = self._dirs[draft.directory]
        path = fmt.make_draft_path(draft.inode, sealing.copy)
        if not ref.size:
            self._commit(directory, values)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path, dir_fd=directory.fd)
            directory.note_draft(sealing.copy, 0)
        else:
            self._mover.move_all([Move(path, ref, sealing.copy, self.contents.get_sums(draft), values, unpersisted)], directory)

    def adopt(self, record: UploadRecord, number: int) -> None:
        """A version that another worker has sealed, of which the directory of that number holds a copy. Durable on return."""
        directory = self._dirs[number]
        self.uploads.put(record, number)
        try:
            with directory.translated():
                values = {records.make_upload_key(record.file_id): records.pack_upload(record)}
                directory.get_index().commit_durably(values)
        except BaseException:
            self.uploads.pop(record.file_id)
            raise

    def put_upload(self, record: UploadRecord) -> None:
        """How far an upload is. One that was dropped meanwhile stays so."""
        found = self.uploads.get(record.file_id)
        if found is not None:
            self._commit(self._dirs[found[1]], {records.make_upload_key(record.file_id): records.pack_upload(record)})
            self.uploads.put(record, found[1])

    def commit_uploads(self, file_ids: Sequence[FileId]) -> list[errors.AlluxioLikeError | None]:
        """What is known of these uploads is known after a kill when this returns; what was wrong with each."""
        numbers = [None if (found := self.uploads.get(file_id)) is None else found[1] for file_id in file_ids]
        failed: dict[int, errors.AlluxioLikeError] = {}
        for number in {number for number in numbers if number is not None}:
            directory = self._dirs[number]
            try:
                with directory.translated():
                    directory.get_index().commit_waiting()
            except errors.AlluxioLikeError as error:
                failed[number] = error
        return [None if number is None else failed.get(number) for number in numbers]

    def drop_upload(self, file_id: FileId) -> None:
        """The store has it, or is not to have it any more: its cache file, if there is one, is one like others from now on."""
        for error in self.drop_uploads([file_id]):
            if error is not None:
                raise error

    def drop_uploads(self, file_ids: Sequence[FileId]) -> list[errors.AlluxioLikeError | None]:
        """As `drop_upload` of each, with one wait for each disk; what was wrong with it."""
        found = {file_id: one[1] for file_id in file_ids if (one := self.uploads.pop(file_id)) is not None}
        failed: dict[FileId, errors.AlluxioLikeError] = {}
        for number in set(found.values()):
            together = [file_id for file_id, directory in found.items() if directory == number]
            try:
                # The flag first: a record without a flag is looked at again, a flag without a record by nobody.
                self._owner.set_persisted(together)
                self._commit_soon(self._dirs[number], {records.make_upload_key(file_id): None for file_id in together})
            except errors.AlluxioLikeError as error:
                failed |= dict.fromkeys(together, error)
        return [failed.get(file_id) for file_id in file_ids]

    # -- end ---------------------------------------------------------------------------------------------------------------

    def end(self, draft: Draft) -> Ending:
        """Make it the cache file of its version, if nobody has it open for writing and it holds just that version; one that is
        unwanted, or empty, goes. A file that is open for reading stays so."""
        with contextlib.ExitStack() as held:
            ending = self._look_over(draft, held)
            if isinstance(ending, Ending):
                return ending
            self._mover.move_all([ending], self._dirs[draft.directory], held)
            return Ending.DONE

    def end_all(self, drafts: Sequence[Draft]) -> list[Draft]:
        """As `end`, with one wait for the disk: those that are over. What keeps the others, `end` says of each."""
        done: list[Draft] = []
        by_directory: dict[int, list[Draft]] = {}
        for draft in drafts:
            by_directory.setdefault(draft.directory, []).append(draft)
        for number, together in by_directory.items():
            with contextlib.ExitStack() as held:
                moves: list[tuple[Draft, Move]] = []
                for draft in together:
                    with contextlib.suppress(errors.AlluxioLikeError):
                        ending = self._look_over(draft, held)
                        if ending is Ending.DONE:
                            done.append(draft)
                        elif isinstance(ending, Move):
                            moves.append((draft, ending))
                with contextlib.suppress(errors.AlluxioLikeError):
                    self._mover.move_all([move for _, move in moves], self._dirs[number], held)
                    done += [draft for draft, _ in moves]
        return done

    def _look_over(self, draft: Draft, held: contextlib.ExitStack) -> Ending | Move:
        """Whether a draft is over; what is to become a cache file is said, and what is unwanted goes at once. Until `held` is
        closed nobody opens it for writing."""
        directory = self._dirs[draft.directory]
        fd = self.contents.open_draft(draft)
        held.callback(os.close, fd)
        with directory.translated():
            if not syscalls.take_read_lease(fd):
                return Ending.IN_USE
            stamp = files.get_stamp(fd)
            record = draft.record
            if not record.unwanted and (record.sealing is not None or record.stamp != stamp or self.is_early(draft)):
                return Ending.CHANGED
            if record.unwanted or not stamp.size:
                self._delete([draft], directory)
                return Ending.DONE
            return self._make_move(draft, stamp)

    def delete(self, draft: Draft) -> None:
        """Drop a draft, whatever is in it: its inode is gone."""
        self.delete_all([draft])

    def delete_all(self, drafts: Sequence[Draft]) -> None:
        """As `delete`, with one wait for the disk."""
        for directory in self._dirs:
            together = [draft for draft in drafts if draft.directory == directory.number]
            if together:
                with directory.translated():
                    self._delete(together, directory)

    def drop_unused(self, drafts: Sequence[Draft]) -> list[Found]:
        """Delete those blank drafts that nobody has open or has noted anything with; how the others lie there, but for those that
        cannot be looked at now."""
        with contextlib.ExitStack() as held:
            unused, others = self.blanks.list_unused(drafts, held)
            self.delete_all(unused)
        return others

    def _delete(self, drafts: Sequence[Draft], directory: CacheDirectory) -> None:
        values: dict[bytes, bytes | None] = {}
        for draft in drafts:
            files.drop_record(directory.fd, draft.path)
            values |= {records.make_draft_key(draft.inode): None, records.make_sums_key(draft.inode): None}
        self._commit(directory, values)
        for draft in drafts:
            self._drafts.pop(draft.inode, None)
        self.checkpoint("delete: committed")
        for draft in drafts:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft.path, dir_fd=directory.fd)
            directory.note_draft(draft.record.generation, 0)

    def _make_move(self, draft: Draft, stamp: Stamp) -> Move:
        """How a draft becomes a cache file."""
        record = draft.record
        ref = record.ref
        sums = self.contents.get_sums(draft)
        if ref.size != stamp.size or len(sums) != get_page_count(stamp.size):
            raise errors.Internal("a draft has checksums of another content", subject=ref.key)
        values: dict[bytes, bytes | None] = {records.make_draft_key(ref.inode): None, records.make_sums_key(ref.inode): None}
        return Move(draft.path, ref, record.generation, sums, values, ref.file_id in self.uploads, draft)

    # -- inside ------------------------------------------------------------------------------------------------------------

    def _reach(self, name: str) -> None:
        self.checkpoint(name)

    def _commit(self, directory: CacheDirectory, values: Mapping[bytes, bytes | None], puts: Sequence[FilePut] = ()) -> None:
        with directory.translated():
            directory.get_index().commit_grouped(values, puts=puts)

    def _commit_soon(self, directory: CacheDirectory, values: Mapping[bytes, bytes | None]) -> None:
        with directory.translated():
            directory.get_index().commit_soon(values)
