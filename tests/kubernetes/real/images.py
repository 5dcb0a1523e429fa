"""Images without a registry and without an engine: archives that containerd imports, made of directories.

Owns the base image of the node's pods (Debian's packages and Python, by debootstrap), our own on top of it (the Dockerfile's last
stage), and that of the small programs that a node needs. Blocks for minutes. Needs root.
"""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.kubernetes.dockerfile import build
from tests.kubernetes.rendering import ROOT
from tests.servers.tools import ToolError, get_cache, make_directory

BASE = "python:3.11-slim"
"""As the examples of training pods name it."""
OURS = "alluxio-like:0.1.0"
_PACKAGES = "python3,python3-venv,ca-certificates"
_SUITE = "bookworm"


def get_base() -> Path:
    """A root directory with Python; made where it is missing. Raises ToolError."""
    directory = get_cache() / f"base-{_SUITE}-{hashlib.sha256(_PACKAGES.encode()).hexdigest()[:8]}"
    if not directory.exists():
        if shutil.which("debootstrap") is None:
            raise ToolError("the images of a real cluster are made by debootstrap: apt-get install debootstrap")
        with make_directory(directory) as made:
            command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(made / "root")]
            subprocess.run([*command, "http://deb.debian.org/debian"], check=True, capture_output=True)
    return directory / "root"


def write_archive(target: Path, name: str, layers: Sequence[Path], config: Mapping[str, object]) -> None:
    """An image as `docker save` writes one. `layers` are directories, the lowest first."""
    digests, names = [], []
    with tarfile.open(target, "w") as archive:
        for number, layer in enumerate(layers):
            packed = target.with_suffix(f".{number}")
            with tarfile.open(packed, "w") as out:
                out.add(layer, arcname=".", filter=_leave_out)
            with packed.open("rb") as stream:
                digests.append("sha256:" + hashlib.file_digest(stream, "sha256").hexdigest())
            names.append(f"{number}/layer.tar")
            archive.add(packed, arcname=names[-1])
            packed.unlink()
        described = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": digests}}
        _add(archive, "config.json", described)
        _add(archive, "manifest.json", [{"Config": "config.json", "RepoTags": [name], "Layers": names}])


def _leave_out(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """What is no part of an image: caches of packages, and devices, which a runtime makes."""
    return None if member.ischr() or member.isblk() or member.name.startswith("./var/cache/apt/archives/") else member


def _add(archive: tarfile.TarFile, name: str, content: object) -> None:
    data = json.dumps(content).encode()
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def make_images(directory: Path, parts: Path, pause: str, registrar: str) -> list[Path]:
    """Archives of all images that the chart and its examples name, below `directory`; `parts` is the node's small program."""
    base = get_base()
    stage = build(ROOT / "deploy/docker/Dockerfile", ROOT, directory / "stages")[-1]
    path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    environment = [f"{key}={value}" for key, value in stage.environment.items()]
    ours = {"Env": environment, "User": stage.user, "Entrypoint": stage.entrypoint, "Cmd": stage.command}
    small = directory / "parts"
    small.mkdir()
    (small / "parts").write_bytes(parts.read_bytes())
    (small / "parts").chmod(0o755)
    program = {"Entrypoint": ["/parts"]}
    wanted: list[tuple[str, list[Path], Mapping[str, object]]] = [
        (BASE, [base], {"Env": [f"PATH={path}"], "Cmd": ["python3"]}),
        (OURS, [base, stage.added], ours),
        (pause, [small], program),
        (registrar, [small], program),
    ]
    made = []
    for number, (name, layers, config) in enumerate(wanted):
        made.append(directory / f"{number}.tar")
        write_archive(made[-1], name if "/" in name else f"docker.io/library/{name}", layers, config)
    return made
