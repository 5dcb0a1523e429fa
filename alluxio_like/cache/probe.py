"""What file system a cache directory is on, and whether FUSE can pass reads through to its files.

Owns that judgement, from what statfs(2) and uname(2) say. It is a forecast: whoever registers the first backing file learns the
truth (`alluxio-like doctor` tries it). The kernel refuses a backing file whose file system is itself stacked on another one
(ELOOP: the mount asks for `max_stack_depth` 1); any other will do. Pure but for one statfs; safe from any thread.
"""

import os
import re
from dataclasses import dataclass

from alluxio_like.cache import syscalls

_NAMES = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0xCA451A4E: "bcachefs",
    0x2FC12FC1: "zfs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlay",
    0xF15F: "ecryptfs",
    0x65735546: "fuse",
    0x01021997: "9p",
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x00C36400: "ceph",
    0x0BD00BD0: "lustre",
}
_STACKED = {"overlay", "ecryptfs"}
_UNTRIED = {"fuse", "9p", "nfs", "cifs", "smb2", "ceph", "lustre", "zfs", "bcachefs"}
FIRST_KERNEL = (6, 9)
"""The first Linux with FUSE passthrough."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """`passthrough` is "yes", "no" or "unknown"; but for "yes", `reason` says why."""

    name: str
    passthrough: str
    reason: str = ""


UNKNOWN = FileSystem("", "unknown", "not looked at yet")


def probe_file_system(fd: int, release: str = "") -> FileSystem:
    """The file system of an open directory. `release` is the kernel's (default: of the running one). Does not raise."""
    try:
        magic = syscalls.get_fs_magic(fd)
    except OSError as error:
        return FileSystem("", "unknown", f"statfs failed: {error.strerror}")
    return judge_file_system(_NAMES.get(magic, f"{magic:#x}"), release or os.uname().release)


def judge_file_system(name: str, release: str) -> FileSystem:
    """What to expect of a file system by its name on a kernel."""
    if name in _STACKED:
        return FileSystem(
            name,
            "no",
            f"{name} is stacked on another file system (ELOOP): put the directory on ext4 or xfs, in a pod by hostPath",
        )
    if get_kernel_version(release) < FIRST_KERNEL:
        return FileSystem(
            name, "no", f"Linux {release} has no FUSE passthrough, which came with {FIRST_KERNEL[0]}.{FIRST_KERNEL[1]}"
        )
    if name in _UNTRIED or name not in _NAMES.values():
        return FileSystem(name, "unknown", f"nobody has tried it on {name}")
    return FileSystem(name, "yes")


def get_kernel_version(release: str) -> tuple[int, int]:
    """Major and minor of a release such as 6.9.0-rc1; (0, 0) where it cannot be read."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)
