"""The same targets and places as the suite of calls (tests/posix), and programs run there."""

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.posix.conftest import file_system, place, pytest_collection_modifyitems

__all__ = ["file_system", "place", "pytest_collection_modifyitems"]

Run = Callable[..., str]


@pytest.fixture
def run(place: Path) -> Run:
    """Run a program in the place, and give its output; it fails the test where it fails."""

    def run_one(*command: str | Path, cwd: Path = place, env: Mapping[str, str] | None = None, timeout_s: float = 240) -> str:
        # Nothing of who runs the tests: neither a home nor its settings.
        environment = {"PATH": os.environ["PATH"], "HOME": str(place), "LC_ALL": "C.UTF-8", **(env or {})}
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    return run_one
