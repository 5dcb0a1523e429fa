"""Random operations, each on one of two machines, and the same in a local directory, which says what is right: after each of them
the other machine sees the same tree. (Two mounts, each with a worker of its own that the other cannot open files of.)
"""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import workplace  # noqa: F401  (a fixture)
from tests.cluster.writing import mounted_again, start_written
from tests.posix.system import KEEP_SIZE, PUNCH_HOLE, RENAME_EXCHANGE, RENAME_NOREPLACE, ZERO_RANGE
from tests.posix.test_differential import Operation, Side, describe, explain, local  # noqa: F401  (a fixture)
from tests.servers.whole import assert_whole_disks

SOAK = "ALLUXIO_LIKE_TEST_SOAK" in os.environ
SEED = int(os.environ.get("TWO_MACHINES_SEED", "0")) or (random.randrange(1 << 30) if SOAK else 5)
LASTS_S = float(os.environ.get("TWO_MACHINES_S", "600" if SOAK else "10"))

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs the kernel session"),
    pytest.mark.timeout(0 if SOAK else 300),
]

NAMES = ["a", "b", "c", "d/a", "d/b", "d", "e/f", "e"]
OFFSETS = [0, 1, 100, 4095, 4096, 5000, 65_536, 1_048_570]
LENGTHS = [1, 10, 4096, 5000, 70_000]
PAUSES_S = [0.0] * 12 + [0.01, 0.1, 0.18, 0.2, 0.22, 0.5]
"""Some of what comes after a close comes a fifth of a second after it."""


def choose(chosen: random.Random) -> Operation:
    """What is done next."""
    name, other = chosen.choice(NAMES), chosen.choice(NAMES)
    offset, length, salt = chosen.choice(OFFSETS), chosen.choice(LENGTHS), chosen.randrange(1, 250)
    kinds: list[Operation] = [
        ("write", name, offset, length, salt),
        ("write", name, offset, length, salt),
        ("rewrite", name, length, salt),
        ("append", name, length, salt),
        ("append", name, length, salt),
        ("truncate", name, offset),
        ("mapped", name, offset, length, salt),
        ("allocate", name, offset, length, chosen.choice([0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE])),
        ("copy", name, other, chosen.choice(OFFSETS), offset, length),
        ("mkdir", name),
        ("mkdir", name),
        ("rmdir", name),
        ("unlink", name),
        ("rename", name, other, chosen.choice([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])),
        ("rename", name, other, 0),
        ("link", name, other),
        ("symlink", name, other),
        ("chmod", name, chosen.choice([0o600, 0o644, 0o755])),
        ("utimes", name, chosen.randrange(1, 2**31)),
        ("setxattr", name, chosen.choice(["user.x", "user.y"]), salt),
        ("removexattr", name, chosen.choice(["user.x", "user.y"])),
    ]
    return chosen.choice(kinds)


@pytest.fixture(params=["through", "cache"] if not SOAK else ["through", "cache", "back:1", "back:2"])
def machines(request: pytest.FixtureRequest, workplace: Path) -> Iterator[tuple[Path, Path]]:  # noqa: F811
    (workplace / "store").mkdir()
    with (
        start_written(workplace, f"file://{workplace / 'store'}", {}, request.param, workers=2) as stack,
        mounted_again(stack, workplace, "mnt1", hidden_worker=2) as first,
        mounted_again(stack, workplace, "mnt2", hidden_worker=1) as second,
    ):
        yield first / "data", second / "data"
        assert_whole_disks(workplace / "home", online=True)


def compare(place: Path, right: Path, done: list[Any]) -> None:
    ours, theirs = describe(place), describe(right)
    assert ours.keys() == theirs.keys(), done[-8:]
    for name, expected in theirs.items():
        if ours[name] != expected:
            raise AssertionError(f"{name}: {ours[name][:5]} for {expected[:5]}, {explain(ours[name], expected)}; {done[-8:]}")


def test_two_machines_see_what_each_other_does(machines: tuple[Path, Path], local: Path) -> None:  # noqa: F811
    chosen, done = random.Random(SEED), []
    sides, right = [Side(place) for place in machines], Side(local)
    until_s = time.monotonic() + LASTS_S
    while time.monotonic() < until_s:
        which, operation = chosen.randrange(2), choose(chosen)
        begun_s = time.time()
        came, expected = sides[which].do(operation), right.do(operation)
        done.append((f"{begun_s:.3f}", which, operation, came))
        assert came == expected, (SEED, done[-8:], expected)
        time.sleep(chosen.choice(PAUSES_S))
        try:
            compare(machines[1 - which], local, done)
        except AssertionError as error:
            raise AssertionError(f"seed {SEED}, after {len(done)} operations, seen at {1 - which}: {error}") from error
    for place in machines:
        compare(place, local, done)
