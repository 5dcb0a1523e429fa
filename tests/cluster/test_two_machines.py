"""Random operations, each on one of two machines, and the same in a local directory, which says what is right: after each of them
the other machine sees the same tree, also where a daemon or the master is killed in between. (Two mounts, each with a worker of
its own that the other cannot open files of.)
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cluster.conftest import workplace  # noqa: F401  (a fixture)
from tests.cluster.writing import mounted_again, start_written, wait_until
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
STEPS_A_KILL = 40


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


class Machines(NamedTuple):
    """Where the two see the file system, and whom one can kill: the daemon of each, and the master."""

    places: tuple[Path, Path]
    get_pids: list[Callable[[], int]]

    def kill(self, which: int) -> None:
        """kill -9; nobody waits for a daemon's successor, as no program does."""
        pid = self.get_pids[which]()
        os.kill(pid, signal.SIGKILL)
        if which == len(self.places):
            wait_until(lambda: self.get_pids[which]() not in (0, pid), "another master")


@pytest.fixture(params=["through", "cache"] if not SOAK else ["through", "cache", "back:1", "back:2"])
def machines(request: pytest.FixtureRequest, workplace: Path) -> Iterator[Machines]:  # noqa: F811
    (workplace / "store").mkdir()
    with (
        start_written(workplace, f"file://{workplace / 'store'}", {}, request.param, workers=2) as stack,
        mounted_again(stack, workplace, "mnt1", hidden_worker=2) as first,
        mounted_again(stack, workplace, "mnt2", hidden_worker=1) as second,
    ):
        get_pids = [lambda name=name: json.loads((workplace / f"{name}.ready").read_text())["pid"] for name in ("mnt1", "mnt2")]
        get_pids.append(lambda: json.loads((workplace / "home/up.json").read_text())["master"]["pid"])
        # (By descriptors: the paths lead through processes that are killed.)
        roots = [os.open(place, os.O_PATH) for place in (first, second)]
        yield Machines((Path(f"/proc/self/fd/{roots[0]}/data"), Path(f"/proc/self/fd/{roots[1]}/data")), get_pids)
        for root in roots:
            os.close(root)
        assert_whole_disks(workplace / "home", online=True)


def compare(place: Path, right: Path, done: list[Any]) -> None:
    ours, theirs = describe(place), describe(right)
    assert ours.keys() == theirs.keys(), done[-8:]
    for name, expected in theirs.items():
        if ours[name] != expected:
            raise AssertionError(f"{name}: {ours[name][:5]} for {expected[:5]}, {explain(ours[name], expected)}; {done[-8:]}")


@pytest.mark.parametrize("kills", [False, True], ids=["", "killed"])
def test_two_machines_see_what_each_other_does(machines: Machines, local: Path, kills: bool) -> None:  # noqa: F811
    chosen, done = random.Random(SEED), []
    sides, right = [Side(place) for place in machines.places], Side(local)
    until_s = time.monotonic() + LASTS_S
    while time.monotonic() < until_s:
        which, operation = chosen.randrange(2), choose(chosen)
        if kills and chosen.randrange(STEPS_A_KILL) == 0:
            killed = chosen.randrange(len(machines.get_pids))
            machines.kill(killed)
            done.append((f"{time.time():.3f}", "killed", killed))
        begun_s = time.time()
        came, expected = sides[which].do(operation), right.do(operation)
        done.append((f"{begun_s:.3f}", which, operation, came))
        assert came == expected, (SEED, done[-8:], expected)
        time.sleep(chosen.choice(PAUSES_S))
        try:
            compare(machines.places[1 - which], local, done)
        except AssertionError as error:
            raise AssertionError(f"seed {SEED}, after {len(done)} steps, seen at {1 - which}: {error}") from error
    for place in machines.places:
        compare(place, local, done)
