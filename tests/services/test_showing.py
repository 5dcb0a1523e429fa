"""Versions that are sealed while their file stays open: read by others, uploaded once, gone again."""

import asyncio
import os
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.cache import shown
from alluxio_like.types import FileRef, InodeId
from tests.unit.draft_parts import DraftParts, FakeChanges, running_drafts
from tests.unit.worker_parts import gather_bytes, make_data, wait_until

MIB = 1 << 20
FILE = InodeId(5)


async def begin(one: DraftParts, data: bytes = b"", inode: int = FILE) -> int:
    fd = one.open(await one.service.begin(one.changes.create(inode, "log"), truncate=True))
    os.pwrite(fd, data, 0)
    return fd


async def show(one: DraftParts) -> FileRef:
    sealed = await one.service.seal(os.urandom(8).hex(), FILE, early=True)
    assert sealed.ref is not None
    return sealed.ref


async def read(one: DraftParts, ref: FileRef) -> bytes:
    """As another worker asks for it."""
    return await gather_bytes(one.parts.fetcher.read_cached(ref, 0, ref.size))


def measure_copies(one: DraftParts) -> int:
    usage = one.store.get_usage()[0]
    return usage.used_bytes - usage.draft_bytes


def list_early(one: DraftParts) -> list[int]:
    return [record.ref.version for record in one.store.drafts.list_uploads() if record.early]


async def test_what_was_shown_of_a_file_that_grows_is_read_on(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        data = make_data(3 * MIB)
        fd = await begin(one)
        refs = []
        for size in (100, MIB + 7, 2 * MIB, 3 * MIB - 1):
            os.pwrite(fd, data[:size], 0) if not refs else os.pwrite(fd, data[refs[-1].size : size], refs[-1].size)
            refs.append(await show(one))
        os.pwrite(fd, b"more", 3 * MIB - 1)
        assert [(seal.base_version + 1, seal.extends) for seal in one.changes.seals] == [(ref.version, True) for ref in refs]
        for ref in refs:
            assert await read(one, ref) == data[: ref.size]
        assert not measure_copies(one)
        assert list_early(one) == [refs[-1].version]
        # What is changed and not appended is another content: of what was there before, what is as it was can be read.
        os.pwrite(fd, b"changed", MIB)
        assert await read(one, refs[0]) == data[:100]
        with pytest.raises(errors.Stale):
            await read(one, refs[2])
        os.close(fd)


async def test_more_versions_than_are_remembered_go_one_by_one(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        fd = await begin(one)
        refs = []
        for step in range(shown.KEPT + 2):
            os.pwrite(fd, b"%02d" % step, 2 * step)
            refs.append(await show(one))
        assert await read(one, refs[2]) == b"000102"
        with pytest.raises(errors.NotFound):
            await read(one, refs[1])
        os.close(fd)


async def test_what_was_shown_and_changed_in_place_is_read_from_a_copy(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        data = bytearray(make_data(2 * MIB))
        fd = await begin(one, bytes(data))
        shown_as = [(await show(one), bytes(data))]
        for step in range(4):
            data[step * 1000 : step * 1000 + 4] = b"%04d" % step
            os.pwrite(fd, data, 0)
            ref = await show(one)
            shown_as.append((ref, bytes(data)))
            os.pwrite(fd, b"not yet", MIB)
            for known, content in shown_as[-2:] if step else shown_as[-1:]:
                assert await read(one, known) == content
        assert measure_copies(one) == 2 * len(data), "the last two are kept"
        assert [seal.extends for seal in one.changes.seals] == [True, False, False, False, False]
        os.close(fd)
        await one.service.end(FILE)
        data[MIB : MIB + 7] = b"not yet"
        await wait_until(lambda: one.ufs.lookup_fingerprint("log") is not None)
        assert one.ufs.get("log") == bytes(data)


async def test_what_is_shown_has_the_time_at_which_it_was_written(tmp_path: Path) -> None:
    """Also where a copy of it is sealed: a file's times do not go on by themselves, nor back with its close."""
    async with running_drafts(tmp_path) as one:
        fd = await begin(one, b"content")
        await show(one)
        os.pwrite(fd, b"other", 0)
        await asyncio.sleep(0.02)  # the kernel's clock for files goes on
        await show(one)
        written_ns = os.fstat(fd).st_mtime_ns
        os.close(fd)
        await one.service.seal("close", FILE)
        assert [draft.mtime_ns for draft in one.changes.seals[1:]] == [written_ns] * 2


async def test_the_store_gets_it_once_it_is_closed_and_once(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        fd = await begin(one)
        for step in range(5):
            os.pwrite(fd, b"line\n", 5 * step)
            await show(one)
            one.uploader.look()
        assert not one.changes.persisted
        assert one.uploader.count_running() == 0
        # Nothing was written since: the close makes it a version for the store all the same, and waits for that.
        sealed = await one.service.seal("close", FILE)
        assert not sealed.unchanged
        assert one.ufs.get("log") == b"line\n" * 5
        assert len(one.changes.persisted) == 1
        assert [draft.early for draft in one.changes.seals] == [True] * 5 + [False]
        assert not one.store.drafts.list_uploads()
        os.close(fd)


async def test_who_dies_with_a_file_open_leaves_it_to_be_uploaded(tmp_path: Path) -> None:
    changes = FakeChanges()
    async with running_drafts(tmp_path, changes=changes) as one:
        fd = await begin(one, b"shown")
        await show(one)
        os.close(fd)
    async with running_drafts(tmp_path, changes=changes, ufs=one.ufs) as again:
        assert list_early(again) == [2]
        await again.service.end(FILE)
        await wait_until(lambda: again.ufs.lookup_fingerprint("log") is not None)
        assert again.ufs.get("log") == b"shown"
        assert again.store.drafts.lookup(FILE) is None


async def test_what_another_machine_has_written_since_stays(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        fd = await begin(one, b"ours")
        await show(one)
        one.changes.versions[FILE] += 1
        os.pwrite(fd, b"more", 4)
        with pytest.raises(errors.Conflict):
            await show(one)
        assert len(one.changes.seals) == 1
        del one.changes.keys[FILE]
        with pytest.raises(errors.NotFound):
            await show(one)
        assert one.store.drafts.lookup(FILE) is not None
        os.close(fd)


async def test_a_version_is_read_that_the_master_tells_of_before_its_worker_knows(tmp_path: Path) -> None:
    """Between the master's transaction and its answer others find the version, and ask for it: they wait for the answer."""
    async with running_drafts(tmp_path) as one:
        data = make_data(MIB + 3)
        for inode, early in ((5, True), (6, False)):
            fd = await begin(one, data, inode)
            one.changes.lose_answers = 1
            with pytest.raises(errors.Unavailable):
                await one.service.seal(f"op-{inode}", InodeId(inode), early=early)
            reading = asyncio.create_task(read(one, one.changes.get_ref(inode, len(data), one.store.worker_id)))
            await asyncio.sleep(0.02)
            await one.service.seal(f"op-{inode}", InodeId(inode), early=early)
            assert await reading == data
            os.close(fd)
