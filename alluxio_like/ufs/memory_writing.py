"""The side of the store in memory that is written to, for tests.

Owns nothing but what it is asked: objects, uploads and faults are those of the `MemoryUfs` around which it is made, so that
several of them are several clients of one store. Faults strike writes too, by the kinds that S3 has: "PUT", "CREATE", "PART",
"PARTS", "COMPLETE", "ABORT", "UPLOADS", "DELETE", "COPY". Used from one event loop.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.memory import MemoryUfs, PendingUpload, Request
from alluxio_like.ufs.writing import Expected, Part, Source, Upload, WriteCapabilities, WriteOptions, is_utf8

_TOKEN = "alluxio-like-token"


class WritableMemoryUfs:
    """`WritableUfs` on a `MemoryUfs`."""

    def __init__(self, store: MemoryUfs, *, is_conditional: bool = True, min_part_bytes: int = 5 << 20) -> None:
        self.store = store
        self._is_conditional = is_conditional
        self._min_part_bytes = min_part_bytes

    # -- reading: the store's own ------------------------------------------------------------------------------------------

    @property
    def bucket(self) -> str:
        return self.store.bucket

    @property
    def checks_first(self) -> bool:
        return self.store.checks_first

    async def check(self) -> bool:
        return await self.store.check()

    async def stat(self, key: str) -> StoreEntry:
        return await self.store.stat(key)

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        return await self.store.list_page(prefix, token, max_entries=max_entries)

    def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        return self.store.read(key, fingerprint, offset, length)

    async def close(self) -> None:
        await self.store.close()

    # -- contents ------------------------------------------------------------------------------------------------------------

    async def get_capabilities(self) -> WriteCapabilities:
        return WriteCapabilities(
            has_directories=False,
            renames=False,
            copies=True,
            puts_conditionally=self._is_conditional,
            finishes_conditionally=self._is_conditional,
            keeps_metadata=True,
            ordered_parts=False,
            max_put_bytes=5 << 30,
            min_part_bytes=self._min_part_bytes,
            max_part_bytes=5 << 30,
            max_parts=10_000,
        )

    def refuse_name(self, name: str, *, at_root: bool) -> str:
        return "" if is_utf8(name) else "keys are UTF-8"

    async def put(self, key: str, source: Source, options: WriteOptions, *, expected: Expected | None = None) -> StoreEntry:
        data = _take(source, key)
        async with self._request("PUT", key, len(data)):
            return self._make(key, data, _make_metadata(options), expected)

    async def lookup_written(self, key: str, token: str) -> StoreEntry | None:
        try:
            entry = await self.stat(key)
        except errors.NotFound:
            return None
        return entry if self.store.get_metadata(key).get(_TOKEN) == token else None

    async def read_metadata(self, key: str) -> Mapping[str, str]:
        await self.stat(key)
        return self.store.get_metadata(key)

    async def delete(self, key: str, *, expected: Expected | None = None) -> None:
        async with self._request("DELETE", key):
            self._check(key, expected)
            self._remove(key)

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, Exception]:
        async with self._request("DELETE", ""):
            for key in keys:
                self._remove(key)
        return {}

    async def copy(
        self, source: str, fingerprint: Fingerprint, target: str, options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        async with self._request("COPY", target):
            if self.store.lookup_fingerprint(source) != fingerprint:
                raise errors.Stale("the store holds another content by now", subject=source)
            return self._make(target, self.store.get(source), _make_metadata(options), expected)

    # -- uploads -------------------------------------------------------------------------------------------------------------

    async def begin_upload(self, key: str, options: WriteOptions) -> Upload:
        async with self._request("CREATE", key):
            upload = Upload(key, secrets.token_hex(8), self.store.now_ns)
            self.store.uploads[upload.upload_id] = PendingUpload(key, upload.begun_ns, _make_metadata(options))
            return upload

    async def upload_part(self, upload: Upload, number: int, source: Source, offset: int) -> Part:
        if not 1 <= number <= 10_000:
            raise errors.InvalidArgument("parts are numbered from 1 to 10000", subject=upload.key)
        data = _take(source, upload.key)
        async with self._request("PART", upload.key, len(data)):
            self._get(upload).parts[number] = data
            return Part(number, len(data), str(hash(data)))

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        async with self._request("PARTS", upload.key):
            parts = self._get(upload).parts
            return [Part(number, len(parts[number]), str(hash(parts[number]))) for number in sorted(parts)]

    async def finish_upload(
        self, upload: Upload, parts: Sequence[Part], options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        async with self._request("COMPLETE", upload.key):
            pending = self._get(upload)
            known = [pending.parts.get(part.number) for part in parts]
            if not parts or any(data is None or str(hash(data)) != p.receipt for data, p in zip(known, parts, strict=True)):
                raise errors.InvalidArgument("the store has no such parts", subject=upload.key)
            if any(part.length < self._min_part_bytes for part in parts[:-1]):
                raise errors.InvalidArgument("a part that is not the last is too small", subject=upload.key)
            entry = self._make(upload.key, b"".join(data for data in known if data), pending.metadata, expected)
            del self.store.uploads[upload.upload_id]
            return entry

    async def abort_upload(self, upload: Upload) -> None:
        async with self._request("ABORT", upload.key):
            self.store.uploads.pop(upload.upload_id, None)

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        async with self._request("UPLOADS", prefix):
            return [Upload(u.key, name, u.begun_ns) for name, u in self.store.uploads.items() if u.key.startswith(prefix)]

    # -- names ---------------------------------------------------------------------------------------------------------------

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        raise errors.Unsupported("a flat store renames nothing: copy and delete", subject=source)

    async def make_directory(self, key: str) -> None:
        async with self._request("PUT", f"{key}/"):
            taken = self.store.lookup_fingerprint(key) or self.store.lookup_fingerprint(f"{key}/")
            if taken is not None or self.store.has_below(f"{key}/"):
                raise errors.AlreadyExists("there is something already", subject=key)
            self.store.put(f"{key}/", b"")

    async def remove_directory(self, key: str) -> None:
        async with self._request("DELETE", f"{key}/"):
            if self.store.has_below(f"{key}/"):
                raise errors.DirectoryNotEmpty("the directory is not empty", subject=key)
            self._remove(f"{key}/")

    # -- helpers -------------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _request(self, op: str, key: str, length: int = 0) -> AsyncIterator[None]:
        """One request, with the fault that was ordered for it before or behind what it does."""
        fault = self.store.take_request(Request(op, key, 0, length))
        await asyncio.sleep(0)
        if not fault.is_late:
            await fault.strike()
        yield
        if fault.is_late:
            await fault.strike()

    def _check(self, key: str, expected: Expected | None) -> None:
        if expected is not None and self.store.lookup_fingerprint(key) != expected.fingerprint:
            raise errors.Conflict("the store holds another content than expected", subject=key)

    def _make(self, key: str, data: bytes, metadata: Mapping[str, str], expected: Expected | None) -> StoreEntry:
        if not key or "\0" in key or not is_utf8(key):
            raise errors.InvalidArgument("not a key", subject=repr(key))
        self._check(key, expected)
        fingerprint = self.store.put(key, data, metadata)
        return StoreEntry(key.rpartition("/")[2], Kind.FILE, fingerprint, self.store.now_ns)

    def _remove(self, key: str) -> None:
        if self.store.lookup_fingerprint(key) is not None:
            self.store.delete(key)

    def _get(self, upload: Upload) -> PendingUpload:
        pending = self.store.uploads.get(upload.upload_id)
        if pending is None:
            raise errors.NotFound("no such upload", subject=upload.key)
        return pending


def _make_metadata(options: WriteOptions) -> Mapping[str, str]:
    return {**options.metadata, _TOKEN: options.token}


def _take(source: Source, key: str) -> bytes:
    data = os.pread(source.fd, source.length, source.offset)
    if len(data) != source.length:
        raise errors.InvalidArgument("the source ends before what was promised of it", subject=key)
    return data
