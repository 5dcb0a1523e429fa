"""Azure Blob Storage: a container, or what lies below a prefix of one, as a store.

A content is known by its ETag and size. Owns the requests of asking, and the order of listings: the service sorts by its own
rules (UTF-16, or component by component where the account has a hierarchical namespace), so a directory whose order differs
from that of bytes is listed whole and sorted here. Kept: the rest of a few such listings, and whether the container needs that
from the start. What is common with Google is in cloud.py, writing in az_writing.py. The same rule of concurrency.
"""

import itertools
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind, to_bytes
from alluxio_like.ufs import az_listing as listing
from alluxio_like.ufs.api import ListPage, StoreEntry
from alluxio_like.ufs.az_client import AzSettings, connect
from alluxio_like.ufs.cloud import PARTS, Clients, CloudUfs, check_prefix, make_reader
from alluxio_like.ufs.cloud_errors import convert_az
from alluxio_like.ufs.options import OptionValue
from alluxio_like.ufs.rest import Answer, Request, quote_component
from alluxio_like.ufs.uri import StoreUri

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

_KEPT_LISTINGS = 8
"""Listings that were sorted here and not yet delivered to their end; a guess."""
_MAX_PAGE = 5000
_GATHERED = "sorted:"


class AzUfs(CloudUfs):
    """`Ufs` on Azure Blob Storage."""

    def __init__(
        self, make_settings: Callable[[], AzSettings], prefix: str, *, on_request: Callable[[str], None], may_change: bool
    ) -> None:
        """`make_settings` reads the mount's options, with its secrets as they are now."""
        self._make_settings = make_settings
        self._settings = settings = make_settings()
        self._gathers = False
        self._gathered: OrderedDict[tuple[str, str], list[StoreEntry]] = OrderedDict()
        self._serials = itertools.count(1)
        super().__init__(settings.http, prefix, on_request=on_request, io_timeout_s=settings.io_timeout_s, may_change=may_change)

    @classmethod
    def open(
        cls, uri: StoreUri, values: Mapping[str, OptionValue], *, on_request: Callable[[str], None], io_timeout_s: float
    ) -> "AzUfs":
        """The store of an az:// URI with its parsed options; nothing is asked yet."""
        read, may_change = make_reader(uri.scheme, values)
        return cls(
            lambda: AzSettings.make(uri.authority, read(), io_timeout_s), uri.prefix, on_request=on_request, may_change=may_change
        )

    @property
    def bucket(self) -> str:
        return f"az://{self._settings.account}/{self._settings.container}"

    async def stat(self, key: str) -> StoreEntry:
        answer = await self._head(key)
        return make_entry(key, answer.headers)

    async def list_page(self, prefix: str, token: str | None = None, *, max_entries: int = 1000) -> ListPage:
        check_prefix(prefix)
        if token is not None and token.startswith(_GATHERED):
            return await self._go_on_sorted(prefix, token.removeprefix(_GATHERED), max_entries)
        if token is None and self._gathers:
            return self._start_sorted(prefix, await self._gather(prefix, None, []), max_entries)
        marker, last = listing.decode_token(token) if token is not None else (None, None)
        answer = await self._ask_page(prefix, marker, min(max_entries, _MAX_PAGE))
        is_ordered = listing.is_ordered(answer.entries, last)
        if answer.marker is not None and (listing.has_astral(answer.entries) or (not is_ordered and last is None)):
            # Up to here the order is that of bytes; what follows may belong before what this page has.
            self._gathers = self._gathers or not is_ordered
            return self._start_sorted(prefix, await self._gather(prefix, answer.marker, list(answer.entries)), max_entries)
        if not is_ordered:
            self._gathers = True  # so that the next attempt succeeds
            raise errors.StoreProtocol("the store lists in an order of its own: list again", subject=f"{self.bucket}/{prefix}")
        if answer.marker is None:
            return ListPage(answer.entries, None)
        end = answer.entries[-1].sort_name if answer.entries else last or ""
        return ListPage(answer.entries, listing.encode_token(answer.marker, end))

    # -- listings that are sorted here ----------------------------------------------------------------------------------------

    async def _gather(self, prefix: str, marker: str | None, entries: list[StoreEntry]) -> list[StoreEntry]:
        """The rest of a listing from `marker` on, with what came before, sorted."""
        while True:
            answer = await self._ask_page(prefix, marker, _MAX_PAGE)
            entries += answer.entries
            marker = answer.marker
            if marker is None:
                entries.sort(key=listing.get_order)
                return entries

    def _start_sorted(self, prefix: str, entries: list[StoreEntry], max_entries: int) -> ListPage:
        serial = str(next(self._serials))
        self._keep(prefix, serial, entries)
        return self._cut_page(prefix, serial, entries, 0, max_entries)

    async def _go_on_sorted(self, prefix: str, token: str, max_entries: int) -> ListPage:
        """Behind the last name delivered; what was kept and dropped meanwhile is asked for again."""
        serial, _, last = token.partition(":")
        entries = self._gathered.get((prefix, serial))
        if entries is None:
            entries = await self._gather(prefix, None, [])
            self._keep(prefix, serial, entries)
        return self._cut_page(
            prefix, serial, entries, bisect_right(entries, bytes.fromhex(last), key=listing.get_order), max_entries
        )

    def _keep(self, prefix: str, serial: str, entries: list[StoreEntry]) -> None:
        self._gathered[prefix, serial] = entries
        if len(self._gathered) > _KEPT_LISTINGS:
            self._gathered.popitem(last=False)

    def _cut_page(self, prefix: str, serial: str, entries: list[StoreEntry], start: int, max_entries: int) -> ListPage:
        page = tuple(entries[start : start + max_entries])
        if start + max_entries >= len(entries):
            self._gathered.pop((prefix, serial), None)
            return ListPage(page, None)
        return ListPage(page, f"{_GATHERED}{serial}:{to_bytes(page[-1].sort_name).hex()}")

    # -- requests -------------------------------------------------------------------------------------------------------------

    async def _ask_page(self, prefix: str, marker: str | None, max_entries: int) -> listing.Answer:
        full_prefix = self._prefix + prefix
        query = [("restype", "container"), ("comp", "list"), ("delimiter", "/"), ("include", "metadata")]
        query += [("maxresults", str(max(1, max_entries)))]
        query += [("prefix", full_prefix)] if full_prefix else []
        query += [("marker", marker)] if marker else []
        subject = f"{self.bucket}/{full_prefix}"
        try:
            answer = await self._ask("LIST", Request("GET", self._settings.path, query), subject)
        except errors.NotFound:
            raise errors.StoreMissing("there is no such container in the storage account", subject=self.bucket) from None
        page = listing.parse_page(answer.body, full_prefix, subject)
        if prefix:
            return page
        return listing.Answer(tuple(entry for entry in page.entries if entry.name != PARTS), page.marker)

    async def _head(self, key: str) -> Answer:
        """The answer to HEAD of a blob that is no directory's marker. Raises NotFound."""
        if not key or "\0" in key or key.endswith("/"):
            raise errors.NotFound("no such blob", subject=key)
        answer = await self._ask("HEAD", Request("HEAD", self._make_path(key)), key)
        if answer.headers.get("x-ms-meta-hdi_isfolder", "").lower() == "true":
            raise errors.NotFound("a directory, not a file", subject=key)
        return answer

    def _make_path(self, key: str) -> str:
        """The blob's path. Slashes are encoded as well: so `.` and `..` among its components are nothing special to anybody."""
        return f"{self._settings.path}/{quote_component(self._prefix + key)}"

    # -- for CloudUfs ---------------------------------------------------------------------------------------------------------

    def _open_clients(self) -> Clients:
        if self._may_change:
            self._settings = self._make_settings()
        return connect(self._settings, self._pool)

    def _make_condition(self, fingerprint: Fingerprint) -> "GetOptions":
        return {"if_match": add_quotes(fingerprint.token)}

    def _get_identity(self, meta: "ObjectMeta") -> str:
        return listing.strip_quotes(meta["e_tag"] or "")

    def _make_read(self, full_key: str, fingerprint: Fingerprint, offset: int, length: int) -> Request:
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "If-Match": add_quotes(fingerprint.token)}
        return Request("GET", f"{self._settings.path}/{quote_component(full_key)}", (), headers)

    def _get_read_identity(self, headers: dict[str, str]) -> str:
        return listing.strip_quotes(headers.get("etag", ""))

    def _make_error(self, answer: Answer, subject: str) -> errors.AlluxioLikeError:
        return convert_az(answer, subject)


def make_entry(key: str, headers: Mapping[str, str]) -> StoreEntry:
    """The entry of a blob by the headers of an answer. Raises StoreProtocol."""
    try:
        token = listing.strip_quotes(headers["etag"])
        return StoreEntry(
            key.rpartition("/")[2],
            Kind.FILE,
            Fingerprint(token, int(headers["content-length"])),
            listing.get_time_ns(headers["last-modified"]),
            archived=headers.get("x-ms-access-tier") == "Archive",
        )
    except (LookupError, ValueError):
        raise errors.StoreProtocol("the store's answer has no ETag, length or time", subject=key) from None


def add_quotes(token: str) -> str:
    """A fingerprint's token as an ETag."""
    return f'"{token}"'
