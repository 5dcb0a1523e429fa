"""Leases over real gRPC: what is recalled is forgotten before it is confirmed, waits are bounded, and a lease that was lost
begins anew."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.client import coherence as keeping
from alluxio_like.client.client import Client
from alluxio_like.client.coherence import LeaseKeeper
from alluxio_like.clock import SystemClock
from alluxio_like.config import ClientConfig
from alluxio_like.master.coherence import Coherence
from alluxio_like.master.core import leases
from alluxio_like.master.core.leases import HOT_RECALLS, LeaseTable
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.coherence import add_coherence_service
from alluxio_like.rpc.messages import MountSpec
from alluxio_like.rpc.server import create_server
from alluxio_like.types import EVERYWHERE, ROOT_INODE, InodeId, Recall
from tests.servers.net import find_ports
from tests.unit.master_parts import Cluster, wait_until

LEASE_S = 60.0
"""Longer than any pause of a busy machine: where it runs out by itself nothing was renewed or confirmed."""
SHORT_LEASE_S = 2.5
"""Where its end is waited for."""
DIRECTORY = InodeId(7)


class Keeper:
    """A client's end, and what it was told."""

    def __init__(self, address: str, *, strict: bool = False) -> None:
        self.channel = open_channel(address)
        self.forgotten: list[Recall] = []
        self.epochs: list[int] = []
        self.confirm = asyncio.Event()
        self.confirm.set()
        self.metrics = Metrics()
        self.keeper = LeaseKeeper(self.channel, self.forgotten.extend, self.epochs.append, self.metrics, strict=strict)

    async def start(self, succeeds: Sequence[str] = ()) -> None:
        async def listen(_: Sequence[Recall]) -> None:
            await self.confirm.wait()

        self.keeper.start(listen, succeeds)
        await wait_until(self.keeper.is_live, "the lease")

    async def die(self) -> None:
        """As a process that is killed: its streams break, and it gives nothing back."""
        for task in self.keeper._tasks:
            task.cancel()
        await asyncio.gather(*self.keeper._tasks, return_exceptions=True)
        await self.channel.close()

    async def renew(self) -> None:
        """Say what is to be said; returns when it was answered."""
        await wait_until(lambda: self.keeper._outgoing is not None, "the stream")
        self.keeper._send()
        number = self.keeper._number
        await wait_until(lambda: number not in self.keeper._sent_s, "a renewal's answer")

    async def close(self) -> None:
        self.confirm.set()
        await self.keeper.close()
        await self.channel.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a long lease is renewed all the while."""
    monkeypatch.setattr(keeping, "RENEWALS", 100)


@asynccontextmanager
async def serve(
    bind: str = "127.0.0.1:0", *, age_s: float = 100.0, lease_s: float = LEASE_S
) -> AsyncIterator[tuple[Coherence, LeaseTable, str]]:
    """A master's end alone."""
    table = LeaseTable(time.monotonic() - age_s, lease_s=lease_s)
    coherence = Coherence(table, clock=SystemClock(), metrics=Metrics(), get_cluster_epoch=lambda: 3)
    server = create_server(bind)
    add_coherence_service(server.grpc_server, coherence)
    await server.start()
    ended = asyncio.Event()

    async def expire() -> None:
        while not ended.is_set():
            await asyncio.sleep(0.05)
            coherence.expire()

    chore = asyncio.create_task(expire())
    try:
        yield coherence, table, server.address
    finally:
        ended.set()
        await chore
        await server.stop(0)


@asynccontextmanager
async def serve_two() -> AsyncIterator[tuple[Coherence, LeaseTable, Keeper, Keeper]]:
    """The same, and two clients that have yet to start."""
    async with AsyncExitStack() as stack:
        coherence, table, address = await stack.enter_async_context(serve())
        keepers = Keeper(address), Keeper(address)
        for keeper in keepers:
            stack.push_async_callback(keeper.close)
        yield coherence, table, *keepers


def grant(coherence: Coherence, keeper: Keeper, directory: InodeId = DIRECTORY) -> bool:
    return coherence.grant(keeper.channel.lease, directory)


async def invalidate(coherence: Coherence, *recalls: Recall) -> float:
    """How long it took."""
    begun = time.monotonic()
    await coherence.invalidate(recalls or [Recall(DIRECTORY, (b"x",))], wait=True)
    return time.monotonic() - begun


async def test_a_recall_is_forgotten_and_confirmed() -> None:
    async with serve_two() as (coherence, table, here, other):
        for keeper in (here, other):
            await keeper.start()
        assert grant(coherence, here)
        here.forgotten.clear()
        other.forgotten.clear()
        assert await invalidate(coherence, Recall(DIRECTORY, (b"x",), inodes=(InodeId(9),))) < LEASE_S / 2
        assert here.forgotten == [Recall(DIRECTORY, (b"x",), inodes=(InodeId(9),))]
        assert other.forgotten == [], "it was told nothing of that directory"
        assert here.epochs[-1] == 3
        expires_s = here.keeper._expires_s
        await wait_until(lambda: here.keeper._expires_s > expires_s, "the lease to be renewed")
        assert table.count_sessions() == 2
        await here.close()
        assert table.count_sessions() == 1, "a client that goes gives its lease back"


async def test_nobody_is_waited_for_longer_than_the_lease_and_it_loses_everything() -> None:
    async with AsyncExitStack() as stack:
        coherence, _, address = await stack.enter_async_context(serve(lease_s=SHORT_LEASE_S))
        keeper = Keeper(address)
        stack.push_async_callback(keeper.close)
        await keeper.start()
        assert grant(coherence, keeper)
        keeper.confirm.clear()
        keeper.forgotten.clear()
        # It renews all the while, but has not confirmed.
        await asyncio.wait_for(invalidate(coherence), 60)
        assert not keeper.keeper.is_live(), "it relies on nothing any more"
        keeper.confirm.set()
        await wait_until(lambda: Recall(EVERYWHERE, all_names=True) in keeper.forgotten, "everything is forgotten")
        await wait_until(keeper.keeper.is_live, "a new lease")


async def test_a_client_that_is_cut_off_keeps_what_it_has_until_it_is_back() -> None:
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        # A port that no other process gets by chance while nobody listens there.
        bind = f"127.0.0.1:{find_ports(1)[0]}"
        coherence, _, address = await first.enter_async_context(serve(bind, lease_s=SHORT_LEASE_S))
        keeper = Keeper(address)
        stack.push_async_callback(keeper.close)
        await keeper.start()
        assert grant(coherence, keeper)
        keeper.forgotten.clear()
        await first.aclose()
        await wait_until(lambda: not keeper.keeper.is_live(), "the lease runs out")
        assert keeper.forgotten == []
        await stack.enter_async_context(serve(address))
        await wait_until(keeper.keeper.is_live, "the lease is back")
        assert keeper.forgotten == [Recall(EVERYWHERE, all_names=True)], "another master knows nothing of what was covered"
        value = keeper.metrics.registry.get_sample_value("alluxio_like_lease_losses_total")
        assert value is not None
        assert value >= 1


async def test_a_strict_client_forgets_all_when_its_lease_runs_out() -> None:
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        _, _, address = await first.enter_async_context(serve(lease_s=SHORT_LEASE_S))
        keeper = Keeper(address, strict=True)
        stack.push_async_callback(keeper.close)
        await keeper.start()
        keeper.forgotten.clear()
        await first.aclose()
        await wait_until(lambda: not keeper.keeper.is_live(), "the lease runs out")
        await wait_until(lambda: keeper.forgotten == [Recall(EVERYWHERE, all_names=True)], "all is forgotten")


async def test_a_broken_stream_is_gone_on_with() -> None:
    async with AsyncExitStack() as stack:
        coherence, _, address = await stack.enter_async_context(serve())
        keeper = Keeper(address)
        stack.push_async_callback(keeper.close)
        await keeper.start()
        assert grant(coherence, keeper)
        keeper.forgotten.clear()
        coherence._end_stream(keeper.channel.lease)
        assert await invalidate(coherence) < LEASE_S
        assert keeper.forgotten == [Recall(DIRECTORY, (b"x",))], "nothing else is forgotten, and nothing is lost"


async def test_after_a_start_leases_of_before_are_waited_for() -> None:
    begun = time.monotonic()
    async with serve(age_s=0.0, lease_s=1.2) as (coherence, _, _):
        assert await invalidate(coherence) < 60
        assert time.monotonic() - begun > 1.2
        assert coherence.get_start_wait_s() == 0, "once"


async def test_a_thousand_changes_of_one_directory_cost_a_few_recalls() -> None:
    async with AsyncExitStack() as stack:
        coherence, _, address = await stack.enter_async_context(serve())
        keeper = Keeper(address)
        stack.push_async_callback(keeper.close)
        await keeper.start()
        for number in range(1000):
            grant(coherence, keeper)
            coherence.tell([Recall(DIRECTORY, (str(number).encode(),))])
        assert not grant(coherence, keeper), "it is not leased for a while"
        assert grant(coherence, keeper, InodeId(8))
        assert await invalidate(coherence, Recall(InodeId(8), (b"y",))) < LEASE_S
        told = [recall for recall in keeper.forgotten if recall.directory == DIRECTORY]
        assert len(told) == HOT_RECALLS
        assert told[-1].all_names


# Who comes after a client that died


def count_succeeded(coherence: Coherence) -> float:
    return coherence._metrics.registry.get_sample_value("alluxio_like_leases_succeeded_total") or 0.0


async def test_who_takes_a_dead_clients_place_ends_its_lease_once_all_is_taken_back() -> None:
    async with serve_two() as (coherence, table, dead, heir):
        await dead.start()
        assert grant(coherence, dead)
        await dead.die()
        change = asyncio.create_task(invalidate(coherence))
        attached = asyncio.get_running_loop().create_future()
        heir.keeper.on_begun = lambda: attached
        heir.confirm.clear()
        await heir.start([dead.keeper.lease_id, "nobody's"])
        await heir.renew()
        assert table.lookup(dead.keeper.lease_id) is not None, "what it was told is not taken back yet"
        heir.confirm.set()
        await heir.renew()
        assert table.lookup(dead.keeper.lease_id) is not None, "its locks are not taken over yet"
        assert not change.done()
        attached.set_result(None)
        await asyncio.wait_for(change, 60)
        assert table.lookup(dead.keeper.lease_id) is None
        assert count_succeeded(coherence) == 1
        assert heir.keeper.is_live()


async def test_where_locks_are_not_taken_over_a_dead_clients_lease_runs_out_by_itself() -> None:
    async with serve_two() as (coherence, table, dead, heir):
        await dead.start()
        await dead.die()
        attached = asyncio.get_running_loop().create_future()
        attached.set_exception(errors.Unavailable("no master"))
        heir.keeper.on_begun = lambda: attached
        await heir.start([dead.keeper.lease_id])
        await heir.renew()
        assert table.lookup(dead.keeper.lease_id) is not None
        assert count_succeeded(coherence) == 0


async def test_the_lease_of_a_client_that_is_there_is_not_ended_by_another() -> None:
    async with serve_two() as (coherence, table, living, other):
        await living.start()
        assert grant(coherence, living)
        await other.start([living.keeper.lease_id, other.keeper.lease_id])
        await wait_until(other.keeper._list_succeeded, "it says so")
        for _ in range(3):
            await other.renew()
        assert table.lookup(living.keeper.lease_id) is not None
        assert table.lookup(other.keeper.lease_id) is not None
        living.confirm.clear()
        change = asyncio.create_task(invalidate(coherence))
        await other.renew()
        assert not change.done(), "it is waited for"
        # Once it is gone, the same words mean something.
        await living.die()
        await asyncio.wait_for(change, 60)
        assert count_succeeded(coherence) == 1


# With a whole master


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "home")
    await made.start()
    yield made
    await made.close()


@asynccontextmanager
async def watching(cluster: Cluster, **settings: Any) -> AsyncIterator[Client]:
    config = ClientConfig.model_validate({"master": cluster.master.address, "io_timeout_s": 10, **settings})
    async with Client.open(config) as client:
        client.watch()
        await wait_until(client._keeper.is_live, "the lease")
        yield client


async def test_names_are_kept_until_they_change(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for number in range(250):
        store.put(f"a/{number:03}", b"x" * number)
    async with watching(cluster) as client:
        found = await client.lookup_path("/data/a/007")
        assert found.entry is not None
        assert found.valid_s > 200
        directory = (await client.lookup_path("/data/a")).entry
        assert directory is not None
        inode = directory.attr.inode
        assert [entry.name async for entry in client.iter_dir(inode)] == [f"{number:03}" for number in range(250)]
        for name in ("011", "nothing"):
            assert client.lookup_known(inode, name) is not None, "known from the listing"
        store.put("a/011", b"another")
        store.put("a/nothing", b"something")
        store.delete("a/012")
        await cluster.stub.sync("/data/a")
        for name in ("011", "012", "nothing"):
            await wait_until(lambda name=name: client.lookup_known(inode, name) is None, f"the recall of {name}")
        assert client.lookup_known(inode, "010") is not None
        changed = await client.lookup(inode, "011")
        assert changed.entry is not None
        assert changed.entry.attr.size == len("another")
        assert (await client.lookup(inode, "nothing")).entry is not None
        assert (await client.lookup(inode, "012")).entry is None
        names = [entry.name async for entry in client.iter_dir(inode)]
        assert names == sorted({f"{number:03}" for number in range(250)} - {"012"} | {"nothing"})


async def test_answers_about_a_directory_that_changes_all_the_time_are_short_lived(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told of its changes any more, so everybody has to ask again soon."""
    # All of it belongs to one window, however long the machine takes.
    monkeypatch.setattr(leases, "HOT_WINDOW_S", 300.0)
    monkeypatch.setattr(leases, "HOT_REST_S", 300.0)
    store = await cluster.add_store()
    store.put("a/0", b"x")
    async with watching(cluster) as client:
        directory = (await client.lookup_path("/data/a")).entry
        assert directory is not None
        assert (await client.lookup(directory.attr.inode, "0")).valid_s > 200
        for number in range(HOT_RECALLS + 1):
            store.put("a/0", b"y" * number)
            await cluster.stub.sync("/data/a")
            await wait_until(lambda: client.lookup_known(directory.attr.inode, "0") is None, "the recall")
            found = await client.lookup(directory.attr.inode, "0")
        assert 0 < found.valid_s <= 1.0
        page = await client.list_dir(directory.attr.inode)
        assert 0 < page.valid_s <= 1.0


async def test_mounting_pinning_and_unmounting_are_told(cluster: Cluster) -> None:
    store = await cluster.add_store()
    store.put("f", b"x")
    async with watching(cluster) as client:
        assert (await client.lookup_path("/more/g")).entry is None
        assert client._names.lookup_path("/more/g") is not None
        pinned = (await client.lookup_path("/data/f")).entry
        assert pinned is not None
        assert pinned.ref is not None
        assert not pinned.ref.pinned
        more = await cluster.add_store("/more", "s3://bucket/more")
        more.put("g", b"y")
        await wait_until(lambda: client._names.lookup_path("/more/g") is None, "the recall")
        assert (await client.lookup_path("/more/g")).entry is not None
        await cluster.stub.set_pinned("/data", pinned=True)
        await wait_until(lambda: client._names.lookup_path("/data/f") is None, "the recall")
        pinned = (await client.lookup_path("/data/f")).entry
        assert pinned is not None
        assert pinned.ref is not None
        assert pinned.ref.pinned
        await cluster.stub.unmount("/more")
        await wait_until(lambda: client._names.lookup_path("/more/g") is None, "the recall")
        assert (await client.lookup_path("/more/g")).entry is None


async def test_another_sync_interval_takes_long_answers_back(cluster: Cluster) -> None:
    store = await cluster.add_store("/data", sync_interval_s=-1.0)
    store.put("f", b"x")
    async with watching(cluster) as client:
        assert (await client.lookup_path("/data/f")).valid_s > 3600
        await cluster.stub.mount(MountSpec("/data", "s3://bucket/data", sync_interval_s=30.0, update=True))
        await wait_until(lambda: client._names.lookup_path("/data/f") is None, "the recall")
        assert (await client.lookup_path("/data/f")).valid_s <= 30


async def test_a_removed_directory_is_told_to_those_who_know_its_name(cluster: Cluster) -> None:
    store = await cluster.add_store()
    store.put("a/b/f", b"x")
    async with watching(cluster) as client:
        assert (await client.lookup_path("/data/a/b/f")).entry is not None
        store.delete("a/b/f")
        store.put("a/c", b"x")
        await cluster.stub.sync("/data/a")
        await wait_until(lambda: client._names.lookup_path("/data/a/b/f") is None, "the recall")
        assert (await client.lookup_path("/data/a/b")).entry is None


async def test_what_was_asked_for_before_a_recall_is_not_kept_after_it(cluster: Cluster) -> None:
    store = await cluster.add_store()
    for number in range(20):
        store.put(f"{number}", b"x")
    async with watching(cluster) as client:
        data = (await client.lookup_path("/data")).entry
        assert data is not None
        inode = data.attr.inode
        begun = client._names.begin()
        old = await client._master.lookup(inode, "7")
        assert old.leased
        store.put("7", b"changed")
        await cluster.stub.sync("/data")
        await wait_until(lambda: client._names.begin().sequence > begun.sequence, "the recall")
        assert client._names.keep(inode, "7", old, begun).valid_s == 0
        assert client.lookup_known(inode, "7") is None


async def test_without_a_lease_answers_are_as_short_as_ever(cluster: Cluster) -> None:
    store = await cluster.add_store()
    store.put("f", b"x")
    answer = await cluster.stub.resolve_path("/data/f")
    assert not answer.leased
    assert answer.valid_s <= 10
    assert (await cluster.stub.lookup(ROOT_INODE, "data")).valid_s <= 1


async def test_strict_clients_fail_rather_than_answer_from_memory(cluster: Cluster) -> None:
    store = await cluster.add_store()
    store.put("f", b"x")
    async with watching(cluster, strict=True, io_timeout_s=3.0) as client:
        entry = (await client.lookup_path("/data/f")).entry
        assert entry is not None
        await cluster.master.close()
        assert (await client.lookup_path("/data/f")).entry == entry, "the lease still covers it"
        client._keeper._expires_s = 0.0
        client._keeper._note_state()
        with pytest.raises(errors.TimedOut):
            await client.lookup_path("/data/f")
    await cluster.start()


async def test_a_start_waits_for_leases_only_where_some_may_be_left(tmp_path: Path) -> None:
    async def start_and(home: Path, *, say_goodbye: bool) -> float:
        """How long the master waited for leases of before when it began; then a client comes, and goes or not."""
        cluster = Cluster(home)
        await cluster.start()
        try:
            wait_s = cluster.master.coherence.get_start_wait_s()
            client = Client.open(ClientConfig(master=cluster.master.address))
            client.watch()
            await wait_until(lambda: cluster.master.coherence._table.count_sessions() == 1, "the lease")
            if say_goodbye:
                await client.close()
                await wait_until(lambda: cluster.master.coherence._table.count_sessions() == 0, "the goodbye")
        finally:
            await cluster.close()
        await client.close()
        return wait_s

    assert await start_and(tmp_path, say_goodbye=True) == 0.0
    assert await start_and(tmp_path, say_goodbye=False) == 0.0
    assert await start_and(tmp_path, say_goodbye=True) > 0.0
    assert await start_and(tmp_path, say_goodbye=True) == 0.0


def test_what_was_confirmed_of_a_session_before_confirms_nothing_of_the_next() -> None:
    table = LeaseTable(0.0)
    session, _ = table.begin("a", 100.0, resume=False)
    for _ in range(3):
        table.take_from(session, DIRECTORY, 100.0)
    _, newest = table.take(session, 10)
    for master in (table, LeaseTable(0.0, first_sequence=1 << 40)):
        again, fresh = master.begin("a", 101.0, resume=False)
        assert fresh
        duties = [duty for _ in range(5) if (duty := master.take_from(again, DIRECTORY, 101.0)) is not None]
        _, sent = master.take(again, 10)
        # Sent before it has heard that its session is another one.
        master.renew(again, 101.5, newest)
        assert len(master.list_unconfirmed(duties, 101.5)) == 5
        master.renew(again, 101.5, sent)
        assert not master.list_unconfirmed(duties, 101.5)
