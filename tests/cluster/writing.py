"""A file system that can be written, mounted twice, and what is asked of it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from alluxio_like.fuse.mountpoint import find_top
from tests.servers.stack import PROGRAMS, Stack, start_stack

START_S = 120.0


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
    """What a condition gave once it was true; what it raises as OSError counts as not yet."""
    deadline = time.monotonic() + limit_s
    while True:
        with suppress(OSError):
            if found := condition():
                return found
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


@contextmanager
def start_written(
    workplace: Path,
    uri: str,
    environment: Mapping[str, str],
    policy: str = "through",
    workers: int = 1,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Stack]:
    """`up` with a store at /data that may be written; `options` are the mount's."""
    given = [f"-o{name}={value}" for name, value in {**options, "write": policy}.items()]
    with start_stack(workplace, {}, environment, "--workers", str(workers), "--cache-size", "2GB") as stack:
        stack.run_command("alluxio-like", "mount", "/data", uri, *given)
        yield stack


@contextmanager
def mounted_again(
    stack: Stack, workplace: Path, name: str = "mnt2", hidden_worker: int = 0, options: Sequence[str] = ()
) -> Iterator[Path]:
    """The same namespace at another place of this machine, by a daemon of its own; with `hidden_worker` as on a machine that does
    not have that worker."""
    place, ready = workplace / name, workplace / f"{name}.ready"
    place.mkdir()
    hide = []
    if hidden_worker:
        (workplace / "nothing").mkdir(exist_ok=True)
        script = f'mount --bind {workplace}/nothing {workplace}/home/worker-{hidden_worker} && exec "$@"'
        hide = ["unshare", "--mount", "sh", "-c", script, "sh"]
    command = [
        *hide,
        str(PROGRAMS / "alluxio-like"), "fuse", str(place), "--master", stack.master,
        "--token-file", stack.ready["master"]["token_file"], "--ready-file", str(ready), *options,
    ]  # fmt: skip
    with open(workplace / f"{name}.log", "ab") as log:
        process = subprocess.Popen(command, env=stack.environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, "the second mount", START_S)
        assert process.poll() is None
        yield Path(f"/proc/{process.pid}/root{place}") if hidden_worker else place
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()
        if find_top(place) is not None:
            subprocess.run(["umount", "-l", str(place)], check=False)


def list_names(place: Path) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(path.name for path in place.iterdir())


def read_tree(place: Path) -> dict[str, bytes | None]:
    """All below a directory: the bytes of files, None of directories."""
    found: dict[str, bytes | None] = {}
    for directory, directories, files in os.walk(place):
        below = Path(directory).relative_to(place)
        found |= {str(below / name): None for name in directories}
        found |= {str(below / name): (Path(directory) / name).read_bytes() for name in files}
    return found
