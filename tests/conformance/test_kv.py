"""What every key-value engine must do, run on all of them; and what is the LMDB engine's own."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alluxio_like import errors
from alluxio_like.kv import packing
from alluxio_like.kv.api import Begun, KeyValueStore, ReadTransaction, get_prefix_stop
from alluxio_like.kv.lmdb import LmdbStore
from alluxio_like.kv.lmdb_pages import PageFile
from alluxio_like.kv.open import open_store


@pytest.fixture(params=["memory", "lmdb", pytest.param("postgresql", marks=pytest.mark.server)])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], KeyValueStore]]:
    made: list[KeyValueStore] = []

    def make() -> KeyValueStore:
        place = tmp_path / f"kv{len(made)}"
        url = {"memory": "memory://", "lmdb": f"lmdb://{place}"}.get(request.param, "")
        if not url:
            server = request.getfixturevalue("postgresql_server")
            url = server.get_url(schema=server.make_schema())
        store = open_store(url, mirror=place)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make_store: Callable[[], KeyValueStore]) -> KeyValueStore:
    return make_store()


def fill(store: KeyValueStore, count: int) -> list[tuple[bytes, bytes]]:
    pairs = [(b"k%05d" % number, b"v%d" % number) for number in range(count)]
    with store.write() as txn:
        for key, value in random.Random(count).sample(pairs, count):
            txn.put(key, value)
    return pairs


def read_columns(txn: ReadTransaction, low: bytes, high: bytes, limit: int | None = None) -> list[tuple[bytes, bytes]]:
    columns = txn.scan_columns(low, high, limit=limit)
    return [(columns.get_key(row), columns.get_value(row)) for row in range(len(columns))]


def read_all(txn: ReadTransaction) -> list[tuple[bytes, bytes]]:
    return list(txn.scan(b"\0", b"\xff" * 600))


def test_put_get_delete(store: KeyValueStore) -> None:
    with store.write() as txn:
        txn.put(b"a", b"1")
        txn.put(b"b", b"")
        txn.put(b"a", b"2")
        assert txn.get(b"a") == b"2"
        assert txn.delete(b"nothing") is False
    with store.read() as txn:
        assert txn.get(b"a") == b"2"
        assert txn.get(b"b") == b""
        assert txn.get(b"c") is None
        assert txn.get_many([b"c", b"b", b"a", b"b"]) == [None, b"", b"2", b""]
        assert txn.get_many([]) == []
    with store.write() as txn:
        assert txn.delete(b"b") is True
        assert txn.delete(b"b") is False
        assert txn.get(b"b") is None
    with store.read() as txn:
        assert read_all(txn) == [(b"a", b"2")]


@pytest.mark.parametrize("key", [b"", b"x" * 512])
def test_keys_out_of_bounds(store: KeyValueStore, key: bytes) -> None:
    with store.write() as txn:
        for call in (lambda: txn.put(key, b""), lambda: txn.get(key), lambda: txn.get_many([b"a", key])):
            with pytest.raises(ValueError, match="1 to 511 bytes"):
                call()
        with pytest.raises(ValueError, match="1 to 511 bytes"):
            txn.delete(key)
        txn.put(b"a", b"1")
    with store.read() as txn:
        assert txn.get(b"a") == b"1"


def test_longest_keys_scan_both_ways(store: KeyValueStore) -> None:
    keys = sorted([b"x" * 511, b"x" * 510, b"x" * 510 + b"y", b"\xff" * 511, b"x" * 509])
    with store.write() as txn:
        for key in keys:
            txn.put(key, key)
        assert [key for key, _ in txn.scan(b"\0", b"\xff" * 512)] == keys
        assert [key for key, _ in txn.scan(b"\0", b"\xff" * 512, reverse=True)] == keys[::-1]
        assert [key for key, _ in txn.scan(b"x" * 511 + b"\0", b"\xff" * 512)] == keys[3:]
        assert [key for key, _ in txn.scan(b"x" * 510, b"x" * 511 + b"\0", reverse=True)] == [b"x" * 511, b"x" * 510]


@pytest.mark.parametrize("shape", ["few", "many", "long keys", "large values"])
def test_columns_are_what_scans_say(store: KeyValueStore, shape: str) -> None:
    """In writes and between them, from the first key to the last and from anywhere on, while the tree grows and shrinks."""
    chooser = random.Random(shape)
    counts = {"few": 40, "many": 20_000, "long keys": 3000, "large values": 600}
    sizes = {"large values": [0, 1, 1500, 2010, 2030, 4080, 9000]}.get(shape, [0, 4, 90])

    def make_key() -> bytes:
        number = b"%05d" % chooser.randrange(counts[shape])
        return b"k" + (number * 100 + b"x" * chooser.randrange(7) if shape == "long keys" else number)

    for step in range(4):
        with store.write() as txn:
            for _ in range(counts[shape] // 2):
                txn.put(make_key(), os.urandom(chooser.choice(sizes)))
            if step == 2:
                for key in [key for key, _ in txn.scan(b"k", b"k03")][:: chooser.choice([1, 2])]:
                    txn.delete(key)
            txn.put(b"k0", b"shorter than all others")
            assert read_columns(txn, b"k", b"k~") == list(txn.scan(b"k", b"k~"))
        with store.read() as reader, store.read() as other:
            with store.write() as txn:
                # What a snapshot has is not touched by what comes after it.
                txn.put_many([(make_key(), b"later") for _ in range(300)])
            expected = list(reader.scan(b"k", b"k~"))
            assert read_columns(reader, b"k", b"k~") == expected == read_columns(other, b"j~", b"k~~")
            for limit in (1, 127, 128, 129, 1000, len(expected), len(expected) + 1):
                assert read_columns(reader, b"k", b"k~", limit) == expected[:limit]
            for _ in range(30):
                low, high = chooser.choice(
                    [(make_key(), make_key()), (b"", make_key()), (make_key()[:3], b"z"), (b"k0\0", b"kz")]
                )
                limit = chooser.choice([None, 1, 128, 200, 700])
                assert read_columns(reader, low, high, limit) == list(reader.scan(low, high, limit=limit))


@pytest.mark.parametrize("shape", ["few", "one each", "many each", "long keys", "large values"])
def test_columns_of_many_numbers_are_what_scans_of_each_say(store: KeyValueStore, shape: str) -> None:
    """Side by side and scattered, all and none, the last number of all; while the tree grows and shrinks."""
    chooser = random.Random(shape)
    pairs, highest = {"few": (20, 30), "one each": (4000, 5000), "many each": (4000, 60)}.get(shape, (1200, 400))
    sizes = [0, 1, 1500, 2010, 2030, 9000] if shape == "large values" else [0, 4, 90]

    def make_key() -> bytes:
        number = chooser.choice([chooser.randrange(highest), (1 << 64) - 1 - chooser.randrange(9)])
        rest = b"" if shape == "one each" else b"%d" % chooser.randrange(1000)
        return b"k" + number.to_bytes(8, "big") + rest * (100 if shape == "long keys" else 1)

    def check(txn: ReadTransaction, numbers: list[int]) -> None:
        columns, found = txn.scan_numbers(b"k", np.array(numbers, np.uint64))
        starts = [b"k" + number.to_bytes(8, "big") for number in numbers]
        expected = [pair for start in starts for pair in txn.scan(start, get_prefix_stop(start))]
        assert [(columns.get_key(row), columns.get_value(row)) for row in range(len(columns))] == expected
        assert found.tolist() == [int.from_bytes(key[1:9], "big") for key, _ in expected]

    for step in range(3):
        with store.write() as txn:
            txn.put_many([(b"j\xff" * 9, b"before"), (b"l\0\0\0\0\0\0\0\0", b"behind")])
            check(txn, [0, 1, 2])
            for _ in range(pairs // 2):
                txn.put(make_key()[:500], os.urandom(chooser.choice(sizes)))
            if step == 2:
                for key in [key for key, _ in txn.scan(b"k", b"l")][:: chooser.choice([1, 2])]:
                    txn.delete(key)
            check(txn, sorted(chooser.sample(range(highest), 20)))
        with store.read() as reader:
            with store.write() as txn:
                # What a snapshot has is not touched by what comes after it.
                txn.put_many([(make_key()[:500], b"later") for _ in range(100)])
            check(reader, [])
            check(reader, [(1 << 64) - 1])
            check(reader, list(range(highest)))
            check(reader, [*range(0, highest, 2), *range((1 << 64) - 12, 1 << 64)])
            for _ in range(8):
                first = chooser.randrange(highest)
                check(reader, list(range(first, first + chooser.choice([1, 5, 500]))))
                check(reader, sorted(chooser.sample(range(2 * highest), chooser.choice([1, 7, highest // 2]))))


@pytest.mark.parametrize("limit", [None, 1, 7, 300])
def test_scans_over_the_whole_range_of_first_bytes(store: KeyValueStore, limit: int | None) -> None:
    keys = sorted(bytes([first]) + rest for first in range(256) for rest in (b"", b"\0", b"x", b"\xff" * 9))
    with store.write() as txn:
        for key in keys:
            txn.put(key, key)
    with store.read() as reader:
        for low, high in ((b"\0", b"\xff" * 20), (b"@", b"b"), (b"Zx", b"a"), (b"Ax", b"Ay"), (b"B", b"B\0"), (b"", b"C")):
            expected = [key for key in keys if low <= key < high]
            assert [key for key, _ in reader.scan(low, high, limit=limit)] == expected[:limit]
            assert [key for key, _ in read_columns(reader, low, high, limit)] == expected[:limit]
            assert [key for key, _ in reader.scan(low, high, limit=limit, reverse=True)] == expected[::-1][:limit]


def test_put_many(store: KeyValueStore) -> None:
    """As many single calls: over several tables, with keys of before and twice, seen at once; nothing of a refused one."""
    fill(store, 3)
    pairs = [(b"z1", b"1"), (b"k00001", b"new"), (b"A", b""), (b"z1", b"2"), (b"\x00", b"3")]
    with store.write() as txn:
        txn.put_many([])
        txn.put_many(pairs)
        assert txn.get_many([b"z1", b"k00001", b"A", b"\x00"]) == [b"2", b"new", b"", b"3"]
    with store.read() as reader:
        assert [key for key, _ in read_all(reader)] == [b"\x00", b"A", b"k00000", b"k00001", b"k00002", b"z1"]
    with store.write() as txn, pytest.raises(ValueError, match="1 to 511 bytes"):
        txn.put_many([(b"fine", b""), (b"x" * 512, b"")])


def test_runs_of_new_pairs_between_others(store: KeyValueStore) -> None:
    """Long runs into gaps, over what is there and in no order, between small and large neighbours: each as many single calls."""
    expected: dict[bytes, bytes] = {}
    chooser = random.Random(3)
    for step in range(60):
        place = b"k%02d" % chooser.randrange(12)
        run = [
            (place + b"%04d" % number, b"%d" % step) for number in range(chooser.choice([0, 3000]), 6000, chooser.choice([7, 20]))
        ]
        if step % 5 == 0:
            run.append((place + b"x", b"v" * chooser.choice([1, 1500, 9000])))
        if step % 7 == 0:
            chooser.shuffle(run)
        with store.write() as txn:
            txn.put_many(run)
            expected |= run
            assert read_all(txn) == sorted(expected.items())
    with store.read() as reader:
        assert read_all(reader) == sorted(expected.items())


def make_run(chooser: random.Random, letter: bytes) -> list[tuple[bytes, bytes]]:
    """What a listing puts at once: pairs of one number or of numbers that follow each other, alike in most of their bytes."""
    first, count = chooser.randrange(40), chooser.choice([1, 20, 31, 32, 33, 300, 1500])
    form = chooser.choice([b"%d.jpg", b"%06d.jpg", b"sample-%09d", b"\0%d\0"])
    start = chooser.randrange(2000)

    def make_pair(number: int) -> tuple[bytes, bytes]:
        name = form % number
        token = chooser.randbytes(16) + b"x" * (chooser.random() < 0.01)
        if letter == b"I":
            return b"I" + (first * 50 + number).to_bytes(8, "big"), b"\1" * 50 + token + name
        return letter + first.to_bytes(8, "big") + name, (first * 1000 + number).to_bytes(4, "big")

    return sorted(make_pair(number) for number in range(start, start + count))


@pytest.mark.parametrize("seed", range(8))
def test_long_runs_against_a_dict(store: KeyValueStore, seed: int) -> None:
    """Of the letters whose runs are packed, and of another: put in gaps and over others, changed and removed one by one, read in
    all ways, while it is written and from another transaction."""
    chooser = random.Random(seed)
    expected: dict[bytes, bytes] = {}
    bounds = [
        b"",
        b"D",
        b"E",
        b"D\0\0\0\0\0\0\0\5",
        b"I\0\0\0\0\0\0\3\0",
        b"k",
        b"\xff",
        b"D" + b"\0" * 600,
        b"I" + b"\xff" * 600,
    ]

    def check(txn: ReadTransaction) -> None:
        keys = sorted(expected)
        assert read_all(txn) == [(key, expected[key]) for key in keys]
        asked = chooser.sample(keys, min(50, len(keys))) + [key + b"\0" for key in chooser.sample(keys, 9)] + [b"D", b"I", b"Iz"]
        assert [txn.get(key) for key in asked] == [expected.get(key) for key in asked] == txn.get_many(asked)
        at = chooser.randrange(len(keys))
        assert txn.get_many(keys[at : at + 500]) == [expected[key] for key in keys[at : at + 500]]
        for _ in range(20):
            low, high = chooser.choice([*bounds, chooser.choice(keys)]), chooser.choice([*bounds, chooser.choice(keys) + b"\0"])
            limit, reverse = chooser.choice([None, 1, 2, 255, 256, 257, 1000]), chooser.random() < 0.5
            assert list(txn.scan(low, high, limit=limit, reverse=reverse)) == pick(expected, low, high, limit, reverse)
            assert read_columns(txn, low, high, limit) == pick(expected, low, high, limit, False)
        for letter in (b"D", b"I"):
            numbers = sorted(chooser.sample(range(50), chooser.choice([1, 10, 50])))
            if letter == b"I":
                numbers = sorted({number * 80 + step for number in numbers for step in range(chooser.choice([1, 100]))})
            columns, own = txn.scan_numbers(letter, np.array(numbers, np.uint64))
            rows = [pair for pair in sorted(expected.items()) if pair[0][:1] == letter]
            rows = [pair for pair in rows if int.from_bytes(pair[0][1:9], "big") in numbers]
            assert [(columns.get_key(row), columns.get_value(row)) for row in range(len(columns))] == rows
            assert own.tolist() == [int.from_bytes(key[1:9], "big") for key, _ in rows]

    for _ in range(12):
        with store.read() as before:
            there = dict(expected)
            with store.write() as txn:
                for _ in range(3):
                    run = make_run(chooser, chooser.choice([b"D", b"D", b"I", b"I", b"k"]))
                    if chooser.random() < 0.1:
                        run += run[:40]
                    txn.put_many(run)
                    expected |= run
                keys = chooser.sample(sorted(expected), min(60, len(expected) // 2))
                some = chooser.randrange(len(expected) // 2)
                keys += sorted(expected)[some : some + chooser.choice([0, 40, 400])]
                for key in dict.fromkeys(keys):
                    if chooser.random() < 0.7:
                        assert txn.delete(key) is True
                        assert txn.delete(key) is False
                        del expected[key]
                    else:
                        expected[key] = chooser.choice([expected[key], b"", b"longer" * 40, expected[key][::-1]])
                        txn.put(key, expected[key])
                check(txn)
            if there:
                assert dict(before.scan(b"\0", b"\xff" * 600)) == there
        with store.read() as reader:
            check(reader)


def test_of_two_values_of_a_key_in_a_run_the_last_counts(store: KeyValueStore) -> None:
    with store.write() as txn:
        txn.put_many([(b"D%03d" % (number // 2), b"%03d" % number) for number in range(200)])
        expected = [(b"D%03d" % number, b"%03d" % (2 * number + 1)) for number in range(100)]
        assert read_all(txn) == expected
    with store.read() as reader:
        assert read_all(reader) == expected


def test_a_scan_goes_on_over_runs_that_are_changed_meanwhile(store: KeyValueStore) -> None:
    """What was there before and after is met exactly once, as it was or as it is."""
    pairs = [(b"I" + number.to_bytes(8, "big"), b"v" * 60) for number in range(2000)]
    with store.write() as txn:
        txn.put_many(pairs)
        met = []
        for count, (key, _) in enumerate(txn.scan(b"I", b"J")):
            met.append(key)
            if count % 10 == 0:
                txn.put(pairs[(count + 3) % 2000][0], b"another")
                txn.put(pairs[(count + 400) % 2000][0], b"another")
        assert met == [key for key, _ in pairs]


def test_columns_of_what_comes_before_the_letters(store: KeyValueStore) -> None:
    pairs = [(b"\x07%03d" % number, b"v") for number in range(500)]
    with store.write() as txn:
        txn.put_many(pairs)
    with store.read() as reader:
        assert read_columns(reader, b"", b"\x08") == pairs


def test_large_values(store: KeyValueStore) -> None:
    value = os.urandom(3 << 20)
    with store.write() as txn:
        txn.put(b"large", value)
    with store.read() as txn:
        assert txn.get(b"large") == value


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [None, 0, 1, 255, 256, 257, 600, 5000])
def test_scan(store: KeyValueStore, reverse: bool, limit: int | None) -> None:
    pairs = fill(store, 1000)
    expected = pairs[100:900]
    if reverse:
        expected.reverse()
    with store.read() as txn:
        assert list(txn.scan(b"k00100", b"k00900", limit=limit, reverse=reverse)) == expected[:limit]
        assert list(txn.scan(b"k00900", b"k00100", limit=limit, reverse=reverse)) == []
        assert list(txn.scan(b"k00100", b"k00100", limit=limit, reverse=reverse)) == []
        assert list(txn.scan(b"z", b"zz", limit=limit, reverse=reverse)) == []


def test_scan_sees_own_writes_and_survives_more(store: KeyValueStore) -> None:
    fill(store, 1000)
    with store.write() as txn:
        txn.put(b"k00000x", b"own")
        txn.delete(b"k00001")
        seen = []
        for key, _ in txn.scan(b"k", b"l"):
            seen.append(key)
            txn.delete(key)
            txn.put(key.replace(b"k", b"m"), b"moved")
        assert seen[:3] == [b"k00000", b"k00000x", b"k00002"]
        assert len(seen) == 1000
        assert list(txn.scan(b"k", b"l")) == []
    with store.read() as txn:
        assert len(list(txn.scan(b"m", b"n"))) == 1000


def test_scans_given_up_leave_nothing(store: KeyValueStore) -> None:
    fill(store, 600)
    with store.read() as txn:
        scans = [txn.scan(b"k", b"l") for _ in range(50)]
        assert {next(scan)[0] for scan in scans} == {b"k00000"}
    fill(store, 700)
    with pytest.raises(errors.Internal):
        list(scans[0])


def test_abort(store: KeyValueStore) -> None:
    fill(store, 3)

    class Stop(BaseException):
        pass

    with pytest.raises(Stop), store.write() as txn:
        txn.delete(b"k00001")
        txn.put(b"other", b"")
        raise Stop
    with store.read() as txn:
        assert [key for key, _ in read_all(txn)] == [b"k00000", b"k00001", b"k00002"]
    with store.write() as txn:
        txn.put(b"after", b"")


def test_snapshots(store: KeyValueStore) -> None:
    fill(store, 500)
    with store.read() as old:
        scan = old.scan(b"k", b"l")
        next(scan)
        for key in (b"k00000", b"k00400", b"new"):
            with store.write() as txn:
                if key == b"new":
                    txn.put(key, b"")
                else:
                    txn.delete(key)
        assert len(list(scan)) == 499
        assert old.get(b"k00400") == b"v400"
        assert old.get(b"new") is None
        with store.read() as new:
            assert new.get(b"k00400") is None
            assert new.get(b"new") == b""
    with store.write() as txn, store.read() as before:
        txn.put(b"unseen", b"")
        assert before.get(b"unseen") is None


def test_use_after_the_block(store: KeyValueStore) -> None:
    with store.read() as reader:
        pass
    with store.write() as writer:
        pass
    for call in (lambda: reader.get(b"a"), lambda: writer.put(b"a", b""), lambda: list(reader.scan(b"a", b"b"))):
        with pytest.raises(errors.Internal):
            call()


def test_write_within_write_does_not_hang(store: KeyValueStore) -> None:
    with store.write() as txn:
        txn.put(b"a", b"1")
        with pytest.raises(errors.Internal), store.write():
            pass
    with store.read() as reader:
        assert reader.get(b"a") == b"1"


def test_writers_are_serialised_while_readers_see_whole_commits(store: KeyValueStore) -> None:
    """Four threads add one to two counters; readers must never see the two differ."""
    with store.write() as txn:
        txn.put(b"a", b"0")
        txn.put(b"b", b"0")
    wrong: list[object] = []
    stop = threading.Event()

    def add() -> None:
        for _ in range(50):
            with store.write() as txn:
                for key in (b"a", b"b"):
                    txn.put(key, b"%d" % (int(txn.get(key) or b"-1000") + 1))

    def watch() -> None:
        while not stop.is_set():
            with store.read() as txn:
                first = txn.get(b"a")
                stop.wait(0.0002)
                if txn.get(b"b") != first:
                    wrong.append(first)

    writers = [threading.Thread(target=add) for _ in range(4)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *writers):
        thread.start()
    for thread in writers:
        thread.join(60)
    stop.set()
    watcher.join(60)
    assert not wrong
    with store.read() as txn:
        assert txn.get_many([b"a", b"b"]) == [b"200", b"200"]


def test_closed(make_store: Callable[[], KeyValueStore]) -> None:
    store = make_store()
    assert store.get_size_bytes() >= 0
    store.flush()
    store.close()
    store.close()
    with pytest.raises(errors.Internal), store.read():
        pass
    with pytest.raises(errors.Internal), store.write():
        pass


KEYS = st.binary(min_size=1, max_size=4) | st.integers(0, 300).map(lambda n: b"k%03d" % n)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "commit", "abort"]), KEYS, st.binary(max_size=6)), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, low=KEYS, high=KEYS, limit=st.none() | st.integers(0, 20), reverse=st.booleans())
def test_against_a_dict(
    store: KeyValueStore,
    steps: list[tuple[str, bytes, bytes]],
    low: bytes,
    high: bytes,
    limit: int | None,
    reverse: bool,
) -> None:
    with store.write() as txn:
        for key, _ in read_all(txn):
            txn.delete(key)
    committed: dict[bytes, bytes] = {}
    for batch in split_batches(steps):
        draft = dict(committed)
        try:
            with store.write() as txn:
                for kind, key, value in batch:
                    if kind == "put":
                        txn.put(key, value)
                        draft[key] = value
                    elif kind == "delete":
                        assert txn.delete(key) == (draft.pop(key, None) is not None)
                    elif kind == "abort":
                        raise InterruptedError
                    assert list(txn.scan(low, high, limit=limit, reverse=reverse)) == pick(draft, low, high, limit, reverse)
            committed = draft
        except InterruptedError:
            pass
        with store.read() as reader:
            assert list(reader.scan(low, high, limit=limit, reverse=reverse)) == pick(committed, low, high, limit, reverse)
            assert read_all(reader) == [(key, committed[key]) for key in sorted(committed)]


def split_batches(steps: list[tuple[str, bytes, bytes]]) -> list[list[tuple[str, bytes, bytes]]]:
    batches: list[list[tuple[str, bytes, bytes]]] = [[]]
    for step in steps:
        batches[-1].append(step)
        if step[0] in ("commit", "abort"):
            batches.append([])
    return batches


def pick(pairs: dict[bytes, bytes], low: bytes, high: bytes, limit: int | None, reverse: bool) -> list[tuple[bytes, bytes]]:
    return [(key, pairs[key]) for key in sorted(pairs, reverse=reverse) if low <= key < high][:limit]


def test_prefix_stop() -> None:
    assert get_prefix_stop(b"ab") == b"ac"
    assert get_prefix_stop(b"a\xff\xff") == b"b"
    with pytest.raises(ValueError, match="no end"):
        get_prefix_stop(b"\xff")


@pytest.mark.parametrize("url", ["mysql://x", "lmdb://relative", "lmdb:relative", "memory://x", "/plain", "", "lmdb:///a?b=c"])
def test_unknown_url_says_what_there_is(url: str) -> None:
    with pytest.raises(errors.ConfigError, match=r"lmdb:///absolute/directory.*postgresql://.*memory://"):
        open_store(url)


# What follows is LMDB's own.


def test_lmdb_reopens_with_everything(tmp_path: Path) -> None:
    store = open_store(f"lmdb://{tmp_path}/a%20b")
    pairs = fill(store, 2000)
    store.close()
    assert (tmp_path / "a b" / "data.mdb").exists()
    assert (tmp_path / "a b").stat().st_mode & 0o077 == 0
    store = open_store(f"lmdb://{tmp_path}/a%20b")
    with store.read() as txn:
        assert read_all(txn) == pairs
    store.close()


def test_lmdb_fills_its_pages_in_whatever_order_directories_come(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    places = list(range(300))
    random.Random(1).shuffle(places)
    for place in places:
        with store.write() as txn:
            txn.put_many([(b"k" + place.to_bytes(8, "big") + b"sample-%09d.jpg" % number, b"1234") for number in range(1000)])
    # 44 bytes each in pages that are full; 83 where those in between are left half empty.
    assert store.get_size_bytes() / 300_000 < 52
    store.close()


def test_lmdb_packs_long_runs(tmp_path: Path) -> None:
    chooser = random.Random(1)
    pairs = [
        (b"I" + number.to_bytes(8, "big"), b"\1" * 58 + chooser.randbytes(16) + b"sample-%09d.jpg" % number)
        for number in range(100_000)
    ]
    store = LmdbStore(tmp_path)
    for start in range(0, len(pairs), 1000):
        with store.write() as txn:
            txn.put_many(pairs[start : start + 1000])
    # 21 are not the same as the pair's before, of 104 and what LMDB needs for each.
    assert store.get_size_bytes() / len(pairs) < 30
    store.close()
    store = LmdbStore(tmp_path, read_only=True)
    with store.read() as reader:
        assert list(reader.scan(b"I", b"J")) == pairs
    store.close()


def test_lmdb_of_a_release_that_packed_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read as it is, by who may write nothing too; what comes is packed, and that release is refused then."""
    pairs = [(b"D" + number.to_bytes(8, "big"), b"v" * 60) for number in range(1000)]
    with monkeypatch.context() as before:
        before.setattr("alluxio_like.kv.lmdb.PACKED_LETTERS", b"")
        before.setattr("alluxio_like.kv.lmdb_home.FORMAT", 1)
        store = LmdbStore(tmp_path)
        with store.write() as txn:
            txn.put_many(pairs[:500])
        store.close()
    store = LmdbStore(tmp_path, read_only=True)
    with store.read() as reader:
        assert read_all(reader) == read_columns(reader, b"D", b"E") == pairs[:500]
    store.close()
    assert (tmp_path / "format").read_text() == "1\n"
    store = LmdbStore(tmp_path)
    with store.write() as txn:
        txn.put_many(pairs[500:])
    with store.read() as reader:
        assert read_all(reader) == read_columns(reader, b"D", b"E") == pairs
    store.close()
    monkeypatch.setattr("alluxio_like.kv.lmdb_home.FORMAT", 1)
    with pytest.raises(errors.FormatTooNew):
        LmdbStore(tmp_path)


CHILD = """
import sys
from pathlib import Path
from alluxio_like.kv.lmdb import LmdbStore
from alluxio_like.kv.lmdb_pages import PageFile
store = LmdbStore(Path(sys.argv[1]))
number = 0
while True:
    with store.write() as txn:
        for part in range(20):
            txn.put(b"%08d-%02d" % (number, part), b"x" * 500)
    print(number, flush=True)
    number += 1
"""


def start_child(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)


def test_lmdb_keeps_what_was_committed_over_kill_9(tmp_path: Path) -> None:
    for commits in (1, 40):
        with start_child(tmp_path / "kv") as child:
            assert child.stdout is not None
            last = -1
            for _ in range(commits):
                last = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            child.wait(60)
            last = max([last, *(int(line) for line in child.stdout.read().split())])
        store = LmdbStore(tmp_path / "kv")
        with store.read() as txn:
            numbers = [int(key[:8]) for key, _ in read_all(txn)]
        # Whole transactions, at least all that were acknowledged, at most the one more that was under way.
        assert set(numbers) in (set(range(last + 1)), set(range(last + 2)))
        assert len(numbers) == 20 * len(set(numbers))
        store.close()


def test_lmdb_second_process_is_told_who_has_it(tmp_path: Path) -> None:
    with start_child(tmp_path) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(errors.Conflict, match=f"process {child.pid} has the metadata store open"):
            LmdbStore(tmp_path)
        child.kill()
        child.wait(60)
    LmdbStore(tmp_path).close()


def test_lmdb_twice_in_one_process(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    with pytest.raises(errors.Conflict):
        LmdbStore(tmp_path)
    store.close()
    LmdbStore(tmp_path).close()


def test_lmdb_newer_format_is_refused_in_one_line(tmp_path: Path) -> None:
    LmdbStore(tmp_path).close()
    (tmp_path / "format").write_text("3\n")
    with pytest.raises(errors.FormatTooNew) as caught:
        LmdbStore(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "format").write_text("1\n")
    LmdbStore(tmp_path).close()


def test_lmdb_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(errors.Corrupt):
        LmdbStore(tmp_path)
    (tmp_path / "format").write_text("1\n")
    with pytest.raises(errors.Corrupt):
        LmdbStore(tmp_path)
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(errors.ConfigError, match="must be a directory"):
        LmdbStore(file)
    with pytest.raises(errors.ConfigError, match="must be a directory"):
        LmdbStore(file / "below")


def test_lmdb_map_grows(tmp_path: Path) -> None:
    """Sixteen times the first map, in small transactions with a reader busy meanwhile."""
    store = LmdbStore(tmp_path, map_bytes=1 << 20)
    for number in range(160):
        with store.write() as txn:
            txn.put(b"%04d" % number, os.urandom(100_000))
        with store.read() as reader:
            assert len(reader.get(b"%04d" % number) or b"") == 100_000
    store.close()
    store = LmdbStore(tmp_path, map_bytes=1 << 20)
    with store.read() as reader:
        assert len(read_all(reader)) == 160
    with store.write() as txn:
        txn.put(b"more", b"x" * 100_000)
    store.close()


def test_lmdb_full_map_is_no_space_and_the_next_try_fits(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, map_bytes=1 << 20)
    for attempt in range(5):
        try:
            with store.write() as txn:
                for number in range(30):
                    txn.put(b"%04d" % number, b"x" * 100_000)
            break
        except errors.NoSpace:
            assert attempt < 4
            with store.read() as reader:
                assert read_all(reader) == []
    with store.read() as reader:
        assert len(read_all(reader)) == 30
    store.close()


def test_lmdb_growth_does_not_wait_forever_for_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alluxio_like.kv.lmdb._GROW_WAIT_S", 0.05)
    store = LmdbStore(tmp_path, map_bytes=1 << 20)
    with store.write() as txn:
        txn.put(b"a", b"x" * 950_000)
    with store.read() as reader:
        with store.write() as txn:
            txn.put(b"b", b"y")
        assert reader.get(b"b") is None
    with store.read() as reader:
        assert reader.get(b"b") == b"y"
    store.close()


def test_lmdb_close_waits_for_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alluxio_like.kv.lmdb._CLOSE_WAIT_S", 0.05)
    store = LmdbStore(tmp_path)
    with store.read() as reader:
        with pytest.raises(errors.Internal, match="during a read"):
            store.close()
        assert reader.get(b"a") is None
    with store.write(), pytest.raises(errors.Internal, match="during a write"):
        store.close()
    store.close()


def test_lmdb_full_disk(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for the disk's end: a commit that cannot be written raises and leaves what was there."""
    program = """
import errno, resource, signal, sys
from pathlib import Path
from alluxio_like import errors
from alluxio_like.kv.lmdb import LmdbStore
from alluxio_like.kv.lmdb_pages import PageFile
store = LmdbStore(Path(sys.argv[1]))
with store.write() as txn:
    txn.put(b"before", b"x")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with store.write() as txn:
        for number in range(400):
            txn.put(b"%04d" % number, b"x" * 10_000)
    print("committed")
except errors.AlluxioLikeError as error:
    print(type(error).__name__)
with store.read() as txn:
    print(txn.get(b"before"), txn.get(b"0000"))
with store.write() as txn:
    txn.put(b"after", b"x")
store.close()
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    # The limit shows as a short write first, and then the disk is not really full.
    assert done.stdout.splitlines() in (["NoSpace", "b'x' None"], ["DiskError", "b'x' None"]), done.stderr


def test_reading_ahead_changes_nothing(store: KeyValueStore) -> None:
    pairs = fill(store, 2000)
    before = dict(pairs)
    asked = [key for key, _ in pairs[::7]] + [b"k", b"k99999", b"z", b"A", b"k" * 511]
    assert store.read_ahead([]) == Begun()
    if (wait := store.read_ahead(asked).wait) is not None:
        wait()
    with store.write() as txn:
        txn.delete(pairs[0][0])
        assert store.read_ahead(asked).missing >= 0
    with store.read() as txn:
        assert dict(txn.scan(b"\0", b"\xff")) == {key: value for key, value in before.items() if key != pairs[0][0]}


@pytest.mark.parametrize("count", [0, 1, 50, 3000, 100_000])
def test_lmdb_reads_ahead_the_pages_that_hold_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    chooser = random.Random(count)
    store = LmdbStore(tmp_path / "kv")
    pairs = [(b"k" + os.urandom(chooser.choice([8, 40])), os.urandom(30)) for _ in range(count)]
    with store.write() as txn:
        txn.put_many(pairs)
    begun: list[int] = []
    begin_read = PageFile._begin_read

    def note(pages: PageFile, number: int, content: bytearray) -> bool:
        begin_read(pages, number, content)
        if len(content) == 1:
            begun.append(number)
        return len(content) == 1

    monkeypatch.setattr(PageFile, "_begin_read", note)
    asked = [key for key, _ in chooser.sample(pairs, min(count, 64))]
    pages = store.get_pages()
    assert pages is not None
    for _ in range(2):
        # The second time the upper pages are known, and the keys with which their children begin.
        asked += [key for _, firsts, _ in pages._branches.values() for key in firsts]
        begun.clear()
        found_missing = store.read_ahead([*asked, b"k\0missing"])
        assert found_missing.missing == len(begun)
        assert not found_missing.again
    assert (found_missing.wait is None) == (count == 0)
    if found_missing.wait is not None:
        found_missing.wait()
    assert bool(pages._branches) == (count == 100_000)
    assert len(set(begun)) == len(begun) <= len(asked) + 1
    if count:
        found = pages._get_pairs(pages._read_nodes(np.array(begun, np.int64), 2))
        there = {found.get_key(row) for row in range(len(found))}
        assert set(asked) <= there
        assert len(there) <= len(begun) * 80
    store.close()


def test_lmdb_reads_ahead_the_blocks_that_hold_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chooser = random.Random(1)
    pairs = [(b"I" + number.to_bytes(8, "big"), b"\1" * 50 + chooser.randbytes(16)) for number in range(30_000)]
    store = LmdbStore(tmp_path / "kv")
    for start in range(0, len(pairs), 10_000):
        with store.write() as txn:
            txn.put_many(pairs[start : start + 10_000])
    begun: list[int] = []
    begin_read = PageFile._begin_read

    def note(pages: PageFile, number: int, content: bytearray) -> bool:
        begin_read(pages, number, content)
        if len(content) == 1:
            begun.append(number)
        return len(content) == 1

    monkeypatch.setattr(PageFile, "_begin_read", note)
    asked = [key for key, _ in chooser.sample(pairs, 64)]
    found = store.read_ahead([*asked, b"Iz"])
    assert found.missing == len(begun) == len(set(begun))
    assert found.wait is not None
    found.wait()
    pages = store.get_pages()
    assert pages is not None
    with store.read() as txn:
        there = {number: bytes(pages._get_pages(number)[number, 16:]) for number in begun}
        assert all(any(packing.get_value(block, key) == txn.get(key) for block in there.values()) for key in asked)
    store.close()


def test_lmdb_tells_what_was_not_in_memory(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "kv")
    pairs = fill(store, 20_000)
    store.flush()
    store.close()
    file = tmp_path / "kv" / "data.mdb"
    with open(file, "rb") as data:
        os.fsync(data.fileno())
        os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(data.fileno(), [bytearray(1)], file.stat().st_size // 2, os.RWF_NOWAIT)
            pytest.skip("this file system keeps everything in memory")
        except BlockingIOError:
            pass
        except OSError:
            pytest.skip("this file system does not tell")
    store = LmdbStore(tmp_path / "kv")
    asked = [key for key, _ in pairs[::500]]
    waited, keys = 0, asked
    while (begun := store.read_ahead(keys)).wait is not None:
        waited += begun.missing
        begun.wait()
        keys = list(begun.again)
    assert waited > 10
    assert store.read_ahead(asked) == Begun()
    store.close()


@pytest.mark.parametrize("may_go_on", [False, True])
def test_lmdb_is_in_memory_once_it_was_read_through(tmp_path: Path, may_go_on: bool) -> None:
    store = LmdbStore(tmp_path / "kv")
    pairs = fill(store, 150_000)
    store.flush()
    store.close()
    store = LmdbStore(tmp_path / "kv")
    file = tmp_path / "kv" / "data.mdb"
    assert file.stat().st_size > 2 << 20
    with open(file, "rb") as data:
        os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    asked = 0

    def ask() -> bool:
        nonlocal asked
        asked += 1
        return may_go_on

    store.read_through(ask)
    assert (asked > 2) == may_go_on
    if may_go_on:
        assert store.read_ahead([key for key, _ in pairs[::50]]) == Begun()
    store.close()
    with pytest.raises(errors.Internal):
        store.read_through(ask)


def test_reading_through_changes_nothing(store: KeyValueStore) -> None:
    pairs = fill(store, 100)
    store.read_through(lambda: True)
    with store.read() as txn:
        assert read_all(txn) == pairs


def test_lmdb_on_a_file_system_that_does_not_tell_what_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LmdbStore(tmp_path / "kv")
    pairs = fill(store, 20_000)
    preadv = os.preadv

    def refuse(fd: int, buffers: list[bytearray], at: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return preadv(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", refuse)
    asked = [key for key, _ in pairs[::500]]
    assert store.read_ahead(asked) == Begun()
    with store.read() as txn:
        assert read_columns(txn, b"k", b"l") == pairs
    store.close()
