"""CephFS beyond what all stores must do: other clients, wrong settings, and a cluster or a helper process that is gone."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind
from alluxio_like.ufs.api import Ufs
from alluxio_like.ufs.open import open_ufs
from alluxio_like.ufs.writing import WriteOptions, get_writable
from tests.conformance.stores import make_source
from tests.servers.ceph import Cluster, install_packages
from tests.servers.fixtures_cephfs import CephFsServer, start_cephfs_server
from tests.servers.processes import freeze

pytestmark = pytest.mark.server


def open_store(server: CephFsServer, root: str, *, io_timeout_s: float = 20, **options: str) -> Ufs:
    return open_ufs(
        server.get_uri(root), {**server.options, **options}, secrets={}, on_request=lambda _op: None, io_timeout_s=io_timeout_s
    )


@pytest.fixture
async def ufs(cephfs_server: CephFsServer, cephfs_root: str) -> AsyncIterator[Ufs]:
    made = open_store(cephfs_server, cephfs_root)
    yield made
    await made.close()


async def read(ufs: Ufs, key: str, fingerprint: Fingerprint) -> bytes:
    return b"".join([bytes(chunk) async for chunk in ufs.read(key, fingerprint, 0, fingerprint.size)])


async def get_fingerprint(ufs: Ufs, key: str) -> Fingerprint:
    found = (await ufs.stat(key)).fingerprint
    assert found is not None
    return found


def get_helpers() -> set[int]:
    """Pids of helper processes that this process has started and that have not ended."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if b"cephfs_helper" in command and parent == os.getpid():
            found.add(int(path.name))
    return found


def is_dead(pid: int) -> bool:
    """Whether a process has ended with all its threads: one that is only ending may still take a call, which then fails."""
    try:
        threads = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return not Path(f"/proc/{pid}").exists()
    return threads in ([], ["Z"])


async def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


# -- what is there ---------------------------------------------------------------------------------------------------------------


async def test_links_and_snapshots_are_not_there(ufs: Ufs, cephfs_server: CephFsServer, cephfs_root: str) -> None:
    client = cephfs_server.client
    client.put(f"{cephfs_root}/dir/file", b"x")
    client.call("link", "file", f"{cephfs_root}/dir/link")
    client.call("link", "dir", f"{cephfs_root}/out")
    client.call("link", "/", f"{cephfs_root}/root")
    client.call("make_directories", f"{cephfs_root}/dir/.snap/before")
    page = await ufs.list_page("dir/")
    assert [entry.name for entry in page.entries] == ["file"]
    assert page.left_out == 1
    assert (await ufs.list_page("")).left_out == 2
    for key in ("dir/link", "out/file", ".snap", "dir/.snap/before/file", "root/x", "../x"):
        with pytest.raises(errors.NotFound):
            await ufs.stat(key)
    for prefix in ("out/", "root/", "dir/.snap/", "../"):
        with pytest.raises(errors.NotFound):
            await ufs.list_page(prefix)


async def test_what_another_client_has_not_synced_is_seen(ufs: Ufs, cephfs_server: CephFsServer, cephfs_root: str) -> None:
    client = cephfs_server.client
    client.put(f"{cephfs_root}/k", b"0123456789")
    before = await get_fingerprint(ufs, "k")
    assert await read(ufs, "k", before) == b"0123456789"
    client.call("open_and_write", f"{cephfs_root}/k", b"abc", 10)
    after = await get_fingerprint(ufs, "k")
    assert after != before and after.size == 13
    assert await read(ufs, "k", after) == b"0123456789abc"
    with pytest.raises(errors.Stale):
        await read(ufs, "k", before)
    # As often as it is asked: each write counts, also within one tick of any clock.
    seen = {after}
    for number in range(5):
        client.call("open_and_write", f"{cephfs_root}/k", b"%d" % number, 0)
        seen.add(await get_fingerprint(ufs, "k"))
    assert len(seen) == 6


async def test_a_change_in_place_between_chunks_is_stale(ufs: Ufs, cephfs_server: CephFsServer, cephfs_root: str) -> None:
    cephfs_server.client.put(f"{cephfs_root}/k", bytes(9 << 20))
    fingerprint = await get_fingerprint(ufs, "k")
    got = 0
    with pytest.raises(errors.Stale):
        async for chunk in ufs.read("k", fingerprint, 0, fingerprint.size):
            if not got:
                cephfs_server.client.call("write", f"{cephfs_root}/k", b"x", 8 << 20)
            got += len(chunk)
    assert got < fingerprint.size


async def test_a_large_directory_comes_in_order(ufs: Ufs, cephfs_server: CephFsServer, cephfs_root: str) -> None:
    for number in range(300):
        cephfs_server.client.call("write", f"{cephfs_root}/{number * 7919 % 1000:04d}" + "x" * 240, b"")
    names: list[str] = []
    token = None
    while True:
        page = await ufs.list_page("", token, max_entries=70)
        names += [entry.name for entry in page.entries]
        assert all(entry.kind is Kind.FILE and entry.fingerprint is not None for entry in page.entries)
        token = page.token
        if token is None:
            break
    assert names == sorted(f"{number * 7919 % 1000:04d}" + "x" * 240 for number in range(300))


async def test_a_root_that_is_removed_and_made_again(ufs: Ufs, cephfs_server: CephFsServer, cephfs_root: str) -> None:
    await ufs.check()
    cephfs_server.client.call("remove_directory", cephfs_root)
    with pytest.raises(errors.StoreMissing, match="there is no"):
        await ufs.list_page("")
    cephfs_server.client.put(f"{cephfs_root}/new", b"1")
    end = time.monotonic() + 60
    while True:
        try:
            entries = (await ufs.list_page("")).entries
            break
        except errors.StoreMissing:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
    assert [entry.name for entry in entries] == ["new"]


# -- wrong settings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"conf": "/no/such/ceph.conf"}, errors.ConfigError, "cannot be read.*/no/such/ceph.conf"),
        ({"keyring": "/no/such/keyring"}, errors.ConfigError, "keyring cannot be read"),
        ({"user": "nobody"}, errors.StoreError, "client.nobody"),
        ({"key": "AQCv1Z5lAAAAABAAIS0nLmTqv2VxKkE0eRrAZg=="}, errors.StoreDenied, "refuses client.admin: is its key right"),
        ({"fs": "another"}, errors.ConfigError, "fs is given in the URI and"),
    ],
)
async def test_wrong_settings_are_told_in_one_line(
    cephfs_server: CephFsServer, cephfs_root: str, options: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        made = open_store(cephfs_server, cephfs_root, **options)
        try:
            await made.check()
        finally:
            await made.close()
    assert "\n" not in str(raised.value) and "AQCv1" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("cephfs://another/", "there is no file system named another"),
        ("cephfs:///no/such/directory", "there is no such directory in the file system: /no/such/directory"),
    ],
)
async def test_what_is_not_there_is_told(cephfs_server: CephFsServer, uri: str, message: str) -> None:
    made = open_ufs(uri, cephfs_server.options, secrets={}, on_request=lambda _op: None, io_timeout_s=20)
    with pytest.raises(errors.StoreMissing, match=message):
        await made.check()
    await made.close()


async def test_monitors_and_key_without_a_configuration_file(cephfs_server: CephFsServer, cephfs_root: str) -> None:
    cephfs_server.client.put(f"{cephfs_root}/k", b"1")
    cluster = cephfs_server.cluster
    keyring = cluster.make_client("reader", mon="allow r", mds=f"allow r path={cephfs_root}", osd="allow r")
    port = cluster.monitors.partition("v1:127.0.0.1:")[2].partition("/")[0]
    options = {"user": "reader", "keyring": keyring, "conf": "/dev/null", "fs": "cephfs"}
    made = open_ufs(f"cephfs://127.0.0.1:{port}{cephfs_root}", options, secrets={}, on_request=lambda _op: None, io_timeout_s=20)
    assert await read(made, "k", await get_fingerprint(made, "k")) == b"1"
    await made.close()
    outside = open_ufs(
        "cephfs:///",
        {**cephfs_server.options, "user": "reader", "keyring": keyring},
        secrets={},
        on_request=lambda _: None,
        io_timeout_s=20,
    )
    with pytest.raises(errors.StoreDenied, match="may it mount /"):
        await outside.check()
    await outside.close()


# -- the helper process ----------------------------------------------------------------------------------------------------------


async def test_helpers_end_with_the_store(cephfs_server: CephFsServer, cephfs_root: str) -> None:
    before = get_helpers()
    made = open_store(cephfs_server, cephfs_root)
    await made.check()
    assert get_helpers() - before
    await made.close()
    await wait_for(lambda: not get_helpers() - before)


async def test_helpers_end_with_a_process_that_is_killed(cephfs_server: CephFsServer, cephfs_root: str) -> None:
    program = (
        "import asyncio, os, pathlib, sys\n"
        "from alluxio_like.ufs.open import open_ufs\n"
        "async def main():\n"
        "    made = open_ufs(sys.argv[1], {'conf': sys.argv[2]}, secrets={}, on_request=lambda _op: None, io_timeout_s=20)\n"
        "    await made.check()\n"
        "    print(pathlib.Path(f'/proc/self/task/{os.getpid()}/children').read_text(), flush=True)\n"
        "    await asyncio.sleep(100)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, cephfs_server.get_uri(cephfs_root), cephfs_server.options["conf"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        helper = int(process.stdout.readline())
        assert b"cephfs_helper" in Path(f"/proc/{helper}/cmdline").read_bytes()
        process.kill()
        process.wait(60)
    await wait_for(lambda: not Path(f"/proc/{helper}/cmdline").exists() or not Path(f"/proc/{helper}/cmdline").read_bytes())


# -- a cluster that is gone ------------------------------------------------------------------------------------------------------

TIMEOUT_S = 6.0


@pytest.fixture(scope="module")
def own_server() -> Iterator[CephFsServer]:
    """A cluster that tests may stop."""
    install_packages()
    with tempfile.TemporaryDirectory(prefix="ceph-", ignore_cleanup_errors=True) as root:
        cluster = Cluster(Path(root) / "c", size_bytes=1 << 30, die_with_parent=True, with_gateway=False)
        try:
            cluster.start()
            with start_cephfs_server(cluster) as server:
                server.client.put("/k", os.urandom(24 << 20))
                # What a killed helper was writing to stalls others for 30 s: so nothing else is in that directory.
                server.client.call("make_directories", "/writes")
                yield server
        finally:
            cluster.stop()


@asynccontextmanager
async def open_own(server: CephFsServer, root: str = "/", io_timeout_s: float = TIMEOUT_S) -> AsyncIterator[Ufs]:
    ufs = open_store(server, root, io_timeout_s=io_timeout_s)
    try:
        yield ufs
    finally:
        await ufs.close()


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


async def retry(call: Callable[[], Any], timeout_s: float = 120) -> Any:
    end = time.monotonic() + timeout_s
    while True:
        try:
            return await call()
        except errors.StoreUnavailable:
            assert time.monotonic() < end
            await asyncio.sleep(0.1)


async def test_a_helper_that_dies_is_replaced(own_server: CephFsServer) -> None:
    async with open_own(own_server) as ufs:
        fingerprint = await get_fingerprint(ufs, "k")
        before = get_helpers()
        got = 0
        async for chunk in ufs.read("k", fingerprint, 0, fingerprint.size):
            if not got:
                for pid in before:
                    os.kill(pid, signal.SIGKILL)
                await wait_for(lambda: all(is_dead(pid) for pid in before))
            got += len(chunk)  # the read goes on with another helper
        assert got == fingerprint.size
        assert get_helpers() and not get_helpers() & before


async def test_a_helper_that_dies_under_a_call_fails_that_call(own_server: CephFsServer) -> None:
    await wait_for(lambda: not get_helpers())  # those of stores that others closed
    async with open_own(own_server) as ufs:
        await ufs.check()
        (pid,) = get_helpers()
        freeze(pid)
        call = asyncio.create_task(ufs.check())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(errors.StoreUnavailable, match="process that talks to the Ceph cluster ended"):
            await call
        await ufs.check()


async def test_an_osd_that_hangs_in_the_middle_of_a_read(own_server: CephFsServer) -> None:
    async with open_own(own_server) as ufs:
        fingerprint = await get_fingerprint(ufs, "k")
        try:
            async with within(TIMEOUT_S + 30):
                with pytest.raises(errors.StoreUnavailable, match="no answer from the Ceph cluster within 6 s"):
                    async with aclosing(ufs.read("k", fingerprint, 0, fingerprint.size)) as chunks:  # type: ignore[type-var]
                        async for _ in chunks:
                            own_server.cluster.signal_daemon("osd", signal.SIGSTOP)
        finally:
            own_server.cluster.signal_daemon("osd", signal.SIGCONT)
        assert len(await retry(lambda: read(ufs, "k", fingerprint))) == fingerprint.size


async def test_a_store_with_hanging_calls_is_closed_at_once(own_server: CephFsServer) -> None:
    async with open_own(own_server, io_timeout_s=100) as ufs:
        fingerprint = await get_fingerprint(ufs, "k")
        own_server.cluster.signal_daemon("osd", signal.SIGSTOP)
        try:
            call = asyncio.create_task(read(ufs, "k", fingerprint))
            await asyncio.sleep(0.1)
            async with within(50):
                await ufs.close()
            with pytest.raises(errors.StoreUnavailable):
                await call
        finally:
            own_server.cluster.signal_daemon("osd", signal.SIGCONT)


async def test_a_monitor_that_hangs(own_server: CephFsServer) -> None:
    async with open_own(own_server) as ufs, open_own(own_server) as late:
        fingerprint = await get_fingerprint(ufs, "k")
        own_server.cluster.signal_daemon("mon", signal.SIGSTOP)
        try:
            assert len(await read(ufs, "k", fingerprint)) == fingerprint.size  # who has mounted goes on
            async with within(TIMEOUT_S + 30):
                with pytest.raises(errors.StoreUnavailable, match="Ceph cluster"):
                    await late.check()
        finally:
            own_server.cluster.signal_daemon("mon", signal.SIGCONT)
        await retry(late.check)


async def test_a_metadata_server_that_is_killed(own_server: CephFsServer) -> None:
    async with open_own(own_server) as ufs:
        fingerprint = await get_fingerprint(ufs, "k")
        own_server.cluster.kill_daemon("mds")
        async with within(TIMEOUT_S + 30):
            with pytest.raises(errors.StoreUnavailable):
                await ufs.stat("another")
        own_server.cluster.start_daemon("mds")
        assert await retry(lambda: get_fingerprint(ufs, "k")) == fingerprint
        assert len(await retry(lambda: read(ufs, "k", fingerprint))) == fingerprint.size


async def test_a_write_that_hangs_is_not_seen(own_server: CephFsServer) -> None:
    async with open_own(own_server, "/writes") as ufs:
        writable = get_writable(ufs)
        token = "5" * 32
        await ufs.check()
        own_server.cluster.signal_daemon("osd", signal.SIGSTOP)
        try:
            with make_source(os.urandom(5 << 20)) as source:
                async with within(TIMEOUT_S + 30):
                    with pytest.raises(errors.StoreUnavailable):
                        await writable.put("new", source, WriteOptions(token))
        finally:
            own_server.cluster.signal_daemon("osd", signal.SIGCONT)
        assert await retry(lambda: writable.lookup_written("new", token)) is None
        with pytest.raises(errors.NotFound):
            await ufs.stat("new")
        for left in await retry(lambda: writable.list_uploads("")):
            await retry(lambda left=left: writable.abort_upload(left))
        with make_source(b"once more") as source:
            await retry(lambda: writable.put("new", source, WriteOptions(token)))
        assert own_server.client.call("read", b"/writes/new") == "once more"
        await writable.delete("new")


async def test_a_cluster_that_dies_in_the_middle_of_a_read(own_server: CephFsServer) -> None:
    async with open_own(own_server) as ufs:
        fingerprint = await get_fingerprint(ufs, "k")
        async with within(TIMEOUT_S + 30):
            with pytest.raises(errors.StoreUnavailable):
                async with aclosing(ufs.read("k", fingerprint, 0, fingerprint.size)) as chunks:  # type: ignore[type-var]
                    async for _ in chunks:
                        for name in ("osd", "mds", "mon"):
                            own_server.cluster.signal_daemon(name, signal.SIGKILL)
        async with within(2 * TIMEOUT_S + 30):
            with pytest.raises(errors.StoreUnavailable):
                await ufs.check()
