"""What a reader sees on a real mount (the daemon over a tree in memory)."""

import errno
import fcntl
import json
import mmap
import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers.processes import become

pytestmark = pytest.mark.mount

Make = Callable[..., Any]
READS = {"fill_at_open_bytes": 0, "fill_in_background": False}
"""With these, reads come to the daemon in every session."""


def test_reads_what_is_there(mount: Make) -> None:
    path = mount().path
    assert (path / "hello.txt").read_bytes() == b"hello, world\n"
    assert (path / "empty").read_bytes() == b""
    assert (path / "dir" / "sub" / "deep.bin").read_bytes() == bytes(range(256)) * 40
    assert sorted(os.listdir(path)) == ["dir", "empty", "hello.txt"]
    with pytest.raises(FileNotFoundError):
        (path / "nothing").read_bytes()


@pytest.mark.parametrize("never_now", [False, True])
def test_large_file_is_read_right_at_any_place(mount: Make, never_now: bool) -> None:
    size = (5 << 20) + 4321
    path = mount(big_files={"/big": size}, never_now=never_now).path / "big"
    data = path.read_bytes()
    assert len(data) == size
    words = [int.from_bytes(data[at : at + 8], "big") for at in range(0, size - 8, 8)]
    assert words == list(range(size, size + len(words)))
    with open(path, "rb") as file:
        for offset in (1, 4095, 1 << 20, (1 << 20) + 7, size - 3, size, size + 10):
            assert os.pread(file.fileno(), 5000, offset) == data[offset : offset + 5000]
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[3 << 20 : (3 << 20) + 100] == data[3 << 20 : (3 << 20) + 100]
            assert mapped[-10:] == data[-10:]


def test_attributes(mount: Make) -> None:
    path = mount().path
    deep = os.stat(path / "dir" / "sub" / "deep.bin")
    assert stat.S_IMODE(deep.st_mode) == 0o644
    assert stat.S_ISREG(deep.st_mode)
    assert deep.st_size == 10240
    assert deep.st_mtime_ns == 1_700_000_000_123_456_789
    assert stat.S_IMODE(os.stat(path / "dir").st_mode) == 0o755
    assert len({os.stat(path / name).st_ino for name in ("dir", "empty", "hello.txt")}) == 3


def test_blocks_cover_the_size_and_holes_are_not_shown(mount: Make) -> None:
    path = mount().path / "dir" / "sub" / "deep.bin"
    info = os.stat(path)
    assert info.st_blocks * 512 >= info.st_size
    with open(path, "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == info.st_size
        assert os.lseek(file.fileno(), 100, os.SEEK_DATA) == 100
        with pytest.raises(OSError, match="No such device") as caught:
            os.lseek(file.fileno(), info.st_size, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO


def test_copies_have_no_holes(mount: Make, tmp_path: Path) -> None:
    made = mount(big_files={"/big": 3_000_001})
    subprocess.run(["cp", "--sparse=auto", made.path / "big", tmp_path / "copy"], check=True)
    assert (tmp_path / "copy").read_bytes() == (made.path / "big").read_bytes()
    subprocess.run(["tar", "-S", "-C", made.path, "-cf", tmp_path / "a.tar", "big", "dir"], check=True)
    out = subprocess.run(["tar", "-xOf", tmp_path / "a.tar", "big"], check=True, capture_output=True).stdout
    assert out == (made.path / "big").read_bytes()


def test_part_of_the_namespace_can_be_mounted(mount: Make) -> None:
    path = mount(path="/dir").path
    assert os.listdir(path) == ["sub"]
    assert (path / "sub" / "deep.bin").stat().st_size == 10240
    assert stat.S_ISDIR(os.stat(path).st_mode)


def test_large_directory_lists_once_and_whole(mount: Make) -> None:
    path = mount(many={"/many": 100_000}).path / "many"
    names = os.listdir(path)
    assert len(names) == 100_000
    assert len(set(names)) == 100_000
    assert names[0] == "sample-0000000.bin"
    with os.scandir(path) as entries:
        assert sum(1 for entry in entries if entry.is_file() and entry.stat().st_size == 10) == 100_000


def test_dots_and_rewind(mount: Make) -> None:
    path = mount(many={"/many": 2500}).path
    listed = subprocess.run(["ls", "-ai", path / "dir"], check=True, capture_output=True, text=True).stdout.split()
    numbers = dict(zip(listed[1::2], listed[::2], strict=True))
    assert numbers["."] == str(os.stat(path / "dir").st_ino)
    assert numbers[".."] == str(os.stat(path).st_ino)
    descriptor = os.open(path / "many", os.O_RDONLY)
    try:
        first = os.listdir(descriptor)
        assert os.listdir(descriptor) == first
        assert len(first) == 2500
    finally:
        os.close(descriptor)


def test_odd_names(mount: Make) -> None:
    made = mount()
    names = [b"\xff\xfe not utf-8", "Grüße 🎉".encode(), b"new\nline", b" ", b"x" * 255, b"back\\slash", b".hidden"]
    for name in names:
        made.do("add_raw_name", name=name.hex())
    directory = os.fsencode(made.path / "dir")
    assert set(names) <= set(os.listdir(directory))
    for name in names:
        with open(directory + b"/" + name, "rb") as file:
            assert file.read() == b"odd"
    with pytest.raises(OSError, match="too long") as caught:
        os.stat(directory + b"/" + b"y" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_statfs_is_never_full(mount: Make) -> None:
    made = mount(big_files={"/big": 1 << 33})
    info = os.statvfs(made.path)
    assert info.f_bavail * info.f_frsize >= 1 << 50
    assert (info.f_blocks - info.f_bfree) * info.f_frsize >= 1 << 33
    assert info.f_favail > 1 << 30
    assert info.f_namemax == 255


def test_extended_attributes(mount: Make) -> None:
    path = mount().path / "hello.txt"
    assert os.listxattr(path) == [], "what copies attributes is not to copy ours"
    assert os.getxattr(path, "user.alluxio_like.cached") == b"13"
    assert os.getxattr(path, "user.alluxio_like.version") == b"1"
    assert os.getxattr(path, "user.alluxio_like.locations") == b"127.0.0.1:1=13"
    for name in ("user.other", "security.capability", "user.alluxio_like.none"):
        with pytest.raises(OSError, match="No data") as caught:
            os.getxattr(path, name)
        assert caught.value.errno == errno.ENODATA
    # `ls -l` asks no further file system's file for its label after that.
    with pytest.raises(OSError, match="not supported") as caught:
        os.getxattr(path, "security.selinux")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert os.getxattr(path.parent, "user.alluxio_like.session")
    assert os.listxattr(path.parent) == os.listxattr(path.parent / "dir") == []


def test_permissions_are_those_of_the_caller(mount: Make) -> None:
    made = mount(entry_timeout_s=0.0)
    made.do("set_owner", path="/hello.txt", uid=1234, gid=4321, mode=0o640)

    def read_as(uid: int, gid: int) -> int:
        code = "import sys; open(sys.argv[1], 'rb').read()"
        command = ["/usr/bin/python3", "-c", code, made.path / "hello.txt"]
        # pytest's directory is root's alone; the mount's own permissions are what is tried.
        for parent in (made.path.parent, *made.path.parent.parents):
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o055)
        return subprocess.run([*become(uid, gid), *command], capture_output=True, check=False).returncode

    assert read_as(1234, 9999) == 0
    assert read_as(9999, 4321) == 0
    assert read_as(9999, 9999) == 1
    info = os.stat(made.path / "hello.txt")
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (1234, 4321, 0o640)


def test_replaced_file_is_another_inode_and_the_old_handle_keeps_its_bytes(mount: Make) -> None:
    made = mount(entry_timeout_s=0.0)
    made.do("add_file", path="/f", text="old content")
    with open(made.path / "f", "rb") as old:
        before = os.fstat(old.fileno()).st_ino
        assert old.read(3) == b"old"
        made.do("add_file", path="/f", text="new")
        assert (made.path / "f").read_bytes() == b"new"
        assert os.stat(made.path / "f").st_ino != before
        old.seek(0)
        assert old.read() == b"old content"  # from the kernel's cache


def test_gone_content_is_stale_and_the_next_open_sees_the_replacement(mount: Make) -> None:
    made = mount(entry_timeout_s=60.0, valid_s=60.0, fuse=READS)
    made.do("add_file", path="/f", text="old content")
    path = made.path / "f"
    with open(path, "rb", buffering=0) as old:
        made.do("add_file", path="/f", text="new")
        with pytest.raises(OSError, match="Stale") as caught:
            old.read()
        assert caught.value.errno == errno.ESTALE
        # The kernel still believes the old name for a minute; the refused open makes it ask again.
        assert path.read_bytes() == b"new"


def test_gone_content_is_told_to_the_kernel(mount: Make) -> None:
    made = mount(entry_timeout_s=60.0, valid_s=60.0, fuse=READS)
    made.do("add_file", path="/dir/f", text="old content")
    path = made.path / "dir" / "f"
    with open(path, "rb", buffering=0) as old:
        made.do("add_file", path="/dir/f", text="new")
        assert os.stat(path).st_size == 11
        with pytest.raises(OSError, match="Stale"):
            old.read()
        end = time.monotonic() + 60
        while os.stat(path).st_size != 3:
            assert time.monotonic() < end, "the kernel still believes the old name"
            time.sleep(0.02)


def test_locks_work_among_the_processes_of_a_mount(mount: Make) -> None:
    path = mount().path / "hello.txt"
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'rb'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        assert subprocess.run([sys.executable, "-c", code, path], stderr=subprocess.DEVNULL, check=False).returncode == 1
        fcntl.flock(file, fcntl.LOCK_UN)
        assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 0


def test_metrics_count_the_kernels_requests(mount: Make) -> None:
    made = mount(fuse=READS)
    (made.path / "hello.txt").read_bytes()
    with pytest.raises(FileNotFoundError):
        os.stat(made.path / "nothing")
    with open(made.path / "empty", "rb"):
        address = json.loads((made.path.parent / "ready").read_text())["http_address"]
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=60).read().decode()
    assert 'alluxio_like_fuse_requests_total{op="read"} 1.0' in text
    assert "alluxio_like_fuse_open_handles 1.0" in text
    assert 'alluxio_like_fuse_seconds_count{op="open"} 2.0' in text
    assert urllib.request.urlopen(f"http://{address}/healthz", timeout=60).status == 200


def test_health_says_whether_programs_find_the_mount(mount: Make) -> None:
    made = mount()
    address = json.loads((made.path.parent / "ready").read_text())["http_address"]
    health = f"http://{address}/healthz"
    assert json.loads(urllib.request.urlopen(health, timeout=60).read())["mounted"] is True
    with open(made.path / "hello.txt", "rb"):
        # The daemon lives on for who has a file open; others find an empty directory.
        subprocess.run(["umount", "-l", made.path], check=True)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(health, timeout=60)
        with caught.value as answer:
            assert answer.code == 503
            assert json.loads(answer.read())["mounted"] is False
