"""Extended attributes: namespaces and who may use them, flags, sizes, names. (Access control lists: test_lists.py.)"""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.system import (
    ANN,
    BOB,
    GUEST,
    KINDS,
    PEER,
    ROOT,
    acting,
    attempt,
    give,
    make,
    opened,
    write,
)
from tests.posix.table import table

pytestmark = pytest.mark.mount

USERS = {"ann": ANN, "peer": PEER, "guest": GUEST, "bob": BOB, "root": ROOT}


def list_given(path: Path, *, follow: bool = True) -> set[str]:
    """The attributes that somebody has set."""
    return set(os.listxattr(path, follow_symlinks=follow))


@table("size", [(size,) for size in (0, 1, 100, 255, 256, 1000, 3000)])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_values_of_every_size(place: Path, kind: str, size: int) -> None:
    path = make(kind, place / "name")
    value = bytes(i % 256 for i in range(size))
    os.setxattr(path, "user.given", value)
    assert os.getxattr(path, "user.given") == value
    assert list_given(path) == {"user.given"}
    with opened(path) as fd:
        assert os.getxattr(fd, "user.given") == value
        os.removexattr(fd, "user.given")
    assert list_given(path) == set()
    assert attempt(os.getxattr, path, "user.given") == "ENODATA"


@table("size expected", [(65537, "E2BIG"), (1 << 20, "E2BIG")])
def test_values_that_are_too_large(place: Path, size: int, expected: str) -> None:
    path = write(place / "file")
    assert attempt(os.setxattr, path, "user.given", bytes(size)) == expected
    assert list_given(path) == set()


@table("flag there expected", [
    ("", False, "ok"), ("", True, "ok"), ("CREATE", False, "ok"), ("CREATE", True, "EEXIST"), ("REPLACE", False, "ENODATA"),
    ("REPLACE", True, "ok"),
])  # fmt: skip
def test_flags(place: Path, flag: str, there: bool, expected: str) -> None:
    path = write(place / "file")
    if there:
        os.setxattr(path, "user.given", b"before")
    flags = {"": 0, "CREATE": os.XATTR_CREATE, "REPLACE": os.XATTR_REPLACE}[flag]
    assert attempt(os.setxattr, path, "user.given", b"after", flags) == expected
    assert list_given(path) == ({"user.given"} if there or expected == "ok" else set())
    if there:
        assert os.getxattr(path, "user.given") == (b"after" if expected == "ok" else b"before")


@table("name expected", [
    ("user.", "EINVAL"), ("user", "ENOTSUP"), ("", "ERANGE"), ("nothing.x", "ENOTSUP"), ("system.x", "ENOTSUP"),
    ("user.ü.ü", "ok"), ("user. x", "ok"),
    ("user.a.b.c", "ok"), ("user." + "n" * 250, "ok"), ("user." + "n" * 251, "ERANGE"), ("trusted.x", "ok"), ("security.x", "ok"),
])  # fmt: skip
def test_names(place: Path, name: str, expected: str) -> None:
    path = write(place / "file")
    assert attempt(os.setxattr, path, name, b"value") == expected
    if expected == "ENOTSUP":
        assert attempt(os.getxattr, path, name) == expected
    if expected == "ok":
        assert os.getxattr(path, name) == b"value"
        assert name in os.listxattr(path)


def test_many_attributes(place: Path) -> None:
    path = write(place / "file")
    for i in range(40):
        os.setxattr(path, f"user.number{i}", str(i).encode())
    for i in range(0, 40, 2):
        os.removexattr(path, f"user.number{i}")
    assert list_given(path) == {f"user.number{i}" for i in range(1, 40, 2)}
    assert all(os.getxattr(path, f"user.number{i}") == str(i).encode() for i in range(1, 40, 2))


@table("kind namespace expected", [
    (kind, namespace, "ok" if namespace == "trusted" or kind in ("file", "directory") else "EPERM")
    for kind in KINDS for namespace in ("user", "trusted")
])  # fmt: skip
def test_which_kinds_have_them(place: Path, kind: str, namespace: str, expected: str) -> None:
    path = make(kind, place / "name")
    assert attempt(os.setxattr, path, f"{namespace}.x", b"v", follow_symlinks=False) == expected
    assert list_given(path, follow=False) == ({f"{namespace}.x"} if expected == "ok" else set())


@table("name mode who call expected", [
    ("user.x", 0o644, "bob", "get", "ok"), ("user.x", 0o600, "bob", "get", "EACCES"), ("user.x", 0o200, "ann", "get", "EACCES"),
    ("user.x", 0o644, "bob", "set", "EACCES"), ("user.x", 0o646, "bob", "set", "ok"),
    ("user.x", 0o644, "bob", "remove", "EACCES"), ("user.x", 0o000, "bob", "list", "ok"),
    ("user.x", 0o000, "root", "set", "ok"), ("trusted.x", 0o000, "root", "get", "ok"),
    ("trusted.x", 0o777, "ann", "set", "EPERM"), ("trusted.x", 0o777, "ann", "get", "ENODATA"),
    ("trusted.x", 0o777, "ann", "remove", "EPERM"), ("security.x", 0o777, "ann", "set", "EPERM"),
])  # fmt: skip
def test_who_may(place: Path, name: str, mode: int, who: str, call: str, expected: str) -> None:
    path = write(place / "file")
    os.setxattr(path, name, b"value")
    give(path, ANN, mode)
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: os.getxattr(path, name),
        "set": lambda: os.setxattr(path, name, b"other"),
        "remove": lambda: os.removexattr(path, name),
        "list": lambda: os.listxattr(path),
    }
    with acting(USERS[who]):
        assert attempt(calls[call]) == expected
        if name.startswith("trusted.") and who != "root":
            assert name not in os.listxattr(path)


def test_attributes_of_a_sticky_directory_are_its_owners(place: Path) -> None:
    give(place, ANN, 0o1777)
    with acting(BOB):
        assert attempt(os.setxattr, place, "user.x", b"v") == "EPERM"
    with acting(ANN):
        assert attempt(os.setxattr, place, "user.x", b"v") == "ok"


def test_attributes_go_with_the_file(place: Path) -> None:
    path = write(place / "file")
    os.setxattr(path, "user.x", b"v")
    os.rename(path, place / "renamed")
    os.link(place / "renamed", path)
    assert os.getxattr(path, "user.x") == b"v"
    with opened(path, os.O_RDWR) as fd:
        path.unlink()
        (place / "renamed").unlink()
        os.setxattr(fd, "user.y", b"w")
        assert {name: os.getxattr(fd, name) for name in os.listxattr(fd)} == {
            "user.x": b"v",
            "user.y": b"w",
        }
    write(path)
    assert list_given(path) == set()


def test_capabilities_of_a_program_go_when_it_is_written(place: Path) -> None:
    path = write(place / "program", b"content", 0o755)
    value = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service, effective
    os.setxattr(path, "security.capability", value)
    assert os.getxattr(path, "security.capability") == value
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")
    assert attempt(os.getxattr, path, "security.capability") == "ENODATA"
