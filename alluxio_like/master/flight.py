"""One listing of one directory while it is under way.

Owns what those who wait for it look at; listing.py runs it. Event loop alone.
"""

import asyncio

from alluxio_like import errors
from alluxio_like.master.core import namespace
from alluxio_like.types import InodeId, MountId


class Flight:
    """One listing of one directory, from the first request to the last page."""

    def __init__(self, directory: InodeId, mount_id: MountId, started_ns: int) -> None:
        self.directory = directory
        self.mount_id = mount_id
        self.started_ns = started_ns
        self.pages = 0
        self.entries = self.directories = 0
        self.took_s = 0.0
        self.covered: str | None = ""
        self.is_first = False
        """No name of the directory was ever settled, so that nobody can have been told that what it adds is not there."""
        self.error: errors.AlluxioLikeError | None = None
        self.done = False
        self.added = self.removed = self.replaced = 0
        self._progress = asyncio.Event()

    def settles(self, name: str | None) -> bool:
        """Whether what the namespace says of a name is what this listing found."""
        if self.done and self.error is None:
            return True
        return name is not None and self.pages > 0 and namespace.is_covered(name, self.covered)

    def advance(self) -> None:
        """Wake all who wait for progress."""
        self._progress.set()
        self._progress = asyncio.Event()

    async def wait_progress(self, timeout_s: float) -> bool:
        """Wait for a page or the end; False when neither came within `timeout_s`."""
        if self.done:
            return True
        event = self._progress
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await event.wait()
        except TimeoutError:
            return False
        return True
