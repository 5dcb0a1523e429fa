"""How a gs:// mount's options become clients of Google Cloud Storage: endpoint, credentials, TLS, who pays.

Owns the chain of credentials: a service account's key by file or text, an access token, none, or what Google's own library finds
(application default credentials: environment, gcloud, workload identity, the metadata service). google-auth is needed for all
but the token and none. `connect` blocks, so it runs in a thread; what it returns may be used from any. No secret is in a repr.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from obstore.store import GCSStore

from alluxio_like import errors
from alluxio_like.ufs.cloud import Clients, TokenSource, make_client_options, make_store
from alluxio_like.ufs.options import OptionValue
from alluxio_like.ufs.rest import HttpSettings, Request, RestClient
from alluxio_like.ufs.threads import BlockingPool

ENDPOINT = "https://storage.googleapis.com"
AS_STORED = {"Accept-Encoding": "gzip"}
"""Sent when an object is read: else GCS unpacks what was stored compressed, and the bytes are not those that were listed."""
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


@dataclass(frozen=True, slots=True)
class GsSettings:
    """A mount's options, typed."""

    bucket: str
    http: HttpSettings
    io_timeout_s: float
    service_account_file: str = ""
    service_account_key: str = field(default="", repr=False)
    access_token: str = field(default="", repr=False)
    anonymous: bool = False
    user_project: str = ""

    @classmethod
    def make(cls, bucket: str, values: Mapping[str, OptionValue], io_timeout_s: float) -> "GsSettings":
        """From options as `parse_options` gives them. Raises ConfigError where they need google-auth and it is not there."""
        http = make_http(str(values.get("endpoint", ENDPOINT)), values, io_timeout_s)
        known: dict[str, Any] = {name: values[name] for name in set(cls.__dataclass_fields__) & set(values)}
        made = cls(bucket=bucket, http=http, io_timeout_s=io_timeout_s, **known)
        if not made.anonymous and not made.access_token:
            import google.auth  # noqa: F401  the caller names the extra that brings it
        return made


def make_http(endpoint: str, values: Mapping[str, OptionValue], io_timeout_s: float) -> HttpSettings:
    """The options of a connection, which gs:// and az:// have in common."""
    return HttpSettings(
        endpoint,
        min(float(values.get("timeout_s", io_timeout_s / 3)), io_timeout_s),
        str(values.get("ca_file", "")),
        bool(values.get("verify", True)),
    )


def connect(settings: GsSettings, pool: BlockingPool) -> Clients:
    """The clients. Blocks. Raises ConfigError, StoreDenied; talks to no store yet."""
    fetch = _choose_fetch(settings)
    tokens = TokenSource(fetch, pool, settings.io_timeout_s) if fetch else None
    common = {"x-goog-user-project": settings.user_project} if settings.user_project else {}

    def sign(request: Request) -> Request:
        headers = {**common, **request.headers}
        if tokens is not None:
            headers["Authorization"] = f"Bearer {tokens.get()[0]}"
        return replace(request, headers=headers)

    store = make_store(
        GCSStore,
        config={"bucket": settings.bucket, "base_url": settings.http.endpoint, "skip_signature": tokens is None},
        client_options=make_client_options(settings.http, settings.io_timeout_s, {**common, **AS_STORED}),
        retry_config={"max_retries": 0},
        credential_provider=tokens,
    )
    return Clients(RestClient(settings.http), sign, store, tokens)


def _choose_fetch(settings: GsSettings) -> Callable[[], tuple[str, datetime | None]] | None:
    """What fetches tokens; None: none are sent."""
    if settings.anonymous:
        return None
    if settings.access_token:
        return lambda: (settings.access_token, None)
    import google.auth.exceptions
    import google.auth.transport.urllib3
    import urllib3

    credentials = _load_credentials(settings)
    transport = partial(
        google.auth.transport.urllib3.Request(urllib3.PoolManager()),  # type: ignore[no-untyped-call]
        timeout=settings.http.stall_s,
    )

    def fetch() -> tuple[str, datetime | None]:
        try:
            credentials.refresh(transport)
        except google.auth.exceptions.GoogleAuthError:
            raise errors.StoreDenied(
                "Google's credentials could not be fetched or renewed", subject=f"gs://{settings.bucket}"
            ) from None
        expiry = credentials.expiry
        return str(credentials.token), expiry.replace(tzinfo=UTC) if expiry else None

    return fetch


def _load_credentials(settings: GsSettings) -> Any:
    import google.auth
    import google.auth.exceptions
    from google.oauth2 import service_account

    try:
        if settings.service_account_key:
            info = json.loads(settings.service_account_key)
            return service_account.Credentials.from_service_account_info(info, scopes=[_SCOPE])  # type: ignore[no-untyped-call]
        if settings.service_account_file:
            path = settings.service_account_file
            return service_account.Credentials.from_service_account_file(path, scopes=[_SCOPE])  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError, AttributeError, google.auth.exceptions.GoogleAuthError) as error:
        name = "service_account_key" if settings.service_account_key else "service_account_file"
        why = "cannot be read" if isinstance(error, OSError) else "is no service account's key in JSON"
        raise errors.ConfigError(f"option {name}: {why}", subject=settings.service_account_file) from None
    try:
        return google.auth.default(scopes=[_SCOPE])[0]
    except google.auth.exceptions.GoogleAuthError:
        raise errors.StoreDenied(
            "no Google credentials were found: set service_account_file, service_account_key or access_token, "
            "run gcloud auth application-default login, or set anonymous=true",
            subject=f"gs://{settings.bucket}",
        ) from None
