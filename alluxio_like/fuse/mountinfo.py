"""What is mounted where, as /proc/self/mountinfo says it.

Asks no file system, so it never waits for one. Standard library only, and little of it: the holder uses it. Safe from any thread.
"""

import os
import re
from typing import NamedTuple

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class MountLine(NamedTuple):
    """A line of mountinfo. `device` is "major:minor", unique among what is mounted at the moment; `place` is an absolute path.

    `options` are those of this place alone: rw or ro, nosuid, nodev, noexec, …
    """

    device: str
    place: str
    fstype: str
    source: str
    options: frozenset[str] = frozenset()


def list_lines() -> list[MountLine]:
    """Everything mounted in this process's mount namespace, in the order of mounting."""
    found = []
    with open("/proc/self/mountinfo", "rb") as stream:
        lines = stream.read().splitlines()
    for line in lines:
        left, _, right = line.partition(b" - ")
        fields, (fstype, source) = left.split(b" "), right.split(b" ")[:2]
        options = frozenset(fields[5].decode().split(","))
        found.append(
            MountLine(fields[2].decode(), os.fsdecode(unescape(fields[4])), fstype.decode(), os.fsdecode(source), options)
        )
    return found


def unescape(path: bytes) -> bytes:
    """A path as mountinfo writes it, where spaces and the like are octal numbers."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), path)


def find_top_line(place: str) -> MountLine | None:
    """What is mounted exactly at a resolved path, the topmost."""
    at_place = [line for line in list_lines() if line.place == place]
    return at_place[-1] if at_place else None
