"""What a start finds of drafts after a kill at each moment: one consistent state, with everything that was acknowledged."""

import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.cache import draft_files as files
from alluxio_like.cache import index
from alluxio_like.cache.checking import CheckedDirectory, Grade
from alluxio_like.cache.checksum import compute_checksums
from alluxio_like.cache.draft import Draft, Ending
from alluxio_like.cache.draft_files import open_draft
from alluxio_like.cache.store import CacheDirSpec, CacheStore, Role
from alluxio_like.cache.writing_records import UploadRecord
from alluxio_like.clock import SystemClock
from alluxio_like.types import PAGE_BYTES, FileId, FileRef, Fingerprint, InodeId, MountId, VersionId, WorkerId
from alluxio_like.worker.evictor import Evictor
from tests.dead_store import stop_dead
from tests.servers.net import wait_until

INODE = InodeId(7)


class Killed(Exception):
    """The process is gone from here on."""


class Kills:
    """Opens a store, and kills it at a checkpoint."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.boot = "boot-1"
        self.store = self._open()

    def _open(self) -> CacheStore:
        spec = CacheDirSpec(self.root / "cache", 1 << 30, allow_root_disk=True, keep_free_fraction=0.0)
        return CacheStore.open([spec], cluster_id="c", clock=SystemClock(), boot_id=self.boot)

    def kill_at(self, name: str, work: Callable[[], object]) -> None:
        """Do it up to the checkpoint, die there, and start again."""

        def check(here: str) -> None:
            if here == name:
                raise Killed

        self.store.drafts.checkpoint = check
        with pytest.raises(Killed):
            work()
        self.restart()

    def restart(self) -> None:
        stop_dead(self.store)
        self.store = self._open()
        # What nobody knows goes; nothing else does.
        self.store.sweep()

    def read_draft(self, inode: InodeId = INODE) -> bytes:
        draft = self.get_draft(inode)
        fd = open_draft(self.store.directory_fds[0], draft.path)
        try:
            return os.pread(fd, 1 << 30, 0)
        finally:
            os.close(fd)

    def get_draft(self, inode: InodeId = INODE) -> Draft:
        draft = self.store.drafts.lookup(inode)
        assert draft is not None
        return draft

    def list_files(self, below: str) -> list[Path]:
        return [path for path in (self.root / "cache" / below).rglob("*") if path.is_file()]

    def check_space(self) -> None:
        """The account is what is there, once it was looked at."""
        # A file system may move blocks, and add some of its own, when it likes.
        there, before = -1, -2
        while there != before:
            before = sum(path.stat().st_blocks * 512 for path in self.list_files("drafts"))
            for draft in self.store.drafts.list_drafts():
                self.store.drafts.contents.measure(draft)
            there = sum(path.stat().st_blocks * 512 for path in self.list_files("drafts"))
        usage = self.store.get_usage()[0]
        assert usage.draft_bytes == there
        present = sum((info.present_bytes + 4095) & ~4095 for info in self.store.iter_files())
        assert usage.used_bytes == usage.draft_bytes + present


@pytest.fixture
def kills(tmp_path: Path) -> Iterator[Kills]:
    one = Kills(tmp_path)
    yield one
    one.store.close()


def make_ref(version: int, size: int, *, own: bool = False) -> FileRef:
    fingerprint = Fingerprint(f"own-{version:x}" if own else "etag", size)
    return FileRef(INODE, VersionId(version), MountId(1), "key", fingerprint, holders=(WorkerId("w"),) if own else ())


def make_bytes(size: int, seed: bytes = b"a") -> bytes:
    return b"".join(seed + n.to_bytes(7, "big") for n in range(-(-size // 8)))[:size]


DATA = make_bytes(2 * PAGE_BYTES + 77)


def put_cached(kills: Kills) -> FileRef:
    """A cache file of version 1."""
    ref = make_ref(1, len(DATA))
    kills.store.create(ref, Role.HOME).write_pages(0, DATA)
    kills.store.flush()
    return ref


def begin_cached(kills: Kills, *, truncate: bool = False) -> Draft:
    ref = make_ref(1, len(DATA))
    return kills.store.drafts.begin(ref, kills.store.lookup(ref.file_id), truncate=truncate)


def write_draft(kills: Kills, data: bytes) -> None:
    fd = open_draft(kills.store.directory_fds[0], kills.get_draft().path)
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)
    os.close(fd)


def begin_seal(kills: Kills, operation_id: str = "op") -> None:
    draft = kills.get_draft()
    seen = kills.store.drafts.contents.observe(draft)
    assert seen is not None
    kills.store.drafts.note_sealing(draft, operation_id, seen)


def finish_seal(kills: Kills, version: int) -> FileRef:
    draft = kills.get_draft()
    assert draft.record.sealing is not None
    ref = make_ref(version, draft.record.sealing.stamp.size, own=True)
    kills.store.drafts.note_sealed(draft, ref, UploadRecord(ref, "through", 1, "0" * 32), unwanted=False)
    return ref


def seal(kills: Kills, version: int, operation_id: str = "op") -> FileRef:
    begin_seal(kills, operation_id)
    return finish_seal(kills, version)


def test_killed_before_a_cache_file_is_a_draft_it_is_the_cache_file(kills: Kills) -> None:
    ref = put_cached(kills)
    kills.kill_at("begin: renamed", lambda: begin_cached(kills))
    assert not kills.store.drafts.list_drafts()
    assert not kills.list_files("drafts")
    cached = kills.store.lookup(ref.file_id)
    assert cached is not None
    assert cached.read(0, len(DATA)) == DATA
    kills.check_space()


@pytest.mark.parametrize("truncate", [False, True])
def test_killed_once_a_cache_file_is_a_draft_it_is_one(kills: Kills, truncate: bool) -> None:
    ref = put_cached(kills)
    kills.kill_at("begin: committed", lambda: begin_cached(kills, truncate=truncate))
    assert kills.store.lookup(ref.file_id) is None
    # Nobody was told of it yet: cut or not, a truncated one is to be sealed in any case.
    assert kills.read_draft() == DATA
    draft = kills.get_draft()
    assert (draft.record.stamp is None) == truncate
    assert kills.store.drafts.end(draft) is (Ending.CHANGED if truncate else Ending.DONE)
    kills.check_space()


def test_a_power_loss_that_undoes_the_rename_of_a_begin_is_made_good(kills: Kills) -> None:
    ref = put_cached(kills)
    cached = kills.store.lookup(ref.file_id)
    assert cached is not None
    with cached.open_fd() as fd:
        there = Path(f"/proc/self/fd/{fd}").readlink()
    draft = begin_cached(kills)
    (kills.root / "cache" / draft.path).rename(there)
    kills.restart()
    assert kills.read_draft() == DATA
    assert kills.list_files("files") == []


def test_killed_while_an_empty_draft_is_made_it_is_one_or_nothing_is_left(kills: Kills, monkeypatch: pytest.MonkeyPatch) -> None:
    kills.kill_at("begin: created", lambda: kills.store.drafts.begin(make_ref(1, 0), None, truncate=True))
    assert kills.read_draft() == b""
    kills.store.drafts.delete(kills.get_draft())
    # Where files can say nothing themselves, it has to be in the index before anybody is told of it.
    monkeypatch.setattr(files, "note_record", lambda *_: False)
    kills.kill_at("begin: created", lambda: kills.store.drafts.begin(make_ref(1, 0), None, truncate=True))
    assert not kills.store.drafts.list_drafts()
    assert not kills.list_files("drafts")
    kills.kill_at("begin: committed", lambda: kills.store.drafts.begin(make_ref(1, 0), None, truncate=True))
    assert kills.read_draft() == b""


def test_a_draft_that_was_not_committed_yet_says_itself_what_it_is(kills: Kills, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SOON_S", 3600.0)
    kills.restart()
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    kills.restart()
    assert kills.read_draft() == DATA
    assert kills.get_draft().record.ref == make_ref(1, 0)
    assert kills.store.drafts.end(kills.get_draft()) is Ending.CHANGED
    # And still after another start, by the index.
    kills.restart()
    assert kills.read_draft() == DATA
    kills.check_space()
    kills.kill_at("delete: committed", lambda: kills.store.drafts.delete(kills.get_draft()))
    assert not kills.store.drafts.list_drafts(), "what was deleted is not found again"
    assert not kills.list_files("drafts")


def test_what_was_sealed_and_not_committed_yet_is_sealed_again_under_its_operation_id(
    kills: Kills, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "SOON_S", 3600.0)
    kills.restart()
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    ref = seal(kills, 2, "op-9")
    kills.restart()
    draft = kills.get_draft()
    assert draft.record.sealing is not None
    assert draft.record.sealing.operation_id == "op-9"
    kills.store.drafts.note_sealed(draft, ref, UploadRecord(ref, "through", 1, "0" * 32), unwanted=False)
    assert kills.store.drafts.end(draft) is Ending.DONE
    # (With what becomes of the file, all that came before it is committed.)
    kills.restart()
    cached = kills.store.lookup(ref.file_id)
    assert cached is not None
    assert cached.unpersisted
    assert cached.read(0, len(DATA)) == DATA
    assert [upload.ref for upload in kills.store.drafts.list_uploads()] == [ref]
    kills.check_space()


def test_a_sync_makes_all_that_waits_durable(kills: Kills, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SOON_S", 3600.0)
    monkeypatch.setattr(files, "lookup_record", lambda *_: None)
    kills.restart()
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    kills.store.drafts.sync(kills.get_draft())
    kills.restart()
    assert kills.read_draft() == DATA


def test_what_waits_is_committed_by_itself(kills: Kills, monkeypatch: pytest.MonkeyPatch) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    own = kills.store._dirs[0].get_index()
    wait_until("the commit", lambda: not own._tickets and not own._committing, timeout_s=60)
    monkeypatch.setattr(files, "lookup_record", lambda *_: None)
    kills.restart()
    assert kills.read_draft() == b""


def test_what_was_written_to_a_draft_outlives_a_kill(kills: Kills) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    kills.restart()
    assert kills.read_draft() == DATA
    assert kills.store.drafts.end(kills.get_draft()) is Ending.CHANGED
    kills.check_space()


def test_a_new_draft_whose_file_a_power_loss_took_is_empty_again(kills: Kills) -> None:
    draft = kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    kills.store.drafts.sync(draft)
    (kills.root / "cache" / draft.path).unlink()
    kills.restart()
    assert kills.read_draft() == b""


def test_a_seal_that_was_cut_short_goes_on_under_its_operation_id(kills: Kills) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    kills.kill_at("seal: begun", lambda: seal(kills, 2, "op-9"))
    draft = kills.get_draft()
    assert draft.record.sealing is not None
    assert draft.record.sealing.operation_id == "op-9"
    assert draft.record.sealing.stamp == kills.store.drafts.contents.read_stamp(draft)
    assert kills.store.drafts.end(draft) is Ending.CHANGED
    assert not kills.store.drafts.list_uploads()


def test_what_was_sealed_is_there_with_its_upload(kills: Kills) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    seal(kills, 2)
    kills.store.drafts.sync(kills.get_draft())
    kills.restart()
    ref = make_ref(2, len(DATA), own=True)
    draft = kills.get_draft()
    assert draft.record.ref == ref
    assert [upload.ref for upload in kills.store.drafts.list_uploads()] == [ref]
    assert kills.store.drafts.contents.read(draft, ref, 5, 2 * PAGE_BYTES) == DATA[5 : 5 + 2 * PAGE_BYTES]


@pytest.mark.parametrize("name", ["end: renamed", "end: committed"])
def test_killed_while_a_draft_becomes_a_cache_file_it_is_one_or_the_other(kills: Kills, name: str) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    ref = seal(kills, 2)
    kills.kill_at(name, lambda: kills.store.drafts.end(kills.get_draft()))
    if name == "end: renamed":
        assert kills.read_draft() == DATA
        kills.check_space()
        # Renamed to and fro, and still what was sealed; or is sealed once more as the same.
        draft = kills.get_draft()
        if draft.record.sealing is not None:
            assert draft.record.sealing.stamp == kills.store.drafts.contents.read_stamp(draft)
            kills.store.drafts.note_sealed(draft, ref, UploadRecord(ref, "through", 1, "0" * 32), unwanted=False)
        assert kills.store.drafts.end(kills.get_draft()) is Ending.DONE
    assert not kills.store.drafts.list_drafts()
    cached = kills.store.lookup(ref.file_id)
    assert cached is not None
    assert cached.unpersisted
    assert cached.read(0, len(DATA)) == DATA
    kills.check_space()


@pytest.mark.parametrize("name", ["end: renamed", "end: committed"])
def test_killed_while_several_drafts_become_cache_files_together_each_is_one_or_the_other(kills: Kills, name: str) -> None:
    drafts, refs = kills.store.drafts, []
    for inode in (7, 8, 9):
        ref = replace(make_ref(1, 0), inode=InodeId(inode), key=f"key-{inode}")
        draft = drafts.begin(ref, None, truncate=True)
        fd = open_draft(kills.store.directory_fds[0], draft.path)
        os.pwrite(fd, DATA, 0)
        os.close(fd)
        seen = drafts.contents.observe(draft)
        assert seen is not None
        drafts.note_sealing(draft, "op", seen)
        refs.append(replace(make_ref(2, len(DATA), own=True), inode=InodeId(inode), key=f"key-{inode}"))
        drafts.note_sealed(draft, refs[-1], UploadRecord(refs[-1], "through", 1, "0" * 32), unwanted=False)
    drafts.sync(kills.get_draft())
    kills.kill_at(name, lambda: drafts.end_all(drafts.list_drafts()))
    for ref in refs:
        if name == "end: renamed":
            assert kills.read_draft(ref.inode) == DATA
            assert kills.get_draft(ref.inode).record.ref == ref
    left = kills.store.drafts.list_drafts()
    assert len(left) == (3 if name == "end: renamed" else 0)
    # The first of them was renamed to and fro: it may have to be sealed once more.
    for draft in left:
        if kills.store.drafts.end(draft) is Ending.CHANGED:
            seen = kills.store.drafts.contents.observe(draft)
            assert seen is not None
            kills.store.drafts.note_sealing(draft, "op", seen)
            kills.store.drafts.note_sealed(draft, draft.record.ref, None, unwanted=False)
            assert kills.store.drafts.end(draft) is Ending.DONE
    for ref in refs:
        cached = kills.store.lookup(ref.file_id)
        assert cached is not None
        assert cached.unpersisted
        assert cached.read(0, len(DATA)) == DATA
    kills.check_space()


def test_several_drafts_become_cache_files_in_one_transaction_but_for_those_that_may_not(kills: Kills) -> None:
    drafts = kills.store.drafts
    refs = [replace(make_ref(1, 0), inode=InodeId(inode), key=f"key-{inode}") for inode in range(1, 6)]
    made = [drafts.begin(ref, None, truncate=True) for ref in refs]
    for draft in made:
        fd = open_draft(kills.store.directory_fds[0], draft.path)
        os.pwrite(fd, DATA, 0)
        os.close(fd)
        seen = drafts.contents.observe(draft)
        assert seen is not None
        drafts.note_sealing(draft, "op", seen)
        drafts.note_sealed(
            draft,
            replace(draft.record.ref, version=VersionId(2), fingerprint=Fingerprint("own-2", len(DATA))),
            None,
            unwanted=False,
        )
    written = open_draft(kills.store.directory_fds[0], made[1].path)
    changed = open_draft(kills.store.directory_fds[0], made[3].path)
    os.pwrite(changed, b"x", 0)
    os.close(changed)
    commits: list[str] = []
    drafts.checkpoint = commits.append
    assert drafts.end_all(made) == [made[0], made[2], made[4]]
    assert commits.count("end: committed") == 1
    os.close(written)
    assert drafts.end(made[1]) is Ending.DONE
    assert drafts.end(made[3]) is Ending.CHANGED
    kills.check_space()


def test_killed_before_a_cache_file_is_told_that_its_upload_has_ended_a_start_tells_it(kills: Kills) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    ref = seal(kills, 2)
    drafts = kills.store.drafts

    def end_upload(here: str) -> None:
        if here == "end: renamed":
            drafts.drop_upload(ref.file_id)
        elif here == "end: committed":
            raise Killed

    drafts.checkpoint = end_upload
    with pytest.raises(Killed):
        drafts.end(kills.get_draft())
    stop_dead(kills.store)
    checked = CheckedDirectory(kills.root / "cache")
    assert [(found.grade, found.rule) for found in checked.check(verify=True)] == [(Grade.LEFTOVER, "unpersisted")]
    checked.close()
    kills.store = kills._open()
    Evictor(kills.store, SystemClock())._learn()
    cached = kills.store.lookup(ref.file_id)
    assert cached is not None
    assert not cached.unpersisted
    assert cached.read(0, len(DATA)) == DATA


def test_a_draft_is_found_at_every_moment_of_becoming_a_cache_file(kills: Kills) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    seal(kills, 2)
    drafts, draft, seen = kills.store.drafts, kills.get_draft(), []

    def look(_: str) -> None:
        with os.fdopen(drafts.contents.open_draft(draft), "rb") as file:
            seen.append(file.read())

    drafts.checkpoint = look
    assert drafts.end(draft) is Ending.DONE
    assert seen == [DATA, DATA]


def test_killed_while_a_draft_is_deleted_it_is_gone(kills: Kills) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    kills.kill_at("delete: committed", lambda: kills.store.drafts.delete(kills.get_draft()))
    assert not kills.store.drafts.list_drafts()
    assert not kills.list_files("drafts")


def test_after_a_crash_of_the_machine_what_only_this_cache_has_is_verified_and_kept(kills: Kills) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    ref = seal(kills, 2)
    kills.store.drafts.end(kills.get_draft())
    kills.boot = "boot-2"
    kills.restart()
    cached = kills.store.lookup(ref.file_id)
    assert cached is not None
    assert not cached.is_complete
    assert cached.verify() == []
    assert cached.is_complete
    assert cached.unpersisted


def test_mapped_pages_are_seen_however_long_the_mapping_lives(kills: Kills) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    draft = kills.get_draft()
    fd = open_draft(kills.store.directory_fds[0], draft.path)
    with mmap.mmap(fd, len(DATA)) as mapped:
        os.close(fd)
        mapped[0:1] = b"x"
        seal(kills, 2)
        stamp = kills.store.drafts.contents.read_stamp(draft)
        # The page was dirty before the seal, and is written to again without a system call.
        mapped[1:2] = b"y"
        assert kills.store.drafts.contents.read_stamp(draft) != stamp
        with pytest.raises(errors.Stale):
            kills.store.drafts.contents.read(draft, draft.record.ref, 0, 10)
        assert kills.store.drafts.end(draft) is Ending.IN_USE
    assert kills.store.drafts.end(draft) is Ending.CHANGED


def fail_with(number: int) -> Callable[..., None]:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("copied", [False, True])
def test_an_io_error_of_one_file_takes_no_directory_out(kills: Kills, monkeypatch: pytest.MonkeyPatch, *, copied: bool) -> None:
    """As of one that is written with O_DIRECT and through the page cache at once."""
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    draft = kills.get_draft()
    contents = kills.store.drafts.contents
    observe = contents.observe_copy if copied else contents.observe
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail_with(errno.EIO))
        with pytest.raises(errors.DiskError, match="written to the file"):
            observe(draft)
    assert [usage.state for usage in kills.store.get_usage()] == ["ok"]
    assert observe(draft) is not None
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail_with(errno.EIO))
        patched.setattr(os, "fsync", fail_with(errno.EIO))
        with pytest.raises(errors.DiskError, match="disk failed"):
            observe(draft)
    assert [usage.state for usage in kills.store.get_usage()] == ["failed"]


def test_checksums_of_the_next_version_are_not_taken_for_those_of_the_one_before(
    kills: Kills, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = kills.store.drafts
    monkeypatch.setattr("alluxio_like.cache.draft_contents._NOTED_S", 0.02)
    draft = drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    before = seal(kills, 2)
    other = make_bytes(len(DATA), b"b")
    write_draft(kills, other)
    commit, tries = drafts._commit, []

    def look(*given: Any) -> None:
        commit(*given)
        with pytest.raises(errors.Stale):
            drafts.contents.read(draft, before, 0, len(DATA))
        tries.append(given)

    monkeypatch.setattr(drafts, "_commit", look)
    after = seal(kills, 3)
    assert len(tries) == 1
    assert drafts.contents.read(draft, after, 0, len(DATA)) == other


def test_what_is_sealed_amid_a_read_is_not_taken_for_the_version_before(kills: Kills, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = kills.store.drafts
    draft = drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    before = seal(kills, 2)
    write_draft(kills, make_bytes(len(DATA), b"b"))
    begin_seal(kills)
    open_it = drafts.contents.open_draft

    def note_first(one: Draft) -> int:
        if one.record.sealing is not None:
            finish_seal(kills, 3)
        return open_it(one)

    monkeypatch.setattr(drafts.contents, "open_draft", note_first)
    with pytest.raises(errors.Stale):
        drafts.contents.read(draft, before, 0, len(DATA))


def test_a_version_of_another_machine_is_not_taken_for_the_one_that_is_being_sealed(
    kills: Kills, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = kills.store.drafts
    monkeypatch.setattr("alluxio_like.cache.draft_contents._NOTED_S", 0.02)
    draft = drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    begin_seal(kills)
    with pytest.raises(errors.Stale):
        drafts.contents.read(draft, make_ref(2, len(DATA)), 0, len(DATA))


def seal_copy(kills: Kills, version: int) -> FileRef:
    """As when others go on writing."""
    draft = kills.get_draft()
    kills.store.drafts.note_sealing(draft, "op", kills.store.drafts.contents.observe_copy(draft))
    return finish_seal(kills, version)


def test_a_copy_is_sealed_of_what_goes_on_changing(kills: Kills) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    ref = seal_copy(kills, 2)
    draft = kills.get_draft()
    assert kills.store.drafts.end(draft) is Ending.CHANGED
    cached = kills.store.lookup(ref.file_id)
    assert cached is not None
    assert cached.unpersisted
    assert cached.read(0, len(DATA)) == DATA
    kills.check_space()
    seal(kills, 3)
    assert kills.store.drafts.end(draft) is Ending.DONE
    kills.check_space()


@pytest.mark.parametrize("name", ["seal: begun", "end: renamed", "end: committed"])
def test_killed_while_a_copy_is_sealed_it_is_sealed_or_still_to_be(kills: Kills, name: str) -> None:
    kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
    write_draft(kills, DATA)
    kills.kill_at(name, lambda: seal_copy(kills, 2))
    ref = make_ref(2, len(DATA), own=True)
    draft = kills.get_draft()
    if name != "end: committed":
        assert draft.record.sealing is not None
        kills.store.drafts.note_sealed(draft, ref, UploadRecord(ref, "through", 1, "0" * 32), unwanted=False)
    assert kills.read_draft() == DATA
    cached = kills.store.lookup(ref.file_id)
    assert cached is not None
    assert cached.read(0, len(DATA)) == DATA
    assert [one.ref for one in kills.store.drafts.list_uploads()] == [ref]
    kills.check_space()


def test_where_the_clock_for_files_ticks_slowly_a_seal_waits_for_the_next_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "has_fine_clock", lambda _: False)
    kills = Kills(tmp_path)
    try:
        kills.store.drafts.begin(make_ref(1, 0), None, truncate=True)
        write_draft(kills, DATA)
        draft = kills.get_draft()
        seen = kills.store.drafts.contents.observe(draft)
        assert seen is not None
        # Whatever changes from here on has another time.
        assert time.time_ns() - seen.stamp.ctime_ns >= 10_000_000
    finally:
        kills.store.close()


def test_a_cache_of_the_format_before_is_read_and_raised(kills: Kills) -> None:
    ref = put_cached(kills)
    kills.store.close()
    format_file = kills.root / "cache" / "format"
    format_file.write_text(format_file.read_text().replace('"format": 2', '"format": 1'))
    (kills.root / "cache" / "drafts").rmdir()
    kills.store = kills._open()
    assert '"format": 2' in format_file.read_text()
    cached = kills.store.lookup(FileId(INODE, VersionId(1)))
    assert cached is not None
    assert cached.read(0, ref.size) == DATA
    assert not cached.unpersisted


def test_checksums_of_a_sparse_file_are_those_of_its_bytes_and_cost_nothing_for_holes(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "w+b") as file:
        size = 5 * PAGE_BYTES + 77
        os.ftruncate(file.fileno(), size)
        os.pwrite(file.fileno(), b"x" * 10, 2 * PAGE_BYTES + 5)
        whole = os.pread(file.fileno(), size, 0)
        assert list(files.compute_sums(file.fileno(), size) or ()) == compute_checksums(whole)
        assert files.compute_sums(file.fileno(), size + 1) is None
        # Read byte by byte it would take minutes.
        os.ftruncate(file.fileno(), 1 << 40)
        assert len(files.compute_sums(file.fileno(), 1 << 40) or ()) == 1 << 20
