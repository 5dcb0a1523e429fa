"""Processes under a memory limit that counts the pages of mapped files too: a cgroup, where one can be made.

Owns the group it makes. Version 1 and 2 of the kernel's interface; root.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def limited_memory(limit_bytes: int) -> Iterator[Path | None]:
    """A cgroup with that limit, for `join`; None where none can be made."""
    made: Path | None = None
    for parent, name in _list_places():
        group = parent / "alluxio-like-bench"
        try:
            group.mkdir(exist_ok=True)
            (group / name).write_text(str(limit_bytes))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        made = group
        break
    try:
        yield made
    finally:
        if made is not None:
            with contextlib.suppress(OSError):
                made.rmdir()


def join(group: Path, pid: int) -> None:
    """Put a process into a group; what it has mapped before is not counted."""
    (group / "cgroup.procs").write_text(str(pid))


def get_peak_bytes(group: Path) -> int:
    """The most that was used, page cache included."""
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        with contextlib.suppress(OSError):
            return int((group / name).read_text())
    return 0


def _list_places() -> list[tuple[Path, str]]:
    """Where a group may be made, and the file of its limit."""
    places = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            places += [(ROOT / "memory" / path.lstrip("/"), "memory.limit_in_bytes"), (ROOT / "memory", "memory.limit_in_bytes")]
        elif not controllers:
            places += [(ROOT / path.lstrip("/"), "memory.max"), (ROOT, "memory.max")]
    return places
