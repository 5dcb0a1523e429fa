"""S3: a bucket, or what lies below a prefix of one, as a store.

Owns the conversation with one bucket: obstore reads (conditional on the ETag, checked answer by answer), boto3 lists, asks for
single objects, and reads the keys that obstore cannot express. Where obstore's failure has no status, the request is repeated
once through boto3, which has; other than that nothing is retried here. Used on one event loop; boto3 runs in threads of its own,
bounded in number. No state but the clients, which are made with the first call.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import BaseError, PreconditionError

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind
from alluxio_like.ufs import s3_listing as listing
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.options import OptionValue
from alluxio_like.ufs.s3_client import S3Clients, connect
from alluxio_like.ufs.s3_conditions import is_probe
from alluxio_like.ufs.s3_errors import convert_error, get_refusal
from alluxio_like.ufs.s3_settings import S3Settings
from alluxio_like.ufs.threads import BlockingPool, Lent
from alluxio_like.ufs.uri import StoreUri

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult

T = TypeVar("T")

_SMALL_BYTES = 1 << 20
"""Up to here a body is taken in one piece: one hop fewer between Rust and Python."""
_MAX_CHUNK_BYTES = 8 << 20
_CHUNK_S = 0.05
"""A chunk is what arrives in about this time, so that a page never waits long for its neighbours. Larger chunks save little:
8 MiB ranges cost 0.65 s of CPU per GB in chunks of 1 MiB and 0.61 in one piece (obstore 0.12, loopback)."""


class S3Ufs:
    """`Ufs` on S3."""

    def __init__(self, settings: S3Settings, prefix: str, *, on_request: Callable[[str], None]) -> None:
        self._settings = settings
        self._prefix = prefix
        self._on_request = on_request
        self._pool = BlockingPool(f"s3://{settings.bucket}", settings.max_connections)
        self._clients: S3Clients | None = None
        self._connecting: asyncio.Task[S3Clients] | None = None
        self._connected_s = 0.0
        self._bytes_per_s = 0.0

    @classmethod
    def open(
        cls, uri: StoreUri, values: Mapping[str, OptionValue], *, on_request: Callable[[str], None], io_timeout_s: float
    ) -> "S3Ufs":
        """The store of an s3:// URI with its parsed options; nothing is asked or read yet."""
        return cls(S3Settings.make(uri.authority, values, io_timeout_s), uri.prefix, on_request=on_request)

    def __repr__(self) -> str:
        return f"S3Ufs({self.bucket}/{self._prefix})"

    @property
    def bucket(self) -> str:
        return f"s3://{self._settings.bucket}"

    @property
    def checks_first(self) -> bool:
        return True

    # -- asking ---------------------------------------------------------------------------------------------------------------

    async def check(self) -> bool:
        clients = await self._connect()
        self._on_request("LIST")
        arguments = self._make_list_arguments("", max_entries=1)

        def ask() -> tuple[dict[str, Any], bool]:
            parsed: dict[str, Any] = {**clients.client.list_objects_v2(**arguments)}
            page = listing.parse_page(parsed[listing.PAGE_KEY], arguments["Prefix"], is_flat=False, token=None)
            return parsed, page.key_count > 0

        try:
            answer, found = await self._run(ask, self.bucket)
        except errors.NotFound:
            raise errors.StoreMissing("there is no such bucket, or no S3 server at the endpoint", subject=self.bucket) from None
        region = get_header(answer, "x-amz-bucket-region")
        if region and region != clients.region:
            raise errors.StoreMissing(
                f"the bucket is in the region {region}: set the option region={region}", subject=self.bucket
            )
        return found

    async def stat(self, key: str) -> StoreEntry:
        return self._make_stat(key, await self._head(key))

    def _make_stat(self, key: str, found: Any) -> StoreEntry:
        return StoreEntry(
            key.rpartition("/")[2],
            Kind.FILE,
            get_fingerprint(found, key),
            listing.get_time_ns(found["LastModified"]),
            archived=found.get("StorageClass") in listing.ARCHIVED,
        )

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        if prefix and not prefix.endswith("/"):
            raise errors.InvalidArgument("a directory's prefix ends in a slash", subject=prefix)
        return await self._list(self._make_list_arguments(prefix, max_entries), token)

    async def list_flat(self, prefix: str, token: str | None = None, *, after: str = "", max_entries: int = 1000) -> ListPage:
        arguments = self._make_list_arguments(prefix, max_entries)
        del arguments["Delimiter"]
        if after:
            arguments["StartAfter"] = arguments["Prefix"] + after
        return await self._list(arguments, token, after)

    async def _list(self, arguments: dict[str, Any], token: str | None, after: str = "") -> ListPage:
        clients = await self._connect()
        last = after or None
        if token is not None:
            arguments.pop("StartAfter", None)
            arguments["ContinuationToken"], last = listing.decode_token(token)

        def ask() -> listing.Answer:
            parsed: dict[str, Any] = {**clients.client.list_objects_v2(**arguments)}
            answer = listing.parse_page(
                parsed[listing.PAGE_KEY],
                arguments["Prefix"],
                is_flat="Delimiter" not in arguments,
                token=arguments.get("ContinuationToken"),
            )
            listing.check_order(answer, last, self.bucket)
            return answer

        self._on_request("LIST")
        try:
            answer = await self._run(ask, f"{self.bucket}/{arguments['Prefix']}")
        except errors.NotFound:
            raise errors.StoreMissing("there is no such bucket, or no S3 server at the endpoint", subject=self.bucket) from None
        entries = tuple(entry for entry in answer.entries if entry.kind is Kind.DIRECTORY or not is_probe(entry.name))
        if answer.continuation is None:
            return ListPage(entries, None)
        if answer.continuation == arguments.get("ContinuationToken"):
            raise errors.StoreProtocol("the store's listing goes on where it was, again and again", subject=self.bucket)
        end = answer.entries[-1].sort_name if answer.entries else last or ""
        return ListPage(entries, listing.encode_token(answer.continuation, end))

    # -- reading --------------------------------------------------------------------------------------------------------------

    def read(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        return self._read_version(key, fingerprint, offset, length, None)

    async def _read_version(
        self, key: str, fingerprint: Fingerprint, offset: int, length: int, version: str | None
    ) -> AsyncGenerator[memoryview, None]:
        """As `read`, of one version of the object; None: the newest."""
        if offset < 0 or length < 0 or offset + length > fingerprint.size:
            raise errors.InvalidArgument("the range lies outside of the content", subject=key)
        if length == 0:
            return
        clients = self._clients or await self._connect()
        full_key = self._prefix + key
        result = None
        if _is_plain(full_key):
            result = await self._start_read(clients, full_key, key, fingerprint, offset, length, version)
        if result is None:
            async with aclosing(self._read_by_boto(clients, full_key, key, fingerprint, offset, length, version)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        if length <= _SMALL_BYTES:
            yield await self._take_whole(result, key, length)
            return
        async with aclosing(self._take_chunks(result, key, length)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._connecting
        if self._clients is not None:
            self._clients.client.close()
        self._pool.close()

    async def _start_read(
        self,
        clients: S3Clients,
        full_key: str,
        key: str,
        fingerprint: Fingerprint,
        offset: int,
        length: int,
        version: str | None,
    ) -> "GetResult | None":
        """The answer's head, compared with what was asked; None where boto3 must say what went wrong."""
        self._on_request("GET")
        options: GetOptions = {"range": (offset, offset + length), "if_match": listing.add_quotes(fingerprint.token)}
        if version is not None:
            options["version"] = version
        start_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._settings.stall_s + 1):
                result = await obstore.get_async(clients.store, full_key, options=options)
        except PreconditionError:
            raise errors.Stale("the store holds another content by now", subject=key) from None
        except TimeoutError:
            raise self._make_stalled(key) from None
        except (BaseError, FileNotFoundError):
            # It has no status and no code. What took as long as a stall was one: repeating it would only take as long again.
            if asyncio.get_running_loop().time() - start_s >= self._settings.stall_s * 0.9:
                raise self._make_stalled(key) from None
            return None
        meta = result.meta
        if (
            result.range != (offset, offset + length)
            or meta["size"] != fingerprint.size
            or listing.strip_quotes(meta["e_tag"] or "") != fingerprint.token
        ):
            await self._explain(key, fingerprint, "the answer's range, size or ETag is not what was asked for", version)
        return result

    async def _take_whole(self, result: "GetResult", key: str, length: int) -> memoryview:
        try:
            async with asyncio.timeout(self._settings.io_timeout_s):
                data = memoryview(await result.bytes_async())
        except TimeoutError:
            raise self._make_stalled(key) from None
        except BaseError:
            raise errors.StoreUnavailable(
                "the connection to the store broke, or stalled, within the answer", subject=key
            ) from None
        if len(data) != length:
            raise errors.StoreProtocol(f"the answer has {len(data)} bytes instead of {length}", subject=key)
        return data

    async def _take_chunks(self, result: "GetResult", key: str, length: int) -> AsyncGenerator[memoryview, None]:
        loop = asyncio.get_running_loop()
        stream = result.stream(min_chunk_size=self._choose_chunk_bytes(length))
        got = 0
        waited_s = 0.0
        while True:
            start_s = loop.time()
            try:
                async with asyncio.timeout(self._settings.io_timeout_s):
                    chunk = memoryview(await anext(stream))
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise self._make_stalled(key) from None
            except BaseError:
                raise errors.StoreUnavailable(
                    "the connection to the store broke, or stalled, within the answer", subject=key
                ) from None
            waited_s += loop.time() - start_s
            got += len(chunk)
            if got > length:
                break
            yield chunk
        if got != length:
            raise errors.StoreProtocol(f"the answer has {got} bytes instead of {length}", subject=key)
        self._bytes_per_s = length / max(waited_s, 1e-6)

    def _choose_chunk_bytes(self, length: int) -> int:
        """By the speed of the request before: of one connection, as it was shared with others."""
        return max(_SMALL_BYTES, min(int(self._bytes_per_s * _CHUNK_S), _MAX_CHUNK_BYTES, length))

    async def _read_by_boto(
        self,
        clients: S3Clients,
        full_key: str,
        key: str,
        fingerprint: Fingerprint,
        offset: int,
        length: int,
        version: str | None,
    ) -> AsyncGenerator[memoryview, None]:
        self._on_request("GET")
        opened: Lent[Any] = Lent(_close_body)
        arguments: dict[str, Any] = {
            "Bucket": self._settings.bucket,
            "Key": full_key,
            "Range": f"bytes={offset}-{offset + length - 1}",
            "IfMatch": listing.add_quotes(fingerprint.token),
            **self._get_payer(),
            **_place_version(version),
        }

        def ask() -> Any:
            with opened.use(partial(clients.client.get_object, **arguments)) as answer:
                return answer

        try:
            try:
                answer = await self._run(ask, key)
            except errors.NotFound:
                raise errors.Stale("the object is no longer in the store", subject=key) from None
            except errors.StoreError as error:
                refusal = get_refusal(error.__cause__) if error.__cause__ else None
                if refusal and refusal.status == 416:
                    await self._explain(key, fingerprint, "the store does not have the range", version)
                raise
            if (
                answer["ResponseMetadata"]["HTTPStatusCode"] != 206
                or answer.get("ContentRange") != f"bytes {offset}-{offset + length - 1}/{fingerprint.size}"
                or answer.get("ContentLength") != length
                or listing.strip_quotes(answer.get("ETag", "")) != fingerprint.token
            ):
                problem = "the answer's status, range, length or ETag is not what was asked for"
                await self._explain(key, fingerprint, problem, version)
            got = 0
            while chunk := await self._run(partial(_read_body, opened, _SMALL_BYTES), key):
                got += len(chunk)
                yield memoryview(chunk)
            if got != length:
                raise errors.StoreProtocol(f"the answer has {got} bytes instead of {length}", subject=key)
        finally:
            opened.abandon()

    async def _explain(self, key: str, fingerprint: Fingerprint, problem: str, version: str | None) -> None:
        """Raises Stale where the store has another content by now, else StoreProtocol."""
        try:
            found = get_fingerprint(await self._head(key, version), key)
        except errors.NotFound:
            raise errors.Stale("the object is no longer in the store", subject=key) from None
        if found != fingerprint:
            raise errors.Stale("the store holds another content by now", subject=key)
        raise errors.StoreProtocol(problem, subject=key)

    # -- what all of them need --------------------------------------------------------------------------------------------------

    async def _head(self, key: str, version: str | None = None) -> Any:
        clients = await self._connect()
        if not key or "\0" in key or is_probe(key):
            raise errors.NotFound("no such object", subject=key)
        arguments: dict[str, Any] = {"Bucket": self._settings.bucket, "Key": self._prefix + key, **self._get_payer()}
        arguments |= _place_version(version)
        self._on_request("HEAD")
        return await self._run(partial(clients.client.head_object, **arguments), key)

    async def _connect(self) -> S3Clients:
        """The clients, made by the first call; callers share the attempt, and a failed one is made again by the next."""
        if self._clients is not None:
            return self._clients
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._run(partial(connect, self._settings, self._pool), self.bucket))
            self._connecting.add_done_callback(self._finish_connecting)
        return await asyncio.shield(self._connecting)

    def _finish_connecting(self, task: "asyncio.Task[S3Clients]") -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._clients = task.result()
            self._connected_s = task.get_loop().time()

    async def _run(self, call: Callable[[], T], subject: str, *, timeout_s: float | None = None) -> T:
        """A blocking call in a thread, its errors as ours."""
        try:
            return await self._pool.run(call, timeout_s=self._settings.io_timeout_s if timeout_s is None else timeout_s)
        except errors.AlluxioLikeError:
            raise
        except UnicodeEncodeError:
            raise errors.Unsupported("S3 has no keys that are not UTF-8", subject=repr(subject)) from None
        except Exception as error:
            endpoint = self._clients.endpoint if self._clients is not None else self._settings.endpoint
            converted = convert_error(error, subject, endpoint or "AWS S3")
            if isinstance(converted, errors.StoreDenied):
                self._doubt_credentials()
            raise converted from error

    def _doubt_credentials(self) -> None:
        """After a refusal: credentials may have been replaced under us, so the next call looks for them anew,
        but not with each of many refused calls."""
        age_s = asyncio.get_running_loop().time() - self._connected_s
        if not self._settings.has_fixed_keys and age_s >= self._settings.stall_s:
            self._clients = None

    def _make_list_arguments(self, prefix: str, max_entries: int) -> dict[str, Any]:
        return {
            "Bucket": self._settings.bucket,
            "Prefix": self._prefix + prefix,
            "Delimiter": "/",
            "MaxKeys": max(1, min(max_entries, 1000)),
            "EncodingType": "url",
            **self._get_payer(),
        }

    def _get_payer(self) -> dict[str, str]:
        return {"RequestPayer": "requester"} if self._settings.requester_pays else {}

    def _make_stalled(self, key: str) -> errors.StoreUnavailable:
        return errors.StoreUnavailable("the store stopped answering", subject=key)


def _place_version(version: str | None) -> dict[str, str]:
    return {} if version is None else {"VersionId": version}


def _close_body(answer: Any) -> None:
    answer["Body"].close()


def _read_body(answer: Lent[Any], size: int) -> bytes:
    with answer.use() as held:
        data: bytes = held["Body"].read(size)
        return data


def _is_plain(key: str) -> bool:
    """Whether obstore can express the key as it is: no empty component, no "." or "..", no control character (and what is not
    UTF-8 it cannot have at all). For others it asks for another key or refuses, tried with 0.12.1."""
    if key.isascii() and not key.isprintable():
        return False
    return all(part not in {"", ".", ".."} for part in key.split("/")) and (
        key.isascii() or all(char >= " " and char != "\x7f" and not "\ud800" <= char <= "\udfff" for char in key)
    )


def get_fingerprint(found: Any, key: str) -> Fingerprint:
    """Of what HEAD answered."""
    token = listing.strip_quotes(found.get("ETag", ""))
    if not token or "ContentLength" not in found:
        raise errors.StoreProtocol("the store's answer has no ETag or no length", subject=key)
    return Fingerprint(token, found["ContentLength"])


def get_header(answer: Any, name: str) -> str:
    return str(answer["ResponseMetadata"].get("HTTPHeaders", {}).get(name, ""))
