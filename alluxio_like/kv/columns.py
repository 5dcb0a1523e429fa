"""Pairs by columns: where each key and value lies in one array of bytes, for whoever reads very many of them.

Owns the form, and how bytes of different lengths are picked from one array and put into another without an object for each. Does
not know what is stored. Pure functions; arrays that were handed out are nobody else's.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Numbers = NDArray[np.uint64]
NUMBER_STOP = 9
"""Where a number ends in a key that begins with a letter and the number's 8 bytes."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Pairs in the order of their keys."""

    data: Bytes
    key_starts: Ints
    key_lengths: Ints
    value_starts: Ints
    value_lengths: Ints

    def __len__(self) -> int:
        return len(self.key_starts)

    def get_key(self, row: int) -> bytes:
        return self._get(self.key_starts, self.key_lengths, row)

    def get_value(self, row: int) -> bytes:
        return self._get(self.value_starts, self.value_lengths, row)

    def _get(self, starts: Ints, lengths: Ints, row: int) -> bytes:
        start = starts.item(row)
        return self.data[start : start + lengths.item(row)].tobytes()

    def take(self, rows: Ints) -> "Columns":
        """Pairs in another order, or some of them, over the same bytes."""
        return Columns(
            self.data, self.key_starts[rows], self.key_lengths[rows], self.value_starts[rows], self.value_lengths[rows]
        )

    def cut(self, first: int, stop: int) -> "Columns":
        """Some of the pairs, over the same bytes."""
        rows = slice(first, stop)
        return Columns(
            self.data, self.key_starts[rows], self.key_lengths[rows], self.value_starts[rows], self.value_lengths[rows]
        )


def make_columns(pairs: Iterable[tuple[bytes, bytes]]) -> Columns:
    """Columns of pairs that are there one by one."""
    parts = list(itertools.chain.from_iterable(pairs))
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    starts = np.cumsum(lengths) - lengths
    data = np.frombuffer(b"".join(parts), np.uint8)
    return Columns(data, starts[::2], lengths[::2], starts[1::2], lengths[1::2])


def scan_runs(
    scan: Callable[[bytes, bytes], Iterable[tuple[bytes, bytes]]], letter: bytes, numbers: Numbers
) -> tuple[Columns, Numbers]:
    """What `scan_numbers` gives, where pairs come one by one."""
    firsts, lasts = find_runs(numbers)
    bounds = zip(firsts.tolist(), lasts.tolist(), strict=True)
    found = make_columns(
        itertools.chain.from_iterable(
            scan(letter + first.to_bytes(8, "big"), get_number_stop(letter, last)) for first, last in bounds
        )
    )
    return found, pick(found.data, found.key_starts + 1, ">u8").astype(np.uint64)


def get_number_stop(letter: bytes, number: int) -> bytes:
    """The first key behind those that begin with a letter and a number."""
    stop = int.from_bytes(letter + number.to_bytes(8, "big"), "big") + 1
    return stop.to_bytes(NUMBER_STOP, "big")


def find_runs(numbers: Numbers) -> tuple[Numbers, Numbers]:
    """The first and the last number of each run without a gap; the numbers ascend."""
    gaps = np.flatnonzero(np.diff(numbers) != 1)
    ends = np.append(gaps, len(numbers) - 1)[: len(numbers)]
    return numbers[np.append(0, gaps + 1)[: len(numbers)]], numbers[ends]


def list_rows(starts: Ints, counts: Ints) -> Ints:
    """So many rows from each start on, one after another."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total, dtype=np.int64)


def join_columns(parts: Sequence[Columns]) -> Columns:
    """One after another."""
    if len(parts) == 1:
        return parts[0]
    data, offsets = join_bytes([part.data for part in parts])
    return Columns(
        data,
        np.concatenate([part.key_starts + offset for part, offset in zip(parts, offsets, strict=True)]),
        np.concatenate([part.key_lengths for part in parts]),
        np.concatenate([part.value_starts + offset for part, offset in zip(parts, offsets, strict=True)]),
        np.concatenate([part.value_lengths for part in parts]),
    )


def merge_columns(one: Columns, other: Columns) -> Columns:
    """Both, each in the order of its keys, in the order of all keys."""
    if not len(one) or not len(other):
        return one if len(one) else other
    if one.get_key(-1) < other.get_key(0):
        return join_columns([one, other])
    if other.get_key(-1) < one.get_key(0):
        return join_columns([other, one])
    room = max(int(one.key_lengths.max()), int(other.key_lengths.max()))
    places = np.searchsorted(_make_sortable(one, room), _make_sortable(other, room))
    first = len(one)
    return join_columns([one, other]).take(np.insert(np.arange(first), places, np.arange(first, first + len(other))))


def _make_sortable(columns: Columns, room: int) -> NDArray[Any]:
    """The keys, all of one length, in the order that they have as they are: zeros behind them, then their length."""
    step = room + 2
    out = np.zeros(len(columns) * step, np.uint8)
    places = np.arange(0, len(out), step)
    move(out, places, columns.data, columns.key_starts, columns.key_lengths)
    out.reshape(-1, step)[:, room:] = columns.key_lengths.astype(">u2").view(np.uint8).reshape(-1, 2)
    return out.view(f"S{step}")


def join_bytes(parts: Sequence[Bytes]) -> tuple[Bytes, list[int]]:
    """One after another, and where each of them begins."""
    offsets = list(itertools.accumulate([len(part) for part in parts], initial=0))
    return (np.concatenate(parts) if len(parts) > 1 else parts[0]), offsets[:-1]


def pick(data: Bytes, starts: Ints, form: Any) -> NDArray[Any]:
    """The values of a form (a dtype's name) that begin at these places, aligned or not; all of each lies in the data."""
    dtype = np.dtype(form)
    count = len(data) - dtype.itemsize + 1
    if count <= 0:
        return np.empty(0, dtype)
    # A value at every byte; numpy moves those that are asked for, at 4 to 10 ns each. (Of bytes alone: of what has fields, and of
    # numbers that do not lie as the machine has them, it takes each apart.)
    return np.ndarray((count,), f"V{dtype.itemsize}", data, strides=(1,))[starts].view(dtype)


def move(out: Bytes, places: Ints, data: Bytes, starts: Ints, lengths: Ints) -> None:
    """Copy bytes of `lengths` from `starts` in the data to `places` in `out`."""
    if not len(lengths):
        return
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest == longest:
        _move_equal(out, places, data, starts, longest)
        return
    # As many copies as there are powers of two: of 9 to 16 bytes the first 8 and the last 8.
    size = 1
    while size <= longest:
        rows = np.flatnonzero((lengths >= size) & (lengths < 2 * size))
        if len(rows):
            from_, to = starts[rows], places[rows]
            rest = lengths[rows] - size
            _move_equal(out, to, data, from_, size)
            _move_equal(out, to + rest, data, from_ + rest, size)
        size *= 2


def _move_equal(out: Bytes, places: Ints, data: Bytes, starts: Ints, size: int) -> None:
    if size:
        form = f"V{size}"
        np.ndarray((len(out) - size + 1,), form, out, strides=(1,))[places] = pick(data, starts, form)


def gather(data: Bytes, starts: Ints, lengths: Ints) -> tuple[Bytes, Ints]:
    """Bytes from these places, one after another, and where each of them ends."""
    ends = np.cumsum(lengths)
    if len(lengths) and (lengths == lengths[0]).all():
        return (pick(data, starts, f"V{lengths[0]}").view(np.uint8) if lengths[0] else np.empty(0, np.uint8)), ends
    out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    move(out, ends - lengths, data, starts, lengths)
    return out, ends
