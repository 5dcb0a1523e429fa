"""Delegated directories, through a real master over a store in memory: who makes one fills it by himself, others are told nothing
of it before it was taken back, and what is published is as it was shown."""

import asyncio
import itertools
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.cache.new_files import NewFile
from alluxio_like.client.coherence import LeaseKeeper
from alluxio_like.master.core import acls, checking, following
from alluxio_like.master.core.leases import LEASE_S
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.changes import ChangesStub
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.messages_writing import (
    Delegation,
    NewAttributes,
    NewName,
    Published,
    Renaming,
    SealedDraft,
    WritePolicy,
    XattrChange,
)
from alluxio_like.rpc.quotas import QuotasStub
from alluxio_like.types import Entry, InodeId, Kind, MountId, Recall, VersionId, WorkerId
from tests.servers.net import find_ports
from tests.servers.postgresql import PostgresqlServer
from tests.unit.master_parts import Cluster, wait_until

numbers = itertools.count()
WORKER = WorkerId("w1")
T0_NS = 1_700_000_000 * 10**9


def op() -> str:
    return f"op-{next(numbers)}"


class Mount:
    """A client of the master with a lease, which publishes what it has made before it confirms a recall."""

    def __init__(self, cluster: Cluster) -> None:
        self.channel = open_channel(cluster.master.address, token=cluster.token)
        self.stub = MasterStub(self.channel, timeout_s=60)
        self.changes = ChangesStub(self.channel, timeout_s=60)
        self.told: list[Recall] = []
        self.made: list[NewFile] = []
        """Not published yet."""
        self.may_confirm = asyncio.Event()
        self.may_confirm.set()
        self.keeper = LeaseKeeper(self.channel, self.told.extend, lambda _: None, Metrics())

    @property
    def lease(self) -> str:
        return self.channel.lease

    async def start(self) -> None:
        async def confirm(_: Sequence[Recall]) -> None:
            await self.may_confirm.wait()
            await self.publish_made()

        self.keeper.start(confirm)
        await wait_until(self.keeper.is_live, "the lease")

    async def publish_made(self) -> None:
        made, self.made = self.made, []
        if made:
            published = await self.publish(*made)
            assert all(one.error is None for one in published.files)

    async def publish(self, *files: NewFile) -> Published:
        return await self.changes.publish(WORKER, self.lease, files)

    async def mkdir(self, parent: InodeId, name: str, *, operation_id: str = "") -> tuple[InodeId, Delegation | None]:
        new = NewName(parent, name, Kind.DIRECTORY, 0o755, 1, 2, delegate=True)
        changed = await self.changes.create(operation_id or op(), new)
        assert changed.entry is not None
        return changed.entry.attr.inode, changed.delegation

    async def make(self, parent: InodeId, name: str, **more: object) -> NewFile:
        """A file that nobody else knows of."""
        first = await self.changes.reserve_inodes(1)
        fields = {
            "mode": 0o640,
            "uid": 7,
            "gid": 8,
            "changed_ns": T0_NS + 5,
            "made_ns": T0_NS + 5,
            "mtime_ns": T0_NS,
            "sealed": True,
            "size": 4,
            **more,
        }
        file = NewFile(op(), first, parent, name, **fields)  # type: ignore[arg-type]
        self.made.append(file)
        return file

    async def close(self) -> None:
        self.may_confirm.set()
        await self.keeper.close()
        await self.channel.close()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "home")
    made.is_written = True
    await made.start()
    await made.add_store(options={"write": "back"})
    yield made
    await made.close()


@pytest.fixture
async def mount(cluster: Cluster) -> AsyncIterator[Mount]:
    made = Mount(cluster)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def other(cluster: Cluster) -> AsyncIterator[Mount]:
    made = Mount(cluster)
    await made.start()
    yield made
    await made.close()


async def get(cluster: Cluster, path: str) -> Entry:
    entry = (await cluster.stub.resolve_path(path)).entry
    assert entry is not None, path
    return entry


async def get_root(cluster: Cluster) -> InodeId:
    return (await get(cluster, "/data")).attr.inode


async def test_ids_are_reserved_once(cluster: Cluster, mount: Mount) -> None:
    first = await mount.changes.reserve_inodes(64)
    assert await mount.changes.reserve_inodes(1) == first + 64
    changed = await mount.changes.create(op(), NewName(await get_root(cluster), "x", Kind.FILE, 0o600, 0, 0))
    assert changed.entry is not None
    assert changed.entry.attr.inode > first + 64
    for count in (0, 100_000):
        with pytest.raises(errors.InvalidArgument):
            await mount.changes.reserve_inodes(count)


async def test_others_wait_for_the_publishing_of_a_directory(cluster: Cluster, mount: Mount, other: Mount) -> None:
    directory, given = await mount.mkdir(await get_root(cluster), "d")
    assert given == Delegation(255, MountId(1), "d/")
    file = await mount.make(directory, "a")
    mount.may_confirm.clear()
    looking = asyncio.create_task(other.stub.lookup(directory, "a"))
    await wait_until(lambda: any(told.directory == directory and told.all_names for told in mount.told), "the recall")
    assert not looking.done()
    mount.may_confirm.set()
    found = (await looking).entry
    assert found is not None
    assert found.attr.inode == file.inode
    assert found.ref is not None
    assert (found.ref.version, found.ref.size, found.ref.holders) == (VersionId(2), 4, (WORKER,))


async def test_what_was_shown_stays_so(cluster: Cluster, mount: Mount) -> None:
    directory, _ = await mount.mkdir(await get_root(cluster), "d")
    made_ns = (await mount.stub.get_entry(directory)).entry.attr.mtime_ns  # type: ignore[union-attr]
    early = await mount.make(directory, "early", made_ns=made_ns - 20, changed_ns=made_ns - 10, mtime_ns=made_ns - 20, atime_ns=3)
    late = await mount.make(directory, "late", made_ns=made_ns + 80, changed_ns=made_ns + 100, mtime_ns=made_ns + 90)
    empty = await mount.make(
        directory, "open", sealed=False, size=0, made_ns=made_ns + 50, changed_ns=made_ns + 50, mtime_ns=made_ns + 50
    )
    published = await mount.publish(late, early, empty)
    assert [one.error for one in published.files] == [None] * 3
    assert [one.policy for one in published.files] == [WritePolicy.parse("back")] * 3
    for file, one in zip((late, early, empty), published.files, strict=True):
        found = (await mount.stub.lookup(directory, file.name)).entry
        assert found is not None
        attr = found.attr
        assert (attr.inode, attr.mode, attr.uid, attr.gid, attr.size) == (file.inode, 0o640, 7, 8, file.size)
        assert (attr.mtime_ns, attr.ctime_ns, attr.atime_ns) == (file.mtime_ns, file.changed_ns, file.atime_ns)
        assert attr.nlink == 1
        assert found.ref == one.ref
    above = (await mount.stub.get_entry(directory)).entry
    assert above is not None
    assert (above.attr.mtime_ns, above.attr.ctime_ns) == (made_ns + 80, made_ns + 80), "as it was when the last was made"
    told = {one.name: one.result.entry for one in published.told}
    assert set(told) == {"early", "late", "open", ""}
    assert told["late"] == (await mount.stub.lookup(directory, "late")).entry
    sealed = await mount.changes.seal(op(), SealedDraft(empty.inode, 9, made_ns + 200, WORKER, 1))
    assert sealed.ref.version == 2


async def test_a_repeat_finds_what_was_done(cluster: Cluster, mount: Mount) -> None:
    root = await get_root(cluster)
    directory, given = await mount.mkdir(root, "d", operation_id="mkdir")
    assert await mount.mkdir(root, "d", operation_id="mkdir") == (directory, given)
    file = await mount.make(directory, "a")
    first = await mount.publish(file)
    again = await mount.publish(file)
    assert again.files == first.files
    changed = await mount.changes.create(file.operation_id, NewName(directory, "a", Kind.FILE, 0o640, 7, 8))
    assert changed.entry is not None
    assert changed.entry.attr.inode == file.inode
    sealed = await mount.changes.seal(file.operation_id + ".s", SealedDraft(file.inode, 4, T0_NS, WORKER, 1))
    assert sealed.ref == first.files[0].ref
    # Its name first, its content later.
    name = await mount.make(directory, "b", sealed=False, size=0)
    ref = (await mount.publish(name)).files[0].ref
    assert ref is not None
    assert ref.version == 1
    whole = replace(name, sealed=True, size=6, changed_ns=T0_NS + 77, mtime_ns=T0_NS + 60)
    one, two = (await mount.publish(whole, replace(file))).files
    assert one.ref is not None
    assert (one.ref.version, one.ref.size) == (2, 6)
    assert two == first.files[0]
    found = (await mount.stub.lookup(directory, "b")).entry
    assert found is not None
    assert (found.attr.mtime_ns, found.attr.ctime_ns) == (T0_NS + 60, T0_NS + 77)


async def test_a_name_that_was_taken_stays_and_one_bad_file_keeps_no_other_away(cluster: Cluster, mount: Mount) -> None:
    root = await get_root(cluster)
    directory, _ = await mount.mkdir(root, "d")
    there = await mount.make(directory, "a")
    await mount.publish(there)
    gone, _ = await mount.mkdir(root, "gone")
    await mount.changes.remove(op(), root, "gone", directory=True)
    taken, lost, odd = await mount.make(directory, "a"), await mount.make(gone, "x"), await mount.make(directory, "..")
    good = await mount.make(directory, "good")
    mount.made.clear()
    files = (await mount.publish(taken, lost, odd, good)).files
    assert files[0].ref is not None
    assert files[0].ref.key.startswith("d/a.conflict-")
    assert files[0].ref.inode == taken.inode
    assert isinstance(files[1].error, errors.NotFound)
    assert isinstance(files[2].error, errors.InvalidArgument)
    assert files[3].ref is not None
    names = {entry.name for entry in (await mount.stub.list_dir(directory)).entries}
    assert names == {"a", files[0].ref.key.removeprefix("d/"), "good"}
    assert (await mount.stub.lookup(directory, "a")).entry.attr.inode == there.inode  # type: ignore[union-attr]


async def test_publishing_waits_for_no_store(cluster: Cluster, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    root = await get_root(cluster)
    directory, _ = await mount.mkdir(root, "d")
    async with asyncio.timeout(60):
        while (await cluster.changes.list_unpersisted("/data")).steps:
            await asyncio.sleep(0.01)
    with monkeypatch.context() as patch:
        for steps in ("list_ready", "list_pushes"):
            patch.setattr(following, steps, lambda *_, **__: [])
        await mount.changes.rename(op(), Renaming(root, "d", root, "e"))
        [file] = (await mount.publish(await mount.make(directory, "a"))).files
        assert file.ref is not None
        assert await mount.changes.get_xattrs(file.ref.inode) == {}
    await mount.mkdir(root, "more")  # which wakes the follower
    plan = await mount.changes.plan_upload(file.ref.file_id)
    assert (plan.key, plan.expected) == ("e/a", None)
    with cluster.master.meta.read() as txn:
        assert list(checking.check(txn)) == []


async def test_a_directory_that_is_just_being_given_is_not_removed_by_others(cluster: Cluster, mount: Mount) -> None:
    root = await get_root(cluster)
    directory, given = await mount.mkdir(root, "d")
    assert given is not None
    delegations = cluster.master.coherence.delegations
    delegations.end(directory)
    # Its making is committed, and the loop has not come to it.
    delegations.prepare(directory, "somebody")
    with pytest.raises(errors.Stale):
        await mount.changes.remove(op(), root, "d", directory=True)
    delegations.drop(directory)
    await mount.changes.remove(op(), root, "d", directory=True)


async def test_what_is_published_and_taken_back_is_counted(cluster: Cluster, mount: Mount, other: Mount) -> None:
    def get_count(name: str) -> float:
        cluster.master.coherence.expire()
        value = cluster.master.coherence._metrics.registry.get_sample_value(f"alluxio_like_{name}")
        assert value is not None
        return value

    directory, _ = await mount.mkdir(await get_root(cluster), "d")
    assert get_count("delegations") == 1
    await mount.publish(await mount.make(directory, "a"), await mount.make(directory, "b"))
    assert get_count("files_published_total") == 2
    await other.stub.list_dir(directory)
    assert (get_count("delegations"), get_count("delegations_taken_back_total")) == (0, 1)


async def wait_recalled(mount: Mount, directory: InodeId) -> None:
    await wait_until(lambda: any(told.directory == directory and told.all_names for told in mount.told), "the recall")


@pytest.mark.parametrize(
    "question",
    [
        lambda other, root, directory: other.stub.lookup(root, "d"),
        lambda other, root, directory: other.stub.resolve_path("/data/d/a"),
        lambda other, root, directory: other.stub.list_dir(root),
        lambda other, root, directory: other.stub.list_dir(directory),
        lambda other, root, directory: other.stub.get_entry(directory),
        lambda other, root, directory: other.stub.sync(inode=directory),
        lambda other, root, directory: other.stub.sync("/data", recursive=True),
        lambda other, root, directory: other.stub.report(),
        lambda other, root, directory: other.changes.list_unpersisted("/"),
        lambda other, root, directory: other.changes.get_xattrs(directory),
        lambda other, root, directory: other.changes.set_attributes(op(), directory, NewAttributes(mode=0o700)),
        lambda other, root, directory: other.changes.create(op(), NewName(directory, "b", Kind.FILE, 0o600, 0, 0)),
        lambda other, root, directory: other.changes.rename(op(), Renaming(root, "d", root, "e")),
        lambda other, root, directory: refuse(other.changes.remove(op(), root, "d", directory=True)),
        lambda other, root, directory: refuse(other.changes.rename(op(), Renaming(root, "empty", root, "d"))),
    ],
)
async def test_what_others_ask_waits_for_a_directory_that_it_has_to_do_with(
    cluster: Cluster, mount: Mount, other: Mount, question: Any
) -> None:
    root = await get_root(cluster)
    await other.changes.create(op(), NewName(root, "empty", Kind.DIRECTORY, 0o700, 0, 0))
    directory, given = await mount.mkdir(root, "d")
    assert given is not None
    await mount.make(directory, "a")
    mount.may_confirm.clear()
    asking = asyncio.create_task(question(other, root, directory))
    await wait_recalled(mount, directory)
    assert not asking.done()
    assert cluster.master.coherence.delegations.count() == 0
    mount.may_confirm.set()
    await asking
    assert (await other.stub.lookup(directory, "a")).entry is not None


async def refuse(asking: Any) -> None:
    """A directory that was empty, as far as the master knew."""
    with pytest.raises(errors.DirectoryNotEmpty):
        await asking


async def test_who_fills_a_directory_waits_for_nobody(cluster: Cluster, mount: Mount, other: Mount) -> None:
    root = await get_root(cluster)
    directory, given = await mount.mkdir(root, "d")
    assert given is not None
    file = await mount.make(directory, "a")
    mount.may_confirm.clear()
    async with asyncio.timeout(LEASE_S / 2):
        await mount.stub.lookup(root, "d")
        await mount.stub.list_dir(directory)
        await mount.stub.get_entry(directory)
        created = await mount.changes.create(op(), NewName(directory, "b", Kind.FILE, 0o600, 0, 0))
        assert created.entry is not None
        assert cluster.master.coherence.has_delegated(mount.lease, directory)
        # What the store has there is looked at: that ends it, though it is not waited for.
        await mount.stub.sync(inode=directory)
        assert not cluster.master.coherence.has_delegated(mount.lease, directory)
        # And while others wait for it, it goes on.
        asking = asyncio.create_task(other.stub.lookup(directory, "a"))
        await wait_recalled(mount, directory)
        await mount.publish_made()
        await mount.stub.report()
        assert not asking.done()
        mount.may_confirm.set()
        found = (await asking).entry
    assert found is not None
    assert found.attr.inode == file.inode


async def test_two_that_ask_for_each_others_directories_wait_for_nothing_of_each_other(
    cluster: Cluster, mount: Mount, other: Mount
) -> None:
    root = await get_root(cluster)
    places = {one: (await one.mkdir(root, name))[0] for one, name in ((mount, "d"), (other, "e"))}
    for one, directory in places.items():
        await one.make(directory, "a")
        one.may_confirm.clear()
    asking = [asyncio.create_task(one.stub.list_dir(root)) for one in places]
    # Both have looked, and both are recalled.
    await wait_recalled(mount, places[mount])
    await wait_recalled(other, places[other])
    async with asyncio.timeout(LEASE_S / 2):
        for one in places:
            one.may_confirm.set()
        for pages in await asyncio.gather(*asking):
            assert {entry.name for entry in pages.entries} == {"d", "e"}


async def test_a_directory_is_given_only_where_who_made_it_can_do_as_all_would(cluster: Cluster, mount: Mount) -> None:
    root = await get_root(cluster)

    async def is_given(name: str, mode: int = 0o755, parent: InodeId = root) -> bool:
        changed = await mount.changes.create(op(), NewName(parent, name, Kind.DIRECTORY, mode, 1, 2, delegate=True))
        return changed.delegation is not None

    assert await is_given("plain")
    assert not await is_given("group", 0o2755)
    above, _ = await mount.mkdir(root, "above")
    assert await is_given("in", parent=above)
    default = acls.pack(acls.parse(struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *one) for one in BASIC)))
    await mount.changes.set_xattr(op(), above, XattrChange(acls.DEFAULT, default))
    assert not cluster.master.coherence.has_delegated(mount.lease, above), "it ends with the default list"
    assert not await is_given("acl", parent=above)
    directory, _ = await mount.mkdir(root, "later")
    changed = await mount.changes.set_attributes(op(), directory, NewAttributes(mode=0o2755))
    assert Recall(directory, all_names=True) in changed.recalls
    assert not cluster.master.coherence.has_delegated(mount.lease, directory)
    for policy, expected in (("cache", True), ("through", False), ("back", True)):
        await mount.changes.set_write_policy(op(), "/data", WritePolicy.parse(policy))
        assert await is_given(policy) is expected, policy
    limits = QuotasStub(mount.channel, timeout_s=60)
    await limits.set_quota("/data/plain", 1 << 30, None)
    assert not await is_given("quotas")
    await limits.clear_quota("/data/plain")
    assert await is_given("none")
    stranger = ChangesStub(open_channel(cluster.master.address, token=cluster.token), timeout_s=60)
    changed = await stranger.create(op(), NewName(root, "stranger", Kind.DIRECTORY, 0o755, 1, 2, delegate=True))
    assert changed.delegation is None, "who has no lease"


BASIC = ((1, 7, 0xFFFFFFFF), (4, 5, 0xFFFFFFFF), (32, 5, 0xFFFFFFFF))


async def test_a_lease_that_has_run_out_is_waited_for_no_longer(cluster: Cluster, mount: Mount, other: Mount) -> None:
    directory, _ = await mount.mkdir(await get_root(cluster), "d")
    file = await mount.make(directory, "a")
    mount.may_confirm.clear()
    asking = asyncio.create_task(other.stub.lookup(directory, "a"))
    await wait_recalled(mount, directory)
    for task in mount.keeper._tasks:
        task.cancel()
    begun_s = asyncio.get_running_loop().time()
    assert (await asking).entry is None
    assert asyncio.get_running_loop().time() - begun_s < LEASE_S + 5
    # Published too late, beside what others have made meanwhile.
    created = await other.changes.create(op(), NewName(directory, "a", Kind.FILE, 0o600, 0, 0))
    assert created.entry is not None
    ref = (await mount.publish(file)).files[0].ref
    assert ref is not None
    assert ref.key.startswith("d/a.conflict-")
    found = (await other.stub.lookup(directory, ref.key.removeprefix("d/"))).entry
    assert found is not None
    assert found.attr.inode == file.inode


async def test_a_master_that_starts_anew_asks_who_filled_a_directory(tmp_path: Path) -> None:
    await restart(Cluster(tmp_path / "home"))


async def test_so_does_one_on_postgresql(postgresql_server: PostgresqlServer, tmp_path: Path) -> None:
    url = postgresql_server.get_url(schema=postgresql_server.make_schema())
    await restart(Cluster(tmp_path / "home", metadata_url=url))


async def restart(cluster: Cluster) -> None:
    cluster.is_written = True
    port = find_ports(1)[0]
    bind = f"127.0.0.1:{port}"
    await cluster.start(bind)
    try:
        await cluster.add_store(options={"write": "back"})
        root = await get_root(cluster)
        mount, other = Mount(cluster), Mount(cluster)
        await mount.start()
        directory, given = await mount.mkdir(root, "d")
        assert given is not None
        await mount.mkdir(root, "removed")
        await mount.changes.remove(op(), root, "removed", directory=True)
        file = await mount.make(directory, "a")
        last = file.inode
        mount.may_confirm.clear()
        await cluster.stop_master()
        await cluster.start(bind)
        assert await mount.changes.reserve_inodes(1) > last
        begun_s = asyncio.get_running_loop().time()
        asking = asyncio.create_task(other.stub.lookup(directory, "a"))
        await wait_until(lambda: cluster.master.coherence.delegations._leaving, "its holder to be back")
        assert not asking.done()
        mount.may_confirm.set()
        found = (await asking).entry
        assert found is not None
        assert found.attr.inode == file.inode
        assert asyncio.get_running_loop().time() - begun_s < LEASE_S - 1, "it need not wait for all leases of before"
        await mount.close()
        await other.close()
        with cluster.master.meta.read() as txn:
            assert list(checking.check(txn)) == []
    finally:
        await cluster.close()
