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
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from alluxio_like.clock import Clock
from alluxio_like.errors import AlluxioLikeError, Stale, Unsupported
from alluxio_like.fuse import wire
from alluxio_like.fuse.backend import Backend, Reader, WholeFile
from alluxio_like.fuse.filling import Filler
from alluxio_like.fuse.handles import BoundedDict
from alluxio_like.fuse.ledger import SentAway
from alluxio_like.fuse.modes import Mode, Modes, Way, Wish
from alluxio_like.fuse.nodes import Nodes
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.messages import Priority
from alluxio_like.types import Entry, InodeId
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
_PREPARE_S = 2.0
"""How long an open waits to learn which caches are on this machine. A guess."""

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
        self._is_prepared = False
        self._unfilled: BoundedDict[InodeId, float] = BoundedDict(_SENT_AWAY)
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

    # Opens

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

    def decide(self, node: int, entry: Entry, thread: int, unique: int, whole: WholeFile | None, *, note: bool = True) -> Choice:
        """How an open is answered, with the file that holds all of the content if there is one. Raises Stale. `note`: a file that
        is not whole may be brought in the background.
        """
        inode = entry.attr.inode
        wish = Wish.PASSTHROUGH if whole is not None and self._may_pass(whole) else Wish.CACHED
        is_back = self._is_back(thread, inode, unique)
        if is_back and thread:
            # (All threads of other process namespaces are 0: which of them comes back cannot be told.)
            self._sent_away.discard((thread, inode))
            self._backings.forget_sent(thread, inode)
        can_move = not is_back
        while True:
            way = self._modes.decide(node, wish, can_move=can_move)
            if way is Way.ELSEWHERE:
                if self._send_away(node, inode, wish):
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
            self._modes.open(node, way, backing_id)
        except AlluxioLikeError:
            if is_new:
                self._backings.close_backing(backing_id)
            raise
        self._opens[way].inc()
        if whole is None and note:
            self._note_not_whole(entry)
        passing = way is Way.PASSTHROUGH or way is Way.REROUTED
        return Choice(way, _FLAGS[way], backing_id if passing else 0)

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

    def _send_away(self, node: int, inode: InodeId, wish: Wish) -> bool:
        if self._modes.get_mode(node) is Mode.UNKNOWN and self._modes.fits(self._nodes.get_file_node(inode), wish):
            return True
        return self._nodes.move(inode, lambda other: self._modes.fits(other, wish))

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

    def note_read(self, entry: Entry, read_bytes: int) -> None:
        """So many bytes of a file that the kernel does not read by itself were read through one handle by now."""
        # (Small ones are brought at their open, or the backend sees to it.)
        if self._passes and self._settings.fill_in_background and entry.attr.size > self._settings.fill_at_open_bytes:
            self._filler.note_read(entry, read_bytes)

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

    def describe_file(self, entry: Entry) -> str:
        if not self._passes:
            return f"cached: {self._why_not}"
        node = self._nodes.get_file_node(entry.attr.inode)
        if not entry.attr.size:
            return "cached: the file is empty"
        whole = self._backend.find_whole(entry)
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

    def list_refusals(self) -> list[str]:
        """Why the kernel does not read (some) files by itself; empty: nothing stands in the way."""
        return [self._why_not] if self._why_not else sorted(set(self._refused.values()))


def _make_counter(modes: Modes, way: Way) -> Callable[[], float]:
    return lambda: modes.counts[way]
