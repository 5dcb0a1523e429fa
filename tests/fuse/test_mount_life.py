"""How mounts begin, fail and end (the daemon over a tree in memory)."""

import ctypes
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alluxio_like.fuse import mountpoint as places
from tests.servers.processes import freeze

pytestmark = pytest.mark.mount

Make = Callable[..., Any]

RENAME_EXCHANGE = 2
MS_REMOUNT = 32


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {limit_s} s: {what}")


def start_reader(path: Path) -> subprocess.Popen[bytes]:
    """A process that reads a file to its end; exit code 0, or the errno."""
    code = """if True:
        import sys
        try:
            open(sys.argv[1], 'rb').read()
        except OSError as error:
            sys.exit(error.errno)
    """
    return subprocess.Popen([sys.executable, "-S", "-c", code, str(path)])


def writes(root: Path) -> dict[str, Callable[[], object]]:
    """One attempt of each kind to change something."""
    file, directory, new = root / "hello.txt", root / "dir", root / "new"
    libc = ctypes.CDLL(None, use_errno=True)

    def mknod() -> None:
        os.mknod(new, 0o644)

    def exchange() -> None:
        old, other = os.fsencode(file), os.fsencode(root / "empty")
        if libc.renameat2(-100, old, -100, other, RENAME_EXCHANGE) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    return {
        "create": lambda: os.open(new, os.O_CREAT | os.O_WRONLY),
        "create exclusively": lambda: os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR),
        "open to write": lambda: os.open(file, os.O_WRONLY),
        "open to read and write": lambda: os.open(file, os.O_RDWR),
        "open to append": lambda: os.open(file, os.O_WRONLY | os.O_APPEND),
        "open to truncate": lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
        "truncate": lambda: os.truncate(file, 3),
        "chmod": lambda: file.chmod(0o600),
        "chown": lambda: os.chown(file, 1, 1),
        "utimes": lambda: os.utime(file, (1, 1)),
        "unlink": lambda: file.unlink(),
        "mkdir": lambda: new.mkdir(),
        "rmdir": lambda: (directory / "sub").rmdir(),
        "rename": lambda: file.rename(new),
        "exchange": exchange,
        "link": lambda: os.link(file, new),
        "symlink": lambda: new.symlink_to("hello.txt"),
        "mknod": mknod,
        "setxattr": lambda: os.setxattr(file, "user.x", b"1"),
        "removexattr": lambda: os.removexattr(file, "user.alluxio_like.cached"),
    }


@pytest.mark.parametrize("remounted", [False, True])
def test_every_write_is_refused_as_read_only(mount: Make, remounted: bool) -> None:
    path = mount().path
    if remounted:
        # What the kernel refuses for a read-only mount, the daemon refuses by itself.
        assert ctypes.CDLL(None).mount(None, os.fsencode(path), None, MS_REMOUNT, None) == 0
    for what, attempt in writes(path).items():
        with pytest.raises(OSError, match=".*") as caught:
            attempt()
        assert caught.value.errno == errno.EROFS, (what, caught.value)
    assert (path / "hello.txt").read_bytes() == b"hello, world\n"
    assert sorted(os.listdir(path)) == ["dir", "empty", "hello.txt"]


def test_stalled_read_fails_once_within_the_time(mount: Make) -> None:
    made = mount(big_files={"/big": 3 << 20}, io_timeout_s=2.0)
    made.do("stall", what="stall_reads")
    with open(made.path / "big", "rb", buffering=0) as file:
        started = time.monotonic()
        with pytest.raises(OSError, match=".*") as caught:
            file.read()
        took = time.monotonic() - started
        assert caught.value.errno == errno.EIO
        # The kernel asks again after its read-ahead has failed; that must not wait a second time.
        assert 1.9 < took < 20
    made.do("lift")
    wait_until(lambda: len((made.path / "big").read_bytes()) == 3 << 20, "reading again")


def test_stalled_lookup_fails_within_the_time(mount: Make) -> None:
    made = mount(io_timeout_s=2.0)
    made.do("stall", what="stall_names")
    started = time.monotonic()
    with pytest.raises(OSError, match=".*") as caught:
        os.stat(made.path / "dir" / "sub")
    assert caught.value.errno == errno.EIO
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("code", "number"),
    [("store_denied", errno.EACCES), ("unavailable", errno.EIO), ("stale", errno.ESTALE), ("corrupt", errno.EIO)],
)
def test_errors_of_reads_reach_the_reader(mount: Make, code: str, number: int) -> None:
    made = mount()
    made.do("fail", what="fail_reads", code=code)
    with pytest.raises(OSError, match=".*") as caught:
        (made.path / "hello.txt").read_bytes()
    assert caught.value.errno == number


def test_killed_readers_leave_nothing(mount: Make) -> None:
    made = mount(big_files={f"/big{n}": 3 << 20 for n in range(12)}, never_now=True)
    before = made.do("counts")
    descriptors = len(os.listdir(f"/proc/{made.process.pid}/fd"))
    made.do("stall", what="stall_reads")
    readers = [start_reader(made.path / f"big{n}") for n in range(12)]
    wait_until(lambda: made.do("counts")["open"] == 12 and made.do("counts")["reads"] >= 12, "all readers wait")
    for reader in readers:
        reader.kill()
    started = time.monotonic()
    for reader in readers:
        assert reader.wait(60) == -signal.SIGKILL
    assert time.monotonic() - started < 20
    made.do("lift")
    wait_until(lambda: made.do("counts")["open"] == 0, "all files are closed again")
    wait_until(lambda: made.do("counts")["tasks"] <= before["tasks"] + 6, "tasks have ended")
    assert len(os.listdir(f"/proc/{made.process.pid}/fd")) <= descriptors + 2
    assert len((made.path / "big0").read_bytes()) == 3 << 20


def test_reader_killed_in_a_lookup_goes_when_its_time_is_up(mount: Make) -> None:
    made = mount(io_timeout_s=2.0)
    made.do("stall", what="stall_names")
    calls = made.do("counts").get("lookup", 0)
    reader = start_reader(made.path / "dir" / "sub" / "deep.bin")
    wait_until(lambda: made.do("counts").get("lookup", 0) > calls, "the reader waits")
    reader.kill()
    assert reader.wait(60) == -signal.SIGKILL
    made.do("lift")
    assert os.stat(made.path / "dir").st_ino > 1


def test_request_that_vanished_does_not_stop_the_daemon(mount: Make) -> None:
    """The caller was killed between the device becoming readable and being read: a blocking read would hold up everything."""
    made = mount(entry_timeout_s=0.0)
    for _ in range(10):
        made.do("wake")
        assert made.do("counts")["open"] == 0  # answered by the same loop that reads the device
        assert (made.path / "hello.txt").read_bytes() == b"hello, world\n"
        wait_until(lambda: made.do("counts")["open"] == 0, "the file is closed again")


def test_killing_at_random_moments_never_stops_the_daemon(mount: Make) -> None:
    made = mount(entry_timeout_s=0.0, many={"/many": 50})
    code = "import os, sys\nwhile True:\n  for e in os.scandir(sys.argv[1]): open(e.path, 'rb').read()"
    generator = random.Random(5)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        loops = [subprocess.Popen([sys.executable, "-S", "-c", code, made.path / "many"]) for _ in range(4)]
        time.sleep(0.05 + generator.random() / 20)
        for loop in loops:
            loop.kill()
        for loop in loops:
            assert loop.wait(60) == -signal.SIGKILL
        assert made.do("counts")["open"] >= 0
    assert (made.path / "hello.txt").read_bytes() == b"hello, world\n"
    wait_until(lambda: made.do("counts")["open"] == 0, "all files are closed again")


def test_warm_reads_go_on_beside_many_stalled_ones(mount: Make) -> None:
    stalled = 40
    made = mount(big_files={f"/big{n}": 1 << 20 for n in range(stalled)}, never_now=True, io_timeout_s=200.0)
    made.do("stall", what="stall_reads")
    readers = [start_reader(made.path / f"big{n}") for n in range(stalled)]
    wait_until(lambda: made.do("counts")["reads"] >= stalled, "all readers wait")
    made.do("add_file", path="/warm", text="warm")
    assert sorted(os.listdir(made.path / "dir")) == ["sub"]
    assert os.getxattr(made.path / "warm", "user.alluxio_like.version") == b"1"
    # Who waited for the stalled ones would have waited for all of their time, and they would fail.
    made.do("lift")
    assert [reader.wait(60) for reader in readers] == [0] * stalled


def test_unmount_ends_the_daemon(mount: Make) -> None:
    made = mount()
    subprocess.run(["umount", made.path], check=True)
    assert made.process.wait(60) == 0
    assert not made.mounted
    assert not made.path.exists()  # it was made by the daemon


def test_busy_unmount_is_refused_and_a_lazy_one_keeps_open_files(mount: Make) -> None:
    made = mount(big_files={"/big": 8 << 20})
    with open(made.path / "big", "rb", buffering=0) as file:
        assert len(file.read(1000)) == 1000
        assert subprocess.run(["umount", made.path], capture_output=True, check=False).returncode != 0
        subprocess.run(["umount", "-l", made.path], check=True)
        assert not made.mounted
        assert made.process.poll() is None
        assert os.pread(file.fileno(), 8, 7 << 20) == ((8 << 20) + (7 << 17)).to_bytes(8, "big")
    assert made.process.wait(60) == 0


@pytest.mark.parametrize("fault", [("stall", {"what": "stall_names"}), ("fail", {"what": "fail_names", "code": "unavailable"})])
@pytest.mark.parametrize("options", [[], ["-l"]])
def test_unmount_works_while_the_services_are_down(mount: Make, fault: tuple[str, dict[str, str]], options: list[str]) -> None:
    made = mount(entry_timeout_s=0.0, io_timeout_s=200.0)
    os.listdir(made.path)
    made.do(fault[0], **fault[1])
    started = time.monotonic()
    subprocess.run(["umount", *options, made.path], check=True, timeout=60)
    assert made.process.wait(60) == 0
    assert time.monotonic() - started < 60


def test_statfs_and_root_answer_while_the_services_are_down(mount: Make) -> None:
    made = mount(entry_timeout_s=0.0, io_timeout_s=200.0)
    os.statvfs(made.path)
    made.do("stall", what="stall_names")
    started = time.monotonic()
    assert os.statvfs(made.path).f_bavail > 0
    assert os.stat(made.path).st_ino == 1
    assert time.monotonic() - started < 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount_also_while_files_are_open_and_reads_wait(mount: Make, number: signal.Signals) -> None:
    made = mount(big_files={"/big": 8 << 20}, never_now=True)
    with open(made.path / "hello.txt", "rb"):
        made.do("stall", what="stall_reads")
        reader = start_reader(made.path / "big")
        wait_until(lambda: made.do("counts")["reads"] >= 1, "the reader waits")
        assert made.stop(number) == 0
        assert not made.mounted
        assert reader.wait(60) != 0


@pytest.mark.parametrize("remembered", [False, True])
def test_what_a_killed_daemon_left_is_taken_away(mount: Make, remembered: bool) -> None:
    made = mount()
    if remembered:
        os.stat(made.path)
    made.stop(signal.SIGKILL)
    assert made.mounted
    with pytest.raises(OSError, match=".*") as caught:
        os.listdir(made.path)
    assert caught.value.errno == errno.ENOTCONN
    again = mount()
    assert (again.path / "hello.txt").read_bytes() == b"hello, world\n"
    assert len([one for one in places.list_mounted() if one.place == again.path]) == 1


def test_second_mount_at_one_place_is_refused(mount: Make) -> None:
    made = mount()
    process = mount(ready=False, at="m").process
    assert process.wait(60) == 1
    assert made.path.joinpath("hello.txt").exists()
    assert "already mounted there" in made.log.read_text()


def test_mount_at_a_place_that_hangs_is_refused(mount: Make) -> None:
    made = mount(entry_timeout_s=0.0)
    freeze(made.process.pid)
    try:
        process = mount(ready=False, at="m").process
        assert process.wait(60) == 1
        assert "does not answer" in made.log.read_text()
    finally:
        made.process.send_signal(signal.SIGCONT)


def test_place_that_cannot_be_mounted_on_is_refused(mount: Make, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mnt").write_text("a file")
    made = mount(ready=False)
    assert made.process.wait(60) == 1
    assert "not a directory" in made.log.read_text()


def test_directory_that_is_not_there_is_refused(mount: Make) -> None:
    made = mount(ready=False, path="/nowhere")
    assert made.process.wait(60) == 1
    assert "nothing to mount: /nowhere" in made.log.read_text()
    assert not made.path.exists()


def test_the_kernels_knobs_are_turned(mount: Make) -> None:
    made = mount()
    top = places.find_top(made.path)
    assert top is not None
    assert top.source == "alluxio-like"
    assert Path(f"/sys/class/bdi/{top.device}/read_ahead_kb").read_text().strip() == "4096"


def test_many_readers_in_many_threads(mount: Make) -> None:
    size = 2 << 20
    made = mount(big_files={f"/big{n}": size for n in range(4)}, never_now=True)
    wrong: list[object] = []

    def read(number: int) -> None:
        generator = random.Random(number)
        with open(made.path / f"big{number % 4}", "rb", buffering=0) as file:
            for _ in range(100):
                offset = generator.randrange(size // 8) * 8
                data = os.pread(file.fileno(), 8, offset)
                if int.from_bytes(data, "big") != size + offset // 8:
                    wrong.append((number, offset, data))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
