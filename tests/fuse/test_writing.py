"""Writing through the kernel session, over a tree in memory: what programs see on one mount, with and without passthrough."""

import ctypes
import errno
import json
import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.fuse import libc
from tests.fuse.test_mount_recalls import has_epoch
from tests.servers.net import wait_until
from tests.servers.processes import freeze, get_state

pytestmark = [pytest.mark.mount, pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session")]

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
PUNCH_HOLE_KEEP_SIZE = 3
MS_REMOUNT = 32
LOOKS = 'alluxio_like_fuse_requests_total{op="getattr"}'
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(params=["kernel-reads", "kernel"])
def session(request: pytest.FixtureRequest) -> str:
    """The sessions that write."""
    return str(request.param)


@pytest.fixture
def place(mount: Callable[..., Any], tmp_path: Path) -> Iterator[Path]:
    """A mount that can be written, by anybody."""
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(directory.stat().st_mode | 0o711)
    (tmp_path / "drafts").mkdir()
    made = mount(write_dir=str(tmp_path / "drafts"))
    made.path.parent.chmod(0o755)
    yield made.path
    # A file's last close is told a moment after it.
    wait_until("the drafts' end", lambda: not list((tmp_path / "drafts").iterdir()), timeout_s=60)


def rename(source: Path, target: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(target), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def run_as_other(script: str) -> None:
    """Run a shell script as a user without any rights."""
    subprocess.run(["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "sh", "-c", script], check=True)


def get_version(path: Path) -> int:
    return int(os.getxattr(path, "user.alluxio_like.version"))


def test_a_file_is_created_written_read_and_appended_to(place: Path) -> None:
    file = place / "a"
    file.write_bytes(b"hello")
    assert (file.read_bytes(), file.stat().st_size) == (b"hello", 5)
    with file.open("ab") as out:
        out.write(b" world")
    assert file.read_bytes() == b"hello world"
    large = os.urandom((3 << 20) + 5)
    (place / "large").write_bytes(large)
    assert (place / "large").read_bytes() == large
    shutil.copy(place / "large", place / "copy")
    assert (place / "copy").read_bytes() == large
    assert sorted(os.listdir(place)) == ["a", "copy", "dir", "empty", "hello.txt", "large"]


def test_whether_a_new_file_may_be_opened_is_not_asked_once_more(place: Path) -> None:
    """The kernel would, by a GETATTR, since what is written is not to be remembered; one of the directory stays for each file."""
    address = json.loads((place.parent / "ready").read_text())["http_address"]

    def count() -> float:
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=60).read().decode()
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(LOOKS)), 0.0)

    # (What was told is good for a tick of the kernel: on a busy machine some are asked for nevertheless.)
    asked = []
    for attempt in range(5):
        before = count()
        for number in range(30):
            os.close(os.open(place / f"f{attempt}-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        asked.append(count() - before)
    assert min(asked) < 45, asked
    fd = os.open(place / "mapped", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 10)
    with mmap.mmap(fd, 10) as mapped:
        mapped[:] = b"0123456789"
        os.pwrite(fd, b"more", 10)
        assert (os.fstat(fd).st_size, (place / "mapped").stat().st_size) == (14, 14), "what changes shows at once"
    os.close(fd)


def test_what_is_being_written_is_seen_at_once_by_all_who_have_it_open(place: Path) -> None:
    file = place / "dir/sub/deep.bin"
    before = file.read_bytes()
    with file.open("rb", buffering=0) as early:
        assert early.read(10) == before[:10]
        with file.open("r+b", buffering=0) as out:
            out.write(b"NEW")
            early.seek(0)
            assert early.read(4) == b"NEW" + before[3:4]
            with file.open("rb") as late:
                assert late.read() == b"NEW" + before[3:]
            out.truncate(2)
            assert (os.fstat(early.fileno()).st_size, file.stat().st_size) == (2, 2)
            os.lseek(out.fileno(), 0, os.SEEK_END)
            out.write(b"!")
            assert file.read_bytes() == b"NE!"
        early.seek(0)
        assert early.read() == b"NE!"
    assert file.read_bytes() == b"NE!"


def test_truncation_by_name_by_descriptor_and_at_the_open(place: Path) -> None:
    file = place / "f"
    file.write_bytes(b"0123456789")
    os.truncate(file, 4)
    assert file.read_bytes() == b"0123"
    os.truncate(file, 6)
    assert file.read_bytes() == b"0123\0\0"
    with file.open("r+b") as out:
        out.truncate(3)
        assert os.fstat(out.fileno()).st_size == 3
    assert file.read_bytes() == b"012"
    file.open("wb").close()
    assert file.stat().st_size == 0
    (place / "hello.txt").write_bytes(b"x")
    assert (place / "hello.txt").read_bytes() == b"x"


def test_a_close_seals_what_was_written_and_nothing_else(place: Path) -> None:
    file = place / "f"
    file.write_bytes(b"1")
    version = get_version(file)
    with file.open("r+b"):
        pass
    assert get_version(file) == version
    fd = os.open(file, os.O_WRONLY)
    os.write(fd, b"2")
    os.close(os.dup(fd))
    assert get_version(file) == version + 1
    os.close(os.dup(fd))
    os.close(fd)
    assert get_version(file) == version + 1


def test_names_that_are_there_and_those_that_are_not(place: Path) -> None:
    os.close(os.open(place / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with pytest.raises(FileExistsError):
        os.open(place / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with pytest.raises(FileExistsError):
        (place / "dir").mkdir()
    with pytest.raises(FileNotFoundError):
        (place / "nothing").unlink()
    with pytest.raises(IsADirectoryError):
        os.open(place / "dir", os.O_WRONLY)
    with pytest.raises(OSError) as caught:
        (place / ("x" * 256)).write_bytes(b"")
    assert caught.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError) as caught:
        (place / "dir").rmdir()
    assert caught.value.errno == errno.ENOTEMPTY


def test_directories_links_and_renames(place: Path) -> None:
    (place / "new").mkdir(0o750)
    assert stat.S_IMODE((place / "new").stat().st_mode) == 0o750
    (place / "f").write_bytes(b"content")
    os.link(place / "f", place / "new/other")
    assert ((place / "f").stat().st_nlink, (place / "new/other").stat().st_ino) == (2, (place / "f").stat().st_ino)
    os.symlink("f", place / "link")
    assert (os.readlink(place / "link"), (place / "link").read_bytes()) == ("f", b"content")
    (place / "g").write_bytes(b"another")
    (place / "f").rename(place / "g")
    assert not (place / "f").exists()
    assert (place / "g").read_bytes() == b"content"
    with pytest.raises(FileExistsError):
        rename(place / "g", place / "hello.txt", RENAME_NOREPLACE)
    rename(place / "g", place / "hello.txt", RENAME_EXCHANGE)
    assert ((place / "hello.txt").read_bytes(), (place / "g").read_bytes()) == (b"content", b"hello, world\n")
    (place / "new").rename(place / "dir/moved")
    assert (place / "dir/moved/other").read_bytes() == b"content"
    (place / "dir/moved/other").unlink()
    (place / "dir/moved").rmdir()
    assert os.listdir(place / "dir") == ["sub"]


def test_an_unlinked_file_goes_on_for_who_has_it_open(place: Path) -> None:
    with (place / "f").open("w+b", buffering=0) as file:
        file.write(b"before")
        (place / "f").unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b" and after")
        file.seek(0)
        assert file.read() == b"before and after"
        assert os.fstat(file.fileno()).st_size == 16
    with (place / "hello.txt").open("rb") as reading:
        (place / "hello.txt").unlink()
        assert reading.read() == b"hello, world\n"


def test_shared_mappings_write(place: Path) -> None:
    fd = os.open(place / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8192)
    with mmap.mmap(fd, 8192) as mapping:
        mapping[:4], mapping[5000:5004] = b"here", b"HERE"
        mapping.flush()
    os.close(fd)
    wanted = bytearray(8192)
    wanted[:4], wanted[5000:5004] = b"here", b"HERE"
    assert (place / "f").read_bytes() == wanted


def test_sparse_files_and_fallocate(place: Path) -> None:
    fd = os.open(place / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x" * 4096, 1 << 20)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
    with pytest.raises(OSError) as caught:
        os.lseek(fd, 2 << 20, os.SEEK_DATA)
    assert caught.value.errno == errno.ENXIO
    fallocate(fd, 0, 0, 3 << 20)
    assert os.fstat(fd).st_size == 3 << 20
    assert os.fstat(fd).st_blocks * 512 >= 3 << 20
    fallocate(fd, PUNCH_HOLE_KEEP_SIZE, 0, 3 << 20)
    assert os.fstat(fd).st_blocks * 512 < 1 << 20
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    assert (place / "f").read_bytes() == bytes(3 << 20)


def test_a_range_is_copied_between_files(place: Path) -> None:
    data = os.urandom(2 << 20)
    (place / "from").write_bytes(data)
    source, target = os.open(place / "from", os.O_RDONLY), os.open(place / "to", os.O_WRONLY | os.O_CREAT)
    assert os.copy_file_range(source, target, 1 << 20, 1000, 0) == 1 << 20
    os.close(source)
    os.close(target)
    assert (place / "to").read_bytes() == data[1000 : 1000 + (1 << 20)]


def test_attributes_are_set(place: Path) -> None:
    file = place / "f"
    file.write_bytes(b"x")
    file.chmod(0o604)
    os.chown(file, 5, 6)
    os.utime(file, ns=(1_000_000_001, -5))
    found = file.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o604, 5, 6)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_001, -5)
    with file.open("r+b") as out:
        out.write(b"y")
        out.flush()
        os.utime(out.fileno(), ns=(7, 8))
        assert os.fstat(out.fileno()).st_mtime_ns == 8
    assert file.stat().st_mtime_ns == 8
    os.setxattr(file, "user.mine", b"1")
    assert os.getxattr(file, "user.mine") == b"1"
    assert "user.mine" in os.listxattr(file)
    with pytest.raises(FileExistsError):
        os.setxattr(file, "user.mine", b"2", os.XATTR_CREATE)
    os.removexattr(file, "user.mine")
    with pytest.raises(OSError) as caught:
        os.getxattr(file, "user.mine")
    assert caught.value.errno == errno.ENODATA
    # Ours are shown and not kept: a copier that carries all attributes need not fail at them.
    before = os.getxattr(file, "user.alluxio_like.version")
    os.setxattr(file, "user.alluxio_like.version", b"9")
    assert os.getxattr(file, "user.alluxio_like.version") == before
    os.mkfifo(place / "pipe")
    assert stat.S_ISFIFO((place / "pipe").stat().st_mode)
    os.mknod(place / "regular", 0o644 | stat.S_IFREG)
    assert (place / "regular").read_bytes() == b""


def test_times_beyond_those_that_are_kept_are_the_last_of_them(place: Path) -> None:
    (place / "f").touch()
    for seconds in (1 << 34, 1 << 62):
        os.utime(place / "f", (seconds, seconds))
        assert (place / "f").stat().st_mtime_ns == (1 << 63) - 1
    os.utime(place / "f", (-(1 << 62), -1))
    assert ((place / "f").stat().st_atime_ns, (place / "f").stat().st_mtime_ns) == (1 - (1 << 63), -(10**9))


def test_reading_changes_no_times(place: Path) -> None:
    (place / "f").write_bytes(b"x")
    os.utime(place / "f", ns=(1, 2))
    assert (place / "f").read_bytes() == b"x"
    assert ((place / "f").stat().st_atime_ns, (place / "f").stat().st_mtime_ns) == (1, 2)


def test_who_writes_owns_it_and_takes_set_id_bits_away(place: Path) -> None:
    place.chmod(0o777)
    (place / "f").write_bytes(b"abc")
    (place / "f").chmod(0o6777)
    run_as_other(f"echo x >> {place}/f; echo y > {place}/theirs")
    assert (stat.S_IMODE((place / "f").stat().st_mode), (place / "f").read_bytes()) == (0o777, b"abcx\n")
    assert ((place / "theirs").stat().st_uid, (place / "theirs").stat().st_gid) == (1000, 1000)
    (place / "f").chmod(0o4777)
    with (place / "f").open("r+b") as out:
        out.write(b"z")
    assert stat.S_IMODE((place / "f").stat().st_mode) == 0o4777
    run_as_other(f": > {place}/f")
    assert stat.S_IMODE((place / "f").stat().st_mode) == 0o777
    (place / "f").chmod(0o600)
    with pytest.raises(subprocess.CalledProcessError):
        run_as_other(f"echo x >> {place}/f")


def test_many_append_to_one_file_and_nothing_is_lost(place: Path) -> None:
    def append(letter: bytes) -> None:
        with (place / "log").open("ab", buffering=0) as out:
            for _ in range(100):
                out.write(letter * 10)

    threads = [threading.Thread(target=append, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = (place / "log").read_bytes()
    assert sorted(found[place : place + 10] for place in range(0, 3000, 10)) == sorted(
        [letter * 10 for letter in (b"a", b"b", b"c") for _ in range(100)]
    )


def test_what_a_killed_writer_wrote_is_sealed(mount: Callable[..., Any], tmp_path: Path) -> None:
    """Its FLUSH and the interruption of that come in one go when the daemon stands still as it is killed."""
    (tmp_path / "drafts").mkdir()
    made = mount(write_dir=str(tmp_path / "drafts"))
    script = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
os.write(fd, b"written")
print(flush=True)
os.read(0, 1)
"""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", script, made.path / "f"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        freeze(made.process.pid)
        try:
            writer.kill()
            wait_until("the close waits", lambda: get_state(writer.pid) == "D", timeout_s=60)
        finally:
            made.process.send_signal(signal.SIGCONT)
    wait_until("the draft's end", lambda: not list((tmp_path / "drafts").iterdir()), timeout_s=60)
    assert (made.path / "f").read_bytes() == b"written"


@pytest.mark.skipif(not has_epoch(), reason="the kernel cannot be told of all names at once")
def test_names_of_a_change_that_failed_are_not_relied_on(mount: Callable[..., Any], tmp_path: Path) -> None:
    """It may have been made: an open of the old name, to write it anew, emptied the file that had the new one."""
    (tmp_path / "drafts").mkdir()
    made = mount(write_dir=str(tmp_path / "drafts"), entry_timeout_s=3600.0, valid_s=3600.0)
    (made.path / "old").write_bytes(b"content")
    assert (made.path / "old").stat().st_size == 7
    made.do("fail", what="fail_changes", code="unavailable")
    with pytest.raises(OSError, match=r"Input/output error"):
        (made.path / "old").rename(made.path / "new")
    with pytest.raises(FileNotFoundError):
        (made.path / "old").open("r+b")
    made.do("lift")
    (made.path / "old").write_bytes(b"another")
    assert ((made.path / "old").read_bytes(), (made.path / "new").read_bytes()) == (b"another", b"content")


@pytest.mark.skipif(not has_epoch(), reason="the kernel cannot be told of all names at once")
def test_what_a_killed_program_has_begun_to_make_is_seen(mount: Callable[..., Any], tmp_path: Path) -> None:
    """The kernel was told that nothing came of it, and knew for an hour that there is no such name."""
    (tmp_path / "drafts").mkdir()
    made = mount(write_dir=str(tmp_path / "drafts"), entry_timeout_s=3600.0, valid_s=3600.0)
    made.do("stall", what="stall_creates")
    with subprocess.Popen([sys.executable, "-c", "import os, sys; os.mkdir(sys.argv[1])", made.path / "new"]) as program:
        wait_until("the mkdir", lambda: made.do("counts").get("create"), timeout_s=60)
        program.kill()
    with pytest.raises(FileNotFoundError):
        (made.path / "new").stat()
    made.do("lift")
    wait_until("the directory", lambda: (made.path / "new").is_dir(), timeout_s=60)


def test_a_mount_that_is_to_change_nothing_does_not(mount: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "drafts").mkdir()
    made = mount(write_dir=str(tmp_path / "drafts"), fuse={"read_only": True})
    with pytest.raises(OSError) as caught:
        (made.path / "new").write_bytes(b"")
    assert caught.value.errno == errno.EROFS
    libc.mount("", made.path, "", MS_REMOUNT)
    with pytest.raises(OSError) as caught:
        (made.path / "new").write_bytes(b"")
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize("call", ["open", "truncate"])
def test_a_program_that_runs_is_not_written_by_another_node_id(
    mount: Callable[..., Any], tmp_path: Path, session: str, call: str
) -> None:
    """What runs was opened before all of it was here; what is opened now passes through, on another node id."""
    (tmp_path / "drafts").mkdir()
    made = mount(write_dir=str(tmp_path / "drafts"), fuse={"fill_in_background": False, "fill_at_open_bytes": 0})
    path = made.path / "program"
    made.do("add_copy", path="/program", of="/bin/sleep")
    path.chmod(0o755)
    calls: dict[str, Callable[[], object]] = {
        "open": lambda: os.close(os.open(path, os.O_WRONLY)),
        "truncate": lambda: os.truncate(path, 5),
    }
    running = subprocess.Popen([path, "60"])
    try:
        made.do("complete", path="/program")
        with open(path, "rb"), pytest.raises(OSError, match="Text file busy"):
            calls[call]()
    finally:
        running.kill()
        running.wait(60)
    calls[call]()
