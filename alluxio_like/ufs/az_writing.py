"""Azure Blob Storage as a store that can be written.

Owns how bytes get there and become visible: in one request, or as blocks of the blob that a last request commits, each
conditional on what is there. A block's name has its upload's in it, so that uploads of one key do not mix; but committing one,
or any other write to that blob, drops the blocks of all others, whose callers then see NotFound and begin anew. Blocks of an
aborted upload cannot be seen by anybody, and the service drops them with the next write to the blob, or after a week. Metadata
names have no dashes there: they are sent as underscores. The rest is as in cloud_writing.py.
"""

import asyncio
import base64
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.az import AzUfs, add_quotes, make_entry
from alluxio_like.ufs.az_client import make_batch_part, make_copy_source
from alluxio_like.ufs.cloud import SLOWEST_COPY_BYTES_PER_S
from alluxio_like.ufs.cloud_errors import convert_az
from alluxio_like.ufs.cloud_writing import CloudWriter, check_named, make_metadata, make_record
from alluxio_like.ufs.rest import Answer, Body, Request
from alluxio_like.ufs.writing import Expected, Part, Source, Upload, WriteCapabilities, WriteOptions

_META = "x-ms-meta-"
_BLOCK = re.compile(r"([0-9a-f]{32})-([0-9]{5})")
_CHANGED = {"ConditionNotMet", "TargetConditionNotMet", "BlobAlreadyExists"}
_SOURCE_CHANGED = {"SourceConditionNotMet", "CannotVerifyCopySource", "BlobNotFound", "ResourceNotFound"}
_COPY_AT_ONCE_BYTES = 256 << 20
"""Up to here one request copies; the service's limit."""
_COPY_BLOCK_BYTES = 512 << 20
"""Of larger ones; a guess: some seconds each, four at once."""


class WritableAzUfs(CloudWriter, AzUfs):
    """`WritableUfs` on Azure Blob Storage."""

    async def get_capabilities(self) -> WriteCapabilities:
        return WriteCapabilities(
            has_directories=False,
            renames=False,
            copies=True,
            puts_conditionally=True,
            finishes_conditionally=True,
            keeps_metadata=True,
            ordered_parts=False,
            max_put_bytes=5000 << 20,
            min_part_bytes=1,
            max_part_bytes=4000 << 20,
            max_parts=50_000,
        )

    # -- whole contents -------------------------------------------------------------------------------------------------------

    async def _send_content(
        self, op: str, key: str, source: Source | None, metadata: Mapping[str, str], expected: Expected | None
    ) -> StoreEntry:
        headers = {"x-ms-blob-type": "BlockBlob", **_make_meta(metadata), **_make_condition(expected)}
        body = b"" if source is None else Body(source)
        answer = await self._ask(op, Request("PUT", self._make_path(key), (), headers, body), key, accept=(409, 412))
        return self._take_entry(answer, key, source.length if source is not None else 0)

    async def _lookup(self, key: str) -> tuple[StoreEntry, Mapping[str, str]] | None:
        answer = await self._ask("HEAD", Request("HEAD", self._make_path(key)), key, accept=(404,))
        if answer.status == 404:
            if answer.headers.get("x-ms-error-code") == "ContainerNotFound":
                raise convert_az(answer, key)
            return None
        metadata = {_get_meta_name(name): text for name, text in answer.headers.items() if name.startswith(_META)}
        return make_entry(key, answer.headers), metadata

    def _refuse_name(self, full_key: str) -> str:
        if any(char < " " or char in "\\\x7f\ufffe\uffff" for char in full_key):
            return "Azure has no control characters and no backslashes in names"
        return ""

    def _take_entry(self, answer: Answer, key: str, size: int) -> StoreEntry:
        """What was just made. Raises Conflict."""
        if answer.status >= 400:
            raise self._make_refusal(answer, key)
        return make_entry(key, {**answer.headers, "content-length": str(size)})

    def _make_refusal(self, answer: Answer, key: str) -> errors.AlluxioLikeError:
        if answer.headers.get("x-ms-error-code") in _CHANGED or answer.status == 412:
            return errors.Conflict("the store holds another content than expected", subject=key)
        return convert_az(answer, key)

    # -- uploads in parts -----------------------------------------------------------------------------------------------------

    async def upload_part(self, upload: Upload, number: int, source: Source, offset: int) -> Part:
        await self._check_record(upload)
        name = _make_block(upload, number)
        request = Request("PUT", self._make_path(upload.key), [("comp", "block"), ("blockid", name)], {}, Body(source))
        await self._ask("PART", request, upload.key)
        return Part(number, source.length, name)

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        await self._check_record(upload)
        query = [("comp", "blocklist"), ("blocklisttype", "uncommitted")]
        answer = await self._ask("BLOCKS", Request("GET", self._make_path(upload.key), query), upload.key, accept=(404,))
        return [] if answer.status == 404 else _parse_blocks(answer.body, upload)

    async def finish_upload(
        self, upload: Upload, parts: Sequence[Part], options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        if not 0 < len(parts) <= 50_000:
            raise errors.InvalidArgument("an upload has 1 to 50000 parts", subject=upload.key)
        await self._check_record(upload)
        ordered = sorted(parts, key=lambda part: part.number)
        entry = await self._commit(upload.key, ordered, make_metadata(options), expected)
        with suppress(errors.AlluxioLikeError):  # it is done; the record is found by list_uploads
            await self.abort_upload(upload)
        return entry

    async def _commit(
        self, key: str, parts: Sequence[Part], metadata: Mapping[str, str], expected: Expected | None
    ) -> StoreEntry:
        names = "".join(f"<Uncommitted>{escape(part.receipt)}</Uncommitted>" for part in parts)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{names}</BlockList>'.encode()
        headers = {"Content-Type": "application/xml", **_make_meta(metadata), **_make_condition(expected)}
        headers["x-ms-blob-content-type"] = "application/octet-stream"
        request = Request("PUT", self._make_path(key), [("comp", "blocklist")], headers, body)
        answer = await self._ask("FINISH", request, key, accept=(409, 412))
        return self._take_entry(answer, key, sum(part.length for part in parts))

    async def abort_upload(self, upload: Upload) -> None:
        await self.delete(make_record(upload))

    # -- removal and copies ---------------------------------------------------------------------------------------------------

    async def delete(self, key: str, *, expected: Expected | None = None) -> None:
        check_named(key)
        if expected is not None and expected.fingerprint is None:
            if await self._lookup(key) is not None:
                raise errors.Conflict("there is a blob, and none was expected", subject=key)
            return
        headers = {"x-ms-delete-snapshots": "include", **_make_condition(expected)}
        request = Request("DELETE", self._make_path(key), (), headers)
        answer = await self._ask("DELETE", request, key, accept=(404, 409, 412))
        if answer.status in {409, 412}:
            raise self._make_refusal(answer, key)

    _batch_size = 256
    _batch_id = "{}"

    def _make_batch(self, keys: Sequence[str]) -> tuple[Request, Sequence[str]]:
        tokens = self._clients.tokens if self._clients is not None else None
        parts = [make_batch_part(self._settings, tokens, self._make_path(key)) for key in keys]
        return Request("POST", self._settings.path, [("restype", "container"), ("comp", "batch")]), parts

    async def copy(
        self, source: str, fingerprint: Fingerprint, target: str, options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        self.check_key(target)
        if fingerprint.size > _COPY_AT_ONCE_BYTES:
            return await self._copy_in_blocks(source, fingerprint, target, options, expected)
        headers = {
            **(await self._make_source(source, fingerprint)),
            **_make_meta(make_metadata(options)),
            **_make_condition(expected),
            "x-ms-requires-sync": "true",
        }
        answer = await self._ask_copy(Request("PUT", self._make_path(target), (), headers), source, target, fingerprint.size)
        return make_entry(target, {**answer.headers, "content-length": str(fingerprint.size)})

    async def _copy_in_blocks(
        self, source: str, fingerprint: Fingerprint, target: str, options: WriteOptions, expected: Expected | None
    ) -> StoreEntry:
        upload = await self.begin_upload(target, options)
        at_once = asyncio.Semaphore(4)

        async def copy_block(number: int, start: int) -> Part:
            length = min(_COPY_BLOCK_BYTES, fingerprint.size - start)
            name = _make_block(upload, number)
            async with at_once:
                headers = await self._make_source(source, fingerprint)
                headers["x-ms-source-range"] = f"bytes={start}-{start + length - 1}"
                query = [("comp", "block"), ("blockid", name)]
                await self._ask_copy(Request("PUT", self._make_path(target), query, headers), source, target, length)
            return Part(number, length, name)

        try:
            async with asyncio.TaskGroup() as group:
                starts = enumerate(range(0, fingerprint.size, _COPY_BLOCK_BYTES), start=1)
                tasks = [group.create_task(copy_block(number, start)) for number, start in starts]
            return await self.finish_upload(upload, [task.result() for task in tasks], options, expected=expected)
        except BaseException as error:
            with suppress(errors.AlluxioLikeError):
                await asyncio.shield(self.abort_upload(upload))
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise

    async def _make_source(self, source: str, fingerprint: Fingerprint) -> dict[str, str]:
        """The headers that name what is copied, and how the service may read it."""
        clients = await self._connect()
        url = f"{self._http.endpoint}{self._make_path(source)}"
        headers = await self._run(lambda: make_copy_source(self._settings, clients.tokens, url, self._prefix + source))
        return {**headers, "x-ms-source-if-match": add_quotes(fingerprint.token)}

    async def _ask_copy(self, request: Request, source: str, target: str, size: int) -> Answer:
        """Raises Stale for the source, Conflict for the target."""
        patient = replace(request, patience_s=size / SLOWEST_COPY_BYTES_PER_S)
        answer = await self._ask("COPY", patient, target, accept=(404, 409, 412))
        if answer.status < 300:
            return answer
        if answer.headers.get("x-ms-error-code") in _SOURCE_CHANGED:
            raise errors.Stale("the store holds another content by now", subject=source)
        refusal = self._make_refusal(answer, target)
        if isinstance(refusal, errors.Conflict) and "x-ms-source-if-match" in request.headers:
            # Whose condition it was, not every server says.
            found = await self._lookup(source)
            there = found[0].fingerprint if found is not None else None
            if there is None or add_quotes(there.token) != request.headers["x-ms-source-if-match"]:
                raise errors.Stale("the store holds another content by now", subject=source)
        raise refusal


# -- pure helpers ----------------------------------------------------------------------------------------------------------------


def _make_condition(expected: Expected | None) -> dict[str, str]:
    """The header that demands what is expected."""
    if expected is None:
        return {}
    return {"If-None-Match": "*"} if expected.fingerprint is None else {"If-Match": add_quotes(expected.fingerprint.token)}


def _make_meta(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata as headers. A name begins with a letter or an underscore there."""
    found = {}
    for name, text in metadata.items():
        plain = name.replace("-", "_")
        found[f"{_META}{'_' if plain[0].isdigit() else ''}{plain}"] = text
    return found


def _get_meta_name(header: str) -> str:
    name = header.removeprefix(_META)
    return (name[1:] if name[:1] == "_" and name[1:2].isdigit() else name).replace("_", "-")


def _make_block(upload: Upload, number: int) -> str:
    """A block's name: of one length for all blocks of a blob, as the service wants it."""
    return base64.b64encode(f"{upload.upload_id}-{number:05}".encode()).decode()


def _parse_blocks(body: bytes, upload: Upload) -> list[Part]:
    """The blocks of an upload, by number. Raises StoreProtocol."""
    parts = []
    try:
        for block in ElementTree.fromstring(body).iterfind("UncommittedBlocks/Block"):
            name, size = block.findtext("Name") or "", int(block.findtext("Size") or "")
            found = _BLOCK.fullmatch(base64.b64decode(name).decode("ascii", "replace"))
            if found is not None and found[1] == upload.upload_id:
                parts.append(Part(int(found[2]), size, name))
    except (ElementTree.ParseError, ValueError) as error:
        raise errors.StoreProtocol("the store's list of blocks was not understood", subject=upload.key) from error
    return sorted(parts, key=lambda part: part.number)
