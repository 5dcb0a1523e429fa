"""How each open of a file is served: by the kernel itself where that can be, else through READs.

Owns the decision at OPEN: is the file wholly local, is it worth waiting for, does it fit beside what is open on its node id
(modes.py), and if not, which node id its name leads to next (nodes.py); and the backing files that are registered with the
kernel. Does not own handles (operations.py) or the loop (session_kernel.py).

An open that does not fit is answered ESTALE: the kernel then looks the name up again by itself and opens the node id that it
finds. Where there is no name to look up (/proc/self/fd/N), the same thread comes again at once; it is then served in whatever
mode fits.

Rule of concurrency: one event loop. `decide` neither awaits nor waits: what it finds out holds until it has told the modes.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

from alluxio_like.clock import Clock
from alluxio_like.errors import AlluxioLikeError, Stale, Unsupported
from alluxio_like.fuse import wire
from alluxio_like.fuse.backend import Backend, Reader, WholeFile
from alluxio_like.fuse.drafts import Draft
from alluxio_like.fuse.filling import Filler
from alluxio_like.fuse.following import MOST_BYTES
from alluxio_like.fuse.habits import Habits
from alluxio_like.fuse.handles import BoundedDict
from alluxio_like.fuse.ledger import SentAway
from alluxio_like.fuse.modes import Mode, Modes, Way, Wish
from alluxio_like.fuse.nodes import Nodes
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import Attr, Entry, InodeId, Kind, VersionId
from alluxio_like.waits import NONE, Seconds

log = logging.getLogger(__name__)

_SENT_AWAY_S = 30.0
"""How long a thread that was sent to look a name up again may take to come back: the daemon may die meanwhile, and be started
again. A guess."""
_SENT_AWAY = 10_000
_REFUSAL_S = 60.0
"""How long a small file that could not be brought at its open is not tried again at once. A guess."""

_BRING_FRACTION = 0.8
"""Of io_timeout_s: the part of it that an open may wait for its file; what comes after must still answer in time."""
_INDEXED_S = 2.0
"""How long a file that was just brought may take to be in its worker's index: a group commit (cache/store.py), and a disk. A
guess."""
_LOOK_S = 0.02
_PREPARE_S = 2.0
"""How long an open waits to learn which caches are on this machine. A guess."""
_GROWING_NS = 600 * 10**9
"""How long after it was written a file that grew counts as growing. A guess."""

_FLAGS = {
    Way.CACHED: wire.FOPEN_KEEP_CACHE | wire.FOPEN_NOFLUSH,
    Way.DIRECT: wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH,
    Way.PASSTHROUGH: wire.FOPEN_PASSTHROUGH | wire.FOPEN_NOFLUSH,
    Way.REROUTED: wire.FOPEN_PASSTHROUGH | wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH,
}


class Backings(Protocol):
    """Where files are registered that the kernel reads by itself: the device."""

    def open_backing(self, fd: int) -> int:
        """Register a file; its id, above 0. Raises Unsupported."""
        ...

    def close_backing(self, backing_id: int) -> bool:
        """Give an id back; open handles keep what they have."""
        ...

    def note_sent(self, sent: SentAway) -> None:
        """Write down, for the daemon after this one, whom an open was sent away from."""
        ...

    def forget_sent(self, thread: int, inode: int) -> None:
        """It is back."""
        ...

    def list_sent(self) -> list[SentAway]:
        """What the daemon before has written down."""
        ...


@dataclass(frozen=True, slots=True)
class OpenSettings:
    """What an operator can choose. `why_not`: empty where the kernel is to read by itself, else why it is not."""

    why_not: str
    fill_at_open_bytes: int
    fill_in_background: bool
    open_wait_bytes: int
    verify_open: bool
    io_timeout_s: float


class _Disk:
    """Stands for where drafts are."""


class _DraftFile:
    """A draft as a file that can be registered."""

    def __init__(self, draft: Draft, disk: _Disk) -> None:
        # Not the draft's own descriptor: registered for writing, the file would never be over.
        self.fd = os.open(f"/proc/self/fd/{draft.fd}", os.O_RDONLY | os.O_CLOEXEC)
        self.directory: Hashable = disk

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Choice(NamedTuple):
    """How an open is answered. `reader` belongs to the handle from now on."""

    way: Way
    open_flags: int
    backing_id: int
    reader: Reader | None = None
    waited: Seconds = NONE
    """For what the open waited that brought the file; without a reader, which knows that by itself."""


class Opener:
    """Decides for one mount."""

    def __init__(
        self, backend: Backend, backings: Backings, nodes: Nodes, settings: OpenSettings, clock: Clock, metrics: Metrics
    ) -> None:
        self._backend = backend
        self._backings = backings
        self._nodes = nodes
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._modes = Modes(nodes.is_ours)
        self._passes = not settings.why_not
        self._why_not = settings.why_not
        self._sent_away: BoundedDict[tuple[int, InodeId], tuple[float, int]] = BoundedDict(_SENT_AWAY)
        """By thread and inode: until when it is expected back, and the request by which it came. (What a daemon before this one
        has said of that, too.)"""
        for sent in backings.list_sent():
            self._sent_away.set((sent.thread, InodeId(sent.inode)), (sent.until_s, sent.unique))
        self._refused: WeakKeyDictionary[Hashable, str] = WeakKeyDictionary()
        """Cache directories whose files the kernel does not read by itself, and why."""
        self._has_refused = False
        self._habits = Habits()
        self._disks: dict[int, _Disk] = {}
        self._written: WeakValueDictionary[InodeId, Draft] = WeakValueDictionary()
        self._is_prepared = False
        self._pages: BoundedDict[int, int] = BoundedDict(_SENT_AWAY)
        """Of which version the kernel's pages of a node id are, where that is not the first one; -1: not known."""
        self._unfilled: BoundedDict[InodeId, float] = BoundedDict(_SENT_AWAY)
        self._brought: BoundedDict[InodeId, float] = BoundedDict(_SENT_AWAY)
        """Files that an open has brought, and until when the index may not have them yet."""
        self._closing: set[asyncio.Task[None]] = set()
        self._filler = Filler(backend, clock, metrics)
        self._opens = {way: metrics.fuse_opens.labels(way.name.lower()) for way in _FLAGS}
        for way in _FLAGS:
            metrics.fuse_handles_by_way.labels(way.name.lower()).set_function(_make_counter(self._modes, way))
        metrics.fuse_nodes.set_function(lambda: len(self._modes))

    @property
    def passes(self) -> bool:
        """Whether the kernel may read files by itself at all."""
        return self._passes

    def get_node(self, attr: Attr) -> int:
        """The node id that a lookup gives now: one on which no other content is open."""
        inode = attr.inode
        if attr.kind is not Kind.FILE:
            return inode
        node = self._nodes.get_file_node(inode)
        version = self._modes.get_version(node)
        if version is None or version == attr.version or not self._nodes.is_ours(node):
            return node
        draft = self._written.get(inode)
        if draft is None or draft.over or draft.is_behind(attr.version):
            self._nodes.move(inode, lambda other: self._modes.get_version(other) in (None, attr.version))
        return self._nodes.get_file_node(inode)

    # Opens

    def note_lookup(self, entry: Entry, thread: int) -> None:
        """A thread was told of a name: has it opened what it looked up before, the bytes of this one are sent for."""
        is_file = entry.ref is not None and entry.attr.size > self._settings.open_wait_bytes
        if is_file and self._habits.note_lookup(thread, entry.attr.inode):
            self._backend.expect_open(entry)

    def try_open(self, node: int, entry: Entry, thread: int, unique: int) -> Choice | None:
        """How an open is answered, when that can be said without waiting; else None: `open`. `thread`: who opens; `unique`: of
        the request, the same when it is sent again.

        Raises Stale to send the kernel back to the name.
        """
        self._send_on(node, entry, thread, unique)
        if self._must_wait(entry):
            return None
        whole = self._backend.find_whole(entry)
        if whole is not None and self._settings.verify_open and self._passes:
            whole.close()
            return None
        if whole is None:
            far = self._open_far(node, entry, thread, unique)
            if far is not None or self._is_worth_waiting_for(entry):
                return far
            return self.decide(node, entry, thread, unique, None)
        try:
            return self.decide(node, entry, thread, unique, whole)
        finally:
            whole.close()

    def _open_far(self, node: int, entry: Entry, thread: int, unique: int) -> Choice | None:
        """How an open is answered of a small file that another machine has: at once, and its bytes are on their way to the READ
        that comes next. None: it is no such file, or the open is to wait until it is here. Raises Stale.
        """
        reader = self._backend.open_far(entry) if entry.attr.size > self._settings.open_wait_bytes else None
        if reader is None:
            return None
        self._habits.note_open(thread, entry.attr.inode)
        try:
            # Whether it is ever brought here is the backend's to say, not the filler's.
            return self.decide(node, entry, thread, unique, None, note=False)._replace(reader=reader)
        except BaseException:
            self._begin_close(reader)
            raise

    def _begin_close(self, reader: Reader) -> None:
        ending = reader.begin_close()
        if ending is not None:
            self._closing.add(task := asyncio.create_task(ending, name="close"))
            task.add_done_callback(self._closing.discard)

    async def open(self, node: int, entry: Entry, thread: int, unique: int) -> Choice:
        """As `try_open`; brings the file first where that is wanted, for at most io_timeout_s. Raises Stale."""
        self._send_on(node, entry, thread, unique)
        if not self._backend.is_prepared:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PREPARE_S):
                    await self._backend.prepare()
        whole = self._backend.find_whole(entry)
        if whole is not None and self._settings.verify_open and self._passes and not await self._is_right(entry, whole):
            return self.decide(node, entry, thread, unique, None)
        if whole is not None:
            try:
                return self.decide(node, entry, thread, unique, whole)
            finally:
                whole.close()
        far = self._open_far(node, entry, thread, unique)
        if far is not None:
            return far
        if not self._is_worth_waiting_for(entry):
            return self.decide(node, entry, thread, unique, None)
        reader = self._backend.open_file(entry)
        choice = None
        try:
            whole = await self._bring(entry, reader)
            choice = self.decide(node, entry, thread, unique, whole)
            # No await from here on: who is cancelled now would leave an open behind of which the kernel knows nothing.
            if choice.way is Way.PASSTHROUGH:
                return choice._replace(waited=reader.get_waits())
            # The reader found out what of it is here, and whether a worker keeps it: it is worth keeping for reads.
            return choice._replace(reader=reader)
        finally:
            if choice is None or choice.way is Way.PASSTHROUGH:
                self._begin_close(reader)

    async def _bring(self, entry: Entry, reader: Reader) -> WholeFile | None:
        filled = False
        try:
            async with asyncio.timeout(self._settings.io_timeout_s * _BRING_FRACTION):
                filled = await reader.fill_whole(Priority.DEMAND)
        except TimeoutError:
            log.info("a file was not brought in time for its open", extra={"file": entry.name})
        whole = reader.find_whole() if filled else None
        if whole is None:
            self._unfilled.set(entry.attr.inode, self._clock.monotonic() + _REFUSAL_S)
            self._filler.leave_alone(entry)
        else:
            self._brought.set(entry.attr.inode, self._clock.monotonic() + _INDEXED_S)
        self._metrics.fuse_fills.labels("at open", "whole" if whole is not None else "not kept").inc()
        return whole

    async def _is_right(self, entry: Entry, whole: WholeFile) -> bool:
        """Whether all of a file matches its checksums, found out in the time that an open may take."""
        # Not closed here whatever happens: a thread may still be reading. Its descriptor goes with the last who knows it.
        try:
            async with asyncio.timeout(self._settings.io_timeout_s * _BRING_FRACTION):
                return await self._backend.verify_whole(entry, whole)
        except TimeoutError:
            log.info("a file was not verified in time for its open", extra={"file": entry.name})
        except AlluxioLikeError as error:
            log.warning("a file cannot be verified: %s", error, extra={"file": entry.name})
        return False

    def _must_wait(self, entry: Entry) -> bool:
        if self._is_prepared:
            return False
        self._is_prepared = self._backend.is_prepared
        return not self._is_prepared and bool(entry.attr.size) and (self._passes or self._settings.open_wait_bytes > 0)

    def _is_worth_waiting_for(self, entry: Entry) -> bool:
        """Whether an open of a file that is not wholly local brings it first."""
        size, settings = entry.attr.size, self._settings
        if not size or not (size <= settings.open_wait_bytes or (self._passes and size <= settings.fill_at_open_bytes)):
            return False
        until_s = self._unfilled.lookup(entry.attr.inode)
        return until_s is None or self._clock.monotonic() >= until_s

    def open_draft(
        self, node: int, entry: Entry, draft: Draft, thread: int, unique: int, *, writes: bool, passes: bool = True
    ) -> Choice:
        """How an open of a file that is being written is answered. `passes`: the kernel may write by itself. Raises Stale."""
        self._send_on(node, entry, thread, unique)
        self._written[draft.inode] = draft
        disk = self._disks.setdefault(draft.key[0], _Disk())
        whole = _DraftFile(draft, disk) if self._passes and passes else None
        try:
            choice = self.decide(node, entry, thread, unique, whole, note=False, draft=draft)
        finally:
            if whole is not None:
                whole.close()
        # Closing a descriptor that writes is what seals.
        return choice._replace(open_flags=choice.open_flags & ~wire.FOPEN_NOFLUSH) if writes else choice

    def note_sealed(self, draft: Draft, before: VersionId) -> None:
        """What was written has become another version, in place."""
        self._modes.note_version(self._nodes.list_nodes(draft.inode), before, draft.version, draft.key)

    def note_moved(self, inode: InodeId, before: VersionId, version: VersionId) -> None:
        """Those who read a version through the daemon have gone on to a later one, of which it is the beginning."""
        nodes = self._nodes.list_nodes(inode)
        self._modes.note_version(nodes, before, version, None)
        for node in nodes:
            # In one the file ends where it did. (Who has it open sees the rest: the kernel drops pages as it hears of the size.)
            self._pages.set(node, -1)

    def _is_followed(self, entry: Entry) -> bool:
        """Whether a file grows, elsewhere and just now, so that who has it open is to see more of it."""
        ref = entry.ref
        if ref is None or not ref.continues or ref.size > MOST_BYTES:
            return False
        return self._clock.now_ns() - entry.attr.mtime_ns < _GROWING_NS

    def decide(
        self,
        node: int,
        entry: Entry,
        thread: int,
        unique: int,
        whole: WholeFile | None,
        *,
        note: bool = True,
        draft: Draft | None = None,
    ) -> Choice:
        """How an open is answered, with the file that holds all of the content if there is one. Raises Stale. `note`: a file that
        is not whole may be brought in the background. `draft`: what the open reads and writes.
        """
        inode = entry.attr.inode
        version = entry.attr.version if draft is None else draft.version
        wish = Wish.PASSTHROUGH if whole is not None and self._may_pass(whole) else Wish.CACHED
        if draft is None and self._is_followed(entry):
            wish = Wish.CACHED
        if draft is not None and self._modes.get_mode(node) is Mode.CACHED:
            # What is written has to go through the pages that others read here.
            wish = Wish.CACHED
        is_back = self._is_back(thread, inode, unique)
        if is_back and thread:
            # (All threads of other process namespaces are 0: which of them comes back cannot be told.)
            self._sent_away.discard((thread, inode))
            self._backings.forget_sent(thread, inode)
        can_move = not is_back
        while True:
            way = self._decide_way(node, wish, version, draft, can_move=can_move)
            if way is Way.ELSEWHERE:
                if self._send_away(node, inode, wish, version):
                    self._note_sent_away(thread, inode, unique)
                    raise Stale("opened by another node id", subject=entry.name)
                can_move = False
                continue
            backing_id = self._modes.get_backing(node)
            is_new = way is Way.PASSTHROUGH and not backing_id
            if is_new:
                assert whole is not None
                backing_id = self._register(whole)
                if not backing_id:
                    wish = Wish.CACHED
                    continue
            break
        try:
            key = _get_key(whole) if is_new and whole is not None else None
            self._modes.open(node, way, backing_id, version=version, key=key)
        except AlluxioLikeError:
            if is_new:
                self._backings.close_backing(backing_id)
            raise
        self._opens[way].inc()
        if whole is None and note:
            self._note_not_whole(entry)
        passing = way is Way.PASSTHROUGH or way is Way.REROUTED
        flags = _FLAGS[way]
        if way is Way.CACHED and not self._note_pages(node, version, draft):
            flags &= ~wire.FOPEN_KEEP_CACHE
        return Choice(way, flags, backing_id if passing else 0)

    def _decide_way(self, node: int, wish: Wish, version: int, draft: Draft | None, *, can_move: bool) -> Way:
        mode = self._modes.get_mode(node)
        if mode in (Mode.IDLE, Mode.UNKNOWN):
            return self._modes.decide(node, wish, can_move=can_move)
        fits = self._modes.get_version(node) == version
        if fits and draft is not None and mode is Mode.PASSTHROUGH:
            fits = self._modes.get_key(node) == draft.key
        if fits:
            return self._modes.decide(node, wish, can_move=can_move)
        # Another content lives there; what cannot go elsewhere is answered here, by the handle and not by the node id.
        return Way.ELSEWHERE if can_move else Way.REROUTED if mode is Mode.PASSTHROUGH else Way.DIRECT

    def _note_pages(self, node: int, version: int, draft: Draft | None) -> bool:
        """Whether the pages that the kernel has of a node id are of this version; those it has from now on are."""
        if draft is not None:
            self._pages.set(node, -1)
            return False
        known = self._pages.lookup(node)
        if known is not None or version > 1:
            self._pages.set(node, version)
        return known == version if known is not None else version <= 1

    def release(self, node: int, way: Way) -> None:
        """An open that was answered so has ended."""
        backing_id = self._modes.release(node, way)
        if backing_id:
            self._backings.close_backing(backing_id)

    def _send_on(self, node: int, entry: Entry, thread: int, unique: int) -> None:
        """Raise Stale for a node id of an earlier daemon, whatever it has open there: the name leads to one of ours now."""
        if not self._nodes.is_ours(node) and not self._is_back(thread, entry.attr.inode, unique):
            self._note_sent_away(thread, entry.attr.inode, unique)
            raise Stale("opened by another node id", subject=entry.name)

    def _is_back(self, thread: int, inode: InodeId, unique: int) -> bool:
        """Whether a thread was sent to look the name up again and comes with another request now: it is not sent away twice."""
        if not len(self._sent_away):
            return False
        known = self._sent_away.lookup((thread, inode))
        # With the same request it comes where the kernel sends that again: the answer to it did not arrive.
        return known is not None and known[1] != unique and self._clock.monotonic() < known[0]

    def _note_sent_away(self, thread: int, inode: InodeId, unique: int) -> None:
        until_s = self._clock.monotonic() + _SENT_AWAY_S
        self._sent_away.set((thread, inode), (until_s, unique))
        self._backings.note_sent(SentAway(thread, inode, unique, until_s))
        self._metrics.fuse_moves.inc()

    def _send_away(self, node: int, inode: InodeId, wish: Wish, version: int) -> bool:
        def fits(other: int) -> bool:
            return self._modes.fits(other, wish) and self._modes.get_version(other) in (None, version)

        if self._modes.get_mode(node) is Mode.UNKNOWN and fits(self._nodes.get_file_node(inode)):
            return True
        return self._nodes.move(inode, fits)

    # The kernel's own reading

    def _may_pass(self, whole: WholeFile) -> bool:
        return self._passes and not (self._has_refused and whole.directory in self._refused)

    def _register(self, whole: WholeFile) -> int:
        """A new backing id; 0: the kernel takes no file of that directory, which is remembered."""
        try:
            return self._backings.open_backing(whole.fd)
        except Unsupported as error:
            log.warning("files of a cache directory are read through the daemon: %s; see alluxio-like doctor", error)
            self._refused[whole.directory] = str(error)
            self._has_refused = True
            return 0

    # What a file is on its way to

    def note_read(self, entry: Entry, read_bytes: int, last_bytes: int) -> None:
        """So many bytes of a file that the kernel does not read by itself were read through one handle by now, and by its last
        read."""
        # (Small ones are brought at their open, or the backend sees to it.)
        if self._passes and self._settings.fill_in_background and entry.attr.size > self._settings.fill_at_open_bytes:
            self._filler.note_read(entry, read_bytes, last_bytes)

    def _note_not_whole(self, entry: Entry) -> None:
        if self._passes and self._settings.fill_in_background and entry.attr.size:
            self._filler.note_open(entry)

    async def close(self) -> None:
        """End fills that are under way. Does not raise."""
        await self._filler.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    # In words

    def describe_session(self) -> str:
        return "kernel with passthrough" if self._passes else "kernel"

    async def describe_file(self, entry: Entry) -> str:
        if not self._passes:
            return f"cached: {self._why_not}"
        node = self._nodes.get_file_node(entry.attr.inode)
        if not entry.attr.size:
            return "cached: the file is empty"
        if self._is_followed(entry):
            return "cached: the file grows"
        whole = await self._find_indexed(entry)
        if whole is None:
            mode = self._modes.get_mode(node)
            return "cached: not all of the file is on this machine" + (
                "; some opens pass through" if mode is Mode.PASSTHROUGH else ""
            )
        try:
            reason = self._refused.get(whole.directory)
            return "passthrough" if reason is None else f"cached: {reason}"
        finally:
            whole.close()

    async def _find_indexed(self, entry: Entry) -> WholeFile | None:
        """The file that has all of the content. What an open has just brought, and passes through, the index has a moment later:
        that is waited for."""
        whole, until_s = self._backend.find_whole(entry), self._brought.lookup(entry.attr.inode) or 0.0
        while whole is None and self._clock.monotonic() < until_s:
            await asyncio.sleep(_LOOK_S)
            whole = self._backend.find_whole(entry)
        self._brought.discard(entry.attr.inode)
        return whole

    def list_refusals(self) -> list[str]:
        """Why the kernel does not read (some) files by itself; empty: nothing stands in the way."""
        return [self._why_not] if self._why_not else sorted(set(self._refused.values()))


def _get_key(whole: WholeFile) -> tuple[int, int]:
    found = os.fstat(whole.fd)
    return found.st_dev, found.st_ino


def _make_counter(modes: Modes, way: Way) -> Callable[[], float]:
    return lambda: modes.counts[way]
