"""What every store must do when it is written to, run on all of them that can be (tests/conformance/stores).

Contents are compared by somebody else's client (`store.get`) as well as by the store's own reading.
"""

import asyncio
import contextlib
import os
import random
import secrets
from collections.abc import Sequence
from contextlib import suppress

import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind, to_bytes
from alluxio_like.ufs.api import StoreEntry
from alluxio_like.ufs.writing import Expected, Part, Source, Upload, WriteCapabilities, WriteOptions, get_writable
from tests.conformance.stores import StoreUnderTest, make_source

ABSENT = Expected(None)


@pytest.fixture(autouse=True)
def _writes(store: StoreUnderTest) -> None:
    if not store.writes:
        pytest.skip("this store is only read")


@pytest.fixture
async def can(store: StoreUnderTest) -> WriteCapabilities:
    """What the store under test can do."""
    return await store.writable.get_capabilities()


def make_data(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def make_options(**metadata: str) -> WriteOptions:
    return WriteOptions(secrets.token_hex(16), metadata)


async def put(
    store: StoreUnderTest,
    key: str,
    data: bytes,
    expected: Expected | None = None,
    options: WriteOptions | None = None,
) -> StoreEntry:
    with make_source(data) as source:
        return await store.writable.put(key, source, options or make_options(), expected=expected)


async def make_parents(store: StoreUnderTest, key: str) -> None:
    """The directories of a key, where the store has directories."""
    if not store.is_flat:
        parts = key.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            try:
                await store.writable.make_directory("/".join(parts[:count]))
            except errors.AlreadyExists:
                continue


def get_fingerprint(entry: StoreEntry) -> Fingerprint:
    assert entry.fingerprint is not None
    return entry.fingerprint


async def has_nothing(store: StoreUnderTest, key: str) -> bool:
    """Whether nobody sees a file at the key."""
    with pytest.raises(errors.NotFound):
        await store.ufs.stat(key)
    with pytest.raises(LookupError):
        store.get(key)
    return True


# -- whole contents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_500_000])
async def test_what_was_put_is_there(store: StoreUnderTest, size: int) -> None:
    data = make_data(size)
    await make_parents(store, "dir/k")
    entry = await put(store, "dir/k", data)
    assert (entry.name, entry.kind, get_fingerprint(entry).size) == ("k", Kind.FILE, size)
    assert store.get("dir/k") == data
    assert await store.read("dir/k", get_fingerprint(entry), 0, size) == data
    assert (await store.ufs.stat("dir/k")).fingerprint == entry.fingerprint
    assert [found.fingerprint for found in await store.list_all("dir/")] == [entry.fingerprint]


async def test_a_put_replaces_and_the_old_content_is_stale(store: StoreUnderTest) -> None:
    first = await put(store, "k", b"first")
    second = await put(store, "k", b"other")
    assert first.fingerprint != second.fingerprint
    assert store.get("k") == b"other"
    with pytest.raises(errors.Stale):
        await store.read("k", get_fingerprint(first), 0, 5)


async def test_a_source_lies_anywhere_in_its_file(store: StoreUnderTest) -> None:
    data = make_data(1_000_000)
    with make_source(data) as source:
        for offset, length in [(0, 10), (500_000, 100_000), (999_999, 1), (3, 0)]:
            part = Source(source.fd, source.offset + offset, length)
            await store.writable.put("k", part, make_options())
            assert store.get("k") == data[offset : offset + length]


async def test_a_source_that_is_too_short_changes_nothing(store: StoreUnderTest) -> None:
    await put(store, "old", b"as it was")
    data = make_data(3 << 20)
    for key in ("old", "new"):
        with make_source(data) as source:
            os.ftruncate(source.fd, 2 << 20)
            with pytest.raises(errors.InvalidArgument):
                await store.writable.put(key, source, make_options())
    assert store.get("old") == b"as it was"
    assert await has_nothing(store, "new")
    assert [entry.name for entry in await store.list_all("")] == ["old"]


async def test_a_failed_put_leaves_the_sources_descriptor_alone(store: StoreUnderTest) -> None:
    with make_source(b"12345") as source:
        with pytest.raises(errors.Conflict):
            await put_expecting(store, source, Expected(Fingerprint("nothing", 3)))
        assert os.fstat(source.fd).st_size > 5
        await store.writable.put("k", source, make_options())
    assert store.get("k") == b"12345"


async def put_expecting(store: StoreUnderTest, source: Source, expected: Expected) -> StoreEntry:
    return await store.writable.put("k", source, make_options(), expected=expected)


@pytest.mark.parametrize("key", ["", "a\0b"])
async def test_keys_that_cannot_be(store: StoreUnderTest, key: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        await put(store, key, b"1")


async def test_a_name_that_is_too_long(store: StoreUnderTest) -> None:
    if store.can_name("x" * 1100):
        pytest.skip("it takes long names")
    with pytest.raises(errors.NameTooLong):
        await put(store, "x" * 1100, b"1")


async def test_odd_names(store: StoreUnderTest) -> None:
    names = ["a b", "a+b", "100%", "%41", "q?x=1&y", "h#1", "back\\slash", "n\nl", "t\tb", "r\rx", "<&>;'\"", "x" * 255]
    names += ["日本", "é", "e\u0301", "\x01", "\x7f", ":", "\ufffe", "\U0001f600", " ", "...", "~", "*", "x" * 700]
    names = [name for name in names if store.can_name(name)]
    await make_parents(store, "odd/x")
    for name in names:
        entry = await put(store, f"odd/{name}", to_bytes(name), ABSENT)
        assert entry.name == name
        assert store.get(f"odd/{name}") == to_bytes(name)
        assert await store.read(f"odd/{name}", get_fingerprint(entry), 0, get_fingerprint(entry).size) == to_bytes(name)
    assert sorted(entry.name for entry in await store.list_all("odd/")) == sorted(names)
    await store.writable.delete(f"odd/{names[0]}")
    assert await store.writable.delete_many([f"odd/{name}" for name in names]) == {}
    for name in names:
        with pytest.raises(LookupError):
            store.get(f"odd/{name}")
    if store.is_flat:
        for key in ("d//y", "d/./z", "d/../w", "/lead", "d/sub/"):
            entry = await put(store, key, key.encode(), ABSENT)
            assert store.get(key) == key.encode()
            assert await store.writable.delete_many([key]) == {}
            with pytest.raises(LookupError):
                store.get(key)


async def test_names_that_cannot_be_are_told_without_asking(store: StoreUnderTest) -> None:
    names = ["a b", "a:b", "back\\slash", "n\nl", "r\rx", "t\tb", "\x7f", "\udcff", "x" * 255, "%41", ".hidden", ".snap"]
    reserved = [
        ".alluxio_like-" + "0" * 32,
        ".n.alluxio-like." + "0" * 32,
        ".alluxio-like-parts",
        ".alluxio-like-probe-" + "0" * 16,
    ]
    for name in names:
        if name != ".snap" and "\udcff" not in name:
            assert bool(store.writable.refuse_name(name, at_root=True)) != store.can_name(name), name
        if not store.writable.refuse_name(name, at_root=True):
            await put(store, name, b"1")
            assert [entry.name for entry in await store.list_all("")] == [name]
            await store.writable.delete(name)
        else:
            with pytest.raises((errors.Unsupported, errors.InvalidArgument, errors.NotFound)):
                await put(store, name, b"1")
    for name in reserved:
        if not store.writable.refuse_name(name, at_root=True):
            await put(store, name, b"1")
            assert [entry.name for entry in await store.list_all("")] == [name]
            await store.writable.delete(name)
    assert store.writable.refuse_name("usual", at_root=True) == ""


async def test_read_after_write_listing(store: StoreUnderTest) -> None:
    await make_parents(store, "d/x")
    for number in range(20):
        entry = await put(store, f"d/{number:02}", b"x" * number)
        assert [(e.name, e.fingerprint) for e in await store.list_all("d/")][-1] == (f"{number:02}", entry.fingerprint)
        if number % 3 == 2:
            await store.writable.delete(f"d/{number:02}")
            assert f"{number:02}" not in [e.name for e in await store.list_all("d/")]


async def test_many_puts_at_once(store: StoreUnderTest) -> None:
    async def write(number: int) -> None:
        entry = await put(store, f"k{number}", make_data(50_000, number))
        assert get_fingerprint(entry).size == 50_000

    await asyncio.gather(*[write(number) for number in range(40)])
    for number in range(40):
        assert store.get(f"k{number}") == make_data(50_000, number)


async def test_a_cancelled_put_is_whole_or_nothing(store: StoreUnderTest) -> None:
    data = make_data(6 << 20)
    for attempt in range(12):
        task = asyncio.create_task(put(store, f"k{attempt}", data))
        for _ in range(attempt * 3):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):  # it may have been done already
            await task
    await put(store, "after", b"usable")
    assert store.get("after") == b"usable"
    for attempt in range(12):
        try:
            assert store.get(f"k{attempt}") == data
        except LookupError:
            continue


async def test_nothing_else_is_left(store: StoreUnderTest, can: WriteCapabilities) -> None:
    await put(store, "a", b"1", ABSENT)
    with pytest.raises(errors.Conflict):
        await put(store, "a", b"2", ABSENT)
    upload = await store.writable.begin_upload("b", make_options())
    await store.writable.abort_upload(upload)
    assert [entry.name for entry in await store.list_all("")] == ["a"]
    assert await store.writable.list_uploads("") == []


# -- what a write expects ---------------------------------------------------------------------------------------------------


async def test_expecting_nothing(store: StoreUnderTest) -> None:
    await put(store, "k", b"first", ABSENT)
    with pytest.raises(errors.Conflict):
        await put(store, "k", b"second", ABSENT)
    assert store.get("k") == b"first"
    store.delete("k")
    await put(store, "k", b"third", ABSENT)
    assert store.get("k") == b"third"


async def test_expecting_a_content(store: StoreUnderTest) -> None:
    first = await put(store, "k", b"first")
    second = await put(store, "k", b"second", Expected(first.fingerprint))
    for gone in (first.fingerprint, Fingerprint("0" * 32, 6)):
        with pytest.raises(errors.Conflict):
            await put(store, "k", b"third", Expected(gone))
    assert store.get("k") == b"second"
    store.put("k", b"foreign")
    with pytest.raises(errors.Conflict):
        await put(store, "k", b"third", Expected(second.fingerprint))
    assert store.get("k") == b"foreign"
    store.delete("k")
    with pytest.raises(errors.Conflict):
        await put(store, "k", b"third", Expected(second.fingerprint))
    assert await has_nothing(store, "k")


async def test_of_many_who_expect_nothing_one_wins(store: StoreUnderTest, can: WriteCapabilities) -> None:
    if not can.puts_conditionally:
        pytest.skip("compared just before")
    results = await asyncio.gather(*[put(store, "k", b"%d" % n, ABSENT) for n in range(10)], return_exceptions=True)
    (winner,) = [number for number, result in enumerate(results) if isinstance(result, StoreEntry)]
    assert all(isinstance(result, errors.Conflict) for number, result in enumerate(results) if number != winner), results
    assert store.get("k") == b"%d" % winner


async def test_of_many_who_replace_one_content_one_wins(store: StoreUnderTest, can: WriteCapabilities) -> None:
    if not can.puts_conditionally:
        pytest.skip("compared just before")
    expected = Expected((await put(store, "k", b"old")).fingerprint)

    async def race(number: int) -> StoreEntry:
        """As uploads do, a failure that says nothing of the content is asked again: radosgw answers some losers with 500."""
        options = make_options()
        for _ in range(5):
            with contextlib.suppress(errors.StoreUnavailable):
                return await put(store, "k", b"%d" % number, expected, options)
            written = await store.writable.lookup_written("k", options.token)
            if written is not None:
                return written
        raise AssertionError("the store answers nothing else")

    results = await asyncio.gather(*[race(number) for number in range(10)], return_exceptions=True)
    (winner,) = [number for number, result in enumerate(results) if isinstance(result, StoreEntry)]
    assert all(isinstance(result, errors.Conflict) for number, result in enumerate(results) if number != winner), results
    assert store.get("k") == b"%d" % winner


async def test_the_token_tells_whose_write_it_was(store: StoreUnderTest) -> None:
    ours = make_options()
    assert await store.writable.lookup_written("k", ours.token) is None
    entry = await put(store, "k", b"ours", ABSENT, ours)
    found = await store.writable.lookup_written("k", ours.token)
    assert found is not None and found.fingerprint == entry.fingerprint
    assert await store.writable.lookup_written("k", make_options().token) is None
    store.put("k", b"foreign")
    assert await store.writable.lookup_written("k", ours.token) is None
    theirs = make_options()
    await put(store, "k", b"theirs", None, theirs)
    assert await store.writable.lookup_written("k", ours.token) is None
    assert await store.writable.lookup_written("k", theirs.token) is not None


async def test_metadata_are_kept(store: StoreUnderTest, can: WriteCapabilities) -> None:
    given = {"uid": "1000", "mode": "33188", "mtime": "1700000000.123456789", "with-dash": 'odd "text", a=b; %41 + c'}
    await put(store, "k", b"1", None, make_options(**given))
    found = await store.writable.read_metadata("k")
    assert {name: text for name, text in found.items() if name in given} == (given if can.keeps_metadata else {})
    await put(store, "k", b"2")
    assert not set(given) & set(await store.writable.read_metadata("k"))
    with pytest.raises(errors.NotFound):
        await store.writable.read_metadata("nothing")


@pytest.mark.parametrize("metadata", [{"a": "é"}, {"a": " x"}, {"a": "x\n"}, {"Upper": "x"}, {"": "x"}, {"a b": "x"}])
def test_metadata_that_cannot_be(store: StoreUnderTest, metadata: dict[str, str]) -> None:
    with pytest.raises(errors.InvalidArgument):
        WriteOptions("0" * 32, metadata)


# -- uploads in parts -------------------------------------------------------------------------------------------------------


async def send(store: StoreUnderTest, upload: Upload, data: bytes, part_bytes: int, numbers: Sequence[int] = ()) -> list[Part]:
    """Parts of `data`: all, or those with these numbers."""
    parts = []
    with make_source(data) as source:
        for number in numbers or range(1, -(-len(data) // part_bytes) + 1):
            start = (number - 1) * part_bytes
            part = Source(source.fd, source.offset + start, min(part_bytes, len(data) - start))
            parts.append(await store.writable.upload_part(upload, number, part, start))
    return parts


def get_part_bytes(can: WriteCapabilities) -> int:
    return max(can.min_part_bytes, 1 << 20)


async def test_an_upload_in_parts(store: StoreUnderTest, can: WriteCapabilities) -> None:
    part_bytes = get_part_bytes(can)
    data = make_data(2 * part_bytes + 12_345)
    options = make_options(mode="33188")
    await make_parents(store, "dir/k")
    upload = await store.writable.begin_upload("dir/k", options)
    order = [1, 2, 3] if can.ordered_parts else [3, 1, 2]
    parts = await send(store, upload, data, part_bytes, order)
    assert await has_nothing(store, "dir/k")
    assert [entry.name for entry in await store.list_all("dir/")] == []
    assert [(part.number, part.length) for part in await store.writable.list_parts(upload)] == [
        (1, part_bytes),
        (2, part_bytes),
        (3, 12_345),
    ]
    parts.sort(key=lambda part: part.number)
    entry = await store.writable.finish_upload(upload, parts, options)
    assert (entry.name, get_fingerprint(entry).size) == ("k", len(data))
    assert store.get("dir/k") == data
    assert (await store.ufs.stat("dir/k")).fingerprint == entry.fingerprint
    assert await store.read("dir/k", get_fingerprint(entry), part_bytes - 5, 10) == data[part_bytes - 5 : part_bytes + 5]
    written = await store.writable.lookup_written("dir/k", options.token)
    assert written is not None and written.fingerprint == entry.fingerprint
    assert (await store.writable.read_metadata("dir/k")).get("mode") == ("33188" if can.keeps_metadata else None)
    assert await store.writable.list_uploads("") == []


async def test_parts_at_once(store: StoreUnderTest, can: WriteCapabilities) -> None:
    if can.ordered_parts:
        pytest.skip("parts come one after the other")
    part_bytes = get_part_bytes(can)
    data = make_data(4 * part_bytes)
    options = make_options()
    upload = await store.writable.begin_upload("k", options)
    sent = await asyncio.gather(*[send(store, upload, data, part_bytes, [number]) for number in (1, 2, 3, 4)])
    await store.writable.finish_upload(upload, [part for (part,) in sent], options, expected=ABSENT)
    assert store.get("k") == data


async def test_an_upload_goes_on_after_a_restart(store: StoreUnderTest, can: WriteCapabilities) -> None:
    assert store.reopen is not None
    part_bytes = get_part_bytes(can)
    data = make_data(2 * part_bytes + 1)
    options = make_options()
    began = await store.writable.begin_upload("k", options)
    await send(store, began, data, part_bytes, [1])
    again = get_writable(store.reopen())
    try:
        # All that was kept is the name, and it can be found as well.
        upload = Upload("k", began.upload_id)
        assert [(found.key, found.upload_id) for found in await again.list_uploads("k")] == [("k", upload.upload_id)]
        known = list(await again.list_parts(upload))
        assert [(part.number, part.length) for part in known] == [(1, part_bytes)]
        store_again = StoreUnderTest(again, store.put, store.delete, store.get, store.is_flat)
        known += await send(store_again, upload, data, part_bytes, [2, 3])
        entry = await again.finish_upload(upload, known, options, expected=ABSENT)
        assert get_fingerprint(entry).size == len(data)
        assert store.get("k") == data
        assert await again.list_uploads("") == []
    finally:
        await again.close()


async def test_a_part_is_sent_again(store: StoreUnderTest, can: WriteCapabilities) -> None:
    options = make_options()
    upload = await store.writable.begin_upload("k", options)
    await send(store, upload, b"wrong bytes", 1 << 20)
    parts = await send(store, upload, b"right", 1 << 20)
    assert [part.length for part in await store.writable.list_parts(upload)] == [5]
    await store.writable.finish_upload(upload, parts, options)
    assert store.get("k") == b"right"


async def test_a_part_whose_source_is_too_short(store: StoreUnderTest) -> None:
    upload = await store.writable.begin_upload("k", make_options())
    with make_source(make_data(1 << 20)) as source:
        os.ftruncate(source.fd, 1 << 19)
        with pytest.raises(errors.InvalidArgument):
            await store.writable.upload_part(upload, 1, source, 0)
    assert await store.writable.list_parts(upload) == []
    await store.writable.abort_upload(upload)


async def test_an_aborted_upload_leaves_nothing(store: StoreUnderTest) -> None:
    options = make_options()
    upload = await store.writable.begin_upload("k", options)
    parts = await send(store, upload, b"parts", 1 << 20)
    await store.writable.abort_upload(upload)
    await store.writable.abort_upload(upload)
    assert await has_nothing(store, "k")
    assert await store.writable.list_uploads("") == []
    for call in (store.writable.list_parts(upload), store.writable.finish_upload(upload, parts, options)):
        with pytest.raises(errors.NotFound):
            await call
    with pytest.raises(errors.NotFound):
        await send(store, upload, b"more", 1 << 20)
    assert await has_nothing(store, "k")


async def test_an_upload_expects_like_a_put(store: StoreUnderTest) -> None:
    there = await put(store, "k", b"there")
    options = make_options()
    upload = await store.writable.begin_upload("k", options)
    parts = await send(store, upload, b"uploaded", 1 << 20)
    for wrong in (ABSENT, Expected(Fingerprint("0" * 32, 5))):
        with pytest.raises(errors.Conflict):
            await store.writable.finish_upload(upload, parts, options, expected=wrong)
    assert store.get("k") == b"there"
    # It goes on: what is there may turn out to be known.
    assert len(await store.writable.list_parts(upload)) == 1
    await store.writable.finish_upload(upload, parts, options, expected=Expected(there.fingerprint))
    assert store.get("k") == b"uploaded"

    upload = await store.writable.begin_upload("new", options)
    parts = await send(store, upload, b"uploaded", 1 << 20)
    with pytest.raises(errors.Conflict):
        await store.writable.finish_upload(upload, parts, options, expected=Expected(there.fingerprint))
    await store.writable.finish_upload(upload, parts, options, expected=ABSENT)
    assert store.get("new") == b"uploaded"
    assert await store.writable.list_uploads("") == []


async def test_uploads_are_found_below_a_prefix(store: StoreUnderTest) -> None:
    await make_parents(store, "a/x")
    await make_parents(store, "b/x")
    odd = [name for name in ("a/ü +%41", "a/n\nl", "a/\x01") if store.can_name(name.partition("/")[2])]
    uploads = [await store.writable.begin_upload(key, make_options()) for key in ["a/1", "a/2", "b/1", *odd]]
    assert sorted(u.key for u in await store.writable.list_uploads("a/")) == sorted(["a/1", "a/2", *odd])
    assert sorted(u.upload_id for u in await store.writable.list_uploads("")) == sorted(u.upload_id for u in uploads)
    assert [u.key for u in await store.writable.list_uploads("b/1")] == ["b/1"]
    for upload in uploads:
        await store.writable.abort_upload(upload)
    assert await store.writable.list_uploads("") == []


# -- removal ----------------------------------------------------------------------------------------------------------------


async def test_delete(store: StoreUnderTest) -> None:
    entry = await put(store, "k", b"1")
    await store.writable.delete("k", expected=Expected(entry.fingerprint))
    assert await has_nothing(store, "k")
    await store.writable.delete("k")
    await store.writable.delete("no/such/place")


async def test_delete_expects(store: StoreUnderTest) -> None:
    entry = await put(store, "k", b"1")
    store.put("k", b"foreign")
    for wrong in (Expected(entry.fingerprint), ABSENT):
        with pytest.raises(errors.Conflict):
            await store.writable.delete("k", expected=wrong)
    assert store.get("k") == b"foreign"


async def test_delete_many(store: StoreUnderTest) -> None:
    await make_parents(store, "d/x")
    for number in range(5):
        await put(store, f"d/{number}", b"1")
    await put(store, "d/kept", b"1")
    store.requests.clear()
    keys = [f"d/{number}" for number in range(5)] + [f"d/absent-{number}" for number in range(1500)]
    assert await store.writable.delete_many(keys) == {}
    assert [entry.name for entry in await store.list_all("d/")] == ["kept"]
    assert await store.writable.delete_many([]) == {}


# -- copies and renames -----------------------------------------------------------------------------------------------------


async def test_copy(store: StoreUnderTest, can: WriteCapabilities) -> None:
    data = make_data(1_000_000)
    entry = await put(store, "from", data, None, make_options(mode="1"))
    options = make_options(mode="2")
    if not can.copies:
        with pytest.raises(errors.Unsupported):
            await store.writable.copy("from", get_fingerprint(entry), "to", options)
        return
    copied = await store.writable.copy("from", get_fingerprint(entry), "to", options)
    assert store.get("to") == data == store.get("from")
    assert (copied.name, copied.fingerprint) == ("to", (await store.ufs.stat("to")).fingerprint)
    assert await store.read("to", get_fingerprint(copied), 0, len(data)) == data
    assert (await store.writable.read_metadata("to")).get("mode") == ("2" if can.keeps_metadata else None)
    assert await store.writable.lookup_written("to", options.token) is not None
    assert await store.writable.lookup_written("from", options.token) is None


async def test_copy_of_another_content(store: StoreUnderTest, can: WriteCapabilities) -> None:
    if not can.copies:
        pytest.skip("it copies nothing")
    old = get_fingerprint(await put(store, "from", b"old"))
    store.put("from", b"new")
    with pytest.raises(errors.Stale):
        await store.writable.copy("from", old, "to", make_options())
    store.delete("from")
    with pytest.raises(errors.Stale):
        await store.writable.copy("from", old, "to", make_options())
    assert await has_nothing(store, "to")


async def test_copy_expects(store: StoreUnderTest, can: WriteCapabilities) -> None:
    if not can.copies:
        pytest.skip("it copies nothing")
    source = get_fingerprint(await put(store, "from", b"copied"))
    there = get_fingerprint(await put(store, "to", b"there"))
    for wrong in (ABSENT, Expected(source)):
        with pytest.raises(errors.Conflict):
            await store.writable.copy("from", source, "to", make_options(), expected=wrong)
    assert store.get("to") == b"there"
    await store.writable.copy("from", source, "to", make_options(), expected=Expected(there))
    assert store.get("to") == b"copied"


async def test_copies_of_odd_names(store: StoreUnderTest, can: WriteCapabilities) -> None:
    if not can.copies:
        pytest.skip("it copies nothing")
    names = ["a b", "a+b", "%41", "q?x", "h#1", "n\nl", "日本", "e\u0301", "\x01", "<&>"]
    for name in [name for name in names if store.can_name(name)]:
        source = get_fingerprint(await put(store, name, to_bytes(name)))
        await store.writable.copy(name, source, f"{name} copied", make_options(), expected=ABSENT)
        assert store.get(f"{name} copied") == to_bytes(name)


async def test_rename(store: StoreUnderTest, can: WriteCapabilities) -> None:
    await put(store, "from", b"moved")
    if not can.renames:
        with pytest.raises(errors.Unsupported):
            await store.writable.rename("from", "to")
        return
    await store.writable.rename("from", "to")
    assert store.get("to") == b"moved"
    assert await has_nothing(store, "from")
    await put(store, "other", b"other")
    with pytest.raises(errors.AlreadyExists):
        await store.writable.rename("other", "to", replace=False)
    assert (store.get("to"), store.get("other")) == (b"moved", b"other")
    await store.writable.rename("other", "to")
    assert store.get("to") == b"other"
    with pytest.raises(errors.NotFound):
        await store.writable.rename("nothing", "to")
    assert store.get("to") == b"other"


async def test_rename_of_directories(store: StoreUnderTest, can: WriteCapabilities) -> None:
    if not can.renames or not can.has_directories:
        pytest.skip("it renames no directories")
    await make_parents(store, "a/sub/x")
    await put(store, "a/sub/x", b"1")
    await store.writable.rename("a", "b")
    assert store.get("b/sub/x") == b"1"
    assert await has_nothing(store, "a/sub/x")
    await store.writable.make_directory("full")
    await put(store, "full/x", b"1")
    with pytest.raises(errors.DirectoryNotEmpty):
        await store.writable.rename("b", "full")
    await put(store, "file", b"1")
    with pytest.raises(errors.IsADirectory):
        await store.writable.rename("file", "b")
    with pytest.raises(errors.NotADirectory):
        await store.writable.rename("b", "file")
    assert store.get("b/sub/x") == b"1"


# -- directories ------------------------------------------------------------------------------------------------------------


async def test_directories(store: StoreUnderTest) -> None:
    await store.writable.make_directory("d")
    await store.writable.make_directory("d/sub")
    assert [(e.name, e.kind) for e in await store.list_all("")] == [("d", Kind.DIRECTORY)]
    assert [(e.name, e.kind) for e in await store.list_all("d/")] == [("sub", Kind.DIRECTORY)]
    assert await store.list_all("d/sub/") == []
    await put(store, "d/sub/x", b"1")
    await put(store, "file", b"1")
    for taken in ("d", "d/sub", "file"):
        with pytest.raises(errors.AlreadyExists):
            await store.writable.make_directory(taken)
    for full in ("d", "d/sub"):
        with pytest.raises(errors.DirectoryNotEmpty):
            await store.writable.remove_directory(full)
    await store.writable.delete("d/sub/x")
    await store.writable.remove_directory("d/sub")
    await store.writable.remove_directory("d/sub")
    assert await store.list_all("d/") == []
    await store.writable.remove_directory("d")
    assert [(e.name, e.kind) for e in await store.list_all("")] == [("file", Kind.FILE)]


async def test_what_needs_a_directory(store: StoreUnderTest, can: WriteCapabilities) -> None:
    if not can.has_directories:
        await put(store, "no/such/directory", b"1")
        assert store.get("no/such/directory") == b"1"
        return
    with pytest.raises(errors.NotFound):
        await put(store, "no/such/directory", b"1")
    with pytest.raises(errors.NotFound):
        await store.writable.make_directory("no/such")
    await store.writable.make_directory("d")
    with pytest.raises(errors.IsADirectory):
        await put(store, "d", b"1")
    await put(store, "file", b"1")
    with pytest.raises((errors.NotADirectory, errors.NotFound)):
        await put(store, "file/below", b"1")


async def test_nothing_secret_is_shown(store: StoreUnderTest) -> None:
    await put(store, "k", b"1", ABSENT)
    assert "testsecret" not in f"{store.ufs!r} {vars(store.ufs)!r}"
