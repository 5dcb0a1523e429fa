"""The client's deterministic parts: what is remembered, how far is read ahead, whose memory it is; and days without a master."""

import contextlib
import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alluxio_like import errors
from alluxio_like.client import Client
from alluxio_like.client.readahead import NEVER, Budget, Pattern
from alluxio_like.config import ClientConfig, TlsConfig
from alluxio_like.metrics import Metrics
from alluxio_like.rpc.auth import read_token
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.master_servicer import add_master_services
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.server import create_server
from alluxio_like.types import PAGE_BYTES, InodeId
from tests.fakes_rpc import FakeMaster, make_entry, serve
from tests.servers.net import find_ports

# How far is read ahead


def read_all(pattern: Pattern, size: int, step: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Ranges that were read ahead and ranges that had to be asked for, of one sequential reader that is never too fast."""
    ahead: list[tuple[int, int]] = []
    asked: list[tuple[int, int]] = []
    reached = 0
    for offset in range(0, size, step):
        stop = min(size, offset + step)
        if stop > reached:
            pattern.miss(offset, stop)
            asked.append((max(offset, reached), stop))
            reached = stop
        elif stop > pattern.trigger:
            pattern.hit(stop)
        else:
            continue
        more = pattern.advance()
        if more is not None:
            ahead.append(more)
            reached = max(reached, more[1])
    return ahead, asked


def test_a_limit_holds_from_then_on() -> None:
    pattern = Pattern(1 << 30, 128 << 20)
    pattern.miss(0, 1 << 20)
    pattern.miss(1 << 20, 2 << 20)
    ranges = []
    for mib in range(2, 600):
        if mib == 100:
            pattern.limit(16 << 20)
        pattern.hit(mib << 20)
        if (mib << 20) > pattern.trigger and (more := pattern.advance()) is not None:
            ranges.append((mib, more[1] - (mib << 20)))
    assert max(ahead for mib, ahead in ranges if mib < 100) > 100 << 20
    late = [ahead for mib, ahead in ranges if mib > 100]
    assert late
    assert max(late) <= 16 << 20


@settings(max_examples=60)
@given(st.integers(9 << 20, 400 << 20), st.sampled_from([65536, 131072, 1 << 20, 3_000_000]), st.sampled_from([8, 64]))
def test_a_sequential_read_wants_every_byte_once(size: int, step: int, window_mib: int) -> None:
    ahead, asked = read_all(Pattern(size, window_mib << 20), size, step)
    position = 0
    for start, stop in sorted(ahead + asked):
        assert start == position
        position = stop
    assert position == size
    assert all(stop - start <= (window_mib << 20) for start, stop in ahead)
    assert len(asked) <= 4


@settings(max_examples=60)
@given(st.randoms(use_true_random=False))
def test_random_reads_want_nothing(chance: random.Random) -> None:
    pattern = Pattern(1 << 40, 64 << 20)
    for _ in range(50):
        offset = chance.randrange(0, 1 << 40, 64 << 20)
        pattern.miss(offset, offset + 4096)
        if pattern.trigger != NEVER:
            # Two in a row may happen to be neighbours.
            continue
        assert pattern.advance() is None


def test_reads_of_one_kernel_window_in_any_order_are_sequential() -> None:
    pattern = Pattern(1 << 30, 64 << 20)
    pattern.miss(0, PAGE_BYTES)
    for page in (2, 1, 4, 3):
        pattern.miss(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
    assert pattern.advance() is not None


def test_what_could_not_be_begun_is_wanted_again() -> None:
    pattern = Pattern(1 << 30, 64 << 20)
    pattern.miss(0, PAGE_BYTES)
    pattern.miss(PAGE_BYTES, 2 * PAGE_BYTES)
    first = pattern.advance()
    assert first is not None
    pattern.take_back(first[0])
    pattern.hit(2 * PAGE_BYTES + 10)
    assert pattern.trigger <= 2 * PAGE_BYTES + 10
    again = pattern.advance()
    assert again is not None
    assert again[0] <= first[0] + 10


def test_no_read_ahead_when_it_is_switched_off() -> None:
    assert read_all(Pattern(100 << 20, 0), 100 << 20, 1 << 20)[0] == []


def test_the_budget_is_never_exceeded_and_the_idlest_gives_back_first() -> None:
    budget = Budget(100)
    held = {"a": 0, "b": 0, "c": 0}
    order: list[str] = []

    def take(who: str, size: int) -> bool:
        def give_back() -> None:
            order.append(who)
            budget.release(held[who])
            held[who] = 0

        taken = budget.try_take(size, who, give_back)
        held[who] += size if taken else 0
        assert budget.used_bytes == sum(held.values()) <= 100
        return taken

    assert take("a", 40) and take("b", 40) and not take("a", 101)
    assert take("a", 10)
    assert take("c", 30)
    assert order == ["b"]
    assert take("c", 70)
    assert order == ["b", "a"]
    assert not take("c", 1)


# Without a master


async def test_what_is_known_is_served_while_the_master_is_away() -> None:
    master, metrics = FakeMaster(), Metrics()
    master.entries["f"] = make_entry("f", 5, 10)
    master.valid_s = 0.0
    # A port that no other process gets by chance while nobody listens there.
    async with serve(master=master, bind=f"127.0.0.1:{find_ports(1)[0]}") as server:
        client = Client.open(ClientConfig(master=server.address, io_timeout_s=5), metrics=metrics)
        entry = (await client.lookup_path("/f")).entry
    for _ in range(3):
        assert (await client.lookup_path("/f")).entry == entry
        assert (await client.get_entry(InodeId(5))).entry == entry
    assert metrics.registry.get_sample_value("alluxio_like_degraded") == 1
    with pytest.raises((errors.Unavailable, errors.TimedOut)):
        await client.lookup_path("/unknown")
    async with serve(master=master, bind=server.address):
        master.entries["f"] = make_entry("f", 6, 11)
        client._names.clear()
        assert (await client.lookup_path("/f")).entry == master.entries["f"]
        assert metrics.registry.get_sample_value("alluxio_like_degraded") == 0
        await client.close()


# TLS and tokens


@pytest.fixture
def certificates(tmp_path: Path) -> TlsConfig:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return TlsConfig(certificate=certificate, key=key, ca=certificate)


async def test_tls(certificates: TlsConfig, tmp_path: Path) -> None:
    master = FakeMaster()
    server = create_server("127.0.0.1:0", tls=certificates.model_copy(update={"client_auth": "off"}))
    add_master_services(server.grpc_server, namespace=master, mounts=master, workers=master, cache=master)
    await server.start()
    good = open_channel(server.address, tls=TlsConfig(ca=certificates.ca))
    assert (await MasterStub(good).stat_fs()).files == 0
    clear = open_channel(server.address)
    with pytest.raises(errors.Unavailable):
        await MasterStub(clear, timeout_s=0.5).stat_fs()
    await good.close()
    await clear.close()
    await server.stop(0)
    with pytest.raises(errors.ConfigError, match="cannot read"):
        create_server("127.0.0.1:0", tls=certificates.model_copy(update={"certificate": tmp_path / "none"}))
    with pytest.raises(errors.ConfigError, match="cannot read"):
        open_channel("127.0.0.1:1", tls=TlsConfig(ca=tmp_path / "none"))
    with pytest.raises(errors.ConfigError, match="both"):
        create_server("127.0.0.1:0", tls=TlsConfig(certificate=certificates.certificate, ca=certificates.ca))


def test_token_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(errors.ConfigError, match="No such file"):
        read_token(file)
    file.write_text("secret\n")
    file.chmod(0o644)
    with pytest.raises(errors.ConfigError, match="chmod 600"):
        read_token(file)
    file.chmod(0o600)
    assert read_token(file) == "secret"
    file.write_text("\n")
    with pytest.raises(errors.ConfigError, match="holds no token"):
        read_token(file)


@pytest.mark.parametrize(("mode", "works"), [(0o440, True), (0o444, False), (0o460, False)])
def test_a_group_may_read_roots_token_where_the_reader_is_not_root(tmp_path: Path, mode: int, works: bool) -> None:
    """As Kubernetes gives Secrets to pods."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    file = tmp_path / "token"
    file.write_text("secret")
    file.chmod(mode)
    os.chown(file, 0, 4711)
    with pytest.raises(errors.ConfigError, match="chmod 600"):
        read_token(file)
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)
    os.setegid(4711)
    os.seteuid(4712)
    try:
        with contextlib.nullcontext() if works else pytest.raises(errors.ConfigError, match="chmod 600"):
            assert read_token(file) == "secret"
    finally:
        os.seteuid(0)
        os.setegid(0)


async def test_a_call_after_close_says_so() -> None:
    async with serve(master=FakeMaster()) as server:
        channel = open_channel(server.address)
        stub = MasterStub(channel)
        await stub.stat_fs()
        await channel.close()
        await channel.close()
        with pytest.raises(errors.Cancelled, match="is closed"):
            await stub.stat_fs()
