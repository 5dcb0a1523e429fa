"""Pages of an Azure listing.

Owns the reading of List Blobs' answer, its order, and our own page tokens. Pure functions over bytes; safe from any thread.
"""

import json
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from xml.etree import ElementTree

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind, to_bytes, to_str
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.az_client import unquote_name


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request brought: entries in the order of the bytes of their sort names, and where the store goes on."""

    entries: tuple[StoreEntry, ...]
    marker: str | None


def parse_page(body: bytes, prefix: str, subject: str) -> Answer:
    """Entries below `prefix` (the whole name prefix that was asked for). Raises StoreProtocol."""
    try:
        root = ElementTree.fromstring(body)
        if root.tag != "EnumerationResults":
            raise ValueError("not a listing")
        found = root.find("Blobs")
        entries = [entry for child in found if (entry := _make_entry(child, prefix)) is not None] if found is not None else []
        marker = root.findtext("NextMarker")
    except (ElementTree.ParseError, ValueError, TypeError) as error:
        raise errors.StoreProtocol("the store's listing was not understood", subject=subject) from error
    entries.sort(key=get_order)
    return Answer(tuple(entries), marker or None)


def get_order(entry: StoreEntry) -> bytes:
    """What entries are ordered by."""
    return to_bytes(entry.sort_name)


def _make_entry(child: ElementTree.Element, prefix: str) -> StoreEntry | None:
    """A blob or a prefix; None for what is not shown: the prefix's own marker, and a directory's marker beside it (HDFS clients
    write one without a slash, and accounts with a hierarchical namespace show every directory so)."""
    name = _get_name(child)
    if not name.startswith(prefix):
        raise ValueError("a name without the prefix asked for")
    name = name[len(prefix) :]
    if child.tag == "BlobPrefix":
        return StoreEntry(name.removesuffix("/"), Kind.DIRECTORY)
    properties = child.find("Properties")
    if properties is None:
        raise ValueError("a blob without properties")
    if not name or name.endswith("/") or properties.findtext("ResourceType") == "directory":
        return None
    if (child.findtext("Metadata/hdi_isfolder") or child.findtext("Metadata/Hdi_isfolder") or "").lower() == "true":
        return None
    token = strip_quotes(properties.findtext("Etag") or "")
    if not token:
        raise ValueError("a blob without an ETag")
    modified = properties.findtext("Last-Modified")
    return StoreEntry(
        name,
        Kind.FILE,
        Fingerprint(token, int(properties.findtext("Content-Length") or "")),
        get_time_ns(modified) if modified else 0,
        archived=properties.findtext("AccessTier") == "Archive",
    )


def _get_name(child: ElementTree.Element) -> str:
    found = child.find("Name")
    if found is None or found.text is None:
        raise ValueError("an entry without a name")
    return unquote_name(found.text) if found.get("Encoded") == "true" else to_str(to_bytes(found.text))


def get_time_ns(text: str) -> int:
    """Nanoseconds since the epoch; Azure knows whole seconds."""
    return int(parsedate_to_datetime(text).timestamp()) * 1_000_000_000


def strip_quotes(etag: str) -> str:
    """An ETag as a fingerprint's token: listings have it without quotes, answers with them."""
    return etag[1:-1] if len(etag) >= 2 and etag[0] == etag[-1] == '"' else etag


def is_ordered(entries: tuple[StoreEntry, ...], last: str | None) -> bool:
    """Whether the entries go on behind `last`, strictly ascending."""
    before = to_bytes(last) if last is not None else None
    for entry in entries:
        name = get_order(entry)
        if before is not None and name <= before:
            return False
        before = name
    return True


def has_astral(entries: tuple[StoreEntry, ...]) -> bool:
    """Whether a name has a character beyond U+FFFF. In UTF-16, which the store may sort by, those come before U+E000 to U+FFFF,
    in bytes of UTF-8 behind."""
    return any(not entry.name.isascii() and max(entry.name) > "\uffff" for entry in entries)


def encode_token(marker: str, last: str) -> str:
    """Our page token: where the store goes on, and the last sort name that was delivered."""
    return json.dumps([marker, last])


def decode_token(token: str) -> tuple[str, str]:
    """The reverse. Raises InvalidArgument."""
    try:
        marker, last = json.loads(token)
    except ValueError:
        raise errors.InvalidArgument("not a token of a listing", subject=token) from None
    return str(marker), str(last)
