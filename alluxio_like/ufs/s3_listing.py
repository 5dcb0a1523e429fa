"""Pages of an S3 listing.

Owns the reading of ListObjectsV2's answer and of our own page tokens. boto3's general parser takes 100 ms of CPU for a thousand
keys; this one, put before it through boto3's own event, 11 (measured on two cores, Python 3.11). Pure functions over bytes; safe
from any thread.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind, to_bytes, to_str
from alluxio_like.ufs.api import StoreEntry

PAGE_KEY = "AlluxioLikePage"
ARCHIVED = {"GLACIER", "DEEP_ARCHIVE"}
"""Storage classes whose objects must be asked back (Glacier Instant Retrieval is not one)."""
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|&#(?:x0*(?:[0-8bBcCeEfF]|1[0-9a-fA-F])|0*(?:[0-8]|1[124-9]|2[0-9]|3[01]));")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request brought: entries in the order of the bytes of their sort names, and where the store goes on."""

    entries: tuple[StoreEntry, ...]
    continuation: str | None
    key_count: int


def before_parse(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_others: object) -> None:
    """boto3's event before-parse of ListObjectsV2: takes the page out, so that there is next to nothing left to parse.

    An answer that is none is left to boto3, whose own parser then says so.
    """
    body = response_dict["body"]
    if response_dict["status_code"] != 200 or b"<ListBucketResult" not in body[:400]:
        return
    if not body.rstrip().endswith(b"ListBucketResult>"):  # the connection broke
        return
    customized_response_dict[PAGE_KEY] = body
    response_dict["body"] = b"<ListBucketResult/>"


def drop_control_characters(response_dict: dict[str, Any], **_others: object) -> None:
    """boto3's event before-parse, of answers that repeat a key: XML has no way to say these characters, and servers say them all
    the same. What is wanted of the answer is not the key."""
    response_dict["body"] = _CONTROL.sub(b"?", response_dict["body"])


def parse_keys(body: bytes) -> list[str]:
    """All keys of a listing without a delimiter. Raises StoreProtocol."""
    try:
        root = _parse(body)
        tag = root.tag[: root.tag.rfind("}") + 1]
        is_encoded = (root.findtext(f"{tag}EncodingType") or "") == "url"
        return [to_str(_get_name(found.findtext(f"{tag}Key"), b"", is_encoded)) for found in root.iterfind(f"{tag}Contents")]
    except (ElementTree.ParseError, ValueError) as error:
        raise errors.StoreProtocol("the store's listing was not understood") from error


def parse_page(body: bytes, prefix: str, *, is_flat: bool = False, token: str | None = None) -> Answer:
    """Entries below `prefix` (the whole key prefix that was asked for); `is_flat`: asked without a delimiter, see
    ufs.api.FlatUfs; `token`: the store's own that was asked with. Raises StoreProtocol, also for the answer to another
    question."""
    try:
        root = _parse(body)
        space = root.tag.rpartition("}")[0]
        tag = f"{space}}}" if space else ""
        is_encoded = (root.findtext(f"{tag}EncodingType") or "") == "url"
        raw_prefix = to_bytes(prefix)
        entries: list[tuple[bytes, StoreEntry]] = []
        for found in root.iterfind(f"{tag}Contents"):
            name = _get_name(found.findtext(f"{tag}Key"), raw_prefix, is_encoded)
            if name.endswith(b"/") and is_flat:
                entries.append((name, StoreEntry(to_str(name[:-1]), Kind.DIRECTORY)))
            elif name and not name.endswith(b"/"):
                entries.append((name, _make_file(name, {child.tag[len(tag) :]: child.text for child in found})))
        for found in root.iterfind(f"{tag}CommonPrefixes"):
            if is_flat:
                raise ValueError("prefixes in a listing of keys")
            name = _get_name(found.findtext(f"{tag}Prefix"), raw_prefix, is_encoded)
            entries.append((name, StoreEntry(to_str(name[:-1]), Kind.DIRECTORY)))
        _check_question(root, tag, prefix, token)
        is_truncated = {"true": True, "false": False}[root.findtext(f"{tag}IsTruncated") or ""]
        continuation = root.findtext(f"{tag}NextContinuationToken")
    except (ElementTree.ParseError, ValueError, KeyError, TypeError) as error:
        raise errors.StoreProtocol("the store's listing was not understood", subject=prefix) from error
    if is_truncated and not continuation:
        raise errors.StoreProtocol("the store's listing ends without an end", subject=prefix)
    entries.sort(key=_get_sort_key)
    return Answer(tuple(entry for _, entry in entries), continuation if is_truncated else None, len(entries))


def _check_question(root: ElementTree.Element, tag: str, prefix: str, token: str | None) -> None:
    """Stores repeat in the answer what they were asked: where that is something else, a proxy or a server has mixed up answers,
    and what is not in this one is not absent."""
    for name, asked in (("Prefix", prefix), ("ContinuationToken", token or "")):
        said = root.findtext(f"{tag}{name}", asked)
        may_be = (said, to_str(unquote_to_bytes(said.replace("+", " "))))
        if (said or name == "Prefix") and asked.isprintable() and asked not in may_be:
            raise ValueError(f"the answer is for another {name}")


def _parse(body: bytes) -> ElementTree.Element:
    """A listing. Its keys are encoded; the prefix that it repeats may not be, and may have what XML cannot say."""
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError:
        root = ElementTree.fromstring(_CONTROL.sub(b"?", body))
        if root.findtext("{*}EncodingType") != "url":
            raise
        return root


def _get_sort_key(item: tuple[bytes, StoreEntry]) -> bytes:
    return item[0]


def _get_name(text: str | None, raw_prefix: bytes, is_encoded: bool) -> bytes:
    """The bytes behind the prefix; a directory's with its slash."""
    if text is None:
        raise ValueError("an entry without a key")
    if is_encoded:
        key = unquote_to_bytes(text.replace("+", " ")) if "%" in text or "+" in text else text.encode()
    else:
        key = to_bytes(text)
    if not key.startswith(raw_prefix):
        raise ValueError("a key without the prefix asked for")
    return key[len(raw_prefix) :]


def _make_file(name: bytes, fields: dict[str, str | None]) -> StoreEntry:
    token = strip_quotes(fields["ETag"] or "")
    if not token:
        raise ValueError("an object without an ETag")
    modified = fields.get("LastModified")
    return StoreEntry(
        to_str(name),
        Kind.FILE,
        Fingerprint(token, int(fields["Size"] or "")),
        get_time_ns(datetime.fromisoformat(modified)) if modified else 0,
        archived=fields.get("StorageClass") in ARCHIVED,
    )


def get_time_ns(moment: datetime) -> int:
    """Nanoseconds since the epoch, without the rounding of floating point."""
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def strip_quotes(etag: str) -> str:
    """An ETag as a fingerprint's token."""
    return etag[1:-1] if len(etag) >= 2 and etag[0] == etag[-1] == '"' else etag


def add_quotes(token: str) -> str:
    """A fingerprint's token as an ETag."""
    return token if token.startswith(("W/", '"')) else f'"{token}"'


def encode_token(continuation: str, last: str) -> str:
    """Our page token: where the store goes on, and the last sort name that was delivered."""
    return json.dumps([continuation, last])


def decode_token(token: str) -> tuple[str, str]:
    """The reverse. Raises InvalidArgument."""
    try:
        continuation, last = json.loads(token)
    except ValueError:
        raise errors.InvalidArgument("not a token of a listing", subject=token) from None
    return str(continuation), str(last)


def check_order(answer: Answer, last: str | None, bucket: str) -> None:
    """Raises StoreProtocol unless the page goes on behind `last`, strictly ascending.

    A listing in another order (S3's directory buckets have none) would make the namespace take names for removed.
    """
    before = to_bytes(last) if last is not None else None
    for entry in answer.entries:
        name = to_bytes(entry.sort_name)
        if before is not None and name <= before:
            raise errors.StoreProtocol("the store does not list in the order of names, as it must", subject=bucket)
        before = name
