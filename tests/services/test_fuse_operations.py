"""The operations without a kernel: what they answer, remember and bound."""

import asyncio
import errno
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alluxio_like.clock import ManualClock
from alluxio_like.errors import (
    TABLE,
    AlluxioLikeError,
    Internal,
    IsADirectory,
    NameTooLong,
    NoData,
    NotADirectory,
    NotFound,
    ReadOnly,
    Stale,
    StoreUnavailable,
    TimedOut,
    Unavailable,
)
from alluxio_like.fuse.attributes import count_stat_blocks, get_errno
from alluxio_like.fuse.backend import Answer, CacheState
from alluxio_like.fuse.client_backend import count_cached_bytes
from alluxio_like.fuse.handles import BoundedDict, DirectoryHandle, FileHandle, HandleTable
from alluxio_like.fuse.memory import MemoryBackend
from alluxio_like.fuse.operations import ROOT_NODE, Operations, Settings
from alluxio_like.fuse.xattrs import format_value
from alluxio_like.rpc.messages import BlockLocation
from alluxio_like.types import (
    BLOCK_BYTES,
    PAGE_BYTES,
    ROOT_INODE,
    Attr,
    InodeId,
    Kind,
    VersionId,
    WorkerId,
    get_block_count,
    get_page_count,
)


class World:
    """Operations over a tree in memory."""

    def __init__(self, **settings: Any) -> None:
        self.backend = MemoryBackend(valid_s=settings.pop("valid_s", 5.0), io_timeout_s=2.0, page_entries=3)
        self.clock = ManualClock()
        self.file = self.backend.add_file("/file", b"0123456789")
        self.directory = self.backend.add_directory("/dir")
        self.operations: Operations
        self.settings = Settings(entry_timeout_s=settings.pop("entry_timeout_s", 5.0), io_timeout_s=2.0)

    async def start(self) -> "World":
        root = (await self.backend.get_entry(ROOT_INODE)).entry
        assert root is not None
        self.operations = Operations(self.backend, root, self.settings, self.clock)
        return self

    async def list(self, handle: int, room: int = 1000) -> list[bytes]:
        """All names, asked for with room for `room` entries at a time."""
        names: list[bytes] = []
        offset = 0
        while True:
            taken: list[tuple[bytes, int]] = []

            def emit(name: bytes, _attr: Attr, _valid_s: float, following: int, _real: bool, taken: Any = taken) -> bool:
                if len(taken) == room:
                    return False
                taken.append((name, following))
                return True

            await self.operations.readdir(handle, offset, emit)
            if not taken:
                return names
            names += [name for name, _ in taken]
            offset = taken[-1][1]


@pytest.fixture
async def world() -> World:
    return await World().start()


async def test_reads_are_clipped_at_the_end_of_the_file(world: World) -> None:
    handle = await world.operations.open(world.file, os.O_RDONLY)
    for read in (world.operations.try_read, world.operations.read):
        outcome: Any = read(handle, 8, 4096)
        assert bytes(await outcome if asyncio.iscoroutine(outcome) else outcome) == b"89"
        for offset in (10, 11, 5000):
            outcome = read(handle, offset, 100)
            assert bytes(await outcome if asyncio.iscoroutine(outcome) else outcome) == b""


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_APPEND, os.O_WRONLY | os.O_APPEND])
async def test_opening_for_anything_but_reading_is_refused(world: World, flags: int) -> None:
    with pytest.raises(ReadOnly):
        await world.operations.open(world.file, flags)
    assert world.operations.count_open() == 0


async def test_wrong_kinds(world: World) -> None:
    with pytest.raises(IsADirectory):
        await world.operations.open(world.directory, os.O_RDONLY)
    with pytest.raises(NotADirectory):
        await world.operations.opendir(world.file)
    with pytest.raises(NotFound):
        await world.operations.getattr(999)
    with pytest.raises(NameTooLong):
        await world.operations.lookup(ROOT_NODE, b"x" * 256)
    with pytest.raises(Internal):
        await world.operations.read(77, 0, 1)


async def test_answers_are_kept_no_longer_than_asked_for() -> None:
    world = await World(valid_s=300.0, entry_timeout_s=7.0).start()
    assert (await world.operations.lookup(ROOT_NODE, b"file")).valid_s == 7.0
    assert (await world.operations.getattr(world.file))[1] == 7.0
    world.backend.valid_s = 2.0
    missing = await world.operations.lookup(ROOT_NODE, b"nothing")
    assert (missing.entry, missing.valid_s) == (None, 2.0)


async def test_known_attributes_are_given_while_the_master_is_away(world: World) -> None:
    await world.operations.lookup(ROOT_NODE, b"file")
    world.backend.faults.fail_names = Unavailable("the master is away")
    attr, valid_s = await world.operations.getattr(world.file)
    assert attr.size == 10
    assert valid_s <= 1.0
    looked_up = await world.operations.lookup(ROOT_NODE, b"file")
    assert looked_up.entry is not None
    assert looked_up.entry.attr.inode == world.file
    handle = await world.operations.open(world.file, os.O_RDONLY)
    assert bytes(await world.operations.read(handle, 0, 10)) == b"0123456789"
    with pytest.raises(Unavailable):
        await world.operations.getattr(world.directory)
    with pytest.raises(Unavailable):
        await world.operations.lookup(ROOT_NODE, b"dir")


async def test_known_names_are_given_soon_while_the_master_hangs(world: World) -> None:
    await world.operations.lookup(ROOT_NODE, b"file")
    world.backend.faults.stall_names = asyncio.Event()
    world.backend.io_timeout_s = 60.0
    started = time.monotonic()
    for _ in range(5):
        assert (await world.operations.lookup(ROOT_NODE, b"file")).entry is not None
    assert time.monotonic() - started < 30  # the first waits for two seconds, the others for a fifth of one
    world.backend.faults.stall_names = None
    world.backend.remove("/file")
    assert (await world.operations.lookup(ROOT_NODE, b"file")).entry is None
    world.backend.faults.fail_names = Unavailable("the master is away")
    with pytest.raises(Unavailable):
        await world.operations.lookup(ROOT_NODE, b"file")  # what was answered last is that it is gone


async def test_open_file_keeps_its_attributes_when_its_inode_is_forgotten(world: World) -> None:
    await world.operations.lookup(ROOT_NODE, b"file")
    handle = await world.operations.open(world.file, os.O_RDONLY)
    world.backend.faults.fail_names = NotFound("purged")
    assert (await world.operations.getattr(world.file))[0].size == 10
    await world.operations.release(handle)
    with pytest.raises(NotFound):
        await world.operations.getattr(world.file)


async def test_root_and_totals_answer_at_once_while_the_services_stall(world: World) -> None:
    world.backend.faults.stall_names = asyncio.Event()
    started = time.monotonic()
    for _ in range(2):
        assert (await world.operations.getattr(ROOT_NODE))[0].inode == ROOT_INODE
        await world.operations.statfs(1)
    assert time.monotonic() - started < 20
    # However often they are asked for, one call of each is under way.
    assert world.backend.calls["get_totals"] == 1
    world.backend.faults.stall_names.set()
    world.backend.faults.stall_names = None
    assert (await world.operations.statfs(1)).known_bytes == 10
    await world.operations.close()


async def test_slow_failure_is_repeated_at_once_for_a_while(world: World) -> None:
    world.backend.never_now = True
    handle = await world.operations.open(world.file, os.O_RDONLY)

    class SlowFailure(Exception):
        pass

    reads = 0

    async def fail_slowly(offset: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        world.clock.advance(1.5)
        raise StoreUnavailable("no answer")

    file = world.operations._files.get(handle)
    world.operations._get_reader(file).read = fail_slowly  # type: ignore[method-assign]
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await world.operations.read(handle, 0, 5)
    assert reads == 1
    with pytest.raises(StoreUnavailable):
        await world.operations.read(handle, 5, 5)  # other bytes: tried
    assert reads == 2
    world.clock.advance(2)
    with pytest.raises(StoreUnavailable):
        await world.operations.read(handle, 0, 5)
    assert reads == 3


async def test_quick_failure_is_not_remembered(world: World) -> None:
    handle = await world.operations.open(world.file, os.O_RDONLY)
    world.backend.faults.fail_reads = StoreUnavailable("no")
    with pytest.raises(StoreUnavailable):
        await world.operations.read(handle, 0, 5)
    world.backend.faults.fail_reads = None
    assert bytes(await world.operations.read(handle, 0, 5)) == b"01234"


async def test_read_that_does_not_end_is_ended(world: World) -> None:
    world.backend.io_timeout_s = 60.0  # a backend that does not keep its promise
    world.backend.faults.stall_reads = asyncio.Event()
    handle = await world.operations.open(world.file, os.O_RDONLY)
    with pytest.raises(TimedOut):
        await world.operations.read(handle, 0, 5)


async def test_stale_inode_is_not_opened_again_until_it_was_looked_up(world: World) -> None:
    await world.operations.lookup(ROOT_NODE, b"file")
    handle = await world.operations.open(world.file, os.O_RDONLY)
    world.backend.faults.fail_reads = Stale("gone")
    with pytest.raises(Stale):
        await world.operations.read(handle, 0, 5)
    world.backend.faults.fail_reads = None
    with pytest.raises(Stale):
        await world.operations.open(world.file, os.O_RDONLY)
    await world.operations.lookup(ROOT_NODE, b"file")
    assert await world.operations.open(world.file, os.O_RDONLY)


@pytest.mark.parametrize("room", [1, 2, 3, 4, 100])
async def test_listing_gives_each_entry_once(world: World, room: int) -> None:
    names = [f"n{number:02}" for number in range(20)]
    world.backend.add_many("/dir", names)
    handle = await world.operations.opendir(world.directory)
    expected = [b".", b"..", *(name.encode() for name in names)]
    assert await world.list(handle, room) == expected
    world.backend.remove("/dir/n00")
    assert await world.list(handle, room) == [name for name in expected if name != b"n00"]  # a new listing
    await world.operations.releasedir(handle)
    assert world.operations.count_open() == 0


async def test_empty_directory_has_only_dots(world: World) -> None:
    assert await world.list(await world.operations.opendir(world.directory)) == [b".", b".."]


@given(st.data())
def test_any_position_of_a_listing_can_be_read_while_it_changes(data: st.DataObject) -> None:
    """Names that stay are found at every position asked for, none at two positions, and every walk ends."""

    async def play() -> None:
        backend = MemoryBackend(page_entries=data.draw(st.integers(1, 4)))
        steady = [f"m{number:02}" for number in range(data.draw(st.integers(0, 12)))]
        backend.add_many("/dir", steady)
        inode = backend.add_directory("/dir")
        entry = (await backend.get_entry(inode)).entry
        assert entry is not None
        handle = DirectoryHandle(entry, ROOT_INODE)
        extra = 0
        for _ in range(data.draw(st.integers(1, 4))):
            seen: dict[str, int] = {}
            ordinal = 0
            while (found := await handle.find_page(backend, ordinal, lambda: (0, 0.0))) is not None:
                page, place = found
                name, ordinal = page.entries[place].name, page.numbers[place]
                assert name not in seen
                seen[name] = ordinal
                ordinal += 1
                if data.draw(st.booleans()):
                    extra += 1
                    backend.add_many("/dir", [data.draw(st.sampled_from(["a", "l", "m00", "m05", "m11", "z"])) + str(extra)])
                if ordinal > 2 and data.draw(st.integers(0, 5)) == 0:
                    again = data.draw(st.integers(0, ordinal - 1))
                    there = await handle.find_page(backend, again, lambda: (0, 0.0))
                    assert there is not None
                    assert seen[there[0].entries[there[1]].name] == again
            assert [name for name in seen if name[0] == "m" and len(name) == 3] == steady
            assert len(seen) <= len(steady) + extra

    asyncio.run(play())


async def test_extended_attributes(world: World) -> None:
    assert await world.operations.listxattr(ROOT_NODE) == await world.operations.listxattr(world.file) == []
    assert await world.operations.getxattr(ROOT_NODE, b"user.alluxio_like.session") == b"pyfuse3"
    assert await world.operations.getxattr(world.file, b"user.alluxio_like.cached") == b"10"
    calls = dict(world.backend.calls)
    with pytest.raises(NoData):
        await world.operations.getxattr(world.file, b"security.capability")
    assert world.backend.calls == calls
    for name in (b"user.alluxio_like.cached", b"user.alluxio_like.version"):
        with pytest.raises(NoData):
            await world.operations.getxattr(world.directory, name)
    entry = (await world.backend.get_entry(world.file)).entry
    assert entry is not None
    assert format_value(b"user.alluxio_like.locations", entry, CacheState(0, ())) == b""


async def test_nobody_is_asked_for_attributes_that_are_known_not_to_be_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.backend, "get_known", lambda inode: Answer(world.backend.get_node(inode).entry, 1.0))
    names = (b"user.a", b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default", b"system.other")
    assert [world.operations.may_have_xattr(world.file, name) for name in names] == [False] * 5
    node = world.backend.get_node(world.file)
    node.entry = replace(node.entry, attr=replace(node.entry.attr, has_xattrs=True))
    assert [world.operations.may_have_xattr(world.file, name) for name in names] == [True, True, True, True, False]


async def test_closing_lets_go_of_everything(world: World) -> None:
    handles = [await world.operations.open(world.file, os.O_RDONLY) for _ in range(3)]
    assert world.backend.open_readers == 0, "a handle has a reader from its first read on"
    for handle in handles:
        assert await world.operations.read(handle, 0, 1) == b"0"
    assert world.backend.open_readers == 3
    await world.operations.release(handles[0])
    await world.operations.release(handles[0])
    assert world.backend.open_readers == 2
    await world.operations.close()
    assert world.backend.open_readers == 0
    assert world.operations.count_open() == 0


@pytest.mark.parametrize("error", list(TABLE), ids=lambda error: error.__name__)
def test_every_error_has_an_errno(error: type[AlluxioLikeError]) -> None:
    assert get_errno(error("x")) == TABLE[error].errno > 0


def test_foreign_errors_are_io_errors() -> None:
    assert get_errno(RuntimeError("x")) == errno.EIO
    assert get_errno(TimeoutError()) == errno.EIO
    assert get_errno(asyncio.CancelledError()) == errno.EINTR


async def test_pages_of_one_version_are_never_used_for_another(world: World) -> None:
    entry = (await world.backend.get_entry(world.file)).entry
    assert entry is not None
    operations = world.operations

    def open_version(version: int) -> tuple[int, tuple[bool, bool]]:
        file = FileHandle(replace(entry, attr=replace(entry.attr, version=VersionId(version))))
        return operations.add_open(file), operations.choose_pages(file)

    first, pages = open_version(1)
    assert pages == (True, False)
    second, pages = open_version(2)
    assert pages == (True, True), "the first one's pages are in use"
    await operations.release(first)
    await operations.release(second)
    second, pages = open_version(2)
    assert pages == (False, False), "what the kernel has is the first one's"
    assert open_version(2)[1] == (True, False)


@given(st.integers(0, 1 << 50))
def test_blocks_cover_the_size(size: int) -> None:
    attr = Attr(InodeId(2), Kind.FILE, 0o644, 0, 0, size, 0, 0, 1, VersionId(1))
    assert size <= count_stat_blocks(attr) * 512 < size + 512


@given(st.integers(0, 5 * BLOCK_BYTES), st.lists(st.tuples(st.integers(0, 5), st.integers(0, (1 << 64) - 1)), max_size=6))
def test_cached_bytes_count_each_byte_once(size: int, copies: list[tuple[int, int]]) -> None:
    blocks = tuple(BlockLocation(block, WorkerId("w"), bits, 0) for block, bits in copies)
    pages = {block * 64 + bit for block, bits in copies if block < get_block_count(size) for bit in range(64) if bits >> bit & 1}
    expected = sum(min(PAGE_BYTES, size - page * PAGE_BYTES) for page in pages if page < get_page_count(size))
    assert count_cached_bytes(size, blocks) == expected


def test_handle_numbers_are_never_used_twice() -> None:
    table: HandleTable[str] = HandleTable()
    first = table.add("a")
    table.pop(first)
    assert table.add("b") != first
    assert table.pop(first) is None


def test_bounded_dictionary_forgets_the_oldest() -> None:
    kept: BoundedDict[int, str] = BoundedDict(2)
    for key in (1, 2, 1, 3):
        kept.set(key, str(key))
    assert [key for key in (1, 2, 3) if key in kept] == [1, 3]


async def test_lock_of_the_session_is_exclusive_and_never_lost() -> None:
    session = pytest.importorskip("alluxio_like.fuse.session_pyfuse3")
    lock = session._Lock()
    holders = 0
    done = 0

    async def use(hold: Callable[[], Any]) -> None:
        nonlocal holders, done
        for _ in range(20):
            async with lock:
                holders += 1
                assert holders == 1
                await hold()
                holders -= 1
        done += 1

    async def briefly() -> None:
        await asyncio.sleep(0)

    async def not_at_all() -> None:
        return None

    tasks = [asyncio.create_task(use(briefly if number % 2 else not_at_all)) for number in range(10)]
    victim = tasks[3]
    await asyncio.sleep(0)
    victim.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait(tasks)
    assert done == 9
    assert holders == 0 or victim.cancelled()
