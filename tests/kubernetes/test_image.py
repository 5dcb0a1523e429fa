"""The image: its Dockerfile is linted, its commands run here, and what they leave is what a container would find."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.dockerfile import Stage, build, measure, parse
from tests.servers.tools import get_hadolint

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
LIMIT_BYTES = 340 << 20
"""What may lie on top of the base."""


def read_lock(file: Path) -> dict[str, str]:
    """Requirements by name: version, marker and hashes."""
    items = re.findall(r"^([a-z][\w.-]*==\S+)(.*?)(?=^[a-z]|\Z)", file.read_text(), re.MULTILINE | re.DOTALL)
    return {name: " ".join(sorted(re.findall(r"sha256:\w+", rest))) for name, rest in items}


def test_the_dockerfile_has_nothing_to_complain_about() -> None:
    done = subprocess.run(
        [get_hadolint(), "--failure-threshold", "info", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_is_pinned_and_no_stage_compiles() -> None:
    instructions = list(parse(DOCKERFILE.read_text()))
    assert instructions[0][0] == "ARG"
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-[a-z]+(@sha256:\w+)?", instructions[0][1])
    assert [rest for name, rest in instructions if name == "FROM"] == ["${BASE} AS build", "${BASE}"]
    installs = [rest for name, rest in instructions if name == "RUN" and "install" in rest]
    assert all(part.count("--only-binary=:all:") or "--no-index" in part for text in installs for part in _list_installs(text))


def _list_installs(text: str) -> list[str]:
    return [part for part in text.split("&&") if re.search(r"\bpip\b.*\binstall\b", part)]


@pytest.mark.parametrize("part", ["runtime", "build"])
def test_the_locks_of_the_image_are_parts_of_the_lock(part: str) -> None:
    whole = read_lock(ROOT / "requirements.lock")
    locked = read_lock(ROOT / f"deploy/docker/{part}.lock")
    assert len(locked) > 5
    assert {name: hashes for name, hashes in locked.items() if whole.get(name) != hashes} == {}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for a root directory of its own")
    directory = tmp_path_factory.mktemp("image")
    yield build(DOCKERFILE, ROOT, directory)[-1]
    shutil.rmtree(directory)


@pytest.mark.timeout(600)
def test_the_image_holds_what_runs_and_not_more(image: Stage) -> None:
    size = measure(image.added / "opt")
    print(f"the image adds {size / 1e6:.0f} MB to its base")  # noqa: T201
    assert size < LIMIT_BYTES
    done = image.run([*image.entrypoint, *image.command])
    assert done.returncode == 0, done.stderr
    assert "A distributed caching file system" in done.stdout
    installed = json.loads(
        image.run(
            ["python", "-c", "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"]
        ).stdout
    )
    assert "alluxio-like" in installed
    assert not {"pip", "setuptools", "pytest", "mypy", "hatchling", "pyfuse3", "cython"} & {name.lower() for name in installed}


@pytest.mark.timeout(600)
def test_every_command_starts_as_its_user(image: Stage) -> None:
    assert image.user == "10001:10001"
    for command in ("master", "worker", "fuse", "holder", "mount", "report", "doctor"):
        done = image.run([*image.entrypoint, command, "--help"])
        assert done.returncode == 0, (command, done.stderr)
    assert image.run(["cache", "load", "--help"]).returncode == 0
    services = "alluxio_like.master.app, alluxio_like.worker.app, alluxio_like.fuse.app_held"
    done = image.run(["python", "-c", f"import {services}, psycopg, hdfs_native, google.auth, azure.identity"])
    assert done.returncode == 0, done.stderr
