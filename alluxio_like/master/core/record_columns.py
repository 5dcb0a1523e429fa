"""Inodes' records taken apart by columns: what records.unpack_inode says of one, of very many.

Owns where in a record things lie, for numpy. No decisions, and nothing is done for a single record but for the few whose content
is known by something unusual. Pure functions, safe from any thread.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alluxio_like.kv.columns import Bytes, Ints, move, pick
from alluxio_like.master.core import records
from alluxio_like.types import Kind, to_bytes

_HEAD: Final = np.dtype(
    {
        "names": ["kind", "flags", "size", "mtime_ns", "token_bytes"],
        "formats": ["u1", "<u2", "<i8", "<i8", "<u2"],
        "offsets": [0, 1, 19, 27, 55],
        "itemsize": records.INODE_BYTES,
    }
)
_FILE: Final = int(Kind.FILE)
_TIME_BYTES: Final = 8
_DIGEST_BYTES: Final = 16
_HEX_BYTES: Final = 32
_QUOTE: Final = ord('"')
_PLAIN, _BARE_HEX, _QUOTED_HEX = range(3)


@dataclass(frozen=True, slots=True)
class Records:
    """Records in an array of bytes: where each begins, and what all have in the same place."""

    data: Bytes
    starts: Ints
    lengths: Ints
    heads: NDArray[Any]

    def get(self, row: int) -> bytes:
        start = self.starts.item(row)
        return self.data[start : start + self.lengths.item(row)].tobytes()

    @property
    def kinds(self) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.heads["kind"])

    @property
    def flags(self) -> Ints:
        return self.heads["flags"].astype(np.int64)

    @property
    def sizes(self) -> Ints:
        return self.heads["size"].astype(np.int64)

    @property
    def mtimes_ns(self) -> Ints:
        return self.heads["mtime_ns"].astype(np.int64)

    def find_tokens(self) -> tuple[Ints, Ints]:
        """Where the packed token of each begins, and its length."""
        flags = self.flags
        times = ((flags & records.OWN_CTIME) != 0).astype(np.int64) + ((flags & records.OWN_ATIME) != 0)
        return self.starts + records.INODE_BYTES + times * _TIME_BYTES, self.heads["token_bytes"].astype(np.int64)

    def find_names(self) -> tuple[Ints, Ints]:
        """Where the raw name of each begins, and its length."""
        starts, lengths = self.find_tokens()
        starts = starts + lengths
        return starts, self.starts + self.lengths - starts


def open_records(data: Bytes, starts: Ints, lengths: Ints) -> Records:
    """Records as `records.pack_inode` made them."""
    return Records(data, starts, lengths, pick(data, starts, f"V{_HEAD.itemsize}").view(_HEAD))


def join_tokens(found: Records) -> tuple[Bytes, Ints]:
    """What each file's content is known by in caches (nothing for what is no file), one after another; where each ends."""
    data = found.data
    packed_starts, packed_lengths = found.find_tokens()
    is_file = found.kinds == _FILE
    is_own = is_file & ((found.flags & records.OWN) != 0)
    has_token = is_file & (packed_lengths > 0) & ~is_own
    forms = np.where(has_token, data[np.where(has_token, packed_starts, 0)], _PLAIN)
    is_unusual = is_own | (forms > _QUOTED_HEX)
    unusual = {
        row: to_bytes(records.unpack_inode(found.get(row)).fingerprint.token) for row in np.flatnonzero(is_unusual).tolist()
    }
    is_plain = has_token & (forms == _PLAIN)
    is_hex = has_token & ~is_plain & ~is_unusual

    lengths = np.where(is_plain, packed_lengths - 1, 0)
    quotes = (is_hex & (forms == _QUOTED_HEX)).astype(np.int64)
    tails = np.where(is_hex, packed_lengths - 1 - _DIGEST_BYTES, 0)
    lengths += np.where(is_hex, _HEX_BYTES + tails + 2 * quotes, 0)
    for row, token in unusual.items():
        lengths[row] = len(token)
    ends = np.cumsum(lengths)
    places = ends - lengths
    out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)

    rows = np.flatnonzero(is_plain)
    move(out, places[rows], data, packed_starts[rows] + 1, lengths[rows])
    rows = np.flatnonzero(is_hex)
    if len(rows):
        digests = pick(data, packed_starts[rows] + 1, f"V{_DIGEST_BYTES}").tobytes()
        digits = np.frombuffer(digests.hex().encode(), np.uint8)
        hex_starts = np.arange(len(rows), dtype=np.int64) * _HEX_BYTES
        move(out, places[rows] + quotes[rows], digits, hex_starts, np.full(len(rows), _HEX_BYTES))
    rows = np.flatnonzero(tails)
    tail_starts = packed_starts[rows] + 1 + _DIGEST_BYTES
    move(out, places[rows] + quotes[rows] + _HEX_BYTES, data, tail_starts, tails[rows])
    rows = np.flatnonzero(quotes)
    out[places[rows]] = _QUOTE
    out[ends[rows] - 1] = _QUOTE
    for row, token in unusual.items():
        out[places[row] : ends[row]] = np.frombuffer(token, np.uint8)
    return out, ends
