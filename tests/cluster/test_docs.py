"""The programs in README.md and docs/python.md are run against a real `up`, and print what stands below them."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.stack import PROGRAMS, STOP_S

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:19998"
"""The one that the documents use."""
TOKEN_FILE = "/var/lib/alluxio-like/token"
EXPECTED_WARNINGS = {"the master cannot be reached: serving what is known"}
_BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def list_programs(document: str) -> list[tuple[str, str | None]]:
    """The programs of a document with what they are said to print; None where nothing is said."""
    found: list[tuple[str, str | None]] = []
    for kind, body in _BLOCK.findall((ROOT / document).read_text()):
        if kind == "python":
            found.append((body, None))
        else:
            assert found, f"{document}: output without a program"
            assert found[-1][1] is None, f"{document}: two outputs for one program"
            found[-1] = (found[-1][0], body)
    return found


PROGRAMS_OF_DOCUMENTS = [
    pytest.param(program, output, id=f"{document}-{number}")
    for document in ("README.md", "docs/python.md")
    for number, (program, output) in enumerate(list_programs(document), 1)
]


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, str]]:
    """The master's address and the token's file of a small file system without a mount."""
    with tempfile.TemporaryDirectory(prefix="al-", dir="/var/tmp") as made:
        data = Path(made) / "data"
        for directory in ("train", "shards"):
            (data / directory).mkdir(parents=True)
        for number in range(20):
            (data / "train" / f"{number:05}.jpg").write_bytes(os.urandom(110_000))
        (data / "shards" / "0.tar").write_bytes(os.urandom(3_000_000))
        (data / "labels.txt").write_text("cat\ndog\ncow\n")
        time.sleep(2.1)  # a younger fingerprint is not trusted for caching
        command = [str(PROGRAMS / "alluxio-like"), "up", "--json", "--home", f"{made}/home", "--mount", f"/={data}"]
        with open(f"{made}/log", "w") as log:
            process = subprocess.Popen([*command, "--cache-size", "1GB"], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r'"master": \{.*?"address": "([^"]+)"', process.stdout.readline())
            assert found, Path(f"{made}/log").read_text()
            yield found[1], f"{made}/home/token"
        finally:
            process.terminate()
            process.communicate(timeout=STOP_S)


@pytest.mark.parametrize(("program", "output"), PROGRAMS_OF_DOCUMENTS)
def test_a_program_of_the_documents_runs(program: str, output: str | None, running: tuple[str, str], tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program.replace(ADDRESS, running[0]).replace(TOKEN_FILE, running[1]))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.splitlines()) <= EXPECTED_WARNINGS
    if output is not None:
        assert done.stdout == output
