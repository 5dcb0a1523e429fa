"""Wheel and sdist: complete, and usable in a virtual environment that has nothing else."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 280


def run(*command: str, cwd: Path, timeout_s: float = 240) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ALLUXIO_LIKE_", "PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built from it: so the sdist has all that a build needs."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "-o", str(out), str(ROOT), cwd=out)
    return out


def list_tracked(folder: str) -> set[str]:
    """What git tracks below a folder; without git, what lies there."""
    try:
        return set(run("git", "ls-files", "-z", "--", folder, cwd=ROOT).split("\0")) - {""}
    except (AssertionError, FileNotFoundError):
        return {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts}


@pytest.mark.timeout(TIMEOUT_S)
def test_the_archives_hold_the_whole_package_and_nothing_else(built: Path) -> None:
    package = list_tracked("alluxio_like")
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert package <= names
    extra = {name for name in names - package if ".dist-info/" not in name}
    assert extra <= {str(p.relative_to(ROOT)) for p in (ROOT / "alluxio_like").rglob("*")}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert package | list_tracked("proto") | {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= inside
    assert not {name for name in inside if name.startswith(("tests/", "run/", ".venv/", "master", "worker", "fuse"))}


@pytest.mark.timeout(TIMEOUT_S)
def test_the_wheel_works_where_nothing_else_is_installed(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    # The locked versions, so that a release of somebody else's package cannot break this test.
    locked = re.findall(r"^([a-z0-9][\w.-]*==\S+(?: ;[^\\\n]*)?)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    (tmp_path / "constraints").write_text("\n".join(locked))
    pip = [str(place / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    run(*pip, "-c", str(tmp_path / "constraints"), str(wheel), cwd=tmp_path)
    assert run(str(place / "bin/alluxio-like"), "--version", cwd=tmp_path).startswith("alluxio-like ")
    assert "Examples:" in run(str(place / "bin/cache"), "load", "--help", cwd=tmp_path)
    # Without the extra there is no pyfuse3: everything else must import.
    code = (
        "import alluxio_like.master.app, alluxio_like.worker.app, alluxio_like.client\n"
        "import alluxio_like.ufs.s3, alluxio_like.kv.lmdb\n"
        "import importlib.util as u, alluxio_like; assert u.find_spec('pyfuse3') is None\n"
        "assert 'site-packages' in alluxio_like.__file__ and callable(alluxio_like.connect)"
    )
    run(str(place / "bin/python"), "-c", code, cwd=tmp_path)
