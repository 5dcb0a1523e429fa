"""Locks over real gRPC: of two mounts, through a master that comes and goes, through daemons that take each other's place."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from alluxio_like import errors
from alluxio_like.client import coherence as keeping
from alluxio_like.client.coherence import LeaseKeeper
from alluxio_like.client.locks import Locks
from alluxio_like.clock import SystemClock
from alluxio_like.locks import END, Lock, LockKind, Owner, Place
from alluxio_like.master import locking
from alluxio_like.master.coherence import Coherence
from alluxio_like.master.core.leases import LeaseTable
from alluxio_like.master.locking import LocksService
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.auth import Guard
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.coherence import add_coherence_service
from alluxio_like.rpc.locks import add_locks_service
from alluxio_like.rpc.server import create_server
from alluxio_like.types import InodeId
from tests.pending_parts import make_nothing_pending
from tests.servers.net import find_ports
from tests.unit.master_parts import wait_until

LEASE_S = 60.0
"""Longer than any pause of a busy machine."""
SHORT_LEASE_S = 2.5
"""Where its end is waited for."""
TOKEN = "secret"
PLACE = Place(InodeId(7), whole=False)


@asynccontextmanager
async def serve(
    bind: str = "127.0.0.1:0", *, age_s: float = 100.0, lease_s: float = LEASE_S
) -> AsyncIterator[tuple[LocksService, str]]:
    """The part of a master that keeps locks; `age_s`: how long ago it was started."""
    table = LeaseTable(time.monotonic() - age_s, lease_s=lease_s)
    coherence = Coherence(table, clock=SystemClock(), metrics=Metrics(), get_cluster_epoch=lambda: 3)
    locks = LocksService(is_live=coherence.is_live, get_start_wait_s=coherence.get_start_wait_s, monotonic=time.monotonic)
    server = create_server(bind, guard=Guard(TOKEN))
    add_coherence_service(server.grpc_server, coherence)
    add_locks_service(server.grpc_server, locks)
    await server.start()
    ended = asyncio.Event()

    async def expire() -> None:
        while not ended.is_set():
            await asyncio.sleep(0.05)
            coherence.expire()
            locks.expire()

    chore = asyncio.create_task(expire())
    try:
        yield locks, server.address
    finally:
        ended.set()
        await chore
        coherence.close()
        await server.stop(0)


class Mount:
    """A client with a lease, and its locks."""

    def __init__(self, address: str, holder: str) -> None:
        self.channel = open_channel(address, token=TOKEN)
        self.keeper = LeaseKeeper(self.channel, lambda _: None, lambda _: None, Metrics())
        self.locks = Locks(self.channel, holder, make_nothing_pending().settle, io_timeout_s=60)
        self.keeper.on_begun = self.locks.begin_attaching

    async def start(self) -> "Mount":
        self.keeper.start(None)
        await wait_until(self.keeper.is_live, "the lease")
        return self

    async def die(self) -> None:
        """As by kill -9: nothing is given back."""
        tasks, self.keeper._tasks = self.keeper._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.channel.close()

    async def close(self) -> None:
        await self.keeper.close()
        await self.channel.close()

    async def set(
        self, kind: LockKind, start: int = 0, end: int = END, *, owner: int = 1, wait: bool = False, place: Place = PLACE
    ) -> Lock | None:
        return await self.locks.set(place, Lock(Owner(self.locks.holder, owner), kind, start, end, 42), wait=wait)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "ATTACH_S", 1.0)
    # Also a long lease is renewed all the while.
    monkeypatch.setattr(keeping, "RENEWALS", 100)


async def test_two_mounts_and_two_owners_of_one_exclude_each_other() -> None:
    async with serve() as (service, address):
        one, two = await Mount(address, "one").start(), await Mount(address, "two").start()
        assert await one.set(LockKind.WRITE, 0, 9) is None
        refused = await two.set(LockKind.READ, 5, 20)
        assert refused is not None
        assert (refused.owner, refused.kind, refused.start, refused.end) == (Owner("one", 1), LockKind.WRITE, 0, 9)
        assert await one.set(LockKind.READ, 5, 20, owner=2) is not None
        assert await two.locks.test(PLACE, Lock(Owner("two", 1), LockKind.READ, 9, 9, 1)) == refused
        assert await two.set(LockKind.WRITE, 10, END) is None
        assert await two.set(LockKind.WRITE, place=Place(PLACE.inode, whole=True)) is None
        await one.locks.drop(PLACE, 1)
        assert not one.locks.has_any(PLACE, 1)
        assert await two.set(LockKind.READ, 5, 9) is None
        await one.close()
        await two.close()
        await wait_until(lambda: service.count() == 0, "the locks of mounts that said goodbye to go")


async def test_who_waits_gets_it_when_it_is_free_and_who_gives_up_has_nothing() -> None:
    async with serve() as (service, address):
        one, two = await Mount(address, "one").start(), await Mount(address, "two").start()
        await one.set(LockKind.WRITE)
        patient = asyncio.create_task(two.set(LockKind.WRITE, wait=True))
        impatient = asyncio.create_task(two.set(LockKind.WRITE, owner=2, wait=True))
        await wait_until(lambda: len(service._table._waiting) == 2, "both to wait")
        assert not patient.done()
        impatient.cancel()
        await asyncio.wait([impatient])
        await one.set(LockKind.NONE)
        assert await asyncio.wait_for(patient, 60) is None
        assert service.count() == 1
        assert not two.locks.has_any(PLACE, 2)
        await one.close()
        await two.close()


async def test_a_circle_of_waiting_is_refused() -> None:
    async with serve() as (service, address):
        one, two = await Mount(address, "one").start(), await Mount(address, "two").start()
        await one.set(LockKind.WRITE, 0, 0)
        await two.set(LockKind.WRITE, 1, 1)
        waiting = asyncio.create_task(one.set(LockKind.WRITE, 1, 1, wait=True))
        await wait_until(lambda: bool(service._table._waiting), "the first to wait")
        with pytest.raises(errors.Conflict, match="deadlock"):
            await two.set(LockKind.WRITE, 0, 0, wait=True)
        await two.set(LockKind.NONE)
        assert await asyncio.wait_for(waiting, 60) is None
        await one.close()
        await two.close()


async def test_the_locks_of_a_mount_that_died_are_free_again() -> None:
    async with serve(lease_s=SHORT_LEASE_S) as (_, address):
        one, two = await Mount(address, "one").start(), await Mount(address, "two").start()
        await one.set(LockKind.WRITE)
        await one.die()
        assert await two.set(LockKind.WRITE) is not None
        assert await asyncio.wait_for(two.set(LockKind.WRITE, wait=True), 60) is None
        await two.close()


async def test_the_next_daemon_of_a_mount_has_the_locks_of_the_one_before() -> None:
    async with serve(lease_s=SHORT_LEASE_S) as (_, address):
        one, other = await Mount(address, "one").start(), await Mount(address, "other").start()
        await one.set(LockKind.WRITE)
        await one.die()
        again = await Mount(address, "one").start()
        await again.locks.attach()
        assert again.locks.has_any(PLACE, 1)
        # Longer than the dead daemon's lease lasts, and a mount without a client is kept.
        await asyncio.sleep(SHORT_LEASE_S + 1.5)
        assert await other.set(LockKind.WRITE) is not None
        assert await again.set(LockKind.NONE) is None
        assert await other.set(LockKind.WRITE) is None
        await again.close()
        await other.close()


async def test_a_master_that_was_killed_gives_no_lock_away_that_somebody_holds() -> None:
    # A port that no other process gets by chance while nobody listens there.
    async with serve(f"127.0.0.1:{find_ports(1)[0]}") as (_, address):
        one, two = await Mount(address, "one").start(), await Mount(address, "two").start()
        await one.set(LockKind.WRITE, 0, 9)
    # Long enough for the first to come back, on whatever machine.
    async with serve(address, age_s=0.0, lease_s=5.0) as (service, _):
        # Asked at once, before the first has claimed what it holds.
        refused = await two.set(LockKind.WRITE)
        assert refused is not None
        assert refused.owner == Owner("one", 1)
        assert service.count() == 1
        assert await one.set(LockKind.NONE) is None
        assert await two.set(LockKind.WRITE) is None
        await one.close()
        await two.close()


async def test_without_the_token_there_are_no_locks() -> None:
    async with serve() as (_, address):
        stranger = await Mount(address, "x").start()
        stranger.channel.token = ""
        channel = open_channel(address)
        channel.lease = stranger.channel.lease
        with pytest.raises(errors.AccessDenied):
            await Locks(channel, "x", make_nothing_pending().settle, io_timeout_s=60).attach()
        await channel.close()
        await stranger.close()
