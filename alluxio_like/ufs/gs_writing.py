"""Google Cloud Storage as a store that can be written.

Owns how bytes get there and become visible: in one request, or as parts. Parts are objects of their own (below cloud_writing's
`PARTS`) which a last request composes into the target: the only way of Google's that takes parts in any order, goes on after a
restart and compares what is there in the step that makes it visible (resumable uploads are one sequence with its condition at the
beginning, multipart uploads take no condition). A compose has at most 32 sources, so more parts are composed in two steps. Every
part is named with its generation: one that was replaced meanwhile is never put in. The rest is as in cloud_writing.py.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.cloud import PARTS, SLOWEST_COPY_BYTES_PER_S
from alluxio_like.ufs.cloud_writing import CloudWriter, check_named, make_metadata
from alluxio_like.ufs.gs import GsUfs, make_entry, parse_object
from alluxio_like.ufs.rest import Answer, Body, Request, quote_component
from alluxio_like.ufs.writing import Expected, Part, Source, Upload, WriteCapabilities, WriteOptions

_MAX_SOURCES = 32
_FIELDS = "name,generation,size,updated"
_TYPE = "application/octet-stream"
_JSON = {"Content-Type": "application/json; charset=UTF-8"}
_Piece = tuple[str, str]
"""A source of a compose: full key and generation."""


class WritableGsUfs(CloudWriter, GsUfs):
    """`WritableUfs` on Google Cloud Storage."""

    async def get_capabilities(self) -> WriteCapabilities:
        return WriteCapabilities(
            has_directories=False,
            renames=False,
            copies=True,
            puts_conditionally=True,
            finishes_conditionally=True,
            keeps_metadata=True,
            ordered_parts=False,
            max_put_bytes=5 << 40,
            min_part_bytes=1,
            max_part_bytes=5 << 40,
            max_parts=_MAX_SOURCES**2,
        )

    # -- whole contents -------------------------------------------------------------------------------------------------------

    async def _send_content(
        self, op: str, key: str, source: Source | None, metadata: Mapping[str, str], expected: Expected | None
    ) -> StoreEntry:
        query = [("uploadType", "multipart"), ("fields", _FIELDS), *_make_condition(key, expected)]
        boundary = f"alluxio-like-{secrets.token_hex(16)}"
        resource = {"name": self._prefix + key, "contentType": _TYPE, "metadata": dict(metadata)}
        lines = [f"--{boundary}", "Content-Type: application/json; charset=UTF-8", "", json.dumps(resource)]
        lines += [f"--{boundary}", f"Content-Type: {_TYPE}", "", ""]
        before, after = "\r\n".join(lines).encode(), f"\r\n--{boundary}--\r\n".encode()
        body = before + after if source is None else Body(source, before, after)
        headers = {"Content-Type": f"multipart/related; boundary={boundary}"}
        request = Request("POST", self._make_path(None, "/upload"), query, headers, body)
        answer = await self._ask(op, request, key, accept=(412,))
        size = source.length if source is not None else 0
        return self._take_entry(answer, key, size)

    async def _lookup(self, key: str) -> tuple[StoreEntry, Mapping[str, str]] | None:
        try:
            found = await self._get_object(key, f"{_FIELDS},metadata")
        except errors.NotFound:
            return None
        metadata = found.get("metadata") or {}
        return make_entry(key.rpartition("/")[2], found, key), {str(name): str(text) for name, text in metadata.items()}

    def _refuse_name(self, full_key: str) -> str:
        if "\r" in full_key or "\n" in full_key:
            return "Google Cloud Storage has no line breaks in names"
        return "this cannot be the name of an object" if full_key in {".", ".."} else ""

    def _take_entry(self, answer: Answer, key: str, size: int) -> StoreEntry:
        """What was just made. Raises Conflict, StoreProtocol."""
        if answer.status == 412:
            raise errors.Conflict("the store holds another content than expected", subject=key)
        entry = make_entry(key.rpartition("/")[2], parse_object(answer.body, key), key)
        if entry.fingerprint is None or entry.fingerprint.size != size:
            raise errors.StoreProtocol("the store has written another number of bytes than were sent", subject=key)
        return entry

    # -- uploads in parts -----------------------------------------------------------------------------------------------------

    async def upload_part(self, upload: Upload, number: int, source: Source, offset: int) -> Part:
        key = f"{_make_place(upload)}part-{number:05}"
        entry = await self._send_content("PART", key, source, {}, None)
        assert entry.fingerprint is not None
        try:
            # Afterwards: an abort removes the record first, then the parts that it sees.
            await self._check_record(upload)
        except errors.NotFound:
            await self.delete(key)
            raise
        return Part(number, source.length, entry.fingerprint.token)

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        await self._check_record(upload)
        entries = [entry for entry in await self._list_place(upload) if entry.name.startswith("part-")]
        return [
            Part(int(entry.name.removeprefix("part-")), entry.fingerprint.size, entry.fingerprint.token)
            for entry in entries
            if entry.fingerprint is not None
        ]

    async def finish_upload(
        self, upload: Upload, parts: Sequence[Part], options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        if not 0 < len(parts) <= _MAX_SOURCES**2:
            raise errors.InvalidArgument(f"an upload has 1 to {_MAX_SOURCES**2} parts", subject=upload.key)
        await self._check_record(upload)
        place = _make_place(upload)
        ordered = sorted(parts, key=lambda part: part.number)
        pieces = [(f"{place}part-{part.number:05}", part.receipt) for part in ordered]
        if len(pieces) > _MAX_SOURCES:
            pieces = await self._compose_groups(upload, pieces, [part.length for part in ordered])
        size = sum(part.length for part in parts)
        entry = await self._compose(pieces, upload.key, size, make_metadata(options), expected)
        with suppress(errors.AlluxioLikeError):  # it is done; what is left is found by list_uploads
            await self.abort_upload(upload)
        return entry

    async def _compose_groups(self, upload: Upload, pieces: list[_Piece], lengths: list[int]) -> list[_Piece]:
        """At most 32 pieces out of more."""

        async def compose(number: int) -> _Piece:
            key = f"{_make_place(upload)}group-{number:05}"
            span = slice(number * _MAX_SOURCES, (number + 1) * _MAX_SOURCES)
            entry = await self._compose(pieces[span], key, sum(lengths[span]), {}, None)
            assert entry.fingerprint is not None
            return key, entry.fingerprint.token

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(compose(number)) for number in range(-(-len(pieces) // _MAX_SOURCES))]
        return [task.result() for task in tasks]

    async def _compose(
        self, pieces: Sequence[_Piece], key: str, size: int, metadata: Mapping[str, str], expected: Expected | None
    ) -> StoreEntry:
        request: dict[str, Any] = {
            "sourceObjects": [{"name": self._prefix + name, "generation": token} for name, token in pieces],
            "destination": {"contentType": _TYPE, "metadata": dict(metadata)},
        }
        query = [("fields", _FIELDS), *_make_condition(key, expected)]
        body = json.dumps(request).encode()
        path = self._make_path(key, after="/compose")
        try:
            asked = Request("POST", path, query, _JSON, body, patience_s=size / SLOWEST_COPY_BYTES_PER_S)
            answer = await self._ask("COMPOSE", asked, key, accept=(412,))
        except errors.NotFound:
            raise errors.NotFound("parts of the upload are no longer in the store", subject=key) from None
        return self._take_entry(answer, key, size)

    async def abort_upload(self, upload: Upload) -> None:
        place = _make_place(upload)
        await self.delete(f"{place}begun")
        left = [f"{place}{entry.name}" for entry in await self._list_place(upload)]
        failed = await self.delete_many(left)
        for error in failed.values():
            raise error

    async def _list_place(self, upload: Upload) -> list[StoreEntry]:
        """What an upload has stored, in order."""
        entries: list[StoreEntry] = []
        token: str | None = None
        while True:
            page = await self.list_page(_make_place(upload), token)
            entries += [entry for entry in page.entries if entry.kind is Kind.FILE]
            token = page.token
            if token is None:
                return entries

    # -- removal and copies ---------------------------------------------------------------------------------------------------

    async def delete(self, key: str, *, expected: Expected | None = None) -> None:
        check_named(key)
        if expected is not None and expected.fingerprint is None:
            if await self._lookup(key) is not None:
                raise errors.Conflict("there is an object, and none was expected", subject=key)
            return
        request = Request("DELETE", self._make_path(key), _make_condition(key, expected))
        if (await self._ask("DELETE", request, key, accept=(404, 412))).status == 412:
            raise errors.Conflict("the store holds another content than expected", subject=key)

    _batch_size = 100
    _batch_id = "<item+{}>"

    def _make_batch(self, keys: Sequence[str]) -> tuple[Request, Sequence[str]]:
        return Request("POST", "/batch/storage/v1"), [f"DELETE {self._make_path(key)} HTTP/1.1\r\n\r\n" for key in keys]

    async def copy(
        self, source: str, fingerprint: Fingerprint, target: str, options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        self.check_key(target)
        place = f"/rewriteTo/b/{quote_component(self._settings.bucket)}/o/{quote_component(self._prefix + target)}"
        query = [("sourceGeneration", fingerprint.token), *_make_condition(target, expected)]
        body = json.dumps({"contentType": _TYPE, "metadata": make_metadata(options)}).encode()
        token: list[tuple[str, str]] = []
        while True:
            path = self._make_path(source, after=place)
            patience_s = fingerprint.size / SLOWEST_COPY_BYTES_PER_S
            request = Request("POST", path, [*query, *token], _JSON, body, patience_s)
            try:
                answer = await self._ask("COPY", request, source, accept=(412,))
            except errors.NotFound:
                raise errors.Stale("the object is no longer in the store", subject=source) from None
            if answer.status == 412:
                raise errors.Conflict("the store holds another content than expected", subject=target)
            found = parse_object(answer.body, source)
            if found.get("done"):
                return make_entry(target.rpartition("/")[2], found.get("resource") or {}, target)
            if not found.get("rewriteToken"):
                raise errors.StoreProtocol("the store began a copy and does not say how it goes on", subject=source)
            token = [("rewriteToken", str(found["rewriteToken"]))]


def _make_place(upload: Upload) -> str:
    """The directory of an upload's parts, with its slash."""
    return f"{PARTS}/{upload.upload_id}/"


def _make_condition(key: str, expected: Expected | None) -> list[tuple[str, str]]:
    """The query that demands what is expected. Raises Conflict for what cannot be there."""
    if expected is None:
        return []
    if expected.fingerprint is None:
        return [("ifGenerationMatch", "0")]
    token = expected.fingerprint.token
    if not token.isdigit() or len(token) > 19 or int(token) == 0:
        raise errors.Conflict("the store holds another content than expected", subject=key)
    return [("ifGenerationMatch", token)]
