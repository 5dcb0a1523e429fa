"""Quotas on a mount: what is counted, what is refused with EDQUOT, what df shows, and that all of it outlives the master."""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.writing import wait_until
from tests.servers.stack import Stack, start_stack

pytestmark = pytest.mark.mount

MIB = 1 << 20


@pytest.fixture
def stack(workplace: Path) -> Iterator[Stack]:
    (workplace / "store" / "known").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (workplace / "store" / "known" / name).write_bytes(b"x" * 1000)
    with start_stack(workplace, {"/": f"file://{workplace}/store"}, {}, "--workers", "1", "-o", "write=through") as made:
        yield made


def set_quota(stack: Stack, path: Path | str, *limits: str) -> dict[str, object]:
    stack.run_command("alluxio-like", "quota", "set", str(path), *limits)
    return wait_counted(stack, path)


def wait_counted(stack: Stack, path: Path | str) -> dict[str, object]:
    """A path's innermost quota, once all is counted."""

    def look() -> dict[str, object] | None:
        found = stack.run_command("alluxio-like", "quota", "list", str(path))[-1]
        return None if found["counting"] else dict(found)

    found = wait_until(look, "everything is counted")
    assert isinstance(found, dict)
    return found


def get_used(stack: Stack, path: Path | str) -> tuple[object, object]:
    found = wait_counted(stack, path)
    return found["used_files"], found["used_bytes"]


def get_errno(call: object, *arguments: object) -> int:
    assert callable(call)
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return caught.value.errno or 0


def test_files_and_bytes_are_counted_and_refused(stack: Stack) -> None:
    place = stack.mountpoint
    ann = place / "ann"
    ann.mkdir()
    (ann / "before").write_bytes(b"b" * 500)
    assert set_quota(stack, ann, "--bytes", "2MiB", "--files", "5") | {"path": ""} == {
        "path": "", "max_bytes": 2 * MIB, "max_files": 5, "used_bytes": 500, "used_files": 1, "counting": False,
    }  # fmt: skip
    # Files.
    for name in ("1", "2", "3"):
        (ann / name).touch()
    (ann / "d").mkdir()
    assert get_errno((ann / "e").mkdir) == errno.EDQUOT
    assert get_errno((ann / "d" / "f").touch) == errno.EDQUOT
    (place / "outside").write_bytes(b"o" * 100)
    assert get_errno(os.rename, place / "outside", ann / "outside") == errno.EDQUOT
    os.rename(place / "outside", ann / "3")  # noqa: PTH104 - over what is there
    os.link(ann / "3", ann / "d" / "3")
    assert get_used(stack, ann) == (5, 600)
    (ann / "1").unlink()
    (ann / "d" / "f").touch()
    os.rename(ann / "2", place / "2")  # noqa: PTH104 - the call itself
    # Bytes: what is written up to the limit is there, and not more.
    with open(ann / "big", "wb", buffering=0) as file:
        file.write(b"n" * MIB)
        with pytest.raises(OSError, match="quota") as caught:
            for _ in range(16):
                file.write(b"n" * MIB)
        assert caught.value.errno == errno.EDQUOT
        assert get_errno(os.ftruncate, file.fileno(), 100 * MIB) == errno.EDQUOT
        os.fsync(file.fileno())
    assert (ann / "big").read_bytes() == b"n" * MIB
    assert get_used(stack, ann) == (5, MIB + 600)
    # What takes something away always works.
    os.truncate(ann / "big", 10)
    assert get_used(stack, ann) == (5, 610)
    found = os.statvfs(ann / "d")
    assert (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize) == (2 * MIB, (2 * MIB - 610) // 4096 * 4096)
    assert (found.f_files, found.f_ffree) == (5, 0)
    assert os.statvfs(place).f_blocks * found.f_frsize > 2 * MIB
    stack.run_command("alluxio-like", "quota", "clear", str(ann))
    for number in range(10):
        (ann / f"more{number}").touch()
    again = stack.try_command("alluxio-like", "quota", "clear", str(ann))
    assert again.returncode == 1
    assert "quota list" in again.stderr
    # What was open before the quota goes on, is kept as it is, and is told so by close.
    late = open(ann / "late", "wb", buffering=0)  # noqa: SIM115 - its close is what fails
    set_quota(stack, ann, "--bytes", "1MiB")
    late.write(b"l" * 2 * MIB)
    assert get_errno(late.close) == errno.EDQUOT
    assert (ann / "late").read_bytes() == b"l" * 2 * MIB
    assert get_errno((ann / "never").touch) == errno.EDQUOT
    (ann / "late").unlink()
    (ann / "again").write_bytes(b"fits")


def test_all_quotas_above_hold_and_outlive_the_master(stack: Stack, workplace: Path) -> None:
    place = stack.mountpoint
    inner = place / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "one").write_bytes(b"1" * 10)
    set_quota(stack, place / "outer", "--files", "4")
    set_quota(stack, inner, "--bytes", "1GB")
    os.kill(stack.get_service_pids("master")[0], signal.SIGKILL)
    (inner / "two").write_bytes(b"2" * 20)
    (place / "outer" / "three").write_bytes(b"3" * 30)
    assert get_errno((inner / "four").touch) == errno.EDQUOT
    assert get_used(stack, inner) == (2, 30)
    assert get_used(stack, place / "outer") == (4, 60)
    # A directory that comes with all that is in it.
    (place / "tree").mkdir()
    (place / "tree" / "leaf").write_bytes(b"4" * 40)
    (inner / "one").unlink()
    os.rename(place / "tree", inner / "tree")  # noqa: PTH104 - the call itself
    assert wait_until(lambda: get_used(stack, inner) == (3, 60), "the tree is counted")
    os.rename(inner / "tree", place / "tree")  # noqa: PTH104 - the call itself
    assert get_used(stack, place / "outer") == (3, 50)
    # What the store lists counts, and is never refused.
    set_quota(stack, place / "known", "--files", "2")
    assert sorted(os.listdir(place / "known")) == ["a", "b", "c"]  # noqa: PTH208
    assert get_used(stack, place / "known") == (3, 3000)
    assert get_errno((place / "known" / "d").touch) == errno.EDQUOT
    (workplace / "store" / "known" / "a").unlink()
    stack.run_command("alluxio-like", "fs", "sync", "/known")
    assert get_used(stack, place / "known") == (2, 2000)
