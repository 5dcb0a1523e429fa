"""Blocks of pairs, against lists of them."""

import bisect
import random

import pytest

from alluxio_like.kv import packing

ALPHABETS = [b"ab", b"\0a", b"0123456789", bytes(range(256))]


def make_pairs(chooser: random.Random) -> list[tuple[bytes, bytes]]:
    """Alike or not, of one length or of many, with zeros at their ends."""
    alphabet = chooser.choice(ALPHABETS)
    before = bytes(chooser.choices(alphabet, k=chooser.randrange(6)))
    size = chooser.choice([None, 5, 9])
    keys = {
        before + bytes(chooser.choices(alphabet, k=size or chooser.randrange(1, 9))) + chooser.choice([b"", b"x", b"\0"])
        for _ in range(chooser.choice([100, 300, 3000]))
    }
    lengths = chooser.choice([[10], [0], [0, 3, 10, 300]])
    return [(key, bytes(chooser.choices(b"xy", k=chooser.choice(lengths)))) for key in sorted(keys)]


@pytest.mark.parametrize("seed", range(60))
def test_blocks_hold_what_was_packed(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(packing, "_WORTH", 1000)
    chooser = random.Random(seed)
    pairs = make_pairs(chooser)
    if len(pairs) < packing.LEAST:
        assert packing.pack(pairs, 4080) is None
        return
    block_bytes = chooser.choice([700, 1000, 4080])
    blocks = packing.pack(pairs, block_bytes)
    assert blocks is not None
    assert all(len(block) <= block_bytes for _, block in blocks)
    assert [pair for _, block in blocks for pair in packing.unpack(block)] == pairs
    columns = packing.unpack_columns([block for _, block in blocks])
    assert [(columns.get_key(row), columns.get_value(row)) for row in range(len(columns))] == pairs
    for last, block in chooser.sample(blocks, min(len(blocks), 5)):
        own = packing.unpack(block)
        keys = [key for key, _ in own]
        assert (keys[-1], len(keys)) == (last, packing.count_pairs(block))
        alphabet = chooser.choice(ALPHABETS)
        asked = [key for key, _ in chooser.sample(pairs, 15)] + [keys[0], last, b""]
        asked += [key + b"\0" for key in asked] + [key[:-1] for key in asked]
        asked += [bytes(chooser.choices(alphabet, k=chooser.randrange(1, 12))) for _ in range(20)]
        for key in asked:
            row = bisect.bisect_left(keys, key)
            is_there = key in keys
            assert packing.find_row(block, key) == (row, is_there)
            assert packing.get_value(block, key) == (own[row][1] if is_there else None)
        row = chooser.randrange(len(own))
        assert packing.get_key(block, row) == keys[row]
        assert packing.unpack(packing.remove_row(block, row)) == own[:row] + own[row + 1 :]
        stop = chooser.randrange(row, len(own) + 1)
        assert packing.unpack(packing.cut(block, row, stop)) == own[row:stop] == packing.unpack(block, row, stop)


def test_what_would_save_too_little_is_left() -> None:
    chooser = random.Random(1)
    alike = [(b"I%08d" % number, b"v" * 60) for number in range(100)]
    assert packing.pack(alike, 4080) is not None
    assert packing.pack(alike[: packing.LEAST - 1], 4080) is None
    assert packing.pack([(b"I" + chooser.randbytes(30), chooser.randbytes(60)) for _ in range(100)], 4080) is None
    assert packing.pack([(key, value * 100) for key, value in alike], 4080) is None, "not one fits into a block"
    assert packing.pack([(key, value * 2000) for key, value in alike], 1 << 20) is None, "lengths have two bytes"


def test_no_columns_of_no_blocks() -> None:
    assert len(packing.unpack_columns([])) == 0
