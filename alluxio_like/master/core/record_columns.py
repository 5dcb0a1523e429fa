"""Records of inodes and of directories' states taken apart by columns: what records.unpack_inode says of one, of very many.

Owns where in a record things lie, for numpy. No decisions, and nothing is done for a single record but for the few whose content
is known by something unusual. Pure functions, safe from any thread.
"""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alluxio_like.kv.columns import Bytes, Ints, join_bytes, move, pick
from alluxio_like.master.core import records
from alluxio_like.types import Kind, to_bytes

_HEAD: Final = np.dtype(
    {
        "names": ["kind", "flags", "mount", "size", "mtime_ns", "token_bytes"],
        "formats": ["u1", "<u2", "<u4", "<i8", "<i8", "<u2"],
        "offsets": [0, 1, 15, 19, 27, 55],
        "itemsize": records.INODE_BYTES,
    }
)
_STATE: Final = np.dtype(
    {
        "names": ["flags", "listed_ns", "files", "directories", "shadowed"],
        "formats": ["u1", "<i8", "<i8", "<i8", "<i8"],
        "offsets": [0, 1, 17, 25, 33],
        "itemsize": records.STATE_BYTES,
    }
)
Flags = NDArray[np.bool_]
Spans = tuple[Ints, Ints]
"""Starts and lengths."""

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
    kinds: NDArray[np.uint8]
    flags: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.starts)

    def get(self, row: int) -> bytes:
        start = self.starts.item(row)
        return self.data[start : start + self.lengths.item(row)].tobytes()

    def take(self, rows: Ints) -> "Records":
        """Some of them, over the same bytes."""
        return open_records(self.data, self.starts[rows], self.lengths[rows])

    @property
    def mounts(self) -> Ints:
        return self.heads["mount"].astype(np.int64)

    @property
    def sizes(self) -> Ints:
        return self.heads["size"].astype(np.int64)

    @property
    def mtimes_ns(self) -> Ints:
        return self.heads["mtime_ns"].astype(np.int64)

    def find_tokens(self) -> Spans:
        """Where the packed token of each begins, and its length."""
        starts = self.starts + records.INODE_BYTES
        own_times = self.flags & (records.OWN_CTIME | records.OWN_ATIME)
        if own_times.any():
            starts += _TIME_BYTES * ((own_times & records.OWN_CTIME != 0).astype(np.int64) + (own_times & records.OWN_ATIME != 0))
        return starts, self.heads["token_bytes"].astype(np.int64)

    def find_names(self, tokens: Spans) -> Spans:
        """Where the raw name of each begins, which is behind its token, and its length."""
        starts = tokens[0] + tokens[1]
        return starts, self.starts + self.lengths - starts


def open_records(data: Bytes, starts: Ints, lengths: Ints) -> Records:
    """Records as `records.pack_inode` made them."""
    heads = pick(data, starts, _HEAD)
    return Records(data, starts, lengths, heads, np.ascontiguousarray(heads["kind"]), heads["flags"].astype(np.uint16))


def join_records(parts: Sequence[Records]) -> Records:
    """One after another."""
    if len(parts) == 1:
        return parts[0]
    data, offsets = join_bytes([part.data for part in parts])
    return Records(
        data,
        np.concatenate([part.starts + offset for part, offset in zip(parts, offsets, strict=True)]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.heads for part in parts]),
        np.concatenate([part.kinds for part in parts]),
        np.concatenate([part.flags for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class States:
    """What `records.State` says of one directory, of many."""

    complete: Flags
    untrusted: Flags
    """Either as it is or so far."""
    listed_ns: Ints
    files: Ints
    directories: Ints
    shadowed: Ints

    def __getitem__(self, rows: slice | Ints) -> "States":
        return States(
            self.complete[rows],
            self.untrusted[rows],
            self.listed_ns[rows],
            self.files[rows],
            self.directories[rows],
            self.shadowed[rows],
        )


def open_states(data: Bytes, starts: Ints, rows: Ints) -> States:
    """Of the states that begin at `starts`, as `records.pack_state` made them, those of these rows; -1: the state of a directory
    that was never listed."""
    heads = np.zeros(len(rows), _STATE)
    there = rows >= 0
    heads[there] = pick(data, starts[rows[there]], _STATE)
    flags = heads["flags"]
    return States(
        (flags & records.STATE_COMPLETE) != 0,
        (flags & (records.STATE_UNTRUSTED | records.STATE_UNTRUSTED_SO_FAR)) != 0,
        heads["listed_ns"].astype(np.int64),
        heads["files"].astype(np.int64),
        heads["directories"].astype(np.int64),
        heads["shadowed"].astype(np.int64),
    )


def join_tokens(found: Records, tokens: Spans) -> tuple[Bytes, Ints]:
    """What each file's content is known by in caches (nothing for what is no file), one after another; where each ends.
    `tokens`: where they lie packed."""
    data = found.data
    packed_starts, packed_lengths = tokens
    is_file = found.kinds == _FILE
    if len(found) and is_file.all() and not (found.flags & records.OWN).any() and (packed_lengths == 1 + _DIGEST_BYTES).all():
        forms = data[packed_starts]
        if forms[0] in (_BARE_HEX, _QUOTED_HEX) and (forms == forms[0]).all():
            return _join_digests(data, packed_starts + 1, bool(forms[0] == _QUOTED_HEX))
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
        digests = pick(data, packed_starts[rows] + 1, f"V{_DIGEST_BYTES}")
        digits = np.frombuffer(binascii.hexlify(digests.view(np.uint8).data), np.uint8)
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


def _join_digests(data: Bytes, starts: Ints, quoted: bool) -> tuple[Bytes, Ints]:
    """Tokens of hexadecimal digits alone, or all of them in quotes: as nearly all directories of an object store have them."""
    digests = pick(data, starts, f"V{_DIGEST_BYTES}").view(np.uint8)
    joined = np.frombuffer(binascii.hexlify(digests.data), np.uint8)
    size = _HEX_BYTES
    if quoted:
        size += 2
        out = np.full((len(starts), size), _QUOTE, np.uint8)
        out[:, 1:-1] = joined.reshape(-1, _HEX_BYTES)
        joined = out.reshape(-1)
    return joined, np.arange(size, (len(starts) + 1) * size, size, dtype=np.int64)
