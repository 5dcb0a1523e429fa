"""Programs are killed as they write: what they leave is one thing, at once, on their mount and soon on another one.

Nobody was told that anything is safe, so anything may be there; but a size is that of the bytes, and what is shown stays.
KILLS is the number of rounds (`make soak`: 300), KILLS_SEED makes others of them.
"""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cluster.conftest import workplace  # noqa: F401  (a fixture)
from tests.cluster.writing import mounted_again, start_written, wait_until
from tests.crash.killed_writer import make_piece

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(0 if "ALLUXIO_LIKE_TEST_SOAK" in os.environ else 300),
]

KILLS = int(os.environ.get("KILLS", "300" if os.environ.get("ALLUXIO_LIKE_TEST_SOAK") else "10"))
SEED = int(os.environ.get("KILLS_SEED", "1"))
PROGRAM = Path(__file__).with_name("killed_writer.py")


class Shown(NamedTuple):
    """A file as a mount shows it: by its name before and after it was read, by a descriptor, and by its bytes."""

    size: int
    size_open: int
    size_after: int
    data: bytes
    inode: int
    links: int
    mtime_ns: int

    @property
    def is_one_thing(self) -> bool:
        return self.size == self.size_open == self.size_after == len(self.data)


def show(directory: Path) -> dict[str, Shown]:
    shown = {}
    for path in directory.iterdir():
        before = path.lstat()
        with path.open("rb", buffering=0) as file:
            opened, data = os.fstat(file.fileno()), file.readall()
        after = path.lstat()
        shown[path.name] = Shown(
            before.st_size, opened.st_size, after.st_size, data, after.st_ino, after.st_nlink, after.st_mtime_ns
        )
    return shown


@pytest.fixture(scope="module", params=["through", "back:1"])
def mounts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """One directory, on two mounts."""
    base = tmp_path_factory.mktemp("killed")
    (base / "store").mkdir()
    roomy = {**os.environ, "ALLUXIO_LIKE_KEEP_FREE_FRACTION": "0.01"}
    with start_written(base, f"file://{base}/store", roomy, request.param) as stack, mounted_again(stack, base) as second:
        yield stack.mountpoint / "data", second / "data"


def test_what_killed_writers_leave_is_one_thing(mounts: tuple[Path, Path]) -> None:
    chance = random.Random(SEED)
    for number in range(KILLS):
        name = f"d{number}"
        places = [mount / name for mount in chance.sample(mounts, 2)]
        places[0].mkdir()
        count = kill_some(places, number, chance)
        wait_one_thing(places, f"round {number}", count)
        # Nothing of them is in the way of the next one, and its close is seen at once.
        content = make_piece(number, 500 + number)
        (places[0] / "a").write_bytes(content)
        for place in places:
            assert ((place / "a").read_bytes(), (place / "a").stat().st_size) == (content, len(content))


def wait_one_thing(places: list[Path], when: str, writers: int) -> None:
    def is_the_same() -> bool:
        shown = show(places[0])
        return all(one.is_one_thing for one in shown.values()) and shown == show(places[1])

    # On their own mount nothing has to be waited for, whatever has not been sealed yet. What comes from another mount may come
    # just as one looks: between a look at its size and one at its bytes.
    for shown in (show(places[0]), show(places[0])) if writers == 1 else ():
        assert all(one.is_one_thing for one in shown.values()), (when, shown)
    wait_until(is_the_same, f"{when}: the same on both mounts")


def kill_some(places: list[Path], number: int, chance: random.Random) -> int:
    """Have one or two programs write, each on a mount of its own, and kill them at some moment; how many they were."""
    writers = []
    for each in range(chance.randint(1, 2)):
        command = [sys.executable, "-S", str(PROGRAM), str(number * 10 + each), str(places[each])]
        writers.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    with contextlib.suppress(subprocess.TimeoutExpired):
        writers[0].wait(chance.random() * 0.3)
    for writer in writers:
        assert writer.poll() is None, "it has ended by itself"
        writer.kill()
    for writer in writers:
        writer.communicate(timeout=60)
    return len(writers)


def test_what_a_killed_writer_has_in_a_new_file_is_there(mounts: tuple[Path, Path]) -> None:
    """Its close is looked at by nobody, and the file is read and looked at while that goes on."""
    program = (
        "import os, sys\nos.write(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), b'written')\nprint(flush=True)\nos.read(0, 1)"
    )
    place = mounts[0] / "new"
    place.mkdir()
    for number in range(2 * KILLS):
        path = place / str(number)
        command = [sys.executable, "-S", "-c", program, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            writer.kill()
        assert path.read_bytes() == b"written"
        assert path.lstat().st_size == 7
        wait_content(mounts[1] / "new" / path.name, b"written")


def wait_content(path: Path, content: bytes) -> None:
    wait_until(lambda: path.read_bytes() == content, "on the other mount")
