"""Flat listings cut into directories' parts: the same as what their own listings say, and complete only where it is."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alluxio_like import errors
from alluxio_like.master.core.flat import Claims, Cutter, Part
from alluxio_like.types import Fingerprint, InodeId, Kind, to_bytes
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.memory import MemoryUfs

NAMES = st.sampled_from(["a", "a!", "a0", "b", "", ".", "é", "z" * 300])
KEYS = st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join).filter(bool), max_size=25, unique=True)


def make(key: str) -> StoreEntry:
    if key.endswith("/"):
        return StoreEntry(key[:-1], Kind.DIRECTORY)
    return StoreEntry(key, Kind.FILE, Fingerprint(key, len(key)), 5)


def sort(keys: list[str]) -> list[str]:
    return sorted(keys, key=to_bytes)


def cut_all(keys: list[str], first: str, size: int) -> Iterator[list[Part]]:
    cutter = Cutter(first)
    entries = [make(key) for key in keys]
    for at in range(0, max(1, len(entries)), size):
        yield cutter.cut(entries[at : at + size], ended=at + size >= len(entries))


async def list_directory(store: MemoryUfs, prefix: str) -> list[StoreEntry]:
    return list((await store.list_page(prefix, max_entries=10_000)).entries)


@given(keys=KEYS, size=st.integers(1, 7), data=st.data())
@settings(max_examples=300, deadline=None)
async def test_parts_are_what_the_directories_own_listings_say(keys: list[str], size: int, data: st.DataObject) -> None:
    store = MemoryUfs()
    for key in keys:
        store.put(key, key.encode())
    directories = sort(list({key[: at + 1] for key in keys for at, char in enumerate(key) if char == "/"}))
    top = sorted({name[: name.find("/") + 1] for name in directories}, key=to_bytes)
    first = data.draw(st.sampled_from(["", *top]))
    listed = [key for key in sort(keys) if not first or to_bytes(key) > to_bytes(first)]
    covered: dict[str, list[StoreEntry]] = {}
    after: dict[str, str | None] = {}
    ended: set[str] = set()
    # What the base holds is known from its own listing where the flat one begins within it.
    known = {"", *(top if first else ())}
    for page in cut_all(listed, first, size):
        for part in page:
            assert part.prefix in known, "parents come before their children"
            assert part.prefix not in ended
            assert part.is_first == (part.prefix not in after)
            assert part.after == after.get(part.prefix)
            covered.setdefault(part.prefix, []).extend(part.entries)  # type: ignore[arg-type]
            if part.entries:
                after[part.prefix] = part.entries[-1].sort_name
            else:
                after.setdefault(part.prefix, None)
            known.update(part.prefix + entry.sort_name for entry in part.entries if entry.kind is Kind.DIRECTORY)
            if part.is_last:
                ended.add(part.prefix)
    expected = {name for name in directories if not first or to_bytes(name) >= to_bytes(first)} | ({""} if not first else set())
    assert ended == expected
    for prefix in expected:
        wanted = await list_directory(store, prefix)
        assert [(e.name, e.kind) for e in covered.get(prefix, [])] == [(e.name, e.kind) for e in wanted], prefix


@given(keys=KEYS, size=st.integers(1, 7), cut=st.integers(0, 25))
@settings(max_examples=200, deadline=None)
def test_what_a_listing_was_in_when_it_stopped_is_not_complete(keys: list[str], size: int, cut: int) -> None:
    """Whatever keys would have followed: a directory said to be ended can have none of them."""
    ordered = sort(keys)
    cutter = Cutter("")
    done: set[str] = set()
    seen = ""
    for at in range(0, min(cut, len(ordered)), size):
        page = ordered[at : at + size]
        seen = page[-1]
        for part in cutter.cut([make(key) for key in page], ended=False):
            if part.is_last:
                done.add(part.prefix)
            # Nor does a part reach beyond what was seen.
            assert all(to_bytes(part.prefix + e.sort_name) <= to_bytes(seen) for e in part.entries)
    assert not any(seen.startswith(prefix) for prefix in done)


def test_keys_out_of_order_are_refused() -> None:
    for wrong in (["b/x", "a/x"], ["a", "a"], ["a/b/x", "c", "a/b/y"]):
        with pytest.raises(errors.StoreProtocol):
            for page in cut_all(wrong, "", 1):
                assert page is not None


def test_a_directorys_own_listing_goes_before_flat_ones_and_the_first_of_these_before_others() -> None:
    one, two, three, four = (InodeId(number) for number in range(4))
    claims = Claims()
    claims.start(one)
    first = claims.start_run()
    assert first.taken == {one}
    claims.end(one)
    claims.start(two)
    claims.end(two)
    # Also after their end: what this one was told of them may be older.
    assert first.taken == {one, two}
    claims.enter(first, three)
    second = claims.start_run()
    assert second.taken == {three}
    claims.leave(first, three)
    claims.leave(second, four)
    assert (first.taken, second.taken) == ({one, two, four}, {three})
    claims.end_run(first)
    claims.end_run(second)
    assert claims.start_run().taken == set()
