"""A POSIX file system as a store that can be written, whatever the system below.

Owns how a content comes to be: it is written under a name that nobody is shown, in the directory where it will lie (the same
quota, pool, stripe layout), made durable, and renamed into place. A `put` is written as the file `.alluxio_like-TOKEN`; an
upload is a directory of that name, with the content in `content`, the name it is for in `name`, and an empty file
`part-NUMBER-OFFSET-LENGTH` for each part that is durable. So nothing but the directory itself is needed to go on after a crash.

What a write expects is compared just before the rename; only "nothing must be there" is compared by the rename itself, where
the system can do that. A write's token is kept as an extended attribute, with size and mtime, so that it ends with the next
change of the file; where there are no attributes, 30 bits of it are in the sub-second part of mtime; where not even that is
kept, `lookup_written` knows nothing. All methods block, and may be called from any thread; each is short, so that a caller can
stop between them.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic

from alluxio_like import errors
from alluxio_like.types import to_bytes, to_str
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.posix_ops import D, F, Found, FoundKind, PosixOps
from alluxio_like.ufs.posix_tree import STAGING_PREFIX, PosixTree, is_staging, make_entry, make_fingerprint
from alluxio_like.ufs.writing import Expected, Part, Upload, WriteOptions

TOKEN_ATTRIBUTE = "alluxio_like.token"
_CONTENT = b"content"
_NAME = b"name"
_PART = re.compile(rb"part-([0-9]+)-([0-9]+)-([0-9]+)")
_TOKEN = re.compile(r"[0-9a-f]{32}")
_SECOND_NS = 1_000_000_000
_LONE = "put:"
"""Begins the id of what is no upload but was left by a put."""


class PosixWriter(Generic[D, F]):
    """Writes below the root of `tree`."""

    def __init__(self, tree: PosixTree[D, F]) -> None:
        self._tree = tree
        self._ops: PosixOps[D, F] = tree.ops

    # -- one content -----------------------------------------------------------------------------------------------------------

    def stage(self, key: str, options: WriteOptions, fd: int, offset: int, length: int) -> None:
        """Write and sync a content that `commit` makes visible; what a stage before has left is replaced."""
        staged = _get_staging_name(options.token)
        _check_key(key)
        with self._change(key), self._tree.parent(key) as (directory, _):
            with contextlib.suppress(FileNotFoundError):
                self._ops.remove_file(directory, staged)
            with self._created(directory, staged) as file:
                self._ops.copy_in(file, 0, fd, offset, length)
                self._finish_file(file, options)

    def commit(self, key: str, options: WriteOptions, expected: Expected | None) -> StoreEntry:
        """Put what was staged in its place."""
        staged = _get_staging_name(options.token)
        with self._change(key), self._tree.parent(key) as (directory, name):
            return self._rename_into_place(directory, staged, directory, name, key, expected)

    def discard(self, key: str, token: str) -> None:
        """Drop what was staged, if it is there."""
        staged = _get_staging_name(token)
        with self._change(key), contextlib.suppress(FileNotFoundError), self._tree.parent(key) as (directory, _):
            if self._ops.stat(directory, staged).kind is not FoundKind.DIRECTORY:
                self._ops.remove_file(directory, staged)
                return
            with self._opened_directory(directory, staged) as inside:
                self._remove_staging(directory, inside, token)

    def lookup_written(self, key: str, token: str) -> StoreEntry | None:
        """`WritableUfs.lookup_written`."""
        try:
            with self._open(key) as (file, name):
                found = self._ops.stat_file(file)
                if _has_token(self._ops.get_attributes(file), found, token):
                    return make_entry(name, found, time.time_ns())
        except errors.NotFound:
            pass
        return None

    def read_metadata(self, key: str) -> dict[str, str]:
        """`WritableUfs.read_metadata`."""
        with self._open(key) as (file, _):
            attributes = self._ops.get_attributes(file)
        return {name: to_str(value) for name, value in attributes.items() if name != TOKEN_ATTRIBUTE}

    # -- uploads ---------------------------------------------------------------------------------------------------------------

    def begin(self, key: str, token: str) -> Upload:
        """`WritableUfs.begin_upload`."""
        staged = _get_staging_name(token)
        _check_key(key)
        with self._change(key), self._tree.parent(key) as (directory, name):
            with contextlib.suppress(FileExistsError):
                self._ops.make_directory(directory, staged)
            with self._opened_directory(directory, staged) as inside:
                with contextlib.suppress(FileExistsError):
                    self._ops.close_file(self._ops.create_file(inside, _CONTENT))
                with contextlib.suppress(FileNotFoundError):
                    self._ops.remove_file(inside, _NAME)
                with self._created(inside, _NAME) as file:
                    self._write_bytes(file, name)
                    self._ops.sync_file(file)
                self._ops.sync_directory(inside)
            self._ops.sync_directory(directory)
        return Upload(key, token)

    def write_part(self, upload: Upload, position: int, fd: int, offset: int, length: int) -> None:
        """Write and sync some bytes of a part at their place in the content."""
        with self._change(upload.key), self._staging(upload) as (_, inside, _), self._writing(inside, _CONTENT) as file:
            self._ops.copy_in(file, position, fd, offset, length)
            self._ops.sync_file(file)

    def note_part(self, upload: Upload, number: int, offset: int, length: int) -> Part:
        """Write down that a part has arrived."""
        with self._change(upload.key), self._staging(upload) as (_, inside, _):
            marker = b"part-%d-%d-%d" % (number, offset, length)
            for name in self._list_markers(inside):
                if name.startswith(b"part-%d-" % number) and name != marker:
                    self._ops.remove_file(inside, name)
            with contextlib.suppress(FileExistsError):
                self._ops.close_file(self._ops.create_file(inside, marker))
            self._ops.sync_directory(inside)
        return Part(number, length, f"{offset}.{length}")

    def list_parts(self, upload: Upload) -> list[Part]:
        """`WritableUfs.list_parts`."""
        with self._change(upload.key), self._staging(upload) as (_, inside, _):
            return self._read_parts(inside)

    def finish(self, upload: Upload, parts: Sequence[Part], options: WriteOptions, expected: Expected | None) -> StoreEntry:
        """`WritableUfs.finish_upload`."""
        length = _check_parts(parts, upload.key)
        with self._change(upload.key), self._staging(upload) as (directory, inside, name):
            there = {(part.number, part.receipt) for part in self._read_parts(inside)}
            missing = [part.number for part in parts if (part.number, part.receipt) not in there]
            if missing:
                raise errors.InvalidArgument(f"part {missing[0]} has not arrived as given", subject=upload.key)
            with self._writing(inside, _CONTENT) as file:
                self._ops.truncate(file, length)
                self._finish_file(file, options)
            entry = self._rename_into_place(inside, _CONTENT, directory, name, upload.key, expected)
            self._remove_staging(directory, inside, upload.upload_id)
            return entry

    def abort(self, upload: Upload) -> None:
        """`WritableUfs.abort_upload`."""
        if upload.upload_id.startswith(_LONE):
            self.discard(upload.key, upload.upload_id.removeprefix(_LONE))
            return
        with (
            contextlib.suppress(errors.NotFound),
            self._change(upload.key),
            self._staging(upload) as (directory, inside, _),
        ):
            self._remove_staging(directory, inside, upload.upload_id)

    def list_uploads(self, prefix: str) -> tuple[list[Upload], list[str]]:
        """The uploads in one directory, and the prefixes of the directories in it."""
        uploads: list[Upload] = []
        below: list[str] = []
        with self._change(prefix), self._tree.directory(prefix) as directory:
            for scanned in self._ops.scan(directory):
                if not is_staging(scanned.name):
                    if scanned.is_directory and scanned.name not in self._ops.hidden_names:
                        below.append(f"{prefix}{to_str(scanned.name)}/")
                    continue
                token = scanned.name.removeprefix(STAGING_PREFIX).decode()
                name = self._read_upload_name(directory, scanned.name) if scanned.is_directory else b""
                uploads.append(Upload(prefix + to_str(name), token) if name else Upload(prefix + token, _LONE + token))
        return uploads, below

    # -- names -----------------------------------------------------------------------------------------------------------------

    def delete(self, key: str, expected: Expected | None) -> None:
        """`WritableUfs.delete`."""
        with (
            self._change(key),
            contextlib.suppress(FileNotFoundError),
            self._tree.parent(key) as (directory, name),
        ):
            found = self._ops.stat(directory, name)
            if found.kind is FoundKind.DIRECTORY:
                raise errors.IsADirectory("it is a directory", subject=key)
            if found.kind is not FoundKind.FILE:
                return  # not shown, so not there, and not ours to remove
            if expected is not None and make_fingerprint(found) != expected.fingerprint:
                raise errors.Conflict("the store holds another content than expected", subject=key)
            self._ops.remove_file(directory, name)
            self._ops.sync_directory(directory)

    def rename(self, source: str, target: str, replace: bool) -> None:
        """`WritableUfs.rename`."""
        _check_key(target)
        with (
            self._change(source),
            self._tree.parent(source) as (source_directory, source_name),
            self._tree.parent(target) as (target_directory, target_name),
        ):
            moved = self._ops.stat(source_directory, source_name)
            if moved.kind not in {FoundKind.FILE, FoundKind.DIRECTORY}:
                raise FileNotFoundError
            there = self._stat(target_directory, target_name)
            if there is not None and there.kind not in {FoundKind.FILE, FoundKind.DIRECTORY}:
                raise errors.AlreadyExists("something that is not shown is in the way: a link or a special file", subject=target)
            if there is not None and replace and moved.kind is not there.kind:  # (CephFS says "not empty" of both)
                if there.kind is FoundKind.DIRECTORY:
                    raise errors.IsADirectory("there is a directory", subject=target)
                raise errors.NotADirectory("there is a file", subject=target)
            try:
                self._ops.rename(source_directory, source_name, target_directory, target_name, replace=replace)
            except FileExistsError:  # some systems say so of a directory that is not empty
                if there is not None and there.kind is FoundKind.DIRECTORY and replace:
                    raise errors.DirectoryNotEmpty("the directory is not empty", subject=target) from None
                raise errors.AlreadyExists("there is something already", subject=target) from None
            self._ops.sync_directory(target_directory)
            self._ops.sync_directory(source_directory)

    def make_directory(self, key: str) -> None:
        """`WritableUfs.make_directory`."""
        _check_key(key)
        with self._change(key), self._tree.parent(key) as (directory, name):
            self._ops.make_directory(directory, name)
            self._ops.sync_directory(directory)

    def remove_directory(self, key: str) -> None:
        """`WritableUfs.remove_directory`."""
        with (
            self._change(key),
            contextlib.suppress(FileNotFoundError),
            self._tree.parent(key) as (directory, name),
        ):
            self._ops.remove_directory(directory, name)
            self._ops.sync_directory(directory)

    # -- parts of it -----------------------------------------------------------------------------------------------------------

    def _finish_file(self, file: F, options: WriteOptions) -> None:
        """Mark what was written as this write's, and make it durable."""
        for name, value in options.metadata.items():
            self._ops.set_attribute(file, name, to_bytes(value))
        now_ns = time.time_ns()
        self._ops.set_mtime_ns(file, now_ns)
        if not self._ops.set_attribute(file, TOKEN_ATTRIBUTE, _make_mark(options.token, self._ops.stat_file(file))):
            self._ops.set_mtime_ns(file, (now_ns // _SECOND_NS - 1) * _SECOND_NS + _get_fraction(options.token))
        self._ops.sync_file(file)

    def _rename_into_place(
        self, source: D, staged: bytes, directory: D, name: bytes, key: str, expected: Expected | None
    ) -> StoreEntry:
        file = self._ops.open_for_writing(source, staged)
        try:
            there = self._stat(directory, name)
            if there is not None and there.kind is FoundKind.DIRECTORY:
                raise errors.IsADirectory("there is a directory", subject=key)
            if there is not None and there.kind is not FoundKind.FILE:
                raise errors.Conflict("something that is not shown is in the way: a link or a special file", subject=key)
            if expected is not None and (make_fingerprint(there) if there else None) != expected.fingerprint:
                raise errors.Conflict("the store holds another content than expected", subject=key)
            if there is not None:
                self._ops.adopt(file, there)
            only_new = expected is not None and expected.fingerprint is None
            try:
                self._ops.rename(source, staged, directory, name, replace=not only_new)
            except FileExistsError:
                raise errors.Conflict("the store holds another content than expected", subject=key) from None
            self._ops.sync_directory(directory)
            # Of the open file, not of the name: somebody may have replaced it by now.
            return make_entry(name, self._ops.stat_file(file), time.time_ns())
        finally:
            self._ops.close_file(file)

    def _remove_staging(self, directory: D, inside: D, token: str) -> None:
        for name in [_CONTENT, *self._list_markers(inside), _NAME]:
            with contextlib.suppress(FileNotFoundError):
                self._ops.remove_file(inside, name)
        with contextlib.suppress(FileNotFoundError):
            self._ops.remove_directory(directory, _get_staging_name(token))

    def _list_markers(self, inside: D) -> list[bytes]:
        return [scanned.name for scanned in self._ops.scan(inside) if _PART.fullmatch(scanned.name)]

    def _read_parts(self, inside: D) -> list[Part]:
        found = []
        for marker in self._list_markers(inside):
            match = _PART.fullmatch(marker)
            assert match is not None
            number, offset, length = (int(group) for group in match.groups())
            found.append(Part(number, length, f"{offset}.{length}"))
        return sorted(found, key=lambda part: part.number)

    def _read_upload_name(self, directory: D, staged: bytes) -> bytes:
        """What an upload is for; empty where its beginning was cut short."""
        try:
            with self._opened_directory(directory, staged) as inside:
                return self._read_name(inside)
        except FileNotFoundError:
            return b""

    def _read_name(self, inside: D) -> bytes:
        file = self._ops.open_file(inside, _NAME)
        try:
            return self._ops.read(file, 0, 1024)
        finally:
            self._ops.close_file(file)

    def _write_bytes(self, file: F, data: bytes) -> None:
        fd = os.memfd_create("name")
        try:
            os.write(fd, data)
            self._ops.copy_in(file, 0, fd, 0, len(data))
        finally:
            os.close(fd)

    def _stat(self, directory: D, name: bytes) -> Found | None:
        try:
            return self._ops.stat(directory, name)
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _change(self, key: str) -> Iterator[None]:
        """The system's errors as ours."""
        with self._tree.translate(key):
            try:
                yield
            except EOFError as error:
                raise errors.InvalidArgument(str(error), subject=key) from None

    @contextlib.contextmanager
    def _open(self, key: str) -> Iterator[tuple[F, bytes]]:
        with self._change(key), self._tree.parent(key) as (directory, name):
            found = self._ops.stat(directory, name)
            if found.kind is not FoundKind.FILE:
                raise errors.NotFound("not a regular file", subject=key)
            file = self._ops.open_file(directory, name)
            try:
                yield file, name
            finally:
                self._ops.close_file(file)

    @contextlib.contextmanager
    def _created(self, directory: D, name: bytes) -> Iterator[F]:
        """A new file; removed again if the context fails."""
        file = self._ops.create_file(directory, name)
        try:
            try:
                yield file
            finally:
                self._ops.close_file(file)
        except BaseException:
            with contextlib.suppress(OSError):
                self._ops.remove_file(directory, name)
            raise

    @contextlib.contextmanager
    def _writing(self, directory: D, name: bytes) -> Iterator[F]:
        file = self._ops.open_for_writing(directory, name)
        try:
            yield file
        finally:
            self._ops.close_file(file)

    @contextlib.contextmanager
    def _opened_directory(self, parent: D, name: bytes) -> Iterator[D]:
        inside = self._ops.open_directory(parent, name)
        try:
            yield inside
        finally:
            self._ops.close_directory(inside)

    @contextlib.contextmanager
    def _staging(self, upload: Upload) -> Iterator[tuple[D, D, bytes]]:
        """An upload's target directory, its own directory, and the name it is for."""
        staged = _get_staging_name(upload.upload_id)
        with (
            self._tree.parent(upload.key) as (directory, name),
            self._opened_directory(directory, staged) as inside,
        ):
            if self._read_name(inside) != name:
                raise errors.NotFound("there is no such upload", subject=upload.key)
            yield directory, inside, name


# -- pure helpers ----------------------------------------------------------------------------------------------------------------


def _get_staging_name(token: str) -> bytes:
    if not _TOKEN.fullmatch(token):
        raise errors.InvalidArgument("a write's token is 32 hex digits", subject=token)
    return STAGING_PREFIX + token.encode()


def _get_fraction(token: str) -> int:
    """The sub-second part of mtime, in nanoseconds, that stands for a token."""
    return int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest()) % _SECOND_NS


def _make_mark(token: str, found: Found) -> bytes:
    """What is kept with a content: whoever changes it in place changes its mtime or size."""
    return f"{token}.{found.size:x}.{found.mtime_ns:x}".encode()


def _has_token(attributes: Mapping[str, bytes], found: Found, token: str) -> bool:
    kept = attributes.get(TOKEN_ATTRIBUTE)
    if kept is not None:
        return kept == _make_mark(token, found)
    return found.mtime_ns % _SECOND_NS == _get_fraction(token)


def _check_key(key: str) -> None:
    """Raises what a key to be written cannot be."""
    parts = key.split("/")
    if "\0" in key or any(part in {"", ".", ".."} or is_staging(to_bytes(part)) for part in parts):
        raise errors.InvalidArgument("no file can be called so", subject=key)
    if any(len(to_bytes(part)) > 255 for part in parts):
        raise errors.NameTooLong("a name has at most 255 bytes", subject=key)


def _check_parts(parts: Sequence[Part], key: str) -> int:
    """The content's length. Raises InvalidArgument unless the parts follow each other without a gap."""
    position = 0
    for number, part in enumerate(sorted(parts, key=lambda part: part.number), 1):
        if part.number != number or part.receipt != f"{position}.{part.length}":
            raise errors.InvalidArgument(f"part {part.number} does not follow the one before", subject=key)
        position += part.length
    return position
