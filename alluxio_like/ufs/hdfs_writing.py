"""Writing to HDFS.

A content is written to a temporary beside its place, and renamed over it, which is one step. Owns the layout of temporaries:

    .NAME.alluxio-like.TOKEN                  a whole content on its way
    .NAME.alluxio-like.TOKEN/content/NAME     an upload: parts are appended, one after the other
                             parts/N-LENGTH   an empty file for each part that has arrived

They are shown to nobody. How a write is told from others, though the library has no extended attributes to keep the token in:
before the rename the access time is set to one in the far future that is a digest of the token, mtime and length. Reading does
not change an access time that is later than now, appending and replacing change what it is a digest of, and rename keeps all
three. Where a NameNode refuses it (older releases do on clusters that keep no access times), writes work, and `lookup_written`
finds none of them.

What a write expects is compared just before the rename; where it expects nothing, the rename itself refuses. Called on one event
loop; sources are read in threads. A cancelled write removes its temporary in the background.
"""

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from hdfs_native import WriteOptions as CreateOptions

from alluxio_like import errors
from alluxio_like.types import Fingerprint, to_bytes
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.hdfs import HdfsUfs
from alluxio_like.ufs.hdfs_client import Clients, HdfsSettings
from alluxio_like.ufs.hdfs_listing import make_entry, make_fingerprint
from alluxio_like.ufs.hdfs_names import MAX_NAME_BYTES, get_name, is_ours, make_path, make_temporary
from alluxio_like.ufs.threads import BlockingPool, Lent
from alluxio_like.ufs.writing import Expected, Part, Source, Upload, WriteCapabilities, WriteOptions, is_utf8

if TYPE_CHECKING:
    from hdfs_native import AsyncClient, AsyncFileReader, FileStatus

_PIECE_BYTES = 4 << 20
"""What is read of a source and handed over at once; a guess."""
_THREADS = 4
_DELETES_AT_ONCE = 16
_UNCHANGED = (1 << 64) - 1
"""As a time: leave it as it is (-1, as Java reads it)."""
_MARK_FIRST_MS, _MARK_LAST_MS = 32_503_680_000_000, 253_402_300_799_000  # the years 3000 to 9999
_TEMPORARY = re.compile(r"((?:.*/)?)\.([^/]*)\.alluxio-like\.([0-9a-f]{32})", re.DOTALL)
_CONTENT = re.compile(r"(((?:.*/)?)\.[^/]*\.alluxio-like\.([0-9a-f]{32}))/content/([^/]+)", re.DOTALL)
_CAPABILITIES = WriteCapabilities(
    has_directories=True,
    renames=True,
    copies=False,
    puts_conditionally=False,
    finishes_conditionally=False,
    keeps_metadata=False,
    ordered_parts=True,
    max_put_bytes=1 << 50,
    min_part_bytes=1,
    max_part_bytes=1 << 50,
    max_parts=100_000,
)


class WritableHdfsUfs(HdfsUfs):
    """`WritableUfs` on HDFS."""

    def __init__(self, settings: HdfsSettings, prefix: str, *, on_request: Callable[[str], None]) -> None:
        super().__init__(settings, prefix, on_request=on_request)
        self._sources = BlockingPool(f"{self.bucket} sources", _THREADS)
        self._timeout_s = settings.io_timeout_s
        self._cleaning: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in tuple(self._cleaning):
            with suppress(asyncio.CancelledError):
                await task
        self._sources.close()
        await super().close()

    async def get_capabilities(self) -> WriteCapabilities:
        return _CAPABILITIES

    # -- whole contents -------------------------------------------------------------------------------------------------------

    def refuse_name(self, name: str, *, at_root: bool) -> str:
        if ":" in name:
            return "names in HDFS have no colons"
        if is_ours(name):
            return "files that are being written are called so"
        return "" if is_utf8(name) else "names in HDFS are UTF-8"

    async def put(self, key: str, source: Source, options: WriteOptions, *, expected: Expected | None = None) -> StoreEntry:
        path = self._make_path(key)
        await self._check_place(path, key, expected)
        self._on_request("PUT")
        temporary = make_temporary(path, options.token)
        try:
            await self._write(temporary, source, key)
            return await self._publish(temporary, path, key, options.token, expected)
        except BaseException:
            self._start(self._discard(temporary))
            raise

    async def lookup_written(self, key: str, token: str) -> StoreEntry | None:
        path = self._make_path(key)
        self._on_request("HEAD")
        now_ms = time.time_ns() // 1_000_000
        status = await self._lookup(path, key)
        if status is None or status.isdir or status.access_time != _make_mark(token, status):
            return None
        return make_entry(get_name(key), status, now_ms)

    async def read_metadata(self, key: str) -> Mapping[str, str]:
        await self.stat(key)
        return {}

    # -- uploads --------------------------------------------------------------------------------------------------------------

    async def begin_upload(self, key: str, options: WriteOptions) -> Upload:
        path = self._make_path(key)
        await self._check_place(path, key, None)
        self._on_request("UPLOAD")
        temporary = make_temporary(path, options.token)
        # The same token begins the same upload anew.
        await self._delete(temporary, key)
        for directory in (temporary, f"{temporary}/parts", f"{temporary}/content"):
            await self._link.call(partial(_make_directory, directory), key)
        await self._write(_get_content(temporary, key), None, key)
        return Upload(key, options.token)

    async def upload_part(self, upload: Upload, number: int, source: Source, offset: int) -> Part:
        temporary = make_temporary(self._make_path(upload.key), upload.upload_id)
        content = _get_content(temporary, upload.key)
        self._on_request("PART")
        parts = await self._read_parts(temporary, upload.key)
        if any(n not in parts for n in range(1, number)) or sum(parts[n] for n in range(1, number)) != offset:
            raise errors.InvalidArgument("parts come in order, each where the one before ends", subject=upload.key)
        for later in sorted(parts, reverse=True):
            if later >= number:
                await self._delete(f"{temporary}/parts/{later}-{parts[later]}", upload.key)
        skip = await self._rewind(content, source, offset, upload.key)
        if skip < source.length:
            rest = Source(source.fd, source.offset + skip, source.length - skip)
            await self._write(content, rest, upload.key, is_new=False)
        await self._write(f"{temporary}/parts/{number}-{source.length}", None, upload.key)
        return Part(number, source.length, "")

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        temporary = make_temporary(self._make_path(upload.key), upload.upload_id)
        self._on_request("LIST")
        parts = await self._read_parts(temporary, upload.key)
        return [Part(number, parts[number], "") for number in sorted(parts)]

    async def finish_upload(
        self, upload: Upload, parts: Sequence[Part], options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        key = upload.key
        path = self._make_path(key)
        temporary = make_temporary(path, upload.upload_id)
        content = _get_content(temporary, key)
        self._on_request("PUT")
        status = await self._link.call(lambda client: client.get_file_info(content), key)
        if status.length != sum(part.length for part in parts):
            raise errors.InvalidArgument("these are not the parts that have arrived", subject=key)
        await self._check_place(path, key, expected)
        entry = await self._publish(content, path, key, upload.upload_id, expected)
        await self._discard(temporary)
        return entry

    async def abort_upload(self, upload: Upload) -> None:
        self._on_request("DELETE")
        await self._delete(make_temporary(self._make_path(upload.key), upload.upload_id), upload.key)

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        """Walks the directory that `prefix` begins in, with all below: choose it narrow."""
        directory = prefix.rpartition("/")[0]
        self._on_request("LIST")
        found: dict[str, Upload] = {}
        skip = len(self._prefix) + 1

        def add(status: "FileStatus") -> None:
            begun_ns = status.modification_time * 1_000_000
            if whole := _TEMPORARY.fullmatch(status.path, skip):
                # (The name may have been shortened: then what is in the directory has it whole.)
                found[status.path] = Upload(whole[1] + whole[2], whole[3], begun_ns)
            elif inside := _CONTENT.fullmatch(status.path, skip):
                found[status.path[: inside.end(1)]] = Upload(inside[2] + inside[4], inside[3], begun_ns)

        with suppress(errors.NotFound, errors.NotADirectory):
            await self._walk(make_path(self._prefix, directory) if directory else "/" + self._prefix.rstrip("/"), add)
        return [upload for upload in found.values() if upload.key.startswith(prefix)]

    # -- removal, renames, directories ------------------------------------------------------------------------------------------

    async def delete(self, key: str, *, expected: Expected | None = None) -> None:
        path = self._make_path(key)
        self._on_request("DELETE")
        status = await self._lookup(path, key)
        _compare_expected(status, expected, key)
        if status is None:
            return
        if status.isdir:
            raise errors.IsADirectory("a directory", subject=key)
        await self._delete(path, key, recursive=False)

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, Exception]:
        failed: dict[str, Exception] = {}
        left = iter(keys)

        async def work() -> None:
            for key in left:
                try:
                    await self.delete(key)
                except errors.AlluxioLikeError as error:
                    failed[key] = error

        await asyncio.gather(*[work() for _ in range(min(_DELETES_AT_ONCE, len(keys)))])
        return failed

    async def copy(
        self, source: str, fingerprint: Fingerprint, target: str, options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        raise errors.Unsupported("HDFS copies nothing by itself", subject=source)

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        old, new = self._make_path(source), self._make_path(target)
        self._on_request("RENAME")
        moved, there = await self._lookup(old, source), await self._lookup(new, target)
        if moved is None:
            raise errors.NotFound("no such file or directory", subject=source)
        if there is not None:
            if not replace:
                raise errors.AlreadyExists("it is there already", subject=target)
            if old == new:
                return
            if there.isdir and not moved.isdir:
                raise errors.IsADirectory("a directory is there", subject=target)
            if moved.isdir and not there.isdir:
                raise errors.NotADirectory("a file is there", subject=target)
            if there.isdir and await self._has_entries(new):
                raise errors.DirectoryNotEmpty("there is something in it", subject=target)
        if new.startswith(f"{old}/"):
            raise errors.InvalidArgument("a directory cannot be moved into itself", subject=target)
        await self._link.call(lambda client: client.rename(old, new, overwrite=replace), target)

    async def make_directory(self, key: str) -> None:
        path = self._make_path(key)
        self._on_request("MKDIR")
        # (The NameNode is content with a directory that is there.)
        if await self._lookup(path, key) is not None:
            raise errors.AlreadyExists("it is there already", subject=key)
        await self._link.call(lambda client: client.mkdirs(path), key)

    async def remove_directory(self, key: str) -> None:
        path = self._make_path(key)
        self._on_request("DELETE")
        status = await self._lookup(path, key)
        if status is None:
            return
        if not status.isdir:
            raise errors.NotADirectory("not a directory", subject=key)
        await self._delete(path, key, recursive=False)

    # -- what all of them need ------------------------------------------------------------------------------------------------

    def _make_path(self, key: str) -> str:
        """The path of a key that may be written. Raises InvalidArgument, NameTooLong, Unsupported."""
        parts = key.split("/")
        if "\0" in key or any(part in {"", ".", ".."} for part in parts):
            raise errors.InvalidArgument("not the key of a file", subject=repr(key))
        if any(len(to_bytes(part)) > MAX_NAME_BYTES for part in parts):
            raise errors.NameTooLong(f"a name has {MAX_NAME_BYTES} bytes at most", subject=key)
        try:
            return make_path(self._prefix, key)
        except errors.NotFound:
            raise errors.Unsupported("HDFS has no such name", subject=repr(key)) from None

    async def _lookup(self, path: str, key: str) -> "FileStatus | None":
        try:
            return await self._link.call(lambda client: client.get_file_info(path), key)
        except (errors.NotFound, errors.NotADirectory):
            return None

    async def _check_place(self, path: str, key: str, expected: Expected | None) -> None:
        """Before bytes are moved: whether they may go there, as it looks now."""
        there = await self._lookup(path, key)
        if there is not None and there.isdir:
            raise errors.IsADirectory("a directory is there", subject=key)
        _compare_expected(there, expected, key)

    async def _publish(self, temporary: str, path: str, key: str, token: str, expected: Expected | None) -> StoreEntry:
        """Rename what is complete into place."""
        now_ms = time.time_ns() // 1_000_000
        status = await self._link.call(lambda client: client.get_file_info(temporary), key)
        mark = _make_mark(token, status)
        with suppress(errors.StoreUnavailable):  # refused, or the store is away: that the next step tells
            await self._link.call(lambda client: client.set_times(temporary, _UNCHANGED, mark), key)
        is_new = expected is not None and expected.fingerprint is None
        if expected is not None and not is_new:
            _compare_expected(await self._lookup(path, key), expected, key)
        try:
            await self._link.call(lambda client: client.rename(temporary, path, overwrite=not is_new), key)
        except errors.AlreadyExists:
            raise errors.Conflict("something is there by now", subject=key) from None
        return make_entry(get_name(key), status, now_ms)

    async def _write(self, path: str, source: Source | None, key: str, *, is_new: bool = True) -> None:
        """Write a new file, or append; durable once this returns. Raises NotFound where its directory is not there."""
        clients = await self._link.get_clients()
        with clients.hold():
            client = await self._link.get_writer(clients)
            opening = client.create(path, CreateOptions(overwrite=True, create_parent=False)) if is_new else client.append(path)
            writer = await self._link.call_on(clients, opening, key)
            if source is not None:
                async with aclosing(self._read_source(source, key)) as pieces:
                    async for piece in pieces:
                        await self._link.transfer(clients, writer.write(piece), key)
            await self._link.transfer(clients, writer.close(), key)

    async def _take_over(self, path: str, key: str) -> None:
        """Close a file that a writer has left open, where one has: it broke off, or its process did."""
        end_s = time.monotonic() + self._timeout_s
        while not await self._link.call(lambda client: client.recover_lease(path), key):
            if time.monotonic() > end_s:
                raise errors.StoreUnavailable("a file that nobody writes any more stays open", subject=key)
            await asyncio.sleep(0.2)

    async def _rewind(self, content: str, source: Source, offset: int, key: str) -> int:
        """Make a content end at `offset`, or behind it with bytes of `source`: how many. (The library cuts nothing off.)"""
        await self._take_over(content, key)
        clients = await self._link.get_clients()
        reader = await self._link.call_on(clients, clients.client.read(content), key)
        extra = len(reader) - offset
        if extra < 0:
            raise errors.StoreProtocol("what was sent before is no longer there", subject=key)
        with clients.hold():
            if extra <= source.length and await self._is_same(clients, reader, source, offset, extra, key):
                return extra
            # Other bytes than those sent now: what comes before them is written anew.
            anew = f"{content.rpartition('/content/')[0]}/anew"
            opening = (await self._link.get_writer(clients)).create(anew, CreateOptions(overwrite=True, create_parent=False))
            writer = await self._link.call_on(clients, opening, key)
            for place in range(0, offset, _PIECE_BYTES):
                piece = await self._link.transfer(clients, reader.read_range(place, min(_PIECE_BYTES, offset - place)), key)
                await self._link.transfer(clients, writer.write(piece), key)
            await self._link.transfer(clients, writer.close(), key)
        await self._link.call(lambda client: client.rename(anew, content, overwrite=True), key)
        return 0

    async def _is_same(
        self, clients: Clients, reader: "AsyncFileReader", source: Source, offset: int, length: int, key: str
    ) -> bool:
        """Whether the content has at `offset` the first `length` bytes of the source."""
        async with aclosing(self._read_source(Source(source.fd, source.offset, length), key)) as pieces:
            async for piece in pieces:
                if await self._link.transfer(clients, reader.read_range(offset, len(piece)), key) != piece:
                    return False
                offset += len(piece)
        return True

    async def _read_source(self, source: Source, key: str) -> AsyncGenerator[bytes, None]:
        """Its bytes in pieces. Raises InvalidArgument where the file ends before."""
        opened: Lent[int] = Lent(os.close)

        def read(offset: int, size: int, make: Callable[[], int] | None) -> bytes:
            with opened.use(make) as fd:
                return os.pread(fd, size, offset)

        make: Callable[[], int] | None = partial(os.dup, source.fd)  # the caller's may be closed once it has been cancelled
        done = 0
        try:
            while done < source.length:
                size = min(_PIECE_BYTES, source.length - done)
                piece = await self._sources.run(partial(read, source.offset + done, size, make), timeout_s=self._timeout_s)
                make = None
                if not piece:
                    raise errors.InvalidArgument("the source ends before its length", subject=key)
                yield piece
                done += len(piece)
        finally:
            opened.abandon()

    async def _read_parts(self, temporary: str, key: str) -> dict[int, int]:
        """The lengths of the parts that have arrived, by number. Raises NotFound where there is no such upload."""
        parts: dict[int, int] = {}

        def add(status: "FileStatus") -> None:
            number, _, length = get_name(status.path).partition("-")
            parts[int(number)] = int(length)

        await self._link.call(lambda client: client.get_file_info(f"{temporary}/parts"), key)
        await self._walk(f"{temporary}/parts", add)
        return parts

    async def _walk(self, top: str, add: Callable[["FileStatus"], None]) -> None:
        """Everything below a directory, a thousand in a call."""
        await self._link.call(lambda client: client.get_file_info(top), top)
        going = await self._link.call_blocking(lambda client: client.list_status(top, recursive=True), top)

        def take() -> bool:
            for _ in range(1000):
                status = next(going, None)
                if status is None:
                    return False
                add(status)
            return True

        while await self._link.call_blocking(lambda _client: take(), top):
            continue

    async def _has_entries(self, path: str) -> bool:
        return await self._link.call_blocking(lambda client: next(client.list_status(path), None), path) is not None

    async def _delete(self, path: str, key: str, *, recursive: bool = True) -> None:
        try:
            await self._link.call(lambda client: client.delete(path, recursive=recursive), key)
        except (errors.NotFound, errors.NotADirectory):
            return

    async def _discard(self, temporary: str) -> None:
        with suppress(errors.AlluxioLikeError):  # then it stays, and list_uploads finds it
            await self._delete(temporary, temporary)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)


def _make_directory(path: str, client: "AsyncClient") -> Coroutine[Any, Any, None]:
    return client.mkdirs(path)


def _get_content(temporary: str, key: str) -> str:
    return f"{temporary}/content/{get_name(key)}"


def _make_mark(token: str, status: "FileStatus") -> int:
    """The access time, in ms, of a content that a write with this token made and nobody has changed since."""
    digest = hashlib.sha256(f"{token} {status.modification_time} {status.length}".encode()).digest()
    return _MARK_FIRST_MS + int.from_bytes(digest[:8], "big") % (_MARK_LAST_MS - _MARK_FIRST_MS)


def _compare_expected(there: "FileStatus | None", expected: Expected | None, key: str) -> None:
    if expected is None:
        return
    found = None if there is None else make_fingerprint(there)
    if found != expected.fingerprint:
        raise errors.Conflict("the store has another content than expected", subject=key)
