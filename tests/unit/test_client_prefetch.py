"""Names of a directory brought by the page: when, how far, and what becomes of failures."""

import asyncio

from alluxio_like.client.prefetch import ENTRIES_A_MISS, MAX_ENTRIES, MISSES, NamePrefetch
from alluxio_like.errors import Unavailable
from alluxio_like.rpc.messages import DirPage
from alluxio_like.types import Attr, Entry, InodeId, Kind, VersionId

DIRECTORY = InodeId(7)


def make_page(first: int, count: int, following: bytes) -> DirPage:
    def make_entry(number: int) -> Entry:
        attr = Attr(InodeId(number + 100), Kind.DIRECTORY, 0o755, 0, 0, 0, 0, 0, 1, VersionId(0))
        return Entry(f"{number}", attr)

    return DirPage(tuple(make_entry(number) for number in range(first, first + count)), following, 10.0)


class Master:
    """Lists `total` names, 1000 a page."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.pages = 0
        self.fail = False

    async def list_page(self, directory: InodeId, cursor: bytes) -> DirPage:
        assert directory == DIRECTORY
        if self.fail:
            raise Unavailable("away")
        self.pages += 1
        await asyncio.sleep(0)
        first = int(cursor or b"0")
        count = min(1000, self.total - first)
        return make_page(first, count, b"%d" % (first + count) if first + count < self.total else b"")


async def settle(prefetch: NamePrefetch) -> None:
    while prefetch._task is not None:
        await asyncio.sleep(0)


async def test_a_directory_is_listed_once_many_of_its_names_were_asked_for() -> None:
    master = Master(2500)
    prefetch = NamePrefetch(master.list_page)
    for _ in range(MISSES - 1):
        prefetch.note_miss(DIRECTORY)
    await settle(prefetch)
    assert master.pages == 0
    for _ in range(5):
        prefetch.note_miss(DIRECTORY)
    await settle(prefetch)
    assert master.pages == 3, "one listing, though misses went on while it was under way"


async def test_a_large_directory_is_listed_as_far_as_it_is_asked_for() -> None:
    master = Master(MAX_ENTRIES * 3)
    prefetch = NamePrefetch(master.list_page)
    for _ in range(MISSES):
        prefetch.note_miss(DIRECTORY)
        await settle(prefetch)
    assert master.pages == MAX_ENTRIES // 1000
    for more in range(1, 5):
        for _ in range(1000 // ENTRIES_A_MISS):
            prefetch.note_miss(DIRECTORY)
            await settle(prefetch)
        assert master.pages == MAX_ENTRIES // 1000 + more
    for _ in range(MAX_ENTRIES * 2 // ENTRIES_A_MISS):
        prefetch.note_miss(DIRECTORY)
        await settle(prefetch)
    assert master.pages >= 3 * MAX_ENTRIES // 1000, "to its end"


async def test_a_failure_is_nobodys_and_it_is_tried_again_later() -> None:
    master = Master(10)
    prefetch = NamePrefetch(master.list_page)
    master.fail = True
    for _ in range(MISSES):
        prefetch.note_miss(DIRECTORY)
    await settle(prefetch)
    master.fail = False
    for _ in range(MISSES):
        prefetch.note_miss(DIRECTORY)
    await settle(prefetch)
    assert master.pages == 1


async def test_closing_stops_a_listing_under_way() -> None:
    stuck = asyncio.Event()

    async def hang(_directory: InodeId, _cursor: bytes) -> DirPage:
        await stuck.wait()
        raise AssertionError("never")

    prefetch = NamePrefetch(hang)
    for _ in range(MISSES):
        prefetch.note_miss(DIRECTORY)
    await asyncio.sleep(0)
    await prefetch.close()
    assert prefetch._task is None
