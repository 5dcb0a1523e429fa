"""Who an S3 mount is: keys of its options, the AWS chain, or a role that either of them, or a web identity, assumes.

Owns how credentials are found and renewed, for boto3 and obstore alike. Finding and renewing block (files, a metadata service,
STS), so they happen in threads. No secret appears in any repr.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore
import botocore.session
from botocore.config import Config
from botocore.credentials import Credentials, DeferredRefreshableCredentials, ReadOnlyCredentials

from alluxio_like import errors
from alluxio_like.ufs.references import Secrets
from alluxio_like.ufs.s3_settings import S3Settings
from alluxio_like.ufs.threads import BlockingPool

if TYPE_CHECKING:
    from obstore.store import S3Credential

_ASK_AGAIN = timedelta(minutes=5, seconds=15)
"""What obstore is told of credentials that may be replaced at any time: it asks again 5 minutes before they run out."""
_ROLE_SESSION = "alluxio-like"


class NamedCredentials(Credentials):
    """boto3's credentials out of options: looked up with each request, where they are names of files that others replace."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self.may_change = secrets.may_change
        super().__init__(*self._fetch(), method="options")

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        return ReadOnlyCredentials(*self._fetch())

    def _fetch(self) -> tuple[str, str, str | None]:
        get = self._secrets.get
        return get("access_key"), get("secret_key"), get("session_token") or None


class CredentialProvider:
    """Credentials for obstore out of boto3's; asked again only when they run out, which they say truthfully."""

    def __init__(self, credentials: Any, pool: BlockingPool, timeout_s: float) -> None:
        self._credentials = credentials
        self._pool = pool
        self._timeout_s = timeout_s

    async def __call__(self) -> "S3Credential":
        if not self._may_change():  # no need for a thread
            return self._fetch()
        return await self._pool.run(self._fetch, timeout_s=self._timeout_s)

    def _may_change(self) -> bool:
        if isinstance(self._credentials, NamedCredentials):
            return self._credentials.may_change
        return hasattr(self._credentials, "refresh_needed")

    def _fetch(self) -> "S3Credential":
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": self._get_expiry(),
        }

    def _get_expiry(self) -> datetime | None:
        """The true expiry; None for credentials that have none."""
        if not self._may_change():
            return None
        # botocore has no public name for it; where it should be missing one day, asking every few seconds is right too.
        expiry = getattr(self._credentials, "_expiry_time", None)
        return expiry if isinstance(expiry, datetime) else datetime.now(UTC) + _ASK_AGAIN


def open_session(settings: S3Settings, region: str = "") -> tuple[botocore.session.Session, Any]:
    """A session of boto3's core whose clients sign as the options say, and its credentials; None: unsigned, or none were found.

    Blocks. Raises ConfigError, or an exception of botocore's.
    """
    session = botocore.session.Session(profile=settings.profile or None)
    if settings.anonymous:
        return session, None
    if settings.has_own_keys:
        _use(session, NamedCredentials(settings.secrets))
    if not settings.role_arn:
        return session, session.get_credentials()
    renew = _make_role(settings, session, region or settings.region or session.get_config_variable("region") or "us-east-1")
    assumed = botocore.session.Session(profile=settings.profile or None)
    _use(assumed, DeferredRefreshableCredentials(renew, "assume-role"))
    return assumed, assumed.get_credentials()


def _use(session: botocore.session.Session, credentials: Credentials) -> None:
    vars(session)["_credentials"] = credentials  # its own setter takes texts alone


def _make_role(settings: S3Settings, session: botocore.session.Session, region: str) -> Callable[[], dict[str, Any]]:
    """What asks STS for the role's credentials, in the form that boto3 renews them by."""
    by_token = bool(settings.web_identity_token_file)
    client: Any = session.create_client(
        "sts",
        region_name=region,
        # radosgw and MinIO answer for STS where they answer for S3.
        endpoint_url=settings.sts_endpoint or settings.endpoint or None,
        verify=(settings.ca_file or None) if settings.verify else False,
        config=Config(
            connect_timeout=settings.stall_s,
            read_timeout=settings.stall_s,
            retries={"total_max_attempts": 1},
            signature_version=botocore.UNSIGNED if by_token else None,
        ),
    )

    def renew() -> dict[str, Any]:
        arguments = {"RoleArn": settings.role_arn, "RoleSessionName": _ROLE_SESSION}
        if by_token:
            token = _read_token(settings.web_identity_token_file)
            answer = client.assume_role_with_web_identity(**arguments, WebIdentityToken=token)
        else:
            others = {"ExternalId": settings.external_id} if settings.external_id else {}
            answer = client.assume_role(**arguments, **others)
        given = answer["Credentials"]
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    return renew


def _read_token(path: str) -> str:
    """Read each time, since it is replaced before it runs out."""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text"
        raise errors.ConfigError(f"option web_identity_token_file: cannot be read here ({why})", subject=path) from None
