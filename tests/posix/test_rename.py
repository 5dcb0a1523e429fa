"""rename and renameat2: every kind onto every kind, with each flag; directories that move; what is open meanwhile."""

import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.posix.system import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, attempt, look, opened, renameat2, write
from tests.posix.table import table

pytestmark = pytest.mark.mount


def _make_full(path: Path) -> None:
    path.mkdir()
    write(path / "inside")


SOURCES: dict[str, Callable[[Path], object]] = {
    "file": lambda path: write(path, b"source"),
    "empty directory": lambda path: path.mkdir(),
    "full directory": _make_full,
    "link to a file": lambda path: path.symlink_to("a-file"),
    "link to a directory": lambda path: path.symlink_to("a-directory"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "fifo": lambda path: os.mkfifo(path),
    "read-only file": lambda path: write(path, b"source", 0o444),
}
TARGETS = {"absent": lambda path: None} | SOURCES
FLAGS = {"": 0, "NOREPLACE": RENAME_NOREPLACE, "EXCHANGE": RENAME_EXCHANGE}


def expect(source: str, target: str, flag: str) -> str:
    """What rename's manual page says."""
    if flag == "NOREPLACE":
        return "ok" if target == "absent" else "EEXIST"
    if flag == "EXCHANGE":
        return "ENOENT" if target == "absent" else "ok"
    if target == "absent":
        return "ok"
    of_directory, to_directory = source.endswith(" directory"), target.endswith(" directory")
    of_directory, to_directory = of_directory and "link" not in source, to_directory and "link" not in target
    if of_directory != to_directory:
        return "ENOTDIR" if of_directory else "EISDIR"
    return "ENOTEMPTY" if target == "full directory" else "ok"


@table("source target flag", [(s, t, f) for s in SOURCES for t in TARGETS for f in FLAGS])
@pytest.mark.parametrize("where", ["within", "elsewhere"])
def test_every_kind_onto_every_kind(place: Path, source: str, target: str, flag: str, where: str) -> None:
    for directory in ("from", "to"):
        (place / directory).mkdir()
        write(place / directory / "a-file")
        (place / directory / "a-directory").mkdir()
    from_path = place / "from" / "source"
    to_path = place / ("from" if where == "within" else "to") / "target"
    SOURCES[source](from_path)
    TARGETS[target](to_path)
    of_source = look(from_path)
    of_target = look(to_path) if target != "absent" else None
    links = [look(place / name).st_nlink for name in ("from", "to")]
    expected = expect(source, target, flag)
    assert attempt(renameat2, from_path, to_path, FLAGS[flag]) == expected
    there = {path: look(path).st_ino for path in (from_path, to_path) if os.path.lexists(path)}
    if expected != "ok":
        wanted = {from_path: of_source.st_ino} | ({to_path: of_target.st_ino} if of_target else {})
    elif flag == "EXCHANGE":
        assert of_target is not None
        wanted = {from_path: of_target.st_ino, to_path: of_source.st_ino}
    else:
        wanted = {to_path: of_source.st_ino}
    assert there == wanted
    if expected == "ok":
        moved = look(to_path)
        assert (moved.st_mode, moved.st_size, moved.st_mtime_ns) == (of_source.st_mode, of_source.st_size, of_source.st_mtime_ns)
    if expected != "ok" or not {"full directory", "empty directory"} & {source, target}:
        assert [look(place / name).st_nlink for name in ("from", "to")] == links
    assert sorted(os.listdir(place / "from")) == sorted(
        {"a-file", "a-directory"} | {p.name for p in wanted if p.parent.name == "from"}
    )
    if source == "full directory" and expected == "ok":
        assert os.listdir(to_path) == ["inside"]


@table("flags", [(RENAME_NOREPLACE | RENAME_EXCHANGE,), (RENAME_WHITEOUT | RENAME_EXCHANGE,), (8,), (1 << 20,)])
def test_flags_that_are_none(place: Path, flags: int) -> None:
    write(place / "a")
    write(place / "b")
    assert attempt(renameat2, place / "a", place / "b", flags) == "EINVAL"


@table("source target", [("file", "absent"), ("file", "file"), ("full directory", "absent"), ("fifo", "read-only file")])
def test_a_whiteout_is_left_at_the_name_before(place: Path, source: str, target: str) -> None:
    """A character device with the number 0, as overlayfs wants it."""
    (place / "from").mkdir()
    SOURCES[source](place / "from" / "source")
    TARGETS[target](place / "target")
    moved = look(place / "from" / "source")
    assert attempt(renameat2, place / "from" / "source", place / "target", RENAME_WHITEOUT) == "ok"
    assert look(place / "target").st_ino == moved.st_ino
    left = look(place / "from" / "source")
    assert (left.st_mode, left.st_rdev, left.st_uid, left.st_gid) == (stat.S_IFCHR, 0, os.geteuid(), os.getegid())
    (place / "from" / "source").unlink()
    assert os.listdir(place / "from") == []


def test_renaming_what_is_not_there_leaves_the_target(place: Path) -> None:
    write(place / "target", b"kept")
    assert attempt(os.rename, place / "missing", place / "target") == "ENOENT"
    assert (place / "target").read_bytes() == b"kept"


@table("flag", [("",), ("EXCHANGE",)])
def test_a_file_onto_itself_and_onto_its_other_name(place: Path, flag: str) -> None:
    write(place / "a", b"content")
    os.link(place / "a", place / "b")
    assert attempt(renameat2, place / "a", place / "a", FLAGS[flag]) == "ok"
    assert attempt(renameat2, place / "a", place / "b", FLAGS[flag]) == "ok"
    assert sorted(os.listdir(place)) == ["a", "b"]  # POSIX: nothing is done
    assert look(place / "a").st_nlink == 2


@table("below", [("directory",), ("directory/below",), ("directory/below/deeper",)])
@pytest.mark.parametrize("flag", ["", "NOREPLACE"])
def test_a_directory_into_itself(place: Path, below: str, flag: str) -> None:
    (place / "directory/below/deeper").mkdir(parents=True)
    assert attempt(renameat2, place / "directory", place / below / "new", FLAGS[flag]) == "EINVAL"
    assert os.listdir(place / "directory") == ["below"]


def test_swapping_with_what_is_inside(place: Path) -> None:
    (place / "directory/below").mkdir(parents=True)
    assert attempt(renameat2, place / "directory", place / "directory/below", RENAME_EXCHANGE) == "EINVAL"
    assert attempt(renameat2, place / "directory/below", place / "directory", RENAME_EXCHANGE) == "EINVAL"


def test_onto_a_directory_above(place: Path) -> None:
    (place / "directory/below").mkdir(parents=True)
    assert attempt(os.rename, place / "directory/below", place / "directory") == "ENOTEMPTY"


def test_to_another_file_system(place: Path, tmp_path: Path) -> None:
    write(place / "file")
    assert attempt(os.rename, place / "file", "/dev/shm/al-never-there") == "EXDEV"
    assert attempt(os.link, place / "file", "/dev/shm/al-never-there") == "EXDEV"
    assert os.listdir(place) == ["file"]


def test_link_counts_follow_directories_that_move(place: Path) -> None:
    for name in ("from", "to", "from/moved", "to/over"):
        (place / name).mkdir()

    def counts() -> list[int]:
        return [look(place / name).st_nlink for name in ("from", "to")]

    assert counts() == [3, 3]
    os.rename(place / "from/moved", place / "to/moved")
    assert counts() == [2, 4]
    os.rename(place / "to/moved", place / "to/over")
    assert counts() == [2, 3]
    write(place / "from/file")
    renameat2(place / "from/file", place / "to/over", RENAME_EXCHANGE)
    assert counts() == [3, 2]
    assert os.path.samefile(place / "from/file/..", place / "from")


def test_dot_dot_of_what_moved(place: Path) -> None:
    (place / "from/moved/below").mkdir(parents=True)
    (place / "to").mkdir()
    with opened(place / "from/moved") as held:
        os.rename(place / "from/moved", place / "to/moved")
        assert os.stat("..", dir_fd=held).st_ino == look(place / "to").st_ino
        assert os.stat("below", dir_fd=held).st_ino == look(place / "to/moved/below").st_ino
        os.mkdir("new", dir_fd=held)
    assert sorted(os.listdir(place / "to/moved")) == ["below", "new"]


def test_what_is_replaced_is_read_on_and_what_moved_is_written_on(place: Path) -> None:
    old, new = write(place / "old", b"old content"), write(place / "new", b"new content")
    with opened(old, os.O_RDWR) as of_old, opened(new, os.O_RDWR) as of_new:
        os.rename(new, old)
        assert os.pread(of_old, 99, 0) == b"old content"
        assert os.fstat(of_old).st_nlink == 0
        assert os.pwrite(of_old, b"OLD", 0) == 3
        assert os.pwrite(of_new, b"NEW", 0) == 3
        assert os.pread(of_old, 99, 0) == b"OLD content"
        assert os.fstat(of_new).st_ino == look(old).st_ino
    assert old.read_bytes() == b"NEW content"
    assert os.listdir(place) == ["old"]


def test_one_of_two_names_is_replaced(place: Path) -> None:
    write(place / "kept", b"kept")
    os.link(place / "kept", place / "target")
    write(place / "new", b"new")
    os.rename(place / "new", place / "target")
    assert (place / "kept").read_bytes() == b"kept"
    assert look(place / "kept").st_nlink == 1
    assert (place / "target").read_bytes() == b"new"


def test_an_open_directory_that_is_replaced(place: Path) -> None:
    (place / "old").mkdir()
    (place / "new").mkdir()
    write(place / "new" / "inside")
    with opened(place / "old") as held:
        os.rename(place / "new", place / "old")
        assert os.listdir(held) == []
        assert os.fstat(held).st_nlink == 0
        assert attempt(os.mkdir, "below", dir_fd=held) == "ENOENT"
        assert attempt(lambda: os.close(os.open("below", os.O_CREAT | os.O_WRONLY, dir_fd=held))) == "ENOENT"
    assert os.listdir(place / "old") == ["inside"]


def test_the_name_that_is_swung_is_always_there(place: Path) -> None:
    """Who opens the target while it is replaced sees one or the other, whole."""
    target = write(place / "target", b"0" * 1000)
    stop = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not stop.is_set():
            try:
                data = target.read_bytes()
            except OSError as error:
                seen.append(str(error))
                return
            if len(data) != 1000 or len(set(data)) != 1:
                seen.append(f"torn: {len(data)} {set(data)}")
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(50):
        os.rename(write(place / "new", bytes([48 + i % 10]) * 1000), target)
    stop.set()
    for reader in readers:
        reader.join()
    assert seen == []


def test_two_who_rename_one_file_do_it_once(place: Path) -> None:
    with ThreadPoolExecutor(2) as movers:
        for i in range(20):
            source = write(place / f"source{i}")
            results = list(movers.map(lambda n, i=i, source=source: attempt(os.rename, source, place / f"{i}-{n}"), range(2)))
            assert sorted(results) == ["ENOENT", "ok"]
            assert len(os.listdir(place)) == i + 1
