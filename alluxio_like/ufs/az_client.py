"""How an az:// mount's options become clients of Azure Blob Storage: account, endpoint, credentials, TLS.

Owns the choice of credentials (account key, shared access signature, connection string, service principal, managed identity, what
Azure's own library finds, none), where each is looked for (options first, then the variables that adlfs and the az command read),
and the signature of a request by the account's key. azure-identity is needed only to sign in. `connect` blocks, so it runs in a
thread; what it returns may be used from any. Nothing secret is in a repr.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from obstore.store import AzureStore

from alluxio_like import errors
from alluxio_like.ufs.cloud import Clients, TokenSource, make_client_options, make_store
from alluxio_like.ufs.gs_client import make_http
from alluxio_like.ufs.options import OptionValue
from alluxio_like.ufs.rest import HttpSettings, Request, RestClient
from alluxio_like.ufs.threads import BlockingPool

API_VERSION = "2021-12-02"
"""Of the REST API: names that XML cannot carry come percent-encoded since 2021-02-12."""
_SCOPE = "https://storage.azure.com/.default"
_EMULATOR = {
    "AccountName": "devstoreaccount1",
    "AccountKey": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
    "BlobEndpoint": "http://127.0.0.1:10000/devstoreaccount1",
}
"""What every emulator of Azure has, and "UseDevelopmentStorage=true" stands for: public, no secret."""


@dataclass(frozen=True, slots=True)
class AzSettings:
    """A mount's options, typed. `base` is the path before the container: "", or the account where the host does not name it."""

    container: str
    account: str
    base: str
    http: HttpSettings
    io_timeout_s: float
    account_key: bytes = field(default=b"", repr=False)
    sas_token: str = field(default="", repr=False)
    tenant_id: str = ""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    anonymous: bool = False

    @classmethod
    def make(cls, container: str, values: Mapping[str, OptionValue], io_timeout_s: float) -> "AzSettings":
        """From options as `parse_options` gives them, and the environment. Raises ConfigError, and ImportError where signing in
        needs azure-identity and it is not there."""
        given = _collect(values)
        account = given.get("AccountName", "")
        endpoint = given.get("BlobEndpoint", "")
        if not account and not endpoint:
            raise errors.ConfigError(
                "set the option account: the storage account that has the container", subject=f"az://{container}"
            )
        url = endpoint or f"https://{account}.blob.{given.get('EndpointSuffix', 'core.windows.net')}"
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise errors.ConfigError("option connection_string: its BlobEndpoint is no URL")
        base = parts.path.rstrip("/")
        if not base and _is_local(parts.hostname or ""):
            base = f"/{account}"
        account = account or (base.strip("/") if base else (parts.hostname or "").partition(".")[0])
        made = cls(
            container=container,
            account=account,
            base=base,
            http=make_http(f"{parts.scheme}://{parts.netloc}", values, io_timeout_s),
            io_timeout_s=io_timeout_s,
            account_key=_decode_key(given.get("AccountKey", "")),
            sas_token=given.get("SharedAccessSignature", "").lstrip("?"),
            tenant_id=str(values.get("tenant_id", "")),
            client_id=str(values.get("client_id", "")),
            client_secret=str(values.get("client_secret", "")),
            anonymous=bool(values.get("anonymous", False)),
        )
        if made.signs_in:
            import azure.identity  # noqa: F401  the caller names the extra that brings it
        return made

    @property
    def signs_in(self) -> bool:
        """Whether requests carry a token rather than a key or a signature."""
        return not (self.anonymous or self.account_key or self.sas_token)

    @property
    def path(self) -> str:
        """The container's."""
        return f"{self.base}/{self.container}"


def connect(settings: AzSettings, pool: BlockingPool) -> Clients:
    """The clients. Blocks. Raises ConfigError, StoreDenied; talks to no store yet."""
    tokens = TokenSource(_make_fetch(settings), pool, settings.io_timeout_s) if settings.signs_in else None
    config: dict[str, Any] = {
        "account_name": settings.account,
        "container_name": settings.container,
        "endpoint": settings.http.endpoint + settings.base,
        "use_emulator": False,  # else a variable of the environment would
        "skip_signature": settings.anonymous,
    }
    # By a provider whatever it is: it goes before all that obstore finds in the environment by itself.
    provider: Any = tokens
    if settings.account_key:
        key = base64.b64encode(settings.account_key).decode()
        provider = lambda: {"access_key": key, "expires_at": None}  # noqa: E731
    elif settings.sas_token:
        provider = lambda: {"sas_token": settings.sas_token, "expires_at": None}  # noqa: E731
    store = make_store(
        AzureStore,
        config=config,
        client_options=make_client_options(settings.http, settings.io_timeout_s),
        retry_config={"max_retries": 0},
        credential_provider=provider,
    )
    return Clients(RestClient(settings.http), _make_signer(settings, tokens), store, tokens)


def sign_by_key(request: Request, account: str, key: bytes) -> Request:
    """The request, signed by the account's key ("Shared Key"); `x-ms-date` and `x-ms-version` must be among its headers."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    length = len(request.body) if request.body is not None else 0
    lines = [request.method, headers.get("content-encoding", ""), headers.get("content-language", ""), str(length or "")]
    lines += [headers.get(name, "") for name in ("content-md5", "content-type", "date")]
    lines += [
        headers.get(name, "") for name in ("if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range")
    ]
    # The service's own order: dashes do not count, and an underscore goes before digits.
    own = sorted((name for name in headers if name.startswith("x-ms-")), key=lambda name: name.replace("-", "").replace("_", "!"))
    lines += [f"{name}:{headers[name]}" for name in own]
    lines.append(f"/{account}{request.path}")
    lines += [f"{name.lower()}:{value}" for name, value in sorted(request.query)]
    text = "\n".join(lines).encode()
    signature = base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode()
    return replace(request, headers={**request.headers, "Authorization": f"SharedKey {account}:{signature}"})


def make_copy_source(settings: AzSettings, tokens: TokenSource | None, url: str, full_key: str) -> dict[str, str]:
    """The headers that let the service read a blob of ours at `url`, to copy it. Blocks where a token must be renewed."""
    if tokens is not None:
        return {"x-ms-copy-source": url, "x-ms-copy-source-authorization": f"Bearer {tokens.get()[0]}"}
    if settings.account_key:
        return {"x-ms-copy-source": f"{url}?{_sign_reading(settings, full_key)}"}
    return {"x-ms-copy-source": f"{url}?{settings.sas_token}" if settings.sas_token else url}


def make_batch_part(settings: AzSettings, tokens: TokenSource | None, path: str) -> str:
    """The request to remove one blob, as it stands in a batch: with a signature and without a version of its own."""
    headers = {"x-ms-date": format_datetime(datetime.now(UTC), usegmt=True)}
    if tokens is not None:
        headers["Authorization"] = f"Bearer {tokens.get()[0]}"
    request = Request("DELETE", path, (), headers)
    if settings.account_key:
        request = sign_by_key(request, settings.account, settings.account_key)
    elif settings.sas_token:
        request = replace(request, query=_split_sas(settings.sas_token))
    lines = [f"DELETE {request.target} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items())]
    return "\r\n".join([*lines, "Content-Length: 0", "", ""])


def _split_sas(token: str) -> list[tuple[str, str]]:
    return parse_qsl(token.replace("+", "%2B"))


def _sign_reading(settings: AzSettings, full_key: str) -> str:
    """A shared access signature for reading one blob, for an hour."""
    ends = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    place = f"/blob/{settings.account}/{settings.container}/{full_key}"
    # In this order: permissions, start, end, what, policy, address, protocol, version, kind, snapshot, scope, five headers.
    fields = ["r", "", ends, place, "", "", "", API_VERSION, "b", "", "", "", "", "", "", ""]
    digest = hmac.digest(settings.account_key, "\n".join(fields).encode(), hashlib.sha256)
    signed = {"sp": "r", "se": ends, "sv": API_VERSION, "sr": "b", "sig": base64.b64encode(digest).decode()}
    return urlencode(signed)


def _make_signer(settings: AzSettings, tokens: TokenSource | None) -> Callable[[Request], Request]:
    def sign(request: Request) -> Request:
        headers = {"x-ms-version": API_VERSION, "x-ms-date": format_datetime(datetime.now(UTC), usegmt=True), **request.headers}
        if request.body is not None or request.method == "PUT":
            headers.setdefault("Content-Type", "application/octet-stream")
        if tokens is not None:
            headers["Authorization"] = f"Bearer {tokens.get()[0]}"
        stamped = replace(request, headers=headers)
        if settings.account_key:
            return sign_by_key(stamped, settings.account, settings.account_key)
        if settings.sas_token:
            return replace(stamped, query=[*request.query, *_split_sas(settings.sas_token)])
        return stamped

    return sign


def _make_fetch(settings: AzSettings) -> Callable[[], tuple[str, datetime | None]]:
    import azure.core.exceptions
    import azure.identity

    credential: Any
    limits: dict[str, Any] = {
        "connection_timeout": settings.http.stall_s,
        "read_timeout": settings.http.stall_s,
        "retry_total": 1,
    }
    if settings.client_secret:
        credential = azure.identity.ClientSecretCredential(
            settings.tenant_id, settings.client_id, settings.client_secret, **limits
        )
    else:
        credential = azure.identity.DefaultAzureCredential(
            exclude_interactive_browser_credential=True,
            managed_identity_client_id=settings.client_id or None,
            workload_identity_client_id=settings.client_id or None,
            **limits,
        )

    def fetch() -> tuple[str, datetime | None]:
        try:
            found = credential.get_token(_SCOPE)
        except (azure.core.exceptions.AzureError, ValueError):
            raise errors.StoreDenied(
                "no Azure credentials were found, or they were refused: set account_key, sas_token, client_id with tenant_id and "
                "client_secret, run az login, or set anonymous=true",
                subject=f"az://{settings.container}",
            ) from None
        return found.token, datetime.fromtimestamp(found.expires_on, UTC)

    return fetch


# -- pure helpers ----------------------------------------------------------------------------------------------------------------


def _collect(values: Mapping[str, OptionValue]) -> dict[str, str]:
    """Account, endpoint and key by the names of a connection string: from options, where none is given from the environment."""
    text = str(values.get("connection_string", ""))
    has_credentials = any(name in values for name in ("account_key", "sas_token", "anonymous", "client_id", "connection_string"))
    if not text and not has_credentials:
        text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    found = _parse_connection_string(text) if text else {}
    names = {
        "account": ("AccountName", ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")),
        "account_key": ("AccountKey", ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")),
        "sas_token": ("SharedAccessSignature", ("AZURE_STORAGE_SAS_TOKEN",)),
        "endpoint": ("BlobEndpoint", ()),
    }
    for option, (name, variables) in names.items():
        if option in values:
            found[name] = str(values[option])
        elif not text and (name == "AccountName" or not has_credentials):
            text_found = next((os.environ[variable] for variable in variables if os.environ.get(variable)), "")
            if text_found:
                found[name] = text_found
    return found


def _parse_connection_string(text: str) -> dict[str, str]:
    """The parts by name. Raises ConfigError, which repeats nothing of it."""
    found = dict(part.partition("=")[::2] for part in text.split(";") if part.strip())
    if found.get("UseDevelopmentStorage", "").lower() == "true":
        return dict(_EMULATOR)
    if not found.get("AccountName") and not found.get("BlobEndpoint"):
        raise errors.ConfigError(
            "option connection_string: it looks like DefaultEndpointsProtocol=https;AccountName=…;AccountKey=…;EndpointSuffix=…"
        )
    return found


def _decode_key(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise errors.ConfigError("option account_key: the key is given in base64, as the portal shows it") from None


def _is_local(host: str) -> bool:
    """Whether a host cannot name the account, which then stands in the path: an address, or a name without dots."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return True


def unquote_name(text: str) -> str:
    """A name that a listing gives percent-encoded."""
    return unquote(text, "utf-8", "surrogateescape")
