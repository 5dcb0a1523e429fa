"""Telling the kernel that a name no longer means what it remembers, from a thread of its own.

Owns the thread and its queue. A notification blocks in write(2) until requests under way on the same directory are answered, so it is
never made by the event loop that answers them, and never under a lock that a handler takes. `tell` may be called from any
thread and never waits. What cannot be told is dropped: the kernel forgets names by itself after entry_timeout_s.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

_WAITING_LIMIT = 10_000


class Notifier:
    """Runs `write(directory's node id, name)` for each notification, one at a time."""

    def __init__(self, write: Callable[[int, bytes], None]) -> None:
        self._write = write
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._change = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="fuse-notify", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def tell(self, parent: int, name: bytes) -> None:
        """The name `name` in the directory `parent` has to be looked up again."""
        with self._change:
            if self._ended or len(self._waiting) >= _WAITING_LIMIT:
                return
            self._waiting.append((parent, name))
            self._change.notify()

    def end(self) -> None:
        """Begin no further notification; does not wait for the one under way."""
        with self._change:
            self._ended = True
            self._waiting.clear()
            self._change.notify()

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
                parent, name = self._waiting.popleft()
            try:
                self._write(parent, name)
            except FileNotFoundError:
                pass  # the kernel does not remember it
            except OSError as error:
                log.info("the kernel was not told about a name", extra={"reason": error.strerror})
