"""All pairs of a store in one file, in the order of their keys: to keep, and to move from one engine to another.

Owns the format: a line of magic, a line of JSON (the header, with the format's number), frames, and a last frame with the sums. A
frame is compressed and has a checksum; a pair never lies in two. What is damaged or cut off anywhere is refused. Knows nothing of
what is stored. Blocks on disks; safe from any thread.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import xxhash

from alluxio_like import errors
from alluxio_like.kv.api import MAX_KEY_BYTES

FORMAT = 1
_MAGIC = b"alluxio-like backup\n"
_FRAME = struct.Struct("<IIQ")
"""Bytes of a frame before and after compression (0: the last one, which is JSON), and a checksum of what follows."""
_PAIR = struct.Struct("<HI")
_FRAME_BYTES = 1 << 20
_MOST_BYTES = 1 << 28
_LEVEL = 1
"""Of zlib: a third of the time of the usual 6, and a tenth larger (a guess from other data)."""


def write_dump(
    out: BinaryIO,
    header: dict[str, Any],
    pairs: Iterable[tuple[bytes, bytes]],
    on_progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write all pairs; how many. `on_progress` is told after each frame. Raises OSError."""
    out.write(_MAGIC + json.dumps({**header, "format": FORMAT}).encode() + b"\n")
    total = xxhash.xxh3_64()
    count, size = 0, 0
    frame: list[bytes] = []

    def end_frame() -> None:
        data = b"".join(frame)
        total.update(data)
        _write_frame(out, data, zlib.compress(data, _LEVEL))
        frame.clear()
        on_progress(count)

    for key, value in pairs:
        frame += (_PAIR.pack(len(key), len(value)), key, value)
        count += 1
        size += len(key) + len(value) + _PAIR.size
        if size >= _FRAME_BYTES:
            end_frame()
            size = 0
    if frame:
        end_frame()
    last = json.dumps({"pairs": count, "checksum": total.intdigest()}).encode()
    out.write(_FRAME.pack(0, len(last), xxhash.xxh3_64_intdigest(last)) + last)
    return count


def read_header(source: BinaryIO, name: str) -> dict[str, Any]:
    """The header of a dump; `read_pairs` goes on from there. Raises Corrupt (it is none), FormatTooNew."""
    if source.read(len(_MAGIC)) != _MAGIC:
        raise errors.Corrupt("not a backup of this software", subject=name)
    try:
        header: dict[str, Any] = json.loads(source.readline(_MOST_BYTES))
        number = int(header["format"])
    except (ValueError, KeyError, TypeError):
        raise errors.Corrupt("the backup's header cannot be read", subject=name) from None
    if number > FORMAT:
        raise errors.FormatTooNew(
            f"the backup was made by a newer release (format {number}; this one reads up to {FORMAT}); use that release",
            subject=name,
        )
    return header


def read_pairs(source: BinaryIO, name: str) -> Iterator[tuple[bytes, bytes]]:
    """All pairs, each checked before it is given; ends well only if none was missing. Raises Corrupt."""
    total = xxhash.xxh3_64()
    count = 0
    while True:
        size, data = _read_frame(source, name)
        if not size:
            last = json.loads(data)
            if last["pairs"] != count or last["checksum"] != total.intdigest():
                raise errors.Corrupt("the backup does not have all that was written: take another one", subject=name)
            return
        total.update(data)
        at = 0
        while at < len(data):
            key_bytes, value_bytes = _PAIR.unpack_from(data, at)
            at += _PAIR.size
            if not 0 < key_bytes <= MAX_KEY_BYTES:
                raise errors.Corrupt("the backup is damaged: take another one", subject=name)
            yield data[at : at + key_bytes], data[at + key_bytes : at + key_bytes + value_bytes]
            at += key_bytes + value_bytes
            count += 1


def _write_frame(out: BinaryIO, data: bytes, packed: bytes) -> None:
    out.write(_FRAME.pack(len(data), len(packed), xxhash.xxh3_64_intdigest(packed)) + packed)


def _read_frame(source: BinaryIO, name: str) -> tuple[int, bytes]:
    head = source.read(_FRAME.size)
    if len(head) < _FRAME.size:
        raise errors.Corrupt("the backup is cut off: take another one", subject=name)
    size, packed_bytes, checksum = _FRAME.unpack(head)
    if size > _MOST_BYTES or packed_bytes > _MOST_BYTES:
        raise errors.Corrupt("the backup is damaged: take another one", subject=name)
    packed = source.read(packed_bytes)
    if len(packed) < packed_bytes:
        raise errors.Corrupt("the backup is cut off: take another one", subject=name)
    if xxhash.xxh3_64_intdigest(packed) != checksum:
        raise errors.Corrupt("the backup is damaged: take another one", subject=name)
    data = zlib.decompress(packed) if size else packed
    if size and len(data) != size:
        raise errors.Corrupt("the backup is damaged: take another one", subject=name)
    return size, data
