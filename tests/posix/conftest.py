"""Targets and places of the checks; see target.py for the former and exceptions.py for what does not hold where."""

import fnmatch
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.exceptions import EXCEPTIONS, Chance
from tests.posix.target import TARGETS, USUAL, Target

SAMPLE = 25
"""So many rows of a table run on a mount in the usual run."""

_numbers = itertools.count()


@pytest.fixture(scope="session", params=os.environ.get("ALLUXIO_LIKE_TEST_TARGETS", " ".join(USUAL)).split())
def file_system(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Each target of the usual run; with ALLUXIO_LIKE_TEST_TARGETS those that it names."""
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control") or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root, loop devices and mkfs.ext4")
    with TARGETS[request.param](request) as made:
        yield made


@pytest.fixture
def place(file_system: Target) -> Path:
    """An empty directory of the check's own, root's and 0755."""
    made = file_system.root / f"c{next(_numbers)}"
    made.mkdir()
    made.chmod(0o755)
    return made


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what the table names as failing, strictly; leave all but a sample of the largest tables out of the usual run.

    On ext4 every row runs: what is left out is known to be right, and one row is much like the next. `make posix` runs all.
    """
    thin_out(config, items)
    for item in items:
        call = getattr(item, "callspec", None)
        if call is None or "file_system" not in call.params:
            continue
        target = call.params["file_system"]
        name = f"{item.path.stem}::{item.name}".replace(f"[{target}-", "[").replace(f"[{target}]", "")
        for pattern, reason in EXCEPTIONS.get(target, {}).items():
            if fnmatch.fnmatchcase(name, pattern):
                item.add_marker(pytest.mark.xfail(reason=str(reason), strict=not isinstance(reason, Chance)))


def thin_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("ALLUXIO_LIKE_TEST_POSIX") == "all" or os.environ.get("ALLUXIO_LIKE_TEST_SOAK"):
        return
    left_out: set[pytest.Item] = set()
    tables: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        call = getattr(item, "callspec", None)
        if call is not None and item.path.stem == "test_exercisers" and call.params.get("file_system") == "ext4":
            left_out.add(item)  # they are known to work there
        elif item.nodeid.partition("[")[0].endswith("::test_a_virtual_environment") and "[ext4" not in item.nodeid:
            left_out.add(item)  # thousands of small files
        elif call is not None and call.params.get("file_system", "ext4") != "ext4":
            tables.setdefault((item.nodeid.partition("[")[0], call.params["file_system"]), []).append(item)
    for rows in tables.values():
        step = len(rows) / SAMPLE
        kept = {int(step * n) for n in range(SAMPLE)} if step > 1 else range(len(rows))
        left_out |= {row for n, row in enumerate(rows) if n not in kept}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
