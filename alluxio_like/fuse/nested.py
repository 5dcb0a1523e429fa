"""What is mounted on directories and files of this mount, by anybody on the machine.

The kernel takes such a mount away, without a word to whoever made it, as soon as a name on the way to it is forgotten and used
again (d_invalidate in fs/dcache.c); a name that is only looked up again and leads to the same inode keeps it. So whoever tells
the kernel to forget names asks here first.

Owns how they are found: our own mount namespace says by itself when something changes; those of other processes are looked at by
a thread, again and again, since a look at them may wait for an exec under way, which may be waiting for this mount. Not seen are
namespaces without a process, processes in another pid namespace, and what was mounted in another namespace just now.
`list_steps` and `close` are the event loop's.
"""

import errno
import logging
import os
import select
import threading
import time
from pathlib import Path

from alluxio_like.fuse.mountinfo import unescape

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_LOOK_PART = 0.02
"""At most so much of a thread's time is spent on looking. (Both are guesses.)"""

_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that say nothing of the process that is looked at."""

Steps = tuple[bytes, ...]


class NestedMounts:
    """Of the mount with a device number ("major:minor"; "": none is ever found)."""

    def __init__(self, device: str, proc: Path = Path("/proc")) -> None:
        self._device = device.encode()
        self._proc = proc
        self._here: frozenset[Steps] = frozenset()
        self._elsewhere: frozenset[Steps] = frozenset()
        # (Held open, mountinfo tells what changes, and keeps its namespace: so only our own is.)
        self._own = open(proc / "self" / "mountinfo", "rb", buffering=0)  # noqa: SIM115
        self._changes = select.poll()
        self._changes.register(self._own, select.POLLPRI)
        self._read_own()
        self._ended = threading.Event()
        if device:
            threading.Thread(target=self._look, name="nested-mounts", daemon=True).start()

    def list_steps(self) -> frozenset[Steps]:
        """The paths of what is mounted over, name by name from the root of the mount. Does not wait."""
        if self._changes.poll(0):
            self._read_own()
        return self._here | self._elsewhere

    def close(self) -> None:
        self._ended.set()
        self._own.close()

    def _read_own(self) -> None:
        self._own.seek(0)
        self._here = find_nested(self._own.read(), self._device)

    def _look(self) -> None:
        taken_s = 0.0
        while not self._ended.wait(max(_LOOK_S, taken_s / _LOOK_PART) if taken_s else 0):
            begun_s = time.monotonic()
            try:
                self._elsewhere = self._look_elsewhere()
            except OSError as error:
                # What was there before is taken to be there still.
                log.warning("it cannot be seen now what is mounted in other namespaces: %s", error)
            taken_s = time.monotonic() - begun_s or 1e-6

    def _look_elsewhere(self) -> frozenset[Steps]:
        """Raises OSError: there are no descriptors for it, say."""
        found: set[Steps] = set()
        seen = {self._get_namespace("self"), 0}
        for name in os.listdir(self._proc):  # noqa: PTH208  (quicker)
            if name.isdecimal() and (namespace := self._get_namespace(name)) not in seen:
                seen.add(namespace)
                found |= self._look_at(name)
        return frozenset(found)

    def _get_namespace(self, process: str) -> int:
        try:
            return (self._proc / process / "ns" / "mnt").stat().st_ino
        except OSError:
            return 0  # it has ended, or is not to be looked at

    def _look_at(self, process: str) -> frozenset[Steps]:
        try:
            content = (self._proc / process / "mountinfo").read_bytes()
        except OSError as error:
            if error.errno in _OURS:
                raise
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
