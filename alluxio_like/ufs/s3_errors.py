"""What S3 and its client libraries say went wrong, as our errors.

Owns the one table from S3's error codes and HTTP statuses to the tree of errors. Only codes, statuses and types decide; the
store's own words are never parsed and, since they may repeat what was sent, never shown. Pure functions; safe from any thread.
"""

from dataclasses import dataclass

import botocore.exceptions as boto

from alluxio_like import errors
from alluxio_like.ufs.api import UNREACHABLE

Error = type[errors.AlluxioLikeError]

_CODES: dict[str, tuple[Error, str]] = {
    "SlowDown": (errors.StoreThrottled, "the store asks for fewer requests"),
    "Throttling": (errors.StoreThrottled, "the store asks for fewer requests"),
    "ThrottlingException": (errors.StoreThrottled, "the store asks for fewer requests"),
    "RequestLimitExceeded": (errors.StoreThrottled, "the store asks for fewer requests"),
    "TooManyRequests": (errors.StoreThrottled, "the store asks for fewer requests"),
    "TooManyRequestsException": (errors.StoreThrottled, "the store asks for fewer requests"),
    "ServiceUnavailable": (errors.StoreThrottled, "the store is overloaded"),
    "NoSuchBucket": (errors.StoreMissing, "there is no such bucket"),
    "InvalidBucketName": (errors.StoreMissing, "this cannot be a bucket's name"),
    "AllAccessDisabled": (errors.StoreDenied, "all access to the bucket is disabled"),
    "AccessDenied": (errors.StoreDenied, "the store refuses access with these credentials"),
    "InvalidAccessKeyId": (errors.StoreDenied, "the store does not know this access key"),
    "SignatureDoesNotMatch": (errors.StoreDenied, "the secret key does not fit the access key"),
    "ExpiredToken": (errors.StoreDenied, "the session token has expired"),
    "ExpiredTokenException": (errors.StoreDenied, "the web identity's token has expired"),
    "InvalidIdentityToken": (errors.StoreDenied, "STS does not accept the web identity's token"),
    "InvalidToken": (errors.StoreDenied, "the session token is not valid"),
    "TokenRefreshRequired": (errors.StoreDenied, "the session token has expired"),
    "RequestTimeTooSkewed": (errors.StoreDenied, "this machine's clock differs too much from the store's"),
    "InvalidObjectState": (
        errors.StoreArchived,
        "it is in the store's archive: alluxio-like fs restore PATH asks for its return",
    ),
    "GlacierExpeditedRetrievalNotAvailable": (errors.StoreUnavailable, "the store cannot do it so fast now: take another tier"),
    "NotImplemented": (errors.Unsupported, "the store cannot do this"),
    "MethodNotAllowed": (errors.Unsupported, "the store cannot do this"),
    "PermanentRedirect": (errors.StoreMissing, "the bucket is in another region or at another endpoint"),
    "TemporaryRedirect": (errors.StoreMissing, "the bucket is in another region or at another endpoint"),
    "AuthorizationHeaderMalformed": (errors.StoreMissing, "the bucket is in another region: set the option region"),
    "IllegalLocationConstraintException": (errors.StoreMissing, "the bucket is in another region: set the option region"),
    "RequestTimeout": (errors.StoreUnavailable, "the store took too long"),
    "NoSuchKey": (errors.NotFound, "there is no such object"),
    "NoSuchVersion": (errors.NotFound, "there is no such object"),
    "PreconditionFailed": (errors.Stale, "the store holds another content by now"),
    "NoSuchUpload": (errors.NotFound, "there is no such upload (any more)"),
    "ConditionalRequestConflict": (errors.StoreUnavailable, "the object is being written by somebody else at the same time"),
    "OperationAborted": (errors.StoreUnavailable, "somebody else changes it at the same time"),
    "ConcurrentModification": (errors.StoreUnavailable, "somebody else changes it at the same time"),
    "InvalidPart": (errors.InvalidArgument, "the store has no such part"),
    "InvalidPartOrder": (errors.InvalidArgument, "the parts are not in order"),
    "EntityTooSmall": (errors.InvalidArgument, "a part that is not the last is too small"),
    "EntityTooLarge": (errors.InvalidArgument, "the store does not take so much at once"),
    "KeyTooLongError": (errors.NameTooLong, "the key is too long"),
    "BadDigest": (errors.StoreProtocol, "what arrived is not what was sent"),
    "XAmzContentSHA256Mismatch": (errors.StoreProtocol, "what arrived is not what was sent"),
    "XAmzContentChecksumMismatch": (errors.StoreProtocol, "what arrived is not what was sent"),
    "IncompleteBody": (errors.StoreUnavailable, "the connection to the store broke"),
    "QuotaExceeded": (errors.NoSpace, "the store's quota is used up"),
    "XMinioStorageFull": (errors.NoSpace, "the store is full"),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the store that says no."""

    code: str
    status: int


def get_refusal(error: BaseException) -> Refusal | None:
    """Code and status of an answer; None where no answer came."""
    if not isinstance(error, boto.ClientError):
        return None
    details = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return Refusal(str(details.get("Code", "")), int(status))


def convert_error(error: BaseException, subject: str, endpoint: str) -> errors.AlluxioLikeError:
    """The error of our tree for one raised by boto3. `subject` is the bucket or object, `endpoint` where it was asked for."""
    refusal = get_refusal(error)
    if refusal is not None:
        return convert_refusal(refusal, subject)
    if isinstance(error, errors.AlluxioLikeError):
        return error
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return errors.StoreDenied(
            "no AWS credentials were found: set access_key and secret_key, profile, or anonymous=true", subject=subject
        )
    if isinstance(error, boto.ProfileNotFound):
        return errors.ConfigError("the AWS profile named by the option profile is in no AWS configuration file here")
    if isinstance(
        error,
        (
            boto.CredentialRetrievalError,
            boto.MetadataRetrievalError,
            boto.TokenRetrievalError,
            boto.SSOError,
            boto.UnauthorizedSSOTokenError,
            boto.NoAuthTokenError,
        ),
    ):
        return errors.StoreDenied("AWS credentials could not be fetched or renewed", subject=subject)
    if isinstance(error, boto.SSLError):
        return errors.StoreUnavailable("the TLS connection failed: see the options ca_file and verify", subject=endpoint)
    if isinstance(error, (boto.ConnectTimeoutError, boto.EndpointConnectionError, boto.ProxyConnectionError)):
        return errors.StoreUnavailable(UNREACHABLE, subject=endpoint)
    if isinstance(error, boto.ReadTimeoutError):
        return errors.StoreUnavailable("the store stopped answering", subject=subject)
    if isinstance(error, (boto.HTTPClientError, boto.IncompleteReadError)):
        return errors.StoreUnavailable("the connection to the store broke", subject=subject)
    if isinstance(error, (boto.ParamValidationError, boto.InvalidRegionError)):
        return errors.ConfigError("this cannot be a bucket, key or region of S3", subject=subject)
    if isinstance(error, boto.BotoCoreError):
        return errors.StoreError(f"the S3 client failed ({type(error).__name__})", subject=subject)
    if isinstance(error, OSError):
        return errors.StoreUnavailable(f"the connection to the store failed ({type(error).__name__})", subject=subject)
    return errors.StoreProtocol(f"the store's answer was not understood ({type(error).__name__})", subject=subject)


def convert_refusal(refusal: Refusal, subject: str) -> errors.AlluxioLikeError:
    """The error for a code and a status (0: not known)."""
    known = _CODES.get(refusal.code)
    shown = f"{refusal.status} {refusal.code}".strip() if refusal.code != str(refusal.status) else f"{refusal.status}"
    if known is not None:
        return known[0](f"{known[1]} ({shown})", subject=subject)
    kind, text = _classify_status(refusal.status)
    return kind(f"{text} ({shown})", subject=subject)


def _classify_status(status: int) -> tuple[Error, str]:
    if status in {429, 503}:
        return errors.StoreThrottled, "the store asks for fewer requests"
    if status in {401, 403}:
        return errors.StoreDenied, "the store refuses access with these credentials"
    if status == 404:
        return errors.NotFound, "there is no such object"
    if status == 412:
        return errors.Stale, "the store holds another content by now"
    if status in {301, 302, 307, 308}:
        return errors.StoreMissing, "the bucket is in another region or at another endpoint"
    if status >= 500:
        return errors.StoreUnavailable, "the store failed"
    if 200 <= status < 400:
        return errors.StoreProtocol, "the store's answer was not understood"
    return errors.StoreError, "the store refused the request"
