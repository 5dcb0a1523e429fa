"""The evictor on a real store: room is kept in the background, loads make their own, open files are spared."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.cache.format import make_file_path
from alluxio_like.cache.store import CacheDirSpec, CacheStore, DirectoryUsage, FileInfo, Role
from alluxio_like.clock import SystemClock
from alluxio_like.metrics import Metrics
from alluxio_like.types import FileId, FileRef, Fingerprint, InodeId, JobId, MountId, VersionId
from alluxio_like.worker.evictor import Evictor

KIB = 1 << 10
FILE = 64 * KIB
COUNT = 64
"""Files that fit."""


def make_ref(inode: int) -> FileRef:
    return FileRef(InodeId(inode), VersionId(1), MountId(1), f"key{inode}", Fingerprint("etag", FILE))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CacheStore]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


def open_store(path: Path) -> CacheStore:
    spec = CacheDirSpec(path / "d", COUNT * FILE, allow_root_disk=True, keep_free_fraction=0.0)
    return CacheStore.open([spec], cluster_id="c", clock=SystemClock(), boot_id="boot")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def evictor(store: CacheStore, metrics: Metrics) -> Iterator[Evictor]:
    made = Evictor(store, SystemClock(), metrics=metrics)
    yield made
    made.stop()


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true"
        pause.wait(0.01)


def fill(evictor: Evictor, inode: int, role: Role = Role.HOME, job: str | None = None) -> None:
    file = evictor.create(make_ref(inode), role, job=JobId(job) if job else None)
    file.write_pages(0, bytes(FILE))


def has(store: CacheStore, inode: int) -> bool:
    return store.lookup(make_ref(inode).file_id) is not None


def test_homes_stay_and_further_ones_are_refused(store: CacheStore, evictor: Evictor) -> None:
    for inode in range(COUNT):
        fill(evictor, inode + 1)
    evictor.start()
    for inode in range(COUNT, 2 * COUNT):
        with pytest.raises(errors.NoSpace):
            evictor.create(make_ref(inode + 1), Role.HOME)
    assert all(has(store, inode + 1) for inode in range(COUNT))


def test_a_file_that_another_thread_has_just_made_is_had_though_room_is_short_of_it(
    store: CacheStore, evictor: Evictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for inode in range(1, COUNT):
        fill(evictor, inode)
    look = store.get_usage

    def look_late() -> list[DirectoryUsage]:
        """The other thread makes the file, and writes it, before this one has looked for room."""
        monkeypatch.setattr(store, "get_usage", look)
        fill(evictor, COUNT)
        return look()

    monkeypatch.setattr(store, "get_usage", look_late)
    assert evictor.create(make_ref(COUNT), Role.HOME).is_complete
    with pytest.raises(errors.NoSpace):
        evictor.create(make_ref(COUNT + 1), Role.HOME)


def test_what_must_stay_free_on_a_disk_that_others_fill_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = 0
    real = os.fstatvfs

    def count(fd: int) -> os.statvfs_result:
        """A disk of 200 files, of which 20 must stay free."""
        found = list(real(fd))
        ours = sum(1 for _ in tmp_path.glob("d/files/*/*"))
        found[1], found[2], found[4] = FILE, 200, 200 - others - ours
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "fstatvfs", count)
    spec = CacheDirSpec(tmp_path / "d", COUNT * FILE, allow_root_disk=True, keep_free_fraction=0.1)
    store = CacheStore.open([spec], cluster_id="c", clock=SystemClock(), boot_id="boot")
    evictor = Evictor(store, SystemClock())
    try:
        for inode in range(30):
            fill(evictor, inode + 1, job="j")
        store.set_pinned([make_ref(1).file_id], pinned=True)
        evictor.start()
        others = 160
        wait_until(lambda: store.get_usage()[0].file_count == 20)
        assert [has(store, inode) for inode in (1, 2, 30)] == [True, False, True], "the oldest go, not the pinned ones"
        others = 200
        wait_until(lambda: store.get_usage()[0].file_count == 1)
        with pytest.raises(errors.NoSpace):
            fill(evictor, 50)
        others = 0
        wait_until(lambda: store.get_usage()[0].room_bytes > FILE)
        fill(evictor, 50)
    finally:
        evictor.stop()
        store.close()


def test_guests_make_room_in_the_background_down_to_the_low_watermark(
    store: CacheStore, evictor: Evictor, metrics: Metrics
) -> None:
    for inode in range(COUNT):
        fill(evictor, inode + 1, Role.GUEST if inode < 40 else Role.HOME)
    evictor.start()
    wait_until(lambda: store.get_usage()[0].used_bytes <= 0.9 * COUNT * FILE)
    assert all(has(store, inode + 1) for inode in range(40, COUNT))
    assert 30 <= sum(has(store, inode + 1) for inode in range(40)) < 40
    gone = COUNT - store.get_usage()[0].file_count
    wait_until(lambda: metrics.registry.get_sample_value("alluxio_like_evicted_files_total", {"role": "guest"}) == gone)
    assert metrics.registry.get_sample_value("alluxio_like_evicted_bytes_total", {"role": "guest"}) == gone * FILE
    fill(evictor, 1000)


def test_a_load_makes_its_own_room_but_spares_open_and_pinned_files(store: CacheStore, evictor: Evictor) -> None:
    for inode in range(COUNT):
        fill(evictor, inode + 1)
    store.set_pinned([make_ref(1).file_id], True)
    opened = store.lookup(make_ref(2).file_id)
    assert opened is not None
    path = store.get_usage()[0].path / make_file_path(opened.file_id, opened.generation)
    with path.open("rb"):
        loaded = []
        for inode in range(1000, 1000 + COUNT):
            try:
                fill(evictor, inode, job="j")
            except errors.NoSpace:
                break
            loaded.append(inode)
        assert has(store, 1)
        assert has(store, 2)
    assert len(loaded) == COUNT - 2
    assert all(has(store, inode) for inode in loaded)
    with pytest.raises(errors.NoSpace):
        fill(evictor, 5000)


def test_a_file_larger_than_the_cache_is_refused_without_eviction(store: CacheStore, evictor: Evictor) -> None:
    fill(evictor, 1)
    big = FileRef(InodeId(9), VersionId(1), MountId(1), "big", Fingerprint("etag", 100 * COUNT * FILE))
    with pytest.raises(errors.NoSpace):
        evictor.create(big, Role.HOME, job=JobId("j"))
    assert has(store, 1)


def test_a_restarted_worker_knows_its_files(store: CacheStore, evictor: Evictor, tmp_path: Path) -> None:
    for inode in range(COUNT):
        fill(evictor, inode + 1, Role.GUEST)
    store.close()
    again = open_store(tmp_path)
    try:
        second = Evictor(again, SystemClock())
        second.start()
        wait_until(lambda: again.get_usage()[0].used_bytes <= 0.9 * COUNT * FILE)
        second.stop()
    finally:
        again.close()


def test_a_restarted_worker_learns_its_files_in_the_order_of_their_last_use(
    store: CacheStore, evictor: Evictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    del evictor
    infos = [
        FileInfo(FileId(InodeId(n), VersionId(1)), FILE, Role.GUEST if n % 2 else Role.HOME, n == 4, n, FILE, (n * 7) % 11, 0)
        for n in range(1, 11)
    ]
    monkeypatch.setattr(store, "iter_files", lambda: iter(infos))
    second = Evictor(store, SystemClock())
    second._learn()
    victims = second._policies[0].choose_victims(1 << 40, time.time())
    expected = sorted((info for info in infos if not info.pinned), key=lambda info: (info.role is Role.HOME, info.last_use_s))
    assert [victim.file_id for victim in victims] == [info.file_id for info in expected]
