"""How far to read ahead, and the memory for it.

Owns the recognition of sequential reads (Pattern; deterministic) and the process's one budget of bytes (Budget). Does not
fetch anything. Rule of concurrency: one event loop; no method awaits.
"""

from collections.abc import Callable

SMALL_FILE_BYTES = 8 << 20
"""A file up to this size is fetched whole on its first miss: one request to the store."""
PIECE_BYTES = 8 << 20
"""Read-ahead is asked for in pieces that end at multiples of this: the largest request a worker makes to a store."""
FIRST_WINDOW_BYTES = 2 << 20
AT_HAND_WINDOW_BYTES = 16 << 20
"""The furthest ahead of a reader of what another machine has at hand: two pieces, one being received while the other is read.
More would only be memory that has left the processor's caches when it is read."""
SLACK_BYTES = 4 << 20
"""The kernel sends several reads of one read-ahead window at once, and they arrive in any order."""
FEW_BYTES = 64 << 10
"""The kernel asks for more than this at a time once it sees a file being read in order. Smaller reads follow one another only
where they lie side by side, give or take `SLACK_FEW` of their own lengths: one of a thousand random reads does. Guesses."""
SLACK_FEW = 4

NEVER = 1 << 63


class Pattern:
    """One reader's reads. `trigger` is the offset that a read must end behind for `advance` to want more."""

    __slots__ = ("_issued", "_max_window", "_next", "_size", "_window", "trigger")

    def __init__(self, size: int, max_window_bytes: int) -> None:
        self._size = size
        self._max_window = max_window_bytes
        self._next = 0
        self._window = 0
        self._issued = 0
        self.trigger = NEVER

    @property
    def low(self) -> int:
        """What lies before it will hardly be asked for again."""
        return self._next - SLACK_BYTES

    def follows(self, offset: int, stop: int) -> bool:
        """Whether a read of [offset, stop) follows on the one before."""
        slack = SLACK_BYTES if stop - offset > FEW_BYTES else (stop - offset) * SLACK_FEW
        return self._next > 0 and -slack <= offset - self._next <= slack

    def miss(self, offset: int, stop: int) -> None:
        """A read of [offset, stop) that was not at hand. A second one that follows on the first begins to read ahead."""
        if self.follows(offset, stop):
            self._next = max(self._next, stop)
            if self.trigger == NEVER:
                self._issued = stop
                self.trigger = 0
        else:
            self._next, self._window, self._issued, self.trigger = stop, 0, 0, NEVER

    def hit(self, stop: int) -> None:
        """A read up to `stop` that was at hand."""
        self._next = stop

    def limit(self, max_window_bytes: int) -> None:
        """How far to run ahead at most, from now on."""
        self._max_window = max_window_bytes

    def advance(self) -> tuple[int, int] | None:
        """The range [start, stop) to read ahead now, if any. Sets the next trigger."""
        if self.trigger == NEVER or self._max_window <= 0 or self._issued >= self._size:
            self.trigger = NEVER
            return None
        start = max(self._issued, self._next)
        if start - self._next > self._window - self._step:
            self.trigger = start - self._window + self._step
            return None
        self._window = min(self._max_window, max(FIRST_WINDOW_BYTES, self._window * 2))
        stop = self._next + self._window
        if stop - start > PIECE_BYTES:
            stop -= stop % PIECE_BYTES
        stop = min(max(stop, start), self._size)
        self._issued = stop
        self.trigger = NEVER if stop >= self._size else stop - self._window + self._step
        return (start, stop) if stop > start else None

    @property
    def _step(self) -> int:
        # A piece as soon as there is room for one keeps requests under way all the time; halves of a window would come in bursts
        # with pauses between them. While the window grows it doubles instead.
        return min(PIECE_BYTES, self._window // 2)

    def take_back(self, start: int) -> None:
        """What `advance` gave from `start` on could not be begun; ask again later."""
        self._issued = min(self._issued, start)
        self.trigger = min(self.trigger, self._next + 1)


class Budget:
    """Bytes read ahead, of the whole process. Idle readers give back what nobody asked for when others need it."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        # The reader that took last stands last.
        self._holders: dict[object, Callable[[], None]] = {}

    def try_take(self, size: int, holder: object, give_back: Callable[[], None]) -> bool:
        """Take `size` bytes; False if they are not to be had, also after other holders' `give_back` (the idlest first)."""
        if size > self.limit_bytes:
            return False
        for other in list(self._holders):
            if self.used_bytes + size <= self.limit_bytes:
                break
            if other is not holder:
                self._holders.pop(other)()
        if self.used_bytes + size > self.limit_bytes:
            return False
        self.used_bytes += size
        self._holders.pop(holder, None)
        self._holders[holder] = give_back
        return True

    def release(self, size: int) -> None:
        """Give back what was taken."""
        self.used_bytes -= size

    def forget(self, holder: object) -> None:
        """The holder has gone (and has released what it had)."""
        self._holders.pop(holder, None)
