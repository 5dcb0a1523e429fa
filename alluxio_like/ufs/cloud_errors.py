"""What Google Cloud Storage and Azure say went wrong, as our errors.

Owns the tables from their error codes and HTTP statuses to the tree of errors. Only codes and statuses decide; the stores' own
words are never parsed and, since they may repeat what was sent, never shown. Pure functions; safe from any thread.
"""

import json
import re
from collections.abc import Mapping

from alluxio_like import errors
from alluxio_like.ufs.rest import Answer

Error = type[errors.AlluxioLikeError]
Table = Mapping[str, tuple[Error, str]]

_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")

_THROTTLED = (errors.StoreThrottled, "the store asks for fewer requests")
_DENIED = (errors.StoreDenied, "the store refuses access with these credentials")
_NO_BUCKET = (errors.StoreMissing, "there is no such bucket")
_NO_OBJECT = (errors.NotFound, "there is no such object")
_CHANGED = (errors.Stale, "the store holds another content by now")
_SIGN_IN = (errors.StoreDenied, "the credentials are not valid, or have expired")

GS_CODES: Table = {
    # the JSON API's reasons
    "rateLimitExceeded": _THROTTLED,
    "userRateLimitExceeded": _THROTTLED,
    "quotaExceeded": _THROTTLED,
    "backendError": (errors.StoreUnavailable, "the store failed"),
    "authError": _SIGN_IN,
    "forbidden": _DENIED,
    "insufficientPermissions": _DENIED,
    "accountDisabled": (errors.StoreDenied, "the account of the bucket is disabled"),
    "userProjectMissing": (errors.StoreDenied, "the bucket's requester pays: set the option user_project"),
    "userProjectAccessDenied": (errors.StoreDenied, "these credentials may not bill the project of the option user_project"),
    "retentionPolicyNotMet": (errors.StoreDenied, "the bucket's retention policy forbids it"),
    "objectUnderActiveHold": (errors.StoreDenied, "the object is under a hold"),
    "notFound": _NO_OBJECT,
    "conditionNotMet": _CHANGED,
    # the XML API's codes
    "SlowDown": _THROTTLED,
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": (errors.StoreMissing, "this cannot be a bucket's name"),
    "NoSuchKey": _NO_OBJECT,
    "AccessDenied": _DENIED,
    "AuthenticationRequired": _SIGN_IN,
    "ExpiredToken": _SIGN_IN,
    "InvalidAuthentication": _SIGN_IN,
    "UserProjectMissing": (errors.StoreDenied, "the bucket's requester pays: set the option user_project"),
    "PreconditionFailed": _CHANGED,
}

AZ_CODES: Table = {
    "ServerBusy": _THROTTLED,
    "IngressRateLimitExceeded": _THROTTLED,
    "EgressRateLimitExceeded": _THROTTLED,
    "OperationTimedOut": (errors.StoreUnavailable, "the store took too long"),
    "InternalError": (errors.StoreUnavailable, "the store failed"),
    "ContainerNotFound": (errors.StoreMissing, "there is no such container in the storage account"),
    "ContainerBeingDeleted": (errors.StoreMissing, "the container is being deleted"),
    "ContainerDisabled": (errors.StoreMissing, "the container is disabled"),
    "InvalidResourceName": (errors.StoreMissing, "this cannot be a container's name"),
    "AccountIsDisabled": (errors.StoreDenied, "the storage account is disabled"),
    "AuthenticationFailed": (
        errors.StoreDenied,
        "account_key, sas_token or the token is not valid, or this machine's clock is wrong",
    ),
    "AuthorizationFailure": _DENIED,
    "AuthorizationPermissionMismatch": (errors.StoreDenied, "the role Storage Blob Data Reader or Contributor is missing"),
    "AuthorizationProtocolMismatch": (errors.StoreDenied, "the sas_token is for another protocol: try https"),
    "AuthorizationSourceIPMismatch": (errors.StoreDenied, "the sas_token is not for this machine's address"),
    "InsufficientAccountPermissions": _DENIED,
    "InvalidAuthenticationInfo": _SIGN_IN,
    "KeyBasedAuthenticationNotPermitted": (errors.StoreDenied, "the account takes no keys: leave account_key out and sign in"),
    "NoAuthenticationInformation": (errors.StoreDenied, "the container is not public: set account_key, sas_token or client_id"),
    "PublicAccessNotPermitted": (errors.StoreDenied, "the account allows no anonymous access: leave anonymous out"),
    "BlobArchived": (errors.StoreArchived, "the blob is archived and must be rehydrated before it can be read"),
    "BlobBeingRehydrated": (errors.StoreArchived, "the blob is being rehydrated from the archive"),
    "BlobImmutableDueToPolicy": (errors.StoreDenied, "the container's immutability policy forbids it"),
    "BlobNotFound": _NO_OBJECT,
    "ResourceNotFound": _NO_OBJECT,
    "CannotVerifyCopySource": _NO_OBJECT,
    "ConditionNotMet": _CHANGED,
    "TargetConditionNotMet": _CHANGED,
    "SourceConditionNotMet": _CHANGED,
    "BlobAlreadyExists": _CHANGED,
    "LeaseIdMissing": (errors.Conflict, "another program holds a lease on the blob"),
    "InvalidBlobType": (errors.Unsupported, "the blob is an append or page blob, which is only read"),
    "InvalidBlockList": (errors.NotFound, "the upload is no longer known to the store"),
    "FeatureVersionMismatch": (errors.Unsupported, "the store is too old for this request"),
}


def convert_gs(answer: Answer, subject: str) -> errors.AlluxioLikeError:
    """What Google Cloud Storage means."""
    return _convert(answer, _get_reason(answer.body) or _get_code(answer.body), GS_CODES, subject)


def convert_az(answer: Answer, subject: str) -> errors.AlluxioLikeError:
    """What Azure means."""
    return _convert(answer, answer.headers.get("x-ms-error-code") or _get_code(answer.body), AZ_CODES, subject)


def _get_code(body: bytes) -> str:
    """The code of an error in XML."""
    found = _CODE.search(body[:4096])
    return found[1].decode() if found else ""


def _get_reason(body: bytes) -> str:
    """The reason of an error in JSON."""
    if body.lstrip()[:1] != b"{":
        return ""
    try:
        reason = json.loads(body)["error"]["errors"][0]["reason"]
    except (ValueError, LookupError, TypeError):
        return ""
    return reason if isinstance(reason, str) and reason.isalnum() and len(reason) <= 64 else ""


def _convert(answer: Answer, code: str, table: Table, subject: str) -> errors.AlluxioLikeError:
    kind, text = table.get(code) or classify_status(answer.status)
    return kind(f"{text} ({answer.status} {code})" if code else f"{text} ({answer.status})", subject=subject)


def classify_status(status: int) -> tuple[Error, str]:
    """What a status means by itself."""
    if status in {429, 503}:
        return _THROTTLED
    if status in {401, 403}:
        return _DENIED
    if status == 404:
        return _NO_OBJECT
    if status == 412:
        return _CHANGED
    if status in {301, 302, 303, 307, 308}:
        return errors.StoreMissing, "the store is at another endpoint: set the option endpoint"
    if status >= 500 or status == 408:
        return errors.StoreUnavailable, "the store failed"
    if 200 <= status < 400:
        return errors.StoreProtocol, "the store's answer was not understood"
    return errors.StoreError, "the store refused the request"
