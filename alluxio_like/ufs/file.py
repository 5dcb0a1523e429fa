"""A local directory, or a network file system mounted at one, as a store.

Owns the threads in which the calls are made; what they do is `posix_tree.py` and `posix_writer.py` over `local_ops.py`. Nothing
outside of the mount's root is ever touched. Called on one event loop.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.local_ops import LocalOps, has_openat2
from alluxio_like.ufs.options import OptionValue
from alluxio_like.ufs.posix_ufs import PosixSteps, PosixUfs
from alluxio_like.ufs.threads import BlockingPool
from alluxio_like.ufs.uri import StoreUri

_THREADS = 16
"""A guess: enough for a network file system's latency; local disks need fewer."""


class FileUfs(PosixUfs):
    """`WritableUfs` on a directory."""

    @classmethod
    def open(
        cls, uri: StoreUri, options: Mapping[str, OptionValue], *, on_request: Callable[[str], None], io_timeout_s: float
    ) -> "FileUfs":
        """The store of a file:// URI; nothing is touched yet. Raises ConfigError where the kernel lacks what an option needs."""
        root = "/" + uri.prefix.rstrip("/")
        follows_links = options.get("symlinks") == "inside"
        if follows_links and not has_openat2():
            raise errors.ConfigError("symlinks=inside needs Linux 5.6 or newer, with openat2 allowed", subject="symlinks")
        runner = ThreadRunner(PosixSteps(LocalOps(root, follows_links=follows_links), root), f"file://{root}", io_timeout_s)
        return cls(runner, f"file://{root}", on_request=on_request, io_timeout_s=io_timeout_s)


class ThreadRunner:
    """`Runner` in threads of this process. A call that hangs holds its thread until the system lets go of it."""

    def __init__(self, steps: PosixSteps, name: str, timeout_s: float) -> None:
        self._steps = steps
        self._timeout_s = timeout_s
        self._pool = BlockingPool(name, _THREADS)

    async def run(self, step: str, *arguments: Any, fd: int = -1) -> Any:
        if fd < 0:
            return await self._pool.run(partial(self._steps.call, step, arguments), timeout_s=self._timeout_s)
        # A copy: the caller may close its own as soon as it is cancelled, while the thread goes on.
        copy = _OwnedFd(os.dup(fd))
        return await self._pool.run(partial(copy.use, self._steps, step, arguments), timeout_s=self._timeout_s)

    async def read(self, read_id: int, key: str, fingerprint: Fingerprint, offset: int, length: int, is_last: bool) -> memoryview:
        return memoryview(await self.run("read_part", read_id, key, fingerprint, offset, length, is_last))

    def post(self, step: str, *arguments: Any) -> None:
        self._pool.post(partial(self._steps.call, step, arguments))

    async def close(self) -> None:
        self._pool.close()


class _OwnedFd:
    """A descriptor that is closed by whoever uses it, or, if nobody ever does, with this object."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def use(self, steps: PosixSteps, step: str, arguments: tuple[Any, ...]) -> Any:
        fd, self._fd = self._fd, -1
        return steps.call_with_fd(step, fd, arguments)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
