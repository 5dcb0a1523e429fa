"""Copies within an S3 bucket, and directories: what of writing is about names.

Owns how a content gets another key without moving through here, at any size, and the markers that stand for empty directories.
Same rules as s3_writing.py, which it completes.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs import s3_listing as listing
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.s3 import get_fingerprint
from alluxio_like.ufs.s3_errors import get_refusal
from alluxio_like.ufs.s3_versions import S3Versions
from alluxio_like.ufs.s3_writing import get_etag, make_entry, make_metadata
from alluxio_like.ufs.writing import Expected, Part, Upload, WriteOptions

_MARKER_TYPE = "application/x-directory"
"""What s3fs, goofys and others give the marker of a directory."""
_AWS_COPY_BYTES = 5 << 30
_KEPT_HEADERS = ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "StorageClass")
"""What a copy takes over beside its bytes; metadata is what the caller gives."""


class WritableS3Ufs(S3Versions):
    """`WritableUfs`, `ArchivingUfs` and `VersionedUfs` on S3."""

    copy_limit_bytes = 256 << 20
    """Up to here one request copies. A guess. On AWS it is 5 GiB: there the answer is kept alive meanwhile, while other servers
    may be silent, which is taken for a stall after timeout_s."""
    copy_part_bytes = 64 << 20
    """Of larger ones; a guess: well below timeout_s each, four at once."""

    # -- copies -------------------------------------------------------------------------------------------------------------

    async def copy(
        self, source: str, fingerprint: Fingerprint, target: str, options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        found = await self._get_source(source, fingerprint)
        await self._compare(target, expected)
        headers = {name: found[name] for name in _KEPT_HEADERS if found.get(name)}
        clients = await self._connect()
        if fingerprint.size > (_AWS_COPY_BYTES if clients.is_aws else self.copy_limit_bytes):
            return await self._copy_in_parts(source, fingerprint, target, options, headers, expected)
        arguments: Any = {
            **self._place_new(target),
            **headers,
            **self._place_source(source, fingerprint),
            "Metadata": make_metadata(options),
            "MetadataDirective": "REPLACE",
        }
        try:
            answer = await self._ask(
                "COPY", target, lambda client: client.copy_object(**arguments), copied_bytes=fingerprint.size
            )
        except (errors.NotFound, errors.Stale):
            raise errors.Stale("the store holds another content by now", subject=source) from None
        token = get_etag(answer.get("CopyObjectResult", {}), target)
        if token != fingerprint.token and not clients.is_aws:
            # The server may not mind the condition, and gives a copy another ETag: only the source can still tell.
            await self._check_copied(source, fingerprint, target, options)
        return make_entry(target, token, fingerprint.size)

    async def _get_source(self, source: str, fingerprint: Fingerprint) -> Any:
        """The source's head. Raises Stale unless it is the content meant."""
        try:
            found = await self._head(source)
        except errors.NotFound:
            raise errors.Stale("the object is no longer in the store", subject=source) from None
        if get_fingerprint(found, source) != fingerprint:
            raise errors.Stale("the store holds another content by now", subject=source)
        return found

    async def _check_copied(self, source: str, fingerprint: Fingerprint, target: str, options: WriteOptions) -> None:
        """Undo a copy of what nobody asked for, and raise Stale."""
        try:
            await self._get_source(source, fingerprint)
        except errors.Stale:
            if await self.lookup_written(target, options.token) is not None:
                await self.delete(target)
            raise

    async def _copy_in_parts(
        self,
        source: str,
        fingerprint: Fingerprint,
        target: str,
        options: WriteOptions,
        headers: Mapping[str, str],
        expected: Expected | None,
    ) -> StoreEntry:
        upload = await self._begin(target, options, headers)
        try:
            part_bytes = max(self.copy_part_bytes, -(-fingerprint.size // 10_000))
            at_once = asyncio.Semaphore(4)

            async def copy_part(number: int, start: int) -> Part:
                length = min(part_bytes, fingerprint.size - start)
                async with at_once:
                    return await self._copy_part(upload, number, source, fingerprint, start, length)

            async with asyncio.TaskGroup() as group:
                starts = enumerate(range(0, fingerprint.size, part_bytes), start=1)
                tasks = [group.create_task(copy_part(number, start)) for number, start in starts]
            if not (await self._connect()).is_aws:
                await self._get_source(source, fingerprint)
            return await self.finish_upload(upload, [task.result() for task in tasks], options, expected=expected)
        except BaseException as error:
            with suppress(errors.AlluxioLikeError):
                await asyncio.shield(self.abort_upload(upload))
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise

    async def _copy_part(
        self, upload: Upload, number: int, source: str, fingerprint: Fingerprint, start: int, length: int
    ) -> Part:
        arguments: Any = {
            **self._place_upload(upload),
            **self._place_source(source, fingerprint),
            "PartNumber": number,
            "CopySourceRange": f"bytes={start}-{start + length - 1}",
        }
        try:
            answer = await self._ask("COPY", upload.key, lambda client: client.upload_part_copy(**arguments), copied_bytes=length)
        except (errors.NotFound, errors.Stale) as error:
            refusal = get_refusal(error.__cause__) if error.__cause__ else None
            if refusal is not None and refusal.code == "NoSuchUpload":
                raise
            raise errors.Stale("the store holds another content by now", subject=source) from None
        return Part(number, length, get_etag(answer.get("CopyPartResult", {}), upload.key))

    # -- directories --------------------------------------------------------------------------------------------------------

    async def rename(self, source: str, target: str, *, replace: bool = True) -> None:
        raise errors.Unsupported("S3 renames nothing: copy and delete", subject=source)

    async def make_directory(self, key: str) -> None:
        place: Any = {**self._place(f"{key}/"), "ContentType": _MARKER_TYPE, "Body": b""}
        if await self._is_there(key) or await self._list_below(key):
            raise errors.AlreadyExists("there is something already", subject=key)
        await self._ask("PUT", key, lambda client: client.put_object(**place))

    async def remove_directory(self, key: str) -> None:
        if any(found != f"{key}/" for found in await self._list_below(key)):
            raise errors.DirectoryNotEmpty("the directory is not empty", subject=key)
        await self.delete(f"{key}/")

    async def _is_there(self, key: str) -> bool:
        try:
            await self._head(key)
        except errors.NotFound:
            return False
        return True

    async def _list_below(self, key: str) -> Sequence[str]:
        """At most two keys that begin with that of a directory, its marker among them."""
        arguments: Any = {**self._make_list_arguments(f"{key}/", max_entries=2)}
        del arguments["Delimiter"]

        def ask(client: Any) -> Sequence[str]:
            answer: dict[str, Any] = {**client.list_objects_v2(**arguments)}
            return listing.parse_keys(answer[listing.PAGE_KEY])

        return [found[len(self._prefix) :] for found in await self._ask("LIST", key, ask)]

    def _place_source(self, source: str, fingerprint: Fingerprint) -> dict[str, Any]:
        return {
            "CopySource": {"Bucket": self._settings.bucket, "Key": self._prefix + source},
            "CopySourceIfMatch": listing.add_quotes(fingerprint.token),
        }
