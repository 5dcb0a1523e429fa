"""Writing with real services: two mounts of one machine, file systems and a real S3 server as stores."""

import contextlib
import errno
import mmap
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.writing import list_names, mounted_again, read_tree, start_written, wait_until
from tests.posix.system import (
    BOB,
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    acting,
    attempt,
    fallocate,
    open_close,
    opened,
    write,
)
from tests.servers.fixtures import S3Server
from tests.servers.stack import Stack

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(240),
]

STEPS = 120


class Store:
    """Where what is written ends up."""

    def __init__(self, uri: str, environment: dict[str, str], read: Callable[[], dict[str, bytes]]) -> None:
        self.uri = uri
        self.environment = environment
        self.read = read


def make_s3(server: S3Server, bucket: str) -> Store:
    def read() -> dict[str, bytes]:
        found = {}
        for page in server.client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for one in page.get("Contents", []):
                key = one["Key"]
                if not key.endswith("/"):
                    with contextlib.suppress(server.client.exceptions.NoSuchKey):  # gone since it was listed
                        found[key] = server.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return found

    return Store(f"s3://{bucket}", server.environment, read)


def make_directory(directory: Path) -> Store:
    directory.mkdir()

    def read() -> dict[str, bytes]:
        return {name: data for name, data in read_tree(directory).items() if data is not None}

    return Store(f"file://{directory}", {}, read)


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, workplace: Path) -> Store:
    if request.param == "file":
        return make_directory(workplace / "store")
    return make_s3(request.getfixturevalue("s3_server"), request.getfixturevalue("s3_bucket"))


@pytest.fixture
def stack(store: Store, workplace: Path) -> Iterator[Stack]:
    with start_written(workplace, store.uri, store.environment) as made:
        yield made


@pytest.fixture
def places(stack: Stack, workplace: Path) -> Iterator[tuple[Path, Path]]:
    """The two mounts' views of the store."""
    with mounted_again(stack, workplace) as second:
        yield stack.mountpoint / "data", second / "data"


class Twice:
    """Does things on one mount or the other and knows what has to be there then."""

    def __init__(self, places: tuple[Path, Path], seed: int) -> None:
        self.places = places
        self.random = random.Random(seed)
        self.files: dict[str, bytes] = {}

    def pick(self) -> tuple[Path, Path]:
        """Where something is done, and where it is looked at."""
        first = self.random.randrange(2)
        return self.places[first], self.places[1 - first]

    def step(self) -> str:
        here, there = self.pick()
        name = f"f{self.random.randrange(6)}"
        known = self.files.get(name)
        data = self.random.randbytes(self.random.choice([0, 1, 100, 70_000]))
        what = self.random.choice(["write", "append", "patch", "truncate", "rename", "remove", "look", "replace"])
        if what == "write":
            (here / name).write_bytes(data)
            self.files[name] = data
        elif what == "append":
            with (here / name).open("ab") as out:
                out.write(data)
            self.files[name] = (known or b"") + data
        elif what == "patch" and known:
            at = self.random.randrange(len(known))
            with (here / name).open("r+b") as out:
                out.seek(at)
                out.write(data)
            self.files[name] = known[:at] + data + known[at + len(data) :]
        elif what == "truncate" and known is not None:
            size = self.random.randrange(100_000)
            os.truncate(here / name, size)
            self.files[name] = known[:size].ljust(size, b"\0")
        elif what == "rename" and known is not None:
            other = f"f{self.random.randrange(6)}"
            (here / name).rename(here / other)
            del self.files[name]
            self.files[other] = known
        elif what == "remove" and known is not None:
            (here / name).unlink()
            del self.files[name]
        elif what == "replace":
            (here / "new").write_bytes(data)
            (here / "new").rename(here / name)
            self.files[name] = data
        self.look(there, name, what)
        return what

    def look(self, there: Path, name: str, what: str) -> None:
        known = self.files.get(name)
        if known is None:
            assert not (there / name).exists(), f"{name} after {what}"
        else:
            assert (there / name).stat().st_size == len(known), f"{name} after {what}"
            assert (there / name).read_bytes() == known, f"{name} after {what}"
        if self.random.randrange(5) == 0:
            assert list_names(there) == sorted(self.files), f"after {what}"


def test_what_one_mount_does_the_other_sees_at_once(store: Store, places: tuple[Path, Path]) -> None:
    twice = Twice(places, seed=7)
    for _ in range(STEPS):
        twice.step()
    wait_until(lambda: store.read() == twice.files, "the store follows")


@pytest.fixture
def apart(store: Store, workplace: Path) -> Iterator[tuple[Path, Path]]:
    """Two mounts as on two machines, each with a worker of its own."""
    with (
        start_written(workplace, store.uri, store.environment, workers=2) as stack,
        mounted_again(stack, workplace, "mnt1", hidden_worker=2) as first,
        mounted_again(stack, workplace, "mnt2", hidden_worker=1) as second,
    ):
        yield first / "data", second / "data"


def test_what_one_machine_does_another_sees_at_once(store: Store, apart: tuple[Path, Path]) -> None:
    twice = Twice(apart, seed=11)
    for _ in range(STEPS):
        twice.step()
    wait_until(lambda: store.read() == twice.files, "the store follows")


def test_two_machines_write_one_file_and_the_last_to_close_wins(apart: tuple[Path, Path]) -> None:
    here, there = apart
    (here / "f").write_bytes(b"the beginning")
    with (here / "f").open("r+b", buffering=0) as one, (there / "f").open("r+b", buffering=0) as other:
        one.write(b"ONE")
        other.write(b"THE OTHER")
        assert (here / "f").read_bytes() == b"ONE beginning"
        one.close()
        assert (there / "f").read_bytes() == b"THE OTHERning"
    for place in apart:
        wait_until(lambda place=place: (place / "f").read_bytes() == b"THE OTHERning", "the last to close")
    (here / "f").write_bytes(b"and on")
    assert (there / "f").read_bytes() == b"and on"


def test_what_is_said_to_be_there_is_found_and_what_is_said_to_be_gone_is_not(apart: tuple[Path, Path]) -> None:
    """To whom a change is refused since the other machine was faster, and is about to tell of it."""
    together = threading.Barrier(2, timeout=60)

    def look_and_change(place: Path) -> None:
        for step in range(100):
            directory, file = place / f"d{step}", place / f"f{step}"
            assert not directory.exists()
            assert not file.exists()
            together.wait()
            directory.mkdir(exist_ok=True)  # where it is refused, this looks whether a directory is there
            together.wait()
            try:
                file.open("xb").close()
            except FileExistsError:
                assert file.exists()
            together.wait()
            try:
                directory.rmdir()
            except FileNotFoundError:
                assert not directory.exists()
            together.wait()

    def change(place: Path) -> None:
        try:
            look_and_change(place)
        except BaseException:
            together.abort()
            raise

    with ThreadPoolExecutor(2) as machines:
        done = [machines.submit(change, place) for place in apart]
    problems = [error for error in (one.exception() for one in done) if not isinstance(error, threading.BrokenBarrierError)]
    assert problems == [None, None]


def test_opens_succeed_while_two_machines_write_one_file(apart: tuple[Path, Path]) -> None:
    """What an open has looked up may be gone when it is to be brought: the other machine has written the file anew."""
    (apart[0] / "f").write_bytes(b"-")

    def write(place: Path) -> None:
        for _ in range(40):
            with (place / "f").open("ab", buffering=0) as file:
                file.write(b"+")

    with ThreadPoolExecutor(2) as machines:
        list(machines.map(write, apart))
    # (Neither waits for the other, so what one has appended may be lost to the other.)
    found = (apart[0] / "f").read_bytes()
    assert found == b"-" + b"+" * (len(found) - 1)
    assert (apart[1] / "f").read_bytes() == found


def test_bytes_are_where_the_policy_wants_them_when_close_returns(store: Store, stack: Stack) -> None:
    here = stack.mountpoint / "data"
    (here / "sub").mkdir()
    data = os.urandom((9 << 20) + 17)
    (here / "sub/large").write_bytes(data)
    assert store.read()["sub/large"] == data
    (here / "empty").write_bytes(b"")
    assert store.read()["empty"] == b""
    fd = os.open(here / "sub/large", os.O_RDWR)
    os.pwrite(fd, b"changed", 5 << 20)
    os.fsync(fd)
    assert store.read()["sub/large"] == data
    os.close(fd)
    assert store.read()["sub/large"] == data[: 5 << 20] + b"changed" + data[(5 << 20) + 7 :]


def test_readers_of_the_old_version_go_on(places: tuple[Path, Path]) -> None:
    here, there = places
    old, new = os.urandom(3 << 20), os.urandom(2 << 20)
    (here / "f").write_bytes(old)
    with (there / "f").open("rb", buffering=0) as reading:
        assert reading.read(1 << 20) == old[: 1 << 20]
        (here / "new").write_bytes(new)
        (here / "new").rename(here / "f")
        assert (there / "f").read_bytes() == new
        assert reading.read() == old[1 << 20 :]
        assert os.fstat(reading.fileno()).st_size == len(old)


def count_free(place: Path) -> int:
    """Bytes that statfs shows as free."""
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_no_more_is_allocated_than_the_cache_can_hold(stack: Stack) -> None:
    """Of 2 GB, on a disk that has more."""
    first, second = stack.mountpoint / "data" / "first", stack.mountpoint / "data" / "second"
    with opened(first, os.O_RDWR | os.O_CREAT) as fd:
        for mode in (0, KEEP_SIZE, ZERO_RANGE):
            assert attempt(fallocate, fd, mode, 0, 3 << 30) == "ENOSPC"
            assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks) == (0, 0)
        fallocate(fd, 0, 0, 1 << 30)
        # What is there is not allocated again, and a hole takes nothing.
        fallocate(fd, 0, 0, (1 << 30) + (256 << 20))
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 1 << 40)
        fallocate(fd, 0, 0, (1 << 30) + (256 << 20))
        wait_until(lambda: 0 < count_free(stack.mountpoint / "data") < 1 << 30, "statfs shows what is left")

        def try_second() -> str:
            with opened(second, os.O_RDWR | os.O_CREAT) as other:
                result = attempt(fallocate, other, 0, 0, 3 << 29)
                os.ftruncate(other, 0)
            return result

        wait_until(lambda: try_second() == "ENOSPC", "what another file takes is known of")
        first.unlink()
    wait_until(lambda: try_second() == "ok", "it is known to be gone")


def test_a_mapping_that_outlives_its_descriptor_is_not_lost(stack: Stack) -> None:
    here = stack.mountpoint / "data"
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8192)
    with mmap.mmap(fd, 8192) as mapping:
        mapping[:5] = b"early"
        os.close(fd)
        mapping[4096:4100] = b"late"
        mapping.flush()
    wanted = b"early".ljust(4096, b"\0") + b"late".ljust(4096, b"\0")
    wait_until(lambda: (here / "f").read_bytes() == wanted, "what came after the close")


def test_names_links_and_attributes_on_both_mounts(places: tuple[Path, Path]) -> None:
    here, there = places
    (here / "d").mkdir(0o750)
    assert (there / "d").stat().st_mode & 0o777 == 0o750
    (there / "d/f").write_bytes(b"x")
    os.link(here / "d/f", here / "l")
    assert ((there / "l").stat().st_nlink, (there / "d/f").stat().st_nlink) == (2, 2)
    (there / "l").write_bytes(b"both")
    assert (here / "d/f").read_bytes() == b"both"
    (here / "d/f").unlink()
    assert ((there / "l").stat().st_nlink, (there / "l").read_bytes()) == (1, b"both")
    (here / "s").symlink_to("l")
    assert (there / "s").read_bytes() == b"both"
    (there / "l").chmod(0o600)
    os.utime(there / "l", ns=(3, 4))
    os.setxattr(there / "l", "user.a", b"b")
    found = (here / "l").stat()
    assert (found.st_mode & 0o777, found.st_atime_ns, found.st_mtime_ns) == (0o600, 3, 4)
    assert os.getxattr(here / "l", "user.a") == b"b"
    with pytest.raises(OSError) as caught:
        (here / "d").rename(there / "d2")
    assert caught.value.errno == errno.EXDEV
    (here / "d").rename(here / "d2")
    assert list_names(there) == ["d2", "l", "s"]
    with pytest.raises(FileExistsError):
        os.close(os.open(there / "l", os.O_CREAT | os.O_EXCL))


def test_access_control_lists_are_known_on_both_mounts(places: tuple[Path, Path]) -> None:
    def may_read(path: Path) -> bool:
        with acting(BOB), contextlib.suppress(PermissionError):
            open_close(path)
            return True
        return False

    here, there = places
    here.parents[1].chmod(0o755)  # others than root have to reach it
    write(here / "f", b"x", 0o600)
    assert not may_read(there / "f")
    entries = [(1, 6, -1), (2, 4, BOB.uid), (4, 0, -1), (16, 4, -1), (32, 0, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, number & 0xFFFFFFFF) for tag, bits, number in entries)
    os.setxattr(here / "f", "system.posix_acl_access", value)
    assert may_read(there / "f")
    assert may_read(here / "f")
    (there / "f").chmod(0o600)
    assert not may_read(here / "f")
    (here / "f").chmod(0o640)
    assert may_read(there / "f")
    os.removexattr(there / "f", "system.posix_acl_access")
    assert not may_read(here / "f")
    os.setxattr(here, "system.posix_acl_default", value)
    write(there / "g", b"x", 0o640)
    assert may_read(here / "g")
    os.removexattr(there, "system.posix_acl_default")
    write(here / "h", b"x", 0o640)
    assert not may_read(there / "h")


def test_holes_are_found_after_the_close_too(stack: Stack) -> None:
    file = stack.mountpoint / "data/f"
    with file.open("wb") as out:
        out.truncate(4 << 20)
        os.pwrite(out.fileno(), b"x" * 4096, 1 << 20)

    def find_all() -> list[int]:
        with file.open("rb") as found:
            asked = ((0, os.SEEK_HOLE), (0, os.SEEK_DATA), (1 << 20, os.SEEK_HOLE))
            return [os.lseek(found.fileno(), offset, whence) for offset, whence in asked]

    # While what was written becomes a file of the cache, a moment after the close, it shows none.
    wait_until(lambda: find_all() == [0, 1 << 20, (1 << 20) + 4096], "the holes")


def test_an_unlinked_file_is_written_on_and_never_uploaded(store: Store, stack: Stack) -> None:
    here = stack.mountpoint / "data"
    with (here / "f").open("w+b", buffering=0) as file:
        (here / "f").unlink()
        file.write(b"nobody else sees this")
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == b"nobody else sees this"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert list_names(here) == []
    wait_until(lambda: store.read() == {}, "the store follows")


def test_both_mounts_make_and_remove_in_one_directory_at_once(places: tuple[Path, Path]) -> None:
    """Each waits for the other to hear of what it does, and neither for itself."""
    failed: list[BaseException] = []

    def work(place: Path, mine: str) -> None:
        try:
            for number in range(40):
                (place / f"{mine}{number}").write_bytes(mine.encode())
                (place / f"{mine}{number}").rename(place / f"{mine}{number}.done")
                if number % 2:
                    (place / f"{mine}{number}.done").unlink()
        except BaseException as error:  # noqa: BLE001  (the test's thread tells)
            failed.append(error)

    threads = [threading.Thread(target=work, args=(place, mine)) for place, mine in zip(places, "ab", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    wanted = sorted(f"{mine}{number}.done" for mine in "ab" for number in range(0, 40, 2))
    assert list_names(places[0]) == list_names(places[1]) == wanted


def test_other_mounts_of_the_namespace_stay_as_they_are(stack: Stack, workplace: Path) -> None:
    (workplace / "fixed").mkdir()
    (workplace / "fixed/f").write_bytes(b"as it is")
    stack.run_command("alluxio-like", "mount", "/fixed", f"file://{workplace / 'fixed'}")
    place = stack.mountpoint / "fixed"
    attempts: list[Callable[[], object]] = [
        lambda: (place / "f").write_bytes(b"x"),
        lambda: (place / "g").write_bytes(b"x"),
        (place / "f").unlink,
        lambda: (place / "f").chmod(0o600),
        lambda: os.truncate(place / "f", 1),
        lambda: os.open(place / "f", os.O_RDWR),
    ]
    for call in attempts:
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EROFS
    assert (place / "f").read_bytes() == b"as it is"
