"""Uploads: each version comes to the store once, whole, and over what it was meant to replace; whatever fails on the way."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.cache import index
from alluxio_like.cache.draft import Draft, Ending
from alluxio_like.cache.writing_records import UploadRecord, make_token, make_upload_key
from alluxio_like.clock import ManualClock
from alluxio_like.rpc.messages_writing import UploadPlan, WriteMode, WritePolicy
from alluxio_like.types import FileId, FileRef, InodeId, VersionId
from alluxio_like.ufs.memory import Fault, MemoryUfs
from alluxio_like.worker import app, upload_parts, uploading
from alluxio_like.worker.together import Together
from tests.unit.draft_parts import DraftParts, FakeChanges, running_drafts
from tests.unit.worker_parts import make_data, wait_until

MIB = 1 << 20
BACK = WritePolicy(WriteMode.BACK)
_COARSE = 5
"""CLOCK_REALTIME_COARSE, by which files are dated."""


async def wait_uploaded(one: DraftParts) -> None:
    def is_done() -> bool:
        one.uploader.look()
        return not one.store.drafts.list_uploads() and not one.uploader.count_running()

    await wait_until(is_done, "all is uploaded")
    assert not one.changes.dirty


@pytest.mark.parametrize("late", [False, True])
async def test_a_store_that_fails_or_whose_answer_is_lost_delays_a_close(tmp_path: Path, late: bool) -> None:
    async with running_drafts(tmp_path) as one:
        one.ufs.fail("PUT", Fault(errors.StoreUnavailable("broken"), is_late=late), errors.StoreThrottled("slow down"))
        data = make_data(1000)
        await one.write(one.changes.create(5, "a"), data)
        assert one.ufs.get("a") == data
        assert not one.changes.conflicts
        assert one.store.drafts.list_uploads() == []


async def test_what_no_waiting_mends_fails_the_close_and_is_tried_again(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        one.ufs.fail("PUT", errors.StoreDenied("no"), always=True)
        with pytest.raises(errors.StoreDenied):
            await one.write(one.changes.create(5, "a"), b"precious")
        assert one.uploader.get_trouble()
        one.ufs.heal()
        await wait_uploaded(one)
        assert one.ufs.get("a") == b"precious"


async def test_a_close_after_a_failed_one_waits_for_the_same_upload(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        one.ufs.fail("PUT", errors.StoreDenied("no"), always=True)
        place = await one.service.begin(one.changes.create(5, "a"), truncate=True)
        fd = one.open(place)
        os.pwrite(fd, b"precious", 0)
        with pytest.raises(errors.StoreDenied):
            await one.service.seal("op-1", InodeId(5))
        with pytest.raises(errors.StoreDenied):
            await one.service.seal("op-2", InodeId(5))
        one.ufs.heal()
        assert (await one.service.seal("op-3", InodeId(5))).unchanged
        assert one.ufs.get("a") == b"precious"
        os.close(fd)


async def test_a_foreign_content_is_kept_and_ours_beside_it(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        ref = one.changes.create(5, "a")
        one.ufs.put("a", b"theirs")
        await one.write(ref, b"ours")
        assert one.ufs.get("a") == b"theirs"
        assert one.ufs.get("a.mine") == b"ours"
        assert len(one.changes.conflicts) == 1


async def test_an_object_that_somebody_removed_is_written_again(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        ref = one.parts.put(7, b"before")
        one.changes.add_stored(ref)
        one.ufs.delete(ref.key)
        await one.write(ref, b"ours")
        assert one.ufs.get(ref.key) == b"ours"
        assert not one.changes.conflicts


async def test_a_version_whose_answer_was_lost_is_no_foreign_one_to_the_next(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        ref = one.changes.create(5, "a")
        one.changes.policy = BACK
        one.ufs.fail("PUT", Fault(errors.StoreUnavailable("broken"), is_late=True))
        one.ufs.fail("HEAD", Fault(errors.StoreUnavailable("broken")), always=True)
        ref = await one.write(ref, b"first")
        await wait_until(lambda: one.ufs.count_requests()["PUT"] >= 1)
        ref = await one.write(ref, b"second")
        one.ufs.heal()
        await wait_uploaded(one)
        assert one.ufs.get("a") == b"second"
        assert not one.changes.conflicts


async def test_a_restarted_worker_uploads_what_it_had_and_knows_its_own_writes(tmp_path: Path) -> None:
    changes, ufs = FakeChanges(BACK), MemoryUfs(name="bucket")
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        ufs.fail("PUT", Fault(errors.StoreUnavailable("broken"), is_late=True), errors.StoreUnavailable("broken"), always=True)
        ufs.fail("HEAD", errors.StoreUnavailable("broken"), always=True)
        await one.write(changes.create(5, "a"), b"first")
        await one.write(changes.create(6, "b"), b"other")
        one.uploader.look()
        await wait_until(lambda: ufs.count_requests()["PUT"] >= 2)
    ufs.heal()
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        assert len(one.store.drafts.list_uploads()) == 2
        await wait_uploaded(one)
        assert (ufs.get("a"), ufs.get("b")) == (b"first", b"other")
        assert not changes.conflicts


async def test_what_was_removed_before_its_upload_is_not_brought_back(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        one.changes.policy = BACK
        one.ufs.fail("PUT", errors.StoreUnavailable("broken"), always=True)
        ref = await one.write(one.changes.create(5, "a"), b"gone soon")
        await wait_until(lambda: bool(one.uploader.get_trouble()))
        del one.changes.keys[InodeId(5)]
        one.changes.dirty.clear()
        one.ufs.heal()
        await wait_uploaded(one)
        assert not one.ufs.has_below("")
        cached = one.store.lookup(ref.file_id)
        assert cached is not None
        assert not cached.unpersisted


@contextlib.asynccontextmanager
async def writing_a_draft(one: DraftParts) -> AsyncIterator[UploadRecord]:
    """A version that is sealed, is to be uploaded by nobody for now, and is a draft until this ends."""
    one.changes.policy, one.changes.following = BACK, True
    place = await one.service.begin(one.changes.create(5, "a"), truncate=True)
    fd = one.open(place)
    os.pwrite(fd, b"a version", 0)
    await one.service.seal("seal", InodeId(5))
    os.close(fd)
    (record,) = one.store.drafts.list_uploads()
    yield record
    one.changes.following = False
    await wait_uploaded(one)
    assert one.ufs.get("a") == b"a version"


async def test_a_version_is_found_while_its_draft_becomes_a_cache_file(tmp_path: Path) -> None:
    """An upload that found nothing would be given up until somebody looks again."""
    async with running_drafts(tmp_path) as one, writing_a_draft(one) as record:
        before = one.uploader._sources.open(record)
        assert before is not None
        found = []

        def look(point: str) -> None:
            opened = one.uploader._sources.open(record)
            found.append((point, opened is not None, one.uploader._sources.is_unchanged(before)))
            if opened is not None:
                os.close(opened.fd)

        one.store.drafts.checkpoint = look
        await one.service.end(InodeId(5))
        os.close(before.fd)
        assert found == [("end: renamed", True, True), ("end: committed", True, True)]


async def test_a_version_is_found_that_becomes_a_cache_file_between_two_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_drafts(tmp_path) as one, writing_a_draft(one) as record:
        drafts = one.store.drafts
        before = one.uploader._sources.open(record)
        assert before is not None
        draft = drafts.lookup(InodeId(5))
        assert draft is not None
        lookup = drafts.lookup

        def end_first(inode: InodeId) -> Draft | None:
            monkeypatch.setattr(drafts, "lookup", lookup)
            assert drafts.end(draft) is Ending.DONE
            return lookup(inode)

        monkeypatch.setattr(drafts, "lookup", end_first)
        opened = one.uploader._sources.open(record)
        assert opened is not None
        assert one.uploader._sources.is_unchanged(before)
        os.close(opened.fd)
        os.close(before.fd)


async def lose_an_answer_after_a_rename(one: DraftParts) -> FileId:
    """A file is renamed before it is uploaded; it comes to the store under its new name, and nobody is told."""
    one.changes.policy, one.changes.following = BACK, True
    ref = await one.write(one.changes.create(5, "new"), b"first")
    one.changes.keys[InodeId(5)] = "name"
    one.ufs.fail("PUT", Fault(errors.StoreUnavailable("broken"), is_late=True), errors.StoreUnavailable("broken"), always=True)
    one.ufs.fail("HEAD", errors.StoreUnavailable("broken"), always=True)
    one.changes.following = False
    await wait_until(lambda: one.ufs.has_below("nam"))
    return ref.file_id


@pytest.mark.parametrize("restart", [False, True])
async def test_what_has_arrived_under_a_later_name_is_told_also_when_it_is_not_wanted_any_more(
    tmp_path: Path, restart: bool
) -> None:
    """What had replaced it was then set aside, since it found what nobody had told of."""
    changes, ufs = FakeChanges(BACK), MemoryUfs(name="bucket")
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        file_id = await lose_an_answer_after_a_rename(one)
        del changes.keys[InodeId(5)]
        changes.dirty.clear()
        if not restart:
            ufs.heal()
            await wait_uploaded(one)
    ufs.heal()
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        await wait_uploaded(one)
    assert changes.persisted == [(file_id, "name")]


@pytest.mark.parametrize("anew", [False, True])
async def test_what_has_arrived_under_an_earlier_name_is_told_before_it_goes_elsewhere(tmp_path: Path, anew: bool) -> None:
    async with running_drafts(tmp_path) as one:
        file_id = await lose_an_answer_after_a_rename(one)
        one.changes.keys[InodeId(5)] = "last"
        if anew:
            await one.write(one.changes.get_ref(5, 5), b"second")
        one.ufs.heal()
        await wait_uploaded(one)
        assert (file_id, "name") in one.changes.persisted
        assert one.ufs.has_below("las") == anew
        assert not one.changes.conflicts


async def test_a_large_version_goes_in_parts_at_once_and_leaves_none(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, part_bytes=MIB) as one:
        data = make_data(9 * MIB + 5)
        one.ufs.fail("PART", errors.StoreUnavailable("broken"), Fault(errors.StoreUnavailable("broken"), is_late=True))
        one.ufs.fail("COMPLETE", Fault(errors.StoreUnavailable("broken"), is_late=True))
        await one.write(one.changes.create(5, "large"), data)
        assert one.ufs.get("large") == data
        assert not one.ufs.uploads
        assert one.ufs.count_requests()["CREATE"] == 1
        assert one.ufs.get_metadata("large")["mode"] == "644"


async def test_what_is_removed_while_it_is_sent_is_not_sent_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_parts, "_REPLAN_SENDING_S", 0.0)
    async with running_drafts(tmp_path, part_bytes=MIB) as one:
        one.changes.policy = BACK
        removed = asyncio.Event()
        one.ufs.fail("PART", *[Fault() for _ in range(5)], Fault(until=removed), always=True)
        await one.write(one.changes.create(5, "large"), make_data(20 * MIB))
        await wait_until(lambda: sum(len(upload.parts) for upload in one.ufs.uploads.values()) == 5)
        del one.changes.keys[InodeId(5)]
        one.changes.dirty.clear()
        removed.set()
        await wait_uploaded(one)
        assert one.ufs.count_requests()["PART"] < 15
        assert not one.ufs.uploads
        assert not one.ufs.has_below("")


async def test_parts_are_gone_on_with_after_a_restart(tmp_path: Path) -> None:
    changes, ufs = FakeChanges(BACK), MemoryUfs(name="bucket")
    data = make_data(9 * MIB + 5)
    stuck = Fault(until=asyncio.Event())
    async with running_drafts(tmp_path, part_bytes=MIB, changes=changes, ufs=ufs) as one:
        ufs.fail("PART", *[Fault() for _ in range(5)], stuck, always=True)
        await one.write(changes.create(5, "large"), data)
        one.uploader.look()
        await wait_until(lambda: sum(len(upload.parts) for upload in ufs.uploads.values()) == 5)
    ufs.heal()
    before = ufs.count_requests()["PART"]
    async with running_drafts(tmp_path, part_bytes=MIB, changes=changes, ufs=ufs) as one:
        await wait_uploaded(one)
    assert ufs.get("large") == data
    assert ufs.count_requests()["PART"] - before == 5
    assert ufs.count_requests()["CREATE"] == 1
    assert not ufs.uploads


async def test_an_upload_that_was_begun_and_not_written_down_is_found_and_dropped(tmp_path: Path) -> None:
    changes, ufs = FakeChanges(BACK), MemoryUfs(name="bucket")
    data = make_data(3 * MIB)
    async with running_drafts(tmp_path, part_bytes=MIB, changes=changes, ufs=ufs) as one:
        ufs.fail("CREATE", Fault(errors.StoreUnavailable("broken"), is_late=True), errors.StoreUnavailable("away"), always=True)
        ufs.fail("UPLOADS", errors.StoreUnavailable("away"), always=True)
        await one.write(changes.create(5, "large"), data)
        one.uploader.look()
        await wait_until(lambda: len(ufs.uploads) == 1)
    ufs.heal()
    async with running_drafts(tmp_path, part_bytes=MIB, changes=changes, ufs=ufs) as one:
        await wait_uploaded(one)
    assert ufs.get("large") == data
    assert not ufs.uploads


async def test_a_version_that_is_changed_while_it_is_sent_never_becomes_visible(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, part_bytes=MIB) as one:
        one.changes.policy = BACK
        place = await one.service.begin(one.changes.create(5, "large"), truncate=True)
        fd = one.open(place)
        data = make_data(4 * MIB)
        os.pwrite(fd, data, 0)
        go_on = asyncio.Event()
        one.ufs.fail("PART", Fault(until=go_on))
        await one.service.seal("op-1", InodeId(5))
        await wait_until(lambda: one.ufs.count_requests()["PART"] >= 1)
        os.pwrite(fd, b"changed", 4 * MIB - 7)
        go_on.set()
        await wait_until(lambda: not one.uploader.count_running() and not one.ufs.uploads)
        assert not one.ufs.has_below("")
        # Should it be removed now, nobody would ask for its upload again: its key is not to stay taken.
        assert one.changes.ended == [FileId(InodeId(5), VersionId(2))]
        await one.service.seal("op-2", InodeId(5))
        os.close(fd)
        await wait_uploaded(one)
        assert one.ufs.get("large") == data[:-7] + b"changed"
        assert not one.ufs.uploads


async def test_a_small_version_that_is_changed_while_it_is_sent_comes_as_it_was_sealed(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        one.changes.policy = BACK
        place = await one.service.begin(one.changes.create(5, "small"), truncate=True)
        fd = one.open(place)
        os.pwrite(fd, b"sealed", 0)
        go_on = asyncio.Event()
        one.ufs.fail("PUT", Fault(until=go_on))
        await one.service.seal("op-1", InodeId(5))
        await wait_until(lambda: one.ufs.count_requests()["PUT"] >= 1)
        os.pwrite(fd, b"change", 0)
        go_on.set()
        await wait_until(lambda: one.ufs.has_below(""))
        assert one.ufs.get("small") == b"sealed"
        await one.service.seal("op-2", InodeId(5))
        os.close(fd)
        await wait_uploaded(one)
        assert one.ufs.get("small") == b"change"


async def test_a_file_that_is_appended_to_again_and_again_goes_when_that_pauses(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        clock = ManualClock()
        one.uploader._turns.monotonic = clock.monotonic
        one.changes.policy = BACK
        ref = await one.write(one.changes.create(5, "log"), b"line\n")
        clock.advance(uploading.QUIET_S)
        await wait_uploaded(one)
        for number in range(30):
            one.uploader.look()
            ref = await one.write(ref, b"line\n" * (number + 2))
        clock.advance(uploading.LONGEST_S)
        await wait_uploaded(one)
        assert one.ufs.get("log") == b"line\n" * 31
        sent = sum(request.length for request in one.ufs.requests if request.op == "PUT")
        assert sent <= 2 * len(b"line\n") * 31


async def test_a_close_waits_for_as_long_as_its_upload_goes_forward(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, part_bytes=MIB, io_timeout_s=4.0) as one:
        # Five rounds of four parts: longer than the time that a close waits for nothing.
        one.ufs.fail("PART", Fault(delay_s=1.0), always=True)
        data = make_data(20 * MIB)
        await one.write(one.changes.create(5, "slow"), data)
        assert one.ufs.get("slow") == data
        # And no longer.
        one.ufs.fail("PART", Fault(until=asyncio.Event()), always=True)
        with pytest.raises(errors.TimedOut):
            await one.write(one.changes.create(6, "stuck"), data)
        one.ufs.heal()


async def write_in_order(one: DraftParts, keys: str) -> None:
    """Files by these names, each written a tick of the clock after the one before."""
    one.changes.policy = BACK
    for number, key in enumerate(keys):
        await one.write(one.changes.create(5 + number, key), key.encode() * 10)
        before = time.clock_gettime_ns(_COARSE)
        await wait_until(lambda before=before: time.clock_gettime_ns(_COARSE) > before)


def list_puts(one: DraftParts) -> list[str]:
    return [request.key for request in one.ufs.requests if request.op == "PUT"]


async def test_before_the_end_what_was_written_last_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before what is under way and does not come to an end."""
    monkeypatch.setattr(uploading, "_UPLOADS_AT_ONCE", 1)
    monkeypatch.setattr(uploading, "_SMALL_AT_ONCE", 1)
    async with running_drafts(tmp_path) as one:
        one.ufs.fail("PUT", Fault(until=asyncio.Event()), always=True)
        await write_in_order(one, "abc")
        one.uploader.look()
        await wait_until(lambda: list_puts(one) == ["a"])
        one.ufs.heal()
        assert await one.uploader.drain(60) == 0
        assert list_puts(one) == ["a", "c", "b", "a"]
        assert [one.ufs.get(key) for key in "abc"] == [b"a" * 10, b"b" * 10, b"c" * 10]
        assert not one.changes.conflicts


async def test_before_the_end_nothing_waits_for_more(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        one.changes.policy = BACK
        ref = await one.write(one.changes.create(5, "log"), b"line\n")
        await wait_uploaded(one)
        await one.write(ref, b"line\nline\n")
        assert await one.uploader.drain(60) == 0
        assert one.ufs.get("log") == b"line\nline\n"


async def test_a_drain_ends_in_time_and_loses_nothing(tmp_path: Path) -> None:
    changes, ufs = FakeChanges(BACK), MemoryUfs(name="bucket")
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        ufs.fail("PUT", errors.StoreUnavailable("gone"), always=True)
        await write_in_order(one, "ab")
        begun = time.monotonic()
        assert await one.uploader.drain(0.3) == 2
        assert time.monotonic() - begun < 60
    ufs.heal()
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        await wait_uploaded(one)
        assert (ufs.get("a"), ufs.get("b")) == (b"a" * 10, b"b" * 10)


async def test_a_second_signal_ends_a_drain(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        one.ufs.fail("PUT", errors.StoreUnavailable("gone"), always=True)
        await write_in_order(one, "a")
        hurry = asyncio.Event()
        draining = asyncio.create_task(app._drain(one.service, 600, hurry))
        await wait_until(lambda: len(list_puts(one)) > 1)
        hurry.set()
        async with asyncio.timeout(60):
            await draining
        assert one.uploader.count_left() == 1


async def test_without_a_limit_nothing_is_waited_for(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        one.ufs.fail("PUT", errors.StoreUnavailable("gone"), always=True)
        await write_in_order(one, "a")
        async with asyncio.timeout(60):
            await app._drain(one.service, 0, asyncio.Event())
        assert one.uploader.count_left() == 1


async def test_a_directory_that_somebody_removed_at_the_store_is_made_again(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        one.ufs.fail("PUT", errors.NotFound("no such directory"))
        await one.write(one.changes.create(5, "a/b/file"), b"ours")
        assert one.ufs.get("a/b/file") == b"ours"
        made = [request.key for request in one.ufs.requests if request.op == "PUT" and request.key.endswith("/")]
        assert made == ["a/", "a/b/"]


async def test_what_another_worker_sent_of_the_version_before_is_no_foreign_content(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        ref = one.changes.create(5, "a")
        one.changes.versions[InodeId(5)] = 2
        # The other one sealed version 2, sent it, and was lost before it could say so.
        token = make_token(one.store.cluster_id or "", FileId(InodeId(5), VersionId(2)))
        one.ufs.put("a", b"before", {"alluxio-like-token": token})
        await one.write(ref, b"after")
        assert one.ufs.get("a") == b"after"
        assert not one.changes.conflicts


async def append(one: DraftParts, ref: FileRef, data: bytes) -> FileRef:
    """A program's open, append and close."""
    place = await one.service.begin(ref, truncate=False)
    fd = one.open(place)
    try:
        os.pwrite(fd, data, os.fstat(fd).st_size)
        sealed = await one.service.seal(os.urandom(8).hex(), ref.inode)
    finally:
        os.close(fd)
    await one.service.end(ref.inode)
    assert sealed.ref is not None
    return sealed.ref


async def test_a_file_that_grows_by_small_pieces_is_not_sent_as_a_whole_for_each(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        clock = ManualClock()
        one.uploader._turns.monotonic = clock.monotonic
        ref = await one.write(one.changes.create(5, "log"), b"first\n")
        content = b"first\n"
        assert one.ufs.get("log") == content, "a new file's close waits"
        for number in range(60):
            line = b"line %d\n" % number
            ref = await append(one, ref, line)
            content += line
        assert one.ufs.count_requests()["PUT"] == 1
        clock.advance(uploading.QUIET_S)
        await wait_uploaded(one)
        assert one.ufs.get("log") == content
        assert one.ufs.count_requests()["PUT"] == 2
        # The pause has to be longer now.
        await append(one, ref, b"more\n")
        content += b"more\n"
        clock.advance(uploading.QUIET_S)
        one.uploader.look()
        assert not one.uploader.count_running()
        clock.advance(uploading.QUIET_S)
        await wait_uploaded(one)
        assert one.ufs.get("log") == content


async def test_a_file_that_is_appended_to_without_pause_is_sent_now_and_then(tmp_path: Path) -> None:
    async with running_drafts(tmp_path) as one:
        clock = ManualClock()
        one.uploader._turns.monotonic = clock.monotonic
        ref = await one.write(one.changes.create(5, "log"), b"first\n")
        pause_s = uploading.QUIET_S / 2
        for _ in range(int(uploading.LONGEST_S / pause_s) + 1):
            ref = await append(one, ref, b"x")
            clock.advance(pause_s)
        await wait_uploaded(one)
        assert len(one.ufs.get("log")) == ref.size


@pytest.mark.parametrize("size", [77, MIB, MIB + 77])
async def test_what_changes_as_it_grows_is_waited_for(tmp_path: Path, size: int) -> None:
    async with running_drafts(tmp_path) as one:
        one.uploader._turns.monotonic = ManualClock().monotonic
        data = make_data(size)
        ref = await one.write(one.changes.create(5, "a"), data)
        ref = await append(one, ref, b"tail")
        assert one.ufs.get("a") == data
        changed = bytes([data[0] ^ 1]) + data[1:]
        ref = await one.write(ref, changed + b"tail and more")
        assert one.ufs.get("a") == changed + b"tail and more"
        ref = await one.write(ref, data[:5])
        assert one.ufs.get("a") == data[:5], "nor does what shrinks"


async def test_who_appends_while_the_store_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_drafts(tmp_path) as one:
        clock = ManualClock()
        one.uploader._turns.monotonic = clock.monotonic
        ref = await one.write(one.changes.create(5, "log"), b"first\n")
        ref = await append(one, ref, b"second\n")
        one.ufs.fail("PUT", errors.StoreDenied("no"), always=True)
        clock.advance(uploading.QUIET_S)
        one.uploader.look()
        await wait_until(lambda: bool(one.uploader.get_trouble()), "the failure")
        job, meet = one.uploader._jobs[InodeId(5)], one.service._policies.meet

        async def try_and_meet(sealed: FileRef) -> None:
            """The next try sees what was appended before whoever appended it asks whether to wait for it."""
            before = job.failures
            job.wake.set()
            await wait_until(lambda: job.done or job.failures > before, "the next try")
            await meet(sealed)

        monkeypatch.setattr(one.service._policies, "meet", try_and_meet)
        with pytest.raises(errors.StoreDenied):
            await append(one, ref, b"third\n")
        one.ufs.heal()
        await wait_uploaded(one)
        assert one.ufs.get("log") == b"first\nsecond\nthird\n"


async def test_what_is_asked_and_sent_is_known_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of an upload is committed before the upload begins: else who comes after would not know what may be there."""
    monkeypatch.setattr(index, "SOON_S", 3600.0)
    async with running_drafts(tmp_path, changes=FakeChanges(BACK)) as one:
        committed: list[bool] = []
        plan_uploads = one.changes.plan_uploads

        async def look_and_plan(file_ids: Sequence[FileId]) -> Sequence[UploadPlan | errors.AlluxioLikeError]:
            keys = [key for key, _ in one.store.drafts._dirs[0].get_index().scan_writing(b"")]
            committed.extend(make_upload_key(file_id) in keys for file_id in file_ids)
            return await plan_uploads(file_ids)

        monkeypatch.setattr(one.uploader._plans, "_call", look_and_plan)
        place = await one.service.begin(one.changes.create(5, "name"), truncate=False)
        fd = one.open(place)
        os.write(fd, b"content")
        await one.service.seal("op", InodeId(5))
        one.uploader.look()
        await wait_until(lambda: bool(committed), "it is planned")
        os.close(fd)
        assert committed == [True]


def remove(changes: FakeChanges, ref: FileRef) -> None:
    changes.keys.pop(ref.inode, None)
    changes.dirty.discard(ref.inode)


@pytest.mark.parametrize("arrived", [True, False])
async def test_what_may_have_arrived_before_a_kill_is_looked_for_before_its_key_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    changes, ufs = FakeChanges(BACK, following=True), MemoryUfs(name="bucket")
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        ref = await one.write(changes.create(5, "name"), b"content")
    if arrived:
        ufs.put("name", b"content", {"alluxio-like-token": make_token(one.store.cluster_id or "", ref.file_id)})
    remove(changes, ref)
    known: list[int] = []
    end_upload = changes.end_upload

    async def note_end(file_id: FileId) -> None:
        known.append(len(changes.persisted))
        await end_upload(file_id)

    monkeypatch.setattr(changes, "end_upload", note_end)
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        await wait_uploaded(one)
    assert changes.persisted == [(ref.file_id, "name")] * arrived
    assert changes.ended == [ref.file_id]
    assert known == [int(arrived)]


async def test_what_was_never_begun_keeps_no_key(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, changes=FakeChanges(BACK)) as one:
        ref = one.changes.create(5, "name")
        del one.changes.keys[ref.inode]
        await one.write(ref, b"content")
        remove(one.changes, ref)
        await wait_uploaded(one)
        assert not one.changes.ended


async def test_small_versions_are_planned_and_noted_together(tmp_path: Path) -> None:
    changes, ufs = FakeChanges(BACK, following=True), MemoryUfs(name="bucket")
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        refs = [await one.write(changes.create(number, f"n{number}"), make_data(number)) for number in range(5, 45)]
    changes.following = False
    changes.planned.clear()
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        await wait_uploaded(one)
        assert [ufs.get(f"n{number}") for number in range(5, 45)] == [make_data(number) for number in range(5, 45)]
        # (How many are known as the first are asked for is the start's affair.)
        assert sum(len(call) for call in changes.planned) == len(refs)
        assert len(changes.planned) <= len(refs) / 4
        assert sum(changes.noted) == len(refs)
        assert len(changes.noted) <= len(refs) / 2
        cached = [one.store.lookup(ref.file_id) for ref in refs]
        assert not [file for file in cached if file is None or file.unpersisted]


async def test_one_bad_version_keeps_no_other_from_the_store(tmp_path: Path) -> None:
    changes, ufs = FakeChanges(BACK, following=True), MemoryUfs(name="bucket")
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        for number in range(5, 25):
            await one.write(changes.create(number, f"n{number}"), make_data(number))
    changes.following = False
    # One is gone, one is in the way of a foreign content, and of one the store will not have anything.
    del changes.keys[InodeId(6)]
    ufs.put("n7", b"theirs")
    changes.refused_versions[InodeId(8)] = errors.Conflict("of a time that nobody knows")
    async with running_drafts(tmp_path, changes=changes, ufs=ufs) as one:
        one.uploader.look()
        await wait_until(lambda: len(changes.dirty) <= 2 and one.uploader.count_running() == 1, "the others are uploaded")
        assert changes.dirty == {InodeId(6), InodeId(8)}
        assert [ufs.get(f"n{number}") for number in range(9, 25)] == [make_data(number) for number in range(9, 25)]
        assert (ufs.get("n7"), ufs.get("n7.mine")) == (b"theirs", make_data(7))
        assert not ufs.has_below("n6")
        assert "nobody knows" in one.uploader.get_trouble()


async def test_one_version_waits_for_no_other(tmp_path: Path) -> None:
    """What is asked while a call is under way goes with the next one; the first goes at once."""
    begun: list[list[int]] = []
    go_on = asyncio.Event()

    async def call(questions: Sequence[int]) -> list[int | Exception]:
        begun.append(list(questions))
        if len(begun) > 1:
            await go_on.wait()
        return [errors.NotFound("no") if one == 3 else 10 * one for one in questions]

    together: Together[int, int] = Together("test", call, most=3)
    assert await together.ask(1) == 10
    asked = [asyncio.create_task(together.ask(number)) for number in range(2, 3)]
    await wait_until(lambda: len(begun) == 2)
    asked += [asyncio.create_task(together.ask(number)) for number in range(3, 9)]
    await asyncio.sleep(0)
    asked[3].cancel()
    go_on.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert begun == [[1], [2], [3, 4], [6, 7, 8]]
    assert [answer for answer in answers if isinstance(answer, int)] == [20, 40, 60, 70, 80]
    assert isinstance(answers[1], errors.NotFound)
    await together.close()


async def test_what_a_call_fails_with_is_raised_to_all_who_asked() -> None:
    async def call(_: Sequence[int]) -> list[int | Exception]:
        await asyncio.sleep(0)
        raise errors.Unavailable("away")

    together: Together[int, int] = Together("test", call, most=3)
    answers = await asyncio.gather(*(together.ask(number) for number in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [errors.Unavailable] * 5
    await together.close()
