"""What a worker's start finds of drafts in a cache directory, and how files and index are brought together again.

Owns the way back from every moment at which a worker can have died; the moments are in cache/drafts.py, which calls this once for
each directory, before anything else uses it. Errors of the disk come as OSError and lmdb.Error.
"""

import contextlib
import logging
import os
from dataclasses import replace

from alluxio_like.cache import draft_files as files
from alluxio_like.cache import format as fmt
from alluxio_like.cache import writing_records as records
from alluxio_like.cache.layout import CacheDirectory
from alluxio_like.cache.writing_records import DraftRecord
from alluxio_like.types import InodeId

_LOG = logging.getLogger(__name__)


def load_drafts(directory: CacheDirectory) -> list[DraftRecord]:
    """The drafts of a directory, each with its file in place and its space counted; what was told to nobody is removed."""
    loaded: list[DraftRecord] = []
    for _, raw in directory.get_index().scan_writing(records.DRAFTS):
        record = _take_up(directory, records.unpack_draft(raw))
        if record is not None:
            loaded.append(_take_up_copy(directory, record))
    loaded += _sweep(directory, loaded)
    return loaded


def _take_up(directory: CacheDirectory, record: DraftRecord) -> DraftRecord | None:
    path = fmt.make_draft_path(record.inode, record.generation)
    if not files.exists(directory.fd, path):
        elsewhere = _find_in_files(directory, record, record.generation)
        if elsewhere is not None:
            os.rename(elsewhere, path, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
            record = _restamp(directory, record, path)
        elif record.blank and record.publishing is None:
            # A power loss before anybody was told of it, or the note that said what became of it has gone with its file.
            _forget(directory, record)
            return None
        elif record.stamp is None and record.sealing is None and not record.ref.holders:
            # A power loss before anything of it was synced: it is as it was when it was made.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | files.FLAGS, 0o600, dir_fd=directory.fd))
        else:
            if not record.unwanted:
                _LOG.error(
                    "the draft of inode %d is gone from %s: what was written and not yet sealed is lost; look at that disk",
                    record.inode, directory.spec.path,
                )  # fmt: skip
            _forget(directory, record)
            return None
    _measure(directory, path, record.generation)
    return record


def _forget(directory: CacheDirectory, record: DraftRecord) -> None:
    gone = {records.make_draft_key(record.inode): None, records.make_sums_key(record.inode): None}
    directory.get_index().commit_grouped(gone)


def _take_up_copy(directory: CacheDirectory, record: DraftRecord) -> DraftRecord:
    """The copy that was being sealed; without it there is nothing to be sealed but what is in the draft by now."""
    if record.sealing is None or not record.sealing.copy:
        return record
    path = fmt.make_draft_path(record.inode, record.sealing.copy)
    if not files.exists(directory.fd, path):
        elsewhere = _find_in_files(directory, record, record.sealing.copy)
        if elsewhere is None:
            return replace(record, sealing=None, stamp=None)
        os.rename(elsewhere, path, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
    _measure(directory, path, record.sealing.copy)
    return record


def _measure(directory: CacheDirectory, path: str, generation: int) -> None:
    directory.note_draft(generation, os.stat(path, dir_fd=directory.fd).st_blocks * 512)


def _restamp(directory: CacheDirectory, record: DraftRecord, path: str) -> DraftRecord:
    """Renaming has given a file another stamp: does it hold what it held?"""
    sealing = record.sealing if record.sealing is None or not record.sealing.copy else None
    old = record.stamp if record.sealing is None else None if sealing is None else sealing.stamp
    fd = os.open(path, os.O_RDONLY | files.FLAGS, dir_fd=directory.fd)
    try:
        stamp = files.get_stamp(fd)
        if old is None or (stamp.size, stamp.mtime_ns) != (old.size, old.mtime_ns):
            return record
        raw = directory.get_index().get_writing(records.make_sums_key(record.inode))
        if raw is None or files.compute_sums(fd, stamp.size) != records.unpack_sums(raw):
            return record
    finally:
        os.close(fd)
    record = replace(record, stamp=stamp) if sealing is None else replace(record, sealing=replace(sealing, stamp=stamp))
    directory.get_index().commit_grouped({records.make_draft_key(record.inode): records.pack_draft(record)})
    return record


def _find_in_files(directory: CacheDirectory, record: DraftRecord, generation: int) -> str | None:
    there = fmt.make_file_path(record.ref.file_id, generation)
    if files.exists(directory.fd, there):
        return there
    parent = there.rpartition("/")[0]
    with os.scandir(f"/proc/self/fd/{directory.fd}/{parent}") as entries:
        for entry in entries:
            parsed = fmt.parse_file_name(entry.name)
            if parsed is not None and parsed[0].inode == record.inode and parsed[1] == generation:
                return f"{parent}/{entry.name}"
    return None


def _sweep(directory: CacheDirectory, loaded: list[DraftRecord]) -> list[DraftRecord]:
    """Files that no draft of the index is: those that say themselves that they are one, and were not committed yet; the rest
    goes."""
    index = directory.get_index()
    found: list[DraftRecord] = []
    known = {fmt.make_draft_path(record.inode, record.generation) for record in loaded}
    known |= {fmt.make_draft_path(one.inode, one.sealing.copy) for one in loaded if one.sealing is not None}
    for entry in list(os.scandir(f"/proc/self/fd/{directory.fd}/drafts")):
        path = f"drafts/{entry.name}"
        if path in known:
            continue
        inode_text, _, generation_text = entry.name.partition("-")
        with contextlib.suppress(ValueError):
            inode, generation = InodeId(int(inode_text, 16)), int(generation_text, 16)
            file_id = next((one for one, record in index.scan_inode(inode) if record.generation == generation), None)
            if file_id is not None:
                there = fmt.make_file_path(file_id, generation)
                os.rename(path, there, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
                continue
        record = _read_own_record(directory, path)
        if record is not None:
            values = {records.make_draft_key(record.inode): records.pack_draft(record)}
            index.commit_grouped({**values, records.make_sums_key(record.inode): b""})
            _measure(directory, path, record.generation)
            found.append(record)
            continue
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=directory.fd)
    return found


def _read_own_record(directory: CacheDirectory, path: str) -> DraftRecord | None:
    raw = files.lookup_record(directory.fd, path)
    if raw is None:
        return None
    record = records.unpack_draft(raw)
    return record if fmt.make_draft_path(record.inode, record.generation) == path else None
