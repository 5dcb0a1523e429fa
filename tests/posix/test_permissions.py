"""Who may do what: mode bits by class of user, sticky directories, owners' rights, set-id bits and when they go, umask."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.posix.system import (
    ANN,
    BOB,
    GUEST,
    KEEP_SIZE,
    KINDS,
    PEER,
    PUNCH_HOLE,
    RENAME_EXCHANGE,
    ROOT,
    UTIME_NOW,
    UTIME_OMIT,
    acting,
    attempt,
    fallocate,
    get_mode,
    give,
    look,
    make,
    open_close,
    opened,
    remove,
    renameat2,
    umask,
    utimensat,
    write,
)
from tests.posix.table import grid, table

pytestmark = pytest.mark.mount

USERS = {"ann": ANN, "peer": PEER, "guest": GUEST, "bob": BOB, "root": ROOT}


@pytest.fixture
def shared(place: Path) -> Path:
    """A directory in which everybody may do everything."""
    place.chmod(0o777)
    return place


# -- mode bits, of what is Ann's and her group's ---------------------------------------------------------------------------------

CLASSES = {"ann": 6, "peer": 3, "guest": 3, "bob": 0}
"""By how much the bits that count for somebody are shifted."""

ACCESS: dict[str, tuple[int, Callable[[Path], Any]]] = {
    "read": (4, lambda path: open_close(path, os.O_RDONLY)),
    "write": (2, lambda path: open_close(path, os.O_WRONLY)),
    "read and write": (6, lambda path: open_close(path, os.O_RDWR)),
    "open to truncate": (2, lambda path: open_close(path, os.O_WRONLY | os.O_TRUNC)),
    "truncate": (2, lambda path: os.truncate(path, 0)),
    "execute": (1, lambda path: _execute(path)),
    "touch": (2, lambda path: os.utime(path)),
    "get an attribute": (4, lambda path: os.getxattr(path, "user.given")),
    "set an attribute": (2, lambda path: os.setxattr(path, "user.given", b"other")),
}


def _execute(path: Path) -> None:
    if not os.access(path, os.X_OK, effective_ids=True):
        raise PermissionError(13, "access")


@table("bits who how", [(bits, who, how) for bits in range(8) for who in CLASSES for how in ACCESS])
def test_the_bits_of_a_class_alone_count(shared: Path, bits: int, who: str, how: str) -> None:
    path = write(shared / "file", b"content")
    os.setxattr(path, "user.given", b"value")
    # All other classes have the opposite bits, which must not matter.
    shift = CLASSES[who]
    give(path, ANN, (0o777 & ~(7 << shift) & ~((bits << 6 | bits << 3 | bits) & ~(7 << shift))) | bits << shift)
    needed, call = ACCESS[how]
    may = bits & needed == needed or (how == "touch" and who == "ann")
    with acting(USERS[who]):
        assert attempt(call, path) == ("ok" if may else "EACCES")


@table("bits how", [(bits, how) for bits in (0o000, 0o100, 0o010, 0o001, 0o666) for how in ACCESS])
def test_root_may_do_all_but_execute_what_nobody_may(shared: Path, bits: int, how: str) -> None:
    path = write(shared / "file", b"content")
    os.setxattr(path, "user.given", b"value")
    give(path, ANN, bits)
    assert attempt(ACCESS[how][1], path) == ("EACCES" if how == "execute" and not bits & 0o111 else "ok")


DIRECTORY_ACCESS: dict[str, tuple[int, Callable[[Path], Any]]] = {
    "list": (4, lambda path: os.listdir(path)),
    "stat a name": (1, lambda path: os.lstat(path / "name")),
    "open a name": (1, lambda path: open_close(path / "name")),
    "stat a missing name": (1, lambda path: _stat_missing(path)),
    "create": (3, lambda path: open_close(path / "new", os.O_CREAT | os.O_WRONLY)),
    "make a directory": (3, lambda path: os.mkdir(path / "new")),
    "make a link": (3, lambda path: os.symlink("x", path / "new")),
    "unlink": (3, lambda path: os.unlink(path / "name")),
    "rename": (3, lambda path: os.rename(path / "name", path / "new")),
    "open O_CREAT what is there": (1, lambda path: open_close(path / "name", os.O_CREAT | os.O_RDONLY)),
}


def _stat_missing(path: Path) -> None:
    try:
        os.lstat(path / "missing")
    except FileNotFoundError:
        return


@table("bits who how", [(bits, who, how) for bits in range(8) for who in CLASSES for how in DIRECTORY_ACCESS])
def test_the_bits_of_a_directory(shared: Path, bits: int, who: str, how: str) -> None:
    directory = shared / "directory"
    directory.mkdir()
    give(write(directory / "name"), USERS[who])
    give(directory, ANN, bits << CLASSES[who])
    needed, call = DIRECTORY_ACCESS[how]
    with acting(USERS[who]):
        assert attempt(call, directory) == ("ok" if bits & needed == needed else "EACCES")


# -- sticky directories ----------------------------------------------------------------------------------------------------------

TAKING: dict[str, Callable[[Path, Path], Any]] = {
    "remove": lambda path, directory: remove(path),
    "rename from": lambda path, directory: os.rename(path, directory / "renamed"),
    "rename over": lambda path, directory: os.rename(directory / "mine", path),
}


@table(
    "kind how directory_owner owner caller",
    [
        (kind, how, directory_owner, owner, caller)
        for kind in ("file", "directory", "symlink", "fifo")
        for how in TAKING
        for directory_owner in ("ann", "bob", "root")
        for owner in ("ann", "bob", "root")
        for caller in ("ann", "root")
    ],
)
def test_a_sticky_directory(shared: Path, kind: str, how: str, directory_owner: str, owner: str, caller: str) -> None:
    directory = shared / "sticky"
    directory.mkdir()
    path = give(make(kind, directory / "name"), USERS[owner])
    if how == "rename over":
        give(make(kind, directory / "mine"), USERS[caller])
    give(directory, USERS[directory_owner], 0o1777)
    may = caller in (directory_owner, owner, "root")
    with acting(USERS[caller]):
        assert attempt(TAKING[how], path, directory) == ("ok" if may else "EPERM")
    assert ("name" in os.listdir(directory)) == (not may or how == "rename over")


@table("caller expected", [("ann", "ok"), ("bob", "EPERM"), ("root", "ok")])
def test_swapping_in_a_sticky_directory_needs_rights_on_both(shared: Path, caller: str, expected: str) -> None:
    directory = shared / "sticky"
    directory.mkdir()
    give(write(directory / "anns"), ANN)
    give(write(directory / "bobs"), BOB)
    give(directory, ANN, 0o1777)
    with acting(USERS[caller]):
        assert attempt(renameat2, directory / "anns", directory / "bobs", RENAME_EXCHANGE) == expected


# -- moving a directory needs the right to change its `..` -----------------------------------------------------------------------


@table("caller mode expected", [("bob", 0o755, "EACCES"), ("bob", 0o777, "ok"), ("ann", 0o555, "EACCES"), ("ann", 0o755, "ok")])
def test_moving_a_directory_to_another_one_writes_it(shared: Path, caller: str, mode: int, expected: str) -> None:
    (shared / "moved").mkdir()
    (shared / "to").mkdir(mode=0o777)
    (shared / "to").chmod(0o777)
    give(shared / "moved", ANN, mode)
    with acting(USERS[caller]):
        assert attempt(os.rename, shared / "moved", shared / "to" / "moved") == expected


# -- what owners alone may do ----------------------------------------------------------------------------------------------------

OWNERS: dict[str, Callable[[Path], Any]] = {
    "chmod": lambda path: os.chmod(path, 0o700),
    "keep the owner": lambda path: os.lchown(path, ANN.uid, -1),
    "chown to bob": lambda path: os.lchown(path, BOB.uid, -1),
    "chgrp to the owner's group": lambda path: os.lchown(path, -1, ANN.gid),
    "chgrp to guest's group": lambda path: os.lchown(path, -1, GUEST.gid),
    "set times": lambda path: utimensat(path, (5, 0), (5, 0)),
    "set times to now": lambda path: utimensat(path, (0, UTIME_NOW), (0, UTIME_NOW)),
    "set one time to now": lambda path: utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT)),
    "leave times": lambda path: utimensat(path, (0, UTIME_OMIT), (0, UTIME_OMIT)),
}

OWNERS_MAY = """
                                 ann     peer    guest   bob     root
    chmod                        ok      EPERM   EPERM   EPERM   ok
    keep the owner               ok      EPERM   EPERM   EPERM   ok
    chown to bob                 EPERM   EPERM   EPERM   EPERM   ok
    chgrp to the owner's group   ok      EPERM   EPERM   EPERM   ok
    chgrp to guest's group       EPERM   EPERM   EPERM   EPERM   ok
    set times                    ok      EPERM   EPERM   EPERM   ok
    set times to now             ok      ok      ok      EACCES  ok
    set one time to now          ok      EPERM   EPERM   EPERM   ok
    leave times                  ok      ok      ok      ok      ok
"""


@table("kind call who expected", [(k, *cell) for k in ("file", "directory", "fifo", "character") for cell in grid(OWNERS_MAY)])
def test_what_owners_may(shared: Path, kind: str, call: str, who: str, expected: str) -> None:
    path = give(make(kind, shared / "name"), ANN, 0o770)
    with acting(USERS[who]):
        assert attempt(OWNERS[call], path) == expected


def test_an_owner_gives_to_groups_that_it_is_in(shared: Path) -> None:
    path = give(write(shared / "file"), GUEST)
    with acting(GUEST):
        for group in (*GUEST.groups, GUEST.gid):
            os.chown(path, -1, group)
            assert look(path).st_gid == group
        assert attempt(os.chown, path, -1, BOB.gid) == "EPERM"


@table("kind", [(kind,) for kind in KINDS])
def test_chown_changes_what_it_is_told(place: Path, kind: str) -> None:
    path = make(kind, place / "name")
    os.lchown(path, 11, 12)
    assert (look(path).st_uid, look(path).st_gid) == (11, 12)
    os.lchown(path, -1, 13)
    assert (look(path).st_uid, look(path).st_gid) == (11, 13)
    os.lchown(path, 14, -1)
    assert (look(path).st_uid, look(path).st_gid) == (14, 13)
    os.lchown(path, -1, -1)
    assert (look(path).st_uid, look(path).st_gid) == (14, 13)
    os.lchown(path, 2**32 - 2, 2**31 + 5)
    assert (look(path).st_uid, look(path).st_gid) == (2**32 - 2, 2**31 + 5)


def test_chown_follows_links_and_lchown_does_not(place: Path) -> None:
    write(place / "file")
    (place / "link").symlink_to("file")
    os.chown(place / "link", 11, 12)
    os.lchown(place / "link", 21, 22)
    assert (look(place / "file").st_uid, look(place / "file").st_gid) == (11, 12)
    assert (look(place / "link").st_uid, look(place / "link").st_gid) == (21, 22)


@table("mode", [(mode,) for mode in (0o000, 0o111, 0o222, 0o444, 0o755, 0o777, 0o1777, 0o2777, 0o4777, 0o7777)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "symlink"])
def test_chmod_sets_all_twelve_bits(place: Path, kind: str, mode: int) -> None:
    path = make(kind, place / "name")
    path.chmod(mode)
    assert get_mode(path) == mode
    with opened(path, os.O_PATH) as fd:
        os.chmod(f"/proc/self/fd/{fd}", 0o640)
    assert get_mode(path) == 0o640
    assert stat.S_IFMT(look(path).st_mode) == KINDS[kind][0]


def test_fchmod_and_fchown_reach_a_file_without_a_name(place: Path) -> None:
    path = write(place / "file")
    with opened(path, os.O_RDWR) as fd:
        path.unlink()
        os.fchmod(fd, 0o4711)
        os.fchown(fd, 5, 6)
        found = os.fstat(fd)
        assert (found.st_uid, found.st_gid, found.st_nlink) == (5, 6, 0)
        assert stat.S_IMODE(found.st_mode) == 0o711


# -- set-id bits: when they are taken away ---------------------------------------------------------------------------------------

SETID_MODES = {"4777": 0o4777, "2777": 0o2777, "6777": 0o6777, "2767": 0o2767, "4666": 0o4666, "1777": 0o1777}

SETID_CALLS: dict[str, Callable[[Path], Any]] = {
    "write": lambda path: _with(path, lambda fd: os.write(fd, b"x")),
    "pwrite": lambda path: _with(path, lambda fd: os.pwrite(fd, b"x", 2)),
    "write nothing": lambda path: _with(path, lambda fd: os.write(fd, b"")),
    "read": lambda path: _with(path, lambda fd: os.read(fd, 1), os.O_RDONLY),
    "truncate": lambda path: os.truncate(path, 1),
    "ftruncate": lambda path: _with(path, lambda fd: os.ftruncate(fd, 1)),
    "open O_TRUNC": lambda path: open_close(path, os.O_WRONLY | os.O_TRUNC),
    "fallocate": lambda path: _with(path, lambda fd: fallocate(fd, 0, 0, 100)),
    "punch a hole": lambda path: _with(path, lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4)),
    "set times": lambda path: os.utime(path),
    "set an attribute": lambda path: os.setxattr(path, "user.x", b"1"),
}


def _with(path: Path, call: Callable[[int], Any], flags: int = os.O_WRONLY) -> None:
    with opened(path, flags) as fd:
        call(fd)


def _without_set_ids(mode: int) -> int:
    """What is left when somebody without rights changes the content. Set-group-id alone once meant locking."""
    return mode & ~stat.S_ISUID & ~(stat.S_ISGID if mode & stat.S_IXGRP else 0)


@table("mode call who", [
    (mode, call, who) for mode in SETID_MODES for call in SETID_CALLS for who in ("bob", "root")
    if (mode, who) != ("2767", "bob")  # since Linux 6.2 it goes, before it stayed
])  # fmt: skip
def test_set_id_bits_go_when_somebody_else_writes(shared: Path, mode: str, call: str, who: str) -> None:
    path = give(write(shared / "file", b"content"), ANN, SETID_MODES[mode])
    if call == "set times":
        who = "root"
    with acting(USERS[who]):
        SETID_CALLS[call](path)
    keeps = who == "root" or call in ("write nothing", "read", "set an attribute")
    expected = SETID_MODES[mode] if keeps else _without_set_ids(SETID_MODES[mode])
    assert get_mode(path) == expected
    with opened(path, os.O_RDONLY) as fd:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == expected


@table("mode who", [(mode, who) for mode in SETID_MODES for who in ("ann", "root")])
def test_set_id_bits_go_with_the_owner(shared: Path, mode: str, who: str) -> None:
    path = give(write(shared / "file"), ANN, SETID_MODES[mode])
    with acting(USERS[who]):
        os.chown(path, -1, ANN.gid)
    assert get_mode(path) == _without_set_ids(SETID_MODES[mode])


@table("mode who", [(mode, who) for mode in SETID_MODES for who in ("ann", "root")])
def test_set_id_bits_of_a_directory_stay_when_it_is_given_away(shared: Path, mode: str, who: str) -> None:
    (shared / "directory").mkdir()
    path = give(shared / "directory", ANN, SETID_MODES[mode])
    with acting(USERS[who]):
        os.chown(path, -1, ANN.gid)
    assert get_mode(path) == SETID_MODES[mode]


@table("kind who group expected", [
    ("file", "ann", "own", 0o2755), ("file", "ann", "other", 0o755), ("file", "root", "other", 0o2755),
    ("directory", "ann", "own", 0o2755), ("directory", "ann", "other", 0o755), ("directory", "root", "other", 0o2755),
    ("file", "guest", "supplementary", 0o2755),
])  # fmt: skip
def test_set_group_id_is_for_members_to_set(shared: Path, kind: str, who: str, group: str, expected: int) -> None:
    path = make(kind, shared / "name")
    os.chown(path, USERS[who].uid, {"own": USERS[who].gid, "other": BOB.gid, "supplementary": 65510}[group])
    with acting(USERS[who]):
        path.chmod(0o2755)
    assert get_mode(path) == expected


@table("who expected", [("ann", 0o1644), ("root", 0o1644)])
def test_a_sticky_file(shared: Path, who: str, expected: int) -> None:
    path = give(write(shared / "file"), ANN)
    with acting(USERS[who]):
        path.chmod(0o1644)
    assert get_mode(path) == expected


# -- what is made, and whose it is -----------------------------------------------------------------------------------------------

MAKING: dict[str, tuple[int, Callable[[Path], Any]]] = {
    "open": (0o777, lambda path: open_close(path, os.O_CREAT | os.O_WRONLY, 0o777)),
    "open with set-id bits": (0o6777, lambda path: open_close(path, os.O_CREAT | os.O_WRONLY, 0o6777)),
    "mkdir": (0o777, lambda path: os.mkdir(path, 0o777)),
    "mkdir sticky": (0o1777, lambda path: os.mkdir(path, 0o1777)),
    "mkfifo": (0o777, lambda path: os.mkfifo(path, 0o777)),
    "mknod": (0o777, lambda path: os.mknod(path, stat.S_IFREG | 0o777)),
}


@table("call mask", [(call, mask) for call in MAKING for mask in (0, 0o022, 0o077, 0o151, 0o777)])
def test_umask(shared: Path, call: str, mask: int) -> None:
    mode, make_it = MAKING[call]
    with umask(mask), acting(ANN):
        make_it(shared / "name")
    assert get_mode(shared / "name") == mode & ~mask


@table("call who", [(call, who) for call in [*MAKING, "symlink"] for who in ("ann", "guest", "root")])
def test_what_is_made_belongs_to_who_made_it(shared: Path, call: str, who: str) -> None:
    with acting(USERS[who]):
        os.symlink("x", shared / "name") if call == "symlink" else MAKING[call][1](shared / "name")
    found = look(shared / "name")
    assert (found.st_uid, found.st_gid) == (USERS[who].uid, USERS[who].gid)


@table("call who", [(call, who) for call in [*MAKING, "symlink"] for who in ("bob", "peer", "root")])
def test_a_set_group_id_directory_gives_its_group(shared: Path, call: str, who: str) -> None:
    directory = shared / "directory"
    directory.mkdir()
    give(directory, ANN, 0o2777)
    with umask(0), acting(USERS[who]):
        os.symlink("x", directory / "name") if call == "symlink" else MAKING[call][1](directory / "name")
    found = look(directory / "name")
    assert (found.st_uid, found.st_gid) == (USERS[who].uid, ANN.gid)
    if call.startswith("mkdir"):
        assert stat.S_IMODE(found.st_mode) == MAKING[call][0] | stat.S_ISGID
    if call == "open with set-id bits":
        assert stat.S_IMODE(found.st_mode) == (0o4777 if who == "bob" else 0o6777)


def test_a_file_that_may_not_be_written_is_written_by_who_made_it(shared: Path) -> None:
    with acting(ANN):
        with opened(shared / "file", os.O_CREAT | os.O_WRONLY, 0o400) as fd:
            assert os.write(fd, b"content") == 7
        assert attempt(open_close, shared / "file", os.O_WRONLY) == "EACCES"
        assert (shared / "file").read_bytes() == b"content"
        with opened(shared / "none", os.O_CREAT | os.O_RDWR, 0) as fd:
            assert os.write(fd, b"content") == 7
            assert os.pread(fd, 9, 0) == b"content"


def test_rights_are_asked_for_at_the_open_alone(shared: Path) -> None:
    path = give(write(shared / "file", b"content"), ANN, 0o600)
    with acting(ANN):
        fd = os.open(path, os.O_RDWR)
    path.chmod(0)
    with acting(ANN):
        assert os.pwrite(fd, b"C", 0) == 1
        assert os.pread(fd, 9, 0) == b"Content"
        os.ftruncate(fd, 3)
        assert attempt(open_close, path, os.O_RDWR) == "EACCES"
    os.close(fd)


@table("kind who expected", [
    ("character", "ann", "EPERM"), ("block", "ann", "EPERM"), ("fifo", "ann", "ok"), ("socket", "ann", "ok"),
    ("file", "ann", "ok"), ("character", "root", "ok"), ("block", "root", "ok"),
])  # fmt: skip
def test_devices_are_made_by_root_alone(shared: Path, kind: str, who: str, expected: str) -> None:
    with acting(USERS[who]):
        assert attempt(make, kind, shared / "name") == expected


@table("kind", [("file",), ("fifo",), ("symlink",)])
@pytest.mark.parametrize("who", ["ann", "bob"])
def test_a_link_needs_only_the_directory(shared: Path, kind: str, who: str) -> None:
    # Where protected_hardlinks is set (the usual), who links must own the file or be able to read and write it.
    path = give(make(kind, shared / "name"), ANN)
    protected = Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1"
    with acting(USERS[who]):
        expected = "EPERM" if protected and who == "bob" else "ok"
        assert attempt(os.link, path, shared / "linked", follow_symlinks=False) == expected


# -- programs --------------------------------------------------------------------------------------------------------------------


@table("mode who expected", [(0o755, "bob", "ok"), (0o700, "ann", "ok"), (0o754, "bob", "EACCES"), (0o644, "root", "EACCES")])
def test_programs_are_run(shared: Path, mode: int, who: str, expected: str) -> None:
    path = give(write(shared / "program", b"#!/bin/sh\nexit 7\n"), ANN, mode)
    if expected == "ok":
        with acting(USERS[who]):
            child = os.posix_spawn(path, [path], {})
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    else:
        with acting(USERS[who]):
            assert attempt(os.posix_spawn, path, [path], {}) == expected
