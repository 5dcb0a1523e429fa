"""HDFS's own: blocks, open files, users, quotas, its faults. What every store must do: test_ufs.py, test_ufs_writing.py."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hdfs_native import WriteOptions as CreateOptions

from alluxio_like import errors
from alluxio_like.types import Fingerprint
from alluxio_like.ufs.hdfs_writing import WritableHdfsUfs
from alluxio_like.ufs.open import open_ufs
from alluxio_like.ufs.writing import Expected, Source, WriteOptions
from tests.conformance.stores import make_source
from tests.servers.fixtures_hdfs import HdfsProxies, HdfsServer, start_hdfs_server
from tests.servers.kdc import start_kdc

pytestmark = pytest.mark.server
TIMEOUT_S = 5.0
Open = Callable[..., WritableHdfsUfs]


@pytest.fixture
async def open_store() -> AsyncIterator[Open]:
    """Opens stores, and closes them."""
    opened: list[WritableHdfsUfs] = []

    def open_one(uri: str, options: Mapping[str, str] | None = None, *, io_timeout_s: float = 20.0) -> WritableHdfsUfs:
        ufs = open_ufs(uri, options or {}, secrets={}, on_request=lambda _op: None, io_timeout_s=io_timeout_s)
        assert isinstance(ufs, WritableHdfsUfs)
        opened.append(ufs)
        return ufs

    yield open_one
    for ufs in opened:
        await ufs.close()


@pytest.fixture
def store(open_store: Open, hdfs_server: HdfsServer, hdfs_root: str) -> WritableHdfsUfs:
    return open_store(f"{hdfs_server.cluster.uri}{hdfs_root}")


async def read(ufs: WritableHdfsUfs, key: str, fingerprint: Fingerprint, offset: int = 0, length: int = -1) -> bytes:
    size = fingerprint.size - offset if length < 0 else length
    return b"".join([bytes(chunk) async for chunk in ufs.read(key, fingerprint, offset, size)])


async def get_fingerprint(ufs: WritableHdfsUfs, key: str) -> Fingerprint:
    fingerprint = (await ufs.stat(key)).fingerprint
    assert fingerprint is not None
    return fingerprint


def make_options() -> WriteOptions:
    return WriteOptions(os.urandom(16).hex())


def make_data(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# -- files --------------------------------------------------------------------------------------------------------------------


async def test_reads_across_blocks(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    data = make_data(5 * (1 << 20) + 777)
    hdfs_server.put(f"{hdfs_root}/k", data, blocksize=1 << 20)
    fingerprint = await get_fingerprint(store, "k")
    for offset, length in [
        (0, len(data)),
        ((1 << 20) - 1, 2),
        (3 << 20, 1 << 20),
        ((2 << 20) - 5, (2 << 20) + 10),
        (5 << 20, 777),
    ]:
        assert await read(store, "k", fingerprint, offset, length) == data[offset : offset + length]


async def test_a_file_that_is_being_written(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    writer = hdfs_server.client.create(f"{hdfs_root}/k", CreateOptions(block_size=1 << 20))
    assert (await get_fingerprint(store, "k")).size == 0
    writer.write(b"a" * (1 << 20) + b"b" * 1000)
    writer.hsync()
    growing = await get_fingerprint(store, "k")
    assert growing.size == (1 << 20) + 1000
    assert await read(store, "k", growing, 0, 1 << 20) == b"a" * (1 << 20)
    with pytest.raises(errors.StoreError, match="being written"):
        await read(store, "k", growing, 0)
    writer.close()
    closed = await get_fingerprint(store, "k")
    assert closed != growing
    with pytest.raises(errors.Stale):
        await read(store, "k", growing, 0, 10)
    assert (await read(store, "k", closed))[-1001:] == b"a" + b"b" * 1000


async def test_appended_files_are_other_contents(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    hdfs_server.put(f"{hdfs_root}/k", b"first")
    before = await get_fingerprint(store, "k")
    assert await read(store, "k", before, 0, 3) == b"fir"
    with hdfs_server.client.append(f"{hdfs_root}/k") as writer:
        writer.write(b" and more")
    with pytest.raises(errors.Stale):  # also by the reader that is open
        await read(store, "k", before, 0, 3)
    assert await read(store, "k", await get_fingerprint(store, "k")) == b"first and more"


async def test_young_fingerprints_are_not_trusted(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    hdfs_server.put(f"{hdfs_root}/young", b"1")
    assert not (await store.stat("young")).trusted
    now_ms = time.time_ns() // 1_000_000
    for name, age_ms, trusted in [("old", 2000, True), ("ahead", -60_000, False)]:
        hdfs_server.put(f"{hdfs_root}/{name}", b"1")
        hdfs_server.client.set_times(f"{hdfs_root}/{name}", now_ms - age_ms, now_ms)
        entry = await store.stat(name)
        assert (entry.trusted, entry.mtime_ns) == (trusted, (now_ms - age_ms) * 1_000_000)
    page = await store.list_page("")
    assert [(entry.name, entry.trusted) for entry in page.entries] == [("ahead", False), ("old", True), ("young", False)]


# -- listings -----------------------------------------------------------------------------------------------------------------


def fill(server: HdfsServer, root: str, names: list[str]) -> None:
    def make(name: str) -> None:
        if name.endswith("/"):
            server.client.mkdirs(f"{root}/{name[:-1]}", create_parent=True)
        else:
            server.client.create(f"{root}/{name}").close()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(make, names))


async def test_listings_of_many_answers(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    # The server gives 40 entries an answer, non-ASCII ones first.
    names = [
        f"d/{letter}{number:02}{end}" for letter in ("a", "é", "z", "日") for number in range(30) for end in ("", "!", "-x/")
    ]
    fill(hdfs_server, hdfs_root, names)
    expected = sorted(name.removeprefix("d/").encode() for name in names)
    tokens: list[str | None] = [None]
    found: list[bytes] = []
    while True:
        page = await store.list_page("d/", tokens[-1], max_entries=50)
        found += [entry.sort_name.encode() for entry in page.entries]
        if page.token is None:
            break
        tokens.append(page.token)
    assert found == expected
    # What was kept of it is gone: begun again, and skipped through.
    again = await store.list_page("d/", tokens[4], max_entries=50)
    assert [entry.sort_name.encode() for entry in again.entries] == expected[200:250]


async def test_listings_at_once_and_removed_directories(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    fill(hdfs_server, hdfs_root, [f"d/{number:03}" for number in range(100)])
    first = [await store.list_page("d/", max_entries=10) for _ in range(12)]
    second = await asyncio.gather(*[store.list_page("d/", page.token, max_entries=10) for page in first])
    assert all([entry.name for entry in page.entries] == [f"{number:03}" for number in range(10, 20)] for page in second)
    hdfs_server.delete(f"{hdfs_root}/d")
    with pytest.raises(errors.NotFound):
        await store.list_page("d/", second[0].token)


async def test_a_root_that_is_not_there_is_no_empty_store(open_store: Open, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    ufs = open_store(f"{hdfs_server.cluster.uri}{hdfs_root}/missing")
    for call in (ufs.check(), ufs.stat("x"), ufs.list_page("x/"), ufs.list_page("")):
        with pytest.raises(errors.StoreMissing, match="no such directory"):
            await call
    hdfs_server.put(f"{hdfs_root}/file", b"1")
    with pytest.raises(errors.StoreMissing, match="not a directory"):
        await open_store(f"{hdfs_server.cluster.uri}{hdfs_root}/file").check()


# -- users, quotas, safe mode ---------------------------------------------------------------------------------------------------


async def test_what_a_user_may_not(open_store: Open, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    hdfs_server.put(f"{hdfs_root}/k", b"secret")
    hdfs_server.put(f"{hdfs_root}/d/x", b"1")
    hdfs_server.client.set_permission(f"{hdfs_root}/k", 0o600)
    hdfs_server.client.set_permission(f"{hdfs_root}/d", 0o700)
    ufs = open_store(f"{hdfs_server.cluster.uri}{hdfs_root}", {"user": "somebody"})
    fingerprint = await get_fingerprint(ufs, "k")
    for call in (read(ufs, "k", fingerprint), ufs.list_page("d/"), ufs.stat("d/x"), ufs.make_directory("new")):
        with pytest.raises(errors.StoreDenied, match="somebody"):
            await call
    with make_source(b"1") as source, pytest.raises(errors.StoreDenied):
        await ufs.put("new", source, make_options())
    other = open_store(f"{hdfs_server.cluster.uri}{hdfs_root}", {"user": "another"})
    with pytest.raises(errors.ConfigError, match="act as one user"):
        await other.check()
    await ufs.close()
    await other.check()
    assert os.environ["HADOOP_USER_NAME"] == "another"
    await other.close()
    assert "HADOOP_USER_NAME" not in os.environ


async def test_a_quota_is_no_space(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    hdfs_server.client.mkdirs(f"{hdfs_root}/d")
    hdfs_server.cluster.run_admin("-setQuota", "2", f"{hdfs_root}/d")
    with make_source(b"1") as source:
        await store.put("d/one", source, make_options())
        with pytest.raises(errors.NoSpace):
            await store.put("d/two", source, make_options())


async def test_safe_mode_refuses_writes_alone(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    hdfs_server.put(f"{hdfs_root}/k", b"there")
    hdfs_server.cluster.run_admin("-safemode", "enter")
    try:
        assert await read(store, "k", await get_fingerprint(store, "k")) == b"there"
        with make_source(b"1") as source, pytest.raises(errors.StoreUnavailable, match=r"[Ss]afe mode"):
            await store.put("new", source, make_options())
    finally:
        hdfs_server.cluster.run_admin("-safemode", "leave")
    with make_source(b"1") as source:
        await store.put("new", source, make_options())


# -- writing ------------------------------------------------------------------------------------------------------------------


async def test_a_write_is_ours_until_somebody_appends(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    options = make_options()
    with make_source(b"ours") as source:
        await store.put("k", source, options)
    assert hdfs_server.get(f"{hdfs_root}/k") == b"ours"  # (reading leaves the mark alone)
    await store.rename("k", "moved")
    assert await store.lookup_written("moved", options.token) is not None
    with hdfs_server.client.append(f"{hdfs_root}/moved") as writer:
        writer.write(b" no more")
    assert await store.lookup_written("moved", options.token) is None


async def test_cancelled_writes_leave_nothing(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    with make_source(make_data(24 << 20)) as source:
        for attempt in range(6):
            task = asyncio.create_task(store.put("k", source, make_options()))
            await asyncio.sleep(0.02 * attempt)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    await store.close()  # waits for what is removed in the background
    left = [status.path for status in hdfs_server.client.list_status(hdfs_root)]
    assert [path for path in left if "alluxio-like" in path] == []


async def test_what_a_crash_left_is_found(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    token = make_options().token
    hdfs_server.put(f"{hdfs_root}/d/.whole.alluxio-like.{token}", b"half")
    (found,) = await store.list_uploads("")
    assert (found.key, found.upload_id) == ("d/whole", token)
    assert (await store.list_page("d/")).entries == ()
    await store.abort_upload(found)
    assert await store.list_uploads("") == []


async def test_a_part_that_broke_off_is_sent_again(store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str) -> None:
    data = make_data(40 << 20)
    options = make_options()
    upload = await store.begin_upload("k", options)
    with make_source(data) as source:
        first = await store.upload_part(upload, 1, Source(source.fd, source.offset, 1 << 20), 0)
        rest = Source(source.fd, source.offset + (1 << 20), len(data) - (1 << 20))
        task = asyncio.create_task(store.upload_part(upload, 2, rest, 1 << 20))
        await asyncio.sleep(0.15)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        second = await store.upload_part(upload, 2, rest, 1 << 20)
        await store.finish_upload(upload, [first, second], options, expected=Expected(None))
    assert hdfs_server.get(f"{hdfs_root}/k") == data


async def test_a_part_with_other_bytes_keeps_those_before(
    store: WritableHdfsUfs, hdfs_server: HdfsServer, hdfs_root: str
) -> None:
    options = make_options()
    upload = await store.begin_upload("k", options)
    with make_source(b"first, wrong, right") as source:
        first = await store.upload_part(upload, 1, Source(source.fd, source.offset, 7), 0)
        await store.upload_part(upload, 2, Source(source.fd, source.offset + 7, 7), 7)
        second = await store.upload_part(upload, 2, Source(source.fd, source.offset + 14, 5), 7)
        with pytest.raises(errors.InvalidArgument):
            await store.upload_part(upload, 4, source, 12)
        with pytest.raises(errors.InvalidArgument):
            await store.finish_upload(upload, [first], options)
        await store.finish_upload(upload, [first, second], options)
    assert hdfs_server.get(f"{hdfs_root}/k") == b"first, right"


# -- faults -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxied(open_store: Open, hdfs_proxies: HdfsProxies, hdfs_root: str) -> WritableHdfsUfs:
    """The store through the proxies, with little patience."""
    return open_store(f"{hdfs_proxies.uri}{hdfs_root}", hdfs_proxies.options, io_timeout_s=TIMEOUT_S)


async def fails_in_time(call: "asyncio.Future[object] | object", kind: type[errors.AlluxioLikeError], limit_s: float) -> None:
    start_s = time.monotonic()
    with pytest.raises(kind):
        await call  # type: ignore[misc]
    assert time.monotonic() - start_s < limit_s + 20, "more than a busy machine may take for it"


async def test_a_namenode_that_stops_answering(
    proxied: WritableHdfsUfs, hdfs_proxies: HdfsProxies, hdfs_server: HdfsServer, hdfs_root: str
) -> None:
    hdfs_server.put(f"{hdfs_root}/k", b"there")
    fingerprint = await get_fingerprint(proxied, "k")
    hdfs_proxies.namenode.stall()
    calls = [proxied.stat("k"), proxied.list_page(""), read(proxied, "k", fingerprint), proxied.make_directory("d")]
    await asyncio.gather(*[fails_in_time(call, errors.StoreUnavailable, TIMEOUT_S) for call in calls])
    hdfs_proxies.namenode.resume()
    assert await read(proxied, "k", fingerprint) == b"there"
    # A connection that fell silent for good is not used for ever.
    hdfs_proxies.namenode.hang()
    await fails_in_time(proxied.stat("k"), errors.StoreUnavailable, TIMEOUT_S)
    assert await get_fingerprint(proxied, "k") == fingerprint
    assert [entry.name for entry in (await proxied.list_page("")).entries][-1] == "k"


async def test_a_namenode_that_refuses_or_breaks_off(
    proxied: WritableHdfsUfs, hdfs_proxies: HdfsProxies, hdfs_server: HdfsServer, hdfs_root: str
) -> None:
    hdfs_server.put(f"{hdfs_root}/k", b"there")
    fingerprint = await get_fingerprint(proxied, "k")
    hdfs_proxies.namenode.cut()
    assert await read(proxied, "k", fingerprint) == b"there"
    hdfs_proxies.namenode.refuse()
    hdfs_proxies.namenode.cut()
    for call in (proxied.stat("k"), proxied.list_page(""), proxied.check()):
        await fails_in_time(call, errors.StoreUnavailable, 1)
    hdfs_proxies.namenode.resume()
    assert await read(proxied, "k", fingerprint) == b"there"


async def test_a_datanode_that_stalls_cuts_or_refuses(
    proxied: WritableHdfsUfs, hdfs_proxies: HdfsProxies, hdfs_server: HdfsServer, hdfs_root: str
) -> None:
    data = make_data(6 << 20)
    hdfs_server.put(f"{hdfs_root}/k", data)
    fingerprint = await get_fingerprint(proxied, "k")
    assert await read(proxied, "k", fingerprint) == data
    assert hdfs_proxies.datanode.passed_bytes > len(data)
    hdfs_proxies.datanode.stall()
    await fails_in_time(read(proxied, "k", fingerprint), errors.StoreUnavailable, TIMEOUT_S)
    task = asyncio.create_task(read(proxied, "k", fingerprint))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hdfs_proxies.datanode.resume()
    assert await read(proxied, "k", fingerprint) == data
    for size in (0, 1, 100, 70_000, 700_000, 1_000_000, 1_050_000):
        hdfs_proxies.datanode.cut_after(size)
        hdfs_proxies.datanode.cut()
        with suppress(errors.StoreUnavailable):
            assert await read(proxied, "k", fingerprint) == data
    hdfs_proxies.datanode.resume()
    hdfs_proxies.datanode.cut()
    assert await read(proxied, "k", fingerprint) == data
    hdfs_proxies.datanode.refuse()
    hdfs_proxies.datanode.cut()
    await fails_in_time(read(proxied, "k", fingerprint), errors.StoreUnavailable, 1)


async def test_writes_fail_in_time_and_once(
    proxied: WritableHdfsUfs, hdfs_proxies: HdfsProxies, hdfs_server: HdfsServer, hdfs_root: str
) -> None:
    await proxied.check()
    with make_source(make_data(20 << 20)) as source:
        hdfs_proxies.datanode.stall()
        await fails_in_time(proxied.put("k", source, make_options()), errors.StoreUnavailable, 2 * TIMEOUT_S)
        hdfs_proxies.datanode.resume()
        hdfs_proxies.namenode.refuse()
        hdfs_proxies.namenode.cut()
        await fails_in_time(proxied.put("k", source, make_options()), errors.StoreUnavailable, 1)
        hdfs_proxies.namenode.resume()
        with pytest.raises(LookupError):
            hdfs_server.get(f"{hdfs_root}/k")
        await proxied.put("k", source, make_options())
    assert len(hdfs_server.get(f"{hdfs_root}/k")) == 20 << 20


# -- servers of their own -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large_server() -> Iterator[HdfsServer]:
    """Two NameNodes and two DataNodes, which keep no access times. The tests use it up, in their order."""
    settings = {"dfs.namenode.accesstime.precision": "0"}
    with start_hdfs_server(is_ha=True, datanodes=2, replication=2, settings=settings) as server:
        yield server


async def test_a_nameservice_fails_over(open_store: Open, large_server: HdfsServer) -> None:
    cluster = large_server.cluster
    namenodes = ",".join(f"127.0.0.1:{cluster.get_namenode_port(number)}" for number in (1, 0))
    by_option = open_store("hdfs://anything", {"namenodes": namenodes})
    by_directory = open_store(cluster.uri, {"config_dir": str(cluster.config_dir)})
    options = make_options()
    with make_source(b"there") as source:
        await by_option.put("k", source, options)
    assert await by_option.lookup_written("k", options.token) is not None
    fingerprint = await get_fingerprint(by_option, "k")
    assert await read(by_directory, "k", fingerprint) == b"there"
    cluster.kill("namenode-0")
    await fails_in_time(by_option.stat("k"), errors.StoreUnavailable, 10)
    cluster.make_active(1)
    for ufs in (by_option, by_directory):
        assert await read(ufs, "k", fingerprint) == b"there"
    with make_source(b"after") as source:
        await by_directory.put("k", source, make_options(), expected=Expected(fingerprint))


async def test_dead_datanodes(open_store: Open, large_server: HdfsServer) -> None:
    cluster = large_server.cluster
    data = make_data(3 << 20)
    large_server.put("/blocks", data, blocksize=1 << 20)
    cluster.wait_copies("/blocks", 2)
    ufs = open_store(cluster.uri, {"timeout_s": "1", "config_dir": str(cluster.config_dir)}, io_timeout_s=10)
    fingerprint = await get_fingerprint(ufs, "blocks")
    for number in (0, 1):
        with cluster.frozen(f"datanode-{number}"):
            assert await read(ufs, "blocks", fingerprint) == data
    cluster.kill("datanode-0")
    assert await read(ufs, "blocks", fingerprint) == data
    cluster.kill("datanode-1")
    await fails_in_time(read(ufs, "blocks", fingerprint), errors.StoreUnavailable, 10)
    cluster.start_datanode(1)
    end_s = time.monotonic() + 60
    while True:
        try:
            assert await read(ufs, "blocks", fingerprint) == data
            break
        except errors.StoreUnavailable:
            assert time.monotonic() < end_s
            await asyncio.sleep(0.2)


async def test_kerberos(open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_kdc(tmp_path / "kdc", "nn/localhost", "dn/localhost", "HTTP/localhost", "alice") as kdc:
        settings = {
            "hadoop.security.authentication": "kerberos",
            "dfs.namenode.kerberos.principal": "nn/localhost@TEST",
            "dfs.namenode.keytab.file": str(kdc.get_keytab("nn")),
            "dfs.datanode.kerberos.principal": "dn/localhost@TEST",
            "dfs.datanode.keytab.file": str(kdc.get_keytab("dn")),
            "dfs.web.authentication.kerberos.principal": "HTTP/localhost@TEST",
            "dfs.web.authentication.kerberos.keytab": str(kdc.get_keytab("HTTP")),
            "dfs.block.access.token.enable": "true",
            "dfs.data.transfer.protection": "privacy",
            "ignore.secure.ports.for.testing": "true",
            "dfs.permissions.enabled": "false",
        }
        monkeypatch.setenv("KRB5_CONFIG", str(kdc.config))
        with start_hdfs_server(settings=settings, jvm_options=(f"-Djava.security.krb5.conf={kdc.config}",)) as server:
            uri = f"hdfs://localhost:{server.cluster.namenode_port}"
            without = open_store(uri, {"user": "alice"})
            with pytest.raises(errors.StoreUnavailable):
                await without.check()
            await without.close()
            directory = {"config_dir": str(server.cluster.config_dir)}
            alice = {"principal": "alice@TEST"}
            bob = {"principal": "bob@TEST", "keytab": str(kdc.get_keytab("alice"))}
            with pytest.raises(errors.StoreDenied):
                await open_store(uri, directory | bob).check()
            ticket = kdc.get_ticket("alice")
            ways = [alice | {"keytab": str(kdc.get_keytab("alice"))}, alice | {"ticket_cache": ticket}, {}]
            monkeypatch.setenv("KRB5CCNAME", ticket)
            for number, way in enumerate(ways):
                ufs = open_store(uri, directory | way)
                with make_source(b"%d" % number) as source:
                    await ufs.put("k", source, make_options())
                assert await read(ufs, "k", await get_fingerprint(ufs, "k")) == b"%d" % number
