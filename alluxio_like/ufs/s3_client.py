"""The two S3 client libraries, set up alike: boto3 for what is asked seldom, obstore for reading.

Owns how options become clients: endpoint, region, addressing, TLS, timeouts; who they are is s3_credentials.py's affair.
`connect` blocks (it reads files and may ask a metadata service), so it runs in a thread; what it returns may be used from any
thread. Neither secrets nor clients appear in any repr.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import boto3.session
import botocore
import botocore.exceptions
import urllib3
from botocore.config import Config
from obstore.store import S3Store

from alluxio_like import errors
from alluxio_like.ufs.s3_credentials import CredentialProvider, open_session
from alluxio_like.ufs.s3_listing import before_parse, drop_control_characters
from alluxio_like.ufs.s3_settings import S3Settings
from alluxio_like.ufs.threads import BlockingPool

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CONNECT_TIMEOUT_S = 5.0
"""A guess: a second SYN after 1 s and a third after 3 still count."""
_USER_AGENT = "alluxio-like"


@dataclass(frozen=True, slots=True, repr=False)
class S3Clients:
    """What `connect` makes. `region` and `endpoint` are those in force."""

    client: "S3Client"
    store: S3Store
    region: str
    endpoint: str

    @property
    def is_aws(self) -> bool:
        return _is_aws(self.endpoint)


def connect(settings: S3Settings, pool: BlockingPool) -> S3Clients:
    """Both clients. Blocks. Raises ConfigError, StoreDenied, or an exception of botocore's; talks to no store yet."""
    root_certificate = _read_ca_file(settings.ca_file)
    if not settings.verify:  # as asked for; otherwise urllib3 would say so with each request
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    inner, credentials = open_session(settings)
    session = boto3.session.Session(botocore_session=inner)
    region = settings.region or session.region_name or "us-east-1"
    if credentials is None and not settings.anonymous:
        raise botocore.exceptions.NoCredentialsError
    client = _make_client(session, settings, region)
    endpoint = client.meta.endpoint_url
    is_aws = _is_aws(endpoint)
    if not settings.endpoint and not is_aws and not settings.addressing:
        # The endpoint came from the environment: it is addressed as one given by option.
        client.close()
        client = _make_client(session, settings, region, endpoint)
    provider = None if credentials is None else CredentialProvider(credentials, pool, settings.io_timeout_s)
    store = _make_store(settings, region, "" if is_aws else endpoint, provider, root_certificate)
    return S3Clients(client, store, region, endpoint)


def _read_ca_file(path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise errors.ConfigError(f"option ca_file: cannot be read ({error.strerror})", subject=path) from None


def _is_aws(endpoint: str) -> bool:
    host = endpoint.partition("://")[2].partition("/")[0].partition(":")[0]
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _is_virtual(settings: S3Settings, endpoint: str) -> bool:
    """Whether the bucket stands in the host name. Not where it has dots: no certificate would fit."""
    if settings.addressing:
        return settings.addressing == "virtual"
    return not endpoint and "." not in settings.bucket


def _make_client(session: boto3.session.Session, settings: S3Settings, region: str, endpoint: str = "") -> "S3Client":
    endpoint = endpoint or settings.endpoint
    config = Config(
        connect_timeout=min(_CONNECT_TIMEOUT_S, settings.stall_s),
        read_timeout=settings.stall_s,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=settings.max_connections,
        signature_version=botocore.UNSIGNED if settings.anonymous else None,
        s3={"addressing_style": "virtual" if _is_virtual(settings, endpoint) else "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        tcp_keepalive=True,
        user_agent_extra=_USER_AGENT,
    )
    client = session.client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=region,
        verify=(settings.ca_file or None) if settings.verify else False,
        config=config,
    )
    events = client.meta.events
    # Under these names they come before boto3's own handler, which parses all of it and takes what it cannot parse for a failure.
    events.register("before-parse.*.ListObjectsV2", before_parse)
    for answer in ("CreateMultipartUpload", "ListParts", "CompleteMultipartUpload", "ListObjectVersions"):
        events.register(f"before-parse.*.{answer}", drop_control_characters)
    if not _is_aws(client.meta.endpoint_url):
        events.register("before-sign.s3.CopyObject", _spell_for_radosgw)
    return client


def _spell_for_radosgw(request: Any, **_others: object) -> None:
    """boto3's event before-sign: radosgw knows the condition on a copy's source by another name (tried with 16.2)."""
    condition = request.headers.get("x-amz-copy-source-if-match")
    if condition is not None:
        request.headers["x-amz-copy-if-match"] = condition


def _make_store(
    settings: S3Settings, region: str, endpoint: str, provider: CredentialProvider | None, root_certificate: bytes | None
) -> S3Store:
    """obstore's store. It reads AWS_… variables by itself, so whatever matters is set here."""
    is_virtual = _is_virtual(settings, endpoint)
    if endpoint and is_virtual:
        scheme, _, host = endpoint.partition("://")
        endpoint = f"{scheme}://{settings.bucket}.{host}"
    config: dict[str, Any] = {
        "bucket": settings.bucket,
        "region": region,
        "skip_signature": settings.anonymous,
        "virtual_hosted_style_request": is_virtual,
        "request_payer": settings.requester_pays,
    }
    if endpoint:
        # Both: the second, which may come from the environment, would go before the first.
        config["endpoint"] = endpoint
        config["aws_endpoint_url_s3"] = endpoint
    client_options: dict[str, Any] = {
        "allow_http": endpoint.startswith("http://"),
        "allow_invalid_certificates": not settings.verify,
        "connect_timeout": timedelta(seconds=min(_CONNECT_TIMEOUT_S, settings.stall_s)),
        "read_timeout": timedelta(seconds=settings.stall_s),
        # Of a whole body, with room for a reader that takes its time; each step of ours has a tighter bound.
        "timeout": timedelta(seconds=settings.io_timeout_s * 20),
        # One connection for each request under way: a shared HTTP/2 connection has one flow of control for all.
        "http1_only": True,
        "user_agent": _USER_AGENT,
    }
    if root_certificate is not None:
        client_options["root_certificate"] = root_certificate
    return S3Store(
        config=config,  # type: ignore[arg-type]
        client_options=client_options,  # type: ignore[arg-type]
        retry_config={"max_retries": 0},
        credential_provider=provider,
    )
