"""Checks a cache directory: its index against its files, what programs write there, and (if asked) every page's checksum.

Owns the rules between them, looked at from outside: the directory is opened for reading alone and its index read in one
transaction. While a worker runs, files move between two looks: what is found then is to be looked for a second time. Blocks on
disks; for a process of its own (fsck).
"""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from alluxio_like import errors
from alluxio_like.cache import format as fmt
from alluxio_like.cache import layout
from alluxio_like.cache import writing_records as records
from alluxio_like.cache.checksum import compute_checksum
from alluxio_like.cache.draft_files import lookup_record
from alluxio_like.cache.format import FileRecord, UsageRecord
from alluxio_like.cache.index import account
from alluxio_like.findings import REPAIR, Finding, Grade
from alluxio_like.types import PAGE_BYTES, PAGES_PER_BLOCK, FileId, InodeId

_LOST = "it is lost unless another worker has it (`alluxio-like cache status PATH`)"
_REFETCH = "nothing: the worker fetches it again when it is read"
_TABLES = (fmt.FILES, fmt.BLOCKS, fmt.WRITING)


class Held(NamedTuple):
    """What a directory has of what programs wrote: whose it is, and versions that are there, or may be in a draft (version 0)."""

    worker_id: str
    files: frozenset[FileId]
    drafts: frozenset[InodeId]


class CheckedDirectory:
    """A cache directory that is looked at. Raises Conflict (a worker has it, and not `online`), ConfigError (it is none)."""

    def __init__(self, path: Path, *, online: bool = False) -> None:
        self.path = path
        self._lock_fd = -1
        self.fd = _open(path)
        try:
            if not online:
                self._lock_fd = _lock(self.fd, path)
            self._env = lmdb.open(
                f"/proc/self/fd/{self.fd}/index",
                # As large as it is.
                map_size=0, readonly=True, create=False, lock=True, max_dbs=len(_TABLES), readahead=False,
            )  # fmt: skip
            self._tables = {name: self._env.open_db(name, create=False) for name in _TABLES}
        except lmdb.Error as error:
            self.close()
            raise errors.ConfigError(f"the index of the cache directory cannot be read: {error}", subject=str(path)) from error
        except BaseException:
            self.close()
            raise

    def check(self, *, verify: bool = False) -> Iterator[Finding]:
        """All that does not hold."""
        with self._env.begin() as txn:
            yield from _Checker(self, txn, self._tables, verify).check()

    def list_held(self) -> Held:
        """What it has of what programs wrote."""
        text = layout.read_file(self.fd, "identity")
        worker_id = json.loads(text)["worker_id"] if text else ""
        with self._env.begin() as txn:
            files = {fmt.parse_file_key(bytes(key)) for key, _ in txn.cursor(self._tables[fmt.FILES])}
            writing = [bytes(key) for key, _ in txn.cursor(self._tables[fmt.WRITING])]
        drafts = {InodeId(int.from_bytes(key[1:9], "big")) for key in writing if key.startswith(records.DRAFTS)}
        return Held(worker_id, frozenset(files), frozenset(drafts))

    def mend(self, findings: list[Finding]) -> int:
        """Forget what is mended by forgetting it; of how many findings. Only while no worker has the directory."""
        writes = [write for finding in findings for write in finding.writes]
        if writes:
            self._env.close()
            size = os.stat("index/data.mdb", dir_fd=self.fd).st_size
            with lmdb.open(f"/proc/self/fd/{self.fd}/index", map_size=2 * size + (1 << 30), max_dbs=len(_TABLES)) as env:
                handles = {name: env.open_db(name) for name in _TABLES}
                with env.begin(write=True) as txn:
                    for key, value in writes:
                        name, _, rest = key.partition(b"\0")
                        db = handles.get(name)
                        if value is not None:
                            txn.put(rest, value, db=db)
                        else:
                            txn.delete(rest, db=db)
            self._env = lmdb.open(
                f"/proc/self/fd/{self.fd}/index", map_size=0, readonly=True, create=False, max_dbs=len(_TABLES), readahead=False
            )
            self._tables = {name: self._env.open_db(name, create=False) for name in _TABLES}
        return sum(bool(finding.writes) for finding in findings)

    def close(self) -> None:
        if hasattr(self, "_env"):
            self._env.close()
        for fd in (self._lock_fd, self.fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self.fd = -1


class _Checker:
    def __init__(self, directory: CheckedDirectory, txn: Any, tables: dict[bytes, Any], verify: bool) -> None:
        self._fd = directory.fd
        self._where = str(directory.path)
        self._txn = txn
        self._tables = tables
        self._verify = verify
        self._trust = int.from_bytes(bytes(txn.get(fmt.KEY_TRUST) or b"\0"), "big")
        self._drafts: dict[InodeId, records.DraftRecord] = {}
        self._uploads: dict[FileId, records.UploadRecord] = {}

    def check(self) -> Iterator[Finding]:
        yield from self._read_writing()
        yield from self._check_files()
        yield from self._check_blocks()
        yield from self._check_writing()
        yield from self._check_disk()

    def _scan(self, table: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self._txn.cursor(self._tables[table]):
            yield bytes(key), bytes(value)

    def _describe(self, grade: Grade, rule: str, message: str, cure: str = "", *rows: tuple[bytes, bytes | None]) -> Finding:
        return Finding(grade, rule, f"{self._where}: {message}", cure, rows)

    def _read_writing(self) -> Iterator[Finding]:
        for key, value in self._scan(fmt.WRITING):
            try:
                if key.startswith(records.DRAFTS):
                    draft = records.unpack_draft(value)
                    self._drafts[draft.inode] = draft
                elif key.startswith(records.UPLOADS):
                    upload = records.unpack_upload(value)
                    self._uploads[upload.file_id] = upload
            except (ValueError, KeyError, TypeError):
                yield self._describe(Grade.WRONG, "writing", f"a record of what is written cannot be read: {value!r}", _LOST)

    # -- cache files --

    def _check_files(self) -> Iterator[Finding]:
        usage = UsageRecord()
        for key, value in self._scan(fmt.FILES):
            file_id, record = fmt.parse_file_key(key), fmt.unpack_file(value)
            account(usage, record, 1)
            yield from self._check_file(file_id, record)
        raw = self._txn.get(fmt.KEY_USAGE)
        if raw is not None and fmt.unpack_usage(bytes(raw)) != usage:
            message = f"the sums say {fmt.unpack_usage(bytes(raw))}, there is {usage}"
            yield self._describe(Grade.WRONG, "usage", message, REPAIR, (b"\0" + fmt.KEY_USAGE, fmt.pack_usage(usage)))

    def _check_file(self, file_id: FileId, record: FileRecord) -> Iterator[Finding]:
        shown = f"version {file_id.version} of inode {file_id.inode}"
        blocks = dict(self._list_blocks(file_id))
        present = last = 0
        for block, (generation, trust, bits) in blocks.items():
            pages = fmt.get_pages_in_block(record.size, block)
            if generation != record.generation or trust > self._trust or bits >> pages:
                yield self._describe(Grade.WRONG, "block", f"block {block} of {shown} does not fit its file", _REFETCH)
            for page in range(pages):
                if bits >> page & 1:
                    start = (block * PAGES_PER_BLOCK + page) * PAGE_BYTES
                    last = min(start + PAGE_BYTES, record.size)
                    present += last - start
        if present != record.present_bytes:
            message = f"{shown} counts {record.present_bytes} bytes and has {present}"
            yield self._describe(Grade.WRONG, "present", message, _REFETCH)
        if record.unpersisted and file_id not in self._uploads:
            # Killed as it became a cache file, or between the two records: of an upload that has ended the record goes.
            message = f"{shown} is marked as what the store lacks, and its upload has ended: a start takes the mark away"
            yield self._describe(Grade.LEFTOVER, "unpersisted", message)
        path = fmt.make_file_path(file_id, record.generation)
        try:
            size = os.stat(path, dir_fd=self._fd, follow_symlinks=False).st_size
        except FileNotFoundError:
            yield from self._describe_missing(file_id, record, shown, blocks)
            return
        if size < last:
            grade, cure = Grade.WRONG, _LOST if record.unpersisted else _REFETCH
            yield self._describe(grade, "size", f"the file of {shown} has {size} bytes, and pages up to {last}", cure)
        elif self._verify:
            yield from self._verify_file(file_id, record, path, shown)

    def _describe_missing(self, file_id: FileId, record: FileRecord, shown: str, blocks: dict[int, Any]) -> Iterator[Finding]:
        draft = self._drafts.get(file_id.inode)
        if _exists(self._fd, fmt.make_draft_path(file_id.inode, record.generation)) or draft is not None:
            message = f"the file of {shown} is with the drafts: the next start brings it back"
            yield self._describe(Grade.LEFTOVER, "moving", message)
        elif record.unpersisted:
            yield self._describe(Grade.WRONG, "lost", f"the file of {shown} is gone, and the store does not have it", _LOST)
        elif record.present_bytes:
            rows = [(fmt.FILES + b"\0" + fmt.make_file_key(file_id), None)]
            rows += [(fmt.BLOCKS + b"\0" + fmt.make_block_key(file_id, block), None) for block in blocks]
            yield self._describe(Grade.WRONG, "missing", f"the file of {shown} is gone", _REFETCH, *rows)

    def _verify_file(self, file_id: FileId, record: FileRecord, path: str, shown: str) -> Iterator[Finding]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        except (FileNotFoundError, BlockingIOError):
            # A running worker is just about to take it away, or to make something else of it.
            return
        try:
            for block, _ in self._list_blocks(file_id):
                raw = self._txn.get(fmt.make_block_key(file_id, block), db=self._tables[fmt.BLOCKS])
                found = fmt.unpack_block(bytes(raw))
                for page in range(fmt.get_pages_in_block(record.size, block)):
                    if not found.bits >> page & 1:
                        continue
                    start = (block * PAGES_PER_BLOCK + page) * PAGE_BYTES
                    data = os.pread(fd, min(PAGE_BYTES, record.size - start), start)
                    if page < len(found.checksums) and compute_checksum(data) == found.checksums[page]:
                        continue
                    if found.trust < self._trust:
                        message = f"page {page} of block {block} of {shown} did not reach the disk before a crash"
                        yield self._describe(Grade.LEFTOVER, "checksum", message, _REFETCH)
                    else:
                        cure = _LOST if record.unpersisted else _REFETCH
                        message = f"page {page} of block {block} of {shown} is not what was written"
                        yield self._describe(Grade.WRONG, "checksum", message, cure)
        finally:
            os.close(fd)

    def _list_blocks(self, file_id: FileId) -> list[tuple[int, tuple[int, int, int]]]:
        """Block, and its generation, trust and bits."""
        prefix = fmt.make_block_prefix(file_id)
        found = []
        with self._txn.cursor(self._tables[fmt.BLOCKS]) as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not bytes(key).startswith(prefix):
                        break
                    found.append((fmt.parse_block_key(bytes(key))[1], fmt.unpack_block_header(bytes(value))))
        return found

    def _check_blocks(self) -> Iterator[Finding]:
        """Blocks of files that are not there."""
        known: tuple[FileId | None, bool] = (None, False)
        for key, _ in self._scan(fmt.BLOCKS):
            file_id, block = fmt.parse_block_key(key)
            if known[0] != file_id:
                is_there = self._txn.get(fmt.make_file_key(file_id), db=self._tables[fmt.FILES]) is not None
                known = (file_id, is_there)
            if not known[1]:
                message = f"block {block} of {file_id}, which the cache does not have"
                yield self._describe(Grade.WRONG, "block", message, REPAIR, (fmt.BLOCKS + b"\0" + key, None))

    # -- what programs write --

    def _check_writing(self) -> Iterator[Finding]:
        for inode, draft in self._drafts.items():
            if not _exists(self._fd, fmt.make_draft_path(inode, draft.generation)):
                if self._is_in_files(draft):
                    yield self._describe(Grade.LEFTOVER, "moving", f"the draft of inode {inode} is with the cache files")
                elif draft.stamp is None and draft.sealing is None and not draft.ref.holders:
                    yield self._describe(Grade.LEFTOVER, "draft", f"the draft of inode {inode} was begun, and has no file yet")
                elif not draft.unwanted:
                    yield self._describe(Grade.WRONG, "lost", f"the draft of inode {inode} is gone from the disk", _LOST)
            if self._txn.get(records.make_sums_key(inode), db=self._tables[fmt.WRITING]) is None:
                yield self._describe(Grade.WRONG, "draft", f"the draft of inode {inode} has no checksums", "start the worker")
        begun = self._list_begun()
        newest: dict[InodeId, int] = {}
        for one in (*self._uploads, *(fmt.parse_file_key(key) for key, _ in self._scan(fmt.FILES))):
            newest[one.inode] = max(newest.get(one.inode, 0), one.version)
        for file_id, upload in self._uploads.items():
            if file_id.version < newest[file_id.inode]:
                continue  # replaced: its record goes with the upload of the newest
            is_there = self._txn.get(fmt.make_file_key(file_id), db=self._tables[fmt.FILES]) is not None
            if upload.ref.size and not is_there and file_id.inode not in self._drafts and file_id.inode not in begun:
                message = f"version {file_id.version} of inode {file_id.inode} is to be uploaded, and is gone"
                yield self._describe(Grade.WRONG, "lost", message, _LOST)

    def _list_begun(self) -> set[InodeId]:
        """Inodes with a draft that says itself what it is, as long as the index does not: it replaces what was before."""
        raw = (lookup_record(self._fd, f"drafts/{name}") for name in _list(self._fd, "drafts"))
        return {records.unpack_draft(one).inode for one in raw if one is not None}

    def _is_in_files(self, draft: records.DraftRecord) -> bool:
        if _exists(self._fd, fmt.make_file_path(draft.ref.file_id, draft.generation)):
            return True
        folder = fmt.make_file_path(draft.ref.file_id, 0).rpartition("/")[0]
        return any(
            parsed is not None and parsed[0].inode == draft.inode and parsed[1] == draft.generation
            for parsed in map(fmt.parse_file_name, _list(self._fd, folder))
        )

    # -- what lies on the disk --

    def _check_disk(self) -> Iterator[Finding]:
        """Files that no record tells of: a start, or the worker after some time, removes them."""
        swept = 0
        for number in range(256):
            for name in _list(self._fd, f"files/{number:02x}"):
                parsed = fmt.parse_file_name(name)
                if parsed is None:
                    message = f"files/{number:02x}/{name} is not of the cache"
                    yield self._describe(Grade.WRONG, "foreign", message, "move it away: only the worker puts files here")
                    continue
                raw = self._txn.get(fmt.make_file_key(parsed[0]), db=self._tables[fmt.FILES])
                swept += raw is None or fmt.unpack_file(bytes(raw)).generation != parsed[1]
        if swept:
            yield self._describe(Grade.LEFTOVER, "swept", f"{swept} cache files that the index does not know")
        known = {fmt.make_draft_path(inode, draft.generation) for inode, draft in self._drafts.items()}
        known |= {
            fmt.make_draft_path(inode, draft.sealing.copy) for inode, draft in self._drafts.items() if draft.sealing is not None
        }
        unknown = [name for name in _list(self._fd, "drafts") if f"drafts/{name}" not in known]
        begun = sum(1 for name in unknown if lookup_record(self._fd, f"drafts/{name}") is not None)
        if begun:
            yield self._describe(Grade.LEFTOVER, "begun", f"{begun} drafts that are not in the index yet: a start takes them up")
        if len(unknown) > begun:
            message = f"{len(unknown) - begun} files in drafts/ that no record tells of"
            yield self._describe(Grade.LEFTOVER, "swept", message)
        held = _list(self._fd, "held")
        if held:
            yield self._describe(Grade.LEFTOVER, "held", f"{len(held)} files in held/ that were evicted while they were open")


def _open(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise errors.ConfigError(f"the cache directory cannot be opened: {error.strerror}", subject=str(path)) from error
    try:
        if not layout.check_format(fd, str(path)):
            raise errors.ConfigError("not a cache directory: it has no format", subject=str(path))
        if layout.get_format(fd) < fmt.FORMAT_NUMBER:
            raise errors.ConfigError(
                "the cache directory was written by an earlier release: start the worker once, which raises it", subject=str(path)
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, path: Path) -> int:
    lock_fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock_fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock_fd)
        raise errors.Conflict(
            f"a worker (pid {pid}) uses the cache directory: stop it, or look with --online", subject=str(path)
        ) from None
    return lock_fd


def _exists(fd: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _list(fd: int, path: str) -> list[str]:
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except FileNotFoundError:
        return []
    try:
        return os.listdir(folder)  # noqa: PTH208 (by descriptor)
    finally:
        os.close(folder)
