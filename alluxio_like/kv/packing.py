"""Runs of pairs in little room: of pairs that are alike only the bytes in which they differ are kept.

Owns the form of a block, how a run of pairs is cut into blocks, and how pairs are found in them. Does not know what is stored,
nor where blocks lie. Pure functions, safe from any thread.

    block   pairs(2) key room(2) value room(2) stretches(2), all little-endian; then
            stretches: place(2) length(2) of the bytes that differ, of a line; then the first pair's line; then for each pair,
            in the order of keys, its bytes of the stretches
    line    key, zeros up to the key room, its length(2, big-endian), value, zeros up to the value room, its length(2, big-endian)

Lines are all of one length, and in the order of their keys, as those bytes of them are that lie in the stretches: so a pair is
found by bisection, and all are taken apart by a few copies of numpy, whatever their number.
"""

import bisect
import functools
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alluxio_like.kv.columns import Columns, Ints

Pair = tuple[bytes, bytes]
Lines = NDArray[np.uint8]

_HEAD = struct.Struct("<4H")
_LENGTH_BYTES = 2
LEAST = 32
"""Shorter runs are not packed: in blocks of a few pairs, what they have in common takes more than it saves, and a whole tree of
such directories takes longer to read."""
_MOST = 4096
"""Pairs in a block: what is taken apart at once."""
_WORTH = 0.7
"""Of the bytes that the pairs take by themselves a block takes at most so much, or they are left as they are."""
_PAIR_BYTES = 10
"""What LMDB keeps for each pair beside its key and value."""


Part = tuple[int, int]
"""Where something begins, and where it ends."""


class _Form(NamedTuple):
    """What most blocks of neighbours have in common: a block's head but for how many pairs it has, taken apart."""

    key_room: int
    value_at: int
    """Where the value is in a line."""
    line_at: int
    rows_at: int
    width: int
    """Of a row."""
    stretches: tuple[tuple[Part, Part], ...]
    """Of a line, and where those bytes are in a row."""
    key_parts: tuple[Part, ...]
    """Those stretches that are in keys."""
    key_width: int
    common: tuple[Part, ...]
    """What lies between them."""
    has_equal_lengths: bool
    """Whether all keys are of one length, and all values."""

    @property
    def line_bytes(self) -> int:
        return self.rows_at - self.line_at


_MOST_FORMS = 4096
"""Of some 2 KB each."""


@functools.lru_cache(_MOST_FORMS)
def _parse_form(head: bytes) -> _Form:
    key_room, value_room, count = struct.unpack_from("<3H", head)
    numbers = struct.unpack_from(f"<{2 * count}H", head, _HEAD.size - 2)
    value_at = key_room + _LENGTH_BYTES
    line_at = _HEAD.size + 4 * count
    line_bytes = value_at + value_room + _LENGTH_BYTES
    stretches: list[tuple[Part, Part]] = []
    at = 0
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        stretches.append(((start, start + length), (at, at + length)))
        at += length
    key_parts = tuple(part for part, _ in stretches if part[0] < value_at)
    bounds = [0, *(bound for part in key_parts for bound in part), value_at]
    common = tuple((start, stop) for start, stop in zip(bounds[::2], bounds[1::2], strict=True) if start < stop)
    return _Form(
        key_room,
        value_at,
        line_at,
        line_at + line_bytes,
        at,
        tuple(stretches),
        key_parts,
        sum(stop - start for start, stop in key_parts),
        common,
        not any(key_room < stop <= value_at or stop > line_bytes - _LENGTH_BYTES for (_, stop), _ in stretches),
    )


def _read_form(block: bytes) -> _Form:
    return _parse_form(block[2 : _HEAD.size + 4 * (block[6] | block[7] << 8)])


def count_pairs(block: bytes) -> int:
    return block[0] | block[1] << 8


# -- packing -----------------------------------------------------------------------------------------------------------


def pack(pairs: Sequence[Pair], block_bytes: int) -> list[Pair] | None:
    """Blocks of at most so many bytes, each under its last key; None where too little would be saved.

    The pairs ascend by their keys, each of which is there once.
    """
    if len(pairs) < LEAST:
        return None
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    line_bytes = max(map(len, keys)) + max(map(len, values)) + 2 * _LENGTH_BYTES
    most_bytes = block_bytes - _HEAD.size - line_bytes
    if most_bytes < 0 or line_bytes >= 1 << 16:
        return None
    lines, key_room = _make_lines(keys, values)
    # Where a line is not as the one before it, in the few places where any is not.
    differs = lines[1:] != lines[:-1]
    places = np.flatnonzero(differs.any(axis=0))
    differs = differs[:, places]
    value_at = key_room + _LENGTH_BYTES
    # A stretch goes on from one of these to the next, but not from a key into its value.
    goes_on = np.diff(places, prepend=-2) == 1
    goes_on[places == value_at] = False
    blocks: list[Pair] = []
    used = first = 0
    guess = 2 * LEAST
    while first < len(pairs):
        count, changing = _fit(differs[first : first + _MOST - 1], goes_on, most_bytes, guess)
        block = _pack_block(lines[first : first + count], key_room, places[changing])
        blocks.append((keys[first + count - 1], block))
        used += len(block) + len(blocks[-1][0]) + _PAIR_BYTES
        first += count
        guess = count + count // 2
    plain = sum(map(len, keys)) + sum(map(len, values)) + _PAIR_BYTES * len(pairs)
    return blocks if used <= plain * _WORTH else None


def _make_lines(keys: Sequence[bytes], values: Sequence[bytes]) -> tuple[Lines, int]:
    """A line for each pair, and the room for keys."""
    count = len(keys)
    parts = []
    for fields in (keys, values):
        lengths = np.fromiter(map(len, fields), ">u2", count)
        room = int(lengths.max())
        even = fields if int(lengths.min()) == room else [field.ljust(room, b"\0") for field in fields]
        parts += [np.frombuffer(b"".join(even), np.uint8).reshape(count, room), lengths.view(np.uint8).reshape(count, 2)]
    return np.concatenate(parts, axis=1), parts[0].shape[1]


def _fit(differs: NDArray[np.bool_], goes_on: NDArray[np.bool_], most_bytes: int, guess: int) -> tuple[int, NDArray[np.bool_]]:
    """How many pairs fit into a block, beside its first line; and in which places their lines differ. `guess`: what to try
    first. A block may be left with some room: that is tried once."""
    available = len(differs) + 1
    fitting = 1
    changing: NDArray[np.bool_] = np.zeros(differs.shape[1], np.bool_)
    count = min(guess, available)
    while count > fitting:
        some: NDArray[np.bool_] = np.logical_or.reduce(differs[: count - 1], axis=0)
        width = int(np.count_nonzero(some))
        begins = width - int(np.count_nonzero(some[1:] & some[:-1] & goes_on[1:]))
        # So many rows as are as wide as these.
        room = max(0, most_bytes - 4 * begins) // width if width else available
        if room < count:
            # A bit less each time, lest it go on for long where the room hardly changes.
            count = min(room, count - 1 - count // 64)
            continue
        fitting, changing = count, some
        count = min(room, available)
    return fitting, changing


def _pack_block(lines: Lines, key_room: int, places: Ints) -> bytes:
    """`places`: where these lines differ."""
    value_at = key_room + _LENGTH_BYTES
    begins = np.diff(places, prepend=-2) != 1
    begins[places == value_at] = True
    starts = np.flatnonzero(begins)
    sizes = np.diff(starts, append=len(places)).tolist()
    rows = np.empty((len(lines), len(places)), np.uint8)
    stretches: list[int] = []
    for at, start, size in zip(starts.tolist(), places[starts].tolist(), sizes, strict=True):
        rows[:, at : at + size] = lines[:, start : start + size]
        stretches += [start, size]
    head = _HEAD.pack(len(lines), key_room, lines.shape[1] - value_at - _LENGTH_BYTES, len(sizes))
    return b"".join((head, struct.pack(f"<{len(stretches)}H", *stretches), lines[0].tobytes(), rows.tobytes()))


# -- one pair ----------------------------------------------------------------------------------------------------------


def find_row(block: bytes, key: bytes) -> tuple[int, bool]:
    """How many pairs come before a key, and whether it is there."""
    form = _read_form(block)
    asked = _make_key_line(key, form)
    at = form.line_at
    for start, stop in form.common:
        if (there := block[at + start : at + stop]) != asked[start:stop]:
            # It decides, among those pairs that are as the key is before it.
            want = _get_key_row(asked, [part for part in form.key_parts if part[0] < start])
            find = bisect.bisect_right if asked[start:stop] > there else bisect.bisect_left
            return _find(find, block, form, want), False
    want = _get_key_row(asked, form.key_parts)
    row = _find(bisect.bisect_left, block, form, want)
    at = form.rows_at + row * form.width
    return row, row < count_pairs(block) and block[at : at + form.key_width] == want


def get_value(block: bytes, key: bytes) -> bytes | None:
    """The value of a key."""
    form = _read_form(block)
    _, value_at, line_at, rows_at, width, stretches, key_parts, size, common, _ = form
    asked = _make_key_line(key, form)
    for start, stop in common:
        if asked[start:stop] != block[line_at + start : line_at + stop]:
            return None
    want = _get_key_row(asked, key_parts)
    # Keys that count up, as most do whose values are found by a number.
    guess = int.from_bytes(want, "big") - int.from_bytes(block[rows_at : rows_at + size], "big")
    count = count_pairs(block)
    at = rows_at + guess * width
    if not 0 <= guess < count or block[at : at + size] != want:
        row = _find(bisect.bisect_left, block, form, want)
        at = rows_at + row * width
        if row == count or block[at : at + size] != want:
            return None
    line = bytearray(block[line_at:rows_at])
    for (start, stop), (own, end) in stretches[len(key_parts) :]:
        line[start:stop] = block[at + own : at + end]
    return bytes(line[value_at : value_at + (line[-2] << 8) + line[-1]])


def get_key(block: bytes, row: int) -> bytes:
    """The key of a pair that is there."""
    form = _read_form(block)
    at = form.rows_at + row * form.width
    line = bytearray(block[form.line_at : form.line_at + form.value_at])
    for (start, stop), (own, end) in form.stretches[: len(form.key_parts)]:
        line[start:stop] = block[at + own : at + end]
    return bytes(line[: (line[-2] << 8) + line[-1]])


def _make_key_line(key: bytes, form: _Form) -> bytes:
    """What a line has before the value."""
    room, size = form.key_room, len(key)
    if size <= room:
        return (key if size == room else key.ljust(room, b"\0")) + size.to_bytes(_LENGTH_BYTES, "big")
    # No key is as long: it comes behind the one, if there is one, that is its beginning.
    return key[:room] + b"\xff" * _LENGTH_BYTES


def _get_key_row(asked: bytes, parts: Sequence[Part]) -> bytes:
    """What a row has of a key."""
    return b"".join([asked[start:stop] for start, stop in parts])


def _find(find: Callable[..., int], block: bytes, form: _Form, want: bytes) -> int:
    at, width, size = form.rows_at, form.width, len(want)

    def get_row(row: int) -> bytes:
        start = at + row * width
        return block[start : start + size]

    return find(range(count_pairs(block)), want, key=get_row)


def remove_row(block: bytes, row: int) -> bytes:
    """The block without one of its pairs, of which it has others."""
    form = _read_form(block)
    at = form.rows_at + row * form.width
    return (count_pairs(block) - 1).to_bytes(2, "little") + block[2:at] + block[at + form.width :]


def cut(block: bytes, first: int, stop: int) -> bytes:
    """A block of some of its pairs."""
    form = _read_form(block)
    if not first and stop == count_pairs(block):
        return block
    width = form.width
    rows = block[form.rows_at + first * width : form.rows_at + stop * width]
    return (stop - first).to_bytes(2, "little") + block[2 : form.rows_at] + rows


# -- many pairs --------------------------------------------------------------------------------------------------------


def unpack(block: bytes, first: int = 0, stop: int | None = None) -> list[Pair]:
    """Its pairs, or some of them."""
    form = _read_form(block)
    rows = range(count_pairs(block))[first:stop]
    length, value_at = form.line_bytes, form.value_at
    lines = np.empty((len(rows), length), np.uint8)
    _fill_lines(lines, block, form, rows.start)
    key_lengths, value_lengths = _get_lengths(lines, form.key_room).tolist()
    data = lines.tobytes()
    return [
        (data[at : at + key_bytes], data[at + value_at : at + value_at + value_bytes])
        for at, key_bytes, value_bytes in zip(range(0, len(data), length), key_lengths, value_lengths, strict=True)
    ]


def unpack_columns(blocks: Sequence[bytes]) -> Columns:
    """The pairs of one block after another."""
    forms = [_read_form(block) for block in blocks]
    counts = np.array([count_pairs(block) for block in blocks], np.int64)
    lengths = np.array([form.line_bytes for form in forms], np.int64)
    stops = np.cumsum(counts * lengths)
    data = np.empty(int(stops[-1]) if len(stops) else 0, np.uint8)
    sizes = np.empty((2, int(counts.sum())), np.int64)
    at = row = 0
    for block, form, count, stop in zip(blocks, forms, counts.tolist(), stops.tolist(), strict=True):
        lines = data[at:stop].reshape(count, form.line_bytes)
        _fill_lines(lines, block, form, 0)
        is_even = form.has_equal_lengths
        sizes[:, row : row + count] = _get_lengths(lines[:1] if is_even else lines, form.key_room)
        at, row = stop, row + count
    own = np.repeat(lengths, counts)
    starts = np.cumsum(own) - own
    return Columns(data, starts, sizes[0], starts + np.repeat([form.value_at for form in forms], counts), sizes[1])


def _fill_lines(lines: Lines, block: bytes, form: _Form, first: int) -> None:
    """The lines of so many of a block's pairs from one on."""
    lines[:] = np.frombuffer(block, np.uint8, form.line_bytes, form.line_at)
    width = form.width
    if not width or not len(lines):
        return
    own = np.frombuffer(block, np.uint8, len(lines) * width, form.rows_at + first * width).reshape(-1, width)
    for (start, stop), (at, end) in form.stretches:
        lines[:, start:stop] = own[:, at:end]


def _get_lengths(lines: Lines, key_room: int) -> Ints:
    """How long keys are, and how long values."""
    high, low = lines[:, [key_room, -2]].T.astype(np.int64), lines[:, [key_room + 1, -1]].T
    return high << 8 | low
