"""Access control lists: whom they let in, how they and the mode are one thing, what is inherited, and what is refused."""

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.system import (
    ANN,
    BOB,
    GUEST,
    PEER,
    acting,
    attempt,
    get_mode,
    give,
    make,
    open_close,
    opened,
    umask,
    write,
)
from tests.posix.table import table

pytestmark = pytest.mark.mount

USERS = {"ann": ANN, "peer": PEER, "guest": GUEST, "bob": BOB}
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32


def acl(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """(tag, permissions) or (tag, permissions, id) of each entry, as the kernel takes it."""
    packed = [struct.pack("<HHI", entry[0], entry[1], entry[2] if len(entry) == 3 else 0xFFFFFFFF) for entry in entries]
    return struct.pack("<I", 2) + b"".join(packed)


@table("entry who mode expected", [
    ("user bob rw", "bob", "R", "ok"), ("user bob rw", "bob", "W", "ok"), ("user bob rw", "guest", "R", "EACCES"),
    ("user bob masked", "bob", "R", "ok"), ("user bob masked", "bob", "W", "EACCES"), ("group ann r", "guest", "R", "ok"),
    ("group ann r", "guest", "W", "EACCES"), ("user bob nothing", "bob", "R", "EACCES"), ("user bob nothing", "guest", "R", "ok"),
])  # fmt: skip
def test_a_list_grants_and_refuses(place: Path, entry: str, who: str, mode: str, expected: str) -> None:
    lists = {
        "user bob rw": acl((USER_OBJ, 6), (USER, 6, BOB.uid), (GROUP_OBJ, 0), (MASK, 6), (OTHER, 0)),
        "user bob masked": acl((USER_OBJ, 6), (USER, 6, BOB.uid), (GROUP_OBJ, 0), (MASK, 4), (OTHER, 0)),
        "group ann r": acl((USER_OBJ, 6), (GROUP_OBJ, 0), (GROUP, 4, ANN.gid), (MASK, 4), (OTHER, 0)),
        "user bob nothing": acl((USER_OBJ, 6), (USER, 0, BOB.uid), (GROUP_OBJ, 0), (MASK, 6), (OTHER, 4)),
    }
    path = write(place / "file", b"content", 0o600)
    os.setxattr(path, ACCESS, lists[entry])
    with acting(USERS[who]):
        assert attempt(open_close, path, {"R": os.O_RDONLY, "W": os.O_WRONLY}[mode]) == expected


def test_a_list_and_the_mode_are_one_thing(place: Path) -> None:
    path = write(place / "file", b"", 0o640)
    os.setxattr(path, ACCESS, acl((USER_OBJ, 6), (USER, 6, BOB.uid), (GROUP_OBJ, 4), (MASK, 6), (OTHER, 0)))
    assert get_mode(path) == 0o660  # the mask stands for the group
    path.chmod(0o600)
    with acting(BOB):
        assert attempt(open_close, path, os.O_RDONLY) == "EACCES"
    path.chmod(0o640)
    with acting(BOB):
        assert attempt(open_close, path, os.O_RDONLY) == "ok"
    os.removexattr(path, ACCESS)
    with acting(BOB):
        assert attempt(open_close, path, os.O_RDONLY) == "EACCES"


def test_what_is_made_inherits_the_default_list(place: Path) -> None:
    default = acl((USER_OBJ, 7), (USER, 7, BOB.uid), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 0))
    os.setxattr(place, DEFAULT, default)
    write_path = place / "file"
    open_close(write_path, os.O_CREAT | os.O_WRONLY, 0o666)
    assert get_mode(write_path) == 0o660
    (place / "below").mkdir()
    assert os.getxattr(place / "below", DEFAULT) == default
    with acting(BOB):
        assert attempt(open_close, write_path, os.O_RDWR) == "ok"


@table(
    "what expected",
    [("no mask", "EINVAL"), ("out of order", "EINVAL"), ("default of a file", "EACCES"), ("not a list", "ENOTSUP")],
)
def test_lists_that_are_none(place: Path, what: str, expected: str) -> None:
    path = write(place / "file")
    name = DEFAULT if what == "default of a file" else ACCESS
    value = {
        "no mask": acl((USER_OBJ, 6), (USER, 6, BOB.uid), (GROUP_OBJ, 4), (OTHER, 0)),
        "out of order": acl((OTHER, 0), (USER_OBJ, 6), (GROUP_OBJ, 4)),
        "default of a file": acl((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 0)),
        "not a list": b"\1\0\0\0abcd",
    }[what]
    assert attempt(os.setxattr, path, name, value) == expected


def test_a_list_is_for_the_owner_to_set(place: Path) -> None:
    path = give(write(place / "file"), ANN, 0o666)
    value = acl((USER_OBJ, 6), (GROUP_OBJ, 6), (OTHER, 6))
    with acting(BOB):
        assert attempt(os.setxattr, path, ACCESS, value) == "EPERM"
    with acting(ANN):
        assert attempt(os.setxattr, path, ACCESS, value) == "ok"


def unpack(value: bytes) -> list[tuple[int, int, int]]:
    return list(struct.iter_unpack("<HHI", value[4:]))


NOBODY = 0xFFFFFFFF
OPEN_TO_BOB = acl((USER_OBJ, 7), (USER, 7, BOB.uid), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 0))


def test_chmod_changes_the_mask_and_what_is_the_owners_and_the_others(place: Path) -> None:
    path = write(place / "file", b"", 0o640)
    os.setxattr(path, ACCESS, acl((USER_OBJ, 6), (USER, 6, BOB.uid), (GROUP_OBJ, 4), (MASK, 6), (OTHER, 0)))
    path.chmod(0o4751)
    assert unpack(os.getxattr(path, ACCESS)) == [
        (USER_OBJ, 7, NOBODY), (USER, 6, BOB.uid), (GROUP_OBJ, 4, NOBODY), (MASK, 5, NOBODY), (OTHER, 1, NOBODY)
    ]  # fmt: skip
    assert get_mode(path) == 0o4751


def test_a_list_that_says_what_a_mode_can_is_none(place: Path) -> None:
    path = write(place / "file", b"", 0o640)
    os.setxattr(path, ACCESS, acl((USER_OBJ, 7), (GROUP_OBJ, 1), (OTHER, 2)))
    assert get_mode(path) == 0o712
    assert attempt(os.getxattr, path, ACCESS) == "ENODATA"
    os.setxattr(path, ACCESS, OPEN_TO_BOB)
    os.setxattr(path, ACCESS, acl((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 4)))
    assert (get_mode(path), attempt(os.getxattr, path, ACCESS)) == (0o644, "ENODATA")
    with acting(BOB):
        assert attempt(open_close, path, os.O_WRONLY) == "EACCES"


def test_a_mask_without_names_is_kept(place: Path) -> None:
    path = write(place / "file", b"", 0o640)
    value = acl((USER_OBJ, 6), (GROUP_OBJ, 6), (MASK, 4), (OTHER, 0))
    os.setxattr(path, ACCESS, value)
    assert (get_mode(path), os.getxattr(path, ACCESS)) == (0o640, value)


def test_lists_are_listed_and_removed(place: Path) -> None:
    directory = make("directory", place / "name")
    assert [attempt(os.removexattr, directory, name) for name in (ACCESS, DEFAULT)] == ["ok", "ok"]  # none is there
    os.setxattr(directory, ACCESS, OPEN_TO_BOB)
    os.setxattr(directory, DEFAULT, OPEN_TO_BOB)
    assert {ACCESS, DEFAULT} <= set(os.listxattr(directory))
    with opened(directory) as fd:
        assert os.getxattr(fd, DEFAULT) == OPEN_TO_BOB
    mode = get_mode(directory)
    os.removexattr(directory, ACCESS)
    os.setxattr(directory, DEFAULT, acl())  # one without lines: it goes
    assert get_mode(directory) == mode
    assert not {ACCESS, DEFAULT} & set(os.listxattr(directory))


@table("kind expected", [("directory", "ok"), ("fifo", "ok"), ("socket", "ok"), ("symlink", "ENOTSUP")])
def test_which_kinds_have_a_list(place: Path, kind: str, expected: str) -> None:
    path = make(kind, place / "name")
    assert attempt(os.setxattr, path, ACCESS, OPEN_TO_BOB, follow_symlinks=False) == expected
    if kind == "symlink":
        assert attempt(os.getxattr, path, ACCESS, follow_symlinks=False) == "ENOTSUP"


@table("who expected", [("ann", 0o2770), ("bob", 0o770)])
def test_who_is_not_in_the_group_takes_the_set_group_id_bit_away(place: Path, who: str, expected: int) -> None:
    path = write(place / "file")
    os.chown(path, USERS[who].uid, ANN.gid)
    path.chmod(0o2770)
    with acting(USERS[who]):
        os.setxattr(path, ACCESS, OPEN_TO_BOB)
    assert get_mode(path) == expected


MAKING: dict[str, Callable[[Path, int], object]] = {
    "open": lambda path, mode: open_close(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda path, mode: os.mknod(path, stat.S_IFREG | mode),
}


@table("call mode mask made", [
    (call, mode, mask, made)
    for call in MAKING
    for mode, mask, made in ((0o777, 0o77, 0o770), (0o666, 0o22, 0o660), (0o640, 0, 0o640), (0o604, 0, 0o600))
])  # fmt: skip
def test_a_default_list_takes_the_place_of_the_umask(place: Path, call: str, mode: int, mask: int, made: int) -> None:
    os.setxattr(place, DEFAULT, OPEN_TO_BOB)
    path = place / "made"
    with umask(mask):
        MAKING[call](path, mode)
    assert get_mode(path) == made
    permissions = {entry[0]: entry[1] for entry in unpack(os.getxattr(path, ACCESS))}
    assert permissions == {USER_OBJ: made >> 6 & 7, USER: 7, GROUP_OBJ: 5, MASK: made >> 3 & 7, OTHER: 0}
    assert attempt(os.getxattr, path, DEFAULT) == ("ok" if call == "mkdir" else "ENODATA")


@table("call", [(call,) for call in MAKING])
def test_a_default_list_without_names_leaves_a_mode(place: Path, call: str) -> None:
    os.setxattr(place, DEFAULT, acl((USER_OBJ, 7), (GROUP_OBJ, 1), (OTHER, 4)))
    MAKING[call](place / "made", 0o775)
    assert (get_mode(place / "made"), attempt(os.getxattr, place / "made", ACCESS)) == (0o714, "ENODATA")


def test_links_inherit_nothing_and_what_is_moved_there_stays_as_it_is(place: Path) -> None:
    path = write(place / "file", b"", 0o640)
    (place / "below").mkdir()
    os.setxattr(place / "below", DEFAULT, OPEN_TO_BOB)
    os.symlink("nowhere", place / "below/symlink")
    path.rename(place / "below/moved")
    os.link(place / "below/moved", place / "below/linked")
    assert (get_mode(place / "below/symlink"), get_mode(place / "below/moved")) == (0o777, 0o640)
    assert attempt(os.getxattr, place / "below/linked", ACCESS) == "ENODATA"


def test_what_is_made_further_below_inherits_too(place: Path) -> None:
    os.setxattr(place, DEFAULT, OPEN_TO_BOB)
    os.makedirs(place / "a/b/c")
    give(place, ANN, 0o755)
    with acting(BOB):
        open_close(place / "a/b/c/file", os.O_CREAT | os.O_WRONLY, 0o666)
        assert os.getxattr(place / "a/b/c", DEFAULT) == OPEN_TO_BOB
    with acting(PEER):
        assert attempt(os.listdir, place / "a") == "EACCES"


def test_a_list_lets_a_directory_be_searched_and_changed(place: Path) -> None:
    directory = place / "directory"
    directory.mkdir(0o700)
    write(directory / "file", b"content")
    with acting(BOB):
        assert attempt(open_close, directory / "file") == "EACCES"
    os.setxattr(directory, ACCESS, acl((USER_OBJ, 7), (USER, 1, BOB.uid), (GROUP_OBJ, 0), (MASK, 7), (OTHER, 0)))
    with acting(BOB):
        assert attempt(open_close, directory / "file") == "ok"
        assert attempt(os.listdir, directory) == "EACCES"
        assert attempt(os.unlink, directory / "file") == "EACCES"
    os.setxattr(directory, ACCESS, OPEN_TO_BOB)
    with acting(BOB):
        assert attempt(os.listdir, directory) == "ok"
        assert attempt(os.unlink, directory / "file") == "ok"
    directory.chmod(0o700)
    with acting(BOB):
        assert attempt(os.listdir, directory) == "EACCES"


def test_a_list_goes_with_the_file(place: Path) -> None:
    path = write(place / "file", b"content", 0o600)
    os.setxattr(path, ACCESS, OPEN_TO_BOB)
    os.link(path, place / "linked")
    path.rename(place / "renamed")
    with opened(place / "renamed", os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"other")
    with acting(BOB):
        assert [attempt(open_close, place / name, os.O_RDWR) for name in ("linked", "renamed")] == ["ok", "ok"]
    assert os.getxattr(place / "linked", ACCESS) == OPEN_TO_BOB


def test_long_lists(place: Path) -> None:
    path = write(place / "file")
    named = [(USER, 4, 70000 + i) for i in range(300)]
    value = acl((USER_OBJ, 6), *named, (GROUP_OBJ, 4), (MASK, 4), (OTHER, 0))
    os.setxattr(path, ACCESS, value)
    assert os.getxattr(path, ACCESS) == value
