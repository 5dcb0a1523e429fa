"""Runs a Dockerfile where there is no container engine: what each stage adds lands in a directory of its own.

Owns the reading of the few instructions that our Dockerfile has, and a root directory for each stage: an overlay over this
machine's root, in which the very commands run by chroot, in a mount namespace of their own. So the base image is this machine
(with a Python of its own by the names that an image of Python has), and what a stage adds is what a layer would hold. Needs root.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD", "LABEL"}
_IN_ROOT = 'mount -t overlay overlay -o "lowerdir=/,upperdir=$1,workdir=$2" "$3" && mount --rbind /proc "$3/proc" && \
mount --rbind /dev "$3/dev" && root=$3 && shift 3 && exec chroot "$root" "$@"'


@dataclass
class Stage:
    """One FROM and what follows. `added`: what it adds to its base, by path below it."""

    base: str
    name: str
    directory: Path
    added: Path
    workdir: str = "/"
    user: str = "0:0"
    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def run(self, command: Sequence[str], *, user: str = "", timeout_s: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run something in it, as it would be in a container of the image."""
        uid, _, gid = (user or self.user).partition(":")
        work, root = self.directory / "work", self.directory / "root"
        for made in (work, root):
            made.mkdir(exist_ok=True)
        as_user = ["setpriv", f"--reuid={uid}", f"--regid={gid or uid}", "--clear-groups", "--", *command]
        inside = ["env", "-C", self.workdir, *(f"{name}={value}" for name, value in self.environment.items()), *as_user]
        places = [str(self.added), str(work), str(root)]
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", _IN_ROOT, "sh", *places, *inside],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"},
        )


def build(dockerfile: Path, context: Path, directory: Path) -> list[Stage]:
    """Its stages, built. Raises RuntimeError with the output of a command that failed, ValueError for what is not understood."""
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for instruction, rest in parse(dockerfile.read_text()):
        if instruction == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif instruction == "FROM":
            base, _, name = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], rest).partition(" AS ")
            stages.append(_begin(base, name, directory / str(len(stages))))
        else:
            _do(stages, instruction, rest, context)
    return stages


def parse(text: str) -> Iterator[tuple[str, str]]:
    """Instructions with what they are given. Raises ValueError for an unknown one."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            instruction, _, rest = line.strip().partition(" ")
            if instruction not in _KNOWN:
                raise ValueError(f"what is {instruction}?")
            yield instruction, rest.strip()


def _begin(base: str, name: str, directory: Path) -> Stage:
    """A stage on this machine's root, with `python` and `pip` where an image of Python has them."""
    added = directory / "added"
    programs = added / "usr/local/bin"
    programs.mkdir(parents=True)
    stage = Stage(base, name, directory, added)
    made = stage.run(["/usr/bin/python3", "-m", "venv", "/usr/local/python"])
    if made.returncode:
        raise RuntimeError(made.stderr)
    for program in ("python", "pip"):
        (programs / program).symlink_to(f"/usr/local/python/bin/{program}")
    return stage


def _do(stages: list[Stage], instruction: str, rest: str, context: Path) -> None:
    stage = stages[-1]
    match instruction:
        case "WORKDIR":
            stage.workdir = rest
            (stage.added / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "COPY":
            _copy(stages, rest, context)
        case "RUN":
            done = stage.run(["sh", "-c", rest])
            if done.returncode:
                raise RuntimeError(f"RUN {rest}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        case "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                stage.environment[name] = value.replace("$PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        case "USER":
            stage.user = rest
        case "ENTRYPOINT":
            stage.entrypoint = json.loads(rest)
        case "CMD":
            stage.command = json.loads(rest)


def _copy(stages: list[Stage], rest: str, context: Path) -> None:
    stage, words = stages[-1], rest.split()
    source = context
    if words[0].startswith("--from="):
        wanted = words.pop(0).removeprefix("--from=")
        source = next(one.added for one in stages if one.name == wanted)
    *names, last = words
    target = stage.added / os.path.normpath(Path(stage.workdir) / last).lstrip("/")
    for name in names:
        found = source / name.lstrip("/")
        if found.is_dir():
            shutil.copytree(found, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, target)


def measure(directory: Path) -> int:
    """Bytes of the files below a directory."""
    return sum(file.lstat().st_size for file in directory.rglob("*") if not file.is_dir())
