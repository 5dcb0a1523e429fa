"""How gs:// and az:// mounts read their options, what they need installed, and what Azure's listings become."""

import base64
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alluxio_like import errors
from alluxio_like.types import Fingerprint, Kind
from alluxio_like.ufs.az_client import AzSettings, sign_by_key
from alluxio_like.ufs.az_listing import has_astral, is_ordered, parse_page
from alluxio_like.ufs.cloud import TokenSource
from alluxio_like.ufs.open import open_ufs, parse_uri, split_secrets
from alluxio_like.ufs.options import parse_options
from alluxio_like.ufs.rest import Request
from alluxio_like.ufs.threads import BlockingPool

KEY = base64.b64encode(b"a secret key of the account").decode()
VARIABLES = [
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT",
    "AZURE_STORAGE_ACCOUNT_KEY",
]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*VARIABLES, "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"]:
        monkeypatch.delenv(name, raising=False)


def open_store(uri: str, **options: str) -> Any:
    public, secret = split_secrets(parse_uri(uri).scheme, options)
    return open_ufs(uri, public, secrets=secret, on_request=lambda _op: None, io_timeout_s=5)


def make_az(**options: str) -> AzSettings:
    return AzSettings.make("container", parse_options("az", options), 30)


# -- what must be installed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "library", "needs", "needs_not"),
    [
        ("gs://bucket", "google.auth", {}, {"anonymous": "true"}),
        ("gs://bucket", "google.auth", {"service_account_file": "/key.json"}, {"access_token": "t"}),
        ("az://container", "azure.identity", {"account": "acc"}, {"account": "acc", "account_key": KEY}),
        ("az://container", "azure.identity", {"account": "acc", "client_id": "c"}, {"account": "acc", "sas_token": "sv=1"}),
    ],
)
async def test_a_missing_library_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, uri: str, library: str, needs: dict[str, str], needs_not: dict[str, str]
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    scheme = uri.partition(":")[0]
    with pytest.raises(errors.ConfigError) as caught:
        open_store(uri, **needs)
    assert library in str(caught.value) and f"pip install 'alluxio-like[{scheme}]'" in str(caught.value)
    await open_store(uri, **needs_not).close()


def test_importing_needs_none_of_them() -> None:
    code = (
        "import sys\n"
        "for name in ('google', 'azure', 'requests'): sys.modules[name] = None\n"
        "import alluxio_like, alluxio_like.ufs.open, alluxio_like.ufs.gs_writing, alluxio_like.ufs.az_writing\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# -- options ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "options", "words"),
    [
        ("gs", {"service_account_key": "{}", "access_token": "t"}, "only one of"),
        ("gs", {"access_token": "t", "anonymous": "true"}, "only one of"),
        ("gs", {"service_acount_file": "f"}, "did you mean service_account_file?"),
        ("az", {"account_key": KEY, "sas_token": "sv=1"}, "only one of"),
        ("az", {"client_secret": "s", "client_id": "c"}, "needs tenant_id"),
        ("az", {"endpoint": "acc.blob.core.windows.net"}, "https://HOST"),
    ],
)
def test_wrong_options_say_what_would_be_right(scheme: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        split_secrets(scheme, options)
    assert words in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "set the option account"),
        ({"account": "a", "account_key": "not base64!"}, "option account_key"),
        ({"connection_string": "hello"}, "AccountName="),
        ({"connection_string": "AccountName=a;BlobEndpoint=hello"}, "BlobEndpoint"),
    ],
)
def test_wrong_accounts_say_what_would_be_right(options: dict[str, str], words: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        make_az(**options)
    assert words in str(caught.value) and "not base64!" not in str(caught.value)


def test_secrets_are_separated() -> None:
    given = {"account": "a", "account_key": KEY, "timeout_s": "3"}
    assert split_secrets("az", given) == ({"account": "a", "timeout_s": "3"}, {"account_key": KEY})
    given = {"user_project": "p", "service_account_key": "{}"}
    assert split_secrets("gs", given) == ({"user_project": "p"}, {"service_account_key": "{}"})


@pytest.mark.parametrize(
    ("options", "endpoint", "path", "account"),
    [
        ({"account": "acc", "account_key": KEY}, "https://acc.blob.core.windows.net", "/container", "acc"),
        (
            {"account": "acc", "endpoint": "http://127.0.0.1:10000", "anonymous": "1"},
            "http://127.0.0.1:10000",
            "/acc/container",
            "acc",
        ),
        ({"account": "acc", "endpoint": "http://azurite:1", "sas_token": "s=1"}, "http://azurite:1", "/acc/container", "acc"),
        (
            {"endpoint": "https://acc.blob.core.chinacloudapi.cn", "anonymous": "1"},
            "https://acc.blob.core.chinacloudapi.cn",
            "/container",
            "acc",
        ),
        ({"connection_string": f"AccountName=acc;AccountKey={KEY}"}, "https://acc.blob.core.windows.net", "/container", "acc"),
        (
            {"connection_string": f"AccountName=acc;AccountKey={KEY};EndpointSuffix=x.y"},
            "https://acc.blob.x.y",
            "/container",
            "acc",
        ),
        (
            {"connection_string": "UseDevelopmentStorage=true"},
            "http://127.0.0.1:10000",
            "/devstoreaccount1/container",
            "devstoreaccount1",
        ),
    ],
)
def test_where_a_container_is(options: dict[str, str], endpoint: str, path: str, account: str) -> None:
    made = make_az(**options)
    assert (made.http.endpoint, made.path, made.account) == (endpoint, path, account)
    assert KEY not in repr(made) and repr(made.account_key) not in repr(made)


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "env")
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    made = make_az()
    assert (made.account, made.account_key) == ("env", base64.b64decode(KEY))
    made = make_az(sas_token="?sv=1&sig=x")
    assert (made.account, made.account_key, made.sas_token) == ("env", b"", "sv=1&sig=x")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=string;AccountKey={KEY}")
    assert make_az().account == "string"
    assert make_az(account="given", anonymous="true").account == "given"


async def test_wrong_google_keys() -> None:
    for options, words in [
        ({"service_account_file": "/nonexistent"}, "service_account_file: cannot be read"),
        ({"service_account_key": "secret text"}, "service_account_key: is no service account's key"),
        ({"service_account_key": '{"type": "service_account"}'}, "service_account_key: is no service account's key"),
    ]:
        ufs = open_store("gs://bucket", **options)
        with pytest.raises(errors.ConfigError) as caught:
            await ufs.check()
        assert words in str(caught.value) and "secret text" not in str(caught.value)
        await ufs.close()


async def test_no_google_credentials_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    ufs = open_store("gs://bucket")
    with pytest.raises(errors.StoreDenied, match="no Google credentials were found"):
        await ufs.check()
    await ufs.close()


# -- tokens ----------------------------------------------------------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    """Gives a token to who asks for one, and an empty listing to who shows it."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append(asked)  # type: ignore[attr-defined]
        self.reply(200, b'{"access_token": "fetched-token", "expires_in": 3600, "token_type": "Bearer"}')

    def do_GET(self) -> None:
        self.server.headers.append(self.headers)  # type: ignore[attr-defined]
        if "generation=" in self.path:
            self.reply(206, b"bytes", **{"Content-Range": "bytes 0-4/5", "x-goog-generation": "7", "ETag": '"1"'})
            return
        right = self.headers.get("Authorization") == "Bearer fetched-token"
        self.reply(200 if right else 401, self.server.listing if right else b"")  # type: ignore[attr-defined]

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, text in {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", **headers}.items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Not on the terminal."""


@pytest.fixture
def answers() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.asked, server.headers = [], []  # type: ignore[attr-defined]
        server.listing = b"{}"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_a_service_account_signs_in(answers: Any) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    endpoint = f"http://127.0.0.1:{answers.server_port}"
    pem = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {"client_email": "a@b", "token_uri": f"{endpoint}/token", "private_key": pem, "private_key_id": "1"}
    key = json.dumps({"type": "service_account", "project_id": "p", **account})
    ufs = open_store("gs://bucket", service_account_key=key, endpoint=endpoint)
    for _ in range(3):
        assert (await ufs.list_page("")).entries == ()
    assert len(answers.asked) == 1 and "jwt-bearer" in answers.asked[0]
    assert "PRIVATE KEY" not in f"{ufs!r} {vars(ufs)!r}"
    await ufs.close()


async def test_who_pays_is_said_with_every_request(answers: Any) -> None:
    endpoint = f"http://127.0.0.1:{answers.server_port}"
    ufs = open_store("gs://bucket", access_token="fetched-token", user_project="payer", endpoint=endpoint)
    await ufs.list_page("")
    assert [bytes(chunk) async for chunk in ufs.read("k", Fingerprint("7", 5), 0, 5)] == [b"bytes"]
    assert [headers["x-goog-user-project"] for headers in answers.headers] == ["payer", "payer"]
    assert [headers["Accept-Encoding"] for headers in answers.headers] == ["identity", "gzip"]
    await ufs.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1, its key beside it."""
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True, timeout=60)
    return certificate


async def test_tls_with_an_authority_of_its_own(answers: Any, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("tls.key"))
    answers.socket = context.wrap_socket(answers.socket, server_side=True)
    options = {"access_token": "fetched-token", "endpoint": f"https://127.0.0.1:{answers.server_port}"}
    for trust in ({"ca_file": str(certificate)}, {"verify": "false"}):
        counted: list[str] = []
        ufs = open_ufs("gs://bucket", {**options, **trust}, secrets={}, on_request=counted.append, io_timeout_s=60)
        await ufs.check()
        assert [bytes(chunk) async for chunk in ufs.read("k", Fingerprint("7", 5), 0, 5)] == [b"bytes"]
        assert counted == ["LIST", "GET"], "obstore failed and plain HTTP stood in for it"
        await ufs.close()
    for options_too, words in [({}, "ca_file"), ({"ca_file": "/nonexistent"}, "ca_file: cannot be read")]:
        ufs = open_store("gs://bucket", **options, **options_too)
        with pytest.raises(errors.AlluxioLikeError, match=words):
            await ufs.check()
        await ufs.close()


async def test_a_service_principal_signs_in(answers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Azure's own library talks to nobody but Microsoft, over HTTPS: what it would give is given here.)"""

    class Credential:
        def __init__(self, *given: str, **limits: Any) -> None:
            assert given == ("tenant", "client", "secret")

        def get_token(self, scope: str) -> Any:
            assert scope == "https://storage.azure.com/.default"
            return SimpleNamespace(token="fetched-token", expires_on=time.time() + 3600)

    monkeypatch.setattr("azure.identity.ClientSecretCredential", Credential)
    answers.listing = b"<EnumerationResults><Blobs/></EnumerationResults>"
    endpoint = f"http://127.0.0.1:{answers.server_port}"
    options = {"tenant_id": "tenant", "client_id": "client", "client_secret": "secret", "account": "acc", "endpoint": endpoint}
    ufs = open_store("az://container", **options)
    assert (await ufs.list_page("")).entries == ()
    await ufs.close()


async def test_tokens_are_renewed_in_time_and_after_a_refusal() -> None:
    pool = BlockingPool("test", 2)
    lifetimes = [timedelta(minutes=4), timedelta(hours=1), None]
    fetched: list[str] = []

    def fetch() -> tuple[str, datetime | None]:
        lifetime = lifetimes[len(fetched)]
        fetched.append(f"token-{len(fetched)}")
        return fetched[-1], datetime.now(UTC) + lifetime if lifetime else None

    tokens = TokenSource(fetch, pool, 5)
    assert (await tokens())["token"] == "token-0"  # it ends within five minutes
    assert [tokens.get()[0] for _ in range(3)] == ["token-1"] * 3
    tokens.forget()
    assert [tokens.get() for _ in range(3)] == [("token-2", None)] * 3
    pool.close()


# -- Azure's signature and listings ----------------------------------------------------------------------------------------------


def test_headers_are_signed_in_the_services_order() -> None:
    """Held against Microsoft's own, whose order differs from that of bytes where names have underscores."""
    from azure.storage.blob._shared.authentication import _storage_header_sort

    names = [
        "x-ms-date",
        "x-ms-meta-a_b",
        "x-ms-meta-a1",
        "x-ms-meta-ab",
        "x-ms-meta-_1",
        "x-ms-version",
        "x-ms-meta-a",
        "x-ms-blob-type",
    ]
    theirs = [name for name, _ in _storage_header_sort([(name, "v") for name in names])]
    ours = sorted(names, key=lambda name: name.replace("-", "").replace("_", "!"))
    assert ours == theirs
    signed = sign_by_key(Request("GET", "/c/k", [("comp", "list")], dict.fromkeys(names, "v")), "acc", b"key")
    assert (
        signed.headers["Authorization"].startswith("SharedKey acc:")
        and len(base64.b64decode(signed.headers["Authorization"][14:])) == 32
    )


def make_page(*names: str) -> bytes:
    blobs = "".join(
        f"<Blob>{name}<Properties><Etag>1</Etag><Content-Length>1</Content-Length></Properties></Blob>" for name in names
    )
    return f"<EnumerationResults><Blobs>{blobs}<BlobPrefix><Name>p/d/</Name></BlobPrefix></Blobs></EnumerationResults>".encode()


def test_names_that_xml_does_not_have() -> None:
    page = parse_page(
        make_page('<Name Encoded="true">p/a%EF%BF%BFb</Name>', "<Name>p/&lt;%41</Name>", "<Name>p/</Name>"), "p/", "s"
    )
    assert [(entry.name, entry.kind) for entry in page.entries] == [
        ("<%41", Kind.FILE),
        ("a\uffffb", Kind.FILE),
        ("d", Kind.DIRECTORY),
    ]
    with pytest.raises(errors.StoreProtocol):
        parse_page(make_page("<Name>other</Name>"), "p/", "s")


def test_orders_are_told_apart() -> None:
    page = parse_page(make_page("<Name>p/\U0001f600</Name>", "<Name>p/\ufb01</Name>"), "p/", "s")
    assert [entry.name for entry in page.entries] == ["d", "\ufb01", "\U0001f600"]
    assert has_astral(page.entries) and not has_astral(page.entries[:2])
    assert is_ordered(page.entries, "c") and not is_ordered(page.entries, "d/") and not is_ordered(page.entries, "e")
