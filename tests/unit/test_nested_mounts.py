"""What is mounted on directories of a mount, as mountinfo tells it."""

import errno
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.fuse.nested import NestedMounts, find_nested

LINES = b"""\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 21 0:50 / /mnt/data rw,nosuid - fuse.alluxio_like alluxio-like rw
41 40 0:60 / /mnt/data/a/b\\040c rw - tmpfs none rw
42 21 0:50 /train /srv/train rw - fuse.alluxio_like alluxio-like rw
43 42 0:61 / /srv/train/scratch rw - tmpfs none rw
44 41 0:62 / /mnt/data/a/b\\040c/within rw - tmpfs none rw
45 40 0:63 / /mnt/data rw - tmpfs over-the-root rw
46 21 0:64 / /mnt/data-2/x rw - tmpfs none rw
47 42 0:50 /val /srv/train/val rw - fuse.alluxio_like alluxio-like rw
"""


def test_paths_are_those_in_the_file_system() -> None:
    assert find_nested(LINES, b"0:50") == {(b"a", b"b c"), (b"train", b"scratch"), (b"train", b"val")}
    assert find_nested(LINES, b"0:61") == frozenset()
    assert find_nested(LINES, b"") == frozenset()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_what_comes_and_goes_here_is_known_at_once(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    found = tmp_path.stat().st_dev
    nested = NestedMounts(f"{os.major(found)}:{os.minor(found)}")
    try:
        assert nested.list_steps() == frozenset()
        (tmp_path / "a/b").mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "a/b"], check=True)
        assert nested.list_steps() == {(b"a", b"b")}
        subprocess.run(["umount", tmp_path / "a/b"], check=True)
        assert nested.list_steps() == frozenset()
    finally:
        nested.close()
        subprocess.run(["umount", "-R", tmp_path], check=True)


def test_what_was_seen_elsewhere_stays_known_while_there_are_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for process, inode in (("self", 1), ("77", 2)):
        (tmp_path / process / "ns").mkdir(parents=True)
        (tmp_path / process / "ns" / "mnt").write_text(str(inode))
    (tmp_path / "self" / "mountinfo").write_bytes(b"")
    (tmp_path / "77" / "mountinfo").write_bytes(LINES)
    monkeypatch.setattr("alluxio_like.fuse.nested._LOOK_S", 0.01)
    monkeypatch.setattr("alluxio_like.fuse.nested._LOOK_PART", 1.0)
    looks, list_names, read_bytes = [0], os.listdir, Path.read_bytes
    looked = threading.Semaphore(0)

    def list_or_fail(path: Any) -> list[str]:
        looks[0] += 1
        looked.release()
        if looks[0] == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return list_names(path)

    def read_or_fail(path: Path) -> bytes:
        if path.parent.name == "77" and looks[0] == 3:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return read_bytes(path)

    monkeypatch.setattr(os, "listdir", list_or_fail)
    monkeypatch.setattr(Path, "read_bytes", read_or_fail)
    nested = NestedMounts("0:50", tmp_path)
    try:
        known = {(b"a", b"b c"), (b"train", b"scratch"), (b"train", b"val")}
        # (When one look begins the one before has been noted.)
        for number in range(1, 6):
            assert looked.acquire(timeout=60)
            assert number == 1 or nested.list_steps() == known
        (tmp_path / "77" / "mountinfo").write_bytes(b"")
        assert looked.acquire(timeout=60)
        assert looked.acquire(timeout=60)
        assert looked.acquire(timeout=60)
        assert nested.list_steps() == frozenset()
    finally:
        nested.close()
