"""What the kernel remembers of a mount, and has to be told to ask for again.

Owns how far the kernel's copies of listings go and which of them are used, and how a recall becomes notifications: names one by
one, or all of them at once where there are many and the kernel can be told so. The kernel keeps what it was answered for long;
whatever it was ever answered is told here when it is not so any more. Rule of concurrency: one event loop; notifications are
written elsewhere (notify.py).

The kernel makes its copy of a listing from what readers of the directory are answered, entry after entry from the first, and uses
it once it is whole. One that is dropped before that can never become whole while the kernel remembers the directory
(fs/fuse/readdir.c: it would go on behind an entry whose page is gone). So a copy is dropped only when it is whole. One that is
out of date before that is let grow, by readers that were there before or one that is alone, and dropped then.

A notification waits in the kernel for the requests under way in that directory, so whatever these are answered is forgotten
too. Answers that were asked for before a recall and come after it are given with no time to be kept.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from alluxio_like.clock import Clock
from alluxio_like.errors import AlluxioLikeError
from alluxio_like.fuse.backend import Backend
from alluxio_like.fuse.handles import BoundedDict
from alluxio_like.fuse.nested import Steps
from alluxio_like.fuse.notify import Teller
from alluxio_like.types import EVERYWHERE, InodeId, Kind, Recall, to_bytes, to_str

log = logging.getLogger(__name__)

ROOT_NODE = 1
"""The node id of a mount's root, fixed by the kernel's protocol."""

_LISTINGS = 10_000
_NAMES_TOLD = 5_000
"""Names of one directory that the kernel is told to forget one by one; for more it is told to ask for all again. A guess."""


@dataclass(slots=True)
class _Listing:
    """The kernel's copy of a listing: until when it is right, the offset behind its last entry, and whether it has all."""

    until_s: float
    reached: int
    whole: bool


class KernelMemory:
    """Of the mount of the directory `root`."""

    def __init__(
        self,
        backend: Backend,
        teller: Teller,
        root: InodeId,
        clock: Clock,
        *,
        changes: bool = False,
        list_nodes: Callable[[InodeId], Iterable[int]] | None = None,
        list_nested: Callable[[], frozenset[Steps]] = frozenset,
    ) -> None:
        """`changes`: the mount may change things itself. `list_nodes` gives the node ids that a file may have, `list_nested` what
        others have mounted on (nested.py)."""
        self._changes = changes
        self._list_nested = list_nested
        self._list_nodes = list_nodes or (lambda inode: [inode])
        self._backend = backend
        self._teller = teller
        self._root = root
        self._clock = clock
        self._listings: BoundedDict[int, _Listing] = BoundedDict(_LISTINGS)
        self.recalls = 0
        """How often something was recalled; a page of a listing from before then is not to be relied on."""

    # Listings

    def open_listing(self, node: int, is_alone: Callable[[], bool]) -> tuple[bool, bool]:
        """A directory is opened: whether this open uses and makes the kernel's copy of its listing, and whether the copy that
        there is is kept. `is_alone`: whether nobody else has it open."""
        known = self._listings.lookup(node)
        if known is None:
            return True, False
        if self._clock.monotonic() < known.until_s:
            return True, True
        if not known.whole:
            # Others would find in it what was listed before they came.
            return is_alone(), True
        self._listings.discard(node)
        return True, False

    def note_listing(self, node: int, offset: int, reached: int, valid_s: float) -> None:
        """A part of a listing was answered, from `offset` to `reached`; nothing: it ends there. All of the kernel's copy is as
        good as its worst part."""
        until_s = self._clock.monotonic() + valid_s
        known = self._listings.lookup(node)
        if known is None or (known.whole and not offset):
            # Its first part; also where the kernel has lost a whole copy, and makes another one.
            if not offset:
                self._listings.set(node, _Listing(until_s, reached, whole=reached == offset))
        elif not known.whole and offset <= known.reached and (reached > known.reached or reached == offset):
            known.until_s = min(known.until_s, until_s)
            known.whole = reached == offset
            known.reached = reached
            if known.whole and self._clock.monotonic() >= known.until_s:
                # Now it can be dropped, and must be: who has the directory open may rewind it.
                self._listings.discard(node)
                self._teller.tell_inode(node)

    # Recalls

    def note_own(self, recalls: Sequence[Recall]) -> None:
        """What the kernel has changed itself: it has dropped its copies of what is no longer so."""
        self.recalls += 1
        for recall in recalls:
            node = None if recall.directory == EVERYWHERE else self._get_node(recall.directory)
            if node is not None:
                self._drop_listing(node)

    def recall(
        self,
        recalls: Sequence[Recall],
        in_use: Iterable[InodeId],
        open_directories: Sequence[InodeId],
        is_shown: Callable[[InodeId], bool] = lambda inode: False,
    ) -> Awaitable[None]:
        """Have the kernel ask again for what is taken back; what is returned is done once it will. `in_use`: files that are
        open; `is_shown`: of an inode whose attributes the kernel does not remember anyway.
        """
        self.recalls += 1
        nested = self._list_nested()
        everything = False
        opened = frozenset() if self._changes else frozenset(in_use)
        for recall in recalls:
            # Who changes nothing relies on names for all but what is open, which may have grown.
            self._recall_attributes(recall.inodes if self._changes else opened.intersection(recall.inodes), recall, is_shown)
            if recall.directory == EVERYWHERE:
                everything = everything or not recall.pins_only
            elif (node := self._get_node(recall.directory)) is not None:
                self._recall_directory(node, recall, in_use, open_directories, nested)
        if not everything:
            return self._teller.flush()
        at_once = self._recall_everything(open_directories, nested)
        return self._teller.flush() if at_once else self._tell_names(list(in_use), nested)

    def doubt_names(self) -> None:
        """A change failed that may have been made all the same. Before the kernel hears of that, it is to rely on no name: who is
        told of the failure may use one at once, and would reach the file that has it no more."""
        self.recalls += 1
        self._teller.tell_all_now()

    async def tell_attributes(self, inode: InodeId) -> None:
        """A file's attributes are others by what was done through this mount; returns when the kernel knows."""
        for node in self._list_nodes(inode):
            self._teller.tell_inode(node, listing=False)
        await self._teller.flush()

    def tell_name(self, inode: InodeId, *, gently: bool = False) -> None:
        """The name that led to an inode has to be looked up again."""
        known = self._backend.get_old(inode)
        parent = None if known is None else self._get_node(known[1])
        if known is not None and parent is not None:
            self._teller.tell(parent, to_bytes(known[0].name), gently=gently)

    def _drop_listing(self, node: int) -> bool:
        """A listing is not so any more; whether the kernel may drop its copy now."""
        known = self._listings.lookup(node)
        if known is not None and not known.whole:
            known.until_s = 0.0
            return False
        self._listings.discard(node)
        return True

    def _recall_everything(self, open_directories: Iterable[InodeId], nested: frozenset[Steps]) -> bool:
        """Whether all names are told with it."""
        for node in self._listings.list_keys():
            self._drop_listing(node)
        at_once = self._teller.can_tell_all and not nested
        if at_once:
            self._teller.tell_all()
        # Who opens a directory from now on finds no old copy; who has it open may rewind it.
        for node in {ROOT_NODE, *filter(None, map(self._get_node, open_directories))}:
            self._teller.tell_inode(node, listing=self._listings.lookup(node) is None)
        return at_once

    async def _tell_names(self, in_use: Iterable[InodeId], nested: frozenset[Steps]) -> None:
        """One by one what is in use, and what everything else is below: also what an earlier daemon on this mount has
        answered."""
        await self._tell_below(self._root, nested)
        for inode in in_use:
            self.tell_name(inode, gently=bool(nested))
        await self._teller.flush()

    async def _tell_below(self, directory: InodeId, nested: frozenset[Steps]) -> None:
        """All names in a directory, each with what is below it; but for those on the way to what others have mounted, which are
        told gently, and so is all beside that way."""
        node = self._get_node(directory)
        if node is None:
            return
        names = set(self._backend.list_known_names(directory, 1 << 30) or ())
        cursor: bytes | None = None
        try:
            while True:
                page = await self._backend.list_dir(directory, cursor)
                names.update(to_bytes(entry.name) for entry in page.entries)
                cursor = page.next_cursor
                if cursor is None:
                    break
        except AlluxioLikeError as error:
            log.info("not all names of a directory could be told to the kernel", extra={"reason": str(error)})
        on_the_way = {steps[0] for steps in nested}
        for name in names | on_the_way:
            self._teller.tell(node, name, gently=name in on_the_way)
        for name in on_the_way:
            with contextlib.suppress(AlluxioLikeError):
                entry = (await self._backend.lookup(directory, to_str(name))).entry
                if entry is not None and entry.attr.kind is Kind.DIRECTORY:
                    further = frozenset(steps[1:] for steps in nested if steps[0] == name and steps[1:])
                    await self._tell_below(entry.attr.inode, further)

    def _recall_attributes(self, inodes: Iterable[InodeId], recall: Recall, is_shown: Callable[[InodeId], bool]) -> None:
        """Of inodes, under whatever name the kernel found them. (Pages of what is another content now go at the next open.)"""
        for inode in inodes:
            if inode == recall.directory or is_shown(inode):
                continue
            for node in [ROOT_NODE] if inode == self._root else self._list_nodes(inode):
                self._teller.tell_inode(node, listing=False)

    def _recall_directory(
        self,
        node: int,
        recall: Recall,
        in_use: Iterable[InodeId],
        open_directories: Iterable[InodeId],
        nested: frozenset[Steps],
    ) -> None:
        can_tell_all = self._teller.can_tell_all and not nested
        may_drop = self._drop_listing(node)
        names: Sequence[bytes] | None = recall.names
        if recall.all_names:
            known = self._backend.list_known_names(recall.directory, _NAMES_TOLD)
            names = None if known is None else list({*known, *recall.names})
            if names is not None and can_tell_all and self._has_directory(recall.directory, names):
                # A directory that is told by its name is nameless to who works in it until somebody looks it up again.
                names = None
        if self._changes and can_tell_all and (names or names is None):
            # A name that is told by itself waits in the kernel for what we are changing in that directory. That may wait at the
            # master for another mount to hear of it, which in the same way waits for us.
            self._teller.tell_all()
            names = ()
        elif names is None:
            if can_tell_all:
                self._recall_everything(open_directories, nested)
            elif node == ROOT_NODE or nested:
                names = self._backend.list_known_names(recall.directory, 1 << 30)
            if names is None and not can_tell_all and node != ROOT_NODE:
                # Its own name takes along all below it that is not in use.
                self.tell_name(recall.directory)
                for inode in in_use:
                    self.tell_name(inode)
        for name in names or ():
            self._teller.tell(node, name, gently=bool(nested))
        self._teller.tell_inode(node, listing=may_drop)

    def _has_directory(self, directory: InodeId, names: Iterable[bytes]) -> bool:
        known = (self._backend.lookup_old(directory, to_str(name)) for name in names)
        return any(entry is not None and entry.attr.kind is Kind.DIRECTORY for entry in known)

    def _get_node(self, directory: InodeId) -> int | None:
        """The node id of a directory; None for one that cannot be below the mount's root."""
        if directory == self._root:
            return ROOT_NODE
        return directory if directory != ROOT_NODE else None
