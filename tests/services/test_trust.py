"""Who is let in: certificates of both ends, tokens, and what is taken up of them while services run. Real gRPC on loopback."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from alluxio_like import certificates, errors, metrics
from alluxio_like.certificates import PemFiles, Renewed, read_validity
from alluxio_like.config import TlsConfig
from alluxio_like.rpc import trust
from alluxio_like.rpc.auth import Guard, needs_token, read_token, read_tokens
from alluxio_like.rpc.channel import open_channel
from alluxio_like.rpc.master_servicer import add_master_services
from alluxio_like.rpc.master_stub import MasterStub
from alluxio_like.rpc.server import RpcServer, create_server
from tests.certificates import Authority
from tests.fakes_rpc import TOKEN, FakeMaster, wait_until

AT_ONCE_S = 60.0
"""Far below what a call may take; a busy machine is slow."""
CALL_S = 200.0


@asynccontextmanager
async def serving(tls: TlsConfig | None, *, guard: Guard | None = None) -> AsyncIterator[RpcServer]:
    server = create_server("127.0.0.1:0", tls=tls, guard=guard)
    master = FakeMaster()
    add_master_services(server.grpc_server, namespace=master, mounts=master, workers=master, cache=master)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


async def call(address: str, tls: TlsConfig | None, token: str = "") -> int:
    channel = open_channel(address, tls=tls, token=token)
    try:
        return (await MasterStub(channel, timeout_s=CALL_S).stat_fs()).files
    finally:
        await channel.close()


async def expect_refusal(address: str, tls: TlsConfig | None, said: str) -> None:
    started = time.monotonic()
    with pytest.raises(errors.Untrusted) as caught:
        await call(address, tls)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"no call to the master at {address}: ")
    assert time.monotonic() - started < AT_ONCE_S


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake may take long on a busy machine."""
    monkeypatch.setattr(trust, "TRY_S", 30.0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_each_end_shows_a_certificate_that_the_other_accepts(authority: Authority, tmp_path: Path) -> None:
    server, client = authority.issue("server"), authority.issue("client")
    stranger = Authority(tmp_path, "other").issue("stranger").model_copy(update={"ca": authority.ca})
    expired = authority.issue("old", days=-1)
    async with serving(server) as running:
        address = running.address
        assert await call(address, client) == 0
        await expect_refusal(address, TlsConfig(ca=authority.ca), "it demands a certificate of its callers: set tls.certificate")
        await expect_refusal(address, stranger, "stranger.pem is to be signed by the authority that its tls.ca names")
        await expect_refusal(address, expired, f"which has expired: renew {expired.certificate}")
        await expect_refusal(
            address, client.model_copy(update={"ca": tmp_path / "other.pem"}), "of another authority than the one in"
        )
        await expect_refusal(address, None, "it speaks TLS, and we do not: set tls.ca")
    async with serving(expired) as running:
        await expect_refusal(running.address, client, "its certificate has expired: renew it there")
    async with serving(authority.issue("elsewhere", names="DNS:elsewhere,IP:192.0.2.1")) as running:
        await expect_refusal(running.address, client, "its certificate does not name 127.0.0.1: renew it with that address")
        assert await call(running.address, client.model_copy(update={"server_name": "elsewhere"})) == 0
        await expect_refusal(running.address, client.model_copy(update={"server_name": "other"}), "does not name other: renew it")
    async with serving(None) as running:
        await expect_refusal(running.address, client, "it does not speak TLS: leave tls.ca out")
        assert await call(running.address, None) == 0


async def test_clients_without_certificates_where_that_is_said(authority: Authority) -> None:
    server = authority.issue("server").model_copy(update={"client_auth": "off"})
    async with serving(server) as running:
        assert await call(running.address, TlsConfig(ca=authority.ca)) == 0
        await expect_refusal(running.address, None, "it speaks TLS, and we do not")


async def test_a_service_that_is_away_is_waited_for_all_the_same(authority: Authority) -> None:
    client = authority.issue("client")
    channel = open_channel("127.0.0.1:1", tls=client)
    with pytest.raises(errors.Unavailable) as caught:
        await MasterStub(channel, timeout_s=0.5).stat_fs()
    assert not isinstance(caught.value, errors.Untrusted)
    await channel.close()


@pytest.fixture
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "LOOK_S", 0.0)


@pytest.mark.usefixtures("looking_often")
async def test_renewed_certificates_are_taken_up_and_calls_under_way_end_well(authority: Authority, tmp_path: Path) -> None:
    server = create_server("127.0.0.1:0", tls=authority.issue("server"))
    master = FakeMaster()
    add_master_services(server.grpc_server, namespace=master, mounts=master, workers=master, cache=master)
    await server.start()
    client = authority.issue("client")
    kept = tmp_path / "kept.pem"
    kept.write_bytes(authority.ca.read_bytes())
    channel = open_channel(server.address, tls=client)
    stub = MasterStub(channel, timeout_s=CALL_S)
    assert (await stub.stat_fs()).files == 0
    master.delay_s = 1.0
    under_way = asyncio.create_task(stub.resolve_path("/slow"))
    await wait_until(lambda: master.calls)
    # Another authority altogether: nothing of before is accepted any more.
    again = Authority(tmp_path)
    again.issue("server")
    again.issue("client")
    master.delay_s = 0.0
    assert (await stub.stat_fs()).files == 0
    assert await under_way is not None
    assert not channel._older
    await expect_refusal(server.address, client.model_copy(update={"ca": kept}), "of another authority")
    await channel.close()
    await server.stop(0)


@pytest.mark.usefixtures("looking_often")
async def test_what_is_half_replaced_is_not_taken_up(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    tls = authority.issue("server")
    assert tls.certificate is not None
    files = PemFiles(tls.certificate, tls.key, tls.ca)
    before, certificate = files.get(), tls.certificate.read_bytes()
    assert files.get() is before
    authority.issue("server")
    newer = tls.certificate.read_bytes()
    tls.certificate.write_bytes(certificate)
    assert files.get() is before
    assert files.get() is before
    assert [record for record in caplog.records if "stays in use" in record.message] == caplog.records[-1:]
    tls.certificate.write_bytes(newer)
    assert files.get().certificate == newer
    tls.certificate.unlink()
    assert files.get().certificate == newer


def test_files_that_cannot_be_used_are_said_at_the_start(authority: Authority, tmp_path: Path) -> None:
    tls = authority.issue("server")
    other = authority.issue("other")
    with pytest.raises(errors.ConfigError, match=r"other.key is not the key of the certificate .*server.pem"):
        create_server("127.0.0.1:0", tls=tls.model_copy(update={"key": other.key}))
    with pytest.raises(errors.ConfigError, match=r"no authority is named that signs them: set tls\.ca"):
        create_server("127.0.0.1:0", tls=tls.model_copy(update={"ca": None}))
    (tmp_path / "empty").touch()
    with pytest.raises(errors.ConfigError, match="holds no PEM certificate"):
        open_channel("127.0.0.1:1", tls=TlsConfig(ca=tmp_path / "empty"))
    with pytest.raises(errors.ConfigError, match="no PEM certificate, or"):
        create_server("127.0.0.1:0", tls=tls.model_copy(update={"certificate": tmp_path / "empty"}))
    with pytest.raises(ValueError, match="PEM"):
        read_validity(tmp_path / "empty")


# Tokens


def write_tokens(file: Path, text: str) -> Path:
    file.touch(0o600)
    file.write_text(text)
    return file


@pytest.mark.usefixtures("looking_often")
async def test_reading_may_ask_for_a_token_too(tmp_path: Path) -> None:
    file = write_tokens(tmp_path / "clients", "one-of-them\n\nanother\n")
    async with serving(None, guard=Guard(TOKEN, file)) as running:
        for token in ("one-of-them", "another", TOKEN):
            assert await call(running.address, None, token) == 0
        for token in ("", "wrong", "one-of-them another"):
            with pytest.raises(errors.AccessDenied, match="this cluster asks its clients for a token"):
                await call(running.address, None, token)
        # A client's token is not the cluster's.
        channel = open_channel(running.address, token="another")
        with pytest.raises(errors.AccessDenied, match="the cluster's token is missing or wrong"):
            await MasterStub(channel).unmount("/data")
        await channel.close()
        write_tokens(file, "another\nnew\n")
        assert await call(running.address, None, "new") == 0
        with pytest.raises(errors.AccessDenied):
            await call(running.address, None, "one-of-them")
        # A file that is gone, or open to others, changes nothing.
        file.chmod(0o644)
        assert await call(running.address, None, "new") == 0
        file.unlink()
        assert await call(running.address, None, "another") == 0


def test_without_a_cluster_token_nobody_has_it(tmp_path: Path) -> None:
    for guard in (Guard(""), Guard("", write_tokens(tmp_path / "clients", "a\n"))):
        for shown in ("", "a", b""):
            with pytest.raises(errors.AccessDenied, match="the cluster's token"):
                guard.check("/alluxio_like.rpc.v1.Mounts/Mount", shown)
    with pytest.raises(errors.ConfigError, match="No such file"):
        Guard("", tmp_path / "none")


def test_files_of_tokens(tmp_path: Path) -> None:
    file = write_tokens(tmp_path / "tokens", " a \nb\n")
    assert read_tokens(file) == ("a", "b")
    with pytest.raises(errors.ConfigError, match="2 lines"):
        read_token(file)


def test_renewed_reads_only_what_has_changed(tmp_path: Path) -> None:
    file, now, reads = tmp_path / "file", [0.0], []
    file.write_text("a")

    def read() -> str:
        reads.append(1)
        return file.read_text()

    kept: Renewed[str] = Renewed([file], read, monotonic=lambda: now[0])
    assert (kept.get(), len(reads)) == ("a", 1)
    file.write_text("bb")
    assert kept.get() == "a"
    now[0] = certificates.LOOK_S + 0.1
    assert (kept.get(), kept.get(), len(reads)) == ("bb", "bb", 2)


# HTTP


def ask(url: str, ca: Path | None = None) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(ca)) if ca is not None else None
    try:
        with urlopen(url, timeout=60, context=context) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.usefixtures("looking_often")
def test_https_shows_the_renewed_certificate_and_asks_for_none(authority: Authority) -> None:
    tls = authority.issue("server")
    server = metrics.start_http(
        "127.0.0.1:0", metrics.Metrics(), lambda: metrics.Health(True, {}), certificate=tls.certificate, key=tls.key
    )
    assert server is not None
    try:
        _, _, port = server.address.rpartition(":")
        assert ask(f"{server.url}/healthz", tls.ca)[0] == 200
        first = ssl.get_server_certificate(("127.0.0.1", int(port)))
        authority.issue("server")
        assert ssl.get_server_certificate(("127.0.0.1", int(port))) != first
        assert ask(f"{server.url}/healthz", tls.ca)[0] == 200
    finally:
        server.close()


@pytest.mark.parametrize(
    ("caller", "called", "here"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("10.0.0.5", "10.0.0.5", True),
        ("::1", "::1", True),
        ("10.0.0.6", "10.0.0.5", False),
        ("2001:db8::1", "2001:db8::2", False),
        ("::ffff:10.0.0.6", "::ffff:10.0.0.5", False),
        ("", "", False),
    ],
)
def test_who_is_on_this_machine(caller: str, called: str, *, here: bool) -> None:
    assert metrics.is_here(caller, called) is here


def test_pages_are_for_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    server = metrics.start_http(
        "127.0.0.1:0", metrics.Metrics(), lambda: metrics.Health(True, {}), pages={"/jobs.json": lambda _: {"files": ["secret"]}}
    )
    assert server is not None

    def is_here(_caller: str, _called: str) -> bool:
        return False

    try:
        assert ask(f"{server.url}/jobs.json") == (200, b'{"files": ["secret"]}\n')
        monkeypatch.setattr(metrics, "is_here", is_here)
        status, said = ask(f"{server.url}/jobs.json")
        assert (status, b"secret" in said, b"on its own machine alone" in said) == (403, False, True)
        assert ask(f"{server.url}/healthz")[0] == ask(f"{server.url}/metrics")[0] == 200
    finally:
        server.close()


def test_what_is_not_stored_yet_is_told_to_whoever_may_read() -> None:
    """`cache status` asks for it; all else that has to do with writing needs the cluster's token."""
    assert not needs_token("/alluxio_like.rpc.v1.Changes/ListUnpersisted")
    assert not needs_token("/alluxio_like.rpc.v1.Changes/GetXattrs")
    assert needs_token("/alluxio_like.rpc.v1.Changes/ListUnpersistedAndMore")
    assert needs_token("/alluxio_like.rpc.v1.Changes/Mkdir")
