"""What is read ahead of a lookup, an entry, a page: all that these look at."""

from collections.abc import Iterator, Sequence

import pytest

from alluxio_like import errors
from alluxio_like.kv.api import KeyValueStore, ReadTransaction
from alluxio_like.kv.columns import Columns, Numbers
from alluxio_like.kv.memory import MemoryStore
from alluxio_like.master.core import ahead, namespace
from alluxio_like.types import InodeId
from tests.unit.test_namespace import NOW, add_mount, apply_listing, directory, file

NAMES = ["plain", "both", "below", "x" * 255, "%" * 200, "é" * 80]
"""Two of these are so long that they are found by an index only."""


class Watched:
    """A transaction that notes which keys are read by it."""

    def __init__(self, txn: ReadTransaction) -> None:
        self._txn = txn
        self.keys: set[bytes] = set()

    def get(self, key: bytes) -> bytes | None:
        self.keys.add(key)
        return self._txn.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.keys |= set(keys)
        return self._txn.get_many(keys)

    def scan(
        self, start: bytes, stop: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self._txn.scan(start, stop, limit=limit, reverse=reverse):
            self.keys.add(key)
            yield key, value

    def scan_columns(self, start: bytes, stop: bytes, *, limit: int | None = None) -> Columns:
        found = self._txn.scan_columns(start, stop, limit=limit)
        self.keys |= {found.get_key(row) for row in range(len(found))}
        return found

    def scan_numbers(self, letter: bytes, numbers: Numbers) -> tuple[Columns, Numbers]:
        found, owners = self._txn.scan_numbers(letter, numbers)
        self.keys |= {found.get_key(row) for row in range(len(found))}
        return found, owners


@pytest.fixture
def store() -> Iterator[KeyValueStore]:
    store = MemoryStore()
    with store.write() as txn:
        namespace.prepare(txn, NOW)
        root = add_mount(txn, "/m").root
        entries = [file(name) for name in NAMES if name != "below"] + [directory("both"), directory("below")]
        apply_listing(txn, root, entries)
        below = namespace.resolve(txn, "/m/below").entry.attr.inode
        apply_listing(txn, below, [file(f"{number:04}") for number in range(300)])
    yield store
    store.close()


def test_all_that_a_lookup_looks_at_is_brought_first(store: KeyValueStore) -> None:
    with store.read() as txn:
        top, below = (namespace.resolve(txn, path).entry.attr.inode for path in ("/m", "/m/below"))
        shown = namespace.list_entries(txn, top).entries
        places = [(top, name) for name in [*NAMES, "both%~file", "missing"]] + [(top, entry.name) for entry in shown]
        places += [(below, f"{number:04}") for number in (0, 150, 299, 300)]
        places += [(entry.attr.inode, "") for entry in shown]
        for asked in (places, *([place] for place in places)):
            looked = Watched(txn)
            for parent, name in asked:
                if name:
                    namespace.lookup(looked, parent, name)
                else:
                    namespace.get_entry(looked, parent)
            brought = {*ahead.list_first_keys(txn, asked), *ahead.list_next_keys(txn, asked)}
            # The way up to the root is in memory. A directory's name, and a file's that is found by an index, lie elsewhere: both
            # are rare, and left to the read.
            left = {key for key in looked.keys - brought if key[:1] not in (b"C", b"I")}
            assert all(key[:1] == b"D" and (key[-1:] == b"/" or len(key) > 100) for key in left)
            for parent, name in asked:
                found = namespace.lookup(txn, parent, name) if name else namespace.get_entry(txn, parent)
                for inode in (parent, found.attr.inode if found is not None else parent):
                    assert b"I" + inode.to_bytes(8, "big") in brought


def test_what_is_not_there_is_left_to_the_read(store: KeyValueStore) -> None:
    with store.read() as txn:
        gone = [(InodeId(999_999), "name"), (InodeId(999_999), ""), (InodeId(1), "no such name")]
        assert ahead.list_first_keys(txn, gone)
        assert ahead.list_next_keys(txn, gone) == []
        ahead.bring_page(txn, InodeId(999_999), b"", 10)
        with pytest.raises(errors.NotFound):
            namespace.lookup(txn, *gone[0])


def test_all_that_a_page_shows_is_brought_first(store: KeyValueStore) -> None:
    with store.read() as txn:
        below = namespace.resolve(txn, "/m/below").entry.attr.inode
        cursor = b""
        while True:
            brought, looked = Watched(txn), Watched(txn)
            ahead.bring_page(brought, below, cursor, 100)
            page = namespace.list_entries(looked, below, cursor, 100)
            assert {key for key in looked.keys if key[:1] == b"D"} <= brought.keys
            assert {b"I" + entry.attr.inode.to_bytes(8, "big") for entry in page.entries} <= brought.keys
            cursor = page.cursor
            if not cursor:
                break
