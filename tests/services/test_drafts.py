"""Drafts: what programs write becomes versions, cache files and objects, and nothing of it is lost on the way."""

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.cache import draft_files as files
from alluxio_like.cache.file import Role
from alluxio_like.rpc.messages import Priority
from alluxio_like.rpc.messages_writing import WriteMode
from alluxio_like.types import FileId, FileRef, InodeId, JobId, PageRange, VersionId, WorkerId
from alluxio_like.worker import drafts
from alluxio_like.worker.fetcher import Brought
from tests.unit.draft_parts import make_own_ref, running_drafts
from tests.unit.worker_parts import gather_bytes, make_data, wait_until

MIB = 1 << 20


async def test_a_new_file_is_written_sealed_uploaded_and_cached(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        ref = one.changes.create(5, "new")
        place = await one.service.begin(ref, truncate=True)
        assert place == await one.service.begin(ref, truncate=True)
        fd = one.open(place)
        data = make_data(2 * MIB + 100)
        os.pwrite(fd, data, 0)
        sealed = await one.service.seal("op-1", InodeId(5))
        assert sealed.ref is not None
        assert (sealed.ref.version, sealed.ref.size, sealed.unchanged) == (2, len(data), False)
        assert sealed.mtime_ns == os.fstat(fd).st_mtime_ns
        assert one.ufs.get("new") == data
        assert one.ufs.get_metadata("new")["mode"] == "644"
        again = await one.service.seal("op-2", InodeId(5))
        assert again.unchanged
        assert again.ref == sealed.ref
        # Somebody has it open for writing: it stays a draft.
        await one.service.end(InodeId(5))
        assert one.store.drafts.lookup(InodeId(5)) is not None
        assert one.store.lookup(sealed.ref.file_id) is None
        os.close(fd)
        await one.service.end(InodeId(5))
        cached = one.store.lookup(sealed.ref.file_id)
        assert cached is not None
        assert cached.is_complete
        assert not cached.unpersisted
        assert cached.read(0, len(data)) == data
        usage = one.store.get_usage()[0]
        assert usage.draft_bytes == 0
        assert usage.used_bytes == (len(data) + 4095) & ~4095


async def test_a_new_file_that_stays_empty_is_a_version_and_an_object(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        sealed = await one.write(one.changes.create(5, "empty"), b"")
        assert (sealed.version, sealed.size) == (2, 0)
        assert one.ufs.get("empty") == b""
        assert not one.store.drafts.list_drafts()
        assert not one.store.drafts.list_uploads()


async def test_writing_to_a_stored_file_begins_with_all_of_it_in_the_same_file_of_the_disk(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        data = make_data(3 * MIB)
        ref = one.parts.put(7, data)
        one.changes.add_stored(ref)
        assert await gather_bytes(one.parts.fetcher.read(ref, 0, MIB, priority=Priority.DEMAND, role=Role.HOME)) == data[:MIB]
        cached = one.store.lookup(ref.file_id)
        assert cached is not None
        reader = cached.open_read_only()
        place = await one.service.begin(ref, truncate=False)
        fd = one.open(place)
        assert os.fstat(fd).st_ino == os.fstat(reader).st_ino
        assert one.store.lookup(ref.file_id) is None
        os.close(reader)
        # Nothing was written: nothing is to be sealed.
        assert (await one.service.seal("op-0", ref.inode)).unchanged
        os.pwrite(fd, b"changed", 5)
        sealed = await one.service.seal("op-1", ref.inode)
        assert sealed.ref is not None
        os.close(fd)
        await one.service.end(ref.inode)
        changed = data[:5] + b"changed" + data[12:]
        assert one.ufs.get(ref.key) == changed
        cached = one.store.lookup(sealed.ref.file_id)
        assert cached is not None
        assert cached.read(0, len(data)) == changed


async def test_a_draft_that_was_not_changed_becomes_the_cache_file_that_it_was(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        ref = one.parts.put(7, make_data(MIB + 1))
        one.changes.add_stored(ref)
        await one.service.begin(ref, truncate=False)
        await one.service.end(ref.inode)
        cached = one.store.lookup(ref.file_id)
        assert cached is not None
        assert cached.is_complete
        assert not cached.verify()
        assert not one.changes.seals
        # Truncated: the same file of the disk, cut to nothing, and another content whatever comes.
        with cached.open_fd() as fd:
            number = os.fstat(fd).st_ino
        place = await one.service.begin(ref, truncate=True)
        found = (one.store.get_usage()[0].path / place.path).stat()
        assert (found.st_ino, found.st_size) == (number, 0)
        await one.service.end(ref.inode)
        assert one.changes.seals[0].size == 0
        await wait_until(lambda: not one.store.drafts.list_uploads())
        assert one.ufs.get(ref.key) == b""


async def test_what_the_store_does_not_have_never_goes(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, mode=WriteMode.CACHE) as one:
        sealed = await one.write(one.changes.create(5, "kept"), make_data(MIB))
        cached = one.store.lookup(sealed.file_id)
        assert cached is not None
        assert cached.unpersisted
        removed = one.store.remove([sealed.file_id], force=True, include_pinned=True)
        assert (removed.files, removed.pinned) == (0, (sealed.file_id,))
        assert one.store.punch_block(sealed.file_id, 0) == 0
        # Nor a page of it that is bad: there is nothing better.
        with cached.open_fd() as fd:
            os.pwrite(fd, b"bad", 10)
        assert cached.verify() == [0]
        assert cached.is_complete
        with pytest.raises(errors.Corrupt):
            cached.read(0, 10)
        one.store.set_persisted([sealed.file_id])
        assert one.store.remove([sealed.file_id]).files == 1


async def test_a_master_that_is_away_delays_a_seal_under_one_operation_id(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        place = await one.service.begin(one.changes.create(5, "late"), truncate=True)
        fd = one.open(place)
        os.pwrite(fd, b"first", 0)
        one.changes.lose_answers = 1
        with pytest.raises(errors.Unavailable):
            await one.service.seal("op-1", InodeId(5))
        os.pwrite(fd, b"other", 0)
        sealed = await one.service.seal("op-2", InodeId(5))
        os.close(fd)
        assert [seal.base_version for seal in one.changes.seals] == [1, 2]
        assert sealed.ref is not None
        assert sealed.ref.version == 3
        assert one.ufs.get("late") == b"other"


@pytest.mark.parametrize("moment", ["end: renamed", "end: committed"])
async def test_a_version_is_read_here_at_every_moment_of_becoming_a_cache_file(tmp_path: Path, moment: str) -> None:
    """The store has something newer at its key: another file was renamed over it."""
    async with running_drafts(tmp_path) as one:
        data = make_data(MIB + 5)
        place = await one.service.begin(one.changes.create(5, "swung"), truncate=True)
        fd = one.open(place)
        os.pwrite(fd, data, 0)
        sealed = await one.service.seal("op-1", InodeId(5))
        os.close(fd)
        assert sealed.ref is not None
        ref = replace(sealed.ref, source=(await one.ufs.stat("swung")).fingerprint)
        one.ufs.put("swung", b"of another file")
        reached, goes_on = threading.Event(), threading.Event()

        def wait(name: str) -> None:
            if name == moment:
                reached.set()
                assert goes_on.wait(60)

        one.store.drafts.checkpoint = wait
        ending = asyncio.create_task(one.service.end(InodeId(5)))
        await asyncio.to_thread(reached.wait, 60)
        try:
            read = one.parts.fetcher.read(ref, 0, ref.size, priority=Priority.DEMAND, role=Role.HOME)
            assert await gather_bytes(read) == data
        finally:
            goes_on.set()
            await ending


async def test_what_a_killed_writer_left_is_sealed_though_the_file_is_still_open(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        place = await one.service.begin(one.changes.create(5, "left"), truncate=True)
        fd = one.open(place)
        os.pwrite(fd, b"written", 0)
        await one.service.end(InodeId(5))
        assert [seal.size for seal in one.changes.seals] == [7]
        await one.service.end(InodeId(5))  # nothing has changed since
        assert len(one.changes.seals) == 1
        assert one.store.drafts.list_drafts()
        await wait_until(lambda: not one.store.drafts.list_uploads())
        assert one.ufs.get("left") == b"written"
        os.pwrite(fd, b"W", 0)
        await one.service.seal("op-1", InodeId(5))
        os.close(fd)
        await one.service.end(InodeId(5))
        assert one.ufs.get("left") == b"Written"
        assert not one.store.drafts.list_drafts()


async def test_drafts_that_end_together_become_cache_files_and_keep_nobody_waiting_who_is_not_over(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        fds = {}
        for inode in (5, 6, 7, 8):
            place = await one.service.begin(one.changes.create(inode, f"together-{inode}"), truncate=True)
            fds[inode] = one.open(place)
            os.pwrite(fds[inode], b"%d" % inode, 0)
            if inode != 7:  # what a killed writer left
                await one.service.seal(f"op-{inode}", InodeId(inode))
        for inode in (5, 7, 8):
            os.close(fds[inode])
        async with one.service._locks.hold(InodeId(8)):
            ending = asyncio.create_task(one.service.end_all([InodeId(inode) for inode in (5, 6, 7, 8, 5, 99)]))
            await wait_until(lambda: one.store.drafts.lookup(InodeId(5)) is None and one.store.drafts.lookup(InodeId(7)) is None)
            # Somebody has it open for writing; somebody is just at it.
            assert {draft.inode for draft in one.store.drafts.list_drafts()} == {6, 8}
        await ending
        assert {draft.inode for draft in one.store.drafts.list_drafts()} == {6}
        await wait_until(lambda: not one.store.drafts.list_uploads())
        for inode in (5, 7, 8):
            assert one.ufs.get(f"together-{inode}") == b"%d" % inode
            assert one.store.lookup(FileId(InodeId(inode), VersionId(2))) is not None
        os.close(fds[6])
        await one.service.end(InodeId(6))
        assert not one.store.drafts.list_drafts()


async def test_files_that_are_open_for_long_keep_no_other_from_being_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("GRACE_S", 0.0), ("LOOK_S", 0.01), ("_LOOKS_AT_ONCE", 2)):
        monkeypatch.setattr(drafts, name, value)
    async with running_drafts(tmp_path) as one:
        fds = [one.open(await one.service.begin(one.changes.create(n, f"{n}"), truncate=True)) for n in range(1, 5)]
        os.close(fds.pop())
        looking = asyncio.create_task(one.service.run())
        await wait_until(lambda: one.store.drafts.lookup(InodeId(4)) is None, "the look at the last one")
        looking.cancel()
        for fd in fds:
            os.close(fd)


async def test_a_draft_whose_inode_is_gone_goes_with_it(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        place = await one.service.begin(one.changes.create(5, "gone"), truncate=True)
        fd = one.open(place)
        os.pwrite(fd, b"x", 0)
        one.changes.gone.add(InodeId(5))
        sealed = await one.service.seal("op-1", InodeId(5))
        os.close(fd)
        assert sealed.ref is None
        assert not one.store.drafts.list_drafts()
        assert not (one.store.get_usage()[0].path / place.path).exists()


async def test_a_file_without_a_name_is_sealed_never_uploaded_and_deleted_with_its_last_close(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        place = await one.service.begin(one.changes.create(5, "temporary"), truncate=True)
        fd = one.open(place)
        os.pwrite(fd, b"x", 0)
        del one.changes.keys[InodeId(5)]
        assert (await one.service.seal("op-1", InodeId(5))).ref is not None
        os.close(fd)
        await one.service.end(InodeId(5))
        assert not (one.store.get_usage()[0].path / place.path).exists()
        assert one.store.lookup(FileId(InodeId(5), VersionId(2))) is None
        assert not one.ufs.has_below("")


async def test_a_place_that_is_over_is_told_and_begun_again(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        ref = one.changes.create(5, "again")
        place = await one.service.begin(ref, truncate=True)
        await one.service.end(InodeId(5))
        with pytest.raises(errors.NotFound):
            one.open(place)


async def test_no_room_is_said_when_a_file_is_opened(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, quota_bytes=MIB // 2) as one:
        with pytest.raises(errors.NoSpace):
            await one.service.begin(one.changes.create(5, "no room"), truncate=True)


async def test_what_is_cached_makes_room_for_a_file_that_is_to_be_written(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, quota_bytes=8 * MIB) as one:
        refs = [one.parts.put(number, make_data(2 * MIB)) for number in range(1, 5)]
        for ref in refs:
            one.changes.add_stored(ref)
            await gather_bytes(one.parts.fetcher.read(ref, 0, ref.size, priority=Priority.DEMAND, role=Role.HOME))
        large, too_large = (one.parts.put(number, make_data(size * MIB)) for number, size in ((8, 6), (9, 9)))
        one.changes.add_stored(large)
        await one.service.begin(large, truncate=False)
        await one.service.end(large.inode)
        assert sum(one.store.lookup(ref.file_id) is not None for ref in refs) <= 1
        one.changes.add_stored(too_large)
        with pytest.raises(errors.NoSpace):
            await one.service.begin(too_large, truncate=False)


async def test_what_is_cached_makes_room_for_a_new_file(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, quota_bytes=8 * MIB) as one:
        for number in range(1, 5):
            ref = one.parts.put(number, make_data(2 * MIB))
            one.changes.add_stored(ref)
            await gather_bytes(one.parts.fetcher.read(ref, 0, ref.size, priority=Priority.DEMAND, role=Role.HOME))
        assert one.store.get_usage()[0].room_bytes < MIB
        fd = one.open(await one.service.begin(one.changes.create(8, "new"), truncate=True))
        # By itself the kernel writes more than there was room for.
        os.pwrite(fd, make_data(5 * MIB), 0)
        draft = one.store.drafts.lookup(InodeId(8))
        assert draft is not None
        one.store.drafts.contents.measure(draft)
        usage = one.store.get_usage()[0]
        assert usage.used_bytes > usage.quota_bytes
        await one.service.begin(one.changes.create(9, "another"), truncate=True)
        os.close(fd)
        for inode in (8, 9):
            await one.service.end(InodeId(inode))


async def test_a_file_that_is_freed_while_it_is_brought_is_brought_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has room is not called full."""
    async with running_drafts(tmp_path) as one:
        data = make_data(2 * MIB)
        ref = one.parts.put(7, data)
        one.changes.add_stored(ref)
        bring = one.parts.fetcher.bring
        freed = 0

        async def free_what_comes(ref: FileRef, *arguments: Any, **more: Any) -> Brought:
            nonlocal freed
            brought = await bring(ref, *arguments, **more)
            if freed < 3:
                freed += 1
                one.store.remove([ref.file_id], force=True)
                if freed == 2:
                    raise errors.NoSpace("the cache file was removed again and again", subject=ref.key)
            return brought

        monkeypatch.setattr(one.parts.fetcher, "bring", free_what_comes)
        place = await one.service.begin(ref, truncate=False)
        assert (one.store.get_usage()[0].path / place.path).read_bytes() == data
        assert freed == 3
        await one.service.end(ref.inode)


async def test_a_version_is_read_from_the_draft_as_long_as_that_holds_it(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, mode=WriteMode.CACHE) as one:
        place = await one.service.begin(one.changes.create(5, "seen"), truncate=True)
        fd = one.open(place)
        data = make_data(2 * MIB + 5)
        os.pwrite(fd, data, 0)
        sealed = (await one.service.seal("op-1", InodeId(5))).ref
        assert sealed is not None
        assert not sealed.is_stored

        async def read(offset: int, length: int) -> bytes:
            return await gather_bytes(one.parts.fetcher.read(sealed, offset, length, priority=Priority.DEMAND, role=Role.HOME))

        assert await read(0, len(data)) == data
        assert await gather_bytes(one.parts.fetcher.read_cached(sealed, MIB - 3, 10)) == data[MIB - 3 : MIB + 7]
        os.pwrite(fd, b"changed", MIB)
        assert await gather_bytes(one.parts.fetcher.read_cached(sealed, 0, 10)) == data[:10]
        with pytest.raises(errors.Stale):
            await gather_bytes(one.parts.fetcher.read_cached(sealed, MIB, 10))
        again = (await one.service.seal("op-2", InodeId(5))).ref
        os.close(fd)
        await one.service.end(InodeId(5))
        assert again is not None
        # Not the one before: pages of that are remembered, and right.
        other = replace(sealed, version=VersionId(1), holders=(one.store.worker_id,))
        with pytest.raises(errors.Stale):
            await gather_bytes(one.parts.fetcher.read(other, 0, 5, priority=Priority.DEMAND, role=Role.HOME))
        assert await gather_bytes(one.parts.fetcher.read_cached(again, MIB, 7)) == b"changed"
        assert not one.ufs.requests


async def test_what_is_still_open_for_writing_is_loaded(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        fd = one.open(await one.service.begin(one.changes.create(5, "loaded"), truncate=True))
        data = make_data(2 * MIB + 5)
        os.pwrite(fd, data, 0)
        ref = (await one.service.seal("op-1", InodeId(5))).ref
        assert ref is not None
        pages = PageRange(0, 3)
        brought = await one.parts.fetcher.bring(ref, pages, job=JobId("load"))
        assert brought == Brought(len(data), 0, 0)
        assert await one.parts.fetcher.bring(ref, pages, job=JobId("load")) == Brought(0, len(data), 0)
        copy = one.store.lookup(ref.file_id)
        assert copy is not None
        assert copy.read(0, len(data)) == data
        # When it is over the draft is the cache file, and there is one.
        os.close(fd)
        await one.service.end(InodeId(5))
        cached = one.store.lookup(ref.file_id)
        assert cached is not None
        assert cached is not copy
        assert cached.read(0, len(data)) == data
        assert one.store.get_usage()[0].used_bytes == (len(data) + 4095) & ~4095


async def test_what_only_an_absent_worker_has_is_said_to_be_away(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        ref = replace(make_own_ref(5, 2, "away", 10), holders=(WorkerId("elsewhere"),))
        with pytest.raises(errors.Unavailable, match="only a worker has it"):
            await gather_bytes(one.parts.fetcher.read(ref, 0, 10, priority=Priority.DEMAND, role=Role.HOME))
        assert not one.ufs.requests


async def test_what_was_written_here_is_asked_of_the_store_by_what_the_store_calls_it(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        data = make_data(MIB + 9)
        sealed = await one.write(one.changes.create(5, "stored"), data)
        ref = one.changes.get_ref(5, len(data))
        assert ref.file_id == sealed.file_id
        assert ref.source is not None
        assert one.store.remove([ref.file_id]).files == 1
        read = one.parts.fetcher.read(ref, 0, len(data), priority=Priority.DEMAND, role=Role.HOME)
        assert await gather_bytes(read) == data


async def test_a_file_that_others_go_on_writing_is_sealed_as_it_was_at_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_drafts(tmp_path) as one:
        place = await one.service.begin(one.changes.create(5, "busy"), truncate=True)
        fd = one.open(place)
        data = make_data(2 * MIB)
        os.pwrite(fd, data, 0)
        real = files.compute_sums

        def compute_while_others_write(of: int, size: int) -> object:
            os.pwrite(fd, os.urandom(8), 0)
            return real(of, size)

        monkeypatch.setattr(files, "compute_sums", compute_while_others_write)
        sealed = await one.service.seal("op-1", InodeId(5))
        monkeypatch.undo()
        assert sealed.ref is not None
        assert sealed.ref.version == 2
        uploaded = one.ufs.get("busy")
        assert uploaded[8:] == data[8:]
        cached = one.store.lookup(sealed.ref.file_id)
        assert cached is not None
        assert cached.read(0, 2 * MIB) == uploaded
        again = await one.service.seal("op-2", InodeId(5))
        assert again.ref is not None
        assert again.ref.version == 3
        last = os.pread(fd, 2 * MIB, 0)
        os.close(fd)
        await one.service.end(InodeId(5))
        assert one.ufs.get("busy") == last
        cached = one.store.lookup(again.ref.file_id)
        assert cached is not None
        assert cached.read(0, 2 * MIB) == last


async def test_a_close_that_is_sent_again_makes_a_version_of_what_others_have_written_since(tmp_path: Path) -> None:
    """The daemon that asked for it died before its answer; the kernel wrote on without one."""
    async with running_drafts(tmp_path) as one:
        place = await one.service.begin(one.changes.create(5, "shared"), truncate=True)
        fd = one.open(place)
        os.pwrite(fd, b"one", 0)
        first = await one.service.seal("close-1", InodeId(5))
        os.pwrite(fd, b"two", 0)
        again = await one.service.seal("close-1", InodeId(5))
        assert first.ref is not None
        assert again.ref is not None
        assert (first.ref.version, again.ref.version) == (2, 3)
        assert (await one.service.seal("close-2", InodeId(5))).unchanged
        os.close(fd)
        await one.service.end(InodeId(5))
        assert one.ufs.get("shared") == b"two"
        cached = one.store.lookup(again.ref.file_id)
        assert cached is not None
        assert cached.read(0, 3) == b"two"


async def test_a_writer_does_not_begin_from_a_version_before_the_newest(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        created = one.changes.create(5, "a")
        newest = await one.write(created, b"newest")
        with pytest.raises(errors.Stale):
            await one.service.begin(created, truncate=False)
        place = await one.service.begin(newest, truncate=False)
        fd = one.open(place)
        assert os.pread(fd, 100, 0) == b"newest"
        os.close(fd)
