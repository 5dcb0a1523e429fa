"""The worker's open stores: one a mount, opened anew only when what it is opened with has changed."""

import asyncio
from collections.abc import Callable

import pytest

from alluxio_like.rpc.messages import MountInfo, MountSecrets
from alluxio_like.types import MountId
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.memory import MemoryUfs
from alluxio_like.worker import stores as module
from alluxio_like.worker.stores import Stores

MOUNT = MountId(3)


class Closable(MemoryUfs):
    closed = False

    async def close(self) -> None:
        self.closed = True


class Master:
    """Gives a mount's secrets, and opens stores with them."""

    def __init__(self) -> None:
        self.secret = "first"
        self.now_s = 100.0
        self.opened: list[Closable] = []
        self.asked = 0

    async def get_secrets(self, mount_id: MountId) -> MountSecrets:
        self.asked += 1
        return MountSecrets(MountInfo(mount_id, "/data", "memory://b", {}, True, 0.0, 0, 0, 0), {"secret_key": self.secret})

    def open_store(self, mount: MountSecrets, on_request: Callable[[str], None]) -> Ufs:
        self.opened.append(Closable(name="b"))
        return self.opened[-1]

    def make_stores(self) -> Stores:
        return Stores(self.get_secrets, self.open_store, lambda op, mount: None, lambda: self.now_s)


async def test_refusals_open_no_further_stores_while_the_secrets_stay_the_same() -> None:
    master = Master()
    stores = master.make_stores()
    first = await stores.get_ufs(MOUNT)
    for _ in range(50):
        master.now_s += 60.0
        assert stores.renew(MOUNT, first)
        assert await stores.get_ufs(MOUNT) is first
        assert not stores.renew(MOUNT, first)
    assert master.asked == 51
    assert len(master.opened) == 1
    assert not master.opened[0].closed
    await stores.close()
    assert master.opened[0].closed


async def test_replaced_secrets_open_one_store_for_all_and_close_the_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETIRE_S", 0.0)
    master = Master()
    stores = master.make_stores()
    first = await stores.get_ufs(MOUNT)
    master.now_s += 60.0
    master.secret = "second"
    assert stores.renew(MOUNT, first)
    assert stores.renew(MOUNT, first)
    second = await stores.get_ufs(MOUNT)
    assert second is not first
    # One that was refused by the old store may try the new one at once.
    assert stores.renew(MOUNT, first)
    assert await stores.get_ufs(MOUNT) is second
    assert not stores.renew(MOUNT, second)
    async with asyncio.timeout(60):
        while not master.opened[0].closed:
            await asyncio.sleep(0.001)
    assert len(master.opened) == 2
    await stores.close()
    assert master.opened[1].closed


async def test_an_unreachable_master_loses_no_store() -> None:
    master = Master()
    stores = master.make_stores()
    first = await stores.get_ufs(MOUNT)
    master.now_s += 60.0
    assert stores.renew(MOUNT, first)
    await stores.close()
    assert master.opened[0].closed
