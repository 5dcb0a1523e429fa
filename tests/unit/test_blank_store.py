"""What a start finds of blank drafts after a kill at each moment, or a power loss: what a client was told of, with its note."""

import os
from pathlib import Path

import pytest

from alluxio_like.cache import draft_files as files
from alluxio_like.cache.blank_drafts import Known, Telling
from alluxio_like.cache.checking import CheckedDirectory, Grade
from alluxio_like.cache.draft import Draft, Ending
from alluxio_like.cache.draft_files import open_draft
from alluxio_like.cache.new_files import Note, write_note
from alluxio_like.cache.writing_records import UploadRecord
from alluxio_like.types import InodeId
from tests.unit.draft_parts import make_new_file, make_own_ref
from tests.unit.test_draft_store import DATA, Kills, kills  # noqa: F401  (a fixture)

INODES = [InodeId(7), InodeId(8), InodeId(9)]


def begin(one: Kills) -> list[Draft]:
    made = one.store.drafts.blanks.begin(INODES)
    assert made is not None
    return made


def note(one: Kills, inode: InodeId, data: bytes) -> None:
    fd = open_draft(one.store.directory_fds[0], one.get_draft(inode).path)
    write_note(fd, Note("client", make_new_file(inode)))
    os.pwrite(fd, data, 0)
    os.close(fd)


def tell(one: Kills, inode: InodeId, *, sealed: bool) -> None:
    draft = one.get_draft(inode)
    seen = one.store.drafts.contents.observe(draft) if sealed else None
    one.store.drafts.blanks.note_publishing([Telling(draft, make_new_file(inode, sealed=sealed), seen)])


def learn(one: Kills, inode: InodeId, *, size: int) -> None:
    ref = make_own_ref(inode, 2 if size else 1, "new", size)
    upload = UploadRecord(ref, "back", 1, "0" * 32) if size else None
    one.store.drafts.blanks.note_known([Known(one.get_draft(inode), ref, upload, unwanted=False)])


def forget_soon(one: Kills, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed soon does not come to the disk before the kill."""
    monkeypatch.setattr(one.store._dirs[0].get_index(), "commit_soon", lambda _: None)


def check_disk(one: Kills) -> None:
    """Nothing is wrong with the directory, as fsck sees it."""
    one.store.close()
    checked = CheckedDirectory(one.root / "cache")
    assert [found for found in checked.check(verify=True) if found.grade is not Grade.LEFTOVER] == []
    checked.close()
    one.store = one._open()


@pytest.mark.parametrize("point", ["blank: created", "blank: committed"])
def test_killed_as_they_are_begun_they_are_blank_or_nothing(kills: Kills, point: str) -> None:  # noqa: F811
    kills.kill_at(point, lambda: begin(kills))
    for draft in kills.store.drafts.list_drafts():
        assert draft.record.blank
    # A repeat gives them, or makes those that are missing.
    assert [draft.inode for draft in begin(kills)] == INODES
    assert len(kills.list_files("drafts")) == 3
    assert kills.store.drafts.drop_unused(kills.store.drafts.list_drafts()) == []
    assert not kills.store.drafts.list_drafts()
    assert not kills.list_files("drafts")
    kills.check_space()


def test_killed_before_the_index_knows_of_them_they_are_found_with_their_notes(
    kills: Kills,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget_soon(kills, monkeypatch)
    begin(kills)
    note(kills, INODES[0], DATA)
    kills.restart()
    assert {draft.inode for draft in kills.store.drafts.blanks.list_all()} == set(INODES)
    kills.restart()
    others = kills.store.drafts.drop_unused(kills.store.drafts.list_drafts())
    assert [(one.draft.inode, one.note, one.in_use) for one in others] == [
        (INODES[0], Note("client", make_new_file(INODES[0])), False)
    ]
    assert kills.read_draft(INODES[0]) == DATA
    check_disk(kills)
    kills.check_space()


@pytest.mark.parametrize("sealed", [True, False])
def test_killed_while_the_master_is_told_it_goes_on_as_it_was_written_down(kills: Kills, sealed: bool) -> None:  # noqa: F811
    begin(kills)
    note(kills, INODES[0], DATA)
    kills.kill_at("publish: begun", lambda: tell(kills, INODES[0], sealed=sealed))
    record = kills.get_draft(INODES[0]).record
    assert record.blank
    assert record.publishing == make_new_file(INODES[0], sealed=sealed)
    assert (record.sealing is not None) == sealed
    learn(kills, INODES[0], size=len(DATA) if sealed else 0)
    assert kills.store.drafts.end(kills.get_draft(INODES[0])) is (Ending.DONE if sealed else Ending.CHANGED)
    if sealed:
        cached = kills.store.lookup(make_own_ref(INODES[0], 2, "new", len(DATA)).file_id)
        assert cached is not None
        assert cached.read(0, len(DATA)) == DATA
        assert cached.unpersisted
    kills.check_space()


def test_killed_before_it_is_on_the_disk_what_the_master_said_it_is_asked_again(
    kills: Kills,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin(kills)
    note(kills, INODES[0], DATA)
    tell(kills, INODES[0], sealed=True)
    forget_soon(kills, monkeypatch)
    learn(kills, INODES[0], size=len(DATA))
    assert kills.store.drafts.list_uploads()
    kills.restart()
    assert not kills.store.drafts.list_uploads()
    draft = kills.get_draft(INODES[0])
    assert draft.record.blank
    assert draft.record.publishing is not None
    learn(kills, INODES[0], size=len(DATA))
    assert kills.store.drafts.end(draft) is Ending.DONE
    check_disk(kills)


def test_killed_once_the_master_knows_of_it_it_is_a_draft_like_others(kills: Kills) -> None:  # noqa: F811
    begin(kills)
    note(kills, INODES[0], DATA)
    tell(kills, INODES[0], sealed=True)
    learn(kills, INODES[0], size=len(DATA))
    kills.store.drafts.sync(kills.get_draft(INODES[0]))
    kills.restart()
    record = kills.get_draft(INODES[0]).record
    assert (record.blank, record.publishing, record.sealing, record.ref.version) == (False, None, None, 2)
    assert [one.file_id for one in kills.store.drafts.list_uploads()] == [record.ref.file_id]
    check_disk(kills)


def test_what_is_refused_is_blank_again(kills: Kills) -> None:  # noqa: F811
    begin(kills)
    note(kills, INODES[0], DATA)
    tell(kills, INODES[0], sealed=True)
    kills.store.drafts.blanks.note_refused([kills.get_draft(INODES[0])])
    kills.store.drafts.sync(kills.get_draft(INODES[0]))
    kills.restart()
    record = kills.get_draft(INODES[0]).record
    assert (record.blank, record.publishing, record.sealing) == (True, None, None)


def test_of_what_a_power_loss_took_only_what_the_master_may_know_of_comes_back(kills: Kills) -> None:  # noqa: F811
    begin(kills)
    tell(kills, INODES[1], sealed=False)
    tell(kills, INODES[2], sealed=True)
    for path in kills.list_files("drafts"):
        path.unlink()
    kills.restart()
    # The first one was told to nobody; of the last its bytes are lost, of which fsync would have told.
    assert [draft.inode for draft in kills.store.drafts.list_drafts()] == [INODES[1]]
    assert kills.read_draft(INODES[1]) == b""
    check_disk(kills)


def test_a_disk_that_is_full_leaves_nothing_behind(kills: Kills, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    note_record, count = files.note_record, 0

    def fail(fd: int, raw: bytes) -> bool:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(28, "full")
        return note_record(fd, raw)

    monkeypatch.setattr(files, "note_record", fail)
    with pytest.raises(Exception, match="full"):
        begin(kills)
    assert not kills.store.drafts.list_drafts()
    assert not kills.list_files("drafts")


def test_what_the_master_may_know_of_is_not_unused(kills: Kills) -> None:  # noqa: F811
    begin(kills)
    tell(kills, INODES[0], sealed=True)
    assert [one.draft.inode for one in kills.store.drafts.drop_unused(kills.store.drafts.list_drafts())] == [INODES[0]]


def test_many_are_deleted_with_one_wait_for_the_disk(kills: Kills) -> None:  # noqa: F811
    begin(kills)
    commits: list[str] = []
    kills.store.drafts.checkpoint = commits.append
    fd = open_draft(kills.store.directory_fds[0], kills.get_draft(INODES[1]).path)
    assert [one.draft.inode for one in kills.store.drafts.drop_unused(kills.store.drafts.list_drafts())] == [INODES[1]]
    os.close(fd)
    assert commits == ["delete: committed"]
    kills.kill_at("delete: committed", lambda: kills.store.drafts.drop_unused(kills.store.drafts.list_drafts()))
    assert not kills.store.drafts.list_drafts()
    assert not kills.list_files("drafts")


def test_the_note_of_a_cache_file_means_nothing(kills: Kills, tmp_path: Path) -> None:  # noqa: F811
    """A file keeps its note; once it is published, it is never taken for one that is not."""
    begin(kills)
    note(kills, INODES[0], DATA)
    tell(kills, INODES[0], sealed=True)
    learn(kills, INODES[0], size=len(DATA))
    assert kills.store.drafts.end(kills.get_draft(INODES[0])) is Ending.DONE
    ref = make_own_ref(INODES[0], 2, "new", len(DATA))
    kills.kill_at("begin: renamed", lambda: kills.store.drafts.begin(ref, kills.store.lookup(ref.file_id), truncate=False))
    assert {draft.inode for draft in kills.store.drafts.list_drafts()} == set(INODES[1:])
    kills.kill_at("begin: committed", lambda: kills.store.drafts.begin(ref, kills.store.lookup(ref.file_id), truncate=False))
    assert not kills.get_draft(INODES[0]).record.blank
