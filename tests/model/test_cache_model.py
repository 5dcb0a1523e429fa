"""The store and its index against a plain model, with kills, crashes of the machine and flipped bytes at any moment.

What must hold: a page that the store calls present has the right bytes or is found out; what was flushed survives a kill; what
was removed does not come back; the account of space is the sum of what is there.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alluxio_like import errors
from alluxio_like.cache.format import get_disk_bytes, make_file_path
from alluxio_like.cache.store import CachedFile, CacheDirSpec, CacheStore, Role
from alluxio_like.clock import SystemClock
from alluxio_like.types import (
    BLOCK_BYTES,
    PAGE_BYTES,
    FileId,
    FileRef,
    Fingerprint,
    InodeId,
    MountId,
    PageRange,
    VersionId,
    get_block_count,
    get_page_count,
)
from tests.dead_store import stop_dead

SIZES = {1: 10, 2: PAGE_BYTES + 7, 3: 2 * PAGE_BYTES, 4: BLOCK_BYTES + 100}
INODES = st.sampled_from(sorted(SIZES))
TOKENS = st.sampled_from("ab")
Page = tuple[int, str, int]
"""Inode, token, page."""


def make_ref(inode: int, token: str) -> FileRef:
    return FileRef(InodeId(inode), VersionId(1), MountId(1), "key", Fingerprint(token, SIZES[inode]))


def make_page(inode: int, token: str, page: int) -> bytes:
    length = min(PAGE_BYTES, SIZES[inode] - page * PAGE_BYTES)
    seed = f"{inode}{token}{page}|".encode()
    return (seed * (length // len(seed) + 1))[:length]


def get_interesting_pages(inode: int) -> list[int]:
    """First and last: enough to cross a block's border without writing 64 MiB."""
    return sorted({0, get_page_count(SIZES[inode]) - 1})


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="cache-model-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.boot = 1
        self.certain: set[Page] = set()
        """Pages that must be there."""
        self.possible: set[Page] = set()
        """Pages that may be there besides: written since the last flush, when a kill came."""
        self.damaged: set[Page] = set()
        """Pages whose bytes on the disk are wrong: to be found out."""
        self.unflushed: set[Page] = set()
        self.pinned: dict[int, bool] = {}

    @initialize()
    def start(self) -> None:
        self.store = self.open()

    def open(self) -> CacheStore:
        specs = [CacheDirSpec(self.root / name, 1 << 30, allow_root_disk=True, keep_free_fraction=0.0) for name in ("d0", "d1")]
        store = CacheStore.open(specs, cluster_id="c", clock=SystemClock(), boot_id=f"boot{self.boot}")
        # Commits come from the rules alone, so that a run can be repeated.
        store._stop.set()
        store._wake.set()
        store._thread.join()
        return store

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.root)

    @rule(inode=INODES, token=TOKENS, last=st.booleans(), role=st.sampled_from(list(Role)))
    def write(self, inode: int, token: str, last: bool, role: Role) -> None:
        page = get_interesting_pages(inode)[-1 if last else 0]
        file = self.store.create(make_ref(inode, token), role)
        self.forget(page_ for page_ in self.certain | self.possible if page_[0] == inode and page_[1] != token)
        present = self.is_present(file, page)
        file.write_pages(page, make_page(inode, token, page))
        assert self.is_present(file, page)
        self.certain.add((inode, token, page))
        self.unflushed.add((inode, token, page))
        if not present:
            self.damaged.discard((inode, token, page))

    @rule(inode=INODES, force=st.booleans(), include_pinned=st.booleans(), opened=st.booleans())
    def remove(self, inode: int, force: bool, include_pinned: bool, opened: bool) -> None:
        file = self.store.lookup(FileId(InodeId(inode), VersionId(1)))
        holder = -1
        if file is not None and opened and self.get_path(file).exists():
            holder = os.open(self.get_path(file), os.O_RDONLY)
        try:
            removed = self.store.remove([FileId(InodeId(inode), VersionId(1))], force=force, include_pinned=include_pinned)
        finally:
            if holder >= 0:
                os.close(holder)
        if removed.files:
            assert file is not None
            assert force or holder < 0
            assert include_pinned or not file.pinned
            assert file.removed
            self.pinned.pop(inode, None)
            self.forget(page for page in self.certain | self.possible if page[0] == inode)

    @rule(block=st.integers(0, 1))
    def punch(self, block: int) -> None:
        if self.store.punch_block(FileId(InodeId(4), VersionId(1)), block):
            self.forget(page for page in self.certain | self.possible if page[0] == 4 and page[2] // 64 == block)

    @rule(inode=INODES, pinned=st.booleans())
    def pin(self, inode: int, pinned: bool) -> None:
        self.store.set_pinned([FileId(InodeId(inode), VersionId(1))], pinned)
        self.unflushed.clear()

    @rule()
    def flush(self) -> None:
        self.store.flush()
        self.unflushed.clear()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.unflushed.clear()
        self.store = self.open()
        self.check_known()

    @rule()
    def kill(self) -> None:
        self.stop_dead()
        self.store = self.open()
        self.check_known()

    @rule(lost=st.sets(st.tuples(INODES, TOKENS, st.sampled_from([0, 1, 64]))))
    def crash_machine(self, lost: set[Page]) -> None:
        """Another boot: what was written may not have reached the disk, and reads as zeros."""
        for inode, token, page in lost & (self.certain | self.possible):
            file = self.store.lookup(FileId(InodeId(inode), VersionId(1)))
            if file is not None and file.fingerprint.token == token:
                self.overwrite(file, (inode, token, page), bytes(len(make_page(inode, token, page))))
        self.stop_dead()
        self.boot += 1
        self.store = self.open()
        for inode in SIZES:
            file = self.store.lookup(FileId(InodeId(inode), VersionId(1)))
            if file is not None:
                assert file.missing_pages(PageRange(0, 99)) == [PageRange(0, get_page_count(file.size))]
                bad = {(inode, file.fingerprint.token, page) for page in file.verify()}
                assert bad <= self.damaged
                self.forget(bad)
        # Else what was verified is suspect again after a kill.
        self.store.flush()
        self.check_known()

    @precondition(lambda self: self.certain)
    @rule(data=st.data())
    def flip(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.certain)))
        file = self.store.lookup(FileId(InodeId(page[0]), VersionId(1)))
        if file is not None and self.is_present(file, page[2]):
            self.overwrite(file, page, b"\0")

    @rule(inode=INODES)
    def read(self, inode: int) -> None:
        file = self.store.lookup(FileId(InodeId(inode), VersionId(1)))
        if file is None:
            return
        token = file.fingerprint.token
        for page in get_interesting_pages(inode):
            known = (inode, token, page)
            if not self.is_present(file, page):
                assert known not in self.certain
                continue
            assert known in self.certain | self.possible
            try:
                assert file.read(page * PAGE_BYTES, PAGE_BYTES) == make_page(*known)
            except errors.Corrupt:
                assert known in self.damaged
                assert not self.is_present(file, page)
                self.forget([known])
            else:
                assert known not in self.damaged

    @rule()
    def sweep(self) -> None:
        self.store.flush()
        self.unflushed.clear()
        self.store.sweep()
        self.store.reap_held()
        for number, usage in enumerate(self.store.get_usage()):
            infos = [info for info in self.store.iter_files() if info.directory == number]
            assert usage.file_count == len(infos)
            assert usage.used_bytes == sum(get_disk_bytes(info.present_bytes) for info in infos)
            assert usage.used_bytes == usage.home_bytes + usage.guest_bytes
            assert usage.held_bytes == 0

    @invariant()
    def certain_pages_are_present(self) -> None:
        if not hasattr(self, "store"):
            return
        for inode, token, page in self.certain:
            file = self.store.lookup(FileId(InodeId(inode), VersionId(1)))
            assert file is not None
            assert file.fingerprint.token == token
            assert self.is_present(file, page)
            expected = sum(file.get_present(block).bit_count() for block in range(get_block_count(file.size)))
            assert expected <= 2

    def stop_dead(self) -> None:
        """As kill -9: nothing more is committed. What was not flushed may be there or not."""
        stop_dead(self.store)
        self.certain -= self.unflushed
        self.possible |= self.unflushed
        self.unflushed.clear()

    def check_known(self) -> None:
        """After a restart: settle which of the possible pages are there."""
        for inode in SIZES:
            file = self.store.lookup(FileId(InodeId(inode), VersionId(1)))
            for known in [page for page in self.possible if page[0] == inode]:
                there = file is not None and file.fingerprint.token == known[1] and self.is_present(file, known[2])
                self.possible.discard(known)
                if there:
                    self.certain.add(known)
                elif known not in self.certain:
                    self.damaged.discard(known)

    def forget(self, pages: Iterable[Page]) -> None:
        for page in list(pages):
            self.certain.discard(page)
            self.possible.discard(page)
            self.damaged.discard(page)
            self.unflushed.discard(page)

    def is_present(self, file: CachedFile, page: int) -> bool:
        return not file.missing_pages(PageRange(page, page + 1))

    def get_path(self, file: CachedFile) -> Path:
        return self.root / f"d{file.directory}" / make_file_path(file.file_id, file.generation)

    def overwrite(self, file: CachedFile, page: Page, data: bytes) -> None:
        """Behind the store's back."""
        with self.get_path(file).open("r+b") as raw:
            raw.seek(page[2] * PAGE_BYTES)
            raw.write(data)
        self.damaged.add(page)


CacheMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "25")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestCacheModel = CacheMachine.TestCase
