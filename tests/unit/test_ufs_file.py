"""Directories as stores: nothing outside of the root, nothing that is no file, and no hang on what could hang."""

import os
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind
from alluxio_like.ufs.api import ListPage, Ufs
from alluxio_like.ufs.local_ops import LocalOps, make_found
from alluxio_like.ufs.open import open_ufs
from alluxio_like.ufs.posix_tree import make_fingerprint
from alluxio_like.ufs.posix_ufs import PosixSteps
from alluxio_like.ufs.sorted_names import SortedNames
from alluxio_like.ufs.writing import Expected, WriteOptions, get_writable
from tests.conformance.stores import make_source


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("outside")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
async def ufs(root: Path) -> AsyncIterator[Ufs]:
    made = open_ufs(f"file://{root}", {"uid": "7"}, secrets={}, on_request=lambda _op: None, io_timeout_s=5)
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    yield made
    await made.close()
    assert {path.name for path in Path("/proc/self/fd").iterdir()} <= before


async def read(ufs: Ufs, key: str, path: Path) -> bytes:
    fingerprint = make_fingerprint(make_found(path.stat()))
    return b"".join([bytes(chunk) async for chunk in ufs.read(key, fingerprint, 0, fingerprint.size)])


async def test_links_and_special_files_are_left_out_and_counted(ufs: Ufs, root: Path) -> None:
    (root / "file").write_text("x")
    (root / "link").symlink_to("file")
    (root / "out").symlink_to(root.parent / "outside")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(root / "sock"))
    page = await ufs.list_page("")
    assert [entry.name for entry in page.entries] == ["file"]
    assert page.left_out == 4


@pytest.mark.parametrize("key", ["out/secret", "link", "../outside/secret", "dir/../../outside/secret", "/etc/passwd", "fifo"])
async def test_nothing_outside_is_touched(ufs: Ufs, root: Path, key: str) -> None:
    (root / "dir").mkdir()
    (root / "out").symlink_to(root.parent / "outside")
    (root / "link").symlink_to(root.parent / "outside" / "secret")
    os.mkfifo(root / "fifo")
    with pytest.raises(errors.NotFound):
        await ufs.stat(key)
    with pytest.raises((errors.NotFound, errors.Stale)):
        await read(ufs, key, root.parent / "outside" / "secret")
    for prefix in ("out/", "../", "../outside/", "dir/../", "//", "/"):
        with pytest.raises(errors.NotFound):
            await ufs.list_page(prefix)


async def test_a_young_file_is_not_trusted(ufs: Ufs, root: Path) -> None:
    (root / "k").write_text("x")
    os.utime(root / "k", (1, 1))  # only mtime can be set back
    assert not (await ufs.stat("k")).trusted
    end = time.monotonic() + 60
    while not (await ufs.stat("k")).trusted:
        assert time.monotonic() < end
        time.sleep(0.1)  # noqa: ASYNC251
    assert (await ufs.list_page("")).entries[0].trusted


async def test_a_change_in_place_between_chunks_is_stale(ufs: Ufs, root: Path) -> None:
    path = root / "k"
    path.write_bytes(bytes(9 << 20))
    fingerprint = make_fingerprint(make_found(path.stat()))
    got = 0
    with pytest.raises(errors.Stale):
        async for chunk in ufs.read("k", fingerprint, 0, fingerprint.size):
            if not got:
                with path.open("r+b") as file:
                    file.seek(8 << 20)
                    file.write(b"x")
            got += len(chunk)
    assert got < fingerprint.size


async def test_a_file_that_became_shorter_is_stale(ufs: Ufs, root: Path) -> None:
    path = root / "k"
    path.write_bytes(bytes(9 << 20))
    fingerprint = make_fingerprint(make_found(path.stat()))
    with pytest.raises(errors.Stale):
        async for _ in ufs.read("k", fingerprint, 0, fingerprint.size):
            os.truncate(path, 100)


@pytest.mark.parametrize("make", ["directory", "link", "fifo"])
async def test_a_file_replaced_by_something_else_is_stale(ufs: Ufs, root: Path, make: str) -> None:
    path = root / "k"
    path.write_text("x")
    fingerprint = make_fingerprint(make_found(path.stat()))
    path.unlink()
    if make == "directory":
        path.mkdir()
    elif make == "link":
        path.symlink_to("elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(errors.Stale):
        async for _ in ufs.read("k", fingerprint, 0, 1):
            pass


async def test_a_root_that_is_gone(ufs: Ufs, root: Path) -> None:
    await ufs.check()
    root.rmdir()
    for call in (ufs.check(), ufs.list_page(""), ufs.stat("k")):
        with pytest.raises(errors.StoreMissing, match="no such directory"):
            await call


async def test_a_large_directory_is_read_once_and_survives_changes_between_pages(ufs: Ufs, root: Path) -> None:
    for number in range(500):
        (root / f"{number:04d}").touch()
    first = await ufs.list_page("", max_entries=100)
    (root / "0000").unlink()
    (root / "0250").unlink()
    (root / "0251").unlink()
    (root / "0251").mkdir()
    names = [entry.name for entry in first.entries]
    token = first.token
    while token is not None:
        page = await ufs.list_page("", token, max_entries=100)
        names += [entry.name for entry in page.entries]
        token = page.token
    assert names == [f"{number:04d}" for number in range(500) if number not in {250, 251}]


async def test_a_token_outlives_what_was_kept(root: Path) -> None:
    for number in range(50):
        (root / f"{number:04d}").touch()
    names: list[str] = []
    token = None
    while True:
        made = open_ufs(f"file://{root}", {}, secrets={}, on_request=lambda _op: None, io_timeout_s=5)
        page = await made.list_page("", token, max_entries=7)
        await made.close()
        names += [entry.name for entry in page.entries]
        token = page.token
        if token is None:
            break
    assert names == [f"{number:04d}" for number in range(50)]


async def test_directories_are_directories(ufs: Ufs, root: Path) -> None:
    (root / "d").mkdir()
    (entry,) = (await ufs.list_page("")).entries
    assert (entry.kind, entry.fingerprint) == (Kind.DIRECTORY, None)
    assert (await ufs.list_page("d/")).entries == ()


# -- attacks ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def swapping(swap: Callable[[], None]) -> Iterator[None]:
    """`swap` again and again in a thread, for as long as the context lasts."""
    end = threading.Event()

    def work() -> None:
        while not end.is_set():
            swap()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


async def test_a_directory_that_is_swapped_for_a_link_shows_nothing_outside(ufs: Ufs, root: Path) -> None:
    (root / "dir").mkdir()
    (root / "dir" / "secret").write_text("inside!")
    (root / "link").symlink_to(root.parent / "outside")
    inside = make_fingerprint(make_found((root / "dir" / "secret").stat()))
    outside = make_fingerprint(make_found((root.parent / "outside" / "secret").stat()))
    (root.parent / "outside" / "only-outside").touch()

    def swap() -> None:
        for old, new in (("dir", "kept"), ("link", "dir"), ("dir", "link"), ("kept", "dir")):
            (root / old).rename(root / new)

    right = 0
    with swapping(swap):
        end = time.monotonic() + 1.5
        while time.monotonic() < end or right <= 10:
            with suppress(errors.NotFound):
                assert {entry.name for entry in (await ufs.list_page("dir/")).entries} <= {"new", "secret"}
                right += 1
            with suppress(errors.NotFound):
                assert (await ufs.stat("dir/secret")).fingerprint == inside
            with suppress(errors.Stale):
                assert b"".join([bytes(chunk) async for chunk in ufs.read("dir/secret", inside, 0, 7)]) == b"inside!"
                right += 1
            with pytest.raises(errors.Stale):
                await anext(aiter(ufs.read("dir/secret", outside, 0, 7)))
            await write_expecting_no_link(ufs)
    assert sorted(path.name for path in (root.parent / "outside").iterdir()) == ["only-outside", "secret"]
    assert (root.parent / "outside" / "secret").read_text() == "outside"


async def write_expecting_no_link(ufs: Ufs) -> None:
    with make_source(b"new") as source, suppress(errors.NotFound):
        await get_writable(ufs).put("dir/new", source, WriteOptions(os.urandom(16).hex()))
    with suppress(errors.NotFound):
        await get_writable(ufs).delete("dir/new")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a device")
async def test_a_device_is_left_out_and_never_opened(ufs: Ufs, root: Path) -> None:
    os.mknod(root / "null", 0o666 | 0o020000, os.makedev(1, 3))
    assert (await ufs.list_page("")).left_out == 1
    with pytest.raises(errors.NotFound):
        await ufs.stat("null")
    token = make_found((root / "null").stat()).token
    with pytest.raises(errors.Stale):
        await anext(aiter(ufs.read("null", Fingerprint(token, 1), 0, 1)))


async def test_odd_entries_are_shown_as_they_are(ufs: Ufs, root: Path) -> None:
    (root / "a").write_text("12")
    os.link(root / "a", root / "b")
    (root / ("x" * 255)).touch()
    (root / os.fsdecode(b"\xff\xfe")).write_text("bytes")
    page = await ufs.list_page("")
    assert [entry.name for entry in page.entries] == ["a", "b", "x" * 255, "\udcff\udcfe"]
    assert page.entries[0].fingerprint == page.entries[1].fingerprint
    assert await read(ufs, "\udcff\udcfe", root / os.fsdecode(b"\xff\xfe")) == b"bytes"
    for key in ("x" * 256, "x" * 5000, "dir/" * 2000 + "k"):
        with pytest.raises(errors.NotFound):
            await ufs.stat(key)


async def test_what_we_are_writing_is_not_shown(ufs: Ufs, root: Path) -> None:
    token = "0123456789abcdef" * 2
    (root / f".alluxio_like-{token}").write_text("left by a crash")
    (root / ".alluxio_like-mine").write_text("not ours")
    assert [entry.name for entry in (await ufs.list_page("")).entries] == [".alluxio_like-mine"]
    with pytest.raises(errors.NotFound):
        await ufs.stat(f".alluxio_like-{token}")
    (left,) = await get_writable(ufs).list_uploads("")
    await get_writable(ufs).abort_upload(left)
    assert sorted(path.name for path in root.iterdir()) == [".alluxio_like-mine"]


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("elsewhere"), os.mkfifo], ids=["link", "fifo"])
async def test_what_is_not_shown_is_not_written_over(ufs: Ufs, root: Path, make: Callable[[Path], None]) -> None:
    make(root / "k")
    with make_source(b"new") as source:
        for expected in (None, Expected(None)):
            with pytest.raises(errors.Conflict):
                await get_writable(ufs).put("k", source, WriteOptions("0" * 32), expected=expected)
        await get_writable(ufs).put("other", source, WriteOptions("0" * 32))
    await get_writable(ufs).delete("k")
    with pytest.raises(errors.AlreadyExists):
        await get_writable(ufs).rename("other", "k")
    assert not (root / "k").is_file() and os.path.lexists(root / "k")


async def test_a_replaced_file_keeps_its_mode(ufs: Ufs, root: Path) -> None:
    (root / "k").write_text("old")
    (root / "k").chmod(0o640)
    with make_source(b"new") as source:
        await get_writable(ufs).put("k", source, WriteOptions("0" * 32))
    assert ((root / "k").read_text(), (root / "k").stat().st_mode & 0o7777) == ("new", 0o640)


async def test_a_token_ends_with_a_change_in_place(ufs: Ufs, root: Path) -> None:
    with make_source(b"ours") as source:
        await get_writable(ufs).put("k", source, WriteOptions("0" * 32))
    assert await get_writable(ufs).lookup_written("k", "0" * 32) is not None
    with (root / "k").open("r+b") as file:
        file.write(b"more")
    assert await get_writable(ufs).lookup_written("k", "0" * 32) is None


async def test_a_token_without_extended_attributes(root: Path) -> None:
    class Plain(LocalOps):
        def set_attribute(self, file: int, name: str, value: bytes) -> bool:
            return False

        def get_attributes(self, file: int) -> dict[str, bytes]:
            return {}

    writer = PosixSteps(Plain(str(root)), "plain").writer
    options = WriteOptions("5" * 32, {"mode": "1"})
    with make_source(b"ours") as source:
        writer.stage("k", options, source.fd, source.offset, source.length)
        writer.commit("k", options, None)
    assert writer.lookup_written("k", "5" * 32) is not None
    assert writer.lookup_written("k", "6" * 32) is None
    assert writer.read_metadata("k") == {}
    (root / "k").write_text("foreign")
    assert writer.lookup_written("k", "5" * 32) is None


# -- symbolic links inside -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def following(root: Path) -> AsyncIterator[Ufs]:
    made = open_ufs(f"file://{root}", {"symlinks": "inside"}, secrets={}, on_request=lambda _op: None, io_timeout_s=5)
    yield made
    await made.close()


async def test_links_to_files_inside_are_those_files(following: Ufs, root: Path) -> None:
    """As a cache of HuggingFace's hub lays out its files."""
    (root / "blobs").mkdir()
    (root / "blobs" / "abc").write_bytes(b"weights")
    (root / "snapshots" / "main").mkdir(parents=True)
    (root / "snapshots" / "main" / "model.bin").symlink_to("../../blobs/abc")
    (entry,) = (await following.list_page("snapshots/main/")).entries
    assert (entry.name, entry.kind) == ("model.bin", Kind.FILE)
    assert entry.fingerprint == (await following.stat("snapshots/main/model.bin")).fingerprint
    assert await read(following, "snapshots/main/model.bin", root / "blobs" / "abc") == b"weights"
    assert entry.fingerprint is not None
    (root / "blobs" / "def").write_bytes(b"WEIGHTS")
    (root / "snapshots" / "main" / "model.bin").unlink()
    (root / "snapshots" / "main" / "model.bin").symlink_to("../../blobs/def")
    with pytest.raises(errors.Stale):
        await anext(aiter(following.read("snapshots/main/model.bin", entry.fingerprint, 0, 7)))


async def test_links_that_lead_elsewhere_stay_hidden(following: Ufs, root: Path) -> None:
    (root / "dir").mkdir()
    (root / "file").touch()
    os.mkfifo(root / "fifo")
    links = {
        "out": "../outside/secret",
        "up-and-down": "../root/file",
        "absolute": str(root / "file"),
        "proc": "/proc/self/fd/0",
        "nothing": "nothing",
        "itself": "itself",
        "directory": "dir",
        "loop": ".",
        "special": "fifo",
        "through": "hop/secret",
    }
    (root / "hop").symlink_to("../outside")
    for name, target in links.items():
        (root / name).symlink_to(target)
    page = await following.list_page("")
    assert [entry.name for entry in page.entries] == ["dir", "file"] or [e.name for e in page.entries] == ["file", "dir"]
    assert page.left_out == len(links) + 2
    for name in links:
        with pytest.raises(errors.NotFound):
            await following.stat(name)
    with pytest.raises(errors.Stale):
        await read(following, "out", root.parent / "outside" / "secret")
    for prefix in ("directory/", "loop/", "hop/"):
        with pytest.raises(errors.NotFound):
            await following.list_page(prefix)


async def test_a_link_that_is_turned_outside_is_never_read(following: Ufs, root: Path) -> None:
    (root / "inside").write_text("inside!")
    (root / "to-inside").symlink_to("inside")
    (root / "to-outside").symlink_to("../outside/secret")
    (root / "k").symlink_to("inside")
    outside = make_fingerprint(make_found((root.parent / "outside" / "secret").stat()))

    def swap() -> None:
        for target in ("inside", "../outside/secret"):
            (root / "new").symlink_to(target)
            (root / "new").rename(root / "k")

    with swapping(swap):
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with suppress(errors.NotFound):
                assert (await following.stat("k")).fingerprint != outside
            with pytest.raises(errors.Stale):
                await anext(aiter(following.read("k", outside, 0, 7)))


# -- large directories -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_in_memory", [7, 100, 10_000])
def test_names_are_sorted_in_bounded_memory(max_in_memory: int) -> None:
    rng = random.Random(5)
    names = sorted({bytes(rng.choices(b"ab/!\xff~", k=rng.randrange(1, 9))) for _ in range(400)})
    shuffled = names[:]
    rng.shuffle(shuffled)
    listing = SortedNames((name + b"\0rest\0" + name for name in shuffled), max_in_memory)
    assert listing.fill(time.monotonic() + 60)
    for count in (5, 130, 5000):
        found: list[bytes] = []
        is_end = False
        while not is_end:
            after = found[-1] if found else b""
            records, is_end = listing.take(after, count)
            if len(found) % 3 == 0:  # as if the page had been lost on its way
                records, is_end = listing.take(after, count)
            found += [record.partition(b"\0")[0] for record in records]
        assert found == names
    assert listing.take(b"nothing of it", 1)[0][0] > b"nothing of it"
    listing.close()


async def test_a_directory_that_takes_long_is_read_in_slices(root: Path) -> None:
    for number in range(2000):
        (root / f"{number:04d}").touch()
    steps = PosixSteps(LocalOps(str(root)), "slow")
    names: list[str] = []
    token = None
    empty = 0
    while True:
        page: ListPage = steps.call("list_page", ("", token, 500, 0.0))
        names += [entry.name for entry in page.entries]
        empty += not page.entries
        token = page.token
        if token is None:
            break
    assert names == [f"{number:04d}" for number in range(2000)]
    assert empty >= 7


@pytest.mark.parametrize("there", [b"", b"y" * 400_000])
def test_what_is_copied_in_keeps_its_holes_and_overwrites_what_is_there(tmp_path: Path, there: bytes) -> None:
    ops = LocalOps(str(tmp_path))
    with open(tmp_path / "from", "w+b") as source, open(tmp_path / "to", "w+b") as target:
        os.ftruncate(source.fileno(), 1_000_000)
        os.pwrite(source.fileno(), b"x" * 1000, 300_000)
        os.pwrite(target.fileno(), there, 0)
        whole = os.pread(source.fileno(), 1_000_000, 0)
        for offset, length in ((0, 400_000), (600_000, 400_000), (400_000, 200_000)):
            ops.copy_in(target.fileno(), offset, source.fileno(), offset, length)
        assert os.pread(target.fileno(), 2_000_000, 0) == whole
        if not there:
            assert os.fstat(target.fileno()).st_blocks * 512 <= 200_000
        with pytest.raises(EOFError):
            ops.copy_in(target.fileno(), 0, source.fileno(), 0, 1_000_001)
        # Byte by byte it would not end.
        os.ftruncate(source.fileno(), 1 << 40)
        ops.copy_in(target.fileno(), 0, source.fileno(), 0, 1 << 40)
        assert os.fstat(target.fileno()).st_size == 1 << 40
