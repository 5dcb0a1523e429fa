"""What is mounted on directories and files of this mount, by anybody on the machine.

The kernel takes such a mount away, without a word to whoever made it, as soon as a name on the way to it is forgotten and used
again (d_invalidate in fs/dcache.c); a name that is only looked up again and leads to the same inode keeps it. So whoever tells
the kernel to forget names asks here first.

Owns how they are found: mountinfo of each mount namespace that a process of /proc is in; not that of a namespace without a
process, nor of processes in another pid namespace. Standard library only. One event loop.
"""

import math
import os
import select
import time
from pathlib import Path

from alluxio_like.fuse.mountinfo import unescape

_LOOK_S = 0.5
"""How long the namespaces of others are believed to be as they were. A guess."""

Steps = tuple[bytes, ...]


class NestedMounts:
    """Of the mount with a device number ("major:minor"; "": none is ever found)."""

    def __init__(self, device: str, proc: Path = Path("/proc")) -> None:
        self._device = device.encode()
        self._proc = proc
        self._looked_s = -math.inf
        self._here: frozenset[Steps] = frozenset()
        self._elsewhere: frozenset[Steps] = frozenset()
        # (Held open, mountinfo tells what changes, and keeps its namespace: so only our own is.)
        self._own = open(proc / "self" / "mountinfo", "rb", buffering=0)  # noqa: SIM115
        self._changes = select.poll()
        self._changes.register(self._own, select.POLLPRI)
        self._read_own()

    def list_steps(self) -> frozenset[Steps]:
        """The paths of what is mounted over, name by name from the root of the mount."""
        if not self._device:
            return frozenset()
        if self._changes.poll(0):
            self._read_own()
        if time.monotonic() - self._looked_s >= _LOOK_S:
            self._elsewhere = self._look_elsewhere()
            self._looked_s = time.monotonic()
        return self._here | self._elsewhere

    def close(self) -> None:
        self._own.close()

    def _read_own(self) -> None:
        self._own.seek(0)
        self._here = find_nested(self._own.read(), self._device)

    def _look_elsewhere(self) -> frozenset[Steps]:
        found: set[Steps] = set()
        seen = {self._get_namespace("self")}
        for name in os.listdir(self._proc):
            if name.isdecimal() and (namespace := self._get_namespace(name)) not in seen:
                seen.add(namespace)
                found |= self._look_at(name)
        return frozenset(found)

    def _get_namespace(self, process: str) -> int:
        try:
            return (self._proc / process / "ns" / "mnt").stat().st_ino
        except OSError:
            return 0  # it has ended

    def _look_at(self, process: str) -> frozenset[Steps]:
        try:
            content = (self._proc / process / "mountinfo").read_bytes()
        except OSError:
            return frozenset()
        return find_nested(content, self._device)


def find_nested(mountinfo: bytes, device: bytes) -> frozenset[Steps]:
    """The paths in a file system, name by name from its root, on which something is mounted in one namespace."""
    if not device or device not in mountinfo:
        return frozenset()
    lines = [line.split(b" ", 5) for line in mountinfo.splitlines()]
    ours = {fields[0]: (unescape(fields[3]), unescape(fields[4])) for fields in lines if fields[2] == device}
    found: set[Steps] = set()
    for _, parent, _, _, place, _ in lines:
        if parent in ours:
            root, at = ours[parent]
            path = root + unescape(place)[len(at) :]
            # (What is mounted on the root itself is reached by no name of ours.)
            found.add(tuple(filter(None, path.split(b"/"))))
    return frozenset(found - {()})
