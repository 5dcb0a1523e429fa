"""What the operations give, as the bodies of answers to the kernel.

Pure functions.
"""

from typing import Protocol

from alluxio_like.fuse import wire
from alluxio_like.fuse.attributes import PREFERRED_IO_BYTES, count_stat_blocks, get_stat_mode
from alluxio_like.fuse.backend import Answer, Totals
from alluxio_like.fuse.operations import NAME_MAX_BYTES
from alluxio_like.types import Attr, Space


class NodeGiver(Protocol):
    """Who says which node id a name leads to."""

    def get_node(self, attr: Attr) -> int: ...


UNLIMITED_BYTES = 1 << 50
"""Free space that statfs shows where nothing limits it: there is no end to an object store."""
STATFS_BLOCK_BYTES = 4096
FREE_INODES = 1 << 32


def pack_attributes(attr: Attr) -> bytes:
    """An inode's attributes."""
    return wire.pack_attr(
        inode=attr.inode,
        size=attr.size,
        mode=get_stat_mode(attr),
        uid=attr.uid,
        gid=attr.gid,
        mtime_ns=attr.mtime_ns,
        ctime_ns=attr.ctime_ns,
        atime_ns=attr.mtime_ns if attr.atime_ns is None else attr.atime_ns,
        nlink=attr.nlink,
        block_bytes=PREFERRED_IO_BYTES,
        blocks=count_stat_blocks(attr),
        rdev=attr.device,
    )


AT_ONCE_S = 1e-6
"""What is just told may be used by the call that asked for it: the shortest time that is one to the kernel, which makes a tick of
it, some milliseconds."""


def pack_entry(nodes: NodeGiver, attr: Attr, valid_s: float, *, opens: bool = False) -> bytes:
    """An inode with the node id that its name leads to now. `opens`: the call that has made it opens it, and would ask at once
    whether that is allowed."""
    return wire.pack_entry(nodes.get_node(attr), pack_attributes(attr), valid_s, max(valid_s, AT_ONCE_S) if opens else valid_s)


def pack_lookup(nodes: NodeGiver, answer: Answer) -> bytes:
    """The answer to LOOKUP, also to one of a name that does not exist; nothing: ENOENT."""
    if answer.entry is not None:
        return pack_entry(nodes, answer.entry.attr, answer.valid_s)
    return wire.pack_missing(answer.valid_s) if answer.valid_s > 0 else b""


def pack_statfs(totals: Totals) -> bytes:
    """The answer to STATFS."""
    space = get_space(totals)
    free = space.free_bytes // STATFS_BLOCK_BYTES
    return wire.pack_statfs(
        block_bytes=STATFS_BLOCK_BYTES,
        blocks=max(free, space.total_bytes // STATFS_BLOCK_BYTES),
        free_blocks=free,
        available_blocks=free,
        files=space.total_files,
        free_files=space.free_files,
        name_max=NAME_MAX_BYTES,
    )


def get_space(totals: Totals) -> Space:
    """What statfs says: what there is, and where nothing is known to limit it, so much that no program stops for it."""
    size = -(-totals.known_bytes // STATFS_BLOCK_BYTES) * STATFS_BLOCK_BYTES
    # The whole stays the same while files come and go, as programs expect of a file system.
    total = UNLIMITED_BYTES * (1 + size // UNLIMITED_BYTES)
    space = totals.space or Space(total + UNLIMITED_BYTES, total + UNLIMITED_BYTES - size)
    if space.total_files:
        return space
    files = FREE_INODES * (2 + totals.files // FREE_INODES)
    return Space(space.total_bytes, space.free_bytes, files, files - totals.files)
