"""What a step of the journal does at a store that renames: a directory of this machine, changed by others meanwhile, too."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alluxio_like import errors
from alluxio_like.master.core.following import Plan
from alluxio_like.master.core.journal import Op, Step
from alluxio_like.master.following_store import Done, StoreFollower
from alluxio_like.types import Fingerprint, InodeId, MountId
from alluxio_like.ufs.open import open_ufs
from alluxio_like.ufs.writing import WritableUfs, get_writable, make_directories


@pytest.fixture
async def ufs(tmp_path: Path) -> AsyncIterator[WritableUfs]:
    (tmp_path / "store").mkdir()
    made = get_writable(open_ufs(f"file://{tmp_path}/store", {}, secrets={}, on_request=lambda _: None, io_timeout_s=20))
    yield made
    await made.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def carry_out(ufs: WritableUfs, op: Op, source: str, target: str = "", **more: Fingerprint | None) -> Done:
    follower = StoreFollower(ufs, await ufs.get_capabilities(), "cluster")
    return await follower.carry_out(Plan(Step(7, op, MountId(1), InodeId(2), source), source, target, **more))  # type: ignore[arg-type]


async def get_fingerprint(ufs: WritableUfs, key: str) -> Fingerprint | None:
    return (await ufs.stat(key)).fingerprint


async def test_a_file_is_moved_once(ufs: WritableUfs, root: Path) -> None:
    (root / "a").write_bytes(b"data")
    fingerprint = await get_fingerprint(ufs, "a")
    done = await carry_out(ufs, Op.SETTLE, "a", "b", fingerprint=fingerprint)
    assert done == Done(await get_fingerprint(ufs, "b"))
    assert await carry_out(ufs, Op.SETTLE, "a", "b", fingerprint=fingerprint) == done, "as after a kill"
    assert os.listdir(root) == ["b"]  # noqa: PTH208


async def test_what_others_have_put_in_its_place_stays(ufs: WritableUfs, root: Path) -> None:
    (root / "a").write_bytes(b"ours")
    (root / "b").write_bytes(b"theirs")
    fingerprint = await get_fingerprint(ufs, "a")
    taken = Done(is_taken=True, there=await get_fingerprint(ufs, "b"))
    assert await carry_out(ufs, Op.SETTLE, "a", "b", fingerprint=fingerprint) == taken
    assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (b"ours", b"theirs")
    assert await carry_out(ufs, Op.DELETE, "b", expected=fingerprint) == Done(foreign=True)
    assert (root / "b").exists()
    done = await carry_out(ufs, Op.SETTLE, "a", "b", fingerprint=fingerprint, expected=await get_fingerprint(ufs, "b"))
    assert done.stored == await get_fingerprint(ufs, "b")
    assert (root / "b").read_bytes() == b"ours"


async def test_a_file_that_others_have_taken_away_is_no_longer_moved(ufs: WritableUfs, root: Path) -> None:
    (root / "a").write_bytes(b"data")
    fingerprint = await get_fingerprint(ufs, "a")
    (root / "a").unlink()
    assert await carry_out(ufs, Op.SETTLE, "a", "b", fingerprint=fingerprint) == Done()
    (root / "a").write_bytes(b"something else")
    assert await carry_out(ufs, Op.SETTLE, "a", "b", fingerprint=fingerprint) == Done(foreign=True)


async def test_directories_that_others_have_removed_are_made_again(ufs: WritableUfs, root: Path) -> None:
    (root / "a").write_bytes(b"data")
    (root / "d").mkdir()
    fingerprint = await get_fingerprint(ufs, "a")
    done = await carry_out(ufs, Op.SETTLE, "a", "x/y/b", fingerprint=fingerprint)
    assert done.stored is not None
    assert (root / "x" / "y" / "b").read_bytes() == b"data"
    assert await carry_out(ufs, Op.SETTLE, "d/", "v/w/d/") == Done()
    assert (root / "v" / "w" / "d").is_dir()
    assert await carry_out(ufs, Op.MAKE_DIRECTORY, "m/n/o/") == Done()
    assert (root / "m" / "n" / "o").is_dir()
    await make_directories(ufs, "m/p/file")
    assert (root / "m" / "p").is_dir()


async def test_directories_are_moved_made_and_removed_once(ufs: WritableUfs, root: Path) -> None:
    for _ in range(2):
        assert await carry_out(ufs, Op.MAKE_DIRECTORY, "d/") == Done()
    (root / "d" / "x").write_bytes(b"x")
    assert await carry_out(ufs, Op.REMOVE_DIRECTORY, "d/") == Done(foreign=True)
    for _ in range(2):
        assert await carry_out(ufs, Op.SETTLE, "d/", "e/") == Done()
    assert (root / "e" / "x").read_bytes() == b"x"
    (root / "f").mkdir()
    (root / "f" / "theirs").write_bytes(b"x")
    assert await carry_out(ufs, Op.SETTLE, "e/", "f/") == Done(is_taken=True)
    (root / "e" / "x").unlink()
    for _ in range(2):
        assert await carry_out(ufs, Op.REMOVE_DIRECTORY, "e/") == Done()


async def test_a_file_in_the_place_of_a_directory_is_said(ufs: WritableUfs, root: Path) -> None:
    (root / "d").write_bytes(b"x")
    with pytest.raises(errors.AlreadyExists, match="move it away"):
        await carry_out(ufs, Op.MAKE_DIRECTORY, "d/")
