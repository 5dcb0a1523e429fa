"""The modes of node ids against a plain model of the kernel.

No sequence of opens, ends, completions, losses and restarts gives an answer to OPEN that the kernel would refuse with EIO.
"""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from alluxio_like.errors import Internal
from alluxio_like.fuse.modes import Mode, Modes, Way, Wish
from alluxio_like.fuse.nodes import Nodes
from alluxio_like.types import InodeId

INODES = [InodeId(2), InodeId(3)]


@dataclass
class KernelInode:
    """fs/fuse/iomode.c: how many cached opens, or how many passthrough opens over which backing."""

    cached: int = 0
    passing: int = 0
    backing: int = 0


@dataclass
class Kernel:
    """What the kernel does with an answer to OPEN."""

    inodes: dict[int, KernelInode] = field(default_factory=dict)
    registered: set[int] = field(default_factory=set)
    next_id: int = 1

    def register(self) -> int:
        self.next_id += 1
        self.registered.add(self.next_id)
        return self.next_id

    def open(self, node: int, way: Way, backing: int) -> bool:
        """False: EIO."""
        inode = self.inodes.setdefault(node, KernelInode())
        if inode.passing and way not in (Way.PASSTHROUGH, Way.REROUTED):
            return False
        if way is Way.DIRECT:
            return True
        if way is Way.CACHED:
            inode.cached += 1
            return True
        if backing not in self.registered or inode.cached or (inode.passing and inode.backing != backing):
            return False
        inode.passing += 1
        inode.backing = backing
        return True

    def release(self, node: int, way: Way) -> None:
        inode = self.inodes[node]
        if way is Way.CACHED:
            inode.cached -= 1
        elif way is not Way.DIRECT:
            inode.passing -= 1


@dataclass
class Handle:
    node: int
    way: Way
    generation: int


class ModesMachine(RuleBasedStateMachine):
    @initialize(generation=st.sampled_from([0, 1, 1023]))
    def start(self, generation: int) -> None:
        self.kernel = Kernel()
        self.generation = generation
        self.handles: list[Handle] = []
        self.complete = dict.fromkeys(INODES, False)
        self.dentries: dict[InodeId, int] = {}
        self.ours: set[int] = set()
        self.begin()

    def begin(self) -> None:
        self.nodes = Nodes(self.generation)
        self.modes = Modes(self.nodes.is_ours)

    @rule(inode=st.sampled_from(INODES))
    def complete_or_lose_file(self, inode: InodeId) -> None:
        self.complete[inode] = not self.complete[inode]

    @rule(inode=st.sampled_from(INODES), direct=st.booleans())
    def open_by_name(self, inode: InodeId, direct: bool) -> None:
        """An open that the kernel may send to another node id, once."""
        node = self.dentries.setdefault(inode, self.nodes.get_file_node(inode))
        if not self.try_open(inode, node, direct, can_move=True):
            node = self.dentries[inode] = self.nodes.get_file_node(inode)
            assert self.try_open(inode, node, direct, can_move=False)

    @rule(index=st.integers(0, 1000), direct=st.booleans())
    def open_by_descriptor(self, index: int, direct: bool) -> None:
        """An open of what is open, which has no name to look up."""
        if self.handles:
            handle = self.handles[index % len(self.handles)]
            if not self.nodes.is_ours(handle.node) and self.kernel.inodes[handle.node].passing:
                return  # the one case that cannot be helped: the backing of a daemon that is gone (docs/SEMANTICS.md)
            assert self.try_open(self.nodes.get_inode(handle.node), handle.node, direct, can_move=False)

    def try_open(self, inode: InodeId, node: int, direct: bool, *, can_move: bool) -> bool:
        """False: sent elsewhere."""
        wish = Wish.DIRECT if direct else Wish.PASSTHROUGH if self.complete[inode] else Wish.CACHED
        way = self.modes.decide(node, wish, can_move=can_move)
        if way is Way.ELSEWHERE:
            assert can_move
            new = self.nodes.get_file_node(inode)
            if self.modes.get_mode(node) is not Mode.UNKNOWN or not self.modes.fits(new, wish):
                assert self.nodes.move(inode, lambda other: self.modes.fits(other, wish))
            moved = self.nodes.get_file_node(inode)
            assert moved != node
            assert self.nodes.get_inode(moved) == inode
            assert self.modes.decide(moved, wish, can_move=True) is not Way.ELSEWHERE
            return False
        backing = self.modes.get_backing(node)
        if way is Way.PASSTHROUGH and not backing:
            backing = self.kernel.register()
            self.ours.add(backing)
        assert self.kernel.open(node, way, backing), f"EIO: {way} on {self.modes.get_mode(node)}"
        self.modes.open(node, way, backing)
        self.handles.append(Handle(node, way, self.generation))
        return True

    @rule(index=st.integers(0, 1000))
    def release(self, index: int) -> None:
        if not self.handles:
            return
        handle = self.handles.pop(index % len(self.handles))
        self.kernel.release(handle.node, handle.way)
        if handle.generation != self.generation:
            return
        closed = self.modes.release(handle.node, handle.way)
        if closed:
            self.kernel.registered.discard(closed)
            self.ours.discard(closed)

    @rule()
    def restart(self) -> None:
        """The daemon dies; the next one knows nothing, and gives back the backings that were left."""
        self.generation += 1
        self.kernel.registered.clear()
        self.ours.clear()
        self.begin()

    @rule()
    def forget_names(self) -> None:
        self.dentries.clear()

    @invariant()
    def backings_are_those_of_open_nodes(self) -> None:
        if not hasattr(self, "modes"):
            return
        open_now = {handle.node for handle in self.handles if handle.generation == self.generation}
        assert len(self.modes) == len(open_now)
        assert self.kernel.registered == {self.modes.get_backing(node) for node in open_now} - {0}
        for way, count in self.modes.counts.items():
            assert count == sum(one.way is way and one.generation == self.generation for one in self.handles)


TestModes = ModesMachine.TestCase
TestModes.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)


def test_what_the_kernel_would_refuse_is_a_defect_and_tells_the_history() -> None:
    modes = Modes(lambda _node: True)
    modes.open(5, Way.CACHED)
    with pytest.raises(Internal, match=r"passthrough over 7 does not fit.*cached, backing 0, history cached"):
        modes.open(5, Way.PASSTHROUGH, 7)
    modes.open(6, Way.PASSTHROUGH, 7)
    for backing, way in ((8, Way.PASSTHROUGH), (0, Way.REROUTED), (0, Way.CACHED), (0, Way.DIRECT)):
        with pytest.raises(Internal):
            modes.open(6, way, backing)
    with pytest.raises(Internal, match="no open as direct lives"):
        modes.release(6, Way.DIRECT)
    with pytest.raises(Internal, match="nothing open"):
        modes.release(9, Way.CACHED)
    assert modes.release(6, Way.PASSTHROUGH) == 7
    assert modes.release(5, Way.CACHED) == 0
    assert len(modes) == 0


def test_a_node_id_tells_its_inode_and_its_daemon() -> None:
    generator = random.Random(1)
    for _ in range(200):
        generation = generator.randrange(1 << 20)
        nodes = Nodes(generation)
        inode = InodeId(generator.randrange(2, 1 << 48))
        seen = set()
        for _ in range(64):
            node = nodes.get_file_node(inode)
            assert nodes.is_ours(node)
            assert not Nodes(generation + 1).is_ours(node)
            assert nodes.get_inode(node) == inode
            assert node < 1 << 64
            seen.add(node)
            nodes.move(inode, lambda other: other not in seen)  # noqa: B023
        assert len(seen) == 64
        assert not nodes.move(inode, lambda other: other not in seen)  # noqa: B023
