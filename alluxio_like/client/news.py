"""What becomes of what is remembered when this client itself changes something.

Owns the order of things: the master tells everybody else by recalls, and the one who made a change by its answer, what is no
longer so and how it is now. An answer that did not come, or tells nothing, makes what was changed doubtful: it is forgotten here,
by the listener too. What is remembered is metadata.py's. Rule of concurrency: one event loop; no method awaits.
"""

from collections.abc import Callable, Iterable, Sequence

from alluxio_like.client.coherence import LeaseKeeper
from alluxio_like.client.metadata import Begun, MetadataCache
from alluxio_like.rpc.messages_writing import Told
from alluxio_like.types import InodeId, Recall, to_bytes


class News:
    """One client's. `note_forgotten` is called with what is no longer so, after it was forgotten."""

    def __init__(self, names: MetadataCache, keeper: LeaseKeeper, note_forgotten: Callable[[Sequence[Recall]], None]) -> None:
        self._names = names
        self._keeper = keeper
        self._note_forgotten = note_forgotten

    @property
    def lease(self) -> str:
        """The session whose lease is to cover answers; empty: none."""
        return self._keeper.session

    def begin(self) -> Begun:
        """To be called before a change is asked for; `take` needs it."""
        return self._names.begin()

    def take(self, recalls: Sequence[Recall], told: Sequence[Told], begun: Begun) -> None:
        """The answer to a change."""
        self._names.keep_change(recalls, told, begun)
        self._note_forgotten(recalls)

    def doubt_names(self, places: Iterable[tuple[InodeId, str]]) -> None:
        """Names may lead elsewhere by now, and nobody will say so."""
        recalls = []
        for parent, name in places:
            known = self._names.lookup_old(parent, name)
            inodes = () if known is None or known.entry is None else (known.entry.attr.inode,)
            recalls.append(Recall(parent, (to_bytes(name),), inodes=inodes))
        if recalls:
            self._keeper.forget_here(recalls)

    def doubt(self, inode: InodeId) -> None:
        """An inode may be another one by now, and nobody will say so."""
        known = self._names.get_old(inode)
        if known is not None:
            self._keeper.forget_here([Recall(known.parent, (to_bytes(known.entry.name),), inodes=(inode,))])
