"""Reading the namespace's store through once after a start, where it fits in memory: then no lookup waits for the disk.

Owns whether it fits. Page by page, as lookups ask for them, a store of some gigabytes takes millions of lookups to get there; in
one go it takes seconds. Rule of concurrency: a task of the event loop; the reading is done in MetaStore's thread for that.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from alluxio_like import errors
from alluxio_like.master.meta_store import MetaStore

log = logging.getLogger(__name__)

SHARE_OF_LIMIT = 0.95
"""Of what a limit on our own memory leaves: the master itself takes little more (57 MB with 100 million files)."""
SHARE_OF_MACHINE = 0.5
"""Of what is free on the machine, which others use too (a guess)."""

_LIMITS = (("memory", "memory.limit_in_bytes", "total_rss"), ("", "memory.max", "anon"))
"""Of both kinds of cgroups: the controller, the file of its limit, and what of its memory.stat cannot be given back."""


async def warm(meta: MetaStore, *, root: Path = Path("/")) -> None:
    """See the module. `root`: where /proc and /sys are."""
    size, room = meta.get_size_bytes(), get_room_bytes(root)
    if size > room:
        log.info("the namespace is larger than the memory that it can have", extra={"bytes": size, "room_bytes": room})
        return
    begun = time.monotonic()
    try:
        await meta.read_through()
    except errors.AlluxioLikeError as error:
        log.warning("reading the namespace through failed: %s", error)
        return
    log.info("the namespace was read through", extra={"bytes": size, "seconds": round(time.monotonic() - begun, 1)})


def get_room_bytes(root: Path = Path("/")) -> int:
    """As many bytes as the store may take in memory, page cache included; 0 where that cannot be told."""
    try:
        rows = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
        available = next(int(row[1]) << 10 for row in rows if row[0] == "MemAvailable:")
        left = [limit - _get_stat(group / "memory.stat", used) for group, limit, used in _list_limits(root)]
    except (OSError, ValueError, StopIteration):
        return 0
    return max(0, int(min([available * SHARE_OF_MACHINE, *(room * SHARE_OF_LIMIT for room in left)])))


def _list_limits(root: Path) -> Iterator[tuple[Path, int, str]]:
    """All limits that hold for this process: the group, its limit, and what of it is used for good."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller, name, used in _LIMITS:
            if controller not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / controller
            # In a container the path may be one of outside; the top is its own group then.
            for group in (top, *_list_above(top, path)):
                file = group / name
                if file.exists() and (text := file.read_text().strip()) != "max":
                    yield group, int(text), used


def _list_above(top: Path, path: str) -> Iterator[Path]:
    group = top / path.lstrip("/")
    while group != top:
        yield group
        group = group.parent


def _get_stat(file: Path, name: str) -> int:
    rows = (line.split() for line in file.read_text().splitlines())
    return next((int(row[1]) for row in rows if row[0] == name), 0)
