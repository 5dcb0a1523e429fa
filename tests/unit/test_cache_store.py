"""The worker's cache store: what is written is there, what is removed is gone, and restarts are warm."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from alluxio_like import errors
from alluxio_like.cache import syscalls
from alluxio_like.cache.checksum import compute_checksum
from alluxio_like.cache.format import FileRecord, make_file_path
from alluxio_like.cache.index import BlockPut, FilePut, Index
from alluxio_like.cache.store import CachedFile, CacheDirSpec, CacheStore, Role
from alluxio_like.clock import SystemClock
from alluxio_like.types import BLOCK_BYTES, PAGE_BYTES, FileId, FileRef, Fingerprint, InodeId, MountId, PageRange, VersionId
from tests.dead_store import stop_dead

BOOT = "boot-1"


def make_ref(inode: int, size: int, token: str = "etag", version: int = 1) -> FileRef:
    return FileRef(InodeId(inode), VersionId(version), MountId(1), f"key{inode}", Fingerprint(token, size))


def make_data(ref: FileRef, first: int = 0, stop: int | None = None) -> bytes:
    """Bytes of pages of a content: each page differs from every other."""
    stop = -(-ref.size // PAGE_BYTES) if stop is None else stop
    pieces = []
    for page in range(first, stop):
        length = min(PAGE_BYTES, ref.size - page * PAGE_BYTES)
        seed = f"{ref.inode}/{ref.version}/{ref.fingerprint.token}/{page}|".encode("utf-8", "surrogateescape")
        pieces.append((seed * (length // len(seed) + 1))[:length])
    return b"".join(pieces)


class Stores:
    """Opens stores on the same directories again and again; closes what is left open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.open_stores: list[CacheStore] = []

    def open(self, count: int = 1, *, quota: int | None = 1 << 30, boot: str = BOOT, cluster: str | None = "c1") -> CacheStore:
        specs = [
            CacheDirSpec(self.root / f"d{number}", quota, allow_root_disk=True, keep_free_fraction=0.0) for number in range(count)
        ]
        store = CacheStore.open(specs, cluster_id=cluster, clock=SystemClock(), boot_id=boot)
        self.open_stores.append(store)
        return store

    def close_all(self) -> None:
        for store in self.open_stores:
            store.close()


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    before = count_fds()
    opened = Stores(tmp_path)
    yield opened
    opened.close_all()
    opened.open_stores.clear()
    wait_until(lambda: count_fds() <= before)


def count_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        pause.wait(0.01)


def fill(store: CacheStore, ref: FileRef, role: Role = Role.HOME) -> CachedFile:
    file = store.create(ref, role)
    file.write_pages(0, make_data(ref))
    return file


def get_path(store: CacheStore, file: CachedFile) -> Path:
    return store.get_usage()[file.directory].path / make_file_path(file.file_id, file.generation)


def test_written_pages_are_read_back_and_others_are_missing(stores: Stores) -> None:
    store = stores.open()
    ref = make_ref(7, 3 * PAGE_BYTES + 100)
    file = store.create(ref, Role.HOME)
    assert store.create(ref, Role.HOME) is file
    file.write_pages(1, make_data(ref, 1, 2))
    assert file.missing_pages(PageRange(0, 99)) == [PageRange(0, 1), PageRange(2, 4)]
    assert file.read(PAGE_BYTES + 5, 10) == make_data(ref)[PAGE_BYTES + 5 : PAGE_BYTES + 15]
    with pytest.raises(errors.NoData):
        file.read(PAGE_BYTES, PAGE_BYTES + 1)
    file.write_pages(0, make_data(ref))
    assert file.is_complete
    assert file.read(0, 1 << 40) == make_data(ref)
    assert file.get_present(0) == 0b1111
    (run,) = file.get_present_runs(PageRange(0, 4))
    assert run.checksums[3] == compute_checksum(make_data(ref, 3, 4))
    assert file.check_on_disk()


def test_misaligned_writes_are_refused(stores: Stores) -> None:
    file = stores.open().create(make_ref(1, 2 * PAGE_BYTES), Role.HOME)
    for first, data in ((0, b"x"), (1, b"x" * (PAGE_BYTES + 1)), (-1, b"x" * PAGE_BYTES)):
        with pytest.raises(errors.InvalidArgument):
            file.write_pages(first, data)


def test_ranges_over_block_borders(stores: Stores) -> None:
    store = stores.open()
    ref = make_ref(3, 3 * BLOCK_BYTES)
    file = store.create(ref, Role.HOME)
    file.write_pages(63, make_data(ref, 63, 65))
    file.write_pages(128, make_data(ref, 128, 129))
    assert file.missing_pages(PageRange(60, 130)) == [PageRange(60, 63), PageRange(65, 128), PageRange(129, 130)]
    assert [run.pages for run in file.get_present_runs(PageRange(0, 192))] == [PageRange(63, 65), PageRange(128, 129)]
    assert file.read(63 * PAGE_BYTES, 2 * PAGE_BYTES) == make_data(ref, 63, 65)


def test_restart_is_warm_and_keeps_everything(stores: Stores) -> None:
    store = stores.open()
    worker_id = store.worker_id
    ref = make_ref(9, PAGE_BYTES + 1, token="naïve-\udcff")
    fill(store, ref, Role.GUEST)
    store.set_pinned([ref.file_id], True)
    used = store.get_usage()[0].used_bytes
    store.close()
    again = stores.open()
    assert again.worker_id == worker_id
    file = again.lookup(ref.file_id)
    assert file is not None
    assert (file.is_complete, file.pinned, file.role, file.fingerprint) == (True, True, Role.GUEST, ref.fingerprint)
    assert file.read(0, ref.size) == make_data(ref)
    usage = again.get_usage()[0]
    assert usage.used_bytes == used == usage.guest_bytes == usage.pinned_bytes == PAGE_BYTES + 4096
    assert [info.file_id for info in again.iter_files()] == [ref.file_id]
    assert [(change.block, change.present_bits, change.present_bytes) for change in again.iter_blocks()] == [
        (0, 3, PAGE_BYTES + 1)
    ]


def test_other_fingerprint_starts_over(stores: Stores) -> None:
    store = stores.open()
    old = fill(store, make_ref(5, 100, "a"))
    new = store.create(make_ref(5, 100, "b"), Role.HOME)
    assert old.removed
    assert new.generation != old.generation
    assert new.missing_pages(PageRange(0, 1)) == [PageRange(0, 1)]
    with pytest.raises(errors.NotFound):
        old.read(0, 1)
    assert not get_path(store, old).exists()


def test_remove_frees_space_and_reports_it(stores: Stores) -> None:
    store = stores.open()
    refs = [make_ref(number, 5000) for number in range(1, 20)]
    for ref in refs:
        fill(store, ref)
    store.flush()
    assert {change.present_bits for change in store.drain_changes().changes} == {1}
    removed = store.remove([ref.file_id for ref in refs])
    assert (removed.files, removed.bytes) == (19, 19 * 5000)
    assert [change.present_bits for change in store.drain_changes().changes] == [0] * 19
    usage = store.get_usage()[0]
    assert (usage.used_bytes, usage.file_count, usage.home_bytes) == (0, 0, 0)
    assert not list((usage.path / "files").glob("*/*"))
    assert store.lookup(refs[0].file_id) is None


def test_removal_spares_what_is_open_or_pinned(stores: Stores) -> None:
    store = stores.open()
    ref, pinned = make_ref(1, 5000), make_ref(2, 5000)
    path = get_path(store, fill(store, ref))
    fill(store, pinned)
    store.set_pinned([pinned.file_id], True)
    with path.open("rb") as reader:
        removed = store.remove([ref.file_id, pinned.file_id])
        assert (removed.files, removed.in_use, removed.pinned) == (0, (ref.file_id,), (pinned.file_id,))
        removed = store.remove([ref.file_id], force=True)
        assert removed.files == 1
        assert reader.read() == make_data(ref)
        usage = store.get_usage()[0]
        assert usage.held_bytes >= 5000
        assert usage.used_bytes == 8192
        assert store.reap_held() == 0
    assert store.reap_held() >= 5000
    assert store.get_usage()[0].held_bytes == 0
    assert store.remove([pinned.file_id], include_pinned=True).files == 1


def test_file_in_use_by_the_worker_itself_stays(stores: Stores) -> None:
    store = stores.open()
    file = fill(store, make_ref(1, 5000))
    with file.open_fd() as fd:
        assert store.remove([file.file_id]).in_use == (file.file_id,)
        assert os.pread(fd, 10, 0) == make_data(make_ref(1, 5000))[:10]
    assert store.remove([file.file_id]).files == 1


def test_punch_drops_one_block_unless_open(stores: Stores) -> None:
    store = stores.open()
    ref = make_ref(1, 2 * BLOCK_BYTES)
    file = fill(store, ref)
    path = get_path(store, file)
    with path.open("rb"):
        assert store.punch_block(ref.file_id, 0) == 0
    assert file.is_complete
    assert store.punch_block(ref.file_id, 0) == BLOCK_BYTES
    assert store.punch_block(ref.file_id, 0) == 0
    assert file.get_present(0) == 0
    assert file.read(BLOCK_BYTES, 100) == make_data(ref, 64, 65)[:100]
    assert store.get_usage()[0].used_bytes == BLOCK_BYTES
    assert path.stat().st_blocks * 512 < BLOCK_BYTES + (1 << 20)
    assert [(change.block, change.present_bytes) for change in store.iter_blocks()] == [(1, BLOCK_BYTES)]
    file.write_pages(0, make_data(ref, 0, 1))
    assert file.read(0, PAGE_BYTES) == make_data(ref, 0, 1)


def test_file_freed_while_a_block_is_punched_keeps_the_hole_out_of_others(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor must not be closed between the commit and the punch: its number could be another file's by then."""
    store = stores.open()
    ref = make_ref(1, 2 * BLOCK_BYTES)
    fill(store, ref)
    plain = syscalls.punch_hole
    punched: list[tuple[str, bool]] = []

    def free_first(fd: int, offset: int, length: int) -> None:
        assert store.remove([ref.file_id], force=True).files == 1
        other = os.open(store.get_usage()[0].path / "format", os.O_RDONLY)
        punched.append((str(Path(f"/proc/self/fd/{fd}").readlink()), other == fd))
        plain(fd, offset, length)
        os.close(other)

    monkeypatch.setattr(syscalls, "punch_hole", free_first)
    assert store.punch_block(ref.file_id, 0) == BLOCK_BYTES
    monkeypatch.undo()
    ((path, reused),) = punched
    assert not reused
    assert path.startswith(str(store.get_usage()[0].path / "held"))
    assert store.get_usage()[0].state == "ok"
    assert store.lookup(ref.file_id) is None
    assert store.get_usage()[0].used_bytes == 0
    # The file system's own blocks (a tree of extents, where the disk is fragmented) are given back with the file's.
    assert BLOCK_BYTES <= store.reap_held() < BLOCK_BYTES + (1 << 20)
    assert store.get_usage()[0].held_bytes == 0
    assert fill(store, ref).read(0, 100) == make_data(ref, 0, 1)[:100]


def test_other_blocks_can_be_read_while_one_is_punched(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores.open()
    ref = make_ref(1, BLOCK_BYTES + 5)
    file = fill(store, ref)
    plain = syscalls.punch_hole
    read: list[bytes] = []

    def read_first(fd: int, offset: int, length: int) -> None:
        read.append(file.read(BLOCK_BYTES, 5))
        with pytest.raises(errors.NoData):
            file.read(0, 1)
        with pytest.raises(errors.NoSpace):
            file.write_pages(0, make_data(ref, 0, 1))
        plain(fd, offset, length)

    monkeypatch.setattr(syscalls, "punch_hole", read_first)
    assert store.punch_block(ref.file_id, 0) == BLOCK_BYTES
    assert read == [make_data(ref, 64, 65)]
    file.write_pages(0, make_data(ref, 0, 1))
    assert file.read(0, PAGE_BYTES) == make_data(ref, 0, 1)


def test_quota_is_kept(stores: Stores) -> None:
    store = stores.open(quota=3 * PAGE_BYTES)
    ref = make_ref(1, 4 * PAGE_BYTES)
    with pytest.raises(errors.NoSpace):
        store.create(ref, Role.HOME)
    small = make_ref(2, 2 * PAGE_BYTES)
    fill(store, small)
    other = store.create(make_ref(3, PAGE_BYTES), Role.HOME)
    third = store.create(make_ref(4, PAGE_BYTES), Role.HOME)
    other.write_pages(0, make_data(make_ref(3, PAGE_BYTES)))
    with pytest.raises(errors.NoSpace):
        third.write_pages(0, make_data(make_ref(4, PAGE_BYTES)))
    assert third.missing_pages(PageRange(0, 1))
    store.remove([small.file_id])
    third.write_pages(0, make_data(make_ref(4, PAGE_BYTES)))


def test_flipped_bit_is_found_and_dropped(stores: Stores) -> None:
    store = stores.open()
    ref = make_ref(1, 2 * PAGE_BYTES)
    file = fill(store, ref)
    path = get_path(store, file)
    with path.open("r+b") as raw:
        raw.seek(PAGE_BYTES + 1000)
        raw.write(b"\xff")
    assert file.read(0, PAGE_BYTES) == make_data(ref, 0, 1)
    with pytest.raises(errors.Corrupt):
        file.read(PAGE_BYTES, 10)
    assert file.missing_pages(PageRange(0, 2)) == [PageRange(1, 2)]
    assert store.get_usage()[0].used_bytes == PAGE_BYTES
    file.write_pages(1, make_data(ref, 1, 2))
    assert file.read(0, ref.size) == make_data(ref)
    with path.open("r+b") as raw:
        raw.truncate(PAGE_BYTES)
    assert not file.check_on_disk()
    assert file.verify() == [1]


def test_bad_page_is_given_to_none_of_those_who_read_it_at_once(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two read the bad bytes; the first to look at the checksum drops the page, and the second must not take that for good."""
    store = stores.open()
    ref = make_ref(3, 2 * PAGE_BYTES)
    file = fill(store, ref)
    with get_path(store, file).open("r+b") as raw:
        raw.seek(PAGE_BYTES + 17)
        raw.write(b"\xff")
    plain = CachedFile._read_exactly
    others: list[BaseException] = []

    def read_and_be_overtaken(self: CachedFile, fd: int, offset: int, length: int) -> bytes:
        data = plain(self, fd, offset, length)
        monkeypatch.setattr(CachedFile, "_read_exactly", plain)
        with pytest.raises(errors.Corrupt) as caught:
            self.read(offset, length)
        others.append(caught.value)
        return data

    monkeypatch.setattr(CachedFile, "_read_exactly", read_and_be_overtaken)
    with pytest.raises(errors.Corrupt):
        file.read(PAGE_BYTES, PAGE_BYTES)
    assert len(others) == 1
    assert file.missing_pages(PageRange(0, 2)) == [PageRange(1, 2)]
    assert store.get_usage()[0].used_bytes == PAGE_BYTES
    file.write_pages(1, make_data(ref, 1, 2))
    assert file.read(0, ref.size) == make_data(ref)


def test_lost_file_is_forgotten(stores: Stores) -> None:
    store = stores.open()
    ref = make_ref(1, 5000)
    get_path(store, fill(store, ref)).unlink()
    store.flush()
    file = store.lookup(ref.file_id)
    assert file is not None
    with pytest.raises(errors.NotFound):
        file.read(0, 1)
    again = store.create(ref, Role.HOME)
    assert again.missing_pages(PageRange(0, 1))
    wait_until(lambda: store.get_usage()[0].used_bytes == 0)


def test_machine_crash_makes_pages_suspect(stores: Stores) -> None:
    store = stores.open()
    ref = make_ref(1, 3 * PAGE_BYTES)
    path = get_path(store, fill(store, ref))
    other = make_ref(2, 100)
    fill(store, other)
    store.flush()
    stop_dead(store)
    with path.open("r+b") as raw:
        raw.seek(PAGE_BYTES)
        raw.write(bytes(PAGE_BYTES))
    again = stores.open(boot="boot-2")
    file = again.lookup(ref.file_id)
    assert file is not None
    assert not file.is_complete
    assert file.missing_pages(PageRange(0, 3)) == [PageRange(0, 3)]
    assert file.has_suspects(PageRange(0, 3))
    assert list(again.iter_blocks()) == []
    file.write_pages(2, make_data(ref, 2, 3))
    assert again.get_usage()[0].used_bytes == 3 * PAGE_BYTES + 4096
    file.verify_suspects(PageRange(0, 1))
    assert file.missing_pages(PageRange(0, 3)) == [PageRange(1, 2)]
    assert not file.has_suspects(PageRange(0, 3))
    file.write_pages(1, make_data(ref, 1, 2))
    assert file.is_complete
    again.flush()
    assert [(change.file_id, change.present_bits) for change in again.iter_blocks()] == [(ref.file_id, 7)]
    again.close()
    clean = stores.open(boot="boot-3")
    good = clean.lookup(ref.file_id)
    assert good is not None
    assert good.is_complete
    left = clean.lookup(other.file_id)
    assert left is not None
    assert left.has_suspects(PageRange(0, 1))


def test_kill_loses_only_the_latest_and_sweep_cleans_up(stores: Stores) -> None:
    store = stores.open()
    fill(store, make_ref(1, 5000))
    store.flush()
    with store._dirs[0].index.lock:  # type: ignore[union-attr] # keeps the commit thread away
        fill(store, make_ref(2, 5000))
        store._dirty[0].clear()
    stop_dead(store)
    again = stores.open()
    assert again.lookup(make_ref(1, 5000).file_id) is not None
    assert again.lookup(make_ref(2, 5000).file_id) is None
    fill(again, make_ref(3, 5000))
    assert again.sweep() == 1
    assert len(list((stores.root / "d0" / "files").glob("*/*"))) == 2


def test_no_descriptor_left_is_no_failure_of_the_disk(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores.open()
    ref = make_ref(1, 5000)
    file = fill(store, ref)
    file.close_idle()
    plain = os.open

    def open_no_file(path: str, *args: int, **more: int) -> int:
        if "files/" in str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return plain(path, *args, **more)

    monkeypatch.setattr(os, "open", open_no_file)
    assert store.remove([ref.file_id]).in_use == (ref.file_id,)
    monkeypatch.undo()
    assert store.get_usage()[0].state == "ok"
    assert file.read(0, 5000) == make_data(ref)
    assert store.remove([ref.file_id]).files == 1


def test_index_that_cannot_be_read_takes_its_directory_out(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever walks over all files (the evictor, a report to the master) goes on with the other directories."""
    store = stores.open(2)
    for number in range(1, 5):
        fill(store, make_ref(number, 5000))
    store.flush()
    counts = [usage.file_count for usage in store.get_usage()]
    assert all(counts)
    plain = store._dirs[0].get_index()

    def fail(*_: object) -> Iterator[object]:
        raise lmdb.PageNotFoundError("broken")
        yield

    monkeypatch.setattr(plain, "scan_files", fail)
    assert len(list(store.iter_files())) == counts[1]
    assert [usage.state for usage in store.get_usage()] == ["failed", "ok"]
    assert store.drain_changes().overflowed
    assert len(list(store.iter_blocks())) == counts[1]


def test_sweep_spares_new_files_whatever_the_clocks_say(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "now_ns", lambda self: time.time_ns() + 10**9)
    store = stores.open()
    ref = make_ref(1, 5000)
    with store._dirs[0].index.lock:  # type: ignore[union-attr] # keeps the commit thread away
        file = fill(store, ref)
        assert store.sweep() == 0
    assert get_path(store, file).exists()
    assert file.read(0, 5000) == make_data(ref)


def test_directory_is_locked_by_one_process(stores: Stores, tmp_path: Path) -> None:
    stores.open()
    code = (
        "import sys\nfrom pathlib import Path\nfrom alluxio_like.cache.layout import *\nfrom alluxio_like import errors, clock\n"
        "try:\n open_directory(CacheDirSpec(Path(sys.argv[1]), allow_root_disk=True), 0, clock.SystemClock())\n"
        "except errors.Conflict as error:\n print(error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "d0")], capture_output=True, text=True, timeout=60, check=True
    )
    assert str(os.getpid()) in out.stdout


def test_wrong_directories_are_refused(stores: Stores, tmp_path: Path) -> None:
    (tmp_path / "d0").mkdir()
    (tmp_path / "d0" / "letter.txt").write_text("mine")
    with pytest.raises(errors.ConfigError, match="not empty"):
        stores.open()
    (tmp_path / "d0" / "letter.txt").unlink()
    stores.open().close()
    with pytest.raises(errors.ConfigError, match="cluster c1"):
        stores.open(cluster="c2")
    (tmp_path / "d0" / "format").write_text('{"format": 99, "page_bytes": 1, "block_bytes": 1}')
    with pytest.raises(errors.FormatTooNew, match="99"):
        stores.open()
    spec = CacheDirSpec(tmp_path / "d1")
    if tmp_path.stat().st_dev == Path("/").stat().st_dev:
        with pytest.raises(errors.ConfigError, match="root file system"):
            CacheStore.open([spec], cluster_id=None, clock=SystemClock(), boot_id=BOOT)


def test_cluster_id_is_bound_once(stores: Stores) -> None:
    store = stores.open(2, cluster=None)
    assert store.cluster_id is None
    store.set_cluster_id("c7")
    with pytest.raises(errors.Conflict):
        store.set_cluster_id("c8")
    store.close()
    assert stores.open(2, cluster=None).cluster_id == "c7"


def test_directory_of_another_worker_is_refused(stores: Stores, tmp_path: Path) -> None:
    stores.open(1).close()
    other = Stores(tmp_path / "other")
    other.open(1).close()
    (tmp_path / "other" / "d0").rename(tmp_path / "d1")
    with pytest.raises(errors.ConfigError, match="belongs to worker"):
        stores.open(2)


def test_files_spread_over_directories_and_one_failure_costs_only_its_own(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores.open(2, quota=100 * PAGE_BYTES)
    refs = [make_ref(number, PAGE_BYTES) for number in range(1, 21)]
    files = [fill(store, ref) for ref in refs]
    assert {file.directory for file in files} == {0, 1}
    store.flush()
    store.drain_changes()
    victim = next(file for file in files if file.directory == 0)
    real = os.pread

    def fail(fd: int, length: int, offset: int) -> bytes:
        if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith(str(stores.root / "d0")):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(errors.DiskError):
        victim.read(0, 10)
    assert victim.removed
    assert store.drain_changes().overflowed
    assert [usage.state for usage in store.get_usage()] == ["failed", "ok"]
    assert store.lookup(victim.file_id) is None
    again = fill(store, refs[0])
    assert again.directory == 1
    assert again.read(0, 10) == make_data(refs[0])[:10]
    assert {change.file_id for change in store.iter_blocks()} <= {file.file_id for file in files if file.directory == 1}


def test_directories_that_were_removed_are_made_again(stores: Stores) -> None:
    store = stores.open()
    gone = fill(store, make_ref(1, PAGE_BYTES))
    shutil.rmtree(stores.root / "d0" / "files")
    fresh = fill(store, make_ref(2, PAGE_BYTES))
    assert fresh.read(0, 10) == make_data(make_ref(2, PAGE_BYTES))[:10]
    with pytest.raises(errors.NotFound):
        gone.read(0, 10)
    assert [usage.state for usage in store.get_usage()] == ["ok"]


def test_a_cache_directory_that_was_removed_is_out_of_use(stores: Stores) -> None:
    store = stores.open()
    fill(store, make_ref(1, PAGE_BYTES))
    shutil.rmtree(stores.root / "d0")
    # Tried as often as a file that is just being evicted, it would cost each reader of what is not there most of a second.
    with pytest.raises(errors.DiskError):
        fill(store, make_ref(2, PAGE_BYTES))
    assert [usage.state for usage in store.get_usage()] == ["failed"]


@pytest.mark.parametrize("name", ["index", "drafts", "held"])
def test_a_cache_directory_that_lacks_something_is_found_though_nothing_is_written(stores: Stores, name: str) -> None:
    store = stores.open(2)
    shutil.rmtree(stores.root / "d1" / name)
    wait_until(lambda: [usage.state for usage in store.get_usage()] == ["ok", "failed"])
    assert name in store.get_usage()[1].reason


def test_full_disk_is_no_space_and_costs_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores.open()
    ref = make_ref(1, PAGE_BYTES)
    file = store.create(ref, Role.HOME)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(errors.NoSpace):
            file.write_pages(0, make_data(ref))
    assert store.get_usage()[0].used_bytes == 0
    assert store.get_usage()[0].state == "ok"
    assert file.missing_pages(PageRange(0, 1))


def test_what_the_disk_does_not_leave_is_not_usable(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstatvfs

    def crowded(fd: int) -> os.statvfs_result:
        found = list(real(fd))
        found[4] = 3 * PAGE_BYTES // int(found[1])  # f_bavail, in units of f_frsize
        return os.statvfs_result(found)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstatvfs", crowded)
        store = stores.open()
        assert store.get_usage()[0].usable_bytes == 3 * PAGE_BYTES < store.get_usage()[0].quota_bytes
        ref = make_ref(1, PAGE_BYTES)
        store.create(ref, Role.HOME).write_pages(0, make_data(ref))
        # What is used counts; the disk is asked once a second, and says the same all the time here.
        assert 3 * PAGE_BYTES <= store.get_usage()[0].usable_bytes <= 4 * PAGE_BYTES


def test_threads_write_disjoint_and_equal_pages(stores: Stores) -> None:
    store = stores.open()
    ref = make_ref(1, 40 * PAGE_BYTES + 17)
    file = store.create(ref, Role.HOME)
    failures: list[BaseException] = []

    def write(start: int) -> None:
        try:
            for page in [*range(start, 41, 4), 0, 40]:
                file.write_pages(page, make_data(ref, page, page + 1))
        except BaseException as error:  # noqa: BLE001 (shown below)
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert file.is_complete
    assert store.get_usage()[0].used_bytes == 40 * PAGE_BYTES + 4096
    assert file.verify() == []


def test_use_is_written_down(stores: Stores) -> None:
    store = stores.open(2)
    ref = make_ref(1, 100)
    fill(store, ref)
    store.flush()
    store._clock = replace_clock(4_000_000_000)
    store.record_use(ref.file_id)
    store.close()
    assert [info.last_use_s for info in stores.open(2).iter_files()] == [4_000_000_000]


def replace_clock(now_s: int) -> SystemClock:
    clock = SystemClock()
    clock.now_ns = lambda: now_s * 1_000_000_000  # type: ignore[method-assign]
    return clock


def test_index_is_dense_where_files_come_in_order(tmp_path: Path) -> None:
    index = Index(str(tmp_path), 1 << 30, lambda _: None)
    for start in range(0, 20_000, 1000):
        puts = [
            FilePut(
                FileId(InodeId(n), VersionId(1)),
                FileRecord(110_000, (n << 40) + n, 110_000, 1_763_000_000, Role.HOME, False, "0" * 32),
                [BlockPut(0, 0, 1, array("Q", [n]))],
            )
            for n in range(start, start + 1000)
        ]
        index.commit(lambda puts=puts: puts, [])  # type: ignore[misc]
    index.close()
    assert (tmp_path / "data.mdb").stat().st_size < 200 * 20_000


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_what_is_removed_is_written_down_where_others_have_filled_the_disk(stores: Stores, tmp_path: Path) -> None:
    """An index that cannot be written would take the directory out until the next start."""
    disk = tmp_path / "d0"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", disk], check=True)
    try:
        store = stores.open()
        refs = [make_ref(number, 1000) for number in range(1, 301)]
        for ref in refs:
            fill(store, ref)
        store.flush()
        with open(disk / "others", "wb") as others:
            for ref in refs:
                with suppress(OSError):
                    while True:  # also what was just freed
                        os.posix_fallocate(others.fileno(), others.seek(0, os.SEEK_END), 4096)
                assert os.statvfs(disk).f_bavail == 0
                assert store.remove([ref.file_id]).files == 1
        assert [usage.state for usage in store.get_usage()] == ["ok"]
        (disk / "others").unlink()
        fill(store, refs[0])
        stores.close_all()
        assert [info.file_id for info in stores.open().iter_files()] == [refs[0].file_id]
    finally:
        stores.close_all()
        subprocess.run(["umount", disk], check=True)


def test_many_changes_overflow_into_a_full_report(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alluxio_like.cache.report.MAX_PENDING_CHANGES", 3)
    store = stores.open()
    for number in range(1, 6):
        fill(store, make_ref(number, 10))
    store.flush()
    assert store.drain_changes().overflowed
    assert not store.drain_changes().overflowed
    assert len(list(store.iter_blocks())) == 5


def test_lease_does_not_kill_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    assert syscalls.take_write_lease(fd)
    with pytest.raises(BlockingIOError):
        os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    os.close(fd)


def test_changed_reference_with_same_content_is_the_same_file(stores: Stores) -> None:
    store = stores.open()
    file = fill(store, make_ref(1, 10))
    assert store.create(replace(make_ref(1, 10), key="moved", pinned=True), Role.GUEST) is file
