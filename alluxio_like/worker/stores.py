"""The stores of the mounts, opened when first needed.

Owns the open stores by mount id, and the counting of requests to them. Gets a mount's URI, options and secrets from the master,
once; asks again when the store refuses the credentials. Rule of concurrency: the event loop only; one opening a mount at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from alluxio_like.errors import AlluxioLikeError
from alluxio_like.rpc.messages import MountSecrets
from alluxio_like.types import MountId
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.references import is_reference

_REOPEN_S = 10.0
"""A mount's options are asked for again at most so often. A guess."""

_RETIRE_S = 60.0
"""How long a store whose credentials were replaced is kept for the requests under way on it; longer than any request takes."""


class OpenStore(Protocol):
    """How a mount's store is opened; `on_request` counts."""

    def __call__(self, mount: MountSecrets, on_request: Callable[[str], None]) -> Ufs: ...


@dataclass(frozen=True, slots=True)
class _Opened:
    """An open store with what it was opened with; `asked_s`: when the master was asked for that."""

    ufs: Ufs
    label: str
    asked_s: float
    mount: MountSecrets


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
        self._open: dict[MountId, _Opened] = {}
        self._doubted: dict[MountId, _Opened] = {}
        self._opening: dict[MountId, asyncio.Task[Ufs]] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def lookup_ufs(self, mount_id: MountId) -> Ufs | None:
        """The store of a mount if it is open."""
        found = self._open.get(mount_id)
        return found.ufs if found else None

    def get_label(self, mount_id: MountId) -> str:
        """The mount's path, for metrics."""
        found = self._open.get(mount_id)
        return found.label if found else ""

    async def get_ufs(self, mount_id: MountId) -> Ufs:
        """The store of a mount. Raises NotFound (no such mount), Unavailable (no master), ConfigError."""
        found = self._open.get(mount_id)
        if found is not None:
            return found.ufs
        task = self._opening.get(mount_id)
        if task is None:
            task = asyncio.create_task(self._open_mount(mount_id), name=f"open mount {mount_id}")
            self._opening[mount_id] = task
            task.add_done_callback(lambda done: self._end_opening(mount_id, done))
        return await asyncio.shield(task)

    def renew(self, mount_id: MountId, used: Ufs | None) -> bool:
        """Have the next call ask the master for the mount's credentials, which the store `used` refused.

        False: they were asked for just now, and are those that were refused.
        """
        found = self._open.get(mount_id)
        if found is None or (used is not None and found.ufs is not used):
            return True
        if self._monotonic() - found.asked_s < _REOPEN_S:
            return False
        self._doubted[mount_id] = self._open.pop(mount_id)
        return True

    async def close(self) -> None:
        """Close every store."""
        for task in [*self._opening.values(), *self._retiring]:
            task.cancel()
        await asyncio.gather(*self._opening.values(), *self._retiring, return_exceptions=True)
        for found in [*self._open.values(), *self._doubted.values()]:
            await found.ufs.close()
        self._open.clear()
        self._doubted.clear()

    async def _open_mount(self, mount_id: MountId) -> Ufs:
        mount = await self._get_secrets(mount_id)
        old = self._doubted.pop(mount_id, None)
        if old is not None and _is_same(old.mount, mount):
            # Refused for another reason: a store of its own for each refusal would cost memory and threads each.
            self._open[mount_id] = replace(old, asked_s=self._monotonic())
            return old.ufs
        label = mount.mount.path
        try:
            ufs = self._open_store(mount, lambda op: self._on_request(op, label))
        except BaseException:
            if old is not None:
                self._doubted[mount_id] = old
            raise
        self._open[mount_id] = _Opened(ufs, label, self._monotonic(), mount)
        if old is not None:
            task = asyncio.create_task(_retire(old.ufs), name=f"retire store {mount_id}")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return ufs

    def _end_opening(self, mount_id: MountId, task: "asyncio.Task[Ufs]") -> None:
        self._opening.pop(mount_id, None)
        # Its error was given to those who wait, if anybody still did.
        if not task.cancelled() and isinstance(task.exception(), AlluxioLikeError):
            return


def _is_same(old: MountSecrets, new: MountSecrets) -> bool:
    """Whether a store opened with the one is as good as one with the other. Secrets that are named may be others by now; and what
    is known of the store's health changes nothing."""
    if any(is_reference(text) for text in new.mount.options.values()):
        return False
    return replace(old.mount, trouble="") == replace(new.mount, trouble="") and old.secrets == new.secrets


async def _retire(ufs: Ufs) -> None:
    try:
        await asyncio.sleep(_RETIRE_S)
    finally:
        await ufs.close()
