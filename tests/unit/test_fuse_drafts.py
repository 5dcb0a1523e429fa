"""Drafts of the mount: what holds their descriptors."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from alluxio_like.client.drafts import OpenedDraft
from alluxio_like.errors import Stale
from alluxio_like.fuse import drafts as drafts_module
from alluxio_like.fuse.attributes import count_stat_blocks
from alluxio_like.fuse.drafts import Draft, Drafts, get_stamp, take_newest
from alluxio_like.rpc.messages_writing import DraftSealed
from alluxio_like.types import Attr, Entry, FileRef, Fingerprint, InodeId, Kind, MountId, VersionId, WorkerId


async def test_an_operation_has_its_descriptor_from_the_moment_it_is_asked_for(tmp_path: Path) -> None:
    """The last writer goes just then: as a program closes a file and gives it other times."""
    (tmp_path / "draft").write_bytes(b"content")
    fd = os.open(tmp_path / "draft", os.O_RDWR)
    drafts = Drafts(cast(Any, None), lambda _: (), lambda *_: None)
    draft = Draft(InodeId(5), WorkerId("w1"), fd, VersionId(2), (1, 2), over=True)
    call = asyncio.create_task(drafts.set_times(draft, None, 10**18))
    await asyncio.sleep(0)  # it has begun, and no thread has done anything yet
    drafts._close_unused(draft)
    await call
    assert (tmp_path / "draft").stat().st_mtime_ns == 10**18
    assert draft.fd == -1, "closed by the last who needed it"


class _Files:
    """A worker whose answer to a seal is late."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.ended: list[InodeId] = []

    async def seal(self, *_: object, **__: object) -> DraftSealed:
        await self.answer.wait()
        return DraftSealed(None, 0)

    def is_pending(self, inode: InodeId) -> bool:
        return False

    async def settle(self, inodes: Sequence[InodeId]) -> None:
        pass

    async def end_all(self, _: WorkerId, inodes: Sequence[InodeId]) -> None:
        self.ended += inodes


async def test_a_draft_says_how_large_the_file_is_until_its_seal_is_told(tmp_path: Path) -> None:
    """The writer was killed: nobody waits for its close, and its descriptor is gone before the seal is done."""
    (tmp_path / "draft").write_bytes(b"content")
    files = _Files()
    drafts = Drafts(cast(Any, files), lambda _: (), lambda *_: None)
    draft = Draft(InodeId(5), WorkerId("w1"), os.open(tmp_path / "draft", os.O_RDWR), VersionId(2), (1, 2), writers=1, users=1)
    drafts._drafts[draft.inode] = draft
    flush = asyncio.create_task(drafts.seal(draft, "op"))
    await asyncio.sleep(0)
    flush.cancel()
    release = asyncio.create_task(drafts.begin_release(draft))
    for _ in range(20):
        await asyncio.sleep(0)
    assert drafts.lookup(draft.inode) is draft
    assert not files.ended
    files.answer.set()
    await release
    await drafts.close()
    assert drafts.lookup(draft.inode) is None
    assert files.ended == [5]
    assert draft.fd == -1


class _Worker:
    """One that begins drafts, and notes what it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[object] = []

    async def begin(self, ref: FileRef, *, truncate: bool) -> OpenedDraft:
        self.asked.append(("begin", ref.inode, ref.version))
        return OpenedDraft(WorkerId("w1"), os.open(self.directory / f"{ref.inode}.{ref.version}", os.O_RDWR | os.O_CREAT))

    async def claim(self, *_: object, **__: object) -> None:
        return None

    def is_pending(self, inode: InodeId) -> bool:
        return False

    async def settle(self, inodes: Sequence[InodeId]) -> None:
        pass

    async def end_all(self, _: WorkerId, inodes: Sequence[InodeId]) -> None:
        self.asked.append(("end", *inodes))


def make_entry(inode: int, version: int = 1) -> Entry:
    ref = FileRef(InodeId(inode), VersionId(version), MountId(1), f"key-{inode}", Fingerprint("", 0))
    return Entry(f"name-{inode}", Attr(ref.inode, Kind.FILE, 0o644, 0, 0, 0, 0, 0, 1, ref.version), ref)


async def test_files_closed_one_after_the_other_are_ended_together(tmp_path: Path) -> None:
    worker = _Worker(tmp_path)
    drafts = Drafts(cast(Any, worker), lambda _: (), lambda *_: None)
    made = [await drafts.open(make_entry(inode), truncate=True, created=True) for inode in (1, 2, 3)]
    del worker.asked[:]
    for draft in made:
        await drafts.begin_release(draft)
    assert [drafts.lookup(draft.inode) for draft in made] == made
    async with asyncio.timeout(10):
        while len(drafts):
            await asyncio.sleep(0.01)
    assert worker.asked == [("end", 1, 2, 3)]
    assert [draft.fd for draft in made] == [-1] * 3
    await drafts.close()


async def test_who_opens_a_file_again_that_was_just_closed_asks_nobody_and_keeps_its_draft(tmp_path: Path) -> None:
    worker = _Worker(tmp_path)
    drafts = Drafts(cast(Any, worker), lambda _: (), lambda *_: None)
    first, other = [await drafts.open(make_entry(inode), truncate=True, created=True) for inode in (1, 2)]
    await drafts.begin_release(first)
    await drafts.begin_release(other)
    del worker.asked[:]
    assert await drafts.open(make_entry(1), truncate=False) is first
    os.pwrite(first.fd, b"more", 0)
    async with asyncio.timeout(10):
        while len(drafts) > 1:
            await asyncio.sleep(0.01)
    assert worker.asked == [("end", 2)]
    os.pwrite(first.fd, b"and more", 4)
    await drafts.begin_release(first)
    await drafts.close()
    assert worker.asked == [("end", 2), ("end", 1)], "nobody loses time with what is closed when the daemon ends"


async def test_what_was_left_of_a_file_is_not_shown_nor_written_once_others_have_written_it(tmp_path: Path) -> None:
    worker = _Worker(tmp_path)
    drafts = Drafts(cast(Any, worker), lambda _: (), lambda *_: None)
    draft = await drafts.open(make_entry(1), truncate=True, created=True)
    assert drafts.find(make_entry(1, 2)) is draft, "while it is open here its writer sees what it writes"
    assert drafts.says(draft.inode)
    await drafts.begin_release(draft)
    assert not drafts.says(draft.inode), "the kernel may know it by what others have written"
    assert drafts.find(make_entry(1)) is draft
    assert drafts.find(make_entry(1, 2)) is None
    del worker.asked[:]
    newer = await drafts.open(make_entry(1, 2), truncate=False)
    assert newer is not draft
    assert worker.asked == [("end", 1), ("begin", 1, 2)]
    await drafts.begin_release(newer)
    await drafts.close()


async def test_what_is_just_ending_is_not_shown_once_others_have_written_the_file(tmp_path: Path) -> None:
    worker = _Worker(tmp_path)
    told, answer = asyncio.Event(), asyncio.Event()

    async def end_all(_: WorkerId, __: Sequence[InodeId]) -> None:
        told.set()
        await answer.wait()

    worker.end_all = end_all  # type: ignore[method-assign]
    drafts = Drafts(cast(Any, worker), lambda _: (), lambda *_: None)
    draft = await drafts.open(make_entry(1), truncate=True, created=True)
    await drafts.begin_release(draft)
    drafts._begin_telling()
    await asyncio.wait_for(told.wait(), 10)
    assert drafts.find(make_entry(1)) is draft
    assert drafts.find(make_entry(1, 2)) is None
    assert not drafts.says(draft.inode)
    answer.set()
    await drafts.close()


async def test_what_an_earlier_daemon_left_is_shown_while_somebody_writes_it(tmp_path: Path) -> None:
    worker = _Worker(tmp_path)
    drafts = Drafts(cast(Any, worker), lambda _: (), lambda *_: None)
    with (tmp_path / "1.1").open("wb") as writing:
        await drafts.revive(make_entry(1), 60.0)
        draft = drafts.lookup(InodeId(1))
        assert draft is not None
        assert drafts.find(make_entry(1, 2)) is draft
        assert drafts.says(draft.inode)
        writing.close()
        assert drafts.find(make_entry(1, 2)) is None
        assert drafts.find(make_entry(1)) is draft
    await drafts.close()


@pytest.mark.parametrize("gone", [0, 1, 5])
async def test_what_was_looked_up_and_is_gone_is_looked_up_again(gone: int) -> None:
    entries = [cast(Entry, object()) for _ in range(gone + 1)]
    draft = cast(Draft, object())
    left = iter(entries)

    async def lookup() -> Entry:
        return next(left)

    async def take(entry: Entry) -> Draft:
        if entry is not entries[-1]:
            raise Stale("written anew")
        return draft

    assert await take_newest(lookup, take) == (entries[-1], draft)


async def test_what_is_gone_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts_module, "_AGAIN_LONGEST_S", 0.01)
    tries = 0

    async def lookup() -> Entry:
        return cast(Entry, object())

    async def take(_entry: Entry) -> Draft:
        nonlocal tries
        tries += 1
        raise Stale("written anew")

    with pytest.raises(Stale):
        await take_newest(lookup, take)
    assert tries == 3


def test_what_a_worker_does_with_a_sealed_draft_is_no_change_of_the_file(tmp_path: Path) -> None:
    """It takes its note off the file, or makes it a cache file: the ctime is another one, the content is not."""
    path = tmp_path / "draft"
    path.write_bytes(b"content")
    drafts = Drafts(cast(Any, None), lambda _: (), lambda *_: None)
    fd = os.open(path, os.O_RDWR)
    draft = Draft(InodeId(5), WorkerId("w1"), fd, VersionId(2), (1, 2), sealed=get_stamp(os.fstat(fd)), own_blocks=1)
    drafts._drafts[draft.inode] = draft
    set_ns = path.stat().st_mtime_ns
    told = Attr(InodeId(5), Kind.FILE, 0o644, 0, 0, 7, set_ns, set_ns, 1, VersionId(2))
    time.sleep(0.02)  # the kernel's clock for files goes on
    path.rename(tmp_path / "cache-file")
    os.utime(fd, ns=(1, set_ns))
    assert get_stamp(os.fstat(fd)) != draft.sealed
    shown = drafts.show(told)
    assert (shown.mtime_ns, shown.ctime_ns) == (told.mtime_ns, told.ctime_ns)
    assert count_stat_blocks(shown) == os.fstat(fd).st_blocks - 1, "what the worker notes beside it is no block of the file"
    os.write(fd, b"other")
    shown = drafts.show(told)
    assert (shown.mtime_ns, shown.ctime_ns) == (os.fstat(fd).st_mtime_ns, os.fstat(fd).st_ctime_ns)
    os.close(fd)


class _SlowWorker(_Worker):
    """Who ends drafts as late as it is let; what it is told to seal is sealed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.may_end = asyncio.Event()

    async def seal(self, *_: object, **__: object) -> DraftSealed:
        return DraftSealed(None, 0)

    def is_pending(self, inode: InodeId) -> bool:
        return False

    async def settle(self, inodes: Sequence[InodeId]) -> None:
        pass

    async def end_all(self, _: WorkerId, inodes: Sequence[InodeId]) -> None:
        self.asked.append(("end", *inodes))
        await self.may_end.wait()


async def test_times_that_are_set_while_a_draft_ends_are_the_names_alone(tmp_path: Path) -> None:
    """Else its ctime is the draft's, a little later one than the name has, until the worker has answered."""
    worker = _SlowWorker(tmp_path)
    drafts = Drafts(cast(Any, worker), lambda _: (), lambda *_: None)
    entry = make_entry(1)
    draft = await drafts.open(entry, truncate=True, created=True)
    os.pwrite(draft.fd, b"content", 0)
    await drafts.seal(draft, "op")
    await drafts.begin_release(draft)
    async with asyncio.timeout(10):
        while worker.asked[-1:] != [("end", 1)]:
            await asyncio.sleep(0.01)
    written = get_stamp(draft.stat())
    # The worker makes it a cache file just now, which changes its ctime.
    os.fchmod(draft.fd, 0o640)
    await drafts.set_times(draft, 5, 5)
    assert get_stamp(draft.stat())[:2] == written[:2], "it is still what was sealed"
    named = replace(entry.attr, mtime_ns=5, ctime_ns=draft.stat().st_ctime_ns - 1000)
    shown = drafts.show(named)
    assert (shown.mtime_ns, shown.ctime_ns) == (named.mtime_ns, named.ctime_ns)
    worker.may_end.set()
    await drafts.close()


@pytest.mark.parametrize("set_ns", [10**18, 3 * 10**18])
async def test_where_the_time_of_an_open_file_was_set_it_was_changed_when_the_name_says(tmp_path: Path, set_ns: int) -> None:
    drafts = Drafts(cast(Any, _Worker(tmp_path)), lambda _: (), lambda *_: None)
    entry = make_entry(1)
    draft = await drafts.open(entry, truncate=True, created=True)
    os.pwrite(draft.fd, b"content", 0)
    await drafts.set_times(draft, set_ns, set_ns)
    named = replace(entry.attr, mtime_ns=set_ns, ctime_ns=draft.stat().st_ctime_ns - 1000)
    shown = drafts.show(named)
    assert (shown.size, shown.mtime_ns, shown.ctime_ns) == (7, set_ns, named.ctime_ns)
    os.pwrite(draft.fd, b"and more", 7)
    shown = drafts.show(named)
    assert (shown.mtime_ns, shown.ctime_ns) == (draft.stat().st_mtime_ns, draft.stat().st_mtime_ns)
    await drafts.begin_release(draft)
    await drafts.close()
