"""Paths, the order of names in a directory, and how names are shown that a file system cannot show.

Owns three mappings: an absolute path to its components; a sort name (the raw name, with a slash behind a directory's: the order
in which stores list) to the part of a key it is filed under; a raw name to the one shown, and back.

A store's name may be empty, ".", "..", hold NUL, be longer than 255 bytes, or name a file and a directory at once. Such a name is
shown as its percent-escaped self, then "%~", then "file" for the file of the two, or a hash where that would be too long. Names
that look like this already are escaped too, so no two ever collide. Pure functions, safe from any thread.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b

from alluxio_like import errors
from alluxio_like.types import Kind, to_bytes

NAME_MAX_BYTES = 255
_EXACT_BYTES = 470
_HASH_BYTES = 32
HASHED_BYTES = _EXACT_BYTES + _HASH_BYTES
"""Length of a filed name that does not tell the sort name; no other filed name is as long. With the 9 bytes before it: 511."""

_MARK = b"%~"
_FILE = b"file"
_SHOWN_HASH_BYTES = 16
_STEM_BYTES = 200
_ESCAPED = re.compile(rb"(?P<stem>.*)%~(?P<tag>file|[0-9a-f]{32}|)", re.DOTALL)
_UNQUOTE = re.compile(rb"%(25|00|2E)")


def split_path(path: str) -> tuple[str, ...]:
    """The components of an absolute path; "." and repeated slashes drop out.

    Raises InvalidArgument (relative, "..", NUL) and NameTooLong.
    """
    if not path.startswith("/"):
        raise errors.InvalidArgument("a path must be absolute, beginning with /", subject=path)
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    for part in parts:
        if part == ".." or "\0" in part:
            raise errors.InvalidArgument("a path must not contain .. or NUL", subject=path)
        if len(to_bytes(part)) > NAME_MAX_BYTES:
            raise errors.NameTooLong(f"a name has at most {NAME_MAX_BYTES} bytes", subject=path)
    return parts


def join_path(parts: tuple[str, ...]) -> str:
    """The absolute path of components."""
    return "/" + "/".join(parts)


def file_name(sort_name: bytes) -> bytes:
    """What a sort name is filed under: itself, or its beginning and a hash if it is too long for a key.

    Order is kept between names that differ in their first 470 bytes; those that do not lie side by side, in any order.
    """
    if len(sort_name) <= _EXACT_BYTES:
        return sort_name
    return sort_name[:_EXACT_BYTES] + blake2b(sort_name, digest_size=_HASH_BYTES).digest()


def get_bounds(after: bytes | None, upto: bytes | None) -> tuple[bytes, bytes | None]:
    """Filed names from the first to below the second hold all sort names above `after` (None: all) and up to `upto` (None: all).

    The range may hold some more, all of them hashed: whoever scans it compares the sort names of those.
    """
    # Of a name that is filed with a hash the beginning alone: all that share it follow, and what is just the beginning does not.
    low = after[:_EXACT_BYTES] + b"\0" if after is not None else b""
    if upto is None:
        return low, None
    return low, upto + b"\0" if len(upto) <= _EXACT_BYTES else upto[:_EXACT_BYTES] + b"\xff" * (_HASH_BYTES + 1)


def is_odd(raw: bytes) -> bool:
    """Whether a raw name is never shown as it is."""
    return (
        raw in {b"", b".", b".."} or len(raw) > NAME_MAX_BYTES or b"\0" in raw or (_MARK in raw and bool(_ESCAPED.fullmatch(raw)))
    )


def needs_index(raw: bytes) -> bool:
    """Whether a raw name may be shown with a hash, so that it can be found by an index only."""
    marked = NAME_MAX_BYTES - len(_MARK) - len(_FILE)
    return 3 * len(raw) > marked and len(_quote(raw)) > marked


def is_plain(raw: bytes) -> bool:
    """Whether a raw name is shown as it is and found without an index, told quickly: False also for some that are."""
    return 2 < len(raw) <= PLAIN_BYTES and b"%" not in raw and b"\0" not in raw


PLAIN_BYTES = (NAME_MAX_BYTES - len(_MARK) - len(_FILE)) // 3
"""Names up to this length need no index, whatever they are made of."""


def get_shown_hash(raw: bytes, kind: Kind) -> bytes:
    """What the index finds a name by."""
    return blake2b(raw + b"/" if kind is Kind.DIRECTORY else raw, digest_size=_SHOWN_HASH_BYTES).digest()


def show_name(raw: bytes, kind: Kind, shadowed: bool) -> bytes:
    """The name under which a directory's child is shown; `shadowed`: a file beside a directory of the same name."""
    if not shadowed and not is_odd(raw):
        return raw
    quoted = _quote(raw)
    shown = quoted + _MARK + (_FILE if shadowed else b"")
    if len(shown) <= NAME_MAX_BYTES:
        return shown
    return _cut(quoted) + _MARK + get_shown_hash(raw, kind).hex().encode()


@dataclass(frozen=True, slots=True)
class ShownName:
    """What a shown name says: a raw name (`shadowed`: of the file beside a directory), or the hash to find it by."""

    raw: bytes | None
    shadowed: bool = False
    shown_hash: bytes = b""


def read_name(shown: bytes) -> ShownName:
    """The only raw name that may be shown like this; whether it is, `show_name` of what is found tells."""
    match = _ESCAPED.fullmatch(shown) if _MARK in shown else None
    if match is None:
        return ShownName(shown)
    tag = match["tag"]
    if tag not in (b"", _FILE):
        return ShownName(None, shown_hash=bytes.fromhex(tag.decode()))
    raw = _UNQUOTE.sub(lambda found: bytes.fromhex(found[1].decode()), match["stem"])
    return ShownName(raw, shadowed=tag == _FILE)


def _quote(raw: bytes) -> bytes:
    if raw in {b".", b".."}:
        return raw.replace(b".", b"%2E")
    return raw.replace(b"%", b"%25").replace(b"\0", b"%00")


def _cut(quoted: bytes) -> bytes:
    """The beginning of a long name, not ending within a UTF-8 character if it is any."""
    stem = quoted[:_STEM_BYTES]
    for back in range(4):
        try:
            stem[: _STEM_BYTES - back].decode()
        except UnicodeDecodeError:
            continue
        return stem[: _STEM_BYTES - back]
    return stem
