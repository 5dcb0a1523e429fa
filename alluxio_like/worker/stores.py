"""The stores of the mounts, opened when first needed.

Owns the open stores by mount id, and the counting of requests to them. Gets a mount's URI, options and secrets from the master,
once; asks again when the store refuses the credentials. Rule of concurrency: the event loop only; one opening a mount at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from alluxio_like.errors import AlluxioLikeError
from alluxio_like.rpc.messages import MountSecrets
from alluxio_like.types import MountId
from alluxio_like.ufs.api import Ufs

_REOPEN_S = 10.0
"""A mount's options are asked for again at most so often. A guess."""


class OpenStore(Protocol):
    """How a mount's store is opened; `on_request` counts."""

    def __call__(self, mount: MountSecrets, on_request: Callable[[str], None]) -> Ufs: ...


class Stores:
    """`get_secrets` asks the master; `open_store` makes the store; `on_request` is told (operation, mount path)."""

    def __init__(
        self,
        get_secrets: Callable[[MountId], Awaitable[MountSecrets]],
        open_store: OpenStore,
        on_request: Callable[[str, str], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._get_secrets = get_secrets
        self._open_store = open_store
        self._on_request = on_request
        self._monotonic = monotonic
        self._open: dict[MountId, tuple[Ufs, str, float]] = {}
        self._opening: dict[MountId, asyncio.Task[Ufs]] = {}
        self._retired: list[Ufs] = []

    def lookup_ufs(self, mount_id: MountId) -> Ufs | None:
        """The store of a mount if it is open."""
        found = self._open.get(mount_id)
        return found[0] if found else None

    def get_label(self, mount_id: MountId) -> str:
        """The mount's path, for metrics."""
        found = self._open.get(mount_id)
        return found[1] if found else ""

    async def get_ufs(self, mount_id: MountId) -> Ufs:
        """The store of a mount. Raises NotFound (no such mount), Unavailable (no master), ConfigError."""
        found = self._open.get(mount_id)
        if found is not None:
            return found[0]
        task = self._opening.get(mount_id)
        if task is None:
            task = asyncio.create_task(self._open_mount(mount_id), name=f"open mount {mount_id}")
            self._opening[mount_id] = task
            task.add_done_callback(lambda done: self._end_opening(mount_id, done))
        return await asyncio.shield(task)

    def renew(self, mount_id: MountId) -> bool:
        """Forget a store whose credentials were refused, so that the next call asks the master; False: that was done just now."""
        found = self._open.get(mount_id)
        if found is None:
            return True
        if self._monotonic() - found[2] < _REOPEN_S:
            return False
        del self._open[mount_id]
        # Requests of others may be under way on it: it is closed with the rest.
        self._retired.append(found[0])
        return True

    async def close(self) -> None:
        """Close every store."""
        for task in list(self._opening.values()):
            task.cancel()
        if self._opening:
            await asyncio.gather(*self._opening.values(), return_exceptions=True)
        for ufs in [*self._retired, *(found[0] for found in self._open.values())]:
            await ufs.close()
        self._open.clear()
        self._retired.clear()

    async def _open_mount(self, mount_id: MountId) -> Ufs:
        mount = await self._get_secrets(mount_id)
        label = mount.mount.path
        ufs = self._open_store(mount, lambda op: self._on_request(op, label))
        self._open[mount_id] = (ufs, label, self._monotonic())
        return ufs

    def _end_opening(self, mount_id: MountId, task: "asyncio.Task[Ufs]") -> None:
        self._opening.pop(mount_id, None)
        # Its error was given to those who wait, if anybody still did.
        if not task.cancelled() and isinstance(task.exception(), AlluxioLikeError):
            return
