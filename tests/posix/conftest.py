"""Targets and places of the checks; see target.py for the former and exceptions.py for what does not hold where."""

import fnmatch
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.exceptions import EXCEPTIONS
from tests.posix.target import TARGETS, Target

_numbers = itertools.count()


@pytest.fixture(scope="session", params=list(TARGETS))
def file_system(request: pytest.FixtureRequest) -> Iterator[Target]:
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control") or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root, loop devices and mkfs.ext4")
    with TARGETS[request.param]() as made:
        yield made


@pytest.fixture
def place(file_system: Target) -> Path:
    """An empty directory of the check's own, root's and 0755."""
    made = file_system.root / f"c{next(_numbers)}"
    made.mkdir()
    made.chmod(0o755)
    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what the table names as failing, strictly."""
    for item in items:
        call = getattr(item, "callspec", None)
        if call is None or "file_system" not in call.params:
            continue
        target = call.params["file_system"]
        name = f"{item.path.stem}::{item.name}".replace(f"[{target}-", "[").replace(f"[{target}]", "")
        for pattern, reason in EXCEPTIONS.get(target, {}).items():
            if fnmatch.fnmatchcase(name, pattern.replace("[", "[[]")):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
