"""Reading cache files from other processes, while the worker writes, evicts, crashes and restarts.

The readers are real processes, because one process may open an index only once.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from alluxio_like import errors
from alluxio_like.cache.checksum import compute_checksum
from alluxio_like.cache.format import FileRecord, make_file_path
from alluxio_like.cache.index import BlockPut, FilePut
from alluxio_like.cache.reader import LocalFile
from alluxio_like.cache.store import CachedFile, CacheDirSpec, CacheStore, Role
from alluxio_like.clock import SystemClock
from alluxio_like.types import PAGE_BYTES, FileId, FileRef, Fingerprint, InodeId, MountId, PageRange, VersionId

CHILD = Path(__file__).parent.parent / "cache_child.py"


def make_ref(inode: int, size: int, token: str = "etag") -> FileRef:
    return FileRef(InodeId(inode), VersionId(1), MountId(1), f"key{inode}", Fingerprint(token, size))


def make_page(ref: FileRef, page: int) -> bytes:
    seed = f"{ref.inode}/{ref.fingerprint.token}/{page}|".encode()
    length = min(PAGE_BYTES, ref.size - page * PAGE_BYTES)
    return (seed * (length // len(seed) + 1))[:length]


class Child:
    """A process that obeys one line at a time; see tests/cache_child.py."""

    def __init__(self, kind: str, *args: object, fds: tuple[int, ...] = ()) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), kind, str(theirs.fileno()), *map(str, args), *map(str, fds)],
            pass_fds=(theirs.fileno(), *fds),
        )
        theirs.close()
        ours.settimeout(60)
        self.socket = ours
        self.file = ours.makefile("rw")

    def ask(self, *words: object) -> Any:
        self.tell(*words)
        return self.hear()

    def tell(self, *words: object) -> None:
        self.file.write(json.dumps(words) + "\n")
        self.file.flush()

    def hear(self) -> Any:
        line = self.file.readline()
        assert line, "child ended"
        return json.loads(line)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        with contextlib.suppress(OSError):
            self.file.close()
        self.socket.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CacheStore]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def children() -> Iterator[list[Child]]:
    started: list[Child] = []
    yield started
    for child in started:
        child.close()


def open_store(path: Path, quota: int = 1 << 30) -> CacheStore:
    specs = [CacheDirSpec(path / name, quota, allow_root_disk=True, keep_free_fraction=0.0) for name in ("d0", "d1")]
    return CacheStore.open(specs, cluster_id="c", clock=SystemClock(), boot_id="boot")


def start_reader(children: list[Child], store: CacheStore) -> Child:
    fds = tuple(os.dup(fd) for fd in store.directory_fds)
    for fd in fds:
        os.set_inheritable(fd, True)
    child = Child("reader", fds=fds)
    for fd in fds:
        os.close(fd)
    children.append(child)
    return child


def fill(store: CacheStore, ref: FileRef, pages: range | None = None) -> CachedFile:
    file = store.create(ref, Role.HOME)
    for page in pages if pages is not None else range(-(-ref.size // PAGE_BYTES)):
        file.write_pages(page, make_page(ref, page))
    return file


def get_path(store: CacheStore, file: CachedFile) -> Path:
    return store.get_usage()[file.directory].path / make_file_path(file.file_id, file.generation)


def test_reader_sees_what_is_committed_and_learns_what_is_not(store: CacheStore, children: list[Child]) -> None:
    ref = make_ref(1, 3 * PAGE_BYTES + 10)
    reader = start_reader(children, store)
    assert reader.ask("lookup", ref.inode, ref.size, "etag") is False
    file = fill(store, ref, range(1))
    store.flush()
    assert reader.ask("lookup", ref.inode, ref.size, "etag") is True
    assert reader.ask("run", 100, 1 << 40) == PAGE_BYTES - 100
    assert reader.ask("read", 100, 50) == make_page(ref, 0)[100:150].decode()
    assert reader.ask("read", PAGE_BYTES, 50) == ""
    # What a Fill reply says holds at once, for the same incarnation of the file only.
    with store._dirs[file.directory].get_index().lock:
        file.write_pages(2, make_page(ref, 2))
        (_, run) = file.get_present_runs(type(run0 := file.missing_pages(_all(ref))[0])(0, 4))
        assert run0.first == 1
        assert reader.ask("learn", file.generation ^ 1, run.pages.first, run.pages.stop, list(run.checksums)) is False
        assert reader.ask("run", 2 * PAGE_BYTES, 10) == 0
        assert reader.ask("learn", file.generation, run.pages.first, run.pages.stop, list(run.checksums)) is True
        assert reader.ask("read", 2 * PAGE_BYTES + 7, 20) == make_page(ref, 2)[7:27].decode()
    fill(store, ref)
    store.flush()
    assert reader.ask("complete") is True
    assert reader.ask("read", 3 * PAGE_BYTES - 5, 100) == (make_page(ref, 2)[-5:] + make_page(ref, 3)).decode()
    assert reader.ask("lookup", ref.inode, ref.size, "other") is False


def _all(ref: FileRef) -> Any:
    from alluxio_like.types import PageRange

    return PageRange(0, -(-ref.size // PAGE_BYTES))


def test_reader_opens_what_a_fill_reply_names_before_the_commit(store: CacheStore, children: list[Child]) -> None:
    ref = make_ref(1, 100)
    reader = start_reader(children, store)
    locks = [directory.get_index().lock for directory in store._dirs]
    with locks[0], locks[1]:
        file = fill(store, ref)
        (run,) = file.get_present_runs(_all(ref))
        assert reader.ask("open_filled", 1, 100, file.directory, file.generation ^ 1) is False
        assert reader.ask("open_filled", 1, 100, file.directory, file.generation) is True
        assert reader.ask("learn", run.generation, 0, 1, list(run.checksums)) is True
        assert reader.ask("read", 0, 100) == make_page(ref, 0).decode()


def test_reader_finds_flipped_bit_and_recovers(store: CacheStore, children: list[Child]) -> None:
    ref = make_ref(1, 2 * PAGE_BYTES)
    file = fill(store, ref)
    store.flush()
    with get_path(store, file).open("r+b") as raw:
        raw.seek(PAGE_BYTES + 3)
        raw.write(b"\xff")
    reader = start_reader(children, store)
    assert reader.ask("lookup", 1, ref.size, "etag") is True
    assert reader.ask("read", 0, 10) == make_page(ref, 0)[:10].decode()
    assert reader.ask("read", PAGE_BYTES, 10) == "error corrupt"
    assert file.verify() == [1]
    file.write_pages(1, make_page(ref, 1))
    store.flush()
    assert reader.ask("read", PAGE_BYTES, 10) == make_page(ref, 1)[:10].decode()


def test_reader_keeps_up_with_a_growing_index(store: CacheStore, children: list[Child]) -> None:
    """What the index has is found at once, also when its file has outgrown what the reader mapped."""
    fill(store, make_ref(1, 100))
    store.flush()
    reader = start_reader(children, store)
    assert reader.ask("lookup", 1, 100, "etag") is True
    for index in (directory.get_index() for directory in store._dirs):
        for start in range(10, 20_010, 1000):
            puts = [
                FilePut(
                    FileId(InodeId(n), VersionId(1)),
                    FileRecord(64 * PAGE_BYTES, n, PAGE_BYTES, 0, Role.HOME, False, "etag"),
                    [BlockPut(0, 0, 1, array("Q", bytes(8 * 64)))],
                )
                for n in range(start, start + 1000)
            ]
            index.commit(lambda puts=puts: puts, [])  # type: ignore[misc]
    fill(store, make_ref(2, 100))
    store.flush()
    assert reader.ask("lookup", 2, 100, "etag") is True


class NoIndex:
    """A view of an index that knows nothing: pages are learned."""

    trust = 0
    nowait = 0

    def get(self, table: bytes, key: bytes) -> bytes | None:
        return None


def test_bytes_read_before_a_repair_are_not_taken_for_the_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread has read a bad page; before it checks it, the page is written anew and another thread verifies that."""
    ref = make_ref(1, PAGE_BYTES)
    good = make_page(ref, 0)
    path = tmp_path / "file"
    path.write_bytes(b"\xff" + good[1:])
    file = LocalFile(cast("Any", NoIndex()), ref.file_id, ref.size, 5, os.open(path, os.O_RDONLY))
    file.add_present(5, PageRange(0, 1), [compute_checksum(good)])
    plain = LocalFile._pread

    def read_and_be_overtaken(self: LocalFile, offset: int, length: int) -> bytes:
        data = plain(self, offset, length)
        monkeypatch.setattr(LocalFile, "_pread", plain)
        path.write_bytes(good)
        assert self.read(0, PAGE_BYTES) == good
        return data

    monkeypatch.setattr(LocalFile, "_pread", read_and_be_overtaken)
    with pytest.raises(errors.Corrupt):
        file.read(0, PAGE_BYTES)
    assert file.read(0, PAGE_BYTES) == b""
    file.add_present(5, PageRange(0, 1), [compute_checksum(good)])
    assert file.read(0, PAGE_BYTES) == good
    file.close()


def test_a_shared_range_names_what_is_to_be_verified_and_is_believed_only_for_the_same_page(tmp_path: Path) -> None:
    ref = make_ref(1, 2 * PAGE_BYTES + 50)
    pages = [make_page(ref, page) for page in range(3)]
    sums = [compute_checksum(page) for page in pages]
    path = tmp_path / "file"
    path.write_bytes(b"".join(pages))
    file = LocalFile(cast("Any", NoIndex()), ref.file_id, ref.size, 5, os.open(path, os.O_RDONLY))
    assert file.share(0, 10) is None, "nothing is known to be there"
    file.add_present(5, PageRange(0, 2), sums[:2])
    shared = file.share(PAGE_BYTES - 10, 20)
    assert shared is not None
    assert shared[1:] == (file.fd, ref.size, PAGE_BYTES - 10, 20, 0, (sums[0], sums[1]))
    assert file.share(2 * PAGE_BYTES - 10, 20) is None, "its end is not there"
    file.note_verified(shared)
    again = file.share(PAGE_BYTES - 10, 20)
    assert again is not None
    assert again.checksums == (None, None)
    # A page that was dropped meanwhile, and one that has come anew with other bytes, is not verified by an old word.
    file._forget(0)
    file.note_verified(shared)
    file.add_present(5, PageRange(0, 2), [sums[0], sums[1] ^ 1])
    fresh = file.share(0, 10)
    assert fresh is not None
    assert fresh.checksums == (sums[0],)
    file._forget(1)
    file.add_present(5, PageRange(1, 2), [sums[1] ^ 1])
    file.note_verified(shared)
    assert not file.try_read_into(PAGE_BYTES, memoryview(bytearray(10)))
    file.close()
    assert file.share(0, 10) is None


@pytest.mark.parametrize(("offset", "length"), [(0, PAGE_BYTES), (5, 100), (2 * PAGE_BYTES, 50), (PAGE_BYTES - 1, 2)])
def test_what_is_read_without_waiting_is_verified(tmp_path: Path, offset: int, length: int) -> None:
    ref = make_ref(1, 2 * PAGE_BYTES + 50)
    pages = [make_page(ref, page) for page in range(3)]
    content = b"".join(pages)
    for bad in (False, True):
        path = tmp_path / f"file{bad}"
        path.write_bytes(bytes(len(content)) if bad else content)
        file = LocalFile(cast("Any", NoIndex()), ref.file_id, ref.size, 5, os.open(path, os.O_RDONLY))
        file.add_present(5, PageRange(0, 3), [compute_checksum(page) for page in pages])
        buffer = bytearray(length)
        assert file.try_read_into(offset, memoryview(buffer)) is not bad
        assert bad or buffer == content[offset : offset + length]
        file.close()


def test_open_file_outlives_forced_removal_and_is_not_punched(store: CacheStore, children: list[Child]) -> None:
    ref = make_ref(1, 2 * PAGE_BYTES)
    fill(store, ref)
    store.flush()
    reader = start_reader(children, store)
    assert reader.ask("lookup", 1, ref.size, "etag") is True
    assert store.remove([ref.file_id]).in_use == (ref.file_id,)
    assert store.punch_block(ref.file_id, 0) == 0
    assert reader.ask("run", 0, ref.size) == ref.size
    assert store.remove([ref.file_id], force=True).files == 1
    # The file comes again as another one: what the old one's reader knows must not be mixed with it.
    changed = make_ref(1, 2 * PAGE_BYTES, "new")
    fill(store, changed)
    store.flush()
    assert reader.ask("read", PAGE_BYTES, 20) == make_page(ref, 1)[:20].decode()
    assert store.reap_held() == 0
    assert reader.ask("lookup", 1, ref.size, "new") is True
    assert reader.ask("read", PAGE_BYTES, 20) == make_page(changed, 1)[:20].decode()
    assert store.reap_held() > 0
    reader.kill()
    assert store.remove([ref.file_id]).files == 1


def test_dead_readers_leave_no_slots_behind(store: CacheStore, children: list[Child]) -> None:
    fill(store, make_ref(1, 10))
    store.flush()
    for _ in range(3):
        child = start_reader(children, store)
        assert child.ask("lookup", 1, 10, "etag") is True
        child.kill()
    wait_until(lambda: store._dirs[0].get_index().check_readers() >= 0)
    assert len(list_strange_readers(store)) <= 1


def test_dead_readers_slots_are_freed_also_where_nothing_is_used(
    tmp_path: Path, children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What programs write alone makes no uses; a slot keeps pages of the index from being used again."""
    monkeypatch.setattr("alluxio_like.cache.store.USE_FLUSH_INTERVAL_S", 0.05)
    with contextlib.closing(open_store(tmp_path)) as store:
        fill(store, make_ref(1, 10))
        store.flush()
        child = start_reader(children, store)
        assert child.ask("lookup", 1, 10, "etag") is True
        assert len(list_strange_readers(store)) > 1
        child.kill()
        wait_until(lambda: len(list_strange_readers(store)) <= 1)


def list_strange_readers(store: CacheStore) -> list[str]:
    """Slots of other processes in the index, and a line of headings."""
    return [line for line in store._dirs[0].get_index()._env.readers().splitlines() if str(os.getpid()) not in line]


def wait_until(condition: Any, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.01)


def test_forked_child_opens_its_own(store: CacheStore, children: list[Child]) -> None:
    fill(store, make_ref(1, 10))
    store.flush()
    reader = start_reader(children, store)
    assert reader.ask("lookup", 1, 10, "etag") is True
    assert reader.ask("fork", 1, 10, "etag") == make_page(make_ref(1, 10), 0).decode()
    assert reader.ask("read", 0, 10) == make_page(make_ref(1, 10), 0).decode()


def test_readers_never_see_wrong_bytes_while_files_come_and_go(store: CacheStore, children: list[Child]) -> None:
    """Two processes read files at random, each byte checked, while the worker fills, evicts, punches and replaces them."""
    readers = [start_reader(children, store) for _ in range(2)]
    for reader in readers:
        reader.tell("storm", 12)
    deadline = time.monotonic() + 4
    turn = 0
    while time.monotonic() < deadline:
        turn += 1
        ref = make_ref(1 + turn % 12, 2 * PAGE_BYTES + 5, "ab"[turn // 40 % 2])
        match turn % 5:
            case 0:
                store.remove([ref.file_id])
            case 1:
                store.punch_block(ref.file_id, 0)
            case 2:
                store.remove([ref.file_id], force=turn % 4 == 0)
            case _:
                fill(store, ref, range(turn % 4))
        if turn % 3 == 0:
            store.flush()
    reads = 0
    for reader in readers:
        reader.tell("stop")
        result = reader.hear()
        assert result["wrong"] == []
        reads += result["reads"]
    assert reads > 100
    wait_until(lambda: store.reap_held() >= 0)


def test_kill_during_writing_leaves_only_right_bytes(tmp_path: Path, children: list[Child]) -> None:
    """A worker process is killed while it writes and evicts; whatever the next one finds is right, and space adds up."""
    for round_ in range(3):
        worker = Child("worker", tmp_path, round_)
        children.append(worker)
        assert worker.hear() == "ready"
        worker.tell("go")
        for _ in range(20 + 15 * round_):
            worker.hear()
        worker.kill()
        store = open_store(tmp_path, 64 << 20)
        try:
            found = 0
            for info in list(store.iter_files()):
                file = store.lookup(info.file_id)
                assert file is not None
                assert file.verify() == []
                ref = make_ref(info.file_id.inode, info.size, file.fingerprint.token)
                for page in range(-(-info.size // PAGE_BYTES)):
                    if not file.missing_pages(type(_all(ref))(page, page + 1)):
                        found += 1
                        assert file.read(page * PAGE_BYTES, PAGE_BYTES) == make_page(ref, page)
            assert found > 0
            store.sweep()
            for usage in store.get_usage():
                files = list((usage.path / "files").glob("*/*"))
                assert len(files) == usage.file_count
            total = sum(info.present_bytes for info in store.iter_files())
            assert sum(usage.used_bytes for usage in store.get_usage()) == total
        finally:
            store.close()
