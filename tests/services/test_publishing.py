"""Files that clients make in blank drafts: published together, by whoever is left, and nothing of them is lost or done twice."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.cache import draft_files
from alluxio_like.cache.file import Role
from alluxio_like.rpc.messages import Priority
from alluxio_like.rpc.messages_writing import Published, PublishedFile, WriteMode, WritePolicy
from alluxio_like.types import PAGE_BYTES, InodeId, Recall, to_bytes
from alluxio_like.worker import drafts, publishing
from tests.dead_store import stop_dead
from tests.unit.draft_parts import DraftParts, FakeChanges, make_new_file, running_drafts
from tests.unit.worker_parts import gather_bytes, make_data, wait_until

FIRST = InodeId(100)


@asynccontextmanager
async def running(
    directory: Path, *, changes: FakeChanges | None = None, mode: WriteMode = WriteMode.CACHE
) -> AsyncIterator[DraftParts]:
    async with running_drafts(directory, changes=changes, mode=mode) as one:
        yield one


async def make_some(one: DraftParts, count: int, *, owner: str = "client") -> list[int]:
    """Files FIRST, FIRST + 1, … that a client has made and written: their descriptors."""
    blank = await one.service.begin_blank(FIRST, count)
    assert blank.noted
    return [
        one.make(place, make_new_file(FIRST + number), make_data(1000 + number), owner=owner)
        for number, place in enumerate(blank.places)
    ]


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def read_cached(one: DraftParts, published: PublishedFile) -> bytes:
    assert published.ref is not None
    cached = one.store.lookup(published.ref.file_id)
    assert cached is not None
    return cached.read(0, published.ref.size)


async def test_files_are_published_together_and_become_cache_files(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        fds = await make_some(one, 5)
        assert one.store.get_usage()[0].draft_bytes == 0
        files = [make_new_file(FIRST + number, sealed=True) for number in range(5)]
        published = await one.service.publish("", files)
        assert len(one.changes.published) == 1
        for number, (told, done) in enumerate(zip(one.changes.published[0], published.files, strict=True)):
            found = os.fstat(fds[number])
            assert told == replace(files[number], size=1000 + number, mtime_ns=found.st_mtime_ns)
            assert done.ref is not None
            assert (done.error, done.ref.version, done.ref.size, done.unwanted) == (None, 2, 1000 + number, False)
            assert done.ref.holders == (one.store.worker_id,)
        assert one.parts.metrics.registry.get_sample_value("alluxio_like_seal_seconds_count") == 5
        # Whoever has them open still writes to the same files.
        assert not any(draft.record.blank for draft in one.store.drafts.list_drafts())
        close_all(fds)
        await one.service.end_all([file.inode for file in files])
        assert not one.store.drafts.list_drafts()
        for number, done in enumerate(published.files):
            assert read_cached(one, done) == make_data(1000 + number)
        assert {record.mode for record in one.store.drafts.list_uploads()} == {"cache"}
        assert not one.changes.seals


async def test_published_files_are_uploaded_by_the_policy(tmp_path: Path) -> None:
    async with running(tmp_path, mode=WriteMode.BACK) as one:
        close_all(await make_some(one, 3))
        await one.service.publish("", [make_new_file(FIRST + number, sealed=True) for number in range(3)])
        await wait_until(lambda: not one.store.drafts.list_uploads(), "the uploads")
        assert [one.ufs.get(f"2/new-{FIRST + number}") for number in range(3)] == [make_data(1000 + n) for n in range(3)]


async def test_a_policy_that_waits_for_the_store_is_met_before_the_answer(tmp_path: Path) -> None:
    async with running(tmp_path, mode=WriteMode.THROUGH) as one:
        close_all(await make_some(one, 2))
        await one.service.publish("", [make_new_file(FIRST, sealed=True)])
        assert one.ufs.get(f"2/new-{FIRST}") == make_data(1000)
        one.ufs.fail("PUT", errors.StoreDenied("no"), always=True)
        done = (await one.service.publish("", [make_new_file(FIRST + 1, sealed=True)])).files[0]
        # It is there, and its policy is not met.
        assert done.ref is not None
        assert isinstance(done.error, errors.StoreDenied)
        one.ufs.heal()


async def test_a_file_that_is_being_written_is_published_by_its_name_and_sealed_by_its_close(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        fds = await make_some(one, 1)
        named = (await one.service.publish("", [make_new_file(FIRST)])).files[0]
        assert named.ref is not None
        assert (named.ref.version, named.ref.size) == (1, 0)
        assert not one.store.drafts.list_uploads()
        sealed = await one.service.seal("close", FIRST)
        assert sealed.ref is not None
        assert (sealed.ref.version, sealed.ref.size) == (2, 1000)
        close_all(fds)
        await one.service.end(FIRST)
        assert not one.store.drafts.list_drafts()


async def test_a_repeat_is_answered_and_nothing_is_done_twice(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        fds = await make_some(one, 2)
        files = [make_new_file(FIRST, sealed=True), make_new_file(FIRST + 1)]
        first = await one.service.publish("", files)
        again = await one.service.publish("", files)
        assert again.files == (first.files[0], replace(first.files[1], policy=None))
        # What was told with the first answer may never have come.
        assert not first.recalls
        assert again.recalls == tuple(Recall(file.parent, (to_bytes(file.name),), inodes=(file.inode,)) for file in files)
        assert len(one.changes.published) == 1
        # Also when they are over.
        close_all(fds)
        await one.service.end_all([FIRST, InodeId(FIRST + 1)])
        again = await one.service.publish("", files)
        assert again.files[0] == first.files[0]
        assert again.files[1].ref is not None
        assert again.files[1].ref.version == 2
        assert len(one.changes.published) == 1


async def test_an_answer_of_the_master_that_was_lost_is_asked_for_again(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        fds = await make_some(one, 2)
        one.changes.lose_answers = 1
        files = [make_new_file(FIRST, sealed=True), make_new_file(FIRST + 1)]
        with pytest.raises(errors.Unavailable):
            await one.service.publish("", files)
        # What was written meanwhile is a content of its own.
        os.pwrite(fds[0], b"more", 5000)
        again = await one.service.publish("", [replace(file, sealed=True) for file in files])
        assert one.changes.published[1] == one.changes.published[0]
        assert {inode for recall in again.recalls for inode in recall.inodes} == {file.inode for file in files}
        assert [(one.ref.version, one.ref.size) for one in again.files if one.ref] == [(3, 5004), (2, 1001)]
        close_all(fds)
        await one.service.end_all([file.inode for file in files])
        assert len(read_cached(one, again.files[0])) == 5004


async def test_what_was_cut_short_goes_on_by_itself(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        fds = await make_some(one, 1)
        one.changes.away = True
        with pytest.raises(errors.Unavailable):
            await one.service.publish("", [make_new_file(FIRST, sealed=True)])
        with pytest.raises(errors.Unavailable):
            await one.service._publisher.look()
        one.changes.away = False
        await one.service._publisher.look()
        draft = one.store.drafts.lookup(FIRST)
        assert draft is not None
        assert (draft.record.blank, draft.record.ref.version, draft.record.ref.size) == (False, 2, 1000)
        close_all(fds)


async def test_one_that_is_refused_keeps_the_others_from_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        fds = await make_some(one, 3)
        one.changes.refused[InodeId(3)] = errors.NotFound("no such directory")
        one.changes.refused[InodeId(4)] = errors.NameTooLong("too long")
        files = [make_new_file(FIRST + number, sealed=True, parent=InodeId(2 + number)) for number in range(3)]
        done = (await one.service.publish("", files)).files
        assert done[0].ref is not None
        assert [type(file.error) for file in done] == [type(None), errors.NotFound, errors.NameTooLong]
        # Its directory is gone, and it goes with it; the other one waits for something better.
        assert {draft.inode: draft.record.blank for draft in one.store.drafts.list_drafts()} == {FIRST: False, FIRST + 2: True}
        done = (await one.service.publish("", [replace(files[2], parent=InodeId(2))])).files
        assert done[0].ref is not None
        assert done[0].ref.size == 1002
        close_all(fds)


async def test_a_file_that_others_go_on_changing_is_there_as_it_was_at_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as one:
        fds = await make_some(one, 1)
        compute = draft_files.compute_sums
        count = 0

        def write_and_compute(fd: int, size: int) -> object:
            nonlocal count
            count += 1
            if count <= 6:
                os.pwrite(fds[0], b"%d" % count, 0)
            return compute(fd, size)

        monkeypatch.setattr(draft_files, "compute_sums", write_and_compute)
        done = (await one.service.publish("", [make_new_file(FIRST, sealed=True)])).files[0]
        assert done.ref is not None
        assert (done.error, done.ref.version, done.ref.size) == (None, 2, 1000)
        assert one.changes.published[0][0].sealed is False
        assert read_cached(one, done)[0:1].isdigit()
        close_all(fds)


async def test_what_nobody_uses_goes_and_what_somebody_does_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as one:
        blank = await one.service.begin_blank(FIRST, 4)
        used = one.open(blank.places[0])
        made = one.make(blank.places[1], make_new_file(FIRST + 1), b"open")
        os.close(one.make(blank.places[2], make_new_file(FIRST + 2), b"left"))
        await one.service._publisher.look()
        assert len(one.store.drafts.list_drafts()) == 4
        assert one.service._publisher.noted == 2
        monkeypatch.setattr(publishing, "GRACE_S", 0.0)
        await one.service._publisher.look()
        # One has gone, and of one the client is no more.
        assert {draft.inode: draft.record.blank for draft in one.store.drafts.list_drafts()} == {FIRST: True, FIRST + 1: True}
        assert read_cached(one, PublishedFile(one.changes.get_ref(FIRST + 2, 4))) == b"left"
        assert len(list((one.store.get_usage()[0].path / "drafts").iterdir())) == 2
        # What is written into one counts.
        os.pwrite(used, make_data(1 << 20), 0)
        await one.service._publisher.look()
        assert one.store.get_usage()[0].draft_bytes >= 1 << 20
        os.close(used)
        os.close(made)
        await one.service._publisher.look()
        assert not [draft for draft in one.store.drafts.list_drafts() if draft.record.blank]
        assert one.store.get_usage()[0].draft_bytes < 1 << 20


async def test_the_look_leaves_those_alone_that_are_just_being_published(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        fds = await make_some(one, 2)
        go_on = asyncio.Event()
        reach = one.changes._reach

        async def wait() -> None:
            await go_on.wait()
            await reach()

        one.changes._reach = wait  # type: ignore[method-assign]
        work = asyncio.create_task(one.service.publish("", [make_new_file(FIRST, sealed=True)]))
        other = asyncio.create_task(one.service.publish("", [make_new_file(FIRST + n, sealed=True) for n in range(2)]))
        await wait_until(lambda: one.store.drafts.list_drafts()[0].record.publishing is not None)
        await one.service._publisher.look()
        go_on.set()
        done = (await work).files[0]
        assert (await other).files[0].ref == done.ref
        assert [[file.inode for file in files] for files in one.changes.published] == [[FIRST], [FIRST + 1]]
        close_all(fds)


async def test_blank_drafts_are_given_back_or_published_when_their_user_has_ended(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        blank = await one.service.begin_blank(FIRST, 3)
        os.close(one.make(blank.places[0], make_new_file(FIRST), b"noted"))
        used = one.open(blank.places[1])
        await one.service.end_all([InodeId(FIRST + number) for number in range(3)])
        assert {draft.inode: draft.record.blank for draft in one.store.drafts.list_drafts()} == {FIRST + 1: True}
        assert (one.changes.published[0][0].inode, one.changes.published[0][0].sealed) == (FIRST, True)
        os.close(used)
        await one.service.end(InodeId(FIRST + 1))
        assert not one.store.drafts.list_drafts()


async def test_blank_drafts_are_begun_once(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        blank = await one.service.begin_blank(FIRST, 256)
        assert await one.service.begin_blank(FIRST, 256) == blank
        assert len({place.path for place in blank.places}) == 256
        for count in (0, 257):
            with pytest.raises(errors.InvalidArgument):
                await one.service.begin_blank(InodeId(1000), count)
        await one.service.begin(one.changes.create(50, "other"), truncate=True)
        with pytest.raises(errors.Conflict):
            await one.service.begin_blank(InodeId(49), 2)
        assert one.store.drafts.lookup(InodeId(49)) is None


async def test_where_nothing_can_be_noted_there_are_no_blank_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as one:
        monkeypatch.setattr(draft_files, "note_record", lambda *_: False)
        blank = await one.service.begin_blank(FIRST, 3)
        assert (blank.places, blank.noted) == ((), False)
        assert not one.store.drafts.list_drafts()
        assert not list((one.store.get_usage()[0].path / "drafts").iterdir())


async def test_a_close_or_an_open_that_comes_first_has_the_file_published(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        fds = await make_some(one, 2)
        blank = await one.service.begin_blank(InodeId(200), 1)
        sealed = await one.service.seal("close", FIRST)
        assert sealed.ref is not None
        assert (sealed.ref.version, sealed.ref.size) == (2, 1000)
        ref = one.changes._publish(one.store.worker_id, make_new_file(FIRST + 1)).ref
        assert ref is not None
        place = await one.service.begin(ref, truncate=False)
        fds.append(one.open(place))
        assert os.fstat(fds[1]).st_ino == os.fstat(fds[2]).st_ino
        with pytest.raises(errors.Conflict):
            await one.service.seal("close", blank.first)
        close_all(fds)


async def test_what_clients_have_left_is_published_for_the_one_that_is_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        blank = await one.service.begin_blank(FIRST, publishing.MOST)
        more = await one.service.begin_blank(InodeId(FIRST + 500), 50)
        places = {InodeId(FIRST + number): place for number, place in enumerate(blank.places)}
        places |= {InodeId(FIRST + 500 + number): place for number, place in enumerate(more.places)}
        fds = {inode: one.make(place, make_new_file(inode), b"%d" % inode) for inode, place in list(places.items())[:290]}
        another = InodeId(FIRST + 549)
        os.close(one.make(places[another], make_new_file(another), b"another's", owner="another"))
        still = list(fds)[5]
        for inode, fd in fds.items():
            if inode != still:
                os.close(fd)
        assert await one.service.publish_left("client") == 290
        assert await one.service.publish_left("client") == 0
        assert len(one.changes.published) == 2
        told = {file.inode: file for files in one.changes.published for file in files}
        assert {inode for inode, file in told.items() if not file.sealed} == {still}
        found = {draft.inode: draft.record for draft in one.store.drafts.list_drafts()}
        assert (found[still].blank, found[still].ref.version) == (False, 1)
        assert found[another].blank
        # What was written after the note is the file's last change.
        assert told[FIRST].changed_ns == told[FIRST].mtime_ns > 1_000
        assert told[still].changed_ns == 1_000
        assert await one.service.publish_left("another") == 1
        os.close(fds[still])
        await one.service.end_all(list(places))
        assert not one.store.drafts.list_drafts()


async def test_times_that_a_client_has_shown_do_not_move(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        blank = await one.service.begin_blank(FIRST, 2)
        for number, mtime_ns in enumerate((10**18, 4 * 10**18)):
            file = make_new_file(FIRST + number, changed_ns=3 * 10**18, mtime_ns=mtime_ns, atime_ns=5)
            fd = one.make(blank.places[number], file, b"x")
            os.utime(fd, ns=(mtime_ns, mtime_ns))
            os.close(fd)
        await one.service.publish_left("client")
        times = [(file.changed_ns, file.mtime_ns, file.atime_ns) for file in one.changes.published[0]]
        assert times == [(3 * 10**18, 10**18, 5), (3 * 10**18, 4 * 10**18, 5)]


async def test_what_is_written_while_the_master_is_asked_is_a_version_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        fds = await make_some(one, 2)
        publish = one.changes.publish

        async def write_and_publish(*arguments: Any) -> Published:
            os.pwrite(fds[0], b"later", 1000)
            return await publish(*arguments)

        one.changes.publish = write_and_publish  # type: ignore[method-assign]
        done = await one.service.publish("", [make_new_file(FIRST + number, sealed=True) for number in range(2)])
        assert [(file.ref.version, file.ref.size) for file in done.files if file.ref] == [(2, 1000), (2, 1001)]
        close_all(fds)
        await one.service.end_all([FIRST, InodeId(FIRST + 1)])
        assert not one.store.drafts.list_drafts()
        assert [(draft.inode, draft.size) for draft in one.changes.seals] == [(FIRST, 1005)]
        assert read_cached(one, done.files[1]) == make_data(1001)


class Killed(Exception):
    """The worker is gone from here on."""


@pytest.mark.parametrize("repeats", [True, False], ids=["the client repeats", "nobody does"])
@pytest.mark.parametrize("is_late", [True, False], ids=["all on the disk", "the last not on the disk"])
@pytest.mark.parametrize("point", ["blank: created", "blank: committed", "publish: begun", "asked", "publish: committed"])
async def test_killed_at_any_step_each_file_is_published_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, is_late: bool, repeats: bool
) -> None:
    files = [make_new_file(FIRST + number, sealed=number < 2) for number in range(3)]
    changes = FakeChanges(WritePolicy(WriteMode.CACHE))
    fds: list[int] = []

    def reach(here: str) -> None:
        if here == point:
            raise Killed

    async with running(tmp_path, changes=changes) as one:
        if not is_late:
            monkeypatch.setattr(one.store._dirs[0].get_index(), "commit_soon", lambda _: None)
        one.store.drafts.checkpoint = reach
        if point == "asked":
            changes.lose_answers = 1
        with pytest.raises((Killed, errors.Unavailable)):
            fds = await make_some(one, 3)
            await one.service.publish("", files)
        stop_dead(one.store)
    # A client's descriptors outlive its worker.
    async with running(tmp_path, changes=changes) as one:
        monkeypatch.setattr(publishing, "GRACE_S", -1.0)
        if not fds:
            fds = await make_some(one, 3)
        if repeats:
            await one.service.publish("", files)
            close_all(fds)
        else:
            close_all(fds)
            await one.service._publisher.look()
            await one.service._publisher.look()
        await one.service.end_all([file.inode for file in files])
        assert not one.store.drafts.list_drafts()
        assert changes.made.keys() == {file.operation_id for file in files}
        for number, file in enumerate(files):
            assert changes.versions[file.inode] == 2
            ref = changes.get_ref(file.inode, 1000 + number)
            assert read_cached(one, PublishedFile(ref)) == make_data(1000 + number)
        assert len(one.store.drafts.list_uploads()) == 3


async def test_what_is_cached_makes_room_for_blank_drafts(tmp_path: Path) -> None:
    async with running_drafts(tmp_path, quota_bytes=4 << 20) as one:
        data = make_data(4 << 20)
        ref = one.parts.put(7, data)
        await gather_bytes(one.parts.fetcher.read(ref, 0, len(data), priority=Priority.DEMAND, role=Role.HOME))
        assert one.store._dirs[0].get_room() < PAGE_BYTES
        assert len((await one.service.begin_blank(FIRST, 3)).places) == 3


async def test_a_file_whose_bytes_are_lost_is_not_made(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        done = (await one.service.publish("", [make_new_file(FIRST, sealed=True)])).files[0]
        assert done.ref is None
        assert isinstance(done.error, errors.DiskError)
        assert not one.changes.published
        # One that has gone on to the store, and of which nothing is left here, is as the master has it.
        one.changes.create(FIRST, "stored")
        assert (await one.service.publish("", [make_new_file(FIRST, sealed=True)])).files[0].ref is not None


async def test_an_empty_file_is_published_and_uploaded(tmp_path: Path) -> None:
    async with running(tmp_path, mode=WriteMode.BACK) as one:
        blank = await one.service.begin_blank(FIRST, 1)
        os.close(one.make(blank.places[0], make_new_file(FIRST)))
        done = (await one.service.publish("", [make_new_file(FIRST, sealed=True)])).files[0]
        assert done.ref is not None
        assert (done.ref.version, done.ref.size) == (2, 0)
        await one.service.end_all([FIRST])
        await wait_until(lambda: not one.store.drafts.list_uploads(), "the upload")
        assert one.ufs.get(f"2/new-{FIRST}") == b""
        assert not one.store.drafts.list_drafts()


async def test_a_worker_looks_after_blank_drafts_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (drafts, publishing):
        monkeypatch.setattr(module, "GRACE_S", 0.02)
    monkeypatch.setattr(drafts, "LOOK_S", 0.01)
    async with running(tmp_path) as one:
        looking = asyncio.create_task(one.service.run())
        blank = await one.service.begin_blank(FIRST, 3)
        fds = [one.make(place, make_new_file(FIRST + number), b"x") for number, place in enumerate(blank.places[:2])]
        os.close(fds[0])
        # One is left, one is in use, one is not used.
        await wait_until(lambda: [draft.inode for draft in one.store.drafts.list_drafts()] == [FIRST + 1], "the look")
        await wait_until(lambda: one.parts.metrics.registry.get_sample_value("alluxio_like_drafts") == 1, "another one")
        assert [[file.inode for file in files] for files in one.changes.published] == [[FIRST]]
        os.close(fds[1])
        await wait_until(lambda: not one.store.drafts.list_drafts(), "the last one")
        looking.cancel()
        assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


async def test_a_worker_that_ends_has_what_clients_made_uploaded(tmp_path: Path) -> None:
    async with running(tmp_path, mode=WriteMode.BACK) as one:
        close_all(await make_some(one, 3))
        await one.service.drain(0.0)
        assert not one.changes.published
        await one.service.drain(20.0)
        assert [one.ufs.get(f"2/new-{FIRST + number}") for number in range(3)] == [make_data(1000 + n) for n in range(3)]


async def test_more_than_go_together_are_published_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "MOST", 8)
    async with running(tmp_path) as one:
        blank = [await one.service.begin_blank(InodeId(FIRST + 8 * part), 8) for part in range(3)]
        for part in blank:
            for number, place in enumerate(part.places):
                os.close(one.make(place, make_new_file(part.first + number), b"%d" % (part.first + number)))
        files = [make_new_file(FIRST + number, sealed=True) for number in range(20)]
        done = await one.service.publish("", [*files, files[3]])
        assert [[file.inode - FIRST for file in part] for part in one.changes.published] == [
            list(range(8)), list(range(8, 16)), list(range(16, 20)),
        ]  # fmt: skip
        assert [file.ref.inode for file in done.files if file.ref] == [*(file.inode for file in files), files[3].inode]
