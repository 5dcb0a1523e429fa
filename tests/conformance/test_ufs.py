"""What every store must do when it is read, run on all of them (tests/conformance/stores)."""

import asyncio
import random
from base64 import b64decode
from contextlib import aclosing

import pytest

from alluxio_like import errors
from alluxio_like.types import Kind, to_bytes
from alluxio_like.ufs.api import FlatUfs
from alluxio_like.ufs.cephfs import CephUfs
from alluxio_like.ufs.measuring import MeasuredUfs
from tests.conformance.stores import StoreUnderTest
from tests.servers.fixtures_clouds import AZ_KEY


def make_data(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# -- asking ----------------------------------------------------------------------------------------------------------------------


async def test_check_passes_on_an_empty_root(store: StoreUnderTest) -> None:
    found = await store.ufs.check()
    assert store.requests == {"LIST": 1}
    assert found is not store.is_flat, "a directory is there, empty or not"
    store.put("a/x", b"x")
    assert await store.ufs.check()


async def test_stores_with_a_size_tell_it(store: StoreUnderTest) -> None:
    if not isinstance(store.ufs, MeasuredUfs):
        pytest.skip("it has no end")
    space = await store.ufs.measure()
    assert 0 <= space.free_bytes <= space.total_bytes
    # (The Ceph of the tests has no manager, and so nobody who sums up.)
    assert space.total_bytes > 1 << 20 or (isinstance(store.ufs, CephUfs) and not space.total_bytes)
    assert space.free_files <= space.total_files


async def test_stat_tells_size_and_fingerprint(store: StoreUnderTest) -> None:
    store.put("dir/file", b"0123456789")
    entry = await store.ufs.stat("dir/file")
    assert (entry.name, entry.kind, entry.mtime_ns > 0) == ("file", Kind.FILE, True)
    assert entry.fingerprint is not None and entry.fingerprint.size == 10
    assert store.requests == {"HEAD": 1}


@pytest.mark.parametrize(
    "key", ["nothing", "dir/nothing", "dir", "dir/", "file/below", "", "..", "../x", "dir/../dir/file", "a\0b"]
)
async def test_stat_of_what_is_no_file(store: StoreUnderTest, key: str) -> None:
    store.put("dir/file", b"1")
    store.put("file", b"1")
    with pytest.raises(errors.NotFound):
        await store.ufs.stat(key)


async def test_listing_equals_stat(store: StoreUnderTest) -> None:
    for key in ("b", "dir/x", "a", "dir/sub/y"):
        store.put(key, key.encode())
    root = await store.list_all("")
    assert [(entry.name, entry.kind) for entry in root] == [("a", Kind.FILE), ("b", Kind.FILE), ("dir", Kind.DIRECTORY)]
    below = await store.list_all("dir/")
    assert [(entry.name, entry.kind) for entry in below] == [("sub", Kind.DIRECTORY), ("x", Kind.FILE)]
    for entry, key in [(root[0], "a"), (root[1], "b"), (below[1], "dir/x")]:
        asked = await store.ufs.stat(key)
        assert asked.fingerprint == entry.fingerprint
        # (S3 answers HEAD in whole seconds)
        assert asked.mtime_ns // 10**9 == entry.mtime_ns // 10**9
    assert root[2].fingerprint is None


@pytest.mark.parametrize("max_entries", [1, 2, 3, 7, 1000])
async def test_pages_are_in_order_of_bytes_and_leave_nothing_out(store: StoreUnderTest, max_entries: int) -> None:
    names = [
        "a",
        "a!",
        "a.b",
        "a/x",
        "a/y",
        "a0",
        "B",
        "ab/c/d",
        "ab-",
        "ä",
        "z/1",
        "z/2",
        "\U0001f600",
        "\ufb01",
        "~",
        " ",
        "é/ü",
    ]
    for name in names:
        if store.is_flat or name != "a":  # a directory cannot also be a file
            store.put(f"dir/{name}", b"")
    expected = sorted({to_bytes(name.partition("/")[0] + ("/" if "/" in name else "")) for name in names})
    if not store.is_flat:
        expected.remove(b"a")
    found = await store.list_all("dir/", max_entries)
    assert [to_bytes(entry.sort_name) for entry in found] == expected


@pytest.mark.parametrize("max_entries", [1, 3, 1000])
async def test_a_flat_listing_has_every_key_in_order(store: StoreUnderTest, max_entries: int) -> None:
    if not isinstance(store.ufs, FlatUfs):
        return
    files = ["a", "a!", "a/x", "a/y/z", "a0", "d/a//b", "d/e.f/g", "d/é/1", "d/e + %", "z/deep/er/and/deeper/x"]
    markers = ["d/", "d/m/"]
    for key in files + markers:
        store.put(key, key.encode())
    for prefix, after in (("", ""), ("a/", ""), ("d/", ""), ("d/", "a/"), ("d/", "e + %"), ("nothing/", ""), ("a", "")):
        keys, token = [], None
        for _ in range(100):
            page = await store.ufs.list_flat(prefix, token, after=after, max_entries=max_entries)
            for entry in page.entries:
                keys.append(entry.sort_name)
                if entry.kind is Kind.FILE:
                    assert entry.fingerprint == (await store.ufs.stat(prefix + entry.name)).fingerprint
            token = page.token
            if token is None:
                break
        else:
            raise AssertionError("the listing does not end")
        below = sorted((key[len(prefix) :] for key in files + markers if key.startswith(prefix)), key=to_bytes)
        assert keys == [key for key in below if key and to_bytes(key) > to_bytes(after)], (prefix, after)


async def test_listing_below_nothing(store: StoreUnderTest) -> None:
    if store.is_flat:
        assert await store.list_all("nothing/") == []
    else:
        with pytest.raises(errors.NotFound):
            await store.list_all("nothing/")


async def test_names_with_meaning_elsewhere(store: StoreUnderTest) -> None:
    names = [
        "a b",
        "a+b",
        "a%2Fb",
        "100%",
        "q?x=1&y",
        "h#1",
        "back\\slash",
        "*",
        "[x]",
        "{y}",
        "<&>;",
        "'\"",
        "n\nl",
        "t\tb",
        "~u",
        "$(x)",
    ]
    names += ["...", ".hidden", "x" * 200, "日本", "e\u0301", "\x7f", "\x01", ":colon", "@at", "=", ",", "a|b", "^"]
    names += ["\udcff\udcfe"]  # bytes that are not UTF-8
    names = [name for name in names if store.can_name(name)]
    for name in names:
        store.put(f"odd/{name}", to_bytes(name) * 3)
    found = await store.list_all("odd/", 7)
    assert sorted(entry.name for entry in found) == sorted(names)
    for entry in found:
        assert entry.fingerprint is not None
        data = await store.read(f"odd/{entry.name}", entry.fingerprint, 0, entry.fingerprint.size)
        assert data == to_bytes(entry.name) * 3, entry.name
        assert (await store.ufs.stat(f"odd/{entry.name}")).fingerprint == entry.fingerprint


async def test_keys_that_are_no_paths(store: StoreUnderTest) -> None:
    if not store.is_flat:
        pytest.skip("directories have no such names")
    for key in ("d/", "d/x", "d//y", "d/./z", "d/../w", "d/sub/", "/lead"):
        store.put(key, key.encode())
    assert [(e.name, e.kind) for e in await store.list_all("")] == [("", Kind.DIRECTORY), ("d", Kind.DIRECTORY)]
    below = await store.list_all("d/", 1)
    assert [(e.name, e.kind) for e in below if e.kind is Kind.FILE] == [("x", Kind.FILE)]
    assert [e.name for e in below if e.kind is Kind.DIRECTORY] == ["..", ".", "", "sub"]
    assert await store.list_all("d/sub/") == []
    for prefix, key in [("d//", "d//y"), ("d/./", "d/./z"), ("d/../", "d/../w"), ("/", "/lead")]:
        (entry,) = await store.list_all(prefix)
        assert entry.fingerprint is not None
        assert await store.read(key, entry.fingerprint, 0, entry.fingerprint.size) == key.encode()
        assert await store.read(key, entry.fingerprint, 1, 2) == key.encode()[1:3]


# -- reading ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 3_500_000), (0, 1), (3_499_999, 1), (1 << 20, 1 << 20), (17, 3_000_000), (0, 0)]
)
async def test_reads_exactly_the_range(store: StoreUnderTest, offset: int, length: int) -> None:
    data = make_data(3_500_000)
    store.put("big", data)
    fingerprint = (await store.ufs.stat("big")).fingerprint
    assert fingerprint is not None
    store.requests.clear()
    assert await store.read("big", fingerprint, offset, length) == data[offset : offset + length]
    assert store.requests == ({"GET": 1} if length else {})


async def test_an_empty_file(store: StoreUnderTest) -> None:
    store.put("empty", b"")
    fingerprint = (await store.ufs.stat("empty")).fingerprint
    assert fingerprint is not None and fingerprint.size == 0
    assert await store.read("empty", fingerprint, 0, 0) == b""


@pytest.mark.parametrize(("offset", "length"), [(5, 6), (11, 0), (-1, 2), (0, -1)])
async def test_a_range_outside_of_the_content(store: StoreUnderTest, offset: int, length: int) -> None:
    store.put("k", b"0123456789")
    fingerprint = (await store.ufs.stat("k")).fingerprint
    assert fingerprint is not None
    with pytest.raises(errors.InvalidArgument):
        await store.read("k", fingerprint, offset, length)


@pytest.mark.parametrize("size", [10, 9, 11, 0])
async def test_a_replaced_content_is_stale(store: StoreUnderTest, size: int) -> None:
    store.put("k", b"0123456789")
    old = (await store.ufs.stat("k")).fingerprint
    store.put("k", b"x" * size)
    new = (await store.ufs.stat("k")).fingerprint
    assert old is not None and new is not None and old != new
    for offset, length in [(0, 10), (9, 1), (3, 4)]:
        with pytest.raises(errors.Stale):
            await store.read("k", old, offset, length)
    assert await store.read("k", new, 0, size) == b"x" * size


async def test_a_removed_content_is_stale(store: StoreUnderTest) -> None:
    store.put("dir/k", b"0123456789")
    fingerprint = (await store.ufs.stat("dir/k")).fingerprint
    assert fingerprint is not None
    store.delete("dir/k")
    with pytest.raises(errors.Stale):
        await store.read("dir/k", fingerprint, 0, 10)
    assert "k" not in [entry.name for entry in await store.list_all("dir/")]


async def test_a_change_during_a_read_is_never_mixed(store: StoreUnderTest) -> None:
    size = 12 << 20
    old_data, new_data = make_data(size, 1), make_data(size, 2)
    store.put("k", old_data)
    fingerprint = (await store.ufs.stat("k")).fingerprint
    assert fingerprint is not None
    got = b""
    try:
        async with aclosing(store.ufs.read("k", fingerprint, 0, size)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if not got:
                    store.put("k", new_data)
                got += bytes(chunk)
    except (errors.Stale, errors.StoreUnavailable):  # a server may break the answer off
        return
    assert got == old_data


async def test_many_reads_at_once(store: StoreUnderTest) -> None:
    data = make_data(4 << 20)
    store.put("k", data)
    fingerprint = (await store.ufs.stat("k")).fingerprint
    assert fingerprint is not None
    rng = random.Random(3)
    ranges = [(offset := rng.randrange(len(data)), rng.randrange(len(data) - offset)) for _ in range(50)]
    results = await asyncio.gather(*[store.read("k", fingerprint, *where) for where in ranges])
    assert all(result == data[offset : offset + length] for result, (offset, length) in zip(results, ranges, strict=True))


async def test_cancelled_reads_leave_the_store_usable(store: StoreUnderTest) -> None:
    data = make_data(9 << 20)
    store.put("k", data)
    fingerprint = (await store.ufs.stat("k")).fingerprint
    assert fingerprint is not None
    for attempt in range(20):
        task = asyncio.create_task(store.read("k", fingerprint, 0, len(data)))
        for _ in range(attempt):
            await asyncio.sleep(0)
        if not task.cancel():
            assert await task == data  # it was faster
            continue
        with pytest.raises(asyncio.CancelledError):
            await task
    async with aclosing(store.ufs.read("k", fingerprint, 0, len(data))) as chunks:  # type: ignore[type-var]
        async for _ in chunks:
            break
    assert await store.read("k", fingerprint, 0, len(data)) == data


async def test_nothing_secret_is_shown(store: StoreUnderTest) -> None:
    shown = f"{store.ufs!r} {store.ufs.bucket} {vars(store.ufs)!r}"
    assert all(secret not in shown for secret in ("testsecret", "testaccess", AZ_KEY, repr(b64decode(AZ_KEY))))


async def test_directories_of_odd_names(store: StoreUnderTest) -> None:
    names = ["a b", "a+b", "%41", "q?x", "h#1", "n\nl", "t\tb", "\x01", "\x7f", "é", "e\u0301", "<&>", "~%~"]
    names += ["x" * 255, "w" * 700]
    names = [name for name in names if store.can_name(name)]
    for name in names:
        store.put(f"{name}/x", to_bytes(name))
    assert sorted(entry.name for entry in await store.list_all("", 4)) == sorted(names)
    for name in names:
        (entry,) = await store.list_all(f"{name}/")
        assert (entry.name, entry.kind) == ("x", Kind.FILE)
        assert await store.read_all(f"{name}/x") == to_bytes(name)
