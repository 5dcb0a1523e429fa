"""How the opens of a node id may be served beside each other: the kernel's rules as a table.

Owns, for each node id that is open, in which mode the kernel has it and which backing file its passthrough opens share. The
kernel answers EIO to an open that does not fit (fs/fuse/iomode.c), so each answer to OPEN is decided here first. Does no I/O:
whoever asks registers and closes backing files as it is told. Deterministic. Rule of concurrency: one event loop, and no await
between `decide` and the `open` that relies on it.

The kernel's rules, each of which was tried:
- while a passthrough open lives, a cached or a direct one fails, and so does a passthrough open over another backing;
- while a cached open lives, a passthrough one fails; direct opens do not matter to it;
- FOPEN_DIRECT_IO|FOPEN_PASSTHROUGH counts as a passthrough open, but its reads come to the daemon.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum, auto

from alluxio_like.errors import Internal

_HISTORY = 32


class Mode(IntEnum):
    """What lives on a node id. (Integers, here and below, because those hash fast.)"""

    IDLE = auto()
    CACHED = auto()
    DIRECT = auto()
    PASSTHROUGH = auto()
    UNKNOWN = auto()
    """An earlier daemon gave it out: what it has open there nobody knows."""


class Wish(IntEnum):
    """How one open would best be served."""

    CACHED = auto()
    DIRECT = auto()
    PASSTHROUGH = auto()


class Way(IntEnum):
    """How it is served. PASSTHROUGH: over the backing that is registered for the node id, or a new one where there is none."""

    CACHED = auto()
    DIRECT = auto()
    PASSTHROUGH = auto()
    REROUTED = auto()
    """FOPEN_DIRECT_IO|FOPEN_PASSTHROUGH: beside passthrough opens, but its reads come here."""
    ELSEWHERE = auto()
    """Not on this node id: ESTALE makes the kernel look the name up again, and the lookup gives another."""


_DECISIONS: dict[tuple[Mode, Wish], tuple[Way, Way]] = {
    # (mode, wish): (the way, the way of an open that cannot be sent elsewhere)
    (Mode.IDLE, Wish.CACHED): (Way.CACHED, Way.CACHED),
    (Mode.IDLE, Wish.DIRECT): (Way.DIRECT, Way.DIRECT),
    (Mode.IDLE, Wish.PASSTHROUGH): (Way.PASSTHROUGH, Way.PASSTHROUGH),
    (Mode.CACHED, Wish.CACHED): (Way.CACHED, Way.CACHED),
    (Mode.CACHED, Wish.DIRECT): (Way.DIRECT, Way.DIRECT),
    (Mode.CACHED, Wish.PASSTHROUGH): (Way.ELSEWHERE, Way.CACHED),
    (Mode.DIRECT, Wish.CACHED): (Way.CACHED, Way.CACHED),
    (Mode.DIRECT, Wish.DIRECT): (Way.DIRECT, Way.DIRECT),
    (Mode.DIRECT, Wish.PASSTHROUGH): (Way.PASSTHROUGH, Way.PASSTHROUGH),
    (Mode.PASSTHROUGH, Wish.CACHED): (Way.ELSEWHERE, Way.REROUTED),
    (Mode.PASSTHROUGH, Wish.DIRECT): (Way.REROUTED, Way.REROUTED),
    (Mode.PASSTHROUGH, Wish.PASSTHROUGH): (Way.PASSTHROUGH, Way.PASSTHROUGH),
    # Without a backing of which we know, cached is what fits most of what may live there.
    (Mode.UNKNOWN, Wish.CACHED): (Way.ELSEWHERE, Way.CACHED),
    (Mode.UNKNOWN, Wish.DIRECT): (Way.ELSEWHERE, Way.CACHED),
    (Mode.UNKNOWN, Wish.PASSTHROUGH): (Way.ELSEWHERE, Way.CACHED),
}

_OPENS: dict[tuple[Mode, Way], Mode] = {
    (Mode.IDLE, Way.CACHED): Mode.CACHED,
    (Mode.IDLE, Way.DIRECT): Mode.DIRECT,
    (Mode.IDLE, Way.PASSTHROUGH): Mode.PASSTHROUGH,
    (Mode.CACHED, Way.CACHED): Mode.CACHED,
    (Mode.CACHED, Way.DIRECT): Mode.CACHED,
    (Mode.DIRECT, Way.CACHED): Mode.CACHED,
    (Mode.DIRECT, Way.DIRECT): Mode.DIRECT,
    (Mode.DIRECT, Way.PASSTHROUGH): Mode.PASSTHROUGH,
    (Mode.PASSTHROUGH, Way.PASSTHROUGH): Mode.PASSTHROUGH,
    (Mode.PASSTHROUGH, Way.REROUTED): Mode.PASSTHROUGH,
    (Mode.UNKNOWN, Way.CACHED): Mode.UNKNOWN,
}
"""Which opens there can be, and the mode after each; any other is a defect."""


@dataclass(slots=True)
class _Node:
    """An open node id: how many opens of each kind live, and the backing that those in passthrough share."""

    mode: Mode
    cached: int = 0
    direct: int = 0
    passing: int = 0
    backing_id: int = 0
    version: int = 0
    """Of the content that lives there."""
    key: Hashable = None
    """Stands for the file that is registered."""
    history: list[int] = field(default_factory=list)
    """Ways of opens; below zero: of their ends."""

    def note(self, what: int) -> None:
        self.history.append(what)
        if len(self.history) > _HISTORY:
            del self.history[: _HISTORY // 2]


class Modes:
    """The modes of all node ids. `is_ours` says whether a node id was given out by this daemon."""

    def __init__(self, is_ours: Callable[[int], bool]) -> None:
        self._is_ours = is_ours
        self._nodes: dict[int, _Node] = {}
        self.counts = dict.fromkeys((Way.CACHED, Way.DIRECT, Way.PASSTHROUGH, Way.REROUTED), 0)
        """Opens that live, by how they are served."""

    def __len__(self) -> int:
        return len(self._nodes)

    def get_mode(self, node: int) -> Mode:
        """The mode of a node id."""
        found = self._nodes.get(node)
        if found is not None:
            return found.mode
        return Mode.IDLE if self._is_ours(node) else Mode.UNKNOWN

    def decide(self, node: int, wish: Wish, *, can_move: bool) -> Way:
        """How an open of the node id is to be served. `can_move`: it may be answered ESTALE."""
        first, other = _DECISIONS[self.get_mode(node), wish]
        return first if can_move else other

    def fits(self, node: int, wish: Wish) -> bool:
        """Whether the wish would be granted on this node id."""
        return self.decide(node, wish, can_move=True) is not Way.ELSEWHERE

    def get_backing(self, node: int) -> int:
        """The backing id that the node id's passthrough opens share; 0: none is registered."""
        found = self._nodes.get(node)
        return 0 if found is None else found.backing_id

    def get_version(self, node: int) -> int | None:
        """Of which version the opens of a node id are; None: there are none."""
        found = self._nodes.get(node)
        return None if found is None else found.version

    def get_key(self, node: int) -> Hashable:
        """What stands for the file that is registered for a node id."""
        found = self._nodes.get(node)
        return None if found is None else found.key

    def note_version(self, nodes: Iterable[int], before: int, version: int, key: Hashable) -> None:
        """What was one version has become another, in place: in the file that the key stands for, and in what is read from the
        daemon."""
        for node in nodes:
            found = self._nodes.get(node)
            if found is not None and found.version == before and (not found.backing_id or found.key == key):
                found.version = version

    def open(self, node: int, way: Way, backing_id: int = 0, *, version: int = 0, key: Hashable = None) -> None:
        """An open was answered so. `backing_id`: that of the node id, or a new one; for PASSTHROUGH and REROUTED. `key` stands
        for a new one's file. An open that does not fit the version that lives there does not change what that is.

        Raises Internal for an answer that the kernel would not take.
        """
        found = self._nodes.get(node)
        if found is None:
            found = _Node(self.get_mode(node), version=version)
        after = _OPENS.get((found.mode, way))
        passing = way is Way.PASSTHROUGH or way is Way.REROUTED
        if after is None or (passing and (not backing_id or found.backing_id not in (0, backing_id))):
            raise Internal(f"an open as {way.name.lower()} over {backing_id} does not fit: {self._describe(node, found)}")
        self._nodes[node] = found
        found.mode = after
        if passing:
            found.passing += 1
            if not found.backing_id:
                found.backing_id, found.key = backing_id, key
        elif way is Way.CACHED:
            found.cached += 1
        else:
            found.direct += 1
        found.note(way)
        self.counts[way] += 1

    def release(self, node: int, way: Way) -> int:
        """An open that was served so has ended. The backing id that is to be closed now, or 0.

        Raises Internal for one that did not live.
        """
        found = self._nodes.get(node)
        lives = 0
        if found is not None:
            lives = found.cached if way is Way.CACHED else found.direct if way is Way.DIRECT else found.passing
        if found is None or lives <= 0:
            raise Internal(f"no open as {way.name.lower()} lives: {self._describe(node, found)}")
        self.counts[way] -= 1
        closed = 0
        if way is Way.CACHED:
            found.cached -= 1
        elif way is Way.DIRECT:
            found.direct -= 1
        else:
            found.passing -= 1
            if not found.passing:
                closed, found.backing_id, found.key = found.backing_id, 0, None
        if not (found.cached or found.direct or found.passing):
            del self._nodes[node]
        elif found.mode is not Mode.UNKNOWN:
            found.mode = Mode.PASSTHROUGH if found.passing else Mode.CACHED if found.cached else Mode.DIRECT
        found.note(-way)
        return closed

    def drain_backings(self) -> list[int]:
        """All backing ids that are registered, for a daemon that ends; nothing is to be opened or released afterwards."""
        found = [node.backing_id for node in self._nodes.values() if node.backing_id]
        self._nodes.clear()
        return found

    @staticmethod
    def _describe(node: int, found: _Node | None) -> str:
        if found is None:
            return f"node {node:#x}, nothing open"
        history = " ".join(("-" if what < 0 else "") + Way(abs(what)).name.lower() for what in found.history)
        return f"node {node:#x}, {found.mode.name.lower()}, backing {found.backing_id}, history {history}"
