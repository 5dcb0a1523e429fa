"""Directories as stores: nothing outside of the root, nothing that is no file, and no hang on what could hang."""

import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.types import Kind
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.file import make_fingerprint
from alluxio_like.ufs.open import open_ufs


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
    fingerprint = make_fingerprint(path.stat())
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
    end = time.monotonic() + 10
    while not (await ufs.stat("k")).trusted:
        assert time.monotonic() < end
        time.sleep(0.1)  # noqa: ASYNC251
    assert (await ufs.list_page("")).entries[0].trusted


async def test_a_change_in_place_between_chunks_is_stale(ufs: Ufs, root: Path) -> None:
    path = root / "k"
    path.write_bytes(bytes(9 << 20))
    fingerprint = make_fingerprint(path.stat())
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
    fingerprint = make_fingerprint(path.stat())
    with pytest.raises(errors.Stale):
        async for _ in ufs.read("k", fingerprint, 0, fingerprint.size):
            os.truncate(path, 100)


@pytest.mark.parametrize("make", ["directory", "link", "fifo"])
async def test_a_file_replaced_by_something_else_is_stale(ufs: Ufs, root: Path, make: str) -> None:
    path = root / "k"
    path.write_text("x")
    fingerprint = make_fingerprint(path.stat())
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
