"""Writing through two mounts, the same over every store: what programs see, and byte for byte what the store has then, read by a
client that is not ours (stores.py). One file system a store, for all tests."""

import errno
import json
import os
import random
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.conftest import make_workplace
from tests.cluster.stores import STORES, Tree, WrittenStore
from tests.cluster.writing import list_names, mounted_again, read_tree, start_written, wait_until
from tests.posix.target import kill
from tests.servers.stack import Stack

pytestmark = [
    pytest.mark.mount,
    pytest.mark.server,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(300),
]

SOAK = bool(os.environ.get("ALLUXIO_LIKE_TEST_SOAK"))
"""In the usual run go three tests, on the stores that no other test writes to through a mount; in the long one go all, on all."""
soaked = pytest.mark.skipif(not SOAK, reason="in the long runs: ALLUXIO_LIKE_TEST_SOAK=1")
USUAL = ("gs", "az", "hdfs", "cephfs")
PART_BYTES = 5 << 20
"""As small as S3 takes them."""
ENVIRONMENT = {
    "ALLUXIO_LIKE_UPLOAD_PART_BYTES": str(PART_BYTES),
    # What must stay free of a disk is for who owns it to say; here others may have filled it.
    "ALLUXIO_LIKE_KEEP_FREE_FRACTION": "0.01",
}


@dataclass
class Written:
    """A store, and two mounts of it."""

    store: WrittenStore
    stack: Stack
    here: Path
    there: Path

    def settle(self) -> None:
        """Returns once the store has all."""
        self.stack.run_command("alluxio-like", "fs", "wait", "/data", "--timeout", "120s")

    def read_stored(self, area: str) -> Tree:
        """What the store has below an area; directories that are there by what is below them included."""
        found = {key.removeprefix(f"{area}/"): data for key, data in self.store.read().items() if key.startswith(f"{area}/")}
        above = {"/".join(key.split("/")[:count]) for key in found for count in range(1, key.count("/") + 1)}
        return {**dict.fromkeys(above), **found} if self.store.is_flat else found

    def check(self, area: str, wanted: Tree) -> None:
        """Both mounts and, once it has followed, the store have this and nothing else; also what is read from it again."""
        assert read_tree(self.here / area) == wanted
        assert read_tree(self.there / area) == wanted
        self.settle()
        assert self.read_stored(area) == wanted
        assert self.list_left() == []
        self.stack.free(f"/data/{area}")
        assert read_tree(self.there / area) == wanted, "read from the store"

    def list_left(self) -> list[str]:
        """What uploads have left at the store."""
        return [*self.store.list_uploads(), *(key for key in self.store.read() if ".alluxio" in key)]


@pytest.fixture(scope="module", params=STORES if SOAK else USUAL)
def written(request: pytest.FixtureRequest) -> Iterator[Written]:
    with make_workplace() as workplace, STORES[request.param](request, workplace) as store:
        environment = {**store.environment, **ENVIRONMENT}
        with (
            start_written(workplace, store.uri, environment, options=store.options) as stack,
            mounted_again(stack, workplace) as second,
        ):
            yield Written(store, stack, stack.mountpoint / "data", second / "data")


@pytest.fixture
def area(written: Written, request: pytest.FixtureRequest) -> str:
    """A directory of the test's own."""
    name = str(request.node.originalname).removeprefix("test_")[:40]
    (written.here / name).mkdir()
    return name


def make_data(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_contents(written: Written, area: str) -> None:
    file, other = written.here / area / "f", written.there / area / "f"

    def check(wanted: bytes) -> None:
        assert other.read_bytes() == wanted
        assert written.read_stored(area)["f"] == wanted, "as soon as it is closed"

    file.write_bytes(b"first")
    check(b"first")
    other.write_bytes(b"second, from the other mount")
    assert file.read_bytes() == b"second, from the other mount"
    with file.open("ab") as out:
        out.write(b" and more")
    written.settle()  # what has only grown is not waited for
    check(b"second, from the other mount and more")
    with file.open("r+b") as patched:
        patched.seek(8)
        patched.write(b"FROM")
    check(b"second, FROM the other mount and more")
    with file.open("r+b") as patched:
        patched.truncate(6)
    check(b"second")
    os.truncate(file, 9)
    written.settle()
    check(b"second\0\0\0")
    file.write_bytes(make_data(200_000, 1))
    check(make_data(200_000, 1))
    file.write_bytes(b"")
    check(b"")
    written.check(area, {"f": b""})


def test_names(written: Written, area: str) -> None:
    here = written.here / area
    for name in ("d", "d/sub", "d/empty", "gone", "gone/deep", "target"):
        (here / name).mkdir()
    for name in ("a", "b", "c", "d/1", "d/2", "d/sub/3", "gone/x", "gone/deep/y"):
        (here / name).write_bytes(f"content of {name}".encode())
    written.check(
        area,
        {
            **dict.fromkeys(["d", "d/sub", "d/empty", "gone", "gone/deep", "target"]),
            **{name: f"content of {name}".encode() for name in ("a", "b", "c", "d/1", "d/2", "d/sub/3", "gone/x", "gone/deep/y")},
        },
    )
    (here / "a").rename(here / "b")
    (here / "c").rename(here / "target/c")
    (here / "d/1").unlink()
    (here / "d").rename(here / "target/moved")
    (here / "target/moved/2").write_bytes(b"written where it went")
    shutil.rmtree(here / "gone")
    assert list_names(written.there / area) == ["b", "target"]
    (here / "target").rename(here / "last")
    (here / "target").mkdir()
    (here / "target").rmdir()
    written.check(
        area,
        {
            "b": b"content of a",
            **dict.fromkeys(["last", "last/moved", "last/moved/sub", "last/moved/empty"]),
            "last/c": b"content of c",
            "last/moved/2": b"written where it went",
            "last/moved/sub/3": b"content of d/sub/3",
        },
    )
    shutil.rmtree(here / "last")
    (here / "b").unlink()
    written.check(area, {})


@soaked
def test_a_name_is_used_again_and_again(written: Written, area: str) -> None:
    """As checkpoints are saved: beside, and renamed over the one before; and the other way round, moved away first."""
    here = written.here / area
    for step in range(5):
        (here / "new").write_bytes(b"%d" % step * 1000)
        if step % 2:
            (here / "latest").rename(here / "before")
        (here / "new").rename(here / "latest")
        (here / "log").open("ab").close()
        (here / "log").unlink()
        (here / "log").write_bytes(b"step %d" % step)
    written.check(area, {"latest": b"4" * 1000, "before": b"2" * 1000, "log": b"step 4"})


@soaked
def test_odd_names(written: Written, area: str) -> None:
    here = written.here / area
    names = ["a b", "a+b", "100%", "%41", "q?x=1&y", "h#1", "<&>;'\"", "日本", "é", "e\u0301", "\U0001f600", " ", "...", "~", "*"]
    names += ["x" * 255, "n\nl", "t\tb", "\x01", "10:30", "back\\slash", "a.", "$", ".hidden", "not \udcff"]
    names = [name for name in names if name not in written.store.refused and not is_like(name, written.store.refused)]
    for name in names:
        (here / name).write_bytes(os.fsencode(name))
    (here / "d %").mkdir()
    (here / "d %/e+f").write_bytes(b"below")
    (here / "d %").rename(here / "d#")
    (here / names[0]).rename(here / "renamed ?")
    kept = {**{name: os.fsencode(name) for name in names[1:]}, "renamed ?": b"a b", "d#": None, "d#/e+f": b"below"}
    written.check(area, kept)
    written.stack.run_command("alluxio-like", "fs", "sync", f"/data/{area}")
    assert read_tree(written.there / area) == kept, "as the store lists them"


def is_like(name: str, refused: object) -> bool:
    """Whether a name has a character for which another one is refused."""
    assert isinstance(refused, dict)
    kinds = {"UTF-8": "\udcff", "control": "\x01\n\t\x7f", "line breaks": "\n\r", "colons": ":", "backslashes": "\\"}
    return any(char in name for word in refused.values() for char in kinds.get(word, ""))


@soaked
def test_names_that_the_store_cannot_have(written: Written, area: str) -> None:
    (written.here / area / "f").write_bytes(b"1")
    for name in written.store.refused:
        # What is reserved is so at the mount's root at least.
        path = written.here / name
        attempts: list[Callable[[Path], object]] = [
            lambda path: path.write_bytes(b""),
            Path.mkdir,
            (written.here / area / "f").rename,
            lambda path: path.symlink_to("f"),
        ]
        for attempt in attempts:
            with pytest.raises(OSError) as caught:
                attempt(path)
            assert caught.value.errno == errno.EINVAL, name
    written.check(area, {"f": b"1"})


def test_large_contents_go_by_parts(written: Written, area: str) -> None:
    here = written.here / area
    first, second = make_data(3 * PART_BYTES + 7, 1), make_data(2 * PART_BYTES, 2)
    (here / "f").write_bytes(first)
    assert written.read_stored(area) == {"f": first}
    written.check(area, {"f": first})
    (here / "f").rename(here / "g")
    written.check(area, {"g": first})
    (here / "g").write_bytes(second)
    assert written.read_stored(area) == {"g": second}
    with (here / "g").open("r+b") as out:
        out.seek(PART_BYTES - 3)
        out.write(b"across")
    second = second[: PART_BYTES - 3] + b"across" + second[PART_BYTES + 3 :]
    written.check(area, {"g": second})
    (here / "g").unlink()
    written.check(area, {})


@soaked
def test_attributes_are_kept_with_the_content(written: Written, area: str) -> None:
    file = written.here / area / "f"
    with file.open("wb") as out:
        out.write(b"1")
        os.fchmod(out.fileno(), 0o640)
        os.fchown(out.fileno(), 1000, 2000)
    found = (written.there / area / "f").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 1000, 2000)
    if written.store.get_metadata is not None:
        kept = written.store.get_metadata(f"{area}/f")
        assert (kept["mode"], kept["uid"], kept["gid"]) == (str(stat.S_IFREG | 0o640), "1000", "2000")
        assert float(kept["mtime"]) == pytest.approx(found.st_mtime, abs=0.001)
    file.rename(written.here / area / "g")
    written.check(area, {"g": b"1"})
    if written.store.get_metadata is not None:
        assert written.store.get_metadata(f"{area}/g")["mode"] == str(stat.S_IFREG | 0o640)
    if written.store.is_flat:
        # Who mounts the store anew, and asks for them, has them from there.
        options = [f"-o{name}={value}" for name, value in {**written.store.options, "attrs": "object"}.items()]
        written.stack.run_command("alluxio-like", "mount", "/anew", written.store.uri, *options)
        anew = (written.here.parent / "anew" / area / "g").stat()
        assert (stat.S_IMODE(anew.st_mode), anew.st_uid, anew.st_gid, anew.st_mtime_ns) == (0o640, 1000, 2000, found.st_mtime_ns)
        written.stack.run_command("alluxio-like", "unmount", "/anew")


@soaked
def test_what_somebody_else_wrote_is_kept(written: Written, area: str) -> None:
    file = written.here / area / "f"
    file.write_bytes(b"before")
    written.settle()
    written.store.put(f"{area}/f", b"written by somebody else")
    file.write_bytes(b"ours")
    written.settle()
    stored = written.read_stored(area)
    (beside,) = [name for name in stored if name.startswith("f.conflict-")]
    assert stored == {"f": b"written by somebody else", beside: b"ours"}
    report = json.dumps(written.stack.run_command("alluxio-like", "report"))
    assert beside in report
    wait_until(lambda: list_names(written.there / area) == ["f", beside], "both names")
    (written.here / area / beside).unlink()
    written.check(area, {"f": b"written by somebody else"})


@soaked
def test_a_worker_that_is_killed_in_the_middle_of_an_upload(written: Written, area: str) -> None:
    written.stack.run_command("cache", "policy", f"/data/{area}", "back")
    data = make_data(4 * PART_BYTES + 3, 3)
    written.store.hold()
    (written.here / area / "f").write_bytes(data)

    def is_begun() -> bool:
        return bool(written.list_left()) or "f" in written.read_stored(area)

    wait_until(is_begun, "the upload")
    kill(written.stack, "worker")
    written.store.resume()
    written.check(area, {"f": data})


@soaked
def test_a_close_waits_for_a_store_that_comes_back(written: Written, area: str) -> None:
    if not written.store.is_waited_for:
        pytest.skip("it is missing, not silent: the close fails at once")
    failed: list[BaseException] = []

    def write() -> None:
        try:
            (written.here / area / "f").write_bytes(b"late")
        except BaseException as error:  # noqa: BLE001  (the test's thread tells)
            failed.append(error)

    written.settle()
    written.store.stop()
    try:
        writer = threading.Thread(target=write)
        writer.start()
        wait_until(lambda: written.stack.run_command("alluxio-like", "report")["unpersisted_files"] == 1, "it is written")
        assert writer.is_alive()
    finally:
        written.store.resume()
    writer.join(120)
    assert not failed
    assert written.read_stored(area) == {"f": b"late"}
    written.check(area, {"f": b"late"})


@soaked
def test_closes_in_the_background_wait_for_no_store(written: Written, area: str) -> None:
    here = written.here / area
    written.stack.run_command("cache", "policy", f"/data/{area}", "back")
    (here / "d").mkdir()
    (here / "d/old").write_bytes(b"old")
    written.settle()
    written.store.stop()
    try:
        (here / "f").write_bytes(b"written meanwhile")
        (here / "f").rename(here / "g")
        (here / "d/new").write_bytes(b"new")
        (here / "d/old").unlink()
        assert (written.there / area / "g").read_bytes() == b"written meanwhile"
    finally:
        written.store.resume()
    written.check(area, {"g": b"written meanwhile", "d": None, "d/new": b"new"})


@soaked
def test_a_store_that_refuses_fails_the_close(written: Written, area: str) -> None:
    if written.store.refuse is None:
        pytest.skip("the server cannot be told to")
    written.settle()
    written.store.refuse()
    try:
        with pytest.raises(PermissionError):
            (written.here / area / "f").write_bytes(b"precious")
        assert (written.there / area / "f").read_bytes() == b"precious"
    finally:
        written.store.resume()
    written.check(area, {"f": b"precious"})
