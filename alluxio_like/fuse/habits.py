"""Which threads open the files that they look up.

A program that reads one small file after the other looks a name up, opens it, reads, and comes with the next name. What such a
thread looks up it opens next, so its bytes may be asked for at once. `ls -l`, `find` and `du` look names up and open nothing: one
name that was not opened ends the habit. Owns what is remembered of threads, and the judgement. Deterministic; one event loop.
"""

from alluxio_like.types import InodeId

LEAST = 4
"""So many in a row make a habit. A guess: a wrong one costs a file that nobody reads, once for each thread that ends it."""
_THREADS = 256


class _Thread:
    __slots__ = ("in_a_row", "looked_up")

    def __init__(self) -> None:
        self.in_a_row = 0
        """How many small files of other machines it has opened, each the one that it had looked up last."""
        self.looked_up: InodeId | None = None
        """The one that it has looked up and not opened."""


class Habits:
    """Of one mount. `thread` 0 is many of them, those of other process namespaces."""

    def __init__(self) -> None:
        self._threads: dict[int, _Thread] = {}

    def note_lookup(self, thread: int, inode: InodeId) -> bool:
        """A thread is told of a file. Whether it will open that next, as far as one can see."""
        known = self._threads.get(thread)
        if known is None:
            return False
        if known.looked_up is not None and known.looked_up != inode:
            known.in_a_row = 0
        known.looked_up = inode
        return known.in_a_row >= LEAST

    def note_open(self, thread: int, inode: InodeId) -> None:
        """A thread has opened a small file of another machine."""
        known = self._threads.get(thread)
        if known is None:
            if not thread:
                return
            if len(self._threads) >= _THREADS:
                del self._threads[next(iter(self._threads))]
            known = self._threads[thread] = _Thread()
        # What was known to the kernel comes without a lookup, and says nothing.
        if known.looked_up == inode:
            known.in_a_row += 1
            known.looked_up = None
