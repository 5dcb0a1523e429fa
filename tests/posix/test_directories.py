"""Directory streams: all names, once, with their kinds; seeking; changes during a listing; and what statvfs says."""

import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.posix.system import ANN, KINDS, acting, attempt, give, look, make, opened, write
from tests.posix.table import table

pytestmark = pytest.mark.mount

_libc = ctypes.CDLL(None, use_errno=True)


class _Entry(ctypes.Structure):
    _fields_ = (
        ("inode", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_uint16),
        ("kind", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Entry)
_libc.telldir.restype = ctypes.c_long


class Stream:
    """opendir(3) and what follows; Python's own listings do not seek."""

    def __init__(self, path: Path) -> None:
        self._directory = ctypes.c_void_p(_libc.opendir(os.fsencode(path)))
        assert self._directory

    def read(self) -> tuple[str, int, int] | None:
        """The next name, its inode and kind."""
        entry = _libc.readdir(self._directory)
        return (os.fsdecode(entry.contents.name), entry.contents.inode, entry.contents.kind) if entry else None

    def names(self, count: int = 1 << 30) -> list[str]:
        found: list[str] = []
        while len(found) < count and (entry := self.read()):
            found.append(entry[0])
        return found

    def tell(self) -> int:
        return int(_libc.telldir(self._directory))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._directory, ctypes.c_long(position))

    def rewind(self) -> None:
        _libc.rewinddir(self._directory)

    def close(self) -> None:
        _libc.closedir(self._directory)


@contextmanager
def listing(path: Path) -> Iterator[Stream]:
    stream = Stream(path)
    try:
        yield stream
    finally:
        stream.close()


@pytest.fixture
def full(place: Path) -> Path:
    """A directory of 90 files."""
    for i in range(90):
        os.close(os.open(place / f"{i:03}-{'x' * (i % 40)}", os.O_CREAT | os.O_WRONLY))
    return place


def test_all_names_once_and_both_dots(full: Path) -> None:
    with listing(full) as stream:
        names = stream.names()
    assert len(names) == len(set(names)) == 92
    assert {".", ".."} <= set(names)
    assert set(names) - {".", ".."} == set(os.listdir(full))


@table("kind", [(kind,) for kind in KINDS])
def test_entries_have_kind_and_inode(place: Path, kind: str) -> None:
    path = make(kind, place / "name")
    with listing(place) as stream:
        entries = {entry[0]: entry[1:] for entry in iter(stream.read, None)}
    assert entries["name"] == (look(path).st_ino, KINDS[kind][0] >> 12)
    assert entries["."] == (look(place).st_ino, stat.S_IFDIR >> 12)
    assert entries[".."] == (look(place.parent).st_ino, stat.S_IFDIR >> 12)


def test_seeking_to_every_place_that_was_told(full: Path) -> None:
    with listing(full) as stream:
        places = [stream.tell()]
        names = []
        while entry := stream.read():
            names.append(entry[0])
            places.append(stream.tell())
        for at in (0, 1, 2, 3, 45, 89, 90, 91, 92):
            stream.seek(places[at])
            assert stream.names(3) == names[at : at + 3], at
        stream.rewind()
        assert stream.names() == names


def test_the_end_stays_the_end(full: Path) -> None:
    with listing(full) as stream:
        stream.names()
        assert stream.read() is None
        assert stream.read() is None


def test_a_rewound_listing_is_a_new_one(place: Path) -> None:
    write(place / "one")
    with listing(place) as stream:
        assert set(stream.names()) == {".", "..", "one"}
        write(place / "two")
        (place / "one").unlink()
        stream.rewind()
        assert set(stream.names()) == {".", "..", "two"}


def test_removing_all_that_is_listed(full: Path) -> None:
    """As rm -r does: names go while they are read, and none is left."""
    with listing(full) as stream:
        while entry := stream.read():
            if entry[0] not in (".", ".."):
                (full / entry[0]).unlink()
    assert os.listdir(full) == []
    full.rmdir()


def test_what_stays_is_listed_whatever_else_comes_and_goes(full: Path) -> None:
    kept = {f"{i:03}-{'x' * (i % 40)}" for i in range(0, 90, 3)}
    seen: list[str] = []
    with listing(full) as stream:
        for i in range(90):
            seen += stream.names(1)
            name = f"{i:03}-{'x' * (i % 40)}"
            if name not in kept:
                (full / name).unlink()
            write(full / f"new{i}")
        seen += stream.names()
    assert [name for name in seen if name in kept] and set(seen) >= kept
    assert len([name for name in seen if name in kept]) == len(kept)
    assert len(seen) == len(set(seen))


def test_renaming_during_a_listing(full: Path) -> None:
    before = set(os.listdir(full))
    with listing(full) as stream:
        for name in stream.names():
            if name not in (".", ".."):
                os.rename(full / name, full / f"renamed-{name}")
    assert set(os.listdir(full)) == {f"renamed-{name}" for name in before}


def test_what_is_made_and_removed_is_seen_at_once(place: Path) -> None:
    for i in range(30):
        name = f"name{i}"
        assert not (place / name).exists()  # the absence is not remembered
        write(place / name)
        assert (place / name).exists()
        assert name in os.listdir(place)
        if i % 2:
            (place / name).unlink()
            assert not (place / name).exists()
            assert name not in os.listdir(place)


def test_a_large_directory(place: Path) -> None:
    names = {f"file-{i:05}" for i in range(500)}
    with opened(place) as fd:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    found = os.listdir(place)
    assert len(found) == len(names)
    assert set(found) == names


def test_a_directory_that_may_not_be_read_is_found_through(place: Path) -> None:
    (place / "directory").mkdir()
    write(place / "directory" / "name", b"content")
    give(place / "directory", ANN, 0o100)
    with acting(ANN):
        assert attempt(os.listdir, place / "directory") == "EACCES"
        assert (place / "directory" / "name").read_bytes() == b"content"
        held = os.open(place / "directory", os.O_PATH)
    with acting(ANN):
        assert os.stat("name", dir_fd=held).st_size == 7
    os.close(held)


def test_a_directory_is_worked_in_after_it_was_renamed(place: Path) -> None:
    (place / "before").mkdir()
    with opened(place / "before") as fd:
        os.rename(place / "before", place / "after")
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        assert os.listdir(fd) == ["file"]
    assert os.listdir(place / "after") == ["file"]


def test_statvfs(place: Path) -> None:
    before = os.statvfs(place)
    assert before.f_namemax == 255
    assert before.f_bsize >= 512
    assert before.f_frsize >= 512
    assert before.f_bavail <= before.f_bfree <= before.f_blocks
    assert before.f_ffree <= before.f_files
    write(place / "file", os.urandom(8 << 20))
    with opened(place / "file") as fd:
        os.fsync(fd)
        assert os.fstatvfs(fd).f_blocks == before.f_blocks
    after = os.statvfs(place)
    assert after.f_bfree <= before.f_bfree
    assert after.f_ffree <= before.f_ffree


def test_all_files_of_a_file_system_have_its_device(place: Path) -> None:
    device = look(place).st_dev
    numbers = set()
    for kind in KINDS:
        found = look(make(kind, place / kind))
        assert found.st_dev == device
        numbers.add(found.st_ino)
    assert len(numbers) == len(KINDS)
