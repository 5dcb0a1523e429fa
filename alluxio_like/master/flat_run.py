"""One flat listing of a part of a store, applied directory by directory while it comes.

Owns its requests, its place, and when it ends: at the end of what it was begun for, after MAX_PAGES, when whoever began it has
had enough, or by a failure. What it was through with then is known as any listed directory is; the rest is not. Event loop alone;
one task, and others that wait for it to pass their directory.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from alluxio_like import errors
from alluxio_like.clock import Clock
from alluxio_like.master.asking import MAX_EMPTY_PAGES
from alluxio_like.master.core import flat, tables
from alluxio_like.master.core.flat import Applied, Asked, Cutter, Target
from alluxio_like.master.listing import Lister
from alluxio_like.master.meta_store import MetaStore
from alluxio_like.types import InodeId, MountId, to_bytes
from alluxio_like.ufs.api import FlatUfs, ListPage, StoreEntry

log = logging.getLogger(__name__)

MAX_PAGES = 100
"""A listing ends after so many pages, so that who waits for a directory in which it is does not wait for a whole bucket. Another
goes on where it ended, and costs a listing of each directory on the way down to there. A guess."""


@dataclass(frozen=True, slots=True)
class Place:
    """What is listed: all from the beginning of the directory `first` on, which is named `name` (with its slash) in `base`; ""
    is the base itself, all of it. `prefix` is the base's in the store. `end`: the name of another directory in the base (with its
    slash) before which the listing ends."""

    mount_id: MountId
    base: InodeId
    prefix: str
    first: InodeId
    name: str
    end: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What a page brought: keys, how many of them lie in directories below the base, directories it was through with, seconds
    since the page before."""

    keys: int
    keys_below: int
    directories: int
    seconds: float


class FlatRun:
    """See the module. `goes_on` is asked after each page; `since_ns`: what was listed then or later is left as it is."""

    def __init__(
        self,
        lister: Lister,
        meta: MetaStore,
        store: FlatUfs,
        place: Place,
        *,
        clock: Clock,
        since_ns: int,
        goes_on: Callable[[Progress], bool],
    ) -> None:
        self.place = place
        self.done = False
        self.error: errors.AlluxioLikeError | None = None
        self.directories = self.added = self.removed = self.replaced = 0
        self._lister = lister
        self._meta = meta
        self._store = store
        self._clock = clock
        self._since_ns = since_ns
        self._goes_on = goes_on
        self._cutter = Cutter(place.name)
        self._targets: dict[str, Target] = {}
        self._passed = b""
        """Keys up to here, below the base, have been applied."""
        self._pages = 0
        self._progress = asyncio.Event()
        self._claims = lister.claims.start_run()
        self._task = asyncio.create_task(self._run(), name=f"flat-list-{place.base}")

    def is_ahead(self, prefix: str) -> bool:
        """Whether a directory (its prefix in the store) is still to come, or the listing is in it."""
        if self.done or not prefix.startswith(self.place.prefix):
            return False
        below = to_bytes(prefix[len(self.place.prefix) :])
        if self.place.end is not None and below >= to_bytes(self.place.end):
            return False
        return below >= to_bytes(self.place.name) and (self._passed <= below or self._passed.startswith(below))

    async def wait_passed(self, prefix: str, timeout_s: float) -> None:
        """Wait until a directory is no longer ahead, as long as there is progress every `timeout_s`. Raises TimedOut."""
        while self.is_ahead(prefix):
            progress = self._progress
            try:
                async with asyncio.timeout(timeout_s):
                    await progress.wait()
            except TimeoutError:
                raise errors.TimedOut("the store did not list this in time", subject=prefix) from None

    async def close(self) -> None:
        """End it where it is."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            await self._list()
        except errors.AlluxioLikeError as error:
            self.error = error
            log.warning("flat listing failed", extra={"prefix": self.place.prefix, "error": str(error)})
        except Exception:
            self.error = errors.Internal("listing failed: see the master's log", subject=self.place.prefix)
            log.exception("flat listing failed", extra={"prefix": self.place.prefix})
        finally:
            self._lister.end_flat(self._claims)
            self.done = True
            self._advance()

    async def _list(self) -> None:
        asked, ahead = self._ask(None)
        self._set_first_targets(asked)
        empty = 0
        begun = self._clock.monotonic()
        try:
            while True:
                page = await ahead
                empty = 0 if page.entries else empty + 1
                if empty > MAX_EMPTY_PAGES:
                    raise errors.StoreProtocol("the store's listing has no end", subject=self.place.prefix)
                page_asked = asked
                entries, ended = self._cut_end(page)
                if not ended:
                    # The next page comes while this one is applied.
                    asked, ahead = self._ask(page.token)
                progress = await self._apply(entries, page_asked, ended=ended)
                now = self._clock.monotonic()
                if ended or self._pages >= MAX_PAGES or not self._goes_on(replace(progress, seconds=now - begun)):
                    return
                begun = now
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    def _ask(self, token: str | None) -> tuple[Asked, "asyncio.Task[ListPage]"]:
        with self._meta.read() as txn:
            asked = Asked(tables.get_sequence(txn), self._clock.now_ns())
        place, store = self.place, self._store

        async def call() -> ListPage:
            return await store.list_flat(place.prefix, token, after=place.name, max_entries=self._lister.page_entries)

        return asked, asyncio.create_task(self._lister.asker.ask(place.mount_id, store, call))

    def _set_first_targets(self, asked: Asked) -> None:
        place = self.place
        with self._meta.read() as txn:
            self._targets[place.name] = flat.make_target(txn, place.first, place.mount_id, place.prefix + place.name, asked)
        if place.name:
            self._targets[""] = Target(place.base)

    def _cut_end(self, page: ListPage) -> tuple[tuple[StoreEntry, ...], bool]:
        """What of a page lies before the end, and whether that is reached."""
        if self.place.end is not None and page.entries:
            end = to_bytes(self.place.end)
            if to_bytes(page.entries[-1].sort_name) >= end:
                return tuple([entry for entry in page.entries if to_bytes(entry.sort_name) < end]), True
        return page.entries, page.token is None

    async def _apply(self, entries: tuple[StoreEntry, ...], asked: Asked, *, ended: bool) -> Progress:
        place = self.place
        parts = self._cutter.cut(entries, ended=ended)
        applied = await self._lister.apply_flat(
            self._claims, place.mount_id, place.prefix, self._targets, parts, asked, since_ns=self._since_ns
        )
        open_now = self._cutter.list_open()
        self._targets = {prefix: target for prefix, target in applied.targets.items() if prefix in open_now}
        self._count(applied)
        if entries:
            self._passed = to_bytes(entries[-1].sort_name)
        self._pages += 1
        self._advance()
        below = sum("/" in entry.sort_name for entry in entries) if place.name else len(entries)
        return Progress(len(entries), below, sum(part.is_last for part in parts), 0.0)

    def _count(self, applied: Applied) -> None:
        for part, _, changes in applied.changes:
            self.directories += part.is_last
            self.added += len(changes.added)
            self.removed += len(changes.removed)
            self.replaced += len(changes.replaced)

    def _advance(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()
