"""Telling the kernel what it must ask for again, from a thread of its own.

Owns the thread and its queue. A notification blocks in write(2) until requests under way on the same directory are answered, so
it is never made by the event loop that answers them, and never under a lock that a handler takes; but for the one that waits
for nothing (`tell_all_now`). All but `flush` may be called from any thread, and nothing waits. Nothing is left out:
where too much waits, the kernel is told to ask for everything again.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

log = logging.getLogger(__name__)

_WAITING_LIMIT = 10_000
"""More than this, and where the kernel can be told of everything at once, it is."""


class Teller(Protocol):
    """What the operations tell the kernel through."""

    @property
    def can_tell_all(self) -> bool:
        """Whether `tell_all` does anything: Linux 6.16, and only where the mount is served by ourselves."""
        ...

    def tell(self, parent: int, name: bytes, *, gently: bool = False) -> None:
        """A name in a directory, by its node id, has to be looked up again, and all below it is forgotten; `gently`: what is
        below it stays, mounts of others among it, where the name leads to what it did."""
        ...

    def tell_inode(self, node: int, *, listing: bool = True) -> None:
        """An inode's attributes have to be asked for again, and with `listing` a directory's listing."""
        ...

    def tell_all(self) -> None:
        """Every name has to be looked up again."""
        ...

    def tell_all_now(self) -> None:
        """As `tell_all`, and known to the kernel when this returns."""
        ...

    def flush(self) -> Awaitable[None]:
        """Done when the kernel knows all that was told before."""
        ...


class KernelWriter(Protocol):
    """Writes one notification, and waits for requests under way where the kernel does. Each raises OSError."""

    def invalidate_entry(self, parent: int, name: bytes, *, expire_only: bool) -> None: ...

    def invalidate_inode(self, node: int, *, attributes_only: bool) -> None: ...

    def increment_epoch(self) -> None: ...


class _Silent:
    """For where nobody is to be told."""

    can_tell_all = False

    def tell(self, parent: int, name: bytes, *, gently: bool = False) -> None: ...

    def tell_inode(self, node: int, *, listing: bool = True) -> None: ...

    def tell_all(self) -> None: ...

    def tell_all_now(self) -> None: ...

    async def flush(self) -> None: ...


SILENT: Teller = _Silent()


class Notifier:
    """A Teller that writes one notification at a time, from `start` to `end`. With `enabled` False it tells nothing.

    `has_epochs`: the kernel's protocol has a word for all names at once."""

    def __init__(self, writer: KernelWriter, *, enabled: bool = True, has_epochs: bool = True) -> None:
        self._writer = writer
        self._has_epochs = has_epochs
        self._enabled = enabled
        self._waiting: deque[tuple[str, Callable[[], None]]] = deque()
        self._change = threading.Condition()
        self._ended = False
        self._can_tell_all = False
        self._thread = threading.Thread(target=self._run, name="fuse-notify", daemon=True)

    def start(self, *, gently: bool = False) -> None:
        """Begin; once. Finds out what the kernel can be told, which has all names looked up again, where it can; `gently`: what
        its protocol says is believed."""
        try:
            if not gently:
                self._writer.increment_epoch()
            self._can_tell_all = self._has_epochs
        except OSError as error:
            log.debug("the kernel cannot be told of all names at once", extra={"reason": error.strerror})
        self._thread.start()

    @property
    def can_tell_all(self) -> bool:
        return self._can_tell_all

    def tell(self, parent: int, name: bytes, *, gently: bool = False) -> None:
        if self._can_tell_all and not gently and len(self._waiting) >= _WAITING_LIMIT:
            self.tell_all()
        else:
            self._add("entry", lambda: self._writer.invalidate_entry(parent, name, expire_only=gently))

    def tell_inode(self, node: int, *, listing: bool = True) -> None:
        self._add("inode", lambda: self._writer.invalidate_inode(node, attributes_only=not listing))

    def tell_all(self) -> None:
        if not self._can_tell_all:
            return
        with self._change:
            # What waits and is about names is told by this as well.
            self._waiting = deque(one for one in self._waiting if one[0] != "entry")
        self._add("all", self._writer.increment_epoch)

    def tell_all_now(self) -> None:
        if self._can_tell_all and self._enabled and not self._ended:
            try:
                self._writer.increment_epoch()
            except OSError as error:
                log.info("the kernel was not told", extra={"what": "all", "reason": error.strerror})

    def _add(self, kind: str, write: Callable[[], None]) -> None:
        with self._change:
            if self._ended or not self._enabled:
                return
            self._waiting.append((kind, write))
            self._change.notify()

    def flush(self) -> Awaitable[None]:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def finish() -> None:
            if not done.done():
                done.set_result(None)

        def pass_on() -> None:
            # The loop may have ended before us.
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish)

        with self._change:
            if self._ended or not self._enabled:
                finish()
            else:
                self._waiting.append(("flush", pass_on))
                self._change.notify()
        return done

    def end(self) -> None:
        """Begin no further notification; does not wait for the one under way."""
        with self._change:
            self._ended = True
            flushes = [write for kind, write in self._waiting if kind == "flush"]
            self._waiting.clear()
            self._change.notify()
        for write in flushes:
            write()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended, within `timeout_s`; call `end` first, and not from an event loop."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._ended:
                    self._change.wait()
                if self._ended:
                    return
                kind, write = self._waiting.popleft()
            try:
                write()
            except FileNotFoundError:
                pass  # the kernel does not remember it
            except (OSError, RuntimeError) as error:
                log.info("the kernel was not told", extra={"what": kind, "reason": str(error)})
