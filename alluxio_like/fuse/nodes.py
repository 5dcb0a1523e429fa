"""Node ids: the kernel's names for inodes, of which a file may have several at a time.

Owns the layout of a node id and which one of a file's is given to who looks its name up now. A regular file's node id is its
inode id with an epoch above it, so that opens which do not fit beside each other (modes.py) find different node ids with the
same st_ino. Directories have one node id, their inode id; the mount's root is 1 whatever inode it is. Deterministic. Rule of
concurrency: one event loop.

    bits 0 to 47    the inode id
    bits 48 to 53   the turn: which of the node ids that this daemon has for the file
    bits 54 to 63   the daemon's generation, so that it knows which node ids are not its own
"""

from collections.abc import Callable

from alluxio_like.fuse.handles import BoundedDict
from alluxio_like.types import InodeId

INODE_BITS = 48
TURNS = 64
GENERATIONS = 1024
"""After so many the numbers begin again: a node id of so old a daemon, still open, would be taken for our own."""

_INODE_MASK = (1 << INODE_BITS) - 1
_GENERATION_SHIFT = 54
_MOVED = 100_000
"""Files of which it is remembered that they moved; one that is forgotten moves again when it has to."""


class Nodes:
    """The node ids of one daemon."""

    def __init__(self, generation: int = 0) -> None:
        self._base = generation % GENERATIONS << _GENERATION_SHIFT
        self._turns: BoundedDict[InodeId, int] = BoundedDict(_MOVED)
        self._highest: BoundedDict[InodeId, int] = BoundedDict(_MOVED)

    def get_file_node(self, inode: InodeId) -> int:
        """The node id that a lookup of a regular file gives now."""
        if len(self._turns):
            turn = self._turns.lookup(inode)
            if turn:
                return inode | turn << INODE_BITS | self._base
        return inode | self._base

    def list_nodes(self, inode: InodeId) -> list[int]:
        """All node ids that this daemon may have given out for an inode."""
        found = [inode | turn << INODE_BITS | self._base for turn in range((self._highest.lookup(inode) or 0) + 1)]
        return found if found[0] == inode else [inode, *found]

    @staticmethod
    def get_inode(node: int) -> InodeId:
        """The inode of a node id; for the root's, 1."""
        return InodeId(node & _INODE_MASK)

    def is_ours(self, node: int) -> bool:
        """Whether a file's node id was given out by this daemon."""
        return node >> _GENERATION_SHIFT << _GENERATION_SHIFT == self._base

    def move(self, inode: InodeId, fits: Callable[[int], bool]) -> bool:
        """Give another node id from now on, the first that fits. False: none does; nothing has changed then."""
        for turn in range(TURNS):
            if fits(inode | turn << INODE_BITS | self._base):
                self._turns.set(inode, turn)
                self._highest.set(inode, max(turn, self._highest.lookup(inode) or 0))
                return True
        return False
