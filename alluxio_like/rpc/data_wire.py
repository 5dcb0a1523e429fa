"""The data socket's protocol: what two ends of a connection say to each other around the bytes that `sendfile` moves.

    caller → server   Hello, then any number of Read, Fill, Cancel, BadPage
    server → caller   Welcome, then for each Read any number of Data and Waited, for each Fill any number of Filled; the last of
                      them says so, or is an Error

Replies to different reads come in any order, those to one read in the order of the file. A reply is a head, the checksums of the
pages in it if it consists of whole pages, and then the bytes themselves. Numbers are little-endian.

Owns the format of these messages; packs and parses, pure functions without I/O. Safe from any thread. What cannot be parsed
raises `Malformed`: the connection is of no more use then.
"""

import json
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from alluxio_like.errors import AlluxioLikeError, make_error
from alluxio_like.rpc.messages import Filled, FilledPages
from alluxio_like.types import (
    PAGE_BYTES,
    FileRef,
    Fingerprint,
    InodeId,
    MountId,
    PageRange,
    VersionId,
    WorkerId,
    to_bytes,
    to_str,
)
from alluxio_like.waits import Seconds

PROTOCOL = 1
"""The version that this program speaks. Another one is refused in the Welcome, and the caller uses gRPC."""

MAGIC = b"AlxlData"
MAX_READ_BYTES = 64 << 20
"""Longest range of one Read."""
MAX_FRAME_BYTES = 4 << 20
"""Most bytes behind one head."""
_MAX_TEXT = 1 << 10
_MAX_REF_BYTES = 1 << 16

_HELLO = struct.Struct("<8sHHHH")
_WELCOME = struct.Struct("<8sHHH")
_CALL = struct.Struct("<BBHIQII")
_REPLY = struct.Struct("<BBHIQI")
_REF = struct.Struct("<QQQQBHH")

HELLO_BYTES = _HELLO.size
WELCOME_BYTES = _WELCOME.size
CALL_BYTES = _CALL.size
REPLY_BYTES = _REPLY.size

_FILLED = struct.Struct("<BIQH6d")
_RUN = struct.Struct("<QI")
_WAITED = struct.Struct("<6d")
_MAX_FILLED_BYTES = 1 << 20

_PINNED = 1
_MORE = 2
"""Of a content: whether it is pinned, and whether more follows its key."""
_CACHED_ONLY = 1
_LAST = 1
_PRIORITY_SHIFT = 4


class Malformed(Exception):
    """Bytes that are no message of this protocol."""


class Kind(IntEnum):
    """What a message is; the numbers are those of the wire."""

    READ = 1
    CANCEL = 2
    BAD_PAGE = 3
    DATA = 4
    ERROR = 5
    FILL = 6
    FILLED = 7
    WAITED = 8


@dataclass(frozen=True, slots=True)
class Hello:
    """Who the caller believes to be talking to. `nonce`: what that worker told the master, and the master its callers."""

    cluster_id: str
    worker_id: str
    nonce: str


class Welcome(NamedTuple):
    """The answer to a Hello: `refusal` empty when the caller may go on. `text_bytes` of the refusal follow the head."""

    protocol: int
    accepted: bool
    text_bytes: int


class Call(NamedTuple):
    """A Read, Fill, Cancel or BadPage; `ref_bytes` of an encoded FileRef follow it. `offset` of a BadPage is the page's number.

    `ahead`: bytes from `offset` on that the caller is about to read, this read's included: what a store is asked for at once.
    """

    kind: int
    request_id: int
    offset: int
    length: int
    ahead: int
    priority: int
    cached_only: bool
    ref_bytes: int


class Reply(NamedTuple):
    """The head of a reply: `sums` checksums of 8 bytes, then `length` bytes."""

    kind: int
    request_id: int
    offset: int
    length: int
    sums: int
    last: bool


# The beginning.


def pack_hello(hello: Hello, protocol: int = PROTOCOL) -> bytes:
    """What a caller sends first."""
    texts = [text.encode()[:_MAX_TEXT] for text in (hello.cluster_id, hello.worker_id, hello.nonce)]
    return _HELLO.pack(MAGIC, protocol, *map(len, texts)) + b"".join(texts)


def parse_hello_head(data: bytes | bytearray | memoryview) -> tuple[int, tuple[int, int, int]]:
    """(protocol, lengths of the three texts that follow) from the first HELLO_BYTES. Of another protocol only it counts."""
    magic, protocol, *lengths = _HELLO.unpack(data)
    if magic != MAGIC:
        raise Malformed("not a caller of the data socket")
    if protocol == PROTOCOL and max(lengths) > _MAX_TEXT:
        raise Malformed("a name in the hello is too long")
    return protocol, (lengths[0], lengths[1], lengths[2])


def parse_hello_texts(data: bytes, lengths: tuple[int, int, int]) -> Hello:
    """The rest of a Hello."""
    first, second, third = lengths
    if len(data) != first + second + third:
        raise Malformed("a hello of another length than it says")
    try:
        texts = data.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed("names in the hello are not ASCII") from None
    return Hello(texts[:first], texts[first : first + second], texts[first + second :])


def pack_welcome(refusal: str = "") -> bytes:
    """What a server answers; with a refusal it closes the connection after it."""
    text = refusal.encode("ascii", "replace")[:_MAX_TEXT]
    return _WELCOME.pack(MAGIC, PROTOCOL, int(not refusal), len(text)) + text


def parse_welcome(data: bytes | bytearray | memoryview) -> Welcome:
    """The first WELCOME_BYTES of the answer."""
    magic, protocol, accepted, length = _WELCOME.unpack(data)
    if magic != MAGIC or accepted > 1 or length > _MAX_TEXT:
        raise Malformed("not the data socket of a worker")
    return Welcome(protocol, bool(accepted), length)


# Calls.


def encode_ref(ref: FileRef) -> bytes:
    """A content as it stands in a Read. Raises Malformed for a key that is too long to be one."""
    token, key = to_bytes(ref.fingerprint.token), to_bytes(ref.key)
    if len(token) + len(key) + _REF.size >= _MAX_REF_BYTES:
        raise Malformed("a key of that length cannot be asked for")
    more = _encode_more(ref)
    flags = (_PINNED if ref.pinned else 0) | (_MORE if more else 0)
    return _REF.pack(ref.inode, ref.version, ref.mount_id, ref.size, flags, len(token), len(key)) + token + key + more


def _encode_more(ref: FileRef) -> bytes:
    """Of a content that was written here: where it is; of one in a snapshot: that it is. Empty for all others.

    The third of a source is there for a frozen one alone: a release before those reads no further than the size. It says whether
    the content is known by another name in caches.
    """
    frozen = ref.frozen and ref.is_stored
    if ref.source is None and not ref.holders and not frozen:
        return b""
    source: list[object] | None = [ref.stored.token, ref.stored.size] if ref.source is not None or frozen else None
    if source is not None and frozen:
        source.append(ref.source is not None)
    return json.dumps([source, ref.holders]).encode()


def _decode_more(data: bytes) -> tuple[Fingerprint | None, tuple[WorkerId, ...], bool]:
    try:
        source, holders = json.loads(data)
        stored = None if source is None else Fingerprint(str(source[0]), int(source[1]))
        frozen = source is not None and len(source) > 2
        if frozen and not source[2]:
            stored = None
        return stored, tuple(WorkerId(str(holder)) for holder in holders), frozen
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise Malformed("the description of a content says something unknown") from error


def decode_ref(data: bytes) -> FileRef:
    """The content that a Read is about."""
    if len(data) < _REF.size:
        raise Malformed("the description of a content is too short")
    inode, version, mount_id, size, flags, token_bytes, key_bytes = _REF.unpack_from(data)
    token_end = _REF.size + token_bytes
    key_end = token_end + key_bytes
    more = data[key_end:]
    if len(data) < key_end or flags > _PINNED | _MORE or bool(more) != bool(flags & _MORE):
        raise Malformed("the description of a content is of another length than it says")
    token, key = to_str(data[_REF.size : token_end]), to_str(data[token_end:key_end])
    source, holders, frozen = _decode_more(more) if more else (None, (), False)
    return FileRef(
        InodeId(inode),
        VersionId(version),
        MountId(mount_id),
        key,
        Fingerprint(token, size),
        bool(flags & _PINNED),
        source,
        holders,
        frozen,
    )


def pack_read(
    request_id: int, ref: bytes, offset: int, length: int, *, priority: int, cached_only: bool, ahead: int = 0
) -> bytes:
    """Ask for bytes [offset, offset + length) of an encoded content."""
    flags = priority << _PRIORITY_SHIFT | (_CACHED_ONLY if cached_only else 0)
    return _CALL.pack(Kind.READ, flags, len(ref), request_id, offset, length, min(max(ahead, length), MAX_READ_BYTES)) + ref


def pack_fill(request_id: int, ref: bytes, offset: int, length: int, *, priority: int) -> bytes:
    """Ask for a range to be brought into the cache, for a caller who reads cache files itself."""
    return _CALL.pack(Kind.FILL, priority << _PRIORITY_SHIFT, len(ref), request_id, offset, length, length) + ref


def pack_cancel(request_id: int) -> bytes:
    """Nobody waits for that read any more. It is answered all the same, with an Error if with nothing else."""
    return _CALL.pack(Kind.CANCEL, 0, 0, request_id, 0, 0, 0)


def pack_bad_page(ref: bytes, page: int) -> bytes:
    """A page did not match the checksum that came with it. Not answered."""
    return _CALL.pack(Kind.BAD_PAGE, 0, len(ref), 0, page, 0, 0) + ref


def parse_call(data: bytes | bytearray | memoryview, position: int = 0) -> Call:
    """The CALL_BYTES at `position`."""
    kind, flags, ref_bytes, request_id, offset, length, ahead = _CALL.unpack_from(data, position)
    if kind not in {Kind.READ, Kind.FILL, Kind.CANCEL, Kind.BAD_PAGE}:
        raise Malformed(f"no call has the number {kind}")
    if (kind == Kind.CANCEL) != (ref_bytes == 0):
        raise Malformed("a call without the content that it is about, or the reverse")
    if kind == Kind.READ and not 0 < length <= ahead <= MAX_READ_BYTES:
        raise Malformed(f"{length} bytes cannot be asked for at once")
    return Call(kind, request_id, offset, length, ahead, flags >> _PRIORITY_SHIFT, bool(flags & _CACHED_ONLY), ref_bytes)


# Replies.


def pack_data(request_id: int, offset: int, length: int, sums: Sequence[int], *, last: bool) -> bytes:
    """The head of `length` bytes that follow; `sums` of all of their pages, or none."""
    head = _REPLY.pack(Kind.DATA, _LAST if last else 0, len(sums), request_id, offset, length)
    return head + struct.pack(f"<{len(sums)}Q", *sums) if sums else head


def pack_error(request_id: int, error: AlluxioLikeError) -> bytes:
    """A read that ends without (further) bytes."""
    parts = (error.code, error.subject[:_MAX_TEXT], error.message[:_MAX_TEXT])
    body = "\0".join(part.replace("\0", " ") for part in parts).encode("utf-8", "surrogateescape")
    return _REPLY.pack(Kind.ERROR, _LAST, 0, request_id, 0, len(body)) + body


def encode_filled(filled: Filled) -> bytes:
    """What a Filled says."""
    head = _FILLED.pack(filled.read_through, filled.directory, filled.generation, len(filled.present), *filled.waited)
    runs = [
        _RUN.pack(one.pages.first, len(one.pages)) + struct.pack(f"<{len(one.checksums)}Q", *one.checksums)
        for one in filled.present
    ]
    return head + b"".join(runs)


def decode_filled(data: bytes) -> Filled:
    """The pages that are in a cache file now."""
    if len(data) < _FILLED.size:
        raise Malformed("a Filled that is too short")
    read_through, directory, generation, count, *waited = _FILLED.unpack_from(data)
    position, present = _FILLED.size, []
    for _ in range(count):
        if len(data) < position + _RUN.size:
            raise Malformed("a Filled that ends early")
        first, pages = _RUN.unpack_from(data, position)
        position += _RUN.size
        if len(data) < position + 8 * pages:
            raise Malformed("a Filled that ends early")
        sums = struct.unpack_from(f"<{pages}Q", data, position)
        position += 8 * pages
        present.append(FilledPages(PageRange(first, first + pages), sums))
    if position != len(data):
        raise Malformed("a Filled that is too long")
    store, peer, fill, metadata, queue, other = (part if part > 0 else 0.0 for part in waited)
    return Filled(tuple(present), directory, generation, bool(read_through), (store, peer, fill, metadata, queue, other))


def pack_text(kind: Kind, request_id: int, body: bytes, *, last: bool) -> bytes:
    """A Filled or Waited with its bytes."""
    return _REPLY.pack(kind, _LAST if last else 0, 0, request_id, 0, len(body)) + body


def pack_waited(request_id: int, seconds: Seconds) -> bytes:
    """How the time went by that this read has waited since it was said last."""
    return pack_text(Kind.WAITED, request_id, _WAITED.pack(*seconds), last=False)


def parse_waited(data: bytes) -> Seconds:
    """Seconds by cause; none is negative, whatever was sent."""
    if len(data) != _WAITED.size:
        raise Malformed("a Waited of another length")
    store, peer, fill, metadata, queue, other = (part if part > 0 else 0.0 for part in _WAITED.unpack(data))
    return store, peer, fill, metadata, queue, other


def parse_reply(data: bytes | bytearray | memoryview, position: int = 0) -> Reply:
    """The REPLY_BYTES at `position`."""
    kind, flags, sums, request_id, offset, length = _REPLY.unpack_from(data, position)
    if kind not in {Kind.DATA, Kind.ERROR, Kind.FILLED, Kind.WAITED} or flags > 1:
        raise Malformed(f"no reply has the number {kind}")
    if kind in {Kind.FILLED, Kind.WAITED} and (length > _MAX_FILLED_BYTES or sums):
        raise Malformed(f"a text of {length} bytes")
    if length > MAX_FRAME_BYTES or (kind == Kind.ERROR and (length > 16 * _MAX_TEXT or sums or not flags)):
        raise Malformed(f"a reply of {length} bytes")
    if kind == Kind.WAITED and (length != _WAITED.size or sums or flags):
        raise Malformed("a wait of another length")
    if sums and (offset % PAGE_BYTES or sums != -(-length // PAGE_BYTES)):
        raise Malformed("checksums of pages that are not whole")
    return Reply(kind, request_id, offset, length, sums, bool(flags & _LAST))


def parse_sums(data: bytes | bytearray | memoryview) -> "array[int]":
    """The checksums behind a head."""
    sums = array("Q")
    sums.frombytes(data)
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        sums.byteswap()
    return sums


def parse_error(data: bytes) -> AlluxioLikeError:
    """The error in the bytes of an Error."""
    code, _, rest = data.decode("utf-8", "surrogateescape").partition("\0")
    subject, _, message = rest.partition("\0")
    return make_error(code, message, subject)
