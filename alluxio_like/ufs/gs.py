"""Google Cloud Storage: a bucket, or what lies below a prefix of one, as a store.

A content is known by its generation, which listings, answers and conditions all speak of (the ETag of the JSON API is another
than that of a read, and changes with the metadata). A read names the generation, so on a bucket that keeps versions an open file
can be read to its end after it was replaced. Owns the requests of asking; what is common with Azure is in cloud.py, writing in
gs_writing.py. The same rule of concurrency.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind, to_bytes
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.cloud import PARTS, Clients, CloudUfs, check_prefix, make_reader
from alluxio_like.ufs.cloud_errors import convert_gs
from alluxio_like.ufs.gs_client import AS_STORED, GsSettings, connect
from alluxio_like.ufs.options import OptionValue
from alluxio_like.ufs.rest import Answer, Request, quote_component
from alluxio_like.ufs.uri import StoreUri

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta


class GsUfs(CloudUfs):
    """`Ufs` and `VersionedUfs` on Google Cloud Storage."""

    def __init__(
        self, make_settings: Callable[[], GsSettings], prefix: str, *, on_request: Callable[[str], None], may_change: bool
    ) -> None:
        """`make_settings` reads the mount's options, with its secrets as they are now."""
        self._make_settings = make_settings
        self._settings = settings = make_settings()
        super().__init__(settings.http, prefix, on_request=on_request, io_timeout_s=settings.io_timeout_s, may_change=may_change)

    @classmethod
    def open(
        cls, uri: StoreUri, values: Mapping[str, OptionValue], *, on_request: Callable[[str], None], io_timeout_s: float
    ) -> "GsUfs":
        """The store of a gs:// URI with its parsed options; nothing is asked or read yet."""
        read, may_change = make_reader(uri.scheme, values)
        return cls(
            lambda: GsSettings.make(uri.authority, read(), io_timeout_s), uri.prefix, on_request=on_request, may_change=may_change
        )

    @property
    def bucket(self) -> str:
        return f"gs://{self._settings.bucket}"

    async def stat(self, key: str) -> StoreEntry:
        return make_entry(key.rpartition("/")[2], await self._get_object(key, "name,generation,size,updated"), key)

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        check_prefix(prefix)
        full_prefix = self._prefix + prefix
        query = [("fields", "prefixes,nextPageToken,items(name,generation,size,updated)"), ("delimiter", "/")]
        query += [("prefix", full_prefix), ("maxResults", str(max(1, min(max_entries, 1000))))]
        last: str | None = None
        if token is not None:
            continuation, last = _decode_token(token)
            query.append(("pageToken", continuation))
        try:
            answer = await self._ask("LIST", Request("GET", self._make_path(None), query), f"{self.bucket}/{full_prefix}")
        except errors.NotFound:
            raise errors.StoreMissing("there is no such bucket", subject=self.bucket) from None
        entries, next_token = _parse_page(answer.body, full_prefix, last, self.bucket)
        if not prefix:
            entries = [entry for entry in entries if entry.name != PARTS]
        if next_token is None:
            return ListPage(tuple(entries), None)
        end = entries[-1].sort_name if entries else last or ""
        return ListPage(tuple(entries), json.dumps([next_token, end]))

    # -- older versions -------------------------------------------------------------------------------------------------------

    async def keeps_versions(self) -> bool:
        path = f"/storage/v1/b/{quote_component(self._settings.bucket)}"
        answer = await self._ask("HEAD", Request("GET", path, [("fields", "versioning")]), self.bucket)
        versioning = parse_object(answer.body, self.bucket).get("versioning")
        return isinstance(versioning, dict) and versioning.get("enabled") is True

    def read_kept(self, key: str, fingerprint: Fingerprint, offset: int, length: int) -> AsyncIterator[memoryview]:
        return self.read(key, fingerprint, offset, length)  # which names the generation

    # -- requests -------------------------------------------------------------------------------------------------------------

    def _make_path(self, key: str | None, before: str = "", after: str = "") -> str:
        """The JSON API's path of the object at `key` below the mount's root, or of all objects (None)."""
        path = f"{before}/storage/v1/b/{quote_component(self._settings.bucket)}/o"
        return path if key is None else f"{path}/{quote_component(self._prefix + key)}{after}"

    async def _get_object(self, key: str, fields: str) -> dict[str, Any]:
        """The object's resource. Raises NotFound."""
        if not key or "\0" in key or self._prefix + key in {".", ".."}:
            raise errors.NotFound("no such object", subject=key)
        answer = await self._ask("HEAD", Request("GET", self._make_path(key), [("fields", fields)]), key)
        return parse_object(answer.body, key)

    # -- for CloudUfs ---------------------------------------------------------------------------------------------------------

    def _open_clients(self) -> Clients:
        if self._may_change:
            self._settings = self._make_settings()
        return connect(self._settings, self._pool)

    def _make_condition(self, fingerprint: Fingerprint) -> "GetOptions":
        return {"version": fingerprint.token}

    def _get_identity(self, meta: "ObjectMeta") -> str:
        return meta["version"] or ""

    def _make_read(self, full_key: str, fingerprint: Fingerprint, offset: int, length: int) -> Request:
        # The XML API: unlike the JSON API it tells a bucket that is not there from an object that is not there.
        path = f"/{quote_component(self._settings.bucket)}/{quote_component(full_key)}"
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", **AS_STORED}
        return Request("GET", path, [("generation", fingerprint.token)], headers)

    def _get_read_identity(self, headers: dict[str, str]) -> str:
        return headers.get("x-goog-generation", "")

    def _make_error(self, answer: Answer, subject: str) -> errors.AlluxioLikeError:
        return convert_gs(answer, subject)


def parse_object(body: bytes, subject: str) -> dict[str, Any]:
    """An object's resource. Raises StoreProtocol."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise errors.StoreProtocol("the store's answer was not understood", subject=subject)
    return found


def make_entry(name: str, found: dict[str, Any], subject: str) -> StoreEntry:
    """The entry of an object's resource. Raises StoreProtocol."""
    try:
        generation = found["generation"]
        if not isinstance(generation, str) or not generation.isdigit():
            raise ValueError("no generation")
        # Rewriting the metadata moves it, too; the generation alone says whether the content is another.
        return StoreEntry(name, Kind.FILE, Fingerprint(generation, int(found["size"])), get_time_ns(found["updated"]))
    except (LookupError, ValueError, TypeError):
        raise errors.StoreProtocol("the store's answer has no generation, size or time", subject=subject) from None


def get_time_ns(text: str) -> int:
    """Nanoseconds since the epoch, without the rounding of floating point."""
    moment = datetime.fromisoformat(text)
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def _decode_token(token: str) -> tuple[str, str]:
    try:
        continuation, last = json.loads(token)
    except ValueError:
        raise errors.InvalidArgument("not a token of a listing", subject=token) from None
    return str(continuation), str(last)


def _parse_page(body: bytes, full_prefix: str, last: str | None, subject: str) -> tuple[list[StoreEntry], str | None]:
    """The entries in the order of the bytes of their sort names, and where the store goes on. Raises StoreProtocol."""
    found = parse_object(body, subject)
    try:
        # What ends in a slash comes back as a prefix; the prefix's own marker comes as an item without a name.
        items = [(item["name"], item) for item in found.get("items", ())]
        prefixes = list(found.get("prefixes", ()))
        if not all(name.startswith(full_prefix) for name in [*prefixes, *(name for name, _ in items)]):
            raise ValueError("a key without the prefix asked for")
        next_token = found.get("nextPageToken")
    except (LookupError, ValueError, TypeError, AttributeError):
        raise errors.StoreProtocol("the store's listing was not understood", subject=subject) from None
    skip = len(full_prefix)
    entries = [make_entry(name[skip:], item, subject) for name, item in items if name[skip:] and not name.endswith("/")]
    entries += [StoreEntry(text[skip:-1], Kind.DIRECTORY) for text in prefixes]
    entries.sort(key=lambda entry: to_bytes(entry.sort_name))
    before = to_bytes(last) if last is not None else None
    for entry in entries:
        name = to_bytes(entry.sort_name)
        if before is not None and name <= before:
            raise errors.StoreProtocol("the store does not list in the order of names, as it must", subject=subject)
        before = name
    return entries, str(next_token) if next_token else None
