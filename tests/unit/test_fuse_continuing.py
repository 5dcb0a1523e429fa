"""Which open files go on in what their inode is now, and what happens to their readers."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from alluxio_like.fuse.continuing import Continuing, as_opened, can_go_on
from alluxio_like.fuse.handles import FileHandle
from alluxio_like.fuse.modes import Way
from alluxio_like.types import Attr, Entry, FileRef, Fingerprint, InodeId, Kind, MountId, VersionId

FILE = InodeId(7)
NODE = 70


def make_entry(version: int, size: int, continues: int = 0) -> Entry:
    attr = Attr(FILE, Kind.FILE, 0o644, 0, 0, size, version * 10, version * 10, 1, VersionId(version))
    ref = FileRef(FILE, VersionId(version), MountId(1), "log", Fingerprint(f"v{version}", size), continues=continues)
    return Entry("log", attr, ref)


class FakeReader:
    def __init__(self) -> None:
        self.closed = False

    def begin_close(self) -> Coroutine[None, None, None]:
        async def end() -> None:
            self.closed = True

        return end()


def make_handle(version: int, size: int, way: Way | None = Way.CACHED, reader: Any = None) -> FileHandle:
    return FileHandle(make_entry(version, size), reader, node=NODE, way=way)


@pytest.mark.parametrize(
    ("handle", "now", "goes_on"),
    [
        (make_handle(3, 10), make_entry(5, 30, continues=3), True),
        (make_handle(3, 10), make_entry(5, 30, continues=2), True),
        (make_handle(3, 10, None), make_entry(5, 30, continues=2), True),
        (make_handle(3, 10, Way.DIRECT), make_entry(5, 30, continues=2), True),
        (make_handle(3, 0), make_entry(5, 30), True),
        (make_handle(3, 10), make_entry(5, 30, continues=4), False),
        (make_handle(3, 10), make_entry(5, 30), False),
        (make_handle(5, 30), make_entry(5, 30, continues=2), False),
        (make_handle(6, 40), make_entry(5, 30, continues=2), False),
        (make_handle(3, 10, Way.PASSTHROUGH), make_entry(5, 30, continues=2), False),
        (make_handle(3, 10, Way.REROUTED), make_entry(5, 30, continues=2), False),
    ],
)
def test_who_goes_on(handle: FileHandle, now: Entry, *, goes_on: bool) -> None:
    assert can_go_on(handle, now) is goes_on


async def test_a_reader_is_closed_once_what_it_reads_has_had_its_time() -> None:
    moved: list[tuple[int, int, int]] = []
    continuing = Continuing(lambda *what: moved.append(what), grace_s=0.05)
    reader, other = FakeReader(), FakeReader()
    handles = [make_handle(3, 10, reader=reader), make_handle(2, 5), make_handle(1, 4, reader=other)]
    continuing.move_on(handles, make_entry(4, 20, continues=2))
    assert [handle.entry.attr.size for handle in handles] == [20, 20, 4]
    assert (handles[0].reader, handles[2].reader) == (None, other)
    assert sorted(moved) == [(FILE, 2, 4), (FILE, 3, 4)]
    continuing.move_on(handles, make_entry(4, 20, continues=2))
    assert len(moved) == 2
    assert not reader.closed
    async with asyncio.timeout(10):
        while not reader.closed:
            await asyncio.sleep(0.01)
    await continuing.close()
    assert not other.closed


async def test_at_the_end_they_are_closed_at_once() -> None:
    continuing = Continuing(lambda inode, before, version: None, grace_s=1000.0)
    reader = FakeReader()
    continuing.move_on([make_handle(3, 10, reader=reader)], make_entry(4, 20, continues=3))
    await continuing.close()
    assert reader.closed


def test_who_does_not_go_on_finds_the_end_where_it_is() -> None:
    now = make_entry(5, 30).attr
    handles = [make_handle(3, 10, Way.PASSTHROUGH)]
    shown = as_opened(now, handles, NODE)
    assert (shown.size, shown.mtime_ns, shown.version) == (10, 30, 3)
    assert as_opened(now, handles, NODE + 1) is now
    assert as_opened(make_entry(3, 10).attr, handles, NODE).size == 10
