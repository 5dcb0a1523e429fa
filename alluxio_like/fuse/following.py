"""What is written to files that stay open becomes visible to other mounts (decision 0069).

Owns when that is: looks at each draft once a second, as the kernel writes most of them by itself, and seals what has changed and
is quiet, or has been changing for long. What a seal is: drafts.py. Rule of concurrency: one event loop; a few seals at a time,
one of a draft; a look at a draft is an fstat and waits for nothing.
"""

import asyncio
import logging
import uuid
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from alluxio_like.clock import Clock
from alluxio_like.errors import AlluxioLikeError, Conflict, NotFound
from alluxio_like.fuse.drafts import Draft, Drafts, Stamp, get_stamp
from alluxio_like.metrics import Metrics

log = logging.getLogger(__name__)

MOST_BYTES = 64 << 20
"""All of a larger file would be read for each of its versions: it is seen when it is closed. A guess."""
LOOK_S = 1.0
_SEALS_AT_ONCE = 4
_LONGEST_PAUSE_S = 60.0


@dataclass(slots=True)
class _Seen:
    """A draft as it was found: what it looked like at the last look, since when there is something to show, not before when
    that is tried. `given_up`: another machine has written the file, or it has no name any more; its close decides."""

    stamp: Stamp | None = None
    changed_s: float | None = None
    not_before_s: float = 0.0
    failures: int = 0
    given_up: bool = False


class Following:
    """Of one mount. `interval_s`: the time between two versions of a file that is written all the time."""

    def __init__(self, drafts: Drafts, interval_s: float, clock: Clock, metrics: Metrics) -> None:
        self._drafts = drafts
        self._interval_s = interval_s
        self._clock = clock
        self._shown = metrics.fuse_shown
        self._seen: WeakKeyDictionary[Draft, _Seen] = WeakKeyDictionary()
        self._sealing: dict[Draft, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on. Call it once."""
        if self._interval_s:
            self._task = asyncio.create_task(self._run(), name="follow")

    async def close(self) -> None:
        """Stop looking; what is being sealed goes on at its worker. Does not raise."""
        tasks = [*self._sealing.values(), *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(min(LOOK_S, self._interval_s))

    def look(self) -> None:
        """Begin to show what is to be shown now."""
        now_s = self._clock.monotonic()
        due = [draft for draft in self._drafts.list_all() if draft not in self._sealing and self._is_due(draft, now_s)]
        # Those that have waited longest go first: with many files a look does not come to all of them.
        due.sort(key=lambda draft: self._seen[draft].changed_s or now_s)
        for draft in due[: _SEALS_AT_ONCE - len(self._sealing)]:
            task = self._sealing[draft] = asyncio.create_task(self._show(draft), name=f"show {draft.inode}")
            task.add_done_callback(lambda _, draft=draft: self._sealing.pop(draft, None))  # type: ignore[misc]

    def _is_due(self, draft: Draft, now_s: float) -> bool:
        seen = self._seen.setdefault(draft, _Seen())
        if draft.over or draft.is_unnamed or seen.given_up:
            return False
        stamp = get_stamp(draft.stat())
        before, seen.stamp = seen.stamp, stamp
        if stamp in (draft.sealed, draft.made) or stamp[0] > MOST_BYTES:
            seen.changed_s = None
            return False
        if seen.changed_s is None:
            seen.changed_s = now_s
        is_quiet = stamp == before
        return now_s >= seen.not_before_s and (is_quiet or now_s - seen.changed_s >= self._interval_s)

    async def _show(self, draft: Draft) -> None:
        seen = self._seen[draft]
        try:
            await self._drafts.show_others(draft, uuid.uuid4().hex)
        except (Conflict, NotFound) as error:
            seen.given_up = True
            self._note_failure(draft, error)
        except AlluxioLikeError as error:
            seen.failures += 1
            self._note_failure(draft, error)
        else:
            seen.failures = 0
            self._shown.labels("shown").inc()
        seen.changed_s = None
        pause_s = self._interval_s * 2 ** min(seen.failures, 10)
        seen.not_before_s = self._clock.monotonic() + min(pause_s, max(_LONGEST_PAUSE_S, self._interval_s))

    def _note_failure(self, draft: Draft, error: AlluxioLikeError) -> None:
        self._shown.labels(error.code).inc()
        log.info("others do not see yet what is written to an open file: %s", error, extra={"inode": draft.inode})
