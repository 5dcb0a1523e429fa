"""How a path is followed: what stands in its way, for every call alike; lengths of names and paths; trailing slashes."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.system import ANN, CREATING, FOLLOWING, NAMING, OTHERS, acting, attempt, give, open_close, write
from tests.posix.table import grid, table

pytestmark = pytest.mark.mount

ALL = CREATING | FOLLOWING | NAMING | OTHERS
EXISTING = FOLLOWING | NAMING | OTHERS


@pytest.fixture
def tree(place: Path) -> Path:
    """What the paths below lead through."""
    write(place / "other")
    write(place / "file")
    os.mkfifo(place / "fifo")
    (place / "directory").mkdir()
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    (place / "ping").symlink_to("pong")
    (place / "pong").symlink_to("ping")
    return place


WAYS = {
    "through a missing directory": ("missing/name", "ENOENT"),
    "through a file": ("file/name", "ENOTDIR"),
    "through a fifo": ("fifo/name", "ENOTDIR"),
    "through a dangling link": ("dangling/name", "ENOENT"),
    "through a link to itself": ("loop/name", "ELOOP"),
    "through two links to each other": ("ping/name", "ELOOP"),
    "through a name of 256 bytes": (f"{'n' * 256}/name", "ENAMETOOLONG"),
    "to a name of 256 bytes": ("n" * 256, "ENAMETOOLONG"),
    "to a name of 256 bytes, 128 characters": ("ü" * 128, "ENAMETOOLONG"),
    "of 4096 bytes": ("./" * 2048, "ENAMETOOLONG"),
}


@table("call way", [(call, way) for call in ALL for way in WAYS])
def test_what_stands_in_the_way(tree: Path, call: str, way: str) -> None:
    path, expected = WAYS[way]
    assert attempt(ALL[call], f"{tree}/{path}", tree) == expected


@table("call", [(call,) for call in ALL])
def test_an_empty_path_leads_nowhere(tree: Path, call: str) -> None:
    assert attempt(ALL[call], "", tree) == "ENOENT"


@table("call", [(call,) for call in EXISTING])
def test_a_missing_name(tree: Path, call: str) -> None:
    assert attempt(EXISTING[call], tree / "missing", tree) == "ENOENT"


@table("call", [(call,) for call in CREATING if call not in {"open O_CREAT", "rename to"}])
@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "dangling", "loop"])
def test_a_name_that_is_taken(tree: Path, call: str, kind: str) -> None:
    before = (tree / kind).lstat()
    assert attempt(CREATING[call], tree / kind, tree) == "EEXIST"
    after = (tree / kind).lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)


@table("call", [(call,) for call in ALL])
def test_no_permission_to_search_on_the_way(tree: Path, call: str) -> None:
    locked = tree / "locked"
    locked.mkdir()
    os.chmod(tree, 0o777)
    for name in ("name", "other"):
        give(write(locked / name), ANN)
    give(tree / "other", ANN)
    give(locked, ANN, 0o600)
    with acting(ANN):
        assert attempt(ALL[call], locked / "name", tree) == "EACCES"
        assert attempt(ALL[call], locked / "name" / "more", tree) == "EACCES"


@table("call", [(call,) for call in CREATING])
def test_no_permission_to_write_the_directory(tree: Path, call: str) -> None:
    os.chmod(tree, 0o777)
    closed = tree / "directory"
    give(tree / "other", ANN)
    give(closed, ANN, 0o555)
    with acting(ANN):
        assert attempt(CREATING[call], closed / "name", tree) == "EACCES"
    assert os.listdir(closed) == []


@table("call", [("unlink",), ("rename from",), ("rmdir",)])
def test_no_permission_to_take_a_name_out_of_a_directory(tree: Path, call: str) -> None:
    os.chmod(tree, 0o777)
    closed = tree / "directory"
    name = closed / "name"
    name.mkdir() if call == "rmdir" else write(name)
    give(name, ANN)
    give(closed, ANN, 0o555)
    with acting(ANN):
        assert attempt(ALL[call], name, tree) == "EACCES"
    assert os.listdir(closed) == ["name"]


LINKS = {
    "dangling": dict.fromkeys(FOLLOWING, "ENOENT") | dict.fromkeys(NAMING, "ok"),
    "loop": dict.fromkeys(FOLLOWING, "ELOOP") | dict.fromkeys(NAMING, "ok"),
}


@table("link call", [(link, call) for link, expected in LINKS.items() for call in expected])
def test_a_link_at_the_end(tree: Path, link: str, call: str) -> None:
    assert attempt(EXISTING[call], tree / link, tree) == LINKS[link][call]


# -- lengths ---------------------------------------------------------------------------------------------------------------------


NAMES = {
    "255 bytes": b"n" * 255,
    "254 bytes in UTF-8": "ü".encode() * 127,
    "one byte": b"x",
    "not UTF-8": b"\xff\xfe\x80",
    "a newline": b"two\nlines",
    "spaces": b" a b ",
    "a backslash": b"back\\slash",
    "a control character": b"\x01\x7f",
    "percent": b"100%25",
    "three dots": b"...",
    "a leading dot": b".hidden",
    "a leading dash": b"-rf",
    "a star": b"*?[a]",
    "a tilde": b"name~",
    "upper case": b"NAME",
    "combining characters": "e\u0301".encode(),
}


@table("call name", [(call, name) for call in CREATING for name in NAMES])
def test_names_that_can_be(place: Path, call: str, name: str) -> None:
    write(place / "other")
    path = os.fsencode(place) + b"/" + NAMES[name]
    assert attempt(CREATING[call], path, place) == "ok"
    assert set(os.listdir(os.fsencode(place))) - {b"other"} == {NAMES[name]}
    assert os.path.lexists(path)
    os.rmdir(path) if call == "mkdir" else os.unlink(path)
    assert not os.path.lexists(path)


def test_names_that_differ_in_case_or_composition_are_different(place: Path) -> None:
    names = {"name", "NAME", "Name", "\u00e9", "e\u0301", "name ", "name."}
    for name in names:
        (place / name).write_text(name)
    assert set(os.listdir(place)) == names
    assert {(place / name).read_text() for name in names} == names


def test_a_path_of_4095_bytes_leads_somewhere(place: Path) -> None:
    path = f"{place}/"
    path += "./" * ((4095 - len(path) - 4) // 2)
    path += "/" * (4095 - len(path) - 4) + "name"
    assert len(path) == 4095
    open_close(path, os.O_CREAT | os.O_WRONLY)
    assert os.listdir(place) == ["name"]
    assert attempt(os.stat, "/" + path) == "ENAMETOOLONG"


def test_deep_trees_are_walked_step_by_step(place: Path) -> None:
    deep = os.open(place, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=deep)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=deep))
    assert os.listdir(deep) == ["leaf"]
    os.close(deep)


@table("length expected", [(1, "ok"), (255, "ok"), (4095, "ok"), (4096, "ENAMETOOLONG")])
def test_the_length_of_what_a_link_says(place: Path, length: int, expected: str) -> None:
    assert attempt(os.symlink, "t" * length, place / "link") == expected
    if expected == "ok":
        assert os.readlink(place / "link") == "t" * length
        assert (place / "link").lstat().st_size == length


@table("number expected", [(39, "ok"), (41, "ELOOP")])
def test_how_many_links_are_followed(place: Path, number: int, expected: str) -> None:
    write(place / "0")
    for i in range(number):
        (place / str(i + 1)).symlink_to(str(i))
    assert attempt(os.stat, place / str(number)) == expected


# -- what ends in a slash --------------------------------------------------------------------------------------------------------

SLASHES: dict[str, Callable[[str], object]] = {
    "stat": os.stat,
    "open": open_close,
    "create": lambda path: open_close(path, os.O_CREAT | os.O_WRONLY),
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "readlink": os.readlink,
    "mkfifo": os.mkfifo,
    "symlink to": lambda path: os.symlink("nowhere", path),
    "rename from": lambda path: os.rename(path, os.path.dirname(path.rstrip("/")) + "/renamed"),
    "rename a directory to": lambda path: os.rename(os.path.dirname(path.rstrip("/")) + "/moving", path),
    "rename a file to": lambda path: os.rename(os.path.dirname(path.rstrip("/")) + "/other", path),
}

TRAILING = """
                         missing/   file/      directory/  to-directory/  dangling/
    stat                 ENOENT     ENOTDIR    ok          ok             ENOENT
    open                 ENOENT     ENOTDIR    ok          ok             ENOENT
    create               EISDIR     EISDIR     EISDIR      EISDIR         EISDIR
    mkdir                ok         EEXIST     EEXIST      EEXIST         EEXIST
    rmdir                ENOENT     ENOTDIR    ok          ENOTDIR        ENOTDIR
    unlink               ENOENT     ENOTDIR    EISDIR      ENOTDIR        ENOTDIR
    readlink             ENOENT     ENOTDIR    EINVAL      EINVAL         ENOENT
    mkfifo               ENOENT     EEXIST     EEXIST      EEXIST         EEXIST
    symlink to           ENOENT     EEXIST     EEXIST      EEXIST         EEXIST
    rename from          ENOENT     ENOTDIR    ok          ENOTDIR        ENOTDIR
    rename a directory to  ok       ENOTDIR    ok          ENOTDIR        ENOTDIR
    rename a file to     ENOTDIR    ENOTDIR    ENOTDIR     ENOTDIR        ENOTDIR
"""


@table("call path expected", grid(TRAILING))
def test_a_trailing_slash_asks_for_a_directory(tree: Path, call: str, path: str, expected: str) -> None:
    (tree / "to-directory").symlink_to("directory")
    (tree / "moving").mkdir()
    assert attempt(SLASHES[call], f"{tree}/{path}") == expected


# -- dots ------------------------------------------------------------------------------------------------------------------------

DOTS = """
                .          ..
    mkdir       EEXIST     EEXIST
    rmdir       EINVAL     ENOTEMPTY
    unlink      EISDIR     EISDIR
    mkfifo      EEXIST     EEXIST
    symlink to  EEXIST     EEXIST
    rename from  EBUSY     EBUSY
    rename a directory to  EBUSY  EBUSY
"""


@table("call name expected", grid(DOTS))
def test_dots_at_the_end(tree: Path, call: str, name: str, expected: str) -> None:
    calls = SLASHES | {
        "rename from": lambda path: os.rename(path, tree / "renamed"),
        "rename a directory to": lambda path: os.rename(tree / "moving", path),
    }
    (tree / "moving").mkdir()
    (tree / "directory" / "below").mkdir()
    assert attempt(calls[call], f"{tree}/directory/below/{name}") == expected


def test_dots_lead_where_they_should(tree: Path) -> None:
    assert os.path.samefile(tree / "directory" / "." / ".." / "file", tree / "file")
    assert attempt(os.stat, tree / "missing" / ".." / "file") == "ENOENT"
    assert attempt(os.stat, f"{tree}/file/.") == "ENOTDIR"
    assert attempt(os.stat, f"{tree}/file/..") == "ENOTDIR"


def test_a_link_is_read_from_where_it_stands(tree: Path) -> None:
    (tree / "directory" / "up").symlink_to("../file")
    (tree / "absolute").symlink_to(tree / "file")
    (tree / "chain").symlink_to("directory/up")
    for name in ("directory/up", "absolute", "chain"):
        assert os.path.samefile(tree / name, tree / "file")
    (tree / "directory" / "up").rename(tree / "up")
    assert attempt(os.stat, tree / "up") in ("ENOENT", "ok")
    assert stat.S_ISLNK((tree / "up").lstat().st_mode)
    assert not os.path.exists(tree / "chain")
