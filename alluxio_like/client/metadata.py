"""What the client remembers of names and attributes, and for how long.

Owns the answers of the master, each for the time the master gave it, counted from before it was asked; after that it is kept
for the case that the master is away. Bounded: the oldest answers go first. An answer that was under way while something was
dropped is not kept. Rule of concurrency: one event loop; no method awaits.
"""

from collections.abc import Callable, Hashable

from alluxio_like.rpc.messages import DirPage, LookupResult
from alluxio_like.types import InodeId

MAX_ANSWERS = 50_000
"""A guess: about 50 MB when full."""


OLD_VALID_S = 1.0
"""How long an old answer is used before the master is tried again."""


class MetadataCache:
    """Answers by (parent, name), by path and by inode. `now` is a clock in seconds that never goes back."""

    def __init__(self, now: Callable[[], float], max_answers: int = MAX_ANSWERS) -> None:
        self._now = now
        self._max_answers = max_answers
        self._answers: dict[Hashable, tuple[LookupResult, float]] = {}
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._answers)

    def begin(self) -> tuple[int, float]:
        """To be called before asking; `keep` and `keep_page` need it."""
        return self._epoch, self._now()

    def lookup(self, key: Hashable) -> LookupResult | None:
        """A remembered answer with what is left of its time; None: ask."""
        known = self._answers.get(key)
        if known is None:
            return None
        left = known[1] - self._now()
        return LookupResult(known[0].entry, left) if left > 0 else None

    def lookup_old(self, key: Hashable) -> LookupResult | None:
        """An answer whose time may have passed, for when the master cannot be asked; to be used for OLD_VALID_S."""
        known = self._answers.get(key)
        return None if known is None else LookupResult(known[0].entry, OLD_VALID_S)

    def keep(self, key: Hashable, result: LookupResult, begun: tuple[int, float]) -> LookupResult:
        """Remember an answer; returns it with what is left of its time."""
        left = begun[1] + result.valid_s - self._now()
        fresh = LookupResult(result.entry, max(left, 0.0))
        if begun[0] == self._epoch:
            self._put(key, result, begun[1] + result.valid_s)
            if result.entry is not None:
                self._put(result.entry.attr.inode, result, begun[1] + result.valid_s)
        return fresh

    def keep_page(self, parent: InodeId, page: DirPage, begun: tuple[int, float]) -> None:
        """Remember what a listing said of each entry."""
        expires = begun[1] + page.valid_s
        if begun[0] != self._epoch:
            return
        for entry in page.entries:
            result = LookupResult(entry, page.valid_s)
            self._put((parent, entry.name), result, expires)
            self._put(entry.attr.inode, result, expires)

    def clear(self) -> None:
        """Forget everything, what is being asked now included."""
        self._epoch += 1
        self._answers.clear()

    def _put(self, key: Hashable, result: LookupResult, expires: float) -> None:
        # Taken out first, so that a dictionary's order is that of the answers' age.
        self._answers.pop(key, None)
        self._answers[key] = (result, expires)
        if len(self._answers) > self._max_answers:
            del self._answers[next(iter(self._answers))]
