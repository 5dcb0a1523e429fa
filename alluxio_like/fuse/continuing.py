"""Who has a file open that has only grown since, on another machine, goes on in what it is now.

Owns which handles may do so: those whose bytes come from the daemon, of a version that is known to be the beginning of the newer
one, or has no bytes. So an open file holds one content to its end, and the end may be further on. What the kernel reads by itself
stays what it was opened as, and shows the size that it had then; how the kernel comes to see more is opening.py's.

Rule of concurrency: one event loop; nothing is awaited.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace

from alluxio_like.fuse.backend import Reader
from alluxio_like.fuse.handles import FileHandle
from alluxio_like.fuse.modes import Way
from alluxio_like.types import Attr, Entry, InodeId, VersionId

_BY_THE_KERNEL = (Way.PASSTHROUGH, Way.REROUTED)


class Continuing:
    """Of one mount. `on_moved(inode, before, version)` is called when handles have gone on from a version; `grace_s`: how long a
    read may take, which still has the reader that its handle had when it began."""

    def __init__(self, on_moved: Callable[[InodeId, VersionId, VersionId], None], grace_s: float) -> None:
        self._on_moved = on_moved
        self._grace_s = grace_s
        self._left: dict[Reader, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def move_on(self, files: Iterable[FileHandle], entry: Entry) -> None:
        """`files` have an inode open of which this is the newest that is known."""
        moved = {file.entry.attr.version for file in files if can_go_on(file, entry)}
        if not moved:
            return
        for file in files:
            if can_go_on(file, entry):
                file.entry = entry
                if file.reader is not None:
                    self._leave(file.reader)
                    file.reader = None
        for before in moved:
            self._on_moved(entry.attr.inode, before, entry.attr.version)

    def _leave(self, reader: Reader) -> None:
        self._left[reader] = asyncio.get_running_loop().call_later(self._grace_s, self._close, reader)

    def _close(self, reader: Reader) -> None:
        del self._left[reader]
        ending = reader.begin_close()
        if ending is not None:
            self._closing.add(task := asyncio.create_task(_await(ending), name="close"))
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the readers that were left. Does not raise."""
        for reader, timer in list(self._left.items()):
            timer.cancel()
            self._close(reader)
        await asyncio.gather(*self._closing, return_exceptions=True)


async def _await(ending: Coroutine[None, None, None]) -> None:
    await ending


def as_opened(attr: Attr, files: Iterable[FileHandle], node: int) -> Attr:
    """Attributes of a node id, with the size and time of what is read there: who has an older version open that did not go on is
    to find the end where it is, and nothing changed."""
    for file in files:
        if file.node != node:
            continue
        if file.draft is None:
            opened = file.entry.attr
            if opened.version < attr.version:
                return replace(attr, size=opened.size, mtime_ns=opened.mtime_ns, version=opened.version)
        elif file.draft.over and file.draft.version < attr.version:
            found = file.draft.stat()
            return replace(attr, size=found.st_size, mtime_ns=found.st_mtime_ns, version=file.draft.version)
    return attr


def can_go_on(file: FileHandle, entry: Entry) -> bool:
    """Whether an open file is the beginning of what its inode is now, and its bytes are the daemon's to give."""
    ref, known = entry.ref, file.entry.attr
    if ref is None or known.version >= ref.version or file.draft is not None or file.way in _BY_THE_KERNEL:
        return False
    return not known.size or 0 < ref.continues <= known.version
