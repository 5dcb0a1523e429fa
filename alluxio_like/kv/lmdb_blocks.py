"""Packed pairs in LMDB: a tree of blocks beside the tree of a letter's other pairs.

Owns that tree: each block lies under the last of its keys, blocks do not overlap, and none of their keys is in the other tree.
Does not know how a block is made (packing.py) or what is stored. Rule of concurrency: that of the transaction. Raises LMDB's
errors.
"""

import itertools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alluxio_like.kv import packing
from alluxio_like.kv.packing import Pair

if TYPE_CHECKING:
    import lmdb


def get_packed(txn: "lmdb.Transaction[bytes]", tree: "lmdb._Database", key: bytes) -> bytes | None:
    """The value of a key that is in a block of this tree."""
    cursor = txn.cursor(tree)
    value = packing.get_value(cursor.value(), key) if cursor.set_range(key) else None
    cursor.close()
    return value


class Blocks:
    """Those of one letter, in one transaction."""

    __slots__ = ("_kept", "_tree", "_txn")

    def __init__(self, txn: "lmdb.Transaction[bytes]", tree: "lmdb._Database") -> None:
        self._txn = txn
        self._tree = tree
        self._kept: tuple[bytes, bytes, dict[bytes, bytes] | None] | None = None
        """The block that `get_again` looked into: its last key, itself, and its pairs once they were asked for a second time."""

    def find(self, key: bytes) -> Pair | None:
        """The block that has a key if any has: the last of its own keys, and itself."""
        with self._txn.cursor(self._tree) as cursor:
            return cursor.item() if cursor.set_range(key) else None

    def get_again(self, key: bytes) -> bytes | None:
        """As `get`, for who asks for many keys, neighbours one after another."""
        kept = self._kept
        if kept is not None and kept[0] >= key:
            last, block, pairs = kept
            if pairs is None:
                # A neighbour of one that lies there too? Then those behind them will be.
                value = packing.get_value(block, key)
                if value is None:
                    return self._get_kept(key)
                self._kept = (last, block, dict(packing.unpack(block)))
                return value
            if key in pairs:
                return pairs[key]
        return self._get_kept(key)

    def _get_kept(self, key: bytes) -> bytes | None:
        found = self.find(key)
        if found is None:
            return None
        self._kept = (*found, None)
        return packing.get_value(found[1], key)

    def remove(self, key: bytes) -> bool:
        """Whether it was there."""
        found = self.find(key)
        if found is None:
            return False
        last, block = found
        row, is_there = packing.find_row(block, key)
        if not is_there:
            return False
        if key == last:
            self._txn.delete(last, db=self._tree)
            if not row:
                return True
            last = packing.get_key(block, row - 1)
        self._txn.put(last, packing.remove_row(block, row), db=self._tree)
        return True

    def remove_all(self, keys: Sequence[bytes]) -> None:
        """Those of some keys that are there."""
        if self._is_gap(min(keys), max(keys)):
            return
        for key in keys:
            self.remove(key)

    def put_run(self, run: Sequence[Pair], plain: "lmdb.Cursor[bytes]", block_bytes: int) -> bool:
        """Put a long run of new pairs between those that are there; False where it is none, or is better left to the other tree,
        on which `plain` stands anywhere."""
        if len(run) < packing.LEAST:
            return False
        keys = [key for key, _ in run]
        if any(map(operator.ge, keys, itertools.islice(keys, 1, None))):
            return False
        first, last = run[0][0], run[-1][0]
        if (plain.set_range(first) and plain.key() <= last) or not self._is_gap(first, last):
            return False
        blocks = packing.pack(run, block_bytes)
        if blocks is None:
            return False
        for key, block in blocks:
            self._txn.put(key, block, db=self._tree)
        return True

    def _is_gap(self, first: bytes, last: bytes) -> bool:
        """Whether no block has keys from one to the other."""
        found = self.find(first)
        return found is None or packing.get_key(found[1], 0) > last

    def list_pairs(self, start: bytes, stop: bytes, count: int, reverse: bool) -> list[Pair]:
        """The first pairs with start <= key < stop (`reverse`: the last ones, backwards), at least so many if there are."""
        found: list[Pair] = []
        with self._txn.cursor(self._tree) as cursor:
            # A bound may be longer than any key that LMDB can be asked for; blocks that it does not lie in are passed over.
            if not reverse:
                is_there = cursor.set_range(start[:_BOUND_BYTES] or b"\0")
                while is_there and len(found) < count:
                    last, block = cursor.item()
                    first_row, _ = packing.find_row(block, start)
                    stop_row = packing.find_row(block, stop)[0] if last >= stop else packing.count_pairs(block)
                    found += packing.unpack(block, first_row, min(stop_row, first_row + count - len(found)))
                    is_there = last < stop and cursor.next()
                return found
            is_there = cursor.set_range(stop[:_BOUND_BYTES]) or cursor.last()
            while is_there and len(found) < count:
                last, block = cursor.item()
                if last < start:
                    break
                first_row, _ = packing.find_row(block, start)
                stop_row, _ = packing.find_row(block, stop)
                found += packing.unpack(block, max(first_row, stop_row - count + len(found)), stop_row)[::-1]
                is_there = cursor.prev()
        return found

    def list_blocks(self, start: bytes, stop: bytes, limit: int | None) -> list[bytes]:
        """Blocks of the first `limit` pairs with start <= key < stop, cut to those at their ends alone."""
        found: list[bytes] = []
        with self._txn.cursor(self._tree) as cursor:
            is_there = cursor.set_range(start[:_BOUND_BYTES] or b"\0")
            while is_there and limit != 0:
                last, block = cursor.item()
                first_row = 0 if found else packing.find_row(block, start)[0]
                stop_row = packing.find_row(block, stop)[0] if last >= stop else packing.count_pairs(block)
                if limit is not None:
                    stop_row = min(stop_row, first_row + limit)
                    limit -= max(0, stop_row - first_row)
                if first_row < stop_row:
                    found.append(packing.cut(block, first_row, stop_row))
                is_there = last < stop and cursor.next()
        return found


_BOUND_BYTES = 511
