"""A POSIX file system as a store: the asynchronous side, whatever the system below.

Owns the cutting of calls into steps that are short, each bounded in time, and safe to leave: what was staged is made visible in
a step of its own, so a cancelled write is whole or not there. Where a step runs is the runner's: threads of this process
(`file.py`), or a helper process (`cephfs.py`). One event loop.
"""

import itertools
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Space, to_bytes
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.posix_ops import PosixOps
from alluxio_like.ufs.posix_tree import PosixTree, is_staging
from alluxio_like.ufs.posix_writer import PosixWriter
from alluxio_like.ufs.writing import Expected, Part, Source, Upload, WriteCapabilities, WriteOptions

CHUNK_BYTES = 4 << 20
"""Few hops between threads or processes, and one object of a CephFS; yet a reader of the first page does not wait for 8 MiB."""
_WRITE_BYTES = 16 << 20
"""Written and synced in one step: half a second at 32 MB/s, which leaves room within any timeout. A guess."""
_SCAN_SHARE = 0.25
"""Of the timeout, what one step may spend on reading a large directory."""
_MAX_PUT_BYTES = 64 << 20
_MAX_PARTS = 10_000


class Runner(Protocol):
    """Runs methods of `PosixSteps` by name."""

    async def run(self, step: str, *arguments: Any, fd: int = -1) -> Any:
        """What the step returns or raises, within the timeout; with `fd`, a copy of that descriptor is its first argument.

        A caller that is cancelled leaves the step to end by itself.
        """
        ...

    async def read(self, read_id: int, key: str, fingerprint: Fingerprint, offset: int, length: int, is_last: bool) -> memoryview:
        """`PosixTree.read_part`: the bytes, in memory that is the caller's from now on."""
        ...

    def post(self, step: str, *arguments: Any) -> None:
        """Have a step run some time, and nobody wait for it."""
        ...

    async def close(self) -> None: ...


class PosixSteps:
    """What can be run: all of these methods block."""

    def __init__(self, ops: PosixOps[Any, Any], name: str) -> None:
        self.tree = PosixTree(ops, name)
        self.writer = PosixWriter(self.tree)

    def call(self, step: str, arguments: Sequence[Any]) -> Any:
        """Run the method `step` of the tree or the writer."""
        owner = self.tree if step in _TREE_STEPS else self.writer
        return getattr(owner, step)(*arguments)

    def call_with_fd(self, step: str, fd: int, arguments: Sequence[Any]) -> Any:
        """The same with a descriptor, which is closed afterwards, for the steps that take one."""
        try:
            if step == "stage":
                key, options, offset, length = arguments
                return self.writer.stage(key, options, fd, offset, length)
            upload, position, offset, length = arguments
            return self.writer.write_part(upload, position, fd, offset, length)
        finally:
            os.close(fd)


_TREE_STEPS = {"check", "measure", "stat", "list_page", "read_part", "end_read"}


class PosixUfs:
    """`WritableUfs` over a runner."""

    def __init__(self, runner: Runner, bucket: str, *, on_request: Callable[[str], None], io_timeout_s: float) -> None:
        self._runner = runner
        self._bucket = bucket
        self._on_request = on_request
        self._timeout_s = io_timeout_s
        self._read_ids = itertools.count(1)
        self._capabilities = WriteCapabilities(
            has_directories=True,
            renames=True,
            copies=False,
            puts_conditionally=False,
            finishes_conditionally=False,
            keeps_metadata=True,
            ordered_parts=False,
            max_put_bytes=_MAX_PUT_BYTES,
            min_part_bytes=1,
            max_part_bytes=1 << 40,
            max_parts=_MAX_PARTS,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._bucket!r})"

    @property
    def bucket(self) -> str:
        return self._bucket

    @property
    def checks_first(self) -> bool:
        return False

    async def get_capabilities(self) -> WriteCapabilities:
        return self._capabilities

    async def close(self) -> None:
        await self._runner.close()

    # -- reading --------------------------------------------------------------------------------------------------------------

    async def check(self) -> bool:
        self._on_request("LIST")
        await self._runner.run("check")
        return True

    async def measure(self) -> Space:
        """See MeasuredUfs."""
        self._on_request("HEAD")
        space: Space = await self._runner.run("measure")
        return space

    async def stat(self, key: str) -> StoreEntry:
        self._on_request("HEAD")
        entry: StoreEntry = await self._runner.run("stat", key)
        return entry

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        self._on_request("LIST")
        page: ListPage = await self._runner.run("list_page", prefix, token, max_entries, self._timeout_s * _SCAN_SHARE)
        return page

    async def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        if offset < 0 or length < 0 or offset + length > fingerprint.size:
            raise errors.InvalidArgument("the range lies outside of the content", subject=key)
        if length == 0:
            return
        self._on_request("GET")
        read_id = next(self._read_ids)
        is_over = False
        try:
            end = offset + length
            while offset < end:
                size = min(CHUNK_BYTES, end - offset)
                chunk = await self._runner.read(read_id, key, fingerprint, offset, size, offset + size == end)
                offset += size
                yield chunk
            is_over = True
        finally:
            if not is_over:
                self._runner.post("end_read", read_id)

    # -- writing --------------------------------------------------------------------------------------------------------------

    def refuse_name(self, name: str, *, at_root: bool) -> str:
        return "files that are being written are called so" if is_staging(to_bytes(name)) else ""

    async def put(self, key: str, source: Source, options: WriteOptions, *, expected: Expected | None = None) -> StoreEntry:
        if source.length > _MAX_PUT_BYTES:
            raise errors.InvalidArgument(f"a put has at most {_MAX_PUT_BYTES} bytes; upload it in parts", subject=key)
        self._on_request("PUT")
        try:
            await self._runner.run("stage", key, options, source.offset, source.length, fd=source.fd)
            entry: StoreEntry = await self._runner.run("commit", key, options, expected)
        except BaseException:
            self._runner.post("discard", key, options.token)
            raise
        return entry

    async def begin_upload(self, key: str, options: WriteOptions) -> Upload:
        self._on_request("BEGIN")
        upload: Upload = await self._runner.run("begin", key, options.token)
        return upload

    async def upload_part(self, upload: Upload, number: int, source: Source, offset: int) -> Part:
        if not 1 <= number <= _MAX_PARTS:
            raise errors.InvalidArgument(f"parts are numbered from 1 to {_MAX_PARTS}", subject=upload.key)
        self._on_request("PART")
        done = 0
        while done < source.length:
            size = min(_WRITE_BYTES, source.length - done)
            await self._runner.run("write_part", upload, offset + done, source.offset + done, size, fd=source.fd)
            done += size
        part: Part = await self._runner.run("note_part", upload, number, offset, source.length)
        return part

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        self._on_request("LIST")
        parts: list[Part] = await self._runner.run("list_parts", upload)
        return parts

    async def finish_upload(
        self, upload: Upload, parts: Sequence[Part], options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        self._on_request("FINISH")
        entry: StoreEntry = await self._runner.run("finish", upload, list(parts), options, expected)
        return entry

    async def abort_upload(self, upload: Upload) -> None:
        self._on_request("ABORT")
        await self._runner.run("abort", upload)

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        """Walks all directories below `prefix`: there is no list of them in such a system."""
        found: list[Upload] = []
        parent, slash, _ = prefix.rpartition("/")
        waiting = [parent + slash]
        while waiting:
            self._on_request("LIST")
            try:
                uploads, below = await self._runner.run("list_uploads", waiting.pop())
            except errors.NotFound:
                continue  # removed meanwhile
            found += [upload for upload in uploads if upload.key.startswith(prefix)]
            waiting += [directory for directory in below if directory.startswith(prefix) or prefix.startswith(directory)]
        return found

    async def lookup_written(self, key: str, token: str) -> StoreEntry | None:
        self._on_request("HEAD")
        entry: StoreEntry | None = await self._runner.run("lookup_written", key, token)
        return entry

    async def read_metadata(self, key: str) -> Mapping[str, str]:
        self._on_request("HEAD")
        metadata: dict[str, str] = await self._runner.run("read_metadata", key)
        return metadata

    async def delete(self, key: str, *, expected: Expected | None = None) -> None:
        self._on_request("DELETE")
        await self._runner.run("delete", key, expected)

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, Exception]:
        failed: dict[str, Exception] = {}
        for key in keys:
            try:
                await self.delete(key)
            except errors.AlluxioLikeError as error:
                failed[key] = error
        return failed

    async def copy(
        self, source: str, fingerprint: Fingerprint, target: str, options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        raise errors.Unsupported("this store copies by reading and writing", subject=source)

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        self._on_request("RENAME")
        await self._runner.run("rename", source, target, replace)

    async def make_directory(self, key: str) -> None:
        self._on_request("MKDIR")
        await self._runner.run("make_directory", key)

    async def remove_directory(self, key: str) -> None:
        self._on_request("RMDIR")
        await self._runner.run("remove_directory", key)
