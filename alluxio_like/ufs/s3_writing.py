"""S3 as a store that can be written.

Owns the writing half of the conversation with a bucket, all of it through boto3 in threads: contents in one request or in parts,
conditions (s3_conditions.py says which the server minds; the rest are compared by a HEAD just before), removal. What is
sent is checked by the server: its SHA-256 is signed over plain HTTP, over TLS it has its MD5 with it. Used on one event loop,
like the reading half that it extends; nothing is retried.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind, to_bytes, to_str
from alluxio_like.ufs import s3_conditions as conditions
from alluxio_like.ufs import s3_listing as listing
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.s3 import S3Ufs, get_fingerprint, get_header
from alluxio_like.ufs.s3_body import Body
from alluxio_like.ufs.s3_client import S3Clients
from alluxio_like.ufs.s3_errors import Refusal, convert_refusal, get_refusal
from alluxio_like.ufs.writing import Expected, Part, Source, Upload, WriteCapabilities, WriteOptions, is_utf8

T = TypeVar("T")

_TOKEN = "alluxio-like-token"
"""The name, in an object's metadata, of the token of the write that made it."""
_SLOWEST_BYTES_PER_S = 1 << 20
"""A request that moves bytes may take as long as they do at this speed, beyond the I/O timeout; a guess. The longest silence
within it is timeout_s all the same."""
_SLOWEST_COPY_BYTES_PER_S = 16 << 20
"""The same of bytes that the server moves by itself; a guess."""
_MAX_PUT_BYTES = 5 << 30
_MAX_KEY_BYTES = 1024
_MAX_DELETED = 1000


class S3Writer(S3Ufs):
    """What writes, reads back and removes single contents; s3_names.py makes a `WritableUfs` of it."""

    _conditions: conditions.Conditions | None = None
    _probing: "asyncio.Task[conditions.Conditions] | None" = None

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._probing
        await super().close()

    async def get_capabilities(self) -> WriteCapabilities:
        known = await self._get_conditions()
        return WriteCapabilities(
            has_directories=False,
            renames=False,
            copies=True,
            puts_conditionally=known.put.is_conditional,
            finishes_conditionally=known.finish.is_conditional,
            keeps_metadata=True,
            ordered_parts=False,
            max_put_bytes=_MAX_PUT_BYTES,
            min_part_bytes=5 << 20,
            max_part_bytes=_MAX_PUT_BYTES,
            max_parts=10_000,
        )

    # -- whole contents -----------------------------------------------------------------------------------------------------

    def refuse_name(self, name: str, *, at_root: bool) -> str:
        if conditions.is_probe(name):
            return "objects of such names are made to try out what the server can do, and removed"
        return "" if is_utf8(name) else "keys of S3 are UTF-8"

    async def put(self, key: str, source: Source, options: WriteOptions, *, expected: Expected | None = None) -> StoreEntry:
        if source.length > _MAX_PUT_BYTES:
            raise errors.InvalidArgument("S3 takes at most 5 GiB in one request: send it in parts", subject=key)
        arguments = {**self._place_new(key), "Metadata": make_metadata(options)}
        condition = await self._make_condition(key, expected, lambda known: known.put)

        def send(client: Any, **body: Any) -> Any:
            return client.put_object(**arguments, **condition, **body)

        async with self._refusals(key, condition):
            answer = await self._send("PUT", key, source, send)
        return make_entry(key, get_etag(answer, key), source.length)

    async def lookup_written(self, key: str, token: str) -> StoreEntry | None:
        try:
            found = await self._head(key)
        except errors.NotFound:
            return None
        return self._make_stat(key, found) if found.get("Metadata", {}).get(_TOKEN) == token else None

    async def read_metadata(self, key: str) -> Mapping[str, str]:
        return dict((await self._head(key)).get("Metadata", {}))

    # -- uploads in parts ---------------------------------------------------------------------------------------------------

    async def begin_upload(self, key: str, options: WriteOptions) -> Upload:
        return await self._begin(key, options, {})

    async def _begin(self, key: str, options: WriteOptions, headers: Mapping[str, str]) -> Upload:
        arguments: Any = {**self._place_new(key), "Metadata": make_metadata(options), **headers}
        answer = await self._ask("CREATE", key, lambda client: client.create_multipart_upload(**arguments))
        upload_id = answer.get("UploadId")
        if not upload_id:
            raise errors.StoreProtocol("the store began an upload and gave it no name", subject=key)
        return Upload(key, upload_id)

    async def upload_part(self, upload: Upload, number: int, source: Source, offset: int) -> Part:
        arguments = {**self._place_upload(upload), "PartNumber": number}

        def send(client: Any, **body: Any) -> Any:
            return client.upload_part(**arguments, **body)

        answer = await self._send("PART", upload.key, source, send)
        return Part(number, source.length, get_etag(answer, upload.key))

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        parts: list[Part] = []
        marker: dict[str, Any] = {}
        while True:
            arguments: Any = {**self._place_upload(upload), **marker}
            answer = await self._ask("PARTS", upload.key, partial(_call, "list_parts", arguments))
            found = [Part(part["PartNumber"], part["Size"], get_etag(part, upload.key)) for part in answer.get("Parts", [])]
            parts += found
            if not answer.get("IsTruncated"):
                return sorted(parts, key=lambda part: part.number)
            if not found:
                raise errors.StoreProtocol("the store's list of parts does not end", subject=upload.key)
            marker = {"PartNumberMarker": found[-1].number}

    async def finish_upload(
        self, upload: Upload, parts: Sequence[Part], options: WriteOptions, *, expected: Expected | None = None
    ) -> StoreEntry:
        if not parts:
            raise errors.InvalidArgument("an upload has at least one part", subject=upload.key)
        condition = await self._make_condition(upload.key, expected, lambda known: known.finish)
        named = [{"PartNumber": part.number, "ETag": listing.add_quotes(part.receipt)} for part in parts]
        arguments: Any = {**self._place_upload(upload), "MultipartUpload": {"Parts": named}, **condition}
        size = sum(part.length for part in parts)
        try:
            async with self._refusals(upload.key, condition):
                answer = await self._ask(
                    "COMPLETE", upload.key, lambda client: client.complete_multipart_upload(**arguments), copied_bytes=size
                )
        except errors.StoreUnavailable as error:
            if error.__cause__ is not None and get_refusal(error.__cause__) is not None:
                # radosgw 16 answers 500 for an upload that is no longer there, too: this raises NotFound then.
                await self.list_parts(upload)
            raise
        if token := listing.strip_quotes(answer.get("ETag") or ""):
            return make_entry(upload.key, token, size)
        # radosgw before 17 does not say.
        entry = await self.lookup_written(upload.key, options.token)
        if entry is None:
            raise errors.Conflict("what was written was replaced or removed at once", subject=upload.key)
        return entry

    async def abort_upload(self, upload: Upload) -> None:
        arguments: Any = self._place_upload(upload)
        with suppress(errors.NotFound):
            await self._ask("ABORT", upload.key, lambda client: client.abort_multipart_upload(**arguments))

    async def list_uploads(self, prefix: str) -> Sequence[Upload]:
        uploads: list[Upload] = []
        whole: dict[str, Any] = {"Bucket": self._settings.bucket, "Prefix": self._prefix + prefix, **self._get_payer()}
        marker: dict[str, str] = {}
        while True:
            arguments: Any = {**whole, "EncodingType": "url", **marker}
            answer = await self._ask("UPLOADS", prefix, partial(_call, "list_multipart_uploads", arguments))
            found = answer.get("Uploads", [])
            for upload in found:
                # radosgw encodes and does not say so.
                key = to_str(unquote_to_bytes(upload["Key"].replace("+", " ")))
                uploads.append(Upload(key[len(self._prefix) :], upload["UploadId"], listing.get_time_ns(upload["Initiated"])))
            if not answer.get("IsTruncated"):
                return uploads
            if not found:
                raise errors.StoreProtocol("the store's list of uploads does not end", subject=prefix)
            marker = {"KeyMarker": self._prefix + uploads[-1].key, "UploadIdMarker": uploads[-1].upload_id}

    # -- removal ------------------------------------------------------------------------------------------------------------

    async def delete(self, key: str, *, expected: Expected | None = None) -> None:
        await self._compare(key, expected)
        if expected is not None and expected.fingerprint is None:
            return
        arguments: Any = self._place(key)
        with suppress(errors.NotFound):
            await self._ask("DELETE", key, lambda client: client.delete_object(**arguments))

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, Exception]:
        failed: dict[str, Exception] = {}
        plain = [key for key in keys if _is_xml(key)]
        for start in range(0, len(plain), _MAX_DELETED):
            chunk = plain[start : start + _MAX_DELETED]
            try:
                failed.update(await self._delete_chunk(chunk))
            except errors.AlluxioLikeError as error:
                failed.update(dict.fromkeys(chunk, error))
        for key in keys:
            if not _is_xml(key):
                try:
                    await self.delete(key)
                except errors.AlluxioLikeError as error:
                    failed[key] = error
        return failed

    async def _delete_chunk(self, keys: Sequence[str]) -> Mapping[str, Exception]:
        named = [{"Key": self._prefix + key} for key in keys]
        arguments: Any = {
            "Bucket": self._settings.bucket,
            "Delete": {"Objects": named, "Quiet": True},
            **self._get_payer(),
        }
        answer = await self._ask("DELETE", self.bucket, lambda client: client.delete_objects(**arguments))
        failed = {}
        for error in answer.get("Errors", []):
            key = str(error.get("Key", ""))[len(self._prefix) :]
            converted = convert_refusal(Refusal(str(error.get("Code", "")), 0), key)
            if not isinstance(converted, errors.NotFound):
                failed[key] = converted
        return failed

    # -- what all of them need ----------------------------------------------------------------------------------------------

    def _place(self, key: str) -> dict[str, Any]:
        """Where an object is. Raises InvalidArgument, NameTooLong for what cannot be a key."""
        if not key or key == "/" or "\0" in key:
            raise errors.InvalidArgument("this cannot be the key of an object", subject=repr(key))
        full_key = self._prefix + key
        if len(to_bytes(full_key)) > _MAX_KEY_BYTES:
            raise errors.NameTooLong(f"a key of S3 has at most {_MAX_KEY_BYTES} bytes", subject=full_key)
        return {"Bucket": self._settings.bucket, "Key": full_key, **self._get_payer()}

    def _place_new(self, key: str) -> dict[str, Any]:
        """The same of a content that is to be made: nobody would be shown one that is called like a probe's."""
        if conditions.is_probe(key):
            raise errors.InvalidArgument(self.refuse_name(key.rpartition("/")[2], at_root=False), subject=key)
        return self._place(key)

    def _place_upload(self, upload: Upload) -> dict[str, Any]:
        return {**self._place(upload.key), "UploadId": upload.upload_id}

    async def _ask(self, op: str, key: str, call: Callable[[Any], T], *, copied_bytes: int = 0) -> T:
        """One request that carries no body of ours."""
        clients = await self._connect()
        self._on_request(op)
        timeout_s = self._settings.io_timeout_s + copied_bytes / _SLOWEST_COPY_BYTES_PER_S
        return await self._run(partial(call, clients.client), key, timeout_s=timeout_s)

    async def _send(self, op: str, key: str, source: Source, call: Callable[..., T]) -> T:
        """One request with a body."""
        clients = await self._connect()
        self._on_request(op)
        body = Body(source, key)

        def send() -> T:
            try:
                if not source.length:
                    return call(clients.client, Body=b"")
                # Over plain HTTP boto3 signs the body's SHA-256.
                md5 = {"ContentMD5": body.make_md5()} if clients.endpoint.startswith("https:") else {}
                return call(clients.client, Body=body, **md5)
            except Exception as error:
                if body.failure is not None:
                    raise body.failure from error
                raise

        timeout_s = self._settings.io_timeout_s + source.length / _SLOWEST_BYTES_PER_S
        try:
            return await self._run(send, key, timeout_s=timeout_s)
        finally:
            body.abandon()

    async def _make_condition(
        self, key: str, expected: Expected | None, choose: Callable[[conditions.Conditions], conditions.Step]
    ) -> dict[str, Any]:
        """Arguments that demand what is expected; empty where the server would not mind them: then it was compared by now."""
        if expected is None:
            return {}
        condition = choose(await self._get_conditions()).make_arguments(expected.fingerprint)
        if condition is None:
            await self._compare(key, expected)
        return condition or {}

    async def _compare(self, key: str, expected: Expected | None) -> None:
        """Raises Conflict unless what is there now is what is expected."""
        if expected is None:
            return
        try:
            there = get_fingerprint(await self._head(key), key)
        except errors.NotFound:
            there = None
        if there != expected.fingerprint:
            raise errors.Conflict("the store holds another content than expected", subject=key)

    def _refusals(self, key: str, condition: Mapping[str, str]) -> "_Refusals":
        return _Refusals(key, condition)

    async def _get_conditions(self) -> conditions.Conditions:
        """What the server minds; asked once, by the first who wants to know."""
        if self._conditions is None:
            clients = await self._connect()
            believed = self._settings.conditional_writes
            if believed == "yes" or (believed != "no" and clients.is_aws):
                self._conditions = conditions.ALL
            elif believed == "no":
                self._conditions = conditions.NONE
            else:
                if self._probing is None:
                    self._probing = asyncio.create_task(self._probe(clients))
                    self._probing.add_done_callback(self._finish_probing)
                return await asyncio.shield(self._probing)
        return self._conditions

    async def _probe(self, clients: S3Clients) -> conditions.Conditions:
        place = self._place(conditions.make_probe_key())
        asked: list[str] = []
        try:
            found = await self._run(partial(conditions.probe, clients.client, place, asked.append), self.bucket)
        finally:
            for op in asked:
                self._on_request(op)
        with suppress(errors.AlluxioLikeError):  # then it stays until the next time
            await self._remove_left_probes()
        return found

    async def _remove_left_probes(self) -> None:
        """Remove what was left at the mount's root by who was killed within a probe. Others may be trying just now: only what is
        old goes, by the server's clock alone."""
        arguments: Any = self._make_list_arguments(conditions.NAME, max_entries=1000)
        answer: Any = {**await self._ask("LIST", self.bucket, lambda client: client.list_objects_v2(**arguments))}
        try:
            now = parsedate_to_datetime(get_header(answer, "date"))
        except ValueError:
            return
        limit_ns = listing.get_time_ns(now) - conditions.LEFT_AFTER_S * 1_000_000_000
        for entry in listing.parse_page(answer[listing.PAGE_KEY], arguments["Prefix"]).entries:
            key = conditions.NAME + entry.name
            if conditions.is_probe(key) and entry.kind is Kind.FILE and 0 < entry.mtime_ns < limit_ns:
                await self.delete(key)
        for upload in await self.list_uploads(conditions.NAME):
            if conditions.is_probe(upload.key) and "/" not in upload.key and 0 < upload.begun_ns < limit_ns:
                await self.abort_upload(upload)

    def _finish_probing(self, task: "asyncio.Task[conditions.Conditions]") -> None:
        self._probing = None
        if not task.cancelled() and task.exception() is None:
            self._conditions = task.result()


class _Refusals:
    """Turns the refusal of a condition into Conflict, around the request that carries it."""

    def __init__(self, key: str, condition: Mapping[str, str]) -> None:
        self._key = key
        self._condition = condition

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, errors.Stale) or (self._condition.get("IfMatch") and _has_code(error, "NoSuchKey")):
            raise errors.Conflict("the store holds another content than expected", subject=self._key) from error


def _has_code(error: BaseException | None, code: str) -> bool:
    cause = error.__cause__ if isinstance(error, errors.NotFound) else None
    refusal = get_refusal(cause) if cause is not None else None
    return refusal is not None and refusal.code == code


def _call(name: str, arguments: Mapping[str, Any], client: Any) -> Any:
    return getattr(client, name)(**arguments)


def make_metadata(options: WriteOptions) -> dict[str, str]:
    return {**options.metadata, _TOKEN: options.token}


def make_entry(key: str, token: str, size: int) -> StoreEntry:
    return StoreEntry(key.rpartition("/")[2], Kind.FILE, Fingerprint(token, size))


def get_etag(answer: Any, key: str) -> str:
    token = listing.strip_quotes(answer.get("ETag") or "")
    if not token:
        raise errors.StoreProtocol("the store's answer has no ETag", subject=key)
    return token


def _is_xml(key: str) -> bool:
    """Whether XML has all its characters, as a request that names many keys needs."""
    return all(
        char in "\t\n\r" or (char >= " " and char not in "\ufffe\uffff" and not "\ud800" <= char <= "\udfff") for char in key
    )
