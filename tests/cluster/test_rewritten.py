"""A file that one machine writes anew, again and again, while another one reads it."""

import itertools
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import make_workplace
from tests.cluster.writing import mounted_again, start_written

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(240),
]

MIB = 1 << 20
ROUNDS = 150
_numbers = itertools.count()


@pytest.fixture(scope="module")
def mounts() -> Iterator[tuple[Path, Path]]:
    """Two mounts as on two machines, each with a worker of its own. What was opened is not copied here before it is read."""
    options = ["--set", "fill_in_background=false"]
    with make_workplace() as workplace:
        (workplace / "store").mkdir()
        with (
            start_written(workplace, f"file://{workplace}/store", {}, workers=2) as stack,
            mounted_again(stack, workplace, "mnt1", hidden_worker=2, options=options) as first,
            mounted_again(stack, workplace, "mnt2", hidden_worker=1, options=options) as second,
        ):
            yield first / "data", second / "data"


@pytest.fixture
def apart(mounts: tuple[Path, Path]) -> tuple[Path, Path]:
    """A directory of a test's own, as both have it."""
    here, there = mounts
    name = f"t{next(_numbers)}"
    (here / name).mkdir()
    return here / name, there / name


def make(number: int, size: int) -> bytes:
    """A content of which each part says which one it is of."""
    return b"%08d" % number * (size // 8)


@pytest.mark.parametrize("size", [40, 300_000, 3_000_000])
def test_what_is_written_again_and_again_is_read_whole_or_not_at_all(apart: tuple[Path, Path], size: int) -> None:
    here, there = apart
    (here / "f").write_bytes(make(0, size))
    stop, found = threading.Event(), Counter[str]()

    def read() -> None:
        while not stop.is_set():
            try:
                data = (there / "f").read_bytes()
            except OSError as error:
                found[os.strerror(error.errno or 0)] += 1
                continue
            found["right" if data == data[:8] * (size // 8) else "torn"] += 1

    reading = threading.Thread(target=read)
    reading.start()
    try:
        for number in range(1, ROUNDS):
            (here / "f").write_bytes(make(number, size))
    finally:
        stop.set()
        reading.join()
    assert found["right"] > ROUNDS // 4
    assert set(found) <= {"right", "Stale file handle"}
    assert (there / "f").read_bytes() == make(ROUNDS - 1, size)


@pytest.mark.parametrize("by_another", [False, True])
def test_of_what_was_read_in_part_no_other_version_is_read(apart: tuple[Path, Path], *, by_another: bool) -> None:
    """Also where another one has read it, and has gone: the kernel has its bytes."""
    here, there = apart
    (here / "f").write_bytes(make(1, 64 * MIB))
    with (there / "f").open("rb", buffering=0) as file:
        if by_another:
            with (there / "f").open("rb") as other:
                assert other.read(MIB) == make(1, MIB)
        else:
            assert file.read(MIB) == make(1, MIB)
        (here / "f").write_bytes(make(2, 64 * MIB))
        seen = set()
        try:
            file.seek(0)
            while data := file.read(MIB):
                seen.add(data[:8])
                assert data == data[:8] * (len(data) // 8)
        except OSError as error:
            assert os.strerror(error.errno or 0) == "Stale file handle"
        assert seen == {b"%08d" % 1}
    assert (there / "f").read_bytes() == make(2, 64 * MIB)
